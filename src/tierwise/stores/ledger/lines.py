"""All budgets and credits of a ledger, found by who pays: thousands of keys may have limits, and a request passes its
own only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

from tierwise.core.budget import Budget
from tierwise.core.keys import CREDIT_SCOPES, budget_id, merged
from tierwise.core.request import Payer
from tierwise.stores.ledger.accounts import Account, Key, Line
from tierwise.stores.ledger.traffic import Traffic

_FIELDS = ("key", "user", "team", "organisation")
PATHS_KEPT = 5_000  # payers, and their sessions and workflows, whose way through the budgets is remembered


class Change(NamedTuple):
    """Between two lists of budgets, whose beginnings and ends are mostly the same: what stands between."""

    start: int
    stop: int  # in the old list
    budgets: tuple[Budget, ...]  # in the place of what stood there


Pass = tuple[Line, str]  # a budget or credit above a payer, and whose account in it is the payer's


class _Path(NamedTuple):
    """What a payer's calls pass, whatever they are; and the lines that only the call knows its account in, the last
    first, with their places among the others."""

    passed: list[Pass]
    asking: list[tuple[int, Line]]
    requests: bool
    repeats: bool


class Way:
    """All that the calls of one session or workflow of a payer pass. Whoever gets one must not change it, but for the
    accounts that a hold was counted on last, and their keys, which the next holds share."""

    __slots__ = ("accounts", "keys", "lasting", "money", "passed", "rates", "repeats", "requests", "traffic")

    def __init__(self, passed: Sequence[Pass], *, requests: bool, repeats: bool) -> None:
        self.passed = passed
        self.requests = requests  # in some of them each request may have an account of its own,
        self.repeats = repeats  # and some of them may look for calls that repeat
        self.accounts: tuple[Account, ...] = ()
        self.keys: tuple[Key, ...] = ()
        self.money = [each for each in passed if each[0].has_money]
        self.lasting = [each for each in passed if each[0].lasts]
        self.rates = [each for each in passed if each[0].is_rate]
        self.traffic: list[Traffic] = [line.traffic for line, _ in passed if line.traffic is not None]


class Ways(dict[tuple[Payer, str, str], Way]):
    """By payer, session and workflow, every line that a call falls on. Asked four times for each request, so it is
    worked out once for each session or workflow, and what the payer alone decides once for each payer."""

    def __init__(self, new: Callable[[Payer, str, str], Way]) -> None:
        self._new = new

    def __missing__(self, who: tuple[Payer, str, str]) -> Way:
        if len(self) >= PATHS_KEPT:
            self.clear()
        way = self[who] = self._new(*who)
        return way


class Lines:
    """In the order of the configuration, everywhere."""

    def __init__(self, lines: Iterable[Line] = (), credits: dict[str, Line] | None = None) -> None:
        self._all: list[Line] = []
        self.by_id: dict[str, Line] = {}
        self.credits = credits or {}  # by their scope
        self._prepaid: set[tuple[str, str]] = set()  # (scope, subject) that were ever topped up
        self._for_all: list[Line] = []
        self._for: dict[tuple[str, str], list[Line]] = {}  # by the first condition on who pays
        self._paths: dict[Payer, _Path] = {}
        self.ways = Ways(self._new_way)
        self._put(0, 0, list(lines))

    def __iter__(self) -> Iterator[Line]:
        """Without the credits."""
        return iter(self._all)

    def _new_way(self, payer: Payer, session: str, workflow: str) -> Way:
        path = self._paths.get(payer)
        if path is None:
            if len(self._paths) >= PATHS_KEPT:
                self._paths.clear()
            path = self._paths[payer] = self._path(payer)
        found = path.passed.copy()
        for place, line in path.asking:
            found[place:place] = [(line, subject) for subject in line.subjects(payer, session, workflow, "")]
        return Way(found, requests=path.requests, repeats=path.repeats)

    def _path(self, payer: Payer) -> _Path:
        lines = self.of(payer)
        requests = any(line.budget.scope == "request" for line in lines)
        path = _Path([], [], requests, any(line.budget.repeats is not None for line in lines))
        for line in lines:
            if line.by_payer:
                path.passed.extend((line, subject) for subject in line.subjects(payer, "", "", ""))
            else:
                path.asking.insert(0, (len(path.passed), line))
        if self._prepaid:
            subjects = [(scope, str(getattr(payer, scope))) for scope in CREDIT_SCOPES]
            # What is prepaid for a key is all that its keys have too.
            subjects += [("key", key) for key in payer.within]
            path.passed.extend(
                (self.credits[scope], name) for scope, name in subjects if (scope, name) in self._prepaid
            )
        return path

    def prepay(self, scope: str, subject: str) -> None:
        """From now on there is a credit."""
        if (scope, subject) not in self._prepaid:
            self._prepaid.add((scope, subject))
            self._forget_ways()

    def _forget_ways(self) -> None:
        self._paths.clear()
        self.ways.clear()

    def of(self, payer: Payer) -> Iterable[Line]:
        """Every line that this payer's calls can fall on; some of them may not match all the same."""
        if not self._for:
            return self._all
        who = [("key", key) for key in dict.fromkeys((payer.key, *payer.within))]
        who += [("user", payer.user), ("team", payer.team), ("organisation", payer.organisation)]
        found = [*self._for_all, *(line for each in who for line in self._for.get(each, ()))]
        found.sort(key=_place)
        return found

    def change(self, budgets: tuple[Budget, ...], new: Callable[[Budget], Line]) -> list[tuple[Line, Budget]]:
        """These budgets from now on; lines are kept by their id, and `new` makes the others. Returns the kept lines
        whose budget is another now, which they have still to be told.

        With a limit on each of 100,000 keys, one key more must not hold up the requests of all others: what stands
        between the same beginning and the same end is looked at, the rest only compared."""
        start, stop, others = self._between(budgets)
        old = {line.id: line for line in self._all[start:stop]}
        lines: list[Line] = []
        kept: list[tuple[Line, Budget]] = []
        for budget in others:
            line = old.get(budget_id(budget))
            if line is None:
                line = new(budget)
            elif line.budget != budget:
                kept.append((line, budget))
            lines.append(line)
        self._put(start, stop, lines)
        return kept

    def _between(self, budgets: tuple[Budget, ...]) -> Change:
        """Where `budgets` differ from those of now; all of them when one stands there twice."""
        now = [line.budget for line in self._all]
        most = min(len(now), len(budgets))
        start = next((at for at in range(most) if now[at] != budgets[at]), most)
        end = next((at for at in range(most - start) if now[-1 - at] != budgets[-1 - at]), most - start)
        others = budgets[start : len(budgets) - end]
        ids = {budget_id(budget) for budget in others}
        around = ids & self.by_id.keys() - {line.id for line in self._all[start : len(now) - end]}
        if around or len(ids) < len(others):
            return Change(0, len(now), merged(budgets))
        return Change(start, len(now) - end, others)

    def _put(self, start: int, stop: int, lines: list[Line]) -> None:
        """`lines` in the place of those from `start` to `stop`."""
        self._forget_ways()
        for line in self._all[start:stop]:
            del self.by_id[line.id]
            if (pair := _named(line)) is None:
                self._for_all.remove(line)
            else:
                self._for[pair].remove(line)
                if not self._for[pair]:
                    del self._for[pair]
        for line in lines:
            self.by_id[line.id] = line
            if (pair := _named(line)) is None:
                self._for_all.append(line)
            else:
                self._for.setdefault(pair, []).append(line)
        self._all[start:stop] = lines
        for place in range(start, len(self._all) if len(lines) != stop - start else start + len(lines)):
            self._all[place].place = place
        self._for_all.sort(key=_place)


def _named(line: Line) -> tuple[str, str] | None:
    return next((pair for pair in line.budget.match if pair[0] in _FIELDS), None)


_place = attrgetter("place")
