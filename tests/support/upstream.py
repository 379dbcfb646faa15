"""A scripted fake provider: a real HTTP/1.1 server on loopback that behaves as well or as badly as a test tells it.

    async with FakeUpstream() as upstream:                 # or: with FakeUpstream.in_thread() as upstream:
        upstream.script(rate_limited("2"), openai_reply("Paris"))   # one step per request, in order
        ...point a provider row at upstream.base_url (it ends in /v1; Anthropic is served there as well)...
        assert upstream.requests[1].json["model"] == "small"
        await upstream.requests[0].gone.wait()             # the client has closed that connection

When the script is empty, `upstream.default` answers: unless changed, `well_formed`, which reads path and `stream` and
answers as OpenAI chat, OpenAI embeddings or Anthropic messages would, echoing the model that was asked for.

A step is `async def step(x: Exchange) -> None`. Ready-made ones are below, in three groups: replies (`openai_reply`,
`openai_stream`, `anthropic_reply`, `anthropic_stream`, `embeddings_reply`, `json_reply`, `sse`, `error`), and the
faults of shared promise codes U1-U12 and S1-S13 (`hang_before_headers`, `drip`, `gzip_bomb`, `redirect`, …). Faults
below HTTP are not steps: `closed_port()` gives an address that refuses, `unreachable()` one that never completes a
connection. A step that returns leaves the connection open for the next request, unless it called `x.close()`.

Nothing here sleeps unless a step was asked to: a hanging step waits until the client goes. `Seen.gone` is set when the
client's side of the connection has ended, also after a proper end; `Seen.gone_early` says it ended during the step.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from tests.support.faults import *  # noqa: F403  (this module is the one door to all of it)
from tests.support.replies import TEXT as TEXT
from tests.support.replies import Tokens as Tokens
from tests.support.replies import ToolCall as ToolCall
from tests.support.steps import *  # noqa: F403
from tests.support.steps import Headers, Step, well_formed


class Flag:
    """An event that both sides can wait for: `await flag.wait()` in the server's loop, `flag.wait_sync()` anywhere."""

    def __init__(self) -> None:
        self._inner, self._outer = asyncio.Event(), threading.Event()

    def set(self) -> None:
        self._inner.set()
        self._outer.set()

    def is_set(self) -> bool:
        return self._outer.is_set()

    async def wait(self, timeout_s: float = 10.0) -> None:
        async with asyncio.timeout(timeout_s):
            await self._inner.wait()

    def wait_sync(self, timeout_s: float = 10.0) -> None:
        if not self._outer.wait(timeout_s):
            raise TimeoutError("the client is still connected")


class Seen:
    """One request as it arrived. `connection` counts from 0, so equal numbers mean a reused connection."""

    def __init__(self, method: str, path: str, headers: Mapping[str, str], raw_head: bytes, connection: int) -> None:
        self.method, self.path, self.headers, self.raw_head = method, path, headers, raw_head
        self.connection = connection
        self.body = b""
        self.gone = Flag()
        self.gone_early = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def model(self) -> str:
        return str(self.json.get("model", ""))

    @property
    def stream(self) -> bool:
        return bool(self.json.get("stream", False))


class Exchange:
    """What a step works with: the request, and the wire. Writing to a client that has gone raises ConnectionError."""

    def __init__(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        self.seen = seen
        self._writer = writer
        self.closed = False

    async def raw(self, data: bytes) -> None:
        """Bytes as they are, headers or not."""
        if self.seen.gone.is_set():
            raise ConnectionResetError("the client has gone")
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, status: int = 200, headers: Headers = (), reason: str = "Whatever") -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        await self.raw(f"HTTP/1.1 {status} {reason}\r\n{lines}\r\n".encode("latin-1"))

    async def reply(
        self, body: bytes, status: int = 200, content_type: str = "application/json", headers: Headers = ()
    ) -> None:
        """A whole reply with content-length."""
        named = [("Content-Type", content_type)] if content_type else []
        await self.head(status, [*named, ("Content-Length", str(len(body))), *headers])
        await self.raw(body)

    async def start_stream(self, content_type: str = "text/event-stream", headers: Headers = ()) -> None:
        await self.head(200, [("Content-Type", content_type), ("Transfer-Encoding", "chunked"), *headers])

    async def chunk(self, data: bytes) -> None:
        """One chunk of a chunked body; b"" ends it."""
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    async def until_gone(self) -> None:
        """Wait for the client to go. A test that forgets to make it go is ended by its server's shutdown."""
        await self.seen.gone._inner.wait()

    def close(self) -> None:
        """Close properly (FIN), after what was written."""
        self.closed = True
        self._writer.close()

    def reset(self) -> None:
        """Close with RST."""
        self.closed = True
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


