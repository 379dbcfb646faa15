"""The configuration file as types, and as a JSON Schema for editors. What the settings do is in the other rooms.

Every field here has an effect; a setting that changes nothing is a defect. Secrets are references, never values.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tierwise.core.budget import Scope, Window
from tierwise.core.catalogue import Ability, Auth, Kind, OutWire
from tierwise.core.keys import Route
from tierwise.core.policy import PLAN_KEYS, Plan
from tierwise.core.request import Task

Name = Annotated[str, Meta(min_length=1, max_length=200)]
SecretRef = Annotated[
    str,
    Meta(
        pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:.+|os\.environ/[A-Za-z_][A-Za-z0-9_]*)$",
        max_length=4_096,
        description="Where the secret is, never the secret: env:NAME or file:PATH.",
        extra={"hint": "must be a reference, env:NAME or file:PATH, and never the secret itself"},
    ),
]
# The dearest list price there is stands near 600 USD per million tokens. Far above it somebody has typed another unit.
PerMtok = Annotated[float, Meta(ge=0, le=10_000, description="US dollars per million tokens.")]
Usd = Annotated[float, Meta(ge=0, le=1_000_000_000, description="US dollars.")]
Milliseconds = Annotated[int, Meta(ge=1, le=86_400_000)]
Tokens = Annotated[int, Meta(ge=1, le=1_000_000_000)]
PerMinute = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Speed = Annotated[float, Meta(gt=0, le=1_000_000, description="Tokens per second.")]


class _Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    pass


class ServerSettings(_Entry, frozen=True):
    """Where the gateway listens, and what it does at its edges."""

    host: Annotated[
        str, Meta(min_length=1, max_length=253, description="Address to bind; not loopback needs keys.")
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="0 takes any free port.")] = 4100
    drain_s: Annotated[float, Meta(ge=0, le=3_600, description="How long running replies may finish at a stop.")] = 30.0
    body_limit_bytes: Annotated[int, Meta(ge=1_024, le=1 << 30, description="Largest request body.")] = 32 << 20
    budget_status: Annotated[
        Literal[402, 429, 400], Meta(description="HTTP status of a spent budget; older clients cope badly with 402.")
    ] = 402


class DeadlineEntry(_Entry, frozen=True):
    """How long an upstream may take, in milliseconds. All hold at once."""

    connect_ms: Milliseconds | None = None
    first_token_ms: Milliseconds | None = None
    idle_ms: Milliseconds | None = None
    total_ms: Milliseconds | None = None


class ProviderEntry(_Entry, frozen=True):
    """Where models are served. A known name brings everything but its key; another needs `wire` and `base_url`."""

    wire: Annotated[OutWire | None, Meta(description="The format it speaks.")] = None
    base_url: Annotated[str, Meta(min_length=1, max_length=2_048)] | None = None
    api_key: SecretRef | None = None
    auth: Annotated[Auth | None, Meta(description="How the key is sent.")] = None
    local: Annotated[bool | None, Meta(description="Runs on your own machines: what `locality: local` may use.")] = None
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    stream_usage: Annotated[bool | None, Meta(description="Understands stream_options.include_usage.")] = None
    bills_abandoned: Annotated[bool | None, Meta(description="Bills in full a call that was given up.")] = None
    deadlines: DeadlineEntry = DeadlineEntry()


class PriceEntry(_Entry, frozen=True):
    """What a model costs you: per token, or as `free`, or as the rent of a GPU at a stated speed and load."""

    input_usd_per_mtok: PerMtok | None = None
    output_usd_per_mtok: PerMtok | None = None
    cached_input_usd_per_mtok: PerMtok | None = None
    cache_write_usd_per_mtok: PerMtok | None = None
    cache_write_1h_usd_per_mtok: PerMtok | None = None
    reasoning_usd_per_mtok: PerMtok | None = None
    input_audio_usd_per_mtok: PerMtok | None = None
    output_audio_usd_per_mtok: PerMtok | None = None
    web_search_usd: Annotated[float, Meta(ge=0, le=1_000, description="US dollars for one search.")] | None = None
    request_usd: (
        Annotated[float, Meta(ge=0, le=1_000, description="US dollars for one request, besides tokens.")] | None
    ) = None
    free: Annotated[bool, Meta(description="Costs nothing, and you say so.")] = False
    gpu_hour_usd: (
        Annotated[float, Meta(gt=0, le=10_000, description="US dollars for an hour of the GPUs it runs on.")] | None
    ) = None
    tokens_per_second: (
        Annotated[float, Meta(gt=0, le=10_000_000, description="Output tokens per second, all streams.")] | None
    ) = None
    load: Annotated[float, Meta(gt=0, le=1, description="Share of the time that the GPUs are busy.")] | None = None


class ModelEntry(_Entry, frozen=True):
    """A model. A known name brings its price, context and abilities; what stands here wins."""

    tier: Annotated[Name | None, Meta(description="One of `tiers`.")] = None
    kind: Kind | None = None
    price: PriceEntry | None = None
    context_tokens: Tokens | None = None
    max_output_tokens: Tokens | None = None
    abilities: tuple[Ability, ...] | None = None
    skill: Annotated[Share | None, Meta(description="Strength, 0 to 1, for the built-in estimator.")] = None
    skills: Annotated[dict[Task, Share], Meta(description="The same for single tasks.")] = {}
    first_token_ms: Annotated[Milliseconds | None, Meta(description="Usual wait for the first token.")] = None
    tokens_per_second: Annotated[Speed | None, Meta(description="Usual speed of one stream.")] = None
    local: bool | None = None


class MissEntry(_Entry, frozen=True):
    """What an inadequate answer costs you, in US dollars, by who reads it."""

    user: Usd | None = None
    internal: Usd | None = None


class SecondEntry(_Entry, frozen=True):
    """What a second of waiting costs you, in US dollars, by latency class."""

    interactive: Usd | None = None
    background: Usd | None = None
    batch: Usd | None = None


class PolicyEntry(_Entry, frozen=True):
    """Named plans and where to start. Without plans: those of the default policy, with other amounts."""

    start: Name | None = None
    plans: dict[Name, Plan] = {}
    preset: Annotated[
        Literal["economy", "balanced", "quality"] | None,
        Meta(description="Amounts to begin with; balanced when not given."),
    ] = None
    miss_usd: MissEntry = MissEntry()
    second_usd: SecondEntry = SecondEntry()
    caution: Annotated[
        Share | None, Meta(description="How much an unsure estimate counts against a model; 1 takes its low end.")
    ] = None
    attempts: Annotated[int, Meta(ge=1, le=10, description="Calls that may serve one request, over all models.")] = 3
    calls: Annotated[int, Meta(ge=1, le=100, description="Calls of every kind that one request may make.")] = 12
    clamp: Annotated[bool, Meta(description="A caller's max_tokens may be lowered to what can be paid.")] = False
    dearer: Annotated[bool, Meta(description="A fallback may cost more than what failed.")] = True
    dear_rise: Annotated[
        float,
        Meta(gt=0, le=1, description="How far a key's share of dear replies may rise above its usual one; 1: any."),
    ] = 0.1


class BudgetEntry(_Entry, frozen=True):
    """A limit over a window of time. Without `match` each payer of the scope has its own."""

    scope: Scope
    match: Annotated[dict[Name, Name], Meta(description="Only payers with these values.")] = {}
    limit_usd: Usd | None = None
    tokens: (
        Annotated[int, Meta(ge=1, le=1 << 50, description="Read and written; held at the most that a call may use.")]
        | None
    ) = None
    calls: Annotated[int, Meta(ge=1, le=1 << 50, description="Calls of models, of every kind.")] | None = None
    parallel: Annotated[int, Meta(ge=1, le=1_000_000, description="Calls at once.")] | None = None
    steps: (
        Annotated[int, Meta(ge=1, le=1_000_000, description="Requests of one session or workflow that reach a model.")]
        | None
    ) = None
    repeats: (
        Annotated[
            int,
            Meta(
                ge=2, le=32, description="The same call so often in a row, or two in turn so often each, and no more."
            ),
        ]
        | None
    ) = None
    deadline_s: (
        Annotated[int, Meta(ge=1, le=31_536_000, description="Seconds that one session or workflow may take.")] | None
    ) = None
    window: Window | None = None
    rolling: Annotated[bool, Meta(description="The last minute, hour and so on, not the calendar's.")] = False
    zone: (
        Annotated[str, Meta(min_length=1, max_length=100, description="Time zone of days, weeks and months; UTC.")]
        | None
    ) = None
    hard: Annotated[bool, Meta(description="Refuses what would exceed it; else money only gets dearer.")] = True
    reserve_usd: (
        Annotated[
            float,
            Meta(ge=0, le=1_000_000_000, description="What a call without price or bound holds; else it is refused."),
        ]
        | None
    ) = None


class KeyEntry(_Entry, frozen=True):
    """A caller's key: who pays, and what it may use."""

    name: Name
    secret: SecretRef
    user: Name | None = None
    team: Name | None = None
    organisation: Name | None = None
    tags: dict[Name, Name] = {}
    allow: Annotated[tuple[Name, ...], Meta(description="Models, tiers or providers; none given means all.")] = ()
    policies: Annotated[tuple[Name, ...], Meta(description="Policies; none given means all.")] = ()
    routes: Annotated[tuple[Route, ...], Meta(description="What it may ask for; none given means all.")] = ()
    limit_usd: Annotated[float, Meta(ge=0, le=1_000_000_000)] | None = None
    window: Annotated[Window | None, Meta(description="Of `limit_usd`; a lifetime when not given.")] = None
    rpm: Annotated[PerMinute | None, Meta(description="Calls of models in any minute.")] = None
    tpm: Annotated[PerMinute | None, Meta(description="Tokens in any minute.")] = None
    parallel: Annotated[PerMinute | None, Meta(description="Calls at once.")] = None
    admin: Annotated[bool, Meta(description="May make keys and budgets over HTTP.")] = False


