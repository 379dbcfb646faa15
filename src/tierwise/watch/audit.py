"""What fresh traffic says of a promise: journal stories in which a reply that the reference did not give stands beside
what the reference would have given, each with a label. Pure.

Only requests that a cheaper model answered are compared, and only some of them: those of which chance had the reference
asked as well, and both replies labelled. Their loss times the share of the promise's requests that cheaper models
answer is the loss per request, which is what was promised.

A request counts once: with what was said of it when it was settled, an hour after it came, if both replies had a label
by then; else with what was said when the second came, however late. What is said after that changes nothing here. The
bound holds whatever the order, as long as neither whether a pair is labelled nor how soon depends on what its replies
are worth, beyond what is known of the request. Where complaints come sooner than praise, it withdraws too early rather
than too late. What comes with one key is at most twice a key's part of what is compared, and a twentieth where there
are forty: else one key could withdraw a promise, or keep it. Who is passed over is known before what they said is
looked at, so the bound holds still.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from zlib import crc32

import msgspec

from tierwise.core.ports import Heard, Late, Story
from tierwise.core.promise import Promise
from tierwise.study.data import labels
from tierwise.study.data.intake import Said, Taken, delivered, taken_of
from tierwise.watch.fresh import Drifting, Skewing
from tierwise.watch.promises import Observation, Watch, judge, watching

KEYS = 1 << 10  # that are told apart of a segment, by a hash of their names


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one segment that its promise ruled, and those of them that the reference did not answer."""

    promise: str
    made_s: int
    workload: str  # the segment's
    requests: float
    spared: float
    judges: dict[int, int] = {}  # a hash of a key -> comparisons that rest on what came with it


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
        count = msgspec.structs.replace(count, requests=count.requests + 1, spared=count.spared + spared)
        counts[key], observed = _observed(story, promise, workload, count)
        observations += observed
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
        counts[key], observed = _observed(story.now, *ruled, counts[key])
        observations += observed
    return _judged(seen, counts, observations, known)


def _observed(story: Story, promise: Promise, workload: str, count: Count) -> tuple[Count, list[Observation]]:
    """One where both replies are labelled, and the key behind that has not said too much; and the count with it."""
    compared = _compared(story, promise.reference)
    if compared is None or not count.requests:
        return count, []
    loss, key = compared
    if key:
        mine = crc32(key.encode()) % KEYS
        judges = {**count.judges, mine: count.judges.get(mine, 0) + 1}
        if judges[mine] > max(max(labels.KEY_SHARE, 2 / len(judges)) * sum(judges.values()), 1):
            return count, []
        count = msgspec.structs.replace(count, judges=judges)
    share = count.spared / count.requests
    return count, [Observation(promise.name, workload, max(-1.0, min(1.0, loss * share)))]


def _was_compared(before: Story, reference: str) -> bool:
    """Whether both replies had a label at some time before. More is said, and nothing is taken back, but for feedback:
    who changes their mind may make a label weaker, so every state that it was in is looked at."""
    said = before.feedback
    return any(_compared(Story(before.record, said[:n]), reference) is not None for n in range(len(said), -1, -1))


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


def _compared(story: Story, reference: str) -> tuple[float, str] | None:
    """The loss, and the key that most of it rests on ("" where none does). None unless both replies have a label that
    may be trusted."""
    at = delivered(story.record)
    if at is None:
        return None
    model = story.record.episode.events[at].model
    if model == reference:
        return None
    taken = taken_of(story)
    own, best = _said(taken, model), _said(taken, reference)
    if own is None or best is None:
        return None
    heaviest = max((*own[1], *best[1]), key=lambda said: said.weight)
    return best[0] - own[0], heaviest.root or heaviest.key


def _said(taken: Taken, model: str) -> tuple[float, tuple[Said, ...]] | None:
    for reply in taken.replies:
        if reply.outcome.model == model:
            quality, weight = labels.combined((said.score, said.weight) for said in reply.said)
            return (quality, reply.said) if quality is not None and weight >= labels.SOUND_WEIGHT else None
    return None
