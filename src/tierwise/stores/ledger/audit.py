"""Whether a ledger's file is what it says: every law of money and every link of the chain, one sentence for each fault.

Reads only, one moment's state of the file, also while a gateway writes it; in bounded memory, however long the ledger
is. Knows no configuration: what an account was allowed stands in the account. What `prune` has let go of may be gone,
and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tierwise.stores.ledger import sql
from tierwise.stores.ledger.chain import NOTHING, chained, not_as_written
from tierwise.stores.ledger.file import RESTORE, State, open_reader, read_entries, read_state
from tierwise.stores.sqlite_file import unusable

if TYPE_CHECKING:
    import apsw

    from tierwise.stores.ledger.writer import Row

PAGE_ROWS = 2_000
WHOLE_BYTES_MAX = 32 << 20  # at a start, a larger file is looked at by its end alone
END_ENTRIES = 10_000


class Audit(msgspec.Struct):
    """What was looked at. `faults` is how many sentences were said."""

    entries: int = 0
    holds: int = 0
    accounts: int = 0
    faults: int = 0


def audit(path: Path, seen: Audit | None = None, vfs: str | None = None) -> Iterator[str]:
    """One sentence for each fault of a ledger's file; nothing when it is sound. `seen` is filled in as it goes.

    Raises ConfigError when there is no ledger that could be opened."""
    seen = seen if seen is not None else Audit()
    connection = open_reader(path, vfs)
    try:
        for fault in faults(connection, seen):
            seen.faults += 1
            yield fault
    finally:
        connection.close(True)


def faults(connection: apsw.Connection, seen: Audit) -> Iterator[str]:
    import apsw

    connection.execute("BEGIN")  # one moment's state of the file, whatever is written meanwhile
    try:
        yield from _pages(connection)
        state = read_state(connection)
        yield from _chain(connection, 0, NOTHING, state, seen)
        for statement, sentence in LAWS:
            try:
                yield from (sentence(row) for row in connection.execute(statement))
            except apsw.SQLError as error:
                yield f"the ledger cannot be summed up: {error}"
        for name in ("account", "hold"):
            setattr(seen, f"{name}s", connection.execute(f"SELECT count(*) FROM {name}").get)  # noqa: S608
    except (apsw.CorruptError, apsw.NotADBError, apsw.IOError, UnicodeDecodeError) as error:
        yield f"the file cannot be read further: {error}"
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def check_at_start(path: Path, connection: apsw.Connection) -> None:
    """A small ledger is audited whole, of a large one the end of its chain. Raises ConfigError with the first fault."""
    if path.stat().st_size <= WHOLE_BYTES_MAX:
        found = next(faults(connection, Audit()), None)
    else:
        state = read_state(connection)
        first = max(state.seq - END_ENTRIES, 0)
        before = connection.execute(sql.READ_HASH, (first,)).get if first else NOTHING
        found = next(_chain(connection, first, bytes(before or b""), state, Audit()), None)
    if found is not None:
        raise unusable(path, f"this ledger is not sound: {found}. Nothing can be promised about money; {RESTORE}")


def _pages(connection: apsw.Connection) -> Iterator[str]:
    for (verdict,) in connection.execute("PRAGMA integrity_check"):
        if verdict != "ok":
            yield f"the file is damaged: {verdict}"


def _chain(connection: apsw.Connection, after: int, before: bytes, state: State, seen: Audit) -> Iterator[str]:
    """Each entry's hash is that of its fields and of the hash before it."""
    seq = after
    while page := read_entries(connection, seq, PAGE_ROWS):
        for *fields, hash in page:
            if fields[0] != seq + 1:
                yield f"entries {seq + 1} to {fields[0] - 1} are missing"
            elif chained(before, tuple(fields)) != hash:
                yield not_as_written(fields[0], fields[2], fields[4])
            seq, before = fields[0], hash
            seen.entries += 1
    if (seq, before) != (state.seq, state.hash):
        yield f"the entries end at {seq} and not, as they did, at {state.seq}"


def _name(row: Row) -> str:
    line, subject, start_s = row[:3]
    window = f" from {start_s}" if isinstance(start_s, int) and start_s > 0 else ""
    return f"{line} {str(subject).replace(chr(31), '/')!r}{window}"


def _posted(row: Row) -> str:
    return f"{_name(row)}: posted {row[3]} n$, but its entries sum to {row[4]}"


def _credit(row: Row) -> str:
    return f"{_name(row)}: credit of {row[3]} n$, but its top-ups sum to {row[4]}"


def _pending(row: Row) -> str:
    return (
        f"{_name(row)}: {row[3]} n$ and {row[7]} tokens held by {row[5]} calls, "
        f"but its open holds are {row[6]} with {row[4]} n$ and {row[8]} tokens"
    )


def _above(row: Row) -> str:
    return f"{_name(row)}: {row[3]} nano-dollars above its limit and overage"


def _closed(row: Row) -> str:
    return (
        f"hold {row[0]!r} came to {row[1]} n$ on each of {row[2]} accounts, "
        f"but its entries sum to {row[3]}, posted on {row[4]}"
    )


def _no_hold(row: Row) -> str:
    return f"hold {row[0]!r} has entries and is not in the ledger"


def _pruned(row: Row) -> str:
    return (
        f"{row[0]} holds with {row[1]} n$ on all accounts were let go of, "
        f"but {row[2]} are gone, whose entries sum to {row[3]}"
    )


LAWS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    (sql.WRONG_POSTED, _posted),
    (sql.WRONG_CREDIT, _credit),
    (sql.WRONG_PENDING, _pending),
    (sql.ABOVE_LIMIT, _above),
    (sql.WRONG_CLOSED, _closed),
    (sql.NO_HOLD, _no_hold),
    (sql.WRONG_PRUNED, _pruned),
)
