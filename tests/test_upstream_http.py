"""What the upstream client sends, and what it makes of every bad reply a provider has shown us (U1-U12, S3-S12)."""

from __future__ import annotations

import asyncio
import gzip
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import upstream as fake
from tests.support.calls import KEY, call, failure, hurry, whole
from tests.support.upstream import FakeUpstream
from tierwise.core.catalogue import Auth
from tierwise.core.ports import UpstreamError
from tierwise.providers.hiding import HIDDEN, Hiding
from tierwise.providers.http import HttpUpstream

# ------------------------------------------------------------------------------------------------ what goes out


@pytest.mark.parametrize(
    ("auth", "expected"),
    [("bearer", ("authorization", f"Bearer {KEY}")), ("x-api-key", ("x-api-key", KEY)), ("none", None)],
)
async def test_a_request_carries_these_headers_and_no_other(
    client: HttpUpstream, upstream: FakeUpstream, auth: Auth, expected: tuple[str, str] | None
) -> None:
    outgoing = call(upstream.base_url, auth=auth, headers=(("anthropic-version", "2023-06-01"),))
    await whole(client, outgoing)
    seen = upstream.requests[0]
    assert (seen.method, seen.path, seen.body) == ("POST", "/v1/chat/completions", outgoing.body)
    headers = dict(seen.headers)
    assert headers.pop("user-agent").startswith("tierwise/")
    want = {
        "host": f"127.0.0.1:{upstream.port}",
        "content-type": "application/json",
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-length": str(len(outgoing.body)),
        "anthropic-version": "2023-06-01",
    }
    assert headers == want | ({expected[0]: expected[1]} if expected else {})


async def test_a_provider_without_a_key_is_asked_without_one(client: HttpUpstream, upstream: FakeUpstream) -> None:
    await whole(client, call(upstream.base_url, api_key=""))
    assert not {"authorization", "x-api-key"} & set(upstream.requests[0].headers)


async def test_a_base_url_may_end_in_a_slash_or_carry_a_query(client: HttpUpstream, upstream: FakeUpstream) -> None:
    await whole(client, call(upstream.base_url + "/"))
    await whole(client, call(upstream.base_url + "?api-version=7"))
    assert [seen.path for seen in upstream.requests] == ["/v1/chat/completions", "/v1/chat/completions?api-version=7"]


@pytest.mark.parametrize(
    ("reference", "auth", "says"),
    [
        ("env:NOT_THERE", "bearer", "env:NOT_THERE"),
        ("env:EMPTY", "x-api-key", "env:EMPTY"),
        ("env:BAD_KEY", "bearer", "env:BAD_KEY"),
    ],
)
async def test_a_missing_or_unusable_key_names_its_reference_and_sends_nothing(
    client: HttpUpstream, upstream: FakeUpstream, reference: str, auth: Auth, says: str
) -> None:
    error = await failure(client, call(upstream.base_url, api_key=reference, auth=auth))
    assert (error.kind, error.dispatched) == ("auth", False)
    assert says in error.message
    assert KEY not in error.message
    assert upstream.connections == 0


@pytest.mark.parametrize(
    "header",
    [("x-a", "1\r\nX-Evil: 1"), ("x-a\r\nX-Evil", "1"), ("x-a", "nul\0"), ("Host", "evil.example"), ("x-a", "ü"),
     ("Authorization", "Bearer other"), ("Content-Length", "0"), ("Transfer-Encoding", "chunked"), ("", "1")],
)  # fmt: skip
async def test_a_header_that_would_split_or_overrule_ours_is_refused(
    client: HttpUpstream, upstream: FakeUpstream, header: tuple[str, str]
) -> None:
    error = await failure(client, call(upstream.base_url, headers=(header,)))
    assert (error.kind, error.dispatched, upstream.connections) == ("rejected", False, 0)


@pytest.mark.parametrize(
    "base_url",
    ["", "ftp://127.0.0.1/v1", "http://user:pass@127.0.0.1/v1", "http:///v1", "http://127.0.0.1:99999/v1",
     "http://127.0.0.1/v 1", "http://127.0.0.1/v\r\n1", "127.0.0.1:80/v1", "http://[::1/v1"],
)  # fmt: skip
async def test_an_unusable_base_url_is_a_connect_failure_that_says_so(client: HttpUpstream, base_url: str) -> None:
    error = await failure(client, call(base_url))
    assert (error.kind, error.dispatched) == ("connect", False)
    assert "base_url" in error.message
    assert "pass" not in error.message


