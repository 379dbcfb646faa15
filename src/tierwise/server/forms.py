"""What an admin, or a command, fills in for a key, a budget or a top-up. An unknown field is an error that names it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeVar
from zoneinfo import ZoneInfo, available_timezones

import msgspec

from tierwise.core.budget import Scope, Window
from tierwise.core.errors import BadRequest, Problem
from tierwise.core.keys import Route
from tierwise.core.read import read

T = TypeVar("T")


class KeyBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A key as it is asked for. `expires_at` is seconds since 1970; `expires_days` counts from now and wins."""

    name: str
    role: Literal["caller", "admin"] = "caller"
    user: str | None = None
    team: str | None = None
    organisation: str | None = None
    tags: dict[str, str] = {}
    allow: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    limit_usd: float | None = None
    window: Window | None = None
    rpm: int | None = None
    tpm: int | None = None
    parallel: int | None = None
    expires_at: int | None = None
    expires_days: float | None = None


class BudgetBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A budget as it is asked for; what it means is in `core.budget.Budget`."""

    scope: Scope
    match: dict[str, str] = {}
    limit_usd: float | None = None
    tokens: int | None = None
    calls: int | None = None
    parallel: int | None = None
    steps: int | None = None
    repeats: int | None = None
    deadline_s: int | None = None
    window: Window | None = None  # a lifetime
    rolling: bool = False
    zone: str | None = None  # UTC
    hard: bool = True
    reserve_usd: float | None = None


class CreditBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A top-up as it is asked for; below zero it takes back."""

    id: str
    scope: Literal["user", "key", "team", "organisation"]
    subject: str
    amount_usd: float


class MachineZones:
    """`Zones` of core/check_budget: those of this machine."""

    def __contains__(self, name: object) -> bool:
        try:
            ZoneInfo(str(name))
        except (OSError, ValueError, KeyError):  # a folder, a path out of the tree, a name that is not there
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(available_timezones())


class Misfilled(BadRequest):
    """Everything that is wrong with what was filled in. In a `Problem`, `where` is a field, or "" for all of them."""

    def __init__(self, what: str, problems: Iterable[Problem]) -> None:
        self.what = what
        self.problems = tuple(problems)
        said = "; ".join(str(each) if each.where else f"the {what} {each.what}" for each in self.problems)
        super().__init__(said, code=f"invalid_{what}", param=self.problems[0].where or None)


def converted(value: Any, kind: Callable[..., T], what: str) -> T:
    """A body as its type. Raises Misfilled, naming every field that is wrong."""
    made, problems = read(value, kind, whole="")
    if made is None:
        raise Misfilled(what, problems)
    return made
