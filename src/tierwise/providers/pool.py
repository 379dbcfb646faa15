"""Connections to providers: found in a pool or made within the connect deadline, and never to a forbidden address.

aiohttp's connector makes connections (DNS cache, TLS, happy eyeballs) and counts them. Its ClientSession is left out on
purpose: with cookies, redirects, netrc and proxies refused, what remains of it is an object per layer per request, 60
µs of CPU for a 1 kB call where all of ours is 31 (uvloop, 2026), and it does not say when bytes went out. Its pool is
left out for the same reason. Used of aiohttp beyond its documented face, and therefore pinned in pyproject:
`TCPConnector.connect` and `_factory`, the parser of replies, the inside of `StreamReader`, and what these ask of a
connection (`line`).
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections import deque
from typing import Any, NamedTuple, cast

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import AddrInfoType
from aiohttp.http import HttpResponseParser
from yarl import URL

from tierwise.core.ports import UpstreamError
from tierwise.providers.addresses import forbidden
from tierwise.providers.line import PORTION_BYTES, READ_BUFFER_BYTES, Line

CONNECTIONS_PER_HOST = 1_000
KEEPALIVE_S = 30.0
DNS_CACHE_S = 30
HEADER_LINE_BYTES = 16 * 1024
HEADER_LINES = 128
_NO_TRACES: list[Any] = []


class Forbidden(OSError):
    """The name or address in a provider's row leads to an address that we never connect to."""


class Target(NamedTuple):
    """Where a provider is, and the connections there that wait for a call, the longest idle first."""

    request: aiohttp.ClientRequest  # for the connector; never sent itself
    idle: deque[Line]


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
        except BaseException as error:
            # Who has been given a place and leaves without it gives it to the next; aiohttp would lose it.
            cast("Any", self._connector)._release_waiter()
            if isinstance(error, (aiohttp.ClientError, OSError, ValueError)):
                raise _unreached(error, name, target.request.url, connect_s) from error
            task = asyncio.current_task()
            if self._connector.closed and task is not None and not task.cancelling():
                raise UpstreamError("connect", f"{name}: the gateway is closing", dispatched=False) from None
            raise
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
