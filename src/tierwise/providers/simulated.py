"""The simulated provider: an upstream inside this process that answers as a good OpenAI-compatible server would.

It serves newcomers who have no keys, simulations, benchmarks and tests. The same seed, models and body always get the
same reply, byte for byte; faults happen only where a script says so. No socket is opened and no clock is read; the only
thing that passes time is a wait of the latency that a model's row states.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Literal

import msgspec

from tierwise.core.blame import kind_of
from tierwise.core.catalogue import Deadlines, Model
from tierwise.core.episode import FailureKind
from tierwise.core.ports import Outgoing, UpstreamError
from tierwise.providers.simulated_bodies import error_body, read_chat, read_embedding, tokens_in
from tierwise.providers.simulated_catalogue import simulated_catalogue
from tierwise.providers.simulated_dialect import complete, events, whole
from tierwise.providers.simulated_embedding import embed
from tierwise.providers.simulated_skill import Draw

FaultKind = Literal[
    "status",  # an error reply with `status` and `retry_after_ms`
    "hang",  # nothing more comes after `after` events; 0: not even headers
    "cut",  # the reply breaks off after `after` events, or half-way through a whole reply
    "error_event",  # a stream that turns into an error after `after` events
    "garbled",  # status 200 with something that is no reply
    "no_usage",  # usage is not told
    "wrong_model",  # the reply names `served`
    "ignore_max_tokens",
    "slow",  # every latency times `factor`
]
_NAMES = {429: "rate_limit_error", 529: "overloaded_error"}
_HTML = b"<html><head><title>502 Bad Gateway</title></head><body>upstream sent an invalid response</body></html>"
_FOREVER_MS = float("inf")


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a script of faults. The first line that matches a call is played.

    `model`: its name or id, "" for every model. `nth`: which calls of that model, from 1; () for every call. `share`:
    0..1 of the calls that match so far, by a seeded draw on the number of the call, so that a retry draws anew.
    """

    kind: FaultKind
    model: str = ""
    nth: tuple[int, ...] = ()
    share: float = 1.0
    status: int = 503
    retry_after_ms: int | None = None
    after: int = 0
    served: str = "simulated-other"
    factor: float = 20.0


_SOUND = Fault(kind="slow", factor=1.0)


