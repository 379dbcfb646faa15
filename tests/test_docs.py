"""What is documented is true, and what a user sees is documented: programs run, files load, names are all there."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests.support.served import Served, simulated
from tierwise.cli import main as cli
from tierwise.config import load, schema, state
from tierwise.core.episode import REFUSALS
from tierwise.core.errors import BadRequest
from tierwise.core.money import usd_text
from tierwise.core.policy import BALANCED
from tierwise.core.request import Turn
from tierwise.core.words import REASONS, WHY_NOT
from tierwise.providers.table import ENV_KEYS
from tierwise.server import app
from tierwise.server import headers as written
from tierwise.wire.hints import read_hints

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *DOCS)}
ALL = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
ENVIRON = {"TIERWISE_LOCAL_URL": "off", "OPENAI_API_KEY": "k-1", "ACME_KEY": "k-2", "TIERWISE_DEMO_KEY": "k-3"}


def blocks(language: str) -> list[Any]:
    """The fenced blocks of a language, each with the page and line where it begins."""
    return [
        pytest.param(found[2], id=f"{name}:{text[: found.start()].count(chr(10)) + 1}")
        for name, text in PAGES.items()
        for found in FENCE.finditer(text)
        if found[1] == language
    ]


def words_of(*names: str) -> set[str]:
    """Every word in code type (inline or fenced) on these pages, on all of docs/ when none is named."""
    found: set[str] = set()
    for name in names or [path.name for path in DOCS]:
        text = PAGES[name]
        spans = [match[2] for match in FENCE.finditer(text)] + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
        for span in spans:
            whole = re.findall(r"[\w.-]*\w", span)
            found.update(whole, (part for word in whole for part in word.split(".")))
    return found


def missing(names: Any, *pages: str) -> list[str]:
    return sorted(set(names) - words_of(*pages))


# ------------------------------------------------------------------------------------------------ what is there works


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("docs"), simulated()) as found:
        yield found


@pytest.mark.parametrize("program", blocks("python"))
def test_every_program_runs(
    program: str, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, but for the address of the gateway; in an empty folder, without keys."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIERWISE_LOCAL_URL", "off")
    program = program.replace("http://127.0.0.1:4100", served.url)
    exec(compile(program, "documentation", "exec"), {"__name__": "__main__"})  # noqa: S102  # our own text
    assert capsys.readouterr().out.strip()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", blocks("yaml"))
async def test_every_configuration_loads(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tierwise.yaml"
    path.write_text(text)
    setup = await load(path, ENVIRON)
    assert setup.snapshot.catalogue.models


def test_there_are_programs_and_configurations() -> None:
    assert len(blocks("python")) >= 5
    assert len(blocks("yaml")) >= 3


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """Files exist, and so do the headings that a link names."""
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", path.read_text())):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), f"{path.name} links to {target}"
        if heading:
            titles = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, target


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    for path in ALL:
        text = path.read_text()
        spans = re.findall(r"`make ([^`]+)`", text) + re.findall(r"^make ([^#\n]+)", text, re.M)
        for span in spans:
            for word in re.sub(r'\w+="[^"]*"', "", span).split():
                assert word in targets, f"{path.name}: make {span}"


def test_the_sample_headers_are_the_ones_that_are_sent() -> None:
    sample = next(match[2] for match in FENCE.finditer(PAGES["README.md"]) if match[1] == "text")
    assert {line.partition(":")[0] for line in sample.splitlines()} <= {f"x-tierwise-{name}" for name in headers()}


def test_provider_keys_are_the_ones_that_are_read() -> None:
    named = set(re.findall(r"`([A-Z]+_API_KEY)`", PAGES["README.md"]))
    assert named <= {name for names in ENV_KEYS.values() for name in names}


# ------------------------------------------------------------------------------------------------ what is there is told


def test_reason_codes() -> None:
    assert missing(REASONS, "deciding.md") == []


def test_why_not_codes() -> None:
    assert missing(WHY_NOT, "deciding.md") == []


def test_refusals_and_error_codes() -> None:
    unseen = {"not_granted"}  # callers read `policy_forbids`
    assert missing(set(REFUSALS) - unseen, "http.md") == []
    rooms = [
        path for room in ("server", "routing", "wire", "core") for path in (ROOT / "src/tierwise" / room).glob("*.py")
    ]
    raised = {code for path in rooms for code in re.findall(r'\bcode="([a-z_]+)"', path.read_text())}
    assert missing(raised - set(WHY_NOT), "http.md") == []


def test_commands_and_their_options() -> None:
    page = PAGES["operations.md"]
    options: set[str] = set()
    for name, command in commands(typer.main.get_command(cli.app)):
        assert f"`tierwise {name}" in page, name
        options.update(option for parameter in command.params for option in parameter.opts if option.startswith("--"))
    absent = [option for option in sorted(options - {"--help"}) if f"`{option}" not in page]
    assert absent == []


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def test_configuration_keys() -> None:
    """Conditions and tests of acceptance are among them: the schema reaches into every plan."""
    parts = schema.schema()["$defs"].values()
    keys = {key for part in parts for key in part.get("properties", ())}
    assert {"min_complexity", "similarity", "budget_status", "gpu_hour_usd", "among"} <= keys
    assert missing(keys, "configuration.md", "deciding.md") == []


def test_configuration_values() -> None:
    """Every word that a setting takes from a closed list."""
    assert missing(enumerated(schema.schema()), "configuration.md", "deciding.md", "http.md") == []


def enumerated(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        yield from (value for value in part.get("enum", ()) if isinstance(value, str))
        part = part.values()
    elif not isinstance(part, list):
        return
    for each in part:
        yield from enumerated(each)


def test_hints() -> None:
    with pytest.raises(BadRequest) as caught:
        read_hints({"tierwise": {"no_such": 1}}, {}, [Turn(role="user", text="x")])
    known = re.search(r"Known: (.*)\.", caught.value.message)
    assert known
    names = known[1].split(", ")
    assert len(names) > 10
    assert missing(names, "http.md") == []


def headers() -> set[str]:
    """The names of our reply headers, from the places that write them."""
    return set(re.findall(r'b"x-tierwise-([a-z-]+)"', inspect.getsource(app) + inspect.getsource(written)))


def test_reply_headers() -> None:
    assert len(headers()) >= 10
    assert missing((f"x-tierwise-{name}" for name in headers()), "http.md") == []


def test_endpoints() -> None:
    for method, path in app.DOORS:
        assert re.search(rf"`{method} (/v1)?{path}", PAGES["http.md"]), (method, path)


def test_environment_variables() -> None:
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    assert missing(re.findall(r"\bTIERWISE_[A-Z_]+", source), "operations.md") == []


def test_provider_names_and_their_keys() -> None:
    assert missing(ENV_KEYS, "configuration.md") == []
    assert missing((name for names in ENV_KEYS.values() for name in names), "configuration.md") == []


def test_metrics(served: Served) -> None:
    heard = served.run(served.gateway.get("/metrics"))
    names = re.findall(r"^# TYPE (\w+) ", heard.body.decode(), re.M)
    assert len(names) > 10
    assert missing(names, "operations.md") == []


def test_figures_of_the_balanced_preset() -> None:
    for nano in (BALANCED.miss_user_nano, BALANCED.miss_internal_nano, BALANCED.second_interactive_nano):
        assert f"{usd_text(nano)} USD" in PAGES["deciding.md"]


def test_the_name_of_the_journal() -> None:
    assert state.JOURNAL_FILE in words_of("operations.md")
