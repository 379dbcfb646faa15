"""`tierwise outcomes` and `tierwise export tuning`: from the journal to what can be learnt from. Each calls `study`."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tierwise.cli.common import (
    NO,
    WRONG,
    ConfigOption,
    JsonOption,
    StateOption,
    clean,
    config_path,
    say,
    show,
    show_table,
    state_folder,
    stop,
)

if TYPE_CHECKING:
    from tierwise.core.ports import Journal, Story
    from tierwise.core.promise import Judges, Promise
    from tierwise.study.data.holdings import Report
    from tierwise.study.data.intake import IntakeReport
    from tierwise.study.data.tuning import TuningReport
    from tierwise.study.table import Table

export = typer.Typer(help="Write what others can learn from.", no_args_is_help=True)

SinceOption = Annotated[str, typer.Option(help="Requests since this day (UTC), as 2026-11-03; else all.")]
UntilOption = Annotated[str, typer.Option(help="Requests before this day (UTC); else until now.")]
FOREVER_S = 1 << 40


def add_to(app: typer.Typer) -> None:
    app.command("outcomes")(outcomes)
    app.command("calibrate")(calibrate)
    app.add_typer(export, name="export")


def outcomes(
    data: Annotated[
        list[Path] | None, typer.Argument(help="Folders or files in the outcome format; none: the journal.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the journal's tables; else STATE/outcomes.")] = None,
    since: SinceOption = "",
    until: UntilOption = "",
    state: StateOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Make outcome tables of the journal, or look at some that are there: what they hold and what is missing."""
    from tierwise.study.data.outcomes import load

    if data and (out or since or until):
        stop("--out, --since and --until are about the journal; leave them out to look at files", WRONG)
    taken: IntakeReport | None = None
    if not data:
        taken = tables_of_journal(state_folder(state, config_path(config)), out, since, until)
        if not json:
            _show_intake(taken)
        data = [Path(taken.files[0])]
    _, report = load(data)
    if json:
        show({"intake": taken, "report": report}, True)
    else:
        _show_report(report)


def tables_of_journal(folder: Path, out: Path | None = None, since: str = "", until: str = "") -> IntakeReport:
    """Writes the journal of this state folder as outcome tables, in its folder `outcomes` when none is named."""
    from tierwise.study.data.intake import Intake

    with Intake(out or folder / "outcomes") as intake:
        strays = asyncio.run(_each(folder, (_second(since, 0), _second(until, FOREVER_S)), intake.add))
        if not intake.answered:
            days = " and ".join(f"--{word} {day}" for word, day in (("since", since), ("until", until)) if day)
            some = "no answered request" if intake.episodes else "no request"
            stop(f"the journal in {folder} has {some}{days and f' of {days}'}, so no tables are written", NO)
        return intake.finish(strays)


