"""The grams of a prompt and the trained estimator as it serves: laws of both, and what is refused."""

from __future__ import annotations

import math
import random
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.trained import made
from tests.support.worlds import MODELS, catalogue, world
from tierwise.core import grams as module
from tierwise.core.estimate import estimate_all
from tierwise.core.features import asked, extract
from tierwise.core.grams import BUCKETS, CHARACTERS, KEPT, grams, grams_of, numbers
from tierwise.core.learned import DENSE, FARTHEST, Heads, Trained, chance, dense, heads, problems
from tierwise.core.request import Features, Prompt, Turn
from tierwise.core.snapshot import dump, load

TEXTS = st.one_of(st.text(max_size=400), st.text(alphabet="ab c\n.,é漢", max_size=400))


# ------------------------------------------------------------------------------------------------ grams


@given(TEXTS)
@example("\ud800")
@example("\x00" * 50)
@example("漢字" * 5_000)
@example("a " * 20_000)
def test_any_text_has_grams(text: str) -> None:
    """Ascending, each once, below BUCKETS, at most KEPT; the same each time."""
    found = numbers(grams(text.casefold()))
    assert found.size <= KEPT
    assert (np.diff(found.astype(int)) > 0).all()
    assert found.max(initial=0) < BUCKETS
    assert grams(text.casefold()) == found.tobytes()


@given(st.lists(st.text(alphabet="abcé1.", min_size=1, max_size=6), min_size=1, max_size=60), st.data())
def test_white_space_does_not_matter(words: list[str], data: st.DataObject) -> None:
    gaps = st.sampled_from([" ", "  ", "\n", "\t \n", "\r\n"])
    text = "".join(word + data.draw(gaps) for word in words)
    assert grams(data.draw(gaps) + text) == grams(" ".join(words))


@given(st.lists(st.one_of(st.text(max_size=80), st.text(alphabet="ab .é\n", max_size=900)), max_size=90))
@example([])
@example(["", "a", "", "b"])
@example(["x y " * 400] * 3)
@example(["漢字" * CHARACTERS, "a b", "漢字" * CHARACTERS])
def test_many_texts_at_once_have_the_grams_that_each_has_alone(texts: list[str]) -> None:
    folded = [text.casefold() for text in texts]
    assert grams_of(folded) == [grams(text) for text in folded]


@given(
    st.lists(
        st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), st.text("ab É.", max_size=30)), max_size=6
    )
)
def test_the_journal_makes_later_the_grams_that_a_decision_would_have_read(turns: list[Turn]) -> None:
    prompt = Prompt(turns=tuple(turns), size_bytes=200)
    assert grams(asked(prompt).casefold()) == extract(prompt, with_grams=True).grams


def test_case_does_not_matter_but_words_and_their_order_do() -> None:
    prompt = Prompt(turns=(Turn("user", "Prove That ÉTÉ is Straße"),), size_bytes=60)
    other = Prompt(turns=(Turn("user", "prove that été is STRASSE"),), size_bytes=60)
    assert extract(prompt, with_grams=True).grams == extract(other, with_grams=True).grams != b""
    assert extract(prompt).grams == b""
    assert grams("a b c") != grams("a b d")
    assert grams("a b c") != grams("c b a"), "pairs of neighbours are grams too"


def test_two_long_texts_share_the_grams_of_what_they_share() -> None:
    """Of both the same are kept, wherever in the text they are; else they would hardly have any in common."""
    first, second = (" ".join(f"{name}{i}" for i in range(500)) for name in ("one", "two"))
    alone, behind = (set(numbers(grams(text)).tolist()) for text in (second, f"{first} {second}"))
    parts = [numbers(grams(" ".join(f"two{i}" for i in range(at, at + 100)))).tolist() for at in range(0, 500, 100)]
    everything = {gram for part in parts for gram in part}
    shared = behind & everything
    assert len(alone) > KEPT * 0.95 and len(shared) > KEPT * 0.4
    assert len(shared - alone) < 12, "a chance meeting of two grams in one number, now and then"


