"""Does a rule's condition hold for this episode? One function over a closed set of fields."""

from __future__ import annotations

from collections.abc import Iterator

from tierwise.core.episode import Episode, Told
from tierwise.core.money import NANO_PER_USD
from tierwise.core.policy import When


def holds(when: When, episode: Episode) -> bool:
    """Whether every field that the condition gives holds."""
    return all(_tests(when, episode))


def _tests(when: When, episode: Episode) -> Iterator[bool]:
    features = episode.features
    if when.task is not None:
        # What the caller says of its own task is better known than what we read from the text.
        yield _among(episode.hints.task or features.task, when.task)
    if when.keywords is not None:
        yield any(word.casefold() in features.keywords for word in when.keywords)
    if when.template is not None:
        yield _among(features.template, when.template)
    if when.language is not None:
        yield any(_among(language, when.language) for language in features.languages)
    if when.criticality is not None:
        yield episode.criticality == when.criticality
    if when.latency is not None:
        yield _among(episode.latency, when.latency)
    if when.structured is not None:
        yield features.structured == when.structured
    for given, value in (
        (when.tools, features.tools > 0),
        (when.images, features.images > 0),
        (when.code, features.code >= 0.5),
        (when.math, features.math >= 0.5),
    ):
        if given is not None:
            yield given == value
    yield from _payer(when, episode)
    yield from _sizes(when, episode)
    if when.told is not None:
        said = {event.topic: event.answer for event in episode.events if isinstance(event, Told)}
        yield all(said.get(topic) == answer for topic, answer in when.told.items())


def _payer(when: When, episode: Episode) -> Iterator[bool]:
    payer = episode.payer
    for given, value in ((when.user, payer.user), (when.team, payer.team), (when.key, payer.key)):
        if given is not None:
            yield _among(value, given)
    if when.session is not None:
        yield when.session == bool(episode.hints.session)
    if when.labels is not None:
        labels = dict((*payer.tags, *episode.hints.labels))
        yield all(labels.get(name) == value for name, value in when.labels.items())
    if when.min_lambda is not None:
        yield episode.money.value >= when.min_lambda
    if when.max_left_usd is not None:
        left = episode.money.left_nano
        yield left is not None and left <= when.max_left_usd * NANO_PER_USD
    if when.min_step is not None:
        yield (episode.hints.step or 0) >= when.min_step


def _sizes(when: When, episode: Episode) -> Iterator[bool]:
    features = episode.features
    for least, value in (
        (when.min_input_tokens, features.input_tokens),
        (when.min_turns, features.turns),
        (when.min_complexity, features.complexity),
        (when.min_constraints, features.constraints),
    ):
        if least is not None:
            yield value >= least
    for most, value in (
        (when.max_input_tokens, features.input_tokens),
        (when.max_turns, features.turns),
        (when.max_complexity, features.complexity),
    ):
        if most is not None:
            yield value <= most


def _among(value: str, given: str | tuple[str, ...]) -> bool:
    return value == given if isinstance(given, str) else value in given
