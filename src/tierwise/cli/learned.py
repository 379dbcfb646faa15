"""`tierwise plan | promote | rollback | history | drift`: from something learned to something that serves, and back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
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
    load_setup,
    say,
    show,
    show_table,
    state_folder,
)

if TYPE_CHECKING:
    from tierwise.config import Setup
    from tierwise.config.learned import State
    from tierwise.core.promise import Promise
    from tierwise.core.snapshot import Snapshot
    from tierwise.study.judging.plan import Difference
    from tierwise.watch.audit import Seen

EstimatorOption = Annotated[
    str | None, typer.Option("--estimator", help="Id of a trained artefact, or built-in; else the one that serves.")
]
PromiseOption = Annotated[
    list[Path] | None, typer.Option("--promise", help="File that `tierwise calibrate` wrote; may be repeated.")
]


def add_to(app: typer.Typer) -> None:
    for command in (plan, promote, rollback, history, drift):
        app.command()(command)


def plan(
    new: Annotated[Path | None, typer.Argument(help="Another configuration file; else the present one.")] = None,
    estimator: EstimatorOption = None,
    promise: PromiseOption = None,
    last: Annotated[int, typer.Option(min=1, max=10_000, help="So many recent episodes are decided again.")] = 1_000,
    max_quality_loss: Annotated[float, typer.Option(help="More expected loss a request is a no.")] = 0.02,
    max_cost_rise: Annotated[float, typer.Option(help="More rise of the expected cost is a no; 0.1 is 10 %.")] = 0.1,
    config: ConfigOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Say what a change would do to recent requests, and change nothing. Exit code 1 when it makes things worse."""
    import msgspec

    from tierwise.config import open_journal, open_ledger
    from tierwise.study.judging.plan import difference

    path = config_path(config)
    setup = load_setup(path, state=state, port=0)
    other = load_setup(new, state=setup.state_dir, port=0) if new is not None else setup
    after = _changed(other, estimator, promise)

    async def found() -> Difference:
        journal = open_journal(setup.state_dir)
        try:
            records = await journal.recent(last) if journal is not None else []
        finally:
            if journal is not None:
                await journal.close()
        episodes = [record.episode for record in records]
        return await difference(setup.snapshot, after, episodes, lambda: (open_ledger(setup), open_ledger(other)))

    told = asyncio.run(found())
    worse = list(_worse(told, max_quality_loss, max_cost_rise))
    if json:
        show({**msgspec.to_builtins(told), "before": setup.snapshot.hash, "after": after.hash, "worse": worse}, True)
    else:
        _show(told, setup.snapshot, after)
        for sentence in worse:
            say(f"Worse: {sentence}.")
    if worse:
        sys.exit(NO)


