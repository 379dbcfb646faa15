"""`tierwise balance`, `key`, `budget`, `credit`, `ledger`, as people and scripts run them: real gateways and files."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.support.ledgers import a_hold
from tests.test_cli import ENVIRON
from tests.test_cli import run as process
from tierwise.cli import main as cli
from tierwise.cli.balance import COLUMNS, picture
from tierwise.cli.ledger import _period, cell
from tierwise.core.budget import Budget, Charge
from tierwise.core.errors import RequestError, TierwiseError
from tierwise.stores.journal import SqliteJournal
from tierwise.stores.journal_sql import ADD_ROLLUP
from tierwise.stores.ledger.bills import DAY_S, day_of
from tierwise.stores.ledger.sqlite import SqliteLedger

CONFIG = {
    "models": {"simulated/small": {}, "simulated/large": {}},
    "budgets": [{"scope": "user", "limit_usd": 5, "window": "day"}, {"scope": "session", "steps": 9}],
    "keys": [{"name": "ada", "secret": "env:ADA_KEY", "user": "ada"}],
}
KEY = "tw-key-of-ada-1234567890"
DAY = day_of("2026-11-03")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("money")
    (path / "tierwise.yaml").write_text(yaml.safe_dump(CONFIG))
    return path


Run = Callable[..., "Ran"]


class Ran(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process, which is quicker; what only a process of its own shows is shown by one below."""

    def command(*words: str, **environ: str) -> Ran:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["tierwise", *words])
            for name, value in environ.items():
                patch.setenv(name, value)
            code = 0
            try:
                cli.main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 0
        return Ran(code, *capsys.readouterr())

    return command


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[str]:
    with gateway(folder) as url:
        yield url


