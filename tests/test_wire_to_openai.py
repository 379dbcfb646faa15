"""Messages requests as chat requests, and there and back again."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.wire_requests import ANTHROPIC, OPENAI, PNG, SIMULATED, chat, message, sdk_accepts, sent
from tierwise import wire


def test_a_messages_agent_becomes_a_chat_request() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    request = wire.codec("anthropic").read(
        json.dumps(
            {
                "model": "auto",
                "max_tokens": 500,
                "top_k": 5,
                "stop_sequences": ["a", "b", "c", "d", "e"],
                "metadata": {"user_id": "u1"},
                "service_tier": "standard_only",
                "container": "c",
                "system": [
                    {"type": "text", "text": "S1", "cache_control": {"type": "ephemeral"}},
                    {"type": "text", "text": "S2"},
                ],
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "Look"},
                            image,
                            {
                                "type": "document",
                                "source": {"type": "base64", "media_type": "application/pdf", "data": PNG},
                            },
                            {
                                "type": "document",
                                "source": {"type": "text", "media_type": "text/plain", "data": "T"},
                                "title": "D",
                            },
                            {"type": "image", "source": {"type": "url", "url": "https://x/y"}},
                            {"type": "image", "source": {"type": "file", "file_id": "f"}},
                            {"type": "search_result", "title": "x"},
                        ],
                    },
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "hm", "signature": "s"},
                            {"type": "redacted_thinking", "data": "d"},
                            {"type": "text", "text": "Calling"},
                            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"b": 1.5}},
                            {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}},
                        ],
                    },
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "tool_result",
                                "tool_use_id": "toolu_1",
                                "content": [{"type": "text", "text": "one"}, image],
                            },
                            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "bad", "is_error": True},
                            {"type": "text", "text": "And now?"},
                        ],
                    },
                ],
                "tools": [
                    {"name": "f", "description": "F", "input_schema": {"type": "object"}},
                    {"type": "web_search_20250305", "name": "web_search"},
                ],
                "thinking": {"type": "enabled", "budget_tokens": 5000},
            }
        )
        .encode()
        .replace(b'{"b": 1.5}', b'{"b" :1.50}'),
        {},
    )
    out = wire.write(request, OPENAI, wire.Shape(model="m-1", stream=False))
    body = json.loads(out.body)
    sdk_accepts(body, "openai")
    system, user, assistant, one, two, rest = body["messages"]
    assert system == {"role": "system", "content": "S1\n\nS2"}
    assert [part["type"] for part in user["content"]] == ["text", "image_url", "file", "text", "image_url"]
    assert user["content"][1]["image_url"]["url"] == f"data:image/png;base64,{PNG}"
    assert assistant["content"] == "Calling"
    assert [(call["id"], call["function"]["arguments"]) for call in assistant["tool_calls"]] == [
        ("toolu_1", '{"b" :1.50}'),
        ("toolu_2", "{}"),
    ]
    assert one == {"role": "tool", "tool_call_id": "toolu_1", "content": "one"}
    assert two == {"role": "tool", "tool_call_id": "toolu_2", "content": "Error: bad"}
    assert [part["type"] for part in rest["content"]] == ["text", "image_url", "text"]
    assert (body["user"], body["service_tier"], body["reasoning_effort"]) == ("u1", "default", "medium")
    assert body["stop"] == ["a", "b", "c", "d"]
    named = {sentence.partition(":")[0] for sentence in out.lost}
    assert named == {
        "top_k",
        "stop_sequences",
        "container",
        "cache_control",
        "thinking",
        "redacted_thinking",
        "tools[1]",
        "messages[0].content[5]",
        "messages[0].content[6]",
    }
    assert "reasoning_effort" not in sent(request, OPENAI, reasoning=False)[0]


def test_a_schema_goes_back_and_is_strict_only_where_strict_mode_would_take_it() -> None:
    open_schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    closed = {**open_schema, "required": ["a"], "additionalProperties": False}
    for schema, strict in ((open_schema, False), (closed, True)):
        body, _ = sent(message(output_config={"format": {"type": "json_schema", "schema": schema}}), OPENAI)
        assert body["response_format"]["json_schema"] == {"name": "reply", "schema": schema, "strict": strict}
        sdk_accepts(body, "openai")


NAME = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_-]{0,20}", fullmatch=True)
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
ID = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=80)
ARGUMENTS = st.dictionaries(
    st.text(max_size=5), st.integers(-(2**53), 2**53) | st.text(max_size=8) | st.none(), max_size=3
)


@given(
    turns=st.lists(
        st.tuples(
            WORDS, WORDS, st.lists(st.tuples(ID, NAME, ARGUMENTS, WORDS), max_size=3, unique_by=lambda call: call[0])
        ),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=80, deadline=None)
def test_there_and_back_keeps_texts_tools_ids_and_arguments(turns: list[Any]) -> None:
    messages: list[dict[str, Any]] = []
    for asked, said, calls in turns:
        messages.append({"role": "user", "content": asked})
        reply: dict[str, Any] = {"role": "assistant", "content": said}
        if calls:
            reply["tool_calls"] = [
                {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
                for id, name, arguments, _ in calls
            ]
        messages.append(reply)
        messages += [{"role": "tool", "tool_call_id": id, "content": result} for id, _, _, result in calls]
    messages.append({"role": "user", "content": "end"})
    there, lost = sent(chat(messages=messages), ANTHROPIC)
    assert lost == ()
    back, _ = sent(message(messages=there["messages"]), OPENAI)
    assert len(back["messages"]) == len(messages)
    for before, after in zip(messages, back["messages"], strict=True):
        assert after["role"] == before["role"]
        assert after["content"] == before["content"]
        pairs = zip(before.get("tool_calls", ()), after.get("tool_calls", ()), strict=True)
        for call, again in pairs:
            assert again["function"] == call["function"]
    made = [call["id"] for one in back["messages"] for call in one.get("tool_calls", ())]
    assert [one["tool_call_id"] for one in back["messages"] if one["role"] == "tool"] == made
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", id) for id in made)


def test_our_own_questions_are_written_in_both_formats() -> None:
    for provider, which in ((OPENAI, "openai"), (ANTHROPIC, "anthropic"), (SIMULATED, "openai")):
        out = wire.write_question(provider, "m-1", "Answer yes or no.", "Is it code?", 16)
        body = json.loads(out.body)
        sdk_accepts(body, which)
        assert body["model"] == "m-1"
        assert body["max_tokens"] == 16
        assert "Answer yes or no." in out.body.decode()
