"""From learned to serving and back: the folder of states, a running gateway that takes them, and the commands."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.learned import trained
from support.worlds import BIG, TINY, world

from tests.support.commands import Command
from tests.support.gateway import CHEAP, DEAR, Gateway
from tests.support.gateway import world as served
from tests.support.upstream import FakeUpstream
from tierwise.config import apply
from tierwise.config.learned import Learned, strangers, unpromised
from tierwise.core.errors import ConfigError
from tierwise.core.learned import Trained
from tierwise.core.policy import Accept, Best, Cascade
from tierwise.core.promise import Promise, Segment
from tierwise.core.snapshot import load
from tierwise.stores.memory import MemoryLedger
from tierwise.study.judging.plan import difference
from tierwise.study.training import artefact
from tierwise.study.training.fit import FitReport, Fitted, identified
from tierwise.study.training.settings import USUAL


def promise(estimator: str, name: str = "q", *models: str, reference: str = BIG.id, **more: Any) -> Promise:
    segment = Segment(workload="", status="certified", models=models or (TINY.id,), threshold=1.0, n=500, share=0.5)
    return Promise(
        name=name, kind="choice", alpha=0.02, delta=0.1, reference=reference, estimator=estimator, made_s=1,
        data_hash="0" * 16, segments=(segment,), **more,
    )  # fmt: skip


def kept(learned: Learned, given: Trained) -> str:
    """This estimator as an artefact that can be promoted."""
    report = FitReport(
        rows=0, workloads=0, grams=0, reference=given.reference, seed=0, settings=USUAL,
        left_out=0, models=(), warnings=(),
    )  # fmt: skip
    return artefact.save(Fitted(identified(given), report, "0" * 16), learned.artefacts)


PROMISING = """
models: {simulated/large: {}, simulated/small: {}}
policy: {start: choose, plans: {choose: {best: [simulated/small], promise: q}}}
"""

# ------------------------------------------------------------------------------------------------ the folder


def test_every_state_is_kept_and_the_highest_number_serves(tmp_path: Path) -> None:
    learned = Learned(tmp_path)
    assert learned.read() is None
    assert not learned.changed()
    for note in ("one", "two", "three"):
        learned.write(lambda before, note=note: msgspec.structs.replace(before, note=note))  # type: ignore[misc]
    assert learned.serials() == [1, 2, 3]
    assert [learned.read(serial).note for serial in (1, 2, 3)] == ["one", "two", "three"]  # type: ignore[union-attr]
    back = learned.rollback(1)
    assert (back.serial, back.note) == (4, "rolled back to 1")
    assert learned.rollback().note == "rolled back to 3"
    assert sorted(path.name for path in learned.folder.iterdir()) == [f"{n:06d}.json" for n in range(1, 6)]


def test_a_change_by_another_is_seen_once(tmp_path: Path) -> None:
    mine, other = Learned(tmp_path), Learned(tmp_path)
    mine.read()
    assert not mine.changed()
    other.write(lambda before: before)
    assert mine.changed()
    mine.read()
    assert not mine.changed()


def test_many_writers_never_make_the_same_number(tmp_path: Path) -> None:
    def work(n: int) -> None:
        for i in range(10):
            Learned(tmp_path).write(lambda b, i=i: msgspec.structs.replace(b, note=f"{b.note}{n}.{i} "))  # type: ignore[misc]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    last = Learned(tmp_path).read()
    assert last is not None
    assert last.serial == 60
    assert len(set(last.note.split())) == 60, "each was made from the one before it"


@pytest.mark.parametrize("data", [b"", b"{", b'{"serial": 1}', b'{"serial": 1, "at_s": 1, "stranger": 2}', b"\xff" * 9])
def test_a_state_that_is_none_leaves_the_one_before_it(tmp_path: Path, data: bytes) -> None:
    learned = Learned(tmp_path)
    good = kept(learned, trained({BIG.id: (2.0, 0.0), TINY.id: (1.0, 0.0)}))
    learned.write(lambda before: msgspec.structs.replace(before, estimator=good))
    (learned.folder / "000002.json").write_bytes(data)
    snapshot, notes = learned.taught(world({}), grams=False)
    assert isinstance(snapshot.estimator, Trained)
    assert snapshot.estimator.id == good
    assert "number 2 does not serve" in notes[0]


def test_a_broken_artefact_is_refused_and_the_last_good_one_stays(tmp_path: Path) -> None:
    learned = Learned(tmp_path)
    ids = [kept(learned, trained({BIG.id: (2.0, slope), TINY.id: (1.0, 0.0)})) for slope in (0.0, 1.0)]
    for id in ids:
        learned.write(lambda before, id=id: msgspec.structs.replace(before, estimator=id))  # type: ignore[misc]
    arrays = learned.artefacts / ids[1] / "arrays.npz"
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"?")
    snapshot, notes = learned.taught(world({}), grams=False)
    assert isinstance(snapshot.estimator, Trained)
    assert snapshot.estimator.id == ids[0]
    assert len(notes) == 1


def test_the_first_promotion_can_be_undone(tmp_path: Path) -> None:
    learned = Learned(tmp_path)
    learned.write(lambda before: msgspec.structs.replace(before, estimator="0" * 16, promises=(promise("0" * 16),)))
    assert learned.rollback(0).promises == ()
    (learned.folder / "000002.json").unlink()
    back = learned.rollback()
    assert (back.serial, back.estimator, back.promises) == (2, "", ())


def test_what_was_withdrawn_comes_back_with_a_new_calibration_only(tmp_path: Path) -> None:
    learned, mine = Learned(tmp_path), promise("e")
    learned.write(lambda before: msgspec.structs.replace(before, promises=(mine,)))
    told = learned.withdraw("q", "", "it lost too much").promises[0].segments[0]
    assert learned.rollback().promises[0].segments[0] == told
    assert learned.rollback(1).promises[0].segments[0] == told
    learned.rollback(0)
    assert learned.still([mine])[0].segments[0] == told
    anew = msgspec.structs.replace(mine, made_s=2)
    assert learned.still([anew]) == (anew,)


@pytest.mark.parametrize("changes", [{"models": ()}, {"threshold": 9.0}, {"models": (BIG.id,)}])
def test_a_promise_that_nobody_calibrated_does_not_serve(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Edited by hand, in the file that is promoted or in the one that was."""
    learned = Learned(tmp_path)
    good = kept(learned, trained({BIG.id: (2.0, 0.0), TINY.id: (1.0, 0.0)}))
    sound = promise(good)
    edited = msgspec.structs.replace(sound, segments=(msgspec.structs.replace(sound.segments[0], **changes),))
    assert strangers(learned.estimator(good), (sound,), world({})) == []
    assert "promise q: its segment ''" in " ".join(strangers(learned.estimator(good), (edited,), world({})))
    for each in (sound, edited):
        learned.write(lambda before, each=each: msgspec.structs.replace(before, estimator=good, promises=(each,)))  # type: ignore[misc]
    snapshot, notes = learned.taught(world({}), grams=False)
    assert snapshot.promises["q"] == sound
    assert "number 2 does not serve" in notes[0]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = Learned(tmp_path)
    learned.write(lambda before: before)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ConfigError, match="No space left"):
        learned.write(lambda before: before)
    assert [path.name for path in learned.folder.iterdir()] == ["000001.json"]


