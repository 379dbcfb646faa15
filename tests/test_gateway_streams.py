"""Streams S1-S13 through the whole gateway: who leaves, what breaks off, what is told, and what is charged for it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.callers import DIALECTS, OPENAI, Dialect, Heard, events_of
from tests.support.gateway import CHEAP, EMBED, Gateway, price, world
from tests.support.replies import USUAL, ToolCall, anthropic_events, dump, openai_events
from tests.support.upstream import (
    TEXT,
    Exchange,
    FakeUpstream,
    Step,
    anthropic_reply,
    anthropic_stream,
    drip,
    endless_stream,
    error_inside_stream,
    hang_after_headers,
    hang_before_headers,
    no_usage,
    openai_reply,
    openai_stream,
    rate_limited,
    sse,
    truncated_chunked,
)
from tierwise.routing.tokens import count_now
from tierwise.server import app as app_room

VAST = {CHEAP: {"tier": "fast", "price": price(1, 4), "context_tokens": 10**8, "max_output_tokens": 10**8}}
LARGE = openai_events("cheap", "x" * 32_768, pieces=1)[1]
WIRES = ("openai", "anthropic")


async def _leave_after(gateway: Gateway, dialect: Dialect, count: int, *, abruptly: bool, **body: Any) -> bytes:
    """Ask on a socket of one's own, read that many bytes of the response, and go; what was read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    sent = json.dumps(dialect.body(**body)).encode()
    lines = (f"POST {dialect.path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json")
    head = "\r\n".join((*lines, f"content-length: {len(sent)}"))
    writer.write(head.encode() + b"\r\n\r\n" + sent)
    read = b""
    while len(read) < count:
        more = await reader.read(count - len(read))
        assert more, f"the gateway ended it: {read!r}"
        read += more
    if abruptly:
        writer.transport.abort()
    else:
        writer.close()
    return read


# ------------------------------------------------------------------------------------------------ S1, S2: who leaves


@pytest.mark.parametrize("wire", WIRES)
async def test_a_caller_who_leaves_at_any_byte_stops_the_provider_and_pays_for_what_came(
    tmp_path: Path, wire: str
) -> None:
    """S1: 64 seeded departures; the provider talks for ever, so only our hanging up can end it."""
    dice, times = random.Random(7), 32
    async with FakeUpstream(endless_stream()) as one, Gateway(tmp_path, world(one, wire=wire, models=VAST)) as gateway:
        for number in range(times):
            dialect = DIALECTS[number % 2]
            at = dice.randrange(500, 60_000)
            read = await _leave_after(gateway, dialect, at, abruptly=number % 3 == 0, stream=True, max_tokens=1_000_000)
            seen = await one.seen(number + 1)
            await seen.gone.wait()
            await gateway.settled()
            assert gateway.ledger.open_holds() == 0
            _, charge = gateway.ledger.charges[-1]
            heard = read.count(b'"more "')
            assert charge.kind == "estimated" and charge.usage.output_tokens >= max(1, heard)
            assert charge.cost_nano == (charge.usage.prompt_tokens * 1 + charge.usage.output_tokens * 4) * 1_000
        assert len(gateway.ledger.charges) == times
        assert {record.outcome.status for record in await gateway.records()} == {"abandoned"}


@pytest.mark.parametrize("bills", [True, False], ids=["billed", "not billed"])
@pytest.mark.parametrize("stage", ["plain", "before headers", "after headers"])
async def test_a_caller_who_leaves_before_the_first_byte_stops_the_provider(
    tmp_path: Path, stage: str, bills: bool
) -> None:
    """S2: what it read and can have written until then, unless such calls are not billed."""
    step: Step = hang_after_headers() if stage == "after headers" else hang_before_headers
    async with (
        FakeUpstream(step) as one,
        Gateway(tmp_path, world(one, provider={"bills_abandoned": bills})) as gateway,
    ):
        for number, dialect in enumerate(DIALECTS * 3):
            stream = None if stage == "plain" else True
            leaving = asyncio.create_task(gateway.ask(dialect, stream=stream))
            seen = await one.seen(number + 1)
            assert gateway.ledger.open_holds() == 1
            leaving.cancel()
            await seen.gone.wait()
            record = await gateway.last()
            (hold, _), (_, charge) = gateway.ledger.holds[-1], gateway.ledger.charges[-1]
            assert charge.kind == ("estimated" if bills else "released")
            assert 0 < charge.cost_nano < hold.amount_nano if bills else charge.cost_nano == 0
            assert (record.outcome.status, len(gateway.ledger.charges)) == ("abandoned", number + 1)


