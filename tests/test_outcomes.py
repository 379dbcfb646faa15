"""Outcome tables: whatever the format of the files, the same table; whatever is wrong with them, a sentence that says
where and what would be right."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import pytest

from tierwise.core.errors import DataError
from tierwise.core.features import extract
from tierwise.core.request import Prompt, Turn
from tierwise.study.data import files, outcomes
from tierwise.study.data.columns import LabelRow, OutcomeRow, PromptRow
from tierwise.study.data.outcomes import load
from tierwise.study.table import inputs_of, split

Rows = list[dict[str, Any]]
TEXTS = ("What is 2 + 2?", "Translate 'good day' into French.", "Prove that there are infinitely many primes.")


def prompts(many: int = 3) -> Rows:
    return [
        {"prompt_id": f"p{i}", "prompt": f"{TEXTS[i % 3]} {i // 3 or ''}".strip(), "source": ("sums", "words")[i % 2]}
        for i in range(many)
    ]


def answers(many: int = 3, models: Iterable[str] = ("cheap", "dear")) -> Rows:
    return [
        {"prompt_id": f"p{i}", "model": model, "quality": float((i + m) % 2), "cost_usd": 0.001 * (1 + 9 * m)}
        for i in range(many)
        for m, model in enumerate(models)
    ]


def put(folder: Path, rows: Rows, name: str, suffix: str = "parquet") -> Path:
    """These rows as a file; a key that a row lacks is empty there. Types are those of the values."""
    path = folder / f"{name}.{suffix}"
    folder.mkdir(exist_ok=True)
    names = list(dict.fromkeys(key for row in rows for key in row))
    lines = folder / f"{name}.scratch"
    match suffix:
        case "csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows(rows)
        case "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case _:
            # JSON has no NaN, so those are put in by name.
            plain = [
                {key: str(each) if each in (math.inf, math.nan) else each for key, each in row.items()} for row in rows
            ]
            lines.write_text("".join(json.dumps(row) + "\n" for row in plain))
            types = {
                n: {str: "VARCHAR", bool: "BOOLEAN", list: "BIGINT[]"}.get(_type(rows, n), "DOUBLE") for n in names
            }
            columns = ", ".join(f"{name}: '{type_}'" for name, type_ in types.items())
            source = f"read_json({quoted(lines)}, format = 'newline_delimited', columns = {{{columns}}})"
            duckdb.connect().execute(f"COPY (SELECT * FROM {source}) TO {quoted(path)} (FORMAT parquet)")
            lines.unlink()
    return path


def quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _type(rows: Rows, name: str) -> type:
    return next((type(row[name]) for row in rows if row.get(name) is not None), str)


def pair(
    folder: Path, asked: Rows | None = None, given: Rows | None = None, name: str = "set", suffix: str = "parquet"
) -> Path:
    put(folder, prompts() if asked is None else asked, f"{name}.prompts", suffix)
    put(folder, answers() if given is None else given, f"{name}.outcomes", suffix)
    return folder


def refused(folder: Path, **paths: Any) -> str:
    with pytest.raises(DataError) as error:
        load(paths.get("paths", [folder]))
    assert len(str(error.value)) < 1_000
    return str(error.value)


# ------------------------------------------------------------------------------------------------ what is right


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_the_same_rows_give_the_same_table_in_every_format(suffix: str, tmp_path: Path) -> None:
    given = answers()
    given[1] |= {
        "latency_s": 0.25,
        "output_tokens": 7,
        "pred": " A. ",
        "weight": 0.5,
        "odds": 0.1,
        "at_s": 1_800_000_000,
    }
    given[0] |= {"pred": "a"}
    table, report = load([pair(tmp_path, given=given, suffix=suffix)])
    assert (table.ids, table.models, table.workloads) == (
        ("p0", "p1", "p2"),
        ("cheap", "dear"),
        ("sums", "words", "sums"),
    )
    assert table.texts == TEXTS
    assert table.quality.tolist() == [[0, 1], [1, 0], [0, 1]]
    np.testing.assert_allclose(table.cost_usd, [[0.001, 0.01]] * 3)
    assert [table.latency_ms[0, 1], table.output_tokens[0, 1], table.weight[0, 1], table.odds[0, 1]] == [
        250,
        7,
        0.5,
        0.1,
    ]
    assert np.isnan([table.latency_ms[0, 0], table.output_tokens[1, 1], table.odds[0, 0]]).all()
    assert table.weight[1].tolist() == [1, 1]
    assert table.answers[0, 0] == table.answers[0, 1] >= 0
    assert table.answers[1].tolist() == [-1, -1]
    assert table.at_s.tolist() == [1_800_000_000, 0, 0]
    assert (report.prompts, report.outcomes, report.kept) == (3, 6, 3)
    assert [(each.one, each.other, each.rows) for each in report.pairs] == [("cheap", "dear", 3)]
    assert table.hash == report.hash == "2cf1b3ccbcc2edd1"


def test_inputs_are_those_of_the_feature_reader(tmp_path: Path) -> None:
    table, _ = load([pair(tmp_path)])
    own = [
        extract(Prompt(turns=(Turn("user", text),), size_bytes=len(text.encode())), with_grams=True) for text in TEXTS
    ]
    for name in ("dense", "grams", "starts"):
        assert (getattr(table.inputs, name) == getattr(inputs_of(own), name)).all(), name


def test_features_of_the_journal_serve_where_there_is_no_text(tmp_path: Path) -> None:
    known = extract(Prompt(turns=(Turn("user", TEXTS[2]),), size_bytes=99, tools=("search",)), with_grams=True)
    asked = prompts()
    asked[2] = {"prompt_id": "p2", "workload": "proofs", "features": msgspec.json.encode(known).decode()}
    table, report = load([pair(tmp_path, asked)])
    assert table.texts[2] is None
    assert table.workloads[2] == "proofs"
    assert (table.inputs.take(np.array([2])).dense == inputs_of([known]).dense).all()
    assert any("33% of the prompts have no text" in note for note in report.notes)


def test_an_old_version_of_features_gives_way_to_the_text_and_is_refused_alone(tmp_path: Path) -> None:
    known = extract(Prompt(turns=(Turn("user", "other"),), size_bytes=5), with_grams=True)
    old = msgspec.json.encode(msgspec.structs.replace(known, version=99)).decode()
    asked = [{**row, "features": old} for row in prompts()]
    same, _ = load([pair(tmp_path / "a")])
    table, _ = load([pair(tmp_path / "b", asked)])
    assert (table.inputs.grams == same.inputs.grams).all()
    assert "row 2: features: is of version 99" in refused(
        pair(tmp_path / "c", [asked[0], {**asked[1], "prompt": None}, asked[2]])
    )


def test_several_pairs_keep_their_ids_apart(tmp_path: Path) -> None:
    pair(tmp_path, name="a")
    pair(tmp_path, name="b", given=answers(models=("cheap", "other")), suffix="csv")
    table, report = load([tmp_path])
    assert table.ids == ("a/p0", "a/p1", "a/p2", "b/p0", "b/p1", "b/p2")
    assert table.models == ("cheap", "dear", "other")
    assert np.isnan(table.quality).sum() == 6
    assert report.repeated == 3
    first, second = split(table.groups, 0.5, 1)
    assert not set(table.groups[first]) & set(table.groups[second])
    alone, _ = load([tmp_path / "b.outcomes.csv"])
    assert alone.ids == ("p0", "p1", "p2")
    assert load([tmp_path, tmp_path / "a.prompts.parquet"])[0].hash == table.hash


def test_groups_are_the_texts_without_case_and_white_space(tmp_path: Path) -> None:
    asked = prompts(4)
    asked[3] |= {"prompt": f"  {TEXTS[0].upper()}\n"}
    table, report = load([pair(tmp_path, asked, answers(4))])
    assert table.groups[0] == table.groups[3]
    assert len(set(table.groups)) == 3
    assert report.repeated == 1


def test_tool_calls_are_answers_by_their_signature(tmp_path: Path) -> None:
    given = answers(1)
    given[0] |= {"tools_json": '[{"name": "find", "arguments": {"a": 1, "b": 2}}]'}
    given[1] |= {"tools_json": '[{"function": {"name": "find", "arguments": "{\\"b\\": 2, \\"a\\": 1}"}}]'}
    table, _ = load([pair(tmp_path, prompts(1), given)])
    assert table.answers[0, 0] == table.answers[0, 1] >= 0
    given[1] |= {"tools_json": "find()"}
    assert "row 2: tools_json: is not a JSON list" in refused(pair(tmp_path / "b", prompts(1), given))


def test_an_answer_too_long_for_the_gateway_is_compared_whole(tmp_path: Path) -> None:
    long = "The sum of all of these is a number that takes many words. " * 3
    given = answers(2)
    for row, pred in zip(given, (long, long.upper(), long, long + "!"), strict=True):
        row["pred"] = pred
    table, _ = load([pair(tmp_path, prompts(2), given)])
    assert [len(set(each)) for each in table.answers.tolist()] == [1, 2]
    assert (table.answers >= 0).all()


def test_a_sample_is_the_same_whenever_it_is_drawn_and_the_report_counts_all(tmp_path: Path) -> None:
    pair(tmp_path, prompts(400), answers(400))
    table, report = load([tmp_path], prompts_kept=50)
    again, _ = load([tmp_path], prompts_kept=50)
    assert (len(table.ids), table.hash) == (50, again.hash)
    assert list(table.ids) == sorted(table.ids, key=lambda id: int(id[1:]))
    assert set(table.ids) <= set(load([tmp_path], prompts_kept=60)[0].ids)
    assert set(table.ids) != set(sorted(row["prompt_id"] for row in prompts(400))[:50])
    assert (report.prompts, report.outcomes, report.kept, report.models[0].rows) == (400, 800, 50, 400)
    assert "50 of 400 prompts are kept" in report.notes[0]


def test_cells_and_characters_bound_the_sample_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair(tmp_path, prompts(40), answers(40))
    monkeypatch.setattr(outcomes, "CELLS_KEPT", 20)
    assert load([tmp_path])[0].quality.shape == (10, 2)
    monkeypatch.setattr(outcomes, "CHARACTERS_KEPT", sum(len(row["prompt"]) for row in prompts(40)) // 8)
    assert 4 <= len(load([tmp_path])[0].ids) <= 5


def test_many_rows_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200,000 outcomes with DuckDB held to 64 MB; scripts/many_outcomes.py does it with ten million."""
    monkeypatch.setattr(files, "MEMORY_MB", 64)
    generated(tmp_path, 50_000, 4)
    table, report = load([tmp_path], prompts_kept=500)
    assert (report.outcomes, len(table.ids)) == (200_000, 500)
    assert np.isfinite(table.quality).all()


