"""What a configuration file says, and what is there without one. Whatever the text, it is a Setup or a ConfigError."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec

from tests.support.config_files import CANARY, ENVIRON, EXAMPLE, ONE, QUIET, loaded, refused
from tests.support.config_samples import validate
from tierwise.config import find, load
from tierwise.config.file import read_text
from tierwise.config.schema import schema
from tierwise.core.budget import Budget
from tierwise.core.errors import ConfigError
from tierwise.core.policy import BALANCED, PRESETS, Best, Keep
from tierwise.core.request import Payer

EXAMPLE_TOML = """\
[server]
host = "127.0.0.1"
port = 4100

[providers]
openai = {api_key = "env:OPENAI_API_KEY"}
acme = {wire = "openai", base_url = "http://127.0.0.1:9000/v1", api_key = "env:ACME_KEY"}

[models]
"openai/gpt-5-mini" = {tier = "fast"}
"acme/small" = {tier = "local", context_tokens = 32000, price = {input_usd_per_mtok = 0.05, output_usd_per_mtok = 0.20}}
"acme/large" = {tier = "frontier", context_tokens = 200000, price = {input_usd_per_mtok = 3, output_usd_per_mtok = 15}}

[policy]
start = "screen"
plans.screen = {keep = {fits = true}, then = "by_task"}
plans.by_task = {rules = [{when = {task = "code"}, then = "solid"}], otherwise = "climb"}
plans.climb = {cascade = ["thrifty", "solid"], accept = {agreement = 2}}
plans.thrifty = {best = ["fast", "local"], promise = "quality-2026-11"}
plans.solid = {use = ["frontier"]}

[[budgets]]
scope = "team"
match = {team = "search"}
limit_usd = 500
window = "month"

[[budgets]]
scope = "session"
limit_usd = 0.50
steps = 40

