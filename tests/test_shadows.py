"""Shadows over the wire: who is asked beside the reply, who pays, what is kept, and that nobody notices any of it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from tests.support.callers import DIALECTS, OPENAI, Dialect
from tests.support.gateway import ADA, CHEAP, DEAR, KEYS, Gateway, price, world
from tests.support.records import NOON, a_record
from tests.support.upstream import (
    TEXT,
    Exchange,
    FakeUpstream,
    error,
    hang_before_headers,
    hang_mid_stream,
    openai_reply,
    openai_stream,
    well_formed,
)
from tierwise.core.decide import decide
from tierwise.core.episode import Answer, Failed, Replied, Told
from tierwise.core.money import Usage
from tierwise.core.request import EXPLORATION, Payer
from tierwise.core.snapshot import load
from tierwise.routing import shadows
from tierwise.stores import journal_sql
from tierwise.stores.journal import SqliteJournal
from tierwise.stores.memory import MemoryJournal

BUDGET = {"scope": "tag", "match": {"traffic": "exploration"}, "limit_usd": 1, "window": "day"}
JUDGE = "one/judge"
SECRET = "the shadow's own words"
ASKED = {"authorization": f"Bearer {ADA}"}


def explored(**more: Any) -> dict[str, Any]:
    return {
        "start": {"explore": {"rate": 1.0, "among": ["frontier"], **more}, "then": "usual"},
        "usual": {"use": ["fast"]},
    }


@asynccontextmanager
async def shadowed(
    tmp_path: Path, step: Any = well_formed, *, budgets: tuple[Any, ...] = (BUDGET,), **more: Any
) -> AsyncIterator[tuple[Gateway, FakeUpstream, FakeUpstream]]:
    """A gateway whose every request has a shadow at `two`, which answers with this step."""
    plans = explored(shadow=True, **more)
    models = {JUDGE: {"tier": "local", "price": price(1, 1), "max_output_tokens": 300}}
    async with (
        FakeUpstream() as one,
        FakeUpstream(step) as two,
        Gateway(tmp_path, world(one, two, plans=plans, budgets=list(budgets), keys=KEYS, models=models)) as gateway,
    ):
        yield gateway, one, two


def outcomes(gateway: Gateway) -> dict[str, int]:
    return dict(gateway.router.tally.shadows)


# ------------------------------------------------------------------------------------------------ asked, paid, kept


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
async def test_a_shadow_is_asked_held_and_kept_beside_the_reply(tmp_path: Path, dialect: Dialect, stream: bool) -> None:
    async with shadowed(tmp_path, openai_reply(SECRET)) as (gateway, one, two):
        heard = await gateway.ask(dialect, headers=ASKED, stream=stream or None)
        assert heard.status == 200 and heard.text == TEXT
        record = await gateway.last()
        assert (len(one.requests), len(two.requests)) == (1, 1)
        assert two.requests[0].model == "dear" and not two.requests[0].stream
        (event,) = record.shadows
        assert isinstance(event, Replied) and event.model == DEAR
        assert event.facts.answer_key and event.facts.characters == len(SECRET) and event.cost_nano
        # Who asked pays for the reply and for nothing else; the shadow's own tag pays for the shadow.
        (usual, _), (shadow, _) = gateway.ledger.holds
        assert usual.payer == Payer(key="ada", user="ada", team="search")
        assert (shadow.payer, shadow.session, shadow.steps) == (Payer(tags=(EXPLORATION,)), "", 0)
        assert record.outcome.cost_nano == record.episode.events[0].cost_nano  # type: ignore[union-attr]
        assert shadow.amount_nano >= event.cost_nano
        assert outcomes(gateway) == {"asked": 1} and gateway.router.tally.shadow_cost_nano == event.cost_nano
        assert SECRET.encode() not in msgspec.json.encode(record)
        # The decision that wanted it is the last one, and is made again from what was kept.
        last = record.decisions[-1]
        assert isinstance(last.step, Answer) and last.shadow is not None and last.shadow.model == DEAR
        kept = await gateway.router.journal.read_snapshot(record.episode.snapshot)
        assert kept is not None and decide(load(kept), record.episode) == last


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"tierwise": {"criticality": "critical"}}, {}),
        ({"tierwise": {"explore": False}}, {}),
        ({}, {"x-tierwise-criticality": "critical"}),
        ({}, {"x-tierwise-explore": "off"}),
        ({"model": CHEAP}, {}),
    ],
)
async def test_some_requests_have_none(tmp_path: Path, body: Any, headers: Any) -> None:
    async with shadowed(tmp_path) as (gateway, _one, two):
        assert (await gateway.ask(OPENAI, headers={**ASKED, **headers}, **body)).status == 200
        record = await gateway.last()
        assert not two.requests and record.shadows == () and all(each.shadow is None for each in record.decisions)


@pytest.mark.parametrize("stream", [False, True])
async def test_both_replies_are_graded_and_their_texts_forgotten(tmp_path: Path, stream: bool) -> None:
    async with shadowed(tmp_path, openai_reply(SECRET), grader=JUDGE) as (gateway, one, _two):
        one.script(openai_stream() if stream else openai_reply(TEXT), openai_reply("0.25"), openai_reply("0.75"))
        await gateway.ask(OPENAI, headers=ASKED, stream=stream or None)
        record = await gateway.last()
        shown = [request.body.decode() for request in one.requests[1:]]
        told = [event for event in record.shadows if isinstance(event, Told)]
        assert [event.score for event in told] == [0.25, 0.75]
        assert {event.of for event in told} == {0, 1}
        for text, event in zip(shown, told, strict=True):
            assert (TEXT in text, SECRET in text) == ((True, False) if event.of == 0 else (False, True))
        assert outcomes(gateway) == {"asked": 1, "graded": 2}
        assert [hold.payer for hold, _ in gateway.ledger.holds[1:]] == [Payer(tags=(EXPLORATION,))] * 3
        assert SECRET.encode() not in msgspec.json.encode(record)


async def test_a_grade_that_is_no_number_grades_nothing(tmp_path: Path) -> None:
    async with shadowed(tmp_path, openai_reply(SECRET), grader=JUDGE) as (gateway, one, _two):
        one.script(openai_reply(TEXT), openai_reply("splendid"), error(503))
        await gateway.ask(OPENAI, headers=ASKED)
        record = await gateway.last()
        assert outcomes(gateway) == {"asked": 1, "ungraded": 2}
        assert [type(event) for event in record.shadows] == [Replied, Told, Failed]


# ------------------------------------------------------------------------------------------------ money


async def test_an_explored_call_stands_under_its_payer_and_the_budget_of_exploration(tmp_path: Path) -> None:
    """And when that is spent, the usual plan answers: nobody is refused for what chance would have tried."""
    config = {
        "plans": explored(),
        "keys": KEYS,
        "budgets": [{**BUDGET, "limit_usd": 0.02}, {"scope": "user", "calls": 9}],
    }
    async with FakeUpstream() as one, FakeUpstream() as two, Gateway(tmp_path, world(one, two, **config)) as gateway:
        for _ in range(3):
            assert (await gateway.ask(OPENAI, headers=ASKED, max_tokens=1_000)).status == 200
        hold, denial = gateway.ledger.holds[0]
        assert denial is None and hold.model == DEAR
        assert hold.payer == Payer(key="ada", user="ada", team="search", tags=(EXPLORATION,))
        await gateway.apply(
            world(one, two, **{**config, "budgets": [{**BUDGET, "limit_usd": 0.001}, *config["budgets"][1:]]})
        )
        heard = await gateway.ask(OPENAI, headers=ASKED, max_tokens=1_000)
        record = await gateway.last()
        assert heard.status == 200 and record.outcome.routed == CHEAP
        assert [decision.step.model for decision in record.decisions if hasattr(decision.step, "model")][-1] == CHEAP
        assert gateway.ledger.holds[-1][0].payer == Payer(key="ada", user="ada", team="search")


async def test_a_denied_shadow_is_not_made_but_counted_and_told(tmp_path: Path) -> None:
    async with shadowed(tmp_path, budgets=({**BUDGET, "limit_usd": 0.00001},)) as (gateway, _one, two):
        for _ in range(3):
            assert (await gateway.ask(OPENAI, headers=ASKED)).status == 200
        record = await gateway.last()
        assert not two.requests and record.shadows == ()
        assert outcomes(gateway) == {"denied": 3}
        assert gateway.log.count("no shadow of two/dear: the ledger said no (tag budget: budget_exceeded)") == 1


async def test_what_is_spent_on_exploration_never_passes_its_cap(tmp_path: Path) -> None:
    """All at once, so that only holds can stop them."""
    async with shadowed(tmp_path, budgets=({**BUDGET, "limit_usd": 0.04},)) as (gateway, _one, two):
        await asyncio.gather(*(gateway.ask(OPENAI, headers=ASKED, max_tokens=800) for _ in range(12)))
        await gateway.settled()
        (balance,) = gateway.ledger.balances(Payer(tags=(EXPLORATION,)), (await gateway.last()).episode.hints)
        assert 0 < balance.spent_nano <= 40_000_000 and balance.held_nano == 0
        assert outcomes(gateway)["denied"] > 0 and outcomes(gateway)["asked"] == len(two.requests) > 0


# ------------------------------------------------------------------------------------------------ faults, the end


async def test_a_shadow_that_fails_is_kept_as_that_and_lets_nobody_rest(tmp_path: Path) -> None:
    async with shadowed(tmp_path, error(500)) as (gateway, _one, _two):
        for _ in range(12):
            await gateway.ask(OPENAI, headers=ASKED)
            await gateway.settled()
        record = await gateway.last()
        (event,) = record.shadows
        assert isinstance(event, Failed) and (event.kind, event.message, event.cost_nano) == ("overloaded", "", 0)
        assert gateway.router.health.resting() == ()
        assert outcomes(gateway) == {"failed": 12}
        assert gateway.router.tally.failures[DEAR, "overloaded"] == 12


async def test_more_than_so_many_at_once_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadows, "MOST", 2)
    async with shadowed(tmp_path, hang_before_headers) as (gateway, _one, two):
        for _ in range(5):
            assert (await gateway.ask(OPENAI, headers=ASKED)).status == 200
        assert outcomes(gateway) == {"dropped": 3}
        await gateway.router.shadows.drain(0.0)
        assert outcomes(gateway) == {"dropped": 3, "broken": 2}
        assert len(two.requests) <= 2


async def test_at_the_end_what_hangs_is_cancelled_and_settled(tmp_path: Path) -> None:
    """The provider may have read the prompt: that much is charged, as an estimate, and no hold stays."""
    asked = asyncio.Event()

    async def hang(x: Exchange) -> None:
        asked.set()
        await hang_before_headers(x)

    async with shadowed(tmp_path, hang) as (gateway, _one, two):
        await gateway.ask(OPENAI, headers=ASKED)
        await asked.wait()
        assert gateway.ledger.open_holds() == 1
        assert await gateway.router.drain(0.0) == 0
        assert gateway.ledger.open_holds() == 0
        id, charge = gateway.ledger.charges[-1]
        assert id.endswith("-shadow.1") and charge.kind == "estimated" and charge.cost_nano > 0
        await two.requests[0].gone.wait()
        (event,) = (await gateway.last()).shadows
        assert isinstance(event, Failed) and (event.kind, event.cost_nano) == ("cut", charge.cost_nano)


async def test_a_caller_who_leaves_a_stream_gets_no_shadow(tmp_path: Path) -> None:
    async with shadowed(tmp_path) as (gateway, one, two):
        one.script(hang_mid_stream([b'data: {"choices":[{"index":0,"delta":{"content":"Pa"}}]}\n\n']))
        async with gateway.streaming(dataclasses.replace(OPENAI, headers=ASKED)) as response:
            await response.content.readany()
        await one.requests[0].gone.wait()
        record = await gateway.last()
        assert record.outcome.status != "answered" and not two.requests and not outcomes(gateway)


# ------------------------------------------------------------------------------------------------ the journal


EVENTS = (
    Replied(at="start/shadow", model="acme/large", after_ms=400, usage=Usage(input_tokens=9), cost_nano=7),
    Told(at="start/shadow!3", model="acme/judge", after_ms=500, topic="grade", score=0.5, of=3, cost_nano=1),
)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_shadows_are_joined_when_a_record_is_read(tmp_path: Path, kind: str) -> None:
    journal: Any = MemoryJournal() if kind == "memory" else SqliteJournal(tmp_path / "journal.db")
    for id in ("a", "b"):
        journal.write(a_record(id))
    for event in EVENTS:
        journal.shadow("a", NOON, event)
    expected = [msgspec.structs.replace(a_record("a"), shadows=EVENTS), a_record("b")]
    assert [await journal.read(id) for id in ("a", "b")] == expected
    assert await journal.recent(2) == expected[::-1]
    assert [story.record async for piece in journal.stories(0, NOON + 1) for story in piece] == expected
    await journal.close()


async def test_shadows_are_forgotten_with_their_episodes(tmp_path: Path) -> None:
    now = [float(NOON)]
    path = tmp_path / "journal.db"
    journal = SqliteJournal(path, keep_days=30, clock=lambda: now[0])
    journal.write(a_record("a"))
    journal.shadow("a", NOON, EVENTS[0])
    await journal.read("a")
    now[0] += 31 * 86_400
    journal.write(a_record("b", int(now[0])))
    journal.shadow("b", int(now[0]), EVENTS[0])
    while await journal.read("a") is not None:
        journal._forget_at_s = 0.0
        await asyncio.sleep(0)
    await journal.close()
    with closing(apsw.Connection(str(path))) as connection:
        assert connection.execute("SELECT decision_id FROM shadows").fetchall() == [("b",)]


async def test_a_journal_of_before_there_were_shadows_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with closing(apsw.Connection(str(path))) as connection:
        for version, migration in enumerate(journal_sql.MIGRATIONS[:2], 1):
            migration(connection)
            connection.execute(journal_sql.ADD_VERSION, (version,))
        record = msgspec.json.encode(a_record("a")).decode()
        connection.execute(
            "INSERT INTO episodes (id, at_s, snapshot, record) VALUES (?, ?, ?, ?)", ("a", NOON, "5eed", record)
        )
    journal = SqliteJournal(path)
    journal.shadow("a", NOON, EVENTS[0])
    assert await journal.read("a") == msgspec.structs.replace(a_record("a"), shadows=EVENTS[:1])
    await journal.close()
