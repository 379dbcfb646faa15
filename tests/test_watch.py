"""Watching: a promise that holds is hardly ever withdrawn, one that does not soon is; drift where there is some."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierwise.core.learned import DENSE
from tierwise.core.promise import Promise, Segment
from tierwise.core.request import Features
from tierwise.study.table import Inputs, inputs_of
from tierwise.study.training.histograms import MIX, Histogram, histograms
from tierwise.watch.drift import drift
from tierwise.watch.promises import Observation, Verdict, Watch, judge, watching, withdrawn

PROMISE = Promise(
    name="p",
    kind="choice",
    alpha=0.02,
    delta=0.1,
    reference="r",
    estimator="e",
    made_s=1,
    data_hash="d",
    segments=(
        Segment(workload="mails", status="certified", models=("m",)),
        Segment(workload="tickets", status="uncertified"),
        Segment(workload="", status="certified", models=("m",)),
    ),
)


def seen(losses: Any, workload: str = "mails") -> list[Observation]:
    return [Observation("p", workload, float(each)) for each in losses]


def drawn(generator: np.random.Generator, n: int, mean: float) -> Any:
    """−1, 0 and 1, with a spread as replies have it."""
    return generator.choice([1.0, 0.0, -1.0], n, p=[(0.04 + mean) / 2, 0.96, (0.04 - mean) / 2])


def broken(verdicts: tuple[Verdict, ...]) -> bool:
    return any(each.broken for each in verdicts)


# ------------------------------------------------------------------------------------------------ promises


def test_a_promise_that_just_holds_is_withdrawn_no_more_often_than_stated() -> None:
    generator, times, delta = np.random.default_rng(1), 80, 0.2
    alarms = sum(
        broken(judge(watching([PROMISE], delta=delta), seen(drawn(generator, 300, 0.02)))[1]) for _ in range(times)
    )
    assert alarms <= times * (delta + 2 * math.sqrt(delta * (1 - delta) / times))


def test_this_test_finds_a_monitor_that_looks_at_the_mean() -> None:
    generator, times = np.random.default_rng(1), 80
    alarms = sum(bool((np.cumsum(drawn(generator, 300, 0.02)) > 0.02 * np.arange(1, 301)).any()) for _ in range(times))
    assert alarms > 0.5 * times


@pytest.mark.parametrize("good", [0, 4_000])
def test_a_broken_promise_is_found_even_after_good_times(good: int) -> None:
    generator = np.random.default_rng(2)
    for _ in range(3):
        watch, verdicts = judge(watching([PROMISE]), seen(drawn(generator, good, 0.0)))
        assert not broken(verdicts)
        bad = generator.choice([1.0, 0.0], 500, p=[0.15, 0.85])
        watch, verdicts = judge(watch, seen(bad))
        assert broken(verdicts)


def test_only_the_segment_that_broke_is_withdrawn_and_says_why_once() -> None:
    watch, verdicts = judge(watching([PROMISE]), [*seen(np.ones(40)), *seen(np.zeros(40), "others")])
    assert {each.workload: each.broken for each in verdicts} == {"mails": True, "": False}
    after = withdrawn(PROMISE, verdicts, at_s=9)
    assert [(each.status, each.since_s) for each in after.segments] == [
        ("withdrawn", 9),
        ("uncertified", None),
        ("certified", None),
    ]
    assert "freshly labelled" in after.segments[0].why and "0.02" in after.segments[0].why
    _, again = judge(watch, seen([1.0, 1.0]))
    assert not broken(again)
    assert withdrawn(PROMISE, again, at_s=9) is PROMISE
    # What is withdrawn is watched no more; the rest goes on where it was.
    rest = watching([after], watch)
    assert [(bet.workload, bet.n) for bet in rest.bets] == [("", 40)]


def test_a_promise_that_was_made_anew_is_watched_anew() -> None:
    watch, _ = judge(watching([PROMISE]), seen(np.ones(3)))
    assert [bet.n for bet in watching([PROMISE], watch).bets] == [3, 0]
    assert [bet.n for bet in watching([msgspec.structs.replace(PROMISE, made_s=2)], watch).bets] == [0, 0]
    assert judge(watch, [Observation("another", "", 1.0)]) == (watch, ())


def test_the_state_survives_being_written_and_read() -> None:
    losses = drawn(np.random.default_rng(3), 60, 0.03)
    whole, _ = judge(watching([PROMISE]), seen(losses))
    half, _ = judge(watching([PROMISE]), seen(losses[:30]))
    read = msgspec.json.decode(msgspec.json.encode(half), type=Watch)
    again, _ = judge(read, seen(losses[30:]))
    assert again == whole


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1, 1), max_size=30), st.floats(0.001, 0.5))
def test_a_bet_is_never_expected_to_win_against_a_promise_that_holds(losses: list[float], alpha: float) -> None:
    """Whatever came before, the next observation of mean alpha leaves the expected capital where it is."""
    promise = msgspec.structs.replace(PROMISE, alpha=alpha)
    watch, _ = judge(watching([promise]), seen(losses))
    (bet, *_) = watch.bets
    if not bet.broken:
        rich = sum(math.exp(each) for each in bet.capital)
        after = []
        for loss in (1.0, -1.0):
            (next_bet, *_), _ = judge(watch, seen([loss]))[0].bets, None
            after.append(sum(math.exp(each) for each in next_bet.capital))
        up = (1 + alpha) / 2
        assert up * after[0] + (1 - up) * after[1] == pytest.approx(rich, rel=1e-9)


def test_what_is_no_loss_is_refused() -> None:
    for loss in (1.5, float("nan")):
        with pytest.raises(ValueError, match="a loss of"):
            judge(watching([PROMISE]), seen([loss]))
    with pytest.raises(ValueError, match="delta"):
        watching([PROMISE], delta=0.0)


# ------------------------------------------------------------------------------------------------ drift


def requests(generator: np.random.Generator, n: int, longer: float = 0.0, code: float = 0.2) -> Inputs:
    return inputs_of(
        [
            Features(
                input_tokens=int(np.exp(generator.normal(5 + longer, 1))),
                input_bound_tokens=10_000,
                complexity=float(generator.random()),
                task="code" if generator.random() < code else "other",
            )
            for _ in range(n)
        ]
    )


WORKLOADS = ("mails", "tickets")


def workloads(n: int) -> list[str]:
    return [WORKLOADS[i % 2] for i in range(n)]


def test_nothing_drifts_by_chance_but_at_the_stated_rate() -> None:
    generator, times, rate = np.random.default_rng(4), 60, 0.1
    before = histograms(requests(generator, 3_000), workloads(3_000))
    alarms = sum(
        any(each.drifted for each in drift(before, requests(generator, 400), workloads(400), rate=rate))
        for _ in range(times)
    )
    assert alarms <= times * (rate + 2 * math.sqrt(rate * (1 - rate) / times))


def test_what_moved_is_named_and_what_did_not_is_not() -> None:
    generator = np.random.default_rng(5)
    before = histograms(requests(generator, 3_000), workloads(3_000))
    found = drift(before, requests(generator, 500, longer=0.5), workloads(500))
    assert {each.feature for each in found if each.drifted} == {"input_tokens"}
    assert {each.workload for each in found if each.drifted} == {"", "mails", "tickets"}
    assert found[0].index > 0.1 > found[-1].index
    found = drift(before, requests(generator, 500, code=0.5), workloads(500))
    assert {each.feature for each in found if each.drifted} == {"task:code", "task:other"}


def test_a_feature_that_was_always_the_same_and_no_longer_is() -> None:
    generator = np.random.default_rng(6)
    before = histograms(requests(generator, 1_000, code=0.0), workloads(1_000))
    assert any(
        each.drifted and each.feature == "task:code"
        for each in drift(before, requests(generator, 300, code=0.2), workloads(300))
    )


def test_a_new_workload_is_a_drift_of_the_mix_and_one_that_moves_alone_is_named() -> None:
    generator = np.random.default_rng(7)
    before = histograms(requests(generator, 2_000), workloads(2_000))
    names = ["new" if i % 5 == 0 else WORKLOADS[i % 2] for i in range(400)]
    assert drift(before, requests(generator, 400), names)[0].feature == MIX
    long, usual = requests(generator, 300, longer=1.0), requests(generator, 300)
    both = Inputs(np.concatenate((long.dense, usual.dense)), np.zeros(0, np.uint16), np.zeros(601, dtype=np.int64))
    found = drift(before, both, ["mails"] * 300 + ["tickets"] * 300)
    assert {each.workload for each in found if each.drifted} == {"", "mails"}


def test_few_requests_say_nothing_and_histograms_are_data() -> None:
    generator = np.random.default_rng(8)
    before = histograms(requests(generator, 300), workloads(300))
    assert drift(before, requests(generator, 20, longer=3.0), workloads(20)) == ()
    assert msgspec.json.decode(msgspec.json.encode(before), type=tuple[Histogram, ...]) == before
    assert len(before) == 1 + 3 * len(DENSE)
    with pytest.raises(ValueError, match="rate"):
        drift(before, requests(generator, 60), workloads(60), rate=0.0)
