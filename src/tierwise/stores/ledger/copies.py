"""A ledger's file, copied while it is written, and its entries, read out in order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tierwise.stores.ledger import sql
from tierwise.stores.ledger.file import entry_of, open_reader, read_entries
from tierwise.stores.ledger.rows import Entry
from tierwise.stores.sqlite_file import unusable

if TYPE_CHECKING:
    import apsw

PAGE_ROWS = 1_000


def backup_to(path: Path, to: Path, vfs: str | None = None) -> None:
    """One moment's state of the ledger as a file of its own, for its owner alone, on the disk when this returns. Raises
    ConfigError when there is a file already, or none can be made."""
    import apsw

    if to.exists():
        raise unusable(to, "there is a file already; name a new one for the backup")
    part = to.with_name(f"{to.name}.part")
    source = open_reader(path, vfs)
    try:
        part.unlink(missing_ok=True)
        part.touch(mode=0o600)
        source.execute("BEGIN")
        source.execute(
            sql.READ_STATE
        ).fetchall()  # from here on, what others write is not seen, and nothing starts anew
        with apsw.Connection(str(part)) as copy:
            with copy.backup("main", source, "main") as backup:
                backup.step()
            copy.execute(sql.RENAME_FILE)
        copy.pragma("journal_mode", "delete")  # one file, to be copied as one
        copy.close()
        _sync(part)
        part.rename(to)
        _sync(to.parent)
    except (apsw.Error, OSError) as error:
        part.unlink(missing_ok=True)
        raise unusable(to, f"the backup cannot be made ({error})") from None
    finally:
        source.close(True)


def entries_after(connection: apsw.Connection, seq: int) -> Iterator[tuple[int, Entry]]:
    """(number, entry), in order; each page is one look at the file, so nothing is kept open between them."""
    while page := read_entries(connection, seq, PAGE_ROWS):
        for row in page:
            seq, entry = entry_of(row)
            yield seq, entry


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
