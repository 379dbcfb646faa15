"""Upstream faults U1-U9 and U11 through the whole gateway: the right status, the next model, no hold left.

Every test runs over real sockets against scripted providers; `Gateway` audits the books and greps for keys at its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.callers import ANTHROPIC, DIALECTS, OPENAI, Dialect
from tests.support.gateway import CANARY, CHEAP, DEAR, Gateway, attempts_of, world
from tests.support.replies import anthropic_events, openai_events
from tests.support.upstream import (
    TEXT,
    Exchange,
    FakeUpstream,
    Step,
    broken_chunks,
    closed_port,
    cut_in_utf8,
    drip,
    drip_headers,
    empty_200,
    endless_body,
    error,
    error_inside_stream,
    gzip_bomb,
    hang_after_headers,
    hang_before_headers,
    hang_up,
    html_page,
    huge_header,
    huge_line,
    json_reply,
    malformed_json,
    many_headers,
    not_http,
    plain,
    rate_limited,
    redirect,
    reset,
    slow_interim,
    sse,
    truncated_chunked,
    truncated_length,
    unreachable,
    until_close,
)
from tierwise.routing.health import Health

SOON = {"first_token_ms": 500, "idle_ms": 500, "total_ms": 1_000}
INSIDE = {"error": {"message": "overloaded, sorry", "type": "server_error", "code": 503}}

# name -> (the fault, what the attempt is called, the status when nobody else answers)
REFUSALS: dict[str, tuple[Step, str, int]] = {
    "U1 429": (rate_limited("60"), "rate_limited", 503),
    "U1 429 without a wait": (rate_limited(None), "rate_limited", 503),
    "U1 429 absurd": (rate_limited("99999999999999999"), "rate_limited", 503),
    "U1 429 negative": (rate_limited("-5"), "rate_limited", 503),
    "U1 429 date": (rate_limited("Fri, 31 Dec 2100 23:59:59 GMT"), "rate_limited", 503),
    **{f"U2 {status}": (error(status), "overloaded", 503) for status in (500, 502, 503, 504, 529)},
    "auth 401": (error(401, f"Incorrect API key provided: {CANARY}-one"), "auth", 502),
    "auth 403": (error(403), "auth", 502),
    "out of credit": (error(429, "You exceeded your current quota", code="insufficient_quota"), "auth", 502),
    "404": (error(404, "model not found"), "not_found", 502),
    "rejected 400": (error(400, "temperature is too hot", type="invalid_request_error"), "rejected", 400),
    "rejected 422": (error(422), "rejected", 422),
}
BROKEN: dict[str, tuple[Step, str, int]] = {
    "U6 error in a 200": (json_reply(INSIDE), "", 0),
    "U6 malformed": (malformed_json, "garbled", 502),
    "U6 html": (html_page(), "garbled", 502),
    "U6 empty": (empty_200(), "garbled", 502),
    "U6 null": (json_reply(None), "garbled", 502),
    "U6 list": (json_reply([1]), "garbled", 502),
    "U6 number": (json_reply(7), "garbled", 502),
    "U6 empty object": (json_reply({}), "garbled", 502),
    "U6 null fields": (json_reply({"id": None, "choices": None, "usage": None}), "garbled", 502),
    "U6 choices are text": (json_reply({"choices": "yes"}), "garbled", 502),
    "U6 no type": (plain(b"{}", ""), "garbled", 502),
    "U6 text": (plain(b"ok", "text/plain"), "garbled", 502),
    "U6 no content": (plain(b"", "application/json", 204), "garbled", 502),
    "U9 redirect": (redirect("http://127.0.0.1:9/v1/chat/completions"), "garbled", 502),
    "U7 gzip bomb": (gzip_bomb(24), "too_large", 502),
    "U8 endless": (endless_body(), "too_large", 502),
    "U8 headers": (many_headers(20_000), "", 0),
    "U8 header": (huge_header(2**18), "", 0),
    "truncated": (truncated_length(), "cut", 502),
    "until close": (until_close(b'{"id":'), "", 502),
    "reset": (reset, "", 0),
    "hung up": (hang_up, "", 0),
    "no http": (not_http(), "", 0),
}
STREAM_BROKEN: dict[str, tuple[Step, str, int]] = {
    "empty stream": (sse([]), "garbled", 502),
    "no events": (sse([b": hello\n\n"]), "", 0),
    "nonsense": (sse([b"data: nonsense\n\n"]), "garbled", 502),
    "only comments": (sse([b": waiting\n\n", b": waiting\n\n"]), "", 0),
    "only a role": (sse(openai_events("cheap", done=False)[:1]), "cut", 502),
    "error after a role": (error_inside_stream(openai_events("cheap")[:1]), "overloaded", 503),
    "only done": (sse([b"data: [DONE]\n\n"]), "", 0),
    "error first": (sse([b'data: {"error":{"message":"overloaded","type":"server_error"}}\n\n']), "", 0),
    "broken chunks": (broken_chunks(), "", 0),
    "S10 huge line": (huge_line(), "", 502),
    "S6 cut in a character": (cut_in_utf8(), "", 0),
    "S6 cut at once": (truncated_chunked([]), "cut", 0),
    "S6 reset at once": (truncated_chunked([], reset=True), "cut", 0),
}
OVERLOADED = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
ANTHROPIC_BROKEN: dict[str, tuple[Step, str, int]] = {
    "529": (error(529, "Overloaded", type="overloaded_error"), "overloaded", 503),
    "401": (error(401, "invalid x-api-key", type="authentication_error"), "auth", 502),
    "error first": (sse([OVERLOADED]), "overloaded", 503),
    "error after the start": (sse([*anthropic_events("cheap")[:2], OVERLOADED]), "overloaded", 503),
    "cut after the start": (truncated_chunked(anthropic_events("cheap")[:2]), "cut", 502),
    "only a ping": (sse([b'event: ping\ndata: {"type":"ping"}\n\n']), "", 0),
    "the other dialect": (sse(openai_events("cheap")), "", 0),
    "html": (html_page(), "garbled", 502),
}
SILENT: dict[str, Step] = {
    "U5 before headers": hang_before_headers,
    "U5 after headers": hang_after_headers("application/json"),
    "U5 stream after headers": hang_after_headers(),
    "drip of headers": drip_headers(),
    "S13 drip of a body": drip(content_type="application/json"),
    "S13 drip of a stream": drip(),
    "interim replies": slow_interim(10),
}


async def _fault(
    gateway: Gateway, one: FakeUpstream, two: FakeUpstream, fault: tuple[Step, str, int], stream: bool
) -> None:
    """The laws of one fault, in both dialects: alone it costs a fallback, twice an error in the caller's shape."""
    step, kind, status = fault
    for dialect in DIALECTS:
        gateway.rested()
        one.script(step)
        heard = await gateway.ask(dialect, stream=stream or None)
        assert (heard.status, heard.text, heard.model) == (200, TEXT, DEAR), heard
        assert heard.headers["x-tierwise-attempts"] == "2"
        gateway.rested()
        one.script(step)
        two.script(step if status else error(503))
        heard = await gateway.ask(dialect, stream=stream or None)
        assert heard.status == (status or 503), heard
        assert heard.is_anthropic == (dialect is ANTHROPIC)
        tried = attempts_of(heard)
        assert [each["model"] for each in tried] == [CHEAP, DEAR]
        assert not kind or [each["kind"] for each in tried] == [kind, kind if status else "overloaded"], tried
        assert all(each["message"] for each in tried), tried
        assert heard.headers["x-tierwise-decision"]
    await gateway.settled()
    assert len(one.requests) == len(two.requests) == 4, "each was asked exactly once a request"
    assert one.failures == []


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("name", REFUSALS)
async def test_a_refusal_costs_a_fallback_and_nothing_else(tmp_path: Path, name: str, stream: bool) -> None:
    async with FakeUpstream() as one, FakeUpstream() as two, Gateway(tmp_path, world(one, two)) as gateway:
        await _fault(gateway, one, two, REFUSALS[name], stream)
        answered = [charge for _, charge in gateway.ledger.charges if charge.kind != "released"]
        assert [charge.billed for charge in answered] == [DEAR, DEAR], "no error reply is billed"


