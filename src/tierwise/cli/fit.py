"""`tierwise fit`: trains an estimator on outcomes and saves it. To serve it: `tierwise promote`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tierwise.cli.common import (
    NO,
    ConfigOption,
    JsonOption,
    StateOption,
    clean,
    config_path,
    one_thread,
    say,
    show,
    show_table,
    state_folder,
    stop,
)

if TYPE_CHECKING:
    from tierwise.study.training.fit import FitReport


def fit(
    data: Annotated[
        list[Path] | None, typer.Argument(help="Folders or files in the outcome format; none: the journal.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The model whose gain over the others is learned; else the best one.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of artefacts; else STATE/learned/artefacts.")] = None,
    seed: Annotated[int, typer.Option(help="Of the rows that are left out to choose settings and to measure.")] = 0,
    state: StateOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Train an estimator: for each prompt and model the chance of an adequate answer, its length and its time."""
    one_thread()
    from tierwise.cli.study import tables_of_journal
    from tierwise.config.learned import Learned
    from tierwise.study.data.outcomes import load_labelled
    from tierwise.study.training.artefact import save
    from tierwise.study.training.believed import fit_believed

    # Without a configuration and with --out and DATA there need not be a state folder.
    folder = None if data and out else state_folder(state, config_path(config))
    if not data:
        assert folder is not None  # noqa: S101
        data = [Path(tables_of_journal(folder).files[0])]
    table, labels = load_labelled(data)
    fitted = fit_believed(
        table, labels, reference=reference, seed=seed, progress=lambda line: print(clean(line), file=sys.stderr)
    )
    target = out or Learned(folder or Path()).artefacts
    try:
        id = save(fitted, target)
    except OSError as error:
        stop(f"{target} cannot be written: {error.strerror or error}", NO)
    if json:
        show({"id": id, "folder": str(target / id), "data_hash": fitted.data_hash, "report": fitted.report}, True)
        return
    _show(fitted.report)
    say(f"\nWritten: {target / id}; to serve it: tierwise promote --estimator {id}")


def _show(report: FitReport) -> None:
    from rich.table import Table
    from rich.text import Text

    say(f"{report.rows:,} prompts, {report.workloads} workloads, {report.grams:,} words and pairs of words")
    say(f"Reference {clean(report.reference)}. On {report.left_out:,} prompts that were left out, and for their mean:")
    show("")
    table = Table(box=None, header_style="bold")
    for name in ("model", "outcomes", "paired", "quality", "Brier", "log loss", "AUROC", "APGR", "off by"):
        table.add_column(name, justify="left" if name == "model" else "right", overflow="fold")
    for each in report.models:
        found = each.quality
        table.add_row(
            Text(clean(each.model)),
            f"{each.n:,}",
            f"{each.paired:,}",
            f"{each.mean:.3f}",
            f"{found.brier:.3f} ({found.base_brier:.3f})",
            f"{found.log_loss:.3f} ({found.base_log_loss:.3f})",
            "" if found.auroc is None else f"{found.auroc:.3f}",
            "" if each.apgr is None else f"{each.apgr:.3f}",
            f"{found.calibration_error:.3f}",
        )
    show_table(table)
    if report.warnings:
        show("\nTo know:")
    for warning in report.warnings:
        say(f"- {clean(warning)}")
