"""Whoever tries to steer the router: feedback that lies, and prefixes that make every request look hard."""

from __future__ import annotations

import random

import numpy as np
import pytest

from scripts import attack_routing as attack
from tierwise.core.snapshot import Snapshot
from tierwise.study.table import Table
from tierwise.study.trust import suspects
from tierwise.watch.skew import Share, shares, skew


@pytest.fixture(scope="module")
def honest() -> Snapshot:
    return attack.learned(attack.stories(0, 0.0))


def test_a_key_that_lies_is_suspected_and_without_it_the_shares_stay(honest: Snapshot) -> None:
    """5 % of all feedback, all the way from records to decisions; nobody honest is suspected."""
    found = attack.poison(0)
    assert found.suspected == (attack.LIAR,)
    assert abs(found.doubted - found.clean) <= 0.02
    assert found.poisoned - found.clean > 0.02  # else there was nothing to defend against
    assert attack.doubted(attack.stories(0, 0.0)) == ()


def test_a_prefix_moves_a_budgeted_key_by_at_most_ten_points_and_spends_no_more_than_its_cap(honest: Snapshot) -> None:
    found = attack.prefix_attack(honest, 0, many=250)
    assert found.unbounded - found.usual > 0.3  # the search does find one
    assert found.bounded - found.usual <= 0.10
    assert found.answered == 1.0
    assert found.spent_nano <= found.limit_nano and not found.overdrawn


# ------------------------------------------------------------------------------------------------ trust


def told(seed: int, keys: int = 20, rows: int = 1_200, **changed: float) -> tuple[Table, list[str], np.ndarray]:
    """Labels of honest keys with their own kindness, and of keys that say `changed` of model 0, whatever it did."""
    dice = np.random.default_rng(seed)
    hard = dice.uniform(0, 1, keys)  # some keys have hard requests only
    kind = dice.normal(0, 0.03, keys)
    owner = dice.integers(0, keys, rows)
    expected = np.clip(0.9 - 0.6 * hard[owner][:, None] * [1.0, 0.5] + dice.normal(0, 0.05, (rows, 2)), 0.05, 0.95)
    labels = (dice.random((rows, 2)) < np.clip(expected + kind[owner][:, None], 0, 1)) * 1.0
    names = [f"k{i}" for i in owner]
    for key, score in changed.items():
        labels[[name == key for name in names], 0] = score
    table = attack._table(attack.stories(seed)[:50])
    return _like(table, labels), names, expected


def _like(table: Table, labels: np.ndarray) -> Table:
    n = labels.shape[0]
    rows = np.resize(np.arange(len(table.ids)), n)
    import msgspec

    return msgspec.structs.replace(table.take(rows), quality=labels)


def test_honest_keys_are_suspected_no_more_often_than_stated() -> None:
    table, names, expected = told(0)
    alarms = 0
    for seed in range(150):
        dice = np.random.default_rng(seed)
        _, owner = np.unique(names, return_inverse=True)
        kind = dice.normal(0, 0.03, owner.max() + 1)
        labels = (dice.random(expected.shape) < np.clip(expected + kind[owner][:, None], 0, 1)) * 1.0
        alarms += bool(suspects(_like(table, labels), names, expected))
    assert alarms <= 6  # 1 % of 150 is 1.5; beyond 6 by chance less than once in five hundred


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_a_key_that_always_says_the_same_is_found(score: float) -> None:
    table, names, expected = told(1, k3=score)
    found = suspects(table, names, expected)
    assert [(each.key, each.said) for each in found] == [("k3", score)] or "k3" in {each.key for each in found}
    assert {each.key for each in found} == {"k3"}
    assert suspects(table, [""] * len(names), expected) == ()


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
