"""A trained estimator with weights from a seed, and tables of outcomes whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tierwise.core.features import extract
from tierwise.core.learned import DENSE, Trained
from tierwise.core.request import FEATURES_VERSION, Features, Prompt, Turn
from tierwise.study.table import Floats, Table, group_of, inputs_of


def made(
    models: tuple[str, ...] = ("acme/big", "acme/mid"),
    workloads: tuple[str, ...] = ("w",),
    grams: int = 500,
    seed: int = 0,
) -> Trained:
    """Sound, and good for nothing."""
    generator = np.random.default_rng(seed)

    def some(*shape: int) -> bytes:
        return generator.normal(0, 0.3, shape).astype("<f4").tobytes()

    wide, many = len(DENSE), len(models)
    known = np.sort(generator.choice(1 << 16, grams, replace=False)) if grams < 4_000 else np.arange(0, 1 << 16, 2)
    return Trained(
        id=f"{seed:04x}{many:04x}{len(workloads):04x}{grams:04x}",
        features_version=FEATURES_VERSION,
        reference=models[0],
        models=models,
        dense=DENSE,
        workloads=workloads,
        shift=some(wide),
        scale=np.full(wide, 0.5, dtype="<f4").tobytes(),
        bias=some(many),
        workload_weights=some(len(workloads), many),
        dense_weights=some(wide, many),
        grams=known.astype("<u2").tobytes(),
        gram_weights=some(known.size, many),
        slope=np.abs(generator.normal(4, 1, many)).astype("<f4").tobytes(),
        intercept=some(many),
        doubt=np.full(many, 0.4, dtype="<f4").tobytes(),
        tokens=some(wide + 1, many),
        latency=b"",
    )


EASY = ("please", "name", "colour", "small", "friendly", "animal", "thanks", "word")
HARD = ("derive", "rigorously", "asymptotic", "spectrum", "perturbed", "operator", "assuming", "compactness")
PLAIN = ("and", "the", "of", "a", "to", "in", "it", "is", "for", "on", "with", "as", "at", "by", "from", "or")


def features_of(text: str) -> Features:
    return extract(Prompt(turns=(Turn("user", text),), size_bytes=len(text.encode()) + 60), with_grams=True)


def texts(n: int, generator: np.random.Generator) -> tuple[list[str], Floats]:
    """Prompts and how hard they are, 0..1: the share of their words that is hard."""
    found, hard = [], generator.beta(0.7, 0.7, n)
    for share in hard:
        kinds = generator.random(14)
        words = [
            str(generator.choice(PLAIN if kind > 0.75 else HARD if generator.random() < share else EASY))
            for kind in kinds
        ]
        found.append(" ".join(words))
    return found, hard


def world_of(n: int, models: Sequence[str] = ("big", "mid", "tiny"), seed: int = 0) -> tuple[Table, Floats]:
    """A table of n prompts and its truth, [n, M]: the chance that each model's reply is good. The first model is best;
    each one after it loses more on what is hard. Two workloads, the second one harder for all but the first."""
    generator = np.random.default_rng(seed)
    said, hard = texts(n, generator)
    workloads = generator.choice(["chat", "proofs"], n)
    steps = np.arange(len(models))
    exponent = 2.6 - steps * (0.2 + 2.6 * hard[:, None]) - 0.6 * (steps > 0) * (workloads == "proofs")[:, None]
    truth = 1.0 / (1.0 + np.exp(-exponent))
    quality = (generator.random(truth.shape) < truth) * 1.0
    unknown = np.full(truth.shape, np.nan)
    tokens = np.exp(3.0 + 2.0 * hard[:, None] + 0.5 * steps + generator.normal(0, 0.8, truth.shape))
    return Table(
        ids=tuple(f"p{i}" for i in range(n)),
        models=tuple(models),
        workloads=tuple(str(each) for each in workloads),
        inputs=inputs_of([features_of(text) for text in said]),
        groups=np.array([group_of(text) for text in said]),
        quality=quality,
        weight=np.ones(truth.shape),
        cost_usd=unknown,
        output_tokens=tokens,
        latency_ms=unknown,
        answers=np.full(truth.shape, -1),
        odds=unknown,
        at_s=np.zeros(n, dtype=np.int64),
        texts=tuple(said),
        hash=f"{seed:016x}",
    ), truth
