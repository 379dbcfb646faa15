"""`tierwise evaluate | simulate | replay | bench routing`: what routing is worth. Each calls `study` and prints."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierwise.cli.common import (
    NO,
    WRONG,
    ConfigOption,
    JsonOption,
    StateOption,
    config_path,
    load_setup,
    say,
    show,
    state_folder,
    stop,
)

if TYPE_CHECKING:
    from tierwise.core.ports import Record, Story
    from tierwise.study.judging.offpolicy import Value
    from tierwise.study.judging.replay import Replay
    from tierwise.study.report.bench import Bench

bench_app = typer.Typer(help="Measure what routing is worth.", no_args_is_help=True)

DataArgument = Annotated[list[Path], typer.Argument(help="Folders or files in the outcome format.")]
SeedsOption = Annotated[int, typer.Option(min=1, max=1_000, help="How often to split into training and test.")]


def add_to(app: typer.Typer) -> None:
    """These commands, below the application's own."""
    app.command("evaluate")(evaluate)
    app.command("simulate")(simulate)
    app.command("replay")(replay)
    app.add_typer(bench_app, name="bench")


def evaluate(data: DataArgument, seeds: SeedsOption = 5, json: JsonOption = False) -> None:
    """Train a router on a part of these outcomes and measure it on the rest, beside the baselines."""
    from tierwise.study.data.outcomes import load
    from tierwise.study.judging.evaluate import evaluate as evaluated
    from tierwise.study.report import page
    from tierwise.study.report.bench import train

    table, _ = load(data)
    found = evaluated(table, train, seeds=seeds, progress=_progress)
    if json:
        show(_plain(found), True)
        return
    say(page.described(found))
    for part in page.evaluation_tables(found):
        show("\n" + part)


def simulate(
    data: DataArgument,
    config: ConfigOption = None,
    policy: Annotated[str, typer.Option(help="One of the configuration's policies.")] = "default",
    seed: Annotated[int, typer.Option(help="Of the dice, for a policy that explores.")] = 0,
    json: JsonOption = False,
) -> None:
    """Play a configuration's policy over outcomes that are known, beside what the same money buys otherwise."""
    from tierwise.study.data.outcomes import load
    from tierwise.study.report.simulate import lines
    from tierwise.study.report.simulate import simulate as simulated

    setup = load_setup(config_path(config))
    if policy not in setup.snapshot.policies:
        stop(f"there is no policy {policy!r}; there are {', '.join(setup.snapshot.policies)}", WRONG)
    table, _ = load(data)
    try:
        found = simulated(setup.snapshot, table, policy=policy, seed=seed)
    except ValueError as error:
        stop(str(error), NO)
    if json:
        show(found, True)
        return
    for line in lines(found):
        show(line + "\n")


