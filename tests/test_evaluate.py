"""Training on one part and measuring on the other: what is deployed was chosen beforehand, and the laws hold there."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from support.learned import trained
from support.tables import MODELS, made
from support.worlds import BIG, MID, TINY, catalogue

from tierwise.core.learned import DENSE, Trained
from tierwise.core.policy import Best, Policy, Use
from tierwise.core.snapshot import build
from tierwise.study import yardsticks as ys
from tierwise.study.data.whole import EvaluateError, complete
from tierwise.study.judging import ways
from tierwise.study.judging.evaluate import Evaluation, evaluate, parts
from tierwise.study.judging.play import catalogue_of
from tierwise.study.report import trials
from tierwise.study.report.simulate import lines, simulate
from tierwise.study.table import Table

LARGE, MIDDLE, SMALL = MODELS
FORCE = {LARGE: (3.0, 1.0), MIDDLE: (2.5, 4.0), SMALL: (2.0, 6.0)}


def by_hand(table: Table, seed: int) -> Trained:
    """Knows the made-up world without training: proofs are hard, by their task."""
    found = trained({name: FORCE[name] for name in table.models})
    weights = np.zeros((len(DENSE), len(table.models)), "<f4")
    weights[DENSE.index("task:reasoning")] = [-FORCE[name][1] / 2 for name in table.models]
    return msgspec.structs.replace(found, id=f"{len(table.models):016x}", dense_weights=weights.tobytes())


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluate(made(700, seed=1), by_hand, seeds=3)


# ------------------------------------------------------------------------------------------------ laws


def test_no_group_is_on_two_sides_and_no_row_is_lost() -> None:
    table = made(300, seed=2)
    table = msgspec.structs.replace(table, groups=table.groups // 2 % 120)
    for seed in range(5):
        sides = parts(table, seed)
        assert sorted(np.concatenate(sides).tolist()) == list(range(300))
        groups = [set(table.groups[rows].tolist()) for rows in sides]
        assert not groups[0] & groups[1]
        assert not groups[0] & groups[2]
        assert not groups[1] & groups[2]


def test_a_two_model_router_gets_no_more_labels_than_stated() -> None:
    table = made(3_000, seed=3, models=2, tokens=False)
    fitted, validation, test = parts(table, 0)
    assert fitted.size + validation.size <= 1_500
    assert test.size > 850


def test_the_oracle_is_above_all_and_the_router_between_it_and_chance(found: Evaluation) -> None:
    area = {name: found.figures[f"aiq.{name}"].mean for name in ("oracle", "router", "zero", "random", "keywords")}
    assert area["oracle"] > area["router"] > area["zero"] >= area["random"]
    for seed in found.seeds:
        for name, curve in seed.curves.items():
            if name not in ("agreement", "with agreement"):
                assert (seed.curves["oracle"].at(curve.cost) >= curve.quality - 1e-9).all(), name
    assert found.figures["gain.router"].mean == pytest.approx(area["router"] - area["zero"])
    assert found.figures["gain.router"].n == 3
    assert found.figures["gain.router"].error is not None


def test_what_is_deployed_keeps_about_what_it_was_chosen_for(found: Evaluation) -> None:
    for way in ("router", "agreement", "with agreement"):
        for part in (0.95, 0.98, 0.99):
            assert found.figures[f"deployed.{way}.{part:g}.quality"].mean >= part - 0.02
        savings = [found.figures[f"deployed.{way}.{part:g}.saving"].mean for part in (0.95, 0.98, 1.0)]
        assert savings == sorted(savings, reverse=True)
    assert found.figures["deployed.agreement.0.95.saving"].mean > 0.3
    # A single model was never half as good a bargain.
    assert found.figures["deployed.zero.0.98.saving"].mean < 0.05


def test_errors_add_up_and_are_told_by_slice(found: Evaluation) -> None:
    for way in ("router", "best model"):
        of = {name: found.figures[f"errors.{way}.{name}"].mean for name in ("too low", "too high", "accuracy")}
        assert sum(of.values()) == pytest.approx(1.0)
    assert found.figures["errors.router.too high"].mean < found.figures["errors.best model.too high"].mean
    assert {"workload: letters", "workload: proofs", "task: reasoning", "length: to 100 tokens"} <= set(found.slices)
    slices = found.slices["workload: letters"]["n"].mean + found.slices["workload: proofs"]["n"].mean
    assert slices == pytest.approx(found.seeds[0].rows[2], rel=0.05)


def test_two_models_have_routellms_yardsticks() -> None:
    two = evaluate(made(400, seed=4, models=2, tokens=False), by_hand, seeds=2)
    assert two.figures["apgr"].mean > 0.6
    assert two.figures["cpt50"].mean < 0.4 < two.figures["cpt80"].mean
    assert "aiq.agreement" not in two.figures


def test_nothing_is_chosen_by_what_the_test_says(found: Evaluation) -> None:
    """Other outcomes of the test rows change what is measured there, and nothing that was fitted or chosen."""
    table = made(700, seed=1)
    _, _, test = parts(table, 0)
    quality = table.quality.copy()
    quality[test] = 1 - quality[test]
    seen: list[Any] = []

    def spied(own: Table, seed: int) -> Trained:
        seen.append(own.quality.sum())
        return by_hand(own, seed)

    turned = evaluate(msgspec.structs.replace(table, quality=quality), spied, seeds=1)
    evaluate(table, spied, seeds=1)
    assert seen[0] == seen[1]
    assert turned.seeds[0].rung == found.seeds[0].rung
    assert turned.figures["aiq.router"].mean != found.seeds[0].figures["aiq.router"]
    for name, value in found.seeds[0].figures.items():
        if value is not None and name.startswith("deployed.router") and name.endswith("saving"):
            assert turned.figures[name].mean == pytest.approx(value)


# ------------------------------------------------------------------------------------------------ what cannot be


def test_what_carries_no_evaluation_is_said() -> None:
    with pytest.raises(EvaluateError, match="one model only"):
        evaluate(made(100).only([LARGE]), by_hand)
    with pytest.raises(EvaluateError, match=r"50 prompts have outcomes of two models \(.* and 60 are the least"):
        evaluate(made(50), by_hand)


def test_prompts_without_every_outcome_are_left_out_and_counted() -> None:
    table = made(200, seed=5)
    quality = table.quality.copy()
    quality[:30, 1] = np.nan
    holed = msgspec.structs.replace(table, quality=quality)
    assert len(complete(holed).ids) == 170
    assert evaluate(holed, by_hand, seeds=1).left_out == 30


# ------------------------------------------------------------------------------------------------ what is deployed


def settings(*of: tuple[float, tuple[int, ...]]) -> ways.Points:
    """(cost, the model of each prompt), measured on TABLE below."""
    model = np.array([choice for _, choice in of])
    quality = QUALITY[np.arange(4), model].mean(axis=1)
    return ways.Points(np.array([cost for cost, _ in of]), quality, model)


QUALITY = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
FOUR = msgspec.structs.replace(made(4, models=2), quality=QUALITY)


@pytest.mark.parametrize(
    ("part", "expected"),
    [(0.4, 1), (0.7, 2), (0.98, 2)],
    ids=["cheap is good enough by more than an error", "it is, but not by an error", "only the reference is"],
)
def test_the_cheapest_that_is_good_enough_beyond_doubt_is_deployed(part: float, expected: int) -> None:
    found = settings((9.0, (0, 0, 0, 1)), (1.0, (1, 1, 1, 1)), (5.0, (0, 0, 0, 0)))
    assert ways.taken(found, FOUR, 0, part) == expected


def test_where_none_is_good_enough_the_best_is_deployed() -> None:
    found = settings((2.0, (1, 1, 1, 1)), (1.0, (1, 1, 1, 1)))
    assert ways.taken(found, FOUR, 0, 1.0) == 1


def test_the_cheap_pair_is_chosen_by_what_it_saves_and_loses() -> None:
    table = made(500, seed=6)
    assert ways.cheap_pairs(table)[0] == ways.Rung(2, 1, 0)
    silent = msgspec.structs.replace(table, answers=np.full_like(table.answers, -1))
    assert ways.cheap_pairs(silent) == ()


# ------------------------------------------------------------------------------------------------ trials


def test_promises_of_random_calibrations_are_kept_and_save() -> None:
    (tight, loose) = trials.promises(made(900, seed=7), by_hand, 300, draws=25)
    assert (tight.alpha, loose.alpha, loose.n, loose.draws, loose.kind) == (0.01, 0.02, 300, 25, "agreement")
    assert loose.violated <= 0.1
    assert loose.saving.mean >= tight.saving.mean
    assert loose.certified > 0.5
    assert loose.saving.mean > 0.2
    assert trials.promises(made(300, seed=7), by_hand, 200) == ()


def test_a_certificate_for_what_loses_is_counted_as_violated(monkeypatch: pytest.MonkeyPatch) -> None:
    from tierwise.study.promises import calibrate

    monkeypatch.setattr(calibrate, "_holds", lambda *_: True)
    monkeypatch.setattr(trials, "ALPHAS", (0.02,))
    (found,) = trials.promises(made(900, seed=7, models=2), by_hand, 300, draws=10)
    assert found.kind == "choice"
    assert found.violated == found.violated_whole == 1.0


def test_a_source_that_was_not_trained_on_is_not_in_the_training() -> None:
    table = made(300, seed=8)
    seen: list[set[str]] = []

    def spied(own: Table, seed: int) -> Trained:
        seen.append(set(own.workloads))
        return by_hand(own, seed)

    assert trials.sources(table) == ("letters", "proofs")
    harm = trials.held_out(table, spied, "proofs")
    assert seen == [{"letters"}]
    assert harm.n == sum(name == "proofs" for name in table.workloads)
    assert set(harm.gains) == {"router", "agreement", "with agreement", "keywords"}


@pytest.mark.parametrize("name", list(trials.CHANGES))
def test_small_changes_change_the_text_and_keep_its_words(name: str) -> None:
    text = "Prove step by step that the theorem number seven holds for every prime of the kind that was named before."
    changed = [trials.CHANGES[name](text, np.random.default_rng(seed)) for seed in range(30)]
    assert any(each != text for each in changed)
    for each in changed:
        assert abs(len(each.split()) - len(text.split())) == 0
        if name != "typos":
            assert each.casefold().split() == text.casefold().split()


def test_stability_tells_a_router_that_reads_case() -> None:
    table = made(200, seed=9)
    assert trials.stability(table, by_hand)["case"] >= 0.95
    assert trials.stability(msgspec.structs.replace(table, texts=(None,) * 200), by_hand) == {}


# ------------------------------------------------------------------------------------------------ simulate


def test_a_policy_is_put_beside_what_its_money_buys() -> None:
    table = made(200, seed=10)
    policy = Policy(name="default", start="all", plans={"all": Use((MIDDLE,))})
    found = simulate(build(catalogue_of(table), {"default": policy}), table)
    assert found.served == {MIDDLE: 1.0}
    assert found.quality.mean == pytest.approx(table.quality[:, 1].mean())
    assert found.cost_usd.mean == pytest.approx(table.cost_usd[:, 1].mean())
    zero, oracle = (found.baselines[f"{name} at this cost"].quality or 0 for name in ("zero", "oracle"))
    assert oracle > zero >= found.quality.mean - 1e-9
    assert found.baselines["best model"].quality == table.quality[:, 0].mean()
    assert "acme/middle | 100.0" in "\n".join(lines(found))


def test_models_that_the_catalogue_does_not_have_are_named() -> None:
    table = msgspec.structs.replace(made(100, seed=11), models=("big", "mid", "elsewhere/unknown"))
    policy = Policy(name="default", start="all", plans={"all": Best((BIG.id, MID.id, TINY.id))})
    found = simulate(build(catalogue(BIG, MID, TINY), {"default": policy}), table)
    assert found.absent == ("elsewhere/unknown",)
    assert set(found.served) <= {"big", "mid"}
    with pytest.raises(ValueError, match="none of the table's models"):
        simulate(
            build(catalogue(TINY), {"default": msgspec.structs.replace(policy, plans={"all": Use((TINY.id,))})}), table
        )


def test_a_curve_of_one_point_is_a_curve() -> None:
    table = made(80, seed=12)
    one = ys.hull(table.cost_usd.mean(axis=0)[:1], table.quality.mean(axis=0)[:1])
    assert one.cost.size == 1
    assert ys.aiq(one, ys.span(table.quality, table.cost_usd)) > 0
