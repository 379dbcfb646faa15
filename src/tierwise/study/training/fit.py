"""Trains an estimator on outcomes: linear scores made chances, for n models at once. Reasons: docs/learning.md.

    trained score of the reference r      level(x)
    of another model m                    level(x) − gain_m(x), the gain of r over m, taken where both have answered
    of one that r has hardly been paired  its own level, blended with the above by what left-out prompts say

Each of these leans on the shared difficulty as far as cross-validation says. Chances, intervals and every figure of the
report come from predictions for prompts that were left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from tierwise.core.errors import TierwiseError
from tierwise.core.learned import DENSE, Heads, Trained, standardised
from tierwise.core.request import FEATURES_VERSION
from tierwise.study.data.trust import Suspect
from tierwise.study.table import Ints, Table
from tierwise.study.training import chances
from tierwise.study.training.histograms import Histogram, histograms
from tierwise.study.training.predict import predict as predict
from tierwise.study.training.predict import said
from tierwise.study.training.regress import Columns, Weights, columns, design, folds_of, solve, weights_of
from tierwise.study.training.settings import FOLDS, Settings, choose
from tierwise.study.training.targets import ROWS, Targets, leans, targets, trust
from tierwise.study.yardsticks import two_models

Floats = NDArray[np.float64]
Progress = Callable[[str], None]

MANY = 20_000  # rows, beyond which one fold is left out instead of each of five: it has rows enough
TURNS, HELD = 30, 0.1  # of finding the best model; the rows that stand against a prompt's own
STRANGER = 0.25  # believed of an unseen workload where training has seen one alone, so that nothing can tell
CENT = 1.0  # penalty of lengths and times, a row's worth


class FitError(TierwiseError):
    """These data carry no estimator; says why and what would."""


class ModelReport(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    n: int  # outcomes
    paired: int  # of them on prompts that the reference has answered too
    mean: float  # quality
    quality: chances.Quality
    # Of sending to the reference what is expected to gain most by it; chance has 0.5. None where it is not better.
    apgr: float | None


class FitReport(msgspec.Struct, frozen=True, kw_only=True):
    rows: int
    workloads: int
    grams: int  # that carry a weight
    reference: str
    seed: int
    settings: Settings
    left_out: int  # rows that the figures are about
    models: tuple[ModelReport, ...]
    warnings: tuple[str, ...]  # sentences
    suspects: tuple[Suspect, ...] = ()  # whose labels were left out (`study/training/believed`)


class Fitted(msgspec.Struct, frozen=True):
    trained: Trained
    report: FitReport
    data_hash: str
    inputs: tuple[Histogram, ...] = ()  # what the traffic to come is compared with
    # [N, M] of the table: the chance of an adequate answer as a fit without the row sees it; NaN where there is none.
    expected: Floats | None = None


class _Parts(msgspec.Struct, frozen=True):
    """Scores of M models: their weights, and the scores of the rows that were left out (NaN in the others)."""

    weights: Weights
    left_out: Floats  # [N, M]


def fit(
    table: Table,
    *,
    reference: str | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """An estimator of the models with at least ROWS outcomes. The same for the same table, seed and machine.

    `reference`: the model that gains are measured against, else the best one. `settings`: those that an earlier fit
    chose, which takes most of its time. Raises FitError when the table carries none: fewer than ROWS outcomes, hardly
    any different prompts, numbers that are none.
    """
    say = progress or (lambda line: None)
    _check(table)
    whole = table
    table, warnings = _enough(table, reference)
    best = table.column(reference) if reference else _best(table)
    named = columns(table.inputs, table.workloads, table.groups)
    found = targets(table, best)
    warnings += _wanting(table, found, best)
    say(f"{len(table.ids):,} prompts, {len(table.models)} models, reference {table.models[best]}")
    settings = settings or choose(table, found, named, seed)
    say("settings chosen")
    folds = folds_of(table.groups, FOLDS, seed)
    parts = _regress(table, found, named, settings, best, folds, (0,) if len(table.ids) > MANY else range(FOLDS))
    say("weights fitted")
    curves, models, chance = _curves(table, parts.left_out, named, best)
    factor = _strange(table, found, named, settings, best)
    trained = _packed(table, named, parts.weights, curves, best, factor)
    report = FitReport(
        rows=len(table.ids),
        workloads=len(named.workloads),
        grams=int(named.grams.size),
        reference=table.models[best],
        seed=seed,
        settings=settings,
        left_out=int(np.isfinite(parts.left_out).all(axis=1).sum()),
        models=models,
        warnings=(*warnings, *_weak(models)),
    )
    return Fitted(trained, report, table.hash, histograms(table.inputs, table.workloads), _placed(chance, table, whole))


# ------------------------------------------------------------------------------------------------ what there is


def _check(table: Table) -> None:
    if not table.ids or not table.models:
        raise FitError("there are no outcomes to learn from: the table is empty")
    for name, values, least, most in (
        ("quality", table.quality, 0.0, 1.0),
        ("output_tokens", table.output_tokens, 0.0, np.inf),
        ("latency_ms", table.latency_ms, 0.0, np.inf),
    ):
        wrong = np.argwhere(np.isinf(values) | (values < least) | (values > most))
        if wrong.size:
            row, m = wrong[0]
            raise FitError(
                f"{name} of prompt {table.ids[row]!r}, model {table.models[m]!r} is {values[row, m]}; "
                + ("it has to be between 0 and 1" if most == 1.0 else "it has to be a number, not below 0")
            )
    known = np.isfinite(table.quality)
    weight = table.weight[known]
    if not (np.isfinite(weight) & (weight > 0)).all():
        raise FitError("a label has a weight that is not above 0; leave out what is not to count")
    if not np.isfinite(table.inputs.dense).all():
        row = int(np.argwhere(~np.isfinite(table.inputs.dense))[0][0])
        raise FitError(f"a feature of prompt {table.ids[row]!r} is no number; read its features again")


def _enough(table: Table, reference: str | None) -> tuple[Table, list[str]]:
    """The models and rows that something can be learned from, and what is said of the others."""
    known = np.isfinite(table.quality)
    counts = known.sum(axis=0)
    if reference is not None:
        if reference not in table.models:
            raise FitError(f"the reference {reference!r} is none of the models: {', '.join(table.models)}")
        n = int(counts[table.column(reference)])
        if n < ROWS:
            raise FitError(f"the reference {reference!r} has {n} outcomes; at least {ROWS} are needed")
    enough = [name for name, n in zip(table.models, counts, strict=True) if n >= ROWS]
    if not enough:
        most = int(counts.max())
        raise FitError(f"no model has {ROWS} outcomes (the most is {most}); nothing can be learned from so few")
    warnings = [
        f"nothing was learned about {name}: {n} {'row' if n == 1 else 'rows'}, and {ROWS} are the least"
        for name, n in zip(table.models, counts, strict=True)
        if n < ROWS
    ]
    table = table.only(enough)
    rows = np.flatnonzero(np.isfinite(table.quality).any(axis=1))
    if rows.size < len(table.ids):
        table = table.take(rows)
    groups = np.unique(table.groups).size
    if groups < ROWS:
        raise FitError(f"there are {groups} different prompts; at least {ROWS} are needed to learn what differs")
    return table, warnings


def _best(table: Table) -> int:
    """The model with the highest mean quality, had all been asked the same: a model that was only asked what is easy
    has a high mean. Means and what each prompt adds to all of its replies are found in turn, prompts shrunk a little,
    so that a model which shares none with the others keeps its plain mean."""
    known = np.isfinite(table.quality)
    weight = np.where(known, table.weight / np.nanmean(table.weight[known]), 0.0)
    quality = np.where(known, table.quality, 0.0)
    prompt = np.zeros((len(table.ids), 1))
    for _ in range(TURNS):
        mean = (weight * (quality - prompt)).sum(axis=0) / weight.sum(axis=0)
        prompt = (weight * (quality - mean)).sum(axis=1, keepdims=True) / (weight.sum(axis=1, keepdims=True) + HELD)
    return int(mean.argmax())


def _wanting(table: Table, found: Targets, best: int) -> list[str]:
    known = np.isfinite(table.quality)
    warnings = []
    for m, name in enumerate(table.models):
        pairs = int((known[:, m] & known[:, best]).sum())
        if m != best and m not in found.gain:
            warnings.append(
                f"the gain of {table.models[best]} over {name} was not measured: {pairs} prompts were answered by "
                f"both, and {ROWS} are the least; {name} has a regression of its own"
            )
        if np.ptp(table.quality[known[:, m], m]) == 0.0:
            warnings.append(f"all outcomes of {name} are alike: only its mean was learned")
    return warnings


def _weak(models: Sequence[ModelReport]) -> list[str]:
    return [
        f"the prompt says nothing about {each.model}: its chances are no better than its mean (Brier "
        f"{each.quality.brier:.3f} against {each.quality.base_brier:.3f})"
        for each in models
        if each.quality.brier > each.quality.base_brier + 1e-9 and each.quality.auroc is not None
    ]


# ------------------------------------------------------------------------------------------------ scores


def _regress(
    table: Table, found: Targets, named: Columns, settings: Settings, best: int, folds: Ints, told: Sequence[int]
) -> _Parts:
    matrix = design(table.inputs, table.workloads, named, settings.scales())
    shared, shared_out = _solved(matrix, found.shared, found.shared_weights, np.array([settings.shared]), folds, told)
    known_out = np.nan_to_num(shared_out)  # a row that was not left out has no honest prediction to lean on
    lean = settings.leaning * leans(found, known_out)
    penalty = np.where(np.arange(found.values.shape[1]) < found.levels, settings.level, settings.gain)
    rest = np.where(found.weights > 0, found.values - lean * known_out, 0.0)
    weights, out = _solved(matrix, rest, found.weights, penalty, folds, told)
    whole, left = weights + lean * shared, out + lean * shared_out
    share = trust(found, np.nan_to_num(left))
    whole, left = share * whole, share * left  # the constants are the curves' business
    mix = _mixture(table, found, left, best)
    return _Parts(weights_of(whole @ mix, named, settings.scales()), left @ mix)


def _solved(
    matrix: object, values: Floats, weights: Floats, penalty: Floats, folds: Ints, told: Sequence[int]
) -> tuple[Floats, Floats]:
    """The weights of all rows, [F, T], and what the rows of each fold get from the others, [N, T]."""
    parts = [np.ones(folds.size), *[(folds != fold) * 1.0 for fold in told]]
    each = np.hstack([part[:, None] * weights for part in parts])
    found = solve(matrix, np.tile(values, len(parts)), each, np.tile(penalty, len(parts)))
    count = values.shape[1]
    out = np.full(values.shape, np.nan)
    for i, fold in enumerate(told, start=1):
        rows = np.flatnonzero(folds == fold)
        out[rows] = matrix[rows] @ found[:, i * count : (i + 1) * count]  # type: ignore[index]
    return found[:, :count], out


def _strange(table: Table, found: Targets, named: Columns, settings: Settings, best: int) -> float:
    """How much of what prompts say is believed of a workload that training has not seen: the factor that predicts the
    gains of workloads best that were left out whole (least squares, within 0..1)."""
    if not named.workloads:
        return 1.0
    if len(table.ids) > MANY:  # one number needs no more
        some = np.random.default_rng(0).permutation(len(table.ids))[:MANY]
        table, found = table.take(some), found.take(some)
    names, at = np.unique(np.array(table.workloads, dtype=object).astype(str), return_inverse=True)
    if names.size < 2 or len(table.models) < 2:
        return STRANGER
    order = np.argsort(-np.bincount(at), kind="stable")
    place = np.empty(names.size, dtype=np.int64)
    place[order] = np.arange(names.size) % FOLDS
    left = _regress(table, found, named, settings, best, place[at], range(min(FOLDS, names.size))).left_out
    others = [m for m in range(len(table.models)) if m != best]
    gain = table.quality[:, [best]] - table.quality[:, others]
    told = left[:, [best]] - left[:, others]
    known = np.isfinite(gain) & np.isfinite(told)
    weight = np.where(known, np.minimum(table.weight[:, [best]], table.weight[:, others]), 0.0)
    total = np.maximum(weight.sum(axis=0), 1e-12)
    gain, told = (np.where(known, each, 0.0) for each in (gain, told))
    gain, told = (np.where(known, each - (weight * each).sum(axis=0) / total, 0.0) for each in (gain, told))
    down = float((weight * told**2).sum())
    if down <= 1e-12:
        return 0.0
    factor = float((weight * told * gain).sum()) / down
    # A standard error less: where left-out prompts say next to nothing, the quotient of two noises is no reason.
    error = float(np.sqrt(((weight * told * (gain - factor * told)) ** 2).sum())) / down
    factor = min(1.0, max(0.0, factor - error))
    # Two workloads that are alike are little reason to expect a third one that is.
    return factor * (names.size - 1) / (names.size + 1)


def _mixture(table: Table, found: Targets, left: Floats, best: int) -> Floats:
    """[T, M]: how the targets make the models' scores. Where a model has a level of its own and a gain, the blend is
    the one that predicts its left-out outcomes best (least squares, within 0..1)."""
    mix = np.zeros((left.shape[1], len(table.models)))
    for m in range(len(table.models)):
        own, gain = found.own.get(m), found.gain.get(m)
        share = 1.0 if gain is not None else 0.0
        if own is not None and gain is not None and m != best:
            rows = np.flatnonzero(np.isfinite(table.quality[:, m]) & np.isfinite(left[:, 0]))
            apart = left[rows, found.own[best]] - left[rows, gain] - left[rows, own]
            weight = table.weight[rows, m]
            down = float((weight * apart**2).sum())
            up = float((weight * apart * (table.quality[rows, m] - left[rows, own])).sum())
            share = min(1.0, max(0.0, up / down)) if down > 1e-12 else 1.0
        if gain is not None:
            mix[found.own[best], m] += share
            mix[gain, m] -= share
        if own is not None:
            mix[own, m] += 1.0 - share
    return mix


# ------------------------------------------------------------------------------------------------ chances


def _curves(
    table: Table, left: Floats, named: Columns, best: int
) -> tuple[list[chances.Curve], tuple[ModelReport, ...], Floats]:
    """The curve of each model from all rows that were left out; its figures with a curve from the other half of them,
    and the interval's from the other half as well. The chances [N, M] that these are about come with them."""
    place = {name: i for i, name in enumerate(("", *named.workloads))}
    workload = np.array([place.get(name, 0) for name in table.workloads])
    half = folds_of(table.groups, 2, 1)
    known = np.isfinite(table.quality)
    chance, curves, qualities = np.full(left.shape, np.nan), [], []
    for m in range(len(table.models)):
        rows = np.flatnonzero(known[:, m] & np.isfinite(left[:, m]))
        score, good, weight = left[rows, m], table.quality[rows, m], table.weight[rows, m]
        weight = weight / weight.mean()
        curves.append(_curve(score, good, weight, workload[rows]))
        covered = []
        for side in (0, 1):
            here, there = half[rows] == side, half[rows] != side
            other = _curve(score[there], good[there], weight[there], workload[rows][there]) if there.any() else None
            if other is None or not here.any():
                continue
            own = chances.chances(other, score[here])
            chance[rows[here], m] = own
            slices = chances.slices_of(own, workload[rows][here])
            covered.append(chances.coverage(own, good[here], weight[here], slices, other.doubt))
        told = [each for each in covered if each is not None]
        seen = np.isfinite(chance[rows, m])
        qualities.append(
            chances.quality(chance[rows[seen], m], good[seen], weight[seen], sum(told) / len(told) if told else None)
        )
    models = tuple(
        ModelReport(
            model=name,
            n=int(known[:, m].sum()),
            paired=int((known[:, m] & known[:, best]).sum()),
            mean=float(np.average(table.quality[known[:, m], m], weights=table.weight[known[:, m], m])),
            quality=qualities[m],
            apgr=None if m == best else _apgr(table, chance, best, m),
        )
        for m, name in enumerate(table.models)
    )
    return curves, models, chance


