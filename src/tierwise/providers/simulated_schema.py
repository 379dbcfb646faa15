"""Makes a value that satisfies a JSON schema, filled from a prompt where the prompt has something that fits.

Understood: type (and lists of types), properties, required, items, prefixItems, min/maxItems, uniqueItems, enum, const,
anyOf, oneOf (its first that is not null), allOf, local $ref, min/maxLength, simple patterns, the usual formats, and the
bounds and multiples of numbers. What else a schema may say is ignored.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec

from tierwise.providers.simulated_mind import dates_in, emails_in, names_in, numbers_in, topic_of
from tierwise.providers.simulated_skill import window_of

MAX_DEPTH = 12
MAX_PARTS = 64  # of an allOf
MAX_VALUES = 5_000  # in one reply; a schema that asks for more is not satisfied
_OPTIONAL_DEPTH = 3  # below this, only what is required
_MAX_FILL = 4_096  # characters or items made to satisfy a minimum

_FORMATS = {
    "date": "2026-01-15",
    "date-time": "2026-01-15T09:30:00Z",
    "time": "09:30:00Z",
    "duration": "P1D",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "8c5b1d2e-6f3a-4b7c-9d0e-1f2a3b4c5d6e",
}
_KINDS: dict[str, type | tuple[type, ...]] = {
    "properties": dict,
    "items": (dict, bool),
    "$ref": str,
    "pattern": str,
    "format": str,
    **dict.fromkeys(("required", "enum", "prefixItems", "anyOf", "oneOf", "allOf"), list),
}
_MAX_SEARCHED = 100_000  # characters of a prompt
_MAX_TRIES = 64  # braces from which a schema may begin
_DEMAND = re.compile(r"\b(?:match|follow|conform|adhere|compatible|valid|instance|respond|return|output)", re.I)
_ATOM = re.compile(r"(\[[^\]]+\]|\\.|[^\\\[\]()|])(?:\{(\d{1,4})(?:,\d{0,4})?\}|([*+?]))?")


class Clues(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt offers to fill a schema with. `answer`: the reply in text, `value`: its bare result."""

    text: str
    names: tuple[str, ...]
    numbers: tuple[str, ...]
    emails: tuple[str, ...]
    dates: tuple[str, ...]
    answer: str = ""
    value: str = ""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A schema that a prompt spells out. `rest`: the user's text without it; `fenced`: the reply goes into a fence."""

    schema: dict[str, Any]
    rest: str
    fenced: bool


class _Root:
    """The whole schema, for its references, and how many more values may be made."""

    __slots__ = ("left", "schema")

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self.left = MAX_VALUES


def schema_in(system: str, text: str) -> Asked | None:
    """The schema that the reply must satisfy, where the prompt says so in words: how clients ask for JSON that do not
    count on the provider's own way. The last one in the user's text, else in the system prompt; earlier ones are
    examples."""
    both = f"{system}\n{text}"
    if '"properties"' not in both or "json" not in both.lower() or not _DEMAND.search(both[:_MAX_SEARCHED]):
        return None
    for place, said in enumerate((text, system)):
        if (found := _last_schema(said[-_MAX_SEARCHED:])) is not None:
            schema, spelled = found
            return Asked(schema=schema, rest=text if place else text.replace(spelled, ""), fenced="```json" in both)
    return None


def _last_schema(text: str) -> tuple[dict[str, Any], str] | None:
    found, place, decoder = None, text.find("{"), json.JSONDecoder()
    for _ in range(_MAX_TRIES):
        if place < 0:
            break
        end = place + 1
        try:
            value, end = decoder.raw_decode(text, place)
            # A prompt that spells out its tools has schemas as well, and does not call them so.
            if isinstance(value.get("properties"), dict) and "schema" in text[max(0, place - 80) : place].lower():
                found = value, text[place:end]
        except (ValueError, RecursionError):
            pass
        place = text.find("{", end)
    return found


def clues_of(text: str, answer: str = "", value: str = "") -> Clues:
    head = window_of(text)
    return Clues(
        text=text,
        names=names_in(head),
        numbers=numbers_in(head),
        emails=emails_in(head),
        dates=dates_in(head),
        answer=answer,
        value=value,
    )


def fill(schema: Any, clues: Clues, index: int = 0) -> Any:
    """A value for this schema. `index` picks among several clues that fit, for the calls or items after the first."""
    return _fill(schema, clues, "", index, _Root(schema), 0)


def _fill(schema: Any, clues: Clues, name: str, index: int, root: _Root, depth: int) -> Any:
    root.left -= 1
    if not isinstance(schema, dict) or root.left < 0:
        return clues.answer or "value"
    schema = _flat(schema, root, depth)
    if "const" in schema:
        return schema["const"]
    if isinstance(options := schema.get("enum"), list) and options:
        return _option(options, clues, index)
    match _type(schema):
        case "object":
            return _object(schema, clues, index, root, depth)
        case "array":
            return _array(schema, clues, name, index, root, depth)
        case "integer":
            return int(_number(schema, clues, name, index, whole=True))
        case "number":
            return _number(schema, clues, name, index, whole=False)
        case "boolean":
            return "not" not in clues.text.lower()
        case "null":
            return None
        case _:
            return _string(schema, clues, name, index)


