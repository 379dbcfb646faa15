"""A configuration file that says a little of everything, and the way to load one in a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tierwise.config import Setup, load
from tierwise.core.errors import ConfigError, Problem

EXAMPLE = """\
server: {host: 127.0.0.1, port: 4100}
providers:
  openai: {api_key: env:OPENAI_API_KEY}
  acme:   {wire: openai, base_url: http://127.0.0.1:9000/v1, api_key: env:ACME_KEY}
models:                         # known names bring their price, context and abilities
  openai/gpt-5-mini: {tier: fast}
  acme/small: {tier: local, context_tokens: 32000, price: {input_usd_per_mtok: 0.05, output_usd_per_mtok: 0.20}}
  acme/large: {tier: frontier, context_tokens: 200000, price: {input_usd_per_mtok: 3, output_usd_per_mtok: 15}}
policy:
  start: screen
  plans:
    screen:  {keep: {fits: true}, then: by_task}
    by_task: {rules: [{when: {task: code}, then: solid}], otherwise: climb}
    climb:   {cascade: [thrifty, solid], accept: {agreement: 2}}
    thrifty: {best: [fast, local], promise: quality-2026-11}
    solid:   {use: [frontier]}
budgets:
  - {scope: team, match: {team: search}, limit_usd: 500, window: month}
  - {scope: session, limit_usd: 0.50, steps: 40}
keys:                            # or made with `tierwise key create`
  - {name: demo, secret: env:TIERWISE_DEMO_KEY, user: ada, team: search}
"""
CANARY = "sk-canary-5f3a9d17c2e84b60"
ENVIRON = {"OPENAI_API_KEY": CANARY, "ACME_KEY": f"{CANARY}-acme", "TIERWISE_DEMO_KEY": f"{CANARY}-demo"}
QUIET = {"TIERWISE_LOCAL_URL": "off"}  # asks no server on this machine
ONE = "models: {simulated/large: {}}\n"  # the least that can be started


async def loaded(tmp_path: Path, text: str, environ: dict[str, str] | None = None, name: str = "t.yaml") -> Setup:
    path = tmp_path / name
    path.write_text(text)
    return await load(path, ENVIRON | QUIET if environ is None else environ)


async def refused(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        await loaded(tmp_path, text, environ)
    return list(caught.value.problems)


def places(problems: list[Problem]) -> list[tuple[str, int]]:
    return [(problem.where, problem.line) for problem in problems]