def test_going_back_from_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to go back to"):
        Learned(tmp_path).rollback()
    Learned(tmp_path).write(lambda before: before)
    with pytest.raises(ConfigError, match="there is no state 7; there are 1 to 1"):
        Learned(tmp_path).rollback(7)


def test_a_withdrawn_segment_stays_withdrawn_and_others_are_left_alone(tmp_path: Path) -> None:
    learned = Learned(tmp_path)
    both = (promise("e"), promise("e", "other"))
    learned.write(lambda before: msgspec.structs.replace(before, promises=both))
    state = learned.withdraw("q", "", "it lost too much")
    assert [each.segments[0].status for each in state.promises] == ["withdrawn", "certified"]
    assert state.promises[0].segments[0].why == "it lost too much"
    since = state.promises[0].segments[0].since_s
    assert learned.withdraw("q", "", "again").promises[0].segments[0].since_s == since


# ------------------------------------------------------------------------------------------------ a running gateway


async def test_a_gateway_takes_what_is_promoted_and_goes_back_without_a_restart(tmp_path: Path) -> None:
    async with FakeUpstream() as one, FakeUpstream() as two:
        config = served(one, two, plans={"pick": {"best": ["fast", "frontier"], "promise": "q"}})
        async with Gateway(tmp_path, config) as gateway:
            learned = Learned(tmp_path / ".tierwise")
            await gateway.app.runtime.refresh()
            first = gateway.router.snapshot.hash
            await gateway.ask()
            assert (await gateway.last()).outcome.routed == DEAR, "nobody promised anything"
            id = kept(learned, trained({DEAR: (3.0, 0.0), CHEAP: (2.5, 0.0)}))
            made = promise(id, "q", CHEAP, reference=DEAR)
            learned.write(lambda before: msgspec.structs.replace(before, estimator=id, promises=(made,)))
            await gateway.app.runtime.refresh()
            await gateway.ask()
            record = await gateway.last()
            assert record.outcome.routed == CHEAP
            assert record.episode.features.grams, "a trained estimator reads the words"
            assert [each.code for each in record.decisions[0].reasons][:1] == ["promise_holds"]
            # Its snapshot is in the journal, so the decision can be explained for ever.
            data = await gateway.router.journal.read_snapshot(record.episode.snapshot)
            assert data is not None
            assert load(data).promises["q"] == made
            learned.withdraw("q", "", "it lost too much")
            await gateway.app.runtime.refresh()
            await gateway.ask()
            record = await gateway.last()
            assert record.outcome.routed == DEAR
            assert record.decisions[0].reasons[0].code == "promise_withdrawn"
            learned.write(lambda before: msgspec.structs.replace(before, estimator="", promises=()))
            await gateway.app.runtime.refresh()
            assert gateway.router.snapshot.hash == first


