"""What a router is measured with, and the baselines that it is printed beside. Pure functions of arrays.

Everywhere: `quality` and `cost` are [N, M] (prompts by models), without a missing one, unless a line says otherwise; a
curve is in mean cost and mean quality of one request. A random mix of two policies is a policy, so what counts of a
set of points is the upper hull.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_SAME = 1e-12  # of qualities and costs that are means of the same numbers, added up in another order


class Curve(msgspec.Struct, frozen=True):
    """The corners of a non-decreasing concave hull: both [K] and ascending, in cost strictly."""

    cost: Floats
    quality: Floats

    def at(self, cost: Floats | float) -> Floats:
        """The quality at this cost. Left of the first corner there is none (-inf); right of the last it stays."""
        found = np.interp(cost, self.cost, self.quality, left=-np.inf)
        return np.asarray(found, dtype=np.float64)

    def cost_of(self, quality: float) -> float | None:
        """The least cost that buys this quality; None when no point does."""
        if quality > self.quality[-1] + _SAME:
            return None
        if quality <= self.quality[0]:
            return float(self.cost[0])
        return float(np.interp(quality, self.quality, self.cost))


def hull(cost: Floats, quality: Floats) -> Curve:
    """The upper hull of these points (both [K], K > 0), from the cheapest to the best; what is dearer and not better
    is left out. (Andrew's monotone chain, 1979, the upper half.)"""
    order = np.lexsort((-quality, cost))
    corners: list[tuple[float, float]] = []
    for x, y in zip(cost[order].tolist(), quality[order].tolist(), strict=True):
        if corners and y <= corners[-1][1] + _SAME:
            continue
        while len(corners) > 1:
            (x1, y1), (x2, y2) = corners[-2:]
            if (y2 - y1) * (x - x1) > (y - y1) * (x2 - x1):
                break
            corners.pop()
        corners.append((x, y))
    found = np.array(corners, dtype=np.float64)
    return Curve(found[:, 0], found[:, 1])


def united(*curves: Curve) -> Curve:
    """The hull of several: whoever may follow any of them may mix them."""
    return hull(np.concatenate([each.cost for each in curves]), np.concatenate([each.quality for each in curves]))


class Span(msgspec.Struct, frozen=True):
    """What areas and savings are measured between: the cheapest single model and the best, by their means."""

    cheapest: int
    best: int
    low_cost: float
    low_quality: float
    high_cost: float
    high_quality: float


def span(quality: Floats, cost: Floats) -> Span:
    """Of several models that are equally good, the best is the cheapest of them."""
    means, costs = quality.mean(axis=0), cost.mean(axis=0)
    cheapest = int(np.lexsort((-means, costs))[0])
    best = int(np.lexsort((costs, -means))[0])
    return Span(cheapest, best, costs[cheapest], means[cheapest], costs[best], means[best])


def aiq(curve: Curve, between: Span) -> float:
    """Average quality over the costs from the cheapest to the best single model: the area under the curve over the
    width (RouterBench, Hu et al. 2024). Every curve begins with the cheapest model alone, which any router can be told
    to use. Where the best model is the cheapest, the width is nothing, and the quality there is what is said."""
    whole = hull(np.append(curve.cost, between.low_cost), np.append(curve.quality, between.low_quality))
    low, high = between.low_cost, between.high_cost
    if high <= low:
        return float(whole.at(low))
    inside = whole.cost[(whole.cost > low) & (whole.cost < high)]
    at = np.concatenate(([low], inside, [high]))
    return float(np.trapezoid(whole.at(at), at) / (high - low))


# ------------------------------------------------------------------------------------------------ baselines


def zero(quality: Floats, cost: Floats) -> Curve:
    """The single models and the random mixes of them: what a router has to beat."""
    return hull(cost.mean(axis=0), quality.mean(axis=0))


def mix(between: Span) -> Curve:
    """A random mix of the cheapest and the best single model."""
    return hull(np.array([between.low_cost, between.high_cost]), np.array([between.low_quality, between.high_quality]))


def oracle(quality: Floats, cost: Floats) -> Curve:
    """The best that choosing one model a prompt can do, knowing every outcome. Exact: the prompts' own hulls are laid
    end to end in the order of what a dollar buys (the Minkowski sum of concave curves)."""
    rows = quality.shape[0]
    start_cost, start_quality, dearer, better = 0.0, 0.0, [], []
    for q, c in zip(quality, cost, strict=True):
        own = hull(c, q)
        start_cost += own.cost[0]
        start_quality += own.quality[0]
        dearer.append(np.diff(own.cost))
        better.append(np.diff(own.quality))
    more, gain = np.concatenate(dearer), np.concatenate(better)
    order = np.argsort(-gain / more, kind="stable") if more.size else np.zeros(0, dtype=np.int64)
    costs = (start_cost + np.concatenate(([0.0], np.cumsum(more[order])))) / rows
    qualities = (start_quality + np.concatenate(([0.0], np.cumsum(gain[order])))) / rows
    return hull(costs, qualities)


# ------------------------------------------------------------------------------------------------ sweeps


def sweep(value: Floats, expected_cost: Floats, misses: Floats) -> Ints:
    """The model of each prompt under each price of an inadequate answer: [K, N] for `misses` [K] in dollars. `value`
    and `expected_cost` are what is expected before anybody is asked, both [N, M]. As `core/weigh` has it, at λ = 1 and
    with time for nothing; of equal prices the first model's."""
    found = [np.argmin(expected_cost + (1.0 - value) * miss, axis=1) for miss in misses]
    return np.array(found, dtype=np.int64).reshape(misses.size, value.shape[0])


def prices_of_a_miss(value: Floats, expected_cost: Floats, count: int = 96) -> Floats:
    """Amounts in dollars, ascending, that lead a sweep from the cheapest to the best: the quantiles of the amounts at
    which two models weigh the same on a prompt, nothing, and more than any of them."""
    first = np.argmin(expected_cost, axis=1)[:, None]
    more = expected_cost - np.take_along_axis(expected_cost, first, axis=1)
    gain = value - np.take_along_axis(value, first, axis=1)
    amounts = (more[gain > 1e-6] / gain[gain > 1e-6]).ravel()
    if not amounts.size:
        return np.array([0.0])
    inside = np.quantile(amounts, np.linspace(0.0, 1.0, count))
    return np.unique(np.concatenate(([0.0], inside, [inside[-1] * 2, inside[-1] * 1e3 + 1.0])))


def means(choice: Ints, quality: Floats, cost: Floats) -> tuple[Floats, Floats]:
    """(mean cost, mean quality) of choices [K, N], each [K]."""
    rows = np.arange(quality.shape[0])
    return (
        np.array([cost[rows, each].mean() for each in choice]),
        np.array([quality[rows, each].mean() for each in choice]),
    )


# ------------------------------------------------------------------------------------------------ figures


class TwoModels(msgspec.Struct, frozen=True):
    """RouteLLM's yardsticks (Ong et al. 2024), over the share of prompts that the strong model gets. PGR is the part of
    the gap between the two that is recovered: `apgr` its mean over all shares, `cpt50` and `cpt80` the least share at
    which it reaches .5 and .8."""

    apgr: float
    cpt50: float
    cpt80: float


def two_models(score: Floats, strong: Floats, weak: Floats) -> TwoModels | None:
    """`score` [N]: the higher, the sooner to the strong model; prompts of one score go in no order. `strong`, `weak`:
    quality [N]. None where the strong model is not better, so that there is no gap to recover."""
    gain = strong - weak
    if gain.sum() <= _SAME:
        return None
    _, tie = np.unique(-score, return_inverse=True)
    sizes = np.bincount(tie)
    each = np.repeat(np.bincount(tie, weights=gain) / sizes, sizes)
    recovered = np.concatenate(([0.0], np.cumsum(each))) / gain.sum()
    share = np.linspace(0.0, 1.0, recovered.size)
    reached = [float(share[np.argmax(recovered >= part - 1e-9)]) for part in (0.5, 0.8)]
    return TwoModels(float(np.trapezoid(recovered, share)), *reached)


def saving(curve: Curve, part: float, between: Span) -> float | None:
    """Share of the best single model's cost that a curve saves at `part` (0..1) of that model's quality. Optimistic
    when the curve is the test's own: nobody knew there which point to take. None when no point is that good."""
    cost = curve.cost_of(part * between.high_quality)
    return None if cost is None or between.high_cost <= 0 else 1.0 - cost / between.high_cost


class Errors(msgspec.Struct, frozen=True):
    """The two ways to choose wrongly, against the cheapest of the models that are best on the prompt. `low`, `high`:
    shares of prompts; `lost`: quality a request, over all; `wasted_usd`: dollars a request, over all; `accuracy`: the
    share that is neither."""

    n: int
    low: float
    lost: float
    high: float
    wasted_usd: float
    accuracy: float


def errors(choice: Ints, quality: Floats, cost: Floats) -> Errors:
    """Of one choice [N]. Sent too low: another model would have answered better. Sent too high: a cheaper one would
    have answered as well."""
    rows = np.arange(quality.shape[0])
    top = quality.max(axis=1)
    least = np.where(quality >= top[:, None], cost, np.inf).min(axis=1)
    lost = top - quality[rows, choice]
    low = lost > 0
    wasted = np.where(low, 0.0, cost[rows, choice] - least)
    high = wasted > 0
    return Errors(
        rows.size,
        float(low.mean()),
        float(lost.mean()),
        float(high.mean()),
        float(wasted.mean()),
        float((~low & ~high).mean()),
    )


def by_slice(names: tuple[str, ...], choice: Ints, quality: Floats, cost: Floats) -> dict[str, Errors]:
    """The errors of each slice, by its name; `names` has one a prompt."""
    kinds, at = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)
    return {
        str(kind): errors(choice[rows], quality[rows], cost[rows])
        for i, kind in enumerate(kinds)
        if (rows := np.flatnonzero(at == i)).size
    }


class Mean(msgspec.Struct, frozen=True):
    """Over seeds. `error` is the standard error of the mean; None with one seed, which shows no spread."""

    mean: float
    error: float | None
    n: int


def mean_of(values: list[float]) -> Mean:
    """Of at least one value."""
    found = np.array(values, dtype=np.float64)
    error = float(found.std(ddof=1) / np.sqrt(found.size)) if found.size > 1 else None
    return Mean(float(found.mean()), error, found.size)
