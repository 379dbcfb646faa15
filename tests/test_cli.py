"""Every command as a person or a script runs it: a process of its own, judged by its output and its exit code.

0 done, 1 the answer is no, 2 the command or the configuration is wrong; and never a traceback.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tierwise import __version__
from tierwise.cli.main import ORDER

ROOT = Path(__file__).parent.parent
ENVIRON = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": str(ROOT / "src"),
    "TIERWISE_LOCAL_URL": "off",
    "TERM": "xterm",
    "PYTHONWARNINGS": "error",
}
HARD = "Prove that the square root of 2 is irrational, step by step, for every case."
DECISION = re.compile(r"[0-9a-z]{26,32}")


def run(
    *words: str, cwd: Path, environ: dict[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tierwise", *words]
    ran = subprocess.run(
        command, cwd=cwd, env=ENVIRON | (environ or {}), input=stdin, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert "Traceback" not in ran.stderr + ran.stdout, ran.stderr
    assert "\x1b" not in ran.stdout, "control codes in a pipe"
    return ran


def good(*words: str, cwd: Path, **more: Any) -> str:
    ran = run(*words, cwd=cwd, **more)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return ran.stdout


@contextmanager
def serving(cwd: Path, *words: str) -> Iterator[dict[str, Any]]:
    """A gateway process on a free port; what it told of itself at the start."""
    command = [sys.executable, "-m", "tierwise", "serve", "--port", "0", "--json", *words]
    process = subprocess.Popen(command, cwd=cwd, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield json.loads(line)
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in errors


def asked(url: str, text: str) -> str:
    """Ask the gateway; the id of the decision."""
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": text}]}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as reply:
        return str(reply.headers["x-tierwise-decision"])


# ------------------------------------------------------------------------------------------------ help and mistakes


def test_help_names_every_command(tmp_path: Path) -> None:
    said = good("--help", cwd=tmp_path)
    for command in ("serve", "route", "why", "models", "config"):
        assert f"│ {command} " in said
    assert max(map(len, said.splitlines())) <= 80
    assert run(cwd=tmp_path).returncode == 2


def test_help_begins_with_what_one_needs_first(tmp_path: Path) -> None:
    listed = re.findall(r"^│ ([a-z]+) ", good("--help", cwd=tmp_path), re.M)
    assert listed[:7] == ["serve", "route", "why", "models", "config", "key", "budget"]
    assert [name for name in listed if name in ("promote", "fit", "plan", "calibrate", "outcomes")] == [
        "outcomes", "fit", "calibrate", "plan", "promote",
    ]  # fmt: skip
    assert sorted(" ".join(ORDER).split()) == sorted(listed)


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    assert good("--version", cwd=tmp_path) == f"tierwise {__version__}\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["route"], 2, "Missing argument"),
        (["rout", "x"], 2, "No such command"),
        (["route", "x", "--polcy", "y"], 2, "No such option"),
        (["route", "x", "--config", "none.yaml"], 2, "none.yaml"),
        (["route", ""], 2, "the message is empty"),
        (["route", "x", "--latency", "soon"], 2, "interactive, background, batch"),
        (["route", "x", "--max-tokens", "0"], 2, "max_tokens"),
        (["route", "x", "--model", "simulated/smal"], 1, "simulated/small"),
        (["why", "01a200c47174fe419df30cc2b903e495"], 1, "01a200c47174fe419df30cc2b903e495"),
        (["why", "1234"], 1, "the id is in the header x-tierwise-decision of a reply, and its journal in --state"),
        (["serve", "--port", "99999"], 2, "port"),
        (["serve", "--host", "0.0.0.0"], 2, "keys"),
        (["config", "check", "none.yaml"], 2, "none.yaml"),
    ],
)
def test_what_is_wrong_is_told_on_stderr(tmp_path: Path, words: Sequence[str], code: int, said: str) -> None:
    ran = run(*words, cwd=tmp_path)
    assert ran.returncode == code
    assert said in ran.stderr
    assert ran.stdout == ""


# ------------------------------------------------------------------------------------------------ route


def test_route_says_what_why_and_what_would_change_it(tmp_path: Path) -> None:
    said = good("route", HARD, cwd=tmp_path)
    assert said.startswith("simulated/large: ")
    for part in (
        "→  simulated/large",
        "simulated/medium",
        "simulated/small",
        "simulated/large was chosen by price (screen/choose)",
        "What alone would have changed it:",
    ):
        assert part in said
    assert "_nano" not in said
    assert said.count("weigh least") == 1, "the reason is said once"
    assert "price USD" not in said and re.search(r"cost USD +seconds +waiting USD", said)
    assert not list(tmp_path.iterdir()), "it only looks"


def test_route_and_check_look_into_the_state_that_is_named(tmp_path: Path) -> None:
    """For what was learned lies there: here a state that nobody can read."""
    learned = tmp_path / "elsewhere/learned"
    learned.mkdir(parents=True)
    (learned / "1.json").symlink_to(tmp_path)
    (tmp_path / "tierwise.yaml").write_text("models: {simulated/small: {}}\n")
    said = [good("config", "check", "--state", state, cwd=tmp_path) for state in ("elsewhere", "here")]
    assert ["number 1 does not serve" in each for each in said] == [True, False]
    assert run("route", "x", "--state", "elsewhere", cwd=tmp_path).returncode == 0


def test_route_as_json(tmp_path: Path) -> None:
    found = json.loads(good("route", "Hello!", "--json", cwd=tmp_path))
    assert found["model"] == "simulated/small"
    assert found["features"]["task"] == "greeting"
    assert DECISION.fullmatch(found["decision_id"])
    assert {each["verdict"] for each in found["candidates"]} <= {"chosen", "next", "passed_over", "dropped"}
    assert {"reasons", "flips", "sentence", "money", "policy", "snapshot"} <= set(found)


def test_route_reads_standard_input(tmp_path: Path) -> None:
    """A prompt in a pipe gets the same answer as one on the command line."""
    piped = json.loads(good("route", "-", "--json", cwd=tmp_path, stdin=HARD))
    typed = json.loads(good("route", HARD, "--json", cwd=tmp_path))
    assert piped["features"] == typed["features"]
    assert piped["model"] == typed["model"]


def test_routes_options_reach_the_decision(tmp_path: Path) -> None:
    words = ("--system", "You are terse.", "--criticality", "internal", "--latency", "batch", "--max-tokens", "50")
    found = json.loads(good("route", HARD, *words, "--json", cwd=tmp_path))
    plain = json.loads(good("route", HARD, "--json", cwd=tmp_path))
    assert found["features"]["max_tokens"] == 50
    assert found["features"]["input_tokens"] > plain["features"]["input_tokens"]
    prices = [{each["model"]: each["price_usd"] for each in told["candidates"]} for told in (found, plain)]
    assert prices[0] != prices[1], "who reads the answer and how soon say what it is worth"
    pinned = json.loads(good("route", "Hello!", "--model", "simulated/large", "--json", cwd=tmp_path))
    assert pinned["model"] == "simulated/large"


def test_route_ends_with_one_when_nobody_can_serve(tmp_path: Path) -> None:
    ran = run("route", "Hello!", "--max-tokens", "10000000", cwd=tmp_path)
    assert ran.returncode == 1
    assert "✗  simulated/large" in ran.stdout
    assert "it cannot write as many tokens as asked for" in ran.stdout


@pytest.mark.parametrize("words", [["route", HARD], ["models"]])
def test_text_fits_a_terminal_of_80_columns(tmp_path: Path, words: Sequence[str]) -> None:
    """And names are whole, so that they can be copied."""
    said = terminal(words, tmp_path)
    assert max(map(len, said)) <= 80
    text = "\n".join(said)
    assert "…" not in text
    for name in ("simulated/large", "simulated/medium", "simulated/small"):
        assert f"{name} " in text


def terminal(words: Sequence[str], cwd: Path, columns: int = 80) -> list[str]:
    """The lines that a terminal of so many columns would show, without colours."""
    ours, theirs = pty.openpty()
    environ = {**ENVIRON, "COLUMNS": str(columns), "LINES": "24"}
    command = [sys.executable, "-m", "tierwise", *words]
    process = subprocess.Popen(command, cwd=cwd, env=environ, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    heard = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            heard += os.read(ours, 65_536)
        except OSError:  # how a terminal says that the other side has gone
            break
    os.close(ours)
    assert process.wait(20) == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", heard.decode()).replace("\r", "").splitlines()


# ------------------------------------------------------------------------------------------------ serve and why


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str, str]:
    """A folder in which a gateway has served: the folder, its start-up facts, a decision, what `why` said meanwhile."""
    folder = tmp_path_factory.mktemp("served")
    with serving(folder) as facts:
        decision = asked(facts["url"], "Hello!")
        for _ in range(100):  # the journal is written off the request path
            ran = run("why", decision, cwd=folder)
            if ran.returncode == 0:
                break
        assert ran.returncode == 0, ran.stderr
    return folder, facts, decision, ran.stdout


def test_serve_tells_its_facts_as_json(past: Any) -> None:
    _, facts, _, _ = past
    assert facts["simulated"] is True
    assert facts["url"].startswith("http://127.0.0.1:")
    assert facts["tiers"]["frontier"] == ["simulated/large"]
    assert facts["notes"]


def test_serve_prints_an_example_that_works(tmp_path: Path) -> None:
    """The curl line is run as it is printed."""
    command = [sys.executable, "-m", "tierwise", "serve", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        while not lines or "print(reply" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], process.communicate()[1]
        text = "".join(lines)
        curl = re.search(r"^(curl .*\\\n.*)$", text, re.M)
        assert curl
        heard = subprocess.run(
            ["sh", "-c", curl[1]], env=ENVIRON, capture_output=True, text=True, timeout=30, check=False
        )
        assert "x-tierwise-decision: " in heard.stdout, heard.stderr
        assert '"choices":' in heard.stdout
        example = text[text.index("from openai import OpenAI") :]
        ran = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == 0, ran.stderr
        assert [line.split()[0] for line in ran.stdout.splitlines()] == ["small", "large"]
    finally:
        process.terminate()
        process.communicate(timeout=20)
    for part in (
        "frontier  simulated/large (3 / 15 USD",
        "policy    screen (keep)",
        "baseline  simulated/large",
        "simulated",
    ):
        assert part in text


def test_why_tells_the_past_while_the_gateway_runs_and_afterwards(past: Any) -> None:
    folder, _, decision, meanwhile = past
    said = good("why", decision, cwd=folder)
    assert said == meanwhile
    for part in (
        "→  simulated/small",
        "Ended: answered after ",
        "Asked for auto, routed to simulated/small",
        "Cost 0.0",
    ):
        assert part in said
    assert "_nano" not in said


def test_why_takes_how_an_id_begins_where_one_alone_begins_so(past: Any, tmp_path: Path) -> None:
    folder, facts, decision, meanwhile = past
    assert good("why", decision[:8], cwd=folder) == meanwhile
    ran = run("why", decision[:7], cwd=folder)
    assert ran.returncode == 1 and "give 8 letters or more" in ran.stderr
    state = shutil.copytree(folder / facts["state"], tmp_path / "state")
    with sqlite3.connect(state / "journal.sqlite") as journal:
        columns = "at_s, snapshot, record"
        journal.execute(f"INSERT INTO episodes (id, {columns}) SELECT id || 'a', {columns} FROM episodes")  # noqa: S608
    assert good("why", decision, "--state", str(state), cwd=tmp_path) == meanwhile
    ran = run("why", decision[:-1], "--state", str(state), cwd=tmp_path)
    assert ran.returncode == 1 and f"{decision} and {decision}a; give more" in ran.stderr


def test_why_as_json(past: Any) -> None:
    folder, _, decision, _ = past
    found = json.loads(good("why", decision, "--json", cwd=folder))
    assert found["record"]["episode"]["id"] == decision
    assert found["record"]["outcome"]["status"] == "answered"
    assert found["explanation"]["model"] == "simulated/small"


def test_why_looks_into_the_folder_that_is_named(past: Any, tmp_path: Path) -> None:
    folder, facts, decision, _ = past
    state = folder / facts["state"]
    assert good("why", decision, "--state", str(state), cwd=tmp_path)
    assert good("why", decision, cwd=tmp_path, environ={"TIERWISE_STATE": str(state)})
    lost = run("why", decision, cwd=tmp_path)
    assert lost.returncode == 1
    assert "--state" in lost.stderr
    assert not list(tmp_path.iterdir()), "asking why makes no journal"


def test_an_address_in_use_is_told(past: Any, tmp_path: Path) -> None:
    with serving(tmp_path) as facts:
        port = facts["url"].rpartition(":")[2]
        ran = run("serve", "--port", port, "--state", "another", cwd=tmp_path)
        assert ran.returncode == 2
        assert port in ran.stderr


# ------------------------------------------------------------------------------------------------ models and config


def test_models(tmp_path: Path) -> None:
    said = good("models", cwd=tmp_path)
    assert re.search(r"simulated/large +frontier +3 +15 +200,000 +tools", said)
    assert "Names: auto, auto:economy" in said
    found = json.loads(good("models", "--json", cwd=tmp_path))
    rows = {row["id"]: row for row in found["models"]}
    assert rows["simulated/large"]["input_usd_per_mtok"] == "3"
    assert set(rows) <= set(found["names"])


def test_models_of_a_file_that_the_environment_names(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("models: {simulated/small: {tier: fast, price: {free: true}}}\n")
    rows = json.loads(good("models", "--json", cwd=tmp_path, environ={"TIERWISE_CONFIG": "mine.yaml"}))["models"]
    assert [(row["id"], row["tier"], row["input_usd_per_mtok"]) for row in rows] == [("simulated/small", "fast", "0")]


def test_config_check(tmp_path: Path) -> None:
    (tmp_path / "tierwise.yaml").write_text("models: {simulated/small: {}}\n")
    assert good("config", "check", cwd=tmp_path).startswith("tierwise.yaml: good (1 model, ")
    found = json.loads(good("config", "check", "tierwise.yaml", "--json", cwd=tmp_path))
    assert found["ok"] is True
    assert found["policies"] == ["default", "economy", "balanced", "quality"]


def test_config_check_tells_every_problem_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "modells: {}\nserver:\n  port: many\nkeys: [{name: a, secret: sk-very-secret}]\n"
    )
    ran = run("config", "check", "bad.yaml", cwd=tmp_path)
    assert ran.returncode == 2
    for part in ("line 1: modells", "'models'", "line 3: server.port", "line 4: keys"):
        assert part in ran.stderr
    told = run("config", "check", "bad.yaml", "--json", cwd=tmp_path)
    assert told.returncode == 2
    found = json.loads(told.stdout)
    assert found["ok"] is False
    assert {problem["line"] for problem in found["problems"]} == {1, 3, 4}
    assert "sk-very-secret" not in ran.stderr + told.stdout + told.stderr


def test_config_schema_is_a_schema(tmp_path: Path) -> None:
    """And what editors complete from it is what the reader takes."""
    schema = json.loads(good("config", "schema", cwd=tmp_path))
    assert schema["$schema"].startswith("https://json-schema.org/")
    top = schema["$defs"]["ConfigFile"]
    assert set(top["properties"]) >= {"server", "providers", "models", "policy", "budgets", "keys", "journal"}
    assert top["additionalProperties"] is False
