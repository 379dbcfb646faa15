"""Secrets by reference: `env:NAME`, `file:PATH`, `os.environ/NAME`. No message and no repr ever holds a value."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from tierwise.core.errors import ConfigError, Problem

MAX_SECRET_BYTES = 16_384


class Secret:
    """A value that shows itself only when asked by name, so that no log, trace or repr prints it by accident."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret(hidden)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be copied out of its process")


class Secrets:
    """Every secret that a configuration refers to, resolved once. Called with a reference; "" for no reference."""

    __slots__ = ("_found",)

    def __init__(self, found: Mapping[str, Secret]) -> None:
        self._found = dict(found)

    def __call__(self, reference: str) -> str:
        """Raises LookupError for a reference that the configuration did not have when it was loaded."""
        if not reference:
            return ""
        if found := self._found.get(reference):
            return found.reveal()
        raise LookupError("not among the secrets of the loaded configuration")

    def __repr__(self) -> str:
        return f"Secrets({len(self._found)} hidden)"


def resolve_secret(reference: str, environ: Mapping[str, str], *, base: Path | None = None) -> str:
    """What the reference stands for. A relative `file:` path is below `base`, else below the working directory.

    Raises ConfigError when there is nothing there, or something that no header could carry; never shows the value.
    """
    if name := _environment_name(reference):
        value = environ.get(name)
        if value is None:
            raise _refusal(f"the environment variable {name} is not set")
        return _sound(value, f"the environment variable {name}")
    if reference.startswith("file:"):
        path = Path(reference.removeprefix("file:")).expanduser()
        return _sound(_contents((base or Path()) / path, path), f"the file {path}")
    # Not repeated: it may be the secret itself.
    raise _refusal("must be a reference, env:NAME or file:PATH, and never the secret itself")


def _environment_name(reference: str) -> str:
    for start in ("env:", "os.environ/"):
        if reference.startswith(start):
            return reference.removeprefix(start)
    return ""


def _contents(path: Path, shown: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_SECRET_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no path"
        raise _refusal(f"the file {shown} cannot be read: {why}") from None
    if len(raw) > MAX_SECRET_BYTES:
        raise _refusal(f"the file {shown} is larger than {MAX_SECRET_BYTES} bytes, so it holds no key")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _refusal(f"the file {shown} is not text") from None


def _sound(value: str, what: str) -> str:
    value = value.strip()  # files end in a newline, and so do values that a shell has read from one
    if not value:
        raise _refusal(f"{what} is empty")
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise _refusal(f"{what} holds spaces, control characters or letters that no key has")
    if len(value) > MAX_SECRET_BYTES:
        raise _refusal(f"{what} is longer than {MAX_SECRET_BYTES} characters")
    return value


def _refusal(what: str) -> ConfigError:
    return ConfigError((Problem("secret", what),))
