"""What the tests of real clients share: one gateway over a simulated provider and fake ones of both dialects, and one
way to write a test for the synchronous and the asynchronous face of an SDK.

    reply = await done(client.chat.completions.create(...))     # awaits what the asynchronous face gives
    chunks = await items(stream)
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.gateway import ADA, KEYS, price
from tests.support.gateway import BOB as BOB
from tests.support.served import Served, simulated
from tests.support.upstream import FakeUpstream

# Pinned models: nothing is rerouted, so a test knows whom it talks to.
MODELS = {"simulated": "simulated/medium", "openai": "oai/pet", "anthropic": "ant/pet"}
ABLE = ["tools", "images", "json", "schema", "logprobs", "stream"]
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "The weather of a city"}
OPENAI_WEATHER = {"type": "function", "function": {**WEATHER, "parameters": PLACE}}
ANTHROPIC_WEATHER = {**WEATHER, "input_schema": PLACE}
USER = [{"role": "user", "content": "Hello!"}]
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Paris and in Rome?"}]


class Bench:
    """A running gateway and the fake upstream behind its models `oai/pet` and `ant/pet`."""

    def __init__(self, served: Served, upstream: FakeUpstream) -> None:
        self.served = served
        self.upstream = upstream
        self.url = served.url

    def rested(self) -> None:
        """Between tests: no model rests, no scripted step is left over, and nothing of before is on record."""
        self.served.gateway.rested()
        self.upstream._steps.clear()
        self.upstream.requests.clear()


@contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    """Ada pays without a limit; Bob has almost nothing to spend, and Carl just enough for one call at a time."""
    model = {"tier": "fast", "price": price(1, 4), "context_tokens": 200_000, "max_output_tokens": 1_000}
    with FakeUpstream.in_thread() as upstream:
        key = {"api_key": "env:ONE_KEY", "base_url": upstream.base_url}
        config = simulated(
            providers={
                "simulated": None,
                "oai": {"wire": "openai", **key},
                "ant": {"wire": "anthropic", **key},
            },
            keys=[*KEYS, {"name": "carl", "secret": "env:TWO_KEY", "user": "carl"}],
            budgets=[
                {"scope": "user", "match": {"user": "bob"}, "limit_usd": 0.000001, "window": "day"},
                {"scope": "user", "match": {"user": "carl"}, "limit_usd": 0.006, "window": "day"},
            ],
        )
        config["models"] |= {"oai/pet": {**model, "abilities": ABLE}, "ant/pet": {**model, "abilities": ABLE}}
        with Served(folder, config) as served:
            yield Bench(served, upstream)


def options(key: str = ADA) -> dict[str, Any]:
    """For every SDK client in these tests: no retries, unless a test is about them."""
    return {"api_key": key, "max_retries": 0, "timeout": 30.0}


async def done(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def items(stream: Any) -> list[Any]:
    stream = await done(stream)
    return [each async for each in stream] if hasattr(stream, "__aiter__") else list(stream)


async def close(client: Any) -> None:
    await done(client.close())
