"""What vendors say inside a 200 that is no reply, through the whole gateway: an error by its own kind, half a reply, an
end that does not end. Every test runs over real sockets; `Gateway` audits the books and greps for keys at its end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.callers import DIALECTS, Dialect
from tests.support.gateway import CANARY, CHEAP, DEAR, Gateway, attempts_of, world
from tests.support.replies import anthropic_body, anthropic_events, openai_body, openai_events
from tests.support.upstream import (
    TEXT,
    Exchange,
    FakeUpstream,
    Step,
    anthropic_reply,
    anthropic_stream,
    json_reply,
    plain,
    sse,
)
from tierwise.core.episode import Failed
from tierwise.routing import streams

# The shape of an error with status 200, as what it is known, and the status when nobody else answers.
INSIDE: dict[str, tuple[Any, str, int]] = {
    "OpenRouter 429": ({"error": {"message": "Provider error", "code": 429}, "user_id": "u"}, "rate_limited", 503),
    "OpenRouter 402": ({"error": {"message": "Insufficient credits", "code": 402}}, "auth", 502),
    "OpenRouter 408": ({"error": {"message": "Request timed out", "code": 408}}, "overloaded", 503),
    "vLLM": ({"error": {"message": "too long", "type": "BadRequestError", "code": 400}}, "rejected", 400),
    "vLLM, bare": ({"object": "error", "message": "x", "type": "BadRequestError", "code": 400}, "rejected", 400),
    "Mistral": ({"object": "error", "message": "slow", "type": "rate_limit_exceeded"}, "rate_limited", 503),
    "OpenAI": ({"error": {"message": "busy", "type": "server_error", "code": None}}, "overloaded", 503),
    "Groq": ({"error": {"message": "no call", "type": "invalid_request_error", "code": "x"}}, "rejected", 400),
    "Anthropic": ({"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}}, "rate_limited", 503),
    "Anthropic 400": ({"type": "error", "error": {"type": "invalid_request_error", "message": "x"}}, "rejected", 400),
}  # fmt: skip


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def half(finish: dict[str, Any]) -> dict[str, Any]:
    """A reply that broke off: what its only choice says of that."""
    body = openai_body("cheap", "Hal", None)
    body["choices"][0] |= {"finish_reason": "error", **finish}
    return body


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", INSIDE)
async def test_an_error_with_status_200_is_what_it_says_and_is_not_charged(
    tmp_path: Path, name: str, stream: bool
) -> None:
    said, kind, status = INSIDE[name]
    wire = "anthropic" if said.get("type") == "error" else "openai"
    step = sse([b": PROCESSING\n\n", event(said)]) if stream else json_reply(said)
    good = None if wire == "openai" else anthropic_stream() if stream else anthropic_reply()
    async with (
        FakeUpstream() as one,
        FakeUpstream(good) as two,
        Gateway(tmp_path, world(one, two, wire=wire)) as gateway,
    ):
        for dialect in DIALECTS:
            gateway.rested()
            one.script(step)
            heard = await gateway.ask(dialect, stream=stream or None)
            assert (heard.status, heard.text, heard.model) == (200, TEXT, DEAR), heard
            await gateway.settled()
            assert [charge.kind for _, charge in gateway.ledger.charges[-2:]] == ["released", "reported"]
            gateway.rested()
            one.script(step)
            two.script(step)
            heard = await gateway.ask(dialect, stream=stream or None)
            assert heard.status == status and heard.is_anthropic == (dialect.name == "anthropic"), heard
            assert [attempt["kind"] for attempt in attempts_of(heard)] == [kind, kind]


# Errors of a stream that are not where clients look for them, and as what they are known.
UNWRAPPED: dict[str, tuple[bytes, str]] = {
    "named, an object": (b'event: error\ndata: {"message":"no room","code":400}\n\n', "rejected"),
    "named, an error": (b'event: error\ndata: {"error":{"message":"no room","code":429}}\n\n', "rate_limited"),
    "named, words": (b"event: error\ndata: no room\n\n", "overloaded"),
    "named, words on two lines": (b"event: error\ndata: there is\ndata: no room\n\n", "overloaded"),
    "bare": (b'data: {"object":"error","message":"no room","type":"BadRequestError","code":400}\n\n', "rejected"),
    "Groq": (b'data: {"id":"c","choices":[],"x_groq":{"error":"no room"}}\n\n', "overloaded"),
}


@pytest.mark.parametrize("name", UNWRAPPED)
async def test_an_error_in_a_stream_is_one_wherever_it_stands(tmp_path: Path, name: str) -> None:
    """Before the first word another model answers; after it, the caller is told in a way that its client knows."""
    said, kind = UNWRAPPED[name]
    async with FakeUpstream() as one, FakeUpstream() as two, Gateway(tmp_path, world(one, two)) as gateway:
        for dialect in DIALECTS:
            gateway.rested()
            one.script(sse([said]))
            heard = await gateway.ask(dialect, stream=True)
            assert (heard.status, heard.text, heard.model) == (200, TEXT, DEAR), heard
            events = (await gateway.last()).episode.events
            assert [event.kind for event in events if isinstance(event, Failed)] == [kind]
            gateway.rested()
            one.script(sse([*openai_events("cheap", "Hal", done=False)[:2], said, b"data: [DONE]\n\n"]))
            heard = await gateway.ask(dialect, stream=True)
            last = heard.events[-1][1]
            assert not heard.whole and "no room" in last["error"]["message"], heard
            assert (await gateway.last()).outcome.status == "broken"


async def test_an_error_of_a_messages_stream_may_lack_its_frame(tmp_path: Path) -> None:
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, wire="anthropic")) as gateway:
        for said in (b'event: error\ndata: {"message":"no room"}\n\n', b'data: {"error":{"message":"no room"}}\n\n'):
            for dialect in DIALECTS:
                gateway.rested()
                one.script(sse([*anthropic_events("cheap")[:3], said]))
                heard = await gateway.ask(dialect, stream=True)
                name, last = heard.events[-1]
                assert not heard.whole and "no room" in last["error"]["message"], heard
                assert dialect.name != "anthropic" or name == last["type"] == "error"


async def test_an_error_that_tells_of_tokens_is_charged_for_them(tmp_path: Path) -> None:
    said = {"error": {"message": "no", "code": 502}, "usage": {"prompt_tokens": 10, "completion_tokens": 5}}
    async with FakeUpstream() as one, FakeUpstream() as two, Gateway(tmp_path, world(one, two)) as gateway:
        one.script(json_reply(said))
        assert (await gateway.ask()).model == DEAR
        await gateway.settled()
        assert gateway.ledger.charges[0][1].cost_nano == 10 * 1_000 + 5 * 4_000


@pytest.mark.parametrize(
    ("finish", "charged"),
    [
        ({"error": {"code": 502, "message": "idle"}, "message": {"role": "assistant", "content": ""}}, False),
        ({"message": {"role": "assistant", "content": None}}, True),  # nobody says what it was, so it may be billed
        ({"error": {"code": 502, "message": "idle"}}, True),
        ({"finish_reason": "abort"}, True),
    ],
)
async def test_half_a_reply_is_none(tmp_path: Path, finish: dict[str, Any], charged: bool) -> None:
    """OpenRouter and vLLM say so in the choice; a caller of the other format could not be told."""
    async with FakeUpstream() as one, FakeUpstream() as two, Gateway(tmp_path, world(one, two)) as gateway:
        for dialect in DIALECTS:
            gateway.rested()
            one.script(json_reply(half(finish)))
            heard = await gateway.ask(dialect)
            assert (heard.status, heard.text, heard.model) == (200, TEXT, DEAR), heard
            await gateway.settled()
            first = gateway.ledger.charges[-2][1]
            assert (first.kind, first.cost_nano > 0) == ("estimated" if charged else "released", charged)


def broken_off(text: str, **more: Any) -> list[bytes]:
    """A stream whose last chunk says that the provider gave up, with nothing about it beside the choices."""
    first, *_ = openai_events("cheap", text, done=False)
    said = json.loads(first[6:])
    words = {**said, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    last = {**said, "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error", **more}]}
    return [first, *([event(words)] if text else []), event(last), b"data: [DONE]\n\n"]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
async def test_half_a_stream_is_never_a_whole_one(tmp_path: Path, dialect: Dialect) -> None:
    """Before its first word another model answers; after it, the caller is told in a way of its own format."""
    async with FakeUpstream() as one, FakeUpstream() as two, Gateway(tmp_path, world(one, two)) as gateway:
        one.script(sse(broken_off("", error={"code": 502, "message": "Upstream idle"})))
        heard = await gateway.ask(dialect, stream=True)
        assert (heard.status, heard.text, heard.model) == (200, TEXT, DEAR), heard
        one.script(sse(broken_off("Hal")))
        heard = await gateway.ask(dialect, stream=True)
        assert (heard.status, heard.text, heard.model) == (200, "Hal", CHEAP), heard
        if dialect.name == "anthropic":
            assert not heard.whole and "broke" in heard.stream_error["message"]
        else:
            assert b'"finish_reason": "error"' in heard.body
        assert (await gateway.last()).outcome.status == "broken"
        assert gateway.ledger.charges[-1][1].cost_nano > 0


def then(*late: bytes) -> Step:
    return sse([*openai_events("cheap")[:-1], b"data: [DONE]\n\n" + b"".join(late)])


LATE = {
    "an error": (b'data: {"error":{"message":"late","code":500}}\n\n',),
    "another end": (b"data: [DONE]\n\n",),
    "nonsense": (b"junk\n\n<html>",),
    "usage": (b'data: {"choices":[],"usage":{"prompt_tokens":900,"completion_tokens":900}}\n\n',),
}


@pytest.mark.parametrize("name", LATE)
async def test_what_comes_after_the_end_is_nobodys(tmp_path: Path, name: str) -> None:
    """In the packet of the end as in one of its own."""
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        for dialect in DIALECTS:
            for step in (then(*LATE[name]), sse([*openai_events("cheap"), *LATE[name]])):
                one.script(step)
                heard = await gateway.ask(dialect, stream=True)
                assert (heard.status, heard.text, heard.whole) == (200, TEXT, True), heard
                assert (await gateway.last()).outcome.status == "answered"
                assert gateway.ledger.charges[-1][1].cost_nano == 12 * 1_000 + 7 * 4_000
        assert one.connections == 1


@pytest.mark.parametrize("ending", ["stays open", "is reset"])
async def test_a_connection_that_does_not_end_with_its_stream_costs_nobody_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """The caller has its whole reply and its end, the model has not failed, and the journal says so."""
    monkeypatch.setattr(streams, "AFTER_END_S", 0.01)

    async def finish(x: Exchange) -> None:
        if ending == "is reset":
            x.reset()
        else:
            await x.until_gone()

    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        for dialect in DIALECTS:
            one.script(sse(openai_events("cheap"), then=finish))
            heard = await gateway.ask(dialect, stream=True)
            assert (heard.status, heard.text, heard.whole) == (200, TEXT, True), heard
            assert (await gateway.last()).outcome.status == "answered"
        assert gateway.router.health.resting() == () and gateway.router.health.cause(CHEAP) == ""


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_key_that_a_provider_quotes_with_status_200_reaches_nobody(
    tmp_path: Path, stream: bool, begun: bool
) -> None:
    """The audit at the end of the block looks for it: in replies, in the journal, in the log."""
    said = {"error": {"message": f"Incorrect API key provided: {CANARY}-one", "code": 401}}
    before = openai_events("cheap", done=False)[:2] if begun else []
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        for dialect in DIALECTS:
            gateway.rested()
            one.script(sse([*before, event(said)]) if stream else json_reply(said))
            heard = await gateway.ask(dialect, stream=stream or None)
            assert heard.status == (200 if stream and begun else 502)
            assert b"[redacted]" in heard.body


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
async def test_a_messages_stream_without_event_names_or_with_the_other_formats_end(
    tmp_path: Path, dialect: Dialect
) -> None:
    """Clients of that format go by the names, and take nothing for whole that has no `message_stop`."""
    events = anthropic_events("cheap")
    unnamed = [each[each.index(b"data: ") :] for each in events]
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, wire="anthropic")) as gateway:
        one.script(sse(unnamed), sse([*events[:-1], b"data: [DONE]\n\n"]), sse([*events, b"data: [DONE]\n\n"]))
        for _ in range(3):
            heard = await gateway.ask(dialect, stream=True)
            assert (heard.status, heard.text, heard.whole) == (200, TEXT, True), heard
            assert dialect.name != "anthropic" or all(name == data["type"] for name, data in heard.events)
            assert (await gateway.last()).outcome.status == "answered"


KEPT_ALIVE = {"blank lines": b"\n \r\n\t", "comments": b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\r\n\r\n"}


@pytest.mark.parametrize("content_type", ["application/json", "text/plain; charset=utf-8", "application/octet-stream"])
@pytest.mark.parametrize("before", ["", *KEPT_ALIVE])
async def test_a_whole_reply_is_one_by_what_it_says(tmp_path: Path, content_type: str, before: str) -> None:
    """Whatever its content type is called, and whatever kept the connection alive before it."""
    for wire, body in (("openai", openai_body("cheap")), ("anthropic", anthropic_body("cheap"))):
        home = tmp_path / wire
        home.mkdir()
        async with FakeUpstream() as one, Gateway(home, world(one, wire=wire)) as gateway:
            for dialect in DIALECTS:
                one.script(plain(KEPT_ALIVE.get(before, b"") + json.dumps(body).encode(), content_type))
                heard = await gateway.ask(dialect)
                assert (heard.status, heard.text, heard.model) == (200, TEXT, CHEAP), heard
                await gateway.settled()
                assert gateway.ledger.charges[-1][1].kind == "reported"


@pytest.mark.parametrize(
    ("body", "content_type", "kind"),
    [
        (b'{"error":{"message":"no","code":429}}', "text/plain", "rate_limited"),
        (b": PROCESSING\n\n" + b'{"error":{"message":"no","code":429}}', "application/json", "rate_limited"),
        (b'{"status":"ok"}', "text/plain", "garbled"),
        (b"[]", "application/octet-stream", "garbled"),
        (b": PROCESSING", "text/plain", "garbled"),
        (json.dumps(openai_body("cheap")).encode()[:-1], "text/plain", "garbled"),
        (json.dumps(openai_body("cheap")).encode(), "text/html", "garbled"),
        (b"data: " + json.dumps(openai_body("cheap")).encode(), "text/plain", "garbled"),
    ],
)
async def test_what_is_no_whole_reply_is_none(tmp_path: Path, body: bytes, content_type: str, kind: str) -> None:
    async with FakeUpstream() as one, FakeUpstream() as two, Gateway(tmp_path, world(one, two)) as gateway:
        one.script(plain(body, content_type))
        heard = await gateway.ask()
        assert (heard.status, heard.model) == (200, DEAR), heard
        events = (await gateway.last()).episode.events
        assert [event.kind for event in events if isinstance(event, Failed)] == [kind]
