"""Agents over HTTP: loops that must be stopped where their limit is, and honest sessions that must not be."""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

from scripts.reliability.bars import Check, Found, Run, Scale, count
from scripts.reliability.gateway import KEYED
from scripts.reliability.served import Child, gateway, session, waves
from tests.support.callers import ANTHROPIC, OPENAI
from tests.support.gateway import ADA, world
from tests.support.upstream import FakeUpstream
from tests.test_agents_limits import honest, loops

REPEATS, STEPS, TOGETHER = 5, 200, 3
TURNS = 2 * REPEATS + 6


def most(number: int) -> int:
    """Requests of this loop that may reach a model: its first has nothing behind it, unless it never changes; of two in
    turn each is repeated, and one of them may have been asked a whole turn more often than the other."""
    first, together = 0 if number % 5 == 3 else _together(number), _together(number)
    return first + (2 * REPEATS + together - 1 if number % 5 == 1 else REPEATS)


def _together(number: int) -> int:
    return TOGETHER if number % 4 >= 2 else 1


def agents(scale: Scale) -> Found:
    looping, sessions = scale.of(200, 10), scale.of(1_000, 10)
    past, stopped, asked = asyncio.run(_play(looping, sessions, REPEATS))
    unbound, _, _ = asyncio.run(_play(min(looping, 10), 0, None))
    return Found(
        n=f"{looping} scripted loops (5 kinds, 2 dialects, many with parallel turns), {count(sessions)} honest "
        f"sessions, {count(asked)} requests",
        figure=f"{past} loops past their limit, {stopped} false stops ({stopped / max(sessions, 1):.2%})",
        checks=(
            Check("loops past their limit", past, "=", 0),
            Check("false stops, of one", stopped / max(sessions, 1), "≤", 0.001),
        ),
        mutant=f"no loop detector: {unbound} of {min(looping, 10)} past",
        caught=unbound > 0,
    )


async def _play(looping: int, sessions: int, repeats: int | None) -> tuple[int, int, int]:
    with tempfile.TemporaryDirectory(prefix="tierwise-bar30-") as name:
        async with FakeUpstream() as one:
            budget = {"scope": "session", "steps": STEPS, **({"repeats": repeats} if repeats else {})}
            config = {**world(one), "keys": KEYED, "budgets": [budget]}
            async with gateway(Path(name), config) as child, session() as http:
                answered = await waves(looping, 20, lambda number: _loop(http, child, number))
                past = sum(calls > most(number) for number, calls in enumerate(answered))
                stops = await waves(sessions, 20, lambda number: _honest(http, child, number))
            return past, sum(stops), len(one.requests)


async def _ask(http: aiohttp.ClientSession, child: Child, agent: Any) -> int:
    headers = {**agent.dialect.headers, **agent.headers, "authorization": f"Bearer {ADA}"}
    body = agent.dialect.body(messages=agent.messages)
    async with http.post(child.url + agent.dialect.path, json=body, headers=headers) as reply:
        await reply.read()
        return reply.status


async def _loop(http: aiohttp.ClientSession, child: Child, number: int) -> int:
    """How many of its requests were answered. With parallel turns each request is sent three times at once."""
    parallel, answered = _together(number), 0
    for agent in itertools.islice(loops((OPENAI, ANTHROPIC)[number % 2], number % 5, f"loop {number}"), TURNS):
        statuses = await asyncio.gather(*(_ask(http, child, agent) for _ in range(parallel)))
        answered += statuses.count(200)
        if 200 not in statuses:
            break
    return answered


async def _honest(http: aiohttp.ClientSession, child: Child, number: int) -> bool:
    """Whether an agent that gets somewhere was stopped."""
    for agent in honest(random.Random(number), (OPENAI, ANTHROPIC)[number % 2], f"honest {number}"):
        if await _ask(http, child, agent) != 200:
            return True
    return False


RUNS = (
    Run("bar30", "30, B14", "agents that repeat themselves, and agents that do not", "0 past, ≤ 0.1 % false", agents),
)
