"""Runs over HTTP against a gateway process with the durable ledger: exactness, overage, exhausted budgets, failures."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from scripts.reliability.bars import Check, Found, Run, Scale, count
from scripts.reliability.served import SCOPES, Left, gateway, session, waves
from tests.support.callers import OPENAI
from tests.support.gateway import ADA, world
from tests.support.ledgers import NEW_YEAR, a_hold, path_of
from tests.support.replies import Tokens
from tests.support.upstream import FakeUpstream, openai_reply
from tierwise.core.budget import Charge, Hold
from tierwise.core.request import Hints
from tierwise.stores.ledger.reading import balances_of
from tierwise.stores.memory import MemoryLedger

COST_NANO = 40_000  # of the usual reply: 12 tokens read at 1 USD a million, 7 written at 4
KEYED = [{"name": "ada", "secret": "env:ADA_KEY", "user": "ada", "team": "search", "organisation": "acme"}]
HEADERS = {"authorization": f"Bearer {ADA}", "x-tierwise-session": "s", "x-tierwise-workflow": "w"}


def levels(limit_nano: int) -> list[dict[str, Any]]:
    return [{"scope": scope, "limit_usd": limit_nano / 1e9, "window": "lifetime"} for scope in SCOPES]


def exact(scale: Scale) -> Found:
    """Bar 1: the budget fits so many worst cases; every call costs its worst case, so nothing comes back."""
    requests, fits, width = scale.of(10_000, 60), scale.of(1_000, 20), scale.of(500, 60)
    statuses, calls, left = asyncio.run(_crowd(requests, fits, width))
    mutant = asyncio.run(_check_then_act(requests, fits))
    answered = statuses.count(200)
    refused = sum(status in (402, 429) for status in statuses)
    return Found(
        n=f"{count(requests)} requests, {width} at once, five levels that each fit {count(fits)}",
        figure=f"{count(answered)} answered, {count(refused)} refused, {count(calls)} upstream calls, "
        f"{left.over - left.overage} n$ from the limit, {len(left.faults)} audit faults",
        checks=(
            Check("answered", answered, "=", fits),
            Check("refused", refused, "=", requests - fits),
            Check("upstream calls", calls, "=", fits),
            Check("n$ from the limit", left.over - left.overage, "=", 0),
            Check("audit faults", len(left.faults), "=", 0),
            Check("open holds", left.open, "=", 0),
        ),
        mutant=f"check, then act: {count(mutant)} admitted where {count(fits)} fit",
        caught=mutant > fits,
    )


async def _worst_case(folder: Path) -> int:
    """What this gateway sets aside for the request that is sent: asked once, and looked up in the ledger."""
    body = OPENAI.body(max_tokens=100)
    async with (
        FakeUpstream() as one,
        gateway(folder, {**world(one), "keys": KEYED}) as child,
        session() as http,
        http.post(child.url + OPENAI.path, json=body, headers=HEADERS) as reply,
    ):
        await reply.read()
    import apsw

    connection = apsw.Connection(str(folder / "state" / "ledger.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return int(next(iter(connection.execute("SELECT max(amount_nano) FROM hold")))[0])
    finally:
        connection.close()


async def _crowd(requests: int, fits: int, width: int) -> tuple[list[int], int, Left]:
    with tempfile.TemporaryDirectory(prefix="tierwise-bar1-") as name:
        folder = Path(name)
        worst = await _worst_case(folder / "probe")
        # What is billed is what was held: 100 tokens written, and the rest of the amount read.
        dear = Tokens(input=(worst - 100 * 4_000) // 1_000, output=100)
        async with FakeUpstream(openai_reply(usage=dear)) as one:
            config = {**world(one), "keys": KEYED, "budgets": levels(worst * fits)}
            async with gateway(folder / "run", config) as child, session(width) as http:

                async def ask(number: int) -> int:
                    body = OPENAI.body(max_tokens=100)
                    async with http.post(child.url + OPENAI.path, json=body, headers=HEADERS) as reply:
                        await reply.read()
                        return reply.status

                statuses = await waves(requests, width, ask)
            return statuses, len(one.requests), Left(folder / "run" / "state")


class CheckThenAct(MemoryLedger):
    """The bug that everybody ships: looks whether it fits, waits for something, and takes it."""

    async def hold(self, hold: Hold) -> Any:
        hints = Hints(session=hold.session or None, workflow=hold.workflow or None)
        way = self.books.passes(hold.payer, hints)
        room = balances_of(way, hold.at_s)
        if any(each.left_nano is not None and each.left_nano < hold.amount_nano for each in room):
            return await super().hold(hold)  # refused as ever
        await asyncio.sleep(0)
        for line, subject in way.passed:
            line.standing(subject, hold.at_s).account.pending_nano += hold.amount_nano
        return None


async def _check_then_act(requests: int, fits: int) -> int:
    ledger = CheckThenAct(path_of(100 * fits), lambda: float(NEW_YEAR))
    answers = await asyncio.gather(*(ledger.hold(a_hold(f"h{number}", 100)) for number in range(requests)))
    return answers.count(None)


def overage(scale: Scale) -> Found:
    """Bar 12, B7: the provider bills ten times what was held."""
    rounds = scale.of(200, 3)
    posted, later, wrong = asyncio.run(_overreported(rounds))
    capped = asyncio.run(_capped(rounds))
    return Found(
        n=f"{count(rounds)} budgets, one over-report each, 5 requests after it",
        figure=f"{posted} of {rounds} posted in full, {later} admitted afterwards" + (f"; {wrong[0]}" if wrong else ""),
        checks=(
            Check("posted in full", posted, "=", rounds),
            Check("admitted afterwards", later, "=", 0),
            Check("faults", len(wrong), "=", 0),
        ),
        mutant=f"a cost is capped at its hold: {capped} admitted afterwards",
        caught=capped > 0,
    )


async def _overreported(rounds: int) -> tuple[int, int, list[str]]:
    huge = Tokens(input=100_000, output=100_000)  # 0.5 USD
    posted = later = 0
    with tempfile.TemporaryDirectory(prefix="tierwise-bar12-") as name:
        async with FakeUpstream(openai_reply(usage=huge)) as one:
            budgets = [{"scope": "session", "limit_usd": 0.1}]
            async with (
                gateway(Path(name), {**world(one), "keys": KEYED, "budgets": budgets}) as child,
                session() as http,
            ):

                async def ask(session_id: str) -> int:
                    headers = {**HEADERS, "x-tierwise-session": session_id}
                    body = OPENAI.body(max_tokens=10)
                    async with http.post(child.url + OPENAI.path, json=body, headers=headers) as reply:
                        await reply.read()
                        return reply.status

                for number in range(rounds):
                    first = await ask(f"s{number}")
                    posted += first == 200
                    later += (await asyncio.gather(*(ask(f"s{number}") for _ in range(5)))).count(200)
        left = Left(Path(name) / "state")
        wrong = list(left.faults) + ([] if left.spent == posted * 500_000_000 else [f"{left.spent} n$ posted"])
    return posted, later, wrong


async def _capped(rounds: int) -> int:
    ledger, later = MemoryLedger(path_of(1_000), lambda: float(NEW_YEAR)), 0
    for number in range(rounds):
        held = await ledger.hold(a_hold(f"h{number}", 100, session=f"s{number}", workflow=f"w{number}"))
        if held is None:
            ledger.settle(f"h{number}", Charge(cost_nano=min(5_000, 100)))
            later += await ledger.hold(a_hold(f"h{number}+", 100, session=f"s{number}", workflow=f"w{number}")) is None
            ledger.settle(f"h{number}+", Charge(cost_nano=0, kind="released"))
    return later


def routes(scale: Scale) -> Found:
    """Bar 11, B12: every door that can cost, with nothing left to spend."""
    tries = scale.of(100, 3)
    statuses, calls, open_doors = asyncio.run(_exhausted(tries))
    passed = [status for status in statuses if status not in (402, 429)]
    return Found(
        n=f"{len(statuses)} requests at 3 doors, plain and streaming, with a key whose budget is spent",
        figure=f"{len(statuses) - len(passed)} refused, {calls} upstream calls",
        checks=(Check("let through", len(passed), "=", 0), Check("upstream calls", calls, "=", 0)),
        mutant=f"the same doors with a key that no budget binds: {open_doors} calls",
        caught=open_doors > 0,
    )


BODIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}),
    ("/v1/chat/completions", {"model": "auto", "stream": True, "messages": [{"role": "user", "content": "hi"}]}),
    ("/v1/messages", {"model": "auto", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}),
    (
        "/v1/messages",
        {"model": "auto", "max_tokens": 5, "stream": True, "messages": [{"role": "user", "content": "hi"}]},
    ),
    ("/v1/embeddings", {"model": "one/embed", "input": "hi"}),
)


async def _exhausted(tries: int) -> tuple[list[int], int, int]:
    with tempfile.TemporaryDirectory(prefix="tierwise-bar11-") as name:
        async with FakeUpstream() as one:
            keys = [*KEYED, {"name": "bob", "secret": "env:BOB_KEY", "user": "bob"}]
            budgets = [{"scope": "user", "match": {"user": "ada"}, "limit_usd": 0}]
            config = {**world(one), "keys": keys, "budgets": budgets}
            async with gateway(Path(name), config) as child, session() as http:

                async def ask(key: str, path: str, body: dict[str, Any]) -> int:
                    from tests.support.gateway import BOB

                    headers = {"authorization": f"Bearer {ADA if key == 'ada' else BOB}"}
                    async with http.post(child.url + path, json=body, headers=headers) as reply:
                        await reply.read()
                        return reply.status

                asked = [(path, body) for _ in range(tries) for path, body in BODIES]
                statuses = await asyncio.gather(*(ask("ada", path, body) for path, body in asked))
                calls = len(one.requests)
                for path, body in BODIES:
                    await ask("bob", path, body)
                return list(statuses), calls, len(one.requests) - calls


RUNS = (
    Run(
        "bar1",
        "1, B1",
        "concurrent HTTP requests on a five-level path, real process, durable ledger",
        "0 n$ over, exact",
        exact,
    ),
    Run("bar11", "11, B12", "every door that costs, on an exhausted budget", "all refused, 0 calls", routes),
    Run("bar12", "12, B7", "the provider bills more than was held", "all posted, 0 admitted after", overage),
)
