"""Whole replies delivered in the caller's format, whole or as the stream they would have been."""

from __future__ import annotations

import json

import pytest

from tests.support.streams import chat, hear_anthropic, hear_openai, message
from tests.support.wire_replies import BILL, TEXT, TOOL, USAGE, anthropic, call, completion, read
from tierwise import wire
from tierwise.core.money import Usage


def test_the_same_format_passes_byte_for_byte_but_for_usage() -> None:
    body = completion("a\\u0041", tool_calls=[call()]).replace(b'"created": 7', b'"created":  7.0, "odd" : {"x":1.50}')
    out = wire.deliver(chat(), read(body), BILL)
    assert b'"odd":{"x":1.50}' in out
    assert json.dumps(call()).encode() in out
    assert json.loads(out)["usage"] == {
        **USAGE,
        "cost_usd": 0.25,
        "tierwise": {"decision": "d1", "model": "acme/large", "baseline_usd": 1.0, "saved_usd": 0.75},
    }
    assert json.loads(out)["model"] == "gpt-5-x"


def test_logprobs_that_only_we_asked_for_are_not_delivered() -> None:
    tree = json.loads(completion())
    tree["choices"][0]["logprobs"] = {"content": [{"token": "a", "logprob": -1.0}]}
    reply = read(json.dumps(tree).encode())
    assert json.loads(wire.deliver(chat(), reply, BILL))["choices"][0]["logprobs"] is None
    assert json.loads(wire.deliver(chat(logprobs=True), reply, BILL))["choices"][0]["logprobs"] is not None
    assert b"-1.0" not in wire.deliver_stream(chat(), reply, BILL)


def test_without_usage_the_caller_gets_an_estimate_that_says_so() -> None:
    for request, key in ((chat(), "completion_tokens"), (message(), "output_tokens")):
        usage = json.loads(wire.deliver(request, read(completion("x" * 40, usage=None)), BILL))["usage"]
        assert usage[key] == 10
        assert usage["tierwise"]["estimated"] is True


def test_a_chat_reply_for_a_messages_client() -> None:
    from anthropic.types import Message

    reply = read(completion("Hi", "tool_calls", reasoning_content="hm", tool_calls=[call(), call("g", "", "x|y")]))
    tree = json.loads(wire.deliver(message(), reply, BILL))
    parsed = Message.model_validate(tree)
    assert [block.type for block in parsed.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert (tree["id"], tree["model"], tree["stop_reason"]) == ("msg_1", "gpt-5-x", "tool_use")
    assert tree["content"][2] == {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": 1.5}}
    assert tree["usage"]["input_tokens"] == 10
    assert b'"input":{"a": 1.50}' in wire.deliver(message(), reply, BILL)


def test_a_messages_reply_for_a_chat_client() -> None:
    from openai.types.chat import ChatCompletion

    thinking = {"type": "thinking", "thinking": "hm", "signature": "s"}
    body = anthropic(thinking, TEXT, TOOL, stop="tool_use").replace(b'{"a": 1.5}', b'{"a" :1.50}')
    tree = json.loads(wire.deliver(chat(), read(body, dialect="anthropic"), BILL))
    parsed = ChatCompletion.model_validate(tree)
    assert parsed.choices[0].finish_reason == "tool_calls"
    sent = tree["choices"][0]["message"]
    assert (sent["content"], sent["reasoning_content"]) == ("Hello", "hm")
    assert sent["tool_calls"] == [call(arguments='{"a" :1.50}', id="toolu_1")]
    assert tree["usage"]["total_tokens"] == 15
    assert tree["usage"]["cost_usd"] == 0.25


@pytest.mark.parametrize("dialect", ["openai_chat", "anthropic"])
def test_a_whole_reply_becomes_the_stream_that_it_would_have_been(dialect: str) -> None:
    if dialect == "anthropic":
        thinking = {"type": "thinking", "thinking": "hm", "signature": "s"}
        reply = read(anthropic(thinking, TEXT, TOOL, {**TOOL, "id": "toolu_2"}, stop="tool_use"), dialect="anthropic")
        ids = ["toolu_1", "toolu_2"]
    else:
        calls = [call(), call(id="call_2")]
        reply = read(completion("Hello", "tool_calls", reasoning_content="hm", tool_calls=calls))
        ids = ["call_1", "call_2"]
    for heard in (
        hear_openai(wire.deliver_stream(chat(), reply, BILL)),
        hear_anthropic(wire.deliver_stream(message(), reply, BILL)),
    ):
        assert (heard.text, heard.thinking, heard.model) == ("Hello", "hm", reply.served)
        assert [one[0] for one in heard.calls] == ids
        assert [json.loads(one[2]) for one in heard.calls] == [{"a": 1.5}] * 2
        assert heard.stop in ("tool_calls", "tool_use")
        assert heard.usage is not None
        assert heard.usage["cost_usd"] == 0.25
        assert heard.ended
        assert heard.after_end == 0
    assert hear_openai(wire.deliver_stream(chat(stream_options=None), reply, BILL)).usage is None


def test_several_choices_and_blocks_that_we_do_not_know_survive_in_their_own_format() -> None:
    tree = json.loads(completion())
    tree["choices"].append(
        {"index": 1, "message": {"role": "assistant", "content": "Other"}, "finish_reason": "length"}
    )
    out = wire.deliver_stream(chat(n=2), read(json.dumps(tree).encode()), BILL)
    assert b'"index":1' in out
    assert hear_openai(out).text == "HelloOther"
    odd = {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"type": "web_search_result", "url": "u"}]}
    out = wire.deliver_stream(message(), read(anthropic(odd, TEXT), dialect="anthropic"), BILL)
    assert b'"web_search_result"' in out
    assert hear_anthropic(out).text == "Hello"


def test_embeddings_are_delivered_with_their_cost() -> None:
    body = (
        b'{"object":"list","model":"e-3","data":[{"object":"embedding","index":0,"embedding":[0.10,0.2]}],'
        b'"usage":{"prompt_tokens":4,"total_tokens":4}}'
    )
    request = wire.codec("openai_embeddings").read(b'{"model":"auto","input":"Hi"}', {})
    for dialect in ("openai_embeddings", "openai"):
        reply = wire.read_reply(dialect, body, request)
        assert (reply.usage, reply.served, reply.facts.stop) == (Usage(input_tokens=4), "e-3", "end")
    out = wire.deliver(request, reply, BILL)
    assert b"[0.10,0.2]" in out
    assert json.loads(out)["usage"]["cost_usd"] == 0.25
