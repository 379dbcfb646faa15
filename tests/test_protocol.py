"""The head of a request has an end, trailers are no headers, and an offer of HTTP/2 is declined."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import weakref
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from tests.support.gateway import Gateway, world
from tests.support.upstream import FakeUpstream
from tierwise.server import protocol
from tierwise.server.http import CALLER

BODY = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def connected(app: Any) -> protocol.Protocol:
    """A connection with nothing behind it, of a server of this application alone."""
    transport = Mock(asyncio.Transport)
    transport.is_closing.return_value = False
    transport.get_extra_info.return_value = None
    connection = protocol.Protocol(Config(app, ws="none", log_config=None), ServerState(), {})
    connection.connection_made(transport)
    return connection


async def said(gateway: Gateway, *pieces: bytes) -> bytes:
    """What the gateway answers to these bytes, until it has answered once or hung up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rsplit(":", 1)[1]))
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return await asyncio.wait_for(reader.read(65_536), 20)
    finally:
        writer.close()


@pytest.mark.parametrize("trailer", [b"x-tierwise-deny: one", b"authorization: Bearer other", b"host: elsewhere"])
async def test_a_trailer_is_no_header(tmp_path: Path, trailer: bytes) -> None:
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        chunked = b"%x\r\n%s\r\n0\r\n%s\r\n\r\n" % (len(BODY), BODY, trailer)
        heard = await said(gateway, HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunked)
        assert heard.startswith(b"HTTP/1.1 200"), heard
        assert len(one.requests) == 1


async def test_a_head_that_does_not_end_is_refused(tmp_path: Path) -> None:
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        heard = await said(gateway, HEAD, b"x-long: " + b"a" * (protocol.HEAD_BYTES + 1))
        assert heard.startswith(b"HTTP/1.1 431"), heard[:200]
        heard = await said(gateway, HEAD, *[b"x-many-%d: a\r\n" % i for i in range(6_000)])
        assert heard.startswith(b"HTTP/1.1 431"), heard[:200]


async def test_a_head_that_comes_too_slowly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.05)
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        heard = await said(gateway, HEAD)
        assert heard.startswith(b"HTTP/1.1 408"), heard[:200]


async def test_a_head_that_came_in_pieces_and_ended_in_time_is_late_no_more() -> None:
    """Also where the last piece holds the whole body, so that there is no moment between the two."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    connection = connected(app)
    connection.data_received(HEAD)
    assert connection._head_timer is not None
    connection.data_received(b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
    assert connection._head_timer is None
    connection.connection_lost(None)


async def test_who_asks_whether_to_go_on_is_told_so_also_with_the_body_here(tmp_path: Path) -> None:
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        head = HEAD + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(BODY)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rsplit(":", 1)[1]))
        writer.write(head + BODY)
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await asyncio.wait_for(reader.readline(), 20)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_long_body_is_taken_whole_and_its_callers_leaving_seen_from_then_on() -> None:
    """Reading pauses in the middle of such a body, and who does not read does not see who leaves."""
    taken: list[bytes | None] = []
    paused: list[bool] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        taken.append(scope[CALLER].take())
        paused.append(connection.flow.read_paused)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    connection = connected(app)
    body = b"a" * 100_000
    connection.data_received(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
    assert connection.flow.read_paused
    await asyncio.sleep(0.01)
    assert (taken, paused) == ([body], [False])
    connection.connection_lost(None)


@pytest.mark.parametrize("rest", [b"", b"content-length: 2\r\n\r\n{}"], ids=["in the head", "answered"])
async def test_a_connection_that_is_gone_leaves_nothing_to_the_garbage_collector(rest: bytes) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    connection = connected(app)
    connection.data_received(HEAD + rest)
    await asyncio.sleep(0.01)
    gone = weakref.ref(connection)
    gc.disable()
    try:
        connection.connection_lost(None)
        del connection
        assert gone() is None
    finally:
        gc.enable()


async def test_an_offer_of_http_2_is_declined_and_the_request_served(tmp_path: Path) -> None:
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        heard = await said(gateway, HEAD + offer + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
        assert heard.startswith(b"HTTP/1.1 200"), heard[:300]


async def test_a_compressed_body_is_refused_by_name(tmp_path: Path) -> None:
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        heard = await said(gateway, HEAD + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}")
        assert heard.startswith(b"HTTP/1.1 415"), heard[:200]
        assert not one.requests


async def test_what_one_callers_provider_said_is_not_told_to_another(tmp_path: Path) -> None:
    """The cause why a model rests is a kind, never words that may quote somebody's text."""
    from tests.support.upstream import error

    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        for _ in range(6):
            one.script(*[error(500, "the letter of Ada says: secret") for _ in range(3)])
            heard = await gateway.ask()
        assert heard.error["code"] == "all_resting"
        assert "Ada" not in json.dumps(heard.error)


