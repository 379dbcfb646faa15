"""Starts gateways in processes of their own for the runs over HTTP, loads them, and reads the ledger they leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from scripts.reliability.report import ROOT
from tests.support.gateway import ENVIRON

PATIENCE_S = 60.0
SCOPES = ("session", "workflow", "user", "team", "organisation")


class Child:
    """`facts`: its address, and how long it took to be ready."""

    def __init__(self, process: asyncio.subprocess.Process, facts: dict[str, Any], state: Path, log: Path) -> None:
        self.process, self.facts, self.state, self.log = process, facts, state, log

    @property
    def url(self) -> str:
        return str(self.facts["url"])

    @property
    def pid(self) -> int:
        return self.process.pid

    async def end(self, number: int = signal.SIGTERM, patience_s: float = PATIENCE_S) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), patience_s)

    def cpu_s(self) -> float:
        """User and system time, which other work on the machine does not lengthen as it does the wait."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return sum(int(ticks) for ticks in fields[11:13]) / os.sysconf("SC_CLK_TCK")

    def resident_kib(self) -> int:
        """Memory that it has now."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


async def start(folder: Path, config: Mapping[str, Any], *more: str) -> Child:
    """`more`: what is broken in it on purpose, as `child` says."""
    state, log = folder / "state", folder / "log"
    state.mkdir(parents=True, exist_ok=True)
    path = folder / "tierwise.yaml"
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIERWISE_")}
    environ = kept | ENVIRON | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "scripts.reliability.child", str(path), str(state), *more,
            cwd=folder, env=environ, stdout=asyncio.subprocess.PIPE, stderr=out,
        )  # fmt: skip
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)
    if not line:
        await process.wait()
        raise RuntimeError(f"the gateway did not start:\n{log.read_text()[-2_000:]}")
    return Child(process, json.loads(line), state, log)


@contextlib.asynccontextmanager
async def gateway(folder: Path, config: Mapping[str, Any], *more: str) -> AsyncIterator[Child]:
    """Ended with SIGTERM, so its ledger is drained and closed."""
    child = await start(folder, config, *more)
    try:
        yield child
        await child.end()
    finally:
        if child.process.returncode is None:
            child.process.kill()
            await child.process.wait()


def session(limit: int = 64, total_s: float = 120.0) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=limit, force_close=False)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=total_s))


async def waves(number: int, width: int, one: Callable[[int], Awaitable[Any]]) -> list[Any]:
    """`one(0)` to `one(number - 1)`, `width` at a time, every wave together."""
    found: list[Any] = []
    for start_at in range(0, number, width):
        found += await asyncio.gather(*(one(each) for each in range(start_at, min(start_at + width, number))))
    return found


class Left:
    """What a ledger says after its process has ended: sums of the file and the faults of its books."""

    def __init__(self, state: Path) -> None:
        import apsw

        self.path = state / "ledger.sqlite"
        connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            self.states = {
                str(row[0]): int(row[1]) for row in _all(connection, "SELECT state, count(*) FROM hold GROUP BY 1")
            }
            self.open = _one(connection, "SELECT count(*) FROM hold WHERE closed_s = 0")
            self.unpaid = _one(connection, "SELECT count(*) FROM hold WHERE state = 'settled' AND cost_nano = 0")
            self.spent = _one(connection, "SELECT coalesce(sum(cost_nano), 0) FROM hold")
            self.over = max(
                (int(row[0]) for row in _all(connection, "SELECT posted_nano + pending_nano - bound_nano FROM account "
                 "WHERE bound_nano IS NOT NULL")), default=0,
            )  # fmt: skip
            self.overage = _one(connection, "SELECT coalesce(max(overage_nano), 0) FROM account")
        finally:
            connection.close()
        self.faults = faults(self.path)


def _all(connection: Any, sql: str) -> list[Sequence[Any]]:
    return list(connection.execute(sql))


def _one(connection: Any, sql: str) -> int:
    return int(_all(connection, sql)[0][0])


def faults(path: Path) -> list[str]:
    """Everything that the audit of the file finds."""
    from tierwise.stores.ledger.audit import audit

    return list(audit(path))
