"""A2: wrong keys are the same work as right ones, and many of them from one address are turned away; right ones not."""

from __future__ import annotations

import asyncio
import hmac
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.reliability import attacks
from scripts.reliability.bars import Scale
from tests.support.callers import ANTHROPIC, OPENAI
from tests.support.gateway import ADA, BOB, KEYS, Gateway, server_room_metrics, world
from tests.support.upstream import FakeUpstream
from tierwise.core.errors import Refused, Unauthorised
from tierwise.core.keys import Grant
from tierwise.core.request import Payer
from tierwise.server import auth
from tierwise.server.auth import MOST_KEY_LETTERS, Keyring, Known, digest_of, identity_of
from tierwise.server.guesses import AT_ONCE, EVERY_S, MOST_ORIGINS, Guesses, origin_of

PEPPER = bytes(range(32))


def ring(*keys: str) -> Keyring:
    known = [Known(digest_of(PEPPER, key), identity_of(Grant(payer=Payer(key=key)))) for key in keys]
    return Keyring(known, pepper=PEPPER)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# ------------------------------------------------------------------------------------------------ the same work


class Spied:
    """`hmac` that writes down what it was given to do: sizes only, for those are the work."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int, int]] = []

    def digest(self, key: bytes, text: bytes, kind: Any) -> bytes:
        self.done.append(("digest", len(key), len(text)))
        return hmac.digest(key, text, kind)

    def compare_digest(self, one: bytes, other: bytes) -> bool:
        self.done.append(("compare", len(one), len(other)))
        return hmac.compare_digest(one, other)


def test_a_right_key_and_every_wrong_one_are_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast form of the run `a2`, which takes the time: one hash of what was given, one comparison of two hashes."""
    right = "tw-" + "k" * 43
    keys, seen = ring(right, *(f"tw-{number}" for number in range(100))), []
    for key in (right, right[:-1] + "x", "x" * 46, "tw-" + "z" * 43):
        spied = Spied()
        monkeypatch.setattr(auth, "hmac", spied)
        try:
            assert keys.identify(bearer(key)).payer.key == right == key
        except Unauthorised:
            assert key != right
        seen.append(spied.done)
    assert seen == [[("digest", 32, 46), ("compare", 32, 32)]] * 4


def test_a_key_that_is_too_long_is_wrong_and_as_much_work_as_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = "k" * MOST_KEY_LETTERS
    keys = ring(longest)
    assert keys.identify(bearer(longest)).payer.key == longest
    spied = Spied()
    monkeypatch.setattr(auth, "hmac", spied)
    for more in ("k", "k" * 1_000_000):
        with pytest.raises(Unauthorised):
            keys.identify(bearer(longest + more))
    assert spied.done == [("digest", 32, MOST_KEY_LETTERS), ("compare", 32, 32)] * 2


@pytest.mark.parametrize("run", [attacks.likeness, attacks.escalation], ids=["a4", "a6"])
def test_a_run_meets_its_bar_and_finds_its_mutant(run: Any) -> None:
    """a2, a3 and a5 need clocks and processes; their fast forms are the tests here and in test_keys.py."""
    found = run(Scale())
    assert found.met and found.caught, found


async def test_strange_letters_find_a_key_that_is_spliced_into_sql() -> None:
    """The corpus of `a3` can fail; what is told of the gateway itself is in test_keys.py."""
    found = await attacks._spliced(attacks.corpus()[::10])
    assert found[500] > 0 and found[200] > 0


# ------------------------------------------------------------------------------------------------ how many


@given(
    st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 8, 400]), st.sampled_from(["1.2.3.4", "1.2.3.5"])), max_size=150)
)
def test_a_bucket_lets_through_what_the_plain_one_does(waits: list[tuple[int, str]]) -> None:
    """Against tokens that are counted one by one, over eighths of a second, which floats tell exactly."""
    clock = Clock()
    guesses = Guesses(clock)
    tokens: dict[str, Fraction] = {}
    seen: dict[str, Fraction] = {}
    now = Fraction(0)
    for eighths, address in waits:
        now += Fraction(eighths, 8)
        clock.now = float(now)
        since = now - seen.get(address, now)
        tokens[address] = min(tokens.get(address, Fraction(AT_ONCE)) + since / Fraction(EVERY_S), Fraction(AT_ONCE))
        seen[address] = now
        wait_s = guesses.wait_s(address)
        if tokens[address] >= 1:
            tokens[address] -= 1
            assert wait_s == 0
        else:
            assert wait_s >= (1 - tokens[address]) * Fraction(EVERY_S) > wait_s - 1


def test_whoever_waits_as_told_is_let_through() -> None:
    clock = Clock()
    guesses = Guesses(clock)
    assert [guesses.wait_s("1.2.3.4") for _ in range(AT_ONCE + 2)] == [0] * AT_ONCE + [1, 1]
    clock.now += 1
    assert [guesses.wait_s("1.2.3.4") for _ in range(2)] == [0, 1]
    for idle_s in (AT_ONCE, 1_000):
        clock.now += idle_s
        assert [guesses.wait_s("1.2.3.4") for _ in range(AT_ONCE + 1)] == [0] * AT_ONCE + [1]


