"""An id holds once, for ever: in memory, in the file, and where it is known without looking that it is new."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.ledgers import ADA, NOON, a_hold
from tierwise.core.budget import Budget, Charge
from tierwise.core.request import Hints
from tierwise.stores.ledger import commits, sql, sqlite
from tierwise.stores.ledger.sqlite import SqliteLedger

BUDGET = Budget(scope="user", limit_nano=10**9)


def ledger_in(folder: Path) -> SqliteLedger:
    return SqliteLedger(folder / "ledger.sqlite", (BUDGET,), lambda: float(NOON), reserve_bytes=1)


async def hold_and_settle(ledger: SqliteLedger, id: str, cost_nano: int) -> None:
    assert await ledger.hold(a_hold(id, 9)) is None
    ledger.settle(id, Charge(cost_nano=cost_nano))


async def test_an_id_is_held_once_however_long_ago_and_wherever_it_sorts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when memory has let go of it, and after a restart."""
    monkeypatch.setattr("tierwise.stores.ledger.books.CLOSED_KEPT", 5)
    ids = [f"{n * 7_919 % 100:03}.1" for n in range(60)] + ["grant x", "later", "zz"]
    ledger = ledger_in(tmp_path)
    for id in ids:
        await hold_and_settle(ledger, id, 1)
    for _ in range(2):
        for id in ids:
            await hold_and_settle(ledger, id, 9)
        assert ledger.left_nano(ADA, Hints()) == 10**9 - len(ids)
        await ledger.close()
        ledger = ledger_in(tmp_path)
    await ledger.close()


async def test_of_ids_in_order_none_that_is_new_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierwise.stores.ledger.books.CLOSED_KEPT", 5)
    ledger = ledger_in(tmp_path)
    read = ledger._read
    asked: list[str] = []

    def looked(statement: str, values: tuple[str | int, ...]) -> tuple[object, ...] | None:
        asked.append(statement)
        return read(statement, values)

    monkeypatch.setattr(ledger, "_read", looked)
    for n in range(40):
        await hold_and_settle(ledger, f"{n:04}.1", 1)
    assert sql.READ_HOLD not in asked
    await hold_and_settle(ledger, "0003.1", 9)
    assert sql.READ_HOLD in asked
    assert ledger.left_nano(ADA, Hints()) == 10**9 - 40
    await ledger.close()


async def test_a_conversation_that_is_new_is_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the door; and again after it was written and forgotten."""
    monkeypatch.setattr("tierwise.stores.ledger.accounts.ACCOUNTS_KEPT", 2)
    budget = Budget(scope="session", limit_nano=100)
    ledger = SqliteLedger(tmp_path / "ledger.sqlite", (budget,), lambda: float(NOON), reserve_bytes=1)
    read = ledger._read
    asked: list[object] = []

    def looked(statement: str, values: tuple[str | int, ...]) -> tuple[object, ...] | None:
        if statement == sql.READ_ACCOUNT:
            asked.append(values[1])
        return read(statement, values)

    monkeypatch.setattr(ledger, "_read", looked)
    for n in range(8):
        hints = Hints(session=f"s{n}")
        assert ledger.money(ADA, hints, NOON).left_nano == 100
        assert await ledger.hold(a_hold(f"{n}.1", 30, session=f"s{n}")) is None
        ledger.settle(f"{n}.1", Charge(cost_nano=30))
        assert ledger.left_nano(ADA, hints) == 70
    assert len(asked) == 8, asked
    await ledger.drain()
    assert [ledger.left_nano(ADA, Hints(session=f"s{n}")) for n in range(8)] == [70] * 8
    await ledger.close()


async def test_conversations_that_nothing_is_held_for_are_not_all_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever only asks, or is refused, brings no commit that would forget them, and makes their names at will."""
    monkeypatch.setattr(sqlite, "ABSENT_KEPT", 5)
    budget = Budget(scope="session", limit_nano=100)
    ledger = SqliteLedger(tmp_path / "ledger.sqlite", (budget,), lambda: float(NOON), reserve_bytes=1)
    for n in range(40):
        assert ledger.money(ADA, Hints(session=f"s{n}"), NOON).left_nano == 100
        assert len(ledger._absent) <= 5
    await ledger.close()


async def test_after_a_commit_that_many_waited_for_the_next_waits_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that comes alone waits for nobody."""
    monkeypatch.setattr(commits, "JOIN_S", (0.3, 0.3))
    ledger = ledger_in(tmp_path)

    async def apart(name: str) -> int:
        """In how many commits two holds are that come one after the other, while the loop turns."""
        before = ledger.commits
        one = asyncio.ensure_future(ledger.hold(a_hold(f"{name} one", 1)))
        for _ in range(20):
            await asyncio.sleep(0)
        await asyncio.gather(one, ledger.hold(a_hold(f"{name} two", 1)))
        return ledger.commits - before

    assert await apart("alone") == 2
    await asyncio.gather(*[ledger.hold(a_hold(f"{n}", 1)) for n in range(commits.JOIN_HOLDS)])
    assert await apart("among others") == 1
    await ledger.close()
