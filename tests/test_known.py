"""Models and catalogues from names: what is known of a family, what the owner says, and that the parts fit."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

from tierwise.core.catalogue import Model, Provider
from tierwise.core.money import Price
from tierwise.providers import known, prices
from tierwise.providers.current import newest
from tierwise.providers.discover import build_model, from_parts
from tierwise.providers.table import ENV_KEYS, PRICE_IDS, PROVIDERS

# ------------------------------------------------------------------------------------------------ building

ACME = Provider(name="acme", wire="openai", base_url="http://127.0.0.1:9000/v1")


def test_the_owners_word_wins_over_everything_known() -> None:
    price = prices.owner_price(input_usd_per_mtok=1, output_usd_per_mtok=2)
    model = build_model(
        PROVIDERS["openai"],
        "gpt-5-mini",
        tier="odd",
        price=price,
        context_tokens=1_000,
        max_output_tokens=10,
        abilities=("tools",),
        skill=0.11,
        skills=(("code", 0.2),),
        kind="embedding",
        first_token_ms=7,
        tokens_per_second=8.0,
        local=True,
    )
    assert model == Model(
        id="openai/gpt-5-mini", provider="openai", name="gpt-5-mini", tier="odd", kind="embedding", price=price,
        context_tokens=1_000, max_output_tokens=10, abilities=("tools",), skill=0.11, skills=(("code", 0.2),),
        first_token_ms=7, tokens_per_second=8.0, local=True,
    )  # fmt: skip


def test_a_known_name_brings_its_price_context_and_abilities_and_an_unknown_one_is_unpriced() -> None:
    mini = build_model(PROVIDERS["openai"], "gpt-5-mini")
    assert mini.price == prices.price_of("openai", "gpt-5-mini")
    assert (mini.tier, mini.context_tokens) == ("fast", 400_000)
    assert {"tools", "images", "schema", "stream"} <= set(mini.abilities)
    small = build_model(ACME, "small")
    assert (small.price, small.abilities, small.id) == (None, ("tools", "json", "schema", "stream"), "acme/small")
    assert build_model(PROVIDERS["ollama"], "llama3.2:3b").price is None  # only the owner can call it free
    assert build_model(PROVIDERS["ollama"], "llama3.2:3b").tier == "local"
    assert build_model(ACME, "x", context_tokens=500).max_output_tokens == 500


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"skill": 1.1}, "skill"),
        ({"skill": math.nan}, "skill"),
        ({"skills": (("code", -0.1),)}, r"skills\.code"),
        ({"tokens_per_second": 0.0}, "tokens_per_second"),
        ({"tokens_per_second": math.inf}, "tokens_per_second"),
        ({"context_tokens": -1}, "context_tokens"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"context_tokens": 0}, "context_tokens"),
        ({"first_token_ms": -1}, "first_token_ms"),
    ],
)
def test_a_number_that_cannot_be_is_refused_by_name(facts: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_model(ACME, "small", **facts)


def _parts(*tiers: str) -> dict[str, Model]:
    price = prices.owner_price(input_usd_per_mtok=1, output_usd_per_mtok=2)
    models = [build_model(ACME, f"m{n}", tier=tier, price=price) for n, tier in enumerate(tiers)]
    return {model.id: model for model in models}


def test_tiers_that_nobody_ordered_go_from_the_dearest_to_the_cheapest() -> None:
    def priced(tier: str, usd: int) -> Model:
        price = prices.owner_price(input_usd_per_mtok=usd, output_usd_per_mtok=usd)
        return build_model(ACME, tier, tier=tier, price=price)

    models = [priced("tiny", 1), priced("fast", 30), priced("huge", 40), priced("frontier", 20), priced("mid", 25)]
    catalogue = from_parts({"acme": ACME}, {model.id: model for model in models})
    assert catalogue.tiers == ("huge", "frontier", "mid", "fast", "tiny")
    assert catalogue.baseline == "acme/huge"


def test_the_baseline_is_the_first_of_the_dearest_tier_unless_the_owner_names_one() -> None:
    models = _parts("fast", "frontier", "frontier")
    catalogue = from_parts({"acme": ACME}, models)
    assert (catalogue.baseline, catalogue.reliable) == ("acme/m1", "acme/m1")
    catalogue = from_parts({"acme": ACME}, models, baseline="acme/m2", reliable="acme/m0", unpriced="allow")
    assert (catalogue.baseline, catalogue.reliable, catalogue.unpriced) == ("acme/m2", "acme/m0", "allow")


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"baseline": "acme/m11"}, "did you mean 'acme/m1'"),
        ({"reliable": "nothing"}, "reliable: no model"),
        ({"tiers": ("fast",)}, "no tier 'frontier'"),
        ({"providers": {"acne": ACME}}, "did you mean 'acne'"),
        ({"models": {}}, "at least one model"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_the_nearest_name(facts: dict[str, Any], says: str) -> None:
    parts = {"providers": {"acme": ACME}, "models": _parts("fast", "frontier")} | facts
    with pytest.raises(ValueError, match=says):
        from_parts(**parts)


# ------------------------------------------------------------------------------------------------ what is known


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("llama3.2:3b", 3),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5),
        ("mixtral-8x7b-32768", 56),
        ("qwen3-235b-a22b", 235),
        ("Qwen/Qwen3.8-2.4T-A95B", 2_400),
        ("meta-llama/Llama-3.3-70B-Instruct-Turbo", 70),
        ("gpt-4.1-mini", None),
        ("claude-3-5-haiku-20241022", None),
        ("phi-3-mini-4k-instruct", None),
    ],
)
def test_sizes_are_read_from_names(name: str, size: float | None) -> None:
    assert known.billions(name) == size


@pytest.mark.parametrize("weaker_first", [
    ["gpt-3.5-turbo", "gpt-4o-mini", "gpt-4o", "gpt-5", "gpt-6.1-sol", "gpt-6-astra"],
    ["gpt-6-luna", "gpt-6.1-terra", "gpt-6.1-sol"],
    ["claude-3-haiku-20240307", "claude-haiku-4-5", "claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"],
    ["gemini-2.0-flash-lite", "gemini-2.5-flash-lite", "gemini-2.5-flash", "gemini-2.5-pro", "gemini-4-argon"],
    ["llama3.2:1b", "llama3.2:3b", "llama-3.1-8b-instant", "llama-3.3-70b-versatile"],
    ["mistral:7b", "mistral-small-2603", "mistral-large-4"],
])  # fmt: skip
def test_priors_order_a_family_as_its_maker_does(weaker_first: list[str]) -> None:
    skills = [known.describe("x", name).skill for name in weaker_first]
    assert all(below < above for below, above in pairwise(skills)), list(zip(weaker_first, skills, strict=True))


def test_a_dearer_unknown_model_is_believed_stronger_and_not_to_see() -> None:
    def described(usd: float) -> known.Known:
        price: Price = prices.owner_price(input_usd_per_mtok=1, output_usd_per_mtok=usd)
        return known.describe("acme", "mystery", price)

    found = [described(usd) for usd in (0.1, 1, 10, 100)]
    assert [one.skill for one in found] == [0.4, 0.55, 0.7, 0.85]
    assert [one.tier for one in found] == ["fast", "fast", "frontier", "frontier"]
    assert {one.abilities for one in found} == {("tools", "json", "schema", "stream")}
    assert known.describe("acme", "mystery").skill == 0.4


def test_a_small_copy_under_a_great_name_is_not_taken_for_the_great_one() -> None:
    assert known.describe("ollama", "deepseek-r1:8b", local=True).skill < 0.45
    assert known.describe("groq", "deepseek-r1-distill-llama-70b").skill < known.describe("x", "deepseek-r1").skill


def test_embedding_models_are_told_from_chat_models() -> None:
    for name in ("text-embedding-3-small", "nomic-embed-text", "BAAI/bge-m3", "mistral-embed", "intfloat/e5-large-v2"):
        assert known.describe("x", name).kind == "embedding"
    for name in ("gpt-5", "mistral-small-2603", "gemma3:4b", "llama3.2:3b", "phi4"):
        assert known.describe("x", name).kind == "chat"


def test_every_listed_model_is_described_within_bounds() -> None:
    for provider in PRICE_IDS:
        for row in prices.listed(provider):
            name = row.names[0]
            model = build_model(PROVIDERS[provider], name)
            assert 0 < model.skill <= 1
            assert 0 < model.max_output_tokens <= model.context_tokens
            assert model.kind == "embedding" or "stream" in model.abilities


@pytest.mark.parametrize("provider", sorted(set(ENV_KEYS) - {"azure"}))
def test_every_kind_of_a_provider_is_found_by_its_name_and_not_by_its_price(provider: str) -> None:
    """When this fails after an update of the price list, names have changed: look at the provider's row."""
    from tierwise.providers.current import _SLOTS

    assert len(newest(provider)) == len(_SLOTS[provider])


def test_a_provider_whose_names_are_all_new_is_served_by_price(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierwise.providers.current._SLOTS", {})
    for provider in set(ENV_KEYS) - {"azure"}:
        found = dict(newest(provider))
        rates = {tier: prices.price_of(provider, name) for tier, name in found.items()}
        assert "frontier" in rates
        if rates.get("fast"):
            assert rates["fast"].rows[0].rates.output_tokens < rates["frontier"].rows[0].rates.output_tokens


def test_the_newest_is_the_highest_number_that_is_priced_and_not_deprecated(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [prices.Listed((name,), name == "grok-30", None) for name in ("grok-9", "grok-10", "grok-9.9", "grok-30")]
    rows.append(prices.Listed(("grok-20",), False, None))
    free = prices.free_price("test")
    monkeypatch.setattr("tierwise.providers.prices.listed", lambda provider: tuple(rows))
    monkeypatch.setattr("tierwise.providers.prices.price_of", lambda _, name: None if name == "grok-20" else free)
    assert newest("xai") == [("frontier", "grok-10")]


def test_a_version_counts_as_a_decimal_as_its_maker_counts() -> None:
    assert "grok-4.20" not in [name for _, name in newest("xai")]  # 4.2, older than 4.7
