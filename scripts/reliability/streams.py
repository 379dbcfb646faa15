"""Runs in which somebody leaves: clients at any byte, and the gateway itself under SIGTERM."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import tempfile
import time
from pathlib import Path

from scripts.reliability.bars import Check, Found, Run, Scale, count
from scripts.reliability.gateway import HEADERS, KEYED, levels
from scripts.reliability.served import Left, gateway, session, waves
from tests.support.callers import OPENAI
from tests.support.gateway import world
from tests.support.ledgers import NEW_YEAR, a_hold, path_of
from tests.support.replies import openai_events
from tests.support.upstream import Exchange, FakeUpstream
from tierwise.core.budget import Charge
from tierwise.stores.memory import MemoryLedger

LONG = {"idle_ms": 600_000, "total_ms": 600_000, "first_token_ms": 600_000}
NAME = re.compile(rb"number (\d+)\.")


class Leavers:
    """An upstream that writes a little, slowly, and never ends; and clients that leave it at any byte."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.asked: dict[int, asyncio.Event] = {}
        self.left_s: dict[int, float] = {}
        self.gone_s: dict[int, float] = {}

    async def step(self, x: Exchange) -> None:
        found = NAME.search(x.seen.body)
        number = int(found[1]) if found else -1
        self.asked.setdefault(number, asyncio.Event()).set()
        if x.seen.stream:
            await x.start_stream()
            for event in openai_events("cheap", "so it goes " * 20, pieces=30, done=False)[:-3]:
                await x.chunk(event)
        try:
            await x.until_gone()
        finally:
            self.gone_s[number] = time.monotonic()

    async def leave(self, url: str, number: int) -> None:
        """Stages: as soon as the request is out, when the provider has it, and within the reply."""
        stage, stream = self.rng.choice(("sent", "asked", "reading", "reading")), self.rng.random() < 0.7
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps(
            OPENAI.body(
                stream=stream or None,
                max_tokens=500,
                messages=[{"role": "user", "content": f"Count, number {number}."}],
            )
        ).encode()
        named = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
        head = f"POST {OPENAI.path} HTTP/1.1\r\nhost: {host}\r\n{named}content-length: {len(body)}\r\n"
        asked = self.asked.setdefault(number, asyncio.Event())
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        await writer.drain()
        if stage != "sent":
            await asyncio.wait_for(asked.wait(), 60)
        if stage == "reading" and stream:
            await reader.readexactly(self.rng.randint(1, 2_500))
        self.left_s[number] = time.monotonic()
        if self.rng.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()


def disconnects(scale: Scale) -> Found:
    times, width = scale.of(1_000, 20), scale.of(50, 20)
    leavers, calls, left = asyncio.run(_left(times, width, scale.seed))
    waits = sorted(leavers.gone_s[n] - leavers.left_s[n] for n in leavers.gone_s if n in leavers.left_s)
    p99 = waits[min(len(waits) - 1, int(len(waits) * 0.99))] if waits else 0.0
    settled, released = left.states.get("settled", 0), left.states.get("released", 0)
    lost = asyncio.run(_in_a_finally(200))
    return Found(
        n=f"{count(times)} clients that left, {count(calls)} after the call had gone out",
        figure=f"{count(settled)} settled, {count(released)} released, {left.open} open, {left.unpaid} charged "
        f"nothing; upstream closed p99 {p99 * 1e3:,.0f} ms, {calls - len(waits)} never; {len(left.faults)} audit "
        "faults",
        checks=(
            Check("settled", settled, "=", calls),
            Check("never closed upstream", calls - len(waits), "=", 0),
            Check("open", left.open, "=", 0),
            Check("charged nothing", left.unpaid, "=", 0),
            Check("seconds until upstream is closed, p99", p99, "≤", 1),
            Check("audit faults", len(left.faults), "=", 0),
        ),
        mutant=f"settled in a `finally` that waits: {lost} of 200 holds stay open",
        caught=lost > 0,
    )


async def _left(times: int, width: int, seed: int) -> tuple[Leavers, int, Left]:
    leavers = Leavers(seed)
    with tempfile.TemporaryDirectory(prefix="tierwise-bar6-") as name:
        async with FakeUpstream(leavers.step) as one:
            config = {**world(one, hurry=LONG), "keys": KEYED, "budgets": levels(10**13)}
            async with gateway(Path(name), config) as child:
                await waves(times, width, lambda number: leavers.leave(child.url, number))
                async with asyncio.timeout(30):  # a request that was only just sent may still be on its way
                    quiet = -1
                    while quiet != len(one.requests) or len(leavers.gone_s) < len(one.requests):
                        quiet = len(one.requests)
                        await asyncio.sleep(0.3)
            return leavers, len(one.requests), Left(Path(name) / "state")


