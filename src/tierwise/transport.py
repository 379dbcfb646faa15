"""A transport for httpx and httpx2 that calls the application in process: the vendors' SDKs run on it with no socket.

Streams come as they are made, and closing a response early is what a caller's leaving is on a socket. The response is
built from the library that the request came from, so neither library is a dependency of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tierwise.core.errors import Closed
from tierwise.server.http import CALLER, Caller

if TYPE_CHECKING:
    from tierwise.server.app import App

_log = logging.getLogger("tierwise")
# So many pieces of a reply may wait for a reader; then the writer waits.
_PIECES = 8


class _Reader(Caller):
    """Has its request's body at hand."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self._body = body

    def take(self) -> bytes:
        return self._body


class _Exchange:
    """One request through the application, and its reply as it comes."""

    def __init__(self, app: App, scope: dict[str, Any], body: bytes) -> None:
        self._caller = _Reader(body)
        self._broken = False
        self._head: asyncio.Future[tuple[int, list[tuple[bytes, bytes]]]] = asyncio.get_running_loop().create_future()
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(_PIECES)
        self._task = asyncio.get_running_loop().create_task(self._run(app, {**scope, CALLER: self._caller}))

    async def _run(self, app: App, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self._receive, self._send)
        except Exception as error:
            if self._head.done():
                self._broken = True
                _log.exception("a reply to %s broke off", scope["path"])
            else:
                self._head.set_exception(error)
        finally:
            if not self._caller.gone:
                await self._pieces.put(None)

    async def _receive(self) -> dict[str, Any]:
        return {"type": "http.disconnect"}  # the body was taken, and nothing comes after it

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._head.set_result((message["status"], message["headers"]))
        elif message.get("body") and not self._caller.gone:
            await self._pieces.put(message["body"])

    async def head(self, patience_s: float | None) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Status and headers. Raises TimeoutError, and the caller has then left."""
        try:
            async with asyncio.timeout(patience_s):
                return await self._head
        except (asyncio.CancelledError, TimeoutError):
            await self.close()
            raise

    async def next(self, patience_s: float | None) -> bytes | None:
        """The next piece, None at the end. Raises TimeoutError, and ConnectionError for a reply that broke off."""
        async with asyncio.timeout(patience_s):
            piece = await self._pieces.get()
        if piece is None and self._broken:
            raise ConnectionError("the reply broke off")
        return piece

    async def close(self) -> None:
        """The reader is done: what still runs learns that its caller has left."""
        self._caller.left()
        while not self._pieces.empty():
            self._pieces.get_nowait()
        await asyncio.wait({self._task})


class Transport:
    """`handle_async_request` as httpx calls it."""

    def __init__(self, app: Callable[[], Awaitable[App]]) -> None:
        self._app = app

    async def handle_async_request(self, request: Any) -> Any:
        library, patience_s = _library(request), _patience_s(request)
        exchange = _Exchange(await self._app(), _scope(request), await request.aread())
        with _told_as(library, request):
            status, headers = await exchange.head(patience_s)

        class Body(library.AsyncByteStream):  # type: ignore[misc,name-defined]  # the caller's own library
            async def __aiter__(self) -> AsyncIterator[bytes]:
                with _told_as(library, request):
                    while (piece := await exchange.next(patience_s)) is not None:
                        yield piece

            async def aclose(self) -> None:
                await exchange.close()

        return library.Response(status, headers=headers, stream=Body(), request=request)

    async def aclose(self) -> None:
        """The router is closed by its own `close`."""

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class TransportSync:
    """`handle_request` as httpx calls it. `run` does work on the router's loop and waits for it."""

    def __init__(self, app: Callable[[], Awaitable[App]], run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._app = app
        self._run = run

    def handle_request(self, request: Any) -> Any:
        library, patience_s, run = _library(request), _patience_s(request), self._run
        body = request.read()

        async def begin() -> tuple[_Exchange, int, list[tuple[bytes, bytes]]]:
            exchange = _Exchange(await self._app(), _scope(request), body)
            return exchange, *await exchange.head(patience_s)

        with _told_as(library, request):
            exchange, status, headers = run(begin())

        class Body(library.SyncByteStream):  # type: ignore[misc,name-defined]  # the caller's own library
            def __iter__(self) -> Iterator[bytes]:
                with _told_as(library, request):
                    while (piece := run(exchange.next(patience_s))) is not None:
                        yield piece

            def close(self) -> None:
                with contextlib.suppress(Closed):  # closing the router has ended the exchange as well
                    run(exchange.close())

        return library.Response(status, headers=headers, stream=Body(), request=request)

    def close(self) -> None:
        """The router is closed by its own `close`."""

    def __enter__(self) -> TransportSync:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _library(request: Any) -> Any:
    """httpx or httpx2, whichever the request is from."""
    return import_module(type(request).__module__.partition(".")[0])


@contextlib.contextmanager
def _told_as(library: Any, request: Any) -> Iterator[None]:
    """What went wrong as the caller's library says it."""
    try:
        yield
    except TimeoutError:
        what = "the reply took longer than the client's read timeout"
        raise library.ReadTimeout(what, request=request) from None
    except ConnectionError as error:
        raise library.ReadError(str(error), request=request) from None


def _patience_s(request: Any) -> float | None:
    """How long the caller waits for the next bytes; None for ever. Its other timeouts are about sockets."""
    found: float | None = request.extensions.get("timeout", {}).get("read")
    return found


def _scope(request: Any) -> dict[str, Any]:
    path, _, query = request.url.raw_path.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.url.scheme,
        "path": path.decode("ascii", "replace"),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": None,
        "server": ("in-process", 0),
    }
