"""Entries of the file into values of the house: policies, budgets, keys, prices' sanity, addresses. Names no backend.

Everything here notes its problems and goes on, so that a person mends a file once and not ten times.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tierwise.config.file import Located
from tierwise.config.schema import BudgetEntry, ConfigFile, KeyEntry, PolicyEntry, ServerSettings
from tierwise.config.secrets import Secret, resolve_secret
from tierwise.core.budget import Budget, Scope, Window
from tierwise.core.catalogue import Catalogue
from tierwise.core.check_budget import check as check_budget
from tierwise.core.check_budget import check_names
from tierwise.core.check_policy import check
from tierwise.core.errors import ConfigError, Problem
from tierwise.core.keys import Grant, Limits, budget_id
from tierwise.core.money import cap_to_nano, usd_to_nano
from tierwise.core.policy import BALANCED, PRESETS, Amounts, Best, Keep, Plan, Policy, Screen
from tierwise.core.read import join, nearest
from tierwise.core.request import EXPLORATION, Payer
from tierwise.server.forms import MachineZones

# 128 bits in base64 are 22 letters; below 16 a key can be guessed over a network.
LEAST_KEY_LETTERS = 16
# From the least to the largest: a request is part of a session, a session is paid by a user, and so on.
SCOPES: tuple[Scope, ...] = ("request", "session", "user", "team", "organisation")
WINDOWS: tuple[Window, ...] = ("minute", "hour", "day", "week", "month", "lifetime")


class KeySpec(msgspec.Struct, frozen=True, kw_only=True):
    """A caller's key: what proves it, and what it gives."""

    name: str
    secret: Secret
    grant: Grant

    @property
    def payer(self) -> Payer:
        return self.grant.payer


class Problems:
    """What was found wrong so far, each with the line where it stands."""

    def __init__(self, located: Located, source: str, *, names_only: bool = False) -> None:
        """`names_only`: see `setup.load`."""
        self.located = located
        self.source = source
        self.names_only = names_only
        self.found: list[Problem] = list(located.problems)

    def add(self, where: str, what: str, near: str = "") -> None:
        self.found.append(Problem(where, what, self.located.line(where), near))

    def unknown(self, where: str, what: str, name: str, known: Iterable[str]) -> None:
        self.add(where, what, nearest(name, known))

    def raise_any(self) -> None:
        """Raises ConfigError with all of them, in the order of the file."""
        if self.found:
            ordered = sorted(dict.fromkeys(self.found), key=lambda problem: problem.line)
            raise ConfigError(tuple(ordered), self.source)


# ------------------------------------------------------------------------------------------------ policies


def default_plans(tiers: tuple[str, ...]) -> dict[str, Plan]:
    """The plans of a first install: drop what cannot serve, then weigh every tier, the cheapest first at a tie.

    No rule stands between: the built-in estimator already knows a greeting from a proof, and what quality and time are
    worth is said in dollars, so a hard question goes to a strong model and an easy one does not.
    """
    return {"screen": Keep(keep=Screen(fits=True), then="choose"), "choose": Best(best=tuple(reversed(tiers)))}


def policies(file: ConfigFile, catalogue: Catalogue, problems: Problems) -> dict[str, Policy]:
    """`default`, the presets (the default's plans at other amounts) and the named ones, all checked."""
    embedded = Policy(name="default", start="screen", plans=default_plans(catalogue.tiers))
    default = _policy("default", file.policy, embedded, "policy", problems)
    made = {"default": default}
    for name, amounts in PRESETS.items():
        made[name] = msgspec.structs.replace(default, name=name, amounts=amounts)
    _check(default, catalogue, "policy", problems)
    for name, entry in file.policies.items():
        where = join("policies", name)
        if name in made or name == "auto":
            problems.add(where, "is the name of a policy that is always there; choose another")
        elif any(letter in name for letter in "/: \t\n"):
            problems.add(where, "a policy's name has no spaces, slashes or colons: it is asked for as auto/NAME")
        else:
            made[name] = _policy(name, entry, default, where, problems)
            if entry.plans:
                _check(made[name], catalogue, where, problems)
    return made


def _policy(name: str, entry: PolicyEntry, fallback: Policy, where: str, problems: Problems) -> Policy:
    start, plans = entry.start, entry.plans
    if not plans:
        if start is not None:
            problems.add(join(where, "start"), "has no effect without `plans`")
        start, plans = fallback.start, fallback.plans
    elif start is None and len(plans) > 1:
        problems.add(where, "needs `start`, the name of the plan to begin with")
    return Policy(
        name=name,
        start=start or next(iter(plans)),
        plans=plans,
        amounts=_amounts(entry),
        attempts=entry.attempts,
        calls=entry.calls,
        clamp=entry.clamp,
        dearer=entry.dearer,
        dear_rise=entry.dear_rise,
    )


