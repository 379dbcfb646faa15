"""Whole replies to the caller: in the provider's bytes where the format is the caller's, else written anew."""

from __future__ import annotations

from typing import Any

import msgspec

from tierwise.core.money import Usage
from tierwise.core.request import Request
from tierwise.wire import sse
from tierwise.wire.contract import Bill, Reply
from tierwise.wire.neutral import (
    Answer,
    Began,
    Block,
    CallBegan,
    CallSaid,
    Choice,
    Piece,
    Redacted,
    Said,
    Sealed,
    Signed,
    Stopped,
    Text,
    Thinking,
    Thought,
    ToolUse,
    safe_id,
)
from tierwise.wire.replies import anthropic_answer, load_reply, openai_answer
from tierwise.wire.sinks import DONE, TO_ANTHROPIC, TO_OPENAI, AnthropicSink, OpenAISink
from tierwise.wire.strict import raw_fields, raw_items
from tierwise.wire.usage import billed, guess, prompt_of, to_anthropic, to_openai

Json = dict[str, Any]
Raw = msgspec.Raw
_encode = msgspec.json.encode
_NULL = Raw(b"null")


def whole(request: Request, reply: Reply, bill: Bill) -> bytes:
    """The body of a reply that is no stream."""
    usage = _usage(request, reply, bill)
    if reply.wire == request.wire:
        return _encode(_same(request, reply, bill, usage))
    answer = _answer(reply)
    tree = _to_openai(answer, bill, usage) if request.wire == "openai_chat" else _to_anthropic(answer, bill, usage)
    return _encode(tree)


def stream(request: Request, reply: Reply, bill: Bill) -> bytes:
    """The same reply as the event stream that it would have been."""
    usage = _usage(request, reply, bill)
    if reply.wire == request.wire:
        fields = _same(request, reply, bill, usage)
        return _openai_events(request, fields) if reply.wire == "openai_chat" else _anthropic_events(fields)
    answer = _answer(reply)
    sink = OpenAISink(request.want_usage) if request.wire == "openai_chat" else AnthropicSink(prompt_of(usage))
    out = [sink.put(piece) for piece in _pieces(answer, bill)]
    return b"".join((*out, sink.end(usage, bill)))


def _usage(request: Request, reply: Reply, bill: Bill) -> Usage:
    if reply.usage is not None:
        return reply.usage
    if bill.usage is not None:
        return msgspec.structs.replace(bill.usage, estimated=True)
    return guess(sum(len(turn.text) for turn in request.prompt.turns), len(reply.output_text))


def _answer(reply: Reply) -> Answer:
    tree, body = load_reply(reply.body)
    if reply.wire == "anthropic":
        return anthropic_answer(tree, body, reply.usage)
    return openai_answer(tree, reply.usage)


def _same(request: Request, reply: Reply, bill: Bill, usage: Usage) -> Json:
    """The provider's reply, each field with its own bytes, but for usage, the model's name and what we had asked for
    ourselves."""
    fields: Json = raw_fields(reply.body)
    if not reply.served:
        fields["model"] = bill.model
    given = msgspec.json.decode(fields["usage"]) if "usage" in fields else None
    if reply.usage is None or type(given) is not dict:
        given = to_anthropic(usage) if reply.wire == "anthropic" else to_openai(usage)
    fields["usage"] = {**given, **billed(bill, usage.estimated)}
    told = reply.body.count(b'"logprobs"')
    if told and told > reply.body.count(b'"logprobs":null') and not _asked_logprobs(request):
        choices = raw_items(fields.get("choices", b"[]"))
        fields["choices"] = [{**choice, "logprobs": _NULL} if "logprobs" in choice else choice for choice in choices]
    return fields


def _asked_logprobs(request: Request) -> bool:
    return b'"logprobs"' in request.body and bytes(raw_fields(request.body).get("logprobs", b"null")) == b"true"


# ------------------------------------------------------------------------------------------------ whole, translated


def _to_openai(answer: Answer, bill: Bill, usage: Usage) -> Json:
    choices = []
    for index, choice in enumerate(answer.choices):
        message: Json = {"role": "assistant", "content": _text(choice) or None, "refusal": None}
        if thoughts := "".join(block.text for block in choice.blocks if isinstance(block, Thinking)):
            message["reasoning_content"] = thoughts
        calls = [
            {"id": safe_id(b.id), "type": "function", "function": {"name": b.name, "arguments": b.arguments or "{}"}}
            for b in choice.blocks
            if isinstance(b, ToolUse)
        ]
        if calls:
            message["tool_calls"] = calls
        elif message["content"] is None:
            message["content"] = ""
        choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": TO_OPENAI[choice.stop]})
    return {
        "id": answer.id or "chatcmpl-tierwise",
        "object": "chat.completion",
        "created": answer.created,
        "model": answer.model or bill.model,
        "choices": choices,
        "usage": {**to_openai(usage), **billed(bill, usage.estimated)},
    }


def _text(choice: Choice) -> str:
    return "".join(block.text for block in choice.blocks if isinstance(block, Text))


def _to_anthropic(answer: Answer, bill: Bill, usage: Usage) -> Json:
    choice = answer.choices[0]
    content = [rendered for block in choice.blocks if (rendered := _anthropic_block(block)) is not None]
    return {
        "id": answer.id if answer.id.startswith("msg_") else f"msg_{safe_id(answer.id).removeprefix('chatcmpl-')}",
        "type": "message",
        "role": "assistant",
        "model": answer.model or bill.model,
        "content": content,
        "stop_reason": TO_ANTHROPIC[choice.stop],
        "stop_sequence": choice.stop_sequence,
        "usage": {**to_anthropic(usage), **billed(bill, usage.estimated)},
    }


def _anthropic_block(block: Block) -> Json | None:
    match block:
        case Text(text=text):
            return {"type": "text", "text": text}
        case Thinking(text=text, signature=signature):
            return {"type": "thinking", "thinking": text, "signature": signature}
        case Redacted(data=data):
            return {"type": "redacted_thinking", "data": data}
        case ToolUse(id=id, name=name, arguments=arguments):
            return {"type": "tool_use", "id": safe_id(id), "name": name, "input": _input(arguments)}
    return None


def _input(arguments: str) -> Raw | Json:
    """The arguments as an object; a model's invalid JSON is handed over as the text that it is."""
    try:
        if type(msgspec.json.decode(arguments or "{}")) is dict:
            return Raw((arguments or "{}").encode())
    except (msgspec.MsgspecError, RecursionError):
        pass
    return {"arguments": arguments}


# ------------------------------------------------------------------------------------------------ as a stream


def _pieces(answer: Answer, bill: Bill) -> list[Piece]:
    found: list[Piece] = [Began(answer.id, answer.model or bill.model, answer.created)]
    for index, choice in enumerate(answer.choices):
        calls = 0
        for block in choice.blocks:
            match block:
                case Text(text=text):
                    found.append(Said(text, index))
                case Thinking(text=text, signature=signature):
                    found.append(Thought(text, index))
                    if signature:
                        found.append(Signed(signature))
                case Redacted(data=data):
                    found.append(Sealed(data))
                case ToolUse(id=id, name=name, arguments=arguments):
                    found += [CallBegan(calls, id, name, index), CallSaid(calls, arguments or "{}", index)]
                    calls += 1
        found.append(Stopped(choice.stop, choice.stop_sequence, index))
    return found


def _openai_events(request: Request, fields: Json) -> bytes:
    """A message as one delta for each choice: a stream that nobody waited for need not come in small pieces."""
    usage = fields.pop("usage")
    head = {**fields, "object": "chat.completion.chunk"}
    out = []
    for choice in raw_items(_encode(fields["choices"])):
        delta: Json = dict(raw_fields(choice["message"]))
        if calls := raw_items(delta.get("tool_calls", b"")):
            delta["tool_calls"] = [
                {"index": index, **call} if isinstance(call, dict) else call for index, call in enumerate(calls)
            ]
        one: Json = {"index": choice.get("index", 0), "delta": delta, "logprobs": choice.get("logprobs")}
        out.append({**head, "choices": [{**one, "finish_reason": None}]})
        one = {**one, "delta": {}, "logprobs": None, "finish_reason": choice.get("finish_reason")}
        out.append({**head, "choices": [one]})
    if request.want_usage:
        out.append({**head, "choices": [], "usage": usage})
    return b"".join(b"data: " + _encode(chunk) + b"\n\n" for chunk in out) + DONE


def _anthropic_events(fields: Json) -> bytes:
    """Text, thinking and tool calls as deltas, every other block whole, so that none is lost."""
    usage = fields.pop("usage")
    blocks = msgspec.json.decode(fields["content"], type=list[Raw])
    start_usage = {
        **{key: value for key, value in usage.items() if key not in ("cost_usd", "tierwise")},
        "output_tokens": 0,
    }
    message = {**fields, "content": [], "stop_reason": None, "stop_sequence": None, "usage": start_usage}
    out = [sse.event("message_start", _encode({"type": "message_start", "message": message}))]
    for index, raw in enumerate(blocks):
        out.extend(_block_events(index, raw))
    delta = {"stop_reason": fields.get("stop_reason"), "stop_sequence": fields.get("stop_sequence")}
    out.append(sse.event("message_delta", _encode({"type": "message_delta", "delta": delta, "usage": usage})))
    out.append(sse.event("message_stop", b'{"type":"message_stop"}'))
    return b"".join(out)


def _block_events(index: int, raw: Raw) -> list[bytes]:
    block: Json = dict(raw_fields(raw))
    deltas: list[Json] = []
    match msgspec.json.decode(block.get("type", b"null")):
        case "text" if "text" in block and bytes(block.get("citations", b"null")) in (b"null", b"[]"):
            deltas = [{"type": "text_delta", "text": block["text"]}]
            block["text"] = ""
        case "thinking" if "thinking" in block:
            deltas = [{"type": "thinking_delta", "thinking": block["thinking"]}]
            block["thinking"] = ""
            if "signature" in block:
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
                block["signature"] = ""
        case "tool_use":
            deltas = [{"type": "input_json_delta", "partial_json": bytes(block.get("input", b"{}")).decode()}]
            block["input"] = {}
    events = [("content_block_start", {"content_block": block})]
    events += [("content_block_delta", {"delta": delta}) for delta in deltas]
    events.append(("content_block_stop", {}))
    return [sse.event(name, _encode({"type": name, "index": index, **inner})) for name, inner in events]
