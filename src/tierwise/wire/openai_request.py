"""OpenAI chat requests to the neutral form and back. Bodies that come here have passed `openai_chat.read`."""

from __future__ import annotations

from typing import Any

import msgspec

from tierwise.core.catalogue import Provider
from tierwise.wire.contract import Shape
from tierwise.wire.neutral import (
    Audio,
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
    safe_id,
)
from tierwise.wire.strict import Json

MAX_STOP = 4
IMAGE_NOTE = "Images returned by the tool call {id}:"
# Fields that the neutral form carries, or that are ours.
CARRIED = frozenset(
    (
        "model", "messages", "max_tokens", "max_completion_tokens", "n", "temperature", "top_p", "top_k", "stop",
        "stream", "stream_options", "tools", "tool_choice", "parallel_tool_calls", "response_format", "metadata",
        "tierwise", "user", "safety_identifier", "reasoning_effort", "service_tier", "functions", "function_call",
        "session_id",
    )
)  # fmt: skip
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def parse(body: bytes) -> Conversation:
    """A chat completions body in the neutral form."""
    tree = msgspec.json.decode(body)
    lost: list[str] = []
    messages = tuple(_messages(tree["messages"], lost))
    extras = [key for key, value in tree.items() if key not in CARRIED and value is not None and value is not False]
    if set(tree.get("metadata") or ()) - {"tierwise"}:
        extras.append("metadata")
    tier = tree.get("service_tier")
    if tier not in (None, "auto", "default"):
        lost.append(f"service_tier: {tier} has no counterpart in another format")
    stop = tree.get("stop")
    effort = tree.get("reasoning_effort") or ""
    return Conversation(
        messages=messages,
        tools=tuple(_tools(tree, lost)),
        choice=_choice(tree),
        format=_format(tree.get("response_format"), lost),
        max_tokens=tree.get("max_completion_tokens") or tree.get("max_tokens"),
        temperature=tree.get("temperature"),
        top_p=tree.get("top_p"),
        top_k=tree.get("top_k") if type(tree.get("top_k")) is int else None,
        stop=(stop,) if type(stop) is str else tuple(stop or ()),
        user=_string(tree.get("user")) or _string(tree.get("safety_identifier")),
        effort=effort if effort in EFFORTS else "",
        tier="auto" if tier == "auto" else "standard" if tier == "default" else "",
        n=tree.get("n") or 1,
        extras=tuple(extras),
        lost=tuple(lost),
    )


def _string(value: Any) -> str:
    return value if type(value) is str else ""


def _messages(messages: list[Json], lost: list[str]) -> list[Message]:
    found: list[Message] = []
    waiting: list[str] = []  # ids of calls whose results have not come: some providers give no ids at all
    for index, message in enumerate(messages):
        at = f"messages[{index}]"
        match message["role"]:
            case "system" | "developer":
                found.append(Message("system", _content(message.get("content"), at)))
            case "user":
                found.append(Message("user", _content(message.get("content"), at)))
            case "assistant":
                blocks = _assistant(message, at, lost)
                waiting = [block.id for block in blocks if isinstance(block, ToolUse)]
                found.append(Message("assistant", blocks))
            case _:
                id = message.get("tool_call_id") or (waiting.pop(0) if waiting else f"call_{index}")
                if id in waiting:
                    waiting.remove(id)
                inner = tuple(
                    block if isinstance(block, (Text, Image, Document, Other)) else Other("input_audio", at)
                    for block in _content(message.get("content"), at)
                )
                found.append(Message("user", (ToolResult(id, inner),)))
        if message.get("name") and message["role"] != "function":
            lost.append(f"{at}.name: the name of a participant has no place in another format")
    return found


def _cache(part: Json) -> Cache | None:
    """Markers that clients write into this format for providers that honour them."""
    match part.get("cache_control") or part.get("prompt_cache_breakpoint"):
        case {"ttl": "1h"}:
            return "1h"
        case dict():
            return "5m"
    return None


def _content(content: Any, at: str) -> tuple[Block, ...]:
    if content is None:
        return ()
    if type(content) is str:
        return (Text(content),)
    return tuple(_part(part, f"{at}.content[{index}]") for index, part in enumerate(content))


