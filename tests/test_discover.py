"""Discovery: keys and local servers become a catalogue that holds together; strangers on a port never do.

The local servers here are real ones, on loopback, answering as Ollama, vLLM, llama.cpp, LM Studio and others do.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web

from tierwise.core.catalogue import Catalogue, Model, Provider
from tierwise.providers import prices
from tierwise.providers.discover import TIERS, Discovered, discover, models_of
from tierwise.providers.local import MAX_LIST_BYTES, MAX_MODELS_PER_SERVER, probe_local, tidy_url
from tierwise.providers.table import ENV_KEYS, ENV_URLS, PRICE_IDS, PROVIDERS

OFF = {"TIERWISE_LOCAL_URL": "off"}
SECRET = "sk-very-secret-0123456789"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def _serving(answers: dict[str, Any], port: int = 0) -> AsyncIterator[str]:
    """A real server on loopback: a path to a value answered as JSON, or to a handler. Gives its address."""
    app = web.Application()
    for path, value in answers.items():

        async def reply(_: web.Request, value: Any = value) -> web.StreamResponse:
            return web.json_response(value)

        app.router.add_get(path, value if callable(value) else reply)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _at(name: str, address: str) -> Provider:
    return msgspec.structs.replace(PROVIDERS[name], base_url=f"{address}/v1")


def _list(*names: str, owned_by: str = "vllm", **more: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": one, "object": "model", "owned_by": owned_by, **more} for one in names]}


OLLAMA = {
    "models": [
        {"name": "llama3.2:3b", "details": {"family": "llama", "parameter_size": "3.2B"}},
        {"name": "mistral:latest", "details": {"family": "llama", "parameter_size": "7.2B"}},
        {"name": "mxbai:latest", "details": {"family": "bert", "parameter_size": "334M"}},
        {"name": "gpt-oss:120b-cloud", "details": {"family": "gptoss"}},
        {"name": "kimi:latest", "remote_host": "https://ollama.com", "details": {"family": "kimi"}},
    ]
}


def _sound(catalogue: Catalogue) -> None:
    for model in catalogue.models.values():
        assert model.provider in catalogue.providers
        assert model.tier in catalogue.tiers
        assert model.id == f"{model.provider}/{model.name}"
    assert {catalogue.baseline, catalogue.reliable} <= set(catalogue.models)
    assert catalogue.models[catalogue.baseline].kind == "chat"


# ------------------------------------------------------------------------------------------------ keys


@pytest.mark.parametrize("provider", sorted(set(ENV_KEYS) - {"azure"}))
async def test_one_key_alone_makes_a_catalogue_of_priced_current_models(provider: str) -> None:
    found = await discover({ENV_KEYS[provider][-1]: SECRET, **OFF})
    _sound(found.catalogue)
    models = [*found.catalogue.models.values()]
    assert not found.simulated
    assert {model.provider for model in models} == {provider}
    assert all(model.price is not None for model in models)
    assert found.catalogue.models[found.catalogue.baseline].tier == "frontier" or len(models) == 1
    current = {name for row in prices.listed(provider) if not row.deprecated for name in row.names}
    assert {model.name for model in models} <= current


async def test_every_key_together_makes_one_catalogue_and_no_key_leaks_from_it() -> None:
    environ = {keys[0]: SECRET for keys in ENV_KEYS.values()} | OFF
    found = await discover(environ)
    _sound(found.catalogue)
    assert set(found.catalogue.providers) == set(ENV_KEYS) - {"azure"}
    assert SECRET not in repr(found)
    assert all(row.api_key == f"env:{ENV_KEYS[name][0]}" for name, row in found.catalogue.providers.items())
    assert any(note.startswith("azure") for note in found.notes)


async def test_the_choice_spans_tiers_and_the_baseline_is_a_frontier_model() -> None:
    found = await discover({"OPENAI_API_KEY": SECRET, "ANTHROPIC_API_KEY": SECRET, **OFF})
    catalogue = found.catalogue
    assert catalogue.tiers == TIERS
    assert catalogue.baseline == catalogue.in_tier("frontier")[0].id == catalogue.reliable
    for provider in ("openai", "anthropic"):
        chats = [m for m in catalogue.models.values() if m.provider == provider and m.kind == "chat"]
        by_tier = {tier: [m for m in chats if m.tier == tier] for tier in ("frontier", "fast")}
        assert by_tier["frontier"]
        assert by_tier["fast"]
        assert max(_output_rate(m) for m in by_tier["fast"]) < max(_output_rate(m) for m in by_tier["frontier"])
        assert max(m.skill for m in by_tier["fast"]) < max(m.skill for m in by_tier["frontier"])


def _output_rate(model: Model) -> int:
    assert model.price is not None
    return model.price.rates(1_800_000_000, 1).output_tokens


async def test_only_small_models_make_the_strongest_of_them_the_frontier() -> None:
    found = await discover({"GROQ_API_KEY": SECRET, **OFF})
    assert [model.name for model in found.catalogue.in_tier("frontier")] == ["openai/gpt-oss-120b"]
    assert len(found.catalogue.in_tier("fast")) >= 1


async def test_a_blank_key_is_no_key_and_without_any_the_simulated_provider_serves_and_says_so() -> None:
    found = await discover({"OPENAI_API_KEY": "  ", **OFF})
    _sound(found.catalogue)
    assert found.simulated
    assert {model.tier for model in found.catalogue.models.values()} == set(TIERS)
    assert any("simulated" in note for note in found.notes)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("OPENAI_BASE_URL", "https://proxy.example/openai", "https://proxy.example/openai"),
        ("OPENAI_BASE_URL", "http://127.0.0.1:9000", "http://127.0.0.1:9000/v1"),
        ("OPENAI_BASE_URL", "http://localhost:4100/v1", "https://api.openai.com/v1"),  # the gateway itself
        ("ANTHROPIC_BASE_URL", "https://proxy.example/anthropic/", "https://proxy.example/anthropic/v1"),
        ("ANTHROPIC_BASE_URL", "http://127.0.0.1:4100", "https://api.anthropic.com/v1"),
    ],
)
async def test_another_address_in_the_environment_is_honoured_unless_it_is_our_own(
    variable: str, value: str, expected: str
) -> None:
    provider = "openai" if variable.startswith("OPENAI") else "anthropic"
    found = await discover({ENV_KEYS[provider][0]: SECRET, variable: value, **OFF})
    assert found.catalogue.providers[provider].base_url == expected


async def test_an_address_that_is_none_leaves_the_provider_out_and_shows_no_password() -> None:
    environ = {"OPENAI_API_KEY": SECRET, "ANTHROPIC_API_KEY": SECRET, **OFF}
    for bad in ("ftp://x", "http://", "http://user:hunter2@proxy.example", "http://x:99999"):
        found = await discover({**environ, "OPENAI_BASE_URL": bad})
        assert set(found.catalogue.providers) == {"anthropic"}
        assert any("openai: left out, OPENAI_BASE_URL" in note for note in found.notes)
        assert "hunter2" not in repr(found)


def test_the_table_and_its_mappings_agree() -> None:
    hosted = {name for name, row in PROVIDERS.items() if not row.local}
    assert set(ENV_KEYS) == set(PRICE_IDS) == hosted
    assert set(ENV_URLS) <= set(PROVIDERS)
    assert all(row.name == name for name, row in PROVIDERS.items())
    for name, row in PROVIDERS.items():
        assert row.base_url.startswith("http://127.0.0.1:" if row.local else "https://") or name == "azure"
        assert not row.base_url.endswith("/")
    assert len({key for keys in ENV_KEYS.values() for key in keys}) == sum(map(len, ENV_KEYS.values()))


# ------------------------------------------------------------------------------------------------ local servers


async def test_ollama_is_found_with_its_sizes_its_embeddings_and_without_its_cloud() -> None:
    async with _serving({"/api/tags": OLLAMA}) as address:
        (server,), notes = await probe_local([_at("ollama", address)])
    assert notes == ()
    assert [(model.name, model.size_billions, model.embedding) for model in server.models] == [
        ("llama3.2:3b", 3.2, False),
        ("mistral:latest", 7.2, False),
        ("mxbai:latest", None, True),
    ]


@pytest.mark.parametrize(
    ("row", "listing", "context_tokens"),
    [
        ("vllm", _list("Qwen/Qwen2.5-7B-Instruct", max_model_len=32_768), 32_768),
        ("llamacpp", _list("m.gguf", owned_by="llamacpp", meta={"n_ctx": 4_096, "n_params": 7_000_000_000}), 4_096),
        ("lmstudio", _list("gemma-3-4b", owned_by="organization_owner"), None),
    ],
)
async def test_servers_on_their_ports_are_known_by_their_model_lists(
    row: str, listing: dict[str, Any], context_tokens: int | None
) -> None:
    async with _serving({"/v1/models": listing}) as address:
        (server,), _ = await probe_local([_at(row, address)])
    assert server.provider.name == row
    assert [model.context_tokens for model in server.models] == [context_tokens]


async def _html(_: web.Request) -> web.Response:
    return web.Response(text="<html>It works</html>", content_type="text/html")


async def _away(_: web.Request) -> web.Response:
    raise web.HTTPFound("http://127.0.0.1:1/v1/models")


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(2 * MAX_LIST_BYTES // 65_536):
        await response.write(b" " * 65_536)
    await response.write(json.dumps(_list("a-7b") | OLLAMA).encode())
    return response


async def _locked(_: web.Request) -> web.Response:
    return web.Response(status=401)


@pytest.mark.parametrize(
    "answer",
    [
        _html,
        _away,
        _endless,
        {},
        [],
        {"data": []},
        {"data": "models"},
        {"data": [{"id": 7}], "object": "list"},
        {"data": [{"id": "x"}]},
        {"data": ["x"], "object": "list"},
        _list("gpt-5", "claude", owned_by="openai"),  # another gateway: its models cost money
        _list(""),
        _list(),
    ],
    ids=lambda answer: getattr(answer, "__name__", str(answer)),
)
async def test_another_service_on_the_port_is_not_taken_for_a_model_server(answer: Any) -> None:
    async with _serving({"/v1/models": answer, "/api/tags": answer}) as address:
        servers, notes = await probe_local([_at("vllm", address), _at("ollama", address)])
    assert servers == ()
    assert len(notes) == 2


async def test_a_port_where_nobody_listens_is_no_news_and_a_server_with_a_key_is() -> None:
    async with _serving({"/v1/models": _locked}) as address:
        free = address  # nobody listens there once the server is gone
        servers, notes = await probe_local([_at("vllm", address)])
        assert servers == ()
        assert "wants a key" in notes[0]
    assert await probe_local([_at("vllm", free)]) == ((), ())
    _, notes = await probe_local([_at("vllm", free)], named=True)
    assert "nothing listens" in notes[0]


async def test_servers_that_never_answer_cost_the_timeout_once_and_do_not_hide_the_others() -> None:
    waiting = asyncio.Event()
    seen = 0

    async def silent(_: web.Request) -> web.Response:
        nonlocal seen
        seen += 1
        await waiting.wait()
        return web.Response()

    async with _serving({"/v1/models": silent}) as mute, _serving({"/v1/models": _list("a-7b")}) as good:
        rows = [_at("vllm", mute), _at("lmstudio", mute), _at("llamacpp", good), _at("vllm", mute)]
        began = asyncio.get_running_loop().time()
        # Generous, so that a busy machine does not fail it: one after the other would take three times this.
        servers, notes = await asyncio.wait_for(probe_local(rows, timeout_ms=700), timeout=1.9)
        assert asyncio.get_running_loop().time() - began >= 0.6
        waiting.set()
    assert [server.provider.name for server in servers] == ["llamacpp"]
    assert len(notes) == seen == 3


async def test_a_named_server_is_believed_free_local_and_asked_with_its_key() -> None:
    sent: list[str] = []

    async def listing(request: web.Request) -> web.Response:
        sent.append(request.headers.get("authorization", ""))
        return web.json_response(_list("tiny-1b", "nomic-embed-text", owned_by="someone"))

    async with _serving({"/v1/models": listing}) as address:
        found = await discover({"TIERWISE_LOCAL_URL": address, "TIERWISE_LOCAL_API_KEY": SECRET})
    _sound(found.catalogue)
    assert sent == [f"Bearer {SECRET}"]
    assert SECRET not in repr(found)
    assert not found.simulated
    chat, embedding = found.catalogue.models.values()
    assert (chat.id, chat.tier, chat.local, chat.kind) == ("local/tiny-1b", "local", True, "chat")
    assert embedding.kind == "embedding"
    assert chat.price is not None
    assert chat.price.source == "own machine"
    assert found.catalogue.providers["local"].local
    assert found.catalogue.providers["local"].api_key == "env:TIERWISE_LOCAL_API_KEY"
    assert found.catalogue.tiers == TIERS
    assert found.catalogue.baseline == chat.id  # nothing better was found


async def test_keys_and_local_servers_come_together_and_ollama_reads_only_its_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with _serving({"/api/tags": OLLAMA}) as address:
        local_only = {name: row for name, row in PROVIDERS.items() if not row.local or name == "ollama"}
        monkeypatch.setattr("tierwise.providers.discover.PROVIDERS", local_only)
        environ = {"MISTRAL_API_KEY": SECRET, "OLLAMA_HOST": address.removeprefix("http://")}
        found = await discover(environ)
        wide = await discover({**environ, "OLLAMA_CONTEXT_LENGTH": "16384"})
    _sound(found.catalogue)
    local = {model.name: model for model in found.catalogue.in_tier("local")}
    assert set(local) == {"llama3.2:3b", "mistral:latest", "mxbai:latest"}
    assert {model.context_tokens for model in local.values()} == {4_096}
    assert {model.context_tokens for model in wide.catalogue.in_tier("local")} == {16_384}
    assert local["llama3.2:3b"].skill < local["mistral:latest"].skill
    assert found.catalogue.models[found.catalogue.baseline].provider == "mistral"


async def test_a_server_with_very_many_models_brings_a_bounded_number() -> None:
    async with _serving({"/v1/models": _list(*(f"m{n}-7b" for n in range(500)))}) as address:
        found = await discover({"TIERWISE_LOCAL_URL": address})
    assert len(found.catalogue.models) == MAX_MODELS_PER_SERVER


async def test_a_provider_named_without_models_brings_those_that_are_known_or_that_it_lists() -> None:
    models, note = await models_of(PROVIDERS["openai"], {})
    assert note == ""
    assert {model.provider for model in models} == {"openai"}
    async with _serving({"/v1/models": _list("a-7b", owned_by="x")}) as address:
        acme = Provider(name="acme", wire="openai", base_url=f"{address}/v1")
        (paid,), _ = await models_of(acme, {})
        (own,), _ = await models_of(msgspec.structs.replace(acme, local=True), {})
    assert (paid.id, paid.price, paid.tier) == ("acme/a-7b", None, "fast")  # it may pass on to one that bills
    assert own.price == prices.free_price("own machine")
    assert own.tier == "local"
    models, note = await models_of(acme, {})
    assert (models, "nothing listens" in note) == ((), True)
    models, note = await models_of(msgspec.structs.replace(acme, base_url="https://acme.example/v1"), {})
    assert (models, "price list" in note) == ((), True)


async def test_a_local_address_that_is_none_is_told_and_does_not_stop_the_start() -> None:
    found = await discover({"TIERWISE_LOCAL_URL": "ftp://here", "OPENAI_API_KEY": SECRET})
    assert set(found.catalogue.providers) == {"openai"}
    assert any("TIERWISE_LOCAL_URL" in note for note in found.notes)


@pytest.mark.parametrize(
    ("typed", "tidy"),
    [
        ("localhost:9000", "http://localhost:9000/v1"),
        ("http://127.0.0.1:9000/v1/", "http://127.0.0.1:9000/v1"),
        ("0.0.0.0:11434", "http://127.0.0.1:11434/v1"),
        ("0.0.0.0", "http://127.0.0.1:11434/v1"),
        ("http://[::1]:8080", "http://[::1]:8080/v1"),
        ("https://box.lan/llm", "https://box.lan/llm/v1"),
        ("https://box.lan/v1beta/openai", "https://box.lan/v1beta/openai"),
    ],
)
def test_an_address_as_people_type_it_becomes_a_base_url(typed: str, tidy: str) -> None:
    assert tidy_url(typed, bare_port=11434) == tidy


async def test_what_was_found_can_be_written_and_read_back() -> None:
    found = await discover({"OPENAI_API_KEY": SECRET, **OFF})
    text = msgspec.json.encode(found)
    assert json.loads(text)["simulated"] is False
    assert msgspec.json.decode(text, type=Discovered) == found
