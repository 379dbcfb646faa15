"""How large may a mean be, after what was seen of it? Bounds by betting, and a row of choices tested in order.

Suppose that the mean is m. Then nobody gets rich by betting that what comes next is less: from capital 1, with λ staked
on each observation y in 0..1,

    K = Π (1 + λ × w × (m − y)),    0 <= λ < 1 / (1 − m), decided before y is seen,

is expected to stay at 1 or below, and it ever reaches 1/δ with a chance of at most δ (Ville 1939). So a mean under
which it did is refuted: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (JRSS B
2024), theorem 3. Two ways to stake:

- of a known number of observations, their predictable plug-in (equation 15 there), λ = √(2 ln(1/δ) / (σ² n)), with σ²
  as estimated from the observations before, and cut at `BOLDEST` of what could ruin. It does not depend on m but for
  the cut, so K rises with m, what is not refuted is an interval, and its end is found by halving;
- of a stream without an end, the capital spread over constant stakes (their "diversified Kelly"; for why that is nearly
  the best stake in hindsight see Cover, "Universal portfolios", 1991). Its state is one number a stake.

Assumed is that each observation, given those before, has the same (weighted) mean: rows drawn at random have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

BOLDEST = 0.9  # of the stake that would lose everything at once: one bad reply must not end the bet
# Constant stakes as shares of that same stake, from the one for a small excess to nearly all.
STAKES: Floats = np.geomspace(1 / 256, BOLDEST, 12)
_NARROW = 1e-7


def upper(
    values: ArrayLike, delta: float, *, low: float = 0.0, high: float = 1.0, weights: ArrayLike | None = None
) -> float:
    """The mean of what these values [N] in low..high were drawn from is at most this, with confidence 1 − delta; `high`
    when nothing was seen.

    `weights` [N] in 0..1, of which 1 is the most that a value can ever weigh: then it is about the weighted mean.
    Raises ValueError for values outside low..high, NaN, weights outside 0..1 or a delta outside 0..1."""
    y, w = _prepared(values, low, high, weights)
    stakes = _stakes(y, w, delta)
    below, above = 0.0, 1.0
    while above - below > _NARROW:
        middle = (below + above) / 2
        if _refuted(y, w, stakes, middle, delta):
            above = middle
        else:
            below = middle
    return min(high, low + above * (high - low))


def at_most(
    values: ArrayLike,
    mean: float,
    delta: float,
    *,
    low: float = 0.0,
    high: float = 1.0,
    weights: ArrayLike | None = None,
) -> bool:
    """Whether these values refute, with confidence 1 − delta, that their mean is above `mean`: the same as
    `upper(...) <= mean`, without the search. Raises ValueError as `upper` does."""
    y, w = _prepared(values, low, high, weights)
    stakes = _stakes(y, w, delta)
    return mean >= high or _refuted(y, w, stakes, (mean - low) / (high - low), delta)


def leading(tests: Iterable[bool]) -> int:
    """Fixed-sequence testing: how many of these tests, in an order that was fixed before looking, hold before the
    first that does not. Each is made at the whole level δ, and yet the chance that any choice so passed is wrong is at
    most δ, because the first wrong one had to be passed first (Bauer 1991; for risks Angelopoulos and others, "Learn
    then test", 2021). Lazy: what comes after a failure is not looked at."""
    found = 0
    for each in tests:
        if not each:
            break
        found += 1
    return found


def needed(mean: float, variance: float, target: float, delta: float, *, low: float = 0.0, high: float = 1.0) -> int:
    """About how many values of this mean and variance it takes for an even chance to refute a mean above `target`:
    where the capital of the best constant stake is expected to reach 1/δ, to the second order. ValueError when the mean
    is not below the target, for then no number of values will do."""
    if not mean < target:
        raise ValueError(f"a mean of {mean} is not below {target}, and no number of values will make it so")
    gap, m = (target - mean) / (high - low), (target - low) / (high - low)
    second = variance / (high - low) ** 2 + gap**2
    stake = min(gap / second, BOLDEST / (1 - m))
    return math.ceil(-math.log(delta) / (stake * gap - stake**2 * second / 2))


def spread(y: ArrayLike, m: float) -> Floats:
    """What single observations [N] in 0..1 make of the capital at each constant stake, as logarithms [N, S], when the
    bet is that the mean is below m, 0 < m < 1. Add them up, and take the capital of the sum."""
    return np.log1p(STAKES * ((m - np.asarray(y, dtype=np.float64)) / (1.0 - m))[..., None])


def capital(logs: Floats) -> float:
    """The logarithm of the capital at all stakes together, from equal parts: logs [S]."""
    most = float(logs.max())
    return most + math.log(float(np.exp(logs - most).mean()))


def _stakes(y: Floats, w: Floats, delta: float) -> Floats:
    """Of each observation, from those before it. The first is staked as if the variance were the largest there is."""
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta is {delta}; it is the chance of being wrong, between 0 and 1")
    means = (0.5 + np.cumsum(w * y)) / (1.0 + np.cumsum(w))
    variances = (0.25 + np.cumsum((w * (y - means)) ** 2)) / (np.arange(y.size) + 2.0)
    before = np.concatenate(([0.25], variances))[: y.size]
    return np.sqrt(-2.0 * math.log(delta) / (before * max(1, y.size)))


def _refuted(y: Floats, w: Floats, stakes: Floats, m: float, delta: float) -> bool:
    """Whether the capital reached 1/δ on the way."""
    if not y.size or not 0.0 < m < 1.0:
        return False
    logs = np.log1p(np.minimum(stakes, BOLDEST / (1.0 - m)) * w * (m - y))
    return bool(np.cumsum(logs).max() >= -math.log(delta))


def _prepared(values: ArrayLike, low: float, high: float, weights: ArrayLike | None) -> tuple[Floats, Floats]:
    x = np.asarray(values, dtype=np.float64).reshape(-1)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64).reshape(-1)
    if not low < high:
        raise ValueError(f"values cannot lie in {low}..{high}")
    if not (np.isfinite(x).all() and (x >= low).all() and (x <= high).all()):
        raise ValueError(f"a value is no number in {low}..{high}: a bound is only as good as the range")
    if w.shape != x.shape or not (np.isfinite(w).all() and (w > 0).all() and (w <= 1).all()):
        raise ValueError("weights: as many as values, each above 0 and at most 1, the most that a value can weigh")
    return (x - low) / (high - low), w
