"""A simulator of everything that can happen to the books: one seed, one run, the same every time.

It owns time, order and faults, and drives the pure `Books`: requests at once on trees of payers, retries of one id,
races of settle, release, expire and correct, windows that roll over, clocks that jump, limits that change, credits,
crashes (what was committed is all that is left; open holds come back as suspense) and settlements that come late. Each
answer is compared with `Reference`, each commit is replayed by `File`, and in the end nothing may be held.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from tests.support.reference import File, Reference
from tierwise.core.budget import Budget, Charge, Denial, Hold
from tierwise.core.money import Usage
from tierwise.core.request import Payer
from tierwise.stores.ledger.accounts import Counts, Key, Line
from tierwise.stores.ledger.books import SUSPENSE_S, Books
from tierwise.stores.ledger.rows import Changes, HoldRow
from tierwise.stores.ledger.windows import DAY_S, NEVER_S

BEGIN_S = 1_772_236_800  # 2026-02-28 00:00 UTC; a month's end and, within the longest runs, a change of the clocks
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Pacific/Apia")
WINDOWS = ("minute", "hour", "day", "week", "month")


@dataclass
class Story:
    """What one run came to."""

    seed: int
    events: int = 0
    held: int = 0
    denied: int = 0
    crashes: int = 0
    commits: int = 0
    closed: int = 0
    wrong: list[str] = field(default_factory=list)


class Simulation:
    """`books` makes the books under test; `early`: a ledger that acknowledges before it has committed (a mutant)."""

    def __init__(self, seed: int, books: type[Books] = Books, *, early: bool = False, requests: int = 60) -> None:
        self.rng = random.Random(seed)
        self.make, self.early = books, early
        self.story = Story(seed)
        self.now_ms, self.offset_s = BEGIN_S * 1_000 + self.rng.randrange(40 * DAY_S) * 1_000, 0
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.number = 0
        self.budgets = self._budgets()
        self.file = File()
        self.reference = Reference(self.budgets)
        self.durable = self.reference.copy()  # as of the last commit
        self.writing: tuple[Changes, Reference, list[str]] | None = None
        self.waiting: list[str] = []  # holds that are to be acknowledged with the next commit
        self.acknowledged: set[str] = set()
        self.truth: dict[str, int] = {}  # what an acknowledged hold will turn out to cost, if it is asked
        self.books = self._open()
        self.last_at = self.now_ms
        arrivals = []
        for number in range(requests):
            self.last_at += self.rng.choice((0, 0, 0, 1, 40, 900, 20_000, 600_000, 5_000_000, 40_000_000))
            self.at(self.last_at, partial(self._arrive, number))
            arrivals.append(self.last_at)
        for _ in range(self.rng.randrange(12)):
            fault = self.rng.choice((self._jump, self._crash, self._crash, self._reload, self._vary, self._sweep))
            # Half of the faults come when there is most to break: just after somebody has asked.
            soon = self.rng.choice(arrivals) + self.rng.choice((0, 1, 2, 30, 900))
            self.at(soon if self.rng.random() < 0.5 else self.rng.randint(self.now_ms, self.last_at), fault)

    # -------------------------------------------------------------------------------------------- time

    @property
    def at_s(self) -> int:
        return self.now_ms // 1_000 + self.offset_s

    def at(self, when_ms: int, what: Callable[[], None]) -> None:
        self.number += 1
        heapq.heappush(self.queue, (when_ms, self.number, what))

    def after(self, ms: int, what: Callable[[], None]) -> None:
        self.at(self.now_ms + ms, what)

    def run(self) -> Story:
        while self.queue:
            self.now_ms, _, event = heapq.heappop(self.queue)
            self.story.events += 1
            event()
            self._write()
            if self.story.wrong or self.file.wrong:
                break
        if not self.story.wrong and not self.file.wrong:
            self._end()
        self.story.commits = self.file.commits
        self.story.wrong += self.file.wrong
        return self.story

    def wrong(self, what: str) -> None:
        self.story.wrong.append(f"at {self.at_s}: {what}")

    # -------------------------------------------------------------------------------------------- the world

    def _budgets(self) -> tuple[Budget, ...]:
        rng = self.rng

        def window() -> dict[str, Any]:
            name = rng.choice((*WINDOWS, "lifetime"))
            rolling = name != "lifetime" and rng.random() < 0.3
            return {"window": name, "rolling": rolling, "zone": "UTC" if rolling else rng.choice(ZONES)}

        every = (
            Budget(scope="organisation", limit_nano=rng.randint(1_000, 12_000), **window()),
            Budget(scope="team", limit_nano=rng.randint(500, 6_000), calls=rng.choice((None, 30)), **window()),
            Budget(scope="user", limit_nano=rng.randint(300, 4_000), hard=rng.random() < 0.8, **window()),
            Budget(
                scope="key", tokens=rng.choice((None, 4_000)), calls=9, parallel=4, **{**window(), "window": "minute"}
            ),
            Budget(scope="session", limit_nano=rng.randint(200, 2_000), steps=rng.choice((None, 5))),
            Budget(scope="workflow", limit_nano=rng.randint(500, 5_000), parallel=rng.choice((None, 6))),
            Budget(scope="tag", match=(("project", "x"),), limit_nano=rng.randint(500, 5_000), **window()),
            Budget(scope="request", limit_nano=rng.randint(200, 800)),
        )
        return tuple(each for each in every if rng.random() < 0.85)

    def _payer(self) -> Payer:
        organisation, team = self.rng.choice("ab"), self.rng.choice("st")
        user, key = self.rng.choice(("u", "v")), self.rng.choice(("k", "l"))
        tags = (("project", self.rng.choice("xy")),) if self.rng.random() < 0.5 else ()
        return Payer(key=f"{organisation}{user}{key}", user=user, team=team, organisation=organisation, tags=tags)

    # -------------------------------------------------------------------------------------------- a request

    def _arrive(self, number: int) -> None:
        rng = self.rng
        payer, request = self._payer(), f"r{number}"
        session, workflow = rng.choice(("", "s1", "s2")), rng.choice(("", "w1"))
        cap = rng.randint(100, 900) if rng.random() < 0.3 else None
        if rng.random() < 0.05:
            self._grant(f"g{rng.randrange(6)}", payer)
        for attempt in range(rng.choice((1, 1, 1, 2, 3))):
            hold = Hold(
                id=f"{request}.{attempt}",
                payer=payer,
                session=session,
                workflow=workflow,
                model="m",
                amount_nano=rng.choice((0, rng.randint(1, 100), rng.randint(1, 600))),
                at_s=self.at_s,
                tokens=rng.randrange(400),
                steps=1 if attempt == 0 else 0,
                request_limit_nano=cap,
                request=request,
                least_nano=rng.randrange(50),
            )
            delay = 0 if attempt == 0 else rng.choice((0, 1, 30, 2_000))
            self.after(delay, partial(self._ask, hold))
            for _ in range(rng.choice((0, 0, 0, 1, 2))):
                self.after(delay + rng.choice((0, 1, 500, 100_000)), partial(self._ask, hold))

    def _ask(self, hold: Hold) -> None:
        known = hold.id in self.reference.holds
        why_not = "" if known else self.reference.why_not(hold)
        denial = self.books.hold(hold)
        if (denial is None) != (why_not == "") and not self.reference.unsure:
            return self.wrong(f"{hold.id} should be {why_not or 'held'}, but the books say {denial or 'held'}")
        if denial is not None:
            self.story.denied += 1
            return self._denied(hold, denial)
        if not known:
            self.reference.held(hold)
            self.story.held += 1
        if self.early:
            self._acknowledge(hold.id)
        else:
            self.waiting.append(hold.id)
        return None

    def _denied(self, hold: Hold, denial: Denial) -> None:
        if hold.id in self.books._open:
            self.wrong(f"{hold.id} was refused and is held")
        less = msgspec.structs.replace(hold, id=f"{hold.id} less", amount_nano=denial.affordable_nano)
        money = denial.code in ("budget_exceeded", "held_by_others", "credit_exhausted")
        if money and not 0 <= denial.affordable_nano < hold.amount_nano:
            self.wrong(f"{hold.id} is refused and told that {denial.affordable_nano} would do")
        elif money and self.reference.why_not(less).count("does not fit") and not self.reference.unsure:
            self.wrong(f"{hold.id}: what is told to be affordable is not")

    def _acknowledge(self, id: str) -> None:
        if id in self.acknowledged:
            return
        self.acknowledged.add(id)
        rng = self.rng
        amount = self.reference.holds[id].hold.amount_nano
        cost = rng.choice((amount, rng.randint(0, amount), rng.randint(0, amount), amount + rng.randrange(300)))
        latency = rng.choice((0, 5, 800, 30_000, 4_000_000))
        if rng.random() < 0.3:
            self.after(latency // 2, lambda: self._checkpoint(id, rng.randrange(200)))
        kind = "released" if rng.random() < 0.12 else rng.choice(("reported", "estimated"))
        closers = rng.choice((1, 1, 1, 2, 3))
        for closer in range(closers):  # racing: the first one closes
            other = kind if closer == 0 or rng.random() < 0.5 else rng.choice(("released", "reported"))
            self.after(latency + rng.choice((0, 0, 1)), partial(self._settle, id, other, cost))
        if rng.random() < 0.1:
            late = rng.choice((10, 100_000, 90_000_000, 200_000_000))
            self.after(latency + late, lambda: self._correct(id, rng.randrange(700)))

    def _settle(self, id: str, kind: str, cost: int) -> None:
        if self.rng.random() < 0.04:
            return  # whoever should have settled is gone
        tokens = self.rng.randrange(400)
        charge = Charge(cost_nano=cost, kind=kind, usage=Usage(input_tokens=tokens))  # type: ignore[arg-type]  # a kind
        self.books.settle(id, charge, self.at_s)
        self.reference.settled(id, kind, cost, tokens)
        self.story.closed += 1

    def _checkpoint(self, id: str, least: int) -> None:
        self.books.checkpoint(id, least)
        known = self.reference.holds.get(id)
        if known is not None and known.state in ("open", "suspense"):
            self.reference.change_of(id, least=max(known.least, min(least, known.hold.amount_nano)))

    def _correct(self, id: str, cost: int) -> None:
        if self.books.correct(id, cost, self.at_s) != self.reference.corrected(id, cost):
            self.wrong(f"{id} was or was not to be corrected")

    # -------------------------------------------------------------------------------------------- faults

    def _grant(self, id: str, payer: Payer) -> None:
        scope = self.rng.choice(("user", "team", "organisation"))
        amount = self.rng.choice((500, 2_000, -100))
        told = self.books.grant(id, scope, str(getattr(payer, scope)), amount, self.at_s)
        if told != (id not in self.reference.grants):
            self.wrong(f"grant {id} counted {'again' if told else 'not at all'}")
        if told:
            self.reference.grants.add(id)
            key = (scope, str(getattr(payer, scope)))
            self.reference.credits[key] = self.reference.credits.get(key, 0) + amount

    def _vary(self) -> None:
        line = self.rng.choice(self.reference.lines) if self.reference.lines else None
        if line is None or line.budget.scope not in ("organisation", "team", "user"):
            return
        subject, amount = self.rng.choice({"organisation": "ab", "team": "st", "user": "uv"}[line.budget.scope]), 50
        if self.books.vary(line.id, subject, amount, self.at_s, "invoice"):
            key = self.reference.key(line, subject, self.at_s)
            self.reference.variances[key] = self.reference.variances.get(key, 0) + amount

    def _jump(self) -> None:
        self.offset_s = self.rng.choice((0, 3_600, -3_600, DAY_S, -DAY_S, 40 * DAY_S, 59, -1))

    def _reload(self) -> None:
        """Other limits, a budget fewer, or all of them again."""
        changed = []
        for budget in self.budgets:
            if budget.limit_nano is not None and self.rng.random() < 0.4:
                budget = msgspec.structs.replace(budget, limit_nano=self.rng.randint(0, 2 * budget.limit_nano))
            if self.rng.random() < 0.85:
                changed.append(budget)
        self.books.reload(tuple(changed))
        self.reference.change(tuple(changed))
        self.durable.change(tuple(changed))  # a configuration is no part of a commit
        if self.writing is not None:
            self.writing[1].change(tuple(changed))
        self.configured = tuple(changed)

    def _sweep(self) -> None:
        """What a ledger does from time to time: give up on old holds, and settle those that stay silent."""
        before_s = self.at_s - self.rng.choice((0, 60, 4_000))
        self.books.expire(before_s)
        self.books.resolve(self.at_s)
        for id, known in list(self.reference.holds.items()):
            if known.state == "open" and known.hold.at_s < before_s:
                known = msgspec.structs.replace(known, state="suspense")
            if known.state == "suspense" and known.hold.at_s + SUSPENSE_S <= self.at_s:
                known = msgspec.structs.replace(known, state="written off", cost=known.least)
            self.reference.holds[id] = known

    def _crash(self) -> None:
        """Only what is committed is left. A commit under way may have reached the disk, or not."""
        self.story.crashes += 1
        if found := self.books.audit():
            self.wrong(f"before a crash: {found[0]}")
        if self.writing is not None and self.rng.random() < 0.5:
            self._commit(acknowledge=False)
        self.writing, self.waiting = None, []
        self.reference = self.durable.copy()
        self.reference.clocks = {}
        self.books = self._open()
        for id, known in self.reference.holds.items():
            if known.state == "open":
                self.reference.change_of(id, state="suspense")
        for id in self.acknowledged - self.reference.holds.keys():
            self.wrong(f"{id} was acknowledged and is lost")
        if found := self.books.audit():
            self.wrong(f"after a crash: {found[0]}")

    # -------------------------------------------------------------------------------------------- keeping

    configured: tuple[Budget, ...] | None = None

    def _open(self) -> Books:
        budgets = self.budgets if self.configured is None else self.configured
        books = self.make(budgets, load=self._load, load_hold=self._load_hold)
        prepaid = [(key[0].removeprefix("credit/"), key[1]) for key in self.file.granted]
        books.restore(self.file.open(), prepaid)
        return books

    def _load(self, key: Key) -> Counts | None:
        """A store shows what it is writing as well as what it has written."""
        if self.writing is not None and key in self.writing[0].accounts:
            return self.writing[0].accounts[key]
        return self.file.accounts.get(key)

    def _load_hold(self, id: str) -> HoldRow | None:
        if self.writing is not None and id in self.writing[0].holds:
            row = self.writing[0].holds[id]
            return row if row.state in ("settled", "released") or row.closed_s else None
        return self.file.closed(id)

    def _write(self) -> None:
        """One commit at a time, and the next one gathers what came meanwhile."""
        if self.writing is not None:
            return
        changes = self.books.take()
        if changes.accounts or changes.holds or changes.entries or self.waiting:
            self.writing = (changes, self.reference.copy(), self.waiting)
            self.waiting = []
            token = self.writing
            self.after(self.rng.choice((0, 1, 20, 1_000)), lambda: self._commit() if self.writing is token else None)

    def _commit(self, *, acknowledge: bool = True) -> None:
        assert self.writing is not None
        changes, reference, waiting = self.writing
        self.writing = None
        self.file.commit(changes, {line.id: line.budget.hard for line in reference.lines})
        self.durable = reference
        for row in changes.holds.values():
            known = reference.holds.get(row.id)
            if row.id.startswith("grant "):
                continue
            if known is None or (reference.state_of(row), sorted(row.accounts)) != (known.state, sorted(known.keys)):
                self.wrong(f"{row} should be {known}")
            elif row.cost_nano != known.cost:
                self.wrong(f"{row.id} cost {row.cost_nano}, and should {known.cost}")
        if acknowledge:
            for id in waiting:
                self._acknowledge(id)

    def _end(self) -> None:
        """Everybody has gone; two days later nothing may be held."""
        for later_s in (0, 1, 2 * SUSPENSE_S):
            self.now_ms += later_s * 1_000
            self.offset_s = max(self.offset_s, 0)
            self._sweep_all()
            while self.writing is not None:
                self._commit(acknowledge=False)
                self._write()
        if self.books.open_holds() or self.file.open():
            self.wrong(f"{self.books.open_holds()} holds stay open, {len(self.file.open())} in the file")
        for found in self.books.audit():
            self.wrong(f"at the end: {found}")
        for key in self.file.accounts:
            self.file.check(key, {line.id: line.budget.hard for line in self.reference.lines})
        if self.books.ignored > self.story.closed:
            self.wrong("more settlements were ignored than made")

    def _sweep_all(self) -> None:
        for id, known in self.reference.holds.items():
            if known.state == "open":
                self.reference.change_of(id, state="suspense")
        at_s = max(self.at_s, max((each.hold.at_s for each in self.reference.holds.values()), default=0) + SUSPENSE_S)
        self.books.expire(NEVER_S)
        self.books.resolve(at_s)
        for id, known in self.reference.holds.items():
            if self.reference.holds[id].state == "suspense":
                self.reference.change_of(id, state="written off", cost=known.least)
        self._write()


def simulate(seed: int, books: type[Books] = Books, *, early: bool = False) -> Story:
    return Simulation(seed, books, early=early).run()


# ------------------------------------------------------------------------------------------------ mutants


class SettlesTwice(Books):
    """A second settlement posts again: a counter that everybody may add to."""

    def settle(self, hold_id: str, charge: Charge, at_s: int) -> None:
        row = self._closed.get(hold_id)
        super().settle(hold_id, charge, at_s)
        if row is not None and row.state == "settled" and charge.kind != "released":
            for key in row.accounts:
                self._post(self._account(key), charge.cost_nano)


class ChecksOneLevel(Books):
    """Only the first budget of the path is asked; the others refuse nothing."""

    def hold(self, hold: Hold) -> Denial | None:
        passed = self._lines.ways[hold.payer, hold.session, hold.workflow].passed
        if hold.request_limit_nano is not None:
            passed = [*passed, (self._caps, "")]
        for place, (line, _) in enumerate(passed):
            line.hard = line.budget.hard and place == 0
        return super().hold(hold)


class ForgetsHolds(Books):
    """A restart that begins with no open holds."""

    def restore(self, rows: list[HoldRow], prepaid: list[tuple[str, str]], *others: Any) -> None:
        super().restore([], prepaid)


class _MovesBack(Line):
    def _move(self, at_s: int) -> None:
        if self.window != "lifetime" and not self.rolling and at_s < self.start_s:
            self.start_s = self.end_s = -NEVER_S
        super()._move(at_s)


class MovesBack(Books):
    """A window that follows the clock backwards, and is spent again."""

    def hold(self, hold: Hold) -> Denial | None:
        for line in self._lines:
            line.__class__ = _MovesBack
            line._move(hold.at_s)
        return super().hold(hold)


MUTANTS: dict[str, type[Books]] = {
    "a settlement posts twice": SettlesTwice,
    "a hold asks one level only": ChecksOneLevel,
    "a restart forgets open holds": ForgetsHolds,
    "a window moves back": MovesBack,
}
