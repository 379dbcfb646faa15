"""The simulated provider's faults come as they were scripted, and nothing is left behind on any way out."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import msgspec
import pytest

from tests.support.simulated import (
    MODELS,
    chat,
    outgoing,
    send,
    streamed,
    upstream,
    whole,
)
from tierwise.core.catalogue import Deadlines
from tierwise.core.ports import UpstreamError
from tierwise.providers.simulated import Fault, SimulatedUpstream

# ------------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, "rate_limited"),
        (500, "overloaded"),
        (503, "overloaded"),
        (529, "overloaded"),
        (401, "auth"),
        (400, "rejected"),
    ],
)
async def test_a_scripted_status_fails_as_a_provider_does(status: int, kind: str) -> None:
    by = upstream(Fault(kind="status", status=status, retry_after_ms=1_500))
    with pytest.raises(UpstreamError) as caught:
        await send(chat("x"), by)
    error = caught.value
    assert (error.kind, error.status, error.retry_after_ms, error.dispatched) == (kind, status, 1_500, True)
    assert "message" in json.loads(error.body)["error"]
    assert by.unfinished == 0


async def test_faults_hit_the_calls_they_name_and_no_others() -> None:
    by = upstream(Fault(kind="status", model="simulated/small", nth=(2,)))
    for model, fails in (("small", False), ("large", False), ("small", True), ("large", False), ("small", False)):
        if fails:
            with pytest.raises(UpstreamError):
                await send(chat("x", model), by)
        else:
            await send(chat("x", model), by)
    assert by.calls == {"small": 3, "large": 2}


async def test_a_share_of_calls_fails_by_the_seed() -> None:
    async def failures(seed: int) -> list[int]:
        by, found = upstream(Fault(kind="status", share=0.3), seed=seed), []
        for number in range(200):
            try:
                await send(chat("x"), by)
            except UpstreamError:
                found.append(number)
        return found

    first = await failures(1)
    assert 40 <= len(first) <= 80
    assert first == await failures(1) != await failures(2)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hang_ends_at_the_first_token_deadline(stream: bool) -> None:
    by = upstream(Fault(kind="hang"))
    with pytest.raises(UpstreamError) as caught:
        await by.send(outgoing(chat("x", stream=stream)))
    assert caught.value.kind == "timeout"
    assert by.unfinished == 0


async def test_a_hang_inside_a_stream_ends_at_the_idle_deadline() -> None:
    seen, error = await until_error(chat("Hello!", stream=True), Fault(kind="hang", after=4))
    assert len(seen) == 4
    assert error.kind == "timeout"


async def until_error(body: dict[str, Any], fault: Fault) -> tuple[list[bytes], UpstreamError]:
    by = upstream(fault)
    reply = await by.send(outgoing(body))
    seen: list[bytes] = []

    async def read() -> None:
        async for chunk in reply.chunks():
            seen.append(chunk)  # noqa: PERF401  what came before the error is what we look at

    with pytest.raises(UpstreamError) as caught:
        await read()
    assert by.unfinished == 0
    with pytest.raises(UpstreamError):
        await reply.read()
    return seen, caught.value


@pytest.mark.parametrize("after", [1, 3, 7])
async def test_a_stream_is_cut_after_so_many_events(after: int) -> None:
    seen, error = await until_error(chat("Hello!", stream=True), Fault(kind="cut", after=after))
    full = await send(chat("Hello!", stream=True))
    assert len(seen) == after
    assert full.startswith(b"".join(seen))
    assert error.kind == "cut"


async def test_a_whole_reply_is_cut_half_way() -> None:
    seen, error = await until_error(chat("Hello!"), Fault(kind="cut"))
    assert (await send(chat("Hello!"))).startswith(b"".join(seen))
    assert error.kind == "cut"


async def test_an_error_event_comes_inside_the_stream_and_ends_it() -> None:
    body = await send(chat("Hello!", stream=True), upstream(Fault(kind="error_event", after=2)))
    last = body.decode().strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "overloaded"
    assert b"[DONE]" not in body


@pytest.mark.parametrize("stream", [False, True])
async def test_a_garbled_reply_is_no_reply(stream: bool) -> None:
    body = await send(chat("Hello!", stream=stream), upstream(Fault(kind="garbled")))
    for line in body.split(b"\n\n") if stream else [body]:
        with pytest.raises(ValueError):
            json.loads(line.removeprefix(b"data: "))


async def test_no_usage_leaves_the_usage_out() -> None:
    by = upstream(Fault(kind="no_usage"))
    assert (await whole(chat("Hello!"), by)).usage is None
    chunks = await streamed(chat("Hello!", stream_options={"include_usage": True}), by)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert b"usage" not in await send({"model": "embedding", "input": "a"}, by, "embeddings")


async def test_the_wrong_model_may_be_named() -> None:
    by = upstream(Fault(kind="wrong_model", served="large-2024"))
    assert (await whole(chat("Hello!"), by)).model == "large-2024"
    assert {chunk.model for chunk in await streamed(chat("Hello!"), by)} == {"large-2024"}
    assert (await whole(chat("Hello!"))).model == "large"


async def test_max_tokens_may_be_ignored() -> None:
    reply = await whole(chat("Hello!", max_tokens=2), upstream(Fault(kind="ignore_max_tokens")))
    assert reply.usage is not None
    assert reply.usage.completion_tokens > 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_slow_model_misses_a_deadline_that_a_sound_one_keeps(stream: bool) -> None:
    tight = outgoing(chat("Hello!", stream=stream), deadlines=Deadlines(first_token_ms=2_000))
    reply = await upstream().send(tight)
    reply.close()
    with pytest.raises(UpstreamError) as caught:
        await upstream(Fault(kind="slow", factor=20)).send(tight)
    assert caught.value.kind == "timeout"


async def test_a_stream_keeps_the_total_deadline() -> None:
    reply = await upstream().send(
        outgoing(chat("Explain whales in detail", stream=True), deadlines=Deadlines(total_ms=500))
    )
    with pytest.raises(UpstreamError) as caught:
        await reply.read()
    assert caught.value.kind == "timeout"


# ------------------------------------------------------------------------------------------------ letting go


async def test_speed_scales_the_stated_latencies() -> None:
    """At a small positive speed the reply waits on the loop's clock; what it says does not change."""
    by = upstream(speed=0.001)
    assert await send(chat("Hello!", stream=True), by) == await send(chat("Hello!", stream=True))


