"""Reads and checks the OpenAI-dialect bodies of the simulated provider. What is wrong is a 400 as OpenAI writes it.

Tokens are counted as ceil(UTF-8 bytes / 4): near enough for prices, the same everywhere, and free of any tokenizer.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from tierwise.core.ports import UpstreamError
from tierwise.providers.simulated_tools import Tool

BYTES_PER_TOKEN = 4
MAX_CHOICES = 128
MAX_DIMENSIONS = 4_096


class Part(msgspec.Struct, frozen=True):
    type: str
    text: str = ""


class CalledFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: str = ""


class Called(msgspec.Struct, frozen=True):
    id: str
    function: CalledFunction


class Message(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    tool_calls: list[Called] | None = None
    tool_call_id: str | None = None

    def text(self) -> str:
        match self.content:
            case None:
                return ""
            case str():
                return self.content
            case parts:
                return "\n".join(part.text for part in parts if part.text)

    def images(self) -> int:
        return sum("image" in part.type for part in self.content) if isinstance(self.content, list) else 0


class OfferedTool(msgspec.Struct, frozen=True):
    function: Tool
    type: Literal["function"] = "function"


class NamedFunction(msgspec.Struct, frozen=True):
    name: str


class NamedTool(msgspec.Struct, frozen=True):
    function: NamedFunction
    type: Literal["function"] = "function"


class NamedSchema(msgspec.Struct, frozen=True):
    name: str
    schema: dict[str, Any] = {}
    strict: bool | None = None


class Format(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class ChatBody(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that the simulated provider obeys; all others are accepted and ignored."""

    model: str
    messages: list[Message]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    tools: list[OfferedTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: Format | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None


class EmbeddingBody(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    input: str | list[str | int | list[int]]
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] | None = None


_chat_decoder = msgspec.json.Decoder(ChatBody)
_embedding_decoder = msgspec.json.Decoder(EmbeddingBody)


def tokens_in(text: str) -> int:
    """ceil(UTF-8 bytes / 4)."""
    return -(-(len(text) if text.isascii() else len(text.encode())) // BYTES_PER_TOKEN)


def rejected(message: str, param: str | None = None, code: str | None = None) -> UpstreamError:
    """Status 400 with an error body as OpenAI writes it."""
    return UpstreamError(
        "rejected", message, status=400, body=error_body(message, "invalid_request_error", param, code)
    )


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> bytes:
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def read_chat(body: bytes) -> ChatBody:
    """Raises UpstreamError, kind rejected, naming the field."""
    try:
        chat = _chat_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise rejected(f"Invalid request body: {error}") from None
    for name, value, low, high in (
        ("messages", len(chat.messages), 1, 100_000),
        ("max_tokens", chat.max_tokens, 1, math.inf),
        ("max_completion_tokens", chat.max_completion_tokens, 1, math.inf),
        ("n", chat.n, 1, MAX_CHOICES),
        ("temperature", chat.temperature, 0, 2),
        ("top_logprobs", chat.top_logprobs, 0, 20),
        ("stop", len(chat.stop) if isinstance(chat.stop, list) else None, 0, 4),
        ("tools", len(chat.tools) if chat.tools is not None else None, 1, 1_024),
    ):
        if value is not None and not low <= value <= high:
            raise rejected(f"Invalid '{name}': {value} is not between {low} and {high}.", name)
    if chat.top_logprobs is not None and not chat.logprobs:
        raise rejected("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
    if chat.stream_options is not None and not chat.stream:
        raise rejected("'stream_options' is only allowed when 'stream' is true.", "stream_options")
    wanted = chat.response_format
    if wanted is not None and wanted.type == "json_schema" and wanted.json_schema is None:
        raise rejected("'response_format.json_schema' is missing.", "response_format.json_schema")
    offered = {tool.function.name for tool in chat.tools or ()}
    match chat.tool_choice:
        case NamedTool(function=NamedFunction(name=name)) if name not in offered:
            raise rejected(f"Tool choice '{name}' is not among 'tools'.", "tool_choice")
        case "required" if not offered:
            raise rejected("'tool_choice' is only allowed when 'tools' are given.", "tool_choice")
        case _:
            return chat


def read_embedding(body: bytes) -> EmbeddingBody:
    """Raises UpstreamError, kind rejected, naming the field."""
    try:
        asked = _embedding_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise rejected(f"Invalid request body: {error}") from None
    if asked.dimensions is not None and not 1 <= asked.dimensions <= MAX_DIMENSIONS:
        raise rejected(f"Invalid 'dimensions': not between 1 and {MAX_DIMENSIONS}.", "dimensions")
    return asked
