"""The OpenAI SDK for Python, both faces, against a real server: what works with OpenAI works here, whoever answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.support import replies
from tests.support.clients import (
    ASK_WEATHER,
    BOB,
    MODELS,
    OPENAI_WEATHER,
    PNG,
    USER,
    Bench,
    bench,
    close,
    done,
    items,
    options,
)
from tests.support.gateway import ENVIRON, KEYS
from tests.support.served import Served, simulated
from tests.support.upstream import (
    TEXT,
    ToolCall,
    anthropic_reply,
    anthropic_stream,
    error,
    hang_before_headers,
    hang_mid_stream,
    openai_reply,
    openai_stream,
    rate_limited,
    sse,
)

Tools = tuple[ToolCall, ...]
CALLS = (ToolCall("get_weather", '{"city":"Paris"}', "call_1"), ToolCall("get_weather", '{"city":"Rome"}', "call_2"))
FIRST = replies.openai_events("pet")[1]  # a piece of text
FACES = {"sync": openai.OpenAI, "async": openai.AsyncOpenAI}
BEHIND = pytest.mark.parametrize("behind", MODELS)


class Place(BaseModel):
    city: str
    country: str


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("openai")) as found:
        yield found


@pytest.fixture(autouse=True)
def rested(room: Bench) -> None:
    room.rested()


@pytest.fixture(params=FACES)
async def client(request: pytest.FixtureRequest, room: Bench) -> AsyncIterator[Any]:
    made = FACES[request.param](base_url=f"{room.url}/v1", **options())
    yield made
    await close(made)


def fake(room: Bench, behind: str, text: str = TEXT, calls: Tools = (), *, stream: bool = False) -> None:
    """Script one reply of the provider behind the model; the simulated one needs none."""
    kinds = {"openai": (openai_reply, openai_stream), "anthropic": (anthropic_reply, anthropic_stream)}
    if behind in kinds:
        room.upstream.script(kinds[behind][stream](text, tool_calls=calls))


@BEHIND
async def test_plain(client: Any, room: Bench, behind: str) -> None:
    """Text, stop, usage and cost come, whichever dialect the provider speaks."""
    reply = await done(client.chat.completions.create(model=MODELS[behind], messages=USER))
    assert reply.object == "chat.completion"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].message.content == TEXT or behind == "simulated"
    assert reply.model == MODELS[behind].partition("/")[2]
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 0
    assert reply.usage.cost_usd > 0
    if behind != "simulated":
        assert reply.usage.cost_usd == pytest.approx((12 * 1 + 7 * 4) / 1e6)
    assert reply.usage.tierwise["decision"]


@BEHIND
async def test_streaming_gives_the_same_text_and_its_cost_in_the_last_chunk(
    client: Any, room: Bench, behind: str
) -> None:
    asked = {"model": MODELS[behind], "messages": USER}
    plain = await done(client.chat.completions.create(**asked))
    chunks = await items(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage.cost_usd > 0
    assert not chunks[-1].choices


@BEHIND
async def test_usage_that_was_not_asked_for_is_not_sent(client: Any, room: Bench, behind: str) -> None:
    chunks = await items(client.chat.completions.create(model=MODELS[behind], messages=USER, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert room.served.last().outcome.cost_nano, "the ledger knows it all the same"


@BEHIND
async def test_the_stream_helper_accumulates_the_whole_completion(client: Any, room: Bench, behind: str) -> None:
    asked = client.chat.completions.stream(model=MODELS[behind], messages=USER, stream_options={"include_usage": True})
    if isinstance(client, openai.AsyncOpenAI):
        async with asked as stream:
            kinds = {event.type async for event in stream}
            final = await stream.get_final_completion()
    else:
        with asked as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content
    assert final.usage.cost_usd > 0


@BEHIND
@pytest.mark.parametrize("stream", [False, True])
async def test_tools_run_to_the_answer(client: Any, room: Bench, behind: str, stream: bool) -> None:
    """Two calls at once, their results under their own ids, and then the answer."""
    asked = {"model": MODELS[behind], "tools": [OPENAI_WEATHER]}
    fake(room, behind, calls=CALLS, stream=stream)
    message = await _message(client, stream, **asked, messages=ASK_WEATHER)
    cities = [json.loads(call["function"]["arguments"])["city"] for call in message["tool_calls"]]
    assert cities == ["Paris", "Rome"]
    ids = [call["id"] for call in message["tool_calls"]]
    assert len(set(ids)) == 2
    results = [
        {"role": "tool", "tool_call_id": id, "content": f"{city}: sunny"} for id, city in zip(ids, cities, strict=True)
    ]
    fake(room, behind, "Both are sunny.", stream=stream)
    final = await _message(client, stream, **asked, messages=[*ASK_WEATHER, message, *results])
    assert "sunny" in final["content"]
    assert not final.get("tool_calls")
    if behind == "anthropic":
        heard = room.upstream.requests[-1].json["messages"]
        assert [block["id"] for block in heard[-2]["content"] if block["type"] == "tool_use"] == ids
        assert [block["tool_use_id"] for block in heard[-1]["content"]] == ids


async def _message(client: Any, stream: bool, **asked: Any) -> dict[str, Any]:
    """The assistant's message as a person would put it back into the conversation."""
    if not stream:
        reply = await done(client.chat.completions.create(**asked))
        return reply.choices[0].message.model_dump(exclude_none=True)
    async_face = isinstance(client, openai.AsyncOpenAI)
    helper = client.chat.completions.stream(**asked)
    if async_face:
        async with helper as events:
            final = await events.get_final_completion()
    else:
        with helper as events:
            final = events.get_final_completion()
    message = final.choices[0].message.model_dump(exclude_none=True)
    for call in message.get("tool_calls", ()):
        call["function"].pop("parsed_arguments", None)
        call.pop("index", None)
    return message


