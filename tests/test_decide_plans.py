"""Decisions of the plans that refer to others: rules, helpers, exploration, cascades, screens, floors."""

from __future__ import annotations

import pytest
from support.worlds import BIG, MID, RIVAL, TINY, after, called, codes, episode, failed, replied, said, world

from tierwise.core.decide import decide
from tierwise.core.episode import Answer, Ask, Call, Grade, Refuse, Serve, Told
from tierwise.core.policy import (
    Accept,
    AskFirst,
    Best,
    Cascade,
    Exploration,
    Explore,
    Keep,
    Plan,
    Question,
    Rule,
    Rules,
    Screen,
    Use,
    When,
)

EASY = {"task": "extraction", "complexity": 0.15}
EVERYDAY = {"task": "other", "complexity": 0.3}


# ------------------------------------------------------------------------------------------------ rules, ask, explore


def test_the_first_rule_that_holds_wins() -> None:
    plans: dict[str, Plan] = {
        "start": Rules(
            (
                Rule(when=When(keywords=("urgent",)), then="frontier"),
                Rule(when=When(task=("code", "reasoning")), then="frontier"),
                Rule(when=When(max_input_tokens=500, team="search"), then="local"),
            ),
            otherwise="fast",
        )
    }
    snapshot = world(plans)
    from tierwise.core.request import Payer

    for changes, model in (
        ({"features": {"keywords": ("urgent",)}}, BIG.id),
        ({"features": {"task": "code"}}, BIG.id),
        ({"features": {"task": "other"}, "hints": {"task": "code"}}, BIG.id),
        ({"payer": Payer(team="search")}, TINY.id),
        ({"payer": Payer(team="sales")}, MID.id),
    ):
        assert called(decide(snapshot, episode(snapshot, **changes))).model == model, changes


def test_a_helper_is_asked_first_and_its_answer_steers() -> None:
    question = Question(of="local", topic="hard", question="Is it hard?", answers=("yes", "no"))
    plans: dict[str, Plan] = {
        "start": AskFirst(question, then="sort"),
        "sort": Rules((Rule(when=When(told={"hard": "yes"}), then="frontier"),), otherwise="fast"),
    }
    snapshot = world(plans)
    story = episode(snapshot)
    ask = called(decide(snapshot, story))
    assert (ask.model, ask.final, isinstance(ask.about, Ask)) == (TINY.id, False, True)
    for answer, model in (("yes", BIG.id), ("no", MID.id), ("", MID.id)):
        told = Told(at=ask.at, model=TINY.id, after_ms=100, topic="hard", answer=answer)
        assert called(decide(snapshot, after(story, told))).model == model
    # A helper that fails costs its answer, never the request.
    lost = decide(snapshot, after(story, failed(ask.at, TINY.id)))
    assert called(lost).model == MID.id
    assert "helper_failed" in said(lost)


def test_exploration_takes_its_share_of_the_draw_and_tells_the_odds() -> None:
    plans: dict[str, Plan] = {"start": Explore(Exploration(rate=0.1, among=("frontier", "local")), then="fast")}
    snapshot = world(plans)
    for draw, model in (
        (0.0, BIG.id),
        (0.049, BIG.id),
        (0.05, TINY.id),
        (0.099, TINY.id),
        (0.1, MID.id),
        (0.99, MID.id),
    ):
        decision = decide(snapshot, episode(snapshot, draw=draw))
        assert called(decision).model == model, draw
        assert dict(decision.odds) == pytest.approx({BIG.id: 0.05, TINY.id: 0.05, MID.id: 0.9})
    for changes in ({"hints": {"explore": False}}, {"pinned": MID.id}):
        assert called(decide(snapshot, episode(snapshot, draw=0.01, **changes))).model == MID.id


# ------------------------------------------------------------------------------------------------ cascades


def test_agreement_asks_two_models_and_climbs_when_they_differ() -> None:
    snapshot = world({"climb": Cascade(("fast", "frontier"), Accept(agreement=2))})
    story = episode(snapshot)
    first = called(decide(snapshot, story))
    story = after(story, replied(first.at, first.model, answer_key="42"))
    second = called(decide(snapshot, story))
    assert {first.model, second.model} == {MID.id, RIVAL.id}
    agreed = decide(snapshot, after(story, replied(second.at, second.model, answer_key="42")))
    assert agreed.step == Answer(first.at, 0)
    differ = decide(snapshot, after(story, replied(second.at, second.model, answer_key="41")))
    third = called(differ)
    assert (third.model, third.final, third.about) == (BIG.id, True, Serve(drafts=(0, 1)))
    assert "not_agreed" in said(differ)


