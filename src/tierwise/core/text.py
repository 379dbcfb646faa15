"""Counts what a text is made of (tokens, words, scripts) without any tokenizer. No word lists: those are in `lexicon`.

Everything here runs at the speed of `bytes.translate` and of whole numbers as long as the text: a few passes, each
linear and none with a backtracking regex, so that the cost of a hostile text is the cost of any text of its length. No
numpy: it lets other threads run at every operation on more than 500 numbers, and what took 10 µs took 48 when two
waited for that.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import msgspec


def _table(classes: Iterable[tuple[Iterable[int], str]], other: str = "\0") -> bytes:
    table = bytearray(other.encode() * 256)
    for codes, letter in classes:
        for code in codes:
            table[code] = ord(letter)
    return bytes(table)


_CAPITALS, _END = bytes(range(65, 91)), b"\n"
_LETTERS = _CAPITALS + bytes(range(97, 123))
_PUNCTUATION = bytes([*range(33, 48), *range(58, 65), *range(91, 97), *range(123, 127)])
_ASCII, _CONTINUED, _BEYOND = bytes(range(128)), bytes(range(128, 192)), bytes(range(128, 256))


def _bits(classes: Iterable[bytes]) -> bytes:
    """The table that gives a byte a bit for each class that it is in."""
    classes = tuple(classes)
    return bytes(sum((code in codes) << bit for bit, codes in enumerate(classes)) for code in range(256))


# What is counted of each byte. Of these also where a run of them begins: letters, digits, punctuation. What is beyond
# ASCII counts by its script, and letters after it go on with its word. A space counts by the stop or comma before it.
_ITSELF = _bits((_LETTERS, b"0123456789", _PUNCTUATION, _CAPITALS, b"{}();=<>[]_\\|&`", b" ", b".", b","))
# What is looked for only where a line ends, or where letters beyond ASCII are: an end, and the indent or item after it.
_OF_LINES = _bits((_BEYOND, _END, b" \t", b"-*0123456789"))
_LANES_BYTES = 8_192  # as much as is usually read
_WORDS = bytes(code if code >= 128 or chr(code).isalnum() else 32 for code in range(256))
# What separates words outside ASCII and is common enough to matter: quotes, dashes, inverted and full-width marks.
_MARKS = "¿¡«»“”„‘’–—…•·、。，！？：；（）「」『』【】؟،।\u00a0\u3000"

# The first byte of a UTF-8 sequence tells its script well enough to count tokens and to name a language.
_LEADS = _table(
    [
        ((0xC2,), "m"),  # marks: § © « » °
        (range(0xC3, 0xCA), "l"),  # accented Latin
        (range(0xCC, 0xD0), "g"),  # Greek
        (range(0xD0, 0xD4), "c"),  # Cyrillic
        (range(0xD4, 0xD7), "a"),  # Armenian
        ((0xD7,), "b"),  # Hebrew
        (range(0xD8, 0xDD), "r"),  # Arabic
        ((0xE0,), "i"),  # Indic scripts and Thai
        ((0xE1,), "v"),  # Georgian, Khmer, Vietnamese
        ((0xE2,), "p"),  # typographic punctuation, arrows, mathematics
        ((0xE3,), "k"),  # kana and CJK punctuation
        (range(0xE4, 0xEA), "h"),  # Han
        (range(0xEA, 0xEE), "o"),  # Hangul
        ((0xEE, 0xEF), "f"),  # full-width forms, private use
        (range(0xF0, 0xF5), "e"),  # emoji and everything beyond the basic plane
    ]
)

# Tokens for each thing counted: a least-squares fit, weights not below zero, to o200k token counts of 980 pieces of
# public text (documentation in 32 languages, Python, JavaScript, C, C++, shell, JSON), then rounded; scripts that the
# pieces lack were set by hand from a few sentences. docs/estimator.md has the measured error.
_RUN, _LETTER, _LONG, _CAPITAL = 0.55, 0.136, 0.30, 0.07
_DIGIT_RUN, _DIGIT, _MARK_RUN, _MARK = 1.6, 0.1, 0.47, 0.067
_LINE, _INDENT = 0.49, 1.6
_LEAD_TOKENS = (
    *((b"m", 0.9), (b"l", 1.1), (b"g", 0.55), (b"c", 0.315), (b"a", 0.40), (b"b", 0.40), (b"r", 0.34), (b"i", 0.353)),
    *((b"v", 0.33), (b"p", 0.70), (b"k", 0.74), (b"h", 0.76), (b"o", 0.80), (b"f", 1.5), (b"e", 1.8)),
)
# A run of letters longer than this is not a word (base64, a hash): it is cut into many tokens.
_LONG_RUN = 12


class Counts(msgspec.Struct, frozen=True):
    """What was counted in one text."""

    tokens: float = 0.0
    digit_runs: int = 0  # numbers
    lines: int = 0
    indents: int = 0
    items: int = 0  # lines that begin with a bullet or a number
    capitals: int = 0
    letters: int = 0
    symbols: int = 0  # of those that programs are full of
    stops: int = 0  # full stops with a space after them
    commas: int = 0  # the same
    leads: tuple[int, ...] = ()  # per entry of `_LEAD_TOKENS`, () for ASCII


def count(text: str) -> Counts:
    """Tokens of a text, estimated for a modern byte-pair tokenizer, and what it was made from. Any str is fine."""
    data = text.encode("utf-8", "surrogatepass")
    leads: tuple[int, ...] = ()
    if not text.isascii():
        data = data.translate(None, _CONTINUED)  # a byte a character, which tells its script
        leads = _leads(data)
    # A byte becomes eight answers, and the text one number: `&` asks all bytes at once, and shifted by eight bits it
    # says of each byte what the one before it is. There is no branch to guess, so English takes 7 µs a kB and nothing
    # takes much more; deleting and counting bytes took 2 to 25.
    lanes = _LANES if len(data) <= _LANES_BYTES else _lanes(len(data))
    letter, digit, mark, capital, symbol, space, _, _ = lanes
    itself = int.from_bytes(data.translate(_ITSELF), "little")
    begun = itself ^ (itself & itself << 8)
    letters, runs = (itself & letter).bit_count(), (begun & letter).bit_count()
    digits, digit_runs = (itself & digit).bit_count(), (begun & digit).bit_count()
    marks, mark_runs = (itself & mark).bit_count(), (begun & mark).bit_count()
    capitals, symbols = (itself & capital).bit_count(), (itself & symbol).bit_count()
    spaces = itself & space
    stops, commas = (spaces & itself << 7).bit_count(), (spaces & itself << 6).bit_count()
    lines = indents = items = 0
    if leads or _END in data:
        beyond, end, blank, item, *_ = lanes
        itself = int.from_bytes(data.translate(_OF_LINES), "little")
        if leads:
            runs -= (begun & letter & (itself & beyond) << 8).bit_count()
        ends = itself & end
        lines = (ends ^ (ends & ends << 8)).bit_count()
        indents, items = (itself & blank & ends << 9).bit_count(), (itself & item & ends << 10).bit_count()
    tokens = (
        _RUN * runs
        + _LETTER * letters
        + _LONG * max(0, letters - _LONG_RUN * runs)
        + _CAPITAL * capitals
        + _DIGIT_RUN * digit_runs
        + _DIGIT * digits
        + _MARK_RUN * mark_runs
        + _MARK * marks
        + _LINE * lines
        + _INDENT * indents
    )
    if leads:
        tokens += sum([number * weight for number, (_, weight) in zip(leads, _LEAD_TOKENS, strict=True)])
    return Counts(tokens, digit_runs, lines, indents, items, capitals, letters, symbols, stops, commas, leads)


def _lanes(size: int) -> tuple[int, ...]:
    """Of so many bytes the first bits, the second bits and so on."""
    return tuple([int.from_bytes(bytes((1 << bit,)) * size, "little") for bit in range(8)])


_LANES = _lanes(_LANES_BYTES)


def _leads(data: bytes) -> tuple[int, ...]:
    """How often each script is there. Most are not, which is seen sooner than counted."""
    by_lead = data.translate(_LEADS, _ASCII)
    return tuple([by_lead.count(letter) if letter in by_lead else 0 for letter, _ in _LEAD_TOKENS])


def single_spaced(folded: str) -> str:
    """The words with one space between them, whatever stood there: `" ".join(folded.split())`, sooner."""
    if not folded.isascii():
        for space in _WIDE_SPACES:
            if space in folded:
                folded = folded.replace(space, " ")
    # From the left each part but the first begins after two spaces, so only its own beginning may be a third.
    parts = folded.encode("utf-8", "surrogatepass").translate(_ONE_SPACE).strip(b" ").split(b"  ")
    spaced = parts[0] if len(parts) == 1 else b" ".join(filter(None, map(bytes.lstrip, parts)))
    return spaced.decode("utf-8", "surrogatepass")


# What `str.split` takes for white space beyond ASCII.
_WIDE_SPACES = (
    "\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
_ONE_SPACE = bytes(32 if chr(code).isspace() and code < 128 else code for code in range(256))


def words(folded: str) -> list[str]:
    """The words of a casefolded text: runs of letters and digits. Scripts without spaces give whole phrases."""
    if not folded.isascii():
        for mark in _MARKS:
            if mark in folded:
                folded = folded.replace(mark, " ")
    return folded.encode("utf-8", "surrogatepass").translate(_WORDS).decode("utf-8", "surrogatepass").split()


def scripts(counts: Counts) -> tuple[str, ...]:
    """Languages that the script alone gives away, the most frequent first."""
    if not counts.leads:
        return ()
    by = {letter.decode(): number for (letter, _), number in zip(_LEAD_TOKENS, counts.leads, strict=True)}
    total = counts.letters + sum(by.values()) - by["m"] - by["p"]
    east_asian = by["h"] + by["k"]
    found = (
        (by["g"], "el"),
        (by["c"], "ru"),
        (by["b"], "he"),
        (by["r"], "ar"),
        (by["i"], "indic"),
        (by["o"], "ko"),
        # Kana in running text means Japanese; without it Han characters are read as Chinese.
        (east_asian, "ja" if by["k"] * 5 > by["h"] else "zh"),
    )
    enough = max(2, total // 8)
    return tuple(name for number, name in sorted(found, reverse=True) if number >= enough)


def wide(counts: Counts) -> bool:
    """Written mostly without spaces (Han, kana, Thai): words cannot be told apart, only substrings looked for."""
    return bool(counts.leads) and counts.leads[10] + counts.leads[11] + counts.leads[7] > counts.letters // 8


def inflected(counts: Counts) -> bool:
    """Cyrillic or Hangul in earnest: cues are looked for by the beginnings of words."""
    return bool(counts.leads) and counts.leads[3] + counts.leads[12] > counts.letters // 8


def digest(*parts: str) -> str:
    """Sixteen hexadecimal digits that are the same in every process."""
    return hashed("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def hashed(data: bytes) -> hashlib.blake2b:
    """What `digest` makes its digits of. Piece by piece: for a longer one hashlib gives the interpreter away, and where
    two other threads want it, 8 kB take 12.5 µs at once and 9.7 µs in pieces."""
    found = hashlib.blake2b(data[:_HASHED_AT_ONCE], digest_size=8)
    for at in range(_HASHED_AT_ONCE, len(data), _HASHED_AT_ONCE):
        found.update(data[at : at + _HASHED_AT_ONCE])
    return found


_HASHED_AT_ONCE = 2_047


def ends(text: str, head: int, tail: int) -> str:
    """The text, or its beginning and its end when it is longer than both together."""
    return text if len(text) <= head + tail else f"{text[:head]}\n{text[-tail:]}"


def squash(value: float, half: float) -> float:
    """0..1, a half of the way up at `half`: more of the same adds less and less."""
    return 1.0 - math.exp(-0.693 * value / half) if value else 0.0