async def test_a_caller_who_leaves_between_two_attempts_starts_no_other(tmp_path: Path) -> None:
    """S2: while the gateway waits to ask again, nothing is dispatched and nothing is charged."""
    async with FakeUpstream(rate_limited("2")) as one, Gateway(tmp_path, world(one)) as gateway:
        leaving = asyncio.create_task(gateway.ask(OPENAI))
        await one.seen(1)
        await gateway.ledger.charged.wait()  # the first attempt is settled, so the wait has begun
        leaving.cancel()
        record = await gateway.last()
        assert (record.outcome.status, record.outcome.cost_nano) == ("abandoned", 0)
        assert len(one.requests) == 1 and len(gateway.ledger.holds) == 1


# ------------------------------------------------------------------------------------------------ S3-S5: usage


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("wire", WIRES)
async def test_without_usage_our_own_count_is_charged_and_marked(tmp_path: Path, wire: str, stream: bool) -> None:
    """S3: never zero."""
    async with FakeUpstream(no_usage) as one, Gateway(tmp_path, world(one, wire=wire)) as gateway:
        for dialect in DIALECTS:
            heard = await gateway.ask(dialect, stream=stream or None)
            assert (heard.status, heard.text) == (200, TEXT), heard
            await gateway.settled()
            _, charge = gateway.ledger.charges[-1]
            assert (charge.kind, charge.usage.estimated) == ("estimated", True)
            assert charge.usage.output_tokens == count_now(TEXT) and charge.usage.input_tokens > 0
            assert charge.cost_nano == (charge.usage.input_tokens + 4 * charge.usage.output_tokens) * 1_000


@pytest.mark.parametrize("asked", [False, True], ids=["not asked", "asked"])
async def test_usage_is_told_to_whom_asks_and_to_the_ledger_always(tmp_path: Path, asked: bool) -> None:
    """S4: usage comes after the finish reason, in a chunk without choices, and costs what it says."""
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        options = {"include_usage": True} if asked else None
        heard = await gateway.ask(OPENAI, stream=True, stream_options=options)
        assert one.requests[0].json["stream_options"] == {"include_usage": True}
        told = [data for _, data in heard.events if isinstance(data, dict) and data.get("usage")]
        assert len(told) == (1 if asked else 0)
        assert asked or not any(isinstance(data, dict) and not data["choices"] for _, data in heard.events)
        assert heard.whole
        await gateway.settled()
        ((_, charge),) = gateway.ledger.charges
        cost = (USUAL.input + 4 * USUAL.output) * 1_000
        assert (charge.kind, charge.cost_nano) == ("reported", cost)
        if asked:
            assert told[0]["usage"]["cost_usd"] == cost / 1e9
            assert told[0]["usage"]["tierwise"]["model"] == CHEAP


@pytest.mark.parametrize(
    ("counts", "charged"),
    [
        (((12, 1), (12, 4), (12, 7)), (12, 7)),  # cumulative
        (((12, 7), (12, 7)), (12, 7)),  # twice
        (((12, 9), (12, 7)), (12, 7)),  # decreasing
    ],
    ids=["cumulative", "twice", "decreasing"],
)
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
async def test_of_usage_told_several_times_the_last_counts_and_none_is_added_up(
    tmp_path: Path, dialect: Dialect, counts: tuple[tuple[int, int], ...], charged: tuple[int, int]
) -> None:
    """S5."""
    events = openai_events("cheap", include_usage=False, done=False)
    for place, (read, written) in enumerate(counts):
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "cheap", "choices": []}
        events.insert(min(2 + 2 * place, len(events)), b"data: " + dump({**chunk, "usage": usage}) + b"\n\n")
    async with FakeUpstream(sse([*events, b"data: [DONE]\n\n"])) as one, Gateway(tmp_path, world(one)) as gateway:
        heard = await gateway.ask(dialect, stream=True, stream_options={"include_usage": True})
        assert heard.text == TEXT and heard.whole
        await gateway.settled()
        ((_, charge),) = gateway.ledger.charges
        assert (charge.usage.prompt_tokens, charge.usage.completion_tokens) == charged
        told = [data["usage"] for _, data in heard.events if isinstance(data, dict) and data.get("usage")]
        assert sum(each.get("completion_tokens", 0) or each.get("output_tokens", 0) for each in told) == charged[1]


