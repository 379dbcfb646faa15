"""Fresh requests, counted day by day until they are enough for a look: do they still look as in training, and whose go
to dear models more than they used to? What is remembered between two looks is small and holds no request. Pure.

A day's requests are looked at every hour, what has come until then. The looks of a day share the stated chance of a
false alarm, one in a hundred days. A finding is told once, and again when a whole day has gone by without it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from tierwise.core.ports import Record, Story
from tierwise.core.request import FEATURES_VERSION
from tierwise.core.rise import is_dear
from tierwise.study.table import inputs_of
from tierwise.study.training.histograms import MIX, Histogram, counted
from tierwise.watch import drift, skew
from tierwise.watch.drift import Drift, compared
from tierwise.watch.skew import Share, Skew

DAY_S = 86_400
LOOK_S = 3_600
LOOKS = DAY_S // LOOK_S
NOTABLE = 0.1  # an index below it is customarily read as nothing, however sure the test is
KEYS = 1_000  # that are remembered: those with the most requests
KEPT = 50  # findings in workloads, beside those of all requests together


class Drifting(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Requests of a day, in the bins of what training saw."""

    estimator: str = ""  # whose training they are compared with
    day: int = 0
    looked: int = 0  # the hour of the last look
    counts: tuple[tuple[int, ...], ...] = ()
    found: tuple[Drift, ...] = ()  # by the last look: of all requests together, and what drifted in workloads
    told: tuple[tuple[str, str], ...] = ()  # workload and feature, of findings that were told
    again: tuple[tuple[str, str], ...] = ()  # those that were found on this day


class Skewing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Requests of each key, and how many of them a dear model answered."""

    day: int = 0
    looked: int = 0
    before: dict[str, Share] = {}  # yesterday's, half of those of the day before, and so on
    now: dict[str, Share] = {}
    found: tuple[Skew, ...] = ()  # by the last look
    told: tuple[str, ...] = ()
    again: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------ what there is


def drifting(before: Drifting, stories: Iterable[Story], estimator: str, reference: Sequence[Histogram]) -> Drifting:
    """With these stories. Another estimator begins anew."""
    if before.estimator != estimator or [len(each) for each in before.counts] != [len(one.counts) for one in reference]:
        nothing = tuple((0,) * len(each.counts) for each in reference)
        before = Drifting(estimator=estimator, day=before.day, looked=before.looked, counts=nothing)
    episodes = [story.record.episode for story in stories if _answered(story.record)]
    episodes = [each for each in episodes if each.features.version == FEATURES_VERSION]
    if not episodes or not reference:
        return before
    new = counted(reference, inputs_of([each.features for each in episodes]), [each.workload for each in episodes])
    sums = (tuple(a + b for a, b in zip(old, more, strict=True)) for old, more in zip(before.counts, new, strict=True))
    return msgspec.structs.replace(before, counts=tuple(sums))


def skewing(before: Skewing, stories: Iterable[Story]) -> Skewing:
    """With these stories: those that a policy could send anywhere, of a key, with known prices."""
    pairs = ((story.record.episode.payer.key, _dear(story.record)) for story in stories)
    new = skew.shares((key, dear) for key, dear in pairs if key and dear is not None)
    return msgspec.structs.replace(before, now=_most(_together(before.now, new))) if new else before


def _answered(record: Record) -> bool:
    return record.outcome.status == "answered" and record.episode.kind == "chat"


def _dear(record: Record) -> bool | None:
    """None where it says nothing of how requests are routed: who names a model or a tier gets it."""
    episode = record.episode
    if not _answered(record) or episode.pinned or episode.policy.startswith("tier:"):
        return None
    return is_dear(record.outcome)


def _together(one: Mapping[str, Share], other: Mapping[str, Share], part: int = 1) -> dict[str, Share]:
    """`one` by 1/part, and the other whole."""
    found = {}
    for key in {**one, **other}:
        a, b = one.get(key, Share(0, 0)), other.get(key, Share(0, 0))
        share = Share(a.n // part + b.n, min(a.dear // part, a.n // part) + b.dear)
        if share.n:
            found[key] = share
    return found


def _most(of: Mapping[str, Share]) -> dict[str, Share]:
    if len(of) <= KEYS:
        return dict(of)
    return {key: of[key] for key in heapq.nlargest(KEYS, of, key=lambda key: (of[key].n, key))}


# ------------------------------------------------------------------------------------------------ a look


def look_at_drift(before: Drifting, reference: Sequence[Histogram], until_s: int) -> tuple[Drifting, tuple[Drift, ...]]:
    """When an hour is over: the same with what was found, and what is new of it and should be told."""
    if until_s // LOOK_S == before.looked:
        return before, ()
    found = compared(reference, before.counts, rate=drift.RATE / LOOKS) if before.counts else ()
    sure = [each for each in found if each.drifted and each.index >= NOTABLE]
    new = tuple(each for each in sure if (each.workload, each.feature) not in before.told)
    names = [(each.workload, each.feature) for each in sure]
    after = msgspec.structs.replace(
        before,
        looked=until_s // LOOK_S,
        found=(*(each for each in found if not each.workload), *[each for each in sure if each.workload][:KEPT]),
        told=tuple(dict.fromkeys((*before.told, *names))),
        again=tuple(dict.fromkeys((*before.again, *names))),
    )
    if before.day and until_s // DAY_S != before.day:
        nothing = tuple((0,) * len(each) for each in after.counts)
        after = msgspec.structs.replace(after, counts=nothing, told=after.again, again=())
    return msgspec.structs.replace(after, day=until_s // DAY_S), new


def look_at_skew(before: Skewing, until_s: int) -> tuple[Skewing, tuple[Skew, ...]]:
    """When an hour is over: the same with the keys that were found skewed, and those that should be told."""
    if until_s // LOOK_S == before.looked:
        return before, ()
    found = tuple(each for each in skew.skew(before.before, before.now, rate=skew.RATE / LOOKS) if each.skewed)
    names = [each.key for each in found]
    new = tuple(each for each in found if each.key not in before.told)
    after = msgspec.structs.replace(
        before,
        looked=until_s // LOOK_S,
        found=found[:KEPT],
        told=tuple(dict.fromkeys((*before.told, *names))),
        again=tuple(dict.fromkeys((*before.again, *names))),
    )
    if before.day and until_s // DAY_S != before.day:
        past = _most(_together(before.before, before.now, part=2))
        after = msgspec.structs.replace(after, before=past, now={}, told=after.again, again=())
    return msgspec.structs.replace(after, day=until_s // DAY_S), new


# ------------------------------------------------------------------------------------------------ words


def drift_words(each: Drift) -> str:
    where = f"workload {each.workload}" if each.workload else "all requests together"
    what = "the mixture of workloads" if each.feature == MIX else each.feature
    return f"{what} of {where} is no longer what it was in training (index {each.index:.2f}, {each.n:,} requests)"


def skew_words(each: Skew) -> str:
    return (
        f"{each.share:.0%} of {each.n:,} requests of key {each.key} went to dear models, where {each.expected:.0%} "
        "was expected of its past and of the other keys"
    )
