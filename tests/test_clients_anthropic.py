"""The Anthropic SDK for Python, both faces, against a real server: what works with Anthropic works here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import pytest
from anthropic import beta_async_tool, beta_tool
from pydantic import BaseModel

from tests.support import replies
from tests.support.clients import (
    ANTHROPIC_WEATHER,
    ASK_WEATHER,
    BOB,
    MODELS,
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
    sse,
)

Tools = tuple[ToolCall, ...]
CALLS = (ToolCall("get_weather", '{"city":"Paris"}', "call_1"), ToolCall("get_weather", '{"city":"Rome"}', "call_2"))
BEGINNING = replies.anthropic_events("pet")[:3]  # up to the first piece of text
FACES = {"sync": anthropic.Anthropic, "async": anthropic.AsyncAnthropic}
BEHIND = pytest.mark.parametrize("behind", MODELS)


class Place(BaseModel):
    city: str
    country: str


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("anthropic")) as found:
        yield found


@pytest.fixture(autouse=True)
def rested(room: Bench) -> None:
    room.rested()


@pytest.fixture(params=FACES)
async def client(request: pytest.FixtureRequest, room: Bench) -> AsyncIterator[Any]:
    made = FACES[request.param](base_url=room.url, **options())
    yield made
    await close(made)


def ask(**fields: Any) -> dict[str, Any]:
    return {"max_tokens": 300, "messages": USER, **fields}


def fake(room: Bench, behind: str, text: str = TEXT, calls: Tools = (), *, stream: bool = False) -> None:
    """Script one reply of the provider behind the model; the simulated one needs none."""
    kinds = {"openai": (openai_reply, openai_stream), "anthropic": (anthropic_reply, anthropic_stream)}
    if behind in kinds:
        room.upstream.script(kinds[behind][stream](text, tool_calls=calls))


async def final(client: Any, **asked: Any) -> tuple[list[Any], Any]:
    """The events of the stream helper, and the message that it has put together."""
    if isinstance(client, anthropic.AsyncAnthropic):
        async with client.messages.stream(**asked) as stream:
            return [event async for event in stream], await stream.get_final_message()
    with client.messages.stream(**asked) as stream:
        return list(stream), stream.get_final_message()


@BEHIND
async def test_plain(client: Any, behind: str) -> None:
    """Text, stop, usage and cost come, whichever dialect the provider speaks."""
    message = await done(client.messages.create(**ask(model=MODELS[behind], system="Be brief.")))
    assert (message.type, message.role, message.stop_reason) == ("message", "assistant", "end_turn")
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].text == TEXT or behind == "simulated"
    assert message.model == MODELS[behind].partition("/")[2]
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0
    assert message.usage.cost_usd > 0
    if behind != "simulated":
        assert message.usage.cost_usd == pytest.approx((12 * 1 + 7 * 4) / 1e6)
    assert message.usage.tierwise["decision"]


@BEHIND
async def test_streaming_gives_the_same_text_and_its_cost_at_the_end(client: Any, behind: str) -> None:
    asked = ask(model=MODELS[behind])
    plain = await done(client.messages.create(**asked))
    events = await items(client.messages.create(**asked, stream=True))
    assert (events[0].type, events[-1].type) == ("message_start", "message_stop")
    text = "".join(event.delta.text for event in events if event.type == "content_block_delta")
    assert text == plain.content[0].text
    ending = next(event for event in events if event.type == "message_delta")
    assert ending.delta.stop_reason == "end_turn"
    assert ending.usage.output_tokens == plain.usage.output_tokens
    assert ending.usage.cost_usd > 0


@BEHIND
async def test_the_stream_helper_accumulates_the_whole_message(client: Any, behind: str) -> None:
    asked = ask(model=MODELS[behind])
    plain = await done(client.messages.create(**asked))
    events, message = await final(client, **asked)
    assert "text" in {event.type for event in events}
    assert message.content[0].text == plain.content[0].text
    assert message.usage.output_tokens == plain.usage.output_tokens
    assert message.usage.input_tokens == plain.usage.input_tokens
    assert message.stop_reason == "end_turn"


@BEHIND
@pytest.mark.parametrize("stream", [False, True])
async def test_tools_run_to_the_answer(client: Any, room: Bench, behind: str, stream: bool) -> None:
    """Two calls at once, their results under their own ids, and then the answer."""
    asked = ask(model=MODELS[behind], tools=[ANTHROPIC_WEATHER])
    fake(room, behind, calls=CALLS, stream=stream)
    message = await _message(client, stream, {**asked, "messages": ASK_WEATHER})
    assert message.stop_reason == "tool_use"
    uses = [block for block in message.content if block.type == "tool_use"]
    assert [use.input for use in uses] == [{"city": "Paris"}, {"city": "Rome"}]
    assert len({use.id for use in uses}) == 2
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": f"{use.input['city']}: sunny"} for use in uses]
    turns = [
        *ASK_WEATHER,
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in uses]},
        {"role": "user", "content": results},
    ]
    fake(room, behind, "Both are sunny.", stream=stream)
    last = await _message(client, stream, {**asked, "messages": turns})
    assert last.stop_reason == "end_turn"
    assert "sunny" in last.content[0].text
    if behind == "openai":
        heard = room.upstream.requests[-1].json["messages"]
        assert [call["id"] for call in heard[-3]["tool_calls"]] == [use.id for use in uses]
        assert [turn["tool_call_id"] for turn in heard[-2:]] == [use.id for use in uses]


async def _message(client: Any, stream: bool, asked: dict[str, Any]) -> Any:
    if stream:
        return (await final(client, **asked))[1]
    return await done(client.messages.create(**asked))


async def test_the_tool_runner_of_the_sdk_runs_to_the_end(client: Any) -> None:
    """The SDK's own loop: it calls our functions, sends the results back, and stops when the model has answered."""
    asked_for: list[str] = []
    if isinstance(client, anthropic.AsyncAnthropic):

        @beta_async_tool
        async def get_weather(city: str) -> str:
            """The weather of a city.

            Args:
                city: which one
            """
            asked_for.append(city)
            return f"It is sunny in {city}."
    else:

        @beta_tool
        def get_weather(city: str) -> str:
            """The weather of a city.

            Args:
                city: which one
            """
            asked_for.append(city)
            return f"It is sunny in {city}."

    runner = client.beta.messages.tool_runner(
        model="simulated/large", max_tokens=300, tools=[get_weather], messages=ASK_WEATHER
    )
    message = await done(runner.until_done())
    assert asked_for == ["Paris", "Rome"]
    # The name of the tool stands in an earlier turn: the last request has held the whole conversation.
    assert "get_weather says It is sunny in Paris." in message.content[0].text


