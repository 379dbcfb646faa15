"""How good a simulated model is at a question: seeded draws, difficulty, and the law that decides right or wrong.

The law is a latent-trait model: a model answers rightly when its skill less the question's difficulty, plus luck that
every model shares on this question, plus luck of its own, is above zero. Stronger models are therefore right more
often, and a weak model is now and then right where a strong one is not, as in life.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from hashlib import blake2b

import msgspec

from tierwise.core.catalogue import Model

# Slope of skill against difficulty, and how much of the luck belongs to the question rather than to the model.
SLOPE = 10.0
SHARED_LUCK = 0.5

_MAX_OPERATIONS = 16
_MAX_EXPONENT = 32
_MAX_MAGNITUDE = 10**30

BASE_DIFFICULTY = {
    "greeting": 0.05,
    "extraction": 0.30,
    "classification": 0.30,
    "summarisation": 0.35,
    "translation": 0.35,
    "code": 0.45,
    "reasoning": 0.45,
    "creative": 0.35,
    "moderation": 0.35,
    "tool_use": 0.30,
    "other": 0.35,
}

_CUES = {
    "moderation": ("moderate th", "is this safe", "harmful", "policy violation", "flag this", "toxic", "unsafe"),
    "translation": ("translate", "translation of", "say in french", "say in spanish", "say in german"),
    "summarisation": ("summar", "tl;dr", "tldr", "shorten th", "key points"),
    "classification": ("classify", "categor", "sentiment", "positive or negative", "spam", "one of:", "label"),
    "extraction": ("extract", "find all", "list all", "pull out", "list the email"),
    "code": ("function", "python", "javascript", "code", "```", "def ", "sql", "regex", "algorithm", "refactor"),
    "creative": ("poem", "haiku", "story", "slogan", "joke", "lyrics", "tagline", "limerick"),
    "reasoning": ("prove", "step by step", "derive", "how many", "how much", "why ", "compare", "calculate", "solve"),
}
_GREETING = re.compile(r"\s*(?:hi|hello|hey|howdy|good (?:morning|afternoon|evening)|thanks|thank you|bye)\b", re.I)
_ARITHMETIC_CUES = (
    "what is",
    "what's",
    "calculate",
    "compute",
    "how much",
    "solve",
    "evaluate",
    "=",
    "result",
    "work out",
)
_OPERATION = re.compile(r"\d\s{0,3}(?:[-+*/×÷−^x%)]|plus|minus|times|multiplied|divided)")
_EXPRESSION = re.compile(r"[-(]{0,8}\d[\d.]*[\s)]{0,8}(?:(?:\*\*|[-+*/^])[\s(\-]{0,8}\d[\d.]*[\s)]{0,8})+")
_TOKEN = re.compile(r"\*\*|[-+*/^()]|\d+(?:\.\d+)?")
_WORDS: tuple[tuple[str, str], ...] = (
    ("multiplied by", "*"),
    ("divided by", "/"),
    ("plus", "+"),
    ("minus", "-"),
    ("times", "*"),
)
_WORDS += (("×", "*"), ("÷", "/"), ("−", "-"))


class Draw(msgspec.Struct, frozen=True):
    """A source of numbers that depend on nothing but its key."""

    key: bytes

    def of(self, salt: str) -> float:
        """A number in 0..1, both ends excluded, always the same for the same key and salt."""
        digest = blake2b(salt.encode(), key=self.key, digest_size=7).digest()
        return (int.from_bytes(digest, "big") + 0.5) / (1 << 56)

    def below(self, n: int, salt: str) -> int:
        """A whole number in 0..n-1."""
        return int(self.of(salt) * n)


class Luck(msgspec.Struct, frozen=True):
    """How an answer turns out: right or not, and how sure the model is of it (0..1)."""

    right: bool
    confidence: float


def luck(model: Model, task: str, difficulty: float, question: Draw, own: Draw) -> Luck:
    """`question` is keyed by the question alone, `own` by the model and the whole conversation as well."""
    margin = (
        SLOPE * (skill_of(model, task) - difficulty)
        + SHARED_LUCK * _logit(question.of("question"))
        + _logit(own.of("own luck"))
    )
    # Confidence follows the margin with noise of its own: it tells right from wrong often, and not always.
    confidence = 1 / (1 + math.exp(-max(-30.0, min(30.0, 0.6 * margin + 0.8 * _logit(own.of("doubt"))))))
    return Luck(right=margin > 0, confidence=min(0.999, max(0.02, confidence)))


def skill_of(model: Model, task: str) -> float:
    return dict(model.skills).get(task, model.skill)


def task_of(text: str) -> str:
    """The kind of work that a prompt asks for: the earliest cue in it wins. Reads the beginning and the end only."""
    window = window_of(text).lower()
    found = [(place, task) for task, cues in _CUES.items() for cue in cues if (place := window.find(cue)) >= 0]
    if found:
        return min(found)[1]
    return "greeting" if len(text) < 80 and _GREETING.match(text) else "other"


def window_of(text: str) -> str:
    """What is read of a long prompt: instructions stand at its beginning or its end."""
    return text if len(text) <= 600 else f"{text[:400]}\n{text[-200:]}"


def difficulty_of(task: str, text: str, arithmetic: Arithmetic | None = None) -> float:
    """0..1. Arithmetic by its digits and operations, everything else by its kind and length."""
    if arithmetic is not None:
        return arithmetic.difficulty
    return min(0.95, BASE_DIFFICULTY.get(task, 0.35) + min(0.3, len(text) / 6_000))


class Arithmetic(msgspec.Struct, frozen=True):
    """A sum found in a prompt, as it was written there and as it comes out."""

    text: str
    value: Fraction
    difficulty: float

    def answer(self, right: bool, own: Draw) -> str:
        """The value, or a wrong one that is off in one digit."""
        if right:
            return _number(self.value)
        digits = max(1, len(str(abs(int(self.value)))) - 1)
        slip = (1 + own.below(3, "slip")) * 10 ** own.below(digits, "digit")
        return _number(self.value + (slip if own.of("sign") < 0.5 else -slip))


def arithmetic_in(text: str, task: str) -> Arithmetic | None:
    """The first sum in a prompt that asks for its result; None for dates, telephone numbers and other tasks."""
    if task not in ("reasoning", "other"):
        return None
    window = window_of(text)
    if _OPERATION.search(window) is None:
        return None
    window = window.lower()
    for word, sign in _WORDS:
        window = window.replace(word, sign)
    window = re.sub(r"(\d+(?:\.\d+)?)\s*%\s*of\s*(\d[\d.]*)", r"(\1/100*\2)", window)
    window = re.sub(r"(?<=\d)\s*x\s*(?=\d)", " * ", window)
    window = re.sub(r"(?<=\d),(?=\d{3})", "", window)
    match = _EXPRESSION.search(window)
    if match is None:
        return None
    written = match.group().strip()
    shown = re.sub(r"\((\d+(?:\.\d+)?)/100\*(\d[\d.]*)\)", r"\1% of \2", written)
    asked = len(written) * 2 > len(text) or any(cue in window for cue in _ARITHMETIC_CUES)
    value = _evaluate(written) if asked else None
    if value is None:
        return None
    digits = sum(character.isdigit() for character in written)
    operations = len(re.findall(r"\d\s*\)*\s*[-+*/^]", written))
    hard = len(re.findall(r"\*\*|[*/^]", written))
    return Arithmetic(shown, value, min(0.95, 0.04 * digits + 0.10 * (operations - 1) + 0.12 * hard))


def _evaluate(written: str) -> Fraction | None:
    """The value of an expression, None when it is none or absurdly large."""
    tokens = _TOKEN.findall(written)
    if len(tokens) > 4 * _MAX_OPERATIONS:
        return None
    # Brackets that text left unbalanced are the text's own, as in "(what is 2+2)".
    if tokens.count("(") != tokens.count(")"):
        tokens = [part for part in tokens if part not in "()"]
    tokens.reverse()
    try:
        value = _sum(tokens)
    except (ZeroDivisionError, IndexError, ValueError, OverflowError):
        return None
    return value if not tokens and abs(value) < _MAX_MAGNITUDE else None


def _sum(tokens: list[str]) -> Fraction:
    value = _product(tokens)
    while tokens and tokens[-1] in "+-":
        value = value + _product(tokens) if tokens.pop() == "+" else value - _product(tokens)
    return value


def _product(tokens: list[str]) -> Fraction:
    value = _power(tokens)
    while tokens and tokens[-1] in ("*", "/"):
        value = value * _power(tokens) if tokens.pop() == "*" else value / _power(tokens)
    return value


def _power(tokens: list[str]) -> Fraction:
    value = _atom(tokens)
    if tokens and tokens[-1] in ("^", "**"):
        tokens.pop()
        exponent = _power(tokens)
        if exponent.denominator != 1 or abs(exponent) > _MAX_EXPONENT or abs(value) > _MAX_MAGNITUDE:
            raise OverflowError
        return Fraction(value**exponent.numerator)
    return value


def _atom(tokens: list[str]) -> Fraction:
    part = tokens.pop()
    if part == "-":
        return -_power(tokens)
    if part != "(":
        return Fraction(part)
    value = _sum(tokens)
    if tokens.pop() != ")":
        raise ValueError
    return value


def _number(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.4f}".rstrip("0").rstrip(".")


def _logit(u: float) -> float:
    return math.log(u / (1 - u))
