"""Reading requests: what is malformed is refused with the field's name, what is unknown passes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tierwise import wire
from tierwise.core.errors import BadRequest, Unknown
from tierwise.core.request import Request, Turn

USER = {"role": "user", "content": "Hi"}
CHAT = {"model": "auto", "messages": [USER]}
MESSAGE = {**CHAT, "max_tokens": 100}
EMBED = {"model": "auto", "input": "Hi"}
PNG = "iVBORw0KGgo="


def read(name: str, body: Any, **headers: str) -> Request:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return wire.codec(name).read(raw, {key.replace("_", "-"): value for key, value in headers.items()})


def refused(name: str, body: Any, **headers: str) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        read(name, body, **headers)
    error = caught.value
    assert error.status == 400
    assert error.message.endswith((".", "?"))
    assert len(error.message) < 600
    return error


@pytest.mark.parametrize("name", ["openai_chat", "anthropic", "openai_embeddings"])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "line 1"),
        (b'{"model": "a"} x', "not valid JSON"),
        (b'{"model": NaN}', "NaN"),
        (b'{"model": -Infinity}', "Infinity"),
        (b'{"model": 1e400}', "out of range"),
        (b'{"model": ' + b"9" * 100_000 + b"}", "64 bits"),
        (b'{"model": 36893488147419103232}', "64 bits"),
        (b'{"model": -9223372036854775809}', "64 bits"),
        (b'{"model": "a", "model": "b"}', "'model' stands twice"),
        (b'{"model": "a", "x": [{"y": {"z": 1, "z": 1}}]}', "'z' stands twice"),
        (b'{"model": "\\ud800"}', "surrogate"),
        (b'{"model": "\\uDE00x"}', "surrogate"),
        (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep"),
        (b'{"x": ' + b'{"a":' * 100_000, "deep"),
        (b'{"x": ' + b"[" * 300 + b"]" * 300 + b"}", "deep"),
        (b"[]", "object"),
        (b"null", "object"),
        (b'"text"', "object"),
        (b'{"model": "\xff"}', "UTF-8"),
        (b'{"model": "\xed\xa0\x80"}', "UTF-8"),
        (b'\xef\xbb\xbf{"model": "a"}', "not valid JSON"),
        (b'{"model": "a\nb"}', "control character"),
        (b"{'model': 'a'}", "not valid JSON"),
    ],
)
def test_bytes_that_are_no_strict_json_object(name: str, body: bytes, words: str) -> None:
    assert words in refused(name, body).message


def test_a_proper_surrogate_pair_and_a_deep_but_sane_schema_pass() -> None:
    body = (
        b'{"model": "a", "messages": [{"role": "user", "content": "\\ud83d\\ude00"}], "x": '
        + b"[" * 90
        + b"]" * 90
        + b"}"
    )
    assert read("openai_chat", body).prompt.turns == (Turn("user", "😀"),)


def chat_with(part: Any) -> dict[str, Any]:
    return {**CHAT, "messages": [USER, {"role": "user", "content": [{"type": "text", "text": "a"}, part]}]}


BAD_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": [USER]}, "model"),
    ({**CHAT, "model": None}, "model"),
    ({**CHAT, "model": 5}, "model"),
    ({**CHAT, "model": ""}, "model"),
    ({**CHAT, "model": "a" * 300}, "model"),
    ({**CHAT, "model": "a\u0000b"}, "model"),
    ({"model": "a"}, "messages"),
    ({"model": "a", "messages": []}, "messages"),
    ({"model": "a", "messages": {}}, "messages"),
    ({"model": "a", "messages": "Hi"}, "messages"),
    ({"model": "a", "messages": [USER, 5]}, "messages[1]"),
    ({"model": "a", "messages": [USER, {"content": "x"}]}, "messages[1].role"),
    ({"model": "a", "messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"model": "a", "messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
    ({"model": "a", "messages": [USER, USER, {"role": "user", "content": 5}]}, "messages[2].content"),
    ({"model": "a", "messages": [{"role": "user"}]}, "messages[0].content"),
    ({"model": "a", "messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"model": "a", "messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    (chat_with(5), "messages[1].content[1]"),
    (chat_with({"text": "x"}), "messages[1].content[1].type"),
    (chat_with({"type": "text"}), "messages[1].content[1].text"),
    (chat_with({"type": "text", "text": 5}), "messages[1].content[1].text"),
    (chat_with({"type": "image_url"}), "messages[1].content[1].image_url"),
    (chat_with({"type": "image_url", "image_url": {"url": 5}}), "messages[1].content[1].image_url.url"),
    (chat_with({"type": "input_audio", "input_audio": {}}), "messages[1].content[1].input_audio.data"),
    (chat_with({"type": "file", "file": "x"}), "messages[1].content[1].file"),
    ({**CHAT, "messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
    ({**CHAT, "messages": [{"role": "assistant", "tool_calls": [{"id": 5}]}]}, "messages[0].tool_calls[0].id"),
    (
        {
            **CHAT,
            "messages": [
                {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {}}}]}
            ],
        },
        "messages[0].tool_calls[0].function.arguments",
    ),
    *(({**CHAT, "max_tokens": bad}, "max_tokens") for bad in (0, -1, 2**31, 10**9, 1e9, "5", 1.5, True, [], 2**64 - 1)),
    *(({**CHAT, "max_completion_tokens": bad}, "max_completion_tokens") for bad in (0, -1, 2**31, "5", True)),
    ({**CHAT, "max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    *(({**CHAT, "n": bad}, "n") for bad in (0, -1, 129, 10**6, "2", 1.0, True)),
    *(({**CHAT, "temperature": bad}, "temperature") for bad in (-0.1, 2.1, "1", True, [])),
    *(({**CHAT, "top_p": bad}, "top_p") for bad in (-1, 1.01, "x")),
    ({**CHAT, "presence_penalty": 3}, "presence_penalty"),
    ({**CHAT, "stop": ["a"] * 5}, "stop"),
    ({**CHAT, "stop": ["a"] * 100_000}, "stop"),
    ({**CHAT, "stop": 5}, "stop"),
    ({**CHAT, "stop": ["a", 5]}, "stop[1]"),
    ({**CHAT, "stop": "a" * 100_000}, "stop[0]"),
    ({**CHAT, "stream": "yes"}, "stream"),
    ({**CHAT, "stream": 1}, "stream"),
    ({**CHAT, "stream_options": []}, "stream_options"),
    ({**CHAT, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({**CHAT, "tools": {"a": 1}}, "tools"),
    ({**CHAT, "tools": [5]}, "tools[0]"),
    ({**CHAT, "tools": [{"type": "function"}]}, "tools[0].function"),
    ({**CHAT, "tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
    (
        {**CHAT, "tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]},
        "tools[0].function.parameters",
    ),
    ({**CHAT, "tool_choice": "always"}, "tool_choice"),
    ({**CHAT, "tool_choice": 5}, "tool_choice"),
    ({**CHAT, "response_format": "json"}, "response_format"),
    ({**CHAT, "response_format": {}}, "response_format.type"),
    ({**CHAT, "response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (
        {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
        "response_format.json_schema.schema",
    ),
    ({**CHAT, "metadata": 5}, "metadata"),
    ({**CHAT, "user": 5}, "user"),
    ({**CHAT, "logprobs": "yes"}, "logprobs"),
    ({**CHAT, "top_logprobs": 21}, "top_logprobs"),
    *(
        ({**CHAT, key: "http://evil"}, key)
        for key in (
            "api_base",
            "base_url",
            "api_key",
            "extra_headers",
            "custom_llm_provider",
            "baseURL",
            "apiKey",
            "api-base",
            "litellm_params",
            "default_headers",
            "model_list",
        )
    ),
]


@pytest.mark.parametrize(("body", "param"), BAD_CHAT, ids=[f"{i}-{param}" for i, (_, param) in enumerate(BAD_CHAT)])
def test_chat_requests_with_one_thing_wrong_name_the_field(body: dict[str, Any], param: str) -> None:
    error = refused("openai_chat", body)
    assert error.param == param
    assert param in error.message


def blocks(*content: Any) -> dict[str, Any]:
    return {**MESSAGE, "messages": [{"role": "user", "content": list(content)}]}


BAD_MESSAGE: list[tuple[dict[str, Any], str]] = [
    (CHAT, "max_tokens"),
    *(({**MESSAGE, "max_tokens": bad}, "max_tokens") for bad in (0, -1, 2**31, 10**9, "5", 1.5, True, None)),
    ({**MESSAGE, "messages": []}, "messages"),
    ({**MESSAGE, "messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({**MESSAGE, "messages": [{"role": "user"}]}, "messages[0].content"),
    (blocks({"type": "text"}), "messages[0].content[0].text"),
    (blocks({}), "messages[0].content[0].type"),
    (blocks({"type": "image"}), "messages[0].content[0].source"),
    (blocks({"type": "image", "source": {"type": "base64", "data": PNG}}), "messages[0].content[0].source.media_type"),
    (blocks({"type": "tool_use", "id": "a", "name": "f", "input": "{}"}), "messages[0].content[0].input"),
    (blocks({"type": "tool_result"}), "messages[0].content[0].tool_use_id"),
    (blocks({"type": "tool_result", "tool_use_id": "a", "is_error": "no"}), "messages[0].content[0].is_error"),
    (blocks({"type": "tool_result", "tool_use_id": "a", "content": 5}), "messages[0].content[0].content"),
    (blocks({"type": "tool_result", "tool_use_id": "a", "content": [5]}), "messages[0].content[0].content[0]"),
    (blocks({"type": "thinking"}), "messages[0].content[0].thinking"),
    ({**MESSAGE, "system": 5}, "system"),
    ({**MESSAGE, "system": [{"type": "image"}]}, "system[0].type"),
    ({**MESSAGE, "temperature": 1.5}, "temperature"),
    ({**MESSAGE, "top_k": -1}, "top_k"),
    ({**MESSAGE, "stop_sequences": "a"}, "stop_sequences"),
    ({**MESSAGE, "stop_sequences": ["a"] * 100_000}, "stop_sequences"),
    ({**MESSAGE, "stop_sequences": [5]}, "stop_sequences[0]"),
    ({**MESSAGE, "thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ({**MESSAGE, "thinking": "on"}, "thinking"),
    ({**MESSAGE, "tool_choice": {"type": "required"}}, "tool_choice.type"),
    ({**MESSAGE, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({**MESSAGE, "tools": [{"input_schema": {}}]}, "tools[0].name"),
    ({**MESSAGE, "tools": [{"name": "f", "input_schema": 5}]}, "tools[0].input_schema"),
    ({**MESSAGE, "output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({**MESSAGE, "metadata": {"user_id": 5}}, "metadata.user_id"),
    ({**MESSAGE, "base_url": "http://evil"}, "base_url"),
]


@pytest.mark.parametrize(
    ("body", "param"), BAD_MESSAGE, ids=[f"{i}-{param}" for i, (_, param) in enumerate(BAD_MESSAGE)]
)
def test_messages_requests_with_one_thing_wrong_name_the_field(body: dict[str, Any], param: str) -> None:
    assert refused("anthropic", body).param == param


@pytest.mark.parametrize(
    ("input", "param"),
    [
        (None, "input"),
        ("", "input"),
        ([], "input"),
        ({}, "input"),
        (5, "input"),
        (["a", ""], "input[1]"),
        (["a", 5], "input[1]"),
        ([[]], "input[0]"),
        ([[1], "a"], "input[1]"),
        ([1, -1], "input[1]"),
        ([1, 2.5], "input[1]"),
    ],
)
def test_embedding_requests_with_one_thing_wrong_name_the_field(input: Any, param: str) -> None:
    assert refused("openai_embeddings", {**EMBED, "input": input}).param == param


@pytest.mark.parametrize("input", ["Hi", ["Hi", "Ho"], [1, 2], [[1], [2, 3]]])
def test_embedding_inputs_of_every_kind_are_read(input: Any) -> None:
    request = read("openai_embeddings", {**EMBED, "input": input})
    assert request.wire == "openai_embeddings"
    assert not request.stream


def test_of_two_things_wrong_the_same_is_named_wherever_they_stand() -> None:
    wrong = {"logit_bias": [], "top_p": 5, "stop": 5, "stream_options": 1, "tools": 1}
    for fields in (wrong, dict(reversed(wrong.items()))):
        assert refused("openai_chat", {**CHAT, **fields}).param == "top_p"
    assert refused("openai_chat", {**CHAT, **wrong, "n": 0}).param == "n"


def test_blanks_around_a_body_are_nothing_and_anything_else_is_refused() -> None:
    plain = json.dumps(CHAT).encode()
    for body in (plain + b"\n", plain + b" \t\r\n", b"\r\n\t " + plain + b" "):
        assert read("openai_chat", body).prompt == read("openai_chat", plain + b" " * (len(body) - len(plain))).prompt
    for body in (plain + b"\x0b", plain + b"\n,", plain + b"\n" + plain, b"\x0b" + plain, plain + "\u00a0".encode()):
        assert "not valid JSON" in refused("openai_chat", body).message


def test_unknown_fields_of_others_pass() -> None:
    assert read("openai_chat", {**CHAT, "frobnicate": {"a": 1}, "metadata": {"team": "x"}}).model == "auto"
    assert read("anthropic", {**MESSAGE, "mcp_servers": [], "frobnicate": 1}).model == "auto"


@pytest.mark.parametrize("thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}])
def test_a_thread_is_refused_in_the_words_that_make_the_sdks_send_everything(thread: dict[str, str]) -> None:
    """Taken as it is, a turn of a thread is half a conversation, and a tool runner's model loses its tools."""
    error = refused("anthropic", {"model": "auto", "max_tokens": 100, "messages": [], "thread": thread})
    told = json.loads(wire.codec("anthropic").error(error))["error"]
    assert (told["type"], told["param"]) == ("invalid_request_error", "thread")
    assert told["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    assert read("anthropic", {**MESSAGE, "thread": None})


def test_counting_needs_no_ceiling_and_is_as_strict_otherwise() -> None:
    request = wire.read_count(json.dumps(CHAT).encode(), {})
    assert request.prompt.max_tokens is None
    with pytest.raises(BadRequest):
        wire.read_count(b'{"model": "a", "messages": []}', {})


def test_both_names_of_the_ceiling_are_understood_and_may_agree() -> None:
    assert read("openai_chat", {**CHAT, "max_tokens": 7}).prompt.max_tokens == 7
    assert read("openai_chat", {**CHAT, "max_completion_tokens": 8}).prompt.max_tokens == 8
    assert read("openai_chat", {**CHAT, "max_completion_tokens": 8, "max_tokens": 8}).prompt.max_tokens == 8
    assert read("openai_chat", {**CHAT, "max_completion_tokens": None, "max_tokens": None}).prompt.max_tokens is None


def test_a_prompt_counts_what_is_in_a_chat_request() -> None:
    body = {
        **CHAT,
        "messages": [
            {"role": "developer", "content": "Be brief"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                    {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                    {"type": "file", "file": {"file_data": "BBBB"}},
                    {"type": "text", "text": "here"},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "a", "content": "42"},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}, {"type": "custom", "custom": {"name": "g"}}],
        "tool_choice": "required",
        "n": 3,
        "max_tokens": 9,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "a": 1}}},
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = read("openai_chat", body)
    prompt = request.prompt
    assert prompt.turns == (
        Turn("system", "Be brief"),
        Turn("user", "Look\nhere"),
        Turn("assistant", ""),
        Turn("tool", "42"),
    )
    assert (prompt.images, prompt.audio, prompt.documents, prompt.tool_calls, prompt.n) == (2, 1, 1, 1, 3)
    assert prompt.tools == ("f", "g")
    assert prompt.forced_tool
    assert prompt.embedded_bytes == len(f"data:image/png;base64,{PNG}") + 4 + 4
    assert prompt.size_bytes == len(json.dumps(body).encode())
    assert prompt.structured == "schema"
    assert prompt.max_tokens == 9
    assert (request.stream, request.want_usage) == (True, True)
    body["response_format"]["json_schema"]["schema"] = {"a": 1, "type": "object"}
    assert read("openai_chat", body).prompt.schema_hash == prompt.schema_hash
    body["response_format"]["json_schema"]["schema"] = {"a": 2, "type": "object"}
    assert read("openai_chat", body).prompt.schema_hash != prompt.schema_hash


def test_a_prompt_counts_what_is_in_a_messages_request() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    body = {
        **MESSAGE,
        "system": [{"type": "text", "text": "Be brief", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            USER,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "Looking"},
                    {"type": "tool_use", "id": "a", "name": "f", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "42"}, image]},
                    {"type": "text", "text": "Go on"},
                ],
            },
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any"},
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
    }
    request = read("anthropic", body, anthropic_beta="a-1, b-2")
    prompt = request.prompt
    assert prompt.turns == (
        Turn("system", "Be brief"),
        Turn("user", "Hi"),
        Turn("assistant", "Looking"),
        Turn("tool", "42"),
        Turn("user", "Go on"),
    )
    assert (prompt.images, prompt.tool_calls, prompt.embedded_bytes) == (1, 1, len(PNG))
    assert prompt.forced_tool
    assert prompt.structured == "schema"
    assert request.betas == ("a-1", "b-2")


def test_there_is_no_codec_of_another_name() -> None:
    with pytest.raises(Unknown, match="openai_chat"):
        wire.codec("openai_chats")