[[keys]]
name = "demo"
secret = "env:TIERWISE_DEMO_KEY"
user = "ada"
team = "search"
"""

# ------------------------------------------------------------------------------------------------ what a file says


async def test_the_documented_example_loads(tmp_path: Path) -> None:
    setup = await loaded(tmp_path, EXAMPLE)
    catalogue = setup.snapshot.catalogue
    assert {id: model.tier for id, model in catalogue.models.items()} == {
        "openai/gpt-5-mini": "fast",
        "acme/small": "local",
        "acme/large": "frontier",
    }
    assert catalogue.models["openai/gpt-5-mini"].price is not None
    assert (catalogue.tiers, catalogue.baseline) == (("frontier", "fast", "local"), "acme/large")
    assert setup.budgets == (
        Budget(scope="team", match=(("team", "search"),), limit_nano=500 * 10**9, window="month"),
        Budget(scope="session", limit_nano=500_000_000, steps=40),
    )
    assert [(key.name, key.payer) for key in setup.keys] == [("demo", Payer(key="demo", user="ada", team="search"))]
    assert setup.keys[0].secret.reveal() == ENVIRON["TIERWISE_DEMO_KEY"]
    assert setup.secrets("env:ACME_KEY") == ENVIRON["ACME_KEY"]
    assert setup.state_dir == tmp_path / ".tierwise"
    assert not setup.state_dir.exists()
    assert (setup.simulated, setup.source) == (False, str(tmp_path / "t.yaml"))
    validate(read_text(EXAMPLE).data, schema(), schema())


async def test_toml_says_the_same(tmp_path: Path) -> None:
    yaml, toml = await loaded(tmp_path, EXAMPLE), await loaded(tmp_path, EXAMPLE_TOML, name="t.toml")
    assert toml.snapshot.hash == yaml.snapshot.hash
    assert (toml.budgets, toml.server) == (yaml.budgets, yaml.server)


async def test_presets_are_the_default_plans_at_other_amounts(tmp_path: Path) -> None:
    text = EXAMPLE + "policies: {frugal: {preset: economy, miss_usd: {user: 0.5}, attempts: 1}}\n"
    policies = (await loaded(tmp_path, text)).snapshot.policies
    default = policies["default"]
    assert default.amounts == BALANCED
    for name, amounts in PRESETS.items():
        assert (policies[name].amounts, policies[name].plans) == (amounts, default.plans)
    frugal = msgspec.structs.replace(PRESETS["economy"], miss_user_nano=500_000_000)
    assert (policies["frugal"].amounts, policies["frugal"].attempts) == (frugal, 1)
    assert policies["frugal"].plans == default.plans


async def test_every_amount_has_its_own_setting(tmp_path: Path) -> None:
    text = "miss_usd: {user: 1, internal: 2}, second_usd: {interactive: 3, background: 4, batch: 5}, caution: 0.5"
    amounts = (await loaded(tmp_path, f"{ONE}policy: {{{text}}}\n")).snapshot.policies["default"].amounts
    billion = 10**9
    assert msgspec.structs.astuple(amounts) == (billion, 2 * billion, 3 * billion, 4 * billion, 5 * billion, 0.5)


async def test_a_file_without_a_policy_gets_the_embedded_one(tmp_path: Path) -> None:
    setup = await loaded(tmp_path, ONE)
    default = setup.snapshot.policies["default"]
    assert isinstance(default.plans["screen"], Keep)
    assert default.plans["choose"] == Best(best=("local", "fast", "frontier"))
    assert setup.simulated


async def test_without_a_file_the_simulated_provider_serves_three_tiers() -> None:
    setup = await load(None, QUIET)
    catalogue = setup.snapshot.catalogue
    assert setup.simulated
    assert {"frontier", "fast", "local"} <= {model.tier for model in catalogue.models.values()}
    assert set(PRESETS) | {"default"} <= setup.snapshot.policies.keys()
    assert (setup.source, setup.state_dir) == ("the environment", Path(".tierwise"))
    assert any("No keys" in note for note in setup.notes)


async def test_without_a_file_keys_in_the_environment_make_the_catalogue() -> None:
    setup = await load(None, QUIET | {"OPENAI_API_KEY": CANARY})
    assert {model.provider for model in setup.snapshot.catalogue.models.values()} == {"openai"}
    assert setup.secrets("env:OPENAI_API_KEY") == CANARY
    assert not setup.simulated


async def test_a_file_may_say_everything_but_models(tmp_path: Path) -> None:
    setup = await loaded(tmp_path, "policy: {preset: quality}\n", QUIET)
    assert setup.simulated
    assert setup.snapshot.policies["default"].amounts == PRESETS["quality"]


async def test_providers_without_models_bring_those_that_are_known(tmp_path: Path) -> None:
    text = "providers: {anthropic: {api_key: os.environ/ACME_KEY}, simulated: }\n"
    models = (await loaded(tmp_path, text)).snapshot.catalogue.models
    assert {model.provider for model in models.values()} == {"anthropic", "simulated"}


async def test_what_the_file_says_of_a_model_and_a_provider_wins(tmp_path: Path) -> None:
    text = """
providers:
  openai: {base_url: "https://proxy.example/v1/", deadlines: {connect_ms: 7}, stream_usage: false}
models:
  openai/gpt-5-mini: {tier: cheap, context_tokens: 9, max_output_tokens: 3, abilities: [tools], skill: 0.25,
    skills: {code: 0.5}, first_token_ms: 11, tokens_per_second: 13, local: true, price: {free: true}}
  simulated/large: {tier: cheap, skill: 0.125}
  simulated/own: {kind: embedding, tier: cheap, price: {input_usd_per_mtok: 1}}
  simulated/rented: {tier: cheap, price: {gpu_hour_usd: 3.6, tokens_per_second: 1000, load: 0.5}}
