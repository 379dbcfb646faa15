"""What fresh traffic says of a promise: journal stories in which a reply that the reference did not give stands beside
what the reference would have given, each with a label. Pure.

Only requests that a cheaper model answered are compared, and only some of them: those of which chance had the reference
asked as well, and both replies labelled. Their loss times the share of the promise's requests that cheaper models
answer is the loss per request, which is what was promised.

A request counts once: with what was said of it when it was settled, an hour after it came, if both replies had a label
by then; else with what was said when the second came, however late. What is said after that changes nothing here. The
bound holds whatever the order, as long as neither whether a pair is labelled nor how soon depends on what its replies
are worth, beyond what is known of the request. Where complaints come sooner than praise, it withdraws too early rather
than too late.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from tierwise.core.ports import Heard, Late, Story
from tierwise.core.promise import Promise
from tierwise.study.data import labels
from tierwise.study.data.intake import Taken, delivered, taken_of
from tierwise.watch.fresh import Drifting, Skewing
from tierwise.watch.promises import Observation, Watch, judge, watching


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one segment that its promise ruled, and those of them that the reference did not answer."""

    promise: str
    made_s: int
    workload: str  # the segment's
    requests: float
    spared: float


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """All that is remembered between two looks."""

    until_s: int  # stories that began before are settled: counted, and compared if both replies had a label
    heard: Heard | None = None  # until where labels are known; None: nothing is settled yet
    watch: Watch = Watch()
    counts: tuple[Count, ...] = ()
    drifting: Drifting = Drifting()
    skewing: Skewing = Skewing()


class Broken(msgspec.Struct, frozen=True):
    """A segment that must be withdrawn, and why, in a sentence."""

    promise: str
    workload: str
    why: str


def look(
    seen: Seen, stories: Iterable[Story], promises: Iterable[Promise], until_s: int
) -> tuple[Seen, tuple[Broken, ...]]:
    """The same with what these stories, which began before `until_s` and are now settled, add; and what they refute."""
    known = {each.name: each for each in promises}
    counts = _counts(seen.counts, known.values())
    observations = []
    for story in stories:
        ruled = _ruled(story, known)
        if ruled is None or (key := _place(*ruled)) not in counts:
            continue
        promise, workload = ruled
        spared = story.record.outcome.routed != promise.reference
        count = counts[key]
        counts[key] = count = msgspec.structs.replace(count, requests=count.requests + 1, spared=count.spared + spared)
        observations += _observed(story, promise, workload, count)
    return _judged(msgspec.structs.replace(seen, until_s=until_s), counts, observations, known)


def look_at_late(seen: Seen, stories: Iterable[Late], promises: Iterable[Promise]) -> tuple[Seen, tuple[Broken, ...]]:
    """The same with the settled stories whose second label came now; they were counted when they were settled."""
    known = {each.name: each for each in promises}
    counts = _counts(seen.counts, known.values())
    observations = []
    for story in stories:
        ruled = _ruled(story.now, known)
        if ruled is None or (key := _place(*ruled)) not in counts or _was_compared(story.before, ruled[0].reference):
            continue
        observations += _observed(story.now, *ruled, counts[key])
    return _judged(seen, counts, observations, known)


def _observed(story: Story, promise: Promise, workload: str, count: Count) -> list[Observation]:
    """One where both replies are labelled, else none."""
    loss = _loss(story, promise.reference)
    if loss is None or not count.requests:
        return []
    share = count.spared / count.requests
    return [Observation(promise.name, workload, max(-1.0, min(1.0, loss * share)))]


def _was_compared(before: Story, reference: str) -> bool:
    """Whether both replies had a label at some time before. More is said, and nothing is taken back, but for feedback:
    who changes their mind may make a label weaker, so every state that it was in is looked at."""
    said = before.feedback
    return any(_loss(Story(before.record, said[:n]), reference) is not None for n in range(len(said), -1, -1))


def _place(promise: Promise, workload: str) -> tuple[str, str]:
    found = promise.segment(workload)
    return promise.name, found.workload if found else ""


def _judged(
    seen: Seen, counts: dict[tuple[str, str], Count], observations: list[Observation], promises: Mapping[str, Promise]
) -> tuple[Seen, tuple[Broken, ...]]:
    watch, verdicts = judge(watching(promises.values(), seen.watch), observations)
    broken = tuple(Broken(each.promise, each.workload, each.why) for each in verdicts if each.broken)
    return msgspec.structs.replace(seen, watch=watch, counts=tuple(counts.values())), broken


def _counts(before: Iterable[Count], promises: Iterable[Promise]) -> dict[tuple[str, str], Count]:
    """Of every certified segment; a new one begins with what calibration has counted."""
    kept = {(each.promise, each.made_s, each.workload): each for each in before}
    found = {}
    for promise in promises:
        for segment in promise.segments:
            if segment.status == "certified":
                begun = Count(
                    promise=promise.name,
                    made_s=promise.made_s,
                    workload=segment.workload,
                    requests=float(segment.n),
                    spared=segment.share * segment.n,
                )
                key = (promise.name, promise.made_s, segment.workload)
                found[promise.name, segment.workload] = kept.get(key, begun)
    return found


def _ruled(story: Story, promises: Mapping[str, Promise]) -> tuple[Promise, str] | None:
    """The promise under which this request was answered, and its workload."""
    record = story.record
    if record.outcome.status != "answered" or record.episode.kind != "chat":
        return None
    for decision in record.decisions:
        for reason in decision.reasons:
            if reason.code == "promise_holds":
                promise = promises.get(str(dict(reason.facts).get("promise", "")))
                # One that was made anew since says nothing of the old one's requests, and they nothing of it.
                if promise is not None and promise.made_s <= record.episode.at_s:
                    return promise, record.episode.workload
    return None


def _loss(story: Story, reference: str) -> float | None:
    """None unless both replies have a label that may be trusted."""
    at = delivered(story.record)
    if at is None:
        return None
    model = story.record.episode.events[at].model
    if model == reference:
        return None
    taken = taken_of(story)
    own, best = _quality(taken, model), _quality(taken, reference)
    return None if own is None or best is None else best - own


def _quality(taken: Taken, model: str) -> float | None:
    for reply in taken.replies:
        if reply.outcome.model == model:
            quality, weight = labels.combined((said.score, said.weight) for said in reply.said)
            return quality if weight >= labels.SOUND_WEIGHT else None
    return None
