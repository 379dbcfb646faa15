"""A process that brings files to their schema and is killed. `python -m scripts.reliability.upgrader STORE OLD OUT
[further] [loose]`.

It opens a copy of the folder OLD again and again, each time in a process of its own (OUT/1, OUT/2, ...), which kills
itself with SIGKILL before its first statement, its second, and so on until one gets to its end. It says how many died.
`further`: there is a migration more than today's. `loose`, the mutant: migrations are not in a transaction.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import apsw

from tierwise.stores import journal_sql, registry, registry_sql, sqlite_file
from tierwise.stores.ledger import sql as ledger_sql
from tierwise.stores.ledger.file import open_writer

# What a store does with its file when it starts, in the thread that starts it.
OPENERS: dict[str, Callable[[Path], object]] = {
    "journal": sqlite_file.open_file,
    "ledger": open_writer,
    "registry": registry.SqliteRegistry,
}
SCHEMAS: dict[str, ModuleType] = {"journal": journal_sql, "ledger": ledger_sql, "registry": registry_sql}
REBUILT = {"journal": "feedback", "ledger": "entry"}  # by the migration after today's


@contextmanager
def further(store: str) -> Iterator[None]:
    """As the next version would have it: a table is made anew with a column more, and its rows are copied."""
    module, table = SCHEMAS[store], REBUILT[store]

    def rebuild(connection: apsw.Connection) -> None:
        made = str(connection.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).get)
        indices = [str(row[0]) for row in connection.execute(
            "SELECT sql FROM sqlite_schema WHERE type = 'index' AND tbl_name = ? AND sql IS NOT NULL", (table,)
        )]  # fmt: skip
        columns = ", ".join(row[1] for row in connection.execute(f"PRAGMA table_info({table})"))
        connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
        connection.execute(made.replace("(", "(mood TEXT NOT NULL DEFAULT 'calm', ", 1))
        copied = f"INSERT INTO {table} ({columns}) SELECT {columns} FROM old_{table} ORDER BY rowid"
        connection.execute(f"{copied}; DROP TABLE old_{table}")
        connection.execute("; ".join(indices))

    with mock.patch.object(module, "MIGRATIONS", (*module.MIGRATIONS, rebuild)):
        yield


@contextmanager
def loose() -> Iterator[None]:
    """The mutant: each statement of a migration is committed by itself, and a newer version is not looked for."""

    def listed(connection: apsw.Connection, path: Path, kind: sqlite_file.Kind) -> None:
        version = raw(connection, path, kind)
        for number, migration in enumerate(kind.schema.MIGRATIONS[version:], version + 1):
            migration(connection)
            connection.execute(journal_sql.ADD_VERSION, (number,))

    def raw(connection: apsw.Connection, path: Path, kind: sqlite_file.Kind) -> int:
        tables = connection.execute(journal_sql.READ_TABLES).fetchall()
        return int(connection.execute(journal_sql.READ_VERSION).get or 0) if tables else 0

    def only(connection: apsw.Connection, pepper: bytes, *, may_begin: bool) -> None:
        registry._brought(connection, pepper, may_begin)

    with (
        mock.patch.object(sqlite_file, "_migrate", listed),
        mock.patch.object(sqlite_file, "_version", raw),
        mock.patch.object(registry, "_migrate", only),
    ):
        yield


def main(store: str, old: Path, out: Path) -> int:
    for number in range(1, 10_000):
        folder = out / str(number)
        shutil.copytree(old, folder)
        child = os.fork()
        if child == 0:
            upgrade(store, folder / f"{store}.sqlite", number)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            if status:
                raise RuntimeError(f"{store}: the upgrade failed when nobody killed it")
            shutil.rmtree(folder)
            return number - 1
    raise RuntimeError(f"{store}: the upgrade does not end")


def upgrade(store: str, path: Path, at: int) -> None:
    """Ends this process: killed before statement `at`, or with code 0 when there are fewer."""
    statements = 0

    def trace(cursor: Any, sql: str, bindings: Any) -> bool:
        nonlocal statements
        statements += 1
        if statements == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return True

    apsw.connection_hooks.append(lambda connection: connection.set_exec_trace(trace))
    code = 1
    try:
        OPENERS[store](path)
        code = 0
    finally:
        os._exit(code)  # without closing, as a process ends that is not asked


if __name__ == "__main__":
    with ExitStack() as changed:
        if "further" in sys.argv[4:]:
            changed.enter_context(further(sys.argv[1]))
        if "loose" in sys.argv[4:]:
            changed.enter_context(loose())
        print(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])), flush=True)
