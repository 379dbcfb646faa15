"""The audit finds every change that was made to a ledger's file by hand, and nothing in one that was not."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from tests.support.ledgers import ADA, NOON, a_hold, of, path_of
from tierwise.core.budget import Budget, Charge
from tierwise.core.errors import ConfigError
from tierwise.core.request import Hints
from tierwise.stores.ledger import audit as ledger_audit
from tierwise.stores.ledger.audit import LAWS, Audit, audit
from tierwise.stores.ledger.copies import backup_to
from tierwise.stores.ledger.sqlite import SqliteLedger

BUDGETS = (*path_of(10**6), Budget(scope="user", limit_nano=10**6, window="minute", rolling=True), Budget(scope="key"))


async def a_busy_ledger(folder: Path, calls: int = 200) -> Path:
    """Every kind of entry, open and closed holds, credits, an overage, a soft and an unlimited budget."""
    soft = Budget(scope="tag", limit_nano=5, hard=False)
    ledger = SqliteLedger(
        folder / "ledger.sqlite", (*BUDGETS, soft), lambda: float(NOON), reserve_bytes=1, lease_s=3_600
    )
    await ledger.grant("g1", "team", "search", 5_000_000)
    await ledger.grant("g2", "team", "search", -1_000)
    await asyncio.gather(*(ledger.hold(a_hold(f"{n}", 50, at_s=NOON + n // 9, tokens=3)) for n in range(calls)))
    for n in range(calls):
        match n % 8:
            case 0:
                continue
            case 1:
                ledger.settle(f"{n}", Charge(cost_nano=0, kind="released"))
            case 2:
                ledger.settle(f"{n}", Charge(cost_nano=500, kind="estimated"))
            case _:
                ledger.settle(f"{n}", Charge(cost_nano=n % 50))
    await ledger.hold(a_hold("old", 9, at_s=NOON - 90_000))
    ledger._do_errands()
    await ledger.correct("2", 3, "invoice")
    await ledger.vary("v1", next(iter(ledger.books._lines)).id, "another", 17, "invoice")
    assert ledger.audit() == ()
    await ledger.close()
    return ledger.path


async def test_a_sound_ledger_has_no_faults_and_is_counted(tmp_path: Path) -> None:
    path = await a_busy_ledger(tmp_path)
    seen = Audit()
    assert list(audit(path, seen)) == []
    with apsw.Connection(str(path)) as connection:
        counted = [connection.execute(f"SELECT count(*) FROM {name}").get for name in ("entry", "hold", "account")]  # noqa: S608
        kinds = {kind for (kind,) in connection.execute("SELECT DISTINCT kind FROM entry")}
    assert [seen.entries, seen.holds, seen.accounts, seen.faults] == [*counted, 0]
    assert kinds == {"reported", "estimated", "overage", "suspense", "correction", "variance", "grant"}


FIELDS = ("at_s = at_s + 1", "hold = 'x' || hold", "accounts = accounts || ' '", "amount_nano = amount_nano + 1",
          "snapshot = 'x'", "note = note || '.'", "hash = randomblob(32)")  # fmt: skip


async def test_of_a_hundred_changed_entries_a_hundred_are_found(tmp_path: Path) -> None:
    path = await a_busy_ledger(tmp_path, 1_000)
    chosen = random.Random(5).sample(range(1, 800), 100)
    with apsw.Connection(str(path)) as connection:
        for n, seq in enumerate(chosen):
            connection.execute(f"UPDATE entry SET {FIELDS[n % len(FIELDS)]} WHERE seq = ?", (seq,))  # noqa: S608
    faults = list(audit(path))
    named = {int(fault.split()[1]) for fault in faults if fault.startswith("entry ")}
    assert set(chosen) <= named
    followers = {seq + 1 for n, seq in enumerate(chosen) if FIELDS[n % len(FIELDS)].startswith("hash")}
    assert named - set(chosen) <= followers, "a changed hash breaks the link to the next one"


CHANGES: list[tuple[str, str]] = [
    ("UPDATE account SET posted_nano = posted_nano + 1 WHERE line = 'user[]/lifetime'", "lifetime 'ada': posted"),
    ("UPDATE account SET posted_nano = posted_nano - 1 WHERE line LIKE 'key%'", "posted"),
    ("UPDATE account SET pending_nano = pending_nano + 1 WHERE line LIKE 'team%'", "held by"),
    ("UPDATE account SET open = open + 1 WHERE line LIKE 'team%'", "held by"),
    ("UPDATE account SET tokens_pending = tokens_pending + 1 WHERE line LIKE 'team%'", "tokens held by"),
    ("UPDATE account SET bound_nano = 3 WHERE line LIKE 'team%'", "above its limit"),
    ("UPDATE account SET limit_nano = limit_nano + 1 WHERE line LIKE 'credit%'", "its top-ups sum to 4999000"),
    ("DELETE FROM account WHERE line LIKE 'organisation%'", "posted 0 n$"),
    ("UPDATE hold SET amount_nano = amount_nano + 1 WHERE id = '8'", "its open holds are"),
    ("UPDATE hold SET cost_nano = cost_nano + 1 WHERE id = '3'", "hold '3' came to 4 n$"),
    ("UPDATE hold SET state = 'released', cost_nano = 0 WHERE id = '3'", "hold '3' came to 0 n$"),
    ("UPDATE hold SET closed_s = 0, state = 'suspense' WHERE id = '4'", "hold '4'"),
    ("DELETE FROM hold WHERE id = '5'", "hold '5' has entries and is not in the ledger"),
    ("DELETE FROM hold WHERE id = '8'", "its open holds are"),
    ("DELETE FROM entry WHERE seq = 40", "entries 40 to 40 are missing"),
    ("DELETE FROM entry WHERE seq > 100", "the entries end at 100"),
    ("INSERT INTO entry SELECT (SELECT max(seq) + 1 FROM entry), at_s, hold, accounts, 0, kind, snapshot, note, hash"
     " FROM entry WHERE seq = 9", "is not as it was written"),
    ("UPDATE state SET seq = seq - 1", "the entries end at"),
    ("DELETE FROM state", "does not say where it ends"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "told"), CHANGES)
async def test_each_change_by_hand_is_found_and_refused_at_the_next_start(
    tmp_path: Path, change: str, told: str
) -> None:
    path = await a_busy_ledger(tmp_path, 180)
    with apsw.Connection(str(path)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(change)
        assert connection.total_changes(), "nothing was changed"
    faults = list(audit(path))
    assert any(told in fault for fault in faults), faults
    with pytest.raises(ConfigError, match=r"sound ledger|not sound"):
        SqliteLedger(path, BUDGETS, reserve_bytes=1)


# What could be done to the accounts of an entry, by whoever makes the chain anew as well.
LEFT_OUT = "json_remove(accounts, '$[' || abs(random() % json_array_length(accounts)) || ']')"
TWICE = (
    "json_insert(accounts, '$[#]', json_extract(accounts, '$[' || abs(random() % json_array_length(accounts)) || ']'))"
)
ANOTHER = "json_replace(accounts, '$[0][1]', 'bob')"
LATER = "json_replace(accounts, '$[#-1][2]', json_extract(accounts, '$[#-1][2]') + 60)"


@pytest.mark.parametrize("change", [LEFT_OUT, TWICE, ANOTHER, LATER])
async def test_an_entry_is_on_its_accounts_and_on_no_others_or_the_sums_say_so(tmp_path: Path, change: str) -> None:
    path = await a_busy_ledger(tmp_path)
    with apsw.Connection(str(path)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        entries = connection.execute("SELECT seq, kind, amount_nano FROM entry ORDER BY seq").fetchall()
    for seq, kind, amount in entries:
        if not amount and change not in (LEFT_OUT, TWICE):
            continue  # nothing posted is nothing posted, wherever
        connection.execute("BEGIN")
        connection.execute(f"UPDATE entry SET accounts = {change} WHERE seq = ?", (seq,))  # noqa: S608
        found = [sentence(row) for statement, sentence in LAWS for row in connection.execute(statement)]
        connection.execute("ROLLBACK")
        assert found, f"entry {seq}, {kind}"
    connection.close()


@pytest.mark.parametrize(
    "name", ["a\0b", "\0", "ü\U0001f600", "\ufeff", '\x7f\x1f"\\/', "123", "null", "1e5", '"x"', "\u2028"]
)
async def test_a_name_is_the_same_in_an_entry_and_in_its_account(tmp_path: Path, name: str) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.sqlite", BUDGETS, lambda: float(NOON), reserve_bytes=1)
    await ledger.grant("g1", "team", name, 5)
    await ledger.hold(a_hold("a", 50, session=name, payer=msgspec.structs.replace(ADA, user=name)))
    ledger.settle("a", Charge(cost_nano=7))
    await ledger.vary("v1", "variance/openai", name, 5, "")
    names = {account[1] for _, entry in ledger.entries() for account in entry.accounts}
    assert names >= {name}
    await ledger.close()
    assert list(audit(ledger.path)) == []


CHECKS = (
    "UPDATE account SET pending_nano = -1",
    "UPDATE account SET posted_nano = bound_nano + overage_nano + 1 WHERE bound_nano IS NOT NULL",
    "UPDATE account SET open = 0 WHERE pending_nano > 0",
    "UPDATE account SET posted_nano = 'much'",
    "UPDATE hold SET state = 'open' WHERE closed_s > 0",
    "UPDATE hold SET cost_nano = 1 WHERE state = 'released'",
    "UPDATE hold SET least_nano = amount_nano + 1",
    "UPDATE entry SET amount_nano = -1 WHERE kind = 'reported'",
    "UPDATE entry SET kind = 'gift'",
    "UPDATE entry SET accounts = '[]'",
)


@pytest.mark.parametrize("change", CHECKS)
async def test_the_schema_itself_refuses_what_cannot_be(tmp_path: Path, change: str) -> None:
    path = await a_busy_ledger(tmp_path, 20)
    with apsw.Connection(str(path)) as connection, pytest.raises(apsw.ConstraintError):
        connection.execute(change)


async def test_a_running_ledger_is_audited_and_copied_at_any_moment(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.sqlite", BUDGETS, lambda: float(NOON), reserve_bytes=1)
    done = False

    async def work(name: str) -> None:
        number = 0
        while not done:
            id, number = f"{name}.{number}", number + 1
            assert await ledger.hold(a_hold(id, 10, at_s=NOON + number)) is None
            ledger.settle(id, Charge(cost_nano=number % 3))

    workers = [asyncio.create_task(work(f"{n}")) for n in range(8)]
    copies = [tmp_path / f"backup{n}.sqlite" for n in range(10)]
    while ledger.commits < 5:  # noqa: ASYNC110  # it tells nobody
        await asyncio.sleep(0)
    for copy in copies:
        await ledger.backup(copy)
        assert await asyncio.to_thread(lambda: list(audit(ledger.path))) == []
    done = True
    await asyncio.gather(*workers)
    await ledger.close()
    for copy in copies:
        seen = Audit()
        assert list(audit(copy, seen)) == []
        assert seen.entries
        assert not copy.with_name(f"{copy.name}-wal").exists()
    with pytest.raises(ConfigError, match="there is a file already"):
        backup_to(ledger.path, copies[0])


async def test_a_backup_in_the_place_of_a_lost_ledger_is_accepted(tmp_path: Path) -> None:
    path = await a_busy_ledger(tmp_path)
    ledger = SqliteLedger(path, BUDGETS, lambda: float(NOON), reserve_bytes=1)
    await ledger.backup(tmp_path / "backup.sqlite")
    spent = of(ledger)
    await ledger.hold(a_hold("later", 1))
    await ledger.close()
    path.unlink()
    with pytest.raises(ConfigError, match="gone or empty"):
        SqliteLedger(path, BUDGETS, reserve_bytes=1)
    (tmp_path / "backup.sqlite").rename(path)
    ledger = SqliteLedger(path, BUDGETS, lambda: float(NOON), reserve_bytes=1)
    assert of(ledger) == spent
    ledger.close_now()


async def test_entries_are_read_out_in_order_from_any_number(tmp_path: Path) -> None:
    path = await a_busy_ledger(tmp_path)
    ledger = SqliteLedger(path, BUDGETS, lambda: float(NOON), reserve_bytes=1)
    everything = list(ledger.entries())
    assert [seq for seq, _ in everything] == list(range(1, len(everything) + 1))
    assert list(ledger.entries(100)) == everything[100:]
    spent = sum(
        entry.amount_nano for _, entry in everything for line, *_ in entry.accounts if line == "user[]/lifetime"
    )
    (balance,) = (
        b for b in ledger.balances(ADA, Hints()) if (b.scope, b.window, b.credit) == ("user", "lifetime", False)
    )
    assert balance.spent_nano == spent
    ledger.close_now()


def test_where_there_is_no_ledger_the_audit_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no ledger here"):
        list(audit(tmp_path / "ledger.sqlite"))
    assert list(tmp_path.iterdir()) == []


async def test_the_audit_of_a_long_ledger_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = await a_busy_ledger(tmp_path, 1_000)
    monkeypatch.setattr(ledger_audit, "PAGE_ROWS", 100)
    tracemalloc.start()
    try:
        assert list(audit(path)) == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


async def test_a_call_that_was_released_may_turn_out_to_have_cost_something(tmp_path: Path) -> None:
    """And the ledger is sound all the same, or it could not be started any more."""
    ledger = SqliteLedger(tmp_path / "ledger.sqlite", BUDGETS, lambda: float(NOON), reserve_bytes=1)
    await ledger.hold(a_hold("a", 50))
    ledger.settle("a", Charge(cost_nano=0, kind="released"))
    assert await ledger.correct("a", 7, "invoice")
    assert {spent for _, spent, _ in of(ledger)} == {7}
    await ledger.close()
    assert list(audit(ledger.path)) == []
    with apsw.Connection(str(ledger.path)) as connection:
        connection.execute(
            "UPDATE entry SET accounts = json_remove(accounts, '$[#-1]') WHERE hold = 'a' AND kind = 'correction'"
        )
    assert any(fault.startswith("hold 'a' came to 7 n$") for fault in audit(ledger.path))


@pytest.mark.parametrize("window", ["lifetime", "day"])
@pytest.mark.parametrize("reloaded", [False, True])
async def test_two_budgets_that_are_one_and_the_same_are_one_account_and_the_tighter_holds(
    tmp_path: Path, window: Any, reloaded: bool
) -> None:
    """Two accounts of one name would write over each other, and the file would be half of what was spent."""
    twice = (Budget(scope="user", limit_nano=100, window=window), Budget(scope="user", limit_nano=60, window=window))
    begun = () if reloaded else twice
    ledger = SqliteLedger(tmp_path / "ledger.sqlite", begun, lambda: float(NOON), reserve_bytes=1)
    if reloaded:
        ledger.reload(twice)
    assert await ledger.hold(a_hold("a", 40)) is None
    ledger.settle("a", Charge(cost_nano=30))
    assert await ledger.hold(a_hold("b", 30)) is None
    assert await ledger.hold(a_hold("c", 1)) is not None
    assert of(ledger) == [("user", 30, 30)]
    await ledger.close()
    assert list(audit(ledger.path)) == []


@pytest.mark.parametrize(("statement", "sentence"), LAWS, ids=lambda each: getattr(each, "__name__", ""))
async def test_no_law_looks_at_all_of_one_table_for_each_row_of_another(
    tmp_path: Path, statement: str, sentence: Any
) -> None:
    """Each start asks them, and a month has as many sessions as it likes."""
    ledger = SqliteLedger(tmp_path / "ledger.sqlite", BUDGETS, reserve_bytes=1)
    plan = [str(row[3]) for row in ledger._reader.execute(f"EXPLAIN QUERY PLAN {statement}")]
    ledger.close_now()
    assert plan
    assert not [step for step in plan if step.startswith("SCAN") and step.endswith("-JOIN")], plan
