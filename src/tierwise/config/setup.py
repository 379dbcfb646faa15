"""Reads a configuration, or what the environment and this machine offer: checked, frozen, read again on a change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tierwise.config import models, parts
from tierwise.config.file import Located, read_file
from tierwise.config.learned import Learned, unpromised
from tierwise.config.parts import KeySpec, Problems
from tierwise.config.schema import ConfigFile, JournalSettings, ModelEntry, PriceEntry, ProviderEntry, ServerSettings
from tierwise.config.secrets import Secret, Secrets, resolve_secret
from tierwise.config.state import has_keys
from tierwise.core.budget import Budget
from tierwise.core.catalogue import Catalogue, Model, Provider
from tierwise.core.errors import ConfigError
from tierwise.core.keys import key_budgets, merged
from tierwise.core.money import Price
from tierwise.core.read import join, read
from tierwise.core.snapshot import Snapshot, build

if TYPE_CHECKING:
    import asyncio

FILE_NAMES = ("tierwise.yaml", "tierwise.yml", "tierwise.toml")
TIERS = ("frontier", "fast", "local")
WATCH_DEBOUNCE_MS = 300


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """All that a configuration says, checked and frozen. `secrets` gives a reference's value; its repr does not."""

    snapshot: Snapshot
    server: ServerSettings
    keys: tuple[KeySpec, ...]
    budgets: tuple[Budget, ...]
    journal: JournalSettings
    state_dir: Path
    secrets: Secrets
    notes: tuple[str, ...]  # for the start-up text, one sentence each
    source: str  # the file, or "the environment"
    simulated: bool  # some model is simulated: every reply's headers say so


def find(environ: Mapping[str, str], folder: Path | None = None) -> Path | None:
    """The file that TIERWISE_CONFIG names, else a tierwise.yaml, .yml or .toml in the folder; None when neither is."""
    if named := environ.get("TIERWISE_CONFIG", "").strip():
        return Path(named).expanduser()
    return next((path for name in FILE_NAMES if (path := (folder or Path()) / name).is_file()), None)


def find_state(state: Path | None, environ: Mapping[str, str], path: Path | None) -> Path:
    """The state folder of a configuration file, without reading it: as given, by TIERWISE_STATE, or beside the file."""
    return parts.state_folder(state, environ, path.parent if path is not None else Path())


async def load(
    path: Path | None,
    environ: Mapping[str, str],
    *,
    host: str | None = None,
    port: int | None = None,
    state: Path | None = None,
    names_only: bool = False,
) -> Setup:
    """The configuration in the file, or what the environment and this machine offer when there is none.

    Arguments win over TIERWISE_HOST, TIERWISE_PORT and TIERWISE_STATE, and those over the file. Raises ConfigError
    with every problem found.

    `names_only`: for work that calls nobody and lets nobody in, and may be done where the secrets are not. None is
    looked up, so none can be missing; what comes of it must not be served.
    """
    located = read_file(path) if path is not None else Located({}, {})
    source = str(path) if path is not None else "the environment"
    base = path.parent if path is not None else Path()
    problems = Problems(located, source, names_only=names_only)
    file, misread = read(located.data, ConfigFile, line=located.line)
    problems.found += misread
    if file is None:
        problems.raise_any()
        raise AssertionError("a file that cannot be read has a problem")
    server = parts.server_settings(file.server, environ, host, port, problems)
    secrets: dict[str, Secret] = {}
    catalogue, notes = await _catalogue(file, environ, base, secrets, problems)
    policies = parts.policies(file, catalogue, problems)
    keys = parts.keys(file.keys, catalogue, policies, environ, base, problems)
    limits = (each for key in keys for each in key_budgets(key.name, key.grant.limits))
    budgets = merged((*parts.budgets(file.budgets, file.keys, problems), *limits))
    folder = find_state(state, environ, path)
    registered = not keys and has_keys(folder)
    parts.guard(server.host, keys, problems, registered=registered)
    problems.raise_any()
    snapshot, told = Learned(folder).taught(build(catalogue, policies), grams=file.journal.grams)
    return Setup(
        snapshot=snapshot,
        server=server,
        keys=keys,
        budgets=budgets,
        journal=file.journal,
        state_dir=folder,
        secrets=Secrets(secrets),
        notes=(
            *(("The file says nothing, so the environment says what runs.",) if path and not located.data else ()),
            *notes,
            *told,
            *unpromised(snapshot),
            *parts.exploring_notes(policies, budgets),
            *parts.start_notes(catalogue, server, not keys and not registered),
        ),
        source=source,
        simulated=bool(catalogue.simulated),
    )


