"""When the traffic of a budget comes: counted hour by hour, and turned into the plan of its window.

At first nothing is known and the plan is a straight line, until days have been seen. A durable ledger keeps what was
learned over a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime

import msgspec

from tierwise.core.pace import SLOTS, Plan, Shape, learned, plan_of
from tierwise.stores.ledger.windows import zone_of

HOUR_S = 3_600
LONGEST_SILENCE_H = 168  # hours without a request are learned as empty ones, but a week says no more than that
SATURDAY = 5


class _Kept(msgspec.Struct, frozen=True):
    """All of a `Traffic` that a restart must not forget."""

    shape: Shape
    hour: int | None
    calls: int
    whole: bool
    last: str


class Traffic:
    """The requests of one budget's payers, all subjects together. The clock never moves back. `learned`: told when
    what is planned becomes another."""

    def __init__(self, zone: str = "UTC", learned: Callable[[], None] = lambda: None) -> None:
        self.zone = zone
        self._learned = learned
        self.shape = Shape()
        self._hour: int | None = None
        self._calls = 0
        self._whole = False  # the hour in which we began was not seen from its start
        self._last = ""
        self._window = (0, 0)
        self._slots: list[int] = []  # of the window's hours
        self._plan: tuple[Shape, Plan] | None = None
        self._asked = (0, 0, 0)  # what was asked of it last,
        self._share = 0.0  # and what the answer was
        self.is_news = False  # something was counted since `kept`

    def kept(self) -> str:
        """As a store keeps it. JSON, below 2 KB."""
        self.is_news = False
        kept = _Kept(self.shape, self._hour, self._calls, self._whole, self._last)
        return msgspec.json.encode(kept).decode()

    def recall(self, text: str) -> None:
        """Go on where `kept` was written. Raises MsgspecError for what it has not written."""
        kept = msgspec.json.decode(text, type=_Kept)
        if len(kept.shape.calls) != SLOTS or len(kept.shape.seen) != SLOTS:
            raise msgspec.ValidationError(f"a week has {SLOTS} slots")
        self.shape, self._hour, self._calls = kept.shape, kept.hour, kept.calls
        self._whole, self._last = kept.whole, kept.last
        self._learned()

    def planned(self, start_s: int, end_s: int, at_s: int) -> float:
        """The share of a window's budget that is to be used by `at_s`."""
        asked = (start_s, end_s, at_s)
        if self._asked == asked and self._plan is not None and self._plan[0] is self.shape:
            return self._share  # every request asks, and within one second the answer is the same
        if self._window != (start_s, end_s):
            self._window, self._plan = (start_s, end_s), None
            self._slots = [self.slot(at) for at in range(start_s, end_s, HOUR_S)]
        if self._plan is None or self._plan[0] is not self.shape:
            self._plan = (self.shape, plan_of(start_s, end_s, self._slots, self.shape))
        self._asked, self._share = asked, self._plan[1].by(at_s)
        return self._share

    def slot(self, at_s: int) -> int:
        local = datetime.fromtimestamp(at_s, zone_of(self.zone))
        return local.hour + (24 if local.weekday() >= SATURDAY else 0)

    def _come(self, hour: int) -> None:
        begun = self._hour
        if begun is None:
            self._hour = hour
        elif hour > begun:
            self._end(begun, hour)

    def _end(self, begun: int, hour: int) -> None:
        if self._whole:
            self.shape = learned(self.shape, self.slot(begun * HOUR_S), self._calls)
        for empty in range(max(begun + 1, hour - LONGEST_SILENCE_H), hour):
            self.shape = learned(self.shape, self.slot(empty * HOUR_S), 0)
        self._hour, self._calls, self._whole = hour, 0, True
        self._learned()


def count_all(traffics: Iterable[Traffic], request: str, at_s: int) -> None:
    """A request asks for money, and gets some or not. One that asks again at once (a fallback) counts once."""
    hour = at_s // HOUR_S
    for traffic in traffics:
        if hour != traffic._hour:
            traffic._come(hour)
        if request != traffic._last:
            traffic._calls += 1
            traffic._last = request
            traffic.is_news = True
