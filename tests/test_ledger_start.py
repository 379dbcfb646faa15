"""A ledger starts at once, whatever an earlier process left open; and it notices when its files are taken away."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import msgspec
import pytest

from tests.support.ledgers import ADA, NOON, Clock, a_hold, of, path_of
from tierwise.core.budget import Budget, Charge, Window
from tierwise.core.errors import Unavailable
from tierwise.core.request import Hints
from tierwise.stores.ledger import commits, sqlite, writer
from tierwise.stores.ledger.audit import audit
from tierwise.stores.ledger.books import SUSPENSE_S
from tierwise.stores.ledger.sqlite import SqliteLedger

BUDGETS = (
    *path_of(10**9),
    Budget(scope="user", limit_nano=10**9, window="minute", rolling=True),
    Budget(scope="team", limit_nano=10**9, window="month"),
    Budget(scope="request", limit_nano=10**6),
    Budget(scope="key", parallel=21),
)


def a_ledger(folder: Path, clock: Clock) -> SqliteLedger:
    return SqliteLedger(folder / "ledger.sqlite", BUDGETS, clock, reserve_bytes=1)


async def test_a_million_open_holds_sleep_and_count_as_if_they_were_awake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    ledger = a_ledger(tmp_path, clock)
    for n in range(20):
        await ledger.hold(a_hold(f"{n}", 50, at_s=NOON + n, least_nano=n, tokens=2, request=f"r{n % 2}", steps=0))
    held = of(ledger)
    ledger.close_now()
    monkeypatch.setattr(sqlite, "AT_HAND", 3)
    monkeypatch.setattr(sqlite, "AT_ONCE", 4)
    monkeypatch.setattr(sqlite, "AGAIN_S", 0.0)
    ledger = a_ledger(tmp_path, clock)
    assert (ledger.open_holds(), ledger.books.in_suspense(), ledger.books.asleep()) == (20, 20, 17)
    assert of(ledger) == held
    assert await ledger.hold(a_hold("19", 50)) is None, "it is held already"
    assert not await ledger.correct("19", 5), "it has not ended"
    assert ledger.open_holds() == 20
    assert await ledger.hold(a_hold("20", 50)) is None
    refused = await ledger.hold(a_hold("21", 50))
    assert refused is not None
    assert refused.code == "parallel_limit"
    assert ledger.audit() == ()
    ledger.settle("20", Charge(cost_nano=1))
    ledger.settle("19", Charge(cost_nano=7))
    ledger.settle("19", Charge(cost_nano=7))
    assert (ledger.open_holds(), ledger.books.asleep(), ledger.ignored) == (19, 16, 1)
    assert (ledger.audit(), {spent for _, spent, _ in of(ledger)[:5]}) == ((), {8})
    clock.at_s = NOON + SUSPENSE_S + 15
    ledger._do_errands()
    async with asyncio.timeout(5):
        while ledger.open_holds() != 3:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.001)
    assert ledger.audit() == ()
    assert {spent for _, spent, _ in of(ledger)[:5]} == {8 + sum(range(16))}
    await ledger.close()
    assert list(audit(ledger.path)) == []


async def test_a_call_that_turns_out_never_to_have_been_made_leaves_no_request_below_zero(tmp_path: Path) -> None:
    """A request's own account is in no file, so a hold that wakes brings its step with it."""
    clock = Clock()
    ledger = a_ledger(tmp_path, clock)
    await ledger.hold(a_hold("0", 50))
    ledger.close_now()
    ledger = a_ledger(tmp_path, clock)
    ledger.settle("0", Charge(cost_nano=0, kind="released"))
    assert ledger.audit() == ()
    await ledger.close()


# ------------------------------------------------------------------------------------------------ files that go away


@pytest.mark.parametrize("what", ["ledger.sqlite-wal", "ledger.sqlite", "ledger.sqlite.lock"])
async def test_a_file_that_is_deleted_is_noticed_although_nobody_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(writer, "WATCH_S", 0.01)
    ledger = a_ledger(tmp_path, Clock())
    await ledger.hold(a_hold("under way", 50))
    await ledger.hold(a_hold("settled", 50))
    ledger.settle("settled", Charge(cost_nano=7))
    await ledger.drain()
    spent = of(ledger)
    assert not ledger.last_error
    (tmp_path / what).unlink()
    async with asyncio.timeout(5):
        while not ledger.last_error:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.005)
    assert ledger.last_error.startswith(f"{what} was deleted or replaced")
    assert "start one again" in ledger.last_error
    with pytest.raises(Unavailable):
        await ledger.hold(a_hold("late", 50))
    if what == "ledger.sqlite-wal":
        alone = tmp_path / "alone"  # as if the process were killed now
        alone.mkdir()
        for each in ("ledger.sqlite", "ledger.sqlite.lock"):
            shutil.copy(tmp_path / each, alone)
        saved = a_ledger(alone, Clock())
        assert (of(saved), saved.open_holds()) == (spent, 1)
        saved.close_now()
        assert list(audit(saved.path)) == []
        ledger.settle("under way", Charge(cost_nano=5))
        monkeypatch.setattr(commits, "DRAIN_S", 0.05)
        await ledger.close()
        ledger = a_ledger(tmp_path, Clock())
        assert ledger.open_holds() == 0, "what was settled since is written when the last one lets go"
    monkeypatch.setattr(commits, "DRAIN_S", 0.05)
    await ledger.close()
    if what == "ledger.sqlite-wal":
        assert list(audit(ledger.path)) == []


@pytest.mark.parametrize("rolling", [False, True])
@pytest.mark.parametrize("window", ["lifetime", "day", "month"])
async def test_a_limit_that_was_taken_away_before_a_start_limits_nobody(
    tmp_path: Path, window: Window, rolling: bool
) -> None:
    """Also where a call was under way when the last process ended, and brings its account with it."""
    before = Budget(scope="user", limit_nano=100, calls=9, window=window, rolling=rolling and window != "lifetime")
    path, clock = tmp_path / "ledger.sqlite", Clock()
    ledger = SqliteLedger(path, (before,), clock, reserve_bytes=1)
    assert await ledger.hold(a_hold("a", 80)) is None
    ledger.close_now()
    after = msgspec.structs.replace(before, limit_nano=None)
    ledger = SqliteLedger(path, (after,), clock, reserve_bytes=1)
    assert await ledger.hold(a_hold("b", 80)) is None
    assert [balance.limit_nano for balance in ledger.balances(ADA, Hints())] == [None]
    ledger.close_now()
    ledger = SqliteLedger(path, (before,), clock, reserve_bytes=1)
    denial = await ledger.hold(a_hold("c", 1))
    assert denial is not None and denial.code == "held_by_others"
    ledger.close_now()
    assert list(audit(path)) == []
