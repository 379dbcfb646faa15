"""Whoever tries to steer the router: feedback that lies, and prefixes that make every request look hard."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import numpy as np
import pytest

from scripts import attack_routing as attack
from tests.test_cli import run
from tierwise.core.snapshot import Snapshot
from tierwise.study.data.intake import Intake
from tierwise.study.data.outcomes import load
from tierwise.study.data.trust import Labels, Suspect, reweighed, suspects, trusts, without
from tierwise.study.table import Table
from tierwise.study.training.artefact import read_manifest
from tierwise.study.training.believed import fit_believed
from tierwise.study.training.fit import fit
from tierwise.study.training.settings import USUAL
from tierwise.watch.skew import Share, shares, skew


@pytest.fixture(scope="module")
def honest() -> Snapshot:
    return attack.learned(attack.stories(0, 0.0))


def test_a_key_that_lies_hardly_moves_the_shares() -> None:
    """5 % of all feedback, all the way from records to decisions: one that always lies is left out, and nobody honest;
    one that lies half of the time is not sure to be found, and believed little. Many worlds: the script."""
    found = attack.poison(5), attack.poison(2, lies=0.5)
    assert [each.suspected for each in found] == [(attack.LIAR,), ()]
    assert all(abs(each.doubting - each.honest) <= 0.02 for each in found)
    assert all(each.trusting - each.honest > 0.04 for each in found)  # else there was nothing to defend against


def test_a_prefix_raises_the_share_of_dear_replies_by_at_most_ten_points(honest: Snapshot) -> None:
    found = attack.prefix_attack(honest, 1, many=400)
    assert found.unbounded - found.usual > 0.3  # the search does find one
    assert 0.0 <= found.held - found.usual <= 0.10  # without a budget
    assert abs(found.after - found.usual) <= 0.05  # let go when it is over
    assert found.bounded - found.usual <= 0.10  # with one, and no other hold
    assert found.answered == 1.0
    assert found.spent_nano <= found.limit_nano and not found.overdrawn


def test_keys_that_attack_nobody_keep_their_models(honest: Snapshot) -> None:
    found = attack.clean(honest, 0, keys=3, many=1_000)
    assert found.dearer <= 0.05 and found.moved <= 0.002 and found.worst <= 0.005


# ------------------------------------------------------------------------------------------------ trust


@pytest.mark.parametrize("lies", [1.0, 0.0])
def test_the_command_says_whose_labels_it_left_out(tmp_path: Path, lies: float) -> None:
    """`tierwise fit` on tables that were made of a journal."""
    with Intake(tmp_path / "tables") as intake:
        for story in attack.stories(1, lies):
            intake.add(story)
        intake.finish()
    ran = run("fit", "tables", "--reference", attack.DEAR, "--out", "out", "--json", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    errors, told = ran.stderr, msgspec.json.decode(ran.stdout)
    sentence = f"labels of key {attack.LIAR!r} were left out: of "
    lied = lies > 0
    assert (sentence in errors) == lied
    assert [each for each in told["report"]["warnings"] if "left out" in each] == (
        [line for line in errors.splitlines() if line.startswith("labels of key")]
    )
    assert {each["key"] for each in told["report"]["suspects"]} == ({attack.LIAR} if lied else set())
    kept = read_manifest(tmp_path / "out", told["id"])
    assert kept.report.suspects == msgspec.convert(told["report"]["suspects"], tuple[Suspect, ...])
    assert kept.data_hash == load([tmp_path / "tables"])[0].hash  # of the data, so that a promise can name it
    assert kept.inputs and sum(kept.inputs[0].counts) == told["report"]["rows"]


@pytest.mark.parametrize("seed", range(4))
def test_nobody_honest_is_left_out_of_a_fit(seed: int) -> None:
    assert attack.doubted(attack.believed(attack.stories(seed, 0.0))) == ()


def test_without_keys_a_fit_is_what_it_was() -> None:
    table, labels = attack.tables(attack.stories(0))
    nobody = msgspec.structs.replace(labels, keys=("",) * len(labels.keys))
    plain = fit(table, reference=attack.DEAR, settings=USUAL)
    assert fit_believed(table, nobody, reference=attack.DEAR, settings=USUAL).trained == plain.trained


def told(seed: int, keys: int = 20, rows: int = 1_200, **changed: float) -> tuple[Table, Labels, np.ndarray]:
    """Labels of honest keys with their own kindness, and of keys that say `changed` of model 0, whatever it did."""
    dice = np.random.default_rng(seed)
    hard = dice.uniform(0, 1, keys)  # some keys have hard requests only
    owner = dice.integers(0, keys, rows)
    expected = np.clip(0.9 - 0.6 * hard[owner][:, None] * [1.0, 0.5] + dice.normal(0, 0.05, (rows, 2)), 0.05, 0.95)
    table, _ = attack.tables(attack.stories(seed)[:50])
    quality, labels = said(dice, expected, owner, keys, **changed)
    return msgspec.structs.replace(table.take(np.resize(np.arange(50), rows)), quality=quality), labels, expected


def said(
    dice: np.random.Generator, expected: np.ndarray, owner: np.ndarray, keys: int, **changed: float
) -> tuple[np.ndarray, Labels]:
    """One label of each reply, by the row's owner."""
    kind = dice.normal(0, 0.03, keys)
    quality = (dice.random(expected.shape) < np.clip(expected + kind[owner][:, None], 0, 1)) * 1.0
    for key, score in changed.items():
        quality[owner == int(key[1:]), 0] = score
    row, column = (each.ravel() for each in np.indices(expected.shape))
    return quality, Labels(
        keys=tuple(f"k{i}" for i in range(keys)),
        row=row,
        column=column,
        key=owner[row],
        score=quality.ravel(),
        weight=np.full(row.size, 0.49),
    )


