"""When a budget's window begins and ends, and how dear money is inside it. Pure; every ledger shares it.

Nothing here is reset by a job: a window is found from its period and the time whenever somebody asks.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import assert_never

from tierwise.core.budget import Window

NEVER_S = 1 << 62  # the end of a lifetime
DAY_S = 86_400
# Above this λ says nothing new (every paid model is out of reach), and arithmetic stays far from infinity.
LAMBDA_MAX = 100.0


def window_of(window: Window, at_s: int) -> tuple[int, int]:
    """The window that holds `at_s`: (first second, first second after it), UTC. Weeks begin on Monday."""
    match window:
        case "lifetime":
            return -NEVER_S, NEVER_S
        case "minute":
            start = at_s - at_s % 60
            return start, start + 60
        case "hour":
            start = at_s - at_s % 3_600
            return start, start + 3_600
        case "day":
            start = at_s - at_s % DAY_S
            return start, start + DAY_S
        case "week":
            day = at_s // DAY_S
            monday = day - (day + 3) % 7  # 1970-01-01 was a Thursday
            return monday * DAY_S, (monday + 7) * DAY_S
        case "month":
            day_of = datetime.fromtimestamp(at_s, UTC)
            start_of = datetime(day_of.year, day_of.month, 1, tzinfo=UTC)
            end_of = datetime(day_of.year + day_of.month // 12, day_of.month % 12 + 1, 1, tzinfo=UTC)
            return int(start_of.timestamp()), int(end_of.timestamp())
        case _:
            assert_never(window)


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
