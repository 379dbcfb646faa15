"""Training: what is learned of tables whose truth is known, what is said of poor ones, and the algebra."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.support.tables import write
from tests.support.trained import features_of, made, texts, world_of
from tierwise.cli.main import app
from tierwise.core.learned import Heads, problems
from tierwise.study.table import Table, inputs_of
from tierwise.study.training import chances
from tierwise.study.training.artefact import load, read_manifest
from tierwise.study.training.fit import FitError, Fitted, fit, predict
from tierwise.study.training.settings import USUAL

WORLD, TRUTH = world_of(500)  # the least that shows what is claimed


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return fit(WORLD)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few settings are tried here, on one division into folds; `fitted` tries them all."""
    monkeypatch.setattr("tierwise.study.training.settings.REPEATS", 1)
    monkeypatch.setattr(
        "tierwise.study.training.settings.CHOICES", {"workload": (1.0,), "dense": (0.05,), "gain": (100.0,)}
    )


def with_quality(table: Table, change: Callable[[np.ndarray[Any, Any]], None]) -> Table:
    quality = table.quality.copy()
    change(quality)
    return msgspec.structs.replace(table, quality=quality)


# ------------------------------------------------------------------------------------------------ what is learned


def test_a_fit_finds_who_is_good_at_what(fitted: Fitted) -> None:
    """On prompts it has never seen its chances are nearer to the truth than the means are, for every model, and the
    gain it expects orders prompts as the true gain does."""
    table, truth = world_of(1_000, seed=7)
    mean, low, high = predict(fitted.trained, table.inputs, table.workloads)
    assert fitted.trained.reference == "big" and fitted.trained.models == WORLD.models
    assert ((low < mean) & (mean < high)).all()
    for m in (1, 2):
        gain, expected = truth[:, 0] - truth[:, m], mean[:, 0] - mean[:, m]
        assert np.corrcoef(gain, expected)[0, 1] > 0.85
        usual = WORLD.quality[:, m].mean()
        assert np.mean((mean[:, m] - truth[:, m]) ** 2) < 0.4 * np.mean((usual - truth[:, m]) ** 2)


def test_the_report_measures_on_prompts_that_were_left_out(fitted: Fitted) -> None:
    report = fitted.report
    assert (report.rows, report.workloads, report.left_out) == (500, 2, 500)
    assert all("big" in warning for warning in report.warnings), "it is nearly always right, so no prompt tells"
    by_name = {each.model: each for each in report.models}
    tiny = by_name["tiny"]
    assert tiny.n == tiny.paired == 500 and by_name["big"].apgr is None
    assert tiny.quality.brier < tiny.quality.base_brier and tiny.quality.log_loss < tiny.quality.base_log_loss
    assert tiny.quality.auroc is not None and tiny.quality.auroc > 0.75
    assert tiny.apgr is not None and tiny.apgr > 0.6


def test_what_is_left_out_teaches_nothing() -> None:
    """Outcomes by the toss of a coin: no figure of the report may say that the prompt told them."""
    generator = np.random.default_rng(3)
    table = with_quality(WORLD, lambda quality: np.copyto(quality, generator.integers(0, 2, quality.shape)))
    found = fit(table)
    mean, _, _ = predict(found.trained, WORLD.inputs, WORLD.workloads)
    assert mean.std(axis=0).max() < 0.04, mean.std(axis=0)
    assert mean[:, WORLD.column(found.trained.reference)].std() < 1e-3, "a level has to show its worth"
    for each in found.report.models:
        assert each.quality.auroc is not None and abs(each.quality.auroc - 0.5) < 0.08
        assert each.quality.brier > each.quality.base_brier - 0.004


def test_the_interval_covers_the_truth_of_slices(fitted: Fitted) -> None:
    """Prompts of one workload with similar chances: their true share is within the interval, nine times of ten."""
    table, truth = world_of(3_000, seed=11)
    mean, low, high = predict(fitted.trained, table.inputs, table.workloads)
    workload = np.unique(table.workloads, return_inverse=True)[1]
    inside = []
    for m in range(3):
        slices = chances.slices_of(mean[:, m], workload)
        for each in np.unique(slices):
            rows = slices == each
            inside.append(low[rows, m].mean() <= truth[rows, m].mean() <= high[rows, m].mean())
    assert np.mean(inside) >= 0.85, np.mean(inside)
    assert all((each.quality.coverage or 0) > 0.75 for each in fitted.report.models)


