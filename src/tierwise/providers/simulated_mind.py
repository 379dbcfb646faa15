"""What a simulated model says: plausible, short, honest about being simulated, and wrong as often as its skill says.

Everything here is a pure function of the question, the model and two seeded draws. Formats (JSON, streams, tool calls)
are elsewhere.
"""

from __future__ import annotations

import re

import msgspec

from tierwise.core.catalogue import Model
from tierwise.providers.simulated_skill import (
    Arithmetic,
    Draw,
    Luck,
    arithmetic_in,
    difficulty_of,
    luck,
    task_of,
    window_of,
)

_ONE_OF = re.compile(r"answer with exactly one of\s*:\s*([^\n]+)", re.I)
_GRADE = re.compile(r"(?:between|from) (\d+(?:\.\d+)?) (?:and|to) (\d+(?:\.\d+)?)", re.I)
_TERSE = re.compile(
    r"\b(?:only|just|nothing but) (?:the |a |with (?:the |a )?)?(?:\w+ )?(?:number|result|answer|value|label|word)"
    r"|\bno explanation|nothing else|single (?:word|number)",
    re.I,
)
_LABELS = re.compile(
    r"(?:one of|labels?|categories|options|choose from|classif\w+[^:\n]{0,60}? as|either)\b"
    r"\s*(?:are|is)?\s*:?\s*([^\n.?:]{3,200})",
    re.I,
)
_QUOTED = re.compile(r"[\"“'‘]([^\"”\n]{2,500})[\"”'’]")
_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}")
_URL = re.compile(r"https?://[^\s\"'<>)]{1,500}")
_DATE = re.compile(
    r"\b(?:\d{4}-\d{2}-\d{2}|\d{1,2}[./]\d{1,2}[./]\d{2,4}"
    r"|\d{1,2} (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]* \d{4})\b"
)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:[.,]\d+)*(?![\w])")
_NAME = re.compile(r"\b[A-Z][\w'-]+(?: [A-Z][\w'-]+)*")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]?")
_WORD = re.compile(r"[^\W\d_][\w'-]{2,}")

_DULL_WORDS = (
    "the and for with that this from have about what which when where how why who please can could would you your tell "
    "give write explain describe are was were will does did into than then them they their there say make need want me "
    "following text between short brief detailed sentence sentences words paragraph simple some not but all any "
    "poem haiku story joke slogan works detail number"
)
_DULL = frozenset(_DULL_WORDS.split())
_HARM = ("kill", "bomb", "hate", "attack", "weapon", "suicide", "malware", "ransomware", "idiot", "stupid", "poison")
_UNSAFE = ("unsafe", "harmful", "flagged", "block", "blocked", "toxic")
_GOOD = ("good", "great", "love", "excellent", "happy", "amazing", "wonderful", "perfect", "best", "fantastic", "thank")
_BAD = ("bad", "terrible", "hate", "awful", "worst", "broken", "angry", "disappoint", "poor", "never again", "refund")
# Words that mark a place on a scale from easy to hard; a question whose answers are all such words is about difficulty.
_SCALE = {"trivial": 0.0, "easy": 0.2, "simple": 0.2, "low": 0.2, "basic": 0.2, "small": 0.2, "fast": 0.2}
_SCALE |= {"medium": 0.4, "moderate": 0.4, "normal": 0.4, "hard": 0.65, "complex": 0.65, "difficult": 0.65}
_SCALE |= {"high": 0.65, "large": 0.65, "frontier": 0.65, "expert": 0.9}

_PHRASES = {
    "hello": {"french": "bonjour", "spanish": "hola", "german": "hallo", "italian": "ciao"},
    "thank you": {"french": "merci", "spanish": "gracias", "german": "danke", "italian": "grazie"},
    "good morning": {"french": "bonjour", "spanish": "buenos días", "german": "guten Morgen", "italian": "buongiorno"},
    "goodbye": {"french": "au revoir", "spanish": "adiós", "german": "auf Wiedersehen", "italian": "arrivederci"},
    "how are you": {
        "french": "comment allez-vous",
        "spanish": "cómo está",
        "german": "wie geht es Ihnen",
        "italian": "come sta",
    },
}
_LANGUAGE = re.compile(
    r"\b(french|spanish|german|italian|portuguese|dutch|polish|japanese|chinese|korean|arabic|hindi|russian|english)\b",
    re.I,
)

_PYTHON = {
    "fibonacci": (
        "def fibonacci(n: int) -> int:",
        "    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a",
    ),
    "factorial": (
        "def factorial(n: int) -> int:",
        "    result = 1\n    for i in range(2, n + 1):\n        result *= i\n    return result",
    ),
    "prime": (
        "def is_prime(n: int) -> bool:",
        "    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))",
    ),
    "revers": ("def reverse(text: str) -> str:", "    return text[::-1]"),
    "palindrome": ("def is_palindrome(text: str) -> bool:", "    return text == text[::-1]"),
    "sort": ("def sort_items(items: list) -> list:", "    return sorted(items)"),
}


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulated model reads of a request. `results`: (tool, text) of each tool result since the question."""

    system: str
    text: str
    results: tuple[tuple[str, str], ...] = ()
    images: int = 0


class Thought(msgspec.Struct, frozen=True, kw_only=True):
    """An answer and how it came about. `value`: the bare result, where the question has one."""

    task: str
    text: str
    luck: Luck
    difficulty: float
    value: str = ""


def think(model: Model, question: Question, shared: Draw, own: Draw, task: str = "") -> Thought:
    """Answer a question. `shared` is keyed by the question, `own` by the model and the conversation; `task` is given
    when it is known from the request (`tool_use`)."""
    if question.system:
        if match := _ONE_OF.search(question.system):
            return _choose(model, question, match.group(1), shared, own)
        if "answer with a single number" in (rule := question.system.lower()) or "grade" in rule or "score" in rule:
            bounds = _GRADE.search(question.system)
            if bounds is not None:
                return _grade(model, question, float(bounds.group(1)), float(bounds.group(2)), shared, own)
    text = question.text
    task = task or task_of(text)
    arithmetic = arithmetic_in(text, task)
    if arithmetic is not None:
        task = "reasoning"
    difficulty = difficulty_of(task, text, arithmetic)
    fate = luck(model, task, difficulty, shared, own)
    value = arithmetic.answer(fate.right, own) if arithmetic is not None else ""
    if question.results:
        said = _from_results(question.results)
    elif arithmetic is not None:
        said = value if _TERSE.search(text) else f"{arithmetic.text} = {value}"
    else:
        said = _answer(model, task, question, fate, own)
    return Thought(task=task, text=said, luck=fate, difficulty=difficulty, value=value)


def reasoning_of(thought: Thought, effort: str) -> str:
    """The thoughts a reasoning model writes before it answers; longer for harder questions and higher effort."""
    share = {"none": 0.0, "minimal": 0.1, "low": 0.4, "medium": 1.0, "high": 2.0, "xhigh": 3.0}.get(effort, 1.0)
    if not effort and thought.task not in ("reasoning", "code"):
        share = 0.0
    steps = round(share * (1 + 12 * thought.difficulty))
    if steps == 0:
        return ""
    plan = "".join(f" Step {i}: check what is known and what follows from it." for i in range(1, steps + 1))
    return f"This is a question of kind {thought.task}. I take it step by step.{plan}"


def _choose(model: Model, question: Question, listed: str, shared: Draw, own: Draw) -> Thought:
    """Answer a helper's question with one of the listed words."""
    answers = [word for part in listed.split(",") if (word := part.strip().strip("\"'`.").strip())] or [listed.strip()]
    task = task_of(question.text)
    arithmetic = arithmetic_in(question.text, task)
    difficulty = difficulty_of(task, question.text, arithmetic)
    fate = luck(model, "classification", 0.3, shared, own)
    lowered = [answer.lower() for answer in answers]
    text = question.text.lower()
    harm = any(word in text for word in _HARM)
    if all(word in _SCALE for word in lowered):
        place = min(range(len(answers)), key=lambda i: abs(_SCALE[lowered[i]] - difficulty))
    elif any(word in _UNSAFE for word in lowered):
        place = next((i for i, word in enumerate(lowered) if (word in _UNSAFE) == harm), 0)
    elif {"yes", "no"} <= set(lowered):
        place = lowered.index("yes" if harm or difficulty > 0.5 else "no")
    else:
        place = _label(lowered, text, task)
    if not fate.right and len(answers) > 1:
        place = (place + 1 + own.below(len(answers) - 1, "other")) % len(answers)
    return Thought(task="classification", text=answers[place], luck=fate, difficulty=difficulty, value=answers[place])


def _label(lowered: list[str], text: str, task: str) -> int:
    """The label that suits a text: by its task, by feeling, by its own words, else one picked by the text."""
    for i, label in enumerate(lowered):
        if label[:6] == task[:6]:
            return i
    feeling = sum(text.count(word) for word in _GOOD) - sum(text.count(word) for word in _BAD)
    wanted = "positive" if feeling > 0 else "negative" if feeling < 0 else "neutral"
    if wanted in lowered:
        return lowered.index(wanted)
    if "spam" in lowered:
        spam = any(word in text for word in ("win", "prize", "free", "click", "offer", "urgent"))
        return next((i for i, label in enumerate(lowered) if (label == "spam") == spam), 0)
    counts = [text.count(label) for label in lowered]
    if max(counts) > 0:
        return counts.index(max(counts))
    return sum(text.encode()) % len(lowered)


def _grade(model: Model, question: Question, low: float, high: float, shared: Draw, own: Draw) -> Thought:
    """Grade the reply quoted in a helper's question: sums are checked, other replies judged by how sure they sound."""
    fate = luck(model, "reasoning", 0.4, shared, own)
    text = question.text
    arithmetic = arithmetic_in(text, "reasoning")
    lowered = text.lower()
    if arithmetic is not None:
        rest = lowered.replace(arithmetic.text, " ")
        worth = 0.96 if arithmetic.answer(True, own) in re.findall(r"-?\d+(?:\.\d+)?", rest) else 0.05
    elif "not sure" in lowered or "i cannot" in lowered:
        worth = 0.2
    else:
        worth = 0.88
    if not fate.right:  # a poor judge: drawn towards the middle, and past it
        worth = 0.5 + (0.5 - worth) * own.of("bias")
    said = f"{low + (high - low) * min(1.0, max(0.0, worth + 0.04 * (own.of('hair') - 0.5))):.2f}"
    shown = f'{{"score": {said}}}' if "json" in question.system.lower() else said
    return Thought(task="classification", text=shown, luck=fate, difficulty=0.4, value=said)


def _from_results(results: tuple[tuple[str, str], ...]) -> str:
    shown = "; ".join(f"{tool} says {_clip(text.strip(), 300)}" if tool else _clip(text, 300) for tool, text in results)
    return f"Here is what I found: {shown}"


def _answer(model: Model, task: str, question: Question, fate: Luck, own: Draw) -> str:
    text = question.text
    match task:
        case "greeting":
            return f"Hello! I am {model.id}, a simulated model: no real model is behind me. What can I do for you?"
        case "classification" | "moderation":
            return _classify(task, text, fate, own)
        case "extraction":
            return _extract(text, fate)
        case "summarisation":
            return _summarise(text, fate)
        case "translation":
            return _translate(text, fate)
        case "code":
            return _code(text, fate)
        case "creative":
            return _poem(topic_of(text), fate)
        case _:
            return _talk(model, question, fate)


def _classify(task: str, text: str, fate: Luck, own: Draw) -> str:
    match = _LABELS.search(window_of(text))
    listed = re.split(r",|/|\bor\b|\band\b", match.group(1)) if match else []
    labels = [label for part in listed if 0 < len(label := part.strip(" \"'`():;[]")) <= 40]
    if len(labels) < 2:
        usual = ("unsafe", "safe") if task == "moderation" else ("positive", "negative", "neutral")
        labels = ["spam", "not spam"] if "spam" in text.lower() else list(usual)
    lowered = [label.lower() for label in labels]
    body = text.replace(match.group(), " ").lower() if match else text.lower()
    harm = any(word in body for word in _HARM)
    place = (
        lowered.index("unsafe" if harm else "safe") if {"safe", "unsafe"} <= set(lowered) else _label(lowered, body, "")
    )
    if not fate.right:
        place = (place + 1 + own.below(len(labels) - 1, "other")) % len(labels)
    return labels[place]


def _extract(text: str, fate: Luck) -> str:
    head = window_of(text).lower()
    patterns = [_EMAIL] * ("mail" in head) + [_URL] * ("url" in head or "link" in head) + [_DATE] * ("date" in head)
    if "number" in head or "amount" in head or "price" in head:
        patterns.append(_NUMBER)
    if "name" in head and not patterns:
        text = text.partition(":")[2] or text
        patterns.append(_NAME)
    for pattern in patterns or (_EMAIL, _DATE, _URL, _NUMBER, _NAME):
        found = list(dict.fromkeys(pattern.findall(text)))
        if found:
            # A poor extractor misses the last one.
            return "\n".join(found if fate.right else found[:-1]) or "I found nothing of that kind in the text."
    return "I found nothing of that kind in the text."


def _matter(text: str) -> str:
    """What an instruction is about: the quoted text, what follows its colon or its first line, else all of it."""
    if quoted := _QUOTED.search(text):
        return quoted.group(1).strip()
    for mark in (":\n", "\n\n", ": ", "\n"):
        before, found, after = text.partition(mark)
        if found and len(before) < 300 and after.strip():
            return after.strip()
    return text.strip()


def _summarise(text: str, fate: Luck) -> str:
    sentences = [part.strip() for part in _SENTENCE.findall(_matter(text)[:20_000]) if len(part.split()) > 2]
    if not sentences:
        return "There is nothing to summarise."
    chosen = sentences[:2] if fate.right else sentences[-1:]
    return "In short: " + " ".join(_clip(sentence, 160) for sentence in chosen)


def _translate(text: str, fate: Luck) -> str:
    match = _LANGUAGE.search(window_of(text))
    language = match.group(1).lower() if match else "english"
    matter = _matter(text)
    if matter == text.strip():  # "Translate good morning to French"
        matter = re.sub(r"(?i)^\W*translate\s+|\s+(?:in)?to\s+\w+\W*$", "", matter)
    known = _PHRASES.get(matter.lower().strip(" .!?"), {}).get(language)
    if known is not None and fate.right:
        return known
    return (
        f"[{language} translation, simulated] {matter}" if fate.right else f"[{language}] {matter[: len(matter) // 2]}"
    )


def _code(text: str, fate: Luck) -> str:
    lowered = window_of(text).lower()
    words = [word for word in topic_of(text).lower().split() if word.isascii() and word.isidentifier()]
    name = "_".join([word for word in words if word not in ("function", "python", "javascript", "code")][:3]) or "solve"
    if "javascript" in lowered or "typescript" in lowered:
        body = "  return [...items];" if fate.right else "  return null; // I am not sure how to do this"
        return f"```javascript\nfunction {name}(items) {{\n{body}\n}}\n```"
    known = next((code for key, code in _PYTHON.items() if key in lowered), None)
    head, body = known or (f"def {name}(items: list) -> list:", "    return [item for item in items if item]")
    return f"```python\n{head}\n{body if fate.right else '    return None  # I am not sure how to do this'}\n```"


def _poem(topic: str, fate: Luck) -> str:
    if not fate.right:
        return f"A few words on {topic}. I am not sure how to go on."
    return f"Quiet morning light,\n{topic.lower()} in the still air,\nand the day begins."


def _talk(model: Model, question: Question, fate: Luck) -> str:
    """An honest reply to what nothing else here can answer. Its length follows what was asked for."""
    text = question.text
    topic = topic_of(text)
    seen = f" Images shown: {question.images}; I cannot really see them." if question.images else ""
    opening = f"This is a simulated reply from {model.id}; no real model was asked. You wrote about {topic}.{seen}"
    if not fate.right:
        return f"{opening} I am not sure about it."
    lowered = window_of(text).lower()
    points = [
        f"The first thing to know about {topic} is what problem it solves and for whom.",
        f"A sound way to look at {topic} is to name the parts and see how they depend on each other.",
        "Then compare the ways to do it by cost, by risk and by how easily each can be undone.",
        f"In practice {topic} goes well when each step is small enough to be checked.",
        "The usual mistakes are to start too big, to measure too late and to keep what does not help.",
        "In the end, choose the simplest way that meets the need, and look again when the need changes.",
    ]
    if any(word in lowered for word in ("one sentence", "briefly", "one line", "in short", "short answer")):
        kept = points[:1]
    elif any(
        word in lowered for word in ("detail", "essay", "in depth", "thorough", "long", "explain", "step by step")
    ):
        kept = points
    else:
        kept = points[: 2 + min(2, len(text) // 400)]
    wanted = re.search(r"\b(\d{1,4}) words\b", lowered)
    if wanted:
        words = " ".join(kept * (1 + int(wanted.group(1)) // 12)).split()
        return f"{opening} {' '.join(words[: max(0, int(wanted.group(1)) - len(opening.split()))])}".strip()
    joint = "\n- " if "bullet" in lowered or "list" in lowered else " "
    return opening + joint + joint.join(kept)


def topic_of(text: str) -> str:
    """Up to four telling words of a prompt, in their order."""
    words: list[str] = []
    for match in _WORD.finditer(window_of(text)):
        word = match.group()
        if word.lower() not in _DULL and word not in words:
            words.append(word)
            if len(words) == 4:
                break
    return " ".join(words) or "your question"


def names_in(text: str) -> tuple[str, ...]:
    """Proper names in a prompt: capitalised words that do not begin a sentence. Long prompts are read in part."""
    text = window_of(text)
    found = [
        m.group() for m in _NAME.finditer(text) if m.start() > 0 and text[: m.start()].rstrip()[-1:] not in ".!?:\n"
    ]
    return tuple(dict.fromkeys(name for name in found if name not in ("I", "JSON", "API")))


def numbers_in(text: str) -> tuple[str, ...]:
    return tuple(match.replace(",", "") for match in _NUMBER.findall(text))


def emails_in(text: str) -> tuple[str, ...]:
    return tuple(_EMAIL.findall(text))


def dates_in(text: str) -> tuple[str, ...]:
    return tuple(_DATE.findall(text))


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


__all__ = [
    "Arithmetic",
    "Question",
    "Thought",
    "dates_in",
    "emails_in",
    "names_in",
    "numbers_in",
    "reasoning_of",
    "think",
    "topic_of",
]
