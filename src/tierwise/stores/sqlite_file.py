"""The journal's file: opened, checked, brought to this schema, or refused with what a person can do about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tierwise.core.errors import ConfigError, Problem
from tierwise.stores import journal_sql as sql

if TYPE_CHECKING:
    import apsw

BUSY_MS = 5_000  # how long to wait for another process that writes
CHECK_BYTES_MAX = 64 << 20  # a larger file is not read through at every start
WAL_BYTES_KEPT = 64 << 20


def open_file(path: Path) -> apsw.Connection:
    import apsw

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise unusable(path, "this is no file; name a file for the journal")
        # Made before SQLite sees it, for SQLite would ask the umask who may read it. Its -wal and -shm take after it.
        path.touch(mode=0o600, exist_ok=True)
        path.chmod(0o600)
    except OSError as error:
        what = f"the journal cannot be made there ({error}); give a folder that this user may write to"
        raise unusable(path, what) from None
    connection = None
    try:
        connection = apsw.Connection(str(path))
        connection.set_busy_timeout(BUSY_MS)
        if path.stat().st_size <= CHECK_BYTES_MAX:
            _check(connection)
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "normal")
        connection.pragma("journal_size_limit", WAL_BYTES_KEPT)
        _migrate(connection, path)
    except (apsw.Error, ConfigError) as error:
        if connection is not None:
            connection.close()
        raise _explained(path, error) from None
    return connection


def _check(connection: apsw.Connection) -> None:
    import apsw

    verdict = connection.execute("PRAGMA quick_check(1)").get
    if verdict != "ok":
        raise apsw.CorruptError(str(verdict))


def _migrate(connection: apsw.Connection, path: Path) -> None:
    """Bring the file to this schema. Each migration is one transaction with its version: old or new, never half."""
    known = len(sql.MIGRATIONS)
    while True:
        # Taken for writing before the version is read: two processes that start together migrate once.
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = _version(connection, path)
            if version < known:
                sql.MIGRATIONS[version](connection)
                connection.execute(sql.ADD_VERSION, (version + 1,))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # a full disk has rolled back by itself
                connection.execute("ROLLBACK")
            raise
        if version > known:
            what = (
                f"a newer Tierwise has written this journal (schema {version}, this one knows {known}); "
                "upgrade, or name another file"
            )
            raise unusable(path, what)
        if version == known:
            return


def _version(connection: apsw.Connection, path: Path) -> int:
    """How many migrations the file has seen; 0 for a new one. Asks the file, not what SQLite remembers of it."""
    tables = {name for (name,) in connection.execute(sql.READ_TABLES)}
    if tables and "schema_version" not in tables:
        raise unusable(path, "this is the database of another program; name another file for the journal")
    return int(connection.execute(sql.READ_VERSION).get or 0) if tables else 0


def _explained(path: Path, error: apsw.Error | ConfigError) -> ConfigError:
    import apsw

    match error:
        case ConfigError():
            return error
        case apsw.NotADBError() | apsw.CorruptError():
            what = (
                f"this is no sound journal ({error}); move the file away, with its -wal and -shm if it has them, and a "
                "new one is made, or put a backup in its place"
            )
        case _:
            what = f"the journal cannot be opened ({error}); is the disk full, or does another program hold the file?"
    return unusable(path, what)


def unusable(path: Path, what: str) -> ConfigError:
    return ConfigError((Problem(where=str(path), what=what),))
