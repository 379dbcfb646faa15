"""Streams that break, lie or try to be something else."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.streams import (
    CALLERS,
    begin,
    chunk,
    events,
    hear,
    hear_anthropic,
    hear_openai,
    text_chunk,
)
from tierwise import wire
from tierwise.core.errors import Refused


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_an_error_inside_a_stream_is_an_error_event_and_no_end(caller: str, provider: str) -> None:
    relay = begin(caller, provider)
    if provider == "openai":
        stream = (
            text_chunk("Hi") + chunk(error={"message": "overheated", "code": 502}, choices=[]) + b"data: [DONE]\n\n"
        )
    else:
        error = {"type": "error", "error": {"type": "overloaded_error", "message": "overheated"}}
        start = {
            "type": "message_start",
            "message": {"id": "m", "model": "c", "usage": {"input_tokens": 3, "output_tokens": 1}},
        }
        stream = b"".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in (start, error))
    heard = hear(caller, relay.feed(stream) + relay.finish())
    assert heard.error is not None and "overheated" in heard.error["message"]
    assert not heard.ended and not relay.meter.done
    assert relay.meter.error == "overheated"


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(
    "error",
    [
        b'event: error\ndata: {"message":"overheated","code":502}\n\n',
        b"event: error\ndata: overheated\n\n",
        b'data: {"object":"error","message":"overheated","type":"server_error"}\n\n',
        b'data: {"choices":[],"x_groq":{"error":"overheated"}}\n\n',
    ],
)
def test_an_error_with_nothing_around_it_is_no_end_wherever_it_is_cut(caller: str, error: bytes) -> None:
    stream = text_chunk("Hi") + error + b"data: [DONE]\n\n"
    for cut in range(len(stream) + 1):
        relay = begin(caller, "openai")
        heard = hear(caller, relay.feed(stream[:cut]) + relay.finish())
        assert heard.error is not None and not heard.ended and not relay.meter.done
    assert "overheated" in heard.error["message"] and relay.meter.error == "overheated"


@pytest.mark.parametrize("caller", CALLERS)
def test_failing_is_said_once_in_the_callers_format(caller: str) -> None:
    relay = begin(caller, "openai")
    out = relay.feed(text_chunk("Hi"))
    out += relay.fail(Refused("too slow", code="deadline_exceeded", status=504)) + relay.fail(Refused("again"))
    out += relay.finish()
    heard = hear(caller, out)
    assert heard.error["message"] == "too slow" and heard.error["code"] == "deadline_exceeded"
    assert out.count(b"too slow") == 1 and b"again" not in out and not heard.ended


@pytest.mark.parametrize(
    "stream",
    [
        b"<html><body>502</body></html>",
        b'{"error":{"message":"no"}}',
        b"[]",
        b"data: hello\n\n",
        b"data: 5\n\n",
        b'data: {"a":\n\n',
        b"data: null\n\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"\x1f\x8b\x08\x00\n\n",
        b"data: \xff\xfe\n\n",
    ],
)
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_what_is_no_event_stream_is_garbled(stream: bytes, caller: str, provider: str) -> None:
    relay = begin(caller, provider)
    with pytest.raises(wire.Garbled):
        relay.feed(stream)


@pytest.mark.parametrize("size", [64, 4096])
def test_a_line_above_1_mib_is_garbled_however_it_comes(size: int) -> None:
    relay = begin("openai_chat", "openai")
    piece = b"x" * size
    relay.feed(b"data: ")
    with pytest.raises(wire.Garbled):
        for _ in range((1 << 20) // size + 1):
            relay.feed(piece)


def test_good_events_before_bad_bytes_go_out_first() -> None:
    relay = begin("openai_chat", "openai")
    assert hear_openai(relay.feed(text_chunk("Hi") + b"data: nonsense\n\n")).text == "Hi"
    with pytest.raises(wire.Garbled):
        relay.feed(b"\n")


@pytest.mark.parametrize("caller", CALLERS)
@given(
    tree=st.recursive(
        st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "choices",
                        "delta",
                        "index",
                        "content",
                        "tool_calls",
                        "function",
                        "arguments",
                        "usage",
                        "id",
                        "prompt_tokens",
                        "type",
                        "message",
                        "logprobs",
                        "content_block",
                        "model",
                        "error",
                        "finish_reason",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
@settings(max_examples=80, deadline=None)
def test_no_event_whatever_its_types_is_an_exception_other_than_garbled(caller: str, tree: Any) -> None:
    for provider in ("openai", "anthropic"):
        relay = begin(caller, provider)
        for value in (
            tree,
            {"choices": [tree]},
            {"type": "content_block_delta", "delta": tree},
            {"choices": [{"delta": tree}]},
        ):
            try:
                relay.feed(b"data: " + json.dumps(value).encode() + b"\n\n")
            except wire.Garbled:
                break
        relay.finish()


TEXT = st.text(st.characters(codec="utf-8"), max_size=60) | st.sampled_from(
    [
        "\n\nevent: error\ndata: {}\n\n",
        "\r\n\r\ndata: [DONE]\r\n\r\n",
        "\u2028\u2029\x00\x1b",
        "data: [DONE]",
        '"}]}\n\n',
    ]
)


@given(texts=st.lists(TEXT.filter(bool), min_size=1, max_size=5), data=st.data())
@settings(max_examples=80, deadline=None)
def test_model_text_never_ends_an_event_and_arrives_as_it_was(texts: list[str], data: st.DataObject) -> None:
    openai = b"".join(text_chunk(text) for text in texts) + text_chunk("", "stop") + b"data: [DONE]\n\n"
    opening = b'data: {"type":"message_start","message":{"id":"m","model":"c","usage":{"input_tokens":1}}}\n\n'
    blocks = [{"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}]
    blocks += [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}} for text in texts
    ]
    blocks += [
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]
    opening = b"event: message_start\n" + opening
    anthropic = opening + b"".join(
        f"event: {block['type']}\ndata: {json.dumps(block)}\n\n".encode() for block in blocks
    )
    for provider, stream in (("openai", openai), ("anthropic", anthropic)):
        cut = data.draw(st.integers(0, len(stream)))
        for caller in CALLERS:
            relay = begin(caller, provider)
            heard = hear(caller, relay.feed(stream[:cut]) + relay.feed(stream[cut:]) + relay.finish())
            assert heard.text == "".join(texts)
            assert heard.ended and heard.error is None


@given(
    value=st.dictionaries(
        TEXT,
        st.none() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
        max_size=4,
    ),
    ascii=st.booleans(),
    cuts=st.lists(st.integers(0, 200), max_size=4),
    spaces=st.sampled_from(["", " ", "\n "]),
)
@settings(max_examples=80, deadline=None)
def test_tool_arguments_are_byte_equal_through_every_relay(
    value: dict[str, Any], ascii: bool, cuts: list[int], spaces: str
) -> None:
    arguments = json.dumps(value, ensure_ascii=ascii, separators=("," + spaces, ":" + spaces))
    edges = sorted({0, len(arguments), *(cut for cut in cuts if cut < len(arguments))})
    pieces = [arguments[a:b] for a, b in itertools.pairwise(edges)]

    def delta(**call: Any) -> bytes:
        return chunk(choices=[{"index": 0, "delta": {"tool_calls": [{"index": 0, **call}]}, "finish_reason": None}])

    openai = delta(id="call_1", type="function", function={"name": "f", "arguments": ""})
    openai += b"".join(delta(function={"arguments": piece}) for piece in pieces)
    openai += text_chunk("", "tool_calls") + b"data: [DONE]\n\n"
    first = begin("anthropic", "openai")
    as_anthropic = first.feed(openai) + first.finish()
    assert hear_anthropic(as_anthropic).calls == [("call_1", "f", arguments)]
    back = begin("openai_chat", "anthropic")
    as_openai = back.feed(as_anthropic) + back.finish()
    assert hear_openai(as_openai).calls == [("call_1", "f", arguments)]
    assert [event for event in events(as_openai) if event[1] == "[DONE]"]
