"""Finds what there is to work with: keys in the environment and model servers on this machine become a catalogue."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from tierwise.core.catalogue import Ability, Catalogue, Kind, Model, Provider
from tierwise.core.money import Price
from tierwise.providers import known, prices
from tierwise.providers.current import newest
from tierwise.providers.local import LocalServer, probe_local, tidy_url
from tierwise.providers.table import ENV_KEYS, ENV_URLS, PROVIDERS

TIERS = ("frontier", "fast", "local")
DEFAULT_PORT = 4100
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
OLLAMA_CONTEXT_TOKENS = 4_096  # what Ollama reads of a prompt unless told otherwise; it drops the rest in silence


class Discovered(msgspec.Struct, frozen=True):
    """A catalogue and, in words for the start-up text, how it came to be."""

    catalogue: Catalogue
    notes: tuple[str, ...]
    simulated: bool


async def discover(environ: Mapping[str, str]) -> Discovered:
    """The catalogue of this environment; with neither a key nor a local server, the simulated provider's.

    `TIERWISE_LOCAL_URL` (one address or several, with commas) replaces the usual loopback ports; `off` asks nobody.
    Only names of variables get into the result, never a key.
    """
    providers, models, notes = _from_keys(environ)
    servers, local_notes = await _local_servers(environ)
    for server in servers:
        providers[server.provider.name] = server.provider
        models += _local_models(server, environ)
        names = ", ".join(model.name for model in server.models)
        notes.append(f"{server.provider.name}: {server.provider.base_url} → {names} (local)")
    notes += local_notes
    if models:
        best = _promoted(models)
        if best is not None:
            models = [best if model.id == best.id else model for model in models]
            notes.append(f"{best.id}: the strongest found, so it is the frontier tier here")
        found = {model.id: model for model in models}
        return Discovered(from_parts(providers, found, tiers=TIERS), tuple(notes), simulated=False)
    provider, simulated = _simulated()
    catalogue = from_parts({provider.name: provider}, {model.id: model for model in simulated}, tiers=TIERS)
    notes.append(
        "no provider key and no local model server found: the simulated provider serves, its replies are made up"
    )
    return Discovered(catalogue, tuple(notes), simulated=True)


async def models_of(provider: Provider, environ: Mapping[str, str], key: str = "") -> tuple[tuple[Model, ...], str]:
    """The models of a provider that the owner named without naming models, or () and why: those that the price list
    calls newest, or those that a server on this machine lists itself. `key` is only sent to that server."""
    if provider.wire == "simulated":
        rows = _simulated()[1]
        own = {"provider": provider.name}
        return tuple(msgspec.structs.replace(row, id=f"{provider.name}/{row.name}", **own) for row in rows), ""
    listed = (
        () if provider.local else tuple(build_model(provider, name, tier=tier) for tier, name in newest(provider.name))
    )
    if listed:
        return listed, ""
    if not provider.local and urlsplit(provider.base_url).hostname not in _LOOPBACK:
        return (), "the price list has no models of it"
    servers, notes = await probe_local([provider], named=True, key=key)
    return tuple(model for server in servers for model in _local_models(server, environ)), "; ".join(notes)


def _simulated() -> tuple[Provider, tuple[Model, ...]]:
    from tierwise.providers.simulated import simulated_catalogue

    provider, rows = simulated_catalogue()
    # Tiers order what chats; an embedding model stands with its like, so that no tier is made for it alone.
    return provider, tuple(one if one.tier in TIERS else msgspec.structs.replace(one, tier="local") for one in rows)


# ---------------------------------------------------------------------------------------------- building


def build_model(
    provider: Provider,
    name: str,
    *,
    tier: str | None = None,
    price: Price | None = None,
    context_tokens: int | None = None,
    max_output_tokens: int | None = None,
    abilities: tuple[Ability, ...] | None = None,
    skill: float | None = None,
    skills: tuple[tuple[str, float], ...] = (),
    kind: Kind | None = None,
    first_token_ms: int | None = None,
    tokens_per_second: float | None = None,
    local: bool | None = None,
) -> Model:
    """A model with everything that is known of its name; what the owner says wins. Without a price of the owner's or
    of the price list it is unpriced (`price` None), a local one too: only the owner can call it free.

    Raises ValueError, in a sentence, for a number that cannot be.
    """
    if not name:
        raise ValueError("a model needs a name")
    is_local = provider.local if local is None else local
    price = price if price is not None else prices.price_of(provider.name, name)
    guess = known.describe(provider.name, name, price, local=is_local)
    listed = prices.context_of(provider.name, name)
    context = context_tokens if context_tokens is not None else listed or guess.context_tokens
    most = max_output_tokens if max_output_tokens is not None else max(1, min(guess.max_output_tokens, context))
    model = Model(
        id=f"{provider.name}/{name}",
        provider=provider.name,
        name=name,
        tier=tier or guess.tier,
        kind=kind or guess.kind,
        price=price,
        context_tokens=context,
        max_output_tokens=most,
        abilities=guess.abilities if abilities is None else abilities,
        skill=guess.skill if skill is None else skill,
        skills=skills or (guess.skills if skill is None else ()),
        first_token_ms=guess.first_token_ms if first_token_ms is None else first_token_ms,
        tokens_per_second=guess.tokens_per_second if tokens_per_second is None else tokens_per_second,
        local=is_local,
    )
    _believable(model)
    return model


def _believable(model: Model) -> None:
    for what, score in (("skill", model.skill), *((f"skills.{task}", score) for task, score in model.skills)):
        if not 0 <= score <= 1:
            raise ValueError(f"{what}: {score} is not between 0 and 1")
    if not math.isfinite(model.tokens_per_second) or model.tokens_per_second <= 0:
        raise ValueError(f"tokens_per_second: {model.tokens_per_second} must be above zero")
    for what, number in (("context_tokens", model.context_tokens), ("max_output_tokens", model.max_output_tokens)):
        if number <= 0:
            raise ValueError(f"{what}: {number} must be above zero")
    if model.first_token_ms < 0:
        raise ValueError(f"first_token_ms: {model.first_token_ms} must not be negative")


def from_parts(
    providers: dict[str, Provider],
    models: dict[str, Model],
    *,
    tiers: tuple[str, ...] | None = None,
    baseline: str | None = None,
    reliable: str | None = None,
    unpriced: Literal["refuse", "allow"] = "refuse",
) -> Catalogue:
    """A catalogue that holds together. Baseline and reliable, where not named, are the first chat model of the first
    tier that has one: the dearest is what a saving is honestly measured against and what is trusted in need.

    Raises ValueError, in a sentence, for a name that is not there (with the nearest one).
    """
    if not models:
        raise ValueError("a catalogue needs at least one model")
    for model in models.values():
        if model.provider not in providers:
            raise ValueError(f"{model.id}: no provider {model.provider!r}{_nearest(model.provider, providers)}")
    tiers = tiers if tiers is not None else _tiers_of(models.values())
    for model in models.values():
        if model.tier not in tiers:
            raise ValueError(f"{model.id}: no tier {model.tier!r}{_nearest(model.tier, tiers)}")
    ordered = sorted(models.values(), key=lambda model: tiers.index(model.tier))
    first = next((model for model in ordered if model.kind == "chat"), ordered[0])
    for what, chosen in (("baseline", baseline), ("reliable", reliable)):
        if chosen is not None and chosen not in models:
            raise ValueError(f"{what}: no model {chosen!r}{_nearest(chosen, models)}")
    return Catalogue(
        providers=providers,
        models=models,
        tiers=tiers,
        baseline=baseline or first.id,
        reliable=reliable or baseline or first.id,
        unpriced=unpriced,
    )


def _nearest(name: str, among: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(among), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _tiers_of(models: Iterable[Model]) -> tuple[str, ...]:
    """The tiers in use from the dearest to the cheapest, by the dearest output in each; the usual names keep their
    usual order among themselves."""
    dearest: dict[str, int] = {}
    for model in models:
        rate = model.price.rows[0].rates.output_tokens if model.price is not None else 0
        dearest[model.tier] = max(dearest.get(model.tier, 0), rate)
    by_price = sorted(dearest, key=lambda tier: -dearest[tier])
    usual = iter([tier for tier in TIERS if tier in dearest])
    return tuple(next(usual) if tier in TIERS else tier for tier in by_price)


# ---------------------------------------------------------------------------------------------- from keys


def _from_keys(environ: Mapping[str, str]) -> tuple[dict[str, Provider], list[Model], list[str]]:
    providers: dict[str, Provider] = {}
    models: list[Model] = []
    notes: list[str] = []
    for name, row in PROVIDERS.items():
        variable = next((key for key in ENV_KEYS.get(name, ()) if environ.get(key, "").strip()), None)
        if variable is None:
            continue
        try:
            base_url = _base_url(row, environ)
        except ValueError as refusal:
            notes.append(f"{name}: left out, {refusal}")
            continue
        if not base_url:
            notes.append(f"{name}: {variable} is set, but its address and deployments must be in the configuration")
            continue
        provider = msgspec.structs.replace(row, api_key=f"env:{variable}", base_url=base_url)
        found = [build_model(provider, model, tier=tier) for tier, model in newest(name)]
        if not found:
            notes.append(f"{name}: {variable} is set, but the price list knows no model of it")
            continue
        providers[name] = provider
        models += found
        elsewhere = f" at {base_url}" if base_url != row.base_url else ""
        notes.append(f"{name}: {variable}{elsewhere} → " + ", ".join(f"{one.name} ({one.tier})" for one in found))
    return providers, models, notes


def _base_url(row: Provider, environ: Mapping[str, str]) -> str:
    """The provider's address, or the one that the environment gives for it. Raises ValueError in a sentence."""
    variable = next((one for one in ENV_URLS.get(row.name, ()) if environ.get(one, "").strip()), None)
    if variable is None:
        return row.base_url
    try:
        # The SDKs take OpenAI's address as it is, and put /v1 behind Anthropic's.
        base_url = tidy_url(environ[variable], keep_path=row.wire == "openai")
    except ValueError as refusal:
        raise ValueError(f"{variable}: {refusal}") from None
    parts = urlsplit(base_url)
    own_port = environ.get("TIERWISE_PORT", "").strip() or str(DEFAULT_PORT)
    if parts.hostname in _LOOPBACK and str(parts.port) == own_port:
        # Exported for the clients of this gateway; the gateway itself would ask itself, for ever.
        return row.base_url
    return base_url


