"""A small world to decide in: three tiers on two providers, and episodes with the fields that a test names."""

from __future__ import annotations

from typing import Any

import msgspec

from tierwise.core.budget import Lambda
from tierwise.core.catalogue import Ability, Catalogue, Model, Provider
from tierwise.core.episode import Call, Decision, Episode, Failed, Replied, ReplyFacts
from tierwise.core.money import Price, PriceRow, Rates, Usage
from tierwise.core.policy import Best, Keep, Plan, Policy, Screen
from tierwise.core.request import Features, Hints
from tierwise.core.snapshot import Snapshot, build

ALL: tuple[Ability, ...] = ("tools", "images", "json", "schema", "logprobs", "stream")
AT_S = 1_780_000_000


def price(input_usd: float, output_usd: float) -> Price:
    """US dollars per million tokens."""
    return Price((PriceRow(Rates.of(round(input_usd * 1e9), round(output_usd * 1e9))),), "test")


def model(id: str, tier: str, input_usd: float, output_usd: float, skill: float, **more: Any) -> Model:
    provider, _, name = id.partition("/")
    given: dict[str, Any] = {"abilities": ALL, "price": price(input_usd, output_usd), **more}
    return Model(id=id, provider=provider, name=name, tier=tier, skill=skill, **given)


BIG = model("acme/big", "frontier", 3.0, 15.0, 0.92, first_token_ms=900, tokens_per_second=60.0, context_tokens=200_000)
MID = model("acme/mid", "fast", 0.25, 1.25, 0.66, first_token_ms=400, tokens_per_second=120.0)
RIVAL = model("other/mid", "fast", 0.3, 1.5, 0.64, first_token_ms=400, tokens_per_second=120.0)
TINY = model(
    "home/tiny",
    "local",
    0.02,
    0.06,
    0.38,
    first_token_ms=100,
    tokens_per_second=200.0,
    local=True,
    context_tokens=8_000,
    max_output_tokens=2_000,
    abilities=("json", "logprobs", "stream"),
)
MODELS = (BIG, MID, RIVAL, TINY)
DEFAULT: dict[str, Plan] = {"screen": Keep(Screen(), then="choose"), "choose": Best(("local", "fast", "frontier"))}


def catalogue(*models: Model, **changes: Any) -> Catalogue:
    chosen = models or MODELS
    names = dict.fromkeys(each.provider for each in chosen)
    rows = {name: Provider(name=name, wire="openai", base_url="http://127.0.0.1:9/v1") for name in names}
    given = {"tiers": ("frontier", "fast", "local"), "baseline": chosen[0].id, "reliable": chosen[0].id, **changes}
    return Catalogue(providers=rows, models={each.id: each for each in chosen}, **given)


def world(plans: dict[str, Plan] | None = None, *models: Model, **policy: Any) -> Snapshot:
    """A snapshot whose default policy has these plans; the first one is the start."""
    named = plans or DEFAULT
    default = Policy(name="default", start=policy.pop("start", next(iter(named))), plans=named, **policy)
    return build(catalogue(*models), {"default": default})


def features(**changes: Any) -> Features:
    return Features(**{"input_tokens": 200, "input_bound_tokens": 900, "turns": 1, "languages": ("en",), **changes})


def episode(snapshot: Snapshot, **changes: Any) -> Episode:
    """Fields of Episode; those of Features and Hints may be given as `features={...}` and `hints={...}`."""
    given: dict[str, Any] = {
        "id": "e1",
        "snapshot": snapshot.hash,
        "at_s": AT_S,
        "draw": 0.5,
        "requested": "auto",
        "policy": "default",
        **changes,
    }
    for name, kind in (("features", features), ("hints", Hints), ("money", Lambda)):
        value = given.get(name, {})
        given[name] = kind(**value) if isinstance(value, dict) else value
    return Episode(**given)


def replied(at: str, model: str, after_ms: int = 500, **facts: Any) -> Replied:
    return Replied(
        at=at,
        model=model,
        after_ms=after_ms,
        usage=Usage(input_tokens=200, output_tokens=100),
        cost_nano=1_000,
        facts=ReplyFacts(**{"stop": "end", "characters": 400, **facts}),
    )


def failed(at: str, model: str, kind: Any = "overloaded", after_ms: int = 500, **more: Any) -> Failed:
    return Failed(at=at, model=model, after_ms=after_ms, kind=kind, **more)


def after(story: Episode, *events: Any) -> Episode:
    return msgspec.structs.replace(story, events=(*story.events, *events))


def called(decision: Decision) -> Call:
    assert isinstance(decision.step, Call), decision
    return decision.step


def codes(decision: Decision) -> dict[str, str]:
    return {candidate.model: candidate.code for candidate in decision.candidates}


def said(decision: Decision) -> list[str]:
    return [reason.code for reason in decision.reasons]
