"""Runs over replies whose provider tells no usage: how far our own count of tokens is from the true one.

tests/golden/tokens.json has texts of our own in many languages and kinds, and how many tokens they are to tokenizers
that are not ours: those of Claude 2, Llama 2, Llama 3 and Mistral 7B, counted once with their published vocabularies.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from scripts.reliability.bars import Check, Found, Run, Scale, count
from scripts.reliability.report import ROOT
from tests.support.callers import DIALECTS
from tests.support.gateway import CHEAP, Gateway, price, world
from tests.support.replies import ToolCall, anthropic_events, openai_events
from tests.support.upstream import Exchange, FakeUpstream, anthropic_reply, openai_reply
from tierwise.routing import attempts, streams
from tierwise.routing.tokens import _encoding

VAST = {CHEAP: {"tier": "fast", "price": price(1, 4), "context_tokens": 10**8, "max_output_tokens": 10**8}}
LENGTHS = (1, 1, 1, 5, 40, 300)  # times a text is said; the longest are counted on the way


def uncounted(scale: Scale) -> Found:
    """S3, bar 15. Every text, plain and streamed in pieces of any size, of both formats and to both."""
    golden: dict[str, Any] = json.loads((ROOT / "tests" / "golden" / "tokens.json").read_text())
    texts: dict[str, str] = golden["texts"]
    rounds = scale.of(6, 1)
    errors, zeros = asyncio.run(_replies(list(texts.values()), rounds, scale.seed))
    with mock.patch.object(streams, "count", _fourth), mock.patch.object(attempts, "count", _fourth):
        rough, _ = asyncio.run(_replies(list(texts.values()), 1, scale.seed))
    strange = {
        name: _p95([abs(_true(texts[kind]) / tokens - 1) for kind, tokens in counted.items()])
        for name, counted in golden["tokens"].items()
    }
    told = ", ".join(f"{name} {error:.0%}" for name, error in strange.items())
    return Found(
        n=f"{count(len(errors))} replies in {len(texts)} languages and kinds; {len(strange)} other tokenizers",
        figure=f"p95 of the error {_p95(errors):.2%} and at most {max(errors):.2%} where the tokenizer is ours, "
        f"{zeros} charged nothing; p95 with another: {told}",
        checks=(
            Check("p95 of the error, tokenizer known", _p95(errors), "≤", 0.02),
            Check("charged nothing", zeros, "=", 0),
            Check("p95 of the error, tokenizer unknown", max(strange.values()), "≤", 0.15),
        ),
        mutant=f"four characters for a token: p95 {_p95(rough):.0%}",
        caught=_p95(rough) > 0.02,
    )


def _p95(errors: list[float]) -> float:
    return sorted(errors)[int(len(errors) * 0.95)]


def _true(text: str) -> int:
    return len(_encoding().encode_ordinary(text))


async def _fourth(text: str) -> int:
    return len(text) // 4


class Silent:
    """An upstream that tells no usage and says `said`; where its length is a multiple of seven, a tool call instead."""

    call = ToolCall("get_weather", '{"city":"Paris","days":[1,2,3]}')

    def __init__(self, wire: str, rng: random.Random) -> None:
        self.wire, self.rng, self.said = wire, rng, ""

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return () if len(self.said) % 7 else (self.call,)

    @property
    def tokens(self) -> int:
        return sum(_true(call.name) + _true(call.arguments) for call in self.calls) or _true(self.said)

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


async def _replies(texts: list[str], rounds: int, seed: int) -> tuple[list[float], int]:
    rng, errors, zeros = random.Random(seed), list[float](), 0
    for wire in ("openai", "anthropic"):
        silent = Silent(wire, rng)
        with tempfile.TemporaryDirectory(prefix="tierwise-s3-") as name:
            async with (
                FakeUpstream(silent.step) as one,
                Gateway(Path(name), world(one, wire=wire, models=VAST)) as gateway,
            ):
                for number in range(rounds * len(texts)):
                    silent.said = texts[number % len(texts)] * rng.choice(LENGTHS)
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
        "p95 ≤ 2 % (known tokenizer), ≤ 15 % (unknown), 0 zeros",
        uncounted,
    ),
)
