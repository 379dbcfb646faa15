"""The trials of a trained router that `bench` adds to its yardsticks: promises put to the test on many random draws,
sources that training never saw, prompts with typos, and the time that a decision takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from tierwise.core.decide import decide
from tierwise.core.episode import Episode
from tierwise.core.features import extract
from tierwise.core.learned import Trained
from tierwise.core.policy import Amounts, Best, Policy
from tierwise.core.promise import Segment
from tierwise.core.snapshot import Snapshot, build
from tierwise.study import yardsticks as ys
from tierwise.study.data.whole import LEAST_ROWS
from tierwise.study.judging.evaluate import Trainer
from tierwise.study.judging.play import catalogue_of, prompt_of
from tierwise.study.judging.ways import best_of, planned, points, rates_of, scores, taken
from tierwise.study.promises.calibrate import calibrate
from tierwise.study.promises.cascades import Kind, cut_of, figures, route, served
from tierwise.study.table import Table, inputs_of, split
from tierwise.study.training.fit import predict

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DELTA = 0.1
ALPHAS = (0.01, 0.02)
LABELLED = (200, 500, 1_000)
DRAWS = 200
TRAINED_SHARE = 0.25  # of a promise's trial: the rest is the population that is drawn from
LEAST_REST = 300  # prompts that the truth is read off: below it the truth is a guess
HELD_OUT_ROWS = 1_000  # that a router is trained on, to be tried on a source that it never saw
PERTURBED = 400  # prompts
TIMED, TIMED_TOKENS = 1_000, 500


# ------------------------------------------------------------------------------------------------ promises


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Random calibrations of one size and one alpha. `violated`: share of all draws whose certified policy loses more
    than alpha on the prompts that were in no part of it; `violated_whole` the same on all prompts outside the training,
    which is steadier, and a little kinder because the calibration's own are among them."""

    kind: str
    alpha: float
    delta: float
    n: int
    draws: int
    certified: float  # share of draws
    violated: float
    violated_whole: float
    saving: ys.Mean  # on the rest; nothing certified saves nothing
    loss: ys.Mean  # on the rest


def promises(table: Table, train: Trainer, n: int, *, seed: int = 0, draws: int = DRAWS) -> tuple[Kept, ...]:
    """Train once, then draw n labelled rows again and again from the others and certify, for each alpha; the truth of
    each draw is known from what was not drawn. Agreement where answers are known, else choice. () where too few would
    be left to know the truth by."""
    first, rest = split(table.groups, TRAINED_SHARE, seed)
    if rest.size - n < LEAST_REST:
        return ()
    trained = train(table.take(first), seed)
    kind: Kind = "agreement" if (table.answers >= 0).any() and len(table.models) > 2 else "choice"
    population = table.take(rest)
    reference = table.models[best_of(table.take(first))]
    mean = predict(trained, population.inputs, population.workloads)[0]
    expected = mean[:, [trained.models.index(reference)]] - mean
    found = []
    for alpha in ALPHAS:
        draw = _Draw(table, trained, kind, alpha, reference, first, rest, population, expected)
        found.append(_kept([draw.once(n, seed * draws + i) for i in range(draws)], kind, alpha, n))
    return tuple(found)


class _Truth(msgspec.Struct, frozen=True):
    certified: bool
    loss: float
    saved: float
    whole: float


