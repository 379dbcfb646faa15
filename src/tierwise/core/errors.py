"""What can go wrong that is somebody's mistake. Expected outcomes (no money, a model failed) are events, not errors.

TierwiseError
├── ConfigError          the configuration cannot be used; carries every problem found, each with its place
├── DataError            outcomes or other data to learn from cannot be used; carries every problem found
├── RequestError         the caller's request cannot be served as it stands; knows its HTTP status
│   ├── BadRequest       400: malformed, names the field
│   ├── Unknown          404: no such model, policy or decision; names the nearest
│   ├── Unauthorised     401
│   ├── Forbidden        403
│   ├── Conflict         409: the same request is under way, or was another one
│   └── Refused          402, 422, 429, 502, 503: a decision to refuse, with its facts
│       └── Unavailable  503: the ledger cannot make a hold durable, so nothing may be sent
└── Closed               the router is draining or closed
"""

from __future__ import annotations

from typing import Any

import msgspec


class TierwiseError(Exception):
    """The root of everything this package raises on purpose."""


class Problem(msgspec.Struct, frozen=True):
    """One thing wrong in a configuration. `line` is 1-based, 0 when it has none."""

    where: str
    what: str
    line: int = 0
    nearest: str = ""

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        hint = f" (did you mean {self.nearest!r}?)" if self.nearest else ""
        return f"{place}{self.where}: {self.what}{hint}"


class ConfigError(TierwiseError):
    """Every problem of a configuration at once."""

    def __init__(self, problems: tuple[Problem, ...], source: str = "") -> None:
        self.problems = problems
        self.source = source
        super().__init__("\n".join(self._told(problem) for problem in problems))

    def _told(self, problem: Problem) -> str:
        if not self.source or problem.where.startswith(("--", "TIERWISE_")):  # which stand in no file
            return str(problem)
        said = str(problem)
        return f"{self.source}: {said.replace('file: ', '', 1) if problem.where == 'file' else said}"


class DataError(TierwiseError):
    """Every problem of some data to learn from. In a `Problem`, `where` is a column or a file, `line` a row."""

    def __init__(self, problems: tuple[Problem, ...], source: str = "") -> None:
        self.problems = problems
        self.source = source
        heading = f"{source}: " if source else ""
        rows = (str(problem).replace("line ", "row ", 1) if problem.line else str(problem) for problem in problems)
        super().__init__("\n".join(f"{heading}{each}" for each in rows))


class RequestError(TierwiseError):
    """A request that gets an error for a reply. `metadata` is shown to the caller: no secrets, no other payers."""

    status = 500
    type = "api_error"

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        param: str | None = None,
        status: int | None = None,
        metadata: dict[str, Any] | None = None,
        retry_after_s: int | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.type
        self.param = param
        self.status = status or type(self).status
        self.metadata = metadata or {}
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry
        self.decision = ""  # id of the episode, once there is one
        self.attempts = 0


class BadRequest(RequestError):
    status = 400
    type = "invalid_request_error"


class Unauthorised(RequestError):
    status = 401
    type = "authentication_error"


class Forbidden(RequestError):
    status = 403
    type = "permission_error"


class Unknown(RequestError):
    status = 404
    type = "not_found_error"


class Conflict(RequestError):
    status = 409
    type = "invalid_request_error"


class Refused(RequestError):
    status = 503
    type = "api_error"


class Unavailable(Refused):
    """A store that must not lose anything cannot be written to."""


class Closed(TierwiseError):
    """The router takes no more work."""
