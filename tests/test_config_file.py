"""The configuration file as text and as types: what is read, what is refused, and on which line."""

from __future__ import annotations

import random
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.config_samples import Disagrees, moved, options, slips, validate
from tierwise.config.file import MAX_BYTES, read_file, read_text
from tierwise.config.schema import ConfigFile, schema
from tierwise.core.errors import ConfigError, Problem
from tierwise.core.read import nearest, read

OPTIONS = list(options())
SCHEMA = schema()


def problems_of(text: str, *, toml: bool = False) -> list[Problem]:
    """Everything wrong with a text, whether it stops the reading or not."""
    try:
        located = read_text(text, toml=toml)
    except ConfigError as error:
        return list(error.problems)
    return [*located.problems, *read(located.data, ConfigFile, line=located.line)[1]]


# ------------------------------------------------------------------------------------------------ text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-5", -5),
        ("0x10", 16),
        ("0o10", 8),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("'5'", "5"),
        ('"true"', "true"),
        ("no", "no"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2026-11-01", "2026-11-01"),
        ("0010", 10),
        ("|\n  a\n  b", "a\nb"),
    ],
)
def test_scalars_are_read_by_the_rules_of_yaml_1_2(text: str, value: Any) -> None:
    read_value = read_text(f"a: {text}").data["a"]  # type: ignore[index, call-overload]
    assert (read_value, type(read_value)) == (value, type(value))


def test_every_path_knows_its_line() -> None:
    located = read_text("a:\n  b:\n    - 1\n    - {c: 2}\nd.e: 3\n")
    assert [located.line(path) for path in ("a", "a.b", "a.b[0]", "a.b[1].c", "d.e")] == [1, 2, 3, 4, 5]
    assert located.line("a.b[1].missing.deeper") == 4  # the nearest thing around it
    assert located.line("nowhere") == 0


def test_an_alias_is_what_it_stands_for_and_a_merge_fills_gaps_only() -> None:
    located = read_text("base: &b {x: 1, y: 2}\nsame: *b\nmore: {<<: *b, y: 3}\n")
    assert located.data == {"base": {"x": 1, "y": 2}, "same": {"x": 1, "y": 2}, "more": {"y": 3, "x": 1}}


@pytest.mark.parametrize(
    ("text", "where", "line", "what"),
    [
        ("a: 1\nb: 2\na: 3\n", "a", 3, "is given twice (first on line 1)"),
        ("s:\n  a: 1\n  a: 1\n", "s.a", 3, "is given twice (first on line 2)"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", "b", 2, "has a tag"),
        ("a: !!str 5\n", "a", 1, "has a tag"),
        ("a: 1\n---\nb: 2\n", "file", 2, "second document"),
        ("\n\na: &x [*x]\n", "a[0]", 3, "alias inside its own anchor"),
        ("a: *gone\n", "a", 1, "alias without an anchor"),
        ("a: 1\n? [1, 2]\n: 3\n", "file", 2, "key that is not plain text"),
        ("a: {<<: [1]}\n", "a.<<", 1, "must be an alias of a mapping"),
        ("- 1\n", "file", 1, "must be a mapping"),
        ("a: 1\nb: [\n", "file", 3, "is not YAML"),
        ("a: b: c\n", "file", 1, "is not YAML"),
        ("a: \x07\n", "file", 0, "characters that YAML does not allow"),
        (f"a: {'9' * 5000}\n", "a", 1, "more than 40 digits"),
        ("a: " + "[" * 100 + "]" * 100, "file", 1, "nested more than 32"),
        ("{a: " * 100_000, "file", 1, "nested more than 32"),
    ],
)
def test_yaml_that_could_mislead_is_refused_with_its_line(text: str, where: str, line: int, what: str) -> None:
    found = problems_of(text)[0]
    assert (found.where, found.line) == (where, line)
    assert what in found.what


def test_a_billion_laughs_are_counted_before_they_are_told() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for i in range(1, 20):
        text += f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n"
    with pytest.raises(ConfigError, match="aliases counted in full"):
        read_text(text)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a = 1\na = 2\n", 2, "is not TOML"),
        ("a = 1\nb = \n", 2, "is not TOML"),
        (f"a = {'9' * 5000}\n", 0, "too many digits"),
        ("a = " + "[" * 40 + "]" * 40, 1, "nested more than 32"),
        ("a = " + "[" * 50_000 + "]" * 50_000, 0, "nested more than 32"),
        ("b = 1\n" + ".".join(["a"] * 500) + " = 1", 2, "nested more than 32"),
    ],
)
def test_toml_that_cannot_be_used_is_refused_with_its_line(text: str, line: int, what: str) -> None:
    found = problems_of(text, toml=True)[0]
    assert what in found.what
    assert found.line == line


def test_toml_settings_know_their_lines() -> None:
    text = '[server]\nprot = 1\n\n[models."acme/v1.5"]\nteir = "x"\n\n'
    text += '[[budgets]]\nscope = "team"\n[[budgets]]\nscop = "key"\n'
    found = {problem.where: problem.line for problem in problems_of(text, toml=True)}
    assert found == {"server.prot": 2, "models.acme/v1.5.teir": 5, "budgets[1].scop": 10}


def test_a_date_in_toml_is_no_text() -> None:
    assert problems_of("baseline = 2026-11-01\n", toml=True)[0].what == "must be text, not a date or time"


def test_without_the_c_scanner_the_same_is_read_and_no_message_quotes_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert read_text("a: [1, 'x', no]\n").data == {"a": [1, "x", "no"]}
    found = problems_of("api_key: sk-canary: b\n")
    assert (found[0].line, "canary" in str(found)) == (1, False)


