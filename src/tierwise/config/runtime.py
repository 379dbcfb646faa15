"""What is made at runtime joins what the file says: the registry's keys, budgets and credits, in a running application.

The file comes first: its keys keep their names, and of two budgets that are one and the same the tighter limit holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from tierwise.core.budget import Budget, is_rate
from tierwise.core.errors import ConfigError, Unavailable
from tierwise.core.keys import Book, Grant, Issued, Registry, key_budgets, merged
from tierwise.server.auth import Keyring, Known, digest_of, identity_of

if TYPE_CHECKING:
    from tierwise.config import Setup
    from tierwise.server.app import App

T = TypeVar("T")
_log = logging.getLogger("tierwise")
LOOK_S = 1.0  # between two looks at the registry; a revoked key is refused after this and a little
CREDITS_AT_ONCE = 500


class Runtime:
    """One per application, from its opening to its close."""

    def __init__(self, registry: Registry, setup: Setup) -> None:
        self.registry = registry
        self.setup = setup
        self.book = registry.read()
        self._budgets = self.budgets()
        self._credited: set[str] = set()
        self._waiting = bool(self.book.credits)  # some are not in the ledger yet
        self._turn = asyncio.Lock()
        self._app: App | None = None

    def budgets(self) -> tuple[Budget, ...]:
        """Those of the file and its keys, those set at runtime, and the limits of the registry's keys."""
        limits = (each for key in self.keys() for each in key_budgets(key.grant.name, key.grant.limits))
        return merged((*self.setup.budgets, *self.book.budgets, *limits))

    def keys(self) -> tuple[Issued, ...]:
        """The registry's keys, whatever their state, but for those whose name is in the file."""
        named = {key.name for key in self.setup.keys}
        return tuple(key for key in self.book.keys if key.grant.name not in named)

    def grants(self) -> dict[str, Grant]:
        """Every key by its name, also those of the file."""
        return {key.grant.name: key.grant for key in self.book.keys} | {key.name: key.grant for key in self.setup.keys}

    def keyring(self) -> Keyring:
        pepper = self.registry.pepper
        known = [Known(digest_of(pepper, key.secret.reveal()), identity_of(key.grant)) for key in self.setup.keys]
        live = {key.grant.name: key.grant for key in self.keys() if key.revoked_s is None}
        for secret in self.book.secrets:
            if (grant := live.get(secret.key)) is not None:
                ends = [each for each in (secret.until_s, grant.expires_s) if each is not None]
                known.append(Known(secret.hash, identity_of(grant), min(ends, default=None)))
        # A key that was revoked closes the door behind it: without it nobody is anybody again.
        return Keyring(known, pepper=pepper, open=not self.setup.keys and not self.book.keys)

    # -------------------------------------------------------------------------------------------- a running one

    def attach(self, app: App) -> None:
        """This application is the one to keep up to date."""
        self._app = app
        app.rated = any(map(is_rate, self._budgets))

    def adopt(self, setup: Setup) -> None:
        """Another file, or what was just read: all of it in one step of the event loop."""
        app = self._app
        if app is None:
            raise RuntimeError("attach an application first")
        self.setup = setup
        budgets = self.budgets()
        if budgets != self._budgets:
            app.router.ledger.reload(budgets)
            app.rated = any(map(is_rate, budgets))
        self._budgets = budgets
        app.keys = self.keyring()

    async def refresh(self) -> None:
        """Apply what others have changed. Raises ConfigError, and Unavailable for a ledger that cannot take a credit
        now; what was there before stays, and the next look tries again."""
        async with self._turn:
            if await asyncio.to_thread(self.registry.changed):
                self._take(await asyncio.to_thread(self.registry.read))
            if self._waiting:
                await self._credit()

    async def manage(self, work: Callable[[Book], T]) -> T:
        """Do something with the registry as it is now, alone, and serve what it changed before this returns."""
        seen: list[Book] = []

        def alone() -> T:
            seen.append(self.registry.read())
            try:
                return work(seen[0])
            finally:
                if self.registry.changed():
                    seen.append(self.registry.read())

        async with self._turn:
            try:
                return await asyncio.to_thread(alone)
            finally:
                if seen and seen[-1] != self.book:
                    self._take(seen[-1])
                if self._waiting:
                    await self._credit_if_possible()

    def _take(self, book: Book) -> None:
        self.book = book
        self._waiting = any(credit.id not in self._credited for credit in book.credits)
        self.adopt(self.setup)

    async def _credit(self) -> None:
        if self._app is None:
            raise RuntimeError("attach an application first")
        grant = self._app.router.ledger.grant
        fresh = [credit for credit in self.book.credits if credit.id not in self._credited]
        # The ledger counts an id once, so it does no harm that every start tries them all; many at once, for one commit
        # each would keep whoever is revoked meanwhile.
        for start in range(0, len(fresh), CREDITS_AT_ONCE):
            some = fresh[start : start + CREDITS_AT_ONCE]
            await asyncio.gather(*(grant(each.id, each.scope, each.subject, each.amount_nano) for each in some))
            self._credited.update(each.id for each in some)
        self._waiting = False

    async def _credit_if_possible(self) -> None:
        """What an admin has done is done, and a secret is told once: that a credit has to wait is no error then."""
        try:
            await self._credit()
        except Unavailable as error:
            _log.error("credits made at runtime wait for the ledger: %s", error)

    async def follow(self) -> None:
        """Look again and again, until cancelled."""
        said = ""
        while True:
            try:
                await self.refresh()
                said = ""
            except (ConfigError, Unavailable) as error:
                if str(error) != said:
                    said = str(error)
                    _log.error("keys, budgets and credits made at runtime were not read: %s", error)
            except Exception:  # ours; a key revoked in the next second must be seen all the same
                _log.exception("keys, budgets and credits made at runtime were not read")
            await asyncio.sleep(LOOK_S)

    def close(self) -> None:
        self.registry.close()
