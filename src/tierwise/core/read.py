"""Plain data into types, with every mistake found, not the first: one set of words for a configuration file, for what
an admin sends over HTTP and for what is typed at a command line.

A value is never repeated in a message: what is wrong may be a secret in the wrong place. Names of keys are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable
from difflib import SequenceMatcher
from functools import cache
from typing import Any, TypeVar, cast

import msgspec.inspect as inspect

from tierwise.core.errors import Problem
from tierwise.core.policy import PLAN_KEYS

MAX_INT = 2**63 - 1
MAX_COMPARED = 100  # letters of a name; a longer one is no slip
MAX_KEY_SHOWN = 200

T = TypeVar("T")


class _Wrong:
    """Stands where a value should be that could not be read; its problem is already noted."""


WRONG = _Wrong()


def read(
    data: Any, kind: Callable[..., T], *, line: Callable[[str], int] = lambda where: 0, whole: str = "file"
) -> tuple[T | None, list[Problem]]:
    """The data as `kind`, or None with the problems that kept it from being one. `line`: where a path of it stands;
    `whole`: how all of it is called."""
    reader = _Reader(line, whole)
    value = reader.value(data, _type(cast(Hashable, kind)), "", "")
    return (None if value is WRONG else value), reader.problems


def join(where: str, key: str | int) -> str:
    """The path one step further down."""
    if isinstance(key, int):
        return f"{where}[{key}]"
    if len(key) > MAX_KEY_SHOWN or not key.isprintable():  # paths go to terminals and logs
        key = "".join(letter if letter.isprintable() else "?" for letter in key[:MAX_KEY_SHOWN]) + "..."
    return f"{where}.{key}" if where else key


@cache
def _type(kind: Hashable) -> inspect.Type:
    return inspect.type_info(kind)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that this one is a slip of: the least edits, and no more than a third of the letters; else "".

    Of two that are as near, the one that shares more letters in order: `skils` is `skills` and not `skill`.
    """
    most = max(1, len(name) // 3)
    near = [(edits, other) for other in known if (edits := _edits(name, other, most + 1)) <= most]
    least = min((edits for edits, _ in near), default=0)
    alike = [other for edits, other in near if edits == least]
    return max(alike, key=lambda other: SequenceMatcher(None, name, other).ratio(), default="")


def _edits(one: str, other: str, bound: int) -> int:
    """Insertions, deletions, changes and swaps of neighbours between two names; `bound` when there are as many."""
    if len(one) > MAX_COMPARED or abs(len(one) - len(other)) >= bound:
        return bound
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        above, before_above = row, before
        row = [i]
        for j, against in enumerate(other, 1):
            edits = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != against))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == against:
                edits = min(edits, before_above[j - 2] + 1)
            row.append(edits)
        before = above
    return min(row[-1], bound)


