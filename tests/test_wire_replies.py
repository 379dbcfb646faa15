"""Whole replies are read without trust: usage in disjoint buckets, and anything odd is garbled."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.streams import chat, message
from tests.support.wire_replies import BILL, TEXT, USAGE, anthropic, completion, read
from tierwise import wire
from tierwise.core.money import Usage
from tierwise.wire.replies import _openai_choices, _plain, _said
from tierwise.wire.usage import from_openai


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (USAGE, Usage(input_tokens=10, output_tokens=5)),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": 10},
                "completion_tokens_details": {"reasoning_tokens": 30, "audio_tokens": 5},
            },
            Usage(
                input_tokens=30,
                cached_input_tokens=60,
                input_audio_tokens=10,
                output_tokens=15,
                reasoning_tokens=30,
                output_audio_tokens=5,
            ),
        ),
        ({**USAGE, "prompt_cache_hit_tokens": 4}, Usage(input_tokens=6, cached_input_tokens=4, output_tokens=5)),
        (
            {**USAGE, "total_tokens": 15, "prompt_cache_hit_tokens": 4},
            Usage(input_tokens=6, cached_input_tokens=4, output_tokens=5),
        ),
        (
            {**USAGE, "prompt_tokens_details": {"cache_write_tokens": 4}},
            Usage(input_tokens=6, cache_write_5m_tokens=4, output_tokens=5),
        ),
        ({**USAGE, "prompt_tokens_details": {"cached_tokens": 999}}, Usage(cached_input_tokens=10, output_tokens=5)),
        ({**USAGE, "completion_tokens_details": {"reasoning_tokens": 999}}, Usage(input_tokens=10, reasoning_tokens=5)),
        # xAI and Gemini: reasoning came on top of the completion, and the total shows it.
        (
            {**USAGE, "total_tokens": 22, "completion_tokens_details": {"reasoning_tokens": 7}},
            Usage(input_tokens=10, output_tokens=5, reasoning_tokens=7),
        ),
        ({**USAGE, "total_tokens": 22}, Usage(input_tokens=10, output_tokens=5, reasoning_tokens=7)),
        ({**USAGE, "total_tokens": 10**9}, Usage(input_tokens=10, output_tokens=5)),
        (
            {"prompt_tokens": "10", "completion_tokens": 5.0, "prompt_tokens_details": None},
            Usage(input_tokens=10, output_tokens=5),
        ),
        ({"prompt_tokens": 10, "completion_tokens": None}, None),
        ({"prompt_tokens": -10, "completion_tokens": 5}, None),
        ({"prompt_tokens": 10**30, "completion_tokens": 5}, None),
        ({"prompt_tokens": True, "completion_tokens": 5}, None),
        ({"prompt_tokens": 0, "completion_tokens": 0}, None),
        ({**USAGE, "prompt_tokens_details": {"cached_tokens": -4}}, Usage(input_tokens=10, output_tokens=5)),
        ({}, None),
        (None, None),
        ([], None),
        ("x", None),
    ],
)
def test_openai_usage_in_disjoint_buckets(usage: Any, expected: Usage | None) -> None:
    assert read(completion(usage=usage)).usage == expected


PART = st.sampled_from((0, 0, 0, 1, 5, 12, None, "5", 5.0, True, [5]))
DETAILS = st.one_of(
    st.none(),
    PART,
    st.fixed_dictionaries({"cached_tokens": PART, "reasoning_tokens": PART}),
    st.fixed_dictionaries({"cache_write_tokens": PART, "audio_tokens": PART, "text_tokens": PART}),
)


@given(
    usage=st.fixed_dictionaries(
        {
            "prompt_tokens": st.sampled_from((12, 12, 12, "12", 12.0, 0, -1, 10**12, True)),
            "completion_tokens": st.sampled_from((5, 5, 5, "5", 0, -5, 10**12)),
            "total_tokens": st.sampled_from((17, 17, 17, 17.0, "17", 18, 12, 5, 0, 2 * 10**12, None)),
            "prompt_tokens_details": DETAILS,
            "completion_tokens_details": DETAILS,
        }
    ),
    more=st.dictionaries(st.sampled_from(("reasoning_tokens", "prompt_cache_hit_tokens")), PART, max_size=1),
)
@settings(max_examples=500, deadline=None)
def test_usage_of_the_usual_kind_is_read_as_any_other(usage: Any, more: Any) -> None:
    assert from_openai({**usage, **more}) == from_openai({**usage, **more, "of_no_meaning": 1})


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (
            {
                "input_tokens": 10,
                "cache_read_input_tokens": 20,
                "cache_creation_input_tokens": 30,
                "output_tokens": 40,
                "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
                "output_tokens_details": {"thinking_tokens": 15},
                "server_tool_use": {"web_search_requests": 2},
            },
            Usage(
                input_tokens=10,
                cached_input_tokens=20,
                cache_write_5m_tokens=10,
                cache_write_1h_tokens=20,
                output_tokens=25,
                reasoning_tokens=15,
                web_searches=2,
            ),
        ),
        (
            {"input_tokens": 1, "cache_creation_input_tokens": 30, "output_tokens": 2},
            Usage(input_tokens=1, cache_write_5m_tokens=30, output_tokens=2),
        ),
        ({"input_tokens": None, "output_tokens": 2}, None),
        ({"input_tokens": 1, "output_tokens": -2}, None),
        (
            {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": None, "server_tool_use": None},
            Usage(input_tokens=1, output_tokens=2),
        ),
    ],
)
def test_anthropic_usage_in_disjoint_buckets(usage: Any, expected: Usage | None) -> None:
    assert read(anthropic(TEXT, usage=usage), dialect="anthropic").usage == expected


@pytest.mark.parametrize("dialect", ["openai_chat", "anthropic", "openai_embeddings"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b"5",
        b'"x"',
        b"{}",
        b"{",
        b"<html>502 Bad Gateway</html>",
        b"\x00\xff",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"choices": null}',
        b'{"choices": []}',
        b'{"choices": {}}',
        b'{"choices": [null]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [5]}',
        b'{"content": null}',
        b'{"content": "x"}',
        b'{"content": [5]}',
        b'{"error": {"message": "overheated"}}',
        b'{"error": "overheated"}',
        b'{"data": []}',
        b'{"data": [5]}',
        b'{"data": null}',
        b'{"type": "error", "error": {"message": "overheated"}}',
    ],
)
def test_what_is_no_reply_is_garbled_and_nothing_else(dialect: str, body: bytes) -> None:
    with pytest.raises(wire.Garbled) as caught:
        read(body, dialect=dialect)
    assert caught.value.usage is None
    assert len(str(caught.value)) < 500
    if b"overheated" in body:
        assert "overheated" in str(caught.value)


def test_garbled_replies_keep_the_usage_that_could_be_read() -> None:
    with pytest.raises(wire.Garbled) as caught:
        read(json.dumps({"choices": [], "usage": USAGE}).encode())
    assert caught.value.usage == Usage(input_tokens=10, output_tokens=5)


TREE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "message",
                    "content",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "type",
                    "text",
                    "id",
                    "usage",
                    "prompt_tokens",
                    "input_tokens",
                    "logprobs",
                    "finish_reason",
                    "model",
                    "created",
                    "stop_reason",
                    "thinking",
                    "input",
                    "refusal",
                    "x_groq",
                    "data",
                    "embedding",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@pytest.mark.parametrize("dialect", ["openai_chat", "anthropic", "openai_embeddings"])
@given(tree=TREE)
@settings(max_examples=200, deadline=None)
def test_any_tree_is_a_reply_or_garbled_and_every_reply_can_be_delivered(dialect: str, tree: Any) -> None:
    for value in (
        tree,
        {"choices": [{"message": tree}]},
        {"choices": [tree]},
        {"content": [tree]},
        {"content": tree},
        {"choices": [{"message": {"content": "x"}, "logprobs": tree}], "usage": tree},
    ):
        try:
            reply = read(json.dumps(value).encode(), chat(), dialect)
        except wire.Garbled:
            continue
        assert reply.usage is None or min(getattr(reply.usage, name) for name in Usage.__struct_fields__) >= 0
        if dialect != "openai_embeddings":
            for request in (chat(), message()):
                json.loads(wire.deliver(request, reply, BILL))
                wire.deliver_stream(request, reply, BILL)


@given(
    message=st.fixed_dictionaries(
        {"content": st.sampled_from(("Paris.", "Paris.", "", None, ["Paris."]))},
        optional={
            "refusal": st.sampled_from((None, "", "No.", 1)),
            "reasoning": st.sampled_from((None, "Hm.")),
            "tool_calls": st.sampled_from((None, [])),
        },
    ),
    reason=st.sampled_from(("stop", "STOP", "length", "error", "other", None, 1)),
    number=st.integers(1, 2),
)
@settings(max_examples=500, deadline=None)
def test_a_reply_of_text_alone_is_read_as_any_other(message: Any, reason: Any, number: int) -> None:
    choices = [{"message": message, "finish_reason": reason}] * number
    plain = _plain(choices)
    if plain is not None:
        assert plain == _said(_openai_choices({}, choices, None))
    else:
        assert number > 1 or message != {"content": "Paris."} or reason in ("error", None, 1)


def test_half_a_surrogate_pair_in_a_reply_is_mended_not_fatal() -> None:
    body = completion().replace(b"Hello", b"a\\ud83d")
    reply = read(body)
    assert reply.text == "a\ufffd"
    assert json.loads(wire.deliver(chat(), reply, BILL))["choices"][0]["message"]["content"] == "a\ufffd"
