"""Agents of LangChain and Pydantic AI run to completion against the gateway: they loop until the work is done, and a
gateway that loses a tool call, an id or a stop reason keeps them going for ever or ends them too soon.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import openai
import pytest
from langchain_core.messages import AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from tests.support.served import Served, simulated

ROUNDS = 6  # an agent that needs more is going in circles
QUESTION = "What is the weather in Paris and in Rome?"


class Report(BaseModel):
    """What the agent hands in at the end."""

    city: str
    degrees: float


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("agents"), simulated()) as found:
        yield found


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"In {city} it is sunny and 21 degrees."


@pytest.fixture
def chat(served: Served) -> Iterator[ChatOpenAI]:
    with openai.DefaultHttpxClient() as sync:
        yield ChatOpenAI(
            model="auto", base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=30, http_client=sync,
            stream_usage=True,
        )  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True])
def test_a_langchain_tool_loop_ends_with_an_answer(chat: ChatOpenAI, streaming: bool) -> None:
    """Ask, call what is asked for, send the results back, until the model asks for nothing more."""
    bound = chat.bind_tools([get_weather])
    turns: list[BaseMessage] = [HumanMessage(QUESTION)]
    called: list[str] = []
    for _ in range(ROUNDS):
        reply = _streamed(bound, turns) if streaming else bound.invoke(turns)
        turns.append(reply)
        if not reply.tool_calls:
            break
        for call in reply.tool_calls:
            called.append(call["args"]["city"])
            said = get_weather.invoke(call["args"])
            turns.append(ToolMessage(said, tool_call_id=call["id"]))
    assert called == ["Paris", "Rome"]
    assert "sunny" in str(turns[-1].content)
    usage = getattr(turns[-1], "usage_metadata", None)
    assert usage
    assert usage["output_tokens"] > 0


def _streamed(bound: Any, turns: list[BaseMessage]) -> AIMessageChunk:
    whole: AIMessageChunk | None = None
    for chunk in bound.stream(turns):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    return whole


def test_a_langchain_model_gives_structured_output(chat: ChatOpenAI) -> None:
    report = chat.with_structured_output(Report).invoke("It is 21 degrees in Paris. Which city, and how warm?")
    assert isinstance(report, Report)


def test_langchain_embeddings(served: Served) -> None:
    """Its own tokenizer is switched off: it would send tokens, for a model that only OpenAI has."""
    with openai.DefaultHttpxClient() as sync:
        made = OpenAIEmbeddings(
            model="auto",
            base_url=f"{served.url}/v1",
            api_key="none",
            check_embedding_ctx_length=False,
            http_client=sync,
        )
        cat, kitten = made.embed_documents(["a cat", "a kitten"])
    assert len(cat) == len(kitten) > 0


@pytest.fixture(params=["openai", "anthropic"])
async def model(request: pytest.FixtureRequest, served: Served) -> AsyncIterator[Any]:
    if request.param == "openai":
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            yield OpenAIChatModel("auto", provider=OpenAIProvider(openai_client=client))
    else:
        async with anthropic.AsyncAnthropic(base_url=served.url, api_key="none", max_retries=0) as other:
            yield AnthropicModel("auto", provider=AnthropicProvider(anthropic_client=other))


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_pydantic_ai_agent_calls_its_tools_and_answers(model: Any, streaming: bool) -> None:
    agent, called = Agent(model, system_prompt="Use your tools."), []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """The weather of a city."""
        called.append(city)
        return f"In {city} it is sunny."

    if streaming:
        async with agent.run_stream(QUESTION) as run:
            said = await run.get_output()
    else:
        said = (await agent.run(QUESTION)).output
    assert sorted(called) == ["Paris", "Rome"]
    assert "sunny" in said


async def test_a_pydantic_ai_agent_hands_in_structured_output(model: Any) -> None:
    agent, called = Agent(model, output_type=Report, retries=3), []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """The weather of a city."""
        called.append(city)
        return f"In {city} it is sunny and 21 degrees."

    run = await agent.run("What is the weather in Paris?")
    assert isinstance(run.output, Report)
    assert called
    assert run.usage.output_tokens > 0
