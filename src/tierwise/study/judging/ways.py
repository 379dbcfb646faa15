"""The ways to route that are measured: a trained router, the agreement of two cheap models, single models, keywords.

What is swept is fixed on the training side (`planned`); `points` says what each setting would cost and be worth on any
prompts whose outcomes are known; `taken` is the setting that would be deployed.
"""

from __future__ import annotations

import itertools
import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from tierwise.core.estimate import outlook
from tierwise.core.learned import DENSE, Trained, standardised
from tierwise.study import yardsticks as ys
from tierwise.study.judging.play import rates_usd, remembered
from tierwise.study.table import Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MOST_PAIRS = 12
PAIR_LOSS = 0.01  # most that a cheap pair may lose on the training data to be chosen for what it saves


class Scores(msgspec.Struct, frozen=True):
    """What is expected of N prompts before anybody is asked, as `decide` sees it. Both [N, M]."""

    value: Floats
    cost_usd: Floats


class Points(msgspec.Struct, frozen=True):
    """Operating points of one way to route, on one part of the data: [K] mean cost and mean quality, and [K, N] the
    model whose reply is delivered."""

    cost: Floats
    quality: Floats
    model: Ints

    @property
    def curve(self) -> ys.Curve:
        return ys.hull(self.cost, self.quality)


class Rung(msgspec.Struct, frozen=True):
    """Two cheap models whose agreement is taken for right, and the model that is asked when they differ. Columns."""

    first: int
    second: int
    strong: int


class Keywords(msgspec.Struct, frozen=True):
    """Pairs of models, and the difficulties from which a prompt goes to the dearer one of a pair."""

    ladder: tuple[tuple[int, int], ...]
    difficulties: Floats


class Plan(msgspec.Struct, frozen=True):
    """The operating points of every way to route, fixed on training and validation data."""

    misses: Floats  # dollars that an inadequate answer is taken to cost, of `router`
    rungs: tuple[Rung, ...]  # of `agreement`, the one that saves most at little loss first
    losses: Floats  # most that training may expect the first of them to lose on a prompt
    keywords: Keywords


def rates_of(table: Table) -> Floats:
    """Dollars [M, 3] a token read, a token written and a request, as the fitting rows show them."""
    return np.array([rates_usd(table, column) for column in range(len(table.models))])


def scores(trained: Trained, table: Table, rates: Floats) -> Scores:
    """What this estimator expects of these prompts, in the order of the table's models. One that was not trained on is
    worth nothing, so that nobody is sent there by ignorance."""
    from tierwise.study.training.fit import predict

    mean, _, _ = predict(trained, table.inputs, table.workloads)
    place = {name: i for i, name in enumerate(trained.models)}
    where = np.array([place.get(name, -1) for name in table.models])
    value = np.where(where >= 0, mean[:, where], 0.0)
    read = np.expm1(table.inputs.dense[:, DENSE.index("input_tokens")].astype(np.float64))[:, None]
    written = np.zeros_like(value)
    if trained.tokens:
        shift, scale, tokens = (np.frombuffer(each, "<f4") for each in (trained.shift, trained.scale, trained.tokens))
        weights = tokens.reshape(-1, len(trained.models))
        counted = np.clip(standardised(table.inputs.dense, shift, scale) @ weights[:-1] + weights[-1], 0.0, 16.0)
        written = np.where(where >= 0, np.ceil(np.expm1(counted))[:, where], 0.0)
    return Scores(value, read * rates[:, 0] + np.maximum(written, 1.0) * rates[:, 1] + rates[:, 2])


def best_of(table: Table) -> int:
    """The single model with the highest mean quality; of equals the cheapest."""
    return int(np.lexsort((table.cost_usd.mean(axis=0), -table.quality.mean(axis=0)))[0])


def planned(own: Table, before: Scores) -> Plan:
    """What is swept, from the training side alone: all of it for what needs no training, the scores of its validation
    part for thresholds."""
    rungs = cheap_pairs(own)
    losses = np.zeros(0)
    if rungs:
        loss = before.value[:, rungs[0].strong] - before.value[:, rungs[0].first]
        losses = np.unique(np.quantile(loss, np.linspace(0.1, 0.9, 9)))
    return Plan(
        misses=ys.prices_of_a_miss(before.value, before.cost_usd), rungs=rungs, losses=losses, keywords=_ladder(own)
    )


def points(plan: Plan, table: Table, seen: Scores) -> dict[str, Points]:
    """Every way to route on these prompts. `router`: by the prompt alone, as `best`. `agreement`: as a cascade of two
    cheap models under an agreement, only where every model's answers are known. `with agreement`: either.
    `keywords`: the task rules and cue words of the built-in estimator, hard prompts to the next model up; nobody
    trained those, and whoever routes by keywords has no more."""
    choice = ys.sweep(seen.value, seen.cost_usd, plan.misses)
    single = np.repeat(np.arange(len(table.models))[:, None], len(table.ids), axis=1)
    found = {name: chosen(each, table) for name, each in (("zero", single), ("router", choice))}
    if plan.rungs:
        every = [agreed(each, np.array([np.inf]), table, seen) for each in plan.rungs]
        found["agreement"] = joined(*every, agreed(plan.rungs[0], plan.losses, table, seen))
        found["with agreement"] = joined(found["router"], found["agreement"])
    found["keywords"] = _keywords(plan.keywords, table)
    return found