async def test_a_reload_of_the_configuration_keeps_what_was_promoted(tmp_path: Path) -> None:
    async with FakeUpstream() as one, FakeUpstream() as two, Gateway(tmp_path, served(one, two)) as gateway:
        learned = Learned(tmp_path / ".tierwise")
        id = kept(learned, trained({DEAR: (3.0, 0.0), CHEAP: (2.5, 0.0)}))
        learned.write(lambda before: msgspec.structs.replace(before, estimator=id))
        await gateway.apply(served(one, two, policy={"calls": 5}))
        estimator = gateway.router.snapshot.estimator
        assert isinstance(estimator, Trained)
        assert estimator.id == id


async def test_a_configuration_that_was_read_before_a_promotion_does_not_undo_it(tmp_path: Path) -> None:
    """Nor does one that comes while the promotion is read."""
    async with FakeUpstream() as one, FakeUpstream() as two, Gateway(tmp_path, served(one, two)) as gateway:
        runtime, learned = gateway.app.runtime, Learned(tmp_path / ".tierwise")
        for come_between in (False, True):
            before = await gateway.setup()
            id = kept(learned, trained({DEAR: (3.0, float(come_between)), CHEAP: (2.5, 0.0)}))
            learned.write(lambda state, id=id: msgspec.structs.replace(state, estimator=id))  # type: ignore[misc]
            looking = asyncio.create_task(runtime.refresh())
            while come_between and runtime.learned.changed():  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0)
            if not come_between:
                await looking
            apply(gateway.app, before)
            await looking
            await runtime.refresh()
            estimator = gateway.router.snapshot.estimator
            assert isinstance(estimator, Trained)
            assert estimator.id == id


