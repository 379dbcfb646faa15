"""A ledger that was written when an entry was on one account alone: brought to today's, or left as it was."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.ledgers import NOON, Clock, a_hold, of, path_of
from tests.support.older_ledger import VERSION, made_older, old_entries
from tierwise.core.budget import Budget, Charge
from tierwise.core.errors import ConfigError
from tierwise.stores.ledger import sql
from tierwise.stores.ledger.audit import audit
from tierwise.stores.ledger.books import SUSPENSE_S
from tierwise.stores.ledger.chain import NOTHING, chained, rechained
from tierwise.stores.ledger.file import LEDGER, entry_of
from tierwise.stores.ledger.prune import KEPT_S, Pruner
from tierwise.stores.ledger.sqlite import SqliteLedger
from tierwise.stores.ledger.windows import DAY_S
from tierwise.stores.sqlite_file import open_file

BUDGETS = (*path_of(10**9), Budget(scope="user", limit_nano=10**9, window="day"), Budget(scope="request"))


def a_ledger(folder: Path, clock: Clock) -> SqliteLedger:
    return SqliteLedger(folder / "ledger.sqlite", BUDGETS, clock, reserve_bytes=1, lease_s=3_600)


async def an_old_ledger(folder: Path, calls: int = 40) -> tuple[Path, Clock, list[tuple[str, int, int]]]:
    """Every kind of entry, of calls that are gone, that ended, and that are under way; and how ada stands."""
    clock = Clock()
    ledger = a_ledger(folder, clock)
    await ledger.grant("g1", "team", "search", 5_000_000)
    for day in (0, 50):
        clock.at_s = NOON + day * DAY_S
        await asyncio.gather(*(ledger.hold(a_hold(f"{day}.{n}", 50, at_s=clock.at_s)) for n in range(calls)))
        for n in range(1, calls):
            kind: Any = ("reported", "estimated", "released")[n % 3]
            ledger.settle(f"{day}.{n}", Charge(cost_nano=n * 3, kind=kind))
        await ledger.correct(f"{day}.3", 3, "invoice")
        await ledger.correct(f"{day}.2", 4, "made after all")
        await ledger.vary(f"v{day}", "variance/openai", "a day", -17, "invoice")
        clock.at_s += SUSPENSE_S + 1
        ledger._do_errands()
        ledger._do_errands()
    await ledger.hold(a_hold("under way", 7, at_s=clock.at_s))
    await ledger.close()
    let_go(ledger.path, clock.at_s - KEPT_S)
    assert inside(ledger.path)["pruned"], "some of it is history"
    ledger = a_ledger(folder, clock)
    spent = of(ledger)
    await ledger.close()
    assert list(audit(ledger.path)) == []
    made_older(ledger.path)
    return ledger.path, clock, spent


def let_go(path: Path, before_s: int) -> None:
    connection = open_file(path, LEDGER)
    pruner = Pruner()
    pruner.begin(before_s)
    while pruner.is_busy:
        pruner.piece(connection)
    connection.close()


def inside(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All that is in a file, by its tables."""
    with apsw.Connection(str(path)) as connection:
        schema = list(connection.execute("SELECT name, sql FROM sqlite_schema ORDER BY name"))
        tables = [name for name, text in schema if text.startswith("CREATE TABLE")]
        found = {name: list(connection.execute(f"SELECT * FROM {name}")) for name in tables}  # noqa: S608
    connection.close()
    return {"its schema": schema, **found}


async def test_every_entry_and_balance_of_an_old_ledger_is_there_after_it(tmp_path: Path) -> None:
    path, clock, spent = await an_old_ledger(tmp_path)
    before = old_entries(path)
    assert {row[7] for row in before} == {
        "reported", "estimated", "overage", "suspense", "correction", "variance", "grant"
    }  # fmt: skip
    ledger = a_ledger(tmp_path, clock)
    entries = list(ledger.entries())
    assert [
        (seq, e.at_s, e.hold, *account, e.amount_nano, e.kind, e.snapshot, e.note)
        for seq, e in entries
        for account in e.accounts
    ] == before
    assert of(ledger) == spent
    await ledger.close()
    assert list(audit(path)) == []


async def test_work_goes_on_in_a_ledger_that_was_old(tmp_path: Path) -> None:
    """Also with its calls: one is settled, one is corrected, and what is long past may go."""
    path, clock, _ = await an_old_ledger(tmp_path)
    ledger = a_ledger(tmp_path, clock)
    last = max(seq for seq, _ in ledger.entries())
    ledger.settle("under way", Charge(cost_nano=6))
    assert await ledger.correct("50.4", 1, "late truth")
    await ledger.drain()
    posted = dict(ledger.entries(last))
    assert [(seq - last, e.hold, len(e.accounts)) for seq, e in posted.items()] == [(1, "under way", 8), (2, "50.4", 8)]
    await ledger.close()
    assert ledger.audit() == ()
    assert list(audit(path)) == []
    let_go(path, clock.at_s + 1)
    with apsw.Connection(str(path)) as connection:
        assert connection.execute("SELECT count(*) FROM hold WHERE id NOT LIKE 'grant %'").get == 0
    connection.close()
    assert list(audit(path)) == []