# ------------------------------------------------------------------------------------------------ S6, S7: what breaks


@pytest.mark.parametrize("wire", WIRES)
async def test_a_stream_cut_at_any_byte_is_never_taken_for_a_whole_one(tmp_path: Path, wire: str) -> None:
    """S6: in characters, in line ends, in events; an error event or an error status, and no proper ending."""
    text = "Grüße, 世界! Ça va 🙂?"
    build = openai_events if wire == "openai" else anthropic_events
    body = b"".join(build("cheap", text)).replace(b"\n", b"\r\n" if wire == "openai" else b"\n")
    cuts = sorted(random.Random(11).sample(range(1, len(body) - 2), 45))
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, wire=wire, policy={"attempts": 1})) as gateway:
        whole = 0
        for number, cut in enumerate(cuts):
            gateway.rested()
            one.script(truncated_chunked([body[:cut]], reset=number % 5 == 0))
            heard = await gateway.ask(DIALECTS[number % 2], stream=True)
            if heard.status != 200:
                assert heard.status in (502, 503) and heard.error["code"] == "upstream_failed"
                continue
            assert text.startswith(heard.text)
            if heard.whole:  # only what is after the end of the reply was missing
                assert heard.text == text
                whole += 1
            else:
                assert heard.stream_error["code"].startswith("upstream_")
        await gateway.settled()
        assert whole <= 6
        assert all(charge.cost_nano > 0 for _, charge in gateway.ledger.charges)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
async def test_an_error_inside_a_stream_is_passed_on_as_one(tmp_path: Path, dialect: Dialect) -> None:
    """S7: and charged for what came before it; the next model is not asked."""
    async with (
        FakeUpstream(error_inside_stream(message="GPU on fire")) as one,
        FakeUpstream() as two,
        Gateway(tmp_path, world(one, two)) as gateway,
    ):
        heard = await gateway.ask(dialect, stream=True)
        assert heard.status == 200 and not heard.whole
        assert "GPU on fire" in json.dumps(heard.events[-1][1])
        assert heard.text and TEXT.startswith(heard.text)
        record = await gateway.last()
        assert (record.outcome.status, len(two.requests)) == ("broken", 0)
        ((_, charge),) = gateway.ledger.charges
        assert charge.kind == "estimated" and charge.usage.output_tokens == count_now(heard.text)


# ------------------------------------------------------------------------------------------------ S8-S10, S13: limits


async def test_a_slow_reader_holds_its_provider_back_and_nobody_else(tmp_path: Path) -> None:
    """S8: what waits for it is bounded, and its leaving ends the call."""
    sent = asyncio.Event()

    async def flood(x: Exchange) -> None:
        await x.start_stream()
        while True:
            await x.chunk(LARGE)
            sent.set()

    async with FakeUpstream() as one, Gateway(tmp_path, world(one, models=VAST)) as gateway:
        one.script(flood)
        async with gateway.streaming(OPENAI, max_tokens=10_000_000) as response:
            assert response.status == 200
            response.connection.transport.pause_reading()
            connections = gateway._server.server_state.connections
            waiting, writes = 0, True
            async with asyncio.timeout(60):
                while writes or not waiting:  # until the provider can write no more, because of what waits
                    sent.clear()
                    try:
                        writes = await asyncio.wait_for(sent.wait(), 0.5)
                    except TimeoutError:
                        writes = False
                    waiting = max(each.transport.get_write_buffer_size() for each in connections)
            assert 0 < waiting <= 256 * 1024
            assert not one.requests[0].gone.is_set()
            assert (await gateway.ask()).text == TEXT
            response.close()
        await one.requests[0].gone.wait()


