"""The ledger as a pure state machine: operations over accounts and holds, without a clock, a thread or a file.

Every ledger is these books and a way to keep them: `memory` forgets them, `ledger` writes what `take` gives it to a
file before it acknowledges anything. A simulator that owns time, order and faults drives the same class. Amounts are
nano-dollars, times are seconds since 1970 and come from the caller.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec

from tierwise.core.budget import Budget, Charge, Denial, Hold
from tierwise.core.keys import CREDIT_SCOPES, merged
from tierwise.core.money import MAX_NANO
from tierwise.core.request import Hints, Payer
from tierwise.stores.ledger.accounts import RECENT_KEPT, Account, Counts, Key, Line, Load
from tierwise.stores.ledger.admission import denial, fitting, reserved, without_last
from tierwise.stores.ledger.closed import Closed
from tierwise.stores.ledger.laws import faults
from tierwise.stores.ledger.lines import Lines, Pass, Way
from tierwise.stores.ledger.live import Live
from tierwise.stores.ledger.rows import (
    TOP_UP,
    Changes,
    Entry,
    EntryKind,
    HoldRow,
    HoldState,
    posting,
    row_of,
    top_up_of,
)
from tierwise.stores.ledger.sleeping import Sleeping
from tierwise.stores.ledger.traffic import count_all

# Entries that the audit in memory sums up one by one; older ones are carried forward in one sum for each account.
ENTRIES_KEPT = 4_000
CLOSED_KEPT = 20_000  # calls that have ended
SUSPENSE_S = 86_400  # a call whose end nobody saw is settled at its least after this


class _Held:
    """An open hold: its row, and the accounts that it stands on."""

    __slots__ = ("accounts", "fingerprint", "row")

    def __init__(self, row: HoldRow, accounts: tuple[Account, ...], fingerprint: str = "") -> None:
        self.row = row
        self.accounts = accounts
        self.fingerprint = fingerprint  # as far as it was noted as a step


class Books:
    """`load` looks an account up in a store, `load_hold` a closed hold; both give None for what is not there."""

    def __init__(
        self,
        budgets: tuple[Budget, ...] = (),
        load: Load = lambda key: None,
        load_hold: Callable[[str], HoldRow | None] = lambda id: None,
    ) -> None:
        self._load = load
        self._load_hold = load_hold
        self._live = Live()
        self._dirty: dict[Key, Account] = {}
        self._lines = Lines(
            [Line(budget, load, live=self._alive) for budget in merged(budgets)],
            {scope: Line(Budget(scope=scope), load, credit=True, live=self._alive) for scope in CREDIT_SCOPES},
        )
        # Limits that callers put on their own requests.
        self._caps = Line(Budget(scope="request"), load, live=self._alive)
        self._caps.id = "cap/request"  # a budget on requests is another account
        self._variances: dict[str, Line] = {}
        self._open: dict[str, _Held] = {}
        self._asleep = Sleeping()
        self.forgotten_s = 0  # calls that ended before this are history: a store may have let go of them
        self._closed = Closed()
        self._grants: set[str] = set()
        self._entries: deque[tuple[tuple[Account, ...], int]] = deque()  # what was spent, as far as it is kept
        self._touched: dict[str, HoldRow] = {}
        self._posted: list[Entry] = []
        self.ignored = 0  # settlements of a hold that was closed before, or never made
        self.overages = 0  # attempts that cost more than was held for them
        self.overage_nano = 0
        self.revision = 0  # another one whenever a balance may have become another, but for the time that passes

    # -------------------------------------------------------------------------------------------- holding

    def hold(self, hold: Hold) -> Denial | None:
        """Raises ValueError for an amount or a number of steps that is no such thing.

        An id that was held before holds nothing more, open or closed, whatever its amount: the first one stands.
        Holding nothing (a free model) is always affordable, even in a budget that a provider has overdrawn.
        """
        amount, steps, tokens = hold.amount_nano, hold.steps, hold.tokens
        if not 0 <= amount <= MAX_NANO or steps < 0 or tokens < 0:
            raise ValueError(f"hold {hold.id!r}: {amount} nano-dollars, {steps} steps cannot be held")
        if hold.id in self._open or self._closed.has_or_had(hold.id, self._load_hold):
            return None
        self.revision += 1  # a hold counts as traffic, also one that is refused
        way = self._lines.ways[hold.payer, hold.session, hold.workflow]
        passed = way.passed
        if way.requests or hold.request_limit_nano is not None:
            passed = self._with_own(hold, passed)
        if not hold.bounded:
            amount = reserved(hold, passed)
        accounts = fitting(hold, amount, passed)
        at_s, request = hold.at_s, hold.request or hold.id
        count_all(way.traffic, request, at_s)
        if accounts is None:
            return denial(hold, amount, [line.standing(subject, at_s) for line, subject in passed])
        for account in accounts:
            account.pending_nano += amount
            account.tokens_pending += tokens
            account.steps += steps
            account.calls += 1
            if not account.open:
                self._live.begin(account)
            account.open += 1
            if not account.first_s:
                account.first_s = at_s
        step = hold.fingerprint if steps else ""
        if step and way.repeats:
            for account in accounts:
                if account.line.budget.repeats is not None:
                    account.recent = (*account.recent, step)[-RECENT_KEPT:]
        if accounts != way.accounts:  # mostly they are those of the hold before
            way.accounts, way.keys = accounts, tuple([account.key for account in accounts])
        keys = way.keys
        self._dirty.update(zip(keys, accounts, strict=True))
        row = self._touched[hold.id] = row_of(hold, amount, keys)
        self._open[hold.id] = _Held(row, accounts, step)
        return None

    def undo(self, hold_id: str) -> None:
        """A hold that could not be written: as if it had never been asked for. Its step counts for nothing."""
        held = self._open.pop(hold_id, None)
        if held is not None:
            self._close(held, 0, 0, released=True)
            self._touched.pop(hold_id, None)

    def checkpoint(self, hold_id: str, least_nano: int) -> None:
        """So much has been used for certain: what is charged if nobody ever says more."""
        held = self._open.get(hold_id)
        if held is not None and least_nano > held.row.least_nano:
            held.row = msgspec.structs.replace(held.row, least_nano=min(least_nano, held.row.amount_nano))
            self._touched[hold_id] = held.row

    # -------------------------------------------------------------------------------------------- settling

    def settle(self, hold_id: str, charge: Charge, at_s: int) -> None:
        """Close a hold and post its cost on every account that it stood on. The first closes it, later ones are counted
        in `ignored`; but the truth about a call that was settled unseen (`suspense`) corrects what was posted."""
        held = self._open.pop(hold_id, None) or self._woken(hold_id)
        if held is None:
            closed = self._closed.get(hold_id) or self._load_hold(hold_id)
            if closed is not None and closed.state == "suspense" and charge.kind != "released":
                self.correct(hold_id, charge.cost_nano, at_s, "settled late")
            else:
                self.ignored += 1
            return
        row = held.row
        released = charge.kind == "released"
        # No provider pays us: a negative cost is a fault in reading it, and an unknown cost is charged in full.
        cost = 0 if released else charge.cost_nano if charge.cost_nano >= 0 else row.amount_nano
        tokens = 0 if released else charge.usage.prompt_tokens + charge.usage.completion_tokens
        self._close(held, cost, tokens, released=released)
        kind: EntryKind = "estimated" if charge.kind == "estimated" else "reported"
        self._end(held, cost, at_s, "released" if released else "settled", kind)

    def correct(self, hold_id: str, cost_nano: int, at_s: int, note: str = "") -> bool:
        """Late truth: what a closed call really cost. Posts the difference as a new entry on the accounts that it stood
        on, in their windows. False when there is no such closed hold, or none that is still known."""
        row = self._closed.get(hold_id) or self._load_hold(hold_id)
        if row is None or hold_id in self._open or not row.closed_s or cost_nano < 0 or row.closed_s < self.forgotten_s:
            return False
        if cost_nano != row.cost_nano or row.state != "settled":
            self._adjust(row, cost_nano - row.cost_nano, at_s, note)
            closed_s = max(row.closed_s, at_s)
            row = msgspec.structs.replace(row, cost_nano=cost_nano, state="settled", closed_s=closed_s)
            self._closed[hold_id] = self._touched[hold_id] = row
        return True

    def resolve(self, at_s: int) -> int:
        """Settle calls whose end nobody saw and that are older than SUSPENSE_S at what they used for certain. Returns
        how many."""
        found = [
            held for held in self._open.values() if held.row.state == "suspense" and held.row.at_s + SUSPENSE_S <= at_s
        ]
        for held in found:
            del self._open[held.row.id]
            self._close(held, held.row.least_nano, held.row.least_tokens, released=False)
            self._end(held, held.row.least_nano, at_s, "suspense", "suspense")
        return len(found)

    def expire(self, before_s: int) -> int:
        """Put open holds that began before this into suspense: whoever made them is gone. They still count. Returns how
        many."""
        found = [held for held in self._open.values() if held.row.state == "open" and held.row.at_s < before_s]
        for held in found:
            held.row = self._touched[held.row.id] = msgspec.structs.replace(held.row, state="suspense")
        return len(found)

    def vary(self, scope_line: str, subject: str, amount_nano: int, at_s: int, note: str) -> bool:
        """Post what belongs to no single call (a provider's invoice that differs) on the account of a budget now."""
        line = self._lines.by_id.get(scope_line)
        if line is None and scope_line.startswith("variance/"):  # of a provider, and nobody's budget
            line = self._variances.setdefault(scope_line, Line(Budget(scope="request"), self._load))
            line.id = scope_line
        if line is None:
            return False
        account = line.standing(subject, at_s).account
        self._post(account, amount_nano, overage=max(amount_nano, 0))
        entry = Entry(at_s=at_s, hold="", accounts=(account.key,), amount_nano=amount_nano, kind="variance", note=note)
        self._enter((account,), entry)
        return True

    # -------------------------------------------------------------------------------------------- credit

    def grant(self, id: str, scope: str, subject: str, amount_nano: int, at_s: int) -> bool:
        """Top up a prepaid balance; a negative amount takes back. The same id counts once. False when it did before.

        Raises ValueError for a scope that has no credit, or an amount that is none."""
        if scope not in self._lines.credits or not amount_nano or abs(amount_nano) > MAX_NANO:
            raise ValueError(f"a credit belongs to one of {', '.join(CREDIT_SCOPES)} and has an amount")
        if id in self._grants or self._load_hold(f"{TOP_UP}{id}") is not None:
            return False
        self._grants.add(id)
        self._lines.prepay(scope, subject)
        account = self._lines.credits[scope].standing(subject, at_s).account
        account.limit(max(-MAX_NANO, min((account.limit_nano or 0) + amount_nano, MAX_NANO)))
        self.revision += 1
        self._dirty[account.key] = account
        note = top_up_of(id, account.key, at_s)
        self._touched[note.id] = note
        entry = Entry(at_s=at_s, hold="", accounts=(account.key,), amount_nano=amount_nano, kind="grant", note=id)
        self._posted.append(entry)  # not spent, so no sum of what was posted has it
        return True

    # -------------------------------------------------------------------------------------------- reading

    def passes(self, payer: Payer, hints: Hints) -> Way:
        """Every budget and credit above a payer, and whose account in it is the payer's, for `reading`."""
        return self._lines.ways[payer, hints.session or "", hints.workflow or ""]

    def open_holds(self) -> int:
        return len(self._open) + self._asleep.count

    def asleep(self) -> int:
        return self._asleep.count

    def in_suspense(self) -> int:
        return self._asleep.count + sum(held.row.state == "suspense" for held in self._open.values())

    # -------------------------------------------------------------------------------------------- keeping

    def take(self) -> Changes:
        """What changed since the last call. Whoever takes it must write it, or give it back to `again`."""
        accounts = {key: account.counts() for key, account in self._dirty.items()}
        changes = Changes(accounts, self._touched, tuple(self._posted))
        self.forget_changes()
        return changes

    def forget_changes(self) -> None:
        self._dirty, self._touched, self._posted = {}, {}, []

    def changed(self) -> bool:
        return bool(self._dirty or self._touched or self._posted)

    def untaken(self, key: Key) -> Counts | None:
        """An account that changed since the last `take`, as no store knows it yet."""
        account = self._dirty.get(key)
        return account.counts() if account is not None else None

    def untaken_hold(self, hold_id: str) -> HoldRow | None:
        return self._touched.get(hold_id)

    def reload(self, budgets: tuple[Budget, ...]) -> None:
        """Other budgets from now on. One with the scope, match and window of an old one takes over its accounts; the
        accounts of the others are let go when their open holds have settled. Nothing that is held is given back."""

        def new(budget: Budget) -> Line:
            line = Line(budget, self._load, live=self._alive)
            self._live.adopt(line)
            return line

        for line, budget in self._lines.change(budgets, new):
            self._dirty |= {account.key: account for account in line.change(budget)}
        self.revision += 1

    def restore(
        self,
        rows: list[HoldRow],
        prepaid: list[tuple[str, str]],
        live: Iterable[Key] = (),
        count: int | None = None,
        last_id: str | None = None,
    ) -> None:
        """After a restart: the holds that were open, whose ends nobody saw, and who has a credit. Of many, `rows` are
        some, `count` says how many there are and `live` on which accounts they stand: the others sleep in the store.
        `last_id`: of all holds that are no top-ups, the one that sorts last; None: nobody looked."""
        self._closed.last_gone = last_id
        for scope, subject in prepaid:
            self._lines.prepay(scope, subject)
        self._asleep.count = len(rows) if count is None else count
        for key in live:
            self._revived(key)
        for row in rows:
            self.wake(row)

    def wake(self, row: HoldRow) -> None:
        """Take up an open hold that slept in the store. One that is known here is left as it is."""
        if row.closed_s or row.id in self._open or row.id in self._closed:
            return
        accounts = tuple(self._revived(key) for key in row.accounts)
        self._asleep.wake(row, accounts)
        if row.state == "open":
            row = self._touched[row.id] = msgspec.structs.replace(row, state="suspense")
        self._open[row.id] = _Held(row, accounts)

    def audit(self) -> tuple[str, ...]:
        """What is wrong with the books, one sentence each; () when they balance."""
        wrong = [f"hold {hold_id} is open and closed" for hold_id in self._open.keys() & self._closed.keys()]
        lines = (*self._lines, self._caps, *self._lines.credits.values())
        held = [(each.row, each.accounts) for each in self._open.values()]
        return (*wrong, *faults(lines, held, self._asleep.sums(), self._entries))

    # -------------------------------------------------------------------------------------------- helpers

    def _with_own(self, hold: Hold, passed: Sequence[Pass]) -> Sequence[Pass]:
        """What a hold passes where its request has accounts of its own: under budgets on single requests, and under the
        limit that the caller put on it."""
        request = hold.request or hold.id
        found = [(line, request if line.budget.scope == "request" else subject) for line, subject in passed]
        if hold.request_limit_nano is not None:
            self._caps.standing(request, hold.at_s).account.limit(hold.request_limit_nano)
            found.append((self._caps, request))
        return found

    def _account(self, key: Key) -> Account:
        """The account of a key, whichever line it is of; one of a line that is no more stands alone."""
        if (alive := self._alive(key)) is not None:
            return alive
        line_id, subject, start_s = key
        others = {each.id: each for each in (self._caps, *self._lines.credits.values())}
        line = self._lines.by_id.get(line_id) or others.get(line_id)
        if line is None:
            line = Line(Budget(scope="request"), self._load)
            line.id = line_id
        parts: list[Account | None] = [line.accounts.get(subject), *line.older.get(subject, ())]
        for known in parts:
            if known is not None and known.start_s == start_s:
                return known
        account = Account(line, subject, start_s, self._load(key) or Counts())
        if line_id in self._lines.by_id:
            account.limit(line.budget.limit_nano)  # today's, and not that of before the restart
        if line.rolling:
            line.older.setdefault(subject, []).append(account)
        elif line.window == "lifetime":
            line.accounts[subject] = account
        return account

    def _revived(self, key: Key) -> Account:
        """The account of holds that sleep, as its store has it: with all that they come to."""
        account = self._account(key)
        if key not in self._live:
            self._live.begin(account)
            self._asleep.lie_on(account)
        return account

    def _woken(self, hold_id: str) -> _Held | None:
        row = self._load_hold(hold_id) if self._asleep.count else None
        if row is not None:
            self.wake(row)
        return self._open.pop(hold_id, None)

    def _alive(self, key: Key) -> Account | None:
        return self._live.get(key) or self._dirty.get(key)

    def _close(self, held: _Held, cost: int, tokens: int, *, released: bool) -> None:
        row = held.row
        amount, tokens_held = row.amount_nano, row.tokens
        excess = cost - amount
        self.revision += 1
        for account in held.accounts:
            account.pending_nano -= amount
            account.tokens_pending -= tokens_held
            account.posted_nano += cost
            account.tokens += tokens
            account.open -= 1
            if not account.open:
                self._live.end(account)
        self._dirty.update(zip(row.accounts, held.accounts, strict=True))
        if released:  # the call was never made, so it was no step
            for account in held.accounts:
                account.steps -= row.steps
                account.calls -= 1
                account.recent = without_last(account.recent, held.fingerprint)
        if excess > 0:
            for account in held.accounts:
                account.overage_nano += excess
            self.overages += 1
            self.overage_nano += excess

    def _end(self, held: _Held, cost: int, at_s: int, state: HoldState, kind: EntryKind) -> None:
        row = msgspec.structs.replace(held.row, state=state, cost_nano=cost, closed_s=at_s)
        self._touched[row.id] = row
        self._closed.keep(row, CLOSED_KEPT)
        excess = cost - row.amount_nano
        if state != "released":
            self._enter(held.accounts, posting(row, kind, cost if excess < 0 else row.amount_nano, at_s))
        if excess > 0:  # what a provider bills beyond the hold stands by itself
            self._enter(held.accounts, posting(row, "overage", excess, at_s))

    def _adjust(self, row: HoldRow, difference: int, at_s: int, note: str) -> None:
        # All are looked up before the first is changed: a store that cannot find one leaves the books as they were.
        accounts = tuple([self._account(key) for key in row.accounts])
        for account in accounts:
            self._post(account, difference, overage=max(difference, 0))
        self._enter(accounts, posting(row, "correction", difference, at_s, note))

    def _post(self, account: Account, amount: int, overage: int = 0) -> None:
        account.posted_nano += amount
        account.overage_nano += overage
        self.revision += 1
        self._dirty[account.key] = account

    def _enter(self, accounts: tuple[Account, ...], entry: Entry) -> None:
        if not accounts:  # under no budget at all: what it cost stands with the hold
            return
        self._posted.append(entry)
        self._entries.append((accounts, entry.amount_nano))
        if len(self._entries) > ENTRIES_KEPT:
            oldest, amount = self._entries.popleft()
            for account in oldest:
                account.carried_nano += amount
