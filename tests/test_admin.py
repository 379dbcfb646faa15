"""The admin API and the commands: what they make works at once, and nobody gives more than they have."""

from __future__ import annotations

import json
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.callers import OPENAI
from tests.support.commands import Command
from tests.support.gateway import ADA, KEYS, Gateway, Heard, world
from tests.support.management import MUTANTS, asked, opened, violations
from tests.support.upstream import FakeUpstream
from tests.test_cli import serving

ROOT = {"name": "root", "secret": "env:BOB_KEY", "admin": True}


class Office:
    """A gateway whose file knows the owner's key and Ada's, who is nobody's admin."""

    def __init__(self, gateway: Gateway, upstream: FakeUpstream) -> None:
        self.gateway = gateway
        self.upstream = upstream

    async def do(self, method: str, path: str, body: Any = None, *, key: str = "tw-key-of-bob-1234567890") -> Heard:
        data = None if body is None else json.dumps(body)
        headers = {"authorization": f"Bearer {key}"}
        return await self.gateway.fetch(method, f"/v1/admin/{path}", data=data, headers=headers)

    async def made(self, **body: Any) -> str:
        heard = await self.do("POST", "keys", body)
        assert heard.status == 200, heard.body
        return str(heard.json["secret"])

    async def ask(self, key: str, **body: Any) -> Heard:
        return await self.gateway.ask(OPENAI, headers={"authorization": f"Bearer {key}"}, **body)


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, keys=[KEYS[0], ROOT])) as gateway:
        yield Office(gateway, one)


# ------------------------------------------------------------------------------------------------ over HTTP


async def test_a_key_lives_from_its_making_to_its_end(office: Office) -> None:
    secret = await office.made(name="kid", team="search", limit_usd=1, window="day", rpm=100)
    heard = await office.ask(secret)
    assert (heard.status, heard.headers["x-ratelimit-limit-requests"]) == (200, "100")
    assert float(heard.headers["x-tierwise-budget-remaining-usd"]) < 1
    row = (await office.do("GET", "keys/kid")).json
    assert (row["state"], row["team"], row["limit_usd"], row["made_by"]) == ("active", "search", 1.0, "root")
    assert secret.startswith(row["prefix"]) and "secret" not in row
    rotated = (await office.do("POST", "keys/kid/rotate", {"overlap_s": 60})).json["secret"]
    assert [(await office.ask(each)).status for each in (secret, rotated)] == [200, 200]
    again = (await office.do("POST", "keys/kid/rotate")).json["secret"]
    assert [(await office.ask(each)).status for each in (rotated, again)] == [401, 200]
    assert (await office.ask(secret)).status == 401  # overlapped until the second rotation asked for none
    heard = await office.do("POST", "keys/kid", {"rpm": 1, "team": None})
    assert (heard.json["rpm"], heard.json["team"], heard.json["limit_usd"]) == (1, None, 1.0)
    assert (await office.ask(again)).status == 429
    assert (await office.do("DELETE", "keys/kid")).json == {"revoked": ["kid"]}
    assert (await office.ask(again)).status == 401
    rows = {row["name"]: row["state"] for row in (await office.do("GET", "keys")).json["data"]}
    assert rows == {"ada": "active", "root": "active", "kid": "revoked"}
    assert (await office.do("POST", "keys", {"name": "kid"})).error["code"] == "key_exists"


async def test_budgets_and_credits_count_from_the_next_request_on(office: Office) -> None:
    heard = await office.do("POST", "budgets", {"scope": "team", "match": {"team": "search"}, "limit_usd": 0.000001})
    id = heard.json["id"]
    assert id == "team[team=search]/lifetime"
    assert (await office.ask(ADA)).error["metadata"]["scope"] == "team"
    assert [row["id"] for row in (await office.do("GET", "budgets")).json["data"]] == [id]
    assert (await office.do("DELETE", f"budgets/{id}")).status == 200
    assert (await office.ask(ADA)).status == 200
    credit = {"id": "c1", "scope": "user", "subject": "ada", "amount_usd": 0.000001}
    assert [(await office.do("POST", "credits", credit)).json["new"] for _ in range(2)] == [True, False]
    assert (await office.ask(ADA)).status == 402
    assert (await office.do("POST", "credits", {**credit, "amount_usd": 2})).error["code"] == "credit_exists"
    assert (await office.do("POST", "credits", {**credit, "id": "c2", "amount_usd": 1})).status == 200
    assert (await office.ask(ADA)).status == 200
    assert len((await office.do("GET", "credits")).json["data"]) == 2


