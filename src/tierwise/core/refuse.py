"""When nobody can serve: which refusal it is, from what happened and from why each model was left out."""

from __future__ import annotations

from tierwise.core.episode import Candidate, Denied, Episode, Fact, Failed, Refuse


def refusal(episode: Episode, candidates: dict[str, Candidate]) -> Refuse:
    """The refusal of an episode that has no one left to ask. The strongest cause is told: what the caller can mend
    before what it can only wait for, money before failures."""
    failed = [event for event in episode.events if isinstance(event, Failed) and not event.helper]
    told_no = [event for event in episode.events if isinstance(event, Denied)]
    denied = [event for event in told_no if event.denial.code != "retry_budget" and not event.explored]
    if any(event.kind == "rejected" for event in failed) and failed[-1].kind == "rejected":
        return Refuse("upstream_rejected", (("model", failed[-1].model), ("status", failed[-1].status)))
    if denied:
        return _money(denied)
    if failed:
        waits = [event.retry_after_ms for event in failed if event.retry_after_ms is not None]
        facts: tuple[tuple[str, Fact], ...] = (("attempts", len(failed)), ("last", failed[-1].kind))
        return Refuse("upstream_failed", (*facts, *((("retry_after_ms", min(waits)),) if waits else ())))
    codes = [candidate.code for candidate in candidates.values() if candidate.code != "wrong_kind"]
    if codes and "resting" in codes:
        wait = min(
            int(dict(candidate.facts).get("for_ms") or 0)
            for candidate in candidates.values()
            if candidate.code == "resting"
        )
        return Refuse("all_resting", (("retry_after_ms", wait),))
    if any(code == "cannot_be_paid" for code in codes):
        return Refuse("budget_exceeded", (("scope", "request"), ("limit_nano", episode.hints.max_cost_nano)))
    if codes and all(code == "not_granted" for code in codes):
        return Refuse("not_granted")
    return Refuse("no_eligible_model")


def _money(denied: list[Denied]) -> Refuse:
    """The last denial tells the state of the budgets as it is now. That a model has no bound is told only when no other
    model was too dear: money may come back."""
    denial = next((event.denial for event in reversed(denied) if event.denial.code != "unbounded"), denied[-1].denial)
    return Refuse(
        denial.code,
        (
            ("scope", denial.scope),
            ("limit_nano", denial.limit_nano),
            ("spent_nano", denial.spent_nano),
            ("held_nano", denial.held_nano),
            ("resets_at_s", denial.resets_at_s),
            ("affordable_nano", denial.affordable_nano),
            *((("limit", denial.limit), ("used", denial.used)) if denial.limit is not None else ()),
        ),
    )
