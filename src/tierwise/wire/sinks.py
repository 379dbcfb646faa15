"""Pieces of a stream as the caller's own events. Every text goes through a JSON encoder, so none can end an event."""

from __future__ import annotations

from typing import Any, assert_never

import msgspec

from tierwise.core.money import Usage
from tierwise.wire import neutral, sse
from tierwise.wire.contract import Bill, Garbled
from tierwise.wire.neutral import (
    Began,
    CallBegan,
    CallSaid,
    Piece,
    Said,
    Sealed,
    Signed,
    Stopped,
    Thought,
    Waited,
    are_whole,
    safe_id,
)
from tierwise.wire.usage import billed, to_anthropic, to_openai

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.encode

TO_OPENAI: dict[neutral.Stop, str] = {
    "end": "stop",
    "length": "length",
    "tool_use": "tool_calls",
    "stop_sequence": "stop",
    "refusal": "content_filter",
    "filtered": "content_filter",
    "error": "stop",
    "unknown": "stop",
}
TO_ANTHROPIC: dict[neutral.Stop, str] = {
    "end": "end_turn",
    "length": "max_tokens",
    "tool_use": "tool_use",
    "stop_sequence": "stop_sequence",
    "refusal": "refusal",
    "filtered": "refusal",
    "error": "end_turn",
    "unknown": "end_turn",
}


class OpenAISink:
    """Chunks of a chat completion."""

    def __init__(self, want_usage: bool) -> None:
        self.want_usage = want_usage
        self._head: Json = {"id": "chatcmpl-tierwise", "object": "chat.completion.chunk", "created": 0, "model": ""}
        self._opened: set[int] = set()

    def put(self, piece: Piece) -> bytes:
        match piece:
            case Began(id=id, model=model, created=created):
                self._head |= {"id": id or self._head["id"], "created": created, "model": model}
                return self._open(0)
            case Said(text=text, choice=choice):
                return self._chunk(choice, {"content": text})
            case Thought(text=text, choice=choice):
                # The field that DeepSeek began and most clients of this dialect read.
                return self._chunk(choice, {"reasoning_content": text})
            case CallBegan(index=index, id=id, name=name, choice=choice):
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": safe_id(id), "type": "function", "function": function}
                return self._chunk(choice, {"tool_calls": [call]})
            case CallSaid(index=index, arguments=arguments, choice=choice):
                return self._chunk(choice, {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]})
            case Stopped(stop=stop, choice=choice):
                return self._chunk(choice, {}, TO_OPENAI[stop])
            case Waited():
                return b": ping\n\n"
            case Signed() | Sealed():
                return b""  # a signature is of no use in a format that cannot give it back
            case _:
                assert_never(piece)

    def end(self, usage: Usage, bill: Bill) -> bytes:
        if not self.want_usage:
            return DONE
        tree = {**to_openai(usage), **billed(bill, usage.estimated)}
        head = {**self._head, "model": self._head["model"] or bill.model}
        return b"data: " + _encode({**head, "choices": [], "usage": tree}) + b"\n\n" + DONE

    def _open(self, choice: int) -> bytes:
        if choice in self._opened:
            return b""
        self._opened.add(choice)
        return self._raw(choice, {"role": "assistant", "content": ""}, None)

    def _chunk(self, choice: int, delta: Json, finish: str | None = None) -> bytes:
        return self._open(choice) + self._raw(choice, delta, finish)

    def _raw(self, choice: int, delta: Json, finish: str | None) -> bytes:
        one = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: " + _encode({**self._head, "choices": [one]}) + b"\n\n"


class _Open(msgspec.Struct):
    """The block that is being written. `call` -1: no tool call."""

    kind: str
    call: int = -1
    arguments: list[str] = []


