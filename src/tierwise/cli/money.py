"""`tierwise key | budget | credit`: what is made while gateways run. Whoever may write the state folder is the owner.

The registry in the state folder is written directly, with and without a running gateway; a running one applies it
within about a second.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierwise.cli.common import (
    ConfigOption,
    JsonOption,
    StateOption,
    config_path,
    load_setup,
    show,
    show_table,
    state_folder,
)

if TYPE_CHECKING:
    from tierwise.config import Setup
    from tierwise.core.snapshot import Snapshot
    from tierwise.server.desk import Desk

key_app = typer.Typer(help="Make, list, rotate and revoke the keys that callers prove themselves with.")
budget_app = typer.Typer(help="Set and remove budgets at runtime.")
credit_app = typer.Typer(help="Top up prepaid balances.")

# The fields of forms whose options are not called as they are.
OPTIONS = {
    ("key", "tags"): "--tag",
    ("key", "policies"): "--policy",
    ("key", "routes"): "--route",
    ("key", "limit_usd"): "--budget-usd",
    ("key", "expires_days"): "--expires",
    ("key", "overlap_s"): "--overlap",
    ("budget", "deadline_s"): "--deadline",
}
FIELDS = ("limit_usd", "reserve_usd", "amount_usd", "deadline_s")  # as sentences about another field name them
LAST_S = 253_402_300_799  # the last second of the year 9999
SOURCES = {"file": "the file", "runtime": "the registry", "key": "its key"}
NameArgument = Annotated[str, typer.Argument(help="The key's name.")]


def add_to(app: typer.Typer) -> None:
    """These commands, below the application's own."""
    for name, group in (("key", key_app), ("budget", budget_app), ("credit", credit_app)):
        app.add_typer(group, name=name, no_args_is_help=True)


@contextmanager
def _as_typed() -> Iterator[None]:
    """A mistake in the words of the command line: the option that was typed, and not the field that it fills."""
    from tierwise.core.check_budget import LIMITS
    from tierwise.core.errors import BadRequest, Problem
    from tierwise.server.forms import Misfilled

    try:
        yield
    except Misfilled as wrong:
        told, option = [], partial(_option, wrong.what)
        for each in wrong.problems:
            fields = FIELDS if each.where else (*FIELDS, *LIMITS)
            what = re.sub(rf"\b({'|'.join(fields)})\b", lambda found: option(found[0]), each.what)
            where = option(each.where) if each.where else ""
            told.append(str(Problem(where, what, nearest=each.nearest)) if where else f"the {wrong.what} {what}")
        raise BadRequest("; ".join(told), code=wrong.code) from None


def _option(form: str, field: str) -> str:
    """`tags.env` of a key is `--tag env`, and `routes[1]` is `--route`."""
    name, _, below = field.partition(".")
    name = name.partition("[")[0]
    option = OPTIONS.get((form, name)) or f"--{name.replace('_', '-')}"
    return f"{option} {below}" if below else option


# ------------------------------------------------------------------------------------------------ keys


