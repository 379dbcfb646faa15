"""Idempotency-Key over HTTP: served once, replayed while it is kept, refused in words when it is not."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.callers import ANTHROPIC, DIALECTS, OPENAI, Dialect
from tests.support.gateway import ADA, BOB, KEYS, Gateway, world
from tests.support.upstream import Exchange, FakeUpstream, error, hang_before_headers, openai_reply
from tierwise.core.errors import Conflict
from tierwise.core.ports import CLAIM_S, Claim
from tierwise.core.request import Payer
from tierwise.routing import idempotency
from tierwise.routing.idempotency import Kept, Once, Replays
from tierwise.stores.ledger.sqlite import SqliteLedger
from tierwise.stores.memory import MemoryLedger

KEY = {"idempotency-key": "k-1"}


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
async def test_a_retry_gets_the_same_reply_and_costs_nothing(tmp_path: Path, dialect: Dialect) -> None:
    """B3."""
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        first = await gateway.ask(dialect, headers=KEY)
        again = await gateway.ask(dialect, headers=KEY)
        assert (first.status, again.status) == (200, 200) and first.body == again.body
        assert "x-tierwise-replayed" not in first.headers and again.headers["x-tierwise-replayed"] == "true"
        assert first.headers["x-tierwise-decision"] == again.headers["x-tierwise-decision"]
        assert (await gateway.last()).episode.id == first.headers["x-tierwise-decision"]
        other = await gateway.ask(dialect, headers={"idempotency-key": "k-2"})
        assert "x-tierwise-replayed" not in other.headers
        assert len(one.requests) == len(gateway.ledger.charges) == 2


async def test_ten_at_once_are_one_call(tmp_path: Path) -> None:
    """B3: whoever comes while the first is being answered is told so."""
    free = asyncio.Event()

    async def wait(x: Exchange) -> None:
        await free.wait()
        await openai_reply()(x)

    async with FakeUpstream(wait) as one, Gateway(tmp_path, world(one)) as gateway:
        first = asyncio.create_task(gateway.ask(headers=KEY))
        await one.seen(1)
        others = [await gateway.ask(headers=KEY) for _ in range(9)]
        assert {(each.status, each.error["code"], each.headers["retry-after"]) for each in others} == {
            (409, "idempotency_in_progress", "1")
        }
        free.set()
        heard = await first
        assert heard.status == 200
        assert {each.error["metadata"]["decision"] for each in others} == {heard.headers["x-tierwise-decision"]}
        assert len(one.requests) == 1


async def test_the_same_key_for_another_body_or_door_is_a_422(tmp_path: Path) -> None:
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        await gateway.ask(headers=KEY)
        for dialect, body in ((OPENAI, {"max_tokens": 9}), (ANTHROPIC, {})):
            heard = await gateway.ask(dialect, headers=KEY, **body)
            assert (heard.status, heard.error["code"]) == (422, "idempotency_mismatch")
        assert len(one.requests) == 1


async def test_the_keys_of_two_payers_are_two(tmp_path: Path) -> None:
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, keys=KEYS)) as gateway:
        for secret in (ADA, BOB):
            heard = await gateway.ask(headers={**KEY, "authorization": f"Bearer {secret}"})
            assert heard.status == 200 and "x-tierwise-replayed" not in heard.headers
        assert len(one.requests) == 2


async def test_a_stream_is_never_replayed_and_never_repeated(tmp_path: Path) -> None:
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        heard = await gateway.ask(headers=KEY, stream=True)
        assert heard.whole
        again = await gateway.ask(headers=KEY, stream=True)
        assert (again.status, again.error["code"], again.headers["x-should-retry"]) == (
            409,
            "idempotency_finished",
            "false",
        )
        assert heard.headers["x-tierwise-decision"] in again.error["message"]
        assert len(one.requests) == 1


@pytest.mark.parametrize(
    ("step", "status", "after"),
    [(error(503), 503, 200), (error(400), 400, 200), (hang_before_headers, 503, 409)],
    ids=["refused", "rejected", "timed out and billed"],
)
async def test_what_cost_nothing_may_be_asked_again(tmp_path: Path, step: Any, status: int, after: int) -> None:
    async with FakeUpstream() as one:
        # Time enough to connect on a busy machine: what never reached the provider costs nothing.
        hurry = {"first_token_ms": 1_000} if step is hang_before_headers else {}
        async with Gateway(tmp_path, world(one, hurry=hurry, policy={"attempts": 1})) as gateway:
            one.script(step)
            assert (await gateway.ask(headers=KEY, max_tokens=20)).status == status
            gateway.rested()
            assert (await gateway.ask(headers=KEY, max_tokens=20)).status == after


async def test_a_caller_who_left_has_used_the_key_when_it_was_sent(tmp_path: Path) -> None:
    async with FakeUpstream(hang_before_headers) as one, Gateway(tmp_path, world(one)) as gateway:
        asking = asyncio.create_task(gateway.ask(headers=KEY))
        await one.seen(1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await one.requests[0].gone.wait()
        await gateway.settled()
        heard = await gateway.ask(headers=KEY)
        assert (heard.status, heard.error["code"], len(one.requests)) == (409, "idempotency_finished", 1)


@pytest.mark.parametrize("key", ["", "x" * 257])
async def test_a_key_that_is_none_is_a_400(tmp_path: Path, key: str) -> None:
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        heard = await gateway.ask(headers={"idempotency-key": key})
        assert (heard.status, heard.error["code"]) == (400, "invalid_idempotency_key") and one.requests == []


# ------------------------------------------------------------------------------------------------ what is kept


async def _answered(replays: Replays, ledger: MemoryLedger, key: str, body: bytes) -> None:
    once = await replays.begin(ledger, Payer(), key, b"asked", f"d-{key}")
    assert isinstance(once, Once)
    once.keep(body, [])
    once.end()


async def test_replies_are_kept_within_their_number_their_bytes_and_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "REPLIES_KEPT", 3)
    monkeypatch.setattr(idempotency, "BYTES_KEPT", 10_000)
    now = [1_000.0]
    replays, ledger = Replays(lambda: now[0]), MemoryLedger(clock=lambda: now[0])

    async def gone(key: str) -> bool:
        try:
            return not isinstance(await replays.begin(ledger, Payer(), key, b"asked", "again"), Kept)
        except Conflict as error:
            assert error.code == "idempotency_finished" and f"d-{key}" in error.message
            return True

    for key in "abcd":
        await _answered(replays, ledger, key, b"x")
    assert [await gone(key) for key in "abcd"] == [True, False, False, False]
    await _answered(replays, ledger, "e", b"x" * 9_000)
    assert [await gone(key) for key in "bcde"] == [True, True, True, False]
    await _answered(replays, ledger, "f", b"x" * 20_000)  # larger than all that is kept: not kept at all
    assert [await gone(key) for key in "ef"] == [False, True]
    now[0] += CLAIM_S
    once = await replays.begin(ledger, Payer(), "e", b"other", "new")  # after a day the key is new
    assert isinstance(once, Once) and replays.running == {"new"}
    once.end()
    assert replays.running == set()


def test_a_reply_that_takes_another_s_place_takes_its_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "BYTES_KEPT", 3_000)
    replays = Replays()
    for day in range(10):
        replays.put(Payer(), "every day", f"d-{day}", Kept(b"x" * 500, ()))
        replays.put(Payer(), "too", f"d-{day}", Kept(b"x" * 500, ()))
        assert len(replays._kept) == 2


async def test_a_clock_that_is_set_forward_has_nobody_pay_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_800_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    ledger = SqliteLedger(tmp_path / "ledger.sqlite", (), time.time, reserve_bytes=1)
    payer = Payer(key="k")
    assert await ledger.claim(payer, "k-1", "f", "d1") is None
    now[0] += 2 * CLAIM_S
    assert await ledger.claim(payer, "k-1", "f", "d2") == Claim("d1", "f")
    await ledger.close()
