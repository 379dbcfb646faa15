"""Runs against providers that fail: amplification, fail-over before and after a first byte, replies without end."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.reliability.bars import Check, Found, Run, Scale, count
from scripts.reliability.report import ROOT
from scripts.reliability.served import waves
from tests.support import upstream as fake
from tests.support.callers import OPENAI, Heard
from tests.support.gateway import Gateway, world
from tests.support.replies import openai_events
from tests.support.upstream import FakeUpstream, error, sse
from tierwise.routing.health import Health

NAME = re.compile(rb"number (\d+)\.")


def asking(number: int, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"Question number {number}."}], "max_tokens": 50, **more}


class Generous(Health):
    """The mutant: as many retries as anybody asks for."""

    def take_retry(self, provider: str) -> bool:
        return True


class Awake(Health):
    """Models never rest, so that every request finds a provider that fails, and only the retry budget is left."""

    def resting(self) -> tuple[tuple[str, int], ...]:
        return ()


class AwakeAndGenerous(Generous, Awake):
    pass


def amplification(scale: Scale) -> Found:
    requests = scale.of(1_000, 300)
    calls, most = asyncio.run(_all_fail(requests, Awake()))
    resting, _ = asyncio.run(_all_fail(requests, Health()))
    caught, at_most = asyncio.run(_all_fail(min(requests, 300), AwakeAndGenerous()))
    return Found(
        n=f"{count(requests)} requests, every call fails with 500, three calls each allowed",
        figure=f"{calls / requests:.3f} calls a request and at most {most} of one, with models kept from resting; "
        f"{resting / requests:.3f} when they may rest",
        checks=(
            Check("calls a request", calls / requests, "≤", 1.2),
            Check("calls a request when they may rest", resting / requests, "≤", 1.2),
            Check("calls of one request", most, "≤", 3),
            Check("calls, some of which were retries", calls, ">", requests),
        ),
        mutant=f"no retry budget: {caught / min(requests, 300):.2f} calls a request, at most {at_most}",
        caught=caught > 1.2 * min(requests, 300),
    )


async def _all_fail(requests: int, health: Health) -> tuple[int, int]:
    with tempfile.TemporaryDirectory(prefix="tierwise-bar16-") as name:
        async with FakeUpstream(error(500)) as one:
            config = world(one, policy={"attempts": 3})
            async with Gateway(Path(name), config) as gateway:
                gateway.router.books.health = health

                async def ask(number: int) -> Heard:
                    return await gateway.ask(OPENAI, **asking(number))

                await waves(requests, 50, ask)
            calls = Counter(NAME.search(seen.body)[1] for seen in one.requests)  # type: ignore[index]  # we asked it
            return len(one.requests), max(calls.values(), default=0)


def failover(scale: Scale) -> Found:
    requests = scale.of(1_000, 60)
    answered, tried = asyncio.run(_one_down(requests, fallback=True))
    alone, _ = asyncio.run(_one_down(min(requests, 60), fallback=False))
    after, told = asyncio.run(_cut_after_the_first_byte(scale.of(300, 10)))
    cuts = scale.of(300, 10)
    return Found(
        n=f"{count(requests)} requests with one of two providers down, {cuts} streams cut after their first byte",
        figure=f"{answered / requests:.2%} answered ({tried} calls to the one that is down); after the first byte "
        f"{after} fail-overs, {told} of {cuts} told why",
        checks=(
            Check("answered, of one", answered / requests, "≥", 0.999),
            Check("fail-overs after the first byte", after, "=", 0),
            Check("told why", told, "=", cuts),
        ),
        mutant=f"no fallback: {alone / min(requests, 60):.0%} answered",
        caught=alone < 0.999 * min(requests, 60),
    )


async def _one_down(requests: int, *, fallback: bool) -> tuple[int, int]:
    with tempfile.TemporaryDirectory(prefix="tierwise-bar17-") as name:
        async with FakeUpstream(error(503)) as one, FakeUpstream() as two:
            plans = None if fallback else {"start": {"use": ["fast"]}}
            async with Gateway(Path(name), world(one, two, plans=plans)) as gateway:

                async def ask(number: int) -> bool:
                    heard = await gateway.ask(OPENAI, **asking(number, stream=number % 2 == 0 or None))
                    gateway.heard.clear()
                    return heard.status == 200 and fake.TEXT in heard.text

                answers = await waves(requests, 40, ask)
            return sum(answers), len(one.requests)


async def _cut_after_the_first_byte(times: int) -> tuple[int, int]:
    events = openai_events("cheap", done=False)[:3]

    async def cut(x: fake.Exchange) -> None:
        x.reset()

    with tempfile.TemporaryDirectory(prefix="tierwise-bar17-") as name:
        async with FakeUpstream(sse(events, then=cut)) as one, FakeUpstream() as two:
            async with Gateway(Path(name), world(one, two)) as gateway:
                told = 0
                for number in range(times):
                    gateway.rested()
                    heard = await gateway.ask(OPENAI, **asking(number, stream=True))
                    told += heard.stream_error["code"] == "upstream_cut"
            return len(two.requests), told


# ------------------------------------------------------------------------------------------------ bombs

Step = Callable[[], Any]


def bombs(scale: Scale) -> Found:
    """Bar 18, U7, U8, S10. A process for each, so that one does not hide in the memory of another."""
    megabytes, line = scale.of(200, 50), scale.of(2**30, 2**26)
    cases: tuple[tuple[str, Step, str, bool], ...] = (
        (f"gzip bomb of {megabytes} MB", lambda: fake.gzip_bomb(megabytes), "too_large", False),
        (
            "the same in a stream",
            lambda: fake.gzip_bomb(megabytes, content_type="text/event-stream"),
            "too_large",
            True,
        ),
        ("an endless body", fake.endless_body, "too_large", False),
        (f"a header of {line >> 20} MiB", lambda: fake.huge_header(line), "too_large", False),
        ("a million headers", fake.many_headers, "too_large", False),
        (f"a line of {line >> 20} MiB in a stream", lambda: fake.huge_line(line), "line", True),
    )
    cases = cases if scale.full else (cases[2], cases[-1])
    grown = {name: _hungry(step, kind, stream) for name, step, kind, stream in cases}
    mutant = _hungry(lambda: fake.openai_reply("a" * (30 << 20)), "", False)
    worst = max(grown, key=lambda name: grown[name])
    return Found(
        n=f"{len(grown)} replies that never end, a process each",
        figure=f"at most {grown[worst] / 1024:.1f} MiB more memory ({worst})",
        checks=(Check("MiB more memory", grown[worst] / 1024, "≤", 16),),
        mutant=f"a reply of 30 MiB that is read whole: {mutant / 1024:.0f} MiB more",
        caught=mutant > 16 * 1024,
    )


EATER = """
import asyncio, re, sys
from tests.support.calls import call, failure, hurry, secret, whole
from tests.support.streams import begin
from tierwise.providers.http import HttpUpstream
from tierwise.wire.contract import Garbled
stream, kind, base_url = sys.argv[1] == "stream", sys.argv[2], sys.argv[3]

