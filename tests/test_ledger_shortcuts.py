"""What almost every request finds out from one account of each budget is what adding everything up would tell it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.ledgers import ADA, NOON, a_hold
from tierwise.core.budget import ROLLING_S, Balance, Budget, Charge, Denial, Hold, Rate
from tierwise.core.money import MAX_NANO, Usage
from tierwise.core.pace import SLOTS, Shape
from tierwise.core.request import Hints, Payer
from tierwise.stores.ledger.accounts import Line
from tierwise.stores.ledger.books import Books
from tierwise.stores.ledger.lines import Way
from tierwise.stores.ledger.reading import balances_of, left_of, money_of, rates_of
from tierwise.stores.ledger.traffic import Traffic
from tierwise.stores.ledger.windows import DAY_S, NEVER_S


class Thorough(Books):
    """No account is all that counts here, and no money is calm."""

    def hold(self, hold: Hold) -> Denial | None:
        self.forget_shortcuts()
        return super().hold(hold)

    def passes(self, payer: Payer, hints: Hints) -> Way:
        self.forget_shortcuts()
        return super().passes(payer, hints)

    def forget_shortcuts(self) -> None:
        for line in (*self._lines, self._caps, *self._lines.credits.values()):
            line.plain_s, line.calm_s = -NEVER_S, None


LIMITS = st.one_of(
    st.fixed_dictionaries({"limit_nano": st.integers(0, 300) | st.just(MAX_NANO)}),
    st.fixed_dictionaries({"limit_nano": st.integers(100, 300), "reserve_nano": st.integers(1, 50)}),
    st.fixed_dictionaries({"limit_nano": st.integers(100, 300), "steps": st.integers(1, 6)}),
    st.fixed_dictionaries({"calls": st.integers(1, 6), "tokens": st.integers(20, 200)}),
    st.fixed_dictionaries({"parallel": st.integers(1, 4)}),
    st.fixed_dictionaries({"repeats": st.integers(2, 3)}),
    st.fixed_dictionaries({"steps": st.integers(1, 6), "deadline_s": st.just(80_000)}),
)
BUDGETS = st.builds(
    lambda limits, **others: Budget(**limits, **others),
    LIMITS,
    scope=st.sampled_from(("request", "session", "workflow", "user", "key", "team", "tag")),
    match=st.sampled_from(((), (), (("team", "t1"),))),
    window=st.sampled_from(("minute", "hour", "day", "month", "lifetime", "lifetime")),
    rolling=st.sampled_from((False, False, True)),
    hard=st.sampled_from((True, True, True, False)),
)
PAYERS = st.builds(
    Payer,
    key=st.sampled_from(("k1", "k1", "k2")),
    user=st.sampled_from(("u1", "u1", "")),
    team=st.sampled_from(("t1", "t1", "t2")),
    tags=st.sampled_from(((), (("project", "x"), ("area", "y")))),
)
HOLDS = st.fixed_dictionaries(
    {
        "payer": PAYERS,
        "session": st.sampled_from(("s1", "s1", "s2", "")),
        "workflow": st.sampled_from(("w", "")),
        "amount_nano": st.integers(0, 60),
        "tokens": st.integers(0, 30),
        "steps": st.integers(0, 1),
        "request": st.sampled_from(("", "r1", "r2")),
        "fingerprint": st.sampled_from(("", "f1", "f2")),
        "bounded": st.sampled_from((True,) * 9 + (False,)),
        "request_limit_nano": st.sampled_from((None, None, None, 100)),
    }
)
WHAT = st.sampled_from(("hold",) * 10 + ("settle",) * 4 + ("release", "grant", "wait", "wait", "reload"))
LATER_S = st.sampled_from((0, 0, 0, 3_600, 90_000))  # than what is asked about in between
TIMES = (NOON, NOON + 1, NOON + 61, NOON + 3_600, NOON + 90_000)  # a clock may be set back


def do(books: Books, what: str, hold: dict[str, Any], number: int, at_s: int, budgets: Sequence[Budget]) -> Any:
    some = hold["amount_nano"]
    match what:
        case "hold":
            return books.hold(Hold(id=f"h{number}", model="m", at_s=at_s, **hold))
        case "settle":
            usage = Usage(input_tokens=hold["tokens"])
            return books.settle(f"h{some % (number + 1)}", Charge(cost_nano=some, usage=usage), at_s)
        case "release":
            return books.settle(f"h{some % (number + 1)}", Charge(cost_nano=0, kind="released"), at_s)
        case "grant":
            scope = ("user", "key", "team")[some % 3]
            return books.grant(f"{number}", scope, getattr(hold["payer"], scope), 1 + 5 * some, at_s)
        case "reload":
            return books.reload((*budgets[some % 3 :], Budget(scope="user", limit_nano=10 * some)))


@given(
    budgets=st.lists(BUDGETS, min_size=1, max_size=6),
    story=st.lists(st.tuples(WHAT, HOLDS, LATER_S), min_size=20, max_size=50),
    asked=st.lists(st.tuples(PAYERS, st.sampled_from((None, "s1"))), min_size=1, max_size=3),
)
def test_one_account_of_each_budget_says_what_adding_everything_up_says(
    budgets: list[Budget], story: list[tuple[str, dict[str, Any], int]], asked: list[tuple[Payer, str | None]]
) -> None:
    quick, thorough = Books(tuple(budgets)), Thorough(tuple(budgets))
    at_s = NOON
    for number, (what, hold, later_s) in enumerate(story):
        if what == "wait":
            at_s = TIMES[hold["amount_nano"] % len(TIMES)]
        answers = [do(books, what, hold, number, at_s + later_s, budgets) for books in (quick, thorough)]
        assert answers[0] == answers[1]
        for payer, session in asked:
            told = []
            for books in (quick, thorough):
                way = books.passes(payer, Hints(session=session))
                told.append((money_of(way, at_s), left_of(way, at_s), rates_of(way, at_s), balances_of(way, at_s)))
            assert told[0] == told[1]
            money, left, rates, balances = told[0]
            assert rates == [_rate(line.balance(subject, at_s)) for line, subject in way.rates]
            dear = [each.price for each in balances if each.price > 1.0 and not each.credit]
            assert [price for _, price in money.causes] == dear
            assert [each.open for each in balances] == [_open(quick, line, subject) for line, subject in way.passed]
            rooms = [room for each in balances if (room := _room(each)) is not None and each.scope != "request"]
            assert left == min(rooms, default=None)
        assert quick.take() == thorough.take()
        accounts = [[list(line.accounts) for line in books._lines] for books in (quick, thorough)]
        assert accounts[0] == accounts[1], "who comes again is the last to be forgotten"
        assert quick.audit() == thorough.audit() == ()


@pytest.mark.parametrize("what", ["another window", "another plan", "another limit"])
def test_calm_money_is_calm_no_longer_when_its_plan_is_another(what: str) -> None:
    """Also within the second that it was asked about."""
    budget = Budget(scope="team", limit_nano=1_000, window="day")
    books = Books((budget,))
    assert books.hold(a_hold("a", 490)) is None
    assert money_of(books.passes(ADA, Hints()), NOON).value == 1.0
    match what:
        case "another window":  # by a clock that is ahead of the next one that asks
            assert books.vary("team[]/day", ADA.team, 490, NOON + DAY_S, "bill")
        case "another plan":
            late = Traffic()
            late.shape = Shape(tuple(float(hour % 24 >= 18) for hour in range(SLOTS)), (10,) * SLOTS)
            (line,) = books._lines
            assert line.traffic is not None
            line.traffic.recall(late.kept())
        case _:
            books.reload((msgspec.structs.replace(budget, limit_nano=900),))
    way = books.passes(ADA, Hints())
    assert money_of(way, NOON).value == balances_of(way, NOON)[0].price > 1.0


def _open(books: Books, line: Line, subject: str) -> int:
    accounts = [account for held in books._open.values() for account in held.accounts]
    return sum((account.key[0], account.subject) == (line.id, subject) for account in accounts)


def _rate(balance: Balance) -> Rate:
    resets_at_s = NEVER_S if balance.resets_at_s is None else balance.resets_at_s
    rolling_s = ROLLING_S[balance.window] if balance.rolling else 0
    return Rate(balance.calls, balance.calls_done, balance.tokens, balance.tokens_used, resets_at_s, rolling_s)


def _room(balance: Balance) -> int | None:
    if balance.limit_nano is None or not balance.hard:
        return None
    return balance.limit_nano - balance.spent_nano - balance.held_nano
