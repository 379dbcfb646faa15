"""What the gateway does and says, story by story, kept as golden files that a person can read.

`TIERWISE_GOLDEN=write` writes them anew; look at the difference before you keep it. Ids, times and ports are masked,
the clock and the dice are given, and the models are scripted, so a story never differs by chance.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.callers import ANTHROPIC, DIALECTS, DOORS, OPENAI, SOUND, Dialect, Heard
from tests.support.gateway import ADA, BOB, CHEAP, DEAR, KEYS, Gateway, price, world
from tests.support.upstream import FakeUpstream, error, openai_reply, rate_limited
from tierwise.core.episode import Call, Serve
from tierwise.routing.health import Health

FOLDER = Path(__file__).parent / "golden" / "stories"
WRITE = os.environ.get("TIERWISE_GOLDEN") == "write"  # read now: no test sees this machine's settings
NOW_S = 1_780_000_000.0
OTHER, TINY = "one/other", "one/tiny"
TWINS = {OTHER: {"tier": "fast", "price": price(2, 8), "context_tokens": 200_000, "max_output_tokens": 1_000}}
TIMES = ("after_ms", "latency_ms", "first_token_ms", "own_ms", "snapshot", "created_at")


def is_told(header: str) -> bool:
    """The SDKs' request id is the decision's, and told by that."""
    return header == "retry-after" or (header.startswith("x-") and header != "x-request-id")


class Story:
    """One gateway, what was asked of it, and what it said and did: a line for each, in order."""

    def __init__(self, gateway: Gateway, upstreams: Mapping[str, FakeUpstream]) -> None:
        self.gateway = gateway
        self.upstreams = upstreams
        self.lines: list[dict[str, Any]] = []
        self._seen = dict.fromkeys(upstreams, 0)
        self._charged = 0

    async def ask(self, note: str, dialect: Dialect = OPENAI, *, key: str = "", **body: Any) -> Heard:
        own = {"x-tierwise-session": f"story-{len(self.lines)}"}  # else equal prompts would be one conversation
        headers = {**own, **body.pop("headers", {}), **({"authorization": f"Bearer {key}"} if key else {})}
        heard = await self.gateway.ask(dialect, headers=headers, **body)
        await self._write(note, heard)
        return heard

    async def post(self, note: str, path: str, body: Any, key: str = "") -> Heard:
        heard = await self.gateway.post(path, body, headers={"authorization": f"Bearer {key}"} if key else {})
        await self._write(note, heard)
        return heard

    async def get(self, note: str, path: str, key: str = "", **headers: str) -> Heard:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            given["authorization"] = f"Bearer {key}"
        heard = await self.gateway.get(path, headers=given)
        await self._write(note, heard)
        return heard

    async def _write(self, note: str, heard: Heard) -> None:
        await self.gateway.settled()
        calls = []
        for name, upstream in self.upstreams.items():
            new, self._seen[name] = upstream.requests[self._seen[name] :], len(upstream.requests)
            calls += [f"{name}/{seen.model}" for seen in new]
        new_charges = self.gateway.ledger.charges[self._charged :]
        self._charged += len(new_charges)
        self.lines.append({
            "note": note,
            "status": heard.status,
            "headers": {k: v for k, v in heard.headers.items() if is_told(k)},
            "said": _said(heard),
            "calls": calls,
            "charged": [f"{each.kind} {each.billed} {each.cost_nano} n$".strip() for _, each in new_charges],
        })  # fmt: skip


def _said(heard: Heard) -> Any:
    """A model's reply as its text; anything else whole."""
    if heard.status == 200 and (b'"choices"' in heard.body or b'"content"' in heard.body):
        return heard.text
    return heard.json


@asynccontextmanager
async def telling(tmp_path: Path, draw: float = 0.5, **config: Any) -> Any:
    async with FakeUpstream() as one, FakeUpstream() as two:
        made = Gateway(tmp_path, world(one, two, **config), now=lambda: NOW_S, draw=lambda: draw)
        async with made as gateway:
            yield Story(gateway, {"one": one, "two": two}), one, two


