"""A router that is fitted again and again on its own logged decisions: what becomes of it, with and without
exploration.

    make simulate-loop        prints the table and renews docs/exploring.md and docs/exploring.svg

What decides, explores and fits is the product's own: `decide`, its odds and shadows, `study/training/fit`. What is
simulated is the world: which kinds of request come, and how often each model manages each kind, which is known. A label
exists for what was asked, and for nothing else. Each round the estimator is fitted on the last WINDOW rounds alone, as
anybody does whose traffic and models change. Two things then happen to a router that looks at nothing but its choices:

- Models change on the side it does not look at. At CHANGE the cheap one's provider releases a version that manages
  `lookup`, which goes to the dear one by then; and the dear one does better at `writing`, which goes to the cheap one.
- It forgets. Once the pilot has left the window, no row tells how badly the cheap model does where it is never asked.
  The fit carries over what it sees of it elsewhere, all of it good, and sends it everything; the labels of that round
  teach it better; and when these have left the window in turn, it begins again.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scripts.loop_report import Figures, renewed, svg, table_text
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
from tierwise.study.table import Table, inputs_of
from tierwise.study.training.fit import FitError, fit
from tierwise.study.training.settings import USUAL

CHEAP, DEAR = "acme/cheap", "acme/dear"
ROUNDS, PER_ROUND, WINDOW, CHANGE, SEEDS = 20, 400, 5, 5, 8
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
FILLER = "please the of about with for some more short and then how what which would".split()  # noqa: SIM905


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
    """In the first round nothing is known, and each model answers half of the requests: a pilot."""
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
        if not isinstance(call, Call):
            raise RuntimeError(f"nobody was to be called: {call}")  # noqa: TRY004
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
        with contextlib.suppress(FitError):  # one of the models was hardly asked: the last estimator stays
            estimator = fit(table_of(window), reference=DEAR, seed=seed, settings=USUAL).trained
    return found


def figures(arm: Arm, runs: Sequence[Sequence[Round]]) -> Figures:
    """`before`: after the pilot and before the models change; the rest: over the last half of the rounds."""

    def mean(values: Sequence[float]) -> tuple[float, float]:
        return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))

    def over(first: int, last: int, name: str) -> tuple[float, float]:
        return mean([statistics.fmean(getattr(each, name) for each in run[first:last]) for run in runs])

    rounds = len(runs[0])
    half = rounds // 2
    return Figures(
        arm=arm.name,
        rounds=tuple(mean([run[at].regret_usd for run in runs]) for at in range(rounds)),
        before=over(1, CHANGE, "regret_usd"),
        after=over(half, rounds, "regret_usd"),
        worst=mean([max(each.regret_usd for each in run[half:]) for run in runs]),
        quality=over(half, rounds, "quality"),
        spent=over(half, rounds, "spent_usd"),
    )


def job(given: tuple[Arm, int, int, int]) -> list[Round]:
    return run(*given)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="renew docs/exploring.md and .svg")
    options = parser.parse_args()
    began = time.monotonic()
    jobs = [(arm, seed, ROUNDS, PER_ROUND) for arm in ARMS for seed in range(options.seeds)]
    with ProcessPoolExecutor(options.processes) as pool:
        runs = list(pool.map(job, jobs))
    found = [figures(arm, runs[i * options.seeds : (i + 1) * options.seeds]) for i, arm in enumerate(ARMS)]
    text = table_text(found, options.seeds)
    print(text)
    if options.write:
        docs = Path(__file__).resolve().parent.parent / "docs"
        page = docs / "exploring.md"
        page.write_text(renewed(page.read_text(), text))
        (docs / "exploring.svg").write_text(svg(found, CHANGE))
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
