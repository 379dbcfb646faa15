"""What models cost, from three sources: the shipped price list (genai-prices), the owner's numbers, a GPU's rent.

Everything ends as integer nano-dollars (`core.money.Price`). The price list is the one inside the installed package:
it is never updated over the network. A model that is not in it, or is priced in something that our buckets do not
count (seconds, pages, pixels), has no price: unpriced is a state, not zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import msgspec

from tierwise.core.money import (
    MAX_RATE_NANO,
    MAX_REQUEST_NANO,
    MAX_SEARCH_NANO,
    NANO_PER_USD,
    TOKENS_PER_PRICE,
    Price,
    PriceRow,
    Rates,
    Service,
    dollars,
    usd_text,
    usd_to_nano,
)
from tierwise.providers.known import is_embedding
from tierwise.providers.table import PRICE_IDS

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

Number = str | int | float

# What the request says when it asks for a service: OpenAI's and Google's `service_tier`, Anthropic's `speed`. Prices
# for "fast" and "priority" are the same thing under two names wherever genai-prices has both.
CONTEXTS: dict[Service, dict[str, str]] = {
    "standard": {},
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority", "speed": "fast"},
}

# Price keys and the buckets they price, from the general to the special: a later one overrides an earlier one.
_BUCKETS_OF: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "input_mtok",
        (
            "input_tokens",
            "cached_input_tokens",
            "cache_write_5m_tokens",
            "cache_write_1h_tokens",
            "input_audio_tokens",
        ),
    ),
    ("cache_read_mtok", ("cached_input_tokens",)),
    ("cache_write_mtok", ("cache_write_5m_tokens", "cache_write_1h_tokens")),
    ("cache_write_5m_mtok", ("cache_write_5m_tokens",)),
    ("cache_write_1h_mtok", ("cache_write_1h_tokens",)),
    ("input_audio_mtok", ("input_audio_tokens",)),
    ("output_mtok", ("output_tokens", "reasoning_tokens", "output_audio_tokens")),
    ("output_reasoning_mtok", ("reasoning_tokens",)),
    ("output_audio_mtok", ("output_audio_tokens",)),
)
# Special tokens that have no bucket of their own and are counted in a wider one. Charging that one's rate is an upper
# bound when it is the dearer of the two; else the model cannot be priced here.
_COUNTED_AS = {
    "cache_audio_read_mtok": "input_audio_mtok",
    "cache_image_read_mtok": "input_mtok",
    "input_image_mtok": "input_mtok",
    "input_video_mtok": "input_mtok",
    "output_image_mtok": "output_mtok",
    "output_video_mtok": "output_mtok",
    "output_citation_mtok": "output_mtok",
}
# Fees for what a provider's own tools do on its side. No reply that we read counts them: listed by `gaps`, not billed.
_UNSEEN_FEES = frozenset({"storage_searches_kcount", "social_searches_kcount", "code_executions_kcount"})
_EPOCH = date(1970, 1, 1)
_PRICED = frozenset({key for key, _ in _BUCKETS_OF} | {"web_searches_kcount", "requests_kcount"})


class Listed(msgspec.Struct, frozen=True):
    """A model of the price list: every exact name it answers to, the most usual first."""

    names: tuple[str, ...]
    deprecated: bool
    context_tokens: int | None


def price_of(provider: str, model: str) -> Price | None:
    """The list price of this provider's model, or None when there is none that we can charge exactly or above."""
    found = _find(provider, model)
    return _compiled(provider, model) if found is not None else None


def context_of(provider: str, model: str) -> int | None:
    """The context window in tokens, where the price list knows it."""
    found = _find(provider, model)
    return found.context_window if found is not None else None


def gaps(provider: str, model: str) -> tuple[str, ...]:
    """What of this model's price our buckets cannot tell apart, as genai-prices' price keys. Empty when nothing."""
    info = _find(provider, model)
    if info is None:
        return ()
    return tuple(sorted({key for prices in _every_price(info) for key in _set_keys(prices) if key not in _PRICED}))


def listed(provider: str) -> tuple[Listed, ...]:
    """Every model of this provider in the price list, with the names that its API takes."""
    rows = []
    for info in _models_of(provider):
        names = tuple(dict.fromkeys(name for name in (info.id, *_equals(info.match)) if info.is_match(name)))
        if names:
            rows.append(Listed(names, bool(info.deprecated), info.context_window))
    return tuple(rows)


