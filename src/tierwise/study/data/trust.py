"""Whose labels do not fit what all others say? For feedback that lies, which a bound on each key's weight only slows.

An estimator was fitted on all labels. What a key said is held against what it expects of those very replies, the hard
ones expected to be bad: so a key with hard requests is no liar. The mean difference of a key, model by model, is tested
against the dice of its labels and how far honest keys lie apart (one clicks more kindly than another), two-sided.

- `suspects`: of all keys and models none is suspected by chance, but for a stated share of the fits (Bonferroni). Who
  is suspected is named, to be left out and looked at; nobody's feedback is deleted.
- `trusts`: between sure and unsure there is no line, and who lies seldom stays below any. So a key is believed the less
  the further it lies from the others: by (c / z)² beyond c, which bounds what a key can move at all (a redescending
  weight as of M-estimators, after Holland and Welsch 1977). Looked at is each model, and each model against the
  reference: how kindly a key clicks cancels there, and it is what moves requests from one to another.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from statistics import NormalDist

import msgspec
import numpy as np

from tierwise.study.table import Floats, Ints, Table

RATE = 0.01  # of fits that suspect an honest key
LEAST_ROWS = 15  # labels of a key on a model, before anything is said
KINDNESS = 0.05  # how far honest keys lie apart at least, as a spread: an assumption, for a few keys cannot tell
DIFFERENCE = 0.1  # below it, a difference harms less than the labels help
FEW = 8  # labels of a key on a model, before it is believed less for them
TASTE = 0.02  # how far honest keys lie apart at least in how much better they find one model than another
DOUBTED = 0.4  # of honest keys, believed less than wholly; most of them hardly less


class Labels(msgspec.Struct, frozen=True, kw_only=True):
    """What was said of the replies of a table, L labels: all that one key said of one reply is one label, and so is all
    that came with no key."""

    keys: tuple[str, ...]  # the names; "" for labels that came with none
    row: Ints  # [L] of the table
    column: Ints  # [L] of the table: the model
    key: Ints  # [L] into `keys`
    score: Floats  # [L] 0..1
    weight: Floats  # [L] above 0

    @property
    def keyed(self) -> bool:
        return any(self.keys)


class Suspect(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    model: str
    n: int  # labels
    said: float  # mean
    expected: float
    chance: float  # of a difference as large, were the key as honest as others


def suspects(table: Table, labels: Labels, expected: Floats, *, rate: float = RATE) -> tuple[Suspect, ...]:
    """The keys whose labels do not fit, the surest first; a key once for each model. `labels`: of this table.
    `expected` [N, M]: chances of an adequate answer, best of an estimator that has not seen the row; NaN where there is
    none, and then nothing is said of the label."""
    wanted = expected[labels.row, labels.column]
    known = np.isfinite(wanted) & np.array([bool(each) for each in labels.keys], dtype=bool)[labels.key]
    found = []
    for m, model in enumerate(table.models):
        mine = np.flatnonzero(known & (labels.column == m))
        of_key = [mine[labels.key[mine] == k] for k in range(len(labels.keys))]
        told = [k for k, at in enumerate(of_key) if at.size >= LEAST_ROWS]
        if len(told) < 3:
            continue  # of two that differ, nobody can say who lies
        gone = np.array([(labels.score[of_key[k]] - wanted[of_key[k]]).mean() for k in told])
        dice = np.array([(wanted[of_key[k]] * (1 - wanted[of_key[k]])).sum() / of_key[k].size ** 2 for k in told])
        usual, apart = _usual(gone, dice, KINDNESS)
        for k, difference, variance in zip(told, gone - usual, dice, strict=True):
            mean = float(labels.score[of_key[k]].mean())
            found.append(
                Suspect(
                    key=labels.keys[k],
                    model=model,
                    n=of_key[k].size,
                    said=mean,
                    expected=mean - float(difference),
                    chance=math.erfc(abs(difference) / math.sqrt(2 * (variance + apart) + 1e-12)),
                )
            )
    least = [
        each for each in found if abs(each.said - each.expected) >= DIFFERENCE and each.chance * len(found) <= rate
    ]
    return tuple(sorted(least, key=lambda each: (each.chance, each.key)))


def trusts(table: Table, labels: Labels, expected: Floats, reference: int) -> Floats:
    """[keys] 0..1: by how much each key is believed, 1 where nothing speaks against it. `reference`: the column of the
    model that the others are compared with; `expected` as for `suspects`."""
    size = (len(labels.keys), len(table.models))
    wanted = expected[labels.row, labels.column]
    known = np.isfinite(wanted) & np.array([bool(each) for each in labels.keys], dtype=bool)[labels.key]
    at, wanted = (labels.key[known], labels.column[known]), wanted[known]
    n, gone, dice = np.zeros(size), np.zeros(size), np.zeros(size)
    np.add.at(n, at, 1.0)
    np.add.at(gone, at, labels.score[known] - wanted)
    np.add.at(dice, at, wanted * (1.0 - wanted))
    enough = n >= FEW
    gone = np.divide(gone, n, out=np.full(size, np.nan), where=enough)
    dice = np.divide(dice, n**2, out=np.full(size, np.nan), where=enough)
    found = [each for each in _distances(gone, dice, reference) if each.any()]
    if not found:
        return np.ones(size[0])
    usual = NormalDist().inv_cdf(1.0 - DOUBTED / 2 / len(found))
    furthest = np.abs(found).max(axis=0)
    believed: Floats = (usual / np.maximum(furthest, usual)) ** 2
    return believed


def _distances(gone: Floats, dice: Floats, reference: int) -> Iterator[Floats]:
    """How far each key lies from the usual one, in standard deviations; 0 where nothing is known."""
    for m in range(gone.shape[1]):
        yield _distance(gone[:, m], dice[:, m], KINDNESS)
        if m != reference:
            yield _distance(gone[:, m] - gone[:, reference], dice[:, m] + dice[:, reference], TASTE)


def _distance(gone: Floats, dice: Floats, least: float) -> Floats:
    known = np.isfinite(gone)
    found = np.zeros(gone.size)
    if known.sum() >= 3:
        usual, apart = _usual(gone[known], dice[known], least)
        found[known] = (gone[known] - usual) / np.sqrt(dice[known] + apart)
    return found


def _usual(gone: Floats, dice: Floats, least: float) -> tuple[float, float]:
    """The usual key and the variance of keys, by medians, which a few liars do not move; what is left after the dice,
    and `least`² at least."""
    usual = float(np.median(gone))
    spread = (1.4826 * float(np.median(np.abs(gone - usual)))) ** 2
    return usual, max(least**2, spread - float(np.median(dice)))


def without(table: Table, labels: Labels, keys: Collection[str]) -> Table:
    """The table as it would be, had these keys said nothing."""
    return reweighed(table, labels, np.array([float(not name or name not in keys) for name in labels.keys]))


def reweighed(table: Table, labels: Labels, factors: Floats) -> Table:
    """The table as it would be, did the labels of each key weigh so many times [keys] what they do: a reply of which a
    key with another factor than 1 said something has the mean of what all said, by weight, and their weight together,
    at most 1 (`labels.combined`); none is left where nobody has a weight. The hash stays that of the data."""
    factor = factors[labels.key]
    gone = factor == 0.0
    shape = table.quality.shape
    touched = np.zeros(shape, dtype=bool)
    touched[labels.row[factor != 1.0], labels.column[factor != 1.0]] = True
    weight, total = np.zeros(shape), np.zeros(shape)
    at, weights = (labels.row[~gone], labels.column[~gone]), (labels.weight * factor)[~gone]
    np.add.at(weight, at, weights)
    np.add.at(total, at, weights * labels.score[~gone])
    rest = np.divide(total, weight, out=np.full(shape, np.nan), where=weight > 0)
    return msgspec.structs.replace(
        table,
        quality=np.where(touched, rest, table.quality),
        weight=np.where(touched, np.where(weight > 0, np.minimum(weight, 1.0), np.nan), table.weight),
    )
