"""What is asked, how deep, how bound and how vague: from the words of the last message and of the system prompt.

People say what they want at the beginning or at the end; what lies between is mostly material to work on. So the first
and the last words are read one by one, with their neighbours; of the rest only the presence of telling words counts.

A letter or sign is found in a twentieth of the time that it takes to count it or to find two: so what most texts lack
is looked for by its rarest sign first.
"""

from __future__ import annotations

import itertools
from collections.abc import Set

import msgspec

from tierwise.core import lexicon
from tierwise.core.request import Prompt, Task
from tierwise.core.text import Counts, ends, inflected, squash, wide
from tierwise.core.text import words as words_of

HEAD_WORDS = 64
TAIL_WORDS = 32
WIDE_READ = (240, 120)  # characters in which scripts without spaces are searched
SYSTEM_WORDS = 60
ORDER_WORDS = 10  # an order stands among the first words: the cues of one weigh double there
GUESSED_WORDS = 16  # misspelt words are guessed at the beginning only
NAMED = 4  # the least weight that names a task

_TASKS = len(lexicon.TASKS)
_AT = {slot: index for index, slot in enumerate(lexicon.SLOTS)}
_DEPTH, _LIMITS, _VAGUE, _PRONOUN = _AT["depth"], _AT["limits"], _AT["vague"], _AT["pronoun"]
_MATH, _PROGRAM, _GIVEN, _LANGUAGES = _AT["math"], _AT["program"], _AT["given"], _AT["en"]
_GREETING, _EXTRACTION, _CODE, _REASONING, _TOOL = (
    _AT[name] for name in ("greeting", "extraction", "code", "reasoning", "tool_use")
)
# Slots whose cues count in the middle of a long text too, once per word and at a cap.
_BODY_CAPS = tuple((lexicon.shift(slot), cap) for slot, cap in ((_DEPTH, 5), (_LIMITS, 6), (_MATH, 8), (_PROGRAM, 8)))
# All of them at once: what is added to a slot for its highest bit to show that it is above its cap.
_BODY_BITS = sum(lexicon.MOST << shift for shift, _ in _BODY_CAPS)
_BODY_OVER = sum(1 << shift + 15 for shift, _ in _BODY_CAPS)
_BODY_ROOM = sum((1 << 15) - 1 - cap << shift for shift, cap in _BODY_CAPS)


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What the words say. `languages` by stop words alone; `watched`: words there that the lexicon says to watch."""

    task: Task
    depth: float
    constraints: int
    ambiguity: float
    code: float
    math: float
    languages: tuple[str, ...]
    watched: Set[str]


def read(
    prompt: Prompt,
    text: str,
    words: list[str],
    counts: Counts,
    ordered: tuple[tuple[int, int], ...],
    before: str,
) -> Reading:
    """`text`: the last message as far as it is read, `words` its words; `ordered`: what `orders` says of the system
    prompt; `before`: the user's message before the last."""
    sums, watched = _sum(words)
    if counts.leads:
        known = lexicon.lexicon()
        if wide(counts):
            _add_parts(text, known.parts, sums)
        if inflected(counts):
            _add_parts(text, known.stems, sums)
    questions = (text.count("?") if "?" in text else 0) + (text.count("？") if counts.leads else 0)
    code = _code(text, counts, sums)
    math = _math(text, counts, sums)
    scores = _scores(prompt, text, counts, sums, code, math)
    if not _names(scores) and len(words) < 12 and before:
        # "and now in Rust": a short message without an order of its own goes on with what was asked before.
        earlier, _ = _sum(words_of(before.casefold()))
        scores = [
            own + other // 2
            for own, other in zip(scores, _scores(prompt, text, counts, earlier, code, math), strict=True)
        ]
        sums[_DEPTH] += earlier[_DEPTH] // 2
    for index, weight in ordered:
        scores[index] += weight // 3
    task = _task(prompt, scores, sums, words)
    return Reading(
        task=task,
        depth=round(_depth(text, counts, sums, questions), 4),
        constraints=_constraints(sums, counts),
        ambiguity=round(_ambiguity(prompt, text, words, watched, sums, task), 4),
        code=round(code, 4),
        math=round(math, 4),
        languages=_languages(sums, words),
        watched=watched,
    )


