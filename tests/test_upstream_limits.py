"""The upstream client's deadlines, connections and bounds (U4, U5, U7, U8, S1, S8, S13), over real sockets.

Deadlines are small where one is meant to end the call and long elsewhere; what is asserted is which deadline ended it
and that the provider saw us leave, never how long it took.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import upstream as fake
from tests.support.calls import call, failure, hurry
from tests.support.upstream import FakeUpstream
from tierwise.core.catalogue import Deadlines
from tierwise.core.ports import UpstreamError
from tierwise.providers import http
from tierwise.providers.http import HttpUpstream

ROOT = Path(__file__).resolve().parent.parent
SOURCE = Path(http.__file__).parents[2]  # of the code under test


# ------------------------------------------------------------------------------------------------ deadlines


LATE: list[tuple[str, Any, bool, Deadlines, str]] = [
    ("no head", fake.hang_before_headers, False, hurry(first_token_ms=500), "first_token"),
    ("no head for a stream", fake.hang_before_headers, True, hurry(first_token_ms=500), "first_token"),
    ("no head, total shorter", fake.hang_before_headers, False, hurry(total_ms=500), "total"),
    ("endless head", fake.drip_headers(), False, hurry(first_token_ms=500), "first_token"),
    ("no first byte", fake.hang_after_headers(), True, hurry(first_token_ms=500), "first_token"),
    ("no first byte, whole", fake.hang_after_headers("application/json"), False, hurry(first_token_ms=500), "first"),
    ("silence mid-stream", fake.hang_mid_stream(), True, hurry(idle_ms=150), "idle"),
    ("S13", fake.drip(), True, hurry(total_ms=300), "total"),
    ("S13, whole", fake.drip(content_type="application/json"), False, hurry(total_ms=300), "total"),
    ("S13 with the shortest idle", fake.drip(every_s=0.02), True, hurry(total_ms=400, idle_ms=300), "total"),
    ("no end of it", fake.endless_body("text/event-stream"), True, hurry(total_ms=300), "total"),
]


@pytest.mark.parametrize(
    ("step", "stream", "deadlines", "which"), [row[1:] for row in LATE], ids=[row[0] for row in LATE]
)
async def test_every_deadline_ends_the_call_and_the_provider_sees_us_leave(
    client: HttpUpstream, upstream: FakeUpstream, step: Any, stream: bool, deadlines: Deadlines, which: str
) -> None:
    upstream.script(step)
    error = await failure(client, call(upstream.base_url, stream=stream, deadlines=deadlines))
    assert (error.kind, error.dispatched) == ("timeout", True)
    assert which in error.message
    await upstream.requests[0].gone.wait()


async def test_the_total_deadline_closes_a_stream_that_nobody_reads(
    client: HttpUpstream, upstream: FakeUpstream
) -> None:
    upstream.script(fake.hang_mid_stream())
    incoming = await client.send(call(upstream.base_url, stream=True, deadlines=hurry(total_ms=200, idle_ms=50)))
    await upstream.requests[0].gone.wait()
    with pytest.raises(UpstreamError, match="total"):
        await anext(incoming.chunks())


async def test_a_wait_that_begins_late_still_ends_at_the_first_byte_deadline(
    client: HttpUpstream, upstream: FakeUpstream
) -> None:
    """The timer may stand at a later tick when the wait begins; it has to be moved."""
    upstream.script(fake.hang_after_headers())
    deadlines = hurry(first_token_ms=300, idle_ms=60_000, total_ms=60_000)
    incoming = await client.send(call(upstream.base_url, stream=True, deadlines=deadlines))
    incoming._tick()  # type: ignore[attr-defined]  # as if it had fired while nobody waited
    with pytest.raises(UpstreamError, match="first_token"):
        await anext(incoming.chunks())


async def test_idle_time_counts_only_while_somebody_waits(client: HttpUpstream, upstream: FakeUpstream) -> None:
    """A slow reader is our side's affair: the provider is not blamed for it."""
    second, third = asyncio.Event(), asyncio.Event()

    async def step(x: fake.Exchange) -> None:
        await x.start_stream()
        await x.chunk(b"data: 1\n\n")
        await second.wait()
        await x.chunk(b"data: 2\n\n")
        await third.wait()
        await x.chunk(b"data: 3\n\n")
        await x.chunk(b"")

    upstream.script(step)
    incoming = await client.send(call(upstream.base_url, stream=True, deadlines=hurry(idle_ms=200)))
    chunks = incoming.chunks()
    await anext(chunks)
    asyncio.get_running_loop().call_later(0.02, second.set)
    assert await anext(chunks) == b"data: 2\n\n"  # waited for, so the idle deadline was running
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(0.7, done.set)  # now the reader is busy, for several idle deadlines
    await done.wait()
    third.set()
    assert await anext(chunks) == b"data: 3\n\n"
    incoming.close()


