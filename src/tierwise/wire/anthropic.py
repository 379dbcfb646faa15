"""Anthropic Messages as a caller speaks it: the strict reading of a request. Translation is in `anthropic_request`."""

from __future__ import annotations

from typing import Any

from tierwise.core.errors import BadRequest, RequestError
from tierwise.core.request import Request, Structure, Turn
from tierwise.wire import faults
from tierwise.wire.hints import read_hints
from tierwise.wire.openai_chat import MAX_SEARCHES, Tally, hash_schema
from tierwise.wire.strict import (
    MAX_TOKENS,
    Json,
    bad,
    flag,
    items,
    kind,
    load,
    messages,
    model_name,
    no_hosts,
    number,
    one_of,
    record,
    text,
    whole,
)

MAX_STOP = 256  # Anthropic names no limit; above this nobody means it
MAX_STOP_CHARACTERS = 1_000
ROLES = ("user", "assistant", "system")
FIELDS = frozenset(
    (
        "model", "messages", "system", "max_tokens", "stop_sequences", "temperature", "top_p", "top_k", "stream",
        "tools", "tool_choice", "thinking", "output_config", "output_format", "metadata", "tierwise", "service_tier",
        "container", "context_management", "mcp_servers", "cache_control", "session_id",
    )
)  # fmt: skip


# Blocks that hold their whole text in the body.
SPELLED_OUT = frozenset(
    ("server_tool_use", "web_search_tool_result", "web_fetch_tool_result", "search_result", "mcp_tool_use",
     "mcp_tool_result", "code_execution_tool_result", "bash_code_execution_tool_result",
     "text_editor_code_execution_tool_result", "tool_reference")
)  # fmt: skip


class Anthropic:
    """The codec of `/v1/messages`."""

    name = "anthropic"

    def read(self, body: bytes, headers: dict[str, str]) -> Request:
        """Raises BadRequest naming the field. Unknown fields pass. `headers`: lower-case names."""
        return self._read(body, headers, counting=False)

    def read_count(self, body: bytes, headers: dict[str, str]) -> Request:
        """The body of `/v1/messages/count_tokens`: the same, without `max_tokens`."""
        return self._read(body, headers, counting=True)

    def _read(self, body: bytes, headers: dict[str, str], *, counting: bool) -> Request:
        tree = load(body)
        no_hosts(tree, FIELDS)
        _unthreaded(tree)
        model = model_name(tree)
        tally = Tally()
        _system(tree, tally)
        for index, message in enumerate(messages(tree)):
            _message(message, f"messages[{index}]", tally)
        max_tokens = whole(tree, "max_tokens", 1, MAX_TOKENS)
        if max_tokens is None and not counting:
            raise bad("max_tokens", "is missing: the Messages format demands it")
        _options(tree)
        tools, forced = _tools(tree)
        structured, schema_hash = _output_format(tree)
        prompt = tally.prompt(
            size_bytes=len(body),
            tools=tools,
            forced_tool=forced,
            structured=structured,
            schema_hash=schema_hash,
            max_tokens=max_tokens,
            searches=_searches(tree),
        )
        betas = headers.get("anthropic-beta", "")
        return Request(
            wire="anthropic",
            body=body,
            model=model,
            prompt=prompt,
            hints=read_hints(tree, headers, tally.turns),
            stream=flag(tree, "stream"),
            want_usage=True,
            service="priority" if tree.get("speed") == "fast" else "standard",
            betas=tuple(beta for part in betas.split(",") if (beta := part.strip()) and beta.isprintable()),
        )

    def error(self, error: RequestError, decision: str = "") -> bytes:
        return faults.anthropic_body(error, decision)

    def error_event(self, error: RequestError, decision: str = "") -> bytes:
        return b"event: error\ndata: " + faults.anthropic_body(error, decision) + b"\n\n"


def _system(tree: Json, tally: Tally) -> None:
    system = tree.get("system")
    if system is None:
        return
    if type(system) is str:
        tally.turns.append(Turn("system", system))
        return
    if type(system) is not list:
        raise bad("system", f"must be a string or an array of text blocks, not {kind(system)}")
    texts = []
    for index, block in enumerate(system):
        at = f"system[{index}]"
        one_of(record(block, at).get("type"), f"{at}.type", ("text",))
        texts.append(text(block.get("text"), f"{at}.text"))
    tally.turns.append(Turn("system", "\n".join(texts)))


def _message(message: Any, at: str, tally: Tally) -> None:
    record(message, at)
    role = one_of(message.get("role"), f"{at}.role", ROLES)
    if role == "assistant":
        tally.reply()
    content = message.get("content")
    if type(content) is str:
        tally.turns.append(Turn(role, content))  # type: ignore[arg-type]
        return
    if type(content) is not list:
        raise bad(f"{at}.content", f"must be a string or an array of blocks, not {kind(content)}")
    texts: list[str] = []
    results = 0
    for index, block in enumerate(content):
        where = f"{at}.content[{index}]"
        record(block, where)
        if block.get("type") == "tool_result":
            results += 1
            tally.turns.append(Turn("tool", _result(block, where, tally)))
        else:
            _block(block, where, tally, texts)
    if texts or not results:
        tally.turns.append(Turn(role, "\n".join(texts)))  # type: ignore[arg-type]


