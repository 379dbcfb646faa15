"""What of a reply the caller's format cannot say is told, each kind of thing once; and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.callers import DIALECTS
from tests.support.gateway import Gateway, world
from tests.support.replies import anthropic_body, anthropic_events, openai_body, openai_events
from tests.support.streams import begin, chat, chunk, message
from tests.support.upstream import FakeUpstream, json_reply, sse
from tests.support.wire_replies import TEXT, TOOL, anthropic, call, completion, read
from tierwise.wire.losses import MAX_KINDS

SIGNED = {"type": "thinking", "thinking": "hm", "signature": "s"}
CITED = {**TEXT, "citations": [{"type": "char_location", "cited_text": "x"}]}
SEARCH = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
FOUND = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
REDACTED = {"type": "redacted_thinking", "data": "Em"}
ENCRYPTED = [{"type": "reasoning.encrypted", "data": "Eo"}]
SIGNATURE = {"extra_content": {"google": {"thought_signature": "Eg=="}}}
TOLD = {
    "openai": "reply.annotations: the Anthropic format has no annotations",
    "anthropic": "reply.citations: the OpenAI format has no citations",
}
USAGE = {"openai_chat": {"stream_options": {"include_usage": True}}}
NO_COUNTERPART = "reply.content: a block of type {} has no counterpart in the {} format"

# What a message holds, what stands beside its content, and what a chat caller is told.
TO_CHAT: dict[str, tuple[list[Any], dict[str, Any], list[str]]] = {
    "text": ([TEXT], {}, []),
    "a call": ([TEXT, TOOL], {}, []),
    "thinking that nobody must hand back": ([SIGNED, TEXT], {}, []),
    "thinking that must come back with the result": (
        [SIGNED, TOOL, TOOL], {}, ["reply.signature: the OpenAI format has no signature"]
    ),
    "no signature": ([{**SIGNED, "signature": ""}, TOOL], {}, []),
    "redacted": (
        [REDACTED, REDACTED, TEXT], {}, ["reply.redacted_thinking: the OpenAI format has no redacted_thinking"]
    ),
    "a search": (
        [SEARCH, FOUND, SEARCH, FOUND, CITED, CITED],
        {},
        [
            NO_COUNTERPART.format("server_tool_use", "OpenAI"),
            NO_COUNTERPART.format("web_search_tool_result", "OpenAI"),
            "reply.citations: the OpenAI format has no citations",
        ],
    ),
    "empty citations": ([{**TEXT, "citations": []}, {**TEXT, "citations": None}], {}, []),
    "a container": ([TEXT], {"container": {"id": "c"}}, ["reply.container: the OpenAI format has no container"]),
    "an edited context": (
        [TEXT], {"context_management": {"applied_edits": [{"type": "clear_tool_uses_20250919"}]}},
        ["reply.context_management: the OpenAI format has no context_management"],
    ),
    "a context that nobody edited": ([TEXT], {"container": None, "context_management": {"applied_edits": []}}, []),
    "a pause": (
        [TEXT], {"stop_reason": "pause_turn"},
        ["reply.stop_reason: pause_turn has no counterpart in the OpenAI format"],
    ),
    "a type that is no word": ([{"type": 5}, {}], {}, [NO_COUNTERPART.format("unknown", "OpenAI")]),
    "a type without end": ([{"type": "x" * 999}], {}, [NO_COUNTERPART.format("x" * 60, "OpenAI")]),
}  # fmt: skip
# What the message of a completion holds, what stands beside its choices, and what a Messages caller is told.
TO_MESSAGES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "text": ({}, {"system_fingerprint": "fp", "citations": [], "provider": "x"}, []),
    "a call": ({"tool_calls": [call()], "annotations": [], "audio": None, "refusal": None}, {}, []),
    "reasoning": ({"reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]}, {}, []),
    "Mistral's references": (
        {"content": [{"type": "text", "text": "a"}, *[{"type": "reference", "reference_ids": [1]}] * 2]}, {},
        [NO_COUNTERPART.format("reference", "Anthropic")],
    ),
    "parts that are none": ({"content": [5, "x"]}, {}, [NO_COUNTERPART.format("unknown", "Anthropic")]),
    "audio": ({"audio": {"id": "a", "data": "UklG"}}, {}, ["reply.audio: the Anthropic format has no audio"]),
    "annotations": (
        {"annotations": [{"type": "url_citation"}]}, {},
        ["reply.annotations: the Anthropic format has no annotations"],
    ),
    "Perplexity": (
        {}, {"citations": ["https://example.com"], "search_results": [{"title": "E"}]},
        ["reply.citations: the Anthropic format has no citations",
         "reply.search_results: the Anthropic format has no search_results"],
    ),
    "pictures": ({"images": [{"type": "image_url"}]}, {}, ["reply.images: the Anthropic format has no images"]),
    "encrypted reasoning": (
        {"reasoning_details": ENCRYPTED}, {},
        ["reply.reasoning_details: the Anthropic format has no reasoning_details"],
    ),
    "Gemini's signature": (
        {"tool_calls": [{**call(), **SIGNATURE}]}, {},
        ["reply.thought_signature: the Anthropic format has no thought_signature"],
    ),
    "log-probabilities that nobody can have asked for": ({}, {"logprobs": {"content": [{"logprob": -1}]}}, []),
}  # fmt: skip


def events_of(content: list[Any], beside: dict[str, Any]) -> bytes:
    """The message as a stream whose blocks come whole, which is allowed."""
    opening = {"id": "m", "model": "c", "usage": {"input_tokens": 1}}
    delta = {"stop_reason": "end_turn", **{key: beside[key] for key in beside if key != "context_management"}}
    found = [{"type": "message_start", "message": opening}]
    for index, block in enumerate(content):
        found.append({"type": "content_block_start", "index": index, "content_block": block})
        found.append({"type": "content_block_stop", "index": index})
    edited = {"context_management": beside.get("context_management")}
    found += [{"type": "message_delta", "delta": delta, "usage": {"output_tokens": 1}, **edited}]
    found += [{"type": "message_stop"}]
    return b"".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in found)


@pytest.mark.parametrize("name", TO_CHAT)
def test_a_chat_caller_is_told_what_a_message_loses(name: str) -> None:
    content, beside, lost = TO_CHAT[name]
    body = json.dumps(json.loads(anthropic(*content)) | beside).encode()
    assert list(read(body, chat(), "anthropic").lost) == lost
    assert read(body, message(), "anthropic").lost == () and read(body, None, "anthropic").lost == ()
    relay = begin("openai_chat", "anthropic")
    relay.feed(events_of(content, beside))
    assert relay.meter.done and list(relay.meter.lost) == lost
    relay = begin("anthropic", "anthropic")
    relay.feed(events_of(content, beside))
    assert relay.meter.done and relay.meter.lost == ()


@pytest.mark.parametrize("name", TO_MESSAGES)
def test_a_messages_caller_is_told_what_a_completion_loses(name: str) -> None:
    said, beside, lost = TO_MESSAGES[name]
    body = json.dumps(json.loads(completion(**said)) | beside).encode()
    assert list(read(body, message()).lost) == lost
    assert read(body, chat()).lost == () and read(body).lost == ()
    choice = {"index": 0, "delta": {"content": "Hello", **said}, "finish_reason": "stop"}
    stream = chunk(choices=[choice], **beside) + b"data: [DONE]\n\n"
    for caller, told in (("anthropic", lost), ("openai_chat", [])):
        relay = begin(caller, "openai")
        relay.feed(stream)
        assert relay.meter.done and list(relay.meter.lost) == told


def test_other_choices_than_the_first_are_lost_to_a_messages_caller() -> None:
    lost = ("reply.choices: the Anthropic format has one reply, the others were left out",)
    tree = json.loads(completion())
    assert read(json.dumps({**tree, "choices": tree["choices"] * 3}).encode(), message()).lost == lost
    relay = begin("anthropic", "openai")
    relay.feed(b"".join(chunk(choices=[{"index": at, "delta": {"content": "a"}}]) for at in (0, 1, 2)))
    assert relay.meter.lost == lost


def test_what_is_told_is_bounded() -> None:
    body = anthropic(*[{"type": f"kind_{number}"} for number in range(99)])
    assert len(read(body, chat(), "anthropic").lost) == MAX_KINDS


@pytest.mark.parametrize("wire", TOLD)
async def test_the_header_of_a_whole_reply_and_the_journal_say_it(tmp_path: Path, wire: str) -> None:
    if wire == "openai":
        reply = openai_body("cheap")
        reply["choices"][0]["message"]["annotations"] = [{"type": "url_citation"}]
    else:
        reply = anthropic_body("cheap")
        reply["content"][0]["citations"] = [{"type": "char_location"}]
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, wire=wire)) as gateway:
        for dialect in DIALECTS:
            lost = None if dialect.name.startswith(wire) else TOLD[wire]
            one.script(json_reply(reply))
            heard = await gateway.ask(dialect)
            assert heard.headers.get("x-tierwise-lost") == lost
            assert (await gateway.last()).outcome.lost == ((lost,) if lost else ())


@pytest.mark.parametrize("wire", TOLD)
async def test_the_last_usage_of_a_stream_and_the_journal_say_it(tmp_path: Path, wire: str) -> None:
    """Its headers are gone by then. A reply of which nothing is lost says nothing of it."""
    plain = openai_events("cheap") if wire == "openai" else anthropic_events("cheap")
    if wire == "openai":
        said = json.loads(plain[0][6:])
        said["choices"][0]["delta"]["annotations"] = [{"type": "url_citation"}]
        events = [b"data: " + json.dumps(said).encode() + b"\n\n", *plain[1:]]
    else:
        cited = {"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta", "citation": {}}}
        at = next(index for index, each in enumerate(plain) if b"content_block_stop" in each)
        events = [*plain[:at], f"event: content_block_delta\ndata: {json.dumps(cited)}\n\n".encode(), *plain[at:]]
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, wire=wire)) as gateway:
        for dialect in DIALECTS:
            for step in (events, plain):
                lost = [] if dialect.name.startswith(wire) or step is plain else [TOLD[wire]]
                one.script(sse(step))
                heard = await gateway.ask(dialect, stream=True, **USAGE.get(dialect.name, {}))
                assert heard.whole and "x-tierwise-lost" not in heard.headers
                assert heard.usage["tierwise"].get("lost", []) == lost
                assert list((await gateway.last()).outcome.lost) == lost