def test_a_check_that_fails_climbs_and_one_that_was_not_asked_for_does_not() -> None:
    snapshot = world({"climb": Cascade(("fast", "frontier"), Accept(check=("schema",)))})
    asked = episode(snapshot, features={"structured": "schema"})
    first = called(decide(snapshot, asked))
    assert (
        called(decide(snapshot, after(asked, replied(first.at, first.model, checks=(("schema", False),))))).model
        == BIG.id
    )
    good = decide(snapshot, after(asked, replied(first.at, first.model, checks=(("schema", True),))))
    assert isinstance(good.step, Answer)
    free = episode(snapshot)
    assert isinstance(decide(snapshot, after(free, replied(first.at, first.model))).step, Answer)


@pytest.mark.parametrize(("score", "model"), [(0.9, ""), (0.5, BIG.id), (None, BIG.id)])
def test_a_grader_accepts_or_climbs_and_one_that_is_not_understood_climbs(score: float | None, model: str) -> None:
    snapshot = world({"climb": Cascade(("fast", "frontier"), Accept(grader="local", at_least=0.7))})
    story = episode(snapshot)
    first = called(decide(snapshot, story))
    story = after(story, replied(first.at, first.model))
    grade = called(decide(snapshot, story))
    assert isinstance(grade.about, Grade)
    assert (grade.model, grade.about.of) == (TINY.id, 0)
    step = decide(
        snapshot, after(story, Told(at=grade.at, model=TINY.id, after_ms=900, topic="grade", score=score, of=0))
    ).step
    assert (step.model if isinstance(step, Call) else "") == model


def test_when_nobody_above_answers_the_lower_reply_is_delivered() -> None:
    snapshot = world({"climb": Cascade((MID.id, BIG.id), Accept(confidence=0.9))}, attempts=1)
    story = episode(snapshot)
    first = called(decide(snapshot, story))
    story = after(story, replied(first.at, MID.id, confidence=0.2))
    second = called(decide(snapshot, story))
    decision = decide(snapshot, after(story, failed(second.at, BIG.id)))
    assert decision.step == Answer(first.at, 0)
    assert "kept_lower_reply" in said(decision)


def test_a_deadline_that_a_rung_would_break_skips_the_rung_and_says_so() -> None:
    snapshot = world({"climb": Cascade(("fast", "frontier"), Accept(confidence=0.9))})
    story = episode(snapshot, features=EVERYDAY)
    assert called(decide(snapshot, story)).model == MID.id
    hurried = decide(snapshot, episode(snapshot, features=EVERYDAY, hints={"max_latency_ms": 4_000}))
    assert called(hurried).model == BIG.id
    assert "rung_skipped" in said(hurried)


def test_only_the_last_rungs_call_may_stream() -> None:
    snapshot = world({"climb": Cascade(("fast", "frontier"), Accept(confidence=0.9))})
    story = episode(snapshot)
    first = called(decide(snapshot, story))
    last = called(decide(snapshot, after(story, replied(first.at, first.model, confidence=0.1))))
    assert (first.final, last.final) == (False, True)


def test_a_promise_that_nobody_certified_saves_nothing() -> None:
    snapshot = world({"choose": Best(("local", "fast"), promise="quality-1")})
    decision = decide(snapshot, episode(snapshot, features=EASY))
    assert called(decision).model == BIG.id
    assert "promise_not_certified" in said(decision)


def test_a_floor_drops_what_is_below_and_takes_the_nearest_when_all_are() -> None:
    hard = {"task": "reasoning", "complexity": 0.5}
    snapshot = world({"choose": Best(("local", "fast", "frontier"), floor=0.7)})
    assert codes(decide(snapshot, episode(snapshot, features=hard)))[TINY.id] == "below_floor"
    snapshot = world({"choose": Best(("local", "fast"), floor=1.0)})
    decision = decide(snapshot, episode(snapshot, features=hard))
    assert called(decision).model == MID.id
    assert "floor_unreachable" in said(decision)


def test_keep_screens_for_the_plans_behind_it() -> None:
    snapshot = world({"screen": Keep(Screen(local=True), then="frontier")})
    assert isinstance(decide(snapshot, episode(snapshot)).step, Refuse)
    snapshot = world({"screen": Keep(Screen(deny=("acme",)), then="pick"), "pick": Use(("fast",))})
    assert called(decide(snapshot, episode(snapshot))).model == RIVAL.id
