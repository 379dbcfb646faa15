"""What the ledger tests share: every ledger there is, and a payer, holds and balances to try it with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tierwise.core.budget import Budget, Hold
from tierwise.core.request import Hints, Payer
from tierwise.stores.memory import MemoryLedger
from tierwise.stores.windows import DAY_S

# name -> what makes one from budgets and a clock. A new ledger is one more line.
LEDGERS: dict[str, Callable[..., Any]] = {"memory": MemoryLedger}

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
