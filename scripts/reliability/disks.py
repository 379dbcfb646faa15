"""Runs over disks that lose what was not synced, that fail, that are full, and over files that somebody has changed."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import apsw
import msgspec

from scripts.reliability.bars import Check, Found, Run, Scale, count
from scripts.reliability.crashes import Tally, check, look_up
from scripts.reliability.served import faults
from scripts.reliability.victim import LIMIT_NANO, work
from tests.support.ledgers import a_hold, path_of
from tests.support.powercut import Disk
from tierwise.core.errors import ConfigError, Unavailable
from tierwise.core.request import Hints
from tierwise.stores.ledger import file as ledger_file
from tierwise.stores.ledger.sqlite import SqliteLedger
from tierwise.stores.ledger.writer import Rows, Writer, Written

STORE = "tierwise.stores.ledger.sqlite"
WORKERS = 24
CUTS = 25  # of one ledger's life
FAULTS = {"sync": 0.05, "write": 0.01}  # share of those that fail


@contextmanager
def synchronous(how: str) -> Iterator[None]:
    """The ledger's file opened with another promise than its own."""
    kind = msgspec.structs.replace(ledger_file.LEDGER, synchronous=how)
    with mock.patch.object(ledger_file, "LEDGER", kind):
        yield


def power(scale: Scale) -> Found:
    cuts = scale.of(1_000, 6)
    tally = _cut(cuts, scale.seed)
    broken = {}
    for how in ("normal", "off"):
        with synchronous(how):
            broken[how] = _cut(scale.of(100, 8), scale.seed)
    told = "; ".join(
        f"synchronous={how}: {count(each.lost)} of {count(each.acknowledged)} lost, {len(each.faults)} of {each.kills} "
        "images unsound"
        for how, each in broken.items()
    )
    return Found(
        n=f"{count(tally.kills)} power cuts at any write or sync, {count(tally.acknowledged)} acknowledged operations "
        "looked up",
        figure=f"{tally.lost} lost, {tally.doubled} doubled, {len(tally.faults)} unsound"
        + (f": {tally.faults[0]}" if tally.faults else ""),
        checks=tally.checks("unsound"),
        mutant=told,
        caught=all(each.lost + len(each.faults) > 0 for each in broken.values()),
    )


def _cut(cuts: int, seed: int) -> Tally:
    tally = Tally()
    for life in range(0, cuts, CUTS):
        with tempfile.TemporaryDirectory(prefix="tierwise-cut-") as name:
            images = asyncio.run(_live(Path(name), min(CUTS, cuts - life), seed * 10_007 + life))
            for image, lines in images:
                tally.kills += 1
                _examine(image / "ledger.sqlite", lines, tally)
                shutil.rmtree(image)
    return tally


def _examine(path: Path, lines: list[str], tally: Tally) -> None:
    try:
        check(path, lines, tally)
        tally.faults += faults(path)
    except ConfigError as error:  # it sees for itself that something is missing, or broken
        tally.faults.append(str(error)[:200])
        with suppress(apsw.Error):
            look_up(path, lines, tally)


async def _live(folder: Path, cuts: int, seed: int) -> list[tuple[Path, list[str]]]:
    """A ledger at work, and what its disk could hold after a power cut at each of some moments, with what had been
    acknowledged by then."""
    rng, said = random.Random(seed), list[str]()
    home = folder / "home"
    home.mkdir()
    disk = Disk(f"cut-{seed}", seed)
    images: list[tuple[Path, list[str]]] = []
    due = rng.randint(1, 40)

    def before() -> None:
        nonlocal due
        due -= 1
        if due <= 0 and len(images) < cuts and (home / "ledger.sqlite").exists():
            due = rng.randint(1, 60)
            lines = said.copy()  # before the image: what is acknowledged later may be in it or not
            image = folder / f"image-{len(images)}"
            disk.image(home, image)
            images.append((image, lines))

    ledger = SqliteLedger(home / "ledger.sqlite", path_of(LIMIT_NANO), vfs=disk.name)
    disk.before = before
    moment_s = int(time.time())
    going = lambda: len(images) < cuts  # noqa: E731
    names = [f"{seed}.{number}" for number in range(WORKERS)]
    await asyncio.gather(
        *(work(ledger, each, random.Random(each), moment_s, say=said.append, going=going) for each in names)
    )
    disk.before = lambda: None
    await ledger.close()
    return images


# ------------------------------------------------------------------------------------------------ faults


