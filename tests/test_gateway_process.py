"""The process: `serve` as a person or a supervisor runs it, with real signals. It loses no request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.support.callers import DIALECTS, OPENAI, events_of
from tests.support.gateway import CANARY, CHEAP, DEAR, ENVIRON, world
from tests.support.replies import openai_events
from tests.support.upstream import TEXT, Exchange, FakeUpstream, sse
from tierwise.config import load, open_app, open_journal
from tierwise.core.ports import Record
from tierwise.server.serve import serve

ROOT = Path(__file__).parents[1]
PATIENCE_S = 30.0


class Process:
    """`serve` on a free port of loopback, with everything that it says."""

    def __init__(self, folder: Path, process: asyncio.subprocess.Process) -> None:
        self.folder, self._process = folder, process
        self.said = ""
        self._heard = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())
        self.facts: dict[str, Any] = {}

    async def _read(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            async with self._heard:
                self.said += line.decode()
                self._heard.notify_all()

    async def started(self) -> None:
        assert self._process.stdout is not None
        said = ""
        while not self.facts:
            line = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE_S)
            assert line, await self.ended()
            said += line.decode()
            with contextlib.suppress(ValueError):
                self.facts = json.loads(said)

    async def says(self, pattern: str) -> None:
        """Wait until something like this stands in the log."""
        async with self._heard, asyncio.timeout(PATIENCE_S):
            await self._heard.wait_for(lambda: re.search(pattern, self.said))

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def ended(self) -> tuple[int, str]:
        """(exit code, everything that it logged)"""
        code = await asyncio.wait_for(self._process.wait(), PATIENCE_S)
        await self._reading
        return code, self.said

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await self._reading

    async def records(self) -> list[Record]:
        """The journal that it left behind."""
        journal = open_journal(self.folder / ".tierwise")
        assert journal is not None
        try:
            return await journal.recent(100)
        finally:
            await journal.close()


async def spawn(folder: Path, *arguments: str) -> Process:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIERWISE_")}
    environ = kept | ENVIRON | {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tierwise", "serve", "--json", *arguments,
        cwd=folder, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    return Process(folder, process)


def written(folder: Path, config: Mapping[str, Any]) -> Path:
    path = folder / "tierwise.yaml"
    made = folder / "made"
    made.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    os.replace(made, path)
    return path


@contextlib.asynccontextmanager
async def serving(folder: Path, config: Mapping[str, Any]) -> AsyncIterator[tuple[Process, aiohttp.ClientSession]]:
    written(folder, config)
    process = await spawn(folder, "--port", "0")
    try:
        await process.started()
        async with aiohttp.ClientSession(process.facts["url"], timeout=aiohttp.ClientTimeout(total=60)) as session:
            yield process, session
    finally:
        await process.kill()
    assert "Traceback" not in process.said and CANARY not in process.said, process.said


async def until(session: aiohttp.ClientSession, path: str, holds: Callable[[int, Any], bool]) -> None:
    """Ask again until the answer is so."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with session.get(path) as response:
                if holds(response.status, await response.json()):
                    return
            await asyncio.sleep(0.02)


def named(name: str) -> Callable[[int, Any], bool]:
    return lambda _, body: name in [each["id"] for each in body["data"]]


async def test_a_stop_lets_streams_finish_and_takes_no_new_work(tmp_path: Path) -> None:
    """C4: every stream comes to its proper end, the exit code is 0, and every request is in the journal, settled."""
    gate = asyncio.Event()
    events = openai_events("cheap")

    async def halfway(x: Exchange) -> None:
        await x.start_stream()
        for number, event in enumerate(events):
            if number == 3:
                await gate.wait()
            await x.chunk(event)
        await x.chunk(b"")

    async with FakeUpstream(halfway) as one, serving(tmp_path, world(one)) as (process, session):
        streams = [
            await session.post(dialect.path, json=dialect.body(stream=True), headers=dialect.headers)
            for dialect in DIALECTS * 3
        ]
        begun = [await stream.content.readany() for stream in streams]
        assert all(stream.status == 200 for stream in streams) and all(begun)
        process.signal(signal.SIGTERM)
        await process.says("draining: 6 requests under way")
        await until(session, "/readyz", lambda status, body: status == 503 and body["status"] == "draining")
        for dialect in DIALECTS:
            async with session.post(dialect.path, json=dialect.body(), headers=dialect.headers) as response:
                error = (await response.json())["error"]
                assert (response.status, error["code"]) == (503, "draining")
                assert response.headers["retry-after"] == "1"
        gate.set()
        for first, stream in zip(begun, streams, strict=True):
            whole = events_of(first + await stream.read())
            assert whole[-1][1] == "[DONE]" or whole[-1][0] == "message_stop"
        code, said = await process.ended()
        assert code == 0, said
        assert len(one.requests) == 6
        records = await process.records()
        assert [record.outcome.status for record in records] == ["answered"] * 6
        assert {record.outcome.cost_nano for record in records} == {40_000}


