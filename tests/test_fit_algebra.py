"""What training is made of: the two ways to a ridge regression, folds, targets, and curves from scores to chances."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.trained import features_of, world_of
from tierwise.study.table import inputs_of, split
from tierwise.study.training import chances
from tierwise.study.training.regress import Scales, columns, design, folds_of, left_out, solve, weights_of
from tierwise.study.training.settings import USUAL, choose
from tierwise.study.training.targets import Targets, leans, targets, trust

WORLD, _ = world_of(500)


# ------------------------------------------------------------------------------------------------ algebra


def test_both_ways_to_the_solution_agree_with_the_normal_equations() -> None:
    """`solve` against a direct solution; `left_out` against fits without each fold."""
    part = WORLD.take(np.arange(120))
    named = columns(part.inputs, part.workloads, part.groups)
    matrix = design(part.inputs, part.workloads, named, Scales(0.1, 0.3))
    plain, penalty = matrix.toarray(), 7.0
    generator = np.random.default_rng(0)
    values, weights = generator.normal(size=(120, 2)), generator.uniform(0.2, 2.0, (120, 1))

    def direct(rows: Any) -> Any:
        x, w = plain[rows], weights[rows]
        return np.linalg.solve(x.T @ (w * x) + penalty * np.eye(x.shape[1]), x.T @ (w * values[rows]))

    both = np.hstack([weights, weights])
    np.testing.assert_allclose(
        plain @ solve(matrix, values, both, np.full(2, penalty)), plain @ direct(np.arange(120)), atol=1e-3
    )
    folds = folds_of(part.groups, 5, 0)
    (found,) = left_out(plain @ plain.T, values, weights[:, 0], penalty, [folds])
    for fold in range(5):
        wanted = plain[folds == fold] @ direct(folds != fold)
        np.testing.assert_allclose(found[folds == fold], wanted, atol=1e-8)


def test_a_weight_of_zero_leaves_a_row_out() -> None:
    named = columns(WORLD.inputs, WORLD.workloads, WORLD.groups)
    matrix = design(WORLD.inputs, WORLD.workloads, named, Scales(0.1, 0.3))
    values, weights = WORLD.quality[:, :1].copy(), np.ones((500, 1))
    weights[100:] = 0.0
    values[100:] = 1e3
    some = solve(matrix[:100], values[:100], weights[:100], np.array([5.0]))
    np.testing.assert_allclose(solve(matrix, values, weights, np.array([5.0])), some, atol=1e-4)


def test_a_workload_is_believed_n_of_n_plus_k() -> None:
    """Two workloads of n rows that are as far above as below the mean: of their distance n / (n + k) is taken, k the
    penalty over the square of the workloads' scale."""
    for n in (6, 60):
        names = ["above"] * n + ["below"] * n
        flat = inputs_of([features_of("")] * (2 * n))
        named = columns(flat, names, np.arange(2 * n))
        scales, penalty = Scales(0.1, 0.5), 4.0
        values = np.repeat([[1.0], [-1.0]], n, axis=0)
        found = solve(design(flat, names, named, scales), values, np.ones((2 * n, 1)), np.array([penalty]))
        offsets = weights_of(found, named, scales).workloads[:, 0]
        k = penalty / scales.workload**2
        assert offsets == pytest.approx([n / (n + k), -n / (n + k)], rel=1e-4)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(0, 5))
def test_a_group_is_in_one_fold(groups: list[int], seed: int) -> None:
    folds = folds_of(np.array(groups), 5, seed)
    assert ((folds >= 0) & (folds < 5)).all()
    assert len({(group, int(fold)) for group, fold in zip(groups, folds, strict=True)}) == len(set(groups))


def test_folds_of_single_prompts_are_of_one_size() -> None:
    assert sorted(np.bincount(folds_of(np.arange(103), 5, 1)).tolist()) == [20, 20, 21, 21, 21]


def test_a_gram_of_one_group_carries_no_weight() -> None:
    table = WORLD.take(np.repeat(np.arange(100), 2))
    alone = msgspec.structs.replace(table, groups=np.zeros(200, dtype=np.int64))
    assert columns(alone.inputs, alone.workloads, alone.groups).grams.size == 0
    assert columns(table.inputs, table.workloads, np.arange(200)).grams.size > 0


def test_targets_of_models_without_pairs() -> None:
    quality = WORLD.quality.copy()
    quality[:250, 1] = quality[250:, 0] = np.nan
    table = msgspec.structs.replace(WORLD, quality=quality)
    found = targets(table, 0)
    assert set(found.own) == {0, 1, 2} and set(found.gain) == {2}
    assert found.levels == 3 and found.values.shape == (500, 4)


