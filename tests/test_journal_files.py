"""Journal files that are not as they should be: named, with what to do, and never made worse."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock

import apsw
import msgspec
import pytest

from tests.support.records import a_record
from tierwise.core.errors import ConfigError, TierwiseError
from tierwise.stores import journal_sql
from tierwise.stores.journal import SqliteJournal
from tierwise.stores.journal_writes import MANY, row_of, write_down
from tierwise.stores.sqlite_file import JOURNAL, open_file


async def opened_and_closed(path: Path) -> None:
    await SqliteJournal(path).close()


@pytest.mark.parametrize("damage", ["not a database", "torn page", "another program's", "newer", "a folder"])
def test_a_file_that_cannot_be_used_is_named_with_what_to_do(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "journal.db"
    words = {"torn page": "move the file away", "not a database": "move the file away"}
    if damage == "not a database":
        path.write_bytes(b"prose, not tables. " * 500)
    elif damage == "a folder":
        path.mkdir()
        words[damage] = "name a file"
    else:
        asyncio.run(opened_and_closed(path))
        connection = apsw.Connection(str(path))
        if damage == "another program's":
            connection.execute("DROP TABLE schema_version")
            words[damage] = "another program"
        elif damage == "newer":
            connection.execute("INSERT INTO schema_version VALUES (99)")
            words[damage] = "a newer Tierwise has written this journal (schema 99"
        connection.pragma("wal_checkpoint(truncate)")
        connection.close()
        if damage == "torn page":
            with path.open("r+b") as file:
                file.seek(4096)
                file.write(b"\xff" * 8192)
    with pytest.raises(ConfigError) as caught:
        SqliteJournal(path)
    assert str(path) in str(caught.value)
    assert words[damage] in str(caught.value)


def test_a_folder_that_may_not_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="give a folder"):
        SqliteJournal(tmp_path / "file" / "journal.db")


async def test_a_file_of_the_first_schema_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with closing(apsw.Connection(str(path))) as connection:
        journal_sql.create_first_tables(connection)
        connection.execute(journal_sql.ADD_VERSION, (1,))
        names = [row[1] for row in connection.execute("PRAGMA table_info(episodes)")]
        values = {"id": "a", "record": msgspec.json.encode(a_record("a"))}
        texts = ("snapshot", "key", "user", "team", "organisation", "session", "workflow", "policy", "requested")
        row = [
            values.get(name, "" if name in texts or name in ("routed", "served", "billed", "status", "code") else 1)
            for name in names
        ]
        connection.execute(f"INSERT INTO episodes VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608
    journal = SqliteJournal(path)
    assert await journal.read("a") == a_record("a")
    journal.write(a_record("b"))
    assert await journal.read("b") == a_record("b")
    await journal.close()


async def test_a_migration_that_fails_leaves_the_old_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.db"
    journal = SqliteJournal(path)
    journal.write(a_record("a"))
    await journal.close()

    def half(connection: apsw.Connection) -> None:
        connection.execute("ALTER TABLE episodes ADD COLUMN mood TEXT")
        connection.execute("ALTER TABLE no_such_table ADD COLUMN mood TEXT")

    def whole(connection: apsw.Connection) -> None:
        connection.execute("ALTER TABLE episodes ADD COLUMN mood TEXT")

    first = journal_sql.MIGRATIONS
    monkeypatch.setattr(journal_sql, "MIGRATIONS", (*first, half))
    with pytest.raises(ConfigError, match="no_such_table"):
        SqliteJournal(path)
    monkeypatch.setattr(journal_sql, "MIGRATIONS", (*first, whole))
    journal = SqliteJournal(path)
    assert await journal.read("a") == a_record("a")
    await journal.close()


def test_processes_that_start_together_make_the_tables_once(tmp_path: Path) -> None:
    for attempt in range(5):
        path, barrier = tmp_path / f"{attempt}.db", threading.Barrier(8)

        def start(path: Path = path, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            asyncio.run(opened_and_closed(path))

        with ThreadPoolExecutor(8) as pool:
            for started in [pool.submit(start) for _ in range(8)]:
                started.result()


async def test_an_unreadable_row_is_an_error_for_who_asks_for_it_and_no_one_else(tmp_path: Path) -> None:
    disk = SqliteJournal(tmp_path / "journal.db")
    for id in ("a", "b"):
        disk.write(a_record(id))
    await disk._ask(lambda c: c.execute("UPDATE episodes SET record = '{\"version\":9}' WHERE id = 'a'"))
    with pytest.raises(TierwiseError, match="cannot be read"):
        await disk.read("a")
    assert [record.episode.id for record in await disk.recent(9)] == ["b"]
    assert (disk.dropped, "record of a" in disk.last_error) == (0, True)
    await disk.close()


def test_a_new_journal_has_large_pages_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    """What the changelog says of both, and the way from one to the other."""
    old = tmp_path / "old.db"
    open_file(old, msgspec.structs.replace(JOURNAL, page_bytes=4_096)).close()
    for path, size in ((tmp_path / "new.db", 16_384), (old, 4_096)):
        asyncio.run(opened_and_closed(path))
        with closing(open_file(path)) as connection:
            assert connection.pragma("page_size") == size
            assert connection.pragma("wal_autocheckpoint") == (8 << 20) // size, "as many bytes, whatever their pages"
    with closing(apsw.Connection(str(old))) as connection:
        connection.execute("PRAGMA journal_mode=DELETE; PRAGMA page_size=16384; VACUUM").fetchall()
    with closing(open_file(old)) as connection:
        assert connection.pragma("page_size") == 16_384


def test_the_writer_pauses_between_statements_but_not_while_somebody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("tierwise.stores.journal_writes.time", Mock(sleep=pauses.append))
    rows = [row_of(a_record(f"{n}"), "{}", b"") for n in range(2 * MANY + 1)]
    with closing(open_file(tmp_path / "journal.db")) as connection:
        write_down(connection, list(rows), 0, lambda: False)
        assert len(pauses) == 2
        write_down(connection, list(rows), 0, lambda: True)
        assert len(pauses) == 2


async def test_who_reads_waits_for_no_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("tierwise.stores.journal_writes.time", Mock(sleep=pauses.append))
    monkeypatch.setattr("tierwise.stores.journal.GATHER_S", 60.0)
    journal = SqliteJournal(tmp_path / "journal.db")
    for n in range(3 * MANY):
        journal.write(a_record(f"{n}"))
    assert await journal.read("0") is not None
    assert pauses == []
    await journal.close()
