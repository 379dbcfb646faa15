"""Past episodes under another snapshot: which decisions would change, and what that would have cost and been worth.

A past event stands for as long as the new snapshot asks the same model for the same thing; from the first call that it
would have made otherwise nobody knows how the story goes on, and none is invented. What can be said then is what the
new estimator expects, and, where the log has odds, what the outcomes themselves say (`offpolicy`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from tierwise.core.decide import decide
from tierwise.core.episode import (
    Answer,
    Ask,
    Call,
    Decision,
    Denied,
    Episode,
    Event,
    Failed,
    Grade,
    Refuse,
    Serve,
    Told,
)
from tierwise.core.learned import Trained
from tierwise.core.ports import Record
from tierwise.core.snapshot import Snapshot
from tierwise.core.weigh import Weighed, weigh
from tierwise.study.data.intake import exploration_denied
from tierwise.study.judging import offpolicy

CHANGES_TOLD = 20


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A request that would have gone another way. Models are the first that differ; "" is a refusal. Costs and
    qualities are expected, both by the new snapshot; None where it does not know the old model."""

    id: str
    workload: str
    was: str
    now: str
    code: str = ""  # of the refusal
    cost_nano: int | None = None  # now, less what it was
    quality: float | None = None


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """`costs` and `qualities`: off-policy estimates of the new snapshot's mean cost (dollars) and quality a request,
    with what was logged beside them; empty where no odds were logged."""

    snapshot: str
    episodes: int
    left_out: int  # pinned to one model, or of a kind that no policy of the new snapshot answers
    changed: int
    moves: tuple[tuple[str, str, int], ...]  # was, now, how often; the most frequent first
    expected_cost_usd: float  # change over all changed requests together
    expected_quality: float  # mean change of a changed request
    examples: tuple[Change, ...]
    logged: int  # requests with odds
    denied: int  # requests that are none of those, because the exploration that the dice chose was not to be had
    labelled: int  # of them with a quality
    costs: tuple[offpolicy.Value, ...]
    logged_cost_usd: float | None
    qualities: tuple[offpolicy.Value, ...]
    logged_quality: float | None
    notes: tuple[str, ...]


class _Story(msgspec.Struct, frozen=True):
    """One episode under the new snapshot. `first`: what it would decide before anything happened."""

    record: Record
    episode: Episode
    first: Decision
    change: Change | None


def replay(snapshot: Snapshot, records: Sequence[Record], labels: Mapping[str, float]) -> Replay:
    """Tell each episode again. `labels`: quality 0..1 by episode, as far as it is known."""
    stories = []
    for record in records:
        policy = record.episode.policy if record.episode.policy in snapshot.policies else "default"
        if record.episode.pinned or policy not in snapshot.policies:
            continue
        episode = msgspec.structs.replace(record.episode, snapshot=snapshot.hash, policy=policy, events=())
        stories.append(_told(snapshot, record, episode))
    changes = [each.change for each in stories if each.change]
    moves: dict[tuple[str, str], int] = {}
    for each in changes:
        moves[each.was, each.now] = moves.get((each.was, each.now), 0) + 1
    thrown = [each for each in stories if _odds(each.record) and _first_call(each.record) is not None]
    logged = [each for each in thrown if not exploration_denied(each.record)]
    labelled = [each for each in logged if each.record.episode.id in labels]
    priced = [each for each in logged if each.record.outcome.cost_nano is not None]
    costs = [(each.record.outcome.cost_nano or 0) / 1e9 for each in priced]
    quality = [labels[each.record.episode.id] for each in labelled]
    worth = [each.quality for each in changes if each.quality is not None]
    return Replay(
        snapshot=snapshot.hash,
        episodes=len(stories),
        left_out=len(records) - len(stories),
        changed=len(changes),
        moves=tuple((was, now, n) for (was, now), n in sorted(moves.items(), key=lambda each: -each[1])),
        expected_cost_usd=sum(each.cost_nano or 0 for each in changes) / 1e9,
        expected_quality=sum(worth) / len(worth) if worth else 0.0,
        examples=tuple(changes[:CHANGES_TOLD]),
        logged=len(logged),
        denied=len(thrown) - len(logged),
        labelled=len(labelled),
        costs=_estimated(snapshot, priced, costs, by_quality=False),
        logged_cost_usd=float(np.mean(costs)) if costs else None,
        qualities=_estimated(snapshot, labelled, quality, by_quality=True),
        logged_quality=float(np.mean(quality)) if quality else None,
        notes=tuple(_notes(snapshot, stories, len(thrown) - len(logged), logged, labelled)),
    )


# ------------------------------------------------------------------------------------------------ one story


def _told(snapshot: Snapshot, record: Record, episode: Episode) -> _Story:
    first = decision = decide(snapshot, episode)
    for event in record.episode.events:
        step = decision.step
        if not isinstance(step, Call) or not _stands_for(event, step):
            return _Story(record, episode, first, _change(snapshot, record, episode, event.model, step))
        episode = episode.then(msgspec.structs.replace(event, at=step.at))
        decision = decide(snapshot, episode)
    match decision.step:
        case Call() as step:
            # The story ended here, so whoever was delivered then is not content now.
            return _Story(record, episode, first, _change(snapshot, record, episode, record.outcome.routed, step))
        case Answer() | Refuse():
            return _Story(record, episode, first, None)


