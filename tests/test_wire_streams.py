"""Relays: golden streams of many providers, cut everywhere, passed on and translated."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

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
from tierwise.core.money import Usage


@dataclass(frozen=True)
class Golden:
    """What a stream says. `usage` in disjoint buckets."""

    wire: str
    text: str = ""
    thinking: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    stop: str = "end"
    usage: Usage = Usage()
    served: str = ""


WEATHER = ("get_weather", '{"city": "Pa\\u0072is", "n": 1.50}')
GOLDEN: dict[str, Golden] = {
    "openai_plain": Golden(
        "openai", "Grüß Gott 👋\n\nevent: x\ndata: [DONE]\n\n.",
        usage=Usage(input_tokens=16, cached_input_tokens=5, output_tokens=6, reasoning_tokens=3),
        served="gpt-5-mini-2025-08-07",
    ),
    "openai_parallel_tools": Golden(
        "openai", calls=(WEATHER, ("get_time", '{"tz":"CET"}')), stop="tool_use",
        usage=Usage(input_tokens=80, output_tokens=31), served="gpt-5-mini-2025-08-07",
    ),
    "openai_interleaved_tools": Golden(
        "openai", "Both.", calls=(("get_weather", '{"city":"Rome"}'), ("get_time", '{"tz":"CET"}')), stop="tool_use",
        usage=Usage(input_tokens=80, output_tokens=31), served="gpt-5-mini-2025-08-07",
    ),
    "azure_plain": Golden(
        "openai", "Bonjour à tous", usage=Usage(input_tokens=12, output_tokens=4), served="gpt-4o-2024-11-20"
    ),
    "anthropic_plain": Golden(
        "anthropic", "Hallo Welt 🌍\n\nevent: x\ndata: y",
        usage=Usage(input_tokens=30, cached_input_tokens=100, cache_write_5m_tokens=5, cache_write_1h_tokens=7,
                    output_tokens=15),
        served="claude-sonnet-4-5-20250929",
    ),
    "anthropic_thinking_tools": Golden(
        "anthropic", "Let me look.", "The user wants the weather.",
        (("get_weather", '{"city": "Par\\u0069s", "n": 1.50}'), ("now", "{}")), "tool_use",
        Usage(input_tokens=30, cached_input_tokens=100, cache_write_5m_tokens=5, cache_write_1h_tokens=7,
              output_tokens=69, reasoning_tokens=20),
        "claude-sonnet-4-5-20250929",
    ),
    "deepseek_reasoning": Golden(
        "openai", "Answer: 4", "2+2 is 4",
        usage=Usage(input_tokens=4, cached_input_tokens=10, output_tokens=8, reasoning_tokens=12),
        served="deepseek-reasoner",
    ),
    "groq_plain": Golden(
        "openai", "Fast reply", usage=Usage(input_tokens=38, output_tokens=3), served="llama-3.3-70b-versatile"
    ),
    "openrouter_reasoning": Golden(
        "openai", "Yes.", "Hm", usage=Usage(input_tokens=9, output_tokens=5, reasoning_tokens=2),
        served="qwen/qwen3-32b",
    ),
    "vllm_continuous_usage": Golden(
        "openai", "One two", stop="length", usage=Usage(input_tokens=11, output_tokens=3), served="Qwen/Qwen3-8B"
    ),
    "vllm_tools": Golden(
        "openai", calls=(("get_weather", '{"city": "Oslo"}'),), stop="tool_use",
        usage=Usage(input_tokens=60, output_tokens=18), served="Qwen/Qwen3-8B",
    ),
    "ollama_tools": Golden(
        "openai", calls=(("get_weather", '{"city":"Bern"}'),), stop="tool_use",
        usage=Usage(input_tokens=170, output_tokens=22), served="llama3.2",
    ),
    "mistral_thinking": Golden(
        "openai", "Done.", "Let me think", usage=Usage(input_tokens=10, output_tokens=8),
        served="magistral-medium-latest",
    ),
    "gemini_parallel_tools": Golden(
        "openai", calls=(("get_weather", '{"city":"Kyiv"}'), ("get_time", '{"tz":"EET"}')), stop="tool_use",
        usage=Usage(input_tokens=50, output_tokens=20, reasoning_tokens=25), served="gemini-2.5-flash",
    ),
    "openai_crlf": Golden(
        "openai", "Zwölf", usage=Usage(input_tokens=5, output_tokens=2), served="gpt-5-mini-2025-08-07"
    ),
    "multiline_data": Golden("openai", "multi", usage=Usage(input_tokens=5, output_tokens=2), served="Qwen/Qwen3-8B"),
}  # fmt: skip
OPENAI_STOP = {"end": "stop", "tool_use": "tool_calls", "length": "length"}
ANTHROPIC_STOP = {"end": "end_turn", "tool_use": "tool_use", "length": "max_tokens"}


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
    if name != "gemini_parallel_tools" or caller == "anthropic":  # it gives both calls one index, which passes as it is
        assert tuple(call[1:] for call in heard.calls) == golden.calls
    assert heard.ended and heard.error is None and heard.after_end == 0
    assert heard.model == golden.served
    assert heard.usages == 1
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
    said = golden.text + golden.thinking + "".join(name + arguments for name, arguments in golden.calls)
    assert sorted("".join(relay.meter.pieces)) == sorted(said if "now" not in said else said.removesuffix("{}"))


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


@pytest.mark.parametrize("name", [name for name, golden in GOLDEN.items() if golden.wire == "openai"])
def test_same_format_bytes_pass_but_for_usage(name: str) -> None:
    stream = read(name)
    relay = wire.relay(chat(stream_options=None), "openai", bill, strip_logprobs=False)
    out = relay.feed(stream) + relay.finish()
    usage = [line for line in stream.splitlines(keepends=True) if b'"choices":[],"usage"' in line]
    for line in usage:
        stream = stream.replace(line + (b"\r\n" if line.endswith(b"\r\n") else b"\n"), b"")
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
