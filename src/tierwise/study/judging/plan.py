"""What another snapshot would change: the dry-run difference over recent episodes, before anything is switched on.

Every episode is decided again from its beginning, by `decide`, under both snapshots; what helpers said is kept, what
models replied is not. The price of money is that of the episode: budgets steer as they did, and fire as costs say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from tierwise.core.budget import Charge, Hold
from tierwise.core.decide import decide
from tierwise.core.episode import Call, Decision, Episode, Serve, Told
from tierwise.core.estimate import BuiltIn, estimate_all
from tierwise.core.learned import Trained
from tierwise.core.ports import Ledger
from tierwise.core.promise import ruling
from tierwise.core.snapshot import Snapshot
from tierwise.core.weigh import expected_nano

Z_95 = 1.96


class Choice(msgspec.Struct, frozen=True):
    """Whom one snapshot would ask first; model "" is a refusal. Quality as the judging estimator expects it."""

    model: str
    cost_nano: int
    quality: float
    doubt: float  # half the interval of `quality`


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """Some of the requests. Costs are expected, in nano-dollars; quality is the expected change per request."""

    name: str
    n: int
    moved: int
    cost_before_nano: int
    cost_after_nano: int
    quality: float


class PromiseChange(msgspec.Struct, frozen=True, kw_only=True):
    """A promise on one workload, with the recent requests that it is about."""

    promise: str
    workload: str
    requests: int
    before: str  # code of the ruling
    after: str


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    n: int
    moved: int
    refused_before: int
    refused_after: int
    undecided: int  # episodes whose policy one of the two does not have
    without_grams: int  # episodes in which a trained estimator sees no words
    judge: str  # the estimator that expects the qualities
    cost_before_nano: int
    cost_after_nano: int
    quality: float  # expected change per request
    quality_low: float  # 95 %: the sampling of requests and the estimator's own doubt about those that move
    quality_high: float
    moves: tuple[tuple[str, str, int], ...]  # from, to, how many; the most frequent first
    workloads: tuple[Slice, ...]
    tasks: tuple[Slice, ...]
    fired_before: tuple[tuple[str, int], ...]  # scope of the budget, requests that it would have refused
    fired_after: tuple[tuple[str, int], ...]
    promises: tuple[PromiseChange, ...]

    @property
    def promises_lost(self) -> tuple[PromiseChange, ...]:
        return tuple(each for each in self.promises if each.before == "promise_holds" != each.after)


async def difference(
    before: Snapshot, after: Snapshot, episodes: Iterable[Episode], open_ledger: Callable[[], tuple[Ledger, Ledger]]
) -> Difference:
    """`episodes` in any order. `open_ledger` gives the budgets before and after, each with nothing spent."""
    judge = after if isinstance(after.estimator, Trained) else before
    story = sorted(episodes, key=lambda each: each.at_s)
    pairs: list[tuple[Episode, Choice, Choice]] = []
    undecided = 0
    for episode in story:
        if episode.kind != "chat" or episode.pinned:
            continue
        if episode.policy not in before.policies or episode.policy not in after.policies:
            undecided += 1
            continue
        pairs.append((episode, _choice(before, episode, judge), _choice(after, episode, judge)))
    ledgers = open_ledger()
    fired_before = await _fired(ledgers[0], [(each, old) for each, old, _ in pairs])
    fired_after = await _fired(ledgers[1], [(each, new) for each, _, new in pairs])
    gains = [new.quality - old.quality for _, old, new in pairs]
    low, mean, high = _interval(gains, [new.doubt + old.doubt for _, old, new in pairs if new.model != old.model])
    moves = Counter((old.model, new.model) for _, old, new in pairs if old.model != new.model)
    return Difference(
        n=len(pairs),
        moved=sum(moves.values()),
        refused_before=sum(not old.model for _, old, _ in pairs),
        refused_after=sum(not new.model for _, _, new in pairs),
        undecided=undecided,
        without_grams=sum(not each.features.grams for each, _, _ in pairs) if _reads_grams(after) else 0,
        judge=judge.estimator.id if isinstance(judge.estimator, Trained) else "built in",
        cost_before_nano=sum(old.cost_nano for _, old, _ in pairs),
        cost_after_nano=sum(new.cost_nano for _, _, new in pairs),
        quality=mean,
        quality_low=low,
        quality_high=high,
        moves=tuple((old, new, count) for (old, new), count in moves.most_common()),
        workloads=_slices(pairs, lambda each: each.workload),
        tasks=_slices(pairs, lambda each: each.features.task),
        fired_before=fired_before,
        fired_after=fired_after,
        promises=_promises(before, after, [each for each, _, _ in pairs]),
    )


def _choice(snapshot: Snapshot, episode: Episode, judge: Snapshot) -> Choice:
    told = tuple(event for event in episode.events if isinstance(event, Told) and event.topic != "grade")
    asked = msgspec.structs.replace(episode, snapshot=snapshot.hash, events=told)
    found = decide(snapshot, asked)
    model = _served(found)
    if model not in snapshot.catalogue.models:
        return Choice("", 0, 0.0, 0.0)
    known = snapshot.catalogue.models[model]
    (estimate,) = estimate_all(judge.estimator, episode.features, (known,), episode.workload)
    quality = estimate.quality
    cost = expected_nano(known, asked, asked.features.input_tokens, estimate.output_tokens) or 0
    return Choice(model, cost, quality.mid, (quality.high - quality.low) / 2)


def _served(decision: Decision) -> str:
    match decision.step:
        case Call(model=model, about=Serve()):
            return model
        case Call():
            # A helper that was never asked: the model that the policy leads to first stands for its answer.
            return next((each.model for each in decision.candidates if each.verdict == "next"), decision.step.model)
        case _:
            return ""


async def _fired(ledger: Ledger, choices: Sequence[tuple[Episode, Choice]]) -> tuple[tuple[str, int], ...]:
    """How many requests each scope's budgets would have refused, had every call cost what is expected of it."""
    refused: Counter[str] = Counter()
    for episode, choice in choices:
        if not choice.model:
            continue
        hold = Hold(
            id=episode.id,
            payer=episode.payer,
            session=episode.hints.session or "",
            workflow=episode.hints.workflow or "",
            model=choice.model,
            amount_nano=choice.cost_nano,
            at_s=episode.at_s,
        )
        denial = await ledger.hold(hold)
        if denial is None:
            ledger.settle(hold.id, Charge(cost_nano=choice.cost_nano, billed=choice.model))
        else:
            refused[denial.scope or denial.code] += 1
    await ledger.drain()
    await ledger.close()
    return tuple(sorted(refused.items()))


