"""The SQLite journal's schema, its migrations and every statement it runs, as named text. No logic beside them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import apsw

# The columns of the view `decisions`, for whoever looks into the file: read out of the records when they are asked for,
# so that they cost nothing when a record is written.
EPISODE_FIELDS = {
    "key": "coalesce(record ->> '$.episode.payer.key', '')",
    "user": "coalesce(record ->> '$.episode.payer.user', '')",
    "team": "coalesce(record ->> '$.episode.payer.team', '')",
    "organisation": "coalesce(record ->> '$.episode.payer.organisation', '')",
    "session": "coalesce(record ->> '$.episode.hints.session', '')",
    "workflow": "coalesce(record ->> '$.episode.hints.workflow', '')",
    "policy": "record ->> '$.episode.policy'",
    "requested": "record ->> '$.episode.requested'",
    "routed": "coalesce(record ->> '$.outcome.routed', '')",
    "served": "coalesce(record ->> '$.outcome.served', '')",
    "billed": "coalesce(record ->> '$.outcome.billed', '')",
    "status": "record ->> '$.outcome.status'",
    "code": "coalesce(record ->> '$.outcome.code', '')",
    "cost_nano": "record ->> '$.outcome.cost_nano'",
    "baseline_nano": "record ->> '$.outcome.baseline_nano'",
    "latency_ms": "coalesce(record ->> '$.outcome.latency_ms', 0)",
    "first_token_ms": "record ->> '$.outcome.first_token_ms'",
    "attempts": "coalesce(record ->> '$.outcome.attempts', 0)",
    "input_tokens": "coalesce(record ->> '$.outcome.usage.input_tokens', 0)",
    "cached_input_tokens": "coalesce(record ->> '$.outcome.usage.cached_input_tokens', 0)",
    "output_tokens": "coalesce(record ->> '$.outcome.usage.output_tokens', 0)",
    "reasoning_tokens": "coalesce(record ->> '$.outcome.usage.reasoning_tokens', 0)",
}


@functools.cache
def add_episodes(many: int) -> str:
    """So many episodes by one statement, which costs a third of one statement each. The first record of an episode
    stands, so that writing twice counts once."""
    rows = ", ".join(["(?, ?, ?, ?, ?)"] * many)
    return f"INSERT INTO episodes (id, at_s, snapshot, record, grams) VALUES {rows} ON CONFLICT (id) DO NOTHING"  # noqa: S608


# The hour's sums, kept as episodes are written so that no report has to read them all.
ADD_ROLLUP = """
INSERT INTO rollups (hour, model, team, requests, cost_nano, baseline_nano, saved_nano, unpriced, input_tokens,
                     output_tokens)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (hour, model, team) DO UPDATE SET
    requests = requests + excluded.requests,
    cost_nano = cost_nano + excluded.cost_nano,
    baseline_nano = baseline_nano + excluded.baseline_nano,
    saved_nano = saved_nano + excluded.saved_nano,
    unpriced = unpriced + excluded.unpriced,
    input_tokens = input_tokens + excluded.input_tokens,
    output_tokens = output_tokens + excluded.output_tokens