def replay(
    config: ConfigOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Tell the journal's requests again under this configuration: which would go another way, and at what worth."""
    from tierwise.study.judging.replay import replay as replayed

    path = config_path(config)
    setup = load_setup(path)
    records, labels = asyncio.run(_journal(state_folder(state, path)))
    if not records:
        stop("the journal holds no request yet; serve some first", NO)
    found = replayed(setup.snapshot, records, labels)
    if json:
        show(found, True)
    else:
        _show_replay(found)


@bench_app.command("routing")
def routing(
    data: Annotated[
        Path | None, typer.Option(envvar="TIERWISE_DATA", help="A folder in the outcome format; else TIERWISE_DATA.")
    ] = None,
    seeds: SeedsOption = 5,
    write: Annotated[Path | None, typer.Option(help="A page whose figures to renew, and the plots beside it.")] = None,
    json: JsonOption = False,
) -> None:
    """Every yardstick of routing for every set of a folder: curves, savings, promises, unseen sources, time."""
    from tierwise.study.report import page
    from tierwise.study.report.bench import bench

    if data is None:
        stop("name the folder of outcome tables with --data, or with TIERWISE_DATA", WRONG)
    if write is not None and not write.is_file():
        stop(f"{write} is not there; --write renews a page with the lines {page.BEGIN} and {page.END}", WRONG)
    made = _made(write) if write is not None else ""  # the code that runs is the code as it is now
    found = bench(data, seeds=seeds, workers=2, progress=_progress)
    if not found.sets:
        stop("no set carries an evaluation: " + "; ".join(found.left_out), NO)
    if json:
        show({**_plain(found), "targets": page.targets(found)}, True)
    else:
        show(page.text(found))
    if write is not None:
        _renew(write, found, made)


# ------------------------------------------------------------------------------------------------ helpers


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    """As JSON has it: arrays are lists, and what is no number is nothing."""
    import msgspec
    import numpy as np

    def other(each: Any) -> Any:
        if isinstance(each, np.ndarray | np.generic):
            return each.tolist()
        raise NotImplementedError(type(each).__name__)

    return msgspec.to_builtins(value, enc_hook=other, str_keys=True)


async def _journal(folder: Path) -> tuple[list[Record], dict[str, float]]:
    """Every record, and the quality of those that something was said of."""
    from tierwise.cli.study import FOREVER_S, _each
    from tierwise.study.data.labels import combined, weight

    records: list[Record] = []
    labels: dict[str, float] = {}

    def take(story: Story) -> None:
        records.append(story.record)
        quality, _ = combined((each.score, weight(each.source, each.score)) for each in story.feedback)
        if quality is not None:
            labels[story.record.episode.id] = quality

    await _each(folder, (0, FOREVER_S), take)
    return records, labels


def _show_replay(found: Replay) -> None:
    from tierwise.study.report import page

    left = f"; {found.left_out:,} left out, because they name their model" if found.left_out else ""
    share = 100 * found.changed / max(1, found.episodes)
    say(f"{found.episodes:,} requests under snapshot {found.snapshot}: {found.changed:,} change ({share:.1f} %){left}")
    if found.moves:
        rows = [[was or "nobody", now or "refused", f"{count:,}"] for was, now, count in found.moves]
        show("\n" + page.table(["was", "now", "requests"], rows) + "\n")
        say(f"Expected on them: {found.expected_cost_usd:+.6f} USD in all, {found.expected_quality:+.4f} quality each")
    for name, values, logged in (
        ("cost, USD a request", found.costs, found.logged_cost_usd),
        ("quality", found.qualities, found.logged_quality),
    ):
        if values and logged is not None:
            show("")
            say(f"From outcomes, {name} (it was {logged:.6g}):")
            for each in values:
                say(_estimate(each), "  ")
    for note in found.notes:
        say(note)


def _estimate(value: Value) -> str:
    if value.why:
        return f"{value.method}: {value.why}"
    return (
        f"{value.method}: {value.mean:.6g}, 95 % between {value.low:.6g} and {value.high:.6g} "
        f"({value.n:,} requests, worth {value.effective:.0f})"
    )


def _made(path: Path) -> str:
    """Where and when: the commit that the page's folder is at, and whether anything differs from it."""
    import platform
    import subprocess
    from datetime import UTC, datetime

    # Our own arguments, no shell.
    git = ["git", "-C", str(path.resolve().parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        commit = "unknown"
    return (
        f"Commit {commit}, {datetime.now(UTC):%d %B %Y}, {platform.machine()} {platform.system()}, "
        f"Python {platform.python_version()}. "
    )


def _renew(path: Path, found: Bench, made: str) -> None:
    """The page's figures, and the plots in a file of the same name."""
    from tierwise.study.report import page
    from tierwise.study.report.plots import svg

    try:
        figures = page.renewed(path.read_text(encoding="utf-8"), page.text(found, made))
    except ValueError as error:
        stop(f"{path}: {error}", WRONG)
    path.write_text(figures, encoding="utf-8")
    path.with_suffix(".svg").write_text(svg(found.sets), encoding="utf-8")
