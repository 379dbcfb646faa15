"""Replies of the simulated provider in the OpenAI dialect: thought out, cut to what was asked, whole or streamed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Literal

import msgspec

from tierwise.core.catalogue import Model
from tierwise.providers.simulated_bodies import BYTES_PER_TOKEN, ChatBody, NamedTool, rejected, tokens_in
from tierwise.providers.simulated_mind import Question, Thought, reasoning_of, think, topic_of
from tierwise.providers.simulated_schema import clues_of, fill, schema_in
from tierwise.providers.simulated_skill import Draw, luck
from tierwise.providers.simulated_tools import ToolCall, calls_for

_CREATED_S = 1_767_225_600  # 2026-01-01: `created` is derived, so that the same body gets the same bytes
_CACHE_LEAST_TOKENS = 1_024
_CACHE_STEP_TOKENS = 128
_MESSAGE_TOKENS = 3
_IMAGE_TOKENS = 765
_FINGERPRINT = "fp_simulated"
_encode = msgspec.json.Encoder().encode


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    reasoning: str
    calls: tuple[ToolCall, ...]
    finish: Literal["stop", "length", "tool_calls"]
    confidence: float
    draw: Draw

    @property
    def tokens(self) -> int:
        calls = sum(tokens_in(call.name) + tokens_in(call.arguments) for call in self.calls)
        return self.reasoning_tokens + tokens_in(self.text) + calls

    @property
    def reasoning_tokens(self) -> int:
        return tokens_in(self.reasoning)


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole reply before it is put into bytes."""

    id: str
    created_s: int
    served: str
    choices: tuple[Choice, ...]
    prompt_tokens: int
    cached_tokens: int
    usage_known: bool
    logprobs: int | None  # how many alternatives to list per token; None: no log-probabilities

    @property
    def tokens(self) -> int:
        return sum(choice.tokens for choice in self.choices)

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": sum(choice.reasoning_tokens for choice in self.choices),
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


def complete(
    chat: ChatBody, body: bytes, model: Model, seed: int, *, served: str, usage: bool, limited: bool
) -> Completion:
    """Think, and cut to what was asked. Raises UpstreamError, kind rejected, for what this model cannot take.

    `served`: the name to put in the reply; `usage`: whether it is told; `limited`: whether max_tokens is obeyed.
    """
    question, prompt_tokens, cached_tokens = _question(chat, model)
    if prompt_tokens > model.context_tokens:
        message = (
            f"This model's maximum context length is {model.context_tokens} tokens; the messages have {prompt_tokens}."
        )
        raise rejected(message, "messages", "context_length_exceeded")
    ceiling = min(chat.max_completion_tokens or chat.max_tokens or model.max_output_tokens, model.max_output_tokens)
    key = seed.to_bytes(8, "big", signed=True)
    # Not the whole body: the same conversation gets the same text with and without stream, logprobs or max_tokens.
    heard = blake2b(
        f"{question.system}\0{question.text}\0{question.results}".encode(), key=key, digest_size=16
    ).digest()
    stop = (chat.stop,) if isinstance(chat.stop, str) else tuple(chat.stop or ())
    choices = []
    for number in range(chat.n or 1):
        own = Draw(blake2b(f"{model.name}\0{chat.seed}\0{number}".encode(), key=heard, digest_size=16).digest())
        choices.append(_choice(chat, model, question, Draw(heard), own, ceiling if limited else 1 << 30, stop))
    digest = blake2b(body, key=key, digest_size=12).digest()
    return Completion(
        id=f"chatcmpl-{digest.hex()}",
        created_s=_CREATED_S + int.from_bytes(digest[:3], "big"),
        served=served,
        choices=tuple(choices),
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        usage_known=usage,
        logprobs=(chat.top_logprobs or 0) if chat.logprobs and "logprobs" in model.abilities else None,
    )


def _question(chat: ChatBody, model: Model) -> tuple[Question, int, int]:
    """What the mind reads of a conversation, its tokens, and those that a provider would have in its cache.

    Cached is what an earlier turn must have sent already, all before the last reply, by the usual rule of 1,024 tokens
    and steps of 128. So the same body is always billed the same, with no memory of what came before.
    """
    tokens = sum(tokens_in(tool.function.name + tool.function.description) + 8 for tool in chat.tools or ())
    systems, text, seen, images = [], "", 0, 0
    results: list[tuple[str, str]] = []
    names: dict[str, str] = {}
    for message in chat.messages:
        said = message.text()
        pictures = message.images()
        images += pictures
        match message.role:
            case "system" | "developer":
                systems.append(said)
            case "user":
                text, results = said, []
            case "assistant":
                seen = tokens
                names |= {call.id: call.function.name for call in message.tool_calls or ()}
            case _:
                results.append((names.get(message.tool_call_id or "", ""), said))
        tokens += _MESSAGE_TOKENS + tokens_in(said) + _IMAGE_TOKENS * pictures
        tokens += sum(tokens_in(call.function.arguments) for call in message.tool_calls or ())
    if images and "images" not in model.abilities:
        raise rejected(f"The model '{model.name}' does not take images.", "messages")
    cached = seen // _CACHE_STEP_TOKENS * _CACHE_STEP_TOKENS if seen >= _CACHE_LEAST_TOKENS else 0
    question = Question(system="\n".join(systems), text=text, results=tuple(results), images=images)
    return question, tokens, cached


def _choice(
    chat: ChatBody, model: Model, question: Question, shared: Draw, own: Draw, ceiling: int, stop: tuple[str, ...]
) -> Choice:
    thought = think(model, question, shared, own)
    reasoning = reasoning_of(thought, chat.reasoning_effort or "") if "reasoning" in model.abilities else ""
    calls: tuple[ToolCall, ...] = ()
    if chat.tools:
        fate = luck(model, "tool_use", 0.3, shared, own)
        tools = tuple(tool.function for tool in chat.tools)
        choice = f"={chat.tool_choice.function.name}" if isinstance(chat.tool_choice, NamedTool) else chat.tool_choice
        parallel = chat.parallel_tool_calls is not False
        calls = calls_for(tools, choice or "auto", parallel, question, thought, fate.right)
    text = "" if calls else _formatted(chat, question, thought, own)
    finish: Literal["stop", "length", "tool_calls"] = "tool_calls" if calls else "stop"
    ends = [place for mark in stop if mark and (place := text.find(mark)) >= 0]
    if ends:
        text = text[: min(ends)]
    if tokens_in(reasoning) >= ceiling:
        reasoning, text, calls, finish = _clip(reasoning, ceiling), "", (), "length"
    left = ceiling - tokens_in(reasoning)
    if tokens_in(text) > left:
        text, finish = _clip(text, left), "length"
    if calls:
        calls, cut = _clip_calls(calls, left)
        finish = "length" if cut else finish
    confidence = thought.luck.confidence
    return Choice(text=text, reasoning=reasoning, calls=calls, finish=finish, confidence=confidence, draw=own)


def _formatted(chat: ChatBody, question: Question, thought: Thought, own: Draw) -> str:
    """The answer as text or JSON. A model that is wrong about a schema leaves something out, or wraps it in chatter;
    held to it by `strict`, it cannot, and is wrong about what it fills in."""
    wanted = chat.response_format
    if thought.text.startswith("{"):
        return thought.text
    text = "\n".join((question.text, *(result for _, result in question.results)))
    named = wanted.json_schema if wanted is not None else None
    schema, fenced, strict = (named.schema, False, named.strict) if named is not None else ({}, False, False)
    if not schema and (asked := schema_in(question.system, text)) is not None:
        schema, text, fenced = asked.schema, asked.rest, asked.fenced and wanted is None
    if not schema:
        plain = wanted is None or wanted.type == "text"
        return thought.text if plain else _encode({"answer": thought.value or thought.text}).decode()
    right = thought.luck.right
    made = fill(schema, clues_of(topic_of(text) if strict and not right else text, thought.text, thought.value))
    whole = _encode(made).decode()
    if right or strict:
        return f"```json\n{whole}\n```" if fenced else whole
    json_mode = wanted is not None and wanted.type == "json_object"  # which promises JSON, if no schema
    if isinstance(made, dict) and made and (json_mode or own.of("spoil") < 0.5):
        return _encode(dict(list(made.items())[:-1])).decode()
    return f"Here is the JSON:\n{whole[:-1]}"


def _clip(text: str, tokens: int) -> str:
    """At most this many tokens of a text, never half a character."""
    return text.encode()[: tokens * BYTES_PER_TOKEN].decode(errors="ignore")


def _clip_calls(calls: tuple[ToolCall, ...], left: int) -> tuple[tuple[ToolCall, ...], bool]:
    kept: list[ToolCall] = []
    for call in calls:
        left -= tokens_in(call.name)
        if left < 0:
            return tuple(kept), True
        if tokens_in(call.arguments) > left:
            return (*kept, ToolCall(call.name, _clip(call.arguments, left))), True
        left -= tokens_in(call.arguments)
        kept.append(call)
    return tuple(kept), False


def whole(completion: Completion) -> bytes:
    """The reply to a call that does not stream."""
    reply: dict[str, Any] = {
        "id": completion.id,
        "object": "chat.completion",
        "created": completion.created_s,
        "model": completion.served,
        "system_fingerprint": _FINGERPRINT,
        "choices": [_whole_choice(completion, number, choice) for number, choice in enumerate(completion.choices)],
    }
    if completion.usage_known:
        reply["usage"] = completion.usage()
    return _encode(reply)


def _whole_choice(completion: Completion, number: int, choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text or (None if choice.calls else "")}
    message["refusal"] = None
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.calls:
        message["tool_calls"] = [
            {
                "id": _call_id(choice, i),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for i, call in enumerate(choice.calls)
        ]
    logprobs = None
    if completion.logprobs is not None:
        logprobs = {"content": token_logprobs(choice, completion.logprobs), "refusal": None}
    return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}


def events(completion: Completion, include_usage: bool) -> Iterator[tuple[bytes, int]]:
    """The stream, event by event, each with the tokens that it carries. Ends with [DONE]."""
    head = {
        "id": completion.id,
        "object": "chat.completion.chunk",
        "created": completion.created_s,
        "model": completion.served,
        "system_fingerprint": _FINGERPRINT,
    }
    tell = {"usage": None} if include_usage and completion.usage_known else {}

    def event(number: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return b"data: " + _encode({**head, "choices": [choice], **tell}) + b"\n\n"

    for number, choice in enumerate(completion.choices):
        yield event(number, {"role": "assistant", "content": None if choice.calls else "", "refusal": None}), 0
        for piece in pieces(choice.reasoning):
            yield event(number, {"reasoning_content": piece}), 1
        entries = token_logprobs(choice, completion.logprobs) if completion.logprobs is not None else None
        for i, piece in enumerate(pieces(choice.text)):
            shown = {"content": [entries[i]], "refusal": None} if entries is not None else None
            yield event(number, {"content": piece}, logprobs=shown), 1
        for i, call in enumerate(choice.calls):
            function = {"name": call.name, "arguments": ""}
            opening = {"index": i, "id": _call_id(choice, i), "type": "function", "function": function}
            yield event(number, {"tool_calls": [opening]}), tokens_in(call.name)
            for piece in pieces(call.arguments):
                yield event(number, {"tool_calls": [{"index": i, "function": {"arguments": piece}}]}), 1
        yield event(number, {}, choice.finish), 0
    if tell:
        yield b"data: " + _encode({**head, "choices": [], "usage": completion.usage()}) + b"\n\n", 0
    yield b"data: [DONE]\n\n", 0


def pieces(text: str) -> list[str]:
    """A text in pieces of one token each: four characters, fewer where they take more than a byte."""
    if text.isascii():
        return [text[i : i + BYTES_PER_TOKEN] for i in range(0, len(text), BYTES_PER_TOKEN)]
    found, size, start = [], 0, 0
    for place, character in enumerate(text):
        size += len(character.encode())
        if size > BYTES_PER_TOKEN and place > start:
            found.append(text[start:place])
            start, size = place, len(character.encode())
    return [*found, text[start:]]


def token_logprobs(choice: Choice, alternatives: int) -> list[dict[str, Any]]:
    """One entry per piece. Their mean is about the logarithm of the model's confidence; single ones vary around it."""
    mean = math.log(choice.confidence)
    noise = blake2b(b"logprobs", key=choice.draw.key).digest()

    def entry(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": round(logprob, 6), "bytes": list(token.encode())}

    found = []
    for i, piece in enumerate(pieces(choice.text)):
        logprob = mean * (0.5 + noise[i % len(noise)] / 255)
        rest = math.log(max(1e-9, 1 - math.exp(logprob)))
        others = [
            entry(f"{piece[:1]}{chr(97 + j)}", min(logprob, rest) - 0.7 * (j + 1)) for j in range(alternatives - 1)
        ]
        tops = [entry(piece, logprob), *others][:alternatives]
        found.append({**entry(piece, logprob), "top_logprobs": tops})
    return found


def _call_id(choice: Choice, number: int) -> str:
    return f"call_{blake2b(str(number).encode(), key=choice.draw.key, digest_size=12).hexdigest()}"