def test_honest_keys_are_suspected_no_more_often_than_stated() -> None:
    table, labels, expected = told(0)
    owner, alarms = labels.key[labels.column == 0], 0
    for seed in range(150):
        quality, labels = said(np.random.default_rng(seed), expected, owner, 20)
        alarms += bool(suspects(msgspec.structs.replace(table, quality=quality), labels, expected))
    assert alarms <= 6  # 1 % of 150 is 1.5; beyond 6 by chance less than once in five hundred


def test_honest_keys_are_believed_and_others_the_less_the_further_they_lie() -> None:
    table, labels, expected = told(3, rows=2_400)
    means = []
    for score in (None, 0.5, 0.0):  # of model 0, whatever it did; about 0.65 is expected of it
        _, labels = said(np.random.default_rng(3), expected, labels.key[labels.column == 0], 20)
        if score is not None:
            labels = msgspec.structs.replace(
                labels, score=np.where((labels.key == 5) & (labels.column == 0), score, labels.score)
            )
        factors = trusts(table, labels, expected, 1)
        assert ((factors > 0.0) & (factors <= 1.0)).all()
        assert np.delete(factors, 5).mean() > 0.85
        means.append(float(factors[5]))
    assert means[0] > 0.8 > means[1] > means[2] and means[2] < 0.1


def test_nobody_is_doubted_where_there_is_nobody_to_compare() -> None:
    table, labels, expected = told(1, k5=0.0)
    nobody = msgspec.structs.replace(labels, keys=("",) * 20)
    assert (trusts(table, nobody, expected, 0) == 1.0).all()
    assert (trusts(table, labels, np.full(expected.shape, np.nan), 0) == 1.0).all()
    two = labels.key < 2
    few = msgspec.structs.replace(
        labels, **{name: getattr(labels, name)[two] for name in ("row", "column", "key", "score", "weight")}
    )
    assert (trusts(table, few, expected, 0) == 1.0).all()  # of two that differ, nobody can say who lies


def test_how_kindly_a_key_clicks_weighs_less_than_what_it_says_of_one_model_against_another() -> None:
    """Two keys are twelve points off for the first model, one of them for the second as well."""
    table, labels, _ = told(1, rows=6_000)
    off = np.isin(labels.key, [3]) | ((labels.key == 4) & (labels.column == 0))
    labels = msgspec.structs.replace(labels, score=np.where(off, 0.38, 0.5))
    factors = trusts(table, labels, np.full(table.quality.shape, 0.5), 1)
    assert 1.0 > factors[3] > 1.4 * factors[4] > 0.1
    assert (np.delete(factors, [3, 4]) == 1.0).all()


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_a_key_that_always_says_the_same_is_found(score: float) -> None:
    table, labels, expected = told(1, k5=score)
    found = suspects(table, labels, expected)
    assert [(each.key, each.model, each.said) for each in found] == [("k5", table.models[0], score)]
    nobody = msgspec.structs.replace(labels, keys=("",) * 20)
    assert suspects(table, nobody, expected) == () and not nobody.keyed
    assert suspects(table, labels, np.full(expected.shape, np.nan)) == ()
    expected[labels.row[labels.key == 5][:2]] = np.nan  # a large fit leaves out a part of the rows only
    assert {each.key for each in suspects(table, labels, expected)} == {"k5"}


