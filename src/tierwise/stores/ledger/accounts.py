"""Whose account a hold falls on: a budget's line in the books, with the accounts of each subject.

Counts, and forgets what may be forgotten; admits nothing and refuses nothing (`books` does). An account is one subject
under one budget in one window (of a rolling budget: in one part of it), and a row of the durable ledger.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from tierwise.core.budget import ROLLING_S, Balance, Budget, Rate, is_rate
from tierwise.core.keys import budget_id
from tierwise.core.request import Payer
from tierwise.stores.ledger.subjects import subjects_of
from tierwise.stores.ledger.traffic import Traffic
from tierwise.stores.ledger.windows import (
    NEVER_S,
    PACED,
    calm_of_money,
    price_of_lifetime,
    price_of_money,
    rolling_part,
    window_of,
)

# Callers make sessions, workflows and requests at will, so their accounts are forgotten, the longest unused first,
# above this number. One with an open hold never is. Whoever returns after that many others begins at zero, unless the
# store can look the account up.
ACCOUNTS_KEPT = 50_000
FORGETTING_TRIES = 8  # accounts looked at for each new one, so that no hold pays for a long clean-up
MADE_BY_CALLERS = ("request", "session", "workflow")
RECENT_KEPT = 64  # fingerprints of an account's last steps

Key = tuple[str, str, int]  # line, subject, first second


class Counts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one account has counted, as a store keeps it."""

    limit_nano: int | None = None
    bound_nano: int | None = None
    posted_nano: int = 0
    pending_nano: int = 0
    overage_nano: int = 0
    tokens: int = 0
    tokens_pending: int = 0
    calls: int = 0
    steps: int = 0
    open: int = 0
    first_s: int = 0
    recent: tuple[str, ...] = ()


Load = Callable[[Key], Counts | None]
# The account of this key that is in use already, whichever line it came from: two of one key would each be half right.
Live = Callable[[Key], "Account | None"]


class Account:
    """Nano-dollars; `bound_nano` is the highest limit it ever had. `open` counts holds."""

    __slots__ = ("carried_nano", "key", "line", "start_s", "subject", *Counts.__struct_fields__)

    limit_nano: int | None
    bound_nano: int | None
    posted_nano: int
    pending_nano: int
    overage_nano: int
    tokens: int
    tokens_pending: int
    calls: int
    steps: int
    open: int
    first_s: int
    recent: tuple[str, ...]

    def __init__(self, line: Line, subject: str, start_s: int, counts: Counts) -> None:
        self.line = line
        self.subject = subject
        self.start_s = start_s
        self.key: Key = (line.id, subject, start_s)
        self.carried_nano = counts.posted_nano  # sum of the entries that are not in memory
        for name in Counts.__struct_fields__:
            setattr(self, name, getattr(counts, name))

    def counts(self) -> Counts:
        return Counts(
            self.limit_nano,
            self.bound_nano,
            self.posted_nano,
            self.pending_nano,
            self.overage_nano,
            self.tokens,
            self.tokens_pending,
            self.calls,
            self.steps,
            self.open,
            self.first_s,
            self.recent,
        )

    def limit(self, limit_nano: int | None) -> None:
        """Change the limit. Holds that are open keep; the next ones see the new one. What was taken while nothing was
        bounded stays allowed, so that a bound says by itself what an account may have come to."""
        self.limit_nano = limit_nano
        if limit_nano is None or not self.line.budget.hard:
            self.bound_nano = None
        else:
            taken = self.posted_nano + self.pending_nano - self.overage_nano
            self.bound_nano = max(taken if self.bound_nano is None else self.bound_nano, limit_nano, 0)


class Standing(msgspec.Struct, frozen=True):
    """What counts against a subject's limits at one moment: of a rolling budget, the sum of its parts."""

    account: Account  # where the next hold is counted
    posted_nano: int
    pending_nano: int
    tokens: int  # held ones included
    calls: int
    steps: int

    @property
    def left_nano(self) -> int | None:
        """What a hold could be now: below zero after an overage. None: no limit in money."""
        limit = self.account.limit_nano
        return None if limit is None else limit - self.posted_nano - self.pending_nano


