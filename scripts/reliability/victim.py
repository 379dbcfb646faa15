"""A process that works a durable ledger and is killed. `python -m scripts.reliability.victim LEDGER SEED [early]`.

It says on its output, one short line each, what was acknowledged to it: `h ID` a hold, `s ID COST` a settlement, `r ID`
a release. A settlement is acknowledged by the next hold of the same worker: what came before it is on the disk before
it. Lines are written at once and whole, so what the parent reads is what was known when the process died.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.ledgers import a_hold, path_of
from tierwise.core.budget import Charge, Denial, Hold
from tierwise.core.errors import Unavailable
from tierwise.stores.ledger.sqlite import SqliteLedger

WORKERS = 32
LIMIT_NANO = 10**15


class Early(SqliteLedger):
    """The mutant: says yes as soon as its memory does."""

    async def hold(self, hold: Hold) -> Denial | None:
        denial = self.books.hold(hold)
        self._later()
        await asyncio.sleep(0)
        return denial


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


async def work(
    ledger: SqliteLedger,
    name: str,
    rng: random.Random,
    moment_s: int,
    say: Callable[[str], None] = say,
    going: Callable[[], bool] = lambda: True,
) -> None:
    """A hold, and then what it cost, again and again. A disk that fails is tried again with the same id."""
    before = ""
    number = 0
    while going():
        id, number = f"{name}.{number}", number + 1
        again = 2 if rng.random() < 0.1 else 1  # a retry of the same id
        while again and going():
            try:
                denial = await ledger.hold(a_hold(id, 100, at_s=moment_s, least_nano=7))
                again -= 1
            except Unavailable:
                await asyncio.sleep(0.01)
        if again:
            return
        if denial is not None:
            say(f"d {id} {denial.code}")
            continue
        say(f"h {id}")
        if before:
            say(before)
        before = ""
        chance = rng.random()
        if chance < 0.04:
            continue  # whoever should have settled it never comes
        if chance < 0.15:
            ledger.settle(id, Charge(cost_nano=0, kind="released"))
            before = f"r {id}"
        else:
            cost = rng.randrange(130)
            for _ in range(2 if chance > 0.9 else 1):  # settled twice
                ledger.settle(id, Charge(cost_nano=cost))
            before = f"s {id} {cost}"


async def main(path: Path, seed: str, kind: type[SqliteLedger]) -> None:
    ledger, moment_s = kind(path, path_of(LIMIT_NANO)), int(time.time())
    say("ready")
    rng = random.Random(seed)
    await asyncio.gather(*(work(ledger, f"{seed}.{n}", random.Random(rng.random()), moment_s) for n in range(WORKERS)))


if __name__ == "__main__":
    chosen = Early if sys.argv[3:] == ["early"] else SqliteLedger
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], chosen))
