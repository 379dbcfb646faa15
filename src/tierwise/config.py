"""A file or the environment becomes a router. The only room that names a backend; nothing else may import one.

`load` reads, checks and freezes; `open_router` makes what runs; `reload` and `watch` serve a change without a stop. A
configuration is taken whole or not at all: ConfigError carries every problem, and whoever holds a Setup keeps it.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tierwise import config_models as models
from tierwise import config_parts as parts
from tierwise.config_file import Located, join, read_file
from tierwise.config_parts import KeySpec, Problems
from tierwise.config_read import read
from tierwise.config_schema import ConfigFile, JournalSettings, ModelEntry, PriceEntry, ProviderEntry, ServerSettings
from tierwise.config_schema import schema as schema
from tierwise.config_secrets import Secret, Secrets
from tierwise.config_secrets import resolve_secret as resolve_secret
from tierwise.core.budget import Budget
from tierwise.core.catalogue import Catalogue, Model, Provider
from tierwise.core.errors import ConfigError, Problem
from tierwise.core.keys import Registry, key_budgets, merged
from tierwise.core.money import Price
from tierwise.core.ports import Incoming, Journal, Ledger, Outgoing, Upstream
from tierwise.core.snapshot import Snapshot, build

if TYPE_CHECKING:
    import asyncio

    from tierwise.routing.router import Router
    from tierwise.server.app import App
    from tierwise.stores.ledger_reports import LedgerReports as LedgerReports

FILE_NAMES = ("tierwise.yaml", "tierwise.yml", "tierwise.toml")
TIERS = ("frontier", "fast", "local")
WATCH_DEBOUNCE_MS = 300
JOURNAL_FILE = "journal.sqlite"
LEDGER_FILE = "ledger.sqlite"
REGISTRY_FILE = "registry.sqlite"


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
) -> Setup:
    """The configuration in the file, or what the environment and this machine offer when there is none.

    Arguments win over TIERWISE_HOST, TIERWISE_PORT and TIERWISE_STATE, and those over the file. Raises ConfigError
    with every problem found.
    """
    located = read_file(path) if path is not None else Located({}, {})
    source = str(path) if path is not None else "the environment"
    base = path.parent if path is not None else Path()
    problems = Problems(located, source)
    file, misread = read(located, ConfigFile)
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
    registered = not keys and _has_keys(folder)
    parts.guard(server.host, keys, problems, registered=registered)
    problems.raise_any()
    return Setup(
        snapshot=build(catalogue, policies),
        server=server,
        keys=keys,
        budgets=budgets,
        journal=file.journal,
        state_dir=folder,
        secrets=Secrets(secrets),
        notes=(*notes, *parts.start_notes(catalogue, server, not keys and not registered)),
        source=source,
        simulated=any(catalogue.providers[model.provider].wire == "simulated" for model in catalogue.models.values()),
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
    return catalogue, found.notes


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
    for id, row in file.models.items():
        where = join("models", id)
        name, _, rest = id.partition("/")
        if not name or not rest or not id.isprintable() or " " in id:
            problems.add(where, "must be named provider/model, without spaces")
            continue
        if name not in providers:
            providers[name] = models.implied(where, name, providers, known, environ, problems)
        found[id] = _model(where, providers[name], rest, row or ModelEntry(), problems)
    return _Found(providers, found, file.tiers or TIERS)


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


# ------------------------------------------------------------------------------------------------ what runs


class Upstreams:
    """`Upstream` that asks the one that speaks the provider's wire: the simulated one, or HTTP for all others."""

    def __init__(self, setup: Setup) -> None:
        from tierwise.providers.http import HttpUpstream

        self.setup = setup
        # The secrets are asked at every send, so that a key changed by a reload is used at once.
        self.remote: Upstream = HttpUpstream(lambda reference: self.setup.secrets(reference))
        self.simulated = _simulated(setup)

    async def send(self, outgoing: Outgoing) -> Incoming:
        chosen = self.simulated if outgoing.provider.wire == "simulated" else self.remote
        return await chosen.send(outgoing)

    def swap(self, setup: Setup) -> None:
        """Other secrets and simulated models from now on. A reply that has begun keeps the one it came from."""
        self.setup = setup
        self.simulated = _simulated(setup)

    async def close(self) -> None:
        try:
            await self.remote.close()
        finally:
            await self.simulated.close()


def open_router(setup: Setup, *, in_memory: bool = False) -> Router:
    """A router that serves this configuration. `in_memory`: ledger and journal are forgotten with the process and no
    folder is made. Raises ConfigError when the state folder cannot be used, or another process holds its ledger."""
    from tierwise.routing.router import Router

    return Router(
        snapshot=setup.snapshot,
        journal=_journal(setup, in_memory),
        ledger=_ledger(setup, in_memory),
        upstream=Upstreams(setup),
        store_texts=setup.journal.store_texts,
        budget_status=setup.server.budget_status,
    )