async def kept(name: str, story: Story) -> None:
    """The story is the one in the golden file."""
    ids = [record.episode.id for record in await story.gateway.records()]
    told = (
        json.dumps(_masked(story.lines, re.compile("|".join(ids or ["$."])), {}), indent=1, ensure_ascii=False) + "\n"
    )
    path = FOLDER / f"{name}.json"
    if WRITE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(told)
    assert json.loads(told) == json.loads(path.read_text())


def _masked(value: Any, ids: re.Pattern[str], named: dict[str, str]) -> Any:
    """Decisions are numbered as they appear; what differs from run to run is left out."""
    match value:
        case dict():
            return {key: "…" if key in TIMES else _masked(inner, ids, named) for key, inner in value.items()}
        case list():
            return [_masked(inner, ids, named) for inner in value]
        case str():
            value = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", value)
            return ids.sub(lambda found: named.setdefault(found[0], f"decision-{len(named) + 1}"), value)
    return value


# ------------------------------------------------------------------------------------------------ plans


async def test_a_cascade_is_left_when_two_cheap_models_agree_and_climbed_when_not(tmp_path: Path) -> None:
    """B8: three attempts, three holds; and the frontier model is shown what the others wrote."""
    plans = {"climb": {"cascade": ["pair", "frontier"], "accept": {"agreement": 2}}, "pair": {"use": ["fast"]}}
    async with telling(tmp_path, plans=plans, models=TWINS) as (story, one, two):
        one.script(*[openai_reply("The capital of France is Paris, on the Seine.")] * 2)
        await story.ask("two agree, so the frontier is never asked")
        one.script(openai_reply("It is Lyon."), openai_reply("Marseille, without a doubt, since 1789."))
        two.script(openai_reply("Paris."))
        await story.ask("two differ, so the frontier decides")
        shown = json.dumps(two.requests[0].json)
        assert "Lyon" in shown and "Marseille" in shown
        one.script(openai_reply("It is Lyon."), error(500))
        two.script(error(500))
        await story.ask("nobody above answers: a reply that was not accepted is better than none", ANTHROPIC)
        one.script(*[openai_reply("Paris is the capital of France.")] * 2)
        heard = await story.ask("a stream is made of a reply that was gathered", stream=True)
        assert heard.whole
        holds = {hold.id for hold, _ in story.gateway.ledger.holds}
        assert len(holds) == len(story.gateway.ledger.holds) == len(story.gateway.ledger.charges)
        await kept("cascade_by_agreement", story)


async def test_a_helper_is_asked_once_and_its_answer_leads_the_rules(tmp_path: Path) -> None:
    plans = {
        "start": {
            "ask": {"of": "fast", "topic": "hard", "question": "Is it hard?", "answers": ["easy", "hard"]},
            "then": "rules",
        },
        "rules": {"rules": [{"when": {"told": {"hard": "hard"}}, "then": "solid"}], "otherwise": "light"},
        "solid": {"use": ["frontier"]},
        "light": {"use": ["fast", "frontier"]},
    }
    async with telling(tmp_path, plans=plans) as (story, one, _two):
        one.script(openai_reply("Hard."))
        await story.ask("the helper says hard")
        await story.ask("the same question again: the answer is remembered")
        one.script(openai_reply("easy"))
        await story.ask("another question", messages=[{"role": "user", "content": "Hi there!"}])
        one.script(openai_reply("Ignore that. It is both easy and hard."))
        await story.ask("an answer that is none", messages=[{"role": "user", "content": "What is love?"}])
        one.script(error(500))
        await story.ask("a helper that fails", messages=[{"role": "user", "content": "Why is the sky blue?"}])
        quoted = one.requests[0].json["messages"]
        assert "France" not in quoted[0]["content"] and "<request>" in quoted[1]["content"]
        await kept("ask_then_rules", story)


async def test_a_grader_decides_whether_a_draft_is_good_enough(tmp_path: Path) -> None:
    plans = {"climb": {"cascade": ["fast", "frontier"], "accept": {"grader": "judge"}}, "judge": {"use": [OTHER]}}
    models = {OTHER: {**TWINS[OTHER], "tier": "local"}}
    async with telling(tmp_path, plans=plans, models=models) as (story, one, _two):
        for note, verdict in (
            ("good enough", openai_reply("0.9")),
            ("not good enough", openai_reply("0.2")),
            ("an answer that is no number", openai_reply("10/10, the best reply ever!")),
            ("a grader that fails", error(503)),
        ):
            one.script(openai_reply(f"A draft, {note}."), verdict)
            await story.ask(note)
            story.gateway.rested()
        await kept("grader", story)


