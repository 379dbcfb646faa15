"""Whose account of a budget a call falls on, by who pays for it and what it belongs to. Pure."""

from __future__ import annotations

from tierwise.core.budget import Budget
from tierwise.core.request import Payer


def subjects_of(budget: Budget, payer: Payer, session: str, workflow: str, request: str) -> tuple[str, ...]:
    """The accounts of a budget that a payer's path passes through, by name; () when the budget is not on it.

    Payers without a name in the scope share the account "": no key is exempt because a field was left empty. A call
    outside every session, workflow or tag has none of these budgets. Sessions and workflows are the payer's own, so
    nobody spends another's by naming it.
    """
    for name, value in budget.match:
        if not _matches(name, value, payer, session, workflow):
            return ()
    match budget.scope:
        case "user":
            return (payer.user,)
        case "team":
            return (payer.team,)
        case "organisation":
            return (payer.organisation,)
        case "key":
            # A key's own limits are one account for it and for all keys that it made.
            return (next((value for name, value in budget.match if name == "key"), payer.key),)
        case "session":
            return (_own(payer, session),) if session else ()
        case "workflow":
            return (_own(payer, workflow),) if workflow else ()
        case "request":
            return (request,)
        case "tag":
            if budget.match:
                return (",".join(f"{name}={value}" for name, value in budget.match),)
            return tuple(dict.fromkeys(f"{name}={value}" for name, value in payer.tags))


def _own(payer: Payer, name: str) -> str:
    """The payer's own session or workflow of this name."""
    return "\x1f".join((payer.organisation, payer.team, payer.user, payer.key, name))


def _matches(name: str, value: str, payer: Payer, session: str, workflow: str) -> bool:
    """A condition names a field of the payer, `session`, `workflow`, or else a tag."""
    match name:
        case "user":
            return payer.user == value
        case "team":
            return payer.team == value
        case "organisation":
            return payer.organisation == value
        case "key":
            return payer.key == value or value in payer.within
        case "session":
            return session == value
        case "workflow":
            return workflow == value
        case _:
            return (name, value) in payer.tags
