"""HTTP itself, I4, I5, A1-A3: sizes, slowness, ambiguity and keys, also as no decent client would send them."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.callers import DOORS, OPENAI, SOUND, post, refused
from tests.support.gateway import ADA, BOB, KEYS, Gateway, world
from tests.support.upstream import FakeUpstream
from tierwise.server import http as http_room
from tierwise.server.guesses import Guesses

OURS = ("tierwise", "uvicorn", "aiohttp.client")


@pytest.fixture
async def gateway(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[Gateway]:
    async with Gateway(tmp_path, world(upstream)) as made:
        yield made


def untouched(gateway: Gateway, upstream: FakeUpstream) -> None:
    assert (gateway.ledger.holds, upstream.requests) == ([], [])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_leaves_nothing_to_the_garbage_collector(gateway: Gateway, stream: bool) -> None:
    """What waits for it keeps a request's body in memory, and looking for it costs milliseconds at once."""
    body = json.dumps({**OPENAI.body(), "stream": stream}).encode()
    many = 40
    for _ in range(5):
        await gateway.post("/v1/chat/completions", body)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(many):
            await gateway.post("/v1/chat/completions", body)
        gc.collect()
        left = Counter(type(each).__qualname__ for each in gc.garbage if type(each).__module__.startswith(OURS))
    finally:
        gc.set_debug(0)
        gc.enable()
        gc.garbage.clear()
    assert left.total() < many, left


# ------------------------------------------------------------------------------------------------ I4: size and time


