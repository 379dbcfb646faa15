"""What a run is, and what it finds. Every run has a fast form, which the tests play, and a full one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """How much of a run to do. The same seed gives the same run wherever time and the network have no say."""

    full: bool = False
    seed: int = 1

    def of(self, full: int, fast: int) -> int:
        return full if self.full else fast


@dataclass(frozen=True)
class Found:
    """`n`: how often, of what. `figure`: what was measured. `mutant`: what was broken on purpose and what came of it;
    "" when the run has none, and `caught` says whether the run noticed."""

    n: str
    figure: str
    met: bool
    mutant: str = ""
    caught: bool = True


@dataclass(frozen=True)
class Run:
    """`codes`: of the bars and the catalogue. `bar`: what has to be met."""

    name: str
    codes: str
    what: str
    bar: str
    play: Callable[[Scale], Found]


def count(number: int) -> str:
    return f"{number:,}"