@key_app.command("create")
@_as_typed()
def create_key(
    name: Annotated[str, typer.Option(help="How the key is called in budgets, lists and logs; for ever its own.")],
    user: Annotated[str | None, typer.Option(help="Who pays.")] = None,
    team: Annotated[str | None, typer.Option(help="Their team.")] = None,
    organisation: Annotated[str | None, typer.Option(help="Their organisation.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, for budgets and reports; may be repeated.")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="A model, tier or provider that it may use; may be repeated; else all.")
    ] = None,
    policy: Annotated[list[str] | None, typer.Option(help="A policy it is held to; may be repeated.")] = None,
    route: Annotated[
        list[str] | None, typer.Option(help="chat, messages, embeddings or admin; may be repeated; else all.")
    ] = None,
    budget_usd: Annotated[float | None, typer.Option(help="What it may spend, in US dollars.")] = None,
    window: Annotated[
        str | None, typer.Option(help="In which time: minute, hour, day, week, month; else in its lifetime.")
    ] = None,
    rpm: Annotated[int | None, typer.Option(help="Calls of models in any minute.")] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens in any minute.")] = None,
    parallel: Annotated[int | None, typer.Option(help="Calls at once.")] = None,
    expires: Annotated[float | None, typer.Option(help="In so many days.")] = None,
    role: Annotated[str, typer.Option(help="caller, or admin: may make keys and budgets over HTTP.")] = "caller",
    config: ConfigOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Make a key. It is shown this once; nothing can show it again."""
    from tierwise.server.forms import KeyBody, converted

    asked: dict[str, Any] = {
        "name": name, "user": user, "team": team, "organisation": organisation, "tags": _pairs("--tag", tag),
        "allow": allow or [], "policies": policy or [], "routes": route or [], "limit_usd": budget_usd,
        "window": window, "rpm": rpm, "tpm": tpm, "parallel": parallel, "expires_days": expires, "role": role,
    }  # fmt: skip
    body = converted(asked, KeyBody, "key")
    with _desk(config, state, named=bool(allow or policy)) as desk:
        first = desk.checked and not desk.files and not desk.book.keys
        secret, shown = desk.create(body)
    closed = " It is the first: from now on callers without a key are refused (401)." if first else ""
    _tell_secret(secret, shown, json, f"The key {name}, shown only now.{closed}")


@key_app.command("list")
def list_keys(config: ConfigOption = None, state: StateOption = None, json: JsonOption = False) -> None:
    """Every key, whatever its state; never a secret."""
    with _desk(config, state, reading=True) as desk:
        rows = desk.keys()
    _show(rows, json, ("name", "prefix", "state", "role", "made in", "made", "expires", "payer", "limits"), _key_row)


@key_app.command("rotate")
@_as_typed()
def rotate_key(
    name: NameArgument,
    overlap: Annotated[int, typer.Option(help="The old secret stays good for so many seconds.")] = 0,
    config: ConfigOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Give a key a new secret. It is shown this once."""
    with _desk(config, state) as desk:
        secret, shown = desk.rotate(name, overlap)
    _tell_secret(secret, shown, json, f"The new secret of the key {name}, shown only now:")


