"""Token counts as providers report them, into disjoint buckets and back. What cannot be believed is not reported."""

from __future__ import annotations

from typing import Any

import msgspec

from tierwise.core.money import MAX_TOKENS_REPORTED, Service, Usage
from tierwise.wire.contract import Bill

# A total that exceeds prompt and completion by more than this is no hidden reasoning but a mistake.
MAX_HIDDEN_TOKENS = 262_144
CHARACTERS_PER_TOKEN = 4  # the usual rule of thumb, for counts marked as estimated only

Json = dict[str, Any]
_USUAL = frozenset(
    ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details")
)


def count(value: Any) -> int | None:
    """A token count: a whole number, or the text or float of one. None for anything else, and for what no model
    can have read."""
    if type(value) is int:
        return value if 0 <= value <= MAX_TOKENS_REPORTED else None
    is_text = type(value) is str and value.isascii() and value.isdigit() and len(value) < 20
    if is_text or (type(value) is float and value.is_integer()):
        value = int(value)
    if type(value) is not int or not 0 <= value <= MAX_TOKENS_REPORTED:
        return None
    return value


def _detail(tree: Any, key: str) -> int:
    """A part of a bucket: 0 unless it is there and believable."""
    value = tree.get(key) if type(tree) is dict else None
    return (count(value) or 0) if value else 0


def from_openai(tree: Any) -> Usage | None:
    """OpenAI-dialect usage, in which cached and audio tokens are inside the prompt and reasoning is inside the
    completion, but for providers (xAI, Gemini) whose total shows that reasoning came on top."""
    if type(tree) is not dict:
        return None
    read, wrote = tree.get("prompt_tokens_details"), tree.get("completion_tokens_details")
    prompt, completion = tree.get("prompt_tokens"), tree.get("completion_tokens")
    if (
        type(prompt) is int
        and type(completion) is int
        and (total := prompt + completion) == tree.get("total_tokens")
        and prompt >= 0
        and completion >= 0
        and 0 < total <= MAX_TOKENS_REPORTED
        and tree.keys() <= _USUAL
        and (read is None or (type(read) is dict and not any(read.values())))
        and (wrote is None or (type(wrote) is dict and not any(wrote.values())))
    ):
        return Usage(input_tokens=prompt, output_tokens=completion)  # as of most calls: nothing inside, nothing hidden
    prompt = count(prompt if "prompt_tokens" in tree else tree.get("input_tokens"))
    completion = count(completion if "completion_tokens" in tree else tree.get("output_tokens", 0))
    if prompt is None or completion is None or (total := prompt + completion) == 0:
        return None
    cached = written = heard = spoken = reasoning = 0
    if read is not None:
        cached, written = _detail(read, "cached_tokens"), _detail(read, "cache_write_tokens")
        heard = _detail(read, "audio_tokens")
    if wrote is not None:
        spoken, reasoning = _detail(wrote, "audio_tokens"), _detail(wrote, "reasoning_tokens")
    cached = min(cached or _detail(tree, "prompt_cache_hit_tokens"), prompt)
    written = min(written, prompt - cached)
    heard = min(heard, prompt - cached - written)
    spoken = min(spoken, completion)
    reasoning = reasoning or _detail(tree, "reasoning_tokens")
    hidden = _detail(tree, "total_tokens") - total
    if 0 < hidden <= MAX_HIDDEN_TOKENS and reasoning in (0, hidden):
        reasoning, visible = hidden, completion - spoken
    else:
        reasoning = min(reasoning, completion - spoken)
        visible = completion - spoken - reasoning
    return Usage(
        input_tokens=prompt - cached - written - heard,
        cached_input_tokens=cached,
        cache_write_5m_tokens=written,
        input_audio_tokens=heard,
        output_tokens=visible,
        reasoning_tokens=reasoning,
        output_audio_tokens=spoken,
        web_searches=_detail(tree.get("server_tool_use"), "web_search_requests") or _detail(tree, "num_search_queries"),
    )


