"""Does the traffic still look as it did when the estimator was trained? Feature by feature, workload by workload.

A feature's values at training are put into bins of about equal counts, kept as a histogram, and compared with those of
fresh requests by the chi-square test of two samples (Pearson 1900), bins with few requests put together. Of all that is
compared in one look nothing is called drifted by chance alone, but for a stated share of the looks (Bonferroni). Beside
it stands the population stability index, Σ (p − q) ln(p / q), whose customary readings are: below 0.1 nothing, above
0.25 much. It says how far things have moved, the test whether they have.

Drift is no broken promise: the loss may have stayed what it was. It says where to look, and where labels are wanted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from tierwise.core.learned import DENSE
from tierwise.study.table import Floats, Inputs, Ints

RATE = 0.01  # of looks that find a drift where there is none
BINS = 10
LEAST = 5.0  # requests that a bin has to expect before the test believes it
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


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    workload: str
    feature: str
    n: int  # fresh requests
    index: float  # population stability index
    chance: float  # of a difference as large as this when nothing has changed
    drifted: bool


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


def drift(
    before: Sequence[Histogram], inputs: Inputs, workloads: Sequence[str], *, rate: float = RATE
) -> tuple[Drift, ...]:
    """How these fresh requests differ from what was, the surest difference first. Raises ValueError for a rate outside
    0..1."""
    if not 0.0 < rate < 1.0:
        raise ValueError(f"the rate of false alarms is {rate}; it must lie between 0 and 1")
    names = np.array(workloads, dtype=object)
    found = []
    for each in before:
        mine = inputs.dense if not each.workload else inputs.dense[names == each.workload]
        if mine.shape[0] < LEAST_ROWS or sum(each.counts) < LEAST_ROWS:
            continue
        now = _mix(names, each.names) if each.feature == MIX else _now(mine, each)
        then = np.array(each.counts, dtype=np.float64)
        found.append((each, mine.shape[0], _index(then, now), _chance(then, now)))
    return tuple(
        sorted(
            (
                Drift(
                    workload=each.workload,
                    feature=each.feature,
                    n=n,
                    index=index,
                    chance=chance,
                    drifted=chance * len(found) <= rate,
                )
                for each, n, index, chance in found
            ),
            key=lambda one: (one.chance, -one.index, one.workload, one.feature),
        )
    )


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


def _now(rows: NDArray[np.float32], each: Histogram) -> Floats:
    return np.array(_counts(rows[:, DENSE.index(each.feature)], each.edges), dtype=np.float64)


def _mix(names: NDArray[np.object_], known: tuple[str, ...]) -> Floats:
    counts = [float((names == each).sum()) for each in known]
    return np.array([*counts, names.size - sum(counts)])


def _index(then: Floats, now: Floats) -> float:
    """With half a request more in every bin, so that an empty one is rare and not impossible."""
    p, q = ((each + 0.5) / (each.sum() + 0.5 * each.size) for each in (then, now))
    return float(((p - q) * np.log(p / q)).sum())


def _chance(then: Floats, now: Floats) -> float:
    then, now = _merged(then, now)
    if then.size < 2:
        return 1.0
    ratio = math.sqrt(now.sum() / then.sum())
    statistic = float(((then * ratio - now / ratio) ** 2 / (then + now)).sum())
    return _tail(statistic, then.size - 1)


def _merged(then: Floats, now: Floats) -> tuple[Floats, Floats]:
    """Bins in which the smaller sample expects fewer than LEAST requests, with their neighbours."""
    share = min(then.sum(), now.sum()) / (then.sum() + now.sum())
    groups: list[list[int]] = [[]]
    for i in range(then.size):
        groups[-1].append(i)
        if (then + now)[groups[-1]].sum() * share >= LEAST:
            groups.append([])
    last = groups.pop()
    if last and groups:
        groups[-1].extend(last)
    merged = [(then[each].sum(), now[each].sum()) for each in groups]
    return np.array([a for a, _ in merged]), np.array([b for _, b in merged])


def _tail(statistic: float, degrees: int) -> float:
    """The chance that a chi-square of these degrees of freedom is larger (Wilson and Hilferty 1931)."""
    spread = 2.0 / (9.0 * degrees)
    normal = ((statistic / degrees) ** (1.0 / 3.0) - (1.0 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(normal / math.sqrt(2.0))
