"""Explanations: every candidate, and flips that are true of the code that serves."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from support.worlds import BIG, MID, MODELS, TINY, after, called, episode, replied, world

from tierwise.core.changes import satisfied
from tierwise.core.conditions import holds
from tierwise.core.decide import decide
from tierwise.core.explain import Explanation, explain, explain_story
from tierwise.core.policy import Accept, Cascade, Exploration, Explore, Plan, Rule, Rules, When

EASY = {"task": "extraction", "complexity": 0.15}


def explained(plans: dict[str, Plan] | None = None, **story: Any) -> Explanation:
    snapshot = world(plans)
    told = episode(snapshot, **story)
    return explain(snapshot, told, decide(snapshot, told))


def flip(found: Explanation, what: str) -> Any:
    return next((each for each in found.flips if each.what == what), None)


def test_every_candidate_is_told_with_its_figures_and_its_reason() -> None:
    found = explained(features={**EASY, "images": 1})
    assert {each["model"] for each in found.candidates} == {model.id for model in MODELS}
    for each in found.candidates:
        assert each["why"] and each["quality"] and each["expected_cost_usd"] and each["worst_case_usd"]
    assert next(each for each in found.candidates if each["model"] == TINY.id)["code"] == "no_images"
    assert "expected" in found.sentence and found.money["baseline_model"] == BIG.id


@pytest.mark.parametrize("what", ["complexity", "cost of an inadequate answer (USD)", "price of money (λ)"])
def test_a_flip_of_an_amount_is_the_edge_of_the_decision(what: str) -> None:
    """At the told value the told model is chosen, and a little before it is not."""
    snapshot = world()
    story = episode(snapshot, features={"task": "other", "complexity": 0.45})
    found = explain(snapshot, story, decide(snapshot, story))
    told = flip(found, what)
    assert told is not None
    for factor, model in ((1.001, told.model), (0.98, found.model)):
        value = story_value(what, told.was, told.would_be, factor)
        changed, world_of = moved(snapshot, story, what, value)
        assert called(decide(world_of, changed)).model == model, (what, factor)


def story_value(what: str, was: float, would_be: float, factor: float) -> float:
    """A little beyond the edge, or a little before it, on the way from `was`."""
    return was * (would_be / was) ** factor


def moved(snapshot: Any, story: Any, what: str, value: float) -> tuple[Any, Any]:
    if what == "complexity":
        return replace(story, features=replace(story.features, complexity=value)), snapshot
    if what.startswith("price of money"):
        return replace(story, money=replace(story.money, value=value)), snapshot
    policy = snapshot.policies["default"]
    amounts = replace(policy.amounts, miss_user_nano=round(value * 1e9))
    return story, replace(snapshot, policies=snapshot.policies | {"default": replace(policy, amounts=amounts)})


RULES: dict[str, Plan] = {
    "sort": Rules(
        (
            Rule(when=When(keywords=("urgent",)), then="frontier"),
            Rule(when=When(task="code", min_input_tokens=500), then="frontier"),
            Rule(when=When(team="search"), then="local"),
        ),
        otherwise="fast",
    )
}


def test_a_rule_that_does_not_hold_is_a_flip_that_says_what_it_wants() -> None:
    found = explained(RULES)
    assert found.model == MID.id
    assert flip(found, "rule 1 of sort").model == BIG.id
    assert "task code" in flip(found, "rule 2 of sort").would_be
    assert flip(found, "rule 3 of sort").model == TINY.id


def test_the_rule_that_holds_is_a_flip_the_other_way() -> None:
    found = explained(RULES, features={"keywords": ("urgent",)})
    assert (found.model, flip(found, "keywords").model) == (BIG.id, MID.id)


def test_a_callers_own_task_is_a_flip_too() -> None:
    plans: dict[str, Plan] = {"sort": Rules((Rule(when=When(task="code"), then="frontier"),), otherwise="fast")}
    found = explained(plans, hints={"task": "translation"})
    assert flip(found, "task").model == BIG.id


def test_chance_is_a_flip_of_an_explored_choice() -> None:
    plans: dict[str, Plan] = {"start": Explore(Exploration(rate=0.2, among=("frontier",)), then="fast")}
    found = explained(plans, draw=0.1)
    assert (found.model, flip(found, "chance").model) == (BIG.id, MID.id)


@pytest.mark.parametrize(
    "when",
    [
        When(task=("code", "reasoning"), tools=True),
        When(keywords=("a", "b"), language="de", template="rag_answer"),
        When(user="ada", team="x", key="k", session=True, labels={"a": "b"}),
        When(criticality="internal", latency=("batch",), structured="json", images=True, code=True, math=False),
        When(min_input_tokens=900, min_turns=3, min_complexity=0.9, min_constraints=2),
        When(max_input_tokens=10, max_turns=0, max_complexity=0.0, min_lambda=2.0, max_left_usd=0.5, min_step=4),
    ],
)
def test_what_satisfies_a_condition_satisfies_it(when: When) -> None:
    story = episode(world(), features={"math": 1.0, "turns": 2})
    assert not holds(when, story)
    changed = satisfied(when, story)
    assert changed is not None
    assert holds(when, changed)


def test_a_story_is_explained_by_its_last_call_with_all_its_reasons() -> None:
    snapshot = world({"climb": Cascade(("fast", "frontier"), Accept(confidence=0.9))})
    story = episode(snapshot)
    first = decide(snapshot, story)
    climbed = after(story, replied(called(first).at, called(first).model, confidence=0.1))
    second = decide(snapshot, climbed)
    whole = after(climbed, replied(called(second).at, called(second).model))
    found = explain_story(snapshot, whole, (first, second))
    assert found.model == BIG.id
    assert any("too little" in reason for reason in found.reasons)
