"""Runs in which somebody attacks the keys: by the clock, by strange letters, by likeness, by time, and from within."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import re
import sqlite3
import statistics
import string
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import msgspec
import pytest
import yaml

from scripts.reliability.bars import Check, Found, Run, Scale, count
from scripts.reliability.gateway import KEYED
from scripts.reliability.served import Child, Left, gateway, session, waves
from tests.support.callers import OPENAI
from tests.support.gateway import ADA, ENVIRON, world
from tests.support.management import CALLS, MUTANTS, opened, violations
from tests.support.replies import openai_events
from tests.support.strange import corpus
from tests.support.upstream import Exchange, FakeUpstream
from tierwise.config import load, open_app, runtime
from tierwise.core.errors import Unauthorised
from tierwise.core.keys import Grant
from tierwise.core.request import Payer
from tierwise.server import auth
from tierwise.server.auth import Identity, Keyring, Known, digest_of, identity_of
from tierwise.server.http import CALLER, Caller
from tierwise.stores.registry import SqliteRegistry

PEPPER = bytes(range(32))
NOWHERE = "http://127.0.0.1:9/v1"
LETTERS = string.ascii_letters + string.digits
REFUSED = (401, 429)  # a wrong key, and one after too many of them


# ------------------------------------------------------------------------------------------------ by the clock

SERIES = 3  # of equal means, 1 in 22 lies beyond 2 σ by chance; all of three do in 1 of 10,000
KEPT = 0.9  # of each series, the fastest: what is slower was another process's doing

Look = Callable[[dict[str, str]], object]


def clock(scale: Scale) -> Found:
    """A2: how long a wrong key takes that begins as a right one does, and one that does not."""
    checks = scale.of(100_000, 4_000)
    rng = random.Random(scale.seed)
    right = "tw-" + "".join(rng.choices(LETTERS, k=43))
    known = [Known(digest_of(PEPPER, key), identity_of(Grant(payer=Payer(key=key)))) for key in (right, "tw-other")]
    found = _series(Keyring(known, pepper=PEPPER).identify, right, checks, rng)
    leaky = _series(EarlyExit(["tw-other", right]).identify, right, checks, rng)
    return Found(
        n=f"{count(checks)} checks a series, in turn at random, a key with 40 right letters of 46 against one with 3",
        figure=", ".join(f"{each:+.1f} σ" for each in found) + " between the means",
        checks=(Check("σ between the means", abs(found[-1]), "≤", 2),),
        mutant=f"letter by letter over a list: {min(leaky, key=abs):+.0f} σ",
        caught=all(abs(each) > 2 for each in leaky),
    )


class EarlyExit:
    """The obvious way: every key from its first letter on, until one differs."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys

    def identify(self, headers: dict[str, str]) -> str:
        given = headers["authorization"][7:]
        for key in self.keys:
            if len(key) == len(given) and all(one == other for one, other in zip(key, given, strict=True)):
                return key
        raise Unauthorised("no")


def _series(look: Look, right: str, checks: int, rng: random.Random) -> list[float]:
    """Differences of the means, in standard errors of it: series until one lies within 2, or SERIES of them."""
    found: list[float] = []
    while len(found) < SERIES and not (found and abs(found[-1]) <= 2):
        found.append(_difference(look, right, checks, rng))
    return found