def peak():  # KiB; ru_maxrss would begin with the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

async def main():
    client = HttpUpstream(secret)
    await whole(client, call(base_url))
    before = peak()
    asked = call(base_url, stream=stream, deadlines=hurry(total_ms=60_000, idle_ms=60_000))
    if kind == "line":
        incoming, relay = await client.send(asked), begin("openai_chat", "openai")
        try:
            async for chunk in incoming.chunks():
                relay.feed(chunk)
            raise AssertionError("taken for an event")
        except Garbled:
            incoming.close()
    elif kind:
        error = await failure(client, asked)
        assert error.kind == kind, (error.kind, error.message)
    else:
        incoming = await client.send(asked)
        eaten = [chunk async for chunk in incoming.chunks()]
        b"".join(eaten)
        incoming.close()
    print(peak() - before)
    await client.close()

asyncio.run(main())
"""


def _hungry(step: Step, kind: str, stream: bool) -> int:
    """KiB that a client of this upstream grew by."""
    with FakeUpstream.in_thread() as upstream:
        upstream.script(fake.openai_reply(), step())
        environ = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
        command = [sys.executable, "-c", EATER, "stream" if stream else "whole", kind, upstream.base_url]
        run = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr[-1_000:])
    return int(run.stdout)


RUNS = (
    Run(
        "bar16",
        "16, U2",
        "every provider fails; retries have a budget",
        "≤ 1.2 calls a request, ≤ 3 each",
        amplification,
    ),
    Run(
        "bar17",
        "17, S7",
        "one of two providers is down, and streams that are cut",
        "≥ 99.9 %, 0 after the first byte",
        failover,
    ),
    Run("bar18", "18, U7, U8", "replies that are larger than memory", "≤ 16 MiB more", bombs),
)
