"""How soon a broken promise is found, and how often one that holds is withdrawn; the same of drift.

`make simulate-watch` runs this with --write, which renews the figures and the plot of docs/watching.md.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from tierwise.core.learned import DENSE
from tierwise.core.promise import Promise, Segment
from tierwise.study.table import Inputs
from tierwise.study.training.histograms import histograms
from tierwise.watch.drift import RATE, drift
from tierwise.watch.promises import DELTA, Observation, judge, watching

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- figures: make simulate-watch -->", "<!-- end of figures -->"
ALPHA = 0.02
LOSSES = (0.03, 0.04, 0.05, 0.07, 0.10, 0.20, 0.40)
GOOD = (0, 1_000)  # labelled requests on which the promise held, before it broke
DIFFERING = 0.04  # of replies that are worth otherwise than the reference's: more and fewer alike when nothing is lost
MOST = 4_000  # labelled requests, after which nobody waits any longer
PROMISE = Promise(
    name="p",
    kind="choice",
    alpha=ALPHA,
    delta=0.1,
    reference="r",
    estimator="e",
    made_s=1,
    data_hash="d",
    segments=(Segment(workload="", status="certified"),),
)
Losses = NDArray[np.float64]


def losses(generator: np.random.Generator, mean: float, n: int) -> Losses:
    """−1, 0 and 1 with this mean, and a spread as replies have it."""
    differing = max(DIFFERING, mean)
    chances = [(differing + mean) / 2, 1 - differing, (differing - mean) / 2]
    return generator.choice([1.0, 0.0, -1.0], n, p=chances)


def found_after(observed: Losses) -> int | None:
    """How many of these it took to withdraw the promise; None when they did not."""
    watch = watching([PROMISE])
    for i, loss in enumerate(observed):
        watch, verdicts = judge(watch, (Observation("p", "", float(loss)),))
        if verdicts[0].broken:
            return i + 1
    return None


def detections(times: int, seed: int) -> Iterator[tuple[int, float, list[float]]]:
    """For each start and each loss the labelled requests until it was found, infinite when it was not."""
    for good in GOOD:
        for mean in LOSSES:
            generator = np.random.default_rng((seed, good, round(mean * 1_000)))
            took = []
            for _ in range(times):
                before, after = losses(generator, 0.0, good), losses(generator, mean, MOST)
                at = found_after(np.concatenate((before, after)))
                took.append(float("inf") if at is None or at <= good else float(at - good))
            yield good, mean, took


def false_alarms(times: int, n: int, seed: int, mean: float) -> float:
    generator = np.random.default_rng((seed, n))
    return sum(found_after(losses(generator, mean, n)) is not None for _ in range(times)) / times


def inputs(generator: np.random.Generator, n: int, shift: float = 0.0) -> Inputs:
    """Every feature normal; that of length moved by `shift` standard deviations."""
    dense = generator.normal(size=(n, len(DENSE))).astype(np.float32)
    dense[:, 0] += shift
    return Inputs(dense, np.zeros(0, np.uint16), np.zeros(n + 1, np.int64))


def drifts(times: int, seed: int) -> Iterator[tuple[float, int, float, float, float]]:
    """(shift, requests in a look, share of looks that named the feature, share that named another, its index)."""
    generator = np.random.default_rng(seed)
    before = histograms(inputs(generator, 5_000), [""] * 5_000)
    for shift in (0.0, 0.1, 0.25, 0.5, 1.0):
        for n in (200, 1_000):
            looks = [drift(before, inputs(generator, n, shift), [""] * n) for _ in range(times)]
            named = [{each.feature for each in look if each.drifted} for look in looks]
            index = statistics.mean(each.index for look in looks for each in look if each.feature == DENSE[0])
            yield (
                shift,
                n,
                _share(DENSE[0] in each for each in named),
                _share(each - {DENSE[0]} for each in named),
                index,
            )


def _share(found: object) -> float:
    counted = [bool(each) for each in found]  # type: ignore[attr-defined]
    return sum(counted) / len(counted)


# ------------------------------------------------------------------------------------------------ the page


def page(times: int, seed: int) -> tuple[str, str]:
    """The figures as Markdown, and the plot as SVG."""
    rows = list(detections(times, seed))
    lines = [
        f"{times} runs each; alpha {100 * ALPHA:g} points, false alarms at most {DELTA:.0%} of promises that hold; "
        f"{DIFFERING:.0%} of replies differ in worth; labelled requests until the promise is withdrawn.",
        "",
        "| True loss, points | found at once: median | slowest tenth | after 1,000 good ones: median | slowest tenth |",
        "|---|---|---|---|---|",
    ]
    by_loss = {mean: [(good, took) for good, at, took in rows if at == mean] for mean in LOSSES}
    for mean, both in by_loss.items():
        cells = [_count(q) for _, took in both for q in (_quantile(took, 0.5), _quantile(took, 0.9))]
        lines.append(f"| {100 * mean:g} | " + " | ".join(cells) + " |")
    n = 2_000
    lines += [
        "",
        f"False alarms within {n:,} labelled requests: {false_alarms(times, n, seed, ALPHA):.1%} where the loss is "
        f"exactly alpha, {false_alarms(times, n, seed, 0.0):.1%} where nothing is lost.",
        "",
        f"Drift, {5 * times} looks each at {len(DENSE)} features, false alarms at most {RATE:.0%} of looks:",
        "",
        "| Shift of one feature, standard deviations | requests in the look | found | another named | index |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {shift:g} | {size:,} | {hit:.1%} | {other:.1%} | {index:.2f} |"
        for shift, size, hit, other, index in drifts(5 * times, seed)
    ]
    return "\n".join(lines), svg({good: [_quantile(t, 0.5) for g, _, t in rows if g == good] for good in GOOD})


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < MOST else f"over {MOST:,}"


LEFT, TOP, WIDTH, HEIGHT = 60, 44, 560, 260
LINES = ("#2563eb", "#d97706")
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2937 } .paper { fill: #ffffff } .grid { stroke: #e5e7eb }
  @media (prefers-color-scheme: dark) { text { fill: #e5e7eb } .paper { fill: #111827 } .grid { stroke: #374151 } }
"""


