"""Server-sent events, cut out of bytes that arrive in any portions. The bytes of an event are kept as they came.

The format is the one of the HTML standard, "Parsing an event stream": lines end in LF, CR LF or CR, an event ends with
an empty line, several data lines are one text. Nothing is decoded here, so a cut inside a UTF-8 character is no event.
"""

from __future__ import annotations

import re

from tierwise.wire.contract import Garbled

MAX_EVENT_BYTES = 1 << 20
_END = re.compile(rb"(?:\r\n|\r(?!\n)|\n)(?:\r\n|\r(?!\n)|\n)")
_LINE = re.compile(rb"\r\n|\r|\n")
_FIELDS = (b"data", b"event", b"id", b"retry")
_BOM = b"\xef\xbb\xbf"


class Splitter:
    """Bytes in, whole events out, each with the empty line that ends it."""

    __slots__ = ("_begun", "_marked", "_parts", "_size", "_tail")

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # of the event that has not ended
        self._size = 0
        self._tail = b""  # the last bytes of those, in which an end may have begun
        self._begun = False
        self._marked: bytes | None = b""  # what may be the beginning of a byte order mark; None once that is decided

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that this chunk completes. Raises Garbled for an event above 1 MiB and for what is plainly no
        event stream."""
        if self._marked is not None:
            chunk = self._unmarked(chunk)
        if not chunk:
            return []
        window = self._tail + chunk
        if b"\r" in window:
            ended = (match := _END.search(window)) is not None and not _may_go_on(match.end(), window)
        else:
            ended = b"\n\n" in window
        self._parts.append(chunk)
        self._size += len(chunk)
        if not ended:
            self._tail = window[-3:]
            if not self._begun:
                self._check_begin(window)
            if self._size > MAX_EVENT_BYTES:
                raise Garbled(f"an event of the provider's stream is longer than {MAX_EVENT_BYTES} bytes")
            return []
        buffer = b"".join(self._parts) if len(self._parts) > 1 else chunk
        if not self._begun:
            self._check_begin(buffer)
        events, rest = _cut(buffer)
        self._parts = [rest] if rest else []
        self._size = len(rest)
        self._tail = rest[-3:]
        if self._size > MAX_EVENT_BYTES or (len(buffer) > MAX_EVENT_BYTES and max(map(len, events)) > MAX_EVENT_BYTES):
            raise Garbled(f"an event of the provider's stream is longer than {MAX_EVENT_BYTES} bytes")
        return events

    def _unmarked(self, chunk: bytes) -> bytes:
        """Without a byte order mark at the very beginning: clients take it for a part of the first field's name."""
        begin = (self._marked or b"") + chunk
        if len(begin) < len(_BOM) and _BOM.startswith(begin):
            self._marked = begin
            return b""
        self._marked = None
        return begin.removeprefix(_BOM)

    def rest(self) -> bytes:
        """What has no end yet."""
        return (self._marked or b"") + b"".join(self._parts)

    def _check_begin(self, buffer: bytes) -> None:
        if begin := buffer.lstrip()[:1]:
            self._begun = True
            if begin in b"<{[":
                raise Garbled(f"the provider sent no event stream but {buffer[:60].decode('utf-8', 'replace')!r}")


def _may_go_on(end: int, buffer: bytes) -> bool:
    """A CR at the very end may be half of a CR LF."""
    return end == len(buffer) and buffer[-1:] == b"\r"


def _cut(buffer: bytes) -> tuple[list[bytes], bytes]:
    if b"\r" not in buffer:
        parts = buffer.split(b"\n\n")
        rest = parts.pop()
        return [part + b"\n\n" for part in parts], rest
    events, start = [], 0
    while (match := _END.search(buffer, start)) is not None and not _may_go_on(match.end(), buffer):
        events.append(buffer[start : match.end()])
        start = match.end()
    return events, buffer[start:]


def fields(event: bytes) -> tuple[bytes, bytes | None]:
    """The name and the data of an event; data None for one of comments only. Raises Garbled for lines that no event
    stream has."""
    name, data = b"", []
    for line in _LINE.split(event):
        if not line or line[:1] == b":":
            continue
        field, _, value = line.partition(b":")
        if field not in _FIELDS:
            raise Garbled(
                f"the provider's stream has a line that is no event: {line[:60].decode('utf-8', 'replace')!r}"
            )
        value = value[1:] if value[:1] == b" " else value
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return name, b"\n".join(data) if data else None


def event(name: str, data: bytes) -> bytes:
    """One event. `data` is JSON from an encoder, which has no raw line breaks, so no text can end it early."""
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
