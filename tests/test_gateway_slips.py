"""What a caller of the gateway mistakes is answered with what there is: names, kinds, and its own cap."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.callers import DOORS, SOUND
from tests.support.gateway import CHEAP, EMBED, Gateway, world
from tests.support.upstream import FakeUpstream


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with FakeUpstream() as upstream, Gateway(tmp_path, world(upstream)) as made:
        yield made
        assert upstream.requests == []


@pytest.mark.parametrize(
    ("door", "model", "status", "said"),
    [
        ("chat", EMBED, 400, [f"{EMBED} makes embeddings; use /v1/embeddings"]),
        ("messages", EMBED, 400, ["use /v1/embeddings"]),
        ("embeddings", CHEAP, 400, [f"{CHEAP} makes none; ask for {EMBED}"]),
        ("embeddings", "frontier", 400, [f"no model of tier frontier makes embeddings; ask for {EMBED}"]),
        ("chat", "auto:zzzzzzzz", 404, ["no policy is named 'zzzzzzzz'; there are default, ", "economy", "/v1/models"]),
        ("chat", "zzzzzzzz", 404, ["there are auto, ", "auto:economy", f"models such as {CHEAP}", "GET /v1/models"]),
        ("chat", "one/cheep", 404, ["the nearest are one/cheap"]),
    ],
)
async def test_a_wrong_name_is_answered_with_right_ones(
    gateway: Gateway, door: str, model: str, status: int, said: list[str]
) -> None:
    heard = await gateway.post(DOORS[door], {**SOUND[door], "model": model})
    assert heard.status == status
    assert [each for each in said if each not in heard.error["message"]] == [], heard.error


@pytest.mark.parametrize("more", [{}, {"max_tokens": 50}])
async def test_a_request_s_own_cap_is_named_and_nobody_is_told_to_wait(gateway: Gateway, more: dict[str, int]) -> None:
    body = {**SOUND["chat"], **more}
    heard = await gateway.post(DOORS["chat"], {**body, "tierwise": {"max_cost_usd": 1e-9}})
    message = heard.error["message"]
    assert (heard.status, heard.error["code"]) == (402, "budget_exceeded")
    assert message.startswith("the hint max_cost_usd allows this request 0.000000001 USD, and the cheapest")
    assert "wait" not in message


async def test_what_the_refusal_says_is_needed_is_enough(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream, Gateway(tmp_path, world(upstream)) as gateway:
        for more in ({}, {"max_tokens": 50}):
            body, name = {**SOUND["chat"], **more}, "x-tierwise-max-cost-usd"
            heard = await gateway.post(DOORS["chat"], body, headers={name: "0.000000001"})
            needed = heard.error["message"].partition(" needs ")[2].split()[0]
            assert (await gateway.post(DOORS["chat"], body, headers={name: needed})).status == 200
            less = f"{float(needed) * 0.99:.9f}"
            assert (await gateway.post(DOORS["chat"], body, headers={name: less})).status == 402


async def test_a_budget_of_the_owner_s_that_never_resets_is_not_waited_for(tmp_path: Path) -> None:
    budgets = [{"scope": "request", "limit_usd": 0.0000001}]
    async with FakeUpstream() as upstream, Gateway(tmp_path, world(upstream, budgets=budgets)) as gateway:
        message = (await gateway.post(DOORS["chat"], SOUND["chat"])).error["message"]
        assert message.startswith("the request budget of 0.0000001 USD") and message.endswith("or have it raised")
