"""A journal record with a little of everything in it."""

from __future__ import annotations

from typing import Any

from tierwise.core.budget import Denial
from tierwise.core.episode import Call, Decision, Denied, Episode, Failed, Reason, Replied
from tierwise.core.money import Usage
from tierwise.core.ports import Outcome, Record
from tierwise.core.request import Features, Hints, Payer

NOON = 1_767_182_400  # 2025-12-31 12:00:00 UTC


def a_record(id: str, at_s: int = NOON, *, model: str = "acme/small", team: str = "", **outcome: Any) -> Record:
    episode = Episode(
        id=id,
        snapshot="5eed",
        at_s=at_s,
        draw=0.25,
        requested="auto",
        policy="default",
        features=Features(input_tokens=10, input_bound_tokens=40, languages=("en",)),
        hints=Hints(session="s1", labels=(("endpoint", "chat"),)),
        payer=Payer(key="demo", user="ada", team=team, tags=(("project", "x"),)),
        events=(
            Denied(at="climb", model="acme/large", after_ms=1, denial=Denial(scope="team", affordable_nano=7)),
            Failed(at="climb", model="acme/large", after_ms=5, kind="timeout", message="no first byte"),
            Replied(at="climb", model=model, after_ms=90, usage=Usage(input_tokens=10, output_tokens=5), cost_nano=35),
        ),
    )
    decision = Decision(step=Call(at="climb", model=model, worst_case_nano=90), reasons=(Reason("climb", "cheapest"),))
    fields = {"status": "answered", "routed": model, "cost_nano": 35, "baseline_nano": 100, **outcome}
    usage = Usage(input_tokens=10, cached_input_tokens=2, output_tokens=5, reasoning_tokens=1)
    return Record(episode=episode, decisions=(decision,), outcome=Outcome(usage=usage, attempts=2, **fields))
