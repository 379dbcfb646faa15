"""What a person asks of a ledger's file: is it sound, what is in it, a copy of it, and does it agree with a bill.

All of it only reads the ledger, and works while a gateway writes: a ledger has one writer, and whoever else wrote into
it would break what that one knows of it. What is posted is therefore left in the registry, and the gateway writes it,
at once or when it starts.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tierwise.core.errors import TierwiseError
from tierwise.core.keys import Variance
from tierwise.core.money import usd_text
from tierwise.stores.ledger.accounts import Key
from tierwise.stores.ledger.audit import audit
from tierwise.stores.ledger.bills import DAY_S, Bill, read_bill
from tierwise.stores.ledger.copies import backup_to
from tierwise.stores.ledger.file import LEDGER, Holder, beside, keys_of, open_reader
from tierwise.stores.ledger.reconcile import Ours, Report, compare, line_of, place_of, posted, told
from tierwise.stores.ledger.sql import READ_FACTS
from tierwise.stores.ledger.sqlite import MOST
from tierwise.stores.ledger.windows import NEVER_S
from tierwise.stores.registry import SqliteRegistry
from tierwise.stores.sqlite_file import explained

if TYPE_CHECKING:
    import apsw

PATIENCE_S = 3.0  # with a gateway that runs: it looks once a second

READ_ENTRIES = """
SELECT e.seq, e.at_s, e.kind, e.accounts, e.amount_nano, e.hold, coalesce(h.model, ''),
       coalesce(f.value, h.model, ''), e.snapshot, e.note, lower(hex(e.hash))
