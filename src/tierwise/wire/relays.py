"""Relays: the provider's stream to the caller, chunk by chunk, metered on the way.

Between two ends of one format the bytes of an event pass as they came; only usage is taken out or written into.
Between two formats a source reads and a sink writes. However a stream is cut, the same bytes give the same output,
and one that ends too early gets an error event and no proper ending: no client may take a half for a whole.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tierwise.core.errors import Refused, RequestError
from tierwise.core.money import Usage
from tierwise.core.request import Request
from tierwise.wire import sse
from tierwise.wire.anthropic import Anthropic
from tierwise.wire.contract import Annotate, Bill, Codec, Garbled, Meter
from tierwise.wire.losses import Losses
from tierwise.wire.openai_chat import OpenAIChat
from tierwise.wire.sinks import DONE, AnthropicSink, OpenAISink
from tierwise.wire.sources import AnthropicSource, OpenAISource
from tierwise.wire.strict import raw_fields
from tierwise.wire.usage import billed, from_openai, guess, to_openai

Json = dict[str, Any]
_encode = msgspec.json.encode
_NULL = msgspec.Raw(b"null")
_EMPTY = msgspec.Raw(b"[]")


def truncated() -> RequestError:
    return Refused(
        "The provider's stream ended before its end, so this reply is incomplete.", code="upstream_cut", status=502
    )


class _Base:
    """What every relay does: cut events, stop at the end, say when there was none."""

    def __init__(self, request: Request, bill: Annotate, codec: Codec) -> None:
        self.meter = Meter()
        self._request = request
        self._bill = bill
        self._codec = codec
        self._splitter = sse.Splitter()
        self._over = False  # nothing more goes to the caller
        self._broken: Garbled | None = None

    def feed(self, chunk: bytes) -> bytes:
        if self._broken is not None:
            raise self._broken
        if self.meter.done or (self._over and not self.meter.error):
            return b""  # after the end; what a provider still sends is nobody's
        out: list[bytes] = []
        events: list[bytes] = []
        taken, meter = 0, self.meter
        try:
            events = self._splitter.feed(chunk)
            for raw in events:
                one_line = raw[:6] == b"data: " and raw.find(b"\n") == len(raw) - 2 and b"\r" not in raw
                if one_line:  # as nearly all are
                    self._event(raw, b"", raw[6:-2], out)
                else:
                    self._take(raw, out)
                taken += 1
                if meter.done:
                    break  # as if the rest had come in another chunk
        except Garbled as error:
            error.usage = error.usage or self.meter.usage
            self.meter.unread_bytes = sum(map(len, events[taken:])) + len(self._splitter.rest())
            if not out:
                raise
            self._broken = error  # what was good before it goes out first
        return b"".join(out)

    def finish(self) -> bytes:
        if self._over:
            return b""
        out: list[bytes] = []
        whole = self._broken is None
        rest = self._splitter.rest()
        if whole and rest.strip():
            try:
                self._take(rest.rstrip(b"\r\n") + b"\n\n", out)
            except Garbled:
                whole = False
        if not self._over:
            if whole and self._complete():
                self._end(out)
            else:
                self.meter.error = self.meter.error or "the stream ended before its end"
                out.append(self._codec.error_event(truncated()))
                self._over = True
        return b"".join(out)

    def fail(self, error: RequestError) -> bytes:
        if self._over:
            return b""
        self._over = True
        self.meter.error = self.meter.error or error.message
        return self._codec.error_event(error)

    def _take(self, raw: bytes, out: list[bytes]) -> None:
        name, data = sse.fields(raw)
        if data is not None:
            self._event(raw, name, data, out)
        elif not self._over and raw.strip():
            self._comment(raw, out)

    def _comment(self, raw: bytes, out: list[bytes]) -> None:
        out.append(raw)

    def _event(self, raw: bytes, name: bytes, data: bytes, out: list[bytes]) -> None:
        raise NotImplementedError

    def _complete(self) -> bool:
        raise NotImplementedError

    def _end(self, out: list[bytes]) -> None:
        raise NotImplementedError

    def _usage(self, bill: Bill) -> Usage:
        """The provider's count, or ours."""
        if self.meter.usage is not None:
            return self.meter.usage
        if bill.usage is not None:
            return msgspec.structs.replace(bill.usage, estimated=True)
        characters = sum(len(turn.text) for turn in self._request.prompt.turns)
        return guess(characters, self.meter.output_characters)


class OpenAIPass(_Base):
    """Chat completion chunks to a caller who speaks them."""

    def __init__(self, request: Request, bill: Annotate) -> None:
        super().__init__(request, bill, OpenAIChat())
        self._want = request.want_usage
        self._source = OpenAISource(self.meter, request.prompt.n)
        self._held: dict[str, msgspec.Raw] | None = None  # the usage chunk, sent when no later one can come

    def _event(self, raw: bytes, name: bytes, data: bytes, out: list[bytes]) -> None:
        if data == b"[DONE]":
            if not self._over:
                self._end(out, raw)
            return
        chunk = self._source.read(data, name)
        if self._over:
            return  # after an error only usage is of interest
        if chunk.error is not None:
            self._over = True
            known = self._source.data is data
            if known or chunk.choices is not None:
                out.append(raw)
            if not known:
                out.append(b"data: " + self._source.data + b"\n\n")
            return
        if chunk.usage is None:
            out.append(raw)
            return
        fields = raw_fields(self._source.data)
        if from_openai(chunk.usage) is not None:
            self._held = {**fields, "choices": _EMPTY}
        if not chunk.choices:
            return
        if self._want:  # told once, at the end, so that no client adds it up twice
            out.append(b"data: " + _encode({**fields, "usage": _NULL}) + b"\n\n")
        else:
            out.append(raw)

    def _complete(self) -> bool:
        return self._source.complete

    def _end(self, out: list[bytes], done: bytes = DONE) -> None:
        if self._want:
            out.append(self._usage_chunk())
        out.append(done)
        self.meter.done = self._over = True

    def _usage_chunk(self) -> bytes:
        bill = self._bill(self.meter)
        usage = self._usage(bill)
        held = self._held
        tree = msgspec.json.decode(held["usage"]) if held is not None else to_openai(usage)
        head: dict[str, Any] = held or {
            "id": self._source.id or "chatcmpl-tierwise",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": self.meter.served or bill.model,
            "choices": [],
        }
        return b"data: " + _encode({**head, "usage": {**tree, **billed(bill, usage.estimated)}}) + b"\n\n"


