"""Two attacks on a router that learns: feedback that lies, and prefixes that make every request look hard.

Shared by tests/test_attack.py and by `python -m scripts.attack_routing`, which prints the figures of
docs/exploring.md. The world is that of `simulate_loop`; labels go the whole way: journal records and feedback,
`study/intake` with its caps for each key, outcome tables, `study/fit`, `decide`.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from scripts.simulate_loop import AT_S, CHEAP, DEAR, FILLER, KINDS, OUTPUT_TOKENS, Arm, prompt_of, snapshot_of, truth
from tierwise.core.budget import Budget, Charge, Hold
from tierwise.core.decide import decide
from tierwise.core.episode import Call, Decision, Episode, Replied
from tierwise.core.features import extract
from tierwise.core.money import Usage
from tierwise.core.ports import Feedback, Outcome, Record, Story
from tierwise.core.request import Features, Hints, Payer, Prompt, Turn
from tierwise.core.snapshot import Snapshot
from tierwise.core.weigh import charged_nano
from tierwise.stores.ledger.books import Books
from tierwise.stores.ledger.reading import money_of
from tierwise.study.believed import fit_believed
from tierwise.study.fit import Fitted, fit
from tierwise.study.intake import Intake
from tierwise.study.outcomes import load_labelled
from tierwise.study.settings import USUAL
from tierwise.study.table import Table
from tierwise.study.trust import Labels

KEYS = 24
LIAR = "liar"
REQUESTS = 1_500
TESTED = 800
POISONED = 0.05  # of all feedback
PLAIN = Arm("no exploration", None)
# A day's budget for one key, as a multiple of what it usually spends.
ROOM = 1.1
DAY_S = 86_400


# ------------------------------------------------------------------------------------------------ feedback that lies


class Poisoned(NamedTuple):
    clean: float  # share of requests that the dear model gets
    poisoned: float
    doubted: float  # the same, without the keys whose labels do not fit
    suspected: tuple[str, ...]


def stories(seed: int, lies: float = 1.0) -> list[Story]:
    """Half of the requests were answered by either model, and everybody said what they thought of it. One key has the
    share POISONED of all feedback, and lies in this part of it: every cheap reply was bad, every dear one good."""
    dice = random.Random(seed)  # noqa: S311  # a simulation
    found = []
    for i in range(REQUESTS):
        kind = dice.choice(tuple(KINDS))
        model = dice.choice((CHEAP, DEAR))
        good = truth(kind, 0)[model == DEAR]
        said = float(dice.random() < good)
        key = f"k{dice.randrange(KEYS)}"
        features = prompt_of(kind, dice)
        if dice.random() < POISONED:
            key = LIAR
            said = float(model == DEAR) if dice.random() < lies else said
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


def poison(seed: int, lies: float = 1.0) -> Poisoned:
    """`clean` is the same traffic, had the liar said nothing."""
    asked = tested(seed)
    lied = stories(seed, lies)
    without = believed(lied)
    silent = [story for story in lied if story.record.episode.payer.key != LIAR]
    return Poisoned(
        clean=dear_share(learned(silent), asked),
        poisoned=dear_share(learned(lied), asked),
        doubted=dear_share(snapshot_of(without.trained, PLAIN), asked),
        suspected=doubted(without),
    )


# ------------------------------------------------------------------------------------------------ prefixes


class Prefixed(NamedTuple):
    prefix: str
    usual: float  # share of the attacker's requests that the dear model gets
    unbounded: float  # with the prefix
    bounded: float  # with the prefix, under a budget of ROOM times what is usually spent
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


def prefix_attack(snapshot: Snapshot, seed: int, many: int = 400) -> Prefixed:
    asked = texts(seed + 900, many)
    prefix = searched(snapshot, seed)
    plain = [read(text) for text in asked]
    attacked = [read(f"{prefix} {text}") for text in asked]
    usual = served(snapshot, plain, None)
    limit = round(ROOM * usual.spent_nano)
    bounded = served(snapshot, attacked, limit)
    return Prefixed(
        prefix,
        usual.dear,
        served(snapshot, attacked, None).dear,
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


def served(snapshot: Snapshot, asked: Sequence[Features], limit_nano: int | None) -> Served:
    """One key's day, spread evenly over it: every call held and settled in the books, every decision under the price
    of money of that moment."""
    budgets = (Budget(scope="key", limit_nano=limit_nano, window="day"),) if limit_nano is not None else ()
    books = Books(budgets)
    payer, hints = Payer(key="attacker"), Hints()
    dear = answered = spent = 0
    day = AT_S - AT_S % DAY_S
    for i, features in enumerate(asked):
        at_s = day + i * DAY_S // len(asked)
        money = money_of(books.passes(payer, hints), at_s)
        episode = _episode(snapshot, features, id=f"{i}", at_s=at_s, money=money, payer=payer)
        step = decide(snapshot, episode).step
        if not isinstance(step, Call):
            continue
        usage = Usage(input_tokens=features.input_tokens, output_tokens=OUTPUT_TOKENS)
        cost = charged_nano(snapshot.catalogue.models[step.model], episode, usage) or 0
        # Held is what the reply will cost: a caller that knows its ceiling says it.
        hold = Hold(id=f"{i}", payer=payer, session="", workflow="", model=step.model, amount_nano=cost, at_s=at_s)
        if books.hold(hold) is not None:
            continue
        books.settle(hold.id, Charge(cost_nano=cost, usage=usage), at_s)
        answered += 1
        dear += step.model == DEAR
        spent += cost
    overdrawn = limit_nano is not None and spent > limit_nano
    return Served(dear / len(asked), answered / len(asked), spent, overdrawn)


def _points(moved: Sequence[float]) -> str:
    return f"{statistics.fmean(moved):.1f} points (at most {max(moved, key=abs):.1f})"


def main() -> None:
    for lies in (1.0, 0.5, 0.25, 0.0):
        found = [poison(seed, lies) for seed in range(6)]
        moved = [100 * (each.poisoned - each.clean) for each in found]
        left = [100 * (each.doubted - each.clean) for each in found]
        caught = sum(LIAR in each.suspected for each in found)
        others = sum(len(set(each.suspected) - {LIAR}) for each in found)
        print(
            f"lies {lies:.0%}: moved {_points(moved)}, left {_points(left)}; caught {caught}/6, others {others}",
            flush=True,
        )
    snapshot = learned(stories(0, 0.0))
    for seed in range(4):
        print(prefix_attack(snapshot, seed))


if __name__ == "__main__":
    main()
