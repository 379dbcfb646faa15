"""One connection to a provider, and the replies on it.

aiohttp's C parser reads what comes. Its own connections are left out, with their websockets, read timeouts and queues.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError, HttpResponseParser, RawResponseMessage
from aiohttp.tcp_helpers import tcp_nodelay

# aiohttp stops reading the socket at twice this. What a caller has not read yet is then at most 32 KiB and one portion,
# whatever the provider sends.
READ_BUFFER_BYTES = 16 * 1024
# Of one read of the socket. Left to itself a loop reads up to 256 KiB at once, and all of it waits for a caller who
# reads slowly; larger portions than this save no time that could be measured.
PORTION_BYTES = 16 * 1024
HEADS_KEPT = 32  # of replies that nobody has read; more of them than one call ever reads are a flood

Head = tuple[RawResponseMessage, aiohttp.StreamReader]  # of a reply, and its body to come


class Line(asyncio.BufferedProtocol):
    """One connection and the replies on it, one after the other: what the connector keeps, what the socket feeds, and
    what the bodies of replies hold on to."""

    transport: asyncio.Transport | None = None
    connection: Connection  # by which the connector counts it
    idle: deque[Line]  # where it waits between two calls
    idle_until_s = 0.0
    used = False
    body: aiohttp.StreamReader | None = None  # that is being carried
    _parser: HttpResponseParser | None = None  # of the reply under way, anew for each
    _early = b""  # that came when nothing had been asked
    should_close = False  # it can carry no other call
    _held = False  # reading was paused since the request went out
    _reading_paused = False
    _error: BaseException | None = None
    _reader: asyncio.Future[None] | None = None
    _closed: asyncio.Future[None] | None = None
    _quiet: select.poll | None = None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        portion: memoryview,
        new_parser: Callable[[Line], HttpResponseParser],
    ) -> None:
        self._loop, self._portion, self._new_parser = loop, portion, new_parser
        self._heads: deque[Head] = deque()

    # ------------------------------------------------------------------------------------------ for a call

    def fit(self) -> bool:
        """Whether a connection from the pool can carry another call.

        Anything that has arrived since it was returned (a provider's goodbye, a stray reply) would be taken for the
        answer to the next request, so such a connection is not used again. The loop may not have read it yet:
        asking the kernel costs 2 µs and closes most of the race with a provider that hangs up on idle connections.
        """
        transport = self.transport
        # TLS says goodbye a turn before its connection is lost.
        if self.should_close or transport is None or transport.is_closing():
            return False
        return self._quiet is not None and not self._quiet.poll(0)

    def prepare(self) -> None:
        """A fresh parser for the reply to one request."""
        self.used = True
        self._held = False
        self._parser = self._new_parser(self)
        if self._early:
            early, self._early = self._early, b""
            self._parse(early)

    def coming(self) -> asyncio.Future[None]:
        """Done when the head of a reply is here, and when none comes any more."""
        self._reader = reader = self._loop.create_future()
        if self._heads or self._error is not None:
            reader.set_result(None)
        return reader

    def head(self) -> Head:
        """Of the next reply, once it is here. Raises what ended the connection before it."""
        if self._heads:
            return self._heads.popleft()
        raise self._error or aiohttp.ServerDisconnectedError()

    def done(self) -> None:
        """The call is over: whatever comes from now on, and whatever came beside its reply, nobody asked for."""
        if self._heads or (self.body is not None and not self.body.is_eof()):
            self.should_close = True
        self.body = self._parser = None

    def exception(self) -> BaseException | None:
        """What ended the connection."""
        return self._error

    def set_exception(self, error: BaseException) -> None:
        """No reply comes any more: whoever waits for its head hears this."""
        self.should_close = True
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # ------------------------------------------------------------------------------------------ for the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = made = cast("asyncio.Transport", transport)
        tcp_nodelay(made, True)
        if transport.get_extra_info("sslcontext") is not None:  # what is still encrypted waits there as well
            cast("Any", transport).set_read_buffer_limits(high=PORTION_BYTES)
        connected = transport.get_extra_info("socket")
        if connected is not None:
            self._quiet = select.poll()
            self._quiet.register(connected.fileno(), select.POLLIN)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._portion

    def buffer_updated(self, nbytes: int) -> None:
        self._parse(bytes(self._portion[:nbytes]))

    def _parse(self, data: bytes) -> None:
        if self._parser is None:
            self._early += data
            if self.used or len(self._early) > READ_BUFFER_BYTES:
                self.close()
            return
        try:
            replies, upgraded, _ = self._parser.feed_data(data)
        except Exception as error:
            if self.transport is not None:
                self.transport.close()
            self.set_exception(error if isinstance(error, HttpProcessingError) else HttpProcessingError())
            return
        if upgraded:
            self.should_close, self._parser = True, None
        if replies:
            self._heads.extend(replies)
            message, self.body = replies[-1]
            if message.should_close:
                self.should_close = True
            self._wake()
            if len(self._heads) > HEADS_KEPT:
                self.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._quiet = None  # the number may be another connection's by now
        self.transport = None
        body, parser = self.body, self._parser
        self.done()
        if parser is not None:
            with contextlib.suppress(Exception):
                parser.feed_eof()  # which ends a body that was to end with its connection
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError("the body's framing is broken"))
        if self._error is None:
            self.set_exception(exc or aiohttp.ServerDisconnectedError())
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)

    # ------------------------------------------------------------------------------------------ for a body

    @property
    def connected(self) -> bool:
        return self.transport is not None

    def pause_reading(self) -> None:
        self._held = self._reading_paused = True
        if self._parser is not None:
            self._parser.pause_reading()
        if self.transport is not None:
            with contextlib.suppress(RuntimeError):  # it is closing
                self.transport.pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        # A body says this after every read. What was never paused has nothing to resume; what was may have left bytes
        # in the parser, also after it was resumed.
        if not self._held:
            return
        self._reading_paused = False
        if resume_parser and self._parser is not None:
            self._parse(b"")
        if not self._reading_paused and self.transport is not None:
            with contextlib.suppress(RuntimeError):
                self.transport.resume_reading()

    # ------------------------------------------------------------------------------------------ for the connector

    def is_connected(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    @property
    def closed(self) -> asyncio.Future[None] | None:
        """Done when the socket is closed; None when it already was."""
        if self._closed is None and self._error is None:
            self._closed = self._loop.create_future()
        return self._closed

    def close(self) -> None:
        self.should_close = True
        if self.transport is not None:
            if self.transport.get_write_buffer_size():
                self.transport.abort()  # close() would first flush a request, to a provider that may never read it
            else:
                self.transport.close()
            self.transport = None

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        self.close()


def drained(body: aiohttp.StreamReader) -> bytes:
    """All that has come of a body. Its own methods give the same, in a hundred steps for each chunk that came."""
    data = b"".join(body._buffer)
    body._buffer.clear()
    body._size = 0
    if body._http_chunk_splits:
        body._http_chunk_splits.clear()
    body._protocol.resume_reading()
    return data
