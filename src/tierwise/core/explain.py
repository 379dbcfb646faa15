"""Why a decision fell as it did, in facts and in words: every candidate, the saving, and what would have changed it.

There is no second evaluator. The counterfactuals ask `decide` itself, with one thing in the episode changed, so they
are true of the code that serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import log2
from typing import Any

import msgspec

from tierwise.core.changes import named_changes
from tierwise.core.decide import decide
from tierwise.core.eligible import barred, needs, unfit
from tierwise.core.episode import Call, Candidate, Decision, Episode, Refuse
from tierwise.core.money import dollars, usd_text
from tierwise.core.policy import Amounts
from tierwise.core.snapshot import Snapshot
from tierwise.core.weigh import weigh, worst_case_nano
from tierwise.core.words import candidate_text, figure, money_text, reason_text

# A change of more than this factor is no neighbour of what happened, so it explains nothing.
_MOST = 1_000.0
_BISECTIONS = 24


class Flip(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that, changed alone, would have made another choice. `size`: 1 is a doubling."""

    what: str
    was: float | str | None
    would_be: float | str | None
    model: str  # that would have been called; "" when the request would have been refused
    size: float


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    decision_id: str
    policy: str
    snapshot: str
    model: str
    reasons: tuple[str, ...]
    candidates: tuple[dict[str, Any], ...]
    flips: tuple[Flip, ...]  # the smallest first
    money: dict[str, Any]
    sentence: str


def explain(snapshot: Snapshot, episode: Episode, decision: Decision) -> Explanation:
    """The explanation of the decision that was taken at this point of this episode under this snapshot."""
    found = flips(snapshot, episode, decision)
    model = _model(decision)
    dear, calm = _dear(snapshot, episode, model)
    reasons = tuple([reason_text(reason) for reason in decision.reasons] + ([dear] if dear else []))
    return Explanation(
        decision_id=episode.id,
        policy=episode.policy,
        snapshot=snapshot.hash,
        model=model,
        reasons=reasons,
        candidates=tuple(_shown(each) for each in candidates(snapshot, episode, decision)),
        flips=found,
        money={
            "lambda": episode.money.value,
            "causes": dict(episode.money.causes),
            "model_at_lambda_1": calm,
            "left_usd": _usd(episode.money.left_nano),
            "baseline_model": snapshot.catalogue.baseline,
            "expected_baseline_usd": _usd(decision.baseline_nano),
        },
        sentence=_sentence(decision, model, found),
    )


def candidates(snapshot: Snapshot, episode: Episode, decision: Decision) -> tuple[Candidate, ...]:
    """Every model of the catalogue: those that the decision saw, and those that its plan never came to."""
    seen = {candidate.model: candidate for candidate in decision.candidates}
    amounts = snapshot.policies[episode.policy].amounts
    for model in snapshot.catalogue.models.values():
        if model.kind != episode.kind:
            continue
        (weighed,) = weigh(snapshot, episode, (model,), amounts)
        ceiling = episode.features.max_tokens or model.max_output_tokens
        filled: dict[str, Any] = {
            "quality": weighed.quality,
            "cost_nano": weighed.cost_nano,
            "latency_ms": weighed.latency_ms,
            "price_nano": weighed.price_nano,
            "worst_case_nano": worst_case_nano(model, episode, ceiling),
        }
        had = seen.get(model.id)
        if had is None:
            code = barred(model, episode, snapshot.catalogue) or unfit(model, needs(episode)) or "not_in_plan"
            verdict = "passed_over" if code == "not_in_plan" else "dropped"
            seen[model.id] = Candidate(model=model.id, verdict=verdict, code=code, **filled)  # type: ignore[arg-type]
        else:
            seen[model.id] = msgspec.structs.replace(had, **filled)
    order = {"chosen": 0, "next": 1, "passed_over": 2, "dropped": 3}
    return tuple(sorted(seen.values(), key=lambda each: (order[each.verdict], each.price_nano or 0)))


# ------------------------------------------------------------------------------------------------ counterfactuals


def flips(snapshot: Snapshot, episode: Episode, decision: Decision) -> tuple[Flip, ...]:
    """What alone would have changed the model, the smallest change first; () when nothing tried does."""
    return tuple(sorted(_flips(snapshot, episode, _model(decision)), key=lambda flip: flip.size))


def _flips(snapshot: Snapshot, episode: Episode, model: str) -> Iterator[Flip]:
    for change in named_changes(episode, snapshot.policies[episode.policy]):
        other = _asked(snapshot, change[2])
        if other != model:
            # Another task is another request: it comes after whatever else would have changed the choice.
            size = 2.0 if change[0] == "task" else 1.0
            yield Flip(what=change[0], was=change[1], would_be=change[3], model=other, size=size)
    for what, was, at, start in _scales(snapshot, episode):
        found = _nearest_factor(model, at)
        if found is not None:
            factor, other = found
            yield Flip(what=what, was=was, would_be=_round(start * factor), model=other, size=abs(log2(factor)))


Ask = Callable[[float], str]


