"""The durable ledger's files: the ledger, the lock that keeps a second process out, and the reserve for a full disk.

`ledger.sqlite` is the books. `ledger.sqlite.lock` is held by the one process that writes them, and remembers the last
commit: a ledger that is behind it has lost its end. `ledger.sqlite.reserve` only takes up room; it is given up when the
disk is full, so that calls under way can still be settled.
"""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tierwise.core.errors import ConfigError
from tierwise.stores.ledger import sql
from tierwise.stores.ledger.accounts import Counts, Key
from tierwise.stores.ledger.rows import Entry, HoldRow
from tierwise.stores.sqlite_file import Kind, explained, is_there, open_file, unusable

if TYPE_CHECKING:
    import apsw

RESTORE = (
    "stop every gateway, move this file and those beside it that begin with its name away, and put a backup in its "
    "place; without one the ledger begins anew, with nothing spent"
)
LEDGER = Kind(
    noun="ledger",
    schema=sql,
    synchronous="full",
    anew=f"nothing can be promised about money; {RESTORE}",
    busy_ms=1_000,
    # Moving them takes two syncs more, for which the next commit waits: on a slow disk that must be rare.
    checkpoint_bytes=32 << 20,
)
RESERVE_BYTES = 4 << 20

_encode = msgspec.json.Encoder().encode
_keys = msgspec.json.Decoder(tuple[Key, ...])
_recent = msgspec.json.Decoder(tuple[str, ...])


class State(msgspec.Struct, frozen=True):
    """The end of a ledger: its last commit, its last entry and that one's hash."""

    file: str
    batch: int
    seq: int
    hash: bytes
    pruned_s: int = 0


def open_writer(path: Path, vfs: str | None = None, *, checked: bool = True) -> apsw.Connection:
    """The one connection that writes. Raises ConfigError, naming the file and what to do, when it cannot be used."""
    return open_file(path, LEDGER, vfs, checked=checked)


def open_reader(path: Path, vfs: str | None = None) -> apsw.Connection:
    """A connection that sees what is committed, also while another process writes. Raises ConfigError."""
    import apsw

    if not path.is_file():
        raise unusable(path, "there is no ledger here; name the state folder of a gateway with --state")
    connection = None
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY, vfs=vfs)
        connection.set_busy_timeout(LEDGER.busy_ms)
        connection.pragma("query_only", True)
        version = connection.execute("SELECT max(version) FROM schema_version").get
        if version != len(sql.MIGRATIONS):
            known = len(sql.MIGRATIONS)
            hint = "upgrade" if version > known else "a gateway that starts here brings it to that"
            raise unusable(path, f"this ledger has schema {version}, and this Tierwise reads {known}; {hint}")
    except (apsw.Error, ConfigError) as error:
        if connection is not None:
            connection.close(True)
        raise explained(path, LEDGER, error) from None
    return connection


def read_state(connection: apsw.Connection) -> State:
    import apsw

    for file, batch, seq, hash, pruned_s in connection.execute(sql.READ_STATE):
        return State(file, batch, seq, bytes(hash), pruned_s)
    raise apsw.CorruptError("the ledger does not say where it ends")


# ------------------------------------------------------------------------------------------------ rows


def account_row(key: Key, counts: Counts, written_s: int) -> tuple[object, ...]:
    return (
        *key,
        counts.limit_nano,
        counts.bound_nano,
        counts.posted_nano,
        counts.pending_nano,
        counts.overage_nano,
        counts.tokens,
        counts.tokens_pending,
        counts.calls,
        counts.steps,
        counts.open,
        counts.first_s,
        _encode(counts.recent).decode() if counts.recent else "[]",
        written_s,
    )


def counts_of(row: tuple[Any, ...]) -> Counts:
    """Of the columns COUNTS."""
    *numbers, recent = row
    return Counts(**dict(zip(sql.COUNTS, (*numbers, _recent.decode(recent)), strict=True)))


def hold_row(row: HoldRow) -> tuple[object, ...]:
    return (
        row.id,
        row.request,
        row.model,
        row.amount_nano,
        row.tokens,
        row.steps,
        row.least_nano,
        row.at_s,
        row.snapshot,
        text_of(row.accounts),
        row.state,
        row.cost_nano,
        row.closed_s,
    )


def hold_of(row: tuple[Any, ...]) -> HoldRow:
    """Of the columns HOLD."""
    fields = dict(zip(sql.HOLD, row, strict=True))
    return HoldRow(**{**fields, "accounts": keys_of(fields["accounts"])})


def entry_row(seq: int, entry: Entry) -> tuple[object, ...]:
    """The columns HASHED."""
    accounts = text_of(entry.accounts)
    return (seq, entry.at_s, entry.hold, accounts, entry.amount_nano, entry.kind, entry.snapshot, entry.note)


