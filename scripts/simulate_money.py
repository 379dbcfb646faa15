"""A month of synthetic traffic under a budget: what the price of money is worth against a hard stop alone.

    make simulate-money            prints the tables and writes docs/price-of-money.svg

What decides and what counts is the product's own: `decide`, `Books`, the same loop of hold, denial and fallback.
What is simulated is the world: when requests come, how hard they are, how long replies are, and whether one is good.
Whether a model manages a request follows from a difficulty that the estimator never sees, along a curve that is not the
estimator's.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

from scripts.money_report import Outcome, months_text, renewed, svg
from tierwise.core.budget import Budget, Charge, Hold, Lambda
from tierwise.core.catalogue import Catalogue, Model, Provider
from tierwise.core.decide import decide
from tierwise.core.episode import Call, Denied, Episode
from tierwise.core.estimate import TASK_WEIGHTS
from tierwise.core.money import Price, PriceRow, Rates, Usage
from tierwise.core.policy import Best, Keep, Plan, Policy, Screen, Use
from tierwise.core.request import Features, Hints, Payer, Task
from tierwise.core.snapshot import Snapshot, build
from tierwise.core.weigh import charged_nano
from tierwise.stores.ledger.books import Books
from tierwise.stores.ledger.reading import money_of
from tierwise.stores.ledger.windows import DAY_S

START_S = 1_780_272_000  # 2026-06-01 00:00 UTC: a Monday, and the first day of a month of 30 days
DAYS = 30
PER_DAY = 200
PAYER = Payer(key="k", user="u", team="team", organisation="acme")
SHARES = (0.6, 0.4)  # of what routing without a budget would spend

# ------------------------------------------------------------------------------------------------ the world


def _model(id: str, tier: str, input_usd: float, output_usd: float, skill: float, tokens_per_second: float) -> Model:
    provider, _, name = id.partition("/")
    rates = Rates.of(round(input_usd * 1e9), round(output_usd * 1e9))
    return Model(
        id=id,
        provider=provider,
        name=name,
        tier=tier,
        skill=skill,
        price=Price((PriceRow(rates),), "simulated"),
        tokens_per_second=tokens_per_second,
        max_output_tokens=8_192,
    )


MODELS = (
    _model("acme/big", "frontier", 3.0, 15.0, 0.92, 60.0),
    _model("acme/mid", "fast", 0.25, 1.25, 0.66, 120.0),
    _model("home/tiny", "local", 0.02, 0.06, 0.38, 200.0),
)
# The difficulty at which a model fails every other time, and how sharply it gets there: none is the estimator's.
REALLY: dict[str, tuple[float, float]] = {"acme/big": (1.05, 5.0), "acme/mid": (0.58, 3.5), "home/tiny": (0.30, 2.2)}

# Of a working day: shares of the traffic by hour. Two humps, and a night that is nearly empty.
WORKDAY = (1, 1, 1, 1, 1, 2, 4, 10, 20, 28, 30, 27, 20, 24, 29, 28, 24, 16, 10, 7, 5, 4, 3, 2)
WEEKEND = 0.25  # of a working day
BURST = 6.0  # times the usual, on one working day
TASKS: tuple[Task, ...] = ("extraction", "classification", "summarisation", "other", "code", "reasoning")


class Asked(NamedTuple):
    """One request of the world. `difficulty` and `chance` are what no estimator sees."""

    at_s: int
    features: Features
    output_tokens: int
    difficulty: float
    chance: float  # uniform: below a model's probability, its answer is adequate


def traffic(seed: int, days: int = DAYS, per_day: float = PER_DAY) -> list[Asked]:
    """Poisson arrivals over the shape of the week, restless from hour to hour, with one day of burst."""
    dice = random.Random(seed)  # noqa: S311
    working = [day for day in range(days) if day % 7 < 5]
    burst = dice.choice(working[: max(1, len(working) * 2 // 3)])
    found = []
    for hour in range(24 * days):
        day = hour // 24
        rate = per_day * WORKDAY[hour % 24] / sum(WORKDAY) * (1.0 if day % 7 < 5 else WEEKEND)
        rate *= dice.gammavariate(4.0, 0.25) * (BURST if day == burst else 1.0)
        at = dice.expovariate(rate) if rate > 0 else 2.0
        while at < 1.0:
            found.append(_asked(dice, START_S + int(3_600 * (hour + at))))
            at += dice.expovariate(rate)
    return found


def _asked(dice: random.Random, at_s: int) -> Asked:
    """Difficulty and length have heavy tails and go together. What the estimator sees of the difficulty is the task and
    a complexity, through noise."""
    difficulty = 0.30 * math.exp(0.65 * dice.gauss(0, 1))
    kind = dice.choice(TASKS)
    row = TASK_WEIGHTS[kind]
    seen = difficulty + dice.gauss(0, 0.12)
    complexity = min(max((seen - row.floor) / row.slope, 0.0), 1.0)
    tokens = round(250 * math.exp(1.0 * dice.gauss(0, 1)))
    ceiling = 4_000
    output = min(round(180 * math.exp(0.8 * dice.gauss(0, 1) + 0.9 * difficulty)), ceiling)
    features = Features(
        input_tokens=tokens,
        input_bound_tokens=4 * tokens + 100,
        turns=1,
        languages=("en",),
        task=kind,
        complexity=round(complexity, 4),
        max_tokens=ceiling,
    )
    return Asked(at_s, features, max(1, output), difficulty, dice.random())


def manages(model: str, difficulty: float) -> float:
    """The chance that this model's answer is adequate: a Hill curve of the true difficulty."""
    half, sharpness = REALLY[model]
    return 0.98 / (1.0 + math.pow(difficulty / half, sharpness))


