"""What lies in a state folder, and how to look at it without a router."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tierwise.core.errors import ConfigError, Problem
from tierwise.core.keys import Registry
from tierwise.core.ports import Journal

if TYPE_CHECKING:
    from tierwise.stores.ledger.reports import LedgerReports

JOURNAL_FILE = "journal.sqlite"
LEDGER_FILE = "ledger.sqlite"
REGISTRY_FILE = "registry.sqlite"


def make_state_folder(path: Path) -> None:
    """The folder for ledger and journal, for its owner alone. Raises ConfigError when it cannot be made or used."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        what = f"the state folder {path} cannot be made: {error.strerror}; name another with --state"
        raise ConfigError((Problem("state", what),)) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError((Problem("state", f"the state folder {path} cannot be written; name another with --state"),))


def open_journal(folder: Path) -> Journal | None:
    """The journal of a state folder, to read from, also while a gateway writes it; None when there is none yet.
    Close it. Raises ConfigError when the file cannot be used."""
    from tierwise.stores.journal import SqliteJournal

    path = folder / JOURNAL_FILE
    return SqliteJournal(path) if path.is_file() else None


def open_reports(folder: Path) -> LedgerReports:
    """What may be asked of a state folder's ledger, also while a gateway writes it."""
    from tierwise.stores.ledger.reports import LedgerReports

    return LedgerReports(folder / LEDGER_FILE, folder / JOURNAL_FILE, folder / REGISTRY_FILE)


def open_registry(folder: Path | None) -> Registry:
    """The keys, budgets and credits that are made at runtime, in this state folder; None: in memory. Close it. Raises
    ConfigError when the file cannot be used."""
    from tierwise.stores.registry import SqliteRegistry

    if folder is None:
        return SqliteRegistry(None)
    make_state_folder(folder)
    return SqliteRegistry(folder / REGISTRY_FILE)


def has_keys(folder: Path) -> bool:
    """Whether a key was ever made in this state folder; makes nothing there."""
    if not (folder / REGISTRY_FILE).is_file():
        return False
    registry = open_registry(folder)
    try:
        return bool(registry.read().keys)
    finally:
        registry.close()