@pytest.mark.parametrize(
    ("line", "more"),
    [(b"HTTP/1.1", b""), (b"HTTP/1.1", b"connection: close\r\n"), (b"HTTP/1.0", b"")],
    ids=["kept", "closed", "1.0"],
)
async def test_a_whole_reply_in_one_step_is_the_reply_in_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, more: bytes
) -> None:
    """To the byte, but for the decision's id, also for two requests that came in one piece."""
    head = HEAD.replace(b"HTTP/1.1", line) + more + b"content-length: %d\r\n\r\n" % len(BODY)
    at_once = protocol._Caller.whole
    sent: list[bool] = []

    def counted(*reply: Any) -> bool:
        sent.append(at_once(*reply))
        return sent[-1]

    async def heard(gateway: Gateway) -> bytes:
        said_once = await said(gateway, head + BODY)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rsplit(":", 1)[1]))
        writer.write((head + BODY) * 2)
        found = b""
        while found.count(b'"cost_usd"') < (1 if more or line == b"HTTP/1.0" else 2):
            found += await asyncio.wait_for(reader.read(65_536), 20)
        writer.close()
        return re.sub(rb"[0-9a-f]{32}", b"ID", said_once + found)

    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        monkeypatch.setattr(protocol._Caller, "whole", counted)
        in_one = await heard(gateway)
        assert sent and all(sent)
        monkeypatch.setattr(protocol._Caller, "whole", lambda *reply: False)
        assert in_one == await heard(gateway)
        assert in_one.count(b"connection: close") == (2 if more or line == b"HTTP/1.0" else 0)


@pytest.mark.parametrize("more", [b"", b"connection: close\r\n"], ids=["kept", "closed"])
async def test_a_streams_head_in_one_step_is_the_head_that_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: bytes
) -> None:
    begin = protocol._Caller.begin
    begun: list[bool] = []

    def counted(*head: Any) -> bool:
        begun.append(begin(*head))
        return begun[-1]

    body = json.dumps({**json.loads(BODY), "stream": True}).encode()

    async def heard(gateway: Gateway) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rsplit(":", 1)[1]))
        writer.write(HEAD + more + b"content-length: %d\r\n\r\n" % len(body) + body)
        found = await asyncio.wait_for(reader.readuntil(b"\r\n0\r\n\r\n"), 20)
        writer.close()
        return re.sub(rb"[0-9a-f]{32}", b"ID", found)

    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        monkeypatch.setattr(protocol._Caller, "begin", counted)
        in_one = await heard(gateway)
        assert begun == [True]
        monkeypatch.setattr(protocol._Caller, "begin", lambda *head: False)
        assert in_one == await heard(gateway)
        assert (b"connection: close" in in_one) is bool(more)


def test_what_a_header_must_not_hold_is_left_to_those_who_refuse_it() -> None:
    """The bytes that may stand in a value are those that the server's own way of sending lets pass."""
    assert {each for each in range(256) if each not in protocol._FINE} == {*range(9), *range(10, 32), 127}
    cycle = type("Cycle", (), {"flow": type("Flow", (), {"write_paused": False}), "disconnected": False})
    cycle.response_started = cycle.access_log = False
    cycle.default_headers, cycle.scope = [], {"method": "POST"}
    caller = protocol._Caller(type("Protocol", (), {"answering": cycle}))
    assert caller.whole(200, [(b"x-said", b"a\r\nset-cookie: b")], b"") is False
    assert caller.begin(200, [(b"x-said", b"a\r\nset-cookie: b")]) is False