def _block(block: Json, at: str, tally: Tally, texts: list[str]) -> None:
    match block.get("type"):
        case "text":
            texts.append(text(block.get("text"), f"{at}.text"))
        case "image":
            tally.images += 1
            _source(block, at, tally)
        case "document":
            tally.documents += 1
            _source(block, at, tally)
        case "tool_use":
            text(block.get("id"), f"{at}.id", empty=False)
            text(block.get("name"), f"{at}.name", empty=False)
            record(block.get("input"), f"{at}.input")
            tally.call((block["name"], block["input"]))
        case "thinking":
            text(block.get("thinking"), f"{at}.thinking")
            if (signature := block.get("signature")) is not None:
                text(signature, f"{at}.signature")
        case "redacted_thinking":
            text(block.get("data"), f"{at}.data")
        case str() as unknown:
            # A block of a newer version: its provider will judge it. What the provider's tools found is spelled out.
            tally.references += unknown not in SPELLED_OUT
        case other:
            raise bad(f"{at}.type", f"must be a string, not {kind(other)}")


def _result(block: Json, at: str, tally: Tally) -> str:
    text(block.get("tool_use_id"), f"{at}.tool_use_id", empty=False)
    flag(block, "is_error", f"{at}.is_error")
    content = block.get("content")
    if content is None:
        return ""
    if type(content) is str:
        return content
    texts: list[str] = []
    for index, inner in enumerate(items(content, f"{at}.content")):
        where = f"{at}.content[{index}]"
        _block(record(inner, where), where, tally, texts)
    return "\n".join(texts)


def _source(block: Json, at: str, tally: Tally) -> None:
    source = record(block.get("source"), f"{at}.source")
    match text(source.get("type"), f"{at}.source.type"):
        case "base64":
            text(source.get("media_type"), f"{at}.source.media_type")
            tally.media.append(text(source.get("data"), f"{at}.source.data", empty=False))
            tally.embedded_bytes += len(tally.media[-1])
        case "url":
            tally.media.append(text(source.get("url"), f"{at}.source.url", empty=False))
            tally.references += block["type"] == "document"
        case "text":
            tally.media.append(text(source.get("data"), f"{at}.source.data"))
        case _:  # a file by its id, or what a newer version brings
            tally.media.append(str(source.get("file_id") or ""))
            tally.references += 1


def _unthreaded(tree: Json) -> None:
    """A thread lives at one provider and its turns carry only what is new: nobody here could choose, count or hold for
    what the request does not say. The SDKs know this code by its details; their tool runners then send everything."""
    if tree.get("thread") is not None:
        raise BadRequest(
            "thread: conversations are not kept here; send every message with each request, without `thread`.",
            code="thread_unsupported_request",
            param="thread",
            metadata={"unsupported": ["thread"]},
        )


def _options(tree: Json) -> None:
    number(tree, "temperature", 0, 1)
    number(tree, "top_p", 0, 1)
    whole(tree, "top_k", 0, 2**31 - 1)
    if (stop := tree.get("stop_sequences")) is not None:
        if len(items(stop, "stop_sequences")) > MAX_STOP:
            raise bad("stop_sequences", f"must hold at most {MAX_STOP} sequences, not {len(stop)}")
        for index, one in enumerate(stop):
            if len(text(one, f"stop_sequences[{index}]")) > MAX_STOP_CHARACTERS:
                raise bad(f"stop_sequences[{index}]", f"must be at most {MAX_STOP_CHARACTERS} characters")
    if (metadata := tree.get("metadata")) is not None and (
        user := record(metadata, "metadata").get("user_id")
    ) is not None:
        text(user, "metadata.user_id")
    if (thinking := tree.get("thinking")) is not None:
        mode = text(record(thinking, "thinking").get("type"), "thinking.type")
        budget = whole(thinking, "budget_tokens", 1, MAX_TOKENS, "thinking.budget_tokens")
        if mode == "enabled" and budget is None:
            raise bad("thinking.budget_tokens", "is missing: thinking of type enabled needs it")
    if (tier := tree.get("service_tier")) is not None:
        text(tier, "service_tier")


def _tools(tree: Json) -> tuple[tuple[str, ...], bool]:
    names = []
    for index, tool in enumerate(items([] if tree.get("tools") is None else tree["tools"], "tools")):
        at = f"tools[{index}]"
        record(tool, at)
        # Toolsets and the like have a type and no name of their own.
        name = tool.get("name", tool.get("type") if tool.get("type") not in (None, "custom") else None)
        names.append(text(name, f"{at}.name", empty=False))
        if (schema := tool.get("input_schema")) is not None:
            record(schema, f"{at}.input_schema")
    choice = tree.get("tool_choice")
    if choice is None:
        return tuple(names), False
    mode = one_of(record(choice, "tool_choice").get("type"), "tool_choice.type", ("auto", "any", "tool", "none"))
    flag(choice, "disable_parallel_tool_use", "tool_choice.disable_parallel_tool_use")
    if mode == "tool":
        text(choice.get("name"), "tool_choice.name", empty=False)
    return tuple(names), mode in ("any", "tool")


def _searches(tree: Json) -> int:
    """How often the provider may search the web for this request."""
    found = 0
    for tool in tree.get("tools") or ():
        if str(tool.get("type", "")).startswith("web_search"):
            found += whole(tool, "max_uses", 1, 1_000) or MAX_SEARCHES
    return found


def _output_format(tree: Json) -> tuple[Structure, str]:
    config = tree.get("output_config")
    form, at = tree.get("output_format"), "output_format"  # its name while it was in beta
    if config is not None and (inner := record(config, "output_config").get("format")) is not None:
        form, at = inner, "output_config.format"
    if form is None:
        return "none", ""
    if text(record(form, at).get("type"), f"{at}.type") != "json_schema":
        return "none", ""
    return "schema", hash_schema(record(form.get("schema"), f"{at}.schema"))
