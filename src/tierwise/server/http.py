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
    found: dict[str, str] = {}
    hosts = 0
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        hosts += name == b"host"
    missing = hosts == 0 and scope.get("http_version") != "1.0"
    if missing or hosts > 1 or not _HOST.fullmatch(found.get("host", "none")):
        raise BadRequest("give exactly one Host header, as a name with or without a port", code="bad_host")
    return found


async def read_body(headers: dict[str, str], receive: Receive, limit: int) -> bytes:
    """The whole body. Raises a 413 above the limit, a 408 when it does not come in time, Gone when the caller left."""
    encoding = headers.get("content-encoding", "identity")
    if encoding not in ("", "identity"):
        raise BadRequest(
            f"a body with content-encoding {encoding[:40]!r} is not read; send it as it is",
            code="unsupported_encoding",
            status=415,
        )
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large(limit)
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            message = await _receive(receive)
            pieces: list[bytes] = [message.get("body", b"")]
            size = len(pieces[0])
            while size <= limit and message.get("more_body", False):
                message = await _receive(receive)
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
    except TimeoutError:
        raise RequestError("the body did not arrive in time", code="body_timeout", status=408) from None
    if size > limit:
        raise too_large(limit)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _receive(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Gone
    return message


def too_large(limit: int) -> BadRequest:
    return BadRequest(
        f"the body is larger than {limit} bytes; shorten it, or raise server.body_limit_bytes",
        code="body_too_large",
        status=413,
    )


async def reply(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """A whole reply at once."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, (b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def reply_json(send: Send, status: int, value: object, headers: Headers | None = None) -> None:
    await reply(send, status, msgspec.json.encode(value), [JSON, *(headers or [])])


class WhileConnected:
    """Runs its block until the end, or until the caller leaves: then the block is cancelled and `gone` is true.

    An ASGI server does not cancel a handler whose caller went away; somebody has to listen."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.gone = False

    async def __aenter__(self) -> WhileConnected:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # ASGI handlers run in tasks
        self._task = task
        self._watch = asyncio.get_running_loop().create_task(self._listen())
        return self

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass  # a second body message after the last one says nothing new
        self.gone = True
        self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._watch.cancel()
        # Only our own cancellation ends here; one from outside (a server that stops) goes on.
        if self.gone and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            return True
        return False