async def test_a_file_s_budget_can_be_tightened_and_never_loosened(office: Office) -> None:
    config = dict(office.gateway.config) | {"budgets": [{"scope": "team", "limit_usd": 0.000001}]}
    await office.gateway.apply(config)
    assert (await office.do("POST", "budgets", {"scope": "team", "limit_usd": 100})).status == 200
    assert (await office.ask(ADA)).status == 402
    assert (await office.do("DELETE", "budgets/team[]/lifetime")).status == 200
    assert (await office.do("DELETE", "budgets/team[]/lifetime")).error["code"] == "in_file"
    assert (await office.do("POST", "keys/ada", {"rpm": 1})).error["code"] == "in_file"
    assert (await office.do("POST", "keys", {"name": "ada"})).error["code"] == "key_exists"


WRONG = [
    ("keys", {"name": "a b"}, "name"), ("keys", {"name": ""}, "name"), ("keys", {"name": "x" * 65}, "name"),
    ("keys", {}, "name"), ("keys", {"name": "k", "allow": ["fas"]}, "fast"), ("keys", {"name": "k", "rpm": 0}, "rpm"),
    ("keys", {"name": "k", "policies": ["defualt"]}, "default"), ("keys", {"name": "k", "limit_usd": -1}, "limit_usd"),
    ("keys", {"name": "k", "limit_usd": 1e300}, "limit_usd"), ("keys", {"name": "k", "window": "day"}, "window"),
    ("keys", {"name": "k", "expires_at": 2**63}, "expires_at"),
    ("keys", {"name": "k", "routes": ["/*"]}, "routes"), ("keys", {"name": "k", "routes": ["admin"]}, "routes"),
    ("keys", {"name": "k", "user": "a\nb"}, "user"), ("keys", {"name": "k", "expires_days": 0}, "expires_days"),
    ("keys", {"name": "k", "temp_budget_increase": 5}, "temp_budget_increase"), ("keys", [], "object"),
    ("keys", {"name": "k", "tags": {"a": "\x1f"}}, "tags"), ("budgets", {"scope": "team"}, "limit_usd"),
    ("budgets", {"scope": "teem", "limit_usd": 1}, "scope: must be one of key, organisation, request, "),
    ("budgets", {"scope": "teem", "limit_usd": 1}, "did you mean 'team'?"),
    ("keys", {"name": "k", "rmp": 1}, "rmp: is not a known setting (did you mean 'rpm'?)"),
    ("budgets", {"scope": "planet", "limit_usd": 1}, "scope"), ("budgets", {"scope": "team", "calls": 0}, "calls"),
    ("budgets", {"scope": "team", "limit_usd": 1, "zone": "Mars/Base"}, "zone"),
    ("budgets", {"scope": "team", "limit_usd": 1, "match": {"team": "a,b=c"}}, "match"),
    ("budgets", {"scope": "request", "limit_usd": 1, "window": "day"}, "window"),
    ("budgets", {"scope": "user", "calls": 1, "rolling": True}, "rolling"),
    ("budgets", {"scope": "user", "steps": 9}, "steps"), ("budgets", {"scope": "session", "repeats": 33}, "repeats"),
    ("budgets", {"scope": "session", "repeats": 1}, "repeats"),
    ("budgets", {"scope": "team", "calls": 9, "hard": False}, "calls"),
    ("budgets", {"scope": "user", "limit_usd": 1, "reserve_usd": 2}, "reserve_usd"),
    ("credits", {"id": "c", "scope": "session", "subject": "a", "amount_usd": 1}, "scope"),
    ("credits", {"id": "", "scope": "user", "subject": "a", "amount_usd": 1}, "id"),
    ("credits", {"id": "c", "scope": "user", "subject": "a", "amount_usd": 0}, "amount_usd"),
    ("credits", {"id": "c", "scope": "user", "subject": "a", "amount_usd": "NaN"}, "amount_usd"),
]  # fmt: skip


