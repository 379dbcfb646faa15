"""Words for codes. Codes and facts are stored; only here do they become sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import zip_longest
from string import Formatter
from typing import Any

from tierwise.core.budget import Lambda
from tierwise.core.episode import Candidate, Reason
from tierwise.core.rise import CAUSE

# Why a model was dropped, or passed over, or chosen.
WHY_NOT = {
    "wrong_kind": "it makes another kind of output (chat or embeddings)",
    "not_granted": "this key may not use it",
    "denied_by_caller": "the caller ruled it out",
    "not_allowed_by_caller": "the caller named others",
    "not_local": "it does not run on the owner's machines, as asked",
    "unpriced": "it has no price, and the policy refuses unpriced models",
    "denied_by_policy": "the policy rules it out",
    "not_allowed_by_policy": "the policy names others",
    "too_dear": "its price is above the policy's limit",
    "output_too_small": "it cannot write as many tokens as asked for",
    "context_too_small": "the prompt does not fit its context",
    "no_tools": "it cannot call tools",
    "no_images": "it cannot read images",
    "no_audio": "it cannot hear audio",
    "no_documents": "it cannot read documents",
    "no_schema": "it cannot keep to a JSON schema",
    "no_json": "it cannot be held to JSON",
    "resting": "it is resting after failures",
    "below_floor": "its expected quality is below the policy's floor",
    "below_min_quality": "its expected quality is below what the caller asked for",
    "too_slow": "it is expected to take longer than the caller allows",
    "failed": "it failed",
    "step_limit": "the session or workflow has no steps left",
    "loop_stopped": "the session or workflow repeats itself",
    "deadline_passed": "the session or workflow has taken too long",
    "call_limit": "no calls are left under a limit",
    "parallel_limit": "as many calls as are allowed at once are under way",
    "unbounded": "nobody knows what it can cost at most, and a hard budget is above it",
    "retry_budget": "its provider fails too much to be asked again now",
    "cannot_be_paid": "its worst case is more than the budget can hold",
    "dearer_fallback": "the policy does not fall back to dearer models",
    "later_in_order": "it comes later in the policy's order",
    "higher_price": "cost, risk of a miss and waiting together weigh more",
    "lower_quality": "its expected quality is lower",
    "not_in_plan": "the plan that applied does not lead to it",
    "order": "it comes first in the policy's order",
    "price": "cost, risk of a miss and waiting together weigh least",
    "quality": "no model reaches the floor, and it comes nearest",
    "promise": "the promise lets it answer, or falls back on it",
    "promise_names_another": "the promise was certified with another model answering this request",
    "beyond_promise": "it is expected to lose more than the promise allows",
    "retry": "nobody else is left, and its failure may have passed",
}

REASONS = {
    "chosen": "{model} was chosen by {by}",
    "kept": "{models:model} can serve the request, {dropped} cannot",
    "rule": "rule {rule} holds, so {then} applies",
    "no_rule": "no rule holds, so {otherwise} applies",
    "told": "asked about {topic}, a helper said {answer}",
    "helper_failed": "the helper for {topic} did not answer; routing goes on without it",
    "explored": "by chance ({rate} of requests, odds {odds} for this model) another model is tried",
    "shadow": "by chance ({rate} of requests, odds {odds} for this model) {model} is asked as well, for learning alone",
    "shadow_ungraded": "no other model could grade the reply of {model} and its shadow",
    "promise_not_certified": "promise {promise} is not certified here, so nothing is saved on it",
    "promise_withdrawn": "promise {promise} no longer holds here and was withdrawn, so nothing is saved on it",
    "promise_of_another": "promise {promise} is about another estimator than the one that serves: calibrate again",
    "promise_holds": "promise {promise} is certified here",
    "dear_share_risen": "this key's requests go to dear models more than is usual for it, so money is dearer for it",
    "floor_unreachable": "no model reaches the expected quality {floor}; the nearest is taken",
    "min_quality_unreachable": "no model reaches the quality {min_quality} that was asked for; the nearest is taken",
    "max_latency_ms_unreachable": "no model is expected within {max_latency_ms} ms; the fastest is taken",
    "confidence_low": "the reply of {model} has confidence {figure}, too little",
    "confidence_unknown": "{model} tells no confidence, so its reply is not accepted",
    "check_failed": "the reply of {model} fails the check {figure}",
    "not_agreed": "{replies:reply} came, and no {wanted} of them agree",
    "grade_low": "the reply of {model} was graded {score}, too little",
    "grade_good": "the reply of {model} was graded {score}",
    "grader_failed": "the grader did not answer, so the reply of {model} is not accepted",
    "accepted": "the reply of {model} is good enough",
    "kept_lower_reply": "nobody above answered, so the best reply so far is delivered",
    "rung_skipped": "{left_ms} ms are left and this rung and the last need {needed_ms} ms, so it is skipped",
    "ceiling_set": "max_tokens is set to {max_tokens}, which the budget can hold",
    "retry": "{model} is asked again after {wait_ms} ms",
    "calls_exhausted": "the request has made {calls:call}, its limit",
    "attempts_exhausted": "the limit of {attempts:failed attempt} is reached",
}


def reason_text(reason: Reason) -> str:
    """The reason as a sentence, with where in the policy it was made."""
    words = _Sentences().vformat(REASONS.get(reason.code, reason.code), (), dict(reason.facts))
    return f"{words} ({reason.at})" if reason.at else words


def candidate_text(candidate: Candidate) -> str:
    """Why this model was chosen, dropped or passed over."""
    words = WHY_NOT.get(candidate.code, candidate.code)
    shown = ", ".join(f"{name} {figure(value)}" for name, value in candidate.facts if name != "over_nano")
    return f"{words} ({shown})" if shown else words


def money_text(money: Lambda) -> str:
    """Which budgets made money dear, and how they stand, the dearest first; "" when none did."""
    if money.value <= 1.0:
        return ""
    found = sorted(zip_longest(money.causes, money.shares), key=lambda pair: -pair[0][1])
    said = [_cause_text(label, price, shares, alone=len(found) == 1) for (label, price), shares in found]
    return f"money counts {money.value:.3g} times (λ)" + (f": {'; '.join(said)}" if said else "")


def _cause_text(label: str, price: float, shares: tuple[float, float | None] | None, *, alone: bool) -> str:
    own = "" if alone else f" (λ {price:.3g})"
    if shares is None:  # an episode from before they were kept
        return f"the budget {label} is dear{own}"
    used, planned = shares
    if label == CAUSE:
        known = "" if planned is None else f", {planned:.1%} is usual for it"
        return f"{used:.1%} of this key's last requests went to dear models{known}{own}"
    plan = "" if planned is None else f", {planned:.1%} was planned by now"
    return f"{used:.1%} of the budget {label} is spent or held{plan}{own}"


def counted(number: int, noun: str) -> str:
    """1 model, 2 models, 2 replies."""
    return f"{number:,} {noun if number == 1 else _many(noun)}"


def _many(noun: str) -> str:
    return f"{noun[:-1]}ies" if noun.endswith(("ly", "ry")) else f"{noun}s"


def figure(value: object) -> str:
    """A fact as people read it: a number never has an exponent."""
    return f"{Decimal(repr(value)):f}" if isinstance(value, float) else str(value)


class _Sentences(Formatter):
    """Facts in a sentence: `{calls:call}` counts calls. One that an older journal row does not have shows as a dash."""

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return kwargs.get(str(key), "–")

    def format_field(self, value: Any, noun: str) -> str:
        if not noun:
            return figure(value)
        return counted(value, noun) if isinstance(value, int) else f"{value} {_many(noun)}"
