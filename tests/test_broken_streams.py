"""Streams of servers that are nearly compatible: what they mean arrives, in every caller's format."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.streams import CALLERS, begin, chat, chunk, events, hear, message, text_chunk
from tests.support.wire_replies import completion
from tierwise import wire

DONE = b"data: [DONE]\n\n"
BOM = b"\xef\xbb\xbf"


def called(*calls: dict[str, Any]) -> bytes:
    return chunk(choices=[{"index": 0, "delta": {"tool_calls": list(calls)}, "finish_reason": None}])


def ended(reason: str = "stop") -> bytes:
    return chunk(choices=[{"index": 0, "delta": {}, "finish_reason": reason}])


def tool_uses(out: bytes) -> list[tuple[str, Any]]:
    """(name, input) of the calls in a Messages stream."""
    found: list[list[str]] = []
    for _, data in events(out):
        event = json.loads(data)
        block, delta = event.get("content_block", {}), event.get("delta", {})
        if block.get("type") == "tool_use":
            found.append([block["name"], ""])
        if delta.get("type") == "input_json_delta":
            found[-1][1] += delta["partial_json"]
    return [(name, json.loads(text or "{}")) for name, text in found]


@pytest.mark.parametrize("step", [1, 2, 3, 1_000])
@pytest.mark.parametrize("caller", CALLERS)
def test_a_byte_order_mark_costs_the_caller_no_word(caller: str, step: int) -> None:
    relay = begin(caller, "openai")
    stream = BOM + text_chunk("Paris") + ended() + DONE
    out = b"".join(relay.feed(stream[at : at + step]) for at in range(0, len(stream), step)) + relay.finish()
    assert BOM not in out
    assert hear(caller, out).text == "Paris"


@pytest.mark.parametrize("begin_of_one", [BOM[:1], BOM[:2]])
def test_half_a_byte_order_mark_is_no_stream(begin_of_one: bytes) -> None:
    relay = begin("openai_chat", "openai")
    heard = hear("openai_chat", relay.feed(begin_of_one) + relay.finish())
    assert heard.error is not None and not heard.ended


def test_arguments_that_come_as_an_object_reach_a_caller_of_the_other_format() -> None:
    relay = begin("anthropic", "openai")
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert tool_uses(relay.feed(called(call) + ended("tool_calls") + DONE)) == [("f", {"x": 1})]
    assert relay.meter.text.getvalue() == 'f{"x":1}'


@pytest.mark.parametrize("more", [{}, {"index": 0}, {"index": 0, "id": "same"}, {"id": ""}])
def test_calls_in_one_chunk_are_never_pieces_of_one_call(more: dict[str, Any]) -> None:
    relay = begin("anthropic", "openai")
    calls = [{"function": {"name": name, "arguments": f'{{"{name}":1}}'}, **more} for name in "fg"]
    out = relay.feed(called(*calls) + ended() + DONE)
    assert tool_uses(out) == [("f", {"f": 1}), ("g", {"g": 1})]


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("error", ["", {}, None, False])
def test_an_empty_error_is_none(caller: str, error: Any) -> None:
    relay = begin(caller, "openai")
    delta = {"index": 0, "delta": {"content": "Paris"}, "finish_reason": None}
    out = relay.feed(chunk(choices=[delta], error=error) + ended() + DONE)
    assert b'"Paris"' in out and relay.meter.done and not relay.meter.error
    assert out.endswith(DONE) if caller == "openai_chat" else hear(caller, out).ended


def test_a_refusal_is_a_refusal_to_a_caller_of_the_other_format() -> None:
    relay = begin("anthropic", "openai")
    refusal = chunk(choices=[{"index": 0, "delta": {"refusal": "No."}, "finish_reason": None}])
    assert hear("anthropic", relay.feed(refusal + ended() + DONE)).stop == "refusal"


def test_a_call_in_the_old_form_is_counted_and_passed_on() -> None:
    call = {"name": "f", "arguments": '{"x":1}'}
    stream = chunk(choices=[{"index": 0, "delta": {"function_call": call}, "finish_reason": None}])
    relay = begin("anthropic", "openai")
    assert tool_uses(relay.feed(stream + ended("function_call") + DONE)) == [("f", {"x": 1})]
    passed = begin("openai_chat", "openai")
    assert stream in passed.feed(stream + ended("function_call") + DONE)
    assert passed.meter.output_characters == relay.meter.output_characters == len('f{"x":1}')


def test_a_whole_reply_may_begin_with_a_byte_order_mark() -> None:
    reply = wire.read_reply("openai_chat", BOM + completion("Paris"), chat(stream=False, stream_options=None))
    assert reply.text == "Paris" and BOM not in reply.body


def test_calls_without_ids_or_places_are_told_apart_by_their_whole_arguments() -> None:
    """Gemini's ids were empty: a name that comes again after whole arguments is another call."""
    relay = begin("anthropic", "openai")
    stream = called({"id": "", "function": {"name": "f", "arguments": '{"x":1}'}})
    stream += called({"id": "", "function": {"name": "f", "arguments": '{"x":2}'}})
    stream += called({"id": "", "function": {"name": "g", "arguments": "{}"}}) + ended("stop") + DONE
    out = relay.feed(stream)
    assert tool_uses(out) == [("f", {"x": 1}), ("f", {"x": 2}), ("g", {})]
    assert len({id for id, _, _ in hear("anthropic", out).calls}) == 3


def test_a_name_that_is_repeated_with_each_piece_is_still_one_call() -> None:
    relay = begin("anthropic", "openai")
    pieces = ('{"x":', '"}"', "}", "")
    stream = b"".join(called({"index": 0, "function": {"name": "f", "arguments": piece}}) for piece in pieces)
    assert tool_uses(relay.feed(stream + ended("tool_calls") + DONE)) == [("f", {"x": "}"})]


def test_calls_without_ids_have_other_ones_in_each_reply() -> None:
    """Anthropic refuses a conversation in which two calls have the same."""
    call = {"function": {"name": "f", "arguments": "{}"}}
    found = set()
    for reply_id in ("chatcmpl-1", "chatcmpl-2"):
        tree = json.loads(completion(None, "tool_calls", tool_calls=[call, call])) | {"id": reply_id}
        bill = wire.Bill(cost_usd=0.0, decision="d", model="m")
        request = message(stream=False)
        out = json.loads(wire.deliver(request, wire.read_reply("openai", json.dumps(tree).encode(), None), bill))
        found |= {block["id"] for block in out["content"]}
    assert len(found) == 4


def test_data_of_several_lines_without_an_event_name_stays_one_event() -> None:
    relay = begin("anthropic", "anthropic")
    out = relay.feed(b'data: {"type":\ndata: "ping"}\n\n')
    assert events(out) == [("ping", '{"type": "ping"}')]
