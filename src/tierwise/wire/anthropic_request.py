"""Anthropic Messages requests to the neutral form and back. Bodies that come here have passed `anthropic.read`."""

from __future__ import annotations

from typing import Any

import msgspec

from tierwise.wire.anthropic_messages import rendered_messages
from tierwise.wire.contract import Shape
from tierwise.wire.neutral import (
    Block,
    Cache,
    Conversation,
    Document,
    Format,
    Image,
    Message,
    Other,
    Redacted,
    Text,
    Thinking,
    Tool,
    ToolChoice,
    ToolResult,
    ToolUse,
    lost_extra,
)
from tierwise.wire.strict import Json, raw_fields

# What an effort comes to in thinking tokens. 1,024 is the least that Anthropic takes.
EFFORT_TOKENS = {"minimal": 1_024, "low": 1_024, "medium": 4_096, "high": 16_384, "xhigh": 24_576, "max": 32_000}
MIN_THINKING_TOKENS = 1_024
CARRIED = frozenset(
    (
        "model", "messages", "system", "max_tokens", "stop_sequences", "temperature", "top_p", "top_k", "stream",
        "tools", "tool_choice", "thinking", "output_config", "output_format", "metadata", "tierwise", "service_tier",
        "session_id",
    )
)  # fmt: skip


class _RawBlock(msgspec.Struct):
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _RawMessage(msgspec.Struct):
    content: msgspec.Raw


def parse(body: bytes) -> Conversation:
    """A Messages body in the neutral form."""
    tree = msgspec.json.decode(body)
    lost: list[str] = []
    messages: list[Message] = []
    if system := tree.get("system"):
        blocks = (Text(system),) if type(system) is str else tuple(_block(one, "system", None) for one in system)
        messages.append(Message("system", blocks))
    inputs = _raw_inputs(body) if b'"tool_use"' in body else {}
    for index, message in enumerate(tree["messages"]):
        content = message["content"]
        at = f"messages[{index}]"
        if type(content) is str:
            messages.append(Message(message["role"], (Text(content),)))
            continue
        found = [_block(one, f"{at}.content[{i}]", inputs.get((index, i))) for i, one in enumerate(content)]
        messages.append(Message(message["role"], tuple(found)))
    config = tree.get("output_config") or {}
    thinking = tree.get("thinking") or {}
    effort = config.get("effort") or ""
    if thinking.get("type") == "adaptive" and not effort:
        effort = "medium"
    extras = [key for key, value in tree.items() if key not in CARRIED and value is not None]
    metadata = tree.get("metadata") or {}
    extras.extend(f"metadata.{key}" for key in metadata if key not in ("user_id", "tierwise"))
    off = thinking.get("type") in ("disabled", "between_tools")
    tier = tree.get("service_tier")
    return Conversation(
        messages=tuple(messages),
        tools=tuple(_tools(tree.get("tools") or (), lost)),
        choice=_choice(tree.get("tool_choice")),
        format=_format(config.get("format") or tree.get("output_format")),
        max_tokens=tree.get("max_tokens"),
        temperature=tree.get("temperature"),
        top_p=tree.get("top_p"),
        top_k=tree.get("top_k"),
        stop=tuple(tree.get("stop_sequences") or ()),
        user=metadata.get("user_id") or "",
        effort="none" if off else effort if type(effort) is str else "",
        thinking_tokens=thinking.get("budget_tokens"),
        tier="auto" if tier == "auto" else "standard" if tier == "standard_only" else "",
        extras=tuple(extras),
        lost=tuple(lost),
    )


def _raw_inputs(body: bytes) -> dict[tuple[int, int], str]:
    """The arguments of every earlier tool call, in the caller's own bytes, by message and block."""
    found: dict[tuple[int, int], str] = {}
    raw = msgspec.json.decode(raw_fields(body)["messages"], type=list[_RawMessage])
    for index, message in enumerate(raw):
        if bytes(message.content)[:1] == b"[":
            blocks = msgspec.json.decode(message.content, type=list[_RawBlock])
            found.update(((index, i), bytes(block.input).decode()) for i, block in enumerate(blocks))
    return found


def _cache(block: Json) -> Cache | None:
    match block.get("cache_control"):
        case {"ttl": "1h"}:
            return "1h"
        case dict():
            return "5m"
    return None


def _block(block: Json, at: str, arguments: str | None) -> Block:
    match block:
        case {"type": "text", "text": str(text)}:
            return Text(text, _cache(block))
        case {"type": "image", "source": dict(source)}:
            return _image(source, _cache(block), at)
        case {"type": "document", "source": dict(source)}:
            return _document(block, source, at)
        case {"type": "tool_use", "id": str(id), "name": str(name)}:
            return ToolUse(id, name, arguments or "{}", _cache(block))
        case {"type": "tool_result", "tool_use_id": str(id)}:
            return ToolResult(id, _inner(block.get("content"), at), bool(block.get("is_error")), _cache(block))
        case {"type": "thinking", "thinking": str(text)}:
            return Thinking(text, block.get("signature") or "")
        case {"type": "redacted_thinking", "data": str(data)}:
            return Redacted(data)
    return Other(str(block.get("type")), at)


