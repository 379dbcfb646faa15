"""What one request came to: the record for the journal, and what the caller is told. Grows while it runs."""

from __future__ import annotations

from tierwise.core.budget import Balance, Lambda
from tierwise.core.catalogue import Model
from tierwise.core.episode import Decision, Denied, Episode, Event, Replied
from tierwise.core.money import NANO_PER_USD, Usage
from tierwise.core.ports import Outcome, Record, Status
from tierwise.core.request import Request
from tierwise.core.snapshot import Snapshot
from tierwise.core.weigh import charged_nano
from tierwise.routing.attempts import Paid, since_ms
from tierwise.wire.contract import Bill


class Trace:
    """The one mutable thing of a request: its episode so far, the decisions taken and the money spent."""

    # How each begins.
    lost: tuple[str, ...] = ()
    own_ms = 0.0
    routed = ""
    served = ""
    billed = ""
    usage = Usage()
    first_token_ms: int | None = None
    attempts = 0
    stepped = False  # a call of this request has reached a model
    cost_nano: int | None = 0
    baseline_nano: int | None = None
    reply_text: str | None = None
    left_nano: int | None = None  # what remains to the payer when the reply is whole

    def __init__(self, snapshot: Snapshot, request: Request, episode: Episode, started: float) -> None:
        self.snapshot = snapshot
        self.request = request
        self.episode = episode
        self.started = started
        self.decisions: list[Decision] = []

    def add(self, event: Event) -> None:
        self.episode = self.episode.then(event)
        if not isinstance(event, Denied):
            self.spend(event.cost_nano)

    def spend(self, cost: int | None) -> None:
        # One unpriced attempt makes the sum unknown: unknown is never added as zero.
        self.cost_nano = None if cost is None or self.cost_nano is None else self.cost_nano + cost

    def delivered(self, event: Replied) -> None:
        """This reply is the one that the caller gets."""
        self.routed, self.served, self.billed, self.usage = event.model, event.served, event.billed, event.usage
        self.first_token_ms = event.first_token_ms
        self.baseline_nano = self.baseline(event.usage)

    def lose(self, lost: tuple[str, ...]) -> None:
        """What could not be translated, each thing once."""
        self.lost = tuple(dict.fromkeys((*self.lost, *lost)))

    def note_served(self, model: Model, served: str, billed: str) -> None:
        """Flag a provider that ran another model than the one it was asked for."""
        self.lose((f"{model.provider} ran {served[:200]} and not {model.name}; billed as {billed}",))

    def baseline(self, usage: Usage) -> int | None:
        """What the same tokens would have cost on the baseline model."""
        model = self.snapshot.catalogue.baseline_for.get(self.episode.kind)
        return None if model is None else charged_nano(model, self.episode, usage)

    def bill(self, paid: Paid | None) -> Bill:
        """What the reply says of the money; `paid` is the attempt that is just ending."""
        cost, baseline, left = self.cost_nano, self.baseline_nano, self.left_nano
        if paid is not None:
            cost = None if cost is None or paid.cost_nano is None else cost + paid.cost_nano
            baseline = self.baseline(paid.usage)
        return Bill(
            cost_usd=None if cost is None else cost / NANO_PER_USD,
            decision=self.episode.id,
            model=self.routed,
            baseline_usd=None if baseline is None else baseline / NANO_PER_USD,
            saved_usd=None if cost is None or baseline is None else (baseline - cost) / NANO_PER_USD,
            budget_remaining_usd=None if left is None else left / NANO_PER_USD,
        )

    @property
    def money(self) -> Lambda:
        return self.episode.money

    @property
    def code(self) -> str:
        """The reason code that decided the model."""
        for decision in reversed(self.decisions):
            for reason in reversed(decision.reasons):
                if reason.code not in ("ceiling_set", "kept"):
                    by = dict(reason.facts).get("by")
                    return f"{reason.code}:{by}" if by else reason.code
        return ""

    @property
    def saved_nano(self) -> int | None:
        if self.cost_nano is None or self.baseline_nano is None:
            return None
        return self.baseline_nano - self.cost_nano

    def record(self, status: Status, code: str = "", *, prompt: str | None = None) -> Record:
        outcome = Outcome(
            status=status,
            code=code,
            routed=self.routed,
            served=self.served,
            billed=self.billed,
            cost_nano=self.cost_nano,
            baseline_nano=self.baseline_nano,
            usage=self.usage,
            attempts=self.attempts,
            latency_ms=since_ms(self.started),
            first_token_ms=self.first_token_ms,
            own_ms=round(self.own_ms, 3),
            lost=self.lost,
        )
        return Record(
            episode=self.episode,
            decisions=tuple(self.decisions),
            outcome=outcome,
            prompt=prompt,
            reply=self.reply_text if prompt is not None else None,
        )

    def simulated(self) -> bool:
        return self.routed in self.snapshot.catalogue.simulated


def tightest_of(balances: tuple[Balance, ...]) -> tuple[int, Balance] | None:
    """(what it has left, below zero after an overage; the hard budget or credit that has the least). A limit on single
    requests is none of them: it is new with each."""
    room = [
        (each.limit_nano - each.spent_nano - each.held_nano, each)
        for each in balances
        if each.hard and each.limit_nano is not None and each.scope != "request"
    ]
    return min(room, key=lambda pair: pair[0], default=None)
