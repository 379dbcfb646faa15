"""How many tokens a model makes of a text, learned from the usage that its provider reports.

Used where we have to count for ourselves, because a provider did not say. Decisions do not read it: they would then
depend on what other requests did, and could not be told again from their episode. No bound reads it either.

Of prompts, a ratio for each model and language: every report teaches it, since the estimate is there already. Of
replies, a `Spelling` for each model: that takes a count of the text, so only some replies teach it. Numbers only, no
text is kept, and for the life of the process.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import threading

import msgspec

from tierwise.core.catalogue import Model
from tierwise.core.request import Features
from tierwise.routing import spelling, tokens
from tierwise.routing.spelling import LEAST, MOST, Report, Spelling

_log = logging.getLogger("tierwise")

# Of prompts.
STEADY = 0.05  # share of the newest report once there are many
_MANY = round(1.0 / STEADY) - 2
LEAST_TOKENS = 32  # of a shorter text the provider's own frame is too large a part
_SETTLED = 8  # reports from which on one alone may not say that the ratio is more than _STEP times another
_STEP = 1.5

# Of replies. What one costs to learn from, some 0.1 ms, is spread over those that are passed over.
FIRST, EVERY = 24, 256  # of each kind: so many at once, afterwards one in so many
MOST_CHARACTERS = 8_000
KEPT = 320  # reports of one model, the newest of each kind
_STALE = 16  # learned again when more than one in so many is new

OURS = "o200k"
# Families of tokenizers that are public, by the names that providers give their models; the first that matches.
_FAMILIES = tuple(
    (re.compile(pattern, re.IGNORECASE), family)
    for pattern, family in (
        (r"gpt-4o|gpt-4\.[15]|gpt-5|gpt-oss|(?:^|/)o[134](?:-|$)", OURS),
        (r"gpt-4|gpt-3\.5|gpt-35", "cl100k"),
        (r"llama-?3", "llama-3"),
        (r"llama-?2|codellama", "llama-2"),
        (r"ministral|mistral-nemo|pixtral|devstral|magistral", "tekken"),
        (r"mixtral|mistral-7b", "mistral-1"),
        (r"qwen", "qwen"),
        (r"deepseek", "deepseek-v3"),
        (r"claude-2|claude-instant", "claude-2"),
    )
)


def family_of(name: str) -> str:
    """The family of tokenizers that a model of this name has, "" when that is not known. No more than a beginning: what
    the provider reports corrects it, save for `OURS`, which we count exactly."""
    return next((family for pattern, family in _FAMILIES if pattern.search(name)), "")


class Ratio(msgspec.Struct, frozen=True):
    value: float = 1.0
    reports: int = 0

    def after(self, seen: float) -> Ratio:
        """With one report more. What we begin with counts as one report."""
        value, reports = self.value, self.reports  # conditions and not min() and max(): every reply comes by here
        if reports >= _SETTLED:
            if seen > value * _STEP:
                seen = value * _STEP
            elif seen < value / _STEP:
                seen = value / _STEP
        share = STEADY if reports >= _MANY else 1.0 / (reports + 2)
        return Ratio(value + (seen - value) * share, reports + 1)


class Measured(msgspec.Struct, frozen=True):
    """The tokens of a text: as we count them, and as the model's own tokenizer may."""

    counted: int
    expected: int


