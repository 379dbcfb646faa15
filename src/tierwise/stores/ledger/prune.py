"""Letting go of what is long past: closed holds and the accounts of windows that have ended. The entries stay.

In pieces, each a small commit of its own, so that nobody waits for it; what one process leaves undone the next one
does. What the holds came to is counted before they go, so the file still says of every call on which day and at which
model it was, and the audit still sees one that goes missing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from tierwise.stores.ledger import sql
from tierwise.stores.ledger.windows import DAY_S, ROLLING_PARTS

if TYPE_CHECKING:
    import apsw

# How long a call that has ended may be corrected, and how long its id counts once. Longer than any window counts.
KEPT_S = 35 * DAY_S
AGAIN_S = 3_600  # between two rounds
PIECE_HOLDS = 500
PIECE_ACCOUNTS = 250  # at most as many variables as a statement may have
LOOKED_AT = 2_000  # accounts, for those of a piece
PAUSE_S = 0.5  # between two pieces while there is other work
# The most that a window and, of one that moves with the clock, its oldest part can be long: days and months have zones.
_LENGTHS_S = {"minute": 60, "hour": 3_600, "day": DAY_S + 3_600, "week": 7 * DAY_S + 3_600, "month": 32 * DAY_S}


def has_ended(line: str, start_s: int, before_s: int) -> bool:
    """Whether nothing that is asked at `before_s` or later looks at an account of this window any more. A lifetime
    never ends."""
    name = line.rpartition("]/")[2].partition("@")[0].removeprefix("rolling ")
    length = _LENGTHS_S.get(name)
    return length is not None and start_s + length + max(length // ROLLING_PARTS, 1) <= before_s


class Pruner:
    """For the thread that writes: it says when there is time for a piece, and what was asked for is on the disk."""

    def __init__(self) -> None:
        self.is_busy = False
        self._before_s = 0
        self._holds_left = False
        self._after = ("", "", 0)  # the account that was looked at last
        self._last = 0.0

    def begin(self, before_s: int) -> None:
        """A round. What is before `before_s` must not be needed by anybody from now on."""
        if before_s > self._before_s:
            self._before_s, self._after = before_s, ("", "", -(1 << 63))
            self.is_busy = self._holds_left = True

    def stop(self) -> None:
        self.is_busy = False

    def is_due(self) -> bool:
        """Also while there is always something else to do, it goes on."""
        return self.is_busy and time.monotonic() - self._last >= PAUSE_S

    def piece(self, connection: apsw.Connection) -> None:
        """At most one commit. Accounts come when no hold is left that could be corrected on them. Raises apsw.Error."""
        if self._holds_left:
            self._holds_left = self._prune_holds(connection)
        else:
            self.is_busy = self._prune_accounts(connection)
        self._last = time.monotonic()

    def _prune_holds(self, connection: apsw.Connection) -> bool:
        ids = [id for (id,) in connection.execute(sql.CLOSED_BEFORE, (self._before_s, PIECE_HOLDS))]
        if ids:
            these = (msgspec.json.encode(ids).decode(),)
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(sql.PRUNED_S, (self._before_s,))
            connection.execute(sql.COUNT_PRUNED, these)
            connection.execute(sql.DROP_BILLED, these)
            connection.execute(sql.DROP_CLOSED, these)
            connection.execute("COMMIT")
        return len(ids) == PIECE_HOLDS

    def _prune_accounts(self, connection: apsw.Connection) -> bool:
        room = PIECE_ACCOUNTS
        going: list[tuple[str, str, int]] = []
        looked_at = 0
        for *key, is_idle in connection.execute(sql.ACCOUNTS_AFTER, (self._before_s, *self._after, LOOKED_AT)):
            looked_at += 1
            self._after = line, subject, start_s = (key[0], key[1], key[2])
            if is_idle and has_ended(line, start_s, self._before_s):
                going.append((line, subject, start_s))
                if len(going) == room:
                    break
        if going:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(sql.PRUNED_S, (self._before_s,))
            connection.execute(sql.drop_accounts(len(going)), [value for key in going for value in key])
            connection.execute("COMMIT")
        return len(going) == room or looked_at == LOOKED_AT
