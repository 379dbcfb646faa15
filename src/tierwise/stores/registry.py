"""Keys, budgets, credits and variances that are made at runtime: one SQLite file beside the ledger, for several
processes.

A command writes it, a running gateway sees that it has changed and reads it anew. Secrets are not in it: only their
HMAC-SHA-256 under a pepper that lies in a file of its own, so that neither file alone tells anything about a key.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tierwise.core.budget import Budget
from tierwise.core.errors import ConfigError, Conflict, Problem, Unknown
from tierwise.core.keys import SECRET_START, Book, Credit, Grant, Issued, Secrets, Variance, budget_id
from tierwise.stores import registry_sql as sql
from tierwise.stores.sqlite_file import is_there, transaction, write_ahead

if TYPE_CHECKING:
    import apsw

PEPPER_FILE = "pepper"
PEPPER_BYTES = 32
SECRET_BYTES = 32  # 256 bits: nobody guesses one
PREFIX_LETTERS = 6  # of the secret, shown to recognise a key by; 220 bits stay unknown
BUSY_MS = 5_000  # how long to wait for another process that writes
BEGINS_S = 60  # a pepper older than this has a registry, or had one
_CHECKED = b"tierwise registry"
_LOG, _INDEX = "-wal", "-shm"


class SqliteRegistry:
    """Registry of core/keys. One connection; safe for several threads, one at a time."""

    def __init__(self, path: Path | None) -> None:
        """None: in memory, with a pepper that nobody keeps. Raises ConfigError for a file that is no sound registry."""
        self._lock = threading.Lock()
        self.pepper = os.urandom(PEPPER_BYTES) if path is None else _pepper(path.with_name(PEPPER_FILE))
        self._connection = _open(path, self.pepper)
        self._path = path
        self._opened = _opened(path) if path is not None else {}
        self._version = (-1, -1)

    def changed(self) -> bool:
        """Whether anybody has written since the last `read`. Raises ConfigError when the file is gone."""
        with self._lock:
            self._must_be_there()
            return self._seen() != self._version

    def read(self) -> Book:
        """All of it, as of one moment."""
        with self._transaction("DEFERRED") as connection:
            self._version = self._seen()
            return Book(
                keys=tuple(
                    Issued(
                        grant=msgspec.json.decode(grant, type=Grant),
                        prefix=prefix,
                        made_s=made_s,
                        rotated_s=rotated_s,
                        revoked_s=revoked_s,
                    )
                    for grant, prefix, made_s, rotated_s, revoked_s in connection.execute(sql.READ_KEYS)
                ),
                secrets=tuple(Secrets(*row) for row in connection.execute(sql.READ_SECRETS)),
                budgets=tuple(msgspec.json.decode(row, type=Budget) for (row,) in connection.execute(sql.READ_BUDGETS)),
                credits=tuple(
                    Credit(id=id, scope=scope, subject=subject, amount_nano=amount, at_s=at_s, made_by=made_by)
                    for id, scope, subject, amount, at_s, made_by in connection.execute(sql.READ_CREDITS)
                ),
                variances=tuple(
                    Variance(id=id, line=line, subject=subject, amount_nano=amount, note=note, at_s=at_s)
                    for id, line, subject, amount, note, at_s in connection.execute(sql.READ_VARIANCES)
                ),
            )

    # -------------------------------------------------------------------------------------------- keys

    def create(self, grant: Grant, at_s: int) -> str:
        """Raises Conflict for a name that is or was a key's: its past spending would be the new key's."""
        with self._transaction() as connection:
            if next(connection.execute(sql.READ_KEY, (grant.name,)), None) is not None:
                raise Conflict(f"there is or was a key named {grant.name!r}; take another name", code="key_exists")
            secret, prefix, digest = self._made()
            connection.execute(sql.ADD_KEY, (grant.name, _text(grant), prefix, at_s))
            connection.execute(sql.ADD_HASH, (digest, grant.name))
        return secret

    def change(self, grant: Grant) -> None:
        """Raises Unknown when there is no such key, Conflict for one that is revoked."""
        with self._transaction() as connection:
            _must_live(connection, grant.name)
            connection.execute(sql.SET_GRANT, (_text(grant), grant.name))

    def rotate(self, name: str, overlap_s: int, at_s: int) -> str:
        """Raises Unknown when there is no such key, Conflict for one that is revoked."""
        with self._transaction() as connection:
            _must_live(connection, name)
            # One that was ending already does not live longer because of another rotation.
            connection.execute(sql.END_SECRETS, (at_s + overlap_s, name, at_s + overlap_s))
            connection.execute(sql.FORGET_SECRETS, (name, at_s))
            secret, prefix, digest = self._made()
            connection.execute(sql.ADD_HASH, (digest, name))
            connection.execute(sql.SET_ROTATED, (prefix, at_s, name))
        return secret

    def revoke(self, names: Iterable[str], at_s: int) -> None:
        """For ever: all of them or none. Raises Unknown when one is no key; revoking twice is revoking once."""
        with self._transaction() as connection:
            for name in names:
                if next(connection.execute(sql.READ_KEY, (name,)), None) is None:
                    raise _no_key(name)
                connection.execute(sql.REVOKE_KEY, (at_s, name))
                connection.execute(sql.FORGET_ALL_SECRETS, (name,))

    # -------------------------------------------------------------------------------------------- money

    def set_budget(self, budget: Budget) -> None:
        with self._transaction() as connection:
            connection.execute(sql.SET_BUDGET, (budget_id(budget), _text(budget)))

    def remove_budget(self, id: str) -> None:
        """Raises Unknown when there is none."""
        with self._transaction() as connection:
            connection.execute(sql.REMOVE_BUDGET, (id,))
            if not connection.changes():
                raise Unknown(f"no budget {id!r} was set at runtime", code="budget_not_found")

    def add_credit(self, credit: Credit) -> bool:
        """Raises Conflict when the id was used for something else."""
        said = (credit.scope, credit.subject, credit.amount_nano)
        with self._transaction() as connection:
            known = next(connection.execute(sql.READ_CREDIT, (credit.id,)), None)
            if known is None:
                connection.execute(sql.ADD_CREDIT, (credit.id, *said, credit.at_s, credit.made_by))
                return True
        if known != said:
            raise Conflict(
                f"the top-up {credit.id!r} was made before, for another balance or amount; take another id",
                code="credit_exists",
            )
        return False

    def add_variances(self, variances: Iterable[Variance]) -> None:
        """Raises Conflict when an id was used for another amount: somebody else has posted another bill meanwhile."""
        with self._transaction() as connection:
            for each in variances:
                known = next(connection.execute(sql.READ_VARIANCE, (each.id,)), None)
                if known is None:
                    connection.execute(sql.ADD_VARIANCE, msgspec.structs.astuple(each))
                elif known != (each.amount_nano,):
                    what = "another bill was posted at the same moment, so nothing was posted of this one; compare anew"
                    raise Conflict(f"{each.subject}: {what}", code="variance_exists")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # -------------------------------------------------------------------------------------------- helpers

    def _made(self) -> tuple[str, str, bytes]:
        """(secret, the letters that are shown of it, its hash)"""
        secret = SECRET_START + secrets.token_urlsafe(SECRET_BYTES)
        shown = secret[: len(SECRET_START) + PREFIX_LETTERS]
        return secret, shown, hmac.digest(self.pepper, secret.encode(), hashlib.sha256)

    def _seen(self) -> tuple[int, int]:
        """What changes when other connections write, and when this one does."""
        return int(self._connection.execute("PRAGMA data_version").get), self._connection.total_changes()

    def _must_be_there(self) -> None:
        """What is written to a file without a name is gone with this process, and what others write is not seen."""
        gone = next((path for path, own in self._opened.items() if not is_there(path, own)), None)
        if gone is None:
            return
        if gone == self._path:
            raise _unusable(gone, f"{gone.name} was deleted or replaced; put a backup in its place and start again")
        self._let_be(gone)
        what = f"{gone.name} was deleted or replaced while this process had it open"
        raise _unusable(gone, f"{what}; stop every gateway of this folder and start again")

    def _let_be(self, gone: Path) -> None:
        """What a lost log holds is moved to where it is found again, unless somebody has begun another by now. Whatever
        lies there in the end is left to those who have it open."""
        import apsw

        try:
            if gone.name.endswith(_LOG) and not gone.exists():
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_FULL)
            self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        except apsw.Error as error:
            raise _unusable(gone, f"{gone.name} was deleted, and what was in it cannot be saved ({error})") from None

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[apsw.Connection]:
        """Raises ConfigError, in a sentence, when the file cannot be read or written."""
        import apsw

        with self._lock:
            connection = self._connection
            self._must_be_there()
            try:
                with transaction(connection, kind):
                    yield connection
            except apsw.Error as error:
                what = f"the registry cannot be used now ({error}); is the disk full, or does another program hold it?"
                raise ConfigError((Problem("registry", what),)) from None


def _text(value: Grant | Budget) -> str:
    return msgspec.json.encode(value).decode()


def _must_live(connection: apsw.Connection, name: str) -> None:
    row = next(connection.execute(sql.READ_KEY, (name,)), None)
    if row is None:
        raise _no_key(name)
    if row[0] is not None:
        raise Conflict(f"the key {name!r} is revoked, and stays so; make another", code="key_revoked")


def _no_key(name: str) -> Unknown:
    return Unknown(f"no key made at runtime is named {name[:100]!r}", code="key_not_found")


# ------------------------------------------------------------------------------------------------ the files


def _open(path: Path | None, pepper: bytes) -> apsw.Connection:
    import apsw

    connection = None
    try:
        if path is not None:
            # Made before SQLite sees it, for SQLite would ask the umask who may read it.
            path.touch(mode=0o600, exist_ok=True)
            path.chmod(0o600)
        connection = apsw.Connection(":memory:" if path is None else str(path))
        connection.set_busy_timeout(BUSY_MS)
        if (verdict := connection.execute("PRAGMA quick_check(1)").get) != "ok":
            raise apsw.CorruptError(str(verdict))
        connection.pragma("synchronous", "full")  # a revoked key stays revoked after a power cut
        connection.pragma("foreign_keys", True)
        _migrate(connection, pepper, may_begin=path is None or _is_young(path.with_name(PEPPER_FILE)))
        if path is not None:  # only now: a file that is not for us stays as it is, its journal mode too
            write_ahead(connection, BUSY_MS)
            connection.execute(sql.READ_PEPPER_CHECK).fetchall()  # and with the first look its log is there
    except OSError as error:
        raise _unusable(path, f"cannot be made there ({error.strerror}); name another folder with --state") from None
    except (apsw.Error, ConfigError) as error:
        if connection is not None:
            connection.close()
        if isinstance(error, ConfigError):
            raise _unusable(path, error.problems[0].what) from None
        what = (
            f"is no sound registry ({error}); put a backup in its place, or move it and the pepper away and make the "
            "keys anew"
        )
        if isinstance(error, (apsw.BusyError, apsw.LockedError, apsw.FullError, apsw.IOError, apsw.CantOpenError)):
            what = f"cannot be used now ({error}); is the disk full, or does another program hold it?"
        raise _unusable(path, what) from None
    return connection


def _opened(path: Path) -> dict[Path, os.stat_result]:
    """The registry and what SQLite keeps beside it as long as anybody has it open, the registry first."""
    beside = (path.with_name(path.name + suffix) for suffix in (_LOG, _INDEX))
    return {each: each.stat() for each in (path, *beside) if each.exists()}


def _is_young(path: Path) -> bool:
    return time.time() - path.stat().st_mtime < BEGINS_S


def _migrate(connection: apsw.Connection, pepper: bytes, *, may_begin: bool) -> None:
    """The schema, and the proof that this is the pepper that the hashes were made with."""
    with transaction(connection):  # two processes that start together migrate once
        _brought(connection, pepper, may_begin)


def _brought(connection: apsw.Connection, pepper: bytes, may_begin: bool) -> None:
    version = int(connection.pragma("user_version"))
    if version == 0 and connection.execute(sql.READ_TABLES).get:
        raise ConfigError((Problem("", "is the database of another program; name another folder with --state"),))
    if version == 0 and not may_begin:  # an empty one has no key, so it would open the door to everybody
        what = (
            "is gone or empty, with every key and budget in it; put a backup in its place, or move the file "
            f"{PEPPER_FILE!r} away too to begin anew without any"
        )
        raise ConfigError((Problem("", what),))
    if version > sql.VERSION:
        what = f"was written by a newer Tierwise (schema {version}, this one knows {sql.VERSION}); upgrade"
        raise ConfigError((Problem("", what),))
    proof = hmac.digest(pepper, _CHECKED, hashlib.sha256)
    for migration in sql.MIGRATIONS[version:]:
        connection.execute(migration)
    if version == 0:
        connection.execute(sql.ADD_PEPPER_CHECK, (proof,))
        connection.pragma("application_id", sql.APPLICATION)
    elif not hmac.compare_digest(connection.execute(sql.READ_PEPPER_CHECK).get or b"", proof):
        what = (
            f"was made with another pepper, so no key in it can be known; put back the file {PEPPER_FILE!r} that "
            "belongs to it, or move both away and make the keys anew"
        )
        raise ConfigError((Problem("", what),))
    if version < sql.VERSION:
        connection.pragma("user_version", sql.VERSION)


def _pepper(path: Path) -> bytes:
    """The 32 bytes that only this machine knows; made when there are none, whole or not at all."""
    try:
        if not path.exists():
            _write_once(path, os.urandom(PEPPER_BYTES))
        found = path.read_bytes()
    except OSError as error:
        raise _unusable(path, f"cannot be read or made ({error.strerror}); name another folder with --state") from None
    if len(found) != PEPPER_BYTES:
        raise _unusable(path, "is not what Tierwise has written; put a backup in its place")
    return found


def _write_once(path: Path, data: bytes) -> None:
    """A file that appears complete, and never over another: of two processes that begin together, one wins."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
        os.link(draft, path)
    except FileExistsError:
        return  # the other's it is
    finally:
        os.close(descriptor)
        draft.unlink(missing_ok=True)


def _unusable(path: Path | None, what: str) -> ConfigError:
    return ConfigError((Problem(str(path or "registry"), what),))
