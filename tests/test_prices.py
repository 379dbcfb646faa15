"""Prices: our integers charge what genai-prices calculates, to the nano-dollar, for every model that we price."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tierwise.core.money import NANO_PER_USD, TOKENS_PER_PRICE, Rates, Service, Usage, cost_nano
from tierwise.providers import prices
from tierwise.providers.known import is_embedding
from tierwise.providers.prices import gpu_hour_price, owner_price, price_of
from tierwise.providers.table import PRICE_IDS

PROVIDERS = sorted(PRICE_IDS)
# What genai-prices is told of each service; written out here again, so that a slip in the code shows.
CONTEXTS: dict[Service, dict[str, str]] = {
    "standard": {},
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority", "speed": "fast"},
}
SERVICES = tuple(CONTEXTS)


def _info(provider: str, name: str) -> Any:
    from genai_prices.data_snapshot import get_snapshot

    return get_snapshot().find_provider_model(name, None, PRICE_IDS[provider], None)


def _theirs(provider: str, name: str, usage: Usage, at_s: int, service: Service) -> Decimal:
    from genai_prices import Usage as Reported
    from genai_prices import calc_price

    reported = Reported(
        input_tokens=usage.prompt_tokens,
        cache_read_tokens=usage.cached_input_tokens,
        cache_write_tokens=usage.cache_write_5m_tokens + usage.cache_write_1h_tokens,
        cache_write_5m_tokens=usage.cache_write_5m_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        input_audio_tokens=usage.input_audio_tokens,
        cache_audio_read_tokens=0,
        output_tokens=usage.completion_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
        output_audio_tokens=usage.output_audio_tokens,
        output_audio_reasoning_tokens=0,
        web_searches=usage.web_searches,
    )
    return calc_price(
        reported,
        name,
        provider_id=PRICE_IDS[provider],
        genai_request_timestamp=datetime.fromtimestamp(at_s, UTC),
        price_context=CONTEXTS[service] or None,
    ).total_price


def _numbers(provider: str, name: str) -> list[Decimal]:
    _, info = _info(provider, name)
    found: list[Decimal] = []
    for one in prices._every_price(info):
        for value in vars(one).values():
            if value is not None:
                found += [value] if isinstance(value, Decimal) else [value.base, *(tier.price for tier in value.tiers)]
    return found


def _is_rounded(provider: str, name: str) -> bool:
    """Whether a rate has more decimals than nano-dollars per million tokens can say."""
    return any(Fraction(number) * NANO_PER_USD % 1 for number in _numbers(provider, name))


def _priced(provider: str) -> list[str]:
    names = {row.names[0] for row in prices.listed(provider)}
    if provider == "azure":  # lends its models from others
        names |= {"gpt-5-mini", "claude-haiku-4-5", "deepseek-v3.2"}
    return sorted(name for name in names if price_of(provider, name) is not None)


def _check(provider: str, name: str, usage: Usage, at_s: int, service: Service) -> None:
    price = price_of(provider, name)
    assert price is not None
    ours = cost_nano(usage, price.rates(at_s, usage.prompt_tokens, service))
    theirs = math.ceil(_theirs(provider, name, usage, at_s, service) * NANO_PER_USD)
    where = f"{provider}/{name} {usage} {datetime.fromtimestamp(at_s, UTC)} {service}"
    if _is_rounded(provider, name):
        tokens = usage.prompt_tokens + usage.completion_tokens
        assert theirs <= ours <= theirs + 1 + tokens // TOKENS_PER_PRICE, where
    else:
        assert ours == theirs, where


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_model_costs_to_the_nano_dollar_what_genai_prices_says(provider: str) -> None:
    """For usages, times and services that hypothesis chooses, each tried on every priced model of the provider."""
    names = _priced(provider)
    assert names
    tokens = st.integers(0, 400_000)
    usages = st.builds(
        Usage,
        input_tokens=tokens,
        cached_input_tokens=tokens,
        cache_write_5m_tokens=tokens,
        cache_write_1h_tokens=tokens,
        input_audio_tokens=tokens,
        output_tokens=tokens,
        reasoning_tokens=tokens,
        output_audio_tokens=tokens,
        web_searches=st.integers(0, 9),
    )
    instants = st.integers(
        int(datetime(2024, 6, 1, tzinfo=UTC).timestamp()), int(datetime(2027, 6, 1, tzinfo=UTC).timestamp())
    )

    @settings(
        max_examples=8 if provider == "openrouter" else 40,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(usages, instants, st.sampled_from(SERVICES))
    def compare(usage: Usage, at_s: int, service: Service) -> None:
        for name in names:
            _check(provider, name, usage, at_s, service)

    compare()


def _turns(name: str, provider: str) -> Iterator[int]:
    """Instants on both sides of every moment at which this model's price changes."""
    _, info = _info(provider, name)
    moments = prices._moments(info)
    assert moments is not None
    for moment in moments:
        when = int(moment.when.timestamp())
        yield from (when - 1, when)
        if moment.from_day is not None:  # and the same hours a year on
            yield from (when + 365 * 86_400 - 1, when + 365 * 86_400)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_prices_turn_at_the_same_instant_and_the_same_token(provider: str) -> None:
    """On both sides of every date, hour and prompt length that matters, for every service: combinations included."""
    compared = 0
    for name in _priced(provider):
        price = price_of(provider, name)
        assert price is not None
        if len(price.rows) == 1:
            continue
        lengths = {1} | {above + more for row in price.rows for above in [row.above_prompt_tokens] for more in (0, 1)}
        for at_s in set(_turns(name, provider)):
            for length in lengths - {-1, 0}:
                for service in SERVICES:
                    usage = Usage(input_tokens=length - 1, cached_input_tokens=1, output_tokens=1_000)
                    _check(provider, name, usage, at_s, service)
                    compared += 1
    print(f"{provider}: {compared} turns compared")


