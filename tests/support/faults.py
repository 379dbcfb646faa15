"""Faults of the fake upstream: silence, nonsense, too much, and too little of a reply.

Imported through `tests.support.upstream`, which explains. Codes are those of the failure catalogue.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tests.support import replies
from tests.support.replies import dump
from tests.support.steps import (
    Headers,
    Step,
    anthropic_reply,
    anthropic_stream,
    json_reply,
    openai_reply,
    openai_stream,
    sse,
)

if TYPE_CHECKING:
    from tests.support.upstream import Exchange

# ------------------------------------------------------------------------------------------------ silence (U5, S13)


async def hang_before_headers(x: Exchange) -> None:
    """Takes the request and says nothing. A black hole, as far as HTTP is concerned."""
    await x.until_gone()


def hang_after_headers(content_type: str = "text/event-stream") -> Step:
    async def step(x: Exchange) -> None:
        await x.start_stream(content_type)
        await x.until_gone()

    return step


def hang_mid_stream(events: Sequence[bytes] = (b"data: {}\n\n",)) -> Step:
    async def then(x: Exchange) -> None:
        await x.until_gone()

    return sse(events, then=then)


def drip(byte: bytes = b" ", every_s: float = 0.02, content_type: str = "text/event-stream") -> Step:
    """S13: one byte at a time, for ever; no idle deadline above `every_s` ends it."""

    async def step(x: Exchange) -> None:
        await x.start_stream(content_type)
        while True:
            await x.chunk(byte)
            await asyncio.sleep(every_s)

    return step


def drip_headers(every_s: float = 0.02) -> Step:
    """A head that never ends, one byte at a time."""

    async def step(x: Exchange) -> None:
        await x.raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Slow: ")
        while True:
            await x.raw(b"a")
            await asyncio.sleep(every_s)

    return step


# ------------------------------------------------------------------------------------------------ nonsense (U6)

malformed_json = json_reply(b'{"id":"chatcmpl-1","choices":[{"message":')
HTML = (
    b"<!doctype html><html><head><title>Sign in &amp; accept</title></head><body><h1>Captive portal</h1></body></html>"
)


def html_page(status: int = 200) -> Step:
    return plain(HTML, "text/html; charset=utf-8", status)


def plain(body: bytes, content_type: str, status: int = 200, headers: Headers = ()) -> Step:
    """Any body under any content type; "" sends none."""

    async def step(x: Exchange) -> None:
        await x.reply(body, status, content_type, headers)

    return step


def empty_200(content_type: str = "application/json") -> Step:
    return plain(b"", content_type)


def wrong_model(served: str = "other-model-9") -> Step:
    """U12: says that it ran another model than was asked for."""

    async def step(x: Exchange) -> None:
        await (openai_stream if x.seen.stream else openai_reply)(model=served)(x)

    return step


def insane_usage(usage: dict[str, Any] | None = None) -> Step:
    """Usage of negative, astronomic and textual token counts (or the dict given, verbatim)."""
    spoilt = usage or {"prompt_tokens": -5, "completion_tokens": 10**30, "total_tokens": "many"}

    async def step(x: Exchange) -> None:
        await (openai_stream(usage=spoilt, always_usage=True) if x.seen.stream else openai_reply(usage=spoilt))(x)

    return step


async def no_usage(x: Exchange) -> None:
    """S3."""
    path, stream = x.seen.path, x.seen.stream
    if path.endswith("/messages"):
        await (anthropic_stream(usage=None) if stream else anthropic_reply(usage=None))(x)
    else:
        await (openai_stream(usage=None) if stream else openai_reply(usage=None))(x)


def error_inside_stream(events: Sequence[bytes] = (), message: str = "The server is overloaded") -> Step:
    """S7: a 200, some events, then an error event and a proper end."""

    async def step(x: Exchange) -> None:
        body = {"error": {"message": message, "type": "server_error", "code": 503}}
        started = list(events) or replies.openai_events(x.seen.model, done=False)[:2]
        await sse([*started, b"data: " + dump(body) + b"\n\n"])(x)

    return step


# ------------------------------------------------------------------------------------------------ too much (U7, U8, S9)


def gzip_bomb(megabytes: int = 200, encoding: str = "gzip", content_type: str = "application/json") -> Step:
    """U7: about 1 kB of compressed bytes a megabyte, spaces inside a JSON string."""

    async def step(x: Exchange) -> None:
        await x.start_stream(content_type, [("Content-Encoding", encoding)])
        pack = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
        block = b" " * 2**20
        await x.chunk(pack.compress(b'{"text":"') + pack.flush(zlib.Z_SYNC_FLUSH))
        for _ in range(megabytes):
            await x.chunk(pack.compress(block) + pack.flush(zlib.Z_SYNC_FLUSH))
        await x.chunk(pack.compress(b'"}') + pack.flush())
        await x.chunk(b"")

    return step


def gzipped(body: bytes, encoding: str = "gzip", content_type: str = "application/json", raw: bool = False) -> Step:
    """An honest compressed reply, although nobody asked for it. `raw`: deflate without zlib's header."""
    pack = zlib.compressobj(9, wbits=31 if encoding == "gzip" else (-15 if raw else 15))
    return plain(pack.compress(body) + pack.flush(), content_type, headers=[("Content-Encoding", encoding)])


