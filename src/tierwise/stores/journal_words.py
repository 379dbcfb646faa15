"""Rows whose grams are still to be made: of many texts at once, for what numpy does there costs mostly its calls.

The texts stay in memory until then, some tens of requests or a fifth of a second, and are not kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from tierwise.core.grams import grams_of

AT_ONCE = 32


class HasGrams(Protocol):
    grams: bytes | None


Row = TypeVar("Row", bound=HasGrams)


class Wordy(Generic[Row]):
    """Hands each row on with its grams. Called from several threads."""

    def __init__(self, hand_on: Callable[[Row], None]) -> None:
        self._hand_on = hand_on
        self._waiting: list[tuple[Row, str]] = []
        self._changing = threading.Lock()  # `_waiting`; never for long
        self._handing = threading.Lock()

    def add(self, row: Row, words: str) -> None:
        with self._changing:
            self._waiting.append((row, words))
            enough = len(self._waiting) >= AT_ONCE
        if enough:
            self.flush()

    def flush(self) -> None:
        """Whatever waits. When it returns, it has been handed on."""
        with self._handing:
            with self._changing:
                some, self._waiting = self._waiting, []
            made = grams_of([words.casefold() for _, words in some])
            for (row, _), grams in zip(some, made, strict=True):
                row.grams = grams or None
                self._hand_on(row)
