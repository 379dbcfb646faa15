"""Runs that kill a process while it brings a file to a newer schema, and then look at what is in the file."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import apsw
import msgspec

from scripts.reliability.bars import Check, Found, Run, Scale, count
from scripts.reliability.report import ROOT
from scripts.reliability.served import faults
from scripts.reliability.upgrader import OPENERS, REBUILT, SCHEMAS, further, loose
from tests.support import older_ledger
from tests.support.ledgers import NOON, a_hold, of, path_of
from tests.support.records import a_record
from tierwise.core.budget import Budget, Charge
from tierwise.core.errors import ConfigError
from tierwise.core.keys import Credit, Grant
from tierwise.core.ports import Feedback
from tierwise.core.request import Payer
from tierwise.stores import journal_sql, registry_sql
from tierwise.stores.journal import SqliteJournal
from tierwise.stores.ledger.sqlite import SqliteLedger
from tierwise.stores.registry import SqliteRegistry

ROWS = 20
TOLD = re.compile(r"newer Tierwise.*; upgrade")
# (store, how many migrations its file has seen, whether there is one more than today's)
FAST = (("journal", 1, False),)


def every() -> tuple[tuple[str, int, bool], ...]:
    today = [(store, seen, False) for store, sql in SCHEMAS.items() for seen in range(len(sql.MIGRATIONS))]
    return (*today, *((store, len(SCHEMAS[store].MIGRATIONS), True) for store in REBUILT))


def upgrades(scale: Scale) -> Found:
    """C3. Each file is made as its version made it, and is asked in the end by the store that people use."""
    cases = every() if scale.full else FAST
    played = [_killed(*case) for case in cases]
    broken = [_killed(*case, "loose") for case in cases]
    kills, wrong = sum(each for each, _ in played), [fault for _, faults in played for fault in faults]
    missed = [case for case, (_, faults) in zip(cases, broken, strict=True) if not faults]
    newer = _newer()
    with loose():
        believed = _newer()
    files = ", ".join(f"{store} {seen}→{'next' if to_come else 'today'}" for store, seen, to_come in cases)
    return Found(
        n=f"{count(kills)} kills, one before each statement ({files}); {2 * len(OPENERS)} files of a newer schema",
        figure=f"{len(wrong)} half or without their rows, {len(newer)} newer ones opened or changed"
        + "".join(f"; {fault}" for fault in [*wrong, *newer][:1]),
        checks=(
            Check("half or without their rows", len(wrong), "=", 0),
            Check("newer ones opened or changed", len(newer), "=", 0),
            Check("kills", kills, "≥", 10),
        ),
        mutant=f"a migration outside its transaction: {sum(len(faults) for _, faults in broken)} of "
        f"{count(sum(each for each, _ in broken))} half; no look at the version: {len(believed)} newer ones opened",
        caught=not missed and bool(believed),
    )


def _killed(store: str, seen: int, to_come: bool, *how: str) -> tuple[int, list[str]]:
    """(kills, what was wrong after them)"""
    with tempfile.TemporaryDirectory(prefix="tierwise-c3-") as name, ExitStack() as changed:
        old, out = Path(name) / "old", Path(name) / "out"
        old.mkdir()
        expected = asyncio.run(FILLED[store](old / f"{store}.sqlite", seen)) if seen else None
        if to_come:
            changed.enter_context(further(store))
            how = ("further", *how)
        environ = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
        command = [sys.executable, "-m", "scripts.reliability.upgrader", store, str(old), str(out), *how]
        run = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        if run.returncode:
            raise RuntimeError(run.stderr[-1_000:])
        folders = sorted(out.iterdir(), key=lambda folder: int(folder.name))
        wrong = [
            f"{store} {seen}, statement {folder.name}: {fault}"
            for folder in folders
            if (fault := _fault(store, folder / f"{store}.sqlite", expected))
        ]
        return int(run.stdout), wrong


def _fault(store: str, path: Path, expected: Any) -> str:
    """What is wrong with a file; "" when its schema is that of a version, and today's store finds its rows."""
    try:
        version, schema = _schema(store, path)
        if schema != _whole(store, version):
            return f"half of schema {version + 1}"
        found = asyncio.run(ASKED[store](path))
    except (ConfigError, apsw.Error, msgspec.MsgspecError) as error:
        return str(error)[:200]
    return "" if expected is None or found == expected else "other rows"