# ------------------------------------------------------------------------------------------------ what comes back


async def test_a_whole_reply_comes_back_byte_for_byte(client: HttpUpstream, upstream: FakeUpstream) -> None:
    body = b'{"text":"caf\xc3\xa9",  "odd" : [1,2 ]}'
    upstream.script(fake.json_reply(body), fake.until_close(body))
    assert await whole(client, call(upstream.base_url)) == body
    assert await whole(client, call(upstream.base_url)) == body


async def test_a_stream_comes_back_byte_for_byte(client: HttpUpstream, upstream: FakeUpstream) -> None:
    events = [b'data: {"n":%d}\n\n' % number for number in range(200)]
    upstream.script(fake.sse(events))
    assert await whole(client, call(upstream.base_url, stream=True)) == b"".join(events)


async def test_a_stream_is_handed_on_while_it_runs(client: HttpUpstream, upstream: FakeUpstream) -> None:
    upstream.script(fake.hang_mid_stream([b"data: 1\n\n"]))
    incoming = await client.send(call(upstream.base_url, stream=True))
    assert await anext(incoming.chunks()) == b"data: 1\n\n"
    incoming.close()
    await upstream.requests[0].gone.wait()


@pytest.mark.parametrize(("encoding", "raw"), [("gzip", False), ("deflate", False), ("deflate", True)])
@pytest.mark.parametrize("size", [10, 65_536, 300_000])
async def test_compression_that_nobody_asked_for_is_undone(
    client: HttpUpstream, upstream: FakeUpstream, encoding: str, raw: bool, size: int
) -> None:
    body = (b'{"x":"' + os.urandom(size).hex().encode() + b'"}')[: size + 10]
    upstream.script(fake.gzipped(body, encoding, raw=raw), fake.gzipped(body, encoding, "text/event-stream", raw))
    assert await whole(client, call(upstream.base_url)) == body
    assert await whole(client, call(upstream.base_url, stream=True)) == body


