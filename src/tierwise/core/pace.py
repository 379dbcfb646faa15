"""How dear money is, from how much of a budget is used and how much was to be used by now. Pure.

Also the traffic's shape over the week, which says how much was to be used: nobody works at four in the morning.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import msgspec

# Above this λ says nothing new (every paid model is out of reach), and arithmetic stays far from infinity.
LAMBDA_MAX = 100.0

# How strongly the pace is felt: a budget that is 9 % ahead of what it can afford makes money twice as dear (1.09 ** 8).
# Weaker ones spend too much before they bite, stronger ones let the hours of the day and single dear calls push the
# price about. Tried from 2 to 32 in scripts/simulate_money.py; docs/price-of-money.md has what came out.
STEEPNESS = 8.0
# The last fiftieth of a budget is dear whatever the plan says: a call is held at its worst case, and one that no longer
# fits is refused, while cheaper ones would still have been answered.
SCARCE = 0.02
# A limit that moves with the clock, or that guards against bursts, may always be used up; its last quarter is dear.
GUARDED = 0.25


def price_by_plan(used: float, plan: float) -> float:
    """λ of a hard budget that is to last a window: (share of the plan left / share of the limit left) ** STEEPNESS.

    `used`: share of the limit that is spent or held; `plan`: share that was to be used by now; the result is in
    1..LAMBDA_MAX. The ratio is the rate at which the window was planned to go on over the rate that it can still
    afford. It is 1 on pace, and money that is left over is no reason to waste it, so never less.

    Why this: choosing the least `cost × λ + what a miss costs` with one constant λ is the best that any rule can do
    with a budget, and that λ is the budget's Lagrange multiplier, known only afterwards. Adaptive pacing (Balseiro and
    Gur, Management Science 65, 2019) and dual mirror descent (Balseiro, Lu and Mirrokni, Operations Research 71, 2023)
    find it on the way: after each request the logarithm of the multiplier moves by a step times (spent − planned).
    Summed up, that is exp(steps × (spent − planned)), which needs nothing but the state of the account. Measuring both
    against what is left, as here, does the same at first, and towards the end grows firm enough that the money lasts.
    """
    left = 1.0 - used
    if left <= 0.0:
        return LAMBDA_MAX
    if used <= plan and left >= SCARCE:
        return 1.0  # what most requests find
    # The ratio is cut before it is raised, so that no budget that is nearly gone overflows.
    paced: float = min(max((1.0 - plan) / left, 1.0), LAMBDA_MAX) ** STEEPNESS
    return min(max(paced, SCARCE / left), LAMBDA_MAX)


def price_by_share(used: float) -> float:
    """λ of a hard limit without a plan that still is a rate (a window that moves with the clock, a minute, an hour):
    1 until three quarters are used, 4 at seven eighths, 100 at the last fortieth. Such a limit is kept when all of it
    is used all the time, so there is nothing to save; only running into it is to be avoided."""
    left = 1.0 - used
    return LAMBDA_MAX if left * 10.0 <= GUARDED else max(GUARDED / left, 1.0) ** 2


def price_by_scarcity(used: float) -> float:
    """λ of a hard budget for a lifetime, which nobody knows the end of: 1 / share left. Half gone, twice as dear: each
    further halving of what is left is the same warning."""
    left = 1.0 - used
    return LAMBDA_MAX if left * LAMBDA_MAX <= 1.0 else max(1.0 / left, 1.0)


def price_when_soft(used: float, plan: float) -> float:
    """λ of a soft budget: 2 when 9 % of the limit more than planned are used, 4 at 18 %, and above 1 in any case beyond
    the limit. It refuses nothing, so there is no end to be afraid of; this is the sum of the steps of dual mirror
    descent as it stands. Without a plan (`plan` 1) it is 1 up to the limit."""
    return min(math.exp(min(max(STEEPNESS * (used - plan), 0.0), 64.0)), LAMBDA_MAX)


# ------------------------------------------------------------------------------------------------ the traffic's shape

SLOTS = 48  # hours of a day from Monday to Friday, then hours of a Saturday or Sunday
MEMORY = 10  # days that count: two weeks of working days, five weekends
DOUBT = 2.0  # a straight line weighs as much as so many days


class Shape(msgspec.Struct, frozen=True):
    """What was asked in each hour of the week: the mean number of requests and how many such hours were seen."""

    calls: tuple[float, ...] = (0.0,) * SLOTS
    seen: tuple[int, ...] = (0,) * SLOTS


def learned(shape: Shape, slot: int, calls: int) -> Shape:
    """With one more hour that has ended. The mean of the first MEMORY hours, then an exponentially forgetting one.

    Requests are counted and not money: what is spent in an hour shows how dear money was as much as who was there, and
    a plan that learned from that would follow its own mistakes."""
    seen = shape.seen[slot] + 1
    step = 1.0 / min(seen, MEMORY)
    mean = shape.calls[slot] + step * (calls - shape.calls[slot])
    return Shape(_with(shape.calls, slot, mean), _with(shape.seen, slot, seen))


def weights(shape: Shape) -> tuple[float, ...]:
    """The share of each slot in the traffic, 1 being a mean hour. What was seen little is drawn to a straight line."""
    hours = sum(shape.seen)
    mean = sum(calls * seen for calls, seen in zip(shape.calls, shape.seen, strict=True)) / hours if hours else 0.0
    if mean <= 0.0:
        return (1.0,) * SLOTS
    return tuple(
        (calls / mean * min(seen, MEMORY) + DOUBT) / (min(seen, MEMORY) + DOUBT)
        for calls, seen in zip(shape.calls, shape.seen, strict=True)
    )


class Plan(msgspec.Struct, frozen=True):
    """Of one window: the share that is to be used by each of its points, from 0 to 1. `at_s` rises."""

    at_s: tuple[int, ...]
    share: tuple[float, ...]

    def by(self, at_s: int) -> float:
        """The share that is to be used by this second; straight between two points."""
        i = bisect_right(self.at_s, at_s)
        if i == 0:
            return 0.0
        if i == len(self.at_s):
            return 1.0
        passed = (at_s - self.at_s[i - 1]) / (self.at_s[i] - self.at_s[i - 1])
        return self.share[i - 1] + passed * (self.share[i] - self.share[i - 1])


def plan_of(start_s: int, end_s: int, slots: Sequence[int], shape: Shape) -> Plan:
    """The plan of a window whose hours, counted from its start, fall into these slots. The last may be a part."""
    each = weights(shape)
    at_s, share, total = [start_s], [0.0], 0.0
    for i, slot in enumerate(slots):
        after_s = min(start_s + 3_600 * (i + 1), end_s)
        total += each[slot] * (after_s - at_s[-1])
        at_s.append(after_s)
        share.append(total)
    return Plan(tuple(at_s), tuple(part / total for part in share))


def _with(values: tuple[Any, ...], at: int, value: Any) -> tuple[Any, ...]:
    return (*values[:at], value, *values[at + 1 :])
