"""Connections to providers: found in a pool or made within the connect deadline, and never to a forbidden address.

aiohttp does what it is good at: its connector makes connections (DNS cache, TLS, happy eyeballs) and counts them, its C
parser reads replies. Its ClientSession is left out on purpose: with cookies, redirects, netrc and proxies refused, what
remains of it is an object per layer per request, 60 µs of CPU for a 1 kB call where all of ours is 31 (uvloop, 2026),
and it does not say when bytes went out. Left out as well are its connections, with their websockets, read timeouts and
queues, and its pool of them. Used of it beyond its documented face, and therefore pinned in pyproject:
`TCPConnector.connect` and `_factory`, the parser, the inside of `StreamReader`, and what these ask of a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import AddrInfoType, Connection
from aiohttp.http import HttpProcessingError, HttpResponseParser, RawResponseMessage
from aiohttp.tcp_helpers import tcp_nodelay
from yarl import URL

from tierwise.core.ports import UpstreamError
from tierwise.providers.addresses import forbidden

CONNECTIONS_PER_HOST = 1_000
KEEPALIVE_S = 30.0
DNS_CACHE_S = 30
HEADER_LINE_BYTES = 16 * 1024
HEADER_LINES = 128
# aiohttp stops reading the socket at twice this. What a caller has not read yet is then at most 32 KiB and one portion,
# whatever the provider sends.
READ_BUFFER_BYTES = 16 * 1024
# Of one read of the socket. Left to itself a loop reads up to 256 KiB at once, and all of it waits for a caller who
# reads slowly; larger portions than this save no time that could be measured.
PORTION_BYTES = 16 * 1024
_NO_TRACES: list[Any] = []

Head = tuple[RawResponseMessage, aiohttp.StreamReader]  # of a reply, and its body to come


class Forbidden(OSError):
    """The name or address in a provider's row leads to an address that we never connect to."""


class Target(NamedTuple):
    """Where a provider is, and the connections there that wait for a call, the longest idle first."""

    request: aiohttp.ClientRequest  # for the connector; never sent itself
    idle: deque[Line]


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
        if self.transport is None or self.should_close:
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

    async def read(self) -> Head:
        """The head of the next reply. Raises what ended the connection before it."""
        if not self._heads and self._error is None:
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
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
            self.transport.close()
            self.transport = None

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        self.close()


