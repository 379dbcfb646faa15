"""A gateway in a process of its own, with the durable ledger. `python -m scripts.reliability.child CONFIG STATE
[MODULE FUNCTION ARGUMENT ...]`: what is broken in it on purpose before it starts.

It is what `serve` starts, and says on its first line where it listens. A ledger that does not outlive the process is
replaced, so that these runs measure the durable one wherever the configuration stands.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import time
from pathlib import Path


async def main(config: Path, state: Path) -> None:
    began = time.monotonic()
    from tierwise.config import apply, load, open_app
    from tierwise.server.serve import serve
    from tierwise.stores.ledger.sqlite import SqliteLedger

    setup = await load(config, os.environ, port=0, state=state)
    app = open_app(setup)
    if not isinstance(app.router.ledger, SqliteLedger):
        app.router.ledger = SqliteLedger(state / "ledger.sqlite", setup.budgets)

    async def reload() -> None:
        apply(app, await load(config, os.environ, port=0, state=state))

    def started(port: int) -> None:
        took = time.monotonic() - began
        print(json.dumps({"url": f"http://127.0.0.1:{port}", "ready_s": took}), flush=True)

    await serve(app, "127.0.0.1", 0, setup.server.drain_s, reload=reload, started=started)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    if sys.argv[3:]:
        module, function, *arguments = sys.argv[3:]
        getattr(importlib.import_module(module), function)(*arguments)
    import uvloop

    uvloop.run(main(Path(sys.argv[1]), Path(sys.argv[2])))  # as `serve` does
