"""The one room that calls out: sends a prepared request to a provider and hands its reply back as it comes.

Callers never choose where it goes: the address is the provider's row plus a path that a codec fixed. Redirects are not
followed, cookies are not kept, the environment's proxies and netrc are not read. Every reply is bounded in size and
time, and every way to fail is an `UpstreamError` with its kind. Keys are resolved for each call, sent, and never put
into a message: what a provider says back is searched for them first.

aiohttp is imported with the first call, not before (`pool`, `call`).
"""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from tierwise.core.blame import kind_inside_reply, kind_of
from tierwise.core.catalogue import Provider
from tierwise.core.episode import FailureKind
from tierwise.core.errors import TierwiseError
from tierwise.core.ports import Incoming, Outgoing, UpstreamError
from tierwise.providers.failures import SHORTEST_SECRET, clean, message_of, redact, retry_after_ms

if TYPE_CHECKING:
    from tierwise.providers.call import Call
    from tierwise.providers.pool import Pool

BODY_BYTES = 12 * 1024 * 1024  # a whole reply of any other kind; larger than the longest chat reply with an image in it
EMBEDDINGS_BODY_BYTES = 32 * 1024 * 1024  # 2,048 vectors of 1,536 numbers, spelled out as text
_ADDRESSES = 1_000  # addresses remembered; more than any catalogue has
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_VALUE = re.compile(r"[\t\x20-\x7e]{0,8000}")  # no CR, LF, NUL: a value never becomes a second header
_OURS = frozenset((
    "host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect", "cookie",
    "authorization", "x-api-key", "proxy-authorization", "content-type", "content-encoding", "accept",
    "accept-encoding", "user-agent",
))  # fmt: skip


class _Address(msgspec.Struct, frozen=True):
    """A provider's endpoint, ready to be spoken to with one key."""

    key: str
    target: Any  # what the pool connects to
    head: bytes  # the request up to the headers that change per call
    secret: bytes  # the key, where it is long enough to be told from other text; else b""
    body_limit: int

    def __repr__(self) -> str:
        return "_Address()"  # it holds the key


class HttpUpstream:
    """`Upstream` over HTTP/1.1. Belongs to the event loop of its first call.

    `secret(reference)` gives the key behind `env:NAME` or `file:PATH`; it is called for every send, so a key that was
    changed is used at once. When there is none it gives "" or raises LookupError, OSError, ValueError, TierwiseError.
    """

    def __init__(self, secret: Callable[[str], str]) -> None:
        self._secret = secret
        self._pool: Pool | None = None
        self._call: type[Call]
        self._addresses: dict[tuple[str, str, str, str, bool], _Address] = {}  # of each, with its latest key
        self._closed = False

    async def send(self, outgoing: Outgoing) -> Incoming:
        """Send, and return when a reply with a 2xx status and the right content type has begun.

        Raises UpstreamError; `dispatched` is true from the first byte that may have left this process.
        """
        provider, deadlines = outgoing.provider, outgoing.deadlines
        pool = self._pool
        if pool is None or pool.loop is not asyncio.get_running_loop():
            pool = self._open()
        key = self._key(provider)
        address = self._address(pool, provider, key, outgoing)
        head = address.head
        if outgoing.headers:
            head += _headers(outgoing, key)
        start_s = pool.loop.time()
        line = pool.idle(address.target)
        if line is None:
            connect_ms = min(deadlines.connect_ms, deadlines.first_token_ms, deadlines.total_ms)
            line = await pool.connect(address.target, connect_ms / 1000, provider.name)
        call = self._call(pool, line, provider.name, deadlines, start_s, address.body_limit, address.secret)
        outgoing.departure.gone = True
        try:
            await call.ask(b"%bContent-Length: %d\r\n\r\n" % (head, len(outgoing.body)), outgoing.body)
            if 200 <= call.status <= 299 and _right(call.content_type, outgoing.stream) and not call.unknown_encoding:
                return call
            failure = await _failure(call, provider.name, outgoing, key)
        except BaseException:
            call.close()
            raise
        raise failure

    async def close(self) -> None:
        """Close every connection; calls under way end with `cut`. Sending afterwards is an error."""
        self._closed = True
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    def _open(self) -> Pool:
        if self._closed:
            raise UpstreamError("connect", "the gateway is closing: no more calls go out", dispatched=False)
        if self._pool is not None and not self._pool.loop.is_closed():
            raise RuntimeError("this HttpUpstream belongs to another event loop, which is still running")
        from tierwise.providers.call import Call
        from tierwise.providers.pool import Pool

        self._call = Call
        self._addresses.clear()
        self._pool = Pool()
        return self._pool

    def _key(self, provider: Provider) -> str:
        """The key to send; "" for a provider that has none."""
        if provider.auth == "none" or not provider.api_key:
            return ""  # a server on the owner's own machine wants none; one that does will say so with a 401
        try:
            key = self._secret(provider.api_key)
        except (LookupError, OSError, ValueError, TierwiseError) as error:
            # Not chained: what the resolver says may hold more than the reference.
            why = type(error).__name__
            raise _no_key(provider, f"cannot be resolved ({why})") from None
        if not key:
            raise _no_key(provider, "is not set or empty")
        return key

    def _address(self, pool: Pool, provider: Provider, key: str, outgoing: Outgoing) -> _Address:
        sought = provider.name, provider.base_url, provider.auth, outgoing.path, outgoing.stream
        found = self._addresses.get(sought)
        if found is not None and found.key == key:
            return found
        if not _VALUE.fullmatch(key) or key != key.strip():
            raise _no_key(provider, "holds spaces at its ends, line breaks or characters that no key has")
        try:
            made = _Address(
                key=key,
                target=pool.target(provider.base_url),
                head=_head(provider.base_url, outgoing.path, outgoing.stream) + _authorization(provider, key),
                secret=key.encode() if len(key) >= SHORTEST_SECRET else b"",
                body_limit=EMBEDDINGS_BODY_BYTES if outgoing.path == "embeddings" else BODY_BYTES,
            )
        except (ValueError, TypeError) as error:
            raise UpstreamError(
                "connect", f"{provider.name}: base_url cannot be used: {clean(str(error))}", dispatched=False
            ) from error
        if len(self._addresses) >= _ADDRESSES:
            self._addresses.clear()
        self._addresses[sought] = made
        return made