def orders(system_words: list[str]) -> tuple[tuple[int, int], ...]:
    """The tasks that a system prompt names, and their weights; a greeting there is none."""
    weights = _sum(system_words[:SYSTEM_WORDS])[0][:_TASKS]
    return tuple((index, weight) for index, weight in enumerate(weights) if weight and index != _GREETING)


def _sum(words: list[str]) -> tuple[list[int], Set[str]]:
    """The weights of all cues by slot, and the words among them that are watched."""
    known = lexicon.lexicon()
    long = len(words) > HEAD_WORDS + TAIL_WORDS
    read = words[:HEAD_WORDS] + words[-TAIL_WORDS:] if long else words
    watched: set[str] = set()
    # A limit said three times is three limits.
    total = sum(filter(None, map(known.marks.get, read))) + _more(read, known, watched)
    if long:
        rest = set(words[HEAD_WORDS:-TAIL_WORDS])
        watched |= known.watched & rest
        body = sum(filter(None, map(known.marks.get, rest)))
        total += body & lexicon.LANGUAGE_BITS
        if (body & _BODY_BITS) + _BODY_ROOM & _BODY_OVER:  # some slot is above its cap
            for shift, cap in _BODY_CAPS:
                total += min(cap, body >> shift & lexicon.MOST) << shift
        else:
            total += body & _BODY_BITS
    sums = lexicon.unpacked(total)
    _add_guesses(read, sums)
    return sums, watched


def _more(read: list[str], known: lexicon.Lexicon, watched: set[str]) -> int:
    """What the words tell of tasks, and what pairs of them tell."""
    total, counted, after = 0, set(), [*read[1:], ""]
    more = known.more
    for place in itertools.compress(range(len(read)), map(more.get, read)):
        word = read[place]
        told = more[word]
        if told.pairs and (pair := told.pairs.get(after[place])):
            total += pair[0] + pair[1] if place + 1 < ORDER_WORDS else pair[0]
        if told.aims and word not in counted:
            # A noun said ten times is still one hint of a task. An order weighs double, so it is added to the aims.
            counted.add(word)
            total += told.aims + told.orders if place < ORDER_WORDS else told.aims
        if told.watched:
            watched.add(word)
    return total


def _add_guesses(read: list[str], sums: list[int]) -> None:
    guessed: set[str] = set()
    for place, word in enumerate(read[:GUESSED_WORDS]):
        if len(word) < lexicon.GUESSED_LETTERS or not (cue := lexicon.meant(word)):
            continue
        for slot, weight in cue:
            if slot >= _TASKS:
                sums[slot] += weight
            elif word not in guessed:
                order = weight >= lexicon.ORDER and place < ORDER_WORDS
                sums[slot] += weight + weight if order else weight
        guessed.add(word)


def _unknown(words: list[str]) -> int:
    """How many of a few words are in no table."""
    known = lexicon.lexicon()
    cues = [known.words.get(word) or lexicon.meant(word) for word in words]
    in_pairs = [
        (cue is None) + (first not in known.words)
        for (first, second), cue in zip(itertools.pairwise(words), cues[1:], strict=True)
        if f"{first} {second}" in known.words
    ]
    return cues.count(None) - sum(in_pairs)


def _add_parts(text: str, parts: tuple[tuple[str, lexicon.Cue], ...], sums: list[int]) -> None:
    folded = ends(text, *WIDE_READ).casefold()
    for part, cue in parts:
        if part in folded:
            for slot, weight in cue:
                sums[slot] += weight + weight if slot < _TASKS else weight


def _code(text: str, counts: Counts, sums: list[int]) -> float:
    fences = text.count("```") if "`" in text else 0
    density = counts.symbols / (len(text) + 20)
    shape = min(1.0, max(0.0, density - 0.02) * 10.0) + min(0.5, fences * 0.3) + min(0.4, counts.indents * 0.05)
    return min(1.0, shape + 0.45 * squash(sums[_PROGRAM], 4.0))


