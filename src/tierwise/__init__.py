"""Tierwise: answers each LLM request with the cheapest model that is good enough, holds the money first, says why.

`open()` gives the router inside a program; `tierwise serve` gives it to every program. Importing this module reads no
file, no environment and no heavy library: what is needed is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tierwise.core.errors import BadRequest as BadRequest
    from tierwise.core.errors import Closed as Closed
    from tierwise.core.errors import ConfigError as ConfigError
    from tierwise.core.errors import Refused as Refused
    from tierwise.core.errors import RequestError as RequestError
    from tierwise.core.errors import TierwiseError as TierwiseError
    from tierwise.inapp import ChatReply as ChatReply
    from tierwise.inapp import InApp as InApp
    from tierwise.inapp import InAppSync as InAppSync
    from tierwise.inapp import open as open

__version__ = "0.1.0"

_HOMES = {
    "open": "tierwise.inapp",
    "InApp": "tierwise.inapp",
    "InAppSync": "tierwise.inapp",
    "ChatReply": "tierwise.inapp",
    "TierwiseError": "tierwise.core.errors",
    "ConfigError": "tierwise.core.errors",
    "RequestError": "tierwise.core.errors",
    "BadRequest": "tierwise.core.errors",
    "Refused": "tierwise.core.errors",
    "Closed": "tierwise.core.errors",
}
__all__ = [*_HOMES, "__version__"]  # names, all of them


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tierwise' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
