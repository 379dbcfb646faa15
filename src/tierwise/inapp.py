"""The router inside a program, without a server: `await router.chat(...)`, a synchronous face, and a transport on which
the OpenAI and Anthropic SDKs run with no socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from tierwise.core.errors import BadRequest, Closed, Refused
from tierwise.core.money import NANO_PER_USD
from tierwise.core.request import Payer, Request

if TYPE_CHECKING:
    from tierwise.core.explain import Explanation
    from tierwise.routing.router import Answered, Router
    from tierwise.routing.streams import Streamed
    from tierwise.server.app import App
    from tierwise.transport import Transport, TransportSync

T = TypeVar("T")


def open(
    config: str | Path | None = None, *, environ: Mapping[str, str] | None = None, state: str | Path | None = None
) -> InApp:
    """A router for this program. Nothing is read before its first use; ConfigError is raised there.

    `config`: a file; None takes TIERWISE_CONFIG, a tierwise.yaml in this folder, else what the environment offers.
    `state`: a folder to keep the journal in; None keeps it in memory, for as long as the router lives.
    What is closed stays closed: open another.
    """
    return InApp(config, os.environ if environ is None else environ, state)


class ChatReply(msgspec.Struct, frozen=True, kw_only=True):
    """A reply and what it took. Amounts are US dollars; None is unknown. `body` is in OpenAI's chat format."""

    text: str
    model: str
    decision_id: str
    reason: str
    cost_usd: float | None
    baseline_usd: float | None
    body: dict[str, Any]


