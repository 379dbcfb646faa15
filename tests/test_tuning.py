"""Examples for fine-tuning: only of requests that climbed, only with consent and texts, and without what they betray;
and the commands that make them, and outcome tables, of a real gateway's journal."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_cli import ENVIRON, serving
from tests.test_intake import a_story, replied
from tierwise.cli import main as cli
from tierwise.core.ports import Story
from tierwise.core.request import Hints
from tierwise.study.data.outcomes import load
from tierwise.study.data.redact import luhn, redact
from tierwise.study.data.tuning import WHY, Tuning

SECRET = "tw-key-of-ada-1234567890"
ASKED = {"model": "auto", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]}


def climbed(id: str = "a", body: Any = ASKED, reply: str | None = "Because.", **fields: Any) -> Story:
    """A story with texts whose first reply was passed over."""
    labels, tags = fields.pop("labels", (("tuning", "yes"),)), fields.pop("tags", ())
    text = body if isinstance(body, str | None) else json.dumps(body)
    story = a_story(id, replied("s"), replied("L"), prompt=text, reply=reply, **fields)
    episode = msgspec.structs.replace(story.record.episode, hints=Hints(labels=labels))
    payer = msgspec.structs.replace(episode.payer, team="search", tags=tags)
    episode = msgspec.structs.replace(episode, payer=payer)
    return Story(msgspec.structs.replace(story.record, episode=episode), story.feedback)


def lines(*stories: Story, **options: Any) -> tuple[list[Any], dict[str, int]]:
    made = Tuning(**options)
    found = [msgspec.json.decode(line) for story in stories for line in made.lines(story)]
    report = made.report()
    assert report.examples == len(found)
    assert set(dict(report.left_out)) <= set(WHY)
    return found, dict(report.left_out)


def test_chat_lines_are_what_openai_takes() -> None:
    assert lines(climbed())[0] == [{"messages": [*ASKED["messages"], {"role": "assistant", "content": "Because."}]}]


def test_plain_lines_have_the_whole_conversation() -> None:
    alone = {"messages": [{"role": "user", "content": "Who?"}], "model": "auto"}
    assert lines(climbed("a"), climbed("b", alone), format="plain")[0] == [
        {"prompt": "system: Be brief.\n\nuser: Why?", "reply": "Because."},
        {"prompt": "Who?", "reply": "Because."},
    ]


def test_a_body_of_the_other_door_is_read_as_well() -> None:
    body = {"model": "m", "max_tokens": 9, "system": "Be brief.", "messages": [{"role": "user", "content": "Why?"}]}
    assert lines(climbed(body=body))[0] == lines(climbed())[0]


TOOLS = {**ASKED, "tools": [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]}
IMAGE = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]


@pytest.mark.parametrize(
    ("story", "why"),
    [
        (climbed(status="broken"), "not answered"),
        (a_story("a", replied("s"), prompt="{}", reply="x"), "not escalated"),
        (a_story("a", replied("s"), replied("s"), prompt="{}", reply="x"), "not escalated"),
        (climbed(labels=()), "no consent"),
        (climbed(labels=(("tuning", "maybe"),)), "no consent"),
        (climbed(tags=(("tuning", "no"),)), "no consent"),
        (climbed(body=None), "no text"),
        (climbed(reply=None), "no text"),
        (climbed(said=((0.0, "user"),)), "judged bad"),
        (climbed(said=((1.0, "user"), (0.2, "review"))), "judged bad"),
        (climbed(body=TOOLS), "not plain text"),
        (climbed(body={**ASKED, "messages": [{"role": "user", "content": IMAGE}]}), "not plain text"),
        (climbed(body="{cut"), "not plain text"),
        (climbed(body={"input": "x", "model": "embedding"}), "not plain text"),
    ],
)
def test_what_is_left_out_and_why(story: Story, why: str) -> None:
    assert lines(story) == ([], {why: 1})


@pytest.mark.parametrize(
    ("labels", "tags", "consent", "agreed"),
    [
        ((), (), ("key:ada",), True),
        ((), (), ("team:search",), True),
        ((), (), ("user:ada", "team:ada", "key:search", "organisation:"), False),
        ((), (("tuning", "yes"),), (), True),
        ((("tuning", "YES"),), (), (), True),
        ((("tuning", "yes"),), (("tuning", "no"),), ("key:ada",), False),
        ((("tuning", "no"),), (), ("key:ada",), False),
    ],
)
def test_consent_is_named_and_a_no_holds(labels: Any, tags: Any, consent: tuple[str, ...], agreed: bool) -> None:
    assert bool(lines(climbed(labels=labels, tags=tags), consent=consent)[0]) is agreed


def test_a_prompt_is_an_example_once_whatever_its_case_and_spaces() -> None:
    again = {**ASKED, "messages": [{"role": "system", "content": "be  brief."}, {"role": "user", "content": " WHY? "}]}
    other = {**ASKED, "messages": [{"role": "user", "content": "Be brief. Why?"}]}
    found, left_out = lines(climbed("a"), climbed("b", again), climbed("c", other))
    assert (len(found), left_out) == (2, {"repeated": 1})


def test_a_change_of_mind_counts() -> None:
    assert len(lines(climbed(said=((0.0, "user"), (1.0, "user"))))[0]) == 1


# ------------------------------------------------------------------------------------------------ redaction


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Write to ada.l+x@mail.example.co.uk!", "Write to [email]!"),
        ("Call +43 (1) 234 56-78 or 0043 660 1234567.", "Call [phone] or [phone]."),
        ("Call 555-123-4567 today", "Call [phone] today"),
        ("Card 4111 1111 1111 1111, or 378282246310005", "Card [card], or [card]"),
        ("OPENAI_API_KEY=sk-proj-abcdefghij0123456789", "OPENAI_API_KEY=[secret]"),
        ("AKIAABCDEFGHIJKLMNOP and ghp_abcdefghijklmnopqrstuvwxyz0123", "[secret] and [secret]"),
        ("Authorization: Bearer abcdef0123456789abcdef==", "Authorization: Bearer [secret]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nend", "[secret]\nend"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2QT4", "[secret]"),
    ],
)
def test_what_is_taken_out(text: str, clean: str) -> None:
    assert redact(text)[0] == clean
    assert redact(text)[1] == clean.count("[")
    assert redact(clean) == (clean, 0)


@pytest.mark.parametrize(
    "text",
    [
        "In 2024-01-15 it was 3.14159 of 1,000,000; see RFC 9110 and page 12-34.",
        "4111 1111 1111 1112 is no card, 1234567890123 no number of anything",
        "x@y and user@ and a b@c are no addresses; task-sk-1 is no key",
        "def f(a): return a[0:10] + 2**31 - 1",
        "",
    ],
)
def test_what_stays(text: str) -> None:
    assert redact(text) == (text, 0)


@given(st.text(alphabet="0123456789 -+()@.akes_\n", max_size=200))
def test_redaction_ends_and_is_done_once(text: str) -> None:
    clean, _ = redact(text)
    assert redact(clean)[0] == clean


def test_redaction_is_linear_enough() -> None:
    """200 kB of what the patterns nearly match."""
    for piece in ("a.", "1 ", "1-", "sk-", "@a.", "(12) "):
        redact(piece * (200_000 // len(piece)))


@given(st.lists(st.integers(0, 9), min_size=11, max_size=15))
def test_the_check_digit_is_the_only_one_that_fits(digits: list[int]) -> None:
    number = "".join(map(str, digits))
    assert sum(luhn(number + str(last)) for last in range(10)) == (1 if any(digits) else 0)


def test_both_texts_are_redacted_and_counted() -> None:
    body = {**ASKED, "messages": [{"role": "user", "content": "I am ada@example.com"}]}
    made = Tuning()
    (line,) = made.lines(climbed(body=body, reply="Hello ada@example.com"))
    assert b"example.com" not in line
    assert made.report().redacted == 2


# ------------------------------------------------------------------------------------------------ the commands

CONFIG = """
models: {simulated/small: {}, simulated/large: {}}
policy:
  start: climb
  plans:
    climb: {cascade: [low, high], accept: {confidence: 0.99}}
    low: {use: [simulated/small]}
    high: {use: [simulated/large]}
