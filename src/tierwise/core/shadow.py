"""The model that is asked as well, for learning alone, once the usual plan's reply is delivered: who, what it may cost,
and who grades the two replies. Pure; a part of `decide`.

Nobody waits for a shadow and nobody who asked pays for it, so it takes nothing of the request's own limits, money or
attempts: it is weighed and held as a request of its own, under the tag EXPLORATION alone.
"""

from __future__ import annotations

import msgspec

from tierwise.core.attempt import Attempts
from tierwise.core.budget import Lambda
from tierwise.core.catalogue import Model
from tierwise.core.episode import Answer, Call, Decision, Episode, Grade, Reason, Replied, Serve
from tierwise.core.policy import Exploration
from tierwise.core.request import EXPLORATION, Hints, Payer
from tierwise.core.snapshot import Snapshot
from tierwise.core.weigh import Weighed, weigh

# One draw serves several choices: its leading digits say which model is the shadow, the rest the choices below. This is
# divided by 1 to 12, so for so many models the two are independent of each other.
_DIGITS = 27_720


class Due(msgspec.Struct, frozen=True):
    """The dice want a shadow: one of these models. `chance` is uniform in 0..1."""

    exploration: Exploration
    models: tuple[Model, ...]
    graders: tuple[Model, ...]
    at: str
    chance: float


def rest_of(draw: float, rate: float) -> tuple[float | None, float]:
    """(which shadow, uniform in 0..1, None for none; the draw that the plans below have, again uniform)"""
    if draw >= rate:
        return None, (draw - rate) / (1 - rate)
    chance = draw / rate
    return chance, chance * _DIGITS % 1.0


def shadowed(snapshot: Snapshot, episode: Episode, decision: Decision, due: Due) -> Decision:
    """The decision that ends a story, with its shadow: a model that has not answered this request already."""
    if not isinstance(decision.step, Answer) or episode.kind != "chat":
        return decision
    answered = {event.model for event in episode.events if isinstance(event, Replied)}
    models = [model for model in _askable(due.models, episode) if model.id not in answered]
    if not models:
        return decision
    chosen = models[min(int(due.chance * len(models)), len(models) - 1)]
    attempts = Attempts(snapshot, snapshot.policies[episode.policy], alone(episode), {}, [])
    attempts.explored = True
    call = attempts.call(f"{due.at}/shadow", _weighed(attempts, chosen), False, Serve())
    if call is None:
        return decision
    if episode.features.max_tokens is None:  # what is held is what the provider is told, so the worst case is one
        call = msgspec.structs.replace(call, max_tokens=chosen.max_output_tokens)
    odds = round(due.exploration.rate / len(models), 6)
    reasons = [Reason(due.at, "shadow", (("model", chosen.id), ("rate", due.exploration.rate), ("odds", odds)))]
    grades: tuple[Call, ...] = ()
    if due.exploration.grader:
        grades = _grades(attempts, episode, due, decision.step.event, chosen)
        if not grades:
            reasons.append(Reason(due.at, "shadow_ungraded", (("model", chosen.id),)))
    return msgspec.structs.replace(decision, reasons=(*decision.reasons, *reasons), shadow=call, grades=grades)


def _grades(attempts: Attempts, episode: Episode, due: Due, delivered: int, chosen: Model) -> tuple[Call, ...]:
    """Of both replies, by one model that wrote neither; () when there is none."""
    judged = {chosen.id, episode.events[delivered].model}
    judge = next((model for model in _askable(due.graders, episode) if model.id not in judged), None)
    if judge is None:
        return ()
    both = [delivered, len(episode.events)]
    if due.chance * _DIGITS * 2 % 1.0 < 0.5:  # whatever a grader makes of the first one must favour neither
        both.reverse()
    weighed = _weighed(attempts, judge)
    calls = (attempts.call(f"{due.at}/shadow!{of}", weighed, False, Grade(of, due.exploration.rubric)) for of in both)
    return tuple(call for call in calls if call is not None)


def _weighed(attempts: Attempts, model: Model) -> Weighed:
    return weigh(attempts.snapshot, attempts.episode, (model,), attempts.policy.amounts)[0]


def alone(episode: Episode) -> Episode:
    """The same request as one that nobody made: for its shadow, which no limit of the caller's bounds or pays."""
    return msgspec.structs.replace(
        episode,
        id=f"{episode.id}-shadow",
        payer=Payer(tags=(EXPLORATION,)),
        hints=Hints(),
        money=Lambda(),
        events=(),
    )


def exploring(payer: Payer) -> Payer:
    """Who pays for a call that chance chose: the same, and the budget of exploration above them."""
    if EXPLORATION in payer.tags:
        return payer
    return msgspec.structs.replace(payer, tags=(*payer.tags, EXPLORATION))


def _askable(models: tuple[Model, ...], episode: Episode) -> list[Model]:
    """Awake, and with a price: what nobody waits for is not worth a cost that nobody knows."""
    resting = dict(episode.resting)
    return [model for model in models if model.id not in resting and model.price is not None]
