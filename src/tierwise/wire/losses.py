"""What of a reply the caller's format cannot say, in words for the caller: one entry for each kind of thing.

Whole replies are looked at with the eyes of a stream, so that both tell the same. Only what is filled counts: an empty
list of citations is no loss. Log-probabilities are none either: a caller of the other format cannot ask for them.
"""

from __future__ import annotations

from typing import Any

from tierwise.wire.chunks import Choice, Chunk, Delta, Event, loose, openai_part
from tierwise.wire.neutral import lost_extra

Json = dict[str, Any]
MAX_KINDS = 16  # of things that one reply tells as lost
MAX_NAME_CHARACTERS = 60  # of a block's type, which is the provider's own word


class Losses:
    """Grows with a stream. `found`: the sentences so far, in the order in which they came up."""

    __slots__ = ("_called", "_signed", "found")

    def __init__(self) -> None:
        self.found: tuple[str, ...] = ()
        self._signed = self._called = False

    def look(self, read: Event | Chunk) -> None:
        """At what has just come of a stream."""
        if isinstance(read, Event):
            self._event(read)
        else:
            self._chunk(read)

    # ---------------------------------------------------------------------------------------- Anthropic to OpenAI

    def _event(self, event: Event) -> None:
        """Of an event of a Messages stream."""
        match event:
            case Event(type="content_block_start", content_block=dict(block)):
                self._block(block)
            case Event(type="content_block_delta", delta={"type": "citations_delta"}):
                self._field("citations", "OpenAI")
            case Event(type="content_block_delta", delta={"type": "signature_delta", "signature": signature}):
                self._signs(bool(signature))
            case Event(type="message_start", message=dict(message)):
                self._around(message)
            case Event(type="message_delta", delta=delta, context_management=managed):
                self._around({"context_management": managed, **(delta or {})})

    def message(self, tree: Json) -> None:
        """Of a whole message."""
        for block in tree["content"]:
            self._block(block)
        self._around(tree)

    def _block(self, block: Json) -> None:
        match block.get("type"):
            case "text":
                if block.get("citations"):
                    self._field("citations", "OpenAI")
            case "thinking":
                self._signs(bool(block.get("signature")))
            case "redacted_thinking":
                self._field("redacted_thinking", "OpenAI")
            case "tool_use":
                self._calls()
            case kind:
                self._kind(kind, "OpenAI")

    def _around(self, tree: Json) -> None:
        if tree.get("container"):
            self._field("container", "OpenAI")
        managed = tree.get("context_management")
        if type(managed) is dict and any(managed.values()):
            self._field("context_management", "OpenAI")
        if tree.get("stop_reason") == "pause_turn":
            self._add("reply.stop_reason: pause_turn has no counterpart in the OpenAI format")

    def _signs(self, signed: bool) -> None:
        self._signed = self._signed or signed
        self._pair()

    def _calls(self) -> None:
        self._called = True
        self._pair()

    def _pair(self) -> None:
        """Signed thinking must be handed back with the results of the calls that follow it, and at no other time."""
        if self._signed and self._called:
            self._field("signature", "OpenAI")

    # ---------------------------------------------------------------------------------------- OpenAI to Anthropic

    def _chunk(self, chunk: Chunk) -> None:
        """Of a chunk of a chat completion."""
        for name in ("citations", "search_results", "images"):
            if getattr(chunk, name):
                self._field(name, "Anthropic")
        for choice in chunk.choices or ():
            if choice.index != 0:
                self._add("reply.choices: the Anthropic format has one reply, the others were left out")
            elif choice.delta is not None:
                self._delta(choice.delta)

    def completion(self, tree: Json) -> None:
        """Of a whole chat completion."""
        chunk: Chunk = loose(Chunk, {**tree, "choices": None})
        chunk.choices = [
            Choice(index=index, delta=loose(Delta, choice.get("message")))
            for index, choice in enumerate(tree["choices"])
        ]
        self._chunk(chunk)

    def _delta(self, delta: Delta) -> None:
        for name in ("annotations", "citations", "audio", "images"):
            if getattr(delta, name):
                self._field(name, "Anthropic")
        if type(delta.content) is list:
            for part in delta.content:
                if openai_part(part) is None:
                    self._kind(part.get("type") if type(part) is dict else None, "Anthropic")
        if type(delta.reasoning_details) is list:
            if any(type(one) is dict and (one.get("data") or one.get("signature")) for one in delta.reasoning_details):
                self._field("reasoning_details", "Anthropic")
        for call in delta.tool_calls or ():
            match call.extra_content:
                case {"google": {"thought_signature": str(signature)}} if signature:
                    self._field("thought_signature", "Anthropic")

    # ---------------------------------------------------------------------------------------- in words

    def _field(self, name: str, format: str) -> None:
        self._add("reply." + lost_extra(name, format))

    def _kind(self, kind: Any, format: str) -> None:
        name = kind[:MAX_NAME_CHARACTERS] if type(kind) is str and kind else "unknown"
        self._add(f"reply.content: a block of type {name} has no counterpart in the {format} format")

    def _add(self, sentence: str) -> None:
        if sentence not in self.found and len(self.found) < MAX_KINDS:
            self.found = (*self.found, sentence)
