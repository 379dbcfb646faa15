"""The ledger in memory: what it may forget, and that its audit is able to find something."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.ledgers import ADA, NOON, a_hold, of, path_of
from tierwise.core.budget import Budget, Charge
from tierwise.core.request import Hints, Payer
from tierwise.stores.ledger import accounts as accounts_module
from tierwise.stores.ledger import books as books_module
from tierwise.stores.ledger.accounts import Line
from tierwise.stores.ledger.books import Books
from tierwise.stores.ledger.lines import Lines
from tierwise.stores.ledger.reading import balances_of, money_of
from tierwise.stores.memory import MemoryLedger


async def test_sessions_are_forgotten_oldest_first_but_never_with_an_open_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accounts_module, "ACCOUNTS_KEPT", 8)
    ledger = MemoryLedger((Budget(scope="session", limit_nano=10), Budget(scope="user", limit_nano=10**9)))
    for n in range(4):
        await ledger.hold(a_hold(f"open {n}", 10, session=f"open {n}"))
    for n in range(1_000):
        await ledger.hold(a_hold(f"{n}", 10, session=f"{n}"))
        ledger.settle(f"{n}", Charge(cost_nano=10))
    for n in range(4):
        assert await ledger.hold(a_hold(f"more {n}", 1, session=f"open {n}")) is not None
    assert await ledger.hold(a_hold("late", 1, session="999")) is not None, "the newest are kept"
    assert len(next(iter(ledger.books._lines)).accounts) <= 8
    assert of(ledger, hints=Hints())[0] == ("user", 10_000, 40), "who pays is never forgotten"
    assert ledger.audit() == ()


async def test_what_a_forgotten_session_did_before_is_forgotten_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a window that moves, the parts of those who never come back, but for one that still holds something."""
    monkeypatch.setattr(accounts_module, "ACCOUNTS_KEPT", 8)
    ledger = MemoryLedger((Budget(scope="session", limit_nano=10, window="hour", rolling=True),))
    await ledger.hold(a_hold("open", 10, session="open"))
    await ledger.hold(a_hold("again", 0, session="open", at_s=NOON + 60))
    ledger.settle("again", Charge(cost_nano=0))
    for n in range(100):
        for again in range(2):
            await ledger.hold(a_hold(f"{n} {again}", 1, session=f"{n}", at_s=NOON + 60 * (n + again)))
            ledger.settle(f"{n} {again}", Charge(cost_nano=1))
    line = next(iter(ledger.books._lines))
    assert len(line.accounts) <= 8 and len(line.older) <= 8
    assert await ledger.hold(a_hold("more", 1, session="open", at_s=NOON + 7_000)) is not None
    assert ledger.audit() == ()


async def test_the_price_of_money_asks_no_store_for_what_is_known() -> None:
    asked: list[str] = []
    budgets = (Budget(scope="request", limit_nano=10), Budget(scope="session", limit_nano=10))
    books = Books(budgets, lambda key: asked.append(key[0]))
    books.hold(a_hold("a", 1))
    asked.clear()
    passes = books.passes(ADA, Hints(session="s"))
    assert money_of(passes, NOON).left_nano == 9
    assert [each.left_nano for each in balances_of(passes, NOON)] == [10, 9] and asked == []


async def test_a_budget_that_stays_the_same_writes_no_account() -> None:
    """Whenever a key is made the budgets come anew, and there may be as many accounts as callers made sessions."""
    same, other = Budget(scope="session", limit_nano=10), Budget(scope="user", limit_nano=10)
    books = Books((same, other))
    books.hold(a_hold("a", 1))
    books.take()
    books.reload((same, Budget(scope="user", limit_nano=20)))
    assert [key[0] for key in books.take().accounts] == ["user[]/lifetime"]


async def test_more_open_sessions_than_are_kept_are_all_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts_module, "ACCOUNTS_KEPT", 8)
    ledger = MemoryLedger((Budget(scope="session", limit_nano=10),))
    for n in range(100):
        assert await ledger.hold(a_hold(f"{n}", 10, session=f"{n}")) is None
    for n in range(100):
        assert await ledger.hold(a_hold(f"again {n}", 1, session=f"{n}")) is not None
        ledger.settle(f"{n}", Charge(cost_nano=1))
    await ledger.hold(a_hold("one", 1, session="one"))
    for n in range(20):
        await ledger.hold(a_hold(f"new {n}", 1, session=f"new {n}"))
        ledger.settle(f"new {n}", Charge(cost_nano=1))
    assert len(next(iter(ledger.books._lines)).accounts) <= 9
    assert ledger.audit() == ()


async def test_old_entries_are_carried_forward_and_the_books_still_balance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books_module, "ENTRIES_KEPT", 10)
    monkeypatch.setattr(books_module, "CLOSED_KEPT", 20)
    ledger = MemoryLedger(path_of(10**9))
    for n in range(100):
        await ledger.hold(a_hold(f"{n}", 5))
        ledger.settle(f"{n}", Charge(cost_nano=n))
    assert (len(ledger.books._entries), len(ledger.books._closed)) == (10, 20)
    assert {spent for _, spent, _ in of(ledger)} == {sum(range(100))}
    assert ledger.audit() == ()


async def test_accounts_of_past_windows_are_dropped() -> None:
    ledger = MemoryLedger((Budget(scope="user", limit_nano=10, window="minute"),))
    for n in range(100):
        await ledger.hold(a_hold(f"{n}", 1, payer=Payer(user=f"u{n}"), at_s=NOON + n))
        ledger.settle(f"{n}", Charge(cost_nano=1))
    assert len(next(iter(ledger.books._lines)).accounts) == 40


@pytest.mark.parametrize("tampered", ["posted_nano", "pending_nano", "open", "carried_nano"])
async def test_the_audit_finds_a_changed_account(tampered: str) -> None:
    ledger = MemoryLedger(path_of(100))
    await ledger.hold(a_hold("a", 5))
    await ledger.hold(a_hold("b", 5))
    ledger.settle("b", Charge(cost_nano=5))
    assert ledger.audit() == ()
    account = list(ledger.books._lines)[2].accounts["ada"]
    setattr(account, tampered, getattr(account, tampered) + 1)
    assert len(ledger.audit()) == 1
    assert "user 'ada'" in ledger.audit()[0]


NAMES = st.sampled_from(["", "a", "b"])
FIELDS = st.sampled_from(["key", "user", "team", "organisation", "session", "tier"])


@given(
    st.lists(
        st.tuples(st.sampled_from(["key", "user", "team", "organisation", "session", "tier"]), NAMES), max_size=12
    ),
    st.builds(Payer, key=NAMES, user=NAMES, team=NAMES, organisation=NAMES, within=st.lists(NAMES).map(tuple)),
)
def test_no_budget_that_a_payer_falls_under_is_overlooked(matches: list[tuple[str, str]], payer: Payer) -> None:
    lines = [Line(Budget(scope="team", match=(match,) if match[1] else ())) for match in matches]
    found = [line for line in Lines(lines).of(payer) if line.subjects(payer, "a", "", "")]
    assert found == [line for line in lines if line.subjects(payer, "a", "", "")]
