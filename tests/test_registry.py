"""The registry's file: what is made stays made, no secret is in it, and several processes may use it at once."""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from tierwise.core.budget import Budget
from tierwise.core.errors import ConfigError, Conflict, Unknown
from tierwise.core.keys import Credit, Grant, Limits, budget_id
from tierwise.core.request import Payer
from tierwise.stores.registry import SqliteRegistry

NOW = 1_800_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.sqlite"


@pytest.fixture
def registry(path: Path) -> Iterator[SqliteRegistry]:
    found = SqliteRegistry(path)
    yield found
    found.close()


def grant(name: str = "ada", **more: object) -> Grant:
    return Grant(payer=Payer(key=name, team="search", tags=(("a", "b"),)), **more)  # type: ignore[arg-type]


def hash_of(registry: SqliteRegistry, secret: str) -> bytes:
    return hmac.digest(registry.pepper, secret.encode(), hashlib.sha256)


def test_what_is_made_is_read_back_by_another_connection(path: Path, registry: SqliteRegistry) -> None:
    given = grant(admin=True, limits=Limits(limit_nano=5, rpm=3), expires_s=NOW + 9)
    secret = registry.create(given, NOW)
    budget = Budget(scope="team", match=(("team", "search"),), limit_nano=7, window="month")
    credit = Credit(id="c", scope="user", subject="ada", amount_nano=-3, at_s=NOW)
    registry.set_budget(budget)
    assert registry.add_credit(credit)
    again = SqliteRegistry(path)
    book = again.read()
    again.close()
    assert [key.grant for key in book.keys] == [given]
    assert (book.budgets, book.credits) == ((budget,), (credit,))
    assert [(each.hash, each.key, each.until_s) for each in book.secrets] == [(hash_of(registry, secret), "ada", None)]
    assert [key.state(at) for at in (NOW + 8, NOW + 9) for key in book.keys] == ["active", "expired"]


@pytest.mark.parametrize("loss", ["deleted", "emptied"])
def test_a_registry_that_is_gone_opens_no_door(path: Path, loss: str) -> None:
    """Begun anew it would know no key, so callers would need none, and no budget."""
    registry = SqliteRegistry(path)
    registry.create(grant(), NOW)
    registry.close()
    os.utime(path.with_name("pepper"), (NOW - 10**8, NOW - 10**8))
    path.unlink()
    if loss == "emptied":
        path.touch()
    with pytest.raises(ConfigError, match=r"is gone or empty, with every key.*put a backup in its place"):
        SqliteRegistry(path)
    path.with_name("pepper").unlink()
    SqliteRegistry(path).close()


def test_a_registry_that_is_deleted_meanwhile_makes_nothing(path: Path, registry: SqliteRegistry) -> None:
    """A key would be gone with this process, and a revocation by another would not be seen."""
    path.unlink()
    with pytest.raises(ConfigError, match="was deleted or replaced"):
        registry.create(grant(), NOW)
    with pytest.raises(ConfigError, match="was deleted or replaced"):
        registry.changed()


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_registry_whose_log_is_deleted_meanwhile_says_so_and_loses_nothing(
    path: Path, registry: SqliteRegistry, suffix: str, meanwhile: bool
) -> None:
    """Two who write into different logs would each know half: a key that one revokes stays good at the other."""
    registry.create(grant(), NOW)
    path.with_name(path.name + suffix).unlink()
    if suffix == "-shm" and meanwhile:
        other = SqliteRegistry(path)
        other.revoke(["ada"], NOW)
        other.close()
    for ask in (registry.changed, registry.read, lambda: registry.create(grant("bob"), NOW)):
        with pytest.raises(ConfigError, match=f"registry.sqlite{suffix} was deleted or replaced.*start again"):
            ask()
    if suffix == "-wal" and meanwhile:
        other = SqliteRegistry(path)
        other.revoke(["ada"], NOW)
        other.close()
    registry.close()
    again = SqliteRegistry(path)
    assert [(key.grant.name, key.revoked_s) for key in again.read().keys] == [("ada", NOW if meanwhile else None)]
    again.close()


def test_no_secret_is_in_any_file_and_no_other_may_read_them(path: Path, registry: SqliteRegistry) -> None:
    secrets = [registry.create(grant(f"k{number}"), NOW) for number in range(20)]
    secrets.append(registry.rotate("k0", 5, NOW))
    assert len({*secrets}) == 21
    assert all(len(secret) >= 3 + 43 for secret in secrets)  # 256 bits in base64
    files = list(path.parent.iterdir())
    assert {"registry.sqlite", "pepper"} <= {each.name for each in files}
    for file in files:
        assert file.stat().st_mode & 0o077 == 0, file.name
        assert not [secret for secret in secrets if secret[9:].encode() in file.read_bytes()]


