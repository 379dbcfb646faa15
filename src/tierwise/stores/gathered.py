"""Things that are worked on some at a time, because many at once cost less than one by one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Gathered(Generic[T]):
    """Hands things on to `work`, in their order, `enough` at once or whatever there is when somebody flushes. Called
    from several threads; `work` runs in the one that calls, and never twice at a time. `len`: what waits."""

    def __init__(self, work: Callable[[list[T]], None], enough: int) -> None:
        self._work = work
        self._enough = enough
        self._waiting: deque[T] = deque()  # appended to by anyone; who takes from it holds the lock
        self._working = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, thing: T) -> None:
        waiting = self._waiting
        waiting.append(thing)
        if len(waiting) >= self._enough:
            self.flush()

    def flush(self) -> None:
        """When it returns, all that was added before has been worked on."""
        with self._working:
            some = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if some:
                self._work(some)
