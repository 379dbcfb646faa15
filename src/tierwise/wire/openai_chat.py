"""OpenAI chat completions as a caller speaks them: the strict reading. Translation is in `openai_request`."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from tierwise.core.errors import RequestError
from tierwise.core.money import Service
from tierwise.core.request import Prompt, Request, Structure, Turn
from tierwise.wire import faults
from tierwise.wire.hints import read_hints
from tierwise.wire.passthrough import CEILINGS
from tierwise.wire.strict import (
    MAX_N,
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

MAX_STOP = 4
MAX_SEARCHES = 10  # for one reply, where the request sets no limit of its own
MAX_STOP_CHARACTERS = 1_000
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
FIELDS = frozenset(
    (
        "model", "messages", "max_tokens", "max_completion_tokens", "n", "temperature", "top_p", "stop", "stream",
        "stream_options", "tools", "tool_choice", "parallel_tool_calls", "response_format", "metadata", "tierwise",
        "user", "seed", "logprobs", "top_logprobs", "logit_bias", "presence_penalty", "frequency_penalty",
        "reasoning_effort", "service_tier", "functions", "function_call", "store", "modalities", "audio", "prediction",
        "prompt_cache_key", "safety_identifier", "verbosity", "web_search_options", "session_id",
    )
)  # fmt: skip
# What a service tier is billed as; "auto" and "default" are the standard price.
SERVICES: dict[str | None, Service] = {"flex": "flex", "priority": "priority", "fast": "priority"}
_TOOLS = frozenset(("tools", "functions", "tool_choice", "function_call"))
_ENCODER = msgspec.json.Encoder(order="sorted")


class Tally:
    """What a reading counts on its way through the messages."""

    # How each count begins.
    images = 0
    audio = 0
    documents = 0
    references = 0
    embedded_bytes = 0
    tool_calls = 0
    replied: int | None = None  # where the last reply stands among the turns

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.calls: list[str] = []  # of tools, in the last reply: name, arguments
        self.media: list[str] = []  # addresses and data since the last reply

    def reply(self) -> None:
        """The model's own turn comes next."""
        self.replied = len(self.turns)
        self.calls, self.media = [], []

    def call(self, made: Any) -> None:
        """A call of a tool in the reply that is being read: its name and arguments. Ids are others each time, so they
        say nothing."""
        self.tool_calls += 1
        self.calls.append(_ENCODER.encode(made).decode())

    def tail_hash(self) -> str:
        """Of what the model did last and what came of it: equal as long as it does the same to the same end. Words
        around a call of a tool count for nothing, for they differ each time."""
        after, told = self.turns, _NOTHING
        if self.replied is not None:
            after = after[self.replied + bool(self.calls) :]
            told = _marked(self.calls) + _NOTHING
        for turn in after:
            text = turn.text
            told += f"{text}\0{len(text)}\0"
        told += _NOTHING
        if self.media:
            told += _marked(map(_sampled, self.media))
        return hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()

    def prompt(self, **known: Any) -> Prompt:
        """What was counted, with what is known of the rest of the body."""
        return Prompt(
            turns=tuple(self.turns),
            tool_calls=self.tool_calls,
            images=self.images,
            audio=self.audio,
            documents=self.documents,
            references=self.references,
            embedded_bytes=self.embedded_bytes,
            replied=self.replied is not None,
            tail_hash=self.tail_hash(),
            **known,
        )


def _marked(parts: Iterable[str]) -> str:
    """In one text, in which no two lists of parts are alike."""
    return "".join([f"{part}\0{len(part)}\0" for part in parts])


_NOTHING = _marked([""])


def _sampled(data: str) -> str:
    """Enough of a picture or a file to tell it from another one: two that differ differ in length or at an end."""
    return data if len(data) <= 2_048 else f"{len(data)} {data[:1_024]}{data[-1_024:]}"


class OpenAIChat:
    """The codec of `/v1/chat/completions`."""

    name = "openai_chat"

    def read(self, body: bytes, headers: dict[str, str]) -> Request:
        """Raises BadRequest naming the field. Unknown fields pass. `headers`: lower-case names."""
        tree = load(body)
        no_hosts(tree, FIELDS)
        model = model_name(tree)
        tally = Tally()
        for index, message in enumerate(messages(tree)):
            _message(message, index, tally)
        max_tokens = _ceiling(tree)
        n = whole(tree, "n", 1, MAX_N) or 1
        stream = flag(tree, "stream")
        want_usage = _options(tree) and stream
        tools, forced = _tools(tree)
        structured, schema_hash = _response_format(tree)
        prompt = tally.prompt(
            size_bytes=len(body),
            tools=tools,
            forced_tool=forced,
            structured=structured,
            schema_hash=schema_hash,
            max_tokens=max_tokens,
            searches=MAX_SEARCHES if tree.get("web_search_options") is not None else 0,
            n=n,
        )
        return Request(
            wire="openai_chat",
            body=body,
            model=model,
            prompt=prompt,
            hints=read_hints(tree, headers, tally.turns),
            stream=stream,
            want_usage=want_usage,
            service=SERVICES.get(tree.get("service_tier"), "standard"),
        )

    def error(self, error: RequestError, decision: str = "") -> bytes:
        return faults.openai_body(error, decision)

    def error_event(self, error: RequestError, decision: str = "") -> bytes:
        return b"data: " + faults.openai_body(error, decision) + b"\n\n"