def _image(source: Json, cache: Cache | None, at: str) -> Block:
    match source:
        case {"type": "base64", "media_type": str(media_type), "data": str(data)}:
            return Image(media_type, data, "", cache)
        case {"type": "url", "url": str(url)}:
            return Image("", "", url, cache)
    return Other(f"image by {source.get('type')}", at)


def _document(block: Json, source: Json, at: str) -> Block:
    title, cache = block.get("title") or "", _cache(block)
    match source:
        case {"type": "base64", "media_type": str(media_type), "data": str(data)}:
            return Document(media_type=media_type, data=data, title=title, cache=cache)
        case {"type": "url", "url": str(url)}:
            return Document(url=url, title=title, cache=cache)
        case {"type": "text", "data": str(text)}:
            return Document(media_type="text/plain", text=text, title=title, cache=cache)
        case {"type": "content", "content": str(text)}:
            return Document(media_type="text/plain", text=text, title=title, cache=cache)
        case {"type": "content", "content": list(parts)} if all(part.get("type") == "text" for part in parts):
            joined = "\n".join(str(part.get("text")) for part in parts)
            return Document(media_type="text/plain", text=joined, title=title, cache=cache)
        case {"type": "file", "file_id": str(id)}:
            return Document(file_id=id, title=title, cache=cache)
    return Other(f"document by {source.get('type')}", at)


def _inner(content: Any, at: str) -> tuple[Text | Image | Document | Other, ...]:
    if content is None:
        return ()
    if type(content) is str:
        return (Text(content),)
    found = (_block(one, f"{at}.content[{index}]", None) for index, one in enumerate(content))
    return tuple(b if isinstance(b, (Text, Image, Document, Other)) else Other(type(b).__name__, at) for b in found)


def _tools(tools: Any, lost: list[str]) -> list[Tool]:
    found = []
    for index, tool in enumerate(tools):
        if tool.get("type") not in (None, "custom"):
            lost.append(f"tools[{index}]: {tool['type']} runs at Anthropic and has no counterpart in another format")
            continue
        strict = tool.get("strict")
        found.append(
            Tool(
                name=tool["name"],
                description=tool.get("description") or "",
                schema=tool.get("input_schema"),
                strict=strict if type(strict) is bool else None,
                cache=_cache(tool),
            )
        )
    return found


def _choice(choice: Any) -> ToolChoice | None:
    if choice is None:
        return None
    disabled = choice.get("disable_parallel_tool_use")
    parallel = None if disabled is None else not disabled
    match choice["type"]:
        case "any":
            return ToolChoice("required", parallel=parallel)
        case "tool":
            return ToolChoice("tool", choice["name"], parallel=parallel)
        case "none":
            return ToolChoice("none")
    return ToolChoice("auto", parallel=parallel)


def _format(form: Any) -> Format | None:
    match form:
        case {"type": "json_schema", "schema": dict(schema)}:
            return Format("schema", schema)
    return None


# ------------------------------------------------------------------------------------------------ writing


def render(talk: Conversation, shape: Shape) -> tuple[Json, tuple[str, ...]]:
    """A Messages body, and what it could not say."""
    lost = [*talk.lost, *(lost_extra(name, "Anthropic") for name in talk.extras)]
    system, messages = rendered_messages(talk.messages, lost)
    body: Json = {"model": shape.model}
    body["max_tokens"] = shape.max_tokens or talk.max_tokens or shape.default_max_tokens
    if talk.format is not None and talk.format.kind == "json":
        system.append({"type": "text", "text": "Reply with one JSON object and nothing else."})
        lost.append("response_format: the Anthropic format has no json_object; it was asked for in words")
    if system:
        plain = len(system) == 1 and len(system[0]) == 2
        body["system"] = system[0]["text"] if plain else system
    body["messages"] = messages
    if stop := [one for one in talk.stop if one.strip()]:
        body["stop_sequences"] = stop
    if len(stop) < len(talk.stop):
        lost.append("stop: the Anthropic format takes no sequence of white space alone")
    if talk.user:
        body["metadata"] = {"user_id": talk.user}
    if talk.tier:
        body["service_tier"] = "standard_only" if talk.tier == "standard" else "auto"
    if talk.n > 1:
        lost.append("n: the Anthropic format gives one reply for each request")
    _put_tools(body, talk, messages)
    if talk.format is not None and talk.format.kind == "schema":
        body["output_config"] = {"format": {"type": "json_schema", "schema": sealed(talk.format.schema)}}
    thinking = _put_thinking(body, talk, shape, messages, lost)
    _put_sampling(body, talk, thinking, lost)
    return body, tuple(lost)


