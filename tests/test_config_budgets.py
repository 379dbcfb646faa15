"""Budgets in the file: every field arrives, and what has no effect or cannot work is refused where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tierwise.config import load
from tierwise.core.budget import Budget
from tierwise.core.errors import ConfigError, Problem

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
    ("scope: user, limit_usd: 1, wnidow: day", "budgets[0].wnidow", "'window'"),
)


@pytest.mark.parametrize(("text", "where", "what"), REFUSED)
async def test_what_has_no_effect_or_cannot_work_is_refused(tmp_path: Path, text: str, where: str, what: str) -> None:
    found = await problems(tmp_path, f"  - {{{text}}}\n")
    assert any(each.where.startswith(where) and each.line == 3 and what in str(each) for each in found), found


async def test_budgets_that_differ_in_their_window_alone_are_two(tmp_path: Path) -> None:
    lines = "".join(
        f"  - {{scope: user, calls: 5, {more}}}\n"
        for more in ("window: day", "window: day, rolling: true", "window: day, zone: Asia/Tokyo", "window: hour")
    )
    assert len(await budgets(tmp_path, lines)) == 4
    assert "make them one" in str((await problems(tmp_path, lines + "  - {scope: user, tokens: 5, window: day}\n"))[0])


async def test_only_a_hard_limit_around_makes_a_larger_one_impossible(tmp_path: Path) -> None:
    lines = "  - {{scope: team, limit_usd: 1{}}}\n  - {{scope: user, limit_usd: 2}}\n"
    assert "never be met" in str((await problems(tmp_path, lines.format("")))[0])
    assert len(await budgets(tmp_path, lines.format(", hard: false"))) == 2