REPLIES: list[tuple[str, Any, bool, str, str]] = [
    # name, step, stream, kind, words that the message must hold
    ("400", fake.error(400, "messages: required"), False, "rejected", "messages: required"),
    ("413", fake.error(413), False, "rejected", "413"),
    ("422", fake.error(422), True, "rejected", "422"),
    ("401", fake.error(401, "no such key"), False, "auth", "no such key"),
    ("403", fake.error(403), False, "auth", "403"),
    ("402", fake.error(402, "pay"), False, "auth", "no credit"),
    ("404", fake.error(404), False, "not_found", "404"),
    ("405", fake.error(405), False, "not_found", "405"),
    ("408", fake.error(408), False, "timeout", "408"),
    ("409", fake.error(409), False, "rate_limited", "409"),
    ("425", fake.error(425), False, "rate_limited", "425"),
    ("429", fake.error(429, type="rate_limit_error"), True, "rate_limited", "429"),
    ("418", fake.error(418), False, "rejected", "418"),
    *[(str(status), fake.error(status), True, "overloaded", str(status)) for status in (500, 502, 503, 504, 529)],
    ("599", fake.plain(b"", "", 599), False, "overloaded", "599"),
    ("out of quota", fake.error(429, code="insufficient_quota"), False, "auth", "429"),
    ("out of credit", fake.error(400, "Your credit balance is too low to access"), False, "auth", "credit"),
    ("google's bad key", fake.error(400, "API key not valid. Pass a valid one"), False, "auth", "API key"),
    ("no such model as 400", fake.error(400, code="model_not_found"), False, "not_found", "400"),
    ("503 in HTML", fake.html_page(503), False, "overloaded", "Sign in & accept"),
    ("502 as text", fake.plain(b"upstream\x1b[31m sick\r\nvery", "text/plain", 502), False, "overloaded", "sick very"),
    ("HTML 200", fake.html_page(), False, "garbled", "Sign in & accept"),
    ("HTML 200 for a stream", fake.html_page(), True, "garbled", "event stream"),
    ("no content type", fake.plain(b"{}", ""), False, "garbled", "no content type"),
    ("empty 200", fake.empty_200(), False, "garbled", "empty"),
    ("empty stream", fake.sse([]), True, "garbled", "empty"),
    ("204", fake.plain(b"", "", 204), False, "garbled", "204"),
    ("JSON for a stream", fake.openai_reply(), True, "garbled", "event stream"),
    ("stream for JSON", fake.openai_stream(), False, "garbled", "JSON"),
    ("error for a stream", fake.json_reply({"error": {"type": "overloaded_error", "message": "busy"}}), True,
     "overloaded", "busy"),
    ("coded error for a stream", fake.json_reply({"error": {"code": 429, "message": "slow"}}), True,
     "rate_limited", "slow"),
    ("bare error for a stream", fake.json_reply({"error": "what"}), True, "garbled", "what"),
    ("brotli", fake.plain(b"{}", "application/json", headers=[("Content-Encoding", "br")]), False, "garbled", "br"),
    ("503 in brotli", fake.plain(b"\x0b", "text/html", 503, [("Content-Encoding", "br")]), False, "overloaded", "503"),
    ("101", fake.not_http(b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"), False,
     "garbled", "101"),
    ("201", fake.json_reply({"error": {"message": "made"}}, 201), True, "garbled", "made"),
    ("no gzip in gzip", fake.plain(b"{}", "application/json", headers=[("Content-Encoding", "gzip")]), False,
     "garbled", "damaged"),
    ("gzip cut", fake.plain(gzip.compress(b"{}" * 99)[:-5], "application/json", headers=[("Content-Encoding", "gzip")]),
     False, "cut", "before its end"),
    ("not HTTP", fake.not_http(), False, "garbled", "not HTTP"),
    ("reset", fake.reset, False, "cut", "without a reply"),
    ("hang up", fake.hang_up, True, "cut", "without a reply"),
    ("content-length cut", fake.truncated_length(), False, "cut", "before its end"),
    ("chunked cut", fake.truncated_chunked(), True, "cut", "before its end"),
    ("chunked reset", fake.truncated_chunked(reset=True), True, "cut", "before its end"),
    ("cut inside a character", fake.cut_in_utf8(), True, "cut", "before its end"),
    ("interim replies only", fake.slow_interim(), False, "garbled", "interim"),
    ("content-length of a terabyte", fake.announced(10**12), False, "too_large", "announces"),
    ("content-length of nonsense", fake.announced(-1), False, "garbled", "HTTP"),
    ("a million headers", fake.many_headers(), False, "too_large", "head"),
    ("a header of 1 MiB", fake.huge_header(), True, "too_large", "head"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("step", "stream", "kind", "says"), [row[1:] for row in REPLIES], ids=[row[0] for row in REPLIES]
)
async def test_every_bad_reply_has_its_kind_and_says_what_it_was(
    client: HttpUpstream, upstream: FakeUpstream, step: Any, stream: bool, kind: str, says: str
) -> None:
    upstream.script(step)
    error = await failure(client, call(upstream.base_url, stream=stream))
    assert error.kind == kind
    assert says in error.message
    assert error.message.startswith("acme")
    assert error.message.isprintable()
    assert error.dispatched
    assert await whole(client, call(upstream.base_url))  # and the client is none the worse


async def test_an_error_before_the_end_keeps_what_came_before(client: HttpUpstream, upstream: FakeUpstream) -> None:
    upstream.script(fake.truncated_chunked([b"data: 1\n\n"], reset=False))
    incoming = await client.send(call(upstream.base_url, stream=True))
    chunks = incoming.chunks()
    assert await anext(chunks) == b"data: 1\n\n"
    for _ in range(2):  # and it stays an error: a half never turns into a whole
        with pytest.raises(UpstreamError):
            await anext(chunks)


async def test_a_body_whose_framing_breaks_ends_at_once(client: HttpUpstream, upstream: FakeUpstream) -> None:
    """aiohttp closes the connection and tells nobody; without our own word for it the reader would wait for ever."""
    when = asyncio.Event()
    upstream.script(fake.broken_chunks(when))
    incoming = await client.send(call(upstream.base_url, stream=True, deadlines=hurry(idle_ms=60_000)))
    chunks = incoming.chunks()
    await anext(chunks)
    when.set()
    with pytest.raises(UpstreamError) as caught:
        await anext(chunks)
    assert caught.value.kind == "cut"
    await upstream.requests[0].gone.wait()


async def test_a_body_that_ends_with_its_connection_must_not_end_with_a_reset(
    client: HttpUpstream, upstream: FakeUpstream
) -> None:
    when = asyncio.Event()

    async def step(x: fake.Exchange) -> None:
        await x.head(200, [("Content-Type", "text/event-stream"), ("Connection", "close")])
        await x.raw(b"data: 1\n\n")
        await when.wait()
        x.reset()

    upstream.script(step)
    chunks = (await client.send(call(upstream.base_url, stream=True))).chunks()
    assert await anext(chunks) == b"data: 1\n\n"
    when.set()
    with pytest.raises(UpstreamError) as caught:
        await anext(chunks)
    assert caught.value.kind == "cut"


async def test_events_and_lines_are_not_judged_here(client: HttpUpstream, upstream: FakeUpstream) -> None:
    """Malformed JSON, error events, odd usage and other models are bytes to this room; the codecs judge them."""
    upstream.script(
        fake.malformed_json, fake.error_inside_stream(), fake.insane_usage(), fake.wrong_model(), fake.no_usage,
        fake.huge_line(),
    )  # fmt: skip
    assert (await whole(client, call(upstream.base_url))).endswith(b'"message":')
    assert b"overloaded" in await whole(client, call(upstream.base_url, stream=True))
    assert b"many" in await whole(client, call(upstream.base_url))
    assert b"other-model-9" in await whole(client, call(upstream.base_url, stream=True))
    assert b"usage" not in await whole(client, call(upstream.base_url))
    assert len(await whole(client, call(upstream.base_url, stream=True))) > 2 * 2**20


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed_and_no_cookie_is_kept(
    client: HttpUpstream, upstream: FakeUpstream, status: int
) -> None:
    async with FakeUpstream() as canary:
        upstream.script(fake.redirect(canary.base_url + "/chat/completions?token=t0ps3cret", status))
        error = await failure(client, call(upstream.base_url))
        assert error.kind == "garbled"
        assert "redirect" in error.message
        assert "t0ps3cret" not in error.message
        await whole(client, call(upstream.base_url))
        assert canary.connections == 0
        assert "cookie" not in upstream.requests[1].headers


async def test_proxies_and_netrc_of_the_environment_are_ignored(
    client: HttpUpstream, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with FakeUpstream() as canary:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, canary.base_url.removesuffix("/v1"))
        await whole(client, call(upstream.base_url, auth="none"))
        assert canary.connections == 0
        assert "authorization" not in upstream.requests[0].headers


@pytest.mark.parametrize(
    "echo",
    [
        f"Incorrect API key provided: {KEY}. Find yours at",
        f"bad header 'Authorization: Bearer {KEY}'",
        f"key {KEY[:9]}\u200b{KEY[9:]} is unknown",
        "Incorrect API key provided: sk-pro****************wxyz.",
        "x" * 495 + " " + KEY,
        "x" * 3_990 + KEY * 20,
    ],
)
@pytest.mark.parametrize("shape", ["json", "anthropic", "plain", "html"])
async def test_no_key_is_ever_in_an_error(client: HttpUpstream, upstream: FakeUpstream, echo: str, shape: str) -> None:
    steps: dict[str, Any] = {
        "json": lambda: fake.error(401, echo, type="invalid_request_error", code="invalid_api_key"),
        "anthropic": lambda: fake.error(401, echo, type="authentication_error"),
        "plain": lambda: fake.plain(echo.encode(), "text/plain", 401),
        "html": lambda: fake.plain(b"<html><body>" + echo.encode() + b"</body></html>", "text/html", 401),
    }
    upstream.script(steps[shape]())
    error = await failure(client, call(upstream.base_url))
    assert len(error.message) < 600
    for text in (error.message, error.body.decode(), repr(error), str(error.__cause__)):
        assert KEY not in text
        assert "wxyz" not in text
    assert KEY[:12] not in error.message


async def test_what_is_kept_of_an_address_does_not_show_its_key(client: HttpUpstream, upstream: FakeUpstream) -> None:
    await whole(client, call(upstream.base_url))
    assert client._addresses and KEY not in repr(client._addresses)


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("packed", ["", "gzip"])
async def test_a_body_is_the_same_however_it_is_cut(
    client: HttpUpstream, upstream: FakeUpstream, framing: str, packed: str
) -> None:
    """A body that has come whole is read in one step, and must not differ from one that comes in pieces."""
    said = b'{"said":"%s, and again %s"}' % (KEY.encode(), KEY.encode())
    body = gzip.compress(said, mtime=0) if packed else said
    head = {"length": b"Content-Length: %d\r\n" % len(body), "chunked": b"Transfer-Encoding: chunked\r\n", "close": b""}
    lines = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + head[framing]
    sent = lines + (b"Content-Encoding: gzip\r\n\r\n" if packed else b"\r\n")
    half = len(body) // 2
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:])]
    sent += b"".join(chunks) + b"0\r\n\r\n" if framing == "chunked" else body
    heads, seen = len(lines), []
    for cut in [len(sent), *range(heads - 3, len(sent), 7)]:

        async def step(x: fake.Exchange, cut: int = cut) -> None:
            await x.raw(sent[:cut])
            await asyncio.sleep(0.002 if cut < len(sent) else 0)
            await x.raw(sent[cut:])
            if framing == "close":
                x.close()

        upstream.script(step)
        seen.append(await whole(client, call(upstream.base_url)))
    assert set(seen) == {said.replace(KEY.encode(), HIDDEN)}
    assert framing == "close" or upstream.connections == 1


