"""JSON Schema, as far as structured outputs and tool arguments use it. Pure, bounded, never raising.

Keywords outside the subset (`format`, `if`, `not`, `patternProperties`, …) are not judged, so they never reject what
a full validator would accept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 64
MAX_STEPS = 100_000  # instances are bounded by the reply's size; this bounds a schema that multiplies by $ref
MAX_PATTERN_CHARACTERS = 200  # a pattern comes from the caller, and Python's matcher can be made to run for ever

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: type(value) is dict,
    "array": lambda value: type(value) is list,
    "string": lambda value: type(value) is str,
    "boolean": lambda value: type(value) is bool,
    "null": lambda value: value is None,
    "integer": lambda value: type(value) is int or (type(value) is float and value.is_integer()),
    "number": lambda value: type(value) is int or type(value) is float,
}
# Repetition of a group that itself repeats is what makes matching explode; such patterns are not judged.
_RISKY = re.compile(r"[*+}]\)?[*+{?]|\([^)]*[*+{][^)]*\)[*+{]")


class _Exhausted(Exception):
    pass


class _Check:
    __slots__ = ("root", "steps")

    def __init__(self, root: Any) -> None:
        self.root = root
        self.steps = 0

    def holds(self, value: Any, schema: Any, depth: int = 0) -> bool:
        self.steps += 1
        if self.steps > MAX_STEPS or depth > MAX_DEPTH:
            raise _Exhausted
        if type(schema) is bool:
            return schema
        if type(schema) is not dict:
            return True
        if type(reference := schema.get("$ref")) is str and not self.holds(value, self.find(reference), depth + 1):
            return False
        return (
            _is_type(value, schema.get("type"))
            and ("enum" not in schema or _among(value, schema["enum"]))
            and ("const" not in schema or _same(value, schema["const"]))
            and self._combined(value, schema, depth)
            and self._object(value, schema, depth)
            and self._array(value, schema, depth)
            and _scalar(value, schema)
        )

    def find(self, reference: str) -> Any:
        """What `#/$defs/Name` points to; True, which everything satisfies, for what is not here."""
        if not reference.startswith("#"):
            return True
        node = self.root
        for part in reference[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if type(node) is dict and key in node:
                node = node[key]
            else:
                return True
        return node

    def _combined(self, value: Any, schema: Any, depth: int) -> bool:
        every, some, one = schema.get("allOf"), schema.get("anyOf"), schema.get("oneOf")
        if type(every) is list and not all(self.holds(value, inner, depth + 1) for inner in every):
            return False
        if type(some) is list and not any(self.holds(value, inner, depth + 1) for inner in some):
            return False
        return type(one) is not list or sum(self.holds(value, inner, depth + 1) for inner in one) == 1

    def _object(self, value: Any, schema: Any, depth: int) -> bool:
        if type(value) is not dict:
            return True
        required = schema.get("required")
        if type(required) is list and not all(key in value for key in required if type(key) is str):
            return False
        known = schema.get("properties")
        known = known if type(known) is dict else {}
        rest = schema.get("additionalProperties", True)
        if "patternProperties" in schema:
            rest = True
        for key, inner in value.items():
            if not self.holds(inner, known.get(key, rest), depth + 1):
                return False
        return _within(len(value), schema.get("minProperties"), schema.get("maxProperties"))

    def _array(self, value: Any, schema: Any, depth: int) -> bool:
        if type(value) is not list:
            return True
        first = schema.get("prefixItems")
        first = first if type(first) is list else []
        rest = schema.get("items", True)
        for index, inner in enumerate(value):
            if not self.holds(inner, first[index] if index < len(first) else rest, depth + 1):
                return False
        if schema.get("uniqueItems") is True and any(_among(one, value[:index]) for index, one in enumerate(value)):
            return False
        return _within(len(value), schema.get("minItems"), schema.get("maxItems"))


def valid(value: Any, schema: Any) -> bool:
    """Whether the value satisfies the schema. False for a schema too deep or too large to be judged."""
    try:
        return _Check(schema).holds(value, schema)
    except (_Exhausted, RecursionError):
        return False


def _is_type(value: Any, wanted: Any) -> bool:
    if wanted is None:
        return True
    names = wanted if type(wanted) is list else [wanted]
    return any(type(name) is str and _TYPES.get(name, bool)(value) for name in names)


def _same(left: Any, right: Any) -> bool:
    """Equal as JSON: 1 is 1.0, but never true."""
    if type(left) is bool or type(right) is bool:
        return left is right
    if type(left) is list and type(right) is list:
        return len(left) == len(right) and all(map(_same, left, right))
    if type(left) is dict and type(right) is dict:
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    return bool(left == right)


def _among(value: Any, allowed: Any) -> bool:
    return type(allowed) is not list or any(_same(value, one) for one in allowed)


def _number(value: Any) -> bool:
    return type(value) is int or type(value) is float


def _within(size: float, low: Any, high: Any) -> bool:
    return not (_number(low) and size < low) and not (_number(high) and size > high)


def _scalar(value: Any, schema: Any) -> bool:
    if _number(value):
        return _numeric(value, schema)
    if type(value) is not str:
        return True
    if not _within(len(value), schema.get("minLength"), schema.get("maxLength")):
        return False
    pattern = schema.get("pattern")
    if type(pattern) is not str or len(pattern) > MAX_PATTERN_CHARACTERS or _RISKY.search(pattern):
        return True
    try:
        return re.search(pattern, value[:10_000]) is not None
    except re.error:
        return True  # another dialect of patterns


def _numeric(value: float, schema: Any) -> bool:
    if not _within(value, schema.get("minimum"), schema.get("maximum")):
        return False
    above, below, step = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum"), schema.get("multipleOf")
    if (_number(above) and value <= above) or (_number(below) and value >= below):
        return False
    if _number(step) and step > 0:
        times = value / step
        return bool(abs(times - round(times)) < 1e-9 * max(1.0, abs(times)))
    return True
