"""Whose account a hold falls on: a budget's line in the books, with one account for each subject in the current window.

Counts, and forgets what may be forgotten; admits nothing and refuses nothing (the ledger does).
"""

from __future__ import annotations

from collections import OrderedDict

from tierwise.core.budget import Balance, Budget
from tierwise.core.request import Payer
from tierwise.stores.windows import NEVER_S, price_of_money, window_of

# Callers make sessions, workflows and requests at will, so their accounts are forgotten, the longest unused first,
# above this number. One with an open hold never is. Whoever returns after that many others begins at zero.
ACCOUNTS_KEPT = 50_000
FORGETTING_TRIES = 8  # accounts looked at for each new one, so that no hold pays for a long clean-up
MADE_BY_CALLERS = ("request", "session", "workflow")


class Account:
    """One subject under one budget in one window. Nano-dollars; `bound_nano` is the highest limit it ever had."""

    __slots__ = (
        "bound_nano",
        "carried_nano",
        "limit_nano",
        "line",
        "open",
        "overage_nano",
        "pending_nano",
        "posted_nano",
        "steps",
        "subject",
    )

    def __init__(self, line: Line, subject: str, limit_nano: int | None) -> None:
        self.line = line
        self.subject = subject
        self.limit_nano = limit_nano
        self.bound_nano = limit_nano
        self.posted_nano = 0
        self.pending_nano = 0
        self.overage_nano = 0  # posted beyond what was held
        self.carried_nano = 0  # sum of the entries that are no longer kept one by one
        self.open = 0  # holds
        self.steps = 0

    def limit(self, limit_nano: int | None) -> None:
        """Change the limit. Holds that are open keep; the next ones see the new one."""
        self.limit_nano = limit_nano
        if limit_nano is not None:
            self.bound_nano = max(self.bound_nano or 0, limit_nano)

    def left_nano(self) -> int | None:
        """What a hold could be now: below zero after an overage. None: no limit in money."""
        return None if self.limit_nano is None else self.limit_nano - self.posted_nano - self.pending_nano


class Line:
    """One budget and its accounts in the current window.

    The window belongs to the whole line: when it has ended the accounts are let go together, and those that still
    have a hold live on in it, so that it settles into the window that admitted it. It never moves back: a late or
    wrong clock is counted in the newest window, so no budget is ever spent twice.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.label = budget.scope if budget.window == "lifetime" else f"{budget.scope}/{budget.window}"
        self.window = "lifetime" if budget.scope == "request" else budget.window  # a request is its own window
        self.forgets = budget.scope in MADE_BY_CALLERS
        self.start_s = -NEVER_S
        self.end_s = NEVER_S if self.window == "lifetime" else -NEVER_S
        self.accounts: OrderedDict[str, Account] = OrderedDict()

    def subjects(self, payer: Payer, session: str, workflow: str, request: str) -> tuple[str, ...]:
        """The accounts of this line that a payer's path passes through, by name; () when the budget is not on it.

        Payers without a name in the scope share the account "": no key is exempt because a field was left empty. A
        call outside every session, workflow or tag has none of these budgets. Sessions and workflows are the payer's
        own, so nobody spends another's by naming it.
        """
        budget = self.budget
        for name, value in budget.match:
            if not _matches(name, value, payer, session, workflow):
                return ()
        match budget.scope:
            case "user":
                return (payer.user,)
            case "team":
                return (payer.team,)
            case "organisation":
                return (payer.organisation,)
            case "key":
                return (payer.key,)
            case "session":
                return (_own(payer, session),) if session else ()
            case "workflow":
                return (_own(payer, workflow),) if workflow else ()
            case "request":
                return (request,)
            case "tag":
                if budget.match:
                    return (",".join(f"{name}={value}" for name, value in budget.match),)
                return tuple(dict.fromkeys(f"{name}={value}" for name, value in payer.tags))

    def account(self, subject: str, at_s: int) -> Account:
        """The account of a subject, opened if it is new, in the window of `at_s`."""
        if at_s >= self.end_s:
            self.start_s, self.end_s = window_of(self.window, at_s)
            self.accounts = OrderedDict()
        found = self.accounts.get(subject)
        if found is None:
            found = self.accounts[subject] = Account(self, subject, self.budget.limit_nano)
            if self.forgets:
                self._forget()
        elif self.forgets:
            self.accounts.move_to_end(subject)
        return found

    def balance(self, subject: str, at_s: int) -> Balance:
        """How a subject stands at `at_s`. Opens no account and moves no window."""
        found, start_s, end_s = self.accounts.get(subject), self.start_s, self.end_s
        if at_s >= end_s:
            found, (start_s, end_s) = None, window_of(self.window, at_s)
        spent, held = (found.posted_nano, found.pending_nano) if found else (0, 0)
        limit = self.budget.limit_nano
        paced = limit is not None and self.budget.scope != "request"  # a request at the door has spent nothing
        return Balance(
            scope=self.budget.scope,
            window=self.window,
            subject=subject,
            limit_nano=limit,
            spent_nano=spent,
            held_nano=held,
            left_nano=None if limit is None else max(limit - spent - held, 0),
            price=price_of_money(spent + held, limit, start_s, end_s, at_s) if paced and limit is not None else 1.0,
            steps=self.budget.steps,
            steps_done=found.steps if found else 0,
            resets_at_s=None if end_s == NEVER_S else end_s,
        )

    def change(self, budget: Budget) -> None:
        """The same budget with other limits."""
        self.budget = budget
        for account in self.accounts.values():
            account.limit(budget.limit_nano)

    def _forget(self) -> None:
        for _ in range(FORGETTING_TRIES):
            if len(self.accounts) <= ACCOUNTS_KEPT:
                return
            subject, oldest = next(iter(self.accounts.items()))
            if oldest.open:
                self.accounts.move_to_end(subject)
            else:
                del self.accounts[subject]


def _own(payer: Payer, name: str) -> str:
    """The payer's own session or workflow of this name."""
    return "\x1f".join((payer.organisation, payer.team, payer.user, payer.key, name))


def _matches(name: str, value: str, payer: Payer, session: str, workflow: str) -> bool:
    """A condition names a field of the payer, `session`, `workflow`, or else a tag."""
    match name:
        case "user":
            return payer.user == value
        case "team":
            return payer.team == value
        case "organisation":
            return payer.organisation == value
        case "key":
            return payer.key == value
        case "session":
            return session == value
        case "workflow":
            return workflow == value
        case _:
            return (name, value) in payer.tags
