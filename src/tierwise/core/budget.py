"""Limits, holds and charges as values. The stores keep them; nothing here counts or stores."""

from __future__ import annotations

from typing import Literal

import msgspec

from tierwise.core.money import Usage
from tierwise.core.request import Payer

Scope = Literal["request", "session", "workflow", "user", "team", "organisation", "key", "tag"]
Window = Literal["minute", "hour", "day", "week", "month", "lifetime"]
DenialCode = Literal["budget_exceeded", "held_by_others", "step_limit", "retry_budget"]


class Budget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A limit over a window of time. `match`: only payers with these values; empty means each payer has its own."""

    scope: Scope
    match: tuple[tuple[str, str], ...] = ()
    limit_nano: int | None = None
    steps: int | None = None  # calls of a session or workflow
    window: Window = "lifetime"


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Money set aside for one attempt. The id is made by the caller, so asking twice holds once."""

    id: str  # decision id and attempt number
    payer: Payer
    session: str
    workflow: str
    model: str
    amount_nano: int
    at_s: int
    steps: int = 1
    request_limit_nano: int | None = None  # the caller's own cap on this request, over all its attempts
    request: str = ""  # decision id


class Denial(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a hold was refused, with what a caller needs in order to act."""

    scope: str
    code: DenialCode = "budget_exceeded"
    limit_nano: int | None = None
    spent_nano: int | None = None
    held_nano: int | None = None
    resets_at_s: int | None = None
    affordable_nano: int = 0  # what a hold could be now


class Charge(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an attempt ended, in money. `cost_nano` may be above the hold: then the rest is overage."""

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


class Balance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One budget of a payer as it stands, for a balance page. `subject`: whose account it is, within the scope."""

    scope: Scope
    window: Window
    subject: str = ""
    limit_nano: int | None = None
    spent_nano: int = 0
    held_nano: int = 0
    left_nano: int | None = None  # never below 0; None: no limit in money
    price: float = 1.0  # λ of this budget alone
    steps: int | None = None  # the limit
    steps_done: int = 0
    resets_at_s: int | None = None
