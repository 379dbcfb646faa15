"""A refusal as the caller gets it: status, code, a sentence to act on, and the facts (`core.episode.REFUSALS`)."""

from __future__ import annotations

from typing import Any

from tierwise.core.eligible import barred, needs, unfit
from tierwise.core.episode import Candidate, Denied, Episode, Failed, Refuse
from tierwise.core.errors import Forbidden, Refused, RequestError
from tierwise.core.estimate import estimate_all
from tierwise.core.money import NANO_PER_USD, dollars
from tierwise.core.snapshot import Snapshot
from tierwise.core.weigh import affordable_tokens, worst_case_nano
from tierwise.core.words import WHY_NOT, counted
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
        case "budget_exceeded" | "held_by_others" | "credit_exhausted":
            error = _capped(snapshot, episode, candidates, facts, budget_status) or _money(
                refuse.code, facts, budget_status
            )
            error.metadata |= _room(snapshot, episode, candidates, facts)
        case "token_limit" | "call_limit" | "parallel_limit":
            error = _rate(refuse.code, facts, budget_status, episode.at_s)
        case "step_limit" | "loop_stopped" | "deadline_passed":
            error = _stopped(refuse.code, facts)
        case "unbounded":
            error = _unbounded(snapshot, episode, facts)
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


def _known(facts: dict[str, Any]) -> dict[str, Any]:
    """Of a limit: whose it is, how much it is, how much of it is used and when it begins anew."""
    found = {
        "scope": facts.get("scope") or "request",
        **{f"{name}_usd": _usd(facts.get(f"{name}_nano")) for name in ("limit", "spent", "held", "affordable")},
        "resets_at": facts.get("resets_at_s"),
    }
    return found | {name: facts[name] for name in ("limit", "used") if facts.get(name) is not None}


def _money(code: str, facts: dict[str, Any], budget_status: int) -> RequestError:
    limit, scope = facts.get("limit_nano"), facts.get("scope") or "request"
    of = f" of {dollars(limit)}" if isinstance(limit, int) else ""
    whose = "prepaid balance" if scope == "credit" else f"{scope} budget{of}"
    if code == "held_by_others":
        return Refused(
            f"the {whose} is held by requests in flight; try again shortly",
            code=code,
            status=429,
            metadata=_known(facts),
            retry_after_s=1,
        )
    resets = facts.get("resets_at_s") is not None
    last = "have it topped up" if scope == "credit" else "wait for the budget to reset" if resets else "have it raised"
    return Refused(
        f"the {whose} does not cover this request's worst case; lower max_tokens, shorten the prompt, or {last}",
        code=code,
        status=budget_status,
        metadata=_known(facts),
        should_retry=False,
    )