@BEHIND
async def test_structured_output_is_parsed(client: Any, room: Bench, behind: str) -> None:
    fake(room, behind, '{"city":"Paris","country":"France"}')
    messages = [{"role": "user", "content": "Paris is in France. Which city is it, and where?"}]
    asked = ask(model=MODELS[behind], messages=messages, output_format=Place)
    message = await done(client.messages.parse(**asked))
    assert isinstance(message.parsed_output, Place)
    if behind != "simulated":
        assert message.parsed_output == Place(city="Paris", country="France")
        assert "country" in room.upstream.requests[-1].body.decode(), "the provider never heard of the schema"


@BEHIND
async def test_images_reach_the_model(client: Any, room: Bench, behind: str) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PNG}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
    messages = [{"role": "user", "content": content}]
    message = await done(client.messages.create(**ask(model=MODELS[behind], messages=messages)))
    assert message.content[0].text
    if behind == "openai":
        url = room.upstream.requests[-1].json["messages"][0]["content"][0]["image_url"]["url"]
        assert url == f"data:image/png;base64,{PNG}"
    if behind == "anthropic":
        assert room.upstream.requests[-1].json["messages"] == messages


async def test_beta_doors_and_their_query_lead_to_the_same_place(client: Any, room: Bench) -> None:
    message = await done(client.beta.messages.create(**ask(model="ant/pet", betas=["some-beta-2026-01-01"])))
    assert message.content[0].text == TEXT
    assert room.upstream.requests[-1].headers.get("anthropic-beta") == "some-beta-2026-01-01"


async def test_fields_that_only_the_provider_knows_reach_it(client: Any, room: Bench) -> None:
    extra = {"new_knob": 7, "top_k": 5, "tierwise": {"criticality": "internal"}}
    await done(client.messages.create(**ask(model="ant/pet", extra_body=extra)))
    heard = room.upstream.requests[-1].json
    assert (heard["new_knob"], heard["top_k"]) == (7, 5)
    assert "tierwise" not in heard