def calibrate(
    data: Annotated[list[Path], typer.Argument(help="Folders or files in the outcome format.")],
    model_reference: Annotated[str, typer.Option(help="The model against which nothing may be lost.")],
    name: Annotated[str, typer.Option(help="Of the promise, as plans call it.")],
    alpha: Annotated[
        float, typer.Option(help="The most quality that a request may lose on average, 0.02 is 2 points.")
    ] = 0.02,
    confidence: Annotated[float, typer.Option(help="That it loses no more, of each workload by itself.")] = 0.9,
    kind: Annotated[
        Literal["agreement", "choice"] | None,
        typer.Option(help="Two cheap models say the same, or one is expected to do; else agreement where it can be."),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="May answer in its place; may be repeated; else all that cost less.")
    ] = None,
    estimator: Annotated[
        str | None, typer.Option(help="Id of an artefact; else one is fitted on a quarter of the data.")
    ] = None,
    trained_on: Annotated[
        list[Path] | None, typer.Option(help="With --estimator: the data that it was fitted on.")
    ] = None,
    together: Annotated[bool, typer.Option(help="One promise over all workloads, in the data's mixture.")] = False,
    out: Annotated[Path | None, typer.Option(help="File to write; else STATE/learned/NAME.promise.json.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split and the order of the rows.")] = 0,
    state: StateOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Make a promise about quality from labelled outcomes, or say what is missing. Exit code 1: none is certified."""
    import time

    import msgspec

    from tierwise.config.learned import Learned, written
    from tierwise.core.keys import NAME, NAME_RULE
    from tierwise.study.promises.calibrate import calibrate as certify
    from tierwise.study.promises.calibrate import fitting
    from tierwise.study.promises.prepared import prepared

    if not NAME.fullmatch(name):
        stop(f"--name {name[:100]!r}: a promise's name {NAME_RULE}", WRONG)
    if not 0.0 < alpha < 1.0:
        stop(f"--alpha {alpha:g}: above 0 and below 1, as 0.02 for 2 points of quality", WRONG)
    if not 0.0 < confidence < 1.0:
        stop(f"--confidence {confidence:g}: above 0 and below 1, as 0.9 for 90 %", WRONG)
    home = Learned(state_folder(state, config_path(config)))
    try:
        given = prepared(data, model_reference, home.artefacts, estimator, trained_on, seed=seed)
        chosen, why = fitting(given.table, given.trained, reference=model_reference, models=model)
        promise = certify(
            given.table,
            given.trained,
            name=name,
            kind=kind or chosen,
            alpha=alpha,
            delta=1.0 - confidence,
            reference=model_reference,
            models=model,
            seen=given.seen,
            seed=seed,
            by_workload=not together,
            made_s=int(time.time()),
            judges=given.judges,
            left_out=given.left_out,
        )
    except ValueError as error:
        stop(str(error), WRONG)
    except OSError as error:
        stop(f"{home.artefacts} cannot be written: {error.strerror or error}", NO)
    target = out or home.folder / f"{name}.promise.json"
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    written(target, msgspec.json.format(msgspec.json.encode(promise), indent=1))
    if json:
        show(promise, True)
    else:
        if why and kind is None:
            say(f"A promise of kind {chosen}, for {clean(why)}.")
        _show_promise(promise, given.table, target)
    if not any(each.status == "certified" for each in promise.segments):
        sys.exit(NO)


@export.command("tuning")
def tuning(
    file: Annotated[Path, typer.Argument(help="The JSON lines to write; must not exist yet.")],
    consent: Annotated[
        list[str] | None, typer.Option(help="Who agreed: key:NAME, user:NAME, team:NAME or organisation:NAME.")
    ] = None,
    format: Annotated[
        Literal["openai", "plain"], typer.Option(help="openai (chat messages) or plain (prompt and reply).")
    ] = "openai",
    since: SinceOption = "",
    until: UntilOption = "",
    state: StateOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Examples for fine-tuning: what a cheaper model could not answer, with the dearer one's reply. Redacted."""
    from tierwise.study.data.tuning import PLACES, Tuning

    if file.exists():
        stop(f"{file} is there already; name another file", NO)
    for each in consent or ():
        if each.partition(":")[0] not in PLACES or not each.partition(":")[2]:
            stop(f"--consent {each}: say who as key:NAME, user:NAME, team:NAME or organisation:NAME", WRONG)
    folder = state_folder(state, config_path(config))
    made = Tuning(tuple(consent or ()), format)
    # For its owner alone, and there only when it is whole.
    try:
        handle, beside = tempfile.mkstemp(prefix=".tierwise-", dir=file.parent)
    except OSError as error:
        stop(f"{file} cannot be written: {error.strerror}", NO)
    try:
        with os.fdopen(handle, "wb") as lines:
            times = (_second(since, 0), _second(until, FOREVER_S))
            asyncio.run(_each(folder, times, lambda story: lines.writelines(made.lines(story))))
        report = made.report()
        if report.examples:
            Path(beside).replace(file)
    finally:
        Path(beside).unlink(missing_ok=True)
    show(report, True) if json else _show_tuning(file, report)
    if not report.examples:
        sys.exit(NO)


async def _each(folder: Path, times: tuple[int, int], take: Callable[[Story], object]) -> int:
    """Hands on every story of the journal; gives how often something was said of an episode that is not there."""
    from tierwise.config import open_journal

    journal: Journal | None = open_journal(folder)
    if journal is None:
        stop(f"there is no journal in {folder}; --state names another folder", NO)
    try:
        async for piece in journal.stories(*times):
            for story in piece:
                take(story)
        if journal.last_error:
            print(f"tierwise: {journal.last_error}", file=sys.stderr)
        return await journal.stray_feedback(*times)
    finally:
        await journal.close()


