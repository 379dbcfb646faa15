"""Which models are resting after failures, and how many retries a provider may still be asked. State, with a clock.

Read once at the door of every request and written into its episode; decisions never look in here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from tierwise.core.episode import FailureKind

MAX_REST_MS = 60_000
# A provider is asked again once for so many requests that come (a retry budget as Finagle has it), and so many retries
# may be saved up: a lone request on a quiet gateway has them, and so do all that a blip hits at once. Among any N
# requests in a row there are then at most 10 + N/10 retries, which from 100 requests on is a fifth of them. An answer
# earns nothing: what a good day had saved up would all be spent on the first minute of a bad one.
RETRY_REQUESTS = 10
RETRY_RESERVE = 10
_FULL = RETRY_REQUESTS * RETRY_RESERVE
# So many failures in a row, and the model rests; a single one may be bad luck.
PATIENCE = 3
_BASE_REST_MS = 1_000
# A wrong key or a missing model does not mend itself within one request's time.
_MISCONFIGURED_REST_MS = 30_000


class _State:
    __slots__ = ("cause", "failures", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.until = 0.0
        self.cause = ""


class Health:
    """`clock` gives seconds that only go forward; `dice` gives 0..1 for jitter."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, dice: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._dice = dice
        self._models: dict[str, _State] = {}
        self._earned: dict[str, int] = {}  # by provider, in requests: a retry costs RETRY_REQUESTS of them

    def resting(self) -> tuple[tuple[str, int], ...]:
        """(model, milliseconds until it may be asked) of every model that rests now."""
        if not self._models:
            return ()
        now = self._clock()
        return tuple(
            (model, round((state.until - now) * 1_000) + 1)
            for model, state in self._models.items()
            if state.until > now
        )

    def cause(self, model: str) -> str:
        """Why a model rests, for people."""
        state = self._models.get(model)
        return state.cause if state else ""

    def answered(self, model: str) -> None:
        self._models.pop(model, None)

    def failed(self, model: str, kind: FailureKind, retry_after_ms: int | None, message: str) -> None:
        """Count a failure; rest the model when the provider asks for it, or when there were too many in a row."""
        if kind == "rejected":
            return  # the request's fault, not the model's
        state = self._models.setdefault(model, _State())
        state.failures += 1
        # Every caller is told why a model rests, so never in words that may quote what another one sent.
        state.cause = f"{kind}: {message}" if kind == "connect" else kind
        rest_ms = 0
        if retry_after_ms is not None:
            rest_ms = retry_after_ms
        elif kind in ("auth", "not_found"):
            rest_ms = _MISCONFIGURED_REST_MS
        elif kind == "rate_limited" or state.failures >= PATIENCE:
            doublings = state.failures - (1 if kind == "rate_limited" else PATIENCE)
            rest_ms = round(_BASE_REST_MS * 2 ** min(doublings, 6) * (1 + self._dice()))
        if rest_ms:
            state.until = max(state.until, self._clock() + min(rest_ms, MAX_REST_MS) / 1_000)

    def first(self, provider: str) -> None:
        """A first attempt earns its share of a retry."""
        earned = self._earned.get(provider, _FULL)
        if earned < _FULL:
            self._earned[provider] = earned + 1

    def take_retry(self, provider: str) -> bool:
        """Whether the provider may be asked once more; takes the retry when it may."""
        earned = self._earned.get(provider, _FULL)
        if earned < RETRY_REQUESTS:
            return False
        self._earned[provider] = earned - RETRY_REQUESTS
        return True
