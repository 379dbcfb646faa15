"""Off-policy estimates on logs whose truth is known: unbiased, covering as stated, and silent where they must be."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tierwise.study.judging import offpolicy

Floats = NDArray[np.float64]
MODELS = 3


class World:
    """Requests of two kinds; what each model is worth on them is known, and so is what any policy is."""

    def __init__(self, seed: int, n: int, rate: float) -> None:
        self.draws = np.random.default_rng(seed)
        self.kind = self.draws.integers(0, 2, n)
        self.worth = np.array([[0.95, 0.96, 0.97], [0.1, 0.3, 0.5]])[self.kind]  # [N, M]
        odds = np.full((n, MODELS), rate / MODELS)
        odds[:, 0] += 1 - rate
        self.odds = odds
        self.chosen = (self.draws.random(n)[:, None] > np.cumsum(odds, axis=1)).sum(axis=1)
        outcome = (self.draws.random(n) < self.worth[np.arange(n), self.chosen]).astype(np.float64)
        self.log = offpolicy.Log(chosen=self.chosen, odds=odds, outcome=outcome)
        # The other policy: the strong model for the hard kind.
        self.target = np.zeros((n, MODELS))
        self.target[np.arange(n), np.where(self.kind == 1, 2, 0)] = 1.0


TRUTH = 0.5 * 0.95 + 0.5 * 0.5


def estimates(world: World, expected: Floats) -> dict[str, offpolicy.Value]:
    return {each.method: each for each in offpolicy.all_three(world.log, world.target, expected)}


def test_each_covers_the_truth_about_as_often_as_it_says() -> None:
    """400 logs of 1,500 requests; a model of the outcomes that is wrong costs width, not truth."""
    hits: dict[str, int] = {}
    errors: dict[str, list[float]] = {}
    means: dict[str, list[float]] = {}
    for seed in range(400):
        world = World(seed, 1_500, 0.3)
        wrong = np.full_like(world.worth, 0.5)
        found = estimates(world, world.worth) | {
            "wrong": offpolicy.doubly_robust(world.log, world.target, wrong),
        }
        for name, each in found.items():
            assert each.why == ""
            hits[name] = hits.get(name, 0) + (each.low <= TRUTH <= each.high)
            errors.setdefault(name, []).append(each.error)
            means.setdefault(name, []).append(each.mean)
    for name, count in hits.items():
        assert 0.92 * 400 <= count <= 0.98 * 400, name
        # The stated error is the spread that there is, and there is no bias beyond chance.
        assert np.std(means[name]) == pytest.approx(np.mean(errors[name]), rel=0.15), name
        assert abs(np.mean(means[name]) - TRUTH) < 4 * np.std(means[name]) / 20, name
    assert np.mean(errors["doubly_robust"]) < np.mean(errors["snips"]) < np.mean(errors["ips"])
    assert np.mean(errors["doubly_robust"]) < np.mean(errors["wrong"])


def test_by_hand() -> None:
    log = offpolicy.Log(
        chosen=np.array([0, 1, 0, 1]),
        odds=np.array([[0.5, 0.5], [0.75, 0.25], [0.5, 0.5], [0.5, 0.5]]),
        outcome=np.array([1.0, 1.0, 0.0, 0.0]),
    )
    target = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    expected = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.25]])
    found = {each.method: each for each in offpolicy.all_three(log, target, expected)}
    # Weights 2, 4, 0, 2.
    assert found["ips"].mean == pytest.approx((2 + 4) / 4)
    assert found["snips"].mean == pytest.approx(6 / 8)
    assert found["doubly_robust"].mean == pytest.approx((0.5 + 1 + 0.5 + 2 + 0.5 + 0 + 0.25 - 0.5) / 4)
    assert found["ips"].effective == pytest.approx(64 / 24)
    assert "worth 3 requests" in found["ips"].why


def test_what_was_never_tried_cannot_be_said() -> None:
    world = World(1, 2_000, 0.3)
    odds = world.odds.copy()
    odds[:, 2] = 0.0
    kept = np.flatnonzero(world.chosen != 2)
    log = offpolicy.Log(chosen=world.chosen[kept], odds=odds[kept], outcome=world.log.outcome[kept])
    for each in offpolicy.all_three(log, world.target[kept], None):
        assert "cannot say" in each.why
        assert "never tried" in each.why
        assert each.unsupported > 0.4


def test_a_log_that_is_worth_few_requests_cannot_say() -> None:
    world = World(2, 300, 0.1)
    target = np.zeros((300, MODELS))
    target[:, 2] = 1.0
    found = offpolicy.ips(world.log, target)
    assert "cannot say: the log is worth" in found.why
    assert found.effective < offpolicy.LEAST_EFFECTIVE


def test_the_policy_that_logged_is_worth_what_was_logged() -> None:
    world = World(3, 500, 0.3)
    for each in offpolicy.all_three(world.log, world.odds, None):
        assert each.mean == pytest.approx(world.log.outcome.mean())
        assert each.effective == pytest.approx(500)


@pytest.mark.parametrize("odds", [0.0, np.nan, 1.5])
def test_odds_that_cannot_be_are_refused(odds: float) -> None:
    log = offpolicy.Log(chosen=np.array([0, 0]), odds=np.array([[1.0], [odds]]), outcome=np.array([1.0, 1.0]))
    with pytest.raises(ValueError, match="row 1: odds must be above 0"):
        offpolicy.ips(log, np.ones((2, 1)))


def test_no_odds_at_all_is_said_so() -> None:
    empty = offpolicy.Log(chosen=np.zeros(0, np.int64), odds=np.zeros((0, 2)), outcome=np.zeros(0))
    with pytest.raises(ValueError, match="explore"):
        offpolicy.snips(empty, np.zeros((0, 2)))
