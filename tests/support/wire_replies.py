"""Whole replies of both dialects, for the wire tests."""

from __future__ import annotations

import json
from typing import Any

from tests.support.streams import bill
from tierwise import wire
from tierwise.core.request import Request

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
BILL = bill(wire.Meter())


def completion(content: Any = "Hello", finish: str | None = "stop", usage: Any = USAGE, **message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    tree = {"id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "gpt-5-x", "choices": [choice]}
    return json.dumps({**tree, "usage": usage}).encode()


def anthropic(*content: Any, stop: str = "end_turn", usage: Any = None) -> bytes:
    tree = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": list(content)}
    usage = usage or {"input_tokens": 10, "output_tokens": 5}
    return json.dumps({**tree, "stop_reason": stop, "stop_sequence": None, "usage": usage}).encode()


def call(name: str = "f", arguments: str = '{"a": 1.50}', id: str = "call_1") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


TEXT = {"type": "text", "text": "Hello"}
TOOL = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1.5}}


def read(body: bytes, request: Request | None = None, dialect: str = "openai_chat") -> wire.Reply:
    return wire.read_reply(dialect, body, request)
