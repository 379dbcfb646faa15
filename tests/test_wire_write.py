"""Writing requests in the caller's own format: every byte passes but what must change."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.wire_requests import ANTHROPIC, OPENAI, SIMULATED, USER, chat, message, sent
from tierwise import wire
from tierwise.core.catalogue import Provider
from tierwise.core.errors import BadRequest

ODD = b"""{ "model" : "auto", "temperature": 0.70, "frobnicate" : { "z": 1.0, "a" : [ 1e2 , "\\u00e9" ] },
 "messages":[ {"role":"user","content":"a\\/b \\u0041", "x_cache" : {"k" : 1.50}} ], "seed": 1234567890123456789 }"""


def test_every_nested_byte_survives_in_the_same_format() -> None:
    request = wire.codec("openai_chat").read(ODD, {})
    body = wire.write(request, OPENAI, wire.Shape(model="gpt-5", stream=False)).body
    for part in (
        b'"temperature":0.70', b'{ "z": 1.0, "a" : [ 1e2 , "\\u00e9" ] }', b'"seed":1234567890123456789',
        b'[ {"role":"user","content":"a\\/b \\u0041", "x_cache" : {"k" : 1.50}} ]', b'"model":"gpt-5"',
    ):  # fmt: skip
        assert part in body
    assert set(json.loads(body)) == set(json.loads(ODD))


def test_our_own_hints_never_leave_the_house() -> None:
    hints = {"policy": "p"}
    for request, provider in ((chat, OPENAI), (message, ANTHROPIC), (chat, ANTHROPIC), (message, OPENAI)):
        for fields in (
            {"tierwise": hints},
            {"metadata": {"tierwise": hints}},
            {"metadata": {"tierwise": json.dumps(hints), "user_id": "u"}, "tierwise": hints},
        ):
            out = wire.write(request(**fields), provider, wire.Shape(model="m", stream=False))
            assert b"tierwise" not in out.body
    assert sent(chat(metadata={"tierwise": hints, "a": "b"}), OPENAI)[0]["metadata"] == {"a": "b"}


@pytest.mark.parametrize("provider", [OPENAI, SIMULATED])
def test_streams_of_this_dialect_always_ask_for_usage(provider: Provider) -> None:
    assert sent(chat(), provider, stream=True)[0]["stream_options"] == {"include_usage": True}
    kept = sent(chat(stream_options={"include_usage": False, "include_obfuscation": False}), provider, stream=True)[0]
    assert kept["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    plain = sent(chat(stream=True, stream_options={"include_usage": True}), provider, stream=False)[0]
    assert "stream" not in plain
    assert "stream_options" not in plain


def test_a_provider_that_does_not_know_stream_usage_is_not_asked() -> None:
    old = Provider(name="old", wire="openai", stream_usage=False)
    assert "stream_options" not in sent(chat(stream_options={"include_usage": True}), old, stream=True)[0]
    assert "stream_options" not in sent(message(), old, stream=True)[0]


def test_the_ceiling_goes_out_under_the_name_that_the_provider_knows() -> None:
    new = Provider(name="new", wire="openai", max_tokens_field="max_completion_tokens")
    for request in (chat(max_tokens=9), chat(max_completion_tokens=9), message(max_tokens=9)):
        assert {k: v for k, v in sent(request, new)[0].items() if "tokens" in k} == {"max_completion_tokens": 9}
        assert {k: v for k, v in sent(request, OPENAI)[0].items() if "tokens" in k} == {"max_tokens": 9}
        assert sent(request, OPENAI, max_tokens=5)[0]["max_tokens"] == 5
        assert sent(request, ANTHROPIC, max_tokens=5)[0]["max_tokens"] == 5
    assert not [key for key in sent(chat(), OPENAI)[0] if "tokens" in key]
    assert sent(chat(), ANTHROPIC, default_max_tokens=77)[0]["max_tokens"] == 77


def test_logprobs_are_asked_for_when_the_decision_needs_them() -> None:
    assert sent(chat(logprobs=False), OPENAI, logprobs=True)[0]["logprobs"] is True
    assert "logprobs" not in sent(chat(), OPENAI)[0]
    assert sent(message(), OPENAI, logprobs=True)[0]["logprobs"] is True


@pytest.mark.parametrize("request_of", [chat, message])
@pytest.mark.parametrize("provider", [OPENAI, ANTHROPIC])
def test_drafts_are_told_in_a_last_note(request_of: Any, provider: Provider) -> None:
    body, _ = sent(request_of(), provider, drafts=("Forty-one?", "41"))
    last = body["messages"][-1]
    assert last["role"] == "user"
    assert "Forty-one?" in str(last["content"])
    assert json.dumps(body).index("Hi") < json.dumps(body).index("Forty-one?")


def test_headers_of_the_messages_format_go_with_it_and_betas_only_to_their_own() -> None:
    shape = wire.Shape(model="m", stream=False)
    assert wire.write(message(), ANTHROPIC, shape).headers == (
        ("anthropic-version", "2023-06-01"), ("anthropic-beta", "x-1,y-2")
    )  # fmt: skip
    assert wire.write(chat(), ANTHROPIC, shape).headers == (("anthropic-version", "2023-06-01"),)
    assert wire.write(message(), OPENAI, shape).headers == ()
    paths = [
        wire.write(request, provider, shape).path for request in (chat(), message()) for provider in (OPENAI, ANTHROPIC)
    ]
    assert paths == ["chat/completions", "messages"] * 2


def test_unsigned_thinking_is_taken_out_and_signed_thinking_keeps_its_bytes() -> None:
    signed = {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "a", "signature": "sig"}, {"type": "text", "text": "b"}],
    }
    unsigned = {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "c", "signature": ""}, {"type": "text", "text": "d"}],
    }
    body, lost = sent(message(messages=[USER, signed, USER, unsigned, USER]), ANTHROPIC)
    assert body["messages"] == [
        USER,
        signed,
        USER,
        {"role": "assistant", "content": [{"type": "text", "text": "d"}]},
        USER,
    ]
    assert lost
    assert lost[0].startswith("thinking:")
    assert sent(message(messages=[USER, signed, USER]), ANTHROPIC)[1] == ()


def test_embeddings_pass_and_never_go_to_a_format_without_them() -> None:
    body = b'{"model":"auto","input":[[1,2]],"dimensions": 256,"tierwise":{"policy":"p"}}'
    request = wire.codec("openai_embeddings").read(body, {})
    out = wire.write(request, OPENAI, wire.Shape(model="e-3", stream=False))
    assert (out.path, out.body) == ("embeddings", b'{"model":"e-3","input":[[1,2]],"dimensions":256}')
    assert wire.wire_of(OPENAI, out.path) == "openai_embeddings"
    with pytest.raises(BadRequest):
        wire.write(request, ANTHROPIC, wire.Shape(model="e-3", stream=False))
