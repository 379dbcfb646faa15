"""Streams of both dialects as they come from a provider: one event in, the meter fed, pieces out.

A source holds what a stream has said so far and decides whether it is whole. It writes nothing.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from tierwise.core.blame import kind_said, said_of
from tierwise.wire.chunks import CHUNK, EVENT, Call, Chunk, Delta, Event, Function, loose, openai_part
from tierwise.wire.contract import Garbled, Meter
from tierwise.wire.halves import HALVED, Halves
from tierwise.wire.neutral import (
    Began,
    CallBegan,
    CallSaid,
    Piece,
    Said,
    Sealed,
    Signed,
    Stop,
    Stopped,
    Text,
    Thinking,
    Thought,
    Waited,
    are_whole,
    safe_id,
)
from tierwise.wire.replies import ANTHROPIC_STOPS, BROKEN_OFF, OPENAI_STOPS, load_reply
from tierwise.wire.usage import from_anthropic, from_openai, served_at

Json = dict[str, Any]
MAX_KEPT_CHARACTERS = 1 << 20  # of generated text, where nobody counts and takes it; beyond it nothing is kept
MAX_ERROR_CHARACTERS = 500


def error_text(error: Any) -> str:
    """The words of a provider's error, bounded."""
    message = said_of(error).message or json.dumps(error, default=str)
    return message[:MAX_ERROR_CHARACTERS] or "the provider reported an error"


def note_error(meter: Meter, error: Any) -> None:
    """The provider has said that it broke off, and perhaps why."""
    if (kind := kind_said(said_of(error))) != "garbled":
        meter.error_kind = kind
    meter.error = error_text(error)


def load_named(data: bytes, name: bytes) -> tuple[Json, bytes]:
    """As `load_reply`, but that characters may be cut in two, and that an event named `error` may hold mere words.
    Raises Garbled for any other that does."""
    try:
        return load_reply(data, HALVED)
    except Garbled:
        if name != b"error":
            raise
    words = data.decode("utf-8", "replace").strip()[:MAX_ERROR_CHARACTERS]
    error = {"error": {"message": words or "the provider reported an error"}}
    return error, msgspec.json.encode(error)


def keep(meter: Meter, text: str) -> None:
    """Count generated text, and keep it while there is room."""
    before = meter.output_characters
    if before < MAX_KEPT_CHARACTERS or meter.text.tell() < MAX_KEPT_CHARACTERS:
        meter.text.write(text)
    meter.output_characters = before + len(text)


