"""What a provider's refusal says: how long to wait, and its words, without secrets. Its kind is in `core.blame`.

Pure functions of headers and a bounded body; the clock is passed in. Proxies in between send HTML or a line of text.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from tierwise.core.blame import said_in

MESSAGE_CHARACTERS = 500
RETRY_AFTER_CAP_MS = 60_000
REDACTED = "[redacted]"
_READ_CHARACTERS = 4_000  # of a message, before it is cleaned and cut to MESSAGE_CHARACTERS
SHORTEST_SECRET = 6  # a shorter "key" is a placeholder, and hiding it would blank ordinary words

# Key-shaped words of the providers we know, whoever they belong to: some echo the key they were sent, half masked.
_SECRETS = (
    r"\bsk-[A-Za-z0-9_*.\-]{3,}|\b(?:gsk|xai|csk|hf|nvapi|pplx|tgp|tw)[-_][A-Za-z0-9_*\-]{12,}"
    r"|\bAIza[A-Za-z0-9_\-]{8,}|\bAKIA[A-Z0-9]{12,}|\beyJ[A-Za-z0-9_\-]{10,}\.[A-Za-z0-9_.\-]+"
)
_BEARER = r"\b(Bearer|Basic)[ \t]{1,8}[A-Za-z0-9._~+/=*\-]+"
_SECRETS_TEXT, _BEARER_TEXT = re.compile(_SECRETS), re.compile(_BEARER, re.IGNORECASE)
_SECRETS_BYTES, _BEARER_BYTES = re.compile(_SECRETS.encode()), re.compile(_BEARER.encode(), re.IGNORECASE)


def message_of(body: bytes, secret: str = "") -> str:
    """The provider's own words, for people: at most 500 characters on one line, no control characters, no keys."""
    text = said_in(body).message or _plain(body)
    return clean(text, secret)


def clean(text: str, secret: str = "", limit: int = MESSAGE_CHARACTERS) -> str:
    """One printable line without secrets.

    What is not printable goes first, since a zero-width character inside a key would hide it from the patterns; then
    the keys go; the cut comes last, since half a key is still half a key.
    """
    if len(text) > _READ_CHARACTERS:
        text = text[: _READ_CHARACTERS - len(secret)]
    text = " ".join(text.split())
    if not text.isprintable():
        text = "".join(character for character in text if character.isprintable())
    if len(secret) >= SHORTEST_SECRET:
        text = text.replace(secret, REDACTED)
    text = _SECRETS_TEXT.sub(REDACTED, _BEARER_TEXT.sub(rf"\1 {REDACTED}", text))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def redact(body: bytes, secret: str = "") -> bytes:
    """The same body without the key we sent and without anything shaped like one. Stays valid JSON if it was."""
    if len(secret) >= SHORTEST_SECRET:
        body = body.replace(secret.encode("utf-8", "replace"), REDACTED.encode())
    body = _BEARER_BYTES.sub(rb"\1 " + REDACTED.encode(), body)
    return _SECRETS_BYTES.sub(REDACTED.encode(), body)


def _plain(body: bytes) -> str:
    """Text of a body that is no JSON error: an HTML page's title, or its words, or the line as it is."""
    text = body[: 2 * _READ_CHARACTERS].decode("utf-8", "replace")
    lower = text.lower()
    if "<html" not in lower and "<!doctype" not in lower:
        return text
    start = lower.find("<title")
    if start >= 0:
        start, end = lower.find(">", start) + 1, lower.find("</title", start)
        if 0 < start < end:
            return html.unescape(text[start:end])
    return html.unescape(re.sub(r"<[^<>]*>", " ", text))


# ----------------------------------------------------------------------------------------------- how long to wait

_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)
_DURATION = re.compile(
    r"(?:(\d{1,6})h)?(?:(\d{1,6})m(?!s))?(?:(\d{1,9}(?:\.\d{1,9})?)s)?(?:(\d{1,9}(?:\.\d{1,9})?)ms)?", re.ASCII
)


def retry_after_ms(headers: Mapping[str, str], now_s: float, body: bytes = b"") -> int | None:
    """How long the provider asks us to wait, 0..60,000 ms; None when it did not say, or nothing that makes sense.

    `headers` is looked up by lower-case names; `now_s` is wall-clock seconds since 1970. In order: `retry-after-ms`
    (OpenAI), `retry-after` as seconds or as a date (RFC 9110, 10.2.3), then the reset times of whichever rate limit
    has nothing remaining, then the `retryDelay` in an error of Google's, who sends no such header. A negative wait, or
    a date that has passed, says nothing that we can use.
    """
    wait_ms = _seconds(headers.get("retry-after-ms", ""), 1.0)
    if wait_ms is None:
        said = headers.get("retry-after", "")
        wait_ms = _seconds(said, 1_000.0)
        if wait_ms is None and said:
            wait_ms = _until_date(said, headers.get("date", ""), now_s)
    if wait_ms is None:
        wait_ms = _until_reset(headers, now_s)
    if wait_ms is None and body:
        wait_ms = _duration_ms(said_in(body).wait)
    return None if wait_ms is None else min(math.ceil(wait_ms), RETRY_AFTER_CAP_MS)


def _seconds(text: str, unit_ms: float) -> float | None:
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) > 12:
        return float(RETRY_AFTER_CAP_MS)  # absurd, and meant as long
    return float(text) * unit_ms if _SECONDS.fullmatch(text) else None


def _until_date(text: str, date: str, now_s: float) -> float | None:
    """Measured from the provider's own `Date` where it sent one, so that a wrong clock on either side cancels out."""
    then_s = _date_s(text)
    if then_s is None:
        return None
    from_s = _date_s(date)
    wait_ms = (then_s - (now_s if from_s is None else from_s)) * 1_000.0
    return wait_ms if wait_ms >= 0 else None


def _date_s(text: str) -> float | None:
    if not 8 <= len(text) <= 64:
        return None
    try:
        found = datetime.fromisoformat(text) if text[0].isdigit() else parsedate_to_datetime(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _until_reset(headers: Mapping[str, str], now_s: float) -> float | None:
    """From `x-ratelimit-reset-requests: 1m2s` (OpenAI, Groq) and `anthropic-ratelimit-requests-reset: DATE`."""
    waits: list[float] = []
    for what in ("requests", "tokens"):
        if headers.get(f"x-ratelimit-remaining-{what}", "").strip() == "0":
            wait = _duration_ms(headers.get(f"x-ratelimit-reset-{what}", ""))
        elif headers.get(f"anthropic-ratelimit-{what}-remaining", "").strip() == "0":
            wait = _until_date(headers.get(f"anthropic-ratelimit-{what}-reset", ""), headers.get("date", ""), now_s)
        else:
            continue
        if wait is not None:
            waits.append(wait)
    return max(waits, default=None)


def _duration_ms(text: str) -> float | None:
    text = text.strip()
    plain = _seconds(text, 1_000.0)
    if plain is not None:
        return plain
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return ((hours * 60 + minutes) * 60 + seconds) * 1_000.0 + milliseconds
