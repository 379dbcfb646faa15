"""The sums of journal records that reports are made of. Pure; every journal shares it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tierwise.core.ports import Record

RECENT_MAX = 10_000  # records in one answer of `recent`
HOUR_S = 3_600
# The most that a column takes of one record, so that sums stay within 64 bits. The record keeps the exact number.
COLUMN_MAX = 1 << 53


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """What one model did in a span of whole hours. `model` is the routed one; "" for requests that none answered."""

    model: str
    requests: int
    cost_nano: int  # of the requests whose cost is known
    baseline_nano: int  # of the requests whose baseline is known
    saved_nano: int  # baseline - cost, of the requests where both are known
    unpriced: int  # requests whose cost is not known: never counted as free
    input_tokens: int
    output_tokens: int


def counts(record: Record) -> bool:
    """A dry run is kept, and costs and counts nothing."""
    return record.outcome.status != "dry_run"


def sums(record: Record) -> tuple[int, int, int, int, int, int, int]:
    """One record's share of a `Total`, in the order of its fields after `model`."""
    outcome = record.outcome
    cost, baseline, usage = outcome.cost_nano, outcome.baseline_nano, outcome.usage
    paid, alone, read, written = numbers = (cost or 0, baseline or 0, usage.prompt_tokens, usage.completion_tokens)
    if max(numbers) > COLUMN_MAX or min(numbers) < -COLUMN_MAX:
        paid, alone, read, written = [max(-COLUMN_MAX, min(number, COLUMN_MAX)) for number in numbers]
    saved = 0 if cost is None or baseline is None else alone - paid
    return 1, paid, alone, saved, int(cost is None), read, written


def with_grams(record: Record, grams: bytes) -> Record:
    replace = msgspec.structs.replace
    return replace(record, episode=replace(record.episode, features=replace(record.episode.features, grams=grams)))


def newest(records: Iterable[Record], limit: int) -> list[Record]:
    """At most `limit` records by the time they began, the newest first; of one second, the last written first."""
    found = list(records)[::-1]
    found.sort(key=lambda record: -record.episode.at_s)  # stable
    return found[: max(limit, 0)]


def totals_of(records: Iterable[Record], since_s: int) -> list[Total]:
    """Sums for each model since the full hour of `since_s`, the dearest first."""
    first_s = since_s - since_s % HOUR_S
    by_model: dict[str, tuple[int, ...]] = {}
    for record in records:
        if counts(record) and record.episode.at_s >= first_s:
            old = by_model.get(record.outcome.routed, (0,) * 7)
            by_model[record.outcome.routed] = tuple(a + b for a, b in zip(old, sums(record), strict=True))
    names = Total.__struct_fields__[1:]
    totals = [Total(model=model, **dict(zip(names, sum_, strict=True))) for model, sum_ in by_model.items()]
    return sorted(totals, key=lambda total: (-total.cost_nano, total.model))
