"""The shape of the house: who may import whom, what happens at import, what is exported, how long a file may grow."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "tierwise"
LINES_LIMIT = 450

# Which rooms a room may import, besides itself. A file `config/parts.py` belongs to the room `config`. A new room needs
# a row here, which is the moment to ask whether it needs to exist.
ROOMS: dict[str, set[str]] = {
    "core": set(),
    "wire": {"core"},
    "providers": {"core"},
    "stores": {"core"},
    "routing": {"core", "wire"},
    "config": {"core", "wire", "routing", "server", "study", "watch"},  # where everything is put together
    "server": {"core", "wire", "routing", "config"},
    "cli": {"core", "wire", "routing", "config", "server", "study", "watch"},
    "inapp": {"core", "wire", "routing", "config", "server", "transport"},
    "transport": {"core", "wire", "routing", "config", "server"},
    "study": {"core", "wire"},
    "watch": {"core", "study"},
    "__init__": {"core", "wire", "routing", "config", "inapp"},
    "__main__": {"cli"},
}
BACKENDS = {"providers", "stores"}
NAMES_BACKENDS = "config"

CORE_MAY_IMPORT = {
    "__future__", "abc", "base64", "binascii", "bisect", "collections", "dataclasses", "datetime", "decimal", "difflib",
    "enum", "fractions", "functools", "hashlib", "heapq", "hmac", "itertools", "json", "math", "msgspec", "numbers",
    "numpy", "operator", "re", "statistics", "string", "struct", "textwrap", "types", "typing", "unicodedata", "zlib",
}  # fmt: skip
CORE_MAY_NOT_CALL = {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}
CORE_MAY_NOT_ASK = {"now", "utcnow", "today", "environ", "getenv", "urandom", "default_rng"}

READS_ENVIRONMENT = {"cli/common.py", "cli/main.py", "inapp.py", "server/startup.py"}
HEAVY = {
    "aiohttp", "anthropic", "apsw", "genai_prices", "httptools", "httpx", "jinja2", "numpy", "openai",
    "prometheus_client", "pydantic", "requests", "rich", "starlette", "tiktoken", "typer", "uvicorn", "uvloop",
    "watchfiles", "yaml",
}  # fmt: skip


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every dotted name that a file imports, wherever in the file, with its line."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown(path)}:{node.lineno}: imports are absolute here"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def imported_rooms(path: Path) -> Iterator[tuple[str, int]]:
    for name, line in imported(path):
        parts = name.split(".")
        if parts[0] == "tierwise" and len(parts) > 1:
            beside = PACKAGE / parts[1]
            inside = beside.is_dir() or beside.with_suffix(".py").is_file()
            yield (parts[1] if inside else "__init__"), line


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: everything but the bodies of functions."""
    yield node
    for field, value in ast.iter_fields(node):
        if field == "body" and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from at_import(child)


def asked(nodes: Iterator[ast.AST], names: set[str]) -> list[int]:
    """Lines on which an attribute of one of these names is read (`os.environ`), or such a name imported by itself.

    A parameter called `environ` is no read of the environment.
    """
    return [
        node.lineno
        for node in nodes
        if (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and names & {alias.name for alias in node.names})
    ]


def test_every_room_depends_downward() -> None:
    """A room imports itself and the rooms of its row."""
    wrong = []
    for path in sources():
        room = room_of(path)
        assert room in ROOMS, f"{shown(path)}: a new room needs a row in ROOMS, saying what it may import"
        allowed = ROOMS[room] | {room} | (BACKENDS if room == NAMES_BACKENDS else set())
        wrong += [f"{shown(path)}:{line} imports {to}" for to, line in imported_rooms(path) if to not in allowed]
    assert not wrong, "\n".join(wrong)


def test_only_config_names_a_concrete_backend() -> None:
    """Nothing outside `providers` and `stores` names what is in them, except the files that choose."""
    naming = {
        shown(path) for path in sources() for to, _ in imported_rooms(path) if to in BACKENDS and to != room_of(path)
    }
    rooms = ("__init__", "opened", "setup", "state")
    assert naming <= {f"src/tierwise/{NAMES_BACKENDS}/{each}.py" for each in rooms}


