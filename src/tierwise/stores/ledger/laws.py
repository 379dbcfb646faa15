"""What is wrong with books in memory, one sentence for each law of money that is broken. `audit` asks a file."""

from __future__ import annotations

from collections.abc import Iterable

from tierwise.stores.ledger.accounts import Account, Line
from tierwise.stores.ledger.rows import HoldRow

Held = tuple[HoldRow, tuple[Account, ...]]  # an open hold and the accounts that it stands on


def faults(
    lines: Iterable[Line],
    held: Iterable[Held],
    asleep: Iterable[tuple[Account, int, int]],
    entries: Iterable[tuple[tuple[Account, ...], int]],
) -> list[str]:
    """`asleep`: (account, nano-dollars, how many) of open holds that only a store knows one by one. `entries`: what was
    posted on each of some accounts, as far as it is kept one by one."""
    pending: dict[int, int] = {}
    posted: dict[int, int] = {}
    count: dict[int, int] = {}
    seen: dict[int, Account] = {}
    for line in lines:
        for account in (*line.accounts.values(), *(each for parts in line.older.values() for each in parts)):
            seen[id(account)] = account
    sums = [(account, row.amount_nano, 1) for row, accounts in held for account in accounts]
    for account, amount, open in (*sums, *asleep):
        seen[id(account)] = account
        pending[id(account)] = pending.get(id(account), 0) + amount
        count[id(account)] = count.get(id(account), 0) + open
    for accounts, amount in entries:
        for account in accounts:
            posted[id(account)] = posted.get(id(account), 0) + amount
    wrong = []
    for each, account in seen.items():
        wrong += faults_of(account, pending.get(each, 0), count.get(each, 0), posted.get(each, 0))
    return wrong


def faults_of(account: Account, pending_nano: int, open_holds: int, entered_nano: int) -> list[str]:
    """What is wrong with one account, given what its open holds and its entries in memory sum up to."""
    name = f"{account.line.label} {account.subject!r}"
    entered = account.carried_nano + entered_nano
    wrong = []
    if account.posted_nano != entered:
        wrong.append(f"{name}: posted {account.posted_nano}, but its entries sum to {entered}")
    if account.pending_nano != pending_nano or account.open != open_holds:
        wrong.append(f"{name}: pending {account.pending_nano}, but its open holds sum to {pending_nano}")
    if account.bound_nano is not None and account.line.budget.hard and not account.line.rolling:
        over = account.posted_nano + account.pending_nano - account.bound_nano - account.overage_nano
        if over > 0:
            wrong.append(f"{name}: {over} nano-dollars above its limit and overage")
    counts = {what: getattr(account, what) for what in ("pending_nano", "open", "steps", "calls", "tokens")}
    if min(counts.values()) < 0:
        wrong.append(f"{name}: " + ", ".join(f"{value} {what}" for what, value in counts.items()))
    return wrong
