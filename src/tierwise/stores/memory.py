"""The reference stores: a ledger and a journal in this process's memory. What they do, every other store must do.

Nothing here survives the process. Money that must is kept by a durable ledger, which passes the same contract tests.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable

import msgspec

from tierwise.core.budget import Budget, Charge, Denial, Hold
from tierwise.core.episode import Failed, Replied, Told
from tierwise.core.errors import Closed
from tierwise.core.grams import grams
from tierwise.core.ports import CLAIM_S, Claim, Feedback, Heard, Late, Record, Story
from tierwise.core.request import Payer
from tierwise.stores.journal_rows import RECENT_MAX, Total, newest, totals_of, with_grams
from tierwise.stores.ledger.books import Books
from tierwise.stores.ledger.reading import Reads

JOURNAL_SNAPSHOTS_KEPT = 16
CLAIMS_KEPT = 100_000


class MemoryLedger(Reads):
    """Ledger of core/ports. For one event loop: each operation runs from its first line to its last without waiting,
    so it is atomic, and a cancelled request cannot leave half of one behind."""

    def __init__(self, budgets: tuple[Budget, ...] = (), clock: Callable[[], float] = time.time) -> None:
        self.books = Books(budgets)
        self.last_error = ""
        self._clock = clock
        self._varied: set[str] = set()
        self._claims: OrderedDict[tuple[Payer, str], tuple[int, Claim]] = OrderedDict()

    async def hold(self, hold: Hold) -> Denial | None:
        denial = self.books.hold(hold)
        self.books.forget_changes()  # nobody keeps them
        return denial

    def settle(self, hold_id: str, charge: Charge) -> None:
        """A store that has to wait leaves a message for its own task here. Memory need not: the entry is posted before
        this returns, nothing can interrupt it, and so there is no task to lose it either."""
        self.books.settle(hold_id, charge, self._now_s())
        self.books.forget_changes()

    def checkpoint(self, hold_id: str, least_nano: int) -> None:
        self.books.checkpoint(hold_id, least_nano)

    async def correct(self, hold_id: str, cost_nano: int, note: str = "") -> bool:
        return self.books.correct(hold_id, cost_nano, self._now_s(), note)

    async def grant(self, id: str, scope: str, subject: str, amount_nano: int) -> bool:
        return self.books.grant(id, scope, subject, amount_nano, self._now_s())

    async def vary(self, id: str, line: str, subject: str, amount_nano: int, note: str) -> bool:
        if id in self._varied:
            return False
        if not self.books.vary(line, subject, amount_nano, self._now_s(), note):
            raise ValueError(f"{amount_nano} nano-dollars cannot be posted to {line}")
        self._varied.add(id)
        return True

    async def claim(self, payer: Payer, key: str, fingerprint: str, decision: str) -> Claim | None:
        now, claims = self._now_s(), self._claims
        while claims and (len(claims) >= CLAIMS_KEPT or next(iter(claims.values()))[0] <= now - CLAIM_S):
            claims.popitem(last=False)
        found = claims.get((payer, key))
        if found is not None:
            return found[1]
        claims[payer, key] = (now, Claim(decision, fingerprint))
        return None

    def finish(self, payer: Payer, key: str, decision: str, *, charged: bool) -> None:
        found = self._claims.get((payer, key))
        if found is not None and found[1].decision == decision and not charged:
            del self._claims[payer, key]

    async def drain(self) -> None:
        """Returns at once: in memory a posted settlement is a done one."""

    async def close(self) -> None:
        """Nothing to let go of."""

    def reload(self, budgets: tuple[Budget, ...]) -> None:
        self.books.reload(budgets)


class MemoryJournal:
    """Journal of core/ports: the last `limit` records and notes of feedback, and the last few snapshots."""

    def __init__(self, limit: int = 1000) -> None:
        self._limit = limit
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._feedback: deque[tuple[int, Feedback]] = deque(maxlen=limit)
        self._numbers: dict[str, tuple[int, ...]] = {}  # of an episode's shadows
        self._heard = Heard()
        self._snapshots: OrderedDict[str, bytes] = OrderedDict()
        self._is_closed = False
        self.dropped = 0  # what came after the end; to forget the oldest is what a ring is for
        self.last_error = ""

    def write(self, record: Record, words: str = "") -> None:
        if self._refuses() or record.episode.id in self._records:  # the first record of an episode stands
            return
        if words:
            record = with_grams(record, grams(words.casefold()))
        self._records[record.episode.id] = record
        if len(self._records) > self._limit:
            self._numbers.pop(self._records.popitem(last=False)[0], None)

    def lull(self) -> None:
        """Nothing is put off here."""

    def shadow(self, decision_id: str, at_s: int, event: Replied | Failed | Told) -> None:
        if not self._refuses() and decision_id in self._records:
            record = self._records[decision_id]
            self._heard = Heard(self._heard.feedback, self._heard.shadows + 1)
            self._records[decision_id] = msgspec.structs.replace(record, shadows=(*record.shadows, event))
            self._numbers[decision_id] = (*self._numbers.get(decision_id, ()), self._heard.shadows)

    def feedback(self, feedback: Feedback) -> None:
        if not self._refuses():
            self._heard = Heard(self._heard.feedback + 1, self._heard.shadows)
            self._feedback.append((self._heard.feedback, feedback))

    def snapshot(self, hash: str, data: bytes) -> None:
        if self._refuses():
            return
        self._snapshots.setdefault(hash, data)
        if len(self._snapshots) > JOURNAL_SNAPSHOTS_KEPT:
            self._snapshots.popitem(last=False)

    async def read(self, decision_id: str) -> Record | None:
        self._must_be_open()
        return self._records.get(decision_id)

    async def beginning(self, start: str) -> list[str]:
        self._must_be_open()
        return sorted(id for id in self._records if id.startswith(start))[:2]

    async def read_snapshot(self, hash: str) -> bytes | None:
        self._must_be_open()
        return self._snapshots.get(hash)

    async def recent(self, limit: int) -> list[Record]:
        """The newest first, at most RECENT_MAX."""
        self._must_be_open()
        return newest(self._records.values(), min(limit, RECENT_MAX))

    async def stories(self, since_s: int, until_s: int, heard: Heard | None = None) -> AsyncIterator[list[Story]]:
        """All at once: there are never many."""
        self._must_be_open()
        found = [record for record in self._records.values() if since_s <= record.episode.at_s < until_s]
        if found:
            found.sort(key=lambda record: record.episode.at_s)
            yield [self._story(record, heard or self._heard) for record in found]

    async def heard(self) -> Heard:
        self._must_be_open()
        return self._heard

    async def late(self, since: Heard, until: Heard, began_before_s: int) -> AsyncIterator[list[Late]]:
        """All at once."""
        self._must_be_open()
        ids = {each.decision_id for number, each in self._feedback if since.feedback < number <= until.feedback}
        for id, numbers in self._numbers.items():
            if any(since.shadows < number <= until.shadows for number in numbers):
                ids.add(id)
        about = [record for id, record in self._records.items() if id in ids and record.episode.at_s < began_before_s]
        if about:
            about.sort(key=lambda record: record.episode.at_s)
            yield [Late(self._story(record, since), self._story(record, until)) for record in about]

    def _story(self, record: Record, heard: Heard) -> Story:
        id = record.episode.id
        later = sum(number > heard.shadows for number in self._numbers.get(id, ()))
        if later:
            record = msgspec.structs.replace(record, shadows=record.shadows[:-later])
        said = (each for number, each in self._feedback if number <= heard.feedback and each.decision_id == id)
        return Story(record, tuple(said))

    async def stray_feedback(self, since_s: int, until_s: int) -> int:
        self._must_be_open()
        return sum(
            since_s <= each.at_s < until_s and each.decision_id not in self._records for _, each in self._feedback
        )

    async def feedback_of(self, decision_id: str) -> list[Feedback]:
        """What was said of one reply, in the order it was said."""
        self._must_be_open()
        return [feedback for _, feedback in self._feedback if feedback.decision_id == decision_id]

    async def totals(self, since_s: int) -> list[Total]:
        """Sums for each model since the full hour of `since_s`, over the records that are kept."""
        self._must_be_open()
        return totals_of(self._records.values(), since_s)

    async def close(self) -> None:
        self._is_closed = True

    def _refuses(self) -> bool:
        if self._is_closed:
            self.dropped += 1
            self.last_error = "the journal is closed"
        return self._is_closed

    def _must_be_open(self) -> None:
        if self._is_closed:
            raise Closed("the journal is closed")
