"""All budgets of a ledger, found by who pays: thousands of keys may have limits, and a request passes its own only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple

from tierwise.core.budget import Budget
from tierwise.core.keys import budget_id, merged
from tierwise.core.request import Payer
from tierwise.stores.ledger.accounts import Line

_FIELDS = ("key", "user", "team", "organisation")
PATHS_KEPT = 5_000  # payers whose way through the budgets is remembered


class Change(NamedTuple):
    """Between two lists of budgets, whose beginnings and ends are mostly the same: what stands between."""

    start: int
    stop: int  # in the old list
    budgets: tuple[Budget, ...]  # in the place of what stood there


class _Path(NamedTuple):
    """What a payer's calls pass, whatever they are; and the lines that only the call knows its account in, the last
    first, with their places among the others."""

    passed: list[tuple[Line, str]]
    asking: list[tuple[int, Line]]


class Lines:
    """In the order of the configuration, everywhere."""

    def __init__(self, lines: Iterable[Line] = ()) -> None:
        self._all: list[Line] = []
        self.by_id: dict[str, Line] = {}
        self._for_all: list[Line] = []
        self._for: dict[tuple[str, str], list[Line]] = {}  # by the first condition on who pays
        self._paths: dict[Payer, _Path] = {}
        self._put(0, 0, list(lines))

    def __iter__(self) -> Iterator[Line]:
        return iter(self._all)

    def passed(self, payer: Payer, session: str, workflow: str, request: str) -> list[tuple[Line, str]]:
        """Every line that a call falls on, and whose account in it is the call's. Asked four times for each request, so
        what the payer alone decides is worked out once for each payer."""
        path = self._paths.get(payer)
        if path is None:
            if len(self._paths) >= PATHS_KEPT:
                self._paths.clear()
            path = self._paths[payer] = self._path(payer)
        found = path.passed.copy()
        for place, line in path.asking:
            found[place:place] = [(line, subject) for subject in line.subjects(payer, session, workflow, request)]
        return found

    def _path(self, payer: Payer) -> _Path:
        path = _Path([], [])
        for line in self.of(payer):
            if line.by_payer:
                path.passed.extend((line, subject) for subject in line.subjects(payer, "", "", ""))
            else:
                path.asking.insert(0, (len(path.passed), line))
        return path

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
        self._paths.clear()
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
