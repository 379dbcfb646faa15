"""What routing reads of a reply: how it stopped, what its answer is, whether it holds what was asked for. No text.

Everything is the same in every process and on every machine (no `hash()`), because keys of replies are compared
across workers and in replays.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any
from zlib import crc32

import msgspec
import numpy as np

from tierwise.core.episode import ReplyFacts
from tierwise.core.errors import BadRequest
from tierwise.core.request import Request
from tierwise.wire.neutral import Stop, ToolUse
from tierwise.wire.schema import valid
from tierwise.wire.strict import Json, load

PLACES = 32
MAX_SKETCH_CHARACTERS = 8_000
MAX_LABEL_CHARACTERS = 40
COMPLETE: tuple[Stop, ...] = ("end", "tool_use", "stop_sequence")

# Fixed odd multipliers and offsets: one random-looking order of all hashes for each place.
_SEEDS = np.frombuffer(hashlib.shake_256(b"tierwise sketch 1").digest(PLACES * 16), dtype="<u8").reshape(2, PLACES)
_TIMES = (_SEEDS[0] | np.uint64(1))[:, None]
_PLUS = _SEEDS[1][:, None]
_SHIFT = np.uint64(32)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # Knuth's golden-ratio multiplier
_FIRST = np.uint64(0xC2B2AE3D27D4EB4F)

_ANSWER = re.compile(r"^\W*(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*[:=]?\W*\s*(.+?)\W*$", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(?:\.\d+)?%?\Z")
_SENTENCE = re.compile(r"[.!?:;,\n]\s")
_ENCODER = msgspec.json.Encoder(order="deterministic")


def facts(
    stop: Stop, shown: str, calls: list[ToolUse], request: Request | None, confidence: float | None, *, compared: bool
) -> ReplyFacts:
    """Of the first choice: its text and its calls. `request` None: nothing was asked that could be checked."""
    checks: tuple[tuple[str, bool], ...]
    checks = ("complete", stop in COMPLETE), ("nonempty", bool(calls or shown.strip()))
    if request is not None and (calls or request.prompt.structured != "none"):
        checks += tuple(_checks(request, shown, calls))
    return ReplyFacts(
        stop=stop,
        characters=len(shown) + sum([len(call.arguments) for call in calls]) if calls else len(shown),
        tool_calls=len(calls),
        confidence=confidence,
        answer_key=answer_key(shown, calls) if compared else "",
        sketch=sketch(shown) if compared else (),
        checks=checks,
    )


def _checks(request: Request, shown: str, calls: list[ToolUse]) -> list[tuple[str, bool]]:
    checks: list[tuple[str, bool]] = []
    structured = request.prompt.structured
    tree = msgspec.json.decode(request.body)
    if structured != "none" and not calls:
        value, parsed = _json(shown)
        schema = _asked_schema(tree) if structured == "schema" else {"type": "object"}
        checks.append(("schema", parsed and valid(value, schema)))
    if calls:
        schemas = _tool_schemas(tree)
        checks.append(("tools", all(_fits(call, schemas) for call in calls)))
    return checks


def _json(text: str) -> tuple[Any, bool]:
    """The text as one JSON value, strictly as a client's own parser would take it: no code fence around it."""
    try:
        return json.loads(text), True
    except (ValueError, RecursionError):
        return None, False


def _asked_schema(tree: Json) -> Any:
    match tree:
        case {"response_format": {"json_schema": {"schema": schema}}}:
            return schema
        case {"output_config": {"format": {"schema": schema}}} | {"output_format": {"schema": schema}}:
            return schema
    return {}


def _tool_schemas(tree: Json) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for tool in (*(tree.get("tools") or ()), *(tree.get("functions") or ())):
        inner = tool.get("function") or tool.get("custom") or tool
        name = inner.get("name") or tool.get("type")
        found[name] = inner.get("parameters") or inner.get("input_schema") or {}
    return found


def _fits(call: ToolUse, schemas: dict[str, Any]) -> bool:
    if call.name not in schemas:
        return False
    try:
        return valid(load(call.arguments.encode("utf-8", "replace") or b"{}"), schemas[call.name])
    except BadRequest:
        return False


def confidence(logprobs: list[float]) -> float | None:
    """Geometric mean of the token probabilities."""
    usable = [min(one, 0.0) for one in logprobs if one == one]
    return math.exp(sum(usable) / len(usable)) if usable else None


# ------------------------------------------------------------------------------------------------ the answer


def answer_key(shown: str, calls: list[ToolUse]) -> str:
    """A hash of the normalised final answer; "" where a text has no single answer. Equal keys, equal answers."""
    if calls:
        signature = sorted([call.name, _canonical(call.arguments) or call.arguments.strip()] for call in calls)
        return _key("tools", json.dumps(signature))
    text = shown.strip()
    if not text:
        return ""
    if text[0] in "{[" and (canonical := _canonical(text)) is not None:
        return _key("json", canonical)
    if (boxed := _boxed(text)) is not None:
        return _key("label", _label(boxed))
    lines = [line for line in text.splitlines() if line.strip()]
    if match := _ANSWER.match(lines[-1].strip()[:400]):
        answer = match.group(1)
        return _key("label", _label(answer)) if len(answer) <= 4 * MAX_LABEL_CHARACTERS else ""
    if len(lines) == 1 and len(text) <= MAX_LABEL_CHARACTERS and not _SENTENCE.search(text):
        return _key("label", _label(text))
    return ""


def _key(kind: str, answer: str) -> str:
    return hashlib.sha256(f"{kind}:{answer}".encode("utf-8", "replace")).hexdigest()[:16] if answer else ""


def _canonical(text: str) -> str | None:
    """JSON in one order and spelling; None for what is no JSON."""
    try:
        return _ENCODER.encode(msgspec.json.decode(text.strip() or "{}")).decode()
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _boxed(text: str) -> str | None:
    """What stands in the last \\boxed{…}, braces counted."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for index in range(start + 6, min(len(text), start + 406)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return text[start + 7 : index]
    return None


def _label(answer: str) -> str:
    """Case, quotes, brackets, end marks and the ways to write a number are no difference."""
    label = re.sub(r"\s+", " ", answer.strip().strip("*_`\"'()[]“”‘’$ .!;:,")).casefold()
    if _NUMBER.match(label):
        number = label.replace(",", "").replace("$", "").lstrip("+")
        percent = number.endswith("%")
        number = number.removesuffix("%")
        if "." in number:
            number = number.rstrip("0").rstrip(".")
        return (number.lstrip("0") or "0" if not number.startswith(("0.", "-")) else number) + ("%" if percent else "")
    return label


# ------------------------------------------------------------------------------------------------ the sketch


def sketch(text: str) -> tuple[int, ...]:
    """Min-hash of the word 3-grams, 32 places of 32 bits; () for no words. The share of equal places of two sketches
    estimates the overlap (Jaccard) of the texts: Broder, "On the resemblance and containment of documents", 1997."""
    words = text[:MAX_SKETCH_CHARACTERS].casefold().encode("utf-8", "replace").split()
    if not words:
        return ()
    # Unsigned 64-bit arithmetic wraps around, which is what a multiplicative hash wants.
    single = np.fromiter(map(crc32, words), dtype=np.uint64, count=len(words)) * _SPREAD
    if len(words) > 2:
        single = (single[:-2] * _FIRST + single[1:-1]) * _FIRST + single[2:]
    elif len(words) == 2:
        single = single[:1] * _FIRST + single[1:]
    lowest = (np.multiply(_TIMES, single) + _PLUS).min(axis=1) >> _SHIFT
    return tuple(lowest.tolist())
