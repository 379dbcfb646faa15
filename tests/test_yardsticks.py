"""The yardsticks by hand-computed examples, and the laws that hold of any outcomes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from tierwise.study import yardsticks as ys

Floats = NDArray[np.float64]


def floats(*values: float) -> Floats:
    return np.array(values, dtype=np.float64)


# Three models: a cheap, a middling and a dear one. Means: quality .25, .5, .75; cost 1, 2, 5.
QUALITY = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]], dtype=np.float64)
COST = np.array([[1, 2, 5], [1, 2, 5], [1, 2, 5], [1, 2, 5]], dtype=np.float64)
WORLDS = st.integers(1, 12).flatmap(
    lambda n: st.integers(1, 4).flatmap(
        lambda m: st.tuples(
            arrays(np.float64, (n, m), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])),
            arrays(np.float64, (n, m), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0])),
        )
    )
)


def test_a_hull_leaves_out_what_is_dearer_and_no_better_and_what_a_mix_beats() -> None:
    found = ys.hull(floats(1, 2, 3, 4, 5, 1), floats(0.1, 0.2, 0.7, 0.6, 0.8, 0.05))
    assert found.cost.tolist() == [1, 3, 5]
    assert found.quality.tolist() == [0.1, 0.7, 0.8]
    assert found.at(2.0) == pytest.approx(0.4)
    assert found.at(9.0) == 0.8
    assert found.at(0.5) == -np.inf
    assert found.cost_of(0.75) == pytest.approx(4.0)
    assert found.cost_of(0.0) == 1.0
    assert found.cost_of(0.81) is None


def test_the_span_and_the_area_of_single_models() -> None:
    between = ys.span(QUALITY, COST)
    assert (between.cheapest, between.best) == (0, 2)
    # From (1, .25) over (2, .5) to (5, .75): .375 over one dollar, .625 over three.
    assert ys.aiq(ys.zero(QUALITY, COST), between) == pytest.approx((0.375 + 3 * 0.625) / 4)
    assert ys.aiq(ys.mix(between), between) == pytest.approx(0.5)


def test_the_oracle_buys_what_a_dollar_gains_most_first() -> None:
    found = ys.oracle(QUALITY, COST)
    # All cheap; then the second prompt to the middling model for 1, then the third to the dear one for 4.
    assert found.cost.tolist() == pytest.approx([1, 1.25, 2.25])
    assert found.quality.tolist() == pytest.approx([0.25, 0.5, 0.75])
    between = ys.span(QUALITY, COST)
    assert ys.saving(found, 1.0, between) == pytest.approx(1 - 2.25 / 5)
    assert ys.saving(ys.zero(QUALITY, COST), 1.0, between) == pytest.approx(0.0)


def test_models_that_are_all_alike_have_an_area_of_their_quality() -> None:
    quality = np.full((6, 3), 0.4)
    between = ys.span(quality, np.tile(floats(3, 1, 2), (6, 1)))
    assert between.cheapest == between.best == 1  # as good and cheaper
    assert ys.aiq(ys.zero(quality, np.tile(floats(3, 1, 2), (6, 1))), between) == pytest.approx(0.4)


def test_a_point_beyond_what_any_reaches_saves_nothing() -> None:
    between = ys.span(QUALITY, COST)
    assert ys.saving(ys.hull(floats(1), floats(0.25)), 0.95, between) is None


def test_routellms_yardsticks_by_hand() -> None:
    strong, weak = floats(1, 1, 1, 1, 0), floats(0, 0, 1, 1, 0)
    perfect = ys.two_models(floats(5, 4, 3, 2, 1), strong, weak)
    assert perfect is not None
    # Half the gap after one prompt of five, all of it after two: trapezes of .25, .75 and three ones.
    assert perfect.apgr == pytest.approx((0.25 + 0.75 + 3) / 5)
    assert (perfect.cpt50, perfect.cpt80) == pytest.approx((0.2, 0.4))
    worst = ys.two_models(floats(1, 2, 3, 4, 5), strong, weak)
    assert worst is not None
    assert worst.apgr == pytest.approx((0.25 + 0.75) / 5)
    assert (worst.cpt50, worst.cpt80) == pytest.approx((0.8, 1.0))
    blind = ys.two_models(floats(0, 0, 0, 0, 0), strong, weak)
    assert blind is not None
    assert blind.apgr == pytest.approx(0.5)
    assert (blind.cpt50, blind.cpt80) == pytest.approx((0.6, 0.8))
    assert ys.two_models(floats(1, 2, 3, 4, 5), weak, strong) is None


def test_a_sweep_goes_from_the_cheapest_to_the_most_promising() -> None:
    value = np.array([[0.2, 0.9], [0.5, 0.6], [0.7, 0.3]])
    expected = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    found = ys.sweep(value, expected, ys.prices_of_a_miss(value, expected))
    assert found[0].tolist() == [0, 0, 0]
    assert found[-1].tolist() == [1, 1, 0]
    assert [1, 0, 0] in found.tolist()  # the second is worth it from 10 dollars on only
    cost, quality = ys.means(found, np.array([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]), expected)
    assert cost[0] == pytest.approx(1.0)
    assert quality[-1] == pytest.approx(1.0)


def test_the_two_errors_by_hand() -> None:
    # Right; too low by 1; too high by 3 dollars; nobody is right, so the cheapest would have been.
    found = ys.errors(np.array([0, 0, 2, 1]), QUALITY[[0, 1, 1, 3]], COST)
    assert found == ys.Errors(4, 0.25, 0.25, 0.5, (3 + 1) / 4, 0.25)
    slices = ys.by_slice(("a", "b", "a", "b"), np.array([0, 0, 2, 1]), QUALITY[[0, 1, 1, 3]], COST)
    assert slices["a"] == ys.Errors(2, 0.0, 0.0, 0.5, 1.5, 0.5)
    assert slices["b"] == ys.Errors(2, 0.5, 0.5, 0.5, 0.5, 0.0)


def test_a_mean_has_an_error_when_there_is_a_spread() -> None:
    assert ys.mean_of([1.0, 3.0]) == ys.Mean(2.0, 1.0, 2)
    assert ys.mean_of([2.0]) == ys.Mean(2.0, None, 1)


@given(WORLDS)
def test_a_hull_rises_ever_less_and_lies_above_every_point(world: tuple[Floats, Floats]) -> None:
    quality, cost = world[0].ravel(), world[1].ravel()
    found = ys.hull(cost, quality)
    slopes = np.diff(found.quality) / np.diff(found.cost)
    assert (slopes > 0).all()
    assert (np.diff(slopes) < 1e-9).all()
    assert (found.at(cost) >= quality - 1e-9).all()


@given(WORLDS, st.integers(0, 2**32 - 1))
def test_the_oracle_is_above_everything_and_zero_above_every_single_model(
    world: tuple[Floats, Floats], seed: int
) -> None:
    quality, cost = world
    oracle, zero, between = ys.oracle(quality, cost), ys.zero(quality, cost), ys.span(quality, cost)
    choice = np.random.default_rng(seed).integers(0, quality.shape[1], (5, quality.shape[0]))
    some = ys.hull(*ys.means(choice, quality, cost))
    for other in (some, zero, ys.mix(between)):
        assert (oracle.at(other.cost) >= other.quality - 1e-9).all()
        assert ys.aiq(oracle, between) >= ys.aiq(other, between) - 1e-9
    assert (zero.at(cost.mean(axis=0)) >= quality.mean(axis=0) - 1e-9).all()
    assert ys.aiq(zero, between) >= ys.aiq(ys.mix(between), between) - 1e-9
    assert (ys.united(some, zero).at(zero.cost) >= zero.quality - 1e-9).all()


@given(WORLDS, st.integers(0, 2**32 - 1))
def test_every_prompt_is_right_or_one_of_the_two_errors(world: tuple[Floats, Floats], seed: int) -> None:
    quality, cost = world
    choice = np.random.default_rng(seed).integers(0, quality.shape[1], quality.shape[0])
    found = ys.errors(choice, quality, cost)
    assert found.low + found.high + found.accuracy == pytest.approx(1.0)
    assert found.lost >= 0
    assert found.wasted_usd >= 0