async def test_tokens_are_counted(client: Any) -> None:
    short = await done(client.messages.count_tokens(model="auto", messages=USER))
    long = await done(client.messages.count_tokens(model="auto", messages=USER, system="Be brief. " * 50))
    assert 0 < short.input_tokens < long.input_tokens
    assert long.input_tokens < 400


async def test_models_are_listed_and_found(client: Any) -> None:
    listed = await items(client.models.list())
    names = [model.id for model in listed]
    assert {"auto", "claude-auto", "auto:economy", "fast", *MODELS.values()} <= set(names)
    assert all(model.type == "model" and model.display_name and model.created_at for model in listed)
    with pytest.raises(anthropic.NotFoundError):
        await done(client.models.retrieve("simulated/smal"))


async def test_one_model_is_found_in_the_shape_of_its_caller(client: Any) -> None:
    found = await done(client.models.retrieve("simulated/small"))
    assert (found.id, found.type) == ("simulated/small", "model")
    assert found.created_at


async def test_claude_auto_is_auto(client: Any) -> None:
    message = await done(client.messages.create(**ask(model="claude-auto")))
    assert message.content[0].text


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
@pytest.mark.parametrize("face", FACES)
async def test_a_base_url_may_have_a_v1(room: Bench, end: str, face: str) -> None:
    client = FACES[face](base_url=room.url + end, **options())
    assert (await done(client.messages.create(**ask(model="auto")))).content
    await close(client)


async def test_a_bearer_token_will_do(room: Bench) -> None:
    """`auth_token` is what coding agents send."""
    given = {**options(), "api_key": None, "auth_token": options()["api_key"]}
    with anthropic.Anthropic(base_url=room.url, **given) as client:
        assert client.messages.create(**ask(model="auto")).content


async def test_the_headers_say_what_was_decided(client: Any) -> None:
    raw = await done(client.messages.with_raw_response.create(**ask(model="auto")))
    message = await done(raw.parse())
    assert raw.headers["x-tierwise-decision"] == message.usage.tierwise["decision"] == message._request_id
    assert raw.headers["x-tierwise-model"] == f"simulated/{message.model}"
    assert float(raw.headers["x-tierwise-cost-usd"]) == message.usage.cost_usd


# ------------------------------------------------------------------------------------------------ what goes wrong


async def test_an_unknown_key(client: Any) -> None:
    with pytest.raises(anthropic.AuthenticationError) as caught:
        await done(client.with_options(api_key="tw-nobody").messages.create(**ask(model="auto")))
    assert _told(caught.value)["type"] == "authentication_error"
    assert "tw-nobody" not in str(caught.value)


async def test_an_unknown_model_is_not_found_and_the_nearest_is_named(client: Any) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        await done(client.messages.create(**ask(model="simulated/smal")))
    assert _told(caught.value)["type"] == "not_found_error"
    assert "simulated/small" in _told(caught.value)["message"]