async def test_what_is_wrong_is_named(office: Office) -> None:
    for path, body, named in WRONG:
        heard = await office.do("POST", path, body)
        assert (heard.status, named in heard.error["message"]) == (400, True), (path, body, heard.body)
    for path in ("keys", "keys/ada/rotate", "budgets", "credits"):
        heard = await office.gateway.post(
            f"/v1/admin/{path}", b"{", headers={"authorization": "Bearer tw-key-of-bob-1234567890"}
        )
        assert heard.status == 400, path
    assert (await office.do("DELETE", "keys/nobody")).error["code"] == "key_not_found"
    assert (await office.do("DELETE", "budgets/nothing")).error["code"] == "budget_not_found"
    assert [row["name"] for row in (await office.do("GET", "keys")).json["data"]] == ["ada", "root"]


async def test_only_admins_are_admins(office: Office, tmp_path: Path) -> None:
    managing = await office.made(name="m", role="admin", routes=["chat"])
    for path in ("keys", "budgets", "credits", "keys/ada"):
        for key in (ADA, managing):
            heard = await office.do("GET", path, key=key)
            assert (heard.status, heard.error["code"]) == (403, "admin_only")
        assert (await office.do("GET", path, key="tw-guess")).status == 401
    async with Gateway(tmp_path, world("http://127.0.0.1:9/v1")) as keyless:
        heard = await keyless.post("/v1/admin/keys", {"name": "k"})
        assert (heard.status, heard.error["code"]) == (403, "admin_only")
        assert "tierwise key create" in heard.error["message"]
    chief = await office.made(name="chief", role="admin", team="search", routes=["admin"])
    assert (await office.ask(chief)).error["code"] == "route_forbidden"
    assert not office.upstream.requests


# ------------------------------------------------------------------------------------------------ never wider


async def test_a_bound_admin_has_its_own_and_nothing_else(office: Office) -> None:
    """By example; the programs below do the rest."""
    chief = await office.made(name="chief", role="admin", team="search", allow=["fast"], limit_usd=5, window="day")
    await office.made(name="far", team="ads", user="cleo")
    heard = await office.do("POST", "keys", {"name": "kid"}, key=chief)
    assert (heard.status, heard.error["code"]) == (403, "wider_than_grantor")
    assert len(heard.error["metadata"]["wider"]) == 2
    kid = {"name": "kid", "team": "search", "allow": ["one/cheap"], "role": "admin"}
    heard = await office.do("POST", "keys", {**kid, "user": "cleo"}, key=chief)
    assert heard.error["metadata"]["wider"] == ["user: 'cleo' is taken"]
    secret = (await office.do("POST", "keys", kid, key=chief)).json["secret"]
    assert (await office.ask(secret)).headers["x-tierwise-budget-remaining-usd"] < "5"
    for path, body in (
        ("keys/chief", {"limit_usd": 50}),
        ("credits", {"id": "c", "scope": "key", "subject": "chief", "amount_usd": 9}),
        ("budgets", {"scope": "team", "match": {"team": "search"}, "limit_usd": 9}),
    ):  # fmt: skip
        assert (await office.do("POST", path, body, key=chief)).status == 403, path
    for method, path in (
        ("GET", "keys/far"),
        ("POST", "keys/far"),
        ("DELETE", "keys/far"),
        ("POST", "keys/root/rotate"),
    ):
        body = {} if method == "POST" else None
        assert (await office.do(method, path, body, key=chief)).error["code"] == "key_not_found"
    assert (await office.do("POST", "keys/chief", {"limit_usd": 50}, key=secret)).error["code"] == "key_not_found"
    narrower = {"scope": "key", "match": {"team": "search", "key": "kid"}, "limit_usd": 1}
    assert (await office.do("POST", "budgets", narrower, key=chief)).status == 200
    # Narrowed afterwards, it cannot get back what it gave: not by a new secret of a key that has it.
    assert (await office.do("POST", "keys/chief", {"allow": ["frontier"]})).status == 200
    assert (await office.do("POST", "keys/kid/rotate", {}, key=chief)).status == 403
    assert (await office.do("DELETE", "keys/chief?descendants=true")).json == {"revoked": ["chief", "kid"]}
    assert (await office.ask(secret)).status == 401


