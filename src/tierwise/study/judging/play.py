"""Plays a policy over outcomes that are known: drives `decide` itself, and answers its calls from a table.

So what is measured is what serves. A model without an outcome for a prompt cannot answer it: its calls fail. Nor can a
table answer a helper's question or grade a reply: those calls fail too, and the policy goes on as it would then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from tierwise.core.catalogue import Catalogue, Model, Provider
from tierwise.core.decide import decide
from tierwise.core.episode import Answer, Call, Decision, Episode, Event, Failed, Refuse, Replied, ReplyFacts, Serve
from tierwise.core.features import extract
from tierwise.core.learned import DENSE
from tierwise.core.money import MAX_RATE_NANO, NANO_PER_USD, Price, PriceRow, Rates, Usage
from tierwise.core.request import Features, Prompt, Structure, Task, Turn
from tierwise.core.snapshot import Snapshot
from tierwise.study.table import Inputs, Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PROVIDER = "table"
NOT_KNOWN = "the catalogue has none of the table's models ({}); name them alike, as provider/name or by the name alone"
MOST_TIERS = 6
# What `Inputs` keep of the features.
KEPT = (
    "input_tokens", "characters", "turns", "code", "math", "depth", "constraints", "ambiguity", "complexity",
    "wanted_tokens", "tools", "task", "structured", "grams",
)  # fmt: skip
# What a request costs beyond its text (role markers, field names), as an order of magnitude; bounds only.
BODY_BYTES = 200


class Played(msgspec.Struct, frozen=True):
    """How each of N prompts ended. `model` is the column of the delivered reply, -1 where there was none; then quality
    is 0, for nothing was answered. `cost_usd` is of all calls, and so is `latency_ms`; `asked` [N] counts them."""

    model: Ints
    quality: Floats
    cost_usd: Floats
    asked: Ints
    latency_ms: Floats
    refused: tuple[tuple[str, int], ...]  # why, and how often


def play(
    snapshot: Snapshot,
    table: Table,
    rows: Sequence[int] | Ints | None = None,
    *,
    policy: str = "default",
    seed: int = 0,
) -> Played:
    """Serve these prompts of the table (all by default) under this snapshot. `seed` is for policies that explore.
    Raises ValueError when no model of the table is in the catalogue."""
    at = np.arange(len(table.ids)) if rows is None else np.asarray(rows, dtype=np.int64)
    column = columns(snapshot.catalogue, table.models)
    if not column:
        raise ValueError(NOT_KNOWN.format(", ".join(table.models[:5])))
    draws = np.random.default_rng(seed).random(at.size)
    features = features_of(table, at, snapshot)
    ends = [
        _served(_episode(snapshot, table, int(row), policy, draw, each), snapshot, table, int(row), column)
        for row, draw, each in zip(at, draws, features, strict=True)
    ]
    codes = [end.code for end in ends if end.code]
    return Played(
        model=np.array([end.model for end in ends], dtype=np.int64),
        quality=np.array([end.quality for end in ends], dtype=np.float64),
        cost_usd=np.array([end.cost_usd for end in ends], dtype=np.float64),
        asked=np.array([end.asked for end in ends], dtype=np.int64),
        latency_ms=np.array([end.latency_ms for end in ends], dtype=np.float64),
        refused=tuple(sorted((code, codes.count(code)) for code in set(codes))),
    )


class _End(msgspec.Struct, frozen=True):
    model: int
    quality: float
    cost_usd: float
    asked: int
    latency_ms: float
    code: str = ""


def _served(episode: Episode, snapshot: Snapshot, table: Table, row: int, column: dict[str, int]) -> _End:
    """One request from door to end."""
    while True:
        step = decide(snapshot, episode).step
        match step:
            case Call():
                episode = episode.then(_event(step, episode, table, row, column))
            case Answer(event=event):
                reply = episode.events[event]
                at = column[reply.model]
                return _ended(episode, at, float(table.quality[row, at]))
            case Refuse(code=code):
                return _ended(episode, -1, 0.0, code)


def _ended(episode: Episode, model: int, quality: float, code: str = "") -> _End:
    cost = sum(getattr(event, "cost_nano", 0) or 0 for event in episode.events) / NANO_PER_USD
    return _End(model, quality, cost, len(episode.events), float(episode.elapsed_ms), code)


def _event(call: Call, episode: Episode, table: Table, row: int, column: dict[str, int]) -> Event:
    """What the table has for this call."""
    at, now = column.get(call.model), episode.elapsed_ms
    helper = not isinstance(call.about, Serve)
    if at is None or helper or math.isnan(table.quality[row, at]):
        return Failed(at=call.at, model=call.model, after_ms=now, kind="not_found", helper=helper)
    cost, tokens, latency, answer = (
        getattr(table, name)[row, at] for name in ("cost_usd", "output_tokens", "latency_ms", "answers")
    )
    took = 0 if math.isnan(latency) else round(latency)
    written = 0 if math.isnan(tokens) else round(tokens)
    facts = ReplyFacts(
        stop="end",
        characters=4 * written,
        answer_key=f"{answer}" if answer >= 0 else "",
        checks=(("complete", True), ("nonempty", True)),
    )
    return Replied(
        at=call.at,
        model=call.model,
        after_ms=now + took,
        usage=Usage(input_tokens=episode.features.input_tokens, output_tokens=written),
        cost_nano=None if math.isnan(cost) else math.ceil(round(cost * NANO_PER_USD, 3)),
        latency_ms=took,
        facts=facts,
    )


def _episode(snapshot: Snapshot, table: Table, row: int, policy: str, draw: float, features: Features) -> Episode:
    return Episode(
        id=table.ids[row],
        snapshot=snapshot.hash,
        at_s=int(table.at_s[row]),
        draw=float(draw),
        requested="auto",
        policy=policy,
        features=features,
        workload=table.workloads[row],
    )


# ---------------------------------------------------------------------------------------------- what is known


def features_of(table: Table, rows: Ints, snapshot: Snapshot | None = None) -> list[Features]:
    """What a decision may read of these prompts: what the table keeps of them, and the rest (keywords, templates) from
    the text where there is one."""
    keywords = snapshot.keywords if snapshot else ()
    found = []
    for row, known in zip(rows, remembered(table.inputs.take(rows)), strict=True):
        text = table.texts[row]
        if text is not None:
            read = extract(prompt_of(text), keywords)
            known = msgspec.structs.replace(read, **{name: getattr(known, name) for name in KEPT})
        found.append(known)
    return found


def prompt_of(text: str) -> Prompt:
    """A request that is this one message."""
    return Prompt(turns=(Turn("user", text),), size_bytes=len(text.encode("utf-8", "replace")) + BODY_BYTES)


def remembered(inputs: Inputs) -> list[Features]:
    """Features that an estimator reads as it would the prompts' own: `core/learned.dense` the other way round."""
    place = {name: i for i, name in enumerate(DENSE)}
    found = []
    for i, row in enumerate(inputs.dense.astype(np.float64)):
        value = {name: float(row[at]) for name, at in place.items()}
        tokens = max(0, round(math.expm1(value["input_tokens"])))
        found.append(
            Features(
                input_tokens=tokens,
                input_bound_tokens=8 * tokens + BODY_BYTES,
                characters=round(math.expm1(value["characters"])),
                turns=round(math.expm1(value["turns"])),
                code=value["code"],
                math=value["math"],
                depth=value["depth"],
                constraints=round(math.expm1(value["constraints"])),
                ambiguity=value["ambiguity"],
                complexity=value["complexity"],
                wanted_tokens=round(math.expm1(value["wanted_tokens"])),
                tools=round(math.expm1(value["tools"])),
                images=round(math.expm1(value["media"])),
                languages=("und",) if value["foreign"] else ("en",),
                task=next((name for name in get_args(Task) if value[f"task:{name}"]), "other"),
                structured=next((name for name in get_args(Structure) if value[f"structured:{name}"]), "none"),
                grams=inputs.grams[inputs.starts[i] : inputs.starts[i + 1]].astype("<u2").tobytes(),
            )
        )
    return found


