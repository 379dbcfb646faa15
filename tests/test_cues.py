"""What is added up quickly is what the tables say word by word, plainly."""

from __future__ import annotations

import hashlib
import itertools
import random
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.core import lexicon, tasks, text
from tierwise.core.features import extract
from tierwise.core.grams import grams
from tierwise.core.request import Prompt, Turn

GUESSED = range(lexicon.GUESSED_LETTERS, lexicon.LONGEST_GUESS + 1)


@given(st.sampled_from(sorted(lexicon.lexicon().typos)), st.integers(0, 15), st.sampled_from(["", "x", "é", "th"]))
def test_a_guess_is_a_slip_of_a_slip_and_always_suspected(slip: str, at: int, put: str) -> None:
    """As the table alone has it, without what makes looking in it quick."""
    known = lexicon.lexicon()
    word = slip[:at] + put + slip[at + 1 :]
    near = [word]
    if len(word) > lexicon.GUESSED_LETTERS:
        near += [word[:i] + word[i + 1 :] for i in range(len(word))]
    cue = next((known.typos[each] for each in near if each in known.typos), None)
    assert lexicon.guess(word, known) == cue
    unknown = word not in known.words and len(word) in GUESSED
    if cue and unknown:
        assert lexicon.suspects([word], known) == [word]
    assert lexicon.meant(word) == (cue if unknown else None)


def test_no_sum_of_cues_leaves_its_bits() -> None:
    """At worst each word that is read weighs most, twice, and each pair too; or all words of the tables are there."""
    known = lexicon.lexicon()
    greatest = max(weight for cue in known.words.values() for _, weight in cue)
    assert (tasks.HEAD_WORDS + tasks.TAIL_WORDS) * 4 * greatest <= lexicon.MOST
    assert len(known.words) * greatest <= lexicon.MOST >> 1  # the highest bit of the body's slots is for their caps
    for word, cue in known.words.items():
        first, _, second = word.partition(" ")
        more = known.more.get(first, lexicon.More(0, 0, {}, False))
        both, ordered = more.pairs[second] if second else (more.aims + known.marks.get(word, 0), more.orders)
        told = lexicon.unpacked(both)
        orders = {slot: weight for slot, weight in cue if slot < len(lexicon.TASKS) and weight >= lexicon.ORDER}
        assert {slot: weight for slot, weight in enumerate(lexicon.unpacked(ordered)) if weight} == orders
        assert {slot: weight for slot, weight in enumerate(told) if weight} == dict(cue)


@given(st.sampled_from([2, 7, 9, 12, 40, 60, 90, 110, 300]), st.integers(0, 1_000_000))
def test_cues_add_up_word_by_word(pieces: int, seed: int) -> None:
    """The plain way: through the first and the last words one by one, through what lies between as a set."""
    known, first, dice = lexicon.lexicon(), tasks.HEAD_WORDS, random.Random(seed)
    few = [
        *dice.sample(sorted(known.words), 30),
        "prvoe",
        "sumarize",
        "xyzzy",
        "prove",
        "step by",
        "key points",
        "table",
        *dice.sample(sorted(known.watched), 2),
    ]
    said = [word for _ in range(pieces) for word in dice.choice(few).split()]
    last = max(first, len(said) - tasks.TAIL_WORDS)
    sums, counted, before = dict.fromkeys(range(len(lexicon.SLOTS)), 0), set(), ""
    for place, word in enumerate(said[:first] + said[last:]):
        guessed = place < tasks.GUESSED_WORDS and len(word) in GUESSED and lexicon.guess(word, known)
        cue = known.words.get(word) or guessed or ()
        pair = known.words.get(f"{before} {word}", ()) if before else ()
        for slot, weight in [*(each for each in cue if each[0] >= len(lexicon.TASKS) or word not in counted), *pair]:
            order = slot < len(lexicon.TASKS) and weight >= lexicon.ORDER and place < tasks.ORDER_WORDS
            sums[slot] += 2 * weight if order else weight
        counted.add(word)
        before = word
    body = dict.fromkeys(sums, 0)
    for word in set(said[first:last]) & set(known.words):
        for slot, weight in known.words[word]:
            body[slot] += weight
    caps = {"depth": 5, "limits": 6, "math": 8, "program": 8, **dict.fromkeys(lexicon.LANGUAGES, 1_000)}
    assert tasks._sum(said) == (
        [sums[i] + min(caps.get(slot, 0), body[i]) for i, slot in enumerate(lexicon.SLOTS)],
        known.watched.intersection(said),
    )


