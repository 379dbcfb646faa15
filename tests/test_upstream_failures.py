"""Reading a provider's refusal, decompressing with a bound, and telling addresses apart: pure, as tables and laws."""

from __future__ import annotations

import re
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.core.blame import kind_inside_reply, kind_of
from tierwise.providers.addresses import forbidden
from tierwise.providers.failures import (
    MESSAGE_CHARACTERS,
    RETRY_AFTER_CAP_MS,
    clean,
    message_of,
    redact,
    retry_after_ms,
)
from tierwise.providers.inflate import PIECE_BYTES, Bomb, Broken, Inflater

NOW_S = 1_795_000_000.0  # Wed, 18 Nov 2026 11:06:40 GMT
KEY = "q7Zr-no-known-shape-0123456789"


# ------------------------------------------------------------------------------------------------ Retry-After (U1)


@pytest.mark.parametrize(
    ("headers", "wait_ms"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2_000),
        ({"retry-after": " 2 "}, 2_000),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "1.5"}, 1_500),
        ({"retry-after": "0.0001"}, 1),
        ({"retry-after": "61"}, 60_000),
        ({"retry-after": "9" * 5_000}, 60_000),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "1e3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "٣"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Wed, 18 Nov 2026 11:06:50 GMT"}, 10_000),
        ({"retry-after": "Wednesday, 18-Nov-26 11:06:50 GMT"}, 10_000),
        ({"retry-after": "2026-11-18T11:06:50Z"}, 10_000),
        ({"retry-after": "Wed, 18 Nov 2037 11:06:50 GMT"}, 60_000),
        ({"retry-after": "Wed, 18 Nov 2020 11:06:50 GMT"}, None),
        ({"retry-after": "Wed, 99 Nov 2026 11:06:50 GMT"}, None),
        # the provider's clock is an hour wrong, and says so
        ({"retry-after": "Wed, 18 Nov 2026 10:06:50 GMT", "date": "Wed, 18 Nov 2026 10:06:40 GMT"}, 10_000),
        ({"retry-after-ms": "250", "retry-after": "9"}, 250),
        ({"retry-after-ms": "nonsense", "retry-after": "9"}, 9_000),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20ms"}, 20),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m1.5s"}, 60_000),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6.1s"}, 6_100),
        ({"x-ratelimit-remaining-tokens": "12", "x-ratelimit-reset-tokens": "6s"}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "later"}, None),
        ({"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": "2026-11-18T11:06:47Z"},
         7_000),
    ],
)  # fmt: skip
def test_how_long_to_wait(headers: dict[str, str], wait_ms: int | None) -> None:
    assert retry_after_ms(headers, NOW_S) == wait_ms


@given(
    st.dictionaries(
        st.sampled_from(
            ["retry-after", "retry-after-ms", "date", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
             "anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"]
        ),
        st.one_of(st.text(), st.integers().map(str), st.floats().map(str), st.datetimes().map(str), st.just("0")),
    )
)  # fmt: skip
def test_a_wait_is_none_or_within_the_cap_whatever_is_said(headers: dict[str, str]) -> None:
    wait = retry_after_ms(headers, NOW_S)
    assert wait is None or (isinstance(wait, int) and 0 <= wait <= RETRY_AFTER_CAP_MS)


GOOGLE_WAIT = b"""[{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "You exceeded your current quota,
please check your plan and billing details. Please retry in 34.07s.", "details": [{"@type": "google.rpc.QuotaFailure"},
{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34s"}]}}]""".replace(b"\n", b" ")


@pytest.mark.parametrize(
    ("headers", "body", "wait_ms"),
    [
        ({}, GOOGLE_WAIT, 34_000),
        ({"retry-after": "2"}, GOOGLE_WAIT, 2_000),
        ({}, GOOGLE_WAIT.replace(b'"34s"', b'"34.074824224s"'), 34_075),
        ({}, GOOGLE_WAIT.replace(b'"34s"', b'"3600s"'), 60_000),
        ({}, GOOGLE_WAIT.replace(b'"34s"', b'"-3s"'), None),
        ({}, GOOGLE_WAIT.replace(b'"34s"', b"34"), None),
        ({}, b'{"error":{"details":{"retryDelay":"1s"}}}', None),
    ],
)
def test_how_long_to_wait_where_the_body_says_it(headers: dict[str, str], body: bytes, wait_ms: int | None) -> None:
    assert retry_after_ms(headers, NOW_S, body) == wait_ms


