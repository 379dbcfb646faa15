"""What is known of model families: what they can do, how strong and how fast they may be expected to be.

Strengths and speeds here are PRIORS: reasoned from public leaderboards' orders of magnitude, list prices and sizes, and
measured by nobody in this house. They let a first install route sensibly; a trained estimator ignores them, and the
owner's own numbers win over all of them. Nothing here is looked up anywhere: it is a table and three formulas.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Literal

import msgspec

from tierwise.core.catalogue import Ability, Kind
from tierwise.core.money import NANO_PER_USD, Price

Tier = Literal["frontier", "fast", "local"]

# A model that nobody here has heard of is believed to write text as it goes, and nothing else.
_TEXT: tuple[Ability, ...] = ("stream",)
_OPEN: tuple[Ability, ...] = ("tools", "json", "schema", "stream")
_SEEING: tuple[Ability, ...] = ("tools", "images", "json", "schema", "stream")
_OPENAI: tuple[Ability, ...] = ("tools", "images", "documents", "json", "schema", "logprobs", "stream")
_OPENAI_REASONING: tuple[Ability, ...] = ("tools", "images", "documents", "json", "schema", "reasoning", "stream")
_CLAUDE_OLD: tuple[Ability, ...] = ("tools", "images", "documents", "stream")
_CLAUDE: tuple[Ability, ...] = ("tools", "images", "documents", "json", "schema", "reasoning", "stream")
_GEMINI: tuple[Ability, ...] = ("tools", "images", "audio", "json", "schema", "reasoning", "stream")
_THINKING: tuple[Ability, ...] = ("tools", "json", "schema", "reasoning", "stream")
# Reasoning models of the first kind: no tools that could be relied upon.
_MUSING: tuple[Ability, ...] = ("json", "reasoning", "stream")


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """Facts and priors of one model. `context_tokens` is a low guess: a price list or the owner knows better."""

    kind: Kind
    abilities: tuple[Ability, ...]
    tier: Tier
    skill: float
    skills: tuple[tuple[str, float], ...]
    context_tokens: int
    max_output_tokens: int
    first_token_ms: int
    tokens_per_second: float


class _Family(msgspec.Struct, frozen=True, kw_only=True):
    """A row: names that match anywhere in the lower-case name; the first row that matches is the family."""

    pattern: str
    abilities: tuple[Ability, ...] = _OPEN
    tier: Tier | None = None  # None: from the skill
    skill: float | None = None  # None: from the size in the name, else from the price
    skills: tuple[tuple[str, float], ...] = ()
    context_tokens: int = 32_000
    max_output_tokens: int = 8_192
    slow_start: float = 1.0  # multiplies the first token's time: those that think before they speak


def _family(pattern: str, **facts: object) -> _Family:
    return msgspec.convert({"pattern": pattern, **facts}, _Family)


_GPT = {"context_tokens": 128_000, "max_output_tokens": 16_384}
_GPT5 = {"abilities": _OPENAI_REASONING, "context_tokens": 400_000, "max_output_tokens": 128_000, "slow_start": 2.0}
_CLAUDE45 = {"abilities": _CLAUDE, "context_tokens": 200_000, "max_output_tokens": 64_000}
_GEM = {"abilities": _GEMINI, "context_tokens": 1_000_000, "max_output_tokens": 65_536}
_WIDE = {"context_tokens": 128_000, "max_output_tokens": 16_384}

# Skill, so that the numbers can be argued with: 0.3 a model that answers small talk, 0.5 a good model of 2024 that runs
# on one GPU, 0.7 the best of early 2025, 0.8 the best of 2026 but for the dearest, 0.9 those. Newer generations of a
# family fall into its last, open row, so that a name of next year is taken for at least this year's.
_FAMILIES: tuple[_Family, ...] = (
    # OpenAI
    _family(r"gpt-oss-safeguard|llama-guard|prompt-guard", abilities=_TEXT, tier="fast", skill=0.3),
    _family(r"gpt-oss", abilities=_THINKING, tier="fast", context_tokens=131_072, max_output_tokens=32_768),
    _family(
        r"gpt-(3\.5|35)",
        abilities=("tools", "json", "logprobs", "stream"),
        tier="fast",
        skill=0.35,
        context_tokens=16_385,
        max_output_tokens=4_096,
    ),
    _family(r"gpt-4o-mini|gpt-4\.1-nano", abilities=_OPENAI, tier="fast", skill=0.5, **_GPT),
    _family(
        r"gpt-4\.1-mini", abilities=_OPENAI, tier="fast", skill=0.57, context_tokens=1_000_000, max_output_tokens=32_768
    ),
    _family(
        r"gpt-4\.1", abilities=_OPENAI, tier="frontier", skill=0.65, context_tokens=1_000_000, max_output_tokens=32_768
    ),
    _family(r"gpt-4o|chatgpt-4o|gpt-4\.5", abilities=_OPENAI, tier="frontier", skill=0.62, **_GPT),
    _family(r"gpt-4", abilities=_OPENAI, tier="frontier", skill=0.58, context_tokens=8_192, max_output_tokens=4_096),
    _family(
        r"(^|/)o[1-9](-mini|-preview)",
        abilities=_THINKING,
        tier="fast",
        skill=0.66,
        context_tokens=128_000,
        max_output_tokens=65_536,
        slow_start=4.0,
        skills=(("reasoning", 0.72),),
    ),
    _family(
        r"(^|/)o[1-9]($|-)",
        abilities=_OPENAI_REASONING,
        tier="frontier",
        skill=0.74,
        context_tokens=200_000,
        max_output_tokens=100_000,
        slow_start=5.0,
        skills=(("reasoning", 0.8),),
    ),
    _family(r"gpt-(\d[\d.]*)-pro", tier="frontier", skill=0.88, **{**_GPT5, "slow_start": 20.0}),
    _family(r"gpt-5(\.\d)?-nano", tier="fast", skill=0.54, **_GPT5),
    _family(r"gpt-5(\.\d)?-(codex-)?mini", tier="fast", skill=0.66, **_GPT5),
    _family(r"gpt-\d[\d.]*-(luna|nano)", tier="fast", skill=0.66, **_GPT5),
    _family(r"gpt-\d[\d.]*-(terra|mini)", tier="fast", skill=0.76, **_GPT5),
    _family(r"gpt-5(\.[0-4])?($|-)", tier="frontier", skill=0.79, **_GPT5),
    _family(r"gpt-\d[\d.]*-astra", tier="frontier", skill=0.92, **_GPT5),
    _family(r"gpt-\d", tier="frontier", skill=0.86, **_GPT5),
    # Anthropic
    _family(
        r"claude-(3-haiku|v1|2|instant)",
        abilities=_CLAUDE_OLD,
        tier="fast",
        skill=0.42,
        context_tokens=100_000,
        max_output_tokens=4_096,
    ),
    _family(r"claude-3[-.]5-haiku", abilities=_CLAUDE_OLD, tier="fast", skill=0.52, context_tokens=200_000),
    _family(
        r"claude-3", abilities=_CLAUDE_OLD, tier="frontier", skill=0.66, context_tokens=200_000, skills=(("code", 0.7),)
    ),
    _family(r"claude.*haiku-4|claude.*-4.*haiku", tier="fast", skill=0.66, **_CLAUDE45),
    _family(r"claude.*haiku", tier="fast", skill=0.7, **_CLAUDE45),
    _family(r"claude.*sonnet-4|claude.*-4.*sonnet", tier="frontier", skill=0.76, skills=(("code", 0.8),), **_CLAUDE45),
    _family(r"claude.*sonnet", tier="frontier", skill=0.82, skills=(("code", 0.85),), **_CLAUDE45),
    _family(r"claude.*opus-4|claude.*-4.*opus", tier="frontier", skill=0.82, skills=(("code", 0.86),), **_CLAUDE45),
    _family(r"claude.*(opus|fable|mythos)", tier="frontier", skill=0.88, skills=(("code", 0.9),), **_CLAUDE45),
    # Google
    _family(r"gemma", abilities=("images", "json", "stream"), tier="fast", **_WIDE),
    _family(r"gemini-(1|flash-1|2\.0).*(flash|8b)", tier="fast", skill=0.48, **{**_GEM, "max_output_tokens": 8_192}),
    _family(r"gemini-(1|pro|2\.0)", tier="frontier", skill=0.58, **{**_GEM, "max_output_tokens": 8_192}),
    _family(r"gemini-2.*flash-lite", tier="fast", skill=0.54, **_GEM),
    _family(r"gemini.*flash-lite", tier="fast", skill=0.64, **_GEM),
    _family(r"gemini-2.*flash", tier="fast", skill=0.64, slow_start=1.5, **_GEM),
    _family(r"gemini.*flash", tier="fast", skill=0.74, slow_start=1.5, **_GEM),
    _family(r"gemini-2.*pro", tier="frontier", skill=0.76, slow_start=3.0, **_GEM),
    _family(r"gemini", tier="frontier", skill=0.85, slow_start=3.0, **_GEM),
    # Mistral
    _family(r"mistral-(embed|ocr)|voxtral", abilities=_TEXT, tier="fast", skill=0.2),
    _family(r"codestral|devstral", tier="fast", skill=0.5, skills=(("code", 0.66),), **_WIDE),
    _family(r"magistral", abilities=_THINKING, tier="fast", skill=0.62, slow_start=3.0, **_WIDE),
    _family(r"mistral-large", abilities=_SEEING, tier="frontier", skill=0.7, **_WIDE),
    _family(r"mistral-medium", abilities=_SEEING, tier="frontier", skill=0.67, **_WIDE),
    _family(r"mistral-small|pixtral", abilities=_SEEING, tier="fast", skill=0.55, **_WIDE),
    _family(r"ministral", abilities=_OPEN, tier="fast", **_WIDE),
    _family(r"mixtral|mistral|open-mi", abilities=("tools", "json", "stream"), tier="fast"),
    # xAI
    _family(
        r"grok.*(mini|code-fast|build)",
        abilities=_THINKING,
        tier="fast",
        skill=0.64,
        context_tokens=131_072,
        max_output_tokens=32_768,
        skills=(("code", 0.68),),
    ),
    _family(
        r"grok.*fast",
        abilities=(*_SEEING, "reasoning"),
        tier="fast",
        skill=0.68,
        context_tokens=256_000,
        max_output_tokens=32_768,
    ),
    _family(r"grok-[23]", tier="frontier", skill=0.68, context_tokens=131_072, max_output_tokens=32_768),
    _family(
        r"grok",
        abilities=(*_SEEING, "reasoning"),
        tier="frontier",
        skill=0.8,
        context_tokens=256_000,
        max_output_tokens=32_768,
        slow_start=3.0,
    ),
    # open weights
    _family(r"distill", abilities=_MUSING, slow_start=5.0),
    _family(
        r"deepseek.*(r1|reasoner)",
        abilities=_MUSING,
        tier="frontier",
        skill=0.7,
        context_tokens=64_000,
        max_output_tokens=32_768,
        slow_start=5.0,
        skills=(("reasoning", 0.76),),
    ),
    _family(r"deepseek.*flash", abilities=_THINKING, tier="fast", skill=0.7, **_WIDE),
    _family(r"deepseek.*pro", abilities=_THINKING, tier="frontier", skill=0.8, **_WIDE),
    _family(r"deepseek", tier="frontier", skill=0.68, context_tokens=64_000, max_output_tokens=8_192),
    _family(r"kimi.*(k2|highspeed)", tier="frontier", skill=0.74, **_WIDE),
    _family(r"kimi|moonshot", abilities=_THINKING, tier="frontier", skill=0.82, slow_start=2.0, **_WIDE),
    _family(r"glm.*(air|flash)", abilities=_THINKING, tier="fast", skill=0.64, **_WIDE),
    _family(r"glm", abilities=_THINKING, tier="frontier", skill=0.76, **_WIDE),
    _family(r"qw[qe].*(max|plus|480b|397b|235b|2\.4t)", tier="frontier", skill=0.75, **_WIDE),
    _family(r"qwen.*vl|llava|vision", abilities=("images", "json", "stream"), context_tokens=32_000),
    _family(r"qwq|-thinking", abilities=_MUSING, slow_start=5.0),
    _family(r"qwen", **_WIDE),
    _family(r"llama-?4", abilities=_SEEING, **_WIDE),
    _family(r"llama-?2|vicuna|alpaca", abilities=_TEXT, skill=0.3, context_tokens=4_096, max_output_tokens=2_048),
    _family(r"llama-?3-|llama-?3:", abilities=("json", "stream"), context_tokens=8_192, max_output_tokens=4_096),
    _family(r"llama", abilities=("tools", "json", "stream"), **_WIDE),
    _family(r"phi-?[34]", abilities=("json", "stream"), context_tokens=16_000, max_output_tokens=4_096),
    _family(r"minimax", abilities=_THINKING, tier="fast", skill=0.7, **_WIDE),
    _family(r"command-(a|r-plus)", tier="frontier", skill=0.62, **_WIDE),
    _family(r"command", tier="fast", skill=0.5, **_WIDE),
    _family(r"sonar.*(pro|reasoning|research)", abilities=_TEXT, tier="frontier", skill=0.68, **_WIDE),
    _family(r"sonar", abilities=_TEXT, tier="fast", skill=0.58, **_WIDE),
)

# Providers whose hardware, not whose models, makes them fast: tokens per second, first token in milliseconds.
_FAST_HARDWARE: dict[str, tuple[float, int]] = {"cerebras": (1_200.0, 250), "groq": (350.0, 250)}
_SPEED: dict[Tier, tuple[float, int]] = {"frontier": (60.0, 900), "fast": (130.0, 450)}


# What these servers add to every model they run: output held to a grammar, and the odds of each token.
_SERVER_ABILITIES: dict[str, tuple[Ability, ...]] = {
    "ollama": ("json", "schema"),
    "lmstudio": ("json", "schema"),
    "llamacpp": ("json", "schema", "logprobs"),
    "vllm": ("json", "schema", "logprobs"),
}


def describe(provider: str, name: str, price: Price | None = None, *, local: bool = False) -> Known:
    """What to believe of this model until the owner or a trained estimator says better. Never fails."""
    kind: Kind = "embedding" if is_embedding(name) else "chat"
    family = _family_of(name)
    size = billions(name)
    skill = family.skill
    # What runs at home is often a small copy under a great name: there the size says more than the family.
    if size is not None and (skill is None or local):
        skill = skill_of_size(size)
    elif skill is None:
        skill = skill_of_price(price)
    added = _SERVER_ABILITIES.get(provider, ())
    tier: Tier = "local" if local else family.tier or ("frontier" if skill >= 0.68 else "fast")
    speed, first_token_ms = _FAST_HARDWARE.get(provider) or (_local_speed(size) if tier == "local" else _SPEED[tier])
    return Known(
        kind=kind,
        abilities=() if kind == "embedding" else tuple(dict.fromkeys((*family.abilities, *added))),
        tier=tier,
        skill=round(skill, 2),
        skills=() if local else family.skills,
        context_tokens=8_192 if kind == "embedding" or local else family.context_tokens,
        max_output_tokens=1 if kind == "embedding" else 4_096 if local else family.max_output_tokens,
        first_token_ms=int(first_token_ms * family.slow_start),
        tokens_per_second=speed,
    )


_EMBEDDING = re.compile(r"embed|(^|[-_/])(bge|gte|e5|voyage|all-minilm|jina-emb)[-_]")


def is_embedding(name: str) -> bool:
    """Whether a name says that this model makes vectors and no text."""
    return _EMBEDDING.search(name.lower()) is not None


_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d{1,2})x)?(\d{1,4}(?:\.\d{1,2})?)([bt])(?![a-z0-9])")


def billions(name: str) -> float | None:
    """The parameters that a name tells, in billions: `llama3.2:3b` 3, `mixtral-8x7b` 56, `qwen3-235b-a22b` 235."""
    found = _SIZE.search(name.lower())
    if found is None:
        return None
    times, number, unit = found.groups()
    return float(number) * int(times or 1) * (1_000 if unit == "t" else 1)


def skill_of_size(size_billions: float) -> float:
    """A prior that grows by 0.17 with each tenfold size: 1B 0.24, 8B 0.39, 70B 0.55, 400B 0.68."""
    return min(0.8, max(0.1, 0.24 + 0.17 * math.log10(max(size_billions, 0.01))))


def skill_of_price(price: Price | None) -> float:
    """A prior that grows by 0.15 with each tenfold output price: 0.1 USD per million 0.4, 1 USD 0.55, 10 USD 0.7.

    What providers dare to ask is the market's opinion of a model. The last row without a condition on hour, length or
    service is asked, that is the newest. Unpriced: 0.4.
    """
    plain = [
        row.rates.output_tokens
        for row in (price.rows if price is not None else ())
        if row.service == "standard" and row.above_prompt_tokens < 0 and row.from_minute is None
    ]
    if not plain or plain[-1] <= 0:
        return 0.4
    return min(0.9, max(0.2, 0.55 + 0.15 * math.log10(plain[-1] / NANO_PER_USD)))


def _local_speed(size: float | None) -> tuple[float, int]:
    # Writing is bound by memory: on a desktop some 200 GB/s pass over the half byte to byte that a parameter takes.
    size = 8.0 if size is None else size
    return max(1.0, round(250.0 / (size + 2.0), 1)), int(200 + 40 * size)


@cache
def _family_of(name: str) -> _Family:
    lowered = name.lower()
    return next((row for row in _FAMILIES if re.search(row.pattern, lowered)), _UNKNOWN)


# A name that nobody here knows stands in an owner's file because its server works with today's clients. To doubt its
# tools and formats would refuse requests that it serves; what it cannot do, the owner says with `abilities`.
_UNKNOWN = _Family(
    pattern="", abilities=("tools", "json", "schema", "stream"), context_tokens=32_768, max_output_tokens=16_384
)
