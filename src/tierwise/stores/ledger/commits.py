"""Group commit: what the books change is written by one thread, and answered when it is on the disk.

While a commit runs, what comes gathers for the next. A batch that cannot be written takes its holds back and keeps all
else for the next try: no call leaves without a durable hold, and no cost is forgotten. All of this runs on the event
loop; `writer` is the thread.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tierwise.core.budget import Charge
from tierwise.core.errors import Closed, Unavailable
from tierwise.core.ports import CLAIM_S
from tierwise.stores.ledger.batch import Batch, End
from tierwise.stores.ledger.prune import AGAIN_S, KEPT_S
from tierwise.stores.ledger.reading import Reads
from tierwise.stores.ledger.writer import Rows, Writer, Written

GATHER_S = 0.01  # how long settlements wait for the next hold's commit, when nobody waits for them
# After a commit that so many holds waited for, others will come: the next one waits for them, the longer the more there
# were. A commit costs thirty turns of the two threads and a write to the disk, however much is in it: waiting saves 5
# to 10 % of each request at 16 callers at once, and 8 to 15 % at 32 and more.
JOIN_HOLDS = 4
JOIN_S = (0.0004, 0.012)  # for each of them; at most
RETRY_S = 0.25
STUCK_S = 10.0  # a commit that takes longer refuses who waits for it
DRAIN_S = 10.0  # how long `drain` and `close` try to write to a disk that takes nothing
ERRANDS_S = 60.0

log = logging.getLogger(__name__)


class GroupCommits(Reads):
    """The half of SqliteLedger that knows nothing of budgets: when to write, whom to answer, what to do on a fault."""

    def __init__(self, path: Path, writer: Writer, clock: Callable[[], float], lease_s: int) -> None:
        self.path = path
        self.last_error = ""
        self.faults = 0  # batches that could not be written
        self._writer = writer
        self._clock = clock
        self._steady = _steady(clock)  # by which calls are given up
        self._believed = _believed(clock, writer.last_at_s())  # by which the past is forgotten
        self._lease_s = lease_s
        self._number = writer.state.batch
        self._cut_end = self._end = End(writer.state.seq, writer.state.hash)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = self._closed = False
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._errand: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self._next = Batch()  # what belongs to the next commit, beside what the books have
        self._queue: deque[Batch] = deque()  # cut off, because it was large enough for one commit
        self._writing: Batch | None = None
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}  # of holds that are not on the disk yet
        self._syncing: list[asyncio.Future[None]] = []  # answered after the commit that is cut next
        self._synced: list[asyncio.Future[None]] = []  # answered after the commit that runs

    async def drain(self) -> None:
        """Until all that was posted by now is on the disk. Gives up on a disk that takes nothing for DRAIN_S."""
        try:
            async with asyncio.timeout(DRAIN_S):
                while self._pending() or self._queue or self._writing is not None:
                    try:
                        await self._sync()
                        return
                    except Unavailable:
                        await asyncio.sleep(RETRY_S)
                    except Closed:
                        return
        except TimeoutError:
            log.warning("ledger: not everything could be written: %s", self.last_error)

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        await self.drain()
        self.close_now()

    def close_now(self) -> None:
        """Also without an event loop: one try to write what is left, then let go of the file."""
        if self._closed:
            return
        self._closing = self._closed = True
        for handle in (self._timer, self._errand, self._stuck):
            if handle is not None:
                handle.cancel()
        self._writer.stop()
        self._refuse(Closed("the ledger is closed"))
        left = self._cut()
        if not left.is_empty():
            written = self._writer.write(self._rows(left))
            if written.why:
                log.error("ledger: %s: what was settled last is not written: %s", self.path, written.why)
            self._writer.let_go()

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._errand = self._loop.call_later(ERRANDS_S, self._do_errands)
            self._writer.on_lost = functools.partial(self._heard_of_loss, self._loop)
            if self.last_error:
                self._retry(RETRY_S)
        return self._loop

    def _usable(self) -> None:
        if self._closing:
            raise Closed("the ledger is closed")
        self._running()
        if self.last_error:
            raise self._unavailable()

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            "The ledger cannot write down what this call would cost, so it was not sent. Try again in a moment.",
            code="ledger_unavailable",
            retry_after_s=1,
        )

    def _soon(self) -> None:
        """Commit at the end of this turn of the loop, or after the commit that runs."""
        if not self._scheduled and self._writing is None:
            self._scheduled = True
            self._running().call_soon(self._flush)

    def _later(self) -> None:
        if self._timer is None and not self._scheduled and self._writing is None and not self._closing:
            try:
                self._timer = self._running().call_later(GATHER_S, self._flush)
            except RuntimeError:  # no loop runs yet; the first operation that waits will have it written
                return

    def _retry(self, after_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._running().call_later(after_s, self._flush)

    async def _sync(self) -> None:
        future = self._running().create_future()
        self._syncing.append(future)
        self._soon()
        await future

    def _pending(self) -> bool:
        return self.books.changed() or not self._next.is_empty()

    def _cut(self) -> Batch:
        batch, self._next = self._next, Batch()
        self._cut_end = batch.take(self.books.take(), self._cut_end)
        return batch

    def _rows(self, batch: Batch) -> Rows:
        self._number += 1
        self._end = batch.end or self._end
        return batch.rows(self._number, self._end, self._now_s())

    def _flush(self) -> None:
        self._scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        idle = not self._queue and not self._pending() and not self._syncing and not self.last_error
        if self._writing is not None or self._closed or idle:
            return
        if self._queue:
            batch = self._writing = self._queue.popleft()
        else:
            batch = self._writing = self._cut()
            self._synced, self._syncing = self._syncing, []
        rows = self._rows(batch)
        loop = self._running()
        self._stuck = loop.call_later(STUCK_S, self._is_stuck)
        self._writer.put(rows, lambda written: self._heard(loop, written))

    def _heard_of_loss(self, loop: asyncio.AbstractEventLoop, why: str) -> None:
        """In the writer's thread."""
        try:
            loop.call_soon_threadsafe(self._is_lost, why)
        except RuntimeError:
            log.debug("the event loop of the ledger is closed; nobody is left to hear that a file is gone")

    def _is_lost(self, why: str) -> None:
        """A file is gone. Nothing waits for the disk, so nobody else would have said it."""
        if not self.last_error and not self._closed:
            self.last_error = why
            log.error("ledger: %s: %s; calls are refused until then", self.path, why)
            self._retry(RETRY_S)

    def _heard(self, loop: asyncio.AbstractEventLoop, written: Written) -> None:
        """In the writer's thread."""
        try:
            loop.call_soon_threadsafe(self._hear, written)
        except RuntimeError:
            log.debug("the event loop of the ledger is closed; nobody is left to hear the answer")

    def _hear(self, written: Written) -> None:
        batch = self._writing
        if self._stuck is not None:
            self._stuck.cancel()
        if batch is None or self._closed:
            return
        if written.why:
            self._failed(written)
            return
        self._writing = None
        for id in batch.waiting:
            _answer(self._waiters.pop(id, ()))
        _answer(future for _, future in batch.claiming)
        _answer(self._synced)
        self._synced = []
        if written.reserved:
            self.last_error = ""
        else:
            self.last_error = f"the disk is full: there is no room for {self._writer.reserve.path.name}"
            self._retry(RETRY_S)
        if len(batch.waiting) >= JOIN_HOLDS and not (self._queue or self._closing or self.last_error):
            self._scheduled = True
            for_each_s, most_s = JOIN_S
            self._retry(min(for_each_s * len(batch.waiting), most_s))
        elif self._queue or self._next.waiting or self._next.claiming or self._syncing:
            self._flush()
        elif self._pending():
            self._later()

    def _failed(self, written: Written) -> None:
        """Who waits is refused, and their holds are as if never made. All else is tried again, soon and for ever."""
        is_news = not self.last_error
        self.faults += 1
        self.last_error = written.why
        if is_news:
            log.error("ledger: %s: %s; calls are refused until it can be written again", self.path, written.why)
        self._refuse(self._unavailable())
        self._retry(0 if is_news else RETRY_S)

    def _refuse(self, error: Exception) -> None:
        """Everything that is not known to be on the disk becomes one batch again, without what waits for an answer."""
        batches = [*filter(None, (self._writing,)), *self._queue, self._next]
        for batch in batches:
            for id in batch.waiting:
                self.books.undo(id)
            self._synced += [future for _, future in batch.claiming]
            batch.refuse()
        for later in batches[1:]:
            batches[0].join(later)
        self._writing, self._next = None, batches[0]
        self._queue.clear()
        self._tell(error)

    def _is_stuck(self) -> None:
        """The disk does not answer. Whoever waits is told; what the commit comes to is found out later."""
        batch = self._writing
        if batch is None:
            return
        self.last_error = f"the disk has not answered for {STUCK_S:.0f} seconds"
        log.error("ledger: %s: %s; calls are refused until it does", self.path, self.last_error)
        for each in (batch, *self._queue, self._next):
            for id in each.waiting:  # not undone, for it may be written yet: let go of
                self.books.settle(id, Charge(cost_nano=0, kind="released"), self._now_s())
            for key, future in each.claiming:
                self._next.claims.pop(key, None)  # not cut off yet: dropped first, it would be written all the same
                self._next.unclaimed[key] = None
                self._synced.append(future)
            each.waiting, each.claiming = [], []
        self._tell(self._unavailable())

    def _tell(self, error: Exception) -> None:
        """Everybody who waits that it will not be."""
        futures = [future for waiters in self._waiters.values() for future in waiters]
        futures += [*self._synced, *self._syncing]
        self._waiters, self._synced, self._syncing = {}, [], []
        for future in futures:
            if not future.done():
                future.set_exception(error)

    def _do_errands(self) -> None:
        now_s = int(self._steady())
        self._errand = self._running().call_later(ERRANDS_S, self._do_errands)
        self.books.expire(now_s - self._lease_s)
        self.books.resolve(now_s)
        self._next.forget_s = now_s - CLAIM_S  # with the next commit, whenever that is
        before_s = int(self._believed()) - KEPT_S
        if before_s >= self.books.forgotten_s + AGAIN_S:
            # From here on nobody asks for it, and it goes after all that was done with it so far is written.
            self.books.forgotten_s = self._next.prune_s = before_s
            self._later()
        if self.books.changed():
            self._later()

    def _unwritten(self) -> Iterator[Batch]:
        """The newest first."""
        yield self._next
        yield from reversed(self._queue)
        if self._writing is not None:
            yield self._writing


def _steady(clock: Callable[[], float]) -> Callable[[], float]:
    """What the wall clock says, but no further on than time has passed here: a clock that is set forward, or a machine
    that slept, must not give up calls that are under way, for their money would be spent again."""
    if clock is not time.time:
        return clock
    ahead_s = clock() - time.monotonic()
    return lambda: min(clock(), ahead_s + time.monotonic())


def _believed(clock: Callable[[], float], last_at_s: int | None) -> Callable[[], float]:
    """A clock that is years ahead must not have us forget this year: the time of the last entry, and as long as this
    process has run since. `last_at_s` None: there is nothing to forget yet."""
    if clock is not time.time:
        return clock
    began = (last_at_s if last_at_s is not None else clock()) - time.monotonic()
    return lambda: min(clock(), began + time.monotonic())


def _answer(futures: Iterable[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():  # whoever waited may have been cancelled
            future.set_result(None)
