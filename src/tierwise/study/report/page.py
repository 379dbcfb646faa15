"""The figures of `evaluate` and `bench routing` as Markdown, beside what was aimed at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from tierwise.study import yardsticks as ys
from tierwise.study.judging.evaluate import PARTS, Evaluation
from tierwise.study.report import trials
from tierwise.study.report.bench import Bench, SetResult

BEGIN, END = "<!-- figures: make bench-routing -->", "<!-- end of figures -->"
WAYS = ("zero", "random", "keywords", "router", "agreement", "with agreement", "oracle")
DEPLOYABLE = tuple(way for way in WAYS if way not in ("random", "oracle"))
# Published by RouteLLM for these two sources (its best router), and what we want to do better, from at most so many
# labelled rows: APGR, CPT(50), CPT(80).
PUBLISHED = {"mmlu": (0.64, 0.31, 0.65, 1_500), "gsm8k": (0.63, 0.31, 0.63, 500)}
SAVED_DEPLOYED, SAVED_CERTIFIED, HARM, SAME, P50_MS, P99_MS = 0.50, 0.60, -0.002, 0.95, 0.3, 1.0
LONG_SLICES = 24


class Target(msgspec.Struct, frozen=True):
    """Something to beat: what it is about, the bar in words, the figure in words, and whether it was met."""

    about: str
    bar: str
    figure: str
    met: bool


def text(found: Bench, made: str = "") -> str:
    """Every table. `made`: where and when, a line."""
    parts = [
        f"{made}{found.seeds} seeds, {found.took_s:.0f} s. ± is the standard error over the seeds, but for held-out "
        "sources, where it is over sources. Promises, held-out sources, small changes and time are of one seed.",
        "### What was aimed at",
        table(
            ["", "bar", "figure", "met"],
            [[each.about, each.bar, each.figure, "yes" if each.met else "no"] for each in targets(found)],
        ),
    ]
    for each in found.sets:
        parts += ["### " + plain(each.name), *_of_set(each)]
    parts += [f"Left out: {plain(each)}" for each in found.left_out]
    return "\n\n".join(parts)


def _of_set(each: SetResult) -> Iterator[str]:
    yield described(each.evaluation) + f" Data {each.data_hash}."
    yield from evaluation_tables(each.evaluation)
    yield from (f"Not measured: {plain(what)}" for what in each.left_out)
    if each.sources:
        yield "RouteLLM's yardsticks, by source, each trained on its own labels:"
        yield table(
            ["source", "trained on", "tested on", "APGR", "CPT(50)", "CPT(80)"],
            [
                [one.source, f"{one.trained:,}", f"{one.tested:,}"]
                + [shown(one.figures.get(name), share=name != "apgr") for name in ("apgr", "cpt50", "cpt80")]
                for one in each.sources
            ],
        )
    if each.kept:
        kind = each.kept[0].kind
        yield (
            f"Promises ({kind}), {each.kept[0].draws} random calibrations each, δ = {100 * trials.DELTA:.0f} %. "
            "Violated on the prompts that were not drawn, and on all that were not trained on:"
        )
        yield table(
            ["labelled", "α, points", "certified, %", "saved, %", "lost, points", "violated, %", "on all, %"],
            [
                [f"{one.n:,}", f"{100 * one.alpha:g}", f"{100 * one.certified:.0f}", *_draws(one)]
                for one in sorted(each.kept, key=lambda one: (one.n, one.alpha))
            ],
        )
    else:
        least = min(trials.LABELLED) + trials.LEAST_REST
        yield f"Promises were not put to the test: that takes {least} prompts beside a quarter to train on."
    if each.harm:
        yield "A source that training never saw, AIQ less zero's there, in points:"
        ways = [way for way in WAYS if way in each.harm[0].gains]
        rows = [[one.source, f"{one.n:,}", *(f"{100 * one.gains[way]:+.2f}" for way in ways)] for one in each.harm]
        means = [ys.mean_of([one.gains[way] for one in each.harm]) for way in ways]
        rows.append(["mean", "", *(_points(mean) for mean in means)])
        yield table(["held out", "prompts", *ways], rows)
    if each.stability:
        yield "Prompts that keep their model: " + ", ".join(
            f"{name} {100 * share:.1f} %" for name, share in each.stability.items()
        )
    if each.speed:
        fast = each.speed
        yield (
            f"One decision, features included: p50 {fast.p50_ms:.2f} ms, p99 {fast.p99_ms:.2f} ms "
            f"({fast.models} models, {fast.n:,} prompts of {fast.tokens} tokens, one core)"
        )


def described(found: Evaluation) -> str:
    """What was measured on, in a sentence or two."""
    one = found.seeds[0]
    left = f" {found.left_out} prompts that not every model has answered are left out." if found.left_out else ""
    pair = f" Agreement asks {one.rung[0]} and {one.rung[1]} first, chosen from training data." if one.rung else ""
    return plain(
        f"{found.rows:,} prompts, {len(found.models)} models; trained on {one.rows[0]:,}, thresholds from "
        f"{one.rows[1]:,} more, tested on {one.rows[2]:,}. With the first seed the best single model is {one.best}"
        + (f", the cheapest {one.cheapest}" if one.cheapest else "")
        + f".{pair}{left}{''.join(f' {note[0].upper()}{note[1:]}.' for note in found.notes)}"
    )


def evaluation_tables(found: Evaluation) -> Iterator[str]:
    """Areas and savings, two errors and slices; without costs qualities alone."""
    figures = found.figures
    if "quality.router" in figures:
        yield "Mean quality where the model is asked that is expected to answer best, whatever it costs:"
        ways = ["router", "best model", "random", "oracle"]
        yield table(["", "quality"], [[way, shown(figures[f"quality.{way}"])] for way in ways])
        yield from _shares(figures)
        return
    ways = [way for way in WAYS if f"aiq.{way}" in figures]
    rows = []
    for way in ways:
        gain = figures.get(f"gain.{way}")
        cells = [shown(figures[f"aiq.{way}"]), _points(gain) if gain else ""]
        rows.append([way, *cells, *(shown(figures.get(f"saving.{way}.{part:g}"), share=True) for part in PARTS)])
    heads = [f"saved at {100 * part:.0f} %" for part in PARTS]
    yield (
        "AIQ, its difference to zero's in points, and the saving at a part of the best single model's quality, read "
        "off the test's own curve, which is optimistic:"
    )
    yield table(["", "AIQ", "− zero", *heads], rows)
    yield "Deployed, the threshold from validation: saving / quality kept on the test, in % of the best single model's:"
    yield table(
        ["", *(f"for {100 * part:.0f} %" for part in PARTS)],
        [
            [way, *(_deployed(figures, way, part) for part in PARTS)]
            for way in DEPLOYABLE
            if f"deployed.{way}.1.saving" in figures
        ],
    )
    yield from _shares(figures)
    yield "The two errors, of the router as it is deployed for 98 %, and of what it replaces:"
    names = ("too low", "quality lost", "too high", "wasted share", "accuracy")
    yield table(
        ["", "sent too low, %", "quality lost, points", "sent too high, %", "wasted, % of cost", "right, %"],
        [
            [way, *(shown(figures.get(f"errors.{way}.{name}"), share=True) for name in names)]
            for way in ("router", "best model")
        ],
    )
    yield "The same by slice:"
    large = sorted(found.slices.items(), key=lambda each: each[0])[:LONG_SLICES]
    yield table(
        ["slice", "prompts", "sent too low, %", "sent too high, %", "right, %"],
        [
            [name, f"{one['n'].mean:,.0f}", *(f"{100 * one[what].mean:.1f}" for what in ("low", "high", "accuracy"))]
            for name, one in large
        ],
    )


def _shares(figures: dict[str, ys.Mean]) -> Iterator[str]:
    if "apgr" in figures:
        yield "All sources together: " + ", ".join(
            f"{label} {shown(figures[name], share=name != 'apgr')}"
            for name, label in (("apgr", "APGR"), ("cpt50", "CPT(50)"), ("cpt80", "CPT(80)"))
        )


def targets(found: Bench) -> list[Target]:
    """Each thing to beat, for every set that can tell."""
    met: list[Target] = []
    for each in found.sets:
        for source in each.sources:
            bar = PUBLISHED.get(source.source)
            if bar and len(source.figures) == 3:
                apgr, half, most = (source.figures[name].mean for name in ("apgr", "cpt50", "cpt80"))
                met.append(
                    Target(
                        f"{each.name}, {source.source}: APGR / CPT(50) / CPT(80)",
                        f"≥ {bar[0]:.2f} / ≤ {100 * bar[1]:.0f} % / ≤ {100 * bar[2]:.0f} %, ≤ {bar[3]:,} rows",
                        f"{apgr:.3f} / {100 * half:.1f} % / {100 * most:.1f} %, {source.trained:,} rows",
                        apgr >= bar[0] and half <= bar[1] and most <= bar[2] and source.trained <= bar[3],
                    )
                )
        met += _saved(each)
        for way in ("router", "with agreement"):
            gains = [one.gains[way] for one in each.harm if way in one.gains]
            if gains:
                mean, worst = ys.mean_of(gains), min(gains)
                met.append(
                    Target(
                        f"{each.name}: do no harm, {way}, {len(gains)} unseen sources",
                        f"AIQ − zero ≥ {HARM} on each",
                        f"the worst {worst:+.4f}, mean {mean.mean:+.4f} ± {mean.error or 0:.4f} over sources",
                        # A mean would let the sources that gain pay for those that are harmed.
                        worst >= HARM,
                    )
                )
        if each.stability:
            least = min(each.stability.values())
            met.append(
                Target(f"{each.name}: same model after small changes", f"≥ {SAME}", f"{least:.3f}", least >= SAME)
            )
        if each.speed:
            fast = each.speed
            met.append(
                Target(
                    f"{each.name}: one decision",
                    f"p50 ≤ {P50_MS} ms, p99 ≤ {P99_MS:g} ms",
                    f"{fast.p50_ms:.2f} ms, {fast.p99_ms:.2f} ms",
                    fast.p50_ms <= P50_MS and fast.p99_ms <= P99_MS,
                )
            )
    return met


def _saved(each: SetResult) -> Iterator[Target]:
    figures = each.evaluation.figures
    saving, quality = (figures.get(f"deployed.agreement.0.99.{name}") for name in ("saving", "quality"))
    if saving and quality:
        yield Target(
            f"{each.name}: deployed saving, two cheap models and a strong one",
            f"≥ {100 * SAVED_DEPLOYED:.0f} % at ≥ 99 % quality",
            f"{shown(saving, share=True)} % at {shown(quality, share=True)} %",
            saving.mean >= SAVED_DEPLOYED and quality.mean >= 0.99,
        )
    for kept in each.kept if each.evaluation.seeds[0].cheapest else ():  # without costs a saving is one of calls
        if kept.kind == "agreement" and kept.n == 1_000 and kept.alpha == 0.02:
            yield Target(
                f"{each.name}: certified saving at α = 2 points, n = 1,000",
                f"≥ {100 * SAVED_CERTIFIED:.0f} %, violations ≤ {100 * kept.delta:.0f} %",
                f"{100 * kept.saving.mean:.1f} %, violations {100 * kept.violated:.1f} %",
                kept.saving.mean >= SAVED_CERTIFIED and kept.violated <= kept.delta,
            )
    if each.kept:
        worst = max(each.kept, key=lambda kept: kept.violated)
        yield Target(
            f"{each.name}: promises kept, the worst of {len(each.kept)} rows",
            f"violations ≤ {100 * worst.delta:.0f} %",
            f"{100 * worst.violated:.1f} % (n = {worst.n:,}, α = {100 * worst.alpha:g} points)",
            worst.violated <= worst.delta,
        )


# ------------------------------------------------------------------------------------------------ forms


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    return "\n".join(f"| {' | '.join(plain(cell).replace('|', '/') for cell in line)} |" for line in lines)


def plain(text: str) -> str:
    """Names come from elsewhere: none ends a line, or moves a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def shown(mean: ys.Mean | None, *, share: bool = False) -> str:
    """ "" for what is not known; a share in per cent."""
    if mean is None:
        return ""
    scale, digits = (100, 1) if share else (1, 4)
    error = "" if mean.error is None else f" ± {scale * mean.error:.{digits}f}"
    return f"{scale * mean.mean:.{digits}f}{error}"


def _draws(one: trials.Kept) -> list[str]:
    figures = ((one.saving.mean, 1), (one.loss.mean, 2), (one.violated, 1), (one.violated_whole, 1))
    return [f"{100 * value:.{digits}f}" for value, digits in figures]


def _points(mean: ys.Mean) -> str:
    return f"{100 * mean.mean:+.2f}" + ("" if mean.error is None else f" ± {100 * mean.error:.2f}")


def _deployed(figures: dict[str, ys.Mean], way: str, part: float) -> str:
    """A part of a quality of nothing is none."""
    saving, quality = (figures.get(f"deployed.{way}.{part:g}.{name}") for name in ("saving", "quality"))
    return f"{shown(saving, share=True)} / {shown(quality, share=True)}"


def renewed(page: str, figures: str) -> str:
    """The page with what stands between its two marks replaced. Raises ValueError for a page without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no lines {BEGIN!r} and {END!r} for the figures to go between")
    return f"{before}{BEGIN}\n\n{figures}\n\n{END}{after}"