class _Draw(msgspec.Struct, frozen=True):
    table: Table
    trained: Trained
    kind: Kind
    alpha: float
    reference: str
    first: Ints
    rest: Ints
    population: Table
    expected: Floats  # [rest, models of the estimator]: the loss against the reference

    def once(self, n: int, seed: int) -> _Truth:
        order = np.random.default_rng(seed).permutation(self.rest.size)
        promise = calibrate(
            self.table.take(np.concatenate((self.first, self.rest[order[:n]]))),
            self.trained,
            name="trial",
            kind=self.kind,
            alpha=self.alpha,
            delta=DELTA,
            reference=self.reference,
            made_s=0,
            seen=self.table.groups[self.first],
            seed=seed,
            by_workload=False,
        )
        segment = promise.segments[0]
        if segment.status != "certified":
            return _Truth(False, 0.0, 0.0, 0.0)
        loss, saved = self.truth(segment, order[n:])
        return _Truth(True, loss, saved, self.truth(segment, order)[0])

    def truth(self, segment: Segment, rows: Ints) -> tuple[float, float]:
        """(loss, share of the reference's cost saved) of what was certified, on these rows of the population."""
        at = np.array([self.trained.models.index(each) for each in segment.models], dtype=np.int64)
        kept = self.population.take(rows)
        found = route(kept, self.kind, segment.models, self.reference, self.expected[rows][:, at])
        truth = figures(found, served(found, cut_of(segment)))
        return truth.loss, truth.saved


def _kept(draws: list[_Truth], kind: str, alpha: float, n: int) -> Kept:
    def share(holds: Callable[[_Truth], bool]) -> float:
        return sum(map(holds, draws)) / len(draws)

    return Kept(
        kind=kind,
        alpha=alpha,
        delta=DELTA,
        n=n,
        draws=len(draws),
        certified=share(lambda each: each.certified),
        violated=share(lambda each: each.loss > alpha),
        violated_whole=share(lambda each: each.whole > alpha),
        saving=ys.mean_of([each.saved for each in draws]),
        loss=ys.mean_of([each.loss for each in draws]),
    )


# ------------------------------------------------------------------------------------------------ unseen sources


class Harm(msgspec.Struct, frozen=True):
    """A source that training never saw: AIQ less that of zero there, which is given the source's own outcomes."""

    source: str
    n: int
    gains: dict[str, float]


def sources(table: Table) -> tuple[str, ...]:
    """Those with prompts enough to be measured on, where there are several."""
    names, counts = np.unique(np.array(table.workloads, dtype=object).astype(str), return_counts=True)
    found = tuple(str(name) for name, count in zip(names, counts, strict=True) if count >= LEAST_ROWS)
    return found if len(found) > 1 or len(names) > 1 else ()


def held_out(table: Table, train: Trainer, source: str, seed: int = 0) -> Harm:
    """Train without the source, and measure on it."""
    mine = np.array([name == source for name in table.workloads])
    others = np.flatnonzero(~np.isin(table.groups, table.groups[mine]))
    others = np.random.default_rng(seed).permutation(others)[:HELD_OUT_ROWS]
    fitted, test = table.take(others), table.take(np.flatnonzero(mine))
    trained = train(fitted, seed)
    seen = scores(trained, test, rates_of(fitted))
    found = points(planned(fitted, seen), test, seen)
    between = ys.span(test.quality, test.cost_usd)
    zero = ys.aiq(found["zero"].curve, between)
    gains = {name: ys.aiq(each.curve, between) - zero for name, each in found.items() if name != "zero"}
    return Harm(source, len(test.ids), gains)


# ------------------------------------------------------------------------------------------------ small changes


def typos(text: str, dice: np.random.Generator) -> str:
    """About one word in twenty gets two letters swapped, one dropped or one doubled."""
    words = text.split(" ")
    for i in np.flatnonzero(dice.random(len(words)) < 0.05):
        word = words[i]
        if len(word) > 3:
            at = int(dice.integers(1, len(word) - 1))
            words[i] = (
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                word[:at] + word[at + 1 :],
                word[:at] + word[at] + word[at:],
            )[int(dice.integers(3))]
    return " ".join(words)


def recased(text: str, dice: np.random.Generator) -> str:
    """All small, all capitals, or Each Word Capitalised."""
    return (text.lower(), text.upper(), text.title())[int(dice.integers(3))]


def respaced(text: str, dice: np.random.Generator) -> str:
    """Spaces doubled here and there, and some at both ends."""
    words = text.split(" ")
    return " " + " ".join(word + " " * int(dice.random() < 0.2) for word in words) + "\n"


CHANGES: dict[str, Callable[[str, np.random.Generator], str]] = {
    "typos": typos,
    "case": recased,
    "white space": respaced,
}


