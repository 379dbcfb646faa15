"""Whole replies of both dialects: into the neutral form, and into what routing and accounting need of them.

A provider is not believed: whatever arrives, the result is a `Reply` or `Garbled`, and never any other exception.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from tierwise.core.blame import kind_said, said_of
from tierwise.core.episode import ReplyFacts
from tierwise.core.money import Service, Usage
from tierwise.core.request import Request
from tierwise.wire.chunks import openai_part
from tierwise.wire.contract import Garbled, Reply
from tierwise.wire.facts import confidence, facts
from tierwise.wire.losses import Losses
from tierwise.wire.neutral import Answer, Block, Choice, Other, Redacted, Stop, Text, Thinking, ToolUse, safe_id
from tierwise.wire.usage import from_anthropic, from_openai, served_at

Json = dict[str, Any]

OPENAI_STOPS: dict[str, Stop] = {
    "stop": "end",
    "eos": "end",
    "end_turn": "end",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "filtered",
    "safety": "filtered",
    "error": "error",
    "abort": "error",
}
ANTHROPIC_STOPS: dict[str, Stop] = {
    "end_turn": "end",
    "pause_turn": "end",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "stop_sequence": "stop_sequence",
    "tool_use": "tool_use",
    "refusal": "refusal",
}

# Of a message with more to say than text: every other one is not searched for it.
_RICH = frozenset(("reasoning_content", "reasoning", "tool_calls", "function_call"))
# What keeps a connection alive while a whole reply is being made: blank lines, and comments as in a stream.
_PREAMBLE = re.compile(rb"\A(?:[ \t\r\n]+|:[^\r\n]*[\r\n])+")
BROKEN_OFF = "the provider broke the reply off with an error"


def load_reply(body: bytes, halved: frozenset[str] = frozenset()) -> tuple[Json, bytes]:
    """A provider's object and its bytes, mended where they hold half a surrogate pair; in the object, text under the
    keys `halved` is left as it came. Raises Garbled."""
    try:
        if body[:1] != b"{" and (body[:1] == b":" or body[:1].isspace()):
            body = _PREAMBLE.sub(b"", body, count=1)
        tree = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        tree, body = _lenient(body, halved)
    if type(tree) is not dict:
        raise Garbled(f"the provider sent no JSON object but {_shown(body)}")
    return tree, body


def _lenient(body: bytes, halved: frozenset[str]) -> tuple[Any, bytes]:
    """What the strict decoder refuses for its numbers, halves of surrogate pairs or byte order mark. Raises Garbled."""
    try:
        given = json.loads(body.decode("utf-8", "replace").removeprefix("\ufeff"))
        tree = mended(given)
        return (mended(given, halved) if halved else tree), msgspec.json.encode(tree)
    except (ValueError, RecursionError, OverflowError, msgspec.MsgspecError):
        raise Garbled(f"the provider sent no JSON but {_shown(body)}") from None


def mended(value: Any, halved: frozenset[str] = frozenset()) -> Any:
    """Without halves of surrogate pairs and numbers that nobody can write, but for text under the keys `halved`."""
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case dict():
            return {
                mended(key): inner if key in halved and type(inner) is str else mended(inner, halved)
                for key, inner in value.items()
            }
        case list():
            return [mended(inner, halved) for inner in value]
        case int() if not -(2**63) <= value < 2**64:
            return float(value)
    return value


def _shown(body: bytes) -> str:
    return repr(body[:80].decode("utf-8", "replace")) if body.strip() else "an empty body"


def read_openai(body: bytes, request: Request | None, compared: bool = True) -> Reply:
    """A chat completion. Raises Garbled, with what usage could be read."""
    tree, body = load_reply(body)
    usage = from_openai(tree.get("usage"))
    if usage is None:
        usage = from_openai(_at(tree, "x_groq", "usage"))
    choices = tree.get("choices")
    said = _plain(choices) or _said(_openai_choices(tree, choices, usage))
    first = tree["choices"][0]
    reply = _reply(
        "openai_chat",
        body,
        said,
        request,
        compared,
        usage=usage,
        served=_string(tree.get("model")),
        sure=confidence(_logprobs(first)) if first.get("logprobs") else None,
        service=served_at(tree["service_tier"]) if "service_tier" in tree else None,
    )
    if request is None or request.wire != "anthropic":
        return reply
    losses = Losses()
    losses.completion(tree)
    return msgspec.structs.replace(reply, lost=losses.found)


def read_anthropic(body: bytes, request: Request | None, compared: bool = True) -> Reply:
    """A message. Raises Garbled, with what usage could be read."""
    tree, body = load_reply(body)
    usage = from_anthropic(tree.get("usage"))
    answer = anthropic_answer(tree, body, usage)
    reply = _reply("anthropic", body, _said(answer.choices), request, compared, usage=usage, served=answer.model)
    if request is None or request.wire != "openai_chat":
        return reply
    losses = Losses()
    losses.message(tree)
    return msgspec.structs.replace(reply, lost=losses.found)


def read_embeddings(body: bytes) -> Reply:
    """A list of embeddings. Raises Garbled."""
    tree, body = load_reply(body)
    usage = from_openai(tree.get("usage"))
    data = tree.get("data")
    if type(data) is not list or not data or not all(type(one) is dict and one.get("embedding") for one in data):
        raise _fault(tree, usage) or Garbled("the reply holds no embeddings", usage)
    return Reply(
        wire="openai_embeddings",
        body=body,
        usage=usage,
        served=_string(tree.get("model")),
        facts=ReplyFacts(stop="end", checks=(("complete", True), ("nonempty", True))),
        text="",
        output_text="",
    )


# How the first choice stopped, its text and its calls, and everything that was generated.
_Said = tuple[Stop, str, list[ToolUse], str]


def _said(choices: tuple[Choice, ...]) -> _Said:
    first = choices[0]
    shown = "".join([block.text for block in first.blocks if isinstance(block, Text)])
    calls = [block for block in first.blocks if isinstance(block, ToolUse)]
    return first.stop, shown, calls, "".join([_all_text(block) for choice in choices for block in choice.blocks])


def _reply(
    wire: str,
    body: bytes,
    said: _Said,
    request: Request | None,
    compared: bool,
    *,
    usage: Usage | None,
    served: str,
    sure: float | None = None,
    service: Service | None = None,
) -> Reply:
    stop, shown, calls, output = said
    return Reply(
        wire=wire,
        body=body,
        usage=usage,
        served=served,
        facts=facts(stop, shown, calls, request, sure, compared=compared),
        text=_spelled(shown, calls) if calls else shown,
        output_text=output,
        service=service,
    )


def _spelled(shown: str, calls: list[ToolUse]) -> str:
    spelled = [f"{call.name}({call.arguments})" for call in calls]
    return "\n".join([shown, *spelled] if shown else spelled)


def _all_text(block: Block) -> str:
    match block:
        case Text(text=text) | Thinking(text=text):
            return text
        case ToolUse(name=name, arguments=arguments):
            return name + arguments
    return ""


def _at(tree: Any, *path: str) -> Any:
    for key in path:
        tree = tree.get(key) if type(tree) is dict else None
    return tree


def _string(value: Any) -> str:
    return value if type(value) is str else ""


def _fault(tree: Json, usage: Usage | None) -> Garbled | None:
    """An error that came with status 200, its words bounded; None when there is none. One that tells of tokens is
    billed, so it is the reply of that call, whatever it says."""
    error = tree.get("error")
    if error is None:
        if tree.get("object") != "error":  # vLLM, Mistral: nothing around it
            return None
        error = tree
    said = said_of(error)
    kind = kind_said(said) if usage is None else "garbled"
    return Garbled(f"the provider reported an error: {(said.message or str(error))[:300]}", usage, kind)


# ------------------------------------------------------------------------------------------------ OpenAI


def openai_answer(tree: Json, usage: Usage | None) -> Answer:
    """Raises Garbled when there is no choice with a message."""
    created = tree.get("created")
    return Answer(
        id=_string(tree.get("id")),
        model=_string(tree.get("model")),
        choices=_openai_choices(tree, tree.get("choices"), usage),
        usage=usage,
        created=int(created) if isinstance(created, (int, float)) and 0 <= created < 2**40 else 0,
    )


def _plain(choices: Any) -> _Said | None:
    """What the only choice says of a reply that is text and nothing else, as nearly all are."""
    if type(choices) is not list or len(choices) != 1 or type(choice := choices[0]) is not dict:
        return None
    message, reason = choice.get("message"), choice.get("finish_reason")
    if type(message) is not dict or type(reason) is not str or not _RICH.isdisjoint(message):
        return None
    content, stop = message.get("content"), OPENAI_STOPS.get(reason.lower(), "unknown")
    if type(content) is not str or not content or message.get("refusal") or stop == "error":
        return None
    return stop, content, [], content


def _openai_choices(tree: Json, choices: Any, usage: Usage | None) -> tuple[Choice, ...]:
    """At least one. Raises Garbled."""
    if type(choices) is not list or not choices:
        raise _fault(tree, usage) or Garbled("the reply holds no choices", usage)
    found: list[Choice] = []
    for choice in choices:
        message = choice.get("message") if type(choice) is dict else None
        if type(message) is not dict:
            raise Garbled("a choice of the reply holds no message", usage)
        one = _openai_choice(tree, choice, message, len(found))
        if one.stop == "error":  # OpenRouter, vLLM: half a reply, which is billed, or nothing, which is not
            fault = _fault(choice, usage) or Garbled(BROKEN_OFF, usage)
            raise Garbled(str(fault), usage) if one.blocks else fault
        found.append(one)
    return tuple(found)


def _openai_choice(tree: Json, choice: Json, message: Json, number: int) -> Choice:
    blocks: list[Block] = []
    rich = not _RICH.isdisjoint(message)
    if rich and type(reasoning := message.get("reasoning_content") or message.get("reasoning")) is str:
        blocks.append(Thinking(reasoning))
    content = message.get("content")
    if type(content) is str:
        if content:
            blocks.append(Text(content))
    elif type(content) is list:
        blocks.extend(block for part in content if (block := openai_part(part)) is not None)
    refusal = message.get("refusal")
    if refusal and type(refusal) is str:
        blocks.append(Text(refusal))
    calls = _called(message, f"{tree.get('id')}:{number}") if rich else []
    reason = choice.get("finish_reason")
    stop = OPENAI_STOPS.get(reason.lower(), "unknown") if type(reason) is str else "unknown"
    if calls and stop in ("end", "unknown"):
        stop = "tool_use"  # Gemini and Ollama say "stop" after a tool call
    if refusal and stop == "end" and type(refusal) is str:
        stop = "refusal"
    return Choice((*blocks, *calls), stop)


def _called(message: Json, place: str) -> list[ToolUse]:
    """`place`: of the choice, for the ids of calls that came without one: no two of a conversation may be alike."""
    calls = message.get("tool_calls")
    calls = list(calls) if type(calls) is list else []
    if type(message.get("function_call")) is dict:
        calls.append({"id": "", "function": message["function_call"]})
    found: list[ToolUse] = []
    for index, call in enumerate(calls):
        function = call.get("function") or call.get("custom") if type(call) is dict else None
        if type(function) is dict:
            found.append(
                ToolUse(
                    _string(call.get("id")) or safe_id(f"{place}:{index}"),
                    _string(function.get("name")),
                    _arguments(function.get("arguments", function.get("input"))),
                )
            )
    return found


def _arguments(value: Any) -> str:
    if type(value) is str:
        return value
    return msgspec.json.encode(value).decode() if value is not None else ""  # some local servers send an object


def _logprobs(choice: Json) -> list[float]:
    content = _at(choice, "logprobs", "content")
    if type(content) is not list:
        return []
    return [one["logprob"] for one in content if type(one) is dict and type(one.get("logprob")) in (float, int)]


# ------------------------------------------------------------------------------------------------ Anthropic


class _RawBlock(msgspec.Struct):
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _RawMessage(msgspec.Struct):
    content: list[_RawBlock]


def anthropic_answer(tree: Json, body: bytes, usage: Usage | None) -> Answer:
    """Raises Garbled when there is no content. Arguments of tool calls keep their bytes."""
    if tree.get("type") == "error" or (tree.get("error") is not None and "content" not in tree):
        raise _fault(tree, usage) or Garbled("the provider reported an error", usage)
    content = tree.get("content")
    if type(content) is not list:
        raise Garbled("the reply holds no content", usage)
    if not all(type(block) is dict for block in content):
        raise Garbled("a block of the reply's content is no object", usage)
    called = any(block.get("type") == "tool_use" for block in content)
    raw = msgspec.json.decode(body, type=_RawMessage).content if called else []
    blocks = tuple(
        _anthropic_block(block, i, bytes(raw[i].input) if called else b"") for i, block in enumerate(content)
    )
    stop = ANTHROPIC_STOPS.get(_string(tree.get("stop_reason")), "unknown")
    sequence = tree.get("stop_sequence")
    return Answer(
        id=_string(tree.get("id")),
        model=_string(tree.get("model")),
        choices=(Choice(blocks, stop, sequence if type(sequence) is str else None),),
        usage=usage,
    )


def _anthropic_block(block: Json, index: int, arguments: bytes) -> Block:
    match block:
        case {"type": "text", "text": str(text)}:
            return Text(text)
        case {"type": "thinking", "thinking": str(text)}:
            return Thinking(text, _string(block.get("signature")))
        case {"type": "redacted_thinking", "data": str(data)}:
            return Redacted(data)
        case {"type": "tool_use", "name": str(name)}:
            return ToolUse(_string(block.get("id")) or f"call_{index}", name, arguments.decode())
    return Other(_string(block.get("type")), f"content[{index}]")
