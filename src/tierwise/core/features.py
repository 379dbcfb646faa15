"""Reads a prompt once and writes down all that a decision may know of it. Linear in the text, which is capped.

What is read: the beginning and the end of the last message, of the system prompt and of the last turns. Of everything
else only the length. Nothing of the text leaves this file but counts, scores and hashes.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Set
from typing import Any

import msgspec

from tierwise.core import lexicon, tasks, templates
from tierwise.core.grams import grams
from tierwise.core.request import Features, Prompt, Turn
from tierwise.core.text import Counts, count, digest, ends, hashed, scripts, single_spaced, squash, words

# Characters that are read of one text: beginning, end.
LAST_READ = (6_000, 2_000)
SYSTEM_READ = (3_000, 1_000)
TURN_READ = (600, 200)
TURNS_READ = 12  # of the turns before the last message
KEYWORD_READ = (24_000, 8_000)  # of each text that keywords are looked for in
HASHED = (24_000, 8_000)
SYSTEMS_KEPT = 256

# Tokens that no text accounts for. Role markers and turn ends: OpenAI's counting recipe gives 3 a message and 3 a
# reply. Tool names and schemas: measured on JSON, about a quarter of a token a byte.
TURN_TOKENS = 4
REPLY_TOKENS = 3
SCHEMA_TOKENS_PER_BYTE = 0.25
# Expected: a picture of about a megapixel is 765 to 1,600 tokens at OpenAI and Anthropic, 258 a tile at Google; a
# minute of speech about 600 at OpenAI (10 a second); a page of PDF 1,500 to 3,000 at Anthropic.
IMAGE_TOKENS, AUDIO_TOKENS, DOCUMENT_TOKENS = 1_000, 600, 6_000
# Bounds: no image costs more on today's flagships (Anthropic's high resolution 4,784; OpenAI's 1,445 to 2,489; Google's
# tiles of a 4k picture 9,288). The known exception is gpt-4o-mini, which counts up to 48,169 at 1/17 of the price.
IMAGE_BOUND = 10_000
# Google counts 32 tokens a second of sound, and speech codecs go down to about 6 kbit/s, that is 1,000 characters of
# base64 a second. By reference the length is unknown: an hour.
AUDIO_BOUND_PER_BYTE, AUDIO_BOUND = 0.032, 115_200
# At most 100 pages of 3,000 tokens (Anthropic's limit and range); of an embedded file at most a token a character.
DOCUMENT_BOUND = 300_000
# Providers add instructions of their own when there are tools (Anthropic documents up to 675 tokens).
TOOLS_BOUND, PROMPT_BOUND = 800, 16


class _Text(msgspec.Struct, frozen=True):
    """What was read of the turns. `last`: the last user message, or the last of all when there is none."""

    last: str
    system: _System
    before: str  # the user's message before the last
    unread: int  # characters of the last message that are not in `last`
    counts: Counts  # of `last`
    tokens: float  # of all turns
    last_tokens: float
    characters: int


def extract(prompt: Prompt, keywords: tuple[str, ...] = (), *, with_grams: bool = False) -> Features:
    """Everything that `decide` may know of the prompt. Never raises, whatever the text; depends on nothing else."""
    text = _read(prompt.turns)
    folded, system = text.last.casefold(), text.system
    own = words(folded)
    # A system prompt alone is the message itself.
    beside = system if len(prompt.turns) > 1 else _NO_SYSTEM
    seen = tasks.read(prompt, text.last, own, text.counts, beside.orders, text.before)
    template = templates.find(beside.triggers | templates.triggers(seen.watched), beside.folded, folded)
    return Features(
        input_tokens=_tokens(prompt, text),
        input_bound_tokens=_bound(prompt),
        characters=text.characters,
        turns=len(prompt.turns),
        system_hash=system.digest,
        template_hash=_template_hash(prompt, system, template.name if template else ""),
        intent_hash=_intent_hash(folded, text.unread),
        template=template.name if template else "",
        tools=len(prompt.tools),
        tool_calls=prompt.tool_calls,
        forced_tool=prompt.forced_tool,
        images=prompt.images,
        audio=prompt.audio,
        documents=prompt.documents,
        code=seen.code,
        math=seen.math,
        languages=_languages(text.counts, seen.languages),
        depth=seen.depth,
        constraints=seen.constraints,
        wanted_tokens=_wanted_tokens(folded, seen.watched),
        ambiguity=seen.ambiguity,
        complexity=_complexity(prompt, seen, text.last_tokens),
        task=template.task if template and not prompt.forced_tool else seen.task,
        structured=prompt.structured,
        max_tokens=prompt.max_tokens,
        searches=prompt.searches,
        reasoning_tokens=prompt.reasoning_tokens,
        n=prompt.n,
        references=prompt.references,
        replied=prompt.replied,
        tail_hash=prompt.tail_hash,
        grams=grams(folded) if with_grams else b"",
        keywords=_found(prompt.turns, keywords) if keywords else (),
    )


class _System(msgspec.Struct, frozen=True):
    """What a system prompt says. Nearly every request of a workload brings the same one, so it is read once."""

    folded: str = ""  # as far as it is read
    triggers: frozenset[str] = frozenset()
    orders: tuple[tuple[int, int], ...] = ()
    tokens: float = 0.0
    digest: str = ""
    skeleton: Any = None  # hashed without digits, so that a date or a counter does not make a new workload every day


_NO_SYSTEM = _System(skeleton=hashed(b""))


@functools.lru_cache(maxsize=SYSTEMS_KEPT)
def _system(text: str, length: int) -> _System:
    """Of the whole text, bounded for hashing, and its length without bound."""
    if not text:
        return _NO_SYSTEM
    read = ends(text, *SYSTEM_READ)
    folded = read.casefold()
    found = words(folded)
    return _System(
        folded=folded,
        triggers=templates.triggers(found),
        orders=tasks.orders(found),
        tokens=count(read).tokens,
        digest=digest(text, str(length)),
        skeleton=hashed(text.encode("utf-8", "surrogatepass").translate(None, b"0123456789")),
    )


def _read(turns: tuple[Turn, ...]) -> _Text:
    if len(turns) == 1:  # the most frequent prompt of all
        text = turns[0].text
        last = ends(text, *LAST_READ)
        counts = count(last)
        tokens = _scaled(counts.tokens, last, text)
        said = _said(turns) if turns[0].role == "system" else _NO_SYSTEM
        return _Text(last, said, "", len(text) - len(last), counts, tokens, tokens, len(text))
    characters = sum([len(turn.text) for turn in turns])
    users = _users(turns)
    at = users[0] if users else len(turns) - 1
    whole = turns[at].text if turns else ""
    last = ends(whole, *LAST_READ)
    counts = count(last)
    last_tokens = _scaled(counts.tokens, last, whole)
    tokens, covered = last_tokens, len(whole)
    for index in (*range(min(2, len(turns))), *range(max(2, len(turns) - TURNS_READ), len(turns))):
        if index != at:
            own = turns[index].text
            if turns[index].role == "system":
                tokens += _scaled(_system(ends(own, *HASHED), len(own)).tokens, ends(own, *SYSTEM_READ), own)
            else:
                part = ends(own, *TURN_READ)
                tokens += _scaled(count(part).tokens, part, own)
            covered += len(own)
    if covered and covered < characters:
        tokens *= characters / covered
    elif covered < characters:
        tokens = characters / 4
    before = turns[users[1]].text[: TURN_READ[0]] if len(users) > 1 else ""
    return _Text(last, _said(turns), before, len(whole) - len(last), counts, tokens, last_tokens, characters)


def _users(turns: tuple[Turn, ...]) -> list[int]:
    """Where the user's last two messages stand, the last one first."""
    found: list[int] = []
    for index in range(len(turns) - 1, max(-1, len(turns) - 200), -1):
        if turns[index].role == "user":
            found.append(index)
            if len(found) == 2:
                break
    return found


