"""A promise from labelled outcomes: where cheap models may answer so that, with confidence 1 − delta, requests lose at
most alpha of quality on average against the reference; or nothing, and how many labels are wanting.

Two parts of the rows, by groups of equal prompts. One chooses: which cheap models, which thresholds are worth testing.
The rows that the estimator was trained on may serve for that. The other, which nothing was fitted to, certifies: the
thresholds are tested from safe to risky (`bounds.leading`), each at the whole delta, and of those that pass the one
that saves most is taken. So the choice costs no confidence. Each workload's promise holds with confidence 1 − delta by
itself; that all of them hold at once is not promised.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from tierwise.core.learned import Trained
from tierwise.core.promise import Judges, Promise, Segment
from tierwise.study.data.labels import SOUND_WEIGHT
from tierwise.study.promises.bounds import at_most, leading, needed, upper
from tierwise.study.promises.cascades import (
    AGREEMENT,
    ALWAYS,
    NEVER,
    Cut,
    Figures,
    Kind,
    Route,
    figures,
    route,
    served,
    voices,
)
from tierwise.study.table import Floats, Ints, Table, split
from tierwise.study.training.fit import predict

CHOOSING = 0.25  # of the labelled rows, where training has left none to choose on
SHARES = np.arange(0.1, 0.95, 0.1)  # of the requests, by expected loss: the thresholds that are tested, before ALWAYS
# How much a route's loss varies from request to request, as an order of magnitude: one reply in twenty is worth
# otherwise. A workload has a segment of its own when it has the rows that such a route needs; below, it shares one.
TYPICAL_VARIANCE = 0.05
MOST_MODELS = 12  # the cheapest: their ordered pairs are 132
LEAST_SAVED = 0.01  # below it a promise is not worth its watching
NONE = np.zeros(0, dtype=np.int64)


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be promised."""

    kind: Kind
    alpha: float
    delta: float
    reference: str
    seed: int


class _Plan(msgspec.Struct, frozen=True):
    """What the choosing rows propose to certify: a route, and cuts from safe to risky."""

    models: tuple[str, ...]
    cuts: tuple[Cut, ...]


def calibrate(
    table: Table,
    trained: Trained,
    *,
    name: str,
    kind: Kind,
    alpha: float,
    delta: float,
    reference: str,
    made_s: int,
    models: Sequence[str] | None = None,
    seen: Ints = NONE,
    seed: int = 0,
    by_workload: bool = True,
    judges: tuple[Judges, ...] = (),
    left_out: tuple[str, ...] = (),
) -> Promise:
    """A promise of this kind about this estimator, from this table's rows.

    `models`: which may answer in the reference's place; else all that cost less. `seen`: the groups of prompts (as in
    `Table.groups`) that the estimator was trained on; rows of them choose and never certify. `judges`, `left_out`: who
    labelled, and the keys whose labels are not in the table, as the promise is to say it. Raises ValueError, with a
    sentence, for what cannot be asked of this table; that data do not suffice is no error, but an uncertified segment.
    """
    if not (0.0 < alpha < 1.0 and 0.0 < delta < 1.0):
        raise ValueError(f"alpha {alpha:g} and delta {delta:g} must lie between 0 and 1, neither included")
    table = sound(table)
    asked = _Asked(kind=kind, alpha=alpha, delta=delta, reference=reference, seed=seed)
    pool = _pool(table, trained, reference, models)
    mean, _, _ = predict(trained, table.inputs, table.workloads)
    best = np.asarray(mean[:, trained.models.index(reference)], dtype=np.float64)
    expected = np.stack([best - mean[:, trained.models.index(each)] for each in pool], axis=1) if pool else mean[:, :0]
    choosing, certifying = _parts(table, reference, seen, seed)
    alike = _alike(table)
    segments = []
    for workload, mine in _segments(table, certifying, asked, by_workload):
        own = choosing[_within(table, choosing, workload, mine)]
        found = (
            Segment(workload=workload, status="uncertified", bound=1.0, why=alike)
            if alike
            else _segment(table, expected, pool, workload, own, mine, asked)
        )
        if not workload and by_workload:
            found = msgspec.structs.replace(found, workloads=_told_apart(table, mine))
        segments.append(found)
    return Promise(
        name=name,
        kind=kind,
        alpha=alpha,
        delta=delta,
        reference=reference,
        estimator=trained.id,
        made_s=made_s,
        data_hash=table.hash,
        segments=tuple(segments),
        similarity=1.0,
        judges=judges,
        left_out=left_out,
    )


