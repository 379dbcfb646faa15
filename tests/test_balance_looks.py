"""How often the books are looked at for those who follow a balance, and what they are told of what is not shown."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.gateway import ADA, KEYS, Gateway, world
from tests.support.upstream import FakeUpstream
from tests.test_balance import AS_ADA, AS_BOB, BUDGETS, NOON, PAYER, ended, following, gateway_of
from tests.test_balance import quick as quick
from tierwise.core.budget import ROLLING_S, Budget, Charge, Hold
from tierwise.core.request import Hints, Payer
from tierwise.routing.router import Router
from tierwise.server import balance
from tierwise.stores.ledger.books import Books
from tierwise.stores.ledger.reading import balances_of, money_of
from tierwise.stores.memory import MemoryLedger


async def test_all_who_follow_the_same_share_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where neither the books nor the second have changed, nobody looks."""
    looked: list[Any] = []
    standing = Router.standing

    def noted(self: Router, payer: Payer, hints: Hints, at_s: int) -> Any:
        looked.append(payer.user)
        return standing(self, payer, hints, at_s)

    monkeypatch.setattr(Router, "standing", noted)
    monkeypatch.setattr(balance, "STILL_HERE_S", 0.0)
    async with FakeUpstream() as one:
        gateway = Gateway(tmp_path, world(one, keys=KEYS, budgets=BUDGETS), now=lambda: float(NOON))
        async with gateway, AsyncExitStack() as stack:
            followers = [await stack.enter_async_context(following(gateway)) for _ in range(8)]
            for follower in followers:
                assert [(await follower.next())[0] for _ in range(4)] == ["balance", "", "", ""]
            assert looked == ["ada"]
            before = gateway.ledger.revision
            assert (await gateway.ask(headers=AS_ADA)).status == 200
            for follower in followers:
                while (await follower.next())[0] != "balance":
                    pass
            assert 1 < len(looked) <= 1 + gateway.ledger.revision - before
            # Another session is another question, and another payer is another one.
            look = gateway.app.followers.look
            ada = gateway.app.keys.identify({"x-api-key": ADA}).payer
            asked = ((ada, Hints()), (ada, Hints(session="s")), (Payer(user="bob"), Hints()))
            seen = [look(gateway.app, *each).event for each in asked]
            assert len(set(seen)) == 3 and b'"subject":"s"' in seen[1]
        await ended(gateway)
        assert not gateway.app.followers._looks


@given(st.floats(0, 1e6), st.floats(0, 1))
def test_who_follows_the_same_looks_at_the_same_moment(began_s: float, later: float) -> None:
    wait = balance._until_next_look
    first_s = began_s + wait(began_s, PAYER, Hints())
    assert began_s < first_s <= began_s + balance.LOOK_S + 1e-6
    between_s = began_s + later * (first_s - began_s) * 0.999
    assert between_s + wait(between_s, PAYER, Hints()) == pytest.approx(first_s, abs=1e-6)
    assert {wait(began_s, Payer(user=str(n)), Hints()) for n in range(9)} != {wait(began_s, PAYER, Hints())}


OPS = st.tuples(
    st.sampled_from(
        ("hold", "settle", "release", "undo", "correct", "checkpoint", "grant", "reload", "expire", "vary")
    ),
    st.integers(0, 5),
    st.integers(0, 60),
)


@settings(max_examples=150)
@given(st.lists(OPS, min_size=1, max_size=25))
def test_what_anybody_has_changes_only_with_the_revision(ops: list[tuple[str, int, int]]) -> None:
    """Else a follower would not be told. At one moment, for time alone changes windows and λ."""
    budgets = [
        Budget(scope="user", limit_nano=100, window="day"),
        Budget(scope="session", steps=3, repeats=2),
        Budget(scope="team", calls=9, window="minute", rolling=True),
        Budget(scope="user", limit_nano=70, hard=False),
    ]
    books, hints = Books(tuple(budgets)), Hints(session="s")

    def told() -> Any:
        passes = books.passes(PAYER, hints)
        return money_of(passes, NOON), balances_of(passes, NOON)

    for what, number, amount in ops:
        before, revision, id = told(), books.revision, f"h{number}"
        match what:
            case "hold":
                books.hold(
                    Hold(
                        id=id, payer=PAYER, session="s", workflow="", model="m", amount_nano=amount, at_s=NOON, tokens=3
                    )
                )
            case "settle":
                books.settle(id, Charge(cost_nano=amount), NOON)
            case "release":
                books.settle(id, Charge(cost_nano=0, kind="released"), NOON)
            case "undo":
                books.undo(id)
            case "correct":
                books.correct(id, amount, NOON)
            case "checkpoint":
                books.checkpoint(id, amount)
            case "grant":
                books.grant(f"{number} {amount}", "user", "ada", amount + 1, NOON)
            case "reload":
                books.reload((*budgets[number % 4 :], Budget(scope="user", limit_nano=amount, window="month")))
            case "expire":
                books.expire(NOON + 1)
            case _:
                books.vary("user[]/day", "ada", amount, NOON, "bill")
        assert told() == before or books.revision != revision, what


@pytest.mark.parametrize("window", ROLLING_S)
def test_a_rate_is_whole_again_after_its_window_and_no_more(window: Any) -> None:
    ledger = MemoryLedger((Budget(scope="user", calls=5, window=window, rolling=True),), lambda: NOON + 0.25)
    hold = Hold(id="h", payer=PAYER, session="", workflow="", model="m", amount_nano=0, at_s=NOON)
    assert ledger.books.hold(hold) is None
    (found,) = ledger.rates(PAYER, Hints())
    assert (found.calls, found.calls_done, found.rolling_s) == (5, 1, ROLLING_S[window])


async def test_sessions_that_were_not_asked_for_are_named(tmp_path: Path) -> None:
    """Only those above this very caller, and also when the limit comes while somebody follows."""
    agents = [
        {"scope": "session", "steps": 9, "match": {"user": "ada"}},
        {"scope": "user", "calls": 9, "match": {"workflow": "nightly"}},
    ]
    async with FakeUpstream() as one, gateway_of(tmp_path, one, budgets=agents) as gateway:
        for query, headers, wanted in (
            ("", AS_ADA, ["session", "workflow"]),
            ("?session=s", AS_ADA, ["workflow"]),
            ("?session=s&workflow=w", AS_ADA, []),
            ("", AS_BOB, ["workflow"]),
        ):
            assert (await gateway.get(f"/v1/balance{query}", headers=headers)).json["not_shown"] == wanted
        async with following(gateway) as follower:
            await follower.until(lambda told: told["not_shown"] == ["session", "workflow"])
            await gateway.apply({**gateway.config, "budgets": agents[1:]})
            await follower.until(lambda told: told["not_shown"] == ["workflow"])