# ------------------------------------------------------------------------------------------------ the ways to spend


class Arm(NamedTuple):
    """A way to spend a budget. `price`: λ fixed at this; None: the books' own."""

    name: str
    plans: dict[str, Plan]
    price: float | None
    shape: bool = False  # the plan follows the traffic's learned shape, else a straight line
    falls_back: bool = True  # what cannot be paid is asked of a cheaper model, else refused


TIERS: dict[str, Plan] = {"screen": Keep(Screen(), then="choose"), "choose": Best(("frontier", "fast", "local"))}
STOP = Arm("hard stop, refusing", TIERS, 1.0, falls_back=False)
HARD = Arm("hard stop, falling back", TIERS, 1.0)
PRICED = Arm("λ, straight plan", TIERS, None)
SHAPED = Arm("λ, learned shape", TIERS, None, shape=True)
CHEAPEST = Arm("always the cheapest", {"one": Use(("local",))}, 1.0)
BEST = Arm("always the best", {"one": Use(("frontier",))}, 1.0)
FREE = Arm("routing", TIERS, 1.0)
ARMS = (STOP, HARD, PRICED, SHAPED, CHEAPEST, BEST)
HINDSIGHT = "constant λ, known beforehand"


def world(arm: Arm) -> Snapshot:
    rows = {name: Provider(name=name, wire="openai", base_url="http://127.0.0.1:9/v1") for name in ("acme", "home")}
    catalogue = Catalogue(
        providers=rows,
        models={model.id: model for model in MODELS},
        tiers=("frontier", "fast", "local"),
        baseline="acme/big",
        reliable="acme/big",
    )
    return build(catalogue, {"default": Policy(name="default", start=next(iter(arm.plans)), plans=arm.plans)})