def asked(prompt: Prompt) -> str:
    """The last message as far as it is read: what its grams are made of, by `extract` or later by the journal."""
    turns = prompt.turns
    users = _users(turns) if len(turns) > 1 else []
    return ends(turns[users[0] if users else -1].text, *LAST_READ) if turns else ""


def _scaled(tokens: float, read: str, whole: str) -> float:
    return tokens if len(read) >= len(whole) else tokens * len(whole) / len(read)


def _said(turns: tuple[Turn, ...]) -> _System:
    """The system prompt: all that is among the first turns."""
    found = _systems(turns)
    if not found:
        return _NO_SYSTEM
    text = _whole(found)
    # Several long ones together are not kept, so that what is kept has a bound.
    read = _system if len(text) <= sum(HASHED) + 1 else _system.__wrapped__
    return read(text, sum(map(len, found)))


def _systems(turns: tuple[Turn, ...]) -> list[str]:
    return [turn.text for turn in turns[:8] if turn.role == "system"]


def _whole(texts: list[str]) -> str:
    """Of a system prompt, bounded for hashing."""
    return "\n".join([ends(text, *HASHED) for text in texts])


# "5,000 words", "800-word": the unit is looked for first, for a pattern that begins with a digit tries every character.
_LENGTH = re.compile(r"(?<![\d.,])(\d{1,3}[.,]\d{3}|\d{2,5})[ -](?:words?\b|wörter|worte\b|mots\b|palabras\b|parole\b)")
_AROUND = (9, 10)  # characters before a unit and from it on that the pattern needs, one more at each end
TOKENS_PER_WORD = 1.4