async def test_a_reader_who_never_reads_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S8: the deadline ends the call, and what was sent is charged."""
    monkeypatch.setattr(app_room, "STREAM_DEADLINE_S", 0.3)

    async def flood(x: Exchange) -> None:
        await x.start_stream()
        while True:
            await x.chunk(LARGE)

    async with (
        FakeUpstream(flood) as one,
        Gateway(tmp_path, world(one, models=VAST)) as gateway,
        gateway.streaming(OPENAI, max_tokens=10_000_000) as response,
    ):
        response.connection.transport.pause_reading()
        await one.requests[0].gone.wait()
        record = await gateway.last()
        assert record.outcome.status == "abandoned" and (record.outcome.cost_nano or 0) > 0
        response.close()


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
async def test_a_provider_that_ignores_max_tokens_is_cut(tmp_path: Path, dialect: Dialect) -> None:
    """S9: at half more than the ceiling by our count, and what was in flight by then; all of it is charged."""
    for word in ("more ", "antidisestablishmentarianism ", "是", "🙂"):
        async with FakeUpstream(endless_stream(word)) as one, Gateway(tmp_path, world(one)) as gateway:
            heard = await gateway.ask(dialect, stream=True, max_tokens=200)
            assert not heard.whole and heard.stream_error["code"] == "over_ceiling"
            await one.requests[0].gone.wait()
            await gateway.settled()
            ((_, charge),) = gateway.ledger.charges
            in_flight = 2 * 65_536 // len(openai_events("cheap", word, pieces=1)[1]) * count_now(word)
            assert 200 < charge.usage.output_tokens <= 1.5 * 200 + 64 + in_flight, (word, charge)
            assert gateway.ledger.overages == 1


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
async def test_what_stalls_or_swells_after_the_first_byte_is_ended_and_charged(
    tmp_path: Path, dialect: Dialect
) -> None:
    """S10 a huge line, S13 a drip that only the total deadline ends, U5 silence that the idle deadline ends."""
    started = openai_events("cheap", done=False)[:3]

    async def swell(x: Exchange) -> None:
        await x.chunk(b'data: {"choices":[{"delta":{"content":"')
        while True:
            await x.chunk(b"a" * 65_536)

    async def silence(x: Exchange) -> None:
        await x.until_gone()

    async def crawl(x: Exchange) -> None:
        await drip(b":\n\n")(_Begun(x))  # type: ignore[arg-type]

    limits = {"idle_ms": 300, "total_ms": 900, "first_token_ms": 8_000}
    for then in (swell, silence, crawl):
        async with FakeUpstream(sse(started, then=then)) as one, Gateway(tmp_path, world(one, hurry=limits)) as gateway:
            heard = await gateway.ask(dialect, stream=True)
            assert heard.status == 200 and not heard.whole
            assert heard.stream_error["code"] in ("upstream_timeout", "upstream_too_large", "upstream_garbled")
            await one.requests[0].gone.wait()
            await gateway.settled()
            ((_, charge),) = gateway.ledger.charges
            # What nobody can read may be all of the ceiling.
            written = dialect.ceiling or 1_000 if then is swell else count_now(heard.text)
            assert charge.kind == "estimated" and charge.usage.output_tokens == written > 0


class _Begun:
    """An exchange whose head is sent already."""

    def __init__(self, exchange: Exchange) -> None:
        self.chunk = exchange.chunk

    async def start_stream(self, content_type: str) -> None:
        """It was."""


# ------------------------------------------------------------------------------------------------ S11, S12: content

EVIL = (
    "\n\ndata: [DONE]\n\n",
    '\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n',
    '"}]}\n\ndata: {"error":"no"}\n\n',
    "\r\n\r\ndata: x\r\n\r\n",
    "\u2028\u2029\x00\x1b[31m\ufeff",
    "</script><script>alert(1)</script>",
    "\\n\\ndata: [DONE]\\n\\n",
)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("wire", WIRES)
async def test_no_text_of_a_model_becomes_an_event_of_its_own(tmp_path: Path, wire: str, stream: bool) -> None:
    """S11: it arrives as it was written, in both dialects, from both wires."""
    reply = {"openai": (openai_reply, openai_stream), "anthropic": (anthropic_reply, anthropic_stream)}[wire][stream]
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, wire=wire)) as gateway:
        for text in EVIL:
            for dialect in DIALECTS:
                one.script(reply(text))
                heard = await gateway.ask(dialect, stream=stream or None)
                assert (heard.status, heard.text) == (200, text)
                assert not stream or heard.whole


ARGUMENTS = (
    '{"city":"Paris"}',
    '{ "b" : 1.0,\t"a":1e2 , "big": 12345678901234567890123 }',
    '{"path":"C:\\\\new\\ttab","snow":"\\u2603","raw":"☃","slash":"\\/"}',
    '{"cmd":"rm -rf /tmp/x; echo \\"done\\"\\n"}',
    "{}",
)


@pytest.mark.parametrize("wire", WIRES)
async def test_the_arguments_of_tool_calls_arrive_byte_for_byte(tmp_path: Path, wire: str) -> None:
    """S12: in streams of any combination, and plain where the dialect has text; equal in value where it has objects."""
    plain, stream = (openai_reply, openai_stream) if wire == "openai" else (anthropic_reply, anthropic_stream)
    tools = {
        "openai_chat": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "anthropic": [{"name": "f", "input_schema": {"type": "object"}}],
    }
    calls = tuple(ToolCall("f", text, f"call_{i}") for i, text in enumerate(ARGUMENTS))
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, wire=wire)) as gateway:
        for dialect in DIALECTS:
            one.script(stream(tool_calls=calls), plain(tool_calls=calls))
            heard = await gateway.ask(dialect, stream=True, tools=tools[dialect.name])
            assert heard.status == 200, heard
            assert _streamed_calls(heard) == [(call.id, "f", call.arguments) for call in calls]
            heard = await gateway.ask(dialect, tools=tools[dialect.name])
            if dialect is OPENAI:
                found = heard.json["choices"][0]["message"]["tool_calls"]
                got = [(each["id"], each["function"]["arguments"]) for each in found]
                if wire == "openai":
                    assert got == [(call.id, call.arguments) for call in calls]
                else:
                    assert [(id, json.loads(text)) for id, text in got] == [
                        (c.id, json.loads(c.arguments)) for c in calls
                    ]
            else:
                blocks = [(each["id"], each["input"]) for each in heard.json["content"] if each["type"] == "tool_use"]
                assert blocks == [(call.id, json.loads(call.arguments)) for call in calls]


def _streamed_calls(heard: Heard) -> Sequence[tuple[str, str, str]]:
    found: dict[int, list[str]] = {}
    for _, data in events_of(heard.body):
        if not isinstance(data, dict):
            continue
        for call in (data.get("choices") or [{}])[0].get("delta", {}).get("tool_calls", ()):
            one = found.setdefault(call["index"], ["", "", ""])
            one[0] += call.get("id") or ""
            one[1] += call["function"].get("name") or ""
            one[2] += call["function"].get("arguments") or ""
        if data.get("type") == "content_block_start" and data["content_block"]["type"] == "tool_use":
            found[data["index"]] = [data["content_block"]["id"], data["content_block"]["name"], ""]
        if data.get("type") == "content_block_delta" and data["delta"]["type"] == "input_json_delta":
            found[data["index"]][2] += data["delta"]["partial_json"]
    return [tuple(each) for _, each in sorted(found.items())]  # type: ignore[misc]


async def test_what_is_no_stream_is_unmoved_by_all_this(tmp_path: Path) -> None:
    """Embeddings have no stream, and count as the provider says."""
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        heard = await gateway.post("/v1/embeddings", {"model": "auto", "input": ["a", "b"]})
        assert heard.status == 200 and [each["index"] for each in heard.json["data"]] == [0, 1]
        assert heard.model == EMBED
        await gateway.settled()
        ((_, charge),) = gateway.ledger.charges
        assert (charge.usage.input_tokens, charge.cost_nano) == (USUAL.input, USUAL.input * 1_000)