async def test_cancelling_a_waiting_call_leaves_nothing_behind() -> None:
    by = upstream(speed=1_000.0)
    task = asyncio.create_task(by.send(outgoing(chat("Hello!"))))
    await asyncio.sleep(0)
    assert by.unfinished == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert by.unfinished == 0


async def test_closing_wakes_a_reader_that_waits() -> None:
    quick = msgspec.structs.replace(MODELS[2], first_token_ms=0)
    by = SimulatedUpstream((quick,), speed=1_000.0, faults=(Fault(kind="hang", after=2),))
    reply = await by.send(outgoing(chat("Hello!", "small", stream=True)))
    task = asyncio.create_task(reply.read())
    await asyncio.sleep(0)
    assert not task.done()
    reply.close()
    with pytest.raises(UpstreamError, match="closed by us"):
        await asyncio.wait_for(task, 5)
    assert by.unfinished == 0


async def test_closing_twice_is_once_and_a_closed_reply_is_not_read_on() -> None:
    by = upstream()
    reply = await by.send(outgoing(chat("Hello!", stream=True)))
    chunks = reply.chunks()
    await anext(aiter(chunks))
    reply.close()
    reply.close()
    with pytest.raises(UpstreamError) as caught:
        await anext(aiter(chunks))
    assert caught.value.kind == "cut"
    assert by.unfinished == 0


async def test_a_reply_read_to_its_end_is_closed_without_an_error() -> None:
    by = upstream()
    reply = await by.send(outgoing(chat("Hello!")))
    assert await reply.read()
    assert by.unfinished == 0
    reply.close()
    assert [chunk async for chunk in reply.chunks()] == []


async def test_closing_the_upstream_closes_its_replies() -> None:
    by = upstream()
    reply = await by.send(outgoing(chat("Hello!", stream=True)))
    await by.close()
    assert by.unfinished == 0
    with pytest.raises(UpstreamError):
        await reply.read()


@pytest.mark.parametrize("speed", [-1.0, math.inf, math.nan])
def test_a_speed_that_is_no_speed_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="speed"):
        SimulatedUpstream(MODELS, speed=speed)
