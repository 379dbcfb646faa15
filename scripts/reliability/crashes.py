"""Runs that kill the process which keeps the ledger, and then ask the file what it remembers."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.reliability.bars import Check, Found, Run, Scale, count
from scripts.reliability.report import ROOT
from scripts.reliability.served import faults
from scripts.reliability.victim import LIMIT_NANO

LEVELS = 5
LEASE_S = 1


@dataclass
class Tally:
    """What was acknowledged before the kills, and what is wrong after them."""

    kills: int = 0
    holds: int = 0
    settles: int = 0
    releases: int = 0
    lost: int = 0
    doubled: int = 0
    left_open: int = 0
    faults: list[str] = field(default_factory=list)
    open_s: float = 0.0  # the longest that a start took

    @property
    def acknowledged(self) -> int:
        return self.holds + self.settles + self.releases

    def checks(self, faults: str) -> tuple[Check, ...]:
        """`faults`: what they are called in this run."""
        return (
            Check("lost", self.lost, "=", 0),
            Check("doubled", self.doubled, "=", 0),
            Check(faults, len(self.faults), "=", 0),
            Check("acknowledged", self.acknowledged, ">", 0),
        )


def kills(scale: Scale) -> Found:
    """Bars 3 and 5. After the last kill the clock is set ahead, and every hold has to come to its end."""
    times, seconds = scale.of(200, 2), (0.05, 0.6) if scale.full else (0.05, 0.15)
    tally, pending, resolved = _play(times, seconds, scale.seed)
    mutant, _, _ = _play(5 if scale.full else 2, (0.05, 0.3), scale.seed, early=True)
    return Found(
        n=f"{tally.kills} kills under load, {count(tally.acknowledged)} acknowledged: {count(tally.holds)} holds, "
        f"{count(tally.settles)} settlements, {count(tally.releases)} releases",
        figure=f"{tally.lost} lost, {tally.doubled} doubled, {len(tally.faults)} audit faults; "
        f"{count(tally.left_open)} holds in suspense, {count(resolved)} resolved after a day, {pending} n$ pending "
        "then; a start took at most "
        f"{tally.open_s:.2f} s" + (f"; {tally.faults[0]}" if tally.faults else ""),
        checks=(
            *tally.checks("audit faults"),
            Check("acknowledged under the kills", tally.acknowledged, "≥", scale.of(100_000, 1)),
            Check("n$ pending after a day", pending, "=", 0),
            Check("holds in suspense that were not resolved", tally.left_open - resolved, "=", 0),
        ),
        mutant=f"acknowledged before the commit: {count(mutant.lost)} of {count(mutant.acknowledged)} lost",
        caught=mutant.lost > 0,
    )


def _play(times: int, seconds: tuple[float, float], seed: int, *, early: bool = False) -> tuple[Tally, int, int]:
    rng, tally = random.Random(seed), Tally()
    with tempfile.TemporaryDirectory(prefix="tierwise-kill-") as name:
        path = Path(name) / "ledger.sqlite"
        for number in range(times):
            lines = killed(path, f"{seed}-{number}", rng.uniform(*seconds), early=early)
            tally.kills += 1
            check(path, lines, tally)
        if early:
            return tally, 0, 0
        tally.faults += faults(path)
        return tally, *_a_day_later(path)


def killed(path: Path, seed: str, after_s: float, *, early: bool = False) -> list[str]:
    """Everything that the victim said until it was killed."""
    environ = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "scripts.reliability.victim", str(path), seed, *(["early"] if early else [])]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        if first != b"ready\n":
            child.wait()
            raise RuntimeError("the ledger did not open after a kill")
        timer = threading.Timer(after_s, child.send_signal, (signal.SIGKILL,))
        timer.start()
        said = child.stdout.read()  # while it works, or its pipe would fill up and stop it
        timer.join()
    lines = said.decode().split("\n")
    return lines[:-1]  # what comes after the last end of a line was not said


def check(path: Path, lines: list[str], tally: Tally) -> None:
    """Each of these must be in the file, once, as it was acknowledged. Opening it is what a restart does."""
    from tests.support.ledgers import path_of
    from tierwise.stores.ledger.sqlite import SqliteLedger

    began = time.monotonic()
    ledger = SqliteLedger(path, path_of(LIMIT_NANO))
    tally.open_s = max(tally.open_s, time.monotonic() - began)
    tally.faults += ledger.audit()
    tally.left_open = ledger.open_holds()
    if ledger.books.in_suspense() != ledger.open_holds():
        tally.faults.append("a hold of a dead process is not in suspense")
    ledger.close_now()
    for line in lines:
        kind, id, *rest = line.split()
        if kind == "d":
            tally.faults.append(f"{id} was refused: {rest}")
    look_up(path, lines, tally)


def look_up(path: Path, lines: list[str], tally: Tally) -> None:
    """In the file itself, whether it can be opened as a ledger or not."""
    known = _rows(path, [line.split()[1] for line in lines])
    for line in lines:
        kind, id, *rest = line.split()
        state, cost, entries, sum_nano = known.get(id, ("", 0, 0, 0))
        if kind == "h":
            tally.holds += 1
            tally.lost += state == ""
        elif kind == "r":
            tally.releases += 1
            tally.lost += state != "released"
        elif kind == "s":
            tally.settles += 1
            tally.lost += state != "settled" or cost != int(rest[0])
            tally.doubled += entries > LEVELS or sum_nano > LEVELS * int(rest[0])


def _rows(path: Path, ids: list[str]) -> dict[str, tuple[str, int, int, int]]:
    """id -> state, cost, on how many accounts it was posted, their sum."""
    import apsw

    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    found: dict[str, tuple[str, int, int, int]] = {}
    try:
        connection.execute("CREATE TEMP TABLE asked (id TEXT PRIMARY KEY)")
        connection.execute("BEGIN")
        connection.executemany("INSERT OR IGNORE INTO asked VALUES (?)", [(id,) for id in ids])
        posted: dict[str, tuple[int, int]] = {}
        last = connection.execute("SELECT coalesce(max(seq), 0) FROM entry").get
        for hold, number, total in connection.execute(
            "SELECT hold, sum((kind != 'overage') * json_array_length(accounts)), "
            "sum(amount_nano * json_array_length(accounts)) FROM entry "
            "WHERE seq > ? AND hold IN (SELECT id FROM asked) GROUP BY 1",
            (max(0, int(str(last)) - 10 * len(ids) - 10_000),),
        ):
            posted[str(hold)] = (int(number), int(total))
        for id, state, cost in connection.execute(
            "SELECT id, state, cost_nano FROM hold WHERE id IN (SELECT id FROM asked)"
        ):
            found[str(id)] = (str(state), int(cost), *posted.get(str(id), (0, 0)))
    finally:
        connection.close()
    return found


def _a_day_later(path: Path) -> tuple[int, int]:
    """(n$ that are still pending, holds that were resolved)"""
    import asyncio

    from tests.support.ledgers import path_of
    from tierwise.stores.ledger.sqlite import SqliteLedger

    async def later() -> int:
        ledger = SqliteLedger(path, path_of(LIMIT_NANO), lambda: time.time() + 2 * 86_400)
        held = ledger.open_holds()
        ledger._do_errands()  # what a running one does every few seconds; the rest follows by itself, piece by piece
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(120):
                while ledger.open_holds():  # noqa: ASYNC110  # nothing tells of it
                    await asyncio.sleep(0.05)
        resolved = held - ledger.open_holds()
        await ledger.drain()
        await ledger.close()
        return resolved

    resolved = asyncio.run(later())
    return _pending(path), resolved


def _pending(path: Path) -> int:
    import apsw

    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        value: Any = connection.execute("SELECT coalesce(sum(pending_nano), 0) FROM account").get
        return int(value)
    finally:
        connection.close()


RUNS = (
    Run(
        "bar3",
        "3, 5, C1, C2",
        "SIGKILL of the ledger's process under load, and a start after each",
        "0 lost, 0 doubled",
        kills,
    ),
)
