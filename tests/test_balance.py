"""`GET /v1/balance`: what is left above the caller, once and live, and what replies say of it. A real gateway, read by
a real client while requests run."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.callers import DIALECTS, OPENAI
from tests.support.gateway import ADA, BOB, CHEAP, KEYS, Gateway, world
from tests.support.replies import USUAL
from tests.support.upstream import Exchange, FakeUpstream, well_formed
from tierwise.core.budget import Budget
from tierwise.core.request import Hints, Payer
from tierwise.routing.router import Router
from tierwise.routing.trace import tightest_of
from tierwise.server import balance
from tierwise.stores.memory import MemoryLedger

COST = (USUAL.input * 1 + USUAL.output * 4) * 1_000  # nano-dollars of one usual reply
USD = 10**9
NOON = 1_767_182_400
PAYER = Payer(user="ada", team="search")
BUDGETS: list[dict[str, Any]] = [
    {"scope": "request", "limit_usd": 0.2},
    {"scope": "session", "limit_usd": 0.25, "window": "lifetime"},
    {"scope": "user", "limit_usd": 1, "window": "day"},
    {"scope": "team", "match": {"team": "search"}, "limit_usd": 3, "window": "month"},
    {"scope": "user", "match": {"user": "bob"}, "limit_usd": 7, "window": "month"},
]
AS_ADA, AS_BOB = {"authorization": f"Bearer {ADA}"}, {"authorization": f"Bearer {BOB}"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "LOOK_S", 0.005)


def gateway_of(folder: Path, upstream: FakeUpstream, **more: Any) -> Gateway:
    return Gateway(folder, world(upstream, keys=KEYS, **{"budgets": BUDGETS, **more}))


class Follower:
    """One event stream, event by event; comments count as events without a name."""

    def __init__(self, response: Any) -> None:
        self.response = response

    async def next(self) -> tuple[str, Any]:
        name, data = "", ""
        async with asyncio.timeout(10):
            while True:
                line = (await self.response.content.readline()).decode()
                if not line:
                    return "over", None
                key, _, value = line.rstrip("\n").partition(":")
                if line == "\n" and (name or data):
                    return name, json.loads(data) if name else data
                name, data = (
                    (value.strip() if key == "event" else name),
                    (value.strip() if key in ("data", "") else data),
                )

    async def until(self, holds: Any) -> dict[str, Any]:
        """The first event of which this is true; every one before it is checked too."""
        while True:
            name, data = await self.next()
            assert name == "balance", (name, data)
            assert sound(data)
            if holds(data):
                return dict(data)


@asynccontextmanager
async def following(gateway: Gateway, query: str = "", **headers: str) -> AsyncIterator[Follower]:
    wanted = {**AS_ADA, "accept": "text/event-stream", **headers}
    async with gateway.session.get(f"{gateway.url}/v1/balance{query}", headers=wanted) as response:
        assert response.status == 200 and response.headers["content-type"].startswith("text/event-stream")
        yield Follower(response)


def sound(told: dict[str, Any]) -> bool:
    """In every picture the sums are exact, in both notations."""
    for each in told["balances"]:
        assert each["limit_nano"] == each["spent_nano"] + each["held_nano"] + each["left_nano"], each
        for name in ("limit", "spent", "held", "left"):
            whole, _, rest = each[f"{name}_usd"].partition(".")
            assert int(whole) * USD + int(rest.ljust(9, "0")) == each[f"{name}_nano"]
    return True


def of(told: dict[str, Any], scope: str) -> dict[str, Any]:
    return next(each for each in told["balances"] if each["scope"] == scope)


async def ended(gateway: Gateway) -> None:
    """Wait for the handlers that still run. A follower that is left behind makes this fail."""
    tasks = gateway._server.server_state.tasks
    if tasks:
        _, still = await asyncio.wait(tasks, timeout=10)
        assert not still


# ------------------------------------------------------------------------------------------------ once


async def test_what_is_told_once(tmp_path: Path) -> None:
    async with FakeUpstream() as one, gateway_of(tmp_path, one) as gateway:
        assert (await gateway.ask(headers=AS_ADA, tierwise={"session": "s-1"})).status == 200
        heard = await gateway.get("/v1/balance?session=s-1", headers=AS_ADA)
        told = heard.json
        assert heard.status == 200 and sound(told) and heard.headers["cache-control"] == "no-store"
        assert [(each["scope"], each["window"]) for each in told["balances"]] == [
            ("request", "lifetime"), ("session", "lifetime"), ("user", "day"), ("team", "month"),
        ]  # fmt: skip
        assert [of(told, scope).get("subject") for scope in ("request", "session", "user", "team")] == [
            None, "s-1", "ada", "search",
        ]  # fmt: skip
        assert [of(told, scope)["spent_nano"] for scope in ("session", "user", "team")] == [COST] * 3
        assert of(told, "user")["calls"] == {"limit": None, "used": 1}
        assert (told["left_nano"], told["least_left_in"]) == (USD // 4 - COST, "session")
        assert told["price_of_money"] >= 1.0
        day = of(told, "user")
        assert day["starts_at"] < told["at"] < day["resets_at"] and day["resets_at"].endswith("T00:00:00Z")
        assert of(told, "session")["resets_at"] is None


async def test_nobody_sees_the_balances_of_others(tmp_path: Path) -> None:
    async with FakeUpstream() as one, gateway_of(tmp_path, one) as gateway:
        await gateway.ask(headers=AS_ADA, tierwise={"session": "s-1"})
        told = (await gateway.get("/balance?session=s-1", headers=AS_BOB)).json
        assert [(each["scope"], each["limit_usd"], each["spent_nano"]) for each in told["balances"]] == [
            ("request", "0.2", 0), ("session", "0.25", 0), ("user", "1", 0), ("user", "7", 0),
        ]  # fmt: skip
        assert "ada" not in json.dumps(told) and "search" not in json.dumps(told)
        assert (await gateway.get("/v1/balance")).error["code"] == "missing_api_key"


@pytest.mark.parametrize(
    ("query", "code"),
    [("?user=bob", "unknown_parameter"), ("?session=", "invalid_parameter"), ("?workflow=%0a", "invalid_parameter"),
     ("?session=" + "x" * 201, "invalid_parameter")],
)  # fmt: skip
async def test_other_questions_are_refused(tmp_path: Path, query: str, code: str) -> None:
    async with FakeUpstream() as one, gateway_of(tmp_path, one) as gateway:
        heard = await gateway.get(f"/v1/balance{query}", headers=AS_ADA)
        assert (heard.status, heard.error["code"]) == (400, code)


async def test_a_credit_is_told_as_one(tmp_path: Path) -> None:
    async with FakeUpstream() as one, gateway_of(tmp_path, one) as gateway:
        await gateway.ledger.grant("g-1", "user", "ada", USD // 10)
        heard = await gateway.ask(headers=AS_ADA)
        told = (await gateway.get("/v1/balance", headers=AS_ADA)).json
        credit = told["balances"][-1]
        assert (credit["credit"], credit["scope"], credit["left_nano"]) == (True, "user", USD // 10 - COST)
        assert heard.headers["x-tierwise-budget-remaining-usd"] == credit["left_usd"] == told["left_usd"]
        assert told["least_left_in"] == "credit"


# ------------------------------------------------------------------------------------------------ live


async def test_a_follower_sees_money_held_and_then_spent(tmp_path: Path) -> None:
    goes_on = asyncio.Event()

    async def wait(x: Exchange) -> None:
        await goes_on.wait()
        await well_formed(x)

    async with (
        FakeUpstream(wait) as one,
        gateway_of(tmp_path, one) as gateway,
        following(gateway, "?session=s") as follower,
    ):
        first = await follower.until(lambda told: True)
        assert of(first, "user")["left_nano"] == USD
        asking = asyncio.create_task(gateway.ask(headers={**AS_ADA, "x-tierwise-session": "s"}))
        held = await follower.until(lambda told: of(told, "user")["held_nano"])
        assert of(held, "user")["spent_nano"] == 0 and of(held, "user")["parallel"]["used"] == 1
        goes_on.set()
        spent = await follower.until(lambda told: not of(told, "user")["held_nano"])
        assert of(spent, "user")["spent_nano"] == COST
        assert (await asking).headers["x-tierwise-budget-remaining-usd"] == spent["left_usd"]


async def test_balances_fall_while_requests_run_and_end_exact(tmp_path: Path) -> None:
    """Two followers of the same payer and one of another; every picture adds up, and what is spent only grows."""
    async with (
        FakeUpstream() as one,
        gateway_of(tmp_path, one) as gateway,
        following(gateway) as first,
        following(gateway) as second,
        following(gateway, **AS_BOB) as other,
    ):
        asked = asyncio.gather(
            *(gateway.ask(DIALECTS[n % 2], headers=AS_ADA, stream=n % 3 == 0 or None) for n in range(40))
        )
        for follower in (first, second):
            spent, told = [0], {}
            while spent[-1] < 40 * COST:
                told = await follower.until(lambda _: True)
                spent.append(of(told, "user")["spent_nano"])
            assert spent == sorted(spent) and of(told, "team")["spent_nano"] == 40 * COST
        assert {heard.status for heard in await asked} == {200}
        assert gateway.ledger.cost_nano == 40 * COST
        assert (await other.until(lambda told: True))["balances"][-1]["spent_nano"] == 0


async def test_nothing_is_said_while_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "STILL_HERE_S", 0.0)
    minutes = [{"scope": "user", "limit_usd": 1, "window": "minute"}]
    clock = iter(range(1_767_182_400, 1_767_282_400, 61))  # each look is in another minute
    async with FakeUpstream() as one:
        gateway = Gateway(tmp_path, world(one, keys=KEYS, budgets=minutes), now=lambda: next(clock))
        async with gateway, following(gateway) as follower:
            names = [(await follower.next())[0] for _ in range(4)]
            assert names == ["balance", "", "", ""]


async def test_whoever_leaves_leaves_nothing_behind(tmp_path: Path) -> None:
    async with FakeUpstream() as one, gateway_of(tmp_path, one) as gateway:
        for leave in ("close", "abort"):
            async with following(gateway) as follower:
                await follower.until(lambda told: True)
                assert len(gateway.app.followers) == 1
                if leave == "abort":
                    follower.response.connection.transport.abort()
                else:
                    follower.response.close()
            await ended(gateway)
            assert len(gateway.app.followers) == 0
        assert (await gateway.ask(headers=AS_ADA)).status == 200


async def test_followers_are_bounded_for_each_payer_and_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "MOST_FOLLOWERS_OF_ONE", 2)
    monkeypatch.setattr(balance, "MOST_FOLLOWERS", 3)
    live = {"accept": "text/event-stream"}
    async with FakeUpstream() as one, gateway_of(tmp_path, one) as gateway:
        async with following(gateway), following(gateway):
            for others, headers in ((), AS_ADA), ((AS_BOB,), AS_BOB):
                async with AsyncExitStack() as stack:
                    for each in others:
                        await stack.enter_async_context(following(gateway, **each))
                    heard = await gateway.get("/v1/balance", headers={**headers, **live})
                    assert (heard.status, heard.error["code"]) == (429, "too_many_followers")
                    assert heard.headers["retry-after"] == "10"
            assert (await gateway.get("/v1/balance", headers=AS_ADA)).status == 200  # to look once is always possible
        await ended(gateway)
        async with following(gateway) as follower:
            await follower.until(lambda told: True)


async def test_whoever_does_not_read_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "UNREAD_S", 0.02)
    ticks = itertools.count(NOON)
    monkeypatch.setattr(Router, "stamp", lambda self: (next(ticks), 0))  # no look is like the one before
    monkeypatch.setattr(balance, "_lasting", lambda told: [object()])  # something changes at every look
    monkeypatch.setattr(balance, "_event", lambda name, data: b":" + b"x" * (1 << 20) + b"\n\n")
    async with FakeUpstream() as one, gateway_of(tmp_path, one) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1_024)
        head = f"GET /v1/balance HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\nx-api-key: {ADA}\r\n\r\n"
        writer.write(head.encode())
        assert b"200 OK" in await reader.readline()
        await ended(gateway)
        assert len(gateway.app.followers) == 0
        writer.close()


async def test_followers_are_told_when_the_server_stops(tmp_path: Path) -> None:
    async with FakeUpstream() as one, gateway_of(tmp_path, one) as gateway, following(gateway) as follower:
        await follower.until(lambda told: True)
        gateway.router.stop()
        name, data = await follower.next()
        assert (name, data["reason"]) == ("end", "draining")
        assert await follower.next() == ("over", None)
        await ended(gateway)


async def test_a_key_that_is_taken_away_follows_no_more(tmp_path: Path) -> None:
    async with FakeUpstream() as one, gateway_of(tmp_path, one) as gateway, following(gateway) as follower:
        await follower.until(lambda told: True)
        await gateway.apply({**gateway.config, "keys": KEYS[1:]})
        name, data = await follower.next()
        assert (name, data["reason"]) == ("end", "invalid_api_key")
        assert await follower.next() == ("over", None)


# ------------------------------------------------------------------------------------------------ in replies


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
async def test_replies_carry_what_remains(tmp_path: Path, dialect: Any, stream: bool) -> None:
    """Header and usage say what the ledger says once the reply is settled, streams in their last usage."""
    options = {"stream_options": {"include_usage": True}} if stream and dialect is OPENAI else {}
    async with FakeUpstream() as one, gateway_of(tmp_path, one) as gateway:
        for n in range(1, 4):
            said = {"tierwise": {"session": "s"}} if dialect is OPENAI else {}
            headers = {**AS_ADA, "x-tierwise-session": "s"}
            heard = await gateway.ask(dialect, headers=headers, stream=stream or None, **options, **said)
            await gateway.settled()
            told = (await gateway.get("/v1/balance?session=s", headers=AS_ADA)).json
            assert told["left_nano"] == USD // 4 - n * COST
            assert heard.model == CHEAP
            assert heard.usage["tierwise"]["budget_remaining_usd"] == pytest.approx(told["left_nano"] / USD, abs=1e-12)
            if not stream:
                assert heard.headers["x-tierwise-budget-remaining-usd"] == told["left_usd"]


async def test_without_budgets_nothing_is_said(tmp_path: Path) -> None:
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        heard = await gateway.ask()
        assert "budget_remaining_usd" not in heard.usage["tierwise"]
        assert "x-tierwise-budget-remaining-usd" not in heard.headers
        told = (await gateway.get("/v1/balance")).json
        assert (told["balances"], told["left_usd"], told["least_left_in"]) == ([], None, None)


async def test_the_least_left_is_that_of_the_tightest_hard_balance() -> None:
    def left(*budgets: Budget) -> int | None:
        ledger = MemoryLedger(budgets, lambda: float(NOON))
        for line in ledger.books._lines:
            for subject in line.subjects(PAYER, "", "", ""):
                account = line.standing(subject, NOON).account
                account.posted_nano, account.pending_nano = 2, 3
        found, tightest = ledger.left_nano(PAYER, Hints()), tightest_of(ledger.balances(PAYER, Hints()))
        assert found == (tightest[0] if tightest else None)
        return found

    user = Budget(scope="user", limit_nano=10, window="day")
    assert left() is None
    assert left(Budget(scope="user", calls=3), Budget(scope="user", limit_nano=1, hard=False)) is None
    assert left(Budget(scope="request", limit_nano=1), user) == 5
    assert left(user, Budget(scope="team", limit_nano=9, window="day", rolling=True)) == 4
    assert left(Budget(scope="user", limit_nano=3), user) == -2, "after an overage"
