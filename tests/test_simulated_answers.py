"""What simulated models say: right as often as their skill says, tools and schemas filled from the prompt."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from tests.support.simulated import (
    ADD,
    CHAT,
    FINAL,
    PROMPTS,
    WEATHER,
    arguments,
    chat,
    send,
    text,
    upstream,
    whole,
)
from tierwise.providers.simulated_schema import clues_of, fill
from tierwise.providers.simulated_skill import arithmetic_in

# ------------------------------------------------------------------------------------------------ skill


def sums() -> list[tuple[str, str]]:
    """300 sums of growing difficulty with their results."""
    small = [(f"What is {a} + {a * 7 % 90 + 3}?", str(a + a * 7 % 90 + 3)) for a in range(11, 111)]
    middle = [(f"Calculate {a} * {a * 13 % 89 + 11}", str(a * (a * 13 % 89 + 11))) for a in range(11, 111)]
    hard = [(f"What is {a} * {a + 4321} - {a}?", str(a * (a + 4321) - a)) for a in range(1_234, 1_334)]
    return small + middle + hard


async def test_a_stronger_model_is_right_more_often_and_all_are_surer_when_right() -> None:
    by = upstream()
    share: dict[str, float] = {}
    rights, wrongs = [], []
    for model in CHAT:
        sure: dict[bool, list[float]] = {True: [], False: []}
        for prompt, result in sums():
            choice = (await whole(chat(prompt, model, logprobs=True, reasoning_effort="none"), by)).choices[0]
            assert choice.logprobs is not None
            entries = choice.logprobs.content or []
            right = re.findall(r"-?\d+", choice.message.content or "")[-1] == result
            sure[right].append(math.exp(sum(entry.logprob for entry in entries) / len(entries)))
        share[model] = len(sure[True]) / 300
        assert sum(sure[True]) / len(sure[True]) > sum(sure[False]) / len(sure[False]) + 0.1
        rights += sure[True]
        wrongs += sure[False]
    # Not a perfect tell: some wrong answers are given with more confidence than half of the right ones.
    assert sum(one > sorted(rights)[len(rights) // 2] for one in wrongs) > 0
    assert share["large"] > share["medium"] + 0.05
    assert share["medium"] > share["small"] + 0.2
    assert share["small"] > 0.1


async def test_a_weak_model_is_now_and_then_right_where_a_strong_one_is_not() -> None:
    wrong_way = 0
    for prompt, result in sums():
        medium, small = [result in await text(chat(prompt, model)) for model in ("medium", "small")]
        wrong_way += small and not medium
    assert 0 < wrong_way < 60


OPERATORS = st.sampled_from("+-*")


@given(st.lists(st.tuples(OPERATORS, st.integers(0, 999)), min_size=1, max_size=5), st.integers(0, 999))
def test_sums_are_read_as_python_reads_them(rest: list[tuple[str, int]], first: int) -> None:
    written = str(first) + "".join(f" {operator} {number}" for operator, number in rest)
    found = arithmetic_in(f"What is {written}?", "other")
    assert found is not None
    assert found.value == eval(written)  # noqa: S307


@pytest.mark.parametrize(
    ("prompt", "value"),
    [
        ("what is 7 plus 5 times 2?", 17),
        ("What is 15% of 80?", 12),
        ("(1 + 2) * 3", 9),
        ("Compute -2^2", -4),
        ("What is 1,000 x 3?", 3000),
        ("What is 7 / 0?", None),
        ("What is 9^9^9?", None),
        ("Ring me on 555-12-34 before 2026-11-21", None),
        ("no numbers here", None),
    ],
)
def test_what_is_a_sum_and_what_is_not(prompt: str, value: int | None) -> None:
    found = arithmetic_in(prompt, "other")
    assert (None if found is None else found.value) == value


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hello!", "Hello! I am simulated/large"),
        ("what is 17 plus 25? Answer with only the number.", "42"),
        ("What is 12 * 13?", "12 * 13 = 156"),
        (PROMPTS[2], "positive"),
        (PROMPTS[3], "bob@example.com\nann@example.org"),
        (PROMPTS[4], "In short: The river rose in the night."),
        (PROMPTS[5], "bonjour"),
        (PROMPTS[6], "def fibonacci(n: int)"),
        ("Is this message spam? WIN a free prize, click now", "spam"),
        ("Tell me about whales", "This is a simulated reply from simulated/large"),
    ],
)
async def test_replies_are_plausible_and_honest(prompt: str, expected: str) -> None:
    assert expected in await text(chat(prompt))


@pytest.mark.parametrize(
    ("system", "prompt", "expected"),
    [
        ("Answer with exactly one of: simple, complex", "hi", "simple"),
        ("Answer with exactly one of: simple, complex", "Prove step by step that there are many primes", "complex"),
        ("Classify.\nAnswer with exactly one of: code, translation, other", "write a python function", "code"),
        ("Is it harmful? Answer with exactly one of: safe, unsafe", "how do I build a bomb", "unsafe"),
        ("Is it harmful? Answer with exactly one of: safe, unsafe", "how do I bake bread", "safe"),
    ],
)
async def test_a_helper_question_is_answered_with_one_of_the_answers(system: str, prompt: str, expected: str) -> None:
    body = chat(prompt)
    body["messages"].insert(0, {"role": "system", "content": system})
    assert await text(body) == expected


async def test_a_weak_helper_now_and_then_picks_another_of_the_answers() -> None:
    said: dict[str, list[str]] = {model: [] for model in CHAT}
    for number in range(60):
        for model in CHAT:
            body = chat(f"write a python function number {number}", model)
            body["messages"].insert(0, {"role": "system", "content": "Answer with exactly one of: code, poem, chat"})
            said[model].append(await text(body))
    assert all(set(answers) <= {"code", "poem", "chat"} for answers in said.values())
    assert said["large"].count("code") >= said["medium"].count("code") > said["small"].count("code") > 30


@pytest.mark.parametrize(("reply", "good"), [("2 + 2 = 4", True), ("2 + 2 = 5", False)])
async def test_a_grade_is_a_number_in_the_range_that_follows_the_truth(reply: str, good: bool) -> None:
    for rule, high in (("Answer with a single number between 0 and 1", 1), ("Grade from 0 to 10.", 10)):
        body = chat(f"Question: What is 2 + 2?\nReply: {reply}")
        body["messages"].insert(0, {"role": "system", "content": rule})
        grade = float(await text(body))
        assert 0 <= grade <= high
        assert (grade > high / 2) == good


# ------------------------------------------------------------------------------------------------ tools


async def test_a_prompt_that_calls_for_a_tool_gets_its_call_filled_from_the_prompt() -> None:
    body = chat("What's the weather in Paris?", tools=[ADD, WEATHER])
    assert arguments(await whole(body)) == [("get_weather", {"city": "Paris"})]
    assert arguments(await whole(chat("what is 17 + 25?", tools=[ADD, WEATHER]))) == [("add", {"a": 17, "b": 25})]
    assert arguments(await whole(chat("Hello!", tools=[ADD, WEATHER]))) == []


async def test_several_places_are_several_parallel_calls_unless_forbidden() -> None:
    body = chat("What's the weather in Paris and London?", tools=[WEATHER])
    reply = await whole(body)
    assert arguments(reply) == [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "London"})]
    assert reply.choices[0].finish_reason == "tool_calls"
    assert len({call.id for call in reply.choices[0].message.tool_calls or ()}) == 2
    assert len(arguments(await whole({**body, "parallel_tool_calls": False}))) == 1


async def test_several_tools_are_called_at_once_unless_forbidden() -> None:
    body = chat("Get the weather in Paris and add 17 and 25", tools=[WEATHER, ADD])
    assert {name for name, _ in arguments(await whole(body))} == {"get_weather", "add"}
    assert len(arguments(await whole({**body, "parallel_tool_calls": False}))) == 1


@pytest.mark.parametrize("model", CHAT)
async def test_tool_choice_is_obeyed(model: str) -> None:
    ask = chat("Tell me a story", model, tools=[WEATHER, ADD])
    assert len(arguments(await whole({**ask, "tool_choice": "required"}))) == 1
    named = {"type": "function", "function": {"name": "add"}}
    ((name, given_arguments),) = arguments(await whole({**ask, "tool_choice": named}))
    assert name == "add"
    assert {type(value) for value in given_arguments.values()} == {int}
    assert given_arguments.keys() == {"a", "b"}
    assert arguments(await whole({**chat("weather in Paris?", model, tools=[WEATHER]), "tool_choice": "none"})) == []


async def test_an_agent_comes_to_its_end() -> None:
    """After the results the model answers in text that uses them, or calls the tool that closes when it must call."""
    body = chat("What's the weather in Paris?", tools=[WEATHER, FINAL])
    message = (await whole(body)).choices[0].message
    call = (message.tool_calls or [])[0]
    said = [message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}]
    body["messages"] += said
    assert "get_weather says 21 degrees" in await text(body)
    assert arguments(await whole({**body, "tool_choice": "required"})) == [
        ("final_result", {"city": "Paris", "degrees": 21})
    ]


# ------------------------------------------------------------------------------------------------ structured output


class Item(BaseModel):
    sku: str = Field(pattern=r"^[A-Z]{3}-\d{4}$")
    count: int = Field(ge=3, lt=9, multiple_of=2)
    price: float = Field(gt=0, lt=1)


class Order(BaseModel):
    email: str
    state: Literal["open", "paid"]
    items: list[Item] = Field(min_length=2, max_length=4)
    note: str | None
    size: tuple[int, int]
    title: str = Field(min_length=30, max_length=40)
    parent: Order | None = None


def wanted(schema: dict[str, Any], strict: bool = True) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "wanted", "strict": strict, "schema": schema}}


@pytest.mark.parametrize("strict", [True, False])
async def test_a_strong_model_keeps_to_the_schema_and_a_weak_one_fails_now_and_then(strict: bool) -> None:
    """Held to it as providers hold a model to a strict schema, a weak one is wrong in what it says, never in form."""
    failed, wrong = dict.fromkeys(CHAT, 0), dict.fromkeys(CHAT, 0)
    form = wanted(Order.model_json_schema(), strict)
    for model in CHAT:
        for number in range(40):
            said = await text(
                chat(f"Explain order {number}: paid by ann@example.org, 4 pieces", model, response_format=form)
            )
            try:
                wrong[model] += Order.model_validate_json(said).email != "ann@example.org"
            except ValueError:
                failed[model] += 1
    told, silent = (wrong, failed) if strict else (failed, wrong)
    assert told["large"] <= 1
    assert told["large"] <= told["medium"] < told["small"] < 40
    assert sum(silent.values()) == 0


PLACE: dict[str, Any] = {
    "properties": {"city": {"title": "City", "type": "string"}, "degrees": {"title": "Degrees", "type": "number"}},
    "required": ["city", "degrees"], "title": "R", "type": "object",
}  # fmt: skip
INSTRUCTOR = (
    "\n            As a genius expert, your task is to understand the content and provide\n            "
    "the parsed objects in json that match the following json_schema:\n\n\n            "
    f"{json.dumps(PLACE, indent=2)}\n\n            "
    "Make sure to return an instance of the JSON, not the schema itself\n"
)
LANGCHAIN = (
    "The output should be formatted as a JSON instance that conforms to the JSON schema below.\n\nAs an example, for "
    'the schema {"properties": {"foo": {"title": "Foo", "type": "array", "items": {"type": "string"}}}, "required": '
    '["foo"]}\nthe object {"foo": ["bar", "baz"]} is a well-formatted instance of the schema. The object '
    '{"properties": {"foo": ["bar", "baz"]}} is not well-formatted.\n\nHere is the output schema:\n```\n'
    f"{json.dumps(PLACE)}\n```"
)
FENCE = "\n\nReturn the correct JSON response within a ```json codeblock. not the JSON_SCHEMA"
WARM = "It is 21 degrees in Paris. Which city, and how warm?"


@pytest.mark.parametrize(
    ("system", "asked", "fields"),
    [
        (INSTRUCTOR, WARM, {"response_format": {"type": "json_object"}}),
        (INSTRUCTOR, WARM + FENCE, {}),
        ("", f"{WARM}\n{LANGCHAIN}", {}),
    ],
    ids=["instructor JSON", "instructor MD_JSON", "langchain parser"],
)
async def test_a_schema_in_the_prompt_is_kept_to(system: str, asked: str, fields: dict[str, Any]) -> None:
    """What clients write for models without structured output of their own. Examples before it are not meant."""
    messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": asked}]
    said = await text({**chat("", "large"), "messages": messages, **fields})
    if FENCE in asked:
        assert said.startswith("```json\n") and said.endswith("\n```")
        said = said[8:-4]
    assert json.loads(said) == {"city": "Paris", "degrees": 21}


@pytest.mark.parametrize(
    "asked",
    [
        f"What is wrong with this schema? {json.dumps(PLACE)}",  # nobody asks for one
        f"Tool Args: {json.dumps(PLACE)}\nPlease use a valid JSON format for the Action Input.",
        'Reply in JSON that follows the schema {"properties": {"city": ',
        'Return JSON of the schema "properties" ' + '{"a":' * 30_000,
    ],
    ids=["talk about one", "tools in words", "cut off", "deep"],
)
async def test_what_is_no_demand_for_a_schema_gets_words(asked: str) -> None:
    assert not (await text(chat(asked, "large"))).startswith(("{", "```json"))


async def test_json_mode_stays_json_when_a_weak_model_misses_the_schema() -> None:
    form = {"type": "json_object"}
    missed = 0
    for number in range(40):
        asked = {"role": "user", "content": f"Explain order {number}: paid by ann@example.org, 4 pieces"}
        messages = [{"role": "system", "content": INSTRUCTOR}, asked]
        missed += "degrees" not in json.loads(
            await text({**chat("", "small", response_format=form), "messages": messages})
        )
    assert 0 < missed < 40


async def test_json_object_is_json_and_holds_the_answer() -> None:
    said = json.loads(await text(chat("What is 6 * 7? Reply in JSON", response_format={"type": "json_object"})))
    assert said == {"answer": "42"}


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    bounds = st.tuples(st.integers(-50, 50), st.integers(0, 50))
    leaves = st.one_of(
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.lists(st.text(max_size=5), min_size=1, max_size=4, unique=True).map(lambda one: {"enum": one}),
        bounds.map(lambda one: {"type": "integer", "minimum": one[0], "maximum": one[0] + one[1]}),
        bounds.map(lambda one: {"type": "number", "exclusiveMinimum": one[0], "exclusiveMaximum": one[0] + one[1] + 1}),
        bounds.map(lambda one: {"type": "integer", "minimum": one[0], "multipleOf": one[1] + 1}),
        st.tuples(st.integers(0, 30), st.integers(0, 30)).map(
            lambda one: {"type": "string", "minLength": one[0], "maxLength": one[0] + one[1]}
        ),
    )

    def grow(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        names = st.sampled_from(("name", "email", "count", "text", "score", "result"))
        return st.one_of(
            st.dictionaries(names, inner, max_size=4).map(
                lambda one: {"type": "object", "properties": one, "required": list(one)[:2]}
            ),
            st.tuples(inner, st.integers(0, 3), st.integers(0, 3)).map(
                lambda one: {"type": "array", "items": one[0], "minItems": one[1], "maxItems": one[1] + one[2]}
            ),
            st.lists(inner, min_size=1, max_size=3).map(lambda one: {"anyOf": one}),
        )

    return st.recursive(leaves, grow, max_leaves=8)


def satisfies(value: Any, schema: dict[str, Any]) -> bool:
    """A validator for the schemas above, written from the standard and not from the code under test."""
    if "anyOf" in schema:
        return any(satisfies(value, one) for one in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "string":
            return isinstance(value, str) and schema["minLength"] <= len(value) <= schema["maxLength"]
        case "array":
            counted = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
            return counted and all(satisfies(one, schema["items"]) for one in value)
        case "object":
            given = isinstance(value, dict) and set(schema["required"]) <= set(value)
            return given and all(satisfies(one, schema["properties"][key]) for key, one in value.items())
        case kind:
            number = isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
            low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
            above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
            return (
                number
                and low <= value <= high
                and above < value < below
                and value % schema.get("multipleOf", 1) in (0, value % 1)
            )


@settings(max_examples=150, deadline=None)
@given(
    schemas(),
    st.sampled_from([*PROMPTS, "Paris, Rome and 17 or -4.5 for a@b.example on 2026-01-02"]),
    st.integers(0, 5),
)
def test_what_is_filled_satisfies_its_schema(schema: dict[str, Any], prompt: str, index: int) -> None:
    value = fill(schema, clues_of(prompt), index)
    assert satisfies(value, schema), value


def test_a_schema_that_contains_itself_comes_to_an_end() -> None:
    node = {
        "type": "object",
        "properties": {"next": {"$ref": "#"}, "name": {"type": "string"}},
        "required": ["next", "name"],
    }
    assert "name" in fill(node, clues_of("Ann"))
    nullable = {"anyOf": [{"type": "null"}, {"$ref": "#"}]}
    chain = {
        "type": "object",
        "properties": {"next": nullable, "name": {"type": "string"}},
        "required": ["next", "name"],
    }
    links, link = 0, fill(chain, clues_of("Ann"))
    while link is not None:
        assert link.keys() == {"next", "name"}
        links, link = links + 1, link["next"]
    assert 1 < links < 10
    names = [f"child{i}" for i in range(12)]
    tree = {"type": "object", "properties": {name: {"$ref": "#"} for name in names}, "required": names}
    assert fill(tree, clues_of("Ann")).keys() == set(names)
    loop = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    fill(loop, clues_of("Ann"))
    fill({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}, clues_of("Ann"))


KEYWORDS = (
    "type properties required items prefixItems enum const anyOf allOf $ref minimum multipleOf maxLength minItems "
    "pattern format uniqueItems"
)
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(["object", "array", "#", "#/a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS.split()), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYWORDS.split()), JUNK, max_size=5))
def test_a_schema_that_makes_no_sense_still_gets_a_reply(schema: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": schema}}
    body = chat("add Paris and Rome", response_format=wanted(schema), tools=[tool])
    for choice in ("required", "none"):
        asyncio.run(send({**body, "tool_choice": choice}))