def failing(scale: Scale) -> Found:
    """Bar 9, D1, D2: writes and syncs fail by chance; then the disk is well again."""
    lives, seconds = scale.of(20, 1), 3.0 if scale.full else 0.6
    tally, failed, slowest = _faulty(lives, seconds, scale.seed, SqliteLedger)
    with mock.patch.object(Writer, "_recover", _believes):
        mutant, _, _ = _faulty(scale.of(4, 2), seconds, scale.seed, SqliteLedger)
    return Found(
        n=f"{lives} ledgers, {count(failed)} faults (EIO, ENOSPC) in writes and syncs, {count(tally.acknowledged)} "
        "acknowledged",
        figure=f"{tally.lost} lost, {tally.doubled} doubled, {len(tally.faults)} audit faults, back at most "
        f"{slowest:.2f} s after the disk" + (f": {tally.faults[0]}" if tally.faults else ""),
        checks=(
            *tally.checks("audit faults"),
            Check("seconds until it is back", slowest, "≤", 1),
            Check("faults of the disk", failed, ">", 0),
        ),
        mutant=f"a commit that failed is acknowledged: {count(mutant.lost)} of {count(mutant.acknowledged)} lost",
        caught=mutant.lost > 0,
    )


def _believes(self: Writer, rows: Rows, error: Exception) -> Written:
    """The mutant: an error is written to the log, and work goes on."""
    self.let_go()
    return Written("", True)


def _faulty(lives: int, seconds: float, seed: int, kind: type[SqliteLedger]) -> tuple[Tally, int, float]:
    tally, failed, slowest = Tally(), 0, 0.0
    for life in range(lives):
        with tempfile.TemporaryDirectory(prefix="tierwise-eio-") as name:
            path = Path(name) / "ledger.sqlite"
            lines, faulted, back_s = asyncio.run(_ill(path, seconds, seed * 101 + life, kind))
            failed, slowest = failed + faulted, max(slowest, back_s)
            _examine(path, lines, tally)
    return tally, failed, slowest


async def _ill(path: Path, seconds: float, seed: int, kind: type[SqliteLedger]) -> tuple[list[str], int, float]:
    rng, said, failed, ill = random.Random(seed), list[str](), 0, False
    disk = Disk(f"ill-{kind.__name__}-{seed}", seed)

    def fault(operation: str, file: str) -> Exception | None:
        nonlocal failed
        if not ill or rng.random() > FAULTS.get(operation, 0.0):
            return None
        failed += 1
        return apsw.FullError("no room") if rng.random() < 0.5 and operation == "write" else apsw.IOError("ill")

    disk.fault = fault
    ledger = kind(path, path_of(LIMIT_NANO), vfs=disk.name)
    end = time.monotonic() + seconds
    going = lambda: time.monotonic() < end  # noqa: E731
    names = [f"{seed}.{number}" for number in range(WORKERS)]
    ill = True
    moment_s = int(time.time())
    await asyncio.gather(
        *(work(ledger, each, random.Random(each), moment_s, say=said.append, going=going) for each in names)
    )
    ill = False
    back_s = await _until_held(ledger, f"{seed}.after", moment_s)
    await ledger.close()
    return said, failed, back_s


async def _until_held(ledger: SqliteLedger, name: str, at_s: int) -> float:
    began = time.monotonic()
    while True:
        try:
            await ledger.hold(a_hold(name, 1, at_s=at_s))
        except Unavailable:
            await asyncio.sleep(0.02)
        else:
            return time.monotonic() - began


# ------------------------------------------------------------------------------------------------ changed files


def flipped(scale: Scale) -> Found:
    """D5: a byte of the file is another one. Either nothing of the money is, or the start says so."""
    flips = scale.of(1_000, 15)
    refused, silent = asyncio.run(_flipped(flips, scale.seed))
    tampered, kept = asyncio.run(_tampered(checked=True)), asyncio.run(_tampered(checked=False))
    return Found(
        n=f"{count(flips)} bytes flipped, one at a time",
        figure=f"{count(refused)} refused at the start, {silent} with another balance and not a word",
        checks=(
            Check("with another balance and not a word", silent, "=", 0),
            Check("refused", refused, ">", 0),
            Check("changed by hand and believed", tampered, "=", 0),
        ),
        mutant=f"no audit at the start: an account that was changed by hand is {'believed' if kept else 'refused'}",
        caught=kept,
    )


async def _flipped(flips: int, seed: int) -> tuple[int, int]:
    rng, refused, silent = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory(prefix="tierwise-flip-") as name:
        path = Path(name) / "ledger.sqlite"
        await _filled(path, 150, seed)
        whole, lock = path.read_bytes(), path.with_name("ledger.sqlite.lock").read_bytes()
        truth = _balances(path)
        for number in range(flips):
            copy = Path(name) / f"copy-{number}" / "ledger.sqlite"
            copy.parent.mkdir()
            at = rng.randrange(len(whole))
            copy.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
            copy.with_name("ledger.sqlite.lock").write_bytes(lock)
            try:
                silent += _balances(copy) != truth
            except ConfigError:
                refused += 1
            shutil.rmtree(copy.parent)
    return refused, silent


