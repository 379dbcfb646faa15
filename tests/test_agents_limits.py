"""B14: agents that repeat themselves are stopped at the limit, and honest ones are left alone. Asked as agents ask.

An agent here is a conversation that grows as real ones do: the model's calls of tools with ids of their own, the
results, and words that differ each time around the same call.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.support.callers import ANTHROPIC, OPENAI, Dialect, Heard
from tests.support.gateway import Gateway, world
from tests.support.upstream import FakeUpstream, error, openai_reply
from tests.support.worlds import episode, features
from tests.support.worlds import world as snapshot
from tierwise.core.budget import Budget, Hold
from tierwise.core.request import Payer
from tierwise.routing.attempts import fingerprint
from tierwise.stores.ledger.admission import repeated, without_last
from tierwise.stores.ledger.books import Books
from tierwise.wire import codec

REPEATS, STEPS = 5, 12
SNAPSHOT = snapshot()


class Agent:
    """A conversation in one dialect, and a session of its own."""

    def __init__(self, dialect: Dialect, session: str, task: str = "Mend the failing test.") -> None:
        self.dialect = dialect
        self.headers = {"x-tierwise-session": session}
        self.messages: list[dict[str, Any]] = [{"role": "user", "content": task}]
        self._dice = random.Random(session)
        self._ids = 0

    def step(self, name: str, arguments: dict[str, Any], result: str, words: bool = True) -> None:
        """The model called a tool, and this came of it."""
        self._ids += 1
        id = f"call_{self._dice.getrandbits(60):x}"
        said = f"Let me try that once more ({self._dice.random()})." if words else ""
        if self.dialect is ANTHROPIC:
            call = {"type": "tool_use", "id": id, "name": name, "input": arguments}
            text = [{"type": "text", "text": said}] if said else []
            self.messages += [
                {"role": "assistant", "content": [*text, call]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": result}]},
            ]
            return
        call = {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        self.messages += [
            {"role": "assistant", "content": said or None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": id, "content": result},
        ]

    def say(self, reply: str, answer: str) -> None:
        """The model said something, and the user answered."""
        self.messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": answer}]

    async def ask(self, gateway: Gateway, **more: Any) -> Heard:
        return await gateway.ask(self.dialect, headers=self.headers, messages=self.messages, **more)

    def print_of(self) -> str:
        """What the loop detector sees of it, without a gateway: of a long conversation its end."""
        body = json.dumps(self.dialect.body(messages=self.messages[-4:])).encode()
        request = codec(self.dialect.name).read(body, self.headers)
        seen = features(tail_hash=request.prompt.tail_hash, replied=request.prompt.replied)
        return fingerprint(episode(SNAPSHOT, features=seen, hints=request.hints))


def loops(dialect: Dialect, kind: int, session: str) -> Any:
    """Agents that get nowhere, each in its own way; every `next` is one more turn of the same."""
    agent = Agent(dialect, session)
    turn = 0
    while True:
        yield agent
        match kind % 5:
            case 0:  # the same call with the same result
                agent.step("run_tests", {"path": "tests"}, "1 failed: test_a")
            case 1:  # two calls in turn
                name = ("edit", "run_tests")[turn % 2]
                agent.step(name, {"path": "a.py"}, "nothing changed" if name == "edit" else "1 failed: test_a")
            case 2:  # words alone
                agent.say("I am not able to do that.", "Please continue.")
            case 3:  # the conversation does not even grow
                pass
            case 4:  # arguments in another order
                both = [("a", 1), ("b", [2, {"c": 3}])]
                agent.step(
                    "call", dict(both if turn % 2 or dialect is OPENAI else both[::-1]), "error 500", words=False
                )
        turn += 1


# ------------------------------------------------------------------------------------------------ B14


async def test_no_loop_passes_its_limit(tmp_path: Path) -> None:
    """Over HTTP, in both dialects: at most so many equal calls reach a model, and the refusal says what to do."""
    budgets = [{"scope": "session", "repeats": REPEATS}]
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, budgets=budgets)) as gateway:
        for kind in range(5):
            for dialect in (OPENAI, ANTHROPIC):
                before = len(one.requests)
                for agent in loops(dialect, kind, f"loop {kind} {dialect.name}"):
                    heard = await agent.ask(gateway)
                    if heard.status != 200:
                        break
                    assert len(one.requests) - before <= 2 * REPEATS + 2, (kind, dialect.name)
                assert (heard.status, heard.error["code"], heard.headers["x-should-retry"]) == (
                    402,
                    "loop_stopped",
                    "false",
                )
                assert "change the request or stop" in heard.error["message"]
                assert (heard.error["metadata"]["scope"], heard.error["metadata"]["limit"]) == ("session", REPEATS)
                # The first request has nothing behind it; of two in turn each is one of them.
                most = {1: 2 * REPEATS + 1, 3: REPEATS}.get(kind, REPEATS + 1)
                assert len(one.requests) - before <= most, (kind, dialect.name)
                # Something else may go on.
                agent.step("think", {"of": "another way"}, "an idea")
                assert (await agent.ask(gateway)).status == 200


async def test_two_hundred_loops_stop_and_a_thousand_honest_sessions_do_not() -> None:
    """The same through the books alone, in numbers: no loop passes, and of honest sessions at most one in a thousand is
    stopped."""
    passed = stopped = 0
    for number in range(200):
        books = Books((Budget(scope="session", repeats=REPEATS, steps=200),))
        kind, dialect = number % 5, (OPENAI, ANTHROPIC)[number % 2]
        for turn, agent in enumerate(loops(dialect, kind, f"s{number}")):
            if books.hold(_hold(f"{number}.{turn}", agent.print_of())) is not None:
                break
            passed += turn > 2 * REPEATS
        else:
            raise AssertionError(number)
    dice = random.Random(7)
    for number in range(1_000):
        books = Books((Budget(scope="session", repeats=REPEATS, steps=200),))
        for turn, agent in enumerate(honest(dice, (OPENAI, ANTHROPIC)[number % 2], f"h{number}")):
            if books.hold(_hold(f"{number}.{turn}", agent.print_of())) is not None:
                stopped += 1
                break
    assert passed == 0 and stopped <= 1, (passed, stopped)


def honest(dice: random.Random, dialect: Dialect, session: str) -> Any:
    """An agent at work: files are read and written (each answers "ok"), tests are run after each change, a job is
    polled while it moves, a call that failed is made again, a person says "continue" or "yes"."""
    agent = Agent(dialect, session)
    for _ in range(dice.randint(3, 20)):
        yield agent
        match dice.randrange(6):
            case 0:
                agent.step("write", {"path": f"{dice.randrange(40)}.py", "text": str(dice.random())}, "ok", words=False)
            case 1:
                agent.step("read", {"path": f"{dice.randrange(400)}.py", "from": dice.randrange(900)}, "def f(): ...")
            case 2:
                agent.step("run_tests", {}, f"{dice.randrange(9)} failed in {dice.random():.2f} s")
            case 3:
                for _ in range(dice.randint(1, 3)):  # a job that takes its time says the same for a while
                    agent.step("poll", {"job": 7}, "running")
                    yield agent
                agent.step("poll", {"job": 7}, "done")
            case 4:
                for _ in range(dice.randint(1, 2)):
                    agent.step("fetch", {"url": "https://example.org"}, "timed out")
                    yield agent
                agent.step("fetch", {"url": "https://example.org"}, "<html>")
            case 5:
                agent.say(f"Part {dice.random()}", dice.choice(("continue", "yes")))


def _hold(id: str, print: str) -> Hold:
    return Hold(id=id, payer=Payer(), session="s", workflow="", model="m", amount_nano=1, at_s=1, fingerprint=print)


async def test_strangers_who_begin_alike_are_no_loop(tmp_path: Path) -> None:
    """Nobody named these sessions; a greeting is a greeting."""
    budgets = [{"scope": "session", "repeats": 2}]
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, budgets=budgets)) as gateway:
        for _ in range(6):
            assert (await gateway.ask()).status == 200
        hints = {"x-tierwise-workflow": "nightly"}  # whoever names a workflow says that they are one
        assert [(await gateway.ask(headers=hints)).status for _ in range(3)] == [200, 200, 402]


async def test_a_call_that_failed_and_is_asked_again_is_no_loop(tmp_path: Path) -> None:
    """What no model has seen was no step: neither our own second attempts nor the caller's."""
    budgets = [{"scope": "session", "repeats": 2, "steps": 2}]
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, budgets=budgets, policy={"attempts": 1})) as gateway:
        agent = Agent(OPENAI, "s")
        one.script(*[error(503)] * 6)
        for _ in range(6):
            assert (await agent.ask(gateway)).status == 503
            gateway.rested()
        assert [(await agent.ask(gateway)).status for _ in range(3)] == [200, 200, 402]