class SimulatedUpstream:
    """An `Upstream` of simulated models.

    `models`: rows of provider `simulated`, by default those of `simulated_catalogue()`. `speed`: a factor on every
    simulated latency; 1 is what the rows say, 0 waits for nothing at all. Deadlines are kept in simulated time, so a
    reply that comes too late at speed 1 fails at speed 0 as well, only at once.

    `calls` counts the calls of each model by name, `unfinished` the replies that are neither read to their end, failed
    nor closed: 0 when every caller has let go.
    """

    def __init__(
        self, models: tuple[Model, ...] = (), seed: int = 0, speed: float = 1.0, faults: tuple[Fault, ...] = ()
    ) -> None:
        if not 0 <= speed < _FOREVER_MS:
            raise ValueError(f"speed: {speed!r} must be zero or more, and finite")
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"seed: {seed!r} must fit in 64 bits")
        self._models: dict[str, Model] = {}
        for model in models or simulated_catalogue()[1]:
            self._models[model.id] = self._models[model.name] = model
        self._seed = seed
        self._speed = speed
        self._faults = faults
        self._draw = Draw(seed.to_bytes(8, "big", signed=True))
        self._live: set[SimulatedIncoming] = set()
        self.calls: dict[str, int] = {}

    @property
    def unfinished(self) -> int:
        return len(self._live)

    async def send(self, outgoing: Outgoing) -> SimulatedIncoming:
        """Answer `chat/completions` or `embeddings`. Raises UpstreamError as the HTTP client would."""
        outgoing.departure.gone = True
        match outgoing.path.strip("/"):
            case "chat/completions":
                return await self._chat(outgoing)
            case "embeddings":
                return await self._embeddings(outgoing)
            case path:
                raise _refused(404, f"Unknown path: /{path[:100]}", None)

    async def close(self) -> None:
        for reply in tuple(self._live):
            reply.close()

    async def _chat(self, outgoing: Outgoing) -> SimulatedIncoming:
        chat = read_chat(outgoing.body)
        model = self._model(outgoing, chat.model, "chat")
        fault = self._next_fault(model)
        reply = self._begin(outgoing.deadlines, model, fault)
        try:
            if fault.kind == "status":
                await reply.refuse(model.first_token_ms)
            completion = complete(
                chat,
                outgoing.body,
                model,
                self._seed,
                served=fault.served if fault.kind == "wrong_model" else model.name,
                usage=fault.kind != "no_usage",
                limited=fault.kind != "ignore_max_tokens",
            )
            if chat.stream:
                usage = chat.stream_options is not None and chat.stream_options.include_usage
                await reply.begin(events(completion, usage), model.first_token_ms)
            else:
                written_ms = completion.tokens * _token_ms(model)
                await reply.begin_whole(whole(completion), model.first_token_ms + written_ms)
        except BaseException:
            reply.close()
            raise
        return reply

    async def _embeddings(self, outgoing: Outgoing) -> SimulatedIncoming:
        model = self._model(outgoing, read_embedding(outgoing.body).model, "embedding")
        fault = self._next_fault(model)
        reply = self._begin(outgoing.deadlines, model, fault)
        try:
            if fault.kind == "status":
                await reply.refuse(model.first_token_ms)
            served = fault.served if fault.kind == "wrong_model" else model.name
            body = embed(outgoing.body, self._seed, model=model, served=served, usage=fault.kind != "no_usage")
            await reply.begin_whole(body, model.first_token_ms)
        except BaseException:
            reply.close()
            raise
        return reply

    def _model(self, outgoing: Outgoing, name: str, kind: str) -> Model:
        # By provider first: two simulated providers may each have a model of this name.
        model = self._models.get(f"{outgoing.provider.name}/{name}") or self._models.get(name)
        if model is None or model.kind != kind:
            what = f"The model '{name[:100]}' does not exist" if model is None else f"'{name}' is no {kind} model"
            known = ", ".join(sorted({one.name for one in self._models.values() if one.kind == kind}))
            raise _refused(404, f"{what}; there are: {known}.", None)
        return model

    def _next_fault(self, model: Model) -> Fault:
        number = self.calls[model.name] = self.calls.get(model.name, 0) + 1
        for i, fault in enumerate(self._faults):
            matches = fault.model in ("", model.name, model.id) and (not fault.nth or number in fault.nth)
            if matches and (fault.share >= 1 or self._draw.of(f"{i} {model.name} {number}") < fault.share):
                return fault
        return _SOUND

    def _begin(self, deadlines: Deadlines, model: Model, fault: Fault) -> SimulatedIncoming:
        return SimulatedIncoming(self._live, deadlines, self._speed, _token_ms(model), fault)


