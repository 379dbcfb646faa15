"""Is a rung's reply good enough? Everything a cascade can test without asking anybody."""

from __future__ import annotations

from tierwise.core.episode import Replied, ReplyFacts
from tierwise.core.policy import Accept
from tierwise.core.request import Features


def agree(one: ReplyFacts, other: ReplyFacts, similarity: float) -> bool:
    """Whether two replies say the same: by their final answers where both have one, else by their texts' overlap."""
    if one.answer_key and other.answer_key:
        return one.answer_key == other.answer_key
    if one.tool_calls or other.tool_calls or not one.sketch or len(one.sketch) != len(other.sketch):
        return False
    # Equal places of two min-hash sketches estimate the Jaccard overlap of the texts (Broder 1997).
    equal = sum(a == b for a, b in zip(one.sketch, other.sketch, strict=True))
    return equal / len(one.sketch) >= similarity


def agreeing(replies: dict[int, Replied], accept: Accept) -> int | None:
    """The first reply that enough replies (itself included) agree with; None when there is none."""
    for index, reply in replies.items():
        # By model: one that two rungs have in common and that says the same twice is one voice.
        same = {other.model for other in replies.values() if agree(reply.facts, other.facts, accept.similarity)}
        if (reply.facts.answer_key or reply.facts.sketch) and len(same) >= (accept.agreement or 1):
            return index
    return None


def failed_test(reply: Replied, accept: Accept, features: Features) -> tuple[str, float | str | None]:
    """The first test of the reply alone that fails, with its figure; ("", None) when all pass."""
    facts = reply.facts
    if accept.confidence is not None:
        if facts.confidence is None:
            return "confidence_unknown", None
        if facts.confidence < accept.confidence:
            return "confidence_low", round(facts.confidence, 4)
    checks = dict(facts.checks)
    for name in accept.check:
        # A check of what the request did not ask for has nothing to fail.
        asked = {
            "schema": features.structured == "schema",
            "tools": facts.tool_calls > 0 or features.forced_tool,
            "complete": True,
            "nonempty": True,
        }[name]
        if asked and not checks.get(name, False):
            return "check_failed", name
    return "", None
