"""The router inside a program, without a server: `await router.chat(...)`, a synchronous face, and a transport on which
the OpenAI and Anthropic SDKs run with no socket.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from tierwise.core.errors import BadRequest
from tierwise.core.money import NANO_PER_USD
from tierwise.core.request import Payer

if TYPE_CHECKING:
    from tierwise.routing.router import Answered, Router
    from tierwise.routing.streams import Streamed
    from tierwise.server.app import App
    from tierwise.transport import Transport, TransportSync

T = TypeVar("T")


def open(
    config: str | Path | None = None, *, environ: Mapping[str, str] | None = None, state: str | Path | None = None
) -> InApp:
    """A router for this program. Nothing is read before its first use; ConfigError is raised there.

    `config`: a file; None takes TIERWISE_CONFIG, a tierwise.yaml in this folder, else what the environment offers.
    `state`: a folder to keep the journal in; None keeps it in memory, for as long as the router lives.
    """
    return InApp(config, os.environ if environ is None else environ, state)


class ChatReply(msgspec.Struct, frozen=True, kw_only=True):
    """A reply and what it took. Amounts are US dollars; None is unknown. `body` is in OpenAI's chat format."""

    text: str
    model: str
    decision_id: str
    reason: str
    cost_usd: float | None
    baseline_usd: float | None
    body: dict[str, Any]


class InApp:
    """Opens at its first use, on the loop that uses it. Close it, or use it in an `async with`."""

    def __init__(self, config: str | Path | None, environ: Mapping[str, str], state: str | Path | None) -> None:
        self._config = config
        self._environ = environ
        self._state = state
        self._opening: asyncio.Lock | None = None
        self._app: App | None = None

    async def __aenter__(self) -> Self:
        await self.app()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def app(self) -> App:
        """The application that the transport drives; its `router` is the router."""
        self._opening = self._opening or asyncio.Lock()
        async with self._opening:
            if self._app is None:
                from tierwise import config

                path = Path(self._config) if self._config else config.find(self._environ)
                state = Path(self._state) if self._state else None
                setup = await config.load(path, self._environ, state=state)
                self._app = config.open_app(setup, in_memory=state is None)
        return self._app

    async def router(self) -> Router:
        return (await self.app()).router

    async def chat(self, messages: str | list[dict[str, Any]], *, model: str = "auto", **fields: Any) -> ChatReply:
        """Answer a conversation (or a single user message) with the cheapest model that is good enough.

        `fields` are those of OpenAI's chat completions, and `tierwise={...}` for hints. Raises RequestError.
        """
        from tierwise import wire

        router = await self.router()
        body = _body(messages, model, {**fields, "stream": False})
        result = await router.handle(wire.codec("openai_chat").read(body, {}), Payer())
        return _reply(_whole(result))

    async def stream(
        self, messages: str | list[dict[str, Any]], *, model: str = "auto", **fields: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """The same as it comes: chunks of OpenAI's chat format. Close the iterator to stop the model."""
        from tierwise import wire
        from tierwise.routing.router import Answered

        router = await self.router()
        body = _body(messages, model, {**fields, "stream": True})
        result = await router.handle(wire.codec("openai_chat").read(body, {}), Payer())
        if isinstance(result, Answered):
            for event in _events(result.body):
                yield event
            return
        rest = b""
        try:
            async for piece in result:
                whole, _, rest = (rest + piece).rpartition(b"\n\n")
                for event in _events(whole):
                    yield event
        finally:
            result.close()

    def transport(self) -> Transport:
        """For `openai.AsyncOpenAI(http_client=httpx2.AsyncClient(transport=...))` and Anthropic's twin of it."""
        from tierwise.transport import Transport

        return Transport(self.app)

    def sync(self) -> InAppSync:
        """The same for programs without an event loop. It has a loop of its own, in a thread; close it."""
        return InAppSync(self)

    async def close(self) -> None:
        """Finish what runs, settle, write down. Closing twice is fine."""
        if self._app is not None:
            app, self._app = self._app, None
            await app.router.drain(30.0)
            await app.router.close()


class InAppSync:
    """`InApp` for synchronous code, safe to use from several threads."""

    def __init__(self, inner: InApp) -> None:
        self._inner = inner
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tierwise", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        self._run(self._inner.app())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def chat(self, messages: str | list[dict[str, Any]], *, model: str = "auto", **fields: Any) -> ChatReply:
        return self._run(self._inner.chat(messages, model=model, **fields))

    def stream(
        self, messages: str | list[dict[str, Any]], *, model: str = "auto", **fields: Any
    ) -> Iterator[dict[str, Any]]:
        chunks = self._inner.stream(messages, model=model, **fields)
        try:
            while (chunk := self._run(_next(chunks))) is not None:
                yield chunk
        finally:
            self._run(_aclose(chunks))

    def transport(self) -> TransportSync:
        """For `openai.OpenAI(http_client=httpx2.Client(transport=...))` and Anthropic's twin of it."""
        from tierwise.transport import TransportSync

        return TransportSync(self._inner.app, self._loop)

    def close(self) -> None:
        """Closing twice is fine."""
        if self._loop.is_closed():
            return
        self._run(self._inner.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _next(chunks: AsyncIterator[dict[str, Any]]) -> dict[str, Any] | None:
    return await anext(chunks, None)


async def _aclose(chunks: AsyncIterator[dict[str, Any]]) -> None:
    close = getattr(chunks, "aclose", None)
    if close is not None:
        await close()


def _body(messages: str | list[dict[str, Any]], model: str, fields: dict[str, Any]) -> bytes:
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    try:
        return msgspec.json.encode({"model": model, "messages": said, **fields})
    except (TypeError, ValueError) as error:
        raise BadRequest(f"the request cannot be written as JSON: {error}", code="invalid_json") from None


def _whole(result: Answered | Streamed) -> Answered:
    from tierwise.routing.router import Answered

    assert isinstance(result, Answered)  # noqa: S101  # what was not asked to stream does not
    return result


def _reply(answered: Answered) -> ChatReply:
    body: dict[str, Any] = msgspec.json.decode(answered.body)
    trace = answered.trace
    message = body["choices"][0]["message"]
    return ChatReply(
        text=message.get("content") or "",
        model=trace.routed,
        decision_id=trace.episode.id,
        reason=trace.code,
        cost_usd=None if trace.cost_nano is None else trace.cost_nano / NANO_PER_USD,
        baseline_usd=None if trace.baseline_nano is None else trace.baseline_nano / NANO_PER_USD,
        body=body,
    )


def _events(data: bytes) -> Iterator[dict[str, Any]]:
    """The JSON events of a whole number of server-sent events."""
    for line in data.splitlines():
        if line.startswith(b"data:") and line[5:].strip() not in (b"", b"[DONE]"):
            yield msgspec.json.decode(line[5:])
