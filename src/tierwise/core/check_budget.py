"""Every reason why a budget cannot be used: it would have no effect, or can never be. One set of rules for all doors.

A limit that nobody would feel is worse than none: whoever set it believes to be protected. So the file and the admin's
desk refuse it in the same words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Protocol

from tierwise.core.budget import Budget, Window
from tierwise.core.errors import Problem
from tierwise.core.request import EXPLORATION

PAYER_FIELDS = ("user", "team", "organisation", "key", "session", "workflow")
LIMITS = ("limit_usd", "tokens", "calls", "parallel", "steps", "repeats", "deadline_s")
OF_AGENTS = ("steps", "repeats", "deadline_s")  # what only something with a beginning and an end can have
CALENDAR: tuple[Window, ...] = ("day", "week", "month")  # windows that begin at a midnight, which is a zone's
# The least and the most of each limit that counts. Of the same call again and again, at most the last 32 are kept.
BOUNDS = {
    "tokens": (1, 1 << 50),
    "calls": (1, 1 << 50),
    "parallel": (1, 1_000_000),
    "steps": (1, 1_000_000),
    "repeats": (2, 32),
    "deadline_s": (1, 31_536_000),
}


class Zones(Protocol):
    """The time zones that a machine knows, which nobody can without looking at its disk."""

    def __contains__(self, name: object, /) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...


def check(budget: Budget, zones: Zones, *, said: Iterable[str] = ()) -> tuple[Problem, ...]:
    """Every problem of one budget, `where` being the field as people write it ("" for the whole); () when it is sound.
    `said`: which of `window` and `zone` were given, for what is given and has no effect is a mistake, while what is
    left out is not."""
    return (*_limits(budget), *_window(budget, zones, frozenset(said)), *_reserve(budget))


def check_names(budget: Budget, tags: Iterable[str]) -> tuple[Problem, ...]:
    """What `match` names and nobody can carry, `where` being that name. `tags`: the names of all tags that keys have.
    Values are not looked at: users and teams come and go."""
    known = (*PAYER_FIELDS, *sorted({*tags, EXPLORATION[0]}))
    what = f"is none of {', '.join(PAYER_FIELDS)}, and no key has such a tag"
    return tuple(Problem(name, what, nearest=_nearest(name, known)) for name, _ in budget.match if name not in known)


def _limits(budget: Budget) -> Iterator[Problem]:
    given = [name for name in LIMITS if _of(budget, name) is not None]
    if not given:
        yield Problem("", f"limits nothing: give one of {', '.join(LIMITS)}")
    for name in given:
        if name in OF_AGENTS and budget.scope not in ("session", "workflow"):
            what = f"is for sessions and workflows, and this budget is on each {budget.scope}; give `calls` instead"
            yield Problem(name, what)
        elif name != "limit_usd" and not budget.hard:
            yield Problem(name, "has no effect: a budget that is not hard refuses nothing")
    for name, (least, most) in BOUNDS.items():
        count = _of(budget, name)
        if count is not None and not least <= count <= most:
            yield Problem(name, f"must be from {least} to {most}")


def _window(budget: Budget, zones: Zones, said: frozenset[str]) -> Iterator[Problem]:
    ends = budget.window != "lifetime"
    if budget.scope == "request" and (ends or "window" in said):
        yield Problem("window", "has no effect: a request is its own window")
    if budget.rolling and not ends:
        yield Problem("rolling", "needs a window that ends: minute, hour, day, week or month")
    if budget.zone not in zones:
        what = f"{budget.zone[:50]!r} is no time zone that this machine knows; use an IANA name such as Europe/Berlin"
        yield Problem("zone", what, nearest=_nearest(budget.zone, zones))
    elif (budget.zone != "UTC" or "zone" in said) and (budget.rolling or budget.window not in CALENDAR):
        yield Problem("zone", f"has no effect: only {', '.join(CALENDAR)} of the calendar begin by a zone")


def _reserve(budget: Budget) -> Iterator[Problem]:
    if budget.reserve_nano is None:
        return
    if budget.limit_nano is None:
        yield Problem("reserve_usd", "has no effect without `limit_usd`")
    elif budget.reserve_nano > budget.limit_nano:
        yield Problem("reserve_usd", "is above limit_usd, so nothing could ever hold it")


def _of(budget: Budget, limit: str) -> int | None:
    found: int | None = getattr(budget, "limit_nano" if limit == "limit_usd" else limit)
    return found


def _nearest(name: str, known: Iterable[str]) -> str:
    return next(iter(get_close_matches(name[:200], sorted(known), n=1)), "")
