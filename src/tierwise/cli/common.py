"""What every command shares: the options that mean the same everywhere, how to find a configuration, how to print."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from tierwise.config import Setup

NO = 1
WRONG = 2

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Configuration file; else TIERWISE_CONFIG, ./tierwise.yaml, or none.")
]
StateOption = Annotated[
    Path | None, typer.Option("--state", help="Folder of the ledger and the journal; else TIERWISE_STATE.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document instead of text.")]


def config_path(config: Path | None) -> Path | None:
    from tierwise.config import find

    return config or find(os.environ)


def state_folder(state: Path | None, path: Path | None) -> Path:
    from tierwise.config import find_state

    return find_state(state, os.environ, path)


def load_setup(path: Path | None, **overrides: Any) -> Setup:
    from tierwise.config import load

    return asyncio.run(load(path, os.environ, **overrides))


def one_thread() -> None:
    """Linear algebra on one thread, unless the owner says otherwise; before NumPy is imported. Our matrices are small:
    a second thread saves little, and costs minutes where the processors are shared, for threads wait spinning."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def show_table(table: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160).print(table)


def say(text: str, indent: str = "") -> None:
    """A line for a person: broken between words at a terminal, whole in a pipe."""
    if sys.stdout.isatty():
        import shutil
        import textwrap

        columns = max(40, shutil.get_terminal_size().columns)
        text = textwrap.fill(
            text, columns - 1, subsequent_indent=indent + "  ", break_long_words=False, initial_indent=indent
        )
        show(text)
    else:
        show(indent + text)


def show(value: Any, as_json: bool = False) -> None:
    if as_json:
        import msgspec

        value = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    print(value, flush=True)


def stop(message: str, code: int) -> NoReturn:
    shown = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in message)
    print(f"tierwise: {shown}", file=sys.stderr)
    sys.exit(code)


def clean(text: object) -> str:
    """What came from elsewhere cannot move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text or ""))[:500]
