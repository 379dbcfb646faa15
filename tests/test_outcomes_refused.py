"""What is wrong with outcome files is said with its place, and what would be right; and nothing is left behind."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.test_outcomes import Rows, answers, pair, prompts, put, refused
from tierwise.study.data.files import pairs_of
from tierwise.study.data.outcomes import load


def with_value(column: str, value: Any) -> Callable[[], tuple[Rows | None, Rows]]:
    def make() -> tuple[Rows | None, Rows]:
        rows = answers()
        rows[2][column] = value
        return None, rows

    return make


BAD: dict[str, tuple[Callable[[], tuple[Rows | None, Rows | None]], str]] = {
    "NaN": (with_value("quality", math.nan), "set.outcomes.parquet: row 3: quality: 'nan' is not finite"),
    "infinite": (with_value("cost_usd", math.inf), "row 3: cost_usd: 'inf' is not finite"),
    "score above 1": (
        with_value("quality", 1.5),
        "row 3: quality: '1.5' is out of range; right is a number from 0 to 1",
    ),
    "score below 0": (with_value("quality", -0.1), "row 3: quality: '-0.1' is out of range"),
    "negative cost": (with_value("cost_usd", -1.0), "row 3: cost_usd: '-1.0' is out of range; right is dollars"),
    "weight 0": (with_value("weight", 0.0), "row 3: weight: '0.0' is out of range; right is a number above 0"),
    "odds 0": (with_value("odds", 0.0), "row 3: odds: '0.0' is out of range; right is a chance above 0"),
    "a word": (with_value("latency_s", "fast"), "row 3: latency_s: 'fast' is not a number; right is seconds"),
    "a list": (
        lambda: (None, [{**row, "quality": [1]} for row in answers()]),
        "quality: the column is of the type BIGINT[]",
    ),
    "no model": (with_value("model", ""), "row 3: model: is empty; every row names its model"),
    "no id": (with_value("prompt_id", None), "row 3: prompt_id: is empty; every row names its prompt"),
    "the same twice": (
        lambda: (None, [*answers(), answers()[1]]),
        "row 7: prompt_id and model: 'p0' and 'dear' stood in row 2 already",
    ),
    "an id twice": (lambda: ([*prompts(), prompts()[1]], None), "row 4: prompt_id: 'p1' stood in row 2 already"),
    "no quality": (
        lambda: (None, [{"prompt_id": "p1", "model": "m", "qualty": 1}]),
        "quality: there is no such column",
    ),
    "no text": (lambda: ([{"prompt_id": "p1", "source": "x"}], None), "needs the column prompt (the text) or features"),
    "empty texts": (
        lambda: ([{**row, "prompt": ""} for row in prompts()], None),
        "no prompt with a labelled outcome has",
    ),
    "unlabelled": (lambda: (None, [{**row, "quality": None} for row in answers()]), "no outcome has a quality"),
    "strangers": (
        lambda: (None, [{**row, "prompt_id": "q"} for row in answers(1)]),
        "the two tables do not belong together",
    ),
    "broken features": (
        lambda: ([{**row, "features": "{]"} for row in prompts()], None),
        "row 1: features: is not what",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_with_its_place(name: str, tmp_path: Path) -> None:
    make, words = BAD[name]
    assert words in refused(pair(tmp_path, *make()))


def test_a_text_format_is_as_strict(tmp_path: Path) -> None:
    rows = answers()
    rows[4]["quality"] = "nan"
    rows[5]["quality"] = "good"
    said = refused(pair(tmp_path, given=rows, suffix="csv"))
    assert "row 5: quality: 'nan' is not finite" in said
    assert "row 6: quality: 'good' is not a number" in said


@pytest.mark.parametrize(
    "text",
    [
        "prompt_id,model,quality\np0,a\np1,a,1\n",
        "prompt_id,model,quality\np0,a,1\np1,a,1,2\n",
        'prompt_id,model,quality\np0,"a,1\n',
    ],
)
def test_a_ragged_file_is_refused_and_no_row_passed_over(text: str, tmp_path: Path) -> None:
    pair(tmp_path, suffix="csv")
    (tmp_path / "set.outcomes.csv").write_text(text)
    assert "set.outcomes.csv: cannot be read: " in refused(tmp_path)


@pytest.mark.parametrize("kind", ["prompts", "outcomes"])
@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_an_empty_table(kind: str, suffix: str, tmp_path: Path) -> None:
    pair(tmp_path, suffix=suffix)
    path = tmp_path / f"set.{kind}.{suffix}"
    match suffix:
        case "parquet":
            duckdb.connect().execute(f"COPY (SELECT * FROM '{path}' WHERE false) TO '{path}.2' (FORMAT parquet)")
            path.with_suffix(".parquet.2").replace(path)
        case "csv":
            path.write_text(path.read_text().splitlines()[0] + "\n")
        case _:
            path.write_text("")
    assert f"set.{kind}.{suffix}: holds no rows" in refused(tmp_path)


def test_files_that_are_not_there_or_are_none(tmp_path: Path) -> None:
    assert "none was given" in refused(tmp_path, paths=[])
    assert "holds no outcome files" in refused(tmp_path)
    assert "is not there" in refused(tmp_path / "no.prompts.csv")
    (tmp_path / "data.csv").write_text("a\n")
    assert "is no outcome file" in refused(tmp_path / "data.csv")
    path = put(tmp_path, prompts(), "set.prompts")
    assert "has no set.outcomes.parquet beside it" in refused(tmp_path)
    put(tmp_path, answers(), "set.outcomes")
    put(tmp_path, prompts(), "set.prompts", "csv")
    assert "are both there; keep one of them" in refused(tmp_path)
    (tmp_path / "set.prompts.csv").unlink()
    path.write_bytes(b"PAR1 no PAR1")
    assert "set.prompts.parquet: cannot be read" in refused(tmp_path)


def test_a_name_with_a_quote_is_a_name(tmp_path: Path) -> None:
    folder = tmp_path / "it's; DROP"
    assert load([pair(folder, name="o'set")])[0].ids == ("p0", "p1", "p2")
    assert pairs_of([folder])[0].name == "o'set"


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair(tmp_path)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert "install tierwise[learn]" in refused(tmp_path)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    load([pair(tmp_path / "a")])
    refused(pair(tmp_path / "b", given=[{**row, "quality": 2.0} for row in answers()]))
    assert not list(scratch.iterdir())
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["set.outcomes.parquet", "set.prompts.parquet"]