class InApp:
    """Opens at its first use, on the loop that uses it, and stays there. Close it, or use it in an `async with`.

    Every method raises RequestError for what is wrong with a request, ConfigError for what is wrong with the
    configuration, and Closed once it has been closed.
    """

    def __init__(self, config: str | Path | None, environ: Mapping[str, str], state: str | Path | None) -> None:
        self._config = config
        self._environ = environ
        self._state = state
        self._opening: asyncio.Lock | None = None
        self._app: App | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        await self.app()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def app(self) -> App:
        """The application that the transport drives; its `router` is the router."""
        if self._app is not None and self._loop is not asyncio.get_running_loop():
            raise RuntimeError(
                "this router was opened on another event loop and works only there; open one for each loop, or use "
                "`sync()`, which has a loop of its own and may be used from anywhere"
            )
        self._opening = self._opening or asyncio.Lock()
        async with self._opening:
            if self._closed:
                raise Closed("this router has been closed; tierwise.open() makes another")
            if self._app is None:
                from tierwise import config

                path = Path(self._config) if self._config else config.find(self._environ)
                state = Path(self._state) if self._state else None
                setup = await config.load(path, self._environ, state=state)
                app = config.open_app(setup, in_memory=state is None)
                try:
                    await app.runtime.refresh()
                except BaseException:
                    await app.router.close()
                    raise
                self._app = app
                self._loop = asyncio.get_running_loop()
            return self._app

    async def router(self) -> Router:
        return (await self.app()).router

    async def chat(self, messages: str | list[dict[str, Any]], *, model: str = "auto", **fields: Any) -> ChatReply:
        """Answer a conversation (or a single user message) with the cheapest model that is good enough.

        `fields` are those of OpenAI's chat completions, and `tierwise={...}` for hints.
        """
        router = await self.router()
        result = await router.handle(_request(messages, model, {**fields, "stream": False}), Payer())
        try:
            return _reply(_whole(result))
        finally:
            result.close()

    async def stream(
        self, messages: str | list[dict[str, Any]], *, model: str = "auto", **fields: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """The same as it comes: chunks of OpenAI's chat format. Close the iterator to stop the model.

        A stream that breaks off raises RequestError, after the chunks that had come.
        """
        from tierwise.routing.router import Answered
        from tierwise.wire.sse import Splitter

        router = await self.router()
        result = await router.handle(_request(messages, model, {**fields, "stream": True}), Payer())
        splitter = Splitter()
        try:
            if isinstance(result, Answered):
                for chunk in _chunks(splitter.feed(result.body)):
                    yield chunk
                return
            async for piece in result:
                for chunk in _chunks(splitter.feed(piece)):
                    yield chunk
        finally:
            result.close()

    async def route(self, messages: str | list[dict[str, Any]], *, model: str = "auto", **fields: Any) -> Explanation:
        """Decide and call nothing: which model would answer, why, and what every candidate would cost."""
        from tierwise.core.explain import explain

        router = await self.router()
        episode, decision = router.route(_request(messages, model, fields, asked=True))
        return explain(router.snapshot, episode, decision)

    def transport(self) -> Transport:
        """For `openai.AsyncOpenAI(http_client=httpx2.AsyncClient(transport=...))` and Anthropic's twin of it."""
        from tierwise.transport import Transport

        return Transport(self.app)

    def sync(self) -> InAppSync:
        """The same for programs without an event loop. It has a loop of its own, in a thread; close it."""
        return InAppSync(self)

    async def close(self, drain_s: float = 30.0) -> None:
        """Finish what runs within `drain_s` seconds, settle, write down. Closing twice is fine.

        A stream that is neither read to its end nor closed counts as running."""
        self._closed = True
        if self._app is not None:
            app, self._app = self._app, None
            await app.router.drain(drain_s)
            await app.router.close()
            app.runtime.close()


class InAppSync:
    """`InApp` for synchronous code, safe to use from several threads."""

    def __init__(self, inner: InApp) -> None:
        self._inner = inner
        self._loop = asyncio.new_event_loop()
        self._submitting = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="tierwise", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        try:
            self.run(self._inner.app())
        except BaseException:
            self.close()  # nobody else can: the block is not entered
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def chat(self, messages: str | list[dict[str, Any]], *, model: str = "auto", **fields: Any) -> ChatReply:
        return self.run(self._inner.chat(messages, model=model, **fields))

    def stream(
        self, messages: str | list[dict[str, Any]], *, model: str = "auto", **fields: Any
    ) -> Iterator[dict[str, Any]]:
        chunks = self._inner.stream(messages, model=model, **fields)
        try:
            while (chunk := self.run(_next(chunks))) is not None:
                yield chunk
        finally:
            with contextlib.suppress(Closed):  # closing the router has ended the stream as well
                self.run(_aclose(chunks))

    def route(self, messages: str | list[dict[str, Any]], *, model: str = "auto", **fields: Any) -> Explanation:
        return self.run(self._inner.route(messages, model=model, **fields))

    def transport(self) -> TransportSync:
        """For `openai.OpenAI(http_client=httpx2.Client(transport=...))` and Anthropic's twin of it."""
        from tierwise.transport import TransportSync

        return TransportSync(self._inner.app, self.run)

    def close(self, drain_s: float = 30.0) -> None:
        """As `InApp.close`. What other threads still wait for after that ends with Closed."""
        with self._submitting:
            if self._closed:
                return
            self._closed = True
            ending = asyncio.run_coroutine_threadsafe(self._end(drain_s), self._loop)
        try:
            ending.result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of this work on the router's loop. An interrupt here cancels it there."""
        with self._submitting:
            if self._closed:
                work.close()
                raise Closed("this router has been closed; tierwise.open() makes another")
            waiting = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return waiting.result()
        except CancelledError:
            raise Closed("the router was closed before this had ended") from None
        except BaseException:
            waiting.cancel()
            raise

    async def _end(self, drain_s: float) -> None:
        try:
            await self._inner.close(drain_s)
        finally:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await self._loop.shutdown_asyncgens()
            await self._loop.shutdown_default_executor()


async def _next(chunks: AsyncIterator[dict[str, Any]]) -> dict[str, Any] | None:
    return await anext(chunks, None)


async def _aclose(chunks: AsyncIterator[dict[str, Any]]) -> None:
    close = getattr(chunks, "aclose", None)
    if close is not None:
        await close()


def _request(
    messages: str | list[dict[str, Any]], model: str, fields: dict[str, Any], *, asked: bool = False
) -> Request:
    """`asked`: it is only asked what would be done."""
    from tierwise import wire

    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    try:
        body = msgspec.json.encode({"model": model, "messages": said, **fields})
    except (TypeError, ValueError) as error:
        raise BadRequest(f"the request cannot be written as JSON: {error}", code="invalid_json") from None
    request = wire.codec("openai_chat").read(body, {})
    if request.hints.dry_run and not asked:
        raise BadRequest("a dry run has no reply; ask `route` instead", code="dry_run", param="tierwise.dry_run")
    return request


def _whole(result: Answered | Streamed) -> Answered:
    from tierwise.routing.router import Answered

    assert isinstance(result, Answered)  # noqa: S101  # what was not asked to stream does not
    return result


def _reply(answered: Answered) -> ChatReply:
    body: dict[str, Any] = msgspec.json.decode(answered.body)
    trace = answered.trace
    message = body["choices"][0]["message"]
    return ChatReply(
        text=message.get("content") or "",
        model=trace.routed,
        decision_id=trace.episode.id,
        reason=trace.code,
        cost_usd=None if trace.cost_nano is None else trace.cost_nano / NANO_PER_USD,
        baseline_usd=None if trace.baseline_nano is None else trace.baseline_nano / NANO_PER_USD,
        body=body,
    )


def _chunks(events: list[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON of server-sent events. Raises what an error event says."""
    from tierwise.wire.sse import fields

    for event in events:
        _, data = fields(event)
        if data is None or data.strip() in (b"", b"[DONE]"):
            continue
        chunk: dict[str, Any] = msgspec.json.decode(data)
        if "error" in chunk and "choices" not in chunk:
            said: dict[str, Any] = chunk["error"]
            raise Refused(said["message"], code=said.get("code") or "", status=502, metadata=said.get("metadata") or {})
        yield chunk
