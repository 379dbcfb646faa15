"""The real gateway behind a real socket, pointed at fake upstreams, and audited when the test is done.

    async with FakeUpstream() as one, FakeUpstream() as two, Gateway(tmp_path, world(one, two)) as gateway:
        heard = await gateway.ask(OPENAI, stream=True)
        assert heard.status == 200 and heard.text == TEXT

Nothing is patched: the configuration is read from a file, the application is the one that `serve` starts, and uvicorn
has the settings of `serve`. Leaving the block waits for every request and settlement, and then demands clean books: no
open hold, a ledger that adds up, nothing in flight, no internal error and no provider key in anything that was heard,
logged or written down.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import yaml

from tests.support.callers import OPENAI, Dialect, Heard
from tests.support.upstream import FakeUpstream
from tierwise.config import Setup, apply, load, open_app
from tierwise.core.budget import Charge, Denial, Hold
from tierwise.core.ports import Record
from tierwise.routing.health import Health
from tierwise.routing.router import Router
from tierwise.server import serve as server_room
from tierwise.server.app import App
from tierwise.stores.memory import MemoryLedger

CANARY = "sk-canary-7d1e9b52c8f04a36"  # every provider's key begins with it, and nobody may ever see it
ADA, BOB = "tw-key-of-ada-1234567890", "tw-key-of-bob-1234567890"
ENVIRON = {
    "TIERWISE_LOCAL_URL": "off",
    "ONE_KEY": f"{CANARY}-one",
    "TWO_KEY": f"{CANARY}-two",
    "ADA_KEY": ADA,
    "BOB_KEY": BOB,
}
KEYS = [
    {"name": "ada", "secret": "env:ADA_KEY", "user": "ada", "team": "search"},
    {"name": "bob", "secret": "env:BOB_KEY", "user": "bob", "team": "ads"},
]
CHEAP, DEAR, EMBED = "one/cheap", "two/dear", "one/embed"
PATIENT = {"connect_ms": 8_000, "first_token_ms": 8_000, "idle_ms": 8_000, "total_ms": 20_000}


def price(input_usd: float, output_usd: float) -> dict[str, float]:
    return {"input_usd_per_mtok": input_usd, "output_usd_per_mtok": output_usd}


def address(upstream: FakeUpstream | str) -> str:
    return upstream if isinstance(upstream, str) else upstream.base_url


def world(
    one: FakeUpstream | str,
    two: FakeUpstream | str | None = None,
    *,
    wire: str = "openai",
    hurry: Mapping[str, int] | None = None,
    provider: Mapping[str, Any] | None = None,
    plans: Mapping[str, Any] | None = None,
    policy: Mapping[str, Any] | None = None,
    models: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A configuration: `one/cheap` (1 and 4 USD a million), then `two/dear` (3 and 15) when there is a second upstream.

    `hurry` and `provider` go to provider `one` alone, so that the fallback stays patient. The policy asks them in that
    order, each once, unless `plans` or `policy` say otherwise.
    """
    providers: dict[str, Any] = {
        "one": {
            "wire": wire,
            "base_url": address(one),
            "api_key": "env:ONE_KEY",
            "deadlines": {**PATIENT, **(hurry or {})},
            **(provider or {}),
        }
    }
    known: dict[str, Any] = {
        CHEAP: {"tier": "fast", "price": price(1, 4), "context_tokens": 200_000, "max_output_tokens": 1_000},
        EMBED: {"tier": "fast", "kind": "embedding", "price": {"input_usd_per_mtok": 1}},
    }
    if two is not None:
        providers["two"] = {
            "wire": wire,
            "base_url": address(two),
            "api_key": "env:TWO_KEY",
            "deadlines": PATIENT,
        }
        known[DEAR] = {"tier": "frontier", "price": price(3, 15), "context_tokens": 200_000, "max_output_tokens": 1_000}
    known |= dict(models or {})
    start = dict(plans or {"start": {"use": ["fast", "frontier"] if two is not None else ["fast"]}})
    given = {"start": next(iter(start)), "plans": start, "attempts": 2, **(policy or {})}
    return {
        "providers": providers,
        "models": known,
        "tiers": ["frontier", "fast", "local"],
        "baseline": DEAR if two is not None else CHEAP,
        "policy": given,
        **more,
    }


