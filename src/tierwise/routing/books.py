"""What outlives a request: the journal, the counters, the errands, and how many requests are under way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

import msgspec

from tierwise.core.budget import Balance
from tierwise.core.episode import Failed
from tierwise.core.features import asked
from tierwise.core.money import dollars
from tierwise.core.ports import Journal, Record, Status, Upstream, UpstreamError
from tierwise.routing.attempts import Errands
from tierwise.routing.health import Health
from tierwise.routing.ratios import Ratios
from tierwise.routing.shadows import Shadows
from tierwise.routing.shares import Shares
from tierwise.routing.tally import Tally
from tierwise.routing.trace import Trace

_log = logging.getLogger("tierwise")
ALERT_S = 60.0  # between two lines about the same budget
ALERTS_KEPT = 1_000


class Books:
    """One per router. A request enters, and leaves exactly once, after its story is written down."""

    def __init__(self, journal: Journal, upstream: Upstream, *, store_texts: bool) -> None:
        self.journal = journal
        self.store_texts = store_texts
        self.tally = Tally()
        self.health = Health()
        self.errands = Errands()
        self.shadows = Shadows(self, upstream)
        self.ratios = Ratios()
        self.shares = Shares()
        self._alerts: dict[tuple[str, str, str], float] = {}  # budget -> when it was last told of
        self.in_flight = 0
        self._idle = asyncio.Event()

    def failed(self, model: str, error: UpstreamError) -> None:
        """Count a failure, before or after the first byte, and let the model rest when it fails too much."""
        self.health.failed(model, error.kind, error.retry_after_ms, error.message)
        self.tally.failed(model, error.kind)

    def overspent(self, what: str, excess_nano: int, budgets: Iterable[Balance]) -> None:
        """A provider billed more than was held: counted, and told at most once a minute for each budget. The ledger has
        charged it in full, so a hard budget that it broke is closed."""
        self.tally.overages += 1
        self.tally.overage_nano += excess_nano
        now, fresh = time.monotonic(), []
        for each in budgets:
            key = (each.scope, each.window, each.subject)
            if each.limit_nano is not None and now - self._alerts.get(key, -ALERT_S) >= ALERT_S:
                self._alerts[key] = now
                fresh.append(f"{each.scope} budget ({each.window}, {dollars(each.limit_nano)})")
        if len(self._alerts) > ALERTS_KEPT:
            self._alerts = {key: told for key, told in self._alerts.items() if now - told < ALERT_S}
        if fresh:
            _log.warning(
                "%s was billed %s above what was held; charged in full to: %s",
                what,
                dollars(excess_nano),
                ", ".join(fresh),
            )

    def enter(self) -> None:
        self.in_flight += 1

    def leave(self) -> None:
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()
            self.journal.lull()

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        while self.in_flight:
            self._idle.clear()
            await self._idle.wait()

    def end(self, trace: Trace, status: Status, code: str = "") -> None:
        """Write the story down. Never waits, never fails the request."""
        snapshot, texts = trace.snapshot, self.store_texts
        record = trace.record(status, code, prompt=trace.request.body.decode("utf-8", "replace") if texts else None)
        self.tally.count(record)
        episode = record.episode
        self.shares.note(record, snapshot.policies[episode.policy].dear_rise)
        later = snapshot.grams and not snapshot.reads_grams and episode.kind == "chat"
        self.journal.write(record if texts else _wordless(record), asked(trace.request.prompt) if later else "")


def _wordless(record: Record) -> Record:
    """Without what providers said of a failure: it may quote the prompt."""
    events = record.episode.events
    for event in events:
        if isinstance(event, Failed) and event.message:
            break
    else:
        return record
    replace = msgspec.structs.replace
    told = tuple(replace(event, message="") if isinstance(event, Failed) else event for event in events)
    return replace(record, episode=replace(record.episode, events=told))
