"""All budgets of a ledger, found by who pays: thousands of keys may have limits, and a request passes its own only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tierwise.core.request import Payer
from tierwise.stores.ledger.accounts import Line

_FIELDS = ("key", "user", "team", "organisation")


class Lines:
    """In the order of the configuration, everywhere."""

    def __init__(self, lines: Iterable[Line] = ()) -> None:
        self._all = tuple(lines)
        self.by_id = {line.id: line for line in self._all}
        self._for_all: list[tuple[int, Line]] = []
        self._for: dict[tuple[str, str], list[tuple[int, Line]]] = {}  # by the first condition on who pays
        for place, line in enumerate(self._all):
            named = next((pair for pair in line.budget.match if pair[0] in _FIELDS), None)
            if named is None:
                self._for_all.append((place, line))
            else:
                self._for.setdefault(named, []).append((place, line))

    def __iter__(self) -> Iterator[Line]:
        return iter(self._all)

    def of(self, payer: Payer) -> Iterable[Line]:
        """Every line that this payer's calls can fall on; some of them may not match all the same."""
        if not self._for:
            return self._all
        who = [("key", key) for key in dict.fromkeys((payer.key, *payer.within))]
        who += [("user", payer.user), ("team", payer.team), ("organisation", payer.organisation)]
        found = [*self._for_all, *(pair for each in who for pair in self._for.get(each, ()))]
        found.sort(key=lambda pair: pair[0])
        return [line for _, line in found]