@pytest.mark.parametrize("name", BROKEN)
async def test_a_reply_that_is_none_costs_a_fallback(tmp_path: Path, name: str) -> None:
    async with FakeUpstream() as one, FakeUpstream() as two, Gateway(tmp_path, world(one, two)) as gateway:
        await _fault(gateway, one, two, BROKEN[name], False)


@pytest.mark.parametrize("name", ["U6 html", "U6 malformed", "reset", "hung up", "U9 redirect"])
async def test_a_plain_reply_to_a_stream_costs_a_fallback(tmp_path: Path, name: str) -> None:
    async with FakeUpstream() as one, FakeUpstream() as two, Gateway(tmp_path, world(one, two)) as gateway:
        await _fault(gateway, one, two, (BROKEN[name][0], "", 0), True)


@pytest.mark.parametrize("name", STREAM_BROKEN)
async def test_a_stream_that_breaks_before_its_first_byte_costs_a_fallback(tmp_path: Path, name: str) -> None:
    async with FakeUpstream() as one, FakeUpstream() as two, Gateway(tmp_path, world(one, two)) as gateway:
        await _fault(gateway, one, two, STREAM_BROKEN[name], True)


async def test_an_event_stream_is_never_resumed_by_another_model(tmp_path: Path) -> None:
    """U2, S7: what breaks after the first byte breaks for the caller, and nobody else is asked."""
    started = openai_events("cheap", done=False)[:3]
    async with FakeUpstream() as one, FakeUpstream() as two, Gateway(tmp_path, world(one, two)) as gateway:
        for dialect in DIALECTS:
            for reset_it in (False, True):
                one.script(truncated_chunked(started, reset=reset_it))
                gateway.rested()  # a model whose streams break rests as well, which is another law
                heard = await gateway.ask(dialect, stream=True)
                assert heard.status == 200 and not heard.whole
                assert heard.stream_error["code"].startswith("upstream_")
                assert heard.text and TEXT.startswith(heard.text)
        await gateway.settled()
        assert len(two.requests) == 0
        assert {charge.kind for _, charge in gateway.ledger.charges} == {"estimated"}
        assert all(charge.cost_nano > 0 for _, charge in gateway.ledger.charges)