def fitting(table: Table, trained: Trained, *, reference: str, models: Sequence[str] | None = None) -> tuple[Kind, str]:
    """The kind of promise that saves most and that these outcomes can carry, and a sentence where that is no agreement.
    Raises ValueError, as `calibrate` does."""
    pool = _pool(sound(table), trained, reference, models)
    compared = [each for each in pool if (table.answers[:, table.column(each)] >= 0).any()]
    if len(compared) >= AGREEMENT:
        return "agreement", ""
    few = f"one, {pool[0]}" if len(pool) == 1 else f"{len(compared)} whose final answers are known"
    return "choice", f"an agreement takes two cheaper models that were labelled, and there is {few}"


def unusable(table: Table, reference: str) -> int:
    """Rows that say nothing about a loss, because nobody knows for sound what the reference would have been worth."""
    return int(np.isnan(sound(table).quality[:, table.column(reference)]).sum())


def sound(table: Table) -> Table:
    """Without the outcomes whose labels are too weak to certify anything by; a label without a weight is beyond
    doubt."""
    return msgspec.structs.replace(table, quality=np.where(table.weight < SOUND_WEIGHT, np.nan, table.quality))


def _alike(table: Table) -> str:
    """Why nothing can be promised by labels that never differ; "" when some do."""
    known = table.quality[np.isfinite(table.quality)]
    if not known.size or known.min() < known.max():
        return ""
    return f"every label here is {known[0]:g}: labels that never differ cannot show a loss, nor that there is none"


def _pool(table: Table, trained: Trained, reference: str, models: Sequence[str] | None) -> tuple[str, ...]:
    """The models that may stand in, cheapest first."""
    for each in (reference, *(models or ())):
        if each not in table.models:
            raise ValueError(f"there are no outcomes of model {each!r}; there are of {', '.join(table.models)}")
        if each not in trained.models:
            raise ValueError(f"the estimator was not trained on model {each!r}; fit again, with its outcomes")
    costs = {each: _mean(table.cost_usd[:, table.column(each)]) for each in table.models}
    dear = costs[reference]
    if models is not None:
        pool = [each for each in dict.fromkeys(models) if each != reference]
    else:
        # Where no cost is known every model might be a saving, and then the share of calls says how much.
        pool = [
            each
            for each in table.models
            if each != reference
            and each in trained.models
            and not costs[each] >= dear  # NaN is not dearer
            and np.isfinite(table.quality[:, table.column(each)]).any()
        ]
    return tuple(sorted(pool, key=lambda each: (math.isnan(costs[each]), costs[each])))[:MOST_MODELS]


def _mean(costs: Floats) -> float:
    """NaN when none is known."""
    known = costs[np.isfinite(costs)]
    return float(known.mean()) if known.size else math.nan


def _parts(table: Table, reference: str, seen: Ints, seed: int) -> tuple[Ints, Ints]:
    """Rows that choose and rows that certify, in random order; both know the reference's outcome."""
    usable = np.flatnonzero(np.isfinite(table.quality[:, table.column(reference)]))
    fresh = usable[~np.isin(table.groups[usable], seen)]
    if fresh.size < usable.size:
        order = np.random.default_rng(seed).permutation(fresh.size)
        return usable[np.isin(table.groups[usable], seen)], fresh[order]
    first, second = split(table.groups[usable], CHOOSING, seed)
    return usable[first], usable[second]


def _segments(table: Table, rows: Ints, asked: _Asked, by_workload: bool) -> Iterator[tuple[str, Ints]]:
    """Workloads with enough rows of their own, then all others together as "", if there are any."""
    least = needed(0.0, TYPICAL_VARIANCE, asked.alpha, asked.delta, low=-1.0, high=1.0)
    names = np.array([table.workloads[i] for i in rows], dtype=object)
    rest = np.ones(rows.size, dtype=bool)
    for workload in sorted(set(names)) if by_workload else ():
        mine = names == workload
        if workload and mine.sum() >= least:
            rest &= ~mine
            yield workload, rows[mine]
    if rest.any() or not rows.size:
        yield "", rows[rest]


def _told_apart(table: Table, rows: Ints) -> tuple[str, ...]:
    """The workloads of these rows, ascending: a promise on some workloads says nothing about one that nobody labelled.
    () where the table tells none apart."""
    if not any(table.workloads):
        return ()
    return tuple(sorted({table.workloads[i] for i in rows}))


def _within(table: Table, choosing: Ints, workload: str, mine: Ints) -> NDArray[np.bool_]:
    """Of the choosing rows those of this segment's workloads."""
    names = {workload} if workload else {table.workloads[i] for i in mine}
    return np.array([table.workloads[i] in names for i in choosing], dtype=bool)