def _wanted_tokens(folded: str, watched: Set[str]) -> int:
    """Of "write 5,000 words": the highest number of words that is named. A text of that length may be meant as material
    as well; then it is in the prompt, and longer than the number."""
    most = 0
    # Beyond ASCII other signs end a word than `words` knows.
    for unit in lexicon.UNIT_WORDS & watched if folded.isascii() else lexicon.UNITS:
        at = folded.find(unit, 3)
        while at >= 0:
            if folded[at - 2].isdigit():
                around = folded[max(0, at - _AROUND[0]) : at + _AROUND[1]]
                named = [int(number.replace(",", "").replace(".", "")) for number in _LENGTH.findall(around)]
                most = max(most, *named, 0)
            at = folded.find(unit, at + 1)
    return math.ceil(TOKENS_PER_WORD * most)


def _tokens(prompt: Prompt, text: _Text) -> int:
    tokens = text.tokens + TURN_TOKENS * len(prompt.turns) + REPLY_TOKENS
    if prompt.tools or prompt.tool_calls or prompt.schema_hash:
        # Schemas and call arguments are in the body and not in the turns. Escapes make this an overestimate, so it is
        # held to what tools of a usual size need.
        rest = prompt.size_bytes - prompt.embedded_bytes - text.characters - 40 * len(prompt.turns)
        usual = 300 + 600 * len(prompt.tools) + 500 * prompt.tool_calls
        tokens += min(max(0.0, rest * SCHEMA_TOKENS_PER_BYTE), usual)
    tokens += IMAGE_TOKENS * prompt.images + AUDIO_TOKENS * prompt.audio + DOCUMENT_TOKENS * prompt.documents
    return math.ceil(tokens)


def _bound(prompt: Prompt) -> int:
    """No tokenizer makes more. Byte-level tokenizers make at most a token a byte, JSON only lengthens a text, and the
    JSON around a message is longer than any chat template's markers."""
    embedded = prompt.embedded_bytes
    bound = max(0, prompt.size_bytes - embedded) + PROMPT_BOUND + IMAGE_BOUND * prompt.images
    if prompt.tools:
        bound += TOOLS_BOUND
    if prompt.audio:
        bound += math.ceil(embedded * AUDIO_BOUND_PER_BYTE) + (0 if embedded else AUDIO_BOUND * prompt.audio)
    # What is embedded is at most a token a character, whatever it is; what is only referred to may be of any length.
    bound += min(embedded, DOCUMENT_BOUND * prompt.documents) + DOCUMENT_BOUND * prompt.references
    return bound


