"""What is added up quickly is what the tables say word by word, plainly."""

from __future__ import annotations

import hashlib
import random

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
    if cue and word not in known.words and len(word) in GUESSED:
        assert lexicon.suspects([word], known) == [word]


def test_no_sum_of_cues_leaves_its_bits() -> None:
    """At worst each word that is read weighs most, twice, and each pair too; or all words of the tables are there."""
    known = lexicon.lexicon()
    greatest = max(weight for cue in known.words.values() for _, weight in cue)
    assert (tasks.HEAD_WORDS + tasks.TAIL_WORDS) * 4 * greatest <= lexicon.MOST
    assert len(known.words) * greatest <= lexicon.MOST
    for word, cue in known.words.items():
        told = lexicon.unpacked(known.aims.get(word, 0) + known.marks.get(word, 0))
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
    assert tasks._sum(said) == [sums[i] + min(caps.get(slot, 0), body[i]) for i, slot in enumerate(lexicon.SLOTS)]


@given(st.text() | st.text("a\n \t\x1c\x85\xa0\u2003\u3000é", max_size=60))
def test_words_are_single_spaced_as_split_and_join_would(own: str) -> None:
    assert text.single_spaced(own) == " ".join(own.split())


@given(st.text(alphabet="ab., \n\té。", max_size=80))
def test_sentences_and_clauses_are_counted_with_the_tokens(own: str) -> None:
    counts = text.count(own)
    assert (counts.stops, counts.commas) == (own.count(". "), own.count(", "))


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
