"""What another policy would have been worth, from logs that hold only what was chosen: IPS, SNIPS and doubly robust.

It can be said only as far as chance had a say: where the log's policy never tried what the other would choose, no
arithmetic brings the outcome back. Then the answer is "cannot say", with a sentence.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NORMAL_95 = 1.959964
LEAST_EFFECTIVE = 50.0  # below it the normal interval of a weighted mean is no interval
MOST_UNSUPPORTED = 0.01  # of the target's choices: what lies beyond could shift a mean of 0..1 by a point


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """What was logged of N requests over M models."""

    chosen: Ints  # [N] column of the model that served
    odds: Floats  # [N, M] the chance of each model as it was logged; 0 or NaN where it had none
    outcome: Floats  # [N] of what was chosen: its quality, or its cost

    @property
    def propensity(self) -> Floats:
        """[N] the chance with which the chosen model was chosen."""
        return np.nan_to_num(self.odds[np.arange(self.chosen.size), self.chosen])


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate of a policy's mean outcome a request. `why` says why it cannot be relied on; "" when it can."""

    method: str
    mean: float
    error: float
    low: float
    high: float
    n: int
    effective: float  # sample size: (Σ w)² / Σ w² (Kish 1965)
    unsupported: float  # share of the target's choices that the log's policy never made
    why: str = ""


def ips(log: Log, target: Floats) -> Value:
    """Inverse propensity scoring (Horvitz and Thompson 1952). `target` [N, M]: the other policy's chance of each
    model. Unbiased where every choice of the target has odds; wide where these are small."""
    weights, why = _weights(log, target)
    return _valued("ips", weights * log.outcome, weights, log, target, why)


def snips(log: Log, target: Floats) -> Value:
    """The same, divided by the sum of its weights (Swaminathan and Joachims 2015): a little biased, much less wide. Its
    standard error is by the delta method."""
    weights, why = _weights(log, target)
    total = weights.sum()
    if total <= 0:
        return _valued("snips", np.zeros(weights.size), weights, log, target, why)
    mean = float((weights * log.outcome).sum() / total)
    # Each request's influence on the ratio, around it: their mean is the estimate.
    return _valued("snips", mean + weights * (log.outcome - mean) * weights.size / total, weights, log, target, why)


def doubly_robust(log: Log, target: Floats, expected: Floats) -> Value:
    """An outcome model, mended by what was seen (Dudík, Langford and Li 2011): right where either the odds or the model
    are. `expected` [N, M]: the outcome as the model expects it, fitted on other requests than these."""
    weights, why = _weights(log, target)
    rows = np.arange(log.chosen.size)
    plain = (target * expected).sum(axis=1)
    residual = log.outcome - expected[rows, log.chosen]
    return _valued("doubly_robust", plain + weights * residual, weights, log, target, why)


def all_three(log: Log, target: Floats, expected: Floats | None) -> tuple[Value, ...]:
    """Every estimate that can be made; without an outcome model there is none that is doubly robust."""
    found = (ips(log, target), snips(log, target))
    return found if expected is None else (*found, doubly_robust(log, target, expected))


def _weights(log: Log, target: Floats) -> tuple[Floats, str]:
    """The weight of each request, and why these carry nothing; "" when they do. Raises ValueError for odds of a choice
    that was made and could not have been."""
    n = log.chosen.size
    if not n:
        raise ValueError("there is no logged request with odds; a plan of the kind `explore` logs them")
    known = log.propensity
    if (known <= 0).any() or (known > 1 + 1e-9).any():
        raise ValueError(f"row {int(np.argmax((known <= 0) | (known > 1 + 1e-9)))}: odds must be above 0 and at most 1")
    weights = target[np.arange(n), log.chosen] / known
    unsupported = _unsupported(log, target)
    effective = _effective(weights)
    if unsupported > MOST_UNSUPPORTED:
        return weights, (
            f"cannot say: {unsupported:.1%} of what the policy would choose was never tried when the log was made; "
            "let `explore` include those models"
        )
    if effective < LEAST_EFFECTIVE:
        return weights, (
            f"cannot say: the log is worth {effective:.0f} requests of this policy, and {LEAST_EFFECTIVE:.0f} are the "
            "least; wait for more, or explore at a higher rate"
        )
    return weights, ""


def _unsupported(log: Log, target: Floats) -> float:
    """Share of the target's choices that had no odds."""
    return float((target * (np.nan_to_num(log.odds) <= 0)).sum() / max(1, log.chosen.size))


def _effective(weights: Floats) -> float:
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def _valued(method: str, parts: Floats, weights: Floats, log: Log, target: Floats, why: str) -> Value:
    mean = float(parts.mean())
    error = float(parts.std(ddof=1) / np.sqrt(parts.size)) if parts.size > 1 else float("inf")
    return Value(
        method=method,
        mean=mean,
        error=error,
        low=mean - NORMAL_95 * error,
        high=mean + NORMAL_95 * error,
        n=parts.size,
        effective=_effective(weights),
        unsupported=_unsupported(log, target),
        why=why,
    )