@pytest.mark.parametrize(("name", "draw"), [("explore_taken", 0.03), ("explore_not_taken", 0.5)])
async def test_exploration_follows_the_dice_and_writes_down_the_odds(tmp_path: Path, name: str, draw: float) -> None:
    plans = {"start": {"explore": {"rate": 0.1, "among": ["frontier"]}, "then": "usual"}, "usual": {"use": ["fast"]}}
    async with telling(tmp_path, draw, plans=plans) as (story, _one, _two):
        await story.ask("left to the dice")
        record = await story.gateway.last()
        assert dict(record.decisions[0].odds) == {CHEAP: 0.9, DEAR: 0.1}
        await story.ask("the caller wants none of it", tierwise={"explore": False})
        await kept(name, story)


# ------------------------------------------------------------------------------------------------ money


async def test_a_spent_budget_refuses_and_says_what_is_left(tmp_path: Path) -> None:
    budgets = [{"scope": "user", "limit_usd": 0.0101, "window": "month"}, {"scope": "session", "steps": 2}]
    tiny = {TINY: {"tier": "local", "price": price(0.01, 0.01), "max_output_tokens": 1_000}}
    async with telling(tmp_path, keys=KEYS, budgets=budgets, models=tiny) as (story, _one, _two):
        long = [{"role": "user", "content": "word " * 100}]
        await story.ask("a request that fits", key=ADA, max_tokens=1_000, messages=long)
        for dialect in DIALECTS:
            heard = await story.ask("its ceiling does not", dialect, key=ADA, max_tokens=1_000, messages=long * 14)
            assert (heard.status, heard.headers["x-should-retry"]) == (402, "false")
            most = heard.error["metadata"]["affordable_max_tokens"]
            assert 0 < most < 1_000 and heard.error["metadata"]["admissible"] == [TINY]
        heard = await story.ask("what it was told to be affordable is", key=ADA, max_tokens=most, messages=long * 14)
        assert heard.status == 200
        heard = await story.ask("and so is the model it was told of", key=ADA, model=TINY, messages=long * 14)
        assert heard.status == 200
        await story.ask("without a ceiling the gateway sets one that fits", key=ADA, messages=long * 7)
        await story.ask("another user is not concerned", ANTHROPIC, key=BOB)
        for number in (1, 2, 3):
            await story.ask(f"step {number} of a session of two", key=BOB, headers={"x-tierwise-session": "s1"})
        await story.ask("the caller's own cap", key=BOB, tierwise={"max_cost_usd": 0.0000001})
        await kept("budget", story)


@pytest.mark.parametrize("status", [402, 429, 400])
async def test_every_door_that_can_cost_is_closed_by_an_exhausted_budget(tmp_path: Path, status: int) -> None:
    """B12: plain and streaming, pinned or not, with the status that the owner chose; nothing is asked upstream."""
    budgets = [{"scope": "organisation", "limit_usd": 0}]
    async with telling(tmp_path, keys=KEYS, budgets=budgets, server={"budget_status": status}) as (story, one, two):
        for door in ("chat", "messages", "embeddings"):
            for more in (
                {},
                {"stream": True},
                {"model": "one/embed" if door == "embeddings" else CHEAP},
                {"max_tokens": 1},
            ):
                heard = await story.post("", DOORS[door], {**SOUND[door], **more}, ADA)
                assert (heard.status, heard.error["code"]) == (status, "budget_exceeded"), (door, more, heard)
                assert heard.headers["x-should-retry"] == "false"
        for door in ("route", "count"):
            assert (await story.post("", DOORS[door], SOUND[door], ADA)).status == 200  # they call nothing
        assert one.requests == two.requests == [] and story.gateway.ledger.cost_nano == 0


