"""Which of a provider's many models to take when the owner named none.

A rule, not a list, so that it does not rot: of each kind that the provider sells (its large, its small, its embedding
model) the newest that the installed price list prices and does not call deprecated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from tierwise.providers import known, prices

Slot = tuple[Literal["frontier", "fast"], str]

_V = r"(\d+(?:\.\d+)?)"
# Of each provider: in which tier, and a pattern of the whole name. Of the names that match, the one with the highest
# numbers in its groups is the newest. A provider without a row, or whose names have all changed, is served by price.
_SLOTS: Mapping[str, tuple[Slot, ...]] = {
    "openai": (
        ("frontier", rf"gpt-{_V}(?:-sol)?"),
        ("fast", rf"gpt-{_V}-(?:terra|mini)"),
        ("fast", rf"gpt-{_V}-(?:luna|nano)"),
        ("fast", r"text-embedding-(\d+)-small"),
    ),
    "anthropic": (
        ("frontier", r"claude-opus-(\d+)(?:-(\d{1,2}))?"),
        ("frontier", r"claude-sonnet-(\d+)(?:-(\d{1,2}))?"),
        ("fast", r"claude-haiku-(\d+)(?:-(\d{1,2}))?"),
    ),
    "google": (
        ("frontier", rf"gemini-{_V}-(?!flash|live|omni|image|tts|embedding)[a-z]+(?:-preview)?"),
        ("fast", rf"gemini-{_V}-flash"),
        ("fast", rf"gemini-{_V}-flash-lite"),
        ("fast", r"gemini-embedding-(\d+)"),
    ),
    "mistral": (
        ("frontier", r"mistral-large-(\d)(?:-(\d))?"),
        ("fast", r"mistral-small-(\d{4})"),
        ("fast", r"ministral-8b-(\d{4})"),
        ("fast", r"mistral-embed"),
    ),
    "deepseek": (("frontier", rf"deepseek-v{_V}-pro"), ("fast", rf"deepseek-v{_V}-flash")),
    "xai": (("frontier", rf"grok-{_V}"), ("fast", r"grok-(\d+)(?:-(\d+))?-fast-non-reasoning")),
    "moonshot": (("frontier", rf"kimi-k{_V}(?:-pro)?"),),
    "zai": (("frontier", rf"glm-{_V}"), ("fast", rf"glm-{_V}-flashx?")),
    "cohere": (
        ("frontier", r"command-a-\d\d-(\d{4})"),
        ("fast", r"command-r7b-\d\d-(\d{4})"),
        ("fast", rf"embed-v{_V}"),
    ),
    "perplexity": (("frontier", r"sonar-pro"), ("fast", r"sonar")),
    "groq": (("fast", r"openai/gpt-oss-120b"), ("fast", r"openai/gpt-oss-20b"), ("fast", rf"llama-{_V}-8b-instant")),
    "cerebras": (("fast", r"gpt-oss-120b"), ("fast", rf"qwen-{_V}-\d+b")),
    "together": (
        ("frontier", rf"zai-org/GLM-{_V}"),
        ("fast", rf"deepseek-ai/DeepSeek-V{_V}-Flash"),
        ("fast", r"openai/gpt-oss-120b"),
    ),
    "fireworks": (
        ("frontier", r"accounts/fireworks/models/glm-(\d+)p(\d+)"),
        ("fast", r"accounts/fireworks/models/deepseek-v(\d+)(?:p(\d+))?-flash"),
        ("fast", r"accounts/fireworks/models/gpt-oss-120b"),
    ),
    "openrouter": (
        ("frontier", rf"anthropic/claude-opus-{_V}"),
        ("frontier", rf"openai/gpt-{_V}(?:-sol)?"),
        ("fast", rf"google/gemini-{_V}-flash"),
        ("fast", rf"openai/gpt-{_V}-(?:luna|nano)"),
    ),
}
# Made for something else than answering text with text.
_SPECIAL = re.compile(r"audio|image|tts|live|realtime|transcri|whisper|ocr|guard|search|voice|instruct|moderation|:")


def newest(provider: str) -> list[tuple[str, str]]:
    """`(tier, name)` of the provider's models to take: the newest of each slot, each once."""
    current = [row for row in prices.listed(provider) if not row.deprecated]
    chosen: dict[str, str] = {}
    for tier, pattern in _SLOTS.get(provider, ()):
        matches = [
            (tuple(float(number or 0) for number in found.groups()), name)
            for row in current
            for name in row.names
            if (found := re.fullmatch(pattern, name)) and prices.price_of(provider, name) is not None
        ]
        if matches:
            name = max(matches, key=lambda match: match[0])[1]
            chosen.setdefault(name, tier)
    return [(tier, name) for name, tier in chosen.items()] or _by_price(provider, current)


def _by_price(provider: str, current: list[prices.Listed]) -> list[tuple[str, str]]:
    """The dearest and the cheapest ordinary model: what is left to say when no name is familiar."""
    priced = [
        (price.rows[0].rates.output_tokens, row.names[0])
        for row in current
        if not _SPECIAL.search(row.names[0])
        and not known.is_embedding(row.names[0])
        and (price := prices.price_of(provider, row.names[0])) is not None
    ]
    if not priced:
        return []
    dear, cheap = max(priced)[1], min(priced)[1]
    return [("frontier", dear)] if dear == cheap else [("frontier", dear), ("fast", cheap)]
