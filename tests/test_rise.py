"""A key whose requests go to dear models more than is usual for it: what it owes, and how dear that makes money."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.worlds import BIG, called, episode, world

from scripts import attack_routing as attack
from tests.support.gateway import ADA, BOB, CHEAP, DEAR, Gateway
from tests.support.gateway import world as served_world
from tests.support.upstream import FakeUpstream
from tierwise.config import load, open_app
from tierwise.config import shares as shares_file
from tierwise.config.shares import Kept
from tierwise.core.budget import Lambda
from tierwise.core.decide import decide
from tierwise.core.episode import Reason
from tierwise.core.explain import explain
from tierwise.core.pace import LAMBDA_MAX
from tierwise.core.ports import Outcome, Record
from tierwise.core.request import Payer
from tierwise.core.rise import (
    CALM,
    CAUSE,
    DAY_S,
    LEARNED,
    LEAST,
    MOST_DEBT,
    REMEMBERED,
    SLACK,
    Others,
    Standing,
    after,
    allowed,
    dearer,
    is_dear,
    together,
    usual,
)
from tierwise.routing import shares as shares_module
from tierwise.routing.shares import Shares

DAY = 20_000
NOON = DAY * DAY_S + DAY_S // 2
KNOWN = Standing(n=1_000.0, dear=300.0, day=DAY, lately=0.3)
NOBODY = Others()


def run(
    standing: Standing, dears: list[bool], rise: float = 0.1, others: Others = NOBODY, at_s: int = NOON
) -> Standing:
    for dear in dears:
        standing = after(standing, others, rise, dear, at_s)
    return standing


# ------------------------------------------------------------------------------------------------ the formula


@pytest.mark.parametrize(
    ("standing", "others", "rise", "share", "least", "most"),
    [
        (KNOWN, NOBODY, 0.1, 0.3, 0.339, 0.341),  # its own past, a quarter of ten points, and its standard error
        (KNOWN, NOBODY, 0.5, 0.3, 0.439, 0.441),
        (KNOWN, NOBODY, 1.0, 0.3, 1.0, 1.0),  # the policy lets it rise as far as it likes
        (KNOWN, Others(moved=0.2), 0.1, 0.5, 0.539, 0.541),  # what moved for all others moves it
        (KNOWN, Others(moved=-0.5), 0.1, 0.0, 0.039, 0.041),
        (Standing(n=150.0, dear=45.0), NOBODY, 0.1, 0.3, 0.362, 0.365),  # known from fewer: more is left to chance
        (Standing(n=1_000.0, dear=995.0), NOBODY, 0.1, 0.995, 1.0, 1.0),  # it cannot rise by so much
        (Standing(), NOBODY, 0.1, None, 1.0, 1.0),  # nobody knows what is usual for it
        (Standing(n=50.0, dear=50.0), Others(new=0.6), 0.1, 0.6, 0.625, 0.625),  # too new: held against the others
    ],
)
def test_what_is_usual_and_what_is_allowed(
    standing: Standing, others: Others, rise: float, share: float | None, least: float, most: float
) -> None:
    assert usual(standing, others) == (share if share is None else pytest.approx(share, abs=0.002))
    assert least <= allowed(standing, others, rise) <= most


@pytest.mark.parametrize(
    ("debt", "price"), [(0.0, 1.0), (SLACK, 1.0), (SLACK + 2, 2.718), (SLACK + 4, 7.389), (MOST_DEBT, LAMBDA_MAX)]
)
def test_a_debt_is_a_price(debt: float, price: float) -> None:
    assert Standing(debt=debt).price == pytest.approx(price, abs=0.001)


dears = st.lists(st.booleans(), max_size=150)


@given(dears=dears, past=st.integers(LEAST, LEARNED), share=st.floats(0, 1), rise=st.floats(0.01, 1))
def test_in_any_run_no_more_are_dear_than_allowed_and_owed(
    dears: list[bool], past: int, share: float, rise: float
) -> None:
    """The law of the debt, whatever a key does: dear ≤ allowed + debt at the end − debt at the beginning, as long as
    nothing was forgiven."""
    standing, owed = Standing(n=float(past), dear=past * share, day=DAY), 0.0
    for i, dear in enumerate(dears, start=1):
        owed += allowed(standing, NOBODY, rise)
        standing = after(standing, NOBODY, rise, dear, NOON)
        assert 0.0 <= standing.debt <= MOST_DEBT and 1.0 <= standing.price <= LAMBDA_MAX
        if standing.debt == MOST_DEBT:
            break
        assert sum(dears[:i]) <= owed + standing.debt + 1e-6


@given(dears=dears, rise=st.floats(0.01, 1))
def test_who_has_no_past_or_no_dear_reply_owes_nothing(dears: list[bool], rise: float) -> None:
    assert run(Standing(), dears[: LEAST - 1], rise).debt == 0.0
    assert run(KNOWN, [False] * len(dears), rise).debt == 0.0
    assert run(KNOWN, dears, 1.0).debt == 0.0


@given(share=st.floats(0, 1), today=st.floats(0, 1), n=st.integers(1, REMEMBERED), asked=st.integers(0, 100_000))
def test_a_day_moves_what_is_usual_by_half_at_most(share: float, today: float, n: int, asked: int) -> None:
    """However many requests were asked, or nobody could be held for long."""
    before = Standing(n=float(max(n, LEAST)), dear=max(n, LEAST) * share, today_n=asked, today_dear=int(today * asked))
    day = after(replace(before, day=DAY), NOBODY, 0.1, False, NOON + DAY_S)
    told = before.today_dear / asked if asked else share
    moved = abs((day.dear + 0.5) / (day.n + 1) - (before.dear + 0.5) / (before.n + 1))
    assert moved <= abs(told - share) / 2 + 0.02
    assert day.n <= REMEMBERED + 1


def test_a_clock_that_was_ahead_does_not_stop_the_days() -> None:
    ahead = replace(KNOWN, day=DAY + 400, today_n=500, today_dear=500)
    assert (back := after(ahead, NOBODY, 0.1, False, NOON)).day == DAY and back.today_n == 1
    # One that began before midnight and ended after it is of the new day.
    late = after(KNOWN, NOBODY, 0.1, True, NOON - DAY_S)
    assert (late.day, late.today_n) == (DAY, 1)


def test_what_is_usual_is_learned_from_the_first_requests_and_not_from_a_debt() -> None:
    dice = random.Random(1)
    learning = run(Standing(), [dice.random() < 0.4 for _ in range(LEARNED)])
    assert usual(learning, NOBODY) == pytest.approx(0.4, abs=0.05)
    attacked = run(replace(learning, n=500.0, dear=200.0, debt=0.0), [True] * 300)
    assert usual(attacked, NOBODY) == pytest.approx(0.4, abs=0.02)
    assert attacked.n <= 500 + CALM / (1 - allowed(replace(learning, n=500.0, dear=200.0), NOBODY, 0.1)) + 2
    whole = replace(learning, n=float(LEARNED), dear=400.0, debt=0.0)
    assert run(whole, [dice.random() < 0.4 for _ in range(500)]).n == LEARNED


def test_a_debt_is_worked_off_when_the_share_is_back() -> None:
    dice = random.Random(2)
    owing = run(KNOWN, [True] * 200)
    assert owing.debt == MOST_DEBT and owing.price == LAMBDA_MAX
    assert run(owing, [dice.random() < 0.2 for _ in range(300)]).price == 1.0  # while money is dear, fewer are dear


def test_others_say_what_moved_and_what_a_new_key_may_have() -> None:
    keys = [Standing(n=500.0, dear=500 * share, day=DAY, lately=share + 0.2) for share in (0.2, 0.25, 0.3, 0.35, 0.4)]
    assert together(keys, NOON) == Others()  # of six, five are others
    found = together([*keys, Standing(n=500.0, dear=150.0, day=DAY, lately=1.0)], NOON)
    assert found.moved == pytest.approx(0.2, abs=0.002)  # one that rises by more moves nobody
    assert found.new is not None and 0.6 < found.new < 0.7  # 0.3 + 0.2 + two spreads
    asleep = [replace(each, day=DAY - 3) for each in keys]
    few = [Standing(n=LEAST - 1.0, dear=9.0, day=DAY, lately=0.9)] * 9
    assert together([*asleep, *few, *keys[:1]], NOON) == Others()


@pytest.mark.parametrize(
    ("cost", "baseline", "dear"), [(50, 100, True), (49, 100, False), (None, 100, None), (5, None, None), (5, 0, None)]
)
def test_dear_is_half_of_what_the_baseline_costs(cost: int | None, baseline: int | None, dear: bool | None) -> None:
    assert is_dear(Outcome(status="answered", cost_nano=cost, baseline_nano=baseline)) is dear


# ------------------------------------------------------------------------------------------------ decisions

OWING = replace(KNOWN, lately=0.62, debt=SLACK + 4.0)
HARD: dict[str, Any] = {"features": {"task": "code", "complexity": 0.4}}


def test_the_decision_leans_to_cheaper_models_and_says_why() -> None:
    snapshot = world()
    calm = episode(snapshot, **HARD)
    owing = replace(calm, money=dearer(calm.money, OWING, NOBODY))
    assert called(decide(snapshot, calm)).model == BIG.id
    decision = decide(snapshot, owing)
    assert called(decision).model != BIG.id
    share, price = usual(OWING, NOBODY), OWING.price
    facts = (("share", 0.62), ("usual", round(share or 0, 4)), ("lambda", price))
    assert decision.reasons[0] == Reason("", "dear_share_risen", facts)
    found = explain(snapshot, owing, decision)
    assert found.reasons[0].startswith("this key's requests go to dear models more than is usual for it")
    said = f"62.0% of this key's last requests went to dear models, {share:.1%} is usual for it"
    assert found.reasons[-1] == f"money counts {price:.3g} times (λ): {said}; at λ 1 it would have been {BIG.id}"
    assert not [each for each in decide(snapshot, calm).reasons if each.code == "dear_share_risen"]


def test_the_dearest_cause_counts() -> None:
    budget = Lambda(99.0, (("team/day", 99.0),), 5, "team", ((0.6, 0.5),))
    both = dearer(budget, OWING, NOBODY)
    assert both.value == 99.0 and both.causes == (("team/day", 99.0), (CAUSE, OWING.price)) and both.left_nano == 5
    assert dearer(replace(budget, value=2.0), OWING, NOBODY).value == OWING.price
    assert dearer(budget, KNOWN, NOBODY) is budget


# ------------------------------------------------------------------------------------------------ counting


def record(dear: bool, **changes: Any) -> Record:
    told = replace(episode(world()), **{"payer": Payer(key="k"), "at_s": NOON, **changes})
    outcome = Outcome(status="answered", cost_nano=100 if dear else 10, baseline_nano=100)
    return Record(episode=told, decisions=(), outcome=outcome)


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({}, True),
        ({"payer": Payer()}, False),
        ({"pinned": BIG.id}, False),
        ({"policy": "tier:fast"}, False),
        ({"criticality": "critical"}, False),
        ({"criticality": "internal"}, True),
        ({"kind": "embedding"}, False),
    ],
)
def test_only_what_a_policy_may_send_anywhere_is_counted_and_made_dearer(
    changes: dict[str, Any], counted: bool
) -> None:
    shares = Shares()
    shares.note(record(True, **changes), 0.1)
    assert bool(shares.standings) == counted
    shares.standings["k"] = OWING
    told = record(True, **changes).episode
    assert (shares.opened(told, 0.1).money.value > 1.0) == counted
    assert shares.opened(told, 1.0) is told  # a policy under which the share may rise as far as it likes


@pytest.mark.parametrize(
    ("status", "counted"), [("answered", True), ("abandoned", True), ("refused", False), ("dry_run", False)]
)
def test_who_hangs_up_has_had_a_reply(status: str, counted: bool) -> None:
    shares, told = Shares(), record(True)
    shares.note(replace(told, outcome=replace(told.outcome, status=status)), 0.1)
    assert bool(shares.standings) == counted


def test_those_that_asked_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares_module, "KEYS", 3)
    shares = Shares()
    for key in "abcadd":
        shares.note(record(True, payer=Payer(key=key)), 0.1)
    assert list(shares.standings) == ["c", "a", "d"]


def test_it_is_told_once_for_each_debt(caplog: pytest.LogCaptureFixture) -> None:
    shares = Shares({"k": KNOWN})
    for dear in [True] * 300 + [False] * 300 + [True] * 300:
        shares.note(record(dear), 0.1)
    lines = [each for each in caplog.messages if "key k went to dear models, where 30% is usual" in each]
    assert len(lines) == 2 and shares.risen() == ("k",)


# ------------------------------------------------------------------------------------------------ the gateway

PROOF = "Prove step by step that every bounded monotone sequence converges, and derive the theorem's converse."


def hungry(one: FakeUpstream, two: FakeUpstream) -> dict[str, Any]:
    models = {
        CHEAP: {"tier": "fast", "skill": 0.5, "price": {"input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.4}},
        DEAR: {"tier": "frontier", "skill": 0.9, "price": {"input_usd_per_mtok": 3, "output_usd_per_mtok": 15}},
    }
    keys = [{"name": "ada", "secret": "env:ADA_KEY"}, {"name": "bob", "secret": "env:BOB_KEY"}]
    return served_world(one, two, plans={"start": {"best": ["fast", "frontier"]}}, models=models, keys=keys)


async def test_a_gateway_holds_a_key_to_what_is_usual_for_it(tmp_path: Path) -> None:
    async with FakeUpstream() as one, FakeUpstream() as two, Gateway(tmp_path, hungry(one, two)) as gateway:

        async def asked(key: str = ADA, **more: Any) -> str:
            headers = {"authorization": f"Bearer {key}", **more.pop("headers", {})}
            heard = await gateway.ask(headers=headers, messages=[{"role": "user", "content": PROOF}], **more)
            assert heard.status == 200
            return (await gateway.last()).outcome.routed

        standings = gateway.router.books.shares.standings
        assert await asked() == DEAR
        assert (standings["ada"].n, standings["ada"].dear) == (1.0, 1.0)
        standings["ada"] = replace(KNOWN, debt=30.0, day=standings["ada"].day)
        assert await asked() == CHEAP
        last = await gateway.last()
        assert last.decisions[0].reasons[0].code == "dear_share_risen"
        assert standings["ada"].debt == pytest.approx(30.0 - allowed(KNOWN, NOBODY, 0.1))
        metrics = await gateway.get("/metrics", headers={"authorization": f"Bearer {ADA}"})
        assert "tierwise_risen_keys 1.0" in metrics.body.decode() and '"ada"' not in metrics.body.decode()
        assert await asked(headers={"x-tierwise-criticality": "critical"}) == DEAR
        assert await asked(model=DEAR) == DEAR
        assert await asked(BOB) == DEAR
        await gateway.apply({**gateway.config, "policy": {**gateway.config["policy"], "dear_rise": 1}})
        for _ in range(3):
            before = standings["ada"].debt
            await asked()
            assert standings["ada"].debt <= before  # who may rise as far as they like pays off what they owe


async def test_what_is_usual_outlives_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    setup = await load(None, {"TIERWISE_LOCAL_URL": "off"}, state=tmp_path / "state")
    app = open_app(setup)
    app.router.books.shares.standings["ada"] = OWING
    await app.router.close()
    app.runtime.close()
    again = open_app(setup)
    assert again.router.books.shares.standings == {"ada": OWING}
    await again.router.close()
    again.runtime.close()
    assert not caplog.messages


def test_a_file_that_is_of_no_use_costs_no_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, shares = tmp_path / "shares.json", Shares({"ada": OWING})
    path.write_text("{")
    Kept(path, shares)
    assert shares.standings == {"ada": OWING} and "is counted anew" in caplog.messages[-1]
    gone = Kept(tmp_path / "nowhere" / "shares.json", shares)
    gone.keep()
    gone.keep()
    assert sum("is not kept" in each for each in caplog.messages) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 1_000.0, "dear": -300.0},
        {"n": 100.0, "dear": 300.0},
        {"n": -1.0},
        {"n": 1e308},
        {"debt": 1e9},
        {"debt": -1.0},
        {"lately": 7.0},
        {"today_n": -5, "today_dear": -5},
    ],
)
def test_figures_that_cannot_be_are_counted_anew(
    wrong: dict[str, float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "shares.json"
    path.write_bytes(msgspec.json.encode({"ada": wrong, "bob": OWING}))
    kept = Kept(path, Shares())
    assert kept.shares.standings == {"bob": OWING} and "1 of 2 keys" in caplog.messages[-1]


async def test_it_is_written_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares_file, "KEEP_S", 0.001)
    wrote, loop = asyncio.Event(), asyncio.get_running_loop()

    class Told(Kept):
        def _write(self, standings: Mapping[str, Standing]) -> None:
            super()._write(standings)
            loop.call_soon_threadsafe(wrote.set)

    shares = Shares()
    kept = Told(tmp_path / "shares.json", shares)
    following = asyncio.create_task(kept.follow())
    await asyncio.sleep(0)
    shares.note(record(True), 0.1)
    async with asyncio.timeout(10):
        await wrote.wait()
    following.cancel()
    assert kept.read() == shares.standings


# ------------------------------------------------------------------------------------------------ keys that do nothing


def test_keys_that_do_nothing_lose_next_to_nothing() -> None:
    """At a steady share hardly any request is decided at another price."""
    held = requests = 0
    for key in range(40):
        dice, standing = random.Random(key), Standing()
        chance = dice.uniform(0.1, 0.9)
        for i in range(3_000):
            held += standing.price > 1.0
            standing = after(standing, NOBODY, 0.1, dice.random() < chance, NOON + 60 * i)
            requests += 1
    assert held / requests < 0.03


def test_rising_by_default_is_bounded() -> None:
    assert attack.learned(attack.stories(0, 0.0)).policies["default"].dear_rise == 0.1
