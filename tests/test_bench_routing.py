"""The bench over made-up sets: the whole table, the page, the plots, and what the commands say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support.tables import made, write
from support.worlds import AT_S

from tierwise.cli.evaluate import _made, _plain, _renew
from tierwise.cli.main import app
from tierwise.core.learned import Trained
from tierwise.study import yardsticks as ys
from tierwise.study.report import bench as module
from tierwise.study.report import page, trials
from tierwise.study.report.bench import Bench, bench
from tierwise.study.report.plots import svg
from tierwise.study.table import Table
from tierwise.study.training.fit import FitError

CONFIG = """
providers:
  acme: {wire: openai, base_url: "http://127.0.0.1:9/v1"}
models:
  acme/large: {tier: frontier, price: {input_usd_per_mtok: 3, output_usd_per_mtok: 15}}
  acme/small: {tier: fast, price: {input_usd_per_mtok: 0.1, output_usd_per_mtok: 0.2}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("sets")
    write(made(400, seed=1), found, "three")
    write(made(300, seed=2, models=2), found, "two")
    write(made(20, seed=3), found, "tiny")
    return found


def without_costs(table: Table) -> Table:
    return msgspec.structs.replace(table, cost_usd=np.full_like(table.cost_usd, np.nan))


@pytest.fixture(scope="module")
def done(folder: Path) -> Bench:
    timed, trials.TIMED = trials.TIMED, 20
    try:
        return bench(folder, seeds=2, draws=3)
    finally:
        trials.TIMED = timed


def test_every_set_has_every_yardstick_and_what_cannot_be_measured_is_said(done: Bench) -> None:
    three, two = done.sets
    assert (three.name, two.name) == ("three", "two")
    assert [each[:5] for each in done.left_out] == ["tiny:"]
    assert three.evaluation.figures["gain.router"].n == 2
    assert three.evaluation.figures["gain.router"].mean > 0
    assert {each.source for each in three.harm} == {"letters", "proofs"}
    assert set(three.stability) == set(trials.CHANGES)
    assert three.speed is not None
    assert three.speed.p50_ms <= three.speed.p99_ms
    assert 400 < three.speed.tokens < 700
    assert three.sources == ()
    assert {each.source for each in two.sources} == {"letters", "proofs"}
    assert all(each.trained <= 80 for each in two.sources)


def test_the_page_has_a_table_for_each_and_keeps_what_stands_around_it(done: Bench, tmp_path: Path) -> None:
    text = page.text(done)
    for heading in ("### What was aimed at", "### three", "### two", "Left out: tiny", "APGR", "held out", "oracle"):
        assert heading in text, heading
    assert "nan" not in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
    path = tmp_path / "page.md"
    path.write_text(f"before\n{page.BEGIN}\nwhat was there\n{page.END}\nafter\n")
    _renew(path, done, _made(path))
    renewed = path.read_text()
    assert renewed.startswith("before\n")
    assert renewed.endswith("\nafter\n")
    assert "what was there" not in renewed
    assert "Commit unknown" in renewed
    drawing = path.with_suffix(".svg").read_text()
    assert drawing.count("<path") > 2 * 4
    assert drawing == svg(done.sets)
    with pytest.raises(ValueError, match="no lines"):
        page.renewed("nothing here", text)


@pytest.mark.parametrize("models", [2, 3])
def test_a_set_without_costs_has_the_yardsticks_that_need_none(
    models: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "TIMED", 5)
    monkeypatch.setattr(trials, "LABELLED", (200,))
    write(without_costs(made(700, seed=1, models=models)), tmp_path, "free")
    done = bench(tmp_path, seeds=1, draws=2)
    (free,) = done.sets
    assert free.speed and not free.harm and not free.stability
    assert {each.n for each in free.kept} == {200}
    assert len(free.sources) == (2 if models == 2 else 0)
    text = page.text(done)
    assert "Costs are not known" in text and "nan" not in text
    assert ("All sources together: APGR" in text) == (models == 2)
    assert not [each for each in page.targets(done) if "saving" in each.about]
    assert "<path" not in svg(done.sets)
    assert json.loads(msgspec.json.encode(_plain(done)))["sets"][0]["evaluation"]["seeds"][0]["span"] is None


def test_labels_that_are_all_bad_have_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "TIMED", 5)
    table = made(100, seed=1)
    write(msgspec.structs.replace(table, quality=np.zeros_like(table.quality)), tmp_path, "bad")
    text = page.text(bench(tmp_path, seeds=1, draws=2))
    assert "Every quality is 0, so there is nothing to tell apart" in text
    assert "Promises were not put to the test" in text


