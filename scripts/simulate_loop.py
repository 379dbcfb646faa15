"""A router that is fitted again and again on its own logged decisions: what becomes of it, with and without exploration.

    make simulate-loop        prints the table and renews docs/exploring.md and docs/exploring.svg

What decides, what explores and what fits is the product's own: `decide`, its odds and shadows, `study/fit`. What is
simulated is the world: which kinds of request come, and how often each model manages each kind, which is known. A label
exists for what was asked, and for nothing else. Each round the estimator is fitted on the last WINDOW rounds alone, as
anybody does whose traffic and models change. Then models do change, each on the side that the router does not look at:

- at CHANGE the cheap model's provider releases a better version: it now manages `lookup`, which the router has learned to
  send to the dear one;
- and the dear one's too: it now does clearly better at `writing`, which the router has learned to send to the cheap one.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scripts.loop_report import renewed, svg
from tierwise.core.catalogue import Catalogue, Model, Provider
from tierwise.core.decide import decide
from tierwise.core.episode import Call, Episode, Replied
from tierwise.core.estimate import Estimator
from tierwise.core.features import extract
from tierwise.core.money import Price, PriceRow, Rates, Usage
from tierwise.core.policy import Amounts, Best, Exploration, Explore, Plan, Policy
from tierwise.core.request import Features, Prompt, Turn
from tierwise.core.snapshot import Snapshot, build
from tierwise.core.weigh import charged_nano
from tierwise.study.fit import FitError, fit
from tierwise.study.settings import USUAL
from tierwise.study.table import Table, inputs_of

CHEAP, DEAR = "acme/cheap", "acme/dear"
ROUNDS, PER_ROUND, WINDOW, CHANGE, SEEDS = 14, 400, 5, 5, 8
RATE = 0.05
MOST_WEIGHT = 20.0  # of one request under its odds; what is rarer is taken for this rare
OUTPUT_TOKENS = 300
AT_S = 1_780_272_000


def _model(name: str, tier: str, input_usd: float, output_usd: float) -> Model:
    rates = Rates.of(round(input_usd * 1e9), round(output_usd * 1e9))
    price = Price((PriceRow(rates),), "simulated")
    return Model(id=f"acme/{name}", provider="acme", name=name, tier=tier, skill=0.5, price=price)


MODELS = (_model("dear", "frontier", 5.0, 25.0), _model("cheap", "fast", 0.2, 1.0))
MISS_NANO = 50_000_000
AMOUNTS = Amounts(
    miss_user_nano=MISS_NANO,
    miss_internal_nano=MISS_NANO,
    second_interactive_nano=0,
    second_background_nano=0,
    second_batch_nano=0,
    caution=0.0,
)
# Of each kind of request: its words, and the chance that (cheap, dear) manages it, before and after CHANGE.
KINDS: dict[str, tuple[str, tuple[float, float], tuple[float, float]]] = {
    "greeting": ("hello thanks morning welcome goodbye friend weather evening", (0.95, 0.97), (0.95, 0.97)),
    "lookup": ("capital river border population treaty dynasty island empire", (0.50, 0.92), (0.90, 0.92)),
    "writing": ("poem stanza metaphor narrator scene dialogue chapter verse", (0.68, 0.80), (0.68, 0.97)),
    "proof": ("lemma theorem induction integral converge matrix kernel prime", (0.35, 0.85), (0.35, 0.85)),
}
FILLER = "please the of about with for some more short and then how what which would".split()


class Arm(NamedTuple):
    name: str
    shadow: bool | None  # None: nothing is left to chance
    odds: bool = False  # whether the fit weighs rows by their odds


ARMS = (
    Arm("no exploration", None),
    Arm("explore", False),
    Arm("explore, odds used", False, odds=True),
    Arm("shadow", True),
)


class Row(NamedTuple):
    """One labelled reply."""

    features: Features
    prompt: int
    model: str
    good: float
    weight: float


class Round(NamedTuple):
    """Means of one round, by the truth and not by the dice. `regret_usd`: what the decisions cost a thousand requests,
    misses and exploration included, above the best that could be decided."""

    quality: float
    regret_usd: float
    spent_usd: float  # a thousand requests
    dear: float  # share that the dear model answered


def truth(kind: str, at: int) -> tuple[float, float]:
    _, before, after = KINDS[kind]
    return before if at < CHANGE else after


def snapshot_of(estimator: Estimator | None, arm: Arm) -> Snapshot:
    """In the first round nothing is known, and each model answers half of the requests: the pilot that anybody makes."""
    providers = {"acme": Provider(name="acme", wire="openai", base_url="http://127.0.0.1:9/v1")}
    catalogue = Catalogue(
        providers=providers,
        models={model.id: model for model in MODELS},
        tiers=("frontier", "fast"),
        baseline=DEAR,
        reliable=DEAR,
    )
    usual = Best((CHEAP, DEAR))
    plans: dict[str, Plan] = {"usual": usual}
    if estimator is None:
        plans = {"start": Explore(Exploration(rate=1.0, among=(CHEAP, DEAR)), then="usual"), **plans}
    elif arm.shadow is not None:
        exploration = Exploration(rate=RATE, among=(CHEAP, DEAR), shadow=arm.shadow)
        plans = {"start": Explore(exploration, then="usual"), **plans}
    policy = Policy(name="default", start=next(iter(plans)), plans=plans, amounts=AMOUNTS)
    policies = {"default": policy}
    return build(catalogue, policies, grams=True) if estimator is None else build(catalogue, policies, estimator)


def prompt_of(kind: str, dice: random.Random) -> Features:
    words = dice.choices(KINDS[kind][0].split(), k=5) + dice.choices(FILLER, k=7)
    dice.shuffle(words)
    text = " ".join(words)
    return extract(Prompt(turns=(Turn("user", text),), size_bytes=len(text)), with_grams=True)


def one_round(snapshot: Snapshot, at: int, per_round: int, arm: Arm, dice: random.Random) -> tuple[Round, list[Row]]:
    """Serve a round of requests and label what was asked."""
    rows: list[Row] = []
    quality = regret = spent = dear = 0.0
    for i in range(per_round):
        kind = dice.choice(tuple(KINDS))
        features = prompt_of(kind, dice)
        good = dict(zip((CHEAP, DEAR), truth(kind, at), strict=True))
        outcome = {model: float(dice.random() < chance) for model, chance in good.items()}  # whoever is asked
        episode = Episode(
            id=f"{at}-{i}",
            snapshot=snapshot.hash,
            at_s=AT_S,
            draw=dice.random(),
            requested="auto",
            policy="default",
            features=features,
        )
        cost = {model: _cost_nano(model, episode) for model in good}
        price = {model: cost[model] + (1 - good[model]) * MISS_NANO for model in good}
        decision = decide(snapshot, episode)
        call = decision.step
        assert isinstance(call, Call)
        odds = dict(decision.odds).get(call.model, 1.0)
        served = Replied(at=call.at, model=call.model, after_ms=1, usage=Usage(), cost_nano=cost[call.model])
        beside = decide(snapshot, episode.then(served)).shadow
        prompt = at * per_round + i
        weight = min(1 / odds, MOST_WEIGHT) if arm.odds else 1.0
        rows.append(Row(features, prompt, call.model, outcome[call.model], weight))
        paid = cost[call.model]
        if beside is not None:
            rows.append(Row(features, prompt, beside.model, outcome[beside.model], 1.0))
            paid += cost[beside.model]
        quality += good[call.model]
        spent += paid
        regret += paid + (1 - good[call.model]) * MISS_NANO - min(price.values())
        dear += call.model == DEAR
    thousand = 1_000 / per_round / 1e9
    return Round(quality / per_round, regret * thousand, spent * thousand, dear / per_round), rows


def _cost_nano(model: str, episode: Episode) -> int:
    found = next(each for each in MODELS if each.id == model)
    usage = Usage(input_tokens=episode.features.input_tokens, output_tokens=OUTPUT_TOKENS)
    return charged_nano(found, episode, usage) or 0


def table_of(rows: Sequence[Row]) -> Table:
    """Rows of one prompt become one row of the table."""
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    place = {prompt: i for i, prompt in enumerate(prompts)}
    features: dict[int, Features] = {row.prompt: row.features for row in rows}
    cells = {name: np.full((len(prompts), 2), math.nan) for name in ("quality", "output_tokens")}
    weight = np.ones((len(prompts), 2))
    for row in rows:
        at = place[row.prompt], (CHEAP, DEAR).index(row.model)
        cells["quality"][at], weight[at], cells["output_tokens"][at] = row.good, row.weight, OUTPUT_TOKENS
    empty = np.full((len(prompts), 2), math.nan)
    return Table(
        ids=tuple(map(str, prompts)),
        models=(CHEAP, DEAR),
        workloads=("",) * len(prompts),
        inputs=inputs_of([features[prompt] for prompt in prompts]),
        groups=np.arange(len(prompts), dtype=np.int64),
        weight=weight,
        cost_usd=empty,
        latency_ms=empty,
        answers=np.full((len(prompts), 2), -1, dtype=np.int64),
        odds=empty,
        at_s=np.zeros(len(prompts), dtype=np.int64),
        texts=(None,) * len(prompts),
        hash="simulated",
        **cells,
    )


def run(arm: Arm, seed: int, rounds: int = ROUNDS, per_round: int = PER_ROUND) -> list[Round]:
    """The rounds of one arm. The same seed has the same requests and dice in every arm, as far as decisions agree."""
    logged: list[list[Row]] = []
    found: list[Round] = []
    estimator: Estimator | None = None
    for at in range(rounds):
        dice = random.Random(seed * 1_000 + at)  # noqa: S311  # a simulation
        told, rows = one_round(snapshot_of(estimator, arm), at, per_round, arm, dice)
        found.append(told)
        logged.append(rows)
        window = [row for each in logged[-WINDOW:] for row in each]
        try:
            estimator = fit(table_of(window), reference=DEAR, seed=seed, settings=USUAL).trained
        except FitError:
            pass  # one of the models has hardly been asked: the last estimator stays
    return found


class Figures(NamedTuple):
    """Of one arm, means over the seeds with their standard errors: the rounds, and before and after the change."""

    arm: str
    rounds: tuple[tuple[float, float], ...]  # regret
    before: tuple[float, float]
    after: tuple[float, float]
    quality: tuple[float, float]  # after
    spent: tuple[float, float]  # after


def figures(arm: Arm, runs: Sequence[Sequence[Round]]) -> Figures:
    """`before`: the three rounds before the change; `after`: the last three."""

    def mean(values: Sequence[float]) -> tuple[float, float]:
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return statistics.fmean(values), error

    def over(part: slice, name: str) -> tuple[float, float]:
        return mean([statistics.fmean(getattr(each, name) for each in run[part]) for run in runs])

    last = slice(len(runs[0]) - 3, None)
    return Figures(
        arm=arm.name,
        rounds=tuple(mean([run[at].regret_usd for run in runs]) for at in range(len(runs[0]))),
        before=over(slice(CHANGE - 3, CHANGE), "regret_usd"),
        after=over(last, "regret_usd"),
        quality=over(last, "quality"),
        spent=over(last, "spent_usd"),
    )


def simulate(seeds: int, rounds: int = ROUNDS, per_round: int = PER_ROUND, arms: Sequence[Arm] = ARMS) -> list[Figures]:
    jobs = [(arm, seed) for arm in arms for seed in range(seeds)]
    with ProcessPoolExecutor() as pool:
        runs = list(
            pool.map(
                run,
                [arm for arm, _ in jobs],
                [seed for _, seed in jobs],
                [rounds] * len(jobs),
                [per_round] * len(jobs),
            )
        )
    return [figures(arm, runs[i * seeds : (i + 1) * seeds]) for i, arm in enumerate(arms)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--write", action="store_true", help="renew docs/exploring.md and .svg")
    given = parser.parse_args()
    found = simulate(given.seeds)
    docs = Path(__file__).parent.parent / "docs"
    text = renewed((docs / "exploring.md").read_text(), found, given.seeds)
    if given.write:
        (docs / "exploring.md").write_text(text)
        (docs / "exploring.svg").write_text(svg(found, CHANGE))
    for each in found:
        print(each.arm, each.before, each.after, each.quality, each.spent, [round(r, 2) for r, _ in each.rounds])
    return 0


if __name__ == "__main__":
    sys.exit(main())