def run(
    asked: list[Asked], arm: Arm, limit_nano: int | None, window: Literal["day", "month"] = "month", days: int = DAYS
) -> Outcome:
    """One month of this traffic under one budget of a team; None: no budget."""
    snapshot = world(arm)
    budget = Budget(scope="team", limit_nano=limit_nano, window=window)
    books = Books((budget,) if limit_nano is not None else ())
    if not arm.shape:
        for line in books._lines:
            line.traffic = None
    windows = days if window == "day" else 1
    out = Outcome(
        arm.name,
        limit_nano * windows if limit_nano is not None else None,
        spent=[0] * days,
        came=[0] * days,
        served=[0] * days,
    )
    ending: list[tuple[int, str, Charge]] = []
    for i, each in enumerate(asked):
        while ending and ending[0][0] <= each.at_s:
            at_s, hold_id, charge = heapq.heappop(ending)
            books.settle(hold_id, charge, at_s)
        money = money_of(books.passes(PAYER, Hints()), each.at_s)
        if arm.price is not None:
            money = Lambda(arm.price, left_nano=money.left_nano, scope=money.scope)
        day = (each.at_s - START_S) // DAY_S
        out.requests += 1
        out.came[day] += 1
        out.prices += money.value
        answer = _served(snapshot, books, each, f"r{i}", money, arm.falls_back)
        books.take()
        if answer is not None:
            model, hold_id, charge, took_ms = answer
            heapq.heappush(ending, (each.at_s + 1 + took_ms // 1_000, hold_id, charge))
            out.answered += 1
            out.served[day] += 1
            out.adequate += each.chance < manages(model, each.difficulty)
            out.spent_nano += charge.cost_nano
            out.spent[day] += charge.cost_nano
            if limit_nano is not None and out.gone_on is None and out.spent_nano >= 0.98 * limit_nano * windows:
                out.gone_on = (each.at_s - START_S) / DAY_S
    wrong = books.audit()
    if wrong or (limit_nano is not None and out.spent_nano > limit_nano * windows):
        raise AssertionError(f"{arm.name}: {wrong or 'more than the limit was spent'}")
    return out


def _served(
    snapshot: Snapshot, books: Books, each: Asked, name: str, money: Lambda, falls_back: bool
) -> tuple[str, str, Charge, int] | None:
    """The router's loop: decide, hold, and decide again after a denial. None: refused."""
    episode = Episode(
        id=name,
        snapshot=snapshot.hash,
        at_s=each.at_s,
        draw=0.5,
        requested="auto",
        policy="default",
        features=each.features,
        payer=PAYER,
        money=money,
    )
    attempt = 0
    while True:
        step = decide(snapshot, episode).step
        if not isinstance(step, Call):
            return None
        attempt += 1
        hold = Hold(
            id=f"{name}.{attempt}",
            payer=PAYER,
            session="",
            workflow="",
            model=step.model,
            amount_nano=step.worst_case_nano,
            at_s=each.at_s,
            request=name,
        )
        denial = books.hold(hold)
        if denial is not None:
            if not falls_back:
                return None
            episode = episode.then(Denied(at=step.at, model=step.model, after_ms=attempt, denial=denial))
            continue
        model = snapshot.catalogue.models[step.model]
        usage = Usage(input_tokens=each.features.input_tokens, output_tokens=each.output_tokens)
        cost = charged_nano(model, episode, usage) or 0
        took_ms = round(model.first_token_ms + 1_000 * each.output_tokens / model.tokens_per_second)
        return step.model, hold.id, Charge(cost_nano=cost, usage=usage, billed=model.id), took_ms


# ------------------------------------------------------------------------------------------------ the comparison


def constant(asked: list[Asked], limit_nano: int, days: int = DAYS) -> Outcome:
    """The least constant λ whose spending is within the limit. Nobody can know it beforehand; nearly nothing is better,
    so it says how much of what is possible was reached."""
    low, high = 1.0, 100.0
    for _ in range(9):
        middle = math.sqrt(low * high)
        if run(asked, Arm("", TIERS, middle), None, days=days).spent_nano > limit_nano:
            low = middle
        else:
            high = middle
    return run(asked, Arm(HINDSIGHT, TIERS, high), limit_nano, days=days)


def compared(seed: int) -> dict[tuple[str, float], list[Outcome]]:
    """Every way of one seed's month, by (window, share of what spending freely costs)."""
    asked = traffic(seed)
    free_nano = run(asked, FREE, None).spent_nano
    found = {("none", 1.0): [run(asked, arm, None) for arm in (FREE, CHEAPEST, BEST)]}
    for share in SHARES:
        limit = round(free_nano * share)
        found["month", share] = [*(run(asked, arm, limit) for arm in ARMS), constant(asked, limit)]
        found["day", share] = [run(asked, arm, limit // DAYS, "day") for arm in ARMS]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=12, help="months of traffic (12)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="renew docs/price-of-money.md and .svg")
    options = parser.parse_args()
    began = time.monotonic()
    with ProcessPoolExecutor(options.processes) as pool:
        months = list(pool.map(compared, range(1, options.seeds + 1)))
    text = months_text(months)
    print(text)
    if options.write:
        docs = Path(__file__).resolve().parent.parent / "docs"
        page = docs / "price-of-money.md"
        page.write_text(renewed(page.read_text(), text))
        shown = {each.arm: each for each in months[0]["month", SHARES[-1]]}
        (docs / "price-of-money.svg").write_text(svg([shown[arm.name] for arm in (BEST, HARD, SHAPED)]))
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
