"""Characters that a provider cut in two over two deltas arrive whole with callers of the other format."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from tests.support.streams import CALLERS, begin, chunk, hear
from tierwise import wire
from tierwise.core.errors import Refused

DONE = b"data: [DONE]\n\n"
HIGH, LOW = "\ud83d", "\ude00"
LONE = "\ufffd"
# The pieces of a text as they come, and the text that arrives.
CUT: dict[str, tuple[list[str], str]] = {
    "in two": (["Hi " + HIGH, LOW + "!"], "Hi \U0001f600!"),
    "alone in both": ([HIGH, LOW], "\U0001f600"),
    "twice": ([HIGH, LOW + HIGH, LOW], "\U0001f600\U0001f600"),
    "an empty one between": (["a" + HIGH, "", LOW], "a\U0001f600"),
    "the low one never comes": ([HIGH, "b"], LONE + "b"),
    "at the end": (["a", HIGH], "a" + LONE),
    "the high one never came": (["a", LOW + "b"], "a" + LONE + "b"),
    "two high ones": ([HIGH, HIGH + LOW], LONE + "\U0001f600"),
    "in the middle": (["a" + HIGH + "b", "c"], "a" + LONE + "bc"),
}


def chat_stream(kind: str, pieces: list[str]) -> bytes:
    out, call = [], {"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}
    if kind == "arguments":
        out.append(chunk(choices=[{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]))
    for piece in pieces:
        said: dict[str, Any] = {kind: piece}
        if kind == "arguments":
            said = {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        out.append(chunk(choices=[{"index": 0, "delta": said, "finish_reason": None}]))
    out.append(chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    return b"".join(out) + DONE


BLOCKS = {
    "content": ({"type": "text", "text": ""}, "text_delta", "text"),
    "reasoning_content": ({"type": "thinking", "thinking": ""}, "thinking_delta", "thinking"),
    "arguments": ({"type": "tool_use", "id": "a", "name": "f", "input": {}}, "input_json_delta", "partial_json"),
}


def message_stream(kind: str, pieces: list[str]) -> bytes:
    block, type, key = BLOCKS[kind]
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {"id": "m", "model": "c"}}]
    events.append({"type": "content_block_start", "index": 0, "content_block": block})
    events += [{"type": "content_block_delta", "index": 0, "delta": {"type": type, key: piece}} for piece in pieces]
    events += [{"type": "content_block_stop", "index": 0}]
    events += [{"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}}]
    events += [{"type": "message_stop"}]
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


def heard_in(caller: str, kind: str, out: bytes) -> str:
    heard = hear(caller, out)
    assert heard.ended and heard.error is None
    return {"content": heard.text, "reasoning_content": heard.thinking}.get(kind) or heard.calls[0][2]


STREAMS = {"anthropic": ("openai", chat_stream), "openai_chat": ("anthropic", message_stream)}


@pytest.mark.parametrize("caller", STREAMS)
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("name", CUT)
def test_a_character_in_two_deltas_is_one(name: str, kind: str, caller: str) -> None:
    pieces, whole = CUT[name]
    spoken, stream = STREAMS[caller]
    relay = begin(caller, spoken)
    assert heard_in(caller, kind, relay.feed(stream(kind, pieces)) + relay.finish()) == whole
    assert relay.meter.text.getvalue().removeprefix("f" if kind == "arguments" else "").removesuffix("{}") == whole
    passed = begin("anthropic" if spoken == "anthropic" else "openai_chat", spoken)
    passed.feed(stream(kind, pieces))
    assert passed.meter.done and passed.meter.text.getvalue() == relay.meter.text.getvalue()


@pytest.mark.parametrize("caller", STREAMS)
@pytest.mark.parametrize("kind", BLOCKS)
def test_wherever_such_a_stream_is_cut_it_stays_sound(kind: str, caller: str) -> None:
    spoken, stream = STREAMS[caller]
    whole = stream(kind, ["a" + HIGH, LOW, HIGH])
    for cut in range(len(whole)):
        relay = begin(caller, spoken)
        out = relay.feed(whole[:cut]) + relay.finish()
        out.decode()
        assert relay.meter.done or b'"error"' in out.rsplit(b"data: ", 1)[1]
        relay.meter.text.getvalue().encode()
        relay = begin(caller, spoken)
        out = relay.feed(whole[:cut]) + relay.feed(whole[cut:]) + relay.finish()
        assert heard_in(caller, kind, out) == "a\U0001f600" + LONE
        relay = begin(caller, spoken)
        relay.feed(whole[:cut])
        relay.fail(Refused("too slow")).decode()


def test_a_half_stays_in_its_own_block() -> None:
    """Thinking that ends in half a character is followed by text, and a call by another."""
    relay = begin("anthropic", "openai")
    said = [{"reasoning_content": "a" + HIGH}, {"content": LOW + "b" + HIGH}]
    said += [{"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}]}]
    stream = b"".join(chunk(choices=[{"index": 0, "delta": delta, "finish_reason": None}]) for delta in said)
    end = chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    heard = hear("anthropic", relay.feed(stream + end + DONE))
    assert (heard.thinking, heard.text, heard.calls[0][1:]) == ("a" + LONE, LONE + "b" + LONE, ("f", "{}"))


def test_other_choices_and_calls_do_not_get_it() -> None:
    relay = begin("openai_chat", "openai")
    for at, text in ((0, "a" + HIGH), (1, "b"), (0, LOW)):
        relay.feed(chunk(choices=[{"index": at, "delta": {"content": text}, "finish_reason": None}]))
    assert relay.meter.text.getvalue() == "ab\U0001f600"


CALLED = {"type": "tool_use", "name": "f"}
ODD = ("content", "reasoning", "refusal", "text", "thinking", "arguments", "input", "error", "name", "id")


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("key", ODD)
def test_half_a_character_anywhere_is_no_exception(caller: str, key: str) -> None:
    for half, (provider, shaped) in itertools.product((HIGH, LOW), SHAPES):
        for value in (half, [half], {"text": half, "type": half}, [{"type": "text", key: half}]):
            relay = begin(caller, provider)
            try:
                relay.feed(b"data: " + json.dumps(shaped(key, value)).encode() + b"\n\n").decode()
                relay.feed(b"data: " + json.dumps(shaped(key, "b")).encode() + b"\n\n").decode()
            except wire.Garbled:
                pass
            relay.finish().decode()
            relay.meter.text.getvalue().encode()
            relay.meter.error.encode()


SHAPES = (
    ("openai", lambda key, value: {key: value, "choices": [{"delta": {key: value}}]}),
    ("openai", lambda key, value: {"choices": [{"delta": {"tool_calls": [{"function": {"name": "f", key: value}}]}}]}),
    ("openai", lambda key, value: {"choices": [{"delta": {"function_call": {"name": "f", key: value}}}]}),
    ("openai", lambda key, value: {"object": "error", key: value}),
    ("anthropic", lambda key, value: {"type": "message_start", "message": {key: value}}),
    ("anthropic", lambda key, value: {"type": "content_block_start", "content_block": {"type": "text", key: value}}),
    ("anthropic", lambda key, value: {"type": "content_block_start", "content_block": CALLED | {key: value}}),
    ("anthropic", lambda key, value: {"type": "content_block_delta", "delta": {"type": "text_delta", key: value}}),
    ("anthropic", lambda key, value: {key: value}),
)  # fmt: skip
