"""The holds that ended last, kept for whoever settles one of them again, and which ids cannot have been held before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from tierwise.stores.ledger.rows import TOP_UP, HoldRow


class Closed(OrderedDict[str, HoldRow]):
    """By id, the oldest let go of first: to find that one, a plain dict looks through the places of all that have gone.
    `last_gone`: ids of holds that were let go of, or that a store had before us, sort no later than this; None: nobody
    knows."""

    last_gone: str | None = None

    def keep(self, row: HoldRow, most: int) -> None:
        self[row.id] = row
        if len(self) > most:
            gone, _ = self.popitem(last=False)
            if self.last_gone is not None:
                self.last_gone = max(self.last_gone, gone)

    def has_or_had(self, hold_id: str, load: Callable[[str], HoldRow | None]) -> bool:
        """Whether a hold that is not open was made before; `load` looks in the store. Ids of decisions sort by time, so
        a new one is mostly known to be new: looking cost 25 µs of each request, and the writer's thread a turn. Ids of
        top-ups, which sort behind all others, are always looked for."""
        if hold_id in self:
            return True
        if self.last_gone is not None and self.last_gone < hold_id < TOP_UP:
            return False
        return load(hold_id) is not None
