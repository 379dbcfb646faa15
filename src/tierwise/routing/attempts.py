"""One attempt at one model: hold the money, ask, and settle on every way out.

The settlement is only ever *posted*, by a call that does not wait, so it stands in a `finally` safely: a request that
is cancelled there loses nothing. What needs waiting (our own count of tokens) runs in a task that outlives the request.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine

import msgspec

from tierwise.core.budget import Charge, Denial, Hold
from tierwise.core.catalogue import Model
from tierwise.core.episode import Call, Episode, Failed, FailureKind, Serve
from tierwise.core.money import Usage
from tierwise.core.ports import Departure, Ledger, UpstreamError
from tierwise.core.snapshot import Snapshot
from tierwise.core.weigh import billed_model, charged_nano
from tierwise.routing.tokens import count

_log = logging.getLogger("tierwise")
_FASTEST = 4.0  # times the usual speed of a model


class Errands:
    """Tasks that outlive the request that began them. `drain` waits for all of them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def post(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("an errand failed", exc_info=task.exception())

    async def drain(self) -> None:
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


class Paid(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt came to. `cost_nano` None: the model is unpriced."""

    usage: Usage
    cost_nano: int | None
    billed: str


class Attempt:
    """The money of one call, from its hold to its settlement. `close*` may be called twice; the first one counts."""

    def __init__(self, ledger: Ledger, snapshot: Snapshot, episode: Episode, call: Call, number: int) -> None:
        self.ledger = ledger
        self.snapshot = snapshot
        self.episode = episode
        self.call = call
        self.model: Model = snapshot.catalogue.models[call.model]
        self.id = f"{episode.id}.{number}"
        self.began = time.monotonic()
        self.departure = Departure()
        self.dispatched = False
        self.closed = False

    async def hold(self) -> Denial | None:
        hints = self.episode.hints
        denial = await self.ledger.hold(
            Hold(
                id=self.id,
                payer=self.episode.payer,
                session=hints.session or "",
                workflow=hints.workflow or "",
                model=self.model.id,
                amount_nano=self.call.worst_case_nano,
                at_s=self.episode.at_s,
                request_limit_nano=hints.max_cost_nano,
                request=self.episode.id,
            )
        )
        self.closed = denial is not None
        return denial

    def paid(self, usage: Usage, served: str) -> Paid:
        """What this usage costs at the price of the model that ran. Settles it."""
        billed = billed_model(self.snapshot.catalogue, self.model, served)
        cost = charged_nano(billed, self.episode, usage)
        self._close(
            Charge(
                cost_nano=cost or 0, usage=usage, billed=billed.id, kind="estimated" if usage.estimated else "reported"
            )
        )
        return Paid(usage=usage, cost_nano=cost, billed=billed.id)

    def release(self) -> None:
        """Nothing was used, or nothing that a provider bills."""
        self._close(Charge(cost_nano=0, kind="released"))

    def worst(self) -> int:
        """What was used is unknown: the worst case is charged, marked as estimated, for a later truth to correct."""
        self._close(Charge(cost_nano=self.call.worst_case_nano, billed=self.model.id, kind="estimated"))
        return self.call.worst_case_nano

    def failed(self, kind: FailureKind, status: int) -> int:
        """Settles a call that failed. An error reply is not billed; a call that we gave up on, or that broke off, is,
        unless the provider's row says otherwise."""
        provider = self.snapshot.catalogue.providers[self.model.provider]
        if not self.dispatched or status >= 300 or not provider.bills_abandoned:
            self.release()
            return 0
        if kind == "garbled":
            usage = Usage(input_tokens=self.episode.features.input_tokens, estimated=True)
            return self.paid(usage, "").cost_nano or 0
        if kind in ("timeout", "cut", "too_large"):
            return self.worst()
        self.release()
        return 0

    def abandon(self) -> int:
        """The request went away, or we broke: whatever happened, the hold does not stay. A hold whose answer we did not
        live to see is released all the same: the ledger ignores an id that it does not hold. Gives what was charged."""
        if self.closed:
            return 0
        gone = self.dispatched or self.departure.gone
        if gone and self.snapshot.catalogue.providers[self.model.provider].bills_abandoned:
            return self.paid(self._so_far(), "").cost_nano or 0
        self.release()
        return 0

    def _so_far(self) -> Usage:
        """What the provider can have written until now, of a reply that nobody saw: no faster than several times its
        usual speed, no longer than the ceiling."""
        features = self.episode.features
        ceiling = self.call.max_tokens or features.max_tokens or self.model.max_output_tokens
        fastest = math.ceil((time.monotonic() - self.began) * self.model.tokens_per_second * _FASTEST)
        return Usage(
            input_tokens=features.input_tokens, output_tokens=min(ceiling, fastest) * features.n, estimated=True
        )

    def _close(self, charge: Charge) -> None:
        if not self.closed:
            self.closed = True
            self.ledger.settle(self.id, charge)


async def counted(attempt: Attempt, output: str, prompt_tokens: int | None = None) -> Usage:
    """Our own count of an attempt whose provider did not say."""
    features = attempt.episode.features
    read = features.input_tokens if prompt_tokens is None else prompt_tokens
    return Usage(input_tokens=read, output_tokens=await count(output), estimated=True)


def failed_event(attempt: Attempt, error: UpstreamError, after_ms: int) -> Failed:
    """The event of a failure, with its settlement made."""
    attempt.dispatched = error.dispatched
    return Failed(
        at=attempt.call.at,
        model=attempt.model.id,
        after_ms=after_ms,
        kind=error.kind,
        status=error.status,
        retry_after_ms=error.retry_after_ms,
        cost_nano=attempt.failed(error.kind, error.status),
        helper=not isinstance(attempt.call.about, Serve),
        message=error.message[:500],
    )


def since_ms(started: float) -> int:
    return round((time.monotonic() - started) * 1_000)
