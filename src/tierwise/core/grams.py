"""The words of a prompt and its pairs of neighbouring words, hashed: what a trained estimator knows of a text.

Set, not sequence; 16 bits a gram, so that many words share each number. Nobody reads a prompt from it, though a list of
expected words can be tested against it: docs/learning.md says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

BUCKETS = 1 << 16
# Of a longer text those grams are kept whose hash is lowest: the same ones wherever they occur, so that two texts that
# share grams share them here too (bottom-k sampling, Cohen and Kaplan 2007).
KEPT = 384
CHARACTERS = 8_192

_SPACE, _WORD, _MARK = 0, 1, 2
_KINDS = bytes(
    _WORD if code >= 128 or chr(code).isalnum() else _MARK if 32 < code < 127 else _SPACE for code in range(256)
)
# A polynomial hash of a token is a difference of two prefix sums, divided by the power that its place has put on it.
# The base is odd, so it has an inverse modulo 2^64.
_BASE = 0x9E3779B97F4A7C15
_MOST_BYTES = CHARACTERS * 4  # of a longest text
_TOGETHER_BYTES = 12_288  # of several: an array as long stays below what malloc asks the kernel for each time
# Constants are arrays of no dimension: numpy takes them at half the price of its scalars.
_IS_WORD = np.array(_WORD, dtype=np.uint8)
_BIGRAM, _FIRST, _SECOND = (
    np.array(factor, dtype=np.uint64) for factor in (0xD6E8FEB86659FD93, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_THIRTY, _TWENTY_SEVEN, _THIRTY_ONE = (np.array(bits, dtype=np.uint64) for bits in (30, 27, 31))


def _powers(base: int) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        return np.concatenate(
            ([np.uint64(1)], np.cumprod(np.full(_MOST_BYTES, base % (1 << 64), dtype=np.uint64), dtype=np.uint64))
        )


_POWERS, _INVERSES = _powers(_BASE), _powers(pow(_BASE, -1, 1 << 64))[1:]


def grams(folded: str) -> bytes:
    """The grams of a casefolded text: their numbers, ascending, two bytes each, little endian; at most KEPT of them.
    Linear in the text, of which the first CHARACTERS are read. White space does not matter."""
    return grams_of((folded,))[0]


def grams_of(texts: Sequence[str]) -> list[bytes]:
    """`grams` of each of some casefolded texts. Most of the calls of numpy that a text alone takes then serve all of
    them: 12 to 16 µs a text of 1 kB, where one after the other takes 18."""
    found: list[bytes] = []
    some: list[bytes] = []
    size = 0
    for text in texts:
        data = text[:CHARACTERS].encode("utf-8", "replace")
        if some and size + len(data) + len(some) > _TOGETHER_BYTES:
            found += _grams_of(some)
            some, size = [], 0
        some.append(data)
        size += len(data)
    return found + _grams_of(some) if some else found


def _grams_of(texts: list[bytes]) -> list[bytes]:
    data = b"\0%b\0" % b"\0".join(texts)  # a space at each end, so that no end is special
    kinds = np.frombuffer(data.translate(_KINDS), np.uint8)
    # A token begins (ends) where a byte stands above what is before (after) it: a word above all but a word, a mark
    # above everything.
    beside = kinds & _IS_WORD
    starts = (kinds[1:] > beside[:-1]).nonzero()[0]  # the byte before a token
    count = starts.size
    if not count:
        return [b""] * len(texts)
    stops = (kinds[:-1] > beside[1:]).nonzero()[0]  # its last byte
    codes = np.frombuffer(data, np.uint8, len(data) - 1)
    sums = codes * _POWERS[: codes.size]
    np.add.accumulate(sums, out=sums)
    words = sums[stops]
    words -= sums[starts]
    words *= _INVERSES[starts]
    words += (stops - starts).view(np.uint64)
    pairs = words[:-1] * _BIGRAM
    pairs += words[1:]
    hashes = np.empty(2 * count, dtype=np.uint64)  # a pair after its first word, so that a text's stand together
    hashes[::2] = words
    hashes[1:-1:2] = pairs
    hashes[-1] = 0
    _mix(hashes)
    ends = starts.searchsorted(list(accumulate(len(text) + 1 for text in texts))).tolist()
    # Of a text's last word with the next one's first no pair is kept.
    return [_kept(hashes[2 * first : 2 * end - 1]) if end > first else b"" for first, end in pairwise((0, *ends))]


def _kept(hashes: NDArray[np.uint64]) -> bytes:
    """Of one text's hashes, which are sorted in place."""
    if hashes.size > KEPT:
        hashes.sort()
        changes = (hashes[1:] != hashes[:-1]).nonzero()[0]
        if changes.size >= KEPT:
            hashes = hashes[: changes[KEPT - 1] + 1]
    # The lowest bits: the highest decide which are kept, and would all be zeros.
    low = hashes.astype("<u2")
    low.sort()
    later = low[1:]
    is_new: NDArray[np.bool] = later != low[:-1]
    return low[:1].tobytes() + later[is_new].tobytes()


def numbers(kept: bytes) -> NDArray[np.uint16]:
    """What `grams` gave, as numbers below BUCKETS."""
    return np.frombuffer(kept, dtype="<u2")


def _mix(values: NDArray[np.uint64]) -> None:
    """In place. Every bit of the result depends on every bit of the value (SplitMix64's finaliser, Steele 2014)."""
    shifted = values >> _THIRTY
    values ^= shifted
    values *= _FIRST
    values ^= np.right_shift(values, _TWENTY_SEVEN, out=shifted)
    values *= _SECOND
    values ^= np.right_shift(values, _THIRTY_ONE, out=shifted)
