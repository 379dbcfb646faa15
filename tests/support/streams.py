"""Requests and readers for the wire tests: what a client would make of the bytes that a relay gives it."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tierwise import wire
from tierwise.core.request import Request

STREAMS = Path(__file__).parent.parent / "golden" / "streams"
TOOLS = ("get_weather", "get_time", "now")


def chat(**fields: Any) -> Request:
    """An OpenAI chat request that asks for a stream with usage, unless told otherwise."""
    body = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    body |= {"stream_options": {"include_usage": True}} | fields
    return wire.codec("openai_chat").read(json.dumps(body).encode(), {})


def message(**fields: Any) -> Request:
    """An Anthropic Messages request that asks for a stream, unless told otherwise."""
    body = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2000, "stream": True}
    return wire.codec("anthropic").read(json.dumps(body | fields).encode(), {})


def bill(meter: wire.Meter) -> wire.Bill:
    return wire.Bill(cost_usd=0.25, decision="d1", model="acme/large", baseline_usd=1.0, saved_usd=0.75)


def events(stream: bytes) -> list[tuple[str, str]]:
    """An independent, slow reading of the HTML standard: every event as its name and data."""
    found = []
    for block in re.split(r"\n\n+", re.sub(r"\r\n|\r", "\n", stream.decode())):
        name, data = "", []
        for line in block.split("\n"):
            key, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if key == "event":
                name = value
            elif key == "data":
                data.append(value)
        if data:
            found.append((name, "\n".join(data)))
    return found


@dataclass
class Heard:
    """What a client understood."""

    text: str = ""
    thinking: str = ""
    calls: list[tuple[str, str, str]] = field(default_factory=list)  # id, name, arguments
    stop: str | None = None
    usage: dict[str, Any] | None = None
    usages: int = 0
    model: str = ""
    signature: str = ""
    error: dict[str, Any] | None = None
    ended: bool = False
    after_end: int = 0


def hear_openai(stream: bytes) -> Heard:
    heard = Heard()
    calls: dict[int, list[str]] = {}
    for _, data in events(stream):
        if heard.ended:
            heard.after_end += 1
        if data == "[DONE]":
            heard.ended = True
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            heard.error = chunk["error"]
            continue
        heard.model = chunk.get("model") or heard.model
        if chunk.get("usage"):
            heard.usage = chunk["usage"]
            heard.usages += 1
        for choice in chunk["choices"]:
            delta = choice.get("delta") or {}
            heard.text += delta.get("refusal") or ""
            if isinstance(delta.get("content"), str):
                heard.text += delta["content"]
            for part in delta["content"] if isinstance(delta.get("content"), list) else []:
                heard.text += part.get("text", "")
                heard.thinking += "".join(one["text"] for one in part.get("thinking", ()))
            heard.thinking += delta.get("reasoning_content") or delta.get("reasoning") or ""
            for call in delta.get("tool_calls") or ():
                known = calls.setdefault(call.get("index", 0), ["", "", ""])
                known[0] = call.get("id") or known[0]
                known[1] = call["function"].get("name") or known[1]
                known[2] += call["function"].get("arguments") or ""
            heard.stop = choice.get("finish_reason") or heard.stop
    heard.calls = [(call[0], call[1], call[2]) for _, call in sorted(calls.items())]
    return heard


def hear_anthropic(stream: bytes) -> Heard:
    heard = Heard()
    blocks: list[dict[str, Any]] = []
    opened: int | None = None
    for name, data in events(stream):
        event = json.loads(data)
        assert name == event["type"]
        if heard.ended:
            heard.after_end += 1
        match event:
            case {"type": "message_start", "message": started}:
                heard.model = started["model"]
            case {"type": "content_block_start", "index": index, "content_block": block}:
                assert opened is None, "a block began inside a block"
                assert index == len(blocks)
                opened = index
                blocks.append({**block, "json": ""})
            case {"type": "content_block_delta", "index": index, "delta": delta}:
                assert index == opened
                kind, key = delta["type"], delta["type"].removesuffix("_delta")
                if kind == "input_json_delta":
                    blocks[index]["json"] += delta["partial_json"]
                elif kind != "citations_delta":
                    blocks[index][key] = blocks[index].get(key, "") + delta[key]
            case {"type": "content_block_stop", "index": index}:
                assert index == opened
                opened = None
            case {"type": "message_delta", "delta": delta, "usage": usage}:
                heard.stop, heard.usage = delta["stop_reason"], usage
                heard.usages += 1
            case {"type": "message_stop"}:
                assert opened is None
                heard.ended = True
            case {"type": "error", "error": error}:
                heard.error = error
    for block in blocks:
        heard.text += block.get("text", "") if block["type"] == "text" else ""
        heard.thinking += block.get("thinking", "")
        heard.signature += block.get("signature", "")
        if block["type"] == "tool_use":
            whole = json.dumps(block["input"], separators=(",", ":"))
            heard.calls.append((block["id"], block["name"], block["json"] or whole))
    return heard


CALLERS = ("openai_chat", "anthropic")


@functools.cache
def _usual(caller: str) -> Request:
    return chat() if caller == "openai_chat" else message()


def begin(caller: str, provider: str, **fields: Any) -> wire.Relay:
    request = _usual(caller)
    if fields:
        request = chat(**fields) if caller == "openai_chat" else message(**fields)
    return wire.relay(request, provider, bill)


def hear(caller: str, out: bytes) -> Any:
    return hear_openai(out) if caller == "openai_chat" else hear_anthropic(out)


def chunk(**fields: Any) -> bytes:
    return (
        b"data: "
        + json.dumps({"id": "c", "object": "chat.completion.chunk", "model": "m", **fields}).encode()
        + b"\n\n"
    )


def text_chunk(text: str, finish: str | None = None, **fields: Any) -> bytes:
    return chunk(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": finish}], **fields)


USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
