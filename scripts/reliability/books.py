"""Runs over the pure books: no file, no socket, no clock. Simulator, model, races, windows, clocks, prices."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from scripts.reliability.bars import Check, Found, Run, Scale, count
from tests.support.ledgers import LEDGERS, NEW_YEAR, MemoryLedgers, a_hold, path_of
from tests.support.simulator import MUTANTS, ChecksOneLevel, MovesBack, SettlesTwice, simulate
from tierwise.core.budget import Budget, Charge
from tierwise.core.request import Hints
from tierwise.stores.ledger.accounts import Account
from tierwise.stores.ledger.books import Books
from tierwise.stores.ledger.reading import balances_of
from tierwise.stores.ledger.windows import window_of
from tierwise.stores.memory import MemoryLedger


def simulator(scale: Scale) -> Found:
    seeds, tries = scale.of(10_000, 12), scale.of(300, 30)
    every = range(scale.seed, scale.seed + seeds)
    if scale.full:  # a seed knows nothing of the others
        with ProcessPoolExecutor() as pool:
            stories = list(pool.map(simulate, every, chunksize=50))
    else:
        stories = [simulate(seed) for seed in every]
    events, crashes = sum(each.events for each in stories), sum(each.crashes for each in stories)
    commits = sum(each.commits for each in stories)
    wrong = [f"seed {story.seed}: {story.wrong[0]}" for story in stories if story.wrong]
    caught = {name: _first(tries, scale.seed, books) for name, books in MUTANTS.items()}
    caught["acknowledged before the commit"] = _first(tries, scale.seed, Books, early=True)
    told = "; ".join(f"{name}: {'missed' if at is None else f'found by seed {at}'}" for name, at in caught.items())
    return Found(
        n=f"{count(seeds)} seeds, {count(events)} events, {count(commits)} commits, {count(crashes)} crashes",
        figure=f"{len(wrong)} violations" + (f" ({wrong[0]})" if wrong else ""),
        checks=(Check("violations", len(wrong), "=", 0), Check("crashes", crashes, ">", 0)),
        mutant=told,
        caught=None not in caught.values(),
    )


def _first(tries: int, seed: int, books: type[Books], *, early: bool = False) -> int | None:
    return next((each for each in range(seed, seed + tries) if simulate(each, books, early=early).wrong), None)


def model(scale: Scale) -> Found:
    """The state machine of tests/test_ledger_model.py with larger settings."""
    examples, steps = scale.of(2_000, 12), scale.of(50, 20)
    # A file for each example, which is audited in the end, takes its time.
    most = {name: examples if name == "memory" else -(-examples // 50) for name in LEDGERS}
    found = {name: _model_fault(make, most[name], steps, scale.seed) for name, make in LEDGERS.items()}
    wrong = {name: fault for name, fault in found.items() if fault}
    caught = _model_fault(OneLevelLedgers, 200, 30, scale.seed)
    return Found(
        n=", ".join(f"{count(each * steps)} steps of the {name} ledger" for name, each in most.items()),
        figure=f"{len(wrong)} violations" + (f" ({wrong})" if wrong else ""),
        checks=(Check("violations", len(wrong), "=", 0),),
        mutant=f"a hold asks one level only: {'found' if caught else 'missed'}",
        caught=bool(caught),
    )


class OneLevelLedgers(MemoryLedgers):
    def __call__(self, budgets: tuple[Budget, ...] = (), *given: Any, **named: Any) -> Any:
        ledger = super().__call__(budgets, *given, **named)
        ledger.books = ChecksOneLevel(budgets)
        return ledger


def _model_fault(make: Callable[[], Any], examples: int, steps: int, seed: int) -> str:
    from hypothesis import HealthCheck, Phase, settings
    from hypothesis.stateful import run_state_machine_as_test

    from tests.test_ledger_model import AgainstAModel

    machine = type("Machine", (AgainstAModel,), {"make": staticmethod(make)})
    given = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        derandomize=seed == 1,
    )
    try:
        run_state_machine_as_test(machine, settings=given)
    except AssertionError as error:
        return str(error).split("\n")[0] or "an assertion"
    return ""


# ------------------------------------------------------------------------------------------------ races


def races(scale: Scale) -> Found:
    holds, ids = scale.of(10_000, 300), scale.of(1_000, 30)
    wrong = _raced(Books, holds, ids, scale.seed)
    caught = _raced(SettlesTwice, 300, 30, scale.seed)
    return Found(
        n=f"{count(holds)} holds × 3 closers, {count(ids)} ids × 10 retries",
        figure=f"{len(wrong)} closures too many or too few" + (f": {wrong[0]}" if wrong else ""),
        checks=(Check("closures too many or too few", len(wrong), "=", 0),),
        mutant=f"a settlement posts twice: {caught[0] if caught else 'missed'}",
        caught=bool(caught),
    )


def _raced(make: type[Books], holds: int, ids: int, seed: int) -> list[str]:
    """Closers and retries in any order; what was posted must be what the first closer of each said."""
    rng = random.Random(seed)
    limit = 100 * (holds + ids)
    books = make(path_of(limit))
    steps: list[tuple[str, int, str]] = [(f"h{n}", n % 90, kind) for n in range(holds) for kind in _three(rng)]
    rng.shuffle(steps)
    for number in range(holds):
        assert books.hold(a_hold(f"h{number}", 100)) is None
    expected, closed = 0, set()
    for id, cost, kind in steps:
        if kind == "expire":
            books.expire(NEW_YEAR)
            continue
        books.settle(id, Charge(cost_nano=cost, kind=kind), NEW_YEAR)  # type: ignore[arg-type]  # one of the kinds
        if id not in closed:
            closed.add(id)
            expected += 0 if kind == "released" else cost
    asks = [f"r{number}" for number in range(ids) for _ in range(10)]
    rng.shuffle(asks)
    for id in asks:  # a retry asks, and settles what it was answered
        assert books.hold(a_hold(id, 100)) is None
        if rng.random() < 0.5:
            books.settle(id, Charge(cost_nano=60), NEW_YEAR)
    for id in dict.fromkeys(asks):
        books.settle(id, Charge(cost_nano=60), NEW_YEAR)
    expected += 60 * ids
    payer = a_hold("x", 0).payer
    found = balances_of(books.passes(payer, Hints(session="s", workflow="w")), NEW_YEAR)
    wrong = [f"{each.scope}: {each.spent_nano} instead of {expected}" for each in found if each.spent_nano != expected]
    return [*wrong, *books.audit(), *([f"{books.open_holds()} are open"] if books.open_holds() else [])]


def _three(rng: random.Random) -> list[str]:
    return ["reported", rng.choice(("released", "estimated")), rng.choice(("expire", "reported", "released"))]


def first_comers(scale: Scale) -> Found:
    """Sessions that nobody has seen before: the default budget binds their very first requests."""
    sessions = scale.of(1_000, 50)

    async def play(checked: bool) -> int:
        ledger = MemoryLedger((Budget(scope="session", limit_nano=100),), lambda: float(NEW_YEAR))
        held = 0
        for number in range(sessions):
            seen: set[str] = set()

            async def one(racer: int, session: str, seen: set[str] = seen) -> bool:
                if not checked and session not in seen:  # first asks whether there is a budget, then makes one
                    await asyncio.sleep(0)
                    seen.add(session)
                    return True
                return await ledger.hold(a_hold(f"{session}.{racer}", 100, session=session)) is None

            held += sum(await asyncio.gather(*(one(racer, f"s{number}") for racer in range(64))))
        return held

    held, mutant = asyncio.run(play(True)), asyncio.run(play(False))
    return Found(
        n=f"{count(sessions)} sessions × 64 racers",
        figure=f"{count(held)} admitted",
        checks=(Check("admitted", held, "=", sessions),),
        mutant=f"the budget is made after the first request: {count(mutant)} admitted",
        caught=mutant != sessions,
    )


# ------------------------------------------------------------------------------------------------ windows and clocks

DAY = 86_400
TURNS = {
    "Europe/Berlin": ("2026-03-29", "2026-10-25", "2027-01-01", "2028-02-29", "2026-03-01"),
    "America/New_York": ("2026-03-08", "2026-11-01", "2027-01-01", "2028-03-01", "2026-12-01"),
    "Pacific/Apia": ("2011-12-31", "2026-04-05", "2027-01-01", "2028-02-29", "2026-09-27"),
    "Asia/Kathmandu": ("2026-03-29", "2026-06-01", "2027-01-01", "2028-02-29", "2026-10-01"),
    "UTC": ("2026-03-29", "2026-07-01", "2027-01-01", "2028-02-29", "2026-11-01"),
}
JUMPS_S = (0, 1, -1, 3_600, -3_600, DAY, -DAY, 7_200, -40 * DAY)


def clocks(scale: Scale) -> Found:
    """A budget is spent up to every turn of a day, over it, and again after the clock was set back and forth."""
    zones = list(TURNS) if scale.full else ["Europe/Berlin", "UTC"]
    points = [(zone, day, jump) for zone in zones for day in TURNS[zone] for jump in JUMPS_S]
    wrong = [found for point in points for found in _over_a_turn(Books, *point)]
    caught = [point for point in points if _over_a_turn(MovesBack, *point)]
    return Found(
        n=f"{len(points)} points: {len(zones)} zones × 5 turns × {len(JUMPS_S)} jumps of the clock",
        figure=f"{len(wrong)} resets too many or too few" + (f": {wrong[0]}" if wrong else ""),
        checks=(Check("resets too many or too few", len(wrong), "=", 0),),
        mutant=f"a window moves back: {len(caught)} of {len(points)} points fail",
        caught=bool(caught),
    )


def _over_a_turn(make: type[Books], zone: str, day: str, jump_s: int) -> list[str]:
    turn_s = int(datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)).timestamp())
    books = make((Budget(scope="user", limit_nano=5, window="day", zone=zone),))
    held: dict[int, int] = {}
    # Before the turn, after it, then wherever the clock was set to, and after it once more.
    times = [turn_s - 60, turn_s - 1, turn_s, turn_s + 1, turn_s + 1 + jump_s, turn_s - 1, turn_s + 2]
    number, newest = itertools.count(), 0
    for at_s in times:
        newest = max(newest, at_s)
        start_s = window_of("day", newest, zone)[0]
        for _ in range(10):
            if books.hold(a_hold(f"h{next(number)}", 1, at_s=at_s)) is None:
                held[start_s] = held.get(start_s, 0) + 1
    name = f"{zone} {day} {jump_s:+d} s"
    wrong = [f"{name}: {amount} of 5 in the window from {start}" for start, amount in held.items() if amount != 5]
    return [*wrong, *(f"{name}: {fault}" for fault in books.audit())]


class SettlesIntoNow(Books):
    """The cost is posted on the window of the settlement, and the hold is given back there too."""

    def settle(self, hold_id: str, charge: Charge, at_s: int) -> None:
        held = self._open.get(hold_id)
        if held is not None:
            now: list[Account] = [
                each.line.standing(each.subject, at_s).account if each.line.window != "lifetime" else each
                for each in held.accounts
            ]
            held.accounts = tuple(now)
        super().settle(hold_id, charge, at_s)


def rollover(scale: Scale) -> Found:
    """Calls in flight over midnight are settled into the day that admitted them."""
    holds = scale.of(1_000, 100)
    wrong, caught = _over_midnight(Books, holds), _over_midnight(SettlesIntoNow, holds)
    return Found(
        n=f"{count(holds)} holds in flight over midnight",
        figure=f"{len(wrong)} faults" + (f": {wrong[0]}" if wrong else ", both days balance, the new one began at 0"),
        checks=(Check("faults", len(wrong), "=", 0),),
        mutant=f"settled into the day of the settlement: {caught[0] if caught else 'missed'}",
        caught=bool(caught),
    )


def _over_midnight(make: type[Books], holds: int) -> list[str]:
    books = make((Budget(scope="user", limit_nano=100 * holds, window="day"),))
    for number in range(holds):
        assert books.hold(a_hold(f"h{number}", 100, at_s=NEW_YEAR - 30)) is None
    assert books.hold(a_hold("next day", 100 * holds, at_s=NEW_YEAR)) is None, "the new day begins with all of it"
    for number in range(holds):
        books.settle(f"h{number}", Charge(cost_nano=70), NEW_YEAR + 5)
    books.settle("next day", Charge(cost_nano=9), NEW_YEAR + 6)
    wrong = list(books.audit())
    posted: dict[int, int] = {}
    for entry in books.take().entries:
        for _, _, start_s in entry.accounts:
            posted[start_s] = posted.get(start_s, 0) + entry.amount_nano
    if posted != {NEW_YEAR - DAY: 70 * holds, NEW_YEAR: 9}:
        wrong.append(f"posted by day: {posted}")
    return wrong


def pinned(scale: Scale) -> Found:
    """K2: prices change while calls run; each entry names the snapshot that its hold was made under."""
    holds = scale.of(1_000, 100)
    wrong, entries = _over_a_change(Books, holds, scale.seed)
    caught, _ = _over_a_change(NamesNow, holds, scale.seed)
    return Found(
        n=f"{count(holds)} calls in flight over a change, {count(entries)} entries",
        figure=f"{wrong} entries name another version",
        checks=(Check("entries of another version", wrong, "=", 0), Check("entries", entries, "=", holds)),
        mutant=f"the version of the settlement is named: {count(caught)} entries wrong",
        caught=caught > 0,
    )


class NamesNow(Books):
    """An entry names the prices of the moment, and not those that its hold was made with."""

    def settle(self, hold_id: str, charge: Charge, at_s: int) -> None:
        held = self._open[hold_id]
        held.row = msgspec.structs.replace(held.row, snapshot="new")
        super().settle(hold_id, charge, at_s)


def _over_a_change(make: type[Books], holds: int, seed: int) -> tuple[int, int]:
    books, order = make(path_of(10**9)), list(range(holds))
    for number in order:
        books.hold(a_hold(f"h{number}", 10, snapshot="old" if number < holds // 2 else "new"))
    random.Random(seed).shuffle(order)
    for number in order:
        books.settle(f"h{number}", Charge(cost_nano=5), NEW_YEAR)
    entries = books.take().entries
    wrong = sum(entry.snapshot != ("old" if int(entry.hold[1:]) < holds // 2 else "new") for entry in entries)
    return wrong, len(entries)


RUNS = (
    Run("bar8", "8, B5, B6, B11, I1–I5", "discrete-event simulator over the books", "0 violations", simulator),
    Run("bar8b", "8, B5", "stateful property test against a model that sums up again", "0 violations", model),
    Run("bar7", "7, B3, B4", "settle, release, expire and retries race over five levels", "0 too many or few", races),
    Run("b13", "B13", "64 first requests at once of a session that nobody knows", "1 each", first_comers),
    Run("k1", "K1", "days turn, clocks jump, summer time, leap days, a skipped day", "1 reset a turn", clocks),
    Run("b10", "B10", "a day ends while calls are in flight", "both days balance", rollover),
    Run("k2", "K2", "prices change while calls are in flight", "0 entries of another version", pinned),
)
