"""What runs, made of a configuration: router, ledger, journal, registry and the application. With `setup`, the only
place that names a backend."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from tierwise.config.setup import Setup
from tierwise.config.state import JOURNAL_FILE, LEDGER_FILE, make_state_folder, open_registry
from tierwise.core.ports import Incoming, Journal, Ledger, Outgoing, Upstream

if TYPE_CHECKING:
    from tierwise.routing.router import Router
    from tierwise.server.app import App


class Upstreams:
    """`Upstream` that asks the one that speaks the provider's wire: the simulated one, or HTTP for all others."""

    def __init__(self, setup: Setup) -> None:
        from tierwise.providers.http import HttpUpstream

        self.setup = setup
        # The secrets are asked at every send, so that a key changed by a reload is used at once.
        self.remote: Upstream = HttpUpstream(lambda reference: self.setup.secrets(reference))
        self.simulated = _simulated(setup)

    def send(self, outgoing: Outgoing) -> Coroutine[Any, Any, Incoming]:
        return (self.simulated if outgoing.provider.wire == "simulated" else self.remote).send(outgoing)

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


def open_app(setup: Setup, *, in_memory: bool = False) -> App:
    """The same behind its doors: an ASGI application that knows the keys. `apply` changes it while it runs."""
    from tierwise.config.runtime import Runtime
    from tierwise.config.shares import FILE, Kept
    from tierwise.server.app import App

    runtime = Runtime(open_registry(None if in_memory else setup.state_dir), setup)
    router = open_router(msgspec.structs.replace(setup, budgets=runtime.budgets()), in_memory=in_memory)
    app = App(router, runtime.keyring(), body_limit_bytes=setup.server.body_limit_bytes, runtime=runtime)
    runtime.attach(app)
    if not in_memory:
        runtime.kept = Kept(setup.state_dir / FILE, router.books.shares)
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
    from tierwise.stores.ledger.sqlite import SqliteLedger

    make_state_folder(setup.state_dir)
    return SqliteLedger(setup.state_dir / LEDGER_FILE, setup.budgets)


def _journal(setup: Setup, in_memory: bool) -> Journal:
    if in_memory:
        from tierwise.stores.memory import MemoryJournal

        return MemoryJournal()
    from tierwise.stores.journal import SqliteJournal

    make_state_folder(setup.state_dir)
    return SqliteJournal(setup.state_dir / JOURNAL_FILE, keep_days=setup.journal.keep_days)


def _simulated(setup: Setup) -> Upstream:
    from tierwise.providers.simulated import SimulatedUpstream

    catalogue = setup.snapshot.catalogue
    rows = [model for model in catalogue.models.values() if model.id in catalogue.simulated]
    return SimulatedUpstream(tuple(rows))
