"""The one thread that writes the durable ledger: a batch is a transaction, and its answer comes after COMMIT.

It takes what it is given and never decides about money. All of a batch is written or none; after a fault the file is
opened anew and asked whether the batch is in it. Rows come ready to bind, many in a statement, so that this thread
and the event loop seldom wait for each other.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import msgspec

from tierwise.core.errors import ConfigError
from tierwise.stores.ledger import sql
from tierwise.stores.ledger.file import Lock, Reserve, open_writer, read_state

if TYPE_CHECKING:
    import apsw

Row = tuple[object, ...]


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """One commit, ready to bind. `number` counts them; `seq` and `hash` are those of the last entry then."""

    number: int
    seq: int
    hash: bytes
    accounts: Sequence[Row] = ()
    holds: Sequence[Row] = ()
    entries: Sequence[Row] = ()
    requests: Sequence[Row] = ()
    undone_holds: Sequence[Row] = ()
    undone_requests: Sequence[Row] = ()
    forget_requests_s: int = 0  # 0: forget none


class Written(msgspec.Struct, frozen=True):
    """What became of a batch. `why`: "" when it is on the disk. `reserved`: there is room to settle on a full disk."""

    why: str
    reserved: bool
    full: bool = False


class Writer:
    """Raises ConfigError when the file cannot be used."""

    def __init__(self, path: Path, lock: Lock, reserve: Reserve, vfs: str | None = None) -> None:
        self.path = path
        self.commits = 0
        self._lock = lock
        self.reserve = reserve
        self._vfs = vfs
        self._connection: apsw.Connection | None = open_writer(path, vfs)
        self.state = read_state(self._connection)
        self._opened = path.stat() if vfs is None else None  # what another file system keeps has no inode here
        self._queue: SimpleQueue[tuple[Rows, Callable[[Written], None]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tierwise-ledger", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, rows: Rows, done: Callable[[Written], None]) -> None:
        """`done` is called in the writer's thread."""
        self._queue.put((rows, done))

    def stop(self) -> None:
        """Write what was put, let go of the file, and wait for that."""
        self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join()
        self.let_go()

    # -------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if item is None:
                self.let_go()
                return
            rows, done = item
            done(self.write(rows))

    def write(self, rows: Rows) -> Written:
        """One transaction. Never raises: whatever it was, the thread lives on and the next batch is tried."""
        try:
            if why := self._lock.lost(self._opened):
                return Written(why, True)  # and nothing is opened anew: it would be another ledger
            if self._connection is None:
                self._connection = open_writer(self.path, self._vfs, checked=False)
            self._commit(self._connection, rows)
        except Exception as error:
            return self._recover(rows, error)
        return self._acknowledged(rows)

    def _commit(self, connection: apsw.Connection, rows: Rows) -> None:
        connection.execute("BEGIN IMMEDIATE")
        put_many(connection, sql.drop_holds, rows.undone_holds)
        put_many(connection, sql.drop_requests, rows.undone_requests)
        put_many(connection, sql.put_holds, rows.holds)
        put_many(connection, sql.put_accounts, rows.accounts)
        put_many(connection, sql.add_entries, rows.entries)
        put_many(connection, sql.put_requests, rows.requests)
        if rows.forget_requests_s:
            connection.execute(sql.FORGET_REQUESTS, (rows.forget_requests_s,))
        connection.execute(sql.PUT_STATE, (rows.number, rows.seq, rows.hash))
        connection.execute("COMMIT")

    def _acknowledged(self, rows: Rows) -> Written:
        self.commits += 1
        try:
            self._lock.acknowledge(self.state.file, rows.number)
        except OSError:  # a full disk cannot take it; it is older than the ledger then, which is no fault
            return Written("", self.reserve.make())
        return Written("", self.reserve.make())

    def _recover(self, rows: Rows, error: Exception) -> Written:
        """After a fault: nothing that the connection remembers is believed. Was the batch written all the same?"""
        import apsw

        self.let_go()
        full = isinstance(error, apsw.FullError) or _free_bytes(self.path) < self.reserve.size_bytes // 4
        if full:
            self.reserve.give_up()
        try:
            self._connection = open_writer(self.path, self._vfs, checked=False)
            if read_state(self._connection).batch >= rows.number:
                # It is in the file, but the disk may never have been told to keep it: moved on from the log, it has.
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_FULL)
                return self._acknowledged(rows)
        except (apsw.Error, ConfigError, OSError, ValueError):
            self.let_go()  # the next batch opens it anew; what is in it then is the same, for writing twice is harmless
        return Written(f"{type(error).__name__}: {error}", not full, full)

    def close(self, force: bool = True) -> None:
        """Of a thread that was never started, or has stopped."""
        self.let_go()

    def let_go(self) -> None:
        if self._connection is not None:
            self._connection.close(True)
            self._connection = None


def put_many(connection: apsw.Connection, statement: Callable[[int], str], rows: Sequence[Row]) -> None:
    for start in range(0, len(rows), sql.MANY):
        some = rows[start : start + sql.MANY]
        connection.execute(statement(len(some)), [value for row in some for value in row])


def _free_bytes(path: Path) -> int:
    try:
        found = os.statvfs(path.parent)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize
