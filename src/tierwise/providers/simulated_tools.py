"""Which tools a simulated model calls, and with what: by the words that prompt and tool share, or as it is told."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from tierwise.providers.simulated_mind import Question, Thought, topic_of
from tierwise.providers.simulated_schema import Clues, clues_of, fill
from tierwise.providers.simulated_skill import arithmetic_in, window_of

MAX_CALLS = 6
_SPLIT = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_CLOSING = ("final", "result", "answer", "output", "respond", "submit", "finish", "done")
_SUMS = frozenset(("add", "sum", "multiply", "math", "calculator", "calculate", "compute", "arithmetic", "evaluate"))
_DULL_WORDS = (
    "get set the and for with from this that given return returns find fetch list call tool function use used when "
    "current named name specific about into user users data value values information"
)
_DULL = frozenset(_DULL_WORDS.split())


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function the caller offers. `parameters`: its JSON schema."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class ToolCall(msgspec.Struct, frozen=True):
    name: str
    arguments: str  # JSON


def calls_for(
    tools: tuple[Tool, ...],
    choice: str,
    parallel: bool,
    question: Question,
    thought: Thought,
    right: bool,
) -> tuple[ToolCall, ...]:
    """The calls a model makes now; none when it answers in text.

    `choice`: "none", "auto", "required", or "=" and the name of the one tool that must be called. `thought`: what
    it would say in text; `right`: whether it reads the prompt well enough to fill the arguments from it.
    """
    if choice == "none" or not tools or (choice == "auto" and question.results):
        return ()
    if choice.startswith("="):
        chosen = [tool for tool in tools if tool.name == choice[1:]]
    else:
        chosen = _wanted(tools, question)
        if not chosen and choice == "required":
            chosen = [_closing(tools, question)]
    # A weak model keeps to the schema but does not read the prompt: its arguments are made of the topic alone.
    text = "\n".join((question.text, *(text for _, text in question.results)))
    clues = clues_of(text if right else topic_of(text), thought.text, thought.value)
    calls = [
        ToolCall(tool.name, msgspec.json.encode(fill(tool.parameters or {"type": "object"}, clues, index)).decode())
        for tool in chosen
        for index in range(_times(tool, clues, question) if parallel and right else 1)
    ]
    distinct = tuple(dict.fromkeys(calls))
    return distinct[:MAX_CALLS] if parallel else distinct[:1]


def _wanted(tools: tuple[Tool, ...], question: Question) -> list[Tool]:
    """The tools that the prompt calls for and that have not answered yet, the best match first."""
    window = window_of(question.text)
    words = {_stem(word) for word in re.findall(r"[a-z]{3,}", window.lower())}
    sums = arithmetic_in(question.text, "other") is not None
    answered = {name for name, _ in question.results}
    scored = []
    for tool in tools:
        name = {_stem(word.lower()) for word in _SPLIT.findall(tool.name)} - _DULL
        about = {_stem(word) for word in re.findall(r"[a-z]{4,}", tool.description.lower()[:500])} - _DULL
        score = 3 * len(name & words) + len(about & words) + 3 * (sums and bool((name | about) & _SUMS))
        if score >= 2 and tool.name not in answered:
            scored.append((score, tool))
    scored.sort(key=lambda pair: -pair[0])
    # The second-best is called as well only when its own name is in the prompt: "the weather and the time in Rome".
    return [tool for place, (score, tool) in enumerate(scored) if place == 0 or score >= 3]


def _closing(tools: tuple[Tool, ...], question: Question) -> Tool:
    """What to call when something must be: the tool that ends the work, else one that has not answered yet."""
    answered = {name for name, _ in question.results}
    fresh = [tool for tool in tools if tool.name not in answered] or list(tools)
    return next((tool for tool in fresh if any(word in tool.name.lower() for word in _CLOSING)), fresh[0])


def _times(tool: Tool, clues: Clues, question: Question) -> int:
    """How often to call a tool: once for each name in the prompt, when just one required field is a free text."""
    properties, required = tool.parameters.get("properties"), tool.parameters.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list | type(None)):
        return 1
    names = required or list(properties)
    fields = [field for name in names if isinstance(name, str) and isinstance(field := properties.get(name), dict)]
    free = [field for field in fields if field.get("type") == "string" and "enum" not in field]
    if len(free) != 1 or len(clues.names) < 2:
        return 1
    listed = re.search(r"\band\b|,|&|\bboth\b|\beach\b|\bversus\b|\bvs\b", question.text)
    return len(clues.names) if listed else 1


def _stem(word: str) -> str:
    return word[:-1] if word.endswith("s") and len(word) > 3 else word
