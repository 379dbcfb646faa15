"""A reply on its way through: bytes from the provider to the caller, metered, and settled however it ends.

No generator: `close()` must be able to settle at once, from anywhere, whether or not the stream was ever read. The end
that comes first (the provider's, an error's, the caller's) is the one that counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from functools import partial

import msgspec

from tierwise import wire
from tierwise.core.episode import Replied, ReplyFacts, Stop
from tierwise.core.errors import Refused, RequestError
from tierwise.core.money import TOKENS_PER_PRICE, Usage
from tierwise.core.ports import Incoming, Status, UpstreamError
from tierwise.core.weigh import NAME_LETTERS
from tierwise.routing.attempts import Attempt, is_told, since_ms
from tierwise.routing.books import Books
from tierwise.routing.ratios import Measured
from tierwise.routing.tokens import last_gap
from tierwise.routing.trace import Trace
from tierwise.wire.contract import Bill, Garbled, Meter, Sent
from tierwise.wire.sources import MAX_KEPT_CHARACTERS

# No tokenizer packs more characters into a token over a long text. A stream that is longer than its ceiling allows even
# so is one whose provider ignores the ceiling, and it is cut.
_CHARACTERS_PER_TOKEN = 16
_SLACK_CHARACTERS = 4_096
# Our tokenizer is not the provider's: only a count this far above the ceiling says that the ceiling is ignored.
_LOOSE = 1.5
_SLACK_TOKENS = 64
# A reply's text waits for the end, in case the provider tells no usage and it has to be counted. More than this does
# not wait but is counted on the way: few replies are as long, and a caller who reads slowly holds no more than this.
_UNCOUNTED_CHARACTERS = 20_000
_LEAST_TOKENS = 8  # that are worth another count
_CHARACTERS_BEFORE_COUNTING = 2  # for each token of the ceiling; a shorter reply is below it in nearly any language
# Openings, pings and comments are not the reply: they wait for its first word, so that a provider which breaks off
# right after them (overloaded ones do) can still be replaced. Never longer than this, and never more than this.
_HELD_BACK_S = 5.0
_HELD_BACK_BYTES = 16_384
# What a provider still sends after the end is nobody's, but its connection can be used again when the body has ended.
AFTER_END_S = 1.0
CHECKPOINT_S = 1.0  # between two notes to the ledger of what has been streamed


class Streamed:
    """An async iterator of bytes in the caller's format. Close it on every way out; closing twice is fine."""

    def __init__(
        self, books: Books, trace: Trace, attempt: Attempt, incoming: Incoming, sent: Sent, began: float
    ) -> None:
        self.trace = trace
        self._books = books
        self._attempt = attempt
        self._incoming = incoming
        self._chunks = incoming.chunks()
        self._began = began
        self._pending = b""
        self._ended = False
        self._last = False
        provider = trace.snapshot.catalogue.providers[attempt.model.provider]
        bill = partial(_bill, trace, attempt)  # and no method: a relay that led back here would wait for the collector
        spoken, expected = wire.wire_of(provider, sent.path), attempt.expected_input
        self._relay = wire.relay(trace.request, spoken, bill, expected)
        self._sent = sent
        ceiling = attempt.call.max_tokens or trace.episode.features.max_tokens or attempt.model.max_output_tokens
        total = (ceiling + trace.episode.features.reasoning_tokens) * trace.episode.features.n
        self._most_characters = total * _CHARACTERS_PER_TOKEN + _SLACK_CHARACTERS
        self._most_tokens = self._paid_tokens(total)
        self._tokens = 0  # counted so far
        self._expected = 0  # of those, as the model's own tokenizer may count them
        self._told: list[str] = []  # the text of those, where texts are kept
        self._count_at = total * _CHARACTERS_BEFORE_COUNTING
        self._checkpoint_at = began + CHECKPOINT_S

    def _paid_tokens(self, total: int) -> int:
        """The tokens, by our count, at which the stream is cut. Where a hard limit is above the payer, what was held
        pays for them; else they leave room for a tokenizer that differs from ours."""
        episode, call, model = self.trace.episode, self._attempt.call, self._attempt.model
        limited = episode.money.left_nano is not None or episode.hints.max_cost_nano is not None
        if not limited or model.price is None or not call.bounded:
            return int(total * _LOOSE) + _SLACK_TOKENS
        read = self._attempt.expected_input
        rate = model.price.rates(episode.at_s, read, episode.service).output_tokens
        spare = call.worst_case_nano - self._attempt.least_nano
        return max(total, spare * TOKENS_PER_PRICE // rate) if rate else int(total * _LOOSE) + _SLACK_TOKENS

    async def begin(self) -> None:
        """Wait for the reply's first word. Raises UpstreamError when none comes: until then nothing went to the caller,
        and another model may answer."""
        received = 0
        try:
            while not self._has_begun():
                chunk = await anext(self._chunks, None)
                if chunk is None:
                    raise UpstreamError("cut", "the stream ended before it began", status=200)
                received += len(chunk)
                self._pending += self._relay.feed(chunk)
                meter = self._relay.meter
                if meter.error and not meter.output_characters:
                    raise UpstreamError(meter.error_kind, meter.error)
                if meter.done and not meter.output_characters and not meter.stop:
                    raise Garbled("the stream ended without saying anything")
        except Garbled as error:
            self._drop()
            usage = self._relay.meter.usage
            if usage is None or not (self._relay.meter.done and is_told(usage, wrote=False)):
                usage = _partial(self._attempt, self._relay.meter, self._attempt.unread(received))
            raise UpstreamError("garbled", str(error), status=200, usage=usage) from None
        except BaseException:
            self._drop()
            raise
        self.trace.routed = self._attempt.model.id
        self.trace.lose(self._sent.lost)
        self.trace.first_token_ms = since_ms(self.trace.started)

    def _has_begun(self) -> bool:
        meter, held = self._relay.meter, len(self._pending)
        if meter.output_characters or meter.stop or held > _HELD_BACK_BYTES:
            return True
        return held > 0 and time.monotonic() - self._began > _HELD_BACK_S

    def _drop(self) -> None:
        """Not begun: the attempt's owner settles, and the router goes on."""
        self._ended = True
        self._incoming.close()

    def __aiter__(self) -> Streamed:
        return self

    async def __anext__(self) -> bytes:
        if self._pending:
            out, self._pending = self._pending, b""
            return out
        while not self._last:
            out = await self._next()
            if out:
                return out
        raise StopAsyncIteration

    async def _next(self) -> bytes:
        """The next bytes, b"" when this chunk gave none; ends the stream when the provider does."""
        try:
            chunk = None if self._relay.meter.done else await anext(self._chunks, None)
            if chunk is not None:
                out = self._relay.feed(chunk)
                if time.monotonic() >= self._checkpoint_at:
                    self._checkpoint()
                meter = self._relay.meter
                due = meter.output_characters > self._count_at or meter.text.tell() > _UNCOUNTED_CHARACTERS
                if due and await self._too_much():
                    return self._break(
                        "the provider went past the ceiling of tokens; the reply was cut", "over_ceiling"
                    )
                return out
        except UpstreamError as error:
            self._books.failed(self._attempt.model.id, error)
            return self._break(f"{self._attempt.model.id} broke off: {error.message}", f"upstream_{error.kind}")
        except Garbled as error:
            return self._break(f"{self._attempt.model.id} sent no proper stream: {error}", "upstream_garbled")
        meter = self._relay.meter
        if meter.done:
            await self._see_it_out()
        out = self._relay.finish()
        complete = meter.done and not meter.error
        model = self._attempt.model
        if complete:
            self._books.health.answered(model.id)
        else:
            self._books.failed(model.id, UpstreamError("cut", meter.error or "the stream ended before its end"))
        self._end("answered" if complete else "broken", "" if complete else "cut")
        return out

    async def _see_it_out(self) -> None:
        """The reply is whole, whatever happens to its connection now. A provider that keeps it open after the end, or
        breaks it, keeps no caller waiting and has not failed."""
        with contextlib.suppress(UpstreamError, TimeoutError):
            async with asyncio.timeout(AFTER_END_S):
                while await anext(self._chunks, None) is not None:
                    pass

    def _checkpoint(self) -> None:
        """What is charged at least, should this process die now."""
        self._checkpoint_at = time.monotonic() + CHECKPOINT_S
        self._attempt.checkpoint(_partial(self._attempt, self._relay.meter, self._relay.meter.output_characters // 4))

    async def _too_much(self) -> bool:
        """Whether the ceiling is ignored. Only what is new is counted, and not again before there could be too much."""
        meter = self._relay.meter
        waiting = meter.text.getvalue()
        end = last_gap(waiting, len(waiting))  # what packets cut in two is one word all the same
        text = waiting[:end]
        measured = await self._attempt.measured(text)  # the caller's leaving can end it: until then, the text stays
        self._tokens, self._expected = self._tokens + measured.counted, self._expected + measured.expected
        meter.text = io.StringIO()
        meter.text.write(waiting[end:])
        kept = self._books.store_texts and meter.output_characters < MAX_KEPT_CHARACTERS
        if kept or (not self._told and self._books.shadows.wanted(self.trace)):  # a grader is shown the beginning
            self._told.append(text)
        room = max(self._most_tokens - self._tokens, _LEAST_TOKENS)
        self._count_at = meter.output_characters + room * _CHARACTERS_BEFORE_COUNTING
        return self._tokens > self._most_tokens or meter.output_characters > self._most_characters

    def _break(self, message: str, code: str) -> bytes:
        """After the first byte there is no other model: the caller is told, and what came is charged."""
        return self.cut(Refused(message, code=code, status=502))

    def cut(self, error: RequestError) -> bytes:
        """End it here: the error as the caller's last event."""
        error.decision = self.trace.episode.id
        out = self._relay.fail(error)
        self._end("broken", error.code)
        return out

    def close(self) -> None:
        """The caller is done, or gone. An unfinished upstream is let go at once, and what came is charged."""
        if not self._ended:
            self._end("abandoned", "client_gone")

    def _end(self, status: Status, code: str) -> None:
        if self._ended:
            return
        self._ended = self._last = True
        self._incoming.close()
        meter = self._relay.meter
        usage = meter.usage
        if meter.done and usage is not None and is_told(usage, wrote=meter.output_characters > 0):
            self._settle(usage, status, code)
            self._books.leave()
        else:
            # Counting takes a moment, so it is done where the caller's going cannot stop it.
            self._books.errands.post(self._count_and_settle(status, code))

    async def _count_and_settle(self, status: Status, code: str) -> None:
        try:
            rest = await self._attempt.measured(self._relay.meter.text.getvalue())
            whole = Measured(self._tokens + rest.counted, self._expected + rest.expected)
            written = max(self._attempt.written(whole), 1 if self._relay.meter.output_characters else 0)
            if unread := self._relay.meter.unread_bytes:
                written = max(written, self._attempt.unread(written + unread))
            self._settle(_partial(self._attempt, self._relay.meter, written), status, code)
        finally:
            self._attempt.abandon()
            self._books.leave()

    def _settle(self, usage: Usage, status: Status, code: str) -> None:
        meter, call = self._relay.meter, self._attempt.call
        text = "".join(self._told) + meter.text.getvalue()
        # Of a reply that was counted on the way, not all of the text is there.
        paid = self._attempt.paid(usage, meter.served, meter.service, "" if self._tokens else text)
        self.trace.lose(meter.lost)
        if paid.billed != call.model:
            self.trace.note_served(self._attempt.model, meter.served, paid.billed)
        event = Replied(
            at=call.at,
            model=call.model,
            after_ms=since_ms(self.trace.started),
            usage=usage,
            cost_nano=paid.cost_nano,
            served=meter.served[:NAME_LETTERS],
            billed=paid.billed,
            latency_ms=since_ms(self._began),
            first_token_ms=self.trace.first_token_ms,
            facts=ReplyFacts(stop=_stop(meter.stop), characters=meter.output_characters),
        )
        self.trace.add(event)
        self.trace.delivered(event)
        if self._books.store_texts:
            self.trace.reply_text = text
        if status == "answered":
            self._books.shadows.follow(self.trace, self._attempt.ledger, text)
        self._books.end(self.trace, status, code)


def _partial(attempt: Attempt, meter: Meter, output_tokens: int) -> Usage:
    """The usage of a stream that did not say its own to the end: what it said of the input, and our count of the
    output, or the provider's where that is higher."""
    said = meter.usage or Usage()
    read = said.input_tokens if said.prompt_tokens else attempt.expected_input
    more = max(0, output_tokens - said.completion_tokens)
    return msgspec.structs.replace(said, input_tokens=read, output_tokens=said.output_tokens + more, estimated=True)


def _bill(trace: Trace, attempt: Attempt, meter: Meter) -> Bill:
    """What the last chunk says of the money. Settled figures are the same, but for streams that tell no usage."""
    usage = meter.usage
    if usage is None or not usage.prompt_tokens:
        usage = _partial(attempt, meter, meter.output_characters // 4 + 1)
    episode = trace.episode
    priced = attempt.priced(usage, meter.served, meter.service)
    if episode.money.left_nano is not None:  # what is still held for this call is about to become its cost
        left = attempt.ledger.left_nano(episode.payer, episode.hints) or 0
        trace.left_nano = max(left + attempt.call.worst_case_nano - (priced.cost_nano or 0), 0)
    # A short stream is billed with its first chunk, before the trace knows that this model is the one.
    return msgspec.structs.replace(trace.bill(priced), model=attempt.model.id, lost=meter.lost)


_STOPS = ("end", "length", "tool_use", "stop_sequence", "refusal", "filtered", "error")


def _stop(stop: str) -> Stop:
    return stop if stop in _STOPS else "unknown"  # type: ignore[return-value]  # the tuple above is the type's own list
