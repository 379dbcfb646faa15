"""Things that are worked on some at a time, because many at once cost less than one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Gathered(Generic[T]):
    """Hands things on to `work`, in their order, `enough` at once or whatever there is when somebody flushes. Called
    from several threads; `work` runs in the one that calls, and never twice at a time."""

    def __init__(self, work: Callable[[list[T]], None], enough: int) -> None:
        self._work = work
        self._enough = enough
        self._waiting: list[T] = []
        self._changing = threading.Lock()  # `_waiting`; never for long
        self._working = threading.Lock()

    def add(self, thing: T) -> None:
        with self._changing:
            self._waiting.append(thing)
            enough = len(self._waiting) >= self._enough
        if enough:
            self.flush()

    def flush(self) -> None:
        """When it returns, all that was added before has been worked on."""
        with self._working:
            with self._changing:
                some, self._waiting = self._waiting, []
            if some:
                self._work(some)
