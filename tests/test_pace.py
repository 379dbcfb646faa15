"""How dear money is at each point of a budget, and what the traffic's shape makes of the plan."""

from __future__ import annotations

import calendar
import itertools
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from scripts import simulate_money as simulation
from tests.support.ledgers import ADA, NEW_YEAR, NOON, a_hold
from tests.support.worlds import episode, world
from tierwise.core.budget import Budget, Charge, Lambda
from tierwise.core.decide import decide
from tierwise.core.explain import explain, explain_story
from tierwise.core.pace import (
    LAMBDA_MAX,
    SLOTS,
    Shape,
    learned,
    plan_of,
    price_by_plan,
    price_by_scarcity,
    price_by_share,
    price_when_soft,
    weights,
)
from tierwise.core.request import Hints
from tierwise.core.words import money_text
from tierwise.stores.ledger.audit import audit
from tierwise.stores.ledger.books import Books
from tierwise.stores.ledger.reading import money_of
from tierwise.stores.ledger.sqlite import SqliteLedger
from tierwise.stores.ledger.traffic import Traffic, count_all
from tierwise.stores.ledger.windows import DAY_S, window_of

HOUR_S = 3_600
shares = st.floats(0, 1.2)


# ------------------------------------------------------------------------------------------------ the formulas


@given(less=shares, more=shares, plan=st.floats(0, 1), later=st.floats(0, 1))
def test_a_price_is_bounded_rises_with_what_is_used_and_falls_as_time_passes(
    less: float, more: float, plan: float, later: float
) -> None:
    less, more = sorted((less, more))
    plan, later = sorted((plan, later))
    for price in (price_by_plan, price_when_soft):
        assert 1.0 <= price(less, plan) <= price(more, plan) <= LAMBDA_MAX
        assert price(less, later) <= price(less, plan)
    for alone in (price_by_share, price_by_scarcity):
        assert 1.0 <= alone(less) <= alone(more) <= LAMBDA_MAX


@given(used=st.floats(0, 0.999), plan=st.floats(0, 1), step=st.floats(0, 1e-4))
def test_no_price_jumps(used: float, plan: float, step: float) -> None:
    """A ten-thousandth of the limit never more than doubles λ while a thousandth is left, and is not felt at first."""
    for price in (
        lambda at: price_by_plan(at, plan),
        price_by_share,
        price_by_scarcity,
        lambda at: price_when_soft(at, plan),
    ):
        assert price(min(used + step, 0.999)) <= 2.4 * price(used)
    assert price_by_plan(step, 0.0) <= 1.001


@given(used=st.floats(0, 0.97), behind=st.floats(0, 1))
def test_on_pace_or_behind_money_costs_what_it_costs(used: float, behind: float) -> None:
    plan = used + behind * (1.0 - used)
    assert price_by_plan(used, plan) == price_when_soft(used, plan) == 1.0


@pytest.mark.parametrize(
    ("price", "floor", "ceiling"),
    [
        (price_by_plan(0.10, 0.02), 1.9, 2.1),  # 9 % ahead of what is left: twice as dear
        (price_by_plan(0.60, 0.40), 20.0, 30.0),
        (price_by_plan(0.999, 0.999), 15.0, 25.0),  # on pace, and nearly gone all the same
        (price_by_plan(0.9999, 1.0), LAMBDA_MAX, LAMBDA_MAX),
        (price_by_share(0.74), 1.0, 1.0),
        (price_by_share(0.875), 4.0, 4.0),
        (price_by_share(0.9751), LAMBDA_MAX, LAMBDA_MAX),
        (price_by_scarcity(0.5), 2.0, 2.0),
        (price_when_soft(1.0, 1.0), 1.0, 1.0),
        (price_when_soft(1.1, 1.0), 2.0, 2.5),  # beyond its limit a soft budget has a price and no wall
        (price_when_soft(3.0, 1.0), LAMBDA_MAX, LAMBDA_MAX),
    ],
)
def test_what_the_documentation_says_of_a_price(price: float, floor: float, ceiling: float) -> None:
    assert floor <= price <= ceiling


# ------------------------------------------------------------------------------------------------ the shape


