"""What we read of the events of a stream, as types. Everything else passes unread.

Nothing is decided here, but what a part of a reply's content is where it comes in parts.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tierwise.wire.neutral import Block, Text, Thinking

Json = dict[str, Any]


class Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None  # some local servers send an object


class Call(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: Function | None = None
    extra_content: Any = None  # Gemini's signature of its thoughts


class Delta(msgspec.Struct, gc=False):
    content: str | list[Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[Call] | None = None
    function_call: Function | None = None  # the form before tool calls: one call, without an id
    reasoning_details: Any = None
    annotations: Any = None
    citations: Any = None
    audio: Any = None
    images: Any = None


class Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: Delta | None = None
    finish_reason: str | None = None
    logprobs: Json | None = None  # read by nobody, but what is odd in it is mended
    error: Any = None


class Chunk(msgspec.Struct, gc=False):
    """What we read of a chunk; everything else passes unread."""

    id: str | None = None
    model: str | None = None
    created: float = 0
    choices: list[Choice] | None = None
    usage: Json | None = None
    service_tier: str | None = None
    x_groq: Json | None = None
    object: Any = None
    citations: Any = None
    search_results: Any = None
    images: Any = None
    error: Any = None


class Event(msgspec.Struct, gc=False):
    """What we read of an event of a Messages stream."""

    type: str = ""
    index: int = 0
    message: Json | None = None
    content_block: Json | None = None
    delta: Json | None = None
    usage: Json | None = None
    context_management: Any = None
    error: Any = None


CHUNK = msgspec.json.Decoder(Chunk)
EVENT = msgspec.json.Decoder(Event)


def loose(kind: type[Any], tree: Any) -> Any:
    """A tree whose types are not what they should be: each part that fits is kept, the others get their defaults."""
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError:
        pass
    if type(tree) is not dict:
        return kind()
    inner: dict[type[Any], tuple[str, type[Any]]] = {
        Chunk: ("choices", Choice),
        Choice: ("delta", Delta),
        Delta: ("tool_calls", Call),
        Call: ("function", Function),
    }
    kept: Json = {}
    name, part = inner.get(kind, ("", Call))
    for field in msgspec.structs.fields(kind):
        if (value := tree.get(field.name)) is None:
            continue
        if field.name == name:
            value = [loose(part, one) for one in value] if type(value) is list else loose(part, value)
        try:
            kept[field.name] = msgspec.convert(value, field.type, strict=False)
        except (msgspec.ValidationError, OverflowError):
            continue
    return kind(**kept)


def openai_part(part: Any) -> Block | None:
    """A part of a reply's content where a dialect (Mistral) sends parts: text or thinking."""
    match part:
        case {"type": "text", "text": str(text)}:
            return Text(text)
        case {"type": "thinking", "thinking": list(inner)}:
            return Thinking("".join(_text(one) for one in inner))
        case {"type": "thinking", "thinking": str(text)}:
            return Thinking(text)
    return None


def _text(part: Any) -> str:
    text = part.get("text") if type(part) is dict else None
    return text if type(text) is str else ""