def stability(table: Table, train: Trainer, seed: int = 0, part: float = 0.98) -> dict[str, float]:
    """Share of unseen prompts that keep their model when only their spelling, case or white space changes, at the
    operating point that is deployed for this part of the best model's quality. {} where no text was kept."""
    test, fitted = split(table.groups, 0.3, seed)
    own, unseen = table.take(fitted), table.take([row for row in test if table.texts[row]][:PERTURBED])
    if not unseen.ids:
        return {}
    trained, rates = train(own, seed), rates_of(own)
    before = scores(trained, unseen, rates)
    misses = ys.prices_of_a_miss(before.value, before.cost_usd)
    # Which model a prompt gets is what matters, not what it is worth: the point may be chosen on these very prompts.
    at = taken(points(planned(own, before), unseen, before)["router"], unseen, best_of(own), part)
    usual = ys.sweep(before.value, before.cost_usd, misses[[at]])[0]
    found = {}
    for name, change in CHANGES.items():
        dice = np.random.default_rng(seed)
        texts = tuple(change(text or "", dice) for text in unseen.texts)
        inputs = inputs_of([extract(prompt_of(text), with_grams=True) for text in texts])
        changed = scores(trained, msgspec.structs.replace(unseen, inputs=inputs, texts=texts), rates)
        found[name] = float((ys.sweep(changed.value, changed.cost_usd, misses[[at]])[0] == usual).mean())
    return found


# ------------------------------------------------------------------------------------------------ time


class Speed(msgspec.Struct, frozen=True):
    """Of one decision, features included, in milliseconds on one core; `tokens` is the median length of the prompts.
    Each prompt's time is the quickest of three, for the machine has other work too."""

    p50_ms: float
    p99_ms: float
    tokens: int
    models: int
    n: int


def speed(table: Table, train: Trainer, seed: int = 0) -> Speed | None:
    """Of prompts that were put together from this table's to be as long; None where no text was kept."""
    texts = [text for text in table.texts if text]
    if not texts:
        return None
    dice = np.random.default_rng(seed)
    prompts = [prompt_of(_long(texts, dice)) for _ in range(TIMED)]
    snapshot = serving(table, train(table.take(dice.permutation(len(table.ids))[:1_000]), seed))
    took, tokens = [], []
    for prompt in prompts:
        best = 1e9
        for _ in range(3):
            begin = time.perf_counter()
            features = extract(prompt, snapshot.keywords, with_grams=True)
            decide(
                snapshot,
                Episode(
                    id="timed",
                    snapshot=snapshot.hash,
                    at_s=0,
                    draw=0.5,
                    requested="auto",
                    policy="default",
                    features=features,
                ),
            )
            best = min(best, time.perf_counter() - begin)
        took.append(1e3 * best)
        tokens.append(features.input_tokens)
    return Speed(
        float(np.quantile(took, 0.5)), float(np.quantile(took, 0.99)), int(np.median(tokens)), len(table.models), TIMED
    )


def _long(texts: list[str], dice: np.random.Generator) -> str:
    """Texts of the table one after the other, until they have about the tokens that are timed."""
    found: list[str] = []
    characters = 0
    while characters < 4 * TIMED_TOKENS:
        text = texts[int(dice.integers(len(texts)))]
        found.append(text)
        characters += len(text) + 1
    return "\n".join(found)[: 4 * TIMED_TOKENS]


def serving(table: Table, trained: Trained, miss_usd: float = 0.01) -> Snapshot:
    """A snapshot that chooses among the table's models as a sweep at this price of a miss does."""
    catalogue = catalogue_of(table)
    amounts = Amounts(
        miss_user_nano=round(miss_usd * 1e9),
        miss_internal_nano=0,
        second_interactive_nano=0,
        second_background_nano=0,
        second_batch_nano=0,
        caution=0.0,
    )
    # In the table's order, in which a sweep takes the first of equals.
    plan = Best(best=table.models)
    return build(
        catalogue, {"default": Policy(name="default", start="best", plans={"best": plan}, amounts=amounts)}, trained
    )