@given(st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(0, 500)), max_size=60))
def test_a_plan_begins_at_nothing_never_falls_and_ends_at_all_whatever_was_learned(
    hours: list[tuple[int, int]],
) -> None:
    shape = Shape()
    for slot, calls in hours:
        shape = learned(shape, slot, calls)
    start, end = window_of("month", NOON)
    plan = plan_of(start, end, [hour % SLOTS for hour in range((end - start) // HOUR_S)], shape)
    points = [plan.by(at) for at in range(start, end, 7 * HOUR_S)]
    assert points == sorted(points) and all(0 <= point <= 1 for point in points)
    assert (plan.by(start), plan.by(end), plan.by(start - 1), plan.by(end + 1)) == (0.0, 1.0, 0.0, 1.0)


def test_without_knowledge_the_plan_is_a_straight_line_and_days_bend_it() -> None:
    traffic = Traffic()
    start, end = window_of("day", NOON)
    assert traffic.planned(start, end, NOON) == pytest.approx(0.5)
    bent = []
    for day in range(1, 8):
        work(traffic, start + day * DAY_S, days=1)
        bent.append(traffic.planned(start + day * DAY_S, end + day * DAY_S, NOON + day * DAY_S))
    assert 0.5 > bent[1] > bent[5]  # all of the work is done from twelve to eight


def test_a_weekend_is_not_a_working_day() -> None:
    traffic = Traffic()
    monday = NOON // DAY_S * DAY_S + 5 * DAY_S
    work(traffic, monday, days=19)
    monday += 21 * DAY_S
    week = [traffic.planned(monday, monday + 7 * DAY_S, monday + day * DAY_S) for day in range(8)]
    days = [after - before for before, after in itertools.pairwise(week)]
    assert min(days[:5]) > 3 * max(days[5:])


def work(traffic: Traffic, start_s: int, days: int) -> None:
    """Ten requests an hour from noon to eight on working days."""
    for hour in range(24 * days + 1):
        at_s = start_s + hour * HOUR_S
        if traffic.slot(at_s) in range(12, 20):
            for i in range(10):
                count_all([traffic], f"{at_s} {i}", at_s + i)
    count_all([traffic], "end", start_s + days * DAY_S)


def test_hours_are_those_of_the_budgets_zone() -> None:
    midnight = calendar.timegm(
        time.strptime("2026-07-01 22:00", "%Y-%m-%d %H:%M")
    )  # Wednesday in Berlin: Thursday, 0:00
    assert (Traffic("Europe/Berlin").slot(midnight), Traffic().slot(midnight)) == (0, 22)
    saturday = calendar.timegm(time.strptime("2026-07-03 22:00", "%Y-%m-%d %H:%M"))
    assert Traffic("Europe/Berlin").slot(saturday) == 24


def test_a_request_counts_once_and_an_hour_that_was_not_seen_whole_is_not_learned() -> None:
    traffic = Traffic()
    count_all([traffic], "a", NOON + 1_800)
    count_all([traffic], "b", NOON + HOUR_S)
    count_all([traffic], "b", NOON + HOUR_S + 1)  # a fallback
    count_all([traffic], "c", NOON + 3 * HOUR_S)
    assert traffic.shape.seen[12:16] == (0, 1, 1, 0)
    assert traffic.shape.calls[12:16] == (0.0, 1.0, 0.0, 0.0)
    count_all([traffic], "d", NOON)  # a late clock
    count_all([traffic], "e", NOON + 4 * HOUR_S)
    assert (traffic.shape.seen[12:17], traffic.shape.calls[15]) == ((0, 1, 1, 1, 0), 2.0)


def test_what_was_long_ago_is_forgotten() -> None:
    shape = Shape()
    for calls in [100] * 30 + [0] * 20:
        shape = learned(shape, 3, calls)
    assert shape.calls[3] < 15  # a mean of all would still say 60


@given(st.integers(0, SLOTS - 1), st.integers(1, 1_000))
def test_what_was_seen_once_is_half_believed_at_most(slot: int, calls: int) -> None:
    assert set(weights(Shape())) == {1.0}
    found = weights(learned(learned(Shape(), slot, calls), (slot + 1) % SLOTS, 0))
    assert 1.0 < found[slot] < 2.0 and 0.5 < found[(slot + 1) % SLOTS] < 1.0 and found[(slot + 2) % SLOTS] == 1.0


# ------------------------------------------------------------------------------------------------ in the books


def test_books_learn_when_a_budgets_traffic_comes() -> None:
    """The same use at the same hour: with a shape known, the noon of a day that only works afternoons is dear."""
    books = Books((Budget(scope="team", limit_nano=1_000_000, window="day"),))
    for day in range(9):
        for hour in range(12, 20):
            at_s = NOON // DAY_S * DAY_S + day * DAY_S + hour * HOUR_S
            books.hold(a_hold(f"{day} {hour}", 1, at_s=at_s))
            books.settle(f"{day} {hour}", Charge(cost_nano=1), at_s)
    monday = NOON // DAY_S * DAY_S + 12 * DAY_S
    books.hold(a_hold("new", 450_000, at_s=monday + 9 * HOUR_S))
    assert money_of(books.passes(ADA, Hints()), monday + 12 * HOUR_S).value > 2.0
    fresh = Books((Budget(scope="team", limit_nano=1_000_000, window="day"),))
    fresh.hold(a_hold("new", 450_000, at_s=monday + 9 * HOUR_S))
    assert money_of(fresh.passes(ADA, Hints()), monday + 12 * HOUR_S).value == 1.0


@pytest.mark.parametrize("ended", ["closed", "killed"])
async def test_a_restart_forgets_no_shape(tmp_path: Path, ended: str) -> None:
    """The same traffic with a restart every few hours, also within one, and without: the same price of money."""
    budgets = (Budget(scope="team", limit_nano=1_000_000, window="day"),)
    path = tmp_path / "ledger.sqlite"
    now = [float(NOON)]
    steady, books = SqliteLedger(path, budgets, lambda: now[0], reserve_bytes=1), Books(budgets)
    for number in range(9 * 24 * 2):
        at_s = NOON // DAY_S * DAY_S + number * HOUR_S // 2
        if at_s % DAY_S >= 12 * HOUR_S:
            await steady.hold(a_hold(str(number), 1, at_s=at_s))
            steady.settle(str(number), Charge(cost_nano=1))
            books.hold(a_hold(str(number), 1, at_s=at_s))
        if number % 41 == 40:
            if ended == "killed":
                steady._do_errands()  # as it does once a minute
                await steady.drain()
                steady._note_traffic = lambda: None  # type: ignore[method-assign]
            await steady.close()
            steady = SqliteLedger(path, budgets, lambda: now[0], reserve_bytes=1)
    monday = NOON // DAY_S * DAY_S + 12 * DAY_S
    await steady.hold(a_hold("new", 450_000, at_s=monday + 9 * HOUR_S))
    books.hold(a_hold("new", 450_000, at_s=monday + 9 * HOUR_S))
    now[0] = monday + 12 * HOUR_S
    dear = money_of(books.passes(ADA, Hints()), monday + 12 * HOUR_S)
    assert steady.money(ADA, Hints(), monday + 12 * HOUR_S) == dear and dear.value > 2.0
    await steady.close()
    assert list(audit(path)) == []


@pytest.mark.parametrize(
    ("budget", "used", "price"),
    [
        ({"window": "month"}, 500, (LAMBDA_MAX, LAMBDA_MAX)),  # half a month's money in its first hours
        ({"window": "month", "rolling": True}, 500, (1.0, 1.0)),  # what moves with the clock has no start
        ({"window": "month", "rolling": True}, 900, (6.0, 7.0)),
        ({"window": "hour"}, 500, (1.0, 1.0)),
        ({"window": "hour"}, 900, (6.0, 7.0)),
        ({"window": "lifetime"}, 500, (2.0, 2.0)),
        ({"window": "lifetime", "hard": False}, 1_000, (1.0, 1.0)),
        ({"window": "lifetime", "hard": False}, 1_100, (2.0, 2.5)),
        ({"window": "month", "hard": False}, 100, (2.0, 2.5)),
        ({"tokens": 10, "window": "month", "limit_nano": None}, 500, (1.0, 1.0)),  # no model saves tokens
    ],
)
def test_every_kind_of_budget_has_its_price(budget: dict[str, Any], used: int, price: tuple[float, float]) -> None:
    books = Books((Budget(scope="team", **{"limit_nano": 1_000, **budget}),))
    start_s = NEW_YEAR + 60
    assert books.hold(a_hold("a", used, at_s=start_s)) is None
    low, high = price
    assert low <= money_of(books.passes(ADA, Hints()), start_s).value <= high
    books.settle("a", Charge(cost_nano=used), start_s)
    assert low <= money_of(books.passes(ADA, Hints()), start_s).value <= high


def test_money_tells_which_budget_made_it_dear() -> None:
    books = Books(
        (
            Budget(scope="team", limit_nano=1_000, window="day"),
            Budget(scope="user", limit_nano=1_000),
            Budget(scope="organisation", limit_nano=100_000, window="month"),
        )
    )
    books.hold(a_hold("a", 600, at_s=NOON))
    money = money_of(books.passes(ADA, Hints()), NOON)
    assert dict(zip([name for name, _ in money.causes], money.shares, strict=True)) == {
        "team/day": (0.6, 0.5),
        "user": (0.6, None),
    }
    said = money_text(money)
    assert said.startswith(
        "money counts 5.96 times (λ): 60.0% of the budget team/day is spent or held, 50.0% was planned"
    )
    assert said.endswith("60.0% of the budget user is spent or held (λ 2.5)")
    assert money_text(Lambda()) == ""
    assert "the budget old/month is dear" in money_text(Lambda(3.0, (("old/month", 3.0),)))


def test_an_explanation_says_what_made_money_dear_and_what_that_changed() -> None:
    snapshot = world()
    dear = Lambda(9.0, (("team/month", 9.0),), 10**12, "team", ((0.5, 0.34),))
    story = episode(snapshot, features={"task": "reasoning", "complexity": 0.3}, money=dear)
    calm = replace(story, money=Lambda())
    found, usual = (explain(snapshot, each, decide(snapshot, each)) for each in (story, calm))
    assert found.model != usual.model
    assert found.money["model_at_lambda_1"] == usual.money["model_at_lambda_1"] == usual.model
    said = (
        "money counts 9 times (λ): 50.0% of the budget team/month is spent or held, 34.0% was planned by now; "
        f"at λ 1 it would have been {usual.model}"
    )
    assert found.reasons[-1] == said
    assert said in explain_story(snapshot, story, (decide(snapshot, story),)).reasons
    assert not any("λ" in reason for reason in usual.reasons)
    easy = replace(story, features=replace(story.features, task="greeting", complexity=0.0))
    assert explain(snapshot, easy, decide(snapshot, easy)).reasons[-1].endswith("the choice would have been the same")


# ------------------------------------------------------------------------------------------------ what it is worth


@pytest.mark.parametrize(("window", "per_day"), [("month", 50), ("day", 100)])
def test_the_price_of_money_gets_more_answers_out_of_a_budget_than_a_hard_stop(window: Any, per_day: int) -> None:
    """The short form of `make simulate-money`: a month, or ten single days, on four tenths of the money."""
    days = 30 if window == "month" else 10
    asked = simulation.traffic(1, days, per_day)
    free = simulation.run(asked, simulation.FREE, None, days=days)
    limit = round(0.4 * free.spent_nano / (1 if window == "month" else days))
    ways = {arm.name: simulation.run(asked, arm, limit, window, days) for arm in simulation.ARMS}
    stopped = max(ways[arm.name].adequate for arm in (simulation.STOP, simulation.HARD, simulation.CHEAPEST))
    answered = max(ways[arm.name].answered for arm in (simulation.STOP, simulation.HARD))
    for arm in (simulation.PRICED, simulation.SHAPED):
        way = ways[arm.name]
        assert way.adequate > 1.05 * stopped
        assert way.answered > answered
        assert way.limit_nano is not None and way.spent_nano <= way.limit_nano
        assert window == "day" or (way.gone_on is None or way.gone_on > 28)