class Pool:
    """One per process and event loop; made inside the running loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._idle: dict[ConnectionKey, deque[Line]] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._connecting = 0  # calls that wait for a connection, or for a place where there are too many
        self._tls: ssl.SSLContext | None = None
        self._connector = aiohttp.TCPConnector(
            limit=0,
            limit_per_host=CONNECTIONS_PER_HOST,
            keepalive_timeout=KEEPALIVE_S,
            ttl_dns_cache=DNS_CACHE_S,
            resolver=aiohttp.ThreadedResolver(),
            socket_factory=_socket,
        )
        portion = memoryview(bytearray(PORTION_BYTES))  # shared by all: the loop fills it and has it read in one step
        parser = functools.partial(
            HttpResponseParser,
            loop=self.loop,
            limit=READ_BUFFER_BYTES,
            payload_exception=aiohttp.ClientPayloadError,
            read_until_eof=True,
            auto_decompress=False,
            max_line_size=HEADER_LINE_BYTES,
            max_field_size=HEADER_LINE_BYTES,
            max_headers=HEADER_LINES,
        )
        cast("Any", self._connector)._factory = functools.partial(Line, self.loop, portion, parser)

    def target(self, url: str) -> Target:
        """What `connect` wants to know of an address; made once per provider. Raises ValueError, UpstreamError."""
        secure = url.startswith("https:")
        request = aiohttp.ClientRequest("POST", URL(url), loop=self.loop, ssl=self._context() if secure else True)
        return Target(request, self._idle.setdefault(request.connection_key, deque()))

    def _context(self) -> ssl.SSLContext:
        """The system's certificates, or those of SSL_CERT_FILE; read once, when the first https provider is called."""
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    def idle(self, target: Target) -> Line | None:
        """A connection that waits there, ready for a call; None when there is none that is fit for it."""
        while target.idle:
            line = target.idle.popleft()
            if line.idle_until_s >= self.loop.time() and line.fit():
                line.prepare()
                return line
            line.connection.close()
        return None

    async def connect(self, target: Target, connect_s: float, name: str) -> Line:
        """Another connection, ready for a call. Raises UpstreamError with `dispatched` False."""
        self._connecting += 1
        try:
            while True:
                connection = await self._connector.connect(target.request, _NO_TRACES, _timeout(connect_s))
                line = cast("Line", connection.protocol)  # see `_factory` above
                if line.used and not line.fit():
                    connection.close()
                    continue
                line.connection, line.idle = connection, target.idle
                line.prepare()
                return line
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _unreached(error, name, target.request.url, connect_s) from error
        finally:
            self._connecting -= 1

    def keep(self, line: Line) -> None:
        """The reply on this connection has ended: it waits for the next call, if it can carry one."""
        if line.should_close:
            line.connection.close()
        elif self._connecting:
            line.connection.release()  # to the connector, where one may wait for a place
        else:
            line.idle_until_s = self.loop.time() + KEEPALIVE_S
            line.idle.append(line)
            if self._sweeping is None:
                self._sweeping = self.loop.call_later(KEEPALIVE_S, self._sweep)

    def _sweep(self) -> None:
        now_s = self.loop.time()
        for idle in self._idle.values():
            while idle and idle[0].idle_until_s < now_s:
                idle.popleft().connection.close()
        self._sweeping = self.loop.call_later(KEEPALIVE_S, self._sweep) if any(self._idle.values()) else None

    async def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        for idle in self._idle.values():
            while idle:
                idle.popleft().connection.release()
        await self._connector.close()


def drained(body: aiohttp.StreamReader) -> bytes:
    """All that has come of a body. Its own methods give the same, in a hundred steps for each chunk that came."""
    data = b"".join(body._buffer)
    body._buffer.clear()
    body._size = 0
    if body._http_chunk_splits:
        body._http_chunk_splits.clear()
    body._protocol.resume_reading()
    return data


def _unreached(error: Exception, name: str, url: URL, connect_s: float) -> UpstreamError:
    where = f"{url.host}:{url.port}"
    if isinstance(error, TimeoutError):
        return UpstreamError(
            "timeout",
            f"{name}: no connection to {where} within {connect_s * 1000:.0f} ms (DNS, TCP, TLS and, with "
            f"{CONNECTIONS_PER_HOST} calls open there, the wait for one to end)",
            dispatched=False,
        )
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        said = f"the name {url.host} does not resolve"
    elif isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)):
        said = f"TLS with {where} failed: {error}"
    elif isinstance(cause, Forbidden):
        said = str(cause)
    else:
        said = f"cannot connect to {where}: {getattr(cause, 'strerror', None) or cause}"
    return UpstreamError("connect", f"{name}: {said}", dispatched=False)


@functools.lru_cache(maxsize=64)
def _timeout(connect_s: float) -> aiohttp.ClientTimeout:
    # aiohttp rounds timeouts above `ceil_threshold` up to whole seconds, to save timers that we hardly make.
    return aiohttp.ClientTimeout(total=None, connect=connect_s, ceil_threshold=1e9)


def _socket(address: AddrInfoType) -> socket.socket:
    """Called by the connector for every address that it is about to connect to, however that was found."""
    family, kind, protocol, _, peer = address
    if forbidden(str(peer[0])):
        raise Forbidden(
            f"{peer[0]} is a link-local or cloud metadata address; these are never connected to, because they hand out "
            "the machine's own credentials"
        )
    return socket.socket(family, kind, protocol)