async def test_no_program_of_an_admin_escalates(tmp_path: Path) -> None:
    """A6, bar 26 in its fast form."""
    assert await violations(tmp_path, [*range(200), 1968]) == []  # the last one once found a way


@pytest.mark.parametrize("mutate", MUTANTS, ids=range(len(MUTANTS)))
async def test_the_programs_find_every_broken_rule(
    mutate: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    assert await violations(tmp_path, [1968, *range(200)], most=1)


async def test_who_belongs_to_nobody_and_is_limited_names_nobody(tmp_path: Path) -> None:
    """Or it would spend what is prepaid for the people it names."""
    app, _ = await opened(tmp_path)
    limited = {"name": "b", "role": "admin", "rpm": 100_000}
    _, boss = await asked(app, "tw-key-of-the-owner-0123456789", "POST", "/v1/admin/keys", limited)
    for named in ({"user": "ada"}, {"team": "ads"}, {"organisation": "acme"}, {"tags": {"project": "x"}}):
        status, told = await asked(app, boss["secret"], "POST", "/v1/admin/keys", {"name": "k", **named})
        assert (status, next(iter(named)) in told["error"]["message"]) == (403, True), told
    status, _ = await asked(app, boss["secret"], "POST", "/v1/admin/keys", {"name": "k"})
    assert status == 200


async def test_programs_can_do_something(tmp_path: Path) -> None:
    """That nothing escalates means nothing where nothing is allowed: a bound admin does make keys, and they work."""
    app, _ = await opened(tmp_path)
    status, boss = await asked(
        app, "tw-key-of-the-owner-0123456789", "POST", "/v1/admin/keys", {"name": "b", "role": "admin", "team": "ads"}
    )
    assert status == 200
    status, made = await asked(
        app, boss["secret"], "POST", "/v1/admin/keys", {"name": "k", "team": "ads", "user": "ada"}
    )
    assert (status, made["made_by"]) == (200, "b")
    assert app.keys.identify({"x-api-key": made["secret"]}).payer.within == ("root", "b")
    await app.router.close()
    app.runtime.close()


# ------------------------------------------------------------------------------------------------ commands


def test_commands_and_a_running_gateway(tmp_path: Path, command: Command) -> None:
    """R7, p100: what a command changes holds in a running gateway within 5 s; without one, from its start on."""

    def created(name: str) -> str:
        code, out, _ = command("key", "create", "--name", name, "--user", name, "--json")
        assert code == 0
        return str(json.loads(out)["secret"])

    root = created("root")
    with serving(tmp_path) as facts:

        def statuses(*keys: str) -> list[int]:
            return [asked_with(facts["url"], key) for key in keys]

        assert statuses(root, "tw-guess", "") == [200, 401, 401]
        ada, bob = created("ada"), created("bob")
        command("budget", "set", "--scope", "user", "--match", "user=ada", "--limit-usd", "0.000001")
        until(lambda: statuses(ada, bob) == [402, 200])
        command("budget", "remove", "user[user=ada]/lifetime")
        add = ("credit", "add", "--scope", "user", "--subject", "bob", "--id", "c", "--amount-usd")
        assert "was there already" not in command(*add, "0.000001")[1]
        assert "was there already" in command(*add, "0.000001")[1]
        assert command(*add, "5")[0] == 1
        until(lambda: statuses(ada, bob) == [200, 402])
        rotated = command("key", "rotate", "ada")[1].split()[-1]
        for name in ("root", "bob"):
            command("key", "revoke", name)
        until(lambda: statuses(ada, rotated, root, bob) == [401, 200, 401, 401])
        command("key", "revoke", "ada")
        until(lambda: statuses(rotated) == [401])
        assert statuses("") == [401]  # without any good key the door stays shut
    with serving(tmp_path) as facts:
        assert statuses(root, "") == [401, 401]


def until(holds: Callable[[], bool]) -> None:
    """Ask until it is so. What is promised is a time, so this is the one place that looks at a clock."""
    end = time.monotonic() + 5.0
    while not holds():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)


