"""Counts for each key how many of its requests a dear model answered, and makes money dear for one whose share has
risen. The formula is `core/rise`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import islice

import msgspec

from tierwise.core.budget import Lambda
from tierwise.core.episode import Episode
from tierwise.core.ports import Record
from tierwise.core.rise import LEAST, Others, Standing, after, counts, dearer, is_dear, together, usual

_log = logging.getLogger("tierwise")
KEYS = 10_000  # that are remembered: those that asked last
TOLD = 200  # requests at dearer money until it is told: of the keys that did nothing one in a hundred, in a week
LOOK = 128  # requests between two looks at what all keys do together
SOME = 300  # keys that tell what all do: those that asked last; more say nothing else and take longer


class Shares:
    """One per router. Its standings may be kept and given back, so that a restart forgets nothing."""

    def __init__(self, standings: Mapping[str, Standing] | None = None) -> None:
        self.standings = dict(standings or {})  # the one that asked last stands last
        self.others = Others()
        self.noted = 0  # requests
        self._held: dict[str, int] = {}  # key -> requests at dearer money since it was last out of debt

    def money(self, found: Lambda, key: str) -> Lambda:
        """The price of money for this key's next request."""
        standing = self.standings.get(key)
        return found if standing is None else dearer(found, standing, self.others)

    def opened(self, episode: Episode, rise: float) -> Episode:
        """The same episode at the price of money that it has to be decided at. `rise`: as for `note`; whose share may
        rise as far as it likes pays no more for what the key owes elsewhere."""
        standing = self.standings.get(episode.payer.key)
        if standing is None or rise >= 1.0 or not counts(episode):
            return episode
        return msgspec.structs.replace(episode, money=dearer(episode.money, standing, self.others))

    def note(self, record: Record, rise: float) -> None:
        """A request has ended. `rise`: how far its policy lets the share of dear replies rise."""
        episode, outcome = record.episode, record.outcome
        # Who hangs up on a reply has had it.
        dear = is_dear(outcome) if outcome.status in ("answered", "abandoned") and counts(episode) else None
        if dear is None:
            return
        if self.noted % LOOK == 0:
            known = (each for each in reversed(self.standings.values()) if each.n >= LEAST)
            self.others = together(islice(known, SOME), episode.at_s)
        self.noted += 1
        key = episode.payer.key
        standing = after(self.standings.pop(key, Standing()), self.others, rise, dear, episode.at_s)
        self.standings[key] = standing
        if len(self.standings) > KEYS:
            oldest = next(iter(self.standings))
            del self.standings[oldest]
            self._held.pop(oldest, None)
        if standing.debt <= 0.0:
            self._held.pop(key, None)
        elif standing.price > 1.0:
            held = self._held[key] = self._held.get(key, 0) + 1
            if held == TOLD:
                self._tell(key, standing)

    def risen(self) -> tuple[str, ...]:
        """The keys for which money is dear now."""
        return tuple(key for key, standing in self.standings.items() if standing.price > 1.0)

    def _tell(self, key: str, standing: Standing) -> None:
        share = usual(standing, self.others)
        _log.warning(
            "%.0f%% of the last requests of key %s went to dear models, where %.0f%% is usual for it; money stays "
            "dearer for this key until its share is back (policy.dear_rise)",
            100 * standing.lately,
            key,
            100 * (share or 0.0),
        )
