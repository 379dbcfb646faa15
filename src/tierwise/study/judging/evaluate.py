"""A router trained on one part of an outcome table and measured on the other, beside the baselines. Pure of files.

Prompts are split by group, so none is on both sides. What a policy deploys is chosen on a validation part of the
training side; what it is then worth is read off the test side. `bench` does this for several seeds and sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from tierwise.core.learned import Trained
from tierwise.study import yardsticks as ys
from tierwise.study.data.whole import Whole, whole
from tierwise.study.judging.play import remembered
from tierwise.study.judging.ways import Points, Scores, best_of, planned, points, rates_of, scores, taken
from tierwise.study.table import Table, split

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PARTS = (0.95, 0.98, 0.99, 1.0)  # of the best single model's quality
TEST_SHARE, VALIDATION_SHARE = 0.3, 0.3
DEPLOYED_ERRORS_AT = 0.98
MOST_PAIRED_ROWS = 1_500  # a two-model router is trained on at most so many: what an owner can have labelled


Trainer = Callable[[Table, int], Trained]  # of rows and a seed
Progress = Callable[[str], None]


class Seeded(msgspec.Struct, frozen=True):
    """What one seed gave. Figures by name; `None` where a figure does not exist for this table. Curves of the test,
    without costs none."""

    seed: int
    rows: tuple[int, int, int]  # fitted on, validated on, tested on
    best: str
    cheapest: str  # "" without costs
    rung: tuple[str, str, str] | None
    figures: dict[str, float | None]
    curves: dict[str, ys.Curve]
    span: ys.Span | None
    slices: dict[str, ys.Errors]


class Evaluation(msgspec.Struct, frozen=True):
    """Over seeds: every figure with its standard error, and each seed as it was."""

    rows: int
    left_out: int  # prompts that not every one of the models has answered
    models: tuple[str, ...]
    notes: tuple[str, ...]  # what else was left out, and why
    figures: dict[str, ys.Mean]
    slices: dict[str, dict[str, ys.Mean]]
    seeds: tuple[Seeded, ...]


def evaluate(
    table: Table, train: Trainer, *, seeds: int = 5, first_seed: int = 0, progress: Progress | None = None
) -> Evaluation:
    """Train and measure once a seed. Raises EvaluateError when the table cannot be evaluated, saying what it lacks."""
    part = whole(table)
    found = []
    for seed in range(first_seed, first_seed + seeds):
        found.append(one_seed(part, train, seed))
        if progress:
            progress(f"seed {seed}")
    return gathered(part, found)


def gathered(part: Whole, found: list[Seeded]) -> Evaluation:
    """Means over these seeds; a figure that some seed has not got is left out."""
    figures = {}
    for name in dict.fromkeys(name for each in found for name in each.figures):
        values = [value for each in found if (value := each.figures.get(name)) is not None]
        if len(values) == len(found):
            figures[name] = ys.mean_of(values)
    return Evaluation(
        rows=len(part.table.ids),
        left_out=part.left_out,
        models=part.table.models,
        notes=part.notes,
        figures=figures,
        slices=_slices(found),
        seeds=tuple(found),
    )


def parts(table: Table, seed: int) -> tuple[Ints, Ints, Ints]:
    """Rows to fit on, to validate on and to test on; whole groups on one side."""
    test, rest = split(table.groups, TEST_SHARE, seed)
    validation, fitted = split(table.groups[rest], VALIDATION_SHARE, seed)
    if len(table.models) == 2:
        # The labels that the thresholds need are labels too.
        share = MOST_PAIRED_ROWS / max(MOST_PAIRED_ROWS, rest.size)
        fitted, validation = fitted[: int(fitted.size * share)], validation[: int(validation.size * share)]
    return rest[fitted], rest[validation], test


def one_seed(part: Whole, train: Trainer, seed: int) -> Seeded:
    """Fit, choose on validation, measure on test."""
    return (_with_costs if part.priced else _by_quality)(part.table, train, seed)


def _by_quality(table: Table, train: Trainer, seed: int) -> Seeded:
    """What can be said without a cost: whether the router knows who answers best. It asks whom it expects to, whatever
    that would cost."""
    rows = parts(table, seed)
    fitted, test = table.take(rows[0]), table.take(rows[2])
    best = best_of(table.take(np.concatenate(rows[:2])))
    seen = scores(train(fitted, seed), test, rates_of(fitted))
    choice = np.argmax(seen.value, axis=1)
    figures: dict[str, float | None] = {
        "quality.router": float(test.quality[np.arange(choice.size), choice].mean()),
        "quality.best model": float(test.quality[:, best].mean()),
        "quality.random": float(test.quality.mean()),
        "quality.oracle": float(test.quality.max(axis=1).mean()),
    }
    if len(table.models) == 2:
        figures |= _shares_of_calls(test, seen)
    return Seeded(
        seed=seed,
        rows=(rows[0].size, rows[1].size, rows[2].size),
        best=table.models[best],
        cheapest="",
        rung=None,
        figures=figures,
        curves={},
        span=None,
        slices={},
    )


def _with_costs(table: Table, train: Trainer, seed: int) -> Seeded:
    rows = parts(table, seed)
    fitted, validation, test = (table.take(each) for each in rows)
    trained = train(fitted, seed)
    rates = rates_of(fitted)
    before = scores(trained, validation, rates)
    seen = scores(trained, test, rates)
    own = table.take(np.concatenate(rows[:2]))
    plan = planned(own, before)
    on_validation, on_test = points(plan, validation, before), points(plan, test, seen)
    between = ys.span(test.quality, test.cost_usd)
    reference = best_of(own)
    curves = {
        **{name: each.curve for name, each in on_test.items()},
        "random": ys.mix(between),
        "oracle": ys.oracle(test.quality, test.cost_usd),
    }
    figures: dict[str, float | None] = {f"aiq.{name}": ys.aiq(curve, between) for name, curve in curves.items()}
    figures |= {
        f"gain.{name}": ys.aiq(curves[name], between) - ys.aiq(curves["zero"], between)
        for name in on_test
        if name != "zero"
    }
    figures |= _savings(curves, between) | _deployed(on_validation, on_test, validation, test, reference)
    if len(table.models) == 2:
        figures |= _shares_of_calls(test, seen)
    chosen = taken(on_validation["router"], validation, reference, DEPLOYED_ERRORS_AT)
    choice = on_test["router"].model[chosen]
    figures |= _two_errors(choice, test, between)
    names = table.models
    return Seeded(
        seed=seed,
        rows=(rows[0].size, rows[1].size, rows[2].size),
        best=names[between.best],
        cheapest=names[between.cheapest],
        rung=(names[plan.rungs[0].first], names[plan.rungs[0].second], names[plan.rungs[0].strong])
        if plan.rungs
        else None,
        figures=figures,
        curves=curves,
        span=between,
        slices=slices_of(choice, test),
    )


# ------------------------------------------------------------------------------------------------ figures


def _savings(curves: Mapping[str, ys.Curve], between: ys.Span) -> dict[str, float | None]:
    """Optimistic: read off the test's own curve."""
    return {
        f"saving.{name}.{part:g}": ys.saving(curve, part, between) or (0.0 if name != "oracle" else None)
        for name, curve in curves.items()
        for part in PARTS
    }