class Line:
    """One budget and the accounts of its subjects.

    The clock of a line never moves back: a late or wrong clock is counted in the newest window, so no budget is ever
    spent twice. When a window has ended its accounts are let go, and those that still have a hold live on in it, so
    that it settles into the window that admitted it.
    """

    calm_s: int | None  # the second that `calm_nano` is of
    calm_nano: float

    def __init__(
        self, budget: Budget, load: Load = lambda key: None, *, credit: bool = False, live: Live = lambda key: None
    ) -> None:
        self.credit = credit
        self._keep_to(budget)
        self.place = 0  # among all lines
        self.load = load
        self.live = live
        self.owner = "credit" if credit else budget.scope  # as callers are told
        self.label = budget.scope if budget.window == "lifetime" else f"{budget.scope}/{budget.window}"
        self.window = "lifetime" if budget.scope == "request" else budget.window  # a request is its own window
        self.rolling = budget.rolling and self.window != "lifetime"
        # As long as this second has not come, the newest account is all that counts for its subject.
        self.is_plain = not self.rolling and budget.scope != "request"
        self.plain_s = NEVER_S if self.is_plain and self.window == "lifetime" else -NEVER_S
        self.id = "credit/" + budget.scope if credit else budget_id(budget)
        self.traffic = Traffic(budget.zone, self._plan_changed) if self.window in PACED and not self.rolling else None
        self.forgets = budget.scope in MADE_BY_CALLERS
        self.by_payer = {budget.scope, *dict(budget.match)}.isdisjoint(MADE_BY_CALLERS)  # no call has a say in it
        self.start_s = -NEVER_S
        self.end_s = NEVER_S if self.window == "lifetime" else -NEVER_S
        self.accounts: OrderedDict[str, Account] = OrderedDict()  # the newest of each subject
        self.older: dict[str, list[Account]] = {}  # of a rolling budget: the parts before it that still count
        self.under_way: dict[str, list[Account]] = {}  # with open holds, over all windows

    def subjects(self, payer: Payer, session: str, workflow: str, request: str) -> tuple[str, ...]:
        return subjects_of(self.budget, payer, session, workflow, request)

    def standing(self, subject: str, at_s: int) -> Standing:
        """What counts for a subject now. Opens its account in the window of `at_s` when it is new."""
        self._move(at_s)
        account = self.accounts.get(subject)
        if account is None or account.start_s != self.start_s:
            account = self._open(subject, account)
        elif self.forgets:
            self.accounts.move_to_end(subject)
        return _summed(account, self._older(subject), self.first_s if self.rolling else self.start_s)

    @property
    def first_s(self) -> int:
        """The first second that counts."""
        if not self.rolling:
            return self.start_s
        return rolling_part(self.window, max(self.start_s, 0))[1]

    def counted(self, subject: str, at_s: int) -> tuple[Standing | None, int, int]:
        """(what counts for a subject at `at_s`, the window's first second, the second of its next change). Opens no
        account and moves no window."""
        account = self.accounts.get(subject) if at_s < self.plain_s else None
        if account is not None:
            return _summed(account, [], self.start_s), self.start_s, self.end_s
        start_s, end_s = self._window_at(at_s)
        if self.budget.scope == "request":  # a request that comes has nothing yet, and no store need be asked for it
            return None, start_s, end_s
        account, older = self.accounts.get(subject), self._older(subject)
        if account is None:
            account, older = self._unopened(subject, start_s, at_s)
        if account is None or (not self.rolling and account.start_s < start_s):
            return None, start_s, end_s
        return _summed(account, older, start_s), start_s, end_s

    def drawn(self, subject: str, at_s: int) -> tuple[int, int]:
        """(nano-dollars posted and held, the limit in money or 0 for none), as `counted` has them."""
        counted, _, _ = self.counted(subject, at_s)
        return counted.posted_nano + counted.pending_nano if counted else 0, self.limit_of(counted) or 0

    def limit_of(self, counted: Standing | None) -> int | None:
        """In money. Of a credit, all that was ever topped up."""
        if not self.credit:
            return self.budget.limit_nano
        return (counted.account.limit_nano or 0) if counted is not None else 0

    def price_at(self, used: int, limit: int, at_s: int) -> tuple[float, float | None]:
        """(λ of this budget, the share of it that was planned to be used by now). A request has spent nothing at the
        door, so a limit on one has no price."""
        if self.budget.scope == "request":
            return 1.0, None
        if self.window == "lifetime":
            return price_of_lifetime(used, limit, hard=self.hard), None
        start_s, end_s, plan = self._planned(at_s)
        price = price_of_money(
            used, limit, start_s, end_s, at_s, window=self.window, rolling=self.rolling, hard=self.hard, plan=plan
        )
        return price, plan

    def calm_at(self, at_s: int) -> float:
        """So much may be used and λ of this budget is 1. Each request asks it of each of its budgets, and within one
        second the answer is the same: it is in `calm_nano` as long as `calm_s` is that second."""
        limit = self.budget.limit_nano
        if limit is None or self.budget.scope == "request":
            self.calm_nano = math.inf  # a credit has no pace, and a request has spent nothing yet
        else:
            start_s, end_s, plan = self._planned(at_s)
            self.calm_nano = calm_of_money(
                limit, start_s, end_s, at_s, window=self.window, rolling=self.rolling, hard=self.hard, plan=plan
            )
        self.calm_s = at_s
        return self.calm_nano

    def _planned(self, at_s: int) -> tuple[int, int, float | None]:
        """(first second that counts, second of the next change, share of the limit that is to be used by now)"""
        start_s, end_s = self._window_at(at_s)
        return start_s, end_s, self.traffic.planned(start_s, end_s, at_s) if self.traffic is not None else None

    def _plan_changed(self) -> None:
        self.calm_s = None

    def balance(self, subject: str, at_s: int) -> Balance:
        """How a subject stands at `at_s`."""
        budget = self.budget
        counted, start_s, end_s = self.counted(subject, at_s)
        limit = self.limit_of(counted)
        spent, held = (counted.posted_nano, counted.pending_nano) if counted else (0, 0)
        price, plan = (1.0, None) if limit is None else self.price_at(spent + held, limit, at_s)
        return Balance(
            scope=budget.scope,
            window=self.window,
            rolling=self.rolling,
            subject=subject,
            credit=self.credit,
            hard=budget.hard,
            limit_nano=limit,
            spent_nano=spent,
            held_nano=held,
            left_nano=None if limit is None else max(limit - spent - held, 0),
            planned_nano=None if plan is None or limit is None else round(plan * limit),
            price=price,
            steps=budget.steps,
            steps_done=counted.steps if counted else 0,
            tokens=budget.tokens,
            tokens_used=counted.tokens if counted else 0,
            calls=budget.calls,
            calls_done=counted.calls if counted else 0,
            parallel=budget.parallel,
            open=self.at_once(subject),
            starts_at_s=None if start_s == -NEVER_S else start_s,
            resets_at_s=None if end_s == NEVER_S else end_s,
        )

    def rate(self, subject: str, at_s: int) -> Rate:
        """What of `balance` each reply tells, where this is a limit on calls or tokens in a window."""
        budget, end_s = self.budget, self.end_s
        account = self.accounts.get(subject) if at_s < self.plain_s else None
        if account is not None:
            return Rate(budget.calls, account.calls, budget.tokens, account.tokens + account.tokens_pending, end_s, 0)
        counted, _, end_s = self.counted(subject, at_s)
        calls, tokens = (counted.calls, counted.tokens) if counted else (0, 0)
        return Rate(budget.calls, calls, budget.tokens, tokens, end_s, ROLLING_S[self.window] if self.rolling else 0)

    def at_once(self, subject: str) -> int:
        """Calls under way, whenever they began."""
        return sum([account.open for account in self.under_way.get(subject, ())])

    def resets_at_s(self, at_s: int) -> int | None:
        end_s = self._window_at(at_s)[1]
        return None if end_s == NEVER_S else end_s

    def change(self, budget: Budget) -> list[Account]:
        """The same budget with other limits. Returns the accounts whose limits changed."""
        if budget == self.budget:  # as most are when a key is made or revoked
            return []
        self._keep_to(budget)
        changed = [*self.accounts.values(), *(each for parts in self.older.values() for each in parts)]
        for account in changed:
            account.limit(budget.limit_nano)
        return changed

    def _keep_to(self, budget: Budget) -> None:
        self.budget = budget
        self.hard = budget.hard
        self.is_rate = is_rate(budget)
        self.has_money = self.credit or budget.limit_nano is not None
        self.lasts = self.has_money and budget.hard and budget.scope != "request"  # and is not new with each request
        self.watches = {budget.parallel, budget.deadline_s, budget.repeats} != {None}  # more than sums
        self.counts = self.watches or {budget.steps, budget.calls, budget.tokens} != {None}  # more than money
        self.calm_s = None

    # -------------------------------------------------------------------------------------------- windows

    def _window_at(self, at_s: int) -> tuple[int, int]:
        """(first second that counts, second of the next change), without moving the line."""
        if self.window == "lifetime":
            return -NEVER_S, NEVER_S
        at_s = max(at_s, self.start_s)
        if self.rolling:
            return rolling_part(self.window, at_s)[1:]
        return (self.start_s, self.end_s) if at_s < self.end_s else window_of(self.window, at_s, self.budget.zone)

    def _move(self, at_s: int) -> None:
        if at_s < self.end_s:
            return
        if self.rolling:
            self.start_s, _, self.end_s = rolling_part(self.window, at_s)
        else:
            self.start_s, self.end_s = window_of(self.window, at_s, self.budget.zone)
            self.accounts = OrderedDict()
            self.plain_s = self.end_s if self.is_plain else -NEVER_S
            self.calm_s = None

    def _open(self, subject: str, before: Account | None) -> Account:
        if before is not None:
            self.older.setdefault(subject, []).append(before)
        if self.rolling:
            self._recall(subject, self.first_s if before is None else before.start_s + 1)
        parts = self.older.get(subject, [])
        found = next((part for part in parts if part.start_s == self.start_s), None)
        if found is not None:
            parts.remove(found)  # it came back with its holds after a restart
            found.limit(found.limit_nano if self.credit else self.budget.limit_nano)
        else:
            found = self._loaded(subject, self.start_s)
        if found is None:
            limit = None if self.credit else self.budget.limit_nano
            bound = limit if self.budget.hard else None
            found = Account(self, subject, self.start_s, Counts(limit_nano=limit, bound_nano=bound))
        self.accounts[subject] = found
        if self.forgets:
            self._forget()
        return found

    def _loaded(self, subject: str, start_s: int) -> Account | None:
        """The one in use, or from the store, with today's limit."""
        key = (self.id, subject, start_s)
        found = self.live(key)
        if found is None:
            counts = self.load(key)
            if counts is None:
                return None
            found = Account(self, subject, start_s, counts)
        found.line = self
        if not self.credit:
            found.limit(self.budget.limit_nano)
        return found

    def _unopened(self, subject: str, start_s: int, at_s: int) -> tuple[Account | None, list[Account]]:
        """(the newest account, those before it) of a subject that nobody has asked to hold since the start."""
        if not self.rolling:
            return self._loaded(subject, start_s), []
        newest_s, _, end_s = rolling_part(self.window, max(at_s, self.start_s))
        parts = {each.start_s: each for each in self._older(subject)}
        for part_s in range(start_s, newest_s + 1, end_s - newest_s):
            part = None if part_s in parts else self._loaded(subject, part_s)
            if part is not None:
                parts[part_s] = part
        found = [parts[part_s] for part_s in sorted(parts)]
        return (found[-1], found[:-1]) if found else (None, [])

    def _recall(self, subject: str, from_s: int) -> None:
        """The older parts of a rolling window that a store still has, after a restart; also those that were yet to come
        when we started, with a clock that had been set back."""
        part = self.end_s - self.start_s
        there = {each.start_s for each in self.older.get(subject, ())}
        for start_s in range(self.first_s, self.start_s, part):
            found = self._loaded(subject, start_s) if start_s >= from_s and start_s not in there else None
            if found is not None:
                self.older.setdefault(subject, []).append(found)

    def _older(self, subject: str) -> list[Account]:
        if not self.rolling or subject not in self.older:
            return []
        kept = [each for each in self.older[subject] if each.start_s >= self.first_s or each.open]
        if kept:
            self.older[subject] = kept
        else:
            del self.older[subject]
        return kept

    def _forget(self) -> None:
        for _ in range(FORGETTING_TRIES):
            if len(self.accounts) <= ACCOUNTS_KEPT:
                return
            subject, oldest = next(iter(self.accounts.items()))
            if oldest.open or any(each.open for each in self._older(subject)):
                self.accounts.move_to_end(subject)
            else:
                del self.accounts[subject]
                self.older.pop(subject, None)


def _summed(account: Account, older: list[Account], first_s: int) -> Standing:
    """Everything posted in the parts that count, and everything held, whenever it was held."""
    if not older:
        if account.start_s < first_s:
            return Standing(account, 0, account.pending_nano, account.tokens_pending, 0, 0)
        tokens = account.tokens + account.tokens_pending
        return Standing(account, account.posted_nano, account.pending_nano, tokens, account.calls, account.steps)
    parts = [*older, account]
    counting = [part for part in parts if part.start_s >= first_s]
    return Standing(
        account,
        sum([part.posted_nano for part in counting]),
        sum([part.pending_nano for part in parts]),
        sum([part.tokens for part in counting]) + sum([part.tokens_pending for part in parts]),
        sum([part.calls for part in counting]),
        sum([part.steps for part in counting]),
    )
