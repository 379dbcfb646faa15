"""What may be left to chance, at which odds, and what the decision says of a model that is asked as well."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.stories import episodes, events, worlds
from tests.support.worlds import BIG, MID, RIVAL, TINY, after, called, episode, failed, replied, said, world
from tierwise.config import load
from tierwise.core.budget import Denial, Lambda
from tierwise.core.check_policy import check
from tierwise.core.decide import decide
from tierwise.core.episode import Answer, Call, Decision, Denied, Episode, Grade, Refuse, Replied, Serve
from tierwise.core.policy import Accept, Cascade, Exploration, Explore, Plan, Use
from tierwise.core.request import EXPLORATION, Payer
from tierwise.core.shadow import alone, exploring, rest_of
from tierwise.core.snapshot import Snapshot, dump
from tierwise.core.snapshot import load as load_snapshot
from tierwise.core.weigh import worst_case_nano


def shadowing(rate: float = 0.1, among: tuple[str, ...] = ("frontier",), **more: object) -> Snapshot:
    exploration = Exploration(rate=rate, among=among, shadow=True, **more)  # type: ignore[arg-type]
    return world({"start": Explore(exploration, then="usual"), "usual": Use((MID.id,))})


def ended(snapshot: Snapshot, story: Episode) -> Decision:
    """The decision after the usual model has answered."""
    call = called(decide(snapshot, story))
    assert (call.model, call.explored) == (MID.id, False)
    return decide(snapshot, after(story, replied(call.at, call.model)))


# ------------------------------------------------------------------------------------------------ what answers


@pytest.mark.parametrize("shadow", [False, True])
@pytest.mark.parametrize("criticality", ["user", "internal", "critical"])
def test_a_critical_request_is_left_to_no_chance(criticality: str, shadow: bool) -> None:
    plans: dict[str, Plan] = {"start": Explore(Exploration(rate=1.0, among=("frontier",), shadow=shadow), then="fast")}
    snapshot = world(plans)
    story = episode(snapshot, criticality=criticality)
    first = decide(snapshot, story)
    explored = called(first).explored
    last = decide(snapshot, after(story, replied(called(first).at, called(first).model)))
    assert (explored or last.shadow is not None) == (criticality != "critical")
    assert bool(first.odds) == (criticality != "critical" and not shadow)


@pytest.mark.parametrize(("rate", "odds"), [(0.0, ((MID.id, 1.0),)), (0.25, ((BIG.id, 0.25), (MID.id, 0.75)))])
def test_who_has_no_chance_has_no_odds(rate: float, odds: tuple[tuple[str, float], ...]) -> None:
    snapshot = world({"start": Explore(Exploration(rate=rate, among=("frontier",)), then=MID.id)})
    assert decide(snapshot, episode(snapshot)).odds == odds
    certain = world({"start": Explore(Exploration(rate=1.0, among=("frontier",)), then=MID.id)})
    assert decide(certain, episode(certain)).odds == ((BIG.id, 1.0),)


def test_a_miss_that_is_critical_weighs_as_one_that_people_read() -> None:
    snapshot = world()
    prices = {
        name: [each.price_nano for each in decide(snapshot, episode(snapshot, criticality=name)).candidates]
        for name in ("user", "internal", "critical")
    }
    assert prices["critical"] == prices["user"] != prices["internal"]


def test_what_the_ledger_denies_to_an_explored_call_denies_nothing_to_the_usual_plan() -> None:
    """The budget of exploration is above the one and not above the other: neither its limit nor its code may count."""
    plans: dict[str, Plan] = {"start": Explore(Exploration(rate=1.0, among=("frontier",)), then="fast")}
    snapshot = world(plans)
    for denial in (Denial(scope="tag", affordable_nano=0), Denial(scope="tag", code="call_limit", limit=1, used=1)):
        story = episode(snapshot)
        first = called(decide(snapshot, story))
        assert (first.model, first.explored) == (BIG.id, True)
        refused = Denied(at=first.at, model=first.model, after_ms=1, denial=denial, explored=True)
        usual = called(decide(snapshot, after(story, refused)))
        assert (usual.model, usual.explored) == (MID.id, False)
        # The same answer from a budget that is above every call counts.
        own = msgspec.structs.replace(refused, explored=False)
        assert not isinstance(decide(snapshot, after(story, own)).step, Call)


def test_a_refusal_is_never_told_as_exploration_s_budget() -> None:
    plans: dict[str, Plan] = {"start": Explore(Exploration(rate=1.0, among=("frontier",)), then=MID.id)}
    snapshot = world(plans, attempts=1)
    story = episode(snapshot)
    first = called(decide(snapshot, story))
    refused = Denied(at=first.at, model=first.model, after_ms=1, denial=Denial(scope="tag"), explored=True)
    usual = called(decide(snapshot, after(story, refused)))
    last = decide(snapshot, after(story, refused, failed(usual.at, usual.model)))
    assert isinstance(last.step, Refuse) and last.step.code == "upstream_failed"


def test_the_payer_of_an_explored_call_keeps_all_its_own_names() -> None:
    payer = Payer(key="k", user="ada", team="search", tags=(("env", "prod"),))
    assert exploring(payer) == msgspec.structs.replace(payer, tags=(("env", "prod"), EXPLORATION))
    assert exploring(exploring(payer)) == exploring(payer)


# ------------------------------------------------------------------------------------------------ shadows


def test_with_shadow_the_usual_plan_answers_and_the_other_is_asked_as_well() -> None:
    snapshot = shadowing(0.1, ("frontier", "local"))
    shadows = Counter[str | None]()
    for i in range(1_000):
        last = ended(snapshot, episode(snapshot, draw=(i + 0.5) / 1_000))
        assert last.step == Answer("start/usual", 0)
        assert last.odds == ()
        shadows[last.shadow.model if last.shadow else None] += 1
        if last.shadow:
            reason = next(each for each in last.reasons if each.code == "shadow")
            assert dict(reason.facts) == {"model": last.shadow.model, "rate": 0.1, "odds": 0.05}
    assert shadows == {None: 900, BIG.id: 50, TINY.id: 50}


def test_a_model_that_has_answered_or_rests_or_has_no_price_is_no_shadow() -> None:
    snapshot = shadowing(1.0, (MID.id,))
    assert ended(snapshot, episode(snapshot)).shadow is None
    snapshot = shadowing(1.0, (BIG.id, RIVAL.id))
    last = ended(snapshot, episode(snapshot, resting=((BIG.id, 1_000),)))
    assert last.shadow is not None and last.shadow.model == RIVAL.id
    free = msgspec.structs.replace(BIG, price=None)
    plans: dict[str, Plan] = {"s": Explore(Exploration(rate=1.0, among=(BIG.id,), shadow=True), then=MID.id)}
    snapshot = world(plans, free, MID)
    allowed = msgspec.structs.replace(snapshot.catalogue, unpriced="allow")
    snapshot = msgspec.structs.replace(snapshot, catalogue=allowed)
    assert decide(snapshot, after(episode(snapshot), replied(f"s/{MID.id}", MID.id))).shadow is None


def test_a_shadow_is_bounded_by_nothing_of_the_callers_and_its_worst_case_is_true() -> None:
    snapshot = shadowing(1.0)
    story = episode(snapshot, money=Lambda(value=9.0, left_nano=400_000), payer=Payer(user="ada"))
    call = ended(snapshot, story).shadow
    assert call is not None
    assert (call.final, call.about, call.max_tokens, call.explored) == (False, Serve(), BIG.max_output_tokens, True)
    assert call.worst_case_nano == worst_case_nano(BIG, story, BIG.max_output_tokens) > 400_000
    lone = alone(story)
    assert (lone.payer, lone.money, lone.id) == (Payer(tags=(EXPLORATION,)), Lambda(), "e1-shadow")


def test_both_replies_are_graded_by_one_model_that_wrote_neither_in_either_order() -> None:
    snapshot = shadowing(1.0, ("frontier",), grader="fast", rubric="Is it right?")
    orders = Counter[tuple[int, ...]]()
    for i in range(400):
        last = ended(snapshot, episode(snapshot, draw=i / 400 + 1e-7))
        assert {grade.model for grade in last.grades} == {RIVAL.id}  # MID has answered, and BIG is the shadow
        assert all(isinstance(each.about, Grade) and each.about.rubric == "Is it right?" for each in last.grades)
        assert all(each.explored and each.worst_case_nano > 0 for each in last.grades)
        orders[tuple(each.about.of for each in last.grades if isinstance(each.about, Grade))] += 1
    assert set(orders) == {(0, 1), (1, 0)}
    assert min(orders.values()) > 150
    lonely = shadowing(1.0, ("frontier",), grader=MID.id)
    last = ended(lonely, episode(lonely))
    assert last.shadow is not None and last.grades == () and "shadow_ungraded" in said(last)


def test_a_rejected_rung_is_no_end_and_what_is_delivered_is_what_is_graded() -> None:
    low = Explore(Exploration(rate=1.0, among=("local",), shadow=True, grader=RIVAL.id), then=MID.id)
    snapshot = world({"climb": Cascade(("low", "frontier"), Accept(check=("complete",))), "low": low})
    story = episode(snapshot)
    first = called(decide(snapshot, story))
    story = after(story, replied(first.at, first.model, checks=(("complete", False),)))
    second = decide(snapshot, story)
    assert (called(second).model, second.shadow) == (BIG.id, None)
    last = decide(snapshot, after(story, replied(called(second).at, BIG.id)))
    assert last.step == Answer(called(second).at, 1)
    assert last.shadow is not None and last.shadow.model == TINY.id
    assert {each.about.of for each in last.grades if isinstance(each.about, Grade)} == {1, 2}


def test_what_a_shadow_takes_of_the_dice_leaves_the_plans_below_theirs() -> None:
    """Which shadow, and the draw that is handed down, are independent of each other and both uniform."""
    cells = Counter[tuple[int, int]]()
    n = 60_000
    for i in range(n):
        chance, rest = rest_of((i + 0.5) / n, 1.0)
        assert chance is not None
        cells[int(chance * 3), int(rest * 4)] += 1
    assert all(abs(count - n / 12) < n / 12 * 0.05 for count in cells.values()) and len(cells) == 12
    assert rest_of(0.55, 0.1) == (None, pytest.approx(0.5))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), snapshot=worlds())
def test_any_story_ends_with_at_most_one_shadow_that_replays(data: st.DataObject, snapshot: Snapshot) -> None:
    story = data.draw(episodes(snapshot))
    for _ in range(40):
        decision = decide(snapshot, story)
        if not isinstance(decision.step, Call):
            break
        assert decision.shadow is None and decision.grades == ()
        story = after(story, data.draw(events(decision.step, story.elapsed_ms)))
    assert decide(load_snapshot(dump(snapshot)), story) == decision
    assert msgspec.json.decode(msgspec.json.encode(decision), type=Decision) == decision
    assert decision.shadow is None or isinstance(decision.step, Answer)
    if decision.shadow is not None:
        assert story.criticality != "critical" and story.hints.explore and not story.pinned
        assert decision.shadow.model not in {each.model for each in story.events if isinstance(each, Replied)}
        assert decision.shadow.bounded and decision.shadow.worst_case_nano > 0
    for grade in decision.grades:
        assert decision.shadow is not None and isinstance(grade.about, Grade)
        assert grade.model != decision.shadow.model
        assert grade.about.of in (len(story.events), decision.step.event if isinstance(decision.step, Answer) else -1)


# ------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("exploration", "where", "what"),
    [
        (Exploration(rate=0.1, among=("fast",), grader="frontier"), "explore.grader", "no effect without `shadow"),
        (Exploration(rate=0.1, among=("fast",), shadow=True, grader="usual"), "explore.grader", "is a plan"),
        (Exploration(rate=0.1, among=("fast",), shadow=True, grader="gtp"), "explore.grader", "no model or tier"),
    ],
)
def test_a_grader_that_could_not_grade_is_refused(exploration: Exploration, where: str, what: str) -> None:
    snapshot = world({"start": Explore(exploration, then="usual"), "usual": Use((MID.id,))})
    (found,) = check(snapshot.policies["default"], snapshot.catalogue)
    assert found.where == f"plans.start.{where}" and what in found.what


EXPLORES = """
models:
  acme/big: {tier: frontier, price: {input_usd_per_mtok: 3, output_usd_per_mtok: 15}}
  acme/small: {tier: fast, price: {input_usd_per_mtok: 1, output_usd_per_mtok: 4}}
providers: {acme: {wire: openai, base_url: "http://127.0.0.1:9/v1"}}
policy:
  start: begin
  plans: {begin: {explore: {rate: RATE, among: [frontier], shadow: true}, then: fast}}
"""
BOUND = "budgets:\n- {scope: tag, match: {traffic: exploration}, limit_usd: 5, window: day}\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [(EXPLORES, True), (EXPLORES + BOUND, False), (EXPLORES.replace("RATE", "0"), False)],
    ids=["unbounded", "bounded", "never"],
)
async def test_it_is_told_when_nothing_bounds_what_exploration_spends(tmp_path: Path, text: str, told: bool) -> None:
    (tmp_path / "tierwise.yaml").write_text(text.replace("RATE", "0.05"))
    setup = await load(tmp_path / "tierwise.yaml", {})
    notes = [note for note in setup.notes if "exploration" in note]
    assert bool(notes) == told
    assert not told or "match: {traffic: exploration}" in notes[0]