def test_the_work_is_linear_in_the_text_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the bytes that are weighed, not by the clock: each once, of the first CHARACTERS, and the one before them."""
    read: list[int] = []

    class Counted:
        def __getitem__(self, part: slice) -> Any:
            read.append(part.stop)
            return powers[part]

    powers = module._POWERS
    monkeypatch.setattr(module, "_POWERS", Counted())
    for size in (1_000, 2_000, 4_000, 1_000_000):
        grams("ab " * (size // 3) + "x" * (size % 3))
    assert read == [1_001, 2_001, 4_001, CHARACTERS + 1]


# ------------------------------------------------------------------------------------------------ what serves


def features(text: str, **more: Any) -> Features:
    prompt = Prompt(turns=(Turn("user", text),), size_bytes=len(text.encode()) + 60)
    return msgspec.structs.replace(extract(prompt, with_grams=True), **more)


def test_dense_gives_a_number_for_each_name() -> None:
    plain = features("Prove that 2 + 2 = 4", tools=3, languages=("fr",), images=1, structured="schema")
    values = dict(zip(DENSE, dense(plain), strict=True))
    assert all(math.isfinite(each) for each in values.values())
    assert values["tools"] == pytest.approx(math.log(4)) and values["media"] == pytest.approx(math.log(2))
    assert values["foreign"] == 1.0 and values["structured:schema"] == 1.0
    assert sum(value for name, value in values.items() if name.startswith("task:")) == 1.0


def test_a_score_is_the_sum_that_the_page_says() -> None:
    """By hand, in plain Python, from the bytes."""
    trained, asked = made(models=("a", "b"), workloads=("w",), grams=4_000), features("Why is the sky blue today?")
    kept = set(numbers(trained.grams).tolist())
    rows = list(numbers(trained.grams).tolist())

    def at(name: str, i: int) -> float:
        return float(struct.unpack_from("<f", getattr(trained, name), 4 * i)[0])

    for m, name in enumerate(trained.models):
        score = at("bias", m) + at("workload_weights", m)
        for d, value in enumerate(dense(asked)):
            far = max(-FARTHEST, min(FARTHEST, (value - at("shift", d)) / at("scale", d)))
            score += far * at("dense_weights", 2 * d + m)
        own = numbers(asked.grams).tolist()
        known = [gram for gram in own if gram in kept]
        assert known
        score += sum(at("gram_weights", 2 * rows.index(gram) + m) for gram in known) / math.sqrt(len(own))
        exponent = at("slope", m) * score + at("intercept", m)
        found = Heads(trained).scores(asked, "w")[name]
        assert found.mid == pytest.approx(chance(exponent), abs=1e-5)
        assert found.low == pytest.approx(chance(exponent - at("doubt", m)), abs=1e-5)
        assert found.high == pytest.approx(chance(exponent + at("doubt", m)), abs=1e-5)
        assert found.output_tokens is not None and found.latency_ms is None


def test_an_unknown_workload_and_unknown_words_add_nothing() -> None:
    trained = made(workloads=("w",), grams=0)
    served = Heads(trained)
    asked = features("Why?")
    assert served.scores(asked, "w") != served.scores(asked, "other") == served.scores(asked, "")
    assert served.scores(asked, "") == served.scores(msgspec.structs.replace(asked, grams=b""), "")


def test_an_answer_that_is_kept_is_only_for_the_same_request_and_workload() -> None:
    trained = made(workloads=("desk",))
    one, other = (Features(input_tokens=n, input_bound_tokens=n) for n in (10, 9_000))
    asked = [(one, "desk"), (one, "desk"), (one, "other"), (other, "other"), (one, "desk"), (other, "desk")]
    known = Heads(trained)
    assert [known.scores(*each) for each in asked] == [Heads(trained).scores(*each) for each in asked]
    assert len({known.scores(*each)[trained.models[0]].mid for each in asked}) == 4


def test_no_feature_counts_without_end() -> None:
    served = Heads(made())
    far, farther = (features("a", input_tokens=10**n) for n in (9, 12))
    assert served.scores(far, "")["acme/big"].mid == served.scores(farther, "")["acme/big"].mid


def test_a_model_whose_replies_nobody_counted_has_no_length() -> None:
    trained = made(models=("a", "b"))
    weights = np.frombuffer(trained.tokens, "<f4").reshape(-1, 2).copy()
    weights[:, 1] = 0.0
    found = Heads(msgspec.structs.replace(trained, tokens=weights.tobytes())).scores(features("Hi"), "")
    assert found["a"].output_tokens and found["b"].output_tokens is None


@pytest.mark.parametrize(
    ("constant", "tokens"), [(-5.0, 1), (0.0, 1), (0.5, 1), (1.0, 2), (16.0, 8_886_110), (40.0, 8_886_110)]
)
def test_a_length_is_at_least_one_and_no_more_than_can_be(constant: float, tokens: int) -> None:
    trained = made()
    weights = np.zeros_like(np.frombuffer(trained.tokens, "<f4").reshape(-1, 2))
    weights[-1] = constant or 1e-9  # a column of zeros is a model that nobody counted
    found = Heads(msgspec.structs.replace(trained, tokens=weights.tobytes())).scores(features("Hi"), "")
    assert found[trained.models[0]].output_tokens == tokens


def test_what_training_has_not_seen_is_reasoned() -> None:
    """A model beyond the artefact's gets the built-in estimate, in a snapshot that is one document."""
    trained = made(models=tuple(each.id for each in MODELS[:2]))
    asked = features("Prove it")
    built_in = estimate_all(world().estimator, asked, MODELS)
    learned = estimate_all(trained, asked, MODELS, "w")
    assert learned[2:] == built_in[2:] and learned[:2] != built_in[:2]
    snapshot = msgspec.structs.replace(world(), estimator=trained)
    assert load(dump(snapshot)).estimator == trained
    assert catalogue().baseline == MODELS[0].id


