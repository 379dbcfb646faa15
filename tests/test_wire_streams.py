"""Relays: golden streams of many providers, cut everywhere, passed on and translated."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.golden import ANTHROPIC_STOP, GOLDEN
from tests.support.streams import (
    CALLERS,
    STREAMS,
    begin,
    bill,
    chat,
    hear,
    hear_anthropic,
)
from tierwise import wire


def read(name: str) -> bytes:
    return (STREAMS / f"{name}.sse").read_bytes()


def test_every_golden_stream_is_expected() -> None:
    assert {path.stem for path in STREAMS.glob("*.sse")} == set(GOLDEN)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("name", GOLDEN)
def test_a_client_of_either_format_hears_what_the_provider_said(name: str, caller: str) -> None:
    golden = GOLDEN[name]
    relay = begin(caller, golden.wire)
    heard = hear(caller, relay.feed(read(name)) + relay.finish())
    assert (heard.text, heard.thinking) == (golden.text, golden.thinking)
    if caller == "anthropic" or not name.startswith("gemini"):  # it gives all calls one index or none, and that passes
        assert tuple(call[1:] for call in heard.calls) == golden.calls
    assert heard.ended and heard.error is None and heard.after_end == 0
    assert heard.model == golden.served
    assert heard.usages == (golden.usages if caller == golden.wire else 1)
    assert heard.usage["cost_usd"] == 0.25
    assert heard.usage["tierwise"] == {
        "decision": "d1", "model": "acme/large", "baseline_usd": 1.0, "saved_usd": 0.75
    }  # fmt: skip
    if caller == "openai_chat":
        assert heard.usage["prompt_tokens"] == golden.usage.prompt_tokens
    else:
        assert heard.usage["output_tokens"] == golden.usage.completion_tokens
        assert heard.stop == ANTHROPIC_STOP[golden.stop]
    assert relay.meter.usage == golden.usage
    assert relay.meter.served == golden.served
    assert relay.meter.done and not relay.meter.error
    things = golden.lost if caller != golden.wire.replace("openai", "openai_chat") else ()
    assert len(relay.meter.lost) == len(things)
    assert all(thing in told for thing, told in zip(things, relay.meter.lost, strict=True))
    said = golden.text + golden.thinking + "".join(name + arguments for name, arguments in golden.calls)
    assert Counter(relay.meter.text.getvalue()) == Counter(said + golden.more) - Counter(golden.unsaid)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("name", GOLDEN)
def test_every_prefix_is_no_exception_and_no_half_is_taken_for_a_whole(name: str, caller: str) -> None:
    golden, stream = GOLDEN[name], read(name)
    whole = begin(caller, golden.wire)
    heard_whole = hear(caller, whole.feed(stream) + whole.finish())
    relay, out = begin(caller, golden.wire), b""
    for cut in range(len(stream)):
        # One relay cannot be asked twice, so the prefix is fed anew; in one piece, as the next test feeds it in two.
        relay = begin(caller, golden.wire)
        out = relay.feed(stream[:cut])
        out += relay.finish()
        assert out.endswith(b"\n\n")
        if relay.meter.done:
            heard = hear(caller, out)
            assert (heard.text, heard.thinking, heard.calls) == (
                heard_whole.text, heard_whole.thinking, heard_whole.calls
            )  # fmt: skip
            assert heard.ended and heard.error is None
        else:
            assert b"[DONE]\n\n" not in out.replace(b"\\n", b"") or b'"error"' in out
            assert not out.rstrip().endswith(b"[DONE]")
            assert b"event: message_stop" not in out
            assert relay.meter.error
            assert b'"error"' in out.rsplit(b"data: ", 1)[1]


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("name", GOLDEN)
def test_every_split_gives_the_same_output(name: str, caller: str) -> None:
    golden, stream = GOLDEN[name], read(name)
    relay = begin(caller, golden.wire)
    expected = relay.feed(stream) + relay.finish()
    for cut in range(1, len(stream), 2 if len(stream) < 1200 else 5):
        relay = begin(caller, golden.wire)
        assert relay.feed(stream[:cut]) + relay.feed(stream[cut:]) + relay.finish() == expected
    relay = begin(caller, golden.wire)
    assert b"".join(relay.feed(stream[i : i + 1]) for i in range(len(stream))) + relay.finish() == expected


@pytest.mark.parametrize("end", [b"\n\n", b"\r\r", b""])
def test_a_lone_cr_ends_a_line_also_inside_of_an_event_that_ends_otherwise(end: bytes) -> None:
    half, rest = b'data: {"choices":[{"index":0,', b'data: "delta":{"content":"Hi"},"finish_reason":"stop"}]}'
    relay = begin("openai_chat", "openai")
    out = relay.feed(half + b"\r" + rest + end) + relay.finish()
    assert out.startswith(half + b"\r" + rest)
    assert (relay.meter.output_characters, relay.meter.stop, relay.meter.error) == (2, "end", "")


MENDED = ("byte_order_mark", "cr_only", "no_done", "no_blank_line_at_the_end")


@pytest.mark.parametrize(
    "name", [name for name, golden in GOLDEN.items() if golden.wire == "openai" and name not in MENDED]
)
def test_same_format_bytes_pass_but_for_usage(name: str) -> None:
    stream = read(name)
    relay = wire.relay(chat(stream_options=None), "openai", bill)
    out = relay.feed(stream) + relay.finish()
    usage = [line for line in stream.splitlines(keepends=True) if b'"choices":[],"usage"' in line]
    for line in usage:
        stream = stream.replace(line + line[len(line.rstrip()) :], b"")
    assert out == stream
    assert relay.meter.usage == GOLDEN[name].usage


def test_same_format_anthropic_bytes_pass_but_for_the_last_usage() -> None:
    stream = read("anthropic_thinking_tools")
    relay = begin("anthropic", "anthropic")
    out = relay.feed(stream) + relay.finish()
    before, _, after = stream.partition(b"event: message_delta")
    assert out.startswith(before)
    assert out.endswith(after[after.index(b"event: message_stop") :])


def test_thinking_keeps_its_signature_and_redacted_blocks_survive_in_their_own_format() -> None:
    relay = begin("anthropic", "anthropic")
    out = relay.feed(read("anthropic_thinking_tools"))
    assert hear_anthropic(out).signature == "EqQBCgIYAhIM=="
    assert b'"redacted_thinking","data":"EmwKAhgB"' in out
