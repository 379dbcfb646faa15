"""What a trained estimator says of many prompts at once: equal to what `core/learned` serves, over arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tierwise.core.learned import Heads, Trained, standardised
from tierwise.study.table import Floats, Inputs, Ints

CHUNK = 4_096  # rows that are held at once


def predict(trained: Trained, inputs: Inputs, workloads: Sequence[str]) -> tuple[Floats, Floats, Floats]:
    """Chances of an adequate answer and their interval for N prompts, (mean, low, high), each [N, M] in the order of
    `trained.models`: what `Heads.scores` says of each. Raises ValueError for an artefact that cannot serve."""
    heads = Heads(trained)
    rows = inputs.dense.shape[0]
    exponent = np.empty((rows, len(trained.models)))
    at = np.array([heads.workloads.get(name, -1) for name in workloads], dtype=np.int64)
    offsets = np.concatenate([heads.workload_weights, np.zeros((1, len(trained.models)), np.float32)])
    for part, told in said(heads, inputs):
        believed = np.where(at[part, None] < 0, heads.usual + heads.stranger * (told - heads.usual), told)
        exponent[part] = heads.slope * (heads.bias + believed + offsets[at[part]]) + heads.intercept
    low, mean, high = (
        1.0 / (1.0 + np.exp(-np.clip(exponent + sign * heads.doubt, -60.0, 60.0))) for sign in (-1.0, 0.0, 1.0)
    )
    return mean, low, high


def said(heads: Heads, inputs: Inputs) -> Iterator[tuple[Ints, NDArray[np.float32]]]:
    """What prompts say of each model beside the constant and the workload, [n, M], for CHUNK rows at a time."""
    rows = inputs.dense.shape[0]
    for first in range(0, rows, CHUNK):
        part = np.arange(first, min(first + CHUNK, rows))
        few = inputs.take(part)
        found = standardised(few.dense, heads.shift, heads.scale) @ heads.dense_weights
        sizes = np.diff(few.starts)
        full = np.flatnonzero(sizes)
        if full.size:
            sums = np.add.reduceat(heads.gram_weights[heads.row[few.grams]], few.starts[:-1][full], axis=0)
            found[full] += sums / np.sqrt(sizes[full])[:, None]
        yield part, found