# ------------------------------------------------------------------------------------------------ commands


def test_promote_history_and_rollback(command: Command, tmp_path: Path) -> None:
    learned = Learned(tmp_path / ".tierwise")
    id = kept(learned, trained({"simulated/large": (3.0, 0.0), "simulated/small": (2.0, 0.0)}))
    made = promise(id, "q", "simulated/small", reference="simulated/large")
    (tmp_path / "q.json").write_bytes(msgspec.json.encode(made))
    for words in (("promote",), ("plan",), ("promote", "--estimator", "built-in")):
        code, _, told = command(*words, "--promise", "q.json")
        assert code == 2 and f"about estimator {id}, and not the built-in one: add --estimator {id}" in told
    assert command("promote") == (2, "", "tierwise: name what is to serve: --estimator ID, --promise FILE, or both\n")
    code, told, _ = command("promote", "--estimator", id, "--promise", "q.json", "--note", "first try")
    assert (code, f"estimator {id}, promises: q" in told) == (0, True)
    # Another estimator: the promise was not about it.
    code, told, _ = command("promote", "--estimator", "built-in")
    assert code == 0
    assert "No longer: q" in told
    code, told, _ = command("rollback")
    assert (code, id in told) == (0, True)
    served, plain = (
        json.loads(command("route", "Hello", "--json", "--state", each)[1])["snapshot"] for each in (".tierwise", "no")
    )
    assert served != plain, "what was learned is in the state"
    (tmp_path / "q.yaml").write_text(PROMISING)
    assert "names the promise" not in command("config", "check", "q.yaml")[1]
    (tmp_path / "nope.yaml").write_text(PROMISING.replace("promise: q", "promise: nope"))
    code, told, _ = command("config", "check", "nope.yaml")
    assert code == 0 and told.count("names the promise") == 1
    assert "plan choose names the promise nope, which is not certified here (certified: q): requests go to " in told
    assert "go to simulated/large until it is promoted." in told
    code, told, _ = command("history", "--json")
    states = json.loads(told)["data"]
    assert [state["serial"] for state in states] == [3, 2, 1]
    assert states[-1]["note"] == "first try"
    assert command("history")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("promote", "--estimator", "0123456789abcdef"), "0123456789abcdef"),
        (("promote", "--estimator", "../../etc"), "cannot serve"),
        (("promote", "--promise", "none.json"), "none.json cannot be read"),
        (("promote", "--promise", "text.json"), "text.json is no JSON: --promise takes the file that `tierwise calibr"),
        (("promote", "--promise", "list.json"), "list.json is JSON and no promise: --promise takes the file that"),
        (("promote", "--promise", "stranger.json"), "names acme/big, which the catalogue lacks"),
        (("plan", "--promise", "stranger.json"), "is about estimator feedfeedfeedfeed: calibrate again"),
        (("rollback",), "nothing to go back to"),
        (("rollback", "3"), "nothing was promoted yet"),
    ],
)
def test_what_cannot_be_promoted_says_why(command: Command, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "list.json").write_text('{"kind": "choice"}')
    (tmp_path / "stranger.json").write_bytes(msgspec.json.encode(promise("feedfeedfeedfeed")))
    code, _, told = command(*words)
    assert code == 2
    assert said in told
    assert told.count(".tierwise/learned") <= 1  # a path is said once
    assert Learned(tmp_path / ".tierwise").serials() == []


