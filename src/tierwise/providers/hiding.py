"""Our key in what a provider says: some quote it, in a reply with status 200 too, or in the middle of a stream."""

from __future__ import annotations

from tierwise.providers.failures import REDACTED

HIDDEN = REDACTED.encode()


def hidden(data: bytes, secret: bytes) -> bytes:
    """The same without the secret; b"" is none."""
    return data.replace(secret, HIDDEN) if secret and secret in data else data


class Hiding:
    """Of a body that comes in pieces: wherever they are cut, together they are what `hidden` makes of the whole. What
    the secret begins with waits for the piece after it; an event of a stream never ends so."""

    __slots__ = ("_secret", "_waiting")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._waiting = b""

    def feed(self, piece: bytes) -> bytes:
        data = hidden(self._waiting + piece, self._secret)
        end = len(data) - self._begun(data)
        self._waiting = data[end:]
        return data[:end]

    def rest(self) -> bytes:
        """Once, when nothing more comes."""
        data, self._waiting = self._waiting, b""
        return data

    def _begun(self, data: bytes) -> int:
        """How many of the last bytes the secret may begin with."""
        first = self._secret[:1]
        at = data.find(first, max(0, len(data) - len(self._secret) + 1)) if first else -1
        while at >= 0 and not self._secret.startswith(data[at:]):
            at = data.find(first, at + 1)
        return len(data) - at if at >= 0 else 0