def _deployed(
    before: Mapping[str, Points], after: Mapping[str, Points], validation: Table, test: Table, reference: int
) -> dict[str, float | None]:
    """What the operating point that validation chose saves on the test, and the part of the best's quality that it
    keeps there. The best is the training's: on the test it may not be."""
    cost, quality = test.cost_usd[:, reference].mean(), test.quality[:, reference].mean()
    figures: dict[str, float | None] = {}
    for name, each in before.items():
        for part in PARTS:
            at = taken(each, validation, reference, part)
            figures[f"deployed.{name}.{part:g}.saving"] = float(1 - after[name].cost[at] / cost) if cost > 0 else None
            figures[f"deployed.{name}.{part:g}.quality"] = (
                float(after[name].quality[at] / quality) if quality > 0 else None
            )
    return figures


def _shares_of_calls(test: Table, seen: Scores) -> dict[str, float | None]:
    """RouteLLM's yardsticks, for two models; without a gap there are none."""
    strong = int(np.argmax(test.quality.mean(axis=0)))
    found = ys.two_models(
        seen.value[:, strong] - seen.value[:, 1 - strong], test.quality[:, strong], test.quality[:, 1 - strong]
    )
    if found is None:
        return {}
    return {"apgr": found.apgr, "cpt50": found.cpt50, "cpt80": found.cpt80}


def _two_errors(choice: Ints, test: Table, between: ys.Span) -> dict[str, float | None]:
    """Of the deployed router, and of always asking the best model, which is what it replaces."""
    figures: dict[str, float | None] = {}
    always = np.full(choice.size, between.best)
    for name, each in (("router", choice), ("best model", always)):
        found = ys.errors(each, test.quality, test.cost_usd)
        figures |= {
            f"errors.{name}.too low": found.low,
            f"errors.{name}.quality lost": found.lost,
            f"errors.{name}.too high": found.high,
            f"errors.{name}.wasted share": found.wasted_usd / between.high_cost if between.high_cost > 0 else None,
            f"errors.{name}.accuracy": found.accuracy,
        }
    return figures


def slices_of(choice: Ints, table: Table) -> dict[str, ys.Errors]:
    """The two errors by workload, by length of the prompt and by kind of task."""
    known = remembered(table.inputs)
    lengths = tuple(_length(each.input_tokens) for each in known)
    found: dict[str, ys.Errors] = {}
    for kind, names in (
        ("workload", table.workloads),
        ("length", lengths),
        ("task", tuple(each.task for each in known)),
    ):
        by_name = ys.by_slice(names, choice, table.quality, table.cost_usd)
        found |= {f"{kind}: {name or '(none)'}": each for name, each in by_name.items()}
    return found


def _length(tokens: int) -> str:
    for most in (100, 300, 1_000):
        if tokens <= most:
            return f"to {most} tokens"
    return "over 1000 tokens"


def _slices(seeds: list[Seeded]) -> dict[str, dict[str, ys.Mean]]:
    names = sorted({name for each in seeds for name in each.slices})
    found: dict[str, dict[str, ys.Mean]] = {}
    for name in names:
        have = [each.slices[name] for each in seeds if name in each.slices]
        found[name] = {
            what: ys.mean_of([float(getattr(each, what)) for each in have if not math.isnan(getattr(each, what))])
            for what in ("n", "low", "lost", "high", "wasted_usd", "accuracy")
        }
    return found
