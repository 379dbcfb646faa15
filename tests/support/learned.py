"""Estimators whose scores are written by hand: a constant a model, and how it falls with the request's complexity."""

from __future__ import annotations

import hashlib

import numpy as np

from tierwise.core.learned import DENSE, Trained
from tierwise.core.request import FEATURES_VERSION


def trained(scores: dict[str, tuple[float, float]], *, reference: str = "") -> Trained:
    """model → (score, what full complexity takes from it); the chance is the logistic function of it."""
    models = tuple(scores)
    count, width = len(models), len(DENSE)
    dense = np.zeros((width, count), "<f4")
    dense[DENSE.index("complexity")] = [-slope for _, slope in scores.values()]
    zeros = np.zeros(count, "<f4").tobytes()
    return Trained(
        id=hashlib.sha256(repr(scores).encode()).hexdigest()[:16],  # what serves is remembered by it
        features_version=FEATURES_VERSION,
        reference=reference or models[0],
        models=models,
        dense=DENSE,
        workloads=(),
        shift=np.zeros(width, "<f4").tobytes(),
        scale=np.ones(width, "<f4").tobytes(),
        bias=np.array([score for score, _ in scores.values()], "<f4").tobytes(),
        workload_weights=b"",
        dense_weights=dense.tobytes(),
        grams=b"",
        gram_weights=b"",
        slope=np.ones(count, "<f4").tobytes(),
        intercept=zeros,
        doubt=zeros,
        tokens=b"",
        latency=b"",
    )
