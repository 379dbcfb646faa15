"""Random management programs: an admin that is bound and limited tries to get more than it was given (A6).

Each program makes a small world as its owner would (keys, budgets, credits), gives one admin key to an attacker, and
lets the attacker use the admin API at random, with every secret that it comes by. After each call an oracle that knows
nothing of the rules in `core.keys` looks at what the secrets can do, and at what was not the attacker's to touch.

    found = await violations(tmp_path, range(200))     # [] when nobody escalated

MUTANTS are the rules with one of them broken; each is found by programs [1968, *range(200)].
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from tests.support.gateway import ENVIRON, world
from tierwise.config import Setup, load, open_app
from tierwise.config.runtime import Runtime
from tierwise.core import keys as rule
from tierwise.core.budget import Budget
from tierwise.core.eligible import selected
from tierwise.core.errors import RequestError
from tierwise.core.keys import ROUTES, Book, Grant, key_budgets
from tierwise.server.app import App
from tierwise.server.auth import Identity
from tierwise.server.desk import Desk
from tierwise.server.http import CALLER, Caller
from tierwise.stores.ledger.accounts import Line
from tierwise.stores.registry import SqliteRegistry

ROOT_KEY = "tw-key-of-the-owner-0123456789"
NOWHERE = "http://127.0.0.1:9/v1"
ORGANISATIONS, TEAMS, USERS = ("acme", "bolt"), ("search", "ads", "ops"), ("ada", "bob", "cleo")
SELECTORS = ("fast", "frontier", "one", "two", "one/cheap", "two/dear")
POLICIES = ("default", "frugal", "economy")
CALLS = 12  # of the attacker in one program


async def opened(folder: Path) -> tuple[App, Setup]:
    """An application that calls nobody; close its router."""
    path = folder / "management.yaml"
    keys = [{"name": "root", "secret": "env:ROOT_KEY", "admin": True}]
    config = world(NOWHERE, NOWHERE, keys=keys, policies={"frugal": {"preset": "economy"}})
    path.write_text(yaml.safe_dump(config))
    setup = await load(path, ENVIRON | {"ROOT_KEY": ROOT_KEY})
    return open_app(setup, in_memory=True), setup


async def violations(folder: Path, seeds: Iterable[int], most: int | None = None) -> list[str]:
    """What went wrong in these programs, each with its seed; no more than `most`."""
    app, setup = await opened(folder)
    found: list[str] = []
    try:
        for seed in seeds:
            app.runtime.close()
            app.runtime = Runtime(SqliteRegistry(None), setup)
            app.runtime.attach(app)
            app.runtime.adopt(setup)
            found += [f"seed {seed}: {each}" for each in await Program(app, seed).run()]
            if most is not None and len(found) >= most:
                break
    finally:
        await app.router.close()
        app.runtime.close()
    return found


async def asked(app: App, secret: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One request without a socket: (status, what was said)."""
    said: list[Any] = []
    sent = b"" if body is None else json.dumps(body).encode()
    path, _, query = path.partition("?")
    scope = {
        "type": "http", "method": method, "path": path, "query_string": query.encode(), "http_version": "1.1",
        "headers": [(b"host", b"x"), (b"authorization", f"Bearer {secret}".encode())], CALLER: Caller(),
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": sent}

    async def send(message: Any) -> None:
        said.append(message)

    await app(scope, receive, send)
    return said[0]["status"], json.loads(b"".join(each.get("body", b"") for each in said))


class Program:
    def __init__(self, app: App, seed: int) -> None:
        self.app = app
        self.dice = random.Random(seed)
        self.secrets: dict[str, str] = {}  # the attacker's: name of a key -> its newest secret
        self.found: list[str] = []

    def book(self) -> Book:
        return self.app.runtime.registry.read()

    async def run(self) -> list[str]:
        await self.arrange()
        self.before = self.book()
        for number in range(CALLS):
            name = self.dice.choice([*self.secrets])
            what = await self.attack(self.secrets[name], number)
            self.found += [f"{what} with the key {name}: {each}" for each in self.looked_at()]
            if self.found:
                break
        return self.found

    # ---------------------------------------------------------------------------------------- the owner

    async def arrange(self) -> None:
        """Keys of several teams, budgets and a credit, and the attacker's own key `boss`, narrowed in some ways."""
        dice = self.dice
        for name in ("near", "far", "other"):
            body = {"name": name, "role": dice.choice(["caller", "admin"]), **self.payer(), **self.narrowed(0.3)}
            await self.owner("POST", "keys", body)
        boss = {"name": "boss", "role": "admin", **self.payer(), **self.narrowed(0.6)}
        if "routes" in boss:
            boss["routes"] = sorted({*boss["routes"], "admin"})
        if not any(boss.get(each) for each in ("organisation", "team", "user", "tags")) and dice.random() < 0.9:
            boss["team"] = dice.choice(TEAMS)
        if len(boss) == 2:
            boss["limit_usd"] = 5
        self.secrets["boss"] = (await self.owner("POST", "keys", boss))["secret"]
        for _ in range(3):
            await self.owner("POST", "budgets", self.budget())
        await self.owner(
            "POST", "credits", {"id": "c", "scope": "team", "subject": dice.choice(TEAMS), "amount_usd": 5}
        )

    async def owner(self, method: str, what: str, body: Any) -> Any:
        status, said = await asked(self.app, ROOT_KEY, method, f"/v1/admin/{what}", body)
        assert status == 200, said
        return said

    # ---------------------------------------------------------------------------------------- the attacker

    async def attack(self, secret: str, number: int) -> str:
        dice, names = self.dice, [key.grant.name for key in self.book().keys] + ["root", "nobody"]
        target = dice.choice(names)
        body: Any = None
        match dice.randrange(10):
            case 0 | 1 | 2:
                method, path, body = "POST", "keys", {"name": f"made{number}", **self.likely()}
            case 3 | 4:
                method, path, body = "POST", f"keys/{target}", self.some(self.likely())
            case 5:
                method, path, body = "POST", f"keys/{target}/rotate", {"overlap_s": dice.choice([0, 60])}
            case 6:
                method, path = "DELETE", f"keys/{target}" + dice.choice(["", "?descendants=true"])
            case 7:
                method, path, body = "POST", "budgets", self.budget()
            case 8:
                ids = [row["id"] for row in (await self.owner("GET", "budgets", None))["data"]]
                method, path = "DELETE", f"budgets/{dice.choice(ids)}"
            case _:
                scope, subject = dice.choice([("key", "boss"), ("team", dice.choice(TEAMS))])
                method, path = "POST", "credits"
                body = {"id": f"i{number}", "scope": scope, "subject": subject, "amount_usd": 100}
        status, said = await asked(self.app, secret, method, f"/v1/admin/{path}", body)
        what = f"{method} {path} {json.dumps(body)} -> {status}"
        if status >= 500:
            self.found.append(f"{what}: {said}")
        if status == 200 and "secret" in said:
            self.secrets[said["name"]] = said["secret"]
        if self.dice.random() < 0.4:
            await self.peek(secret, target)
        return what

    async def peek(self, secret: str, target: str) -> None:
        """N1: nobody sees a key that it has not made, nor whether there is one."""
        holder = self.identity(secret)
        if holder is None:
            return
        lineage = {key.grant.name for key in self.book().keys if holder.payer.key in _line(key.grant)}
        _, listed = await asked(self.app, secret, "GET", "/v1/admin/keys")
        seen = {row["name"] for row in listed.get("data", ())}
        self.found += [f"{holder.payer.key} sees {name}" for name in seen - lineage]
        if target not in lineage:
            status, said = await asked(self.app, secret, "GET", f"/v1/admin/keys/{target}")
            missing = await asked(self.app, secret, "GET", "/v1/admin/keys/n0")
            if (status, json.dumps(said).replace(target, "n0")) != (missing[0], json.dumps(missing[1])):
                self.found.append(f"{target} can be told from what is missing: {status} {said}")

    # ---------------------------------------------------------------------------------------- the oracle

    def looked_at(self) -> list[str]:
        book, boss = self.book(), self.grant_of(self.before, "boss")
        found = []
        for name, secret in self.secrets.items():
            identity = self.identity(secret)
            if identity is not None:
                found += [f"{name} {each}" for each in self.beyond(identity, boss)]
        old, new = ({key.grant.name: key for key in each.keys} for each in (self.before, book))
        for name, key in old.items():
            if name == "boss":
                if new[name].grant != key.grant:
                    found.append("boss has changed itself")
            elif new[name] != key:
                found.append(f"{name} is not the attacker's, and was changed")
        if self.before.credits != book.credits:
            found.append("somebody was given credit")
        kept = {*self.before.budgets} ^ {*book.budgets}
        return found + [f"the budget {each} was not the attacker's to touch" for each in kept if not below(each, boss)]

    def beyond(self, identity: Identity, boss: Grant) -> list[str]:
        """What this caller can do that boss could not, as the gateway would have it."""
        payer, own = identity.payer, boss.payer
        found = []
        models = self.app.router.snapshot.catalogue.models.values()
        more = [
            each.id
            for each in models
            if (not identity.grants or selected(each, identity.grants))
            and not (not boss.allow or selected(each, boss.allow))
        ]
        if more:
            found.append(f"reaches {more}")
        for given, had, every in (
            (identity.policies, boss.policies, POLICIES),
            (identity.routes, boss.routes, ROUTES),
        ):
            if {*(given or every)} - {*(had or every)}:
                found.append(f"may ask for {given or 'all'}, and not only {had}")
        grant = identity.grant
        assert grant is not None
        if boss.expires_s is not None and (grant.expires_s or 1 << 60) > boss.expires_s:
            found.append("lives longer")
        bound = own.organisation or own.team or own.user or own.tags
        if bound and (own.organisation, own.tags) != (payer.organisation, payer.tags):
            found.append(f"pays as {payer.organisation!r} for {payer.tags}")
        if own.team and own.team != payer.team:
            found.append(f"pays as {payer.team!r}")
        if own.user and own.user != payer.user:
            found.append(f"pays as {payer.user!r}")
        lines = [Line(budget) for budget in key_budgets("boss", boss.limits)]
        found += [f"does not draw on {line.id}" for line in lines if line.subjects(payer, "", "", "") != ("boss",)]
        return found

    def identity(self, secret: str) -> Identity | None:
        try:
            return self.app.keys.identify({"authorization": f"Bearer {secret}"})
        except RequestError:
            return None

    @staticmethod
    def grant_of(book: Book, name: str) -> Grant:
        return next(key.grant for key in book.keys if key.grant.name == name)

    # ---------------------------------------------------------------------------------------- dice

    def payer(self) -> dict[str, Any]:
        dice = self.dice
        chosen = {"organisation": dice.choice(ORGANISATIONS), "team": dice.choice(TEAMS), "user": dice.choice(USERS)}
        found: dict[str, Any] = {name: value for name, value in chosen.items() if dice.random() < 0.4}
        if dice.random() < 0.2:
            found["tags"] = {"project": dice.choice(["x", "y"])}
        return found

    def narrowed(self, chance: float) -> dict[str, Any]:
        dice = self.dice
        every: dict[str, Any] = {
            "allow": dice.sample(SELECTORS, dice.randint(1, 2)),
            "policies": dice.sample(POLICIES, dice.randint(1, 2)),
            "routes": dice.sample(("chat", "messages", "embeddings"), 2),
            "limit_usd": dice.choice([1, 5, 50]),
            "rpm": dice.choice([1, 10, 100]),
            "expires_days": dice.choice([1, 10, 100]),
        }
        return {name: value for name, value in every.items() if dice.random() < chance}

    def likely(self) -> dict[str, Any]:
        """What boss has itself, and something else in a place or two: so that many of the calls are nearly allowed."""
        row = {key.grant.name: key for key in self.before.keys}["boss"].grant
        same: dict[str, Any] = {
            "organisation": row.payer.organisation or None, "team": row.payer.team or None,
            "user": row.payer.user or None, "tags": dict(row.payer.tags), "allow": row.allow, "policies": row.policies,
            "routes": row.routes, "expires_at": row.expires_s, "role": self.dice.choice(["caller", "admin", "admin"]),
        }  # fmt: skip
        if same["role"] == "caller":
            same["routes"] = [each for each in same["routes"] if each != "admin"]
        if self.dice.random() < 0.7:
            other = {
                **self.payer(),
                **self.narrowed(0.3),
                "allow": (),
                "policies": (),
                "routes": (),
                "expires_at": None,
            }
            for name in self.dice.sample(sorted(other), min(2, len(other))):
                same[name] = other[name]
        return same

    def some(self, body: dict[str, Any]) -> dict[str, Any]:
        return {name: body[name] for name in self.dice.sample(sorted(body), self.dice.randint(1, 3))}

    def budget(self) -> dict[str, Any]:
        dice = self.dice
        match = {name: value for name, value in self.payer().items() if name != "tags"}
        if dice.random() < 0.5:
            match |= {name: value for name in ("organisation", "team", "user") if (value := self.of_boss(name))}
        if dice.random() < 0.4:
            match["key"] = dice.choice(["boss", "near", "made1", "made2"])
        return {"scope": dice.choice(["user", "team", "key"]), "match": match, "limit_usd": dice.choice([1, 100])}

    def of_boss(self, name: str) -> str:
        keys = {key.grant.name: key.grant for key in self.book().keys}
        return str(getattr(keys["boss"].payer, name)) if "boss" in keys else ""


def below(budget: Budget, boss: Grant) -> bool:
    """Whether a budget touches what is boss's and not boss itself."""
    match, own = dict(budget.match), boss.payer
    realm = {name: value for name in ("organisation", "team", "user") if (value := getattr(own, name))}
    realm |= dict(own.tags)
    if not realm or any(match.get(name) != value for name, value in realm.items()):
        return False
    probe = Line(msgspec.structs.replace(budget, scope="request"))
    return not probe.subjects(msgspec.structs.replace(own, within=()), "", "", "x")


def _line(grant: Grant) -> tuple[str, ...]:
    return (grant.name, *grant.payer.within)


# ------------------------------------------------------------------------------------------------ mutants


def without(*starts: str) -> Callable[[pytest.MonkeyPatch], None]:
    """A rule that forgets the sentences that begin so."""
    whole = rule.wider

    def mutate(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(rule, "wider", lambda *given: [each for each in whole(*given) if not each.startswith(starts)])

    return mutate


def nothing_hidden(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rule, "visible", lambda *_: True)


def every_budget(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rule, "governs", lambda *_: "")


def no_owner_needed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Desk, "_must_own", lambda self: None)


def all_are_owners(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Grant, "owner", property(lambda self: self.admin))


def no_line_of_descent(patch: pytest.MonkeyPatch) -> None:
    """Keys draw on their own limits alone, as everybody else's gateway has it."""
    without("it was not made")(patch)
    made = Desk._grant
    patch.setattr(Desk, "_grant", lambda self, body, within: made(self, body, ()))


def kin_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A key asks only for itself whether a budget is its own to set, and not for who made it; and whoever belongs to
    nobody may name whom it likes."""
    beyond = rule._beyond
    patch.setattr(Desk, "_barred", lambda self, budget: rule.governs(self.grantor, budget) if self.grantor else "")
    patch.setattr(rule, "_beyond", lambda *given: [each for each in beyond(*given) if "has none" not in each])


MUTANTS = [
    without("allow"), without("policies"), without("routes"), without("expires"), without("tags"),
    without("organisation", "team", "user"), nothing_hidden, every_budget, no_owner_needed, all_are_owners,
    no_line_of_descent, kin_forgotten,
]  # fmt: skip