def promote(
    estimator: EstimatorOption = None,
    promise: PromiseOption = None,
    note: Annotated[str, typer.Option(help="Why; kept in the history.")] = "",
    config: ConfigOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Let a trained estimator and promises serve, from the next second on; a running gateway needs no restart."""
    import msgspec

    from tierwise.config.learned import Learned, strangers
    from tierwise.core.errors import RequestError

    if estimator is None and not promise:
        raise RequestError("name what is to serve: --estimator ID, --promise FILE, or both", status=400)
    setup = load_setup(config_path(config), state=state, port=0)
    learned, fresh = Learned(setup.state_dir), _promises(promise)
    dropped: list[str] = []

    def next_state(before: State) -> State:
        dropped.clear()
        chosen = before.estimator if estimator is None else _id(estimator)
        found = learned.estimator(chosen)
        kept = {each.name: each for each in before.promises}
        dropped.extend(name for name, each in kept.items() if each.estimator != chosen)
        promises = {name: each for name, each in kept.items() if each.estimator == chosen}
        promises |= {each.name: each for each in fresh}
        wrong = strangers(found, tuple(promises.values()), setup.snapshot, learned.estimators())
        if wrong:
            raise RequestError(f"this cannot serve: {'; '.join(wrong)}", status=400)
        return msgspec.structs.replace(
            before, estimator=chosen, promises=learned.still(promises.values()), note=note or "promoted"
        )

    made = learned.write(next_state)
    if json:
        show({**msgspec.to_builtins(made), "dropped": dropped}, True)
        return
    names = ", ".join(each.name for each in made.promises) or "none"
    say(f"Number {made.serial} serves from now on: estimator {made.estimator or 'built in'}, promises: {names}.")
    if dropped:
        say(f"No longer: {', '.join(dropped)}, which were about another estimator. Calibrate them again.")


def rollback(
    to: Annotated[int | None, typer.Argument(help="A number of `tierwise history`; else the one before.")] = None,
    config: ConfigOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Let what served before serve again, from the next second on."""
    from tierwise.config.learned import Learned

    made = Learned(state_folder(state, config_path(config))).rollback(to)
    if json:
        show(made, True)
    else:
        say(f"Number {made.serial} serves from now on ({made.note}): estimator {made.estimator or 'built in'}.")


def history(config: ConfigOption = None, state: StateOption = None, json: JsonOption = False) -> None:
    """List what was promoted, the newest first."""
    from tierwise.config.learned import Learned

    learned = Learned(state_folder(state, config_path(config)))
    states = [found for serial in reversed(learned.serials()) if (found := learned.read(serial)) is not None]
    if json:
        show({"data": states}, True)
        return
    import time

    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in ("number", "promoted", "estimator", "promises", "note"):
        table.add_column(column, overflow="fold")
    for each in states:
        at = time.strftime("%Y-%m-%d %H:%M", time.gmtime(each.at_s))
        promises = ", ".join(f"{clean(one.name)} ({_standing(one)})" for one in each.promises)
        row = (str(each.serial), at, each.estimator or "built in", promises or "none", clean(each.note))
        table.add_row(*map(escape, row))
    show_table(table)


def drift(config: ConfigOption = None, state: StateOption = None, json: JsonOption = False) -> None:
    """Where today's requests differ from what training saw, and whose go to dear models more than they used to."""
    from tierwise.config.learned import Learned
    from tierwise.config.watching import Watching

    learned = Learned(state_folder(state, config_path(config)))
    watching, serving = Watching(learned), learned.read()
    seen = watching.read()
    estimator = serving.estimator if serving else ""
    lacks = bool(estimator) and not watching.inputs(estimator)
    if json:
        found = {"at_s": seen.until_s, "drift": seen.drifting.found, "skew": seen.skewing.found} if seen else {}
        show({"estimator": estimator, "has_inputs": bool(estimator) and not lacks, **found}, True)
        return
    if not estimator:
        say("No trained estimator serves, so there is no training to compare requests with.")
    elif lacks:
        say(f"Estimator {estimator} was saved without how its inputs were distributed; fit and promote again.")
    if seen is None:
        say("Nothing was looked at yet: a running gateway looks every hour at requests that are an hour old.")
    else:
        _show_seen(seen)


# ------------------------------------------------------------------------------------------------ helpers


def _id(estimator: str) -> str:
    return "" if estimator == "built-in" else estimator


def _promises(files: list[Path] | None) -> tuple[Promise, ...]:
    import msgspec

    from tierwise.core.errors import RequestError
    from tierwise.core.promise import Promise

    found = []
    for path in files or ():
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Promise))
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {error.strerror}", status=400) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            what = "is JSON and no promise" if isinstance(error, msgspec.ValidationError) else "is no JSON"
            wanted = "--promise takes the file that `tierwise calibrate` wrote, such as STATE/learned/NAME.promise.json"
            raise RequestError(f"{path} {what}: {wanted}", status=400) from None
    return tuple(found)


def _changed(setup: Setup, estimator: str | None, files: list[Path] | None) -> Snapshot:
    """The snapshot that would serve."""
    from tierwise.config.learned import Learned, build_with, strangers
    from tierwise.core.errors import RequestError

    snapshot = setup.snapshot
    learned, found = Learned(setup.state_dir), snapshot.estimator
    if estimator is not None:
        found = learned.estimator(_id(estimator))
    promises = {**snapshot.promises, **{each.name: each for each in _promises(files)}}
    wrong = strangers(found, _promises(files), snapshot, learned.estimators())
    if wrong:
        raise RequestError(f"this cannot serve: {'; '.join(wrong)}", status=400)
    return build_with(snapshot, found, tuple(promises.values()), grams=snapshot.grams)