def test_chance_takes_any_number() -> None:
    assert [chance(each) for each in (-1e9, 0.0, 1e9)] == [0.0, 0.5, 1.0]


def test_heads_are_made_once_for_an_artefact() -> None:
    trained = made()
    assert heads(trained) is heads(msgspec.structs.replace(trained))


# ------------------------------------------------------------------------------------------------ what is refused

BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "features of another version": ({"features_version": 99}, "version 99"),
    "other features": ({"dense": ("length",)}, "other features"),
    "no models": ({"models": ()}, "models are none"),
    "a model twice": ({"models": ("a", "a")}, "named twice"),
    "a reference that is none": ({"reference": "z"}, "'z'"),
    "a workload twice": ({"workloads": ("w", "w")}, "workload is named twice"),
    "grams that fall": ({"grams": struct.pack("<2H", 7, 3)}, "not ascending"),
    "half a gram": ({"grams": b"\x01\x02\x03"}, "not ascending"),
    "a missing weight": ({"bias": b"\0" * 4}, "bias has 4 bytes"),
    "not a number": ({"bias": struct.pack("<2f", math.nan, 0)}, "bias has a number that is none"),
    "infinite": ({"intercept": struct.pack("<2f", math.inf, 0)}, "intercept has a number"),
    "enormous": ({"slope": struct.pack("<2f", 1e9, 0)}, "beyond a million"),
    "a slope that turns round": ({"slope": struct.pack("<2f", -1, 0)}, "below its least"),
    "a doubt below none": ({"doubt": struct.pack("<2f", -1, 0)}, "below its least"),
    "a scale of nothing": ({"scale": b"\0" * 4 * len(DENSE)}, "scale has a number below"),
    "half of the lengths": ({"tokens": b"\0" * 8}, "tokens has 8 bytes"),
}


@pytest.mark.parametrize(("changes", "told"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_serve_says_why(changes: dict[str, Any], told: str) -> None:
    good = made(models=("a", "b"))
    assert problems(good) == []
    broken = msgspec.structs.replace(good, **changes)
    assert any(told in problem for problem in problems(broken)), problems(broken)
    with pytest.raises(ValueError, match="estimator"):
        Heads(broken)


def test_a_thousand_broken_estimators_are_refused_and_none_crashes() -> None:
    """Each differs from a sound one in one field, in a way that must not serve."""
    generator, good = random.Random(4), made(models=("a", "b"), workloads=("w",))
    arrays = [name for name in good.__struct_fields__ if isinstance(getattr(good, name), bytes) and getattr(good, name)]
    for _ in range(1_000):
        name = generator.choice(arrays)
        broken = msgspec.structs.replace(good, **{name: spoilt(name, getattr(good, name), generator)})
        assert problems(broken), name
        with pytest.raises(ValueError, match="estimator"):
            Heads(broken)


def spoilt(name: str, data: bytes, generator: random.Random) -> bytes:
    kind = generator.randrange(3)
    if kind == 0:
        return data[: generator.randrange(1, len(data))] if name not in ("tokens", "grams") else data[:-1]
    if kind == 1:
        return data + generator.randbytes(generator.randrange(1, 9) | 1)
    if name == "grams":
        return data[2:4] + data[:2] + data[4:]
    at = 4 * generator.randrange(len(data) // 4)
    value = generator.choice([math.nan, math.inf, -math.inf, 2e6, -2e6])
    return data[:at] + struct.pack("<f", value) + data[at + 4 :]


@settings(max_examples=300)
@given(st.data())
def test_what_problems_lets_through_serves(data: st.DataObject) -> None:
    """Random bytes in any array: either a sentence, or chances between 0 and 1 in order, for any prompt."""
    good = made(models=("a", "b"), workloads=("w",))
    name = data.draw(
        st.sampled_from([each for each in good.__struct_fields__ if isinstance(getattr(good, each), bytes)])
    )
    size = data.draw(st.sampled_from([len(getattr(good, name)), 8]))
    trained = msgspec.structs.replace(good, **{name: data.draw(st.binary(min_size=size, max_size=size))})
    if problems(trained):
        return
    for score in Heads(trained).scores(features(data.draw(st.text(max_size=50))), "w").values():
        assert 0.0 <= score.low <= score.mid <= score.high <= 1.0


def test_a_trained_estimator_reads_no_clock_and_no_file() -> None:
    """The same scores for the same arguments, from a fresh reading of the arrays."""
    trained, asked = made(), features("Explain tides")
    assert Heads(trained).scores(asked, "w") == Heads(msgspec.structs.replace(trained)).scores(asked, "w")
    assert isinstance(msgspec.json.decode(msgspec.json.encode(trained), type=Trained), Trained)
