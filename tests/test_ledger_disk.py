"""What a power cut, a kill or a restart leaves of the durable ledger: all that was acknowledged, and sound books."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from tests.support.ledgers import ADA, NEW_YEAR, NOON, a_hold, of, path_of
from tests.support.powercut import Disk
from tierwise.core.budget import Budget, Charge
from tierwise.core.errors import Closed, ConfigError
from tierwise.core.money import Usage
from tierwise.core.request import Hints, Payer
from tierwise.stores.ledger import file as ledger_file
from tierwise.stores.ledger import sql as ledger_sql
from tierwise.stores.ledger.audit import audit
from tierwise.stores.ledger.sqlite import SqliteLedger
from tierwise.stores.ledger.windows import DAY_S
from tierwise.stores.ledger.writer import put_many


@asynccontextmanager
async def opened(folder: Path, *budgets: Budget, now_s: int = NOON, **options: Any) -> AsyncIterator[SqliteLedger]:
    options = {"reserve_bytes": 1, **options}
    ledger = SqliteLedger(folder / "ledger.sqlite", budgets, lambda: float(now_s), **options)
    try:
        yield ledger
    finally:
        await ledger.close()


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    with apsw.Connection(str(folder / "ledger.sqlite")) as connection:
        return connection.execute(query).fetchall()


# ---------------------------------------------------------------------------------- restart (C2, C5, B10)

DAY = Budget(scope="team", limit_nano=100, window="day")
HOUR = Budget(scope="user", limit_nano=90, window="hour", rolling=True)
SESSION = Budget(scope="session", limit_nano=80, steps=3)


async def test_what_was_spent_and_held_is_there_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path, DAY, HOUR, SESSION) as ledger:
        await ledger.hold(a_hold("a", 30))
        ledger.settle("a", Charge(cost_nano=20, usage=Usage(input_tokens=7)))
        await ledger.hold(a_hold("b", 40, least_nano=5))
        before = ledger.balances(ADA, Hints(session="s"))
    async with opened(tmp_path, DAY, HOUR, SESSION) as ledger:
        assert ledger.balances(ADA, Hints(session="s")) == before
        assert (ledger.open_holds(), ledger.books.in_suspense(), ledger.audit()) == (1, 1, ())
        denial = await ledger.hold(a_hold("c", 21))
        assert denial is not None
        assert (denial.scope, denial.code, denial.held_nano, denial.spent_nano) == ("session", "held_by_others", 40, 20)
        ledger.settle("b", Charge(cost_nano=10))
        await ledger.drain()
        assert {(spent, held) for _, spent, held in of(ledger)} == {(30, 0)}
        assert await ledger.hold(a_hold("c", 50)) is None
        assert ledger.audit() == ()
    assert list(audit(tmp_path / "ledger.sqlite")) == []


async def test_an_old_windows_hold_settles_into_its_own_row_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path, DAY) as ledger:
        await ledger.hold(a_hold("old", 60))
    async with opened(tmp_path, DAY, now_s=NEW_YEAR) as ledger:
        assert await ledger.hold(a_hold("new", 100, at_s=NEW_YEAR)) is None
        ledger.settle("old", Charge(cost_nano=50))
        await ledger.drain()
        assert of(ledger) == [("team", 0, 100)]
    assert rows(tmp_path, "SELECT start_s, posted_nano, pending_nano FROM account ORDER BY start_s") == [
        (NEW_YEAR - DAY_S, 50, 0),
        (NEW_YEAR, 0, 100),
    ]
    assert list(audit(tmp_path / "ledger.sqlite")) == []


async def test_a_call_whose_end_nobody_saw_counts_for_a_day_and_then_at_its_least(tmp_path: Path) -> None:
    async with opened(tmp_path, SESSION) as ledger:
        await ledger.hold(a_hold("a", 50, least_nano=3))
        ledger.checkpoint("a", 9)
    async with opened(tmp_path, SESSION, now_s=NOON + DAY_S - 1) as ledger:
        ledger._do_errands()
        assert of(ledger) == [("session", 0, 50)]
    async with opened(tmp_path, SESSION, now_s=NOON + DAY_S) as ledger:
        ledger._do_errands()
        assert of(ledger) == [("session", 9, 0)]
        await ledger.drain()
        ledger.settle("a", Charge(cost_nano=33))  # the truth, late
        ledger.settle("a", Charge(cost_nano=34))
        assert of(ledger) == [("session", 33, 0)]
    kinds = rows(tmp_path, "SELECT kind, amount_nano FROM entry ORDER BY seq")
    assert kinds == [("suspense", 9), ("correction", 24)]


async def test_a_clock_that_is_set_forward_gives_up_no_call_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or what is held for it would be held again for another, and both come to be paid."""
    now = [float(NOON)]
    monkeypatch.setattr(time, "time", lambda: now[0])
    ledger = SqliteLedger(tmp_path / "ledger.sqlite", path_of(100), time.time, reserve_bytes=1)
    await ledger.hold(a_hold("a", 90, least_nano=1))
    now[0] += 2 * DAY_S
    for _ in range(2):
        ledger._do_errands()
    assert ledger.open_holds() == 1
    denial = await ledger.hold(a_hold("b", 90, at_s=NOON + 2 * DAY_S))
    assert denial is not None and denial.code == "held_by_others"
    await ledger.close()


