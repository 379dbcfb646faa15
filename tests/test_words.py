"""Words and figures as people read them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.core.episode import Candidate, Reason
from tierwise.core.money import MAX_NANO, dollars
from tierwise.core.words import candidate_text, counted, figure, reason_text


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(0, "call", "0 calls"), (1, "call", "1 call"), (2, "reply", "2 replies"),
     (1, "variance entry", "1 variance entry"), (3, "variance entry", "3 variance entries"),
     (2_000_000, "token", "2,000,000 tokens"), (2, "key", "2 keys")],
)  # fmt: skip
def test_one_is_one(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text


@pytest.mark.parametrize(
    ("code", "facts", "text"),
    [
        ("kept", (("models", 1), ("dropped", 2)), "1 model can serve the request, 2 cannot"),
        ("kept", (), "– models can serve the request, – cannot"),  # an older row of the journal
        ("not_agreed", (("replies", 2), ("wanted", 2)), "2 replies came, and no 2 of them agree"),
        ("attempts_exhausted", (("attempts", 1),), "the limit of 1 failed attempt is reached"),
        (
            "grade_low",
            (("model", "a/{b:c}"), ("score", 0.00001)),
            "the reply of a/{b:c} was graded 0.00001, too little",
        ),
        ("of_tomorrow", (("x", 1),), "of_tomorrow"),
    ],
)
def test_reasons_in_words(code: str, facts: Any, text: str) -> None:
    assert reason_text(Reason(at="", code=code, facts=facts)) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_no_figure_has_an_exponent_and_none_is_rounded(value: float) -> None:
    shown = figure(value)
    assert "e" not in shown.lower() and float(shown) == value
    assert shown in candidate_text(Candidate(model="m", verdict="dropped", code="too_slow", facts=(("figure", value),)))


@given(st.integers(-MAX_NANO, MAX_NANO))
def test_dollars_are_exact(nano: int) -> None:
    amount, unit = dollars(nano).split(" ")
    assert unit == "USD" and int(Decimal(amount).scaleb(9)) == nano
    assert set(amount) <= set("-0123456789.")
