"""A provider's bill beside our ledger: by day and model, to the nano-dollar, and the variances that would level them.

Pure: who reads the ledger and posts the variances is elsewhere (`bills` reads the provider's export). A variance is a
new entry on an account of its own: line `variance/PROVIDER`, subject `DAY MODEL`. What was posted before counts as
ours, also while it still waits for the gateway that writes the ledger, so posting the same bill again posts nothing,
and a later bill posts only what it adds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import msgspec

from tierwise.core.keys import Variance
from tierwise.core.money import NANO_PER_USD, dollars, usd_text
from tierwise.stores.ledger.bills import Bill, BillLine, day_of, day_text

WHOLE_DAY = "*"
ALL = ""  # the model of a bill that tells a day's money without saying whose
_DATED = re.compile(r"(?:-(?:20\d{2}-?\d{2}-?\d{2}|latest|preview))+$")


class Ours(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger has of one model on one day. `day`: days since 1970, UTC, when the calls began."""

    day: int
    model: str  # provider/name
    cost_nano: int = 0  # of closed calls, corrections included
    variance_nano: int = 0  # posted by earlier reconciliations
    calls: int = 0
    input_tokens: int = 0  # of delivered replies, cached included; from the journal
    output_tokens: int = 0

    @property
    def nano(self) -> int:
        return self.cost_nano + self.variance_nano


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """One day and model on both sides. `theirs_nano` None: the bill tells tokens and no money."""

    day: int
    model: str  # provider/name; ALL for a day as a whole
    ours_nano: int
    theirs_nano: int | None
    calls: int
    our_tokens: tuple[int, int]  # read, written
    their_tokens: tuple[int, int] | None

    @property
    def difference_nano(self) -> int | None:
        """Above zero when they bill more than we have."""
        return None if self.theirs_nano is None else self.theirs_nano - self.ours_nano


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a reconciliation found. `variances` are the rows that do not agree; posting each difference levels them."""

    provider: str
    rows: tuple[Compared, ...]
    unknown_models: tuple[str, ...]  # on the bill, and never called through this ledger
    missing_days: tuple[int, ...]  # we have calls, the bill says nothing of the day
    outside: int  # lines of the bill that are not of this period

    @property
    def ours_nano(self) -> int:
        """Of the days that the bill tells of."""
        return sum(row.ours_nano for row in self.rows)

    @property
    def theirs_nano(self) -> int | None:
        """None when the bill tells no money."""
        known = [row.theirs_nano for row in self.rows if row.theirs_nano is not None]
        return sum(known) if known or not self.rows else None

    @property
    def variances(self) -> tuple[Compared, ...]:
        return tuple(row for row in self.rows if row.difference_nano)


class _Sum:
    """What one day and model come to on both sides, while it is being added up."""

    def __init__(self) -> None:
        self.ours: list[Ours] = []
        self.usd = Fraction(0)
        self.listed = False
        self.read = self.written = 0

    def add(self, line: BillLine) -> None:
        self.listed = True
        self.usd += line.cost_usd or 0
        self.read += line.input_tokens
        self.written += line.output_tokens

    def compared(self, day: int, model: str, bill: Bill) -> Compared:
        """On a bill with money, a model that a day does not list was not billed on that day."""
        return Compared(
            day=day,
            model=model,
            ours_nano=sum(row.nano for row in self.ours),
            theirs_nano=_nano(self.usd) if bill.has_money else None,
            calls=sum(row.calls for row in self.ours),
            our_tokens=(sum(row.input_tokens for row in self.ours), sum(row.output_tokens for row in self.ours)),
            their_tokens=(self.read, self.written) if self.listed and bill.has_tokens else None,
        )


def compare(ours: Iterable[Ours], bill: Bill, provider: str, first_day: int, last_day: int) -> Report:
    """Both sides of the days first_day..last_day. A day that the bill does not mention is reported and not compared:
    that something is not told is no reason to call it nothing."""
    mine = [row for row in ours if first_day <= row.day <= last_day]
    lines = [line for line in bill.lines if first_day <= line.day <= last_day]
    whole = {line.day for line in lines if not line.model}  # nobody says whose: the day is compared as one
    names = {row.model for row in mine if row.calls}
    unknown: dict[str, None] = {}
    sums: dict[tuple[int, str], _Sum] = {}
    for line in lines:
        model = known_as(line.model, provider, names)
        if line.model and model not in names:
            unknown[model] = None
        sums.setdefault((line.day, ALL if line.day in whole else model), _Sum()).add(line)
    for row in mine:
        if row.day in bill.days:
            sums.setdefault((row.day, ALL if row.day in whole else row.model), _Sum()).ours.append(row)
    return Report(
        provider=provider,
        rows=tuple(sums[place].compared(*place, bill) for place in sorted(sums)),
        unknown_models=tuple(unknown),
        missing_days=tuple(sorted({row.day for row in mine if row.calls} - bill.days)),
        outside=len(bill.lines) - len(lines),
    )


def known_as(theirs: str, provider: str, names: Iterable[str]) -> str:
    """Our name for a model as the bill calls it: `gpt-4o-mini-2024-07-18, input` is `openai/gpt-4o-mini`, and
    `Claude Haiku 4.5` is `anthropic/claude-haiku-4-5`. What is none of `names` keeps its own, under the provider."""
    if not theirs:
        return ALL
    wanted = _plain(theirs.partition(",")[0])
    ours = {name: _plain(name.partition("/")[2]) for name in sorted(names)}
    for reading in (lambda name: name, lambda name: _DATED.sub("", name)):
        found = [name for name, plain in ours.items() if reading(plain) == reading(wanted)]
        if len(found) == 1:
            return found[0]
    return f"{provider}/{theirs}"


def line_of(provider: str) -> str:
    return f"variance/{provider}"


def subject_of(row: Compared) -> str:
    """The account of a row's variance, under the provider's line."""
    return f"{day_text(row.day)} {row.model or WHOLE_DAY}"


def place_of(subject: str) -> tuple[int, str]:
    """The (day, model) of such an account."""
    day, _, model = subject.partition(" ")
    return day_of(day), ALL if model == WHOLE_DAY else model


def note_of(row: Compared, source: str) -> str:
    """What stands beside a posted variance."""
    return f"{source}: billed {dollars(row.theirs_nano or 0)}, the ledger had {dollars(row.ours_nano)}"


def posted(report: Report, source: str, used: Iterable[str], at_s: int) -> tuple[Variance, ...]:
    """What levels the two. `used`: ids of earlier variances. An id is the account's and a number that rises there, so
    two who post at once have the same, and a bill that was taken back and is sent again has another."""
    counts = Counter(id.rpartition(" #")[0] for id in used)
    found = []
    for row in report.variances:
        account = f"{line_of(report.provider)} {subject_of(row)}"
        found.append(
            Variance(
                id=f"{account} #{counts[account] + 1}",
                line=line_of(report.provider),
                subject=subject_of(row),
                amount_nano=row.difference_nano or 0,
                note=note_of(row, source),
                at_s=at_s,
            )
        )
    return tuple(found)


def told(report: Report, source: str) -> dict[str, Any]:
    """The report as plain values, for a table or JSON."""
    return {
        "provider": report.provider,
        "source": source,
        "rows": [_told(row) for row in report.rows],
        "total": _money(report.ours_nano, report.theirs_nano),
        "variances": len(report.variances),
        "unknown_models": list(report.unknown_models),
        "missing_days": [day_text(day) for day in report.missing_days],
        "lines_outside_the_period": report.outside,
    }


def _told(row: Compared) -> dict[str, Any]:
    theirs = row.their_tokens
    return {
        "day": day_text(row.day),
        "model": row.model or None,
        "calls": row.calls,
        **_money(row.ours_nano, row.theirs_nano),
        "our_tokens": {"input": row.our_tokens[0], "output": row.our_tokens[1]},
        "their_tokens": None if theirs is None else {"input": theirs[0], "output": theirs[1]},
    }


def _money(ours: int, theirs: int | None) -> dict[str, Any]:
    """`share`: the difference as a share of what we have; None where we have nothing."""
    if theirs is None:
        return {"ours_nano": ours, "ours_usd": usd_text(ours), "theirs_nano": None, "theirs_usd": None}
    return {
        "ours_nano": ours,
        "ours_usd": usd_text(ours),
        "theirs_nano": theirs,
        "theirs_usd": usd_text(theirs),
        "difference_nano": theirs - ours,
        "difference_usd": usd_text(theirs - ours),
        "share": (theirs - ours) / ours if ours else None,
    }


def _plain(name: str) -> str:
    return re.sub(r"[\s._]+", "-", name.strip().casefold())


def _nano(usd: Fraction) -> int:
    """Rounded once, after everything of the day and model is summed up; halves to the even number."""
    return round(usd * NANO_PER_USD)
