"""A running gateway looks after what was promoted: promises are tested on fresh labelled traffic, and what is refuted
is withdrawn; where requests drift from what training saw, or a key's go to dear models more than they used to, it is
said.

It changes nothing itself but the state of what was learned, as a person would with `tierwise promote`; the next look at
that state serves it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tierwise.config.learned import Learned, State, written
from tierwise.core.errors import ConfigError, TierwiseError
from tierwise.core.ports import Journal, Story
from tierwise.watch.audit import Broken, Seen, look, look_at_late
from tierwise.watch.fresh import drift_words, drifting, look_at_drift, look_at_skew, skew_words, skewing

if TYPE_CHECKING:
    from tierwise.study.training.histograms import Histogram

_log = logging.getLogger("tierwise")
LOOK_S = 30
# Labels come after replies: grades of shadows within a minute, people's mostly within the hour. So long a request waits
# until it is settled with all that was said of it; what is said later counts when it comes.
LAG_S = 3_600
FILE = "watch.json"
TOLD = 20  # drifts in the log at one look; what else there is `tierwise drift` shows


class Watching:
    """One per application. `look` is asked again and again; it does nothing while nothing trained is promoted and
    nothing promised."""

    def __init__(self, learned: Learned, *, lag_s: int = LAG_S) -> None:
        self.learned = learned
        self.lag_s = lag_s
        self.seen: Seen | None = None  # as the last look left it
        self._inputs: tuple[str, tuple[Histogram, ...]] = ("", ())  # of an estimator's training

    @property
    def path(self) -> Path:
        return self.learned.folder / FILE

    async def look(self, journal: Journal, now_s: int) -> tuple[Broken, ...]:
        """What was found broken since the last look, and is withdrawn. Raises ConfigError when the folder cannot be
        used."""
        state = await asyncio.to_thread(self.learned.read)
        certified = any(each.status == "certified" for one in state.promises for each in one.segments) if state else ()
        if state is None or not (state.estimator or certified):
            return ()
        until_s = now_s - self.lag_s
        begun_s = min([state.at_s, *(each.made_s for each in state.promises)])
        self.seen = seen = await asyncio.to_thread(self.read) or Seen(until_s=begun_s)
        if until_s <= seen.until_s:
            return ()
        broken: list[Broken] = []
        inputs = await asyncio.to_thread(self.inputs, state.estimator)
        heard = await journal.heard()
        # Of the settled ones those of which something new was said, then those that are settled now. Where the numbers
        # begin anew, in another journal, nothing is heard once rather than something twice.
        async for late in journal.late(seen.heard or heard, heard, seen.until_s):
            seen, found = await asyncio.to_thread(look_at_late, seen, late, state.promises)
            broken += found
        async for stories in journal.stories(seen.until_s, until_s, heard):
            seen, found = await asyncio.to_thread(self._taken, seen, stories, state, inputs)
            broken += found
        seen = await asyncio.to_thread(_looked, msgspec.structs.replace(seen, until_s=until_s, heard=heard), inputs)
        # Withdrawn first: a crash in between withdraws again, which changes nothing, and never forgets.
        for each in broken:
            await asyncio.to_thread(self.learned.withdraw, each.promise, each.workload, each.why)
            where = f"workload {each.workload}" if each.workload else "workloads without a segment of their own"
            _log.error("promise %s no longer holds for %s and is withdrawn: %s", each.promise, where, each.why)
        await asyncio.to_thread(written, self.path, msgspec.json.encode(seen))
        self.seen = seen
        return tuple(broken)

    @staticmethod
    def _taken(
        seen: Seen, stories: list[Story], state: State, inputs: tuple[Histogram, ...]
    ) -> tuple[Seen, tuple[Broken, ...]]:
        seen, broken = look(seen, stories, state.promises, seen.until_s)
        return msgspec.structs.replace(
            seen,
            drifting=drifting(seen.drifting, stories, state.estimator, inputs),
            skewing=skewing(seen.skewing, stories),
        ), broken

    def inputs(self, estimator: str) -> tuple[Histogram, ...]:
        """What this estimator's training saw; () when that is not known."""
        if estimator and estimator != self._inputs[0]:
            from tierwise.study.training.artefact import read_manifest

            try:
                self._inputs = (estimator, read_manifest(self.learned.artefacts, estimator).inputs)
            except TierwiseError as error:
                self._inputs = (estimator, ())
                _log.error("drift is not watched: %s", error)
        return self._inputs[1] if estimator else ()

    def read(self) -> Seen | None:
        """What was seen until now; None when nothing was, or what is there cannot be read."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=Seen)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            # The bets begin again: it takes longer to find out, and nothing that is broken is believed for it.
            _log.error("%s cannot be read (%s); promises are watched from now on", self.path, error)
            return None

    async def follow(self, journal: Journal) -> None:
        """Look again and again, until cancelled."""
        said = ""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look(journal, int(time.time()))
                said = ""
            except ConfigError as error:
                if str(error) != said:
                    said = str(error)
                    _log.error("promises are not watched: %s", error)
            except Exception:  # ours; the next look tries again
                _log.exception("promises are not watched")


def _looked(seen: Seen, inputs: tuple[Histogram, ...]) -> Seen:
    """With what an hour's look found, which is told in the log once."""
    drifts, drifted = look_at_drift(seen.drifting, inputs, seen.until_s)
    skews, skewed = look_at_skew(seen.skewing, seen.until_s)
    for each in drifted[:TOLD]:
        _log.warning("%s", drift_words(each))
    if len(drifted) > TOLD:
        _log.warning("and %d drifts more: tierwise drift", len(drifted) - TOLD)
    for key in skewed:
        _log.warning("%s", skew_words(key))
    return msgspec.structs.replace(seen, drifting=drifts, skewing=skews)
