"""How the upstream client connects, keeps connections and lets go of them (U4, S1, J2), over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

import pytest

from tests.support import upstream as fake
from tests.support.calls import call, failure, hurry, secret, whole
from tests.support.upstream import FakeUpstream
from tierwise.core.catalogue import Deadlines
from tierwise.core.ports import UpstreamError
from tierwise.providers import pool
from tierwise.providers.call import Call
from tierwise.providers.http import HttpUpstream

# ------------------------------------------------------------------------------------------------ connecting (U4)


async def test_a_closed_port_was_not_dispatched(client: HttpUpstream) -> None:
    error = await failure(client, call(fake.closed_port()))
    assert (error.kind, error.dispatched) == ("connect", False)
    assert "127.0.0.1" in error.message


@pytest.mark.skipif(sys.platform != "linux", reason="a full listen queue drops connection attempts on Linux only")
@pytest.mark.parametrize("deadlines", [hurry(connect_ms=150), hurry(first_token_ms=150), hurry(total_ms=150)])
async def test_a_black_hole_ends_at_the_connect_deadline(client: HttpUpstream, deadlines: Deadlines) -> None:
    with fake.unreachable() as base_url:
        error = await failure(client, call(base_url, deadlines=deadlines))
    assert (error.kind, error.dispatched) == ("timeout", False)


async def test_a_name_that_does_not_resolve_is_a_connect_failure(client: HttpUpstream) -> None:
    error = await failure(client, call("http://no-such-host.invalid/v1"))
    assert (error.kind, error.dispatched) == ("connect", False)
    assert "no-such-host.invalid" in error.message


async def test_plain_text_where_tls_was_meant_is_a_connect_failure(client: HttpUpstream) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    error = await failure(client, call(f"https://127.0.0.1:{port}/v1"))
    assert (error.kind, error.dispatched) == ("connect", False)
    assert "TLS" in error.message
    server.close()


METADATA = ["169.254.169.254", "169.254.0.1", "[fe80::1]", "[fd00:ec2::254]", "[::ffff:169.254.169.254]",
            "[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::]", "[::169.254.169.254]",
            "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "100.100.100.200"]  # fmt: skip


@pytest.mark.parametrize("host", METADATA)
async def test_metadata_addresses_are_never_connected_to(client: HttpUpstream, host: str) -> None:
    error = await failure(client, call(f"http://{host}/v1", deadlines=hurry(connect_ms=2_000)))
    assert (error.kind, error.dispatched) == ("connect", False)
    assert "metadata" in error.message or "canonical" in error.message or "base_url" in error.message


async def test_a_name_that_resolves_to_a_metadata_address_is_refused(
    client: HttpUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resolver is the operator's network's, so it is the one thing here that has to be played."""
    loop = asyncio.get_running_loop()

    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(2, 1, 6, "", ("169.254.169.254", port))]

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    error = await failure(client, call("http://models.internal.example/v1"))
    assert (error.kind, error.dispatched) == ("connect", False)
    assert "169.254.169.254" in error.message


# ------------------------------------------------------------------------------------------------ connections


async def test_a_finished_reply_gives_its_connection_back(client: HttpUpstream, upstream: FakeUpstream) -> None:
    upstream.script(
        fake.openai_reply(), fake.openai_stream(), fake.error(429), fake.openai_reply(), fake.html_page(),
        fake.openai_reply(),
    )  # fmt: skip
    for stream in (False, True, False, False):
        with contextlib.suppress(UpstreamError):  # the 429: its body was read to the end as well
            await whole(client, call(upstream.base_url, stream=stream))
    await failure(client, call(upstream.base_url))
    await whole(client, call(upstream.base_url))
    assert upstream.connections == 1


async def test_calls_at_once_have_a_connection_each_and_the_pool_keeps_them(
    client: HttpUpstream, upstream: FakeUpstream
) -> None:
    for _ in range(3):
        await asyncio.gather(*(whole(client, call(upstream.base_url)) for _ in range(8)))
    assert upstream.connections <= 8
    assert len(upstream.requests) == 24