class AnthropicPass(_Base):
    """Events of a message to a caller who speaks them."""

    def __init__(self, request: Request, bill: Annotate) -> None:
        super().__init__(request, bill, Anthropic())
        self._source = AnthropicSource(self.meter)
        self._held: tuple[bytes, bytes] | None = None  # the last message_delta, raw and data, until no later one comes

    def _event(self, raw: bytes, name: bytes, data: bytes, out: list[bytes]) -> None:
        if data == b"[DONE]":  # some relatives end as the other format does
            if not self._over and self._source.complete:
                self._end(out)
            return
        event = self._source.read(data, name)
        if self._over:
            return
        # Clients of this format go by the name of an event, and find an error where the format has it.
        if (not name and event.type.isidentifier()) or (event.type == "error" and self._source.data is not data):
            raw = sse.event(event.type, self._source.data.replace(b"\n", b" "))
        if self._held is not None and event.type != "ping":
            out.append(self._held[0] if event.type == "message_delta" else self._annotated(self._held[1]))
            self._held = None
        if event.type == "message_delta":
            self._held = (raw, self._source.data)
            return
        out.append(raw)
        if event.type == "error":
            self._over = True
        elif self._source.ended:
            self.meter.done = self._over = True

    def _complete(self) -> bool:
        return self._source.complete

    def _end(self, out: list[bytes]) -> None:
        if self._held is not None:
            out.append(self._annotated(self._held[1]))
        out.append(sse.event("message_stop", b'{"type":"message_stop"}'))
        self.meter.done = self._over = True

    def _annotated(self, data: bytes) -> bytes:
        fields: dict[str, Any] = dict(raw_fields(data))
        bill = self._bill(self.meter)
        usage = self._usage(bill)
        given = fields.get("usage")
        tree: Json = msgspec.json.decode(given) if given is not None else {}
        if type(tree) is not dict or not tree:
            tree = {"output_tokens": usage.completion_tokens}
        fields["usage"] = {**tree, **billed(bill, usage.estimated)}
        return sse.event("message_delta", _encode(fields))


class Translation(_Base):
    """One format's stream as the other's."""

    def __init__(
        self,
        request: Request,
        bill: Annotate,
        codec: Codec,
        source: OpenAISource | AnthropicSource,
        sink: OpenAISink | AnthropicSink,
    ) -> None:
        super().__init__(request, bill, codec)
        self.meter = source.meter
        self._source = source
        self._sink = sink
        self._losses = Losses()

    def _comment(self, raw: bytes, out: list[bytes]) -> None:
        out.append(b": ping\n\n")  # a sign of life, whatever words it had

    def _event(self, raw: bytes, name: bytes, data: bytes, out: list[bytes]) -> None:
        if data == b"[DONE]":
            if not self._over:
                self._end(out)
            return
        read = self._source.read(data, name)
        if self._over:
            return
        if self.meter.error:
            self._over = True
            error = Refused(f"The provider's stream broke off: {self.meter.error}", code="upstream_failed", status=502)
            out.append(self._codec.error_event(error))
            return
        self._losses.look(read)
        self.meter.lost = self._losses.found
        out.extend(self._sink.put(piece) for piece in self._source.pieces(read))  # type: ignore[arg-type]
        if isinstance(self._source, AnthropicSource) and self._source.ended:
            self._end(out)

    def _complete(self) -> bool:
        return self._source.complete

    def _end(self, out: list[bytes]) -> None:
        bill = self._bill(self.meter)
        out.append(self._sink.end(self._usage(bill), bill))
        self.meter.done = self._over = True


def relay(
    request: Request, wire: str, bill: Annotate, expected_input_tokens: int = 0
) -> OpenAIPass | AnthropicPass | Translation:
    """`wire`: the provider's format, openai_chat or anthropic (provider rows' openai and simulated are taken too).

    `expected_input_tokens`: our count of the prompt. A message of Anthropic's begins with its input tokens, which the
    other format tells at the end, and many clients read them nowhere else."""
    meter = Meter()
    if wire == "anthropic":
        if request.wire == "anthropic":
            return AnthropicPass(request, bill)
        return Translation(request, bill, OpenAIChat(), AnthropicSource(meter), OpenAISink(request.want_usage))
    if request.wire == "anthropic":
        sink = AnthropicSink(Usage(input_tokens=expected_input_tokens))
        return Translation(request, bill, Anthropic(), OpenAISource(meter, request.prompt.n), sink)
    return OpenAIPass(request, bill)
