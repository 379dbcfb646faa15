"""Characters that a provider cut in two: a high surrogate at the end of one delta waits for the low one of the next.

Only deltas that hold half a character come here, and those that follow while one waits. A half that stays alone becomes
the replacement character, in the block that it came in.
"""

from __future__ import annotations

from typing import Any

from tierwise.wire.chunks import Call, Choice, Chunk, Delta, Event, Function
from tierwise.wire.replies import mended

# Under these keys stands text that may go on in the next delta, so it is not mended by itself.
HALVED = frozenset(
    ("content", "reasoning_content", "reasoning", "refusal", "arguments", "text", "thinking", "partial_json")
)
_FIELDS = ("reasoning_content", "reasoning", "content", "refusal")
_EVENT_TEXTS = {"text": "text_delta", "thinking": "thinking_delta", "partial_json": "input_json_delta"}
Place = str | int  # a field of a delta, or the index of a call


class Halves:
    """Of one stream. `held`: by choice or block, where in it the half stood, and the half."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held: dict[int, tuple[Place, str]] = {}

    # ---------------------------------------------------------------------------------------- chat completions

    def join_chunk(self, chunk: Chunk) -> None:
        """Give the chunk what was held back, and hold back what it ends with."""
        for choice in chunk.choices or ():
            self._join_choice(choice)

    def _join_choice(self, choice: Choice) -> None:
        delta = choice.delta or Delta()
        places = [field for field in _FIELDS if getattr(delta, field)] + _calls(delta)
        held = self.held.get(choice.index)
        if held is not None and (places or choice.finish_reason):
            del self.held[choice.index]
            choice.delta = delta
            _put(delta, held[0], held[1] + _text(delta, held[0]))
            places = places if held[0] in places else [held[0], *places]
        for place in places:
            text = _text(delta, place)
            if place == places[-1] and _is_half(text) and not choice.finish_reason:
                self.held[choice.index] = (place, text[-1])
                text = text[:-1]
            _put(delta, place, mended(text))
        if type(delta.content) is list:
            delta.content = mended(delta.content)
        functions = [call.function for call in delta.tool_calls or ()]
        for function in (*functions, delta.function_call):
            if function is not None and (type(function.arguments) is dict or function is delta.function_call):
                function.arguments = mended(function.arguments)

    # ---------------------------------------------------------------------------------------- messages

    def join_event(self, event: Event) -> None:
        """The same for an event. The end of a block is given the half that nothing came for, as a delta of its own."""
        event.message, event.content_block, event.error = map(mended, (event.message, event.content_block, event.error))
        if event.type == "content_block_stop" and event.index in self.held:
            key, _ = self.held.pop(event.index)
            event.delta = {"type": _EVENT_TEXTS[str(key)], str(key): "\ufffd"}
        if event.type != "content_block_delta" or event.delta is None:
            return
        for key in _EVENT_TEXTS:
            if type(text := event.delta.get(key)) is str and text:
                held = self.held.pop(event.index, None)
                text = (held[1] if held is not None else "") + text
                if _is_half(text):
                    self.held[event.index] = (key, text[-1])
                    text = text[:-1]
                event.delta = {**event.delta, key: mended(text)}


def _is_half(text: str) -> bool:
    return "\ud800" <= text[-1:] <= "\udbff"


def _calls(delta: Delta) -> list[Place]:
    """The calls in a delta whose arguments are text, by index."""
    found: list[Place] = []
    for call in delta.tool_calls or ():
        if call.function is not None and type(call.function.arguments) is str and (call.index or 0) not in found:
            found.append(call.index or 0)
    return found


def _function(delta: Delta, index: int) -> Function | None:
    for call in delta.tool_calls or ():
        if (call.index or 0) == index and call.function is not None and type(call.function.arguments) is str:
            return call.function
    return None


def _text(delta: Delta, place: Place) -> str:
    if type(place) is str:
        value: Any = getattr(delta, place)
    else:
        function = _function(delta, int(place))
        value = function.arguments if function is not None else ""
    return value if type(value) is str else ""


def _put(delta: Delta, place: Place, text: str) -> None:
    if type(place) is str:
        if type(getattr(delta, place)) is not list:
            setattr(delta, place, text)
    elif (function := _function(delta, int(place))) is not None:
        function.arguments = text
    elif text:
        delta.tool_calls = [Call(index=int(place), function=Function(arguments=text)), *(delta.tool_calls or ())]