def _scales(snapshot: Snapshot, episode: Episode) -> Iterator[tuple[str, float, Ask, float]]:
    """(what, was, asks with the thing multiplied, its value) for the things that are amounts."""
    replace = msgspec.structs.replace
    if episode.pinned:
        return
    amounts = snapshot.policies[episode.policy].amounts
    miss = amounts.miss_nano(episode.criticality)
    second = amounts.second_nano(episode.latency)
    features = episode.features

    def at_lambda(factor: float) -> str:
        return _asked(snapshot, replace(episode, money=replace(episode.money, value=episode.money.value * factor)))

    def at_miss(factor: float) -> str:
        changed = _with_miss(amounts, episode.criticality, round(miss * factor))
        return _asked(_with_amounts(snapshot, episode.policy, changed), episode)

    def at_second(factor: float) -> str:
        changed = _with_second(amounts, episode.latency, round(second * factor))
        return _asked(_with_amounts(snapshot, episode.policy, changed), episode)

    def at_complexity(factor: float) -> str:
        value = min(1.0, features.complexity * factor)
        return _asked(snapshot, replace(episode, features=replace(features, complexity=value)))

    def at_tokens(factor: float) -> str:
        tokens = max(1, round(features.input_tokens * factor))
        bound = max(tokens, round(features.input_bound_tokens * factor))
        changed = replace(features, input_tokens=tokens, input_bound_tokens=bound)
        return _asked(snapshot, replace(episode, features=changed))

    yield "price of money (λ)", episode.money.value, at_lambda, episode.money.value
    yield "cost of an inadequate answer (USD)", miss / 1e9, at_miss, miss / 1e9
    if second:
        yield "cost of a second (USD)", second / 1e9, at_second, second / 1e9
    if features.complexity > 0:
        yield "complexity", round(features.complexity, 4), at_complexity, features.complexity
    yield "input tokens", features.input_tokens, at_tokens, features.input_tokens


def _nearest_factor(model: str, at: Ask) -> tuple[float, str] | None:
    """The factor nearest to 1, up or down, at which `at` gives another model; None when none does within bounds."""
    found: list[tuple[float, str]] = []
    for way in (1.0, -1.0):
        near, far = 0.0, 0.0
        other = model
        step = 0.05
        while other == model and far < log2(_MOST):
            near, far = far, min(far + step, log2(_MOST))
            step *= 2
            other = at(2 ** (way * far))
        if other == model:
            continue
        for _ in range(_BISECTIONS):
            middle = (near + far) / 2
            there = at(2 ** (way * middle))
            if there == model:
                near = middle
            else:
                far, other = middle, there
        found.append((2 ** (way * far), other))
    return min(found, key=lambda pair: abs(log2(pair[0])), default=None)


def _asked(snapshot: Snapshot, episode: Episode) -> str:
    return _model(decide(snapshot, episode))


def _model(decision: Decision) -> str:
    match decision.step:
        case Call(model=model):
            return model
        case Refuse():
            return ""
    return ""


def _with_amounts(snapshot: Snapshot, policy: str, amounts: Amounts) -> Snapshot:
    changed = msgspec.structs.replace(snapshot.policies[policy], amounts=amounts)
    return msgspec.structs.replace(snapshot, policies=snapshot.policies | {policy: changed})


def _with_miss(amounts: Amounts, criticality: str, nano: int) -> Amounts:
    whose = "internal" if criticality == "internal" else "user"
    return msgspec.structs.replace(amounts, **{f"miss_{whose}_nano": nano})


def _with_second(amounts: Amounts, latency: str, nano: int) -> Amounts:
    return msgspec.structs.replace(amounts, **{f"second_{latency}_nano": nano})


# ------------------------------------------------------------------------------------------------ words


def _shown(each: Candidate) -> dict[str, Any]:
    return {
        "model": each.model,
        "verdict": each.verdict,
        "why": candidate_text(each),
        "code": each.code,
        "quality": None
        if each.quality is None
        else {"low": _round(each.quality.low), "expected": _round(each.quality.mid), "high": _round(each.quality.high)},
        "expected_cost_usd": _usd(each.cost_nano),
        "worst_case_usd": _usd(each.worst_case_nano),
        "expected_latency_ms": each.latency_ms,
        "price_usd": _usd(each.price_nano),
    }


def _dear(snapshot: Snapshot, episode: Episode, model: str) -> tuple[str, str]:
    """What made money dear and what that changed, in words, and the model that λ 1 would have called."""
    said = money_text(episode.money)
    if not said:
        return "", model
    calm = _asked(snapshot, msgspec.structs.replace(episode, money=msgspec.structs.replace(episode.money, value=1.0)))
    if calm == model:
        return f"{said}; at λ 1 the choice would have been the same", calm
    return f"{said}; at λ 1 it would have been {calm or 'a refusal'}", calm


def _sentence(decision: Decision, model: str, found: tuple[Flip, ...]) -> str:
    chosen = next((each for each in decision.candidates if each.model == model), None)
    if chosen is None:
        return "No model was called." if not model else f"{model} was called."
    said = f"{model}: {candidate_text(chosen)}"
    if chosen.cost_nano is not None and decision.baseline_nano not in (None, chosen.cost_nano):
        said += f"; expected {dollars(chosen.cost_nano)} against {dollars(decision.baseline_nano)} on the baseline"
    if found:
        flip = found[0]
        would_be, was = figure(flip.would_be), figure(flip.was)
        said += f"; {flip.model or 'a refusal'} instead, had {flip.what} been {would_be} and not {was}"
    return f"{said}."


def _usd(nano: int | None) -> str | None:
    return None if nano is None else usd_text(nano)


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def explain_story(snapshot: Snapshot, episode: Episode, decisions: tuple[Decision, ...]) -> Explanation:
    """The explanation of a whole episode: its last call, with the reasons of every decision before it.

    Each decision saw one event more than the one before, so the episode as it was then can be told again."""
    last = max(
        (i for i, decision in enumerate(decisions) if isinstance(decision.step, Call)), default=len(decisions) - 1
    )
    then = msgspec.structs.replace(episode, events=episode.events[:last])
    found = explain(snapshot, then, decisions[last])
    told = [reason_text(reason) for decision in decisions for reason in decision.reasons]
    said = tuple(dict.fromkeys([*told, *found.reasons]))  # the last call's own, and what made money dear
    return msgspec.structs.replace(found, reasons=said)
