"""One attempt at one model: hold the money, ask, and settle on every way out.

The settlement is only ever *posted*, by a call that does not wait, so it stands in a `finally` safely: a request that
is cancelled there loses nothing. What needs waiting (our own count of tokens) runs in a task that outlives the request.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Coroutine
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from tierwise import wire
from tierwise.core.attempt import HELPER_CHARACTERS, HELPER_TOKENS
from tierwise.core.budget import UNKNOWN_NANO, Charge, Denial, Hold
from tierwise.core.catalogue import Model, Provider
from tierwise.core.episode import Call, Episode, Failed, Replied, Serve
from tierwise.core.money import Service, Usage
from tierwise.core.ports import Departure, Ledger, Outgoing, UpstreamError
from tierwise.core.request import Request
from tierwise.core.shadow import exploring
from tierwise.core.snapshot import Snapshot
from tierwise.core.weigh import NAME_LETTERS, billed_model, charged_nano, expected_nano
from tierwise.routing.ratios import Measured, language_of
from tierwise.wire.contract import Garbled, Reply, Sent

if TYPE_CHECKING:
    from tierwise.routing.books import Books

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


# How the id of a session begins that nobody named, but that was read from a conversation's first words.
DERIVED = "auto-"


def fingerprint(episode: Episode) -> str:
    """What a loop detector compares: equal when the same is asked after the same step with the same result, however
    long the conversation has grown. "" for what is no step of an agent: embeddings, and the first request of a
    conversation that no caller named, since strangers who begin alike are not one who repeats himself."""
    features, hints = episode.features, episode.hints
    if not features.tail_hash:
        return ""
    if not features.replied and not hints.workflow and (hints.session or DERIVED).startswith(DERIVED):
        return ""
    return blake2b(f"{features.template_hash} {features.tail_hash}".encode(), digest_size=12).hexdigest()


class Attempt:
    """The money of one call, from its hold to its settlement. `close*` may be called twice; the first one counts.

    `stepped`: an earlier call of this request has made its step. `counted`: this one reached a model, and was one.
    `expected_input`: tokens of the prompt, as this model makes them; of a helper's, no more than it is shown.
    `least_nano`: what they cost, which is all that is certain of a call that was made."""

    dispatched = False
    closed = False
    counted = False

    def __init__(
        self,
        ledger: Ledger,
        books: Books,
        snapshot: Snapshot,
        episode: Episode,
        call: Call,
        number: int,
        *,
        stepped: bool = False,
    ) -> None:
        self.ledger = ledger
        self.books = books
        self.snapshot = snapshot
        self.episode = episode
        self.call = call
        self.payer = exploring(episode.payer) if call.explored else episode.payer
        self.model: Model = snapshot.catalogue.models[call.model]
        self.id = f"{episode.id}.{number}"
        self.began = time.monotonic()
        self.departure = Departure()
        self.stepped = stepped
        features = episode.features
        tokens, bound = features.input_tokens, features.input_bound_tokens
        if not isinstance(call.about, Serve):
            tokens = min(tokens, HELPER_CHARACTERS)
        self.language = language = language_of(features)
        expected = books.ratios.expected(call.model, language, tokens)
        # Never above what was held for it, whatever was learned from other prompts.
        self.expected_input = expected if expected <= bound else max(bound, 1)

    def hold(self) -> Awaitable[Denial | None]:
        """Sets the money aside. Of an attempt that is denied nothing is left to settle: it is closed."""
        episode, call = self.episode, self.call
        hints = episode.hints
        self.least_nano = expected_nano(self.model, episode, self.expected_input, 0) or 0
        return self.ledger.hold(
            Hold(
                id=self.id,
                payer=self.payer,
                session=hints.session or "",
                workflow=hints.workflow or "",
                model=call.model,
                amount_nano=call.worst_case_nano,
                at_s=episode.at_s,
                tokens=call.tokens,
                steps=0 if self.stepped else 1,
                request_limit_nano=hints.max_cost_nano,
                request=episode.id,
                fingerprint=fingerprint(episode),
                bounded=call.bounded,
                least_nano=self.least_nano,
                snapshot=episode.snapshot,
            )
        )

    async def measured(self, text: str) -> Measured:
        """The tokens of what this model wrote. Off the event loop."""
        return await self.books.ratios.measured(self.model, text)

    def written(self, measured: Measured) -> int:
        """What a reply so measured is charged for: no more than the ceiling that was held for, unless it is by our own
        count, which is of what came."""
        ceiling, replies = self._ceiling()
        most = (ceiling + self.episode.features.reasoning_tokens) * replies
        return max(min(measured.expected, most), min(measured.expected, measured.counted))

    def paid(self, usage: Usage, served: str, service: Service | None = None, wrote: str = "") -> Paid:
        """What this usage costs. Settles it, and learns from it; `wrote` is the text that it was reported for."""
        priced = self.priced(usage, served, service)
        cost = priced.cost_nano
        if not usage.estimated and priced.billed == self.model.id:
            self._learn(usage, wrote)
        guessed = usage.estimated or cost is None
        self._close(
            Charge(
                cost_nano=UNKNOWN_NANO if cost is None else cost,
                usage=usage,
                billed=priced.billed,
                kind="estimated" if guessed else "reported",
            )
        )
        return priced

    def priced(self, usage: Usage, served: str, service: Service | None = None) -> Paid:
        """What this usage costs at the price of the model that ran, at the class of service it ran at."""
        billed = billed_model(self.snapshot.catalogue, self.model, served)
        return Paid(usage=usage, cost_nano=charged_nano(billed, self.episode, usage, service), billed=billed.id)

    def checkpoint(self, usage: Usage) -> None:
        """So much has been used of it for certain."""
        cost = charged_nano(self.model, self.episode, usage)
        if cost and not self.closed:
            self.ledger.checkpoint(self.id, cost)

    def _learn(self, usage: Usage, wrote: str) -> None:
        """Of plain text only: what a picture or a file counts is no matter of tokenizers, nor is what nobody was
        shown of a model's thoughts."""
        features, ratios, language = self.episode.features, self.books.ratios, self.language
        about = self.call.about
        if isinstance(about, Serve) and not about.drafts:
            if not (features.images or features.audio or features.documents or features.references):
                ratios.learn(self.model.id, language, features.input_tokens, usage.prompt_tokens)
        tokens, hidden = usage.output_tokens, usage.reasoning_tokens + usage.output_audio_tokens
        if not hidden and not features.reasoning_tokens and ratios.due(self.model, language, wrote, tokens):
            self.books.errands.post(ratios.learn_reply(self.model, language, wrote, tokens))

    def release(self) -> None:
        """Nothing was used, or nothing that a provider bills."""
        self._close(Charge(cost_nano=0, kind="released"))

    def worst(self) -> int:
        """What was used is unknown: the worst case is charged, marked as estimated, for a later truth to correct."""
        worst = self.call.worst_case_nano
        self._close(
            Charge(cost_nano=worst if self.call.bounded else UNKNOWN_NANO, billed=self.model.id, kind="estimated")
        )
        return worst

    def failed(self, error: UpstreamError) -> int:
        """Settles a call that failed. An error reply is not billed; a call that we gave up on, that broke off, or whose
        reply nobody can read, is, unless the provider's row says otherwise."""
        provider, kind = self.snapshot.catalogue.providers[self.model.provider], error.kind
        if not self.dispatched or error.status >= 300 or not provider.bills_abandoned:
            self.release()
            return 0
        if kind == "garbled":
            usage = error.usage
            if usage is None:
                written = self.unread(len(error.body)) if error.body else self._written_by_now()
                usage = Usage(input_tokens=self.expected_input, output_tokens=written, estimated=True)
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
            usage = Usage(input_tokens=self.expected_input, output_tokens=self._written_by_now(), estimated=True)
            return self.paid(usage, "").cost_nano or 0
        self.release()
        return 0

    def unread(self, size_bytes: int) -> int:
        """The tokens that so many bytes of a reply can have been, when nobody can read them: one each, no more than the
        ceiling. What a model thinks before it writes is in none of them."""
        thought = self._written_by_now() if "reasoning" in self.model.abilities else 0
        ceiling, replies = self._ceiling()
        return min(size_bytes + thought, ceiling * replies)

    def _written_by_now(self) -> int:
        """The tokens that the provider can have written until now, of a reply that nobody saw: no faster than several
        times its usual speed, no longer than the ceiling."""
        ceiling, replies = self._ceiling()
        fastest = math.ceil((time.monotonic() - self.began) * self.model.tokens_per_second * _FASTEST)
        return min(ceiling, fastest) * replies

    def _ceiling(self) -> tuple[int, int]:
        """(the most tokens of one reply, how many replies)"""
        features = self.episode.features
        if self.model.kind == "embedding":
            return 0, 1
        if not isinstance(self.call.about, Serve):  # the caller's wishes are none of a helper's
            return HELPER_TOKENS, 1
        return self.call.max_tokens or features.max_tokens or self.model.max_output_tokens, features.n

    def _close(self, charge: Charge) -> None:
        if self.closed:
            return
        self.closed = True
        self.counted = charge.kind != "released"
        self.ledger.settle(self.id, charge)
        excess = charge.cost_nano - self.call.worst_case_nano
        if excess > 0 and self.call.bounded:
            what = f"decision {self.episode.id}: a call of {self.model.id}"
            self.books.overspent(what, excess, self.ledger.balances(self.payer, self.episode.hints))


