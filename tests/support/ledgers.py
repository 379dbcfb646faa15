"""What the ledger tests share: every ledger there is, and a payer, holds and balances to try it with."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tierwise.core.budget import Budget, Hold
from tierwise.core.request import Hints, Payer
from tierwise.stores.ledger.audit import audit
from tierwise.stores.ledger.sqlite import SqliteLedger
from tierwise.stores.ledger.windows import DAY_S
from tierwise.stores.memory import MemoryLedger


class SqliteLedgers:
    """Makes durable ledgers, each in a folder of its own. `close` audits every file: whatever a test did, what is on
    the disk must be as sound as what was in memory."""

    def __init__(self) -> None:
        # Where it is fast: what survives a fault is another test's question.
        memory = Path("/dev/shm")  # noqa: S108
        self.folder = Path(tempfile.mkdtemp(prefix="ledgers-", dir=memory if memory.is_dir() else None))
        self.opened: list[SqliteLedger] = []
        self._numbers = itertools.count()

    def __call__(self, budgets: tuple[Budget, ...] = (), clock: Callable[[], float] = time.time) -> SqliteLedger:
        ledger = SqliteLedger(self.folder / str(next(self._numbers)) / "ledger.sqlite", budgets, clock, reserve_bytes=1)
        self.opened.append(ledger)
        return ledger

    def close(self) -> None:
        try:
            for ledger in self.opened:
                ledger.close_now()
                assert ledger.last_error == ""
                assert list(audit(ledger.path)) == []
        finally:
            self.opened.clear()
            shutil.rmtree(self.folder)


class MemoryLedgers:
    def __call__(self, budgets: tuple[Budget, ...] = (), clock: Callable[[], float] = time.time) -> MemoryLedger:
        return MemoryLedger(budgets, clock)

    def close(self) -> None:
        """Nothing to let go of."""


# name -> what makes ledgers from budgets and a clock, and closes them. A new ledger is one more line.
LEDGERS: dict[str, Callable[[], Any]] = {"memory": MemoryLedgers, "sqlite": SqliteLedgers}

ADA = Payer(key="k1", user="ada", team="search", organisation="acme", tags=(("project", "x"),))
NOON = 1_767_182_400  # 2025-12-31 12:00:00 UTC, a Wednesday
NEW_YEAR = NOON + DAY_S // 2


def a_hold(id: str, amount: int, **others: Any) -> Hold:
    fields: dict[str, Any] = {"payer": ADA, "session": "s", "workflow": "w", "model": "m", "at_s": NOON, "request": id}
    return Hold(id=id, amount_nano=amount, **{**fields, **others})


def of(ledger: Any, payer: Payer = ADA, hints: Hints | None = None) -> list[tuple[str, int, int]]:
    """(scope, spent, held) of every budget above the payer."""
    hints = hints or Hints(session="s", workflow="w")
    return [(b.scope, b.spent_nano, b.held_nano) for b in ledger.balances(payer, hints)]


def path_of(limit: int) -> tuple[Budget, ...]:
    """Five levels, each with room for `limit`."""
    return tuple(Budget(scope=s, limit_nano=limit) for s in ("session", "workflow", "user", "team", "organisation"))


class Clock:
    """Stands still until it is set."""

    def __init__(self, at_s: int = NOON) -> None:
        self.at_s = at_s

    def __call__(self) -> float:
        return float(self.at_s)
