"""How strongly a fit is held back, chosen by what predicts best on prompts that were left out.

On a sample of the rows, for the best penalty does not depend on their number: it is the noise of an outcome against
what a prompt can change in it. The search begins at USUAL and leaves it only for what is better by two standard errors
(after Breiman et al. 1984, section 3.4.3): with two hundred rows the best of a grid is mostly luck.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tierwise.study.table import Ints, Table
from tierwise.study.training.regress import CONSTANT, Columns, Scales, design, folds_of, left_out
from tierwise.study.training.targets import Targets, leans

Floats = NDArray[np.float64]
Kernels = tuple[Floats, Floats, Floats]

SAMPLE = 1_000
MASKS = 4  # sets of rows that share an inverse; of the targets those with most rows are looked at
FOLDS, REPEATS = 5, 3
ERRORS = 2.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`leaning`: the share that is believed of a target's lean on the shared difficulty. A penalty over `workload`² is
    the k of n / (n + k), the share that is believed of a workload's own mean of n rows."""

    dense: float  # how strongly the features speak beside the grams
    workload: float  # and the workload
    shared: float  # penalty of the shared difficulty
    level: float  # of qualities
    gain: float  # of gains
    leaning: float

    def scales(self) -> Scales:
        return Scales(self.dense, self.workload)


USUAL = Settings(dense=0.1, workload=0.3, shared=10.0, level=10.0, gain=10.0, leaning=0.5)
CHOICES: dict[str, tuple[float, ...]] = {
    "shared": (3.0, 30.0, 100.0, 300.0),
    "workload": (0.0, 0.1, 1.0),
    "dense": (0.05, 0.2, 0.4),
    "level": (3.0, 30.0, 100.0, 300.0),
    "gain": (3.0, 30.0, 100.0, 300.0),
    "leaning": (0.0, 1.0),
}


class _Losses(msgspec.Struct, frozen=True):
    """Of each row, squared errors against those of the mean; a family without targets has zeros."""

    shared: Floats
    level: Floats
    gain: Floats

    def of(self, name: str) -> Floats:
        match name:
            case "shared":
                return self.shared
            case "level":
                return self.level
            case "gain" | "leaning":
                return self.gain if self.gain.any() else self.level
            case _:
                return self.level + self.gain


def choose(table: Table, found: Targets, named: Columns, seed: int) -> Settings:
    """One setting after the other, on at most SAMPLE rows."""
    rows = _sample(found, seed)
    part, few = table.take(rows), found.take(rows)
    matrix = design(part.inputs, part.workloads, named, Scales(1.0, 1.0))
    folds = [folds_of(part.groups, FOLDS, seed * REPEATS + i) for i in range(REPEATS)]
    kernels = _kernels(matrix, named)
    best, least = USUAL, _losses(few, kernels, folds, USUAL)
    for name, choices in CHOICES.items():
        if name == "workload" and not named.workloads:
            continue
        held, held_losses = best, least
        for choice in choices:
            tried = msgspec.structs.replace(held, **{name: choice})
            losses = _losses(few, kernels, folds, tried)
            saved = held_losses.of(name) - losses.of(name)
            if (
                saved.mean() > ERRORS * saved.std() / np.sqrt(saved.size)
                and losses.of(name).mean() < least.of(name).mean()
            ):
                best, least = tried, losses
    return best


def _sample(found: Targets, seed: int) -> Ints:
    """Rows by chance, those first that tell of many targets. A table in which most rows have one outcome and few have
    two would otherwise show no gains."""
    order = np.random.default_rng(seed).permutation(found.values.shape[0])
    known = (found.weights[order] > 0).sum(axis=1)
    return np.sort(order[np.argsort(-known, kind="stable")][:SAMPLE])


def _kernels(matrix: Any, named: Columns) -> Kernels:
    """Of the grams and the constant, of the dense features, of the workloads: [n, n] each."""
    first = 1 + named.shift.size
    second = first + len(named.workloads)
    parts = matrix.tocsc()
    grams, plain, tags = parts[:, second:].tocsr(), parts[:, 1:first].toarray(), parts[:, first:second].tocsr()
    return (grams @ grams.T).toarray() + CONSTANT**2, plain @ plain.T, (tags @ tags.T).toarray()


def _losses(found: Targets, kernels: Kernels, folds: list[Ints], at: Settings) -> _Losses:
    kernel = kernels[0] + at.dense**2 * kernels[1] + at.workload**2 * kernels[2]
    rows = np.flatnonzero(found.shared_weights[:, 0] > 0)
    shared = np.zeros_like(found.shared)
    shared[rows] = np.mean(_out(kernel, rows, found.shared, found.shared_weights, at.shared, folds), axis=0)
    lean = at.leaning * leans(found, shared) * shared
    losses = np.zeros_like(found.values)
    seen = np.zeros(found.values.shape[1], dtype=bool)
    for part, penalty in _masks(found, at):
        group = np.array(part)
        rows = np.flatnonzero(found.weights[:, group[0]] > 0)
        rest = found.values[:, group] - lean[:, group]
        weight, usual = found.weights[np.ix_(rows, group)], found.values[np.ix_(rows, group)]
        out = _out(kernel, rows, rest, found.weights[:, group], penalty, folds)
        square = np.mean([weight * (rest[rows] - each) ** 2 for each in out], axis=0)
        apart = weight * (usual - (weight * usual).sum(axis=0) / weight.sum(axis=0)) ** 2
        losses[np.ix_(rows, group)] = square / np.maximum(apart.sum(axis=0), 1e-9)
        seen[group] = True
    levels = np.arange(seen.size) < found.levels
    level, gain = (losses[:, seen & family].sum(axis=1) / max(1, (seen & family).sum()) for family in (levels, ~levels))
    wide = found.shared_weights[:, 0] * (found.shared - shared)[:, 0] ** 2
    return _Losses(wide, level, gain)


def _out(
    kernel: Floats, rows: Ints, values: Floats, weights: Floats, penalty: float, folds: list[Ints]
) -> list[Floats]:
    inner = kernel if rows.size == kernel.shape[0] else kernel[np.ix_(rows, rows)]
    return left_out(inner, values[rows], weights[rows, 0], penalty, [fold[rows] for fold in folds])


def _masks(found: Targets, at: Settings) -> Iterator[tuple[list[int], float]]:
    """Targets that have rows, weights and penalty in common: the reference's, then the gains with most rows."""
    groups: dict[tuple[bool, bytes], list[int]] = {}
    for target in range(found.values.shape[1]):
        groups.setdefault((target >= found.levels, found.weights[:, target].tobytes()), []).append(target)
    counts = (found.weights > 0).sum(axis=0)
    order = sorted(groups.values(), key=lambda each: (0 not in each, each[0] < found.levels, -counts[each[0]], each))
    for group in order[:MASKS]:
        if counts[group[0]]:
            yield group, at.gain if group[0] >= found.levels else at.level
