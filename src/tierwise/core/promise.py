"""A promise about quality: "with confidence 1 − δ, what is answered here loses at most α against the reference". Data.

Calibration (`study/promises`) makes one from labelled outcomes, workload by workload, or says that it cannot. A plan
that names a promise serves with the models that were certified, where training expects them to lose no more than the
certified threshold, and with the reference everywhere else. What was certified is what is served: neither the price of
money nor the amounts of the policy choose within a promise.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from tierwise.core.policy import Cascade

Status = Literal["certified", "uncertified", "withdrawn"]


class Segment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One workload's part of a promise. Losses and bounds are of quality, 0..1, against the reference, per request."""

    workload: str  # "" is those in `workloads`, which have no segment of their own
    status: Status
    models: tuple[str, ...] = ()  # who may answer in the reference's place; an agreement asks them in this order
    agreement: int = 0  # of an agreement: until so many of them say the same; 0: as many as there are
    threshold: float = 0.0  # the most that training may expect `models[0]` to lose on a request that it may answer
    further: float = -1.0  # and where the models of an agreement are asked that it does not need; −1: nowhere
    n: int = 0  # labelled requests that it was tested on
    unlabelled: int = 0  # requests that it was not, for one of `models` has no sound label there; the reference has
    loss: float = 0.0  # measured on them
    bound: float = 0.0  # the loss is at most this, with the promise's confidence
    share: float = 0.0  # of these requests that the reference need not answer
    saved: float = 0.0  # share of the reference's cost on them
    missing: int | None = None  # labelled requests that are wanting, as far as can be told; only when uncertified
    why: str = ""  # of an uncertified or withdrawn segment: a sentence
    since_s: int | None = None  # withdrawn at
    # Of the segment "", ascending: the workloads whose labels it was tested on. Empty: the data told none apart, or
    # the owner wanted one promise for all.
    workloads: tuple[str, ...] = ()

    def covers(self, workload: str) -> bool:
        """Whether requests of this workload, which has no segment of its own, fall under this one."""
        at = bisect_left(self.workloads, workload)
        return not self.workloads or self.workloads[at : at + 1] == (workload,)


class Judges(msgspec.Struct, frozen=True):
    """Labels of one kind that a promise rests on, and the chances that one is taken to be wrong: when it says bad, and
    when it says good. A loss is a loss as they see it."""

    kind: str  # human, user, grader, check, agreement, or as the data name it
    labels: int
    wrong_bad: float
    wrong_good: float


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
    judges: tuple[Judges, ...] = ()  # the most labels first; empty: the data did not say who judged
    left_out: tuple[str, ...] = ()  # keys whose labels were not believed

    def withdrawn(self, workload: str, why: str, at_s: int) -> Promise:
        """The same without this certified segment; itself where there is none to withdraw."""
        segments = tuple(
            msgspec.structs.replace(each, status="withdrawn", why=why, since_s=at_s)
            if each.workload == workload and each.status == "certified"
            else each
            for each in self.segments
        )
        return self if segments == self.segments else msgspec.structs.replace(self, segments=segments)

    def segment(self, workload: str) -> Segment | None:
        """The one that a request of this workload falls under; None where nothing was tested for it."""
        rest = None
        for each in self.segments:
            if not each.workload:
                rest = each
            elif each.workload == workload:
                return each
        return rest if rest is not None and rest.covers(workload) else None


def problems(promise: Promise) -> list[str]:
    """Why this is no promise that a calibration has made, each a sentence; empty when it may be one."""
    found = []
    if not promise.name or not all(each.isprintable() for each in (promise.name, promise.reference)):
        found.append("its name and its reference must be words that can be printed")
    if not (0.0 < promise.alpha < 1.0 and 0.0 < promise.delta < 1.0 and 0.0 <= promise.similarity <= 1.0):
        found.append("alpha and delta must lie between 0 and 1, and the similarity at 0 to 1")
    if len({each.workload for each in promise.segments}) != len(promise.segments):
        found.append("a workload has two segments")
    for each in promise.segments:
        where = f"its segment {each.workload!r}"
        if not all(-1.0 <= figure <= 1.0 for figure in (each.threshold, each.further, each.loss, each.bound)):
            found.append(f"{where} has a loss or threshold outside -1 to 1")
        if list(each.workloads) != sorted(set(each.workloads)) or (each.workload and each.workloads):
            found.append(f"{where} has workloads that are not ascending, or are not its own")
        if each.status == "certified":
            found += [f"{where} {what}" for what in _unsound(promise, each)]
    return found


def _unsound(promise: Promise, segment: Segment) -> Iterator[str]:
    """Of a certified segment."""
    models, least = segment.models, 2 if promise.kind == "agreement" else 1
    if len(models) < least or len(set(models)) != len(models) or promise.reference in models:
        yield f"needs {least} or more different models beside the reference"
    if segment.agreement and not (promise.kind == "agreement" and 2 <= segment.agreement <= len(models)):
        yield f"wants {segment.agreement} of {len(models)} replies to agree"
    if not segment.loss <= segment.bound <= promise.alpha + 1e-6 or segment.n < 1:
        yield f"is called certified, and its figures do not say so: {segment.n} requests, bound {segment.bound:g}"


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


def due(found: Ruling, voice: int, loss: Callable[[str], float]) -> str:
    """The one model that may answer now; "" for none. Of an agreement the one with this voice, from 0; of a choice the
    first that training expects to lose little enough. Where it cannot, the reference does: that another of them answers
    in its place was never tested. `loss`: what training expects of a model."""
    models = found.models[voice : voice + 1] if found.judged else found.models
    return next((each for each in models if loss(each) <= found.threshold), "")


def as_certified(plan: Cascade, promise: Promise | None) -> Cascade:
    """The cascade as a rung that keeps this promise sees it: replies have to be as alike as those certified."""
    if promise is None or promise.similarity <= plan.accept.similarity:
        return plan
    return msgspec.structs.replace(plan, accept=msgspec.structs.replace(plan.accept, similarity=promise.similarity))