def test_a_rotated_key_overlaps_as_long_as_it_was_told(registry: SqliteRegistry) -> None:
    first = registry.create(grant(), NOW)
    second = registry.rotate("ada", 60, NOW)
    third = registry.rotate("ada", 3_600, NOW + 10)  # does not make the first live longer
    ends = {each.hash: each.until_s for each in registry.read().secrets}
    wanted = {first: NOW + 60, second: NOW + 3_610, third: None}
    assert ends == {hash_of(registry, secret): until for secret, until in wanted.items()}
    fourth = registry.rotate("ada", 0, NOW + 5_000)
    ends = {each.hash: each.until_s for each in registry.read().secrets}
    assert ends == {hash_of(registry, fourth): None}
    assert registry.read().keys[0].prefix == fourth[:9]


def test_a_revoked_key_stays_revoked_and_its_name_taken(registry: SqliteRegistry) -> None:
    registry.create(grant(), NOW)
    registry.create(grant("bob"), NOW)
    with pytest.raises(Unknown):
        registry.revoke(["ada", "nobody"], NOW)
    assert [key.revoked_s for key in registry.read().keys] == [None, None]  # all or none
    registry.revoke(["ada"], NOW + 1)
    registry.revoke(["ada"], NOW + 2)
    book = registry.read()
    assert [(key.grant.name, key.revoked_s) for key in book.keys] == [("ada", NOW + 1), ("bob", None)]
    assert {each.key for each in book.secrets} == {"bob"}
    for again in (lambda: registry.create(grant(), NOW), lambda: registry.rotate("ada", 0, NOW)):
        with pytest.raises(Conflict):
            again()
    with pytest.raises(Conflict):
        registry.change(grant())


def test_others_see_that_something_changed(path: Path, registry: SqliteRegistry) -> None:
    other = SqliteRegistry(path)
    registry.read()
    assert not registry.changed()
    other.create(grant(), NOW)
    assert registry.changed()
    assert [key.grant.name for key in registry.read().keys] == ["ada"]
    assert not registry.changed()
    other.close()


def test_a_top_up_counts_once_and_a_budget_is_replaced(registry: SqliteRegistry) -> None:
    credit = Credit(id="c", scope="user", subject="ada", amount_nano=3, at_s=NOW)
    assert [registry.add_credit(credit) for _ in range(3)] == [True, False, False]
    with pytest.raises(Conflict):
        registry.add_credit(Credit(id="c", scope="user", subject="ada", amount_nano=4, at_s=NOW))
    for limit in (5, 7):
        registry.set_budget(Budget(scope="user", limit_nano=limit, window="day"))
    assert registry.read().budgets == (Budget(scope="user", limit_nano=7, window="day"),)
    registry.remove_budget(budget_id(registry.read().budgets[0]))
    with pytest.raises(Unknown):
        registry.remove_budget("user[]/day")
    assert registry.read().budgets == ()


def test_sql_in_a_name_is_a_name(registry: SqliteRegistry) -> None:
    name = "x'; DROP TABLE keys; --"
    registry.create(grant(name), NOW)
    with pytest.raises(Unknown):
        registry.rotate("' OR '1'='1", 0, NOW)
    assert [key.grant.name for key in registry.read().keys] == [name]


def test_many_that_open_it_at_once_agree(path: Path) -> None:
    """One pepper, one schema, every key; as of several commands and a gateway that start together."""
    failures: list[BaseException] = []
    peppers: set[bytes] = set()
    together = threading.Barrier(8)

    def start(number: int) -> None:
        try:
            together.wait()
            registry = SqliteRegistry(path)
            peppers.add(registry.pepper)
            registry.create(grant(f"k{number}"), NOW)
            registry.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(peppers) == 1
    registry = SqliteRegistry(path)
    assert len(registry.read().keys) == 8
    registry.close()
    assert sorted(each.name for each in path.parent.iterdir()) == ["pepper", "registry.sqlite"]


def test_files_that_are_not_ours_are_refused_with_what_to_do(path: Path) -> None:
    SqliteRegistry(path).close()
    pepper = path.with_name("pepper")
    kept = pepper.read_bytes()
    pepper.write_bytes(bytes(32))
    assert "another pepper" in refused(path)
    pepper.write_bytes(kept[:5])
    assert "backup" in refused(path)
    pepper.write_bytes(kept)
    done(path, "PRAGMA user_version = 99")
    assert "newer Tierwise" in refused(path)
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    assert "no sound registry" in refused(path)
    path.unlink()
    done(path, "CREATE TABLE x (y)")
    assert "another program" in refused(path)


def done(path: Path, statement: str) -> None:
    connection = apsw.Connection(str(path))
    connection.execute(statement)
    connection.close()


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        SqliteRegistry(path)
    return str(caught.value)


def test_a_file_that_another_holds_is_a_sentence(
    path: Path, registry: SqliteRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = apsw.Connection(str(path))
    holder.execute("BEGIN IMMEDIATE")
    registry._connection.set_busy_timeout(1)
    with pytest.raises(ConfigError, match="cannot be used now"):
        registry.create(grant(), NOW)
    monkeypatch.setattr("tierwise.stores.registry.BUSY_MS", 1)
    assert "cannot be used now" in (told := refused(path))
    assert "anew" not in told, "whoever made the keys anew would lose those that are there"
    holder.execute("ROLLBACK")
    holder.close()
    registry.create(grant(), NOW)
