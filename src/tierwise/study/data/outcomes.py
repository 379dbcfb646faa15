"""Outcome tables: from files to a `Table` in memory with a report of what is there and what is missing, and back.

Of many prompts a sample is kept, chosen by a hash of their ids, so that the same data gives the same table and memory
stays bounded whatever the files hold. Every value of every row is checked (`files`), and the report counts all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tierwise.core.errors import DataError, Problem
from tierwise.core.features import extract
from tierwise.core.request import FEATURES_VERSION, Features, Prompt, Turn
from tierwise.study.data.files import Opened, opened
from tierwise.study.data.holdings import Report, report_of
from tierwise.study.data.trust import Labels
from tierwise.study.table import Floats, Inputs, Ints, Table, group_of, inputs_of
from tierwise.wire.facts import answer_key
from tierwise.wire.neutral import ToolUse

PROMPTS_KEPT = 200_000
CELLS_KEPT = 4_000_000  # prompts by models; an array of them takes 32 MB
CHARACTERS_KEPT = 200_000_000  # of all texts together
CHUNK = 2_000  # prompts read at once

_FIGURES = {"quality": 1.0, "weight": 1.0, "cost_usd": 1.0, "output_tokens": 1.0, "latency_s": 1e3, "odds": 1.0}


def load(paths: Iterable[Path | str], *, prompts_kept: int = PROMPTS_KEPT) -> tuple[Table, Report]:
    """The outcomes in these folders and files, and what is known of them. Ids are those of the files; where there is
    more than one pair, NAME/ID. Raises DataError, naming file, column and row, for what cannot be used."""
    with opened((paths,) if isinstance(paths, (str, Path)) else paths) as data:
        table = _loaded(data, prompts_kept)
        return table, report_of(data, table)


def load_labelled(paths: Iterable[Path | str], *, prompts_kept: int = PROMPTS_KEPT) -> tuple[Table, Labels]:
    """The same table, and who said what of its replies, where there are tables of labels. Raises DataError."""
    with opened((paths,) if isinstance(paths, (str, Path)) else paths) as data:
        return _loaded(data, prompts_kept), _labels(data)


class Judged(msgspec.Struct, frozen=True):
    """A table, who said what of its replies, and how many labels came of which source with which key ("" for none)."""

    table: Table
    labels: Labels
    counts: tuple[tuple[str, str, int], ...]


def load_judged(paths: Iterable[Path | str], *, prompts_kept: int = PROMPTS_KEPT) -> Judged:
    """The same, for whoever has to say whose word it rests on. Raises DataError."""
    with opened((paths,) if isinstance(paths, (str, Path)) else paths) as data:
        table = _loaded(data, prompts_kept)
        counts = [(str(source), str(key), int(n)) for source, key, n in data.database.execute(_COUNTS).fetchall()]
        return Judged(table, _labels(data), tuple(counts))


def _loaded(data: Opened, prompts_kept: int) -> Table:
    models = [str(name) for (name,) in data.database.execute(_MODELS).fetchall()]
    _keep(data, _limit(data, len(models), prompts_kept))
    return _table(data, tuple(models))


_LABELS = """
SELECT k.spot, m.number AS model, coalesce(l.key, '') AS key,
       sum(l.score * coalesce(l.weight, 1.0)) / sum(coalesce(l.weight, 1.0)) AS score,
       sum(coalesce(l.weight, 1.0)) AS weight
FROM labels AS l JOIN kept AS k USING (pair, prompt_id) JOIN model_numbers AS m USING (model)
WHERE l.score IS NOT NULL GROUP BY ALL ORDER BY ALL
"""
_COUNTS = """
SELECT l.source, coalesce(l.key, ''), count(*) FROM labels AS l JOIN kept USING (pair, prompt_id)
WHERE l.score IS NOT NULL GROUP BY ALL ORDER BY ALL
"""
_MODELS = "SELECT model FROM outcomes WHERE quality IS NOT NULL GROUP BY model ORDER BY model"
# Prompts of which something can be read, and of which an outcome is known.
_USABLE = """
FROM prompts AS p
SEMI JOIN (SELECT pair, prompt_id FROM outcomes WHERE quality IS NOT NULL) AS o USING (pair, prompt_id)
WHERE p.prompt IS NOT NULL OR p.features IS NOT NULL
"""
# On disk and in order, so that a chunk is a short walk however large the files are.
_PROMPTS = """
CREATE TABLE kept_prompts AS
SELECT spot, k.pair, k.row, prompt_id, prompt, coalesce(workload, source, '') AS workload, features, tools_json, at_s
FROM kept AS k JOIN prompts USING (pair, prompt_id) ORDER BY spot
"""
_CELLS = """
CREATE TABLE cells AS SELECT spot, m.number AS model, o.quality, coalesce(o.weight, 1.0) AS weight, o.cost_usd,
       o.output_tokens, o.latency_s, o.odds, o.at_s, o.pred, o.tools_json, o.pair, o.row
