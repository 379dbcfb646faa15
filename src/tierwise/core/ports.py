"""What the router needs from the outside: a ledger, a journal and an upstream. Protocols; config fills them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol

import msgspec

from tierwise.core.budget import Balance, Budget, Charge, Denial, Hold, Lambda, Rate
from tierwise.core.catalogue import Deadlines, Provider
from tierwise.core.episode import Decision, Episode, Failed, FailureKind, Replied, Told
from tierwise.core.money import Usage
from tierwise.core.request import Hints, Payer

CLAIM_S = 86_400  # how long an idempotency key is remembered


class Claim(msgspec.Struct, frozen=True):
    """Who has an idempotency key: the request's decision, and what its body was."""

    decision: str
    fingerprint: str


class Ledger(Protocol):
    """Holds money before it is spent and takes it after. A refusal holds nothing anywhere."""

    last_error: str  # why it cannot be written now; "" when it can

    def money(self, payer: Payer, hints: Hints, at_s: int) -> Lambda:
        """The price of money for this payer now. Reads only; never waits."""
        ...

    async def hold(self, hold: Hold) -> Denial | None:
        """Set the amount aside under every budget of the payer's path, or say why not. The same id holds once. Returns
        when the hold is as durable as this ledger makes it. Raises Unavailable when it cannot be made so."""
        ...

    def settle(self, hold_id: str, charge: Charge) -> None:
        """Post what the attempt cost. Returns at once and never raises for money reasons: it only leaves a message for
        a task that the request does not own, so a cancelled request cannot lose it. The first closes a hold; later
        ones are ignored. A request that was cancelled while it waited for its hold settles an id that may only be held
        afterwards: a store that waits must then not hold it."""
        ...

    def checkpoint(self, hold_id: str, least_nano: int) -> None:
        """So much of an open hold has been used for certain: what is charged when nobody lives to settle it. Returns at
        once."""
        ...

    async def correct(self, hold_id: str, cost_nano: int, note: str = "") -> bool:
        """Late truth: what a closed call really cost, as a new entry. False when there is no such closed hold."""
        ...

    async def grant(self, id: str, scope: str, subject: str, amount_nano: int) -> bool:
        """Top up the prepaid balance of a user, key, team or organisation. The same id counts once; False then."""
        ...

    async def vary(self, id: str, line: str, subject: str, amount_nano: int, note: str) -> bool:
        """Post what belongs to no single call: a bill that differs. `line` is `variance/PROVIDER`, which is nobody's
        budget, or a budget's id. The same id counts once; False then."""
        ...

    def balances(self, payer: Payer, hints: Hints) -> tuple[Balance, ...]:
        """Every budget and credit above this payer as it stands, in the order of the configuration."""
        ...

    def rates(self, payer: Payer, hints: Hints) -> list[Rate]:
        """Of every hard limit above this payer on calls or tokens in a window, in the order of the configuration."""
        ...

    @property
    def revision(self) -> int:
        """Another one whenever `money` or `balances` may have become others, but for the time that passes."""
        ...

    def left_nano(self, payer: Payer, hints: Hints) -> int | None:
        """The least that any hard budget or credit above this payer has left for the next request, below zero after an
        overage; None when none has a limit in money."""
        ...

    def reload(self, budgets: tuple[Budget, ...]) -> None:
        """Other budgets from now on. Those with the scope, match and window of an old one keep what was spent."""
        ...

    async def claim(self, payer: Payer, key: str, fingerprint: str, decision: str) -> Claim | None:
        """Take an idempotency key for one request, as durably as a hold. None: it is taken now. Else who has it, until
        CLAIM_S after it was taken; nothing changes then. Each payer's keys are its own."""
        ...

    def finish(self, payer: Payer, key: str, decision: str, *, charged: bool) -> None:
        """The request that took this key is over. Nothing was charged: the key is free again. Returns at once."""
        ...

    async def drain(self) -> None:
        """Wait until every posted settlement is done."""
        ...

    async def close(self) -> None:
        """After `drain`: let go of what is open. Closing twice is closing once."""
        ...

    def open_holds(self) -> int: ...


Status = Literal["answered", "refused", "abandoned", "broken", "dry_run"]


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an episode ended. Four models are kept apart: requested (in the episode), routed, served, billed."""

    status: Status
    code: str = ""
    routed: str = ""
    served: str = ""
    billed: str = ""
    cost_nano: int | None = None  # of every attempt together; None when an unpriced model was used
    baseline_nano: int | None = None
    usage: Usage = Usage()
    attempts: int = 0
    latency_ms: int = 0
    first_token_ms: int | None = None
    own_ms: float = 0.0  # spent by Tierwise itself before the first call
    lost: tuple[str, ...] = ()  # what could not be translated


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One journal row. `prompt` and `reply` are filled only when the owner says that texts are kept."""

    version: int = 1
    episode: Episode
    decisions: tuple[Decision, ...]
    outcome: Outcome
    prompt: str | None = None
    reply: str | None = None
    # What was asked beside it for learning alone, numbered on from the episode's events. Kept apart, joined when read.
    shadows: tuple[Replied | Failed | Told, ...] = ()


