"""Replies of the fake upstream, good ones and refusals. Imported through `tests.support.upstream`, which explains.

Every function returns a step. `model=""` echoes the model that the request asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tests.support import replies
from tests.support.replies import TEXT, USUAL, ToolCall, Usage, dump

if TYPE_CHECKING:
    from tests.support.upstream import Exchange

Step = Callable[["Exchange"], Awaitable[None]]
Headers = Sequence[tuple[str, str]]
LIMITED = b'{"error":{"message":"Rate limit reached","type":"rate_limit_error","code":"rate_limit_exceeded"}}'

# ------------------------------------------------------------------------------------------------ good replies


def json_reply(value: Any, status: int = 200, headers: Headers = ()) -> Step:
    """Any value as JSON; bytes go out verbatim."""

    async def step(x: Exchange) -> None:
        await x.reply(value if isinstance(value, bytes) else dump(value), status, headers=headers)

    return step


def sse(events: Iterable[bytes], delay_s: float = 0.0, then: Step | None = None) -> Step:
    """An event stream, one chunk an event. `then` replaces its proper end (and leaves the body unfinished)."""

    async def step(x: Exchange) -> None:
        await x.start_stream()
        for event in events:
            await x.chunk(event)
            if delay_s:
                await asyncio.sleep(delay_s)
        await (then(x) if then else x.chunk(b""))

    return step


def openai_reply(
    text: str = TEXT,
    *,
    model: str = "",
    usage: Usage = USUAL,
    tool_calls: Sequence[ToolCall] = (),
    logprob: float | None = None,
    finish: str = "",
    n: int = 1,
) -> Step:
    async def step(x: Exchange) -> None:
        body = replies.openai_body(model or x.seen.model, text, usage, tool_calls, logprob, finish, n)
        await x.reply(dump(body))

    return step


def openai_stream(
    text: str = TEXT,
    *,
    model: str = "",
    usage: Usage = USUAL,
    tool_calls: Sequence[ToolCall] = (),
    logprob: float | None = None,
    finish: str = "",
    always_usage: bool = False,
    done: bool = True,
    pieces: int = 4,
    delay_s: float = 0.0,
) -> Step:
    """The usage chunk is sent when `stream_options.include_usage` asked for it, or always."""

    async def step(x: Exchange) -> None:
        asked = always_usage or bool((x.seen.json.get("stream_options") or {}).get("include_usage"))
        events = replies.openai_events(
            model or x.seen.model, text, usage, tool_calls, logprob, finish, asked, done, pieces
        )
        await sse(events, delay_s)(x)

    return step


def anthropic_reply(
    text: str = TEXT,
    *,
    model: str = "",
    usage: Usage = USUAL,
    tool_calls: Sequence[ToolCall] = (),
    stop: str = "",
    thinking: str = "",
) -> Step:
    async def step(x: Exchange) -> None:
        await x.reply(dump(replies.anthropic_body(model or x.seen.model, text, usage, tool_calls, stop, thinking)))

    return step


def anthropic_stream(
    text: str = TEXT,
    *,
    model: str = "",
    usage: Usage = USUAL,
    tool_calls: Sequence[ToolCall] = (),
    stop: str = "",
    thinking: str = "",
    done: bool = True,
    pieces: int = 4,
    delay_s: float = 0.0,
) -> Step:
    async def step(x: Exchange) -> None:
        events = replies.anthropic_events(model or x.seen.model, text, usage, tool_calls, stop, thinking, done, pieces)
        await sse(events, delay_s)(x)

    return step


def embeddings_reply(dimensions: int = 8, *, model: str = "", usage: Usage = USUAL) -> Step:
    async def step(x: Exchange) -> None:
        asked = x.seen.json.get("input", "")
        count = len(asked) if isinstance(asked, list) and asked and not isinstance(asked[0], int) else 1
        await x.reply(dump(replies.embeddings_body(model or x.seen.model, count, dimensions, usage)))

    return step


async def well_formed(x: Exchange) -> None:
    """The default: what a good provider would do with this path and this `stream`."""
    path = x.seen.path.partition("?")[0]
    if path.endswith("/chat/completions"):
        step = openai_stream() if x.seen.stream else openai_reply()
    elif path.endswith("/messages"):
        step = anthropic_stream() if x.seen.stream else anthropic_reply()
    elif path.endswith("/embeddings"):
        step = embeddings_reply()
    elif path.endswith("/models"):
        step = json_reply({"object": "list", "data": [{"id": "small", "object": "model"}]})
    else:
        step = error(404, f"no such path: {path}", type="not_found_error")
    await step(x)


# ------------------------------------------------------------------------------------------------ refusals (U1, U2)


def error(
    status: int,
    message: str = "Something went wrong",
    *,
    type: str = "api_error",
    code: str = "",
    headers: Headers = (),
) -> Step:
    """An error in a shape that OpenAI and Anthropic clients both understand."""
    body = {"type": "error", "error": {"message": message, "type": type, "code": code or None, "param": None}}
    return json_reply(body, status, headers)


def rate_limited(retry_after: str | None = "1", headers: Headers = ()) -> Step:
    """429; `retry_after` verbatim, so it may be a date, absurd or negative."""
    named = [] if retry_after is None else [("Retry-After", retry_after)]
    return json_reply(LIMITED, 429, [*named, *headers])


def redirect(location: str, status: int = 307) -> Step:
    """U9."""

    async def step(x: Exchange) -> None:
        await x.reply(b"", status, "", [("Location", location), ("Set-Cookie", "session=1; Path=/")])

    return step
