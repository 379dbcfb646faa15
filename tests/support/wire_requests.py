"""Requests of both dialects and the SDKs' types, for the wire tests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tierwise import wire
from tierwise.core.catalogue import Provider
from tierwise.core.request import Request

OPENAI = Provider(name="openai", wire="openai")
ANTHROPIC = Provider(name="anthropic", wire="anthropic", auth="x-api-key")
SIMULATED = Provider(name="simulated", wire="simulated")
PNG = "iVBORw0KGgo="
USER = {"role": "user", "content": "Hi"}


def chat(**fields: Any) -> Request:
    return wire.codec("openai_chat").read(json.dumps({"model": "auto", "messages": [USER], **fields}).encode(), {})


def message(**fields: Any) -> Request:
    body = {"model": "auto", "messages": [USER], "max_tokens": 2000, **fields}
    return wire.codec("anthropic").read(json.dumps(body).encode(), {"anthropic-beta": "x-1,y-2"})


def sent(request: Request, provider: Provider, **shape: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    out = wire.write(request, provider, wire.Shape(**{"model": "m-1", "stream": False, **shape}))
    return json.loads(out.body), out.lost


def consume(value: Any) -> None:
    """The SDK's types check iterables only when somebody walks them."""
    if isinstance(value, dict):
        for inner in value.values():
            consume(inner)
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        for inner in value:
            consume(inner)


def sdk_accepts(body: dict[str, Any], which: str) -> None:
    """The types of the official SDK, as a second opinion."""
    from pydantic import TypeAdapter

    if which == "anthropic":
        from anthropic.types.message_create_params import MessageCreateParamsNonStreaming as Params
    else:
        from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as Params
    adapter: TypeAdapter[Any] = TypeAdapter(Params)
    consume(adapter.validate_python({key: value for key, value in body.items() if key != "stream"}))
