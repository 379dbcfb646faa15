"""From our own count of a text's tokens to the count of a tokenizer that is not ours, by how the text is spelled.

Tokenizers differ by script, by language and by kind of text: of English they make nearly the same, of Hindi one makes
four times as many as another. So what a text is spelled with (each letter, accents by block, scripts, digits, marks,
runs) says what to expect of the ratio, and a kernel ridge regression learns how from replies whose provider told.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

Vector = np.ndarray[Any, np.dtype[np.float64]]

LEAST, MOST = 0.25, 8.0  # tokens of any tokenizer for one of ours, over a text
# The kernel: 1 + _LINEAR·(z·z') + _NEAR·exp(−_WIDTH·(1 − cosine of the shares)), and the noise of one report of fifty
# tokens. Chosen on public texts in 29 languages and kinds, learned from half of their sources and tried on the others.
_LINEAR, _NEAR, _WIDTH, _NOISE, _USUAL = 0.1, 0.1, 6.0, 0.1, 50.0
# A report is not believed when it is so many times further from those spelled alike than reports usually are.
_NEIGHBOURS, _ENOUGH, _ALIKE, _FAR, _LEAST_SPREAD = 8, 3, 0.8, 5.0, 0.4
_STRANGE = 0.6  # no more alike than this, a text is like none that was reported
_BEYOND = 1.25  # times what the reports most alike had, at most

_BLOCK = 0x3100  # from here on a character counts by the first byte of its code
_RUNS = 5
_CAPS, _DIGIT, _BLANK, _END, _FIRST_ACCENT = 27, 28, 29, 30, 36


def _blocks() -> Iterable[Iterable[int]]:
    """The classes of characters, as their codes; scripts that hold several languages by the remainder of the code,
    which tells them apart by the letters they use."""
    yield from ([code] for code in range(97, 123))
    yield from (range(65, 91), range(48, 58), (32, 0xA0), (10, 13), (9,))
    yield from (map(ord, marks) for marks in (".,;:!?", "\"'`", "()[]{}<>", "=+-*/%&|^~\\$#@_"))
    for first, last, ways in ((0xC0, 0x100, 6), (0x100, 0x250, 6)):  # accented Latin
        yield from (range(first + (way - first) % ways, last, ways) for way in range(ways))
    yield from (range(0x80, 0xA0), range(0xA1, 0xC0), range(0x250, 0x370), range(0x370, 0x400))
    yield from (range(0x400 + way, 0x530, 4) for way in range(4))  # Cyrillic
    yield from (range(0x530, 0x590), range(0x590, 0x600))
    yield from (range(0x600 + way, 0x860, 2) for way in range(2))  # Arabic
    bounds = (0x900, 0x980, 0xE00, 0xF00, 0x1E00, 0x1F00, 0x2000, 0x3000, 0x3040, _BLOCK)  # Devanagari to kana
    yield from (range(first, last) for first, last in pairwise(bounds))
    high = (_BLOCK, 0xA000, 0xAC00, 0xD800, 0x10000, 0x110000)  # Han, Yi, Hangul, forms, emoji
    yield from (range(_BLOCK + (a >> 8), _BLOCK + (b >> 8)) for a, b in pairwise(high))


@functools.cache
def _classes() -> tuple[np.ndarray[Any, np.dtype[np.uint8]], int]:
    """The class of each code, 0 for the rest, and how many classes there are."""
    table = np.zeros(_BLOCK + 0x1100, np.uint8)
    number = 0
    for number, codes in enumerate(_blocks(), 1):
        table[list(codes)] = number
    return table, number + 1


def spelled(text: str) -> Vector:
    """How many characters of each class, and runs of some: words, numbers, indents, wide blanks, capitals within."""
    table, classes = _classes()
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = table[np.where(codes < _BLOCK, codes, _BLOCK + (codes >> 8))]
    word, digit, blank = ((kinds > 0) & (kinds <= _CAPS)) | (kinds >= _FIRST_ACCENT), kinds == _DIGIT, kinds == _BLANK
    runs = (
        word[1:] & ~word[:-1],
        digit[1:] & ~digit[:-1],
        blank[1:] & (kinds[:-1] == _END),
        blank[1:] & blank[:-1],
        (kinds[1:] == _CAPS) & word[:-1],
    )
    counted = np.bincount(kinds, minlength=classes)
    return np.concatenate([counted, [np.count_nonzero(run) for run in runs]]).astype(np.float64)


class Report(msgspec.Struct, frozen=True):
    """One text whose tokens a provider told: how it is spelled, what we count, what it counted."""

    spelled: Vector
    counted: int
    reported: int


class _Known(msgspec.Struct, frozen=True):
    scale: list[float]
    starts: dict[str, list[float]]
    bounds: dict[str, tuple[float, float]]


@functools.cache
def _known() -> tuple[Vector, dict[str, Vector], dict[str, tuple[float, float]]]:
    """data/tokenizers.json: the scale of each class, and for each family of tokenizers that we could measure the
    weights of the linear part that suit it, a ridge fit to public texts, and between what their ratios were."""
    known = msgspec.convert(json.loads((files("tierwise") / "data" / "tokenizers.json").read_bytes()), _Known)
    return np.array(known.scale), {name: np.array(weights) for name, weights in known.starts.items()}, known.bounds


class Spelling:
    """What was learned of one tokenizer. Pure: the same reports in any order give the same ratios, but for rounding.

    `family` names a row of data/tokenizers.json to begin with; else a text is taken to have as many tokens as ours."""

    def __init__(self, reports: Sequence[Report], family: str = "") -> None:
        scale, starts, bounds = _known()
        self._start, self._bounds = starts.get(family, np.zeros(len(scale) + 1)), bounds.get(family, (LEAST, MOST))
        self._seen = self._shaped(())
        self._weights, self._ratios = np.zeros(0), np.zeros(0)
        if reports:
            self._learn(self._shaped(reports), reports)

    def ratio(self, text: Vector, counted: int) -> float:
        """Tokens of this tokenizer for each of ours, in a text so spelled of which we count so many. Of a text like no
        other that was reported, what we began with; and never far from what those had that are most alike."""
        asked = self._shaped([Report(text, counted, counted)])
        start = min(max(1.0 + float((asked[0] @ self._start)[0]), self._bounds[0]), self._bounds[1])
        if not len(self._weights):
            return start
        alike = (self._seen[1] @ asked[1].T)[:, 0]
        nearest = np.argsort(-alike, kind="stable")[:_NEIGHBOURS]
        told = self._ratios[nearest]
        found = 1.0 + float((asked[0] @ self._start)[0] + (_kernel(asked, self._seen) @ self._weights)[0])
        found = min(max(found, float(told.min()) / _BEYOND), float(told.max()) * _BEYOND)
        trust = min(max((float(alike[nearest[0]]) - _STRANGE) / (_ALIKE - _STRANGE), 0.0), 1.0)
        return min(max(start + trust * (found - start), LEAST), MOST)

    def _learn(self, seen: tuple[Vector, Vector], reports: Sequence[Report]) -> None:
        reported = np.array([report.reported for report in reports], np.float64)
        ratios = reported / np.array([report.counted for report in reports], np.float64)
        kept = ~_odd(seen[1], np.log(ratios))
        self._seen, self._ratios = (seen[0][kept], seen[1][kept]), ratios[kept]
        rest = ratios[kept] - 1.0 - self._seen[0] @ self._start
        noise = _NOISE * _USUAL / np.maximum(reported[kept], 10.0)
        self._weights = np.linalg.solve(_kernel(self._seen, self._seen) + np.diag(noise), rest)

    @staticmethod
    def _shaped(reports: Sequence[Report]) -> tuple[Vector, Vector]:
        """(how often each class comes for a token of ours, scaled; the direction of the shares' square roots)"""
        scale = _known()[0]
        rows = np.array([report.spelled for report in reports]).reshape(len(reports), len(scale))
        counted = np.array([[max(report.counted, 1)] for report in reports]).reshape(len(reports), 1)
        roots = np.sqrt(rows[:, :-_RUNS])
        lengths = np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), 1e-9)
        return np.hstack([rows / counted * scale, np.ones((len(reports), 1))]), roots / lengths


def _odd(roots: Vector, ratios: Vector) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which reports those contradict that are spelled alike: such a one is far from their median, as no few lies can
    move it. Ratios are logarithms. What too few are like, nobody contradicts."""
    near = roots @ roots.T
    np.fill_diagonal(near, 0.0)
    order = np.argsort(-near, axis=1, kind="stable")[:, :_NEIGHBOURS]
    alike = np.take_along_axis(near, order, axis=1) >= _ALIKE
    told = np.where(alike, ratios[order], np.nan)
    enough = alike.sum(axis=1) >= _ENOUGH
    off = np.zeros(len(ratios))
    if enough.any():
        off[enough] = np.abs(ratios[enough] - np.nanmedian(told[enough], axis=1))
        return np.asarray(off > max(_LEAST_SPREAD, _FAR * float(np.median(off[enough]))))
    return off > 0.0


def _kernel(one: tuple[Vector, Vector], other: tuple[Vector, Vector]) -> Vector:
    near = np.exp(-_WIDTH * (1.0 - one[1] @ other[1].T))
    return np.asarray(1.0 + _LINEAR * (one[0] @ other[0].T) + _NEAR * near)
