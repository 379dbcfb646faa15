"""Stories out of the SQLite journal: records with what was said of them, a piece at a time. Its writer's thread calls.

What was said is numbered by SQLite's rowid, which grows; it begins anew only where all of it was forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec

from tierwise.core.episode import Failed, Replied, Told
from tierwise.core.ports import Feedback, Heard, Late, Record, Story
from tierwise.stores import journal_sql as sql
from tierwise.stores.journal_rows import with_grams

if TYPE_CHECKING:
    import apsw

STORY_ROWS = 500  # read at once, so that no request's record waits long to be written
ALL = Heard((1 << 63) - 1, (1 << 63) - 1)


class Reader:
    """`fault` is told of each row that cannot be read, and that row is left out."""

    def __init__(self, fault: Callable[[str], None]) -> None:
        self._fault = fault
        self._record = msgspec.json.Decoder(Record)
        self._feedback = msgspec.json.Decoder(Feedback)
        self._shadows = msgspec.json.Decoder(Replied | Failed | Told)

    def piece(
        self, after: tuple[int, int], until_s: int, heard: Heard, connection: apsw.Connection
    ) -> tuple[list[Story], tuple[int, int] | None]:
        """The stories after this (at_s, rowid), and the place of the last; None when there may be no more."""
        rows: list[tuple[int, int, str, str, bytes | None]]
        rows = connection.execute(sql.READ_BETWEEN, (*after, until_s, STORY_ROWS)).fetchall()  # type: ignore[assignment]
        found = []
        place = None
        for at_s, rowid, decision_id, data, grams in rows:
            place = (at_s, rowid)
            try:
                found.append(self._story(connection, decision_id, data, grams, heard))
            except msgspec.MsgspecError as error:
                self._fault(f"the record of {decision_id} cannot be read: {error}")
        return found, place if len(rows) == STORY_ROWS else None

    def late(self, before: Heard, now: Heard, began_before_s: int, connection: apsw.Connection) -> list[Late]:
        """What was said between two steps."""
        between = (before.feedback, now.feedback, before.shadows, now.shadows, began_before_s)
        found = []
        rows: list[tuple[str, str, bytes | None]]
        rows = connection.execute(sql.READ_LATE, between).fetchall()  # type: ignore[assignment]
        for decision_id, data, grams in rows:
            try:
                known = self._story(connection, decision_id, data, grams, before)
                found.append(Late(known, self._story(connection, decision_id, data, grams, now)))
            except msgspec.MsgspecError as error:
                self._fault(f"the record of {decision_id} cannot be read: {error}")
        return found

    def heard(self, connection: apsw.Connection) -> Heard:
        feedback, shadows = connection.execute(sql.READ_HEARD).get
        return Heard(feedback, shadows)

    def feedback_of(self, decision_id: str, connection: apsw.Connection, heard: Heard = ALL) -> list[Feedback]:
        """In the order it was said."""
        rows = connection.execute(sql.READ_FEEDBACK, (decision_id, heard.feedback))
        return [self._feedback.decode(data) for (data,) in rows]

    def whole(
        self, connection: apsw.Connection, decision_id: str, data: str, grams: bytes | None, heard: Heard = ALL
    ) -> Record:
        """The record with its grams and its shadows."""
        record = self._record.decode(data)
        if grams is not None:
            record = with_grams(record, grams)
        rows = connection.execute(sql.READ_SHADOWS, (decision_id, heard.shadows))
        shadows = tuple(self._shadows.decode(each) for (each,) in rows)
        return msgspec.structs.replace(record, shadows=shadows) if shadows else record

    def _story(
        self, connection: apsw.Connection, decision_id: str, data: str, grams: bytes | None, heard: Heard
    ) -> Story:
        feedback = tuple(self.feedback_of(decision_id, connection, heard))
        return Story(self.whole(connection, decision_id, data, grams, heard), feedback)


def steps(since: Heard, until: Heard) -> Iterator[tuple[Heard, Heard]]:
    """From one to the other, STORY_ROWS things that were said at a time."""
    at = since
    while at.feedback < until.feedback or at.shadows < until.shadows:
        feedback = min(until.feedback, at.feedback + STORY_ROWS)
        room = STORY_ROWS - max(0, feedback - at.feedback)
        after = Heard(max(at.feedback, feedback), max(at.shadows, min(until.shadows, at.shadows + room)))
        yield at, after
        at = after