class AnthropicSink:
    """Events of a message.

    Blocks follow each other here, while the other format may write several tool calls in turns: what belongs to a
    later block waits until the arguments of the open call are whole.
    """

    def __init__(self, read: Usage) -> None:
        """`read`: the prompt's tokens, as far as they are known when the message begins; the end corrects them."""
        self._read = read
        self._started = False
        self._index = -1
        self._open: _Open | None = None
        self._closed_calls: set[int] = set()
        self._waiting: list[Piece] = []
        self._stop = Stopped("unknown")

    def put(self, piece: Piece) -> bytes:
        if isinstance(piece, Began):
            return self._start(piece.id, piece.model)
        if isinstance(piece, Waited):
            return sse.event("ping", b'{"type":"ping"}') if self._started else b""
        if isinstance(piece, Stopped):
            if piece.choice == 0:
                self._stop = piece
            return b""
        if getattr(piece, "choice", 0) != 0:
            return b""  # this format has one reply
        out = b"" if self._started else self._start("", "")
        opened = self._open
        if opened is not None and opened.call >= 0:
            if isinstance(piece, CallSaid) and piece.index == opened.call:
                opened.arguments.append(piece.arguments)
                out += self._delta({"type": "input_json_delta", "partial_json": piece.arguments})
                return out + self._drain() if self._waiting and are_whole(opened.arguments) else out
            if not are_whole(opened.arguments):
                self._waiting.append(piece)
                return out
        return out + self._drain() + self._write(piece)

    def end(self, usage: Usage, bill: Bill) -> bytes:
        out = b"" if self._started else self._start("", bill.model)
        while self._waiting:
            out += self._drain()
        out += self._close()
        delta = {"stop_reason": TO_ANTHROPIC[self._stop.stop], "stop_sequence": self._stop.stop_sequence}
        tree = {**to_anthropic(usage), **billed(bill, usage.estimated)}
        out += sse.event("message_delta", _encode({"type": "message_delta", "delta": delta, "usage": tree}))
        return out + sse.event("message_stop", b'{"type":"message_stop"}')

    def _drain(self) -> bytes:
        """Write what waited for the open call, as far as the next call that is not whole."""
        if not self._waiting:
            return b""
        waiting, self._waiting = self._waiting, []
        out = self._close()
        for piece in waiting:
            out += self.put(piece)
        return out

    def _start(self, id: str, model: str) -> bytes:
        self._started = True
        message: Json = {
            "id": id if id.startswith("msg_") else f"msg_{safe_id(id).removeprefix('chatcmpl-') if id else 'tierwise'}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**to_anthropic(self._read), "output_tokens": 0},
        }
        return sse.event("message_start", _encode({"type": "message_start", "message": message}))

    def _write(self, piece: Piece) -> bytes:
        match piece:
            case Said(text=text):
                return self._in("text", {"type": "text", "text": ""}) + self._delta(
                    {"type": "text_delta", "text": text}
                )
            case Thought(text=text):
                block = {"type": "thinking", "thinking": "", "signature": ""}
                return self._in("thinking", block) + self._delta({"type": "thinking_delta", "thinking": text})
            case Signed(signature=signature):
                block = {"type": "thinking", "thinking": "", "signature": ""}
                return self._in("thinking", block) + self._delta({"type": "signature_delta", "signature": signature})
            case Sealed(data=data):
                return self._begin("redacted", {"type": "redacted_thinking", "data": data}) + self._close()
            case CallBegan(index=index, id=id, name=name):
                return self._begin(
                    "tool_use", {"type": "tool_use", "id": safe_id(id), "name": name, "input": {}}, index
                )
            case CallSaid(index=index, arguments=arguments):
                if index in self._closed_calls and arguments.strip():
                    raise Garbled("the provider went on with the arguments of a tool call after their end")
        return b""

    def _in(self, kind: str, block: Json) -> bytes:
        """Begin a block of this kind unless one is open."""
        return b"" if self._open is not None and self._open.kind == kind else self._begin(kind, block)

    def _begin(self, kind: str, block: Json, call: int = -1) -> bytes:
        out = self._close()
        self._index += 1
        self._open = _Open(kind, call, [])
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return out + sse.event("content_block_start", _encode(start))

    def _delta(self, delta: Json) -> bytes:
        body = {"type": "content_block_delta", "index": self._index, "delta": delta}
        return sse.event("content_block_delta", _encode(body))

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        if self._open.call >= 0:
            self._closed_calls.add(self._open.call)
        self._open = None
        return sse.event("content_block_stop", _encode({"type": "content_block_stop", "index": self._index}))
