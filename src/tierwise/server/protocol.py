"""uvicorn's HTTP/1.1 protocol with the limits that it leaves to a proxy: a head has an end, in bytes and in time.

It tells the application who has left and whether a body is whole, which ASGI leaves to be found out.

Also: trailers are no headers (a proxy in front has not seen them), and an offer to upgrade to HTTP/2 is declined, and
not taken for the end of the request as the parser would have it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from tierwise.server.http import CALLER, Caller, Headers, Scope

HEAD_BYTES = 64 * 1024
# With more than this that a caller has not read, its stream waits, and so does the provider behind it.
UNREAD_BYTES = 16 * 1024
# A head that has begun and does not end in this time belongs to nobody who means well.
HEAD_S = 10.0
# What may stand in the value of a header: no control character but the tab.
_FINE = bytes(each for each in range(256) if each == 0x09 or (each >= 0x20 and each != 0x7F))
_OFFERS = re.compile(rb"(?im)^(?:upgrade|http2-settings):[^\r\n]*\r\n")


class Joined:
    """A transport that sends what is written in one turn of the loop by one system call: the head of a reply goes out
    with its body, and the caller wakes up once. Everything else is the transport's."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self.is_closing = transport.is_closing  # asked of every reply
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)

    def write_now(self, data: bytes) -> None:
        """What is whole needs nothing to be joined to it."""
        if self._pieces:
            self._pieces.append(data)
        elif not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        pieces, self._pieces = self._pieces, []
        if pieces and not self.is_closing():
            self._transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Nowhere(list[tuple[bytes, bytes]]):
    """Where trailers go."""

    def append(self, header: tuple[bytes, bytes]) -> None:
        pass


_NOWHERE = _Nowhere()


class _Nobody(asyncio.Event):
    """Who waits for the rest of a request while nobody does."""

    def set(self) -> None:
        pass


_NOBODY = _Nobody()


class _Cycle(RequestResponseCycle):
    """One request and its reply. Most are here as a whole when they are looked at, so nobody waits for a message."""

    # How each begins.
    logger = logging.getLogger("uvicorn.error")
    access_logger = logging.getLogger("uvicorn.access")
    message_event: asyncio.Event = _NOBODY
    disconnected = False
    body: bytes | bytearray = b""  # type: ignore[assignment]  # that has come and was not taken yet
    more_body = True
    response_started = False
    response_complete = False
    chunked_encoding: bool | None = None
    expected_content_length = 0

    def __init__(self, protocol: Protocol, scope: Scope, *, keep_alive: bool) -> None:
        self.scope = scope  # type: ignore[assignment]
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.access_log = protocol.access_log
        self.default_headers = protocol.server_state.default_headers
        self.waiting_for_100_continue = protocol.expect_100_continue
        self.keep_alive = keep_alive
        self.on_response = protocol.on_response_complete

    async def receive(self) -> ASGIReceiveEvent:
        if self.message_event is _NOBODY:
            self.message_event = asyncio.Event()
            if self.body or not self.more_body or self.disconnected or self.response_complete:
                self.message_event.set()
        return await super().receive()

    def lines(self, headers: Headers) -> bytes | None:
        """What `send` makes of headers that tell how the body ends: a reply of ours has 17, and looking through them
        all together takes 3 µs and not 8. None wherever `send` would do more than write."""
        if self.flow.write_paused or self.disconnected or self.response_started:
            return None
        if self.access_log or self.default_headers or self.scope["method"] == "HEAD":
            return None
        lines = b"\r\n".join(map(b": ".join, headers))
        if lines.translate(None, _FINE) != b"\r\n" * (len(headers) - 1):  # breaks inside of a value
            return None
        self.waiting_for_100_continue = False
        return lines if self.keep_alive else lines + b"\r\nconnection: close"


class _Caller(Caller):
    """Of the connection and not of the request: a scope that led to its own cycle would wait for the collector, and the
    body with it. As a connection that is gone would, so it is let go of."""

    __slots__ = ("_protocol",)

    def __init__(self, protocol: Protocol) -> None:
        super().__init__()
        self._protocol: Protocol | None = protocol

    def left(self) -> None:
        super().left()
        self._protocol = None

    def take(self) -> bytes | None:
        """What the cycle's `receive` gives, where there is nothing to wait for and nobody to tell to go on."""
        if self._protocol is None:
            return None
        cycle = self._protocol.answering
        if cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue:
            return None
        cycle.flow.resume_reading()  # the caller's leaving is to be read
        body, cycle.body = bytes(cycle.body), b""
        return body

    def whole(self, status: int, headers: Headers, body: bytes) -> bool:
        """What `send` does with the two messages of a whole reply, in one step."""
        if self._protocol is None:
            return False
        cycle = self._protocol.answering
        lines = cycle.lines(headers)
        if lines is None:
            return False
        cycle.chunked_encoding = False
        cycle.response_started = cycle.response_complete = True
        joined: Joined = cycle.transport  # type: ignore[assignment]
        joined.write_now(b"".join((STATUS_LINE[status], lines, b"\r\n\r\n", body)))
        cycle.message_event.set()
        if not cycle.keep_alive:
            joined.close()
        cycle.on_response()
        return True

    def begin(self, status: int, headers: Headers) -> bool:
        """What `send` does with the first message of a stream."""
        if self._protocol is None:
            return False
        cycle = self._protocol.answering
        lines = cycle.lines(headers)
        if lines is None:
            return False
        cycle.chunked_encoding = cycle.response_started = True
        cycle.transport.write(b"".join((STATUS_LINE[status], lines, b"\r\ntransfer-encoding: chunked\r\n\r\n")))
        return True


