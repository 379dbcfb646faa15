"""The part of an outcome table that an evaluation can stand on: prompts that every model of it has answered. Pure.

A yardstick of routing compares models on the same prompts, and what it says of savings needs every reply's cost. So
where cells are missing something is left out, prompts or models, and the rest is as large as it can be.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from tierwise.core.errors import TierwiseError
from tierwise.study.table import Ints, Table

LEAST_ROWS = 60  # of an evaluation: below it the test part is a handful
SHOWN = 5
SKIPPED = (
    "costs are not known or all nothing, so areas, savings, thresholds, errors, held-out sources and small changes "
    "are left out, and what promises save is counted in calls of the reference"
)


class EvaluateError(TierwiseError):
    """This table carries no evaluation; says why."""


class Whole(msgspec.Struct, frozen=True):
    """`table` has a quality in every cell, and a cost as well where it is `priced`."""

    table: Table
    priced: bool
    left_out: int  # prompts of the table that it was taken from
    notes: tuple[str, ...]  # what else was left out, and why, each a sentence


def whole(table: Table) -> Whole:
    """The prompts and models that make the largest table without a hole, with costs where two models have them. Raises
    EvaluateError when there is none."""
    if len(table.models) < 2:
        raise EvaluateError("there is one model only, so there is nothing to choose; add outcomes of a second one")
    known, priced = np.isfinite(table.quality), np.isfinite(table.cost_usd)
    with_costs = largest(known & priced)
    if with_costs is not None and not (table.cost_usd[:, with_costs] > 0).any():
        with_costs = None
    models = with_costs if with_costs is not None else largest(known)
    if models is None:
        raise EvaluateError(_why_none(table, known))
    cells = known & priced if with_costs is not None else known
    rows = np.flatnonzero(cells[:, models].all(axis=1))
    found = table.take(rows).only([table.models[m] for m in models])
    gone = [m for m in range(len(table.models)) if m not in models]
    free = [m for m in gone if known[:, m].any() and not (known & priced)[:, m].any()] if with_costs is not None else []
    rare = [m for m in gone if m not in free]
    notes = []
    if free:
        notes.append(f"left out, for none of their costs is known: {_few(table, free)}")
    if rare:
        counts = ", ".join(f"{table.models[m]} ({cells[:, m].sum():,})" for m in rare[:SHOWN])
        more = f" and {len(rare) - SHOWN} more" if len(rare) > SHOWN else ""
        notes.append(f"left out, for they have too few of these prompts' outcomes: {counts}{more}")
    if found.quality.min() == found.quality.max():
        notes.append(f"every quality is {found.quality.flat[0]:g}, so there is nothing to tell apart")
    if with_costs is None:
        notes.append(SKIPPED)
        found = msgspec.structs.replace(found, cost_usd=np.full(found.quality.shape, np.nan))
    return Whole(found, with_costs is not None, len(table.ids) - rows.size, tuple(notes))


def complete(table: Table) -> Table:
    """The prompts that every model has answered, with quality and cost known."""
    known = ~(np.isnan(table.quality) | np.isnan(table.cost_usd)).any(axis=1)
    return table if known.all() else table.take(np.flatnonzero(known))


def largest(known: NDArray[np.bool_]) -> Ints | None:
    """Columns of `known` [N, M], ascending: two or more of which LEAST_ROWS rows have every cell, and as many cells
    together as can be found by leaving out one column after the other, the one that most rows lack alone first. None
    where there are none."""
    missing = ~known
    left = list(range(known.shape[1]))
    lacking = missing.sum(axis=1)
    best, most = None, 0
    while len(left) >= 2:
        rows = int((lacking == 0).sum())
        # Of equals the more models.
        if rows >= LEAST_ROWS and rows * len(left) > most:
            best, most = np.array(left, dtype=np.int64), rows * len(left)
        alone = missing[lacking == 1][:, left].sum(axis=0)
        holes = missing[:, left].sum(axis=0)
        worst = int(np.lexsort((-holes, -alone))[0])
        lacking = lacking - missing[:, left[worst]]
        del left[worst]
    return best


def _why_none(table: Table, known: NDArray[np.bool_]) -> str:
    both = known.astype(np.float32).T @ known.astype(np.float32)
    np.fill_diagonal(both, -1)
    one, other = (table.models[int(m)] for m in np.unravel_index(int(both.argmax()), both.shape))
    return (
        f"{int(both.max()) or 'no'} prompts have outcomes of two models ({one} and {other}), and "
        f"{LEAST_ROWS} are the least; label more replies to the same prompts, or use `tierwise replay` for logs "
        "with odds"
    )


def _few(table: Table, models: list[int]) -> str:
    names = [table.models[m] for m in models]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
