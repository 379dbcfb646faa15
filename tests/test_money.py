"""Money: whole numbers, one rounding upward, and a dearest price that no bill can pass."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.core.money import (
    BUCKETS,
    MAX_NANO,
    MAX_RATE_NANO,
    MAX_REQUEST_NANO,
    MAX_SEARCH_NANO,
    MAX_TOKENS_REPORTED,
    NANO_PER_USD,
    SECONDS_PER_DAY,
    TOKENS_PER_PRICE,
    Price,
    PriceRow,
    Rates,
    Service,
    Usage,
    cost_nano,
    usd_text,
    usd_to_nano,
)

DAY = 20_000  # days since 1970; some day in 2024
SERVICES: tuple[Service, ...] = ("standard", "batch", "flex", "priority")

counts = st.integers(0, 1 << 22)
usages = st.builds(Usage, **dict.fromkeys(BUCKETS, counts))
rate = st.integers(0, 10**12)
all_rates = st.builds(Rates, **dict.fromkeys(Rates.__struct_fields__, rate))
minutes = st.sampled_from([0, 30, 240, 720, 990, 1_439])
conditions = st.builds(
    PriceRow,
    all_rates,
    service=st.sampled_from(SERVICES),
    above_prompt_tokens=st.sampled_from([-1, 0, 100, 200]),
    from_day=st.none() | st.integers(DAY - 2, DAY + 2),
    from_minute=st.none() | minutes,
    to_minute=minutes,
)
prices = st.builds(
    lambda plain, rest: Price((PriceRow(plain), *rest), "test"), all_rates, st.lists(conditions, max_size=6)
)
instants = st.integers((DAY - 3) * SECONDS_PER_DAY, (DAY + 3) * SECONDS_PER_DAY)


def _exact(usage: Usage, rates: Rates) -> Fraction:
    return (
        sum(Fraction(getattr(usage, bucket) * getattr(rates, bucket), TOKENS_PER_PRICE) for bucket in BUCKETS)
        + rates.request_nano
    )


@given(usages, all_rates)
def test_a_cost_is_the_exact_sum_rounded_up_once(usage: Usage, rates: Rates) -> None:
    assert cost_nano(usage, rates) == math.ceil(_exact(usage, rates))


@given(usages, all_rates, st.sampled_from(BUCKETS), st.integers(1, 1_000))
def test_more_usage_never_costs_less(usage: Usage, rates: Rates, bucket: str, more: int) -> None:
    larger = msgspec.structs.replace(usage, **{bucket: getattr(usage, bucket) + more})
    assert cost_nano(larger, rates) >= cost_nano(usage, rates)


def test_the_largest_cost_that_can_be_reported_fits_in_63_bits() -> None:
    usage = Usage(**dict.fromkeys(BUCKETS, MAX_TOKENS_REPORTED))
    rates = Rates(
        **{
            **dict.fromkeys(Rates.__struct_fields__, MAX_RATE_NANO),
            "web_searches": MAX_SEARCH_NANO * TOKENS_PER_PRICE,
            "request_nano": MAX_REQUEST_NANO,
        }
    )
    Price((PriceRow(rates),), "test")  # these bounds are the ones that a price may reach
    assert cost_nano(usage, rates) <= MAX_NANO


@given(usages)
def test_prompt_and_completion_are_all_tokens_and_count_none_twice(usage: Usage) -> None:
    tokens = sum(getattr(usage, bucket) for bucket in BUCKETS if bucket != "web_searches")
    assert usage.prompt_tokens + usage.completion_tokens == tokens


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_a_rate_that_is_not_given_costs_what_its_wider_kind_costs(into: int, out: int) -> None:
    rates = Rates.of(into, out)
    written = {"output_tokens", "reasoning_tokens", "output_audio_tokens"}
    for bucket in set(BUCKETS) - {"web_searches"}:
        assert getattr(rates, bucket) == (out if bucket in written else into)
    assert Rates.of(1, 2, cache_write_5m_tokens=7).cache_write_1h_tokens == 7


# ------------------------------------------------------------------------------------------------ dollars


@given(st.decimals(0, 9 * 10**9, allow_nan=False, places=15) | st.floats(0, 9e9).map(lambda usd: Decimal(str(usd))))
def test_dollars_become_nano_dollars_rounded_up(usd: Decimal) -> None:
    assert usd_to_nano(usd) == math.ceil(Fraction(usd) * NANO_PER_USD)


@pytest.mark.parametrize(
    ("usd", "nano"),
    [
        ("0", 0),
        ("0.000000001", 1),
        ("0.0000000001", 1),
        (0.1, 100_000_000),
        (1, NANO_PER_USD),
        ("1e-999999999", 1),
        ("0e999999999", 0),
        # More digits than the usual decimal context keeps: rounding to nearest first would lose the last one.
        ("1.0000000000000000000000000000000000000001", NANO_PER_USD + 1),
        ("9223372036.854775807", MAX_NANO),
    ],
)
def test_dollars_at_the_edges(usd: str | float, nano: int) -> None:
    assert usd_to_nano(usd) == nano


@pytest.mark.parametrize(
    "usd", ["-0.01", "nan", "inf", "-inf", "", "ten", "1e999999999", "9223372036.8547758071", "sNaN", True, None]
)
def test_what_is_no_amount_of_dollars_is_refused_by_name(usd: str) -> None:
    with pytest.raises(ValueError, match="limit_usd"):
        usd_to_nano(usd, what="limit_usd")


@given(st.integers(-MAX_NANO, MAX_NANO))
def test_an_amount_written_out_is_exact_and_plain(nano: int) -> None:
    text = usd_text(nano)
    assert Decimal(text) * NANO_PER_USD == nano
    assert "e" not in text.lower()
    assert nano < 0 or usd_to_nano(text) == nano


# ------------------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize(
    ("start", "end", "inside", "outside"),
    [
        (60, 240, [60, 100, 239], [0, 59, 240, 1_439]),
        (990, 30, [990, 1_439, 0, 29], [30, 500, 989]),  # over midnight
        (990, 0, [990, 1_439], [0, 989]),
        (60, 60, [], [0, 60, 1_439]),
    ],
)
def test_hours_of_the_day_begin_with_their_start_and_stop_before_their_end(
    start: int, end: int, inside: list[int], outside: list[int]
) -> None:
    row = PriceRow(Rates.of(1, 1), from_minute=start, to_minute=end)
    held = [minute for minute in inside + outside if row.holds(DAY * SECONDS_PER_DAY + minute * 60 + 59, "standard")]
    assert held == inside


@given(prices, instants, st.integers(0, 300), st.sampled_from(SERVICES))
def test_the_last_row_that_holds_is_the_price(price: Price, at_s: int, prompt_tokens: int, service: Service) -> None:
    holding = [r for r in price.rows if r.holds(at_s, service) and r.above_prompt_tokens < prompt_tokens]
    assert price.rates(at_s, prompt_tokens, service) == holding[-1].rates


@given(
    prices, instants, st.integers(0, 300), st.sampled_from(SERVICES), st.integers(0, SECONDS_PER_DAY), st.integers(0, 9)
)
def test_no_bill_of_the_next_day_passes_the_dearest_price(
    price: Price, at_s: int, prompt_tokens: int, service: Service, later_s: int, shorter: int
) -> None:
    """At any time within a day, for any prompt up to this length, at this service or the standard one."""
    dearest = price.dearest(at_s, prompt_tokens, service)
    for length in {max(0, prompt_tokens - shorter), prompt_tokens, prompt_tokens // 2, 0}:
        for billed_as in ("standard", service):
            billed = price.rates(at_s + later_s, length, billed_as)
            for name in Rates.__struct_fields__:
                assert getattr(dearest, name) >= getattr(billed, name)


def _row(usd: int, **conditions: object) -> PriceRow:
    return PriceRow(Rates.of(usd, usd), **conditions)


@pytest.mark.parametrize(
    ("rows", "prompt_tokens", "service", "expected"),
    [
        ([_row(9), _row(2, from_day=DAY - 5)], 10, "standard", 2),  # a price that has ended
        ([_row(2), _row(9, from_day=DAY + 1)], 10, "standard", 9),  # one that begins within the day
        ([_row(2), _row(9, from_day=DAY + 2)], 10, "standard", 2),  # one that begins later
        ([_row(9), _row(2, from_day=DAY + 1)], 10, "standard", 9),  # one that has a day to go yet
        ([_row(2), _row(9, above_prompt_tokens=100)], 100, "standard", 2),
        ([_row(2), _row(9, above_prompt_tokens=100)], 101, "standard", 9),
        ([_row(2), _row(9, from_minute=1_000, to_minute=1_100)], 10, "standard", 9),  # the hour may turn
        ([_row(2), _row(9, service="priority")], 10, "standard", 2),
        ([_row(2), _row(9, service="priority")], 10, "priority", 9),
        ([_row(2), _row(1, service="batch")], 10, "batch", 2),  # a batch may be billed at the standard price
        # The dates of one service do not end the price of another.
        ([_row(9), _row(2, from_day=DAY - 5), _row(7, service="flex"), _row(1, service="flex", from_day=DAY - 1)],
         10, "flex", 2),
        ([_row(2), _row(9, above_prompt_tokens=5), _row(3, from_day=DAY)], 10, "standard", 3),  # hidden by a later row
    ],
)  # fmt: skip
def test_the_dearest_price_counts_what_can_be_billed_and_nothing_else(
    rows: list[PriceRow], prompt_tokens: int, service: Service, expected: int
) -> None:
    dearest = Price(tuple(rows), "test").dearest(DAY * SECONDS_PER_DAY, prompt_tokens, service)
    assert dearest == Rates.of(expected, expected)


@pytest.mark.parametrize(
    "rows",
    [
        (),
        (_row(1, service="batch"),),
        (_row(1, from_day=1),),
        (_row(1, from_minute=0, to_minute=60),),
        (_row(1, above_prompt_tokens=0),),
        (_row(-1),),
        (_row(MAX_RATE_NANO + 1),),
        (_row(1), PriceRow(Rates.of(1, 1, request_nano=-1))),
    ],
)
def test_a_price_without_a_plain_first_row_or_with_an_unbelievable_rate_cannot_be_made(
    rows: tuple[PriceRow, ...],
) -> None:
    with pytest.raises(ValueError, match=r"plain|believable"):
        Price(rows, "test")


@given(prices)
def test_a_price_survives_being_written_and_read(price: Price) -> None:
    assert msgspec.json.decode(msgspec.json.encode(price), type=Price) == price