class Feedback(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What someone or something said of a reply's quality; `score` is 0..1."""

    decision_id: str
    at_s: int
    score: float
    source: str = "user"
    comment: str = ""
    payer: Payer = Payer()


class Story(msgspec.Struct, frozen=True):
    """A record, and all that was said of its reply until now, in the order it was said."""

    record: Record
    feedback: tuple[Feedback, ...]


class Heard(msgspec.Struct, frozen=True):
    """How much of what was said has been heard: feedback and what came of shadows are numbered as they come, from 1."""

    feedback: int = 0
    shadows: int = 0


class Late(msgspec.Struct, frozen=True):
    """A story of which more was said: as it was known before, and as it is."""

    before: Story
    now: Story


class Journal(Protocol):
    """Where episodes are kept. Writing never waits and never fails a request; what had to be dropped is counted."""

    dropped: int
    last_error: str  # what could not be written or read last; "" when nothing

    def write(self, record: Record, words: str = "") -> None:
        """`words`: a text whose grams are kept among the record's features, and of which nothing else is kept."""
        ...

    def lull(self) -> None:
        """No request is under way: a good moment for what writing has put off."""
        ...

    def feedback(self, feedback: Feedback) -> None: ...
    def shadow(self, decision_id: str, at_s: int, event: Replied | Failed | Told) -> None:
        """What a shadow of this episode, which began at `at_s`, came to."""
        ...

    def snapshot(self, hash: str, data: bytes) -> None: ...
    async def read(self, decision_id: str) -> Record | None: ...
    async def beginning(self, start: str) -> list[str]:
        """Ids of episodes that begin so, at most two: enough to know whether there is one alone."""
        ...

    async def read_snapshot(self, hash: str) -> bytes | None: ...
    async def recent(self, limit: int) -> list[Record]: ...
    def stories(self, since_s: int, until_s: int, heard: Heard | None = None) -> AsyncIterator[list[Story]]:
        """Every episode that began in since_s <= t < until_s, the oldest first, a piece at a time, with what was said
        until `heard`; None: until now."""
        ...

    async def heard(self) -> Heard:
        """All that was said until now."""
        ...

    def late(self, since: Heard, until: Heard, began_before_s: int) -> AsyncIterator[list[Late]]:
        """Episodes that began before this second and of which something was said after `since`, up to `until`: a piece
        at a time, in each of which an episode stands once, as it was known before that piece and with it."""
        ...

    async def stray_feedback(self, since_s: int, until_s: int) -> int:
        """How often something was said, in that time, of an episode that is not here."""
        ...

    async def close(self) -> None: ...


class Departure:
    """Whether a call has left this process. Set by the upstream just before its first byte goes out: whoever is
    cancelled before owes nothing."""

    __slots__ = ("gone",)

    def __init__(self) -> None:
        self.gone = False


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """One call to a provider, ready to send."""

    provider: Provider
    path: str  # below the provider's base URL: "chat/completions", "messages", "embeddings"
    body: bytes
    stream: bool
    deadlines: Deadlines
    headers: tuple[tuple[str, str], ...] = ()
    departure: Departure = msgspec.field(default_factory=Departure)


class UpstreamError(Exception):
    """A call that did not end in a reply. `dispatched`: the provider may have seen it, and may bill it. `usage`: of
    a reply that could not be read, when it is known."""

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        *,
        status: int = 0,
        retry_after_ms: int | None = None,
        dispatched: bool = True,
        body: bytes = b"",
        usage: Usage | None = None,
    ) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.message = message
        self.status = status
        self.retry_after_ms = retry_after_ms
        self.dispatched = dispatched
        self.body = body  # of the provider's error reply, bounded; of a reply that is none, all of it
        self.usage = usage


class Incoming(Protocol):
    """A reply that has begun: status 200 and headers are here, the body is not. Close it on every way out."""

    content_type: str

    async def read(self) -> bytes:
        """The whole body, bounded. Raises UpstreamError."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises UpstreamError when it stops before its end or passes a deadline."""
        ...

    def close(self) -> None:
        """Let go at once: an unfinished body closes the connection, so the provider stops. Never waits."""
        ...


class Upstream(Protocol):
    async def send(self, outgoing: Outgoing) -> Incoming:
        """Send, and return when the reply's headers are here. Raises UpstreamError."""
        ...

    async def close(self) -> None: ...


Json = dict[str, Any]