@BEHIND
async def test_structured_output_is_parsed(client: Any, room: Bench, behind: str) -> None:
    fake(room, behind, '{"city":"Paris","country":"France"}')
    messages = [{"role": "user", "content": "Paris is in France. Which city is it, and where?"}]
    reply = await done(client.chat.completions.parse(model=MODELS[behind], messages=messages, response_format=Place))
    assert isinstance(reply.choices[0].message.parsed, Place)
    if behind != "simulated":
        assert reply.choices[0].message.parsed == Place(city="Paris", country="France")
        assert "country" in room.upstream.requests[-1].body.decode(), "the provider never heard of the schema"


@BEHIND
async def test_images_reach_the_model(client: Any, room: Bench, behind: str) -> None:
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
    ]
    messages = [{"role": "user", "content": content}]
    reply = await done(client.chat.completions.create(model=MODELS[behind], messages=messages))
    assert reply.choices[0].message.content
    if behind == "anthropic":
        source = room.upstream.requests[-1].json["messages"][0]["content"][1]["source"]
        assert source == {"type": "base64", "media_type": "image/png", "data": PNG}
    if behind == "openai":
        assert room.upstream.requests[-1].json["messages"] == messages


async def test_choices_and_log_probabilities(client: Any) -> None:
    reply = await done(
        client.chat.completions.create(
            model="auto", messages=USER, n=2, logprobs=True, top_logprobs=2, max_completion_tokens=50
        )
    )
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert all(choice.logprobs.content for choice in reply.choices)


async def test_fields_that_only_the_provider_knows_reach_it(client: Any, room: Bench) -> None:
    await done(
        client.chat.completions.create(
            model="oai/pet", messages=USER, extra_body={"top_k": 7, "tierwise": {"labels": {"app": "x"}}}
        )
    )
    assert room.upstream.requests[-1].json["top_k"] == 7
    assert "tierwise" not in room.upstream.requests[-1].json


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embeddings(client: Any, encoding: Any) -> None:
    texts = ["a cat", "a dog", "tax law"]
    reply = await done(client.embeddings.create(model="auto", input=texts, encoding_format=encoding, dimensions=64))
    assert [len(each.embedding) for each in reply.data] == [64] * 3 or encoding == "base64"
    assert [each.index for each in reply.data] == [0, 1, 2]
    assert reply.usage.prompt_tokens > 0


