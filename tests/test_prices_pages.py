"""K3: prices as the providers' own pages state them, in dollars a million tokens, each row worked out by hand here.

The list that the prices come from is the same for the other tests of prices, so a mistake in it would not show there.
"""

from __future__ import annotations

from fractions import Fraction

import pytest

from tierwise.core.money import NANO_PER_USD, TOKENS_PER_PRICE, Service, Usage, cost_nano
from tierwise.providers.prices import price_of

AT_S = 1_795_000_000  # November 2026; the list tells no service but the standard one before that October
LONG = 200_000

# docs.anthropic.com, "Pricing": input, cache write for 5 minutes and for an hour, cache hit, output.
ANTHROPIC = {
    "claude-opus-4-1": ("15", "18.75", "30", "1.50", "75"),
    "claude-sonnet-4": ("3", "3.75", "6", "0.30", "15"),
    "claude-sonnet-4-5": ("3", "3.75", "6", "0.30", "15"),
    "claude-haiku-4-5": ("1", "1.25", "2", "0.10", "5"),
    "claude-3-7-sonnet-latest": ("3", "3.75", "6", "0.30", "15"),
    "claude-3-5-haiku-latest": ("0.80", "1", "1.6", "0.08", "4"),
    "claude-3-haiku-20240307": ("0.25", "0.30", "0.50", "0.03", "1.25"),
}
# The same page, "Batch processing".
BATCH = {
    "claude-sonnet-4-5": ("1.50", "7.50"),
    "claude-haiku-4-5": ("0.50", "2.50"),
}
# The same page, "Long context pricing": prompts above 200,000 tokens.
STEP = {"claude-sonnet-4-5": ("6", "22.50")}
# platform.openai.com, "Pricing": input, cached input, output.
OPENAI = {
    "gpt-4o": ("2.50", "1.25", "10"),
    "gpt-4o-mini": ("0.15", "0.075", "0.60"),
    "gpt-4.1": ("2", "0.50", "8"),
    "gpt-4.1-mini": ("0.40", "0.10", "1.60"),
    "gpt-5": ("1.25", "0.125", "10"),
    "gpt-5-mini": ("0.25", "0.025", "2"),
    "o3": ("2", "0.50", "8"),
}
# ai.google.dev, "Gemini API pricing": input and output up to 200,000 tokens of prompt, then above.
GEMINI = {"gemini-2.5-pro": ("1.25", "10", "2.50", "15")}


def charged(provider: str, name: str, usage: Usage, service: Service = "standard") -> int:
    price = price_of(provider, name)
    assert price is not None, f"{provider}/{name} has no price"
    cost = cost_nano(usage, price.rates(AT_S, usage.prompt_tokens, service))
    held = cost_nano(usage, price.dearest(AT_S, usage.prompt_tokens, service))
    assert held >= cost, "what is held is at least what is charged"
    return cost


def by_hand(*parts: tuple[int, str]) -> int:
    """(tokens, dollars a million of them), all exact in nano-dollars."""
    usd = sum((Fraction(tokens) * Fraction(price) for tokens, price in parts), Fraction()) / TOKENS_PER_PRICE
    total = usd * NANO_PER_USD
    assert total.denominator == 1
    return int(total)


@pytest.mark.parametrize("name", ANTHROPIC)
def test_anthropic_with_its_caches(name: str) -> None:
    read, write_5m, write_1h, hit, output = ANTHROPIC[name]
    usage = Usage(
        input_tokens=1_003,
        cache_write_5m_tokens=2_007,
        cache_write_1h_tokens=911,
        cached_input_tokens=30_001,
        output_tokens=457,
        reasoning_tokens=90,
    )
    wanted = by_hand((1_003, read), (2_007, write_5m), (911, write_1h), (30_001, hit), (547, output))
    assert charged("anthropic", name, usage) == wanted


@pytest.mark.parametrize("name", BATCH)
def test_anthropic_in_a_batch(name: str) -> None:
    read, output = BATCH[name]
    usage = Usage(input_tokens=8_000, output_tokens=3_000)
    assert charged("anthropic", name, usage, "batch") == by_hand((8_000, read), (3_000, output))


@pytest.mark.parametrize("name", STEP)
@pytest.mark.parametrize(("cached", "is_long"), [(0, False), (1, True), (150_000, True)])
def test_a_long_prompt_is_dearer_from_its_first_token(name: str, cached: int, is_long: bool) -> None:
    """What was cached counts towards the step: it is the length of the whole prompt that is looked at."""
    usual, step = ANTHROPIC[name], STEP[name]
    usage = Usage(input_tokens=LONG, cached_input_tokens=cached, output_tokens=1_000)
    read, output = step if is_long else (usual[0], usual[4])
    hit = str(Fraction(usual[3]) * (2 if is_long else 1))  # the multiplier of a hit, a tenth, applies on top
    assert charged("anthropic", name, usage) == by_hand((LONG, read), (cached, hit), (1_000, output))


@pytest.mark.parametrize("name", OPENAI)
def test_openai_with_cached_input_and_reasoning(name: str) -> None:
    read, hit, output = OPENAI[name]
    usage = Usage(input_tokens=4_000, cached_input_tokens=12_000, output_tokens=800, reasoning_tokens=1_200)
    assert charged("openai", name, usage) == by_hand((4_000, read), (12_000, hit), (2_000, output))


@pytest.mark.parametrize(("service", "factor"), [("flex", "1/2"), ("batch", "1/2"), ("priority", "2")])
def test_openai_by_service(service: Service, factor: str) -> None:
    """gpt-5: flex and batch are half the price, priority twice."""
    read, _, output = (str(Fraction(usd) * Fraction(factor)) for usd in OPENAI["gpt-5"])
    usage = Usage(input_tokens=4_000, output_tokens=800)
    assert charged("openai", "gpt-5", usage, service) == by_hand((4_000, read), (800, output))


@pytest.mark.parametrize("name", GEMINI)
@pytest.mark.parametrize("more", [0, 1])
def test_gemini_by_length(name: str, more: int) -> None:
    read, output = GEMINI[name][2 * more :][:2]
    usage = Usage(input_tokens=LONG + more, output_tokens=700, reasoning_tokens=300)
    assert charged("google", name, usage) == by_hand((LONG + more, read), (1_000, output))
