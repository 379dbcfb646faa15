"""Weighted ridge regression on what is read of prompts: many targets at once, each with rows of its own.

Two ways to the same solution. The dual form gives every left-out prediction of a cross-validation from one inverse
(`left_out`) and chooses the settings on some rows; conjugate gradients on the sparse matrix (`solve`) fit them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tierwise.core.grams import BUCKETS
from tierwise.core.learned import standardised
from tierwise.study.table import Inputs, Ints

Floats = NDArray[np.float64]

# The constant's column. Its square against the penalty says how little the constant is shrunk: at the strongest penalty
# (1,000) ten rows bring it half of the way.
CONSTANT = 10.0
SEEN = 2  # a gram that one group of prompts alone contains says nothing about another
LEAST_SCALE = 0.1  # of a feature that hardly ever differs: one in a thousand must not weigh thirty times its neighbours
WORKLOAD_ROWS, WORKLOADS = 5, 1_000  # a workload with fewer rows than this, or beyond these, is no workload of its own
TOLERANCE, STEPS = 1e-5, 150


class Columns(msgspec.Struct, frozen=True):
    """What the columns of a design mean, in their order: the constant, the dense features, the workloads, the grams."""

    shift: NDArray[np.float32]  # [D]
    scale: NDArray[np.float32]  # [D]
    workloads: tuple[str, ...]
    grams: NDArray[np.uint16]  # [B], ascending


class Weights(msgspec.Struct, frozen=True):
    """Of T targets, as `core/learned` multiplies them."""

    bias: Floats  # [T]
    dense: Floats  # [D, T]
    workloads: Floats  # [W, T]
    grams: Floats  # [B, T]


class Scales(msgspec.Struct, frozen=True):
    """How strongly a group of columns speaks beside the grams, whose rows have the length 1."""

    dense: float
    workload: float


def columns(inputs: Inputs, workloads: Sequence[str], groups: Ints) -> Columns:
    """The columns that these prompts can say something about."""
    plain = inputs.dense.astype(np.float64)
    spread = plain.std(axis=0)
    shift = plain.mean(axis=0).astype(np.float32)
    scale = np.where(spread > 1e-9, np.maximum(spread, LEAST_SCALE), 1.0).astype(np.float32)
    names, counts = np.unique(np.array([*workloads, ""], dtype=object).astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    often = [str(names[i]) for i in order if names[i] and counts[i] >= WORKLOAD_ROWS][:WORKLOADS]
    told = tuple(sorted(often))
    # One prompt of each group: the others have the same grams.
    one_each = inputs.take(np.unique(groups, return_index=True)[1])
    seen = np.bincount(one_each.grams, minlength=BUCKETS)
    return Columns(shift, scale, told, np.flatnonzero(seen >= SEEN).astype(np.uint16))


def design(inputs: Inputs, workloads: Sequence[str], named: Columns, scales: Scales) -> Any:
    """The matrix of these prompts, CSR float64 [N, 1 + D + W + B]."""
    from scipy import sparse  # type: ignore[import-untyped]

    rows = inputs.dense.shape[0]
    plain = standardised(inputs.dense, named.shift, named.scale).astype(np.float64)
    sizes = np.diff(inputs.starts)
    at = np.full(BUCKETS, -1, dtype=np.int32)
    at[named.grams] = np.arange(named.grams.size, dtype=np.int32)
    column = at[inputs.grams]
    known = column >= 0
    row = np.repeat(np.arange(rows), sizes)
    value = np.repeat(1.0 / np.sqrt(np.maximum(sizes, 1)), sizes)
    grams = sparse.csr_matrix((value[known], (row[known], column[known])), shape=(rows, named.grams.size))
    place = {name: i for i, name in enumerate(named.workloads)}
    tags = np.array([place.get(name, -1) for name in workloads], dtype=np.int64)
    tagged = np.flatnonzero(tags >= 0)
    offsets = sparse.csr_matrix(
        (np.full(tagged.size, scales.workload), (tagged, tags[tagged])), shape=(rows, len(place))
    )
    constant = np.full((rows, 1), CONSTANT)
    return sparse.hstack([sparse.csr_matrix(np.hstack([constant, scales.dense * plain])), offsets, grams], format="csr")


def weights_of(solution: Floats, named: Columns, scales: Scales) -> Weights:
    """What `solve` found, for inputs that are not scaled as a design scales them."""
    first = 1 + named.shift.size
    second = first + len(named.workloads)
    return Weights(
        CONSTANT * solution[0],
        scales.dense * solution[1:first],
        scales.workload * solution[first:second],
        solution[second:],
    )


def solve(matrix: Any, values: Floats, weights: Floats, penalty: Floats) -> Floats:
    """argmin Σ weights (values − matrix v)² + penalty v², a column of `values` [N, T] at a time: [F, T].

    Conjugate gradients on the normal equations, all columns side by side, preconditioned by the diagonal (Saad 2003,
    algorithm 9.1). A weight of zero leaves its row out.
    """
    across = matrix.T.tocsr()
    diagonal = across.power(2) @ weights + penalty
    found = np.zeros((matrix.shape[1], values.shape[1]))
    residual = across @ (weights * values)
    wanted = TOLERANCE * np.linalg.norm(residual, axis=0)
    direction = residual / diagonal
    power = (residual * direction).sum(axis=0)
    for _ in range(STEPS):
        if (np.linalg.norm(residual, axis=0) <= wanted).all():
            break
        image = across @ (weights * (matrix @ direction)) + penalty * direction
        curvature = (direction * image).sum(axis=0)
        step = np.divide(power, curvature, out=np.zeros_like(power), where=curvature > 0)
        found += step * direction
        residual -= step * image
        scaled = residual / diagonal
        before, power = power, (residual * scaled).sum(axis=0)
        direction = scaled + np.divide(power, before, out=np.zeros_like(power), where=before > 0) * direction
    return found


def left_out(kernel: Floats, values: Floats, weights: Floats, penalty: float, folds: Sequence[Ints]) -> list[Floats]:
    """For each division into folds the predictions of each fold by the others, [n, T]: those of ridge regression with
    this kernel [n, n], rows weighted alike for all targets. From one inverse: the error of a left-out block F is
    (C_FF)⁻¹ (C y)_F with C = (K + penalty / weights)⁻¹ (An, Liu and Venkatesh 2007)."""
    # Cholesky would do with half the work, but its threads wait for each other where processors are shared.
    inverse = np.linalg.inv(kernel + np.diag(penalty / weights))
    whole = inverse @ values
    found = []
    for division in folds:
        error = np.empty_like(values)
        for fold in np.unique(division):
            rows = np.flatnonzero(division == fold)
            error[rows] = np.linalg.solve(inverse[np.ix_(rows, rows)], whole[rows])
        found.append(values - error)
    return found


def folds_of(groups: Ints, count: int, seed: int) -> Ints:
    """A number below `count` for each row, the same within a group, about as many rows to each."""
    names, at = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(names.size)
    sizes = np.bincount(at, minlength=names.size)
    order = order[np.argsort(-sizes[order], kind="stable")]  # the large ones first, else one may fill a fold twice
    fold, load = np.zeros(names.size, dtype=np.int64), np.zeros(count)
    if sizes.max() == 1:
        fold[order] = np.arange(names.size) % count
        return fold[at]
    for name in order:
        fold[name] = int(load.argmin())
        load[fold[name]] += sizes[name]
    return fold[at]
