"""A configuration that cannot work is refused whole, with every problem, its line, and no secret."""

# ruff: noqa: E501  (a row of a table is a line)

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.support.config_files import CANARY, EXAMPLE, ONE, QUIET, loaded, places, refused
from tierwise.config.secrets import Secret, resolve_secret
from tierwise.core.errors import ConfigError

# ------------------------------------------------------------------------------------------------ what is refused

ACME = "providers: {acme: {wire: openai, base_url: http://127.0.0.1:9/v1}}\n"
PRICE = "models: {simulated/large: {price: {%s}}}\n"
BUDGETS = ONE + "keys: [{name: k, secret: env:ACME_KEY, tags: {env: prod}}]\nbudgets:\n"
PLANS = ONE + "policy:\n  start: a\n  plans:\n"


@pytest.mark.parametrize(
    ("text", "where", "line", "what"),
    [
        # providers
        ("providers:\n  acmee: {wire: openai}\n" + ONE, "providers.acmee", 2, "needs `base_url`"),
        ("providers:\n  opnai: {}\n" + ONE, "providers.opnai", 2, "'openai'"),
        ("providers:\n  a/b: {wire: openai, base_url: http://h/}\n" + ONE, "providers.a/b", 2, "no spaces, slashes"),
        ("providers:\n  groq: {}\n" + ONE, "providers.groq", 2, "needs `api_key`, or GROQ_API_KEY"),
        ("providers:\n  azure: {api_key: env:ACME_KEY}\n" + ONE, "providers.azure", 2, "needs `base_url`"),
        ("providers: {openai: {base_url: 'ftp://h/'}}\n" + ONE, "providers.openai.base_url", 1, "http://"),
        ("providers: {openai: {base_url: 'http://u:p@h/'}}\n" + ONE, "providers.openai.base_url", 1, "user name"),
        ("providers: {openai: {base_url: 'http://h/?a=1'}}\n" + ONE, "providers.openai.base_url", 1, "before any ?"),
        ("providers: {openai: {base_url: 'http://h:99999/'}}\n" + ONE, "providers.openai.base_url", 1, "not an address"),
        ("providers: {openai: {base_url: 'http://[::1/'}}\n" + ONE, "providers.openai.base_url", 1, "not an address"),
        ("providers: {openai: {base_url: http://169.254.169.254/}}\n" + ONE, "providers.openai.base_url", 1, "cloud"),
        ("providers: {openai: {auth: none, api_key: env:ACME_KEY}}\n" + ONE, "providers.openai.api_key", 1, "no effect"),
        ("providers: {simulated: {api_key: env:ACME_KEY}}\n" + ONE, "providers.simulated.api_key", 1, "no effect"),
        ("providers: {openai: {api_key: env:GONE}}\n" + ONE, "providers.openai.api_key", 1, "GONE is not set"),
        ("providers: {openai: {api_key: file:gone}}\n" + ONE, "providers.openai.api_key", 1, "gone cannot be read"),
        (ACME, "providers.acme", 1, "name its models under `models`"),
        # models
        ("models:\n  opnai/x: {}\n", "models.opnai/x", 2, "'openai'"),
        ("models:\n  large: {}\n", "models.large", 2, "provider/model"),
        ("models:\n  simulated/: {}\n", "models.simulated/", 2, "provider/model"),
        ("models:\n  simulated/large: {tier: fats}\n", "models.simulated/large.tier", 2, "'fast'"),
        ("tiers: [a, b]\nmodels:\n  simulated/large: {}\n", "models.simulated/large", 3, "needs `tier`, one of a, b"),
        ("tiers: [frontier, frontier]\n" + ONE, "tiers[1]", 1, "given twice"),
        ("tiers: [frontier, a/b]\n" + ONE, "tiers[1]", 1, "no spaces, slashes"),
        ("tiers: [frontier]\n", "tiers", 1, "lack 'fast'"),
        ("baseline: simulated/lrage\n" + ONE, "baseline", 1, "'simulated/large'"),
        ("reliable: simulated/embedding\nmodels: {simulated/embedding: , simulated/large: }\n", "reliable", 1, "chat"),
        (ACME + "models: {acme/x: {tier: fast}}\n", "models", 2, "none has a price"),
        ("baseline: acme/x\n" + ACME + "models: {acme/x: {tier: fast}, simulated/large: }\n", "baseline", 1, "no price"),
        # prices
        (PRICE % "input_usd_per_mtok: 1", "models.simulated/large.price", 1, "output_usd_per_mtok"),
        (PRICE % "input_usd_per_mtok: 0, output_usd_per_mtok: 1", "models.simulated/large.price", 1, "free: true"),
        (PRICE % "input_usd_per_mtok: 0.000003, output_usd_per_mtok: 1", "models.simulated/large.price", 1, "one token"),
        (PRICE % "input_usd_per_mtok: 3000000, output_usd_per_mtok: 1", "models.simulated/large.price", 1, "at most"),
        (PRICE % "input_usd_per_mtok: -1, output_usd_per_mtok: 1", "models.simulated/large.price", 1, "at least 0"),
        (PRICE % "free: true, input_usd_per_mtok: 1", "models.simulated/large.price", 1, "give one of the two"),
        (PRICE % "gpu_hour_usd: 1, tokens_per_second: 5", "models.simulated/large.price", 1, "needs `load`"),
        (PRICE % "tokens_per_second: 5", "models.simulated/large.price", 1, "needs `gpu_hour_usd`"),
        (PRICE % "gpu_hour_usd: 1, tokens_per_second: 5, load: 1, request_usd: 1", "models.simulated/large.price", 1, "no eff"),
        # policies
        (PLANS + "    a: {use: [frnotier]}\n", "policy.plans.a.use[0]", 5, "'frontier'"),
        (PLANS + "    a: {cascade: [b, a], accept: {check: [complete]}}\n    b: {use: [fast]}\n", "policy.plans.a", 5, "itself"),
        (PLANS + "    a: {use: [fast]}\n    b: {use: [fast]}\n", "policy.plans.b", 6, "nothing leads"),
        (ONE + "policy:\n  plans: {a: {use: [fast]}, b: {use: [fast]}}\n", "policy", 2, "needs `start`"),
        (ONE + "policy:\n  start: choose\n", "policy.start", 3, "no effect without `plans`"),
        (ONE + "policies:\n  economy: {}\n", "policies.economy", 3, "always there"),
        (ONE + "policies:\n  a/b: {}\n", "policies.a/b", 3, "no spaces, slashes"),
        (ONE + "policies:\n  x:\n    plans: {y: {use: [zz]}}\n", "policies.x.plans.y.use[0]", 4, "'zz'"),
        # budgets
        (BUDGETS + "  - {scope: team}\n", "budgets[0]", 4, "limits nothing"),
        (BUDGETS + "  - {scope: request, limit_usd: 1, window: day}\n", "budgets[0].window", 4, "its own window"),
        (BUDGETS + "  - {scope: team, match: {taem: a}, limit_usd: 1}\n", "budgets[0].match.taem", 4, "'team'"),
        (BUDGETS + "  - {scope: tag, match: {enw: a}, limit_usd: 1}\n", "budgets[0].match.enw", 4, "'env'"),
        (BUDGETS + "  - {scope: user, limit_usd: 1}\n  - {scope: user, limit_usd: 2}\n", "budgets[1]", 5, "make them one"),
        (BUDGETS + "  - {scope: team, limit_usd: 1, window: month}\n  - {scope: user, limit_usd: 2, window: day}\n",
         "budgets[1].limit_usd", 5, "never be met"),
        (BUDGETS + "  - {scope: session, limit_usd: 1}\n  - {scope: request, limit_usd: 2}\n",
         "budgets[1].limit_usd", 5, "never be met"),
        # keys
        (ONE + "keys:\n- {name: a, secret: env:ACME_KEY}\n- {name: a, secret: env:OPENAI_API_KEY}\n", "keys[1].name", 4, "another"),
        (ONE + "keys:\n- {name: a, secret: env:ACME_KEY}\n- {name: b, secret: os.environ/ACME_KEY}\n", "keys[1].secret", 4, "same"),
        (ONE + "keys:\n- {name: a, secret: env:ACME_KEY, allow: [frontire]}\n", "keys[0].allow[0]", 3, "'frontier'"),
        (ONE + "keys:\n- {name: a, secret: env:GONE}\n", "keys[0].secret", 3, "GONE is not set"),
        (ONE + f"keys:\n- {{name: a, secret: {CANARY}}}\n", "keys[0].secret", 3, "never the secret itself"),
        # the open door
        (ONE + "server: {host: 0.0.0.0}\n", "server.host", 2, "anyone could spend"),
        (ONE + "server: {host: '::'}\n", "server.host", 2, "anyone could spend"),
        (ONE + "server: {host: gateway.internal}\n", "server.host", 2, "anyone could spend"),
    ],
)  # fmt: skip
async def test_what_cannot_work_is_refused_where_it_stands(
    tmp_path: Path, text: str, where: str, line: int, what: str
) -> None:
    problems = await refused(tmp_path, text)
    assert any(p.where.startswith(where) and p.line == line and what in str(p) for p in problems), problems