def others(provider: str, model: str) -> tuple[str, ...]:
    """The names in the price list of this provider's models when it does not know this one; else ()."""
    if _find(provider, model) is not None:
        return ()
    return tuple(name for row in listed(provider) for name in row.names)


# ------------------------------------------------------------------------------------------- the price list


def _models_of(provider: str) -> Sequence[ModelInfo]:
    from genai_prices.data import providers

    wanted = PRICE_IDS.get(provider)
    return next((row.models for row in providers if row.id == wanted), ())


@cache
def _find(provider: str, model: str) -> ModelInfo | None:
    from genai_prices.data import providers

    wanted = PRICE_IDS.get(provider)
    row = next((row for row in providers if row.id == wanted), None)
    return row.find_model(model, all_providers=providers) if row is not None else None


def _equals(clause: Any) -> Iterator[str]:
    if hasattr(clause, "equals"):
        yield clause.equals
    for inner in getattr(clause, "or_", ()):
        yield from _equals(inner)


@cache
def _source() -> str:
    from importlib.metadata import version

    return f"genai-prices {version('genai-prices')}"


def _every_price(info: ModelInfo) -> list[ModelPrice]:
    usual = [info.prices] if not isinstance(info.prices, list) else [one.prices for one in info.prices]
    return usual + [variant.prices for variant in info.price_variants or ()]


def _set_keys(prices: ModelPrice) -> list[str]:
    # A price keeps its numbers in its instance dictionary: the class answers None for every key it knows.
    return [key for key, value in vars(prices).items() if value is not None]


@cache
def _compiled(provider: str, model: str) -> Price | None:
    """Every combination of service, date, time of day and prompt length that can change the price, each asked of
    genai-prices itself and written down as a row where the rows so far would say something else.

    The order makes "the last row that holds wins" true: services after the standard one, then dates ascending, then
    the plain row of a date before the hours of its day, then prompt lengths ascending. No row can then override a
    combination that was looked at before it.
    """
    info = _find(provider, model)
    if info is None:
        return None
    moments = _moments(info)
    if moments is None:
        return None
    # As in genai-prices: the variants of a model that another provider lent hold at that provider only.
    own = any(info is one for one in _models_of(provider))
    services: tuple[Service, ...] = tuple(CONTEXTS) if own else ("standard",)
    lengths = [-1, *sorted({tier.start for p in _every_price(info) for v in vars(p).values() for tier in _tiers(v)})]
    rows: list[PriceRow] = []
    for service, moment, above in product(services, moments, lengths):
        rates = _rates(model, info.get_prices(moment.when, CONTEXTS[service] or None), above + 1)
        if rates is None:
            return None
        if not rows or _rates_so_far(rows, int(moment.when.timestamp()), above + 1, service) != rates:
            rows.append(
                PriceRow(
                    rates,
                    service=service,
                    above_prompt_tokens=above,
                    from_day=moment.from_day,
                    from_minute=moment.from_minute,
                    to_minute=moment.to_minute,
                )
            )
    return Price(tuple(rows), _source())


def _rates_so_far(rows: list[PriceRow], at_s: int, prompt_tokens: int, service: Service) -> Rates:
    return Price(tuple(rows), "").rates(at_s, prompt_tokens, service)


def _constraints(info: ModelInfo) -> list[Any]:
    usual = [one.constraint for one in info.prices] if isinstance(info.prices, list) else []
    return [one for one in usual + [variant.constraint for variant in info.price_variants or ()] if one is not None]


class _Moment(msgspec.Struct, frozen=True):
    """A stretch of time in which no price of a model changes, and an instant inside it."""

    from_day: int | None
    from_minute: int | None
    to_minute: int | None
    when: datetime