async def counted(attempt: Attempt, reply: Reply) -> Usage:
    """What was used, where the provider says nothing, or nothing of what it read or wrote (`is_told`): our own count
    stands for that. Nobody answers for nothing."""
    said = reply.usage if reply.usage is not None else Usage()
    written = 0 if said.completion_tokens else attempt.written(await attempt.measured(reply.output_text))
    return msgspec.structs.replace(
        said,
        input_tokens=said.input_tokens if said.prompt_tokens else attempt.expected_input,
        output_tokens=said.output_tokens if said.completion_tokens else written,
        estimated=True,
    )


def is_told(usage: Usage, *, wrote: bool) -> bool:
    """Whether a provider's usage says what it read, and what it wrote where it wrote anything."""
    read = usage.input_tokens or usage.prompt_tokens  # the first of the sum is all that most replies have
    return read > 0 and (not wrote or (usage.output_tokens or usage.completion_tokens) > 0)


def reply_of(body: bytes, spoken: str, asked: Request | None, *, compared: bool) -> Reply:
    """The reply in this body, `asked` and `compared` as in `wire.read_reply`. Raises UpstreamError."""
    try:
        return wire.read_reply(spoken, body, asked, compared=compared)
    except Garbled as error:
        usage = error.usage if error.usage is not None and is_told(error.usage, wrote=True) else None
        raise UpstreamError(error.kind, str(error), status=200, body=body, usage=usage) from None


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
        cost_nano=attempt.failed(error),
        helper=not isinstance(attempt.call.about, Serve),
        message=error.message[:500],
    )


def replied_event(attempt: Attempt, reply: Reply, usage: Usage, paid: Paid, *, started: float, began: float) -> Replied:
    """The event of a whole reply that was paid: now, of a request that started and a call that began at these times."""
    now = time.monotonic()
    return Replied(
        at=attempt.call.at,
        model=attempt.call.model,
        after_ms=round((now - started) * 1_000),
        usage=usage,
        cost_nano=paid.cost_nano,
        served=reply.served[:NAME_LETTERS],
        billed=paid.billed,
        latency_ms=round((now - began) * 1_000),
        facts=reply.facts,
    )


def outgoing_of(attempt: Attempt, provider: Provider, sent: Sent, *, stream: bool) -> Outgoing:
    """What is sent for this attempt, which then knows when its first byte has left."""
    return Outgoing(
        provider=provider,
        path=sent.path,
        body=sent.body,
        stream=stream,
        deadlines=provider.deadlines,
        headers=sent.headers,
        departure=attempt.departure,
    )


def since_ms(started: float) -> int:
    return round((time.monotonic() - started) * 1_000)
