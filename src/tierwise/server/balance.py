"""`GET /v1/balance`: what is left in every budget and credit above the caller, once or followed live.

A follower is an event stream: an event when something has changed, a comment when nothing has for a while, and `end`
when the server stops or the key is no longer good. It is one task, the request's own, so nothing is left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import msgspec

from tierwise.core.budget import Balance, Budget, Lambda
from tierwise.core.errors import BadRequest, Refused, Unauthorised
from tierwise.core.keys import applies
from tierwise.core.money import usd_text
from tierwise.core.request import Hints, Payer
from tierwise.routing.trace import tightest_of
from tierwise.server.http import EVENT_STREAM, WhileConnected, reply_json

if TYPE_CHECKING:
    from tierwise.server.app import App, Call

LOOK_S = 0.25  # between two looks whether the books have changed
STILL_HERE_S = 15.0  # what lies between tells nothing for longer than this is taken for dead by proxies
UNREAD_S = 30.0  # a follower that takes longer to read what it is sent has gone without saying so
MOST_FOLLOWERS = 200
MOST_FOLLOWERS_OF_ONE = 20  # of one payer, so that none keeps the others from looking
MOST_LETTERS = 200
QUESTIONS = ("session", "workflow")
# λ moves with every second that passes; finer than this it says nothing new.
PRICE_DIGITS = 3


class Look(msgspec.Struct, frozen=True):
    """What a caller was told to have at one moment: the event, and what in it is worth another."""

    stamp: tuple[int, int]
    lasting: list[Any]
    event: bytes


class Followers:
    """How many follow at the moment, in all and of each payer, and what they saw last.

    What a caller has changes with the ledger's revision and from one second to the next, and never else. So all that
    follow the same share one look, and where nothing happens there is one a second."""

    def __init__(self) -> None:
        self.of_agents: tuple[Budget, ...] = ()  # that are above a caller only where it names a session or workflow
        self._of: dict[Payer, int] = {}
        self._looks: dict[tuple[Payer, Hints], Look] = {}

    def look(self, app: App, payer: Payer, hints: Hints) -> Look:
        """As it is now."""
        stamp = app.router.stamp()
        found = self._looks.get((payer, hints))
        if found is None or found.stamp != stamp:
            now = _now(app, payer, hints, stamp[0])
            found = Look(stamp, _lasting(now), _event("balance", {"at": _time(stamp[0]), **now}))
            self._looks.pop((payer, hints), None)
            self._looks[payer, hints] = found
            if len(self._looks) > MOST_FOLLOWERS:
                del self._looks[next(iter(self._looks))]  # the one whose followers have left, for the others look on
        return found

    def __len__(self) -> int:
        return sum(self._of.values())

    def enter(self, payer: Payer) -> None:
        """Raises Refused when there are too many."""
        own = self._of.get(payer, 0)
        if own >= MOST_FOLLOWERS_OF_ONE or len(self) >= MOST_FOLLOWERS:
            raise Refused(
                f"{len(self)} follow balances already, {own} of them with your key; ask without "
                "`Accept: text/event-stream`, or come back when one has left",
                code="too_many_followers",
                status=429,
                retry_after_s=10,
            )
        self._of[payer] = own + 1

    def leave(self, payer: Payer) -> None:
        own = self._of.pop(payer) - 1
        if own:
            self._of[payer] = own
        if not self._of:
            self._looks.clear()


async def balance(app: App, call: Call) -> None:
    """The door. `?session=` and `?workflow=` ask for those of the caller as well."""
    hints = _asked(call.query)
    if "text/event-stream" not in call.headers.get("accept", ""):
        at_s, _ = app.router.stamp()
        now = _now(app, call.identity.payer, hints, at_s)
        await reply_json(call.send, 200, {"at": _time(at_s), **now}, [(b"cache-control", b"no-store")])
        return
    payer = call.identity.payer
    app.followers.enter(payer)
    try:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # ASGI handlers run in tasks
        with WhileConnected(call.caller, task):
            await _send_all(call, follow(app, call, hints))
    finally:
        app.followers.leave(payer)


async def follow(app: App, call: Call, hints: Hints) -> AsyncGenerator[bytes]:
    """Events until the server drains or the key is no longer good."""
    loop = asyncio.get_running_loop()
    yield b"retry: 1000\n\n"
    before: list[Any] = []
    said_at = loop.time()
    while not app.router.draining:
        try:
            payer = app.keys.identify(call.headers).payer  # a key may be revoked, or pay for another, meanwhile
        except Unauthorised as error:
            yield _event("end", {"reason": error.code, "message": error.message})
            return
        look = app.followers.look(app, payer, hints)
        if look.lasting is not before and look.lasting != before:
            before, said_at = look.lasting, loop.time()
            yield look.event
        elif loop.time() - said_at >= STILL_HERE_S:
            said_at = loop.time()
            yield b": nothing has changed\n\n"
        await asyncio.sleep(_until_next_look(loop.time(), payer, hints))
    yield _event("end", {"reason": "draining", "message": "this instance is shutting down; come again"})


def _until_next_look(at_s: float, payer: Payer, hints: Hints) -> float:
    """All that follow the same look at the same moments, so that one look is enough for them; others at others, so that
    the requests between them do not wait for everybody's."""
    phase = hash((payer, hints)) % 64 / 64
    return LOOK_S * (1.0 - (at_s / LOOK_S - phase) % 1.0)