def _flat(schema: dict[str, Any], root: _Root, depth: int = 0) -> dict[str, Any]:
    """The schema with its references, alternatives and conjunctions written out on the first level."""
    for _ in range(MAX_DEPTH):
        schema = _sound(schema)
        if isinstance(reference := schema.get("$ref"), str):
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            schema = {**_resolve(reference, root), **rest}
        elif options := next((schema[key] for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list)), None):
            rest = {key: value for key, value in schema.items() if key not in ("anyOf", "oneOf")}
            usable = [option for option in options if isinstance(option, dict)]
            rank = _rank if depth < _OPTIONAL_DEPTH else _deep_rank
            schema = {**rest, **sorted(usable, key=rank)[0]} if usable else rest
        elif isinstance(parts := schema.get("allOf"), list):
            rest = {key: value for key, value in schema.items() if key != "allOf"}
            deep = depth > 2 * MAX_DEPTH or len(parts) > MAX_PARTS
            schema = rest if deep else _merged(rest, parts, root, depth + 1)
        else:
            return schema
    return _sound({key: value for key, value in schema.items() if key not in ("$ref", "anyOf", "oneOf", "allOf")})


def _sound(schema: dict[str, Any]) -> dict[str, Any]:
    """Without the keywords whose values cannot mean anything."""
    return {key: value for key, value in schema.items() if isinstance(value, _KINDS.get(key, object))}


def _rank(option: dict[str, Any]) -> tuple[bool, bool]:
    """Something rather than nothing, and a leaf rather than a reference."""
    return option.get("type") == "null", "$ref" in option


def _deep_rank(option: dict[str, Any]) -> tuple[bool, bool]:
    """Nothing rather than a reference, so that a schema that contains itself comes to an end."""
    return "$ref" in option, option.get("type") == "null"


def _merged(schema: dict[str, Any], parts: list[Any], root: _Root, depth: int) -> dict[str, Any]:
    properties, required = dict(schema.get("properties") or {}), list(schema.get("required") or [])
    for part in parts:
        if isinstance(part, dict):
            root.left -= 1
            part = _flat(part, root, depth) if root.left > 0 else {}
            properties |= part.get("properties") or {}
            required += part.get("required") or []
            schema = {**schema, **part}
    return {**schema, "properties": properties, "required": required} if properties else schema