async def test_problems_of_every_room_come_together(tmp_path: Path) -> None:
    text = EXAMPLE
    for right, wrong in (
        ("env:ACME_KEY", "env:GONE"),
        ("use: [frontier]", "use: [frontire]"),
        ("scope: session, limit_usd: 0.50, steps: 40", "scope: session"),
        ("host: 127.0.0.1", "host: 0.0.0.0"),
        ("{name: demo", "{name: demo, allow: [nobody]"),
    ):
        text = text.replace(right, wrong)
    problems = await refused(tmp_path, text, QUIET | {"TIERWISE_DEMO_KEY": "x"})
    assert places(problems) == [
        ("providers.openai.api_key", 3),
        ("providers.acme.api_key", 4),
        ("policy.plans.solid.use[0]", 16),
        ("budgets[1]", 19),
        ("keys[0].allow[0]", 21),
        ("keys[0].secret", 21),
    ]


@pytest.mark.parametrize(("host", "key", "opens"), [
    ("127.0.0.1", None, True), ("localhost", None, True), ("::1", None, True), ("127.8.8.8", "short", True),
    ("0.0.0.0", None, False), ("10.0.0.1", "short", False), ("10.0.0.1", "k" * 16, True), 
    ("localhost.evil.example", None, False),
])  # fmt: skip
async def test_off_loopback_only_keys_that_hold_open_the_door(
    tmp_path: Path, host: str, key: str | None, opens: bool
) -> None:
    keys = "keys: [{name: a, secret: env:K}]\n" if key else ""
    environ = QUIET | ({"K": key} if key else {}) | {"TIERWISE_HOST": host}
    if opens:
        assert (await loaded(tmp_path, ONE + keys, environ)).server.host == host
    else:
        assert await refused(tmp_path, ONE + keys, environ)