@contextmanager
def gateway(folder: Path, *words: str) -> Iterator[str]:
    """A gateway process; its address."""
    command = [sys.executable, "-m", "tierwise", "serve", "--json", *(words or ("--port", "0"))]
    environ = {**ENVIRON, "ADA_KEY": KEY}
    process = subprocess.Popen(
        command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield json.loads(line)["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0 and "Traceback" not in errors


def following(folder: Path, url: str, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tierwise", "balance", "--watch", "--url", url, *words]
    environ = {**ENVIRON, "TIERWISE_KEY": KEY}
    return subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ask(url: str) -> None:
    body = json.dumps({"model": "simulated/small", "messages": [{"role": "user", "content": "hi"}]}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/chat/completions", body, headers), timeout=20) as got:
        assert got.status == 200


# ------------------------------------------------------------------------------------------------ balance


def test_the_balance_of_a_running_gateway_once(served: str, run: Run) -> None:
    ask(served)
    ran = run("balance", "--url", served, "--session", "s", TIERWISE_KEY=KEY)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert all(len(line) <= COLUMNS for line in ran.stdout.splitlines())
    assert re.search(r"^user ada · day$", ran.stdout, re.M) and "  limit 5 USD\n" in ran.stdout
    assert re.search(r"^session s$", ran.stdout, re.M) and "0 of 9 steps" in ran.stdout
    assert "--session" not in ran.stdout
    # Whoever does not ask for a session is told that there is more.
    further = "Sessions have limits of their own: see --session"
    assert further in run("balance", "--url", served, TIERWISE_KEY=KEY).stdout.splitlines()
    # Host and port as `serve` takes them, and JSON.
    place = {"TIERWISE_HOST": "0.0.0.0", "TIERWISE_PORT": served.rpartition(":")[2]}
    told = json.loads(run("balance", "--json", TIERWISE_KEY=KEY, **place).stdout)
    assert told["balances"][0]["spent_nano"] > 0 and told["not_shown"] == ["session"]


def test_a_balance_that_cannot_be_had(served: str, run: Run) -> None:
    refused = run("balance", "--url", f"{served}/v1/", "--key", "wrong")
    assert refused.returncode == 1 and "not known here" in refused.stderr and "TIERWISE_KEY" in refused.stderr
    for words in ((), ("--watch",)):
        ran = run("balance", "--url", "http://127.0.0.1:9", *words)
        assert ran.returncode == 1 and "does not answer" in ran.stderr and "tierwise serve" in ran.stderr
    ran = run("balance", "--url", f"{served}/elsewhere", "--key", KEY)
    assert ran.returncode == 1 and "leads nowhere" in ran.stderr
    for url in ("ftp://x", "http://x:y", "http://me@x"):
        assert run("balance", "--url", url).returncode == 2
    assert run("balance", "--url", served, "--key", "ключ\n").returncode == 2


def test_a_balance_is_watched_as_it_falls_over_a_restart_until_control_c(folder: Path) -> None:
    own = ("--state", "other")
    with gateway(folder, "--port", "0", *own) as url:
        watching = following(folder, url, "--json")
        assert watching.stdout is not None and watching.stderr is not None
        first = json.loads(watching.stdout.readline())
        ask(url)
        spent = [first["balances"][0]["spent_nano"]]
        while True:
            user = json.loads(watching.stdout.readline())["balances"][0]
            assert user["limit_nano"] == user["spent_nano"] + user["held_nano"] + user["left_nano"]
            spent.append(user["spent_nano"])
            if spent[-1] > spent[0] and not user["held_nano"]:
                break
        assert spent == sorted(spent)
    gone = watching.stderr.readline()
    assert "trying again" in gone and url in gone
    with gateway(folder, "--port", url.rpartition(":")[2], *own):
        assert json.loads(watching.stdout.readline())["balances"][0]["spent_nano"] == spent[-1]
        watching.send_signal(signal.SIGINT)
        out, errors = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert "is back" in errors and "Traceback" not in errors + out


def test_a_terminal_shows_one_picture_and_gets_its_cursor_back(folder: Path, served: str) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "tierwise", "balance", "--watch", "--url", served]
    watching = subprocess.Popen(
        command, cwd=folder, env={**ENVIRON, "TIERWISE_KEY": KEY}, stdin=follower, stdout=follower, stderr=follower,
        start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    try:
        shown = read_until(leader, "limit 5 USD")
        ask(served)
        shown += read_until(leader, "limit 5 USD")
        watching.send_signal(signal.SIGINT)
        shown += read_until(leader, None)
        assert watching.wait(20) == 130
    finally:
        watching.kill()
        os.close(leader)
    assert "█" in shown and "Traceback" not in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") > -1, "the cursor is shown again"


def read_until(terminal: int, text: str | None) -> str:
    """What the terminal shows until this text; None: until it is closed."""
    shown = b""
    while text is None or text.encode() not in shown:
        assert select.select([terminal], [], [], 20)[0], shown.decode("utf-8", "replace")
        try:
            more = os.read(terminal, 65_536)
        except OSError:  # Linux says so when the other end is closed
            more = b""
        if not more:
            assert text is None, shown.decode("utf-8", "replace")
            break
        shown += more
    return shown.decode("utf-8", "replace")


def balance_of(**more: Any) -> dict[str, Any]:
    none = {name: {"limit": None, "used": 0} for name in ("steps", "calls", "tokens", "parallel")}
    usual = {"scope": "user", "window": "day", "subject": "ada", "credit": False, "hard": True, "price_of_money": 1.0}
    amounts = {"limit_nano": 10**9, "spent_nano": 400, "held_nano": 0, "left_nano": 10**9 - 400}
    return {**usual, **amounts, **none, "starts_at": None, "resets_at": None, **more}


def told(*balances: dict[str, Any]) -> dict[str, Any]:
    return {"at": "2026-11-03T10:00:00Z", "price_of_money": 1.5, "causes": [], "balances": list(balances)}


def test_a_picture_fits_and_moves_no_cursor() -> None:
    lines = picture(
        told(
            balance_of(subject="\x1b[2J" + "x" * 300, resets_at="2026-11-04T00:00:00Z", price_of_money=1.5),
            balance_of(credit=True, limit_nano=0, left_nano=0, spent_nano=0),
            balance_of(limit_nano=10**19, left_nano=10**19, steps={"limit": 9, "used": 3}, hard=False),
            balance_of(limit_nano=None, left_nano=None, tokens={"limit": 50_000, "used": 12_000}),
        ),
        "http://127.0.0.1:4100",
    )
    text = "\n".join(lines)
    assert max(map(len, lines)) <= COLUMNS and "\x1b" not in text
    for words in ("resets in 14 h 0 min", "credit of the user", "12,000 of 50,000 tokens", "3 of 9 steps", "soft",
                  "left 0.9999996  spent 0.0000004  held 0  limit 1 USD"):  # fmt: skip
        assert words in text
    one = {"limit": 1, "used": 0}
    assert "0 of 1 step · 0 of 1 call at once" in "\n".join(picture(told(balance_of(steps=one, parallel=one)), "x"))
    least = balance_of(limit_nano=10_000, left_nano=1, spent_nano=9_999)  # what is left is never rounded to nothing
    assert "left 0.000000001  spent 0.000009999  held 0  limit 0.00001 USD" in picture(told(least), "x")[-1]
    both = picture({**told(), "not_shown": ["session", "workflow"]}, "x")
    assert (
        both[-1].endswith("see --session and --workflow")
        and max(map(len, both)) <= COLUMNS
        and "nothing limits" not in "\n".join(both)
    )
    assert "nothing limits" in "\n".join(picture(told(), "x"))
    with pytest.raises(TierwiseError):
        picture({"balances": [{}]}, "x")


# ------------------------------------------------------------------------------------------------ keys and budgets


def test_names_are_checked_where_the_secrets_are_not(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes keys need not have the gateway's secrets; its file is enough to know its names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tierwise.yaml").write_text(
        "models: {openai/gpt-5: {tier: fast}}\nserver: {host: 0.0.0.0}\n"
        "keys: [{name: ada, secret: env:NOT_SET_HERE, tags: {project: x}}]\n"
    )
    code, out, said = run("key", "create", "--name", "k", "--allow", "openai/gtp-5")
    assert (code, out, "openai/gpt-5" in said) == (2, "", True)
    assert run("key", "create", "--name", "k", "--allow", "openai/gpt-5")[::2] == (0, "")
    assert "configuration file" in run("key", "create", "--name", "ada")[2]
    code, _, said = run("budget", "set", "--scope", "tag", "--match", "projet=x", "--calls", "5")
    assert (code, "'project'" in said) == (2, True)
    assert run("budget", "set", "--scope", "tag", "--match", "project=y", "--calls", "5")[0] == 0
    assert run("config", "check")[0] == 2, "what is served needs its secrets"


def test_amounts_and_places_as_people_read_them(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tierwise.yaml").write_text(
        "models: {simulated/small: }\nbudgets: [{scope: user, limit_usd: 2.50, window: day}]\n"
    )
    least = ("budget", "set", "--scope", "user", "--limit-usd", "0.00001", "--reserve-usd", "0.000000001", "--soft")
    assert run(*least)[1] == "user[]/lifetime: 0.00001 USD, reserve 0.000000001 USD, soft\n"
    looser = run("budget", "set", "--scope", "user", "--limit-usd", "3", "--calls", "9", "--window", "day")[1]
    assert looser == (
        "user[]/day: 3 USD a day, calls 9; the configuration file or the key is tighter, so what holds is 2.5 USD a "
        "day, calls 9\n"
    )
    run("budget", "set", "--scope", "user", "--limit-usd", "3", "--window", "day")
    add = ("credit", "add", "--scope", "user", "--subject", "ada", "--id", "c", "--amount-usd")
    assert run(*add, "-0.00002")[1] == "-0.00002 USD for user ada, as c\n"
    assert "-0.00002 USD" in run("credit", "list")[1]
    hour = ("budget", "set", "--scope", "user", "--limit-usd", "1", "--window", "hour", "--match", "user=ada")
    assert run(*hour)[1] == "user[user=ada]/hour: 1 USD an hour\n"
    run("budget", "remove", "user[user=ada]/hour")
    run("key", "create", "--name", "k", "--user", "ada", "--tag", "a=b", "--budget-usd", "0.00003")
    rows = [line.split("  ") for line in run("budget", "list")[1].splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells == [
        ["id", "made in", "limits"],
        ["user[]/day", "the file", "2.5 USD a day"],
        ["user[]/day", "the registry", "3 USD a day"],
        ["user[]/lifetime", "the registry", "0.00001 USD, reserve 0.000000001 USD, soft"],
        ["key[key=k]/lifetime", "its key", "0.00003 USD"],
    ]
    head, row = run("key", "list")[1].splitlines()
    assert "payer" in head and "made in" in head and "user=ada a=b" in row and "0.00003 USD" in row


# ------------------------------------------------------------------------------------------------ ledger


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder with two calls in its ledger, one of them by a session that is named like a formula."""

    async def make() -> None:
        ledger = SqliteLedger(
            tmp_path / "ledger.sqlite", (Budget(scope="user", limit_nano=10**9), Budget(scope="session")),
            reserve_bytes=4096, clock=lambda: DAY * DAY_S + 60,
        )  # fmt: skip
        for number, session in enumerate(("s", '=HYPERLINK("http://x")')):
            hold = a_hold(f"h{number}", 2_000, model="openai/gpt-5", session=session, at_s=(DAY + number) * DAY_S)
            assert await ledger.hold(hold) is None
            ledger.settle(hold.id, Charge(cost_nano=1_000 + number))
        await ledger.grant("=1+1", "user", "ada", 5)
        await ledger.close()
        journal = SqliteJournal(tmp_path / "journal.sqlite")
        journal._connection.execute(ADD_ROLLUP, (DAY * 24 + 3, "openai/gpt-5", "", 1, 1_000, 0, 0, 0, 12, 34))
        await journal.close()

    asyncio.run(make())
    return tmp_path


def test_audit(state: Path, run: Run) -> None:
    ran = run("ledger", "audit", "--state", str(state))
    assert (ran.returncode, ran.stdout) == (0, f"{state / 'ledger.sqlite'}: sound\n")
    with sqlite3.connect(state / "ledger.sqlite") as tampered:
        tampered.execute("UPDATE entry SET amount_nano = 1 WHERE seq = 1")
        tampered.execute("DELETE FROM hold WHERE id = 'h1'")
    tampered.close()
    ran = run("ledger", "audit", TIERWISE_STATE=str(state))
    assert ran.returncode == 1 and len(ran.stdout.splitlines()) >= 3 and "entry 1 " in ran.stdout
    found = json.loads(run("ledger", "audit", "--state", str(state), "--json").stdout)
    assert (found["ok"], found["faults"]) == (False, ran.stdout.splitlines())
    ran = run("ledger", "audit", "--state", str(state / "none"))
    assert ran.returncode == 2 and "there is no ledger here" in ran.stderr and not (state / "none").exists()


def test_export(state: Path, run: Run) -> None:
    lines = run("ledger", "export", "--state", str(state)).stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["seq"] for row in rows] == [1, 1, 2, 2, 3], "a line for each account of an entry"
    assert [row["account"] for row in rows[:2]] == ["user[]/lifetime", "session[]/lifetime"]
    assert rows[0]["hash"] == rows[1]["hash"] != rows[2]["hash"]
    assert {(row["model"], row["amount_usd"]) for row in rows[:2]} == {("openai/gpt-5", "0.000001")}
    assert rows[-1]["kind"] == "grant" and rows[-1]["note"] == "=1+1"
    text = run("ledger", "export", "--state", str(state), "--format", "csv").stdout
    table = list(csv.DictReader(io.StringIO(text)))
    assert [row["seq"] for row in table] == ["1", "1", "2", "2", "3"] and list(table[0]) == list(rows[0])
    assert table[-1]["note"] == "'=1+1"
    assert not any(value.startswith(("=", "+", "-", "@", "\t", "\r")) for row in table for value in row.values())
    assert run("ledger", "export", "--state", str(state), "--since", "2026-11-04").stdout == ""
    with sqlite3.connect(state / "ledger.sqlite") as tampered:
        tampered.execute("UPDATE entry SET accounts = 'x' WHERE seq = 2")
    tampered.close()
    damaged = run("ledger", "export", "--state", str(state))
    assert damaged.returncode == 2 and len(damaged.stdout.splitlines()) == 2
    assert "no sound ledger" in damaged.stderr and "put a backup in its place" in damaged.stderr
    refused = run("ledger", "export", "--state", str(state), "--since", "soon")
    assert refused.returncode == 2 and "--since" in refused.stderr


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝"])
def test_no_cell_is_a_formula(start: str) -> None:
    assert cell(f"{start}1+1") == f"'{start}1+1"
    assert (cell("1=1"), cell(-5), cell(None)) == ("1=1", -5, "")


def test_backup(state: Path, run: Run) -> None:
    copy = state / "copies" / "ledger.sqlite"
    copy.parent.mkdir()

    async def while_a_gateway_writes() -> subprocess.CompletedProcess[str]:
        words = ("ledger", "backup", str(copy), "--state", str(state))
        ledger = SqliteLedger(state / "ledger.sqlite", (), reserve_bytes=4096)
        try:
            return await asyncio.to_thread(process, *words, cwd=state)
        finally:
            await ledger.close()

    assert asyncio.run(while_a_gateway_writes()).returncode == 0
    assert run("ledger", "audit", "--state", str(copy.parent)).returncode == 0
    assert copy.stat().st_mode & 0o077 == 0
    again = run("ledger", "backup", str(copy), "--state", str(state))
    assert again.returncode == 2 and "already" in again.stderr


def test_reconcile(state: Path, run: Run) -> None:
    bill = state / "bill.csv"
    bill.write_text("date,model,cost_usd\n2026-11-03,gpt-5-2025-08-07,0.000001030\n2026-11-04,dall-e,0.5\n")
    words = ("ledger", "reconcile", str(bill), "--provider", "openai", "--period", "2026-11", "--state", str(state))
    ran = run(*words)
    assert ran.returncode == 1, ran.stderr
    assert re.search(r"2026-11-03 +openai/gpt-5 +0\.000001000 +0\.000001030 +0\.000000030 +\+3\.00%", ran.stdout)
    assert "Never called through this ledger: openai/dall-e" in ran.stdout and "--post" in ran.stdout
    found = json.loads(run(*words, "--json").stdout)
    assert found["total"]["difference_nano"] == 30 + 500_000_000 - 1_001
    assert found["rows"][0]["our_tokens"] == {"input": 12, "output": 34}
    ran = run(*words, "--post")
    assert ran.returncode == 0 and "variance/openai, and not written yet: 3 variance entries" in ran.stdout
    assert "Posted" not in ran.stdout
    assert run("ledger", "audit", "--state", str(state)).returncode == 0
    ran = run(*words)
    assert ran.returncode == 0 and "agree to the nano-dollar" in ran.stdout
    assert "waiting for the gateway: 3 variance entries" in ran.stdout
    bill.write_text("date,model,cost_usd\n2026-11-03,gpt-5,much\n")
    ran = run(*words)
    assert ran.returncode == 2 and "line 2" in ran.stderr


@pytest.mark.parametrize(
    ("text", "first", "days"),
    [("2026-11", "2026-11-01", 30), ("2028-02", "2028-02-01", 29), ("2026-12-31", "2026-12-31", 1)],
)
def test_periods(text: str, first: str, days: int) -> None:
    found = _period(text)
    assert (found[0], found[1] - found[0] + 1) == (day_of(first), days)


@pytest.mark.parametrize("text", ["2026", "2026-13", "november", "2026-02-30"])
def test_what_is_no_period(text: str) -> None:
    with pytest.raises(RequestError, match="--period"):
        _period(text)
