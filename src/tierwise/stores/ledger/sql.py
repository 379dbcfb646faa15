"""The durable ledger's schema, its migrations and every statement it runs, as named text. No logic beside them.

Amounts are nano-dollars, times seconds since 1970. What SQL can say of the laws of money is a CHECK; the rest is
`audit`'s. Of `entry` and `state` nothing is ever changed but by a commit of the one writer.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import apsw

# The order of Counts in `accounts`, which these rows are.
COUNTS = (
    "limit_nano", "bound_nano", "posted_nano", "pending_nano", "overage_nano", "tokens", "tokens_pending", "calls",
    "steps", "open", "first_s", "recent",
)  # fmt: skip
ACCOUNT = ("line", "subject", "start_s", *COUNTS)
# The order of HoldRow in `rows`; `accounts` is JSON: [[line, subject, start_s], ...].
HOLD = (
    "id", "request", "model", "amount_nano", "tokens", "steps", "least_nano", "at_s", "snapshot", "accounts", "state",
    "cost_nano", "closed_s",
)  # fmt: skip
# The fields that an entry's hash covers, in their order; the hash of the entry before it comes first.
HASHED = ("seq", "at_s", "hold", "line", "subject", "start_s", "amount_nano", "kind", "snapshot", "note")
ENTRY = (*HASHED, "hash")
REQUEST = ("payer", "key", "fingerprint", "decision", "state", "at_s")  # `payer` is JSON

MANY = 64  # rows in one statement; each size is prepared once


def create_tables(connection: apsw.Connection) -> None:
    # fmt: off
    connection.execute("""
        CREATE TABLE schema_version (version INTEGER NOT NULL);
        CREATE TABLE state (
            id INTEGER PRIMARY KEY CHECK (id = 0),
            file TEXT NOT NULL,            -- who this file is; a backup is another
            batch INTEGER NOT NULL,        -- the last commit, so that an unknown outcome can be looked up
            seq INTEGER NOT NULL,          -- the last entry and its hash: an end that was cut off is seen
            hash BLOB NOT NULL
        ) STRICT;
        INSERT INTO state VALUES (0, lower(hex(randomblob(16))), 0, 0, zeroblob(32));
        CREATE TABLE account (
            line TEXT NOT NULL,            -- a budget: scope, match, window
            subject TEXT NOT NULL,
            start_s INTEGER NOT NULL,      -- its window: a new one is a new row, so nothing is ever reset
            limit_nano INTEGER,
            bound_nano INTEGER,            -- the most that was ever allowed; NULL: nothing bounds it
            posted_nano INTEGER NOT NULL,
            pending_nano INTEGER NOT NULL CHECK (pending_nano >= 0),
            overage_nano INTEGER NOT NULL CHECK (overage_nano >= 0),
            tokens INTEGER NOT NULL CHECK (tokens >= 0),
            tokens_pending INTEGER NOT NULL CHECK (tokens_pending >= 0),
            calls INTEGER NOT NULL CHECK (calls >= 0),
            steps INTEGER NOT NULL CHECK (steps >= 0),
            open INTEGER NOT NULL CHECK (open >= 0),
            first_s INTEGER NOT NULL,
            recent TEXT NOT NULL,          -- JSON: fingerprints of the last steps
            PRIMARY KEY (line, subject, start_s),
            CHECK (open > 0 OR (pending_nano = 0 AND tokens_pending = 0)),
            CHECK (bound_nano IS NULL OR posted_nano + pending_nano <= bound_nano + overage_nano)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX account_open ON account (open) WHERE open > 0;
        CREATE TABLE hold (
            id TEXT NOT NULL PRIMARY KEY,
            request TEXT NOT NULL,
            model TEXT NOT NULL,
            amount_nano INTEGER NOT NULL CHECK (amount_nano >= 0),
            tokens INTEGER NOT NULL CHECK (tokens >= 0),
            steps INTEGER NOT NULL CHECK (steps >= 0),
            least_nano INTEGER NOT NULL CHECK (least_nano BETWEEN 0 AND amount_nano),
            at_s INTEGER NOT NULL,
            snapshot TEXT NOT NULL,        -- whose prices hold for this call
            accounts TEXT NOT NULL,        -- JSON: the accounts that it stands on
            state TEXT NOT NULL CHECK (state IN ('open', 'suspense', 'settled', 'released')),
            cost_nano INTEGER NOT NULL CHECK (cost_nano >= 0),
            closed_s INTEGER NOT NULL,     -- 0: still open
            CHECK (state != 'open' OR closed_s = 0),
            CHECK (state != 'released' OR cost_nano = 0)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX hold_open ON hold (at_s) WHERE closed_s = 0;
        CREATE TABLE entry (
            seq INTEGER PRIMARY KEY,
            at_s INTEGER NOT NULL,
            hold TEXT NOT NULL,            -- '' for what belongs to no call
            line TEXT NOT NULL,
            subject TEXT NOT NULL,
            start_s INTEGER NOT NULL,
            amount_nano INTEGER NOT NULL,
            kind TEXT NOT NULL
                CHECK (kind IN ('reported', 'estimated', 'overage', 'suspense', 'correction', 'variance', 'grant')),
            snapshot TEXT NOT NULL,
            note TEXT NOT NULL,
            hash BLOB NOT NULL CHECK (length(hash) = 32),
            CHECK (amount_nano >= 0 OR kind IN ('correction', 'variance', 'grant'))
        ) STRICT;
        CREATE TABLE request (
            payer TEXT NOT NULL,
            key TEXT NOT NULL,             -- the caller's idempotency key
            fingerprint TEXT NOT NULL,
            decision TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('open', 'done')),
            at_s INTEGER NOT NULL,
            PRIMARY KEY (payer, key)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX request_at_s ON request (at_s);
    """)
    # fmt: on


# The schema's version is the number of these that a file has seen. Only ever add to the end.
MIGRATIONS = (create_tables,)


def _rows(table: str, columns: tuple[str, ...], many: int) -> str:
    row = "(" + ", ".join("?" * len(columns)) + ")"
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([row] * many)}"  # noqa: S608  # names of ours


@functools.cache
def put_accounts(many: int) -> str:
    sets = ", ".join(f"{name} = excluded.{name}" for name in COUNTS)
    return f"{_rows('account', ACCOUNT, many)} ON CONFLICT (line, subject, start_s) DO UPDATE SET {sets}"


@functools.cache
def put_holds(many: int) -> str:
    sets = ", ".join(f"{name} = excluded.{name}" for name in ("least_nano", "state", "cost_nano", "closed_s"))
    return f"{_rows('hold', HOLD, many)} ON CONFLICT (id) DO UPDATE SET {sets}"


@functools.cache
def add_entries(many: int) -> str:
    """An entry that is there already is the same one: a batch whose outcome was unknown is written again."""
    return f"{_rows('entry', ENTRY, many)} ON CONFLICT (seq) DO NOTHING"


@functools.cache
def put_requests(many: int) -> str:
    sets = ", ".join(f"{name} = excluded.{name}" for name in REQUEST[2:])
    return f"{_rows('request', REQUEST, many)} ON CONFLICT (payer, key) DO UPDATE SET {sets}"


@functools.cache
def drop_holds(many: int) -> str:
    """Those that were refused after all, because nobody knew whether they had been written."""
    return f"DELETE FROM hold WHERE id IN ({', '.join('?' * many)})"  # noqa: S608


@functools.cache
def drop_requests(many: int) -> str:
    return f"DELETE FROM request WHERE (payer, key) IN (VALUES {', '.join(['(?, ?)'] * many)})"  # noqa: S608


FORGET_REQUESTS = "DELETE FROM request WHERE at_s < ?"
PUT_STATE = "UPDATE state SET batch = ?, seq = ?, hash = ?"
RENAME_FILE = "UPDATE state SET file = lower(hex(randomblob(16)))"  # of a backup, which is another file

READ_STATE = "SELECT file, batch, seq, hash FROM state"
READ_ACCOUNT = f"SELECT {', '.join(COUNTS)} FROM account WHERE (line, subject, start_s) = (?, ?, ?)"  # noqa: S608
READ_OPEN_ACCOUNTS = f"SELECT {', '.join(ACCOUNT)} FROM account WHERE open > 0"  # noqa: S608
READ_HOLD = f"SELECT {', '.join(HOLD)} FROM hold WHERE id = ?"  # noqa: S608
READ_OPEN_HOLDS = f"SELECT {', '.join(HOLD)} FROM hold WHERE closed_s = 0 ORDER BY at_s"  # noqa: S608
READ_PREPAID = "SELECT DISTINCT line, subject FROM account WHERE line >= 'credit/' AND line < 'credit0'"
READ_REQUEST = "SELECT fingerprint, decision, state, at_s FROM request WHERE (payer, key) = (?, ?)"
READ_ENTRIES = f"SELECT {', '.join(ENTRY)} FROM entry WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608
READ_HASH = "SELECT hash FROM entry WHERE seq = ?"
READ_LAST_SEQ = "SELECT max(seq) FROM entry"

# ---------------------------------------------------------------------------------- the audit: rows that should not be

# Accounts whose entries do not sum up to what they say. A grant raises the limit and is not spent.
WRONG_POSTED = """
SELECT line, subject, start_s, coalesce(a.posted_nano, 0), coalesce(e.sum, 0)
FROM account a FULL JOIN (
    SELECT line, subject, start_s, sum(amount_nano) AS sum FROM entry WHERE kind != 'grant'
    GROUP BY line, subject, start_s
) e USING (line, subject, start_s)
WHERE coalesce(a.posted_nano, 0) != coalesce(e.sum, 0)
"""
WRONG_CREDIT = """
SELECT line, subject, start_s, coalesce(a.limit_nano, 0), coalesce(e.sum, 0)
FROM (SELECT * FROM account WHERE line >= 'credit/' AND line < 'credit0') a FULL JOIN (
    SELECT line, subject, start_s, sum(amount_nano) AS sum FROM entry WHERE kind = 'grant'
    GROUP BY line, subject, start_s
) e USING (line, subject, start_s)
WHERE coalesce(a.limit_nano, 0) != min(coalesce(e.sum, 0), 9223372036854775807)
"""
# Accounts whose open holds do not sum up to what they say is held.
WRONG_PENDING = """
SELECT line, subject, start_s, coalesce(a.pending_nano, 0), coalesce(h.sum, 0), coalesce(a.open, 0),
       coalesce(h.count, 0), coalesce(a.tokens_pending, 0), coalesce(h.tokens, 0)
FROM (SELECT * FROM account WHERE open != 0 OR pending_nano != 0 OR tokens_pending != 0) a FULL JOIN (
    SELECT j.value ->> 0 AS line, j.value ->> 1 AS subject, j.value ->> 2 AS start_s,
           sum(hold.amount_nano) AS sum, count(*) AS count, sum(hold.tokens) AS tokens
    FROM hold, json_each(hold.accounts) j WHERE hold.closed_s = 0 GROUP BY 1, 2, 3
) h USING (line, subject, start_s)
WHERE (coalesce(a.pending_nano, 0), coalesce(a.open, 0), coalesce(a.tokens_pending, 0))
    != (coalesce(h.sum, 0), coalesce(h.count, 0), coalesce(h.tokens, 0))
"""
ABOVE_LIMIT = """
SELECT line, subject, start_s, posted_nano + pending_nano - bound_nano - overage_nano FROM account
WHERE bound_nano IS NOT NULL AND posted_nano + pending_nano > bound_nano + overage_nano
"""
# Closed holds that are not posted as they ended: once on each of their accounts, with corrections, in full.
WRONG_CLOSED = """
SELECT id, cost_nano, json_array_length(accounts), coalesce(e.sum, 0), coalesce(e.first, 0) FROM hold LEFT JOIN (
    SELECT hold, sum(amount_nano) AS sum, sum(kind IN ('reported', 'estimated', 'suspense')) AS first
    FROM entry WHERE hold != '' GROUP BY hold
) e ON e.hold = hold.id
WHERE coalesce(e.sum, 0) != iif(closed_s = 0 OR state = 'released', 0, cost_nano * json_array_length(accounts))
   OR coalesce(e.first, 0) != iif(closed_s = 0 OR state = 'released', 0, json_array_length(accounts))
"""
NO_HOLD = """
SELECT DISTINCT hold FROM entry WHERE hold != '' AND NOT EXISTS (SELECT 1 FROM hold h WHERE h.id = entry.hold)
"""