def _interval(gains: Sequence[float], doubts: Sequence[float]) -> tuple[float, float, float]:
    """Low, mean, high. The doubts of one estimator err together, so they add up and do not average out."""
    n = len(gains)
    if not n:
        return 0.0, 0.0, 0.0
    mean = math.fsum(gains) / n
    variance = math.fsum((each - mean) ** 2 for each in gains) / max(1, n - 1)
    half = Z_95 * math.sqrt(variance / n) + math.fsum(doubts) / n
    return max(-1.0, mean - half), mean, min(1.0, mean + half)


def _slices(pairs: Sequence[tuple[Episode, Choice, Choice]], by: Callable[[Episode], str]) -> tuple[Slice, ...]:
    names: dict[str, list[tuple[Choice, Choice]]] = {}
    for episode, old, new in pairs:
        names.setdefault(by(episode), []).append((old, new))
    found = [
        Slice(
            name=name,
            n=len(some),
            moved=sum(old.model != new.model for old, new in some),
            cost_before_nano=sum(old.cost_nano for old, _ in some),
            cost_after_nano=sum(new.cost_nano for _, new in some),
            quality=math.fsum(new.quality - old.quality for old, new in some) / len(some),
        )
        for name, some in names.items()
    ]
    return tuple(sorted(found, key=lambda each: (-each.moved, each.name)))


def _promises(before: Snapshot, after: Snapshot, episodes: Sequence[Episode]) -> tuple[PromiseChange, ...]:
    requests = Counter(each.workload for each in episodes)
    found = []
    for name in dict.fromkeys((*before.promises, *after.promises)):
        for workload, count in sorted(requests.items()):
            codes = [_ruled(snapshot, name, workload) for snapshot in (before, after)]
            found.append(
                PromiseChange(promise=name, workload=workload, requests=count, before=codes[0], after=codes[1])
            )
    return tuple(found)


def _ruled(snapshot: Snapshot, name: str, workload: str) -> str:
    estimator = snapshot.estimator
    own = estimator.id if isinstance(estimator, Trained) else ""
    promise = snapshot.promises.get(name)
    # As the plan that suits it would ask: what the policy makes of it is its own affair.
    segment = promise.segment(workload) if promise else None
    agreeing = len(segment.models) if promise and segment and promise.kind == "agreement" else 0
    return ruling(promise, workload, own, agreeing=agreeing).code


def _reads_grams(snapshot: Snapshot) -> bool:
    return not isinstance(snapshot.estimator, BuiltIn)
