"""The process: starts the server, reloads the configuration, and goes away without losing a request or a cent.

SIGTERM and SIGINT drain: no new work, what runs may finish within `server.drain_s`, the rest is cut and settled; a
second one cuts at once.
SIGHUP, and a change of the file, reload: a broken file changes nothing but the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierwise.core.errors import ConfigError
from tierwise.server.app import App

if TYPE_CHECKING:
    import uvicorn

_log = logging.getLogger("tierwise")
# After the drain, this long for the handlers to notice that they are cut.
_CUT_S = 2.0

Reload = Callable[[], Awaitable[None]]


async def serve(
    app: App,
    host: str,
    port: int,
    drain_s: float,
    *,
    reload: Reload,
    watch: Callable[[Reload], Awaitable[None]] | None = None,
    started: Callable[[int], None] = lambda port: None,
) -> None:
    """Serve until a signal says to stop. `started` is told the port once requests are taken (it may have been 0).

    Raises ConfigError when the address cannot be had."""
    server = _server(app, host, port)
    loop = asyncio.get_running_loop()
    stopping, forced = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, stopping, forced)
    errands: set[asyncio.Task[None]] = set()
    turn = asyncio.Lock()
    loop.add_signal_handler(signal.SIGHUP, lambda: _start(errands, _reloaded(reload, turn)))
    if watch is not None:
        _start(errands, watch(lambda: _reloaded(reload, turn)))
    await app.runtime.refresh()  # what was prepaid counts from the first request on
    _start(errands, app.runtime.follow())
    _start(errands, app.runtime.watch())
    serving = loop.create_task(_run(server, host, port))
    try:
        await _until_started(server, serving)
        started(server.servers[0].sockets[0].getsockname()[1])
        await _first(stopping.wait(), serving)
        await _drain(app, drain_s, forced)
    finally:
        for errand in errands:
            errand.cancel()
        server.should_exit = True
        await serving
        await app.router.close()
        app.runtime.close()


def _server(app: App, host: str, port: int) -> uvicorn.Server:
    import uvicorn

    from tierwise.server.protocol import Protocol

    config = uvicorn.Config(
        app,
        http=Protocol,
        host=host,
        port=port,
        log_config=None,
        log_level="critical",  # what goes wrong is told by us, in a sentence
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(_CUT_S),
        lifespan="off",
        ws="none",
        proxy_headers=False,
    )

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # the signals are ours: uvicorn would stop listening before the drain has begun

    return Server(config)


async def _run(server: uvicorn.Server, host: str, port: int) -> None:
    try:
        await server.serve()
    except SystemExit:
        from tierwise.core.errors import Problem

        what = (
            f"{host}:{port} cannot be listened on; is it in use, or not this machine's? Take another port with --port "
            "or TIERWISE_PORT"
        )
        raise ConfigError((Problem("server", what),)) from None


async def _until_started(server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    while not server.started:
        if serving.done():
            serving.result()
            raise RuntimeError("the server stopped before it had started")
        await asyncio.sleep(0.005)


def _stop(stopping: asyncio.Event, forced: asyncio.Event) -> None:
    if stopping.is_set():
        forced.set()  # asked twice: whoever asks means it
    stopping.set()


async def _drain(app: App, drain_s: float, forced: asyncio.Event) -> None:
    router = app.router
    _log.info("draining: %d requests under way", router.in_flight)
    draining = asyncio.ensure_future(router.drain(drain_s))
    await _first(forced.wait(), draining)
    draining.cancel()
    if router.in_flight:
        _log.warning("%d requests are cut off", router.in_flight)
        app.cut()
        await router.drain(_CUT_S)


async def _reloaded(reload: Reload, turn: asyncio.Lock) -> None:
    """One at a time: of two that read side by side, the one that began first may end last, and serve what is past."""
    try:
        async with turn:
            await reload()
    except ConfigError as error:
        _log.error("the configuration was not taken, the last good one stays:\n%s", error)
    except Exception:  # ours; whatever it is, the next change is read again
        _log.exception("the configuration was not taken, the last good one stays")


def _start(errands: set[asyncio.Task[None]], work: Awaitable[None]) -> None:
    task = asyncio.ensure_future(work)
    errands.add(task)
    task.add_done_callback(errands.discard)


async def _first(waiting: Awaitable[object], other: asyncio.Future[Any]) -> None:
    """Wait until one of them is done; the waiting ends then, the other goes on."""
    waiter = asyncio.ensure_future(waiting)
    try:
        await asyncio.wait({waiter, other}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()


def state_of(path: Path) -> str:
    """The folder as a person would type it."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
