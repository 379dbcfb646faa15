"""What a reply costs in another tokenizer's tokens, when its provider does not say: learned from replies that did.

How far off it is in how many languages is run `s3` of scripts/reliability.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.reliability.counts import LESSONS, NAMES, _off, _p95, golden, replies, teach
from tests.support.callers import ANTHROPIC
from tests.support.gateway import CHEAP, Gateway, world
from tests.support.replies import Tokens, anthropic_events, openai_events
from tests.support.upstream import Exchange, FakeUpstream, openai_reply
from tierwise.core.catalogue import Model
from tierwise.core.request import Features
from tierwise.routing.ratios import (
    EVERY,
    FIRST,
    KEPT,
    MOST_CHARACTERS,
    OURS,
    Measured,
    Ratio,
    Ratios,
    family_of,
    language_of,
)
from tierwise.routing.spelling import LEAST, MOST, Report, Spelling, spelled
from tierwise.routing.tokens import count_now

STRANGER = Model(id=CHEAP, provider="one", name="cheap", tier="fast")


def named(name: str) -> Model:
    return Model(id=CHEAP, provider="one", name=name, tier="fast")


def lessons_of(tokenizer: str, number: int) -> list[tuple[str, int]]:
    """So many replies of each kind and what its provider reported, the kinds in turn."""
    spoken = {kind: list(replies(lessons)) for kind, lessons in golden()["lessons"].items()}
    told = golden()["lesson_tokens"][tokenizer]
    return [(spoken[kind][turn], told[kind][turn]) for turn in range(number) for kind in spoken]


# ------------------------------------------------------------------------------------------------ laws

TEXTS = st.text(min_size=1, max_size=200) | st.sampled_from(list(golden()["texts"].values()))
REPORTS = st.lists(st.tuples(TEXTS, st.integers(-5, 10**9)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(reports=REPORTS, text=TEXTS, name=st.sampled_from(["cheap", *NAMES.values()]))
def test_whatever_providers_report_the_count_is_bounded_and_never_nothing(
    reports: list[tuple[str, int]], text: str, name: str
) -> None:
    known, model = Ratios(), named(name)
    for each, reported in reports:
        known.learn_now(model, "", each, reported)
    measured = known.measured_now(model, text, count_now(text))
    assert max(1, round(LEAST * measured.counted)) <= measured.expected <= max(1, round(MOST * measured.counted))


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(42)), text=st.sampled_from(list(golden()["texts"].values())))
def test_the_order_of_reports_does_not_matter(order: list[int], text: str) -> None:
    reports = [Report(spelled(each), count_now(each), told) for each, told in lessons_of("llama-2", 2)]
    one, other = Spelling(reports), Spelling([reports[index] for index in order])
    assert one.ratio(spelled(text), 100) == pytest.approx(other.ratio(spelled(text), 100), rel=1e-6)


@given(st.lists(st.tuples(st.sampled_from(("de", "de", "fr")), st.floats(LEAST, MOST)), max_size=30))
def test_a_language_and_all_of_them_learn_each_for_itself(reports: list[tuple[str, float]]) -> None:
    known = Ratios()
    separate: dict[str, Ratio] = {}
    for language, seen in reports:
        known.learn("m", language, 1_000, round(1_000 * seen))
        overall = separate.get("*", Ratio())
        own = separate.get(language, Ratio(overall.value))
        told = round(1_000 * seen)
        separate["*"], separate[language] = overall.after(told / 1_000), own.after(told / 1_000)
    assert {language: known.of("m", language) for language in separate} == separate


@given(st.lists(st.tuples(st.integers(-5, 10_000), st.integers(-5, 10**9)), max_size=60), st.integers(0, 10**6))
def test_a_ratio_of_prompts_is_bounded_whatever_is_reported(reports: list[tuple[int, int]], estimated: int) -> None:
    known = Ratios()
    for each in reports:
        known.learn("m", "de", *each)
    for language in ("de", "en"):
        assert LEAST <= known.of("m", language).value <= MOST
        assert 1 <= known.expected("m", language, estimated) <= max(1, MOST * estimated)


# ------------------------------------------------------------------------------------------------ replies


@pytest.mark.parametrize("tokenizer", ["llama-2", "claude-2", "qwen"])
def test_twenty_replies_of_each_kind_teach_any_tokenizer(tokenizer: str) -> None:
    assert _p95(_off(tokenizer, "", 0)) > 0.5
    assert _p95(_off(tokenizer, "", 20)) <= 0.15
    assert _p95(_off(tokenizer, NAMES[tokenizer], 0)) <= 0.2  # by the name alone


def test_lies_are_not_believed_while_most_replies_tell_the_truth() -> None:
    """One in ten is told six times too long: within what some tokenizer makes of some text, so no bound catches it."""
    rng, honest, lied = random.Random(3), list[Report](), list[Report]()
    for text, told in lessons_of("qwen", 12):
        report = Report(spelled(text), count_now(text), told)
        honest.append(report)
        lie = min(6 * told, int(MOST * report.counted)) if rng.random() < 0.1 else told
        lied.append(Report(report.spelled, report.counted, lie))
    one, other = Spelling(honest), Spelling(lied)
    moved = []
    for text in golden()["texts"].values():
        shape, counted = spelled(text), count_now(text)
        moved.append(abs(other.ratio(shape, counted) / one.ratio(shape, counted) - 1))
    assert sorted(moved)[len(moved) * 9 // 10] < 0.1 and max(moved) < 0.3


STRANGE = {
    "dashes": "-" * 300,
    "blank": " " * 300 + "x",
    "smileys": "😀🎉👍🚀" * 30,
    "Georgian": "მუზეუმი იხსნება ცხრა საათზე და იკეტება ექვსზე.",
    "a word": "Yes.",
}


@pytest.mark.parametrize("text", list(STRANGE.values()), ids=list(STRANGE))
def test_of_a_text_like_none_that_was_reported_nothing_was_learned(text: str) -> None:
    """Without this, three hundred dashes were eight times what they are, and Georgian three quarters."""
    known = Ratios()
    teach(known, STRANGER, "llama-2", 3)
    assert known.measured_now(STRANGER, text, 50) == Measured(50, 50)
    for counted in (1, 50, 10_000):  # by its name, no more and no less than was measured of it
        assert 1.0 <= Spelling((), "llama-2").ratio(spelled(text), counted) <= 3.7


def test_no_ratio_is_beyond_what_those_most_alike_had_nor_beyond_the_bounds() -> None:
    text = golden()["texts"]["hindi"]
    shape, counted = spelled(text), count_now(text)
    for ratio, least, most in ((2.0, 1.6, 2.5), (8.0, 6.4, 8.0), (0.25, 0.25, 0.32)):
        reports = [Report(spelled(text), counted, round(ratio * counted)) for text in [text] * 3]
        asked = [Spelling(reports).ratio(shape, tokens) for tokens in (counted // 3, counted, 3 * counted)]
        assert all(least <= each <= most for each in asked), asked


@pytest.mark.parametrize("reported", [0, -1, 1, 10**9])
def test_a_report_that_no_tokenizer_can_have_made_teaches_nothing(reported: int) -> None:
    known, text = Ratios(), golden()["texts"]["english"]
    known.learn_now(STRANGER, "en", text, reported)
    assert known.measured_now(STRANGER, text, 89) == Measured(89, 89)


def test_where_the_tokenizer_is_ours_nothing_is_learned_and_our_count_stands() -> None:
    ours, text = named("gpt-4o-mini"), golden()["texts"]["hindi"]
    known = Ratios()
    assert not any(known.due(ours, "indic", text, 300) for _ in range(3 * EVERY))
    assert known.due(STRANGER, "indic", text, 300) is False  # one model, whatever it is called today


async def test_what_is_measured_is_our_count_of_our_own_and_nothing_of_nothing() -> None:
    known, text = Ratios(), golden()["texts"]["hindi"]
    teach(known, STRANGER, "llama-2", 2)
    assert await known.measured(named("gpt-4o"), text) == Measured(count_now(text), count_now(text))
    assert await known.measured(STRANGER, "") == Measured(0, 0)
    assert (await known.measured(STRANGER, text)).expected > 2 * count_now(text)


def test_replies_are_sampled_by_kind_and_few_are_kept() -> None:
    known, english, thai = Ratios(), golden()["texts"]["english"], golden()["texts"]["thai"]
    asked = [known.due(STRANGER, "en", english, 90) for _ in range(FIRST + 2 * EVERY)]
    assert asked[:FIRST] == [True] * FIRST and FIRST + 1 <= sum(asked) <= FIRST + 2
    assert known.due(STRANGER, "en", thai, 90)  # another script is another kind
    assert not known.due(STRANGER, "de", english, 3) and not known.due(STRANGER, "de", english * 30, 90)
    assert len(english * 30) > MOST_CHARACTERS
    for number in range(KEPT + 40):
        known.learn_now(STRANGER, "en" if number > 20 else "th", english if number > 20 else thai, 300)
    kept = known._replies[CHEAP].kept
    assert sum(map(len, kept.values())) == KEPT and len(kept["th*28"]) == 21


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("gpt-4o", OURS),
        ("openai/gpt-4.1-mini", OURS),
        ("gpt-5-nano", OURS),
        ("o3-mini", OURS),
        ("o1", OURS),
        ("gpt-oss-120b", OURS),
        ("gpt-4-turbo", "cl100k"),
        ("gpt-3.5-turbo-0125", "cl100k"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama-3"),
        ("llama3.1:8b", "llama-3"),
        ("Llama-2-7b-chat-hf", "llama-2"),
        ("mixtral-8x7b-instruct", "mistral-1"),
        ("open-mistral-nemo", "tekken"),
        ("mistral-small-latest", ""),
        ("Qwen2.5-Coder-32B", "qwen"),
        ("deepseek-r1-distill-qwen-7b", "qwen"),
        ("deepseek-chat", "deepseek-v3"),
        ("claude-2.1", "claude-2"),
        ("claude-sonnet-4-5", ""),
        ("gemini-2.5-flash", ""),
        ("foo1", ""),
        ("llama-4-scout", ""),
    ],
)
def test_the_family_of_a_name(name: str, family: str) -> None:
    assert family_of(name) == family


# ------------------------------------------------------------------------------------------------ prompts


def test_a_ratio_of_prompts_is_of_one_model_and_language_and_steady() -> None:
    known = Ratios()
    for _ in range(500):
        known.learn("m", "de", 100, 130)
    known.learn("m", "de", 100, 800)
    assert 1.29 < known.of("m", "de").value < 1.3 * (1 + 0.05 * 0.5) + 0.001 and known.of("m", "de").reports == 501
    assert known.expected("m", "fr", 100) == known.expected("m", "*", 100) > 129  # of an unknown language, the model's
    for _ in range(60):
        known.learn("m", "hi", 100, 400)
    assert known.expected("m", "hi", 100) > 380 and known.expected("m", "de", 100) < 140
    assert known.expected("new", "de", 70) == 70 and known.expected("m", "de", 0) == 1
    known.learn("odd", "de", 10, 40)  # too short to tell
    assert known.of("odd", "de").reports == 0


def test_the_language_of_a_prompt_is_its_first_and_programs_are_one() -> None:
    features = Features(input_tokens=1, input_bound_tokens=1)
    assert language_of(features) == ""
    assert language_of(Features(input_tokens=1, input_bound_tokens=1, languages=("ru", "en"))) == "ru"
    assert language_of(Features(input_tokens=1, input_bound_tokens=1, languages=("en",), code=0.9)) == "code"


# ------------------------------------------------------------------------------------------------ served


@pytest.mark.parametrize("stream", [False, True])
async def test_replies_that_tell_their_usage_teach_what_silent_ones_are_charged(tmp_path: Path, stream: bool) -> None:
    """Through the gateway: Hindi, of which this tokenizer makes more than three times what ours does."""
    text, true = golden()["texts"]["hindi"], golden()["tokens"]["llama-2"]["hindi"]
    lessons = zip(replies(golden()["lessons"]["hindi"]), golden()["lesson_tokens"]["llama-2"]["hindi"], strict=True)
    asked = {"messages": [{"role": "user", "content": text}], "max_tokens": 900}
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}

    async def silent(x: Exchange) -> None:
        if stream:
            await x.start_stream()
            for event in openai_events("cheap", text, usage=None, pieces=9):
                await x.chunk(event)
            await x.chunk(b"")
        else:
            await openai_reply(text, usage=None)(x)

    async with FakeUpstream(silent) as one, Gateway(tmp_path, world(one)) as gateway:

        async def charged() -> int:
            one.default = silent
            assert (await gateway.ask(**asked, **options)).status == 200
            await gateway.settled()
            _, charge = gateway.ledger.charges[-1]
            assert charge.kind == "estimated" and charge.usage.estimated and charge.cost_nano > 0
            return charge.usage.output_tokens

        assert await charged() == count_now(text) < true / 3
        for said, reported in list(lessons)[:12]:
            one.default = openai_reply(said, usage=Tokens(300, reported))
            assert (await gateway.ask(**asked)).status == 200
        await gateway.settled()
        assert abs(await charged() / true - 1) < 0.15


@pytest.mark.parametrize("ceiling", [900, 150, 20])
async def test_what_we_count_is_never_above_the_ceiling_that_was_asked_for(tmp_path: Path, ceiling: int) -> None:
    """By what was learned; what came all the same is charged as we count it."""
    text = golden()["texts"]["hindi"]
    async with FakeUpstream(openai_reply(text, usage=None)) as one, Gateway(tmp_path, world(one)) as gateway:
        model = gateway.router.snapshot.catalogue.models[CHEAP]
        teach(gateway.router.books.ratios, model, "llama-2", 3)
        learned = gateway.router.books.ratios.measured_now(model, text, 72).expected
        await gateway.ask(max_tokens=ceiling)
        ((_, charge),) = gateway.ledger.charges
        assert charge.usage.output_tokens == {900: learned, 150: 150, 20: 72}[ceiling] and learned > 180


async def test_a_stream_that_breaks_off_is_charged_for_the_prompt_that_its_provider_told(tmp_path: Path) -> None:
    """Anthropic tells the input in the first event; what was written is our count, and the charge says so."""
    text = golden()["texts"]["english"]

    async def cut(x: Exchange) -> None:
        await x.start_stream()
        for event in anthropic_events("cheap", text, usage=Tokens(321, 99, cached=45), pieces=6)[:5]:
            await x.chunk(event)
        x.close()

    async with FakeUpstream(cut) as one, Gateway(tmp_path, world(one, wire="anthropic")) as gateway:
        await gateway.ask(ANTHROPIC, stream=True, max_tokens=500)
        await gateway.settled()
        ((_, charge),) = gateway.ledger.charges
        assert (charge.usage.input_tokens, charge.usage.cached_input_tokens) == (321, 45)
        assert charge.kind == "estimated" and 20 < charge.usage.output_tokens < 89


async def test_usage_with_hidden_thoughts_teaches_nothing(tmp_path: Path) -> None:
    text = golden()["texts"]["english"]
    usage = Tokens(300, 90, reasoning=500)
    async with FakeUpstream(openai_reply(text, usage=usage)) as one, Gateway(tmp_path, world(one)) as gateway:
        await gateway.ask(max_tokens=900)
        await gateway.settled()
        assert not gateway.router.books.ratios._replies
        one.default = openai_reply(text, usage=Tokens(300, 90))
        await gateway.ask(max_tokens=900)
        await gateway.settled()
        assert len(gateway.router.books.ratios._replies) == 1


def test_the_golden_lessons_are_not_the_golden_texts() -> None:
    read = golden()
    assert read["lessons"].keys() <= read["texts"].keys() and not (
        {lesson.strip() for lessons in read["lessons"].values() for lesson in lessons}
        & {line.strip() for text in read["texts"].values() for line in text.splitlines()}
    )
    for counted in read["lesson_tokens"].values():
        assert all(len(told) == LESSONS for told in counted.values()) and counted.keys() == read["lessons"].keys()
    assert sorted(NAMES) == sorted(read["tokens"]) == sorted(read["lesson_tokens"])
