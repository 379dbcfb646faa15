"""The changes of one thing in an episode that an explanation tries: which alone would have changed the choice?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import msgspec

from tierwise.core.episode import Episode
from tierwise.core.money import NANO_PER_USD, dollars
from tierwise.core.policy import Policy, Rules, When
from tierwise.core.request import Criticality

Change = tuple[str, str | None, Episode, str]  # what, was, the changed episode, would be
_replace = msgspec.structs.replace
_HINTS = ("allow", "deny", "locality", "min_quality", "max_latency_ms", "max_cost_nano")


def named_changes(episode: Episode, policy: Policy) -> Iterator[Change]:
    """Of the things that are one of a few names, or there or not."""
    if episode.pinned:
        yield "model", episode.pinned, _replace(episode, pinned="", requested="auto"), "auto"
        return
    for criticality in get_args(Criticality):
        if criticality != episode.criticality:
            yield "criticality", episode.criticality, _replace(episode, criticality=criticality), criticality
    for latency in ("interactive", "background", "batch"):
        if latency != episode.latency:
            yield "latency", episode.latency, _replace(episode, latency=latency), latency
    task = episode.hints.task or episode.features.task
    for other in ("greeting", "extraction", "summarisation", "code", "reasoning"):
        if other != task:
            yield "task", task, _with_task(episode, other), other
    for model, wait_ms in episode.resting:
        others = tuple(each for each in episode.resting if each[0] != model)
        yield f"rest of {model}", f"{wait_ms} ms", _replace(episode, resting=others), "over"
    for what in _HINTS:
        if had := getattr(episode.hints, what):
            empty = () if what in ("allow", "deny") else None
            yield what, str(had), _replace(episode, hints=_replace(episode.hints, **{what: empty})), "not given"
    if episode.features.max_tokens is not None:
        yield "max_tokens", str(episode.features.max_tokens), _featured(episode, max_tokens=None), "not given"
    if episode.money.left_nano is not None:
        was = f"{dollars(episode.money.left_nano)} left"
        yield "budget", was, _replace(episode, money=_replace(episode.money, left_nano=None)), "none"
    if episode.features.keywords:
        yield "keywords", ", ".join(episode.features.keywords), _featured(episode, keywords=()), "none of them"
    yield "chance", f"draw {episode.draw:.3g}", _replace(episode, draw=1 - 1e-9), "no exploration"
    yield from _rules(episode, policy)


def _rules(episode: Episode, policy: Policy) -> Iterator[Change]:
    for name, plan in policy.plans.items():
        if isinstance(plan, Rules):
            for i, rule in enumerate(plan.rules):
                made = satisfied(rule.when, episode)
                if made is not None and made != episode:
                    wanted = ", ".join(f"{field} {value}" for field, value in _given(rule.when))
                    yield f"rule {i + 1} of {name}", "not met", made, wanted


def satisfied(when: When, episode: Episode) -> Episode | None:
    """The episode with everything changed that this condition asks for; None where only a helper could say it."""
    if when.told is not None:
        return None
    for field, value in _given(when):
        episode = _with(field, value, episode)
    return episode


def _given(when: When) -> list[tuple[str, Any]]:
    return [(name, value) for name in When.__struct_fields__ if (value := getattr(when, name)) is not None]


def _with(field: str, value: Any, episode: Episode) -> Episode:
    first = value[0] if isinstance(value, tuple) else value
    features, hints, payer = episode.features, episode.hints, episode.payer
    match field:
        case "task":
            named = hints.task or features.task
            return episode if named == value or named in _several(value) else _with_task(episode, first)
        case "keywords":
            words = {word.casefold() for word in value}
            return episode if words & set(features.keywords) else _featured(episode, keywords=tuple(words)[:1])
        case "template" | "structured":
            return _featured(episode, **{field: first})
        case "language":
            return _featured(episode, languages=(first,))
        case "user" | "team" | "key":
            return _replace(episode, payer=_replace(payer, **{field: first}))
        case "session":
            return _replace(episode, hints=_replace(hints, session="any" if value else None))
        case "labels":
            return _replace(episode, hints=_replace(hints, labels=(*hints.labels, *value.items())))
        case "criticality" | "latency":
            return _replace(episode, **{field: first})
        case "tools" | "images":
            return _featured(episode, **{field: max(1, getattr(features, field)) if value else 0})
        case "code" | "math":
            had = getattr(features, field)
            return episode if (had >= 0.5) == value else _featured(episode, **{field: 1.0 if value else 0.0})
        case "min_lambda":
            return _replace(episode, money=_replace(episode.money, value=max(value, episode.money.value)))
        case "max_left_usd":
            return _replace(episode, money=_replace(episode.money, left_nano=int(value * NANO_PER_USD)))
        case "min_step":
            return _replace(episode, hints=_replace(hints, step=max(value, hints.step or 0)))
    side, _, name = field.partition("_")
    had = getattr(features, name)
    return _featured(episode, **{name: max(had, value) if side == "min" else min(had, value)})


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else ()


def _with_task(episode: Episode, task: Any) -> Episode:
    # A rule reads what the caller said of its task first, the estimator what stands in the features.
    hints = _replace(episode.hints, task=task) if episode.hints.task else episode.hints
    return _replace(episode, hints=hints, features=_replace(episode.features, task=task))


def _featured(episode: Episode, **changes: Any) -> Episode:
    return _replace(episode, features=_replace(episode.features, **changes))
