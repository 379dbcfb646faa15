"""Two attacks on a router that learns: feedback that lies, and prefixes that make every request look hard.

Shared by tests/test_attack.py and by `python -m scripts.attack_routing`, which prints the figures of
docs/exploring.md. The world is that of `simulate_loop`; labels go the whole way: journal records and feedback,
`study/data/intake` with its caps for each key, outcome tables, `study/training/fit`, `decide`.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from scripts.simulate_loop import (
    AT_S,
    CHEAP,
    DEAR,
    FILLER,
    KINDS,
    MISS_NANO,
    OUTPUT_TOKENS,
    Arm,
    prompt_of,
    snapshot_of,
    truth,
)
from tierwise.core.budget import Budget, Charge, Hold
from tierwise.core.decide import decide
from tierwise.core.episode import Call, Decision, Episode, Replied
from tierwise.core.features import extract
from tierwise.core.money import Usage
from tierwise.core.ports import Feedback, Outcome, Record, Story
from tierwise.core.request import Features, Hints, Payer, Prompt, Turn
from tierwise.core.snapshot import Snapshot
from tierwise.core.weigh import charged_nano
from tierwise.routing.shares import Shares
from tierwise.stores.ledger.books import Books
from tierwise.stores.ledger.reading import money_of
from tierwise.study.data.intake import Intake
from tierwise.study.data.outcomes import load_labelled
from tierwise.study.data.trust import Labels
from tierwise.study.table import Table
from tierwise.study.training.believed import fit_believed
from tierwise.study.training.fit import Fitted, fit
from tierwise.study.training.settings import USUAL

KEYS = 24
LIAR = "liar"
REQUESTS = 1_500
MANY = 6_000
TESTED = 3_000
WORLDS = 30
POISONED = 0.05  # of all feedback
PLAIN = Arm("no exploration", None)
# A day's budget for one key, as a multiple of what it usually spends.
ROOM = 1.1
DAY_S = 86_400


# ------------------------------------------------------------------------------------------------ feedback that lies


class Poisoned(NamedTuple):
    """Shares of requests that the dear model gets, by fits of the same rows: what the liar has of them, it has in each.
    A fit that doubts is what `tierwise fit` makes."""

    honest: float  # nobody lies; doubting
    luck: float  # the same, had the liar's replies turned out otherwise: what chance alone moves; doubting
    trusting: float  # the liar lies, and everybody is believed
    doubting: float
    suspected: tuple[str, ...]  # when it lies


def stories(seed: int, lies: float = 1.0, requests: int = REQUESTS, *, luck: bool = False) -> list[Story]:
    """Half of the requests were answered by either model, and everybody said what they thought of it. One key has the
    share POISONED of all feedback, and lies in this part of it: every cheap reply was bad, every dear one good. All
    else is the same however much it lies. `luck`: of what it does not lie about, it had other replies."""
    dice, liar = random.Random(seed), random.Random(77_000 + seed)  # noqa: S311  # a simulation
    found = []
    for i in range(requests):
        kind = dice.choice(tuple(KINDS))
        model = dice.choice((CHEAP, DEAR))
        good = truth(kind, 0)[model == DEAR]
        said = float(dice.random() < good)
        key = f"k{dice.randrange(KEYS)}"
        features = prompt_of(kind, dice)
        is_lie, other = liar.random() < lies, float(liar.random() < good)
        if dice.random() < POISONED:
            key = LIAR
            said = float(model == DEAR) if is_lie else other if luck else said
        found.append(_story(i, key, features, model, said))
    return found


def _story(i: int, key: str, features: Features, model: str, said: float) -> Story:
    payer = Payer(key=key)
    usage = Usage(input_tokens=features.input_tokens, output_tokens=OUTPUT_TOKENS)
    reply = Replied(at="start", model=model, after_ms=1, usage=usage, cost_nano=1)
    episode = Episode(
        id=f"{i:06d}",
        snapshot="5eed",
        at_s=AT_S + i,
        draw=0.5,
        requested="auto",
        policy="default",
        features=features,
        payer=payer,
        events=(reply,),
    )
    call = Decision(step=Call(at="start", model=model, worst_case_nano=1))
    outcome = Outcome(status="answered", routed=model, cost_nano=1)
    feedback = Feedback(decision_id=episode.id, at_s=AT_S + i, score=said, payer=payer)
    return Story(Record(episode=episode, decisions=(call,), outcome=outcome), (feedback,))


def learned(told: Sequence[Story]) -> Snapshot:
    """From records to the snapshot that would serve, were everybody believed."""
    table, _ = tables(told)
    return snapshot_of(fit(table, reference=DEAR, settings=USUAL).trained, PLAIN)


def tables(told: Sequence[Story]) -> tuple[Table, Labels]:
    with tempfile.TemporaryDirectory() as folder:
        with Intake(folder) as intake:
            for story in told:
                intake.add(story)
            intake.finish()
        return load_labelled([folder])


def believed(told: Sequence[Story]) -> Fitted:
    """As `tierwise fit` does it: without the keys whose feedback does not fit what the others say."""
    table, labels = tables(told)
    return fit_believed(table, labels, reference=DEAR, settings=USUAL)


def doubted(fitted: Fitted) -> tuple[str, ...]:
    return tuple(sorted({each.key for each in fitted.report.suspects}))


def dear_share(snapshot: Snapshot, asked: Sequence[Features]) -> float:
    return statistics.fmean(chosen(snapshot, each) == DEAR for each in asked)


def chosen(snapshot: Snapshot, features: Features, **more: object) -> str:
    step = decide(snapshot, _episode(snapshot, features, **more)).step
    return step.model if isinstance(step, Call) else ""


def _episode(snapshot: Snapshot, features: Features, **more: object) -> Episode:
    given = {"id": "a", "at_s": AT_S, **more}
    return Episode(snapshot=snapshot.hash, draw=0.5, requested="auto", policy="default", features=features, **given)  # type: ignore[arg-type]


def tested(seed: int) -> list[Features]:
    dice = random.Random(10_000 + seed)  # noqa: S311  # a simulation
    return [prompt_of(dice.choice(tuple(KINDS)), dice) for _ in range(TESTED)]


def poison(seed: int, lies: float = 1.0, requests: int = REQUESTS) -> Poisoned:
    asked = tested(seed)

    def share(fitted: Fitted) -> float:
        return dear_share(snapshot_of(fitted.trained, PLAIN), asked)

    table, labels = tables(stories(seed, lies, requests))
    doubting = fit_believed(table, labels, reference=DEAR, settings=USUAL)
    return Poisoned(
        honest=share(believed(stories(seed, 0.0, requests))),
        luck=share(believed(stories(seed, 0.0, requests, luck=True))),
        trusting=share(fit(table, reference=DEAR, settings=USUAL)),
        doubting=share(doubting),
        suspected=doubted(doubting),
    )


def regrets(seed: int, requests: int = REQUESTS) -> tuple[float, float]:
    """What a fit costs above the best decisions, in dollars a thousand requests, when nobody lies: (everybody believed,
    doubting)."""
    told = stories(seed, 0.0, requests)
    return regret_usd(learned(told), seed), regret_usd(snapshot_of(believed(told).trained, PLAIN), seed)


def regret_usd(snapshot: Snapshot, seed: int) -> float:
    dice = random.Random(20_000 + seed)  # noqa: S311  # a simulation
    total = 0.0
    for _ in range(TESTED):
        kind = dice.choice(tuple(KINDS))
        features = prompt_of(kind, dice)
        episode = _episode(snapshot, features)
        usage = Usage(input_tokens=features.input_tokens, output_tokens=OUTPUT_TOKENS)
        price = {
            model: (charged_nano(snapshot.catalogue.models[model], episode, usage) or 0) + (1 - good) * MISS_NANO
            for model, good in zip((CHEAP, DEAR), truth(kind, 0), strict=True)
        }
        total += price[chosen(snapshot, features)] - min(price.values())
    return total / TESTED * 1_000 / 1e9


# ------------------------------------------------------------------------------------------------ prefixes


class Prefixed(NamedTuple):
    prefix: str
    usual: float  # share of the attacker's requests that the dear model gets
    unbounded: float  # with the prefix
    held: float  # with the prefix, and the key's rise held as by default
    after: float  # when the prefix is left away again
    bounded: float  # with the prefix and no hold, under a budget of ROOM times what is usually spent
    answered: float  # share of the requests that this budget let through
    limit_nano: int
    spent_nano: int  # under it
    overdrawn: bool


def searched(snapshot: Snapshot, seed: int, tries: int = 60, words: int = 6) -> str:
    """The best of so many random prefixes, by the share of a sample that it sends to the dear model. The attacker sees
    which model answers, and knows what people write."""
    dice = random.Random(seed)  # noqa: S311  # a simulation
    vocabulary = [word for text, _, _ in KINDS.values() for word in text.split()] + FILLER
    sample = texts(seed + 500, 40)
    best, most = "", 0.0
    for _ in range(tries):
        prefix = " ".join(dice.choices(vocabulary, k=words))
        share = dear_share(snapshot, [read(f"{prefix} {text}") for text in sample])
        if share > most:
            best, most = prefix, share
    return best


def texts(seed: int, many: int) -> list[str]:
    dice = random.Random(seed)  # noqa: S311  # a simulation
    found = []
    for _ in range(many):
        words = dice.choices(KINDS[dice.choice(tuple(KINDS))][0].split(), k=5) + dice.choices(FILLER, k=7)
        dice.shuffle(words)
        found.append(" ".join(words))
    return found


def read(text: str) -> Features:
    return extract(Prompt(turns=(Turn("user", text),), size_bytes=len(text)), with_grams=True)


def prefix_attack(snapshot: Snapshot, seed: int, many: int = 500, tries: int = 60) -> Prefixed:
    """A key asks as usual, three times `many`; then with the best prefix of so many, `many`; then as usual again."""
    prefix = searched(snapshot, seed, tries)
    asked = texts(seed + 900, many)
    plain = [read(text) for text in asked]
    attacked = [read(f"{prefix} {text}") for text in asked]
    shares = Shares()
    served(snapshot, [read(text) for text in texts(seed + 1_700, 3 * many)], shares=shares)
    held = served(snapshot, attacked, shares=shares)
    after = served(snapshot, [read(text) for text in texts(seed + 2_600, many)], shares=shares)
    usual = served(snapshot, plain)
    limit = round(ROOM * usual.spent_nano)
    bounded = served(snapshot, attacked, limit)
    return Prefixed(
        prefix,
        usual.dear,
        served(snapshot, attacked).dear,
        held.dear,
        after.dear,
        bounded.dear,
        bounded.answered,
        limit,
        bounded.spent_nano,
        bounded.overdrawn,
    )


class Served(NamedTuple):
    dear: float  # of all requests
    answered: float
    spent_nano: int
    overdrawn: bool
    dearer: float  # of all requests, at a price of money above 1


def served(
    snapshot: Snapshot,
    asked: Sequence[Features],
    limit_nano: int | None = None,
    shares: Shares | None = None,
    key: str = "attacker",
) -> Served:
    """One key's day, spread evenly over it: every call held and settled in the books, every decision under the price
    of money of that moment, every reply counted in `shares`."""
    budgets = (Budget(scope="key", limit_nano=limit_nano, window="day"),) if limit_nano is not None else ()
    books = Books(budgets)
    payer, hints = Payer(key=key), Hints()
    dear = answered = spent = dearer = 0
    day = AT_S - AT_S % DAY_S
    for i, features in enumerate(asked):
        at_s = day + i * DAY_S // len(asked)
        money = money_of(books.passes(payer, hints), at_s)
        episode = _episode(snapshot, features, id=f"{i}", at_s=at_s, money=money, payer=payer)
        rise = snapshot.policies[episode.policy].dear_rise
        episode = shares.opened(episode, rise) if shares else episode
        dearer += episode.money.value > 1.0
        decision = decide(snapshot, episode)
        step = decision.step
        if not isinstance(step, Call):
            continue
        usage = Usage(input_tokens=features.input_tokens, output_tokens=OUTPUT_TOKENS)
        cost, baseline = (
            charged_nano(snapshot.catalogue.models[each], episode, usage) or 0 for each in (step.model, DEAR)
        )
        # Held is what the reply will cost: a caller that knows its ceiling says it.
        hold = Hold(id=f"{i}", payer=payer, session="", workflow="", model=step.model, amount_nano=cost, at_s=at_s)
        if books.hold(hold) is not None:
            continue
        books.settle(hold.id, Charge(cost_nano=cost, usage=usage), at_s)
        if shares:
            outcome = Outcome(status="answered", routed=step.model, cost_nano=cost, baseline_nano=baseline)
            record = Record(episode=episode, decisions=(decision,), outcome=outcome)
            shares.note(record, rise)
        answered += 1
        dear += step.model == DEAR
        spent += cost
    overdrawn = limit_nano is not None and spent > limit_nano
    return Served(dear / len(asked), answered / len(asked), spent, overdrawn, dearer / len(asked))


class Clean(NamedTuple):
    """Keys that do nothing but ask: shares of their requests."""

    dearer: float  # decided at a price of money above 1
    moved: float  # sent to the cheap model for that
    worst: float  # moved, of the key with the most


def clean(snapshot: Snapshot, seed: int, keys: int = 20, many: int = 2_000) -> Clean:
    found = []
    for k in range(keys):
        asked = [read(text) for text in texts(seed + 5_000 + k, many)]
        held, free = served(snapshot, asked, shares=Shares(), key=f"k{k}"), served(snapshot, asked)
        found.append((held.dearer, free.dear - held.dear))
    dearer, moved = (statistics.fmean(each) for each in zip(*found, strict=True))
    return Clean(dearer, moved, max(each for _, each in found))


def _points(moved: Sequence[float]) -> str:
    """Signed mean with its standard error; what 95 of 100 worlds stay within; the worst."""
    size = sorted(abs(each) for each in moved)
    error = statistics.stdev(moved) / len(moved) ** 0.5
    within = size[min(len(size) - 1, round(0.95 * len(size)))]
    return f"{statistics.fmean(moved):.1f} ± {error:.1f}, 95 % within {within:.1f}, worst {size[-1]:.1f}"


def _poison(given: tuple[int, float, int]) -> Poisoned:
    return poison(*given)


def _regrets(given: tuple[int, int]) -> tuple[float, float]:
    return regrets(*given)


def main() -> None:
    with ProcessPoolExecutor(2) as pool:
        for requests in (REQUESTS, MANY):
            for lies in (1.0, 0.5, 0.25):
                found = list(pool.map(_poison, [(seed, lies, requests) for seed in range(WORLDS)]))
                for name in ("trusting", "doubting", "luck"):
                    moved = [100 * (getattr(each, name) - each.honest) for each in found]
                    print(f"{requests} labels, lies {lies:.0%}, {name}: {_points(moved)}", flush=True)
                caught = sum(LIAR in each.suspected for each in found)
                others = sum(len(set(each.suspected) - {LIAR}) for each in found)
                print(f"  left out in {caught} of {WORLDS}, others {others}", flush=True)
            pairs = list(pool.map(_regrets, [(seed, requests) for seed in range(WORLDS)]))
            plain = statistics.fmean(one for one, _ in pairs)
            apart = [other - one for one, other in pairs]
            error = statistics.stdev(apart) / WORLDS**0.5
            more = statistics.fmean(apart)
            print(f"{requests} labels, nobody lies: regret {plain:.3f}, doubting {more:+.4f} ± {error:.4f}", flush=True)
    for world in range(3):
        snapshot = learned(stories(world, 0.0))
        for seed, tries in ((0, 60), (1, 60), (2, 60), (3, 60), (4, 300), (5, 300)):
            print(f"world {world}, {tries} prefixes:", prefix_attack(snapshot, seed, tries=tries), flush=True)
        print(f"world {world}:", clean(snapshot, 0), flush=True)


if __name__ == "__main__":
    main()