def keyword_points(own: Table, table: Table) -> Points:
    """The keyword baseline alone, its thresholds and models from `own`."""
    return _keywords(_ladder(own), table)


def _ladder(own: Table) -> Keywords:
    cost, quality = own.cost_usd.mean(axis=0), own.quality.mean(axis=0)
    corners = ys.hull(cost, quality)
    ladder = [
        int(np.flatnonzero((cost == x) & (quality == y))[0]) for x, y in zip(corners.cost, corners.quality, strict=True)
    ]
    hard = difficulty(own)
    return Keywords(
        ladder=tuple(itertools.pairwise(ladder)) or ((ladder[0], ladder[0]),),
        difficulties=np.unique(np.concatenate(([-np.inf], np.quantile(hard, np.linspace(0, 1, 32)), [np.inf]))),
    )


def _keywords(rules: Keywords, table: Table) -> Points:
    hard = difficulty(table)
    moved = [np.where(hard >= level, higher, lower) for lower, higher in rules.ladder for level in rules.difficulties]
    return chosen(np.array(moved, dtype=np.int64), table)


def chosen(choice: Ints, table: Table) -> Points:
    """Where one model a prompt is asked, [K, N]."""
    return Points(*ys.means(choice, table.quality, table.cost_usd), choice)


def joined(*parts: Points) -> Points:
    """All of their points."""
    return Points(*(np.concatenate([getattr(each, name) for each in parts]) for name in ("cost", "quality", "model")))


def agreed(rung: Rung, losses: Floats, table: Table, seen: Scores) -> Points:
    """The cascade at each threshold. Two replies are asked for and paid, and a third when they differ."""
    rows = np.arange(len(table.ids))
    same = agreement(table, rung.first, rung.second)
    loss = seen.value[:, rung.strong] - seen.value[:, rung.first]
    tried = loss[None, :] <= losses[:, None]
    model = np.where(tried & same, rung.first, rung.strong)
    pair = table.cost_usd[:, rung.first] + table.cost_usd[:, rung.second]
    cost = np.where(tried, pair, 0.0) + np.where(tried & same, 0.0, table.cost_usd[:, rung.strong])
    return Points(cost.mean(axis=1), table.quality[rows, model].mean(axis=1), model)


def agreement(table: Table, first: int, second: int) -> Bools:
    """Where two models say the same; not where either's answer is unknown."""
    same: Bools = (table.answers[:, first] == table.answers[:, second]) & (table.answers[:, first] >= 0)
    return same


def cheap_pairs(table: Table) -> tuple[Rung, ...]:
    """Pairs of models whose agreement is worth a thought on these prompts: those that no other beats in both saving and
    loss. First the one that saves most while losing at most PAIR_LOSS, else loses least. The strong model is the best
    one. None without answers, or with nothing cheaper that two could be."""
    cost, strong = table.cost_usd.mean(axis=0), best_of(table)
    cheaper = [i for i in np.argsort(cost, kind="stable").tolist() if cost[i] < cost[strong]]
    dear = table.quality[:, strong]
    found = []
    for first, second in itertools.combinations(cheaper, 2):
        same = agreement(table, first, second)
        if same.any():
            lost = float(np.where(same, dear - table.quality[:, first], 0.0).mean())
            spent = cost[first] + cost[second] + float(np.where(same, 0.0, table.cost_usd[:, strong]).mean())
            found.append(
                (lost > PAIR_LOSS, spent if lost <= PAIR_LOSS else lost, lost, spent, Rung(first, second, strong))
            )
    found.sort(key=lambda each: each[:4])
    kept = [each for each in found if not any(o[2] <= each[2] and o[3] < each[3] for o in found)]
    return tuple(each[4] for each in kept[:MOST_PAIRS])


def difficulty(table: Table) -> Floats:
    """[N] as the built-in estimator reckons it from task and cue words: what stands for keyword rules."""
    return np.array([outlook(each).difficulty for each in remembered(table.inputs)])


def taken(points: Points, validation: Table, reference: int, part: float) -> int:
    """Which operating point is deployed: the cheapest that keeps this part of the reference's quality on validation,
    and by a standard error more, because the luckiest of many points is not the best (the one-standard-error rule of
    Breiman et al. 1984); when none does, the reference where it is among the points, else the best."""
    rows = np.arange(len(validation.ids))
    own = validation.quality[rows, points.model] - part * validation.quality[:, reference]
    error = own.std(axis=1, ddof=1) / math.sqrt(max(1, rows.size))
    same = (points.model == reference).all(axis=1)
    good = (own.mean(axis=1) >= error - 1e-12) | same
    if not good.any():
        return int(np.lexsort((points.cost, -points.quality))[0])
    return int(np.lexsort((-points.quality, np.where(good, points.cost, np.inf)))[0])
