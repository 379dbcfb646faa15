"""Entries of providers and models, given what is known of them. Names no backend: config brings what they know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from tierwise.config.parts import Problems, host_of
from tierwise.config.schema import ConfigFile, ModelEntry, PriceEntry, ProviderEntry
from tierwise.core.catalogue import Auth, Deadlines, Model, Provider
from tierwise.core.read import join, nearest

SIMULATED = "simulated"


class Known(msgspec.Struct, frozen=True):
    """What config knows of providers: rows by name, the variables that hold their keys, addresses never to ask."""

    rows: Mapping[str, Provider]
    key_names: Mapping[str, tuple[str, ...]]
    forbidden: Callable[[str], bool]


# ------------------------------------------------------------------------------------------------ providers


def provider_of(
    where: str, name: str, entry: ProviderEntry, known: Known, environ: Mapping[str, str], problems: Problems
) -> Provider:
    """A known row with the file's changes, or a new one. What is wrong is noted, and left out of what is given."""
    if any(letter.isspace() or letter in "/:" for letter in name) or name == "auto":
        problems.add(where, "a provider's name has no spaces, slashes or colons, and is not `auto`")
    if entry.wire == "simulated" or (name == SIMULATED and entry.wire is None):
        return _simulated(where, name, entry, problems)
    row = known.rows.get(name)
    if row is None:
        for key in ("wire", "base_url"):
            if getattr(entry, key) is None:
                what = f"needs `{key}`: it is not a provider that Tierwise knows"
                problems.unknown(where, what, name, known.rows)
        wire = entry.wire or "openai"
        row = Provider(name=name, wire=wire, auth="x-api-key" if wire == "anthropic" else "bearer")
    api_key, auth = _key(where, entry, row, known.key_names.get(name, ()), environ, problems)
    given = {
        key: value
        for key in ("wire", "local", "max_tokens_field", "stream_usage", "bills_abandoned")
        if (value := getattr(entry, key)) is not None
    }
    times = {key: ms for key in Deadlines.__struct_fields__ if (ms := getattr(entry.deadlines, key)) is not None}
    return msgspec.structs.replace(
        row,
        base_url=_address(where, entry, row, known, problems),
        api_key=api_key,
        auth=auth,
        deadlines=msgspec.structs.replace(row.deadlines, **times),
        **given,
    )


def implied(
    where: str,
    name: str,
    providers: Mapping[str, Provider],
    known: Known,
    environ: Mapping[str, str],
    problems: Problems,
) -> Provider:
    """The provider that only a model's name speaks of: a known one, with its usual key."""
    if name in known.rows or name == SIMULATED:
        return provider_of(where, name, ProviderEntry(), known, environ, problems)
    problems.unknown(where, f"no provider is named {name!r}", name, {*providers, *known.rows, SIMULATED})
    return Provider(name=name, wire="openai", auth="none")


def _simulated(where: str, name: str, entry: ProviderEntry, problems: Problems) -> Provider:
    for key in ("base_url", "api_key", "auth", "max_tokens_field", "stream_usage", "bills_abandoned"):
        if getattr(entry, key) is not None:
            problems.add(join(where, key), "has no effect: a simulated provider is nowhere")
    times = {key: ms for key in Deadlines.__struct_fields__ if (ms := getattr(entry.deadlines, key)) is not None}
    return Provider(name=name, wire="simulated", auth="none", local=bool(entry.local), deadlines=Deadlines(**times))


def _address(where: str, entry: ProviderEntry, row: Provider, known: Known, problems: Problems) -> str:
    if entry.base_url is None:
        if row.name in known.rows and not row.base_url:
            problems.add(where, "needs `base_url`: this provider has an address for each customer")
        return row.base_url
    what = address_problem(entry.base_url)
    if not what and known.forbidden(host_of(entry.base_url)):
        what = "is an address where cloud machines keep their own credentials"
    if what:
        problems.add(join(where, "base_url"), what)
        return ""
    return entry.base_url.rstrip("/")


def _key(
    where: str,
    entry: ProviderEntry,
    row: Provider,
    names: tuple[str, ...],
    environ: Mapping[str, str],
    problems: Problems,
) -> tuple[str, Auth]:
    """The reference of the key and how it is sent. A known provider's usual variable is enough."""
    auth = entry.auth or row.auth
    if entry.api_key is not None:
        if entry.auth == "none":
            problems.add(join(where, "api_key"), "has no effect beside `auth: none`")
        return entry.api_key, "bearer" if auth == "none" else auth
    if auth == "none":
        return "", "none"
    if found := next((name for name in names if environ.get(name, "").strip()), ""):
        return f"env:{found}", auth
    if problems.names_only:
        return "", auth
    if names:
        problems.add(where, f"needs `api_key`, or {' or '.join(names)} in the environment")
    elif entry.auth is not None:
        problems.add(where, "needs `api_key`, or `auth: none`")
    return "", "none"