class JournalSettings(_Entry, frozen=True):
    """What is kept of requests besides the decisions."""

    store_texts: Annotated[bool, Meta(description="Keep prompts and replies as well.")] = False
    grams: Annotated[
        bool, Meta(description="Keep the hashes of each prompt's words, from which a router can be trained.")
    ] = True
    keep_days: Annotated[
        Annotated[int, Meta(ge=1, le=36_500)] | None,
        Meta(description="Older episodes are deleted; sums are kept. Not given: nothing is deleted."),
    ] = None


class ConfigFile(_Entry, frozen=True):
    """Tierwise's configuration."""

    server: ServerSettings = ServerSettings()
    providers: dict[Name, ProviderEntry | None] = {}
    models: Annotated[dict[Name, ModelEntry | None], Meta(description="By provider/model.")] = {}
    tiers: Annotated[tuple[Name, ...], Meta(description="From the dearest to the cheapest.")] = ()
    baseline: Annotated[Name | None, Meta(description="The model that savings are measured against.")] = None
    reliable: Annotated[Name | None, Meta(description="The model that answers when routing itself fails.")] = None
    unpriced: Annotated[
        Literal["refuse", "allow"], Meta(description="Whether a model without a known price may be used.")
    ] = "refuse"
    policy: PolicyEntry = PolicyEntry()
    policies: Annotated[dict[Name, PolicyEntry], Meta(description="Others, asked for as auto/NAME.")] = {}
    budgets: tuple[BudgetEntry, ...] = ()
    keys: tuple[KeyEntry, ...] = ()
    journal: JournalSettings = JournalSettings()


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the file. A plan is told by its own key, so the tags of the types are taken out."""
    made = msgspec.json.schema(ConfigFile)
    made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    made["title"] = "tierwise.yaml"
    parts: dict[str, Any] = made["$defs"]
    for key, kind in PLAN_KEYS.items():
        part = parts[kind.__name__]
        part["properties"].pop("type", None)
        part["required"] = [name for name in part.get("required", []) if name != "type"]
        if key not in part["required"]:
            part["required"].insert(0, key)
    plain: dict[str, Any] = _without_discriminators(made)
    return plain


def _without_discriminators(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _without_discriminators(value) for key, value in part.items() if key != "discriminator"}
    if isinstance(part, list):
        return [_without_discriminators(each) for each in part]
    return part