@pytest.mark.parametrize("provider", [provider for provider in PROVIDERS if provider != "openrouter"])
def test_no_model_can_be_billed_above_its_dearest_price(provider: str) -> None:
    day = timedelta(days=1)
    for name in _priced(provider):
        price = price_of(provider, name)
        assert price is not None
        for at_s in set(_turns(name, provider)) if len(price.rows) > 1 else ():
            for service in SERVICES:
                dearest = price.dearest(at_s, 500_000, service)
                for later_s in range(0, int(day.total_seconds()), 1_800):
                    for length in (1, 250_000, 500_000):
                        billed = price.rates(at_s + later_s, length, service)
                        assert all(getattr(dearest, one) >= getattr(billed, one) for one in Rates.__struct_fields__)


REPRESENTED = prices._PRICED | set(prices._COUNTED_AS) | prices._UNSEEN_FEES


def test_a_model_without_a_price_has_a_reason_and_all_others_have_one() -> None:
    """Unpriced: nothing listed, priced in what no bucket counts, or half a price. Prints the coverage."""
    for provider in PROVIDERS:
        rows = prices.listed(provider)
        unpriced = [row.names[0] for row in rows if price_of(provider, row.names[0]) is None]
        for name in unpriced:
            every = prices._every_price(_info(provider, name)[1])
            keys = {key for one in every for key in prices._set_keys(one)}
            no_token_price = any("input_mtok" not in prices._set_keys(one) for one in every[:1])
            no_output = "output_mtok" not in keys and not is_embedding(name)
            dearer = any(prices._set_keys(one) and prices._rates(name, one, 0) is None for one in every)
            assert no_token_price or no_output or keys - REPRESENTED or dearer, name
        rounded = sum(_is_rounded(provider, name) for name in _priced(provider))
        approximate = sum(bool(prices.gaps(provider, name)) for name in _priced(provider))
        print(
            f"{provider}: {len(rows) - len(unpriced)} of {len(rows)} priced, {rounded} rounded up below a nano-dollar "
            f"per million, {approximate} with fees or token kinds that no bucket counts; "
            f"unpriced: {', '.join(unpriced)}"
        )
        assert len(unpriced) <= len(rows) // 3


