"""The ASGI application: every door leads through the same router, so a new door is a codec and a line in the table."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from tierwise import wire
from tierwise.core.errors import BadRequest, Closed, Refused, RequestError, Unknown
from tierwise.core.explain import Explanation, explain, explain_story
from tierwise.core.features import extract
from tierwise.core.names import meaning, offered
from tierwise.core.ports import Feedback, Record
from tierwise.core.request import Request
from tierwise.core.snapshot import load
from tierwise.routing.idempotency import HEADER, Once, Replays
from tierwise.routing.router import Answered, Router
from tierwise.routing.streams import Streamed
from tierwise.server.admin import DOORS as ADMIN_DOORS
from tierwise.server.auth import ANYONE, Identity, Keyring, check_neighbour, check_route, held_to_policies
from tierwise.server.balance import Followers, balance
from tierwise.server.forms import converted
from tierwise.server.guesses import Guesses
from tierwise.server.headers import id_headers, trace_headers
from tierwise.server.http import (
    CALLER,
    EVENT_STREAM,
    JSON,
    Caller,
    Gone,
    Headers,
    Receive,
    Scope,
    Send,
    WhileConnected,
    body_here,
    headers_of,
    length_of,
    lifespan,
    read_body,
    reply,
    reply_json,
    send_whole,
)
from tierwise.server.limits import limit_headers
from tierwise.server.metrics import render
from tierwise.server.once import answer_once
from tierwise.wire import strict
from tierwise.wire.contract import Codec

if TYPE_CHECKING:
    from tierwise.config.runtime import Runtime

_log = logging.getLogger("tierwise")
# A stream to a reader that does not read ends here; the provider's own total deadline is far below.
STREAM_DEADLINE_S = 1_800.0
OWNER = "tierwise"


class Call(msgspec.Struct, frozen=True):
    """One HTTP request, with its body read and its caller known."""

    codec: Codec
    headers: dict[str, str]
    body: bytes
    identity: Identity
    caller: Caller
    send: Send
    tail: str  # what follows the door's own path
    query: bytes


Handler = Callable[["App", Call], Awaitable[None]]


class App:
    """Holds the router and the keys; both may be swapped while requests run."""

    def __init__(
        self, router: Router, keys: Keyring, *, body_limit_bytes: int, runtime: Runtime, ready: bool = True
    ) -> None:
        self.router = router
        self.keys = keys
        self.guesses = Guesses()
        self.body_limit_bytes = body_limit_bytes
        self.ready = ready
        self.runtime = runtime
        self.rated = False  # some budget limits a rate, so replies may have to tell what is left of it
        self.followers = Followers()
        self._running: set[asyncio.Task[Any]] = set()  # requests for a model
        self._cutting = False
        self.replays = Replays()

    def cut(self) -> None:
        """End every request that still runs, each with an error that says why. What they used is settled."""
        self._cutting = True
        for task in self._running:
            task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _no_request(scope, receive, send)
            return
        way = _way(scope["method"], scope["path"])
        call: Call | None = None
        try:
            headers, identity = self._admit(scope, way)
            caller, body = scope[CALLER], b""
            if scope["method"] == "POST":
                here = body_here(caller, headers, self.body_limit_bytes)
                body = await read_body(headers, receive, self.body_limit_bytes) if here is None else here
            call = Call(way.codec, headers, body, identity, caller, send, way.tail, scope.get("query_string", b""))
            await way.handler(self, call)
        except Gone:
            return
        except RequestError as error:
            # Of a request for a model only: what is left of a rate says when the next one may come.
            told = call is not None and error.status == 429 and way.handler is App.model
            await self.fail(send, way.codec, error, limit_headers(self, identity.payer) if told else [])
        except Closed:
            await self.fail(send, way.codec, draining())
        except Exception:
            # Ours, not the caller's: the log has all of it, the caller a sentence.
            _log.exception("a request to %s failed", way.path)
            await self.fail(send, way.codec, RequestError("internal error; the log says more", code="internal"))

    def _admit(self, scope: Scope, way: Way) -> tuple[dict[str, str], Identity]:
        """(the request's headers, who makes it), where the door is one that they may use. Raises RequestError."""
        path = way.path
        if way.handler is _nowhere:
            if way.known:
                raise RequestError(f"{path} does not take {scope['method']}", code="method_not_allowed", status=405)
            what = "is not served yet" if path == "/responses" else "leads nowhere"
            raise Unknown(
                f"{scope['path'][:200]} {what}; requests for a model go to /v1/chat/completions, /v1/messages or "
                "/v1/embeddings",
                code="path_not_found",
            )
        headers = headers_of(scope)
        identity = self.guesses.identify(self.keys, headers, scope) if path not in OPEN_PATHS else ANYONE
        if self.keys.open and scope.get("client"):  # pages speak TCP
            check_neighbour(headers)
        check_route(identity, way.start)
        return headers, identity

    async def fail(self, send: Send, codec: Codec, error: RequestError, more: Headers | None = None) -> None:
        headers: Headers = [JSON, *(more or [])]
        if error.decision:
            headers += id_headers(codec.name, error.decision)
            headers.append((b"x-tierwise-attempts", str(error.attempts).encode()))
        if error.retry_after_s is not None:
            headers.append((b"retry-after", str(error.retry_after_s).encode()))
        if error.should_retry is not None:
            headers.append((b"x-should-retry", b"true" if error.should_retry else b"false"))
        await reply(send, error.status, codec.error(error, error.decision), headers)

    # -------------------------------------------------------------------------------------------- model calls

    def model(self, call: Call) -> Awaitable[None]:
        """A request for a model: plain, streaming, or only asked about."""
        request = held_to_policies(call.identity, call.codec.read(call.body, call.headers), self.router.snapshot)
        if request.hints.dry_run:
            return self.dry(call, request)
        key = call.headers.get(HEADER)
        return self.answer(call, request) if key is None else answer_once(self, call, request, key)

    async def answer(self, call: Call, request: Request, once: Once | None = None) -> None:
        result: Answered | Streamed | None = None
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # ASGI handlers run in tasks
        self._running.add(task)
        try:
            with WhileConnected(call.caller, task):
                result = await self.router.handle(request, call.identity.payer, call.identity.grants, once)
                if isinstance(result, Streamed):
                    await _stream(call, result, limit_headers(self, call.identity.payer))
                    return
            if isinstance(result, Answered):
                body = result.body
                headers = [EVENT_STREAM if result.event_stream else JSON, *trace_headers(result.trace)]
                if once is not None and not result.event_stream:
                    once.keep(body, headers)
                headers += limit_headers(self, call.identity.payer)
                headers.append(length_of(body))
                if not call.caller.whole(200, headers, body):
                    await send_whole(call.send, 200, headers, body)
        except asyncio.CancelledError:
            if not self._cutting:
                raise
            if not isinstance(result, Streamed):
                raise draining() from None
            await call.send({"type": "http.response.body", "body": result.cut(draining())})
        finally:
            self._running.discard(task)
            if result is not None:
                result.close()

    async def dry(self, call: Call, request: Request) -> None:
        """The decision, its reasons and what each candidate would cost; nothing is called."""
        episode, decision = self.router.route(request, call.identity.payer, call.identity.grants)
        found = explain(self.router.snapshot, episode, decision)
        await reply_json(call.send, 200, explained(found, {"features": episode.features, "step": decision.step}))


async def _no_request(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    else:  # a websocket: there is nothing to upgrade to
        await send({"type": "websocket.close", "code": 1002})


async def _nowhere(app: App, call: Call) -> None:
    """Where no door is. Nobody is admitted here."""


def draining() -> RequestError:
    return Refused("this instance is shutting down; try again", code="draining", retry_after_s=1)


async def _stream(call: Call, streamed: Streamed, limits: Headers) -> None:
    send = call.send
    headers: Headers = [
        EVENT_STREAM,
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
        *trace_headers(streamed.trace, begun=True),
        *limits,
    ]
    if not call.caller.begin(200, headers):
        await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        async with asyncio.timeout(STREAM_DEADLINE_S):
            async for chunk in streamed:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except TimeoutError:
        # Nothing can be said to a caller who does not read. Without a proper end the server closes its connection.
        _log.warning("decision %s: the stream was not read in %.0f s", streamed.trace.episode.id, STREAM_DEADLINE_S)
        return
    await send({"type": "http.response.body", "body": b""})


# ------------------------------------------------------------------------------------------------ what comes back


def explained(found: Explanation, more: dict[str, Any]) -> dict[str, Any]:
    return {**msgspec.structs.asdict(found), **more}


# ------------------------------------------------------------------------------------------------ the other doors


async def _count(app: App, call: Call) -> None:
    """Anthropic's count_tokens: our own count of what the prompt says."""
    request = wire.read_count(call.body, call.headers)
    meaning(app.router.snapshot, request.model, request.hints.policy, "chat")  # a name that means nothing is a 404
    await reply_json(call.send, 200, {"input_tokens": extract(request.prompt).input_tokens})


async def _route(app: App, call: Call) -> None:
    dialect = "anthropic" if "anthropic-version" in call.headers else "openai_chat"
    request = wire.codec(dialect).read(call.body, call.headers)
    await app.dry(call, held_to_policies(call.identity, request, app.router.snapshot))


async def _models(app: App, call: Call) -> None:
    snapshot = app.router.snapshot
    names = offered(snapshot)
    if "anthropic-version" in call.headers:
        listed = [_anthropic_model(name) for name in names]
        await reply_json(
            call.send, 200, {"data": listed, "has_more": False, "first_id": names[0], "last_id": names[-1]}
        )
        return
    await reply_json(call.send, 200, {"object": "list", "data": [_model(app, name) for name in names]})


async def _one_model(app: App, call: Call) -> None:
    if call.tail not in offered(app.router.snapshot):
        raise Unknown(f"no model is named {call.tail!r}", code="model_not_found", param="model")
    anthropic = "anthropic-version" in call.headers
    await reply_json(call.send, 200, _anthropic_model(call.tail) if anthropic else _model(app, call.tail))


def _anthropic_model(name: str) -> dict[str, Any]:
    return {"type": "model", "id": name, "display_name": name, "created_at": _BORN}


def _model(app: App, name: str) -> dict[str, Any]:
    model = app.router.snapshot.catalogue.models.get(name)
    found: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": _BORN_S,
        "owned_by": model.provider if model else OWNER,
    }
    if model is not None:
        found["tierwise"] = {
            "tier": model.tier,
            "context_tokens": model.context_tokens,
            "max_output_tokens": model.max_output_tokens,
            "priced": model.price is not None,
            "local": model.local,
        }
    return found


async def _decision(app: App, call: Call) -> None:
    record = await app.router.record(call.tail, call.identity.payer)
    await reply_json(call.send, 200, await told(app.router, record))


async def told(router: Router, record: Record) -> dict[str, Any]:
    """A record with its explanation, as far as the snapshot it was decided under is still there."""
    snapshot = router.snapshot
    if record.episode.snapshot != snapshot.hash:
        data = await router.journal.read_snapshot(record.episode.snapshot)
        if data is None:
            return {"record": record, "explanation": None}
        try:
            snapshot = load(data)
        except msgspec.ValidationError:  # of a version before this one: the record still tells what was decided
            return {"record": record, "explanation": None}
    found = explain_story(snapshot, record.episode, record.decisions)
    return explained(found, {"record": record})


class _FeedbackBody(msgspec.Struct, forbid_unknown_fields=True):
    decision_id: str
    score: float | None = None
    verdict: str | None = None
    source: str = "user"
    comment: str = ""


_VERDICTS = {"good": 1.0, "bad": 0.0, "up": 1.0, "down": 0.0, "accepted": 1.0, "rejected": 0.0}


async def _feedback(app: App, call: Call) -> None:
    said = converted(strict.load(call.body), _FeedbackBody, "feedback")
    score = said.score
    if score is None and said.verdict is not None:
        score = _VERDICTS.get(said.verdict.casefold())
    if score is None or not 0 <= score <= 1:
        raise BadRequest(
            f"give a score between 0 and 1, or a verdict: {', '.join(_VERDICTS)}",
            code="invalid_feedback",
            param="score",
        )
    await app.router.feedback(
        Feedback(
            decision_id=said.decision_id,
            at_s=int(time.time()),
            score=score,
            source=said.source[:64],
            comment=said.comment[:2_000],
            payer=call.identity.payer,
        )
    )
    await reply_json(call.send, 200, {"decision_id": said.decision_id, "score": score})


async def _healthz(app: App, call: Call) -> None:
    await reply_json(call.send, 200, {"status": "ok"})


async def _readyz(app: App, call: Call) -> None:
    ready = app.ready and not app.router.draining
    await reply_json(call.send, 200 if ready else 503, {"status": "ready" if ready else "draining"})


async def _metrics(app: App, call: Call) -> None:
    body, kind = render(app.router, app.guesses.rejected, app.runtime.watching)
    await reply(call.send, 200, body, [(b"content-type", kind.encode())])


_BORN = "2026-01-01T00:00:00Z"
_BORN_S = 1_767_225_600
_DIALECTS = {"/embeddings": "openai_embeddings"}
OPEN_PATHS = ("/healthz", "/readyz")
DOORS: dict[tuple[str, str], Handler] = {
    ("POST", "/chat/completions"): App.model,
    ("POST", "/messages"): App.model,
    ("POST", "/messages/count_tokens"): _count,
    ("POST", "/embeddings"): App.model,
    ("POST", "/route"): _route,
    ("POST", "/feedback"): _feedback,
    ("GET", "/models"): _models,
    ("GET", "/models/"): _one_model,
    ("GET", "/decisions/"): _decision,
    ("GET", "/balance"): balance,
    **ADMIN_DOORS,
    ("GET", "/healthz"): _healthz,
    ("GET", "/readyz"): _readyz,
    ("GET", "/metrics"): _metrics,
}


class Way(msgspec.Struct, frozen=True):
    """Where a request's method and path lead."""

    path: str  # without any leading /v1: clients add one, two or none
    codec: Codec  # of its errors too
    handler: Handler
    start: str = ""  # the door's own path
    tail: str = ""  # what follows it
    known: bool = False  # by another method


@functools.lru_cache(maxsize=64)
def _way(method: str, path: str) -> Way:
    # A base URL that ends in a slash makes two of one.
    path = "/" + path.lstrip("/")
    while path.startswith("/v1/"):
        path = path[3:]
    codec = wire.codec("anthropic" if path.startswith("/messages") else _DIALECTS.get(path, "openai_chat"))
    method = "GET" if method == "HEAD" else method
    exact = DOORS.get((method, path))
    if exact is not None:
        return Way(path, codec, exact, path)
    for (verb, start), handler in DOORS.items():
        if start.endswith("/") and path.startswith(start) and verb == method:
            return Way(path, codec, handler, start, path[len(start) :])
    known = any(path == start or (start.endswith("/") and path.startswith(start)) for _, start in DOORS)
    return Way(path, codec, _nowhere, known=known)