def _difference(look: Look, right: str, checks: int, rng: random.Random) -> float:
    shared = {True: right[:40], False: "tw-" + right[39:2:-1]}
    kinds = [True, False] * (checks // 2)
    rng.shuffle(kinds)
    tries = [(kind, {"authorization": f"Bearer {shared[kind]}{''.join(rng.choices(LETTERS, k=6))}"}) for kind in kinds]
    took: dict[bool, list[int]] = {True: [], False: []}
    for kind, headers in tries:
        began = time.perf_counter_ns()
        try:
            look(headers)
        except Unauthorised:
            took[kind].append(time.perf_counter_ns() - began)
    bound = sorted(took[True] + took[False])[int(checks * KEPT)]
    hit, miss = ([each for each in took[kind] if each <= bound] for kind in (True, False))
    error = math.sqrt(statistics.variance(hit) / len(hit) + statistics.variance(miss) / len(miss))
    return (statistics.fmean(hit) - statistics.fmean(miss)) / error


# ------------------------------------------------------------------------------------------------ by strange letters

STATUS = re.compile(rb"^HTTP/1\.1 (\d{3})", re.M)
DRESSES = (b"authorization: Bearer ", b"x-api-key: ")
DOORS = (
    (b"/v1/admin/keys", b'{"name": "evil", "role": "admin"}'),
    (b"/v1/chat/completions", b'{"model": "auto", "messages": [{"role": "user", "content": "hi"}]}'),
)


def letters(scale: Scale) -> Found:
    """A3: SQL, bytes, lengths and line ends where a key belongs; over sockets, at doors that write."""
    values = corpus(scale.seed)[:: scale.of(1, 10)]
    heard, changed, calls, alive, left = asyncio.run(_strange(values))
    broken = asyncio.run(_spliced(values))
    bad = sum(number for status, number in heard.items() if status >= 500 or status < 300)
    told = ", ".join(f"{count(number)} × {status or 'cut off'}" for status, number in sorted(heard.items()))
    return Found(
        n=f"{len(values)} values in 2 headers at 2 doors: {count(sum(heard.values()))} replies",
        figure=f"{told}; {changed} rows written, {calls} upstream calls, alive afterwards: {'yes' if alive else 'no'}",
        checks=(
            Check("5xx or let in", bad, "=", 0),
            Check("rows written", changed, "=", 0),
            Check("upstream calls", calls, "=", 0),
            Check("alive afterwards", alive, "=", True),
            Check("audit faults", len(left.faults), "=", 0),
            Check("replies", sum(heard.values()), ">", 0),
        ),
        mutant=f"the key is spliced into SQL: {broken[500]} × 500, {broken[200]} let in",
        caught=broken[500] > 0 and broken[200] > 0,
    )


async def _strange(values: Sequence[bytes]) -> tuple[Counter[int], int, int, bool, Left]:
    """(statuses; 0 for a connection that ended without one), rows written, upstream calls, whether it still works"""
    asked = [(value, dress, door) for value in values for dress in DRESSES for door in DOORS]
    with tempfile.TemporaryDirectory(prefix="tierwise-a3-") as name:
        folder = Path(name)
        registry = _registry(folder)
        registry.create(Grant(payer=Payer(key="made")), int(time.time()))
        before = registry.read()
        async with FakeUpstream() as one:
            async with gateway(folder, {**world(one), "keys": KEYED}) as child, session() as http:
                heard = await waves(len(asked), 40, lambda number: _said(child, *asked[number]))
                calls = len(one.requests)
                body = OPENAI.body()
                async with http.post(child.url + OPENAI.path, json=body, headers=_bearer(ADA)) as reply:
                    alive = reply.status == 200
            left = Left(folder / "state")
        written = (registry.read() != before) + sum(left.states.values()) - alive
        registry.close()
    return Counter(itertools.chain(*heard)), written, calls, alive, left


def _registry(folder: Path) -> SqliteRegistry:
    """The one that a gateway in this folder uses, as a command would open it."""
    (folder / "state").mkdir(parents=True, exist_ok=True)
    return SqliteRegistry(folder / "state" / "registry.sqlite")


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def _said(child: Child, value: bytes, dress: bytes, door: tuple[bytes, bytes]) -> list[int]:
    """Every status that the gateway answers with until it closes; [0] for none."""
    path, body = door
    host, port = child.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    said = b""
    try:
        async with asyncio.timeout(30):
            writer.write(b"POST %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" % path)
            writer.write(b"%s%s\r\ncontent-length: %d\r\n\r\n%s" % (dress, value, len(body), body))
            while more := await reader.read(65_536):
                said += more
    except ConnectionError:  # closed while we were still sending a head without end
        pass
    finally:
        writer.close()
    return [int(status) for status in STATUS.findall(said)] or [0]


class Spliced:
    """What others were broken into by: the key stands in the text of the query."""

    open = False

    def __init__(self, key: str) -> None:
        self.rows = sqlite3.connect(":memory:")
        self.rows.execute("CREATE TABLE keys (key TEXT, name TEXT)")
        self.rows.execute("INSERT INTO keys VALUES (?, 'ada')", (key,))

    def identify(self, headers: dict[str, str]) -> Identity:
        key = headers.get("authorization", "")[7:] or headers.get("x-api-key", "")
        row = self.rows.execute(f"SELECT name FROM keys WHERE key = '{key}'").fetchone()  # the mutant
        if row is None:
            raise Unauthorised("unknown", code="invalid_api_key")
        return identity_of(Grant(payer=Payer(key=row[0])))


async def _spliced(values: Sequence[bytes]) -> Counter[int]:
    with tempfile.TemporaryDirectory(prefix="tierwise-a3-") as name:
        app, _ = await opened(Path(name))
        mutant: Any = Spliced(ADA)
        app.keys = mutant
        found: Counter[int] = Counter()
        for value in values:
            head = [(b"host", b"x"), (b"authorization", b"Bearer " + value)]
            scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": head, CALLER: Caller()}
            said: list[Any] = []

            async def send(message: Any, said: list[Any] = said) -> None:
                said.append(message)

            await app(scope, _nothing, send)
            found[said[0]["status"]] += 1
        await app.router.close()
        app.runtime.close()
    return found


async def _nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b""}


