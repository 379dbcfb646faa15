"""Errors in the client's own shape, whole and inside a stream."""

from __future__ import annotations

import json

import pytest

from tests.support.streams import events
from tierwise import wire
from tierwise.core.errors import BadRequest, Forbidden, Refused, RequestError, Unauthorised, Unknown

ERRORS: list[tuple[RequestError, str, str]] = [
    (BadRequest("no", param="n"), "invalid_request_error", "invalid_request_error"),
    (Unauthorised("no"), "authentication_error", "authentication_error"),
    (Refused("no", status=402, code="budget_exceeded"), "insufficient_quota", "billing_error"),
    (Forbidden("no"), "permission_error", "permission_error"),
    (Unknown("no"), "not_found_error", "not_found_error"),
    (BadRequest("no", status=413), "invalid_request_error", "request_too_large"),
    (Refused("no", status=422, code="no_eligible_model"), "invalid_request_error", "invalid_request_error"),
    (Refused("no", status=429, code="held_by_others"), "rate_limit_error", "rate_limit_error"),
    (RequestError("no"), "api_error", "api_error"),
    (Refused("no", status=502), "api_error", "api_error"),
    (Refused("no", status=503), "api_error", "overloaded_error"),
    (Refused("no", status=529), "api_error", "overloaded_error"),
]


@pytest.mark.parametrize(("error", "openai", "anthropic"), ERRORS, ids=[str(error.status) for error, _, _ in ERRORS])
def test_every_status_has_its_type_in_both_formats(error: RequestError, openai: str, anthropic: str) -> None:
    error.metadata = {"limit_usd": "1.5"}
    core = {"message": "no", "code": error.code, "param": error.param}
    for name in ("openai_chat", "openai_embeddings"):
        tree = json.loads(wire.codec(name).error(error, "d1"))
        assert tree == {"error": {**core, "type": openai, "metadata": {"limit_usd": "1.5", "decision": "d1"}}}
    tree = json.loads(wire.codec("anthropic").error(error, "d1"))
    assert tree == {
        "type": "error",
        "error": {**core, "type": anthropic, "metadata": {"limit_usd": "1.5"}},
        "request_id": "d1",
    }


@pytest.mark.parametrize(("name", "event"), [("openai_chat", ""), ("openai_embeddings", ""), ("anthropic", "error")])
def test_an_error_in_a_stream_is_one_event_with_the_same_body(name: str, event: str) -> None:
    error = BadRequest("a\n\nevent: b\ndata: [DONE]\n\n \udc80", param="x")
    codec = wire.codec(name)
    (only,) = events(codec.error_event(error, "d1"))
    assert only == (event, codec.error(error, "d1").decode())
