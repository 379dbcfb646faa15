"""Whose labels do not fit what all others say? For feedback that lies, which a bound on each key's weight only slows.

An estimator was fitted on all labels. What a key said is held against what it expects of those very replies, the hard
ones expected to be bad: so a key with hard requests is no liar. The mean difference of a key, model by model, is tested
against the dice of its labels and how far honest keys lie apart (one clicks more kindly than another), two-sided. Of
all keys and models none is suspected by chance, but for a stated share of the fits (Bonferroni). Who is suspected is
named, to be left out and looked at; nobody's feedback is deleted.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import msgspec
import numpy as np

from tierwise.study.table import Floats, Ints, Table

RATE = 0.01  # of fits that suspect an honest key
LEAST_ROWS = 15  # labels of a key on a model, before anything is said
KINDNESS = 0.05  # how far honest keys lie apart at least, as a spread: an assumption, for a few keys cannot tell
DIFFERENCE = 0.1  # below it, a difference harms less than the labels help


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
        # The usual key and the spread of keys, by medians, which a few liars do not move; what is left after the dice.
        usual = float(np.median(gone))
        spread = (1.4826 * float(np.median(np.abs(gone - usual)))) ** 2
        apart = max(KINDNESS**2, spread - float(np.median(dice)))
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


def without(table: Table, labels: Labels, keys: Collection[str]) -> Table:
    """The table as it would be, had these keys said nothing: a reply of which one of them said something has the mean
    of what the others said, by weight, and their weight together, at most 1 (`labels.combined`); none is left where
    nobody else did. The hash stays that of the data."""
    gone = np.isin(labels.key, [k for k, name in enumerate(labels.keys) if name and name in keys])
    shape = table.quality.shape
    touched = np.zeros(shape, dtype=bool)
    touched[labels.row[gone], labels.column[gone]] = True
    weight, total = np.zeros(shape), np.zeros(shape)
    at = (labels.row[~gone], labels.column[~gone])
    np.add.at(weight, at, labels.weight[~gone])
    np.add.at(total, at, labels.weight[~gone] * labels.score[~gone])
    rest = np.divide(total, weight, out=np.full(shape, np.nan), where=weight > 0)
    return msgspec.structs.replace(
        table,
        quality=np.where(touched, rest, table.quality),
        weight=np.where(touched, np.where(weight > 0, np.minimum(weight, 1.0), np.nan), table.weight),
    )