class OpenAISource:
    """Chunks of a chat completion."""

    def __init__(self, meter: Meter, n: int) -> None:
        self.meter = meter
        self.n = n
        self.finished: set[int] = set()
        self.data = b""  # of the last chunk, mended where it needed that; of an error, as every client knows it
        self.id = ""
        self._began = False
        self._calls: dict[tuple[int, int], list[tuple[str, int]]] = {}  # choice, index -> ids in order, our index
        self._count: dict[int, int] = {}  # choice -> calls so far
        self._nameless: dict[tuple[int, int], list[str]] = {}
        self._idless: dict[tuple[int, int], list[str]] = {}  # arguments so far of the last call, if it has no id
        self._refused: set[int] = set()  # choices
        self._halves = Halves()

    @property
    def complete(self) -> bool:
        """Whether every reply that was asked for has come to its end."""
        return len(self.finished) >= self.n

    def read(self, data: bytes, name: bytes = b"") -> Chunk:
        """One chunk, metered; `name`: of its event. Raises Garbled for what is none."""
        try:
            chunk: Chunk = CHUNK.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            tree, data = load_named(data, name)
            chunk = loose(Chunk, tree)
            self._halves.join_chunk(chunk)
        else:
            if self._halves.held:
                self._halves.join_chunk(chunk)
        self.data = data
        meter = self.meter
        if chunk.error is not None or chunk.x_groq is not None or chunk.object == "error" or name == b"error":
            self._look_for_error(chunk, name)
        if chunk.model:
            meter.served = chunk.model
        if chunk.service_tier:
            meter.service = served_at(chunk.service_tier) or meter.service
        if chunk.usage is not None or chunk.x_groq is not None:
            usage = (chunk.x_groq or {}).get("usage") if chunk.usage is None else chunk.usage
            meter.usage = from_openai(usage) or meter.usage
        for choice in chunk.choices or ():
            if choice.delta is not None:
                self._measure(choice.delta)
            if choice.finish_reason:
                self.finished.add(choice.index)
                stop = OPENAI_STOPS.get(choice.finish_reason.lower(), "unknown")
                if choice.index == 0:
                    meter.stop = stop
                if stop == "error" and not meter.error:  # OpenRouter, vLLM: half a reply, if that
                    note_error(meter, choice.error or BROKEN_OFF)
        return chunk

    def _look_for_error(self, chunk: Chunk, name: bytes) -> None:
        if not chunk.error:  # an empty one is none: some servers write the field into every chunk
            chunk.error = self._unwrapped(chunk, name)
        if chunk.error is not None:
            note_error(self.meter, chunk.error)

    def _unwrapped(self, chunk: Chunk, name: bytes) -> Any:
        """An error that is not where clients look for it; they are given one that is."""
        error: Any = None
        if name == b"error" or chunk.object == "error":
            error, _ = load_reply(self.data)
        elif chunk.x_groq is not None:
            error = chunk.x_groq.get("error") or None
        if error is not None:
            self.data = msgspec.json.encode({"error": {"message": error} if type(error) is str else error})
        return error

    def _measure(self, delta: Delta) -> None:
        meter = self.meter
        content = delta.content
        if isinstance(content, str):
            if content:
                keep(meter, content)
        elif content:
            for text in _texts(content):
                keep(meter, text)
        if thought := delta.reasoning_content or delta.reasoning:
            keep(meter, thought)
        if delta.refusal:
            keep(meter, delta.refusal)
        if delta.tool_calls or delta.function_call is not None:
            for call in _calls(delta):
                if call.function is not None:
                    keep(meter, (call.function.name or "") + _arguments(call.function))

    def pieces(self, chunk: Chunk) -> list[Piece]:
        """What the chunk says, in nobody's dialect."""
        found: list[Piece] = []
        if not self._began and (chunk.choices or chunk.id):
            self._began = True
            self.id = chunk.id or ""
            found.append(Began(self.id, chunk.model or "", int(chunk.created) if 0 <= chunk.created < 2**40 else 0))
        for choice in chunk.choices or ():
            at = choice.index
            if (delta := choice.delta) is not None:
                if delta.reasoning_content or delta.reasoning:
                    found.append(Thought(delta.reasoning_content or delta.reasoning or "", at))
                if delta.content:
                    found.extend(_content(delta.content, at))
                if delta.refusal:
                    self._refused.add(at)
                    found.append(Said(delta.refusal, at))
                here: set[int] = set()
                for call in _calls(delta):
                    found.extend(self._call(call, at, twice=(call.index or 0) in here))
                    here.add(call.index or 0)
            if choice.finish_reason:
                found.append(Stopped(self._stop(choice.finish_reason, at), None, at))
        return found

    def _stop(self, reason: str, choice: int) -> Stop:
        stop = OPENAI_STOPS.get(reason.lower(), "unknown")
        # Gemini and Ollama say "stop" after a tool call, and OpenAI after a refusal.
        if stop in ("end", "unknown") and self._count.get(choice):
            return "tool_use"
        return "refusal" if stop == "end" and choice in self._refused else stop

    def _call(self, call: Call, choice: int, *, twice: bool) -> list[Piece]:
        """A call is known by its index, and where a provider gives every call the same index or none, by its id, or
        by standing in one chunk with another (`twice`): a chunk never holds two pieces of one call. Where it gives no
        ids either (Gemini's were empty), whole arguments are the end of a call when a name comes with others."""
        key = (choice, call.index or 0)
        name = call.function.name if call.function is not None else None
        arguments = _arguments(call.function) if call.function is not None else ""
        known = self._calls.setdefault(key, [])
        found: list[Piece] = []
        if not known or (name and (twice or self._is_other(call, known[-1][0], key, arguments))):
            if not name:  # the name comes with a later piece
                self._nameless.setdefault(key, []).append(arguments)
                return []
            number = self._count.get(choice, 0)
            self._count[choice] = number + 1
            known.append((call.id or "", number))
            self._idless[key] = []
            found.append(CallBegan(number, call.id or safe_id(f"{self.id}:{choice}:{number}"), name, choice))
            arguments = "".join(self._nameless.pop(key, ())) + arguments
        if arguments:
            if not known[-1][0]:
                self._idless[key].append(arguments)
            found.append(CallSaid(known[-1][1], arguments, choice))
        return found

    def _is_other(self, call: Call, last: str, key: tuple[int, int], arguments: str) -> bool:
        if call.id:
            return call.id != last
        return bool(arguments) and not last and are_whole(self._idless[key])


def _calls(delta: Delta) -> list[Call]:
    if delta.tool_calls:
        return delta.tool_calls
    return [Call(function=delta.function_call)] if delta.function_call is not None else []


def _arguments(function: Function) -> str:
    if type(function.arguments) is dict:
        return msgspec.json.encode(function.arguments).decode()
    return function.arguments or ""  # type: ignore[return-value]  # the other kind has gone above


def _texts(content: list[Any]) -> list[str]:
    blocks = (openai_part(part) for part in content)
    return [block.text for block in blocks if isinstance(block, (Text, Thinking))]


