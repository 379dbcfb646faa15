"""Does what `decide` says, sees what happens, and asks again. A request's whole life, from its door to its record.

Holds and settlements are made in `attempts`; replies that stream on are in `streams`. Nothing here knows a store, a
provider or a wire format by name.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

import msgspec

from tierwise import wire
from tierwise.core.attempt import HELPER_TOKENS
from tierwise.core.budget import Balance, Denial, Lambda
from tierwise.core.catalogue import Model, Provider
from tierwise.core.decide import decide
from tierwise.core.episode import (
    Answer,
    Ask,
    Call,
    Decision,
    Denied,
    Episode,
    Event,
    Refuse,
    Replied,
    Serve,
    Told,
)
from tierwise.core.errors import Closed, RequestError, Unknown
from tierwise.core.money import Usage
from tierwise.core.policy import Cascade
from tierwise.core.ports import Feedback, Journal, Ledger, Record, Upstream, UpstreamError
from tierwise.core.request import Hints, Payer, Request
from tierwise.core.snapshot import Snapshot, dump
from tierwise.routing.attempts import (
    Attempt,
    counted,
    failed_event,
    is_told,
    outgoing_of,
    replied_event,
    reply_of,
    since_ms,
)
from tierwise.routing.books import Books
from tierwise.routing.door import open_episode
from tierwise.routing.health import Health
from tierwise.routing.helpers import Answers, cache_key, question, read_answer, read_score
from tierwise.routing.idempotency import Once
from tierwise.routing.refusals import refusal_error
from tierwise.routing.streams import Streamed
from tierwise.routing.trace import Trace
from tierwise.wire.contract import Reply, Sent, Shape

_log = logging.getLogger("tierwise")
# `decide` ends every story by its own limits; this only keeps a defect of ours from asking for ever.
MAX_STEPS = 200


class Answered:
    """A whole reply in the caller's format. Hand it on, then close it on every way out: writing the story down is no
    part of the wait. `event_stream`: it is a stream's bytes, for a caller that asked for one."""

    __slots__ = ("_books", "_closed", "body", "event_stream", "trace")

    def __init__(self, books: Books, trace: Trace, body: bytes, *, event_stream: bool) -> None:
        self._books = books
        self._closed = False
        self.trace = trace
        self.body = body
        self.event_stream = event_stream

    def close(self) -> None:
        """Twice is once."""
        if self._closed:
            return
        self._closed = True
        try:
            self._books.end(self.trace, "answered")
        finally:
            self._books.leave()


