"""Of a workload that training has not seen, prompts are believed as far as workloads that were left out bear out."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from support.tables import made

from tierwise.core.learned import Heads, Trained, problems
from tierwise.core.request import Features
from tierwise.study.table import Table
from tierwise.study.training.fit import STRANGER, fit
from tierwise.study.training.predict import predict


def factor(trained: Trained) -> float:
    return float(np.frombuffer(trained.stranger, "<f4")[0]) if trained.stranger else 1.0


def world(workloads: int, *, alike: bool) -> Table:
    """Each workload has easy and hard prompts. Not alike: the words tell which in the first workload alone."""
    table = made(240, seed=3)
    names = np.arange(240) % workloads
    hard = np.array([name == "proofs" for name in table.workloads])
    dice = np.random.default_rng(5)
    if not alike:
        hard = np.where(names == 0, hard, dice.random(240) < 0.5)
    chances = np.where(hard[:, None], [[0.95, 0.5, 0.1]], [[0.97, 0.95, 0.92]])
    quality = (dice.random((240, 3)) < chances).astype(np.float64)
    return msgspec.structs.replace(table, quality=quality, workloads=tuple(f"use-{name}" for name in names))


def test_what_carries_over_is_believed_and_what_does_not_is_not() -> None:
    same, other = (factor(fit(world(4, alike=alike)).trained) for alike in (True, False))
    assert same > 0.4
    assert other < 0.3


def test_one_workload_alone_lets_others_be_believed_a_little() -> None:
    assert factor(fit(world(1, alike=True)).trained) == STRANGER


def test_where_no_workload_is_told_apart_nothing_is_held_back() -> None:
    table = msgspec.structs.replace(made(160), workloads=("",) * 160)
    trained = fit(table).trained
    assert (trained.stranger, trained.usual) == (b"", b"")


def test_a_stranger_is_between_the_mean_and_what_its_words_say() -> None:
    table = world(4, alike=True)
    trained = fit(table).trained
    known, _, _ = predict(trained, table.inputs, table.workloads)
    strange, _, _ = predict(trained, table.inputs, ["elsewhere"] * len(table.ids))
    nobody = msgspec.structs.replace(trained, id="", stranger=np.zeros(1, "<f4").tobytes())
    flat, _, _ = predict(nobody, table.inputs, ["elsewhere"] * len(table.ids))
    assert np.ptp(flat, axis=0).max() < 1e-6, "of whom nothing is believed, all prompts are alike"
    assert (strange.std(axis=0) < known.std(axis=0))[1:].all()


def test_serving_and_studying_say_the_same_of_strangers() -> None:
    table = world(4, alike=True)
    trained = fit(table).trained
    heads = Heads(trained)
    mean, _, _ = predict(trained, table.inputs, ["elsewhere"] * len(table.ids))
    for row in range(0, 240, 40):
        kept = table.inputs.grams[table.inputs.starts[row] : table.inputs.starts[row + 1]]
        plain = table.inputs.dense[row]
        served = heads.scores(_features(plain, kept.astype("<u2").tobytes()), "elsewhere")
        assert [each.mid for each in served.values()] == pytest.approx(mean[row].tolist(), abs=1e-5)


def _features(plain: np.ndarray, grams: bytes) -> Features:
    """Features whose `dense` is this row: read again from the text's own, which the table was made of."""
    table = made(240, seed=3)
    from tierwise.core.features import extract
    from tierwise.core.request import Prompt, Turn

    row = int(np.flatnonzero((table.inputs.dense == plain).all(axis=1))[0])
    for i in range(row, 240):
        text = table.texts[i] or ""
        found = extract(Prompt(turns=(Turn("user", text),), size_bytes=len(text)), with_grams=True)
        if found.grams == grams:
            return found
    raise AssertionError("no such row")


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(value: float) -> None:
    trained = fit(world(2, alike=True)).trained
    assert problems(msgspec.structs.replace(trained, stranger=np.array([value], "<f4").tobytes()))