def test_an_artefact_that_is_not_there_or_not_sound_is_named_once(command: Command, tmp_path: Path) -> None:
    learned = Learned(tmp_path / ".tierwise")
    id = kept(learned, trained({BIG.id: (2.0, 0.0), TINY.id: (1.0, 0.0)}))
    code, _, told = command("promote", "--estimator", "0123456789abcdef")
    assert code == 2 and f"there are {id}" in told and told.count(str(learned.artefacts.name)) == 1
    (learned.artefacts / id / "manifest.json").write_text("{")
    code, _, told = command("promote", "--estimator", id)
    assert code == 2 and "manifest.json" in told and told.count(str(learned.artefacts.name)) == 1


def test_a_plan_without_a_journal_says_so(command: Command) -> None:
    code, told, _ = command("plan")
    assert code == 0
    assert "There is nothing to compare" in told


# ------------------------------------------------------------------------------------------------ the difference


def test_what_would_change_is_counted_by_slice_and_priced() -> None:
    from support.worlds import episode

    plain = world({"pick": Best(("frontier", "local"))})
    estimator = trained({BIG.id: (3.0, 0.0), TINY.id: (3.0, 8.0)})
    after = msgspec.structs.replace(plain, estimator=estimator, hash="after")
    stories = [
        msgspec.structs.replace(
            episode(plain, features={"complexity": hard, "task": "code"}), id=f"e{i}", workload=name
        )
        for i, (hard, name) in enumerate([(0.0, "easy"), (0.0, "easy"), (0.9, "hard")])
    ]
    found = asyncio.run(difference(plain, after, stories, lambda: (MemoryLedger(()), MemoryLedger(()))))
    assert found.n == 3
    assert found.judge == estimator.id
    moved = {each.name: (each.n, each.moved) for each in found.workloads}
    assert moved == {"easy": (2, 2), "hard": (1, 0)}
    assert found.moves == ((BIG.id, TINY.id, 2),)
    assert found.cost_after_nano < found.cost_before_nano
    assert found.quality_low <= found.quality <= found.quality_high


def test_a_promise_that_gets_lost_is_named() -> None:
    from support.worlds import episode

    estimator = trained({BIG.id: (3.0, 0.0), TINY.id: (3.0, 0.0)})
    before = world({"pick": Best(("local",), promise="q")})
    before = msgspec.structs.replace(before, estimator=estimator, promises={"q": promise(estimator.id)})
    after = msgspec.structs.replace(before, promises={})
    found = asyncio.run(difference(before, after, [episode(before)], lambda: (MemoryLedger(()), MemoryLedger(()))))
    assert [each.promise for each in found.promises_lost] == ["q"]
    assert found.moves == ((TINY.id, BIG.id, 1),)


@pytest.mark.parametrize("status", ["certified", "withdrawn"])
def test_a_rung_whose_promise_lets_nobody_answer_is_told(status: Any) -> None:
    estimator = trained({BIG.id: (3.0, 0.0), TINY.id: (3.0, 0.0)})
    plain = world(
        {"climb": Cascade(("thrifty", BIG.id), Accept(check=("complete",))), "thrifty": Best(("local",), promise="q")}
    )
    made = promise(estimator.id)
    made = msgspec.structs.replace(made, segments=(msgspec.structs.replace(made.segments[0], status=status),))
    found = unpromised(msgspec.structs.replace(plain, promises={"q": made}))
    assert [each.partition("(certified: none): ")[2] for each in found] == (
        ["its rung is left out until it is promoted."] if status == "withdrawn" else []
    )


def test_a_cascade_that_ends_in_another_model_than_the_reference_is_refused() -> None:
    estimator = trained({BIG.id: (3.0, 0.0), TINY.id: (3.0, 0.0)})
    made = msgspec.structs.replace(promise(estimator.id), kind="choice")
    for last, refused in (("frontier", False), (BIG.id, False), ("fast", True)):
        snapshot = world({
            "climb": Cascade(("thrifty", last), Accept(check=("complete",))),
            "thrifty": Best(("local",), promise="q"),
        })  # fmt: skip
        found = strangers(estimator, (made,), snapshot)
        assert any("does not lead there" in each for each in found) == refused, found