def test_a_part_that_cannot_be_measured_leaves_the_rest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "TIMED", 5)

    def failing(table: Table, seed: int) -> Trained:
        if "proofs" not in table.workloads:  # as where a source is held out, and too little is left
            raise FitError("nothing can be learned from so few")
        return train(table, seed)

    train = module.train
    monkeypatch.setattr(module, "train", failing)
    done = bench(folder, seeds=1, draws=2)
    assert [each.left_out for each in done.sets] == [
        ("held out proofs: nothing can be learned from so few",),
        ("source letters: nothing can be learned from so few", "held out proofs: nothing can be learned from so few"),
    ]
    assert "Not measured: held out proofs: nothing can be learned from so few" in page.text(done)
    monkeypatch.setattr(module, "train", lambda table, seed: failing(table.take([]), seed))
    assert bench(folder, seeds=1, draws=2).left_out == (
        *[each for each in done.left_out if each.startswith("tiny:")],
        "three: nothing can be learned from so few",
        "two: nothing can be learned from so few",
    )


def test_targets_are_met_by_their_figures_alone(done: Bench) -> None:
    three = msgspec.structs.replace(done.sets[0], speed=trials.Speed(0.2, 0.9, 500, 3, 10), stability={"typos": 0.94})
    found = {each.about: each for each in page.targets(msgspec.structs.replace(done, sets=(three,)))}
    assert found["three: one decision"].met
    assert not found["three: same model after small changes"].met
    slow = msgspec.structs.replace(three, speed=trials.Speed(0.2, 1.1, 500, 3, 10))
    assert not page.targets(msgspec.structs.replace(done, sets=(slow,)))[-1].met


def test_what_is_saved_in_calls_is_not_held_against_what_is_asked_of_money(done: Bench) -> None:
    none = ys.Mean(0.7, 0.0, 2)
    kept = trials.Kept(
        kind="agreement", alpha=0.02, delta=0.1, n=1_000, draws=2, certified=1, violated=0, violated_whole=0,
        saving=none, loss=none,
    )  # fmt: skip
    paid = msgspec.structs.replace(done.sets[0], kept=(kept,))
    seeds = tuple(msgspec.structs.replace(each, cheapest="") for each in paid.evaluation.seeds)
    free = msgspec.structs.replace(paid, evaluation=msgspec.structs.replace(paid.evaluation, seeds=seeds))
    for one, many in ((paid, 1), (free, 0)):
        found = page.targets(msgspec.structs.replace(done, sets=(one,)))
        assert sum("certified saving" in each.about for each in found) == many


def test_a_source_that_gains_does_not_pay_for_one_that_is_harmed(done: Bench) -> None:
    for harmed, met in ((-0.01, False), (-0.001, True)):
        harm = (trials.Harm("a", 100, {"router": 0.2}), trials.Harm("b", 100, {"router": harmed}))
        one = msgspec.structs.replace(done.sets[0], harm=harm)
        found = page.targets(msgspec.structs.replace(done, sets=(one,)))
        assert [each.met for each in found if "no harm" in each.about] == [met]


def test_everything_is_json(done: Bench) -> None:
    again = json.loads(msgspec.json.encode(_plain(done)))
    assert again["sets"][0]["evaluation"]["seeds"][0]["curves"]["zero"]["cost"]


