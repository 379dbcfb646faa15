"""Decisions as tables: this story, that step, those reason codes."""

from __future__ import annotations

from typing import Any

import pytest
from support.worlds import BIG, MID, RIVAL, TINY, after, called, codes, episode, failed, replied, said, world

from tierwise.core.budget import Denial
from tierwise.core.catalogue import Model
from tierwise.core.decide import decide
from tierwise.core.episode import Answer, Call, Denied, Refuse
from tierwise.core.policy import (
    Accept,
    Best,
    Cascade,
    Use,
)
from tierwise.core.weigh import worst_case_nano

# ------------------------------------------------------------------------------------- the five dimensions, each alone

EASY = {"task": "extraction", "complexity": 0.15}
EVERYDAY = {"task": "other", "complexity": 0.3}


@pytest.mark.parametrize(
    ("dimension", "one", "other"),
    [
        ("complexity", {"features": {**EVERYDAY, "complexity": 0.05}}, {"features": {**EVERYDAY, "complexity": 0.7}}),
        (
            "latency sensitivity",
            {"features": {"task": "summarisation", "complexity": 0.45}, "latency": "interactive"},
            {
                "features": {"task": "summarisation", "complexity": 0.45},
                "latency": "interactive",
                "hints": {"max_latency_ms": 900},
            },
        ),
        (
            "budget state",
            {"features": {**EVERYDAY, "complexity": 0.5}, "money": {"value": 1.0}},
            {"features": {**EVERYDAY, "complexity": 0.5}, "money": {"value": 40.0}},
        ),
        (
            "output criticality",
            {"features": {**EVERYDAY, "complexity": 0.5}, "criticality": "user"},
            {"features": {**EVERYDAY, "complexity": 0.5}, "criticality": "internal"},
        ),
    ],
)
def test_each_dimension_alone_changes_the_model(dimension: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    snapshot = world()
    first = called(decide(snapshot, episode(snapshot, **one)))
    second = called(decide(snapshot, episode(snapshot, **other)))
    assert first.model != second.model, dimension


def test_latency_class_alone_changes_the_model() -> None:
    """Two models of one skill: the slow one is cheaper, so it serves whoever does not wait."""
    slow = _model("acme/slow", 0.10, 0.40, first_token_ms=20_000)
    quick = _model("acme/quick", 0.30, 1.20, first_token_ms=200)
    snapshot = world({"choose": Best(("fast",))}, slow, quick)
    chosen = {
        latency: called(decide(snapshot, episode(snapshot, features=EASY, latency=latency))).model
        for latency in ("interactive", "batch")
    }
    assert chosen == {"interactive": "acme/quick", "batch": "acme/slow"}


def test_confidence_of_the_estimator_alone_changes_the_model() -> None:
    """With more caution an unsure estimate weighs more, and the model that is surer to do takes over."""
    from msgspec.structs import replace

    from tierwise.core.policy import BALANCED

    story = {"features": EVERYDAY}
    chosen = set()
    for caution in (0.0, 1.0):
        snapshot = world(amounts=replace(BALANCED, caution=caution))
        chosen.add(called(decide(snapshot, episode(snapshot, **story))).model)
    assert len(chosen) == 2


def test_confidence_of_the_reply_alone_changes_the_next_step() -> None:
    snapshot = world({"climb": Cascade(("fast", "frontier"), Accept(confidence=0.8))})
    story = episode(snapshot)
    first = called(decide(snapshot, story))
    sure = decide(snapshot, after(story, replied(first.at, first.model, confidence=0.9)))
    unsure = decide(snapshot, after(story, replied(first.at, first.model, confidence=0.5)))
    assert isinstance(sure.step, Answer)
    assert called(unsure).model == BIG.id
    assert "confidence_low" in said(unsure)


# ------------------------------------------------------------------------------------------------ use: order, failure


def test_use_goes_on_to_the_next_model_when_one_fails() -> None:
    snapshot = world({"solid": Use(("fast", "frontier"))})
    story = episode(snapshot)
    order = []
    for _ in range(3):
        call = called(decide(snapshot, story))
        order.append(call.model)
        story = after(story, failed(call.at, call.model))
    assert order == [MID.id, RIVAL.id, BIG.id]


def test_attempts_end_at_the_policys_limit() -> None:
    snapshot = world({"solid": Use(("fast", "frontier"))}, attempts=2)
    story = episode(snapshot)
    for _ in range(2):
        call = called(decide(snapshot, story))
        story = after(story, failed(call.at, call.model))
    step = decide(snapshot, story).step
    assert isinstance(step, Refuse)
    assert step.code == "upstream_failed"


def test_a_single_model_is_asked_again_after_its_own_wait() -> None:
    snapshot = world({"solid": Use((BIG.id,))})
    story = episode(snapshot)
    call = called(decide(snapshot, story))
    again = called(decide(snapshot, after(story, failed(call.at, BIG.id, "rate_limited", retry_after_ms=700))))
    assert (again.model, again.wait_ms, again.again) == (BIG.id, 700, True)


def test_nobody_waits_longer_than_the_latency_class_allows() -> None:
    snapshot = world({"solid": Use((BIG.id,))})
    for latency, wait_ms, goes_on in (("interactive", 5_000, False), ("background", 5_000, True)):
        story = episode(snapshot, latency=latency)
        call = called(decide(snapshot, story))
        step = decide(snapshot, after(story, failed(call.at, BIG.id, "rate_limited", retry_after_ms=wait_ms))).step
        assert isinstance(step, Call) is goes_on, latency


def test_two_models_that_reject_the_request_are_believed() -> None:
    snapshot = world({"solid": Use(("fast", "frontier"))})
    story = episode(snapshot)
    for _ in range(2):
        call = called(decide(snapshot, story))
        story = after(story, failed(call.at, call.model, "rejected", status=400))
    step = decide(snapshot, story).step
    assert isinstance(step, Refuse)
    assert step.code == "upstream_rejected"


def test_a_pinned_model_is_never_rerouted() -> None:
    snapshot = world()
    story = episode(snapshot, pinned=TINY.id, features={"task": "reasoning", "complexity": 0.9})
    call = called(decide(snapshot, story))
    assert call.model == TINY.id
    step = decide(snapshot, after(story, failed(call.at, TINY.id, "rejected", status=400))).step
    assert isinstance(step, Refuse)


def test_a_retry_at_a_failing_provider_is_marked_so_that_it_costs_a_retry() -> None:
    twin = _model("acme/twin", 3.0, 15.0, tier="frontier")
    snapshot = world({"solid": Use(("acme/big", "acme/twin", RIVAL.id))}, BIG, twin, RIVAL)
    story = episode(snapshot)
    first = called(decide(snapshot, story))
    assert not first.again
    second = called(decide(snapshot, after(story, failed(first.at, BIG.id))))
    assert (second.model, second.again) == ("acme/twin", True)
    denied = Denied(
        at=second.at, model=second.model, after_ms=1, denial=Denial(scope="retry_budget", code="retry_budget")
    )
    third = called(decide(snapshot, after(story, failed(first.at, BIG.id), denied)))
    assert (third.model, third.again) == (RIVAL.id, False)


def test_a_dearer_fallback_needs_the_policys_consent() -> None:
    for dearer, model in ((True, BIG.id), (False, "")):
        snapshot = world({"solid": Use((MID.id, BIG.id))}, dearer=dearer)
        story = episode(snapshot)
        call = called(decide(snapshot, story))
        step = decide(snapshot, after(story, failed(call.at, MID.id, "auth"))).step
        assert (step.model if isinstance(step, Call) else "") == model


# ------------------------------------------------------------------------------------------------ what cannot serve


@pytest.mark.parametrize(
    ("changes", "model", "code"),
    [
        ({"features": {"images": 1}}, TINY, "no_images"),
        ({"features": {"tools": 2}}, TINY, "no_tools"),
        ({"features": {"structured": "schema"}}, TINY, "no_schema"),
        ({"features": {"audio": 1}}, BIG, "no_audio"),
        ({"features": {"input_tokens": 9_000, "input_bound_tokens": 30_000}}, TINY, "context_too_small"),
        ({"features": {"max_tokens": 4_000}}, TINY, "output_too_small"),
        ({"hints": {"locality": "local"}}, BIG, "not_local"),
        ({"hints": {"deny": ("acme",)}}, MID, "denied_by_caller"),
        ({"hints": {"allow": ("frontier",)}}, MID, "not_allowed_by_caller"),
        ({"grants": ("fast",)}, BIG, "not_granted"),
        ({"resting": ((BIG.id, 5_000),)}, BIG, "resting"),
    ],
)
def test_what_cannot_serve_is_dropped_with_its_reason(changes: dict[str, Any], model: Model, code: str) -> None:
    snapshot = world()
    decision = decide(snapshot, episode(snapshot, **changes))
    assert codes(decision)[model.id] == code
    assert not isinstance(decision.step, Call) or decision.step.model != model.id


def test_an_unpriced_model_is_refused_or_weighs_as_the_dearest() -> None:
    free = _model("home/unknown", 0, 0, price=None)
    for unpriced, code in (("refuse", "unpriced"), ("allow", "higher_price")):
        snapshot = world(None, BIG, MID, free)
        from msgspec.structs import replace

        snapshot = replace(snapshot, catalogue=replace(snapshot.catalogue, unpriced=unpriced))
        decision = decide(snapshot, episode(snapshot, features=EASY))
        assert codes(decision)[free.id] == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"hints": {"allow": ("nothing",)}}, "no_eligible_model"),
        ({"features": {"audio": 1}}, "no_eligible_model"),
        ({"grants": ("nothing",)}, "not_granted"),
        ({"resting": tuple((each.id, 3_000) for each in (BIG, MID, RIVAL, TINY))}, "all_resting"),
        ({"hints": {"max_cost_nano": 1}}, "budget_exceeded"),
    ],
)
def test_refusals_name_their_cause(changes: dict[str, Any], code: str) -> None:
    snapshot = world()
    step = decide(snapshot, episode(snapshot, **changes)).step
    assert isinstance(step, Refuse)
    assert step.code == code


