"""What the books should say, worked out again from the list of all that was asked: the simulator's second opinion.

`Reference` decides and sums up by walking over all holds each time; `File` is what was committed, and a linear checker
of it: it replays commits in their order and recomputes every balance from entries and holds (I1 to I5).
"""

from __future__ import annotations

from typing import Any

import msgspec

from tierwise.core.budget import Budget, Hold
from tierwise.stores.ledger.accounts import Counts, Key, Line
from tierwise.stores.ledger.rows import Changes, Entry, HoldRow
from tierwise.stores.ledger.windows import NEVER_S, rolling_part, window_of


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """A hold as the reference remembers it."""

    hold: Hold
    keys: tuple[Key, ...]
    state: str = "open"  # open, suspense, settled, written off, released
    least: int = 0
    cost: int = 0
    tokens: int = 0  # used
    counted: bool = True  # as a call and a step


class Reference:
    """Copied at every commit, and taken back to the copy at a crash."""

    def __init__(self, budgets: tuple[Budget, ...]) -> None:
        self.holds: dict[str, Known] = {}
        self.credits: dict[tuple[str, str], int] = {}
        self.grants: set[str] = set()
        self.variances: dict[Key, int] = {}
        self.clocks: dict[str, int] = {}  # line -> the latest second that it has seen
        self.ignored = 0
        self.unsure = False
        self.change(budgets)

    def change(self, budgets: tuple[Budget, ...]) -> None:
        self.lines = [Line(budget) for budget in budgets]
        kept = {line.id for line in self.lines}
        self.clocks = {id: at_s for id, at_s in self.clocks.items() if id in kept or id.startswith("credit/")}

    def copy(self) -> Reference:
        other = Reference(())
        other.lines, other.ignored = self.lines, self.ignored
        other.holds, other.credits, other.grants = dict(self.holds), dict(self.credits), set(self.grants)
        other.variances, other.clocks = dict(self.variances), dict(self.clocks)
        return other

    # -------------------------------------------------------------------------------------------- deciding

    def path(self, hold: Hold) -> list[tuple[Key, Line, int | None]]:
        """(account, line, limit) of every level that this hold has to pass."""
        found: list[tuple[Key, Line, int | None]] = []
        for line in self.lines:
            subjects = line.subjects(hold.payer, hold.session, hold.workflow, hold.request)
            found += [(self.key(line, subject, hold.at_s), line, line.budget.limit_nano) for subject in subjects]
        for (scope, subject), amount in self.credits.items():
            if getattr(hold.payer, scope) == subject:
                line = Line(Budget(scope=scope), credit=True)  # type: ignore[arg-type]  # scopes of credits are scopes
                found.append((self.key(line, subject, hold.at_s), line, amount))
        if hold.request_limit_nano is not None:
            found.append(
                (("cap/request", hold.request, -NEVER_S), Line(Budget(scope="request")), hold.request_limit_nano)
            )
        return found

    def key(self, line: Line, subject: str, at_s: int) -> Key:
        if line.window == "lifetime":
            return (line.id, subject, -NEVER_S)
        at_s = self.clocks[line.id] = max(at_s, self.clocks.get(line.id, -NEVER_S))
        start_s = (
            rolling_part(line.window, at_s)[0] if line.rolling else window_of(line.window, at_s, line.budget.zone)[0]
        )
        return (line.id, subject, start_s)

    def why_not(self, hold: Hold) -> str:
        """Why it does not fit; "" when it does. `unsure` then: of a rolling budget something was counted in what is the
        future after a restart with the clock set back, and whether it counts already is nobody's promise."""
        self.unsure = False
        for key, line, limit in self.path(hold):
            budget, used = line.budget, self.used(key, line)
            if not budget.hard:
                continue
            left = None if limit is None else limit - used["money"]
            if left is not None and hold.amount_nano > max(left, 0):
                return f"{key}: {hold.amount_nano} does not fit into {left}"
            for name, most, more in (
                ("steps", budget.steps, hold.steps),
                ("calls", budget.calls, 1),
                ("tokens", budget.tokens, hold.tokens),
                ("parallel", budget.parallel, 1),
            ):
                if most is not None and more and used[name] + more > most:
                    return f"{key}: {name} {used[name]} + {more} is more than {most}"
        return ""

    def used(self, key: Key, line: Line) -> dict[str, int]:
        """Summed up over every hold there ever was."""
        line_id, subject, start_s = key
        first_s = rolling_part(line.window, start_s)[1] if line.rolling else start_s
        used = dict.fromkeys(("money", "steps", "calls", "tokens", "parallel"), 0)
        for other, amount in self.variances.items():
            if other[:2] == key[:2] and first_s <= other[2] <= start_s:
                used["money"] += amount
        for known in self.holds.values():
            for other in known.keys:
                if other[:2] != (line_id, subject):
                    continue
                held = known.state in ("open", "suspense")
                used["parallel"] += held
                self.unsure = self.unsure or (line.rolling and other[2] > start_s)
                counts = first_s <= other[2] <= start_s
                if held and (counts or line.rolling):
                    used["money"] += known.hold.amount_nano
                    used["tokens"] += known.hold.tokens
                elif counts:
                    used["money"] += known.cost
                    used["tokens"] += known.tokens
                if counts and known.counted:
                    used["steps"] += known.hold.steps
                    used["calls"] += 1
        return used

    # -------------------------------------------------------------------------------------------- remembering

    def held(self, hold: Hold) -> None:
        keys = tuple(key for key, _, _ in self.path(hold))
        self.holds[hold.id] = Known(hold=hold, keys=keys, least=min(hold.least_nano, hold.amount_nano))

    def change_of(self, id: str, **changes: Any) -> None:
        self.holds[id] = msgspec.structs.replace(self.holds[id], **changes)

    def settled(self, id: str, kind: str, cost: int, tokens: int) -> None:
        known = self.holds.get(id)
        released = kind == "released"
        if known is not None and known.state in ("open", "suspense"):
            state = "released" if released else "settled"
            tokens, cost = (0, 0) if released else (tokens, cost)
            self.change_of(id, state=state, cost=cost, tokens=tokens, counted=not released)
        elif known is not None and known.state == "written off" and not released:
            self.change_of(id, state="settled", cost=cost)
        else:
            self.ignored += 1

    def corrected(self, id: str, cost: int) -> bool:
        known = self.holds.get(id)
        if known is None or known.state in ("open", "suspense"):
            return False
        self.change_of(id, state="settled", cost=cost)
        return True

    def state_of(self, row: HoldRow) -> str:
        return "written off" if row.state == "suspense" and row.closed_s else row.state