def test_the_gain_is_taken_where_both_answered() -> None:
    """The weak model was only asked what is easy, so that its mean is higher than the strong one's. On prompts that
    both answered it is not, and that is what is believed."""
    easy = TRUTH[:, 2] > np.median(TRUTH[:, 2])

    def only_easy(quality: np.ndarray[Any, Any]) -> None:
        quality[~easy, 2] = np.nan
        quality[easy, 0] = np.where(np.arange(easy.sum()) % 2 == 0, quality[easy, 0], np.nan)

    table = with_quality(WORLD, only_easy)
    found = fit(table, reference="big")
    mean, _, _ = predict(found.trained, WORLD.inputs.take(np.flatnonzero(easy)), ["chat"] * int(easy.sum()))
    assert (mean[:, 0] > mean[:, 2]).mean() > 0.9
    assert {each.model: each.paired for each in found.report.models}["tiny"] < 200


def test_the_reference_is_the_best_had_all_been_asked_the_same() -> None:
    """Whatever the order of the columns. One model was asked nothing but the easy half, where it fails once and the
    best one never: it has the highest mean, and is not the best."""
    easy = TRUTH[:, 2] > np.median(TRUTH[:, 2])

    def asked(quality: np.ndarray[Any, Any]) -> None:
        quality[~easy, 0] = np.nan
        quality[easy, 0] = np.arange(easy.sum()) > 0
        quality[easy, 2] = 1.0

    table = with_quality(WORLD.only(["tiny", "mid", "big"]), asked)
    assert np.nanmean(table.quality, axis=0).argmax() == 0
    assert fit(table).trained.reference == "big"


