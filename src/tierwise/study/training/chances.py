"""From scores to chances: the logistic curve of each model, how far it may be off, and how good the chances are.

Everything here is given predictions for prompts that were left out when they were made.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SLICE = 40  # rows of one: their share of adequate answers is known to within 8 points or so
COVERED = 1.645  # spreads to either side: nine of ten of a normal distribution
STEPS = 50


class Curve(msgspec.Struct, frozen=True):
    """chance = 1 / (1 + exp(−slope × score − intercept)); `doubt` is half the interval of the exponent."""

    slope: float
    intercept: float
    doubt: float = 0.0


class Quality(msgspec.Struct, frozen=True):
    """How good the chances of one model are on prompts that were left out; `base`: the same, had every prompt been
    given the model's mean. `auroc` is None when all outcomes are alike."""

    brier: float
    base_brier: float
    log_loss: float
    base_log_loss: float
    auroc: float | None
    calibration_error: float  # mean distance of chance and share over ten slices of equal weight
    coverage: float | None  # share of slices whose adequate share is in the interval, their own chance allowed for


def curve(scores: Floats, outcomes: Floats, weights: Floats) -> Curve:
    """Logistic calibration (Platt 1999), slope not below zero. Outcomes are 0..1. Half a good and half a bad outcome
    are added at the mean score, so that no chance is ever certain. The slope is held to the one that a score has which
    is already a share, 1 / (p (1 − p)), with a spread of half of that: a few rows do not turn it off, many decide."""
    usual = float((weights * scores).sum() / weights.sum())
    x = np.append(scores - usual, [0.0, 0.0])
    y, w = np.append(outcomes, [1.0, 0.0]), np.append(weights, [0.5, 0.5])
    share = float((w * y).sum() / w.sum())
    level = math.log(share / (1.0 - share))
    expected = 1.0 / max(share * (1.0 - share), 0.1)
    slope, hold = expected, (2.0 / expected) ** 2
    for _ in range(STEPS):
        chance = _chance(slope * x + level)
        gone, steep = w * (y - chance), np.maximum(w * chance * (1.0 - chance), 1e-12)
        up = np.array([(gone * x).sum() - hold * (slope - expected), gone.sum()])
        a, b, c = (steep * x * x).sum() + hold, (steep * x).sum(), steep.sum()
        step = np.linalg.solve(np.array([[a, b], [b, c]]), up)
        step *= min(1.0, 5.0 / max(1e-12, float(np.abs(step * [max(1e-9, x.std()), 1.0]).max())))
        slope, level = slope + float(step[0]), level + float(step[1])
        if float(np.abs(step).max()) < 1e-9:
            break
    if slope <= 0.0:
        slope, level = 0.0, math.log(share / (1.0 - share))
    return Curve(slope, level - slope * usual)


def chances(found: Curve, scores: Floats) -> Floats:
    return _chance(found.slope * scores + found.intercept)


def doubt(chance: Floats, outcomes: Floats, weights: Floats, slices: Ints) -> float:
    """Half of an interval of the exponent that holds the true share of adequate answers in nine slices of ten.

    What the shares of the slices scatter about their chances beyond the dice (DerSimonian and Laird 1986), and what the
    calibration itself does not know of its level.
    """
    spread, information = 0.0, 0.0
    gone, dice = _slices(chance, outcomes, weights, slices)
    if gone.size > 1:
        inverse = 1.0 / dice
        excess = (inverse * gone**2).sum() - gone.size
        most = inverse.sum() - (inverse**2).sum() / inverse.sum()
        spread = max(0.0, float(excess / most))
    information = float((weights * chance * (1.0 - chance)).sum())
    return min(6.0, COVERED * math.sqrt(spread + 1.0 / max(information, 0.5)))


