"""Neutral messages as Anthropic wants them: roles in turn, no empty text, results first, arguments as objects."""

from __future__ import annotations

import msgspec

from tierwise.core.errors import BadRequest
from tierwise.wire.neutral import (
    Block,
    Document,
    Image,
    Message,
    Text,
    ToolResult,
    ToolUse,
    safe_id,
)
from tierwise.wire.openai_request import report
from tierwise.wire.strict import Json, load

IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
OPENING = "(The conversation begins with the assistant.)"


def rendered_messages(messages: tuple[Message, ...], lost: list[str]) -> tuple[list[Json], list[Json]]:
    """The system blocks and the messages. System messages at the beginning are the system prompt; later ones keep
    their place as words of the user, because the place carries meaning and older models know no other."""
    leading = 0
    while leading < len(messages) and messages[leading].role == "system":
        leading += 1
    begun = [block for message in messages[:leading] for block in _blocks(message, lost)]
    system = [block for block in begun if block["type"] == "text"]
    if len(system) < len(begun):
        lost.append("messages: an Anthropic system prompt holds text only, so its images and files were left out")
    turns: list[Json] = []
    for message in messages[leading:]:
        role, blocks = message.role, _blocks(message, lost)
        if role == "system":
            role = "user"
            for block in blocks:
                if block["type"] == "text":
                    block["text"] = f"System instruction: {block['text']}"
            lost.append("messages: a system message inside the conversation was sent as words of the user")
        if blocks and turns and turns[-1]["role"] == role:
            turns[-1]["content"].extend(blocks)
        elif blocks:
            turns.append({"role": role, "content": blocks})
    if not turns and system:  # the format demands a user message
        turns.append({"role": "user", "content": system})
        system = []
        lost.append("messages: the system prompt alone was sent as the user's message")
    if not turns:
        raise BadRequest("messages: hold no text at all, which the Anthropic format refuses.", param="messages")
    if turns[0]["role"] == "assistant":
        turns.insert(0, {"role": "user", "content": [{"type": "text", "text": OPENING}]})
        lost.append("messages: the Anthropic format begins with the user, so an opening line was added")
    return system, [_finished(turn, index == len(turns) - 1) for index, turn in enumerate(turns)]


def _finished(turn: Json, last: bool) -> Json:
    blocks = turn["content"]
    if turn["role"] == "user":  # results answer the calls before them, so they come first
        blocks.sort(key=lambda block: block["type"] != "tool_result")
    elif last and blocks[-1]["type"] == "text":  # a prefill may not end in white space
        blocks[-1]["text"] = blocks[-1]["text"].rstrip()
    if len(blocks) == 1 and blocks[0]["type"] == "text" and len(blocks[0]) == 2:
        return {"role": turn["role"], "content": blocks[0]["text"]}
    return turn


def _blocks(message: Message, lost: list[str]) -> list[Json]:
    return [rendered for block in message.blocks for rendered in _block(block, lost)]


def _block(block: Block, lost: list[str]) -> list[Json]:
    match block:
        case Text(text=text):
            if not text.strip():  # the format refuses a text block with nothing in it
                return []
            rendered: Json = {"type": "text", "text": text}
        case Image(media_type=media_type, data=data, url=url) if data or url.startswith(("http://", "https://")):
            if data and media_type not in IMAGE_TYPES:
                lost.append(f"image: Anthropic takes no {media_type or 'image without a type'}")
                return []
            by_data = {"type": "base64", "media_type": media_type, "data": data}
            rendered = {"type": "image", "source": by_data if data else {"type": "url", "url": url}}
        case Document() if source := _source(block):
            rendered = {"type": "document", "source": source}
            if block.title:
                rendered["title"] = block.title
        case ToolUse(id=id, name=name, arguments=arguments):
            rendered = {"type": "tool_use", "id": safe_id(id), "name": name, "input": _input(name, arguments, lost)}
        case ToolResult(id=id, content=content, is_error=is_error):
            inner = [one for part in content for one in _block(part, lost)]
            rendered = {"type": "tool_result", "tool_use_id": safe_id(id)}
            if inner:
                plain = len(inner) == 1 and len(inner[0]) == 2 and inner[0]["type"] == "text"
                rendered["content"] = inner[0]["text"] if plain else inner
            if is_error:
                rendered["is_error"] = True
        case _:
            report(block, "Anthropic", lost)
            return []
    if block.cache:
        rendered["cache_control"] = {"type": "ephemeral", **({"ttl": "1h"} if block.cache == "1h" else {})}
    return [rendered]


def _source(block: Document) -> Json | None:
    if block.text:
        return {"type": "text", "media_type": "text/plain", "data": block.text}
    if block.data and block.media_type == "application/pdf":
        return {"type": "base64", "media_type": block.media_type, "data": block.data}
    if block.url:
        return {"type": "url", "url": block.url}
    return None


def _input(name: str, arguments: str, lost: list[str]) -> msgspec.Raw | Json:
    """The arguments in their own bytes when they are one JSON object, which is all that this format can hold."""
    if not arguments.strip():
        return {}
    encoded = arguments.encode()
    try:
        load(encoded)
    except BadRequest:
        lost.append(f"tool_calls: the arguments of a call of {name} are no JSON object and were wrapped in one")
        return {"arguments": arguments}
    return msgspec.Raw(encoded)
