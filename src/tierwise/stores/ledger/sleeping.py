"""Open holds of an earlier process that nobody has asked for since: a store knows them one by one, the books by sums.

A million of them would take a start minutes, and memory for as long as they are open. They wake when somebody settles
them, or when it is time to give them up.
"""

from __future__ import annotations

from collections.abc import Iterator

from tierwise.stores.ledger.accounts import Account, Key
from tierwise.stores.ledger.rows import HoldRow


class Sleeping:
    """How many there are, and what they come to on each account: nano-dollars, and how many."""

    def __init__(self) -> None:
        self.count = 0
        self._on: dict[Key, tuple[Account, int, int]] = {}

    def lie_on(self, account: Account) -> None:
        """An account as its store has it: all that it holds are they."""
        if account.open:
            self._on[account.key] = (account, account.pending_nano, account.open)

    def wake(self, row: HoldRow, accounts: tuple[Account, ...]) -> None:
        self.count -= 1
        for account in accounts:
            known = self._on.pop(account.key, None)
            if known is None:  # the store keeps none of it
                account.pending_nano += row.amount_nano
                account.tokens_pending += row.tokens
                account.steps += row.steps
                account.calls += 1
                account.open += 1
            elif known[2] > 1:
                self._on[account.key] = (account, known[1] - row.amount_nano, known[2] - 1)

    def sums(self) -> Iterator[tuple[Account, int, int]]:
        yield from self._on.values()