# ------------------------------------------------------------------------------------------------ the catalogue


def columns(catalogue: Catalogue, models: Sequence[str]) -> dict[str, int]:
    """Catalogue model -> column of the table: by its id, else by the name alone where that means one model."""
    found = {}
    bare = [_bare(name) for name in models]
    for id, model in catalogue.models.items():
        if id in models:
            found[id] = models.index(id)
        elif bare.count(_bare(model.name)) == 1:
            found[id] = bare.index(_bare(model.name))
    return found


def _bare(name: str) -> str:
    return name.rsplit("/", 1)[-1].casefold()


def catalogue_of(table: Table) -> Catalogue:
    """The table's models at prices that give back what they cost: per token where tokens were counted, else per
    request. Tiers by mean cost, the dearest first; the baseline is the best model by its mean quality."""
    costs, quality = np.nanmean(table.cost_usd, axis=0), np.nanmean(table.quality, axis=0)
    order = [int(i) for i in np.argsort(-costs, kind="stable")]
    count = min(len(order), MOST_TIERS)
    tiers = tuple(f"tier{i + 1}" for i in range(count))
    models = {}
    for place, i in enumerate(order):
        name = table.models[i]
        models[name] = Model(
            id=name,
            provider=PROVIDER,
            name=name,
            tier=tiers[place * count // len(order)],
            price=_price(table, i),
            context_tokens=10_000_000,
            max_output_tokens=1_000_000,
            skill=float(quality[i]),
        )
    best = table.models[int(np.lexsort((costs, -quality))[0])]
    return Catalogue(
        providers={PROVIDER: Provider(name=PROVIDER, wire="simulated")},
        models=models,
        tiers=tiers,
        baseline=best,
        reliable=best,
    )


def rates_usd(table: Table, column: int) -> tuple[float, float, float]:
    """(dollars a token read, a token written, a request) of a model, fitted to what it cost and none below zero."""
    known = ~np.isnan(table.cost_usd[:, column])
    cost = table.cost_usd[known, column]
    written = table.output_tokens[known, column]
    read = np.expm1(table.inputs.dense[known, DENSE.index("input_tokens")].astype(np.float64))
    if cost.size < 3 or np.isnan(written).any() or not (written > 0).any():
        return 0.0, 0.0, float(cost.mean()) if cost.size else 0.0
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    # Scaled to about 1: costs are millionths of a dollar, tokens thousands.
    terms = np.stack([read, written, np.full(cost.size, max(1.0, read.mean()))], axis=1)
    scale, unit = terms.mean(axis=0), max(float(cost.mean()), 1e-12)
    found, _ = nnls(terms / scale, cost / unit)
    per = found * unit / scale
    return float(per[0]), float(per[1]), float(per[2] * terms[0, 2])


def _price(table: Table, column: int) -> Price:
    read, written, request = rates_usd(table, column)
    per_million = [min(MAX_RATE_NANO, round(each * 1e6 * NANO_PER_USD)) for each in (read, written)]
    rates = Rates.of(per_million[0], per_million[1], request_nano=round(request * NANO_PER_USD))
    return Price(rows=(PriceRow(rates),), source="table")


# ------------------------------------------------------------------------------------------------ in one go


def decided(snapshot: Snapshot, table: Table, row: int, features: Features, policy: str = "default") -> Decision:
    """What is decided first for one prompt: for whoever wants the reasons."""
    return decide(snapshot, _episode(snapshot, table, row, policy, 0.5, features))
