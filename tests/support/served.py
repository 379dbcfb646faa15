"""The gateway in a thread of its own, for clients that block, for subprocesses and for whole modules of tests.

    with Served(folder, simulated()) as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)

It is the `Gateway` of `tests.support.gateway`, audit included. `run` gives it work on its own loop. `sdk` makes clients
of the vendors' SDKs and closes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tests.support.gateway import Gateway
from tierwise.core.ports import Record
from tierwise.providers.simulated import SimulatedUpstream

T = TypeVar("T")
SIMULATED = ("large", "medium", "small", "embedding")


def simulated(**more: Any) -> dict[str, Any]:
    """A configuration of the simulated provider, as the one that serves when nothing is configured."""
    return {"models": {f"simulated/{name}": {} for name in SIMULATED}, **more}


class Served:
    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.gateway = Gateway(folder, config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="served", daemon=True)

    @property
    def url(self) -> str:
        return self.gateway.url

    def __enter__(self) -> Served:
        self._thread.start()
        try:
            self.run(self.gateway.__aenter__())
        except BaseException:
            self._stop()
            raise
        upstream: Any = self.gateway.router.upstream
        models = upstream.setup.snapshot.catalogue.models.values()
        rows = tuple(model for model in models if model.provider == "simulated")
        upstream.simulated = SimulatedUpstream(rows, speed=0.0)  # the same replies, without the pleasant waiting
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            self.run(self.gateway.__aexit__(*exception))
        finally:
            self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def last(self) -> Record:
        """The newest record, once everything has settled."""
        return self.run(self.gateway.last())


@contextlib.contextmanager
def sdk(kind: Any, url: str, **options: Any) -> Any:
    """A synchronous client of an SDK, without retries of its own unless asked for."""
    with kind(base_url=url, **{"api_key": "none", "max_retries": 0, "timeout": 20.0, **options}) as client:
        yield client