async def test_a_hold_older_than_its_lease_is_in_suspense_and_still_counts(tmp_path: Path) -> None:
    async with opened(tmp_path, SESSION, lease_s=60) as ledger:
        await ledger.hold(a_hold("old", 10, at_s=NOON - 61))
        await ledger.hold(a_hold("young", 10, at_s=NOON - 60))
        ledger._do_errands()
        assert (ledger.books.in_suspense(), of(ledger)) == (1, [("session", 0, 20)])
        await ledger.drain()
        assert rows(tmp_path, "SELECT id FROM hold WHERE state = 'suspense'") == [("old",)]


async def test_credits_and_corrections_outlive_the_process_and_an_id_counts_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        assert await ledger.grant("g1", "user", "ada", 100)
        await ledger.hold(a_hold("a", 60))
        ledger.settle("a", Charge(cost_nano=60))
    async with opened(tmp_path) as ledger:
        assert not await ledger.grant("g1", "user", "ada", 100)
        assert await ledger.correct("a", 25, "invoice of May")
        (credit,) = ledger.balances(ADA, Hints())
        assert (credit.limit_nano, credit.spent_nano, credit.left_nano) == (100, 25, 75)
        denial = await ledger.hold(a_hold("b", 76))
        assert denial is not None
        assert denial.code == "credit_exhausted"
        assert await ledger.grant("g2", "user", "ada", 1)
        assert await ledger.hold(a_hold("b", 76)) is None
    assert list(audit(tmp_path / "ledger.sqlite")) == []


async def test_accounts_that_memory_forgot_are_found_in_the_file_or_on_the_way_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierwise.stores.ledger.accounts.ACCOUNTS_KEPT", 4)
    async with opened(tmp_path, Budget(scope="session", limit_nano=10)) as ledger:

        async def spend(n: int) -> None:
            assert await ledger.hold(a_hold(f"{n}", 10, session=f"{n}")) is None
            ledger.settle(f"{n}", Charge(cost_nano=10))

        await asyncio.gather(*(spend(n) for n in range(300)))  # not all of it is written yet
        for n in range(300):
            assert await ledger.hold(a_hold(f"again {n}", 1, session=f"{n}")) is not None
        assert len(next(iter(ledger.books._lines)).accounts) <= 5
        assert ledger.audit() == ()


