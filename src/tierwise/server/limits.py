"""What is left of the rates above a caller, as the headers that OpenAI's clients read.

The path of every request leads through here, so it looks at the ledger only where some budget limits a rate at all.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

from tierwise.core.request import Hints, Payer
from tierwise.server.http import Headers

if TYPE_CHECKING:
    from tierwise.server.app import App

_NO_HINTS = Hints()
_REQUESTS = (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests")
_TOKENS = (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens")
_Told = tuple[int, float, int]  # what is left, seconds until all of it is back, the limit


def limit_headers(app: App, payer: Payer, hints: Hints = _NO_HINTS) -> Headers:
    """[] when nothing above this payer limits a rate. Of several limits, the one that has least left is told."""
    if not app.rated:
        return []
    now = time.time()
    calls: _Told | None = None
    tokens: _Told | None = None
    for each in app.router.ledger.rates(payer, hints):
        # A window that moves gives back bit by bit: all of it is back when what was used last has left it. It counts in
        # parts, whole ones, so that may be a part later than a client would believe of a window of this length.
        wait_s = each.rolling_s or each.resets_at_s - now
        if each.calls is not None:
            calls = _least(calls, each.calls, each.calls_done, wait_s)
        if each.tokens is not None:
            tokens = _least(tokens, each.tokens, each.tokens_used, wait_s)
    found = [] if calls is None else _headers(_REQUESTS, calls)
    return found if tokens is None else found + _headers(_TOKENS, tokens)


def _least(told: _Told | None, limit: int, used: int, wait_s: float) -> _Told:
    """The one that has less left, and of two that are used up the one that stays so for longer."""
    left = limit - used if limit > used else 0
    wait_s = wait_s if used and wait_s > 0.0 else 0.0
    if told is None or left < told[0] or (left == told[0] and wait_s > told[1]):
        return left, wait_s, limit
    return told


def _headers(names: tuple[bytes, bytes, bytes], told: _Told) -> Headers:
    left, wait_s, limit = told
    limiting, remaining, reset = names
    return [(limiting, b"%d" % limit), (remaining, b"%d" % left), (reset, duration(wait_s).encode())]


@functools.lru_cache(maxsize=16)  # requests and tokens of one budget come back together
def duration(seconds: float) -> str:
    """As OpenAI writes it: 20ms, 1s, 6m0s, 23h59m59s. Rounded up: whoever waits so long has waited long enough."""
    milliseconds = -int(-seconds * 1_000 // 1)
    if milliseconds >= 1_000:
        return _clock(-(-milliseconds // 1_000))
    return f"{milliseconds}ms" if milliseconds > 0 else "0s"


@functools.lru_cache(maxsize=64)
def _clock(seconds: int) -> str:
    hours, minutes = seconds // 3_600, seconds % 3_600 // 60
    return f"{hours}h" * (hours > 0) + f"{minutes}m" * (seconds >= 60) + f"{seconds % 60}s"
