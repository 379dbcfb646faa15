"""A ledger's file as the third schema had it: an entry for each account, in rows and in a chain of their own."""

from __future__ import annotations

from pathlib import Path

import apsw

from tierwise.stores.ledger import sql
from tierwise.stores.ledger.chain import NOTHING, chained
from tierwise.stores.ledger.file import entry_of

VERSION = 3
OLD_ENTRY = ("seq", "at_s", "hold", "line", "subject", "start_s", "amount_nano", "kind", "snapshot", "note", "hash")


def made_older(path: Path) -> None:
    """Today's file, closed by its ledger, as that version would have written it."""
    with apsw.Connection(":memory:") as before:
        sql.create_tables(before)
        (ddl,) = next(iter(before.execute("SELECT sql FROM sqlite_schema WHERE name = 'entry'")))
    before.close()
    with apsw.Connection(str(path)) as connection:
        rows, seq, hash = [], 0, NOTHING
        for row in connection.execute(f"SELECT {', '.join(sql.ENTRY)} FROM entry ORDER BY seq"):  # noqa: S608
            entry = entry_of(row)[1]
            for account in entry.accounts:
                seq += 1
                old = (
                    seq, entry.at_s, entry.hold, *account, entry.amount_nano, entry.kind, entry.snapshot, entry.note
                )  # fmt: skip
                hash = chained(hash, old)
                rows.append((*old, hash))
        connection.execute(f"DROP TABLE entry; {ddl}")
        connection.executemany(f"INSERT INTO entry ({', '.join(OLD_ENTRY)}) VALUES ({marks(OLD_ENTRY)})", rows)  # noqa: S608
        connection.execute("UPDATE state SET seq = ?, hash = ?", (seq, hash))
        connection.execute("DELETE FROM schema_version; INSERT INTO schema_version VALUES (?)", (VERSION,))
    connection.close()


def old_entries(path: Path) -> list[tuple[object, ...]]:
    """Without their hashes, of a file that was made older."""
    with apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY) as connection:
        found = list(connection.execute(f"SELECT {', '.join(OLD_ENTRY[:-1])} FROM entry ORDER BY seq"))  # noqa: S608
    connection.close()
    return found


def marks(columns: tuple[str, ...]) -> str:
    return ", ".join("?" * len(columns))