class Watched(MemoryLedger):
    """The reference ledger, with every hold and settlement that passed through it on record."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.holds: list[tuple[Hold, Denial | None]] = []
        self.charges: list[tuple[str, Charge]] = []
        self.charged = asyncio.Event()

    async def hold(self, hold: Hold) -> Denial | None:
        denial = await super().hold(hold)
        self.holds.append((hold, denial))
        return denial

    def settle(self, hold_id: str, charge: Charge) -> None:
        if hold_id in self.books._open:  # a second settlement is no charge
            self.charges.append((hold_id, charge))
            self.charged.set()
        super().settle(hold_id, charge)

    @property
    def cost_nano(self) -> int:
        """All that was ever taken and is known."""
        return sum(max(charge.cost_nano, 0) for _, charge in self.charges)


class Gateway:
    """See above. `now` and `draw` stand for the wall clock and the dice of the router."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        now: Callable[[], float] | None = None,
        draw: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self.path = folder / "tierwise.yaml"
        self.config = config
        self._now, self._draw = now, draw
        self._log = _Kept()
        self.app: App
        self.session: aiohttp.ClientSession
        self.heard: list[Heard] = []
        self.url = ""

    @property
    def router(self) -> Router:
        return self.app.router

    @property
    def ledger(self) -> Watched:
        ledger = self.router.ledger
        assert isinstance(ledger, Watched)
        return ledger

    async def setup(self) -> Setup:
        self.path.write_text(yaml.safe_dump(dict(self.config), sort_keys=False, allow_unicode=True))
        return await load(self.path, ENVIRON)

    async def __aenter__(self) -> Gateway:
        setup = await self.setup()
        self.app = open_app(setup, in_memory=True)
        self.router.ledger = Watched(setup.budgets, *((self._now,) if self._now else ()))
        self.router._draw = self._draw
        if self._now:
            self.router._now = self._now
        logging.getLogger().addHandler(self._log)
        self._server = server_room._server(self.app, "127.0.0.1", 0)
        self._server.config.load()
        self._server.lifespan = self._server.config.lifespan_class(self._server.config)
        await self._server.startup()
        await self._server.on_tick(0)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30), read_bufsize=2**16)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            await self.session.close()
            await self.settled()
            records = await self.records()
            journal, metrics = msgspec.json.encode(records), server_room_metrics(self.router)
        finally:
            for listening in self._server.servers:
                listening.close()
            for connection in list(self._server.server_state.connections):
                connection.shutdown()
            await self.router.close()
            logging.getLogger().removeHandler(self._log)
        if kind is None:  # what the test itself found comes first
            self.audit(journal + metrics)
            told = sum(record.outcome.cost_nano or 0 for record in records)
            told += sum(event.cost_nano or 0 for record in records for event in record.shadows)
            assert told == self.ledger.cost_nano, "the journal and the ledger must tell of the same money"

    async def settled(self) -> None:
        """Wait until every request has ended and every cent is posted."""
        assert await self.router.drain(20.0) == 0
        self.router._draining = False
        await self.router.errands.drain()
        await self.ledger.drain()

    def audit(self, written: bytes) -> None:
        """The laws that hold after every test, whatever it did."""
        assert self.router.in_flight == 0
        assert self.ledger.open_holds() == 0
        assert self.ledger.audit() == ()
        assert self.ledger.ignored == 0, "something was settled twice, or without a hold"
        unbounded = {hold.id for hold, _ in self.ledger.holds if not hold.bounded}
        assert all(charge.cost_nano >= 0 or id in unbounded for id, charge in self.ledger.charges)
        said = written + "\n".join(self._log.lines).encode()
        for heard in self.heard:
            said += heard.body + repr(heard.headers).encode()
        assert CANARY.encode() not in said, "a provider's key came out"
        assert b"Traceback" not in said, said[said.index(b"Traceback") - 500 :].decode("utf-8", "replace")
        assert b'"code":"internal"' not in said

    @property
    def log(self) -> str:
        return "\n".join(self._log.lines)

    async def apply(self, config: Mapping[str, Any]) -> None:
        """Serve another configuration from now on, as a reload does."""
        self.config = config
        apply(self.app, await self.setup())

    def rested(self) -> None:
        """Forget every failure: the next request finds all models awake."""
        self.router.books.health = Health()

    async def records(self) -> list[Record]:
        """The journal, oldest first."""
        return list(reversed(await self.router.journal.recent(1_000)))

    async def last(self) -> Record:
        """The newest record, once everything has settled."""
        await self.settled()
        return (await self.records())[-1]

    # ---------------------------------------------------------------------------------------- asking

    async def ask(self, dialect: Dialect = OPENAI, *, headers: Mapping[str, str] | None = None, **body: Any) -> Heard:
        """A request for a model, in this dialect, with these fields over the usual ones."""
        return await self.post(dialect.path, dialect.body(**body), headers={**dialect.headers, **(headers or {})})

    async def post(self, path: str, body: Any, *, headers: Mapping[str, str] | None = None) -> Heard:
        """`body` is sent as JSON unless it is bytes already."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.fetch(
            "POST", path, data=data, headers={"content-type": "application/json", **(headers or {})}
        )

    async def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> Heard:
        return await self.fetch("GET", path, headers=dict(headers or {}))

    async def fetch(self, method: str, path: str, **more: Any) -> Heard:
        async with self.session.request(method, self.url + path, allow_redirects=False, **more) as response:
            try:
                body = await response.read()
            except aiohttp.ClientPayloadError:
                body = b"(broken off)"
            heard = Heard(response.status, {k.lower(): v for k, v in response.headers.items()}, body)
        self.heard.append(heard)
        return heard

    async def talk(self, sent: bytes) -> bytes:
        """Everything that the gateway says to these bytes, until it has answered or closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        said = b""
        try:
            async with asyncio.timeout(10):
                while b"\r\n\r\n" not in said or not (said.endswith(b"}") or b"Invalid" in said):
                    more = await reader.read(65_536)
                    if not more:
                        break
                    said += more
        finally:
            writer.close()
        return said

    @asynccontextmanager
    async def streaming(self, dialect: Dialect = OPENAI, **body: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """A reply that has begun and is read by the test itself."""
        sent = dialect.body(stream=True, **body)
        async with self.session.post(self.url + dialect.path, json=sent, headers=dialect.headers) as response:
            yield response


def server_room_metrics(router: Router) -> bytes:
    from tierwise.server.metrics import render

    return render(router)[0]


class _Kept(logging.Handler):
    """Every line that anything logs, tracebacks included, as they would stand in a log file."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def attempts_of(heard: Heard) -> Sequence[dict[str, Any]]:
    """The attempts that an error tells of."""
    found: list[dict[str, Any]] = heard.error["metadata"]["attempts"]
    return found