def hash_schema(schema: Any) -> str:
    """The same for schemas that differ in the order of their keys only."""
    return hashlib.sha256(_ENCODER.encode(schema)).hexdigest()[:16]


def _message(message: Any, index: int, tally: Tally) -> None:
    if type(message) is dict:
        role, content = message.get("role"), message.get("content")
        if type(content) is str and (role == "user" or role == "system"):  # as most are: there is no more to them
            tally.turns.append(Turn(role, content))
            return
    at = f"messages[{index}]"
    record(message, at)
    role = message.get("role")
    if type(role) is not str or (mapped := ROLES.get(role)) is None:
        one_of(role, f"{at}.role", tuple(ROLES))
        return
    if role == "assistant":
        tally.reply()
    content = message.get("content")
    if type(content) is str:
        tally.turns.append(Turn(mapped, content))  # type: ignore[arg-type]
    elif type(content) is list:
        tally.turns.append(Turn(mapped, _parts(content, f"{at}.content", tally)))  # type: ignore[arg-type]
    elif content is None and role == "assistant":
        tally.turns.append(Turn("assistant", ""))
    else:
        raise bad(f"{at}.content", f"must be a string or an array of parts, not {kind(content)}")
    if role == "assistant":
        _calls(message, at, tally)
    elif role == "tool":
        text(message.get("tool_call_id"), f"{at}.tool_call_id")
    elif role == "function":
        text(message.get("name"), f"{at}.name")


def _parts(parts: list[Any], at: str, tally: Tally) -> str:
    texts: list[str] = []
    for index, part in enumerate(parts):
        where = f"{at}[{index}]"
        record(part, where)
        match part.get("type"):
            case "text":
                texts.append(text(part.get("text"), f"{where}.text"))
            case "refusal":
                texts.append(text(part.get("refusal"), f"{where}.refusal"))
            case "image_url":
                image = part.get("image_url")
                link = image if type(image) is str else record(image, f"{where}.image_url").get("url")
                url = text(link, f"{where}.image_url.url", empty=False)
                tally.images += 1
                tally.media.append(url)
                tally.embedded_bytes += len(url) if url.startswith("data:") else 0
            case "input_audio":
                audio = record(part.get("input_audio"), f"{where}.input_audio")
                tally.audio += 1
                tally.media.append(text(audio.get("data"), f"{where}.input_audio.data", empty=False))
                tally.embedded_bytes += len(tally.media[-1])
            case "file":
                file = record(part.get("file"), f"{where}.file")
                tally.documents += 1
                tally.media.append(str(file.get("file_data") or file.get("file_id") or ""))
                if (data := file.get("file_data")) is not None:
                    tally.embedded_bytes += len(text(data, f"{where}.file.file_data"))
                else:
                    tally.references += 1
            case str():
                tally.references += 1  # of some dialect that we do not know: its provider will judge it
            case other:
                raise bad(f"{where}.type", f"must be a string, not {kind(other)}")
    return texts[0] if len(texts) == 1 else "\n".join(texts)


def _calls(message: Json, at: str, tally: Tally) -> None:
    if (calls := message.get("tool_calls")) is not None:
        for index, call in enumerate(items(calls, f"{at}.tool_calls")):
            where = f"{at}.tool_calls[{index}]"
            record(call, where)
            text(call.get("id"), f"{where}.id")
            made = call.get("custom")  # a tool of free text
            if (function := call.get("function")) is not None or call.get("type", "function") == "function":
                record(function, f"{where}.function")
                text(function.get("name"), f"{where}.function.name", empty=False)
                text(function.get("arguments"), f"{where}.function.arguments")
                made = function
            tally.call(made)
    if (call := message.get("function_call")) is not None:
        record(call, f"{at}.function_call")
        text(call.get("name"), f"{at}.function_call.name", empty=False)
        text(call.get("arguments"), f"{at}.function_call.arguments")
        tally.call(call)


