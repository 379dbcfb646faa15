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

from tierwise.study.table import Floats, Inputs
from tierwise.study.training.histograms import LEAST_ROWS, Histogram, counted

RATE = 0.01  # of looks that find a drift where there is none
LEAST = 5.0  # requests that a bin has to expect before the test believes it


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    workload: str
    feature: str
    n: int  # fresh requests
    index: float  # population stability index
    chance: float  # of a difference as large as this when nothing has changed
    drifted: bool


def drift(
    before: Sequence[Histogram], inputs: Inputs, workloads: Sequence[str], *, rate: float = RATE
) -> tuple[Drift, ...]:
    """How these fresh requests differ from what was, the surest difference first. Raises ValueError for a rate outside
    0..1."""
    return compared(before, counted(before, inputs, workloads), rate=rate)


def compared(
    before: Sequence[Histogram], counts: Sequence[tuple[int, ...]], *, rate: float = RATE
) -> tuple[Drift, ...]:
    """The same for fresh requests that were counted into these histograms' bins (`counted`)."""
    if not 0.0 < rate < 1.0:
        raise ValueError(f"the rate of false alarms is {rate}; it must lie between 0 and 1")
    found = []
    for each, fresh in zip(before, counts, strict=True):
        if sum(fresh) < LEAST_ROWS or sum(each.counts) < LEAST_ROWS:
            continue
        then, now = np.array(each.counts, dtype=np.float64), np.array(fresh, dtype=np.float64)
        found.append((each, sum(fresh), _index(then, now), _chance(then, now)))
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