def _put_sampling(body: Json, talk: Conversation, thinking: bool, lost: list[str]) -> None:
    if talk.temperature is not None:
        if thinking:
            lost.append("temperature: cannot be set while an Anthropic model thinks")
        else:
            body["temperature"] = min(talk.temperature, 1)
            if talk.temperature > 1:
                lost.append(f"temperature: {talk.temperature:g} was lowered to 1, the most that Anthropic takes")
    if talk.top_p is not None:
        if "temperature" in body:
            lost.append("top_p: Anthropic takes either temperature or top_p, so temperature was kept")
        elif thinking and talk.top_p < 0.95:
            lost.append("top_p: cannot be below 0.95 while an Anthropic model thinks")
        else:
            body["top_p"] = talk.top_p
    if talk.top_k is not None:
        if thinking:
            lost.append("top_k: cannot be set while an Anthropic model thinks")
        else:
            body["top_k"] = talk.top_k


def _put_tools(body: Json, talk: Conversation, messages: list[Json]) -> None:
    only = talk.choice.only if talk.choice is not None else ()
    tools = [_tool(tool) for tool in talk.tools if not only or tool.name in only]
    choice = talk.choice or ToolChoice()
    if not tools:
        # The format refuses a conversation with tool calls in it that declares no tools.
        names = dict.fromkeys(
            block["name"]
            for message in messages
            if type(message["content"]) is list
            for block in message["content"]
            if block["type"] == "tool_use"
        )
        if not names:
            return
        tools = [{"name": name, "input_schema": {"type": "object"}} for name in names]
        choice = ToolChoice("none")
    body["tools"] = tools
    mode = {"auto": "auto", "none": "none", "required": "any", "tool": "tool"}[choice.mode]
    rendered: Json = {"type": mode}
    if mode == "tool":
        rendered["name"] = choice.name
    if choice.parallel is not None and mode != "none":
        rendered["disable_parallel_tool_use"] = not choice.parallel
    if len(rendered) > 1 or mode != "auto" or talk.choice is not None:
        body["tool_choice"] = rendered


def _tool(tool: Tool) -> Json:
    schema = tool.schema if type(tool.schema) is dict else {}
    rendered: Json = {"name": tool.name}
    if tool.description:
        rendered["description"] = tool.description
    rendered["input_schema"] = schema if schema.get("type") == "object" else {"type": "object", **schema}
    if tool.strict:
        rendered["strict"] = True
    if tool.cache:
        rendered["cache_control"] = marker(tool.cache)
    return rendered


def marker(cache: Cache) -> Json:
    return {"type": "ephemeral"} if cache == "5m" else {"type": "ephemeral", "ttl": cache}


def sealed(schema: Any) -> Any:
    """The schema with every object closed that does not say otherwise: Anthropic's structured output demands it, and
    whatever satisfies the closed schema satisfies the open one."""
    match schema:
        case dict():
            inner = {key: sealed(value) for key, value in schema.items()}
            is_object = schema.get("type") == "object" or type(schema.get("properties")) is dict
            return (
                {**inner, "additionalProperties": False} if is_object and "additionalProperties" not in inner else inner
            )
        case list():
            return [sealed(value) for value in schema]
    return schema


def _put_thinking(body: Json, talk: Conversation, shape: Shape, messages: list[Json], lost: list[str]) -> bool:
    """Ask for thinking where it was asked for and can be had. Returns whether the model will think."""
    wanted = talk.thinking_tokens if talk.thinking_tokens else EFFORT_TOKENS.get(talk.effort, 0)
    if not wanted:
        return False
    reason = ""
    if not shape.reasoning:
        reason = "this model does not reason on request"
    elif body["max_tokens"] <= MIN_THINKING_TOKENS:
        reason = f"needs a ceiling above {MIN_THINKING_TOKENS} tokens"
    elif body.get("tool_choice", {}).get("type") in ("any", "tool"):
        reason = "an Anthropic model cannot think when a tool call is forced"
    elif _in_tool_loop(messages):
        reason = "the running tool call was begun without an Anthropic thinking block"
    if reason:
        lost.append(f"reasoning_effort: {reason}")
        return False
    budget = max(MIN_THINKING_TOKENS, min(wanted, body["max_tokens"] - 1))
    body["thinking"] = {"type": "enabled", "budget_tokens": budget}
    return True


def _in_tool_loop(messages: list[Json]) -> bool:
    last = messages[-1]["content"]
    return type(last) is list and any(block["type"] == "tool_result" for block in last)
