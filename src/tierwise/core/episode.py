"""The story of one request: what was known at the door, and every event since. Nothing here acts.

Everything that changes from one moment to the next (time, the random draw, resting models, the price of money) is
read once at the door and written into the episode, so that the same episode always gets the same decision.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from tierwise.core.budget import Denial, Lambda
from tierwise.core.money import Service, Usage
from tierwise.core.request import Criticality, Features, Hints, LatencyClass, Payer

Fact = str | int | float | bool | None

FailureKind = Literal[
    "connect",  # refused, unreachable, DNS, TLS
    "timeout",  # connect, first token, idle or total deadline
    "rate_limited",  # 429
    "overloaded",  # 500, 502, 503, 504, 529
    "rejected",  # the provider says the request is wrong: 400, 413, 422
    "auth",  # 401, 403: our key, never the caller's fault
    "not_found",  # 404: the provider does not have this model
    "garbled",  # 200 with something that is no reply
    "cut",  # ended before its end, nothing delivered yet
    "too_large",  # body, line or header above our bounds
]
# What asking the same model once more may mend. What it garbles, it will garble again, and bill again.
AGAIN: tuple[FailureKind, ...] = ("connect", "timeout", "rate_limited", "overloaded", "cut")


class Reason(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where in the policy, which code, and the facts; words are made on the way out (`explain`)."""

    at: str
    code: str
    facts: tuple[tuple[str, Fact], ...] = ()


# ------------------------------------------------------------------------------------------------ steps


class Serve(msgspec.Struct, frozen=True, tag="serve", omit_defaults=True):
    """The request itself. `drafts`: events whose rejected replies are passed on to this model."""

    drafts: tuple[int, ...] = ()


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """A question about the request, answered with one of `answers`."""

    topic: str
    question: str
    answers: tuple[str, ...]


class Grade(msgspec.Struct, frozen=True, tag="grade"):
    """A score 0..1 for the reply of event `of`."""

    of: int
    rubric: str


About = Serve | Ask | Grade


class Call(msgspec.Struct, frozen=True, tag="call", omit_defaults=True):
    """Ask this model. `final`: the reply will be delivered whatever it is, so it may stream through as it comes.

    `max_tokens` is the ceiling to send when it is not the caller's own; `wait_ms` is to pass before the call.
    """

    at: str
    model: str
    worst_case_nano: int
    about: About = Serve()
    final: bool = True
    max_tokens: int | None = None
    wait_ms: int = 0
    tokens: int = 0  # at most, read and written
    bounded: bool = True  # False: `worst_case_nano` promises nothing, for want of a price or of a known length
    explored: bool = False  # chance chose it: the budget of exploration is above it as well
    again: bool = False  # an attempt beyond the first at a provider that has failed this request: costs a retry token


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """Deliver the reply of event number `event`."""

    at: str
    event: int


class Refuse(msgspec.Struct, frozen=True, tag="refuse", omit_defaults=True):
    """No reply. `code` is one of `REFUSALS`."""

    code: str
    facts: tuple[tuple[str, Fact], ...] = ()


REFUSALS = (
    "no_eligible_model",
    "budget_exceeded",
    "held_by_others",
    "credit_exhausted",
    "unbounded",
    "token_limit",
    "call_limit",
    "parallel_limit",
    "step_limit",
    "loop_stopped",
    "deadline_passed",
    "upstream_failed",
    "upstream_rejected",
    "all_resting",
    "not_granted",
)

Step = Call | Answer | Refuse

# ------------------------------------------------------------------------------------------------ events


Stop = Literal["end", "length", "tool_use", "stop_sequence", "refusal", "filtered", "error", "unknown"]


class ReplyFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a decision may read of a reply: no text of it."""

    stop: Stop = "unknown"
    characters: int = 0
    tool_calls: int = 0
    confidence: float | None = None  # geometric mean of token probabilities; None when the model gives none
    answer_key: str = ""  # hash of the normalised final answer; equal keys mean the same answer
    sketch: tuple[int, ...] = ()  # min-hash of the text: equal places estimate the overlap of two texts
    checks: tuple[tuple[str, bool], ...] = ()  # named checks that were run: schema, tools, complete


class Replied(msgspec.Struct, frozen=True, kw_only=True, tag="replied", omit_defaults=True):
    """A model answered the request."""

    at: str
    model: str
    after_ms: int  # since the episode began
    usage: Usage
    cost_nano: int | None
    served: str = ""  # what the provider says it ran
    billed: str = ""  # what was priced
    latency_ms: int = 0
    first_token_ms: int | None = None
    facts: ReplyFacts = ReplyFacts()


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed", omit_defaults=True):
    """A model did not answer."""

    at: str
    model: str
    after_ms: int
    kind: FailureKind
    status: int = 0
    retry_after_ms: int | None = None
    cost_nano: int | None = 0  # what we were, or must assume we were, billed for it
    helper: bool = False  # of a question or a grade: it costs its answer, never an attempt of the request
    message: str = ""  # for people; bounded, and never holding a secret


class Denied(msgspec.Struct, frozen=True, kw_only=True, tag="denied", omit_defaults=True):
    """The ledger, or the retry budget, said no to a call."""

    at: str
    model: str
    after_ms: int
    denial: Denial
    explored: bool = False  # the call was exploration's, so a budget may have said no that no other call has above it


class Told(msgspec.Struct, frozen=True, kw_only=True, tag="told", omit_defaults=True):
    """A helper said something: an answer to a question, or a grade of a reply."""

    at: str
    model: str
    after_ms: int
    topic: str  # of the question; "grade" for a grade
    answer: str = ""
    score: float | None = None
    of: int = -1  # the graded event
    usage: Usage = Usage()
    cost_nano: int | None = 0
    cached: bool = False


Event = Replied | Failed | Denied | Told

# ------------------------------------------------------------------------------------------------ the episode


class Episode(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request so far. Small enough to journal whole; holds no prompt and no reply."""

    id: str
    snapshot: str  # hash
    at_s: int  # wall clock when it began, seconds since 1970
    draw: float  # uniform in 0..1, the only dice
    requested: str
    policy: str
    features: Features
    workload: str = ""  # which of the owner's uses this is: what promises and training tell apart
    hints: Hints = Hints()
    payer: Payer = Payer()
    latency: LatencyClass = "interactive"
    criticality: Criticality = "user"
    service: Service = "standard"
    stream: bool = False
    pinned: str = ""  # the one model that may serve
    money: Lambda = Lambda()
    resting: tuple[tuple[str, int], ...] = ()  # model -> ms until it may be asked again
    grants: tuple[str, ...] = ()  # models, tiers or providers that the key may use; () means all
    kind: Literal["chat", "embedding"] = "chat"
    events: tuple[Event, ...] = ()

    @property
    def elapsed_ms(self) -> int:
        return self.events[-1].after_ms if self.events else 0

    def then(self, event: Event) -> Episode:
        """The same story with one more event."""
        return msgspec.structs.replace(self, events=(*self.events, event))


class Range(msgspec.Struct, frozen=True):
    """A chance with its interval."""

    low: float
    mid: float
    high: float


Verdict = Literal["chosen", "next", "passed_over", "dropped"]


class Candidate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model as the decision saw it. `price_nano` is all of it in dollars: money, quality and time."""

    model: str
    verdict: Verdict
    code: str = ""  # why it was dropped or passed over
    quality: Range | None = None
    cost_nano: int | None = None  # expected
    worst_case_nano: int | None = None
    latency_ms: int | None = None
    price_nano: int | None = None
    facts: tuple[tuple[str, Fact], ...] = ()


class Decision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What to do next, and why. Made by one evaluator, which serves and explains."""

    step: Step
    reasons: tuple[Reason, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    odds: tuple[tuple[str, float], ...] = ()  # of each model, where chance had a say
    baseline_nano: int | None = None  # expected cost of the baseline model for the same request
    # With an Answer, once it is delivered: another model to ask as well, and then who grades the two replies. In these
    # grades' `of`, the shadow's reply has the number after the episode's last event.
    shadow: Call | None = None
    grades: tuple[Call, ...] = ()