class FakeUpstream:
    """The server. `requests` holds everything seen, `connections` counts accepted ones."""

    def __init__(self, default: Step | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.default: Step = default or well_formed
        self.requests: list[Seen] = []
        self.connections = 0
        self.failures: list[BaseException] = []  # of steps: a bug in a test, raised at the end
        self._steps: deque[Step] = deque()
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiters: list[tuple[int, Flag]] = []
        self.port = 0

    def script(self, *steps: Step) -> None:
        """Append steps, one for each coming request."""
        self._steps.extend(steps)

    @property
    def base_url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1"

    async def seen(self, count: int = 1) -> Seen:
        """Wait until that many requests have come; the last of them."""
        if len(self.requests) < count:
            flag = Flag()
            self._waiters.append((count, flag))
            await flag.wait()
        return self.requests[count - 1]

    async def __aenter__(self) -> FakeUpstream:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls, limit=2**20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exception: object) -> None:
        assert self._server is not None
        self._server.close()
        self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # one turn of the loop, in which the sockets are closed
        if self.failures and exception[0] is None:
            raise self.failures[0]

    @classmethod
    @contextlib.contextmanager
    def in_thread(cls, default: Step | None = None) -> Iterator[FakeUpstream]:
        """The same server with a loop and a thread of its own, for tests whose client is synchronous."""
        upstream, loop, ready = cls(default), asyncio.new_event_loop(), threading.Event()

        async def live() -> None:
            async with upstream:
                upstream_stop.append(stop := asyncio.Event())
                ready.set()
                await stop.wait()

        upstream_stop: list[asyncio.Event] = []
        thread = threading.Thread(target=lambda: loop.run_until_complete(live()), name="fake-upstream", daemon=True)
        thread.start()
        try:
            if not ready.wait(10):
                raise TimeoutError("the fake upstream did not start")
            yield upstream
        finally:
            if upstream_stop:
                loop.call_soon_threadsafe(upstream_stop[0].set)
            thread.join(10)
            loop.close()

    # ------------------------------------------------------------------------------------------ serving

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        number, self.connections = self.connections, self.connections + 1
        try:
            await self._converse(reader, writer, number)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            pass  # the client went, or the server is shutting down: both are how these tests end
        finally:
            self._tasks.discard(task)
            writer.close()
            if self._server is None:
                writer.transport.abort()  # shutting down: nobody is left to read what a step still had to say

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        early = b""
        while True:
            seen = await _read_request(reader, early, number)
            if seen is None:
                return
            exchange = Exchange(seen, writer)
            watch = asyncio.create_task(_watch(reader, seen))
            self.requests.append(seen)
            for count, flag in self._waiters:
                if len(self.requests) >= count:
                    flag.set()
            try:
                await self._play(exchange)
            finally:
                seen.gone_early = seen.gone.is_set()
                if exchange.closed:
                    watch.cancel()
            if exchange.closed:
                return
            early = await watch
            if not early:
                return

    async def _play(self, exchange: Exchange) -> None:
        step = self._steps.popleft() if self._steps else self.default
        playing = asyncio.ensure_future(step(exchange))
        try:
            await playing
        except ConnectionError:
            if not exchange.closed:
                await exchange.until_gone()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.failures.append(error)
            exchange.close()


async def _watch(reader: asyncio.StreamReader, seen: Seen) -> bytes:
    """The beginning of the next request, or b"" with `gone` set when the client has ended its side."""
    try:
        early = await reader.read(65_536)
    except ConnectionError:
        early = b""
    if not early:
        seen.gone.set()
    return early


async def _read_request(reader: asyncio.StreamReader, early: bytes, number: int) -> Seen | None:
    raw = early
    while b"\r\n\r\n" not in raw:
        more = await reader.read(65_536)
        if not more:
            return None
        raw += more
    raw_head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = raw_head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    seen = Seen(method, path, headers, raw_head, number)
    missing = int(headers.get("content-length", "0")) - len(body)
    seen.body = body + (await reader.readexactly(missing) if missing > 0 else b"")
    return seen
