"""What the caller asked of whoever answers: a least quality, a most latency. A wish that nobody can meet is met as
nearly as can be: the request goes on."""

from __future__ import annotations

import msgspec

from tierwise.core.episode import Episode
from tierwise.core.weigh import Weighed


class Wish(msgspec.Struct, frozen=True):
    """One wish against the candidates: who meets it, who does not, and whether anybody does."""

    name: str
    asked: float
    code: str  # why the others are passed over
    kept: tuple[Weighed, ...]
    others: tuple[Weighed, ...]
    unreachable: bool


def wishes(weighed: tuple[Weighed, ...], episode: Episode) -> list[Wish]:
    """Each wish in turn, of those who met the ones before it."""
    hints, found = episode.hints, []
    if hints.min_quality is not None:
        values = [each.quality.mid for each in weighed]
        found.append(
            _met(weighed, "min_quality", "below_min_quality", hints.min_quality, values, least=hints.min_quality)
        )
        weighed = found[-1].kept
    if hints.max_latency_ms is not None:
        left = hints.max_latency_ms - episode.elapsed_ms
        values = [-float(each.latency_ms) for each in weighed]
        found.append(_met(weighed, "max_latency_ms", "too_slow", left, values, least=-left))
    return found


def _met(
    weighed: tuple[Weighed, ...], name: str, code: str, asked: float, values: list[float], *, least: float
) -> Wish:
    unreachable = all(value < least for value in values)
    if unreachable:
        least = max(values)
    return Wish(
        name,
        asked,
        code,
        tuple(each for each, value in zip(weighed, values, strict=True) if value >= least),
        tuple(each for each, value in zip(weighed, values, strict=True) if value < least),
        unreachable,
    )