def _amounts(entry: PolicyEntry) -> Amounts:
    base = PRESETS[entry.preset] if entry.preset else BALANCED
    usd = {
        "miss_user_nano": entry.miss_usd.user,
        "miss_internal_nano": entry.miss_usd.internal,
        "second_interactive_nano": entry.second_usd.interactive,
        "second_background_nano": entry.second_usd.background,
        "second_batch_nano": entry.second_usd.batch,
    }
    nano = {key: usd_to_nano(amount) for key, amount in usd.items() if amount is not None}
    caution = base.caution if entry.caution is None else entry.caution
    return msgspec.structs.replace(base, caution=caution, **nano)


def _check(policy: Policy, catalogue: Catalogue, where: str, problems: Problems) -> None:
    for found in check(policy, catalogue):
        problems.add(join(where, found.where), found.what, found.nearest)


# ------------------------------------------------------------------------------------------------ budgets


def budgets(entries: tuple[BudgetEntry, ...], keys: tuple[KeyEntry, ...], problems: Problems) -> tuple[Budget, ...]:
    made: list[Budget] = []
    tags = {tag for key in keys for tag in key.tags}
    for i, entry in enumerate(entries):
        where = join("budgets", i)
        budget = Budget(
            scope=entry.scope,
            match=tuple(sorted(entry.match.items())),
            limit_nano=_cap(join(where, "limit_usd"), entry.limit_usd, problems),
            tokens=entry.tokens,
            calls=entry.calls,
            parallel=entry.parallel,
            steps=entry.steps,
            repeats=entry.repeats,
            deadline_s=entry.deadline_s,
            window=entry.window or "lifetime",
            rolling=entry.rolling,
            zone=entry.zone or "UTC",
            hard=entry.hard,
            reserve_nano=_cap(join(where, "reserve_usd"), entry.reserve_usd, problems),
        )
        said = [name for name in ("window", "zone") if getattr(entry, name) is not None]
        for found in check_budget(budget, MachineZones(), said=said):
            problems.add(join(where, found.where) if found.where else where, found.what, found.nearest)
        for found in check_names(budget, tags):
            problems.add(join(f"{where}.match", found.where), found.what, found.nearest)
        twin = next((j for j, earlier in enumerate(made) if budget_id(earlier) == budget_id(budget)), None)
        if twin is not None:  # which would be the same account
            problems.add(where, f"has the scope, match and window of budgets[{twin}]; make them one")
        made.append(budget)
    _unreachable(made, problems)
    return tuple(made)


def _cap(where: str, usd: float | None, problems: Problems) -> int | None:
    if usd is None:
        return None
    try:
        return cap_to_nano(usd)
    except ValueError as error:
        problems.add(where, str(error).partition(": ")[2])
        return 1


def _unreachable(made: list[Budget], problems: Problems) -> None:
    """A limit above that of something larger around it, in a window at least as long, can never be met."""
    for i, inner in enumerate(made):
        for j, outer in enumerate(made):
            if inner.limit_nano is None or outer.limit_nano is None or inner.match != outer.match:
                continue
            if inner.scope not in SCOPES or outer.scope not in SCOPES:
                continue
            within = SCOPES.index(inner.scope) < SCOPES.index(outer.scope)
            sooner = inner.scope == "request" or WINDOWS.index(inner.window) <= WINDOWS.index(outer.window)
            if within and sooner and outer.hard and inner.limit_nano > outer.limit_nano:
                what = f"is above the limit of the {outer.scope} around it (budgets[{j}]), so it can never be met"
                problems.add(f"budgets[{i}].limit_usd", what)


# ------------------------------------------------------------------------------------------------ keys


def keys(
    entries: tuple[KeyEntry, ...],
    catalogue: Catalogue,
    policies: Collection[str],
    environ: Mapping[str, str],
    base: Path,
    problems: Problems,
) -> tuple[KeySpec, ...]:
    made: list[KeySpec] = []
    names: set[str] = set()
    known = {*catalogue.models, *catalogue.tiers, *catalogue.providers}
    for i, entry in enumerate(entries):
        where = join("keys", i)
        for j, name in enumerate(entry.allow):
            if name not in known:
                problems.unknown(f"{where}.allow[{j}]", "is no model, tier or provider", name, known)
        for j, name in enumerate(entry.policies):
            if name not in policies:
                problems.unknown(f"{where}.policies[{j}]", "is no policy", name, policies)
        if entry.window is not None and entry.limit_usd is None:
            problems.add(f"{where}.window", "has no effect without `limit_usd`")
        if "admin" in entry.routes and not entry.admin:
            problems.add(f"{where}.routes", "`admin` takes `admin: true` as well")
        if entry.name in names:
            problems.add(f"{where}.name", "is the name of another key too")
        names.add(entry.name)
        secret = secret_of(f"{where}.secret", entry.secret, environ, base, problems)
        if secret is None:
            continue
        twin = next((other.name for other in made if other.secret == secret), None)
        if twin is not None:
            problems.add(f"{where}.secret", f"is the same secret as that of the key {twin!r}, so who pays is not known")
        payer = Payer(
            key=entry.name,
            user=entry.user or "",
            team=entry.team or "",
            organisation=entry.organisation or "",
            tags=tuple(sorted(entry.tags.items())),
        )
        made.append(KeySpec(name=entry.name, secret=secret, grant=_grant(where, entry, payer, problems)))
    return tuple(made)


