"""A provider's bill beside the ledger, K4: every difference is found to the nano-dollar, and what is posted is new
entries that level the two, each once. Over real ledger files, beside a gateway and without one."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.ledgers import a_hold
from tests.test_bills import FIRST, LAST, MODELS, USAGE, bucket, cost, page
from tests.test_cli import run as process
from tests.test_cli_money import gateway
from tests.test_registry_running import running
from tierwise.core.budget import Budget, Charge
from tierwise.core.errors import Conflict
from tierwise.core.money import usd_text
from tierwise.stores.ledger.bills import DAY_S, day_of, day_text
from tierwise.stores.ledger.reports import LedgerReports
from tierwise.stores.ledger.sqlite import SqliteLedger
from tierwise.stores.registry import SqliteRegistry

# ------------------------------------------------------------------------------------------------ over a real ledger


def made(folder: Path, calls: list[tuple[int, str, int]]) -> LedgerReports:
    """A ledger of these calls: (day, model, cost)."""

    async def write() -> None:
        ledger = SqliteLedger(folder / "ledger.sqlite", (), reserve_bytes=4096)
        holds = [
            a_hold(f"h{number}", nano + 10, model=model, at_s=(FIRST + day) * DAY_S + number % DAY_S)
            for number, (day, model, nano) in enumerate(calls)
        ]
        assert set(await asyncio.gather(*map(ledger.hold, holds))) <= {None}
        for hold in holds:
            ledger.settle(hold.id, Charge(cost_nano=hold.amount_nano - 10))
        await ledger.close()

    asyncio.run(write())
    return reports_of(folder)


def reports_of(folder: Path) -> LedgerReports:
    return LedgerReports(folder / "ledger.sqlite", folder / "journal.sqlite", folder / "registry.sqlite")


def invoice(
    calls: list[tuple[int, str, int]], changed: Callable[[int], int]
) -> tuple[bytes, dict[tuple[int, str], int]]:
    """What the provider bills for them, as a cost report; and what that differs by."""
    sums: dict[tuple[int, str], int] = {}
    for day, model, nano in calls:
        sums[day, model] = sums.get((day, model), 0) + nano
    billed = {place: changed(nano) for place, nano in sums.items()}
    buckets = [
        bucket(
            day, *(cost(usd_text(nano), model.partition("/")[2]) for (at, model), nano in billed.items() if at == day)
        )
        for day in range(30)
    ]
    return json.dumps(page(*buckets)).encode(), {place: billed[place] - sums[place] for place in sums}


def written(folder: Path) -> None:
    """What a gateway does with postings when it starts."""

    async def start() -> None:
        registry, ledger = SqliteRegistry(folder / "registry.sqlite"), SqliteLedger(folder / "ledger.sqlite")
        try:
            await running(registry, ledger).refresh()
        finally:
            await ledger.close()
            registry.close()

    asyncio.run(start())


def a_month(seed: int) -> list[tuple[int, str, int]]:
    dice = random.Random(seed)
    return [(dice.randrange(30), dice.choice(MODELS), dice.randrange(1, 10**8)) for _ in range(400)]


@pytest.mark.parametrize("share", [-0.03, 0.0, 0.03])
def test_an_invoice_that_differs_is_found_and_posted_to_the_nano_dollar(tmp_path: Path, share: float) -> None:
    """K4."""
    calls = a_month(7)
    dice = random.Random(8)
    data, expected = invoice(calls, lambda nano: nano + round(nano * share * dice.random()))
    reports = made(tmp_path, calls)
    before = list(reports.entries())

    found = reports.reconcile(data, "openai", FIRST, LAST, post=False)
    assert {(day_of(r["day"]) - FIRST, r["model"]): r["difference_nano"] for r in found["rows"]} == expected
    assert found["total"]["difference_nano"] == sum(expected.values())
    assert list(reports.entries()) == before, "looking writes nothing"

    differing = {place: nano for place, nano in expected.items() if nano}
    assert bool(differing) == (share != 0)
    told = reports.reconcile(data, "openai", FIRST, LAST, post=True)
    assert (told["posted"], told["waiting"]) == (len(differing), len(differing))
    assert list(reports.entries()) == before, "the ledger has one writer, and it is not the command"
    for _ in range(2):
        written(tmp_path)
    after = list(reports.entries())
    assert after[: len(before)] == before, "a variance is a new entry, never an edit"
    added = {entry["subject"]: entry["amount_nano"] for entry in after[len(before) :]}
    assert added == {f"{day_text(FIRST + day)} {model}": nano for (day, model), nano in differing.items()}
    assert {entry["kind"] for entry in after[len(before) :]} <= {"variance"}
    assert reports.audit() == ()

    again = reports.reconcile(data, "openai", FIRST, LAST, post=True)
    assert (again["variances"], again["posted"], again["waiting"]) == (0, 0, 0), "what was posted counts as ours"
    written(tmp_path)
    assert list(reports.entries()) == after


def test_a_later_bill_posts_only_what_it_adds(tmp_path: Path) -> None:
    calls = [(3, MODELS[0], 1_000), (3, MODELS[1], 500)]
    reports = made(tmp_path, calls)
    post = {"provider": "openai", "first_day": FIRST, "last_day": LAST, "post": True}
    for more, posted in ((0, 0), (30, 1), (50, 1), (50, 0), (-10, 1), (30, 1)):
        data, _ = invoice(calls, lambda nano, more=more: nano + (more if nano == 1_000 else 0))  # type: ignore[misc]
        assert reports.reconcile(data, **post)["posted"] == posted  # type: ignore[arg-type]
        if more != 50:  # whether the gateway was there in between makes no difference
            written(tmp_path)
    amounts = [entry["amount_nano"] for entry in reports.entries() if entry["kind"] == "variance"]
    assert amounts == [30, 20, -60, 40]
    assert reports.audit() == ()


def test_a_day_as_a_whole_and_strangers_are_posted_too(tmp_path: Path) -> None:
    reports = made(tmp_path, [(0, MODELS[0], 1_000), (1, MODELS[0], 1_000), (0, "other/gpt-5", 77)])
    data = json.dumps(
        page(
            bucket(0, cost("0.000002", None)), bucket(1, cost("0.000001", "gpt-5-mini"), cost("0.000003", "Image, hd"))
        )
    )
    found = reports.reconcile(data.encode(), "openai", FIRST, LAST, post=True)
    assert found["unknown_models"] == ["openai/Image, hd"]
    written(tmp_path)
    added = {entry["subject"]: entry["amount_nano"] for entry in reports.entries() if entry["kind"] == "variance"}
    assert added == {"2026-11-01 *": 1_000, "2026-11-02 openai/Image, hd": 3_000}
    assert reports.reconcile(data.encode(), "openai", FIRST, LAST, post=True)["posted"] == 0
    # The same day, now told by model, and with another sum: the variance of the day as a whole is taken back.
    told = json.dumps(page(bucket(0, cost("0.0000015", "gpt-5-mini"))))
    assert reports.reconcile(told.encode(), "openai", FIRST, FIRST, post=True)["posted"] == 2
    written(tmp_path)
    total = sum(entry["amount_nano"] for entry in reports.entries() if entry["subject"].startswith("2026-11-01 "))
    assert total == 500 and reports.audit() == ()


def test_calls_that_cost_nothing_yet_are_told(tmp_path: Path) -> None:
    """Released calls are none; open ones are counted apart."""

    async def write() -> None:
        ledger = SqliteLedger(tmp_path / "ledger.sqlite", (), reserve_bytes=4096)
        for id in ("open", "released"):
            await ledger.hold(a_hold(id, 50, model=MODELS[0], at_s=FIRST * DAY_S))
        ledger.settle("released", Charge(cost_nano=0, kind="released"))
        await ledger.close()

    asyncio.run(write())
    reports = reports_of(tmp_path)
    found = reports.reconcile(json.dumps(page(bucket(0))).encode(), "openai", FIRST, LAST, post=False)
    assert (found["rows"], found["open_calls"], found["missing_days"]) == ([], 1, [])


def test_posting_beside_the_one_who_writes(tmp_path: Path) -> None:
    """The gateway holds the ledger; the command leaves what it found, whoever asks how often, and it counts once."""
    calls = [(0, MODELS[0], 1_000), (1, MODELS[1], 500)]
    reports = made(tmp_path, calls)
    data, _ = invoice(calls, lambda nano: nano + 1)

    async def while_it_runs() -> None:
        registry, ledger = SqliteRegistry(tmp_path / "registry.sqlite"), SqliteLedger(tmp_path / "ledger.sqlite")
        gateway = running(registry, ledger)

        async def told(*, post: bool) -> tuple[int, int, int]:
            found = await asyncio.to_thread(reports.reconcile, data, "openai", FIRST, LAST, post=post)
            return found["variances"], found.get("posted", 0), found["waiting"]

        try:
            await gateway.refresh()
            assert [await told(post=True) for _ in range(2)] == [(2, 2, 2), (0, 0, 2)]
            assert await told(post=False) == (0, 0, 2), "what is on its way counts as ours"
            for _ in range(3):
                await gateway.refresh()
            assert [entry["amount_nano"] for entry in reports.entries() if entry["kind"] == "variance"] == [1, 1]
            assert await told(post=True) == (0, 0, 0)
        finally:
            await ledger.close()
            registry.close()

    asyncio.run(while_it_runs())
    assert reports.audit() == ()


def test_a_gateway_process_writes_what_is_posted_beside_it(tmp_path: Path) -> None:
    """Both are programs of their own; the command waits for the gateway, and says what has become of its posting."""
    (tmp_path / "tierwise.yaml").write_text("models: {simulated/small: {}}\n")
    bill = tmp_path / "bill.csv"
    bill.write_text("date,model,cost_usd\n2026-11-03,small,0.25\n")
    reports = reports_of(tmp_path / ".tierwise")

    def post(amount: str) -> tuple[int, int]:
        data = f"date,model,cost_usd\n2026-11-03,small,{amount}\n".encode()
        told = reports.reconcile(data, "simulated", FIRST, LAST, post=True)
        return told["posted"], told["waiting"]

    with gateway(tmp_path):
        ran = process(
            "ledger", "reconcile", str(bill), "--provider", "simulated", "--period", "2026-11", "--post", cwd=tmp_path
        )
        assert ran.returncode == 0 and "Posted 1 variance entry to variance/simulated." in ran.stdout, ran.stderr
        assert [entry["amount_nano"] for entry in reports.entries()] == [250_000_000]
        assert post("0.25") == (0, 0)
    assert [post("0.20"), post("0.20")] == [(1, 1), (0, 1)], "nobody is there to write it"
    assert len(list(reports.entries())) == 1
    with gateway(tmp_path):
        assert [entry["amount_nano"] for entry in reports.entries()] == [250_000_000, -50_000_000]
    assert reports.audit() == ()


def test_two_who_post_at_once_are_not_both_right(tmp_path: Path) -> None:
    """Both have compared before either posted: the same bill is posted once, another is refused."""
    calls = [(0, MODELS[0], 1_000), (1, MODELS[0], 1_000)]
    reports = made(tmp_path, calls)
    (more, _), (less, _) = invoice(calls, lambda nano: nano + 5), invoice(calls, lambda nano: nano - 5)
    stale = reports_of(tmp_path)
    stale._left = lambda: ()  # type: ignore[method-assign]  # it read the registry before the other wrote
    assert reports.reconcile(more, "openai", FIRST, LAST, post=True)["posted"] == 2
    stale.reconcile(more, "openai", FIRST, LAST, post=True)
    with pytest.raises(Conflict, match=r"2026-11-01 .*compare anew"):
        stale.reconcile(less, "openai", FIRST, LAST, post=True)
    written(tmp_path)
    assert [entry["amount_nano"] for entry in reports.entries() if entry["kind"] == "variance"] == [5, 5]


def test_a_registry_that_was_begun_anew_swallows_no_posting(tmp_path: Path) -> None:
    """The ledger knows the ids that it has, so that a number is not given twice."""
    calls = [(0, MODELS[0], 1_000)]
    reports = made(tmp_path, calls)
    for more in (5, 9):
        data, _ = invoice(calls, lambda nano, more=more: nano + more)  # type: ignore[misc]
        assert reports.reconcile(data, "openai", FIRST, LAST, post=True)["posted"] == 1
        written(tmp_path)
        for path in (*tmp_path.glob("registry.sqlite*"), tmp_path / "pepper"):
            path.unlink()
    assert [entry["amount_nano"] for entry in reports.entries() if entry["kind"] == "variance"] == [5, 4]


def test_a_bill_is_compared_by_the_model_whose_price_a_call_had(tmp_path: Path) -> None:
    """The provider served another than was asked: its bill says which, and so does ours, with the routed one beside."""

    async def write() -> None:
        ledger = SqliteLedger(tmp_path / "ledger.sqlite", (Budget(scope="team"),), reserve_bytes=4096)
        for number, billed in enumerate((MODELS[0], MODELS[1], "")):
            await ledger.hold(a_hold(f"h{number}", 2_000, model=MODELS[0], at_s=FIRST * DAY_S))
            ledger.settle(f"h{number}", Charge(cost_nano=1_000 + number, billed=billed))
        await ledger.close()

    asyncio.run(write())
    reports = reports_of(tmp_path)
    data = json.dumps(page(bucket(0, cost("0.000002002", "gpt-5-mini"), cost("0.000001001", "gpt-5")))).encode()
    found = reports.reconcile(data, "openai", FIRST, LAST, post=False)
    assert {row["model"]: (row["calls"], row["difference_nano"]) for row in found["rows"]} == {
        MODELS[0]: (2, 0),
        MODELS[1]: (1, 0),
    }
    told = {(entry["hold"], entry["model"], entry["billed"]) for entry in reports.entries()}
    assert told == {("h0", MODELS[0], MODELS[0]), ("h1", MODELS[0], MODELS[1]), ("h2", MODELS[0], MODELS[0])}
    assert reports.audit() == ()


def test_tokens_alone_are_compared_and_never_posted(tmp_path: Path) -> None:
    reports = made(tmp_path, [(0, MODELS[1], 1_000)])
    found = reports.reconcile(json.dumps(USAGE).encode(), "openai", FIRST, LAST, post=False)
    (row,) = found["rows"]
    assert (row["their_tokens"], row["theirs_nano"], found["variances"]) == ({"input": 1000, "output": 50}, None, 0)
    with pytest.raises(ValueError, match="tokens and no money"):
        reports.reconcile(json.dumps(USAGE).encode(), "openai", FIRST, LAST, post=True)
