"""Keys as callers meet them: who they are, what they may ask for, what they may use up, and when they end."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.callers import ANTHROPIC, OPENAI
from tests.support.gateway import ADA, BOB, CHEAP, DEAR, KEYS, Gateway, world
from tests.support.replies import openai_events
from tests.support.strange import STRANGE, corpus
from tests.support.upstream import Exchange, FakeUpstream
from tierwise.cli import main as cli
from tierwise.core.budget import Budget, Charge, Denial, Hold
from tierwise.core.errors import Unauthorised
from tierwise.core.keys import Grant, Limits, budget_id, key_budgets, merged, wider
from tierwise.core.request import Payer
from tierwise.server.auth import ANYONE, Keyring, Known, digest_of, identity_of
from tierwise.server.limits import duration
from tierwise.stores.ledger.accounts import Line
from tierwise.stores.memory import MemoryLedger
from tierwise.stores.registry import SqliteRegistry

PEPPER = bytes(range(32))


def keyring(*secrets: str, **more: Any) -> Keyring:
    known = [Known(digest_of(PEPPER, secret), identity_of(Grant(payer=Payer(key=secret[-8:])))) for secret in secrets]
    return Keyring(known, pepper=PEPPER, **more)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# ------------------------------------------------------------------------------------------------ who it is


@given(st.lists(st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=80), unique=True))
def test_keys_that_begin_alike_are_never_taken_for_each_other(tails: list[str]) -> None:
    """A4: whoever caches by the first letters of a token mistakes one caller for another."""
    start = "tw-" + "x" * 61
    ring = Keyring(
        [Known(digest_of(PEPPER, start + tail), identity_of(Grant(payer=Payer(key=tail)))) for tail in tails],
        pepper=PEPPER,
    )
    for tail in tails:
        assert ring.identify(bearer(start + tail)).payer.key == tail
        for wrong in (start, start + tail + "!", (start + tail)[:-1]):
            if wrong.removeprefix(start) not in tails:
                with pytest.raises(Unauthorised):
                    ring.identify(bearer(wrong))


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
def test_whatever_is_given_for_a_key_is_unknown_and_nothing_else(name: str) -> None:
    """A3: never another error, and never somebody."""
    ring = keyring("the-key-of-ada")
    for text, dress in itertools.product(STRANGE, ("{}", "Bearer {}", "bearer {}", "Basic {}", "the-key-of-ada{}!")):
        with pytest.raises(Unauthorised):
            ring.identify({name: dress.format(text)})


async def test_strange_keys_over_the_wire_are_refused(tmp_path: Path) -> None:
    """A3: through the parser and the limits of the head; 400 and 431 are the parser's, all others are unknown keys."""
    seen = set()
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, keys=KEYS)) as gateway:
        body = msgspec.json.encode(OPENAI.body())
        for raw in (*corpus()[::4], b"x" * 60_000):
            said = await gateway.talk(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
                b"authorization: Bearer %s\r\ncontent-length: %d\r\n\r\n%s" % (raw, len(body), body)
            )
            assert said[9:12] in (b"401", b"429", b"400", b"431"), (raw[:40], said[:200])
            seen.add(said[9:12])
        assert seen >= {b"401", b"429", b"400"}
        assert not one.requests


