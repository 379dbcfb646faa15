"""The form between two formats: what a conversation, a reply and a piece of a stream say, in nobody's dialect.

Each format is read into these types and written from them, so a new format is one pair of functions and not one for
every other format. What a format cannot say is named in words (`lost`), never dropped in silence. Nothing here reads
bytes, but for JSON that must survive byte for byte (tool arguments, schemas).
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Literal

import msgspec

from tierwise.core.money import Usage

Stop = Literal["end", "length", "tool_use", "stop_sequence", "refusal", "filtered", "error", "unknown"]
Cache = Literal["5m", "1h"]


class Text(msgspec.Struct, frozen=True):
    text: str
    cache: Cache | None = None


class Image(msgspec.Struct, frozen=True):
    """`data` is base64 with its media type, or `url` says where it is; one of the two is empty."""

    media_type: str = ""
    data: str = ""
    url: str = ""
    cache: Cache | None = None


class Audio(msgspec.Struct, frozen=True):
    format: str
    data: str


class Document(msgspec.Struct, frozen=True):
    """One of `data` (base64), `url`, `text` and `file_id` is filled."""

    media_type: str = ""
    data: str = ""
    url: str = ""
    text: str = ""
    file_id: str = ""
    title: str = ""
    cache: Cache | None = None


class ToolUse(msgspec.Struct, frozen=True):
    """`arguments` is the model's own JSON text, kept byte for byte."""

    id: str
    name: str
    arguments: str
    cache: Cache | None = None


class ToolResult(msgspec.Struct, frozen=True):
    id: str
    content: tuple[Text | Image | Document | Other, ...]
    is_error: bool = False
    cache: Cache | None = None


class Thinking(msgspec.Struct, frozen=True):
    """A signature is worth something only to the provider that gave it."""

    text: str
    signature: str = ""


class Redacted(msgspec.Struct, frozen=True):
    data: str


class Other(msgspec.Struct, frozen=True):
    """A block that this form has no word for; `kind` is its type in its own format, `where` its place."""

    kind: str
    where: str


Block = Text | Image | Audio | Document | ToolUse | ToolResult | Thinking | Redacted | Other


class Message(msgspec.Struct, frozen=True):
    """Results of tools stand in user messages, as blocks."""

    role: Literal["system", "user", "assistant"]
    blocks: tuple[Block, ...]


class Tool(msgspec.Struct, frozen=True):
    name: str
    description: str = ""
    schema: Any = None  # JSON schema of the arguments; None: the format gave none
    strict: bool | None = None
    cache: Cache | None = None


class ToolChoice(msgspec.Struct, frozen=True):
    """`only`: the tools that may be called, () for all. `parallel` None: nobody said."""

    mode: Literal["auto", "none", "required", "tool"] = "auto"
    name: str = ""
    only: tuple[str, ...] = ()
    parallel: bool | None = None


class Format(msgspec.Struct, frozen=True):
    """What the reply must look like."""

    kind: Literal["json", "schema"]
    schema: Any = None
    name: str = "reply"
    strict: bool | None = None


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """A request in nobody's dialect. `extras`: top-level fields that this form does not carry."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    choice: ToolChoice | None = None
    format: Format | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    user: str = ""
    effort: str = ""  # none, minimal, low, medium, high, xhigh, max
    thinking_tokens: int | None = None  # a budget in tokens; 0: no thinking
    tier: Literal["", "auto", "standard"] = ""
    n: int = 1
    extras: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class Choice(msgspec.Struct, frozen=True):
    blocks: tuple[Block, ...]
    stop: Stop
    stop_sequence: str | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole reply in nobody's dialect."""

    id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage | None = None
    created: int = 0


# ------------------------------------------------------------------------------------------------ pieces of a stream


class Began(msgspec.Struct, frozen=True, gc=False):
    id: str
    model: str
    created: int = 0


class Said(msgspec.Struct, frozen=True, gc=False):
    text: str
    choice: int = 0


class Thought(msgspec.Struct, frozen=True, gc=False):
    text: str
    choice: int = 0


class Signed(msgspec.Struct, frozen=True, gc=False):
    signature: str


class Sealed(msgspec.Struct, frozen=True, gc=False):
    """A redacted thinking block, whole."""

    data: str


class CallBegan(msgspec.Struct, frozen=True, gc=False):
    """`index` counts the calls of one choice from 0."""

    index: int
    id: str
    name: str
    choice: int = 0


class CallSaid(msgspec.Struct, frozen=True, gc=False):
    index: int
    arguments: str
    choice: int = 0


class Stopped(msgspec.Struct, frozen=True, gc=False):
    stop: Stop
    stop_sequence: str | None = None
    choice: int = 0


class Waited(msgspec.Struct, frozen=True, gc=False):
    """A sign of life without content."""


Piece = Began | Said | Thought | Signed | Sealed | CallBegan | CallSaid | Stopped | Waited


def are_whole(arguments: list[str]) -> bool:
    """Whether the arguments of a call, as far as they have come, are one JSON value."""
    text = "".join(arguments)
    if not text.rstrip().endswith(("}", "]")):
        return False
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return True


# ------------------------------------------------------------------------------------------------ tool-call ids

_SAFE_ID = re.compile(r"[a-zA-Z0-9_-]{1,40}\Z")


def safe_id(id: str) -> str:
    """The id itself where every format takes it, else a name made from it: the same for the call and its result, with
    no memory. OpenAI takes at most 40 characters, Anthropic only letters, digits, `_` and `-`."""
    if _SAFE_ID.match(id):
        return id
    return "call_" + hashlib.sha256(id.encode()).hexdigest()[:24]


def lost_extra(name: str, format: str) -> str:
    """The sentence for a top-level field that the other format has no place for."""
    return f"{name}: the {format} format has no {name}"
