"""The durable ledger's schema, its migrations and every statement it runs, as named text. No logic beside them.

Amounts are nano-dollars, times seconds since 1970. What SQL can say of the laws of money is a CHECK; the rest is
`audit`'s. Of `entry` and `state` nothing is ever changed but by a commit of the one writer.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from tierwise.stores.ledger.chain import NOTHING, rechained

if TYPE_CHECKING:
    import apsw

# The order of Counts in `accounts`, which these rows are.
COUNTS = (
    "limit_nano", "bound_nano", "posted_nano", "pending_nano", "overage_nano", "tokens", "tokens_pending", "calls",
    "steps", "open", "first_s", "recent",
)  # fmt: skip
ACCOUNT = ("line", "subject", "start_s", *COUNTS, "written_s")
# The order of HoldRow in `rows`; `accounts` is JSON, here and in ENTRY: [[line, subject, start_s], ...].
HOLD = (
    "id", "request", "model", "amount_nano", "tokens", "steps", "least_nano", "at_s", "snapshot", "accounts", "state",
    "cost_nano", "closed_s",
)  # fmt: skip
# The fields that an entry's hash covers, in their order; the hash of the entry before it comes first.
HASHED = ("seq", "at_s", "hold", "accounts", "amount_nano", "kind", "snapshot", "note")
ENTRY = (*HASHED, "hash")
FACT = ("kind", "name", "value")
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


def create_facts(connection: apsw.Connection) -> None:
    connection.execute("""
        CREATE TABLE fact (
            kind TEXT NOT NULL CHECK (kind IN ('variance', 'billed', 'traffic')),
            name TEXT NOT NULL,            -- a variance's id; a hold's; a budget's
            value TEXT NOT NULL,           -- ''; the model whose price it had, where that is not the hold's; JSON
            PRIMARY KEY (kind, name)
        ) STRICT, WITHOUT ROWID;
    """)


def create_pruning(connection: apsw.Connection) -> None:
    """What it takes to let go of what is long past, and still to say what it came to."""
    # fmt: off
    connection.execute("""
        ALTER TABLE state ADD COLUMN pruned_s INTEGER NOT NULL DEFAULT 0;    -- closed holds before this may be gone
        ALTER TABLE account ADD COLUMN written_s INTEGER NOT NULL DEFAULT 0; -- when anything happened on it last
        CREATE TABLE pruned (              -- what the holds that are gone came to
            day INTEGER NOT NULL,          -- since 1970, UTC, when the calls began
            model TEXT NOT NULL,           -- as billed
            cost_nano INTEGER NOT NULL,
            calls INTEGER NOT NULL,
            posted_nano INTEGER NOT NULL,  -- on all their accounts together
            posted INTEGER NOT NULL,       -- how many of them stood on any
            PRIMARY KEY (day, model)
        ) STRICT, WITHOUT ROWID;
        DELETE FROM account WHERE line = 'cap/request' OR substr(line, 1, 8) = 'request[';
        UPDATE account SET written_s = unixepoch();
        UPDATE hold SET closed_s = max(closed_s, last_s)
            FROM (SELECT hold AS id, max(at_s) AS last_s FROM entry WHERE kind = 'correction' GROUP BY hold) late
            WHERE late.id = hold.id AND closed_s > 0;
        CREATE INDEX hold_closed ON hold (closed_s) WHERE closed_s > 0 AND substr(id, 1, 6) != 'grant ';
    """)
    # fmt: on


def name_accounts(connection: apsw.Connection) -> None:
    """What is posted on several accounts is one entry that names them; the chain is made anew, link by link. Raises
    apsw.CorruptError for one that is broken."""
    # fmt: off
    connection.execute("""
        ALTER TABLE entry RENAME TO old_entry;
        CREATE TABLE entry (
            seq INTEGER PRIMARY KEY,
            at_s INTEGER NOT NULL,
            hold TEXT NOT NULL,            -- '' for what belongs to no call
            accounts TEXT NOT NULL CHECK (accounts != '[]'),
            amount_nano INTEGER NOT NULL,  -- on each of them
            kind TEXT NOT NULL
                CHECK (kind IN ('reported', 'estimated', 'overage', 'suspense', 'correction', 'variance', 'grant')),
            snapshot TEXT NOT NULL,
            note TEXT NOT NULL,
            hash BLOB NOT NULL CHECK (length(hash) = 32),
            CHECK (amount_nano >= 0 OR kind IN ('correction', 'variance', 'grant'))
        ) STRICT;
    """)
    # fmt: on
    end = connection.execute(READ_END).get or (0, NOTHING)
    entries = rechained(connection.execute(READ_OLD_ENTRIES), end)
    connection.executemany("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", entries)  # whatever ENTRY is later
    connection.execute("""
        UPDATE state SET hash = entry.hash FROM entry WHERE entry.seq = state.seq;
        DROP TABLE old_entry;
    """)


# The schema's version is the number of these that a file has seen. Only ever add to the end.
MIGRATIONS = (create_tables, create_facts, create_pruning, name_accounts)


def _rows(table: str, columns: tuple[str, ...], many: int) -> str:
    row = "(" + ", ".join("?" * len(columns)) + ")"
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([row] * many)}"  # noqa: S608  # names of ours


@functools.cache
def put_accounts(many: int) -> str:
    sets = ", ".join(f"{name} = excluded.{name}" for name in (*COUNTS, "written_s"))
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
def put_facts(many: int) -> str:
    return f"{_rows('fact', FACT, many)} ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value"


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

READ_STATE = "SELECT file, batch, seq, hash, pruned_s FROM state"
READ_ACCOUNT = f"SELECT {', '.join(COUNTS)} FROM account WHERE (line, subject, start_s) = (?, ?, ?)"  # noqa: S608
READ_OPEN_ACCOUNTS = f"SELECT line, subject, start_s, {', '.join(COUNTS)} FROM account WHERE open > 0"  # noqa: S608
READ_HOLD = f"SELECT {', '.join(HOLD)} FROM hold WHERE id = ?"  # noqa: S608
READ_LAST_HOLD = "SELECT id FROM hold WHERE id < 'grant ' ORDER BY id DESC LIMIT 1"
# The oldest first, of those that began at that time or before it.
READ_OPEN_HOLDS = f"SELECT {', '.join(HOLD)} FROM hold WHERE closed_s = 0 AND at_s <= ? ORDER BY at_s LIMIT ?"  # noqa: S608
COUNT_OPEN_HOLDS = "SELECT count(*) FROM hold WHERE closed_s = 0"
READ_PREPAID = "SELECT DISTINCT line, subject FROM account WHERE line >= 'credit/' AND line < 'credit0'"
READ_REQUEST = "SELECT fingerprint, decision, state, at_s FROM request WHERE (payer, key) = (?, ?)"
READ_FACT = "SELECT value FROM fact WHERE (kind, name) = (?, ?)"
READ_FACTS = "SELECT name, value FROM fact WHERE kind = ?"
READ_ENTRIES = f"SELECT {', '.join(ENTRY)} FROM entry WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608
READ_OLD_ENTRIES = """
SELECT seq, at_s, hold, line, subject, start_s, amount_nano, kind, snapshot, note, hash FROM old_entry ORDER BY seq
"""
READ_END = "SELECT seq, hash FROM state"
READ_HASH = "SELECT hash FROM entry WHERE seq = ?"
READ_LAST_AT = "SELECT at_s FROM entry ORDER BY seq DESC LIMIT 1"
READ_LAST_SEQ = "SELECT max(seq) FROM entry"

# ---------------------------------------------------------------------------------- the audit: rows that should not be

# What accounts say stands below what their entries or holds say, and both are summed by one sort. A join of the two has
# no index to go by: of 24,000 sessions it took half a minute, at every start.
#
# Accounts whose entries do not sum up to what they say. A grant raises the limit and is not spent. Missing may be those
# of single requests, and those of windows that ended long ago; a lifetime, a credit and a variance begin below zero.
WRONG_POSTED = """
SELECT line, subject, start_s, posted, entered FROM (
    SELECT line, subject, start_s, sum(posted) AS posted, sum(entered) AS entered, max(there) AS there,
           max(at_s) AS last_s
    FROM (
        SELECT line, subject, start_s, posted_nano AS posted, 0 AS entered, 1 AS there, 0 AS at_s FROM account
        UNION ALL
        SELECT j.value ->> 0, j.value ->> 1, j.value ->> 2, 0, amount_nano, 0, at_s FROM entry, json_each(accounts) j
        WHERE kind != 'grant'
    ) GROUP BY line, subject, start_s
) WHERE posted != entered
  AND NOT (there = 0 AND (
    line = 'cap/request' OR substr(line, 1, 8) = 'request['
    OR (start_s > 0 AND start_s < (SELECT pruned_s FROM state) AND last_s < (SELECT pruned_s FROM state))
  ))