async def reload(path: Path | None, environ: Mapping[str, str], **overrides: Any) -> Setup:
    """`load`, for a router that already runs. Raises ConfigError; the caller then keeps what it has."""
    return await load(path, environ, **overrides)


async def watch(path: Path, on_change: Callable[[], Awaitable[None]], *, stop: asyncio.Event | None = None) -> None:
    """Calls `on_change` after each change of the file, until `stop` is set or the task is cancelled.

    The folder is watched and not the file: editors and container mounts replace a file rather than write into it.
    """
    from watchfiles import awatch

    folder, names = path.parent, (path.name, "..data")

    def ours(_: object, changed: str) -> bool:
        # A mounted config map changes by a link beside the file (`..data`), and never by the file's own name.
        return Path(changed).name in names

    async for _ in awatch(folder, watch_filter=ours, debounce=WATCH_DEBOUNCE_MS, stop_event=stop, recursive=False):
        await on_change()


# ------------------------------------------------------------------------------------------------ catalogue


class _Found(msgspec.Struct):
    """What a catalogue is made of, before it is one."""

    providers: dict[str, Provider]
    models: dict[str, Model]
    tiers: tuple[str, ...]
    notes: tuple[str, ...] = ()
    others: dict[str, tuple[str, ...]] = {}  # of a model that its provider is not known to have: those that it has


async def _catalogue(
    file: ConfigFile, environ: Mapping[str, str], base: Path, secrets: dict[str, Secret], problems: Problems
) -> tuple[Catalogue, tuple[str, ...]]:
    """The catalogue and how it came to be. Raises ConfigError when there is nothing that one could be made of."""
    from tierwise.providers.discover import discover, from_parts

    if file.providers or file.models:
        found = await _written(file, environ, base, problems)
    else:
        seen = await discover(environ)
        tiers = file.tiers or seen.catalogue.tiers
        found = _Found(seen.catalogue.providers, seen.catalogue.models, tiers, seen.notes)
    for name, provider in found.providers.items():
        if provider.api_key:
            where = join(join("providers", name), "api_key")
            secret = parts.secret_of(where, provider.api_key, environ, base, problems)
            if secret is not None:
                secrets[provider.api_key] = secret
    models.check_names(file, found.models, found.tiers, problems)
    if not found.models:
        problems.add("models", "there are none; name at least one, as provider/model")
        problems.raise_any()
    tiers = found.tiers
    # A model in an unknown tier is a problem by now; it stands in the first one so that the rest can be looked at.
    placed = {
        id: model if model.tier in tiers else msgspec.structs.replace(model, tier=tiers[0])
        for id, model in found.models.items()
    }
    notes = models.unpriced_notes(placed, found.providers, found.others, file.unpriced, problems)
    safest = models.safest(placed, tiers, file.unpriced, problems)
    baseline = file.baseline if file.baseline in placed else safest
    catalogue = from_parts(
        found.providers,
        placed,
        tiers=tiers,
        baseline=baseline,
        reliable=file.reliable if file.reliable in placed else baseline,
        unpriced=file.unpriced,
    )
    return catalogue, (*found.notes, *notes)