def test_a_wish_that_nobody_can_meet_is_met_as_nearly_as_can_be() -> None:
    snapshot = world()
    hard = {"task": "reasoning", "complexity": 0.6}
    best = decide(snapshot, episode(snapshot, features=hard, hints={"min_quality": 1.0}))
    assert called(best).model == BIG.id
    assert "min_quality_unreachable" in said(best)
    fastest = decide(snapshot, episode(snapshot, hints={"max_latency_ms": 1}))
    assert called(fastest).model == TINY.id
    assert "max_latency_ms_unreachable" in said(fastest)


# ------------------------------------------------------------------------------------------------ money


def test_a_denial_gives_way_to_what_can_be_paid() -> None:
    """The dear model's worst case does not fit and the caller's ceiling is kept, so the next one is called."""
    snapshot = world({"solid": Use((BIG.id, MID.id))})
    story = episode(snapshot, features={"max_tokens": 1_000})
    call = called(decide(snapshot, story))
    affordable = worst_case_nano(MID, story, 1_000)
    second = called(decide(snapshot, after(story, _denied(call, affordable))))
    assert (second.model, second.max_tokens) == (MID.id, None)


def test_without_a_ceiling_ours_is_what_is_affordable() -> None:
    snapshot = world({"solid": Use((BIG.id, MID.id))})
    story = episode(snapshot, features={"task": "greeting", "complexity": 0.05})
    call = called(decide(snapshot, story))
    affordable = worst_case_nano(BIG, story, 5_000) + 1
    second = called(decide(snapshot, after(story, _denied(call, affordable))))
    assert (second.model, second.max_tokens) == (BIG.id, 5_000)
    assert second.worst_case_nano <= affordable


