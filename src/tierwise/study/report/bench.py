"""`tierwise bench routing`: every yardstick for every set of a folder in the outcome format, over several seeds.

The work falls into units that know nothing of each other (a set and a seed, a source held out, a row of promises), so
they share the machine's cores. What the figures mean and which are asked for: docs/routing-quality.md.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from tierwise.core.errors import TierwiseError
from tierwise.core.learned import Trained
from tierwise.study import yardsticks as ys
from tierwise.study.data.files import pairs_of
from tierwise.study.data.outcomes import load
from tierwise.study.data.whole import EvaluateError, Whole, whole
from tierwise.study.judging.evaluate import Evaluation, Seeded, gathered, one_seed
from tierwise.study.judging.ways import rates_of, scores
from tierwise.study.report import trials
from tierwise.study.table import Table, split
from tierwise.study.training.fit import fit

Progress = Callable[[str], None]
Kind = Literal["seed", "source", "held out", "promises", "stability", "speed"]
SOURCE_ROWS = 1_500  # that a two-model router is trained on, of one source; of a small one half, and at most
SMALL_SOURCE, SMALL_ROWS = 3_000, 500
LEAST_SOURCE = 100


class Unit(msgspec.Struct, frozen=True):
    """One piece of work on one set. `what`: the source, or the number of labelled rows."""

    path: str
    name: str
    kind: Kind
    seed: int
    what: str = ""


class SourceFigures(msgspec.Struct, frozen=True):
    """A two-model router trained on one source's own labels."""

    source: str
    trained: int
    tested: int
    figures: ys.TwoModels | None


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What a unit gave: one of these."""

    unit: Unit
    took_s: float
    why_not: str = ""  # nothing: this is why
    seed: Seeded | None = None
    source: SourceFigures | None = None
    harm: trials.Harm | None = None
    kept: tuple[trials.Kept, ...] = ()
    stability: dict[str, float] = {}
    speed: trials.Speed | None = None


class SourceResult(msgspec.Struct, frozen=True):
    source: str
    trained: int
    tested: int
    figures: dict[str, ys.Mean]


class SetResult(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one set."""

    name: str
    data_hash: str
    evaluation: Evaluation
    sources: tuple[SourceResult, ...]  # of two-model sets
    harm: tuple[trials.Harm, ...]
    kept: tuple[trials.Kept, ...]
    stability: dict[str, float]
    speed: trials.Speed | None
    left_out: tuple[str, ...] = ()  # what could not be measured, and why


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    seeds: int
    took_s: float
    sets: tuple[SetResult, ...]
    left_out: tuple[str, ...]  # sets that carry no evaluation, and why


def bench(
    folder: Path, *, seeds: int = 5, draws: int = trials.DRAWS, workers: int = 0, progress: Progress | None = None
) -> Bench:
    """Every set in this folder. `workers`: processes; 0 for none but this one. Raises DataError for a folder without
    sets or with one that cannot be read. A set that carries no evaluation is left out, with the reason."""
    say = progress or (lambda line: None)
    begin = time.perf_counter()
    pairs = pairs_of([folder])
    wholes: dict[str, Whole] = {}
    units: list[Unit] = []
    left_out = []
    for pair in pairs:
        try:
            wholes[pair.name] = part = whole(_read(str(pair.prompts)))
        except EvaluateError as error:
            left_out.append(f"{pair.name}: {error}")
            continue
        units += _units(str(pair.prompts), pair.name, part, seeds)
    done: list[Done] = []
    for each in _work(units, draws, workers):
        done.append(each)
        unit = each.unit
        say(f"{len(done)}/{len(units)} {unit.name}: {unit.kind} {unit.what or unit.seed} ({each.took_s:.0f} s)")
    sets = []
    for name, part in wholes.items():
        mine = [each for each in done if each.unit.name == name]
        no = next((each.why_not for each in mine if each.unit.kind == "seed" and each.why_not), "")
        if no:
            left_out.append(f"{name}: {no}")
        else:
            sets.append(_result(name, part, mine))
    return Bench(
        seeds=seeds,
        took_s=time.perf_counter() - begin,
        sets=tuple(sets),
        left_out=tuple(left_out),
    )


def _units(path: str, name: str, part: Whole, seeds: int) -> Iterator[Unit]:
    """The longest first, so that no core waits for the last one. The time is taken alone, at the end."""
    for n in trials.LABELLED:
        yield Unit(path, name, "promises", 0, str(n))
    for seed in range(seeds):
        yield Unit(path, name, "seed", seed)
        if len(part.table.models) == 2:
            for source in _large(part.table):
                yield Unit(path, name, "source", seed, source)
    if part.priced:
        for source in trials.sources(part.table):
            yield Unit(path, name, "held out", 0, source)
        yield Unit(path, name, "stability", 0)
    yield Unit(path, name, "speed", 0)


