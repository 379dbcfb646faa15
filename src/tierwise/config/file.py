"""Reads YAML and TOML into plain data that knows its lines. Knows nothing of what the data means.

A configuration file is untrusted input: it is edited by hand, merged by tools and mounted from elsewhere. So there is
a bound on its size, depth and number of values (an alias counts as all that it stands for), nothing in it can make an
object, a key that is given twice is an error, and no message repeats the text around an error: it may hold a secret.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tierwise.core.errors import ConfigError, Problem
from tierwise.core.read import join

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 50_000
MAX_DIGITS = 40

Plain = str | int | float | bool | list[Any] | dict[str, Any] | None


class Located(msgspec.Struct, frozen=True):
    """Plain data, and the line on which each path of it stands: `models.acme/small.tier`, `budgets[1].limit_usd`."""

    data: Plain
    lines: dict[str, int]
    problems: tuple[Problem, ...] = ()  # what was wrong, but did not keep us from reading on

    def line(self, where: str) -> int:
        """Of this path, or of the nearest thing around it that has a line; 0 when nothing has."""
        while where:
            if found := self.lines.get(where):
                return found
            where = where[: max(where.rfind("."), where.rfind("["), 0)]
        return 0


def read_file(path: Path) -> Located:
    """The file's data. TOML when its name ends in .toml, else YAML. Raises ConfigError when it cannot be read."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refusal(f"cannot be read: {error.strerror or type(error).__name__}", source=str(path)) from None
    if len(raw) > MAX_BYTES:
        raise _refusal(f"is larger than {MAX_BYTES} bytes", source=str(path))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _refusal("is not UTF-8 text", line, str(path)) from None
    return read_text(text, toml=path.suffix.lower() == ".toml", source=str(path))


def read_text(text: str, *, toml: bool = False, source: str = "") -> Located:
    """The same for text in memory. Raises ConfigError; problems that leave the rest readable are in the result."""
    located = _read_toml(text, source) if toml else _read_yaml(text, source)
    if located.data is None:
        return Located({}, {}, located.problems)
    if not isinstance(located.data, dict):
        raise _refusal("must be a mapping of settings, such as `providers:` and `models:`", 1, source)
    return located


def _refusal(what: str, line: int = 0, source: str = "") -> ConfigError:
    return ConfigError((Problem("file", what, line),), source)


# ------------------------------------------------------------------------------------------------ YAML


class _Node(msgspec.Struct):
    """A value where it stands. An alias is the same node again: it is unfolded, and counted, only in `_plain`."""

    line: int
    value: Any  # scalar, list[_Node] or dict[str, tuple[int, _Node]]; the int is the key's own line


def _read_yaml(text: str, source: str) -> Located:
    import yaml

    # The C scanner where there is one: pure Python takes seconds for a file at the size limit.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    composer = _Composer(iter(yaml.parse(text, Loader=loader)), source)
    try:
        root = composer.document()
    except yaml.MarkedYAMLError as error:
        # Not str(error): it quotes the line, and the line may hold a secret.
        mark = error.problem_mark
        line = mark.line + 1 if mark is not None else 0
        if line and "\t" in _indent(text, line):
            raise _refusal("is not YAML: a tab; indent with spaces", line, source) from None
        raise _refusal(f"is not YAML: {error.problem or 'cannot be parsed'}", line, source) from None
    except yaml.YAMLError:
        raise _refusal("is not YAML: it holds characters that YAML does not allow", 0, source) from None
    if root is None:
        return Located(None, {}, tuple(composer.problems))
    lines: dict[str, int] = {}
    budget = [MAX_VALUES]
    data = _plain(root, "", lines, budget, source)
    return Located(data, lines, tuple(composer.problems))


def _indent(text: str, line: int) -> str:
    found = text.split("\n")[line - 1 : line]
    return found[0][: len(found[0]) - len(found[0].lstrip())] if found else ""