def test_core_imports_only_what_is_pure() -> None:
    wrong = [
        f"{shown(path)}:{line} imports {name}"
        for path in sources()
        if room_of(path) == "core"
        for name, line in imported(path)
        if (top := name.split(".")[0]) not in CORE_MAY_IMPORT and top != "tierwise"
    ]
    assert not wrong, "\n".join(wrong)


def test_core_asks_no_clock_no_dice_no_environment_and_no_file() -> None:
    wrong = []
    for path in sources():
        if room_of(path) == "core":
            wrong += [f"{shown(path)}:{line}" for line in asked(ast.walk(parsed(path)), CORE_MAY_NOT_ASK)]
            wrong += [
                f"{shown(path)}:{node.lineno} calls {node.func.id}"
                for node in ast.walk(parsed(path))
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CORE_MAY_NOT_CALL
            ]
    assert not wrong, "\n".join(wrong)


def test_the_import_linter_agrees() -> None:
    """The contracts in pyproject.toml, which also see indirect imports."""
    linter = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = fresh(linter, "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_environment_is_read_in_few_files_and_never_at_import() -> None:
    wrong = []
    for path in sources():
        tree = parsed(path)
        nodes = at_import(tree) if str(path.relative_to(PACKAGE)) in READS_ENVIRONMENT else ast.walk(tree)
        wrong += [f"{shown(path)}:{line}" for line in asked(nodes, {"environ", "getenv"})]
    assert not wrong, "\n".join(wrong)


IMPORT_EVERYTHING = """
import importlib, json, os, sys

source, names = sys.argv[1], json.loads(sys.argv[2])
worldly = ("_thread.", "open", "os.", "shutil.", "signal.", "socket.", "sqlite3.", "subprocess.", "tempfile.")
done = []

def watch(event, arguments):
    if event.startswith(worldly):
        # Only what we do counts: a library may look at the machine when it is imported, though few do.
        frame = sys._getframe()
        while frame and not frame.f_code.co_filename.startswith((source, "<frozen importlib")):
            frame = frame.f_back
        if frame and frame.f_code.co_filename.startswith(source):
            done.append(f"{frame.f_code.co_filename}:{frame.f_lineno}: {event}")

sys.addaudithook(watch)
for name in names:
    importlib.import_module(name)
print(json.dumps(done))
"""


def test_nothing_happens_at_import() -> None:
    """Importing every module opens no socket, starts no process or thread, reads and writes no file."""
    names = [
        ".".join(("tierwise", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for path in sources()
        if path.name != "__main__.py"
    ]
    assert interpreted(IMPORT_EVERYTHING, str(PACKAGE), json.dumps(names)) == []


def test_importing_tierwise_imports_nothing_heavy() -> None:
    """What stands in for the 150 ms that an in-app import may take: `make bench` measures the time itself."""
    code = "import json, sys, tierwise; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    assert not HEAVY & set(interpreted(code))


def test_every_exported_name_exists_and_every_public_name_is_exported() -> None:
    import tierwise

    exported = tierwise.__all__
    assert len(set(exported)) == len(exported)
    missing = [name for name in exported if not hasattr(tierwise, name)]
    assert not missing
    module = type(sys)
    public = {
        name
        for name, value in vars(tierwise).items()
        if not name.startswith("_")
        and not isinstance(value, module)
        and name not in ("annotations", "TYPE_CHECKING", "Any")
    }
    assert public <= set(exported)


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "scripts"])
def test_files_stay_short(folder: str) -> None:
    """When a file does not, look for the noun that is missing."""
    suffixes = {".py", ".c", ".sh", ".lua"}
    lengths = {
        shown(path): len(path.read_text().splitlines())
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes
    }
    assert lengths
    assert not {path: length for path, length in lengths.items() if length > LINES_LIMIT}


def test_every_module_says_what_it_is_for() -> None:
    silent = [shown(path) for path in sources() if path.stat().st_size and not ast.get_docstring(parsed(path))]
    assert not silent


def test_every_folder_of_code_is_a_package() -> None:
    """A folder without __init__.py imports by accident, and the import rules do not see it."""
    folders = {path.parent for path in sources()}
    assert not [shown(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def interpreted(code: str, *arguments: str) -> list[str]:
    """What a fresh interpreter prints, as JSON."""
    done = fresh(code, *arguments)
    assert done.returncode == 0, done.stderr
    result: list[str] = json.loads(done.stdout)
    return result


def fresh(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