class File:
    """What is committed. `wrong` collects what the replay finds."""

    def __init__(self) -> None:
        self.accounts: dict[Key, Counts] = {}
        self.holds: dict[str, HoldRow] = {}
        self.posted: dict[Key, int] = {}  # recomputed from entries
        self.granted: dict[Key, int] = {}
        self.over: dict[Key, int] = {}  # by how much entries went beyond their holds
        self.pending: dict[Key, tuple[int, int, int]] = {}  # money, tokens, holds
        self.firsts: dict[tuple[str, Key], int] = {}  # entries of a hold on an account that are no correction
        self.commits = 0
        self.wrong: list[str] = []

    def closed(self, id: str) -> HoldRow | None:
        row = self.holds.get(id)
        return row if row is not None and (row.state in ("settled", "released") or row.closed_s) else None

    def open(self) -> list[HoldRow]:
        return [row for row in self.holds.values() if self.closed(row.id) is None]

    def commit(self, changes: Changes, hard: dict[str, bool]) -> None:
        self.commits += 1
        touched: set[Key] = set(changes.accounts)
        for row in changes.holds.values():
            touched.update(row.accounts)
            self._move(row)
        for entry in changes.entries:
            if entry.hold and entry.accounts != self.holds[entry.hold].accounts:
                self.wrong.append(f"I2: {entry.hold} is posted on {entry.accounts}, which it did not stand on")
            for account in entry.accounts:
                touched.add(account)
                self._enter(entry, account)
        self.accounts |= changes.accounts
        for key in touched:
            self.check(key, hard)

    def _enter(self, entry: Entry, account: Key) -> None:
        if entry.kind == "grant":
            self.granted[account] = self.granted.get(account, 0) + entry.amount_nano
            return
        self.posted[account] = self.posted.get(account, 0) + entry.amount_nano
        if entry.kind in ("overage", "correction", "variance"):
            excess = entry.amount_nano
        else:
            again = self.firsts[entry.hold, account] = self.firsts.get((entry.hold, account), 0) + 1
            if again > 1:
                self.wrong.append(f"I3: {entry.hold} was posted {again} times on {account}")
            excess = entry.amount_nano - self.holds[entry.hold].amount_nano
        self.over[account] = self.over.get(account, 0) + max(excess, 0)

    def _move(self, row: HoldRow) -> None:
        before = self.holds.get(row.id)
        if before is not None and self.closed(row.id) and not (row.state == "settled" or row == before):
            self.wrong.append(f"I3: {row.id} was {before.state} and is {row.state} again")
        held = before is not None and self.closed(row.id) is None
        self.holds[row.id] = row
        holds = self.closed(row.id) is None
        for key in row.accounts:
            money, tokens, count = self.pending.get(key, (0, 0, 0))
            sign = holds - held
            self.pending[key] = (money + sign * row.amount_nano, tokens + sign * row.tokens, count + sign)

    def check(self, key: Key, hard: dict[str, bool]) -> None:
        counts = self.accounts.get(key)
        if counts is None:
            self.wrong.append(f"I2: {key} is held or posted on, but there is no such account")
            return
        pending = (counts.pending_nano, counts.tokens_pending, counts.open)
        if pending != self.pending.get(key, (0, 0, 0)):
            self.wrong.append(f"I2: {key} has {pending} pending, its holds {self.pending.get(key)}")
        if counts.posted_nano != self.posted.get(key, 0):
            self.wrong.append(f"I2: {key} has {counts.posted_nano} posted, its entries {self.posted.get(key, 0)}")
        if counts.overage_nano != self.over.get(key, 0):
            self.wrong.append(f"I2: {key} has {counts.overage_nano} overage, its entries {self.over.get(key, 0)}")
        bound = self.granted.get(key, 0) if key[0].startswith("credit/") else counts.bound_nano
        if (
            bound is not None
            and hard.get(key[0], True)
            and "rolling" not in key[0]
            and not key[0].startswith("credit/")
        ):
            above = counts.posted_nano + pending[0] - bound - self.over.get(key, 0)
            if above > 0:
                self.wrong.append(f"I1: {key} is {above} above {bound}")
        if key[0].startswith("credit/") and counts.limit_nano != self.granted.get(key, 0):
            self.wrong.append(f"I2: {key} has a credit of {counts.limit_nano}, its grants are {self.granted.get(key)}")