@pytest.mark.parametrize(
    ("spoil", "param"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tools": [{"name": 7}]}, "tools"),
        ({"extra_headers": {"x-tierwise-polcy": "x"}}, "x-tierwise-polcy"),
    ],
)
async def test_a_malformed_request_names_its_field(client: Any, spoil: dict[str, Any], param: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        await done(client.messages.create(**{**ask(model="auto"), **spoil}))
    assert _told(caught.value)["type"] == "invalid_request_error"
    assert _told(caught.value)["param"].startswith(param)


async def test_a_spent_budget_is_a_402_with_its_figures(client: Any) -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        await done(client.with_options(api_key=BOB).messages.create(**ask(model="frontier")))
    assert caught.value.status_code == 402
    assert caught.value.response.headers["x-should-retry"] == "false"
    told = _told(caught.value)
    assert told["code"] == "budget_exceeded"
    assert told["metadata"]["limit_usd"] == 0.000001


@pytest.mark.parametrize("face", FACES)
async def test_the_sdk_does_not_retry_a_spent_budget(tmp_path: Any, face: str) -> None:
    """Not even where `budget_status` makes it a 429, which an SDK would retry if we did not say otherwise."""
    budget = {"scope": "user", "match": {"user": "bob"}, "limit_usd": 0.000001, "window": "day"}
    config = simulated(keys=KEYS, budgets=[budget], server={"budget_status": 429})
    with Served(tmp_path, config) as served:
        client = FACES[face](base_url=served.url, **{**options(BOB), "max_retries": 3})
        with pytest.raises(anthropic.RateLimitError):
            await done(client.messages.create(**ask(model="frontier")))
        await close(client)
        assert sum(each.requests for each in served.gateway.router.tally.sums.values()) == 1


def _abandoned(room: Bench) -> int:
    room.served.run(room.served.gateway.router.errands.drain())
    records = room.served.run(room.served.gateway.records())
    return [record.outcome.status for record in records].count("abandoned")


async def test_money_held_by_others_is_a_rate_limit(client: Any, room: Bench) -> None:
    """Carl's budget fits one call at a time: while one runs the other is told to come again."""
    carl = client.with_options(api_key=ENVIRON["TWO_KEY"])
    asked = ask(model="ant/pet", max_tokens=1_000)
    before = _abandoned(room)
    room.upstream.script(hang_mid_stream(BEGINNING))
    stream = await done(carl.messages.create(**asked, stream=True))
    with pytest.raises(anthropic.RateLimitError) as caught:
        await done(carl.messages.create(**asked))
    assert _told(caught.value)["code"] == "held_by_others"
    assert int(caught.value.response.headers["retry-after"]) > 0
    await done(stream.close())
    room.upstream.requests[0].gone.wait_sync()
    # The journal orders by the second in which a request began, so of these two either may be the newest.
    assert _abandoned(room) == before + 1


@pytest.mark.parametrize("behind", ["openai", "anthropic"])
async def test_a_provider_that_fails_is_an_error_of_the_server(client: Any, room: Bench, behind: str) -> None:
    room.upstream.script(*[error(500)] * 3)
    with pytest.raises(anthropic.InternalServerError) as caught:
        await done(client.messages.create(**ask(model=MODELS[behind])))
    assert _told(caught.value)["code"] == "upstream_failed"
    assert _told(caught.value)["metadata"]["attempts"]


@pytest.mark.parametrize("behind", ["openai", "anthropic"])
async def test_what_the_provider_calls_wrong_is_a_bad_request(client: Any, room: Bench, behind: str) -> None:
    room.upstream.script(error(400, "the pet does not do that", type="invalid_request_error"))
    with pytest.raises(anthropic.BadRequestError) as caught:
        await done(client.messages.create(**ask(model=MODELS[behind])))
    assert "the pet does not do that" in _told(caught.value)["message"]


async def test_a_stream_that_breaks_is_an_error_and_no_silent_end(client: Any, room: Bench) -> None:
    async def cut(x: Any) -> None:
        x.reset()

    room.upstream.script(sse(BEGINNING, then=cut))
    with pytest.raises(anthropic.APIError) as caught:
        await items(client.messages.create(**ask(model="ant/pet", stream=True)))
    assert "broke off" in str(caught.value)


async def test_a_client_that_gives_up_lets_the_provider_go(client: Any, room: Bench) -> None:
    room.upstream.script(hang_before_headers)
    with pytest.raises(anthropic.APITimeoutError):
        await done(client.with_options(timeout=0.3).messages.create(**ask(model="ant/pet")))
    room.upstream.requests[0].gone.wait_sync()
    assert room.served.last().outcome.status == "abandoned"


async def test_leaving_a_stream_lets_the_provider_go(client: Any, room: Bench) -> None:
    room.upstream.script(hang_mid_stream(BEGINNING))
    stream = await done(client.messages.create(**ask(model="ant/pet", stream=True)))
    if isinstance(client, anthropic.AsyncAnthropic):
        assert (await anext(aiter(stream))).type == "message_start"
    else:
        assert next(iter(stream)).type == "message_start"
    await done(stream.close())
    room.upstream.requests[0].gone.wait_sync()
    last = room.served.last()
    assert last.outcome.status == "abandoned"
    assert last.outcome.cost_nano


def _told(error: anthropic.APIStatusError) -> dict[str, Any]:
    """The error object of Anthropic's frame."""
    assert isinstance(error.body, dict)
    assert error.body["type"] == "error"
    found: dict[str, Any] = error.body["error"]
    return found