# ------------------------------------------------------------------------------------------------ by likeness

START = "tw-" + "x" * 61
AT_ONCE = 100_000  # keys in one ring


def likeness(scale: Scale) -> Found:
    """A4: keys whose first 64 letters are the same, many the beginning of another."""
    tokens = scale.of(1_000_000, 2_000)
    mistaken, strangers, digests = _likeness(tokens)
    with mock.patch.object(auth, "digest_of", lambda pepper, key: digest_of(pepper, key[:64])):
        mutant, _, _ = _likeness(1_000)
    return Found(
        n=f"{count(tokens)} keys with the same 64 letters first, each known, and one letter more, unknown",
        figure=f"{mistaken} taken for another, {strangers} let in unknown, {count(tokens - digests)} equal hashes",
        checks=(
            Check("taken for another", mistaken, "=", 0),
            Check("let in unknown", strangers, "=", 0),
            Check("hashes", digests, "=", tokens),
        ),
        mutant=f"identities by the first 64 letters: {mutant} of 1,000 taken for another",
        caught=mutant > 0,
    )


def _likeness(tokens: int) -> tuple[int, int, int]:
    """(keys taken for another's, unknown keys let in, different hashes)"""
    mistaken = strangers = 0
    digests: set[bytes] = set()
    for start_at in range(0, tokens, AT_ONCE):
        names = [f"{number:x}" for number in range(start_at, min(start_at + AT_ONCE, tokens))]
        known = [Known(auth.digest_of(PEPPER, START + name), Identity(Payer(key=name))) for name in names]
        digests.update(each.digest for each in known)
        ring = Keyring(known, pepper=PEPPER)
        for name in names:
            mistaken += ring.identify({"x-api-key": START + name}).payer.key != name
            try:
                strangers += bool(ring.identify({"x-api-key": f"{START}{name}."}))
            except Unauthorised:
                continue
    return mistaken, strangers, len(digests)


# ------------------------------------------------------------------------------------------------ by time

SOON_S = 5.0
PATIENCE_S = 30.0
WAYS = ("revoked", "expired", "rotated")
EVENTS = openai_events("cheap", "so it goes " * 6, pieces=6)


def ending(scale: Scale) -> Found:
    """A5, R7: keys that end while a stream of theirs runs."""
    keys = scale.of(60, 6)
    took, statuses, whole, left = asyncio.run(_ending(keys))
    late = asyncio.run(_seldom_looked())
    return Found(
        n=f"{keys} keys, each with a stream under way: a third each revoked, expired, rotated",
        figure=f"new requests refused after {max(took):.1f} s at most (p100), {whole} of {keys} streams ended "
        f"properly, {left.states.get('settled', 0)} settled, {left.open} open, {len(left.faults)} audit faults",
        checks=(
            Check("seconds until a new request is refused", max(took), "≤", SOON_S),
            Check("refused in another way", len(set(statuses) - set(REFUSED)), "=", 0),
            Check("streams that ended properly", whole, "=", keys),
            Check("settled", left.states.get("settled", 0), "=", keys),
            Check("open", left.open, "=", 0),
            Check("charged nothing", left.unpaid, "=", 0),
            Check("audit faults", len(left.faults), "=", 0),
        ),
        mutant=f"the registry is looked at once a minute: {'still let in' if late else 'refused'} after {SOON_S:.0f} s",
        caught=late,
    )