def _placed(chance: Floats, table: Table, whole: Table) -> Floats:
    """Chances of a part of the rows and models of the whole table where they belong in it."""
    columns = np.array([whole.column(name) for name in table.models])
    rows = np.flatnonzero(np.isfinite(whole.quality[:, columns]).any(axis=1))
    found = np.full(whole.quality.shape, np.nan)
    found[np.ix_(rows, columns)] = chance
    return found


def _curve(scores: Floats, good: Floats, weights: Floats, workload: Ints) -> chances.Curve:
    found = chances.curve(scores, good, weights)
    chance = chances.chances(found, scores)
    half = chances.doubt(chance, good, weights, chances.slices_of(chance, workload))
    return msgspec.structs.replace(found, doubt=half)


def _apgr(table: Table, chance: Floats, best: int, m: int) -> float | None:
    rows = np.flatnonzero(np.isfinite(table.quality[:, [best, m]] + chance[:, [best, m]]).all(axis=1))
    if not rows.size:
        return None
    strong, weak = table.quality[rows, best], table.quality[rows, m]
    found = two_models(chance[rows, best] - chance[rows, m], strong, weak) if strong.mean() > weak.mean() else None
    return None if found is None else found.apgr


# ------------------------------------------------------------------------------------------------ what serves


def _packed(
    table: Table, named: Columns, weights: Weights, curves: Sequence[chances.Curve], best: int, stranger: float
) -> Trained:
    plain = standardised(table.inputs.dense, named.shift, named.scale).astype(np.float64)
    trained = Trained(
        id="",
        features_version=FEATURES_VERSION,
        reference=table.models[best],
        models=table.models,
        dense=DENSE,
        workloads=named.workloads,
        shift=_bytes(named.shift),
        scale=_bytes(named.scale),
        bias=_bytes(weights.bias),
        workload_weights=_bytes(weights.workloads),
        dense_weights=_bytes(weights.dense),
        grams=named.grams.astype("<u2").tobytes(),
        gram_weights=_bytes(weights.grams),
        slope=_bytes(np.array([each.slope for each in curves])),
        intercept=_bytes(np.array([each.intercept for each in curves])),
        doubt=_bytes(np.array([each.doubt for each in curves])),
        tokens=_logs(plain, table.output_tokens),
        latency=_logs(plain, table.latency_ms),
    )
    if named.workloads:
        told = np.concatenate([part for _, part in said(Heads(trained), table.inputs)])
        trained = msgspec.structs.replace(
            trained, usual=_bytes(told.mean(axis=0)), stranger=_bytes(np.array([stranger]))
        )
    return identified(trained)