async def test_a_key_that_ends_takes_no_stream_with_it(tmp_path: Path) -> None:
    """A5: revoked, rotated or expired, it opens nothing any more; what runs is whole, and paid by it."""
    events, finish = openai_events("cheap"), asyncio.Event()

    async def slow(x: Exchange) -> None:
        await x.start_stream()
        await x.chunk(events[0])
        await x.chunk(events[1])
        await finish.wait()
        for event in (*events[2:], b""):
            await x.chunk(event)

    root = {"name": "root", "secret": "env:BOB_KEY", "admin": True}
    async with FakeUpstream(slow) as one, Gateway(tmp_path, world(one, keys=[root])) as gateway:
        names, streams, secrets = ("revoked", "rotated", "expired"), [], []
        for name in names:
            made = await gateway.post("/v1/admin/keys", {"name": name, "expires_days": 1}, headers=bearer(BOB))
            assert made.headers["cache-control"] == "no-store"
            secrets.append(made.json["secret"])
            body, url = OPENAI.body(stream=True), gateway.url + OPENAI.path
            streams.append(await gateway.session.post(url, json=body, headers=bearer(secrets[-1])))
            assert b"assistant" in await streams[-1].content.readany()
        assert (await gateway.fetch("DELETE", "/v1/admin/keys/revoked", headers=bearer(BOB))).status == 200
        rotated = await gateway.post("/v1/admin/keys/rotated/rotate", {}, headers=bearer(BOB))
        assert (rotated.status, rotated.headers["cache-control"]) == (200, "no-store")
        assert (await gateway.get("/v1/admin/keys/rotated", headers=bearer(BOB))).headers.get("cache-control") is None
        gateway.app.keys._now = lambda: time.time() + 86_401
        heard = [await gateway.ask(headers=bearer(secret)) for secret in secrets]
        codes = ["invalid_api_key", "invalid_api_key", "expired_api_key"]
        assert [(each.status, each.error["code"]) for each in heard] == [(401, code) for code in codes]
        finish.set()
        for stream in streams:
            assert (await stream.read()).rstrip().endswith(b"data: [DONE]")
        await gateway.settled()
        assert [hold.payer.key for hold, denial in gateway.ledger.holds if denial is None] == [*names]
        assert len(gateway.ledger.charges) == 3 and all(charge.cost_nano > 0 for _, charge in gateway.ledger.charges)


def test_the_door_is_open_only_where_there_never_was_a_key() -> None:
    assert keyring(open=True).identify({}) == ANYONE
    with pytest.raises(Unauthorised):
        keyring().identify({})  # every key was revoked


def test_an_expired_key_is_refused_from_its_second_on() -> None:
    clock = [100.0]
    known = Known(digest_of(PEPPER, "k"), identity_of(Grant(payer=Payer(key="k"))), 101)
    ring = Keyring([known], pepper=PEPPER, now=lambda: clock[0])
    assert ring.identify(bearer("k")).payer.key == "k"
    clock[0] = 101.0
    with pytest.raises(Unauthorised) as caught:
        ring.identify(bearer("k"))
    assert caught.value.code == "expired_api_key"


ABSURD = [{"expires_at": each} for each in (0, -1, 253_402_300_800, 10**15, 10**18, 2**63)]
ABSURD += [{"expires_days": each} for each in (0, -1, 36_501, 1e18)]


async def test_an_end_that_is_no_date_is_refused(tmp_path: Path) -> None:
    root = {"name": "root", "secret": "env:BOB_KEY", "admin": True}
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, keys=[root])) as gateway:
        for ends in ABSURD:
            heard = await gateway.post("/v1/admin/keys", {"name": "k", **ends}, headers=bearer(BOB))
            assert (heard.status, heard.error["code"], heard.error["param"]) == (400, "invalid_key", *ends)