@pytest.mark.parametrize("name", ANTHROPIC_BROKEN)
async def test_a_stream_of_the_other_wire_that_breaks_first_costs_a_fallback(tmp_path: Path, name: str) -> None:
    """Anthropic's overload often comes as an event after message_start: nothing has been said by then."""
    async with (
        FakeUpstream() as one,
        FakeUpstream() as two,
        Gateway(tmp_path, world(one, two, wire="anthropic")) as gateway,
    ):
        await _fault(gateway, one, two, ANTHROPIC_BROKEN[name], True)


@pytest.mark.parametrize("bills", [True, False], ids=["billed", "not billed"])
@pytest.mark.parametrize("name", SILENT)
async def test_silence_ends_at_the_deadline_and_is_charged_as_its_provider_bills(
    tmp_path: Path, name: str, bills: bool
) -> None:
    """U5, U11, S13: the worst case, unless the provider's row says that what we give up is not billed."""
    async with FakeUpstream() as one, FakeUpstream() as two:
        config = world(one, two, hurry=SOON, provider={"bills_abandoned": bills})
        async with Gateway(tmp_path, config) as gateway:
            step = SILENT[name]
            stream = "stream" in name or None
            one.script(step)
            heard = await gateway.ask(OPENAI, stream=stream)
            assert (heard.status, heard.text, heard.model) == (200, TEXT, DEAR), heard
            await one.requests[0].gone.wait()  # U5: let go, so that the provider stops
            await gateway.settled()
            (_, first), (_, second) = gateway.ledger.charges
            held = gateway.ledger.holds[0][0].amount_nano
            assert (first.cost_nano, first.kind) == ((held, "estimated") if bills else (0, "released"))
            assert held > 0 and (second.billed, second.kind) == (DEAR, "reported")
            record = await gateway.last()
            assert record.outcome.cost_nano == first.cost_nano + second.cost_nano


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_provider_that_cannot_be_reached_costs_a_fallback_and_no_money(tmp_path: Path, stream: bool) -> None:
    """U4."""
    async with FakeUpstream() as two:
        with unreachable() as black_hole:
            for at in (closed_port(), black_hole, two.base_url.replace("http:", "https:")):
                async with Gateway(tmp_path, world(at, two, hurry={"connect_ms": 100})) as gateway:
                    heard = await gateway.ask(ANTHROPIC, stream=stream or None)
                    assert (heard.status, heard.text, heard.model) == (200, TEXT, DEAR), heard
                    await gateway.settled()
                    assert [charge.kind for _, charge in gateway.ledger.charges] == ["released", "reported"]
                async with Gateway(tmp_path, world(at, hurry={"connect_ms": 100})) as gateway:
                    heard = await gateway.ask(ANTHROPIC, stream=stream or None)
                    assert heard.status in (502, 503) and len(attempts_of(heard)) == 2
                    assert gateway.ledger.cost_nano == 0


# ------------------------------------------------------------------------------------------------ U1: Retry-After


@pytest.mark.parametrize(
    ("said", "waits_s"), [("7", 7), ("59.5", 60), ("86400", 60), ("Fri, 31 Dec 2100 23:59:59 GMT", 60)]
)
async def test_a_model_rests_as_long_as_its_provider_asks_and_at_most_a_minute(
    tmp_path: Path, said: str, waits_s: int
) -> None:
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        now = [1_000.0]
        gateway.router.books.health = Health(clock=lambda: now[0])
        one.script(rate_limited(said))
        heard = await gateway.ask()
        assert (heard.status, heard.headers["retry-after"]) == (503, str(waits_s))
        for step_s in (0.0, waits_s - 1.0):
            now[0] = 1_000.0 + step_s
            for dialect in DIALECTS:
                heard = await gateway.ask(dialect)
                assert heard.status == 503 and heard.error["code"] == "all_resting", heard
                assert CHEAP in heard.error["message"]
                assert 1 <= int(heard.headers["retry-after"]) <= waits_s - step_s + 1
        assert len(one.requests) == 1, "nobody was asked inside the window"
        now[0] = 1_000.0 + waits_s + 0.1
        assert (await gateway.ask()).status == 200
        assert len(one.requests) == 2