def _template_hash(prompt: Prompt, system: _System, template: str) -> str:
    if not (system.digest or prompt.tools or prompt.schema_hash or template):
        return ""
    found = system.skeleton.copy()
    for part in (*sorted(prompt.tools), prompt.schema_hash, prompt.structured, template):
        found.update(f"\x1f{part}".encode("utf-8", "surrogatepass"))
    skeleton: str = found.hexdigest()
    return skeleton


def _languages(counts: Counts, spoken: tuple[str, ...]) -> tuple[str, ...]:
    """By script and by stop words."""
    return tuple(dict.fromkeys((*scripts(counts), *spoken)))[:3] if counts.leads else spoken


def _intent_hash(folded: str, unread: int) -> str:
    """Of the last question, whatever its case, its spacing and the punctuation at its ends. Digits and everything
    within stay: "5-3" and "5 3" are different questions."""
    asked = single_spaced(folded).strip(" .,;:!?…。！？¿¡\"'")
    if not asked:
        return ""
    return digest(asked, str(unread) if unread > 0 else "")


def _complexity(prompt: Prompt, seen: tasks.Reading, last_tokens: float) -> float:
    """0..1 from seven parts, each saturating, so that no single word moves it far. Reasons: docs/estimator.md."""
    if seen.task == "greeting":
        return 0.0
    size = min(1.0, math.log2(1.0 + last_tokens / 64.0) / 9.0)
    total = (
        0.30 * size
        + 0.80 * seen.depth
        + 0.35 * squash(seen.constraints, 6.0)
        + 0.20 * seen.code
        + 0.32 * seen.math
        + 0.12 * seen.ambiguity
        + 0.12 * squash(len(prompt.turns) - 1, 10.0)
    )
    return round(1.0 - math.exp(-total), 4)


# ------------------------------------------------------------------------------------------------ keywords


def _found(turns: tuple[Turn, ...], keywords: tuple[str, ...]) -> tuple[str, ...]:
    """The keywords that the system prompt or the last message contains as whole words, casefolded and sorted."""
    wanted = _prepared(keywords)
    last = next((turn.text for turn in turns[:-200:-1] if turn.role == "user"), turns[-1].text if turns else "")
    texts = [ends(text, *KEYWORD_READ).casefold() for text in (last, _whole(_systems(turns))) if text]
    spaced = [single_spaced(text) for text in texts]
    return tuple(keyword for keyword in wanted if any(_contains(text, keyword) for text in spaced))


@functools.lru_cache(maxsize=64)
def _prepared(keywords: tuple[str, ...]) -> tuple[str, ...]:
    folded = (single_spaced(keyword.casefold()) for keyword in keywords)
    return tuple(sorted({keyword for keyword in folded if keyword}))


def _contains(text: str, keyword: str) -> bool:
    at = text.find(keyword)
    while at >= 0:
        end = at + len(keyword)
        before = at == 0 or not _joined(text[at - 1], keyword[0])
        if before and (end == len(text) or not _joined(keyword[-1], text[end])):
            return True
        at = text.find(keyword, at + 1)
    return False


def _joined(left: str, right: str) -> bool:
    """Both belong to one word. Scripts without spaces (Thai, kana, Han) have no word boundary to keep to."""
    return left.isalnum() and right.isalnum() and not (_unspaced(left) or _unspaced(right))


def _unspaced(letter: str) -> bool:
    code = ord(letter)
    return 0x0E00 <= code < 0x1000 or 0x2E80 <= code < 0xA000 or code >= 0x20000
