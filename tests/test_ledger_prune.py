"""A ledger that runs for years stays small: what is long past goes, in pieces, and nothing else does."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.ledgers import NOON, Clock, a_hold, of, path_of
from tests.support.older_ledger import made_older
from tierwise.core.budget import Budget, Charge, Window
from tierwise.core.keys import budget_id
from tierwise.core.ports import CLAIM_S
from tierwise.stores.ledger import commits, prune, sql, writer
from tierwise.stores.ledger.audit import audit
from tierwise.stores.ledger.books import SUSPENSE_S
from tierwise.stores.ledger.file import LEDGER, log_of
from tierwise.stores.ledger.prune import KEPT_S, Pruner, has_ended
from tierwise.stores.ledger.reports import READ_CALLS
from tierwise.stores.ledger.sqlite import SqliteLedger
from tierwise.stores.ledger.windows import DAY_S, rolling_part, window_of
from tierwise.stores.sqlite_file import open_file

BUDGETS = (
    *path_of(10**9),
    Budget(scope="user", limit_nano=10**9, window="minute", rolling=True),
    Budget(scope="key", calls=10**6, window="hour"),
    Budget(scope="user", limit_nano=10**9, window="day", zone="Europe/Berlin"),
    Budget(scope="team", limit_nano=10**9, window="month"),
    Budget(scope="organisation", limit_nano=10**9, window="month", rolling=True),
    Budget(scope="request", limit_nano=10**6),
)
YEAR_S = 366 * DAY_S


def a_ledger(folder: Path, clock: Callable[[], float], budgets: tuple[Budget, ...] = BUDGETS) -> SqliteLedger:
    return SqliteLedger(folder / "ledger.sqlite", budgets, clock, reserve_bytes=1, lease_s=3_600)


async def some_calls(ledger: SqliteLedger, at_s: int, number: int = 7) -> None:
    """Settled, estimated, above their hold, given back, on a price of another model; all in windows of their own."""
    names = [f"{at_s}-{n}" for n in range(number)]
    holds = [a_hold(name, 50, at_s=at_s, request_limit_nano=100) for name in names]
    assert set(await asyncio.gather(*map(ledger.hold, holds))) == {None}
    for n, name in enumerate(names):
        match n % 7:
            case 1:
                ledger.settle(name, Charge(cost_nano=0, kind="released"))
            case 2:
                ledger.settle(name, Charge(cost_nano=500, kind="estimated"))
            case 3:
                ledger.settle(name, Charge(cost_nano=7, billed="m-2"))
            case _:
                ledger.settle(name, Charge(cost_nano=n))
    await ledger.drain()


async def pruned(ledger: SqliteLedger) -> None:
    ledger._do_errands()
    await ledger.drain()
    async with asyncio.timeout(10):
        while ledger._writer._pruner.is_busy:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.001)


def counted(path: Path) -> dict[str, int]:
    with apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY) as connection:
        found = {
            name: int(connection.execute(f"SELECT count(*) FROM {name}").get)  # type: ignore[call-overload]  # noqa: S608
            for name in ("entry", "hold", "account", "fact", "pruned")
        }
        found["requests"] = int(
            connection.execute("SELECT count(*) FROM account WHERE line LIKE '%request%'").get  # type: ignore[call-overload]
        )
    return found


def calls_of(path: Path) -> list[tuple[Any, ...]]:
    """(day, model, cost, calls) as `reconcile` reads them, whether their holds are still there or not."""
    sums: dict[tuple[int, str], tuple[int, int]] = {}
    with apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY) as connection:
        for day, model, cost, calls in connection.execute(READ_CALLS, (0, 1 << 40, 1, "m")):
            before = sums.get((day, model), (0, 0))
            sums[day, model] = (before[0] + cost, before[1] + calls)
    return sorted((*place, *found) for place, found in sums.items())


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "IDLE_S", 0.0)


# ------------------------------------------------------------------------------------------------ what goes


async def test_a_year_of_calls_leaves_the_file_no_larger_than_two_months(tmp_path: Path, at_once: None) -> None:
    clock = Clock()
    ledger = a_ledger(tmp_path, clock)
    await ledger.grant("g1", "team", "search", 5_000_000)
    await some_calls(ledger, clock.at_s)
    rows, calls = [], []
    for week in range(53):
        for day in (0, 3):
            clock.at_s = NOON + (7 * week + day) * DAY_S + 60
            await some_calls(ledger, clock.at_s)
        spent = of(ledger)
        calls += [each for each in calls_of(ledger.path) if each[0] == clock.at_s // DAY_S]
        await pruned(ledger)
        assert of(ledger) == spent
        rows.append(counted(ledger.path))
        if week % 13 == 0:
            assert list(audit(ledger.path)) == []
            await ledger.close()
            ledger = a_ledger(tmp_path, clock)
            assert of(ledger) == spent
    most = {name: max(each[name] for each in rows[10:]) for name in rows[0]}
    weeks = KEPT_S // DAY_S // 7 + 2
    assert most["hold"] <= weeks * 2 * 7 + 1
    assert most["account"] <= (weeks + 5) * 2 * 4 + 10
    assert most["fact"] <= weeks * 2 + 5
    assert most["requests"] == 0, "what one request came to is nobody's business after it"
    assert rows[-1]["entry"] >= 53 * 2 * (6 + 1), "the entries stay"
    told = {each[:2]: each for each in calls_of(ledger.path)}
    assert [told[each[:2]] for each in calls] == calls, "and what each day and model came to"
    assert not await ledger.grant("g1", "team", "search", 5_000_000), "a top-up counts once, however long ago it was"
    await ledger.close()
    assert list(audit(ledger.path)) == []


async def a_ledger_with_a_past(folder: Path) -> Path:
    """Half of it a year old, half of it of today, with one call that was never told and one corrected today."""
    clock = Clock()
    ledger = a_ledger(folder, clock)
    await ledger.grant("g1", "team", "search", 5_000_000)
    for day in range(6):
        clock.at_s = NOON + day * DAY_S
        await some_calls(ledger, clock.at_s)
    await ledger.hold(a_hold("never told", 9, at_s=clock.at_s))
    clock.at_s = NOON + YEAR_S
    await some_calls(ledger, clock.at_s)
    assert await ledger.correct(f"{NOON}-0", 3, "late truth")
    await ledger.close()
    return ledger.path


def pieces(path: Path, before_s: int) -> int:
    """Every piece by a pruner of its own, as after a restart; the file is sound in between."""
    done = 0
    connection = open_file(path, LEDGER)
    try:
        while True:
            pruner = Pruner()
            pruner.begin(before_s)
            changes = connection.total_changes()
            while pruner.is_busy and connection.total_changes() == changes:
                pruner.piece(connection)
            if connection.total_changes() == changes:
                return done
            done += 1
            assert list(audit(path)) == []
    finally:
        connection.close()


async def test_what_one_process_leaves_undone_the_next_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("PIECE_HOLDS", 4), ("PIECE_ACCOUNTS", 3), ("LOOKED_AT", 5)):
        monkeypatch.setattr(prune, name, size)
    path = await a_ledger_with_a_past(tmp_path)
    before, calls = counted(path), calls_of(path)
    assert pieces(path, NOON + 300 * DAY_S) > 12
    assert calls_of(path) == calls
    after = counted(path)
    assert (after["entry"], after["hold"]) == (before["entry"], 10), "7 of today, a top-up, an open and a corrected one"
    # Of four days a minute, an hour, a day and a part of a month. On the first one something was corrected today, on
    # the last one somebody still holds something.
    assert after["account"] == before["account"] - 4 * 4
    ledger = a_ledger(tmp_path, Clock(NOON + YEAR_S))
    assert await ledger.correct(f"{NOON}-0", 4, "later truth"), "its accounts are still there"
    assert not await ledger.correct(f"{NOON}-4", 4)
    ledger.settle("never told", Charge(cost_nano=8))
    await ledger.close()
    assert ledger.audit() == ()
    assert list(audit(path)) == []


async def test_killed_at_each_statement_a_piece_is_done_or_not(tmp_path: Path) -> None:
    path = await a_ledger_with_a_past(tmp_path)
    connection = open_file(path, LEDGER)
    images: list[Path] = []

    def look(_: Any, statement: str, __: Any) -> bool:
        to = tmp_path / f"{len(images)}"
        to.mkdir()
        for each in (path, log_of(path)):
            shutil.copy(each, to)
        images.append(to / path.name)
        return True

    connection.exec_trace = look
    pruner = Pruner()
    pruner.begin(NOON + 300 * DAY_S)
    while pruner.is_busy:
        pruner.piece(connection)
    connection.exec_trace = None
    connection.close()
    assert len(images) >= 10
    for image in images:
        assert list(audit(image)) == []
        pieces(image, NOON + 300 * DAY_S)
        assert (counted(image), calls_of(image)) == (counted(path), calls_of(path))


ANY = "SELECT id FROM hold WHERE closed_s < ? AND substr(id, 1, 6) != 'grant ' LIMIT ?"
EVERY = "SELECT line, subject, start_s, 1 FROM account WHERE ? AND (line, subject, start_s) > (?, ?, ?) LIMIT ?"


@pytest.mark.parametrize(
    ("name", "mutant", "sentence"),
    [
        ("CLOSED_BEFORE", ANY, "held by 1 calls, but its open holds are 0"),
        ("ACCOUNTS_AFTER", EVERY, "'search': credit of 0 n$, but its top-ups sum to 5000000"),
        ("ACCOUNTS_AFTER", EVERY, "organisation[]/lifetime 'acme': posted 0 n$"),
        ("COUNT_PRUNED", "SELECT ?", "0 holds with 0 n$ on all accounts were let go of, but 35 are gone"),
        ("PRUNED_S", "SELECT ?", "has entries and is not in the ledger"),
    ],
)
async def test_a_pruner_that_takes_too_much_is_found_by_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mutant: str, sentence: str
) -> None:
    path = await a_ledger_with_a_past(tmp_path)
    monkeypatch.setattr(sql, name, mutant)
    if mutant == EVERY:
        monkeypatch.setattr(prune, "has_ended", lambda line, start_s, before_s: True)
        monkeypatch.setattr(sql, "drop_accounts", lambda many: sql_without_care(many))
    connection = open_file(path, LEDGER)
    pruner = Pruner()
    pruner.begin(NOON + 300 * DAY_S)
    for _ in range(2):
        pruner.piece(connection)
    connection.close()
    found = list(audit(path))
    assert any(sentence in each for each in found), found


def sql_without_care(many: int) -> str:
    return f"DELETE FROM account WHERE (line, subject, start_s) IN (VALUES {', '.join(['(?, ?, ?)'] * many)})"  # noqa: S608


async def test_whoever_is_deleted_by_hand_is_missed_also_long_after(tmp_path: Path) -> None:
    """Pruned or not: the holds that went were counted."""
    path = await a_ledger_with_a_past(tmp_path)
    pieces(path, NOON + 3 * DAY_S)
    with apsw.Connection(str(path)) as connection:
        connection.execute("UPDATE state SET pruned_s = ?", (NOON + 300 * DAY_S,))
        assert list(audit(path)) == []
        connection.execute("DELETE FROM hold WHERE id = ?", (f"{NOON + 4 * DAY_S}-4",))
    assert [each for each in audit(path) if "were let go of" in each]


AS_BEFORE = (
    "ALTER TABLE state DROP COLUMN pruned_s",
    "ALTER TABLE account DROP COLUMN written_s",
    "DROP TABLE pruned",
    "DROP INDEX hold_closed",
    "UPDATE schema_version SET version = 2",
    f"UPDATE hold SET closed_s = {NOON} WHERE id = '{NOON}-0'",  # noqa: S608  # a correction did not count as an end
    """INSERT INTO account SELECT line, subject, start_s, NULL, NULL, sum(amount_nano), 0, 0, 0, 0, 1, 1, 0, 1, '[]'
       FROM entry WHERE line LIKE '%request%' GROUP BY 1, 2, 3""",
)


async def test_a_ledger_that_was_never_pruned_is_brought_to_it(tmp_path: Path) -> None:
    path = await a_ledger_with_a_past(tmp_path)
    made_older(path)
    sound = counted(path)
    with apsw.Connection(str(path)) as connection:
        for statement in AS_BEFORE:
            connection.execute(statement)
    connection.close()
    open_file(path, LEDGER).close()
    assert counted(path) == sound
    assert list(audit(path)) == []
    pieces(path, NOON + 300 * DAY_S)
    assert counted(path)["hold"] == 10
    assert counted(path)["account"] == sound["account"], "nobody knows since when nothing happened on them"
    assert list(audit(path)) == []


async def test_while_there_is_always_something_to_write_pruning_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_ledger_with_a_past(tmp_path)
    monkeypatch.setattr(writer, "IDLE_S", 3_600.0)
    monkeypatch.setattr(prune, "PAUSE_S", 0.0)
    ledger = a_ledger(tmp_path, Clock(NOON + YEAR_S))
    ledger._do_errands()
    for n in range(4):
        await ledger.hold(a_hold(f"{n}", 1, at_s=NOON + YEAR_S))
    await ledger.close()
    assert counted(ledger.path)["hold"] == 10 + 4
    assert list(audit(ledger.path)) == []


# ------------------------------------------------------------------------------------------------ what stays


def test_a_call_is_kept_longer_than_anything_asks_for_it() -> None:
    assert KEPT_S > CLAIM_S
    assert KEPT_S > SUSPENSE_S
    assert KEPT_S > 32 * DAY_S, "a month in any zone"


async def test_an_id_counts_once_and_a_call_is_corrected_as_long_as_it_is_kept(tmp_path: Path, at_once: None) -> None:
    clock = Clock()
    ledger = a_ledger(tmp_path, clock)
    for id in ("a", "b"):
        await ledger.hold(a_hold(id, 50))
        ledger.settle(id, Charge(cost_nano=5))
    await ledger.drain()
    clock.at_s += KEPT_S
    await pruned(ledger)
    assert await ledger.hold(a_hold("a", 50, at_s=clock.at_s)) is None
    assert (ledger.open_holds(), ledger.ignored) == (0, 0), "the first one stands"
    assert await ledger.correct("b", 6)
    clock.at_s += prune.AGAIN_S
    await pruned(ledger)
    assert not await ledger.correct("a", 6), "also while it is still in memory"
    ledger.settle("a", Charge(cost_nano=6))
    clock.at_s += KEPT_S - prune.AGAIN_S
    assert await ledger.correct("b", 7), "counted from the last that was posted for it"
    await ledger.close()
    assert ledger.audit() == ()
    assert list(audit(ledger.path)) == []


WINDOWS: tuple[Window, ...] = ("minute", "hour", "day", "week", "month")


@settings(max_examples=200)
@given(
    window=st.sampled_from(WINDOWS),
    rolling=st.booleans(),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Pacific/Apia", "Asia/Kathmandu"]),
    held_s=st.integers(NOON, NOON + 3 * YEAR_S),
    later_s=st.integers(0, 80 * DAY_S),
)
def test_a_window_has_ended_when_nothing_counts_it_any_more(
    window: Window, rolling: bool, zone: str, held_s: int, later_s: int
) -> None:
    budget = Budget(scope="user", window=window, rolling=rolling, zone="UTC" if rolling else zone)

    def counts_from(at_s: int) -> tuple[int, int]:
        """(start of the account, start of the first that counts)"""
        return rolling_part(window, at_s)[:2] if rolling else (window_of(window, at_s, zone)[0],) * 2

    start_s = counts_from(held_s)[0]
    if has_ended(budget_id(budget), start_s, held_s + later_s):
        assert counts_from(held_s + later_s)[1] > start_s
    assert has_ended(budget_id(budget), start_s, held_s + 70 * DAY_S)


@pytest.mark.parametrize("line", ["session[]/lifetime", "credit/team", "variance/openai", "key[key=/minute]/lifetime"])
def test_what_has_no_end_never_ends(line: str) -> None:
    assert not has_ended(line, -(1 << 62), 1 << 40)


async def test_a_clock_before_what_was_let_go_of_spends_nothing_twice_and_is_told(
    tmp_path: Path, at_once: None, caplog: pytest.LogCaptureFixture
) -> None:
    await a_ledger_with_a_past(tmp_path)
    clock = Clock(NOON + YEAR_S)
    ledger = a_ledger(tmp_path, clock)
    await pruned(ledger)
    await ledger.close()
    assert not caplog.messages
    clock.at_s = NOON + DAY_S
    ledger = a_ledger(tmp_path, clock)
    assert "the clock is 330.0 days behind" in caplog.text, "or nobody knows why no budget begins anew"
    await some_calls(ledger, clock.at_s + 1)
    assert await ledger.vary("v1", budget_id(BUDGETS[8]), "search", 5, "a bill")
    await ledger.close()
    assert ledger.audit() == ()
    assert list(audit(ledger.path)) == []


def test_a_clock_that_is_years_ahead_forgets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOON + 10.0 * YEAR_S)
    monkeypatch.setattr(time, "monotonic", lambda: 1_000.0)
    believed, new = commits._believed(time.time, NOON), commits._believed(time.time, None)
    monkeypatch.setattr(time, "monotonic", lambda: 1_060.0)
    assert believed() == NOON + 60
    assert new() == NOON + 10 * YEAR_S, "a ledger without a past has none to lose"