PIECES = (b"a", b"b", b"aab", b"ba", b"sk", b"-1", b"s", b"k-", b"")


@given(st.sampled_from(["sk-1", "abab", "aab", "s", ""]), st.lists(st.sampled_from(PIECES), max_size=20))
def test_a_key_is_hidden_wherever_a_stream_is_cut(key: str, pieces: list[bytes]) -> None:
    secret, whole = key.encode(), b"".join(pieces)
    hiding = Hiding(secret)
    seen = [hiding.feed(piece) for piece in pieces]
    assert b"".join(seen) + hiding.rest() == (whole.replace(secret, HIDDEN) if secret else whole)
    assert hiding.rest() == b""


async def test_a_key_that_two_packets_of_a_stream_hold_is_hidden(client: HttpUpstream, upstream: FakeUpstream) -> None:
    heard = asyncio.Event()

    async def script(x: fake.Exchange) -> None:
        await x.start_stream()
        await x.chunk(b"data: {}\n\ndata: your key " + KEY[:9].encode())
        await heard.wait()
        await x.chunk(KEY[9:].encode() + b" is wrong\n\ndata: sk-")
        await x.chunk(b"")

    upstream.script(script)
    incoming = await client.send(call(upstream.base_url, stream=True))
    seen = []
    async for chunk in incoming.chunks():
        seen.append(chunk)
        heard.set()
    assert seen[0] == b"data: {}\n\ndata: your key "
    assert b"".join(seen) == b"data: {}\n\ndata: your key [redacted] is wrong\n\ndata: sk-"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("encoding", ["", "gzip"])
async def test_no_key_is_ever_in_a_reply(
    client: HttpUpstream, upstream: FakeUpstream, stream: bool, encoding: str
) -> None:
    """Some providers send an error that quotes it with status 200, or as an event in the middle of a stream."""
    said = b'data: {"error":{"message":"Incorrect API key provided: %s"}}\n\n' % KEY.encode()
    body = gzip.compress(said) if encoding else said
    kind = "text/event-stream" if stream else "application/json"
    upstream.script(fake.plain(body, kind, headers=[("Content-Encoding", encoding)] if encoding else ()))
    assert await whole(client, call(upstream.base_url, stream=stream)) == said.replace(KEY.encode(), b"[redacted]")


async def test_a_key_cut_in_two_by_the_bound_on_error_bodies_is_not_shown(upstream: FakeUpstream) -> None:
    odd = "q7Zr" * 10  # a key of no known shape
    client = HttpUpstream(lambda _: odd)
    body = b"x" * (64 * 1024 - 20) + odd.encode() + b"y" * 100
    upstream.script(fake.plain(body, "text/plain", 500))
    error = await failure(client, call(upstream.base_url))
    assert b"q7Zr" not in error.body
    assert len(error.body) <= 64 * 1024
    await client.close()