BREAKS = (
    ("UPDATE entry SET amount_nano = amount_nano + 1 WHERE seq = 40", r"entry 40 \(hold '0\.\d+', \d+ n\$\) is not as"),
    ("UPDATE entry SET note = 'x' WHERE seq = 2", r"entry 2 .* is not as it was written"),
    ("UPDATE entry SET hash = randomblob(32) WHERE seq = 40", r"entry 40 .* is not as it was written"),
    ("DELETE FROM entry WHERE seq BETWEEN 40 AND 44", r"entries 40 to 44 are missing"),
    ("DELETE FROM entry WHERE seq > 100", r"the entries end at 100 and not, as they did, at \d+"),
    ("DELETE FROM entry", r"the entries end at 0 and not"),
    ("UPDATE state SET hash = randomblob(32)", r"the entries end at"),
    ("DELETE FROM state", r"the entries end at \d+ and not, as they did, at 0"),
)


@pytest.mark.parametrize(("change", "told"), BREAKS)
async def test_a_broken_chain_is_not_made_whole_but_told_and_left_as_it_was(
    tmp_path: Path, change: str, told: str
) -> None:
    path, clock, _ = await an_old_ledger(tmp_path)
    with apsw.Connection(str(path)) as connection:
        connection.execute(change)
        assert connection.total_changes(), "nothing was changed"
    connection.close()
    before = inside(path)
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"{told}.*ledger audit` of the version that wrote it.*put a backup"):
            a_ledger(tmp_path, clock)
        assert inside(path) == before
    assert before["schema_version"] == [(VERSION,)]


async def test_what_is_wrong_with_an_old_ledger_is_found_after_it_too(tmp_path: Path) -> None:
    """A call on eight accounts has eight entries of one account each, and each of them counts."""
    path, _, _ = await an_old_ledger(tmp_path)
    open_file(path, LEDGER).close()
    with apsw.Connection(str(path)) as connection:
        connection.execute("DELETE FROM entry WHERE hold = '50.3' AND kind = 'reported' AND accounts LIKE '%team[%'")
    connection.close()
    found = list(audit(path))
    told = "hold '50.3' came to 3 n$ on each of 8 accounts, but its entries sum to 15, posted on 7"
    assert told in found, found
    assert any(each.startswith("team[]/lifetime 'search': posted") for each in found), found


async def test_an_upgrade_of_many_entries_takes_little_memory(tmp_path: Path) -> None:
    path, _, _ = await an_old_ledger(tmp_path, 400)
    tracemalloc.start()
    try:
        open_file(path, LEDGER).close()
        assert tracemalloc.get_traced_memory()[1] < 1 << 19
    finally:
        tracemalloc.stop()


async def test_a_ledger_in_which_nothing_was_posted_yet_is_upgraded(tmp_path: Path) -> None:
    ledger = a_ledger(tmp_path, Clock())
    await ledger.hold(a_hold("a", 1))
    await ledger.close()
    made_older(ledger.path)
    with apsw.Connection(str(ledger.path)) as connection:
        assert connection.execute("SELECT max(version) FROM schema_version").get == VERSION
    connection.close()
    ledger = a_ledger(tmp_path, Clock())
    ledger.settle("a", Charge(cost_nano=1))
    await ledger.close()
    assert list(audit(ledger.path)) == []


OLD_ROWS = st.lists(
    st.tuples(
        st.integers(0, 2**40), st.text(max_size=5), st.text(max_size=5), st.text(max_size=5),
        st.integers(-(2**62), 2**62), st.integers(0, 2**53), st.sampled_from(["reported", "overage", "grant"]),
        st.text(max_size=3), st.text(max_size=3),
    ), min_size=1, max_size=8,
)  # fmt: skip


def old_chain(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    found, hash = [], NOTHING
    for seq, row in enumerate(rows, 1):
        hash = chained(hash, (seq, *row))
        found.append((seq, *row, hash))
    return found


@given(rows=OLD_ROWS, data=st.data())
def test_a_chain_is_made_anew_from_a_whole_one_and_from_no_other(
    rows: list[tuple[Any, ...]], data: st.DataObject
) -> None:
    old = old_chain(rows)
    hash = NOTHING
    for row, (seq, entry) in zip(new := list(rechained(old, (len(old), old[-1][-1]))), map(entry_of, new), strict=True):
        assert len(row) == len(sql.ENTRY)
        assert row[-1] == (hash := chained(hash, row[:-1]))
        assert (seq, entry.at_s, entry.hold, *entry.accounts[0], entry.amount_nano) == old[seq - 1][:7]
    place = data.draw(st.integers(0, len(old) - 1))
    column = data.draw(st.integers(0, len(old[0]) - 1))
    value = old[place][column]
    other = value[::-1] + b"x" if isinstance(value, bytes) else value + type(value)(1)
    broken = [*old[:place], (*old[place][:column], other, *old[place][column + 1 :]), *old[place + 1 :]]
    with pytest.raises(apsw.CorruptError):
        list(rechained(broken, (len(old), old[-1][-1])))
    with pytest.raises(apsw.CorruptError):
        list(rechained([*old[:place], *old[place + 1 :]], (len(old), old[-1][-1])))
