"""When a budget's window begins and ends, and how dear money is inside it. Pure; every ledger shares it.

Nothing here is reset by a job: a window is found from its period and the time whenever somebody asks.
"""

from __future__ import annotations

import functools
import math
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import assert_never
from zoneinfo import ZoneInfo

from tierwise.core.budget import ROLLING_S, Window
from tierwise.core.pace import (
    GUARDED,
    LAMBDA_MAX,
    SCARCE,
    price_by_plan,
    price_by_scarcity,
    price_by_share,
    price_when_soft,
)

NEVER_S = 1 << 62  # the end of a lifetime
DAY_S = 86_400
PACED: tuple[Window, ...] = ("day", "week", "month")  # windows whose money is to last until their end
SURELY = 1.0 - 1e-9  # below a bound by more than what is lost in rounding


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
            here = zone_of(zone)
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


@functools.lru_cache(maxsize=64)
def zone_of(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)


def _midnight(day: date, zone: tzinfo) -> int:
    """The day's first second. Where clocks skip it, what the zone calls 00:00 is the first second after the gap."""
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())


def price_of_money(
    used_nano: int,
    limit_nano: int,
    start_s: int,
    end_s: int,
    at_s: int,
    *,
    window: Window = "month",
    rolling: bool = False,
    hard: bool = True,
    plan: float | None = None,
) -> float:
    """λ of one budget, in 1..LAMBDA_MAX: 1 when it is on pace or behind. The formulas and their reasons: core/pace.

    `used_nano` is spent and held together. `plan`: the share of the limit that was to be used by `at_s`; None is a
    straight line from `start_s` to `end_s`. What has no plan: a lifetime, windows that move with the clock (whatever is
    used was used within one window's length), and minutes and hours, whose limits are for bursts."""
    if end_s == NEVER_S:
        return price_of_lifetime(used_nano, limit_nano, hard=hard)
    if limit_nano <= 0:
        return LAMBDA_MAX
    used = used_nano / limit_nano
    plan = _plan(start_s, end_s, at_s, window, rolling, plan)
    if not hard:
        return price_when_soft(used, 1.0 if plan is None else plan)
    if plan is not None:
        return price_by_plan(used, plan)
    return price_by_share(used)


def price_of_lifetime(used_nano: int, limit_nano: int, *, hard: bool) -> float:
    """As `price_of_money`, where no window ever begins anew."""
    if limit_nano <= 0:
        return LAMBDA_MAX
    used = used_nano / limit_nano
    return price_by_scarcity(used) if hard else price_when_soft(used, 1.0)


def calm_of_money(
    limit_nano: int,
    start_s: int,
    end_s: int,
    at_s: int,
    *,
    window: Window = "month",
    rolling: bool = False,
    hard: bool = True,
    plan: float | None = None,
) -> float:
    """So much may be used, and `price_of_money` is 1 for certain; below zero where it never is. A bit above it, it may
    be 1 as well."""
    if limit_nano <= 0:
        return -math.inf
    plan = _plan(start_s, end_s, at_s, window, rolling, plan)
    if not hard:
        share = 1.0 if plan is None else plan
    elif plan is not None:
        share = min(plan, 1.0 - SCARCE)
    else:
        share = 0.0 if end_s == NEVER_S else 1.0 - GUARDED
    return int(share * limit_nano * SURELY)


def _plan(start_s: int, end_s: int, at_s: int, window: Window, rolling: bool, plan: float | None) -> float | None:
    """The share that was to be used by now; None: there is no plan."""
    if end_s == NEVER_S or rolling or window not in PACED:
        return None
    return min(max((at_s - start_s) / (end_s - start_s), 0.0), 1.0) if plan is None else plan