def _moments(info: ModelInfo) -> list[_Moment] | None:
    """Every stretch, in the order of `_compiled`; None when an hour of the day is not told in whole minutes."""
    dates: set[date] = set()
    minutes: set[int] = set()
    for constraint in _constraints(info):
        if hasattr(constraint, "start_date"):
            dates.add(constraint.start_date)
            continue
        for edge in (constraint.start_time, constraint.end_time):
            utc = datetime.combine(_EPOCH, edge, edge.tzinfo or UTC).astimezone(UTC)
            if utc.second or utc.microsecond:
                return None
            minutes.add(utc.hour * 60 + utc.minute)
    edges = sorted(minutes)
    parts: list[tuple[int | None, int | None]] = [(None, None)]
    parts += [(start, edges[(n + 1) % len(edges)]) for n, start in enumerate(edges)]
    eras: list[tuple[int | None, date]] = [(None, min(dates, default=date(2020, 1, 1)) - timedelta(days=1))]
    eras += [((day - _EPOCH).days, day) for day in sorted(dates)]
    return [
        _Moment(from_day, start, end, datetime.combine(day, time(), UTC) + timedelta(minutes=start or 0))
        for from_day, day in eras
        for start, end in parts
    ]


def _tiers(value: object) -> Sequence[Any]:
    return getattr(value, "tiers", ())


def _at_length(value: Any, prompt_tokens: int) -> Decimal:
    if not hasattr(value, "tiers"):
        return Decimal(value)
    found = value.base
    for tier in value.tiers:  # ascending
        if prompt_tokens > tier.start:
            found = tier.price
    return Decimal(found)


