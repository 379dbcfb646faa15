"""The models there are, what they cost and what they can do. Plain values: who finds and prices them is elsewhere."""

from __future__ import annotations

import functools
from typing import Literal, get_args

import msgspec

from tierwise.core.money import Price

OutWire = Literal["openai", "anthropic", "simulated"]
Auth = Literal["bearer", "x-api-key", "none"]
Ability = Literal["tools", "images", "audio", "documents", "json", "schema", "logprobs", "reasoning", "stream"]
Kind = Literal["chat", "embedding"]


class Deadlines(msgspec.Struct, frozen=True, omit_defaults=True):
    """How long an upstream may take, in milliseconds. All four hold at once."""

    connect_ms: int = 3_000
    first_token_ms: int = 120_000
    idle_ms: int = 60_000
    total_ms: int = 600_000


class Provider(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row: where a provider is and how it is spoken to. `api_key` is a reference (`env:NAME`), never the key."""

    name: str
    wire: OutWire
    base_url: str = ""
    api_key: str = ""
    auth: Auth = "bearer"
    local: bool = False  # runs on the owner's machines: what `locality=local` may use
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    stream_usage: bool = True  # understands stream_options.include_usage
    bills_abandoned: bool = True  # charges in full for a call that we gave up on
    deadlines: Deadlines = Deadlines()


class Model(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, cache_hash=True):
    """A priced model behind a provider. `price` None means unpriced, which is a state and not zero."""

    id: str  # provider/name, as used everywhere in this house
    provider: str
    name: str  # what the provider calls it
    tier: str
    kind: Kind = "chat"
    price: Price | None = None
    context_tokens: int = 128_000
    max_output_tokens: int = 16_384
    abilities: tuple[Ability, ...] = ()
    skill: float = 0.5  # 0..1: the built-in estimator's notion of strength; trained estimators ignore it
    skills: tuple[tuple[str, float], ...] = ()  # the same for single tasks, by name
    first_token_ms: int = 600
    tokens_per_second: float = 80.0
    local: bool = False


class Catalogue(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Models by id, in the owner's order. `tiers` are in order from the dearest to the cheapest."""

    providers: dict[str, Provider]
    models: dict[str, Model]
    tiers: tuple[str, ...]
    baseline: str  # the model that every saving is measured against
    reliable: str  # the model that answers when routing itself fails
    unpriced: Literal["refuse", "allow"] = "refuse"

    @functools.cached_property
    def by_kind(self) -> dict[Kind, tuple[Model, ...]]:
        return {kind: tuple(model for model in self.models.values() if model.kind == kind) for kind in get_args(Kind)}

    @functools.cached_property
    def refuses(self) -> bool:
        """Whether it rules out some model itself, whoever asks."""
        return self.unpriced == "refuse" and any(model.price is None for model in self.models.values())

    @functools.cached_property
    def baseline_for(self) -> dict[Kind, Model]:
        """The baseline, by the kind of request that it can answer; empty where it is not among the models."""
        return {model.kind: model for model in self.models.values() if model.id == self.baseline}

    @functools.cached_property
    def simulated(self) -> frozenset[str]:
        """The models that are only played, by id."""
        return frozenset(each.id for each in self.models.values() if self.providers[each.provider].wire == "simulated")

    @functools.cached_property
    def by_name(self) -> dict[tuple[str, str], Model]:
        """By provider and bare name; of equals the first."""
        return {(model.provider, bare(model.name)): model for model in reversed(self.models.values())}

    @functools.cached_property
    def dearest(self) -> dict[str, Model]:
        """Of each provider the model that costs most, as far as they have prices; of equals the first."""
        found: dict[str, Model] = {}
        for model in self.models.values():
            if model.price is not None:
                found[model.provider] = max(found.get(model.provider, model), model, key=_rate_sum)
        return found

    def in_tier(self, tier: str) -> tuple[Model, ...]:
        return tuple(model for model in self.models.values() if model.tier == tier)


def _rate_sum(model: Model) -> int:
    rates = model.price.rows[0].rates if model.price else None
    return rates.input_tokens + rates.output_tokens if rates else -1


@functools.lru_cache(maxsize=4096)
def bare(name: str) -> str:
    """`models/Gemini-2.5-flash:latest` and `gemini-2.5-flash` are the same name."""
    return name.rsplit("/", 1)[-1].removesuffix(":latest").casefold()
