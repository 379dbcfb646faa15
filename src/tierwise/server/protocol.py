"""uvicorn's HTTP/1.1 protocol with the limits that it leaves to a proxy: a head has an end, in bytes and in time.

It tells the application who has left and whether a body is whole, which ASGI leaves to be found out.

Also: trailers are no headers (a proxy in front has not seen them), and an offer to upgrade to HTTP/2 is declined, and
not taken for the end of the request as the parser would have it.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from tierwise.server.http import CALLER, Caller, Headers

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
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    def whole(self, status: int, headers: Headers, body: bytes) -> bool:
        """What `send` does with the two messages of a whole reply, in one step."""
        opened = self._open(headers)
        if opened is None:
            return False
        cycle, lines = opened
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
        opened = self._open(headers)
        if opened is None:
            return False
        cycle, lines = opened
        cycle.chunked_encoding = cycle.response_started = True
        cycle.transport.write(b"".join((STATUS_LINE[status], lines, b"\r\ntransfer-encoding: chunked\r\n\r\n")))
        return True

    def _open(self, headers: Headers) -> tuple[RequestResponseCycle, bytes] | None:
        """The cycle whose reply begins now, and the lines of its head."""
        if self._protocol is None:
            return None
        cycle = self._protocol.answering
        lines = _lines(cycle, headers)
        if lines is None:
            return None
        cycle.waiting_for_100_continue = False
        return cycle, lines


def _lines(cycle: RequestResponseCycle, headers: Headers) -> bytes | None:
    """What the cycle's `send` makes of headers that tell how the body ends: a reply of ours has 17, and looking through
    them all together takes 3 µs and not 8. None wherever `send` would do more than write."""
    if cycle.flow.write_paused or cycle.disconnected or cycle.response_started:
        return None
    if cycle.access_log or cycle.default_headers or cycle.scope["method"] == "HEAD":
        return None
    lines = b"\r\n".join(map(b": ".join, headers))
    if lines.translate(None, _FINE) != b"\r\n" * (len(headers) - 1):  # breaks inside of a value
        return None
    return lines if cycle.keep_alive else lines + b"\r\nconnection: close"


class Protocol(HttpToolsProtocol):
    """One connection."""

    _in_head = True
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _offer = b""  # of a head that offers more than we speak, and is not here as a whole
    _deaf = False  # what comes is no request any more, and a reply is still under way
    answering: RequestResponseCycle  # the one whose handler runs; others may wait behind it

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._caller: Caller = _Caller(self)
        transport.set_write_buffer_limits(high=UNREAD_BYTES)
        super().connection_made(cast("asyncio.Transport", Joined(transport, self.loop)))
        self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)
        self._caller.left()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._head_bytes += len(data)
        if self._in_head and (self._offer or b"pgrade" in data):
            data = self._declined(data)
        if data:
            super().data_received(data)
        if self._in_head and self._head_bytes:  # a head has begun and has not ended
            if self._head_bytes > HEAD_BYTES:
                self._refuse(b"431 Request Header Fields Too Large", f"the head is above {HEAD_BYTES} bytes")
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(HEAD_S, self._late)
        elif self._head_timer is not None:
            self._disarm()
        cycle = self.cycle
        if cycle is not None and cycle.response_complete and not (self._in_head and self._head_bytes):
            self._rest()

    def _declined(self, data: bytes) -> bytes:
        """Without an offer to speak another protocol; b"" until its head is here as a whole."""
        head, end, rest = (self._offer + data).partition(b"\r\n\r\n")
        self._offer = b"" if end else head
        if not end:
            self._unset_keepalive_if_required()
            return b""
        return _OFFERS.sub(b"", head + b"\r\n")[:-2] + end + rest

    def _rest(self) -> None:
        """Nothing has come yet, or more of a body that was answered before its end: nothing else would end a connection
        whose caller then is silent."""
        if self.timeout_keep_alive_task is None and not self.transport.is_closing():
            later = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
            self.timeout_keep_alive_task = later

    def on_headers_complete(self) -> None:
        self._in_head = False
        self.scope[CALLER] = self._caller  # type: ignore[literal-required]
        super().on_headers_complete()
        self.headers = _NOWHERE

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        # What follows is the head of the next request, if there is one.
        self._in_head, self._head_bytes = True, 0

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing to say: a request that offers more than we speak is served as it is."""

    def _late(self) -> None:
        self._refuse(b"408 Request Timeout", f"the head did not end in {HEAD_S:.0f} s")

    def send_400_response(self, msg: str) -> None:
        if not self._spared():
            super().send_400_response(msg)

    def _spared(self) -> bool:
        """Whether a reply is under way, into which nothing else may be written. It is the last then, where its request
        is here as a whole; else it cannot be told from a broken one."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        if not cycle.more_body:
            self._deaf, cycle.keep_alive = True, False
        elif cycle is self.answering and not cycle.response_started:
            return False
        else:
            self.transport.close()
        return True

    def _refuse(self, status: bytes, why: str) -> None:
        self._disarm()
        if self.transport.is_closing() or self._spared():
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