def _rates(model: str, prices: ModelPrice, prompt_tokens: int) -> Rates | None:
    """These prices as whole nano-dollars, each rounded up where it has more than nine decimals per million tokens."""
    usd = {key: _at_length(getattr(prices, key), prompt_tokens) for key in _set_keys(prices)}
    if not usd and model.endswith(":free"):
        return Rates.of(0, 0)
    for key, wider in _COUNTED_AS.items():
        if key in usd and usd[key] > usd.get(wider, usd.get("input_mtok", Decimal(0))):
            return None
    if set(usd) - _PRICED - set(_COUNTED_AS) - _UNSEEN_FEES or not usd.get("input_mtok"):
        return None
    if "output_mtok" not in usd and not is_embedding(model):
        return None
    nano = dict.fromkeys(Rates.__struct_fields__, 0)
    for key, buckets in _BUCKETS_OF:
        for bucket in buckets if key in usd else ():
            nano[bucket] = usd_to_nano(usd[key])
    nano["web_searches"] = usd_to_nano(usd.get("web_searches_kcount", Decimal(0)) * (TOKENS_PER_PRICE // 1_000))
    nano["request_nano"] = usd_to_nano(usd.get("requests_kcount", Decimal(0)) / 1_000)
    return Rates(**nano)


# ------------------------------------------------------------------------------------------- the owner's own

# Below this a number is more likely dollars per token in a field that wants dollars per million of them.
_LEAST_USD_PER_MTOK = Decimal("0.0005")


def owner_price(
    *,
    input_usd_per_mtok: Number | None = None,
    output_usd_per_mtok: Number | None = None,
    cached_input_usd_per_mtok: Number | None = None,
    cache_write_usd_per_mtok: Number | None = None,
    cache_write_1h_usd_per_mtok: Number | None = None,
    reasoning_usd_per_mtok: Number | None = None,
    input_audio_usd_per_mtok: Number | None = None,
    output_audio_usd_per_mtok: Number | None = None,
    web_search_usd: Number | None = None,
    request_usd: Number | None = None,
    free: bool = False,
    embedding: bool = False,
) -> Price:
    """The owner's price: US dollars per million tokens, per web search, per request; zero only with `free`.

    What is not given costs what its wider kind costs: cached and written input like input, reasoning like output.
    Raises ValueError, in a sentence, for a missing, negative or unbelievable number.
    """
    given = {name: value for name, value in locals().items() if name not in ("free", "embedding") and value is not None}
    if free:
        if any(usd_to_nano(value, what=name) for name, value in given.items()):
            raise ValueError("free: true contradicts the other prices; leave one of them out")
        return free_price("free")
    nano = {name: _believable(name, value) for name, value in given.items()}
    wanted = ("input_usd_per_mtok",) if embedding else ("input_usd_per_mtok", "output_usd_per_mtok")
    for name in wanted:
        if name not in nano:
            raise ValueError(f"{name} is missing: a price names it, or says free: true")
    others = {bucket: nano[name] for bucket, name in _OWNER_NAMES.items() if name in nano}
    rates = Rates.of(nano["input_usd_per_mtok"], nano.get("output_usd_per_mtok", 0), **others)
    return Price((PriceRow(rates),), "config")


_OWNER_NAMES = {
    "cached_input_tokens": "cached_input_usd_per_mtok",
    "cache_write_5m_tokens": "cache_write_usd_per_mtok",
    "cache_write_1h_tokens": "cache_write_1h_usd_per_mtok",
    "reasoning_tokens": "reasoning_usd_per_mtok",
    "input_audio_tokens": "input_audio_usd_per_mtok",
    "output_audio_tokens": "output_audio_usd_per_mtok",
    "web_searches": "web_search_usd",
    "request_nano": "request_usd",
}
# Some providers do give these away, while fresh input and output never cost nothing.
_MAY_BE_ZERO = frozenset(_OWNER_NAMES.values())


def _believable(name: str, value: Number) -> int:
    nano = usd_to_nano(value, what=name)
    most = {"web_search_usd": MAX_SEARCH_NANO, "request_usd": MAX_REQUEST_NANO}.get(name)
    if most is not None:
        if nano > most:
            raise ValueError(f"{name}: {usd_text(nano)} is more than {dollars(most)} for a single one")
        return nano * TOKENS_PER_PRICE if name == "web_search_usd" else nano
    if nano == 0:
        if name in _MAY_BE_ZERO:
            return 0
        raise ValueError(f"{name}: a price of zero must be said with free: true")
    if nano > MAX_RATE_NANO:
        raise ValueError(
            f"{name}: {usd_text(nano)} is more than {dollars(MAX_RATE_NANO)} per million tokens; "
            "the number wanted is the price of a million tokens, not of more"
        )
    if nano < _LEAST_USD_PER_MTOK * NANO_PER_USD:
        raise ValueError(
            f"{name}: {usd_text(nano)} is less than {_LEAST_USD_PER_MTOK} USD per million tokens; if it is the price "
            f"of one token, write {usd_text(nano * TOKENS_PER_PRICE)}, and if nothing is paid, write free: true"
        )
    return nano


def gpu_hour_price(usd_per_hour: Number, tokens_per_second: float, load: float, *, input_weight: float = 0.1) -> Price:
    """The price per token of a model on a rented or owned GPU.

    `tokens_per_second` is what the whole machine writes when it is full (all its streams together), `load` (0..1] the
    share of the hour in which it is. An output token then costs

        usd_per_hour / (3600 x tokens_per_second x load)

    and an input token `input_weight` of that: reading a prompt keeps the machine busy too, but it is done in parallel,
    and on common servers a token is read in about a tenth of the time in which one is written. That tenth is an
    assumption; measure yours. Cached input is charged like fresh input. Raises ValueError in a sentence.
    """
    for name, number, most in (
        ("tokens_per_second", tokens_per_second, 1e9),
        ("load", load, 1.0),
        ("input_weight", input_weight, 1.0),
    ):
        if not math.isfinite(number) or not 0 < number <= most:
            raise ValueError(f"{name}: {number} must be above zero and at most {most:.0f}")
    hour_nano = usd_to_nano(usd_per_hour, what="gpu_hour_usd")
    if hour_nano == 0:
        raise ValueError("gpu_hour_usd: a machine that costs nothing is said with free: true")
    # As fractions, so that the only rounding is the last one, upward.
    output_rate = Fraction(hour_nano * TOKENS_PER_PRICE) / (3_600 * Fraction(tokens_per_second) * Fraction(load))
    input_rate = output_rate * Fraction(input_weight)
    if output_rate > MAX_RATE_NANO:
        raise ValueError(
            f"gpu_hour_usd: {usd_per_hour} at {tokens_per_second:g} tokens per second and load {load:g} is more than "
            f"{dollars(MAX_RATE_NANO)} per million tokens; one of the three is off"
        )
    return Price((PriceRow(Rates.of(math.ceil(input_rate), math.ceil(output_rate))),), "gpu_hour")


def free_price(source: str) -> Price:
    """Nothing per token, because the owner says so. `source` says in which words."""
    return Price((PriceRow(Rates.of(0, 0)),), source)