def _second(day: str, otherwise: int) -> int:
    if not day:
        return otherwise
    try:
        return int(datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError:
        stop(f"{day!r} is not a day; write it as 2026-11-03", WRONG)


def _show_intake(taken: IntakeReport) -> None:
    say(f"{taken.episodes:,} episodes, {taken.answered:,} answered, {taken.several_models:,} by several models")
    for why, many in taken.skipped:
        say(f"left out: {many:,} {why}", "  ")
    say(f"{taken.labelled:,} of {taken.replies:,} replies have labels")
    for source, many in taken.sources:
        say(f"{many:,} from {clean(source)}", "  ")
    if taken.denied:
        why = "the dice had chosen to explore, and its budget said no"
        say(f"left out: the odds of {taken.denied:,} requests; {why}", "  ")
    if taken.late:
        say(f"{taken.late:,} labels came more than a day after the request", "  ")
    if taken.stray_feedback:
        say(f"{taken.stray_feedback:,} notes of feedback are about no answered request that is here", "  ")
    for key, factor in taken.capped:
        say(f"labels of the key {clean(key)} weigh {factor:.2f} of what they would: it gave too many", "  ")
    say(f"Written: {', '.join(taken.files)}")
    show("")


def _show_report(report: Report) -> None:
    from rich.table import Table
    from rich.text import Text

    say(f"{report.prompts:,} prompts, {report.outcomes:,} outcomes, {report.kept:,} prompts to learn from")
    say(f"data hash {report.hash}, {report.workload_count} workloads, text of {report.text_share:.0%}")
    show("")
    columns = ("model", "outcomes", "labelled", "quality", "cost", "tokens", "latency", "odds", "answer")
    table = Table(box=None, header_style="bold")
    for name in columns:
        table.add_column(name, justify="left" if name == "model" else "right", overflow="fold")
    for each in report.models:
        shares = (each.cost_share, each.tokens_share, each.latency_share, each.odds_share, each.answers_share)
        quality = "" if each.quality is None else f"{each.quality:.3f}"
        known = (f"{share:.0%}" for share in shares)
        table.add_row(Text(clean(each.model)), f"{each.rows:,}", f"{each.labelled:,}", quality, *known)
    show_table(table)
    if report.pairs:
        show("\nPrompts that both models answered, with labels:")
        for pair in report.pairs[:10]:
            say(f"{pair.rows:,}  {clean(pair.one)} and {clean(pair.other)}", "  ")
    if report.sources:
        show("\nLabels:")
    for source in report.sources:
        bias = "" if source.length_correlation is None else f", length correlation {source.length_correlation:+.2f}"
        figures = f"weight {source.weight:,.1f}, mean {source.score:.2f}{bias}"
        say(f"{source.labels:,} from {clean(source.source)}, {figures}", "  ")
    if report.notes:
        show("\nTo know:")
    for note in report.notes:
        say(f"- {clean(note)}")


def _show_tuning(file: Path, report: TuningReport) -> None:
    from tierwise.core.words import counted
    from tierwise.study.data.tuning import WHY

    if report.examples:
        say(f"{file}: {counted(report.examples, 'example')}, {counted(report.redacted, 'place')} redacted")
    else:
        say(f"{file} is not written, for there are no {'examples' if report.left_out else 'requests'}")
    for why, many in report.left_out:
        say(f"left out: {many:,}, {WHY[why]}", "  ")


def _wrong(judges: Judges) -> str:
    bad, good = judges.wrong_bad, judges.wrong_good
    if bad == good:
        return f"{100 * bad:g} times in 100"
    return f"{100 * bad:g} times in 100 where they say bad, {100 * good:g} where they say good"


def _show_promise(promise: Promise, table: Table, file: Path) -> None:
    import numpy as np

    from tierwise.study.promises.calibrate import unusable

    without = unusable(table, promise.reference)
    if without:
        say(f"{without:,} of {len(table.ids):,} requests have no sound outcome of {promise.reference} and say nothing")
    for key in promise.left_out:
        say(f"labels of the key {clean(key)} are left out: they do not fit what all others say")
    if promise.judges:
        say("A loss is a loss as these labels see it:")
        for judges in promise.judges:
            say(f"{judges.labels:,} from {clean(judges.kind)}, taken to be wrong {_wrong(judges)}", "  ")
    else:
        say("The data do not say who judged: their qualities are taken as they stand.")
    if np.isnan(table.cost_usd).all(axis=0).any():
        say("Of some models no cost is known; where they answer, what is saved is counted in calls of the reference.")
    for each in promise.segments:
        where = clean(each.workload) or ("everything else" if len(promise.segments) > 1 else "all workloads")
        say(f"{where}: {each.status}, {each.n:,} labelled requests tested")
        if each.unlabelled:
            say(f"{each.unlabelled:,} more are left out: of a cheaper model's reply there nothing sound is known", "  ")
        if each.n and (each.share or each.bound < 1.0):  # else nothing was measured
            say(f"loss {each.loss:.2%}, at most {each.bound:.2%}; share {each.share:.1%}, saved {each.saved:.1%}", "  ")
        if each.models:
            say(f"answered by {' and '.join(map(clean, each.models))}, threshold {each.threshold:g}", "  ")
        if each.why:
            say(clean(each.why), "  ")
        if each.missing:
            say(f"about {each.missing:,} more labelled requests are missing", "  ")
    serves = any(each.status == "certified" for each in promise.segments)
    how = f"tierwise promote --estimator {promise.estimator} --promise {file}"
    say(
        f"written to {file}; "
        + (f"to serve: {how}" if serves else "nothing in it is certified, so it would save nothing")
    )
