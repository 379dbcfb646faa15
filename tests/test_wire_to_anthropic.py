"""Chat requests as Messages requests: translated whole, and what is lost is named."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.support.wire_requests import ANTHROPIC, OPENAI, PNG, USER, chat, message, sdk_accepts, sent
from tierwise import wire
from tierwise.core.errors import BadRequest

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1.50, "a":"\\u0041"}'}}
CALL2 = {"id": "x|y:z/" + "9" * 60, "type": "function", "function": {"name": "g", "arguments": ""}}
AGENT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "S1"},
        {
            "role": "developer",
            "content": [{"type": "text", "text": "S2", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look"},
                {"type": "text", "text": "  "},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PNG}"}},
            ],
        },
        {"role": "assistant", "content": "Calling", "tool_calls": [CALL, CALL2]},
        {"role": "tool", "tool_call_id": "call_1", "content": "one"},
        {"role": "tool", "tool_call_id": CALL2["id"], "content": [{"type": "text", "text": "two"}]},
        {"role": "user", "content": "And now?"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "f",
                "description": "F",
                "strict": True,
                "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
            },
        },
        {"type": "function", "function": {"name": "g"}},
    ],
}


def test_an_agents_conversation_becomes_a_messages_request() -> None:
    out = wire.write(chat(**AGENT), ANTHROPIC, wire.Shape(model="m-1", stream=False))
    assert b'"input":{"b": 1.50, "a":"\\u0041"}' in out.body  # arguments in their own bytes
    body = json.loads(out.body)
    sdk_accepts(body, "anthropic")
    assert body["system"] == [
        {"type": "text", "text": "S1"},
        {"type": "text", "text": "S2", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ]
    user, assistant, results = body["messages"]
    assert [block["type"] for block in user["content"]] == ["text", "image", "image", "document"]
    assert user["content"][1]["source"] == {"type": "base64", "media_type": "image/png", "data": PNG}
    assert user["content"][2]["source"] == {"type": "url", "url": "https://x/y.png"}
    assert user["content"][3]["title"] == "a.pdf"
    text, first, second = assistant["content"]
    assert text["text"] == "Calling"
    assert (first["id"], second["name"], second["input"]) == ("call_1", "g", {})
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", second["id"])
    assert [block.get("tool_use_id") for block in results["content"]] == ["call_1", second["id"], None]
    assert results["content"][2] == {"type": "text", "text": "And now?"}
    assert body["tools"][0] == {
        "name": "f",
        "description": "F",
        "strict": True,
        "input_schema": {"type": "object", "properties": {"a": {"type": "string"}}},
    }
    assert body["tools"][1]["input_schema"] == {"type": "object"}
    assert out.lost == ()


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, {"type": "tool", "name": "g"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"tool_choice": "required", "parallel_tool_calls": True}, {"type": "any", "disable_parallel_tool_use": False}),
    ],
)
def test_every_tool_choice_goes_there_and_back(fields: dict[str, Any], choice: Any) -> None:
    body, _ = sent(chat(**AGENT, **fields), ANTHROPIC)
    assert body.get("tool_choice") == choice
    back, _ = sent(message(**{key: body[key] for key in ("messages", "tools", "tool_choice") if key in body}), OPENAI)
    expected = {"tool_choice": "auto", **fields} if "parallel_tool_calls" in fields else fields
    assert {key: back.get(key) for key in expected} == expected


def test_allowed_tools_leave_the_others_out() -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]}
    body, _ = sent(chat(**AGENT, tool_choice={"type": "allowed_tools", "allowed_tools": allowed}), ANTHROPIC)
    assert [tool["name"] for tool in body["tools"]] == ["g"]
    assert body["tool_choice"] == {"type": "any"}


def test_what_the_messages_format_cannot_say_is_named() -> None:
    body, lost = sent(
        chat(
            seed=1,
            logit_bias={"1": 1},
            presence_penalty=0.5,
            frequency_penalty=0,
            logprobs=True,
            n=3,
            temperature=1.7,
            top_p=0.5,
            prediction={"type": "content", "content": "x"},
            service_tier="flex",
            metadata={"a": "b"},
            stop=["a", " "],
            tools=[{"type": "custom", "custom": {"name": "c"}}],
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
                        {"type": "hologram"},
                        {"type": "text", "text": "Hi"},
                    ],
                }
            ],
        ),
        ANTHROPIC,
    )
    sdk_accepts(body, "anthropic")
    assert (body["temperature"], body["stop_sequences"]) == (1, ["a"])
    named = {sentence.partition(":")[0] for sentence in lost}
    assert named >= {
        "seed",
        "logit_bias",
        "presence_penalty",
        "logprobs",
        "n",
        "temperature",
        "top_p",
        "prediction",
        "service_tier",
        "metadata",
        "stop",
        "tools[0]",
        "audio",
        "messages[0].content[1]",
    }
    assert "seed: the Anthropic format has no seed" in lost


def test_what_another_provider_signed_is_named_where_it_was_left_out() -> None:
    signed = {"google": {"thought_signature": "Eg=="}}
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}, "extra_content": signed}
    said = {"role": "assistant", "tool_calls": [call], "reasoning_details": [{"type": "reasoning.encrypted"}]}
    asked = chat(
        messages=[{"role": "user", "content": "Hi"}, said, {"role": "tool", "tool_call_id": "a", "content": "1"}]
    )
    body, lost = sent(asked, ANTHROPIC)
    sdk_accepts(body, "anthropic")
    assert {sentence.partition(":")[0] for sentence in lost} == {
        "messages[1].reasoning_details",
        "messages[1].tool_calls[0].extra_content",
    }


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "system", "content": "S"}], [("user", "S")]),
        (
            [{"role": "assistant", "content": "A"}, USER],
            [("user", "(The conversation begins with the assistant.)"), ("assistant", "A"), ("user", "Hi")],
        ),
        ([USER, {"role": "assistant", "content": ""}, {"role": "user", "content": "Ho"}], [("user", ["Hi", "Ho"])]),
        ([USER, {"role": "system", "content": "Now"}, USER], [("user", ["Hi", "System instruction: Now", "Hi"])]),
        ([USER, {"role": "assistant", "content": "Once "}], [("user", "Hi"), ("assistant", "Once")]),
    ],
)
def test_roles_come_in_turn_and_no_text_is_empty(messages: list[Any], expected: list[Any]) -> None:
    body, _ = sent(chat(messages=messages), ANTHROPIC)
    got = [
        (
            one["role"],
            one["content"] if isinstance(one["content"], str) else [block["text"] for block in one["content"]],
        )
        for one in body["messages"]
    ]
    assert got == expected
    sdk_accepts(body, "anthropic")


def test_a_system_message_with_a_picture_keeps_it_inside_the_conversation_and_loses_it_by_name_before() -> None:
    shown = [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}, {"type": "text", "text": "Use this."}]
    system = {"role": "system", "content": shown}
    body, lost = sent(chat(messages=[USER, system]), ANTHROPIC)
    assert [block.get("text", block["type"]) for block in body["messages"][0]["content"]] == [
        "Hi",
        "image",
        "System instruction: Use this.",
    ]
    assert not any("images" in words for words in lost)
    sdk_accepts(body, "anthropic")
    body, lost = sent(chat(messages=[system, USER]), ANTHROPIC)
    assert body["system"] == "Use this."
    assert any("images" in words for words in lost)


def test_a_conversation_with_no_text_at_all_is_refused() -> None:
    with pytest.raises(BadRequest, match="messages"):
        sent(chat(messages=[{"role": "user", "content": " "}]), ANTHROPIC)


def test_arguments_that_are_no_object_are_wrapped_and_named() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": '}}
    body, lost = sent(
        chat(
            messages=[
                USER,
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c", "content": ""},
            ]
        ),
        ANTHROPIC,
    )
    assert body["messages"][1]["content"][0]["input"] == {"arguments": '{"a": '}
    assert [tool["name"] for tool in body["tools"]] == ["f"]
    assert body["tool_choice"] == {"type": "none"}
    assert any("tool_calls" in sentence for sentence in lost)
    sdk_accepts(body, "anthropic")


def test_a_schema_becomes_structured_output_and_json_is_asked_for_in_words() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    body, lost = sent(chat(response_format=form), ANTHROPIC)
    sdk_accepts(body, "anthropic")
    closed = body["output_config"]["format"]["schema"]
    assert closed["additionalProperties"] is False
    assert closed["properties"]["a"]["additionalProperties"] is False
    assert lost == ()
    body, lost = sent(chat(response_format={"type": "json_object"}), ANTHROPIC)
    assert "JSON object" in body["system"]
    assert lost[0].startswith("response_format:")


def test_an_effort_becomes_a_thinking_budget_where_it_can() -> None:
    body, lost = sent(chat(reasoning_effort="medium", max_tokens=9000), ANTHROPIC)
    assert (body["thinking"], lost) == ({"type": "enabled", "budget_tokens": 4096}, ())
    assert sent(chat(reasoning_effort="high", max_tokens=2000), ANTHROPIC)[0]["thinking"]["budget_tokens"] == 1999
    assert "thinking" not in sent(chat(reasoning_effort="none"), ANTHROPIC)[0]
    for request, shape in (
        (chat(reasoning_effort="high", max_tokens=500), {}),
        (chat(**AGENT, reasoning_effort="high", tool_choice="required"), {}),
        (chat(**AGENT, reasoning_effort="high"), {}),
        (chat(reasoning_effort="high"), {"reasoning": False}),
    ):
        body, lost = sent(request, ANTHROPIC, **shape)
        assert "thinking" not in body
        assert any(sentence.startswith("reasoning_effort:") for sentence in lost)
    body, lost = sent(chat(reasoning_effort="low", temperature=0.2, max_tokens=4000), ANTHROPIC)
    assert "temperature" not in body
    assert lost[0].startswith("temperature:")


def test_results_come_first_whatever_the_caller_said_before_them() -> None:
    """The format refuses words between a call and its result."""
    talk = [
        USER,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "user", "content": "Hurry"},
        {"role": "tool", "tool_call_id": "call_1", "content": "one"},
    ]
    body, _ = sent(chat(messages=talk), ANTHROPIC)
    assert [block["type"] for block in body["messages"][2]["content"]] == ["tool_result", "text"]


@pytest.mark.filterwarnings("ignore")
def test_litellm_agrees_on_an_agents_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no look at the network at import
    litellm = pytest.importorskip("litellm", reason="litellm is not installed: no second opinion from it")
    plain = json.loads(json.dumps(AGENT["messages"]).replace('"developer"', '"system"'))
    plain[2]["content"] = plain[2]["content"][:1]  # it fetches images, and knows no blank text
    theirs = litellm.AnthropicConfig().transform_request(
        model="claude-sonnet-4-5",
        messages=json.loads(json.dumps(plain)),
        litellm_params={},
        headers={},
        optional_params={"max_tokens": 4096},
    )
    ours, _ = sent(chat(**{**AGENT, "messages": plain}), ANTHROPIC)
    assert [one["text"] for one in theirs["system"]] == [one["text"] for one in ours["system"]]
    assert len(theirs["messages"]) == len(ours["messages"])
    for mine, other in zip(ours["messages"], theirs["messages"], strict=True):
        assert mine["role"] == other["role"]
        mine_blocks = mine["content"] if isinstance(mine["content"], list) else [{"type": "text"}]
        other_blocks = other["content"] if isinstance(other["content"], list) else [{"type": "text"}]
        assert [block["type"] for block in mine_blocks] == [block["type"] for block in other_blocks]
        for one, two in zip(mine_blocks, other_blocks, strict=True):
            assert one.get("input") == two.get("input")