def _schema(store: str, path: Path) -> tuple[int, list[Any]]:
    if not path.exists():
        return 0, []
    connection = apsw.Connection(str(path))
    try:
        schema = list(connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY 1, 2"))
        if store == "registry":
            return int(connection.pragma("user_version")), schema
        tables = any(name == "schema_version" for _, name, _ in schema)
        return int(connection.execute(journal_sql.READ_VERSION).get or 0) if tables else 0, schema
    finally:
        connection.close()


def _whole(store: str, version: int) -> list[Any]:
    with tempfile.TemporaryDirectory(prefix="tierwise-c3-") as name:
        path = Path(name) / "whole.sqlite"
        connection = apsw.Connection(str(path))
        _apply(store, connection, version)
        connection.close()
        return _schema(store, path)[1]


def _newer() -> list[str]:
    """Files of a version that is not known yet: which of them were not refused in a sentence, or were changed."""
    wrong = []
    for store, mode in [(store, mode) for store in OPENERS for mode in ("wal", "delete")]:
        with tempfile.TemporaryDirectory(prefix="tierwise-c3-") as name:
            path = Path(name) / f"{store}.sqlite"
            asyncio.run(FILLED[store](path, 0))
            connection = apsw.Connection(str(path))
            if store == "registry":
                connection.pragma("user_version", len(registry_sql.MIGRATIONS) + 1)
            else:
                connection.execute("INSERT INTO schema_version VALUES (?)", (len(SCHEMAS[store].MIGRATIONS) + 1,))
            connection.execute("CREATE TABLE of_tomorrow (mood TEXT)")
            connection.pragma("journal_mode", mode)
            connection.close()
            before = path.read_bytes()
            told = _refusal(store, path)
            if not TOLD.search(told) or str(path) not in told:
                wrong.append(f"{store} ({mode}): {told or 'opened'}")
            elif path.read_bytes() != before:
                wrong.append(f"{store} ({mode}): changed")
    return wrong


def _refusal(store: str, path: Path) -> str:
    try:
        asyncio.run(ASKED[store](path))
    except (ConfigError, apsw.Error) as error:
        return str(error)
    return ""


# ------------------------------------------------------------------------------------------------ files with rows


async def journal_rows(path: Path, seen: int) -> Any:
    if seen == 1:
        _first_journal(path)
    else:
        journal = SqliteJournal(path)
        for number in range(ROWS):
            journal.write(a_record(f"r{number}"))
        journal.snapshot("5eed", b"prices")
        journal.feedback(Feedback(decision_id="r0", at_s=NOON, score=1.0))
        await journal.close()
        _made_older("journal", path, seen)
    feedback = [Feedback(decision_id="r0", at_s=NOON, score=1.0)]
    return [a_record(f"r{number}") for number in range(ROWS)], feedback, b"prices"


def _first_journal(path: Path) -> None:
    """As the first version wrote it: what is in a record was in columns beside it too."""
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal")
    journal_sql.create_first_tables(connection)
    connection.execute(journal_sql.ADD_VERSION, (1,))
    columns = list(connection.execute("SELECT name, type, \"notnull\" FROM pragma_table_info('episodes')"))
    for number in range(ROWS):
        own = {"id": f"r{number}", "at_s": NOON, "record": msgspec.json.encode(a_record(f"r{number}"))}
        row = [own.get(name, 1 if kind == "INTEGER" else "" if needed else None) for name, kind, needed in columns]
        connection.execute(f"INSERT INTO episodes VALUES ({', '.join('?' * len(row))})", row)
    connection.execute(journal_sql.ADD_SNAPSHOT, ("5eed", NOON, b"prices"))
    said = Feedback(decision_id="r0", at_s=NOON, score=1.0)
    connection.execute(journal_sql.ADD_FEEDBACK, ("r0", NOON, 1.0, "user", msgspec.json.encode(said)))
    connection.close()


async def journal_asked(path: Path) -> Any:
    journal = SqliteJournal(path)
    try:
        records = [await journal.read(f"r{number}") for number in range(ROWS)]
        return records, await journal.feedback_of("r0"), await journal.read_snapshot("5eed")
    finally:
        await journal.close()


async def ledger_rows(path: Path, seen: int) -> Any:
    ledger = SqliteLedger(path, path_of(10**9), reserve_bytes=1)
    for number in range(ROWS):
        assert await ledger.hold(a_hold(f"h{number}", 100)) is None
        if number % 4:
            ledger.settle(f"h{number}", Charge(cost_nano=number))
    await ledger.close()
    told = await ledger_asked(path)
    _made_older("ledger", path, seen)
    return told


async def ledger_asked(path: Path) -> Any:
    """What is spent and held on every level; the audit of the file has to find nothing."""
    ledger = SqliteLedger(path, path_of(10**9), reserve_bytes=1)
    told = of(ledger)
    await ledger.close()
    if wrong := faults(path):
        raise apsw.CorruptError(wrong[0])
    return told


def _made_older(store: str, path: Path, seen: int) -> None:
    """The same rows in a file of an older schema, as far as it has tables for them. 0: as it is."""
    if seen in (0, len(SCHEMAS[store].MIGRATIONS)):
        return
    if store == "ledger":
        older_ledger.made_older(path)
    older = path.with_name("older")
    connection = apsw.Connection(str(older))
    connection.pragma("journal_mode", "wal")
    _apply(store, connection, seen)
    connection.execute("ATTACH ? AS today", (str(path),))
    for table in [str(row[0]) for row in connection.execute(journal_sql.READ_TABLES)]:
        if table != "schema_version":
            columns = ", ".join(row[1] for row in connection.execute(f"PRAGMA table_info({table})"))
            connection.execute(f"DELETE FROM {table}; INSERT INTO {table} SELECT {columns} FROM today.{table}")
    if store == "registry":
        connection.pragma("application_id", registry_sql.APPLICATION)
        connection.pragma("user_version", seen)
    else:
        connection.execute(journal_sql.ADD_VERSION, (seen,))
    connection.close()
    older.replace(path)


def _apply(store: str, connection: apsw.Connection, seen: int) -> None:
    """The first so many migrations, which are functions or plain SQL."""
    for migration in SCHEMAS[store].MIGRATIONS[:seen]:
        if isinstance(migration, str):
            connection.execute(migration)
        else:
            migration(connection)


async def registry_rows(path: Path, seen: int) -> Any:
    registry = SqliteRegistry(path)
    registry.create(Grant(payer=Payer(key="ada", team="search")), NOON)
    registry.set_budget(Budget(scope="team", match=(("team", "search"),), limit_nano=7, window="month"))
    registry.add_credit(Credit(id="c", scope="user", subject="ada", amount_nano=3, at_s=NOON))
    registry.close()
    told = await registry_asked(path)
    _made_older("registry", path, seen)
    return told


async def registry_asked(path: Path) -> Any:
    registry = SqliteRegistry(path)
    try:
        return registry.read()
    finally:
        registry.close()


# Made by a version, with rows; and what today's store finds in it.
FILLED = {"journal": journal_rows, "ledger": ledger_rows, "registry": registry_rows}
ASKED = {"journal": journal_asked, "ledger": ledger_asked, "registry": registry_asked}


RUNS = (
    Run(
        "c3",
        "C3",
        "SIGKILL at each statement of an upgrade, and files that a newer version has written",
        "old or new schema with every row; newer refused, unchanged",
        upgrades,
    ),
)
