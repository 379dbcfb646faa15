"""Decisions under a promise: who may answer where it is certified, and the reference everywhere else."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from support.learned import trained
from support.worlds import BIG, MID, RIVAL, TINY, after, called, catalogue, codes, episode, failed, replied, said

from tierwise.core.check_policy import check
from tierwise.core.decide import decide
from tierwise.core.episode import Answer, Episode, Serve
from tierwise.core.estimate import BuiltIn, Estimator
from tierwise.core.policy import Accept, Best, Cascade, Keep, Plan, Policy, Screen
from tierwise.core.promise import Promise, Segment, problems, ruling
from tierwise.core.snapshot import Snapshot, build, dump, load

# Expected losses against BIG: MID .03 on the plainest request and more than .5 on the hardest, RIVAL .06, TINY .25.
SCORES = {BIG.id: (3.5, 0.0), MID.id: (2.6, 4.0), RIVAL.id: (2.2, 4.0), TINY.id: (0.9, 4.0)}
ESTIMATOR = trained(SCORES)
EASY, HARD = {"complexity": 0.0}, {"complexity": 1.0}


def segment(workload: str = "", status: Any = "certified", **more: Any) -> Segment:
    return Segment(**{"workload": workload, "status": status, "models": (MID.id,), "threshold": 0.1, "n": 900, **more})


def promise(*segments: Segment, kind: Any = "choice", **more: Any) -> Promise:
    given: dict[str, Any] = {"alpha": 0.02, "delta": 0.1, "reference": BIG.id, "estimator": ESTIMATOR.id, **more}
    return Promise(name="p", kind=kind, made_s=1, data_hash="d", segments=segments, **given)


def choosing(*promises: Promise, estimator: Estimator = ESTIMATOR, **changes: Any) -> Snapshot:
    return snapshot({"choose": Best(("local", "fast"), promise="p")}, *promises, estimator=estimator, **changes)


def agreeing(*promises: Promise, names: tuple[str, ...] = ("cheap", "frontier"), **accept: Any) -> Snapshot:
    plans: dict[str, Plan] = {
        "climb": Cascade(names, Accept(**{"agreement": 2, **accept})),
        "cheap": Best(("local", "fast"), promise="p"),
    }
    return snapshot(plans, *promises)


def snapshot(plans: dict[str, Plan], *promises: Promise, estimator: Estimator = ESTIMATOR, **changes: Any) -> Snapshot:
    policy = Policy(name="default", start=next(iter(plans)), plans=plans)
    return build(catalogue(**changes), {"default": policy}, estimator, promises)


PAIR = promise(segment(models=(MID.id, TINY.id)), kind="agreement")


# ------------------------------------------------------------------------------------------------ a choice


@pytest.mark.parametrize(
    ("promises", "changes", "model", "code"),
    [
        ((promise(segment()),), {"features": EASY}, MID.id, "promise_holds"),
        ((promise(segment()),), {"features": HARD}, BIG.id, "promise_holds"),
        ((promise(segment(models=(TINY.id, MID.id))),), {"features": EASY}, MID.id, "promise_holds"),
        ((promise(segment(models=(TINY.id, MID.id), threshold=0.5)),), {"features": EASY}, TINY.id, "promise_holds"),
        ((promise(segment(models=(RIVAL.id, MID.id))),), {"features": EASY}, RIVAL.id, "promise_holds"),
        ((promise(segment(status="uncertified")),), {"features": EASY}, BIG.id, "promise_not_certified"),
        ((promise(segment(status="withdrawn", since_s=7)),), {"features": EASY}, BIG.id, "promise_withdrawn"),
        ((promise(segment(), estimator="b" * 16),), {"features": EASY}, BIG.id, "promise_of_another"),
        ((), {"features": EASY}, BIG.id, "promise_not_certified"),
        # A workload of its own, and one that nobody knows.
        ((promise(segment("tickets")),), {"features": EASY, "workload": "tickets"}, MID.id, "promise_holds"),
        ((promise(segment("tickets")),), {"features": EASY, "workload": "mails"}, BIG.id, "promise_not_certified"),
        ((promise(segment("tickets")),), {"features": EASY}, BIG.id, "promise_not_certified"),
        (
            (promise(segment("tickets", status="withdrawn", since_s=7), segment()),),
            {"features": EASY, "workload": "tickets"},
            BIG.id,
            "promise_withdrawn",
        ),
        ((promise(segment("tickets"), segment()),), {"features": EASY, "workload": "mails"}, MID.id, "promise_holds"),
        # What several say alike was never tested for one alone.
        ((PAIR,), {"features": EASY}, BIG.id, "promise_not_certified"),
        # Certified models that the caller does not allow, or that rest, are no reason to take others.
        ((promise(segment()),), {"features": EASY, "hints": {"deny": (MID.id,)}}, BIG.id, "promise_holds"),
        ((promise(segment()),), {"features": EASY, "resting": ((MID.id, 500),)}, BIG.id, "promise_holds"),
    ],
)
def test_a_choice(promises: tuple[Promise, ...], changes: dict[str, Any], model: str, code: str) -> None:
    made = choosing(*promises)
    decision = decide(made, episode(made, **changes))
    assert (called(decision).model, called(decision).final) == (model, True)
    assert code in said(decision)


def test_a_model_that_training_expects_to_lose_more_says_so() -> None:
    made = choosing(promise(segment(models=(MID.id, TINY.id))))
    decision = decide(made, episode(made, features=EASY))
    assert codes(decision)[TINY.id] == "beyond_promise"


def test_a_certified_model_that_fails_leaves_the_request_to_the_reference() -> None:
    made = choosing(promise(segment()))
    story = episode(made, features=EASY)
    first = called(decide(made, story))
    story = after(story, *[failed(first.at, MID.id, "rejected")])
    assert called(decide(made, story)).model == BIG.id


@pytest.mark.parametrize("changes", [{"resting": ((RIVAL.id, 500),)}, {"hints": {"deny": (RIVAL.id,)}}])
def test_without_the_reference_the_reliable_model_answers(changes: dict[str, Any]) -> None:
    """The reference rests or is barred: nobody less certain than the reliable model takes its place."""
    made = choosing(promise(segment(models=(TINY.id,), threshold=0.01), reference=RIVAL.id))
    assert called(decide(made, episode(made, features=HARD))).model == RIVAL.id
    assert called(decide(made, episode(made, features=HARD, **changes))).model == BIG.id


def test_a_promise_about_the_built_in_estimator_is_none() -> None:
    made = choosing(promise(segment()), estimator=BuiltIn())
    decision = decide(made, episode(made, features=EASY))
    assert called(decision).model == BIG.id and "promise_of_another" in said(decision)


def test_neither_money_nor_time_chooses_within_a_promise() -> None:
    made = choosing(promise(segment(models=(RIVAL.id, MID.id))))
    for changes in ({"money": {"value": 50.0}}, {"latency": "batch"}, {"criticality": "internal"}):
        assert called(decide(made, episode(made, features=EASY, **changes))).model == RIVAL.id


# ------------------------------------------------------------------------------------------------ an agreement


def told(made: Snapshot, story: Episode, *answers: str) -> Episode:
    """The story after these replies, one after the other."""
    for answer in answers:
        call = called(decide(made, story))
        story = after(story, replied(call.at, call.model, answer_key=answer))
    return story


def test_two_that_agree_deliver_the_first_ones_reply_and_two_that_do_not_ask_the_reference() -> None:
    made = agreeing(PAIR)
    story = episode(made, features=EASY)
    asked = [called(decide(made, told(made, story, *said))) for said in ((), ("42",))]
    # TINY is expected to lose more than the threshold; of an agreement the first one's expected loss counts.
    assert [call.model for call in asked] == [MID.id, TINY.id]
    assert not any(call.final for call in asked)
    assert decide(made, told(made, story, "42", "42")).step == Answer(asked[0].at, 0)
    third = called(decide(made, told(made, story, "42", "41")))
    assert (third.model, third.final) == (BIG.id, True)
    assert third.about == Serve()  # it was certified without having seen their drafts


@pytest.mark.parametrize(
    ("promises", "accept", "features"),
    [
        ((PAIR,), {"agreement": 3}, EASY),  # of three there was no talk
        ((promise(segment(models=(MID.id, TINY.id, RIVAL.id)), kind="agreement"),), {}, EASY),  # nor of only two
        ((promise(segment(models=(MID.id, TINY.id)), kind="choice"),), {}, EASY),
        ((msgspec.structs.replace(PAIR, estimator="b" * 16),), {}, EASY),
        ((promise(segment(status="withdrawn", models=(MID.id, TINY.id)), kind="agreement"),), {}, EASY),
        ((), {}, EASY),
        ((PAIR,), {}, HARD),
    ],
)
def test_a_rung_whose_promise_does_not_hold_is_left_out(
    promises: tuple[Promise, ...], accept: dict[str, Any], features: dict[str, Any]
) -> None:
    made = agreeing(*promises, **accept)
    call = called(decide(made, episode(made, features=features)))
    assert (call.model, call.final) == (BIG.id, True)


def test_further_models_are_asked_only_where_that_was_certified() -> None:
    """Two of three have to agree: the third is asked where training expects little enough, until two agree."""
    trio = segment(models=(MID.id, TINY.id, RIVAL.id), agreement=2, further=0.05)
    made = agreeing(promise(trio, kind="agreement"))
    story = episode(made, features=EASY)
    assert called(decide(made, told(made, story, "42", "41"))).model == RIVAL.id
    assert isinstance(decide(made, told(made, story, "42", "42")).step, Answer)
    for last, event in (("42", 0), ("41", 1)):
        step = decide(made, told(made, story, "42", "41", last)).step
        assert isinstance(step, Answer) and step.event == event
    assert called(decide(made, told(made, story, "42", "41", "40"))).model == BIG.id
    for further in (0.0, -1.0):  # MID is expected to lose .03
        less = agreeing(promise(msgspec.structs.replace(trio, further=further), kind="agreement"))
        assert called(decide(less, told(less, story, "42", "41"))).model == BIG.id


def test_one_that_rests_leaves_the_request_to_the_reference() -> None:
    made = agreeing(PAIR)
    story = episode(made, features=EASY, resting=((TINY.id, 500),))
    assert called(decide(made, told(made, story, "42"))).model == BIG.id


@pytest.mark.parametrize(("similarity", "model"), [(0.6, None), (1.0, BIG.id)])
def test_replies_have_to_be_as_alike_as_those_that_were_certified(similarity: float, model: str | None) -> None:
    """Two texts without a single answer, three quarters of their sketches equal."""
    made = agreeing(msgspec.structs.replace(PAIR, similarity=similarity))
    story = episode(made, features=EASY)
    for sketch in ((1, 2, 3, 4), (1, 2, 3, 5)):
        call = called(decide(made, story))
        story = after(story, replied(call.at, call.model, sketch=sketch))
    step = decide(made, story).step
    assert isinstance(step, Answer) if model is None else called(decide(made, story)).model == model


def test_a_voice_from_another_rung_does_not_count() -> None:
    """RIVAL's reply, below, is like MID's; certified is what MID and TINY say alike."""
    made = agreeing(PAIR, names=(RIVAL.id, "cheap", "frontier"))
    story = episode(made, features=EASY)
    first = called(decide(made, story))
    story = after(story, replied(first.at, RIVAL.id, answer_key="42"))
    second = called(decide(made, story))
    assert (second.model, second.about) == (MID.id, Serve())
    story = after(story, replied(second.at, MID.id, answer_key="42"))
    third = called(decide(made, story))
    assert third.model == TINY.id
    assert called(decide(made, after(story, replied(third.at, TINY.id, answer_key="7")))).model == BIG.id


def test_a_reply_that_was_not_accepted_is_better_than_none() -> None:
    made = agreeing(PAIR)
    story = told(made, episode(made, features=EASY), "42", "41")
    last = called(decide(made, story))
    found = decide(made, after(story, *[failed(last.at, BIG.id, "rejected")] * 3))
    assert isinstance(found.step, Answer) and "kept_lower_reply" in said(found)


# ------------------------------------------------------------------------------------------------ as data


def test_a_promise_is_part_of_the_snapshot_and_of_its_hash() -> None:
    plain, kept = choosing(), choosing(promise(segment("tickets"), segment(status="uncertified", missing=300)))
    assert plain.hash != kept.hash
    assert load(dump(kept)) == kept


def test_rulings() -> None:
    both = promise(segment("tickets"), segment(threshold=0.3))
    assert ruling(both, "tickets", ESTIMATOR.id, agreeing=0).threshold == 0.1
    assert ruling(both, "mails", ESTIMATOR.id, agreeing=0).threshold == 0.3
    assert ruling(both, "tickets", ESTIMATOR.id, agreeing=2).models == ()
    assert ruling(PAIR, "", ESTIMATOR.id, agreeing=2).judged == MID.id


# ------------------------------------------------------------------------------------------------ as certified


def test_another_certified_model_does_not_stand_in_where_it_was_not_tested() -> None:
    """MID was tested where TINY is expected to lose too much; that TINY rests or fails does not widen that."""
    made = choosing(promise(segment(models=(TINY.id, MID.id), threshold=0.5)))
    story = episode(made, features=EASY)
    first = called(decide(made, story))
    assert first.model == TINY.id
    assert called(decide(made, after(story, failed(first.at, TINY.id, "rejected")))).model == BIG.id
    resting = decide(made, episode(made, features=EASY, resting=((TINY.id, 500),)))
    assert called(resting).model == BIG.id and codes(resting)[MID.id] == "promise_names_another"


def test_an_agreement_is_of_the_models_that_were_tested_in_their_order() -> None:
    trio = promise(segment(models=(MID.id, TINY.id, RIVAL.id), agreement=2, further=0.05), kind="agreement")
    made = agreeing(trio)
    for away in (MID.id, TINY.id):
        story = episode(made, features=EASY, resting=((away, 500),))
        asked = [called(decide(made, story))]
        while asked[-1].model != BIG.id:
            story = after(story, replied(asked[-1].at, asked[-1].model, answer_key="42"))
            asked.append(called(decide(made, story)))
        assert RIVAL.id not in [each.model for each in asked], away


def test_a_promise_on_some_workloads_says_nothing_of_another() -> None:
    made = choosing(promise(segment("tickets"), segment(workloads=("", "mails", "notes"))))
    for workload, model in (("mails", MID.id), ("", MID.id), ("tickets", MID.id), ("new", BIG.id), ("z", BIG.id)):
        decision = decide(made, episode(made, features=EASY, workload=workload))
        assert called(decision).model == model, workload
    assert load(dump(made)) == made


@pytest.mark.parametrize(
    ("changes", "more", "told"),
    [
        ({"threshold": 9.0}, {}, "outside -1 to 1"),
        ({"bound": math.nan}, {}, "outside -1 to 1"),
        ({"models": ()}, {}, "1 or more different models"),
        ({"models": (BIG.id,)}, {}, "beside the reference"),
        ({}, {"kind": "agreement"}, "2 or more"),
        ({"models": (MID.id, TINY.id), "agreement": 3}, {"kind": "agreement"}, "3 of 2 replies"),
        ({"agreement": 2}, {}, "2 of 1 replies"),
        ({"bound": 0.5}, {}, "figures do not say so"),
        ({"n": 0}, {}, "figures do not say so"),
        ({"workloads": ("b", "a")}, {}, "not ascending"),
        ({}, {"alpha": 2.0}, "between 0 and 1"),
        ({}, {"reference": "a\x1b[31m"}, "can be printed"),
        ({}, {"similarity": 9.0}, "similarity"),
    ],
)
def test_what_no_calibration_can_have_made_says_why(changes: dict[str, Any], more: dict[str, Any], told: str) -> None:
    assert problems(promise(segment())) == [] == problems(PAIR)
    assert told in " ".join(problems(promise(segment(**changes), **more)))


def test_a_promise_behind_another_plan_of_a_rung_is_refused() -> None:
    """The rung itself was certified, and not what a screen or a rule makes of it."""
    plans: dict[str, Plan] = {
        "climb": Cascade(("screened", "frontier"), Accept(agreement=2)),
        "screened": Keep(keep=Screen(), then="thrifty"),
        "thrifty": Best(("local", "fast"), promise="q"),
    }
    policy = Policy(name="default", start="climb", plans=plans)
    (problem,) = check(policy, catalogue())
    assert problem.where == "plans.climb.cascade[0]"
    assert "'thrifty' itself as the rung" in problem.what
    plain = msgspec.structs.replace(
        policy, plans={**plans, "climb": Cascade(("thrifty", "frontier"), Accept(agreement=2))}
    )
    del plain.plans["screened"]
    assert check(plain, catalogue()) == ()