def _stands_for(event: Event, call: Call) -> bool:
    if event.model != call.model:
        return False
    match event:
        case Told(topic=topic):
            asked = call.about
            return (isinstance(asked, Ask) and asked.topic == topic) or (isinstance(asked, Grade) and topic == "grade")
        case Failed(helper=helper):
            return helper != isinstance(call.about, Serve)
        case Denied():
            return True
        case _:
            return isinstance(call.about, Serve)


def _change(snapshot: Snapshot, record: Record, episode: Episode, was: str, step: Call | Answer | Refuse) -> Change:
    id, workload = record.episode.id, record.episode.workload
    match step:
        case Refuse(code=code):
            return Change(id=id, workload=workload, was=was, now="", code=code)
        case Answer(event=event):
            now = episode.events[event].model
        case Call(model=now):
            pass
    known = _weighed(snapshot, episode)
    old, new = known.get(was), known.get(now)
    if old is None or new is None:
        return Change(id=id, workload=workload, was=was, now=now)
    cost = None if old.cost_nano is None or new.cost_nano is None else new.cost_nano - old.cost_nano
    return Change(id=id, workload=workload, was=was, now=now, cost_nano=cost, quality=new.quality.mid - old.quality.mid)


def _weighed(snapshot: Snapshot, episode: Episode) -> dict[str, Weighed]:
    """Every model of the catalogue as the new snapshot expects it of this request."""
    models = tuple(snapshot.catalogue.models.values())
    amounts = snapshot.policies[episode.policy].amounts
    return {each.model.id: each for each in weigh(snapshot, episode, models, amounts)}


# ------------------------------------------------------------------------------------------------ with odds


def _odds(record: Record) -> dict[str, float]:
    """Of the first decision in which chance had a say."""
    return next((dict(each.odds) for each in record.decisions if each.odds), {})


def _first_call(record: Record) -> str | None:
    """Whom that decision asked."""
    for each in record.decisions:
        if each.odds and isinstance(each.step, Call) and isinstance(each.step.about, Serve):
            return each.step.model
    return None


def _estimated(
    snapshot: Snapshot, stories: Sequence[_Story], outcome: Sequence[float], *, by_quality: bool
) -> tuple[offpolicy.Value, ...]:
    """What the outcomes of these stories say of the new snapshot. What a request was worth in the end is put down to
    whom it was first sent to, as chance sent it."""
    if len(stories) < 2:
        return ()
    others = [name for each in stories for name in _odds(each.record)]
    models = tuple(dict.fromkeys([*snapshot.catalogue.models, *others]))
    place = {name: i for i, name in enumerate(models)}
    odds, target = np.zeros((len(stories), len(models))), np.zeros((len(stories), len(models)))
    expected = np.zeros((len(stories), len(models)))
    for i, each in enumerate(stories):
        for name, chance in _odds(each.record).items():
            odds[i, place[name]] = chance
        for name, chance in _aims(each.first):
            target[i, place[name]] = chance
        for name, known in _weighed(snapshot, each.episode).items():
            expected[i, place[name]] = known.quality.mid if by_quality else (known.cost_nano or 0) / 1e9
    chosen = np.array([place[_first_call(each.record) or ""] for each in stories], dtype=np.int64)
    log = offpolicy.Log(chosen=chosen, odds=odds, outcome=np.array(outcome, dtype=np.float64))
    is_modelled = isinstance(snapshot.estimator, Trained)
    return offpolicy.all_three(log, target, expected if is_modelled else None)


def _aims(decision: Decision) -> tuple[tuple[str, float], ...]:
    """Whom the new snapshot would send it to, and with what chance."""
    if decision.odds:
        return decision.odds
    match decision.step:
        case Call(model=model, about=Serve()):
            return ((model, 1.0),)
        case _:
            return ()


def _notes(
    snapshot: Snapshot, stories: Sequence[_Story], denied: int, logged: Sequence[_Story], labelled: Sequence[_Story]
) -> list[str]:
    found = []
    if isinstance(snapshot.estimator, Trained) and (blind := sum(not each.episode.features.grams for each in stories)):
        found.append(
            f"{blind} of {len(stories)} episodes were logged without the hashes of their words, so the new estimator "
            "reads less of them than it would"
        )
    asked = set(snapshot.keywords)
    if asked:
        found.append(
            "keywords that the old policy did not ask for are in no episode, so rules on them do not hold here: "
            f"the new one asks for {len(asked)}"
        )
    if denied:
        found.append(
            f"{denied:,} requests that the dice had chosen were answered as usual, because exploration's budget was "
            "spent; they are left out of the estimates from outcomes"
        )
    if not logged and not denied:
        found.append(
            "no decision has odds, so nothing but expectations can be said; a plan `explore` with `shadow: false` logs "
            "odds, for there chance decides who answers"
        )
    elif logged and not labelled:
        found.append("no request with odds has a label, so quality cannot be estimated from outcomes")
    return found