"""

# Something said of a reply. There may be several of one reply.
ADD_FEEDBACK = """
INSERT INTO feedback (decision_id, at_s, score, source, data) VALUES (?, ?, ?, ?, ?)
"""

# What was asked beside an episode for learning alone.
ADD_SHADOW = "INSERT INTO shadows (decision_id, at_s, data) VALUES (?, ?, ?)"

# Of one episode, in its order, up to a number.
READ_SHADOWS = "SELECT data FROM shadows WHERE decision_id = ? AND rowid <= ? ORDER BY rowid"

# A snapshot under its hash; the same hash is the same data.
ADD_SNAPSHOT = """
INSERT INTO snapshots (hash, at_s, data) VALUES (?, ?, ?) ON CONFLICT (hash) DO NOTHING
"""

# One record by the id of its episode.
READ_RECORD = "SELECT record, grams FROM episodes WHERE id = ?"

# Two ids at most that begin so. No letter comes after the last one of Unicode.
READ_BEGINNING = "SELECT id FROM episodes WHERE id >= ?1 AND id <= ?1 || char(1114111) ORDER BY id LIMIT 2"

# The newest records; of one second, the last written first.
READ_RECENT = "SELECT id, record, grams FROM episodes ORDER BY at_s DESC, rowid DESC LIMIT ?"

# The oldest records of some time, from a place on: (at_s, rowid) of the last one that is known.
READ_BETWEEN = """
SELECT at_s, rowid, id, record, grams FROM episodes
WHERE at_s >= ?1 AND (at_s, rowid) > (?1, ?2) AND at_s < ?3 ORDER BY at_s, rowid LIMIT ?4
"""

# What was said in some time of episodes that are not here.
COUNT_STRAYS = """
SELECT COUNT(*) FROM feedback
WHERE at_s >= ? AND at_s < ? AND NOT EXISTS (SELECT 1 FROM episodes WHERE id = feedback.decision_id)
"""

# One snapshot by its hash.
READ_SNAPSHOT = "SELECT data FROM snapshots WHERE hash = ?"

# What was said of one reply, in the order it was said, up to a number.
READ_FEEDBACK = "SELECT data FROM feedback WHERE decision_id = ? AND rowid <= ? ORDER BY rowid"

# The last numbers of what was said.
READ_HEARD = "SELECT coalesce((SELECT MAX(rowid) FROM feedback), 0), coalesce((SELECT MAX(rowid) FROM shadows), 0)"

# Episodes before some time of which something was said, by its numbers: (?1, ?2] of feedback, (?3, ?4] of shadows.
READ_LATE = """
SELECT id, record, grams FROM episodes
WHERE at_s < ?5 AND id IN (
    SELECT decision_id FROM feedback WHERE rowid > ?1 AND rowid <= ?2
    UNION SELECT decision_id FROM shadows WHERE rowid > ?3 AND rowid <= ?4 AND at_s < ?5
) ORDER BY at_s, rowid
"""

# Sums for each model since an hour, the dearest first.
READ_TOTALS = """
SELECT model, SUM(requests), SUM(cost_nano), SUM(baseline_nano), SUM(saved_nano), SUM(unpriced), SUM(input_tokens),
       SUM(output_tokens)
