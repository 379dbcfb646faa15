"""The hash chain that entries are links of: whoever changes one later breaks it. Rows in, rows out; knows no file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

Row = tuple[object, ...]
NOTHING = bytes(32)  # what the first entry's hash begins with

_SAYS_MORE = "; `tierwise ledger audit` of the version that wrote it says what else is wrong"
_encode = msgspec.json.Encoder().encode


def chained(before: bytes, row: Row) -> bytes:
    """SHA-256 of the hash of the entry before and of this one's fields as a JSON array."""
    return hashlib.sha256(before + _encode(row)).digest()


def not_as_written(seq: int, hold: str, amount_nano: int) -> str:
    return f"entry {seq} (hold {hold!r}, {amount_nano} n$) is not as it was written"


def rechained(rows: Iterable[tuple[Any, ...]], end: tuple[int, bytes]) -> Iterator[Row]:
    """Entries of the first three schemas, on one account each, as those of today: with new hashes, after a look at the
    old ones. `end`: the (number, old hash) of the last. Raises apsw.CorruptError where the old chain is broken,
    for a new one would make it look whole."""
    import apsw

    seq, old, new = 0, NOTHING, NOTHING
    for row in rows:
        *fields, hash = row
        number, at_s, hold, line, subject, start_s, amount_nano, kind, snapshot, note = fields
        if number != seq + 1:
            raise apsw.CorruptError(f"entries {seq + 1} to {number - 1} are missing{_SAYS_MORE}")
        if chained(old, tuple(fields)) != hash:
            raise apsw.CorruptError(not_as_written(number, hold, amount_nano) + _SAYS_MORE)
        accounts = _encode(((line, subject, start_s),)).decode()
        anew = (number, at_s, hold, accounts, amount_nano, kind, snapshot, note)
        seq, old, new = number, hash, chained(new, anew)
        yield (*anew, new)
    if (seq, old) != end:
        raise apsw.CorruptError(f"the entries end at {seq} and not, as they did, at {end[0]}{_SAYS_MORE}")
