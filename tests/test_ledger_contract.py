"""What every ledger must do: the laws of money, run over each of them (B1 to B14)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.ledgers import ADA, LEDGERS, NEW_YEAR, NOON, a_hold, of, path_of
from tierwise.core.budget import Budget, Charge, Denial, Hold
from tierwise.core.money import Rates, Usage, cost_nano
from tierwise.core.request import Hints, Payer
from tierwise.stores.ledger.windows import DAY_S
from tierwise.stores.memory import MemoryLedger


@pytest.fixture(params=sorted(LEDGERS))
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    ledgers = LEDGERS[request.param]()
    yield ledgers
    ledgers.close()


# ---------------------------------------------------------------------------------- concurrency (B1, B3, B4, B13)


async def admitted_of_10_000(ledger: Any) -> int:
    answers = await asyncio.gather(*(ledger.hold(a_hold(f"{n}", 10)) for n in range(10_000)))
    return answers.count(None)


async def test_of_10_000_concurrent_holds_exactly_the_1_000_that_fit_are_admitted(make: Callable[..., Any]) -> None:
    ledger = make(path_of(10_000))
    assert await admitted_of_10_000(ledger) == 1_000
    assert ledger.open_holds() == 1_000
    assert {held for _, _, held in of(ledger)} == {10_000}
    assert ledger.audit() == ()


class CheckThenAct(MemoryLedger):
    """The bug that everyone ships: asks whether there is enough, waits, and then takes it."""

    async def hold(self, hold: Hold) -> Denial | None:
        enough = all(b.left_nano is None or b.left_nano >= hold.amount_nano for b in self.balances(ADA, Hints()))
        await asyncio.sleep(0)
        if not enough:
            return Denial(scope="team")
        for line, subject in self.books.passes(hold.payer, Hints()).passed:
            line.standing(subject, hold.at_s).account.pending_nano += hold.amount_nano
        return None


async def test_the_law_of_concurrent_holds_is_able_to_fail() -> None:
    ledger = CheckThenAct((Budget(scope="team", limit_nano=10_000),))
    assert await admitted_of_10_000(ledger) > 1_000
    assert any("above its limit" in fault for fault in ledger.audit())


async def test_racing_retries_of_one_id_hold_once_and_are_charged_once(make: Callable[..., Any]) -> None:
    ledger = make((Budget(scope="user", limit_nano=100_000),))

    async def attempt(n: int) -> None:
        assert await ledger.hold(a_hold(f"{n}", 7)) is None
        await asyncio.sleep(0)
        ledger.settle(f"{n}", Charge(cost_nano=5))

    await asyncio.gather(*(attempt(n) for n in range(1_000) for _ in range(10)))
    await ledger.drain()
    assert of(ledger) == [("user", 5_000, 0)]
    assert await ledger.hold(a_hold("0", 7)) is None, "an id that was charged holds nothing more"
    assert (ledger.open_holds(), ledger.ignored, ledger.audit()) == (0, 9_000, ())


@pytest.mark.parametrize("first", ["reported", "estimated", "released"])
async def test_the_first_settlement_closes_a_hold_and_later_ones_are_ignored(
    make: Callable[..., Any], first: str
) -> None:
    ledger = make((Budget(scope="user", limit_nano=100),))
    await ledger.hold(a_hold("a", 10))
    ledger.settle("a", Charge(cost_nano=3, kind=first))  # type: ignore[arg-type]
    for kind in ("reported", "estimated", "released"):
        ledger.settle("a", Charge(cost_nano=9, kind=kind))
    ledger.settle("never held", Charge(cost_nano=9))
    await ledger.drain()
    assert of(ledger) == [("user", 0 if first == "released" else 3, 0)]
    assert ledger.ignored == 4
    assert ledger.audit() == ()


async def test_the_first_request_of_an_unknown_session_has_its_budget_already(make: Callable[..., Any]) -> None:
    ledger = make((Budget(scope="session", limit_nano=10),))
    answers = await asyncio.gather(*(ledger.hold(a_hold(f"{n}", 10, session="new")) for n in range(64)))
    assert answers.count(None) == 1


async def test_a_settlement_survives_the_cancellation_of_its_request(make: Callable[..., Any]) -> None:
    ledger = make((Budget(scope="user", limit_nano=100),))

    held = asyncio.Event()

    async def request() -> None:
        await ledger.hold(a_hold("a", 10))
        held.set()
        try:
            await asyncio.Event().wait()
        finally:
            ledger.settle("a", Charge(cost_nano=4, kind="estimated"))

    task = asyncio.create_task(request())
    await held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ledger.drain()
    assert (of(ledger), ledger.open_holds()) == ([("user", 4, 0)], 0)


@pytest.mark.parametrize("turns", range(4))
async def test_a_request_that_is_cancelled_while_it_waits_for_its_hold_leaves_none(
    make: Callable[..., Any], turns: int
) -> None:
    ledger = make((Budget(scope="user", limit_nano=100),))

    async def request() -> None:
        try:
            await ledger.hold(a_hold("a", 10))
        finally:
            ledger.settle("a", Charge(cost_nano=0, kind="released"))

    task = asyncio.create_task(request())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await ledger.drain()
    assert (of(ledger), ledger.open_holds(), ledger.audit()) == ([("user", 0, 0)], 0, ())


# ---------------------------------------------------------------------------------- paths (B5, B6, B8, B12)


@pytest.mark.parametrize("tight", range(5))
async def test_a_refusal_at_any_level_holds_nothing_anywhere(make: Callable[..., Any], tight: int) -> None:
    budgets = list(path_of(100))
    budgets[tight] = Budget(scope=budgets[tight].scope, limit_nano=9)
    ledger = make(tuple(budgets))
    denial = await ledger.hold(a_hold("a", 10))
    assert denial == Denial(scope=budgets[tight].scope, limit_nano=9, spent_nano=0, held_nano=0, affordable_nano=9)
    assert (ledger.open_holds(), {held for _, _, held in of(ledger)}) == (0, {0})
    assert await ledger.hold(a_hold("a", 9)) is None, "a refused id may ask for less"


OTHER = Payer(key="k2", user="bob", team="ads", organisation="acme")
PATHS: list[tuple[Budget, dict[str, Any], dict[str, Any], bool]] = [
    # a budget, two holds that differ in this, and whether they share an account
    (Budget(scope="user"), {}, {"payer": OTHER}, False),
    (Budget(scope="team"), {}, {"payer": OTHER}, False),
    (Budget(scope="organisation"), {}, {"payer": OTHER}, True),
    (Budget(scope="key"), {}, {"payer": OTHER}, False),
    (Budget(scope="user"), {"payer": Payer()}, {"payer": Payer(key="k2")}, True),  # no key is exempt for lack of a name
    (Budget(scope="user", match=(("team", "search"),)), {}, {"payer": Payer(user="eve", team="search")}, False),
    (Budget(scope="session"), {}, {"session": "s2"}, False),
    (Budget(scope="workflow"), {}, {"session": "s2"}, True),
    (Budget(scope="request"), {}, {"request": "a"}, True),
    (Budget(scope="request"), {}, {}, False),
    (Budget(scope="tag"), {}, {"payer": Payer(user="bob", tags=(("project", "x"), ("env", "dev")))}, True),
    (Budget(scope="tag", match=(("project", "x"),)), {}, {"payer": Payer(tags=(("project", "x"),))}, True),
]


@pytest.mark.parametrize(("budget", "one", "two", "shared"), PATHS)
async def test_two_holds_share_an_account_when_the_scope_says_so(
    make: Callable[..., Any], budget: Budget, one: dict[str, Any], two: dict[str, Any], shared: bool
) -> None:
    ledger = make((Budget(scope=budget.scope, match=budget.match, limit_nano=10),))
    assert await ledger.hold(a_hold("a", 10, **one)) is None
    assert (await ledger.hold(a_hold("b", 10, **two)) is not None) == shared


@pytest.mark.parametrize(
    ("budget", "outside"),
    [
        (Budget(scope="team", match=(("team", "search"),)), {"payer": OTHER}),
        (Budget(scope="session", match=(("team", "search"),)), {"payer": OTHER}),
        (Budget(scope="tag", match=(("project", "x"),)), {"payer": OTHER}),
        (Budget(scope="tag"), {"payer": OTHER}),
        (Budget(scope="session"), {"session": ""}),
        (Budget(scope="workflow"), {"workflow": ""}),
        (Budget(scope="session", match=(("session", "s"),)), {"session": "s2"}),
    ],
)
async def test_a_budget_that_does_not_match_says_nothing(
    make: Callable[..., Any], budget: Budget, outside: dict[str, Any]
) -> None:
    ledger = make((Budget(scope=budget.scope, match=budget.match, limit_nano=0),))
    assert await ledger.hold(a_hold("inside", 1)) is not None
    assert await ledger.hold(a_hold("outside", 1, **outside)) is None


async def test_every_attempt_of_a_request_counts_against_its_own_limit(make: Callable[..., Any]) -> None:
    ledger = make(())
    capped = {"request": "r", "request_limit_nano": 10}
    assert await ledger.hold(a_hold("r/1", 6, **capped)) is None
    ledger.settle("r/1", Charge(cost_nano=5))
    assert await ledger.hold(a_hold("r/2", 5, **capped)) is None
    denial = await ledger.hold(a_hold("r/3", 1, **capped))
    expected = Denial(scope="request", code="held_by_others", limit_nano=10, spent_nano=5, held_nano=5)
    assert denial == expected
    assert await ledger.hold(a_hold("q/1", 10, request="q", request_limit_nano=10)) is None


# ---------------------------------------------------------------------------------- amounts (B7, B9)


async def test_what_a_provider_bills_above_the_hold_is_posted_in_full_and_closes_admission(
    make: Callable[..., Any],
) -> None:
    ledger = make(path_of(100))
    await ledger.hold(a_hold("a", 60))
    ledger.settle("a", Charge(cost_nano=600))
    await ledger.drain()
    assert {spent for _, spent, _ in of(ledger)} == {600}
    assert (ledger.overages, ledger.overage_nano) == (1, 540)
    denial = await ledger.hold(a_hold("b", 1))
    assert denial is not None
    assert (denial.code, denial.affordable_nano, denial.spent_nano) == ("budget_exceeded", 0, 600)
    assert await ledger.hold(a_hold("free", 0)) is None, "what costs nothing can still be had"
    ledger.reload(path_of(601))
    assert await ledger.hold(a_hold("c", 1)) is None, "topped up"
    assert ledger.audit() == ()


@pytest.mark.parametrize(("amount", "steps"), [(-1, 1), (2**63, 1), (1, -1)])
async def test_an_impossible_hold_is_the_callers_mistake(make: Callable[..., Any], amount: int, steps: int) -> None:
    ledger = make(())
    with pytest.raises(ValueError, match="cannot be held"):
        await ledger.hold(a_hold("a", amount, steps=steps))
    assert ledger.open_holds() == 0


async def test_a_cost_that_cannot_be_is_charged_as_the_worst_case(make: Callable[..., Any]) -> None:
    ledger = make((Budget(scope="user", limit_nano=100),))
    await ledger.hold(a_hold("a", 10))
    ledger.settle("a", Charge(cost_nano=-5))
    await ledger.drain()
    assert of(ledger) == [("user", 10, 0)]


@given(calls=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**11)), min_size=1, max_size=20))
@settings(deadline=None)
def test_what_is_posted_is_never_under_the_exact_price_and_at_most_one_nano_dollar_a_call_over(
    calls: list[tuple[int, int]],
) -> None:
    async def posted() -> int:
        ledger = MemoryLedger((Budget(scope="user", limit_nano=2**63),))
        for n, (tokens, rate) in enumerate(calls):
            assert await ledger.hold(a_hold(f"{n}", 10**12)) is None
            ledger.settle(f"{n}", Charge(cost_nano=cost_nano(Usage(input_tokens=tokens), Rates.of(rate, 0))))
        assert ledger.audit() == ()
        return of(ledger)[0][1]

    exact = sum(Fraction(tokens * rate, 10**6) for tokens, rate in calls)
    assert exact <= asyncio.run(posted()) < exact + len(calls)


# ---------------------------------------------------------------------------------- denials


class Case:
    """One budget in one state, and what a hold of 50 is told."""

    def __init__(self, spent: int, held: int, **denial: Any) -> None:
        self.spent, self.held, self.denial = spent, held, denial


@pytest.mark.parametrize(
    "case",
    [
        Case(60, 0, code="budget_exceeded", affordable_nano=40),
        Case(0, 60, code="held_by_others", affordable_nano=40),
        Case(50, 10, code="held_by_others", affordable_nano=40),
        Case(51, 10, code="budget_exceeded", affordable_nano=39),
        Case(100, 0, code="budget_exceeded", affordable_nano=0),
    ],
)
async def test_a_denial_says_whether_waiting_helps_and_what_is_affordable(make: Callable[..., Any], case: Case) -> None:
    ledger = make((Budget(scope="team", limit_nano=100, window="day"), Budget(scope="user", limit_nano=1_000)))
    await ledger.hold(a_hold("spent", case.spent))
    ledger.settle("spent", Charge(cost_nano=case.spent))
    await ledger.hold(a_hold("held", case.held))
    state: dict[str, Any] = {
        "limit_nano": 100,
        "spent_nano": case.spent,
        "held_nano": case.held,
        "resets_at_s": NEW_YEAR,
    }
    assert await ledger.hold(a_hold("a", 50)) == Denial(scope="team", **state, **case.denial)


async def test_of_several_refusals_the_one_that_waiting_does_not_help_is_told(make: Callable[..., Any]) -> None:
    ledger = make((Budget(scope="team", limit_nano=10), Budget(scope="user", limit_nano=8)))
    await ledger.hold(a_hold("spent", 5, payer=Payer(user="ada", team="ads")))
    ledger.settle("spent", Charge(cost_nano=5))
    await ledger.hold(a_hold("held", 8, payer=Payer(user="bob", team="search")))
    denial = await ledger.hold(a_hold("a", 4))
    assert (denial.scope, denial.code, denial.affordable_nano) == ("user", "budget_exceeded", 2)


# ---------------------------------------------------------------------------------- steps (B14)


async def test_a_session_makes_its_steps_and_not_one_more(make: Callable[..., Any]) -> None:
    ledger = make((Budget(scope="session", steps=40),))
    answers = await asyncio.gather(*(ledger.hold(a_hold(f"{n}", 1)) for n in range(200)))
    assert answers.count(None) == 40
    assert answers[-1] == Denial(scope="session", code="step_limit", limit=40, used=40)
    assert await ledger.hold(a_hold("retry", 1, steps=0)) is None, "an attempt may count as no step of its own"
    assert await ledger.hold(a_hold("other", 1, session="t")) is None


async def test_a_call_that_was_never_made_is_no_step(make: Callable[..., Any]) -> None:
    ledger = make((Budget(scope="workflow", steps=1, limit_nano=100),))
    await ledger.hold(a_hold("a", 1))
    assert (await ledger.hold(a_hold("b", 1))).code == "step_limit"
    ledger.settle("a", Charge(cost_nano=0, kind="released"))
    await ledger.drain()
    assert await ledger.hold(a_hold("b", 1)) is None
    ledger.settle("b", Charge(cost_nano=0))
    await ledger.drain()
    assert (await ledger.hold(a_hold("c", 1))).code == "step_limit", "a free reply is a step all the same"


# ---------------------------------------------------------------------------------- other limits (B11)


async def test_changed_limits_keep_what_is_held_and_spent(make: Callable[..., Any]) -> None:
    day = Budget(scope="team", limit_nano=100, window="day")
    user = Budget(scope="user", limit_nano=100)
    ledger = make((day, user), lambda: float(NOON))
    await ledger.hold(a_hold("a", 60))
    ledger.reload((Budget(scope="team", limit_nano=50, window="day"),))  # lowered; the user's is taken away
    denial = await ledger.hold(a_hold("b", 1))
    assert (denial.limit_nano, denial.held_nano, denial.affordable_nano) == (50, 60, 0)
    ledger.settle("a", Charge(cost_nano=55))
    await ledger.drain()
    assert of(ledger) == [("team", 55, 0)]
    ledger.reload((Budget(scope="team", limit_nano=56, window="day"),))
    assert await ledger.hold(a_hold("c", 1)) is None
    assert ledger.audit() == ()


# ---------------------------------------------------------------------------------- windows (B10, K1)


async def test_holds_settle_into_the_window_that_admitted_them(make: Callable[..., Any]) -> None:
    now = [float(NEW_YEAR - 1)]
    ledger = make((Budget(scope="team", limit_nano=1_000, window="day"),), lambda: now[0])
    for n in range(1_000):
        assert await ledger.hold(a_hold(f"{n}", 1, at_s=NEW_YEAR - 1)) is None
    assert await ledger.hold(a_hold("full", 1, at_s=NEW_YEAR - 1)) is not None
    for n in range(500):
        ledger.settle(f"{n}", Charge(cost_nano=1))
    await ledger.drain()
    assert of(ledger) == [("team", 500, 500)]

    now[0] = float(NEW_YEAR)
    assert of(ledger) == [("team", 0, 0)], "the new window begins at zero, and no job had to run"
    assert await ledger.hold(a_hold("new", 1_000, at_s=NEW_YEAR)) is None
    assert ledger.audit() == ()
    for n in range(500, 1_000):
        ledger.settle(f"{n}", Charge(cost_nano=3))
    await ledger.drain()
    assert of(ledger) == [("team", 0, 1_000)], "yesterday's overage is yesterday's"
    assert ledger.audit() == ()
    ledger.settle("new", Charge(cost_nano=0, kind="released"))
    await ledger.drain()
    assert (of(ledger), ledger.open_holds()) == ([("team", 0, 0)], 0)


async def test_a_clock_that_goes_back_opens_no_window_twice(make: Callable[..., Any]) -> None:
    ledger = make((Budget(scope="team", limit_nano=10, window="day"),), lambda: float(NOON))
    assert await ledger.hold(a_hold("today", 10)) is None
    assert await ledger.hold(a_hold("tomorrow", 4, at_s=NOON + DAY_S)) is None
    for n, at_s in enumerate((NOON, NOON - 40 * DAY_S, NOON + DAY_S)):
        denial = await ledger.hold(a_hold(f"again {n}", 7, at_s=at_s))
        assert (denial.held_nano, denial.resets_at_s) == (4, NEW_YEAR + DAY_S)


# ---------------------------------------------------------------------------------- what is told


async def test_money_names_the_dearest_budget_its_causes_and_what_is_left(make: Callable[..., Any]) -> None:
    budgets = (
        Budget(scope="team", limit_nano=1_000, window="day"),
        Budget(scope="user", limit_nano=400),
        Budget(scope="session", limit_nano=100_000, steps=9),
        Budget(scope="workflow", steps=9),
        Budget(scope="request", limit_nano=300),
    )
    ledger = make(budgets, lambda: float(NOON))
    fresh = ledger.money(ADA, Hints(session="s"), NOON)
    assert (fresh.value, fresh.causes, fresh.left_nano, fresh.scope) == (1.0, (), 300, "request")
    await ledger.hold(a_hold("a", 100))
    ledger.settle("a", Charge(cost_nano=100))
    await ledger.hold(a_hold("b", 100))
    money = ledger.money(ADA, Hints(session="s"), NOON)
    assert dict(money.causes) == {"user": pytest.approx(2.0), "session": pytest.approx(100_000 / 99_800)}
    assert (money.value, money.left_nano, money.scope) == (pytest.approx(2.0), 200, "user")
    assert ledger.money(ADA, Hints(session="s"), NEW_YEAR).left_nano == 200
    assert make(()).money(ADA, Hints(), NOON).left_nano is None


async def test_reading_balances_changes_nothing_and_tells_everything(make: Callable[..., Any]) -> None:
    now = [float(NOON)]
    budgets = (Budget(scope="team", limit_nano=1_000, window="day"), Budget(scope="session", limit_nano=10, steps=3))
    ledger = make(budgets, lambda: now[0])
    await ledger.hold(a_hold("a", 4))
    now[0] = NEW_YEAR + 1.0
    assert ledger.balances(ADA, Hints())[0].held_nano == 0
    ledger.money(ADA, Hints(), NEW_YEAR + 1)
    now[0] = float(NOON)
    team, session = ledger.balances(ADA, Hints(session="s"))
    assert (team.subject, team.spent_nano, team.held_nano, team.left_nano) == ("search", 0, 4, 996)
    assert (team.window, team.resets_at_s, team.price) == ("day", NEW_YEAR, 1.0)
    assert (session.steps, session.steps_done, session.left_nano, session.resets_at_s) == (3, 1, 6, None)
    assert session.price == pytest.approx(10 / 6)


async def test_what_is_prepaid_pays_for_no_call_without_a_price_unless_something_is_reserved(
    make: Callable[..., Any],
) -> None:
    unpriced = {"bounded": False}
    ledger = make(())
    await ledger.grant("g", "user", "ada", 100)
    denial = await ledger.hold(a_hold("a", 0, **unpriced))
    assert (denial.scope, denial.code) == ("credit", "unbounded")
    assert await ledger.hold(a_hold("priced", 100)) is None
    ledger = make((Budget(scope="team", limit_nano=1_000, reserve_nano=40),))
    await ledger.grant("g", "user", "ada", 100)
    assert [await ledger.hold(a_hold(f"{n}", 0, **unpriced)) is None for n in range(3)] == [True, True, False]
