"""Predicts, for a request and a model, the chance of an adequate answer, the output tokens and the latency.

The built-in estimator is reasoned, not trained: a logistic curve of how much the model's strength exceeds the request's
difficulty. Its numbers are below with their reasons, its measured worth is in docs/estimator.md, and its intervals are
wide because nobody has checked it on the owner's traffic. A trained estimator fills the same `Estimate`.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, exp

import msgspec

from tierwise.core.catalogue import Model
from tierwise.core.episode import Range
from tierwise.core.learned import Score, Trained, heads
from tierwise.core.request import Features, Task


class Estimate(msgspec.Struct, frozen=True):
    quality: Range  # chance of an adequate answer
    output_tokens: int  # expected, reasoning included
    latency_ms: int  # expected, to the last token


class BuiltIn(msgspec.Struct, frozen=True, kw_only=True, tag="built_in", omit_defaults=True):
    """The estimator of a first install: rules and weights that nobody trained."""

    version: int = 1


Estimator = BuiltIn | Trained


class TaskWeights(msgspec.Struct, frozen=True):
    """Of one kind of task: difficulty on the scale of `Model.skill` for the plainest request of its kind, what the full
    complexity adds, the tokens of a plain answer, and what the full complexity adds to those."""

    floor: float
    slope: float
    tokens: int
    more_tokens: int
    share: float = 0.0  # of the prompt's tokens, of which so many count at most, that come back in the answer
    of_tokens: int = 0


# A difficulty equal to a model's skill means an even chance. Below zero every model of today is at home: small talk,
# copying a value out of a text, choosing one of a few labels. Open questions begin where a small local model (skill
# about .35) is mostly right. Programs and proofs begin where it mostly is not, and at half the complexity they pass a
# mid-sized one (.6). Lengths are those of replies to such requests in chat logs and of ordinary answers, as orders of
# magnitude: a label, a paragraph, a page.
TASK_WEIGHTS: dict[Task, TaskWeights] = {
    "greeting": TaskWeights(-0.60, 0.20, 25, 50),
    "extraction": TaskWeights(-0.44, 0.95, 60, 400, 0.05, 8_000),
    "classification": TaskWeights(-0.50, 0.90, 20, 80),
    "moderation": TaskWeights(-0.42, 0.85, 20, 80),
    "embedding": TaskWeights(-0.60, 0.00, 0, 0),
    "translation": TaskWeights(-0.02, 0.60, 60, 200, 0.8, 4_000),
    "summarisation": TaskWeights(0.00, 0.70, 160, 400, 0.03, 20_000),
    "other": TaskWeights(0.10, 0.90, 170, 500),
    "creative": TaskWeights(0.10, 0.65, 300, 600),
    "tool_use": TaskWeights(0.22, 0.80, 120, 300),
    "code": TaskWeights(0.20, 0.95, 260, 450),
    "reasoning": TaskWeights(0.12, 1.20, 200, 420),
}

# From HARD on difficulty only creeps up, and never by more than HARDER: words cannot tell hard from hopeless, and if
# they could, the hardest requests would go to the cheapest model because no model could do them.
HARD, HARDER = 0.60, 0.18
STEEPNESS = 10.0  # a tenth of strength more is worth up to 24 points of quality: tiers must differ to be worth a choice
MOST_SHORT = 4.0  # of the difficulty; beyond it exp() has nothing to say, and one day overflows
CEILING = 0.985  # nobody is adequate always: misread requests, refusals, moods
IMAGE_DIFFICULTY = 0.08  # seeing and reading besides answering
FOREIGN_DIFFICULTY = 0.05  # other than the European languages that models are trained on most
SCHEMA_DIFFICULTY = 0.03  # a form to keep
LONG_DIFFICULTY = 0.12  # the whole of it at very long prompts: what stands in the middle gets lost
AMBIGUITY_DIFFICULTY = 0.05  # guessing what was meant
CODE_SHARE = 0.04  # code or mathematics in a task of another name
COMMON = frozenset(("en", "de", "fr", "es", "it", "pt", "nl"))

# Half the interval, in strength. `skill` is one number for everything a model can do, typed in by the owner or taken
# from a table, and difficulty is guessed from words: neither is better than a tier's distance to the next.
DOUBT = 0.12
DOUBT_NO_TASK = 0.04  # no cue named a task
DOUBT_NO_LANGUAGE = 0.02
DOUBT_AMBIGUOUS = 0.06
DOUBT_UNSEEN = 0.06  # images, sound and documents: their content was not read at all
DOUBT_LONG = 0.05

# Hidden thoughts, as a share of the visible answer, of models that think when not told to; and how much of a thinking
# budget is used. Providers bill both as output.
THINKING_SHARE = 0.6
THINKING_USED = 0.35
# Reading is fast beside writing: a hundred input tokens take as long as one output token, as an order of magnitude.
PREFILL_PER_TOKEN = 0.01
SLOWEST = 0.1  # tokens per second that are believed, so that a zero in a table is slow and not an error


class Outlook(msgspec.Struct, frozen=True):
    """What an estimate needs of the features alone: made once for all models."""

    task: Task
    difficulty: float
    doubt: float
    tokens: int  # of one answer, and of its thoughts when the caller gave a budget for them
    thinking_tokens: int  # the same of a model that thinks when not told to
    most_tokens: int | None  # of one answer and its thoughts, as far as the caller said
    replies: int
    reading: float  # of the prompt, in output tokens that take as long


def estimate(estimator: Estimator, features: Features, model: Model, workload: str = "") -> Estimate:
    """The estimate for one model. For several, `estimate_all` does the common part once."""
    return estimate_all(estimator, features, (model,), workload)[0]


def estimate_all(
    estimator: Estimator, features: Features, models: Iterable[Model], workload: str = ""
) -> tuple[Estimate, ...]:
    """One estimate per model, in their order. What training has not seen (a model, a length, a speed) is reasoned."""
    view = outlook(features)
    match estimator:
        case BuiltIn():
            return tuple([_one(view, model) for model in models])
        case Trained():
            known = heads(estimator).scores(features, workload)
            return tuple([_one(view, model, known.get(model.id)) for model in models])


def outlook(features: Features) -> Outlook:
    """Difficulty on the scale of `Model.skill`, half the interval on that scale, and the length of a plain answer."""
    task, ambiguity, languages = features.task, features.ambiguity, features.languages
    weights, long = TASK_WEIGHTS[task], features.input_tokens / 100_000
    if long > 1.0:
        long = 1.0
    difficulty = weights.floor + weights.slope * features.complexity + LONG_DIFFICULTY * long
    difficulty += AMBIGUITY_DIFFICULTY * ambiguity
    doubt = DOUBT + DOUBT_NO_TASK if task == "other" else DOUBT
    # No language means no words to speak of (a label, a name, a piece of code), which is not a foreign language.
    if not languages:
        doubt += DOUBT_NO_LANGUAGE
    elif languages[0] not in COMMON:
        difficulty += FOREIGN_DIFFICULTY
        doubt += DOUBT_NO_LANGUAGE
    doubt += DOUBT_AMBIGUOUS * ambiguity
    if features.images or features.audio or features.documents:
        difficulty += IMAGE_DIFFICULTY
        doubt += DOUBT_UNSEEN
    doubt += DOUBT_LONG * long
    if features.structured == "schema":
        difficulty += SCHEMA_DIFFICULTY
    if task not in ("code", "reasoning"):
        difficulty += CODE_SHARE * (features.code if features.code > features.math else features.math)
    if difficulty > HARD:
        difficulty = HARD + HARDER * (1.0 - exp((HARD - difficulty) / HARDER))
    tokens = _visible_tokens(features, weights)
    if features.reasoning_tokens:
        tokens = thinking = tokens + THINKING_USED * features.reasoning_tokens
    else:
        thinking = tokens + THINKING_SHARE * tokens * min(1.0, max(0.0, difficulty + 0.3))
    return Outlook(
        task=task,
        difficulty=difficulty,
        doubt=doubt,
        tokens=ceil(tokens),
        thinking_tokens=ceil(thinking),
        most_tokens=None if features.max_tokens is None else features.max_tokens + features.reasoning_tokens,
        replies=features.n if features.n > 1 else 1,
        reading=PREFILL_PER_TOKEN * features.input_tokens,
    )


def _visible_tokens(features: Features, weights: TaskWeights) -> float:
    """Of one answer, before any ceiling."""
    tokens, wanted = weights.tokens + weights.more_tokens * features.complexity, features.wanted_tokens
    if weights.share:
        tokens += weights.share * min(features.input_tokens, weights.of_tokens)
    if wanted > tokens:
        tokens = wanted
    if features.forced_tool:
        tokens = min(tokens, 150.0)  # a call and its arguments
    elif features.structured != "none":
        tokens = min(tokens, 400.0)
    return tokens


def _one(view: Outlook, model: Model, score: Score | None = None) -> Estimate:
    """What training says of it in `score`, where it says so; the rest is reasoned."""
    tokens = latency_ms = None
    if score is not None and model.kind != "embedding":
        quality = Range(score.low, score.mid, score.high)
        tokens, latency_ms = score.output_tokens, score.latency_ms
    else:
        strength = model.skill
        for task, skill in model.skills:
            if task == view.task:
                strength = skill
        short, doubt = view.difficulty - strength, view.doubt
        most, least = short + doubt, short - doubt
        # Written out three times, for every candidate of every request comes by here.
        quality = Range(
            CEILING / (1.0 + exp(STEEPNESS * most)) if most <= MOST_SHORT else 0.0,
            CEILING / (1.0 + exp(STEEPNESS * short)) if short <= MOST_SHORT else 0.0,
            CEILING / (1.0 + exp(STEEPNESS * least)) if least <= MOST_SHORT else 0.0,
        )
    replies = view.replies
    if view.task == "embedding" or model.kind == "embedding":
        tokens = 0
    else:
        if tokens is None:  # of one answer, its thoughts included
            tokens = view.thinking_tokens if "reasoning" in model.abilities else view.tokens
        ceiling, asked = model.max_output_tokens, view.most_tokens
        if asked is not None and asked < ceiling:
            ceiling = asked
        if tokens > ceiling:
            tokens = ceiling
        tokens = tokens * replies if tokens > 1 else replies
    if latency_ms is None:
        rate = model.tokens_per_second
        # The answers of one request are written side by side, so `n` costs tokens and no time.
        writing = 1_000.0 * (tokens / replies + view.reading)
        latency_ms = ceil(model.first_token_ms + writing / (rate if rate > SLOWEST else SLOWEST))
    return Estimate(quality, tokens, latency_ms)
