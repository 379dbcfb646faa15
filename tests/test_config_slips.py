"""A slip of the pen in a configuration is told with what was meant, also where a stranger's name could be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Command
from tests.support.config_files import ENVIRON, ONE, QUIET, loaded, refused

MINI = "no known model of openai is named gpt-5-mni (did you mean gpt-5-mini?); it has no price here"
OPENAI = "models:\n  openai/gpt-5-mni: {tier: fast}\n"


# ------------------------------------------------------------------------------------------------ names of models


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("models:\n  simulated/smal: {}\n  simulated/large: {}\n", "models.simulated/smal", "'simulated/small'"),
        ("models:\n  simulated/gpt: {}\n  simulated/large: {}\n", "models.simulated/gpt", "which has large, medium"),
        ("providers: {t: {wire: simulated}}\nmodels: {t/smal: {}, t/large: {}}\n", "models.t/smal", "'t/small'"),
        (OPENAI + "  openai/gpt-99: {tier: frontier}\n", "models.openai/gpt-5-mni", MINI),
        (OPENAI + "  openai/gpt-99: {tier: frontier}\n", "models.openai/gpt-99", "is named gpt-99"),
        (OPENAI + "  openai/gpt-99: {tier: frontier}\n", "models", "none has a price"),
    ],
)  # fmt: skip
async def test_a_model_that_nobody_knows_and_nothing_replaces_is_refused(
    tmp_path: Path, text: str, where: str, what: str
) -> None:
    problems = await refused(tmp_path, text)
    assert any(each.where == where and what in str(each) for each in problems), problems


@pytest.mark.parametrize(("unpriced", "so"), [("refuse", "so it is not used"), ("allow", "what it costs is not known")])
async def test_a_model_that_no_list_knows_is_noted_once_with_the_nearest_name(
    tmp_path: Path, unpriced: str, so: str
) -> None:
    setup = await loaded(tmp_path, f"unpriced: {unpriced}\n{OPENAI}  simulated/large: {{}}\n")
    told = [note for note in setup.notes if "gpt-5-mni" in note]
    assert len(told) == 1
    assert told[0].startswith(MINI)
    assert so in told[0]


async def test_a_price_of_the_owners_and_a_provider_without_a_list_silence_the_doubt(tmp_path: Path) -> None:
    own = "{tier: fast, price: {input_usd_per_mtok: 1, output_usd_per_mtok: 2}}"
    text = f"""
providers: {{acme: {{wire: openai, base_url: http://127.0.0.1:9/v1, auth: none}}}}
models: {{openai/gpt-5-mni: {own}, simulated/own: {own}, acme/x: {{tier: fast}}, openai/gpt-5-mini: {{tier: fast}}}}
"""
    setup = await loaded(tmp_path, text, ENVIRON | QUIET)
    assert [note for note in setup.notes if "no known model" in note] == []
    assert "Without a price: acme/x; such models are not used." in setup.notes


# ------------------------------------------------------------------------------------------------ how it is said

TINY = "1e-13"
KEY = "keys: [{name: a, secret: env:ACME_KEY, limit_usd: %s}]\n"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (f"budgets: [{{scope: team, limit_usd: {TINY}}}]\n", "budgets[0].limit_usd"),
        (f"budgets: [{{scope: team, limit_usd: 1, reserve_usd: {TINY}}}]\n", "budgets[0].reserve_usd"),
        (KEY % TINY, "keys[0].limit_usd"),
    ],
)
async def test_a_limit_below_the_smallest_amount_is_refused(tmp_path: Path, text: str, where: str) -> None:
    (problem,) = await refused(tmp_path, ONE + text)
    assert (problem.where, problem.line) == (where, 2)
    assert "is below the smallest amount, which is 0.000000001 USD" in problem.what
    assert (await loaded(tmp_path, ONE + text.replace(TINY, "0"))).budgets[0].limit_nano in (0, 10**9)


async def test_three_budgets_that_are_one_are_told_once_each(tmp_path: Path) -> None:
    problems = await refused(tmp_path, ONE + "budgets:\n" + "- {scope: user, limit_usd: 1}\n" * 3)
    assert [each.where for each in problems] == ["budgets[1]", "budgets[2]"]


@pytest.mark.parametrize("text", ["models:\n\tsimulated/large: {}\n", "models:\n  \tsimulated/large: {}\n  b: c\n"])
async def test_a_tab_is_called_one(tmp_path: Path, text: str) -> None:
    (problem,) = await refused(tmp_path, text)
    assert (problem.line, problem.what) == (2, "is not YAML: a tab; indent with spaces")


async def test_a_note_says_that_an_empty_file_says_nothing(tmp_path: Path) -> None:
    for text, said in (("", True), ("# nothing\n", True), (ONE, False)):
        setup = await loaded(tmp_path, text, QUIET)
        assert any("The file says nothing" in note for note in setup.notes) == said


def test_a_complaint_begins_with_what_it_is_about(command: Command) -> None:
    assert (
        command("config", "check", "gone.yaml")[2] == "tierwise: gone.yaml: cannot be read: No such file or directory\n"
    )
    Path("t.yaml").write_text("a: b: c\n")
    assert command("config", "check", "t.yaml")[2].startswith("tierwise: t.yaml: line 1: is not YAML")
    assert command("serve", "--port", "99999")[2].startswith("tierwise: --port: must be")
    Path("t.yaml").write_text("modles: {}\n")
    assert command("config", "check", "t.yaml")[2].startswith("tierwise: t.yaml: line 1: modles: is not")