def _promoted(models: list[Model]) -> Model | None:
    """When only small hosted models were found, the strongest of them, for the frontier: someone must be the best."""
    hosted = [model for model in models if model.kind == "chat" and not model.local]
    if len(hosted) < 2 or any(model.tier == "frontier" for model in hosted):
        return None
    return msgspec.structs.replace(max(hosted, key=lambda model: model.skill), tier="frontier")


# ---------------------------------------------------------------------------------------------- from this machine


async def _local_servers(environ: Mapping[str, str]) -> tuple[tuple[LocalServer, ...], tuple[str, ...]]:
    given = environ.get("TIERWISE_LOCAL_URL", "").strip()
    if given.lower() in ("off", "none", "0"):
        return (), ()
    if not given:
        rows, notes = [], []
        for row in (row for row in PROVIDERS.values() if row.local):
            try:
                rows.append(_ollama_at(row, environ) if row.name == "ollama" else row)
            except ValueError as refusal:
                notes.append(f"{row.name}: left out, OLLAMA_HOST: {refusal}")
        servers, heard = await probe_local(rows)
        return servers, (*notes, *heard)
    key = environ.get("TIERWISE_LOCAL_API_KEY", "").strip()
    named: list[Provider] = []
    for number, text in enumerate(filter(None, (part.strip() for part in given.split(",")))):
        try:
            base_url = tidy_url(text)
        except ValueError as refusal:
            return (), (f"TIERWISE_LOCAL_URL: {refusal}",)
        row = msgspec.structs.replace(
            PROVIDERS["vllm"],
            name="local" if number == 0 else f"local{number + 1}",
            base_url=base_url,
            auth="bearer" if key else "none",
            api_key="env:TIERWISE_LOCAL_API_KEY" if key else "",
        )
        named.append(row)
    return await probe_local(named, named=True, key=key)


def _ollama_at(row: Provider, environ: Mapping[str, str]) -> Provider:
    host = environ.get("OLLAMA_HOST", "").strip()
    return msgspec.structs.replace(row, base_url=tidy_url(host, bare_port=11434)) if host else row


def _local_models(server: LocalServer, environ: Mapping[str, str]) -> list[Model]:
    context = environ.get("OLLAMA_CONTEXT_LENGTH", "").strip()
    ollama_tokens = int(context) if context.isdigit() and int(context) > 0 else OLLAMA_CONTEXT_TOKENS
    return [
        build_model(
            server.provider,
            model.name,
            # A server on this machine that is not said to be the owner's own may pass on to a provider that bills.
            tier="local" if server.provider.local else None,
            price=prices.free_price("own machine") if server.provider.local else None,
            context_tokens=ollama_tokens if server.provider.name == "ollama" else model.context_tokens,
            skill=known.skill_of_size(model.size_billions) if model.size_billions else None,
            kind="embedding" if model.embedding else None,
        )
        for model in server.models
    ]
