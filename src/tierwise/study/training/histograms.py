"""How a training's inputs were distributed: what fresh requests are compared with, kept with the artefact.

A feature's values are put into bins of about equal counts, of all requests together and of every workload that has
enough of them. No request can be read back from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from tierwise.core.learned import DENSE
from tierwise.study.table import Floats, Inputs, Ints

BINS = 10
LEAST_ROWS = 50  # of a workload, then and now, before anything is said of it
WORKLOADS = 100  # beyond the largest of these, workloads are looked at together
MIX = "workload"  # the feature that says how much of the traffic is which workload's


class Histogram(msgspec.Struct, frozen=True):
    """Of one feature in one workload ("": all). A value x falls into bin i when edges[i − 1] <= x < edges[i]; of the
    workloads' mix each bin is one of `names`, and the last all others."""

    workload: str
    feature: str
    counts: tuple[int, ...]
    edges: tuple[float, ...] = ()
    names: tuple[str, ...] = ()


def histograms(inputs: Inputs, workloads: Sequence[str]) -> tuple[Histogram, ...]:
    """Of these requests: what fresh ones are to be compared with. Of all together, and of every workload that has
    LEAST_ROWS of them."""
    names = np.array(workloads, dtype=object)
    kept, counts = _largest(names)
    found = [Histogram("", MIX, (*(int(each) for each in counts), int(names.size - counts.sum())), names=kept)]
    for workload in ("", *kept):
        rows = inputs.dense if not workload else inputs.dense[names == workload]
        for column, feature in enumerate(DENSE):
            edges = _edges(rows[:, column].astype(np.float64))
            found.append(Histogram(workload, feature, _counts(rows[:, column], edges), edges))
    return tuple(found)


def counted(before: Sequence[Histogram], inputs: Inputs, workloads: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """How many of these requests fall into each bin of each of these histograms."""
    names = np.array(workloads, dtype=object)
    found = []
    for each in before:
        mine = inputs.dense if not each.workload else inputs.dense[names == each.workload]
        found.append(
            _mix(names, each.names) if each.feature == MIX else _counts(mine[:, DENSE.index(each.feature)], each.edges)
        )
    return tuple(found)


def _largest(names: NDArray[np.object_]) -> tuple[tuple[str, ...], Ints]:
    kept, counts = np.unique(names[names != ""].astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:WORKLOADS]
    order = order[counts[order] >= LEAST_ROWS]
    return tuple(str(each) for each in kept[order]), counts[order].astype(np.int64)


def _edges(values: Floats) -> tuple[float, ...]:
    """Of a feature with few different values one bin for each, and for what lies between and beyond; else of about
    equal counts."""
    different = np.unique(values)
    if different.size <= BINS:
        return tuple(float(edge) for each in different for edge in (each, np.nextafter(each, np.inf)))
    return tuple(float(each) for each in np.unique(np.quantile(values, np.arange(1, BINS) / BINS)))


def _counts(values: NDArray[np.float32], edges: tuple[float, ...]) -> tuple[int, ...]:
    at = np.searchsorted(np.array(edges), values.astype(np.float64), side="right")
    return tuple(int(each) for each in np.bincount(at, minlength=len(edges) + 1))


def _mix(names: NDArray[np.object_], known: tuple[str, ...]) -> tuple[int, ...]:
    counts = [int((names == each).sum()) for each in known]
    return (*counts, names.size - sum(counts))
