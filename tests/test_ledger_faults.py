"""A disk that is full, fails, is slow or is somebody else's: no hold without a durable row, no settlement forgotten."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from tests.support.ledgers import ADA, NOON, a_hold, of, path_of
from tests.support.powercut import Disk
from tierwise.core.budget import Charge, Denial, Hold
from tierwise.core.errors import ConfigError, Unavailable
from tierwise.core.request import Hints
from tierwise.stores.ledger import commits
from tierwise.stores.ledger import file as ledger_file
from tierwise.stores.ledger.audit import audit
from tierwise.stores.ledger.file import beside
from tierwise.stores.ledger.sqlite import SqliteLedger
from tierwise.stores.ledger.writer import Written


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk("tests/faulty", seed=1)
    yield disk
    disk.unregister()


@asynccontextmanager
async def opened(folder: Path, disk: Disk, make: type[SqliteLedger] = SqliteLedger) -> AsyncIterator[SqliteLedger]:
    ledger = make(folder / "ledger.sqlite", path_of(10**6), reserve_bytes=64 << 10, vfs=disk.name)
    try:
        yield ledger
    finally:
        disk.fault = lambda operation, file: None
        await ledger.close()


def on_the_disk(folder: Path) -> dict[str, tuple[str, int]]:
    with apsw.Connection(str(folder / "ledger.sqlite")) as connection:
        return {id: (state, cost) for id, state, cost in connection.execute("SELECT id, state, cost_nano FROM hold")}


async def sound_again(ledger: SqliteLedger) -> None:
    async with asyncio.timeout(5):
        while ledger.last_error:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.005)


FULL = apsw.FullError("database or disk is full")
BROKEN = apsw.IOError("disk I/O error")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "RETRY_S", 0.01)


# ---------------------------------------------------------------------------------- D1, D2


async def refused_and_settled(folder: Path, disk: Disk, error: Exception, make: type[SqliteLedger]) -> None:
    """A call under way is settled while the disk takes nothing, a new one is refused, and both are right afterwards."""
    async with opened(folder, disk, make) as ledger:
        assert await ledger.hold(a_hold("under way", 10)) is None
        disk.fault = lambda operation, file: error if operation == "write" else None
        ledger.settle("under way", Charge(cost_nano=7))
        refusals = await asyncio.gather(*(ledger.hold(a_hold(f"{n}", 10)) for n in range(20)), return_exceptions=True)
        assert {type(each) for each in refusals} == {Unavailable}
        refusal = refusals[0]
        assert isinstance(refusal, Unavailable)
        assert (refusal.status, refusal.code, refusal.retry_after_s) == (503, "ledger_unavailable", 1)
        assert ledger.last_error
        assert ledger.faults
        with pytest.raises(Unavailable):
            await ledger.hold(a_hold("late", 10))
        with pytest.raises(Unavailable):
            await ledger.claim(ADA, "key", "f", "d")
        assert ledger.open_holds() == 0
        assert {(spent, held) for _, spent, held in of(ledger)} == {(7, 0)}

        disk.fault = lambda operation, file: None
        await sound_again(ledger)
        assert await ledger.hold(a_hold("0", 10)) is None, "what was refused may be asked again"
        assert await ledger.claim(ADA, "key", "f", "d") is None
        assert on_the_disk(folder) == {"under way": ("settled", 7), "0": ("open", 0)}
        assert ledger.audit() == ()
    assert list(audit(folder / "ledger.sqlite")) == []


@pytest.mark.parametrize("error", [FULL, BROKEN])
async def test_on_a_failing_disk_no_call_leaves_and_no_settlement_is_lost(
    tmp_path: Path, disk: Disk, error: Exception
) -> None:
    await refused_and_settled(tmp_path, disk, error, SqliteLedger)


class Forgetful(SqliteLedger):
    """A mutant: what could not be written is dropped."""

    def _refuse(self, error: Exception) -> None:
        super()._refuse(error)
        if not self._closed:
            self._next.holds.clear()


class Hopeful(SqliteLedger):
    """A mutant: what could not be written is said to be."""

    def _hear(self, written: Written) -> None:
        super()._hear(Written("", True))


class Blind(SqliteLedger):
    """A mutant: says yes before the commit."""

    async def hold(self, hold: Hold) -> Denial | None:
        denial = self.books.hold(hold)
        self._soon()
        return denial


@pytest.mark.parametrize("mutant", [Forgetful, Hopeful, Blind])
async def test_the_law_of_a_failing_disk_is_able_to_fail(
    tmp_path: Path, disk: Disk, mutant: type[SqliteLedger]
) -> None:
    with pytest.raises(AssertionError):
        await refused_and_settled(tmp_path, disk, BROKEN, mutant)


async def test_random_faults_lose_nothing_that_was_acknowledged(tmp_path: Path, disk: Disk) -> None:
    acknowledged: dict[str, int] = {}
    refused = 0
    async with opened(tmp_path, disk) as ledger:
        disk.fault = lambda operation, file: BROKEN if disk.random.random() < 0.02 else None

        async def worker(name: str) -> None:
            nonlocal refused
            for number in range(60):
                id = f"{name}.{number}"
                try:
                    assert await ledger.hold(a_hold(id, 10)) is None
                except Unavailable:
                    refused += 1
                    await asyncio.sleep(0.001)
                    continue
                acknowledged[id] = number % 12
                ledger.settle(id, Charge(cost_nano=number % 12))

        await asyncio.gather(*(worker(f"{n}") for n in range(8)))
        disk.fault = lambda operation, file: None
        await ledger.drain()
        spent = sum(acknowledged.values())
        assert {(spent, held) for _, spent, held in of(ledger)} == {(spent, 0)}
        assert ledger.audit() == ()
    assert on_the_disk(tmp_path) == {id: ("settled", cost) for id, cost in acknowledged.items()}
    assert list(audit(tmp_path / "ledger.sqlite")) == []
    assert len(acknowledged) > 50
    assert refused > 5


async def test_a_commit_whose_outcome_is_unknown_is_looked_up_and_counts_once(tmp_path: Path, disk: Disk) -> None:
    async with opened(tmp_path, disk) as ledger:
        await ledger.hold(a_hold("a", 10))
        writer = ledger._writer
        commit = writer._commit

        def commits_and_fails(connection: apsw.Connection, rows: Any) -> None:
            commit(connection, rows)
            writer._commit = commit  # type: ignore[method-assign]
            raise BROKEN

        writer._commit = commits_and_fails  # type: ignore[method-assign]
        ledger.settle("a", Charge(cost_nano=7))
        assert await ledger.hold(a_hold("b", 10)) is None, "it is in the file, so it is held"
        assert (ledger.faults, ledger.last_error) == (0, "")

        def commits_and_goes_dark(connection: apsw.Connection, rows: Any) -> None:
            commit(connection, rows)
            writer._commit = commit  # type: ignore[method-assign]
            writer._vfs = "no such disk"
            raise BROKEN

        writer._commit = commits_and_goes_dark  # type: ignore[method-assign]
        ledger.settle("b", Charge(cost_nano=8))
        with pytest.raises(Unavailable):
            await ledger.hold(a_hold("c", 10))
        writer._vfs = disk.name
        await sound_again(ledger)
        assert on_the_disk(tmp_path) == {"a": ("settled", 7), "b": ("settled", 8)}, "c was refused, so it is not held"
        assert {(spent, held) for _, spent, held in of(ledger)} == {(15, 0)}
    assert list(audit(tmp_path / "ledger.sqlite")) == []


def mount(*arguments: str | Path) -> bool:
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    if sys.platform != "linux" or not mount("-t", "tmpfs", "-o", "size=2m", "tierwise-test", folder):
        pytest.skip("nothing may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


async def test_on_a_full_disk_the_reserve_lets_calls_under_way_settle(small: Path) -> None:
    ledger = SqliteLedger(small / "ledger.sqlite", path_of(10**6), reserve_bytes=512 << 10)
    acknowledged = []
    with pytest.raises(Unavailable):
        for n in range(100_000):
            assert await ledger.hold(a_hold(f"{n}", 1, model="m" * 2_000)) is None
            acknowledged.append(f"{n}")
    for id in acknowledged[:50]:
        ledger.settle(id, Charge(cost_nano=1))
    await ledger.drain()
    assert "no room" in ledger.last_error
    with pytest.raises(Unavailable):
        await ledger.hold(a_hold("more", 1))
    kept = on_the_disk(small)
    assert set(kept) == set(acknowledged)
    assert {id for id, (state, _) in kept.items() if state == "settled"} == set(acknowledged[:50])
    assert mount("-o", "remount,size=8m", small)
    await sound_again(ledger)
    assert await ledger.hold(a_hold("more", 1)) is None
    assert beside(ledger.path, "reserve").stat().st_size == 512 << 10
    await ledger.close()
    assert list(audit(ledger.path)) == []


# ---------------------------------------------------------------------------------- D4


async def test_a_disk_that_does_not_answer_refuses_who_waits_and_holds_nothing_of_theirs(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, disk) as ledger:
        await ledger.hold(a_hold("under way", 10))
        monkeypatch.setattr(commits, "STUCK_S", 0.01)
        answers = threading.Event()
        disk.before = lambda: answers.wait(20) and None
        ledger.settle("under way", Charge(cost_nano=5))
        waits = asyncio.create_task(ledger.hold(a_hold("a", 10)))
        for _ in range(3):  # it asks, its commit is cut off, and begins
            await asyncio.sleep(0)
        assert ledger._writing is not None
        with pytest.raises(Unavailable):
            await ledger.claim(ADA, "key", "f", "d")  # for the commit after that one
        with pytest.raises(Unavailable):
            await waits
        with pytest.raises(Unavailable):
            await ledger.hold(a_hold("b", 10))
        assert ledger.open_holds() == 0
        assert "has not answered" in ledger.last_error
        answers.set()
        monkeypatch.setattr(commits, "STUCK_S", 10.0)
        await sound_again(ledger)
        assert await ledger.hold(a_hold("c", 10)) is None
        assert await ledger.claim(ADA, "key", "f", "again") is None, "who was refused has not used the key"
        await ledger.drain()
        assert on_the_disk(tmp_path) == {"under way": ("settled", 5), "a": ("released", 0), "c": ("open", 0)}
    assert list(audit(tmp_path / "ledger.sqlite")) == []


async def test_who_is_locked_out_by_another_program_is_refused_and_comes_back(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "LEDGER", msgspec.structs.replace(ledger_file.LEDGER, busy_ms=20))
    async with opened(tmp_path, disk) as ledger:
        await ledger.hold(a_hold("a", 10))
        other = apsw.Connection(str(ledger.path))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable):
            await ledger.hold(a_hold("b", 10))
        assert "locked" in ledger.last_error
        other.execute("ROLLBACK")
        other.close()
        await sound_again(ledger)
        assert await ledger.hold(a_hold("b", 10)) is None


async def test_a_file_that_cannot_be_read_refuses_and_changes_nothing(tmp_path: Path, disk: Disk) -> None:
    async with opened(tmp_path, disk) as ledger:
        await ledger.hold(a_hold("a", 10))
        ledger._reader.close(True)
        with pytest.raises(Unavailable):
            await ledger.hold(a_hold("b", 10, session="one that memory does not know"))
        ledger.settle("never held", Charge(cost_nano=4))
        assert (ledger.open_holds(), ledger.audit()) == (1, ())
        assert ledger.balances(ADA, Hints(session="s", workflow="w"))[0].held_nano == 10


# ---------------------------------------------------------------------------------- D5, D6

START = """
import sys
from pathlib import Path
from tierwise.core.errors import ConfigError
from tierwise.stores.ledger.sqlite import SqliteLedger
try:
    SqliteLedger(Path(sys.argv[1]), reserve_bytes=1).close_now()
    print("opened")
