"""A refusal as the caller gets it: status, code, a sentence to act on, and the facts (`core.episode.REFUSALS`)."""

from __future__ import annotations

from typing import Any

from tierwise.core.eligible import barred, unfit
from tierwise.core.episode import Candidate, Denied, Episode, Failed, Refuse
from tierwise.core.errors import Forbidden, Refused, RequestError
from tierwise.core.money import NANO_PER_USD, usd_text
from tierwise.core.snapshot import Snapshot
from tierwise.core.weigh import affordable_tokens, worst_case_nano
from tierwise.core.words import WHY_NOT
from tierwise.routing.health import Health

# What a failed upstream means for the caller: try again later (503), or it will not get better by itself (502).
_LATER = ("rate_limited", "overloaded", "timeout")


def refusal_error(
    refuse: Refuse,
    snapshot: Snapshot,
    episode: Episode,
    candidates: tuple[Candidate, ...],
    health: Health,
    budget_status: int = 402,
) -> RequestError:
    """The error to raise for this refusal."""
    facts = dict(refuse.facts)
    match refuse.code:
        case "no_eligible_model":
            error = _no_eligible(candidates)
        case "not_granted":
            error = Forbidden("this key may not use any of the models that this policy leads to", code="policy_forbids")
        case "budget_exceeded" | "held_by_others" | "step_limit":
            error = _money(refuse.code, facts, budget_status)
            error.metadata |= _room(snapshot, episode, candidates, facts)
        case "all_resting":
            error = _resting(facts, candidates, health)
        case "upstream_rejected":
            error = _rejected(episode)
        case _:
            error = _failed(episode, facts)
    error.decision = episode.id
    return error


def _no_eligible(candidates: tuple[Candidate, ...]) -> RequestError:
    why = {each.model: WHY_NOT.get(each.code, each.code) for each in candidates if each.verdict == "dropped"}
    listed = "; ".join(f"{model}: {reason}" for model, reason in list(why.items())[:5])
    return Refused(
        f"no model can serve this request ({listed or 'the policy leads to none'})",
        code="no_eligible_model",
        status=422,
        metadata={"models": why},
    )


def _money(code: str, facts: dict[str, Any], budget_status: int) -> RequestError:
    limit, scope = facts.get("limit_nano"), facts.get("scope") or "request"
    metadata = {
        "scope": scope,
        **{f"{name}_usd": _usd(facts.get(f"{name}_nano")) for name in ("limit", "spent", "held", "affordable")},
        "resets_at": facts.get("resets_at_s"),
    }
    of = f" of {usd_text(limit)} USD" if isinstance(limit, int) else ""
    if code == "held_by_others":
        return Refused(
            f"the {scope} budget{of} is held by requests in flight; try again shortly",
            code=code,
            status=429,
            metadata=metadata,
            retry_after_s=1,
        )
    if code == "step_limit":
        return Refused(
            f"this {scope} has used all its steps", code=code, status=402, metadata=metadata, should_retry=False
        )
    return Refused(
        f"the {scope} budget{of} does not cover this request's worst case; lower max_tokens, shorten the prompt, "
        "or wait for the budget to reset",
        code=code,
        status=budget_status,
        metadata=metadata,
        should_retry=False,
    )


def _room(
    snapshot: Snapshot, episode: Episode, candidates: tuple[Candidate, ...], facts: dict[str, Any]
) -> dict[str, Any]:
    """What can still be asked for with what is left: the highest `max_tokens` that a model of this plan could hold, and
    the models that could hold this very request."""
    left = facts.get("affordable_nano")
    if not isinstance(left, int):  # the caller's own cap, which no account keeps
        left = (facts.get("limit_nano") or 0) - sum(getattr(event, "cost_nano", 0) or 0 for event in episode.events)
    models, wanted = snapshot.catalogue.models, episode.features.max_tokens
    asked = {event.model for event in episode.events if isinstance(event, Denied)}
    asked |= {each.model for each in candidates if each.verdict != "dropped"}
    tokens = [affordable_tokens(models[id], episode, left) for id in asked if id in models]
    admissible = [
        model.id
        for model in models.values()
        if not barred(model, episode, snapshot.catalogue)
        and not unfit(model, episode)
        and worst_case_nano(model, episode, wanted or model.max_output_tokens) <= left
    ]
    return {"affordable_max_tokens": max((0, *tokens)), "admissible": admissible}


def _resting(facts: dict[str, Any], candidates: tuple[Candidate, ...], health: Health) -> RequestError:
    why = {each.model: health.cause(each.model) for each in candidates if each.code == "resting"}
    wait_s = max(1, -(-int(facts.get("retry_after_ms") or 1_000) // 1_000))
    listed = "; ".join(f"{model} ({cause})" for model, cause in list(why.items())[:5])
    return Refused(
        f"every model that could serve this is resting after failures: {listed}",
        code="all_resting",
        status=503,
        metadata={"resting": why},
        retry_after_s=wait_s,
    )


def _rejected(episode: Episode) -> RequestError:
    last = _failures(episode)[-1]
    status = last.status if last.status in (400, 413, 422) else 400
    error = Refused(
        f"{last.model} refused the request: {last.message}",
        code="upstream_rejected",
        status=status,
        metadata={"attempts": _attempts(episode)},
    )
    error.type = "invalid_request_error"
    return error


def _failed(episode: Episode, facts: dict[str, Any]) -> RequestError:
    failed = _failures(episode)
    status = 503 if any(each.kind in _LATER for each in failed) else 502
    tried = "; ".join(
        " ".join(filter(None, (f"{each.model}:", each.kind, str(each.status or ""), each.message)))
        for each in failed[-3:]
    )
    wait = facts.get("retry_after_ms")
    return Refused(
        f"no model answered ({tried[:900] or 'nothing was tried'})",
        code="upstream_failed",
        status=status,
        metadata={"attempts": _attempts(episode)},
        retry_after_s=-(-int(wait) // 1_000) if wait else None,
    )


def _failures(episode: Episode) -> list[Failed]:
    return [event for event in episode.events if isinstance(event, Failed)]


def _attempts(episode: Episode) -> list[dict[str, Any]]:
    return [
        {
            "model": each.model,
            "kind": each.kind,
            "status": each.status,
            "message": each.message,
            "after_ms": each.after_ms,
        }
        for each in _failures(episode)
    ]


def _usd(nano: object) -> float | None:
    return nano / NANO_PER_USD if isinstance(nano, int) else None
