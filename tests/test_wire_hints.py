"""Hints: read strictly in our own namespace, session ids from whatever clients send."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from tierwise import wire
from tierwise.core.errors import BadRequest
from tierwise.core.request import Hints, Request

USER = {"role": "user", "content": "Hi"}
CHAT = {"model": "auto", "messages": [USER]}
MESSAGE = {**CHAT, "max_tokens": 100}
EMBED = {"model": "auto", "input": "Hi"}
PNG = "iVBORw0KGgo="


def read(name: str, body: Any, **headers: str) -> Request:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return wire.codec(name).read(raw, {key.replace("_", "-"): value for key, value in headers.items()})


def refused(name: str, body: Any, **headers: str) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        read(name, body, **headers)
    error = caught.value
    assert error.status == 400
    assert error.message.endswith((".", "?"))
    assert len(error.message) < 600
    return error


def test_hints_are_read_from_headers_metadata_and_our_own_object() -> None:
    hints = {
        "policy": "p",
        "min_quality": 0.9,
        "max_cost_usd": 0.05,
        "max_latency_ms": 900,
        "latency": "batch",
        "criticality": "internal",
        "task": "code",
        "session": "s",
        "workflow": "w",
        "step": 3,
        "allow": ["fast"],
        "deny": ["acme/large"],
        "locality": "local",
        "explore": "off",
        "dry_run": True,
        "labels": {"a": "b"},
    }
    expected = Hints(
        policy="p",
        min_quality=0.9,
        max_cost_nano=50_000_000,
        max_latency_ms=900,
        latency="batch",
        criticality="internal",
        task="code",
        session="s",
        workflow="w",
        step=3,
        allow=("fast",),
        deny=("acme/large",),
        locality="local",
        explore=False,
        dry_run=True,
        labels=(("a", "b"),),
    )
    texts = {"allow": "fast", "deny": " acme/large", "labels": "a=b", "dry_run": "true"}
    headers = {f"x_tierwise_{key}": texts.get(key, str(value)) for key, value in hints.items()}
    for name, body in (("openai_chat", CHAT), ("anthropic", MESSAGE), ("openai_embeddings", EMBED)):
        assert read(name, {**body, "tierwise": hints}).hints == expected
        assert read(name, {**body, "metadata": {"tierwise": hints}}).hints == expected
        assert read(name, {**body, "metadata": {"tierwise": json.dumps(hints)}}).hints == expected
        assert read(name, body, **headers).hints == expected


def test_a_header_wins_over_the_body() -> None:
    assert read("openai_chat", {**CHAT, "tierwise": {"policy": "a"}}, x_tierwise_policy="b").hints.policy == "b"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("min_quality", 2),
        ("min_quality", "0.9"),
        ("min_quality", True),
        ("max_cost_usd", -1),
        ("max_cost_usd", "lots"),
        ("max_cost_usd", True),
        ("max_cost_usd", 1e30),
        ("max_cost_usd", 1e-10),
        ("max_cost_usd", []),
        ("max_latency_ms", 0),
        ("max_latency_ms", 1.5),
        ("max_latency_ms", True),
        ("latency", "soon"),
        ("criticality", 5),
        ("task", "cooking"),
        ("session", ""),
        ("session", 5),
        ("session", "a" * 300),
        ("session", "a\nb"),
        ("step", -1),
        ("allow", []),
        ("allow", [5]),
        ("deny", {}),
        ("locality", "mars"),
        ("explore", "maybe"),
        ("dry_run", 5),
        ("labels", {"a": 1}),
    ],
)
def test_a_hint_of_the_wrong_type_is_refused_by_name(key: str, value: Any) -> None:
    assert str(refused("openai_chat", {**CHAT, "tierwise": {key: value}}).param).startswith(f"tierwise.{key}")
    error = refused("anthropic", {**MESSAGE, "metadata": {"tierwise": {key: value}}})
    assert str(error.param).startswith(f"metadata.tierwise.{key}")


@pytest.mark.parametrize("sent", ["0.0000000001", "0.00000000099"])
def test_a_cap_below_the_smallest_amount_is_refused_and_told_as_it_was_sent(sent: str) -> None:
    message = refused("openai_chat", CHAT, x_tierwise_max_cost_usd=sent).message
    assert message == f"x-tierwise-max-cost-usd: {sent!r} is below the smallest amount, which is 0.000000001 USD."
    assert read("openai_chat", CHAT, x_tierwise_max_cost_usd="0.000000001").hints.max_cost_nano == 1
    assert read("openai_chat", CHAT, x_tierwise_max_cost_usd="0").hints.max_cost_nano == 0


def test_an_unknown_hint_is_refused_with_the_nearest_name() -> None:
    error = refused("openai_chat", {**CHAT, "tierwise": {"polcy": "x"}})
    assert error.param == "tierwise.polcy"
    assert "did you mean 'policy'" in error.message
    assert refused("openai_chat", CHAT, x_tierwise_max_cost="1").param == "x-tierwise-max-cost"
    assert "max_cost_usd" in refused("openai_chat", CHAT, x_tierwise_max_cost="1").message
    assert refused("openai_chat", {**CHAT, "tierwise": 5}).param == "tierwise"
    assert refused("openai_chat", {**CHAT, "metadata": {"tierwise": "{"}}).param == "metadata.tierwise"


@pytest.mark.parametrize("key", ["user", "team", "key", "organisation", "payer"])
def test_a_caller_never_chooses_who_pays(key: str) -> None:
    assert "who pays" in refused("openai_chat", {**CHAT, "tierwise": {key: "other"}}).message
    assert "who pays" in refused("openai_chat", CHAT, **{f"x_tierwise_{key}": "other"}).message


def person(name: str) -> str:
    return "user-" + hashlib.sha256(name.encode()).hexdigest()[:32]


@pytest.mark.parametrize(
    ("body", "headers", "session"),
    [
        ({"session_id": "a", "user": "z"}, {"x_session_id": "b"}, "a"),
        ({"prompt_cache_key": "c"}, {}, "c"),
        ({"user": "z"}, {"x_session_id": "d"}, "d"),
        ({}, {"x_claude_code_session_id": "e"}, "e"),
        ({}, {"x_litellm_session_id": "f"}, "f"),
        ({}, {"helicone_session_id": "g"}, "g"),
        ({"metadata": {"user_id": "h"}, "user": "z"}, {}, person("h")),
        ({"user": "i"}, {}, person("i")),
        ({"session_id": "a", "tierwise": {"session": "own"}}, {}, "own"),
    ],
)
def test_session_ids_are_taken_from_what_clients_send(
    body: dict[str, Any], headers: dict[str, str], session: str
) -> None:
    assert read("openai_chat", {**CHAT, **body}, **headers).hints.session == session


def test_without_an_id_a_conversation_is_known_by_its_beginning() -> None:
    begin = [{"role": "system", "content": "S"}, USER]
    later = [*begin, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "More"}]
    first = read("openai_chat", {**CHAT, "messages": begin}).hints.session
    assert first is not None
    assert first.startswith("auto-")
    assert read("openai_chat", {**CHAT, "messages": later}).hints.session == first
    assert read("anthropic", {**MESSAGE, "system": "S", "messages": later[1:]}).hints.session == first
    assert read("openai_chat", {**CHAT, "messages": [{"role": "system", "content": "T"}, USER]}).hints.session != first
    long = read("openai_chat", {**CHAT, "user": "é" * 1000}).hints.session
    assert long is not None
    assert len(long) <= 256


def test_what_tells_conversations_and_steps_apart_outlives_an_upgrade() -> None:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Wie groß ist 5 €? " * 400}]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    shot = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 3_000}}
    result = [{"type": "text", "text": "done"}, shot]
    done = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": result},
    ]
    first, next = (read("openai_chat", {**CHAT, "messages": all}) for all in (asked, asked + done))
    assert first.hints.session == next.hints.session == "auto-3a40dfe0e21e4223b6d84e73"
    assert first.prompt.tail_hash == "4285c81821daf540b6ee20b8"
    assert next.prompt.tail_hash == "e47af958bb05609c064a4aa1"
