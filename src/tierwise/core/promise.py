"""A promise about quality: "with confidence 1 − δ, what is answered here loses at most α against the reference". Data.

Calibration makes one from labelled outcomes (`study/calibrate`), workload by workload, or says that it cannot. A plan
that names a promise serves with the models that were certified, where training expects them to lose no more than the
certified threshold, and with the reference everywhere else. What was certified is what is served: neither the price of
money nor the amounts of the policy choose within a promise.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from tierwise.core.policy import Cascade

Status = Literal["certified", "uncertified", "withdrawn"]


class Segment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One workload's part of a promise. Losses and bounds are of quality, 0..1, against the reference, per request."""

    workload: str  # "" is every workload that has no segment of its own
    status: Status
    models: tuple[str, ...] = ()  # who may answer in the reference's place; an agreement asks them in this order
    agreement: int = 0  # of an agreement: until so many of them say the same; 0: as many as there are
    threshold: float = 0.0  # the most that training may expect `models[0]` to lose on a request that it may answer
    further: float = -1.0  # and where the models of an agreement are asked that it does not need; −1: nowhere
    n: int = 0  # labelled requests that it was tested on
    loss: float = 0.0  # measured on them
    bound: float = 0.0  # the loss is at most this, with the promise's confidence
    share: float = 0.0  # of these requests that the reference need not answer
    saved: float = 0.0  # share of the reference's cost on them
    missing: int | None = None  # labelled requests that are wanting, as far as can be told; only when uncertified
    why: str = ""  # of an uncertified or withdrawn segment: a sentence
    since_s: int | None = None  # withdrawn at


class Promise(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`kind`: "choice" answers with one of the models or the reference, "agreement" with what several of the models say
    alike, as a rung of a cascade whose last rung is the reference."""

    name: str
    kind: Literal["choice", "agreement"]
    alpha: float
    delta: float
    reference: str
    estimator: str  # the artefact that the thresholds are about
    made_s: int
    data_hash: str
    segments: tuple[Segment, ...]
    similarity: float = 0.6  # of an agreement, the least at which replies say the same, as in `Accept`

    def segment(self, workload: str) -> Segment | None:
        """The one that a request of this workload falls under."""
        fallback = None
        for each in self.segments:
            if each.workload == workload:
                return each
            if not each.workload:
                fallback = each
        return fallback


class Ruling(msgspec.Struct, frozen=True):
    """What a promise says of one request. `models` is empty when the reference is to answer; `code` is why."""

    code: Literal["promise_not_certified", "promise_withdrawn", "promise_of_another", "promise_holds"]
    reference: str = ""
    models: tuple[str, ...] = ()
    threshold: float = 0.0
    judged: str = ""  # of an agreement: whose expected loss counts for all of them
    further: float = -1.0
    since_s: int | None = None


def ruling(promise: Promise | None, workload: str, estimator: str, *, agreeing: int | None) -> Ruling:
    """What this promise allows to a request of this workload under this estimator, where `agreeing` replies have to say
    the same (0: none has to; None: as many as it was made for)."""
    if promise is None:
        return Ruling("promise_not_certified")
    if promise.estimator != estimator:
        return Ruling("promise_of_another", promise.reference)
    segment = promise.segment(workload)
    if segment is None or segment.status == "uncertified":
        return Ruling("promise_not_certified", promise.reference)
    if segment.status == "withdrawn":
        return Ruling("promise_withdrawn", promise.reference, since_s=segment.since_s)
    if agreeing not in (None, (segment.agreement or len(segment.models)) if promise.kind == "agreement" else 0):
        # Certified is what so many of them say alike, or what each of them says alone; nothing else was tested.
        return Ruling("promise_not_certified", promise.reference)
    judged = segment.models[0] if promise.kind == "agreement" else ""
    return Ruling("promise_holds", promise.reference, segment.models, segment.threshold, judged, segment.further)


def as_certified(plan: Cascade, promise: Promise | None) -> Cascade:
    """The cascade as a rung that keeps this promise sees it: replies have to be as alike as those certified."""
    if promise is None or promise.similarity <= plan.accept.similarity:
        return plan
    return msgspec.structs.replace(plan, accept=msgspec.structs.replace(plan.accept, similarity=promise.similarity))
