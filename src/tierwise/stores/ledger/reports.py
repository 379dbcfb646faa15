"""What a person asks of a ledger's file: is it sound, what is in it, a copy of it, and does it agree with a bill.

All but a posting only reads, and works while a gateway writes. A posting needs the file for itself: the ledger has one
writer, and whoever else wrote into it would break what that one knows of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tierwise.core.errors import ConfigError, TierwiseError
from tierwise.core.money import usd_text
from tierwise.stores.ledger.audit import audit
from tierwise.stores.ledger.bills import DAY_S, Bill, read_bill
from tierwise.stores.ledger.copies import backup_to
from tierwise.stores.ledger.file import open_reader
from tierwise.stores.ledger.reconcile import Ours, Report, compare, line_of, note_of, place_of, subject_of, told
from tierwise.stores.ledger.sqlite import SqliteLedger
from tierwise.stores.ledger.windows import NEVER_S

READ_ENTRIES = """
SELECT e.seq, e.at_s, e.kind, e.line, e.subject, e.start_s, e.amount_nano, e.hold, coalesce(h.model, ''), e.snapshot,
       e.note, lower(hex(e.hash))
FROM entry e LEFT JOIN hold h ON h.id = e.hold WHERE e.at_s >= ? ORDER BY e.seq
"""
# Calls that were made, by the day on which they began. A released hold was none; an open one has no cost yet.
READ_CALLS = """
SELECT at_s / 86400, model, sum(cost_nano), count(*) FROM hold
WHERE closed_s > 0 AND state != 'released' AND at_s >= ? AND at_s < ? AND substr(model, 1, ?) = ? GROUP BY 1, 2
"""
READ_OPEN = "SELECT count(*) FROM hold WHERE closed_s = 0 AND at_s >= ? AND at_s < ? AND substr(model, 1, ?) = ?"
READ_VARIANCES = """
SELECT subject, sum(amount_nano) FROM entry WHERE kind = 'variance' AND line = ? GROUP BY subject
"""
READ_TOKENS = """
SELECT hour / 24, model, sum(input_tokens), sum(output_tokens) FROM rollups
WHERE hour >= ? AND hour < ? AND substr(model, 1, ?) = ? GROUP BY 1, 2
"""


class LedgerReports:
    """`journal` is asked for tokens, where it is there. Raises ConfigError for a file that cannot be read."""

    def __init__(self, ledger: Path, journal: Path) -> None:
        self.path = ledger
        self._journal = journal

    def audit(self) -> tuple[str, ...]:
        """Everything that is wrong with the file, one sentence each; () when it is sound."""
        return tuple(audit(self.path))

    def backup(self, to: Path) -> None:
        """A copy of what is committed by now."""
        backup_to(self.path, to)

    def entries(self, since_s: int = 0) -> Iterator[dict[str, Any]]:
        """Every entry since then, in the order they were posted."""
        with closing(open_reader(self.path)) as connection:
            for row in connection.execute(READ_ENTRIES, (since_s,)):
                seq, at_s, kind, line, subject, start_s, amount, hold, model, snapshot, note, hash = row
                yield {
                    "seq": seq,
                    "at": _time(at_s),
                    "kind": kind,
                    "account": line,
                    "subject": subject.replace("\x1f", "/"),
                    "window_starts_at": None if start_s == -NEVER_S else _time(start_s),
                    "amount_nano": amount,
                    "amount_usd": usd_text(amount),
                    "hold": hold,
                    "model": model,
                    "snapshot": snapshot,
                    "note": note,
                    "hash": hash,
                }

    def reconcile(self, data: bytes, provider: str, first_day: int, last_day: int, *, post: bool) -> dict[str, Any]:
        """A provider's bill beside the ledger, days since 1970. `post`: what does not agree becomes variance entries.
        Raises ValueError for a bill that cannot be read."""
        bill = read_bill(data)
        if post:
            return asyncio.run(self._posted(bill, provider, first_day, last_day))
        return self._compared(bill, provider, first_day, last_day)[1]

    async def _posted(self, bill: Bill, provider: str, first_day: int, last_day: int) -> dict[str, Any]:
        if not bill.has_money:
            raise ValueError("it tells tokens and no money, so there is nothing to post; export the costs")
        try:
            ledger = SqliteLedger(self.path)
        except ConfigError as error:
            raise TierwiseError(
                "nothing was posted: a ledger has one writer, so a gateway that runs on it must be stopped first "
                f"(`reconcile` without --post does not mind it). {error}"
            ) from None
        try:
            # Compared anew, now that nobody else writes.
            report, found = self._compared(bill, provider, first_day, last_day)
            for row in report.variances:
                note = note_of(row, bill.source)
                if not await ledger.vary(line_of(provider), subject_of(row), row.difference_nano or 0, note):
                    raise TierwiseError(f"{subject_of(row)}: a difference of {row.difference_nano} n$ cannot be posted")
        finally:
            await ledger.close()
        return {**found, "posted": len(report.variances)}

    def _compared(self, bill: Bill, provider: str, first_day: int, last_day: int) -> tuple[Report, dict[str, Any]]:
        start = f"{provider}/"
        span = (first_day * DAY_S, (last_day + 1) * DAY_S, len(start), start)
        with closing(open_reader(self.path)) as connection:
            calls = [
                Ours(day=day, model=model, cost_nano=cost, calls=count)
                for day, model, cost, count in connection.execute(READ_CALLS, span)
            ]
            open_calls = connection.execute(READ_OPEN, span).get
            variances = [
                Ours(day=place[0], model=place[1], variance_nano=amount)
                for subject, amount in connection.execute(READ_VARIANCES, (line_of(provider),))
                if (place := place_of(subject))
            ]
        report = compare((*calls, *variances, *self._tokens(span)), bill, provider, first_day, last_day)
        return report, {**told(report, bill.source), "open_calls": open_calls}

    def _tokens(self, span: tuple[int, int, int, str]) -> list[Ours]:
        """Of delivered replies; none where the journal is not there."""
        import apsw

        if not self._journal.is_file():
            return []
        first_s, after_s, *model = span
        with closing(apsw.Connection(str(self._journal), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            connection.set_busy_timeout(1_000)
            rows = connection.execute(READ_TOKENS, (first_s // 3_600, after_s // 3_600, *model))
            return [Ours(day=day, model=name, input_tokens=read, output_tokens=w) for day, name, read, w in rows]


def _time(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
