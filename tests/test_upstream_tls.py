"""How the upstream client speaks TLS (U4), over real sockets."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import upstream as fake
from tests.support.calls import call, failure, hurry, secret, whole
from tests.support.upstream import FakeUpstream
from tierwise.providers.http import HttpUpstream


@pytest.fixture
def certified(tmp_path: Path) -> Callable[[], tuple[ssl.SSLContext, str]]:
    """Makes what a server of this test presents, and names the file by which a client trusts it."""

    def make() -> tuple[ssl.SSLContext, str]:
        if shutil.which("openssl") is None:
            pytest.skip("openssl makes the certificate of this test")
        names = {"out": str(tmp_path / "cert.pem"), "keyout": str(tmp_path / "key.pem")}
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", names["out"], "-keyout", names["keyout"]]
        subprocess.run(command, check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(names["out"], names["keyout"])
        return context, names["out"]

    return make


async def test_tls_is_verified_and_ssl_cert_file_is_honoured(
    certified: Callable[[], tuple[ssl.SSLContext, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, certificate = certified()
    async with FakeUpstream(tls=context) as upstream:
        stranger = HttpUpstream(secret)
        error = await failure(stranger, call(upstream.base_url))
        assert (error.kind, error.dispatched, upstream.requests) == ("connect", False, [])
        assert "certificate" in error.message
        await stranger.close()
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        friend = HttpUpstream(secret)
        assert await whole(friend, call(upstream.base_url))
        assert await whole(friend, call(upstream.base_url, stream=True))
        assert upstream.requests[0].connection == upstream.requests[1].connection
        upstream.script(fake.hang_before_headers)
        pending = asyncio.create_task(friend.send(call(upstream.base_url)))
        seen = await upstream.seen(3)
        pending.cancel()
        await seen.gone.wait()
        await friend.close()


async def test_a_tls_connection_that_is_closing_is_not_used_again(
    certified: Callable[[], tuple[ssl.SSLContext, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end was read from the socket with the reply, where nothing more shows it."""
    context, certificate = certified()
    monkeypatch.setenv("SSL_CERT_FILE", certificate)

    async def reply_and_close(x: fake.Exchange) -> None:
        await fake.json_reply({"n": 1})(x)
        x.close()

    async with FakeUpstream(tls=context) as upstream:
        client = HttpUpstream(secret)
        for _ in range(5):
            upstream.script(reply_and_close)
            assert await whole(client, call(upstream.base_url)) == b'{"n":1}'
        assert upstream.connections == 5
        await client.close()


async def test_an_answer_before_the_request_was_read_does_not_poison_the_connection(
    client: HttpUpstream, certified: Callable[[], tuple[ssl.SSLContext, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is encrypted and waits for the socket is seen in no buffer of the connection itself."""
    context, certificate = certified()
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    over = asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nbig")
        await over.wait()
        writer.transport.abort()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0, ssl=context)
    base_url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    for _ in range(2):
        error = await failure(client, call(base_url, body=b"x" * 30_000_000, deadlines=hurry(first_token_ms=2_000)))
        assert error.kind == "rejected"
    over.set()
    server.close()