async def test_a_pinned_model_is_never_rerouted(tmp_path: Path) -> None:
    async with telling(tmp_path) as (story, one, _two):
        story.gateway.router.books.health = Health(clock=lambda: 0.0)
        await story.ask("by its name", model=CHEAP)
        await story.ask("with a colon, in the other dialect", ANTHROPIC, model="two:dear")
        await story.ask("by the name that only one provider has", model="dear")
        one.script(rate_limited("60"))
        heard = await story.ask("it fails, and nobody stands in", model=CHEAP)
        assert heard.status == 503
        await story.ask("it rests, and nobody stands in", ANTHROPIC, model=CHEAP)
        await story.ask("a tier is no pin, but keeps to itself", model="frontier")
        await kept("pinned", story)


# ------------------------------------------------------------------------------------------------ the other doors


async def test_nothing_is_called_by_a_dry_run(tmp_path: Path) -> None:
    async with telling(tmp_path) as (story, one, two):
        asked = OPENAI.body()
        found = (await story.gateway.post(DOORS["route"], asked)).json
        dry = (await story.gateway.ask(OPENAI, tierwise={"dry_run": True})).json
        header = (await story.gateway.ask(ANTHROPIC, headers={"x-tierwise-dry-run": "on"})).json
        assert found["model"] == dry["model"] == header["model"] == CHEAP
        assert found["sentence"] and found["reasons"] and found["features"]["input_tokens"] > 0
        assert {each["model"] for each in found["candidates"]} == {CHEAP, DEAR}
        assert all(
            each["worst_case_nano" if "worst_case_nano" in each else "worst_case_usd"] for each in found["candidates"]
        )
        step = found["step"]
        assert step["type"] == "call" and step["worst_case_nano"] > 0
        assert one.requests == two.requests == [] and story.gateway.ledger.holds == []
        told = await story.gateway.records()
        assert [record.outcome.status for record in told] == ["dry_run"] * 3
        assert found["decision_id"] == told[0].episode.id


async def test_a_decision_is_told_to_its_own_payer_alone(tmp_path: Path) -> None:
    """N1: another's id reads exactly like one that is nobody's; feedback likewise."""
    async with telling(tmp_path, keys=KEYS) as (story, one, _two):
        one.script(error(500))
        heard = await story.gateway.ask(OPENAI, headers={"authorization": f"Bearer {ADA}"})
        id = heard.headers["x-tierwise-decision"]
        told = (await story.gateway.get(f"/v1/decisions/{id}", headers={"x-api-key": ADA})).json
        record = told["record"]
        assert record["outcome"]["routed"] == DEAR and record["outcome"]["attempts"] == 2
        assert [each["type"] for each in record["episode"]["events"]] == ["failed", "replied"]
        assert record["episode"]["payer"] == {"key": "ada", "user": "ada", "team": "search"}
        assert told["sentence"] and "France" not in json.dumps(told)
        verdict = {"decision_id": id, "verdict": "good", "comment": "fine"}
        assert (await story.post("a verdict of one's own", "/v1/feedback", verdict, ADA)).status == 200
        for who, key in (("bob", BOB),):
            stolen = await story.get(f"{who} asks for another's", f"/v1/decisions/{id}", key)
            nothing = await story.get(f"{who} asks for nobody's", f"/v1/decisions/{id[::-1]}", key)
            assert (stolen.status, stolen.body) == (nothing.status, nothing.body)
            assert (await story.post(f"{who} judges another's", "/v1/feedback", verdict, key)).status == 404
        journal: Any = story.gateway.router.journal
        ((said),) = await journal.feedback_of(id)
        assert (said.score, said.comment, said.payer.user) == (1.0, "fine", "ada")
        await kept("decisions_and_feedback", story)


async def test_models_are_listed_in_the_dialect_of_who_asks(tmp_path: Path) -> None:
    async with telling(tmp_path, policy={"attempts": 2}) as (story, _one, _two):
        await story.get("as OpenAI has it", "/v1/models")
        await story.get("as Anthropic has it", "/models", anthropic_version="2023-06-01")
        await story.get("one of them", f"/v1/models/{CHEAP}")
        await story.get("a policy, as Anthropic has it", "/v1/models/auto:economy", anthropic_version="2023-06-01")
        await story.get("nobody", "/v1/models/gpt-9")
        await story.post("a count of tokens", DOORS["count"], SOUND["count"])
        await story.post("embeddings", DOORS["embeddings"], SOUND["embeddings"])
        await kept("models_and_counts", story)