async def test_a_call_above_the_limit_waits_for_another_to_end(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "CONNECTIONS_PER_HOST", 1)
    client = HttpUpstream(secret)
    for _ in range(2):  # with none there, and with one that is idle
        await asyncio.gather(*(whole(client, call(upstream.base_url)) for _ in range(4)))
    assert (upstream.connections, len(upstream.requests)) == (1, 8)
    upstream.script(fake.hang_before_headers)
    hung = asyncio.create_task(client.send(call(upstream.base_url)))
    await upstream.seen(9)
    error = await failure(client, call(upstream.base_url, deadlines=hurry(connect_ms=100)))
    assert (error.kind, error.dispatched) == ("timeout", False)
    hung.cancel()
    assert await whole(client, call(upstream.base_url))
    await client.close()


async def test_who_leaves_the_queue_in_his_turn_leaves_it_to_the_next(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "CONNECTIONS_PER_HOST", 1)
    client = HttpUpstream(secret)
    incoming = await client.send(call(upstream.base_url))
    second, third = (asyncio.create_task(whole(client, call(upstream.base_url))) for _ in range(2))
    await asyncio.sleep(0.05)  # until both wait
    await incoming.read()
    second.cancel()  # it has been woken, and has not run yet
    async with asyncio.timeout(3):
        assert await third
    assert second.cancelled()
    await client.close()


async def test_a_connection_that_nobody_needs_is_closed_in_time(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "KEEPALIVE_S", 0.1)
    client = HttpUpstream(secret)
    await asyncio.gather(*(whole(client, call(upstream.base_url)) for _ in range(3)))
    assert client._pool is not None
    (idle,) = client._pool._idle.values()
    lines = list(idle)
    assert 1 <= len(lines) <= 3
    async with asyncio.timeout(20):
        while idle:  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.02)
    assert not any(line.is_connected() for line in lines)
    before = upstream.connections
    await whole(client, call(upstream.base_url))
    assert upstream.connections == before + 1
    await client.close()


async def test_a_reply_closed_at_its_very_end_gives_its_connection_back_once(
    client: HttpUpstream, upstream: FakeUpstream
) -> None:
    """Whoever waits for more hears of the end after it was closed. A connection given back twice would carry two calls
    at once, and answer one with the reply to the other."""
    go_on = asyncio.Event()

    async def in_pieces(x: fake.Exchange) -> None:
        await x.start_stream()
        await x.chunk(b": wait\n\n")
        await go_on.wait()
        await x.raw(b"0\r\n\r\n")

    upstream.script(in_pieces)
    incoming = await client.send(call(upstream.base_url, stream=True))
    chunks = incoming.chunks()
    assert await anext(chunks) == b": wait\n\n"
    waiting = asyncio.ensure_future(anext(chunks, None))
    await asyncio.sleep(0)
    assert isinstance(incoming, Call)
    incoming._payload.on_eof(incoming.close)
    go_on.set()
    assert await waiting is None
    assert client._pool is not None
    assert [len(idle) for idle in client._pool._idle.values()] == [1]


async def test_replies_that_nobody_asked_for_are_not_kept_while_one_is_being_read(
    client: HttpUpstream, upstream: FakeUpstream
) -> None:
    """No body of theirs is large enough to make the provider wait, so only their number can tell."""

    async def flood(x: fake.Exchange) -> None:
        await x.start_stream()
        await x.chunk(b"data: [DONE]\n\n")
        await x.raw(b"0\r\n\r\n")
        while not x.seen.gone.is_set():
            await x.raw(b"HTTP/1.1 204 No Content\r\n\r\n" * 100)

    upstream.script(flood)
    incoming = await client.send(call(upstream.base_url, stream=True))
    await asyncio.wait_for(upstream.requests[0].gone.wait(), 5)
    assert [chunk async for chunk in incoming.chunks()] == [b"data: [DONE]\n\n"]
    assert isinstance(incoming, Call) and len(incoming._line._heads) < 1_000
    assert await whole(client, call(upstream.base_url))
    assert upstream.connections == 2


