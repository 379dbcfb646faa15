"""Does one key's traffic go to dear models more than it used to, and more than everybody else's? For who tries prefixes
until the estimator takes every request for a hard one, and for what merely changed and should be known.

Of a key with a past, the share that dear models answer is held against that of its past moved by what moved for all
others: a new snapshot, a fit or a rise in the price of money moves everybody. Of a key without one it is held against
the shares of the other keys and how far these lie apart. The test is of a normal difference, one-sided; of all keys in
one look none is called skewed by chance, but for a stated share of the looks (Bonferroni).

Nothing is refused on this ground. What a key can spend is bounded by its budgets, whose price of money leans it back to
cheaper models before they are spent; this says whose requests to read.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping

import msgspec

RATE = 0.01  # of looks that find a skewed key where there is none
LEAST_ROWS = 30  # requests of a key, before anything is said of it
LEAST_KEYS = 5  # others, before a key without a past is held against them
POINTS = 0.05  # a rise below this is not worth a look, however sure


class Share(msgspec.Struct, frozen=True):
    """Of one key in some time: its requests, and how many of them a dear model answered."""

    n: int
    dear: int

    @property
    def mean(self) -> float:
        """With half a request more on either side, so that few are never certain (Agresti and Coull 1998)."""
        return (self.dear + 0.5) / (self.n + 1)

    @property
    def variance(self) -> float:
        return self.mean * (1 - self.mean) / (self.n + 1)


class Skew(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    n: int
    share: float  # that dear models answered
    expected: float  # as its past or the other keys say
    chance: float  # of a share as high as this when nothing is the matter
    skewed: bool


def shares(answered: Iterable[tuple[str, bool]]) -> dict[str, Share]:
    """By key, from (key, whether a dear model answered)."""
    counts: dict[str, list[int]] = {}
    for key, dear in answered:
        count = counts.setdefault(key, [0, 0])
        count[0] += 1
        count[1] += dear
    return {key: Share(n, dear) for key, (n, dear) in counts.items()}


def skew(before: Mapping[str, Share], now: Mapping[str, Share], *, rate: float = RATE) -> tuple[Skew, ...]:
    """Every key that something can be said of, the surest first. Raises ValueError for a rate outside 0..1."""
    if not 0.0 < rate < 1.0:
        raise ValueError(f"the rate of false alarms is {rate}; it must lie between 0 and 1")
    found = []
    for key, share in now.items():
        expected = _expected(key, before, now) if share.n >= LEAST_ROWS else None
        if expected is not None:
            mean, variance = expected
            chance = 0.5 * math.erfc((share.mean - mean) / math.sqrt(2 * (variance + share.variance)))
            found.append((key, share, mean, chance))
    told = [
        Skew(
            key=key,
            n=share.n,
            share=share.dear / share.n,
            expected=mean,
            chance=chance,
            skewed=chance * len(found) <= rate and share.dear / share.n - mean >= POINTS,
        )
        for key, share, mean, chance in found
    ]
    return tuple(sorted(told, key=lambda each: (each.chance, each.key)))


def _expected(key: str, before: Mapping[str, Share], now: Mapping[str, Share]) -> tuple[float, float] | None:
    """(the share that this key should have, its variance); None when nobody can say."""
    past = before.get(key)
    others = [each for each in now if each != key and now[each].n >= LEAST_ROWS]
    if past is not None and past.n >= LEAST_ROWS:
        moved = [
            now[each].mean - before[each].mean for each in others if each in before and before[each].n >= LEAST_ROWS
        ]
        shift = statistics.median(moved) if len(moved) >= LEAST_KEYS else 0.0
        spread = statistics.variance(moved) / len(moved) if len(moved) >= LEAST_KEYS else 0.0
        return min(max(past.mean + shift, 0.0), 1.0), past.variance + spread
    if len(others) < LEAST_KEYS:
        return None
    means = [now[each].mean for each in others]
    return statistics.fmean(means), statistics.variance(means) * (1 + 1 / len(means))