def svg(medians: dict[int, list[float]]) -> str:
    """Labelled requests until a broken promise is found, against its true loss, both axes logarithmic."""

    def x(mean: float) -> float:
        return LEFT + WIDTH * float(np.log(mean / LOSSES[0]) / np.log(LOSSES[-1] / LOSSES[0]))

    def y(count: float) -> float:
        return TOP + HEIGHT * (1 - float(np.log(min(count, MOST) / 10) / np.log(MOST / 10)))

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 40} {TOP + HEIGHT + 80}" role="img">',
        "<title>Labelled requests until a broken promise is withdrawn, by how much is lost</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{LEFT + WIDTH + 40}" height="{TOP + HEIGHT + 80}" rx="6"/>',
        f'<text x="{LEFT}" y="{TOP - 16}" font-weight="600">Labelled requests until it is withdrawn (median)</text>',
    ]
    for count in (10, 30, 100, 300, 1_000, MOST):
        out.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y(count):.1f}" y2="{y(count):.1f}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(count) + 4:.1f}" text-anchor="end">{count:,}</text>')
    out += [
        f'<text x="{x(mean):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{100 * mean:g}</text>' for mean in LOSSES
    ]
    out.append(f'<text x="{LEFT + WIDTH}" y="{TOP + HEIGHT + 36}" text-anchor="end">true loss, points</text>')
    for i, (colour, (good, values)) in enumerate(zip(LINES, medians.items(), strict=True)):
        points = " L".join(f"{x(mean):.1f},{y(count):.1f}" for mean, count in zip(LOSSES, values, strict=True))
        out.append(f'<path fill="none" stroke="{colour}" stroke-width="2.5" d="M{points}"/>')
        at, name = LEFT + 240 * i, f"after {good:,} good requests" if good else "broken from the beginning"
        bottom = TOP + HEIGHT + 58
        out.append(f'<line x1="{at}" x2="{at + 26}" y1="{bottom}" y2="{bottom}" stroke="{colour}" stroke-width="3"/>')
        out.append(f'<text x="{at + 34}" y="{bottom + 5}">{name}</text>')
    return "\n".join([*out, "</svg>", ""])


class Options(msgspec.Struct):
    times: int = 100
    seed: int = 0
    write: bool = False


def main(arguments: Sequence[str]) -> None:
    """--times N runs each, --seed N, --write to renew docs/watching.md and its plot."""
    options = Options(write="--write" in arguments)
    for name in ("times", "seed"):
        if f"--{name}" in arguments:
            setattr(options, name, int(arguments[arguments.index(f"--{name}") + 1]))
    text, drawn = page(options.times, options.seed)
    print(text)
    if options.write:
        path = DOCS / "watching.md"
        before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
        path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
        (DOCS / "watching.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
