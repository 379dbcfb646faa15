"""Budgets in the file: every field arrives, and what has no effect or cannot work is refused where it stands; what is
asked for at runtime is refused for the same reasons, in the same words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tierwise.config import load
from tierwise.core import check_budget
from tierwise.core.budget import Budget
from tierwise.core.errors import BadRequest, ConfigError, Problem
from tierwise.core.keys import Book, Grant, Issued
from tierwise.core.request import Payer
from tierwise.server.desk import Desk
from tierwise.server.forms import BudgetBody, converted
from tierwise.stores.registry import SqliteRegistry

HEAD = "models: {simulated/large: {}}\nbudgets:\n"
ENVIRON = {"TIERWISE_LOCAL_URL": "off"}


async def budgets(folder: Path, lines: str) -> tuple[Budget, ...]:
    path = folder / "tierwise.yaml"
    path.write_text(HEAD + lines)
    return (await load(path, ENVIRON)).budgets


async def problems(folder: Path, lines: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        await budgets(folder, lines)
    return caught.value.problems


FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "limit_usd": ("scope: user, limit_usd: 1.5", {"limit_nano": 1_500_000_000}),
    "tokens": ("scope: user, tokens: 9", {"tokens": 9}),
    "calls": ("scope: user, calls: 9", {"calls": 9}),
    "parallel": ("scope: user, parallel: 9", {"parallel": 9}),
    "steps": ("scope: session, steps: 9", {"steps": 9}),
    "repeats": ("scope: workflow, repeats: 5", {"repeats": 5}),
    "deadline_s": ("scope: workflow, deadline_s: 60", {"deadline_s": 60}),
    "window": ("scope: user, calls: 9, window: week", {"calls": 9, "window": "week"}),
    "rolling": ("scope: user, calls: 9, window: week, rolling: true", {"calls": 9, "window": "week", "rolling": True}),
    "zone": (
        "scope: user, calls: 9, window: day, zone: Asia/Tokyo",
        {"calls": 9, "window": "day", "zone": "Asia/Tokyo"},
    ),
    "hard": ("scope: user, limit_usd: 1, hard: false", {"limit_nano": 10**9, "hard": False}),
    "reserve_usd": ("scope: user, limit_usd: 1, reserve_usd: 0.1", {"limit_nano": 10**9, "reserve_nano": 10**8}),
    "match": ("scope: user, calls: 9, match: {user: ada}", {"calls": 9, "match": (("user", "ada"),)}),
}


@pytest.mark.parametrize("name", FIELDS)
async def test_every_field_arrives(tmp_path: Path, name: str) -> None:
    text, wanted = FIELDS[name]
    scope = text.partition(",")[0].removeprefix("scope: ")
    assert await budgets(tmp_path, f"  - {{{text}}}\n") == (Budget(scope=scope, **wanted),)  # type: ignore[arg-type]


REFUSED: tuple[tuple[str, str, str], ...] = (
    ("scope: user", "budgets[0]", "limits nothing: give one of limit_usd, tokens"),
    ("scope: user, hard: false", "budgets[0]", "limits nothing"),
    ("scope: user, limit_usd: -1", "budgets[0].limit_usd", "at least 0"),
    ("scope: user, tokens: 0", "budgets[0].tokens", "at least 1"),
    ("scope: user, steps: 5", "budgets[0].steps", "for sessions and workflows"),
    ("scope: team, repeats: 5", "budgets[0].repeats", "give `calls` instead"),
    ("scope: key, deadline_s: 5", "budgets[0].deadline_s", "for sessions and workflows"),
    ("scope: session, repeats: 1", "budgets[0].repeats", "at least 2"),
    ("scope: session, repeats: 99", "budgets[0].repeats", "at most 32"),
    ("scope: user, calls: 5, rolling: true", "budgets[0].rolling", "a window that ends"),
    ("scope: user, calls: 5, rolling: true, window: lifetime", "budgets[0].rolling", "a window that ends"),
    ("scope: user, calls: 5, window: day, zone: Europe/Berln", "budgets[0].zone", "'Europe/Berlin'"),
    ("scope: user, calls: 5, window: day, zone: ../../etc/passwd", "budgets[0].zone", "no time zone"),
    ("scope: user, calls: 5, window: hour, zone: Europe/Berlin", "budgets[0].zone", "has no effect"),
    ("scope: user, calls: 5, window: day, rolling: true, zone: Europe/Berlin", "budgets[0].zone", "has no effect"),
    ("scope: user, calls: 5, reserve_usd: 1", "budgets[0].reserve_usd", "without `limit_usd`"),
    ("scope: user, limit_usd: 1, reserve_usd: 2", "budgets[0].reserve_usd", "nothing could ever hold it"),
    ("scope: user, limit_usd: 1, hard: false, tokens: 5", "budgets[0].tokens", "refuses nothing"),
    ("scope: request, limit_usd: 1, window: lifetime", "budgets[0].window", "its own window"),
    ("scope: request, limit_usd: 1, window: day", "budgets[0].window", "its own window"),
    ("scope: user, calls: 5, zone: UTC", "budgets[0].zone", "has no effect"),
    ("scope: user, calls: 5, match: {usr: ada}", "budgets[0].match.usr", "'user'"),
    ("scope: user, calls: 5, match: {cost-centre: a}", "budgets[0].match.cost-centre", "no key has such a tag"),
    ("scope: user, limit_usd: 1, wnidow: day", "budgets[0].wnidow", "'window'"),
)


@pytest.mark.parametrize(("text", "where", "what"), REFUSED)
async def test_what_has_no_effect_or_cannot_work_is_refused(tmp_path: Path, text: str, where: str, what: str) -> None:
    found = await problems(tmp_path, f"  - {{{text}}}\n")
    assert any(each.where.startswith(where) and each.line == 3 and what in str(each) for each in found), found


def at_the_desk(registry: SqliteRegistry, body: Any, *keys: Grant, **more: Any) -> None:
    book = Book(keys=tuple(Issued(grant=each) for each in keys))
    Desk(registry, book, 0, files={}, **more).set_budget(converted(body, BudgetBody, "budget"))


@pytest.fixture
def registry() -> Iterator[SqliteRegistry]:
    made = SqliteRegistry(None)
    yield made
    made.close()


async def test_the_desk_refuses_the_same_in_the_same_words(tmp_path: Path, registry: SqliteRegistry) -> None:
    words = 0
    for text, where, _ in REFUSED:
        found = await problems(tmp_path, f"  - {{{text}}}\n")
        with pytest.raises(BadRequest) as caught:
            at_the_desk(registry, yaml.safe_load(f"{{{text}}}"))
        assert where.removeprefix("budgets[0]").removeprefix(".") in caught.value.message, text
        if "at least" in str(found) or "at most" in str(found) or "wnidow" in text:
            continue  # the file's types speak of those, with the line
        words += 1
        for each in found:
            assert each.what in caught.value.message and each.nearest in caught.value.message, (text, each)
    assert words > 15
    assert not registry.read().budgets


@pytest.mark.parametrize("name", FIELDS)
async def test_the_desk_takes_what_the_file_takes(registry: SqliteRegistry, name: str) -> None:
    body = yaml.safe_load(f"{{{FIELDS[name][0]}}}")
    at_the_desk(registry, body)
    assert registry.read().budgets == (Budget(scope=body["scope"], **FIELDS[name][1]),)


@pytest.mark.parametrize("name", check_budget.BOUNDS)
async def test_both_doors_have_the_same_bounds(tmp_path: Path, registry: SqliteRegistry, name: str) -> None:
    least, most = check_budget.BOUNDS[name]
    for count, fits in ((least - 1, False), (least, True), (most, True), (most + 1, False)):
        if fits:
            assert await budgets(tmp_path, f"  - {{scope: session, {name}: {count}}}\n")
            at_the_desk(registry, {"scope": "session", name: count})
            continue
        await problems(tmp_path, f"  - {{scope: session, {name}: {count}}}\n")
        with pytest.raises(BadRequest, match=f"{name}: must be from {least} to {most}"):
            at_the_desk(registry, {"scope": "session", name: count})


def test_a_match_at_runtime_names_what_somebody_can_carry(registry: SqliteRegistry) -> None:
    """As in the file: names are checked by the keys there are, values are not, for users come and go."""
    ada = Grant(payer=Payer(key="ada", tags=(("project", "x"),)))
    boss = Grant(payer=Payer(key="boss", team="search"), admin=True)
    body = {"scope": "user", "calls": 5, "match": {"project": "of-next-year", "user": "nobody-yet"}}
    at_the_desk(registry, body, ada)
    with pytest.raises(BadRequest, match=r"match\.projet: is none of .*did you mean 'project'"):
        at_the_desk(registry, {**body, "match": {"projet": "x"}}, ada)
    at_the_desk(registry, {**body, "match": {"projet": "x"}}, checked=False)  # nobody knows what the file has
    # An admin who does not see a key is not told of its tags.
    with pytest.raises(BadRequest) as caught:
        at_the_desk(registry, {**body, "match": {"team": "search", "projet": "x"}}, ada, boss, grantor="boss")
    assert "project" not in caught.value.message


async def test_budgets_that_differ_in_their_window_alone_are_two(tmp_path: Path) -> None:
    lines = "".join(
        f"  - {{scope: user, calls: 5, {more}}}\n"
        for more in ("window: day", "window: day, rolling: true", "window: day, zone: Asia/Tokyo", "window: hour")
    )
    assert len(await budgets(tmp_path, lines)) == 4
    assert "make them one" in str((await problems(tmp_path, lines + "  - {scope: user, tokens: 5, window: day}\n"))[0])
    alike = ('{team: "x,user=ada"}', "{team: x, user: ada}")  # whose accounts would have the same name
    lines = "".join(f"  - {{scope: user, calls: 5, match: {match}}}\n" for match in alike)
    assert "make them one" in str((await problems(tmp_path, lines))[0])


async def test_only_a_hard_limit_around_makes_a_larger_one_impossible(tmp_path: Path) -> None:
    lines = "  - {{scope: team, limit_usd: 1{}}}\n  - {{scope: user, limit_usd: 2}}\n"
    assert "never be met" in str((await problems(tmp_path, lines.format("")))[0])
    assert len(await budgets(tmp_path, lines.format(", hard: false"))) == 2