def test_what_is_new_makes_another_call() -> None:
    """Pictures, results and arguments tell calls apart; ids, words around a call and the length do not."""
    first = Agent(OPENAI, "s")
    first.step("look", {"at": "x"}, "saw")
    same = Agent(OPENAI, "s")
    same.step("other", {}, "before")
    same.step("look", {"at": "x"}, "saw")
    assert first.print_of() == same.print_of() != ""
    for change in (("look", {"at": "y"}, "saw"), ("look", {"at": "x"}, "saw more"), ("gaze", {"at": "x"}, "saw")):
        other = Agent(OPENAI, "s")
        other.step(*change)
        assert other.print_of() != first.print_of()
    prints = set()
    for picture in ("aaaa", "bbbb", "a" * 9_000, "a" * 9_001, "a" * 8_999 + "b"):
        for dialect in (OPENAI, ANTHROPIC):
            shown = Agent(dialect, "s")
            image: dict[str, Any] = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
            if dialect is ANTHROPIC:
                image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": picture}}
            shown.messages = [{"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}]
            prints.add(shown.print_of())
    assert len(prints) == 10


@pytest.mark.parametrize(
    ("recent", "next", "times"),
    [
        ("", "a", 0), ("b", "a", 0), ("aaa", "a", 3), ("aab", "b", 1), ("aab", "c", 0),
        ("ababab", "a", 3), ("bababab", "a", 3), ("cababab", "a", 3), ("abacab", "a", 1),
        # Each several times at once, in whatever order they came.
        ("aaabbb", "a", 3), ("aaabbbaaabb", "b", 5), ("abbaab", "b", 3),
        # Once in between is no turn: a call that is made again and again after another is not two in turn.
        ("aaaab", "a", 1), ("aaaabaaaa", "b", 1), ("aabaaba", "b", 2),
    ],
)  # fmt: skip
def test_what_is_asked_again_and_again_or_in_turn(recent: str, next: str, times: int) -> None:
    assert repeated(tuple(recent), next) == times


@pytest.mark.parametrize("together", [2, 3])
async def test_two_calls_in_turn_are_a_loop_also_when_each_is_asked_several_times_at_once(
    tmp_path: Path, together: int
) -> None:
    budgets = [{"scope": "session", "repeats": REPEATS}]
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, budgets=budgets)) as gateway:
        for dialect in (OPENAI, ANTHROPIC):
            before = len(one.requests)
            for agent in itertools.islice(loops(dialect, 1, f"loop {dialect.name}"), 2 * REPEATS):
                heard = await asyncio.gather(*(agent.ask(gateway) for _ in range(together)))
                if all(each.status != 200 for each in heard):
                    break
            assert {each.error["code"] for each in heard} == {"loop_stopped"}
            # The first has nothing behind it; then both have been asked so often, one of them in its whole turn.
            assert len(one.requests) - before <= together + 2 * REPEATS + together - 1


