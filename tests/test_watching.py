"""A gateway looks after its promises: what fresh labelled traffic refutes is withdrawn, and nothing else is."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator
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
from tierwise.core.ports import Feedback, Heard, Journal, Outcome, Record
from tierwise.core.promise import Promise, Segment
from tierwise.core.request import Payer
from tierwise.core.snapshot import Snapshot
from tierwise.stores.journal import SqliteJournal
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
    shadows = () if best is None else (replied("s", BIG.id), grade(0, own), grade(1, best))
    return Record(
        episode=story,
        decisions=(first, decide(snapshot, story)),
        outcome=Outcome(status="answered", routed=TINY.id),
        shadows=shadows,
    )


def grade(of: int, score: float) -> Told:
    return Told(at=f"s!{of}", model="acme/grader", after_ms=900, topic="grade", score=score, of=of)


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


@pytest.mark.parametrize(("keys", "withdrawn"), [(2, True), (60, False)])
async def test_one_key_of_many_cannot_withdraw_a_promise(tmp_path: Path, keys: int, withdrawn: bool) -> None:
    """The first of them says of everything that the reference was better, as often as all others together praise."""
    promise = promised()
    snapshot, watching = serving(promise), settled(tmp_path, promise)
    journal = MemoryJournal(5_000)
    for number in range(400):
        lies = number % 2 == 0
        record = answered(snapshot, number, 1.0, 1.0)
        journal.write(record)
        key = "k0" if lies else f"k{number // 2 % max(keys - 1, 1) + 1}"
        score, payer = (0.0 if lies else 1.0), Payer(key=key)
        journal.feedback(Feedback(decision_id=record.episode.id, at_s=BEGUN_S + 20, score=score, payer=payer))
    assert bool(await watching.look(journal, BEGUN_S + 1_000)) == withdrawn
    seen = watching.read()
    assert seen is not None
    (count,) = seen.counts
    said = sum(count.judges.values())
    assert len(count.judges) == keys
    assert max(count.judges.values()) <= max(0.05, 2 / len(count.judges)) * said + 1


@pytest.fixture(params=["memory", "sqlite"])
async def journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Journal]:
    made = MemoryJournal(5_000) if request.param == "memory" else SqliteJournal(tmp_path / "journal.sqlite")
    yield made
    await made.close()


def human(number: int, score: float) -> Feedback:
    return Feedback(decision_id=f"e{number:05d}", at_s=BEGUN_S, score=score, source="human")


async def bets(watching: Watching) -> tuple[int, float]:
    seen = watching.read()
    assert seen is not None
    return seen.watch.bets[0].n, seen.watch.bets[0].total_loss


async def test_labels_that_come_after_a_request_was_settled_count_once_when_they_come(
    tmp_path: Path, journal: Journal
) -> None:
    promise = promised()
    snapshot, watching = serving(promise), settled(tmp_path, promise)
    for number in range(4):
        journal.write(answered(snapshot, number, 0.0, None))
    journal.write(answered(snapshot, 4, 1.0, 1.0))  # labelled in time
    journal.shadow("e00003", BEGUN_S + 13, replied("s", BIG.id))
    await watching.look(journal, BEGUN_S + 100)
    assert await bets(watching) == (1, 0.0)
    for number in range(3):
        for event in (replied("s", BIG.id), grade(0, 0.0), grade(1, 1.0)):
            journal.shadow(f"e{number:05d}", BEGUN_S + 10 + number, event)
    journal.shadow("e00003", BEGUN_S + 13, grade(1, 1.0))  # of one reply only
    journal.feedback(human(4, 0.0))  # a change of mind: what was bet stays
    await watching.look(journal, BEGUN_S + 101)
    assert await bets(watching) == (4, 3.0)
    journal.feedback(human(3, 1.0))  # and of the other
    journal.feedback(human(2, 1.0))
    # As a new process, whose memory is the file.
    watching = Watching(watching.learned, lag_s=0)
    await watching.look(journal, BEGUN_S + 102)
    await watching.look(journal, BEGUN_S + 103)
    assert await bets(watching) == (5, 3.0)
    seen = watching.read()
    assert seen is not None
    assert seen.counts[0].requests == 105.0  # each request once, and a hundred of the calibration


async def test_a_weaker_label_does_not_let_a_request_count_again(tmp_path: Path, journal: Journal) -> None:
    """A failed check is a sound label and a passed one is not: who says one and then the other takes soundness back."""
    promise = promised()
    snapshot, watching = serving(promise), settled(tmp_path, promise)
    journal.write(answered(snapshot, 0, 0.0, None))
    for event in (replied("s", BIG.id), grade(1, 1.0)):
        journal.shadow("e00000", BEGUN_S + 10, event)
    for at, score in enumerate((0.0, 1.0, 0.0)):
        journal.feedback(msgspec.structs.replace(human(0, score), source="check"))
        await watching.look(journal, BEGUN_S + 100 + at)
        assert await bets(watching) == (1, 1.0)


async def test_a_promise_that_only_late_labels_refute_is_withdrawn(tmp_path: Path, journal: Journal) -> None:
    promise = promised()
    snapshot, watching = serving(promise), settled(tmp_path, promise)
    for number in range(100):
        journal.write(answered(snapshot, number, 0.0, None))
        for event in (replied("s", BIG.id), grade(1, 1.0)):
            journal.shadow(f"e{number:05d}", BEGUN_S + 10 + number, event)
    assert await watching.look(journal, BEGUN_S + 1_000) == ()
    for number in range(100):
        journal.feedback(human(number, 0.0))
    assert [each.workload for each in await watching.look(journal, BEGUN_S + 9_000)] == [""]


class Chatty(MemoryJournal):
    """Something is said while it is looked at."""

    async def heard(self) -> Heard:
        found = await super().heard()
        self.shadow("e00000", BEGUN_S + 10, grade(0, 0.0))
        return found


async def test_what_is_said_during_a_look_counts_at_the_next_and_once(tmp_path: Path) -> None:
    promise = promised()
    snapshot, watching, journal = serving(promise), settled(tmp_path, promise), Chatty(10)
    journal.write(answered(snapshot, 0, 0.0, None))
    for event in (replied("s", BIG.id), grade(1, 1.0)):
        journal.shadow("e00000", BEGUN_S + 10, event)
    counted = []
    for at in range(3):
        await watching.look(journal, BEGUN_S + 100 + at)
        counted.append(await bets(watching))
    assert counted == [(0, 0.0), (1, 1.0), (1, 1.0)]


async def test_a_memory_from_before_late_labels_counts_nothing_twice(tmp_path: Path, journal: Journal) -> None:
    promise = promised()
    snapshot, watching = serving(promise), settled(tmp_path, promise)
    journal.write(answered(snapshot, 0, 1.0, None))
    for event in (replied("s", BIG.id), grade(0, 0.0), grade(1, 1.0)):
        journal.shadow("e00000", BEGUN_S + 10, event)
    await watching.look(journal, BEGUN_S + 100)
    seen = watching.read()
    assert seen is not None
    watching.path.write_bytes(msgspec.json.encode(msgspec.structs.replace(seen, heard=None)))
    await watching.look(journal, BEGUN_S + 101)
    assert await bets(watching) == (1, 1.0)


async def test_a_journal_that_was_replaced_is_heard_from_now_on(tmp_path: Path) -> None:
    promise = promised()
    snapshot, watching = serving(promise), settled(tmp_path, promise)
    old, new = MemoryJournal(5_000), MemoryJournal(5_000)
    for number in range(3):
        old.feedback(human(number, 1.0))
    await watching.look(old, BEGUN_S + 100)
    new.write(answered(snapshot, 1, 0.0, None))
    new.feedback(human(1, 0.0))
    await watching.look(new, BEGUN_S + 101)
    for event in (replied("s", BIG.id), grade(1, 1.0)):
        new.shadow("e00001", BEGUN_S + 11, event)
    await watching.look(new, BEGUN_S + 102)
    assert await bets(watching) == (1, 1.0)


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
