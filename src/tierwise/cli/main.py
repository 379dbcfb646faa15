"""The command line: `tierwise serve | route | why | models | config check | config schema`. Heavy imports stay inside.

Exit codes: 0 done, 1 the answer is no (nothing can serve, no such decision), 2 the command or configuration is wrong.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierwise.cli import balance, evaluate, fit, learned, ledger, money, study
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
    show_table,
    state_folder,
    stop,
)

if TYPE_CHECKING:
    from tierwise.config import Setup
    from tierwise.core.episode import Decision, Episode
    from tierwise.core.explain import Explanation
    from tierwise.core.ports import Record

# In help: as a newcomer meets them, then what concerns money, then learning in the order of its use.
ORDER = (
    "serve route why models config",
    "key budget credit balance ledger",
    "outcomes fit calibrate plan promote rollback history drift replay simulate evaluate bench export",
)


LEAST_LETTERS = 8  # of a decision's id, where it is not whole


class _InOrder(typer.core.TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        """All of them; one that ORDER forgets comes last."""
        known = " ".join(ORDER).split()
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


app = typer.Typer(
    name="tierwise",
    cls=_InOrder,
    help="The cost control plane for LLM inference: each request to the cheapest model that is good enough.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("balance")(balance.balance)
app.add_typer(ledger.app, name="ledger")
money.add_to(app)
learned.add_to(app)
study.add_to(app)
app.command("fit")(fit.fit)
evaluate.add_to(app)
config_app = typer.Typer(help="Check a configuration file, or print its schema.", no_args_is_help=True)
app.add_typer(config_app, name="config")


def main() -> None:
    """The `tierwise` command. No traceback reaches a person for anything that is theirs to mend."""
    from tierwise.core.errors import ConfigError, RequestError, TierwiseError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show an arrow is no reason to stop
    if any("\udc80" <= letter <= "\udcff" for argument in sys.argv for letter in argument):
        stop("the arguments are not valid UTF-8; give a text through standard input with -", WRONG)
    try:
        app()
    except ConfigError as error:
        stop(str(error), WRONG)
    except RequestError as error:
        stop(error.message, WRONG if error.status == 400 else NO)
    except TierwiseError as error:
        stop(str(error), NO)
    except KeyboardInterrupt:
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        import tierwise

        show(f"tierwise {tierwise.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address to bind; else the file's, else 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="0 takes any free port; else the file's, else 4100.")] = None,
    state: StateOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the start-up facts as one line of JSON.")] = False,
) -> None:
    """Start the gateway, and serve until it is told to stop (SIGTERM drains, SIGHUP reloads)."""
    import msgspec

    from tierwise.server.startup import banner, facts, run

    path = config_path(config)
    setup = load_setup(path, host=host, port=port, state=state)

    def started(at: int) -> None:
        show(msgspec.json.encode(facts(setup, at)).decode() if json else banner(setup, at))

    def again() -> Any:
        from tierwise.config import reload

        return reload(path, os.environ, host=host, port=port, state=state)

    run(setup, path, again, started)


@app.command()
def route(
    text: Annotated[str, typer.Argument(help="The user's message; - reads it from standard input.")],
    config: ConfigOption = None,
    state: StateOption = None,
    model: Annotated[str, typer.Option(help="auto, auto:economy, a tier, provider/model, ...")] = "auto",
    system: Annotated[str, typer.Option(help="A system prompt.")] = "",
    max_tokens: Annotated[int | None, typer.Option(help="The reply's ceiling.")] = None,
    criticality: Annotated[str | None, typer.Option(help="user, internal or critical.")] = None,
    latency: Annotated[str | None, typer.Option(help="interactive, background or batch.")] = None,
    json: JsonOption = False,
) -> None:
    """Say which model would answer, why, and what every candidate would cost. Calls nothing."""
    from tierwise.core.explain import explain

    text = sys.stdin.read() if text == "-" else text
    if not text.strip():
        stop("the message is empty; give its text, or - to read it from standard input", WRONG)
    setup = load_setup(config_path(config), state=state, port=0)
    episode, decision = _decided(setup, text, model, system, max_tokens, criticality, latency)
    found = explain(setup.snapshot, episode, decision)
    if json:
        show({**_plain(found), "features": episode.features}, True)
    else:
        _show(found)
    if not found.model:
        sys.exit(NO)


@app.command()
def why(
    decision_id: Annotated[str, typer.Argument(help="From the x-tierwise-decision header, or how it begins.")],
    config: ConfigOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Explain a decision of the past: reasons, candidates, cost, and what would have changed it."""
    from tierwise.config import open_journal

    folder = state_folder(state, config_path(config))
    found = asyncio.run(_past(open_journal, folder, decision_id))
    if found is None:
        where = f"the id is in the header x-tierwise-decision of a reply, and its journal in --state (now {folder})"
        short = f"; of an id, give {LEAST_LETTERS} letters or more" if len(decision_id) < LEAST_LETTERS else ""
        stop(f"there is no decision {decision_id[:100]!r} here: {where}{short}", NO)
    record, explanation = found
    if json:
        show({"record": record, "explanation": _plain(explanation) if explanation else None}, True)
        return
    if explanation is not None:
        _show(explanation)
    for line in _ending(record):
        say(line)