journal: {store_texts: true}
keys:
  - {name: ada, secret: env:ADA_KEY, team: search}
"""


def ask(url: str, path: str, body: Any) -> Any:
    headers = {"content-type": "application/json", "authorization": f"Bearer {SECRET}"}
    request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as reply:
        return json.load(reply), reply.headers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a gateway has served two requests, each by a cascade, and has heard what became of them."""
    path = tmp_path_factory.mktemp("journal")
    (path / "tierwise.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(ENVIRON, "ADA_KEY", SECRET)
        with serving(path) as facts:
            for question, score in (("What is a noun?", 1.0), ("Is this a verb: run?", 0.0)):
                body = {"model": "auto", "messages": [{"role": "user", "content": question}]}
                _, headers = ask(facts["url"], "/v1/chat/completions", body)
                said = {"decision_id": headers["x-tierwise-decision"], "score": score, "source": "review"}
                ask(facts["url"], "/v1/feedback", said)
    return path


class Ran(NamedTuple):
    code: int
    out: str
    errors: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`tierwise ...` in this process."""

    def run(*words: str, cwd: Path) -> Ran:
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("ADA_KEY", SECRET)
        monkeypatch.setenv("TIERWISE_LOCAL_URL", "off")
        monkeypatch.delenv("TIERWISE_STATE", raising=False)
        monkeypatch.setattr(sys, "argv", ["tierwise", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        heard = capsys.readouterr()
        return Ran(int(end.value.code or 0), heard.out, heard.err)

    return run


def test_a_journal_becomes_tables_and_is_reported(folder: Path, command: Callable[..., Ran]) -> None:
    ran = command("outcomes", "--json", cwd=folder)
    assert ran.code == 0, ran.errors
    found = json.loads(ran.out)
    assert (found["intake"]["episodes"], found["intake"]["several_models"]) == (2, 2)
    assert dict(found["intake"]["sources"])["review"] == 2
    by_model = {each["model"]: each for each in found["report"]["models"]}
    assert by_model["simulated/large"]["quality"] == pytest.approx(0.5, abs=0.1)
    assert by_model["simulated/small"]["cost_share"] == 1.0
    table, _ = load([found["intake"]["files"][0]])
    assert set(table.texts) == {"What is a noun?", "Is this a verb: run?"}
    assert np.isfinite(table.latency_ms).any()
    shown = command("outcomes", str(Path(found["intake"]["files"][0]).parent), cwd=folder)
    assert "simulated/large" in shown.out
    assert found["report"]["hash"] in shown.out


def test_examples_are_written_once_for_their_owner_alone(
    folder: Path, tmp_path: Path, command: Callable[..., Ran]
) -> None:
    words = ("export", "tuning", str(tmp_path / "t.jsonl"), "--consent", "team:search")
    ran = command(*words, cwd=folder)
    assert ran.code == 0, ran.errors
    assert "t.jsonl: 1 example, 0 places redacted" in ran.out
    assert "scored below" in ran.out
    (line,) = (tmp_path / "t.jsonl").read_text().splitlines()
    assert [each["role"] for each in json.loads(line)["messages"]] == ["user", "assistant"]
    assert (tmp_path / "t.jsonl").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]
    again = command(*words, cwd=folder)
    assert (again.code, "is there already" in again.errors) == (1, True)


@pytest.mark.parametrize(
    ("until", "why"), [("", "left out: 2, nobody agreed"), ("2020-01-01", "there are no requests")]
)
def test_no_examples_are_no_file(
    until: str, why: str, folder: Path, tmp_path: Path, command: Callable[..., Ran]
) -> None:
    ran = command("export", "tuning", str(tmp_path / "t.jsonl"), *(("--until", until) if until else ()), cwd=folder)
    assert (ran.code, ran.errors) == (1, "")
    assert "t.jsonl is not written, for there are no " in ran.out and why in ran.out
    assert not [*tmp_path.iterdir()]


def test_days_without_a_request_are_no_tables(folder: Path, tmp_path: Path, command: Callable[..., Ran]) -> None:
    ran = command("outcomes", "--since", "2099-01-01", "--out", str(tmp_path / "tables"), cwd=folder)
    assert (ran.code, ran.out) == (1, "")
    assert "has no request of --since 2099-01-01, so no tables are written" in ran.errors
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("outcomes", "nowhere"), 1, "is not there"),
        (("outcomes", "nowhere", "--since", "2026-01-01"), 2, "are about the journal"),
        (("outcomes", "--since", "yesterday"), 2, "write it as 2026-11-03"),
        (("outcomes",), 1, "there is no journal in"),
        (("export", "tuning", "t.jsonl"), 1, "there is no journal in"),
        (("export", "tuning", "no/t.jsonl"), 1, "cannot be written"),
        (("export", "tuning", "t.jsonl", "--consent", "ada"), 2, "say who as key:NAME"),
    ],
)
def test_commands_refuse_with_a_sentence(
    words: tuple[str, ...], code: int, said: str, tmp_path: Path, command: Callable[..., Ran]
) -> None:
    ran = command(*words, cwd=tmp_path)
    assert (ran.code, said in ran.errors) == (code, True), ran.errors
    assert not list(tmp_path.rglob("*.jsonl"))
