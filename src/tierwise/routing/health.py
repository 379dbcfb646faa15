"""Which models are resting after failures, and how many retries a provider may still be asked. State, with a clock.

Read once at the door of every request and written into its episode; decisions never look in here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from tierwise.core.episode import FailureKind

MAX_REST_MS = 60_000
# A provider that keeps failing is asked again by at most this share of the requests that come (Finagle's retry budget).
RETRY_SHARE = 0.2
RETRY_START = 10.0
RETRY_MOST = 100.0
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
        self._retries: dict[str, float] = {}

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

    def answered(self, model: str, provider: str) -> None:
        self._models.pop(model, None)
        if provider in self._retries:
            self._retries[provider] = min(RETRY_MOST, self._retries[provider] + 1)

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
        level = self._retries.get(provider, RETRY_START)
        self._retries[provider] = min(RETRY_MOST, level + RETRY_SHARE)

    def take_retry(self, provider: str) -> bool:
        """Whether the provider may be asked once more; takes the retry when it may."""
        level = self._retries.get(provider, RETRY_START)
        if level < 1:
            return False
        self._retries[provider] = level - 1
        return True
