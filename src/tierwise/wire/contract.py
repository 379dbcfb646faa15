"""What a codec gives and takes. The values that travel between codecs, router and server."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from tierwise.core.catalogue import Provider
from tierwise.core.episode import FailureKind, ReplyFacts
from tierwise.core.errors import RequestError
from tierwise.core.money import Service, Usage
from tierwise.core.request import Request


class Garbled(Exception):
    """A provider's 200 that is no reply. `usage` is what could be read of it all the same; `kind` what it is, where the
    provider says so: an error that came in place of a reply."""

    def __init__(self, message: str, usage: Usage | None = None, kind: FailureKind = "garbled") -> None:
        super().__init__(message)
        self.usage = usage
        self.kind = kind


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """How a request is to go out to one provider."""

    model: str  # the provider's name for it
    stream: bool
    max_tokens: int | None = None  # set this ceiling; None leaves the caller's, or the provider's default
    default_max_tokens: int = 4_096  # where the format demands a ceiling and the caller gave none
    logprobs: bool = False  # ask for them although the caller did not
    reasoning: bool = True  # the model takes a reasoning effort or thinking budget
    drafts: tuple[str, ...] = ()  # rejected replies of smaller models, appended as a last note


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """A body ready for the provider. `lost`: what the other format could not say, in words for the caller."""

    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    lost: tuple[str, ...] = ()


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A whole reply in the provider's own format, with what routing and accounting need of it."""

    wire: str  # format of `body`: openai_chat, anthropic, openai_embeddings
    body: bytes
    usage: Usage | None  # None: the provider did not say
    served: str
    facts: ReplyFacts
    text: str  # of the first choice, tool calls spelled out after it: for graders, drafts and agreement
    output_text: str  # everything generated, of every choice, reasoning and tool arguments included: for our own count
    service: Service | None = None  # that it was served at; None: the provider did not say
    lost: tuple[str, ...] = ()  # what the caller's format cannot say of it, in words for the caller


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller is told of the money, in the usage of the reply."""

    cost_usd: float | None
    decision: str
    model: str
    baseline_usd: float | None = None
    saved_usd: float | None = None
    budget_remaining_usd: float | None = None  # the least that any budget above the caller has left
    lost: tuple[str, ...] = ()  # what a stream could not tell of the reply; of a whole one the headers say it
    usage: Usage | None = None  # our own count, told to the caller where the provider gave none


class Meter:
    """What has been seen of a stream so far. Grows while the stream runs; the only mutable thing in this folder."""

    __slots__ = (
        "done",
        "error",
        "error_kind",
        "lost",
        "output_characters",
        "served",
        "service",
        "stop",
        "text",
        "unread_bytes",
        "usage",
    )

    def __init__(self) -> None:
        self.usage: Usage | None = None  # the last that the provider reported
        self.served = ""
        self.service: Service | None = None
        self.stop = ""
        self.output_characters = 0
        self.text = io.StringIO()  # generated and not yet counted, bounded; whoever counts it puts a new one here
        self.done = False  # the stream came to its own end
        self.error = ""  # an error event inside the stream
        self.error_kind: FailureKind = "overloaded"  # what it is, by its own words
        self.lost: tuple[str, ...] = ()  # what the caller's format cannot say of it
        self.unread_bytes = 0  # from the event on that nobody could read, as far as it came


class Relay(Protocol):
    """Turns the provider's stream into the caller's, chunk by chunk, and meters it on the way."""

    meter: Meter

    def feed(self, chunk: bytes) -> bytes:
        """What to send to the caller for this chunk; b"" when there is nothing yet. Raises Garbled for what is no
        event stream, and for a line above 1 MiB."""
        ...

    def finish(self) -> bytes:
        """The upstream has ended. Closes what is open; when the end came too early, an error event in the caller's
        format and no proper ending, so that no client takes a half for a whole."""
        ...

    def fail(self, error: RequestError) -> bytes:
        """The upstream broke, or a limit was hit: an error event in the caller's format."""
        ...


class Codec(Protocol):
    """One format that callers speak. All methods are pure."""

    name: str  # openai_chat, anthropic, openai_embeddings

    def read(self, body: bytes, headers: dict[str, str]) -> Request:
        """Raises BadRequest naming the field for anything malformed."""
        ...

    def error(self, error: RequestError, decision: str = "") -> bytes:
        """The body of an error reply."""
        ...

    def error_event(self, error: RequestError, decision: str = "") -> bytes:
        """The same, inside a stream."""
        ...


Annotate = Callable[[Meter], Bill]

# The functions that router and server call (implemented in `wire/__init__.py`):
#   codec(name: str) -> Codec
#   write(request: Request, provider: Provider, shape: Shape) -> Sent
#   write_question(provider: Provider, model: str, system: str, text: str, max_tokens: int) -> Sent
#   read_reply(wire: str, body: bytes, request: Request | None, *, compared: bool) -> Reply   raises Garbled
#   deliver(request: Request, reply: Reply, bill: Bill) -> bytes                  whole, in the caller's format
#   deliver_stream(request: Request, reply: Reply, bill: Bill) -> bytes           as an event stream of that format
#   relay(request: Request, wire: str, bill: Annotate, expected_input_tokens: int) -> Relay
__all__ = [
    "Annotate",
    "Any",
    "Bill",
    "Codec",
    "Garbled",
    "Meter",
    "Provider",
    "Relay",
    "Reply",
    "Sent",
    "Shape",
]
