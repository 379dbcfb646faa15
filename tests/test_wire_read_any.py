"""Reading requests of any shape at all: read, or refused with words; and what is read can be written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierwise import wire
from tierwise.core.catalogue import Provider
from tierwise.core.errors import BadRequest
from tierwise.wire import strict

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "type",
                    "text",
                    "image_url",
                    "url",
                    "source",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "id",
                    "input",
                    "tool_use_id",
                    "file",
                    "data",
                    "schema",
                    "mode",
                    "policy",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)
KEYS = st.sampled_from(
    [
        "model",
        "messages",
        "max_tokens",
        "n",
        "stop",
        "stream",
        "stream_options",
        "tools",
        "tool_choice",
        "system",
        "input",
        "response_format",
        "metadata",
        "tierwise",
        "thinking",
        "output_config",
        "functions",
        "function_call",
        "user",
    ]
)


@pytest.mark.parametrize("name", ["openai_chat", "anthropic", "openai_embeddings"])
@given(extra=st.dictionaries(KEYS, JSON, max_size=4), content=JSON)
@settings(max_examples=200, deadline=None)
def test_any_tree_is_read_or_refused_and_what_is_read_can_be_written(
    name: str, extra: dict[str, Any], content: Any
) -> None:
    body = {"model": "a", "max_tokens": 9, "input": "x", "messages": [{"role": "user", "content": content}], **extra}
    try:
        request = wire.codec(name).read(json.dumps(body).encode(), {})
    except BadRequest as error:
        assert error.message
        return
    for provider in (Provider(name="a", wire="openai"), Provider(name="b", wire="anthropic")):
        try:
            sent = wire.write(request, provider, wire.Shape(model="m", stream=request.stream))
        except BadRequest:
            continue
        assert json.loads(sent.body)["model"] == "m"


@given(body=st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_refused_with_words(body: bytes) -> None:
    with pytest.raises(BadRequest):
        wire.codec("openai_chat").read(body, {})


@given(
    parts=st.lists(
        st.sampled_from((b"\\", b"u", b"d", b"D", b"\\ud", b"\\uD", b"\\u00e9", b"{", b"[", b"a")), max_size=12
    ),
    before=st.sampled_from((0, 20_000)),
    after=st.sampled_from((0, 20_000)),
)
@settings(max_examples=300, deadline=None)
def test_a_large_body_is_searched_as_a_small_one(parts: list[bytes], before: int, after: int) -> None:
    body = b" " * before + b"".join(parts) + b" " * after
    assert strict._may_hold_halves(body) is (b"\\ud" in body or b"\\uD" in body)
    assert strict._brackets(body) == body.count(b"{") + body.count(b"[")
