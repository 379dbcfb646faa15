"""Connections to providers: found in a pool or made within the connect deadline, and never to a forbidden address.

aiohttp's connector does what it is good at (pool, DNS cache, TLS, happy eyeballs, the C parser). Its ClientSession is
left out on purpose: with cookies, redirects, netrc and proxies refused, what remains of it is an object per layer per
request, 60 µs of CPU for a 1 kB call where all of ours is 31 (uvloop, 2026), and it does not say when bytes went out.
Used of aiohttp beyond its documented face, and therefore pinned in pyproject: `TCPConnector.connect` and `_factory`,
`ResponseHandler.set_response_params`, `should_close` and `read`.
"""

from __future__ import annotations

import asyncio
import functools
import select
import socket
import ssl
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import AddrInfoType, Connection
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


class Forbidden(OSError):
    """The name or address in a provider's row leads to an address that we never connect to."""


class Line(ResponseHandler):
    """One connection. Knows whether it has been used before, and the body that it is carrying."""

    def __init__(self, loop: asyncio.AbstractEventLoop, portion: memoryview) -> None:
        super().__init__(loop)
        self._portion = portion
        self.used = False
        self.body: aiohttp.StreamReader | None = None
        self._held = False  # reading was paused since the request went out
        self._quiet: select.poll | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        cast("asyncio.Transport", transport).set_protocol(Portions(self, self._portion))
        if transport.get_extra_info("sslcontext") is not None:  # what is still encrypted waits there as well
            cast("Any", transport).set_read_buffer_limits(high=PORTION_BYTES)
        connected = transport.get_extra_info("socket")
        if connected is not None:
            self._quiet = select.poll()
            self._quiet.register(connected.fileno(), select.POLLIN)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._quiet = None  # the number may be another connection's by now
        super().connection_lost(exc)
        # After a body that cannot be parsed aiohttp forgets it without a word, and its reader would wait forever.
        body, self.body = self.body, None
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError("the body's framing is broken"))

    def pause_reading(self) -> None:
        self._held = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp's body says this after every read. What was never paused has nothing to resume; what was may have left
        # bytes in the parser, also after it was resumed.
        if self._held:
            super().resume_reading(resume_parser)

    def fit(self) -> bool:
        """Whether a connection from the pool can carry another call.

        Anything that has arrived since it was returned (a provider's goodbye, a stray reply) would be taken for the
        answer to the next request, so such a connection is not used again. The loop may not have read it yet:
        asking the kernel costs 2 µs and closes most of the race with a provider that hangs up on idle connections.
        """
        if self.should_close or self.transport is None:
            return False
        return self._quiet is not None and not self._quiet.poll(0)

    def prepare(self) -> None:
        """A fresh parser for the reply to one request."""
        self.used = True
        self.body = None
        self._held = False
        self.set_response_params(
            read_until_eof=True,
            auto_decompress=False,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=HEADER_LINE_BYTES,
            max_field_size=HEADER_LINE_BYTES,
            max_headers=HEADER_LINES,
        )


class Target(aiohttp.ClientRequest):
    """Where a provider is, for the connector. Never sent itself."""

    @functools.cached_property
    def connection_key(self) -> ConnectionKey:  # which aiohttp makes anew for every call
        return super().connection_key


class Portions(asyncio.BufferedProtocol):
    """Stands between the socket and its line, to say how much is read at once."""

    def __init__(self, line: Line, portion: memoryview) -> None:
        self._line = line
        self._portion = portion
        self.pause_writing = line.pause_writing  # type: ignore[method-assign]
        self.resume_writing = line.resume_writing  # type: ignore[method-assign]
        self.connection_lost = line.connection_lost  # type: ignore[method-assign]
        self.eof_received = line.eof_received  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._portion

    def buffer_updated(self, nbytes: int) -> None:
        self._line.data_received(bytes(self._portion[:nbytes]))


class Pool:
    """One per process and event loop; made inside the running loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
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
        self._connector._factory = functools.partial(Line, loop=self.loop, portion=portion)  # type: ignore[assignment]

    def target(self, url: str) -> Target:
        """What `connect` wants to know of an address; made once per provider. Raises ValueError, UpstreamError."""
        secure = url.startswith("https:")
        return Target("POST", URL(url), loop=self.loop, ssl=self._context() if secure else True)

    def _context(self) -> ssl.SSLContext:
        """The system's certificates, or those of SSL_CERT_FILE; read once, when the first https provider is called."""
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    async def connect(self, target: Target, connect_s: float, name: str) -> Connection:
        """A connection ready for one call. Raises UpstreamError with `dispatched` False."""
        try:
            while True:
                connection = await self._connector.connect(target, _NO_TRACES, _timeout(connect_s))
                line = cast("Line", connection.protocol)  # see `_factory` above
                if line.used and not line.fit():
                    connection.close()
                    continue
                line.prepare()
                return connection
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _unreached(error, name, target.url, connect_s) from error

    async def close(self) -> None:
        await self._connector.close()


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