def test_logs_of_one_model_with_few_shadows_still_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all prompts were answered by one model, a tenth by another as well: the gain is learned from these, with
    and without leaning on what all the others tell of difficulty."""

    def shadowed(quality: np.ndarray[Any, Any]) -> None:
        quality[:, 1] = np.nan
        quality[np.arange(len(quality)) % 10 != 0, 0] = np.nan

    table, truth = world_of(600, seed=5)
    found = []
    for leaning in (0.0, 1.0):
        monkeypatch.setattr("tierwise.study.training.settings.CHOICES", {})
        monkeypatch.setattr("tierwise.study.training.settings.USUAL", msgspec.structs.replace(USUAL, leaning=leaning))
        made_of = fit(with_quality(WORLD, shadowed), reference="big")
        assert made_of.trained.models == ("big", "tiny")
        assert "nothing was learned about mid: 0 rows, and 20 are the least" in made_of.report.warnings
        mean, _, _ = predict(made_of.trained, table.inputs, table.workloads)
        found.append(float(np.corrcoef(truth[:, 0] - truth[:, 2], mean[:, 0] - mean[:, 1])[0, 1]))
    assert min(found) > 0.8 and found[0] != found[1]


def test_without_pairs_a_model_has_a_regression_of_its_own() -> None:
    def apart(quality: np.ndarray[Any, Any]) -> None:
        quality[::2, 0] = np.nan
        quality[1::2, 2] = np.nan

    found = fit(with_quality(WORLD, apart).only(["big", "tiny"]))
    assert any("was not measured: 0 prompts" in warning for warning in found.report.warnings)
    mean, _, _ = predict(found.trained, WORLD.inputs, WORLD.workloads)
    assert np.corrcoef(TRUTH[:, 2], mean[:, 1])[0, 1] > 0.8


def test_a_workload_moves_the_chance(fitted: Fitted) -> None:
    mean_chat, _, _ = predict(fitted.trained, WORLD.inputs, ["chat"] * 500)
    mean_proofs, _, _ = predict(fitted.trained, WORLD.inputs, ["proofs"] * 500)
    assert (mean_chat[:, 1] > mean_proofs[:, 1]).all()
    rare = fit(msgspec.structs.replace(WORLD, workloads=("rare",) * 4 + WORLD.workloads[4:]))
    assert rare.trained.workloads == ("chat", "proofs"), "four rows are no workload of their own"


def test_weights_count() -> None:
    """Half of the labels are upside down, and weigh a thousandth: they are as good as none."""
    flipped = np.arange(500) % 2 == 0
    table = with_quality(WORLD, lambda quality: np.copyto(quality, 1 - quality, where=flipped[:, None]))
    weight = np.where(flipped[:, None], 1e-3, np.ones_like(WORLD.weight))
    trusted = fit(msgspec.structs.replace(table, weight=weight))
    mean, _, _ = predict(trusted.trained, WORLD.inputs, WORLD.workloads)
    assert np.corrcoef(mean[:, 2], TRUTH[:, 2])[0, 1] > 0.85
    assert np.abs(mean - TRUTH).mean() < 0.12


def test_lengths_are_learned_as_means(fitted: Fitted) -> None:
    table, _ = world_of(400, seed=9)
    served, expected = Heads(fitted.trained), []
    for text, workload in zip(table.texts, table.workloads, strict=True):
        score = served.scores(features_of(str(text)), workload)
        expected.append([score[name].output_tokens or 0 for name in table.models])
        assert score["big"].latency_ms is None
    assert np.mean(expected, axis=0) == pytest.approx(table.output_tokens.mean(axis=0), rel=0.15)


def test_the_same_data_and_seed_give_the_same_estimator(fitted: Fitted) -> None:
    few = WORLD.take(np.arange(200))
    once = fit(few)
    again = fit(few)
    assert (again.trained, again.report) == (once.trained, once.report)
    assert fit(few, seed=1).report != once.report and once.trained.id != fitted.trained.id


def test_the_sparse_and_many_rows_go_another_way(monkeypatch: pytest.MonkeyPatch, fitted: Fitted) -> None:
    """One fold left out instead of five: nearly the same estimator, figures of a fifth of the rows."""
    monkeypatch.setattr("tierwise.study.training.fit.MANY", 100)
    found = fit(WORLD)
    assert found.report.left_out == 100
    ours, theirs = (predict(each.trained, WORLD.inputs, WORLD.workloads)[0] for each in (found, fitted))
    assert np.abs(ours - theirs).mean() < 0.06


# ------------------------------------------------------------------------------------------------ as it serves


def test_predict_says_what_heads_say(fitted: Fitted) -> None:
    generator = np.random.default_rng(2)
    said = ["", "???", *texts(40, generator)[0], "derive " * 3_000]
    workloads = [str(generator.choice(["chat", "proofs", "", "new"])) for _ in said]
    read = [features_of(text) for text in said]
    for trained in (fitted.trained, made(models=("a", "b"), workloads=("chat",), grams=4_000)):
        parts = predict(trained, inputs_of(read), workloads)
        served = Heads(trained)
        for i, (each, workload) in enumerate(zip(read, workloads, strict=True)):
            scores = served.scores(each, workload).values()
            wanted = [[score.mid for score in scores], [s.low for s in scores], [s.high for s in scores]]
            np.testing.assert_allclose([part[i] for part in parts], wanted, atol=1e-5)


# ------------------------------------------------------------------------------------------------ poor data


def empty(table: Table) -> Table:
    return table.take([])


def nothing_known(table: Table) -> Table:
    return with_quality(table, lambda quality: quality.fill(np.nan))


def ten_rows(table: Table) -> Table:
    return table.take(np.arange(10))


def one_prompt(table: Table) -> Table:
    return msgspec.structs.replace(table, groups=np.zeros(500, dtype=np.int64))


def above_one(table: Table) -> Table:
    return with_quality(table, lambda quality: quality.__setitem__((3, 1), 1.2))


def infinite(table: Table) -> Table:
    return with_quality(table, lambda quality: quality.__setitem__((3, 1), np.inf))


def weightless(table: Table) -> Table:
    return msgspec.structs.replace(table, weight=np.zeros_like(table.weight))


def no_feature(table: Table) -> Table:
    dense = table.inputs.dense.copy()
    dense[4, 2] = np.nan
    return msgspec.structs.replace(table, inputs=msgspec.structs.replace(table.inputs, dense=dense))


def negative_tokens(table: Table) -> Table:
    return msgspec.structs.replace(table, output_tokens=-table.output_tokens)


REFUSED: dict[Callable[[Table], Table], str] = {
    empty: "empty",
    nothing_known: "no model has 20 outcomes",
    ten_rows: r"no model has 20 outcomes \(the most is 10\)",
    one_prompt: "there are 1 different prompts",
    above_one: "'p3', model 'mid' is 1.2; it has to be between 0 and 1",
    infinite: "'p3', model 'mid' is inf",
    weightless: "not above 0",
    no_feature: "feature of prompt 'p4'",
    negative_tokens: "output_tokens of prompt 'p0'",
}


@pytest.mark.parametrize(("spoil", "told"), REFUSED.items(), ids=[each.__name__ for each in REFUSED])
def test_a_table_that_carries_nothing_is_refused(spoil: Callable[[Table], Table], told: str) -> None:
    with pytest.raises(FitError, match=told):
        fit(spoil(WORLD))


def test_a_reference_without_outcomes_is_refused() -> None:
    with pytest.raises(FitError, match="none of the models: big, mid, tiny"):
        fit(WORLD, reference="huge")
    few = with_quality(WORLD, lambda quality: quality[5:, 0].fill(np.nan))
    with pytest.raises(FitError, match="'big' has 5 outcomes"):
        fit(few, reference="big")


def alike(table: Table) -> Table:
    return with_quality(table, lambda quality: quality.fill(1.0))


def one_alike(table: Table) -> Table:
    return with_quality(table, lambda quality: quality[:, 2].fill(0.0))


def twenty_rows(table: Table) -> Table:
    return table.take(np.arange(20))


def one_model(table: Table) -> Table:
    return table.only(["mid"])


def no_grams(table: Table) -> Table:
    nothing = msgspec.structs.replace(table.inputs, grams=np.zeros(0, np.uint16), starts=np.zeros(501, np.int64))
    return msgspec.structs.replace(table, inputs=nothing)


def constant_features(table: Table) -> Table:
    flat = msgspec.structs.replace(table.inputs, dense=np.ones_like(table.inputs.dense))
    return msgspec.structs.replace(table, inputs=flat)


def shares(table: Table) -> Table:
    return with_quality(table, lambda quality: np.copyto(quality, 0.3 + 0.4 * quality))


def doubled(table: Table) -> Table:
    return table.take(np.repeat(np.arange(250), 2))


def own_workloads(table: Table) -> Table:
    return msgspec.structs.replace(table, workloads=tuple(f"w{i}" for i in range(500)))


POOR = (
    alike, one_alike, twenty_rows, one_model, no_grams, constant_features, shares, doubled, own_workloads,
)  # fmt: skip


@pytest.mark.parametrize("spoil", POOR, ids=[each.__name__ for each in POOR])
def test_a_poor_table_gives_a_sound_estimator(spoil: Callable[[Table], Table], monkeypatch: pytest.MonkeyPatch) -> None:
    """No number that is none, chances strictly between 0 and 1, nothing certain."""
    found = fit(spoil(WORLD))
    assert problems(found.trained) == []
    parts = predict(found.trained, WORLD.inputs, WORLD.workloads)
    assert all(np.isfinite(part).all() for part in parts)
    assert (parts[0] > 0).all() and (parts[0] < 1).all()
    assert "NaN" not in msgspec.json.encode(found.report).decode()
    if spoil in (alike, one_alike):
        assert any("all outcomes of tiny are alike" in warning for warning in found.report.warnings)


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_fits_and_saves(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(msgspec.structs.replace(world_of(80)[0], cost_usd=np.ones((80, 3))), tmp_path / "data", "world")
    run = CliRunner().invoke(app, ["fit", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--json"])
    assert run.exit_code == 0, run.output
    told = msgspec.json.decode(run.stdout)
    assert load(tmp_path / "out", told["id"]).reference == told["report"]["reference"] == "big"
    assert read_manifest(tmp_path / "out", told["id"]).data_hash == told["data_hash"]
    assert "prompts, 3 models" in run.stderr
    text = CliRunner().invoke(app, ["fit", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
    assert text.exit_code == 0 and told["id"] in text.stdout and "tiny" in text.stdout
