"""When the traffic of a budget comes: counted hour by hour, and turned into the plan of its window.

Kept in memory. After a start nothing is known and the plan is a straight line, until days have been seen.
"""

from __future__ import annotations

from datetime import datetime

from tierwise.core.pace import Plan, Shape, learned, plan_of
from tierwise.stores.ledger.windows import zone_of

HOUR_S = 3_600
LONGEST_SILENCE_H = 168  # hours without a request are learned as empty ones, but a week says no more than that
SATURDAY = 5


class Traffic:
    """The requests of one budget's payers, all subjects together. The clock never moves back."""

    def __init__(self, zone: str = "UTC") -> None:
        self.zone = zone
        self.shape = Shape()
        self._hour: int | None = None
        self._calls = 0
        self._whole = False  # the hour in which we began was not seen from its start
        self._last = ""
        self._window = (0, 0)
        self._slots: list[int] = []  # of the window's hours
        self._plan: tuple[Shape, Plan] | None = None

    def count(self, request: str, at_s: int) -> None:
        """A request asks for money, and gets some or not. One that asks again at once (a fallback) counts once."""
        hour = at_s // HOUR_S
        if self._hour is None:
            self._hour = hour
        elif hour > self._hour:
            self._end(hour)
        if request != self._last:
            self._calls += 1
            self._last = request

    def planned(self, start_s: int, end_s: int, at_s: int) -> float:
        """The share of a window's budget that is to be used by `at_s`."""
        if self._window != (start_s, end_s):
            self._window, self._plan = (start_s, end_s), None
            self._slots = [self.slot(at) for at in range(start_s, end_s, HOUR_S)]
        if self._plan is None or self._plan[0] is not self.shape:
            self._plan = (self.shape, plan_of(start_s, end_s, self._slots, self.shape))
        return self._plan[1].by(at_s)

    def slot(self, at_s: int) -> int:
        local = datetime.fromtimestamp(at_s, zone_of(self.zone))
        return local.hour + (24 if local.weekday() >= SATURDAY else 0)

    def _end(self, hour: int) -> None:
        begun = self._hour if self._hour is not None else hour
        if self._whole:
            self.shape = learned(self.shape, self.slot(begun * HOUR_S), self._calls)
        for empty in range(max(begun + 1, hour - LONGEST_SILENCE_H), hour):
            self.shape = learned(self.shape, self.slot(empty * HOUR_S), 0)
        self._hour, self._calls, self._whole = hour, 0, True
