"""One call through the upstream client, as the tests of it make one."""

from __future__ import annotations

import pytest

from tierwise.core.catalogue import Auth, Deadlines, Provider
from tierwise.core.ports import Outgoing, UpstreamError
from tierwise.providers.http import HttpUpstream

KEY = "sk-canary-0123456789abcdef"
PATIENT = Deadlines(connect_ms=8_000, first_token_ms=8_000, idle_ms=8_000, total_ms=8_000)


def secret(reference: str) -> str:
    return {"env:TEST_KEY": KEY, "env:BAD_KEY": f"{KEY}\r\nX-Evil: 1", "env:EMPTY": ""}[reference]


def call(
    base_url: str,
    *,
    stream: bool = False,
    path: str = "chat/completions",
    body: bytes | None = None,
    deadlines: Deadlines = PATIENT,
    api_key: str = "env:TEST_KEY",
    auth: Auth = "bearer",
    headers: tuple[tuple[str, str], ...] = (),
) -> Outgoing:
    provider = Provider(name="acme", wire="openai", base_url=base_url, api_key=api_key, auth=auth)
    if body is None:
        body = b'{"model":"small","stream":%s,"messages":[]}' % (b"true" if stream else b"false")
    return Outgoing(provider=provider, path=path, body=body, stream=stream, deadlines=deadlines, headers=headers)


async def whole(client: HttpUpstream, outgoing: Outgoing) -> bytes:
    """The reply's body, read as its kind of call would read it."""
    incoming = await client.send(outgoing)
    try:
        if outgoing.stream:
            return b"".join([chunk async for chunk in incoming.chunks()])
        return await incoming.read()
    finally:
        incoming.close()


async def failure(client: HttpUpstream, outgoing: Outgoing) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await whole(client, outgoing)
    return caught.value


def hurry(**fields: int) -> Deadlines:
    return Deadlines(**{"connect_ms": 8_000, "first_token_ms": 8_000, "idle_ms": 8_000, "total_ms": 8_000} | fields)
