"""When a budget's window begins and ends, and how dear money is inside it. Pure; every ledger shares it.

Nothing here is reset by a job: a window is found from its period and the time whenever somebody asks.
"""

from __future__ import annotations

import functools
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import assert_never
from zoneinfo import ZoneInfo

from tierwise.core.budget import Window

NEVER_S = 1 << 62  # the end of a lifetime
DAY_S = 86_400
# Above this λ says nothing new (every paid model is out of reach), and arithmetic stays far from infinity.
LAMBDA_MAX = 100.0


def window_of(window: Window, at_s: int, zone: str = "UTC") -> tuple[int, int]:
    """The calendar's window that holds `at_s`: (first second, first second after it), in the zone's own days. Weeks
    begin on Monday. A day is as long as the zone makes it (23 to 25 hours); minutes and hours are the clock's of UTC.
    Raises ZoneInfoNotFoundError for a zone that the machine does not know."""
    match window:
        case "lifetime":
            return -NEVER_S, NEVER_S
        case "minute":
            return at_s - at_s % 60, at_s - at_s % 60 + 60
        case "hour":
            return at_s - at_s % 3_600, at_s - at_s % 3_600 + 3_600
        case "day" | "week" | "month":
            here = _zone(zone)
            today = datetime.fromtimestamp(at_s, here).date()
            if window == "day":
                first, after = today, today + timedelta(days=1)
            elif window == "week":
                first = today - timedelta(days=today.weekday())
                after = first + timedelta(days=7)
            else:
                first = today.replace(day=1)
                after = date(today.year + today.month // 12, today.month % 12 + 1, 1)
            return _midnight(first, here), _midnight(after, here)
        case _:
            assert_never(window)


def rolling_part(window: Window, at_s: int) -> tuple[int, int, int]:
    """Of a window that moves with the clock: (first second of the part that `at_s` is in, first second of the oldest
    part that still counts, first second after this part). The oldest part counts whole, so that no span of the
    window's length ever holds more than the limit."""
    length = ROLLING_S[window]
    part = max(1, length // ROLLING_PARTS)
    start = at_s - at_s % part
    return start, start - length, start + part


ROLLING_PARTS = 60
ROLLING_S = {"minute": 60, "hour": 3_600, "day": DAY_S, "week": 7 * DAY_S, "month": 30 * DAY_S}


@functools.lru_cache(maxsize=64)
def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)


def _midnight(day: date, zone: tzinfo) -> int:
    """The day's first second. Where clocks skip it, what the zone calls 00:00 is the first second after the gap."""
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())


def price_of_money(used_nano: int, limit_nano: int, start_s: int, end_s: int, at_s: int) -> float:
    """λ of one budget: the rate it was planned to be spent at, over the rate that it can still afford.

    planned = limit / window; affordable = left / time left; λ = planned / affordable, that is
    (share of the window left) / (share of the money left), and never below 1: money that is left over at the end of a
    window is no reason to waste it. A lifetime has no pace, so its whole window is always ahead: λ = 1 / share left.
    `used_nano` is spent and held together. The result is in 1..LAMBDA_MAX.
    """
    left_nano = limit_nano - used_nano
    if left_nano <= 0:
        return LAMBDA_MAX
    time_left = 1.0
    if end_s != NEVER_S:
        time_left = min(max((end_s - at_s) / (end_s - start_s), 0.0), 1.0)
    return min(max(time_left * limit_nano / left_nano, 1.0), LAMBDA_MAX)
