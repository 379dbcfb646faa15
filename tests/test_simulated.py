"""The simulated provider: OpenAI's shapes, and the same bytes for the same question."""

from __future__ import annotations

import asyncio
import json
import math
import re
from base64 import b64decode
from struct import unpack
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion

from tests.support.simulated import (
    ADD,
    CHAT,
    MODELS,
    PROMPTS,
    PROVIDER,
    WEATHER,
    chat,
    outgoing,
    send,
    streamed,
    text,
    upstream,
    whole,
)
from tierwise.core.money import Usage, cost_nano
from tierwise.core.ports import UpstreamError
from tierwise.providers.simulated import SimulatedUpstream
from tierwise.providers.simulated_bodies import tokens_in

# ------------------------------------------------------------------------------------------------ catalogue


def test_the_catalogue_has_three_chat_tiers_and_an_embedding_model() -> None:
    assert [(model.id, model.tier, model.local) for model in MODELS] == [
        ("simulated/large", "frontier", False),
        ("simulated/medium", "fast", False),
        ("simulated/small", "local", True),
        ("simulated/embedding", "embedding", True),
    ]
    assert PROVIDER.wire == "simulated"
    assert PROVIDER.auth == "none"


def test_a_dearer_model_is_better_at_everything_and_slower() -> None:
    usage = Usage(input_tokens=1_000_000, output_tokens=1_000_000)
    prices = [cost_nano(usage, model.price.rates(0, 0)) for model in MODELS[:3] if model.price]
    assert prices == [18_000_000_000, 1_500_000_000, 80_000_000]
    large, medium, small = (dict(model.skills) for model in MODELS[:3])
    assert all(large[task] > medium[task] > small[task] for task in large)
    assert [model.first_token_ms for model in MODELS[:3]] == sorted(
        (m.first_token_ms for m in MODELS[:3]), reverse=True
    )


def test_cached_input_is_never_dearer_than_fresh_input() -> None:
    for model in MODELS:
        assert model.price is not None
        assert model.price.source == "simulated"
        rates = model.price.rates(0, 0)
        assert rates.cached_input_tokens <= rates.input_tokens <= rates.cache_write_5m_tokens


# ------------------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize("model", CHAT)
@pytest.mark.parametrize("prompt", PROMPTS)
async def test_a_stream_says_what_the_whole_reply_says(prompt: str, model: str) -> None:
    body = chat(prompt, model, tools=[WEATHER, ADD], logprobs=True, top_logprobs=2, n=2)
    reply = await whole(body)
    chunks = await streamed({**body, "stream_options": {"include_usage": True}})
    assert chunks[-1].choices == []
    assert chunks[-1].usage == reply.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    for choice in reply.choices:
        mine = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert [one.finish_reason for one in mine if one.finish_reason] == [choice.finish_reason]
        assert "".join(one.delta.content or "" for one in mine) == (choice.message.content or "")
        logprobs = [entry for one in mine if one.logprobs for entry in one.logprobs.content or ()]
        assert choice.logprobs is not None
        assert logprobs == (choice.logprobs.content or [])
        told: dict[int, str] = {}
        for call in (call for one in mine for call in one.delta.tool_calls or ()):
            assert call.function is not None
            told[call.index] = told.get(call.index, "") + (call.function.arguments or "")
        assert list(told.values()) == [
            json.dumps(json.loads(t), separators=(",", ":"), ensure_ascii=False) for t in told.values()
        ]
        assert [json.loads(one) for one in told.values()] == [
            json.loads(call.function.arguments) for call in choice.message.tool_calls or () if call.type == "function"
        ]


async def test_usage_adds_up_and_reasoning_is_part_of_the_completion() -> None:
    reply = await whole(chat("Solve this step by step: what is 123 * 456?", reasoning_effort="high"))
    usage = reply.usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    thoughts = json.loads(reply.model_dump_json())["choices"][0]["message"]["reasoning_content"]
    said = reply.choices[0].message.content or ""
    assert usage.completion_tokens_details.reasoning_tokens == tokens_in(thoughts) > 0
    assert usage.completion_tokens == tokens_in(thoughts) + tokens_in(said)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


async def test_only_reasoning_models_reason_and_effort_none_turns_it_off() -> None:
    for body in (
        chat("What is 123 * 456?", "small", reasoning_effort="high"),
        chat("What is 9 * 9?", reasoning_effort="none"),
    ):
        assert b"reasoning_content" not in await send(body)


async def test_usage_is_streamed_only_when_asked_for() -> None:
    assert all(chunk.usage is None and chunk.choices for chunk in await streamed(chat("Hello!")))