# ------------------------------------------------------------------------------------------------ messages and kinds


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"No such model","type":"x","code":null}}', "No such model"),
        (b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}', "Overloaded"),
        (b'[{"error":{"code":503,"message":"Model overloaded","status":"UNAVAILABLE"}}]', "Model overloaded"),
        (b'{"error":"model \'x\' not found"}', "model 'x' not found"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"object":"error","message":"too long","code":400}', "too long"),
        (b"<html><head><title>502 Bad\nGateway</title></head><body>x</body></html>", "502 Bad Gateway"),
        (b"<!DOCTYPE html><body><h1>Blocked</h1> by &lt;policy&gt;</body>", "Blocked by <policy>"),
        (b"no healthy upstream\r\n", "no healthy upstream"),
        (b'{"error":{"message":"Provider returned error","code":429,"metadata":{"raw":"z is busy"}}}',
         "Provider returned error: z is busy"),
        (b'{"error":{"message":"Provider returned error","metadata":{"raw":{}}}}', "Provider returned error"),
        (b"\xff\xfe\x00bad", "\ufffd\ufffdbad"),
        (b"", ""),
        (b'{"error":{"message":"half', '{"error":{"message":"half'),
        (b'{"error":{"message":5,"code":true,"type":[]}}', '{"error":{"message":5,"code":true,"type":[]}}'),
        (msgspec.json.encode({"error": {"message": "a\u202eb\x07\u200bc\x1b[31m\nd"}}), "abc[31m d"),
    ],
)  # fmt: skip
def test_the_providers_own_words_are_found_in_every_shape(body: bytes, message: str) -> None:
    assert message_of(body) == message


@given(st.one_of(st.binary(), st.text().map(str.encode), st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["error", "message", "code", "type"]), inner),
).map(msgspec.json.encode)), st.integers(100, 999))  # fmt: skip
def test_any_body_has_a_kind_and_a_short_printable_message(body: bytes, status: int) -> None:
    message = message_of(body, KEY)
    assert len(message) <= MESSAGE_CHARACTERS
    assert message.isprintable()
    kind_of(status, body)
    kind_inside_reply(body)


@given(st.text(), st.text(), st.integers(0, 5_000))
def test_the_key_we_sent_is_never_in_a_message(before: str, after: str, padding: int) -> None:
    text = before + "x" * padding + KEY + after
    assert KEY not in clean(text, KEY)
    assert KEY[:8] not in clean(text, KEY)
    assert KEY.encode() not in redact(text.encode(), KEY)


