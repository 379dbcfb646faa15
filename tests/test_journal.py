"""What every journal must do, and what the one on disk must survive. A new journal is one more line in JOURNALS."""

from __future__ import annotations

import asyncio
import stat
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from tests.support.records import NOON, a_record
from tierwise.core.errors import Closed
from tierwise.core.grams import grams
from tierwise.core.ports import Feedback, Record
from tierwise.core.request import Payer
from tierwise.stores import journal as sqlite
from tierwise.stores import journal_sql
from tierwise.stores.journal import ENCODED_AT_ONCE, SqliteJournal
from tierwise.stores.journal_rows import Total, with_grams
from tierwise.stores.memory import JOURNAL_SNAPSHOTS_KEPT, MemoryJournal

DAY_S = 86_400
JOURNALS: dict[str, Callable[[Path], Any]] = {
    "memory": lambda _: MemoryJournal(),
    "sqlite": lambda folder: SqliteJournal(folder / "journal.db"),
}


@pytest.fixture(params=sorted(JOURNALS))
async def journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    made = JOURNALS[request.param](tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    made = SqliteJournal(tmp_path / "journal.db", queue_rows=600)
    yield made
    await made.close()


def texts_of(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.iterdir())


# ---------------------------------------------------------------------------------- every journal


async def test_what_was_written_is_read_back_whole(journal: Any) -> None:
    records = [a_record("a"), msgspec.structs.replace(a_record("b"), prompt="Why?", reply="Because \u2600.")]
    for record in records:
        journal.write(record)
    assert [await journal.read(record.episode.id) for record in records] == records
    assert await journal.read("nobody") is None
    assert (journal.dropped, journal.last_error) == (0, "")


@pytest.mark.parametrize("many", [1, ENCODED_AT_ONCE - 1, ENCODED_AT_ONCE, 2 * ENCODED_AT_ONCE + 1])
async def test_of_words_their_grams_are_kept_and_nothing_else(journal: Any, many: int) -> None:
    texts = [f"Zanzibar number {n} Quagga {'grows ' * n}" for n in range(many)]
    for n, text in enumerate(texts):
        journal.write(a_record(f"{n}"), text)
    journal.write(a_record("without"))
    for n, text in enumerate(texts):
        assert await journal.read(f"{n}") == with_grams(a_record(f"{n}"), grams(text.casefold()))
    assert await journal.read("without") == a_record("without")
    assert len(await journal.recent(10_000)) == many + 1
    assert [len(piece) async for piece in journal.stories(0, NOON + DAY_S)] == [many + 1]
    if isinstance(journal, SqliteJournal):
        await journal.close()
        assert b"uagga" not in texts_of(journal.path).lower()


@pytest.mark.parametrize(
    ("start", "found"), [("ab", ["ab", "abc"]), ("abc", ["abc"]), ("b%", []), ("", ["a", "ab"]), ("x", ["x\u2600"])]
)
async def test_ids_are_found_by_how_they_begin(journal: Any, start: str, found: list[str]) -> None:
    for id in ("b", "abc", "abd", "ab", "a", "x\u2600"):
        journal.write(a_record(id))
    assert await journal.beginning(start) == found


async def test_a_read_sees_every_earlier_write(journal: Any) -> None:
    for n in range(1_000):
        journal.write(a_record(f"{n}"))
        if n % 100 == 0:
            assert await journal.read(f"{n}") is not None
    assert len(await journal.recent(1_000)) == 1_000


async def test_the_first_record_of_an_episode_stands_and_counts_once(journal: Any) -> None:
    journal.write(a_record("a"))
    journal.write(a_record("a", cost_nano=99))
    record = await journal.read("a")
    assert record.outcome.cost_nano == 35
    assert [(total.requests, total.cost_nano) for total in await journal.totals(0)] == [(1, 35)]


async def test_recent_gives_the_newest_first(journal: Any) -> None:
    for id, at_s in (("a", 5), ("b", 9), ("c", 5), ("d", 1)):
        journal.write(a_record(id, at_s))
    assert [record.episode.id for record in await journal.recent(3)] == ["b", "c", "a"]
    assert await journal.recent(0) == await journal.recent(-1) == []


async def test_feedback_is_kept_in_its_order(journal: Any) -> None:
    said = [
        Feedback(decision_id="a", at_s=9, score=0.5, source="grader", payer=Payer(user="ada")),
        Feedback(decision_id="a", at_s=3, score=1.0, comment="thanks"),
    ]
    journal.feedback(said[0])
    journal.feedback(Feedback(decision_id="b", at_s=4, score=0.0))
    journal.feedback(said[1])
    assert await journal.feedback_of("a") == said


async def test_a_snapshot_is_kept_under_its_hash(journal: Any) -> None:
    journal.snapshot("5eed", b'{"policy":{}}')
    journal.snapshot("5eed", b"never: the same hash is the same data")
    assert await journal.read_snapshot("5eed") == b'{"policy":{}}'
    assert await journal.read_snapshot("0000") is None


async def test_totals_add_up_by_model_and_never_count_an_unknown_cost_as_free(journal: Any) -> None:
    hour = NOON - NOON % 3_600
    journal.write(a_record("before", hour - 1))
    journal.write(a_record("a", hour, team="search"))
    journal.write(a_record("b", hour + 1, team="ads"))
    journal.write(a_record("c", hour + 2, cost_nano=None))
    journal.write(a_record("d", hour + 3, model="acme/large", cost_nano=500, baseline_nano=None))
    journal.write(a_record("e", hour, model="", status="refused", cost_nano=0, baseline_nano=0))
    journal.write(a_record("f", hour, status="dry_run"))
    tokens = {"input_tokens": 12, "output_tokens": 6}
    expected = [
        Total(model="acme/large", requests=1, cost_nano=500, baseline_nano=0, saved_nano=0, unpriced=0, **tokens),
        Total(
            model="acme/small",
            requests=3,
            cost_nano=70,
            baseline_nano=300,
            saved_nano=130,
            unpriced=1,
            input_tokens=36,
            output_tokens=18,
        ),
        Total(model="", requests=1, cost_nano=0, baseline_nano=0, saved_nano=0, unpriced=0, **tokens),
    ]
    assert await journal.totals(hour + 1_800) == expected, "whole hours"
    assert (await journal.totals(0))[1].requests == 4


async def test_after_the_end_writes_are_counted_and_reads_refused(journal: Any) -> None:
    journal.write(a_record("a"))
    await journal.close()
    await journal.close()
    journal.write(a_record("b"))
    journal.feedback(Feedback(decision_id="a", at_s=1, score=1.0))
    journal.snapshot("5eed", b"")
    assert (journal.dropped, journal.last_error) == (3, "the journal is closed")
    for read in (journal.read("a"), journal.recent(1), journal.read_snapshot("5eed"), journal.totals(0)):
        with pytest.raises(Closed):
            await read


async def test_the_ring_in_memory_keeps_the_last() -> None:
    ring = MemoryJournal(limit=3)
    for n in range(10):
        ring.write(a_record(f"{n}"))
        ring.feedback(Feedback(decision_id="0", at_s=n, score=1.0))
    for n in range(JOURNAL_SNAPSHOTS_KEPT + 1):
        ring.snapshot(f"{n}", b"")
    assert [record.episode.id for record in await ring.recent(9)] == ["9", "8", "7"]
    assert (await ring.read("6"), len(await ring.feedback_of("0")), ring.dropped) == (None, 3, 0)
    assert (await ring.read_snapshot("0"), await ring.read_snapshot("1")) == (None, b"")


# ---------------------------------------------------------------------------------- on disk


async def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "journal.db"
    first = SqliteJournal(path)
    for n in range(2_000):
        first.write(a_record(f"{n}"))
    first.snapshot("5eed", b"data")
    await first.close()
    second = SqliteJournal(path)
    assert len(await second.recent(10_000)) == 2_000
    assert await second.read("1999") == a_record("1999")
    assert await second.read_snapshot("5eed") == b"data"
    assert (await second.totals(0))[0].requests == 2_000
    await second.close()


async def test_only_its_owner_may_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.touch(mode=0o644)
    journal = SqliteJournal(path)
    journal.write(a_record("a"))
    await journal.read("a")
    files = sorted(tmp_path.iterdir())  # noqa: ASYNC240
    assert [file.name for file in files] == ["journal.db", "journal.db-shm", "journal.db-wal"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    await journal.close()


async def test_texts_are_in_the_file_only_when_the_record_carries_them(disk: SqliteJournal) -> None:
    disk.write(a_record("a"))
    assert await disk.read("a") is not None
    assert b"a-secret-plan" not in texts_of(disk.path)
    assert b'"prompt"' not in texts_of(disk.path)
    disk.write(msgspec.structs.replace(a_record("b"), prompt="a-secret-plan"))
    assert await disk.read("b") is not None
    assert b"a-secret-plan" in texts_of(disk.path)


async def test_the_columns_say_what_the_record_says(disk: SqliteJournal) -> None:
    disk.write(a_record("a", team="search", served="small-0613", billed="acme/small", latency_ms=90, code="c"))
    names = ["id", "at_s", "snapshot", *journal_sql.EPISODE_FIELDS]
    select = f"SELECT {', '.join(names)} FROM decisions"  # noqa: S608
    columns: Any = await disk._ask(lambda c: c.execute(select).fetchone())
    assert dict(zip(names, columns, strict=True)) == {
        "id": "a",
        "at_s": NOON,
        "snapshot": "5eed",
        "key": "demo",
        "user": "ada",
        "team": "search",
        "organisation": "",
        "session": "s1",
        "workflow": "",
        "policy": "default",
        "requested": "auto",
        "routed": "acme/small",
        "served": "small-0613",
        "billed": "acme/small",
        "status": "answered",
        "code": "c",
        "cost_nano": 35,
        "baseline_nano": 100,
        "latency_ms": 90,
        "first_token_ms": None,
        "attempts": 2,
        "input_tokens": 10,
        "cached_input_tokens": 2,
        "output_tokens": 5,
        "reasoning_tokens": 1,
    }


class Pause:
    """Stops the writer thread where it is until let go, and says when it has stopped."""

    def __init__(self, journal: SqliteJournal) -> None:
        self.stopped, self.gate = threading.Event(), threading.Event()
        self.task = asyncio.create_task(journal._ask(self._wait))

    def _wait(self, _: apsw.Connection) -> None:
        self.stopped.set()
        assert self.gate.wait(30)

    async def begin(self) -> None:
        assert await asyncio.to_thread(self.stopped.wait, 30)

    async def end(self) -> None:
        self.gate.set()
        await self.task


async def test_a_stalled_writer_costs_rows_never_requests_and_every_row_is_counted(disk: SqliteJournal) -> None:
    pause = Pause(disk)
    await pause.begin()
    for n in range(1_000):
        disk.write(a_record(f"{n}"))
        disk.feedback(Feedback(decision_id="x", at_s=n, score=1.0))
    disk.snapshot("5eed", b"always finds room")
    disk.lull()  # what is not encoded yet does not find room either
    assert disk.dropped == 2_000 - 600
    assert "600 rows are waiting" in disk.last_error
    await pause.end()
    assert len(await disk.recent(1_000)) + len(await disk.feedback_of("x")) == 600
    assert await disk.read_snapshot("5eed") is not None
    disk.write(a_record("after"))
    assert await disk.read("after") is not None, "it takes rows again"
    assert disk.dropped == 1_400


async def test_a_full_disk_costs_rows_never_requests_and_every_row_is_counted(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.db")
    journal.write(a_record("first"))
    await journal._ask(lambda c: c.pragma("max_page_count", int(str(c.pragma("page_count"))) + 40))
    for n in range(3_000):
        journal.write(a_record(f"{n}"))
        if n % 50 == 49:
            await journal.read("first")  # a batch ends here
    kept = await journal._ask(lambda c: c.execute("SELECT COUNT(*) FROM episodes").get)
    assert 1 < kept < 3_001
    assert journal.dropped == 3_001 - kept
    assert (await journal.totals(0))[0].requests == kept, "a batch is there whole, or not at all"
    assert "full" in journal.last_error
    await journal._ask(lambda c: c.pragma("max_page_count", 1 << 30))
    journal.write(a_record("again"))
    assert await journal.read("again") is not None, "it takes rows again"
    await journal.close()


async def test_a_row_that_no_file_can_hold_costs_itself_alone(disk: SqliteJournal) -> None:
    pause = Pause(disk)
    await pause.begin()
    disk.write(a_record("a"))
    disk.write(a_record("\ud800"))  # half a character
    disk.write(a_record("b", cost_nano=1 << 70))
    disk.write(a_record("c", lost=(object(),)))
    disk.write(a_record("d"))
    await pause.end()
    assert [record.episode.id for record in await disk.recent(9)] == ["d", "b", "a"]
    assert disk.dropped == 2
    assert "cannot be written" in disk.last_error


async def test_sums_that_overflow_leave_no_half_row(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.db")
    for n in range(1_100):
        journal.write(a_record(f"{n}", cost_nano=1 << 62, baseline_nano=None))
    kept = len(await journal.recent(9_999))
    assert kept == (await journal.totals(0))[0].requests == 1_100 - journal.dropped < 1_100
    await journal.close()


async def test_a_reader_that_was_cancelled_harms_nobody(disk: SqliteJournal) -> None:
    mishaps: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: mishaps.append(context))
    pause = Pause(disk)
    await pause.begin()
    reader = asyncio.create_task(disk.read("a"))
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await pause.end()
    disk.write(a_record("a"))
    assert await disk.read("a") is not None
    assert mishaps == []


def test_an_event_loop_that_is_gone_does_not_stop_the_writer(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.db")
    gate = threading.Event()

    async def ask_and_leave() -> None:
        task = asyncio.create_task(journal._ask(lambda _: gate.wait(30)))
        await asyncio.sleep(0)
        task.cancel()

    async def write_and_end() -> Record | None:
        journal.write(a_record("a"))
        try:
            return await journal.read("a")
        finally:
            await journal.close()

    asyncio.run(ask_and_leave())
    gate.set()
    assert asyncio.run(write_and_end()) is not None


async def test_threads_that_write_at_once_lose_nothing_uncounted(disk: SqliteJournal) -> None:
    def write(thread: int) -> None:
        for n in range(500):
            disk.write(a_record(f"{thread}/{n}"))

    await asyncio.gather(*(asyncio.to_thread(write, thread) for thread in range(4)))
    assert len(await disk.recent(10_000)) + disk.dropped == 2_000


async def test_old_rows_are_forgotten_and_the_sums_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "FORGET_ROWS", 10)
    now = [float(NOON)]
    journal = SqliteJournal(tmp_path / "journal.db", keep_days=30, clock=lambda: now[0])
    for n in range(25):
        journal.write(a_record(f"old {n}", NOON))
    journal.write(a_record("new", NOON + 31 * DAY_S))
    for hash in ("5eed", "unused", "newest"):
        journal.snapshot(hash, b"")
    journal.feedback(Feedback(decision_id="old 1", at_s=NOON, score=1.0))
    assert len(await journal.recent(99)) == 26
    now[0] += 31 * DAY_S
    for _ in range(50):  # a few are deleted behind each
        if len(found := await journal.recent(99)) == 1 and not await journal.feedback_of("old 1"):
            break
    assert [record.episode.id for record in found] == ["new"]
    await journal.close()
    again = SqliteJournal(tmp_path / "journal.db")
    hashes = await again._ask(lambda c: [hash for (hash,) in c.execute("SELECT hash FROM snapshots ORDER BY hash")])
    assert hashes == ["5eed", "newest"], "those that a kept episode was decided with, and the newest"
    assert (await again.totals(0))[0].requests == 26
    await again.close()


async def test_two_processes_may_write_one_file(tmp_path: Path) -> None:
    journals = [SqliteJournal(tmp_path / "journal.db") for _ in range(2)]
    for n in range(200):
        journals[n % 2].write(a_record(f"{n}"))
    for journal in journals:
        await journal.read("0")
    assert len(await journals[0].recent(999)) == 200
    assert [journal.dropped for journal in journals] == [0, 0]
    for journal in journals:
        await journal.close()
