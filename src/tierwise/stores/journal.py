"""The SQLite journal: episodes on disk, written by one thread that no request ever waits for.

A journal is not money: it is written with synchronous=NORMAL, so that the file is always sound but a power cut may
forget the last moments, and what the disk or the queue cannot take is dropped and counted. Prompts and replies are in
it only when a record carries them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from tierwise.core.episode import Failed, Replied, Told
from tierwise.core.errors import Closed, TierwiseError
from tierwise.core.grams import grams_of
from tierwise.core.ports import Feedback, Heard, Late, Record, Story
from tierwise.stores import journal_sql as sql
from tierwise.stores.gathered import Gathered
from tierwise.stores.journal_reads import ALL, Reader, steps
from tierwise.stores.journal_rows import HOUR_S, RECENT_MAX, Total
from tierwise.stores.journal_writes import Shadow, Snapshot, Thing, row_of, write_down
from tierwise.stores.ledger.windows import DAY_S
from tierwise.stores.sqlite_file import open_file, transaction

if TYPE_CHECKING:
    import apsw

BATCH_ROWS = 512  # rows in one transaction
# Records that are encoded at once: while requests are under way, and when none is, for the next must not wait long. The
# more there are, the less each costs: with 64 a request takes about 4 % less CPU than with 8.
ENCODED_AT_ONCE, ENCODED_IN_A_LULL = 64, 8
GATHER_S = 0.2  # how long the writer lets rows gather after the first; a reader cuts it short
FORGET_EVERY_S = 3_600.0
FORGET_ROWS = 500  # deleted at once, so that writing does not wait long behind it

log = logging.getLogger(__name__)
T = TypeVar("T")


class _Ask:
    """A question to the file. It goes through the queue, so its answer knows of every earlier write."""

    def __init__(self, work: Callable[[apsw.Connection], object], future: asyncio.Future[object]) -> None:
        self.work = work
        self.future = future
        self.loop = future.get_loop()

    def answer(self, result: object, error: Exception | None = None) -> None:
        try:
            self.loop.call_soon_threadsafe(self._deliver, result, error)
        except RuntimeError:
            log.debug("the event loop that asked the journal is closed; nobody is left to hear the answer")

    def _deliver(self, result: object, error: Exception | None) -> None:
        if self.future.done():  # whoever asked has been cancelled
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class _Stop(_Ask):
    """The last thing in the queue."""


_Item = Thing | _Ask


class SqliteJournal:
    """Journal of core/ports in one SQLite file, made readable to its owner alone.

    `queue_rows`: rows that may wait to be written; beyond it they are dropped and counted in `dropped`, and
    `last_error` says why. `keep_days`: older episodes, feedback and unused snapshots are deleted; None keeps all. The
    hourly sums are always kept. Raises ConfigError, naming the file and what to do, when it cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        queue_rows: int = 10_000,
        keep_days: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.dropped = 0
        self.last_error = ""
        self._queue_rows = queue_rows
        self._keep_days = keep_days
        self._clock = clock
        self._forget_at_s = 0.0
        self._queue: deque[_Item] = deque()  # appended to by anyone, taken from by the writer alone
        self._awake = threading.Event()
        self._hurry = threading.Event()
        self._counting = threading.Lock()
        self._written: Gathered[tuple[Record, str]] = Gathered(self._encoded, ENCODED_AT_ONCE)
        self._is_closed = False
        self._encode = msgspec.json.Encoder().encode
        self._reader = Reader(partial(self._lost, 0))
        self._connection = open_file(path)
        self._thread = threading.Thread(target=self._run, name="tierwise-journal", daemon=True)
        self._thread.start()

    # -------------------------------------------------------------------------------------------- writing

    def write(self, record: Record, words: str = "") -> None:
        """Some are encoded at once, and what numpy does for their words costs mostly its calls. Here and not by the
        writer, as long as many come: two threads that take turns cost more, and keep requests waiting."""
        if self._is_closed:
            self._lost(1, "the journal is closed")
            return
        self._written.add((record, words))
        if not self._awake.is_set():
            self._awake.set()

    def lull(self) -> None:
        if len(self._written) >= ENCODED_IN_A_LULL:
            self._written.flush()

    def _encoded(self, written: list[tuple[Record, str]]) -> None:
        try:
            kept = grams_of([words.casefold() for _, words in written])
        except Exception as error:  # the records are worth more than their words
            self._lost(0, f"no hashes of words could be made: {error!r}")
            kept = [b""] * len(written)
        for (record, _), grams in zip(written, kept, strict=True):
            try:
                row = row_of(record, self._encode(record).decode(), grams)
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                self._lost(1, f"a record cannot be written: {error}")
                continue
            self._put(row)

    def feedback(self, feedback: Feedback) -> None:
        self._put(feedback)

    def shadow(self, decision_id: str, at_s: int, event: Replied | Failed | Told) -> None:
        self._put(Shadow(decision_id, at_s, self._encode(event).decode()))

    def snapshot(self, hash: str, data: bytes) -> None:
        self._put(Snapshot(hash, data))

    def _put(self, item: Thing) -> None:
        waiting = len(self._queue)
        if self._is_closed:
            self._lost(1, "the journal is closed")
            return
        # There is one snapshot for thousands of records that cannot be replayed without it, so it always finds room.
        if waiting >= self._queue_rows and not isinstance(item, Snapshot):
            self._lost(1, f"more than {self._queue_rows} rows are waiting to be written")
            return
        self._queue.append(item)
        if waiting == BATCH_ROWS:
            self._hurry.set()
        if not self._awake.is_set():
            self._awake.set()

    # -------------------------------------------------------------------------------------------- reading

    async def read(self, decision_id: str) -> Record | None:
        """The record of an episode, every earlier write included. Raises TierwiseError when the row is unreadable."""

        def work(connection: apsw.Connection) -> Record | None:
            found = connection.execute(sql.READ_RECORD, (decision_id,)).fetchone()
            return None if found is None else self._reader.whole(connection, decision_id, *found)

        return await self._ask(work)

    async def beginning(self, start: str) -> list[str]:
        return await self._ask(lambda connection: [id for (id,) in connection.execute(sql.READ_BEGINNING, (start,))])

    async def read_snapshot(self, hash: str) -> bytes | None:
        def work(connection: apsw.Connection) -> bytes | None:
            data = connection.execute(sql.READ_SNAPSHOT, (hash,)).get
            return None if data is None else bytes(data)

        return await self._ask(work)

    async def recent(self, limit: int) -> list[Record]:
        """The newest first, at most RECENT_MAX. A row that cannot be read is left out and named in `last_error`."""

        def work(connection: apsw.Connection) -> list[Record]:
            found = []
            for decision_id, *data in connection.execute(sql.READ_RECENT, (max(min(limit, RECENT_MAX), 0),)):
                try:
                    found.append(self._reader.whole(connection, decision_id, *data))
                except msgspec.MsgspecError as error:
                    self._lost(0, f"the record of {decision_id} cannot be read: {error}")
            return found

        return await self._ask(work)

    async def stories(self, since_s: int, until_s: int, heard: Heard | None = None) -> AsyncIterator[list[Story]]:
        """Records with what was said of them, the oldest first, some hundreds at a time. What is written meanwhile may
        be among them. A row that cannot be read is left out and named in `last_error`."""
        place: tuple[int, int] | None = (since_s, -1)
        while place is not None:
            found, place = await self._ask(partial(self._reader.piece, place, until_s, heard or ALL))
            if found:
                yield found

    async def heard(self) -> Heard:
        return await self._ask(self._reader.heard)

    async def late(self, since: Heard, until: Heard, began_before_s: int) -> AsyncIterator[list[Late]]:
        for before, now in steps(since, until):
            found = await self._ask(partial(self._reader.late, before, now, began_before_s))
            if found:
                yield found

    async def stray_feedback(self, since_s: int, until_s: int) -> int:
        def work(connection: apsw.Connection) -> int:
            return int(connection.execute(sql.COUNT_STRAYS, (since_s, until_s)).get)

        return await self._ask(work)

    async def feedback_of(self, decision_id: str) -> list[Feedback]:
        """What was said of one reply, in the order it was said."""

        return await self._ask(partial(self._reader.feedback_of, decision_id))

    async def totals(self, since_s: int) -> list[Total]:
        """Sums for each model since the full hour of `since_s`, the dearest first."""

        def work(connection: apsw.Connection) -> list[Total]:
            return [
                Total(
                    model=model,
                    requests=requests,
                    cost_nano=cost,
                    baseline_nano=baseline,
                    saved_nano=saved,
                    unpriced=unpriced,
                    input_tokens=tokens_in,
                    output_tokens=tokens_out,
                )
                for model, requests, cost, baseline, saved, unpriced, tokens_in, tokens_out in connection.execute(
                    sql.READ_TOTALS, (since_s // HOUR_S,)
                )
            ]

        return await self._ask(work)

    async def close(self) -> None:
        """Write what is waiting, then let go of the file. Closing twice is closing once."""
        if self._is_closed:
            return
        self._written.flush()
        self._is_closed = True
        stop = _Stop(lambda _: None, asyncio.get_running_loop().create_future())
        self._push(stop)
        await stop.future

    async def _ask(self, work: Callable[[apsw.Connection], T]) -> T:
        import apsw

        if self._is_closed:
            raise Closed("the journal is closed")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._push(_Ask(work, future))  # type: ignore[arg-type]  # futures are invariant; `_deliver` hands on what `work` gave
        try:
            return await future
        except (apsw.Error, msgspec.MsgspecError) as error:
            raise TierwiseError(f"the journal {self.path} cannot be read: {error}") from error

    def _push(self, ask: _Ask) -> None:
        self._written.flush()
        self._queue.append(ask)
        self._hurry.set()
        self._awake.set()

    # -------------------------------------------------------------------------------------------- the writer thread

    def _run(self) -> None:
        while True:
            # `_awake` is cleared before the queue is emptied: whatever comes later sets it again.
            self._awake.wait(FORGET_EVERY_S)
            self._awake.clear()
            hurried = self._hurry.wait(GATHER_S)
            self._hurry.clear()
            self._written.flush()
            stop = self._empty_queue(hurried)
            if stop is not None:
                self._end(stop)
                return
            self._forget()

    def _empty_queue(self, hurried: bool) -> _Stop | None:
        batch: list[Thing] = []
        for _ in range(len(self._queue)):  # what comes meanwhile waits for the next round, so that each round ends
            item = self._queue.popleft()
            if not isinstance(item, _Ask):
                batch.append(item)
                if len(batch) < BATCH_ROWS:
                    continue
            self._commit(batch, hurried)
            batch = []
            if isinstance(item, _Stop):
                return item
            if isinstance(item, _Ask):
                try:
                    item.answer(item.work(self._connection))
                except Exception as error:  # whatever it is, it belongs to whoever asked, and the writer lives on
                    item.answer(None, error)
        self._commit(batch, hurried)
        return None

    def _commit(self, batch: list[Thing], hurried: bool) -> None:
        """All of a batch, or none: what the disk did not take is counted to the row. `hurried`: a reader waits, or
        many rows do."""
        if not batch:
            return
        try:
            faults = write_down(self._connection, batch, int(self._clock()), lambda: hurried or self._hurry.is_set())
        except Exception as error:  # a full or failing disk, or a fault of ours: never the request's business
            self._lost(len(batch), f"{self.path}: {error}")
            return
        for fault in faults:
            self._lost(1, fault)

    def _forget(self) -> None:
        """Delete what is past its time, a little now and the rest after the next batch."""
        now_s = self._clock()
        if self._keep_days is None or now_s < self._forget_at_s:
            return
        before_s = int(now_s) - self._keep_days * DAY_S
        try:
            with transaction(self._connection):
                self._connection.execute(sql.FORGET_EPISODES, (before_s, FORGET_ROWS))
                if self._connection.changes() == FORGET_ROWS:
                    self._awake.set()
                    return
                self._connection.execute(sql.FORGET_FEEDBACK, (before_s,))
                self._connection.execute(sql.FORGET_SHADOWS, (before_s,))
                self._connection.execute(sql.FORGET_SNAPSHOTS, (before_s,))
        except Exception as error:  # tried again in an hour
            self._lost(0, f"{self.path}: old rows were not deleted: {error}")
        self._forget_at_s = now_s + FORGET_EVERY_S

    def _end(self, stop: _Stop) -> None:
        error: Exception | None = None
        try:
            self._connection.close()
        except Exception as failure:  # told to whoever closes
            error = failure
        while self._queue:  # put there by another thread while we closed
            late = self._queue.popleft()
            if isinstance(late, _Ask):
                late.answer(None, Closed("the journal is closed"))
            else:
                self._lost(1, "the journal is closed")
        stop.answer(None, error)

    def _lost(self, rows: int, why: str) -> None:
        with self._counting:
            self.dropped += rows
            is_news = why != self.last_error
            self.last_error = why
        if is_news:  # once, not for every row: the counter says how many
            log.warning("journal: %s", why)
