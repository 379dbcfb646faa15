"""How dear money is for a key whose requests go to dear models more than is usual for it. Pure.

Whoever tries prefixes finds one that makes every request look hard: no estimator that reads words is safe from that.
What such a key can gain by it is bounded instead. Its share of requests that a dear model answers is counted against
its own past, moved by what moved for all other keys. What goes beyond is a debt, and a debt makes money dear for this
key, as a budget that runs ahead of its pace does: of its requests those that gain most by a dear model still get one.
Nothing is refused; when the share is back the debt is worked off and a dollar costs a dollar again.

The debt is Page's cumulative sum (Biometrika 41, 1954): each request adds 1 when a dear model answered it, less the
share that is allowed, and it never falls below 0. So of n requests in a row at most n × allowed + debt were dear, and λ
rises with the debt until it no longer grows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from tierwise.core.budget import Lambda
from tierwise.core.episode import Episode, Reason
from tierwise.core.pace import LAMBDA_MAX
from tierwise.core.ports import Outcome

DEAR = 0.5  # a reply is dear that cost at least this part of what the baseline would have cost
LEARNED = 1_000  # requests that are usual as they come; from then on what is usual moves with the days alone
LEAST = 100  # before what is usual for a key is known from its own requests
REMEMBERED = 2_000  # requests that a past counts for at most
LATELY = 0.01  # what the newest request counts for in the share of late
LEAST_KEYS = 5  # others, before they say what moved for all, or what a new key may have
SPREADS = 2.0  # a new key may have what the others have, and so many of their spreads more
# Of the rise that a policy allows, so much is allowed without a debt. The rest is for the standard error of what is
# usual, for the debt, and for what chance makes of a few hundred requests.
ALLOWED = 0.25
SLACK = 12.0  # a debt of so many requests may be chance
CALM = 6.0  # up to this one a request may teach what is usual
STEEPNESS = 0.5  # a debt of four requests more makes money seven times as dear
MOST_DEBT = 40.0  # requests; what is beyond is forgiven, so that nobody pays for a burst for ever
DAY_S = 86_400
CAUSE = "dear replies"  # the cause in a price of money


class Standing(msgspec.Struct, frozen=True):
    """Of one key. Requests are counted as `counts` says."""

    n: float = 0.0  # requests of its past
    dear: float = 0.0  # of them
    day: int = 0
    today_n: int = 0
    today_dear: int = 0
    lately: float = 0.0  # share of the last hundred or so
    debt: float = 0.0  # requests

    @property
    def price(self) -> float:
        """λ of this key: 1 up to a debt of SLACK."""
        return min(math.exp(STEEPNESS * max(self.debt - SLACK, 0.0)), LAMBDA_MAX)


def possible(standing: Standing) -> bool:
    """Whether counting can have led here: what was kept on a disk may be anything."""
    return (
        0.0 <= standing.dear <= standing.n + 1e-6 <= REMEMBERED + LEARNED
        and 0 <= standing.today_dear <= standing.today_n
        and 0.0 <= standing.lately <= 1.0
        and 0.0 <= standing.debt <= MOST_DEBT
    )


class Others(msgspec.Struct, frozen=True):
    """What all keys together say: by how much shares have moved against their pasts, and where those of new keys may
    lie; None where there are too few keys to say."""

    moved: float = 0.0
    new: float | None = None


def counts(episode: Episode) -> bool:
    """Whether this request's price may be moved by what its key does: who names a model or a tier gets it, and what is
    critical is left alone."""
    return not (
        not episode.payer.key
        or episode.pinned
        or episode.kind != "chat"
        or episode.criticality == "critical"
        or episode.policy.startswith("tier:")
    )


def is_dear(outcome: Outcome) -> bool | None:
    """None where nobody can say, for want of a price."""
    if outcome.cost_nano is None or not outcome.baseline_nano:
        return None
    return outcome.cost_nano >= DEAR * outcome.baseline_nano


def usual(standing: Standing, others: Others) -> float | None:
    """The share that is usual for this key as things are; None when nobody knows."""
    if standing.n < LEAST:
        return others.new
    return min(max(_mean(standing) + others.moved, 0.0), 1.0)


def allowed(standing: Standing, others: Others, rise: float) -> float:
    """The share beyond which a key gets into debt, 1 where it never does. `rise`: what its policy allows. What is usual
    is known from so many requests only, so its standard error is allowed besides."""
    share = usual(standing, others)
    if share is None or rise >= 1.0:
        return 1.0
    mean = _mean(standing)
    error = math.sqrt(mean * (1.0 - mean) / (standing.n + 1.0)) if standing.n >= LEAST else 0.0
    return min(share + ALLOWED * rise + error, 1.0)


def after(standing: Standing, others: Others, rise: float, dear: bool, at_s: int) -> Standing:
    """The same with one more request."""
    day = at_s // DAY_S
    # A request that began before midnight may end after one that did not; a clock that was ahead is put right.
    if day > standing.day or day < standing.day - 1:
        standing = _next_day(standing, day)
    n, past, today_n, today_dear = standing.n, standing.dear, standing.today_n, standing.today_dear
    if n < LEARNED and standing.debt <= CALM:  # what a debt has bent, or may have, is not usual
        n, past = n + 1.0, past + dear
    else:
        today_n, today_dear = today_n + 1, today_dear + dear
    lately = standing.lately + max(LATELY, 1.0 / (n + today_n)) * (dear - standing.lately)
    debt = min(max(standing.debt + dear - allowed(standing, others, rise), 0.0), MOST_DEBT)
    return Standing(n, past, standing.day, today_n, today_dear, lately, debt)


def _next_day(standing: Standing, day: int) -> Standing:
    """A day counts for as much as all of the past at most. So of a key that is in debt day after day, what is usual
    rises by half of what it is allowed each day: work that has really changed has its way in the end, and an attack
    that nobody looks at takes a week for what it would have had at once."""
    taken = min(float(standing.today_n), max(standing.n, float(LEAST)))
    share = standing.today_dear / max(standing.today_n, 1)
    n, dear = standing.n + taken, standing.dear + taken * share
    kept = min(1.0, REMEMBERED / n) if n else 1.0
    return Standing(n * kept, dear * kept, day, 0, 0, standing.lately, standing.debt)


def together(standings: Iterable[Standing], at_s: int) -> Others:
    """Of the keys with a past that were active since yesterday."""
    known = [each for each in standings if each.n >= LEAST and each.day >= at_s // DAY_S - 1]
    if len(known) <= LEAST_KEYS:  # one of them is no other
        return Others()
    moved = sorted(each.lately - _mean(each) for each in known)
    shares = [_mean(each) for each in known]
    mean = math.fsum(shares) / len(shares)
    spread = math.sqrt(math.fsum((each - mean) ** 2 for each in shares) / (len(shares) - 1))
    middle = len(moved) // 2
    median = moved[middle] if len(moved) % 2 else (moved[middle - 1] + moved[middle]) / 2
    return Others(median, min(max(mean + median, 0.0) + SPREADS * spread, 1.0))


def dearer(money: Lambda, standing: Standing, others: Others) -> Lambda:
    """The price of money with this cause; the dearest counts, as among budgets."""
    price = standing.price
    if price <= 1.0:
        return money
    share = usual(standing, others)
    return msgspec.structs.replace(
        money,
        value=max(money.value, price),
        causes=(*money.causes, (CAUSE, price)),
        shares=(*money.shares, (standing.lately, share)),
    )


def reasons(money: Lambda) -> list[Reason]:
    """Why a decision saw a price of money that no budget made."""
    if CAUSE not in dict(money.causes):
        return []
    for (label, price), (share, share_usual) in zip(money.causes, money.shares, strict=False):
        if label == CAUSE:
            facts = (("share", round(share, 4)), ("usual", share_usual and round(share_usual, 4)), ("lambda", price))
            return [Reason("", "dear_share_risen", facts)]
    return []


def _mean(standing: Standing) -> float:
    """With half a request more on either side, so that few are never certain (Agresti and Coull 1998)."""
    return (standing.dear + 0.5) / (standing.n + 1.0)