class _Learned:
    """What one model's replies taught. `kept` by kind, the newest last."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.kept: dict[str, list[Report]] = {}
        self.new = 0
        self.spelling = Spelling((), family)

    def add(self, kind: str, report: Report) -> None:
        self.kept.setdefault(kind, []).append(report)
        self.new += 1
        if sum(map(len, self.kept.values())) > KEPT:
            max(self.kept.values(), key=len).pop(0)

    def renewed(self) -> Spelling:
        reports = [report for each in self.kept.values() for report in each]
        if self.new * _STALE > len(reports):
            self.spelling, self.new = Spelling(reports, self.family), 0
        return self.spelling


class Ratios:
    """By model. Threads may learn and measure at once."""

    def __init__(self) -> None:
        self._prompts: dict[tuple[str, str], Ratio] = {}  # (model, language), and (model, "*") of all
        self._seen: dict[tuple[str, str], int] = {}  # replies
        self._replies: dict[str, _Learned] = {}
        self._lock = threading.Lock()

    # -------------------------------------------------------------------------------------------- prompts

    def learn(self, model: str, language: str, estimated: int, reported: int) -> None:
        """Tokens of one prompt: as we estimated them, and as its provider reported them. A report that no tokenizer can
        have made is of something else."""
        if estimated < LEAST_TOKENS or not LEAST * estimated <= reported <= MOST * estimated:
            return
        seen, prompts = reported / estimated, self._prompts
        every, those = (model, "*"), (model, language)
        overall = prompts.get(every) or Ratio()
        own = prompts.get(those) or Ratio(overall.value)
        prompts[every] = renewed = overall.after(seen)
        prompts[those] = renewed if own == overall else own.after(seen)  # equal where all prompts are in one language

    def of(self, model: str, language: str = "*") -> Ratio:
        """What is known of this model's prompts; in a language that no prompt was in, what is of all of them."""
        found = self._prompts.get((model, language))
        return found or Ratio(self._prompts.get((model, "*"), Ratio()).value)

    def expected(self, model: str, language: str, estimated: int) -> int:
        """Our estimate of a prompt in the tokens of this model; at least 1."""
        found = self._prompts.get((model, language)) or self.of(model, language)
        tokens = math.ceil(estimated * found.value)
        return tokens if tokens > 1 else 1

    # -------------------------------------------------------------------------------------------- replies

    def due(self, model: Model, language: str, text: str, reported: int) -> bool:
        """Whether to learn from this reply. Asked of every reply, so it costs next to nothing."""
        if reported < LEAST_TOKENS or not LEAST_TOKENS <= len(text) <= MOST_CHARACTERS:
            return False
        key = model.id, _kind(language, text)
        self._seen[key] = seen = self._seen.get(key, 0) + 1
        return (seen <= FIRST or seen % EVERY == 0) and family_of(model.name) != OURS

    async def learn_reply(self, model: Model, language: str, text: str, reported: int) -> None:
        """The text that a model wrote, and the tokens that its provider reported for it. Off the event loop."""
        try:
            await asyncio.to_thread(self.learn_now, model, language, text, reported)
        except RuntimeError:
            _log.exception("nothing could be learned from a reply of %s", model.id)

    def learn_now(self, model: Model, language: str, text: str, reported: int) -> None:
        """The same, in the calling thread."""
        counted = tokens.count_now(text)
        if 0 < LEAST * counted <= reported <= MOST * counted:
            report = Report(spelling.spelled(text), counted, reported)
            with self._lock:
                self._learned(model).add(_kind(language, text), report)

    async def measured(self, model: Model, text: str) -> Measured:
        """The tokens of a text that this model wrote; `Measured(0, 0)` of none. Off the event loop."""
        if not text:
            return Measured(0, 0)
        counted = await tokens.count(text)
        if family_of(model.name) == OURS:
            return Measured(counted, counted)
        return await asyncio.to_thread(self.measured_now, model, text, counted)

    def measured_now(self, model: Model, text: str, counted: int) -> Measured:
        with self._lock:
            known = self._learned(model).renewed()
        return Measured(counted, max(1, round(counted * known.ratio(spelling.spelled(text), counted))))

    def _learned(self, model: Model) -> _Learned:
        if model.id not in self._replies:
            self._replies[model.id] = _Learned(family_of(model.name))
        return self._replies[model.id]


def language_of(features: Features) -> str:
    """The language that a prompt is in as far as it is known: one of few."""
    if features.code > 0.5:
        return "code"
    return features.languages[0] if features.languages else ""


_BEYOND = re.compile("[^\x00-\xff]")
_LOOKED_AT = 80  # characters


def _kind(language: str, text: str) -> str:
    """What a reply is sampled by, before anybody looks closer: the language of its prompt, and the block of its first
    character beyond Latin-1, if that comes soon. One of few as well."""
    if text.isascii():
        return language
    found = _BEYOND.search(text, 0, _LOOKED_AT)
    return f"{language}*{min(ord(found[0]) >> 7, 64) if found else 0}"
