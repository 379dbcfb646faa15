"""How many tokens a model makes of what we take for a thousand: learned from the usage that its provider reports.

Used where we have to count for ourselves, because a provider did not say. Decisions do not read it: they would then
depend on what other requests did, and could not be told again from their episode. No bound reads it either.
"""

from __future__ import annotations

import math

import msgspec

LEAST, MOST = 0.25, 4.0  # a ratio outside says that the estimate was of something else
STEADY = 0.05  # share of the newest report once there are many
LEAST_TOKENS = 32  # of a shorter prompt the provider's own frame is too large a part


class Ratio(msgspec.Struct, frozen=True):
    value: float = 1.0
    reports: int = 0


class Ratios:
    """By model. Numbers only, kept for the life of the process."""

    def __init__(self) -> None:
        self._of: dict[str, Ratio] = {}

    def learn(self, model: str, estimated: int, reported: int) -> None:
        """Tokens of one prompt: as we estimated them, and as its provider reported them."""
        if estimated < LEAST_TOKENS or reported <= 0:
            return
        was = self._of.get(model, Ratio())
        seen = min(max(reported / estimated, LEAST), MOST)
        # What we begin with counts as one report.
        share = max(1.0 / (was.reports + 2), STEADY)
        self._of[model] = Ratio(was.value + (seen - was.value) * share, was.reports + 1)

    def of(self, model: str) -> Ratio:
        return self._of.get(model, Ratio())

    def expected(self, model: str, estimated: int) -> int:
        """Our estimate in the tokens of this model; at least 1."""
        return max(1, math.ceil(estimated * self.of(model).value))
