"""A Setup becomes what runs, and a change of the file reaches it whole or not at all."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.config_files import ENVIRON, EXAMPLE, ONE, QUIET, loaded
from tierwise import wire
from tierwise.config import (
    Upstreams,
    apply,
    find_state,
    load,
    make_state_folder,
    open_app,
    open_journal,
    open_router,
    reload,
    watch,
)
from tierwise.core.episode import Call
from tierwise.core.errors import ConfigError, RequestError, Unauthorised
from tierwise.core.request import Payer, Request
from tierwise.routing.router import Answered

# ------------------------------------------------------------------------------------------------ what runs


def test_the_state_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "state"
    make_state_folder(folder)
    make_state_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--state"):
        make_state_folder(tmp_path / "file")


async def test_each_call_goes_to_the_upstream_of_its_wire(tmp_path: Path) -> None:
    class Named:
        def __init__(self) -> None:
            self.seen: list[str] = []

        async def send(self, outgoing: Any) -> Any:
            self.seen.append(outgoing.provider.wire)

        async def close(self) -> None:
            self.seen.append("closed")

    both = Upstreams(await loaded(tmp_path, ONE))
    await both.close()
    both.remote, both.simulated = Named(), Named()
    for name in ("openai", "simulated", "anthropic"):
        await both.send(_outgoing(name))
    await both.close()
    assert both.remote.seen == ["openai", "anthropic", "closed"]
    assert both.simulated.seen == ["simulated", "closed"]


def _outgoing(wire: Any) -> Any:
    from tierwise.core.catalogue import Deadlines, Provider
    from tierwise.core.ports import Outgoing

    provider = Provider(name="x", wire=wire)
    return Outgoing(provider=provider, path="chat/completions", body=b"{}", stream=False, deadlines=Deadlines())


def asked(text: str, model: str = "auto") -> Request:
    body = msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": text}]})
    return wire.codec("openai_chat").read(body, {})


HARD = (
    "Prove rigorously that every bounded sequence of real numbers has a convergent subsequence, then derive from it, "
    "step by step, that a continuous function on a compact interval attains its maximum. Explain each inequality, "
    "compare two different proofs, and discuss what fails on an open interval."
)


async def test_the_embedded_policy_sends_easy_and_hard_questions_to_different_models() -> None:
    router = open_router(await load(None, QUIET), in_memory=True)
    catalogue = router.snapshot.catalogue

    def tier(text: str, model: str) -> int:
        """0 is the dearest."""
        step = router.route(asked(text, model))[1].step
        assert isinstance(step, Call)
        return catalogue.tiers.index(catalogue.models[step.model].tier)

    try:
        for preset in ("auto", "auto:quality"):
            assert tier("Hi!", preset) > tier(HARD, preset)
        assert tier(HARD, "auto:quality") == 0
        assert tier(HARD, "auto:economy") >= tier(HARD, "auto") >= tier(HARD, "auto:quality")
    finally:
        await router.close()


async def test_what_is_opened_answers_and_remembers_in_the_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = await loaded(tmp_path, ONE, QUIET)
    router = open_router(setup)
    answer = await router.handle(asked("Hi!"))
    assert isinstance(answer, Answered)
    assert answer.trace.routed == "simulated/large"
    assert router.in_flight == 1, "until it is closed"
    beside = await router.handle(asked("Hi!"))
    lulls: list[int] = []
    monkeypatch.setattr(router.journal, "lull", lambda: lulls.append(router.in_flight))
    answer.close()
    answer.close()
    assert (router.in_flight, lulls) == (1, [])
    beside.close()
    assert (router.in_flight, lulls) == (0, [0]), "the journal is told when nobody is kept waiting"
    await router.drain(5.0)
    assert (await router.record(answer.trace.episode.id)).outcome.status == "answered"
    await router.close()
    assert (setup.state_dir / "journal.sqlite").stat().st_mode & 0o077 == 0
    assert find_state(None, QUIET, tmp_path / "t.yaml") == setup.state_dir
    journal = open_journal(setup.state_dir)
    assert journal is not None
    assert await journal.read(answer.trace.episode.id) is not None
    await journal.close()
    assert open_journal(tmp_path) is None


async def test_a_reload_reaches_keys_budgets_models_and_limits_at_once(tmp_path: Path) -> None:
    app = open_app(await loaded(tmp_path, ONE, QUIET), in_memory=True)
    nobody = app.keys.identify({}).payer
    assert nobody == Payer()
    text = (
        "models: {simulated/small: }\nserver: {body_limit_bytes: 2048, budget_status: 429, port: 5}\n"
        "keys: [{name: a, secret: env:K, allow: [local]}]\nbudgets: [{scope: key, limit_usd: 0}]\n"
        "journal: {store_texts: true}\n"
    )
    setup = await loaded(tmp_path, text, QUIET | {"K": "the-key-of-a"})
    assert apply(app, setup) == ("A change of server.port waits for a restart.",)
    with pytest.raises(Unauthorised):
        app.keys.identify({})
    known = app.keys.identify({"authorization": "Bearer the-key-of-a"})
    assert (known.payer.key, known.grants) == ("a", ("local",))
    assert (app.body_limit_bytes, app.router.books.store_texts) == (2_048, True)
    with pytest.raises(RequestError) as refusal:
        await app.router.handle(asked("Hi!"), known.payer, known.grants)
    assert refusal.value.status == 429  # nothing is left in the new budget, and the new status says so
    with pytest.raises(RequestError):
        await app.router.handle(asked("Hi!", "simulated/large"), known.payer)
    await app.router.close()


# ------------------------------------------------------------------------------------------------ changes of the file


async def test_a_broken_reload_leaves_the_caller_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(EXAMPLE)
    first = await load(path, ENVIRON)
    path.write_text(EXAMPLE.replace("frontier]", "frontire]"))
    with pytest.raises(ConfigError, match=r"line 16: policy\.plans.solid.use"):
        await reload(path, ENVIRON)
    path.write_text(EXAMPLE + "unpriced: allow\n")
    assert (await reload(path, ENVIRON)).snapshot.hash != first.snapshot.hash


async def test_a_change_of_the_file_is_seen_also_when_it_is_replaced(tmp_path: Path) -> None:
    path, changes, stop = tmp_path / "t.yaml", asyncio.Event(), asyncio.Event()
    path.write_text(ONE)

    async def on_change() -> None:
        changes.set()

    task = asyncio.create_task(watch(path, on_change, stop=stop))
    for written in range(200):  # the watcher needs a moment before it sees anything, so the file keeps changing
        new = tmp_path / "new"
        new.write_text(f"{ONE}# {written}\n")
        os.replace(new, path)
        try:
            await asyncio.wait_for(changes.wait(), 0.2)
            break
        except TimeoutError:
            continue
    stop.set()
    await asyncio.wait_for(task, 10)
    assert changes.is_set()