async def test_metrics_say_what_was_asked_spent_and_saved(tmp_path: Path) -> None:
    async with telling(tmp_path) as (story, one, _two):
        one.script(error(500))
        for _ in range(2):
            await story.ask("")
        heard = await story.gateway.get("/metrics")
        assert heard.headers["content-type"].startswith("text/plain")
        found = dict(_samples(heard.body.decode()))
        # 12 input and 7 output tokens each: 40 µ$ at the cheap model, 141 µ$ at the dear one
        assert found[f'tierwise_requests_total{{model="{DEAR}",policy="default",status="answered"}}'] == 1
        assert found[f'tierwise_upstream_failures_total{{kind="overloaded",model="{CHEAP}"}}'] == 1
        assert found[f'tierwise_cost_usd_total{{model="{CHEAP}"}}'] == pytest.approx(40e-6)
        assert found[f'tierwise_baseline_usd_total{{model="{CHEAP}"}}'] == pytest.approx(141e-6)
        assert found[f'tierwise_output_tokens_total{{model="{DEAR}"}}'] == 7
        assert found["tierwise_open_holds"] == found["tierwise_in_flight"] == 0
        assert found["tierwise_request_seconds_count"] == 2


def _samples(text: str) -> Iterator[tuple[str, float]]:
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            labels = sorted(re.findall(r'\w+="[^"]*"', name))
            yield (f"{name.partition('{')[0]}{{{','.join(labels)}}}" if labels else name), float(value)


# ------------------------------------------------------------------------------------------------ hints and headers

HINTS: tuple[tuple[str, Any, str, Any], ...] = (
    ("min_quality", 0.5, "min_quality", 0.5),
    ("max_cost_usd", 0.25, "max_cost_nano", 250_000_000),
    ("max_latency_ms", 90_000, "max_latency_ms", 90_000),
    ("latency", "batch", "latency", "batch"),
    ("criticality", "internal", "criticality", "internal"),
    ("task", "code", "task", "code"),
    ("session", "s-1", "session", "s-1"),
    ("workflow", "w-1", "workflow", "w-1"),
    ("step", 3, "step", 3),
    ("deny", [CHEAP], "deny", (CHEAP,)),
    ("allow", ["two"], "allow", ("two",)),
    ("explore", "off", "explore", False),
)


async def test_every_hint_is_heard_from_headers_and_from_both_places_of_the_body(tmp_path: Path) -> None:
    async with telling(tmp_path) as (story, one, two):
        for name, value, field, read in HINTS:
            text = ",".join(value) if isinstance(value, list) else str(value)
            header = {f"x-tierwise-{name.replace('_', '-')}": text}
            for dialect in DIALECTS:
                for more in (
                    {"headers": header},
                    {"tierwise": {name: value}},
                    {"metadata": {"tierwise": {name: value}}},
                ):
                    heard = await story.gateway.ask(dialect, **more)
                    assert heard.status == 200, (name, more, heard)
                    record = await story.gateway.last()
                    assert getattr(record.episode.hints, field) == read
                    assert heard.model == (DEAR if name in ("deny", "allow") else CHEAP)
        for seen in (*one.requests, *two.requests):
            assert b"x-tierwise" not in seen.raw_head.lower() and b"tierwise" not in seen.body, (
                "our own words do not go to providers"
            )


async def test_a_reply_carries_its_decision_model_reason_and_money(tmp_path: Path) -> None:
    budgets = [{"scope": "organisation", "limit_usd": 1}]
    async with telling(tmp_path, budgets=budgets) as (story, one, _two):
        for dialect in DIALECTS:
            for stream in (None, True):
                one.script(error(500))
                await story.ask(f"{dialect.name}{' stream' if stream else ''} after a failure", dialect, stream=stream)
                story.gateway.rested()
        await kept("headers", story)
        record = await story.gateway.last()
        step = record.decisions[0].step
        assert isinstance(step, Call) and step.about == Serve()