def _no_key(provider: Provider, why: str) -> UpstreamError:
    """Names the reference and never the value."""
    return UpstreamError("auth", f"{provider.name}: the key {provider.api_key} {why}", dispatched=False)


# ------------------------------------------------------------------------------------------------ what goes out


def _head(base_url: str, path: str, stream: bool) -> bytes:
    """The request line and the headers that are the same for every call. Raises ValueError for an unusable address."""
    if not base_url.isprintable() or " " in base_url:
        raise ValueError("it holds spaces or control characters")
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it is not an http or https address")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it holds credentials; put the key into api_key, as env:NAME or file:PATH")
    port = parts.port  # raises ValueError when it is no port
    host = parts.hostname if ":" not in parts.hostname else f"[{parts.hostname}]"
    where = f"{parts.path.rstrip('/')}/{path}" + (f"?{parts.query}" if parts.query else "")
    lines = (
        f"POST {where} HTTP/1.1",
        f"Host: {host.encode('idna').decode() if not host.isascii() else host}" + (f":{port}" if port else ""),
        f"User-Agent: tierwise/{_version()}",
        "Content-Type: application/json",
        f"Accept: {'text/event-stream' if stream else 'application/json'}",
        "Accept-Encoding: identity",
        "",
    )
    head = "\r\n".join(lines)
    if not head.isascii() or any(not 0x20 < ord(character) < 0x7F for character in where):
        raise ValueError("its path holds characters that must be percent-encoded")
    return head.encode("ascii")


def _authorization(provider: Provider, key: str) -> bytes:
    if not key:
        return b""
    return (f"Authorization: Bearer {key}\r\n" if provider.auth == "bearer" else f"x-api-key: {key}\r\n").encode(
        "ascii"
    )


def _headers(outgoing: Outgoing, key: str) -> bytes:
    """The codec's own headers."""
    lines = ""
    for name, value in outgoing.headers:
        if not _NAME.fullmatch(name) or name.lower() in _OURS or not _VALUE.fullmatch(value):
            raise UpstreamError("rejected", f"the header {clean(name, key, 60)!r} cannot be sent on", dispatched=False)
        lines += f"{name}: {value}\r\n"
    return lines.encode("ascii")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tierwise")
    except PackageNotFoundError:  # run from a source tree
        return "dev"


# ------------------------------------------------------------------------------------------------ what comes back


@functools.lru_cache(maxsize=64)
def _right(content_type: str, stream: bool) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    if stream:
        return kind == "text/event-stream"
    # A proxy or a file of canned replies may not know what it hands on: its reader will say whether that is a reply.
    if kind in ("application/json", "text/plain", "application/octet-stream"):
        return True
    return kind.startswith("application/") and kind.endswith("+json")


async def _failure(call: Call, name: str, outgoing: Outgoing, key: str) -> UpstreamError:
    """What a reply that cannot be handed on amounts to. Reads what there is of its body."""
    body = b""
    if call.unknown_encoding:
        call.close()
    else:
        body, whole = await call.read_error()
        if not whole:
            body = body[: max(0, len(body) - len(key))]  # the cut may have gone through our key
    said = message_of(body, key)
    kind, message = _judge(call, name, outgoing, body, said, key)
    return UpstreamError(
        kind,
        message,
        status=call.status,
        retry_after_ms=retry_after_ms(call.headers, time.time(), body),
        body=redact(body, key),
    )


def _judge(call: Call, name: str, outgoing: Outgoing, body: bytes, said: str, key: str) -> tuple[FailureKind, str]:
    status = call.status
    if 300 <= status <= 399:
        location = clean(call.headers.get("Location", "nowhere").partition("?")[0], key, 200)
        return "garbled", f"{name} answered {status}, a redirect to {location}; redirects are never followed"
    if not 200 <= status <= 299:
        kind = kind_of(status, body)
        credit = " (the provider account behind our key has no credit)" if status == 402 else ""
        return kind, f"{name} answered {status}{credit}" + (f": {said}" if said else "")
    if call.unknown_encoding:
        encoding = clean(call.unknown_encoding, key, 40)
        return "garbled", f"{name} answered in content-encoding {encoding}, although asked for identity"
    inside = kind_inside_reply(body)
    if inside is not None:
        return inside, f"{name} answered {status} with an error inside" + (f": {said}" if said else "")
    if not body:
        return "garbled", f"{name} answered {status} with an empty body"
    wanted = "an event stream" if outgoing.stream else "JSON"
    got = clean(call.content_type, key, 80) or "no content type"
    return "garbled", f"{name} answered {status} with {got} where {wanted} was asked for" + (
        f": {said}" if said else ""
    )