async def _send_all(call: Call, events: AsyncGenerator[bytes]) -> None:
    headers = [EVENT_STREAM, (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    await call.send({"type": "http.response.start", "status": 200, "headers": headers})
    async with aclosing(events):
        async for event in events:
            try:
                async with asyncio.timeout(UNREAD_S):
                    await call.send({"type": "http.response.body", "body": event, "more_body": True})
            except TimeoutError:
                return  # without a proper end, so the server closes the connection
    await call.send({"type": "http.response.body", "body": b""})


def _lasting(told: dict[str, Any]) -> list[Any]:
    """What is worth an event. That a minute has passed is none: where rates are limited, one does every minute."""
    balances = [
        {**each, "starts_at": "", "resets_at": ""} if each["window"] == "minute" else each for each in told["balances"]
    ]
    return [told["price_of_money"], told["causes"], told["left_nano"], told["not_shown"], balances]


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))


def _asked(query: bytes) -> Hints:
    """Raises BadRequest for a question that is none of ours."""
    found: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in QUESTIONS:
            raise BadRequest(
                f"{name[:40]!r} is nothing to ask a balance for; known: {', '.join(QUESTIONS)}",
                code="unknown_parameter",
                param=name[:40],
            )
        if not value or len(value) > MOST_LETTERS or not value.isprintable():
            raise BadRequest(
                f"{name}: give the name of a {name}, of at most {MOST_LETTERS} letters",
                code="invalid_parameter",
                param=name,
            )
        found[name] = value
    return Hints(session=found.get("session"), workflow=found.get("workflow"))


# ------------------------------------------------------------------------------------------------ what is told


def _now(app: App, payer: Payer, hints: Hints, at_s: int) -> dict[str, Any]:
    asked = {name for name in QUESTIONS if getattr(hints, name)}
    further = {scope for budget in app.followers.of_agents if applies(budget, payer) for scope in scopes_of(budget)}
    money, balances = app.router.standing(payer, hints, at_s)
    return told(money, balances, tuple(sorted(further - asked)))


def scopes_of(budget: Budget) -> set[str]:
    """Which of QUESTIONS a caller has to answer before the budget is one above it."""
    return {name for name in QUESTIONS if name == budget.scope or name in dict(budget.match)}


def told(money: Lambda, balances: tuple[Balance, ...], not_shown: tuple[str, ...] = ()) -> dict[str, Any]:
    """Without the time, so that two of them differ only when something has changed. Amounts are exact: decimal text in
    dollars, and whole nano-dollars. `not_shown`: what has further limits and was not asked for."""
    tightest = tightest_of(balances)
    return {
        "price_of_money": round(money.value, PRICE_DIGITS),
        "causes": [{"budget": name, "price_of_money": round(value, PRICE_DIGITS)} for name, value in money.causes],
        **_amount("left", max(tightest[0], 0) if tightest else None),
        "least_left_in": ("credit" if tightest[1].credit else tightest[1].scope) if tightest else None,
        "not_shown": list(not_shown),
        "balances": [_told(each) for each in balances],
    }


def _told(balance: Balance) -> dict[str, Any]:
    found: dict[str, Any] = {"scope": balance.scope, "window": balance.window}
    if balance.subject:
        # Of a session or workflow the account is named by its payer as well; the caller knows it by the last part.
        found["subject"] = balance.subject.rpartition("\x1f")[2]
    found |= {"credit": balance.credit, "hard": balance.hard}
    for name in ("limit", "spent", "held", "left"):
        found |= _amount(name, getattr(balance, f"{name}_nano"))
    found["price_of_money"] = round(balance.price, PRICE_DIGITS)
    found["steps"] = {"limit": balance.steps, "used": balance.steps_done}
    found["tokens"] = {"limit": balance.tokens, "used": balance.tokens_used}
    found["calls"] = {"limit": balance.calls, "used": balance.calls_done}
    found["parallel"] = {"limit": balance.parallel, "used": balance.open}
    found["starts_at"] = None if balance.starts_at_s is None else _time(balance.starts_at_s)
    found["resets_at"] = None if balance.resets_at_s is None else _time(balance.resets_at_s)
    return found


def _amount(name: str, nano: int | None) -> dict[str, Any]:
    return {f"{name}_usd": None if nano is None else usd_text(nano), f"{name}_nano": nano}


def _time(at_s: int) -> str:
    """RFC 3339, in UTC."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