@pytest.mark.parametrize("rest", [b"d", b"d" * 97], ids=["more of the body", "the end of the body"])
async def test_a_caller_who_was_answered_early_and_falls_silent_is_let_go_of(rest: bytes) -> None:
    async def early(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})

    connection = connected(early)
    waits: Mock = Mock()
    connection.data_received(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nabc")
    await asyncio.gather(*connection.tasks)
    connection.loop = waits
    connection.data_received(rest)
    seconds, let_go = waits.call_later.call_args.args
    assert seconds == connection.timeout_keep_alive
    let_go()
    assert connection.timeout_keep_alive_task is waits.call_later.return_value
    assert connection.transport._transport.close.called  # type: ignore[attr-defined]


async def test_the_head_of_the_next_request_has_its_own_time() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})

    connection = connected(app)
    connection.data_received(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    await asyncio.gather(*connection.tasks)
    assert connection.timeout_keep_alive_task is not None
    connection.data_received(b"GET / HTTP/1.1\r\nho")
    assert connection.timeout_keep_alive_task is None
    connection.connection_lost(None)


BAD = b"\x00 this is no request\r\n\r\n"


@pytest.mark.parametrize("streams", [True, False], ids=["stream", "whole"])
async def test_what_is_no_request_spoils_no_reply_that_is_under_way(tmp_path: Path, streams: bool) -> None:
    asked = json.dumps(
        {"model": "auto", "stream": streams, "messages": [{"role": "user", "content": "Hello"}]}
    ).encode()
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rsplit(":", 1)[1]))
        writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(asked) + asked + BAD + HEAD)
        heard = await asyncio.wait_for(reader.read(), 20)
        writer.close()
    assert heard.startswith(b"HTTP/1.1 200") and heard.count(b"HTTP/1.1") == 1, heard
    assert heard.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n" if streams else b"}"), heard


async def test_a_body_that_breaks_off_in_rubbish_is_refused_and_never_within_its_reply() -> None:
    started = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/early":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"so far", "more_body": True})
        started.set()
        await receive()
        await receive()

    for path, refused in (("early", False), ("late", True)):
        started.clear()
        connection = connected(app)
        wire: Mock = connection.transport._transport  # type: ignore[attr-defined]
        head = b"POST /%s HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n" % path.encode()
        connection.data_received(head)
        await started.wait()
        connection.data_received(b"rubbish\r\n")
        await asyncio.sleep(0)
        written = b"".join(call.args[0] for call in wire.write.call_args_list)
        assert (b"400" in written) == refused, written
        assert wire.close.called
        connection.connection_lost(None)
        await asyncio.gather(*connection.tasks, return_exceptions=True)


async def test_a_connection_on_which_nothing_ever_comes_is_let_go_of() -> None:
    connection = connected(lambda *_: None)
    assert connection.timeout_keep_alive_task is not None
    connection.connection_lost(None)
    assert connection.timeout_keep_alive_task is None


async def test_an_offer_is_declined_wherever_its_head_is_cut() -> None:
    offer = b"connection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAMAAABk\r\nupgrade: h2c\r\n"
    whole = HEAD + offer + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    heard: list[tuple[list[bytes], bytes]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        names = [name for name, _ in scope["headers"]]
        heard.append((names, (await receive())["body"]))

    cuts = range(whole.index(b"grade") + 5, len(whole) - len(BODY) + 1)
    for cut in cuts:
        connection = connected(app)
        connection.data_received(whole[:cut])
        connection.data_received(whole[cut:])
        await asyncio.gather(*connection.tasks)
        connection.connection_lost(None)
    assert heard == [([b"host", b"content-type", b"connection", b"content-length"], BODY)] * len(cuts)


async def test_an_offer_that_does_not_end_is_refused(tmp_path: Path) -> None:
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        heard = await said(gateway, HEAD + b"upgrade: h2c\r\nx: ", b"a" * (protocol.HEAD_BYTES + 1))
        assert heard.startswith(b"HTTP/1.1 431"), heard
