"""The reference stores: a ledger and a journal in this process's memory. What they do, every other store must do.

Nothing here survives the process. Money that must is kept by a durable ledger, which passes the same contract tests.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable

from tierwise.core.budget import Balance, Budget, Charge, Denial, DenialCode, Hold, Lambda
from tierwise.core.errors import Closed
from tierwise.core.money import MAX_NANO
from tierwise.core.ports import Feedback, Record
from tierwise.core.request import Hints, Payer
from tierwise.stores.accounts import Account, Line
from tierwise.stores.rows import RECENT_MAX, Total, newest, totals_of
from tierwise.stores.windows import NEVER_S

# Closed holds whose ids and entries are remembered one by one; older entries are carried forward as one sum each.
ENTRIES_KEPT = 20_000
JOURNAL_SNAPSHOTS_KEPT = 16

Entry = tuple[str, tuple[Account, ...], int]  # hold id, accounts, nano-dollars taken from each


class _Held:
    """An open hold: what it set aside, and where."""

    __slots__ = ("accounts", "amount_nano", "steps")

    def __init__(self, amount_nano: int, steps: int, accounts: tuple[Account, ...]) -> None:
        self.amount_nano = amount_nano
        self.steps = steps
        self.accounts = accounts


class MemoryLedger:
    """Ledger of core/ports. For one event loop: each operation runs from its first line to its last without waiting,
    so it is atomic, and a cancelled request cannot leave half of one behind."""

    def __init__(self, budgets: tuple[Budget, ...] = (), clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lines = [Line(budget) for budget in budgets]
        self._caps = Line(Budget(scope="request"))  # limits that callers put on their own requests
        self._open: dict[str, _Held] = {}
        self._entries: deque[Entry] = deque()
        self._closed: set[str] = set()  # ids of the entries that are kept
        self.ignored = 0  # settlements of a hold that was closed before, or never made
        self.overages = 0  # attempts that cost more than was held for them
        self.overage_nano = 0

    # -------------------------------------------------------------------------------------------- the port

    def money(self, payer: Payer, hints: Hints, at_s: int) -> Lambda:
        """λ is that of the dearest budget; `causes` are the budgets whose own λ is above 1. Reads only."""
        value, causes, left, scope = 1.0, [], None, ""
        for line, subject in self._passes(payer, hints):
            if line.budget.limit_nano is None:
                continue
            balance = line.balance(subject, at_s)
            if balance.price > 1.0:
                causes.append((line.label, balance.price))
                value = max(value, balance.price)
            if balance.left_nano is not None and (left is None or balance.left_nano < left):
                left, scope = balance.left_nano, balance.scope
        return Lambda(value, tuple(causes), left, scope)

    async def hold(self, hold: Hold) -> Denial | None:
        """Raises ValueError for an amount or a number of steps that is no such thing. Never waits.

        An id that was held before holds nothing more, open or closed, whatever its amount: the first one stands.
        Holding nothing (a free model) is always affordable, even in a budget that a provider has overdrawn.
        """
        amount, steps = hold.amount_nano, hold.steps
        if not 0 <= amount <= MAX_NANO or steps < 0:
            raise ValueError(f"hold {hold.id!r}: {amount} nano-dollars and {steps} steps cannot be held")
        if hold.id in self._open or hold.id in self._closed:
            return None
        accounts = self._accounts(hold)
        for account in accounts:
            limit, most = account.limit_nano, account.line.budget.steps
            if amount and limit is not None and account.posted_nano + account.pending_nano + amount > limit:
                return _denial(accounts, hold)
            if most is not None and steps and account.steps + steps > most:
                return _denial(accounts, hold)
        for account in accounts:
            account.pending_nano += amount
            account.steps += steps
            account.open += 1
        self._open[hold.id] = _Held(amount, steps, accounts)
        return None

    def settle(self, hold_id: str, charge: Charge) -> None:
        """A store that has to wait leaves a message for its own task here. Memory need not: the entry is posted before
        this returns, nothing can interrupt it, and so there is no task to lose it either."""
        held = self._open.pop(hold_id, None)
        if held is None:
            self.ignored += 1
            return
        released = charge.kind == "released"
        # No provider pays us: a negative cost is a fault in reading it, and an unknown cost is charged in full.
        cost = 0 if released else charge.cost_nano if charge.cost_nano >= 0 else held.amount_nano
        excess = cost - held.amount_nano
        for account in held.accounts:
            account.posted_nano += cost
            account.pending_nano -= held.amount_nano
            account.open -= 1
            if excess > 0:
                account.overage_nano += excess
            if released:  # the call was never made, so it was no step
                account.steps -= held.steps
        if excess > 0:
            self.overages += 1
            self.overage_nano += excess
        self._post((hold_id, held.accounts, cost))

    async def drain(self) -> None:
        """Returns at once: in memory a posted settlement is a done one."""

    def open_holds(self) -> int:
        return len(self._open)

    # -------------------------------------------------------------------------------------------- beside the port

    def balances(self, payer: Payer, hints: Hints) -> tuple[Balance, ...]:
        """Every budget above this payer as it stands now, in the order of the configuration."""
        at_s = int(self._clock())
        return tuple(line.balance(subject, at_s) for line, subject in self._passes(payer, hints))

    def reload(self, budgets: tuple[Budget, ...]) -> None:
        """Other budgets from now on. One with the scope, match and window of an old one takes over its accounts; the
        accounts of the others are let go when their open holds have settled. Nothing that is held is given back."""
        old = {(line.budget.scope, line.budget.match, line.budget.window): line for line in self._lines}
        lines = []
        for budget in budgets:
            line = old.pop((budget.scope, budget.match, budget.window), None)
            if line is None:
                line = Line(budget)
            else:
                line.change(budget)
            lines.append(line)
        self._lines = lines

    def audit(self) -> tuple[str, ...]:
        """What is wrong with the books, one sentence each; () when they balance."""
        pending: dict[Account, int] = {}
        posted: dict[Account, int] = {}
        count: dict[Account, int] = {}
        for line in (*self._lines, self._caps):
            for account in line.accounts.values():
                pending[account] = 0
        for held in self._open.values():
            for account in held.accounts:
                pending[account] = pending.get(account, 0) + held.amount_nano
                count[account] = count.get(account, 0) + 1
        for _, accounts, cost in self._entries:
            for account in accounts:
                posted[account] = posted.get(account, 0) + cost
        wrong = [f"hold {hold_id} is open and closed" for hold_id in self._open.keys() & self._closed]
        for account, held_nano in pending.items():
            name = f"{account.line.label} {account.subject!r}"
            entered = account.carried_nano + posted.get(account, 0)
            if account.posted_nano != entered:
                wrong.append(f"{name}: posted {account.posted_nano}, but its entries sum to {entered}")
            if account.pending_nano != held_nano or account.open != count.get(account, 0):
                wrong.append(f"{name}: pending {account.pending_nano}, but its open holds sum to {held_nano}")
            if account.bound_nano is not None:
                over = account.posted_nano + account.pending_nano - account.bound_nano - account.overage_nano
                if over > 0:
                    wrong.append(f"{name}: {over} nano-dollars above its limit and overage")
            if account.steps < 0:
                wrong.append(f"{name}: {account.steps} steps")
        return tuple(wrong)

    # -------------------------------------------------------------------------------------------- helpers

    def _passes(self, payer: Payer, hints: Hints) -> list[tuple[Line, str]]:
        session, workflow = hints.session or "", hints.workflow or ""
        return [(line, subject) for line in self._lines for subject in line.subjects(payer, session, workflow, "")]

    def _accounts(self, hold: Hold) -> tuple[Account, ...]:
        request = hold.request or hold.id
        found = [
            line.account(subject, hold.at_s)
            for line in self._lines
            for subject in line.subjects(hold.payer, hold.session, hold.workflow, request)
        ]
        if hold.request_limit_nano is not None:
            cap = self._caps.account(request, hold.at_s)
            cap.limit(hold.request_limit_nano)
            found.append(cap)
        return tuple(found)

    def _post(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._closed.add(entry[0])
        if len(self._entries) > ENTRIES_KEPT:
            hold_id, accounts, cost = self._entries.popleft()
            self._closed.discard(hold_id)
            for account in accounts:
                account.carried_nano += cost


def _denial(accounts: tuple[Account, ...], hold: Hold) -> Denial:
    """Of all the budgets that say no, the one that waiting helps least, and among equals the one with the least left.

    `affordable_nano` is what every budget on the path would bear together; 0 at a step limit, where no amount is small
    enough.
    """
    found: list[tuple[int, int, DenialCode, Account]] = []
    affordable = MAX_NANO
    for account in accounts:
        most, left = account.line.budget.steps, account.left_nano()
        if most is not None and hold.steps and account.steps + hold.steps > most:
            found.append((0, 0, "step_limit", account))
        if left is None:
            continue
        affordable = min(affordable, max(left, 0))
        if hold.amount_nano > max(left, 0):
            fits_later = hold.amount_nano <= left + account.pending_nano  # once the open holds are given back
            found.append((2, left, "held_by_others", account) if fits_later else (1, left, "budget_exceeded", account))
    _, _, code, account = min(found, key=lambda one: one[:2])
    end_s, limited = account.line.end_s, account.limit_nano is not None
    return Denial(
        scope=account.line.budget.scope,
        code=code,
        limit_nano=account.limit_nano,
        spent_nano=account.posted_nano if limited else None,
        held_nano=account.pending_nano if limited else None,
        resets_at_s=None if end_s == NEVER_S else end_s,
        affordable_nano=0 if code == "step_limit" else affordable,
    )


class MemoryJournal:
    """Journal of core/ports: the last `limit` records and notes of feedback, and the last few snapshots."""

    def __init__(self, limit: int = 1000) -> None:
        self._limit = limit
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._feedback: deque[Feedback] = deque(maxlen=limit)
        self._snapshots: OrderedDict[str, bytes] = OrderedDict()
        self._is_closed = False
        self.dropped = 0  # what came after the end; to forget the oldest is what a ring is for
        self.last_error = ""

    def write(self, record: Record) -> None:
        if self._refuses() or record.episode.id in self._records:  # the first record of an episode stands
            return
        self._records[record.episode.id] = record
        if len(self._records) > self._limit:
            self._records.popitem(last=False)

    def feedback(self, feedback: Feedback) -> None:
        if not self._refuses():
            self._feedback.append(feedback)

    def snapshot(self, hash: str, data: bytes) -> None:
        if self._refuses():
            return
        self._snapshots.setdefault(hash, data)
        if len(self._snapshots) > JOURNAL_SNAPSHOTS_KEPT:
            self._snapshots.popitem(last=False)

    async def read(self, decision_id: str) -> Record | None:
        self._must_be_open()
        return self._records.get(decision_id)

    async def read_snapshot(self, hash: str) -> bytes | None:
        self._must_be_open()
        return self._snapshots.get(hash)

    async def recent(self, limit: int) -> list[Record]:
        """The newest first, at most RECENT_MAX."""
        self._must_be_open()
        return newest(self._records.values(), min(limit, RECENT_MAX))

    async def feedback_of(self, decision_id: str) -> list[Feedback]:
        """What was said of one reply, in the order it was said."""
        self._must_be_open()
        return [feedback for feedback in self._feedback if feedback.decision_id == decision_id]

    async def totals(self, since_s: int) -> list[Total]:
        """Sums for each model since the full hour of `since_s`, over the records that are kept."""
        self._must_be_open()
        return totals_of(self._records.values(), since_s)

    async def close(self) -> None:
        self._is_closed = True

    def _refuses(self) -> bool:
        if self._is_closed:
            self.dropped += 1
            self.last_error = "the journal is closed"
        return self._is_closed

    def _must_be_open(self) -> None:
        if self._is_closed:
            raise Closed("the journal is closed")