async def test_models_are_listed_and_found(client: Any) -> None:
    names = [model.id for model in await items(client.models.list())]
    assert {"auto", "auto:economy", "fast", *MODELS.values()} <= set(names)
    assert (await done(client.models.retrieve("simulated/small"))).owned_by == "simulated"
    with pytest.raises(openai.NotFoundError):
        await done(client.models.retrieve("simulated/smal"))


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
@pytest.mark.parametrize("face", FACES)
async def test_a_base_url_may_lack_its_v1(room: Bench, end: str, face: str) -> None:
    client = FACES[face](base_url=room.url + end, **options())
    reply = await done(client.chat.completions.create(model="auto", messages=USER))
    assert reply.choices
    await close(client)


async def test_the_headers_say_what_was_decided(client: Any) -> None:
    raw = await done(
        client.chat.completions.with_raw_response.create(
            model="auto", messages=USER, extra_headers={"x-tierwise-criticality": "internal"}
        )
    )
    reply = await done(raw.parse())
    heard = raw.headers
    assert heard["x-tierwise-decision"] == reply.usage.tierwise["decision"] == reply._request_id
    assert heard["x-tierwise-model"] == f"simulated/{reply.model}"
    assert heard["x-tierwise-policy"] == "default"
    assert heard["x-tierwise-reason"].startswith("chosen")
    assert float(heard["x-tierwise-cost-usd"]) == reply.usage.cost_usd
    assert float(heard["x-tierwise-baseline-usd"]) > 0
    assert heard["x-tierwise-attempts"] == "1"
    assert heard["x-tierwise-simulated"] == "true"


# ------------------------------------------------------------------------------------------------ what goes wrong


async def test_an_unknown_key(room: Bench, client: Any) -> None:
    stranger = client.with_options(api_key="tw-nobody")
    with pytest.raises(openai.AuthenticationError) as caught:
        await done(stranger.chat.completions.create(model="auto", messages=USER))
    assert caught.value.code == "invalid_api_key"
    assert "tw-nobody" not in str(caught.value)


