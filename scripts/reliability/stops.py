"""Runs in which time passes without the gateway: its process is stopped and goes on, and its disk takes long."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from scripts.reliability.bars import Check, Found, Run, Scale, count
from scripts.reliability.gateway import COST_NANO, HEADERS, KEYED, levels
from scripts.reliability.served import Left, faults, gateway, session
from scripts.reliability.streams import LONG
from tests.support.callers import OPENAI
from tests.support.gateway import world
from tests.support.ledgers import a_hold, path_of
from tests.support.powercut import Disk
from tests.support.replies import openai_events
from tests.support.upstream import Exchange, FakeUpstream, openai_reply
from tierwise.core.budget import Charge
from tierwise.stores.ledger import commits, sqlite
from tierwise.stores.ledger.books import Books
from tierwise.stores.ledger.sqlite import SqliteLedger

LEASE_S = 1  # of the gateway that is stopped; an hour would be the same, and take as long
STOP_S = LEASE_S + 1.2
LIMIT_NANO = 10**15


@dataclass
class Went:
    """Of all rounds: requests, those answered in full, and what the ledger holds."""

    asked: int
    whole: int
    late: int  # calls that had been given up when their answer came
    left: Left


def stopped(scale: Scale) -> Found:
    """C5. Plain calls and streams are under way; while the process is stopped their leases end, and what is given up is
    settled at its least; then the answers come after all."""
    rounds, width = scale.of(100, 1), scale.of(10, 4)
    went = asyncio.run(_stopped(rounds, width, scale.seed, "leases"))
    lost = asyncio.run(_stopped(scale.of(4, 1), width, scale.seed, "forgetful"))
    truth = went.asked * COST_NANO
    return Found(
        n=f"{rounds} stops of {STOP_S:.1f} s, leases of {LEASE_S} s, {width} calls under way at each, half of them "
        "streams",
        figure=f"{count(went.whole)} of {count(went.asked)} answered in full, {count(went.late)} of them given up "
        f"meanwhile; {went.left.open} open, {went.left.spent - truth} n$ from what the provider billed, "
        f"{len(went.left.faults)} audit faults",
        checks=(
            Check("answered in full", went.whole, "=", went.asked),
            Check("given up meanwhile", went.late, ">", 0),
            Check("open", went.left.open, "=", 0),
            Check("n$ from what was billed", went.left.spent - truth, "=", 0),
            Check("charged nothing", went.left.unpaid, "=", 0),
            Check("audit faults", len(went.left.faults), "=", 0),
        ),
        mutant=f"what comes late is not posted: {count(lost.asked * COST_NANO - lost.left.spent)} n$ missing",
        caught=lost.left.spent != lost.asked * COST_NANO,
    )


async def _stopped(rounds: int, width: int, seed: int, how: str) -> Went:
    rng, gate, whole = random.Random(seed), asyncio.Event(), 0
    events = openai_events("cheap")

    async def step(x: Exchange) -> None:
        wait = gate
        if not x.seen.stream:
            await wait.wait()
            await openai_reply()(x)
            return
        await x.start_stream()
        for event in events[:2]:
            await x.chunk(event)
        await wait.wait()
        for event in [*events[2:], b""]:
            await x.chunk(event)

    with tempfile.TemporaryDirectory(prefix="tierwise-c5-") as name:
        async with FakeUpstream(step) as one:
            config = {**world(one, hurry=LONG), "keys": KEYED, "budgets": levels(LIMIT_NANO)}
            async with gateway(Path(name), config, "scripts.reliability.stops", how) as child, session(width) as http:

                async def ask(stream: bool) -> bool:
                    body = OPENAI.body(max_tokens=100, stream=stream or None)
                    async with http.post(child.url + OPENAI.path, json=body, headers=HEADERS) as reply:
                        heard = await reply.read()
                        return reply.status == 200 and (b"[DONE]" in heard or not stream)

                for number in range(rounds):
                    gate = asyncio.Event()
                    asking = [asyncio.create_task(ask(bool(each % 2))) for each in range(width)]
                    await one.seen((number + 1) * width)
                    child.process.send_signal(signal.SIGSTOP)
                    await asyncio.sleep(STOP_S)
                    if rng.random() < 0.5:  # the answers lie there already when it wakes up
                        gate.set()
                        await asyncio.sleep(0.1)
                        child.process.send_signal(signal.SIGCONT)
                    else:  # it finds out first how late it is
                        child.process.send_signal(signal.SIGCONT)
                        await asyncio.sleep(0.5)
                        gate.set()
                    whole += sum(await asyncio.gather(*asking))
        path = Path(name) / "state" / "ledger.sqlite"
        return Went(rounds * width, whole, _corrected(path), Left(Path(name) / "state"))


def _corrected(path: Path) -> int:
    """Calls whose truth came after they had been settled unseen."""
    import apsw

    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return int(next(iter(connection.execute("SELECT count(DISTINCT hold) FROM entry WHERE kind = 'suspense'")))[0])
    finally:
        connection.close()


def leases() -> None:
    """In the gateway: it gives up calls soon, looks for them often, and settles what it gave up at once."""
    from tierwise.stores.ledger import books

    assert SqliteLedger.__init__.__kwdefaults__ is not None
    SqliteLedger.__init__.__kwdefaults__["lease_s"] = LEASE_S
    commits.ERRANDS_S = 0.2
    books.SUSPENSE_S = LEASE_S


def forgetful() -> None:
    """The mutant, in the gateway: a call that was given up is over."""
    leases()
    settle = Books.settle

    def first_only(self: Books, hold_id: str, charge: Charge, at_s: int) -> None:
        if hold_id in self._open:
            settle(self, hold_id, charge, at_s)

    Books.settle = first_only  # type: ignore[method-assign]


# ------------------------------------------------------------------------------------------------ a slow disk


def slow_disk(scale: Scale) -> Found:
    """D4. Many ask at once on a disk whose every sync takes its time."""
    delays_s = (0.05, 0.2, 1.0, 2.0) if scale.full else (0.05,)
    workers = 50
    told, checks = [], []
    for delay_s in delays_s:
        took, held, syncs, wrong = asyncio.run(_slow(delay_s, workers, max(30 * delay_s, 3.0) if scale.full else 0.8))
        p99 = took[int(len(took) * 0.99)]
        told.append(f"{delay_s * 1e3:,.0f} ms: p99 {p99 / delay_s:.2f}×, {held / syncs:.0f} holds a sync")
        checks += [
            Check(f"p99 of a hold in syncs of {delay_s:g} s", p99 / delay_s, "≤", 3),
            Check("holds a sync", held / syncs, "≥", workers / 4),
            Check("audit faults", wrong, "=", 0),
        ]
    with _one_at_a_time():
        took, _, _, _ = asyncio.run(_slow(0.05, workers, 0.8))
    worst = took[int(len(took) * 0.99)] / 0.05
    return Found(
        n=f"{workers} at once that hold and settle, syncs of {', '.join(f'{each * 1e3:,.0f}' for each in delays_s)} ms",
        figure="; ".join(told),
        checks=tuple(checks),
        mutant=f"a commit for each hold: p99 {worst:.1f}×",
        caught=worst > 3,
    )


async def _slow(delay_s: float, workers: int, seconds: float) -> tuple[list[float], int, int, int]:
    """(how long holds took, sorted; how many; syncs meanwhile; audit faults)"""
    slow, took = False, list[float]()

    def late(operation: str, file: str) -> Exception | None:
        if slow and operation == "sync":
            time.sleep(delay_s)  # in the writer's thread
        return None

    with tempfile.TemporaryDirectory(prefix="tierwise-d4-") as name:
        disk = Disk(f"late-{delay_s}-{id(took)}")
        disk.fault = late
        ledger = SqliteLedger(Path(name) / "ledger.sqlite", path_of(LIMIT_NANO), vfs=disk.name)

        async def work(worker: int) -> None:
            number = 0
            while time.monotonic() < end_s:
                id_, number, began = f"{worker}.{number}", number + 1, time.monotonic()
                assert await ledger.hold(a_hold(id_, 100)) is None
                took.append(time.monotonic() - began)
                ledger.settle(id_, Charge(cost_nano=50))

        await ledger.hold(a_hold("first", 100))
        before, slow, end_s = disk.syncs, True, time.monotonic() + seconds
        await asyncio.gather(*(work(each) for each in range(workers)))
        syncs, slow = disk.syncs - before, False
        await ledger.close()
        return sorted(took), len(took), max(syncs, 1), len(faults(Path(name) / "ledger.sqlite"))


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """The mutant: no group commit."""
    with mock.patch.object(sqlite, "BATCH_HOLDS", 1):
        yield


RUNS = (
    Run("c5", "C5", "SIGSTOP for longer than the leases, then SIGCONT", "all answered, charged to the n$", stopped),
    Run("d4", "D4", "a disk whose syncs take long", "p99 of a hold ≤ 3 syncs", slow_disk),
)
