"""From the journal to outcome tables: what each model's reply to a request cost and took, and what was said of it.

An answered request gives the outcome of the reply that was delivered. One that climbed gives those of the replies that
were passed over as well, and shadow replies are outcomes like any other: rows where two models answered, from which a
gain is learnt. What was said late is there when the tables are made again.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from tierwise.core.episode import Answer, Call, Denied, Event, Fact, Replied, ReplyFacts, Serve, Told
from tierwise.core.ports import Feedback, Record, Story
from tierwise.study.data import labels
from tierwise.study.data.columns import LabelRow, OutcomeRow, PromptRow
from tierwise.study.data.files import write
from tierwise.study.data.prompts import text_of

LATE_S = 86_400  # what is said later than this after the request is counted as late
NANO = 1e9
TEXT_KEPT = 1_000_000  # characters of one prompt: a longer line no reader of tables takes, and the features are whole


class Said(msgspec.Struct, frozen=True):
    """One label of one reply, as it came."""

    source: str
    score: float
    at_s: int
    key: str = ""
    root: str = ""  # the first of the keys that made this one; itself where none did

    @property
    def weight(self) -> float:
        return labels.weight(self.source, self.score)


class Reply(msgspec.Struct, frozen=True):
    """One model's reply to one request, and its labels."""

    outcome: OutcomeRow
    said: tuple[Said, ...]


class Taken(msgspec.Struct, frozen=True):
    """One episode as it waits on disk until the weights of all are known."""

    prompt: PromptRow
    replies: tuple[Reply, ...]


class Intake:
    """Takes stories one by one and writes them as outcome tables at the end; on disk meanwhile. Use it as a context
    manager. `finish` gives the report."""

    def __init__(self, folder: Path | str, name: str = "journal", key_share: float = labels.KEY_SHARE) -> None:
        self.folder = Path(folder)
        self.name = name
        self._key_share = key_share
        self._staged: IO[bytes] = tempfile.TemporaryFile(prefix="tierwise-intake-")  # noqa: SIM115  # until __exit__
        self._encode = msgspec.json.Encoder().encode
        self._weights: Weights = defaultdict(lambda: defaultdict(float))
        self._sources: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def __enter__(self) -> Intake:
        return self

    def __exit__(self, *_: object) -> None:
        self._staged.close()

    def add(self, story: Story) -> None:
        record = story.record
        self._counts["episodes"] += 1
        if record.outcome.status != "answered" or record.episode.kind != "chat":
            why = record.outcome.status if record.outcome.status != "answered" else record.episode.kind
            self._skipped[why] += 1
            self._counts["feedback of no use"] += len(story.feedback)
            return
        taken = taken_of(story)
        if not taken.replies:
            self._skipped["no reply"] += 1
            return
        self._counts["answered"] += 1
        self._counts["replies"] += len(taken.replies)
        self._counts["several models"] += len(taken.replies) > 1
        self._counts["denied"] += exploration_denied(record)
        self._counts["shadows"] += any(isinstance(event, Replied) for event in record.shadows)
        totals = self._weights[record.episode.workload]
        for reply in taken.replies:
            self._counts["labelled"] += bool(reply.said)
            for each in reply.said:
                self._sources[each.source] += 1
                self._counts["late"] += each.at_s > record.episode.at_s + LATE_S
                totals[each.root, each.key] += each.weight
        self._staged.write(self._encode(taken) + b"\n")

    @property
    def episodes(self) -> int:
        return self._counts["episodes"]

    @property
    def answered(self) -> int:
        return self._counts["answered"]

    def finish(self, stray_feedback: int = 0) -> IntakeReport:
        """Writes the tables. `stray_feedback`: how often something was said of an episode that the journal lacks."""
        factors = _factors(self._weights, self._key_share)
        files = write(
            self.folder,
            self.name,
            (taken.prompt for taken in self._again()),
            (_labelled(taken, reply, factors) for taken in self._again() for reply in taken.replies),
            (row for taken in self._again() for reply in taken.replies for row in _label_rows(taken, reply, factors)),
        )
        capped: dict[str, float] = {}
        for (_, key), factor in factors.items():
            capped[key] = min(factor, capped.get(key, 1.0))
        return IntakeReport(
            files=tuple(map(str, files)),
            episodes=self._counts["episodes"],
            answered=self._counts["answered"],
            skipped=tuple(self._skipped.most_common()),
            replies=self._counts["replies"],
            labelled=self._counts["labelled"],
            several_models=self._counts["several models"],
            shadows=self._counts["shadows"],
            denied=self._counts["denied"],
            sources=tuple(self._sources.most_common()),
            late=self._counts["late"],
            stray_feedback=stray_feedback + self._counts["feedback of no use"],
            capped=tuple(sorted(capped.items(), key=lambda each: each[1])),
        )

    def _again(self) -> Iterator[Taken]:
        self._staged.seek(0)
        decode = msgspec.json.Decoder(Taken).decode
        for line in self._staged:
            yield decode(line)


class IntakeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was taken in, and what was not."""

    files: tuple[str, ...]
    episodes: int
    answered: int
    skipped: tuple[tuple[str, int], ...]  # why -> episodes
    replies: int
    labelled: int  # replies of which something was said
    several_models: int  # requests that more than one model answered
    shadows: int  # of those by a shadow
    denied: int  # requests whose odds are left out, because the chosen exploration was not to be had
    sources: tuple[tuple[str, int], ...]  # -> labels
    late: int
    stray_feedback: int  # about no answered episode that is here: counted, and of no use
    capped: tuple[tuple[str, float], ...]  # key -> by what its labels' weight was multiplied, at least somewhere


# ------------------------------------------------------------------------------------------------ one episode


def taken_of(story: Story) -> Taken:
    """All that one answered episode gives: pure, and without the weights that depend on the others."""
    record = story.record
    episode = record.episode
    at = delivered(record)
    replies = _replies(record, at)
    return Taken(
        PromptRow(
            prompt_id=episode.id,
            prompt=(text_of(record.prompt) or "")[:TEXT_KEPT] or None if record.prompt else None,
            workload=episode.workload or None,
            features=msgspec.json.encode(episode.features).decode(),
            at_s=episode.at_s,
        ),
        tuple(
            Reply(_outcome(record, reply), _said(record, index, reply, replies, story.feedback if index == at else ()))
            for index, reply in replies.items()
        ),
    )


def delivered(record: Record) -> int | None:
    """The event whose reply the caller got; None when there is none."""
    for decision in reversed(record.decisions):
        if isinstance(decision.step, Answer):
            return decision.step.event
    events = record.episode.events
    mine = [i for i, event in enumerate(events) if isinstance(event, Replied) and event.model == record.outcome.routed]
    return mine[-1] if mine else None


def _replies(record: Record, at: int | None) -> dict[int, Replied]:
    """One for each model: what was delivered, else its last in the story, else its shadow."""
    events = _events(record)
    found: dict[str, int] = {}
    for index, event in enumerate(events):
        if isinstance(event, Replied) and (event.model not in found or index < len(record.episode.events)):
            found[event.model] = index
    if at is not None and isinstance(reply := events[at], Replied):
        found[reply.model] = at
    return {index: event for index in sorted(found.values()) if isinstance(event := events[index], Replied)}


def _events(record: Record) -> tuple[Event, ...]:
    """Shadows are numbered on from the events of the episode."""
    return (*record.episode.events, *record.shadows)


def _outcome(record: Record, reply: Replied) -> OutcomeRow:
    usage = reply.usage
    return OutcomeRow(
        prompt_id=record.episode.id,
        model=reply.model,
        cost_usd=None if reply.cost_nano is None else reply.cost_nano / NANO,
        input_tokens=usage.input_tokens
        + usage.cached_input_tokens
        + usage.cache_write_5m_tokens
        + usage.cache_write_1h_tokens
        + usage.input_audio_tokens,
        output_tokens=usage.output_tokens + usage.reasoning_tokens + usage.output_audio_tokens,
        latency_s=reply.latency_ms / 1_000 if reply.latency_ms else None,
        pred=reply.facts.answer_key or None,
        odds=_odds(record, reply.model),
        at_s=record.episode.at_s,
    )


def exploration_denied(record: Record) -> bool:
    """Whether the dice chose to explore and the ledger said no. The usual plan answered then whatever the dice said, so
    the odds that were logged are not those at which it did."""
    return any(isinstance(event, Denied) and event.explored for event in record.episode.events)


def _odds(record: Record, model: str) -> float | None:
    """The chance with which this model was asked, as it was when that was decided; None where chance had no say."""
    for decision in record.decisions:
        step = decision.step
        odds: Fact = None
        if isinstance(step, Call) and isinstance(step.about, Serve) and step.model == model:
            odds = None if exploration_denied(record) else dict(decision.odds).get(model)
        elif decision.shadow is not None and decision.shadow.model == model:
            facts = [dict(reason.facts) for reason in decision.reasons if reason.code == "shadow"]
            odds = next((each.get("odds") for each in facts if each.get("model") == model), None)
        else:
            continue
        return odds if isinstance(odds, float) and odds > 0.0 else None
    return None


def _said(
    record: Record, index: int, reply: Replied, replies: dict[int, Replied], feedback: tuple[Feedback, ...]
) -> tuple[Said, ...]:
    episode = record.episode
    now_s = episode.at_s + reply.after_ms // 1_000
    found = [Said(f"{labels.CHECK}:{name}", float(passed), now_s) for name, passed in reply.facts.checks]
    found += [
        Said(labels.GRADER, min(max(told.score, 0.0), 1.0), episode.at_s + told.after_ms // 1_000)
        for told in _events(record)
        if isinstance(told, Told) and told.topic == "grade" and told.of == index and told.score is not None
    ]
    others = [other for at, other in replies.items() if at != index]
    same = _agreement(reply.facts, [other.facts for other in others])
    # Of two that differ, nothing is said of the one that was delivered.
    if same is not None and (same or index != delivered(record)):
        found.append(Said(labels.AGREEMENT, float(same), now_s))
    latest: dict[tuple[str, str], Said] = {}  # who says the same thing twice says it once; a change of mind counts
    for each in feedback:
        if 0.0 <= each.score <= 1.0:
            payer = each.payer
            root = payer.within[0] if payer.within else payer.key
            latest[payer.key, each.source] = Said(each.source, each.score, each.at_s, payer.key, root)
    return (*found, *latest.values())


def _agreement(own: ReplyFacts, others: list[ReplyFacts]) -> bool | None:
    """Whether another reply has the same final answer; None where nothing can be compared. Overlapping texts are no
    label: that two texts differ says nothing of either."""
    known = [other.answer_key == own.answer_key for other in others if other.answer_key and own.answer_key]
    return any(known) if known else None


# ------------------------------------------------------------------------------------------------ all together

Weights = dict[str, dict[tuple[str, str], float]]  # workload -> root and key -> weight of its labels
Factors = dict[tuple[str, str], float]  # workload and key -> what its labels are multiplied by, below 1


def _factors(weights: Weights, share: float) -> Factors:
    """So that no key weighs too much in a workload, then so that none does in all, then so that none does together with
    the keys it has made. Labels that came with no key are not bounded."""
    found: Factors = {}
    rest = sum(by_key.get(("", ""), 0.0) for by_key in weights.values())
    keys: dict[str, float] = defaultdict(float)
    for workload, by_key in weights.items():
        keyed = {key: weight for (_, key), weight in by_key.items() if key}
        for key, factor in labels.shares(keyed, by_key.get(("", ""), 0.0), share).items():
            found[workload, key] = factor
            keys[key] += factor * keyed[key]
    of_keys = labels.shares(keys, rest, share)
    root_of = {key: root for by_key in weights.values() for root, key in by_key if key}
    roots: dict[str, float] = defaultdict(float)
    for key, weight in keys.items():
        roots[root_of[key]] += weight * of_keys[key]
    of_roots = labels.shares(roots, rest, share)
    every = {(place, key): each * of_keys[key] * of_roots[root_of[key]] for (place, key), each in found.items()}
    return {place: factor for place, factor in every.items() if factor < 1.0}


def _weight(taken: Taken, said: Said, factors: Factors) -> float:
    return said.weight * factors.get((taken.prompt.workload or "", said.key), 1.0)


def _labelled(taken: Taken, reply: Reply, factors: Factors) -> OutcomeRow:
    quality, weight = labels.combined((said.score, _weight(taken, said, factors)) for said in reply.said)
    return msgspec.structs.replace(reply.outcome, quality=quality, weight=weight or None)


def _label_rows(taken: Taken, reply: Reply, factors: Factors) -> Iterator[LabelRow]:
    for said in reply.said:
        yield LabelRow(
            prompt_id=taken.prompt.prompt_id,
            model=reply.outcome.model,
            source=said.source,
            key=said.key or None,
            score=said.score,
            weight=_weight(taken, said, factors),
            at_s=said.at_s,
        )