def _capped(
    snapshot: Snapshot, episode: Episode, candidates: tuple[Candidate, ...], facts: dict[str, Any], budget_status: int
) -> RequestError | None:
    """When it was the request's own cap, which no time mends; else None."""
    cap, ceiling, n = episode.hints.max_cost_nano, episode.features.max_tokens, episode.features.n
    if cap is None or (facts.get("scope"), facts.get("limit_nano")) != ("request", cap):
        return None
    known = snapshot.catalogue.models
    models = tuple(known[id] for id in _asked(episode, candidates) if id in known and known[id].price is not None)
    # Without a ceiling of its own the call gets one, as long as the reply that is expected fits under it.
    estimates = estimate_all(snapshot.estimator, episode.features, models, episode.workload)
    amounts = [
        (
            worst_case_nano(model, episode, ceiling or min(-(-each.output_tokens // n), model.max_output_tokens)),
            model.id,
        )
        for model, each in zip(models, estimates, strict=True)
    ]
    least = f"the cheapest that could answer needs {dollars(min(amounts)[0])} ({min(amounts)[1]})" if amounts else ""
    return Refused(
        f"the hint max_cost_usd allows this request {dollars(cap)}, and {least or 'no model is as cheap'}; raise it, "
        "lower max_tokens, or shorten the prompt",
        code="budget_exceeded",
        status=budget_status,
        metadata=_known(facts),
        should_retry=False,
    )


_RATES = {"token_limit": "token", "call_limit": "call", "parallel_limit": "call"}
LONGEST_RETRY_S = 60  # no client should be told to try again by itself after more than this


def _rate(code: str, facts: dict[str, Any], budget_status: int, at_s: int) -> RequestError:
    """Limits that time mends, unless they are for a lifetime or less than this one request may need."""
    scope, limit, used, resets = (facts.get(name) for name in ("scope", "limit", "used", "resets_at_s"))
    said = f"the {scope} limit of {counted(limit or 0, _RATES[code])}{' at once' * (code == 'parallel_limit')} "
    wait_s = 1 if code == "parallel_limit" else max(1, resets - at_s) if resets is not None else None
    if wait_s is None or (code == "token_limit" and not used):
        what = "does not cover what this request may use" if code == "token_limit" else "is used up"
        return Refused(
            f"{said}{what}; lower max_tokens or shorten the prompt"
            if code == "token_limit"
            else f"{said}{what}, and it does not reset",
            code=code,
            status=budget_status if wait_s is None else 429,
            metadata=_known(facts),
            should_retry=False,
        )
    what = "is reached" if code == "parallel_limit" else f"is reached ({used or 0:,} used or held)"
    return Refused(
        f"{said}{what}; try again in {wait_s} s",
        code=code,
        status=429,
        metadata=_known(facts),
        retry_after_s=wait_s,
        should_retry=None if wait_s <= LONGEST_RETRY_S else False,
    )


def _stopped(code: str, facts: dict[str, Any]) -> RequestError:
    """An agent that has to stop, or at least to do something else."""
    scope, limit, used = (facts.get(name) for name in ("scope", "limit", "used"))
    said = {
        "step_limit": f"this {scope} has used all its {counted(limit or 0, 'step')}; begin a new {scope} or stop",
        "loop_stopped": f"the same call was made {used} times in this {scope}, one after the other or in turn with "
        "another, with the same result; change the request or stop",
        "deadline_passed": f"this {scope} began {used} s ago and may take {limit} s; begin a new {scope} or stop",
    }[code]
    return Refused(said, code=code, status=402, metadata=_known(facts), should_retry=False)


def _unbounded(snapshot: Snapshot, episode: Episode, facts: dict[str, Any]) -> RequestError:
    asked = [event.model for event in episode.events if isinstance(event, Denied)]
    unpriced = [id for id in dict.fromkeys(asked) if (m := snapshot.catalogue.models.get(id)) and m.price is None]
    if unpriced:
        why = f"{', '.join(unpriced)} has no price, so nobody knows what it costs"
        mend = "set its price"
    else:
        why = "the request names a file whose length nobody knows, so its cost has no bound"
        mend = "send the file's content"
    scope = facts.get("scope") or "request"
    whose = "a prepaid balance would pay" if scope == "credit" else f"the {scope} budget is a hard one"
    return Forbidden(
        f"{why}, and {whose}; {mend}, or give {'a' if scope == 'credit' else 'the'} budget reserve_usd, what such a "
        "call may hold",
        code="unbounded",
        metadata={**_known(facts), "models": unpriced},
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
    tokens = [affordable_tokens(models[id], episode, left) for id in _asked(episode, candidates) if id in models]
    needed = needs(episode)
    admissible = [
        model.id
        for model in models.values()
        if not barred(model, episode, snapshot.catalogue)
        and not unfit(model, needed)
        and worst_case_nano(model, episode, wanted or model.max_output_tokens) <= left
    ]
    return {"affordable_max_tokens": max((0, *tokens)), "admissible": admissible}


def _asked(episode: Episode, candidates: tuple[Candidate, ...]) -> set[str]:
    """The models that the plan leads to."""
    denied = {event.model for event in episode.events if isinstance(event, Denied)}
    return denied | {each.model for each in candidates if each.verdict != "dropped"}


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
