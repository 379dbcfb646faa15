"""What a provider's error amounts to: which kind of failure, and whose.

Pure functions of a status and a body. Providers differ in their shapes: OpenAI and its many relatives send {"error":
{"message", "type", "code"}}, Anthropic {"type": "error", "error": {...}}, Google the first in a list, xAI and Ollama a
text for an error, Mistral and vLLM the fields with no error around them, and some send any of these with status 200.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from tierwise.core.episode import FailureKind

_BY_STATUS: dict[int, FailureKind] = {
    401: "auth",
    402: "auth",  # the account behind our key has no credit: ours to mend, never the caller's
    403: "auth",
    404: "not_found",
    405: "not_found",  # the address is there but is not what we think it is
    408: "timeout",
    409: "rate_limited",
    410: "not_found",
    423: "rate_limited",
    425: "rate_limited",
    429: "rate_limited",
    498: "overloaded",  # Groq: its flexible tier is full
}
_BY_NAME: dict[str, FailureKind] = {
    # what providers say in `error.type` or `error.code`; it is more exact than their status
    "insufficient_quota": "auth",
    "exceeded_current_quota_error": "auth",
    "billing_error": "auth",
    "billing_not_active": "auth",
    "billing_hard_limit_reached": "auth",
    "arrearage": "auth",
    "invalid_api_key": "auth",
    "api_key_invalid": "auth",
    "authentication_error": "auth",
    "permission_error": "auth",
    "permission_denied": "auth",
    "model_not_found": "not_found",
    "model_not_available": "not_found",
    "model_decommissioned": "not_found",
    "invalid_model": "not_found",
    "not_found_error": "not_found",
    "rate_limit_error": "rate_limited",
    "rate_limit_exceeded": "rate_limited",
    "resource_exhausted": "rate_limited",
    "overloaded_error": "overloaded",
    "server_error": "overloaded",
    "api_error": "overloaded",
    "unavailable": "overloaded",
    "timeout_error": "timeout",
    "invalid_request_error": "rejected",
    "badrequesterror": "rejected",
    "context_length_exceeded": "rejected",
    "content_filter": "rejected",
    "request_too_large": "rejected",
}
# These decide whatever the status is; the others only repeat it, less exactly.
_DECISIVE = frozenset(
    (
        "insufficient_quota",
        "exceeded_current_quota_error",
        "billing_error",
        "billing_not_active",
        "billing_hard_limit_reached",
        "arrearage",
        "invalid_api_key",
        "api_key_invalid",
        "model_not_found",
        "model_not_available",
        "model_decommissioned",
        "invalid_model",
    )
)
# Our account's trouble, sent by some as a 400 or a 429, as if the request were wrong or waiting helped.
_OURS = (
    "credit balance is too low",
    "insufficient balance",
    "exceeded your current quota",
    "api key not valid",
    "api key expired",
    "incorrect api key provided",
    "used all available credits",
    "reached your specified api usage limits",
)
# A model that is not there, sent by some as a 400.
_NO_MODEL = ("model not exist", "is not a valid model id")
# One request's words, sent by some as a 403 as if our key were wrong: that must not rest the model for everybody.
_WORDS = ("violates usage guidelines", "your input was flagged", "requires moderation")


class Said(msgspec.Struct, frozen=True):
    """What could be read of an error body. `names`: its type, code and status, lower case; `status`: a number given as
    code; `wait`: what Google says of when to come back, such as "34s"."""

    message: str = ""
    names: tuple[str, ...] = ()
    status: int = 0
    found: bool = False
    wait: str = ""


def kind_of(status: int, body: bytes = b"") -> FailureKind:
    """The kind of failure that this status and error body amount to."""
    said = said_in(body)
    for name in said.names:
        if name in _DECISIVE:
            return _BY_NAME[name]
    words = said.message.lower()
    # Google says the same of a limit for a minute as OpenAI of an account without credit.
    if status in (400, 429) and "resource_exhausted" not in said.names and _any(_OURS, words):
        return "auth"
    if status == 400 and _any(_NO_MODEL, words):
        return "not_found"
    if status == 403 and _any(_WORDS, words):
        return "rejected"
    return _kind_of_status(status)


def kind_inside_reply(body: bytes) -> FailureKind | None:
    """The kind of an error that came with status 200; None when the body is no error object at all."""
    said = said_in(body)
    return kind_said(said) if said.found else None


def kind_said(said: Said) -> FailureKind:
    """The kind by the provider's own words alone; garbled when it says nothing that we know."""
    if 400 <= said.status <= 599:
        kind = _kind_of_status(said.status)
    else:
        kind = next((_BY_NAME[name] for name in said.names if name in _BY_NAME), "garbled")
    # It was answered, so nobody gave up on it who would have to pay for what it may have written.
    return "overloaded" if kind == "timeout" else kind


def _kind_of_status(status: int) -> FailureKind:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if 400 <= status <= 499:
        return "rejected"
    if 500 <= status <= 599:
        return "overloaded"
    return "garbled"


def said_in(body: bytes) -> Said:
    """What an error body says, in whatever shape it came."""
    start = body.lstrip()[:1]
    if start not in (b"{", b"["):
        return Said()
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Said()
    if isinstance(value, list) and value:  # Google wraps its error object in a list
        value = value[0]
    if not isinstance(value, dict):
        return Said()
    error = value.get("error")
    if error is None or error is False:
        if value.get("object") == "error":
            return said_of(value)
        return Said(message=_first_text(value, "message", "detail", "error_description"))
    said = said_of(error)
    return said if said.message or isinstance(error, dict) else Said(_first_text(value, "message"), found=True)


def said_of(error: Any) -> Said:
    """What the value of `error` says, in a body or in an event of a stream."""
    if not isinstance(error, dict):
        return Said(message=error if isinstance(error, str) else "", found=True)
    code, details, metadata = error.get("code"), error.get("details"), error.get("metadata")
    status = code if isinstance(code, int) and not isinstance(code, bool) else 0
    waits = (one.get("retryDelay") for one in _items(details) if isinstance(one, dict))
    message = _first_text(error, "message", "detail")
    # OpenRouter's own words say nothing where it has those of the provider behind it.
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    if message == "Provider returned error" and isinstance(raw, str) and raw:
        message = f"{message}: {raw}"
    wait = next((wait for wait in waits if isinstance(wait, str)), "")
    return Said(message=message, names=_names(error), status=status, found=True, wait=wait)


def _names(error: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(error[key]).lower() for key in ("code", "type", "status") if isinstance(error.get(key), str))


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _any(some: Iterable[str], text: str) -> bool:
    return any(words in text for words in some)


def _first_text(value: dict[str, Any], *keys: str) -> str:
    for key in keys:
        found = value.get(key)
        if isinstance(found, str) and found:
            return found
    return ""
