"""Streams: what is told of usage, and how often."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.streams import (
    CALLERS,
    USAGE,
    begin,
    bill,
    chat,
    chunk,
    hear,
    hear_openai,
    message,
    text_chunk,
)
from tierwise import wire
from tierwise.core.money import Usage


@pytest.mark.parametrize(
    ("counts", "completion"), [((5, 7, 9), 9), ((9, 7), 7), ((4, 4), 4)], ids=["cumulative", "decreasing", "twice"]
)
def test_the_last_usage_wins_and_is_told_once(counts: tuple[int, ...], completion: int) -> None:
    relay = begin("openai_chat", "openai")
    out = relay.feed(text_chunk("Hi", "stop"))
    for count in counts:
        out += relay.feed(chunk(choices=[], usage={"prompt_tokens": 10, "completion_tokens": count}))
    out += relay.feed(b"data: [DONE]\n\n") + relay.finish()
    heard = hear_openai(out)
    assert heard.usages == 1 and heard.usage is not None and heard.usage["completion_tokens"] == completion
    assert relay.meter.usage == Usage(input_tokens=10, output_tokens=completion)


def test_usage_halves_of_a_message_are_merged_never_summed() -> None:
    relay = begin("anthropic", "anthropic")
    start = {
        "type": "message_start",
        "message": {"id": "m", "model": "c", "usage": {"input_tokens": 9, "output_tokens": 1}},
    }
    for event in (
        start,
        {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 5}},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"input_tokens": 11, "output_tokens": 8},
        },
        {"type": "message_stop"},
    ):
        relay.feed(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    assert relay.meter.usage == Usage(input_tokens=11, output_tokens=8)


def _read_at_the_start(out: bytes) -> int:
    start = next(line for line in out.split(b"\n") if b'"message_start"' in line)
    found: int = json.loads(start[6:])["message"]["usage"]["input_tokens"]
    return found


def test_a_translated_message_begins_with_our_count_of_its_prompt_and_ends_with_the_providers() -> None:
    """LangChain JS and AutoGen read a stream's input tokens at its beginning only, and showed 0."""
    relay = wire.relay(message(), "openai", bill, expected_input_tokens=12)
    out = relay.feed(text_chunk("Hi", "stop") + chunk(choices=[], usage=USAGE) + b"data: [DONE]\n\n") + relay.finish()
    assert _read_at_the_start(out) == 12
    assert hear("anthropic", out).usage["input_tokens"] == 10
    assert relay.meter.usage == Usage(input_tokens=10, output_tokens=5)


def test_a_message_that_is_whole_before_it_streams_begins_with_what_was_read() -> None:
    body = text_chunk("Hi", "stop", usage=USAGE)[6:].replace(b'"delta"', b'"message"')
    reply = wire.read_reply("openai", body, message())
    assert _read_at_the_start(wire.deliver_stream(message(), reply, bill(wire.Meter()))) == 10


@pytest.mark.parametrize("caller", CALLERS)
def test_a_stream_without_usage_ends_with_our_own_count(caller: str) -> None:
    asked: list[Usage | None] = []

    def ours(meter: wire.Meter) -> wire.Bill:
        asked.append(meter.usage)
        return wire.Bill(cost_usd=0.5, decision="d", model="m", usage=Usage(input_tokens=3, output_tokens=4))

    request = chat() if caller == "openai_chat" else message()
    relay = wire.relay(request, "openai", ours)
    heard = hear(caller, relay.feed(text_chunk("x" * 40, "stop") + b"data: [DONE]\n\n") + relay.finish())
    assert asked == [None]
    assert relay.meter.usage is None
    key = "completion_tokens" if caller == "openai_chat" else "output_tokens"
    assert heard.usage[key] == 4
    assert heard.usage["tierwise"]["estimated"] is True


def test_a_client_that_did_not_ask_gets_no_usage_chunk_and_the_meter_has_it() -> None:
    relay = begin("openai_chat", "openai", stream_options=None)
    out = relay.feed(text_chunk("Hi", "stop") + chunk(choices=[], usage=USAGE) + b"data: [DONE]\n\n")
    assert hear_openai(out).usage is None
    assert relay.meter.usage == Usage(input_tokens=10, output_tokens=5)


@pytest.mark.parametrize("bad", ["12", None, -1, 10**30, 1.5, [], {}, True, "x"])
def test_absurd_usage_is_never_negative_and_never_believed(bad: Any) -> None:
    relay = begin("openai_chat", "openai")
    usage = {"prompt_tokens": bad, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": bad}}
    out = relay.feed(text_chunk("Hi", "stop") + chunk(choices=[], usage=usage) + b"data: [DONE]\n\n") + relay.finish()
    assert hear_openai(out).ended
    assert relay.meter.usage == (Usage(input_tokens=12, reasoning_tokens=5) if bad == "12" else None)


def test_half_a_surrogate_pair_in_a_stream_is_no_exception() -> None:
    odd = text_chunk("a", "stop", usage=USAGE).replace(b'"a"', b'"\\ud83d"')
    delta = b'{"stop_reason":"end_turn","x":"\\ud83d"}'
    data = b'{"type":"message_delta","delta":' + delta + b',"usage":{"output_tokens":1}}'
    event = b"event: message_delta\ndata: " + data + b"\n\n"
    relay = begin("openai_chat", "openai")
    assert hear_openai(relay.feed(odd) + relay.finish()).ended
    for caller in CALLERS:
        relay = begin(caller, "anthropic")
        assert hear(caller, relay.feed(event) + relay.finish()).ended