def _work(units: Sequence[Unit], draws: int, workers: int) -> Iterator[Done]:
    if not workers:
        yield from (run(unit, draws) for unit in units)
        return
    # A decision is timed when no other unit is under way.
    together = [unit for unit in units if unit.kind != "speed"]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(run, together, [draws] * len(together))
    yield from (run(unit, draws) for unit in units if unit.kind == "speed")


def run(unit: Unit, draws: int) -> Done:
    """One unit, from the files to its figures. A pure function of the two, but for the time that is taken."""
    begin = time.perf_counter()
    part = whole(_read(unit.path))
    try:
        found = _done(unit, part, draws)
    except TierwiseError as error:  # the rest of the set, and other sets, can be measured all the same
        found = Done(unit=unit, took_s=0.0, why_not=str(error))
    return msgspec.structs.replace(found, took_s=time.perf_counter() - begin)


def _done(unit: Unit, part: Whole, draws: int) -> Done:
    table = part.table
    found = Done(unit=unit, took_s=0.0)
    match unit.kind:
        case "seed":
            found = msgspec.structs.replace(found, seed=one_seed(part, train, unit.seed))
        case "source":
            found = msgspec.structs.replace(found, source=_of_source(table, unit.what, unit.seed))
        case "held out":
            found = msgspec.structs.replace(found, harm=trials.held_out(table, train, unit.what, unit.seed))
        case "promises":
            kept = trials.promises(table, train, int(unit.what), seed=unit.seed, draws=draws)
            found = msgspec.structs.replace(found, kept=kept)
        case "stability":
            found = msgspec.structs.replace(found, stability=trials.stability(table, train, unit.seed))
        case "speed":
            # What a decision takes does not depend on the prices.
            costs = table.cost_usd if part.priced else np.ones(table.cost_usd.shape)
            table = msgspec.structs.replace(table, cost_usd=costs)
            found = msgspec.structs.replace(found, speed=trials.speed(table, train, unit.seed))
    return found


@lru_cache(maxsize=4)
def _read(path: str) -> Table:
    return load([path])[0]


def train(table: Table, seed: int) -> Trained:
    """As `tierwise fit` does."""
    return fit(table, seed=seed).trained


def _large(table: Table) -> tuple[str, ...]:
    names, counts = np.unique(np.array(table.workloads, dtype=object).astype(str), return_counts=True)
    return tuple(str(name) for name, count in zip(names, counts, strict=True) if count >= LEAST_SOURCE)


def _of_source(table: Table, source: str, seed: int) -> SourceFigures:
    """APGR and CPT on one source, trained on a part of it."""
    own = table.take([i for i, name in enumerate(table.workloads) if name == source])
    rows = len(own.ids)
    wanted = SOURCE_ROWS if rows >= SMALL_SOURCE else min(SMALL_ROWS, rows // 2)
    first, rest = split(own.groups, wanted / rows, seed)
    fitted, test = own.take(first[:wanted]), own.take(rest)
    seen = scores(train(fitted, seed), test, rates_of(fitted))
    strong = int(np.argmax(own.quality.mean(axis=0)))
    gain = seen.value[:, strong] - seen.value[:, 1 - strong]
    figures = ys.two_models(gain, test.quality[:, strong], test.quality[:, 1 - strong])
    return SourceFigures(source, len(fitted.ids), len(test.ids), figures)


def _result(name: str, part: Whole, done: Sequence[Done]) -> SetResult:
    speeds = [each.speed for each in done if each.speed]
    return SetResult(
        name=name,
        data_hash=part.table.hash,
        evaluation=gathered(part, [each.seed for each in done if each.seed]),
        sources=_sources([each.source for each in done if each.source]),
        harm=tuple(each.harm for each in done if each.harm),
        kept=tuple(kept for each in done for kept in each.kept),
        stability=next((each.stability for each in done if each.stability), {}),
        speed=speeds[0] if speeds else None,
        left_out=tuple(
            dict.fromkeys(f"{each.unit.kind} {each.unit.what}: {each.why_not}" for each in done if each.why_not)
        ),
    )


def _sources(found: Sequence[SourceFigures]) -> tuple[SourceResult, ...]:
    results = []
    for source in dict.fromkeys(each.source for each in found):
        mine = [each for each in found if each.source == source]
        known = [each.figures for each in mine if each.figures]
        figures = {
            name: ys.mean_of([getattr(each, name) for each in known])
            for name in ("apgr", "cpt50", "cpt80")
            if len(known) == len(mine)
        }
        results.append(SourceResult(source, mine[0].trained, mine[0].tested, figures))
    return tuple(results)
