"""What a provider billed, K4: every format is read exactly, and every difference is found to the nano-dollar. Pure."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.stores.ledger.bills import DAY_S, BillLine, day_of, day_text, read_bill
from tierwise.stores.ledger.reconcile import Ours, compare, known_as

FIRST = day_of("2026-11-01")
LAST = FIRST + 29
USD = 10**9
MODELS = ("openai/gpt-5-mini", "openai/gpt-5")


def line(day: int, model: str, nano: int | None, **more: Any) -> BillLine:
    return BillLine(day=FIRST + day, model=model, cost_usd=None if nano is None else Fraction(nano, USD), **more)


# ------------------------------------------------------------------------------------------------ reading


def bucket(day: int, *results: dict[str, Any], **more: Any) -> dict[str, Any]:
    start = (FIRST + day) * DAY_S
    return {"object": "bucket", "start_time": start, "end_time": start + DAY_S, "results": list(results), **more}


def page(*buckets: dict[str, Any], has_more: bool = False) -> dict[str, Any]:
    return {"object": "page", "data": list(buckets), "has_more": has_more, "next_page": None}


def cost(value: Any, item: str | None, currency: str = "usd") -> dict[str, Any]:
    return {"object": "organization.costs.result", "amount": {"value": value, "currency": currency}, "line_item": item}


def claude(day: int, *results: dict[str, Any]) -> dict[str, Any]:
    return {
        "starting_at": f"{day_text(FIRST + day)}T00:00:00Z",
        "ending_at": f"{day_text(FIRST + day + 1)}T00:00:00Z",
        "results": list(results),
    }


COSTS = page(bucket(0, cost(0.0000125, "gpt-5-mini-2025-08-07, input"), cost("1.5", None)), bucket(1))
USAGE = page(
    bucket(0, {"model": "gpt-5", "input_tokens": 1000, "input_cached_tokens": 800, "output_tokens": 50, "batch": None})
)
CLAUDE_COSTS = page(
    claude(0, {"currency": "USD", "amount": "123.78912", "model": "claude-haiku-4-5-20251001", "description": "x"}),
    claude(2, {"currency": "USD", "amount": "5", "model": None, "description": "Web Search Usage"}),
)
CLAUDE_USAGE = page(
    claude(
        0,
        {
            "model": "claude-haiku-4-5",
            "uncached_input_tokens": 1500,
            "cache_creation": {"ephemeral_1h_input_tokens": 1000, "ephemeral_5m_input_tokens": 500},
            "cache_read_input_tokens": 200,
            "output_tokens": 500,
        },
    )
)
PLAIN = """date,model,input_tokens,cached_tokens,output_tokens,cost_usd
2026-11-01,gpt-5,1000,800,50,$1.25
2026-11-03T23:59:59+00:00,gpt-5-mini,1,0,2,0.000000001
"""
OPENAI_TSV = """start_time\tend_time\tstart_time_iso\tend_time_iso\tamount_value\tamount_currency\tline_item
1793491200\t1793577600\t2026-11-01T00:00:00+00:00\t2026-11-02T00:00:00+00:00\t0.8958740000000000\tusd\t
1793577600\t1793664000\t2026-11-02T00:00:00+00:00\t2026-11-03T00:00:00+00:00\t\t\t
"""
CLAUDE_CSV = (
    "usage_date_utc,model_version,api_key,usage_input_tokens_no_cache,usage_input_tokens_cache_write_5m,"
    "usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,usage_output_tokens\n"
    "2026-11-01,claude-haiku-4-5,k,1500,500,1000,200,500\n"
)
CLAUDE_COST_CSV = (
    "usage_date_utc,model,workspace,token_type,cost_usd\n"
    '2026-11-01,Claude Haiku 4.5,"a, b",input_no_cache,0.05\n'
    "2026-11-01,Claude Haiku 4.5,Default,output,-0.01\n"
)
TOKENS = {"input_tokens": 3200, "cached_tokens": 200, "output_tokens": 500}


@pytest.mark.parametrize(
    ("text", "lines", "days"),
    [
        (json.dumps(COSTS), [line(0, "gpt-5-mini-2025-08-07, input", 12_500), line(0, "", 3 * USD // 2)], {0, 1}),
        (json.dumps([COSTS, USAGE])[:-1] + "]", 3, {0, 1}),
        (json.dumps(COSTS) + "\n" + json.dumps(USAGE), 3, {0, 1}),
        (json.dumps(USAGE), [line(0, "gpt-5", None, input_tokens=1000, cached_tokens=800, output_tokens=50)], {0}),
        (
            json.dumps(CLAUDE_COSTS),
            [line(0, "claude-haiku-4-5-20251001", 1_237_891_200), line(2, "Web Search Usage", 50_000_000)],
            {0, 2},
        ),
        (json.dumps(CLAUDE_USAGE), [line(0, "claude-haiku-4-5", None, **TOKENS)], {0}),
        (
            "\ufeff" + PLAIN,
            [
                line(0, "gpt-5", 5 * USD // 4, input_tokens=1000, cached_tokens=800, output_tokens=50),
                line(2, "gpt-5-mini", 1, input_tokens=1, output_tokens=2),
            ],
            {0, 2},
        ),
        (PLAIN.replace(",", ";"), 2, {0, 2}),
        (OPENAI_TSV, [line(0, "", 895_874_000)], {0, 1}),
        (CLAUDE_CSV, [line(0, "claude-haiku-4-5", None, **TOKENS)], {0}),
        (CLAUDE_COST_CSV, [line(0, "Claude Haiku 4.5", 50_000_000), line(0, "Claude Haiku 4.5", -10_000_000)], {0}),
    ],
    ids=["costs", "list", "lines", "usage", "claude-costs", "claude-usage", "csv", "semicolons", "tsv", "claude-csv",
         "claude-cost-csv"],
)  # fmt: skip
def test_bills_are_read_exactly(text: str, lines: Any, days: set[int]) -> None:
    bill = read_bill(text.encode())
    assert len(bill.lines) == lines if isinstance(lines, int) else list(bill.lines) == lines
    assert bill.days == {FIRST + day for day in days}


def test_an_amount_is_not_read_as_a_float() -> None:
    """0.1 + 0.2 is 0.3, and a number with more digits than a float has keeps all of them."""
    text = json.dumps(page(bucket(0, cost("@1", "m"), cost("@2", "m"), cost("@3", "m"))))
    for mark, number in (('"@1"', "0.1"), ('"@2"', "0.2"), ('"@3"', "12345678.123456789123456789")):
        text = text.replace(mark, number)
    total = sum((each.cost_usd or 0 for each in read_bill(text.encode()).lines), Fraction(0))
    assert total == Fraction(3, 10) + Fraction("12345678.123456789123456789")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("{", "no JSON"),
        ("[1]", "no page"),
        ('{"data": [{}]}', "results"),
        ('{"data": [{"start_time": "x", "results": []}]}', "no time"),
        (json.dumps(page(bucket(0), has_more=True)), "not whole"),
        (json.dumps(page(bucket(0, end_time=(FIRST + 9) * DAY_S))), "longer than a day"),
        (json.dumps(page(bucket(0, cost("1", "m", "eur")))), "eur"),
        (json.dumps(page(bucket(0, cost("1e99", "m")))), "believable"),
        (json.dumps(page(bucket(0, cost("Infinity", "m")))), "believable"),
        (json.dumps(page(bucket(0, cost(None, "m")))), "no amount"),
        ('{"data": [{"start_time": 1793491200, "results": [{"amount": {"value": NaN}}]}]}', "no amount"),
        (json.dumps(page(bucket(0, {"model": "m"}))), "neither money nor tokens"),
        (json.dumps(page(bucket(0, {"input_tokens": -1}))), "input_tokens"),
        ("hello\nworld\n", "line 1: no table"),
        (PLAIN.replace("2026-11-01", "yesterday"), "line 2"),
        (PLAIN.replace("0.000000001", "1,5"), "no amount"),
        (PLAIN.replace(",50,", ",5.5,"), "output_tokens"),
        (OPENAI_TSV.replace("usd", "eur"), "eur"),
    ],
)
def test_what_is_no_bill_is_refused_in_words(text: str, says: str) -> None:
    if "1,5" in text:
        text = text.replace("1,5", '"1,5"')
    with pytest.raises(ValueError, match=says):
        read_bill(text.encode())
    with pytest.raises(ValueError, match="UTF-8"):
        read_bill(b"\xff\xfe")


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    for start in (b"", b"date,cost_usd\n2026-11-01,", b'{"data": [{"start_time": 1793491200, "results": [{"amount":'):
        try:
            read_bill(start + data)
        except ValueError as error:
            assert str(error)


# ------------------------------------------------------------------------------------------------ comparing


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("gpt-5-mini", "openai/gpt-5-mini"),
        ("gpt-5-mini-2025-08-07", "openai/gpt-5-mini"),
        ("GPT-5 mini, cached input", "openai/gpt-5-mini"),
        ("gpt-5", "openai/gpt-5"),
        ("gpt-5-nano", "openai/gpt-5-nano"),
        ("Image models", "openai/Image models"),
        ("", ""),
    ],
)
def test_models_are_known_by_their_other_names(theirs: str, ours: str) -> None:
    assert known_as(theirs, "openai", MODELS) == ours


def test_a_dated_name_of_ours_comes_first_and_two_that_fit_are_none() -> None:
    both = ("openai/gpt-5-2025-08-07", "openai/gpt-5")
    assert known_as("gpt-5-2025-08-07", "openai", both) == both[0]
    assert known_as("gpt-5-2026-01-01", "openai", both) == "openai/gpt-5-2026-01-01"


def bill_of(*lines: BillLine, days: set[int] | None = None) -> Any:
    bill = read_bill(b"date,cost_usd\n")
    told = frozenset({each.day for each in lines} | {FIRST + day for day in days or ()})
    return msgspec.structs.replace(bill, lines=lines, days=told, has_money=True)


def ours(day: int, model: str, nano: int, **more: Any) -> Ours:
    return Ours(day=FIRST + day, model=model, cost_nano=nano, **{"calls": 1, **more})


def test_what_a_comparison_finds() -> None:
    mine = (
        ours(0, MODELS[0], 100),
        ours(0, MODELS[1], 50),
        ours(1, MODELS[0], 7),
        ours(2, MODELS[0], 9),
        ours(-1, "x", 1),
    )
    bill = bill_of(
        line(0, "gpt-5-mini", 103), line(0, "gpt-5-mini", 1), line(0, "dall-e", 5), line(31, "gpt-5", 8), days={1}
    )
    report = compare(mine, bill, "openai", FIRST, LAST)
    found = [(row.day - FIRST, row.model, row.ours_nano, row.theirs_nano) for row in report.rows]
    assert found == [
        (0, "openai/dall-e", 0, 5),
        (0, MODELS[1], 50, 0),  # the day is told, and this model is not on it
        (0, MODELS[0], 100, 104),
        (1, MODELS[0], 7, 0),  # a day that is told, with nothing on it
    ]
    assert report.missing_days == (FIRST + 2,)  # never told: neither compared nor made up for
    assert (report.unknown_models, report.outside) == (("openai/dall-e",), 1)
    assert (report.ours_nano, report.theirs_nano, len(report.variances)) == (157, 109, 4)


def test_a_day_whose_money_has_no_model_is_compared_as_one() -> None:
    mine = (ours(0, MODELS[0], 100), ours(0, MODELS[1], 50), ours(1, MODELS[1], 4))
    report = compare(mine, bill_of(line(0, "", 140), line(0, "gpt-5", 11), line(1, "gpt-5", 4)), "openai", FIRST, LAST)
    assert [(row.model, row.difference_nano) for row in report.rows] == [("", 1), (MODELS[1], 0)]


def test_parts_of_a_nano_dollar_are_rounded_once() -> None:
    """Three thirds are one; three times a rounded third would be none."""
    third = BillLine(day=FIRST, model="gpt-5", cost_usd=Fraction(1, 3 * USD))
    (row,) = compare((), bill_of(third, third, third), "openai", FIRST, LAST).rows
    assert row.theirs_nano == 1