async def test_an_unknown_model_is_not_found_and_the_nearest_is_named(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await done(client.chat.completions.create(model="simulated/smal", messages=USER))
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "simulated/small" in caught.value.message


@pytest.mark.parametrize(
    ("spoil", "param"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"extra_headers": {"x-tierwise-polcy": "x"}}, "x-tierwise-polcy"),
        ({"extra_body": {"tierwise": {"user": "bob"}}}, "tierwise.user"),
    ],
)
async def test_a_malformed_request_names_its_field(client: Any, spoil: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await done(client.chat.completions.create(**{"model": "auto", "messages": USER, **spoil}))
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


async def test_a_spent_budget_is_a_402_with_its_figures(client: Any) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await done(
            client.with_options(api_key=BOB).chat.completions.create(model="frontier", messages=USER, max_tokens=50)
        )
    assert caught.value.status_code == 402
    assert caught.value.code == "budget_exceeded"
    assert caught.value.request_id == caught.value.response.headers["x-tierwise-decision"]
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["metadata"]["limit_usd"] == 0.000001


async def test_a_spent_budget_is_told_with_its_figures_without_a_ceiling_too(client: Any) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await done(client.with_options(api_key=BOB).chat.completions.create(model="frontier", messages=USER))
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["metadata"]["scope"] == "user"


@pytest.mark.parametrize("face", FACES)
async def test_the_sdk_does_not_retry_a_spent_budget(room: Bench, tmp_path: Any, face: str) -> None:
    """Not even where `budget_status` makes it a 429, which an SDK would retry if we did not say otherwise."""
    budget = {"scope": "user", "match": {"user": "bob"}, "limit_usd": 0.000001, "window": "day"}
    config = simulated(keys=KEYS, budgets=[budget], server={"budget_status": 429})
    with Served(tmp_path, config) as served:
        client = FACES[face](base_url=f"{served.url}/v1", **{**options(BOB), "max_retries": 3})
        with pytest.raises(openai.RateLimitError) as caught:
            await done(client.chat.completions.create(model="frontier", messages=USER))
        await close(client)
        assert caught.value.code == "budget_exceeded"
        assert sum(each.requests for each in served.gateway.router.tally.sums.values()) == 1


async def test_money_held_by_others_is_a_rate_limit(client: Any, room: Bench) -> None:
    """Carl's budget fits one call at a time: while one runs the other is told to come again, and then it may."""
    carl = client.with_options(api_key=ENVIRON["TWO_KEY"])
    asked = {"model": "oai/pet", "messages": USER, "max_tokens": 1_000}
    room.upstream.script(hang_mid_stream([FIRST]))
    stream = await done(carl.chat.completions.create(**asked, stream=True))
    with pytest.raises(openai.RateLimitError) as caught:
        await done(carl.chat.completions.create(**asked))
    assert caught.value.code == "held_by_others"
    assert int(caught.value.response.headers["retry-after"]) > 0
    await done(stream.close())
    room.upstream.requests[0].gone.wait_sync()
    room.served.last()  # once both have settled; which is the newest depends on the second that each began in
    ended = room.served.run(room.served.gateway.records())[-2:]
    assert sorted([record.outcome.status for record in ended]) == ["abandoned", "refused"]


async def test_a_provider_that_fails_is_an_error_of_the_server_with_its_attempts(client: Any, room: Bench) -> None:
    room.upstream.script(error(500), error(500), error(500))
    with pytest.raises(openai.InternalServerError) as caught:
        await done(client.chat.completions.create(model="oai/pet", messages=USER))
    assert caught.value.code == "upstream_failed"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["metadata"]["attempts"]


async def test_a_provider_that_limits_says_when_to_come_again(client: Any, room: Bench) -> None:
    room.upstream.script(*[rate_limited("7")] * 3)
    with pytest.raises(openai.APIStatusError) as caught:
        await done(client.chat.completions.create(model="oai/pet", messages=USER))
    assert caught.value.status_code in (429, 503)
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 60


@pytest.mark.parametrize("behind", ["openai", "anthropic"])
async def test_what_the_provider_calls_wrong_is_a_bad_request(client: Any, room: Bench, behind: str) -> None:
    room.upstream.script(error(400, "the pet does not do that", type="invalid_request_error"))
    with pytest.raises(openai.BadRequestError) as caught:
        await done(client.chat.completions.create(model=MODELS[behind], messages=USER))
    assert "the pet does not do that" in caught.value.message


async def test_a_stream_that_breaks_is_an_error_and_no_silent_end(client: Any, room: Bench) -> None:
    async def cut(x: Any) -> None:
        x.reset()

    room.upstream.script(sse([FIRST], then=cut))
    with pytest.raises(openai.APIError) as caught:
        await items(client.chat.completions.create(model="oai/pet", messages=USER, stream=True))
    assert "broke off" in caught.value.message


async def test_a_client_that_gives_up_lets_the_provider_go(client: Any, room: Bench) -> None:
    room.upstream.script(hang_before_headers)
    with pytest.raises(openai.APITimeoutError):
        await done(client.with_options(timeout=0.3).chat.completions.create(model="oai/pet", messages=USER))
    room.upstream.requests[0].gone.wait_sync()
    assert room.served.last().outcome.status == "abandoned"


async def test_leaving_a_stream_lets_the_provider_go(client: Any, room: Bench) -> None:
    room.upstream.script(hang_mid_stream([FIRST]))
    stream = await done(client.chat.completions.create(model="oai/pet", messages=USER, stream=True))
    if isinstance(client, openai.AsyncOpenAI):
        assert (await anext(aiter(stream))).choices[0].delta.content
    else:
        assert next(iter(stream)).choices[0].delta.content
    await done(stream.close())
    room.upstream.requests[0].gone.wait_sync()
    last = room.served.last()
    assert last.outcome.status == "abandoned"
    assert last.outcome.cost_nano