def _segment(
    table: Table, expected: Floats, pool: tuple[str, ...], workload: str, choosing: Ints, rows: Ints, asked: _Asked
) -> Segment:
    found = _choose(table.take(choosing), expected[choosing], pool, rows.size, asked)
    if found is None:
        return Segment(
            workload=workload,
            status="uncertified",
            n=rows.size,
            bound=1.0,
            why=_nobody(pool, asked)
            if rows.size and choosing.size
            else "there are no labelled requests that training has not seen",
        )
    at = [pool.index(each) for each in found.models]

    def of(some: Ints) -> Route:
        return route(table.take(some), asked.kind, found.models, asked.reference, expected[some][:, at])

    tested, often = of(rows), _often(table, choosing)
    unlabelled = rows.size - tested.rows.size
    order = np.random.default_rng(asked.seed).permutation(rows.size + often.size)
    beside = of(np.concatenate((rows, often))[order]) if often.size else None
    passed = found.cuts[: leading(_holds(tested, beside, each, asked) for each in found.cuts)]
    best = max(passed, key=lambda each: _saved(tested, each), default=None)
    if best is not None and _saved(tested, best) >= LEAST_SAVED:
        voices = AGREEMENT if asked.kind == "agreement" else 0
        # One that would never be asked need not be named.
        models = found.models[:voices] if voices and best.further <= NEVER else found.models
        return msgspec.structs.replace(
            _told(workload, tested, beside, best, asked),
            unlabelled=unlabelled,
            status="certified",
            models=models,
            agreement=voices,
            threshold=best.threshold,
            further=best.further,
        )
    missing = _uncertified(workload, of(choosing), tested, beside, found.cuts, asked)
    return msgspec.structs.replace(missing, unlabelled=unlabelled)


def _nobody(pool: tuple[str, ...], asked: _Asked) -> str:
    if asked.kind == "agreement" and len(pool) == 1:
        return f"agreement needs two cheaper models that were labelled; there is one ({pool[0]}): try kind choice"
    return "no cheaper model is both trained on and labelled here, beside the reference"


def _often(table: Table, choosing: Ints) -> Ints:
    """Of the choosing rows those of prompts that come more than once. All rows of such a prompt choose, so that the
    others tell nothing of it, however large its part of the traffic is."""
    _, at, counts = np.unique(table.groups, return_inverse=True, return_counts=True)
    return choosing[counts[at[choosing]] > 1]


def _holds(tested: Route, beside: Route | None, cut: Cut, asked: _Asked) -> bool:
    """Besides the bound, which looks at every prefix of the rows, all of them together may not say otherwise, nor the
    different prompts among them, each with one voice, nor the rows with those of `_often` beside them."""
    return _figures(tested, cut).loss <= asked.alpha and all(
        at_most(loss, asked.alpha, asked.delta, low=-1.0, high=1.0, weights=weight)
        for loss, weight in _evidence(tested, beside, cut)
    )


def _evidence(tested: Route, beside: Route | None, cut: Cut) -> Iterator[tuple[Floats, Floats]]:
    """Losses and weights that each have to carry the promise."""
    if beside is not None:
        yield served(beside, cut).loss, beside.weight
    played = served(tested, cut)
    yield played.loss, tested.weight
    prompts = voices(tested, played)
    if prompts is not None:
        yield prompts


def _figures(tested: Route, cut: Cut) -> Figures:
    return figures(tested, served(tested, cut))


def _saved(tested: Route, cut: Cut) -> float:
    return _figures(tested, cut).saved


def _told(workload: str, tested: Route, beside: Route | None, cut: Cut, asked: _Asked) -> Segment:
    """What was measured at this cut; certified is nothing by it."""
    found = _figures(tested, cut)
    evidence = _evidence(tested, beside, cut)
    bound = max(upper(loss, asked.delta, low=-1.0, high=1.0, weights=weight) for loss, weight in evidence)
    return Segment(
        workload=workload,
        status="uncertified",
        n=tested.rows.size,
        loss=round(found.loss, 6),
        bound=round(max(bound, found.loss), 6),
        share=round(found.share, 6),
        saved=round(found.saved, 6),
    )


# ------------------------------------------------------------------------------------------------ what to test


