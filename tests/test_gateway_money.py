"""What faults cost, U6, U10, U12: holds before calls, other models than asked, and usage that no provider means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.callers import DIALECTS
from tests.support.gateway import CHEAP, DEAR, Gateway, price, world
from tests.support.replies import USUAL
from tests.support.upstream import TEXT, Exchange, FakeUpstream, error, insane_usage, well_formed, wrong_model
from tierwise.core.weigh import NAME_LETTERS


async def test_a_dearer_fallback_is_held_at_its_own_price_before_it_is_asked(tmp_path: Path) -> None:
    """U10, B8: an attempt, a hold; and the first is closed when the second opens."""
    async with FakeUpstream(error(500)) as one, FakeUpstream() as two, Gateway(tmp_path, world(one, two)) as gateway:
        held: list[tuple[int, int]] = []

        async def look(x: Exchange) -> None:
            open_holds = gateway.ledger.books._open.values()
            held.append((len(open_holds), sum(each.row.amount_nano for each in open_holds)))
            await well_formed(x)

        two.script(look, look)
        for dialect in DIALECTS:
            await gateway.ask(dialect, max_tokens=100)
        (cheap, _), (dear, _) = gateway.ledger.holds[:2]
        assert (cheap.model, dear.model) == (CHEAP, DEAR) and dear.amount_nano > 3 * cheap.amount_nano
        assert held[0] == (1, dear.amount_nano)
        assert held[1][0] == 1


async def test_without_consent_nothing_falls_back_upwards(tmp_path: Path) -> None:
    async with (
        FakeUpstream(error(500)) as one,
        FakeUpstream() as two,
        Gateway(tmp_path, world(one, two, policy={"dearer": False})) as gateway,
    ):
        heard = await gateway.ask()
        assert heard.status == 503 and len(two.requests) == 0


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_another_model_than_asked_is_priced_as_itself_or_as_the_dearest(tmp_path: Path, stream: bool) -> None:
    """U12, plain and streaming, in both dialects."""
    known = {
        "one/huge": {"tier": "local", "price": price(50, 200)},
        "one/tiny": {"tier": "local", "price": price(0.5, 1)},
    }
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, models=known)) as gateway:
        for served, billed, dollars in (
            ("cheap-2026-08-01", CHEAP, (1, 4)),
            ("tiny", "one/tiny", (0.5, 1)),
            ("nobody-knows-9", "one/huge", (50, 200)),
        ):
            for dialect in DIALECTS:
                one.script(wrong_model(served))
                heard = await gateway.ask(dialect, stream=stream or None)
                outcome = (await gateway.last()).outcome
                assert (heard.status, heard.model) == (200, CHEAP)
                assert (outcome.routed, outcome.served, outcome.billed) == (CHEAP, served, billed)
                assert outcome.cost_nano == (USUAL.input * dollars[0] + USUAL.output * dollars[1]) * 1_000


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_name_without_end_holds_nobody_up_and_is_not_kept(tmp_path: Path, stream: bool) -> None:
    """U12: of a quarter of a megabyte, which may or may not end as a version does."""
    endless = CHEAP.partition("/")[2] + "-1234" * 50_000 + "!"
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        for dialect in DIALECTS:
            one.script(wrong_model(endless))
            heard = await gateway.ask(dialect, stream=stream or None)
            outcome = (await gateway.last()).outcome
            assert (heard.status, heard.model, outcome.billed) == (200, CHEAP, CHEAP)
            assert outcome.served == endless[:NAME_LETTERS]


INSANE: dict[str, dict[str, Any] | None] = {
    "everything": None,
    "negative": {"prompt_tokens": -5, "completion_tokens": -7, "total_tokens": -12},
    "astronomic": {"prompt_tokens": 10**30, "completion_tokens": 10**30, "total_tokens": 10**30},
    "large": {"prompt_tokens": 2**62, "completion_tokens": 2**62, "total_tokens": 2**63},
    "text": {"prompt_tokens": "12", "completion_tokens": "7", "total_tokens": "19"},
    "fractions": {"prompt_tokens": 12.5, "completion_tokens": 7.5, "total_tokens": 20.0},
    "cached above all": {"prompt_tokens": 12, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 900}},
    "nulls": {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None},
    "empty": {},
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_insane_usage_never_makes_negative_or_absurd_money(tmp_path: Path, stream: bool) -> None:
    """U6: the reply is delivered, and costs between nothing and little more than the worst case that was held."""
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        for name, usage in INSANE.items():
            for dialect in DIALECTS:
                one.script(insane_usage(usage))
                heard = await gateway.ask(dialect, stream=stream or None, max_tokens=50)
                assert (heard.status, heard.text) == (200, TEXT), (name, heard)
                await gateway.settled()
                (hold, _), (_, charge) = gateway.ledger.holds[-1], gateway.ledger.charges[-1]
                assert 0 < charge.cost_nano <= 2 * hold.amount_nano, (name, charge, hold)
                told = heard.usage.get("cost_usd")
                assert told is None or 0 < told < 0.01, (name, heard.usage)
