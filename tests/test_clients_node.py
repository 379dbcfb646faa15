"""The OpenAI SDK for Node against a real server. `make node-sdk` installs it; else these tests skip by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import options
from tests.support.gateway import KEYS
from tests.support.served import Served, simulated

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".cache" / "node"


def _absent() -> str:
    """Why Node cannot be tried here; "" when it can."""
    if shutil.which("node") is None:
        return "node is not installed"
    if not (HOME / "node_modules" / "openai").is_dir():
        return "the OpenAI SDK for Node is not installed; `make node-sdk` does that"
    return ""


pytestmark = pytest.mark.skipif(bool(_absent()), reason=f"Node SDK: {_absent()}")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """All that the SDK made of one gateway, in one process: Node takes longer to start than to ask."""
    with Served(tmp_path_factory.mktemp("node"), simulated(keys=KEYS)) as served:
        command = ["node", str(ROOT / "tests" / "node" / "chat.mjs"), f"{served.url}/v1", options()["api_key"]]
        environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        ran = subprocess.run(command, cwd=HOME, env=environ, capture_output=True, text=True, timeout=90, check=False)
        assert ran.returncode == 0, ran.stderr
        yield {**json.loads(ran.stdout), "records": served.run(served.gateway.records())}


def test_plain(told: dict[str, Any]) -> None:
    plain = told["plain"]
    assert plain["text"]
    assert plain["usage"]["cost_usd"] > 0
    assert plain["usage"]["tierwise"]["decision"] == plain["decision"]


def test_streaming_gives_the_same_text_and_the_cost(told: dict[str, Any]) -> None:
    assert told["streaming"]["text"] == told["plain"]["text"]
    assert told["streaming"]["stop"] == "stop"
    assert told["streaming"]["usage"]["cost_usd"] == told["plain"]["usage"]["cost_usd"]


def test_leaving_a_stream_is_noticed(told: dict[str, Any]) -> None:
    """The gateway ends it and goes on: everything after it in the script was answered."""
    assert told["leaving"]["aborted"]


@pytest.mark.parametrize("way", ["tools", "streamedTools"])
def test_tools(told: dict[str, Any], way: str) -> None:
    """The SDK's own loop ends with an answer, and a streamed call is put together again."""
    if way == "tools":
        assert told["tools"]["called"] == ["Paris", "Rome"]
        assert "sunny" in told["tools"]["text"]
    else:
        assert told["streamedTools"] == {"calls": [{"city": "Paris"}, {"city": "Rome"}], "stop": "tool_calls"}


def test_structured_output_embeddings_and_models(told: dict[str, Any]) -> None:
    assert set(told["structured"]) == {"city"}
    assert len(told["embeddings"]) == 2
    assert told["embeddings"][0] == told["embeddings"][1] > 0
    assert {"auto", "simulated/small"} <= set(told["models"])


@pytest.mark.parametrize(
    ("case", "name", "status", "code"),
    [
        ("unknownModel", "NotFoundError", 404, "model_not_found"),
        ("malformed", "BadRequestError", 400, "invalid_request_error"),
        ("unknownKey", "AuthenticationError", 401, "invalid_api_key"),
    ],
)
def test_errors_are_the_classes_of_the_sdk(told: dict[str, Any], case: str, name: str, status: int, code: str) -> None:
    error = told[case]
    assert (error["name"], error["status"]) == (name, status)
    assert error["code"] == code
    assert error["message"]