async def _written(file: ConfigFile, environ: Mapping[str, str], base: Path, problems: Problems) -> _Found:
    """From the file. What is wrong has a stand-in, so that names elsewhere still resolve."""
    from tierwise.providers.addresses import forbidden
    from tierwise.providers.table import ENV_KEYS, PROVIDERS

    known = models.Known(PROVIDERS, ENV_KEYS, forbidden)
    providers: dict[str, Provider] = {}
    for name, entry in file.providers.items():
        where = join("providers", name)
        providers[name] = models.provider_of(where, name, entry or ProviderEntry(), known, environ, problems)
    if not file.models:
        return await _unnamed(file, providers, environ, base, problems)
    found: dict[str, Model] = {}
    others: dict[str, tuple[str, ...]] = {}
    for id, row in file.models.items():
        where = join("models", id)
        name, _, rest = id.partition("/")
        if not name or not rest or not id.isprintable() or " " in id:
            problems.add(where, "must be named provider/model, without spaces")
            continue
        if name not in providers:
            providers[name] = models.implied(where, name, providers, known, environ, problems)
        said = row or ModelEntry()
        found[id] = _model(where, providers[name], rest, said, problems)
        if said.price is None and (names := _others(providers[name], rest)):
            others[id] = names
    return _Found(providers, found, file.tiers or TIERS, others=others)


def _others(provider: Provider, name: str) -> tuple[str, ...]:
    """The models that this provider is known to have when this is none of them; else ()."""
    from tierwise.providers import prices
    from tierwise.providers.simulated_catalogue import simulated_catalogue

    if provider.wire == "simulated":
        names = tuple(row.name for row in simulated_catalogue()[1])
        return () if name in names else names
    return prices.others(provider.name, name)


async def _unnamed(
    file: ConfigFile, providers: dict[str, Provider], environ: Mapping[str, str], base: Path, problems: Problems
) -> _Found:
    """Providers without models: what the price list knows of theirs, or what a server of the owner's lists itself."""
    from tierwise.providers.discover import models_of

    found: dict[str, Model] = {}
    notes: list[str] = []
    for name, provider in providers.items():
        try:
            key = resolve_secret(provider.api_key, environ, base=base) if provider.api_key else ""
        except ConfigError:
            key = ""  # noted where secrets are read
        listed, heard = await models_of(provider, environ, key)
        if not listed:
            why = heard or "what it serves is not known"
            problems.add(join("providers", name), f"{why}; name its models under `models`, as {name}/MODEL")
        found |= {model.id: model for model in listed}
        notes.append(f"{name}: {', '.join(f'{model.name} ({model.tier})' for model in listed)}")
    return _Found(providers, found, file.tiers or TIERS, tuple(notes))


def _model(where: str, provider: Provider, name: str, entry: ModelEntry, problems: Problems) -> Model:
    """What is known of the model, under what the file says of it."""
    from tierwise.providers.discover import build_model
    from tierwise.providers.known import is_embedding
    from tierwise.providers.simulated_catalogue import simulated_catalogue

    rows = simulated_catalogue()[1] if provider.wire == "simulated" else ()
    row = next((each for each in rows if each.name == name), None)
    given = models.settings(entry)
    if entry.price is not None:
        kind = entry.kind or (row.kind if row else "embedding" if is_embedding(name) else "chat")
        price = _price(join(where, "price"), entry.price, kind == "embedding", problems)
        given |= {"price": price} if price is not None else {}
    if row is not None:
        tier = row.tier if row.tier in TIERS else TIERS[-1]
        given = {"id": f"{provider.name}/{name}", "provider": provider.name, "tier": tier} | given
        return msgspec.structs.replace(row, **given)
    try:
        return build_model(provider, name, **given)
    except ValueError as error:
        models.blame(where, error, ModelEntry, problems)
        return build_model(provider, name)


def _price(where: str, entry: PriceEntry, embedding: bool, problems: Problems) -> Price | None:
    from tierwise.providers.prices import gpu_hour_price, owner_price

    if models.price_conflicts(where, entry, problems):
        return None
    try:
        if entry.gpu_hour_usd is not None and entry.tokens_per_second is not None and entry.load is not None:
            return gpu_hour_price(entry.gpu_hour_usd, entry.tokens_per_second, entry.load)
        amounts = {key: getattr(entry, key) for key in PriceEntry.__struct_fields__ if key.endswith("_mtok")}
        others = {"web_search_usd": entry.web_search_usd, "request_usd": entry.request_usd}
        return owner_price(**amounts, **others, free=entry.free, embedding=embedding)
    except ValueError as error:
        models.blame(where, error, PriceEntry, problems)
        return None