def asked_with(url: str, key: str) -> int:
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "Hi"}]}).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/chat/completions", body, headers)) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        error.close()
        return 401 if error.code == 429 else error.code  # a wrong key, and one after too many: no rate is limited here


def test_commands_tell_people_and_programs(command: Command) -> None:
    _, text, _ = command(
        "key", "create", "--name", "ada", "--team", "search", "--tag", "a=b", "--rpm", "5", "--expires", "30"
    )
    secret = text.split()[-1]
    assert secret.startswith("tw-") and len(secret) == 46
    listed = command("key", "list")[1]
    assert "ada" in listed and secret[:9] in listed and secret not in listed and "rpm 5" in listed
    row = json.loads(command("key", "list", "--json")[1])["data"][0]
    assert (row["tags"], row["state"]) == ({"a": "b"}, "active")
    assert row["expires_at"] - row["made_at"] == 30 * 86_400
    assert command("budget", "set", "--scope", "team", "--limit-usd", "5", "--window", "month")[0] == 0
    ids = {row["id"]: row["source"] for row in json.loads(command("budget", "list", "--json")[1])["data"]}
    assert ids == {"team[]/month": "runtime", "key[key=ada]/rolling minute": "key"}
    assert "5 USD a month" in command("budget", "list")[1]
    assert command("credit", "add", "--scope", "team", "--subject", "search", "--amount-usd", "3")[0] == 0
    assert json.loads(command("credit", "list", "--json")[1])["data"][0]["amount_usd"] == 3
    assert "search" in command("credit", "list")[1]


WRONG_COMMANDS = [
    ("key create --name ada", 1), ("key create --name x+y", 2), ("key create --name b --tag nonsense", 2),
    ("key create --name b --route all", 2), ("key create --name b --allow fsat", 2), ("key create", 2),
    ("key revoke zoe", 1), ("key rotate ada --overlap -1", 2), ("budget set --scope team", 2), ("budget remove x", 1),
    ("credit add --scope x --subject y --amount-usd 1", 2), ("key create --name b --role god", 2),
    ("credit add --scope user --subject y --amount-usd nan", 2),
]  # fmt: skip


def test_commands_say_what_is_wrong(command: Command) -> None:
    command("key", "create", "--name", "ada")
    for words, code in WRONG_COMMANDS:
        ended, out, err = command(*words.split())
        assert (ended, out) == (code, ""), words
        assert len(err.strip()) > 10


def test_the_commands_of_the_documentation_work(command: Command) -> None:
    page = (Path(__file__).parent.parent / "docs" / "keys.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("tierwise ")]
    assert len(lines) > 8
    for line in lines:
        code, _, err = command(*shlex.split(line)[1:])
        assert (code, err) == (0, ""), line


def test_a_key_made_at_runtime_lets_a_gateway_leave_loopback(tmp_path: Path, command: Command) -> None:
    (tmp_path / "tierwise.yaml").write_text("models: {simulated/small: }\nserver: {host: 0.0.0.0}\n")
    code, _, said = command("config", "check")
    assert (code, "tierwise key create" in said) == (2, True)
    # The command needs neither keys nor secrets, and no configuration that can be used: it says so, and goes on.
    assert command("key", "create", "--name", "k")[::2] == (0, "")
    assert command("config", "check")[0] == 0
    (tmp_path / "tierwise.yaml").write_text("modles: {simulated/small: }\n")
    code, _, said = command("key", "revoke", "k")
    assert (code, "names were not checked" in said) == (0, True)
