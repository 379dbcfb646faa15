"""The estimator that was trained on the owner's traffic, as it serves: a linear score per model, made a chance.

Pure, and numpy alone. `study/training/fit` makes one, and says there what each part is for. A score is

    bias[m] + workload[w, m] + Σ grams[g, m] / √(number of grams) + Σ dense[d, m] × (x[d] − shift[d]) / scale[d]

over the prompt's grams g and its other features d (`DENSE`), for the workload w when the training has seen it; no
feature counts for more than FARTHEST spreads, so that a prompt unlike all others is not extrapolated without end. The
chance of an adequate answer is 1 / (1 + exp(−slope[m] × score − intercept[m])), and its interval the same at ± doubt[m]
on the scale of the exponent.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from math import ceil, exp, expm1
from typing import get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from tierwise.core.grams import BUCKETS, numbers
from tierwise.core.request import FEATURES_VERSION, Features, Structure, Task

TASKS: tuple[str, ...] = get_args(Task)
STRUCTURES: tuple[str, ...] = get_args(Structure)
# What is read of the features besides the grams, in this order. Counts as log(1 + n); a name of a list as 0 or 1.
DENSE: tuple[str, ...] = (
    "input_tokens",
    "characters",
    "turns",
    "code",
    "math",
    "depth",
    "constraints",
    "ambiguity",
    "complexity",
    "wanted_tokens",
    "tools",
    "media",
    "foreign",
    *(f"task:{name}" for name in TASKS),
    *(f"structured:{name}" for name in STRUCTURES),
)
FARTHEST = 5.0
_HEADS_KEPT = 8
_ONES = np.ones(BUCKETS, dtype=np.float32)
Floats = NDArray[np.float32]


class Trained(msgspec.Struct, frozen=True, kw_only=True, tag="trained"):
    """Weights as little-endian bytes, so that a snapshot stays one document. M models, D dense features, W workloads, B
    grams that carry a weight. `problems` says why one cannot serve."""

    id: str  # of the artefact: the first 16 hexadecimal digits of its hash
    features_version: int
    reference: str  # the model that gains are measured against
    models: tuple[str, ...]
    dense: tuple[str, ...]
    workloads: tuple[str, ...]
    shift: bytes  # float32 [D]
    scale: bytes  # float32 [D], above zero
    bias: bytes  # float32 [M]
    workload_weights: bytes  # float32 [W, M]
    dense_weights: bytes  # float32 [D, M]
    grams: bytes  # uint16 [B], ascending
    gram_weights: bytes  # float32 [B, M]
    slope: bytes  # float32 [M], not below zero
    intercept: bytes  # float32 [M]
    doubt: bytes  # float32 [M], half the interval, not below zero
    # A column of zeros is a model whose tokens, or times, nobody counted.
    tokens: bytes  # float32 [D + 1, M]: log(1 + output tokens), its constant last; empty when nobody counted
    latency: bytes  # float32 [D + 1, M]: log(1 + ms), its constant last; empty when nobody measured
    # Of a workload that training has not seen: what its prompts say beyond the usual counts by the factor `stranger`
    # alone, because what tells easy from hard in one use often does not in another.
    usual: bytes = b""  # float32 [M]: the mean of what prompts said in training; empty: nothing is held back
    stranger: bytes = b""  # float32 [1], 0..1; empty: 1


class Score(msgspec.Struct, frozen=True, gc=False):
    """What training knows of one model and one request; chances with their interval."""

    low: float
    mid: float
    high: float
    output_tokens: int | None
    latency_ms: int | None


class Heads:
    """The arrays of a Trained, ready to serve. Raises ValueError when they cannot."""

    def __init__(self, trained: Trained) -> None:
        found = problems(trained)
        if found:
            raise ValueError(f"estimator {trained.id}: {found[0]}")
        models, dense = len(trained.models), len(trained.dense)
        self.column = {name: at for at, name in enumerate(trained.models)}
        self.workloads = {name: at for at, name in enumerate(trained.workloads)}
        self.shift, self.scale = _floats(trained.shift), _floats(trained.scale)
        self.bias = _floats(trained.bias)
        self.workload_weights = _floats(trained.workload_weights).reshape(-1, models)
        self.dense_weights = _floats(trained.dense_weights).reshape(dense, models)
        # A row of zeros in front stands for every gram that was never seen.
        self.gram_weights = np.concatenate(
            (np.zeros((1, models), np.float32), _floats(trained.gram_weights).reshape(-1, models))
        )
        kept = numbers(trained.grams)
        self.row = np.zeros(BUCKETS, dtype=np.int32)
        self.row[kept] = np.arange(1, kept.size + 1)
        self.slope, self.intercept, self.doubt = (
            _floats(each) for each in (trained.slope, trained.intercept, trained.doubt)
        )
        self.usual = _floats(trained.usual) if trained.usual else np.zeros(models, np.float32)
        # Where no workload was told apart in training, every request is one like those.
        self.stranger = float(_floats(trained.stranger)[0]) if trained.stranger and trained.workloads else 1.0
        self.tokens, self.latency = (_Logs.of(each, models) for each in (trained.tokens, trained.latency))
        self._doubts: list[float] = self.doubt.tolist()
        self._last: tuple[Features, str, dict[str, Score]] | None = None

    def scores(self, features: Features, workload: str) -> dict[str, Score]:
        """One for each model that was trained on; nobody may change it. The last answer is kept, because everything
        that is decided of one request asks for it: its plan, its baseline, and what comes after each event."""
        last = self._last
        if last is None or last[0] is not features or last[1] != workload:
            self._last = last = (features, workload, self._scores(features, workload))
        return last[2]

    def _scores(self, features: Features, workload: str) -> dict[str, Score]:
        plain = standardised(np.array(dense(features), dtype=np.float32), self.shift, self.scale)
        said = plain @ self.dense_weights
        kept = numbers(features.grams)
        if kept.size:
            # A product with ones is the sum of the rows, five times as fast as `sum` on so few.
            rows = self.gram_weights.take(self.row.take(kept), axis=0)
            said = said + _ONES[: kept.size] @ rows / math.sqrt(kept.size)
        at = self.workloads.get(workload)
        if at is not None:
            score = self.bias + said + self.workload_weights[at]
        else:
            score = self.bias + self.usual + self.stranger * (said - self.usual)
        exponent: list[float] = (self.slope * score + self.intercept).tolist()
        tokens, latency = self.tokens.counts(plain), self.latency.counts(plain)
        each = zip(self.column, exponent, self._doubts, tokens, latency, strict=True)
        return {
            name: Score(chance(at - doubt), chance(at), chance(at + doubt), length, time)
            for name, at, doubt, length, time in each
        }


class _Logs(msgspec.Struct, frozen=True):
    """Weights of log(1 + count), [D + 1, M], and which models have any."""

    slopes: Floats
    constant: Floats  # empty where nobody counted
    known: tuple[bool, ...]

    @staticmethod
    def of(data: bytes, models: int) -> _Logs:
        weights = _floats(data).reshape(-1, models)
        known = tuple(bool(column.any()) for column in weights.T)
        return _Logs(weights[:-1], weights[-1] if any(known) else _floats(b""), known)

    def counts(self, plain: Floats) -> list[int | None]:
        """At least 1, up to nine million (e^16)."""
        if not self.constant.size:
            return [None] * len(self.known)
        found: list[float] = (plain @ self.slopes + self.constant).tolist()
        return [
            (1 if each <= 0.0 else ceil(expm1(each if each < 16.0 else 16.0))) if known else None
            for each, known in zip(found, self.known, strict=True)
        ]


_heads: OrderedDict[str, Heads] = OrderedDict()  # by artefact: reading the arrays costs more than a decision


def heads(trained: Trained) -> Heads:
    """The same for the same artefact. Raises ValueError when its arrays cannot serve."""
    found = _heads.get(trained.id)
    if found is None:
        found = _heads[trained.id] = Heads(trained)
        while len(_heads) > _HEADS_KEPT:
            _heads.popitem(last=False)
    return found


def dense(features: Features) -> list[float]:
    """The features of DENSE, before they are centred and scaled."""
    return [
        math.log1p(features.input_tokens),
        math.log1p(features.characters),
        math.log1p(features.turns),
        features.code,
        features.math,
        features.depth,
        math.log1p(features.constraints),
        features.ambiguity,
        features.complexity,
        math.log1p(features.wanted_tokens),
        math.log1p(features.tools),
        math.log1p(features.images + features.audio + features.documents),
        float(bool(features.languages) and features.languages[0] != "en"),
        *[float(features.task == name) for name in TASKS],
        *[float(features.structured == name) for name in STRUCTURES],
    ]


def standardised(plain: Floats, shift: Floats, scale: Floats) -> Floats:
    """Features [..., D] as the weights take them."""
    # On one row twice as fast as np.clip.
    found: Floats = np.minimum(np.maximum((plain - shift) / scale, -FARTHEST), FARTHEST)
    return found


def chance(exponent: float) -> float:
    """The logistic function, for any number."""
    if exponent < -700.0:  # exp() would overflow
        return 0.0
    return 1.0 / (1.0 + exp(-exponent))


def problems(trained: Trained) -> list[str]:
    """Every reason why this cannot serve in this build, each a sentence; empty when it can."""
    found = []
    if trained.features_version != FEATURES_VERSION:
        found.append(
            f"it was trained on features of version {trained.features_version}, and this build reads version "
            f"{FEATURES_VERSION}; fit it again"
        )
    if trained.dense != DENSE:
        found.append("it was trained on other features than this build reads; fit it again")
    if not trained.models or len(set(trained.models)) != len(trained.models):
        found.append("its models are none, or one is named twice")
    elif trained.reference not in trained.models:
        found.append(f"its reference {trained.reference!r} is not among its models")
    if len(set(trained.workloads)) != len(trained.workloads):
        found.append("a workload is named twice")
    models, width, workloads = len(trained.models), len(DENSE), len(trained.workloads)
    kept = numbers(trained.grams) if len(trained.grams) % 2 == 0 else np.zeros(2, np.uint16)
    if kept.size > 1 and not (np.diff(kept.astype(np.int64)) > 0).all():
        found.append("its grams are not ascending")
    sizes = {
        "shift": width,
        "scale": width,
        "bias": models,
        "workload_weights": workloads * models,
        "dense_weights": width * models,
        "gram_weights": kept.size * models,
        "slope": models,
        "intercept": models,
        "doubt": models,
        "tokens": (width + 1) * models if trained.tokens else 0,
        "latency": (width + 1) * models if trained.latency else 0,
        "usual": models if trained.usual else 0,
        "stranger": 1 if trained.stranger else 0,
    }
    for name, size in sizes.items():
        data: bytes = getattr(trained, name)
        if len(data) != 4 * size:
            found.append(f"{name} has {len(data)} bytes and should have {4 * size}")
            continue
        values = _floats(data)
        if not np.isfinite(values).all() or (size and float(np.abs(values).max()) > 1e6):
            found.append(f"{name} has a number that is none, or is beyond a million")
        elif (name in ("slope", "doubt") and (values < 0).any()) or (name == "scale" and (values <= 0).any()):
            found.append(f"{name} has a number below its least")
        elif name == "stranger" and ((values < 0) | (values > 1)).any():
            found.append("stranger is a share, and not between 0 and 1")
    return found


def _floats(data: bytes) -> Floats:
    return np.frombuffer(data, dtype="<f4")