def _resolve(reference: str, root: _Root) -> dict[str, Any]:
    found = root.schema
    for part in reference.removeprefix("#").strip("/").split("/"):
        if part:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _type(schema: dict[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if isinstance(kind, str):
        return kind
    if "properties" in schema or "required" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else "string"


def _option(options: list[Any], clues: Clues, index: int) -> Any:
    """The option that the answer or the prompt names, else by turns."""
    for text in (clues.answer.lower(), clues.text.lower()):
        named = [one for one in options if isinstance(one, str) and one and one.lower() in text]
        if named:
            return named[index % len(named)]
    return options[index % len(options)]


def _object(schema: dict[str, Any], clues: Clues, index: int, root: _Root, depth: int) -> dict[str, Any]:
    properties = schema.get("properties") or {}
    required = [key for key in schema.get("required") or () if isinstance(key, str)]
    names = required or (list(properties) if depth < _OPTIONAL_DEPTH else [])
    if depth >= MAX_DEPTH:
        names = []
    # Fields of one kind take the clues in turn: "add 17 and 25", "from Paris to Rome".
    seen: dict[str, int] = {}
    made = {}
    for key in names:
        field = properties.get(key, {})
        kind = _type(_flat(field, root)) if isinstance(field, dict) else ""
        made[key] = _fill(field, clues, key, index + seen.get(kind, 0), root, depth + 1)
        seen[kind] = seen.get(kind, 0) + 1
    return made


def _array(schema: dict[str, Any], clues: Clues, name: str, index: int, root: _Root, depth: int) -> list[Any]:
    least = _size(schema, "minItems", 0)
    most = _size(schema, "maxItems", _MAX_FILL)
    several = max(len(clues.names), len(clues.numbers), len(clues.emails), 1)
    wanted = min(several, 5) if depth < _OPTIONAL_DEPTH else 0
    count = min(most, max(least, wanted))
    first = schema.get("prefixItems") or []
    items = schema.get("items", {})
    if items is False:
        count = min(count, len(first))
    kinds = [first[i] if i < len(first) else items for i in range(count)]
    made = [_fill(kind, clues, name, index + i, root, depth + 1) for i, kind in enumerate(kinds)]
    if not schema.get("uniqueItems"):
        return made
    distinct: dict[bytes, Any] = {}
    for i, value in enumerate(made):
        if msgspec.json.encode(value) in distinct and len(distinct) < least:
            value = (
                f"{value} {i + 1}" if isinstance(value, str) else value + i if isinstance(value, int | float) else value
            )
        distinct[msgspec.json.encode(value)] = value
    return list(distinct.values())


def _number(schema: dict[str, Any], clues: Clues, name: str, index: int, whole: bool) -> int | float:
    low, high = _bounds(schema, whole)
    step = schema.get("multipleOf")
    step = step if isinstance(step, int | float) and step > 0 else (1 if whole else None)
    value = _clue_number(clues, name, index, whole)
    if any(word in name.lower() for word in ("score", "rating", "confidence", "probability")) and high < math.inf:
        value = low + 0.75 * (high - low) if low > -math.inf else 0.75 * high
    value = min(high, max(low, value))
    if step is not None:
        value = math.ceil(round(value / step, 9)) * step
        value = value if value <= high else math.floor(round(high / step, 9)) * step
        value = value if whole else round(value, 12)
    return int(value) if whole or (float(value).is_integer() and abs(value) < 2**53) else float(value)


def _bounds(schema: dict[str, Any], whole: bool) -> tuple[float, float]:
    def bound(key: str, default: float) -> float:
        value = schema.get(key, default)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else default

    low, high = bound("minimum", -math.inf), bound("maximum", math.inf)
    above, below = bound("exclusiveMinimum", -math.inf), bound("exclusiveMaximum", math.inf)
    # Strictly inside an open bound: a whole number off it, or a small part of the interval.
    gap = 1.0 if whole or below - above > 2 else (below - above) / 8
    if -math.inf < above >= low:
        low = above + gap if not whole else math.floor(above) + 1
    if math.inf > below <= high:
        high = below - gap if not whole else math.ceil(below) - 1
    return low, high


def _clue_number(clues: Clues, name: str, index: int, whole: bool) -> float:
    told = clues.value if clues.value and not _is_operand(name) else ""
    text = told or (clues.numbers[index % len(clues.numbers)] if clues.numbers else "1")
    try:
        value = float(text)
    except ValueError:
        return 1.0
    return float(math.floor(value)) if whole else value


def _is_operand(name: str) -> bool:
    """Whether a field is one of the numbers that go in, rather than the result that comes out."""
    return len(name) == 1 or name.lower() in ("left", "right", "first", "second", "num1", "num2", "x1", "x2")


def _string(schema: dict[str, Any], clues: Clues, name: str, index: int) -> str:
    least, most = _size(schema, "minLength", 0), _size(schema, "maxLength", _MAX_FILL)
    if isinstance(pattern := schema.get("pattern"), str):
        return _patterned(pattern, _clue_string(clues, name, index), least, most)
    form = schema.get("format")
    if isinstance(form, str) and form in _FORMATS:
        known = {"email": clues.emails, "date": tuple(d for d in clues.dates if re.fullmatch(r"\d{4}-\d\d-\d\d", d))}
        found = known.get(form, ())
        return found[index % len(found)] if found else _FORMATS[form]
    text = _clue_string(clues, name, index)
    if len(text) < least:
        text = text.ljust(least, ".")
    return text[:most]


def _clue_string(clues: Clues, name: str, index: int) -> str:
    lowered = name.lower()
    if "mail" in lowered and clues.emails:
        return clues.emails[index % len(clues.emails)]
    if ("date" in lowered or "day" in lowered) and clues.dates:
        return clues.dates[index % len(clues.dates)]
    if any(word in lowered for word in ("query", "question", "prompt", "text", "content", "message", "input")):
        return clues.text.strip()[:500]
    if any(word in lowered for word in ("answer", "reply", "response", "result", "summary", "explanation", "reason")):
        return clues.answer or clues.text.strip()[:500]
    if "expression" in lowered and (match := re.search(r"\d[\d\s.()+*/^-]*\d", clues.text)):
        return match.group()
    if clues.names:
        return clues.names[index % len(clues.names)]
    return topic_of(clues.text)


def _patterned(pattern: str, clue: str, least: int, most: int) -> str:
    """A short text that matches: the clue if it does, one spelled from a simple pattern, else the best guess.

    Only short texts are tried, so that a pattern that explodes has little to explode on.
    """
    try:
        compiled = re.compile(pattern)
    except re.error:
        return clue[:most].ljust(least, ".")
    spelled = "".join(
        _spell(atom, int(times or 1) if sign != "*" else 0) for atom, times, sign in _ATOM.findall(pattern)
    )
    tries = (clue[:16], spelled[:64], "abc", "ABC", "a", "A", "1", "123", "12345", "ABC-123", *_FORMATS.values())
    for text in tries:
        if least <= len(text) <= most and compiled.search(text):
            return text
    return spelled or clue[:most]


def _spell(atom: str, times: int) -> str:
    if atom in "^$":
        return ""
    if atom.startswith("["):
        inner = atom[1:-1]
        letter = next((one for one in "aA0-_ .#" if inner[:1] == "^" or re.match(atom, one)), inner[:1])
    elif atom.startswith("\\"):
        letter = {"d": "1", "w": "a", "s": " ", "b": "", "S": "a", "D": "a", "W": "-"}.get(atom[1], atom[1])
    else:
        letter = "a" if atom == "." else atom
    return letter * min(times, _MAX_FILL)


def _size(schema: dict[str, Any], key: str, default: int) -> int:
    value = schema.get(key, default)
    return min(_MAX_FILL, max(0, value)) if isinstance(value, int) else default
