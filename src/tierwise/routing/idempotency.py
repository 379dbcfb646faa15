"""Idempotency keys: the same request sent twice is served once, and answered with the same reply as long as it is kept.

The claim on a key is the ledger's, so it outlives this process; whole replies are kept in memory, within bounds.
Streams are not kept: their bytes went out as they came.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from tierwise.core.errors import BadRequest, Conflict
from tierwise.core.ports import CLAIM_S, Claim, Ledger
from tierwise.core.request import Payer

HEADER = "idempotency-key"
MAX_KEY = 256
REPLIES_KEPT = 1_000
BYTES_KEPT = 64 << 20
_OVERHEAD_BYTES = 512  # of one entry, besides its body


class Kept(msgspec.Struct, frozen=True):
    """A reply as it went out."""

    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    @property
    def size_bytes(self) -> int:
        return len(self.body) + sum(len(name) + len(value) for name, value in self.headers) + _OVERHEAD_BYTES


class Once:
    """One request under its key, from its claim to its end. `charged`: it has cost something, so that nobody may have
    it done again by the same key."""

    def __init__(self, replays: Replays, ledger: Ledger, payer: Payer, key: str, decision: str) -> None:
        self.decision = decision
        self.charged = False
        self._replays = replays
        self._ledger = ledger
        self._payer = payer
        self._key = key

    def keep(self, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """It is answered: whoever asks again gets this."""
        self.charged = True
        self._replays.put(self._payer, self._key, self.decision, Kept(body, tuple(headers)))

    def end(self) -> None:
        """On every way out."""
        self._replays.running.discard(self.decision)
        self._ledger.finish(self._payer, self._key, self.decision, charged=self.charged)


class Replays:
    """One per application."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.running: set[str] = set()  # decisions that have their key, or are about to get it
        self._clock = clock
        self._kept: OrderedDict[tuple[Payer, str], tuple[float, str, Kept]] = OrderedDict()
        self._bytes = 0

    async def begin(self, ledger: Ledger, payer: Payer, key: str, asked: bytes, decision: str) -> Once | Kept:
        """The right to serve this request, or the reply that it had before. `asked`: all that makes it this request.

        Raises BadRequest for a key that is none, and Conflict: 409 while the first one runs, 409 when its reply is not
        kept any more, 422 when it was another request. Raises Unavailable when the ledger cannot claim."""
        if not 1 <= len(key) <= MAX_KEY or not key.isprintable():
            raise BadRequest(
                f"must be 1 to {MAX_KEY} printable characters", param=HEADER, code="invalid_idempotency_key"
            )
        fingerprint = hashlib.sha256(asked).hexdigest()
        place = (payer, key)
        self.running.add(decision)  # first of all: whoever comes while the ledger still writes finds it there
        claim: Claim | None = Claim(decision, "")
        try:
            claim = await ledger.claim(payer, key, fingerprint, decision)
        finally:
            if claim is not None:
                self.running.discard(decision)
        if claim is None:
            return Once(self, ledger, payer, key, decision)
        about = {"decision": claim.decision, "idempotency_key": key}
        if claim.fingerprint != fingerprint:
            raise Conflict(
                "this Idempotency-Key was used for another request; use a new key for each request",
                code="idempotency_mismatch",
                status=422,
                metadata=about,
                should_retry=False,
            )
        kept = self._get(place, claim.decision)
        if kept is not None:
            return kept
        if claim.decision in self.running:
            raise Conflict(
                "the first request with this Idempotency-Key is still being answered; try again shortly",
                code="idempotency_in_progress",
                metadata=about,
                retry_after_s=1,
            )
        raise Conflict(
            f"the request with this Idempotency-Key is over (decision {claim.decision}), and its reply is not kept; "
            "use a new key to ask, and pay, again",
            code="idempotency_finished",
            metadata=about,
            should_retry=False,
        )

    def put(self, payer: Payer, key: str, decision: str, reply: Kept) -> None:
        if reply.size_bytes > BYTES_KEPT:
            return
        before = self._kept.pop((payer, key), None)  # of a claim that is over by now; its bytes go with it
        self._bytes += reply.size_bytes - (before[2].size_bytes if before is not None else 0)
        self._kept[payer, key] = (self._clock() + CLAIM_S, decision, reply)
        while len(self._kept) > REPLIES_KEPT or self._bytes > BYTES_KEPT or self._oldest_is_over():
            _, (_, _, old) = self._kept.popitem(last=False)
            self._bytes -= old.size_bytes

    def _get(self, place: tuple[Payer, str], decision: str) -> Kept | None:
        found = self._kept.get(place)
        if found is None or found[0] <= self._clock() or found[1] != decision:
            return None
        return found[2]

    def _oldest_is_over(self) -> bool:
        return bool(self._kept) and next(iter(self._kept.values()))[0] <= self._clock()