def address_problem(url: str) -> str:
    """Why a provider cannot stand at this address, or "". The address is not repeated: it may hold a password."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not an address"
    if parts.scheme not in ("http", "https") or not host:
        return "must be an http:// or https:// address"
    if parts.username is not None or parts.password is not None:
        return "holds a user name or password; give the key by `api_key`"
    if parts.query or parts.fragment:
        return "must end before any ? or #"
    if any(letter.isspace() or not letter.isprintable() for letter in url):
        return "holds spaces or control characters"
    return ""


# ------------------------------------------------------------------------------------------------ models


def settings(entry: ModelEntry) -> dict[str, Any]:
    """What the entry says of a model, but for its price, by the names of `Model`."""
    given = {
        key: value
        for key in ModelEntry.__struct_fields__
        if key not in ("price", "skills") and (value := getattr(entry, key)) is not None
    }
    return given | ({"skills": tuple(sorted(entry.skills.items()))} if entry.skills else {})


def blame(where: str, error: ValueError, kind: type[msgspec.Struct], problems: Problems) -> None:
    """A backend's refusal, at the setting that its sentence begins with."""
    key, colon, what = str(error).partition(": ")
    if colon and key in kind.__struct_fields__:
        problems.add(join(where, key), what)
    else:
        problems.add(where, str(error))


def price_conflicts(where: str, entry: PriceEntry, problems: Problems) -> bool:
    """Notes what a price says twice or by halves; whether there was any. Amounts are judged where they are read."""
    given = {name for name in PriceEntry.__struct_fields__ if getattr(entry, name) not in (None, False)}
    rent = {"gpu_hour_usd", "tokens_per_second", "load"}
    before = len(problems.found)
    if entry.free and given != {"free"}:
        problems.add(where, "is `free` and has amounts as well; give one of the two")
    elif given & rent:
        for name in sorted(rent - given):
            problems.add(where, f"needs `{name}`: a GPU's rent is a price only at a stated speed and load")
        for name in sorted(given - rent):
            problems.add(join(where, name), "has no effect beside `gpu_hour_usd`")
    return len(problems.found) > before


def check_names(file: ConfigFile, models: Mapping[str, Model], tiers: tuple[str, ...], problems: Problems) -> None:
    """The names of tiers, and the models that stand for them all."""
    for i, tier in enumerate(file.tiers):
        if tier in file.tiers[:i]:
            problems.add(f"tiers[{i}]", "is given twice")
        if any(letter.isspace() or letter in "/:" for letter in tier) or tier == "auto":
            problems.add(f"tiers[{i}]", "a tier's name has no spaces, slashes or colons, and is not `auto`")
    for where, name in (("baseline", file.baseline), ("reliable", file.reliable)):
        if name is None:
            continue
        if name not in models:
            problems.unknown(where, f"no model is named {name!r}", name, models)
        elif models[name].kind != "chat":
            problems.add(where, "must be a chat model")
        elif models[name].price is None and file.unpriced == "refuse":
            problems.add(where, "has no price; give it one")
    for id, model in models.items():
        entry = file.models.get(id)
        if model.tier in tiers:
            continue
        if entry is not None and entry.tier is not None:
            what = f"no tier is named {model.tier!r}; name it in `tiers`, from the dearest to the cheapest"
            problems.unknown(join(join("models", id), "tier"), what, model.tier, tiers)
        elif id in file.models:
            problems.add(join("models", id), f"needs `tier`, one of {', '.join(tiers)}")
        else:
            problems.add("tiers", f"lack {model.tier!r}, the tier of {id}")


def unpriced_notes(
    models: Mapping[str, Model],
    providers: Mapping[str, Provider],
    others: Mapping[str, tuple[str, ...]],
    unpriced: str,
    problems: Problems,
) -> tuple[str, ...]:
    """What the owner should know of models without a price. `others`: of each that its provider is not known to have,
    those that it has. New models are sold before lists know them, so that is a note; but a simulated provider can serve
    no other, and where nothing else may serve, it is why."""
    use = "are not used" if unpriced == "refuse" else "are used, and what they cost is not known"
    missing = [id for id, model in models.items() if model.price is None and id not in others]
    notes = [f"Without a price: {', '.join(missing)}; such models {use}."] if missing else []
    nothing = unpriced == "refuse" and all(model.price is None for model in models.values())
    for id, names in others.items():
        provider, name, where = providers[models[id].provider], models[id].name, join("models", id)
        near = nearest(name, names)
        if provider.wire == "simulated":
            what = f"is no model of the simulated provider, which has {', '.join(names)}"
            problems.add(where, what, f"{provider.name}/{near}" if near else "")
            continue
        hint = f" (did you mean {near}?)" if near else ""
        so = "so it is not used" if unpriced == "refuse" else "so what it costs is not known"
        note = f"no known model of {provider.name} is named {name}{hint}; it has no price here, {so}: give it `price:`"
        if nothing:
            problems.add(where, note)
        notes.append(note)
    return tuple(notes)


def safest(models: Mapping[str, Model], tiers: tuple[str, ...], unpriced: str, problems: Problems) -> str | None:
    """The first usable chat model of the dearest tier: savings are measured against it, and need falls back on it."""
    ordered = sorted(models.values(), key=lambda model: tiers.index(model.tier))
    usable = [model for model in ordered if model.price is not None or unpriced == "allow"]
    if not usable:
        what = "none has a price, so none may serve; give `price` (`{free: true}` when it costs nothing)"
        problems.add("models", f"{what}, or say `unpriced: allow`")
    return next((model.id for model in (*usable, *ordered) if model.kind == "chat"), None)
