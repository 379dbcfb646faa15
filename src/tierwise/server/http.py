"""The little of ASGI that the server needs: a bounded body, a whole reply, and who has gone. No framework here."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any

import msgspec

from tierwise.core.errors import BadRequest, RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

# What our protocol adds to a scope: a `Caller`.
CALLER = "tierwise.caller"
# A caller that sends its body slower than this is not a slow caller.
BODY_DEADLINE_S = 30.0
JSON = (b"content-type", b"application/json")
EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")
# A name or an address, and a port; never a path, a user or a space (the request's own line says where it goes).
_HOST = re.compile(r"(?:[A-Za-z0-9._~-]{1,253}|\[[0-9A-Za-z:.%]{2,60}\])(?::[0-9]{1,5})?")


class Gone(Exception):
    """The caller left before its body was here."""


def headers_of(scope: Scope) -> dict[str, str]:
    """Lower-cased names; of a header that comes twice, the first. Latin-1, as HTTP has it.

    Raises BadRequest without exactly one sound Host (HTTP/1.0 may do without): the parser lets others pass, and what
    two readers may take for two different requests is nobody's request."""
    headers = scope["headers"]
    found = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    host = found.get("host")
    if len(found) < len(headers):
        found.update((name.decode("latin-1"), value.decode("latin-1")) for name, value in reversed(headers))
        if sum(name == b"host" for name, _ in headers) > 1:
            host = ""
    if host is None and scope.get("http_version") == "1.0":
        return found
    if host is None or not _HOST.fullmatch(host):
        raise BadRequest("give exactly one Host header, as a name with or without a port", code="bad_host")
    return found


def body_here(caller: Caller, headers: dict[str, str], limit: int) -> bytes | None:
    """The whole body; None: it is not here yet, `read_body` it. Raises a 415, and a 413 above the limit."""
    if "content-encoding" in headers and (encoding := headers["content-encoding"]) not in ("", "identity"):
        raise BadRequest(
            f"a body with content-encoding {encoding[:40]!r} is not read; send it as it is",
            code="unsupported_encoding",
            status=415,
        )
    body = caller.take()
    if body is not None and len(body) > limit:
        raise too_large(limit)
    return body


async def read_body(headers: dict[str, str], receive: Receive, limit: int) -> bytes:
    """The whole body. Raises a 413 above the limit, a 408 when it does not come in time, Gone when the caller left."""
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large(limit)
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            body = await _received(receive, limit)
    except TimeoutError:
        raise RequestError("the body did not arrive in time", code="body_timeout", status=408) from None
    if len(body) > limit:
        raise too_large(limit)
    return body


async def _received(receive: Receive, limit: int) -> bytes:
    """The body, or as much of it as shows that it is too large."""
    pieces: list[bytes] = []
    size, more = 0, True
    while more and size <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        more = message.get("more_body", False)
    return b"".join(pieces)


def too_large(limit: int) -> BadRequest:
    return BadRequest(
        f"the body is larger than {limit} bytes; shorten it, or raise server.body_limit_bytes",
        code="body_too_large",
        status=413,
    )


async def lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return


def length_of(body: bytes) -> tuple[bytes, bytes]:
    """The header that says where the body ends."""
    return b"content-length", b"%d" % len(body)


async def reply(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """A whole reply at once."""
    await send_whole(send, status, [*headers, length_of(body)], body)


async def send_whole(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """The same, of headers that say where the body ends."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def reply_json(send: Send, status: int, value: object, headers: Headers | None = None) -> None:
    await reply(send, status, msgspec.json.encode(value), [JSON, *(headers or [])])


class Caller:
    """The other end of a connection, and whether it is still there. ASGI says so only to a task that does nothing but
    listen; our protocol knows, and puts this into the scope. Where it knows shorter ways to what ASGI does in
    messages, its own kind of caller has them; this one has none."""

    __slots__ = ("gone", "watchers")

    def __init__(self) -> None:
        self.gone = False
        self.watchers: set[WhileConnected] = set()  # whose `leave` is called when the caller goes

    def left(self) -> None:
        self.gone = True
        while self.watchers:
            self.watchers.pop().leave()

    def take(self) -> bytes | None:
        """The request's whole body at once; None: it is not here, `receive` it."""
        return None

    def whole(self, status: int, headers: Headers, body: bytes) -> bool:
        """Sends a whole reply at once; False: not now, `send_whole` it."""
        return False

    def begin(self, status: int, headers: Headers) -> bool:
        """Sends the head of a reply whose body follows in pieces; False: `send` it."""
        return False


class WhileConnected:
    """Runs its block until the end, or until the caller leaves: then the block is cancelled and `gone` is true.

    An ASGI server does not cancel a handler whose caller went away."""

    __slots__ = ("_caller", "_task", "gone")

    def __init__(self, caller: Caller, task: asyncio.Task[object]) -> None:
        """`task` runs the block."""
        self._caller = caller
        self._task = task
        self.gone = False

    def __enter__(self) -> WhileConnected:
        if self._caller.gone:
            asyncio.get_running_loop().call_soon(self.leave)
        else:
            self._caller.watchers.add(self)
        return self

    def leave(self) -> None:
        self.gone = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._caller.watchers.discard(self)
        # Only our own cancellation ends here; one from outside (a server that stops) goes on.
        return self.gone and self._task.uncancel() == 0 and kind is asyncio.CancelledError
