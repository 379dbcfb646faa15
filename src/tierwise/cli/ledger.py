"""`tierwise ledger audit | reconcile | export | backup`: what a person asks of the ledger's file in the state folder.

None writes it: what `reconcile --post` posts is left for the gateway, which does so at once or when it starts.
"""

from __future__ import annotations

import csv
import json as plain_json
import re
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tierwise.cli.common import ConfigOption, JsonOption, StateOption, clean, config_path, state_folder
from tierwise.core.errors import RequestError

if TYPE_CHECKING:
    from tierwise.config import LedgerReports

app = typer.Typer(help="Audit, export, back up or reconcile the ledger.", no_args_is_help=True)

# What a spreadsheet takes for a formula when it stands first in a cell.
FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")


@app.command()
def audit(state: StateOption = None, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Check every sum, every hold and the chain of hashes. Exit code 1 with each fault on a line."""
    reports = _reports(state, config)
    faults = reports.audit()
    if json:
        print(plain_json.dumps({"ok": not faults, "ledger": str(reports.path), "faults": list(faults)}, indent=2))
    else:
        print("\n".join(faults) if faults else f"{reports.path}: sound")
    if faults:
        sys.exit(1)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="The copy; must not exist yet.")],
    state: StateOption = None,
    config: ConfigOption = None,
) -> None:
    """Copy the ledger as it is now, also while a gateway writes it."""
    reports = _reports(state, config)
    reports.backup(file)
    print(f"{file}: a copy of {reports.path}")


@app.command()
def export(
    format: Annotated[Literal["jsonl", "csv"], typer.Option(help="jsonl or csv.")] = "jsonl",
    since: Annotated[str, typer.Option(help="Only what was posted since this day (UTC), as 2026-11-03.")] = "",
    state: StateOption = None,
    config: ConfigOption = None,
) -> None:
    """Print every entry of the ledger, in the order they were posted."""
    since_s = _day(since, "--since") * 86_400 if since else 0
    rows = _reports(state, config).entries(since_s)
    if format == "jsonl":
        for row in rows:
            print(plain_json.dumps(row, ensure_ascii=False))
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    for number, row in enumerate(rows):
        if not number:
            writer.writerow(row)
        writer.writerow([cell(value) for value in row.values()])


@app.command()
def reconcile(
    file: Annotated[Path, typer.Argument(help="The provider's usage or cost export, JSON or CSV.")],
    provider: Annotated[str, typer.Option(help="Its name in the configuration: what its models begin with.")],
    period: Annotated[str, typer.Option(help="A month or a day (UTC): 2026-11, or 2026-11-03.")],
    post: Annotated[bool, typer.Option("--post", help="Have the gateway write what differs into the ledger.")] = False,
    state: StateOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Compare a provider's bill with the ledger, by day and model. Exit code 1 when they differ and stay so."""
    first, last = _period(period)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror}", status=400) from None
    try:
        found = _reports(state, config).reconcile(data, provider, first, last, post=post)
    except ValueError as error:
        raise RequestError(f"{file}: {error}", status=400) from None
    if json:
        print(plain_json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _show(found)
    if found["variances"] and not post:
        sys.exit(1)


# ------------------------------------------------------------------------------------------------ helpers


def _reports(state: Path | None, config: Path | None) -> LedgerReports:
    from tierwise.config import open_reports

    return open_reports(state_folder(state, config_path(config)))


def cell(value: object) -> object:
    """A text as a spreadsheet shows it, and never as one that it works out."""
    if isinstance(value, str):
        return f"'{value}" if FORMULA.match(value) else value
    return "" if value is None else value


def _day(text: str, what: str) -> int:
    try:
        return date.fromisoformat(text).toordinal() - date(1970, 1, 1).toordinal()
    except ValueError:
        raise RequestError(f"{what}: {text[:40]!r} is no day; write it as 2026-11-03", status=400) from None


def _period(text: str) -> tuple[int, int]:
    """(first day, last day), since 1970."""
    if not re.fullmatch(r"\d{4}-\d{2}", text):
        day = _day(text, "--period")
        return day, day
    first = _day(f"{text}-01", "--period")
    start = datetime.fromtimestamp(first * 86_400, UTC).date()
    after = (start.replace(day=28) + timedelta(days=4)).replace(day=1)
    return first, first + (after - start).days - 1


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    has_money = found["total"]["theirs_nano"] is not None
    table = Table(box=None, header_style="bold")
    columns = ("ours USD", "theirs USD", "difference USD", "share") if has_money else ("our tokens", "their tokens")
    for name in ("day", "model", *columns):
        table.add_column(name, justify="left" if name in ("day", "model") else "right", overflow="fold")
    for row in found["rows"]:
        values = _amounts(row) if has_money else _tokens(row)
        table.add_row(row["day"], Text(clean(row["model"] or "(all models)")), *values)
    if has_money:
        table.add_row("total", "", *_amounts(found["total"]), style="bold")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for line in _remarks(found, has_money):
        print(line)


def _amounts(row: dict[str, Any]) -> list[str]:
    """To the nano-dollar."""
    nine = [f"{row[name] / 10**9:.9f}" if abs(row[name]) < 1 << 50 else row[name.replace("nano", "usd")]
            for name in ("ours_nano", "theirs_nano", "difference_nano")]  # fmt: skip
    share = row["share"]
    return [*nine, "" if share is None else f"{share:+.2%}"]


def _tokens(row: dict[str, Any]) -> list[str]:
    ours, theirs = row["our_tokens"], row["their_tokens"] or {"input": 0, "output": 0}
    return [f"{each['input']:,} in {each['output']:,} out" for each in (ours, theirs)]


def _remarks(found: dict[str, Any], has_money: bool) -> list[str]:
    from tierwise.core.words import counted

    lines = [""]
    if not found["rows"]:
        lines.append("Neither the bill nor the ledger has anything of this provider in this period.")
    if found["unknown_models"]:
        lines.append(f"Never called through this ledger: {', '.join(map(clean, found['unknown_models']))}")
    if found["missing_days"]:
        lines.append(f"The bill says nothing of {', '.join(found['missing_days'])}, when calls were made.")
    if found["lines_outside_the_period"]:
        lines.append(f"Of another period: {counted(found['lines_outside_the_period'], 'line')} of the bill.")
    if found["open_calls"]:
        lines.append(f"Not settled yet: {counted(found['open_calls'], 'call')} of this period.")
    if not has_money and found["rows"]:
        lines.append("The bill tells tokens and no money; only costs can be posted.")
    elif "posted" in found:
        lines += _posted(found)
    elif found["variances"]:
        lines.append(f"{counted(found['variances'], 'difference')}; --post writes what differs into the ledger.")
    elif found["rows"]:
        lines.append("The bill and the ledger agree to the nano-dollar.")
    if found["waiting"] and "posted" not in found:
        lines.append(f"Posted before, and waiting for the gateway: {counted(found['waiting'], 'variance entry')}.")
    return lines


def _posted(found: dict[str, Any]) -> list[str]:
    """What became of a posting, which the gateway carries out."""
    from tierwise.core.words import counted

    account, waiting = f"variance/{found['provider']}", found["waiting"]
    written = max(found["posted"] - waiting, 0)
    lines = []
    if written or not waiting:
        lines.append(f"Posted {counted(written, 'variance entry')} to {account}.")
    if waiting:
        lines.append(f"Noted for {account}, and not written yet: {counted(waiting, 'variance entry')}.")
        lines.append("The gateway does that when it starts; one that runs, as soon as its ledger can be written.")
    return lines