def open_ledger(setup: Setup) -> Ledger:
    """The budgets of this configuration with nothing spent: for looking at a decision without a router."""
    from tierwise.stores.memory import MemoryLedger

    return MemoryLedger(setup.budgets)


def open_journal(folder: Path) -> Journal | None:
    """The journal of a state folder, to read from, also while a gateway writes it; None when there is none yet.
    Close it. Raises ConfigError when the file cannot be used."""
    from tierwise.stores.sqlite import SqliteJournal

    path = folder / JOURNAL_FILE
    return SqliteJournal(path) if path.is_file() else None


def open_reports(folder: Path) -> LedgerReports:
    """What may be asked of a state folder's ledger, also while a gateway writes it."""
    from tierwise.stores.ledger_reports import LedgerReports

    return LedgerReports(folder / LEDGER_FILE, folder / JOURNAL_FILE)


def open_registry(folder: Path | None) -> Registry:
    """The keys, budgets and credits that are made at runtime, in this state folder; None: in memory. Close it. Raises
    ConfigError when the file cannot be used."""
    from tierwise.stores.registry import SqliteRegistry

    if folder is None:
        return SqliteRegistry(None)
    make_state_folder(folder)
    return SqliteRegistry(folder / REGISTRY_FILE)


def _has_keys(folder: Path) -> bool:
    """Whether a key was ever made in this state folder; makes nothing there."""
    if not (folder / REGISTRY_FILE).is_file():
        return False
    registry = open_registry(folder)
    try:
        return bool(registry.read().keys)
    finally:
        registry.close()


def open_app(setup: Setup, *, in_memory: bool = False) -> App:
    """The same behind its doors: an ASGI application that knows the keys. `apply` changes it while it runs."""
    from tierwise.config_registry import Runtime
    from tierwise.server.app import App

    runtime = Runtime(open_registry(None if in_memory else setup.state_dir), setup)
    router = open_router(msgspec.structs.replace(setup, budgets=runtime.budgets()), in_memory=in_memory)
    app = App(router, runtime.keyring(), body_limit_bytes=setup.server.body_limit_bytes, runtime=runtime)
    runtime.attach(app)
    return app


def apply(app: App, setup: Setup) -> tuple[str, ...]:
    """From the next request on, `app` (from `open_app`) serves this configuration: all of it, in one step of the event
    loop. Money held stays held. Gives a sentence for each change that waits for a restart."""
    router = app.router
    if not isinstance(router.upstream, Upstreams):
        raise TypeError("apply changes what open_app has made, and nothing else")
    before = router.upstream.setup
    router.upstream.swap(setup)
    app.runtime.adopt(setup)
    router.books.store_texts = setup.journal.store_texts
    router.budget_status = setup.server.budget_status
    router.swap(setup.snapshot)
    app.body_limit_bytes = setup.server.body_limit_bytes
    changed = {
        "server.host": before.server.host != setup.server.host,
        "server.port": before.server.port != setup.server.port,
        "server.drain_s": before.server.drain_s != setup.server.drain_s,
        "journal.keep_days": before.journal.keep_days != setup.journal.keep_days,
        "the state folder": before.state_dir != setup.state_dir,
    }
    return tuple(f"A change of {name} waits for a restart." for name, is_changed in changed.items() if is_changed)


def _ledger(setup: Setup, in_memory: bool) -> Ledger:
    if in_memory:
        return open_ledger(setup)
    from tierwise.stores.ledger import SqliteLedger

    make_state_folder(setup.state_dir)
    return SqliteLedger(setup.state_dir / LEDGER_FILE, setup.budgets)


def _journal(setup: Setup, in_memory: bool) -> Journal:
    if in_memory:
        from tierwise.stores.memory import MemoryJournal

        return MemoryJournal()
    from tierwise.stores.sqlite import SqliteJournal

    make_state_folder(setup.state_dir)
    return SqliteJournal(setup.state_dir / JOURNAL_FILE, keep_days=setup.journal.keep_days)


def _simulated(setup: Setup) -> Upstream:
    from tierwise.providers.simulated import SimulatedUpstream

    catalogue = setup.snapshot.catalogue
    rows = [model for model in catalogue.models.values() if catalogue.providers[model.provider].wire == "simulated"]
    return SimulatedUpstream(tuple(rows))


def make_state_folder(path: Path) -> None:
    """The folder for ledger and journal, for its owner alone. Raises ConfigError when it cannot be made or used."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        what = f"the state folder {path} cannot be made: {error.strerror}; name another with --state"
        raise ConfigError((Problem("state", what),)) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError((Problem("state", f"the state folder {path} cannot be written; name another with --state"),))