@given(st.text() | st.text("a\n \t\x1c\x85\xa0\u2003\u3000é", max_size=60))
def test_words_are_single_spaced_as_split_and_join_would(own: str) -> None:
    assert text.single_spaced(own) == " ".join(own.split())


LETTERS, NUMERALS, MARKS = (string.ascii_letters.encode(), string.digits.encode(), string.punctuation.encode())


@given(
    st.text()
    | st.text("aB1 \n\t.,-*{é日\ud800\x00😀", max_size=60)
    | st.builds(str.__mul__, st.text("a1 \n.,-é", max_size=9), st.sampled_from([900, 8_192, 10_000]))
)
def test_what_is_counted_all_at_once_is_what_a_loop_counts(own: str) -> None:
    """The plain way: each byte, and the byte before it."""
    counted: Counter[str] = Counter()
    data = own.encode("utf-8", "surrogatepass")
    for before, byte in itertools.pairwise(b"\0" + data):
        for name, kind in (("letters", LETTERS), ("digits", NUMERALS), ("marks", MARKS)):
            counted[name] += byte in kind
            counted[f"{name} runs"] += byte in kind and before not in kind and not (kind is LETTERS and before >= 128)
        counted["capitals"] += 65 <= byte <= 90
        counted["symbols"] += byte in b"{}();=<>[]_\\|&`"
        counted["stops"] += (before, byte) == (ord("."), 32)
        counted["commas"] += (before, byte) == (ord(","), 32)
        counted["lines"] += byte == 10 and before != 10
        counted["indents"] += before == 10 and byte in b" \t"
        counted["items"] += before == 10 and byte in b"-*0123456789"
    found = text.count(own)
    names = ("capitals", "letters", "symbols", "stops", "commas", "lines", "indents", "items")
    assert [getattr(found, name) for name in names] == [counted[name] for name in names]
    assert found.digit_runs == counted["digits runs"]
    by_script = Counter(data.translate(text._LEADS))
    assert found.leads == (() if own.isascii() else tuple(by_script[ord(lead)] for lead, _ in text._LEAD_TOKENS))
    tokens = (
        text._RUN * counted["letters runs"]
        + text._LETTER * counted["letters"]
        + text._LONG * max(0, counted["letters"] - text._LONG_RUN * counted["letters runs"])
        + text._CAPITAL * counted["capitals"]
        + text._DIGIT_RUN * counted["digits runs"]
        + text._DIGIT * counted["digits"]
        + text._MARK_RUN * counted["marks runs"]
        + text._MARK * counted["marks"]
        + text._LINE * counted["lines"]
        + text._INDENT * counted["indents"]
        + sum(by_script[ord(lead)] * weight for lead, weight in text._LEAD_TOKENS)
    )
    assert found.tokens == pytest.approx(tokens)


@given(st.lists(st.text(max_size=9) | st.builds(str.__mul__, st.text("aé", max_size=3), st.integers(0, 3_000))))
def test_a_digest_made_piece_by_piece_is_the_digest_of_the_whole(parts: list[str]) -> None:
    data = "\x1f".join(parts).encode("utf-8", "surrogatepass")
    assert text.digest(*parts) == hashlib.blake2b(data, digest_size=8).hexdigest()


@pytest.mark.parametrize(
    ("said", "tools", "task"),
    [
        ("ok", (), "greeting"),
        ("ok", ("search",), "tool_use"),
        ("qué tal xyzzy", (), "greeting"),
        ("qué xyzzy plugh", (), "other"),
        ("hello hello hello hello hello hello hello hello", (), "other"),
        ("hi hello hey thanks cheers hola hallo grazie", (), "other"),
    ],
)
def test_a_greeting_is_short_and_nearly_all_known(said: str, tools: tuple[str, ...], task: str) -> None:
    assert extract(Prompt(turns=(Turn("user", said),), size_bytes=100, tools=tools)).task == task


def test_the_numbers_of_grams_never_change() -> None:
    """Trained artefacts hold them."""
    assert (
        grams("prove that 2 + 2 = 4, été.").hex()
        == "10027a04d41b6b203344514f6753f1749a87bd95f8a8f7baa3cf1cdc83ee63f2f9f318f9"
    )
    many = grams(" ".join(f"word{i}" for i in range(900)))
    assert hashlib.blake2b(many, digest_size=8).hexdigest() == "235ca8cded32f3c4"
