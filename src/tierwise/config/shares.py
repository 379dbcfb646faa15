"""Keeps in the state folder what is usual for each key, so that a restart does not begin anew: `shares.json`, written
once a minute and at the end. A crash forgets the last minute."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tierwise.config.learned import written
from tierwise.core.errors import ConfigError
from tierwise.core.rise import Standing, possible
from tierwise.routing.shares import Shares

_log = logging.getLogger("tierwise")
FILE = "shares.json"
KEEP_S = 60.0


class Kept:
    """The file of one running application, whose counts begin with what it says."""

    def __init__(self, path: Path, shares: Shares) -> None:
        self.path = path
        self.shares = shares
        self._said = ""
        shares.standings.update(self.read())

    def read(self) -> dict[str, Standing]:
        """What was kept, but for what cannot be; nothing where there is no file, or one that cannot be read."""
        try:
            found = msgspec.json.decode(self.path.read_bytes(), type=dict[str, Standing])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            _log.error("%s cannot be read (%s); what is usual for each key is counted anew", self.path, error)
            return {}
        sound = {key: each for key, each in found.items() if possible(each)}
        if len(sound) < len(found):
            count, of = len(found) - len(sound), len(found)
            _log.error("%s: %d of %d keys have figures that cannot be; they are counted anew", self.path, count, of)
        return sound

    def keep(self) -> None:
        self._write(self.shares.standings)

    def _write(self, standings: Mapping[str, Standing]) -> None:
        try:
            written(self.path, msgspec.json.encode(standings))
            self._said = ""
        except ConfigError as error:
            if str(error) != self._said:
                self._said = str(error)
                _log.error("what is usual for each key is not kept: %s", error)

    async def follow(self) -> None:
        """Keep it again and again, until cancelled."""
        before = self.shares.noted
        while True:
            await asyncio.sleep(KEEP_S)
            if self.shares.noted != before:
                before = self.shares.noted
                await asyncio.to_thread(self._write, dict(self.shares.standings))