async def test_an_earlier_turn_is_billed_as_cached_always_the_same() -> None:
    long = "word " * 2_000
    turns = [
        {"role": "user", "content": long},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And?"},
    ]
    by = upstream()
    first, again = [(await whole({"model": "large", "messages": turns}, by)).usage for _ in range(2)]
    fresh = (await whole(chat(long), by)).usage
    assert first is not None
    assert fresh is not None
    assert first == again
    assert first.prompt_tokens_details is not None
    assert fresh.prompt_tokens_details is not None
    assert first.prompt_tokens_details.cached_tokens == 2_432  # 2,500 tokens and 3 of frame, in steps of 128
    assert fresh.prompt_tokens_details.cached_tokens == 0


async def test_a_model_of_the_calling_provider_comes_before_one_of_the_same_name() -> None:
    mine = msgspec.structs.replace(MODELS[2], id="acme/large", provider="acme", name="large")
    acme = msgspec.structs.replace(PROVIDER, name="acme")
    by = SimulatedUpstream((*MODELS, mine), speed=0)
    said = []
    for provider in (PROVIDER, acme):
        reply = await by.send(msgspec.structs.replace(outgoing(chat("Hello!")), provider=provider))
        said.append(ChatCompletion.model_validate_json(await reply.read()).choices[0].message.content or "")
    assert "simulated/large" in said[0]
    assert "acme/large" in said[1]


# ------------------------------------------------------------------------------------------------ determinism


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.text(max_size=200) | st.sampled_from(PROMPTS),
    model=st.sampled_from(CHAT),
    seed=st.integers(-(2**63), 2**63 - 1),
    extra=st.fixed_dictionaries(
        {},
        optional={
            "stream": st.booleans(),
            "logprobs": st.booleans(),
            "n": st.integers(1, 3),
            "max_tokens": st.integers(1, 50),
            "stop": st.sampled_from(["e", ["a", "."]]),
            "tools": st.just([WEATHER, ADD]),
            "response_format": st.just({"type": "json_object"}),
        },
    ),
)
def test_the_same_seed_and_body_always_get_the_same_bytes(
    prompt: str, model: str, seed: int, extra: dict[str, Any]
) -> None:
    async def play() -> None:
        body = chat(prompt, model, **extra)
        by = upstream(seed=seed)
        first = await send(body, by)
        await send(chat("something else in between"), by)
        assert await send(body, by) == first == await send(body, upstream(seed=seed))
        for choice in [] if extra.get("stream") else ChatCompletion.model_validate_json(first).choices:
            assert tokens_in(choice.message.content or "") <= extra.get("max_tokens", 10_000)
        assert by.unfinished == 0

    asyncio.run(play())


async def test_another_seed_is_another_world() -> None:
    bodies = [chat(f"What is {a} * 57?", "small") for a in range(20, 60)]
    worlds = [[await text(body, upstream(seed=seed)) for body in bodies] for seed in (1, 2)]
    assert worlds[0] != worlds[1]


async def test_choices_and_callers_seeds_draw_anew() -> None:
    """So that asking twice, or for several choices, says something about how sure a model is."""
    prompts = [f"What is {a} * 83?" for a in range(40, 70)]
    several = [[c.message.content for c in (await whole(chat(p, "small", n=4))).choices] for p in prompts]
    assert any(len(set(said)) > 1 for said in several)
    seeds = [[await text(chat(p, "small", seed=seed)) for seed in range(4)] for p in prompts]
    assert any(len(set(said)) > 1 for said in seeds)


# ------------------------------------------------------------------------------------------------ limits


@given(st.integers(1, 400), st.sampled_from(CHAT))
@settings(max_examples=40, deadline=None)
def test_max_tokens_is_a_ceiling_over_answer_and_reasoning(ceiling: int, model: str) -> None:
    async def play() -> None:
        body = chat("Explain in detail why the sky is blue, step by step", model, reasoning_effort="medium")
        free = await whole(body)
        cut = await whole({**body, "max_completion_tokens": ceiling})
        assert free.usage is not None
        assert cut.usage is not None
        assert cut.usage.completion_tokens == min(ceiling, free.usage.completion_tokens)
        assert cut.choices[0].finish_reason == ("length" if ceiling < free.usage.completion_tokens else "stop")
        assert (free.choices[0].message.content or "").startswith(cut.choices[0].message.content or "")

    asyncio.run(play())


async def test_max_tokens_cuts_tool_arguments_too() -> None:
    reply = await whole(chat("What's the weather in Paris?", tools=[WEATHER], max_tokens=5, reasoning_effort="none"))
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens <= 5


async def test_a_stop_sequence_ends_the_text_before_it() -> None:
    full = await text(chat("Hello!"))
    reply = (await whole(chat("Hello!", stop=["zzz", "What can", "simulated model"]))).choices[0]
    assert reply.message.content == full[: full.index("simulated model")]
    assert reply.finish_reason == "stop"


