"""Asks the shadows: models that are tried beside the one that answered, for learning alone. Nobody waits for them.

A shadow is asked when the reply is whole, by a task that the request does not own, and its money is held and settled
as every call's is, under exploration's own budget. What it says is kept as facts with the episode; its text is shown
to the grader, where the policy names one, and forgotten.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import msgspec

from tierwise import wire
from tierwise.core.attempt import HELPER_TOKENS
from tierwise.core.budget import Denial
from tierwise.core.decide import decide
from tierwise.core.episode import Answer, Call, Decision, Failed, Grade, Replied, Told
from tierwise.core.errors import TierwiseError
from tierwise.core.ports import Ledger, Outgoing, Upstream, UpstreamError
from tierwise.core.shadow import alone
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
from tierwise.routing.helpers import question, read_score
from tierwise.wire.contract import Reply, Sent, Shape

if TYPE_CHECKING:
    from tierwise.routing.books import Books
    from tierwise.routing.trace import Trace

_log = logging.getLogger("tierwise")
MOST = 16  # at once; each keeps its request in memory, and learning can do without the next one
TOLD_S = 60.0  # between two lines about the same


class Shadows:
    """One per router. `count` says what became of them: asked, failed, denied, dropped, broken, graded, ungraded."""

    def __init__(self, books: Books, upstream: Upstream) -> None:
        self._books = books
        self._upstream = upstream
        self._tasks: set[asyncio.Task[None]] = set()
        self._told_s = -TOLD_S

    def follow(self, trace: Trace, ledger: Ledger, text: str) -> None:
        """The reply is whole, its event is the trace's last or the one decided on, and its text is this. Begins the
        shadow that `decide` wants beside it, if any, and leaves that decision in the trace. Never waits."""
        if not self.wanted(trace):
            return
        decision = _ending(trace)
        if decision is None or decision.shadow is None:
            return
        if decision is not trace.decisions[-1]:
            trace.decisions.append(decision)
        if len(self._tasks) >= MOST:
            self._count("dropped")
            return
        task = asyncio.get_running_loop().create_task(_Story(self, self._books, trace, ledger).run(decision, text))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def wanted(self, trace: Trace) -> bool:
        """Whether there may be one for a request under this policy."""
        return trace.snapshot.policies[trace.episode.policy].has_shadows

    async def drain(self, timeout_s: float) -> None:
        """Wait for those under way, at most so long; the rest are cancelled, which settles them."""
        if self._tasks and timeout_s > 0:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def send(self, outgoing: Outgoing) -> bytes:
        incoming = await self._upstream.send(outgoing)
        try:
            return await incoming.read()
        finally:
            incoming.close()

    def denied(self, model: str, denial: Denial) -> None:
        self._count("denied")
        now = time.monotonic()
        if now - self._told_s >= TOLD_S:
            self._told_s = now
            what = f"{denial.scope} budget: {denial.code}"
            _log.warning("no shadow of %s: the ledger said no (%s); requests are answered as usual", model, what)

    def _count(self, outcome: str) -> None:
        self._books.tally.shadows[outcome] += 1

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            self._count("broken")
        elif (error := task.exception()) is not None:
            # Learning may miss a shadow; what was held has been settled on the way out.
            self._count("broken")
            if isinstance(error, TierwiseError):
                _log.warning("a shadow was not asked: %s", error)
            else:
                _log.error("a shadow broke off", exc_info=error)


def _ending(trace: Trace) -> Decision | None:
    """The decision to answer: the last one, or, where a final call was delivered without asking again, a new one."""
    if trace.decisions and isinstance(trace.decisions[-1].step, Answer):
        return trace.decisions[-1]
    try:
        return decide(trace.snapshot, trace.episode)
    except Exception:  # as in the router: routing may cost what could have been learned, never the reply
        _log.exception("no shadow for decision %s", trace.episode.id)
        return None


class _Story:
    """One shadow and the grades after it."""

    def __init__(self, shadows: Shadows, books: Books, trace: Trace, ledger: Ledger) -> None:
        self._shadows, self._books, self._trace, self._ledger = shadows, books, trace, ledger
        self._episode = alone(trace.episode)
        self._calls = 0

    async def run(self, decision: Decision, delivered: str) -> None:
        call = decision.shadow
        if call is None:
            return
        found = await self._ask(call, "")
        if found is None:
            return
        event, reply = found
        self._keep(event)
        self._count("asked" if reply is not None else "failed")
        if reply is None:
            return
        for grade in decision.grades:
            shown = reply.text if _of(grade) == len(self._trace.episode.events) else delivered
            graded = await self._ask(grade, shown)
            if graded is not None:
                self._keep(graded[0])
            scored = graded is not None and isinstance(graded[0], Told) and graded[0].score is not None
            self._count("graded" if scored else "ungraded")

    async def _ask(self, call: Call, shown: str) -> tuple[Replied | Failed | Told, Reply | None] | None:
        """The event of this call, with the reply where it is one; None when the ledger refused. `shown`: the reply to
        be graded."""
        self._calls += 1
        trace, episode = self._trace, self._episode
        attempt = Attempt(self._ledger, self._books, trace.snapshot, episode, call, self._calls, stepped=True)
        provider = trace.snapshot.catalogue.providers[attempt.model.provider]
        began = time.monotonic()
        try:
            denial = await attempt.hold()
            if denial is not None:
                attempt.closed = True
                self._shadows.denied(call.model, denial)
                return None
            try:
                sent = self._written(call, attempt, shown)
                outgoing = outgoing_of(attempt, provider, sent, stream=False)
                body = await self._shadows.send(outgoing)
                attempt.dispatched = True
                asked = None if isinstance(call.about, Grade) else trace.request
                reply = reply_of(body, provider.wire, asked, compared=asked is not None)
            except UpstreamError as error:
                # Counted, but no ground to let a model rest that people are waiting for.
                self._books.tally.failed(call.model, error.kind)
                failed = failed_event(attempt, error, since_ms(trace.started))
                return (failed if self._books.store_texts else msgspec.structs.replace(failed, message="")), None
            usage = reply.usage
            if usage is None or not is_told(usage, wrote=bool(reply.output_text)):
                usage = await counted(attempt, reply)
            paid = attempt.paid(usage, reply.served, reply.service, reply.output_text)
        except asyncio.CancelledError:
            cost = attempt.abandon()
            after_ms = since_ms(trace.started)
            self._keep(Failed(at=call.at, model=call.model, after_ms=after_ms, kind="cut", cost_nano=cost))
            raise
        finally:
            attempt.abandon()
        if isinstance(call.about, Grade):
            grade = Told(
                at=call.at,
                model=call.model,
                after_ms=since_ms(trace.started),
                topic="grade",
                score=read_score(reply.text),
                of=call.about.of,
                usage=usage,
                cost_nano=paid.cost_nano,
            )
            return grade, None
        return replied_event(attempt, reply, usage, paid, started=trace.started, began=began), reply

    def _written(self, call: Call, attempt: Attempt, shown: str) -> Sent:
        model, request = attempt.model, self._trace.request
        provider = self._trace.snapshot.catalogue.providers[model.provider]
        if isinstance(call.about, Grade):
            system, text = question(call.about, request.prompt, shown)
            return wire.write_question(provider, model.name, system, text, HELPER_TOKENS)
        shape = Shape(
            model=model.name,
            stream=False,
            max_tokens=call.max_tokens,
            default_max_tokens=model.max_output_tokens,
            reasoning="reasoning" in model.abilities,
        )
        return wire.write(request, provider, shape)

    def _keep(self, event: Replied | Failed | Told) -> None:
        episode = self._trace.episode
        self._books.tally.shadow_cost_nano += event.cost_nano or 0
        self._books.journal.shadow(episode.id, episode.at_s, event)

    def _count(self, outcome: str) -> None:
        self._books.tally.shadows[outcome] += 1


def _of(grade: Call) -> int:
    return grade.about.of if isinstance(grade.about, Grade) else -1
