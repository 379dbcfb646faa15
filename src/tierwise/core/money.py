"""Money and tokens as whole numbers. No float ever becomes an amount of money without a stated rounding.

Amounts are nano-dollars (1 USD = 10**9), prices are nano-dollars per million tokens, and a cost is rounded up once
per attempt, so that what is charged is never below what was used and never above it by more than one nano-dollar.
"""

from __future__ import annotations

import functools
from decimal import ROUND_CEILING, Context, Decimal, InvalidOperation
from typing import Literal

import msgspec

NANO_PER_USD = 1_000_000_000
TOKENS_PER_PRICE = 1_000_000
MAX_NANO = 2**63 - 1
SECONDS_PER_DAY = 86_400
# 10,000 USD per million tokens: far above every price list, far below what would let a cost leave 63 bits. A number
# above it is a slip of the unit (dollars per token written as per million, or the reverse).
MAX_RATE_NANO = 10_000 * NANO_PER_USD
# No model today reads or writes this many tokens in one call; a provider that reports more is not believed.
MAX_TOKENS_REPORTED = 1 << 34

Service = Literal["standard", "batch", "flex", "priority"]

BUCKETS = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "input_audio_tokens",
    "output_tokens",
    "reasoning_tokens",
    "output_audio_tokens",
    "web_searches",
)


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one attempt used, in disjoint buckets: adding them up counts nothing twice.

    Token counts, but for `web_searches`, which counts calls. `estimated` says that we counted, not the provider.
    """

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    input_audio_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    output_audio_tokens: int = 0
    web_searches: int = 0
    estimated: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Every token that was read, cached or not."""
        return (
            self.input_tokens
            + self.cached_input_tokens
            + self.cache_write_5m_tokens
            + self.cache_write_1h_tokens
            + self.input_audio_tokens
        )

    @property
    def completion_tokens(self) -> int:
        """Every token that was written, reasoning included."""
        return self.output_tokens + self.reasoning_tokens + self.output_audio_tokens


class Rates(msgspec.Struct, frozen=True, omit_defaults=True, dict=True):
    """Nano-dollars per million of each bucket of `Usage` (for `web_searches`: per million calls), and per request."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    input_audio_tokens: int
    reasoning_tokens: int
    output_audio_tokens: int
    web_searches: int = 0
    request_nano: int = 0

    @functools.cached_property
    def dearest_read(self) -> int:
        """The most that a token of a prompt without sound can cost, per million."""
        return max(self.input_tokens, self.cache_write_5m_tokens, self.cache_write_1h_tokens, self.cached_input_tokens)

    @functools.cached_property
    def dearest_written(self) -> int:
        """The most that a token of a reply can cost, per million."""
        return max(self.output_tokens, self.reasoning_tokens, self.output_audio_tokens)

    @classmethod
    def of(cls, input_rate: int, output_rate: int, **others: int) -> Rates:
        """Rates with the usual kinship where a dimension has no price of its own: cached and written input cost what
        fresh input costs, reasoning what output costs. Never cheaper than what the provider could bill."""
        return cls(
            input_tokens=input_rate,
            output_tokens=output_rate,
            cached_input_tokens=others.get("cached_input_tokens", input_rate),
            cache_write_5m_tokens=others.get("cache_write_5m_tokens", input_rate),
            cache_write_1h_tokens=others.get("cache_write_1h_tokens", others.get("cache_write_5m_tokens", input_rate)),
            input_audio_tokens=others.get("input_audio_tokens", input_rate),
            reasoning_tokens=others.get("reasoning_tokens", output_rate),
            output_audio_tokens=others.get("output_audio_tokens", output_rate),
            web_searches=others.get("web_searches", 0),
            request_nano=others.get("request_nano", 0),
        )


MAX_SEARCH_NANO = NANO_PER_USD // 4  # for one web search; the dearest on the price lists of 2026 is 0.035 USD
MAX_REQUEST_NANO = 1_000 * NANO_PER_USD
_MAX_OF = {"web_searches": MAX_SEARCH_NANO * TOKENS_PER_PRICE, "request_nano": MAX_REQUEST_NANO}
_NEVER = 1 << 62


class PriceRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rates and when they hold. The last row whose conditions all hold is the price, as in genai-prices.

    `above_prompt_tokens`: the whole prompt is longer than this (the cliff that providers use: every token then costs
    this row's rate). `from_day`: days since 1970-01-01 UTC. `from_minute`..`to_minute`: minutes of the UTC day, the end
    excluded, wrapping over midnight when the end is the smaller.
    """

    rates: Rates
    service: Service = "standard"
    above_prompt_tokens: int = -1
    from_day: int | None = None
    from_minute: int | None = None
    to_minute: int | None = None

    def holds(self, at_s: int, service: Service) -> bool:
        if self.service not in ("standard", service):
            return False
        if self.from_day is not None and at_s // SECONDS_PER_DAY < self.from_day:
            return False
        if self.from_minute is None or self.to_minute is None:
            return True
        minute = at_s % SECONDS_PER_DAY // 60
        if self.to_minute < self.from_minute:
            return minute >= self.from_minute or minute < self.to_minute
        return self.from_minute <= minute < self.to_minute


