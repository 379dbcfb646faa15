"""The registry's schema and every statement it runs, as named text. No logic beside them."""

from __future__ import annotations

APPLICATION = 0x74777267  # "twrg", as PRAGMA application_id: whose file it is

SCHEMA = """
CREATE TABLE keys (
    name TEXT PRIMARY KEY,
    grants TEXT NOT NULL,
    prefix TEXT NOT NULL,
    made_s INTEGER NOT NULL,
    rotated_s INTEGER,
    revoked_s INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE secrets (
    hash BLOB PRIMARY KEY CHECK (length(hash) = 32),
    key TEXT NOT NULL REFERENCES keys (name),
    until_s INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE budgets (id TEXT PRIMARY KEY, budget TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE credits (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    scope TEXT NOT NULL,
    subject TEXT NOT NULL,
    amount_nano INTEGER NOT NULL,
    at_s INTEGER NOT NULL,
    made_by TEXT NOT NULL
) STRICT;
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
"""
VARIANCES = """
CREATE TABLE variances (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    line TEXT NOT NULL,
    subject TEXT NOT NULL,
    amount_nano INTEGER NOT NULL,
    note TEXT NOT NULL,
    at_s INTEGER NOT NULL
) STRICT;
"""
MIGRATIONS = (SCHEMA, VARIANCES)  # only ever add to the end
VERSION = len(MIGRATIONS)  # as PRAGMA user_version: how many of them a file has seen

READ_TABLES = "SELECT count(*) FROM sqlite_schema"
READ_PEPPER_CHECK = "SELECT value FROM facts WHERE name = 'pepper'"
ADD_PEPPER_CHECK = "INSERT INTO facts (name, value) VALUES ('pepper', ?)"

READ_KEYS = "SELECT grants, prefix, made_s, rotated_s, revoked_s FROM keys ORDER BY made_s, name"
READ_SECRETS = "SELECT hash, key, until_s FROM secrets ORDER BY hash"
READ_BUDGETS = "SELECT budget FROM budgets ORDER BY id"
READ_CREDITS = "SELECT id, scope, subject, amount_nano, at_s, made_by FROM credits ORDER BY number"
READ_VARIANCES = "SELECT id, line, subject, amount_nano, note, at_s FROM variances ORDER BY number"
READ_VARIANCE = "SELECT amount_nano FROM variances WHERE id = ?"
READ_KEY = "SELECT revoked_s FROM keys WHERE name = ?"
READ_CREDIT = "SELECT scope, subject, amount_nano FROM credits WHERE id = ?"

ADD_KEY = "INSERT INTO keys (name, grants, prefix, made_s) VALUES (?, ?, ?, ?)"
ADD_HASH = "INSERT INTO secrets (hash, key) VALUES (?, ?)"
SET_GRANT = "UPDATE keys SET grants = ? WHERE name = ?"
SET_ROTATED = "UPDATE keys SET prefix = ?, rotated_s = ? WHERE name = ?"
END_SECRETS = "UPDATE secrets SET until_s = ? WHERE key = ? AND (until_s IS NULL OR until_s > ?)"
FORGET_SECRETS = "DELETE FROM secrets WHERE key = ? AND until_s <= ?"
FORGET_ALL_SECRETS = "DELETE FROM secrets WHERE key = ?"
REVOKE_KEY = "UPDATE keys SET revoked_s = ? WHERE name = ? AND revoked_s IS NULL"
SET_BUDGET = "INSERT INTO budgets (id, budget) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET budget = excluded.budget"
REMOVE_BUDGET = "DELETE FROM budgets WHERE id = ?"
ADD_CREDIT = "INSERT INTO credits (id, scope, subject, amount_nano, at_s, made_by) VALUES (?, ?, ?, ?, ?, ?)"
ADD_VARIANCE = "INSERT INTO variances (id, line, subject, amount_nano, note, at_s) VALUES (?, ?, ?, ?, ?, ?)"
