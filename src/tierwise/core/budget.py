"""Limits, holds and charges as values. The stores keep them; nothing here counts or stores."""

from __future__ import annotations

from typing import Literal

import msgspec

from tierwise.core.money import Usage
from tierwise.core.request import Payer

Scope = Literal["request", "session", "workflow", "user", "team", "organisation", "key", "tag"]
Window = Literal["minute", "hour", "day", "week", "month", "lifetime"]
# How long a window is that moves with the clock.
ROLLING_S: dict[Window, int] = {"minute": 60, "hour": 3_600, "day": 86_400, "week": 7 * 86_400, "month": 30 * 86_400}
DenialCode = Literal[
    "budget_exceeded",  # money: waiting for requests in flight does not help
    "held_by_others",  # money: it would fit once the open holds are given back
    "credit_exhausted",  # a prepaid balance does not cover it
    "unbounded",  # a hard budget, and a call without a price or without a bound
    "token_limit",
    "call_limit",
    "parallel_limit",  # calls at once
    "step_limit",
    "loop_stopped",  # the same call again and again, or two in turn
    "deadline_passed",  # of a session or workflow
    "retry_budget",
]


class Budget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A limit over a window of time. `match`: only payers with these values; empty means each payer has its own.

    `rolling`: the window is the last so many seconds (a month: 30 days), in sixtieths of it, an oldest part counted
    whole; else it is the calendar's, in `zone` (an IANA name). `hard`: a call that would exceed it is refused; a soft
    budget only makes money dearer. None is no limit."""

    scope: Scope
    match: tuple[tuple[str, str], ...] = ()
    limit_nano: int | None = None
    tokens: int | None = None  # read and written, held at their upper bound
    calls: int | None = None  # calls of models, of every kind
    parallel: int | None = None  # calls at once
    steps: int | None = None  # requests of a session or workflow that reached a model
    repeats: int | None = None  # the same request so often in a row, or two in turn so often each
    deadline_s: int | None = None  # since the first request of a session or workflow
    window: Window = "lifetime"
    rolling: bool = False
    zone: str = "UTC"
    hard: bool = True
    reserve_nano: int | None = None  # what a call without a price or a bound holds; None: a hard budget refuses it


def is_rate(budget: Budget) -> bool:
    """A hard limit on calls or tokens in a window: what is left of it stands in the headers of replies."""
    return budget.hard and budget.window != "lifetime" and (budget.calls is not None or budget.tokens is not None)


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Money set aside for one attempt. The id is made by the caller, so asking twice holds once."""

    id: str  # decision id and attempt number
    payer: Payer
    session: str
    workflow: str
    model: str
    amount_nano: int
    at_s: int
    tokens: int = 0  # at most
    steps: int = 1  # 0 for a call of a request that has made its step already
    request_limit_nano: int | None = None  # the caller's own cap on this request, over all its attempts
    request: str = ""  # decision id
    fingerprint: str = ""  # of what is asked; equal ones are the same call to a loop detector, "" is none
    bounded: bool = True  # False: no price, or no upper bound, so `amount_nano` promises nothing
    least_nano: int = 0  # what is charged when nobody ever says what it cost: the prompt was read
    snapshot: str = ""  # hash of the snapshot whose prices hold for this call


class Denial(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a hold was refused, with what a caller needs in order to act."""

    scope: str
    code: DenialCode = "budget_exceeded"
    limit_nano: int | None = None
    spent_nano: int | None = None
    held_nano: int | None = None
    resets_at_s: int | None = None
    affordable_nano: int = 0  # what a hold could be now
    limit: int | None = None  # of tokens, calls, steps, repeats or seconds
    used: int | None = None


UNKNOWN_NANO = -1  # the cost of a call without a price


class Charge(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an attempt ended, in money. `cost_nano` may be above the hold: then the rest is overage. UNKNOWN_NANO: all
    that was held is charged, which for a call without a price is what the budget reserves for it, or nothing."""

    cost_nano: int
    usage: Usage = Usage()
    billed: str = ""  # the model that was priced
    kind: Literal["reported", "estimated", "released"] = "reported"


class Lambda(msgspec.Struct, frozen=True, omit_defaults=True):
    """The price of money: how dear a dollar is right now to this payer. 1 when every budget is on pace."""

    value: float = 1.0
    causes: tuple[tuple[str, float], ...] = ()  # budget -> its own λ
    left_nano: int | None = None  # the least that any budget above the payer has left; None: no budget
    scope: str = ""  # whose that is
    shares: tuple[
        tuple[float, float | None], ...
    ] = ()  # of each cause: of its limit, what is used and what was planned


class Rate(msgspec.Struct, frozen=True):
    """What is used of a hard limit on calls or tokens in a window."""

    calls: int | None  # the limit
    calls_done: int
    tokens: int | None  # the limit
    tokens_used: int  # and held
    resets_at_s: int
    rolling_s: int  # how long a window is that moves with the clock; 0: it does not


class Balance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One budget or credit of a payer as it stands. `subject`: whose account it is, within the scope."""

    scope: Scope
    window: Window
    rolling: bool = False
    subject: str = ""
    credit: bool = False  # prepaid: `limit_nano` is all that was ever topped up
    hard: bool = True
    limit_nano: int | None = None
    spent_nano: int = 0
    held_nano: int = 0
    left_nano: int | None = None  # never below 0; None: no limit in money
    planned_nano: int | None = None  # what was to be spent by now; None: a budget without a pace
    price: float = 1.0  # λ of this budget alone
    steps: int | None = None  # the limit
    steps_done: int = 0
    tokens: int | None = None  # the limit
    tokens_used: int = 0  # and held
    calls: int | None = None  # the limit
    calls_done: int = 0
    parallel: int | None = None  # the limit
    open: int = 0  # calls under way
    starts_at_s: int | None = None
    resets_at_s: int | None = None