def _slices(chance: Floats, outcomes: Floats, weights: Floats, slices: Ints) -> tuple[Floats, Floats]:
    """Of each slice: how far its share is from its mean chance, and the variance of that by dice alone, both on the
    scale of the exponent."""
    count = int(slices.max()) + 1 if slices.size else 0
    total = np.bincount(slices, weights, count)
    mean = np.bincount(slices, weights * chance, count) / total
    share = np.bincount(slices, weights * outcomes, count) / total
    steep = np.maximum(mean * (1.0 - mean), 1e-3)
    # Outcomes between 0 and 1 scatter less than those of 0 or 1.
    apart = np.bincount(slices, weights * (outcomes - share[slices]) ** 2, count) / total
    square = np.bincount(slices, weights**2, count) / total**2
    dice = square * np.maximum(np.minimum(steep, 0.5 * (apart + steep)), 1e-4)
    return (share - mean) / steep, dice / steep**2


def slices_of(chance: Floats, workload: Ints) -> Ints:
    """The slice of each row: prompts of one workload with similar chances, SLICE or more of them; what is left of small
    workloads together."""
    names, counts = np.unique(workload, return_counts=True)
    home = np.where(np.isin(workload, names[counts >= SLICE]), workload, names.max(initial=0) + 1)
    found, last = np.zeros(workload.size, dtype=np.int64), 0
    for name in np.unique(home):
        rows = np.flatnonzero(home == name)
        parts = max(1, min(10, rows.size // SLICE))
        order = rows[np.argsort(chance[rows], kind="stable")]
        found[order] = last + np.arange(rows.size) * parts // rows.size
        last += parts
    return found


def coverage(chance: Floats, outcomes: Floats, weights: Floats, slices: Ints, half: float) -> float | None:
    """Share of the slices whose share of adequate answers is within the interval, widened by what dice may do."""
    gone, dice = _slices(chance, outcomes, weights, slices)
    return float((np.abs(gone) <= np.sqrt(half**2 + COVERED**2 * dice)).mean()) if gone.size else None


def quality(chance: Floats, outcomes: Floats, weights: Floats, covered: float | None) -> Quality:
    """The yardsticks of these chances."""
    w = weights / weights.sum()
    usual = np.full_like(chance, (w * outcomes).sum())
    return Quality(
        brier=float((w * (chance - outcomes) ** 2).sum()),
        base_brier=float((w * (usual - outcomes) ** 2).sum()),
        log_loss=_log_loss(chance, outcomes, w),
        base_log_loss=_log_loss(usual, outcomes, w),
        auroc=auroc(chance, outcomes, weights),
        calibration_error=_calibration_error(chance, outcomes, w),
        coverage=covered,
    )


def auroc(scores: Floats, outcomes: Floats, weights: Floats) -> float | None:
    """The chance that a good outcome has the higher score than a bad one, ties half. An outcome of .7 counts as .7 of a
    good one and .3 of a bad one. None when there is no good or no bad one."""
    values, at = np.unique(scores, return_inverse=True)
    good = np.bincount(at, weights * outcomes, values.size)
    bad = np.bincount(at, weights * (1.0 - outcomes), values.size)
    if good.sum() <= 0 or bad.sum() <= 0:
        return None
    below = np.cumsum(bad) - bad
    return float((good * (below + 0.5 * bad)).sum() / (good.sum() * bad.sum()))


def _log_loss(chance: Floats, outcomes: Floats, w: Floats) -> float:
    p = np.clip(chance, 1e-6, 1 - 1e-6)
    return float(-(w * (outcomes * np.log(p) + (1 - outcomes) * np.log(1 - p))).sum())


def _calibration_error(chance: Floats, outcomes: Floats, w: Floats) -> float:
    order = np.argsort(chance, kind="stable")
    part = np.minimum((np.cumsum(w[order]) * 10).astype(np.int64), 9)
    return float(np.abs(np.bincount(part, (w * (chance - outcomes))[order])).sum())


def _chance(exponent: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-np.clip(exponent, -60.0, 60.0)))
