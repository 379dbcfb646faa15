"""Windows of the calendar, and what a budget's pace makes of a dollar."""

from __future__ import annotations

import calendar
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.core.pace import LAMBDA_MAX
from tierwise.stores.ledger.windows import NEVER_S, calm_of_money, price_of_money, window_of


@given(
    at_s=st.integers(0, 32_503_680_000),
    window=st.sampled_from(["minute", "hour", "day", "week", "month", "lifetime"]),
)
def test_windows_hold_their_time_and_meet_without_gap_or_overlap(at_s: int, window: Any) -> None:
    start_s, end_s = window_of(window, at_s)
    assert start_s <= at_s < end_s
    assert window_of(window, start_s) == window_of(window, end_s - 1) == (start_s, end_s)
    if window != "lifetime":
        assert window_of(window, end_s)[0] == end_s


@pytest.mark.parametrize(
    ("window", "at", "start", "end"),
    [
        ("month", "2024-02-29 23:59:59", "2024-02-01 00:00:00", "2024-03-01 00:00:00"),
        ("month", "2025-12-31 12:00:00", "2025-12-01 00:00:00", "2026-01-01 00:00:00"),
        ("week", "2026-01-01 00:00:00", "2025-12-29 00:00:00", "2026-01-05 00:00:00"),
        ("day", "2024-02-29 00:00:00", "2024-02-29 00:00:00", "2024-03-01 00:00:00"),
        ("hour", "2026-03-29 02:30:00", "2026-03-29 02:00:00", "2026-03-29 03:00:00"),  # no summer time in UTC
        ("minute", "2026-03-29 02:30:59", "2026-03-29 02:30:00", "2026-03-29 02:31:00"),
    ],
)
def test_windows_are_those_of_the_calendar_in_utc(window: Any, at: str, start: str, end: str) -> None:
    def seconds(text: str) -> int:
        return calendar.timegm(time.strptime(text, "%Y-%m-%d %H:%M:%S"))

    assert window_of(window, seconds(at)) == (seconds(start), seconds(end))


@pytest.mark.parametrize(
    ("used", "at", "least", "most"),
    [
        # share used of a limit of 1000, share of the window that has passed, λ
        (0, 0.0, 1.0, 1.0),
        (500, 0.5, 1.0, 1.0),
        (250, 0.5, 1.0, 1.0),  # behind its pace is no reason to waste
        (1, 0.0, 1.0, 1.01),  # the first request of a month is not felt
        (83, 0.0, 1.99, 2.01),
        (541, 0.5, 1.98, 2.0),
        (750, 0.5, LAMBDA_MAX, LAMBDA_MAX),
        (1_000, 0.5, LAMBDA_MAX, LAMBDA_MAX),
        (5_000, 0.5, LAMBDA_MAX, LAMBDA_MAX),
        (900, 0.99, 1.0, 1.0),
        (999, 1.0, 19.0, 21.0),  # the last thousandth is dear on any pace
    ],
)
def test_the_price_of_money_is_the_planned_rate_over_the_affordable_one(
    used: int, at: float, least: float, most: float
) -> None:
    assert least <= price_of_money(used, 1_000, 0, 1_000_000, int(at * 1_000_000)) <= most


def test_a_plan_that_is_known_takes_the_place_of_the_straight_line() -> None:
    assert price_of_money(500, 1_000, 0, 100, 50, plan=0.5) == price_of_money(500, 1_000, 0, 100, 50) == 1.0
    assert price_of_money(500, 1_000, 0, 100, 50, plan=0.4) > 4
    assert price_of_money(500, 1_000, 0, 100, 50, plan=0.4, rolling=True) == 1.0  # what has no pace has no plan


@given(
    limit=st.integers(0, 10**12),
    used=st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)),
    at_s=st.tuples(st.integers(-10, 110), st.integers(-10, 110)),
    lifetime=st.booleans(),
    rolling=st.booleans(),
    hard=st.booleans(),
    window=st.sampled_from(["minute", "hour", "day", "week", "month"]),
)
def test_the_price_of_money_is_bounded_never_falls_by_spending_and_never_rises_by_waiting(
    limit: int, used: tuple[int, int], at_s: tuple[int, int], lifetime: bool, rolling: bool, hard: bool, window: Any
) -> None:
    span = (-NEVER_S, NEVER_S) if lifetime else (0, 100)
    kind: Any = {"window": "lifetime" if lifetime else window, "rolling": rolling and not lifetime, "hard": hard}
    less, more = (price_of_money(amount, limit, *span, at_s[0], **kind) for amount in sorted(used))
    assert 1.0 <= less <= more <= LAMBDA_MAX
    early, late = (price_of_money(used[0], limit, *span, at, **kind) for at in sorted(at_s))
    assert late <= early


@given(
    limit=st.one_of(st.integers(-5, 1_000), st.integers(0, 10**19)),
    more=st.integers(0, 10**3),
    at_s=st.integers(-10, 110),
    lifetime=st.booleans(),
    rolling=st.booleans(),
    hard=st.booleans(),
    window=st.sampled_from(["minute", "hour", "day", "week", "month"]),
    plan=st.none() | st.floats(0, 1),
)
def test_money_that_is_called_calm_has_the_least_price_and_little_more_has_not(
    limit: int, more: int, at_s: int, lifetime: bool, rolling: bool, hard: bool, window: Any, plan: float | None
) -> None:
    span = (-NEVER_S, NEVER_S) if lifetime else (0, 100)
    kind: Any = {"window": "lifetime" if lifetime else window, "rolling": rolling and not lifetime, "hard": hard}
    calm = calm_of_money(limit, *span, at_s, **kind, plan=plan)
    assert (calm < 0) == (limit <= 0)
    if limit > 0:
        calm = int(calm)
        for used in (calm, calm - more, 0):
            assert price_of_money(used, limit, *span, at_s, **kind, plan=plan) == 1.0
        assert price_of_money(calm + limit // 10**6 + 2, limit, *span, at_s, **kind, plan=plan) > 1.0
