"""A store's file: opened, checked, brought to its schema, or refused with what a person can do about it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import msgspec

from tierwise.core.errors import ConfigError, Problem
from tierwise.stores import journal_sql as sql

if TYPE_CHECKING:
    import apsw

BUSY_MS = 5_000  # how long to wait for another process that writes
CHECK_BYTES_MAX = 64 << 20  # a larger file is not read through at every start
WAL_BYTES_KEPT = 64 << 20
STATEMENTS_KEPT = 400  # prepared ones, of every number of rows that a statement may have


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """What a file is: the word for it in errors, its schema, and what a commit costs and promises."""

    noun: str
    schema: ModuleType  # with MIGRATIONS; the version is how many of them a file has seen
    synchronous: str  # "full": a commit survives a power cut
    anew: str  # what to do with a file that is not sound
    busy_ms: int = BUSY_MS
    checkpoint_bytes: int = 4 << 20  # of the -wal, after which it is moved into the file
    page_bytes: int = 4_096  # of a new file; an old one keeps its own


JOURNAL = Kind(
    noun="journal",
    schema=sql,
    synchronous="normal",
    anew=(
        "move the file away, with its -wal and -shm if it has them, and a new one is made, or put a backup in its place"
    ),
    # A record has some 2,700 bytes. With five to a page instead of one the file is a fifth smaller, and to write one
    # takes 6 µs of CPU instead of 12. One that is written alone costs the -wal 68 kB and not 19; there are five commits
    # a second at most.
    page_bytes=16_384,
    checkpoint_bytes=8 << 20,
)


def open_file(path: Path, kind: Kind = JOURNAL, vfs: str | None = None, *, checked: bool = True) -> apsw.Connection:
    """For reading and writing, readable to its owner alone. `checked`: every page is looked at, unless it is too large
    for that. Raises ConfigError."""
    import apsw

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise unusable(path, f"this is no file; name a file for the {kind.noun}")
        # Made before SQLite sees it, for SQLite would ask the umask who may read it. Its -wal and -shm take after it.
        path.touch(mode=0o600, exist_ok=True)
        path.chmod(0o600)
    except OSError as error:
        what = f"the {kind.noun} cannot be made there ({error}); give a folder that this user may write to"
        raise unusable(path, what) from None
    connection = None
    try:
        connection = apsw.Connection(str(path), vfs=vfs, statementcachesize=STATEMENTS_KEPT)
        connection.set_busy_timeout(kind.busy_ms)
        if checked and path.stat().st_size <= CHECK_BYTES_MAX:
            _check(connection)
        connection.pragma("page_size", kind.page_bytes)
        _version(connection, path, kind)  # a file that is not for us stays as it is, its journal mode too
        write_ahead(connection, kind.busy_ms)
        connection.pragma("synchronous", kind.synchronous)
        pages = kind.checkpoint_bytes // int(str(connection.pragma("page_size")))
        connection.pragma("wal_autocheckpoint", pages)
        connection.pragma("journal_size_limit", WAL_BYTES_KEPT)
        _migrate(connection, path, kind)
        # What undoes one statement: of one with many rows SQLite would make a file of its own for it, in each commit.
        connection.pragma("temp_store", "memory")
    except (apsw.Error, ConfigError) as error:
        if connection is not None:
            connection.close(True)
        raise explained(path, kind, error) from None
    return connection


@contextmanager
def transaction(connection: apsw.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """All of a block or none of it; `kind`: how SQLite is to lock the file. By statements, during which Python's other
    threads run: `with connection` stops them until the disk has answered, 15 ms when a commit moves the log into the
    file."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has rolled back by itself
            connection.execute("ROLLBACK")
        raise


@contextmanager
def savepoint(connection: apsw.Connection) -> Iterator[None]:
    """All of a block within a transaction, or none of it."""
    connection.execute("SAVEPOINT part")
    try:
        yield
        connection.execute("RELEASE part")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK TO part; RELEASE part")
        raise


def write_ahead(connection: apsw.Connection, busy_ms: int) -> None:
    """SQLite does not wait for the lock that this change needs: several processes that make a file at once would wait
    for each other for ever. So the one that comes too late asks again."""
    import apsw

    until = time.monotonic() + busy_ms / 1_000
    while True:
        try:
            connection.pragma("journal_mode", "wal")
        except apsw.BusyError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.005)
        else:
            return


def _check(connection: apsw.Connection) -> None:
    import apsw

    verdict = connection.execute("PRAGMA quick_check(1)").get
    if verdict != "ok":
        raise apsw.CorruptError(str(verdict))


def _migrate(connection: apsw.Connection, path: Path, kind: Kind) -> None:
    """Bring the file to this schema. Each migration is one transaction with its version: old or new, never half."""
    migrations = kind.schema.MIGRATIONS
    known = len(migrations)
    while True:
        # Taken for writing before the version is read: two processes that start together migrate once.
        with transaction(connection):
            version = _version(connection, path, kind)
            if version < known:
                migrations[version](connection)
                connection.execute(sql.ADD_VERSION, (version + 1,))
        if version == known:
            return


def _version(connection: apsw.Connection, path: Path, kind: Kind) -> int:
    """How many migrations the file has seen; 0 for a new one. Asks the file, not what SQLite remembers of it. Raises
    ConfigError for a file of another program or of a newer version."""
    tables = {name for (name,) in connection.execute(sql.READ_TABLES)}
    if tables and "schema_version" not in tables:
        raise unusable(path, f"this is the database of another program; name another file for the {kind.noun}")
    version, known = int(connection.execute(sql.READ_VERSION).get or 0) if tables else 0, len(kind.schema.MIGRATIONS)
    if version > known:
        what = (
            f"a newer Tierwise has written this {kind.noun} (schema {version}, this one knows {known}); "
            "upgrade, or name another file"
        )
        raise unusable(path, what)
    return version


def explained(path: Path, kind: Kind, error: apsw.Error | msgspec.MsgspecError | ConfigError) -> ConfigError:
    """What reading a file has come to, with what to do about it."""
    import apsw

    match error:
        case ConfigError():
            return error
        case apsw.NotADBError() | apsw.CorruptError() | msgspec.MsgspecError():
            what = f"this is no sound {kind.noun} ({error}); {kind.anew}"
        case _:
            what = (
                f"the {kind.noun} cannot be opened ({error}); is the disk full, or does another program hold the file?"
            )
    return unusable(path, what)


def is_there(path: Path, own: os.stat_result) -> bool:
    """Whether the file that was opened still has its name."""
    try:
        return os.path.samestat(os.stat(path), own)
    except OSError:
        return False


def unusable(path: Path, what: str) -> ConfigError:
    return ConfigError((Problem(where=str(path), what=what),))
