"""Takes out of a text what names or unlocks: addresses, numbers of telephones and cards, keys. By their shape alone, so
it is a best effort: a name, a street or a secret of no known shape stays. Linear in the text."""

from __future__ import annotations

import re
from collections.abc import Callable

EMAIL, PHONE, CARD, SECRET = "[email]", "[phone]", "[card]", "[secret]"  # what stands in their place

_SECRETS = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)"
    r"|\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic, Stripe
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[\w-]{30,}|\bxox[abeoprs]-[\w-]{10,}|\bhf_[A-Za-z0-9]{20,}"
    r"|\btw[-_][A-Za-z0-9_-]{16,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # JSON web tokens
    r"|(?<=[Bb]earer )[A-Za-z0-9._~+/-]{16,}=*",
    re.S,
)
_EMAIL = re.compile(r"(?<![\w.+-])[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_DIGITS = re.compile(r"(?<![\w.])(?:\d[ -]?){12,18}\d(?![\w])")
_PHONE = re.compile(
    r"(?<![\w.])(?:(?:\+|00)\d[\d ()./-]{5,20}\d|\(?\d{2,5}\)?[ /.-]\d{2,5}(?:[ .-]\d{2,5}){1,3})(?!\w)"
)
_DATE = re.compile(r"\d{4}[-./ ]\d{1,2}[-./ ]\d{1,2}|\d{1,2}[-./ ]\d{1,2}[-./ ]\d{4}")


def redact(text: str) -> tuple[str, int]:
    """The text without them, and how many there were."""
    many = 0
    steps: tuple[tuple[re.Pattern[str], Callable[[str], str]], ...] = (
        (_SECRETS, lambda found: SECRET),
        (_EMAIL, lambda found: EMAIL),
        (_DIGITS, lambda found: CARD if luhn(found) else found),
        (_PHONE, lambda found: PHONE if _is_phone(found) else found),
    )
    for pattern, make in steps:
        found: list[bool] = []

        def put(match: re.Match[str], make: Callable[[str], str] = make, found: list[bool] = found) -> str:
            made = make(match[0])
            found.append(made != match[0])
            return made

        text = pattern.sub(put, text)
        many += sum(found)
    return text, many


def luhn(number: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    digits = [int(letter) for letter in reversed(number) if letter.isdigit()]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[1::2]]
    return any(digits) and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_phone(found: str) -> bool:
    return 8 <= sum(letter.isdigit() for letter in found) <= 15 and not _DATE.match(found)