def generated(folder: Path, many: int, models: int) -> None:
    """Prompts and outcomes made by DuckDB."""
    database = duckdb.connect()
    text = "'Question ' || range || ' about ' || md5(range::VARCHAR) AS prompt"
    database.execute(
        f"COPY (SELECT 'p' || range AS prompt_id, {text}, 'w' || range % 5 AS workload FROM range({many}))"
        f" TO '{folder}/big.prompts.parquet' (FORMAT parquet)"
    )
    database.execute(
        f"COPY (SELECT 'p' || p.range AS prompt_id, 'm' || m.range AS model,"
        " (hash(p.range, m.range) % 2)::DOUBLE AS quality,"
        f" 0.001 AS cost_usd, 'A' AS pred FROM range({many}) AS p, range({models}) AS m)"
        f" TO '{folder}/big.outcomes.parquet' (FORMAT parquet)"
    )


# ------------------------------------------------------------------------------------------------ what is thin


@pytest.mark.parametrize(
    ("asked", "given", "note"),
    [
        (prompts(10), answers(10), "10 prompts are few"),
        (prompts(), answers(models=("one",)), "there is one model only"),
        (prompts(), [{**row, "quality": 1.0} for row in answers()], "every quality is 1"),
        (prompts(), [row for i, row in enumerate(answers()) if i in (0, 3, 4)], "no prompt was answered by two models"),
        (prompts(), answers(4), "2 outcomes are left out: their prompt is not there"),
        (prompts(4), answers(3), "1 prompts are left out: no outcome"),
        (
            prompts(),
            [{**row, "cost_usd": None} for row in answers()],
            "costs are missing, in part or all, for cheap, dear",
        ),
        (
            prompts(),
            [{**row, "qualty": 1} for row in answers()],
            "the column qualty is not read (did you mean 'quality'?)",
        ),
        ([{**row, "source": ""} for row in prompts()], answers(), "100% of the prompts name no workload"),
        (prompts(), [*answers(), {"prompt_id": "p0", "model": "x"}], "for no outcome of theirs has a quality: x"),
        (
            prompts(),
            [{**row, "quality": None} if row["model"] == "cheap" and i < 3 else row for i, row in enumerate(answers())],
            "say nothing of how good their model is: 2 of cheap",
        ),
    ],
)
def test_what_is_thin_is_read_and_said(asked: Rows, given: Rows, note: str, tmp_path: Path) -> None:
    table, report = load([pair(tmp_path, asked, given)])
    assert table.quality.size
    assert any(note in each for each in report.notes), report.notes


