"""Whether a hold fits under all of its accounts, and of several refusals the one to tell. `books` asks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from tierwise.core.budget import Budget, Denial, DenialCode, Hold
from tierwise.core.money import MAX_NANO
from tierwise.stores.ledger.accounts import Account, Standing
from tierwise.stores.ledger.lines import Pass

# The codes by how little waiting helps: the first that applies is told.
_ORDER: tuple[DenialCode, ...] = (
    "loop_stopped", "deadline_passed", "step_limit", "unbounded", "credit_exhausted", "budget_exceeded", "token_limit",
    "call_limit", "held_by_others", "parallel_limit",
)  # fmt: skip


class Refusal(msgspec.Struct, frozen=True):
    """One account's no. `left` orders refusals of the same kind: the least is told."""

    code: DenialCode
    standing: Standing
    left: int
    limit: int | None = None
    used: int | None = None


def reserved(hold: Hold, passed: Sequence[Pass]) -> int:
    """What is set aside for a call that has no worst case: the largest reserve on its path."""
    return max((hold.amount_nano, *(line.budget.reserve_nano or 0 for line, _ in passed)))


def fitting(hold: Hold, amount_nano: int, passed: Sequence[Pass]) -> tuple[Account, ...] | None:
    """The accounts that a hold is counted on, opened where they are new; None when one of them refuses it.

    Almost always each is all that counts for its subject, and says at a glance that there is room. Only of the others
    it is summed up what they stand at, and asked what they have against it."""
    found: list[Account] = []
    at_s = hold.at_s
    surely_nano = amount_nano if hold.bounded else math.inf  # no room is enough for what may come to anything
    for line, subject in passed:
        account = line.accounts.get(subject) if at_s < line.plain_s else None
        if account is not None:
            limit = account.limit_nano
            if not line.hard or (
                (limit is None or surely_nano <= limit - account.posted_nano - account.pending_nano)
                and (not line.counts or (not line.watches and _counts_fit(line.budget, account, hold)))
            ):
                if line.forgets:
                    line.accounts.move_to_end(subject)
                found.append(account)
                continue
        standing = line.standing(subject, at_s)
        if refusals(standing, hold, amount_nano):
            return None
        found.append(standing.account)
    return tuple(found)


def _counts_fit(budget: Budget, account: Account, hold: Hold) -> bool:
    """By its sums alone: what watches more than these is looked at more closely."""
    return (
        (budget.steps is None or account.steps + hold.steps <= budget.steps)
        and (budget.calls is None or account.calls < budget.calls)
        and (budget.tokens is None or account.tokens + account.tokens_pending + hold.tokens <= budget.tokens)
    )


def refusals(standing: Standing, hold: Hold, amount_nano: int) -> list[Refusal]:
    """Everything that one account has against a hold; [] when it fits. A soft budget has nothing against anything."""
    account = standing.account
    line = account.line
    budget = line.budget
    if not line.hard:
        return []
    limit = account.limit_nano
    left = None if limit is None else limit - standing.posted_nano - standing.pending_nano
    if not line.counts and (left is None or (hold.bounded and amount_nano <= left)):
        return []  # money is all that it counts, and there is enough of it
    found: list[Refusal] = []
    if left is not None and amount_nano > max(left, 0):
        code: DenialCode = "budget_exceeded"
        if amount_nano <= left + standing.pending_nano:  # once the open holds are given back
            code = "held_by_others"
        elif line.credit:
            code = "credit_exhausted"
        found.append(Refusal(code, standing, left))
    # What is prepaid pays for such a call only where some budget on the path says what it may hold.
    reserved = amount_nano > hold.amount_nano if line.credit else budget.reserve_nano is not None
    if left is not None and not hold.bounded and not reserved:
        found.append(Refusal("unbounded", standing, left))
    if budget.steps is not None:
        found += _beyond("step_limit", budget.steps, standing, standing.steps, hold.steps)
    if budget.calls is not None:
        found += _beyond("call_limit", budget.calls, standing, standing.calls, 1)
    if budget.tokens is not None:
        found += _beyond("token_limit", budget.tokens, standing, standing.tokens, hold.tokens)
    if budget.parallel is not None:
        found += _beyond("parallel_limit", budget.parallel, standing, line.at_once(account.subject), 1)
    if budget.deadline_s is not None and account.first_s and hold.at_s - account.first_s > budget.deadline_s:
        found.append(Refusal("deadline_passed", standing, 0, budget.deadline_s, hold.at_s - account.first_s))
    if budget.repeats is not None and hold.steps and hold.fingerprint:
        again = repeated(account.recent, hold.fingerprint)
        if again >= budget.repeats:
            found.append(Refusal("loop_stopped", standing, 0, budget.repeats, again))
    return found


def _beyond(code: DenialCode, most: int, standing: Standing, used: int, more: int) -> list[Refusal]:
    return [Refusal(code, standing, most - used, most, used)] if more and used + more > most else []


def repeated(recent: tuple[str, ...], fingerprint: str) -> int:
    """How often the same call was just made in a row; or, where nothing but two calls was made, in turn or each several
    times at once, how often both of them were."""
    own = others = row = 0
    other = ""
    for each in reversed(recent):
        if each == fingerprint:
            own += 1
            row += not others
        elif each == (other := other or each):
            others += 1
        else:
            break
    return max(row, min(own, others))


def without_last(recent: tuple[str, ...], fingerprint: str) -> tuple[str, ...]:
    """The last steps without the newest of this kind: its call was never made, so nobody repeated himself."""
    for place in range(len(recent) - 1, -1, -1) if fingerprint else ():
        if recent[place] == fingerprint:
            return recent[:place] + recent[place + 1 :]
    return recent


def denial(hold: Hold, amount_nano: int, standings: Sequence[Standing]) -> Denial:
    """Of all the accounts that say no, the one that waiting helps least, and among equals the one with the least left.

    `affordable_nano` is what every budget on the path would bear together; 0 where no amount is small enough."""
    refused = [found for each in standings for found in refusals(each, hold, amount_nano)]
    told = min(refused, key=lambda each: (_ORDER.index(each.code), each.left))
    account, line = told.standing.account, told.standing.account.line
    money = told.code in ("budget_exceeded", "held_by_others", "credit_exhausted")
    room = [left for each in standings if each.account.line.budget.hard and (left := each.left_nano) is not None]
    limited = account.limit_nano is not None
    return Denial(
        scope=line.owner,
        code=told.code,
        limit_nano=account.limit_nano,
        spent_nano=told.standing.posted_nano if limited else None,
        held_nano=told.standing.pending_nano if limited else None,
        resets_at_s=line.resets_at_s(hold.at_s),
        affordable_nano=max(min((MAX_NANO, *room)), 0) if money else 0,
        limit=told.limit,
        used=told.used,
    )