# ------------------------------------------------------------------------------------------------ secrets


@pytest.mark.parametrize(
    ("reference", "what"),
    [
        ("env:GONE", "the environment variable GONE is not set"),
        ("env:EMPTY", "EMPTY is empty"),
        ("env:TWO", "TWO holds spaces, control"),
        ("env:LINE", "LINE holds spaces, control"),
        ("file:gone", "the file gone cannot be read"),
        ("file:.", "the file . cannot be read"),
        ("file:empty", "the file empty is empty"),
        ("file:binary", "the file binary is not text"),
        ("file:big", "the file big is larger"),
        ("file:\0", "cannot be read"),
        (CANARY, "never the secret itself"),
        ("", "never the secret itself"),
    ],
)
def test_a_secret_that_is_not_there_says_so_without_showing_anything(tmp_path: Path, reference: str, what: str) -> None:
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "big").write_text(CANARY * 10_000)
    environ = {"EMPTY": "", "TWO": f"{CANARY} b", "LINE": f"{CANARY}\r\nx-evil:1"}
    with pytest.raises(ConfigError) as caught:
        resolve_secret(reference, environ, base=tmp_path)
    assert what in str(caught.value)
    assert CANARY not in str(caught.value)


def test_a_file_secret_lies_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{CANARY}\n")
    assert resolve_secret("file:key", {}, base=tmp_path) == CANARY
    assert resolve_secret(f"file:{tmp_path / 'key'}", {}) == CANARY


async def test_a_secret_shows_in_no_text_that_we_make(tmp_path: Path) -> None:
    """Right places, wrong places, and files too broken to read."""
    setup = await loaded(tmp_path, EXAMPLE)
    told = [repr(setup), str(setup), str(setup.notes), repr(Secret(CANARY)), f"{setup.keys[0].secret}"]
    with pytest.raises(TypeError):
        setup.keys[0].secret.__reduce__()
    with pytest.raises(TypeError):
        msgspec.json.encode(setup.keys)
    with pytest.raises(LookupError) as lookup:
        setup.secrets(CANARY)
    told.append(str(lookup.value))
    for wrong in ("env:OPENAI_API_KEY", "env:ACME_KEY", "env:TIERWISE_DEMO_KEY", "http://127.0.0.1:9000/v1", "openai,",
                  "127.0.0.1,", "4100", "32000", "true", "code}", "2}}", "month", "40"):  # fmt: skip
        assert wrong in EXAMPLE
        for value in (CANARY, f"env:{CANARY}", f"http://u:{CANARY}@h", f"[{CANARY}]", f"!{CANARY}", f"*{CANARY}",
                      f'"{CANARY}', f"{CANARY}: {CANARY}", f"%{CANARY}", f"{{a: {CANARY}}}"):  # fmt: skip
            tail = wrong[len(wrong.rstrip(",}")) :]
            try:
                await loaded(tmp_path, EXAMPLE.replace(wrong, value + tail, 1))
            except ConfigError as error:
                told.append(str(error))
    assert len(told) > 100
    leaks = [text for text in told if CANARY in text.replace(f"variable {CANARY} is not set", "")]
    assert leaks == []