except ConfigError as error:
    print(error)
"""


def test_a_second_process_is_refused_and_told_who_holds_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = SqliteLedger(path, reserve_bytes=1)
    with pytest.raises(ConfigError, match="holds this ledger"):
        SqliteLedger(path, reserve_bytes=1)
    told = subprocess.run([sys.executable, "-c", START, str(path)], capture_output=True, text=True, check=True).stdout
    assert f"process {os.getpid()} on " in told
    assert "holds this ledger; stop it" in told
    ledger.close_now()
    told = subprocess.run([sys.executable, "-c", START, str(path)], capture_output=True, text=True, check=True).stdout
    assert told == "opened\n"


@pytest.mark.parametrize("what", ["ledger.sqlite.lock", "ledger.sqlite"])
async def test_whoever_loses_its_lock_or_its_file_writes_no_more(tmp_path: Path, what: str) -> None:
    """Or two processes would each spend the whole budget, or one would go on in a file that nobody finds again."""
    first = SqliteLedger(tmp_path / "ledger.sqlite", path_of(100), reserve_bytes=1)
    assert await first.hold(a_hold("a", 60)) is None
    (tmp_path / what).unlink()
    with pytest.raises(Unavailable):
        await first.hold(a_hold("b", 10))
    assert "deleted or replaced" in first.last_error
    if what == "ledger.sqlite":
        assert not (tmp_path / what).exists()  # no second ledger is begun in its place
        first.close_now()
        return
    second = SqliteLedger(tmp_path / "ledger.sqlite", path_of(100), reserve_bytes=1)
    denial = await second.hold(a_hold("c", 60))
    assert denial is not None and denial.held_nano == 60
    assert await second.hold(a_hold("d", 40)) is None
    first.close_now()
    second.close_now()
    assert list(audit(tmp_path / "ledger.sqlite")) == []


async def a_small_ledger(folder: Path) -> Path:
    ledger = SqliteLedger(folder / "ledger.sqlite", path_of(10**6), lambda: float(NOON), reserve_bytes=1)
    for n in range(50):
        await ledger.hold(a_hold(f"{n}", 10))
        if n % 2:
            ledger.settle(f"{n}", Charge(cost_nano=n % 9))
    await ledger.close()
    return ledger.path


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4096)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def noise(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(16 << 10))


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (cut_off, "no sound ledger"),
    (emptied, "gone or empty"),
    (Path.unlink, "gone or empty"),
    (noise, "sound"),
    (lambda path: path.write_bytes(b"SQLite format 4\0" * 512) and None, "no sound ledger"),
]


@pytest.mark.parametrize(("damage", "told"), DAMAGE)
async def test_a_damaged_file_is_refused_with_what_to_do(
    tmp_path: Path, damage: Callable[[Path], None], told: str
) -> None:
    path = await a_small_ledger(tmp_path)
    damage(path)
    for _ in range(2):
        with pytest.raises(ConfigError, match=rf"(?s){told}.*put a backup in its place"):
            SqliteLedger(path, reserve_bytes=1)


async def test_a_ledger_that_lost_its_log_is_refused(tmp_path: Path) -> None:
    path = await a_small_ledger(tmp_path)
    ledger = SqliteLedger(path, path_of(10**6), reserve_bytes=1)
    await ledger.hold(a_hold("last", 10))
    copy = tmp_path / "copied without its -wal"
    copy.mkdir()
    for kept in (path, beside(path, "lock")):
        shutil.copy(kept, copy)
    ledger.close_now()
    with pytest.raises(ConfigError, match="the last 1 commits are missing"):
        SqliteLedger(copy / path.name, reserve_bytes=1)


async def test_flipped_bytes_never_make_another_balance(tmp_path: Path) -> None:
    path = await a_small_ledger(tmp_path)
    sound = path.read_bytes()
    ledger = SqliteLedger(path, path_of(10**6), reserve_bytes=1)
    balances = of(ledger)
    ledger.close_now()
    disk = Disk("tests/flips", seed=3)
    refused = 0
    for _ in range(80):
        data = bytearray(sound)
        data[disk.random.randrange(len(data))] ^= 1 << disk.random.randrange(8)
        path.write_bytes(data)
        for old in path.parent.glob("ledger.sqlite-*"):
            old.unlink()
        try:
            ledger = SqliteLedger(path, path_of(10**6), reserve_bytes=1)
        except ConfigError:
            refused += 1
            continue
        assert of(ledger) == balances
        ledger.close_now()
    disk.unregister()
    assert refused > 10
