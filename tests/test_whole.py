"""The part of a table that an evaluation stands on, and evaluations of what is left where cells are missing."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support.tables import MODELS, made

from tierwise.study.data import whole as module
from tierwise.study.data.whole import LEAST_ROWS, EvaluateError, largest, whole
from tierwise.study.judging.evaluate import evaluate
from tierwise.study.report.bench import train
from tierwise.study.table import Table

LARGE, MIDDLE, SMALL = MODELS
APART = [
    (np.arange(0, 90, 3) + i, name) for i in range(3) for name in MODELS if name != MODELS[i]
]  # one model a prompt


def holed(table: Table, **where: Any) -> Table:
    """Nothing known in these cells (rows and a column) of an array."""
    changes = {}
    for name, places in where.items():
        values = getattr(table, name).copy()
        for rows, model in places:
            values[rows, table.models.index(model)] = np.nan
        changes[name] = values
    return msgspec.structs.replace(table, **changes)


def test_a_table_without_holes_is_whole() -> None:
    table = made(100)
    found = whole(table)
    assert found.table.ids == table.ids and found.table.models == table.models
    assert (found.priced, found.left_out, found.notes) == (True, 0, ())


def test_a_model_with_few_answers_is_left_out_and_one_with_many_costs_prompts() -> None:
    rows = np.arange(300)
    found = whole(holed(made(300), quality=[(rows[30:], MIDDLE), (rows[::10], SMALL)]))
    assert found.table.models == (LARGE, SMALL)
    assert (found.left_out, len(found.table.ids)) == (30, 270)
    assert found.notes == (f"left out, for they have too few of these prompts' outcomes: {MIDDLE} (30)",)
    assert np.isfinite(found.table.quality).all() and np.isfinite(found.table.cost_usd).all()
    kept = whole(holed(made(300), quality=[(rows[:20], MIDDLE)]))
    assert (kept.table.models, kept.left_out) == (MODELS, 20)


def test_a_model_without_costs_is_left_out_where_two_others_have_some() -> None:
    rows = np.arange(200)
    found = whole(holed(made(200), cost_usd=[(rows, MIDDLE), (rows[:9], LARGE)]))
    assert (found.table.models, found.priced, found.left_out) == ((LARGE, SMALL), True, 9)
    assert found.notes == (f"left out, for none of their costs is known: {MIDDLE}",)


@pytest.mark.parametrize("costs", [np.nan, 0.0])
def test_without_costs_there_is_no_price_and_every_model_stays(costs: float) -> None:
    table = made(100)
    found = whole(msgspec.structs.replace(table, cost_usd=np.full_like(table.cost_usd, costs)))
    assert (found.table.models, found.priced) == (MODELS, False)
    assert found.notes == (module.SKIPPED,)
    # Of one model alone a cost compares nothing.
    rows = np.arange(100)
    assert not whole(holed(table, cost_usd=[(rows, MIDDLE), (rows, SMALL)])).priced


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (made(100).only([LARGE]), "one model only"),
        (made(10), r"10 prompts have outcomes of two models \(.* and 60 are the least"),
        (holed(made(90), quality=APART), "no prompts have outcomes of two models"),
    ],
)  # fmt: skip
def test_what_carries_no_evaluation_says_why(table: Table, said: str) -> None:
    with pytest.raises(EvaluateError, match=said):
        whole(table)


@settings(deadline=None)
@given(arrays.arrays(bool, st.tuples(st.integers(60, 90), st.integers(2, 5)), elements=st.integers(0, 9).map(bool)))
def test_the_largest_part_has_no_hole_and_is_no_smaller_than_all_or_than_nothing(known: Any) -> None:
    found = largest(known)
    every = int(known.all(axis=1).sum())
    if found is None:
        assert every < LEAST_ROWS
        return
    rows = int(known[:, found].all(axis=1).sum())
    assert found.size >= 2 and rows >= LEAST_ROWS
    if every >= LEAST_ROWS:
        assert rows * found.size >= every * known.shape[1]


def test_what_needs_no_cost_is_measured_without_one() -> None:
    table = made(400, seed=2, models=2)
    free = msgspec.structs.replace(table, cost_usd=np.full_like(table.cost_usd, np.nan))
    paid, found = (evaluate(each, train, seeds=1) for each in (table, free))
    assert {each.split(".")[0] for each in found.figures} == {"quality", "apgr", "cpt50", "cpt80"}
    for name in ("apgr", "cpt50", "cpt80"):
        assert found.figures[name].mean == pytest.approx(paid.figures[name].mean)
    figures = {name: found.figures[f"quality.{name}"].mean for name in ("random", "best model", "router", "oracle")}
    assert figures["random"] < figures["best model"] <= figures["oracle"] and figures["router"] <= figures["oracle"]
    assert found.notes == (module.SKIPPED,)


def test_labels_that_are_all_alike_are_told() -> None:
    table = made(100)
    for quality in (0.0, 1.0):
        found = evaluate(msgspec.structs.replace(table, quality=np.full_like(table.quality, quality)), train, seeds=1)
        assert found.notes == (f"every quality is {quality:g}, so there is nothing to tell apart",)
