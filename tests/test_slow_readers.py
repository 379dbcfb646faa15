"""S8: what waits for a caller who reads slowly is little, wherever it waits, and is counted all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.callers import OPENAI
from tests.support.calls import call, hurry, secret
from tests.support.gateway import CHEAP, Gateway, price, world
from tests.support.replies import openai_events
from tests.support.upstream import Exchange, FakeUpstream, sse
from tierwise.providers.call import Call
from tierwise.providers.http import HttpUpstream
from tierwise.providers.line import PORTION_BYTES, READ_BUFFER_BYTES
from tierwise.routing import streams, tokens
from tierwise.routing.tokens import count, count_now, last_gap

VAST = {CHEAP: {"tier": "fast", "price": price(1, 4), "context_tokens": 10**8, "max_output_tokens": 10**8}}
WORDS = "Every morning the ferry crosses the river, and every evening it comes back. "


async def test_of_a_provider_that_floods_only_a_little_is_read_ahead() -> None:
    """Much is there to be read at once: the loop alone would take 256 KiB of it."""

    async def flood(x: Exchange) -> None:
        await x.start_stream()
        await x.chunk(b": so it goes\n\n" * 300_000)

    async with FakeUpstream(flood) as upstream:
        client = HttpUpstream(secret)
        incoming = await client.send(call(upstream.base_url, stream=True, deadlines=hurry(total_ms=30_000)))
        assert isinstance(incoming, Call)
        while not incoming._line._reading_paused:  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0)
        assert 0 < incoming._payload.total_bytes <= 2 * READ_BUFFER_BYTES + PORTION_BYTES
        first = await anext(incoming.chunks())
        assert len(first) <= 2 * READ_BUFFER_BYTES + PORTION_BYTES
        size = len(first)
        async for chunk in incoming.chunks():
            size += len(chunk)
            if size == 14 * 300_000:
                break
        incoming.close()
        await client.close()


async def test_a_long_reply_is_counted_on_the_way_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    async def noted(text: str) -> int:
        counted.append(len(text))
        return await count(text)

    monkeypatch.setattr(tokens, "count", noted)
    text = WORDS * 2_000
    async with (
        FakeUpstream(sse(openai_events("cheap", text, pieces=3_000, usage=None))) as one,
        Gateway(tmp_path, world(one, models=VAST)) as gateway,
    ):
        heard = await gateway.ask(OPENAI, stream=True, max_tokens=1_000_000)
        assert heard.text == text
        await gateway.settled()
        _, charge = gateway.ledger.charges[-1]
        assert sum(counted) == len(text)
        # What one portion of the wire adds comes on top.
        assert max(counted) <= streams._UNCOUNTED_CHARACTERS + 3 * PORTION_BYTES
        assert charge.usage.estimated
        assert len(counted) > 3
        assert charge.usage.output_tokens == count_now(text)  # however the packets cut it


PARTS = ("word", "A", "'s", "12345", ".", ",)", "/", "漢", "\u0301", " ", "  ", "\n", "\t", "\u00a0", "\x1c")


@given(st.lists(st.sampled_from(PARTS), max_size=12).map("".join), st.integers(0, 40))
def test_a_text_that_is_cut_between_words_is_as_many_tokens_as_whole(text: str, end: int) -> None:
    cut = last_gap(text, min(end, len(text)))
    assert cut <= end
    if cut < min(end, len(text)):
        encode = tokens._encoding().encode_ordinary
        assert encode(text[:cut]) + encode(text[cut:]) == encode(text)


def test_a_text_without_gaps_is_cut_all_the_same() -> None:
    assert last_gap("漢" * 50, 30) == 30 and last_gap(" " * 50, 30) == 30 and last_gap(" a", 2) == 2
    assert count_now("漢字" * 15_000) > 10_000


async def test_a_caller_who_leaves_while_we_count_pays_for_each_word_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, go = asyncio.Event(), asyncio.Event()

    async def late(text: str) -> int:
        counting.set()
        await go.wait()
        return await count(text)

    monkeypatch.setattr(tokens, "count", late)
    events = openai_events("cheap", WORDS * 400, pieces=300, done=False)[:-3]
    async with (
        FakeUpstream(sse(events, then=Exchange.until_gone)) as one,
        Gateway(tmp_path, world(one, models=VAST)) as gateway,
    ):
        async with gateway.streaming(OPENAI, max_tokens=1_000_000) as response:
            async with asyncio.timeout(10):
                await counting.wait()
            response.close()
        await one.requests[0].gone.wait()
        go.set()
        await gateway.settled()
        _, charge = gateway.ledger.charges[-1]
        came = (await gateway.last()).outcome
        assert came.status == "abandoned"
        assert streams._UNCOUNTED_CHARACTERS / 6 < charge.usage.output_tokens <= count_now(WORDS * 400) + 1
