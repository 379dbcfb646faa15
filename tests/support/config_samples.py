"""A sample of every setting of the configuration file, made from its types, so that a new setting is tested unasked."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import msgspec.inspect as inspect

from tierwise.config.schema import ConfigFile

Path = tuple[str | int, ...]


def options() -> Iterator[tuple[Path, dict[str, Any]]]:
    """(path of one setting, a file that has it and is sound in shape), for every setting that there is."""
    yield from _below(inspect.type_info(ConfigFile), (), lambda value: value)


def moved(data: dict[str, Any], path: Path, name: str) -> dict[str, Any]:
    """The same file with the setting at `path` under another name."""
    made = copy.deepcopy(data)
    at: Any = made
    for step in path[:-1]:
        at = at[step]
    renamed = {(name if key == path[-1] else key): value for key, value in at.items()}
    at.clear()
    at.update(renamed)
    return made


def slips(name: str) -> list[str]:
    """Names that a finger makes of this one: a wrong letter, one too few, one twice, two swapped."""
    middle = len(name) // 2
    wrong = "x" if name[middle] != "x" else "z"
    made = [
        name[:middle] + wrong + name[middle + 1 :],
        name[:middle] + name[middle + 1 :],
        name[:middle] + name[middle] + name[middle:],
        name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :],
    ]
    return [each for each in dict.fromkeys(made) if each and each != name]


def _below(kind: inspect.Type, path: Path, wrap: Any) -> Iterator[tuple[Path, dict[str, Any]]]:
    match kind:
        case inspect.Metadata(type=inner):
            yield from _below(inner, path, wrap)
        case inspect.UnionType(types=types):
            for each in types:
                yield from _below(each, path, wrap)
        case inspect.DictType(value_type=value):
            yield from _below(value, (*path, "some"), lambda each: wrap({"some": each}))
        case inspect.VarTupleType(item_type=item):
            yield from _below(item, (*path, 0), lambda each: wrap([each]))
        case inspect.StructType(fields=fields):
            for field in fields:
                base = {other.encode_name: sample(other.type) for other in fields if other.required}
                name = field.encode_name

                def place(value: Any, base: dict[str, Any] = base, name: str = name) -> Any:
                    return wrap(base | {name: value})

                yield (*path, name), place(sample(field.type))
                yield from _below(field.type, (*path, name), place)


def sample(kind: inspect.Type) -> Any:
    """The least value that this type takes."""
    match kind:
        case inspect.Metadata(type=inner):
            return sample(inner)
        case inspect.UnionType(types=types):
            return sample(next(each for each in types if not isinstance(each, inspect.NoneType)))
        case inspect.StructType(fields=fields):
            return {field.encode_name: sample(field.type) for field in fields if field.required}
        case inspect.DictType(key_type=key, value_type=value):
            return {sample(key): sample(value)}
        case inspect.VarTupleType(item_type=item):
            return [sample(item)]
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.BoolType():
            return True
        case inspect.IntType(ge=least):
            return least or 1
        case inspect.FloatType(ge=least, gt=above):
            return (above + 0.5) if above is not None else (least or 0.5)
        case inspect.StrType(pattern=pattern):
            return "env:SOME_NAME" if pattern else "some"
        case _:
            raise AssertionError(kind)


class Disagrees(AssertionError):
    """The value is not what the schema says."""


def validate(value: Any, part: dict[str, Any], root: dict[str, Any], where: str = "") -> None:
    """The keywords of JSON Schema that our schema uses; an unknown one fails, so that nothing is skipped unseen."""
    import re

    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    for key, rule in part.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        match key:
            case "$ref":
                validate(value, root["$defs"][rule.rsplit("/", 1)[1]], root, where)
            case "type" if rule in ("integer", "number"):
                sound = number and (rule == "number" or isinstance(value, int))
                _demand(sound, f"{where}: is no {rule}")
            case "type":
                _demand(isinstance(value, kinds[rule]), f"{where}: is no {rule}")
            case "enum":
                _demand(value in rule, f"{where}: not one of {rule}")
            case "anyOf":
                _demand(any(_agrees(value, each, root) for each in rule), f"{where}: none of the alternatives")
            case "properties" if isinstance(value, dict):
                for name, below in rule.items():
                    if name in value:
                        validate(value[name], below, root, f"{where}.{name}")
            case "required" if isinstance(value, dict):
                _demand(all(name in value for name in rule), f"{where}: lacks one of {rule}")
            case "additionalProperties" if isinstance(value, dict):
                for name in value.keys() - part.get("properties", {}).keys():
                    _demand(rule is not False, f"{where}.{name}: not allowed")
                    validate(value[name], rule, root, f"{where}.{name}")
            case "propertyNames" if isinstance(value, dict):
                for name in value:
                    validate(name, rule, root, f"{where}.{name}")
            case "items" if isinstance(value, list):
                for i, each in enumerate(value):
                    validate(each, rule, root, f"{where}[{i}]")
            case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum" if number:
                low = key.endswith("inimum")
                within = (value >= rule if low else value <= rule) and not (key.startswith("excl") and value == rule)
                _demand(within, f"{where}: {key} {rule}")
            case "minLength" | "maxLength" if isinstance(value, str):
                _demand(len(value) >= rule if key == "minLength" else len(value) <= rule, f"{where}: {key} {rule}")
            case "pattern" if isinstance(value, str):
                _demand(re.search(rule, value) is not None, f"{where}: pattern")
            case _:
                _demand(key in _KNOWN, f"the schema says {key!r}, which this check cannot read")


_KNOWN = {
    "$schema", "$defs", "title", "description", "default", "properties", "required", "additionalProperties",
    "propertyNames", "items", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "minLength", "maxLength",
    "pattern",
}  # fmt: skip


def _agrees(value: Any, part: dict[str, Any], root: dict[str, Any]) -> bool:
    try:
        validate(value, part, root)
    except Disagrees:
        return False
    return True


def _demand(sound: bool, what: str) -> None:
    if not sound:
        raise Disagrees(what)