async def _in_a_finally(times: int) -> int:
    """The mutant: a handler whose `finally` awaits, in a server that cancels until the handler is gone."""
    ledger = MemoryLedger(path_of(10**9), lambda: float(NEW_YEAR))

    async def handler(id: str) -> None:
        await ledger.hold(a_hold(id, 100))
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # a store that has to be waited for
            ledger.settle(id, Charge(cost_nano=50))

    tasks = [asyncio.create_task(handler(f"h{number}")) for number in range(times)]
    await asyncio.sleep(0)
    while any(not task.done() for task in tasks):
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0)
    return ledger.open_holds()


# ------------------------------------------------------------------------------------------------ stopping


def stopped(scale: Scale) -> Found:
    streams, drain_s = scale.of(200, 8), scale.of(8, 1)
    ended, cut, code, took, left = asyncio.run(_stopped(streams, drain_s, signal.SIGTERM))
    _, _, _, _, killed = asyncio.run(_stopped(min(streams, 20), drain_s, signal.SIGKILL))
    hung = streams // 4
    return Found(
        n=f"{streams} streams under way, {hung} of them never end; a drain of {drain_s} s",
        figure=f"{ended} ended properly, {cut} cut with their reason, exit code {code} after {took:.1f} s, "
        f"{left.open} unsettled, {left.unpaid} charged nothing, {len(left.faults)} audit faults",
        checks=(
            Check("ended properly", ended, "=", streams - hung),
            Check("cut with their reason", cut, "=", hung),
            Check("exit code", code, "=", 0),
            Check("seconds", took, "≤", 30),
            Check("unsettled", left.open, "=", 0),
            Check("charged nothing", left.unpaid, "=", 0),
            Check("audit faults", len(left.faults), "=", 0),
        ),
        mutant=f"SIGKILL instead of a drain: {killed.open} unsettled",
        caught=killed.open > 0,
    )


async def _stopped(streams: int, drain_s: float, number: int) -> tuple[int, int, int, float, Left]:
    gate = asyncio.Event()
    events = openai_events("cheap")

    async def halfway(x: Exchange) -> None:
        await x.start_stream()
        for position, event in enumerate(events):
            if position == 3:
                if b"for ever" in x.seen.body:
                    await x.until_gone()
                await gate.wait()
            await x.chunk(event)
        await x.chunk(b"")

    with tempfile.TemporaryDirectory(prefix="tierwise-bar22-") as name:
        async with FakeUpstream(halfway) as one:
            server = {"drain_s": drain_s}
            config = {**world(one, hurry=LONG), "keys": KEYED, "budgets": levels(10**13), "server": server}
            async with gateway(Path(name), config) as child, session(streams + 10) as http:

                async def follow(position: int) -> bytes:
                    text = "Talk for ever." if position % 4 == 3 else "Talk."
                    body = OPENAI.body(stream=True, max_tokens=50, messages=[{"role": "user", "content": text}])
                    heard = b""
                    try:
                        async with http.post(child.url + OPENAI.path, json=body, headers=HEADERS) as reply:
                            async for chunk in reply.content.iter_any():
                                heard += chunk
                    except OSError:
                        heard += b"(reset)"
                    except Exception as error:  # of the client's library, whose own classes say no more
                        heard += f"({type(error).__name__})".encode()
                    return heard

                following = [asyncio.create_task(follow(position)) for position in range(streams)]
                await one.seen(streams)
                began = time.monotonic()
                child.process.send_signal(number)
                asyncio.get_running_loop().call_later(drain_s / 4, gate.set)
                code = await asyncio.wait_for(child.process.wait(), 60)
                took = time.monotonic() - began
                heard = await asyncio.gather(*following)
            ended = sum(b"[DONE]" in each for each in heard)
            cut = sum(b'"draining"' in each and b"[DONE]" not in each for each in heard)
            return ended, cut, code, took, Left(Path(name) / "state")


RUNS = (
    Run(
        "bar6",
        "6, S1, S2",
        "clients leave plain requests and streams at any byte",
        "all settled, p99 ≤ 1 s, none free",
        disconnects,
    ),
    Run("bar22", "22, C4", "SIGTERM with streams under way", "0 unsettled, ≤ 30 s, exit 0", stopped),
)