ORIGINS = [
    ("1.2.3.4", "::ffff:1.2.3.4", True), ("1.2.3.4", "1.2.3.5", False), ("::ffff:1.2.3.4", "::ffff:1.2.3.5", False),
    ("2001:db8::1", "2001:db8:0:0:ffff::9", True), ("2001:db8::1", "2001:db8:0:1::1", False),
    ("fe80::1%eth0", "fe80::2%eth1", True), ("::1", "127.0.0.1", False), ("", "127.0.0.1", False), ("", "::", False),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "same"), ORIGINS)
def test_who_counts_as_one(one: str, other: str, same: bool) -> None:
    assert (origin_of(one) == origin_of(other)) is same


def test_what_is_remembered_has_an_end_and_the_idle_are_forgotten_first() -> None:
    guesses = Guesses(Clock())

    def others(number: int, start: int = 0) -> None:
        for each in range(start, start + number):
            guesses.wait_s(f"2001:db8:{each // 65_536:x}:{each % 65_536:x}::1")
            assert len(guesses) <= MOST_ORIGINS

    def refused(address: str) -> int:
        """Out of so many that use up a bucket and one more."""
        return sum(map(bool, (guesses.wait_s(address) for _ in range(AT_ONCE + 1))))

    assert refused("1.2.3.4") == 1
    others(MOST_ORIGINS - 1)
    assert guesses.wait_s("1.2.3.4") == 1  # seen again, it is the last to be forgotten
    others(MOST_ORIGINS - 1, MOST_ORIGINS)
    assert guesses.wait_s("1.2.3.4") == 1
    assert refused("1.2.3.5") == 1  # and there is room for whoever is new
    others(MOST_ORIGINS, 2 * MOST_ORIGINS)
    assert refused("1.2.3.4") == 1 and len(guesses) == MOST_ORIGINS


def test_only_unknown_keys_are_guesses() -> None:
    """No key, and one that has expired, are told what they are for ever; a right one is never asked about."""
    clock = Clock()
    known = [Known(digest_of(PEPPER, key), identity_of(Grant(payer=Payer(key=key))), until_s) for key, until_s in (
        ("right", None), ("old", 1.0))]  # fmt: skip
    keys, guesses = Keyring(known, pepper=PEPPER, now=lambda: 2.0), Guesses(clock)
    scope: dict[str, Any] = {"client": ("1.2.3.4", 5)}
    for _ in range(3 * AT_ONCE):
        for headers, code in ((bearer("old"), "expired_api_key"), ({}, "missing_api_key")):
            with pytest.raises(Unauthorised) as caught:
                guesses.identify(keys, headers, scope)
            assert caught.value.code == code
    assert (len(guesses), guesses.rejected) == (0, 0)
    for number in range(2 * AT_ONCE):
        with pytest.raises(Unauthorised if number < AT_ONCE else Refused):
            guesses.identify(keys, bearer("wrong"), scope)
        assert guesses.identify(keys, bearer("right"), scope).payer.key == "right"
    assert guesses.rejected == AT_ONCE
    for nobody in ({}, {"client": None}):  # a Unix socket: all of them are one
        with pytest.raises(Unauthorised):
            guesses.identify(keys, bearer("wrong"), nobody)
    assert len(guesses) == 2


# ------------------------------------------------------------------------------------------------ over HTTP


async def test_a_guesser_is_turned_away_and_its_neighbours_are_served(tmp_path: Path) -> None:
    """Loopback is no exception, no header makes another address, and each door tells it in its own format."""
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, keys=KEYS)) as gateway:
        clock = Clock()
        gateway.app.guesses = Guesses(clock)
        forged = [
            {"x-forwarded-for": f"9.9.9.{n}", "forwarded": f"for=9.9.9.{n}", "x-real-ip": f"9.9.9.{n}"}
            for n in range(AT_ONCE)
        ]
        heard = await asyncio.gather(*(gateway.ask(headers={**bearer(f"tw-{n}"), **forged[n]}) for n in range(AT_ONCE)))
        assert {(each.status, each.error["code"]) for each in heard} == {(401, "invalid_api_key")}
        for dialect in (OPENAI, ANTHROPIC):
            told = await gateway.ask(dialect, headers={**bearer("tw-guess"), **forged[0]})
            assert (told.status, told.error["code"], told.error["type"]) == (
                429,
                "too_many_wrong_keys",
                "rate_limit_error",
            )
            assert told.is_anthropic is (dialect is ANTHROPIC)
            assert (told.headers["retry-after"], told.headers["x-should-retry"]) == ("1", "false")
            assert "wrong API keys" in told.error["message"]
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/admin/keys"), ("GET", "/metrics")):
            assert (await gateway.fetch(method, path, headers=bearer("tw-guess"))).status == 429
        for key in (ADA, BOB):
            assert (await gateway.ask(headers=bearer(key))).status == 200
        assert (await gateway.ask()).error["code"] == "missing_api_key"
        for path in ("/healthz", "/readyz"):
            assert (await gateway.get(path, headers=bearer("tw-guess"))).status == 200
        clock.now += 1
        assert [(await gateway.ask(headers=bearer("tw-guess"))).status for _ in range(2)] == [401, 429]
        shown = (await gateway.get("/metrics", headers=bearer(ADA))).body
        assert b"tierwise_rejected_guesses_total 6.0" in shown
        assert b"tierwise_rejected_guesses_total 0.0" in server_room_metrics(gateway.router)
        assert len(one.requests) == 2
