"""One call on one connection: the request goes out, the reply comes in, under four deadlines and a bound on all of it.

Deadlines. `first_token_ms` runs from the start of the call until the head of the reply and, for a stream, its first
byte; `idle_ms` while a reader waits for more; `total_ms` over everything, whether anybody reads or not. One timer
serves all of them: it is moved only when it fires, so a chunk of a stream costs no timer.

Letting go. A body that was read to its end gives its connection back; on any other way out the connection is aborted,
which the provider sees at once and stops generating. Nothing here waits for that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterator

import aiohttp
from aiohttp.http import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD
from multidict import CIMultiDictProxy

from tierwise.core.catalogue import Deadlines
from tierwise.core.episode import FailureKind
from tierwise.core.ports import UpstreamError
from tierwise.providers.hiding import Hiding, hidden
from tierwise.providers.inflate import Bomb, Broken, Inflater
from tierwise.providers.line import Line, drained
from tierwise.providers.pool import HEADER_LINE_BYTES, HEADER_LINES, Pool

ERROR_BODY_BYTES = 64 * 1024
_ERROR_BODY_S = 2.0  # the status is known; its explanation is not worth a longer wait
_INTERIM_REPLIES = 16  # 1xx replies before the real one
_END_BYTES = 1024
_JOIN_BYTES = 64 * 1024  # a body up to this size goes out with its head, in one packet train


class Call:
    """`Incoming`, and the sending before it. Made when the connection is there; `ask` writes and reads the head."""

    # How every call begins; what is seen of a reply then stands on the call itself.
    status = 0
    content_type = ""
    unknown_encoding = ""  # a content-encoding that we cannot undo; the body is of no use then
    headers: CIMultiDictProxy[str]
    _payload: aiohttp.StreamReader = EMPTY_PAYLOAD  # until the head is here
    _begun = False  # the head is here
    _announced: str | None = None  # the length that the head gave
    _inflater: Inflater | None = None
    _pieces: Iterator[bytes] | None = None
    _framed = True  # the reply says where it ends
    _taken_bytes = 0  # of the body, as it came
    _ended = False  # the connection is no longer ours
    _error: UpstreamError | None = None
    _phase = "first_token"
    _waiting = True

    def __init__(
        self,
        pool: Pool,
        line: Line,
        name: str,
        deadlines: Deadlines,
        start_s: float,
        body_limit: int,
        secret: bytes,
    ) -> None:
        """`secret`: our key, which no byte of the reply that is handed on may hold."""
        self._pool, self._line, self._name, self._deadlines = pool, line, name, deadlines
        self._loop = loop = pool.loop
        self.body_limit, self._secret = body_limit, secret
        self._total_s = total_s = start_s + deadlines.total_ms / 1000
        self._phase_s = phase_s = start_s + deadlines.first_token_ms / 1000
        self._armed_s = phase_s if phase_s < total_s else total_s
        self._timer = loop.call_at(self._armed_s, self._tick)

    # ------------------------------------------------------------------------------------------ the head

    async def ask(self, head: bytes, body: bytes) -> None:
        """Send, and wait for the head of the reply. From the first write on, the provider may have seen it."""
        line = self._line
        transport = line.transport
        if transport is None:
            raise UpstreamError("connect", f"{self._name}: the connection was lost before use", dispatched=False)
        if len(body) <= _JOIN_BYTES:
            transport.write(head + body)
        else:
            # The end apart: only what TLS is kept from handing on counts as unsent, and it hands on each write whole.
            whole = memoryview(body)
            transport.write(head)
            transport.write(whole[:-_END_BYTES])
            transport.write(whole[-_END_BYTES:])
        try:
            for _ in range(_INTERIM_REPLIES):
                await line.coming()
                message, payload = line.head()
                if message.code >= 200:
                    break
                if message.code == 101:  # we asked for no upgrade: that is no reply, and what follows is no HTTP
                    line.should_close = True
                    break
            else:
                raise self._fail("garbled", f"{self._name} sent {_INTERIM_REPLIES} interim replies and no reply")
        except UpstreamError:
            raise
        except HttpProcessingError as error:
            raise self._unreadable(error) from error
        except (aiohttp.ClientError, OSError) as error:
            # On a connection from the pool the provider may have hung up before it saw the request, or after it had
            # taken it: that cannot be known, so it counts as dispatched and is not sent again from here.
            raise self._fail(
                "cut", f"{self._name} closed the connection without a reply, after the request was sent"
            ) from error
        self._waiting, self._begun = False, True
        self._payload = line.body = payload
        self.status = message.code
        self.headers = headers = message.headers
        self.content_type = headers.get("Content-Type", "")
        self._announced = headers.get("Content-Length")
        if self._announced is None and not message.chunked:
            self._framed = False
        encoded = headers.get("Content-Encoding")
        if encoded:
            self._encoded(encoded.strip().lower())

    def _encoded(self, encoding: str) -> None:
        if encoding in ("gzip", "x-gzip", "deflate"):
            self._inflater = Inflater(encoding)
        elif encoding not in ("", "identity"):
            self.unknown_encoding = encoding

    def _unreadable(self, error: HttpProcessingError) -> UpstreamError:
        said = error.message
        if "Too many headers" in said or "more than" in said:
            return self._fail(
                "too_large",
                f"{self._name}: the reply's head is above {HEADER_LINES} lines or {HEADER_LINE_BYTES} bytes a line",
            )
        return self._fail("garbled", f"{self._name} answered with something that is not HTTP")

    # ------------------------------------------------------------------------------------------ the body

    async def read(self) -> bytes:
        """The whole body, at most `body_limit` bytes of it."""
        return self._at_once() or await self._gathered()

    def _at_once(self) -> bytes:
        """The body, when all of it is here and nothing has to be undone; else b"", and nothing has changed."""
        payload = self._payload
        size = payload.total_bytes
        if not size or self._ended or self._inflater or not payload._eof or payload._exception is not None:
            return b""
        if size > self.body_limit:
            raise self._too_large(f"is {size} bytes")
        data = drained(payload)
        self._taken_bytes = size
        self._finish()
        return hidden(data, self._secret)

    async def _gathered(self) -> bytes:
        announced = self._announced  # refused before a byte of it is read
        if announced and not self._inflater:
            if len(announced) <= 20 and announced.isdigit() and int(announced) > self.body_limit:
                raise self._too_large(f"announces {announced} bytes")
        first = await self._next()
        pieces, size = [first], len(first)
        while first:
            piece = await self._next()
            if not piece:
                break
            size += len(piece)
            if size > self.body_limit:
                raise self._too_large("is still coming")
            pieces.append(piece)
        if not size:
            raise self._fail("garbled", f"{self._name} answered {self.status} with an empty body")
        return hidden(first if len(pieces) == 1 else b"".join(pieces), self._secret)

    def _too_large(self, how: str) -> UpstreamError:
        return self._fail("too_large", f"{self._name}: the reply {how}; at most {self.body_limit} bytes are read")

    async def read_error(self) -> tuple[bytes, bool]:
        """What there is of an error's body, and whether that is all: bounded in size and time, and never raises."""
        self._total_s = min(self._total_s, self._loop.time() + _ERROR_BODY_S)
        self._rearm(self._total_s)
        pieces: list[bytes] = []
        size = 0
        try:
            while piece := await self._next():
                size += len(piece)
                pieces.append(piece)
                if size > ERROR_BODY_BYTES:
                    break
            whole = self._ended
        except UpstreamError:
            whole = False
        self.close()
        return b"".join(pieces)[:ERROR_BODY_BYTES], whole

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes; iterate once."""
        self._hiding = Hiding(self._secret)
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while piece := await self._next():
            if data := self._hiding.feed(piece):
                return data
        if not self._taken_bytes:
            raise self._fail("garbled", f"{self._name} answered {self.status} with an empty body")
        if data := self._hiding.rest():
            return data
        raise StopAsyncIteration

    def _next(self) -> Awaitable[bytes]:
        """The next bytes of the decoded body, b"" at its end. Raises UpstreamError, and lets go when it does."""
        return self._receive() if self._inflater is None else self._inflated(self._inflater)

    async def _inflated(self, inflater: Inflater) -> bytes:
        while True:
            if self._pieces is not None:
                piece = self._inflate(self._pieces)
                if piece:
                    return piece
            data = await self._receive()
            if not data:
                if self._taken_bytes and not inflater.done:
                    raise self._fail("cut", f"{self._name}: the compressed reply ended before its end")
                return b""
            self._pieces = inflater.feed(data)

    def _inflate(self, pieces: Iterator[bytes]) -> bytes:
        try:
            piece = next(pieces, b"")
        except Bomb as error:
            raise self._fail("too_large", f"{self._name}: the compressed reply is a bomb: {error}") from error
        except Broken as error:
            raise self._fail("garbled", f"{self._name}: {error}") from error
        if not piece:
            self._pieces = None
        return piece

    async def _receive(self) -> bytes:
        if self._error is not None:
            raise self._error
        if self._ended:
            return b""
        payload = self._payload
        try:
            if (broken := payload.exception()) is not None:
                raise broken
            if payload.total_bytes == self._taken_bytes and not payload.is_eof():
                if self._taken_bytes:
                    self._phase, self._phase_s = "idle", self._loop.time() + self._deadlines.idle_ms / 1000
                if self._armed_s > self._phase_s:
                    self._rearm(self._phase_s)
                self._waiting = True
                while payload.total_bytes == self._taken_bytes and not payload.is_eof():
                    await payload._wait("read")
                self._waiting = False
            data = drained(payload) if payload.total_bytes > self._taken_bytes else b""
        except UpstreamError:
            raise
        except (aiohttp.ClientError, HttpProcessingError, OSError, RuntimeError) as error:
            # aiohttp says RuntimeError when it is asked to wait on a connection that is gone.
            raise self._fail("cut", f"{self._name}: the reply ended before its end") from error
        except BaseException:
            self.close()
            raise
        if data:
            self._taken_bytes += len(data)
        else:
            self._finish()
        return data

    def _finish(self) -> None:
        """The body has come to its end: the connection goes back to the pool, once."""
        if self._ended:
            return  # it was closed after its end had come, and before who waited for that was told
        if not self._framed and isinstance(self._line.exception(), OSError):
            # It was to end with the connection, and the connection did not end but broke.
            raise self._fail("cut", f"{self._name}: the connection broke inside the reply")
        transport = self._line.transport
        if transport is not None and transport.get_write_buffer_size():
            self._abort()  # answered before it had read the request: what is left of that must not go out
            return
        self._ended = True
        self._timer.cancel()
        self._line.done()
        self._pool.keep(self._line)

    # ------------------------------------------------------------------------------------------ letting go

    def close(self) -> None:
        """Let go at once. A body at its end gives the connection back, any other aborts it; twice is once."""
        if self._ended:
            return
        if self._begun and self._payload.at_eof() and self._error is None and self._framed:
            self._finish()
        else:
            self._abort()

    def _abort(self) -> None:
        self._ended = True
        self._timer.cancel()
        self._line.done()
        transport = self._line.transport
        if transport is not None:
            transport.abort()  # close() would first flush a large request to a provider that may never read it
        self._line.connection.close()
        if self._error is None:
            if self._begun and self._payload.at_eof():
                return
            self._error = UpstreamError("cut", f"{self._name}: closed by us", status=self.status)
        if self._waiting and self._begun and self._payload.exception() is None:
            self._payload.set_exception(self._error)  # a reader in another task must not wait for ever

    def _fail(self, kind: FailureKind, message: str) -> UpstreamError:
        error = self._error = UpstreamError(kind, message, status=self.status)
        self.close()
        return error

    # ------------------------------------------------------------------------------------------ the clock

    def _rearm(self, when_s: float) -> None:
        self._timer.cancel()
        self._armed_s = when_s
        self._timer = self._loop.call_at(when_s, self._tick)

    def _tick(self) -> None:
        if self._ended:
            return
        now_s = self._loop.time()
        if now_s >= self._total_s:
            self._expire("total", self._deadlines.total_ms)
        elif not self._waiting:
            # Nobody waits, so nobody is kept waiting. A wait that begins after this tick is over after the next.
            self._rearm(min(self._total_s, now_s + self._deadlines.idle_ms / 1000))
        elif now_s >= self._phase_s:
            first = self._phase == "first_token"
            self._expire(self._phase, self._deadlines.first_token_ms if first else self._deadlines.idle_ms)
        else:
            self._rearm(min(self._total_s, self._phase_s))

    def _expire(self, which: str, limit_ms: int) -> None:
        words = {"first_token": "nothing came", "idle": "nothing more came", "total": "the reply did not end"}
        error = self._fail("timeout", f"{self._name}: {words[which]} within {limit_ms} ms ({which} deadline)")
        if not self._begun:
            self._line.set_exception(error)
