"""Runs over the arithmetic of prices: every cost against exact fractions, every tier against the hold before it."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from scripts.reliability.bars import Check, Found, Run, Scale, count
from tierwise.core.money import BUCKETS, TOKENS_PER_PRICE, Price, PriceRow, Rates, Service, Usage, cost_nano

Cost = Callable[[Usage, Rates], int]
SERVICES: tuple[Service, ...] = ("standard", "batch", "flex", "priority")


def exact(usage: Usage, rates: Rates) -> Fraction:
    total = sum(
        (Fraction(getattr(usage, name) * getattr(rates, name), TOKENS_PER_PRICE) for name in BUCKETS), Fraction()
    )
    return total + rates.request_nano


def rounding(scale: Scale) -> Found:
    tries = scale.of(1_000_000, 3_000)
    under, over, most = _errors(cost_nano, tries, scale.seed)
    caught, _, _ = _errors(_nearest, min(tries, 3_000), scale.seed)
    return Found(
        n=f"{count(tries)} random usages and prices",
        figure=f"{under} under, {over} by 1 n$ or more over; largest error {float(most):.6f} n$",
        checks=(
            Check("under", under, "=", 0),
            Check("over by 1 n$ or more", over, "=", 0),
            Check("n$ of the largest error", float(most), "<", 1),
        ),
        mutant=f"rounded to the nearest: {count(caught)} of {count(min(tries, 3_000))} under",
        caught=caught > 0,
    )


def _nearest(usage: Usage, rates: Rates) -> int:
    total: int = sum(getattr(usage, name) * getattr(rates, name) for name in BUCKETS)
    return (total + TOKENS_PER_PRICE // 2) // TOKENS_PER_PRICE + rates.request_nano


def _errors(cost: Cost, tries: int, seed: int) -> tuple[int, int, Fraction]:
    rng = random.Random(seed)
    under = over = 0
    most = Fraction(0)
    for _ in range(tries):
        usage, rates = _usage(rng), _rates(rng)
        error = cost(usage, rates) - exact(usage, rates)
        under += error < 0
        over += error >= 1
        most = max(most, error)
    return under, over, most


def _usage(rng: random.Random) -> Usage:
    chosen: dict[str, Any] = {name: rng.randrange(10 ** rng.randrange(1, 8)) for name in BUCKETS if rng.random() < 0.5}
    return Usage(**chosen)


def _rates(rng: random.Random) -> Rates:
    """From a thousandth of a cent to a hundred dollars a million, with the odd digits that no price list has."""
    names = [name for name in Rates.__struct_fields__ if name not in ("request_nano", "web_searches")]
    given = {name: rng.randrange(10 ** rng.randrange(4, 12)) for name in names}
    return Rates(**given, web_searches=rng.randrange(10**13), request_nano=rng.choice((0, rng.randrange(10**7))))


def tiers(scale: Scale) -> Found:
    """K3: whatever row of a tiered price a call is billed at within a day, its hold was no cheaper."""
    tries = scale.of(100_000, 2_000)
    wrong = _undercut(tries, scale.seed, dearest=True)
    caught = _undercut(min(tries, 2_000), scale.seed, dearest=False)
    return Found(
        n=f"{count(tries)} calls at prices with up to 5 rows (service, long prompt, day, time of day)",
        figure=f"{wrong} billed above their hold",
        checks=(Check("billed above their hold", wrong, "=", 0),),
        mutant=f"held at the row of the moment: {count(caught)} billed above",
        caught=caught > 0,
    )


def _undercut(tries: int, seed: int, *, dearest: bool) -> int:
    rng, wrong = random.Random(seed), 0
    for _ in range(tries):
        price, at_s = _price(rng), rng.randrange(400) * 86_400 + rng.randrange(86_400)
        bound = rng.randrange(400_000)
        service = rng.choice(SERVICES)
        held = price.dearest(at_s, bound, service) if dearest else price.rates(at_s, bound, service)
        read, written = rng.randint(0, bound), rng.randrange(5_000)
        usage = Usage(input_tokens=read, output_tokens=written)
        billed = price.rates(at_s + rng.randrange(86_400), read, rng.choice((service, SERVICES[0])))
        most = Usage(input_tokens=bound, output_tokens=written)
        wrong += cost_nano(usage, billed) > cost_nano(most, held)
    return wrong


def _price(rng: random.Random) -> Price:
    rows = [PriceRow(Rates.of(rng.randrange(10**10), rng.randrange(10**11)))]
    for _ in range(rng.randrange(5)):
        minutes = (rng.randrange(1_440), rng.randrange(1_440)) if rng.random() < 0.3 else (None, None)
        rows.append(
            PriceRow(
                Rates.of(rng.randrange(10**10), rng.randrange(10**11)),
                service=rng.choice(SERVICES),
                above_prompt_tokens=rng.choice((-1, 128_000, 200_000)),
                from_day=rng.choice((None, rng.randrange(400))),
                from_minute=minutes[0],
                to_minute=minutes[1],
            )
        )
    return Price(tuple(rows), "made up")


RUNS = (
    Run("bar10", "10, B9", "costs against exact fractions", "0 under, < 1 n$ over", rounding),
    Run("k3", "K3", "tiered prices: what is billed within a day against what was held", "0 above", tiers),
)