def test_files_that_cannot_be_read_say_why(tmp_path: Any) -> None:
    big, latin = tmp_path / "big.yaml", tmp_path / "latin.yaml"
    big.write_text("#" * (MAX_BYTES + 1))
    latin.write_bytes(b"a: 1\nb: \xe9\n")
    for path, what in ((big, "is larger than"), (latin, "line 2: is not UTF-8"), (tmp_path, "cannot be read")):
        with pytest.raises(ConfigError, match=what):
            read_file(path)


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"#,?%@` \n\t0.~<\\\x00é"), max_size=60), st.booleans())
@settings(max_examples=400, deadline=None)
def test_any_text_is_read_or_refused(text: str, toml: bool) -> None:
    problems_of(text, toml=toml)


# ------------------------------------------------------------------------------------------------ types

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(OPTIONS), PLAIN)
@settings(max_examples=400, deadline=None)
def test_any_value_of_any_setting_is_taken_or_refused_in_its_place(option: Any, value: Any) -> None:
    path, data = option
    changed = moved(data, path, path[-1])
    at: Any = changed
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    made, problems = read(changed, ConfigFile)
    assert (made is None) == bool(problems)


@pytest.mark.parametrize(("path", "data"), OPTIONS, ids=[".".join(map(str, path)) for path, _ in OPTIONS])
def test_a_misspelt_setting_is_refused_with_its_line_and_the_nearest_name(path: Any, data: Any) -> None:
    assert read(data, ConfigFile)[1] == []
    validate(data, SCHEMA, SCHEMA)
    for slip in slips(path[-1]):
        bad = moved(data, path, slip)
        text = yaml.safe_dump(bad, sort_keys=False)
        rows = [row.lstrip(" -").replace("'", "") for row in text.splitlines()]
        line = next(n for n, row in enumerate(rows, 1) if row.startswith(f"{slip}:"))
        found = problems_of(text)
        assert [(problem.nearest, problem.line) for problem in found] == [(path[-1], line)], (slip, found)
        with pytest.raises(Disagrees):
            validate(bad, SCHEMA, SCHEMA)


def test_every_wrong_type_is_told_at_once() -> None:
    text = """
server: {host: 5, port: "4100", drain_s: soon, budget_status: 418}
tiers: frontier
models: {acme/small: {context_tokens: 1.5, price: {input_usd_per_mtok: -1, free: 1}, abilities: [fly]}}
policy: {plans: {one: {use: [a], best: [b]}, two: {}, three: 3}, clamp: "no"}
budgets: [{scope: team, limit_usd: .inf}, {limit_usd: 1}]
journal: []
"""
    assert {(problem.where, problem.line) for problem in problems_of(text)} == {
        ("server.host", 2),
        ("server.port", 2),
        ("server.drain_s", 2),
        ("server.budget_status", 2),
        ("tiers", 3),
        ("models.acme/small.context_tokens", 4),
        ("models.acme/small.price.input_usd_per_mtok", 4),
        ("models.acme/small.price.free", 4),
        ("models.acme/small.abilities[0]", 4),
        ("policy.plans.one", 5),
        ("policy.plans.two", 5),
        ("policy.plans.three", 5),
        ("policy.clamp", 5),
        ("budgets[0].limit_usd", 6),
        ("budgets[1]", 6),
        ("journal", 7),
    }


def test_a_number_that_no_store_could_keep_is_refused() -> None:
    rules = "rules: [{when: {min_turns: %s}, then: b}], otherwise: b"
    for number, sound in (
        ("9223372036854775807", True),
        ("9223372036854775808", False),
        ("-9223372036854775808", False),
    ):
        found = problems_of(f"policy: {{plans: {{a: {{{rules % number}}}}}}}\n")
        assert [problem.where for problem in found] == ([] if sound else ["policy.plans.a.rules[0].when.min_turns"])


def test_a_key_with_nothing_behind_it_is_no_key() -> None:
    file, _ = read(read_text("server:\n  port:\nmodels:\n  acme/x:\n").data, ConfigFile)
    assert file == ConfigFile(models={"acme/x": None})


def test_what_a_key_is_called_cannot_write_to_the_terminal() -> None:
    found = problems_of('"\\e[2J\\n": 1\n' + "k" * 900 + ": 1\n")
    assert all(str(problem).isprintable() and len(str(problem)) < 400 for problem in found)
    assert len(found) == 2


def test_nearest_is_a_slip_and_not_a_guess() -> None:
    names = ["min_turns", "max_turns", "use", "keep"]
    assert [nearest(name, names) for name in ("mni_turns", "max_turn", "usee", "kepe", "zebra", "")] == [
        "min_turns",
        "max_turns",
        "use",
        "keep",
        "",
        "",
    ]


def test_the_schema_holds_every_plan_by_its_own_key() -> None:
    made = schema()
    text = str(made)
    assert "discriminator" not in text
    plan = {"screen": {"keep": {"fits": True}, "then": "x"}}
    validate({"policy": {"plans": plan}}, made, made)
    for wrong in ({"type": "keep", **plan["screen"]}, {"then": "x"}, {"keep": {}, "use": ["x"], "then": "x"}):
        with pytest.raises(Disagrees):
            validate({"policy": {"plans": {"screen": wrong}}}, made, made)


def test_reading_takes_no_longer_than_the_text_is_long() -> None:
    """Bounds are counted, so a file at the size limit cannot hold the gateway's reload for long."""
    rng = random.Random(1)
    text = "".join(f"k{i}: [{rng.random()}, {rng.random()}]\n" for i in range(20_000))
    with pytest.raises(ConfigError, match="more than 50000 values"):
        read_text(text)