class _Composer:
    """Events to nodes. Our own, because PyYAML's takes the last of two equal keys, and any tag and depth."""

    def __init__(self, events: Iterator[Any], source: str) -> None:
        self.events = events
        self.source = source
        self.anchors: dict[str, _Node | None] = {}  # None: still open, so an alias to it would contain itself
        self.problems: list[Problem] = []

    def document(self) -> _Node | None:
        import yaml

        root: _Node | None = None
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _refusal("holds a second document (`---`)", _line(event), self.source)
                root = self.node(next(self.events), "", 0)
        return root

    def node(self, event: Any, where: str, depth: int) -> _Node:
        import yaml

        line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, where, line)
        if depth > MAX_DEPTH:
            raise _refusal(f"is nested more than {MAX_DEPTH} levels deep", line, self.source)
        if event.tag is not None:
            self.problems.append(Problem(where or "file", "has a tag (`!...`); plain values only", line))
        if event.anchor:
            self.anchors[event.anchor] = None
        match event:
            case yaml.ScalarEvent():
                node = _Node(line, self.scalar(event, where, line))
            case yaml.SequenceStartEvent():
                node = _Node(line, self.sequence(where, depth))
            case _:
                node = _Node(line, self.mapping(where, depth))
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def alias(self, event: Any, where: str, line: int) -> _Node:
        found = self.anchors.get(event.anchor)
        if found is not None:
            return found
        what = "is an alias inside its own anchor" if event.anchor in self.anchors else "is an alias without an anchor"
        raise ConfigError((Problem(where or "file", what, line),), self.source)

    def sequence(self, where: str, depth: int) -> list[_Node]:
        import yaml

        items: list[_Node] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event, join(where, len(items)), depth + 1))
        return items

    def mapping(self, where: str, depth: int) -> dict[str, tuple[int, _Node]]:
        import yaml

        found: dict[str, tuple[int, _Node]] = {}
        merged: list[_Node] = []
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            line = _line(event)
            if not isinstance(event, yaml.ScalarEvent):
                what = "has a key that is not plain text"
                raise ConfigError((Problem(where or "file", what, line),), self.source)
            name = event.value
            below = join(where, name)
            value = self.node(next(self.events), below, depth + 1)
            if name == "<<" and event.style not in _QUOTED:
                merged.extend(self.merge(value, below, line))
            elif name in found:
                self.problems.append(Problem(below, f"is given twice (first on line {found[name][0]})", line))
            else:
                found[name] = (line, value)
        for node in merged:
            for name, entry in node.value.items():
                found.setdefault(name, entry)
        return found

    def merge(self, node: _Node, where: str, line: int) -> list[_Node]:
        nodes = node.value if isinstance(node.value, list) else [node]
        if all(isinstance(each.value, dict) for each in nodes):
            return nodes
        self.problems.append(Problem(where, "must be an alias of a mapping, or a list of them", line))
        return []

    def scalar(self, event: Any, where: str, line: int) -> str | int | float | bool | None:
        """By the rules of YAML 1.2: `no`, `on`, `1:30`, `2026-11-01` and `1_000` are text."""
        text: str = event.value
        if event.style in _QUOTED:
            return text
        if text in ("", "~", "null", "Null", "NULL"):
            return None
        if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
            return text[0] in "tT"
        if _NUMBER.fullmatch(text) is None:
            return text
        if len(text) > MAX_DIGITS:
            self.problems.append(Problem(where or "file", f"has more than {MAX_DIGITS} digits", line))
            return None
        if text.lstrip("+-").isdigit():
            return int(text)
        if text.startswith(("0x", "0o")):
            return int(text, 0)
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_QUOTED = ("'", '"', "|", ">")
_NUMBER = re.compile(
    r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
    re.ASCII,
)


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _plain(node: _Node, where: str, lines: dict[str, int], left: list[int], source: str) -> Plain:
    left[0] -= 1
    if left[0] < 0:
        raise _refusal(f"holds more than {MAX_VALUES} values, aliases counted in full", node.line, source)
    lines.setdefault(where, node.line)
    if isinstance(node.value, dict):
        found: dict[str, Any] = {}
        for key, (line, below) in node.value.items():
            path = join(where, key)
            lines.setdefault(path, line)
            found[key] = _plain(below, path, lines, left, source)
        return found
    if isinstance(node.value, list):
        return [_plain(each, join(where, i), lines, left, source) for i, each in enumerate(node.value)]
    value: Plain = node.value
    return value


# ------------------------------------------------------------------------------------------------ TOML


def _read_toml(text: str, source: str) -> Located:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column \d+\)", str(error))
        what = re.sub(r"\s*\(at .*\)$", "", str(error), flags=re.DOTALL)
        raise _refusal(f"is not TOML: {what}", int(found[1]) if found else 0, source) from None
    except ValueError:
        raise _refusal("is not TOML: a number has too many digits", 0, source) from None
    except RecursionError:
        raise _refusal(f"is nested more than {MAX_DEPTH} levels deep", 0, source) from None
    lines = _toml_lines(text)
    located = Located(data, lines)
    _bound(data, located, source)
    return located


def _bound(data: dict[str, Any], located: Located, source: str) -> None:
    """Depth and number of values, walked without recursion: what is being checked may be too deep for it."""
    waiting: list[tuple[Any, str, int]] = [(data, "", 0)]
    seen = 0
    while waiting:
        value, where, depth = waiting.pop()
        seen += 1
        if depth > MAX_DEPTH:
            raise _refusal(f"is nested more than {MAX_DEPTH} levels deep", located.line(where), source)
        if seen > MAX_VALUES:
            raise _refusal(f"holds more than {MAX_VALUES} values", located.line(where), source)
        if isinstance(value, dict):
            waiting.extend((each, join(where, key), depth + 1) for key, each in value.items())
        elif isinstance(value, list):
            waiting.extend((each, join(where, i), depth + 1) for i, each in enumerate(value))


_TOML_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?")
_TOML_KEY = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[\w-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[\w-]+))*)\s*=""")
_TOML_PART = re.compile(r""""[^"]*"|'[^']*'|[\w-]+""")


def _toml_lines(text: str) -> dict[str, int]:
    """tomllib forgets where things stood, so the lines of headers and keys are searched for. Best effort: text inside a
    multi-line string can look like a key, which costs a wrong line number in a message and nothing else."""
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _TOML_HEADER.fullmatch(line):
            table = ""
            for part in _TOML_PART.findall(header[2]):
                table = join(table, part.strip("\"'"))
                # Below an array of tables a header speaks of its last table.
                table = join(table, counts[table] - 1) if table in counts else table
            if header[1] == "[[":
                table = re.sub(r"\[\d+\]$", "", table)
                counts[table] = counts.get(table, 0) + 1
                lines.setdefault(table, number)
                table = join(table, counts[table] - 1)
            lines.setdefault(table, number)
        elif key := _TOML_KEY.match(line):
            where = table
            for part in _TOML_PART.findall(key[1]):
                where = join(where, part.strip("\"'"))
                lines.setdefault(where, number)
    return lines
