"""Playing a policy over known outcomes is asking `decide`; the sweeps of the studies say the same, row by row."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from support.learned import trained
from support.tables import MODELS, made

from tierwise.core.budget import Denial
from tierwise.core.decide import decide
from tierwise.core.episode import Answer, Call, Decision, Denied, Episode, Replied
from tierwise.core.learned import Trained, dense
from tierwise.core.money import Usage
from tierwise.core.policy import Accept, Best, Cascade, Exploration, Explore, Plan, Policy, Rule, Rules, Use, When
from tierwise.core.ports import Outcome, Record
from tierwise.core.snapshot import Snapshot, build
from tierwise.study import yardsticks as ys
from tierwise.study.judging import ways
from tierwise.study.judging.play import catalogue_of, features_of, play, rates_usd, remembered
from tierwise.study.judging.replay import replay
from tierwise.study.report.trials import serving
from tierwise.study.table import Table
from tierwise.study.training.fit import fit

LARGE, MIDDLE, SMALL = MODELS
BY_HAND = trained({LARGE: (3.0, 1.0), MIDDLE: (2.5, 4.0), SMALL: (2.0, 6.0)})
TABLE = made(120, seed=1)


@pytest.fixture(scope="module")
def fitted() -> Trained:
    return fit(made(140, seed=2)).trained


def snapshot(plans: dict[str, Plan], estimator: Trained = BY_HAND, table: Table = TABLE) -> Snapshot:
    policy = Policy(name="default", start=next(iter(plans)), plans=plans)
    return build(catalogue_of(table), {"default": policy}, estimator)


# ------------------------------------------------------------------------------------------------ the same as decide


@pytest.mark.parametrize("texts", [True, False], ids=["from texts", "from what was stored"])
@pytest.mark.parametrize("miss_usd", [1e-6, 1e-3, 5e-3, 1.0])
def test_a_sweep_chooses_what_decide_does(fitted: Trained, miss_usd: float, texts: bool) -> None:
    table = made(150, seed=3, texts=texts)
    seen = ways.scores(fitted, table, ways.rates_of(table))
    swept = ys.sweep(seen.value, seen.cost_usd, np.array([miss_usd]))[0]
    found = play(serving(table, fitted, miss_usd), table)
    price = seen.cost_usd + (1 - seen.value) * miss_usd
    rows = np.arange(150)
    # Prices are whole nano-dollars there and not here: what is within two of them is a tie.
    apart = np.abs(price[rows, swept] - price[rows, found.model]) > 2e-9
    assert not apart.any()
    assert (swept == found.model).mean() > 0.98
    assert found.cost_usd == pytest.approx(table.cost_usd[rows, found.model], abs=1e-9)
    assert (found.quality == table.quality[rows, found.model]).all()
    assert (set(found.model) == {2}) == (miss_usd == 1e-6)


def test_a_cascade_of_agreement_is_what_the_studies_count() -> None:
    seen = ways.scores(BY_HAND, TABLE, ways.rates_of(TABLE))
    counted = ways.agreed(ways.Rung(1, 2, 0), np.array([np.inf]), TABLE, seen)
    found = play(
        snapshot({"start": Cascade(("pair", LARGE), Accept(agreement=2)), "pair": Use((MIDDLE, SMALL))}), TABLE
    )
    assert counted.cost[0] == pytest.approx(found.cost_usd.mean(), abs=1e-9)
    assert counted.quality[0] == pytest.approx(found.quality.mean())
    assert (counted.model[0] == found.model).all()
    assert set(found.asked) == {2, 3}
    never = ways.agreed(ways.Rung(1, 2, 0), np.array([-np.inf]), TABLE, seen)
    assert never.cost[0] == pytest.approx(TABLE.cost_usd[:, 0].mean())
    assert (never.model == 0).all()


@pytest.mark.parametrize("texts", [True, False])
def test_what_is_read_of_a_row_is_what_training_read(texts: bool) -> None:
    table = made(40, seed=4, texts=texts)
    rows = np.arange(40)
    for found in (features_of(table, rows), remembered(table.inputs)):
        again = np.array([dense(each) for each in found], dtype=np.float32)
        assert np.array_equal(again, table.inputs.dense)
        assert b"".join(each.grams for each in found) == table.inputs.grams.tobytes()


# ------------------------------------------------------------------------------------------------ what comes of it


def test_a_model_without_an_outcome_fails_and_the_next_is_asked() -> None:
    quality = TABLE.quality.copy()
    quality[:60, 2] = np.nan
    found = play(snapshot({"start": Use((SMALL, LARGE))}), msgspec.structs.replace(TABLE, quality=quality))
    assert (found.model[:60] == 0).all()
    assert (found.asked[:60] == 2).all()
    assert (found.model[60:] == 2).all()
    assert found.cost_usd[:60] == pytest.approx(TABLE.cost_usd[:60, 0], abs=1e-9)
    assert (found.latency_ms[60:] == TABLE.latency_ms[60:, 2]).all()


def test_a_request_that_nobody_answers_is_refused_and_worth_nothing() -> None:
    quality = np.full_like(TABLE.quality, np.nan)
    found = play(snapshot({"start": Use((SMALL,))}), msgspec.structs.replace(TABLE, quality=quality), [0, 1, 2])
    assert found.model.tolist() == [-1, -1, -1]
    assert found.quality.tolist() == [0, 0, 0]
    assert found.refused == (("upstream_failed", 3),)


def test_keywords_of_a_policy_are_read_from_the_text() -> None:
    rules = Rules((Rule(when=When(keywords=("prove",)), then=LARGE),), otherwise=SMALL)
    found = play(snapshot({"start": rules}), TABLE)
    hard = np.array(["Prove" in (text or "") for text in TABLE.texts])
    assert (found.model == np.where(hard, 0, 2)).all()


def test_a_catalogue_that_knows_none_of_the_models_is_refused() -> None:
    other = msgspec.structs.replace(TABLE, models=("a/x", "a/y", "a/z"))
    with pytest.raises(ValueError, match="none of the table's models"):
        play(snapshot({"start": Use((SMALL,))}), other)


def test_prices_of_a_table_give_back_what_it_cost() -> None:
    read, written, request = rates_usd(TABLE, 0)
    assert (read, request) == pytest.approx((0, 0), abs=1e-9)
    assert written == pytest.approx(15e-6, rel=1e-6)
    plain = made(50, tokens=False)
    assert rates_usd(plain, 1) == pytest.approx((0.0, 0.0, 100 * 1.5e-6))
    found = catalogue_of(TABLE)
    assert [found.models[name].tier for name in MODELS] == ["tier1", "tier2", "tier3"]
    assert found.baseline == LARGE


# ------------------------------------------------------------------------------------------------ replay


def journal(served: Snapshot, table: Table, seed: int = 0) -> tuple[list[Record], dict[str, float]]:
    """What a gateway would have logged of these prompts, and what each reply was worth."""
    dice = np.random.default_rng(seed)
    records, labels = [], {}
    rows = np.arange(len(table.ids))
    for row, features in zip(rows, features_of(table, rows, served), strict=True):
        story = Episode(
            id=table.ids[row],
            snapshot=served.hash,
            at_s=1,
            draw=float(dice.random()),
            requested="auto",
            policy="default",
            features=features,
        )
        decisions: list[Decision] = [decide(served, story)]
        while isinstance(step := decisions[-1].step, Call):
            at = table.models.index(step.model)
            nano = round(1e9 * table.cost_usd[row, at])
            event = Replied(at=step.at, model=step.model, after_ms=1, usage=Usage(), cost_nano=nano)
            story = story.then(event)
            decisions.append(decide(served, story))
        assert isinstance(decisions[-1].step, Answer)
        labels[story.id] = float(table.quality[row, at])
        outcome = Outcome(status="answered", routed=table.models[at], cost_nano=nano)
        records.append(Record(episode=story, decisions=tuple(decisions), outcome=outcome))
    return records, labels


EXPLORING: dict[str, Plan] = {
    "start": Explore(Exploration(rate=0.5, among=MODELS), then="usual"),
    "usual": Use((SMALL,)),
}


def test_under_the_same_snapshot_nothing_changes() -> None:
    for plans in (EXPLORING, {"start": Best(MODELS)}):
        served = snapshot(plans)
        records, labels = journal(served, TABLE)
        found = replay(served, records, labels)
        assert (found.episodes, found.changed, found.moves) == (120, 0, ())
        for each in found.qualities:  # it chooses with the odds that were logged, so every request counts once
            assert each.effective == pytest.approx(120)
            assert each.method == "doubly_robust" or each.mean == pytest.approx(found.logged_quality)


def test_a_story_changes_where_another_model_would_be_asked() -> None:
    records, labels = journal(snapshot({"start": Use((SMALL,))}), TABLE)
    pinned = msgspec.structs.replace(records[0], episode=msgspec.structs.replace(records[0].episode, pinned=SMALL))
    found = replay(snapshot({"other": Use((LARGE,))}), [pinned, *records[1:]], labels)
    assert (found.left_out, found.changed) == (1, 119)
    assert found.moves == ((SMALL, LARGE, 119),)
    assert found.expected_cost_usd > 0
    assert 0 < found.expected_quality < 1
    assert any("no decision has odds" in note for note in found.notes)
    assert found.qualities == ()


def test_the_same_call_under_a_plan_of_another_name_is_the_same() -> None:
    records, labels = journal(snapshot({"start": Use((SMALL,))}), TABLE)
    renamed = replay(snapshot({"other": Rules((), otherwise="x"), "x": Use((SMALL,))}), records, labels)
    assert renamed.changed == 0


def test_logs_with_odds_say_what_another_policy_would_have_been_worth() -> None:
    table = made(1_200, seed=7)
    records, labels = journal(snapshot(EXPLORING, table=table), table)
    rules: dict[str, Plan] = {"start": Rules((Rule(when=When(min_complexity=0.3), then=LARGE),), otherwise=SMALL)}
    planned = snapshot(rules, table=table)
    truth = play(planned, table)
    found = replay(planned, records, labels)
    assert (found.logged, found.labelled) == (1_200, 1_200)
    for values, mean in ((found.qualities, truth.quality.mean()), (found.costs, truth.cost_usd.mean())):
        assert [each.method for each in values] == ["ips", "snips", "doubly_robust"]
        for each in values:
            assert each.why == ""
            assert abs(each.mean - mean) < 4 * each.error
    assert 0 < (truth.model == 0).mean() < 1


def test_what_exploration_s_budget_denied_is_left_out_of_the_estimates_and_counted() -> None:
    """Half of the explored calls of the large model were denied, and the small one answered. Put down to the large one,
    its bad answers would say that it is bad."""
    table = made(1_200, seed=7)
    served = snapshot(EXPLORING, table=table)
    records, labels = journal(served, table)
    spent = 0
    for i, record in enumerate(records):
        first = record.decisions[0].step
        if i % 2 and isinstance(first, Call) and first.explored and first.model == LARGE:
            no = Denied(at=first.at, model=LARGE, after_ms=1, denial=Denial(scope="tag"), explored=True)
            story = msgspec.structs.replace(record.episode, events=(no,))
            usual = decide(served, story)
            assert isinstance(usual.step, Call)
            story = story.then(Replied(at=usual.step.at, model=SMALL, after_ms=1, usage=Usage(), cost_nano=1))
            decisions = (record.decisions[0], usual, decide(served, story))
            records[i] = msgspec.structs.replace(record, episode=story, decisions=decisions)
            labels[story.id] = 0.0
            spent += 1
    found = replay(snapshot({"start": Use((LARGE,))}, table=table), records, labels)
    assert spent > 50
    assert (found.logged, found.denied) == (1_200 - spent, spent)
    truth = table.quality[:, table.models.index(LARGE)].mean()
    snips = next(each for each in found.qualities if each.method == "snips")
    assert abs(snips.mean - truth) < 4 * snips.error
    assert any(f"{spent} requests that the dice had chosen" in note for note in found.notes)


def test_a_model_that_was_never_tried_cannot_be_said() -> None:
    few: dict[str, Any] = {**EXPLORING, "start": Explore(Exploration(rate=0.5, among=(MIDDLE, SMALL)), then="usual")}
    records, labels = journal(snapshot(few), TABLE)
    found = replay(snapshot({"start": Use((LARGE,))}), records, labels)
    assert all("cannot say" in each.why for each in found.qualities)