class Router:
    """One per process. Safe for as many requests at once as there are; every method runs on one event loop."""

    def __init__(
        self,
        *,
        snapshot: Snapshot,
        ledger: Ledger,
        journal: Journal,
        upstream: Upstream,
        store_texts: bool = False,
        budget_status: int = 402,
        now: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.ledger = ledger
        self.journal = journal
        self.upstream = upstream
        self.books = Books(journal, upstream, store_texts=store_texts)
        self.tally = self.books.tally
        self.errands = self.books.errands
        self.shadows = self.books.shadows
        self.budget_status = budget_status
        self._now = now
        self._draw = draw
        self._answers = Answers(time.monotonic)
        self._draining = False
        self._snapshot = snapshot
        journal.snapshot(snapshot.hash, dump(snapshot))

    # -------------------------------------------------------------------------------------------- what is known

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    def swap(self, snapshot: Snapshot) -> None:
        """From the next request on, this is what is known. Requests under way keep what they began with."""
        self.journal.snapshot(snapshot.hash, dump(snapshot))
        self._snapshot = snapshot

    @property
    def health(self) -> Health:
        return self.books.health

    @property
    def draining(self) -> bool:
        return self._draining

    def route(self, request: Request, payer: Payer = Payer(), grants: tuple[str, ...] = ()) -> tuple[Episode, Decision]:
        """Decide and call nothing. The decision is written down, as one that was not carried out."""
        trace = Trace(
            self._snapshot, request, self._open(request, payer, grants, self._snapshot), started=time.monotonic()
        )
        decision = self._decide(trace.snapshot, trace.episode)
        trace.decisions.append(decision)
        self.books.end(trace, "dry_run")
        return trace.episode, decision

    def stamp(self) -> tuple[int, int]:
        """(the time, the ledger's revision): as long as both are the same, so is what everybody has left."""
        return int(self._now()), self.ledger.revision

    def standing(self, payer: Payer, hints: Hints, at_s: int) -> tuple[Lambda, tuple[Balance, ...]]:
        """(the price of money, every budget and credit above this payer), as they are now."""
        money = self.books.shares.money(self.ledger.money(payer, hints, at_s), payer.key)
        return money, self.ledger.balances(payer, hints)

    async def record(self, decision_id: str, payer: Payer = Payer()) -> Record:
        """The record of a decision. Raises Unknown when there is none, or when it is another payer's."""
        found = await self.journal.read(decision_id)
        if found is None or found.episode.payer != payer:
            raise Unknown("there is no such decision, or it is not yours", code="decision_not_found", param="id")
        return found

    async def feedback(self, feedback: Feedback) -> None:
        """Keep what was said of a reply. Raises Unknown for a decision that is not this payer's."""
        await self.record(feedback.decision_id, feedback.payer)
        self.journal.feedback(feedback)

    # -------------------------------------------------------------------------------------------- one request

    async def handle(
        self,
        request: Request,
        payer: Payer = Payer(),
        grants: tuple[str, ...] = (),
        once: Once | None = None,
    ) -> Answered | Streamed:
        """Answer the request. Raises RequestError (in the caller's words) and Closed while draining. `once`: its claim
        on an idempotency key; whoever made it ends it.

        What it returns must be closed on every way out; until then the request counts as in flight."""
        if self._draining:
            raise Closed("the router is shutting down")
        started = time.monotonic()
        snapshot = self._snapshot
        episode = self._open(request, payer, grants, snapshot)
        if once is not None:
            episode = msgspec.structs.replace(episode, id=once.decision)
        trace = Trace(snapshot, request, episode, started)
        self.books.enter()
        result: Answered | Streamed | None = None
        try:
            result = await self._run(trace)
            return result
        except RequestError as error:
            error.attempts = trace.attempts
            error.decision = error.decision or trace.episode.id
            self.books.end(trace, "refused", error.code)
            raise
        except BaseException as error:
            # Cancellation is no Exception, and the record of what was spent must be written all the same.
            self.books.end(trace, "abandoned", type(error).__name__)
            raise
        finally:
            if once is not None:
                once.charged = isinstance(result, Streamed) or trace.stepped
            if result is None:
                self.books.leave()

    async def _run(self, trace: Trace) -> Answered | Streamed:
        replies: dict[int, Reply] = {}
        for _ in range(MAX_STEPS):
            decision = self._decide(trace.snapshot, trace.episode)
            if not trace.decisions:
                trace.own_ms = (time.monotonic() - trace.started) * 1_000
            trace.decisions.append(decision)
            match decision.step:
                case Call() as call:
                    outcome = self._unasked(trace, call) or await self._perform(trace, call, replies)
                    if isinstance(outcome, Streamed):
                        return outcome
                    trace.add(outcome)
                    if call.final and isinstance(outcome, Replied):
                        # Final means: delivered whatever it is. There is nothing left to decide.
                        return self._deliver(trace, replies.popitem()[1], outcome)
                case Answer(event=event):
                    chosen = trace.episode.events[event]
                    assert isinstance(chosen, Replied)  # noqa: S101  # `decide` answers with replies only
                    return self._deliver(trace, replies[event], chosen)
                case Refuse() as refuse:
                    raise refusal_error(
                        refuse,
                        trace.snapshot,
                        trace.episode,
                        decision.candidates,
                        self.books.health,
                        self.budget_status,
                    )
        raise RuntimeError(f"decision {trace.episode.id} did not end within {MAX_STEPS} steps")

    def _open(self, request: Request, payer: Payer, grants: tuple[str, ...], snapshot: Snapshot) -> Episode:
        resting = self.books.health.resting()
        episode = open_episode(request, payer, grants, snapshot, self.ledger, resting, self._now, self._draw)
        return self.books.shares.opened(episode, snapshot.policies[episode.policy].dear_rise)

    def _decide(self, snapshot: Snapshot, episode: Episode) -> Decision:
        try:
            return decide(snapshot, episode)
        except Exception:
            # A router is an optimisation: its failure may cost the cheaper model, never the request.
            if episode.pinned:
                raise
            _log.exception("routing failed for decision %s; the reliable model answers", episode.id)
            self.tally.routing_failures += 1
            return decide(snapshot, msgspec.structs.replace(episode, pinned=snapshot.catalogue.reliable))

    # -------------------------------------------------------------------------------------------- one call

    def _unasked(self, trace: Trace, call: Call) -> Event | None:
        """What comes of a call that needs nobody: its provider is not to be asked again, or the answer is known. Counts
        the call among its provider's first ones, or takes one of its retries."""
        provider = trace.snapshot.catalogue.models[call.model].provider
        if not call.again:
            self.books.health.first(provider)
        elif not self.books.health.take_retry(provider):
            return _denied(trace, call, Denial(scope="retry_budget", code="retry_budget"))
        if isinstance(call.about, Ask):
            answer = self._answers.get(cache_key(trace.episode, call.about))
            if answer:
                return Told(
                    at=call.at,
                    model=call.model,
                    after_ms=since_ms(trace.started),
                    topic=call.about.topic,
                    answer=answer,
                    cached=True,
                )
        return None

    async def _perform(self, trace: Trace, call: Call, replies: dict[int, Reply]) -> Event | Streamed:
        """Hold, ask, settle. Few levels below `handle`, for each is gone through again at every wait."""
        if call.wait_ms:
            await asyncio.sleep(call.wait_ms / 1_000)
        # Each call ends in one event, so the number of events numbers the calls, those that were denied as well.
        number = len(trace.episode.events) + 1
        attempt = Attempt(self.ledger, self.books, trace.snapshot, trace.episode, call, number, stepped=trace.stepped)
        model = attempt.model
        provider = trace.snapshot.catalogue.providers[model.provider]
        serves, streams = isinstance(call.about, Serve), False
        try:
            denied = await attempt.hold()
            if denied is not None:
                attempt.closed = True
                return _denied(trace, call, denied)
            trace.attempts += 1
            live = serves and trace.request.stream and call.final
            sent = self._write(trace, call, model, provider, live, replies)
            outgoing = outgoing_of(attempt, provider, sent, stream=live)
            began = time.monotonic()
            if serves:
                trace.routed = model.id
            try:
                incoming = await self.upstream.send(outgoing)
                attempt.dispatched = True
                if live:
                    # From here on the stream owns the reply, and once it has begun the attempt as well.
                    streamed = Streamed(self.books, trace, attempt, incoming, sent, began)
                    await streamed.begin()
                    streams = True
                    return streamed
                try:
                    body = await incoming.read()
                    asked = trace.request if serves else None
                    reply = reply_of(body, provider.wire, asked, compared=serves and not call.final)
                finally:
                    incoming.close()
            except UpstreamError as error:
                self.books.failed(model.id, error)
                return failed_event(attempt, error, since_ms(trace.started))
            self.books.health.answered(model.id)
            if sent.lost:
                trace.lose(sent.lost)
            usage = reply.usage
            if usage is None or not is_told(usage, wrote=bool(reply.output_text)):
                usage = await counted(attempt, reply)
            return self._replied(trace, attempt, reply, usage, began, replies)
        finally:
            if not attempt.closed and not streams:
                trace.spend(attempt.abandon())
            if attempt.counted:
                trace.stepped = True

    def _write(
        self, trace: Trace, call: Call, model: Model, provider: Provider, live: bool, replies: dict[int, Reply]
    ) -> Sent:
        if not isinstance(call.about, Serve):
            graded = replies[call.about.of].text if not isinstance(call.about, Ask) else ""
            system, text = question(call.about, trace.request.prompt, graded)
            return wire.write_question(provider, model.name, system, text, HELPER_TOKENS)
        by_confidence = not call.final and any(
            isinstance(plan, Cascade) and plan.accept.confidence is not None
            for plan in trace.snapshot.policies[trace.episode.policy].plans.values()
        )
        shape = Shape(
            model=model.name,
            stream=live,
            max_tokens=call.max_tokens,
            default_max_tokens=model.max_output_tokens,
            reasoning="reasoning" in model.abilities,
            logprobs=by_confidence and "logprobs" in model.abilities,
            drafts=tuple(replies[event].text for event in call.about.drafts) if call.about.drafts else (),
        )
        return wire.write(trace.request, provider, shape)

    def _replied(
        self, trace: Trace, attempt: Attempt, reply: Reply, usage: Usage, began: float, replies: dict[int, Reply]
    ) -> Event:
        paid = attempt.paid(usage, reply.served, reply.service, reply.output_text)
        call = attempt.call
        if paid.billed != call.model:
            trace.note_served(attempt.model, reply.served, paid.billed)
        match call.about:
            case Serve():
                replies[len(trace.episode.events)] = reply
                return replied_event(attempt, reply, usage, paid, started=trace.started, began=began)
            case Ask() as about:
                answer = read_answer(reply.text, about.answers)
                if answer:
                    self._answers.keep(cache_key(trace.episode, about), answer)
                topic, score, of = about.topic, None, -1
            case about:
                answer, topic, score, of = "", "grade", read_score(reply.text), about.of
        return Told(
            at=call.at,
            model=call.model,
            after_ms=since_ms(trace.started),
            topic=topic,
            answer=answer,
            score=score,
            of=of,
            usage=usage,
            cost_nano=paid.cost_nano,
        )

    # -------------------------------------------------------------------------------------------- the end

    def _deliver(self, trace: Trace, reply: Reply, replied: Replied) -> Answered:
        request, episode = trace.request, trace.episode
        trace.delivered(replied)
        if reply.lost:
            trace.lose(reply.lost)
        if episode.money.left_nano is not None:
            trace.left_nano = max(self.ledger.left_nano(episode.payer, episode.hints) or 0, 0)
        stream = request.stream
        body = (wire.deliver_stream if stream else wire.deliver)(request, reply, trace.bill(None))
        if self.books.store_texts:
            trace.reply_text = reply.text
        self.shadows.follow(trace, self.ledger, reply.text)
        return Answered(self.books, trace, body, event_stream=stream)

    @property
    def in_flight(self) -> int:
        return self.books.in_flight

    def stop(self) -> None:
        """Take no new work from now on."""
        self._draining = True

    async def drain(self, timeout_s: float) -> int:
        """Wait for what is under way, at most so long; then for every settlement. Returns how many were cut off."""
        self.stop()
        until = time.monotonic() + timeout_s
        try:
            await asyncio.wait_for(self.books.idle(), timeout_s)
        except TimeoutError:
            _log.warning("%d requests were still under way after %.0f s", self.in_flight, timeout_s)
        await self.shadows.drain(until - time.monotonic())
        return self.in_flight

    async def close(self) -> None:
        """After `drain`: settle, write down, let go."""
        self.stop()
        await self.shadows.drain(0.0)
        await self.errands.drain()
        await self.ledger.drain()
        await self.upstream.close()
        await self.ledger.close()
        await self.journal.close()


def _denied(trace: Trace, call: Call, denial: Denial) -> Denied:
    after_ms = since_ms(trace.started)
    return Denied(at=call.at, model=call.model, after_ms=after_ms, denial=denial, explored=call.explored)