class SimulatedIncoming:
    """A reply that has begun. Read it, or iterate its chunks once; close it on every way out."""

    def __init__(
        self, live: set[SimulatedIncoming], deadlines: Deadlines, speed: float, token_ms: float, fault: Fault
    ) -> None:
        self.content_type = "application/json"
        self._live = live
        self._deadlines = deadlines
        self._speed = speed
        self._token_ms = token_ms
        self._fault = fault
        self._factor = fault.factor if fault.kind == "slow" else 1.0
        self._passed_ms = 0.0  # simulated time since the call began
        self._events: Iterator[tuple[bytes, int]] = iter(())
        self._sent = 0
        self._error: UpstreamError | None = None
        self._ended = False
        self._sleeper: asyncio.Future[None] | None = None
        live.add(self)

    async def begin(self, stream: Iterator[tuple[bytes, int]], first_token_ms: float) -> None:
        """Wait for the first token of a stream."""
        self.content_type = "text/event-stream; charset=utf-8"
        self._events = _garbled_stream() if self._fault.kind == "garbled" else stream
        await self.wait(self._hang_or(first_token_ms), "first_token_ms")

    async def begin_whole(self, body: bytes, ready_ms: float) -> None:
        """Wait until a whole reply has been written."""
        kind = self._fault.kind
        if kind == "garbled":
            body = _HTML
        pieces = [body[: len(body) // 2], body[len(body) // 2 :]] if kind in ("cut", "error_event", "hang") else [body]
        self._events = iter([(piece, 0) for piece in pieces])
        await self.wait(self._hang_or(ready_ms), "first_token_ms")

    async def refuse(self, ready_ms: float) -> None:
        """Wait as long as a reply would take to begin, and fail with the scripted status."""
        await self.wait(ready_ms, "first_token_ms")
        raise _refused(self._fault.status, "This failure was scripted.", self._fault.retry_after_ms)

    def _hang_or(self, ms: float) -> float:
        return _FOREVER_MS if self._fault.kind == "hang" and self._fault.after == 0 else ms

    async def read(self) -> bytes:
        """The whole body. Raises UpstreamError."""
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises UpstreamError when it stops before its end or passes a deadline."""
        while True:
            chunk = await self._next()
            if not chunk:
                return
            yield chunk

    async def _next(self) -> bytes:
        if self._error is not None:
            raise self._error
        if self._ended:
            return b""
        try:
            if self._fault.kind in ("hang", "cut", "error_event") and self._sent >= max(1, self._fault.after):
                return await self._break_off()
            chunk, tokens = next(self._events, (b"", 0))
            if tokens and self._sent > 1:
                await self.wait(tokens * self._token_ms, "idle_ms")
        except BaseException:
            self.close()
            raise
        self._sent += 1
        if not chunk:
            self._finish()
        return chunk

    async def _break_off(self) -> bytes:
        match self._fault.kind:
            case "hang":
                await self.wait(_FOREVER_MS, "idle_ms")
            case "error_event" if self.content_type.startswith("text/event-stream"):
                self._finish()
                return (
                    b"data: " + error_body("This failure was scripted.", "server_error", None, "overloaded") + b"\n\n"
                )
            case _:
                pass
        raise self._fail("cut", "simulated: the reply ended before its end")

    async def wait(self, ms: float, deadline: Literal["first_token_ms", "idle_ms"]) -> None:
        """Let simulated time pass. Raises UpstreamError, kind timeout, when a deadline comes first."""
        ms *= self._factor
        allowed_ms = min(getattr(self._deadlines, deadline), self._deadlines.total_ms - self._passed_ms)
        late = ms > allowed_ms
        self._passed_ms += min(ms, allowed_ms)
        await self._sleep(min(ms, allowed_ms) * self._speed / 1000)
        if self._error is not None:
            raise self._error
        if late:
            raise self._fail("timeout", f"simulated: nothing came within {deadline} or total_ms")

    async def _sleep(self, seconds: float) -> None:
        if seconds <= 0:
            return
        loop = asyncio.get_running_loop()
        self._sleeper = sleeper = loop.create_future()
        timer = loop.call_later(seconds, _wake, sleeper)
        try:
            await sleeper
        finally:
            timer.cancel()
            self._sleeper = None

    def close(self) -> None:
        """Let go at once; twice is once. A reader in another task gets an error instead of waiting for ever."""
        if self._ended:
            return
        if self._error is None:
            self._error = UpstreamError("cut", "simulated: closed by us", status=200)
        self._finish()
        if self._sleeper is not None:
            _wake(self._sleeper)

    def _finish(self) -> None:
        self._ended = True
        self._events = iter(())
        self._live.discard(self)

    def _fail(self, kind: FailureKind, message: str) -> UpstreamError:
        error = self._error = UpstreamError(kind, message, status=200)
        self.close()
        return error


def _token_ms(model: Model) -> float:
    return 1000 / max(model.tokens_per_second, 0.001)


def _refused(status: int, message: str, retry_after_ms: int | None) -> UpstreamError:
    names = {**_NAMES, 404: "invalid_request_error"}
    body = error_body(message, names.get(status, "server_error"), None, "model_not_found" if status == 404 else None)
    return UpstreamError(
        kind_of(status, body),
        f"simulated answered {status}: {message}",
        status=status,
        retry_after_ms=retry_after_ms,
        body=body,
    )


def _garbled_stream() -> Iterator[tuple[bytes, int]]:
    yield b'data: {"id": "chatcmpl-', 0
    yield b"\xff\xfe\n\ndata: <html>\n\n", 0


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


__all__ = ["Fault", "FaultKind", "SimulatedIncoming", "SimulatedUpstream", "simulated_catalogue", "tokens_in"]
