"""From stories of the journal to outcome tables, and what labels are worth."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.records import NOON
from tierwise.core.budget import Denial
from tierwise.core.episode import (
    Answer,
    Call,
    Decision,
    Denied,
    Episode,
    Event,
    Grade,
    Reason,
    Replied,
    ReplyFacts,
    Told,
)
from tierwise.core.money import Usage
from tierwise.core.ports import Feedback, Heard, Outcome, Record, Story
from tierwise.core.request import Features, Payer
from tierwise.stores import journal_reads
from tierwise.stores.journal import SqliteJournal
from tierwise.stores.memory import MemoryJournal
from tierwise.study.data import labels
from tierwise.study.data.intake import Intake, Said, taken_of
from tierwise.study.data.outcomes import load

FEATURES = Features(input_tokens=10, input_bound_tokens=40)
DAY_S = 86_400


def replied(
    model: str, key: str = "", *, cost: int | None = 1_000_000, checks: tuple[tuple[str, bool], ...] = (), at: int = 90
) -> Replied:
    facts = ReplyFacts(answer_key=key, checks=checks)
    usage = Usage(input_tokens=10, cached_input_tokens=5, output_tokens=7, reasoning_tokens=2)
    return Replied(at="x", model=model, after_ms=at, usage=usage, cost_nano=cost, latency_ms=80, facts=facts)


def graded(of: int, score: float | None, at: int = 2_000) -> Told:
    return Told(at="x", model="judge", after_ms=at, topic="grade", score=score, of=of)


def serve(model: str, *odds: tuple[str, float]) -> Decision:
    return Decision(step=Call(at="x", model=model, worst_case_nano=9), odds=odds)


def a_story(
    id: str,
    *events: Event,
    decisions: tuple[Decision, ...] = (),
    said: tuple[tuple[float, str], ...] = (),
    key: str = "ada",
    within: tuple[str, ...] = (),
    workload: str = "desk",
    late_s: int = 60,
    status: Any = "answered",
    shadows: tuple[Any, ...] = (),
    **fields: Any,
) -> Story:
    """Whose last reply was delivered."""
    models = [event.model for event in events if isinstance(event, Replied)]
    payer = Payer(key=key, within=within)
    record = Record(
        episode=Episode(
            id=id, snapshot="5eed", at_s=NOON, draw=0.5, requested="auto", policy="p", features=FEATURES,
            workload=workload, payer=payer, events=events,
        ),
        decisions=decisions,
        outcome=Outcome(status=status, routed=models[-1] if models else ""),
        shadows=shadows,
        **fields,
    )  # fmt: skip
    told = [
        Feedback(decision_id=id, at_s=NOON + late_s + i, score=score, source=source, payer=payer)
        for i, (score, source) in enumerate(said)
    ]
    return Story(record, tuple(told))


def said_of(story: Story) -> dict[str, list[tuple[str, float]]]:
    """model -> (source, score) of its labels."""
    return {r.outcome.model: [(each.source, each.score) for each in r.said] for r in taken_of(story).replies}


# ------------------------------------------------------------------------------------------------ one story


def test_the_routed_model_has_an_outcome_with_all_its_figures() -> None:
    (reply,) = taken_of(a_story("a", replied("small", "42"), decisions=(serve("small", ("small", 0.9)),))).replies
    found = msgspec.structs.asdict(reply.outcome)
    assert found == {
        "prompt_id": "a", "model": "small", "quality": None, "weight": None, "cost_usd": 0.001, "input_tokens": 15,
        "output_tokens": 9, "latency_s": 0.08, "pred": "42", "tools_json": None, "odds": 0.9, "at_s": NOON,
    }  # fmt: skip
    unpriced = taken_of(a_story("a", replied("small", cost=None)))
    assert (unpriced.replies[0].outcome.cost_usd, unpriced.replies[0].outcome.odds) == (None, None)
    assert unpriced.prompt.prompt is None
    assert msgspec.json.decode(unpriced.prompt.features or "", type=Features) == FEATURES


@pytest.mark.parametrize(
    ("story", "labelled"),
    [
        (a_story("no labels", replied("s")), {"s": []}),
        (a_story("feedback", replied("s"), said=((1.0, "user"),)), {"s": [("user", 1.0)]}),
        (a_story("mind changed", replied("s"), said=((1.0, "user"), (0.0, "user"))), {"s": [("user", 0.0)]}),
        (
            a_story("two speak", replied("s"), said=((1.0, "user"), (0.0, "review"))),
            {"s": [("user", 1.0), ("review", 0.0)]},
        ),
        (a_story("checks", replied("s", checks=(("schema", False),))), {"s": [("check:schema", 0.0)]}),
        (a_story("grade", replied("s"), graded(0, 0.7)), {"s": [("grader", 0.7)]}),
        (a_story("no score", replied("s"), graded(0, None)), {"s": []}),
        (
            a_story("climbed", replied("s"), graded(0, 0.2), replied("L"), said=((1.0, "user"),)),
            {"s": [("grader", 0.2)], "L": [("user", 1.0)]},
        ),
        (
            a_story("agreed", replied("s", "1"), replied("t", "1")),
            {"s": [("agreement", 1.0)], "t": [("agreement", 1.0)]},
        ),
        (
            a_story("differed", replied("s", "1"), replied("t", "2"), replied("L", "2")),
            {"s": [("agreement", 0.0)], "t": [("agreement", 1.0)], "L": [("agreement", 1.0)]},
        ),
        (a_story("differed from the last", replied("s", "1"), replied("L", "2")), {"s": [("agreement", 0.0)], "L": []}),
        (a_story("not comparable", replied("s", "1"), replied("L")), {"s": [], "L": []}),
        (
            a_story("shadow", replied("s"), shadows=(replied("L"), graded(0, 0.4), graded(1, 0.9))),
            {"s": [("grader", 0.4)], "L": [("grader", 0.9)]},
        ),
        (
            a_story("its own shadow", replied("s"), replied("L"), said=((1.0, "user"),), shadows=(replied("L"),)),
            {"s": [], "L": [("user", 1.0)]},
        ),
        (
            a_story("shadow of the lower", replied("s"), graded(0, 0.2), replied("L"), shadows=(replied("s"),)),
            {"s": [("grader", 0.2)], "L": []},
        ),
        (a_story("asked again", replied("s", "1"), replied("s", "2")), {"s": []}),
    ],
    ids=lambda each: each.record.episode.id if isinstance(each, Story) else "",
)
def test_labels_of_a_story(story: Story, labelled: dict[str, list[tuple[str, float]]]) -> None:
    assert said_of(story) == labelled


def test_what_was_delivered_is_what_the_last_decision_says() -> None:
    """Not the last reply: a cascade may go back to an earlier one."""
    answer = Decision(step=Answer(at="x", event=0))
    story = a_story("a", replied("s"), replied("L"), decisions=(serve("s"), serve("L"), answer), said=((1.0, "user"),))
    assert said_of(story) == {"s": [("user", 1.0)], "L": []}
    twice = a_story("a", replied("s", "1"), replied("s", "2"), decisions=(answer,))
    assert [reply.outcome.pred for reply in taken_of(twice).replies] == ["1"]


def test_odds_are_those_of_the_call_and_of_the_shadow() -> None:
    grade = Decision(step=Call(at="x", model="L", worst_case_nano=1, about=Grade(0, "?")), odds=(("L", 0.9),))
    shadow = Decision(
        step=Answer(at="x", event=0),
        shadow=Call(at="x", model="L", worst_case_nano=9),
        reasons=(Reason("x", "shadow", (("model", "L"), ("odds", 0.05))),),
    )
    story = a_story("a", replied("s"), decisions=(serve("s"), grade, shadow), shadows=(replied("L"),))
    assert {r.outcome.model: r.outcome.odds for r in taken_of(story).replies} == {"s": None, "L": 0.05}


def test_where_exploration_was_denied_the_odds_are_left_out_and_counted(tmp_path: Path) -> None:
    """The dice chose L at 0.05 and its budget said no, so s answered whatever they said."""
    denied = Denied(at="x", model="L", after_ms=1, denial=Denial(scope="tag", affordable_nano=0), explored=True)
    own = msgspec.structs.replace(denied, explored=False)
    odds = (("L", 0.05), ("s", 0.95))
    found = {}
    with Intake(tmp_path) as intake:
        for name, event in (("explored", denied), ("own", own)):
            story = a_story(name, event, replied("s"), decisions=(serve("L", *odds), serve("s", *odds)))
            found[name] = [reply.outcome.odds for reply in taken_of(story).replies]
            intake.add(story)
        assert intake.finish().denied == 1
    assert found == {"explored": [None], "own": [0.95]}
    # The odds of a shadow are its own.
    shadow = Decision(
        step=Answer(at="x", event=1),
        shadow=Call(at="x", model="M", worst_case_nano=9),
        reasons=(Reason("x", "shadow", (("model", "M"), ("odds", 0.25))),),
    )
    story = a_story("a", denied, replied("s"), decisions=(serve("L", *odds), shadow), shadows=(replied("M"),))
    assert {r.outcome.model: r.outcome.odds for r in taken_of(story).replies} == {"s": None, "M": 0.25}


def test_texts_are_kept_where_the_journal_has_them_and_no_longer_than_a_table_takes() -> None:
    def text(*words: str) -> str | None:
        body = msgspec.json.encode({"model": "auto", "messages": [{"role": "user", "content": each} for each in words]})
        return taken_of(a_story("a", replied("s"), prompt=body.decode())).prompt.prompt

    assert text("Why?") == "Why?"
    assert text("Why?", "Now?") == "user: Why?\n\nuser: Now?"
    assert len(text("x" * 1_200_000) or "") == 1_000_000
    assert taken_of(a_story("a", replied("s"), prompt="{")).prompt.prompt is None


# ------------------------------------------------------------------------------------------------ what a label is worth


def test_weights_follow_what_a_label_tells() -> None:
    weight = labels.weight
    assert weight("human", 1.0) == pytest.approx(0.9025)
    assert weight("user", 0.0) == weight("something new", 0.0) == pytest.approx(0.49)
    assert weight("grader", 0.5) == pytest.approx(0.36)
    assert weight("check:schema", 0.0) > labels.SOUND_WEIGHT > weight("check:schema", 1.0) > 0.0
    # What models say alike is what a promise is tested on: with every form in order it still certifies nothing.
    forms = sum(weight(f"check:{name}", 1.0) for name in ("complete", "nonempty", "schema", "tools"))
    assert labels.SOUND_WEIGHT > weight("agreement", 1.0) + forms > weight("agreement", 0.0) > 0.0


@given(st.lists(st.floats(0.01, 1e6), max_size=60), st.floats(0, 1e4), st.sampled_from([0.02, 0.05, 0.3]))
def test_no_key_weighs_more_than_its_share(weights: list[float], rest: float, share: float) -> None:
    """And who is below it loses nothing, and the order of keys stays."""
    named = {f"k{i}": weight for i, weight in enumerate(weights)}
    factors = labels.shares(named, rest, share)
    after = {key: named[key] * factors[key] for key in named}
    bound = max(share, 2 / max(len(named), 1))
    total = rest + sum(after.values())
    assert all(0 < factor <= 1 + 1e-9 for factor in factors.values())
    assert all(weight <= bound * total * (1 + 1e-9) for weight in after.values())
    limit = max(after.values(), default=0.0)
    assert all(factors[key] == 1.0 or weight == pytest.approx(limit) for key, weight in after.items())
    assert bound < 1 or set(factors.values()) <= {1.0}


def test_labels_combine_by_weight() -> None:
    assert labels.combined([]) == (None, 0.0)
    assert labels.combined([(1.0, 0.3), (0.0, 0.1)]) == (pytest.approx(0.75), pytest.approx(0.4))
    assert labels.combined([(1.0, 0.9), (1.0, 0.9)]) == (1.0, 1.0)


# ------------------------------------------------------------------------------------------------ all together


def test_tables_from_stories(tmp_path: Path) -> None:
    with Intake(tmp_path) as intake:
        intake.add(a_story("a", replied("s"), graded(0, 0.0), replied("L"), said=((1.0, "review"),)))
        intake.add(a_story("b", replied("s"), graded(0, 1.0), said=((0.0, "user"),), late_s=3 * DAY_S, workload=""))
        intake.add(a_story("c", status="refused", said=((0.0, "user"),)))
        report = intake.finish(stray_feedback=4)
    assert (report.episodes, report.answered, report.several_models, report.replies, report.labelled) == (3, 2, 1, 3, 3)
    assert (report.skipped, report.late, report.stray_feedback) == ((("refused", 1),), 1, 5)
    assert dict(report.sources) == {"grader": 2, "review": 1, "user": 1}
    table, held = load([tmp_path])
    assert (table.ids, table.models, table.workloads) == (("a", "b"), ("L", "s"), ("desk", ""))
    np.testing.assert_allclose(table.quality, [[1.0, 0.0], [np.nan, 0.36 / (0.36 + 0.49)]])
    np.testing.assert_allclose(table.weight, [[0.9025, 0.36], [np.nan, 0.85]])
    assert {each.source: each.labels for each in held.sources} == {"grader": 2, "review": 1, "user": 1}
    assert (held.from_s, held.text_share) == (NOON, 0.0)


def test_a_table_made_again_has_the_late_labels(tmp_path: Path) -> None:
    for said, expected in (((), [[0.4]]), (((1.0, "user"),), [[(0.4 * 0.36 + 0.49) / 0.85]])):
        with Intake(tmp_path) as intake:
            intake.add(a_story("a", replied("s"), graded(0, 0.4), said=said, late_s=9 * DAY_S))
            intake.finish()
        np.testing.assert_allclose(load([tmp_path])[0].quality, expected)


@pytest.mark.parametrize("lineage", [True, False])
def test_one_key_cannot_flood_the_labels(lineage: bool, tmp_path: Path) -> None:
    """Forty keys speak once each, and one says of 400 replies that they are bad: by itself, or by keys it has made."""
    with Intake(tmp_path) as intake:
        for i in range(40):
            intake.add(a_story(f"honest {i}", replied("s"), said=((1.0, "user"),), key=f"k{i}"))
        for i in range(400):
            mallory = {"key": f"m{i % 20}", "within": ("mallory",)} if lineage else {"key": "mallory"}
            intake.add(a_story(f"flood {i}", replied("s"), said=((0.0, "user"),), **mallory))
        report = intake.finish()
    table, _ = load([tmp_path])
    share = table.weight[table.quality == 0].sum() / table.weight.sum()
    assert share <= labels.KEY_SHARE + 1e-9
    assert share > 0.04
    assert np.allclose(table.weight[table.quality == 1], 0.49)
    assert len(report.capped) == (20 if lineage else 1)


def test_a_key_is_bounded_within_a_workload_too(tmp_path: Path) -> None:
    """A tenth of all, and the whole of one small workload but for what 50 others said there once."""
    with Intake(tmp_path) as intake:
        for i in range(50):
            intake.add(a_story(f"small {i}", replied("s"), said=((1.0, "user"),), key=f"k{i}", workload="small"))
            for j in range(30):
                intake.add(
                    a_story(f"large {i} {j}", replied("s"), said=((1.0, "user"),), key=f"k{i}", workload="large")
                )
        for i in range(50):
            intake.add(a_story(f"flood {i}", replied("s"), said=((0.0, "user"),), key="mallory", workload="small"))
        intake.finish()
    table, _ = load([tmp_path])
    small = np.array(table.workloads) == "small"
    bad = table.quality[:, 0] == 0
    assert table.weight[bad & small].sum() / table.weight[small].sum() <= labels.KEY_SHARE + 1e-9


# ------------------------------------------------------------------------------------------------ from a journal


@pytest.fixture(params=["memory", "sqlite"])
async def journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    made = MemoryJournal() if request.param == "memory" else SqliteJournal(tmp_path / "journal.sqlite")
    yield made
    await made.close()


async def stories(journal: Any, since_s: int, until_s: int) -> list[Story]:
    return [story async for piece in journal.stories(since_s, until_s) for story in piece]


async def test_stories_come_in_order_whole_and_with_what_was_said(
    journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_reads, "STORY_ROWS", 3)
    records = {}
    for i, at_s in enumerate((5, 3, 9, 5, 5, 5, 1, 9, 10)):
        record = a_story(f"{i}", replied("s")).record
        records[str(i)] = msgspec.structs.replace(record, episode=msgspec.structs.replace(record.episode, at_s=at_s))
        journal.write(records[str(i)])
    notes = [Feedback(decision_id="3", at_s=2_000 + i, score=i / 9) for i in range(2)]
    for note in (notes[0], Feedback(decision_id="gone", at_s=7, score=1.0), notes[1]):
        journal.feedback(note)
    shadow = replied("L")
    journal.shadow("3", 5, shadow)
    found = await stories(journal, 3, 10)
    assert [story.record.episode.id for story in found] == ["1", "0", "3", "4", "5", "2", "7"]
    assert found[0].record == records["1"]
    assert found[2] == Story(msgspec.structs.replace(records["3"], shadows=(shadow,)), tuple(notes))
    assert await stories(journal, 20, 30) == []


async def test_what_is_said_late_is_heard_once_and_beside_what_was_known(
    journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_reads, "STORY_ROWS", 2)
    for i in range(4):
        record = a_story(f"{i}", replied("s")).record
        journal.write(msgspec.structs.replace(record, episode=msgspec.structs.replace(record.episode, at_s=10 + i)))

    def note(of: int, score: float) -> Feedback:
        return Feedback(decision_id=f"{of}", at_s=0, score=score)

    async def late(since: Heard, until: Heard, before_s: int = 13) -> list[tuple[str, list[float], list[float], int]]:
        found = [each async for piece in journal.late(since, until, before_s) for each in piece]
        return [
            (
                each.now.record.episode.id,
                [said.score for said in each.before.feedback],
                [said.score for said in each.now.feedback],
                len(each.now.record.shadows) - len(each.before.record.shadows),
            )
            for each in found
        ]

    nothing = await journal.heard()
    assert nothing == Heard()
    for each in (note(0, 0.0), note(3, 0.1), Feedback(decision_id="gone", at_s=0, score=1.0)):
        journal.feedback(each)
    first = await journal.heard()
    for each in (note(2, 0.2), note(0, 0.3)):
        journal.feedback(each)
    journal.shadow("1", 11, replied("L"))
    journal.shadow("3", 13, replied("L"))
    second = await journal.heard()
    assert sorted(await late(nothing, first)) == [("0", [], [0.0], 0)]  # 3 began at 13, which is not before 13
    assert sorted(await late(first, second)) == [("0", [0.0], [0.0, 0.3], 0), ("1", [], [], 1), ("2", [], [0.2], 0)]
    assert ("3", [0.1], [0.1], 1) in await late(first, second, 14)
    assert await late(second, await journal.heard()) == []
    # What was said later than a place is not known there.
    settled = [story async for piece in journal.stories(10, 14, first) for story in piece]
    assert [[said.score for said in each.feedback] for each in settled] == [[0.0], [], [], [0.1]]
    assert not any(each.record.shadows for each in settled)
    assert (await journal.stray_feedback(0, 8), await journal.stray_feedback(8, 9_000)) == (1, 0)


async def test_a_row_that_cannot_be_read_is_named_and_the_rest_is_there(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    for id in "abc":
        journal.write(a_story(id, replied("s")).record)
    await journal.recent(1)
    await journal._ask(lambda connection: connection.execute("UPDATE episodes SET record = '{}' WHERE id = 'b'"))
    found = await stories(journal, 0, 1 << 40)
    assert [story.record.episode.id for story in found] == ["a", "c"]
    assert "the record of b cannot be read" in journal.last_error
    await journal.close()


def test_a_score_that_is_none_is_no_label() -> None:
    assert said_of(a_story("a", replied("s"), said=((1.5, "user"), (float("nan"), "user")))) == {"s": []}
    assert Said("user", 1.0, NOON).weight == pytest.approx(0.49)
