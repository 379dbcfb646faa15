"""Whose labels do not fit what all others say? For feedback that lies, which a bound on each key's weight only slows.

An estimator was fitted on all labels. What a key said is held against what it expects of those very replies, the hard
ones expected to be bad: so a key with hard requests is no liar. The mean difference of a key, model by model, is tested
against the dice of its labels and how far honest keys lie apart (one clicks more kindly than another), two-sided. Of
all keys and models none is suspected by chance, but for a stated share of the fits (Bonferroni). Who is suspected is
named, to be left out and looked at; nobody's feedback is deleted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from tierwise.study.table import Floats, Table

RATE = 0.01  # of fits that suspect an honest key
LEAST_ROWS = 15  # labels of a key on a model, before anything is said
KINDNESS = 0.05  # how far honest keys lie apart at least, as a spread: an assumption, for a few keys cannot tell
DIFFERENCE = 0.1  # below it, a difference harms less than the labels help


class Suspect(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    model: str
    n: int  # labels
    said: float  # mean
    expected: float
    chance: float  # of a difference as large, were the key as honest as others


def suspects(table: Table, keys: Sequence[str], expected: Floats, *, rate: float = RATE) -> tuple[Suspect, ...]:
    """The keys whose labels do not fit, the surest first; a key once for each model. `keys` [N]: whose labels a row
    has, "" for nobody's. `expected` [N, M]: as `fit.predict` gives it for this table."""
    names, owner = np.unique(np.array(keys, dtype=object).astype(str), return_inverse=True)
    found = []
    for m, model in enumerate(table.models):
        known = np.isfinite(table.quality[:, m])
        rows = [np.flatnonzero(known & (owner == k)) if names[k] else np.zeros(0, np.int64) for k in range(names.size)]
        told = [k for k in range(names.size) if rows[k].size >= LEAST_ROWS]
        if len(told) < 3:
            continue  # of two that differ, nobody can say who lies
        gone = np.array([(table.quality[rows[k], m] - expected[rows[k], m]).mean() for k in told])
        dice = np.array([(expected[rows[k], m] * (1 - expected[rows[k], m])).sum() / rows[k].size ** 2 for k in told])
        # The usual key and the spread of keys, by medians, which a few liars do not move; what is left after the dice.
        usual = float(np.median(gone))
        spread = (1.4826 * float(np.median(np.abs(gone - usual)))) ** 2
        apart = max(KINDNESS**2, spread - float(np.median(dice)))
        for k, difference, variance in zip(told, gone - usual, dice, strict=True):
            chance = math.erfc(abs(difference) / math.sqrt(2 * (variance + apart) + 1e-12))
            mean = float(table.quality[rows[k], m].mean())
            found.append(
                Suspect(
                    key=str(names[k]),
                    model=model,
                    n=rows[k].size,
                    said=mean,
                    expected=mean - float(difference),
                    chance=chance,
                )
            )
    least = [
        each for each in found if abs(each.said - each.expected) >= DIFFERENCE and each.chance * len(found) <= rate
    ]
    return tuple(sorted(least, key=lambda each: (each.chance, each.key)))
