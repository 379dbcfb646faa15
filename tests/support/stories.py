"""Hypothesis strategies for worlds and stories: any policy that loads, any request, any course of events."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from support.worlds import BIG, MID, MODELS, RIVAL, TINY, episode, world
from tierwise.core.budget import Denial, Lambda
from tierwise.core.check_policy import check
from tierwise.core.episode import AGAIN, Ask, Call, Denied, Episode, Event, Failed, Grade, Replied, ReplyFacts, Told
from tierwise.core.money import Usage
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
from tierwise.core.request import Features, Hints
from tierwise.core.snapshot import Snapshot

TIERS = ("frontier", "fast", "local")
IDS = tuple(each.id for each in MODELS)
NAMES = st.sampled_from((*TIERS, *IDS))
SEVERAL = st.lists(NAMES, min_size=1, max_size=3, unique=True).map(tuple)
SHARE = st.floats(0, 1)
FEATURES = st.builds(
    Features,
    input_tokens=st.integers(1, 20_000),
    input_bound_tokens=st.integers(20_000, 80_000),
    turns=st.integers(0, 20),
    complexity=SHARE,
    depth=SHARE,
    ambiguity=SHARE,
    code=SHARE,
    math=SHARE,
    tools=st.integers(0, 2),
    images=st.integers(0, 1),
    task=st.sampled_from(("greeting", "code", "reasoning", "other", "summarisation")),
    structured=st.sampled_from(("none", "json", "schema")),
    max_tokens=st.none() | st.integers(1, 4_000),
    n=st.integers(1, 3),
    languages=st.just(("en",)),
)
HINTS = st.builds(
    Hints,
    min_quality=st.none() | SHARE,
    max_cost_nano=st.none() | st.integers(0, 10**9),
    max_latency_ms=st.none() | st.integers(1, 60_000),
    allow=st.just(()) | SEVERAL,
    deny=st.just(()) | SEVERAL,
    locality=st.sampled_from((None, None, "local")),
    explore=st.booleans(),
)
WHENS = st.builds(
    When,
    task=st.sampled_from((None, "code", ("greeting", "other"))),
    min_complexity=st.none() | SHARE,
    tools=st.none() | st.booleans(),
    max_input_tokens=st.none() | st.integers(1, 20_000),
).filter(lambda when: when != When())
ACCEPTS = st.builds(
    Accept,
    confidence=st.none() | SHARE,
    agreement=st.none() | st.integers(2, 3),
    check=st.sampled_from(((), ("schema",), ("complete", "nonempty"))),
    grader=st.none() | NAMES,
    at_least=SHARE,
).filter(lambda accept: accept != Accept() and (accept.confidence or accept.agreement or accept.check or accept.grader))

EXPLORATIONS = st.builds(Exploration, rate=SHARE, among=SEVERAL, shadow=st.booleans(), grader=st.none() | NAMES).filter(
    lambda each: each.shadow or each.grader is None
)


def _leaf() -> st.SearchStrategy[Plan]:
    return st.builds(Use, SEVERAL) | st.builds(Best, SEVERAL, floor=SHARE)


def _plan(below: tuple[str, ...]) -> st.SearchStrategy[Plan]:
    """A plan that may refer to the plans below it, so that no plan reaches itself."""
    then = st.sampled_from((*below, *TIERS))
    question = st.builds(
        Question, of=NAMES, topic=st.just("hard"), question=st.just("Hard?"), answers=st.just(("yes", "no"))
    )
    return st.one_of(
        _leaf(),
        st.builds(Keep, st.builds(Screen, fits=st.booleans(), deny=st.just(()) | SEVERAL), then),
        st.builds(Rules, st.lists(st.builds(Rule, when=WHENS, then=then), min_size=1, max_size=3).map(tuple), then),
        st.builds(AskFirst, question, then),
        st.builds(Cascade, st.lists(then, min_size=2, max_size=3).map(tuple), ACCEPTS, st.booleans()),
        st.builds(Explore, EXPLORATIONS, then),
    )


@st.composite
def worlds(draw: st.DrawFn) -> Snapshot:
    """A snapshot whose default policy is any tree of plans that `check` accepts."""
    plans: dict[str, Plan] = {}
    for i in range(draw(st.integers(1, 5))):
        plans[f"p{i}"] = draw(_plan(tuple(plans)))
    start = f"p{len(plans) - 1}"
    snapshot = world(
        plans,
        start=start,
        attempts=draw(st.integers(1, 4)),
        calls=draw(st.integers(1, 12)),
        clamp=draw(st.booleans()),
        dearer=draw(st.booleans()),
    )
    unreached = list(check(snapshot.policies["default"], snapshot.catalogue))
    assert all("nothing leads" in problem.what for problem in unreached), unreached
    return snapshot


@st.composite
def episodes(draw: st.DrawFn, snapshot: Snapshot) -> Episode:
    resting = draw(st.lists(st.sampled_from(IDS), max_size=3, unique=True))
    return episode(
        snapshot,
        draw=draw(st.floats(0, 1, exclude_max=True)),
        features=draw(FEATURES),
        hints=draw(HINTS),
        money=Lambda(value=draw(st.floats(1, 50)), left_nano=draw(st.none() | st.integers(0, 10**9))),
        latency=draw(st.sampled_from(("interactive", "background", "batch"))),
        criticality=draw(st.sampled_from(("user", "internal", "critical"))),
        pinned=draw(st.sampled_from(("", "", "", *IDS))),
        resting=tuple((model, 1_000) for model in resting),
    )


@st.composite
def events(draw: st.DrawFn, call: Call, after_ms: int) -> Event:
    """Whatever may come of a call."""
    common: dict[str, Any] = {"at": call.at, "model": call.model, "after_ms": after_ms + draw(st.integers(0, 5_000))}
    way = draw(st.sampled_from(("well", "well", "failed", "denied")))
    if way == "denied":
        code = draw(st.sampled_from(("budget_exceeded", "held_by_others", "step_limit", "retry_budget")))
        affordable = draw(st.integers(0, max(0, call.worst_case_nano - 1)))
        return Denied(**common, denial=Denial(scope="team", code=code, affordable_nano=affordable))
    if way == "failed":
        kind = draw(st.sampled_from((*AGAIN, "garbled", "too_large", "rejected", "auth", "not_found")))
        return Failed(**common, kind=kind, retry_after_ms=draw(st.none() | st.integers(0, 60_000)), cost_nano=0)
    match call.about:
        case Ask(topic=topic, answers=answers):
            return Told(**common, topic=topic, answer=draw(st.sampled_from(("", *answers))))
        case Grade(of=of):
            return Told(**common, topic="grade", score=draw(st.none() | SHARE), of=of)
    facts = ReplyFacts(
        stop="end",
        characters=100,
        confidence=draw(st.none() | SHARE),
        answer_key=draw(st.sampled_from(("", "a", "b"))),
        checks=tuple((name, draw(st.booleans())) for name in ("schema", "complete", "nonempty")),
    )
    cost = draw(st.integers(0, call.worst_case_nano))
    return Replied(**common, usage=Usage(input_tokens=10, output_tokens=10), cost_nano=cost, facts=facts)


__all__ = ["BIG", "MID", "RIVAL", "TINY", "episodes", "events", "worlds"]