@pytest.mark.parametrize(
    ("recent", "gone", "left"),
    [((), "a", ()), (("a", "b", "a"), "a", ("a", "b")), (("a", "b"), "c", ("a", "b")), (("a",), "", ("a",))],
)
def test_a_step_that_was_none_is_forgotten(recent: tuple[str, ...], gone: str, left: tuple[str, ...]) -> None:
    assert without_last(recent, gone) == left


# ------------------------------------------------------------------------------------------------ steps, deadlines


async def test_steps_end_a_session_also_with_parallel_turns(tmp_path: Path) -> None:
    budgets = [{"scope": "workflow", "steps": STEPS}]
    async with (
        FakeUpstream() as one,
        FakeUpstream() as two,
        Gateway(tmp_path, world(one, two, budgets=budgets)) as gateway,
    ):
        headers = {"x-tierwise-workflow": "w"}
        heard = await asyncio.gather(*(gateway.ask(headers=headers) for _ in range(40)))
        assert sum(each.status == 200 for each in heard) == len(one.requests) == STEPS and two.requests == []
        refused = next(each for each in heard if each.status != 200)
        assert (refused.status, refused.error["code"], refused.headers["x-should-retry"]) == (
            402,
            "step_limit",
            "false",
        )
        assert refused.error["metadata"]["limit"] == STEPS
        assert (await gateway.ask(headers={"x-tierwise-workflow": "w2"})).status == 200


async def test_a_session_ends_at_its_deadline(tmp_path: Path) -> None:
    now = [1_800_000_000.0]
    budgets = [{"scope": "session", "deadline_s": 60}]
    async with FakeUpstream() as one, Gateway(tmp_path, world(one, budgets=budgets), now=lambda: now[0]) as gateway:
        agent = Agent(OPENAI, "s")
        statuses = []
        for seconds in (0, 59, 1, 1):
            now[0] += seconds
            statuses.append((await agent.ask(gateway)).status)
        heard = await agent.ask(gateway)
        assert statuses == [200, 200, 200, 402] and heard.error["code"] == "deadline_passed"
        assert "60 s" in heard.error["message"] and heard.headers["x-should-retry"] == "false"
        assert (await Agent(OPENAI, "other").ask(gateway)).status == 200 and len(one.requests) == 4


async def test_a_limit_met_on_the_way_up_delivers_what_there_is(tmp_path: Path) -> None:
    """The second rung has no call left: the reply of the first is given rather than none."""
    plans = {"climb": {"cascade": ["fast", "frontier"], "accept": {"check": ["tools"]}}}
    budgets = [{"scope": "session", "calls": 1}]
    async with (
        FakeUpstream(openai_reply("a draft")) as one,
        FakeUpstream() as two,
        Gateway(tmp_path, world(one, two, plans=plans, budgets=budgets)) as gateway,
    ):
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
        heard = await gateway.ask(tools=tools, tool_choice="required")
        assert (heard.status, heard.text, heard.model) == (200, "a draft", "one/cheap"), heard
        assert len(one.requests) == 1 and two.requests == []
        assert [denial and denial.code for _, denial in gateway.ledger.holds] == [None, "call_limit"]