def _grant(where: str, entry: KeyEntry, payer: Payer, problems: Problems) -> Grant:
    limits = Limits(
        limit_nano=_cap(join(where, "limit_usd"), entry.limit_usd, problems),
        window=entry.window or "lifetime",
        rpm=entry.rpm,
        tpm=entry.tpm,
        parallel=entry.parallel,
    )
    return Grant(
        payer=payer,
        allow=entry.allow,
        policies=entry.policies,
        routes=entry.routes,
        admin=entry.admin,
        limits=limits,
    )


def secret_of(where: str, reference: str, environ: Mapping[str, str], base: Path, problems: Problems) -> Secret | None:
    """The secret behind a reference, or None with the problem noted. Where only names are wanted, the reference stands
    for it: it opens nothing, and two that are the same are the same."""
    if problems.names_only:
        return Secret(reference)
    try:
        return Secret(resolve_secret(reference, environ, base=base))
    except ConfigError as error:
        for problem in error.problems:
            problems.add(where, problem.what)
        return None


def guard(host: str, made: tuple[KeySpec, ...], problems: Problems, *, registered: bool = False) -> None:
    """Anyone who reaches an open gateway spends the owner's money, so off loopback it takes keys that hold."""
    if loopback(host) or problems.names_only:
        return
    if not made and not registered:
        problems.add(
            "server.host",
            f"{host} can be reached from other machines, and there are no keys: anyone could spend your money; "
            "add `keys`, make one with `tierwise key create`, or bind to 127.0.0.1",
        )
    for i, key in enumerate(made):
        if len(key.secret.reveal()) < LEAST_KEY_LETTERS:
            what = f"is shorter than {LEAST_KEY_LETTERS} characters, too short for a gateway on {host}"
            problems.add(f"keys[{i}].secret", what)


def loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


# ------------------------------------------------------------------------------------------------ server, state, notes


def server_settings(
    entry: ServerSettings, environ: Mapping[str, str], host: str | None, port: int | None, problems: Problems
) -> ServerSettings:
    """What the file says, unless the environment or the command line says otherwise."""
    chosen_host = host or environ.get("TIERWISE_HOST", "").strip() or entry.host
    chosen_port, where = (entry.port, "server.port") if port is None else (port, "--port")
    text = environ.get("TIERWISE_PORT", "").strip()
    if port is None and text:
        where = "TIERWISE_PORT"
        chosen_port = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else -1
    if not 0 <= chosen_port <= 65_535:
        problems.add(where, "must be a whole number from 0 to 65535")
    return msgspec.structs.replace(entry, host=chosen_host, port=chosen_port)


def state_folder(state: Path | None, environ: Mapping[str, str], base: Path) -> Path:
    """Where ledger, journal and snapshots live. Not made here: looking at a configuration leaves no traces."""
    named = environ.get("TIERWISE_STATE", "").strip()
    return (state or (Path(named) if named else base / ".tierwise")).expanduser()


def start_notes(catalogue: Catalogue, server: ServerSettings, keyless: bool) -> tuple[str, ...]:
    """What the owner should know at start, one sentence each."""
    notes = []
    if keyless:
        notes.append(f"No keys are configured: on {server.host} callers need none.")
    used = {model.provider for model in catalogue.models.values()}
    if idle := [name for name in catalogue.providers if name not in used]:
        notes.append(f"Without models, and therefore not used: {', '.join(idle)}.")
    notes += [
        f"The key of {name} goes over the network unencrypted: its base_url is http://."
        for name, provider in catalogue.providers.items()
        if provider.api_key and provider.base_url.startswith("http://") and not loopback(host_of(provider.base_url))
    ]
    return tuple(notes)


def exploring_notes(policies: Mapping[str, Policy], budgets: Iterable[Budget]) -> tuple[str, ...]:
    """Chance spends by itself, so the owner should know where nothing stops it."""
    bounded = any(EXPLORATION in each.match and each.hard and each.limit_nano is not None for each in budgets)
    named = [name for name, policy in policies.items() if policy.explorations]
    if bounded or not named:
        return ()
    match = ": ".join(EXPLORATION)
    return (
        f"Nothing bounds what exploration spends (policy {', '.join(named)}): add a budget with scope: tag, "
        f"match: {{{match}}}, limit_usd and window.",
    )


def host_of(url: str) -> str:
    return urlsplit(url).hostname or ""
