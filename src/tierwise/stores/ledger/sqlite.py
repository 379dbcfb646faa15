"""The durable ledger: the books in memory, and one thread that writes what changed before anything is acknowledged.

An operation is done in the books at once, so it is atomic; a hold is answered after the commit that it is part of.
When to commit, and what to do when that fails, is `commits`'s. What the books let go of is found in the file.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from tierwise.core.budget import Budget, Charge, Denial, Hold
from tierwise.core.errors import Unavailable
from tierwise.core.ports import CLAIM_S, Claim
from tierwise.core.request import Payer
from tierwise.stores.ledger import sql
from tierwise.stores.ledger.accounts import Counts, Key
from tierwise.stores.ledger.audit import check_at_start
from tierwise.stores.ledger.batch import Batch, ClaimKey, ClaimRow
from tierwise.stores.ledger.books import SUSPENSE_S, Books
from tierwise.stores.ledger.commits import GroupCommits
from tierwise.stores.ledger.copies import backup_to, entries_after
from tierwise.stores.ledger.file import LEDGER, RESERVE_BYTES, Lock, Reserve, counts_of, hold_of, open_reader
from tierwise.stores.ledger.rows import Entry, HoldRow
from tierwise.stores.ledger.traffic import Traffic
from tierwise.stores.ledger.windows import DAY_S, NEVER_S
from tierwise.stores.ledger.writer import Writer
from tierwise.stores.sqlite_file import explained

BATCH_HOLDS = 512  # in one transaction
AT_HAND = 500  # open holds of an earlier process that are taken up at the start
AT_ONCE = 100  # that are given up together,
AGAIN_S = 0.05  # and how soon the next of them
ABSENT_KEPT = 10_000  # names of conversations that nothing was held for; callers make them at will
LEASE_S = 1_920  # the longest call and two minutes: whoever holds longer is gone
MOST = 2**53  # nano-dollars, or tokens, that one call can come to: 9 million dollars

_encode = msgspec.json.Encoder().encode
log = logging.getLogger(__name__)


class SqliteLedger(GroupCommits):
    """Ledger of core/ports in one SQLite file that no other process writes. For one event loop.

    `last_error` says what is wrong with the disk, "" when nothing is; until it is, holds raise Unavailable. Raises
    ConfigError, naming the file and what to do, when the file cannot be used or another process holds it.
    """

    def __init__(
        self,
        path: Path,
        budgets: tuple[Budget, ...] = (),
        clock: Callable[[], float] = time.time,
        *,
        lease_s: int = LEASE_S,
        reserve_bytes: int = RESERVE_BYTES,
        vfs: str | None = None,
    ) -> None:
        import apsw

        self._lock = Lock(path)
        self._vfs = vfs
        self._absent: set[Key] = set()  # accounts that were looked for in vain since the last commit was cut off
        writer = reader = None
        try:
            reserve = Reserve(path, reserve_bytes)
            writer = Writer(path, self._lock, reserve, vfs)
            super().__init__(path, writer, clock, lease_s)
            self._lock.check(writer.state, is_new=writer.state.batch == 0)
            reader = self._reader = open_reader(path, vfs)
            check_at_start(path, reader)
            self.books = Books(budgets, self._load, self._load_hold)
            self._restore()
        except BaseException as error:
            for connection in (writer, reader):
                if connection is not None:
                    connection.close(True)
            self._lock.close()
            if isinstance(error, UnicodeDecodeError):  # a name that is damaged is text no more
                error = apsw.CorruptError(str(error))
            if isinstance(error, (apsw.Error, msgspec.MsgspecError)):
                raise explained(path, LEDGER, error) from None
            raise
        if not reserve.make():
            self.last_error = f"there is no room for {reserve.path.name}, without which a full disk loses money"
        writer.start()

    def _restore(self) -> None:
        """Calls that were under way when the last process ended: they count until somebody says what they cost."""
        decode = self._reader.execute
        known = {tuple(row[:3]): counts_of(row[3:]) for row in decode(sql.READ_OPEN_ACCOUNTS)}
        rows = [hold_of(row) for row in decode(sql.READ_OPEN_HOLDS, (NEVER_S, AT_HAND))]
        prepaid = [(line.partition("/")[2], subject) for line, subject in decode(sql.READ_PREPAID)]
        self.books.forgotten_s = self._writer.state.pruned_s
        behind_s = self.books.forgotten_s - super()._now_s()
        if behind_s > 0:  # budgets that are never new again would be found out by those who are refused
            log.error(
                "ledger: %s: the clock is %.1f days behind what was let go of: it was set back, or was wrong before; "
                "until it is there again no budget begins anew. Set it right, or put a backup from before in its place",
                self.path,
                behind_s / DAY_S,
            )
        self._next.accounts = known
        last_id = decode(sql.READ_LAST_HOLD).get or ""
        self.books.restore(rows, prepaid, known, decode(sql.COUNT_OPEN_HOLDS).get, last_id)
        self._next.accounts = {}
        shapes = dict(decode(sql.READ_FACTS, ("traffic",)))
        for id, traffic in self._traffic():
            if id in shapes:
                traffic.recall(shapes[id])

    # -------------------------------------------------------------------------------------------- money

    async def hold(self, hold: Hold) -> Denial | None:
        """Raises Unavailable when it cannot be made durable: then nothing is held and nothing may be sent."""
        self._usable()
        # A name that no file can hold would stop every other's commit. UnicodeEncodeError is a ValueError.
        _encode((hold.id, hold.request, hold.session, hold.workflow, hold.fingerprint, hold.payer))
        if hold.at_s < self.books.forgotten_s:
            hold = msgspec.structs.replace(hold, at_s=self._now_s())
        id, books = hold.id, self.books
        waiters = self._waiters.get(id)
        first = waiters is None
        if waiters is None:
            before = books.revision
            if hold.amount_nano > MOST or hold.tokens > MOST:
                raise ValueError(f"hold {id!r}: {hold.amount_nano} nano-dollars cannot be held")
            denial = books.hold(hold)
            if denial is not None or books.revision == before:  # or held before, and on the disk by now
                return denial
            waiters = self._waiters[id] = []
            waiting = self._next.waiting
            waiting.append(id)
            if len(waiting) >= BATCH_HOLDS:
                self._queue.append(self._cut())  # large enough for one commit
        future = self._running().create_future()
        waiters.append(future)
        self._soon()
        try:
            await future
        except asyncio.CancelledError:
            # Nobody saw the answer, so nothing was sent. What the request says of it afterwards is ignored.
            if first and len(waiters) == 1 and not self._closed:
                books.settle(id, Charge(cost_nano=0, kind="released"), self._now_s())
                self._later()
            raise
        return None

    def settle(self, hold_id: str, charge: Charge) -> None:
        if charge.cost_nano > MOST or charge.usage.prompt_tokens + charge.usage.completion_tokens > MOST:
            log.error("ledger: %s came to %d nano-dollars; that is no cost", hold_id, charge.cost_nano)
            charge = msgspec.structs.replace(charge, cost_nano=min(charge.cost_nano, MOST), usage=type(charge.usage)())
        try:
            self.books.settle(hold_id, charge, self._now_s())
        except Unavailable as error:  # of a call from before the last start, which stays what it is
            log.warning("ledger: what %s cost (%d n$) was not taken: %s", hold_id, charge.cost_nano, error)
            return
        row = self.books.untaken_hold(hold_id)
        if row is not None and charge.billed not in ("", row.model):  # what the provider's bill calls this call
            self._next.facts["billed", hold_id] = charge.billed
        self._later()

    def checkpoint(self, hold_id: str, least_nano: int) -> None:
        self.books.checkpoint(hold_id, least_nano)
        self._later()

    async def correct(self, hold_id: str, cost_nano: int, note: str = "") -> bool:
        """On the disk when it returns. Raises Unavailable when it is not yet; it is written as soon as it can be."""
        self._usable()
        done = cost_nano <= MOST and self.books.correct(hold_id, cost_nano, self._now_s(), note)
        if done:
            await self._sync()
        return done

    async def grant(self, id: str, scope: str, subject: str, amount_nano: int) -> bool:
        """As `correct`."""
        self._usable()
        done = self.books.grant(id, scope, subject, amount_nano, self._now_s())
        await self._sync()  # also of one that counted before, for that may not be written yet
        return done

    async def vary(self, id: str, line: str, subject: str, amount_nano: int, note: str) -> bool:
        """As `grant`. Raises ValueError for an amount that is none, or a line that nobody has."""
        self._usable()
        done = self._fact("variance", id) is None
        if done:
            if abs(amount_nano) > MOST or not self.books.vary(line, subject, amount_nano, self._now_s(), note):
                raise ValueError(f"{amount_nano} nano-dollars cannot be posted to {line}")
            self._next.facts["variance", id] = ""  # in one commit with its entry
        await self._sync()
        return done

    def reload(self, budgets: tuple[Budget, ...]) -> None:
        self.books.reload(budgets)
        self._later()

    @property
    def commits(self) -> int:
        return self._writer.commits

    # -------------------------------------------------------------------------------------------- idempotency keys

    async def claim(self, payer: Payer, key: str, fingerprint: str, decision: str) -> Claim | None:
        """As the port says. Raises Unavailable, and then nobody has the key."""
        self._usable()
        place = (_encode(payer).decode(), key)
        f"{key}{fingerprint}{decision}".encode()  # a name that no file can hold would stop every other's commit
        found = self._claimed(place)
        if found is not None:
            return Claim(found.decision, found.fingerprint)
        future = self._running().create_future()
        self._next.claims[place] = ClaimRow(fingerprint, decision, "open", self._now_s())
        self._next.claiming.append((place, future))
        self._soon()
        try:
            await future
        except asyncio.CancelledError:
            self.finish(payer, key, decision, charged=False)
            raise
        return None

    def finish(self, payer: Payer, key: str, decision: str, *, charged: bool) -> None:
        place = (_encode(payer).decode(), key)
        try:
            found = self._claimed(place)
        except Unavailable:  # the key stays taken, which is the safe side
            return
        if found is None or found.decision != decision or self._closed:
            return
        if charged:
            self._next.claims[place] = msgspec.structs.replace(found, state="done")
        else:
            self._next.claims.pop(place, None)
            self._next.unclaimed[place] = None
        self._later()

    def _claimed(self, key: ClaimKey) -> ClaimRow | None:
        for batch in self._unwritten():
            if key in batch.claims:
                return batch.claims[key]
            if key in batch.unclaimed:
                return None
        row = self._read(sql.READ_REQUEST, key)
        found = ClaimRow(*row) if row is not None else None  # type: ignore[arg-type]  # the table is STRICT
        # Not by a clock that is set forward: a key that is forgotten early is a call that is paid for twice.
        return found if found is not None and found.at_s > int(self._steady()) - CLAIM_S else None

    # -------------------------------------------------------------------------------------------- the whole file

    async def close(self) -> None:
        if not self._closing and not self.last_error:  # not worth waiting for a disk that takes nothing
            self._note_traffic()
        await super().close()

    async def backup(self, path: Path) -> None:
        """A copy of everything committed by now, while work goes on. Raises ConfigError when it cannot be made."""
        self._usable()
        await self._sync()
        await asyncio.to_thread(backup_to, self.path, path, self._vfs)

    def entries(self, since_seq: int = 0) -> Iterator[tuple[int, Entry]]:
        """(number, entry) of everything that is on the disk after that number, in order."""
        return entries_after(self._reader, since_seq)

    def close_now(self) -> None:
        """Also without an event loop: one try to write what is left, then let go of the files."""
        if not self._closed:
            self._reader.close(True)  # before the writer, whose going moves the log into the file
            super().close_now()
            self._lock.close()

    # -------------------------------------------------------------------------------------------- helpers

    def _cut(self) -> Batch:
        self._absent.clear()
        return super()._cut()

    def _do_errands(self) -> None:
        self._note_traffic()
        super()._do_errands()
        self._give_up_sleepers()

    def _give_up_sleepers(self) -> None:
        """Some of an earlier process's calls that nobody has told the end of for too long, and the others soon after:
        there may be a million of them, and whoever calls now must not wait for that."""
        import apsw

        if self._closed or not self.books.asleep():
            return
        now_s = int(self._steady())
        try:
            rows = [hold_of(row) for row in self._reader.execute(sql.READ_OPEN_HOLDS, (now_s - SUSPENSE_S, AT_ONCE))]
        except (apsw.Error, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("ledger: %s: open holds cannot be read, and stay held: %s", self.path, error)
            return
        for row in rows:
            if not any(row.id in batch.undone for batch in self._unwritten()):
                self.books.wake(row)
        self.books.resolve(now_s)
        self._later()
        if len(rows) == AT_ONCE:
            self._running().call_later(AGAIN_S, self._give_up_sleepers)

    def _now_s(self) -> int:
        """Never in the past that was let go of: a window of then would begin anew, with nothing spent."""
        now_s, forgotten_s = int(self._clock()), self.books.forgotten_s
        return now_s if now_s > forgotten_s else forgotten_s

    def _traffic(self) -> Iterator[tuple[str, Traffic]]:
        """Of every budget that is to last its window, by its id."""
        for line in self.books._lines:
            if line.traffic is not None:
                yield line.id, line.traffic

    def _note_traffic(self) -> None:
        """When requests come is learned over weeks, and a restart must not forget it."""
        for id, traffic in self._traffic():
            if traffic.is_news:
                self._next.facts["traffic", id] = traffic.kept()

    def _fact(self, kind: str, name: str) -> str | None:
        for batch in self._unwritten():
            if (kind, name) in batch.facts:
                return batch.facts[kind, name]
        row = self._read(sql.READ_FACT, (kind, name))
        return str(row[0]) if row is not None else None

    def _load(self, key: Key) -> Counts | None:
        """An account that the books have let go of, from what is not written yet or from the file."""
        found = self.books.untaken(key)
        if found is not None:
            return found
        for batch in self._unwritten():
            if key in batch.accounts:
                return batch.accounts[key]
        if key in self._absent:  # a new conversation is asked for at the door, and held for at once
            return None
        row = self._read(sql.READ_ACCOUNT, key)
        if row is None:
            if len(self._absent) >= ABSENT_KEPT:  # where nothing is held, no commit comes that would clear it
                self._absent.clear()
            self._absent.add(key)
        return counts_of(row) if row is not None else None

    def _load_hold(self, hold_id: str) -> HoldRow | None:
        found = self.books.untaken_hold(hold_id)
        if found is not None:
            return found
        for batch in self._unwritten():
            if hold_id in batch.holds:
                return batch.holds[hold_id]
            if hold_id in batch.undone:
                return None
        row = self._read(sql.READ_HOLD, (hold_id,))
        return hold_of(row) if row is not None else None

    def _read(self, statement: str, values: tuple[str | int, ...]) -> tuple[object, ...] | None:
        """Raises Unavailable when the file cannot be read: without it nobody knows what was spent."""
        import apsw

        try:
            return self._reader.execute(statement, values).fetchone()
        except apsw.Error as error:
            log.warning("ledger: %s cannot be read: %s", self.path, error)
            raise self._unavailable() from error
