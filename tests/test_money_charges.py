"""What a call is charged: never nothing once it was sent, in full where it is above the hold, and by whose count."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from tests.support.gateway import CHEAP, Gateway, world
from tests.support.ledgers import NOON, a_hold
from tests.support.replies import Tokens, dump, openai_body, openai_events
from tests.support.upstream import (
    Exchange,
    FakeUpstream,
    Step,
    endless_stream,
    hang_before_headers,
    hang_mid_stream,
    json_reply,
    no_usage,
    openai_reply,
    openai_stream,
    plain,
    sse,
    truncated_chunked,
)
from tierwise.core.budget import Budget
from tierwise.core.money import PriceRow, Rates
from tierwise.routing import streams
from tierwise.routing.ratios import MOST, Ratio
from tierwise.stores.ledger.books import SUSPENSE_S, Books

# ------------------------------------------------------------------------------------------------ what is charged


async def test_a_bill_above_the_hold_is_charged_closes_the_budget_and_is_told_once_a_minute(tmp_path: Path) -> None:
    """B7: ten times the hold."""
    budgets = [{"scope": "organisation", "limit_usd": 0.01}]
    vast = {"prompt_tokens": 20_000, "completion_tokens": 1_000, "total_tokens": 21_000}
    async with FakeUpstream(openai_reply(usage=vast)) as one, Gateway(tmp_path, world(one, budgets=budgets)) as gateway:
        assert (await gateway.ask(max_tokens=100)).status == 200
        assert gateway.ledger.cost_nano == 24_000_000
        tally, held = gateway.router.tally, gateway.ledger.holds[0][0].amount_nano
        assert (tally.overages, tally.overage_nano) == (1, 24_000_000 - held)
        assert gateway.ledger.overage_nano == tally.overage_nano
        heard = await gateway.ask(max_tokens=1)
        assert (heard.status, len(one.requests)) == (402, 1)
        assert gateway.log.count("above what was held") == 1 and "organisation budget" in gateway.log
        await gateway.apply({**gateway.config, "budgets": [{"scope": "organisation", "limit_usd": 1}]})
        assert (await gateway.ask(max_tokens=100)).status == 200
        assert gateway.log.count("above what was held") == 1 and tally.overages == 2


ZERO = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


WAYS_OUT: dict[str, tuple[Step, bool]] = {
    "plain, no usage": (no_usage, False),
    "plain, zero usage": (openai_reply(usage=ZERO), False),
    "plain, only the output told": (openai_reply(usage={**ZERO, "completion_tokens": 7}), False),
    "plain, silence": (hang_before_headers, False),
    "stream, no usage": (no_usage, True),
    "stream, zero usage": (openai_stream(usage=ZERO, always_usage=True), True),
    "stream, only the output told": (openai_stream(usage={**ZERO, "completion_tokens": 7}, always_usage=True), True),
    "stream, cut before its first word": (truncated_chunked(()), True),
    "stream, cut after it": (truncated_chunked(openai_events("cheap")[:3]), True),
    "stream, silence": (hang_before_headers, True),
    "stream, silence after the first word": (hang_mid_stream(openai_events("cheap")[:3]), True),
}


@pytest.mark.parametrize("name", WAYS_OUT)
async def test_what_was_sent_is_never_free(tmp_path: Path, name: str) -> None:
    """S3: every way out of a call whose provider did not say what it costs."""
    step, stream = WAYS_OUT[name]
    async with (
        FakeUpstream(step) as one,
        Gateway(tmp_path, world(one, hurry={"first_token_ms": 600, "idle_ms": 600}, policy={"attempts": 1})) as gateway,
    ):
        await gateway.ask(stream=stream or None, max_tokens=50)
        await gateway.settled()
        ((_, charge),) = gateway.ledger.charges
        assert charge.kind == "estimated" and charge.cost_nano >= gateway.ledger.holds[0][0].least_nano > 0, charge
        assert charge.cost_nano <= gateway.ledger.holds[0][0].amount_nano


def of_bytes(size: int) -> bytes:
    """No JSON, of so many bytes."""
    return b'{"choices":[{"message":{"content":"' + b"a" * (size - 35)


SAID = openai_events("cheap", "one two three four", pieces=2)[:3]  # a role and the words
TOLD = {"prompt_tokens": 30, "completion_tokens": 20, "total_tokens": 50}
UNREADABLE: dict[str, tuple[Step, bool, tuple[int, int]]] = {
    # a reply, whether it is streamed, and the fewest and the most tokens of output that it is charged for
    "plain, short": (plain(of_bytes(80), "application/json"), False, (80, 80)),
    "plain, longer than the ceiling": (plain(of_bytes(9_000), "application/json"), False, (200, 200)),
    "plain, but for the usage": (json_reply({"choices": [], "usage": TOLD}), False, (20, 20)),
    "plain, of another kind": (plain(of_bytes(70), "text/html"), False, (70, 70)),
    "plain, in an encoding that we do not know": (
        plain(of_bytes(70), "application/json", headers=[("Content-Encoding", "br")]), False, (1, 200),
    ),
    "stream, from the first": (sse([b"data: {nonsense}\n\n"]), True, (18, 18)),
    "stream, without a word": (sse([b'data: {"odd":1}\n\n'] * 3 + [b"data: [DONE]\n\n"]), True, (65, 65)),
    "stream, after some words": (sse([*SAID, b"data: {nonsense}\n\n"]), True, (4 + 18, 4 + 18)),
    "stream, at last longer than the ceiling": (sse([*SAID, b"data: {" + b"a" * 9_000 + b"\n\n"]), True, (200, 200)),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
async def test_a_reply_that_nobody_can_read_is_charged_for_what_it_can_have_been(tmp_path: Path, name: str) -> None:
    """The prompt, and of output as many tokens as there were bytes, up to the ceiling that is held for: never more."""
    step, stream, (least, most) = UNREADABLE[name]
    async with FakeUpstream(step) as one, Gateway(tmp_path, world(one, policy={"attempts": 1})) as gateway:
        heard = await gateway.ask(stream=stream or None, max_tokens=200)
        assert heard.status == 502 or not heard.whole
        await gateway.settled()
        ((_, charge),) = gateway.ledger.charges
        hold = gateway.ledger.holds[0][0]
        told = name == "plain, but for the usage"
        assert charge.kind == ("reported" if told else "estimated")
        assert least <= charge.usage.output_tokens <= most, charge
        assert charge.usage.input_tokens == (30 if told else hold.least_nano // 1_000)
        assert hold.least_nano < charge.cost_nano <= hold.amount_nano
        ((record),) = await gateway.records()
        assert record.outcome.cost_nano == charge.cost_nano


async def test_what_a_model_thought_is_in_no_bytes(tmp_path: Path) -> None:
    """Nor is it above the ceiling, however fast the model is."""
    async with FakeUpstream(plain(of_bytes(50), "application/json")) as one, Gateway(tmp_path, world(one)) as gateway:
        snapshot = gateway.router.snapshot
        model = snapshot.catalogue.models[CHEAP]
        written = []
        for abilities, speed in (((), 1e9), (("reasoning",), 1e9), (("reasoning",), 1e-9)):
            fast = msgspec.structs.replace(model, abilities=frozenset(abilities), tokens_per_second=speed)
            catalogue = msgspec.structs.replace(snapshot.catalogue, models={**snapshot.catalogue.models, CHEAP: fast})
            gateway.router.swap(msgspec.structs.replace(snapshot, catalogue=catalogue))
            gateway.rested()
            await gateway.ask(max_tokens=200)
            written.append(gateway.ledger.charges[-1][1].usage.output_tokens)
        assert written == [50, 200, 51]


@pytest.mark.parametrize(
    ("amount", "least", "tokens", "counted"),
    [(8_000, 1_000, 400, 50), (8_000, 8_000, 400, 400), (3, 1, 100, 34), (0, 0, 400, 400), (8_000, 0, 400, 400)],
)
def test_a_call_whose_end_nobody_saw_counts_tokens_as_it_counts_money(
    amount: int, least: int, tokens: int, counted: int
) -> None:
    """A limit on tokens is not escaped by a crash. Where no money is known, all of them may have been used."""
    books = Books((Budget(scope="session", tokens=400),))
    assert books.hold(a_hold("a", amount, least_nano=least, tokens=tokens)) is None
    books.expire(NOON + 1)
    assert books.resolve(NOON + SUSPENSE_S) == 1
    room = 400 - counted
    assert books.hold(a_hold("b", 0, tokens=room + 1)) is not None and books.hold(a_hold("c", 0, tokens=room)) is None
    assert books.audit() == ()


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_who_goes_before_the_first_word_has_had_the_prompt_read(tmp_path: Path, stream: bool) -> None:
    async with FakeUpstream(hang_before_headers) as one, Gateway(tmp_path, world(one)) as gateway:
        asking = asyncio.create_task(gateway.ask(stream=stream or None, max_tokens=50))
        await one.seen(1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await one.requests[0].gone.wait()
        await gateway.settled()
        ((_, charge),) = gateway.ledger.charges
        assert charge.kind == "estimated" and charge.cost_nano >= gateway.ledger.holds[0][0].least_nano > 0


async def test_who_goes_while_a_helper_is_asked_pays_for_a_helper(tmp_path: Path) -> None:
    """Our own estimate is never above what was held: it would close a budget that no provider has overdrawn."""
    ask = {"of": "fast", "topic": "hard", "question": "Is it hard?", "answers": ["yes", "no"]}
    plans = {"start": {"ask": ask, "then": "last"}, "last": {"use": ["frontier"]}}
    async with (
        FakeUpstream(hang_before_headers) as one,
        FakeUpstream() as two,
        Gateway(tmp_path, world(one, two, plans=plans)) as gateway,
    ):
        snapshot = gateway.router.snapshot
        model = msgspec.structs.replace(snapshot.catalogue.models[CHEAP], tokens_per_second=1e9)
        models = {**snapshot.catalogue.models, CHEAP: model}
        catalogue = msgspec.structs.replace(snapshot.catalogue, models=models)
        gateway.router.swap(msgspec.structs.replace(snapshot, catalogue=catalogue))
        asking = asyncio.create_task(gateway.ask(max_tokens=4_000, n=2))
        await one.seen(1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await one.requests[0].gone.wait()
        await gateway.settled()
        ((_, charge),) = gateway.ledger.charges
        assert 0 < charge.cost_nano <= gateway.ledger.holds[0][0].amount_nano


async def test_an_endless_stream_under_a_budget_is_cut_at_what_is_held(tmp_path: Path) -> None:
    """S9: spent is the hold and what was in flight: a chunk of the socket."""
    budgets = [{"scope": "organisation", "limit_usd": 1}]
    async with FakeUpstream(endless_stream()) as one, Gateway(tmp_path, world(one, budgets=budgets)) as gateway:
        for ceiling in (20, 200, 900):
            heard = await gateway.ask(stream=True, max_tokens=ceiling)
            assert not heard.whole and heard.stream_error["code"] == "over_ceiling"
            await gateway.settled()
            hold, charge = gateway.ledger.holds[-1][0], gateway.ledger.charges[-1][1]
            in_flight = 2 * 65_536 // len(openai_events("cheap", "more ", pieces=1)[1])
            assert ceiling <= charge.usage.output_tokens, (ceiling, charge)
            assert charge.cost_nano <= hold.amount_nano + 4_000 * (in_flight + 8), (ceiling, charge)


async def test_what_has_been_streamed_is_noted_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "CHECKPOINT_S", 0.0)
    begun, free = asyncio.Event(), asyncio.Event()
    events = openai_events("cheap", "word " * 400, pieces=8)

    async def step(x: Exchange) -> None:
        await x.start_stream()
        for event in events[:2]:
            await x.chunk(event)
        await begun.wait()
        for event in events[2:6]:
            await x.chunk(event)
        await free.wait()
        for event in events[6:]:
            await x.chunk(event)
        await x.chunk(b"")

    async with (
        FakeUpstream(step) as one,
        Gateway(tmp_path, world(one)) as gateway,
        gateway.streaming(max_tokens=900) as response,
    ):
        read = b""
        while read.count(b"word") < 4 * 50:
            read += await response.content.readany()
            begun.set()
        (held,) = gateway.ledger.books._open.values()
        assert gateway.ledger.holds[0][0].least_nano < held.row.least_nano < held.row.amount_nano
        free.set()
        await response.read()


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("tier", "dollars"), [("default", 1), ("priority", 2), (None, 2), ("scale-9", 2)])
async def test_a_call_is_priced_at_the_service_it_was_served_at(
    tmp_path: Path, stream: bool, tier: str | None, dollars: int
) -> None:
    """K3: OpenAI steps a priority call down when it is full, says so and bills less."""

    async def step(x: Exchange) -> None:
        said = {} if tier is None else {"service_tier": tier}
        if not x.seen.stream:
            await x.reply(dump({**openai_body("cheap", "Hi", Tokens(100, 0)), **said}))
            return
        await x.start_stream()
        for event in openai_events("cheap", "Hi", usage=Tokens(100, 10)):
            if said and event.startswith(b"data: {"):
                event = b"data: " + dump({**json.loads(event[6:]), **said}) + b"\n\n"
            await x.chunk(event)
        await x.chunk(b"")

    async with FakeUpstream(step) as one, Gateway(tmp_path, world(one)) as gateway:
        snapshot = gateway.router.snapshot
        model = snapshot.catalogue.models[CHEAP]
        assert model.price
        rows = (*model.price.rows, PriceRow(Rates.of(2_000_000_000, 8_000_000_000), service="priority"))
        dear = msgspec.structs.replace(model, price=msgspec.structs.replace(model.price, rows=rows))
        models = {**snapshot.catalogue.models, CHEAP: dear}
        catalogue = msgspec.structs.replace(snapshot.catalogue, models=models)
        gateway.router.swap(msgspec.structs.replace(snapshot, catalogue=catalogue))
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        heard = await gateway.ask(service_tier="priority", max_tokens=50, **options)
        assert heard.status == 200, heard
        await gateway.settled()
        ((_, charge),) = gateway.ledger.charges
        usage = charge.usage
        assert charge.cost_nano == (usage.prompt_tokens + 4 * usage.completion_tokens) * dollars * 1_000
        told = json.loads(heard.body.split(b"data: ")[-2]) if stream else heard.json
        assert told["usage"]["cost_usd"] == pytest.approx(charge.cost_nano / 1e9)


# ------------------------------------------------------------------------------------------------ ratios


async def test_what_providers_report_teaches_our_own_count(tmp_path: Path) -> None:
    """Used where a provider does not say, and never for a bound or a decision."""
    text = [{"role": "user", "content": "Tell me about the rivers of France, please. " * 20}]
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        one.default = no_usage
        await gateway.ask(messages=text)
        before = gateway.ledger.charges[-1][1].usage.input_tokens
        one.default = openai_reply(usage=Tokens(2 * before, 5))
        for _ in range(60):
            await gateway.ask(messages=text)
        one.default = no_usage
        await gateway.ask(messages=text)
        after = gateway.ledger.charges[-1][1].usage.input_tokens
        assert 1.9 * before <= after <= 2 * before + 1
        holds = [hold for hold, _ in gateway.ledger.holds]
        assert len({(hold.amount_nano, hold.tokens) for hold in holds}) == 1
        records = await gateway.records()
        assert len({record.episode.features for record in records}) == 1


async def test_no_ratio_makes_a_prompt_longer_than_its_bytes(tmp_path: Path) -> None:
    """What we count ourselves is never overage."""
    async with FakeUpstream(no_usage) as one, Gateway(tmp_path, world(one)) as gateway:
        gateway.router.books.ratios._prompts[CHEAP, "*"] = Ratio(MOST, 100)
        await gateway.ask(messages=[{"role": "user", "content": "1 2 3 " * 200}], max_tokens=50)
        ((_, charge),) = gateway.ledger.charges
        assert charge.usage.estimated and charge.cost_nano <= gateway.ledger.holds[0][0].amount_nano
