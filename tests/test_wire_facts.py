"""Replies reduced to facts: stops, checks, answer keys, sketches, and the schema checker."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.streams import chat, message
from tests.support.wire_replies import TEXT, TOOL, anthropic, call, completion, read
from tierwise.wire.facts import answer_key, sketch
from tierwise.wire.neutral import ToolUse
from tierwise.wire.schema import valid


@pytest.mark.parametrize(
    ("body", "dialect", "stop"),
    [
        (completion(), "openai_chat", "end"),
        (completion(finish="length"), "openai_chat", "length"),
        (completion(finish="model_length"), "openai_chat", "length"),
        (completion(finish="content_filter"), "openai_chat", "filtered"),
        (completion(None, "tool_calls", tool_calls=[call()]), "openai_chat", "tool_use"),
        (completion(None, "stop", tool_calls=[call()]), "openai_chat", "tool_use"),
        (completion(None, refusal="No."), "openai_chat", "refusal"),
        (completion(finish=None), "openai_chat", "unknown"),
        (anthropic(TEXT), "anthropic", "end"),
        (anthropic(TEXT, stop="max_tokens"), "anthropic", "length"),
        (anthropic(TEXT, stop="stop_sequence"), "anthropic", "stop_sequence"),
        (anthropic(TOOL, stop="tool_use"), "anthropic", "tool_use"),
        (anthropic(TEXT, stop="refusal"), "anthropic", "refusal"),
        (anthropic(TEXT, stop="brand_new"), "anthropic", "unknown"),
    ],
)
def test_stops_of_both_dialects(body: bytes, dialect: str, stop: str) -> None:
    facts = read(body, dialect=dialect).facts
    assert facts.stop == stop
    assert dict(facts.checks)["complete"] is (stop in ("end", "tool_use", "stop_sequence"))


def test_a_reply_has_its_texts_for_graders_and_for_counting() -> None:
    reply = read(completion("Hi", reasoning_content="hm", tool_calls=[call()]))
    assert (reply.text, reply.output_text, reply.served) == ('Hi\nf({"a": 1.50})', 'hmHif{"a": 1.50}', "gpt-5-x")
    assert (reply.facts.characters, reply.facts.tool_calls) == (2 + 11, 1)
    body = anthropic({"type": "thinking", "thinking": "hm", "signature": "s"}, TEXT, TOOL).replace(
        b'{"a": 1.5}', b'{"a" :1.50}'
    )
    reply = read(body, dialect="anthropic")
    assert (reply.text, reply.output_text) == ('Hello\nf({"a" :1.50})', 'hmHellof{"a" :1.50}')


def test_confidence_is_the_geometric_mean_of_token_probabilities() -> None:
    tree = json.loads(completion())
    tree["choices"][0]["logprobs"] = {"content": [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -0.0}]}
    assert read(json.dumps(tree).encode()).facts.confidence == pytest.approx(0.6065306597)
    assert read(completion()).facts.confidence is None


def test_empty_replies_fail_their_check() -> None:
    assert dict(read(completion("")).facts.checks)["nonempty"] is False
    assert dict(read(completion(None, tool_calls=[call()])).facts.checks)["nonempty"] is True


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("text", "holds"),
    [('{"a": 1}', True), ('{"a": 1.5}', False), ("{}", False), ('```json\n{"a": 1}\n```', False), ("[", False)],
)
def test_a_requested_schema_is_checked(text: str, holds: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    assert dict(read(completion(text), chat(response_format=form)).facts.checks)["schema"] is holds
    request = message(output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    body = anthropic({"type": "text", "text": text})
    assert dict(read(body, request, "anthropic").facts.checks)["schema"] is holds
    assert "schema" not in dict(read(completion(text), chat()).facts.checks)


@pytest.mark.parametrize(
    ("name", "arguments", "holds"),
    [
        ("f", '{"a": 1}', True),
        ("g", "{}", False),
        ("f", '{"a": "x"}', False),
        ("f", '{"a":', False),
        ("f", "[]", False),
        ("f", "", False),
    ],
)
def test_tool_calls_are_checked_against_the_tools(name: str, arguments: str, holds: bool) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
    body = completion(None, "tool_calls", tool_calls=[call(name, arguments)])
    assert dict(read(body, chat(tools=tools)).facts.checks)["tools"] is holds
    assert dict(read(body, message(tools=[{"name": "f", "input_schema": SCHEMA}])).facts.checks)["tools"] is holds


@pytest.mark.parametrize(
    "texts",
    [
        (
            "42",
            " 42. ",
            "**42**",
            "42.0",
            "Answer: 42",
            "It is long to explain.\n\nThe final answer is: 42.",
            "so \\boxed{42}",
            "$42",
        ),
        ("Yes", "yes.", "YES!", "Reasoning.\nAnswer: yes"),
        ("(B)", "B", "b", "Answer: B"),
        ("1,234.50", "1234.5", "+1234.5"),
        ('{"a": 1, "b": [2]}', '{ "b":[2],"a":1 }'),
        ("\\boxed{\\frac{1}{2}}", "thus \\boxed{\\frac{1}{2}}."),
    ],
)
def test_equal_answers_have_equal_keys(texts: tuple[str, ...]) -> None:
    assert len({answer_key(text, []) for text in texts}) == 1
    assert answer_key(texts[0], [])


def test_different_answers_have_different_keys_and_free_text_has_none() -> None:
    answers = ["42", "-42", "4.2", "42%", "yes", "no", "A", "B", '{"a": 1}', '{"a": 2}', "0", "0.5"]
    assert len({answer_key(answer, []) for answer in answers}) == len(answers)
    assert answer_key("This is a long explanation. It has no single answer at all.", []) == ""
    assert answer_key("", []) == ""


def test_tool_calls_have_a_key_of_names_and_canonical_arguments() -> None:
    one = answer_key("text", [ToolUse("a", "f", '{"x": 1, "y": 2}'), ToolUse("b", "g", "")])
    assert one == answer_key("", [ToolUse("z", "g", "{}"), ToolUse("c", "f", '{"y":2,"x":1}')])
    assert one != answer_key("", [ToolUse("z", "g", "{}")])


def test_sketches_estimate_overlap_and_are_the_same_in_every_process() -> None:
    text = " ".join(f"word{i}" for i in range(200))
    changed = text.replace("word100", "other")
    same = sum(a == b for a, b in zip(sketch(text), sketch(changed), strict=True))
    none = sum(a == b for a, b in zip(sketch(text), sketch(" ".join(f"x{i}" for i in range(200))), strict=True))
    assert len(sketch(text)) == 32
    assert same >= 26
    assert none <= 2
    assert sketch("") == ()
    assert len(sketch("one")) == len(sketch("one two")) == 32
    code = "from tierwise.wire.facts import sketch; print(sketch('the same in every process'))"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": "src", "PYTHONHASHSEED": "7"},
    )
    assert out.stdout.strip() == str(sketch("the same in every process"))


TREE_SCHEMA = {
    "type": "object",
    "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "v": {"type": "string", "enum": ["a", "b"]},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["v"],
        }
    },
}


@pytest.mark.parametrize(
    ("value", "schema", "holds"),
    [
        (1, {"type": "integer"}, True),
        (1.0, {"type": "integer"}, True),
        (True, {"type": "integer"}, False),
        (True, {"type": "boolean"}, True),
        (None, {"type": ["string", "null"]}, True),
        ("x", {"type": "number"}, False),
        (1, {"enum": [True]}, False),
        (1, {"enum": [1.0]}, True),
        ([1], {"const": [1]}, True),
        (5, {"minimum": 5, "maximum": 5}, True),
        (5, {"exclusiveMinimum": 5}, False),
        (5, {"exclusiveMaximum": 5}, False),
        (0.3, {"multipleOf": 0.1}, True),
        (5, {"multipleOf": 2}, False),
        ("abc", {"minLength": 4}, False),
        ("abc", {"maxLength": 3, "pattern": "^a.c$"}, True),
        ("x", {"pattern": "^a"}, False),
        ([1, 1], {"uniqueItems": True}, False),
        ([1, True], {"uniqueItems": True}, True),
        ([1], {"minItems": 2}, False),
        ([1, "x"], {"prefixItems": [{"type": "integer"}], "items": {"type": "string"}}, True),
        ([1, 2], {"items": {"type": "string"}}, False),
        ([1], {"items": False}, False),
        ({"a": 1}, {"additionalProperties": False}, False),
        ({"a": 1}, {"additionalProperties": {"type": "string"}}, False),
        ({"a": 1}, {"required": ["b"]}, False),
        ({}, {"minProperties": 1}, False),
        (5, {"anyOf": [{"type": "string"}, {"type": "integer"}]}, True),
        (5, {"oneOf": [{}, {"type": "integer"}]}, False),
        (5, {"allOf": [{"minimum": 1}, {"maximum": 4}]}, False),
        (5, True, True),
        (5, False, False),
        ({"next": {"v": "a", "next": {"v": "b", "next": None}}}, TREE_SCHEMA, True),
        ({"next": {"v": "a", "next": {"v": "c", "next": None}}}, TREE_SCHEMA, False),
        (5, {"$ref": "#"}, False),
        (5, {"$ref": "#/nowhere"}, True),
        (5, {"type": {"odd": 1}}, False),
        (5, {"minimum": "x"}, True),
        ("a" * 5000, {"pattern": "(a+)+$"}, True),
        ("x", {"pattern": "("}, True),
        (5, "odd", True),
    ],
)
def test_the_subset_of_json_schema(value: Any, schema: Any, holds: bool) -> None:
    assert valid(value, schema) is holds


def test_a_schema_that_multiplies_without_end_is_given_up() -> None:
    schema = {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}] * 50}}, "$ref": "#/$defs/a"}
    assert valid(5, schema) is False