def test_a_callers_ceiling_is_lowered_only_where_the_policy_says_so_and_never_raised() -> None:
    for clamp in (False, True):
        snapshot = world({"solid": Use((BIG.id,))}, clamp=clamp)
        story = episode(snapshot, features={"max_tokens": 4_000, "task": "greeting", "complexity": 0.05})
        call = called(decide(snapshot, story))
        assert call.max_tokens is None
        step = decide(snapshot, after(story, _denied(call, worst_case_nano(BIG, story, 1_500)))).step
        if clamp:
            assert isinstance(step, Call)
            assert step.max_tokens == 1_500
        else:
            assert isinstance(step, Refuse)
            assert step.code == "budget_exceeded"


def test_max_cost_is_a_ceiling_on_the_worst_case() -> None:
    snapshot = world({"solid": Use((BIG.id,))})
    story = episode(snapshot, features={"task": "greeting"}, hints={"max_cost_nano": 20_000_000})
    call = called(decide(snapshot, story))
    assert call.max_tokens is not None
    assert call.worst_case_nano <= 20_000_000


def _denied(call: Call, affordable_nano: int) -> Denied:
    denial = Denial(scope="team", limit_nano=10**9, spent_nano=10**9 - affordable_nano, affordable_nano=affordable_nano)
    return Denied(at=call.at, model=call.model, after_ms=1, denial=denial)


def _model(id: str, input_usd: float, output_usd: float, tier: str = "fast", **more: Any) -> Model:
    from support.worlds import model

    return model(id, tier, input_usd, output_usd, 0.6, **more)