async def test_top_logprobs_lists_as_many_and_the_chosen_first() -> None:
    choice = (await whole(chat("Hello!", logprobs=True, top_logprobs=5))).choices[0]
    assert choice.logprobs is not None
    assert "".join(entry.token for entry in choice.logprobs.content or ()) == choice.message.content
    for entry in choice.logprobs.content or ():
        tops = entry.top_logprobs
        assert len(tops) == 5
        assert (tops[0].token, tops[0].logprob) == (entry.token, entry.logprob)
        assert all(top.logprob <= 0 for top in tops)


# ------------------------------------------------------------------------------------------------ embeddings


async def embeddings(**fields: Any) -> CreateEmbeddingResponse:
    body = await send({"model": "embedding", **fields}, path="embeddings")
    return CreateEmbeddingResponse.model_validate_json(body)


async def test_embeddings_are_unit_vectors_and_like_texts_are_near() -> None:
    reply = await embeddings(input=["the cat sat on the mat", "a cat sat on a mat", "interest rates rose sharply"])
    vectors = [one.embedding for one in reply.data]
    assert [one.index for one in reply.data] == [0, 1, 2]
    assert all(math.isclose(sum(x * x for x in vector), 1, rel_tol=1e-5) for vector in vectors)

    def near(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert near(vectors[0], vectors[1]) > near(vectors[0], vectors[2]) + 0.2
    assert reply.usage.prompt_tokens == 6 + 5 + 7


async def test_base64_and_float_are_the_same_vector_and_dimensions_is_obeyed() -> None:
    plain = (await embeddings(input="hello", dimensions=8)).data[0].embedding
    raw = json.loads(
        await send(
            {"model": "embedding", "input": "hello", "dimensions": 8, "encoding_format": "base64"}, path="embeddings"
        )
    )
    assert list(unpack("<8f", b64decode(raw["data"][0]["embedding"]))) == plain


async def test_token_inputs_are_taken() -> None:
    assert len((await embeddings(input=[1, 2, 3])).data) == 1
    assert len((await embeddings(input=[[1, 2], [3]])).data) == 2


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "Invalid request body"),
        (b"{", "Invalid request body"),
        (b'{"model": "large", "messages": [{"role": "user", "content": "\xff"}]}', "Invalid request body"),
        (b"[" * 20_000, "Invalid request body"),
        ({"model": "large"}, "messages"),
        (chat("x", max_tokens="many"), "$.max_tokens"),
        (chat("x", max_tokens=0), "max_tokens"),
        (chat("x", n=0), "'n'"),
        (chat("x", n=10_000), "'n'"),
        (chat("x", temperature=9), "temperature"),
        (chat("x", logprobs=True, top_logprobs=99), "top_logprobs"),
        (chat("x", top_logprobs=2), "logprobs"),
        (chat("x", stream_options={"include_usage": True}), "stream_options"),
        (chat("x", tools=[]), "tools"),
        (chat("x", tool_choice="required"), "tool_choice"),
        (chat("x", tools=[ADD], tool_choice={"type": "function", "function": {"name": "sub"}}), "sub"),
        (chat("x", response_format={"type": "json_schema"}), "json_schema"),
        ({"model": "large", "messages": []}, "messages"),
        ({"model": "large", "messages": [{"role": "nobody", "content": "x"}]}, "role"),
        (chat([{"type": "image_url", "image_url": {"url": "data:,"}}], "small"), "images"),
        (chat("x" * 200_000, "small"), "context length"),
    ],
)
async def test_a_bad_body_is_a_400_that_names_the_field(body: Any, says: str) -> None:
    by = upstream()
    with pytest.raises(UpstreamError, match=re.escape(says)) as caught:
        await send(body, by)
    assert (caught.value.kind, caught.value.status, caught.value.dispatched) == ("rejected", 400, True)
    error = json.loads(caught.value.body)["error"]
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]
    assert by.unfinished == 0


@pytest.mark.parametrize(
    "fields", [{"input": []}, {"input": ""}, {"input": [1, "a"]}, {"input": "a", "dimensions": 0}, {}]
)
async def test_a_bad_embedding_body_is_a_400(fields: dict[str, Any]) -> None:
    with pytest.raises(UpstreamError) as caught:
        await send({"model": "embedding", **fields}, path="embeddings")
    assert (caught.value.kind, caught.value.status) == ("rejected", 400)


@pytest.mark.parametrize(
    ("model", "path"), [("huge", "chat/completions"), ("embedding", "chat/completions"), ("large", "messages")]
)
async def test_an_unknown_model_or_path_is_not_found(model: str, path: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        await send(chat("x", model), path=path)
    assert (caught.value.kind, caught.value.status) == ("not_found", 404)
