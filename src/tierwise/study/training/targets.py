"""What a fit predicts: the difficulty that all models share, the reference's quality, and its gain over each other one.

The gain is taken on prompts that both have answered: what makes a prompt hard for everybody cancels there, and it is
the gain that a choice between two models is about. It leans on the shared difficulty, of which every row tells.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from tierwise.study.table import Table

Floats = NDArray[np.float64]

ROWS = 20  # with fewer than this nothing is learned about a model, and no gain
SLOPE_SPREAD = 0.5  # how far the slope of a target is from its usual one, as a spread
LEAST_TRUST = 0.1  # in a gain: it still orders prompts, where nothing better does, and hardly moves a chance


class Targets(msgspec.Struct, frozen=True):
    """T targets of N rows; `weights` 0 and `values` 0 where nothing is known. First `levels` of them are qualities (the
    reference's, then those of models with too many rows that the reference has not answered), the others gains."""

    shared: Floats  # [N, 1] how much better than usual the models did that have answered
    shared_weights: Floats  # [N, 1]
    values: Floats  # [N, T]
    weights: Floats  # [N, T]
    usual: Floats  # [T] lean on the shared difficulty: a quality moves with it, a gain does not
    levels: int
    own: dict[int, int]  # model → target that is its own quality
    gain: dict[int, int]  # model → target that is the reference's gain over it

    def take(self, rows: NDArray[np.int64]) -> Targets:
        return msgspec.structs.replace(
            self, **{name: getattr(self, name)[rows] for name in ("shared", "shared_weights", "values", "weights")}
        )


def targets(table: Table, reference: int) -> Targets:
    """Of a table whose models have at least ROWS outcomes each."""
    known = np.isfinite(table.quality)
    quality = np.where(known, table.quality, 0.0)
    weight = np.where(known, table.weight, 0.0)
    weight /= weight[known].mean()
    usual = (weight * quality).sum(axis=0) / weight.sum(axis=0)
    total = weight.sum(axis=1, keepdims=True)
    better = (weight * np.where(known, quality - usual, 0.0)).sum(axis=1, keepdims=True)
    shared = np.divide(better, total, out=np.zeros_like(better), where=total > 0)

    others = [m for m in range(len(table.models)) if m != reference]
    paired = known & known[:, [reference]]
    levels, gains = [reference], []
    for m in others:
        n, pairs = int(known[:, m].sum()), int(paired[:, m].sum())
        if pairs >= ROWS:
            gains.append(m)
        if pairs < ROWS or n - pairs >= max(ROWS, 0.1 * n):
            levels.append(m)
    gained = np.where(paired, quality[:, [reference]] - quality, 0.0)[:, gains]
    # The variances of two labels add up in their difference.
    product, both = weight[:, [reference]] * weight, weight[:, [reference]] + weight
    gain_weights = np.where(paired, 2.0 * product / np.where(both > 0, both, 1.0), 0.0)[:, gains]
    return Targets(
        shared=shared,
        shared_weights=total / total[total > 0].mean(),
        values=np.hstack([quality[:, levels], gained]),
        weights=np.hstack([weight[:, levels], gain_weights]),
        usual=np.array([1.0] * len(levels) + [0.0] * len(gains)),
        levels=len(levels),
        own={m: i for i, m in enumerate(levels)},
        gain={m: len(levels) + i for i, m in enumerate(gains)},
    )


def leans(found: Targets, left_out: Floats) -> Floats:
    """[T] how much each target moves with the shared difficulty, predicted [N, 1] without the row itself."""
    return _slopes(found, left_out, found.usual)


def trust(found: Targets, left_out: Floats) -> Floats:
    """[T] 0..1, the share of each target's own predictions [N, T] that their rows bear out. A level has to show its
    worth, for its noise would stand beside the gains'; a gain is believed until it shows that it has none."""
    gains = np.arange(found.usual.size) >= found.levels
    return np.clip(_slopes(found, left_out, gains.astype(np.float64)), gains * LEAST_TRUST, 1.0)


def _slopes(found: Targets, predicted: Floats, usual: Floats) -> Floats:
    """Of each target against what was predicted for its rows (0 where nothing was): least squares, held to the usual
    slope as a Bayesian line with a spread of SLOPE_SPREAD would be. With twenty rows a slope alone says nothing."""
    weights = found.weights * (predicted != 0.0)
    total = np.maximum(weights.sum(axis=0), 1e-12)
    x = predicted - (weights * predicted).sum(axis=0) / total
    y = found.values - (weights * found.values).sum(axis=0) / total
    prior = (weights * y**2).sum(axis=0) / total / SLOPE_SPREAD**2
    down: Floats = (weights * x * x).sum(axis=0) + prior + 1e-9
    up: Floats = (weights * x * y).sum(axis=0) + (prior + 1e-9) * usual
    return up / down