def entry_of(row: tuple[Any, ...]) -> tuple[int, Entry]:
    """(number, entry) of the columns ENTRY."""
    seq, at_s, hold, accounts, amount, kind, snapshot, note, _ = row
    entry = Entry(
        at_s=at_s,
        hold=hold,
        accounts=keys_of(accounts),
        amount_nano=amount,
        kind=kind,
        snapshot=snapshot,
        note=note,
    )
    return seq, entry


@functools.lru_cache(maxsize=1024)  # a call writes the same ones three times, and so do those of its session
def text_of(accounts: tuple[Key, ...]) -> str:
    """As a column `accounts` has them."""
    return _encode(accounts).decode()


def keys_of(accounts: str) -> tuple[Key, ...]:
    """Of a column `accounts`."""
    return _keys.decode(accounts)


def read_entries(connection: apsw.Connection, after_seq: int, most: int) -> list[tuple[Any, ...]]:
    """The columns ENTRY of those that come next."""
    return connection.execute(sql.READ_ENTRIES, (after_seq, most)).fetchall()


# ------------------------------------------------------------------------------------------------ beside the ledger


class Holder(msgspec.Struct, frozen=True):
    """What the lock file says: who holds the ledger, or held it last, and the last commit that was acknowledged."""

    pid: int = 0
    host: str = ""
    file: str = ""
    batch: int = 0


class Lock:
    """Held as long as this process lives, however it ends. Raises ConfigError that says who holds it."""

    def __init__(self, ledger: Path) -> None:
        import fcntl

        self.ledger = ledger
        self.path = beside(ledger, "lock")
        self._log = log_of(ledger)
        try:
            ledger.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            what = f"the ledger cannot be made there ({error}); give a folder that this user may write to"
            raise unusable(ledger, what) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = self._read()
            os.close(self._fd)
            what = (
                f"process {holder.pid} on {holder.host or 'this machine'} holds this ledger; "
                "stop it, or give this one a state folder of its own"
            )
            raise unusable(ledger, what) from None
        self.before = self._read()
        self._own = os.fstat(self._fd)
        self._pid, self._host = os.getpid(), socket.gethostname()
        self._write(Holder(self._pid, self._host, self.before.file, self.before.batch))

    def check(self, state: State, *, is_new: bool) -> None:
        """Raises ConfigError when the ledger has lost what was acknowledged."""
        lost = self.before.batch - state.batch
        if self.before.batch and (is_new or (state.file == self.before.file and lost > 0)):
            what = (
                f"{'the ledger is gone or empty' if is_new else f'the last {lost} commits are missing'}: was a file "
                f"deleted, cut off or copied without its -wal? {RESTORE[0].upper()}{RESTORE[1:]}"
            )
            raise unusable(self.ledger, what)

    def lost(self, opened: os.stat_result | None, log: os.stat_result | None = None) -> str:
        """Why nobody may write any more, as a sentence; "" while all is well. `opened` and `log`: the ledger's file and
        its -wal as they were opened. A lock whose file is gone keeps nobody out, and what is written to a file without
        a name is gone too."""
        for path, own in ((self.path, self._own), (self.ledger, opened)):
            if own is not None and not is_there(path, own):
                return (
                    f"{path.name} was deleted or replaced while this process held it; stop every gateway of this "
                    "folder, put a backup in its place if it is gone, and start one again"
                )
        path = self._log
        if log is not None and not is_there(path, log):
            return (
                f"{path.name} was deleted or replaced while this process held it; what was committed has been moved "
                f"into {self.ledger.name}. Stop every gateway of this folder, and start one again"
            )
        return ""

    def acknowledge(self, file: str, batch: int) -> None:
        """Remember a commit. Not synced: it says nothing that is not on the disk by now."""
        self._write(Holder(self._pid, self._host, file, batch))

    def _read(self) -> Holder:
        try:
            return msgspec.json.decode(os.pread(self._fd, 4096, 0).rstrip(b"\0 \n") or b"{}", type=Holder)
        except (OSError, msgspec.MsgspecError):
            return Holder()

    def _write(self, holder: Holder) -> None:
        text = msgspec.json.encode(holder).ljust(255) + b"\n"
        os.pwrite(self._fd, text, 0)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Reserve:
    """Room on the disk that nothing else may have."""

    def __init__(self, ledger: Path, size_bytes: int = RESERVE_BYTES) -> None:
        self.path = beside(ledger, "reserve")
        self.size_bytes = size_bytes
        self._made = False

    def make(self) -> bool:
        """False when there is no room for it."""
        if self._made:
            return True
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, self.size_bytes)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError:
            self.give_up()
            return False
        self._made = True
        return True

    def give_up(self) -> None:
        self._made = False
        try:
            self.path.unlink(missing_ok=True)
        except OSError:  # a disk that cannot even forget a file: the next commit says what is wrong with it
            return


def log_of(ledger: Path) -> Path:
    """What was committed and is not yet in the ledger's file itself."""
    return ledger.with_name(f"{ledger.name}-wal")


def beside(ledger: Path, what: str) -> Path:
    return ledger.with_name(f"{ledger.name}.{what}")