def _ceiling(tree: Json) -> int | None:
    if CEILINGS.isdisjoint(tree):
        return None
    old = whole(tree, "max_tokens", 1, MAX_TOKENS)
    new = whole(tree, "max_completion_tokens", 1, MAX_TOKENS)
    if old is not None and new is not None and old != new:
        raise bad("max_tokens", f"is {old} but max_completion_tokens is {new}: send one of the two")
    return new if new is not None else old


def _stop(tree: Json, key: str) -> None:
    if (stop := tree.get(key)) is None:
        return
    many = [stop] if type(stop) is str else items(stop, key)
    if len(many) > MAX_STOP:
        raise bad(key, f"must hold at most {MAX_STOP} sequences, not {len(many)}")
    for index, one in enumerate(many):
        if len(text(one, f"{key}[{index}]")) > MAX_STOP_CHARACTERS:
            raise bad(f"{key}[{index}]", f"must be at most {MAX_STOP_CHARACTERS} characters")


def _text(tree: Json, key: str) -> None:
    if (value := tree.get(key)) is not None:
        text(value, key)


def _record(tree: Json, key: str) -> None:
    if (value := tree.get(key)) is not None:
        record(value, key)


def _number(low: float, high: float) -> Callable[[Json, str], object]:
    return functools.partial(number, low=low, high=high)


def _whole(low: int, high: int) -> Callable[[Json, str], object]:
    return functools.partial(whole, low=low, high=high)


# What the fields must be of which we read nothing more; of several that are wrong the first in this order is named.
_CHECKS: dict[str, Callable[[Json, str], object]] = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "seed": _whole(-(2**63), 2**63 - 1),
    "top_logprobs": _whole(0, 20),
    "logprobs": flag,
    "parallel_tool_calls": flag,
    "stop": _stop,
    "user": _text,
    "reasoning_effort": _text,
    "service_tier": _text,
    "metadata": _record,
    "logit_bias": _record,
}
_CHECKED = frozenset(_CHECKS)
_PLACES = {key: place for place, key in enumerate(_CHECKS)}


def _options(tree: Json) -> bool:
    """Checks the fields that are passed on as they are. Returns whether the caller wants the usage chunk."""
    checked = _CHECKED.intersection(tree)
    for key in sorted(checked, key=_PLACES.__getitem__) if len(checked) > 1 else checked:
        _CHECKS[key](tree, key)
    if (options := tree.get("stream_options")) is None:
        return False
    return flag(record(options, "stream_options"), "include_usage", "stream_options.include_usage")


def _tools(tree: Json) -> tuple[tuple[str, ...], bool]:
    """The names of the tools, and whether the reply must call one."""
    if _TOOLS.isdisjoint(tree):
        return (), False
    names: list[str] = []
    for index, tool in enumerate(items([] if tree.get("tools") is None else tree["tools"], "tools")):
        where = f"tools[{index}]"
        record(tool, where)
        match text(tool.get("type", "function"), f"{where}.type"):
            case "function":
                function = record(tool.get("function"), f"{where}.function")
                names.append(text(function.get("name"), f"{where}.function.name", empty=False))
                if (schema := function.get("parameters")) is not None:
                    record(schema, f"{where}.function.parameters")
            case "custom":
                custom = record(tool.get("custom"), f"{where}.custom")
                names.append(text(custom.get("name"), f"{where}.custom.name", empty=False))
            case other:
                names.append(other)
    for index, function in enumerate(items(tree.get("functions") or [], "functions")):
        record(function, f"functions[{index}]")
        names.append(text(function.get("name"), f"functions[{index}].name", empty=False))
    match tree.get("tool_choice", tree.get("function_call")):
        case None | "auto" | "none":
            return tuple(names), False
        case "required" | "any":
            return tuple(names), True
        case {"type": "allowed_tools", "allowed_tools": {"mode": mode}}:
            return tuple(names), mode == "required"
        case dict():
            return tuple(names), True
        case other:
            param = "tool_choice" if "tool_choice" in tree else "function_call"
            one_of(other, param, ("auto", "none", "required"))
            raise bad(param, "must be auto, none, required or an object")


def _response_format(tree: Json) -> tuple[Structure, str]:
    form = tree.get("response_format")
    if form is None:
        return "none", ""
    match text(record(form, "response_format").get("type"), "response_format.type"):
        case "json_object":
            return "json", ""
        case "json_schema":
            at = "response_format.json_schema"
            schema = record(form.get("json_schema"), at).get("schema")
            return "schema", hash_schema(record(schema if schema is not None else {}, f"{at}.schema"))
    return "none", ""
