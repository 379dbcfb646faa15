"""What is put off because some at once cost less than one by one: none is lost, and nobody is kept waiting for it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.support.records import a_record
from tierwise.stores import journal as sqlite
from tierwise.stores.gathered import Gathered
from tierwise.stores.journal import ENCODED_AT_ONCE, ENCODED_IN_A_LULL, SqliteJournal


def test_what_is_gathered_is_handed_on_once_each_whoever_asks() -> None:
    handed: list[int] = []
    gathered: Gathered[int] = Gathered(handed.extend, 7)
    done = threading.Event()

    def flush() -> None:
        while not done.is_set():
            gathered.flush()

    others = [threading.Thread(target=flush) for _ in range(3)]
    for other in others:
        other.start()
    for n in range(5_000):
        gathered.add(n)
    gathered.flush()
    assert handed == list(range(5_000)), "in their order, and all of them by now"
    done.set()
    for other in others:
        other.join()
    assert len(handed) == 5_000


async def test_records_are_encoded_together_and_sooner_when_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "GATHER_S", 60.0)  # the writer keeps out of it
    journal = SqliteJournal(tmp_path / "journal.db")
    put_off = journal._written

    def write(many: int) -> None:
        for _ in range(many):
            journal.write(a_record("one"))

    write(ENCODED_AT_ONCE - 1)
    assert len(put_off) == ENCODED_AT_ONCE - 1, "more are to come"
    write(1)
    assert len(put_off) == 0
    write(ENCODED_IN_A_LULL - 1)
    journal.lull()
    assert len(put_off) == ENCODED_IN_A_LULL - 1, "so few cost the next request as much as some more"
    write(1)
    journal.lull()
    assert len(put_off) == 0
    await journal.close()