"""
WRONG_CREDIT = """
SELECT line, subject, start_s, sum(credit), sum(granted) FROM (
    SELECT line, subject, start_s, coalesce(limit_nano, 0) AS credit, 0 AS granted FROM account
    WHERE line >= 'credit/' AND line < 'credit0'
    UNION ALL
    SELECT j.value ->> 0, j.value ->> 1, j.value ->> 2, 0, amount_nano FROM entry, json_each(accounts) j
    WHERE kind = 'grant'
) GROUP BY line, subject, start_s HAVING sum(credit) != sum(granted)
"""
# Accounts whose open holds do not sum up to what they say is held.
WRONG_PENDING = """
SELECT line, subject, start_s, sum(pending), sum(held), sum(open), sum(holds), sum(tokens_pending), sum(tokens) FROM (
    SELECT line, subject, start_s, pending_nano AS pending, 0 AS held, open, 0 AS holds, tokens_pending, 0 AS tokens
    FROM account WHERE open != 0 OR pending_nano != 0 OR tokens_pending != 0
    UNION ALL
    SELECT j.value ->> 0, j.value ->> 1, j.value ->> 2, 0, hold.amount_nano, 0, 1, 0, hold.tokens
    FROM hold, json_each(hold.accounts) j
    WHERE hold.closed_s = 0 AND j.value ->> 0 != 'cap/request' AND substr(j.value ->> 0, 1, 8) != 'request['
) GROUP BY line, subject, start_s
HAVING (sum(pending), sum(open), sum(tokens_pending)) != (sum(held), sum(holds), sum(tokens))
"""
ABOVE_LIMIT = """
SELECT line, subject, start_s, posted_nano + pending_nano - bound_nano - overage_nano FROM account
WHERE bound_nano IS NOT NULL AND posted_nano + pending_nano > bound_nano + overage_nano
"""
# Closed holds that are not posted as they ended: once on each of their accounts, with corrections, in full. One that
# was released has corrections alone, when it turns out to have cost something.
WRONG_CLOSED = """
SELECT id, cost_nano, json_array_length(accounts), coalesce(e.sum, 0), coalesce(e.first, 0) FROM hold LEFT JOIN (
    SELECT hold, sum(amount_nano * json_array_length(accounts)) AS sum,
           sum(iif(kind IN ('reported', 'estimated', 'suspense'), json_array_length(accounts), 0)) AS first,
           count(*) = sum(kind = 'correction') AS late
    FROM entry WHERE hold != '' GROUP BY hold
) e ON e.hold = hold.id
WHERE coalesce(e.sum, 0) != iif(closed_s = 0 OR state = 'released', 0, cost_nano * json_array_length(accounts))
   OR coalesce(e.first, 0) != iif(closed_s = 0 OR state = 'released' OR e.late, 0, json_array_length(accounts))