async def test_a_body_above_the_limit_is_a_413_announced_or_not(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with Gateway(tmp_path, world(upstream, server={"body_limit_bytes": 65_536})) as gateway:
        big = json.dumps(OPENAI.body(user="x" * 70_000)).encode()

        async def chunked() -> AsyncIterator[bytes]:
            for start in range(0, len(big), 8_192):
                yield big[start : start + 8_192]

        for door, path in DOORS.items():
            refused(await gateway.post(path, big), door, 413)
            refused(await gateway.fetch("POST", path, data=chunked()), door, 413)
        reply = await gateway.talk(post("/v1/chat/completions", b"", ["content-length: 99999999999999999999"]))
        assert b" 413 " in reply or b" 400 " in reply
        untouched(gateway, upstream)


async def test_a_body_that_does_not_come_is_a_408(
    gateway: Gateway, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O2: from its first byte on, also when that never comes."""
    monkeypatch.setattr(http_room, "BODY_DEADLINE_S", 0.1)
    for begun in (b"", b'{"model":'):
        reply = await gateway.talk(post("/v1/messages", begun, ["content-length: 500"]))
        assert b" 408 " in reply and b'"type":"error"' in reply and b"body_timeout" in reply
    untouched(gateway, upstream)


async def test_a_caller_who_leaves_with_half_a_body_leaves_nothing_behind(
    gateway: Gateway, upstream: FakeUpstream
) -> None:
    for begun in (b"", b'{"model":'):
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(post("/v1/chat/completions", begun, ["content-length: 500"]))
        await writer.drain()
        writer.close()
    assert (await gateway.get("/healthz")).status == 200
    untouched(gateway, upstream)


# ------------------------------------------------------------------------------------------------ I5, A1: raw HTTP


BODY = json.dumps(OPENAI.body()).encode()
LENGTH = f"content-length: {len(BODY)}"
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
CHAT = "/v1/chat/completions"
SMUGGLED = {
    "CL and TE": post(CHAT, CHUNKED, [LENGTH, "transfer-encoding: chunked"]),
    "TE and CL": post(CHAT, CHUNKED, ["transfer-encoding: chunked", LENGTH]),
    "two CL": post(CHAT, BODY, [LENGTH, "content-length: 3"]),
    "the same CL twice": post(CHAT, BODY, [LENGTH, LENGTH]),
    "CL list": post(CHAT, BODY, [f"{LENGTH}, {len(BODY)}"]),
    "CL sign": post(CHAT, BODY, [f"content-length: +{len(BODY)}"]),
    "CL negative": post(CHAT, BODY, ["content-length: -1"]),
    "CL hex": post(CHAT, BODY, ["content-length: 0x10"]),
    "TE unknown": post(CHAT, CHUNKED, ["transfer-encoding: gzip"]),
    "TE twice": post(CHAT, CHUNKED, ["transfer-encoding: chunked", "transfer-encoding: identity"]),
    "TE not last": post(CHAT, CHUNKED, ["transfer-encoding: chunked, gzip"]),
    "space before colon": post(CHAT, CHUNKED, ["transfer-encoding : chunked"]),
    "bad chunk size": post(CHAT, b"zz\r\n" + BODY + b"\r\n0\r\n\r\n", ["transfer-encoding: chunked"]),
    "bare LF": post(CHAT, BODY, [LENGTH]).replace(b"\r\n", b"\n", 2),
    "folded": post(CHAT, BODY, [LENGTH, "x-one: a\r\n b"]),
    "NUL": post(CHAT, BODY, [LENGTH, "x-one: a\x00b"]),
    "CR": post(CHAT, BODY, [LENGTH, "x-one: a\rb"]),
    "no host": post(CHAT, BODY, [LENGTH], host=""),
    "two hosts": post(CHAT, BODY, [LENGTH, "host: evil.example"]),
    "host with a path": post(CHAT, BODY, [LENGTH], host="host: a/abc?x="),
    "host with a user": post(CHAT, BODY, [LENGTH], host="host: user@evil.example"),
    "host with a space": post(CHAT, BODY, [LENGTH], host="host: a b"),
    "no http": b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
    "version": post(CHAT, BODY, [LENGTH]).replace(b"HTTP/1.1", b"HTTP/3.0"),
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_ambiguous_http_is_refused(gateway: Gateway, upstream: FakeUpstream, name: str) -> None:
    """I5, A1: what two readers could take for two different requests is a 400 and a closed connection."""
    said = await gateway.talk(SMUGGLED[name])
    assert said == b"" or said.startswith(b"HTTP/1.1 400 "), said
    assert said.count(b"HTTP/1.1 ") <= 1
    untouched(gateway, upstream)


async def test_plain_http_is_understood(gateway: Gateway, upstream: FakeUpstream) -> None:
    """So that the table above refuses for what it says, and not for all."""
    for sent in (
        post(CHAT, BODY, [LENGTH]),
        post(CHAT, CHUNKED, ["transfer-encoding: chunked"]),
        post(CHAT, BODY, [LENGTH], host="Host: localhost:4100"),
        post(CHAT, BODY, [LENGTH], host="Host: [::1]:4100"),
        post(CHAT.removeprefix("/v1"), BODY, [LENGTH]),
        post("/v1" + CHAT, BODY, [LENGTH]),
        post("http://other.example" + CHAT, BODY, [LENGTH]),
    ):
        assert (await gateway.talk(sent)).startswith(b"HTTP/1.1 200 "), sent
    assert len(upstream.requests) == 7


# ------------------------------------------------------------------------------------------------ A2, A3: keys


async def test_without_a_known_key_nothing_is_served(tmp_path: Path, upstream: FakeUpstream) -> None:
    keys = (
        "", "Bearer", "Bearer ", "Basic YTpi", "Bearer nope", f"Bearer {ADA}x", f"Bearer {ADA[:-1]}", ADA,
        "Bearer ' OR '1'='1", "Bearer '; DROP TABLE keys; --", "Bearer ${jndi:ldap://x}", "Bearer \u00e9\u00ff",
        "Bearer " + "k" * 30_000, f"Bearer {ADA} {BOB}", f"bearer\t{ADA}", "Bearer null", "Bearer undefined",
    )  # fmt: skip
    async with Gateway(tmp_path, world(upstream, keys=KEYS)) as gateway:
        for given in keys:
            gateway.app.guesses = Guesses()  # as if each came first; what many wrong ones meet is in test_guesses.py
            headers = {"authorization": given} if given else {}
            for door, path in DOORS.items():
                error = refused(await gateway.post(path, SOUND[door], headers=headers), door, 401)
                assert error["type"] == "authentication_error"
                assert given[7:] not in error["message"] or len(given) < 9
            for path in ("/v1/models", "/metrics", "/v1/decisions/x"):
                assert (await gateway.get(path, headers=headers)).status == 401
        assert (await gateway.get("/healthz")).status == (await gateway.get("/readyz")).status == 200
        untouched(gateway, upstream)
        for headers in ({"authorization": f"Bearer {ADA}"}, {"x-api-key": BOB}, {"authorization": f"bearer {BOB} "}):
            assert (await gateway.ask(OPENAI, headers=headers)).status == 200


# ------------------------------------------------------------------------------------------------ pages in a browser


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"origin": "http://evil.example"}, "foreign_origin"),
        ({"origin": "null"}, "foreign_origin"),  # a page in a sandbox, or in a file
        ({"host": "evil.example"}, "foreign_host"),  # a name of the page's own that leads here
        ({"host": "127.0.0.1.evil.example:80"}, "foreign_host"),
        ({"host": "localhost.evil.example"}, "foreign_host"),
        ({"host": "10.0.0.7:4100"}, "foreign_host"),
    ],
)
async def test_without_keys_a_page_of_the_web_spends_nothing(
    gateway: Gateway, upstream: FakeUpstream, said: dict[str, str], code: str
) -> None:
    """A browser sends plain text anywhere without asking, and a gateway without keys would pay for it."""
    headers = {"content-type": "text/plain", **said}
    for door, path in DOORS.items():
        heard = await gateway.post(path, json.dumps(SOUND[door]).encode(), headers=headers)
        refused(heard, door, 403)
        assert code in heard.body.decode() and "key" in heard.body.decode()
    assert (await gateway.get("/v1/balance", headers=headers)).status == 403
    untouched(gateway, upstream)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"host": "localhost:4100"},
        {"host": "[::1]:4100"},
        {"host": "127.8.9.1"},
        {"host": "tierwise.localhost:4100"},
        {"origin": "http://localhost:3000"},
        {"origin": "http://127.0.0.1"},
    ],
)
async def test_without_keys_programs_of_the_machine_are_answered(gateway: Gateway, said: dict[str, str]) -> None:
    assert (await gateway.post("/v1/chat/completions", json.dumps(OPENAI.body()).encode(), headers=said)).status == 200


async def test_with_keys_the_key_says_who_may_ask(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with Gateway(tmp_path, world(upstream, keys=KEYS)) as gateway:
        headers = {"host": "gateway.example", "origin": "https://app.example", "authorization": f"Bearer {ADA}"}
        heard = await gateway.post("/v1/chat/completions", json.dumps(OPENAI.body()).encode(), headers=headers)
        assert heard.status == 200
