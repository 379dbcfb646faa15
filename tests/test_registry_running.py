"""What is made at runtime on its way into a running application, over disks that take nothing and many top-ups."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tierwise.config.runtime import Runtime
from tierwise.core.errors import Unavailable
from tierwise.core.keys import Credit, Grant
from tierwise.core.request import Hints, Payer
from tierwise.stores.ledger.sqlite import SqliteLedger
from tierwise.stores.memory import MemoryLedger
from tierwise.stores.registry import SqliteRegistry


def running(registry: SqliteRegistry, ledger: Any) -> Runtime:
    setup: Any = SimpleNamespace(budgets=(), keys=())
    app: Any = SimpleNamespace(router=SimpleNamespace(ledger=ledger))
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
    with pytest.raises(Unavailable):  # and whoever looks for it is told
        await runtime.refresh()
    registry.close()