def _part(part: Json, at: str) -> Block:
    match part:
        case {"type": "text", "text": str(text)}:
            return Text(text, _cache(part))
        case {"type": "refusal", "refusal": str(text)}:
            return Text(text)
        case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
            media_type, data = split_data_url(url)
            return Image(media_type, data, "" if data else url, _cache(part))
        case {"type": "input_audio", "input_audio": {"data": str(data), **rest}}:
            return Audio(_string(rest.get("format")), data)
        case {"type": "file", "file": dict(file)}:
            media_type, data = split_data_url(_string(file.get("file_data")))
            return Document(
                media_type=media_type or "application/pdf",
                data=data or _string(file.get("file_data")),
                file_id=_string(file.get("file_id")),
                title=_string(file.get("filename")),
                cache=_cache(part),
            )
    return Other(str(part.get("type")), at)


def split_data_url(url: str) -> tuple[str, str]:
    """`data:image/png;base64,AAAA` as its media type and base64; ("", "") for any other URL."""
    if not url.startswith("data:"):
        return "", ""
    head, comma, data = url[5:].partition(",")
    if not comma or not head.endswith(";base64"):
        return "", ""
    return head.removesuffix(";base64").partition(";")[0], data


# Signatures of thoughts, which Gemini and OpenRouter want back.
_SIGNED = "what one provider signed means nothing to another and was left out"


def _assistant(message: Json, at: str, lost: list[str]) -> tuple[Block, ...]:
    blocks: list[Block] = []
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if type(reasoning) is str:
        blocks.append(Thinking(reasoning))
    blocks.extend(_content(message.get("content"), at))
    if type(refusal := message.get("refusal")) is str and refusal:
        blocks.append(Text(refusal))
    if message.get("audio"):
        lost.append(f"{at}.audio: an earlier spoken reply cannot be passed on")
    if message.get("reasoning_details"):
        lost.append(f"{at}.reasoning_details: {_SIGNED}")
    for index, call in enumerate(message.get("tool_calls") or ()):
        where = f"{at}.tool_calls[{index}]"
        if call.get("extra_content"):
            lost.append(f"{where}.extra_content: {_SIGNED}")
        function = call.get("function")
        if function is None:
            lost.append(f"{where}: a call of type {call.get('type')} has no counterpart in another format")
            continue
        blocks.append(ToolUse(call["id"] or f"call_{at[9:-1]}_{index}", function["name"], function["arguments"]))
    if call := message.get("function_call"):
        blocks.append(ToolUse(f"call_{at[9:-1]}_0", call["name"], call["arguments"]))
    return tuple(blocks)


def _tools(tree: Json, lost: list[str]) -> list[Tool]:
    found = []
    for index, tool in enumerate(tree.get("tools") or ()):
        if tool.get("type", "function") != "function":
            lost.append(f"tools[{index}]: a tool of type {tool['type']} has no counterpart in another format")
            continue
        found.append(_function(tool["function"], _cache(tool)))
    found.extend(_function(function, None) for function in tree.get("functions") or ())
    return found


def _function(function: Json, cache: Cache | None) -> Tool:
    strict = function.get("strict")
    return Tool(
        name=function["name"],
        description=_string(function.get("description")),
        schema=function.get("parameters"),
        strict=strict if type(strict) is bool else None,
        cache=cache,
    )


def _choice(tree: Json) -> ToolChoice | None:
    parallel = tree.get("parallel_tool_calls")
    match tree.get("tool_choice", tree.get("function_call")):
        case "auto" | "none" | "required" as mode:
            return ToolChoice(mode, parallel=parallel)
        case "any":
            return ToolChoice("required", parallel=parallel)
        case {"function": {"name": str(name)}} | {"custom": {"name": str(name)}} | {"name": str(name)}:
            return ToolChoice("tool", name, parallel=parallel)
        case {"allowed_tools": {"mode": mode, "tools": list(tools)}}:
            only = tuple(tool["function"]["name"] for tool in tools if type(tool.get("function")) is dict)
            return ToolChoice("required" if mode == "required" else "auto", only=only, parallel=parallel)
    return ToolChoice(parallel=parallel) if parallel is not None else None


