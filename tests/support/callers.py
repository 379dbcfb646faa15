"""The two dialects that callers speak: how each asks, and how each hears a reply, an event stream or an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

QUESTION = "What is the capital of France?"


@dataclass(frozen=True)
class Dialect:
    name: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    ceiling: int | None = None

    def body(self, **fields: Any) -> dict[str, Any]:
        """A small sound request; a field given as None is left out."""
        usual: dict[str, Any] = {
            "model": "auto",
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": self.ceiling,
        }
        return {name: value for name, value in {**usual, **fields}.items() if value is not None}


OPENAI = Dialect("openai_chat", "/v1/chat/completions")
ANTHROPIC = Dialect("anthropic", "/v1/messages", {"anthropic-version": "2023-06-01"}, 200)
DIALECTS = (OPENAI, ANTHROPIC)


@dataclass(frozen=True)
class Heard:
    """A whole response."""

    status: int
    headers: Mapping[str, str]  # lower-case names
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[tuple[str, Any]]:
        """(event name, data) of an event stream; data that is no JSON stays text."""
        return events_of(self.body)

    @property
    def is_anthropic(self) -> bool:
        return self.body.startswith(b'{"type":')

    @property
    def error(self) -> dict[str, Any]:
        """The error object, its shape checked: the one schema in either dialect's frame."""
        tree = self.json
        assert self.headers["content-type"].startswith("application/json"), self
        assert set(tree) == ({"type", "error", "request_id"} if "type" in tree else {"error"}), tree
        return checked(tree)

    @property
    def text(self) -> str:
        """What the model said, in whatever shape it came."""
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            return "".join(_said(data) for _, data in self.events)
        tree = self.json
        if "choices" in tree:
            return tree["choices"][0]["message"]["content"] or ""
        return "".join(block.get("text", "") for block in tree["content"])

    @property
    def stream_error(self) -> dict[str, Any]:
        """The error event inside a stream: the last thing that it says."""
        _, data = self.events[-1]
        assert isinstance(data, dict) and "error" in data, self.events[-3:]
        return checked(data)

    @property
    def whole(self) -> bool:
        """Whether a stream came to the proper end of its dialect."""
        last = self.events[-1] if self.events else ("", "")
        return last[1] == "[DONE]" or last[0] == "message_stop"

    @property
    def model(self) -> str:
        return self.headers.get("x-tierwise-model", "")

    @property
    def usage(self) -> dict[str, Any]:
        """The usage that the caller was told, last and cumulative; {} when none was."""
        trees = [data for _, data in self.events] if b"data: " in self.body[:200] else [self.json]
        trees = [
            data.get("message", data) if data.get("type") == "message_start" else data
            for data in trees
            if isinstance(data, dict)
        ]
        found: dict[str, Any] = {}
        for tree in trees:
            found |= tree.get("usage") or {}
        return found


def events_of(body: bytes) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for block in body.decode("utf-8").replace("\r\n", "\n").split("\n\n"):
        name, data = "", []
        for line in block.split("\n"):
            key, _, value = line.partition(":")
            if key == "event":
                name = value.strip()
            elif key == "data":
                data.append(value.removeprefix(" "))
        if data:
            found.append((name, _parsed("\n".join(data))))
    return found


def checked(tree: dict[str, Any]) -> dict[str, Any]:
    error: dict[str, Any] = tree["error"]
    assert set(error) == {"type", "message", "code", "param", "metadata"}, error
    assert isinstance(error["message"], str) and error["message"], error
    assert isinstance(error["type"], str) and isinstance(error["code"], str) and isinstance(error["metadata"], dict)
    return error


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _said(data: Any) -> str:
    if not isinstance(data, dict):
        return ""
    if data.get("choices"):
        return (data["choices"][0].get("delta") or {}).get("content") or ""
    delta = data.get("delta")
    return delta.get("text", "") if isinstance(delta, dict) else ""


# ------------------------------------------------------------------------------------------------ bad input

DOORS = {
    "chat": "/v1/chat/completions",
    "messages": "/v1/messages",
    "count": "/v1/messages/count_tokens",
    "embeddings": "/v1/embeddings",
    "route": "/v1/route",
    "feedback": "/v1/feedback",
}
SOUND: dict[str, dict[str, Any]] = {
    "chat": OPENAI.body(),
    "messages": ANTHROPIC.body(),
    "count": {"model": "auto", "messages": [{"role": "user", "content": "hi"}]},
    "embeddings": {"model": "auto", "input": "hi"},
    "route": OPENAI.body(),
    "feedback": {"decision_id": "x", "score": 1},
}


def refused(heard: Heard, door: str, status: int | None = 400) -> dict[str, Any]:
    """The error, when it is the caller's, clear, and in the shape of this door."""
    assert 400 <= heard.status < 500 and (status is None or heard.status == status), heard
    assert heard.is_anthropic == (door in ("messages", "count")), heard
    error = heard.error
    assert 10 <= len(error["message"]) <= 2_000 and "Traceback" not in error["message"], error
    return error


def post(path: str, body: bytes, headers: list[str], host: str = "host: 127.0.0.1") -> bytes:
    lines = [f"POST {path} HTTP/1.1", *([host] if host else []), "content-type: application/json", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
