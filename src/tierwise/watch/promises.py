"""Does a promise still hold on fresh traffic? A bet that it does not, which gets rich only when that is so.

Every request of a certified segment of which somebody learned what its reply and the reference's were worth (shadowed,
audited, labelled) is one observation: its loss, 0 where the reference itself answered. If losses are at most alpha on
average, given all before, then no betting makes money of them, and the chance that the capital ever reaches 1/delta is
at most delta, however long one watches and whenever one looks (Ville 1939). When it does, the promise is broken.

Traffic that was good for a long time and then is not must be found out quickly as well. So after every observation a
part of the capital, 1/n of it, is dealt out anew among the stakes, the idle one of them (the "fixed share" of Herbster
and Warmuth, "Tracking the best expert", 1998, with a share that falls). Dealing out wins nothing: the law above stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import numpy as np

from tierwise.core.promise import Promise
from tierwise.study.promises.bounds import STAKES, Floats, spread

DELTA = 0.05  # the chance, for each segment and for ever, of withdrawing a promise that holds


class Observation(msgspec.Struct, frozen=True):
    """What one labelled request of a promise's traffic lost: quality of the reference less the delivered reply's,
    −1..1."""

    promise: str
    workload: str
    loss: float


class Bet(msgspec.Struct, frozen=True, kw_only=True):
    """On one segment. `capital`: logarithms, at no stake and at each of the stakes; together 1 at the beginning."""

    promise: str
    made_s: int
    workload: str  # the segment's
    alpha: float
    capital: tuple[float, ...]
    n: int = 0
    total_loss: float = 0.0
    broken: bool = False


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """All that is remembered: as JSON a few hundred bytes a segment."""

    delta: float = DELTA
    bets: tuple[Bet, ...] = ()


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """On a segment that has something new. `evidence` reaches 1 when the promise is refuted. `broken` is said once."""

    promise: str
    workload: str
    broken: bool
    n: int
    loss: float  # mean
    evidence: float
    why: str = ""


def watching(promises: Iterable[Promise], before: Watch | None = None, *, delta: float = DELTA) -> Watch:
    """Bets on every certified segment of these promises. One on the same promise, made at the same time, goes on; a
    promise that was made anew is watched anew. Raises ValueError for a delta outside 0..1."""
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta is {delta}; it is the chance of a false alarm, between 0 and 1")
    known = {(bet.promise, bet.made_s, bet.workload): bet for bet in (before.bets if before else ())}
    bets = []
    for promise in promises:
        for segment in promise.segments:
            if segment.status == "certified":
                kept = known.get((promise.name, promise.made_s, segment.workload))
                bets.append(kept or _begun(promise, segment.workload))
    return Watch(delta=delta, bets=tuple(bets))


def judge(watch: Watch, observations: Iterable[Observation]) -> tuple[Watch, tuple[Verdict, ...]]:
    """What these observations, in their order, say of the promises: one verdict for each segment that they are about.
    An observation of a promise that nobody watches says nothing. Raises ValueError for a loss outside −1..1."""
    bets = {(bet.promise, bet.workload): bet for bet in watch.bets}
    before = dict(bets)
    for each in observations:
        key = (each.promise, each.workload if (each.promise, each.workload) in bets else "")
        if key in bets:
            bets[key] = _after(bets[key], each.loss, watch.delta)
    verdicts = tuple(_verdict(bet, before[key], watch.delta) for key, bet in bets.items() if bet.n > before[key].n)
    return msgspec.structs.replace(watch, bets=tuple(bets.values())), verdicts


def withdrawn(promise: Promise, verdicts: Iterable[Verdict], at_s: int) -> Promise:
    """The promise without the segments that were found broken; the same when there are none."""
    for each in verdicts:
        if each.broken and each.promise == promise.name:
            promise = promise.withdrawn(each.workload, each.why, at_s)
    return promise


def _begun(promise: Promise, workload: str) -> Bet:
    # Half lies idle, for the day on which it is needed.
    stakes = [math.log(0.5), *[math.log(0.5 / STAKES.size)] * STAKES.size]
    return Bet(
        promise=promise.name, made_s=promise.made_s, workload=workload, alpha=promise.alpha, capital=tuple(stakes)
    )


def _after(bet: Bet, loss: float, delta: float) -> Bet:
    if not -1.0 <= loss <= 1.0:
        raise ValueError(f"a loss of {loss} is none: qualities lie between 0 and 1")
    if bet.broken:
        return bet
    # The bet is that losses are above alpha, which is that 1 − loss is below 1 − alpha; both halved into 0..1.
    won = np.concatenate(([0.0], spread(np.array((1.0 - loss) / 2), (1.0 - bet.alpha) / 2)))
    capital = np.array(bet.capital) + won
    n = bet.n + 1
    total = _sum(capital)
    share = 1.0 / (n + 1)
    dealt = np.logaddexp(capital + math.log1p(-share), total + math.log(share / capital.size))
    return msgspec.structs.replace(
        bet,
        capital=tuple(float(each) for each in dealt),
        n=n,
        total_loss=bet.total_loss + loss,
        broken=total >= -math.log(delta),
    )


def _sum(logs: Floats) -> float:
    most = float(logs.max())
    return most + math.log(float(np.exp(logs - most).sum()))


def _verdict(bet: Bet, before: Bet, delta: float) -> Verdict:
    mean = bet.total_loss / bet.n
    newly = bet.broken and not before.broken
    return Verdict(
        promise=bet.promise,
        workload=bet.workload,
        broken=newly,
        n=bet.n,
        loss=mean,
        evidence=1.0 if bet.broken else min(1.0, max(0.0, _sum(np.array(bet.capital)) / -math.log(delta))),
        why=f"on {bet.n} freshly labelled requests {mean:.3f} of quality was lost on average, and at most "
        f"{bet.alpha:g} was promised; such a run comes by chance in at most {100 * delta:g} of 100 promises that hold"
        if newly
        else "",
    )
