"""What outlives a request: the journal, the counters, the errands, and how many requests are under way."""

from __future__ import annotations

import asyncio

from tierwise.core.ports import Journal, Status
from tierwise.routing.attempts import Errands
from tierwise.routing.tally import Tally
from tierwise.routing.trace import Trace


class Books:
    """One per router. A request enters, and leaves exactly once, after its story is written down."""

    def __init__(self, journal: Journal, *, store_texts: bool) -> None:
        self.journal = journal
        self.store_texts = store_texts
        self.tally = Tally()
        self.errands = Errands()
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        self.in_flight += 1
        self._idle.clear()

    def leave(self) -> None:
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        await self._idle.wait()

    def end(self, trace: Trace, status: Status, code: str = "") -> None:
        """Write the story down. Never waits, never fails the request."""
        prompt = trace.request.body.decode("utf-8", "replace") if self.store_texts else None
        record = trace.record(status, code, prompt=prompt)
        self.tally.count(record)
        self.journal.write(record)
