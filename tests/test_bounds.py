"""Laws of the bounds by betting: how often they may be wrong, and what makes them larger."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tierwise.study.promises.bounds import STAKES, at_most, capital, leading, needed, spread, upper

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Floats]
DELTA = 0.1
TIMES = 400


def spiteful(generator: np.random.Generator, n: int) -> Floats:
    """Always of mean 0.02 given what came before, but in the widest way while the sum looks good, and in the narrowest
    while it looks bad: an order that only a martingale withstands."""
    found, total = [], 0.0
    for _ in range(n):
        wide = total < 0
        found.append((1.0 if generator.random() < 0.51 else -0.96) if wide else float(generator.random() < 0.02))
        total += found[-1] - 0.02
    return np.array(found)


# Losses between −1 and 1, and their true mean.
DRAWN: dict[str, tuple[Draw, float]] = {
    "bernoulli": (lambda g, n: (g.random(n) < 0.05).astype(float), 0.05),
    "gains and losses": (lambda g, n: g.choice([1.0, 0.0, -1.0], n, p=[0.05, 0.92, 0.03]), 0.02),
    "skewed": (lambda g, n: g.beta(0.05, 0.95, n), 0.05),
    "one in two hundred": (lambda g, n: (g.random(n) < 0.005).astype(float), 0.005),
    "nearly constant": (lambda g, n: 0.1 + 0.001 * (g.random(n) - 0.5), 0.1),
    "spiteful": (spiteful, 0.02),
}


def violations(bound: Callable[[Floats, float], bool], name: str, n: int, times: int = TIMES) -> int:
    """How often a bound says that the mean is below something that is just below it."""
    draw, mean = DRAWN[name]
    generator = np.random.default_rng((n, len(name)))
    return sum(bound(draw(generator, n), mean - 1e-9) for _ in range(times))


def allowed(times: int = TIMES) -> float:
    return times * (DELTA + 2 * math.sqrt(DELTA * (1 - DELTA) / times))


@pytest.mark.parametrize("n", [50, 200, 1_000])
@pytest.mark.parametrize("name", DRAWN)
def test_the_bound_is_wrong_no_more_often_than_stated(name: str, n: int) -> None:
    def betting(losses: Floats, mean: float) -> bool:
        return at_most(losses, mean, DELTA, low=-1.0, high=1.0)

    times = 100 if name == "spiteful" else TIMES
    assert violations(betting, name, n, times) <= allowed(times)


def test_this_test_finds_a_bound_that_is_none() -> None:
    """The plug-in mean, and the normal approximation on a rare loss: both must be caught by the counting above."""

    def plug_in(losses: Floats, mean: float) -> bool:
        return bool(losses.mean() <= mean)

    def normal(losses: Floats, mean: float) -> bool:
        return bool(losses.mean() + 1.2816 * losses.std() / math.sqrt(losses.size) <= mean)

    assert violations(plug_in, "gains and losses", 200) > allowed()
    assert violations(normal, "one in two hundred", 200) > allowed()


def test_weighted_values_bound_the_weighted_mean() -> None:
    """Heavy rows lose more: the weighted mean is .074, the plain one .05, and the bound is of the first."""
    generator = np.random.default_rng(5)
    times, wrong, plain = TIMES, 0, 0
    for _ in range(times):
        weights = generator.choice([0.25, 1.0], 500)
        losses = (generator.random(500) < np.where(weights == 1.0, 0.09, 0.01)).astype(float)
        mean = (0.09 + 0.25 * 0.01) / 1.25
        wrong += at_most(losses, mean - 1e-9, DELTA, weights=weights)
        plain += at_most(losses, mean - 1e-9, DELTA)
    assert wrong <= allowed()
    assert plain > allowed()  # without the weights it is a bound of something else


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1, 1, allow_nan=False), max_size=40),
    st.floats(-1, 1),
    st.floats(0.01, 0.5),
    st.floats(0.01, 0.49),
)
def test_laws(values: list[float], mean: float, delta: float, less: float) -> None:
    bound = upper(values, delta, low=-1, high=1)
    assert -1 <= bound <= 1
    assert at_most(values, min(1.0, bound + 1e-6), delta, low=-1, high=1)
    assert not at_most(values, bound - 1e-6, delta, low=-1, high=1)
    # Refuting a mean refutes every larger one.
    if at_most(values, mean, delta, low=-1, high=1):
        assert at_most(values, min(1.0, mean + less), delta, low=-1, high=1)
    # The unit does not matter.
    shifted = upper((np.array(values) + 1) / 2, delta)
    assert math.isclose(2 * shifted - 1, bound, abs_tol=1e-6)


def test_a_bound_narrows_with_more_values_and_widens_with_more_confidence() -> None:
    generator = np.random.default_rng(2)
    drawn = generator.choice([1.0, 0.0, -1.0], (20, 4_000), p=[0.04, 0.92, 0.04])
    sizes = (0, 10, 100, 1_000, 4_000)
    by_n = [float(np.mean([upper(each[:n], 0.1, low=-1, high=1) for each in drawn])) for n in sizes]
    assert by_n == sorted(by_n, reverse=True) and by_n[0] == 1.0 and by_n[-1] < 0.02
    losses = drawn[0]
    by_delta = [upper(losses, delta, low=-1, high=1) for delta in (0.5, 0.1, 0.01, 1e-6)]
    assert by_delta == sorted(by_delta)


def test_ten_rows_carry_nothing() -> None:
    assert upper(np.zeros(10), 0.1, low=-1, high=1) > 0.2
    assert not at_most(np.zeros(10), 0.02, 0.1, low=-1, high=1)


@pytest.mark.parametrize(
    ("values", "more"),
    [
        ([0.5, float("nan")], {}),
        ([0.5, 1.5], {}),
        ([-0.5], {}),
        ([0.5], {"weights": [2.0]}),
        ([0.5], {"weights": [0.0]}),
        ([0.5, 0.5], {"weights": [1.0]}),
        ([0.5], {"low": 1.0, "high": 0.0}),
    ],
)
def test_what_cannot_be_bounded_is_refused(values: list[float], more: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        upper(values, 0.1, **more)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        upper([0.5], 0.0)


def test_a_sequence_ends_at_its_first_failure_and_looks_no_further() -> None:
    looked: list[int] = []

    def tests() -> object:
        for i, each in enumerate((True, True, False, True)):
            looked.append(i)
            yield each

    assert leading(tests()) == 2  # type: ignore[arg-type]
    assert looked == [0, 1, 2]
    assert leading(()) == 0


def test_a_fixed_sequence_keeps_its_level_over_the_whole_grid() -> None:
    """Twenty choices, each riskier than the one before, half of them too risky: any of those passes in at most δ."""
    generator = np.random.default_rng(7)
    risks = np.linspace(0.0, 0.04, 20)
    wrong = 0
    for _ in range(TIMES):
        drawn = generator.random(300)
        passed = leading(at_most(drawn < risk, 0.02, DELTA) for risk in risks)
        wrong += bool(passed and risks[passed - 1] > 0.02)
    assert wrong <= allowed()


def test_how_many_are_needed_is_about_how_many_it_takes() -> None:
    """With that many, about half of the attempts succeed; with a quarter few do."""
    generator = np.random.default_rng(3)
    n = needed(0.0, 0.06, 0.02, DELTA, low=-1, high=1)
    rates = []
    for size in (n // 4, n, 3 * n):
        passed = sum(
            at_most(generator.choice([1.0, 0.0, -1.0], size, p=[0.03, 0.94, 0.03]), 0.02, DELTA, low=-1, high=1)
            for _ in range(200)
        )
        rates.append(passed / 200)
    assert rates[0] < 0.45 < rates[1] < 0.9 < rates[2]
    with pytest.raises(ValueError, match="no number of values"):
        needed(0.02, 0.06, 0.02, DELTA)


def test_constant_stakes_never_get_rich_on_what_is_true_and_do_on_what_is_not() -> None:
    generator = np.random.default_rng(11)
    reached = 0
    for _ in range(TIMES):
        logs = np.cumsum(spread(generator.random(400) < 0.5, 0.5), axis=0)
        reached += any(capital(each) >= math.log(1 / DELTA) for each in logs)
    assert reached <= allowed()
    logs = spread((generator.random(400) < 0.4).astype(float), 0.5).sum(axis=0)
    assert capital(logs) > math.log(1 / DELTA)
    assert capital(np.zeros(STAKES.size)) == 0.0