@pytest.mark.parametrize(
    ("provider", "name"),
    [
        ("openai", "gpt-5"),
        ("anthropic", "claude-sonnet-4-5-20250929"),
        ("google", "gemini-2.5-flash"),
        ("mistral", "mistral-large-latest"),
        ("deepseek", "deepseek-chat"),
        ("xai", "grok-4"),
        ("groq", "llama-3.3-70b-versatile"),
        ("moonshot", "kimi-k3"),
        ("openrouter", "anthropic/claude-opus-4.5"),
        ("fireworks", "accounts/fireworks/models/glm-5p3"),
    ],
)
def test_names_that_people_use_have_a_price(provider: str, name: str) -> None:
    assert price_of(provider, name) is not None


@pytest.mark.parametrize(
    ("provider", "name"),
    [("openai", "whisper-1"), ("openai", "gpt-nonsense"), ("ollama", "llama3.2:3b"), ("acme", "gpt-5"), ("azure", "x")],
)
def test_what_the_list_does_not_price_in_tokens_is_unpriced_and_not_zero(provider: str, name: str) -> None:
    assert price_of(provider, name) is None


@pytest.mark.parametrize(
    "listed",
    [
        {},
        {"input_mtok": Decimal(0), "output_mtok": Decimal(0)},
        {"input_mtok": Decimal(1)},  # half a price: what it writes would be free
        {"output_mtok": Decimal(1)},
        {"input_mtok": Decimal(1), "output_mtok": Decimal(1), "audio_hours": Decimal(1)},
        {"input_mtok": Decimal(1), "output_mtok": Decimal(1), "input_image_mtok": Decimal(2)},
    ],
    ids=str,
)
def test_half_a_price_or_one_in_other_units_is_no_price(listed: dict[str, Decimal]) -> None:
    from genai_prices.types import ModelPrice

    assert prices._rates("some-chat-model", ModelPrice(**listed), 0) is None
    whole = ModelPrice(input_mtok=Decimal(1), output_mtok=Decimal(1), input_image_mtok=Decimal(1))
    assert prices._rates("some-chat-model", whole, 0) is not None


def test_fast_and_priority_are_the_same_price_wherever_both_are_listed() -> None:
    """So that one service may stand for both names."""
    from genai_prices.data import providers

    for provider in providers:
        for info in provider.models:
            tiers = {one.when.get("service_tier"): one.prices for one in info.price_variants or ()}
            assert "fast" not in tiers or tiers["fast"] == tiers.get("priority"), info.id


def test_a_name_that_says_free_is_free_and_a_paid_one_never_is() -> None:
    assert price_of("openrouter", "google/gemma-4-31b-it:free") is not None
    for provider in PROVIDERS:
        for name in _priced(provider):
            price = price_of(provider, name)
            assert price is not None
            if not name.endswith(":free"):
                assert all(row.rates.input_tokens > 0 for row in price.rows), name


def test_a_dearer_kind_of_token_without_a_bucket_makes_a_model_unpriced_and_a_cheaper_one_is_told() -> None:
    assert price_of("google", "gemini-3-pro-image-preview") is None  # an image token costs ten times a text token
    assert price_of("perplexity", "sonar-deep-research") is not None
    assert prices.gaps("perplexity", "sonar-deep-research") == ("output_citation_mtok",)
    assert prices.gaps("anthropic", "claude-opus-4-5") == ()


# ------------------------------------------------------------------------------------------------ the owner's


