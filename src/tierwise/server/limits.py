"""What is left of the rates above a caller, as the headers that OpenAI's clients read.

The path of every request leads through here, so it looks at the ledger only where some budget limits a rate at all.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

from tierwise.core.budget import ROLLING_S, Balance
from tierwise.core.request import Hints, Payer
from tierwise.server.http import Headers

if TYPE_CHECKING:
    from tierwise.server.app import App

_NO_HINTS = Hints()


def limit_headers(app: App, payer: Payer, hints: Hints = _NO_HINTS) -> Headers:
    """[] when nothing above this payer limits a rate. Of several limits, the one that has least left is told."""
    if not app.rated:
        return []
    now = time.time()
    balances = app.router.ledger.balances(payer, hints, rates=True)
    calls = [_told(each, each.calls, each.calls_done, now) for each in balances if each.calls is not None]
    tokens = [_told(each, each.tokens, each.tokens_used, now) for each in balances if each.tokens is not None]
    return [*_headers(b"requests", calls), *_headers(b"tokens", tokens)]


_Told = tuple[int, float, int]  # what is left, seconds until all of it is back, the limit


def _told(balance: Balance, limit: int | None, used: int, now: float) -> _Told:
    limit = limit or 0
    # A window that moves gives back bit by bit: all of it is back when what was used last has left it. It counts in
    # parts, whole ones, so that may be a part later than a client would believe of a window of this length.
    wait_s = float(ROLLING_S[balance.window]) if balance.rolling else max((balance.resets_at_s or 0) - now, 0.0)
    return max(limit - used, 0), wait_s if used else 0.0, limit


def _headers(what: bytes, told: list[_Told]) -> Headers:
    if not told:
        return []
    left, wait_s, limit = told[0] if len(told) == 1 else min(told, key=lambda each: (each[0], -each[1]))
    return [
        (b"x-ratelimit-limit-" + what, b"%d" % limit),
        (b"x-ratelimit-remaining-" + what, b"%d" % left),
        (b"x-ratelimit-reset-" + what, duration(wait_s).encode()),
    ]


@functools.lru_cache(maxsize=16)  # requests and tokens of one budget come back together
def duration(seconds: float) -> str:
    """As OpenAI writes it: 20ms, 1s, 6m0s, 23h59m59s. Rounded up: whoever waits so long has waited long enough."""
    milliseconds = max(0, -int(-seconds * 1_000 // 1))
    if 0 < milliseconds < 1_000:
        return f"{milliseconds}ms"
    whole = -(-milliseconds // 1_000)
    hours, minutes = whole // 3_600, whole % 3_600 // 60
    return f"{hours}h" * (hours > 0) + f"{minutes}m" * (whole >= 60) + f"{whole % 60}s"
