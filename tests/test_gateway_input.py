"""Bad input I1-I3, J1, J3 over real HTTP: a clear error in the caller's own shape, never a 500, nothing charged."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.callers import DOORS, OPENAI, SOUND, refused
from tests.support.gateway import CHEAP, DEAR, Gateway, world
from tests.support.upstream import FakeUpstream


@pytest.fixture
async def gateway(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[Gateway]:
    async with Gateway(tmp_path, world(upstream)) as made:
        yield made


def untouched(gateway: Gateway, upstream: FakeUpstream) -> None:
    assert (gateway.ledger.holds, upstream.requests) == ([], [])


# ------------------------------------------------------------------------------------------------ I2: what is no JSON

NOT_JSON: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda sound: b"",
    "cut": lambda sound: sound[:-1],
    "text": lambda sound: b"hello",
    "two": lambda sound: sound + sound,
    "list": lambda sound: b"[" + sound + b"]",
    "null": lambda sound: b"null",
    "number": lambda sound: b"7",
    "string": lambda sound: json.dumps(sound.decode()).encode(),
    "form": lambda sound: b"model=auto&messages=hi",
    "no utf-8": lambda sound: sound[:-1] + b',"x":"\xff\xfe"}',
    "utf-16": lambda sound: sound.decode().encode("utf-16"),
    "single quotes": lambda sound: sound.replace(b'"', b"'"),
    "comment": lambda sound: b"/* hi */" + sound,
    "trailing comma": lambda sound: sound[:-1] + b",}",
    "NUL": lambda sound: sound + b"\x00",
    "NaN": lambda sound: sound[:-1] + b',"temperature":NaN}',
    "Infinity": lambda sound: sound[:-1] + b',"temperature":-Infinity}',
    "1e400": lambda sound: sound[:-1] + b',"temperature":1e400}',
    "duplicate": lambda sound: sound[:-1] + b"," + sound[1:],
    "duplicate below": lambda sound: sound[:-1] + b',"metadata":{"a":"1","a":"2"}}',
    "deep list": lambda sound: sound[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep object": lambda sound: sound[:-1] + b',"x":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    "never closed": lambda sound: b"[" * 200_000,
    "digits": lambda sound: sound[:-1] + b',"seed":' + b"9" * 100_000 + b"}",
    "surrogate": lambda sound: sound[:-1] + b',"user":"\\ud800"}',
    "surrogate key": lambda sound: sound[:-1] + b',"\\udfff":1}',
}


@pytest.mark.parametrize("door", DOORS)
async def test_what_is_no_strict_json_object_is_a_400(gateway: Gateway, upstream: FakeUpstream, door: str) -> None:
    sound = json.dumps(SOUND[door]).encode()
    for spoil in NOT_JSON.values():
        refused(await gateway.post(DOORS[door], spoil(sound)), door)
    untouched(gateway, upstream)


# ------------------------------------------------------------------------------------------------ I3: wrong values

ANYTHING_WRONG = (7, 1.5, True, "x", [], {}, [1], {"a": 1}, -1)
CEILINGS = (0, -1, 2**31, 10**9, 2**63, 1.5, "100", "many", True, [], {})
WRONG: dict[str, dict[str, tuple[Any, ...]]] = {
    "chat": {
        "model": (7, True, [], {}, None, "a" * 100_000),
        "messages": (7, "hi", {}, [], None, [7], ["hi"], [{}], [{"role": "king", "content": "x"}], [{"role": "user"}]),
        "max_tokens": CEILINGS,
        "max_completion_tokens": CEILINGS,
        "n": (0, -1, 10**6, 1.5, "2", True),
        "stream": (7, "yes", [], {}),
        "stream_options": (7, "x", [1]),
        "tools": (7, "x", {}, [7], [{}], [{"type": "function"}]),
        "stop": (7, {}, [7], ["x"] * 100_000),
        "tierwise": (
            7,
            [],
            {"polcy": "x"},
            {"user": "eve"},
            {"max_cost_usd": -1},
            {"min_quality": 7},
            {"latency": "soon"},
        ),
        "metadata": ({"tierwise": 7}, {"tierwise": {"teem": "x"}}),
    },
    "messages": {
        "model": (7, True, [], None),
        "messages": (7, "hi", {}, [], None, [7], [{"role": "user"}], [{"role": "system", "content": [{"type": 1}]}]),
        "max_tokens": (None, *CEILINGS),
        "system": (7, {}, [7]),
        "stream": (7, "yes"),
        "tools": (7, "x", {}, [7], [{}]),
        "thinking": (7, "x", {"type": "enabled", "budget_tokens": -1}),
    },
    "embeddings": {
        "model": (7, None),
        "input": (7, None, "", [], [""], [{}], [None], {}, [[1.5]], [["a"]]),
        "dimensions": (0, -1, 1.5, "8", 10**9),
        "encoding_format": (7, "hex"),
    },
    "route": {"model": (7,), "messages": (None, []), "max_tokens": (-1,)},
    "count": {"model": (7,), "messages": (None, 7)},
    "feedback": {
        "decision_id": (None, 7, [], {}),
        "score": (-0.1, 1.1, "1", True, [], 10**18, "NaN"),
        "verdict": (7, []),
        "source": (7,),
        "comment": (7, {}),
        "payer": ("eve",),
        "scroe": (1,),
    },
}


@pytest.mark.parametrize("door", WRONG)
async def test_every_wrong_value_is_a_400_that_names_its_field(
    gateway: Gateway, upstream: FakeUpstream, door: str
) -> None:
    for field, values in WRONG[door].items():
        for value in values:
            body = {**SOUND[door], field: value}
            if value is None:
                del body[field]
            heard = await gateway.post(DOORS[door], body)
            if heard.status == 422 and "tokens" in field:
                continue  # sound in itself, and more than any model here can write: the reasons say so
            if field == "model" and heard.status == 404:
                continue  # any text may be a name; this one is nobody's
            error = refused(heard, door)
            assert field in f"{error['param']} {error['message']}", (field, value, error)
    untouched(gateway, upstream)


async def test_an_unknown_model_is_a_404_with_the_nearest_names(gateway: Gateway, upstream: FakeUpstream) -> None:
    for door in ("chat", "messages", "embeddings", "route", "count"):
        for name in ("one/cheep", "auto/defalt", "fsat", "../../etc/passwd", "gpt-4o", "' OR 1=1"):
            error = refused(await gateway.post(DOORS[door], {**SOUND[door], "model": name}), door, 404)
            assert error["code"] in ("model_not_found", "policy_not_found")
        for name in ("x\r\nevil: 1", "\u202egpt", "\u0000", "a" * 300):
            error = refused(await gateway.post(DOORS[door], {**SOUND[door], "model": name}), door, 400)
            assert error["param"] == "model"
        error = refused(await gateway.post(DOORS[door], {**SOUND[door], "model": "one/cheep"}), door, 404)
        assert CHEAP in error["message"] and CHEAP in error["metadata"]["nearest"]
    untouched(gateway, upstream)


async def test_an_unknown_hint_is_a_400_that_names_it(gateway: Gateway, upstream: FakeUpstream) -> None:
    for door in ("chat", "messages", "embeddings", "route"):
        for headers, body, name in (
            ({"x-tierwise-polcy": "default"}, {}, "polcy"),
            ({"x-tierwise-max-cost-usd": "lots"}, {}, "max-cost-usd"),
            ({"x-tierwise-max-latency-ms": "-5"}, {}, "max-latency-ms"),
            ({"x-tierwise-user": "eve"}, {}, "user"),
            ({}, {"tierwise": {"criticalty": "user"}}, "criticalty"),
            ({}, {"metadata": {"tierwise": {"locality": "moon"}}}, "locality"),
        ):
            error = refused(await gateway.post(DOORS[door], {**SOUND[door], **body}, headers=headers), door)
            assert name in f"{error['param']}", error
    untouched(gateway, upstream)


# ------------------------------------------------------------------------------------------------ paths and methods


async def test_unknown_paths_and_wrong_methods_are_said_to_be_so(gateway: Gateway, upstream: FakeUpstream) -> None:
    for path in (
        "/",
        "/v1",
        "/v1/",
        "/v2/chat/completions",
        "/v1/chat",
        "/v1/chat/completions/x",
        "/admin",
        "/v1//models",
    ):
        for method in ("GET", "POST", "DELETE"):
            heard = await gateway.fetch(method, path)
            assert heard.status == 404 and heard.error["code"] == "path_not_found", (path, heard)
    for path in ("/v1/messages/batches", "/messages/x"):
        assert refused(await gateway.post(path, {}), "messages", 404)
    for method, path in (
        ("GET", "/v1/chat/completions"), ("PUT", "/v1/messages"), ("DELETE", "/v1/models"), ("POST", "/v1/models"),
        ("POST", "/healthz"), ("PATCH", "/v1/feedback"), ("POST", "/v1/decisions/x"), ("OPTIONS", "/v1/embeddings"),
    ):  # fmt: skip
        heard = await gateway.fetch(method, path)
        assert (heard.status, heard.error["code"]) == (405, "method_not_allowed"), (method, path, heard)
    for path in ("/v1/models/nope", "/v1/models/" + "x" * 2_000, "/v1/decisions/nope", "/v1/decisions/..%2f..%2fetc"):
        assert (await gateway.get(path)).status == 404
    untouched(gateway, upstream)


# ------------------------------------------------------------------------------------------------ J1: chosen hosts

SPELLINGS = (
    "api_base", "apiBase", "api-base", "API_BASE", "base_url", "baseURL", "base-url", "baseUrl", "api_url", "api_host",
    "api_endpoint", "endpoint_url", "azure_endpoint", "aws_bedrock_runtime_endpoint", "proxy_url", "api_key", "apikey",
    "extra_headers", "default_headers", "litellm_params", "model_list", "custom_llm_provider",
)  # fmt: skip
HEADERS = (
    "x-forwarded-host", "x-forwarded-for", "forwarded", "x-original-url", "x-rewrite-url", "x-host", "x-api-base",
    "api-base", "helicone-target-url", "helicone-openai-api-base", "x-portkey-custom-host", "x-base-url", "proxy",
    "proxy-authorization", "x-litellm-api-base", "referer", "origin", "via", "x-forwarded-proto",
    "x-envoy-original-path",
)  # fmt: skip


async def test_a_caller_never_chooses_where_a_call_goes(gateway: Gateway, upstream: FakeUpstream) -> None:
    """J1: each spelling, at the top, below `metadata`, and as a header: refused, or without any effect."""
    async with FakeUpstream() as canary:
        host = f"127.0.0.1:{canary.port}"
        for spelling in SPELLINGS:
            for value in (canary.base_url, {"base_url": canary.base_url}, {"Host": host}):
                for door in ("chat", "messages", "embeddings"):
                    refused(await gateway.post(DOORS[door], {**SOUND[door], spelling: value}), door)
                below = {**SOUND["chat"], "metadata": {spelling: canary.base_url}}
                assert (await gateway.post(DOORS["chat"], below)).status in (200, 400)
        before = len(upstream.requests)
        for name in HEADERS:
            for value in (canary.base_url, host):
                heard = await gateway.ask(OPENAI, headers={name: value})
                assert heard.status == 200
        assert len(upstream.requests) == before + 2 * len(HEADERS)
        assert canary.connections == 0
        for seen in upstream.requests:
            assert str(canary.port) not in seen.raw_head.decode("latin-1"), "no header of a caller is passed on"
    refused(await gateway.ask(model=DEAR), "chat", 404)


# ------------------------------------------------------------------------------------------------ I1: fuzz

NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64 - 1, -(2**63), 0.1, -1.5, 1e308, "", "x", "\u0000", "\r\nx: y",
    "🙂" * 50, "a" * 5_000, [], {}, [[]], [{}], [None], {"type": "text"}, {"type": "text", "text": "hi"},
    {"role": "user", "content": "hi"}, {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}},
    {"type": "image", "source": {"type": "base64"}},
    {"type": "tool_use", "id": "x", "name": "f", "input": {}}, {"type": "tool_result", "tool_use_id": "x"},
    {"type": "function", "function": {"name": "f", "parameters": {}}}, "auto", "user", "assistant",
    "tool", "system", "claude-auto",
)  # fmt: skip
FIELDS = (
    "model", "messages", "max_tokens", "max_completion_tokens", "stream", "stream_options", "tools", "tool_choice", "n",
    "response_format", "temperature", "stop", "system", "thinking", "metadata", "tierwise", "input", "logprobs", "user",
    "reasoning_effort", "role", "content", "type", "decision_id", "score", "functions", "modalities", "audio",
)  # fmt: skip


def _mutated(dice: random.Random, tree: Any, depth: int = 0) -> Any:
    """The same tree with something nasty in it."""
    roll = dice.random()
    if roll < 0.25 or depth > 4:
        return dice.choice(NASTY)
    if isinstance(tree, dict):
        made = dict(tree)
        key = dice.choice((*made, *FIELDS)) if made else dice.choice(FIELDS)
        made[key] = _mutated(dice, made.get(key, dice.choice(NASTY)), depth + 1)
        return made
    if isinstance(tree, list) and tree:
        at = dice.randrange(len(tree))
        return [*tree[:at], _mutated(dice, tree[at], depth + 1), *(tree[at:] if roll < 0.5 else tree[at + 1 :])]
    return dice.choice(NASTY)


async def test_no_body_that_dice_can_make_is_our_error(gateway: Gateway, upstream: FakeUpstream) -> None:
    """900 seeded mutations of sound requests, on every door, in both directions of translation: never a 5xx."""
    dice = random.Random(42)
    answered = 0
    for number in range(900):
        door = dice.choice(tuple(DOORS))
        body = _mutated(dice, SOUND[door])
        for _ in range(dice.randrange(3)):
            body = _mutated(dice, body) if isinstance(body, dict) else body
        heard = await gateway.post(DOORS[door], body)
        assert heard.status < 500, (number, door, body, heard)
        if heard.status >= 400:
            assert refused(heard, door, None)
        answered += heard.status == 200
        gateway.rested()
    assert answered > 50
    await gateway.settled()
    assert len(gateway.ledger.charges) == len([1 for _, denial in gateway.ledger.holds if denial is None])
