"""The type of the `command` fixture (conftest.py)."""

from __future__ import annotations

from collections.abc import Callable

# The words after `tierwise`, in this process -> (exit code, what it told, what it complained of)
Command = Callable[..., tuple[int, str, str]]
