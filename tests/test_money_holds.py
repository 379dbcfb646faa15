"""Money over HTTP: what is held before a call, what is charged after it, and that no limit is ever passed by a cent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.callers import DIALECTS, OPENAI
from tests.support.gateway import ADA, CHEAP, DEAR, KEYS, Gateway, price, world
from tests.support.replies import Tokens
from tests.support.upstream import (
    Exchange,
    FakeUpstream,
    error,
    openai_reply,
)
from tierwise.core.request import Hints

BOSS = [{**KEYS[0], "organisation": "acme"}, {**KEYS[1], "organisation": "acme"}]
AS_ADA = {"authorization": f"Bearer {ADA}"}
UNPRICED = {"one/nobody": {"tier": "local", "context_tokens": 200_000, "max_output_tokens": 1_000}}
FILE = [{"type": "file", "file": {"file_id": "file-1"}}, {"type": "text", "text": "What does it say?"}]
READS = {
    name: {"tier": tier, "price": price(1, 4), "context_tokens": 900_000, "max_output_tokens": 1_000,
           "abilities": ["documents", "stream"]}
    for name, tier in ((CHEAP, "fast"),)
}  # fmt: skip


async def crowd(
    gateway: Gateway, count: int, *, headers: Mapping[str, str], at_once: int = 200, **body: Any
) -> list[int]:
    """The statuses of so many requests, sent as fast as so many connections take them."""
    data, statuses = json.dumps(OPENAI.body(**body)).encode(), []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=at_once)) as session:

        async def one() -> None:
            async with session.post(gateway.url + OPENAI.path, data=data, headers=headers) as response:
                await response.read()
                statuses.append(response.status)

        await asyncio.gather(*(one() for _ in range(count)))
    return statuses


# ------------------------------------------------------------------------------------------------ B1, B13


async def test_a_thousand_requests_at_once_against_room_for_a_hundred(tmp_path: Path) -> None:
    """B1, the fast form: five levels, nothing is given back while they run, and not a nano-dollar is over."""
    async with FakeUpstream() as one:
        async with Gateway(tmp_path, world(one)) as gateway:
            await gateway.ask(max_tokens=100)
            worst = gateway.ledger.holds[0][0].amount_nano
        free = asyncio.Event()

        async def wait(x: Exchange) -> None:
            await free.wait()
            await openai_reply(usage=full)(x)

        one.default, one.requests[:] = wait, []
        # Every call is billed as its worst case, so what was held is spent and nobody gets what another left.
        full = {"prompt_tokens": worst // 1_000, "completion_tokens": 0, "total_tokens": 0}
        limit = 100 * worst / 1e9
        budgets = [
            {"scope": scope, "limit_usd": limit} for scope in ("session", "workflow", "user", "team", "organisation")
        ]
        config = world(one, keys=BOSS, budgets=budgets)
        async with Gateway(tmp_path, config) as gateway:
            headers = {
                **AS_ADA,
                "x-tierwise-session": "s",
                "x-tierwise-workflow": "w",
                "content-type": "application/json",
            }
            running = asyncio.create_task(crowd(gateway, 1_000, headers=headers, max_tokens=100))
            await one.seen(100)
            free.set()
            statuses = await running
            assert (statuses.count(200), statuses.count(402) + statuses.count(429)) == (100, 900)
            assert len(one.requests) == 100


async def test_the_first_requests_of_a_new_session_have_its_budget_too(tmp_path: Path) -> None:
    """B13: 64 at once, room for one; sessions that are named and ones that nobody named."""
    async with FakeUpstream() as one:
        async with Gateway(tmp_path, world(one)) as gateway:
            await gateway.ask(max_tokens=100)
            worst = gateway.ledger.holds[0][0].amount_nano
        for headers in ({"x-tierwise-session": "new"}, {}):
            one.requests.clear()
            one.script(openai_reply(usage={"prompt_tokens": worst // 1_000, "completion_tokens": 0, "total_tokens": 0}))
            config = world(one, budgets=[{"scope": "session", "limit_usd": worst / 1e9}])
            async with Gateway(tmp_path, config) as gateway:
                statuses = await crowd(
                    gateway, 64, headers={**headers, "content-type": "application/json"}, max_tokens=100
                )
                assert (statuses.count(200), len(one.requests)) == (1, 1)


# ------------------------------------------------------------------------------------------------ what is held


async def test_every_rung_and_helper_is_held_and_billed_for_itself(tmp_path: Path) -> None:
    """B8: a question, a rung that is not good enough, its grader, the last rung: four holds, four entries, one step."""
    answers = ["yes", "no"]
    plans = {
        "start": {
            "ask": {"of": "fast", "topic": "hard", "question": "Is it hard?", "answers": answers},
            "then": "climb",
        },
        "climb": {"cascade": ["fast", "frontier"], "accept": {"grader": "judge"}},
        "judge": {"use": ["one/judge"]},
    }
    budgets = [{"scope": "session", "limit_usd": 1, "steps": 2, "calls": 5}]
    async with FakeUpstream() as one, FakeUpstream() as two:
        judge = {"one/judge": {"tier": "local", "price": price(1, 4)}}
        async with Gateway(tmp_path, world(one, two, plans=plans, budgets=budgets, models=judge)) as gateway:
            one.script(openai_reply("yes"), openai_reply("meh"), openai_reply("0.1"))
            heard = await gateway.ask(headers={"x-tierwise-session": "s"})
            assert (heard.status, heard.model, len(gateway.ledger.charges)) == (200, DEAR, 4)
            held = [hold for hold, _ in gateway.ledger.holds]
            assert [hold.steps for hold in held] == [1, 0, 0, 0] and len({hold.request for hold in held}) == 1
            assert all(
                hold.amount_nano >= charge.cost_nano > 0
                for hold, (_, charge) in zip(held, gateway.ledger.charges, strict=True)
            )
            (balance,) = gateway.ledger.balances(held[0].payer, (await gateway.last()).episode.hints)
            assert (balance.steps_done, balance.calls_done, balance.spent_nano) == (1, 4, gateway.ledger.cost_nano)


async def test_a_call_that_no_model_saw_is_no_step(tmp_path: Path) -> None:
    budgets = [{"scope": "session", "steps": 1}]
    async with (
        FakeUpstream(error(503)) as one,
        FakeUpstream() as two,
        Gateway(tmp_path, world(one, two, budgets=budgets)) as gateway,
    ):
        heard = await gateway.ask(headers={"x-tierwise-session": "s"})
        assert (heard.status, heard.model) == (200, DEAR)
        assert [hold.steps for hold, _ in gateway.ledger.holds] == [1, 1]
        heard = await gateway.ask(headers={"x-tierwise-session": "s"})
        assert (heard.status, heard.error["code"]) == (402, "step_limit")


async def test_a_hold_bounds_the_tokens_and_knows_the_least_and_the_prices(tmp_path: Path) -> None:
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        body = OPENAI.body(max_tokens=70, n=2)
        await gateway.post(OPENAI.path, body)
        ((hold, _),) = gateway.ledger.holds
        record = await gateway.last()
        features = record.episode.features
        assert hold.tokens == features.input_bound_tokens + 2 * 70
        assert hold.amount_nano == (features.input_bound_tokens + 2 * 70 * 4) * 1_000
        assert 0 < hold.least_nano == features.input_tokens * 1_000 < hold.amount_nano
        assert hold.snapshot == gateway.router.snapshot.hash and hold.bounded and hold.fingerprint == ""


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
async def test_without_a_price_or_a_bound_a_hard_budget_refuses_and_a_reserve_lets_through(
    tmp_path: Path, hard: bool
) -> None:
    budget = {"scope": "organisation", "limit_usd": 1, "hard": hard}
    async with FakeUpstream() as one:
        for models, body in (
            (UNPRICED, {"model": "one/nobody"}),
            (READS, {"messages": [{"role": "user", "content": FILE}]}),
        ):
            config = world(one, models=models, unpriced="allow")
            one.requests.clear()
            async with Gateway(tmp_path, config) as gateway:
                assert (await gateway.ask(**body)).status == 200  # without a budget nobody minds
            async with Gateway(tmp_path, {**config, "budgets": [budget]}) as gateway:
                heard = await gateway.ask(**body)
                assert heard.status == (403 if hard else 200), heard
                if hard:
                    assert (heard.error["code"], heard.headers["x-should-retry"]) == ("unbounded", "false")
                    assert "reserve_usd" in heard.error["message"]
                    assert ("one/nobody" in heard.error["message"]) == (models is UNPRICED)
                    assert len(one.requests) == 1 and gateway.ledger.holds[-1][0].bounded is False
            async with Gateway(tmp_path, {**config, "budgets": [{**budget, "reserve_usd": 0.7}]}) as gateway:
                assert (await gateway.ask(**body)).status == 200
                hold = gateway.ledger.holds[-1][0]
                assert not hold.bounded
                await gateway.settled()
                (balance,) = gateway.ledger.balances(hold.payer, Hints())
                spent, known = balance.spent_nano, gateway.ledger.cost_nano
                assert spent == (700_000_000 if models is UNPRICED else known) > 0, "what nobody knows is never free"


async def test_of_an_unpriced_and_a_priced_model_the_priced_one_serves(tmp_path: Path) -> None:
    plans = {"start": {"use": ["one/nobody", CHEAP]}}
    budgets = [{"scope": "organisation", "limit_usd": 1}]
    async with FakeUpstream() as one:
        config = world(one, models=UNPRICED, unpriced="allow", plans=plans, budgets=budgets)
        async with Gateway(tmp_path, config) as gateway:
            heard = await gateway.ask()
            assert (heard.status, heard.model) == (200, CHEAP)


# ------------------------------------------------------------------------------------------------ limits but of money


async def test_a_limit_of_tokens_lowers_our_ceiling_and_never_the_callers(tmp_path: Path) -> None:
    budgets = [{"scope": "user", "tokens": 600, "window": "minute", "rolling": True}]
    async with (
        FakeUpstream() as one,
        Gateway(tmp_path, world(one, budgets=budgets), now=lambda: 1_800_000_000.0) as gateway,
    ):
        heard = await gateway.ask(max_tokens=900)
        assert (heard.status, heard.error["code"], heard.headers["x-should-retry"]) == (429, "token_limit", "false")
        assert "lower max_tokens" in heard.error["message"] and one.requests == []
        one.script(openai_reply(usage=Tokens(200, 300)))
        assert (await gateway.ask()).status == 200  # without a ceiling the gateway sets one that fits
        hold, _ = gateway.ledger.holds[-1]
        sent = one.requests[0].json
        assert hold.tokens == 600 and 0 < sent.get("max_tokens", sent.get("max_completion_tokens")) < 600
        heard = await gateway.ask(max_tokens=100)
        assert (heard.status, heard.error["code"]) == (429, "token_limit")
        assert int(heard.headers["retry-after"]) >= 1 and "x-should-retry" not in heard.headers
        known = heard.error["metadata"]
        assert (known["scope"], known["limit"], known["used"]) == ("user", 600, 500) and known[
            "resets_at"
        ] > 1_800_000_000


@pytest.mark.parametrize(
    ("window", "status", "retry"), [("minute", 429, None), ("month", 429, "false"), ("lifetime", 402, "false")]
)
async def test_a_limit_of_calls_says_when_to_come_back(
    tmp_path: Path, window: str, status: int, retry: str | None
) -> None:
    budgets = [{"scope": "user", "calls": 2, "window": window}]
    async with (
        FakeUpstream() as one,
        FakeUpstream() as two,
        Gateway(tmp_path, world(one, two, budgets=budgets), now=lambda: 1_800_000_000.0) as gateway,
    ):
        assert [(await gateway.ask(dialect)).status for dialect in DIALECTS] == [200, 200]
        heard = await gateway.ask()
        assert (heard.status, heard.error["code"], heard.headers.get("x-should-retry")) == (
            status,
            "call_limit",
            retry,
        )
        assert ("retry-after" in heard.headers) == (window != "lifetime")
        assert len(one.requests) == 2 and two.requests == [] and len(gateway.ledger.holds) == 3


async def test_calls_at_once_are_limited_and_the_next_may_follow(tmp_path: Path) -> None:
    budgets = [{"scope": "key", "parallel": 3}]
    free = asyncio.Event()

    async def wait(x: Exchange) -> None:
        await free.wait()
        await openai_reply()(x)

    async with FakeUpstream(wait) as one, Gateway(tmp_path, world(one, budgets=budgets)) as gateway:
        first = [asyncio.create_task(gateway.ask()) for _ in range(3)]
        await one.seen(3)
        heard = await gateway.ask()
        assert (heard.status, heard.error["code"], heard.headers["retry-after"]) == (429, "parallel_limit", "1")
        free.set()
        assert [(await each).status for each in first] == [200] * 3
        assert (await gateway.ask()).status == 200


async def test_a_soft_budget_refuses_nothing(tmp_path: Path) -> None:
    budgets = [{"scope": "organisation", "limit_usd": 0.0000001, "hard": False}]
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, budgets=budgets)) as gateway:
        for dialect in DIALECTS:
            for stream in (None, True):
                assert (await gateway.ask(dialect, stream=stream, max_tokens=500)).status == 200
        record = await gateway.last()
        assert record.episode.money.value > 1 and gateway.ledger.overages == 0


async def test_a_prepaid_balance_that_is_spent_says_so(tmp_path: Path) -> None:
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, keys=KEYS)) as gateway:
        await gateway.ledger.grant("g1", "user", "ada", 50_000)
        heard = await gateway.ask(headers=AS_ADA, max_tokens=900)
        assert (heard.status, heard.error["code"], heard.headers["x-should-retry"]) == (
            402,
            "credit_exhausted",
            "false",
        )
        assert "prepaid balance" in heard.error["message"] and heard.error["metadata"]["scope"] == "credit"
        await gateway.ledger.grant("g2", "user", "ada", 50_000_000)
        assert (await gateway.ask(headers=AS_ADA, max_tokens=900)).status == 200