def _math(text: str, counts: Counts, sums: list[int]) -> float:
    notation = 0
    if "\\" in text or "$" in text:
        notation += 3 * min(4, text.count("\\") + text.count("$$"))
    if "^" in text or "=" in text:
        notation += 2 * min(4, text.count("^") + text.count(" = "))
    if counts.leads and any(sign in text for sign in "∫∑√∀∃≤≥∞π∈"):
        notation += 6
    numbers = min(3, counts.digit_runs // 2) if sums[_MATH] or notation else 0
    return squash(sums[_MATH] + notation + numbers, 8.0)


def _scores(prompt: Prompt, text: str, counts: Counts, sums: list[int], code: float, math: float) -> list[int]:
    scores = sums[:_TASKS]
    scores[_CODE] += 6 if code > 0.5 else 3 if code > 0.35 else 0
    if math > 0.35:
        scores[_REASONING] += 4
    if sums[_MATH] and counts.digit_runs > 1 and "?" in text:  # a sum told as a story
        scores[_REASONING] += NAMED
    if _has_options(text):
        scores[_REASONING] += 10
    if prompt.structured != "none":
        scores[_EXTRACTION] += NAMED
    if prompt.tools:
        scores[_TOOL] += 4 if sums[_TOOL] == 0 else 6
    return scores


def _has_options(text: str) -> bool:
    """An examination question with lettered answers."""
    if "B" not in text or "C" not in text:
        return False
    return (
        ("\nB." in text and "\nC." in text) or ("\nB)" in text and "\nC)" in text) or ("(B)" in text and "(C)" in text)
    )


def _names(scores: list[int]) -> bool:
    return max(scores) >= NAMED


def _task(prompt: Prompt, scores: list[int], sums: list[int], words: list[str]) -> Task:
    if prompt.forced_tool or (prompt.turns and prompt.turns[-1].role == "tool"):
        return "code" if scores[_CODE] >= 6 and scores[_CODE] == max(scores) else "tool_use"
    greeting, scores[_GREETING] = scores[_GREETING], 0
    # In an agent's conversation "ok" means go on, not good day.
    alone = greeting and not prompt.tools and len(words) <= 7
    if alone and max(scores) <= 2 and len(words) - sums[_GREETING] // 12 <= 4:
        if _unknown(words) <= (1 if len(words) <= 4 else 2):
            return "greeting"
    best = max(scores)
    if best < NAMED:
        return "other"
    found: Task = lexicon.TASKS[scores.index(best)]  # type: ignore[assignment]
    return found


def _depth(text: str, counts: Counts, sums: list[int], questions: int) -> float:
    sentences, clauses = counts.stops, counts.commas
    if counts.leads:
        sentences, clauses = sentences + text.count("。"), clauses + text.count("、") + text.count("，")
    points = sums[_DEPTH] + min(2.0, sentences / 4) + min(2.0, clauses / 6) + 0.7 * min(5, max(0, questions - 1))
    return squash(points, 6.0)


def _constraints(sums: list[int], counts: Counts) -> int:
    return min(50, sums[_LIMITS] + min(20, counts.items))


def _ambiguity(prompt: Prompt, text: str, words: list[str], watched: Set[str], sums: list[int], task: Task) -> float:
    if task == "greeting":
        return 0.0
    points = float(sums[_VAGUE])
    if task in ("other", "creative") and any(f" {choice} " in text for choice in lexicon.CHOICES & watched):
        points += 1.0
    if len(words) < 14 and not sums[_GIVEN] and len(prompt.turns) < 2 and not prompt.images and not prompt.documents:
        points += sums[_PRONOUN]
    if len(words) < 4:
        points += 4 - len(words)
    return squash(points, 4.0) * (1.0 if len(words) < 40 else 40 / len(words))


def _languages(sums: list[int], words: list[str]) -> tuple[str, ...]:
    """By stop words: the best, and others that come close to it in a text long enough to hold two languages."""
    counted = sums[_LANGUAGES:]
    *_, second, best = sorted(counted)
    if best < (1 if len(words) < 16 else 2):
        return ()
    if second < best and (second < 6 or second * 5 < best * 4):
        return (lexicon.LANGUAGES[counted.index(best)],)
    near = [index for index, n in enumerate(counted) if n == best or (n >= 6 and n * 5 >= best * 4)]
    near.sort(key=lambda index: -counted[index])  # stable: of equals the first
    return tuple(lexicon.LANGUAGES[index] for index in near[:1] if counted[index]) + tuple(
        lexicon.LANGUAGES[index] for index in near[1:3] if counted[index] >= 6
    )