FROM rollups WHERE hour >= ? GROUP BY model ORDER BY SUM(cost_nano) DESC, model
"""

# The oldest episodes that are past their time, a few at once so that writing does not wait long behind it.
FORGET_EPISODES = """
DELETE FROM episodes WHERE rowid IN (SELECT rowid FROM episodes WHERE at_s < ? ORDER BY at_s LIMIT ?)
"""

# Feedback that is past its time.
FORGET_FEEDBACK = "DELETE FROM feedback WHERE at_s < ?"

# Shadows that are past their time, which is that of their episode.
FORGET_SHADOWS = "DELETE FROM shadows WHERE at_s < ?"

# Snapshots that are past their time and that no episode was decided with; never the newest, which may still serve.
FORGET_SNAPSHOTS = """
DELETE FROM snapshots
WHERE at_s < ? AND hash NOT IN (SELECT snapshot FROM episodes) AND rowid < (SELECT MAX(rowid) FROM snapshots)
"""

# Which migrations a file has seen.
READ_VERSION = "SELECT MAX(version) FROM schema_version"

# That a migration was done.
ADD_VERSION = "INSERT INTO schema_version (version) VALUES (?)"

# What is in a file, to tell a journal from somebody else's database.
READ_TABLES = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"


def create_first_tables(connection: apsw.Connection) -> None:
    connection.execute(
        """
        CREATE TABLE schema_version (version INTEGER PRIMARY KEY) STRICT;

        CREATE TABLE episodes (
            id TEXT PRIMARY KEY NOT NULL,
            at_s INTEGER NOT NULL,
            snapshot TEXT NOT NULL,
            key TEXT NOT NULL,
            user TEXT NOT NULL,
            team TEXT NOT NULL,
            organisation TEXT NOT NULL,
            session TEXT NOT NULL,
            workflow TEXT NOT NULL,
            policy TEXT NOT NULL,
            requested TEXT NOT NULL,
            routed TEXT NOT NULL,
            served TEXT NOT NULL,
            billed TEXT NOT NULL,
            status TEXT NOT NULL,
            code TEXT NOT NULL,
            cost_nano INTEGER,
            baseline_nano INTEGER,
            latency_ms INTEGER NOT NULL,
            first_token_ms INTEGER,
            attempts INTEGER NOT NULL,
            input_tokens INTEGER NOT NULL,
            cached_input_tokens INTEGER NOT NULL,
            cache_write_tokens INTEGER NOT NULL,
            output_tokens INTEGER NOT NULL,
            reasoning_tokens INTEGER NOT NULL,
            record BLOB NOT NULL
        ) STRICT;
        CREATE INDEX episodes_at_s ON episodes (at_s);
        CREATE INDEX episodes_session ON episodes (session) WHERE session <> '';

        CREATE TABLE rollups (
            hour INTEGER NOT NULL,
            model TEXT NOT NULL,
            team TEXT NOT NULL,
            requests INTEGER NOT NULL,
            cost_nano INTEGER NOT NULL,
            baseline_nano INTEGER NOT NULL,
            saved_nano INTEGER NOT NULL,
            unpriced INTEGER NOT NULL,
            input_tokens INTEGER NOT NULL,
            output_tokens INTEGER NOT NULL,
            PRIMARY KEY (hour, model, team)
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE snapshots (hash TEXT PRIMARY KEY NOT NULL, at_s INTEGER NOT NULL, data BLOB NOT NULL) STRICT;

        CREATE TABLE feedback (
            decision_id TEXT NOT NULL,
            at_s INTEGER NOT NULL,
            score REAL NOT NULL,
            source TEXT NOT NULL,
            data BLOB NOT NULL
        ) STRICT;
        CREATE INDEX feedback_decision ON feedback (decision_id);
        """
    )


def read_columns_from_records(connection: apsw.Connection) -> None:
    """A record is written once, and what was copied out of it into columns is read from it instead."""
    fields = ", ".join(f'{expression} AS "{name}"' for name, expression in EPISODE_FIELDS.items())
    connection.execute(
        f"""
        DROP INDEX episodes_at_s;
        DROP INDEX episodes_session;
        ALTER TABLE episodes RENAME TO old_episodes;
        CREATE TABLE episodes (
            id TEXT PRIMARY KEY NOT NULL,
            at_s INTEGER NOT NULL,
            snapshot TEXT NOT NULL,
            record TEXT NOT NULL
        ) STRICT;
        INSERT INTO episodes (id, at_s, snapshot, record)
            SELECT id, at_s, snapshot, CAST(record AS TEXT) FROM old_episodes ORDER BY rowid;
        DROP TABLE old_episodes;
        CREATE INDEX episodes_at_s ON episodes (at_s);
        CREATE VIEW decisions AS SELECT id, at_s, snapshot, {fields} FROM episodes;
        """  # noqa: S608  # names of ours
    )


def create_shadows(connection: apsw.Connection) -> None:
    """Shadows answer after the record of their episode was written, and that is written once."""
    connection.execute(
        """
        CREATE TABLE shadows (decision_id TEXT NOT NULL, at_s INTEGER NOT NULL, data TEXT NOT NULL) STRICT;
        CREATE INDEX shadows_decision ON shadows (decision_id);
        """
    )


def keep_grams_apart(connection: apsw.Connection) -> None:
    """Made by the writer, when the record is text already. NULL: there are none, or they are in the record."""
    connection.execute("ALTER TABLE episodes ADD COLUMN grams BLOB")


# The schema's version is the number of these that a file has seen. Only ever add to the end.
MIGRATIONS = (create_first_tables, read_columns_from_records, create_shadows, keep_grams_apart)