def _choose(table: Table, expected: Floats, pool: tuple[str, ...], n: int, asked: _Asked) -> _Plan | None:
    """The models that promise the largest certified saving on the n rows that are left to certify, and the cuts to
    test; None when no model has outcomes here. Judged on the choosing rows, by the chance that the bound holds.

    Of an agreement the third model is asked at last, when the whole of the first two has passed: so it takes nothing
    from what two are certified for."""

    def tried(models: tuple[str, ...]) -> Route:
        return route(table, asked.kind, models, asked.reference, expected[:, [pool.index(each) for each in models]])

    def worth(one: Route, cuts: tuple[Cut, ...], sure: float = LEAST_SAVED) -> float:
        return max(_worth(figures(one, served(one, each)), sure, one.rows.size, n, asked) for each in cuts)

    routes = [one for one in map(tried, _tuples(asked.kind, pool)) if one.rows.size]
    if not routes:
        return None
    best = max(routes, key=lambda one: worth(one, _cuts(one)))
    cuts = _cuts(best)
    if asked.kind == "choice":
        return _Plan(best.models, cuts)
    thirds = [one for one in (tried((*best.models, each)) for each in pool if each not in best.models) if one.rows.size]
    if not thirds:
        return _Plan(best.models, cuts)
    sure = _saved(best, cuts[-1])
    third = max(thirds, key=lambda one: worth(one, _further(one), sure))
    return _Plan(third.models, (*cuts, *_further(third)))


def _tuples(kind: Kind, pool: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """An agreement is of two, and the first one's reply is delivered. A choice is of one, or of a cheap and a less
    cheap one."""
    if kind == "agreement":
        yield from itertools.permutations(pool, AGREEMENT)
    else:
        yield from ((each,) for each in pool)
        yield from itertools.combinations(pool, 2)


def _cuts(tried: Route) -> tuple[Cut, ...]:
    """From safe to risky, the last of them all requests."""
    return tuple(Cut(each) for each in _levels(tried))


def _further(tried: Route) -> tuple[Cut, ...]:
    """Of those that ask all models, beyond the last of `_cuts`."""
    return tuple(Cut(ALWAYS, each) for each in _levels(tried))


def _levels(tried: Route) -> tuple[float, ...]:
    """Rounded, so that the promise holds what was tested."""
    least = tried.expected.min(axis=1)
    levels = [round(float(each), 4) for each in np.quantile(least, SHARES)]
    return (*sorted({each for each in levels if NEVER < each < ALWAYS}), ALWAYS)


def _worth(found: Figures, sure: float, seen: int, n: int, asked: _Asked) -> float:
    """Saving beyond what is sure × the chance, by the normal approximation, that n fresh rows will certify it. One
    imagined reply that is worse than the reference's keeps a few lucky rows from looking safe."""
    mean, variance = (found.loss * seen + 1) / (seen + 1), (found.variance * seen + 1) / (seen + 1)
    margin = asked.alpha - mean - math.sqrt(-2 * math.log(asked.delta) * variance / max(1, n))
    doubt = math.sqrt(variance / max(1, n) + variance / seen)
    more = found.saved - sure
    return more * 0.5 * math.erfc(-margin / doubt / math.sqrt(2)) if more > 0 else more


# ------------------------------------------------------------------------------------------------ what is missing


def _uncertified(
    workload: str, own: Route, tested: Route, beside: Route | None, cuts: tuple[Cut, ...], asked: _Asked
) -> Segment:
    """Why, and about how many labelled requests it would take: by what all labelled rows together say of the mean and
    the variance, where a few lucky ones do not count as proof that nothing is ever lost."""
    labelled = own.rows.size + tested.rows.size
    wanted: list[tuple[int, int]] = []
    for i, each in enumerate(cuts):
        parts = [(figures(part, served(part, each)), part.rows.size) for part in (own, tested)]
        loss, variance, saved = (
            sum(getattr(part, name) * size for part, size in parts) / max(1, labelled)
            for name in ("loss", "variance", "saved")
        )
        loss, variance = max(0.0, loss), (variance * labelled + 1) / (labelled + 1)
        if saved >= LEAST_SAVED and loss < asked.alpha:
            wanted.append((needed(loss, variance, asked.alpha, asked.delta, low=-1.0, high=1.0), i))
    names = " and ".join(own.models)
    if not wanted:
        saves = _saved(tested, cuts[-1]) >= LEAST_SAVED
        why = (
            f"what {names} would save comes with a loss above {asked.alpha:g}; more labels will not change that"
            if saves
            else f"{names} would save nothing here, because too few replies could be kept"
        )
        return msgspec.structs.replace(_told(workload, tested, beside, cuts[-1], asked), why=why)
    rows, at = min(wanted)
    # Only a part of the labelled rows certifies, and of those that repeat a prompt one.
    different = np.unique(tested.groups).size
    missing = max(1, math.ceil(rows * labelled / max(1, different)) - labelled)
    why = (
        f"{names} would be tested on {different} different labelled requests, and it takes about {rows} to bound the "
        f"loss by {asked.alpha:g}"
    )
    return msgspec.structs.replace(_told(workload, tested, beside, cuts[at], asked), why=why, missing=missing)
