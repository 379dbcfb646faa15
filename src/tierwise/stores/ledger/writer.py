"""The one thread that writes the durable ledger: a batch is a transaction, and its answer comes after COMMIT.

It takes what it is given and never decides about money. All of a batch is written or none; after a fault the file is
opened anew and asked whether the batch is in it. Rows come ready to bind, many in a statement, so that this thread
and the event loop seldom wait for each other.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import msgspec

from tierwise.core.errors import ConfigError
from tierwise.stores.ledger import sql
from tierwise.stores.ledger.file import Lock, Reserve, log_of, open_writer, read_state
from tierwise.stores.ledger.prune import Pruner

if TYPE_CHECKING:
    import apsw

Row = tuple[object, ...]
IDLE_S = 0.05  # without a batch for so long, there is time to prune
WATCH_S = 20.0  # how often the files are looked after when nobody writes

log = logging.getLogger(__name__)


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """One commit, ready to bind. `number` counts them; `seq` and `hash` are those of the last entry then."""

    number: int
    seq: int
    hash: bytes
    accounts: Sequence[Row] = ()
    holds: Sequence[Row] = ()
    entries: Sequence[Row] = ()
    requests: Sequence[Row] = ()
    facts: Sequence[Row] = ()
    undone_holds: Sequence[Row] = ()
    undone_requests: Sequence[Row] = ()
    forget_requests_s: int = 0  # 0: forget none
    prune_s: int = 0  # what ended before this is pruned once this is written; 0: nothing more


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
        self._log: os.stat_result | None = None
        self._connection: apsw.Connection | None = open_writer(path, vfs)
        self.state = read_state(self._connection)
        self._opened = path.stat() if vfs is None else None  # what another file system keeps has no inode here
        self._note_log()
        self._pruner = Pruner()
        self.on_lost: Callable[[str], None] = lambda why: None  # called in this thread when nobody writes
        self._queue: SimpleQueue[tuple[Rows, Callable[[Written], None]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tierwise-ledger", daemon=True)

    def last_at_s(self) -> int | None:
        """When the last entry was posted."""
        found: int | None = self._connection.execute(sql.READ_LAST_AT).get if self._connection is not None else None
        return found

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
        self._log = None  # the last who closes a ledger moves its log into it

    # -------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=IDLE_S if self._pruner.is_busy else WATCH_S)
            except Empty:
                if why := self._lost():
                    self.on_lost(why)
                self._prune()
                continue
            if item is None:
                self.let_go()
                return
            rows, done = item
            done(self.write(rows))
            if self._pruner.is_due():
                self._prune()

    def _prune(self) -> None:
        """One piece. What cannot be done now is left for the next round; whatever it was, the thread lives on."""
        if not self._pruner.is_busy:
            return
        try:
            if self._connection is None or self._lost():
                self._pruner.stop()
            else:
                self._pruner.piece(self._connection)
        except Exception as error:
            self._pruner.stop()
            self.let_go()  # and with it the half of a commit
            log.warning("ledger: %s: what is long past cannot be deleted: %s", self.path, error)

    def _lost(self) -> str:
        """Why nobody may write any more. What a lost log holds is moved to where it is found again."""
        why = self._lock.lost(self._opened, self._log)
        if why and self._connection is not None and not self._lock.lost(self._opened):
            try:
                self._moved_on(self._connection)
            except Exception as error:
                return f"{log_of(self.path).name} was deleted, and what was in it cannot be saved: {error}"
        return why

    def _moved_on(self, connection: apsw.Connection) -> None:
        """From the log into the file itself."""
        import apsw

        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_FULL)

    def _note_log(self) -> None:
        """Kept as long as any connection of this process is open: the one that reads is."""
        path = log_of(self.path)
        if self._vfs is None:
            self._log = path.stat() if path.exists() else None  # a disk that cannot have one is served without

    def write(self, rows: Rows) -> Written:
        """One transaction. Never raises: whatever it was, the thread lives on and the next batch is tried."""
        try:
            if why := self._lost():
                return Written(why, True)  # and nothing is opened anew: it would be another ledger
            if self._connection is None:
                self._connection = open_writer(self.path, self._vfs, checked=False)
                self._note_log()
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
        put_many(connection, sql.put_facts, rows.facts)
        if rows.forget_requests_s:
            connection.execute(sql.FORGET_REQUESTS, (rows.forget_requests_s,))
        connection.execute(sql.PUT_STATE, (rows.number, rows.seq, rows.hash))
        connection.execute("COMMIT")

    def _acknowledged(self, rows: Rows) -> Written:
        self.commits += 1
        if rows.prune_s:
            self._pruner.begin(rows.prune_s)
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
                self._moved_on(self._connection)
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
        connection.execute(statement(len(some)), list(chain.from_iterable(some)))


def _free_bytes(path: Path) -> int:
    try:
        found = os.statvfs(path.parent)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize
