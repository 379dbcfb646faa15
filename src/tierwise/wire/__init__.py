"""Wire formats: pure codecs, both directions. Bytes in, values out; nothing here opens a socket or knows a price.

The router and the server use only the names below; each format is a module of its own that fills in a `Codec`, with
`neutral` as the form between two formats, so that a new format is one module and not one for every pair.
"""

from __future__ import annotations

import msgspec

from tierwise.core.catalogue import Provider
from tierwise.core.errors import BadRequest, Unknown
from tierwise.core.request import Request
from tierwise.wire import anthropic_request, delivery, openai_request, passthrough, relays, replies
from tierwise.wire.anthropic import Anthropic
from tierwise.wire.contract import Annotate, Bill, Codec, Garbled, Meter, Relay, Reply, Sent, Shape
from tierwise.wire.embeddings import Embeddings
from tierwise.wire.neutral import Conversation, Message, Text
from tierwise.wire.openai_chat import OpenAIChat
from tierwise.wire.strict import did_you_mean

__all__ = [
    "Annotate", "Bill", "Codec", "Garbled", "Meter", "Relay", "Reply", "Sent", "Shape", "codec", "deliver",
    "deliver_stream", "read_count", "read_reply", "relay", "wire_of", "write", "write_question",
]  # fmt: skip

# A reply in the caller's format: whole, and as an event stream.
deliver, deliver_stream = delivery.whole, delivery.stream
_ANTHROPIC = Anthropic()
_CODECS: dict[str, Codec] = {
    "openai_chat": OpenAIChat(),
    "anthropic": _ANTHROPIC,
    "openai_embeddings": Embeddings(),
}


def codec(name: str) -> Codec:
    """The codec of this format. Raises Unknown for a format that there is not."""
    found = _CODECS.get(name)
    if found is None:
        raise Unknown(f"There is no wire format {name!r}{did_you_mean(name, _CODECS)}.")
    return found


def read_count(body: bytes, headers: dict[str, str]) -> Request:
    """The body of `/v1/messages/count_tokens`. Raises BadRequest naming the field."""
    return _ANTHROPIC.read_count(body, headers)


def wire_of(provider: Provider, path: str) -> str:
    """The format in which this provider answers at this path."""
    if path == "embeddings":
        return "openai_embeddings"
    return "anthropic" if provider.wire == "anthropic" else "openai_chat"


def write(request: Request, provider: Provider, shape: Shape) -> Sent:
    """The request as this provider wants it. Raises BadRequest for what its format cannot hold at all."""
    if request.wire == "openai_embeddings":
        if provider.wire == "anthropic":
            raise BadRequest("model: the Anthropic format has no embeddings.", param="model")
        return Sent(path="embeddings", body=passthrough.embeddings(request, shape))
    if provider.wire == "anthropic":
        return _to_anthropic(request, shape)
    return _to_openai(request, provider, shape)


def _to_openai(request: Request, provider: Provider, shape: Shape) -> Sent:
    if request.wire == "openai_chat":
        body, lost = passthrough.openai(request, provider, shape)
    else:
        talk = _with_drafts(anthropic_request.parse(request.body), shape)
        tree, lost = openai_request.render(talk, provider, shape)
        if shape.stream:
            tree["stream"] = True
            if provider.stream_usage:
                tree["stream_options"] = {"include_usage": True}
        if shape.logprobs:
            tree["logprobs"] = True
        body = msgspec.json.encode(tree)
    return Sent(path="chat/completions", body=body, lost=tuple(dict.fromkeys(lost)) if lost else ())


def _to_anthropic(request: Request, shape: Shape) -> Sent:
    headers = [passthrough.ANTHROPIC_VERSION]
    if request.wire == "anthropic":
        body, lost = passthrough.anthropic(request, shape)
        if request.betas:
            headers.append(("anthropic-beta", ",".join(request.betas)))
    else:
        tree, lost = anthropic_request.render(_with_drafts(openai_request.parse(request.body), shape), shape)
        if shape.stream:
            tree["stream"] = True
        body = msgspec.json.encode(tree)
    return Sent(path="messages", body=body, headers=tuple(headers), lost=tuple(dict.fromkeys(lost)) if lost else ())


def _with_drafts(talk: Conversation, shape: Shape) -> Conversation:
    if not shape.drafts:
        return talk
    note = Message("user", (Text(passthrough.draft_note(shape.drafts)),))
    return msgspec.structs.replace(talk, messages=(*talk.messages, note))


def write_question(provider: Provider, model: str, system: str, text: str, max_tokens: int) -> Sent:
    """A question of our own to a helper model: no stream, no tools."""
    messages = (Message("system", (Text(system),)), Message("user", (Text(text),)))
    talk = Conversation(messages=messages, max_tokens=max_tokens)
    shape = Shape(model=model, stream=False)
    if provider.wire == "anthropic":
        tree, _ = anthropic_request.render(talk, shape)
        return Sent(path="messages", body=msgspec.json.encode(tree), headers=(passthrough.ANTHROPIC_VERSION,))
    tree, _ = openai_request.render(talk, provider, shape)
    return Sent(path="chat/completions", body=msgspec.json.encode(tree))


def read_reply(wire: str, body: bytes, request: Request | None, *, compared: bool = True) -> Reply:
    """A whole reply of a provider. `wire`: its format, or its row's `wire`. Raises Garbled and nothing else.

    `compared`: somebody will compare it with others, so its answer and its sketch are worked out as well."""
    match wire:
        case "anthropic":
            return replies.read_anthropic(body, request, compared)
        case "openai_embeddings":
            return replies.read_embeddings(body)
    if request is not None and request.wire == "openai_embeddings":
        return replies.read_embeddings(body)
    return replies.read_openai(body, request, compared)


def relay(request: Request, wire: str, bill: Annotate, expected_input_tokens: int = 0) -> Relay:
    """Between the provider's stream (`wire`: its format, or its row's `wire`) and the caller's."""
    return relays.relay(request, wire, bill, expected_input_tokens)
