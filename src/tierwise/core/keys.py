"""Keys as values: what a key may do, the budgets that its limits are, and the rule that nobody gives what they lack.

Pure. The registry keeps keys, the server obeys them. A key's limits cover the keys that it has made as well (`within`),
so that no number of keys made from one is worth more than that one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, Protocol, get_args

import msgspec

from tierwise.core.budget import Budget, Scope, Window
from tierwise.core.request import Payer

Route = Literal["chat", "messages", "embeddings", "admin"]
ROUTES: tuple[Route, ...] = get_args(Route)
CREDIT_SCOPES: tuple[Scope, ...] = ("user", "key", "team", "organisation")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")  # of a key, and of all else that files or headers name
NAME_RULE = "begins with a letter or digit and has only those and . _ @ -, 64 at most"
SECRET_START = "tw-"  # noqa: S105  # how every secret begins that is made here


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a key may use up; None is no limit. `rpm`, `tpm`: calls, tokens in any minute; `parallel`: calls at once."""

    limit_nano: int | None = None
    window: Window = "lifetime"  # of the money
    rpm: int | None = None
    tpm: int | None = None
    parallel: int | None = None


class Grant(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a key gives its holder. () means all; `payer.key` is the key's name."""

    payer: Payer
    allow: tuple[str, ...] = ()  # models, tiers or providers
    policies: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    admin: bool = False
    limits: Limits = Limits()
    expires_s: int | None = None

    @property
    def name(self) -> str:
        return self.payer.key

    @property
    def bound(self) -> bool:
        """Whether it belongs to somebody: then it may give only what is theirs."""
        payer = self.payer
        return bool(payer.organisation or payer.team or payer.user or payer.tags)

    @property
    def owner(self) -> bool:
        """An admin that nothing limits: the only one to whom credits and everybody's budgets are open."""
        narrowed = self.allow or self.policies or self.routes or self.payer.within or self.expires_s is not None
        return self.admin and not self.bound and not narrowed and self.limits == Limits()


class Issued(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A key as the registry lists it; only its holder knows the secret. Times are seconds since 1970."""

    grant: Grant
    prefix: str = ""  # the first letters of the newest secret, to recognise it by
    made_s: int = 0
    rotated_s: int | None = None
    revoked_s: int | None = None

    def state(self, at_s: int) -> Literal["active", "revoked", "expired"]:
        if self.revoked_s is not None:
            return "revoked"
        expires_s = self.grant.expires_s
        return "expired" if expires_s is not None and at_s >= expires_s else "active"


class Credit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One top-up of a prepaid balance. The same id counts once, however often it is sent or applied."""

    id: str
    scope: str
    subject: str
    amount_nano: int
    at_s: int = 0
    made_by: str = ""


class Variance(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider's bill differs by on one day and model, above zero when it is more than the ledger has. `line`
    and `subject` are the account that it is posted on. The same id counts once, however often it is applied."""

    id: str
    line: str
    subject: str
    amount_nano: int
    note: str
    at_s: int


class Secrets(msgspec.Struct, frozen=True):
    """One secret that opens a key: its keyed hash, and until when (a rotated one may overlap)."""

    hash: bytes
    key: str
    until_s: int | None = None


class Book(msgspec.Struct, frozen=True, kw_only=True):
    """All that the registry holds at one moment. `keys` with those that are revoked or expired."""

    keys: tuple[Issued, ...] = ()
    secrets: tuple[Secrets, ...] = ()
    budgets: tuple[Budget, ...] = ()
    credits: tuple[Credit, ...] = ()
    variances: tuple[Variance, ...] = ()


class Registry(Protocol):
    """Keys, budgets and credits that are made while gateways run. Several processes may use one; each method is one
    transaction, and durable when it returns. Every method may wait for a disk. Raises Conflict and Unknown."""

    pepper: bytes

    def changed(self) -> bool:
        """Whether anybody has written since the last `read`."""
        ...

    def read(self) -> Book: ...

    def create(self, grant: Grant, at_s: int) -> str:
        """The new key's secret, shown only here."""
        ...

    def change(self, grant: Grant) -> None:
        """Another grant for the key of this name, from now on."""
        ...

    def rotate(self, name: str, overlap_s: int, at_s: int) -> str:
        """A new secret; the old ones open the key for `overlap_s` more."""
        ...

    def revoke(self, names: Iterable[str], at_s: int) -> None: ...

    def set_budget(self, budget: Budget) -> None:
        """In place of one with the same `budget_id`."""
        ...

    def remove_budget(self, id: str) -> None: ...

    def add_credit(self, credit: Credit) -> bool:
        """False when there is one with this id already; Conflict when that one says otherwise."""
        ...

    def add_variances(self, variances: Iterable[Variance]) -> None:
        """All of them or none. Conflict when an id was used for another amount; what is there already stays."""
        ...

    def close(self) -> None: ...


# ------------------------------------------------------------------------------------------------ budgets


def budget_id(budget: Budget) -> str:
    """Which budget it is: the same for the same scope, match and window, whatever it allows."""
    match = ",".join(f"{name}={value}" for name, value in budget.match)
    window = f"rolling {budget.window}" if budget.rolling else budget.window
    zone = "" if budget.zone == "UTC" or budget.rolling else f"@{budget.zone}"
    return f"{budget.scope}[{match}]/{window}{zone}"


def key_budgets(name: str, limits: Limits) -> tuple[Budget, ...]:
    """A key's limits as the ledger keeps them."""
    match, found = (("key", name),), []
    if limits.limit_nano is not None:
        found.append(Budget(scope="key", match=match, limit_nano=limits.limit_nano, window=limits.window))
    if limits.rpm is not None or limits.tpm is not None or limits.parallel is not None:
        found.append(
            Budget(
                scope="key",
                match=match,
                calls=limits.rpm,
                tokens=limits.tpm,
                parallel=limits.parallel,
                window="minute",
                rolling=True,
            )
        )
    return tuple(found)


def merged(budgets: Iterable[Budget]) -> tuple[Budget, ...]:
    """Of budgets that are one and the same, the tightest of each limit: whoever adds one can only tighten another's."""
    found: dict[str, Budget] = {}
    for budget in budgets:
        id = budget_id(budget)
        found[id] = _tightest(found[id], budget) if id in found else budget
    return tuple(found.values())


_LIMITS = ("limit_nano", "tokens", "calls", "parallel", "steps", "repeats", "deadline_s")


def _tightest(one: Budget, other: Budget) -> Budget:
    if one.hard != other.hard:  # a soft limit must neither soften a hard one nor be made hard by it
        return one if one.hard else other
    least = {
        name: min((limit for each in (one, other) if (limit := getattr(each, name)) is not None), default=None)
        for name in _LIMITS
    }
    # One that limits no money has nothing to say about calls that nobody knows the price of.
    reserves = [each.reserve_nano for each in (one, other) if each.limit_nano is not None]
    known = [each for each in reserves if each is not None]
    reserve = max(known) if known and len(known) == len(reserves) else None
    return msgspec.structs.replace(one, **least, reserve_nano=reserve)


def applies(budget: Budget, payer: Payer) -> bool:
    """Whether this payer may fall under the budget, in some session or workflow."""
    for name, value in budget.match:
        if name == "key" and value in (payer.key, *payer.within):
            continue
        if name in ("session", "workflow"):
            continue
        if name in ("key", "user", "team", "organisation"):
            if getattr(payer, name) != value:
                return False
        elif (name, value) not in payer.tags:
            return False
    return True


# ------------------------------------------------------------------------------------------------ the rule

Placed = Mapping[str, tuple[str, str]]  # model -> its tier and provider


def wider(grant: Grant, grantor: Grant, placed: Placed) -> list[str]:
    """What `grant` would give that `grantor` does not have, one sentence each; [] when nothing is wider.

    A grantor that belongs to an organisation, team or user gives only keys of the same; its models, policies and routes
    are the most that its keys may have, and they end when it ends. Its own limits need no look here beyond their size:
    they cover every key it makes."""
    if grantor.owner:
        return []
    found = [*_beyond(grant.payer, grantor), *_wider_limits(grant.limits, grantor.limits)]
    if strange := [name for name in grant.allow if not _had(name, grantor.allow, placed)]:
        found.append(f"allow: {', '.join(strange)} is not among {', '.join(grantor.allow)}")
    lists = (
        ("allow", grant.allow, grantor.allow),
        ("policies", grant.policies, grantor.policies),
        ("routes", grant.routes, grantor.routes),
    )
    for what, given, had in lists:
        if had and not given:
            found.append(f"{what}: none given means all, and yours are {', '.join(had)}")
        elif had and what != "allow" and (more := [name for name in given if name not in had]):
            found.append(f"{what}: {', '.join(more)} is not among {', '.join(had)}")
    if grant.admin and not grantor.admin:
        found.append("role: only an admin makes admins")
    if grantor.expires_s is not None and (grant.expires_s is None or grant.expires_s > grantor.expires_s):
        found.append("expires: no later than your own key")
    return found


def _beyond(payer: Payer, grantor: Grant) -> list[str]:
    own = grantor.payer
    lineage = (payer.key, *payer.within)
    found = [] if own.key in lineage and set(own.within) <= set(lineage) else ["it was not made by your key"]
    if not grantor.bound:
        # Whoever belongs to nobody would spend what is prepaid for, and limits, the people it names.
        named = [name for name in ("organisation", "team", "user", "tags") if getattr(payer, name)]
        return [*found, *(f"{name}: yours is limited and has none, so leave it out" for name in named)]
    held = ["organisation"]
    if own.team or not own.organisation:  # whoever has an organisation and no team has all the teams in it
        held.append("team")
    if own.user:
        held.append("user")
    found += [
        f"{name}: must be {getattr(own, name) or 'left out'!r}, as in your own key"
        for name in held
        if getattr(payer, name) != getattr(own, name)
    ]
    if payer.tags != own.tags:
        found.append("tags: must be those of your own key")
    return found


def _had(name: str, allow: tuple[str, ...], placed: Placed) -> bool:
    return not allow or name in allow or any(group in allow for group in placed.get(name, ()))


def _wider_limits(limits: Limits, own: Limits) -> list[str]:
    """A limit above the grantor's promises what it cannot keep."""
    found = []
    if limits.limit_nano is not None and own.limit_nano is not None and limits.window == own.window:
        if limits.limit_nano > own.limit_nano:
            found.append("limit_usd: above that of your own key")
    for name in ("rpm", "tpm", "parallel"):
        limit, most = getattr(limits, name), getattr(own, name)
        if limit is not None and most is not None and limit > most:
            found.append(f"{name}: above that of your own key, {most}")
    return found


def foreign(payer: Payer, grantor: Grant, others: Iterable[Payer]) -> list[str]:
    """Which of a new key's team and user are known as somebody else's; [] for a grantor that belongs to nobody. Names
    of teams and users are one name space, and whoever shares a name shares its budgets."""
    if not grantor.bound:
        return []
    found = []
    around = {"team": ("organisation",), "user": ("organisation", "team")}
    for name, above in around.items():
        value = getattr(payer, name)
        if value and value != getattr(grantor.payer, name):
            for other in others:
                if getattr(other, name) == value and any(
                    getattr(other, each) != getattr(payer, each) for each in above
                ):
                    found.append(f"{name}: {value!r} is taken")
                    break
    return found


def visible(payer: Payer, grantor: Grant) -> bool:
    """Whether a key is the grantor's to see: it made it, or made who made it, or nothing binds the grantor."""
    return grantor.owner or grantor.name in (payer.key, *payer.within)


def governs(grantor: Grant, budget: Budget) -> str:
    """Why this admin may not set or remove this budget, as a sentence; "" when it may.

    It must name what is the grantor's, so that it touches nobody else, and must not lie above the grantor itself."""
    if grantor.owner:
        return ""
    match = dict(budget.match)
    own = grantor.payer
    pins = [(name, value) for name in ("organisation", "team", "user") if (value := getattr(own, name))]
    pins += list(own.tags)
    if not pins:
        return "your key is limited and belongs to no organisation, team or user, so no budget is yours to set"
    if missing := [f"{name}={value}" for name, value in pins if match.get(name) != value]:
        return f"match: must contain {', '.join(missing)}, so that it touches only what is yours"
    if len(match) == len(pins) or applies(budget, own):
        return "it would apply to your own key; match a key or a user below it"
    return ""
