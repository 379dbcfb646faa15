"""Windows of the calendar, and what a budget's pace makes of a dollar."""

from __future__ import annotations

import calendar
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.stores.windows import LAMBDA_MAX, NEVER_S, price_of_money, window_of


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
    ("used", "at", "price"),
    [
        # share used of a limit of 1000, share of the window that has passed, λ
        (0, 0.0, 1.0),
        (500, 0.5, 1.0),
        (250, 0.5, 1.0),  # behind its pace is no reason to waste
        (100, 0.0, 1 / 0.9),
        (750, 0.5, 2.0),
        (900, 0.5, 5.0),
        (1_000, 0.5, LAMBDA_MAX),
        (5_000, 0.5, LAMBDA_MAX),
        (999, 0.0, LAMBDA_MAX),
        (900, 0.99, 1.0),
    ],
)
def test_the_price_of_money_is_the_planned_rate_over_the_affordable_one(used: int, at: float, price: float) -> None:
    assert price_of_money(used, 1_000, 0, 1_000_000, int(at * 1_000_000)) == pytest.approx(price)


@given(
    limit=st.integers(0, 10**12),
    used=st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)),
    at_s=st.integers(-10, 110),
    lifetime=st.booleans(),
)
def test_the_price_of_money_is_bounded_and_never_falls_by_spending(
    limit: int, used: tuple[int, int], at_s: int, lifetime: bool
) -> None:
    window = (-NEVER_S, NEVER_S) if lifetime else (0, 100)
    less, more = (price_of_money(amount, limit, *window, at_s) for amount in sorted(used))
    assert 1.0 <= less <= more <= LAMBDA_MAX
