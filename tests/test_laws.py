"""Laws that hold for every policy, every request and every course of events."""

from __future__ import annotations

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.stories import episodes, events, worlds
from support.worlds import MODELS

from tierwise.core.decide import decide
from tierwise.core.eligible import barred
from tierwise.core.episode import (
    REFUSALS,
    Answer,
    Call,
    Decision,
    Denied,
    Episode,
    Failed,
    Refuse,
    Replied,
    Serve,
    Told,
)
from tierwise.core.explain import explain
from tierwise.core.snapshot import Snapshot, dump, load
from tierwise.core.weigh import worst_case_nano
from tierwise.core.words import REASONS, WHY_NOT

# Denials do not count as calls; each model can be denied at most twice on a path, so no story is longer than this.
MOST_STEPS = 120
LAWS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def run(data: st.DataObject, snapshot: Snapshot, story: Episode) -> tuple[Episode, list[Decision]]:
    """Plays a story to its end."""
    decisions: list[Decision] = []
    for _ in range(MOST_STEPS):
        decision = decide(snapshot, story)
        decisions.append(decision)
        if not isinstance(decision.step, Call):
            return story, decisions
        story = story.then(data.draw(events(decision.step, story.elapsed_ms)))
    raise AssertionError(f"no end after {MOST_STEPS} steps: {[d.step for d in decisions[-3:]]}")


@LAWS
@given(data=st.data(), snapshot=worlds())
def test_every_story_ends_and_replays_to_the_same_decisions(data: st.DataObject, snapshot: Snapshot) -> None:
    story, decisions = run(data, snapshot, data.draw(episodes(snapshot)))
    stored = msgspec.json.decode(msgspec.json.encode(story), type=Episode)
    assert stored == story
    reloaded = load(dump(snapshot))
    assert reloaded.hash == snapshot.hash
    for i, decision in enumerate(decisions):
        then = msgspec.structs.replace(stored, events=stored.events[:i])
        again = decide(reloaded, then)
        assert again == decision
        assert msgspec.json.decode(msgspec.json.encode(decision), type=Decision) == decision


@LAWS
@given(data=st.data(), snapshot=worlds())
def test_only_who_may_serve_is_called_and_never_above_the_limits(data: st.DataObject, snapshot: Snapshot) -> None:
    story, decisions = run(data, snapshot, data.draw(episodes(snapshot)))
    policy = snapshot.policies["default"]
    resting = dict(story.resting)
    calls = [decision.step for decision in decisions if isinstance(decision.step, Call)]
    for i, call in enumerate(calls):
        model = snapshot.catalogue.models[call.model]
        assert not barred(model, story, snapshot.catalogue)
        assert call.model not in resting
        assert not story.pinned or call.model == story.pinned or not isinstance(call.about, Serve)
        asked = story.features.max_tokens
        if call.max_tokens is not None and asked is not None:
            assert call.max_tokens <= asked
            assert policy.clamp
        if isinstance(call.about, Serve):
            ceiling = call.max_tokens or asked or model.max_output_tokens
            least = worst_case_nano(model, story, ceiling)
            assert call.worst_case_nano > least if call.about.drafts else call.worst_case_nano == least
        spent = sum(getattr(event, "cost_nano", 0) or 0 for event in story.events[:i])
        most = story.hints.max_cost_nano
        assert most is None or spent + call.worst_case_nano <= most
    made = [event for event in story.events if not isinstance(event, Denied)]
    assert len(made) <= policy.calls
    served = {call.at for call in calls if isinstance(call.about, Serve)}
    assert sum(isinstance(event, Failed) and event.at in served for event in story.events) <= policy.attempts + len(
        [call for call in calls if not isinstance(call.about, Serve)]
    )


@LAWS
@given(data=st.data(), snapshot=worlds())
def test_what_is_delivered_is_a_reply_and_what_is_refused_has_a_code(data: st.DataObject, snapshot: Snapshot) -> None:
    story, decisions = run(data, snapshot, data.draw(episodes(snapshot)))
    match decisions[-1].step:
        case Answer(event=event):
            assert isinstance(story.events[event], Replied)
        case Refuse(code=code):
            assert code in REFUSALS
            # A reply that came is never thrown away for a refusal.
            assert not any(isinstance(event, Replied) for event in story.events)
    for decision in decisions:
        assert all(reason.code in REASONS for reason in decision.reasons)
        assert all(candidate.code in WHY_NOT for candidate in decision.candidates)


@LAWS
@given(data=st.data(), snapshot=worlds())
def test_the_odds_are_those_of_the_moment_before_the_dice_fell(data: st.DataObject, snapshot: Snapshot) -> None:
    """Off-policy estimates divide by them: a distribution that no later event and no other draw moves."""
    begun = data.draw(episodes(snapshot))
    story, decisions = run(data, snapshot, begun)
    told = any(isinstance(event, Told) for event in story.events)
    for decision in decisions:
        assert all(0 < chance <= 1 + 1e-9 for _, chance in decision.odds)
        assert sum(chance for _, chance in decision.odds) <= 1 + 1e-6
        assert told or not decision.odds or decision.odds == decisions[0].odds
    first = decisions[0]
    unexplored = decide(snapshot, msgspec.structs.replace(begun, draw=1 - 1e-9))
    assert unexplored.odds == first.odds
    if first.odds and isinstance(unexplored.step, Call) and isinstance(unexplored.step.about, Serve):
        assert abs(sum(chance for _, chance in first.odds) - 1) < 1e-6


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), snapshot=worlds())
def test_every_flip_that_an_explanation_tells_of_is_true(data: st.DataObject, snapshot: Snapshot) -> None:
    """The first decision of any story can be explained, and each candidate of the catalogue is in the explanation."""
    story = data.draw(episodes(snapshot))
    decision = decide(snapshot, story)
    found = explain(snapshot, story, decision)
    assert {each["model"] for each in found.candidates} == {model.id for model in MODELS}
    assert found.model == (decision.step.model if isinstance(decision.step, Call) else "")
    assert all(flip.model != found.model for flip in found.flips)
    assert list(found.flips) == sorted(found.flips, key=lambda flip: flip.size)
