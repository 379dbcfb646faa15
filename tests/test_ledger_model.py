"""Any story of holds, settlements and time, told to a ledger and to a model that sums everything up again each time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.support.ledgers import LEDGERS, NOON, a_hold
from tierwise.core.budget import Budget, Charge, Hold
from tierwise.core.request import Hints, Payer
from tierwise.stores.ledger.windows import DAY_S, window_of

MODEL_BUDGETS = (
    Budget(scope="team", limit_nano=60, window="hour"),
    Budget(scope="user", limit_nano=40, window="day"),
    Budget(scope="user", match=(("team", "t1"),), limit_nano=35),
    Budget(scope="session", limit_nano=30, steps=4),
    Budget(scope="organisation", limit_nano=500),
)


class AgainstAModel(RuleBasedStateMachine):
    """The model is a list of every attempt there ever was; what an account holds is summed up again each time."""

    make: Callable[[], Any]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()

    def teardown(self) -> None:
        self.runner.close()
        self.ledgers.close()

    @initialize()
    def begin(self) -> None:
        self.now_s = NOON
        self.ledgers = type(self).make()
        self.ledger = self.ledgers(MODEL_BUDGETS, lambda: float(self.now_s))
        self.attempts: dict[str, tuple[Hold, str, int]] = {}  # id -> hold, open/closed/released, cost

    def sums(self, budget: Budget, payer: Payer, session: str) -> tuple[int, int, int]:
        """(posted, pending, steps) of the account that this payer has under this budget now."""
        posted = pending = steps = 0
        window = window_of(budget.window, self.now_s)
        for hold, state, cost in self.attempts.values():
            if window_of(budget.window, hold.at_s) != window or not self.applies(budget, hold.payer, hold.session):
                continue
            if self.subject(budget, hold.payer, hold.session) != self.subject(budget, payer, session):
                continue
            posted += cost
            pending += hold.amount_nano if state == "open" else 0
            steps += 0 if state == "released" else 1
        return posted, pending, steps

    def applies(self, budget: Budget, payer: Payer, session: str) -> bool:
        return all(getattr(payer, name) == value for name, value in budget.match) and (
            budget.scope != "session" or session != ""
        )

    def subject(self, budget: Budget, payer: Payer, session: str) -> str:
        if budget.scope == "session":
            return f"{payer} {session}"  # a session is its payer's own
        return str(getattr(payer, budget.scope))

    def path(self, payer: Payer, session: str) -> list[tuple[Budget, int, int, int]]:
        applying = (budget for budget in MODEL_BUDGETS if self.applies(budget, payer, session))
        return [(budget, *self.sums(budget, payer, session)) for budget in applying]

    @rule(
        amount=st.integers(0, 40),
        user=st.sampled_from(["u1", "u2"]),
        team=st.sampled_from(["t1", "t2"]),
        session=st.sampled_from(["", "s1", "s2"]),
    )
    def hold(self, amount: int, user: str, team: str, session: str) -> None:
        payer = Payer(user=user, team=team, organisation="o")
        hold = a_hold(f"h{len(self.attempts)}", amount, payer=payer, session=session, at_s=self.now_s)
        path = self.path(payer, session)
        fits = all(
            (amount == 0 or budget.limit_nano is None or posted + pending + amount <= budget.limit_nano)
            and (budget.steps is None or steps + 1 <= budget.steps)
            for budget, posted, pending, steps in path
        )
        answer = self.runner.run(self.ledger.hold(hold))
        assert (answer is None) == fits
        if answer is None:
            self.attempts[hold.id] = (hold, "open", 0)
            assert self.runner.run(self.ledger.hold(hold)) is None
        elif answer.code != "step_limit":
            room = (b.limit_nano - posted - pending for b, posted, pending, _ in path if b.limit_nano is not None)
            assert answer.affordable_nano == max(min(room), 0) < amount
            affordable = a_hold(
                f"{hold.id} less", answer.affordable_nano, payer=payer, session=session, at_s=self.now_s
            )
            if all(b.steps is None or steps < b.steps for b, _, _, steps in path):
                assert self.runner.run(self.ledger.hold(affordable)) is None, "what is said to be affordable is"
                self.attempts[affordable.id] = (affordable, "open", 0)

    @rule(data=st.data(), cost=st.integers(0, 60), kind=st.sampled_from(["reported", "estimated", "released"]))
    def settle(self, data: st.DataObject, cost: int, kind: Any) -> None:
        if not self.attempts:
            return
        id = data.draw(st.sampled_from(sorted(self.attempts)))
        self.ledger.settle(id, Charge(cost_nano=cost, kind=kind))
        self.runner.run(self.ledger.drain())
        hold, state, _ = self.attempts[id]
        if state == "open":
            released = kind == "released"
            self.attempts[id] = (hold, "released" if released else "closed", 0 if released else cost)

    @rule(later_s=st.sampled_from([60, 1_800, 3_600, DAY_S]))
    def wait(self, later_s: int) -> None:
        self.now_s += later_s

    @invariant()
    def the_books_balance_and_equal_the_model(self) -> None:
        assert self.ledger.audit() == ()
        assert self.ledger.open_holds() == sum(state == "open" for _, state, _ in self.attempts.values())
        for user, team, session in (("u1", "t1", "s1"), ("u2", "t2", "s2"), ("u1", "t2", "")):
            payer = Payer(user=user, team=team, organisation="o")
            balances = self.ledger.balances(payer, Hints(session=session))
            told = [(b.scope, b.spent_nano, b.held_nano) for b in balances]
            assert told == [(b.scope, posted, pending) for b, posted, pending, _ in self.path(payer, session)]
            assert all(balance.price >= 1.0 for balance in balances)


@pytest.mark.parametrize("name", sorted(LEDGERS))
def test_every_story_of_holds_settlements_and_time_ends_as_in_the_model(name: str) -> None:
    machine = type(f"{name}Machine", (AgainstAModel,), {"make": staticmethod(LEDGERS[name])})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
