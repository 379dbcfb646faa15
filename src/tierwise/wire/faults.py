"""Errors in the callers' own shapes: one schema, two dialects."""

from __future__ import annotations

from typing import Any

import msgspec

from tierwise.core.errors import RequestError

ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "invalid_request_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


def openai_body(error: RequestError, decision: str) -> bytes:
    """`{"error": {message, type, code, param, metadata}}`; the decision stands in the metadata."""
    metadata = {**error.metadata, "decision": decision} if decision else error.metadata
    return _encode({"error": _core(error, OPENAI_TYPES, metadata)})


def anthropic_body(error: RequestError, decision: str) -> bytes:
    """`{"type": "error", "error": {type, message, code, param, metadata}, "request_id"}`."""
    core = _core(error, ANTHROPIC_TYPES, error.metadata)
    if error.code == "thread_unsupported_request":  # which the SDKs read here, and go on without a thread
        core["details"] = {"error_code": error.code, **error.metadata}
    return _encode({"type": "error", "error": core, "request_id": decision or None})


def _core(error: RequestError, types: dict[int, str], metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": types.get(error.status, "api_error"),
        "message": error.message,
        "code": error.code,
        "param": error.param,
        "metadata": metadata,
    }


def _encode(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # a message that quotes half a surrogate pair from somebody's bytes
        return msgspec.json.encode(_clean(value))


def _clean(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {_clean(key): _clean(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_clean(inner) for inner in value]
    return value