def test_length_bias_is_measured_within_each_model(tmp_path: Path) -> None:
    """Two models that differ in length and in score, and graders that differ in whether they look at the length."""
    asked = [PromptRow(prompt_id=f"p{i}", prompt=f"question {i}") for i in range(40)]
    given, labels = [], []
    for i in range(40):
        for model, base in (("terse", 100), ("wordy", 900)):
            longer = i % 2
            given.append(OutcomeRow(prompt_id=f"p{i}", model=model, quality=1, output_tokens=base + 10 * longer))
            for source, score in (
                ("biased", 0.2 + 0.6 * longer),
                ("fair", 0.3 + 0.5 * (model == "wordy") + 0.1 * (i % 4 > 1)),
            ):
                labels.append(LabelRow(prompt_id=f"p{i}", model=model, source=source, score=score, weight=0.36, at_s=9))
    files.write(tmp_path, "set", asked, given, labels)
    _, report = load([tmp_path])
    found = {each.source: each for each in report.sources}
    assert found["biased"].length_correlation == pytest.approx(1.0)
    assert found["fair"].length_correlation == pytest.approx(0.0, abs=1e-9)
    assert (found["fair"].labels, found["fair"].length_rows) == (80, 80)
    assert [note for note in report.notes if "length" in note] == [
        "scores of biased go with the reply's length (r = +1.00): a bias"
    ]