def _content(content: str | list[Any], choice: int) -> list[Piece]:
    if type(content) is str:
        return [Said(content, choice)]
    found: list[Piece] = []
    for part in content:
        match openai_part(part):
            case Text(text=text):
                found.append(Said(text, choice))
            case Thinking(text=text):
                found.append(Thought(text, choice))
    return found


class AnthropicSource:
    """Events of a message. Usage comes in two halves, each cumulative: what is said later replaces what was said."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.complete = False
        self.data = b""  # of the last event, mended where it needed that
        self.ended = False
        self._usage: Json = {}
        self._calls: dict[int, int] = {}  # block -> our index
        self._inputs: dict[int, str] = {}  # arguments that came whole with the block, until a piece of them comes
        self._halves = Halves()

    def read(self, data: bytes, name: bytes = b"") -> Event:
        """One event, metered; `name`: the one outside its data. Raises Garbled for what is none."""
        halved = bool(self._halves.held)
        try:
            event: Event = EVENT.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            tree, data = load_named(data, name)
            event = loose(Event, tree)
            halved = True
        if halved:
            self._halves.join_event(event)
        if not event.type and (name == b"error" or event.error):
            event.type, event.error = "error", event.error or load_reply(data)[0]
            data = msgspec.json.encode({"type": "error", "error": event.error})
        self.data = data
        meter = self.meter
        match event.type:
            case "content_block_delta" | "content_block_stop" if event.delta is not None:
                for key in ("text", "thinking", "partial_json"):
                    if type(text := event.delta.get(key)) is str:
                        keep(meter, text)
            case "content_block_start" if event.content_block is not None:
                for key in ("text", "thinking", "name"):
                    if type(text := event.content_block.get(key)) is str and text:
                        keep(meter, text)
                if arguments := event.content_block.get("input"):  # whole, and not in pieces
                    keep(meter, msgspec.json.encode(arguments).decode())
            case "message_start" if event.message is not None:
                if type(model := event.message.get("model")) is str:
                    meter.served = model
                self._add(event.message.get("usage"))
            case "message_delta":
                self._add(event.usage)
                reason = event.delta.get("stop_reason") if event.delta is not None else None
                if type(reason) is str:
                    meter.stop = ANTHROPIC_STOPS.get(reason, "unknown")
                    self.complete = True
            case "message_stop":
                self.complete = self.ended = True
            case "error":
                note_error(meter, event.error)
            case "":
                raise Garbled("an event of the provider's stream has no type", meter.usage)
        return event

    def _add(self, usage: Any) -> None:
        if type(usage) is not dict:
            return
        self._usage.update((key, value) for key, value in usage.items() if value is not None)
        if (read := from_anthropic(self._usage)) is not None:
            self.meter.usage = read

    def pieces(self, event: Event) -> list[Piece]:
        """What the event says, in nobody's dialect."""
        match event:
            case Event(type="message_start", message=dict(message)):
                return [Began(_string(message.get("id")), _string(message.get("model")))]
            case Event(type="content_block_start", content_block=dict(block)):
                return self._block(event.index, block)
            case Event(type="content_block_delta" | "content_block_stop", delta=dict(delta)):
                return self._delta(event.index, delta)
            case Event(type="content_block_stop") if event.index in self._inputs:
                return [CallSaid(self._calls[event.index], self._inputs.pop(event.index))]
            case Event(type="message_delta", delta=dict(delta)) if type(delta.get("stop_reason")) is str:
                sequence = delta.get("stop_sequence")
                stop = ANTHROPIC_STOPS.get(delta["stop_reason"], "unknown")
                return [Stopped(stop, sequence if type(sequence) is str else None)]
            case Event(type="ping"):
                return [Waited()]
        return []

    def _block(self, index: int, block: Json) -> list[Piece]:
        match block:
            case {"type": "text", "text": str(text)} if text:
                return [Said(text)]
            case {"type": "thinking", "thinking": str(text)} if text:
                return [Thought(text)]
            case {"type": "redacted_thinking", "data": str(data)}:
                return [Sealed(data)]
            case {"type": "tool_use", "name": str(name)}:
                number = len(self._calls)
                self._calls[index] = number
                self._inputs[index] = msgspec.json.encode(block.get("input") or {}).decode()
                return [CallBegan(number, _string(block.get("id")) or safe_id(f"call:{number}"), name)]
        return []

    def _delta(self, index: int, delta: Json) -> list[Piece]:
        match delta:
            case {"type": "text_delta", "text": str(text)}:
                return [Said(text)]
            case {"type": "thinking_delta", "thinking": str(text)}:
                return [Thought(text)]
            case {"type": "signature_delta", "signature": str(signature)}:
                return [Signed(signature)]
            case {"type": "input_json_delta", "partial_json": str(text)} if index in self._calls and text:
                self._inputs.pop(index, None)
                return [CallSaid(self._calls[index], text)]
        return []


def _string(value: Any) -> str:
    return value if type(value) is str else ""