class Protocol(HttpToolsProtocol):
    """One connection. What uvicorn's own leaves open is settled here: there are no websockets to upgrade to, no bound
    to the number of requests, and no path that we are mounted at."""

    cycle: _Cycle
    answering: _Cycle  # the one whose handler runs; others may wait behind it
    _in_head = True
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    # While nothing is asked: when the connection has waited for long enough. The timer is moved only when it fires, so
    # a request costs none.
    _idle_until_s: float | None = None
    _idle_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._caller: Caller = _Caller(self)
        transport.set_write_buffer_limits(high=UNREAD_BYTES)
        super().connection_made(cast("asyncio.Transport", Joined(transport, self.loop)))

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        super().connection_lost(exc)
        self._caller.left()

    def data_received(self, data: bytes) -> None:
        self._idle_until_s = None
        if self._in_head and b"pgrade" in data:
            data = _without_offers(data)
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserUpgrade:
            pass  # a request that offers more than we speak is served as it is
        if self._in_head and self._head_bytes:  # a head has begun and has not ended
            if self._head_bytes > HEAD_BYTES:
                self._refuse(b"431 Request Header Fields Too Large", f"the head is above {HEAD_BYTES} bytes")
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(HEAD_S, self._late)
        elif self._head_timer is not None:
            self._disarm()

    # ------------------------------------------------------------------------------------------ for the parser

    def on_message_begin(self) -> None:
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        self._in_head = False
        parser = self.parser
        version = parser.get_http_version()
        path, query = _parts(self.url)
        scope: Scope = {
            "type": "http",
            "http_version": version,
            "method": parser.get_method().decode("ascii"),
            "path": path,
            "query_string": query,
            "headers": self.headers,
            "client": self.client,
            CALLER: self._caller,
        }
        self.headers = _NOWHERE
        before = self.cycle
        self.cycle = cycle = _Cycle(self, scope, keep_alive=version != "1.0" and parser.should_keep_alive())
        if before is None or before.response_complete:
            self._answer(cycle)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if cycle.response_complete:
            return
        if not cycle.body:
            cycle.body = body  # as nearly always, all of it
        elif type(cycle.body) is bytes:
            cycle.body = bytearray(cycle.body + body)
        else:
            cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.more_body = False
            cycle.message_event.set()
        # What follows is the head of the next request, if there is one.
        self._in_head, self._head_bytes = True, 0

    # ------------------------------------------------------------------------------------------ one after the other

    def _answer(self, cycle: _Cycle) -> None:
        self.answering = cycle
        task = self.loop.create_task(cycle.run_asgi(self.app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def on_response_complete(self) -> None:
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, _ = self.pipeline.pop()
            self._answer(cast("_Cycle", cycle))
            return
        self._idle_until_s = until_s = self.loop.time() + self.timeout_keep_alive
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_at(until_s, self._idle)

    def _idle(self) -> None:
        self._idle_timer = None
        if self._idle_until_s is None:
            return
        if self.loop.time() < self._idle_until_s:
            self._idle_timer = self.loop.call_at(self._idle_until_s, self._idle)
        elif not self.transport.is_closing():
            self.transport.close()

    def _late(self) -> None:
        self._refuse(b"408 Request Timeout", f"the head did not end in {HEAD_S:.0f} s")

    def _refuse(self, status: bytes, why: str) -> None:
        self._disarm()
        if self.transport.is_closing():
            return
        body = (
            b'{"error":{"type":"invalid_request_error","code":"bad_head","message":"%s","param":null}}' % why.encode()
        )
        self.transport.write(
            b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
            % (status, len(body), body)
        )
        self.transport.close()

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _without_offers(data: bytes) -> bytes:
    head, end, rest = data.partition(b"\r\n\r\n")
    return _OFFERS.sub(b"", head + b"\r\n")[:-2] + end + rest if end else data


@functools.lru_cache(maxsize=64)
def _parts(url: bytes) -> tuple[str, bytes]:
    """(path, query). Whatever it raises, the parser refuses the request."""
    found = httptools.parse_url(url)
    path = found.path.decode("ascii")
    return unquote(path) if "%" in path else path, found.query or b""
