"""Bodies for the simulated provider, and its replies as the OpenAI SDK reads them."""

from __future__ import annotations

import json
from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tierwise.core.catalogue import Deadlines
from tierwise.core.ports import Outgoing
from tierwise.providers.simulated import Fault, SimulatedUpstream, simulated_catalogue

PROVIDER, MODELS = simulated_catalogue()
CHAT = ("large", "medium", "small")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city"],
        },
    },
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
FINAL = {
    "type": "function",
    "function": {
        "name": "final_result",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "degrees": {"type": "number"}},
            "required": ["city", "degrees"],
        },
    },
}


def upstream(*faults: Fault, seed: int = 0, speed: float = 0.0) -> SimulatedUpstream:
    return SimulatedUpstream(MODELS, seed=seed, speed=speed, faults=faults)


def outgoing(body: Any, path: str = "chat/completions", deadlines: Deadlines | None = None) -> Outgoing:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    stream = isinstance(body, dict) and body.get("stream") is True
    return Outgoing(provider=PROVIDER, path=path, body=data, stream=stream, deadlines=deadlines or Deadlines())


def chat(prompt: str, model: str = "large", **others: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **others}


async def send(body: Any, by: SimulatedUpstream | None = None, path: str = "chat/completions") -> bytes:
    reply = await (by or upstream()).send(outgoing(body, path))
    try:
        return await reply.read()
    finally:
        reply.close()


async def whole(body: Any, by: SimulatedUpstream | None = None) -> ChatCompletion:
    return ChatCompletion.model_validate_json(await send(body, by))


async def streamed(body: dict[str, Any], by: SimulatedUpstream | None = None) -> list[ChatCompletionChunk]:
    events = (await send({**body, "stream": True}, by)).decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [ChatCompletionChunk.model_validate_json(event.removeprefix("data: ")) for event in events[:-2]]


async def text(body: Any, by: SimulatedUpstream | None = None) -> str:
    return (await whole(body, by)).choices[0].message.content or ""


def arguments(reply: ChatCompletion) -> list[tuple[str, Any]]:
    calls = reply.choices[0].message.tool_calls or []
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls if call.type == "function"]


PROMPTS = (
    "Hello!",
    "What is 12 * 13?",
    "Classify the sentiment as positive, negative or neutral: I love it, it is great.",
    "Extract the email addresses: bob@example.com and ann@example.org",
    "Summarise this:\nThe river rose in the night. The village woke to water in the streets. Nobody was hurt.",
    "Translate to French: good morning",
    "Write a Python function that computes fibonacci numbers",
    "Write a haiku about rain",
    "Explain photosynthesis in detail — mit Umlauten äöü und 漢字 🙂",
    "What's the weather in Paris?",
    "",
)