"""
NO_HOLD = """
SELECT DISTINCT hold FROM entry WHERE hold != '' AND at_s >= (SELECT pruned_s FROM state)
AND NOT EXISTS (SELECT 1 FROM hold h WHERE h.id = entry.hold)
"""
# The holds that are gone, as they were counted when they went, and as their entries say.
WRONG_PRUNED = """
SELECT p.calls, p.nano, e.calls, e.nano
FROM (SELECT coalesce(sum(posted), 0) AS calls, coalesce(sum(posted_nano), 0) AS nano FROM pruned) p,
     (SELECT count(DISTINCT hold) AS calls, coalesce(sum(amount_nano * json_array_length(accounts)), 0) AS nano
      FROM entry
      WHERE hold != '' AND NOT EXISTS (SELECT 1 FROM hold h WHERE h.id = entry.hold)) e
WHERE (p.calls, p.nano) != (e.calls, e.nano)
"""

# ---------------------------------------------------------------------------------- pruning: `prune`'s

PRUNED_S = "UPDATE state SET pruned_s = max(pruned_s, ?)"
CLOSED_BEFORE = """
SELECT id FROM hold WHERE closed_s > 0 AND substr(id, 1, 6) != 'grant ' AND closed_s < ? ORDER BY closed_s LIMIT ?
"""
# Of the ids that stand in JSON.
COUNT_PRUNED = """
INSERT INTO pruned SELECT at_s / 86400, coalesce(fact.value, model), sum(cost_nano), count(*),
       sum(cost_nano * json_array_length(accounts)), sum(accounts != '[]')
FROM hold LEFT JOIN fact ON fact.kind = 'billed' AND fact.name = hold.id
WHERE hold.id IN (SELECT value FROM json_each(?)) AND state != 'released' GROUP BY 1, 2
ON CONFLICT (day, model) DO UPDATE SET cost_nano = cost_nano + excluded.cost_nano, calls = calls + excluded.calls,
       posted_nano = posted_nano + excluded.posted_nano, posted = posted + excluded.posted
"""
DROP_BILLED = "DELETE FROM fact WHERE kind = 'billed' AND name IN (SELECT value FROM json_each(?))"
DROP_CLOSED = "DELETE FROM hold WHERE id IN (SELECT value FROM json_each(?))"
ACCOUNTS_AFTER = """
SELECT line, subject, start_s, open = 0 AND start_s > 0 AND written_s < ? FROM account
WHERE (line, subject, start_s) > (?, ?, ?) ORDER BY line, subject, start_s LIMIT ?
"""


@functools.cache
def drop_accounts(many: int) -> str:
    rows = ", ".join(["(?, ?, ?)"] * many)
    return f"DELETE FROM account WHERE open = 0 AND (line, subject, start_s) IN (VALUES {rows})"  # noqa: S608
