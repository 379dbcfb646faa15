"""What a promise would have delivered on rows whose outcomes are known: whose reply, and at what cost.

The same rules as `core/decide` has for plans that name a promise (tests/test_calibrate.py plays one against the other,
row by row), over arrays, because calibration asks them of hundreds of choices.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from tierwise.core.promise import Segment
from tierwise.study.table import Floats, Ints, Table

Kind = Literal["choice", "agreement"]
AGREEMENT = 2  # so many replies that say the same are believed
ALWAYS, NEVER = 1.0, -1.0  # thresholds that every expected loss is below, and none


class Cut(msgspec.Struct, frozen=True):
    """Up to which expected loss models are asked in the reference's place, as in `core/promise.Segment`."""

    threshold: float
    further: float = NEVER


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of cheap models on N rows of a table, before a cut is chosen. K ways to answer, the first that may is
    taken: of a choice the models, of an agreement all of its models and the first AGREEMENT of them."""

    kind: Kind
    models: tuple[str, ...]
    rows: Ints  # [N] of the table; of the others some outcome is wanting
    expected: Floats  # [N, K] the loss that training expects against the reference; of an agreement the first model's
    loss: Floats  # [N, K] quality of the reference, less the delivered reply's
    cost: Floats  # [N, K] of all calls
    spared: NDArray[np.bool_]  # [N, K] whether the reference need not answer
    dear: Floats  # [N] cost of the reference's reply
    weight: Floats  # [N] of the row as a label, above 0 and at most 1
    groups: Ints  # [N] rows with the same number are the same prompt


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What a route serves at one cut, row by row."""

    loss: Floats  # [N] −1..1
    cost: Floats  # [N]
    spared: NDArray[np.bool_]  # [N]
    by: Ints  # [N] which way was taken, −1 for the reference alone


class Figures(msgspec.Struct, frozen=True):
    """Of a served route, over its rows with their weights."""

    loss: float
    variance: float  # of the loss
    share: float
    saved: float


def route(table: Table, kind: Kind, models: tuple[str, ...], reference: str, expected: Floats) -> Route:
    """This route on the rows of a table [N, M] that tell everything it needs. `expected` [N, K]: what training expects
    each of the models to lose against the reference; of an agreement only the first column is read."""
    columns = [table.column(name) for name in models]
    best = table.column(reference)
    asked = [*columns, best]
    rows = np.flatnonzero(np.isfinite(table.quality[:, asked]).all(axis=1))
    quality, costs = table.quality[rows], _costs(table, asked)[rows]
    dear = costs[:, -1]
    if kind == "choice":
        loss, cost = quality[:, [best]] - quality[:, columns], costs[:, :-1]
        spared = np.ones(loss.shape, dtype=bool)
        expected = expected[rows]
    else:
        ways = [_agreement(table.answers[rows], quality, costs, columns[:n], best) for n in (len(columns), AGREEMENT)]
        loss, cost, spared = (np.stack(each, axis=1) for each in zip(*ways, strict=True))
        expected = np.repeat(expected[rows, :1], 2, axis=1)
    return Route(
        kind=kind,
        models=models,
        rows=rows,
        expected=expected,
        loss=loss,
        cost=cost,
        spared=spared,
        dear=dear,
        weight=_weights(table, asked)[rows],
        groups=table.groups[rows],
    )


def served(route: Route, cut: Cut) -> Served:
    """What this route serves where each way is taken up to its expected loss."""
    limits = (cut.further, cut.threshold) if route.kind == "agreement" else (cut.threshold,)
    passes = route.expected <= np.array(limits)
    by = np.where(passes.any(axis=1), passes.argmax(axis=1), -1)
    asked, at = by >= 0, np.maximum(by, 0)
    row = np.arange(by.size)
    return Served(
        loss=np.where(asked, route.loss[row, at], 0.0),
        cost=np.where(asked, route.cost[row, at], route.dear),
        spared=asked & route.spared[row, at],
        by=by,
    )


def voices(route: Route, played: Served) -> tuple[Floats, Floats] | None:
    """Loss and weight of each different prompt [G], the means of its rows: a prompt that stands there fifty times is no
    evidence of fifty. None where no prompt is repeated."""
    names, at = np.unique(route.groups, return_inverse=True)
    if names.size == route.groups.size:
        return None
    order = np.random.default_rng(0).permutation(names.size)  # not by number: bounds take rows as drawn at random
    weight = np.bincount(at, route.weight)
    loss = np.bincount(at, route.weight * played.loss) / weight
    return loss[order], (weight / np.bincount(at))[order]


def cut_of(segment: Segment) -> Cut:
    """Where a certified segment cuts."""
    return Cut(segment.threshold, segment.further)


def figures(route: Route, played: Served) -> Figures:
    """All zero when there are no rows."""
    if not route.rows.size:
        return Figures(0.0, 0.0, 0.0, 0.0)
    weight = route.weight / route.weight.sum()
    loss = float(weight @ played.loss)
    dear = float(weight @ route.dear)
    return Figures(
        loss,
        float(weight @ (played.loss - loss) ** 2),
        float(weight @ played.spared),
        1.0 - float(weight @ played.cost) / dear if dear > 0 else 0.0,
    )


def _agreement(
    answers: Ints, quality: Floats, costs: Floats, columns: list[int], best: int
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Loss, cost and whether the reference was spared, [N] each, where the models of these columns are asked one after
    the other until AGREEMENT of them say the same; then the first that said it is delivered. An answer that nobody
    knows agrees with none."""
    row = np.arange(quality.shape[0])
    first, asked = np.full(row.size, -1), np.full(row.size, len(columns))
    for j in range(1, len(columns)):
        for i in range(j):
            same = answers[:, columns[i]] == answers[:, columns[j]]
            found = (first < 0) & (answers[:, columns[j]] >= 0) & same
            first[found], asked[found] = i, j + 1
    agreed = first >= 0
    kept = quality[row, np.array(columns)[np.maximum(first, 0)]]
    calls = np.cumsum(costs[:, : len(columns)], axis=1)[row, asked - 1]
    return np.where(agreed, quality[:, best] - kept, 0.0), calls + np.where(agreed, 0.0, costs[:, -1]), agreed


def _costs(table: Table, columns: list[int]) -> Floats:
    """[N, len(columns)], the reference's last. A cost that is wanting is its model's mean; where a model has none at
    all, a saving can only be counted in calls of the reference."""
    costs = table.cost_usd[:, columns]
    known = np.isfinite(costs)
    if not known.any(axis=0).all():
        calls = np.zeros_like(costs)
        calls[:, -1] = 1.0
        return calls
    means = np.where(known, costs, 0.0).sum(axis=0) / known.sum(axis=0)
    return np.where(known, costs, means)


def _weights(table: Table, columns: list[int]) -> Floats:
    """A row weighs as its least trusted label, and for as many requests as it was drawn to stand for (the inverse of
    its odds, Horvitz and Thompson 1952), in parts of the heaviest row."""
    labels = np.where(np.isfinite(table.weight[:, columns]), table.weight[:, columns], 1.0).min(axis=1)
    odds = np.where(np.isfinite(table.odds[:, columns]), table.odds[:, columns], 1.0).min(axis=1)
    weights = labels / np.clip(odds, 1e-6, 1.0)
    most = weights.max(initial=0.0)
    found: Floats = weights / most if most > 0 else np.ones_like(weights)
    return found
