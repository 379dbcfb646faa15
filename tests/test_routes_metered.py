"""B12, bar 11: every door that can cost is metered, and no key is exempt. The table of doors is walked, so a new door
fails here until somebody says what it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.callers import ANTHROPIC, OPENAI, Heard
from tests.support.gateway import ADA, BOB, DEAR, EMBED, KEYS, Gateway, world
from tests.support.upstream import FakeUpstream
from tierwise.server import app
from tierwise.server.auth import ADMIN_START, FREE, ROUTE_OF

# What a model is asked through, with the least that it takes.
BUYS: dict[str, dict[str, Any]] = {
    "/chat/completions": OPENAI.body(),
    "/messages": ANTHROPIC.body(),
    "/embeddings": {"model": "auto", "input": "Paris"},
}
# What needs a route of a key and yet asks no model: our own count of the prompt.
COUNTS = ("/messages/count_tokens",)
BODIES = {
    **{path: [body, {**body, "stream": True}, {**body, "tierwise": {"session": "s"}}] for path, body in BUYS.items()},
    "/messages/count_tokens": [ANTHROPIC.body()],
    "/route": [OPENAI.body()],
    "/feedback": [{"decision_id": "0", "score": 1}],
    "/admin/keys": [{"name": "fresh"}],
    "/admin/keys/": [{}],
    "/admin/budgets": [{"scope": "tag", "limit_usd": 1}],
    "/admin/credits": [{"id": "c", "scope": "key", "subject": "nobody", "amount_usd": 1}],
}
EXHAUSTED = {"budgets": [{"scope": "organisation", "limit_usd": 0}]}
ROOT = {"name": "root", "secret": "env:BOB_KEY", "admin": True}


def test_every_door_is_said_to_be_something() -> None:
    for method, path in app.DOORS:
        kinds = [path in ROUTE_OF, path in FREE, path.startswith(ADMIN_START), path in app.OPEN_PATHS]
        assert sum(kinds) == 1, f"{method} {path}: say in server/auth.py what it takes to use this door"
        assert method == "GET" or path in BODIES or method == "DELETE", f"{path}: give it a body here"
    assert {*ROUTE_OF} - {*COUNTS} == {*BUYS}, "a door that needs a route buys something, or stands in COUNTS"


@pytest.fixture
async def places(tmp_path: Path) -> AsyncIterator[tuple[Gateway, list[FakeUpstream], dict[str, str]]]:
    """A gateway, its upstreams, and a key of every kind."""
    async with FakeUpstream() as one, FakeUpstream() as two:
        config = world(one, two, keys=[KEYS[0], ROOT])
        async with Gateway(tmp_path, config) as gateway:
            keys = {"file": ADA, "admin of the file": BOB}
            for role in ("caller", "admin"):
                made = await gateway.post(
                    "/v1/admin/keys", {"name": role, "role": role}, headers={"authorization": f"Bearer {BOB}"}
                )
                keys[role] = made.json["secret"]
            yield gateway, [one, two], keys


async def test_an_exhausted_budget_refuses_every_door_that_costs_to_every_key(
    places: tuple[Gateway, list[FakeUpstream], dict[str, str]],
) -> None:
    gateway, upstreams, keys = places
    for path, body in BUYS.items():  # that they work at all: or a refusal would say nothing
        assert (await sent(gateway, keys["caller"], path, body)).status == 200
    called = sum(len(each.requests) for each in upstreams)
    assert called == len(BUYS)
    await gateway.apply({**gateway.config, **EXHAUSTED})
    refused = []
    for kind, key in keys.items():
        for path in BUYS:
            ways = [(prefix, body) for prefix in ("", "/v1", "/v1/v1", "/", "//v1") for body in BODIES[path]]
            refused += [(await sent(gateway, key, path, body, prefix)).status for prefix, body in ways]
            pinned = {**BUYS[path], "model": EMBED if path == "/embeddings" else DEAR}
            refused.append((await sent(gateway, key, path, pinned)).status)
            assert refused[-1] == 402, (kind, path)
    assert refused == [402] * (len(keys) * len(BUYS) * 16)
    assert sum(len(each.requests) for each in upstreams) == called


async def test_all_other_doors_call_nobody(places: tuple[Gateway, list[FakeUpstream], dict[str, str]]) -> None:
    """With money and without: nothing behind them is bought."""
    gateway, upstreams, keys = places
    statuses = []
    for method, path in app.DOORS:
        if path not in BUYS:
            for key in keys.values():
                for body in BODIES.get(path, [None]) if method == "POST" else [None]:
                    heard = await gateway.fetch(method, f"/v1{path}", json=body, headers=bearer(key))
                    statuses.append(heard.status)
                    assert heard.status in (200, 400, 403, 404, 409), (method, path, heard.body)
    assert statuses.count(200) > len(statuses) / 3
    assert not any(each.requests for each in upstreams)


async def sent(gateway: Gateway, key: str, path: str, body: dict[str, Any], prefix: str = "/v1") -> Heard:
    return await gateway.post(prefix + path, body, headers=bearer(key))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}
