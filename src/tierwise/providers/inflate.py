"""Undoing a content-encoding that we did not ask for, without ever holding more than we allow.

We send `accept-encoding: identity`; a provider or a proxy that compresses all the same is understood, within bounds.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

PIECE_BYTES = 64 * 1024  # no more than this is decoded at a time
_RATIO = 200  # text compresses ten- to fiftyfold; a bomb a thousandfold
_RATIO_FROM_BYTES = 1024 * 1024  # below this a high ratio harms nobody


class Bomb(Exception):
    """It decodes to far more than any reply would."""


class Broken(Exception):
    """It is not what its content-encoding says."""


class Inflater:
    """Decodes gzip or deflate piece by piece. `done` when the compressed stream came to its own end."""

    __slots__ = ("_bytes_in", "_bytes_out", "_first", "_stream")

    def __init__(self, encoding: str) -> None:
        self._stream = zlib.decompressobj(wbits=47)  # gzip or zlib, by its header
        self._first = b"" if encoding == "deflate" else None  # what came before the kind of deflate was known
        self._bytes_in = 0
        self._bytes_out = 0

    @property
    def done(self) -> bool:
        return self._stream.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces of at most 64 KiB. Raises Bomb or Broken."""
        if self._first is not None:
            data = self._first + data
            self._first = data if len(data) < 2 else None
            if self._first is not None:
                return
            if data[0] & 0x0F != 8 or int.from_bytes(data[:2]) % 31:
                self._stream = zlib.decompressobj(wbits=-15)  # some send deflate without zlib's header (RFC 1950, 2.2)
        self._bytes_in += len(data)
        more = False
        while data or more:
            if self._stream.eof:
                raise Broken("data after the end of the compressed body")
            try:
                piece = self._stream.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise Broken("the compressed body is damaged") from error
            data = self._stream.unconsumed_tail or self._stream.unused_data
            more = len(piece) == PIECE_BYTES and not self._stream.eof  # zlib may hold output back with no input left
            self._bytes_out += len(piece)
            if self._bytes_out > _RATIO_FROM_BYTES and self._bytes_out > _RATIO * self._bytes_in:
                raise Bomb(f"{self._bytes_in} compressed bytes became more than {self._bytes_out}")
            if piece:
                yield piece