def test_a_lean_is_found_with_many_rows_and_the_usual_one_with_few() -> None:
    generator = np.random.default_rng(0)
    for n, least, most in ((20, -0.1, 0.35), (20_000, 0.75, 0.85)):
        shared = generator.normal(0, 0.1, (n, 1))
        values = 0.8 * shared + generator.normal(0.3, 0.4, (n, 1))
        one = np.ones((n, 1))
        gain = Targets(shared, one, values, one, usual=np.zeros(1), levels=0, own={}, gain={1: 0})
        assert least < leans(gain, shared)[0] < most
        assert 0.1 <= trust(gain, -shared)[0] <= trust(gain, shared)[0] <= 1.0


def test_settings_are_left_for_what_predicts_better() -> None:
    """Where outcomes are tosses of a coin, the strongest penalty; where a workload decides alone, its scale."""
    generator = np.random.default_rng(0)
    named = columns(WORLD.inputs, WORLD.workloads, WORLD.groups)
    tossed = msgspec.structs.replace(WORLD, quality=generator.integers(0, 2, WORLD.quality.shape) * 1.0)
    assert choose(tossed, targets(tossed, 0), named, 0).level > 10 * USUAL.level
    decided = np.array(WORLD.workloads)[:, None] == np.array(["chat", "proofs", "chat"])
    ruled = msgspec.structs.replace(WORLD, quality=np.where(decided, 1.0, 0.0))
    assert choose(ruled, targets(ruled, 0), named, 0).workload > USUAL.workload


# ------------------------------------------------------------------------------------------------ chances


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 200), st.floats(0.0, 1.0), st.floats(1e-6, 1e3), st.integers(0, 99))
def test_a_curve_is_finite_and_never_falls(n: int, share: float, width: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores, outcomes = generator.normal(0, width, n), (generator.random(n) < share) * 1.0
    found = chances.curve(scores, outcomes, generator.uniform(0.1, 3.0, n))
    assert found.slope >= 0.0 and math.isfinite(found.slope) and math.isfinite(found.intercept)
    p = chances.chances(found, scores)
    assert ((p >= 0) & (p <= 1)).all()


def test_a_curve_finds_the_curve() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(0.6, 0.2, 20_000)
    truth = 1 / (1 + np.exp(-(7.0 * scores - 3.0)))
    found = chances.curve(scores, (generator.random(20_000) < truth) * 1.0, np.ones(20_000))
    assert found.slope == pytest.approx(7.0, rel=0.1) and found.intercept == pytest.approx(-3.0, rel=0.15)


def test_scores_that_are_upside_down_are_not_turned_round() -> None:
    scores = np.linspace(0, 1, 400)
    found = chances.curve(scores, (scores < 0.5) * 1.0, np.ones(400))
    assert found.slope == 0.0
    assert chances.chances(found, scores) == pytest.approx(np.full(400, 0.5), abs=0.01)


def test_doubt_grows_with_what_chances_miss() -> None:
    """A model that is right where it is said to be, one that is not in one of two workloads, and one with few rows."""
    generator = np.random.default_rng(1)
    p = generator.uniform(0.2, 0.9, 4_000)
    good = (generator.random(4_000) < p) * 1.0
    workload = np.arange(4_000) % 2
    slices = chances.slices_of(p, workload)
    honest = chances.doubt(p, good, np.ones(4_000), slices)
    off = np.where(workload == 1, p * 0.5, p)
    wrong = chances.doubt(p, (generator.random(4_000) < off) * 1.0, np.ones(4_000), slices)
    few = chances.doubt(p[:30], good[:30], np.ones(30), np.zeros(30, np.int64))
    assert honest < 0.25 < 1.0 < wrong and honest < few


def test_auroc_by_hand() -> None:
    one = np.ones(4)
    assert chances.auroc(np.array([1.0, 2, 3, 4]), np.array([0.0, 0, 1, 1]), one) == 1.0
    assert chances.auroc(np.array([1.0, 1, 1, 1]), np.array([0.0, 0, 1, 1]), one) == 0.5
    assert chances.auroc(np.array([1.0, 2, 3, 4]), np.array([0.0, 1, 0, 1]), one) == 0.75
    assert chances.auroc(one, one, one) is None


def test_the_split_is_by_group() -> None:
    first, second = split(WORLD.groups, 0.5, 0)
    assert not set(WORLD.groups[first]) & set(WORLD.groups[second])