def kind_of(value: Any) -> str:
    """What a value is, in the words of a configuration file."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return "a date or time"  # TOML has these


class _Reader:
    def __init__(self, line: Callable[[str], int], whole: str) -> None:
        self.line = line
        self.whole = whole
        self.problems: list[Problem] = []

    def wrong(self, where: str, what: str, near: str = "") -> _Wrong:
        self.problems.append(Problem(where or self.whole, what, self.line(where), near))
        return WRONG

    def value(self, data: Any, kind: inspect.Type, where: str, hint: str) -> Any:
        match kind:
            case inspect.Metadata(type=inner, extra=extra):
                return self.value(data, inner, where, (extra or {}).get("hint", hint))
            case inspect.UnionType():
                return self.union(data, kind, where, hint)
            case inspect.StructType():
                return self.struct(data, kind, where)
            case inspect.DictType():
                return self.mapping(data, kind, where)
            case inspect.VarTupleType(item_type=item):
                return self.items(data, item, where)
            case inspect.LiteralType(values=values):
                return self.literal(data, values, where)
            case inspect.StrType():
                return self.text(data, kind, where, hint)
            case inspect.IntType() | inspect.FloatType():
                return self.number(data, kind, where)
            case inspect.BoolType():
                if isinstance(data, bool):
                    return data
                return self.wrong(where, f"must be true or false, not {kind_of(data)}")
            case inspect.NoneType():
                return data if data is None else self.wrong(where, f"must be empty, not {kind_of(data)}")
            case _:
                raise NotImplementedError(f"a type that is never read: {kind}")

    def struct(self, data: Any, kind: inspect.StructType, where: str) -> Any:
        if not isinstance(data, dict):
            return self.wrong(where, f"must be a mapping, not {kind_of(data)}")
        known = {field.encode_name: field for field in kind.fields}
        missing = [field.encode_name for field in kind.fields if field.required and field.encode_name not in data]
        found: dict[str, Any] = {}
        sound = True
        for key, value in data.items():
            below = join(where, key)
            field = known.get(key)
            if field is None:
                near = nearest(key, known)
                # Misspelt and therefore missing is one mistake, not two.
                missing = [name for name in missing if name != near]
                self.wrong(below, "is not a known setting", near)
                sound = False
                continue
            if value is None and not field.required:
                continue  # `key:` with nothing behind it is the same as no key
            made = self.value(value, field.type, below, "")
            sound = sound and made is not WRONG
            found[field.name] = made
        for name in missing:
            self.wrong(where, f"needs `{name}`")
        return kind.cls(**found) if sound and not missing else WRONG

    def mapping(self, data: Any, kind: inspect.DictType, where: str) -> Any:
        if not isinstance(data, dict):
            return self.wrong(where, f"must be a mapping, not {kind_of(data)}")
        found = {}
        for key, value in data.items():
            below = join(where, key)
            name = self.value(key, kind.key_type, below, "")
            made = self.value(value, kind.value_type, below, "")
            if name is not WRONG and made is not WRONG:
                found[name] = made
        return found if len(found) == len(data) else WRONG

    def items(self, data: Any, item: inspect.Type, where: str) -> Any:
        if not isinstance(data, list):
            return self.wrong(where, f"must be a list, not {kind_of(data)}")
        made = [self.value(each, item, join(where, i), "") for i, each in enumerate(data)]
        return WRONG if any(each is WRONG for each in made) else tuple(made)

    def union(self, data: Any, kind: inspect.UnionType, where: str, hint: str) -> Any:
        structs = [each for each in kind.types if isinstance(each, inspect.StructType)]
        if len(structs) == len(PLAN_KEYS) and {each.cls for each in structs} == set(PLAN_KEYS.values()):
            return self.plan(data, structs, where)
        fitting = [each for each in kind.types if _fits(data, each)]
        if not fitting:
            names = [_name(each) for each in kind.types if not isinstance(each, inspect.NoneType)]
            return self.wrong(where, f"must be {' or '.join(names)}, not {kind_of(data)}")
        return self.value(data, fitting[0], where, hint)

    def plan(self, data: Any, structs: list[inspect.StructType], where: str) -> Any:
        """A plan says its kind by its own key, not by a tag."""
        kinds = ", ".join(f"`{key}`" for key in PLAN_KEYS)
        if not isinstance(data, dict):
            return self.wrong(where, f"must be a plan, a mapping with one of {kinds}; not {kind_of(data)}")
        given = [key for key in data if key in PLAN_KEYS]
        if len(given) > 1:
            return self.wrong(where, f"must be one plan, but has {' and '.join(f'`{key}`' for key in given)}")
        if not given:
            slips = [(key, near) for key in data if (near := nearest(key, PLAN_KEYS))]
            if slips:
                return self.wrong(join(where, slips[0][0]), f"is not a kind of plan ({kinds})", slips[0][1])
            return self.wrong(where, f"must have one of {kinds}")
        return self.struct(data, next(each for each in structs if each.cls is PLAN_KEYS[given[0]]), where)

    def literal(self, data: Any, values: tuple[object, ...], where: str) -> Any:
        if data in values and not isinstance(data, bool):
            return data
        near = nearest(data, [each for each in values if isinstance(each, str)]) if isinstance(data, str) else ""
        return self.wrong(where, f"must be one of {', '.join(map(str, values))}", near)

    def text(self, data: Any, kind: inspect.StrType, where: str, hint: str) -> Any:
        if not isinstance(data, str):
            quote = "; put it in quotes" if isinstance(data, bool | int | float) else ""
            return self.wrong(where, f"must be text, not {kind_of(data)}{quote}")
        if kind.min_length and not data.strip():
            return self.wrong(where, "is empty")
        if kind.max_length and len(data) > kind.max_length:
            return self.wrong(where, f"is longer than {kind.max_length} characters")
        if kind.pattern and not re.search(kind.pattern, data):
            return self.wrong(where, hint or f"must match {kind.pattern}")
        return data

    def number(self, data: Any, kind: inspect.IntType | inspect.FloatType, where: str) -> Any:
        whole = isinstance(kind, inspect.IntType)
        if isinstance(data, bool) or not isinstance(data, int if whole else int | float):
            given = "a fraction" if isinstance(data, float) else kind_of(data)
            return self.wrong(where, f"must be {'a whole number' if whole else 'a number'}, not {given}")
        if (isinstance(data, float) and not math.isfinite(data)) or abs(data) > MAX_INT:
            return self.wrong(where, "must be a finite number, and one that fits 63 bits")
        if (
            (kind.ge is not None and data < kind.ge)
            or (kind.gt is not None and data <= kind.gt)
            or (kind.le is not None and data > kind.le)
            or (kind.lt is not None and data >= kind.lt)
        ):
            return self.wrong(where, f"must be {_bounds(kind)}")
        return data if whole else float(data)


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    words = (("at least", kind.ge), ("above", kind.gt), ("at most", kind.le), ("below", kind.lt))
    return " and ".join(f"{word} {bound:,}" for word, bound in words if bound is not None)


def _fits(data: Any, kind: inspect.Type) -> bool:
    """Whether this member of a union is the one that the data's shape is meant for."""
    match kind:
        case inspect.Metadata(type=inner):
            return _fits(data, inner)
        case inspect.StructType() | inspect.DictType():
            return isinstance(data, dict)
        case inspect.VarTupleType():
            return isinstance(data, list)
        case inspect.BoolType():
            return isinstance(data, bool)
        case inspect.IntType() | inspect.FloatType():
            return isinstance(data, int | float) and not isinstance(data, bool)
        case inspect.StrType():
            return isinstance(data, str)
        case inspect.LiteralType(values=values):
            return any(type(data) is type(each) for each in values)
        case inspect.NoneType():
            return data is None
        case _:
            return False


def _name(kind: inspect.Type) -> str:
    match kind:
        case inspect.Metadata(type=inner):
            return _name(inner)
        case inspect.StructType() | inspect.DictType():
            return "a mapping"
        case inspect.VarTupleType():
            return "a list"
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "a whole number"
        case inspect.FloatType():
            return "a number"
        case inspect.LiteralType(values=values):
            return f"one of {', '.join(map(str, values))}"
        case _:
            return "text"
