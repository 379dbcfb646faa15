"""The golden streams, and what each says: of many providers, and of servers that are nearly compatible with them."""

from __future__ import annotations

from dataclasses import dataclass

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
    more: str = ""  # counted, and not among what is heard
    unsaid: str = ""  # heard, and not counted: nobody sent it
    usages: int = 1  # in the provider's own format; told once in the other
    lost: tuple[str, ...] = ()  # the things that the other format cannot say, each by its name


Calls = tuple[tuple[str, str], ...]


def said(
    text: str = "",
    thinking: str = "",
    *,
    calls: Calls = (),
    stop: str = "",
    read: int = 5,
    wrote: int = 2,
    thought: int = 0,
    served: str = "m-1",
    more: str = "",
    lost: tuple[str, ...] = (),
) -> Golden:
    usage = Usage(input_tokens=read, output_tokens=wrote, reasoning_tokens=thought)
    return Golden(
        "openai", text, thinking, calls, stop or ("tool_use" if calls else "end"), usage, served, more, lost=lost
    )


def message(
    text: str = "",
    *,
    calls: Calls = (),
    stop: str = "",
    wrote: int = 5,
    thought: int = 0,
    unsaid: str = "",
    usages: int = 1,
    lost: tuple[str, ...] = (),
) -> Golden:
    usage = Usage(input_tokens=9, output_tokens=wrote, reasoning_tokens=thought)
    ended = stop or ("tool_use" if calls else "end")
    return Golden("anthropic", text, "", calls, ended, usage, "claude-m", unsaid=unsaid, usages=usages, lost=lost)


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
        "claude-sonnet-4-5-20250929", unsaid="{}", lost=("redacted_thinking", "signature"),
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
    # Servers that are nearly compatible, as their users' bug reports show them.
    "gemini_no_index": said(
        calls=(("get_weather", '{"city":"Kyiv"}'), ("get_time", '{"tz":"EET"}')), read=50, wrote=20,
        lost=("thought_signature",),
    ),
    "sglang_empty_finish": said("Six.", read=8, wrote=3),
    "azure_filtered": said("Well", stop="filtered", read=12, wrote=1),
    "openai_refusal": said("I can't help with that.", stop="refusal", read=11, wrote=7),
    "openai_length": said("Half a sen", stop="length", wrote=4),
    "vllm_finish_with_text": said("One two", read=6),
    "llamacpp_timings": said("Hi", read=4, wrote=1, served="qwen3-8b.gguf"),
    "xai_reasoning_on_top": said("4", "Sum.", read=7, wrote=1, thought=12),
    "usage_falls": said("ab", read=9),
    "usage_first_and_last": said("Right.", read=9),
    "usage_twice_the_same": said("Twice.", read=9),
    "usage_floats": said("1.0", read=9, wrote=3),
    "openai_audio_cached": Golden(
        "openai", "La", served="m-1",
        usage=Usage(input_tokens=16, cached_input_tokens=64, input_audio_tokens=20, output_tokens=5,
                    output_audio_tokens=4),
    ),
    "cr_only": said("Alte Macs", wrote=3),
    "crlf_and_lf": said("gemischt", wrote=3),
    "byte_order_mark": said("Paris", wrote=1),
    "comments_and_heartbeats": said("ab"),
    "no_done": said("The end"),
    "no_blank_line_at_the_end": said("The end"),
    "emoji_by_parts": said("👩\u200d💻 e\u0301 नमस्ते", wrote=9),
    "empty_deltas": said("x", wrote=1),
    "no_delta_at_the_end": said("x", wrote=1),
    "tool_name_later": said(calls=(("get_weather", '{"city":"Rom"}'),), read=9, wrote=9),
    "three_calls_in_one_chunk": said(
        calls=tuple(("get_time", f'{{"tz":"{zone}"}}') for zone in ("CET", "EET", "UTC")), read=9, wrote=30
    ),
    "arguments_cut_in_escapes": said(calls=(("get_weather", '{"city":"Mal\\u00e9\\"\\\\"}'),), read=9, wrote=12),
    "text_before_and_after_a_call": said("Let me see.\n", calls=(("now", "{}"),), read=9, wrote=12),
    "qwen_tools": said(calls=(("get_weather", '{"city": "Ulm"}'),), read=40, wrote=14),
    "repeated_id_and_name": said(
        calls=(("get_weather", '{"city":"Jena"}'),), read=40, wrote=14, more="get_weather"
    ),
    "vllm_reasoning_both": said("Yes", "Hm.", read=6, wrote=5),
    "groq_usage_twice": said("Fast", read=8, wrote=1),
    "perplexity_search": Golden(
        "openai", "Yes[1]", usage=Usage(input_tokens=6, output_tokens=3, web_searches=2), served="m-1",
        lost=("citations", "search_results"),
    ),
    "together_eos": said("Done", stop="unknown", read=6),
    "cerebras_times": said("ok", read=6, wrote=1),
    "anthropic_pings": message("Hi"),
    "anthropic_crlf": message("Zwölf"),
    "anthropic_parallel_tools": message(
        "Both.", calls=(("get_weather", '{"city":"Rome"}'), ("get_time", '{"tz":"CET"}')), wrote=40
    ),
    "anthropic_empty_arguments": message(calls=(("now", "{}"),), unsaid="{}"),
    "anthropic_whole_input": message(calls=(("get_weather", '{"city":"Rome"}'),)),
    "anthropic_refusal": message("I", stop="refusal", wrote=2),
    "anthropic_stop_sequence": message("1 2 ", stop="stop_sequence"),
    "anthropic_length": message("Half a sen", stop="length"),
    "anthropic_thinking_unsaid": message("4", thought=25),
    "anthropic_usage_twice": message("a b", wrote=6, usages=2),
    "anthropic_server_tool": Golden(
        "anthropic", "Yes.", usage=Usage(input_tokens=900, output_tokens=20, web_searches=1), served="claude-m",
        more='web_search{"query":"x"}', lost=("server_tool_use", "web_search_tool_result"),
    ),
    "anthropic_citations": message("Green.", lost=("citations",)),
    "anthropic_unknown_event": message("Hi", wrote=3),
    "anthropic_usage_at_the_end": Golden(
        "anthropic", "Kimi", usage=Usage(input_tokens=31, cached_input_tokens=16, output_tokens=4), served="claude-m"
    ),
    "anthropic_no_message_stop": message("The end"),
    "anthropic_text_in_the_block": message("Some more"),
    "anthropic_redacted": message("So.", lost=("redacted_thinking",)),
}  # fmt: skip
# What a caller of the other format is told of how it ended.
ANTHROPIC_STOP = {
    "end": "end_turn", "tool_use": "tool_use", "length": "max_tokens", "stop_sequence": "stop_sequence",
    "refusal": "refusal", "filtered": "refusal", "unknown": "end_turn",
}  # fmt: skip