def test_without_a_key_a_reply_has_what_the_others_said_of_it() -> None:
    table, _, _ = told(0, rows=4)
    table = msgspec.structs.replace(table, quality=np.full((4, 2), 0.5), weight=np.full((4, 2), 0.9))
    labels = Labels(
        keys=("", "a", "b"),
        row=np.array([0, 0, 0, 1, 2, 3]),
        column=np.array([0, 0, 0, 1, 0, 0]),
        key=np.array([0, 1, 2, 1, 2, 0]),
        score=np.array([1.0, 0.0, 0.5, 0.0, 0.2, 0.3]),
        weight=np.array([0.3, 0.5, 0.1, 0.5, 0.5, 0.4]),
    )
    found = without(table, labels, {"a"})
    assert found.quality[0, 0] == pytest.approx((0.3 * 1.0 + 0.1 * 0.5) / 0.4)
    assert found.weight[0, 0] == pytest.approx(0.4)
    assert np.isnan(found.quality[1, 1]) and np.isnan(found.weight[1, 1])  # nobody else said anything
    kept = np.ones((4, 2), dtype=bool)
    kept[0, 0] = kept[1, 1] = False
    assert (found.quality[kept] == 0.5).all() and (found.weight[kept] == 0.9).all()
    assert found.hash == table.hash
    whole = without(table, labels, {"nobody"})
    assert (whole.quality == table.quality).all() and (whole.weight == table.weight).all()
    half = reweighed(table, labels, np.array([1.0, 0.5, 1.0]))
    assert half.quality[0, 0] == pytest.approx((0.3 * 1.0 + 0.25 * 0.0 + 0.1 * 0.5) / 0.65)
    assert half.weight[0, 0] == pytest.approx(0.65) and half.weight[1, 1] == pytest.approx(0.25)
    assert half.quality[1, 1] == 0.0 and (half.quality[kept] == 0.5).all()


# ------------------------------------------------------------------------------------------------ skew


def day(dice: random.Random, chances: dict[str, float], many: int) -> dict[str, Share]:
    return shares((key, dice.random() < chance) for key, chance in chances.items() for _ in range(many))


def test_a_key_whose_dear_share_rises_is_told_apart_from_what_rises_for_all() -> None:
    dice = random.Random(4)
    chances = {f"k{i}": dice.uniform(0.1, 0.7) for i in range(20)}
    before = day(dice, chances, 300)
    all_rise = {key: chance + 0.2 for key, chance in chances.items()}
    assert not [each for each in skew(before, day(dice, all_rise, 300)) if each.skewed]
    one = {**chances, "k7": min(chances["k7"] + 0.3, 1.0)}
    assert [each.key for each in skew(before, day(dice, one, 100)) if each.skewed] == ["k7"]
    assert not [each for each in skew(before, day(dice, {**chances, "k7": 0.0}, 100)) if each.skewed]


def test_a_new_key_is_held_against_the_others() -> None:
    dice = random.Random(5)
    chances = {f"k{i}": dice.uniform(0.2, 0.4) for i in range(20)}
    now = day(dice, {**chances, "new": 1.0, "small": 1.0}, 60)
    now["small"] = Share(5, 5)
    found = {each.key: each for each in skew({}, now)}
    assert found["new"].skewed and "small" not in found
    assert skew({}, {"alone": Share(100, 100)}) == ()


def test_keys_that_did_nothing_are_called_skewed_no_more_often_than_stated() -> None:
    dice = random.Random(6)
    alarms = 0
    for _ in range(300):
        chances = {f"k{i}": dice.uniform(0.05, 0.9) for i in range(15)}
        alarms += any(each.skewed for each in skew(day(dice, chances, 80), day(dice, chances, 80)))
    assert alarms <= 10  # 1 % of 300 is 3
    with pytest.raises(ValueError, match="between 0 and 1"):
        skew({}, {}, rate=0.0)