@pytest.mark.parametrize("end_s", [253_402_300_799, 253_402_300_800, 10**18, -1])
def test_a_key_with_any_end_that_is_stored_is_listed(
    end_s: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made by hand or by an older version: one such key must not hide the others."""
    registry = SqliteRegistry(tmp_path / "registry.sqlite")
    for name, expires_s in (("odd", end_s), ("plain", 1_800_000_000)):
        registry.create(Grant(payer=Payer(key=name), expires_s=expires_s), 1_700_000_000)
    registry.close()
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["tierwise", "key", "list", "--state", str(tmp_path), *more])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code in (0, None)
        assert "odd" in (told := capsys.readouterr().out) and "plain" in told
    assert str(end_s) in told


# ------------------------------------------------------------------------------------------------ what it may ask for


def keyed(**more: Any) -> list[dict[str, Any]]:
    """Ada's key with these settings, Bob's without."""
    return [{**KEYS[0], **more}, KEYS[1]]


async def test_routes_policies_and_models_of_a_key(tmp_path: Path) -> None:
    policies = {"frugal": {"preset": "economy"}}
    keys = keyed(routes=["chat"], policies=["frugal"], allow=["fast"])
    async with (
        FakeUpstream() as one,
        FakeUpstream() as two,
        Gateway(tmp_path, world(one, two, keys=keys, policies=policies)) as gateway,
    ):
        as_ada = bearer(ADA)
        heard = await gateway.ask(OPENAI, headers=as_ada)
        assert (heard.status, heard.model, heard.headers["x-tierwise-policy"]) == (200, CHEAP, "frugal")
        for model in ("auto/frugal", "claude-auto"):
            assert (await gateway.ask(OPENAI, headers=as_ada, model=model)).status == 200
        for model in ("auto/balanced", "auto:quality", "auto/default", CHEAP, DEAR, "frontier", "fast"):
            heard = await gateway.ask(OPENAI, headers=as_ada, model=model)
            assert (heard.status, heard.error["code"]) == (403, "policy_forbids"), model
        for model in (CHEAP, DEAR):  # named under a policy that it may use, a model passes that policy by all the same
            assert (await gateway.ask(OPENAI, headers=as_ada, model=model, tierwise={"policy": "frugal"})).status == 403
        heard = await gateway.ask(OPENAI, headers=as_ada, tierwise={"policy": "balanced"})
        assert (heard.status, heard.error["code"]) == (403, "policy_forbids")
        for sent in ({"model": "auto:quality"}, {"tierwise": {"policy": "balanced"}}):
            assert (await gateway.post("/v1/route", OPENAI.body(**sent), headers=as_ada)).status == 403
            assert (await gateway.ask(OPENAI, headers={**as_ada, "x-tierwise-dry-run": "true"}, **sent)).status == 403
        heard = await gateway.ask(ANTHROPIC, headers=as_ada)
        assert (heard.status, heard.error["code"], heard.is_anthropic) == (403, "route_forbidden", True)
        for path in ("/v1/embeddings", "/v1/messages/count_tokens", "/v1/v1/embeddings"):
            assert (await gateway.post(path, {"model": "auto", "input": "x"}, headers=as_ada)).status == 403
        for path in ("/v1/models", "/v1/balance", "/metrics"):
            assert (await gateway.get(path, headers=as_ada)).status == 200
        called = len(one.requests) + len(two.requests)
        assert called == 3
        as_bob = bearer(BOB)
        for ask in (gateway.ask(ANTHROPIC, headers=as_bob), gateway.ask(OPENAI, headers=as_bob, model=DEAR)):
            assert (await ask).status == 200


async def test_a_key_for_another_tier_is_told_so(tmp_path: Path) -> None:
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, keys=keyed(allow=["frontier"]))) as gateway:
        heard = await gateway.ask(OPENAI, headers=bearer(ADA))
        assert (heard.status, heard.error["code"]) == (403, "policy_forbids")
        assert not one.requests


# ------------------------------------------------------------------------------------------------ what it may use up


async def test_what_is_left_of_a_rate_is_in_the_headers(tmp_path: Path) -> None:
    """OpenAI's names; a reply, a stream and a refusal carry them, other callers' replies do not."""
    clock = [1_800_000_000.0]
    config = world(FakeUpstream(), keys=keyed(rpm=3, tpm=100_000))
    async with FakeUpstream() as one:
        config = world(one, keys=keyed(rpm=3, tpm=100_000))
        async with Gateway(tmp_path, config, now=lambda: clock[0]) as gateway:
            told = []
            for stream in (False, True, False):
                heard = await gateway.ask(OPENAI, headers=bearer(ADA), stream=stream, max_tokens=10)
                assert heard.status == 200
                told.append(heard.headers)
            assert [each["x-ratelimit-remaining-requests"] for each in told] == ["2", "1", "0"]
            assert {each["x-ratelimit-limit-requests"] for each in told} == {"3"}
            assert {each["x-ratelimit-limit-tokens"] for each in told} == {"100000"}
            left = [int(each["x-ratelimit-remaining-tokens"]) for each in told]
            assert 100_000 > left[0] > left[2]
            assert told[0]["x-ratelimit-reset-requests"] == "1m0s"  # never more than the window
            heard = await gateway.ask(OPENAI, headers=bearer(ADA), max_tokens=10)
            assert (heard.status, heard.headers["x-ratelimit-remaining-requests"]) == (429, "0")
            assert int(heard.headers["retry-after"]) >= 1
            assert len(one.requests) == 3
            other = await gateway.ask(OPENAI, headers=bearer(BOB), max_tokens=10)
            assert other.status == 200 and not [name for name in other.headers if name.startswith("x-ratelimit")]
            clock[0] += 62
            heard = await gateway.ask(OPENAI, headers=bearer(ADA), max_tokens=10)
            assert (heard.status, heard.headers["x-ratelimit-remaining-requests"]) == (200, "2")


async def test_the_money_of_a_key_is_a_budget_of_its_own(tmp_path: Path) -> None:
    async with (
        FakeUpstream() as one,
        Gateway(tmp_path, world(one, keys=keyed(limit_usd=0.000001, window="month"))) as gateway,
    ):
        heard = await gateway.ask(OPENAI, headers=bearer(ADA))
        assert (heard.status, heard.error["code"], heard.error["metadata"]["scope"]) == (402, "budget_exceeded", "key")
        assert (await gateway.ask(OPENAI, headers=bearer(BOB))).status == 200


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.02, "20ms"), (0.0001, "1ms"), (1, "1s"), (1.001, "2s"), (59.2, "1m0s"), (360, "6m0s"),
     (86_399, "23h59m59s"), (3_600, "1h0m0s"), (-5, "0s")],
)  # fmt: skip
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


async def test_the_limits_of_a_key_cover_the_keys_that_it_made() -> None:
    """However many keys an admin makes from one, together they are worth no more than that one."""
    ledger = MemoryLedger(
        merged((*key_budgets("boss", Limits(limit_nano=10, parallel=2)), *key_budgets("kid", Limits())))
    )
    payers = [Payer(key="boss"), Payer(key="kid", within=("boss",)), Payer(key="grandkid", within=("boss", "kid"))]
    other = Payer(key="other")

    async def held(number: int, payer: Payer, nano: int) -> Denial | None:
        return await ledger.hold(
            Hold(id=f"{number}", payer=payer, session="", workflow="", model="m", amount_nano=nano, at_s=1_000)
        )

    assert [await held(number, payer, 4) for number, payer in enumerate(payers[:2])] == [None, None]
    assert (await held(2, payers[2], 1)).code == "parallel_limit"  # type: ignore[union-attr]
    for number in range(2):
        ledger.settle(str(number), Charge(cost_nano=4))
    assert (await held(3, payers[2], 3)).code == "budget_exceeded"  # type: ignore[union-attr]
    assert await held(4, payers[1], 2) is None
    assert await held(5, other, 1_000) is None
    assert await ledger.grant("g", "key", "boss", 1)
    assert (await held(6, payers[2], 2)).code == "credit_exhausted"  # type: ignore[union-attr]
    assert ledger.audit() == ()


# ------------------------------------------------------------------------------------------------ as values

LIMITS = st.none() | st.integers(1, 9)
BUDGETS = st.builds(
    Budget,
    scope=st.sampled_from(["user", "team", "key"]),
    match=st.sampled_from([(), (("team", "a"),), (("key", "k"), ("team", "a"))]),
    limit_nano=LIMITS,
    tokens=LIMITS,
    calls=LIMITS,
    parallel=LIMITS,
    window=st.sampled_from(["minute", "day", "lifetime"]),
    rolling=st.booleans(),
    zone=st.sampled_from(["UTC", "Europe/Vienna"]),
)


@given(st.lists(BUDGETS, max_size=8))
def test_merged_budgets_are_one_of_each_and_as_tight_as_all(budgets: list[Budget]) -> None:
    made = merged(budgets)
    assert len({Line(budget).id for budget in made}) == len(made)  # or the books would keep one account twice
    assert {budget_id(each) for each in made} == {budget_id(each) for each in budgets}
    assert merged(made) == made
    for each in budgets:
        one = next(found for found in made if budget_id(found) == budget_id(each))
        for name in ("limit_nano", "tokens", "calls", "parallel"):
            limit, now = getattr(each, name), getattr(one, name)
            assert limit is None or (now is not None and now <= limit)


BOSS = Grant(
    payer=Payer(key="boss", team="a", organisation="o"),
    allow=("fast",),
    policies=("frugal",),
    routes=("chat", "admin"),
    admin=True,
    limits=Limits(limit_nano=5, window="day", rpm=5),
    expires_s=1_000,
)
CHILD = msgspec.structs.replace(
    BOSS,
    payer=Payer(key="kid", user="u", team="a", organisation="o", within=("boss",)),
    limits=Limits(),
    expires_s=999,
)
PLACED = {"one/cheap": ("fast", "one"), "two/dear": ("frontier", "two")}


def of(payer: dict[str, Any] | None = None, **more: Any) -> Grant:
    changed = msgspec.structs.replace(CHILD, **more)
    return msgspec.structs.replace(changed, payer=msgspec.structs.replace(CHILD.payer, **(payer or {})))


NARROW = [
    CHILD, of(allow=("one/cheap",)), of(routes=("chat",)), of(limits=Limits(limit_nano=5, window="day")),
    of(limits=Limits(limit_nano=9, window="month")), of(admin=False), of(expires_s=1_000), of({"user": "w"}),
]  # fmt: skip
WIDE = {
    "allow": [of(allow=()), of(allow=("two/dear",)), of(allow=("fast", "frontier")), of(allow=("one",))],
    "policies": [of(policies=()), of(policies=("frugal", "default"))],
    "routes": [of(routes=()), of(routes=("messages",))],
    "expires": [of(expires_s=None), of(expires_s=1_001)],
    "limit_usd": [of(limits=Limits(limit_nano=6, window="day"))],
    "rpm": [of(limits=Limits(rpm=6))],
    "team": [of({"team": ""}), of({"team": "b"})],
    "organisation": [of({"organisation": ""}), of({"organisation": "p"})],
    "tags": [of({"tags": (("x", "y"),)})],
    "it": [of({"within": ()}), of({"within": ("other",)})],
}


@pytest.mark.parametrize("grant", NARROW)
def test_what_is_within_the_grantor_is_given(grant: Grant) -> None:
    assert wider(grant, BOSS, PLACED) == []


@pytest.mark.parametrize(("what", "grant"), [(what, grant) for what, grants in WIDE.items() for grant in grants])
def test_what_is_wider_than_the_grantor_is_told(what: str, grant: Grant) -> None:
    told = wider(grant, BOSS, PLACED)
    assert len(told) == 1, told
    assert told[0].startswith(what)


def test_only_admins_make_admins_and_owners_make_anything() -> None:
    caller = msgspec.structs.replace(BOSS, admin=False)
    assert wider(CHILD, caller, PLACED) == ["role: only an admin makes admins"]
    owner = Grant(payer=Payer(key="root"), admin=True)
    assert owner.owner and not BOSS.owner
    assert all(wider(grant, owner, PLACED) == [] for grants in WIDE.values() for grant in grants)


@pytest.mark.parametrize(
    ("one", "other", "reserve"),
    [
        (Budget(scope="user", limit_nano=9, reserve_nano=2), Budget(scope="user", calls=5), 2),
        (Budget(scope="user", limit_nano=9, reserve_nano=2), Budget(scope="user", limit_nano=8, reserve_nano=3), 3),
        (Budget(scope="user", limit_nano=9, reserve_nano=2), Budget(scope="user", limit_nano=8), None),
        (Budget(scope="user", tokens=9), Budget(scope="user", calls=5), None),
    ],
)
def test_what_is_reserved_for_calls_without_a_price_is_said_by_those_that_limit_money(
    one: Budget, other: Budget, reserve: int | None
) -> None:
    """Or a limit on calls that an admin adds would close every model whose price nobody knows."""
    for pair in ((one, other), (other, one)):
        assert [each.reserve_nano for each in merged(pair)] == [reserve]