async def test_the_prices_of_a_call_are_those_of_its_hold_whatever_they_are_when_it_is_settled(tmp_path: Path) -> None:
    async with opened(tmp_path, SESSION) as ledger:
        await asyncio.gather(*(ledger.hold(a_hold(f"{n}", 1, steps=0, snapshot="prices of May")) for n in range(30)))
        await ledger.hold(a_hold("new", 1, steps=0, snapshot="prices of June"))
        for id in (*map(str, range(30)), "new"):
            ledger.settle(id, Charge(cost_nano=1))
        await ledger.correct("0", 2)
    counted = rows(tmp_path, "SELECT snapshot, kind, count(*) FROM entry GROUP BY 1, 2 ORDER BY 1, 2")
    assert counted == [
        ("prices of June", "reported", 1),
        ("prices of May", "correction", 1),
        ("prices of May", "reported", 30),
    ]
    assert rows(tmp_path, "SELECT count(*) FROM hold WHERE snapshot = 'prices of May'") == [(30,)]


async def test_an_idempotency_key_is_taken_once_also_after_a_restart_and_for_a_day(tmp_path: Path) -> None:
    bob = Payer(user="bob")
    async with opened(tmp_path) as ledger:
        answers = await asyncio.gather(*(ledger.claim(ADA, "k", "f", f"d{n}") for n in range(50)))
        assert answers.count(None) == 1
        assert await ledger.claim(bob, "k", "f", "d") is None
        ledger.finish(ADA, "k", "d0", charged=True)
        assert await ledger.claim(ADA, "free", "f", "d") is None
        ledger.finish(ADA, "free", "another's", charged=False)
        assert await ledger.claim(ADA, "free", "f", "d") is not None
        ledger.finish(ADA, "free", "d", charged=False)
        assert await ledger.claim(ADA, "free", "f2", "d2") is None
    async with opened(tmp_path, now_s=NOON + DAY_S - 1) as ledger:
        found = [await ledger.claim(ADA, key, "other", "other") for key in ("k", "free")]
        assert [(each.decision, each.fingerprint) for each in found if each] == [("d0", "f"), ("d2", "f2")]
    async with opened(tmp_path, now_s=NOON + DAY_S + 1) as ledger:
        ledger._do_errands()
        await ledger.drain()
        assert rows(tmp_path, "SELECT count(*) FROM request") == [(0,)]
        assert await ledger.claim(ADA, "k", "other", "other") is None


# ---------------------------------------------------------------------------------- group commit, and its end


async def test_ten_thousand_concurrent_holds_are_few_commits(tmp_path: Path) -> None:
    async with opened(tmp_path, *path_of(10_000)) as ledger:
        answers = await asyncio.gather(*(ledger.hold(a_hold(f"{n}", 10)) for n in range(10_000)))
        assert answers.count(None) == 1_000
        assert ledger.commits <= 3
        assert rows(tmp_path, "SELECT count(*), sum(amount_nano) FROM hold WHERE state = 'open'") == [(1_000, 10_000)]


async def test_a_hold_is_in_the_file_when_it_is_acknowledged(tmp_path: Path) -> None:
    async with opened(tmp_path, SESSION) as ledger:
        waiting = asyncio.ensure_future(ledger.hold(a_hold("a", 10)))
        await asyncio.sleep(0)
        assert ledger.open_holds() == 1
        assert not waiting.done()
        await waiting
        assert rows(tmp_path, "SELECT id FROM hold") == [("a",)]


async def test_after_its_end_a_ledger_takes_nothing_and_closing_twice_is_closing_once(tmp_path: Path) -> None:
    async with opened(tmp_path, SESSION) as ledger:
        await ledger.hold(a_hold("a", 10))
        ledger.settle("a", Charge(cost_nano=4))
    await ledger.close()
    ledger.close_now()
    with pytest.raises(Closed):
        await ledger.hold(a_hold("b", 10))
    assert rows(tmp_path, "SELECT state, cost_nano FROM hold") == [("settled", 4)]
    assert not (tmp_path / "ledger.sqlite-wal").exists()


