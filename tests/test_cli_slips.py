"""`tierwise key | budget | credit`, mistyped: a mistake is told by the option that was typed, with what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Command

SLIPS = [
    ("budget set --scope teem --limit-usd 1", "--scope: must be one of key, organisation,", "'team'"),
    ("budget set --scope team --limit-usd 1 --window fortnight", "--window: must be one of day, hour,", ""),
    ("budget set --scope team --limit-usd -1", "--limit-usd: must be from 0", ""),
    ("budget set --scope team --limit-usd 1e-13", "--limit-usd: 1e-13 is below the smallest amount", ""),
    ("key create --name a --budget-usd 1e-13", "--budget-usd: 1e-13 is below the smallest amount", ""),
    ("credit add --scope user --subject a --amount-usd 1e-13", "--amount-usd: 1e-13 is below", ""),
    ("budget set --scope team", "the budget limits nothing: give one of --limit-usd, --tokens, ", "--deadline"),
    ("budget set --scope session --deadline 0", "--deadline: must be from 1", ""),
    ("budget set --scope team --match taem=a --limit-usd 1", "--match taem: is none of", "'team'"),
    ("budget set --scope team --calls 2 --reserve-usd 1", "--reserve-usd: has no effect without `--limit-usd`", ""),
    ("key create --name a --role boss", "--role: must be one of admin, caller", ""),
    ("key create --name a --route chatt", "--route: must be one of admin, chat,", "'chat'"),
    ("key create --name a --window fortnight --route chatt", "--route: must be one of", "; --window: must be"),
    ("key create --name a --budget-usd -50", "--budget-usd: must be from 0 to", ""),
    ("key create --name a --window day", "--window: has no effect without --budget-usd", ""),
    ("key create --name a --expires -3", "--expires: must be above 0", ""),
    ("key create --name /a", "--name: ", ""),
    ("credit add --scope usr --subject a --amount-usd 1", "--scope: must be one of key, organisation,", "'user'"),
    ("credit add --scope user --subject a --amount-usd 0", "--amount-usd: must not be 0", ""),
]


STRANGER = "from now on callers without a key are refused (401)"


@pytest.mark.parametrize("words", ["key list", "budget list", "credit list"])
def test_looking_makes_nothing_and_says_so(command: Command, words: str) -> None:
    code, out, told = command(*words.split(), "--state", "nowhere/nostate")
    assert (code, out) == (2, "")
    assert "there is no folder nowhere/nostate" in told
    for _ in range(2):
        code, _, told = command(*words.split(), "--json")
        assert (code, told) == (0, "tierwise: nothing was made at runtime in .tierwise yet\n")
    assert list(Path().iterdir()) == []


def test_what_was_made_is_listed_without_a_word_more(command: Command) -> None:
    assert command("budget", "set", "--scope", "user", "--limit-usd", "1", "--state", "here")[0] == 0
    code, out, told = command("budget", "list", "--state", "here")
    assert (code, "user[]" in out, told) == (0, True, "")


def test_the_first_key_closes_the_door_and_says_so(command: Command) -> None:
    assert STRANGER in command("key", "create", "--name", "a")[1].splitlines()[0]
    assert command("key", "revoke", "a")[0] == 0
    assert STRANGER not in command("key", "create", "--name", "b")[1]
    Path("tierwise.yaml").write_text("models: {simulated/large: {}}\nkeys: [{name: c, secret: env:C}]\n")
    assert STRANGER not in command("key", "create", "--name", "d", "--state", "other")[1]


@pytest.mark.parametrize(("words", "begins", "meant"), SLIPS)
def test_a_slip_is_told_by_its_option(command: Command, words: str, begins: str, meant: str) -> None:
    code, out, told = command(*words.split())
    assert (code, out) == (2, "")
    assert told.startswith(f"tierwise: {begins}")
    assert meant in told
    assert "_usd" not in told
