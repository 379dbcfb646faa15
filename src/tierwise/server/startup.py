"""`tierwise serve`: what is printed at the start, and what runs from there to the last settlement."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierwise.core.errors import ConfigError, Problem
from tierwise.core.features import extract
from tierwise.core.money import dollars, usd_text
from tierwise.core.policy import Best, Cascade, Plan, Rules, Use
from tierwise.core.request import Prompt, Turn
from tierwise.core.words import counted

if TYPE_CHECKING:
    from tierwise.config import Setup

_log = logging.getLogger("tierwise")


def run(setup: Setup, path: Path | None, again: Callable[[], Awaitable[Setup]], started: Callable[[int], None]) -> None:
    """Serve this setup until a signal. `again` reads the configuration anew."""
    import uvloop

    level = os.environ.get("TIERWISE_LOG", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        known = ", ".join(name.lower() for name in logging.getLevelNamesMapping() if name != "NOTSET")
        raise ConfigError((Problem("TIERWISE_LOG", f"{level.lower()[:40]!r} is no log level; take one of {known}"),))
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    uvloop.run(_serve(setup, path, again, started))


# A request leaves no cycles behind, so there is next to nothing to collect, and looking is what costs.
_COLLECT_AFTER = (10_000, 50, 50)


def _tune() -> None:
    """For a process that does nothing but serve. What every request needs is loaded now, and stays, so the collector
    need not look at it again; the journal's thread must not keep the loop waiting for the usual 5 ms."""
    extract(Prompt(turns=(Turn("user", "Hello"),), size_bytes=5))
    sys.setswitchinterval(0.001)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


async def _serve(
    setup: Setup, path: Path | None, again: Callable[[], Awaitable[Setup]], started: Callable[[int], None]
) -> None:
    from tierwise.config import apply, open_app, watch
    from tierwise.server.serve import serve

    app = open_app(setup)

    async def reload() -> None:
        fresh = await again()
        for waits in apply(app, fresh):
            _log.warning("%s", waits)
        _log.info("configuration taken: snapshot %s", fresh.snapshot.hash)

    async def follow(changed: Callable[[], Awaitable[None]]) -> None:
        if path is not None:
            await watch(path, changed)

    def begun(port: int) -> None:
        _tune()
        started(port)

    server = setup.server
    await serve(app, server.host, server.port, server.drain_s, reload=reload, watch=follow, started=begun)


def facts(setup: Setup, port: int) -> dict[str, Any]:
    catalogue = setup.snapshot.catalogue
    return {
        "url": f"http://{_host(setup)}:{port}",
        "snapshot": setup.snapshot.hash,
        "source": setup.source,
        "simulated": setup.simulated,
        "tiers": {tier: [model.id for model in catalogue.in_tier(tier)] for tier in catalogue.tiers},
        "policy": setup.snapshot.policies["default"].start,
        "state": str(setup.state_dir),
        "notes": list(setup.notes),
    }


def banner(setup: Setup, port: int) -> str:
    """What a person needs who sees this for the first time."""
    url = f"http://{_host(setup)}:{port}"
    catalogue = setup.snapshot.catalogue
    lines = [f"Tierwise is listening on {url}  (configuration: {setup.source})", ""]
    for tier in catalogue.tiers:
        models = catalogue.in_tier(tier)
        lines += [f"  {tier:9} {_priced(model)}" for model in models] or [f"  {tier:9} –"]
    lines += ["", f"  policy    {_policy(setup)}"]
    lines += [f"  baseline  {catalogue.baseline} (savings are measured against it)"]
    lines += [f"  state     {setup.state_dir}", *(f"  note      {note}" for note in setup.notes)]
    auth = "-H 'authorization: Bearer YOUR_KEY' " if setup.keys else ""
    key = "YOUR_KEY" if setup.keys else "none"
    lines += [
        "",
        "Try it:",
        f"curl -si {url}/v1/chat/completions {auth}-H 'content-type: application/json' \\",
        """  -d '{"model": "auto", "messages": [{"role": "user", "content": "Say hello"}]}'""",
        "",
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{url}/v1", api_key="{key}")',
        'for text in ("Say hello", "Prove that the square root of 2 is irrational, step by step"):',
        '    reply = client.chat.completions.create(model="auto", messages=[{"role": "user", "content": text}])',
        "    print(reply.model, reply.usage.cost_usd, reply.choices[0].message.content[:60])",
        "",
    ]
    return "\n".join(lines)


def _host(setup: Setup) -> str:
    host = setup.server.host
    if host in ("0.0.0.0", "::"):  # noqa: S104  # compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _priced(model: Any) -> str:
    if model.price is None:
        return f"{model.id} (unpriced)"
    rates = model.price.rows[0].rates
    if not rates.input_tokens and not rates.output_tokens:
        return f"{model.id} (free: {model.price.source})"
    both = f"{usd_text(rates.input_tokens)} / {dollars(rates.output_tokens)}"
    return f"{model.id} ({both} per million tokens in / out)"


def _policy(setup: Setup) -> str:
    policy = setup.snapshot.policies["default"]
    steps, name, seen = [], policy.start, set()
    while name in policy.plans and name not in seen:
        seen.add(name)
        plan = policy.plans[name]
        steps.append(f"{name} ({_kind(plan)})")
        name = getattr(plan, "then", "")
    return " → ".join(steps)


def _kind(plan: Plan) -> str:
    match plan:
        case Use(use=names):
            return f"use {', '.join(names)}"
        case Best(best=names):
            return f"best of {', '.join(names)}"
        case Cascade(cascade=names):
            return f"cascade {' → '.join(names)}"
        case Rules(rules=rules):
            return counted(len(rules), "rule")
        case _:
            return type(plan).__name__.lower()