async def test_what_is_left_is_written_without_an_event_loop_and_nothing_unanswered_is_held(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.sqlite", (SESSION,), reserve_bytes=1)
    await ledger.hold(a_hold("a", 10))
    waiting = asyncio.ensure_future(ledger.hold(a_hold("b", 10)))
    await asyncio.sleep(0)
    ledger.settle("a", Charge(cost_nano=4))
    ledger.close_now()
    with pytest.raises(Closed):
        await waiting
    assert rows(tmp_path, "SELECT id, state FROM hold") == [("a", "settled")]
    assert list(audit(tmp_path / "ledger.sqlite")) == []


async def test_names_with_every_character_are_kept_apart_and_impossible_ones_are_refused(tmp_path: Path) -> None:
    names = ["a", "a\0", "a\0b", "'; DROP TABLE hold; --", "\u2028", '"', "ä" * 500]
    async with opened(tmp_path, Budget(scope="session", limit_nano=10)) as ledger:
        for name in names:
            assert await ledger.hold(a_hold(f"{name}.1", 10, session=name)) is None
        with pytest.raises(ValueError, match="surrogates"):
            await ledger.hold(a_hold("x", 1, session="\ud800"))
    async with opened(tmp_path, Budget(scope="session", limit_nano=10)) as ledger:
        assert ledger.open_holds() == len(names)
        for name in names:
            assert await ledger.hold(a_hold(f"{name}.2", 1, session=name)) is not None
            ledger.settle(f"{name}.1", Charge(cost_nano=1))
    assert list(audit(tmp_path / "ledger.sqlite")) == []


# ---------------------------------------------------------------------------------- power cuts (D3)


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk("tests/powercut", seed=1)
    yield disk
    disk.unregister()


async def cuts(disk: Disk, folder: Path, many: int) -> tuple[int, list[str]]:
    """Cut the power at so many moments of a busy minute. Gives the number of operations that had been acknowledged in
    sum, and what was lost or unsound."""
    holds: set[str] = set()
    settled: dict[str, int] = {}
    images: list[tuple[Path, set[str], dict[str, int]]] = []
    chosen = random.Random(7)
    work = folder / "work"
    work.mkdir()

    def before() -> None:
        if len(images) < many and chosen.random() < 0.15:
            to = folder / f"image{len(images)}"
            known = (set(holds), dict(settled))
            disk.image(work, to)
            images.append((to, *known))

    ledger = SqliteLedger(work / "ledger.sqlite", path_of(10**9), reserve_bytes=1, vfs=disk.name)
    await ledger.hold(a_hold("first", 1))
    disk.before = before

    async def worker(name: str) -> None:
        number = 0
        while len(images) < many:
            id, number = f"{name}.{number}", number + 1
            assert await ledger.hold(a_hold(id, 10)) is None
            holds.add(id)
            ledger.settle(id, Charge(cost_nano=number % 13))
            if number % 3 == 0:
                await ledger.drain()
                settled[id] = number % 13

    await asyncio.gather(*(worker(f"w{n}") for n in range(4)))
    disk.before = lambda: None
    await ledger.close()
    return sum(len(each[1]) + len(each[2]) for each in images), [fault for each in images for fault in lost(*each)]


def lost(folder: Path, holds: set[str], settled: dict[str, int]) -> Iterator[str]:
    path = folder / "ledger.sqlite"
    try:
        ledger = SqliteLedger(path, path_of(10**9), reserve_bytes=1)
    except ConfigError as error:
        yield f"unsound: {error}"
        return
    yield from ledger.audit()
    ledger.close_now()
    yield from audit(path)
    kept = dict(rows(folder, "SELECT id, iif(state = 'settled', cost_nano, NULL) FROM hold"))
    yield from (f"lost hold {id}" for id in holds - kept.keys())
    yield from (f"lost settlement {id}" for id, cost in settled.items() if kept.get(id) != cost)


async def test_a_power_cut_loses_nothing_that_was_acknowledged(tmp_path: Path, disk: Disk) -> None:
    acknowledged, faults = await cuts(disk, tmp_path, 50)
    assert acknowledged > 500
    assert faults == []


@pytest.mark.parametrize("synchronous", ["off", "normal"])
async def test_the_law_of_power_cuts_is_able_to_fail(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, synchronous: str
) -> None:
    monkeypatch.setattr(ledger_file, "LEDGER", msgspec.structs.replace(ledger_file.LEDGER, synchronous=synchronous))
    _, faults = await cuts(disk, tmp_path, 20)
    assert faults


# ---------------------------------------------------------------------------------- kill -9 (C1)


async def test_a_killed_process_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    acknowledged = 0
    for seed in range(10):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "scripts.reliability.victim", str(path), str(seed), stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        lines = [await child.stdout.readline() for _ in range(20 + 40 * seed)]
        os.kill(child.pid, signal.SIGKILL)
        lines += (await child.stdout.read()).splitlines(keepends=True)
        await child.wait()
        said = [line.decode().split() for line in lines if line.endswith(b"\n") and b" " in line]
        acknowledged += len(said)
        ledger = SqliteLedger(path, path_of(10**15), reserve_bytes=1)
        assert ledger.audit() == ()
        ledger.close_now()
        assert list(audit(path)) == []
        known = {id: (state, cost) for id, state, cost in rows(tmp_path, "SELECT id, state, cost_nano FROM hold")}
        for what, id, *cost in said:
            match what:
                case "h":
                    assert id in known, "an acknowledged hold is gone"
                case "s":
                    assert known[id] == ("settled", int(cost[0]))
                case "r":
                    assert known[id] == ("released", 0)
    assert acknowledged > 1_000


# ---------------------------------------------------------------------------------- schema (C3)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    SqliteLedger(path, reserve_bytes=1).close_now()
    rows(tmp_path, "INSERT INTO schema_version VALUES (99)")
    with pytest.raises(ConfigError, match=r"newer Tierwise has written this ledger \(schema 99.*upgrade"):
        SqliteLedger(path, reserve_bytes=1)


def test_a_migration_that_breaks_off_leaves_the_old_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.sqlite"
    SqliteLedger(path, reserve_bytes=1).close_now()
    first = ledger_sql.MIGRATIONS

    def half(connection: apsw.Connection) -> None:
        connection.execute("ALTER TABLE hold ADD COLUMN mood TEXT")
        connection.execute("ALTER TABLE no_such_table ADD COLUMN mood TEXT")

    monkeypatch.setattr(ledger_sql, "MIGRATIONS", (*first, half))
    with pytest.raises(ConfigError, match="no_such_table"):
        SqliteLedger(path, reserve_bytes=1)
    monkeypatch.setattr(ledger_sql, "MIGRATIONS", first)
    SqliteLedger(path, reserve_bytes=1).close_now()
    assert "mood" not in str(rows(tmp_path, "SELECT sql FROM sqlite_schema"))


def modes_in(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


async def test_the_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    async with opened(tmp_path, SESSION) as ledger:
        await ledger.hold(a_hold("a", 1))
        await ledger.backup(tmp_path / "copy.sqlite")
        modes = modes_in(tmp_path)
    assert set(modes.values()) == {0o600}
    names = {"ledger.sqlite", "ledger.sqlite.lock", "ledger.sqlite.reserve", "ledger.sqlite-wal", "copy.sqlite"}
    assert names <= set(modes)


@pytest.mark.skipif(sys.platform != "linux", reason="only there a process is told which files it has open")
def test_a_commit_writes_to_the_ledgers_own_files_alone(tmp_path: Path) -> None:
    """What undoes a statement is in memory: it would be a file without a name, made anew in each commit of many."""
    connection = ledger_file.open_writer(tmp_path / "ledger.sqlite")
    for value in ("a", "b"):
        before = open_files()
        connection.execute("BEGIN IMMEDIATE")
        put_many(connection, ledger_sql.put_facts, [("traffic", f"{each}", value * 3_000) for each in range(64)])
        assert open_files() == before
        connection.execute("COMMIT")
    connection.close()


def open_files() -> set[str]:
    return {str(os.readlink(each)) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()}
