"""The reliability runs in their fast form: each meets its bar, and each finds what was broken on purpose.

The full form is `make reliability`; docs/reliability.md has its table. What takes longer than a moment even when it is
small (processes that are killed, crowds over HTTP) is only there, or among the tests of its own subject.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.reliability import books, crashes, disks, prices, report, upgrades
from scripts.reliability.__main__ import arguments, play, runs
from scripts.reliability.bars import Check, Found, Relation, Run, Scale
from tests.support.ledgers import NOON, a_hold, of, path_of
from tests.support.simulator import simulate
from tierwise.core.budget import Budget, Charge
from tierwise.stores.ledger.audit import audit
from tierwise.stores.ledger.books import Books
from tierwise.stores.ledger.sqlite import SqliteLedger

FAST = {
    "bar7 B3 B4": books.races,
    "bar8 B5 B6 B11 I1 I2 I3 I4 I5": books.simulator,
    "bar8 B5 model": books.model,
    "b13 B13": books.first_comers,
    "k1 K1": books.clocks,
    "b10 B10": books.rollover,
    "k2 K2": books.pinned,
    "bar10 B9": prices.rounding,
    "k3 K3": prices.tiers,
    "bar3 bar5 C1 C2": crashes.kills,
    "bar4 D3": disks.power,
    "bar9 D1 D2": disks.failing,
    "d5 D5": disks.flipped,
    "d6 D6": disks.second,
    "c3 C3": upgrades.upgrades,
}


@pytest.mark.parametrize("codes", list(FAST))
def test_a_run_meets_its_bar_and_finds_its_mutant(codes: str) -> None:
    found = FAST[codes](Scale())
    assert found.met, found
    assert found.caught, found


def test_a_rolling_window_remembers_what_came_after_a_clock_that_was_set_back() -> None:
    """A restart with such a clock, and then time goes on over what had been counted before it."""
    assert simulate(1697).wrong == []


def test_one_seed_is_one_run() -> None:
    assert simulate(17) == simulate(17)
    assert simulate(17).events != simulate(18).events


def test_every_run_has_a_name_and_codes_of_its_own() -> None:
    every = runs()
    assert len({run.name for run in every}) == len(every)
    assert all(run.codes and run.what and run.bar for run in every)
    assert arguments(["--only", "bar1,bar8", "--fast"]).only == ["bar1", "bar8"]


def test_a_bar_that_is_missed_and_a_mutant_that_is_not_found_both_fail() -> None:
    within, over = Check("calls a request", 1.2, "≤", 1.2), Check("calls a request", 1.209, "≤", 1.2)
    for checks, caught, told in (
        ((within,), True, "met"),
        ((within, over), True, "**not met** (calls a request: 1.209, must be ≤ 1.2)"),
        ((within,), False, "mutant missed"),
        ((), True, "**not met** ()"),  # what compares nothing meets nothing
    ):
        found = Found("3 of x", "1 | 2", checks, "broken", caught)
        row, good = play(Run("a", "B1", "what", "bar", lambda scale, found=found: found), Scale())
        assert good == (told == "met") and row[6] == told and row[4] == "1 \\| 2"


@pytest.mark.parametrize(
    ("relation", "below", "at", "above"),
    [
        ("=", False, True, False),
        ("≤", True, True, False),
        ("<", True, False, False),
        ("≥", False, True, True),
        (">", False, False, True),
    ],
)
def test_a_figure_is_held_against_its_bar(relation: Relation, below: bool, at: bool, above: bool) -> None:
    assert [Check("x", figure, relation, 2).holds for figure in (1.99, 2, 2.01)] == [below, at, above]


def test_a_run_replaces_its_own_row_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n\n{report.BEGIN}\n{report.END}\n\nAfter.\n")
    monkeypatch.setattr(report, "PAGE", page)
    cells = ["B1", "what | ever".replace("|", "\\|"), "n", "figure", "bar", "met", "–", "1.0", "now"]
    report.write({"b": ["b", *cells]}, ["a", "b"])
    report.write({"a": ["a", *cells]}, ["a", "b"])
    report.write({"b": ["b", *cells[:3], "other", *cells[4:]]}, ["a", "b"])
    text = page.read_text()
    assert text.startswith("# Before\n") and text.endswith("\nAfter.\n")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[1:]] == ["| a", "| b"]
    assert "figure" in lines[1] and "other" in lines[2] and "what \\| ever" in lines[2], json.dumps(lines)


# ------------------------------------------------------------------------------------------------ what the runs found


async def test_b3_an_id_that_was_closed_before_a_restart_is_not_held_again(tmp_path: Path) -> None:
    for attempt in range(2):
        ledger = SqliteLedger(tmp_path / "ledger.sqlite", path_of(1_000), reserve_bytes=1)
        assert await ledger.hold(a_hold("once", 100)) is None
        assert ledger.open_holds() == (attempt == 0)
        ledger.settle("once", Charge(cost_nano=60))
        assert {spent for _, spent, _ in of(ledger)} == {60}
        await ledger.close()


async def test_c1_what_comes_back_and_what_is_new_count_on_one_account(tmp_path: Path) -> None:
    """A day's account that a restart brings back with its holds is the one that new holds are counted on."""
    for rolling in (False, True):
        budgets = (Budget(scope="user", limit_nano=1_000, window="day", rolling=rolling),)
        path = tmp_path / str(rolling) / "ledger.sqlite"
        ledger = SqliteLedger(path, budgets, lambda: float(NOON), reserve_bytes=1)
        assert await ledger.hold(a_hold("before", 400)) is None
        await ledger.close()
        ledger = SqliteLedger(path, budgets, lambda: float(NOON), reserve_bytes=1)
        assert await ledger.hold(a_hold("after", 500)) is None
        assert await ledger.hold(a_hold("too much", 101)) is not None
        ledger.settle("before", Charge(cost_nano=300))
        ledger.settle("after", Charge(cost_nano=500))
        assert [(spent, held) for _, spent, held in of(ledger)] == [(800, 0)]
        await ledger.close()
        assert list(audit(path)) == []


def test_a_cap_on_a_request_and_a_budget_of_requests_are_two_accounts() -> None:
    books = Books((Budget(scope="request", limit_nano=1_000),))
    assert books.hold(a_hold("h", 100, request="r", request_limit_nano=500)) is None
    assert len(books.take().accounts) == 2
    assert books.audit() == ()