FROM outcomes AS o JOIN kept AS k USING (pair, prompt_id) JOIN model_numbers AS m USING (model) ORDER BY spot, model
"""


def _limit(data: Opened, models: int, prompts_kept: int) -> int:
    many = data.count(f"SELECT count(*) {_USABLE}")
    characters = data.count(f"SELECT coalesce(sum(length(p.prompt)), 0) {_USABLE}")
    if not many or not models:
        raise DataError((Problem("quality", _why_nothing(data)),), ", ".join(pair.name for pair in data.pairs))
    by_text = CHARACTERS_KEPT * many // max(characters, 1)
    return min(many, prompts_kept, max(1, CELLS_KEPT // models), max(1, by_text))


def _why_nothing(data: Opened) -> str:
    if not data.count("SELECT count(quality) FROM outcomes"):
        return "no outcome has a quality, so there is nothing to learn from; label some replies first"
    if not data.count("SELECT count(*) FROM outcomes SEMI JOIN prompts USING (pair, prompt_id)"):
        return "no outcome's prompt_id is among the prompts; the two tables do not belong together"
    return "no prompt with a labelled outcome has a text or features"


def _keep(data: Opened, limit: int) -> None:
    """The tables `kept` (a number for each prompt of the table, in the files' order) and `model_numbers`."""
    data.database.execute(
        "CREATE TABLE kept AS SELECT row_number() OVER (ORDER BY pair, row) - 1 AS spot, * FROM"
        f" (SELECT p.pair, p.row, p.prompt_id {_USABLE} ORDER BY md5(p.pair || '/' || p.prompt_id) LIMIT {limit})"
    )
    data.database.execute(
        f"CREATE TABLE model_numbers AS SELECT model, row_number() OVER () - 1 AS number FROM ({_MODELS})"
    )


class _Rows(msgspec.Struct, frozen=True):
    """What the rows of prompts gave."""

    ids: list[str]
    workloads: list[str]
    texts: list[str | None]
    groups: list[int]
    at_s: list[int]
    inputs: list[Inputs]


def _table(data: Opened, models: tuple[str, ...]) -> Table:
    rows = _prompts(data)
    shape = (len(rows.ids), len(models))
    data.database.execute(_CELLS)
    place = data.database.execute("SELECT spot, model FROM cells").fetchnumpy()
    cells = (place["spot"].astype(np.int64), place["model"].astype(np.int64))
    arrays: dict[str, Floats] = {}
    for name, factor in _FIGURES.items():
        found = data.database.execute(f"SELECT {name} FROM cells").fetchnumpy()[name]
        arrays[name] = np.full(shape, np.nan)
        arrays[name][cells] = np.ma.filled(found.astype(np.float64), np.nan) * factor
    arrays["weight"][np.isnan(arrays["quality"])] = np.nan
    answers = np.full(shape, -1, dtype=np.int64)
    answers[cells] = np.fromiter(_answers(data), dtype=np.int64, count=cells[0].size)
    table = Table(
        ids=tuple(rows.ids),
        models=models,
        workloads=tuple(rows.workloads),
        inputs=_joined(rows.inputs),
        groups=np.array(rows.groups, dtype=np.int64),
        quality=arrays["quality"],
        weight=arrays["weight"],
        cost_usd=arrays["cost_usd"],
        output_tokens=arrays["output_tokens"],
        latency_ms=arrays["latency_s"],
        answers=answers,
        odds=arrays["odds"],
        at_s=_times(data, rows.at_s),
        texts=tuple(rows.texts),
        hash="",
    )
    return msgspec.structs.replace(table, hash=_hash(table))


def _labels(data: Opened) -> Labels:
    found = data.database.execute(_LABELS).fetchnumpy()
    keys, key = np.unique(found["key"].astype(str), return_inverse=True)
    return Labels(
        keys=tuple(str(each) for each in keys),
        row=found["spot"].astype(np.int64),
        column=found["model"].astype(np.int64),
        key=key.astype(np.int64),
        score=found["score"].astype(np.float64),
        weight=found["weight"].astype(np.float64),
    )


def _prompts(data: Opened) -> _Rows:
    data.database.execute(_PROMPTS)
    rows = _Rows([], [], [], [], [], [])
    for begin in range(0, data.count("SELECT count(*) FROM kept"), CHUNK):
        features = []
        chunk = data.database.execute(
            "SELECT * FROM kept_prompts WHERE spot >= ? AND spot < ? ORDER BY spot", (begin, begin + CHUNK)
        ).fetchall()
        for _, pair, row, id, text, workload, kept, tools, at_s in chunk:
            place = (str(data.pairs[pair].prompts), row)
            known = _features(kept, text is None, place) if kept else None
            features.append(known or _read(text or "", _tool_names(tools, place)))
            rows.ids.append(f"{data.pairs[pair].name}/{id}" if len(data.pairs) > 1 else id)
            rows.workloads.append(workload)
            rows.texts.append(text)
            rows.groups.append(_group(text, features[-1], rows.ids[-1]))
            rows.at_s.append(int(at_s or 0))
        rows.inputs.append(inputs_of(features))
    return rows


def _features(kept: str, is_alone: bool, place: tuple[str, int]) -> Features | None:
    """Those of the file; None where they are of another version and the text says the same."""
    path, row = place
    try:
        found = msgspec.json.decode(kept, type=Features)
    except msgspec.MsgspecError as error:
        raise DataError((Problem("features", f"is not what the journal writes: {error}", line=row),), path) from None
    if found.version == FEATURES_VERSION:
        return found
    if is_alone:
        what = f"is of version {found.version}, this build reads version {FEATURES_VERSION}, and there is no text"
        raise DataError((Problem("features", what, line=row),), path)
    return None


def _read(text: str, tools: tuple[str, ...]) -> Features:
    size = len(text.encode("utf-8", "replace"))
    return extract(Prompt(turns=(Turn("user", text),), size_bytes=size, tools=tools), with_grams=True)


def _tool_names(tools: str | None, place: tuple[str, int]) -> tuple[str, ...]:
    return tuple(name for name, _ in _tools(tools, place)) if tools else ()


def _tools(text: str, place: tuple[str, int]) -> list[tuple[str, str]]:
    """Names and arguments of tools or of calls, as OpenAI or as Anthropic writes them."""
    try:
        found = msgspec.json.decode(text, type=list[dict[str, Any]])
        inner = [each.get("function") or each for each in found]
        return [(str(each["name"]), _arguments(each.get("arguments", each.get("input", "")))) for each in inner]
    except (msgspec.MsgspecError, KeyError, AttributeError):
        what = "is not a JSON list of tools, each with a name"
        raise DataError((Problem("tools_json", what, line=place[1]),), place[0]) from None


def _arguments(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _group(text: str | None, features: Features, id: str) -> int:
    """Of prompts without a text those are the same whose last question was, as far as its hash tells."""
    return group_of(text) if text is not None else group_of(features.intent_hash or f"{id} alone")


def _answers(data: Opened) -> Iterator[int]:
    """A number for each cell in order, from the reply's calls or its final answer; -1 where neither is known."""
    query = data.database.execute("SELECT pred, tools_json, pair, row FROM cells")
    while rows := query.fetchmany(CHUNK):
        for pred, tools, pair, row in rows:
            calls = _tools(tools, (str(data.pairs[pair].outcomes), row)) if tools else []
            yield _answer(pred or "", tuple(calls)) if pred or calls else -1


@lru_cache(maxsize=65_536)
def _answer(pred: str, calls: tuple[tuple[str, str], ...]) -> int:
    """Normalised as the gateway normalises a final answer, and compared whole where it would not take it for one."""
    key = answer_key(pred, [ToolUse("", name, arguments) for name, arguments in calls])
    return int(key, 16) >> 1 if key else group_of(pred) & ((1 << 63) - 1)


def _times(data: Opened, of_prompts: list[int]) -> Ints:
    """When a prompt was asked: what its row says, else its earliest outcome."""
    found = np.array(of_prompts, dtype=np.int64)
    rows = data.database.execute("SELECT spot, min(at_s)::BIGINT FROM cells WHERE at_s > 0 GROUP BY spot").fetchall()
    for at, at_s in rows:
        found[at] = found[at] or at_s
    return found


def _joined(parts: list[Inputs]) -> Inputs:
    sizes = [part.starts[-1] for part in parts]
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    starts = [part.starts[:-1] + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    return Inputs(
        np.concatenate([part.dense for part in parts]),
        np.concatenate([part.grams for part in parts]),
        np.concatenate([*starts, offsets[-1:]]).astype(np.int64),
    )


def _hash(table: Table) -> str:
    """Of all that a study reads: the same data, the same 16 digits, whatever this build makes of a text."""
    digest = hashlib.sha256(msgspec.json.encode((table.ids, table.models, table.workloads, table.texts)))
    textless = table.inputs.take(np.flatnonzero([text is None for text in table.texts]))
    figures = (table.quality, table.weight, table.cost_usd, table.output_tokens, table.latency_ms, table.odds)
    for each in (*figures, table.answers, table.at_s, textless.dense, textless.grams):
        digest.update(np.ascontiguousarray(each).tobytes())
    return digest.hexdigest()[:16]
