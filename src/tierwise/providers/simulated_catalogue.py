"""The models that the simulated provider serves: rows only. What they answer is in `simulated_mind`."""

from __future__ import annotations

from tierwise.core.catalogue import Ability, Model, Provider
from tierwise.core.money import Price, PriceRow, Rates

_NANO_PER_CENT = 10_000_000
_CHAT: tuple[Ability, ...] = ("tools", "images", "json", "schema", "logprobs", "stream")


def simulated_catalogue() -> tuple[Provider, tuple[Model, ...]]:
    """The provider and its models, dearest first: three chat tiers and one embedding model.

    Prices stand to each other as list prices did in 2026 (3/15, 0.25/1.25 and 0.02/0.06 USD per million input/output
    tokens). Nobody bills them; they are there so that budgets, savings and routes can be seen at work. Latencies are
    short, so that a demonstration is pleasant: the first token after 300, 130 and 50 ms.
    """
    provider = Provider(name="simulated", wire="simulated", auth="none")
    large = _model(
        "large",
        "frontier",
        price=_price(300, 1500, cached=30, written=375),
        abilities=(*_CHAT, "documents", "reasoning"),
        context_tokens=200_000,
        max_output_tokens=32_768,
        skill=0.93,
        skills=_skills(0.99, 0.97, 0.96, 0.94, 0.94, 0.93, 0.95, 0.92, 0.96, 0.95),
        first_token_ms=300,
        tokens_per_second=90.0,
    )
    medium = _model(
        "medium",
        "fast",
        price=_price(25, 125, cached=2.5, written=31.25),
        abilities=_CHAT,
        context_tokens=128_000,
        max_output_tokens=16_384,
        skill=0.72,
        skills=_skills(0.98, 0.88, 0.85, 0.80, 0.82, 0.68, 0.66, 0.70, 0.85, 0.78),
        first_token_ms=130,
        tokens_per_second=170.0,
    )
    small = _model(
        "small",
        "local",
        price=_price(2, 6, cached=1, written=2),
        abilities=("tools", "json", "schema", "logprobs", "stream"),
        context_tokens=32_000,
        max_output_tokens=8_192,
        skill=0.42,
        skills=_skills(0.96, 0.66, 0.62, 0.58, 0.52, 0.32, 0.36, 0.44, 0.60, 0.42),
        first_token_ms=50,
        tokens_per_second=240.0,
        local=True,
    )
    embedding = _model(
        "embedding",
        "embedding",
        kind="embedding",
        price=_price(2, 0),
        context_tokens=8_192,
        max_output_tokens=0,
        skill=0.5,
        first_token_ms=20,
        local=True,
    )
    return provider, (large, medium, small, embedding)


def _model(name: str, tier: str, **others: object) -> Model:
    return Model(id=f"simulated/{name}", provider="simulated", name=name, tier=tier, **others)  # type: ignore[arg-type]


def _price(input_cents: int, output_cents: int, cached: float | None = None, written: float | None = None) -> Price:
    """Cents per million tokens as a price."""
    others = {"cached_input_tokens": cached, "cache_write_5m_tokens": written}
    rates = Rates.of(
        input_cents * _NANO_PER_CENT,
        output_cents * _NANO_PER_CENT,
        **{name: round(cents * _NANO_PER_CENT) for name, cents in others.items() if cents is not None},
    )
    return Price(rows=(PriceRow(rates=rates),), source="simulated")


def _skills(*values: float) -> tuple[tuple[str, float], ...]:
    tasks = (
        "greeting",
        "extraction",
        "classification",
        "summarisation",
        "translation",
        "code",
        "reasoning",
        "creative",
        "moderation",
        "tool_use",
    )
    return tuple(zip(tasks, values, strict=True))