class Price(msgspec.Struct, frozen=True, dict=True):
    """Every rate of a model, with its source: `genai-prices 0.2.3`, `config`, `gpu_hour`, `free`.

    Raises ValueError when the first row has a condition (then some call would have no price at all), and for a rate
    that is negative or above `MAX_RATE_NANO`.
    """

    rows: tuple[PriceRow, ...]
    source: str

    def __post_init__(self) -> None:
        if not self.rows or self.rows[0] != PriceRow(self.rows[0].rates):
            raise ValueError("the first row of a price must be plain, so that every call has a price")
        for row in self.rows:
            for name in Rates.__struct_fields__:
                if not 0 <= getattr(row.rates, name) <= _MAX_OF.get(name, MAX_RATE_NANO):
                    raise ValueError(f"{name}: {getattr(row.rates, name)} nano-dollars is no believable rate")

    @functools.cached_property
    def only(self) -> Rates | None:
        """The rates of every call, whenever and however long; None where they depend on that."""
        return self.rows[0].rates if len(self.rows) == 1 else None

    def rates(self, at_s: int, prompt_tokens: int, service: Service = "standard") -> Rates:
        """The rates of a call at this time with a prompt of this length."""
        if self.only is not None:
            return self.only
        for row in reversed(self.rows):
            if row.above_prompt_tokens < prompt_tokens and row.holds(at_s, service):
                return row.rates
        return self.rows[0].rates

    def dearest(self, at_s: int, prompt_tokens: int, service: Service = "standard") -> Rates:
        """The highest rate of each bucket that a call can be billed at, when it is sent now, with a prompt of at most
        this length, and billed within a day: at its own service or, when the provider steps it down, at the standard
        one. Prices that have ended do not count; one that begins within the day does."""
        if self.only is not None:
            return self.only
        today, horizon = at_s // SECONDS_PER_DAY, (at_s + SECONDS_PER_DAY) // SECONDS_PER_DAY
        reachable: list[Rates] = []
        # From the last row to the first: a row that holds at any time of the day, from today on, hides all rows before
        # it that ask for a longer prompt (or the same). What it cannot hide may be billed and counts.
        lasting: dict[Service, int] = {}
        for row in reversed(self.rows):
            above = row.above_prompt_tokens
            if row.service not in ("standard", service) or (row.from_day is not None and row.from_day > horizon):
                continue
            if above >= 0 and above >= prompt_tokens:
                continue
            hidden_above = min(lasting.get(row.service, _NEVER), lasting.get("standard", _NEVER))
            if hidden_above <= above:
                continue
            reachable.append(row.rates)
            if row.from_minute is None and (row.from_day is None or row.from_day <= today):
                lasting[row.service] = above
        if len(reachable) == 1:
            return reachable[0]
        names = Rates.__struct_fields__
        return Rates(**{name: max(getattr(rates, name) for rates in reachable) for name in names})


def cost_nano(usage: Usage, rates: Rates) -> int:
    """What this usage costs at these rates, rounded up once, in nano-dollars."""
    total = usage.input_tokens * rates.input_tokens + usage.output_tokens * rates.output_tokens
    # Most calls use little else.
    if usage.cached_input_tokens:
        total += usage.cached_input_tokens * rates.cached_input_tokens
    if usage.reasoning_tokens:
        total += usage.reasoning_tokens * rates.reasoning_tokens
    if usage.cache_write_5m_tokens or usage.cache_write_1h_tokens:
        total += usage.cache_write_5m_tokens * rates.cache_write_5m_tokens
        total += usage.cache_write_1h_tokens * rates.cache_write_1h_tokens
    if usage.input_audio_tokens or usage.output_audio_tokens:
        total += usage.input_audio_tokens * rates.input_audio_tokens
        total += usage.output_audio_tokens * rates.output_audio_tokens
    if usage.web_searches:
        total += usage.web_searches * rates.web_searches
    return -(-total // TOKENS_PER_PRICE) + rates.request_nano


_MAX_USD_EXPONENT = 10
_MIN_USD_EXPONENT = -12


def usd_to_nano(usd: str | int | float | Decimal, *, what: str = "amount") -> int:
    """A decimal number of dollars as nano-dollars, rounded up. Floats are read by their shortest decimal text.

    Raises ValueError, naming `what`, for anything negative, not finite or too large for 63 bits.
    """
    try:
        exact = Decimal(str(usd))
    except InvalidOperation:
        raise ValueError(f"{what}: {usd!r} is not a number of US dollars") from None
    if not exact.is_finite() or exact < 0:
        raise ValueError(f"{what}: {usd!r} must be zero or more, and finite")
    # By its magnitude first: an exponent of a million digits must neither overflow nor be written out.
    if exact and exact.adjusted() > _MAX_USD_EXPONENT:
        raise ValueError(f"{what}: {usd!r} is more than this system can count")
    if exact and exact.adjusted() < _MIN_USD_EXPONENT:
        return 1
    exactly = Context(prec=len(exact.as_tuple().digits) + 2 * _MAX_USD_EXPONENT)
    nano = int(exactly.multiply(exact, NANO_PER_USD).to_integral_value(rounding=ROUND_CEILING, context=exactly))
    if nano > MAX_NANO:
        raise ValueError(f"{what}: {usd!r} is more than this system can count")
    return nano


def cap_to_nano(usd: str | int | float | Decimal, *, what: str = "amount") -> int:
    """`usd_to_nano` of an amount that bounds spending. Raises ValueError also for one that is above zero and below the
    smallest amount: rounded up it would allow more than was said."""
    nano = usd_to_nano(usd, what=what)
    if nano == 1 and Decimal(str(usd)) < Decimal("1e-9"):
        raise ValueError(f"{what}: {usd!r} is below the smallest amount, which is {dollars(1)}")
    return nano


def usd_text(nano: int) -> str:
    """Nano-dollars as an exact decimal number of dollars, without an exponent: 1_500_000 -> '0.0015'."""
    if nano < 0:
        return f"-{usd_text(-nano)}"
    whole, rest = divmod(nano, NANO_PER_USD)
    return f"{whole}.{rest:09d}".rstrip("0") if rest else str(whole)


def dollars(nano: int) -> str:
    """An amount as every sentence for a person has it, exact: 1_500_000 -> '0.0015 USD'."""
    return f"{usd_text(nano)} USD"
