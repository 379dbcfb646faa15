"""A running gateway looks after its promises: fresh labelled traffic is tested, and what is refuted is withdrawn.

It changes nothing itself but the state of what was learned, as a person would with `tierwise promote`; the next look at
that state serves it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import msgspec

from tierwise.config.learned import Learned, written
from tierwise.core.errors import ConfigError
from tierwise.core.ports import Journal
from tierwise.watch.audit import Broken, Seen, look

_log = logging.getLogger("tierwise")
LOOK_S = 30
# Labels come after replies: grades of shadows within a minute, people's within the hour. What is said later than this
# counts when a router is trained again, and not here.
LAG_S = 3_600
FILE = "watch.json"


class Watching:
    """One per application. `look` is asked again and again; it does nothing while nothing is promised."""

    def __init__(self, learned: Learned, *, lag_s: int = LAG_S) -> None:
        self.learned = learned
        self.lag_s = lag_s

    @property
    def path(self) -> Path:
        return self.learned.folder / FILE

    async def look(self, journal: Journal, now_s: int) -> tuple[Broken, ...]:
        """What was found broken since the last look, and is withdrawn. Raises ConfigError when the folder cannot be
        used."""
        state = await asyncio.to_thread(self.learned.read)
        if state is None or not any(each.status == "certified" for one in state.promises for each in one.segments):
            return ()
        until_s = now_s - self.lag_s
        seen = await asyncio.to_thread(self._read) or Seen(until_s=min(each.made_s for each in state.promises))
        if until_s <= seen.until_s:
            return ()
        broken: list[Broken] = []
        since_s = seen.until_s
        async for stories in journal.stories(since_s, until_s):
            seen, found = await asyncio.to_thread(look, seen, stories, state.promises, until_s)
            broken += found
        seen = msgspec.structs.replace(seen, until_s=until_s)
        # Withdrawn first: a crash in between withdraws again, which changes nothing, and never forgets.
        for each in broken:
            await asyncio.to_thread(self.learned.withdraw, each.promise, each.workload, each.why)
            where = f"workload {each.workload}" if each.workload else "workloads without a segment of their own"
            _log.error("promise %s no longer holds for %s and is withdrawn: %s", each.promise, where, each.why)
        await asyncio.to_thread(written, self.path, msgspec.json.encode(seen))
        return tuple(broken)

    def _read(self) -> Seen | None:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=Seen)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
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
