"""Reads what providers say they billed: OpenAI's and Anthropic's usage and cost reports, or a plain table. Pure.

JSON as the vendors' admin interfaces give it (one page, a list of pages, or pages one after the other), CSV or TSV as
their consoles export it, and any CSV with the columns date, model, input_tokens, cached_tokens, output_tokens and
cost_usd. Amounts are read as exact decimals, never as floats.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

import msgspec

DAY_S = 86_400
MOST_BYTES = 256 << 20


class BillLine(msgspec.Struct, frozen=True, kw_only=True):
    """`model` as the provider calls it, "" for a day's sum; `cost_usd` None where only tokens are told."""

    day: int  # since 1970, UTC
    model: str = ""
    cost_usd: Fraction | None = None
    input_tokens: int = 0  # cached ones included
    cached_tokens: int = 0
    output_tokens: int = 0


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """`days`: those that it tells of, also when it says that there was nothing."""

    source: str  # whose report it is
    lines: tuple[BillLine, ...]
    days: frozenset[int]
    has_money: bool
    has_tokens: bool


def read_bill(data: bytes) -> Bill:
    """Raises ValueError, saying where and what is wrong, for anything that is not a whole bill in US dollars."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB; export a shorter time")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text; export it as JSON or CSV") from None
    if not text.strip():
        raise ValueError("it is empty")
    if text.lstrip()[0] in "[{":
        return _made("JSON", *_from_pages(list(_pages(text))))
    return _made("CSV", *_from_table(text))


def day_of(text: str) -> int:
    """Days since 1970 of `2026-11-03`, `2026-11-03T00:00:00Z` or seconds since 1970. Raises ValueError."""
    text = text.strip()
    if text.isascii() and text.isdigit() and 8 < len(text) < 12:
        return int(text) // DAY_S
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC)
    return moment.date().toordinal() - date(1970, 1, 1).toordinal()


def day_text(day: int) -> str:
    return date.fromordinal(day + date(1970, 1, 1).toordinal()).isoformat()


def _made(kind: str, source: str, lines: list[BillLine], days: set[int]) -> Bill:
    has_money = any(line.cost_usd is not None for line in lines)
    has_tokens = any(line.input_tokens or line.output_tokens for line in lines)
    if lines and not has_money and not has_tokens:
        raise ValueError("it tells neither money nor tokens")
    return Bill(
        source=f"{source} ({kind})",
        lines=tuple(lines),
        days=frozenset(days),
        has_money=has_money,
        has_tokens=has_tokens,
    )


# ------------------------------------------------------------------------------------------------ JSON


def _pages(text: str) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_number)
    place = 0
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {error.lineno}: this is no JSON ({error.msg})") from None
        except RecursionError:
            raise ValueError("it is nested too deeply to be a bill") from None
        for page in value if isinstance(value, list) else [value]:
            if not _has_list(page, "data"):
                raise ValueError("no page of a usage or cost report: there is no list of buckets called `data`")
            yield page
        while place < len(text) and text[place].isspace():
            place += 1


def _has_list(value: Any, name: str) -> bool:
    return isinstance(value, dict) and isinstance(value.get(name), list) and all(type(x) is dict for x in value[name])


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no amount")


def _from_pages(pages: list[dict[str, Any]]) -> tuple[str, list[BillLine], set[int]]:
    if pages and pages[-1].get("has_more"):
        raise ValueError("it is not whole: the last page says that there are more. Fetch those of `next_page` as well")
    lines: list[BillLine] = []
    days: set[int] = set()
    source = "OpenAI"
    for number, page in enumerate(pages, 1):
        for bucket in page["data"]:
            where = f"page {number}"
            if not _has_list(bucket, "results"):
                raise ValueError(f"{where}: a bucket without a list of `results`")
            anthropic = "starting_at" in bucket
            source = "Anthropic" if anthropic else source
            day = _bucket_day(bucket, where)
            days.add(day)
            for result in bucket["results"]:
                try:
                    lines.append(_anthropic(day, result) if anthropic else _openai(day, result))
                except ValueError as error:
                    raise ValueError(f"{where}, {day_text(day)}: {error}") from None
    return source, lines, days


def _bucket_day(bucket: dict[str, Any], where: str) -> int:
    start, end = bucket.get("starting_at", bucket.get("start_time")), bucket.get("ending_at", bucket.get("end_time"))
    try:
        first = day_of(str(start))
        # The end is the first moment after the bucket.
        if end is not None and day_of(str(end)) > first + 1:
            raise ValueError(f"{where}: the bucket of {day_text(first)} is longer than a day; export with days (`1d`)")
    except ValueError as error:
        if str(error).startswith(where):
            raise
        raise ValueError(f"{where}: {start!r} is no time for a bucket to begin") from None
    return first


def _openai(day: int, result: dict[str, Any]) -> BillLine:
    amount = result.get("amount")
    cost = None
    if isinstance(amount, dict):
        _dollars(amount.get("currency"))
        cost = _amount(amount.get("value"))
    return BillLine(
        day=day,
        model=str(result.get("line_item") or result.get("model") or ""),
        cost_usd=cost,
        input_tokens=_count(result, "input_tokens"),
        cached_tokens=_count(result, "input_cached_tokens"),
        output_tokens=_count(result, "output_tokens"),
    )


def _anthropic(day: int, result: dict[str, Any]) -> BillLine:
    cost = None
    if "amount" in result:
        _dollars(result.get("currency"))
        cost = _amount(result["amount"]) / 100  # they count in cents
    written = result.get("cache_creation")
    parts = written if isinstance(written, dict) else {}
    read = _count(result, "cache_read_input_tokens")
    fresh = _count(result, "uncached_input_tokens") + sum(_count(parts, name) for name in parts)
    return BillLine(
        day=day,
        model=str(result.get("model") or result.get("description") or ""),
        cost_usd=cost,
        input_tokens=fresh + read,
        cached_tokens=read,
        output_tokens=_count(result, "output_tokens"),
    )


# ------------------------------------------------------------------------------------------------ tables

_DAY = ("date", "usage_date_utc", "start_time_iso", "start_time", "day")
_MODEL = ("model", "model_version", "line_item")
_COST = ("cost_usd", "amount_value")
_CURRENCY = ("amount_currency", "currency")
_INPUT = ("input_tokens",)
_CACHED = ("cached_tokens", "input_cached_tokens", "usage_input_tokens_cache_read")
_OUTPUT = ("output_tokens", "usage_output_tokens")
_ANTHROPIC_INPUT = (
    "usage_input_tokens_no_cache",
    "usage_input_tokens_cache_write_5m",
    "usage_input_tokens_cache_write_1h",
    "usage_input_tokens_cache_read",
)


def _from_table(text: str) -> tuple[str, list[BillLine], set[int]]:
    head = text.split("\n", 1)[0]
    delimiter = max("\t,;", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    lines: list[BillLine] = []
    days: set[int] = set()
    try:
        names = [name.strip().casefold() for name in next(reader)]
        day_name = next((name for name in _DAY if name in names), None)
        if day_name is None or not set(names) & {*_COST, *_INPUT, *_OUTPUT}:
            wanted = "date, model, input_tokens, cached_tokens, output_tokens, cost_usd"
            raise ValueError(f"line 1: no table of a bill; the first line has to name its columns: {wanted}")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            row = dict(zip(names, (cell.strip() for cell in cells), strict=False))
            try:
                day = day_of(row.get(day_name, ""))
                days.add(day)
                line = _row(day, row)
            except ValueError as error:
                raise ValueError(f"line {reader.line_num}: {error}") from None
            if line is not None:
                lines.append(line)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: this is no table ({error})") from None
    source = "Anthropic" if "usage_date_utc" in names else "OpenAI" if "start_time_iso" in names else "table"
    return source, lines, days


def _row(day: int, row: dict[str, str]) -> BillLine | None:
    """None for a day on which there was nothing."""
    cost = _first(row, _COST)
    if cost:
        _dollars(_first(row, _CURRENCY) or "usd")
    read = sum(_count(row, name) for name in _ANTHROPIC_INPUT) or sum(_count(row, name) for name in _INPUT)
    written = sum(_count(row, name) for name in _OUTPUT)
    if not cost and not read and not written:
        return None
    return BillLine(
        day=day,
        model=_first(row, _MODEL),
        cost_usd=_amount(cost.removeprefix("$")) if cost else None,
        input_tokens=read,
        cached_tokens=sum(_count(row, name) for name in _CACHED),
        output_tokens=written,
    )


def _first(row: dict[str, str], names: tuple[str, ...]) -> str:
    return next((row[name] for name in names if row.get(name)), "")


# ------------------------------------------------------------------------------------------------ numbers


def _amount(value: Any) -> Fraction:
    """Exact; below zero for a refund. What is far below a nano-dollar is nothing, what is absurd is refused."""
    try:
        exact = Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"{str(value)[:40]!r} is no amount of dollars") from None
    if not exact.is_finite() or (exact and exact.adjusted() > 10):
        raise ValueError(f"{str(value)[:40]!r} is no believable amount of dollars")
    return Fraction(0) if not exact or exact.adjusted() < -40 else Fraction(exact)


def _count(row: dict[str, Any], name: str) -> int:
    value = row.get(name)
    if value is None or value == "":
        return 0
    try:
        number = Decimal(str(value))
        if number.is_finite() and 0 <= number < 1 << 62 and number == int(number):
            return int(number)
    except InvalidOperation:
        pass
    raise ValueError(f"{name}: {str(value)[:40]!r} is no number of tokens")


def _dollars(currency: Any) -> None:
    if str(currency).casefold() != "usd":
        raise ValueError(f"the currency is {str(currency)[:20]!r}; only US dollars are compared")
