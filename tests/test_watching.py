"""A gateway looks after its promises: what fresh labelled traffic refutes is withdrawn, and nothing else is."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import msgspec
import pytest
from support.learned import trained
from support.worlds import BIG, TINY, episode, replied, world

from tierwise.config.learned import Learned
from tierwise.config.watching import Watching
from tierwise.core.decide import decide
from tierwise.core.episode import Told
from tierwise.core.policy import Best
from tierwise.core.ports import Outcome, Record
from tierwise.core.promise import Promise, Segment
from tierwise.core.snapshot import Snapshot
from tierwise.stores.memory import MemoryJournal

BEGUN_S = 1_780_000_000
ESTIMATOR = trained({BIG.id: (3.0, 0.0), TINY.id: (3.0, 0.0)})


def promised(alpha: float = 0.05, *workloads: str) -> Promise:
    segments = tuple(
        Segment(workload=each, status="certified", models=(TINY.id,), threshold=1.0, n=100, share=1.0)
        for each in workloads or ("",)
    )
    return Promise(
        name="q", kind="choice", alpha=alpha, delta=0.1, reference=BIG.id, estimator=ESTIMATOR.id, made_s=BEGUN_S,
        data_hash="0" * 16, segments=segments,
    )  # fmt: skip


def serving(promise: Promise) -> Snapshot:
    plain = world({"pick": Best(("local",), promise="q")})
    return msgspec.structs.replace(plain, estimator=ESTIMATOR, promises={"q": promise})


def answered(snapshot: Snapshot, number: int, own: float, best: float | None, workload: str = "") -> Record:
    """A request that the small model answered, and the large one as well, beside it, with a grade each."""
    begun = msgspec.structs.replace(
        episode(snapshot), id=f"e{number:05d}", workload=workload, at_s=BEGUN_S + 10 + number
    )
    first = decide(snapshot, begun)
    story = begun.then(replied(first.step.at, TINY.id))  # type: ignore[union-attr]
    shadows = ()
    if best is not None:
        grades = [
            Told(at=f"s!{of}", model="acme/grader", after_ms=900, topic="grade", score=score, of=of)
            for of, score in ((0, own), (1, best))
        ]
        shadows = (replied("s", BIG.id), *grades)
    return Record(
        episode=story,
        decisions=(first, decide(snapshot, story)),
        outcome=Outcome(status="answered", routed=TINY.id),
        shadows=shadows,
    )


def settled(tmp_path: Path, promise: Promise) -> Watching:
    learned = Learned(tmp_path)
    learned.write(lambda before: msgspec.structs.replace(before, estimator=ESTIMATOR.id, promises=(promise,)))
    return Watching(learned, lag_s=0)


@pytest.mark.parametrize(("worse", "breaks"), [(0.3, True), (0.02, False)])
async def test_a_promise_that_broke_is_withdrawn_and_one_that_holds_stays(
    tmp_path: Path, worse: float, breaks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    promise = promised()
    snapshot, watching, chance = serving(promise), settled(tmp_path, promise), random.Random(1)
    journal = MemoryJournal(5_000)
    for number in range(600):
        journal.write(answered(snapshot, number, float(chance.random() >= worse), 1.0))
    with caplog.at_level(logging.ERROR, "tierwise"):
        found = await watching.look(journal, BEGUN_S + 1_000)
    state = watching.learned.read()
    assert state is not None
    status = state.promises[0].segments[0].status
    assert (len(found), status) == ((1, "withdrawn") if breaks else (0, "certified"))
    assert ("no longer holds" in caplog.text) == breaks
    assert state.serial == (2 if breaks else 1)
    # What was seen is not seen again, also by another process.
    assert await Watching(Learned(tmp_path), lag_s=0).look(journal, BEGUN_S + 1_001) == ()


async def test_only_the_workload_that_broke_goes_back(tmp_path: Path) -> None:
    promise = promised(0.05, "good", "bad", "")
    snapshot, watching = serving(promise), settled(tmp_path, promise)
    journal = MemoryJournal(5_000)
    for number in range(400):
        bad = number % 2 == 1
        journal.write(answered(snapshot, number, 0.0 if bad and number % 3 else 1.0, 1.0, "bad" if bad else "good"))
    assert [each.workload for each in await watching.look(journal, BEGUN_S + 1_000)] == ["bad"]
    state = watching.learned.read()
    assert state is not None
    assert {each.workload: each.status for each in state.promises[0].segments} == {
        "good": "certified", "bad": "withdrawn", "": "certified",
    }  # fmt: skip


async def test_a_request_without_both_labels_says_nothing_but_counts_for_the_share(tmp_path: Path) -> None:
    promise = promised()
    snapshot, watching = serving(promise), settled(tmp_path, promise)
    journal = MemoryJournal(5_000)
    for number in range(300):
        journal.write(answered(snapshot, number, 0.0, None))
    assert await watching.look(journal, BEGUN_S + 1_000) == ()
    seen = watching.read()
    assert seen is not None
    assert seen.watch.bets[0].n == 0
    assert (seen.counts[0].requests, seen.counts[0].spared) == (400.0, 400.0)


async def test_what_is_looked_at_piece_by_piece_adds_up(tmp_path: Path) -> None:
    promise = promised()
    snapshot = serving(promise)
    journal = MemoryJournal(5_000)
    for number in range(200):
        journal.write(answered(snapshot, number, float(number % 4 > 0), 1.0))
    once, often = settled(tmp_path / "once", promise), settled(tmp_path / "often", promise)
    whole = await once.look(journal, BEGUN_S + 500)
    pieces = [each for at in range(11, 501, 7) for each in await often.look(journal, BEGUN_S + at)]
    assert len(whole) == len(pieces) == 1


async def test_a_broken_memory_begins_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    promise = promised()
    snapshot, watching = serving(promise), settled(tmp_path, promise)
    watching.path.write_bytes(b"{broken")
    journal = MemoryJournal(5_000)
    for number in range(300):
        journal.write(answered(snapshot, number, 0.0, 1.0))
    with caplog.at_level(logging.ERROR, "tierwise"):
        assert len(await watching.look(journal, BEGUN_S + 1_000)) == 1
    assert "watched from now on" in caplog.text


async def test_nothing_is_done_where_nothing_is_promised(tmp_path: Path) -> None:
    watching = Watching(Learned(tmp_path / "none"), lag_s=0)
    assert await watching.look(MemoryJournal(10), BEGUN_S) == ()
    assert not (tmp_path / "none").exists()
