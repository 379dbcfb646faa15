"""The vendors' SDKs on the router of their own program: a transport instead of a socket, all else as usual."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

import tierwise
from tests.support.programs import FIRST, USER, clean, opened, written
from tests.support.upstream import TEXT, FakeUpstream, hang_before_headers, hang_mid_stream


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream.in_thread() as found:
        yield found


@pytest.fixture
def path(tmp_path: Path, upstream: FakeUpstream) -> Path:
    return written(tmp_path, upstream)


LIBRARIES = pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])


@LIBRARIES
def test_the_transport_serves_either_library(path: Path, library: Any) -> None:
    with opened(path).sync() as tw, library.Client(transport=tw.transport(), base_url="http://tierwise") as client:
        reply = client.post("/v1/chat/completions", json={"model": "auto", "messages": USER})
        assert reply.json()["choices"][0]["message"]["content"] == TEXT
        assert reply.headers["x-tierwise-model"] == "pets/pet"
        assert client.get("/v1/nowhere?x=1").status_code == 404
        assert client.get("/healthz").json() == {"status": "ok"}


@LIBRARIES
async def test_the_transport_serves_either_library_asynchronously(path: Path, library: Any) -> None:
    async with (
        opened(path) as tw,
        library.AsyncClient(transport=tw.transport(), base_url="http://tierwise") as client,
    ):
        asked = {"model": "auto", "messages": USER, "stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=asked) as reply:
            lines = [line async for line in reply.aiter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        assert json.loads(lines[0][6:])["object"] == "chat.completion.chunk"


def test_openai_over_the_transport(path: Path, upstream: FakeUpstream) -> None:
    with opened(path).sync() as tw:
        router = tw.run(tw._inner.router())
        http = openai.DefaultHttpxClient(transport=tw.transport())
        with openai.OpenAI(base_url="http://tierwise/v1", api_key="none", max_retries=0, http_client=http) as client:
            reply = client.chat.completions.create(model="auto", messages=USER)
            assert reply.choices[0].message.content == TEXT
            streamed = client.chat.completions.create(model="auto", messages=USER, stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == TEXT
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model="pets/pett", messages=USER)
            assert client.embeddings.create(model="pets/vectors", input="x", encoding_format="float").data
            upstream.script(hang_mid_stream(FIRST))
            stream = client.chat.completions.create(model="auto", messages=USER, stream=True)
            next(iter(stream))
            stream.close()
            upstream.requests[-1].gone.wait_sync()
            upstream.script(hang_before_headers)
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=0.2).chat.completions.create(model="auto", messages=USER)
            upstream.requests[-1].gone.wait_sync()
    clean(router)


async def test_openai_over_the_transport_asynchronously(path: Path, upstream: FakeUpstream) -> None:
    async with opened(path) as tw:
        router = await tw.router()
        http = openai.DefaultAsyncHttpxClient(transport=tw.transport())
        given = {"base_url": "http://tierwise/v1", "api_key": "none", "max_retries": 0, "http_client": http}
        async with openai.AsyncOpenAI(**given) as client:
            replies = await asyncio.gather(
                *(client.chat.completions.create(model="auto", messages=USER) for _ in range(5))
            )
            assert [reply.choices[0].message.content for reply in replies] == [TEXT] * 5
            upstream.script(hang_mid_stream(FIRST))
            stream = await client.chat.completions.create(model="auto", messages=USER, stream=True)
            await anext(aiter(stream))
            await stream.close()
            await asyncio.to_thread(upstream.requests[-1].gone.wait_sync)
            upstream.script(hang_mid_stream(FIRST))
            stalled = await client.with_options(timeout=0.2).chat.completions.create(
                model="auto", messages=USER, stream=True
            )
            with pytest.raises((openai.APITimeoutError, httpx.ReadTimeout, httpx2.ReadTimeout)):
                async for _ in stalled:
                    pass
            await stalled.close()
    clean(router)


def test_anthropic_over_the_transport(path: Path, upstream: FakeUpstream) -> None:
    with opened(path).sync() as tw:
        router = tw.run(tw._inner.router())
        http = anthropic.DefaultHttpxClient(transport=tw.transport())
        with anthropic.Anthropic(base_url="http://tierwise", api_key="none", max_retries=0, http_client=http) as client:
            asked: Any = {"model": "auto", "max_tokens": 100, "messages": USER}
            assert client.messages.create(**asked).content[0].text == TEXT
            with client.messages.stream(**asked) as stream:
                assert "".join(stream.text_stream) == TEXT
            upstream.script(hang_mid_stream(FIRST))
            with client.messages.stream(**asked) as stream:
                next(iter(stream))
            upstream.requests[-1].gone.wait_sync()
            with pytest.raises(anthropic.NotFoundError):
                client.messages.create(**{**asked, "model": "pets/pett"})
    clean(router)


async def test_anthropic_over_the_transport_asynchronously(path: Path) -> None:
    async with opened(path) as tw:
        http = anthropic.DefaultAsyncHttpxClient(transport=tw.transport())
        given = {"base_url": "http://tierwise", "api_key": "none", "max_retries": 0, "http_client": http}
        async with anthropic.AsyncAnthropic(**given) as client:
            asked: Any = {"model": "auto", "max_tokens": 100, "messages": USER}
            assert (await client.messages.create(**asked)).content[0].text == TEXT
            async with client.messages.stream(**asked) as stream:
                assert (await stream.get_final_message()).content[0].text == TEXT


async def test_a_closed_router_says_so_through_an_sdk(path: Path) -> None:
    tw = opened(path)
    http = openai.DefaultAsyncHttpxClient(transport=tw.transport())
    given = {"base_url": "http://tierwise/v1", "api_key": "none", "max_retries": 0, "http_client": http}
    async with openai.AsyncOpenAI(**given) as client:
        await client.chat.completions.create(model="auto", messages=USER)
        await tw.close()
        with pytest.raises(tierwise.Closed):
            await client.chat.completions.create(model="auto", messages=USER)