async def test_closing_early_closes_the_connection(client: HttpUpstream, upstream: FakeUpstream) -> None:
    upstream.script(fake.endless_stream())
    incoming = await client.send(call(upstream.base_url, stream=True))
    chunks = incoming.chunks()
    await anext(chunks)
    incoming.close()
    incoming.close()
    await upstream.requests[0].gone.wait()
    with pytest.raises(UpstreamError, match="closed by us"):
        await anext(chunks)
    await whole(client, call(upstream.base_url))
    assert upstream.connections == 2


async def test_a_reply_whose_last_byte_was_read_may_be_closed_without_losing_its_connection(
    client: HttpUpstream, upstream: FakeUpstream
) -> None:
    upstream.script(fake.sse([b"data: [DONE]\n\n"]))
    incoming = await client.send(call(upstream.base_url, stream=True))
    async for _ in incoming.chunks():
        pass
    incoming.close()
    await whole(client, call(upstream.base_url))
    assert upstream.connections == 1


@pytest.mark.parametrize("step", [fake.hang_before_headers, fake.hang_after_headers(), fake.hang_mid_stream()])
async def test_cancelling_a_call_closes_its_connection_at_once(
    client: HttpUpstream, upstream: FakeUpstream, step: Any
) -> None:
    upstream.script(step)
    task = asyncio.create_task(whole(client, call(upstream.base_url, stream=True)))
    seen = await upstream.seen()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await seen.gone.wait()


async def test_closing_wakes_a_reader_in_another_task(client: HttpUpstream, upstream: FakeUpstream) -> None:
    upstream.script(fake.hang_mid_stream())
    incoming = await client.send(call(upstream.base_url, stream=True))
    chunks = incoming.chunks()
    await anext(chunks)

    async def wait() -> bytes:
        return await anext(chunks)

    reader = asyncio.create_task(wait())
    await asyncio.sleep(0)
    incoming.close()
    with pytest.raises(UpstreamError, match="closed by us"):
        await reader