tiers: [cheap]
baseline: simulated/large
unpriced: allow
"""
    catalogue = (await loaded(tmp_path, text)).snapshot.catalogue
    provider, model = catalogue.providers["openai"], catalogue.models["openai/gpt-5-mini"]
    assert (provider.base_url, provider.stream_usage) == ("https://proxy.example/v1", False)
    assert (provider.deadlines.connect_ms, provider.deadlines.idle_ms) == (7, 60_000)
    assert (model.context_tokens, model.max_output_tokens, model.abilities, model.skill) == (9, 3, ("tools",), 0.25)
    assert (model.skills, model.first_token_ms, model.tokens_per_second) == ((("code", 0.5),), 11, 13.0)
    assert model.local
    assert model.price is not None
    assert model.price.rows[0].rates.output_tokens == 0
    assert catalogue.models["simulated/large"].skill == 0.125
    assert catalogue.models["simulated/large"].price is not None
    assert catalogue.models["simulated/own"].kind == "embedding"
    rented = catalogue.models["simulated/rented"].price
    assert rented is not None
    assert rented.rows[0].rates.output_tokens == 2 * 10**9  # 3.6 USD an hour, 500 tokens a second: 2 USD a million
    assert (catalogue.baseline, catalogue.reliable) == ("simulated/large", "simulated/large")
    assert catalogue.unpriced == "allow"


async def test_command_line_wins_over_environment_and_environment_over_file(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(ONE + "server: {host: localhost, port: 1}\n")
    environ = QUIET | {"TIERWISE_HOST": "127.0.0.2", "TIERWISE_PORT": "2", "TIERWISE_STATE": str(tmp_path / "s")}
    from_file, from_environ = await load(path, QUIET), await load(path, environ)
    given = await load(path, environ, host="::1", port=0, state=tmp_path / "t")
    assert [(each.server.host, each.server.port) for each in (from_file, from_environ, given)] == [
        ("localhost", 1),
        ("127.0.0.2", 2),
        ("::1", 0),
    ]
    assert (from_environ.state_dir, given.state_dir) == (tmp_path / "s", tmp_path / "t")
    for port in ("-1", "65536", "x", "99999999999", "4_1"):
        assert [p.where for p in await refused(tmp_path, ONE, QUIET | {"TIERWISE_PORT": port})] == ["TIERWISE_PORT"]


def test_the_file_is_named_by_the_environment_or_lies_in_the_folder(tmp_path: Path) -> None:
    assert find({}, tmp_path) is None
    (tmp_path / "tierwise.toml").touch()
    assert find({}, tmp_path) == tmp_path / "tierwise.toml"
    (tmp_path / "tierwise.yaml").touch()
    assert find({}, tmp_path) == tmp_path / "tierwise.yaml"
    assert find({"TIERWISE_CONFIG": "/x/y.yaml"}, tmp_path) == Path("/x/y.yaml")


# ------------------------------------------------------------------------------------------------ nothing breaks it


async def test_a_thousand_broken_files_are_taken_whole_or_refused_whole(tmp_path: Path) -> None:
    rng = random.Random(20261121)
    outcomes = {"taken": 0, "refused": 0}
    for _ in range(1_000):
        text = EXAMPLE
        for _ in range(rng.randint(1, 3)):
            text = _mutated(text, rng)
        try:
            setup = await loaded(tmp_path, text)
        except ConfigError as error:
            outcomes["refused"] += bool(error.problems) and CANARY not in str(error)
        else:
            assert setup.snapshot.policies["default"]
            outcomes["taken"] += 1
    assert sum(outcomes.values()) == 1_000
    assert min(outcomes.values()) > 50, outcomes


def _mutated(text: str, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    words = text.split(" ")
    spot = rng.randrange(len(text))
    match rng.randrange(8):
        case 0:
            del lines[at]
        case 1:
            lines.insert(other, lines[at])
        case 2:
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            return text[:spot] + rng.choice("{}[]:,&*!|>'\"%@#-\t\n\0é0x.~?") + text[spot:]
        case 4:
            return text[:spot] + text[spot + rng.randint(1, 20) :]
        case 5:
            words[rng.randrange(len(words))] = rng.choice(
                ["null", "[]", "{}", "-1", "1e400", ".nan", "true", "9" * 30, "x", "''"]
            )
            return " ".join(words)
        case 6:
            first, second = rng.randrange(len(words)), rng.randrange(len(words))
            words[first], words[second] = words[second], words[first]
            return " ".join(words)
        case _:
            letter = rng.choice("abcdefghijklmnopqrstuvwxyz_")
            return text[:spot] + letter + text[spot + 1 :]
    return "".join(lines)