@app.command()
def models(config: ConfigOption = None, json: JsonOption = False) -> None:
    """List the models, their tiers, prices and abilities, and the names a caller may use."""
    from tierwise.core.names import offered

    setup = load_setup(config_path(config), port=0)
    rows = [_model_row(setup, id) for id in setup.snapshot.catalogue.models]
    names = offered(setup.snapshot)
    if json:
        show({"models": rows, "names": names, "notes": setup.notes}, True)
        return
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("model", "tier", "input USD/M", "output USD/M", "context", "abilities"):
        figures = "USD" in name or name == "context"
        table.add_column(name, justify="right" if figures else "left", no_wrap=name != "abilities", overflow="fold")
    for row in rows:
        table.add_row(
            row["id"],
            row["tier"],
            row["input_usd_per_mtok"] or "unpriced",
            row["output_usd_per_mtok"] or "unpriced",
            f"{row['context_tokens']:,}",
            " ".join(row["abilities"]),
        )
    show_table(table)
    show("")
    say(f"Names: {', '.join(names)}")


@config_app.command("check")
def check(
    config: Annotated[Path | None, typer.Argument(help="The file; else TIERWISE_CONFIG or ./tierwise.yaml.")] = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Read a configuration as `serve` would. Exit code 2 with every problem when it cannot be used."""
    from tierwise.core.errors import ConfigError
    from tierwise.core.words import counted

    path = config_path(config)
    try:
        setup = load_setup(path, state=state)
    except ConfigError as error:
        if not json:
            raise
        problems = [
            {"line": each.line, "where": each.where, "what": each.what, "nearest": each.nearest}
            for each in error.problems
        ]
        show({"ok": False, "source": error.source, "problems": problems}, True)
        sys.exit(WRONG)
    good = {
        "ok": True,
        "source": setup.source,
        "snapshot": setup.snapshot.hash,
        "models": len(setup.snapshot.catalogue.models),
        "policies": [name for name in setup.snapshot.policies if not name.startswith("tier:")],
        "notes": setup.notes,
    }
    if json:
        show(good, True)
    else:
        models = counted(len(setup.snapshot.catalogue.models), "model")
        show(f"{setup.source}: good ({models}, snapshot {setup.snapshot.hash})")
        for note in setup.notes:
            show(f"  {note}")


@config_app.command("schema")
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    from tierwise.config.schema import schema as made

    show(made(), True)


# ------------------------------------------------------------------------------------------------ helpers


def _decided(
    setup: Setup,
    text: str,
    model: str,
    system: str,
    max_tokens: int | None,
    criticality: str | None,
    latency: str | None,
) -> tuple[Episode, Decision]:
    import msgspec

    from tierwise import wire
    from tierwise.config import open_ledger
    from tierwise.core.decide import decide
    from tierwise.core.request import Payer
    from tierwise.routing.door import open_episode

    messages = [{"role": "system", "content": system}] if system else []
    body: dict[str, Any] = {"model": model, "messages": [*messages, {"role": "user", "content": text}]}
    hints = {key: value for key, value in (("criticality", criticality), ("latency", latency)) if value}
    if hints:
        body["tierwise"] = hints
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    request = wire.codec("openai_chat").read(msgspec.json.encode(body), {})
    episode = open_episode(request, Payer(), (), setup.snapshot, open_ledger(setup), ())
    return episode, decide(setup.snapshot, episode)


async def _past(open_journal: Callable[[Path], Any], folder: Path, decision_id: str) -> Any:
    from tierwise.core.explain import explain_story
    from tierwise.core.snapshot import load

    journal = open_journal(folder)
    if journal is None:
        return None
    try:
        record = await journal.read(decision_id)
        if record is None and len(decision_id) >= LEAST_LETTERS:
            found = await journal.beginning(decision_id)
            if len(found) > 1:
                stop(f"several decisions begin so, such as {' and '.join(found)}; give more of the id", NO)
            record = await journal.read(found[0]) if found else None
        if record is None:
            return None
        data = await journal.read_snapshot(record.episode.snapshot)
        explanation = explain_story(load(data), record.episode, record.decisions) if data and record.decisions else None
        return record, explanation
    finally:
        await journal.close()


def _ending(record: Record) -> Iterator[str]:
    """How a request of the past ended, line by line."""
    from tierwise.core.money import dollars
    from tierwise.core.words import counted

    outcome = record.outcome
    code = f" ({outcome.code})" if outcome.code else ""
    attempts = counted(outcome.attempts, "attempt")
    yield ""
    yield f"Ended: {outcome.status}{code} after {outcome.latency_ms} ms, {attempts}"
    names = (("routed to", outcome.routed), ("served by", outcome.served), ("billed as", outcome.billed))
    yield f"Asked for {record.episode.requested}" + "".join(f", {what} {name}" for what, name in names if name)
    cost, baseline = (
        "unknown" if nano is None else dollars(nano) for nano in (outcome.cost_nano, outcome.baseline_nano)
    )
    yield f"Cost {cost}, baseline {baseline}"


def _model_row(setup: Setup, id: str) -> dict[str, Any]:
    import time

    from tierwise.core.money import usd_text

    model = setup.snapshot.catalogue.models[id]
    rates = model.price.rates(int(time.time()), 0) if model.price else None
    return {
        "id": id,
        "tier": model.tier,
        "kind": model.kind,
        "input_usd_per_mtok": usd_text(rates.input_tokens) if rates else None,
        "output_usd_per_mtok": usd_text(rates.output_tokens) if rates else None,
        "price_source": model.price.source if model.price else None,
        "context_tokens": model.context_tokens,
        "max_output_tokens": model.max_output_tokens,
        "abilities": list(model.abilities),
        "local": model.local,
    }


def _show(found: Explanation) -> None:
    """For a person: what and why, the candidates in figures, then in words, and what would have changed it."""
    from rich.table import Table

    from tierwise.core.words import figure

    say(found.sentence)
    show("")
    for reason in found.reasons:
        say(reason, "  ")
    table = Table(box=None, header_style="bold")
    for name in ("", "model", "quality", "cost USD", "seconds", "with risk and\nwaiting USD"):
        figures = "USD" in name or name in ("quality", "seconds")
        table.add_column(name, justify="right" if figures else "left", no_wrap=name != "abilities", overflow="fold")
    why: dict[str, list[str]] = {}
    for each in found.candidates:
        quality = each["quality"]
        table.add_row(
            {"chosen": "→", "dropped": "✗"}.get(each["verdict"], " "),
            each["model"],
            f"{quality['expected']:.2f} ({quality['low']:.2f}–{quality['high']:.2f})" if quality else "",
            _rounded(each["expected_cost_usd"]) or "unpriced",
            f"{(each['expected_latency_ms'] or 0) / 1_000:.1f}",
            _rounded(each["price_usd"]),
        )
        if each["model"] == found.model:
            continue  # the sentence has said why
        # In how many nano-dollars somebody is dearer, the figures say better.
        words = each["why"] if each["code"] != "higher_price" else each["why"].partition(" (")[0]
        why.setdefault(words, []).append(each["model"])
    show("")
    show_table(table)
    show("")
    for words, names in why.items():
        say(f"{', '.join(names)}: {words}", "  ")
    if found.flips:
        show("\nWhat alone would have changed it:")
    for flip in found.flips[:3]:
        say(f"{flip.what} {figure(flip.would_be)} instead of {figure(flip.was)}: {flip.model or 'refused'}", "  ")


def _rounded(usd: str | None) -> str:
    """Dollars to three significant digits, without an exponent."""
    from decimal import Context, Decimal

    return f"{Context(prec=3).create_decimal(Decimal(usd)).normalize():f}" if usd else ""


def _plain(found: Explanation) -> dict[str, Any]:
    import msgspec

    return msgspec.structs.asdict(found)
