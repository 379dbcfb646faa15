"""What a text is made of: counted as plain patterns count it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.core import text


@given(
    st.text(st.sampled_from("aZ09 \t\n\r.,;-*(&é日д\ud800\U0001f600\x00"), max_size=40), st.sampled_from([1, 1, 500])
)
def test_a_text_is_made_of_what_plain_patterns_find_in_it(piece: str, times: int) -> None:
    own = piece * times
    counts = text.count(own)
    plain = {
        "digit_runs": "[0-9]+",
        "lines": "\n+",
        "indents": "\n[ \t]",
        "items": "\n[-*0-9]",
        "capitals": "[A-Z]",
        "letters": "[A-Za-z]",
        "symbols": r"[{}();=<>\[\]_\\|&`]",
        "stops": r"\. ",
        "commas": ", ",
    }
    assert {name: getattr(counts, name) for name in plain} == {
        name: len(re.findall(plain[name], own)) for name in plain
    }


def test_letters_go_on_with_the_word_of_what_is_beyond_ascii() -> None:
    assert text.count("aé日a").tokens == pytest.approx(text.count("aa").tokens + text.count("é日").tokens)