async def test_a_large_request_to_a_provider_that_does_not_read_is_let_go_of(client: HttpUpstream) -> None:
    """Closing properly would first flush all of it, for as long as the provider takes to read."""
    lost, received = asyncio.Event(), 0

    class Deaf(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.pause_reading()
            asyncio.get_running_loop().call_later(0.3, transport.resume_reading)

        def data_received(self, data: bytes) -> None:
            nonlocal received
            received += len(data)

        def connection_lost(self, error: Exception | None) -> None:
            lost.set()

    server = await asyncio.get_running_loop().create_server(Deaf, "127.0.0.1", 0)
    base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    outgoing = call(base_url, body=b"x" * 30_000_000, deadlines=hurry(first_token_ms=100))
    assert (await failure(client, outgoing)).kind == "timeout"
    async with asyncio.timeout(8):
        await lost.wait()
    assert received < len(outgoing.body)
    server.close()


async def test_an_answer_before_the_request_was_read_does_not_poison_the_connection(client: HttpUpstream) -> None:
    """The rest of that request must neither go out later nor be taken for the next one."""
    connections, gone = 0, asyncio.Queue[bool]()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nbig")
        with contextlib.suppress(ConnectionError):
            while await reader.read(65_536):
                pass
        writer.close()
        gone.put_nowait(True)

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    for expected in (1, 2):
        error = await failure(client, call(base_url, body=b"x" * 30_000_000))
        assert (error.kind, connections) == ("rejected", expected)
        await gone.get()
    server.close()


async def test_a_change_of_protocol_ends_its_connection(client: HttpUpstream, upstream: FakeUpstream) -> None:
    """Nobody asked for one, and what follows must not be taken for the answer to the next request."""

    async def switch(x: fake.Exchange) -> None:
        await x.raw(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        await asyncio.sleep(0.05)
        await fake.json_reply({"n": 1})(x)

    upstream.script(switch, fake.json_reply({"n": 2}))
    assert (await failure(client, call(upstream.base_url))).kind == "garbled"
    assert await whole(client, call(upstream.base_url)) == b'{"n":2}'
    assert upstream.connections == 2


@pytest.mark.parametrize("goodbye", [b"", b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"])
async def test_a_connection_that_spoke_or_ended_while_idle_is_not_used_again(
    client: HttpUpstream, upstream: FakeUpstream, goodbye: bytes
) -> None:
    """A stray reply in the pool would be taken for the answer to the next caller's request."""

    async def step(x: fake.Exchange) -> None:
        await fake.json_reply({"n": 1})(x)
        if goodbye:
            await x.raw(goodbye)
        else:
            x.close()

    upstream.script(step, fake.json_reply({"n": 2}))
    assert await whole(client, call(upstream.base_url)) == b'{"n":1}'
    assert await whole(client, call(upstream.base_url)) == b'{"n":2}'
    assert upstream.connections == 2


async def test_a_reused_connection_that_dies_unanswered_counts_as_dispatched_and_is_not_sent_again(
    client: HttpUpstream, upstream: FakeUpstream
) -> None:
    """Whether the provider has taken the request cannot be known, so it may have been billed."""
    upstream.script(fake.openai_reply(), fake.hang_up)
    await whole(client, call(upstream.base_url))
    error = await failure(client, call(upstream.base_url))
    assert (error.kind, error.dispatched) == ("cut", True)
    assert len(upstream.requests) == 2
    assert upstream.connections == 1


async def test_closing_the_client_ends_calls_under_way_and_refuses_new_ones(upstream: FakeUpstream) -> None:
    client = HttpUpstream(secret)
    upstream.script(fake.hang_mid_stream())
    incoming = await client.send(call(upstream.base_url, stream=True))
    chunks = incoming.chunks()
    await anext(chunks)
    await client.close()
    with pytest.raises(UpstreamError) as caught:
        await anext(chunks)
    assert caught.value.kind == "cut"
    error = await failure(client, call(upstream.base_url))
    assert (error.kind, error.dispatched) == ("connect", False)
    await upstream.requests[0].gone.wait()


async def test_closing_the_client_ends_the_wait_for_a_place(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an error of ours: nobody cancelled the caller."""
    monkeypatch.setattr(pool, "CONNECTIONS_PER_HOST", 1)
    client = HttpUpstream(secret)
    incoming = await client.send(call(upstream.base_url))
    pending = asyncio.create_task(failure(client, call(upstream.base_url)))
    await asyncio.sleep(0.05)  # until it waits
    await client.close()
    error = await pending
    assert (error.kind, error.dispatched) == ("connect", False)
    assert "closing" in error.message
    incoming.close()


async def test_closing_the_client_does_not_wait_for_a_provider_that_reads_nothing() -> None:
    reached, over = asyncio.Event(), asyncio.Event()

    async def read_the_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        reached.set()
        await over.wait()
        writer.transport.abort()

    server = await asyncio.start_server(read_the_head, "127.0.0.1", 0)
    client = HttpUpstream(secret)
    base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    pending = asyncio.create_task(client.send(call(base_url, body=b"x" * 30_000_000)))
    await reached.wait()
    try:
        async with asyncio.timeout(3):
            await client.close()
            with pytest.raises(UpstreamError) as caught:
                await pending
        assert (caught.value.kind, caught.value.dispatched) == ("cut", True)
    finally:
        over.set()
        server.close()


def test_a_client_outlives_the_loop_it_was_first_used_in() -> None:
    with FakeUpstream.in_thread() as upstream:
        client = HttpUpstream(secret)

        async def once() -> bytes:
            upstream.script(fake.until_close(b"{}"))
            return await whole(client, call(upstream.base_url))

        assert asyncio.run(once()) == b"{}"
        assert asyncio.run(once()) == b"{}"