@pytest.mark.parametrize(
    "words",
    ["sk-proj-abc123", "sk-ant-api03-x_y-z", "Bearer abcdef", "AIzaSyA1234567890abc", "gsk_abcdefghijklmnop", "sk-a**z",
     "AKIAIOSFODNN7EXAMPLE", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"],
)  # fmt: skip
def test_anything_shaped_like_a_key_is_taken_out_and_the_rest_stays(words: str) -> None:
    hidden = words.removeprefix("Bearer ")
    assert hidden not in clean(f"the key {words}, was refused")
    assert clean(f"the key {words}, was refused").endswith(", was refused")
    body = redact(msgspec.json.encode({"error": {"message": f"the key {words}", "n": 1}}))
    assert hidden.encode() not in body
    assert msgspec.json.decode(body)["error"]["n"] == 1


@pytest.mark.parametrize("words", ["risk-assessment of a task-force", "max_tokens must be at most 4096", "Bearing"])
def test_ordinary_words_are_left_alone(words: str) -> None:
    assert clean(words) == words


def test_reading_an_error_takes_linear_time() -> None:
    """A pattern that looked at the rest of the text from each of its starts would take hours for these, not a blink."""
    for hostile in (
        "<title" * 10_000,
        "<" * 60_000,
        "Bearer " * 9_000,
        "sk-" * 20_000,
        "eyJ" + "a." * 30_000,
        "h1m" * 20_000,
    ):
        message_of(b"<html>" + hostile.encode())
        redact(hostile.encode(), KEY)
        retry_after_ms({"retry-after": hostile, "x-ratelimit-remaining-tokens": "0"}, NOW_S)


# ------------------------------------------------------------------------------------------------ decompression (U7)


def packed(body: bytes, wbits: int) -> bytes:
    pack = zlib.compressobj(9, wbits=wbits)
    return pack.compress(body) + pack.flush()


@given(st.binary(max_size=3_000), st.integers(1, 60), st.sampled_from([31, 15, -15]), st.integers(1, 700))
def test_compressed_bodies_come_back_whole_however_they_are_cut(block: bytes, times: int, wbits: int, cut: int) -> None:
    body = block * times
    data = packed(body, wbits)
    inflater = Inflater("gzip" if wbits == 31 else "deflate")
    pieces = [piece for start in range(0, len(data), cut) for piece in inflater.feed(data[start : start + cut])]
    assert b"".join(pieces) == body
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
    assert inflater.done


def test_a_bomb_is_found_after_a_mebibyte_or_so() -> None:
    sizes: list[int] = []
    with pytest.raises(Bomb):
        sizes.extend(len(piece) for piece in Inflater("gzip").feed(packed(b" " * 50_000_000, 31)[:5_000]))
    assert sum(sizes) <= 2 * 2**20


def test_what_follows_a_compressed_body_is_refused_and_a_cut_one_is_not_done() -> None:
    data = packed(b"{}", 31)
    with pytest.raises(Broken):
        list(Inflater("gzip").feed(data + b"more"))
    half = Inflater("gzip")
    list(half.feed(data[:-3]))
    assert not half.done


# ------------------------------------------------------------------------------------------------ addresses (J2)


@pytest.mark.parametrize(
    ("host", "refused"),
    [
        ("169.254.169.254", True), ("169.254.0.0", True), ("169.254.255.255", True), ("fe80::1", True),
        ("fe80::1%eth0", True), ("febf::1", True), ("fd00:ec2::254", True), ("fd00:0ec2:0::0254", True),
        ("::ffff:169.254.169.254", True), ("::ffff:a9fe:a9fe", True), ("::169.254.169.254", True),
        ("64:ff9b::169.254.169.254", True), ("2002:a9fe:a9fe::1", True), ("100.100.100.200", True),
        ("168.63.129.16", True), ("127.0.0.1", False), ("::1", False), ("10.0.0.1", False), ("192.168.1.1", False),
        ("172.16.0.1", False), ("169.253.255.255", False), ("169.255.0.1", False), ("fec0::1", False),
        ("fd00:ec2::253", False), ("::ffff:127.0.0.1", False), ("8.8.8.8", False), ("100.100.100.201", False),
        ("api.openai.com", False), ("", False),
    ],
)  # fmt: skip
def test_which_addresses_are_refused(host: str, refused: bool) -> None:
    assert forbidden(host) is refused


def test_every_link_local_address_is_refused_in_every_spelling() -> None:
    for low in range(0, 65_536, 257):
        v4 = f"169.254.{low >> 8}.{low & 255}"
        assert all(forbidden(text) for text in (v4, f"::ffff:{v4}", f"64:ff9b::{v4}", f"::{v4}", f"fe80::{low:x}"))


def test_a_kind_inside_a_200_is_the_providers_own_word_for_it() -> None:
    assert kind_inside_reply(b'{"choices":[]}') is None
    assert kind_inside_reply(b'{"error":{"code":502,"message":"x"}}') == "overloaded"
    assert kind_inside_reply(b'{"error":{"type":"authentication_error"}}') == "auth"
    assert kind_inside_reply(b'{"error":{"code":"model_not_found"}}') == "not_found"
    assert kind_inside_reply(b'{"error":{"code":200}}') == "garbled"
    assert re.fullmatch(r"\w+", kind_of(418))


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        # Google's limit for a minute has the words of OpenAI's account without credit
        (429, GOOGLE_WAIT, "rate_limited"),
        (429, b'{"error":{"message":"You exceeded your current quota","type":"insufficient_quota"}}', "auth"),
        (429, b'{"error":{"message":"suspended","type":"exceeded_current_quota_error"}}', "auth"),
        (400, b'{"error":{"message":"in good standing","code":"Arrearage"}}', "auth"),
        (400, b'{"error":{"message":"Billing hard limit","code":"billing_hard_limit_reached"}}', "auth"),
        (400, b'{"type":"error","error":{"type":"invalid_request_error",'
              b'"message":"You have reached your specified API usage limits."}}', "auth"),
        (400, b'{"code":"Client specified an invalid argument","error":"Incorrect API key provided: xx***"}', "auth"),
        (400, b'[{"error":{"code":400,"message":"API key expired.","status":"INVALID_ARGUMENT"}}]', "auth"),
        # one request's words are not a wrong key
        (403, b'{"code":"x","error":"Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"}',
         "rejected"),
        (403, b'{"error":{"code":403,"message":"This model requires moderation, and your input was flagged"}}',
         "rejected"),
        (403, b'{"code":"permission-denied","error":"Access to the chat endpoint is denied"}', "auth"),
        # a model that is not there
        (400, b'{"error":{"message":"Model Not Exist","type":"invalid_request_error"}}', "not_found"),
        (400, b'{"error":{"message":"a/b is not a valid model ID","code":400}}', "not_found"),
        (400, b'{"object":"error","message":"Invalid model: a","type":"invalid_model","code":"1500"}', "not_found"),
        (400, b'{"error":{"message":"gone","code":"model_decommissioned"}}', "not_found"),
        (404, b'{"error":{"code":"DeploymentNotFound","message":"no such deployment"}}', "not_found"),
        (400, b'{"error":{"code":"content_filter","status":400,"innererror":{"code":"ResponsibleAI"}}}', "rejected"),
        (400, b'{"message":"Invalid model: a","type":"invalid_model"}', "rejected"),  # no error, says its shape
        (498, b'{"error":{"message":"capacity exceeded"}}', "overloaded"),
    ],
)  # fmt: skip
def test_a_refusal_is_known_by_what_its_provider_means(status: int, body: bytes, kind: str) -> None:
    assert kind_of(status, body) == kind
