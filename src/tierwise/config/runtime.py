"""What is made at runtime joins what the file says: the registry's keys, budgets, credits and variances, in a running
application.

The file comes first: its keys keep their names, and of two budgets that are one and the same the tighter limit holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from tierwise.config.learned import Learned
from tierwise.config.shares import Kept
from tierwise.config.watching import Watching
from tierwise.core.budget import Budget, is_rate
from tierwise.core.errors import ConfigError, Unavailable
from tierwise.core.keys import Book, Credit, Grant, Issued, Registry, Variance, key_budgets, merged
from tierwise.core.ports import Ledger
from tierwise.server.auth import Keyring, Known, digest_of, identity_of
from tierwise.server.balance import scopes_of

if TYPE_CHECKING:
    from tierwise.config import Setup
    from tierwise.server.app import App

T = TypeVar("T")
_log = logging.getLogger("tierwise")
LOOK_S = 1.0  # between two looks at the registry; a revoked key is refused after this and a little
POSTED_AT_ONCE = 500


class Made(NamedTuple):
    """What a registry and a file come to. With 100,000 keys it takes a second or two, so it is made off the event loop,
    and put in force on it."""

    book: Book
    setup: Setup
    budgets: tuple[Budget, ...]
    keyring: Keyring


class Runtime:
    """One per application, from its opening to its close."""

    def __init__(self, registry: Registry, setup: Setup) -> None:
        self.registry = registry
        self.setup = setup
        self.kept: Kept | None = None  # what is usual for each key, where it is to outlive the process
        self.learned = Learned(setup.state_dir)
        self.watching = Watching(Learned(setup.state_dir))
        self.book = self._newest = registry.read()  # the one that is served, and the one that was read last
        self._budgets = self.budgets()
        self._posted: set[Credit | Variance] = set()  # those that the ledger has
        self._waiting = bool(self.book.credits or self.book.variances)  # some are not in the ledger yet
        self._said = ""  # of what waits, so that it is told once
        self._turn = asyncio.Lock()
        self._app: App | None = None

    def budgets(self) -> tuple[Budget, ...]:
        return _budgets(self.book, self.setup)

    def keys(self) -> tuple[Issued, ...]:
        """The registry's keys, whatever their state, but for those whose name is in the file."""
        return _keys(self.book, self.setup)

    def grants(self) -> dict[str, Grant]:
        """Every key by its name, also those of the file."""
        return {key.grant.name: key.grant for key in self.book.keys} | {key.name: key.grant for key in self.setup.keys}

    def keyring(self) -> Keyring:
        return _keyring(self.book, self.setup, self.registry.pepper)

    # -------------------------------------------------------------------------------------------- a running one

    def attach(self, app: App) -> None:
        """This application is the one to keep up to date."""
        self._app = app
        self._tell(app)

    def adopt(self, setup: Setup) -> None:
        """Another file: all of it in one step of the event loop."""
        self._serve(self._made(self.book, setup))
        self.learned.doubt()  # the file may have been read before what was promoted last

    def _made(self, book: Book, setup: Setup) -> Made:
        return Made(book, setup, _budgets(book, setup), _keyring(book, setup, self.registry.pepper))

    def _serve(self, made: Made) -> None:
        app = self._app
        if app is None:
            raise RuntimeError("attach an application first")
        self.book, self.setup = made.book, made.setup
        if made.budgets != self._budgets:
            self._budgets = made.budgets
            app.router.ledger.reload(made.budgets)
            self._tell(app)
        app.keys = made.keyring

    def _tell(self, app: App) -> None:
        """What the doors need to know of the budgets without asking the ledger."""
        app.rated = any(map(is_rate, self._budgets))
        app.followers.of_agents = tuple(budget for budget in self._budgets if scopes_of(budget))

    async def refresh(self) -> None:
        """Apply what others have changed. Raises ConfigError; what was there before stays. What a ledger cannot take
        now is told in the log, and the next look tries again."""
        async with self._turn:
            if await asyncio.to_thread(self.registry.changed):
                self._newest = await asyncio.to_thread(self.registry.read)
            await self._take()
            if self._waiting:
                await self._post()
            if await asyncio.to_thread(self.learned.changed):
                await self._learn()

    async def _learn(self) -> None:
        """Serve what was promoted meanwhile, from the next request on."""
        setup = self.setup
        found, notes = await asyncio.to_thread(self.learned.taught, setup.snapshot, grams=setup.journal.grams)
        for note in notes:
            _log.error("%s", note)
        if self.setup is not setup:  # the file has changed meanwhile
            self.learned.doubt()
        elif self._app is not None and found.hash != setup.snapshot.hash:
            self.setup = msgspec.structs.replace(setup, snapshot=found)
            self._app.router.swap(found)
            _log.info("learned: snapshot %s", found.hash)

    async def manage(self, work: Callable[[Book], T]) -> T:
        """Do something with the registry as it is now, alone, and serve what it changed before this returns."""

        def alone() -> T:
            self._newest = self.registry.read()
            try:
                return work(self._newest)
            finally:
                if self.registry.changed():
                    self._newest = self.registry.read()

        async with self._turn:
            try:
                return await asyncio.to_thread(alone)
            finally:  # of a caller who has gone meanwhile, the next look serves what was read
                await self._take()
                if self._waiting:  # a secret is told once: that something has to wait is no error then
                    await self._post()

    async def _take(self) -> None:
        """Serve what was read last."""
        while self._newest is not self.book:
            newest, setup = self._newest, self.setup
            if await asyncio.to_thread(newest.__eq__, self.book):
                self.book = newest
                continue
            made = await asyncio.to_thread(self._made, newest, setup)
            if self.setup is setup:  # else the file has changed meanwhile
                self._serve(made)
                self._waiting = bool(self._fresh())

    def _fresh(self) -> list[Credit | Variance]:
        every: tuple[Credit | Variance, ...] = (*self.book.credits, *self.book.variances)
        return [each for each in every if each not in self._posted]

    async def _post(self) -> None:
        """What waits, into the ledger; when it cannot be written, again at the next look."""
        fresh = self._fresh()
        # The ledger counts an id once, so it does no harm that every start tries them all; many at once, for one commit
        # each would keep whoever is revoked meanwhile.
        try:
            for start in range(0, len(fresh), POSTED_AT_ONCE):
                some = fresh[start : start + POSTED_AT_ONCE]
                await asyncio.gather(*map(self._post_one, some))
                self._posted.update(some)
        except Unavailable:
            self._say(self._fresh())
        else:
            self._waiting, self._said = False, ""

    async def _post_one(self, each: Credit | Variance) -> None:
        ledger = self._ledger()
        match each:
            case Credit():
                await ledger.grant(each.id, each.scope, each.subject, each.amount_nano)
            case Variance():
                await ledger.vary(each.id, each.line, each.subject, each.amount_nano, each.note)

    def _say(self, waiting: list[Credit | Variance]) -> None:
        credits = sum(isinstance(each, Credit) for each in waiting)
        named = ((credits, "top-up"), (len(waiting) - credits, "variance"))
        what = " and ".join(f"{count} {name}{'s' * (count != 1)}" for count, name in named if count)
        why = self._ledger().last_error or "it takes nothing now"
        said = f"{what} made at runtime cannot be written to the ledger ({why}) and will count as soon as it can"
        if said != self._said:
            self._said = said
            _log.error("%s; until then calls are refused", said)

    def _ledger(self) -> Ledger:
        if self._app is None:
            raise RuntimeError("attach an application first")
        return self._app.router.ledger

    async def follow(self) -> None:
        """Look again and again, until cancelled."""
        said = ""
        while True:
            try:
                await self.refresh()
                said = ""
            except ConfigError as error:
                if str(error) != said:
                    said = str(error)
                    _log.error("keys, budgets and credits made at runtime were not read: %s", error)
            except Exception:  # ours; a key revoked in the next second must be seen all the same
                _log.exception("keys, budgets and credits made at runtime were not read")
            await asyncio.sleep(LOOK_S)

    async def watch(self) -> None:
        """Look at fresh traffic, again and again, until cancelled."""
        if self._app is not None:
            kept = [self.kept.follow()] if self.kept else []
            await asyncio.gather(self.watching.follow(self._app.router.journal), *kept)

    def close(self) -> None:
        if self.kept:
            self.kept.keep()
        self.registry.close()


def _budgets(book: Book, setup: Setup) -> tuple[Budget, ...]:
    """Those of the file and its keys, those set at runtime, and the limits of the registry's keys."""
    limits = (each for key in _keys(book, setup) for each in key_budgets(key.grant.name, key.grant.limits))
    return merged((*setup.budgets, *book.budgets, *limits))


def _keys(book: Book, setup: Setup) -> tuple[Issued, ...]:
    named = {key.name for key in setup.keys}
    return tuple(key for key in book.keys if key.grant.name not in named)


def _keyring(book: Book, setup: Setup, pepper: bytes) -> Keyring:
    known = [Known(digest_of(pepper, key.secret.reveal()), identity_of(key.grant)) for key in setup.keys]
    live = {key.grant.name: key.grant for key in _keys(book, setup) if key.revoked_s is None}
    for secret in book.secrets:
        if (grant := live.get(secret.key)) is not None:
            ends = [each for each in (secret.until_s, grant.expires_s) if each is not None]
            known.append(Known(secret.hash, identity_of(grant), min(ends, default=None)))
    # A key that was revoked closes the door behind it: without it nobody is anybody again.
    return Keyring(known, pepper=pepper, open=not setup.keys and not book.keys)
