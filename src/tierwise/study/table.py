"""Outcomes in memory: prompts by models, what each reply was worth, cost and took. What every study reads.

A row is a prompt (a request), a column a model. Nothing says that a model has answered every prompt: a missing outcome
is NaN, in every array alike. Features come from the text where there is one, else from the journal, which keeps none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from tierwise.core.grams import numbers
from tierwise.core.learned import DENSE, dense
from tierwise.core.request import Features

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Inputs(msgspec.Struct, frozen=True):
    """What an estimator reads of N prompts: `dense` float32 [N, D] as `core/learned.dense` gives it, and the grams of
    prompt i in `grams[starts[i]:starts[i + 1]]`, uint16."""

    dense: NDArray[np.float32]
    grams: NDArray[np.uint16]
    starts: Ints

    def take(self, rows: Ints) -> Inputs:
        """Of these prompts only, in this order."""
        sizes = self.starts[rows + 1] - self.starts[rows]
        starts = np.concatenate(([0], np.cumsum(sizes)))
        at = np.repeat(self.starts[rows] - starts[:-1], sizes) + np.arange(starts[-1])
        return Inputs(self.dense[rows], self.grams[at], starts)


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """N prompts and M models. Every array of outcomes is [N, M] with NaN where nothing is known."""

    ids: tuple[str, ...]
    models: tuple[str, ...]
    workloads: tuple[str, ...]  # one a prompt; "" when it has none
    inputs: Inputs
    groups: Ints  # [N] prompts with the same number say the same: they are never split between training and test
    quality: Floats  # 0..1
    weight: Floats  # of each quality as a label, above 0
    cost_usd: Floats
    output_tokens: Floats
    latency_ms: Floats
    answers: Ints  # [N, M] replies of one prompt with the same number say the same; -1: unknown
    odds: Floats  # [N, M] the chance with which this model was asked, where chance had a say
    at_s: Ints  # [N] when, seconds since 1970; 0 when unknown
    texts: tuple[str | None, ...]  # of the prompts, where they were kept
    hash: str  # of the data, as a promise names it: 16 hexadecimal digits

    def take(self, rows: Ints | Sequence[int]) -> Table:
        """These prompts only, in this order."""
        at = np.asarray(rows, dtype=np.int64)
        return msgspec.structs.replace(
            self,
            ids=tuple(self.ids[i] for i in at),
            workloads=tuple(self.workloads[i] for i in at),
            texts=tuple(self.texts[i] for i in at),
            inputs=self.inputs.take(at),
            **{name: getattr(self, name)[at] for name in (*_CELLS, "groups", "at_s")},
        )

    def only(self, models: Sequence[str]) -> Table:
        """These models only, in this order. Raises ValueError for one that is not there."""
        columns = [self.models.index(name) for name in models]
        return msgspec.structs.replace(
            self, models=tuple(models), **{name: getattr(self, name)[:, columns] for name in _CELLS}
        )

    def column(self, model: str) -> int:
        return self.models.index(model)


_CELLS = ("quality", "weight", "cost_usd", "output_tokens", "latency_ms", "answers", "odds")


def inputs_of(features: Sequence[Features]) -> Inputs:
    """The inputs of these prompts. Features without grams have none."""
    kept = [numbers(each.grams) for each in features]
    starts = np.concatenate(([0], np.cumsum([each.size for each in kept]))).astype(np.int64)
    plain = np.array([dense(each) for each in features], dtype=np.float32).reshape(len(features), len(DENSE))
    return Inputs(plain, np.concatenate([np.zeros(0, np.uint16), *kept]), starts)


def split(groups: Ints, share: float, seed: int) -> tuple[Ints, Ints]:
    """Rows in two parts, the first with about this share of them, whole groups on one side: (first, second), each in
    random order."""
    generator = np.random.default_rng(seed)
    names, at = np.unique(groups, return_inverse=True)
    order = generator.permutation(names.size)
    first = np.zeros(names.size, dtype=bool)
    sizes = np.bincount(at, minlength=names.size)[order]
    first[order[np.cumsum(sizes) - sizes / 2 <= share * groups.size]] = True
    rows = generator.permutation(groups.size)
    return rows[first[at[rows]]], rows[~first[at[rows]]]


def group_of(text: str) -> int:
    """The same for texts that differ in case and white space only."""
    return int.from_bytes(
        hashlib.blake2b(" ".join(text.casefold().split()).encode("utf-8", "replace"), digest_size=8).digest(),
        "little",
        signed=True,
    )