async def test_an_unusable_retry_after_is_no_wait_of_ours(tmp_path: Path) -> None:
    async with FakeUpstream() as one, Gateway(tmp_path, world(one)) as gateway:
        for said in ("-1", "soon", "NaN", "1e309", ""):
            gateway.rested()
            one.script(rate_limited(said))
            heard = await gateway.ask()
            assert (heard.status, heard.text) == (200, TEXT), (said, heard)  # asked once more, after our own wait


async def test_a_resting_model_is_passed_over_while_another_can_answer(tmp_path: Path) -> None:
    async with FakeUpstream() as one, FakeUpstream() as two, Gateway(tmp_path, world(one, two)) as gateway:
        one.script(rate_limited("30"))
        for _ in range(3):
            heard = await gateway.ask()
            assert (heard.status, heard.model) == (200, DEAR)
        assert (len(one.requests), len(two.requests)) == (1, 3)


# ------------------------------------------------------------------------------------------------ U2, U3: amplification


async def test_at_total_failure_the_providers_see_at_most_a_fifth_more_calls(tmp_path: Path) -> None:
    """Over 300 requests that all arrive before anything rests, with three attempts each."""
    count = 300
    async with FakeUpstream(error(503, headers=[("Retry-After", "0")])) as one:
        config = world(one, policy={"attempts": 3})
        async with Gateway(tmp_path, config) as gateway:
            gateway.router.books.health = Health(clock=_leaping())
            heard = await asyncio.gather(*(gateway.ask(DIALECTS[i % 2]) for i in range(count)))
            assert {each.status for each in heard} == {503}
            calls = len(one.requests)
            assert count <= calls <= count * 1.2, calls
            assert calls > count, "some were tried again"
            assert max(len(attempts_of(each)) for each in heard) <= 3
            assert gateway.ledger.cost_nano == 0


async def test_a_failing_provider_is_left_alone_after_a_few_failures(tmp_path: Path) -> None:
    async with (
        FakeUpstream(error(500)) as one,
        FakeUpstream() as two,
        Gateway(tmp_path, world(one, two)) as gateway,
    ):
        gateway.router.books.health = Health(clock=lambda: 0.0)
        for _ in range(50):
            assert (await gateway.ask()).model == DEAR
        assert len(one.requests) == 3


def _leaping() -> Callable[[], float]:
    """A clock that is two minutes further at every look: whatever rested has rested."""
    now = [0.0]

    def clock() -> float:
        now[0] += 120.0
        return now[0]

    return clock


# ------------------------------------------------------------------------------------------------ keys


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
async def test_a_refused_key_of_ours_names_the_provider_and_never_the_key(
    tmp_path: Path, dialect: Dialect, stream: bool
) -> None:
    """Never a 401 or 403 either: the caller's key is fine."""

    async def echo(x: Exchange) -> None:
        given = x.seen.headers.get("authorization") or x.seen.headers["x-api-key"]
        assert given.removeprefix("Bearer ").startswith(CANARY)
        await error(401, f"bad key {given} <{given[-24:]}>", type="authentication_error")(x)

    async with (
        FakeUpstream(echo) as one,
        FakeUpstream(echo) as two,
        Gateway(tmp_path, world(one, two, wire=_other(dialect))) as gateway,
    ):
        heard = await gateway.ask(dialect, stream=stream or None)
        assert heard.status == 502
        assert "one" in heard.error["message"] and "two" in heard.error["message"]
        assert [each["kind"] for each in attempts_of(heard)] == ["auth", "auth"]


def _other(dialect: Dialect) -> str:
    return "openai" if dialect is ANTHROPIC else "anthropic"


async def test_a_redirect_is_never_followed(tmp_path: Path) -> None:
    """U9: and so our key goes nowhere else."""
    async with FakeUpstream() as canary, FakeUpstream() as one:
        for status in (301, 302, 303, 307, 308):
            one.script(redirect(f"{canary.base_url}/chat/completions", status))
        async with Gateway(tmp_path, world(one, policy={"attempts": 1})) as gateway:
            for _ in range(5):
                gateway.rested()
                assert (await gateway.ask()).status == 502
        assert (canary.connections, len(one.requests)) == (0, 5)
