"""What a promise would have delivered on rows whose outcomes are known: whose reply, and at what cost.

The same rules as `core/decide` has for plans that name a promise (tests/test_calibrate.py plays one against the other,
row by row), over arrays, because calibration asks them of hundreds of choices.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from tierwise.study.table import Floats, Ints, Table

Kind = Literal["choice", "agreement"]
ALWAYS = 1.0  # a threshold that no expected loss is above


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of cheap models on N rows of a table, before a threshold is chosen. K is 1 for an agreement."""

    models: tuple[str, ...]
    rows: Ints  # [N] of the table; of the others some outcome is wanting
    expected: Floats  # [N, K] the loss that training expects of the first, or of each, against the reference
    loss: Floats  # [N, K] quality of the reference, less the delivered reply's, when they are asked
    cost: Floats  # [N, K] of all calls then
    spared: NDArray[np.bool_]  # [N, K] whether the reference need not answer then
    dear: Floats  # [N] cost of the reference's reply
    weight: Floats  # [N] of the row as a label, above 0 and at most 1


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What a route serves at one threshold, row by row."""

    loss: Floats  # [N] −1..1
    cost: Floats  # [N]
    spared: NDArray[np.bool_]  # [N]
    by: Ints  # [N] which of the models was asked first, −1 when none


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
        answers = table.answers[rows][:, columns]
        # An answer that nobody knows agrees with none.
        agreed = (answers >= 0).all(axis=1) & (answers == answers[:, :1]).all(axis=1)
        loss = np.where(agreed, quality[:, best] - quality[:, columns[0]], 0.0)[:, None]
        cost = (costs[:, :-1].sum(axis=1) + np.where(agreed, 0.0, dear))[:, None]
        spared, expected = agreed[:, None], expected[rows, :1]
    return Route(
        models=models,
        rows=rows,
        expected=expected,
        loss=loss,
        cost=cost,
        spared=spared,
        dear=dear,
        weight=_weights(table, asked)[rows],
    )


def served(route: Route, threshold: float) -> Served:
    """What this route serves where the first model that passes the threshold answers, in their order."""
    passes = route.expected <= threshold
    by = np.where(passes.any(axis=1), passes.argmax(axis=1), -1)
    asked, at = by >= 0, np.maximum(by, 0)
    row = np.arange(by.size)
    return Served(
        loss=np.where(asked, route.loss[row, at], 0.0),
        cost=np.where(asked, route.cost[row, at], route.dear),
        spared=asked & route.spared[row, at],
        by=by,
    )


def take(route: Route, which: NDArray[np.bool_] | Ints) -> Route:
    """The same on some of its rows."""
    arrays = ("rows", "expected", "loss", "cost", "spared", "dear", "weight")
    return msgspec.structs.replace(route, **{name: getattr(route, name)[which] for name in arrays})


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
