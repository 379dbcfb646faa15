"""The models there are, what they cost and what they can do. Plain values: who finds and prices them is elsewhere."""

from __future__ import annotations

from typing import Literal

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


class Model(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
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


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """Models by id, in the owner's order. `tiers` are in order from the dearest to the cheapest."""

    providers: dict[str, Provider]
    models: dict[str, Model]
    tiers: tuple[str, ...]
    baseline: str  # the model that every saving is measured against
    reliable: str  # the model that answers when routing itself fails
    unpriced: Literal["refuse", "allow"] = "refuse"

    def in_tier(self, tier: str) -> tuple[Model, ...]:
        return tuple(model for model in self.models.values() if model.tier == tier)