def identified(trained: Trained) -> Trained:
    """With the id that its content has."""
    digest = hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(trained, id=""))).hexdigest()
    return msgspec.structs.replace(trained, id=digest[:16])


def _logs(plain: Floats, counts: Floats) -> bytes:
    """Weights of log(1 + count), [D + 1, M], the constant last: ridge regression, then the constant raised so that the
    expected count is the mean and not the median (Duan 1983). A model that nobody counted has zeros throughout; empty
    when there is none that somebody did."""
    found = np.zeros((plain.shape[1] + 1, counts.shape[1]))
    for m in range(counts.shape[1]):
        rows = np.flatnonzero(np.isfinite(counts[:, m]))
        if rows.size < ROWS:
            continue
        x, y = plain[rows], np.log1p(counts[rows, m])
        usual, centre = y.mean(), x.mean(axis=0)
        weights = np.linalg.solve(
            (x - centre).T @ (x - centre) + CENT * np.eye(x.shape[1]), (x - centre).T @ (y - usual)
        )
        gone = y - usual - (x - centre) @ weights
        raised = float(np.log(np.mean(np.exp(np.minimum(gone, 5.0)))))
        found[:-1, m], found[-1, m] = weights, usual - centre @ weights + raised
    return _bytes(found) if found.any() else b""


def _bytes(values: NDArray[np.floating]) -> bytes:
    return np.ascontiguousarray(values, dtype="<f4").tobytes()
