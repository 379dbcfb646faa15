"""The words of a prompt and its pairs of neighbouring words, hashed: what a trained estimator knows of a text.

Set, not sequence; 16 bits a gram, so that many words share each number. Nobody reads a prompt from it, though a list of
expected words can be tested against it: docs/learning.md says so.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

BUCKETS = 1 << 16
# Of a longer text those grams are kept whose hash is lowest: the same ones wherever they occur, so that two texts that
# share grams share them here too (bottom-k sampling, Cohen and Kaplan 2007).
KEPT = 384
CHARACTERS = 8_192

_SPACE, _WORD, _MARK = 0, 1, 2
_KINDS = np.array(
    [_WORD if code >= 128 or chr(code).isalnum() else _MARK if 32 < code < 127 else _SPACE for code in range(256)],
    dtype=np.uint8,
)
# A polynomial hash of a token is a difference of two prefix sums, divided by the power that its place has put on it.
# The base is odd, so it has an inverse modulo 2^64.
_BASE = 0x9E3779B97F4A7C15
_MOST_BYTES = CHARACTERS * 4
_BIGRAM = np.uint64(0xD6E8FEB86659FD93)
_Number = TypeVar("_Number", np.uint16, np.uint64)


def _powers(base: int) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        return np.concatenate(
            ([np.uint64(1)], np.cumprod(np.full(_MOST_BYTES, base % (1 << 64), dtype=np.uint64), dtype=np.uint64))
        )


_POWERS, _INVERSES = _powers(_BASE), _powers(pow(_BASE, -1, 1 << 64))


def grams(folded: str) -> bytes:
    """The grams of a casefolded text: their numbers, ascending, two bytes each, little endian; at most KEPT of them.
    Linear in the text, of which the first CHARACTERS are read. White space does not matter."""
    data = folded[:CHARACTERS].encode("utf-8", "replace")
    codes = np.frombuffer(data, dtype=np.uint8)
    if not codes.size:
        return b""
    kinds = _KINDS[codes]
    is_word = kinds == _WORD
    begins = kinds == _MARK
    ends = begins.copy()
    begins[0] |= is_word[0]
    begins[1:] |= is_word[1:] & ~is_word[:-1]
    ends[-1] |= is_word[-1]
    ends[:-1] |= is_word[:-1] & ~is_word[1:]
    starts, stops = np.flatnonzero(begins), np.flatnonzero(ends) + 1
    if not starts.size:
        return b""
    sums = np.zeros(codes.size + 1, dtype=np.uint64)
    np.cumsum(codes * _POWERS[: codes.size], out=sums[1:])
    words = (sums[stops] - sums[starts]) * _INVERSES[starts] + (stops - starts).astype(np.uint64)
    hashes = _mixed(np.concatenate((words, words[:-1] * _BIGRAM + words[1:])))
    if hashes.size > KEPT:
        hashes = _distinct(hashes)[:KEPT]
    # The lowest bits: the highest decide which are kept, and would all be zeros.
    return _distinct((hashes & np.uint64(BUCKETS - 1)).astype("<u2")).tobytes()


def numbers(kept: bytes) -> NDArray[np.uint16]:
    """What `grams` gave, as numbers below BUCKETS."""
    return np.frombuffer(kept, dtype="<u2")


def _distinct(values: NDArray[_Number]) -> NDArray[_Number]:
    """Ascending, each once: what np.unique gives, at a tenth of its price for so few."""
    values.sort()
    kept = np.ones(values.size, dtype=bool)
    np.not_equal(values[1:], values[:-1], out=kept[1:])
    return values[kept]


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """In place. Every bit of the result depends on every bit of the value (SplitMix64's finaliser, Steele 2014)."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
