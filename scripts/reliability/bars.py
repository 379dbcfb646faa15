"""What a run is, and what it finds. Every run has a fast form, which the tests play, and a full one."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Relation = Literal["=", "≤", "<", "≥", ">"]
_HOLDS: dict[Relation, Callable[[float, float], bool]] = {
    "=": operator.eq,
    "≤": operator.le,
    "<": operator.lt,
    "≥": operator.ge,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Scale:
    """How much of a run to do. The same seed gives the same run wherever time and the network have no say."""

    full: bool = False
    seed: int = 1

    def of(self, full: int, fast: int) -> int:
        return full if self.full else fast


@dataclass(frozen=True)
class Check:
    """One figure against what it has to be."""

    what: str
    figure: float
    relation: Relation
    bound: float

    @property
    def holds(self) -> bool:
        return _HOLDS[self.relation](self.figure, self.bound)

    def __str__(self) -> str:
        return f"{self.what}: {self.figure:g}, must be {self.relation} {self.bound:g}"


@dataclass(frozen=True)
class Found:
    """`n`: how often, of what. `figure`: what was measured, in words. `checks`: what was measured, against the bar; a
    run that compares nothing meets nothing. `mutant`: what was broken on purpose and what came of it; "" when the run
    has none, and `caught` says whether the run noticed."""

    n: str
    figure: str
    checks: tuple[Check, ...]
    mutant: str = ""
    caught: bool = True

    @property
    def missed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.holds)

    @property
    def met(self) -> bool:
        return bool(self.checks) and not self.missed


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
