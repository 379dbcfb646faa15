"""How soon a gateway is back on a ledger that has grown large (C6): a million open holds, ten million closed ones."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.reliability.bars import Check, Found, Run, Scale, count
from scripts.reliability.gateway import HEADERS, KEYED
from scripts.reliability.served import session, start
from tests.support.gateway import world
from tests.support.ledgers import path_of
from tests.support.upstream import FakeUpstream, openai_stream
from tierwise.stores.ledger import sql
from tierwise.stores.ledger.accounts import Counts, Key, Line
from tierwise.stores.ledger.audit import audit
from tierwise.stores.ledger.chain import NOTHING, chained
from tierwise.stores.ledger.file import LEDGER, account_row, entry_row, hold_row
from tierwise.stores.ledger.rows import Entry, HoldRow
from tierwise.stores.ledger.windows import NEVER_S
from tierwise.stores.ledger.writer import Row, put_many
from tierwise.stores.sqlite_file import open_file

HELD_NANO, LEAST_NANO, COST_NANO = 100, 10, 90
SESSIONS, USERS, TEAMS = 20_000, 1_000, 10  # that the open holds are spread over
LINES = [Line(budget).id for budget in path_of(1)]  # session, workflow, user, team, organisation


def restart(scale: Scale) -> Found:
    """The closed holds stand on one account, the open ones on five each. Nothing of the file is in memory."""
    closed, opened = scale.of(10_000_000, 3_000), scale.of(1_000_000, 2_000)
    with tempfile.TemporaryDirectory(prefix="tierwise-c6-") as name:
        path = Path(name) / "state" / "ledger.sqlite"
        fill(path, closed, opened)
        size = path.stat().st_size
        faults = 0 if scale.full else len(list(audit(path)))  # of millions of entries it takes minutes
        ready_s, cpu_s, memory, held = asyncio.run(_started(Path(name)))
        left = _still_open(path)
    return Found(
        n=f"{count(closed)} closed and {count(opened)} open holds, a file of {size / 1e9:,.1f} GB, not in memory",
        figure=f"ready after {ready_s:.1f} s ({cpu_s:.1f} s of CPU), {memory / 1e6:,.0f} MB of memory; "
        f"{held:,} n$ held, {count(left)} holds still open",
        checks=(
            Check("seconds until ready", ready_s, "≤", 5),
            Check("nano-dollars held", held, "=", opened * HELD_NANO),
            Check("open holds", left, "=", opened),
            Check("faults of the file", faults, "=", 0),
        ),
    )


async def _started(folder: Path) -> tuple[float, float, int, int]:
    """(seconds until it is ready, of CPU, bytes of memory, what the organisation's balance says is held)."""
    async with FakeUpstream(openai_stream()) as one:
        budgets = [{"scope": scope, "limit_usd": 10**6} for scope in ("session", "workflow", "user", "team")]
        budgets.append({"scope": "organisation", "limit_usd": 10**6})
        began = time.monotonic()
        child = await start(folder, {**world(one), "keys": KEYED, "budgets": budgets})
        async with session() as http:
            async with http.get(child.url + "/readyz") as reply:
                assert reply.status == 200, await reply.text()
            ready_s, cpu_s = time.monotonic() - began, child.cpu_s()
            async with http.get(child.url + "/v1/balance", headers=HEADERS) as reply:
                balances = (await reply.json())["balances"]
        memory = int(Path(f"/proc/{child.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert await child.end() == 0
    held = next(each["held_nano"] for each in balances if each["scope"] == "organisation")
    return ready_s, cpu_s, memory, int(held)


# ------------------------------------------------------------------------------------------------ the file


def fill(path: Path, closed: int, opened: int, many: int = 20_000) -> None:
    """The rows that so many calls would have left, without making the calls; the audit finds nothing wrong with it."""
    now_s = int(time.time())
    organisation: Key = (LINES[-1], "acme", -NEVER_S)
    connection = open_file(path, LEDGER)
    connection.pragma("synchronous", "off")
    seq, hash = 0, NOTHING
    accounts: dict[Key, int] = dict.fromkeys([organisation], 0)
    for first in range(0, closed + opened, many):
        holds: list[Row] = []
        entries: list[Row] = []
        for number in range(first, min(first + many, closed + opened)):
            is_open = number >= closed
            keys = (organisation,) if not is_open else _path(number, organisation)
            row = HoldRow(
                id=f"h{number}", request=f"h{number}", model="m", amount_nano=HELD_NANO, tokens=0, steps=1,
                least_nano=LEAST_NANO, at_s=now_s, snapshot="", accounts=keys, state="open" if is_open else "settled",
                cost_nano=0 if is_open else COST_NANO, closed_s=0 if is_open else now_s,
            )  # fmt: skip
            holds.append(hold_row(row))
            if is_open:
                for key in keys:
                    accounts[key] = accounts.get(key, 0) + 1
            else:
                seq += 1
                posted = Entry(at_s=now_s, hold=row.id, accounts=keys, amount_nano=COST_NANO, kind="reported")
                entry = entry_row(seq, posted)
                hash = chained(hash, entry)
                entries.append((*entry, hash))
        connection.execute("BEGIN")
        connection.executemany(f"INSERT INTO hold ({', '.join(sql.HOLD)}) VALUES ({_marks(holds)})", holds)
        if entries:
            connection.executemany(f"INSERT INTO entry ({', '.join(sql.ENTRY)}) VALUES ({_marks(entries)})", entries)
        connection.execute("COMMIT")
    connection.execute("BEGIN")
    put_many(connection, sql.put_accounts, list(_accounts(accounts, organisation, closed, now_s)))
    connection.execute(sql.PUT_STATE, (1, seq, hash))
    connection.execute("COMMIT")
    connection.close(True)
    _put_out_of_memory(path)


def _path(number: int, organisation: Key) -> tuple[Key, ...]:
    subjects = (f"s{number % SESSIONS}", f"w{number % SESSIONS}", f"u{number % USERS}", f"t{number % TEAMS}")
    own = tuple((line, subject, -NEVER_S) for line, subject in zip(LINES, subjects, strict=False))
    return (*own, organisation)


def _accounts(open_holds: dict[Key, int], organisation: Key, closed: int, now_s: int) -> Iterator[Row]:
    for key, number in open_holds.items():
        done = closed if key == organisation else 0
        counts = Counts(
            limit_nano=10**15, bound_nano=10**15, posted_nano=done * COST_NANO, pending_nano=number * HELD_NANO,
            calls=done + number, steps=done + number, open=number, first_s=now_s,
        )  # fmt: skip
        yield account_row(key, counts, now_s)


def _marks(rows: list[Row]) -> str:
    return ", ".join("?" * len(rows[0]))


def _put_out_of_memory(path: Path) -> None:
    """So that the start reads it from the disk, as after a restart of the machine."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _still_open(path: Path) -> int:
    import apsw

    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return int(connection.execute(sql.COUNT_OPEN_HOLDS).get)
    finally:
        connection.close()


RUNS = (Run("c6", "22, C6", "a start on a ledger of many rows", "ready ≤ 5 s, all of it held", restart),)