def _format(form: Any, lost: list[str]) -> Format | None:
    match form:
        case {"type": "json_object"}:
            return Format("json")
        case {"type": "json_schema", "json_schema": dict(schema)}:
            strict = schema.get("strict")
            return Format(
                "schema", schema.get("schema") or {}, _string(schema.get("name")) or "reply",
                strict if type(strict) is bool else None,
            )  # fmt: skip
        case {"type": str(other)} if other != "text":
            lost.append(f"response_format: the type {other} has no counterpart in another format")
    return None


# ------------------------------------------------------------------------------------------------ writing


def render(talk: Conversation, provider: Provider, shape: Shape) -> tuple[Json, tuple[str, ...]]:
    """A chat completions body, and what it could not say."""
    lost = [*talk.lost, *(lost_extra(name, "OpenAI") for name in talk.extras)]
    cached = False
    messages: list[Json] = []
    for message in talk.messages:
        cached = cached or any(getattr(block, "cache", None) for block in message.blocks)
        messages.extend(_rendered(message, lost))
    body: Json = {"model": shape.model, "messages": messages}
    ceiling = shape.max_tokens or talk.max_tokens
    if ceiling is not None:
        body[provider.max_tokens_field] = ceiling
    if talk.temperature is not None:
        body["temperature"] = talk.temperature
    if talk.top_p is not None:
        body["top_p"] = talk.top_p
    if talk.top_k is not None:
        lost.append(lost_extra("top_k", "OpenAI"))
    if talk.stop:
        body["stop"] = list(talk.stop[:MAX_STOP])
        if len(talk.stop) > MAX_STOP:
            lost.append(f"stop_sequences: the OpenAI format takes {MAX_STOP}, the rest were left out")
    if talk.user:
        body["user"] = talk.user
    if talk.tier:
        body["service_tier"] = "default" if talk.tier == "standard" else "auto"
    if talk.n > 1:
        body["n"] = talk.n
    if tools := [tool for tool in talk.tools if _allowed(tool, talk.choice)]:
        body["tools"] = [_tool(tool) for tool in tools]
        cached = cached or any(tool.cache for tool in tools)
        _put_choice(body, talk.choice)
    if talk.format is not None:
        body["response_format"] = _response_format(talk.format)
    _put_effort(body, talk, shape, lost)
    if cached:
        lost.append("cache_control: the OpenAI format has no cache markers; its providers cache by themselves")
    return body, tuple(lost)


def _allowed(tool: Tool, choice: ToolChoice | None) -> bool:
    return choice is None or not choice.only or tool.name in choice.only


