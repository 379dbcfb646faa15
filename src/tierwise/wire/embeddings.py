"""OpenAI embeddings: reading and checking. The only format for them, so there is nothing to translate."""

from __future__ import annotations

from typing import Any

from tierwise.core.errors import RequestError
from tierwise.core.request import Prompt, Request, Turn
from tierwise.wire import faults
from tierwise.wire.hints import read_hints
from tierwise.wire.strict import Json, bad, items, kind, load, model_name, no_hosts, one_of, text, whole

MAX_INPUTS = 100_000
MAX_DIMENSIONS = 1_000_000
FIELDS = frozenset(("model", "input", "dimensions", "encoding_format", "user", "metadata", "tierwise", "session_id"))


class Embeddings:
    """The codec of `/v1/embeddings`."""

    name = "openai_embeddings"

    def read(self, body: bytes, headers: dict[str, str]) -> Request:
        """Raises BadRequest naming the field. Unknown fields pass."""
        tree = load(body)
        no_hosts(tree, FIELDS)
        model = model_name(tree)
        turns = [Turn("user", one) for one in _input(tree)]
        whole(tree, "dimensions", 1, MAX_DIMENSIONS)
        if (form := tree.get("encoding_format")) is not None:
            one_of(form, "encoding_format", ("float", "base64"))
        if (user := tree.get("user")) is not None:
            text(user, "user")
        prompt = Prompt(turns=tuple(turns), size_bytes=len(body))
        return Request(
            wire="openai_embeddings",
            body=body,
            model=model,
            prompt=prompt,
            hints=read_hints(tree, headers, turns),
        )

    def error(self, error: RequestError, decision: str = "") -> bytes:
        return faults.openai_body(error, decision)

    def error_event(self, error: RequestError, decision: str = "") -> bytes:
        return b"data: " + faults.openai_body(error, decision) + b"\n\n"


def _input(tree: Json) -> list[str]:
    """The texts; lists of token numbers are checked and have no text, their size stands in the body's."""
    value = tree.get("input")
    if type(value) is str:
        if not value:
            raise bad("input", "must not be empty")
        return [value]
    if value is None:
        raise bad("input", "is missing")
    found = items(value, "input")
    if not found:
        raise bad("input", "must hold at least one text")
    if type(found[0]) is int:
        _tokens(found, "input")
        return []
    if len(found) > MAX_INPUTS:
        raise bad("input", f"must hold at most {MAX_INPUTS} texts")
    if type(found[0]) is list:
        for index, tokens in enumerate(found):
            _tokens(items(tokens, f"input[{index}]"), f"input[{index}]")
        return []
    return [text(one, f"input[{index}]", empty=False) for index, one in enumerate(found)]


def _tokens(tokens: list[Any], at: str) -> None:
    if not tokens:
        raise bad(at, "must hold at least one token")
    for index, token in enumerate(tokens):
        if type(token) is not int or token < 0:
            raise bad(f"{at}[{index}]", f"must be a token number, not {kind(token)}")
