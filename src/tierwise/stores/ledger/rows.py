"""What a durable ledger keeps of the books: holds and entries as rows, and what belongs to one commit."""

from __future__ import annotations

from typing import Literal

import msgspec

from tierwise.core.budget import Hold
from tierwise.stores.ledger.accounts import Counts, Key

EntryKind = Literal["reported", "estimated", "overage", "suspense", "correction", "variance", "grant"]
HoldState = Literal["open", "suspense", "settled", "released"]
# A store keeps no accounts of these lines. What one request may come to matters while its process lives: each has an id
# of its own, and its entries stay.
UNKEPT = ("request[", "cap/")
TOP_UP = "grant "  # what the id of a top-up begins with, among those of holds


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One posting on each of its accounts; never changed. `amount_nano` is posted on every one of them: of a grant it
    raises the limit, of all others it is spent, and below zero only for a correction or a variance."""

    at_s: int
    hold: str  # "" for what belongs to no call
    accounts: tuple[Key, ...]
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
    closed_s: int = 0  # when something was posted for it last; 0: still open

    @property
    def least_tokens(self) -> int:
        """Those that were used for certain. Only the money is noted while a call is under way, and what is certain of
        it was at most as dear as the tokens that it was held for; where nothing has a price, all may have been used."""
        return -(-self.tokens * self.least_nano // self.amount_nano) if self.least_nano else self.tokens


def row_of(hold: Hold, amount_nano: int, accounts: tuple[Key, ...]) -> HoldRow:
    """A hold that was admitted."""
    return HoldRow(
        id=hold.id,
        request=hold.request or hold.id,
        model=hold.model,
        amount_nano=amount_nano,
        tokens=hold.tokens,
        steps=hold.steps,
        least_nano=min(hold.least_nano, amount_nano),
        at_s=hold.at_s,
        snapshot=hold.snapshot,
        accounts=accounts,
    )


def posting(row: HoldRow, kind: EntryKind, amount_nano: int, at_s: int, note: str = "") -> Entry:
    """What is posted for a call, on all accounts that it stands on."""
    return Entry(
        at_s=at_s,
        hold=row.id,
        accounts=row.accounts,
        amount_nano=amount_nano,
        kind=kind,
        snapshot=row.snapshot,
        note=note,
    )


def top_up_of(id: str, account: Key, at_s: int) -> HoldRow:
    """That a top-up was counted, so that its id counts once. Kept as a closed hold of nothing."""
    return HoldRow(
        id=f"{TOP_UP}{id}",
        request="",
        model="",
        amount_nano=0,
        tokens=0,
        steps=0,
        least_nano=0,
        at_s=at_s,
        snapshot="",
        accounts=(account,),
        state="released",
        closed_s=at_s,
    )


class Changes(msgspec.Struct, frozen=True):
    """What has to be written so that the file says what the books say. Everything in it belongs to one commit."""

    accounts: dict[Key, Counts]
    holds: dict[str, HoldRow]
    entries: tuple[Entry, ...]