def from_anthropic(tree: Any) -> Usage | None:
    """Anthropic usage, in which cached tokens stand beside the input and thinking is inside the output."""
    if type(tree) is not dict:
        return None
    fresh, output = count(tree.get("input_tokens", 0)), count(tree.get("output_tokens", 0))
    if fresh is None or output is None:
        return None
    read = _detail(tree, "cache_read_input_tokens")
    written = _detail(tree, "cache_creation_input_tokens")
    hour = _detail(tree.get("cache_creation"), "ephemeral_1h_input_tokens")
    five = _detail(tree.get("cache_creation"), "ephemeral_5m_input_tokens")
    if fresh + read + written + hour + five + output == 0:
        return None
    hour = min(hour, written) if written else hour
    reasoning = min(_detail(tree.get("output_tokens_details"), "thinking_tokens"), output)
    return Usage(
        input_tokens=fresh,
        cached_input_tokens=read,
        cache_write_5m_tokens=max(written - hour, 0) if written else five,
        cache_write_1h_tokens=hour,
        output_tokens=output - reasoning,
        reasoning_tokens=reasoning,
        web_searches=_detail(tree.get("server_tool_use"), "web_search_requests"),
    )


def guess(prompt_characters: int, output_characters: int) -> Usage:
    """Our rough count where nobody gave one."""
    return Usage(
        input_tokens=-(-prompt_characters // CHARACTERS_PER_TOKEN),
        output_tokens=-(-output_characters // CHARACTERS_PER_TOKEN),
        estimated=True,
    )


def prompt_of(usage: Usage) -> Usage:
    """What was read, before anything was written."""
    return msgspec.structs.replace(usage, output_tokens=0, reasoning_tokens=0, output_audio_tokens=0, web_searches=0)


def to_openai(usage: Usage) -> Json:
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    tree: Json = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    cached, written = usage.cached_input_tokens, usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    if cached or written or usage.input_audio_tokens:
        details = {"cached_tokens": cached, "audio_tokens": usage.input_audio_tokens}
        tree["prompt_tokens_details"] = {**details, "cache_write_tokens": written} if written else details
    if usage.reasoning_tokens or usage.output_audio_tokens:
        tree["completion_tokens_details"] = {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": usage.output_audio_tokens,
        }
    return tree


def to_anthropic(usage: Usage) -> Json:
    five, hour = usage.cache_write_5m_tokens, usage.cache_write_1h_tokens
    tree: Json = {
        "input_tokens": usage.input_tokens + usage.input_audio_tokens,
        "cache_creation_input_tokens": five + hour,
        "cache_read_input_tokens": usage.cached_input_tokens,
        "output_tokens": usage.completion_tokens,
    }
    if five or hour:
        tree["cache_creation"] = {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour}
    if usage.reasoning_tokens:
        tree["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    if usage.web_searches:
        tree["server_tool_use"] = {"web_search_requests": usage.web_searches}
    return tree


def billed(bill: Bill, estimated: bool) -> Json:
    """What the gateway adds to the usage that a caller sees."""
    ours: Json = {"decision": bill.decision, "model": bill.model}
    if bill.baseline_usd is not None:
        ours["baseline_usd"] = bill.baseline_usd
    if bill.saved_usd is not None:
        ours["saved_usd"] = bill.saved_usd
    if bill.budget_remaining_usd is not None:
        ours["budget_remaining_usd"] = bill.budget_remaining_usd
    if estimated:
        ours["estimated"] = True
    if bill.lost:
        ours["lost"] = bill.lost
    return {"cost_usd": bill.cost_usd, "tierwise": ours}


# What a reply says of the class it was served at: OpenAI steps a call down when the better one is full, and bills that.
_SERVED: dict[str, Service] = {
    "default": "standard",
    "standard": "standard",
    "flex": "flex",
    "priority": "priority",
    "fast": "priority",
}


def served_at(tier: Any) -> Service | None:
    """The class of service that a call is billed at; None when the provider says nothing that we know."""
    return _SERVED.get(tier) if type(tier) is str else None
