"""Runs over replies whose provider tells no usage: how far what is charged is from the true number of tokens.

tests/golden/tokens.json has texts of our own in many languages and kinds, and how many tokens they are to tokenizers
that are not ours, counted once with their published vocabularies; and other texts, the lessons, from which replies are
made that do tell their usage, with their tokens. What is learned from is never what is tried.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from scripts.reliability.bars import Check, Found, Run, Scale, count
from scripts.reliability.report import ROOT
from tests.support.callers import DIALECTS
from tests.support.gateway import CHEAP, Gateway, price, world
from tests.support.replies import ToolCall, anthropic_events, openai_events
from tests.support.upstream import Exchange, FakeUpstream, anthropic_reply, openai_reply
from tierwise.core.catalogue import Model
from tierwise.core.features import REPLY_TOKENS, TURN_TOKENS, extract
from tierwise.core.request import Features, Prompt, Turn
from tierwise.routing import ratios, tokens
from tierwise.routing.ratios import Ratios, language_of
from tierwise.routing.spelling import Report, Spelling, Vector

VAST = {CHEAP: {"tier": "fast", "price": price(1, 4), "context_tokens": 10**8, "max_output_tokens": 10**8}}
LENGTHS = (1, 1, 1, 5, 40, 300)  # times a text is said; the longest are counted on the way
LESSONS = 40  # replies made of a kind's lessons
# A name that a provider gives to a model with this tokenizer.
NAMES = {
    "llama-2": "llama-2-70b-chat",
    "mistral-1": "mixtral-8x7b-instruct",
    "claude-2": "claude-2.1",
    "llama-3": "llama-3.3-70b-instruct",
    "cl100k": "gpt-4-turbo",
    "qwen": "qwen2.5-72b-instruct",
    "tekken": "ministral-8b-latest",
    "deepseek-v3": "deepseek-chat",
}


@cache
def golden() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((ROOT / "tests" / "golden" / "tokens.json").read_text())
    return read


def replies(lessons: list[str]) -> Iterator[str]:
    """LESSONS replies of two to five lessons each, none twice in one."""
    size = len(lessons)
    steps = [step for step in range(1, size) if math.gcd(step, size) == 1]
    for number in range(LESSONS):
        step = steps[number // size % len(steps)]
        picked = [lessons[(number + index * step) % size] for index in range(2 + number % 4)]
        yield "".join(picked) if picked[0].endswith("\n") else (" ", "\n")[number % 2].join(picked)


def uncounted(scale: Scale) -> Found:
    """S3, bar 15. Every text, plain and streamed in pieces of any size, of both formats and to both."""
    texts, kinds = list(golden()["texts"].values()), golden()["lessons"]
    rounds = scale.of(6, 1)
    errors, zeros = asyncio.run(_charged(lambda gateway: None, texts * rounds, LENGTHS, _true, scale.seed))
    with mock.patch.object(tokens, "count", _fourth):
        rough, _ = asyncio.run(_charged(lambda gateway: None, texts, LENGTHS, _true, scale.seed))
    others = list(NAMES) if scale.full else ["llama-2", "qwen"]
    many = _strangers(others, scale.of(200, 24))
    with mock.patch.object(ratios, "Spelling", Single):
        single = _strangers(others[:1], 24)
    direct = {
        what: [_p95(_off(each, NAMES[each] if named else "", number)) for each in others]
        for what, named, number in (
            ("after 20 of each", False, 20),
            ("after 3 of each", False, 3),
            ("the first reply of a model whose name tells its tokenizer", True, 0),
            ("of a stranger, which has no bar since tokenizers differ by so much", False, 0),
        )
    }
    return Found(
        n=f"{count(len(errors))} replies, {len(texts)} texts in {len(kinds)} languages and kinds; {len(others)} other "
        f"tokenizers, each after {scale.of(200, 24)} replies of each kind that told their usage, made of six to ten "
        "pieces",
        figure=f"p95 of the error {_p95(errors):.2%} and at most {max(errors):.2%} where the tokenizer is ours, "
        f"{zeros} charged nothing; p95 with another: "
        + ", ".join(f"{name} {error:.0%}" for name, error in many.items())
        + "".join(f"; {what} {_told(each)}" for what, each in direct.items())
        + f"; of a prompt, when nobody told that either, {_told([_p95(_off_prompts(each)) for each in others])}",
        checks=(
            Check("p95 of the error, tokenizer known", _p95(errors), "≤", 0.02),
            Check("charged nothing", zeros, "=", 0),
            Check("p95 of the error, tokenizer learned", max(many.values()), "≤", 0.15),
            Check("p95 of the error, after 20 replies of each kind", max(direct["after 20 of each"]), "≤", 0.15),
        ),
        mutant=f"four characters for a token: p95 {_p95(rough):.0%}; one ratio for a model: {max(single.values()):.0%}",
        caught=_p95(rough) > 0.02 and max(single.values()) > 0.15,
    )


def _strangers(others: list[str], number: int) -> dict[str, float]:
    """p95 of the error of what a gateway charges, by tokenizer, when it has learned from so many replies a kind."""
    found = {}
    for name in others:
        known = dict(zip(golden()["texts"].values(), golden()["tokens"][name].values(), strict=True))

        def learned(gateway: Gateway, name: str = name) -> None:
            books = gateway.router.books
            teach(books.ratios, gateway.router.snapshot.catalogue.models[CHEAP], name, number)

        errors, _ = asyncio.run(_charged(learned, list(known), (1,), known.__getitem__, 1))
        found[name] = _p95(errors)
    return found


def teach(known: Ratios, model: Model, tokenizer: str, number: int) -> None:
    """As if so many replies of each kind had come, in turn, and told their usage."""
    spoken = {kind: list(replies(lessons)) for kind, lessons in golden()["lessons"].items()}
    for turn in range(number):
        for kind, said in spoken.items():
            text, reported = said[turn % LESSONS], golden()["lesson_tokens"][tokenizer][kind][turn % LESSONS]
            if known.due(model, language_of(_features(text)), text, reported):
                known.learn_now(model, language_of(_features(text)), text, reported)


@cache
def _features(text: str) -> Features:
    return extract(Prompt(turns=(Turn("user", text),), size_bytes=len(text.encode())))


def _off(tokenizer: str, name: str, number: int) -> list[float]:
    """The error for each text, without a gateway."""
    known, model = Ratios(), Model(id=CHEAP, provider="one", name=name, tier="fast")
    teach(known, model, tokenizer, number)
    pairs = zip(golden()["texts"].values(), golden()["tokens"][tokenizer].values(), strict=True)
    return [abs(known.measured_now(model, text, _true(text)).expected / true - 1) for text, true in pairs]


def _off_prompts(tokenizer: str) -> list[float]:
    """The same for the texts as prompts, after twenty others of each kind whose tokens were told."""
    known, frame = Ratios(), TURN_TOKENS + REPLY_TOKENS
    for kind, lessons in golden()["lessons"].items():
        for text, true in list(zip(replies(lessons), golden()["lesson_tokens"][tokenizer][kind], strict=True))[:20]:
            known.learn("m", language_of(_features(text)), _features(text).input_tokens, true + frame)
    found = []
    for kind, text in golden()["texts"].items():
        expected = known.expected("m", language_of(_features(text)), _features(text).input_tokens)
        found.append(abs(expected / (golden()["tokens"][tokenizer][kind] + frame) - 1))
    return found


def _told(errors: list[float]) -> str:
    low, high = f"{min(errors):.0%}", f"{max(errors):.0%}"
    return low if low == high else f"{low} to {high}"


def _p95(errors: list[float]) -> float:
    return sorted(errors)[int(len(errors) * 0.95)]


def _true(text: str) -> int:
    return len(tokens._encoding().encode_ordinary(text))


async def _fourth(text: str) -> int:
    return len(text) // 4


class Single(Spelling):
    """The mutant: one ratio for a model, whatever the text."""

    def __init__(self, reports: Sequence[Report], family: str = "") -> None:
        super().__init__(reports, family)
        self.mean = statistics.fmean(each.reported / each.counted for each in reports) if reports else 1.0

    def ratio(self, text: Vector, counted: int) -> float:
        return self.mean


class Silent:
    """An upstream that tells no usage and says `said`; where its length is a multiple of seven, a tool call instead."""

    call = ToolCall("get_weather", '{"city":"Paris","days":[1,2,3]}')

    def __init__(self, wire: str, rng: random.Random, true: Callable[[str], int]) -> None:
        self.wire, self.rng, self.true, self.said = wire, rng, true, ""

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return () if len(self.said) % 7 or self.true is not _true else (self.call,)

    @property
    def tokens(self) -> int:
        return sum(_true(call.name) + _true(call.arguments) for call in self.calls) or self.true(self.said)

    async def step(self, x: Exchange) -> None:
        openai = self.wire == "openai"
        if not x.seen.stream:
            await (openai_reply if openai else anthropic_reply)(self.said, usage=None, tool_calls=self.calls)(x)
            return
        pieces = min(len(self.said), self.rng.choice((1, 7, 50, 2_000)))
        await x.start_stream()
        events = openai_events if openai else anthropic_events
        for event in events("cheap", self.said, usage=None, tool_calls=self.calls, pieces=pieces):
            await x.chunk(event)
        await x.chunk(b"")


async def _charged(
    before: Callable[[Gateway], None],
    texts: list[str],
    lengths: tuple[int, ...],
    true: Callable[[str], int],
    seed: int,
) -> tuple[list[float], int]:
    """Every text through a gateway of each format, which `before` has prepared: how far each charge was from the
    truth, and how many were of nothing."""
    rng, errors, zeros = random.Random(seed), list[float](), 0
    for wire in ("openai", "anthropic"):
        silent = Silent(wire, rng, true)
        with tempfile.TemporaryDirectory(prefix="tierwise-s3-") as name:
            async with (
                FakeUpstream(silent.step) as one,
                Gateway(Path(name), world(one, wire=wire, models=VAST)) as gateway,
            ):
                before(gateway)
                for number, text in enumerate(texts):
                    silent.said = text * rng.choice(lengths)
                    stream = rng.random() < 0.7 or None
                    heard = await gateway.ask(DIALECTS[number % 2], stream=stream, max_tokens=1_000_000)
                    assert heard.status == 200, heard
                    await gateway.settled()
                    gateway.heard.clear()
                    _, charge = gateway.ledger.charges[-1]
                    errors.append(abs(charge.usage.output_tokens / silent.tokens - 1))
                    zeros += charge.cost_nano == 0 or charge.usage.output_tokens == 0
    return errors, zeros


RUNS = (
    Run(
        "s3",
        "15, S3",
        "replies whose provider tells no usage",
        "p95 ≤ 2 % (known tokenizer), ≤ 15 % (learned from 20 replies of each kind or more), 0 zeros",
        uncounted,
    ),
)
