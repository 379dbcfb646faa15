"""How things get into the journal's file: as rows that are ready to bind, some in a statement."""

from __future__ import annotations

import time
from collections.abc import Callable
from operator import add
from typing import TYPE_CHECKING

import msgspec

from tierwise.core.ports import Feedback, Record
from tierwise.stores import journal_sql as sql
from tierwise.stores.journal_rows import HOUR_S, counts, sums
from tierwise.stores.sqlite_file import savepoint, transaction

if TYPE_CHECKING:
    import apsw

MANY = 32  # rows in one statement
# After each: where cores are few, whoever is woken on this one waits until it is left, at worst for 4 ms.
PAUSE_S = 0.0002

_encode = msgspec.json.Encoder().encode
_Sums = dict[tuple[int, str, str], tuple[int, ...]]


class Snapshot(msgspec.Struct, frozen=True):
    hash: str
    data: bytes


class Shadow(msgspec.Struct, frozen=True):
    decision_id: str
    at_s: int
    data: str


class Row(msgspec.Struct, frozen=True, gc=False):
    """A record as it goes into the file: text that holds on to nothing, where a record would keep a request's objects
    alive for the collector to walk through."""

    id: str
    at_s: int
    snapshot: str
    record: str
    grams: bytes | None  # that are not in the record
    place: tuple[int, str, str]  # the hour, model and team whose sums it adds to
    amounts: tuple[int, ...]  # () for a record that does not count


Thing = Row | Feedback | Snapshot | Shadow


def row_of(record: Record, text: str, grams: bytes) -> Row:
    """`text`: the record as JSON."""
    episode = record.episode
    place = (episode.at_s // HOUR_S, record.outcome.routed, episode.payer.team)
    amounts = sums(record) if counts(record) else ()
    return Row(episode.id, episode.at_s, episode.snapshot, text, grams or None, place, amounts)


def write_down(connection: apsw.Connection, batch: list[Thing], at_s: int, hurried: Callable[[], bool]) -> list[str]:
    """All of a batch, or none of it and an error of SQLite's. Gives what is wrong with each that no file can hold."""
    faults: list[str] = []
    summed: _Sums = {}
    rows = [item for item in batch if isinstance(item, Row)]
    with transaction(connection):
        while rows:
            many = min(MANY, 1 << (len(rows).bit_length() - 1))  # few sizes, so that statements stay prepared
            _add_rows(connection, rows[:many], summed, faults)
            del rows[:many]
            if rows and not hurried():
                time.sleep(PAUSE_S)
        for item in batch:
            if not isinstance(item, Row):
                _add(connection, item, at_s, faults)
        for place, amounts in summed.items():
            connection.execute(sql.ADD_ROLLUP, (*place, *amounts))
    return faults


def _add_rows(connection: apsw.Connection, rows: list[Row], summed: _Sums, faults: list[str]) -> None:
    """By one statement. Where that is refused, because one is known already or fits in no file, by halves."""
    import apsw

    try:
        with savepoint(connection):
            values = [v for row in rows for v in (row.id, row.at_s, row.snapshot, row.record, row.grams)]
            connection.execute(sql.add_episodes(len(rows)), values)
            if connection.changes() != len(rows):
                if len(rows) == 1:
                    return
                raise apsw.ConstraintError("some are known already")
    except (apsw.ConstraintError, apsw.MismatchError, apsw.TooBigError, TypeError, ValueError, OverflowError) as no:
        if len(rows) == 1:
            faults.append(f"a record cannot be written: {no}")
            return
        half = len(rows) // 2
        _add_rows(connection, rows[:half], summed, faults)
        _add_rows(connection, rows[half:], summed, faults)
        return
    for row in rows:
        if row.amounts:
            had = summed.get(row.place)
            summed[row.place] = row.amounts if had is None else tuple(map(add, had, row.amounts))


def _add(connection: apsw.Connection, item: Feedback | Snapshot | Shadow, at_s: int, faults: list[str]) -> None:
    import apsw

    execute = connection.execute
    try:
        match item:
            case Feedback():
                execute(sql.ADD_FEEDBACK, (item.decision_id, item.at_s, item.score, item.source, _encode(item)))
            case Shadow():
                execute(sql.ADD_SHADOW, (item.decision_id, item.at_s, item.data))
            case Snapshot():
                execute(sql.ADD_SNAPSHOT, (item.hash, at_s, item.data))
    except (apsw.ConstraintError, apsw.MismatchError, TypeError, ValueError, OverflowError) as error:
        # One row that no file can hold; the others are sound.
        faults.append(f"{type(item).__name__} cannot be written: {error}")
