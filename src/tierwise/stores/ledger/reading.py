"""What the books come to at one moment: the half of every ledger that changes nothing."""

from __future__ import annotations

from collections.abc import Callable

from tierwise.core.budget import Balance, Lambda, Rate
from tierwise.core.request import Hints, Payer
from tierwise.stores.ledger.books import Books
from tierwise.stores.ledger.lines import Way


def balances_of(way: Way, at_s: int) -> tuple[Balance, ...]:
    """Every budget and credit as it stands, in the order of the configuration."""
    return tuple([line.balance(subject, at_s) for line, subject in way.passed])


def rates_of(way: Way, at_s: int) -> list[Rate]:
    """Every hard limit on calls or tokens in a window. Every reply asks this, so no `Balance` is made for it."""
    return [line.rate(subject, at_s) for line, subject in way.rates]


def money_of(way: Way, at_s: int) -> Lambda:
    """λ is that of the dearest budget that a payer passes through; `causes` are those whose own λ is above 1. Every
    request asks this and `left_of`: no `Balance` is made for them, and what one account says is read from it."""
    value, left, tightest = 1.0, None, None
    causes: list[tuple[str, float]] = []
    shares: list[tuple[float, float | None]] = []
    for line, subject in way.money:
        account = line.accounts.get(subject) if at_s < line.plain_s else None
        if account is not None:
            used, limit = account.posted_nano + account.pending_nano, account.limit_nano or 0
        else:
            used, limit = line.drawn(subject, at_s)
        if used > (line.calm_nano if line.calm_s == at_s else line.calm_at(at_s)):  # mostly it is not
            price, plan = line.price_at(used, limit, at_s)
            if price > 1.0:
                causes.append((line.label, price))
                shares.append((used / (limit or 1), plan))
                value = max(value, price)
        if line.hard:
            room = limit - used if limit > used else 0
            if left is None or room < left:
                left, tightest = room, line
    return Lambda(value, tuple(causes), left, tightest.owner if tightest is not None else "", tuple(shares))


def left_of(way: Way, at_s: int) -> int | None:
    """The least that a hard budget or credit has left, below zero after an overage; None when none has a limit in
    money. A limit on single requests is none of them: it is new with each."""
    least: int | None = None
    for line, subject in way.lasting:
        account = line.accounts.get(subject) if at_s < line.plain_s else None
        if account is not None:
            left = (account.limit_nano or 0) - account.posted_nano - account.pending_nano
        else:
            used, limit = line.drawn(subject, at_s)
            left = limit - used
        if least is None or left < least:
            least = left
    return least


class Reads:
    """What a ledger answers from its books, by its clock."""

    books: Books
    _clock: Callable[[], float]

    def money(self, payer: Payer, hints: Hints, at_s: int) -> Lambda:
        return money_of(self.books.passes(payer, hints), at_s)

    def balances(self, payer: Payer, hints: Hints) -> tuple[Balance, ...]:
        return balances_of(self.books.passes(payer, hints), self._now_s())

    def rates(self, payer: Payer, hints: Hints) -> list[Rate]:
        return rates_of(self.books.passes(payer, hints), self._now_s())

    def left_nano(self, payer: Payer, hints: Hints) -> int | None:
        return left_of(self.books.passes(payer, hints), self._now_s())

    @property
    def revision(self) -> int:
        return self.books.revision

    def open_holds(self) -> int:
        return self.books.open_holds()

    def audit(self) -> tuple[str, ...]:
        """Of the books in memory; `audit` audits a file."""
        return self.books.audit()

    @property
    def ignored(self) -> int:
        return self.books.ignored

    @property
    def overages(self) -> int:
        return self.books.overages

    @property
    def overage_nano(self) -> int:
        return self.books.overage_nano

    def _now_s(self) -> int:
        return int(self._clock())