async def _ending(number: int) -> tuple[list[float], list[int], int, Left]:
    """(seconds from a key's end to its first refusal, those refusals, streams that ended properly, the ledger)"""
    finish = asyncio.Event()

    async def slow(x: Exchange) -> None:
        await x.start_stream()
        for event in EVENTS[:3]:
            await x.chunk(event)
        await finish.wait()
        for event in (*EVENTS[3:], b""):
            await x.chunk(event)

    with tempfile.TemporaryDirectory(prefix="tierwise-a5-") as name:
        folder = Path(name)
        registry = _registry(folder)
        async with (
            FakeUpstream(slow) as one,
            gateway(folder, {**world(one), "keys": KEYED}) as child,
            session(2 * number) as http,
        ):
            grants = [Grant(payer=Payer(key=f"k{each}")) for each in range(number)]
            secrets = [registry.create(grant, int(time.time())) for grant in grants]
            for secret in secrets:
                await _until(http, child, secret, (200,))
            body = OPENAI.body(stream=True)
            streams = [
                await http.post(child.url + OPENAI.path, json=body, headers=_bearer(secret)) for secret in secrets
            ]
            for stream in streams:
                await stream.content.readany()

            async def end(place: int) -> tuple[float, int]:
                await asyncio.sleep(place * 0.07)  # or the gateway's next look would be as far off for all of them
                end_s = _end(registry, grants[place], WAYS[place % len(WAYS)])
                status = await _until(http, child, secrets[place], REFUSED)
                return max(time.time() - end_s, 0.0), status

            ended = await asyncio.gather(*(end(place) for place in range(number)))
            finish.set()
            whole = 0
            for stream in streams:
                whole += (await stream.read()).rstrip().endswith(b"data: [DONE]")
        registry.close()
        return [took for took, _ in ended], [status for _, status in ended], whole, Left(folder / "state")


def _end(registry: SqliteRegistry, grant: Grant, way: str) -> float:
    """End this key; the time from which on it is none."""
    now = time.time()
    match way:
        case "revoked":
            registry.revoke([grant.name], int(now))
        case "rotated":
            registry.rotate(grant.name, 0, int(now))
        case _:
            registry.change(msgspec.structs.replace(grant, expires_s=int(now) + 2))
            return float(int(now) + 2)
    return now


async def _until(http: aiohttp.ClientSession, child: Child, secret: str, wanted: Sequence[int]) -> int:
    """Ask again and again until the answer is one of these; that answer."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with http.get(f"{child.url}/v1/models", headers=_bearer(secret)) as reply:
                await reply.read()
            if reply.status in wanted:
                return reply.status
            await asyncio.sleep(0.05)


async def _seldom_looked() -> bool:
    """Whether a revoked key is still let in after SOON_S by a gateway that looks for changes once a minute."""
    with tempfile.TemporaryDirectory(prefix="tierwise-a5-") as name, mock.patch.object(runtime, "LOOK_S", 60.0):
        folder = Path(name)
        registry = _registry(folder)
        secret = registry.create(Grant(payer=Payer(key="k")), int(time.time()))
        path = folder / "tierwise.yaml"
        path.write_text(yaml.safe_dump(world(NOWHERE)))
        app = open_app(await load(path, ENVIRON, state=folder / "state"))
        following = asyncio.ensure_future(app.runtime.follow())
        await asyncio.sleep(0.5)
        registry.revoke(["k"], int(time.time()))
        await asyncio.sleep(SOON_S)
        try:
            app.keys.identify(_bearer(secret))
        except Unauthorised:
            return False
        finally:
            following.cancel()
            await app.router.close()
            app.runtime.close()
            registry.close()
        return True


# ------------------------------------------------------------------------------------------------ from within


def escalation(scale: Scale) -> Found:
    """A6: limited admins at random on every route of the admin API, and an oracle that does not know the rules."""
    programs = scale.of(10_000, 50)
    with tempfile.TemporaryDirectory(prefix="tierwise-a6-") as name:
        folder = Path(name)
        found = asyncio.run(violations(folder, range(programs)))
        missed = []
        for number, mutate in enumerate(MUTANTS[:: scale.of(1, 6)]):
            with pytest.MonkeyPatch.context() as patch:
                mutate(patch)
                if not asyncio.run(violations(folder, [1968, *range(200)], most=1)):
                    missed.append(number)
    broken = len(MUTANTS[:: scale.of(1, 6)])
    return Found(
        n=f"{count(programs)} programs of {CALLS} calls with every key that they come by",
        figure=f"{len(found)} escalations" + (f"; {found[0]}" if found else ""),
        checks=(Check("escalations", len(found), "=", 0),),
        mutant=f"{broken} rules taken away, one at a time: {broken - len(missed)} found",
        caught=not missed,
    )


RUNS = (
    Run("a2", "A2", "wrong keys by the clock", "≤ 2 σ in one of at most 3 series", clock),
    Run("a3", "26, A3", "strange letters for a key, over sockets", "no 5xx, none let in, 0 rows, alive", letters),
    Run("a4", "A4", "keys that begin alike", "0 taken for another", likeness),
    Run("a5", "30, A5, R7", "keys that end while a stream of theirs runs", "refused ≤ 5 s, streams end", ending),
    Run("a6", "26, A6", "admins that try to get more than they were given", "0 escalations", escalation),
)