@pytest.mark.parametrize("how", ["the drain is over", "asked twice"])
async def test_what_does_not_finish_is_cut_settled_and_written_down(tmp_path: Path, how: str) -> None:
    """C4: after `drain_s`, or at once when a second signal says so."""

    async def hang(x: Exchange) -> None:
        await x.until_gone()

    step = sse(openai_events("cheap", done=False)[:3], then=hang)
    server = {"drain_s": 0.2 if how == "the drain is over" else 600}
    config = partial(world, hurry={"idle_ms": 600_000, "total_ms": 600_000, "first_token_ms": 600_000}, server=server)
    async with FakeUpstream() as one, serving(tmp_path, config(one)) as (process, session):
        one.script(step, hang)
        stream = await session.post(OPENAI.path, json=OPENAI.body(stream=True))
        plain = asyncio.create_task(session.post(OPENAI.path, json=OPENAI.body()))
        first = await stream.content.readany()
        await one.seen(2)
        process.signal(signal.SIGTERM)
        await process.says("draining")
        if how == "asked twice":
            process.signal(signal.SIGTERM)
        code, said = await process.ended()
        assert code == 0, said
        for seen in one.requests:
            await seen.gone.wait()
        events = events_of(first + await stream.read())
        assert events[-1][1]["error"]["code"] == "draining", "the stream's last word says why"
        assert (await plain).status == 503 and (await (await plain).json())["error"]["code"] == "draining"
        records = {record.outcome.status: record.outcome for record in await process.records()}
        assert set(records) == {"broken", "abandoned"}
        assert records["broken"].usage.estimated and (records["broken"].cost_nano or 0) > 0


async def test_a_change_of_the_configuration_is_taken_or_the_last_good_one_stays(tmp_path: Path) -> None:
    """G1: by SIGHUP and by itself; a broken file is told with its line, and changes nothing else."""
    async with FakeUpstream() as one, FakeUpstream() as two, serving(tmp_path, world(one)) as (process, session):
        await until(session, "/v1/models", named(CHEAP))
        (tmp_path / "tierwise.yaml").write_text("models:\n  one/cheap: {tire: fast}\n")
        process.signal(signal.SIGHUP)
        await process.says(r"the last good one stays")
        await process.says(r"line 2.*\n?.*tier")
        async with session.post(OPENAI.path, json=OPENAI.body()) as response:
            assert response.status == 200 and TEXT in await response.text()
        written(tmp_path, world(one, two))
        process.signal(signal.SIGHUP)
        await until(session, "/v1/models", named(DEAR))
        third = world(one, two, models={"one/third": {"tier": "fast", "price": {"free": True}}})
        for number in range(200):  # the watcher may still be starting: the file keeps changing until it is seen
            written(tmp_path, {**third, "journal": {"keep_days": number + 1}})
            async with session.get("/v1/models") as response:
                if named("one/third")(response.status, await response.json()):
                    break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("the change was not seen")
        process.signal(signal.SIGINT)
        code, said = await process.ended()
        assert code == 0, said


async def test_of_two_reloads_at_once_the_second_reads_when_the_first_is_served(tmp_path: Path) -> None:
    """A SIGHUP while a change of the file is read: what was read first must not be served last."""
    events: list[str] = []
    done = asyncio.Event()

    async def reload() -> None:
        events.append("reads")
        await asyncio.sleep(0)
        events.append("serves")

    async def twice(changed: Callable[[], Awaitable[None]]) -> None:
        await asyncio.gather(changed(), changed())
        done.set()

    async with FakeUpstream() as one:
        app = open_app(await load(written(tmp_path, world(one)), ENVIRON), in_memory=True)
        serving = asyncio.create_task(serve(app, "127.0.0.1", 0, 1.0, reload=reload, watch=twice))
        async with asyncio.timeout(PATIENCE_S):
            await done.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            await serving
    assert events == ["reads", "serves"] * 2


async def test_what_cannot_be_served_is_said_in_a_sentence(tmp_path: Path) -> None:
    """G4: exit code 2, no traceback, nothing bound."""
    async with FakeUpstream() as one:
        written(tmp_path, world(one))
        cases = (
            (("--port", str(one.port)), rf"{one.port} cannot be listened on; is it in use"),
            (("--port", "0", "--host", "0.0.0.0"), r"keys"),
            (("--port", "0", "--config", "nowhere.yaml"), r"nowhere\.yaml"),
        )
        processes = [await spawn(tmp_path, *arguments) for arguments, _ in cases]
        for process, (arguments, pattern) in zip(processes, cases, strict=True):
            try:
                code, said = await process.ended()
            finally:
                await process.kill()
            assert code == 2, (arguments, said)
            assert re.search(pattern, said) and "Traceback" not in said, said
        assert one.requests == []