# ------------------------------------------------------------------------------------------------ commands


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, str, str]:
    """As the command line runs it, in this process: a study of its own takes seconds to start."""
    from tierwise.cli.main import main

    monkeypatch.setattr(sys, "argv", ["tierwise", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr()
    assert app is not None
    code = caught.value.code
    return (0 if code is None else int(code)), said.out, said.err


def test_simulate_says_what_a_configuration_is_worth(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "tierwise.yaml"
    config.write_text(CONFIG)
    data = folder / "three.prompts.jsonl"
    code, out, _ = run(capsys, monkeypatch, "simulate", data, "--config", config, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["n"] == 400
    assert found["absent"] == ["acme/middle"]
    assert set(found["served"]) <= {"acme/large", "acme/small"}
    code, out, _ = run(capsys, monkeypatch, "simulate", data, "--config", config)
    assert "oracle at this cost" in out
    assert "not promoted" not in out
    config.write_text(CONFIG + "policy: {start: cheap, plans: {cheap: {best: [fast, frontier], promise: kept}}}\n")
    code, out, _ = run(capsys, monkeypatch, "simulate", data, "--config", config)
    assert "Promise kept is not promoted, so nothing is saved on it" in out
    code, _, err = run(capsys, monkeypatch, "simulate", data, "--config", config, "--policy", "nope")
    assert code == 2
    assert "no policy 'nope'" in err


def test_what_is_missing_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIERWISE_DATA", raising=False)
    for words, code, said in (
        (("bench", "routing"), 2, "--data"),
        (("bench", "routing", "--data", tmp_path), 1, "holds no outcome files"),
        (("bench", "routing", "--data", folder, "--write", tmp_path / "no.md"), 2, "is not there"),
        (("evaluate", folder / "tiny.prompts.jsonl"), 1, "60 are the least"),
        (("replay", "--state", tmp_path), 1, "no journal"),
    ):
        found = run(capsys, monkeypatch, *words)
        assert found[0] == code, words
        assert said in found[2], words


def test_evaluate_prints_the_yardsticks(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(capsys, monkeypatch, "evaluate", folder / "two.prompts.jsonl", "--seeds", "1")
    assert code == 0
    assert "APGR" in out
    assert "| oracle |" in out


def test_replay_reads_the_journal_and_its_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    from support.records import a_record

    from tierwise.core.ports import Feedback
    from tierwise.stores.journal import SqliteJournal

    async def filled() -> None:
        journal = SqliteJournal(tmp_path / "journal.sqlite")
        for i in range(3):
            journal.write(a_record(f"r{i}", AT_S, model="acme/large"))
        journal.feedback(Feedback(decision_id="r1", at_s=AT_S, score=1.0))
        await journal.close()

    asyncio.run(filled())
    config = tmp_path / "tierwise.yaml"
    config.write_text(CONFIG)
    code, out, err = run(capsys, monkeypatch, "replay", "--state", tmp_path, "--config", config, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["episodes"] == 3
    assert any("no decision has odds" in note and "`shadow: false` logs" in note for note in found["notes"])
    code, out, _ = run(capsys, monkeypatch, "replay", "--state", tmp_path, "--config", config)
    assert "3 requests under snapshot" in out


def test_a_share_is_told_in_per_cent() -> None:
    from tierwise.study.yardsticks import mean_of

    assert page.shown(mean_of([0.5, 0.7]), share=True) == "60.0 ± 10.0"
    assert page.shown(mean_of([0.5])) == "0.5000"
    assert page.shown(None) == ""
    assert np.isclose(mean_of([0.5, 0.7]).mean, 0.6)


def test_names_from_elsewhere_break_no_line_and_move_no_cursor() -> None:
    shown = page.table(["", "figure"], [["acme\x1b[31m\n|x", "1"]])
    assert shown.splitlines()[-1] == "| acme?[31m?/x | 1 |"
