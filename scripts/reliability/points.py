"""Runs that kill a gateway at named points of a request, from before its hold to after its settlement, and start it
again: what is in the ledger then is a table, and nothing that a provider was asked for is free."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from scripts.reliability.bars import Check, Found, Run, Scale, count
from scripts.reliability.gateway import COST_NANO, HEADERS, KEYED, levels
from scripts.reliability.served import faults, session, start
from tests.support.callers import OPENAI
from tests.support.gateway import world
from tests.support.ledgers import path_of
from tests.support.upstream import FakeUpstream
from tierwise.core.budget import Charge
from tierwise.stores.ledger.sqlite import SqliteLedger

DAY_S = 86_400


@dataclass(frozen=True)
class Point:
    """`state`: of the hold after a restart; "" when there is none. `asked`: whether the provider has been."""

    state: str
    asked: bool


# In the order in which a request comes by them.
POINTS = {
    "before the hold": Point("", False),
    "held in memory": Point("", False),
    "the hold's commit has begun": Point("", False),
    "before the hold's COMMIT": Point("", False),
    "the hold is committed": Point("suspense", False),
    "before the provider is asked": Point("suspense", False),
    "the answer has begun": Point("suspense", True),
    "before the settlement": Point("suspense", True),
    "settled in memory": Point("suspense", True),
    "the settlement's commit has begun": Point("suspense", True),
    "before the settlement's COMMIT": Point("suspense", True),
    "the settlement is committed": Point("settled", True),
}


def killed(scale: Scale) -> Found:
    """C2. Each point has a ledger of its own, on which the gateway is started anew after every kill."""
    times, names = scale.of(20, 1), list(POINTS)[:: scale.of(1, 5)]
    wrong: list[str] = []
    free = 0
    for name in names:
        faults_here, _ = asyncio.run(_at(name, times, keeps=True))
        wrong += faults_here
    for name in [name for name in names if POINTS[name].asked][: scale.of(3, 1)]:
        free += asyncio.run(_at(name, 1, keeps=False))[1]
    return Found(
        n=f"{len(names)} points × {times} kills, and a start after each",
        figure=f"{len(wrong)} holds in another state than the table's, unpaid or unbalanced"
        + (f"; {wrong[0]}" if wrong else ""),
        checks=(Check("in another state, unpaid or unbalanced", len(wrong), "=", 0),),
        mutant=f"a start lets go of what was open: {count(free)} calls are free",
        caught=free > 0,
    )


async def _at(name: str, times: int, *, keeps: bool) -> tuple[list[str], int]:
    """(what was wrong, calls that the provider had and nobody paid)"""
    with tempfile.TemporaryDirectory(prefix="tierwise-c2-") as folder:
        async with FakeUpstream() as one:
            config = {**world(one), "keys": KEYED, "budgets": levels(10**12)}
            for _ in range(times):
                child = await start(Path(folder), config, __name__, "kill_at", name)
                async with session() as http:
                    with contextlib.suppress(aiohttp.ClientError):
                        async with http.post(child.url + OPENAI.path, json=OPENAI.body(), headers=HEADERS) as reply:
                            await reply.read()
                if await asyncio.wait_for(child.process.wait(), 30) != -signal.SIGKILL:
                    raise RuntimeError(f"{name}: the gateway did not come by that point")
            return await _left(Path(folder) / "state" / "ledger.sqlite", name, times, len(one.requests), keeps)


async def _left(path: Path, name: str, times: int, asked: int, keeps: bool) -> tuple[list[str], int]:
    point = POINTS[name]
    ledger = SqliteLedger(path, path_of(10**12), lambda: time.time() + 2 * DAY_S)
    states = _states(path)
    await ledger.drain()
    if not keeps:  # the mutant
        for id in _open(path):
            ledger.settle(id, Charge(cost_nano=0, kind="released"))
    ledger.books.resolve(int(time.time()) + 2 * DAY_S)
    await ledger.drain()
    await ledger.close()
    expected = Counter({point.state: times} if point.state else {})
    costs = _costs(path)
    wrong = [f"{name}: {fault}" for fault in faults(path)]
    if states != expected:
        wrong.append(f"{name}: {dict(states)} instead of {dict(expected)}")
    if asked != times * point.asked:
        wrong.append(f"{name}: the provider was asked {asked} times")
    if point.state == "settled" and costs != [COST_NANO] * times:
        wrong.append(f"{name}: charged {costs[:3]}")
    if len(costs) != sum(expected.values()) or not all(costs):
        wrong.append(f"{name}: {costs.count(0)} of {len(costs)} are free")
    return wrong, max(0, asked - sum(cost > 0 for cost in costs))


def _rows(path: Path, sql: str) -> list[Any]:
    import apsw

    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return list(connection.execute(sql))
    finally:
        connection.close()


def _states(path: Path) -> Counter[str]:
    """As the restarts left them: what was open when a process died and is not settled counts as in suspense."""
    found = _rows(path, "SELECT CASE state WHEN 'open' THEN 'suspense' ELSE state END, count(*) FROM hold GROUP BY 1")
    return Counter({str(state): int(number) for state, number in found})


def _open(path: Path) -> list[str]:
    return [str(row[0]) for row in _rows(path, "SELECT id FROM hold WHERE closed_s = 0")]


def _costs(path: Path) -> list[int]:
    return [int(row[0]) for row in _rows(path, "SELECT cost_nano FROM hold ORDER BY at_s")]


# ------------------------------------------------------------------------------------------------ in the gateway


def kill_at(name: str) -> None:
    """From now on this process dies when a request comes by the point."""
    from tierwise.providers.http import HttpUpstream
    from tierwise.stores.ledger.books import Books
    from tierwise.stores.ledger.writer import Writer

    if name not in POINTS:
        raise ValueError(f"no point is named {name!r}")
    of_hold = lambda self, *given: any(not rows.entries and rows.holds for rows in given if hasattr(rows, "entries"))  # noqa: E731
    of_charge = lambda self, *given: any(rows.entries for rows in given if hasattr(rows, "entries"))  # noqa: E731
    always = lambda self, *given: True  # noqa: E731
    places: dict[str, tuple[type, str, str, Callable[..., bool]]] = {
        "before the hold": (SqliteLedger, "hold", "before", always),
        "held in memory": (Books, "hold", "after", always),
        "the hold's commit has begun": (Writer, "_commit", "before", of_hold),
        "before the hold's COMMIT": (Writer, "_commit", "COMMIT", of_hold),
        "the hold is committed": (Writer, "_acknowledged", "before", of_hold),
        "before the provider is asked": (HttpUpstream, "send", "before", always),
        "the answer has begun": (HttpUpstream, "send", "after", always),
        "before the settlement": (SqliteLedger, "settle", "before", always),
        "settled in memory": (SqliteLedger, "settle", "after", always),
        "the settlement's commit has begun": (Writer, "_commit", "before", of_charge),
        "before the settlement's COMMIT": (Writer, "_commit", "COMMIT", of_charge),
        "the settlement is committed": (Writer, "_acknowledged", "before", of_charge),
    }
    owner, method, when, due = places[name]
    setattr(owner, method, _deadly(getattr(owner, method), when, due))


def _deadly(real: Callable[..., Any], when: str, due: Callable[..., bool]) -> Callable[..., Any]:
    def traced(cursor: Any, sql: str, bindings: Any) -> bool:
        if sql == "COMMIT":
            _die()
        return True

    def call(self: Any, *given: Any, **named: Any) -> Any:
        if not due(self, *given):
            return real(self, *given, **named)
        if when == "before":
            _die()
        if when == "COMMIT":
            given[0].set_exec_trace(traced)
        found = real(self, *given, **named)
        return _awaited(found) if asyncio.iscoroutine(found) else _die()

    return call


async def _awaited(found: Any) -> None:
    await found
    _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


RUNS = (
    Run("c2", "C2", "SIGKILL of a gateway at named points of a request", "each as in the table, none free", killed),
)