async def test_a_hung_error_body_does_not_hide_its_status(
    client: HttpUpstream, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tierwise.providers import call as module

    monkeypatch.setattr(module, "_ERROR_BODY_S", 0.1)

    async def step(x: fake.Exchange) -> None:
        await x.head(503, [("Content-Length", "1000"), ("Retry-After", "3")])
        await x.raw(b"come back la")
        await x.until_gone()

    upstream.script(step)
    error = await failure(client, call(upstream.base_url))
    assert (error.kind, error.status, error.retry_after_ms) == ("overloaded", 503, 3_000)
    await upstream.requests[0].gone.wait()


# ------------------------------------------------------------------------------------------------ bounds


async def test_what_is_not_read_stays_with_the_provider(client: HttpUpstream, upstream: FakeUpstream) -> None:
    """S8: a slow reader holds at most a bounded buffer here; the rest waits in the provider's own."""
    block, sent = b" " * 65_536, 0

    async def step(x: fake.Exchange) -> None:
        nonlocal sent
        await x.start_stream()
        while True:
            await x.chunk(block)
            sent += len(block)

    upstream.script(step)
    incoming = await client.send(call(upstream.base_url, stream=True))
    received = len(await anext(incoming.chunks()))
    settled = -1
    while settled != sent:  # until the provider is stuck
        settled = sent
        for _ in range(300):
            await asyncio.sleep(0)
    payload = incoming._payload  # type: ignore[attr-defined]
    assert payload._size <= 64 * 1024 + 256 * 1024
    assert received <= 64 * 1024 + 256 * 1024
    incoming.close()


HUNGRY = """
import asyncio, re, sys
from tests.support import upstream as fake
from tests.support.calls import call, failure, hurry, secret, whole
from tierwise.providers.http import HttpUpstream
step, stream, kind, base_url = sys.argv[1], sys.argv[2] == "stream", sys.argv[3], sys.argv[4]

def peak():  # KiB; ru_maxrss would begin with what the parent had at its most, and hide everything below it
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

async def main():
    client = HttpUpstream(secret)
    await whole(client, call(base_url))
    before = peak()
    error = await failure(client, call(base_url, stream=stream, deadlines=hurry(total_ms=60_000, idle_ms=60_000)))
    grown = peak() - before
    assert error.kind == kind, (error.kind, error.message)
    await client.close()
    print(grown)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "step", "kind", "stream"),
    [
        ("bomb", lambda: fake.gzip_bomb(200), "too_large", False),
        ("bomb in a stream", lambda: fake.gzip_bomb(200, content_type="text/event-stream"), "too_large", True),
        ("deflate bomb", lambda: fake.gzip_bomb(200, "deflate"), "too_large", False),
        ("endless body", fake.endless_body, "too_large", False),
        ("endless error", lambda: _endless_error, "overloaded", False),
        ("million headers", fake.many_headers, "too_large", False),
        ("64 MiB header", lambda: fake.huge_header(64 * 2**20), "too_large", False),
    ],
)
def test_no_reply_grows_the_process_by_more_than_16_mib(
    name: str, step: Callable[[], Any], kind: str, stream: bool
) -> None:
    with FakeUpstream.in_thread() as upstream:
        upstream.script(fake.openai_reply(), step())
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(SOURCE), str(ROOT)]))
        arguments = [sys.executable, "-c", HUNGRY, name, "stream" if stream else "whole", kind, upstream.base_url]
        run = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) <= 16 * 1024


async def _endless_error(x: fake.Exchange) -> None:
    await x.head(500, [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")])
    while True:
        await x.chunk(b'{"error":{"message":"' + b"a" * 65_536)
