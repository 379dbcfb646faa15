"""What is made at runtime on its way into a running application, over disks that take nothing and many top-ups."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import pytest
from support.worlds import world

from tests.support.ledgers import a_hold
from tests.support.powercut import Disk
from tierwise.config.runtime import Runtime
from tierwise.core.errors import Unavailable
from tierwise.core.keys import Book, Credit, Grant, Limits, Variance
from tierwise.core.request import Hints, Payer
from tierwise.stores.ledger.sqlite import SqliteLedger
from tierwise.stores.memory import MemoryLedger
from tierwise.stores.registry import SqliteRegistry


def running(registry: SqliteRegistry, ledger: Any) -> Runtime:
    setup: Any = SimpleNamespace(
        budgets=(), keys=(), state_dir=Path("none"), snapshot=world({}), journal=SimpleNamespace(grams=False)
    )
    app: Any = SimpleNamespace(router=SimpleNamespace(ledger=ledger), followers=SimpleNamespace())
    runtime = Runtime(registry, setup)
    runtime.attach(app)
    return runtime


async def test_many_credits_are_few_commits(tmp_path: Path) -> None:
    """Every start tries them all, and whoever is revoked meanwhile must not wait for that."""
    registry = SqliteRegistry(tmp_path / "registry.sqlite")
    for number in range(30):
        registry.add_credit(Credit(id=f"c{number}", scope="user", subject="ada", amount_nano=10**9))
    ledger = SqliteLedger(tmp_path / "ledger.sqlite", reserve_bytes=1)
    for _ in range(2):
        before = ledger.commits
        await running(registry, ledger).refresh()
        assert ledger.commits - before <= 2
        (balance,) = ledger.balances(Payer(user="ada"), Hints())
        assert balance.limit_nano == 30 * 10**9
    await ledger.close()
    registry.close()


async def test_what_a_caller_did_who_then_left_is_served_by_the_next_look(tmp_path: Path) -> None:
    registry = SqliteRegistry(tmp_path / "registry.sqlite")
    runtime = running(registry, MemoryLedger())
    begun, go_on = threading.Event(), threading.Event()

    def slowly(book: Book) -> None:
        begun.set()
        go_on.wait(20)
        registry.create(Grant(payer=Payer(key="new"), limits=Limits(limit_nano=5)), 1)

    leaving = asyncio.create_task(runtime.manage(slowly))
    await asyncio.to_thread(begun.wait, 20)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert not runtime.grants()
    go_on.set()
    async with asyncio.timeout(20):
        while not runtime.grants():
            await runtime.refresh()
    assert list(runtime.grants()) == ["new"] and [budget.limit_nano for budget in runtime.budgets()] == [5]
    registry.close()


class Full(MemoryLedger):
    """Takes no credit."""

    async def grant(self, id: str, scope: str, subject: str, amount_nano: int) -> bool:
        raise Unavailable("the disk is full", code="ledger_unavailable", retry_after_s=1)


async def test_a_secret_is_told_though_a_credit_has_to_wait(tmp_path: Path) -> None:
    """It is shown once: an error in its place would leave a key that nobody can use."""
    registry = SqliteRegistry(tmp_path / "registry.sqlite")
    registry.add_credit(Credit(id="c", scope="user", subject="ada", amount_nano=10**9))
    runtime = running(registry, Full())
    assert (await runtime.manage(lambda book: registry.create(Grant(payer=Payer(key="new")), 1))).startswith("tw-")
    assert list(runtime.grants()) == ["new"]
    assert runtime._waiting and not runtime._posted
    registry.close()


async def test_a_start_on_a_full_disk_says_so_and_what_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The gateway starts all the same: it refuses calls until there is room, and then everything counts, once."""
    registry = SqliteRegistry(tmp_path / "registry.sqlite")
    registry.add_credit(Credit(id="c", scope="user", subject="ada", amount_nano=10**9))
    bill = {"line": "variance/one", "subject": "2026-11-03 *", "note": "", "at_s": 1}
    registry.add_variances([Variance(id=f"v{number}", amount_nano=number, **bill) for number in (1, 2)])
    disk = Disk("full-at-start")
    ledger = SqliteLedger(tmp_path / "ledger.sqlite", reserve_bytes=1, vfs=disk.name)
    disk.fault = lambda operation, file: apsw.FullError("database or disk is full") if operation == "write" else None
    runtime = running(registry, ledger)
    for _ in range(2):
        await runtime.refresh()
    (said,) = [line.getMessage() for line in caplog.records if line.name == "tierwise"]
    assert said.startswith("1 top-up and 2 variances made at runtime") and "disk is full" in said, said
    assert "until then calls are refused" in said and "this call" not in said
    with pytest.raises(Unavailable):
        await ledger.hold(a_hold("h", 1))
    disk.fault = lambda operation, file: None
    while runtime._waiting:
        await ledger.drain()
        await runtime.refresh()
    (balance,) = ledger.balances(Payer(user="ada"), Hints())
    assert balance.limit_nano == 10**9
    await ledger.close()
    entries = apsw.Connection(str(tmp_path / "ledger.sqlite"))
    assert [*entries.execute("SELECT kind, amount_nano FROM entry ORDER BY 1, 2")] == [
        ("grant", 10**9),
        ("variance", 1),
        ("variance", 2),
    ]
    entries.close()
    registry.close()


def test_a_registry_of_before_there_were_variances_takes_them(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    registry = SqliteRegistry(path)
    secret = registry.create(Grant(payer=Payer(key="old")), 1)
    registry.close()
    with apsw.Connection(str(path)) as old:
        old.execute("DROP TABLE variances; PRAGMA user_version = 1")
    old.close()
    registry = SqliteRegistry(path)
    variance = Variance(id="v", line="variance/one", subject="*", amount_nano=1, note="", at_s=1)
    for _ in range(2):
        registry.add_variances([variance])
    assert secret and registry.read().variances == (variance,)
    assert [key.grant.name for key in registry.read().keys] == ["old"]
    registry.close()
