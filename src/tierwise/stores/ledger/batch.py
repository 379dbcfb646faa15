"""What one commit of the durable ledger is made of."""

from __future__ import annotations

import asyncio
from typing import Literal

import msgspec

from tierwise.stores.ledger.accounts import Counts, Key
from tierwise.stores.ledger.chain import chained
from tierwise.stores.ledger.file import account_row, entry_row, hold_row
from tierwise.stores.ledger.rows import UNKEPT, Changes, HoldRow
from tierwise.stores.ledger.writer import Row, Rows


class ClaimRow(msgspec.Struct, frozen=True):
    """Who has an idempotency key, as the file keeps it."""

    fingerprint: str
    decision: str
    state: Literal["open", "done"]
    at_s: int


ClaimKey = tuple[str, str]  # payer (as JSON), key


FactKey = tuple[str, str]  # kind, name


class End(msgspec.Struct, frozen=True):
    """Where the chain of entries ends."""

    seq: int
    hash: bytes


class Batch(msgspec.Struct, kw_only=True):
    """What one commit writes, and who is answered after it. Kept until it is on the disk."""

    accounts: dict[Key, Counts] = {}
    holds: dict[str, HoldRow] = {}
    entries: list[Row] = []
    end: End | None = None  # after its entries, when it has any
    claims: dict[ClaimKey, ClaimRow] = {}
    facts: dict[FactKey, str] = {}
    undone: dict[str, None] = {}  # ids of holds that are in the file at most by mistake
    unclaimed: dict[ClaimKey, None] = {}
    forget_s: int = 0  # claims before this are forgotten
    prune_s: int = 0  # what ended before this may go, once this is written
    waiting: list[str] = []  # ids of the holds
    claiming: list[tuple[ClaimKey, asyncio.Future[None]]] = []

    def take(self, changes: Changes, end: End) -> End:
        """What the books have changed, in the order of their entries. Gives the end of the chain then."""
        self.accounts |= changes.accounts
        for key in [key for key in changes.accounts if key[0].startswith(UNKEPT)]:
            del self.accounts[key]
        self.holds |= changes.holds
        if not changes.entries:
            return end
        seq, hash = end.seq, end.hash
        for entry in changes.entries:
            seq += 1
            row = entry_row(seq, entry)
            hash = chained(hash, row)
            self.entries.append((*row, hash))
        self.end = End(seq, hash)
        return self.end

    def join(self, later: Batch) -> None:
        """One commit for both; what came later stands."""
        for id in later.undone:
            self.holds.pop(id, None)
        for key in later.unclaimed:
            self.claims.pop(key, None)
        self.accounts |= later.accounts
        self.holds |= later.holds
        self.entries += later.entries
        self.end = later.end or self.end
        self.claims |= later.claims
        self.facts |= later.facts
        self.undone |= later.undone
        self.unclaimed |= later.unclaimed
        self.forget_s = max(self.forget_s, later.forget_s)
        self.prune_s = max(self.prune_s, later.prune_s)
        self.waiting += later.waiting
        self.claiming += later.claiming

    def refuse(self) -> None:
        """Nobody is answered with a yes any more: take back what was only written for an answer."""
        for id in self.waiting:
            self.holds.pop(id, None)
            self.undone[id] = None
        for key, _ in self.claiming:
            self.claims.pop(key, None)
            self.unclaimed[key] = None
        self.waiting, self.claiming = [], []

    def is_empty(self) -> bool:
        kept = self.accounts or self.holds or self.entries or self.claims or self.facts
        return not (kept or self.undone or self.unclaimed or self.forget_s or self.prune_s)

    def rows(self, number: int, end: End, now_s: int) -> Rows:
        # Not before anything of it: a clock that was set back in between must not make an account older than its holds.
        written_s = max([now_s, *[row.closed_s for row in self.holds.values()]])
        return Rows(
            number=number,
            seq=end.seq,
            hash=end.hash,
            accounts=[account_row(key, counts, written_s) for key, counts in self.accounts.items()],
            holds=[hold_row(row) for row in self.holds.values()],
            entries=self.entries,
            requests=[(*key, *msgspec.structs.astuple(claim)) for key, claim in self.claims.items()],
            facts=[(*key, value) for key, value in self.facts.items()],
            undone_holds=[(id,) for id in self.undone],
            undone_requests=list(self.unclaimed),
            forget_requests_s=self.forget_s,
            prune_s=self.prune_s,
        )