async def _tampered(*, checked: bool) -> bool:
    """Whether a ledger with an account that somebody made smaller is opened all the same."""
    with tempfile.TemporaryDirectory(prefix="tierwise-flip-") as name:
        path = Path(name) / "ledger.sqlite"
        await _filled(path, 20, 1)
        connection = apsw.Connection(str(path))
        connection.execute("UPDATE account SET posted_nano = posted_nano - 1")
        connection.close()
        audit = nullcontext() if checked else mock.patch(f"{STORE}.check_at_start", return_value=None)
        try:
            with audit:
                _balances(path)
        except ConfigError:
            return False
        return True


def _balances(path: Path) -> list[Any]:
    """As a gateway would tell them after a start."""
    ledger = SqliteLedger(path, path_of(10**9), reserve_bytes=0)
    try:
        hold = a_hold("x", 0)
        told = ledger.balances(hold.payer, Hints(session=hold.session, workflow=hold.workflow))
        return [(each.scope, each.spent_nano, each.held_nano, each.calls_done) for each in told]
    finally:
        ledger.close_now()


async def _filled(path: Path, holds: int, seed: int) -> None:
    from tierwise.core.budget import Charge

    rng = random.Random(seed)
    ledger = SqliteLedger(path, path_of(10**9))
    for number in range(holds):
        await ledger.hold(a_hold(f"h{number}", 100))
        if rng.random() < 0.9:
            ledger.settle(f"h{number}", Charge(cost_nano=rng.randrange(120)))
    await ledger.close()


def second(scale: Scale) -> Found:
    tries = scale.of(100, 10)
    with tempfile.TemporaryDirectory(prefix="tierwise-lock-") as name:
        opened, said = [], 0
        for _ in range(tries):
            try:
                opened.append(SqliteLedger(Path(name) / "ledger.sqlite", path_of(1), reserve_bytes=0))
            except ConfigError as error:
                said += "holds this ledger" in str(error)
        won = len(opened)
        with mock.patch("fcntl.flock", return_value=None):
            opened.append(SqliteLedger(Path(name) / "ledger.sqlite", path_of(1), reserve_bytes=0))
        for ledger in opened:
            ledger.close_now()
    return Found(
        n=f"{tries} starts on one file",
        figure=f"{won} opened it, {said} were told who holds it",
        checks=(Check("opened it", won, "=", 1), Check("were told who holds it", said, "=", tries - 1)),
        mutant=f"no lock: {len(opened) - won} more opened it",
        caught=len(opened) > won,
    )


def backups(scale: Scale) -> Found:
    copies = scale.of(50, 3)
    wrong, torn = asyncio.run(_backups(copies))
    return Found(
        n=f"{copies} backups under load, each audited",
        figure=f"{len(wrong)} faults" + (f": {wrong[0]}" if wrong else ""),
        checks=(Check("faults", len(wrong), "=", 0),),
        mutant=f"the file is copied as it lies there: {torn} of {copies} unsound or behind",
        caught=torn > 0,
    )


async def _backups(copies: int) -> tuple[list[str], int]:
    with tempfile.TemporaryDirectory(prefix="tierwise-backup-") as name:
        folder = Path(name)
        ledger = SqliteLedger(folder / "ledger.sqlite", path_of(LIMIT_NANO))
        state = {"going": True}
        wrong: list[str] = []
        torn = 0

        async def copy() -> None:
            nonlocal torn
            for number in range(copies):
                said_by_now = len(said)
                await ledger.backup(folder / f"copy-{number}")
                wrong.extend(await asyncio.to_thread(faults, folder / f"copy-{number}"))
                wrong.extend(_missing(folder / f"copy-{number}", said[:said_by_now]))
                raw = folder / f"raw-{number}"
                shutil.copyfile(folder / "ledger.sqlite", raw)
                torn += bool(_missing(raw, said[:said_by_now]))
            state["going"] = False

        said: list[str] = []
        going: Callable[[], bool] = lambda: state["going"]  # noqa: E731
        load: list[Awaitable[None]] = [
            work(ledger, f"w{n}", random.Random(n), int(time.time()), say=said.append, going=going)
            for n in range(WORKERS)
        ]
        await asyncio.gather(copy(), *load)
        await ledger.close()
        return wrong, torn


def _missing(path: Path, said: list[str]) -> list[str]:
    """Holds that had been acknowledged before the copy was begun, and are not in it."""
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            known = {str(row[0]) for row in connection.execute("SELECT id FROM hold")}
        finally:
            connection.close()
    except apsw.Error as error:
        return [str(error)]
    return [f"{line} is not in the copy" for line in said if line.startswith("h ") and line[2:] not in known]


RUNS = (
    Run("bar4", "4, D3", "the power fails: unsynced sectors are lost, torn and reordered", "0 lost, 0 unsound", power),
    Run("bar9", "9, D1, D2", "the disk fails by chance", "0 lost, back ≤ 1 s", failing),
    Run("d5", "D5", "a byte of the file is flipped", "0 silent", flipped),
    Run("d6", "D6", "many starts on one file", "1 wins", second),
    Run("d7", "D7", "backups while the ledger works", "0 faults", backups),
)
