"""Well-formed replies for the fake upstream: OpenAI chat and embeddings, Anthropic messages, whole or streamed.

Builders give plain values (dicts, lists of SSE events as bytes), so that a test can spoil one on purpose before it is
sent. `Tokens` is what the "provider" reports; any dict can be sent verbatim instead, and None leaves usage out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TEXT = "Hello from the fake upstream."


@dataclass(frozen=True)
class Tokens:
    """Disjoint buckets, as Tierwise counts: `input` excludes cached and cache-write tokens, `output` reasoning."""

    input: int = 12
    output: int = 7
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: str  # JSON text, sent byte for byte
    id: str = "call_1"


Usage = Tokens | dict[str, Any] | None
USUAL = Tokens()


def dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def pieces_of(text: str, count: int = 4) -> list[str]:
    """`text` in at most `count` non-empty pieces that join to it again."""
    size = max(1, math.ceil(len(text) / count))
    return [text[start : start + size] for start in range(0, len(text), size)]


# ------------------------------------------------------------------------------------------------ OpenAI


def openai_usage(usage: Usage) -> dict[str, Any] | None:
    if not isinstance(usage, Tokens):
        return usage
    prompt, completion = usage.input + usage.cached + usage.cache_write, usage.output + usage.reasoning
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def openai_logprobs(text: str, logprob: float) -> dict[str, Any]:
    """One token per word, each with the same log-probability."""
    words = text.split(" ")
    tokens = [word if number == 0 else f" {word}" for number, word in enumerate(words)]
    entries: list[dict[str, Any]] = [
        {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": []} for token in tokens
    ]
    return {"content": entries, "refusal": None}


def openai_body(
    model: str,
    text: str = TEXT,
    usage: Usage = USUAL,
    tool_calls: Sequence[ToolCall] = (),
    logprob: float | None = None,
    finish: str = "",
    n: int = 1,
) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None if tool_calls else text, "refusal": None}
    if tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in tool_calls
        ]
    choice = {
        "message": message,
        "logprobs": None if logprob is None else openai_logprobs(text, logprob),
        "finish_reason": finish or ("tool_calls" if tool_calls else "stop"),
    }
    body: dict[str, Any] = {
        "id": "chatcmpl-fake1",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": model,
        "choices": [{"index": index, **choice} for index in range(n)],
    }
    reported = openai_usage(usage)
    if reported is not None:
        body["usage"] = reported
    return body


def openai_events(
    model: str,
    text: str = TEXT,
    usage: Usage = USUAL,
    tool_calls: Sequence[ToolCall] = (),
    logprob: float | None = None,
    finish: str = "",
    include_usage: bool = True,
    done: bool = True,
    pieces: int = 4,
) -> list[bytes]:
    """The events of a chat stream; usage comes after finish_reason, in a chunk with `choices: []`, as with OpenAI."""
    head = {"id": "chatcmpl-fake1", "object": "chat.completion.chunk", "created": 1_790_000_000, "model": model}

    def event(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, **more}
        return b"data: " + dump({**head, "choices": [choice]}) + b"\n\n"

    events = [event({"role": "assistant", "content": None if tool_calls else ""})]
    if tool_calls:
        for index, call in enumerate(tool_calls):
            function = {"name": call.name, "arguments": ""}
            events.append(
                event({"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": function}]})
            )
            events.extend(
                event({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
                for part in pieces_of(call.arguments)
            )
    else:
        for part in pieces_of(text, pieces):
            more: dict[str, Any] = {} if logprob is None else {"logprobs": openai_logprobs(part, logprob)}
            events.append(event({"content": part}, **more))
    events.append(event({}, finish or ("tool_calls" if tool_calls else "stop")))
    reported = openai_usage(usage)
    if include_usage and reported is not None:
        events.append(b"data: " + dump({**head, "choices": [], "usage": reported}) + b"\n\n")
    if done:
        events.append(b"data: [DONE]\n\n")
    return events


def embeddings_body(model: str, count: int = 1, dimensions: int = 8, usage: Usage = USUAL) -> dict[str, Any]:
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": [round((index + 1) / (place + 2), 6) for place in range(dimensions)],
        }
        for index in range(count)
    ]
    body: dict[str, Any] = {"object": "list", "data": data, "model": model}
    if isinstance(usage, Tokens):
        body["usage"] = {"prompt_tokens": usage.input, "total_tokens": usage.input}
    elif usage is not None:
        body["usage"] = usage
    return body


# ------------------------------------------------------------------------------------------------ Anthropic


def anthropic_usage(usage: Usage) -> dict[str, Any] | None:
    if not isinstance(usage, Tokens):
        return usage
    return {
        "input_tokens": usage.input,
        "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": usage.cache_write,
        "output_tokens": usage.output + usage.reasoning,
    }


def anthropic_body(
    model: str,
    text: str = TEXT,
    usage: Usage = USUAL,
    tool_calls: Sequence[ToolCall] = (),
    stop: str = "",
    thinking: str = "",
) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if thinking:
        content.append({"type": "thinking", "thinking": thinking, "signature": "c2lnbmF0dXJl"})
    if text and not tool_calls:
        content.append({"type": "text", "text": text})
    content.extend(
        {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}
        for call in tool_calls
    )
    body: dict[str, Any] = {
        "id": "msg_fake1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop or ("tool_use" if tool_calls else "end_turn"),
        "stop_sequence": None,
    }
    reported = anthropic_usage(usage)
    if reported is not None:
        body["usage"] = reported
    return body


def anthropic_events(
    model: str,
    text: str = TEXT,
    usage: Usage = USUAL,
    tool_calls: Sequence[ToolCall] = (),
    stop: str = "",
    thinking: str = "",
    done: bool = True,
    pieces: int = 4,
) -> list[bytes]:
    """message_start … message_stop. Input usage stands in message_start, cumulative output usage in message_delta."""

    def event(kind: str, **fields: Any) -> bytes:
        return b"event: " + kind.encode() + b"\ndata: " + dump({"type": kind, **fields}) + b"\n\n"

    body = anthropic_body(model, "", None)
    reported = anthropic_usage(usage)
    if reported is not None:
        body["usage"] = {**reported, "output_tokens": 1} if isinstance(usage, Tokens) else reported
    body["stop_reason"] = None
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if thinking:
        deltas: list[dict[str, Any]] = [{"type": "thinking_delta", "thinking": part} for part in pieces_of(thinking)]
        deltas.append({"type": "signature_delta", "signature": "c2lnbmF0dXJl"})
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, deltas))
    if text and not tool_calls:
        parts = [{"type": "text_delta", "text": part} for part in pieces_of(text, pieces)]
        blocks.append(({"type": "text", "text": ""}, parts))
    for call in tool_calls:
        parts = [{"type": "input_json_delta", "partial_json": part} for part in pieces_of(call.arguments)]
        blocks.append(({"type": "tool_use", "id": call.id, "name": call.name, "input": {}}, parts))
    events = [event("message_start", message=body)]
    for index, (block, deltas) in enumerate(blocks):
        events.append(event("content_block_start", index=index, content_block=block))
        events.extend(event("content_block_delta", index=index, delta=delta) for delta in deltas)
        events.append(event("content_block_stop", index=index))
    ending = {"stop_reason": stop or ("tool_use" if tool_calls else "end_turn"), "stop_sequence": None}
    final = {} if reported is None else {"usage": {"output_tokens": reported.get("output_tokens")}}
    events.append(event("message_delta", delta=ending, **final))
    if done:
        events.append(event("message_stop"))
    return events
