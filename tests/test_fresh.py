"""A gateway says where requests drift and whose go to dear models: once, in words, also with nothing promised."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from support.learned import trained
from support.worlds import BIG, TINY, episode, world

from tests.support.gateway import Gateway
from tests.support.gateway import world as served
from tests.support.upstream import FakeUpstream
from tests.test_cli import run
from tierwise.config.learned import Learned
from tierwise.config.watching import FILE, TOLD, Watching
from tierwise.core.learned import DENSE
from tierwise.core.ports import Outcome, Record, Story
from tierwise.core.request import Features, Payer
from tierwise.stores.memory import MemoryJournal
from tierwise.study.table import inputs_of
from tierwise.study.training import artefact
from tierwise.study.training.fit import FitReport, Fitted, identified
from tierwise.study.training.histograms import MIX, Histogram, histograms
from tierwise.study.training.settings import USUAL
from tierwise.watch.fresh import (
    DAY_S,
    KEPT,
    KEYS,
    LOOK_S,
    Drifting,
    Skewing,
    drift_words,
    drifting,
    look_at_drift,
    look_at_skew,
    skewing,
)

BEGUN_S = 20_000 * DAY_S
SNAPSHOT = world()


def features(dice: np.random.Generator, n: int, shift: float = 0.0) -> list[Features]:
    """Like those of training, but for the complexity, which lies higher by so many standard deviations."""
    return [
        Features(
            input_tokens=int(dice.lognormal(5, 1)),
            input_bound_tokens=1_000,
            turns=int(dice.integers(1, 4)),
            complexity=float(np.clip(dice.normal(0.4 + 0.1 * shift, 0.1), 0, 1)),
        )
        for _ in range(n)
    ]


def reference(workloads: Iterable[str] = ("",)) -> tuple[Histogram, ...]:
    dice, names = np.random.default_rng(99), tuple(workloads)
    return histograms(inputs_of(features(dice, 2_000)), [names[i % len(names)] for i in range(2_000)])


REFERENCE = reference()


def record(number: int, at_s: int, given: Features, key: str = "", dear: bool = False, **more: Any) -> Record:
    asked = msgspec.structs.replace(
        episode(SNAPSHOT, payer=Payer(key=key)), id=f"e{number:06d}", at_s=at_s, features=given, **more
    )
    spent = 10_000 if dear else 900
    outcome = Outcome(status="answered", routed=BIG.id if dear else TINY.id, cost_nano=spent, baseline_nano=10_000)
    return Record(episode=asked, decisions=(), outcome=outcome)


def stories(given: Iterable[Record]) -> list[Story]:
    return [Story(each, ()) for each in given]


def asked(many: list[Features]) -> list[Story]:
    return stories(record(i, BEGUN_S, each) for i, each in enumerate(many))


def day(state: Drifting, number: int, draw: Callable[[int], list[Features]]) -> tuple[Drifting, list[tuple[str, str]]]:
    """24 hours of 20 requests, and what was told of them."""
    told = []
    for hour in range(24):
        at_s = BEGUN_S + number * DAY_S + (hour + 1) * LOOK_S
        state = drifting(state, asked(draw(20)), "e", REFERENCE)
        state, new = look_at_drift(state, REFERENCE, at_s)
        told += [(each.workload, each.feature) for each in new]
    return state, told


# ------------------------------------------------------------------------------------------------ drift


def test_a_drift_is_told_once_and_again_after_a_day_without_it() -> None:
    dice = np.random.default_rng(1)
    state, told = Drifting(day=BEGUN_S // DAY_S), []
    for number, shift in enumerate((0.0, 1.0, 1.0, 0.0, 1.0)):
        state, new = day(state, number, lambda n, shift=shift: features(dice, n, shift))  # type: ignore[misc]
        told.append(new)
    assert told == [[], [("", "complexity")], [], [], [("", "complexity")]]


def test_nothing_is_told_of_days_like_training_but_at_the_stated_rate() -> None:
    dice, state, alarms = np.random.default_rng(2), Drifting(day=BEGUN_S // DAY_S), 0
    for number in range(60):
        state, told = day(state, number, lambda n: features(dice, n))
        alarms += bool(told)
    assert alarms <= 4  # 1 % of 60 is 0.6


def test_what_is_sure_and_small_is_not_told() -> None:
    dice = np.random.default_rng(3)
    state = drifting(Drifting(), asked(features(dice, 4_000, 0.2)), "e", REFERENCE)
    state, told = look_at_drift(state, REFERENCE, BEGUN_S)
    (found,) = [each for each in state.found if each.feature == "complexity"]
    assert found.drifted and found.index < 0.1 and told == ()
    assert {each.feature for each in state.found} == {*DENSE, MIX}


def test_another_estimator_begins_anew_and_one_without_inputs_says_nothing() -> None:
    dice = np.random.default_rng(4)
    state = drifting(Drifting(), asked(features(dice, 200, 2.0)), "e", REFERENCE)
    state, told = look_at_drift(state, REFERENCE, BEGUN_S)
    assert told and state.told
    other = drifting(state, asked(features(dice, 10)), "f", REFERENCE)
    assert (other.told, other.found, sum(other.counts[0])) == ((), (), 10)
    none = drifting(state, asked(features(dice, 10)), "g", ())
    assert look_at_drift(none, (), BEGUN_S + LOOK_S)[1] == () and none.counts == ()


def test_what_is_kept_of_many_workloads_is_bounded() -> None:
    dice = np.random.default_rng(5)
    names = [f"w{i:02d}" for i in range(20)]
    before = reference(names)
    other = [msgspec.structs.replace(each, input_tokens=99_999, turns=9) for each in features(dice, 2_000, 3.0)]
    given = stories(record(i, BEGUN_S, each, workload=names[i % 20]) for i, each in enumerate(other))
    state, told = look_at_drift(drifting(Drifting(), given, "e", before), before, BEGUN_S)
    assert len(told) > KEPT
    assert len([each for each in state.found if each.workload]) == KEPT
    assert "workload w" in drift_words(next(each for each in told if each.workload))


# ------------------------------------------------------------------------------------------------ skew


def spread(dice: np.random.Generator, shares: dict[str, float], many: int) -> list[Story]:
    plain = Features(input_tokens=100, input_bound_tokens=500)
    given = [(key, dice.random() < share) for key, share in shares.items() for _ in range(many)]
    return stories(record(i, BEGUN_S, plain, key, dear) for i, (key, dear) in enumerate(given))


def test_a_key_that_rises_is_told_once() -> None:
    dice = np.random.default_rng(6)
    usual = {f"k{i}": 0.3 for i in range(10)}
    state, told = Skewing(day=BEGUN_S // DAY_S), []
    for number, shares in enumerate((usual, usual, usual | {"k3": 0.9}, usual | {"k3": 0.9})):
        for hour in range(1, 25):
            state = skewing(state, spread(dice, shares, 5))
            state, new = look_at_skew(state, BEGUN_S + number * DAY_S + hour * LOOK_S)
            told += [(number, each.key) for each in new]
    assert told == [(2, "k3")]


def test_a_key_is_held_against_its_own_past() -> None:
    """Which none of these would be told by: they lie far apart."""
    dice, told = np.random.default_rng(10), []
    usual = {f"k{i}": 0.1 * i for i in range(10)}
    state = Skewing(day=BEGUN_S // DAY_S)
    for number, shares in enumerate((usual, usual | {"k2": 0.7})):
        for hour in range(1, 25):
            state = skewing(state, spread(dice, shares, 5))
            state, new = look_at_skew(state, BEGUN_S + number * DAY_S + hour * LOOK_S)
            told += [(number, each.key) for each in new]
    assert told == [(1, "k2")]


def test_who_names_a_model_or_has_no_price_or_no_key_says_nothing() -> None:
    plain = Features(input_tokens=100, input_bound_tokens=500)
    said = record(0, BEGUN_S, plain, "k", True)
    unpriced = [msgspec.structs.replace(said.outcome, **{name: None}) for name in ("cost_nano", "baseline_nano")]
    silent = [
        record(1, BEGUN_S, plain, "k", True, pinned=BIG.id),
        record(2, BEGUN_S, plain, "k", True, policy="tier:frontier"),
        record(3, BEGUN_S, plain, "k", True, kind="embedding"),
        record(4, BEGUN_S, plain, "", True),
        *[msgspec.structs.replace(said, outcome=each) for each in unpriced],
        msgspec.structs.replace(said, outcome=Outcome(status="refused")),
    ]
    for each in silent:
        assert skewing(Skewing(), stories([each])) == Skewing()
    assert skewing(Skewing(), stories([said])).now["k"].dear == 1
    assert skewing(Skewing(), stories([record(0, BEGUN_S, plain, "k", False)])).now["k"].dear == 0


def test_many_keys_are_bounded() -> None:
    dice = np.random.default_rng(7)
    state = skewing(Skewing(), spread(dice, {"busy": 0.5}, 3))
    state = skewing(state, spread(dice, {f"k{i}": 0.5 for i in range(KEYS + 50)}, 1))
    assert len(state.now) == KEYS and "busy" in state.now


# ------------------------------------------------------------------------------------------------ the whole way


def promoted(folder: Path, inputs: tuple[Histogram, ...] = REFERENCE) -> Watching:
    """An estimator alone, and nothing promised."""
    learned = Learned(folder)
    report = FitReport(
        rows=0, workloads=0, grams=0, reference=BIG.id, seed=0, settings=USUAL, left_out=0, models=(), warnings=()
    )
    estimator = identified(trained({BIG.id: (3.0, 0.0), TINY.id: (3.0, 0.0)}))
    id = artefact.save(Fitted(estimator, report, "0" * 16, inputs), learned.artefacts)
    learned.write(lambda before: msgspec.structs.replace(before, estimator=id))
    # As a gateway before this one left it.
    old = f'{{"until_s":{BEGUN_S},"watch":{{"delta":0.05,"bets":[]}},"counts":[]}}'
    (learned.folder / FILE).write_text(old)
    return Watching(learned, lag_s=0)


def journal(shift: float, keys: dict[str, float]) -> MemoryJournal:
    dice, kept = np.random.default_rng(8), MemoryJournal(5_000)
    many = features(dice, 60 * len(keys), shift)
    for i, each in enumerate(many):
        key = list(keys)[i % len(keys)]
        kept.write(record(i, BEGUN_S + 10 + i // 100, each, key, dice.random() < keys[key]))
    return kept


USUAL_KEYS = {f"k{i}": 0.3 for i in range(9)}


async def test_a_gateway_says_what_drifts_and_who_is_skewed_and_remembers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watching, kept = promoted(tmp_path), journal(1.5, {**USUAL_KEYS, "bob": 0.97})
    with caplog.at_level(logging.WARNING, "tierwise"):
        assert await watching.look(kept, BEGUN_S + LOOK_S) == ()
        said = [each.getMessage() for each in caplog.records]
        assert [line for line in said if "complexity of all requests together" in line and "600 requests" in line]
        (skewed,) = [line for line in said if "key" in line]
        assert "of 60 requests of key bob went to dear models, where 2" in skewed
        assert len(said) == 2
        # By whatever looks next, also another process: not again.
        again = Watching(Learned(tmp_path), lag_s=0)
        await again.look(kept, BEGUN_S + 2 * LOOK_S)
        assert len(caplog.records) == 2
    assert again.seen is not None and [each.key for each in again.seen.skewing.found] == ["bob"]
    shown = run("drift", "--state", str(tmp_path), cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "Key bob: " in shown.stdout and "complexity" in shown.stdout and "yes" in shown.stdout
    told = msgspec.json.decode(run("drift", "--state", str(tmp_path), "--json", cwd=tmp_path).stdout)
    assert told["has_inputs"] and told["skew"][0]["key"] == "bob"
    assert [each["feature"] for each in told["drift"] if each["drifted"]] == ["complexity"]


async def test_usual_traffic_is_no_finding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watching = promoted(tmp_path)
    with caplog.at_level(logging.WARNING, "tierwise"):
        kept = journal(0.0, USUAL_KEYS)
        for until_s in (BEGUN_S + 12, BEGUN_S + LOOK_S):  # in two pieces, which add up
            await watching.look(kept, until_s)
    assert not caplog.records
    assert watching.seen is not None and sum(watching.seen.drifting.counts[0]) == 540
    assert len(watching.seen.drifting.found) == len(DENSE) + 1
    shown = run("drift", "--state", str(tmp_path), cwd=tmp_path).stdout
    assert "No key's requests" in shown and "yes" not in shown


async def test_an_estimator_without_inputs_or_none_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watching = promoted(tmp_path, ())
    await watching.look(journal(1.5, {**USUAL_KEYS, "bob": 0.97}), BEGUN_S + LOOK_S)
    assert watching.seen is not None and not watching.seen.drifting.found
    assert [each.key for each in watching.seen.skewing.found] == ["bob"]  # for which no training is needed
    assert "fit and promote again" in run("drift", "--state", str(tmp_path), cwd=tmp_path).stdout
    empty = run("drift", "--state", str(tmp_path / "empty"), cwd=tmp_path).stdout
    assert "No trained estimator serves" in empty and "Nothing was looked at yet" in empty


async def test_many_drifts_are_told_in_few_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"w{i:02d}" for i in range(30)]
    watching, kept = promoted(tmp_path, reference(names)), MemoryJournal(5_000)
    for i, each in enumerate(features(np.random.default_rng(9), 3_000, 4.0)):
        kept.write(record(i, BEGUN_S + 10 + i // 100, each, workload=names[i % 30]))
    with caplog.at_level(logging.WARNING, "tierwise"):
        await watching.look(kept, BEGUN_S + LOOK_S)
    assert len(caplog.records) == TOLD + 1
    assert "drifts more: tierwise drift" in caplog.records[-1].getMessage()


async def test_metrics_show_drift_and_name_no_key(tmp_path: Path) -> None:
    watching = promoted(tmp_path / "other")
    await watching.look(journal(1.5, {**USUAL_KEYS, "bob": 0.97}), BEGUN_S + LOOK_S)
    async with FakeUpstream() as one, Gateway(tmp_path, served(one)) as gateway:
        before = (await gateway.get("/metrics")).body.decode()
        assert "tierwise_drift{" not in before and "tierwise_skewed_keys 0.0" in before
        gateway.app.runtime.watching.seen = watching.seen
        after = (await gateway.get("/metrics")).body.decode()
    assert 'tierwise_drift{drifted="true",feature="complexity",workload=""}' in after
    assert 'tierwise_drift{drifted="false",feature="turns",workload=""}' in after
    assert "tierwise_skewed_keys 1.0" in after and "bob" not in after