def test_the_owners_price_is_taken_to_the_digit() -> None:
    price = owner_price(
        input_usd_per_mtok="0.05",
        output_usd_per_mtok=0.2,
        cached_input_usd_per_mtok=0,
        request_usd=0.001,
        web_search_usd=0.01,
    )
    rates = price.rates(0, 1)
    assert (rates.input_tokens, rates.output_tokens, rates.cached_input_tokens) == (50_000_000, 200_000_000, 0)
    assert rates.reasoning_tokens == rates.output_tokens
    assert cost_nano(Usage(input_tokens=1_000_000, web_searches=2), rates) == (50 + 1 + 20) * 10**6
    assert price.source == "config"


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ({"input_usd_per_mtok": 0.000003, "output_usd_per_mtok": 15}, "free: true|price of one token, write 3"),
        ({"input_usd_per_mtok": 3_000_000, "output_usd_per_mtok": 15}, "more than 10000 USD"),
        ({"input_usd_per_mtok": 3, "output_usd_per_mtok": -15}, "output_usd_per_mtok"),
        ({"input_usd_per_mtok": float("nan"), "output_usd_per_mtok": 1}, "input_usd_per_mtok"),
        ({"input_usd_per_mtok": float("inf"), "output_usd_per_mtok": 1}, "input_usd_per_mtok"),
        ({"input_usd_per_mtok": "three", "output_usd_per_mtok": 1}, "not a number"),
        ({"input_usd_per_mtok": 0, "output_usd_per_mtok": 1}, "free: true"),
        ({"input_usd_per_mtok": 1}, "output_usd_per_mtok is missing"),
        ({"output_usd_per_mtok": 1}, "input_usd_per_mtok is missing"),
        ({}, "missing"),
        ({"free": True, "input_usd_per_mtok": 1}, "contradicts"),
        ({"input_usd_per_mtok": 1, "output_usd_per_mtok": 1, "web_search_usd": 10}, "web_search_usd"),
        ({"input_usd_per_mtok": 1, "output_usd_per_mtok": 1, "request_usd": 1_001}, "request_usd"),
    ],
)  # fmt: skip
def test_a_price_that_is_a_slip_is_refused_in_a_sentence(numbers: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        owner_price(**numbers)


def test_zero_is_a_price_only_when_the_owner_says_free() -> None:
    price = owner_price(free=True)
    assert cost_nano(Usage(input_tokens=10**9, output_tokens=10**9), price.rates(0, 1)) == 0
    assert owner_price(input_usd_per_mtok=0.02, embedding=True).rates(0, 1).output_tokens == 0


# ------------------------------------------------------------------------------------------------ a GPU by the hour


@given(
    st.integers(1, 10_000).map(lambda cents: Decimal(cents) / 100),
    st.integers(100, 20_000),
    st.sampled_from([0.05, 0.3, 0.5, 1.0]),
    st.sampled_from([0.1, 0.25, 1.0]),
)
def test_an_hour_at_the_stated_load_earns_its_rent(
    usd: Decimal, tokens_per_second: int, load: float, weight: float
) -> None:
    """What a full hour writes and reads at that load, at these prices, is the rent; never less."""
    rates = gpu_hour_price(str(usd), tokens_per_second, load, input_weight=weight).rates(0, 1)
    written = Fraction(tokens_per_second) * 3_600 * Fraction(load)
    earned = (
        written / 2 * rates.output_tokens + written / 2 / Fraction(weight) * rates.input_tokens
    ) / TOKENS_PER_PRICE
    rent = Fraction(usd) * NANO_PER_USD
    assert rent <= earned <= rent + written / TOKENS_PER_PRICE * (1 + 1 / Fraction(weight))


@pytest.mark.parametrize(
    ("usd", "tokens_per_second", "load"),
    [
        (0, 100, 1),
        (-1, 100, 1),
        ("nan", 100, 1),
        (2, 0, 1),
        (2, 100, 0),
        (2, 100, 1.1),
        (2, float("nan"), 1),
        (2, 1e-6, 1),
    ],
)
def test_a_rent_that_cannot_be_is_refused(usd: Any, tokens_per_second: float, load: float) -> None:
    with pytest.raises(ValueError, match=r"gpu_hour_usd|tokens_per_second|load"):
        gpu_hour_price(usd, tokens_per_second, load)
