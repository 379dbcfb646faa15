"""The requests that are sent: many different prompts of many kinds, so that no peer answers from memory."""

from __future__ import annotations

import json
import random
import re

OPENINGS = (
    "Translate the following into French.",
    "Write a Python function that parses this and returns a list of pairs.",
    "Summarise the text below in three sentences for a busy reader.",
    "Extract every date and amount of money as JSON.",
    "Is the tone of this review positive, negative or mixed? Answer with one word.",
    "Prove that the sum of two odd numbers is even, then solve for x: 3x + 7 = 22.",
    "Compare the two approaches step by step and explain which one you would choose, and why.",
    "Hello! Thanks for your help yesterday.",
)
WORDS = re.findall(
    r"\w+",
    "the a of and to in is it that was for on are with as at be this have from or one had by but not what all were "
    "when we there can an your which their if do will each about how up out them then she many some so these would "
    "other into has more her two like him see time could no make than first been its who now people my made over did "
    "down only way find use may water long little very after words called just where most know invoice server budget",
)

COUNT = 64


def bodies(kind: str, model: str) -> list[str]:
    """JSON bodies of one kind: `1k`, `100k`, `slow` (after 50 ms), `stream`, `paced` (an event every 2 ms)."""
    count = 8 if kind == "100k" else COUNT
    return [body(kind, model, seed) for seed in range(count)]


def body(kind: str, model: str, seed: int) -> str:
    marks = {"slow": "[[delay=50]] ", "paced": "[[delay=50]] [[gap=2000]] "}.get(kind, "")
    size_bytes = 100_000 if kind == "100k" else 1_000
    dice = random.Random(seed)  # noqa: S311 - the same prompts in every run
    request: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": ""}], "temperature": 0.2}
    if kind in ("stream", "paced"):
        request["stream"] = True
    room = size_bytes - len(json.dumps(request))
    text = f"{marks}{OPENINGS[seed % len(OPENINGS)]} #{seed}\n\n"
    while len(text) < room:
        text += dice.choice(WORDS) + dice.choice((" ", " ", " ", " ", " ", ", ", ". "))
    request["messages"] = [{"role": "user", "content": text[:room]}]
    return json.dumps(request)