@key_app.command("revoke")
def revoke_key(
    name: NameArgument,
    descendants: Annotated[bool, typer.Option("--descendants", help="Also every key that was made with it.")] = False,
    config: ConfigOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """End a key for ever. Running gateways refuse it within seconds."""
    with _desk(config, state) as desk:
        names = desk.revoke(name, descendants=descendants)
    _done({"revoked": names}, json, f"revoked: {', '.join(names)}")


# ------------------------------------------------------------------------------------------------ budgets


@budget_app.command("list")
def list_budgets(config: ConfigOption = None, state: StateOption = None, json: JsonOption = False) -> None:
    """Every budget: of the file, of keys, and set at runtime."""
    with _desk(config, state, named=True, reading=True) as desk:
        rows = desk.budgets()
    _show(rows, json, ("id", "made in", "limits"), lambda row: (row["id"], SOURCES[row["source"]], _limits(row)))


@budget_app.command("set")
@_as_typed()
def set_budget(
    scope: Annotated[str, typer.Option(help="request, session, workflow, user, team, organisation, key or tag.")],
    match: Annotated[list[str] | None, typer.Option(help="NAME=VALUE: only these; may be repeated.")] = None,
    limit_usd: Annotated[float | None, typer.Option(help="US dollars.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens, read and written.")] = None,
    calls: Annotated[int | None, typer.Option(help="Calls of models.")] = None,
    parallel: Annotated[int | None, typer.Option(help="Calls at once.")] = None,
    steps: Annotated[int | None, typer.Option(help="Requests of a session or workflow.")] = None,
    repeats: Annotated[int | None, typer.Option(help="The same call so often in a row, and no more.")] = None,
    deadline: Annotated[int | None, typer.Option(help="Seconds that a session or workflow may take.")] = None,
    reserve_usd: Annotated[float | None, typer.Option(help="What a call without price or bound holds.")] = None,
    window: Annotated[str | None, typer.Option(help="minute, hour, day, week or month; else its lifetime.")] = None,
    rolling: Annotated[bool, typer.Option("--rolling", help="The last so many seconds, not the calendar's.")] = False,
    zone: Annotated[str | None, typer.Option(help="Time zone of days, weeks, months: Europe/Vienna; else UTC.")] = None,
    soft: Annotated[bool, typer.Option("--soft", help="Refuse nothing; only make money dearer.")] = False,
    config: ConfigOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Set a budget, in place of the one with the same scope, match and window that was set before."""
    from tierwise.server.forms import BudgetBody, converted

    asked: dict[str, Any] = {
        "scope": scope, "match": _pairs("--match", match), "limit_usd": limit_usd, "tokens": tokens, "calls": calls,
        "parallel": parallel, "steps": steps, "repeats": repeats, "deadline_s": deadline, "reserve_usd": reserve_usd,
        "window": window, "rolling": rolling, "zone": zone, "hard": not soft,
    }  # fmt: skip
    body = converted(asked, BudgetBody, "budget")
    with _desk(config, state) as desk:
        shown = desk.set_budget(body)
    held = {**shown, **shown.get("in_force", {})}
    tighter = (
        f"; the configuration file or the key is tighter, so what holds is {_limits(held)}" if held != shown else ""
    )
    _done(shown, json, f"{shown['id']}: {_limits(shown)}{tighter}")


@budget_app.command("remove")
def remove_budget(
    id: Annotated[str, typer.Argument(help="As `tierwise budget list` shows it.")],
    config: ConfigOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Remove a budget that was set at runtime."""
    with _desk(config, state) as desk:
        desk.remove_budget(id)
    _done({"removed": id}, json, f"removed: {id}")


# ------------------------------------------------------------------------------------------------ credits


@credit_app.command("add")
@_as_typed()
def add_credit(
    scope: Annotated[str, typer.Option(help="user, key, team or organisation.")],
    subject: Annotated[str, typer.Option(help="Whose balance: the name in that scope.")],
    amount_usd: Annotated[float, typer.Option(help="US dollars; below zero takes back.")],
    id: Annotated[str | None, typer.Option(help="Names the top-up: the same id counts once. Else made up.")] = None,
    config: ConfigOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Top up a prepaid balance. Whoever has one is refused when it is used up."""
    import uuid

    from tierwise.server.forms import CreditBody, converted

    asked = {"id": id or uuid.uuid4().hex, "scope": scope, "subject": subject, "amount_usd": amount_usd}
    body = converted(asked, CreditBody, "credit")
    with _desk(config, state) as desk:
        new, shown = desk.add_credit(body)
    told = f"{_money(shown['amount_usd'])} for {scope} {subject}, as {shown['id']}"
    _done({**shown, "new": new}, json, told if new else f"was there already: {told}")


@credit_app.command("list")
def list_credits(config: ConfigOption = None, state: StateOption = None, json: JsonOption = False) -> None:
    """Every top-up that was made."""
    with _desk(config, state, reading=True) as desk:
        rows = desk.credits()
    columns = ("id", "scope", "subject", "amount", "made")
    cells: Callable[[dict[str, Any]], tuple[str, ...]] = lambda row: (  # noqa: E731
        row["id"], row["scope"], row["subject"], _money(row["amount_usd"]), _day(row["at"]),
    )  # fmt: skip
    _show(rows, json, columns, cells)


# ------------------------------------------------------------------------------------------------ helpers


@contextmanager
def _desk(config: Path | None, state: Path | None, *, named: bool = False, reading: bool = False) -> Iterator[Desk]:
    """The owner's desk. `named`: names of models or budgets are asked about, so what runs without a file counts too.
    `reading`: nothing is made where there is nothing yet."""
    from tierwise.config import open_registry
    from tierwise.server.desk import Desk

    path = config_path(config)
    wanted = path is not None or named
    setup = _setup(path) if wanted else None
    folder = state_folder(state, path)
    registry = open_registry(None if reading and _nothing_in(folder, state) else folder)
    try:
        snapshot: Snapshot | None = setup.snapshot if setup else None
        yield Desk(
            registry,
            registry.read(),
            int(time.time()),
            files={key.name: key.grant for key in setup.keys} if setup else {},
            budgets=setup.budgets if setup else (),
            snapshot=snapshot,
            checked=setup is not None or not wanted,
        )
    finally:
        registry.close()


def _nothing_in(folder: Path, named: Path | None) -> bool:
    """Whether nothing was made at runtime in this state folder, which is said. Raises ConfigError for one that the
    command named and that is not there, for that is a slip."""
    from tierwise.config import REGISTRY_FILE
    from tierwise.core.errors import ConfigError, Problem

    if named is not None and not folder.is_dir():
        raise ConfigError((Problem("--state", f"there is no folder {folder}"),))
    nothing = not (folder / REGISTRY_FILE).is_file()
    if nothing:
        print(f"tierwise: nothing was made at runtime in {folder} yet", file=sys.stderr)
    return nothing


def _setup(path: Path | None) -> Setup | None:
    """The configuration, to check names against: none of its secrets is needed. A file with a mistake in it must not
    keep a stolen key from being revoked."""
    from tierwise.core.errors import ConfigError

    try:
        return load_setup(path, names_only=True)
    except ConfigError as error:
        print(f"tierwise: names were not checked, for the configuration cannot be used here:\n{error}", file=sys.stderr)
        return None


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    from tierwise.core.errors import BadRequest

    found = {}
    for each in given or ():
        name, equals, value = each.partition("=")
        if not name or not equals or not value:
            raise BadRequest(f"{option} takes NAME=VALUE, and not {each[:100]!r}")
        found[name] = value
    return found


def _tell_secret(secret: str, shown: dict[str, Any], json: bool, what: str) -> None:
    _done({**shown, "secret": secret}, json, f"{what}\n{secret}")


def _done(value: dict[str, Any], json: bool, text: str) -> None:
    show(value if json else text, json)


def _show(
    rows: list[dict[str, Any]], json: bool, columns: Iterable[str], cells: Callable[[dict[str, Any]], tuple[str, ...]]
) -> None:
    if json:
        show({"data": rows}, True)
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, cells(row)))
    show_table(table)


def _key_row(row: dict[str, Any]) -> tuple[str, ...]:
    payer = [f"{name}={row[name]}" for name in ("user", "team", "organisation") if row[name]]
    payer += [f"{name}={value}" for name, value in row["tags"].items()]
    only = [*row["allow"], *row["policies"], *row["routes"]]
    limits = ", ".join(filter(None, (_limits(row), f"only {' '.join(only)}" if only else "")))
    made, ends = _day(row["made_at"]), _day(row["expires_at"])
    source = SOURCES[row["source"]]
    return row["name"], row["prefix"], row["state"], row["role"], source, made, ends, " ".join(payer), limits


def _limits(row: dict[str, Any]) -> str:
    """The limits of a key or a budget, in words."""
    money = row.get("limit_usd")
    window = row.get("window")
    each = "" if window in (None, "lifetime") else f" an {window}" if window == "hour" else f" a {window}"
    told = [f"{_money(money)}{each}"] if money is not None else []
    names = ("rpm", "tpm", "calls", "tokens", "parallel", "steps", "repeats", "deadline_s")
    told += [f"{name} {row[name]}" for name in names if row.get(name) is not None]
    if row.get("reserve_usd") is not None:
        told.append(f"reserve {_money(row['reserve_usd'])}")
    return ", ".join([*told, *(["soft"] if row.get("hard") is False else [])])


def _money(usd: float) -> str:
    """As JSON has it, so by its shortest decimal text; a top-up may be below zero."""
    from decimal import Decimal

    from tierwise.core.money import dollars

    return dollars(int(Decimal(str(usd)).scaleb(9)))


def _day(at_s: int | None) -> str:
    if not at_s:
        return ""
    # What was stored by hand or by an older version may be a time without a date, and must be listed all the same.
    return time.strftime("%Y-%m-%d", time.gmtime(at_s)) if 0 < at_s <= LAST_S else f"second {at_s}"