def _put_choice(body: Json, choice: ToolChoice | None) -> None:
    if choice is None:
        return
    if choice.mode == "tool":
        body["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        body["tool_choice"] = choice.mode
    if choice.parallel is not None:
        body["parallel_tool_calls"] = choice.parallel


def _put_effort(body: Json, talk: Conversation, shape: Shape, lost: list[str]) -> None:
    effort = talk.effort
    if not effort and talk.thinking_tokens:
        # The usual thirds: what a provider's own low, medium and high come to in tokens.
        effort = "low" if talk.thinking_tokens <= 2_048 else "medium" if talk.thinking_tokens <= 8_192 else "high"
    if not effort or effort == "none":
        return  # not asking is how this format says no to models that can do without
    if not shape.reasoning:
        lost.append("thinking: this model does not reason on request")
        return
    body["reasoning_effort"] = {"max": "xhigh"}.get(effort, effort)


def _tool(tool: Tool) -> Json:
    function: Json = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    function["parameters"] = tool.schema if tool.schema is not None else {"type": "object", "properties": {}}
    if tool.strict is not None:
        function["strict"] = tool.strict and closed(tool.schema)
    return {"type": "function", "function": function}


def _response_format(form: Format) -> Json:
    if form.kind == "json":
        return {"type": "json_object"}
    strict = closed(form.schema) if form.strict is None else form.strict
    return {"type": "json_schema", "json_schema": {"name": form.name, "schema": form.schema, "strict": strict}}


def closed(schema: Any) -> bool:
    """Whether OpenAI's strict mode would take the schema: every object is closed and demands all its properties."""
    match schema:
        case dict():
            if schema.get("type") == "object" or "properties" in schema:
                names = schema.get("properties") or {}
                if schema.get("additionalProperties") is not False or set(schema.get("required") or ()) != set(names):
                    return False
            return all(closed(inner) for inner in schema.values())
        case list():
            return all(closed(inner) for inner in schema)
    return True


def _rendered(message: Message, lost: list[str]) -> list[Json]:
    if message.role == "system":
        return [{"role": "system", "content": _joined(message.blocks, lost)}]
    if message.role == "assistant":
        return _rendered_assistant(message, lost)
    found: list[Json] = []
    parts: list[Json] = []
    for block in message.blocks:
        if isinstance(block, ToolResult):
            found.append(_rendered_result(block, parts, lost))
        else:
            parts.extend(_rendered_part(block, lost))
    if parts:
        plain = len(parts) == 1 and parts[0]["type"] == "text"
        found.append({"role": "user", "content": parts[0]["text"] if plain else parts})
    return found or [{"role": "user", "content": ""}]


def _rendered_result(block: ToolResult, parts: list[Json], lost: list[str]) -> Json:
    """A result as a message of its own. Only text may stand in it, so images follow in the user's message."""
    images = [inner for inner in block.content if isinstance(inner, (Image, Document))]
    shown = _joined(tuple(inner for inner in block.content if not isinstance(inner, (Image, Document))), lost)
    if images:
        parts.append({"type": "text", "text": IMAGE_NOTE.format(id=safe_id(block.id))})
        for image in images:
            parts.extend(_rendered_part(image, lost))
        shown = shown or "(see the images below)"
    if block.is_error:
        shown = f"Error: {shown}"
    return {"role": "tool", "tool_call_id": safe_id(block.id), "content": shown}


def _rendered_assistant(message: Message, lost: list[str]) -> list[Json]:
    calls = [
        {
            "id": safe_id(block.id),
            "type": "function",
            "function": {"name": block.name, "arguments": block.arguments or "{}"},
        }
        for block in message.blocks
        if isinstance(block, ToolUse)
    ]
    rest = tuple(block for block in message.blocks if not isinstance(block, ToolUse))
    shown = _joined(rest, lost)
    out: Json = {"role": "assistant", "content": shown or (None if calls else "")}
    if calls:
        out["tool_calls"] = calls
    return [out]


def _joined(blocks: tuple[Block, ...], lost: list[str]) -> str:
    """The texts of the blocks; what is no text is reported."""
    texts = []
    for block in blocks:
        if isinstance(block, Text):
            texts.append(block.text)
        else:
            report(block, "OpenAI", lost)
    return "\n\n".join(texts)


def _rendered_part(block: Block, lost: list[str]) -> list[Json]:
    match block:
        case Text(text=text):
            return [{"type": "text", "text": text}]
        case Image(media_type=media_type, data=data, url=url) if data or url:
            return [{"type": "image_url", "image_url": {"url": url or f"data:{media_type};base64,{data}"}}]
        case Audio(format=format, data=data):
            return [{"type": "input_audio", "input_audio": {"data": data, "format": format}}]
        case Document(text=text, title=title) if text:
            return [{"type": "text", "text": f"{title}\n\n{text}" if title else text}]
        case Document(media_type=media_type, data=data, title=title) if data:
            file = {"filename": title or "document.pdf", "file_data": f"data:{media_type};base64,{data}"}
            return [{"type": "file", "file": file}]
        case Document(url=url) if url:
            lost.append("document: the OpenAI format takes no document by URL; its address was sent as text")
            return [{"type": "text", "text": f"Document: {url}"}]
    report(block, "OpenAI", lost)
    return []


def report(block: Block, format: str, lost: list[str]) -> None:
    """Name a block that was left out."""
    match block:
        case Thinking(signature=signature) if signature:
            lost.append("thinking: a signed thinking block means nothing to another provider and was left out")
        case Thinking():
            lost.append("thinking: earlier reasoning was left out")
        case Redacted():
            lost.append("redacted_thinking: means nothing to another provider and was left out")
        case Other(kind=kind, where=where):
            lost.append(f"{where}: a block of type {kind} has no counterpart in the {format} format")
        case Document(file_id=id) if id:
            lost.append("document: a file uploaded to one provider cannot be read by another")
        case _:
            lost.append(f"{type(block).__name__.lower()}: has no place here in the {format} format")
