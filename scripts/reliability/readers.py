"""Runs with clients that do not read what they asked for, beside others that do."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.reliability.bars import Check, Found, Run, Scale
from scripts.reliability.gateway import HEADERS, KEYED, levels
from scripts.reliability.served import Child, Left, gateway, session
from scripts.reliability.streams import LONG
from tests.support.callers import OPENAI
from tests.support.gateway import CHEAP, price, world
from tests.support.replies import openai_events
from tests.support.upstream import Exchange, FakeUpstream, openai_reply

VAST = {CHEAP: {"tier": "fast", "price": price(1, 4), "context_tokens": 10**8, "max_output_tokens": 10**8}}
# Much on the wire for a few words, as with log probabilities. The words themselves are kept until the end, for a count
# of our own: at most 2**20 of their characters a stream, whoever reads it, so they are another bound's matter.
LARGE = openai_events("cheap", "so it goes", pieces=1)[1].replace(
    b'"delta":',
    b'"logprobs":{"content":[' + b",".join([b'{"token":"so","logprob":-0.25,"bytes":null}'] * 700) + b']},"delta":',
)
assert len(LARGE) > 30_000, LARGE
KIB = 1_024
QUIET_S = 3.0  # without a byte: nothing moves any more
WARM = 20
FLOOD_BYTES = 80 << 20  # for each reader of the mutant, who would take all of an endless one


@dataclass
class Slowly:
    """KiB of memory that the gateway had before the readers and with them, the p99 of others, and what was left."""

    before: int
    after: int
    alone_s: float
    beside_s: float
    moved: int  # bytes that the provider could write, all readers together
    left: Left

    @property
    def grown_mib(self) -> float:
        return (self.after - self.before) / KIB


def slow(scale: Scale) -> Found:
    """S8. A reader takes the first bytes of an endless stream, and then no more."""
    readers, others = scale.of(500, 20), scale.of(500, 50)
    found = asyncio.run(_play(readers, others))
    careless = asyncio.run(_play(3, 1, "scripts.reliability.readers", "careless"))
    ratio = found.beside_s / found.alone_s
    return Found(
        n=f"{readers} readers that stop, {others} other requests before and {others} beside them",
        figure=f"{found.grown_mib:.0f} MiB more memory ({found.moved / readers / KIB:,.0f} KiB of each stream were "
        f"sent), p99 of the others {found.alone_s * 1e3:.0f} ms alone and {found.beside_s * 1e3:.0f} ms beside them "
        f"({ratio:.2f}×); {found.left.open} open afterwards, {found.left.unpaid} charged nothing, "
        f"{len(found.left.faults)} audit faults",
        checks=(
            Check("MiB more memory", found.grown_mib, "≤", 150),
            Check("times the p99 of others", ratio, "≤", 2),
            Check("open", found.left.open, "=", 0),
            Check("charged nothing", found.left.unpaid, "=", 0),
            Check("settled", found.left.states.get("settled", 0), "=", readers + 2 * (WARM + others)),
            Check("audit faults", len(found.left.faults), "=", 0),
        ),
        mutant=f"nobody waits for a reader: {careless.grown_mib:.0f} MiB more with 3 readers",
        caught=careless.grown_mib > 150,
    )


class Flood:
    """An upstream that writes as fast as it may; `most` bytes a stream."""

    def __init__(self, most: int) -> None:
        self.most, self.moved, self.last_s = most, 0, time.monotonic()

    async def step(self, x: Exchange) -> None:
        if not x.seen.stream:
            await openai_reply()(x)
            return
        await x.start_stream()
        for _ in range(self.most // len(LARGE)):
            await x.chunk(LARGE)
            self.moved, self.last_s = self.moved + len(LARGE), time.monotonic()
        await x.until_gone()

    async def quiet(self) -> None:
        while time.monotonic() - self.last_s < QUIET_S:  # noqa: ASYNC110  # there is no event for nothing
            await asyncio.sleep(0.1)


async def _play(readers: int, others: int, *careless: str) -> Slowly:
    flood = Flood(FLOOD_BYTES if careless else 1 << 40)
    with tempfile.TemporaryDirectory(prefix="tierwise-s8-") as name:
        async with FakeUpstream(flood.step) as one:
            config = {**world(one, models=VAST, hurry=LONG), "keys": KEYED, "budgets": levels(10**15)}
            async with gateway(Path(name), config, *careless) as child:
                alone_s = await _p99(child, others)
                before = child.resident_kib()
                waiting = await asyncio.gather(*(_stop_reading(child) for _ in range(readers)))
                await flood.quiet()
                after = child.resident_kib()
                beside_s = await _p99(child, others)
                after = max(after, child.resident_kib())
                for connection in waiting:
                    connection.close()
                await asyncio.gather(*(seen.gone.wait() for seen in one.requests if seen.stream))
        return Slowly(before, after, alone_s, beside_s, flood.moved, Left(Path(name) / "state"))


async def _stop_reading(child: Child) -> socket.socket:
    """With a small window, so that what is written waits where it is measured, and not in the kernel."""
    host, port = child.url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, (host, int(port)))
    body = json.dumps(OPENAI.body(stream=True, max_tokens=10_000_000)).encode()
    head = f"POST {OPENAI.path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    named = "".join(f"{key}: {value}\r\n" for key, value in HEADERS.items())
    await loop.sock_sendall(connection, f"{head}{named}content-length: {len(body)}\r\n\r\n".encode() + body)
    assert await loop.sock_recv(connection, 1_024)
    return connection


async def _p99(child: Child, requests: int) -> float:
    """Seconds, one request after the other; what only the first ones of a process take is not counted."""
    took = []
    async with session() as http:
        for _ in range(WARM + requests):
            began = time.monotonic()
            async with http.post(child.url + OPENAI.path, json=OPENAI.body(max_tokens=100), headers=HEADERS) as reply:
                await reply.read()
            assert reply.status == 200, reply.status
            took.append(time.monotonic() - began)
    return sorted(took[WARM:])[int(requests * 0.99)]


def careless() -> None:
    """The mutant, in the gateway: what a client does not take is kept for it."""
    from uvicorn.protocols.http.flow_control import FlowControl

    async def never(self: FlowControl) -> None:
        return

    FlowControl.drain = never  # type: ignore[method-assign]


RUNS = (Run("s8", "S8", "clients that stop reading an endless stream", "≤ 150 MiB more, p99 of others ≤ 2×", slow),)
