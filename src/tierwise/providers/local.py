"""Looks for model servers on this machine and believes only what looks like one. The one look takes 300 ms at most."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from tierwise.core.catalogue import Provider
from tierwise.providers.known import billions, is_embedding

if TYPE_CHECKING:
    import aiohttp

PROBE_MS = 300
MAX_LIST_BYTES = 1 << 20
MAX_MODELS_PER_SERVER = 12

# Who the servers on the usual ports say owns their models. Anything else on these ports (a gateway, say, whose models
# cost money) may well answer with a model list, but must not be taken for a free local server: the owner can name it.
_OWNERS = frozenset({"vllm", "sglang", "llamacpp", "me", "library", "organization_owner", "organization-owner"})


class LocalModel(msgspec.Struct, frozen=True):
    """What a server says of a model it has."""

    name: str
    context_tokens: int | None = None
    size_billions: float | None = None
    embedding: bool = False


class LocalServer(msgspec.Struct, frozen=True):
    provider: Provider
    models: tuple[LocalModel, ...]


async def probe_local(
    rows: Sequence[Provider], timeout_ms: int = PROBE_MS, *, named: bool = False, key: str = ""
) -> tuple[tuple[LocalServer, ...], tuple[str, ...]]:
    """Ask every row for its models, all at once, `timeout_ms` together. Gives the servers, in the order of the rows,
    and notes on what answered otherwise; nobody there at all is no news.

    `named`: the owner gave the addresses, so any model list is believed, and silence is worth a note.
    """
    import aiohttp

    within_s = timeout_ms / 1_000
    async with aiohttp.ClientSession(trust_env=False) as session:
        questions = (asyncio.wait_for(_ask(session, row, named, key), within_s) for row in rows)
        answers = await asyncio.gather(*questions, return_exceptions=True)
    servers: list[LocalServer] = []
    notes: list[str] = []
    for row, answer in zip(rows, answers, strict=True):
        match answer:
            case LocalServer():
                servers.append(answer)
            case str():
                notes.append(f"{row.base_url}: {answer}")
            case aiohttp.ClientConnectorError():
                if named:
                    notes.append(f"{row.base_url}: nothing listens there")
            case TimeoutError():
                notes.append(f"{row.base_url}: did not list its models within {timeout_ms} ms")
            case aiohttp.ClientError() | msgspec.DecodeError() | ValueError():
                notes.append(f"{row.base_url}: {_STRANGER}")
            case _:
                raise answer
    return tuple(servers), tuple(notes)


async def _ask(session: aiohttp.ClientSession, row: Provider, named: bool, key: str) -> LocalServer | str:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    ollama = row.name == "ollama"
    url = row.base_url.removesuffix("/v1") + "/api/tags" if ollama else row.base_url + "/models"
    # A redirect could lead away from this machine.
    async with session.get(url, headers=headers, allow_redirects=False) as answer:
        if answer.status in (401, 403):
            return "wants a key; if it is yours, give TIERWISE_LOCAL_URL and TIERWISE_LOCAL_API_KEY"
        if answer.status != 200:
            return _STRANGER
        body = await _bounded(answer.content)
    listing = msgspec.json.decode(body)
    found = _ollama_models(listing) if ollama else _listed_models(listing, named)
    if isinstance(found, str):
        return found
    return LocalServer(row, found[:MAX_MODELS_PER_SERVER]) if found else "a model server without a model"


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    body = bytearray()
    async for chunk in content.iter_any():
        body += chunk
        if len(body) > MAX_LIST_BYTES:
            raise ValueError("longer than any list of models")
    return bytes(body)


_STRANGER = "something listens there that is no model server"


class _Ollama(msgspec.Struct):
    models: list[dict[str, Any]]


class _List(msgspec.Struct):
    data: list[dict[str, Any]]
    object: str = ""


def _ollama_models(tags: Any) -> tuple[LocalModel, ...] | str:
    try:
        rows = msgspec.convert(tags, _Ollama).models
    except msgspec.ValidationError:
        return _STRANGER
    found = []
    for row in rows:
        name, details = row.get("name"), row.get("details")
        if not isinstance(name, str) or not name or not isinstance(details, dict):
            return _STRANGER
        # Ollama lists models of its cloud beside those on the disk; they are neither local nor free.
        if row.get("remote_host") or row.get("remote_model") or re.search(r"[-:]cloud$", name):
            continue
        size = details.get("parameter_size")
        family = str(details.get("family", ""))
        found.append(
            LocalModel(
                name,
                size_billions=billions(size) if isinstance(size, str) else None,
                embedding=is_embedding(name) or "bert" in family,
            )
        )
    return tuple(found)


def _listed_models(answer: Any, named: bool) -> tuple[LocalModel, ...] | str:
    try:
        listing = msgspec.convert(answer, _List)
    except msgspec.ValidationError:
        return _STRANGER
    rows = listing.data
    if listing.object != "list" and not all(row.get("object") == "model" for row in rows):
        return _STRANGER
    if not all(isinstance(row.get("id"), str) and row["id"] for row in rows):
        return _STRANGER
    if not named and not any(row.get("owned_by") in _OWNERS for row in rows):
        return "lists models, but is none of the servers known on that port; to use it, set TIERWISE_LOCAL_URL"
    return tuple(_listed_model(row) for row in rows)


def _listed_model(row: dict[str, Any]) -> LocalModel:
    meta = row.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    context = row.get("max_model_len") or meta.get("n_ctx") or meta.get("n_ctx_train")  # vLLM; llama.cpp
    parameters = meta.get("n_params")
    return LocalModel(
        row["id"],
        context_tokens=context if isinstance(context, int) and 0 < context < 1 << 30 else None,
        size_billions=parameters / 1e9 if isinstance(parameters, (int, float)) and parameters > 0 else None,
        embedding=is_embedding(row["id"]),
    )


def tidy_url(text: str, *, bare_port: int | None = None, keep_path: bool = False) -> str:
    """An address as a person types it, as a base URL. `/v1` is added where no version is in the path; with `keep_path`
    only where there is no path at all. `bare_port` is for an address without scheme and port.

    Raises ValueError in a sentence, which never repeats the address when it carries a password.
    """
    typed = text.strip()
    bare = "://" not in typed
    parts = urlsplit(f"http://{typed}" if bare else typed)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("an address must carry neither a password nor a query")
    try:
        port = parts.port or (bare_port if bare else None)
    except ValueError:
        raise ValueError(f"{typed!r} has no valid port") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{typed!r} is not an http(s) address")
    # What a server binds to is not what a client can ask.
    host = "127.0.0.1" if parts.hostname in ("0.0.0.0", "::") else parts.hostname  # noqa: S104
    host = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/")
    if not path or not (keep_path or re.search(r"/v\d\w*(/|$)", path)):
        path += "/v1"
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{path}"