FROM entry e LEFT JOIN hold h ON h.id = e.hold LEFT JOIN fact f ON (f.kind, f.name) = ('billed', e.hold)
WHERE e.at_s >= ? ORDER BY e.seq
"""
# Calls that were made, by the day on which they began and the model whose price they had, as a provider's bill calls
# them. A released hold was none; an open one has no cost yet.
READ_CALLS = """
SELECT at_s / 86400, coalesce(f.value, model), sum(cost_nano), count(*)
FROM hold LEFT JOIN fact f ON (f.kind, f.name) = ('billed', hold.id)
WHERE closed_s > 0 AND state != 'released' AND at_s >= ?1 AND at_s < ?2 AND substr(model, 1, ?3) = ?4 GROUP BY 1, 2
UNION ALL
SELECT day, model, cost_nano, calls FROM pruned
WHERE day >= ?1 / 86400 AND day < ?2 / 86400 AND substr(model, 1, ?3) = ?4
"""
READ_OPEN = "SELECT count(*) FROM hold WHERE closed_s = 0 AND at_s >= ? AND at_s < ? AND substr(model, 1, ?) = ?"
READ_VARIANCES = """
SELECT j.value ->> 1, sum(amount_nano) FROM entry, json_each(accounts) j
WHERE kind = 'variance' AND j.value ->> 0 = ? GROUP BY 1
"""
READ_TOKENS = """
SELECT hour / 24, model, sum(input_tokens), sum(output_tokens) FROM rollups
WHERE hour >= ? AND hour < ? AND substr(model, 1, ?) = ? GROUP BY 1, 2
"""


class LedgerReports:
    """`journal` is asked for tokens, where it is there; in `registry` variances wait for the gateway. Raises
    ConfigError for a file that cannot be read."""

    def __init__(self, ledger: Path, journal: Path, registry: Path) -> None:
        self.path = ledger
        self._journal = journal
        self._registry = registry

    def audit(self) -> tuple[str, ...]:
        """Everything that is wrong with the file, one sentence each; () when it is sound."""
        return tuple(audit(self.path))

    def backup(self, to: Path) -> None:
        """A copy of what is committed by now."""
        backup_to(self.path, to)

    def entries(self, since_s: int = 0) -> Iterator[dict[str, Any]]:
        """Every posting since then, in the order they were made: each entry once for each of its accounts. Raises
        ConfigError for one that nobody can read."""
        with closing(open_reader(self.path)) as connection:
            for row in connection.execute(READ_ENTRIES, (since_s,)):
                try:
                    accounts = keys_of(row[3])
                except msgspec.MsgspecError as error:
                    raise explained(self.path, LEDGER, error) from None
                for account in accounts:
                    yield _line(row, account)

    def reconcile(self, data: bytes, provider: str, first_day: int, last_day: int, *, post: bool) -> dict[str, Any]:
        """A provider's bill beside the ledger, days since 1970. `post`: what does not agree is left for the gateway to
        write, as variance entries. `waiting` says how many it has not written yet. Raises ValueError for a bill that
        cannot be read, and Conflict when another is being posted at the same time."""
        bill = read_bill(data)
        if post and not bill.has_money:
            raise ValueError("it tells tokens and no money, so there is nothing to post; export the costs")
        # In this order: what reaches the ledger between the two reads is found there.
        known = [each for each in self._left() if each.line == line_of(provider)]
        report, done, found = self._compared(bill, provider, first_day, last_day, known)
        ids = {each.id for each in known}
        if not post:
            return {**found, "waiting": len(ids - done)}
        fresh = posted(report, bill.source, ids | done, int(time.time()))
        for each in fresh:
            if abs(each.amount_nano) > MOST:
                raise TierwiseError(f"{each.subject}: a difference of {each.amount_nano} n$ cannot be posted")
        if fresh:
            with closing(SqliteRegistry(self._registry)) as registry:
                registry.add_variances(fresh)
        return {**found, "posted": len(fresh), "waiting": self._waiting(ids | {each.id for each in fresh})}

    def _left(self) -> tuple[Variance, ...]:
        """What was ever left for the gateway."""
        if not self._registry.is_file():
            return ()
        with closing(SqliteRegistry(self._registry)) as registry:
            return registry.read().variances

    def _waiting(self, ids: set[str]) -> int:
        """How many of these the gateway has not written. One that runs is given the time to."""
        until = time.monotonic() + (PATIENCE_S if self._may_be_held() else 0.0)
        while True:
            with closing(open_reader(self.path)) as connection:
                left = ids - _done(connection)
            if not left or time.monotonic() >= until:
                return len(left)
            time.sleep(PATIENCE_S / 60)

    def _may_be_held(self) -> bool:
        """Whether a gateway may be running. The lock itself is not tried: that would keep one out that starts now."""
        try:
            holder = msgspec.json.decode(beside(self.path, "lock").read_bytes().rstrip(b"\0 \n") or b"{}", type=Holder)
            if holder.host == socket.gethostname():
                if holder.pid in (0, os.getpid()):
                    return False
                os.kill(holder.pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return False
        except (OSError, msgspec.MsgspecError):
            return True
        return True

    def _compared(
        self, bill: Bill, provider: str, first_day: int, last_day: int, known: list[Variance]
    ) -> tuple[Report, set[str], dict[str, Any]]:
        """(what was found, the ids of all variances that the ledger has, the same as plain values)"""
        start = f"{provider}/"
        span = (first_day * DAY_S, (last_day + 1) * DAY_S, len(start), start)
        with closing(open_reader(self.path)) as connection, connection:  # as of one moment
            calls = [
                Ours(day=day, model=model, cost_nano=cost, calls=count)
                for day, model, cost, count in connection.execute(READ_CALLS, span)
            ]
            open_calls = connection.execute(READ_OPEN, span).get
            amounts: list[tuple[Any, ...]] = connection.execute(READ_VARIANCES, (line_of(provider),)).fetchall()
            done = _done(connection)
        amounts += [(each.subject, each.amount_nano) for each in known if each.id not in done]
        variances = [
            Ours(day=day, model=model, variance_nano=amount)
            for (day, model), amount in ((place_of(subject), amount) for subject, amount in amounts)
        ]
        report = compare((*calls, *variances, *self._tokens(span)), bill, provider, first_day, last_day)
        return report, done, {**told(report, bill.source), "open_calls": open_calls}

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


def _done(connection: apsw.Connection) -> set[str]:
    """The ids of the variances that the ledger has."""
    return {name for name, _ in connection.execute(READ_FACTS, ("variance",))}


def _line(row: tuple[Any, ...], account: Key) -> dict[str, Any]:
    """Of the columns of READ_ENTRIES, on one of its accounts."""
    seq, at_s, kind, _, amount, hold, model, billed, snapshot, note, hash = row
    line, subject, start_s = account
    return {
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
        "billed": billed,
        "snapshot": snapshot,
        "note": note,
        "hash": hash,
    }


def _time(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
