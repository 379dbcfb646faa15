"""`tierwise calibrate` from files: whose labels it believes, what it says, and what it writes."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import msgspec
import numpy as np
import pytest
from support.worlds import BIG, MID, TINY

from tests.test_cli import run
from tierwise.core.promise import Promise
from tierwise.study.data.outcomes import load_labelled
from tierwise.study.promises.prepared import prepared
from tierwise.study.training.artefact import save
from tierwise.study.training.believed import fit_believed


def files(folder: Path, n: int, seed: int = 0) -> Path:
    """Sums of two numbers in the outcome format: two cheap models that are mostly right, and a dear one."""
    generator = np.random.default_rng(seed)
    prompts, outcomes = [], []
    for i in range(n):
        a, b = (int(each) for each in generator.integers(1, 999, 2))
        prompts.append({"prompt_id": f"{seed}-{i}", "prompt": f"What is {a} and {b} together?", "source": "sums"})
        for model, right, cost in ((BIG.id, 0.97, 0.01), (MID.id, 0.9, 0.0005), (TINY.id, 0.9, 0.0001)):
            good = bool(generator.random() < right)
            said = a + b if good else int(generator.integers(2_000, 9_000))
            outcomes.append(
                {
                    "prompt_id": f"{seed}-{i}",
                    "model": model,
                    "quality": float(good),
                    "cost_usd": cost,
                    "pred": str(said),
                }
            )
    folder.mkdir()
    database = duckdb.connect()
    for name, rows in (("prompts", prompts), ("outcomes", outcomes)):
        (folder / f"{name}.json").write_bytes(msgspec.json.encode(rows))
        target = folder / f"sums.{name}.parquet"
        database.execute(f"COPY (FROM read_json('{folder / name}.json')) TO '{target}'")
        (folder / f"{name}.json").unlink()
    return folder


def command(folder: Path, *words: str) -> tuple[int, str]:
    state = ("--state", str(folder / "state"), "--model-reference", BIG.id, "--name", "p")
    ran = run("calibrate", *words, *state, cwd=folder)
    return ran.returncode, ran.stdout + ran.stderr


def change(data: Path, statement: str, model: str) -> None:
    """The outcomes `o` of a folder that `files` made."""
    target = data / "sums.outcomes.parquet"
    database = duckdb.connect()
    database.execute(f"CREATE TABLE o AS FROM '{target}'")
    database.execute(statement, [model])
    database.execute(f"COPY o TO '{target}'")


@pytest.mark.parametrize("name", ["", "a/../b", "../p", "q q/..", "..", "two words"])
def test_a_promise_is_written_nowhere_else(name: str, tmp_path: Path) -> None:
    words = (str(files(tmp_path / "data", 30)), "--model-reference", BIG.id, "--state", str(tmp_path / "state"))
    ran = run("calibrate", *words, "--name", name, cwd=tmp_path)
    assert ran.returncode == 2 and "begins with a letter or digit" in ran.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(("option", "given"), [("--confidence", "90"), ("--alpha", "2"), ("--alpha", "nan")])
def test_a_share_that_is_none_is_told_as_it_was_typed(option: str, given: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    code, told = command(tmp_path, str(tmp_path / "data"), option, given)
    assert code == 2 and told.startswith(f"tierwise: {option} {given}: above 0 and below 1")


def test_with_one_cheaper_model_the_kind_is_chosen_that_takes_one(tmp_path: Path) -> None:
    """And named with its reason; whoever insists on the other is told what it takes, without figures of nothing."""
    data = files(tmp_path / "data", 800)
    change(data, "DELETE FROM o WHERE model = ?", MID.id)
    code, told = command(tmp_path, str(data), "--alpha", "0.2")
    assert code == 0 and "certified" in told, told
    assert told.startswith("A promise of kind choice, for an agreement takes two") and f"one, {TINY.id}." in told
    code, told = command(tmp_path, str(data), "--alpha", "0.2", "--kind", "agreement")
    assert code == 1 and f"there is one ({TINY.id}): try kind choice" in told
    assert "labelled requests tested" in told and "at most 100" not in told and "loss 0.00%" not in told


def test_the_command_makes_an_estimator_and_a_promise_about_it(tmp_path: Path) -> None:
    data = files(tmp_path / "data", 800)
    code, told = command(tmp_path, str(data))
    assert code == 0, told
    assert "certified" in told and "tierwise promote --estimator" in told
    promise = msgspec.json.decode((tmp_path / "state/learned/p.promise.json").read_bytes(), type=Promise)
    assert (tmp_path / "state/learned/artefacts" / promise.estimator / "manifest.json").is_file()
    assert promise.segments[0].n == pytest.approx(600, abs=2)
    # The same estimator again: what it was fitted on must be named, and be what it was.
    fresh = files(tmp_path / "fresh", 100, seed=1)
    artefacts = tmp_path / "state/learned/artefacts"
    for estimator, trained_on, said in (
        (promise.estimator, None, "--trained-on"),
        (promise.estimator, [fresh], "was not fitted on these data"),
        (None, [fresh], "--estimator"),
    ):
        with pytest.raises(ValueError, match=said):
            prepared([fresh], BIG.id, artefacts, estimator, trained_on)
    code, told = command(tmp_path, str(fresh), "--estimator", promise.estimator)
    assert code == 2 and "--trained-on" in told and "Traceback" not in told


LIAR = 5  # every so many-th prompt is one of which a liar speaks


def labelled(folder: Path, source: str = "user") -> Path:
    """The same with a table of labels: four keys that are honest, and one that swaps good and bad."""
    target = folder / "sums.outcomes.parquet"
    database = duckdb.connect()
    number = "split_part(prompt_id, '-', 2)::INT"
    key = f"CASE WHEN {number} % {LIAR} = 0 THEN 'liar' ELSE 'k' || ({number} % 4) END"
    database.execute(f"CREATE TABLE o AS SELECT *, {key} AS key FROM '{target}'")  # noqa: S608  # ours
    database.execute("UPDATE o SET quality = 1 - quality WHERE key = 'liar'")
    said = "prompt_id, model, ? AS source, key, quality AS score, 0.49 AS weight"
    database.execute(f"COPY (SELECT {said} FROM o) TO '{folder}/sums.labels.parquet'", [source])  # noqa: S608
    database.execute(f"COPY (SELECT * EXCLUDE (key), 0.49 AS weight FROM o) TO '{target}'")  # noqa: S608
    return folder


def test_keys_that_the_fit_left_out_certify_nothing_and_are_named(tmp_path: Path) -> None:
    data = labelled(files(tmp_path / "data", 400))
    found = prepared([data], BIG.id, tmp_path / "artefacts")
    assert found.left_out == ("liar",)
    assert int(np.isnan(found.table.quality).all(axis=1).sum()) == 400 // LIAR
    told = msgspec.structs.astuple(found.judges[0])
    assert (len(found.judges), told) == (1, ("user", 3 * 400 * (LIAR - 1) // LIAR, 0.15, 0.15))
    # An estimator that is there already has named them when it was fitted.
    table, labels = load_labelled([data])
    id = save(fit_believed(table, labels, reference=BIG.id), tmp_path / "artefacts")
    again = prepared([data], BIG.id, tmp_path / "artefacts", id, [data])
    assert (again.left_out, again.judges) == (found.left_out, found.judges)
    assert np.isnan(again.table.quality).all(axis=1).sum() == 400 // LIAR


def test_what_a_promise_rests_on_is_said(tmp_path: Path) -> None:
    data = labelled(files(tmp_path / "data", 400), "check:sum")
    _, told = command(tmp_path, str(data))
    assert "labels of the key liar are left out" in told
    assert "960 from check, taken to be wrong 5 times in 100 where they say bad, 42 where they say good" in told
    promise = msgspec.json.decode((tmp_path / "state/learned/p.promise.json").read_bytes(), type=Promise)
    assert promise.left_out == ("liar",) and promise.judges[0].labels == 960
    _, told = command(tmp_path, str(files(tmp_path / "plain", 160)))
    assert "do not say who judged" in told


def test_the_command_says_how_many_rows_have_no_label_of_a_cheaper_model(tmp_path: Path) -> None:
    data = files(tmp_path / "data", 160)
    change(data, "UPDATE o SET quality = NULL WHERE model <> ? AND hash(prompt_id) % 2 = 0", BIG.id)
    _, told = command(tmp_path, str(data))
    counted = re.search(r"(\d+) labelled requests tested\s+(\d+) more are left out", told)
    assert counted, told
    assert sum(map(int, counted.groups())) == 120 and int(counted[2]) > 30


def test_the_command_says_no_where_the_data_are_few(tmp_path: Path) -> None:
    code, told = command(tmp_path, str(files(tmp_path / "data", 160)), "--json")
    assert code == 1, told
    (segment,) = msgspec.json.decode(told)["segments"]
    assert segment["status"] == "uncertified" and segment["missing"] > 0