def _worse(told: Difference, max_quality_loss: float, max_cost_rise: float) -> Iterator[str]:
    if told.quality < -max_quality_loss:
        yield f"the expected quality falls by {-told.quality:.3f} a request, more than {max_quality_loss:g}"
    if told.cost_after_nano > told.cost_before_nano * (1 + max_cost_rise):
        yield f"the expected cost rises by more than {max_cost_rise:.0%}"
    if told.refused_after > told.refused_before:
        yield f"{told.refused_after} requests are refused instead of {told.refused_before}"
    before = dict(told.fired_before)
    for scope, count in told.fired_after:
        if count > before.get(scope, 0):
            yield f"budgets of scope {scope} would have refused {count} requests instead of {before.get(scope, 0)}"
    for each in told.promises_lost:
        yield f"promise {each.promise} is lost for {each.workload or 'requests without a workload'}"


def _show(told: Difference, before: Snapshot, after: Snapshot) -> None:
    from rich.markup import escape
    from rich.table import Table

    from tierwise.core.money import dollars

    say(f"{told.n} recent requests, decided again under {before.hash} and {after.hash}.")
    if not told.n:
        say("There is nothing to compare: the journal of this state folder has no request that a policy routed.")
        return
    say(f"{told.moved} move ({told.moved / told.n:.1%}). Expected cost: {dollars(told.cost_before_nano)} before, "
        f"{dollars(told.cost_after_nano)} after.")  # fmt: skip
    say(f"Expected quality a request: {told.quality:+.4f}, 95 % interval {told.quality_low:+.4f} to "
        f"{told.quality_high:+.4f}, as estimator {told.judge} sees it.")  # fmt: skip
    if told.without_grams:
        say(f"{told.without_grams} of them were kept without the hashes of their words, so the trained estimator sees "
            "less of them than it will of new ones.")  # fmt: skip
    for old, new, count in told.moves[:10]:
        say(f"  {count}: {clean(old) or 'refused'} → {clean(new) or 'refused'}")
    table = Table(box=None, header_style="bold")
    for column in ("slice", "requests", "move", "cost before", "cost after", "quality"):
        table.add_column(column, justify="left" if column == "slice" else "right")
    for kind, some in (("workload", told.workloads), ("task", told.tasks)):
        for each in some[:10]:
            table.add_row(
                escape(f"{kind} {clean(each.name) or '–'}"), str(each.n), str(each.moved),
                dollars(each.cost_before_nano), dollars(each.cost_after_nano), f"{each.quality:+.4f}",
            )  # fmt: skip
    show_table(table)
    for name, fired in (("before", told.fired_before), ("after", told.fired_after)):
        for scope, count in fired:
            say(f"Budgets of scope {scope} would have refused {count} ({name}).")
    for change in told.promises:
        if change.before != change.after:
            workload = clean(change.workload) or "–"
            say(f"Promise {clean(change.promise)}, workload {workload}: {change.before} → {change.after}.")


def _standing(promise: Promise) -> str:
    held = sum(each.status == "certified" for each in promise.segments)
    return f"{held} of {len(promise.segments)} certified"


def _show_seen(seen: Seen) -> None:
    import time

    from rich.markup import escape
    from rich.table import Table

    at = time.strftime("%Y-%m-%d %H:%M", time.gmtime(seen.until_s))
    table = Table(box=None, header_style="bold")
    for column in ("workload", "feature", "requests", "index", "drifted"):
        table.add_column(column, justify="right" if column in ("requests", "index") else "left", overflow="fold")
    for each in seen.drifting.found:
        said = "yes" if each.drifted else ""
        where = clean(each.workload) or "all"
        table.add_row(escape(where), escape(clean(each.feature)), f"{each.n:,}", f"{each.index:.2f}", said)
    say(f"Requests of the day until {at} (UTC), against what training saw:")
    if seen.drifting.found:
        show_table(table)
    else:
        say("too few of them to say anything", "  ")
    for key in seen.skewing.found:
        figures = f"{key.share:.0%} of {key.n:,} requests went to dear models, {key.expected:.0%} were expected"
        say(f"Key {clean(key.key)}: {figures}")
    if not seen.skewing.found:
        say("No key's requests went to dear models more than its past and the other keys say.")
