"""The router inside a program: both faces, and clean books when it is closed."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tierwise
from tests.support.programs import FIRST, USER, clean, opened, written
from tests.support.replies import openai_events
from tests.support.upstream import (
    TEXT,
    FakeUpstream,
    error,
    hang_before_headers,
    hang_mid_stream,
    openai_stream,
    sse,
)

CASCADE = {"start": "up", "plans": {"up": {"cascade": ["pets/pet", "pets/pet2"], "accept": {"check": ["nonempty"]}}}}


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream.in_thread() as found:
        yield found


@pytest.fixture
def path(tmp_path: Path, upstream: FakeUpstream) -> Path:
    return written(tmp_path, upstream)


# ------------------------------------------------------------------------------------------------ asynchronous


async def test_chat(path: Path) -> None:
    async with opened(path) as tw:
        router = await tw.router()
        reply = await tw.chat("Hello!", temperature=0, tierwise={"criticality": "internal"})
        record = await router.record(reply.decision_id)
    assert (reply.text, reply.model) == (TEXT, "pets/pet")
    assert reply.cost_usd == pytest.approx((12 * 1 + 7 * 4) / 1e6)
    assert reply.baseline_usd is not None
    assert reply.reason.startswith("chosen")
    assert reply.body["choices"][0]["finish_reason"] == "stop"
    assert record.episode.criticality == "internal"
    clean(router)


async def test_chat_is_never_a_stream(path: Path, upstream: FakeUpstream) -> None:
    async with opened(path) as tw:
        assert (await tw.chat(USER, stream=True)).text == TEXT
    assert not upstream.requests[0].stream


async def test_without_a_file_the_environment_serves_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with opened(None) as tw:
        reply = await tw.chat("Hello!")
    assert reply.model.startswith("simulated/")
    assert not os.listdir(tmp_path)


async def test_a_state_folder_keeps_the_journal(path: Path, tmp_path: Path) -> None:
    for _ in range(2):
        async with opened(path, state=tmp_path / "state") as tw:
            await tw.chat(USER)
    async with opened(path, state=tmp_path / "state") as tw:
        assert len(await (await tw.router()).journal.recent(10)) == 2


@pytest.mark.parametrize("crlf", [False, True])
async def test_stream(path: Path, upstream: FakeUpstream, crlf: bool) -> None:
    """Chunk by chunk, whatever line ends the provider uses; usage and cost in the last one when asked for."""
    if crlf:
        upstream.script(sse([event.replace(b"\n", b"\r\n") for event in openai_events("pet")]))
    async with opened(path) as tw:
        chunks = [chunk async for chunk in tw.stream(USER, stream_options={"include_usage": True})]
        router = await tw.router()
    said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert said == TEXT
    assert chunks[-1]["usage"]["cost_usd"] > 0
    clean(router)


async def test_a_reply_that_had_to_be_judged_first_streams_all_the_same(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with opened(written(tmp_path, upstream, policy=CASCADE)) as tw:
        chunks = [chunk async for chunk in tw.stream(USER)]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == TEXT


async def test_closing_a_stream_stops_the_model_and_settles(path: Path, upstream: FakeUpstream) -> None:
    upstream.script(hang_mid_stream(FIRST))
    async with opened(path) as tw:
        router = await tw.router()
        chunks = tw.stream(USER)
        await anext(chunks)
        await chunks.aclose()
        await asyncio.to_thread(upstream.requests[0].gone.wait_sync)
        await router.drain(5.0)
        record = (await router.journal.recent(1))[0]
    assert record.outcome.status == "abandoned"
    assert record.outcome.cost_nano
    clean(router)


async def test_a_stream_that_breaks_off_raises(path: Path, upstream: FakeUpstream) -> None:
    async def cut(x: Any) -> None:
        x.reset()

    upstream.script(sse(FIRST, then=cut))
    async with opened(path) as tw:
        chunks = []
        with pytest.raises(tierwise.RequestError, match="broke off") as caught:
            async for chunk in tw.stream(USER):
                chunks.append(chunk)  # noqa: PERF401  # the chunks before the error are what is looked at
        router = await tw.router()
    assert caught.value.status == 502
    assert caught.value.code.startswith("upstream_")
    assert any("choices" in chunk for chunk in chunks)
    clean(router)


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"model": "pets/pett"}, 404, "model_not_found"),
        ({"max_tokens": -1}, 400, "invalid_request_error"),
        ({"tierwise": {"criticallity": "user"}}, 400, "unknown_hint"),
        ({"tierwise": {"dry_run": True}}, 400, "dry_run"),
        ({"metadata": {"x": object()}}, 400, "invalid_json"),
    ],
)
async def test_errors_know_their_status(
    path: Path, upstream: FakeUpstream, asked: Mapping[str, Any], status: int, code: str
) -> None:
    """And nothing was asked of a provider: a dry run, above all, spends nothing."""
    async with opened(path) as tw:
        for way in (tw.chat, lambda *given, **more: anext(tw.stream(*given, **more))):
            with pytest.raises(tierwise.RequestError) as caught:
                await way(USER, **asked)
            assert (caught.value.status, caught.value.code) == (status, code)
    assert not upstream.requests


async def test_a_provider_that_fails_is_an_error_with_its_attempts(path: Path, upstream: FakeUpstream) -> None:
    upstream.default = error(401, "no such key")
    async with opened(path) as tw:
        with pytest.raises(tierwise.Refused) as caught:
            await tw.chat(USER)
        router = await tw.router()
    assert caught.value.code == "upstream_failed"
    assert caught.value.metadata["attempts"]
    clean(router)


async def test_route_decides_and_calls_nothing(path: Path, upstream: FakeUpstream) -> None:
    async with opened(path) as tw:
        found = await tw.route("Hello!", tierwise={"criticality": "internal"})
    assert found.model == "pets/pet"
    assert {each["model"] for each in found.candidates} >= {"pets/pet", "pets/pet2"}
    assert not upstream.requests


async def test_a_bad_configuration_is_told_at_the_first_use_with_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("modells: {}\nserver: {port: many}\n")
    tw = opened(path)
    with pytest.raises(tierwise.ConfigError) as caught:
        await tw.chat(USER)
    assert len(caught.value.problems) >= 2
    await tw.close()


async def test_what_is_closed_stays_closed(path: Path) -> None:
    """Opening anew in silence would forget what was spent."""
    tw = opened(path)
    await tw.chat(USER)
    await tw.close()
    await tw.close()
    with pytest.raises(tierwise.Closed, match=r"tierwise\.open"):
        await tw.chat(USER)
    never = opened(path)
    await never.close()
    with pytest.raises(tierwise.Closed):
        await never.chat(USER)


async def test_closing_waits_for_what_runs(path: Path, upstream: FakeUpstream) -> None:
    tw = opened(path)
    router = await tw.router()
    upstream.script(openai_stream(pieces=20, delay_s=0.005))

    async def read() -> list[Any]:
        return [chunk async for chunk in tw.stream(USER)]

    reading = asyncio.create_task(read())
    await asyncio.to_thread(_until_seen, upstream)
    await tw.close()
    assert len(await reading) > 10
    clean(router)


async def test_two_requests_at_once_open_one_router(path: Path) -> None:
    async with opened(path) as tw:
        routers = await asyncio.gather(*(tw.router() for _ in range(5)))
        replies = await asyncio.gather(*(tw.chat(USER) for _ in range(5)))
    assert len({id(router) for router in routers}) == 1
    assert len({reply.decision_id for reply in replies}) == 5


def test_another_event_loop_is_told_so(path: Path) -> None:
    tw, loop = opened(path), asyncio.new_event_loop()
    loop.run_until_complete(tw.chat(USER))
    with pytest.raises(RuntimeError, match=r"another event loop.*sync\(\)"):
        asyncio.run(tw.chat(USER))
    loop.run_until_complete(tw.close())
    loop.close()


# ------------------------------------------------------------------------------------------------ synchronous


def test_sync_chat_stream_and_route(path: Path) -> None:
    with opened(path).sync() as tw:
        assert tw.chat("Hello!").text == TEXT
        assert len(list(tw.stream("Hello!"))) > 3
        assert tw.route("Hello!").model == "pets/pet"
        with pytest.raises(tierwise.RequestError) as caught:
            tw.chat("Hello!", model="pets/pett")
    assert caught.value.status == 404


def test_leaving_a_synchronous_stream_stops_the_model(path: Path, upstream: FakeUpstream) -> None:
    upstream.script(hang_mid_stream(FIRST))
    with opened(path).sync() as tw:
        router = tw.run(tw._inner.router())
        for _ in tw.stream(USER):
            break
        upstream.requests[0].gone.wait_sync()
    clean(router)


def test_several_threads(path: Path) -> None:
    with opened(path).sync() as tw:
        router = tw.run(tw._inner.router())
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: tw.chat(USER), range(24)))
            streams = list(pool.map(lambda _: len(list(tw.stream(USER))), range(8)))
    assert len({reply.decision_id for reply in replies}) == 24
    assert len(set(streams)) == 1
    clean(router)


def test_closing_a_synchronous_router(path: Path) -> None:
    """Twice is fine, its thread ends, and what is asked of it afterwards gets a clear error."""
    before = threading.active_count()
    tw = opened(path).sync()
    tw.chat(USER)
    chunks = tw.stream(USER)
    tw.close()
    tw.close()
    assert threading.active_count() <= before
    with pytest.raises(tierwise.Closed):
        tw.chat(USER)
    with pytest.raises(tierwise.Closed):
        next(chunks)


def test_closing_does_not_wait_longer_than_told_for_a_stream_that_nobody_reads(
    path: Path, upstream: FakeUpstream
) -> None:
    upstream.script(hang_mid_stream(FIRST))
    tw = opened(path).sync()
    router = tw.run(tw._inner.router())
    chunks = tw.stream(USER)
    next(chunks)
    tw.close(drain_s=0.0)
    upstream.requests[0].gone.wait_sync()
    chunks.close()
    clean(router)


def test_a_thread_that_waits_when_the_router_closes_is_let_go(path: Path, upstream: FakeUpstream) -> None:
    upstream.script(hang_before_headers)
    tw = opened(path).sync()
    router = tw.run(tw._inner.router())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(tw.chat, USER)
        _until_seen(upstream)
        tw.close(drain_s=0.0)
        with pytest.raises(tierwise.Closed):
            waiting.result(10)
    clean(router)


def test_a_synchronous_router_with_a_bad_configuration_leaves_no_thread(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("modells: {}\n")
    before = threading.active_count()
    with pytest.raises(tierwise.ConfigError), opened(path).sync():
        pass
    assert threading.active_count() <= before


def _until_seen(upstream: FakeUpstream) -> None:
    """Until the provider has the request."""
    while not upstream.requests:
        threading.Event().wait(0.002)
