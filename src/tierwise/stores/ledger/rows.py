"""What a durable ledger keeps of the books: holds and entries as rows, and what belongs to one commit."""

from __future__ import annotations

from typing import Literal

import msgspec

from tierwise.stores.ledger.accounts import Counts, Key

EntryKind = Literal["reported", "estimated", "overage", "suspense", "correction", "variance", "grant"]
HoldState = Literal["open", "suspense", "settled", "released"]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One posting on one account; never changed. `amount_nano` of a grant raises the limit, of all others it is spent,
    and below zero only for a correction or a variance."""

    at_s: int
    hold: str  # "" for what belongs to no call
    account: Key
    amount_nano: int
    kind: EntryKind
    snapshot: str = ""  # whose prices it was worked out with
    note: str = ""


class HoldRow(msgspec.Struct, frozen=True, kw_only=True):
    """A hold as a store keeps it."""

    id: str
    request: str
    model: str
    amount_nano: int
    tokens: int
    steps: int
    least_nano: int
    at_s: int
    snapshot: str
    accounts: tuple[Key, ...]
    state: HoldState = "open"
    cost_nano: int = 0  # what was posted for it in the end, corrections included
    closed_s: int = 0


class Changes(msgspec.Struct, frozen=True):
    """What has to be written so that the file says what the books say. Everything in it belongs to one commit."""

    accounts: dict[Key, Counts]
    holds: dict[str, HoldRow]
    entries: tuple[Entry, ...]
