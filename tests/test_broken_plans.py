"""Policies that are legal and odd: they may cost money, never the request, and no model is two voices."""

from __future__ import annotations

import pytest
from support.worlds import BIG, MID, TINY, after, called, episode, replied, said, world

from tierwise.core.decide import decide
from tierwise.core.episode import Ask, Serve, Told
from tierwise.core.policy import Accept, AskFirst, Cascade, Plan, Question, Use


@pytest.mark.parametrize("calls", [1, 2, 5, 12])
def test_helpers_never_use_up_the_call_that_serves(calls: int) -> None:
    plans: dict[str, Plan] = {
        f"ask{i}": AskFirst(Question(of="local", topic=f"t{i}", question="Hard?", answers=("yes", "no")), f"ask{i + 1}")
        for i in range(30)
    }
    snapshot = world({**plans, "ask30": Use(("fast",))}, calls=calls)
    story = episode(snapshot)
    for _ in range(calls - 1):
        call = called(decide(snapshot, story))
        assert isinstance(call.about, Ask) and call.model == TINY.id
        story = after(story, Told(at=call.at, model=TINY.id, after_ms=9, topic=call.about.topic, answer="no"))
    decision = decide(snapshot, story)
    call = called(decision)
    assert (call.about, call.model, call.final) == (Serve(), MID.id, True)
    assert "calls_exhausted" in said(decision)


def test_a_model_that_says_the_same_on_two_rungs_agrees_with_nobody() -> None:
    snapshot = world({"climb": Cascade((MID.id, MID.id, "frontier"), Accept(agreement=2))})
    story = episode(snapshot)
    for _ in range(2):
        call = called(decide(snapshot, story))
        assert call.model == MID.id
        story = after(story, replied(call.at, call.model, answer_key="42"))
    assert called(decide(snapshot, story)).model == BIG.id