def endless_body(content_type: str = "application/json", block: bytes = b" " * 65_536) -> Step:
    """U8, and S10 with an event-stream content type: never a newline, never an end."""

    async def step(x: Exchange) -> None:
        await x.start_stream(content_type)
        while True:
            await x.chunk(block)

    return step


def endless_stream(word: str = "more ") -> Step:
    """S9: ignores max_tokens and talks for ever, as fast as it is read."""

    async def step(x: Exchange) -> None:
        if x.seen.path.endswith("/messages"):
            events = replies.anthropic_events(x.seen.model, word, pieces=1)
            again = events[2]
        else:
            events = replies.openai_events(x.seen.model, word, pieces=1)
            again = events[1]
        await x.start_stream()
        for event in events[: events.index(again)]:
            await x.chunk(event)
        while True:
            await x.chunk(again)

    return step


def announced(length: int) -> Step:
    """A content-length of that many bytes, and a body that does not stop."""

    async def step(x: Exchange) -> None:
        await x.head(200, [("Content-Type", "application/json"), ("Content-Length", str(length))])
        while True:
            await x.raw(b" " * 65_536)

    return step


def many_headers(count: int = 1_000_000) -> Step:
    """U8."""

    async def step(x: Exchange) -> None:
        await x.raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
        for start in range(0, count, 1_000):
            await x.raw(b"".join(b"X-%d: 1\r\n" % number for number in range(start, start + 1_000)))
        await x.raw(b"Content-Length: 2\r\n\r\n{}")

    return step


def huge_header(size: int = 2**20) -> Step:
    """U8."""

    async def step(x: Exchange) -> None:
        await x.raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nX-Huge: ")
        for _ in range(0, size, 65_536):
            await x.raw(b"a" * min(size, 65_536))
        await x.raw(b"\r\n\r\n{}")

    return step


def huge_line(size: int = 2 * 2**20) -> Step:
    """S10: one SSE line of that many bytes, then a proper end."""

    async def step(x: Exchange) -> None:
        line = itertools.chain([b'data: {"text":"'], itertools.repeat(b"a" * 65_536, size // 65_536), [b'"}\n\n'])
        await sse(line)(x)  # a new one for each request

    return step


def slow_interim(count: int = 1_000) -> Step:
    """1xx replies and no real one."""

    async def step(x: Exchange) -> None:
        for _ in range(count):
            await x.raw(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await x.until_gone()

    return step


# ------------------------------------------------------------------------------------------------ cut off (S6)


def truncated_length(body: bytes = b'{"id":"chatcmpl-1"', missing: int = 100) -> Step:
    """Announces `missing` bytes more than it sends, then closes."""

    async def step(x: Exchange) -> None:
        await x.head(200, [("Content-Type", "application/json"), ("Content-Length", str(len(body) + missing))])
        await x.raw(body)
        x.close()

    return step


def truncated_chunked(events: Sequence[bytes] = (b"data: {}\n\n",), reset: bool = False) -> Step:
    """Whole chunks and then no terminating one: closed (FIN), or reset."""

    async def then(x: Exchange) -> None:
        if reset:
            x.reset()
        else:
            x.close()

    return sse(events, then=then)


def cut_in_utf8() -> Step:
    """A stream that ends inside a two-byte character, and inside an event."""
    event = b"data: " + json.dumps({"choices": [{"delta": {"content": "café"}}]}, ensure_ascii=False).encode()
    return truncated_chunked([event[: event.index("é".encode()) + 1]])


def until_close(body: bytes, content_type: str = "application/json", reset: bool = False) -> Step:
    """A body whose end is the end of the connection, as HTTP/1.0 servers do it."""

    async def step(x: Exchange) -> None:
        await x.head(200, [("Content-Type", content_type), ("Connection", "close")])
        await x.raw(body)
        if reset:
            x.reset()
        else:
            x.close()

    return step


def broken_chunks(when: asyncio.Event | None = None, content_type: str = "text/event-stream") -> Step:
    """A chunk whose size is no number, after a good one; at once, or when told."""

    async def step(x: Exchange) -> None:
        await x.start_stream(content_type)
        await x.chunk(b"data: {}\n\n")
        if when:
            await when.wait()
        await x.raw(b"zzz\r\nnot a chunk\r\n")
        await x.until_gone()

    return step


async def reset(x: Exchange) -> None:
    """RST after the request, before any reply."""
    x.reset()


async def hang_up(x: Exchange) -> None:
    """FIN after the request, before any reply."""
    x.close()


def not_http(data: bytes = b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n") -> Step:
    async def step(x: Exchange) -> None:
        await x.raw(data)
        x.close()

    return step


# ------------------------------------------------------------------------------------------------ below HTTP (U4)


def closed_port() -> str:
    """A base URL where nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}/v1"


@contextlib.contextmanager
def unreachable() -> Iterator[str]:
    """A base URL that drops connection attempts: a listener whose queue is full and never emptied (Linux)."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
