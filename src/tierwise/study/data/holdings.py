"""What outcome tables hold and what they lack: figures, and sentences for whoever must decide what to do about it."""

from __future__ import annotations

import msgspec
import numpy as np

from tierwise.study.data.files import Opened
from tierwise.study.table import Table

WORKLOADS_SHOWN = 20
PAIRS_SHOWN = 50
ROWS_WANTED = 200  # below it a betting bound certifies next to nothing (two models, 2 points)
LENGTHS_WANTED, LENGTH_TOLD = 30, 0.2  # replies, and a correlation, from which a length bias is worth a note


class ModelHolding(msgspec.Struct, frozen=True, kw_only=True):
    """One model's outcomes in the files; shares are of its rows."""

    model: str
    rows: int
    labelled: int  # with a quality
    quality: float | None  # mean of those
    cost_share: float
    tokens_share: float
    latency_share: float
    odds_share: float
    answers_share: float


class PairHolding(msgspec.Struct, frozen=True):
    """Kept prompts on which both models have a quality."""

    one: str
    other: str
    rows: int


class SourceHolding(msgspec.Struct, frozen=True):
    """Labels of one source; `length_correlation`: Pearson's, of score and output tokens within each model."""

    source: str
    labels: int
    weight: float
    score: float  # mean
    length_correlation: float | None = None
    length_rows: int = 0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Counts are of the files; `kept`, `pairs`, `workloads` and the shares of the table in memory."""

    files: tuple[str, ...]
    prompts: int
    outcomes: int
    kept: int
    hash: str
    models: tuple[ModelHolding, ...]
    pairs: tuple[PairHolding, ...]
    sources: tuple[SourceHolding, ...]
    workloads: tuple[tuple[str, int], ...]  # the largest
    workload_count: int
    text_share: float
    workload_share: float
    repeated: int  # prompts that say what another one says: they stay on one side of every split
    stray_outcomes: int  # their prompt is not there
    stray_prompts: int  # no outcome is there
    from_s: int
    to_s: int
    notes: tuple[str, ...]


def report_of(data: Opened, table: Table) -> Report:
    """Of files that are open and the table made from them."""
    prompts, outcomes = (data.count(f"SELECT count(*) FROM {each}") for each in ("prompts", "outcomes"))
    strays = [
        data.count(f"SELECT count(*) FROM {one} ANTI JOIN {other} USING (pair, prompt_id)")
        for one, other in (("outcomes", "prompts"), ("prompts", "outcomes"))
    ]
    names, counts = np.unique(np.array(table.workloads, dtype=object).astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:WORKLOADS_SHOWN]
    known = table.at_s[table.at_s > 0]
    kept = len(table.ids)
    report = Report(
        files=tuple(path.name for pair in data.pairs for _, path in pair.files()),
        prompts=prompts,
        outcomes=outcomes,
        kept=kept,
        hash=table.hash,
        models=_models(data),
        pairs=_pairs(table),
        sources=_sources(data),
        workloads=tuple((str(names[i]), int(counts[i])) for i in order),
        workload_count=sum(map(bool, set(table.workloads))),
        text_share=sum(text is not None for text in table.texts) / kept,
        workload_share=sum(map(bool, table.workloads)) / kept,
        repeated=kept - int(np.unique(table.groups).size),
        stray_outcomes=strays[0],
        stray_prompts=strays[1],
        from_s=int(known.min()) if known.size else 0,
        to_s=int(known.max()) if known.size else 0,
        notes=(),
    )
    return msgspec.structs.replace(report, notes=(*data.notes, *_missing(report, table)))


def _models(data: Opened) -> tuple[ModelHolding, ...]:
    shares = ("cost_usd", "output_tokens", "latency_s", "odds", "coalesce(pred, tools_json)")
    asked = ", ".join(f"count({each}) / count(*)" for each in shares)
    rows = data.database.execute(
        f"SELECT model, count(*), count(quality), avg(quality), {asked} FROM outcomes GROUP BY model ORDER BY model"
    ).fetchall()
    return tuple(
        ModelHolding(
            model=model,
            rows=rows,
            labelled=labelled,
            quality=quality,
            cost_share=cost,
            tokens_share=tokens,
            latency_share=latency,
            odds_share=odds,
            answers_share=answers,
        )
        for model, rows, labelled, quality, cost, tokens, latency, odds, answers in rows
    )


def _pairs(table: Table) -> tuple[PairHolding, ...]:
    """The richest first."""
    known = (~np.isnan(table.quality)).astype(np.float32)
    both = (known.T @ known).astype(np.int64)
    found = [
        PairHolding(table.models[i], table.models[j], int(both[i, j]))
        for i in range(len(table.models))
        for j in range(i + 1, len(table.models))
    ]
    return tuple(sorted(found, key=lambda each: -each.rows)[:PAIRS_SHOWN])


def _sources(data: Opened) -> tuple[SourceHolding, ...]:
    """Correlation within a model: of what remains when each model's own means are taken away, so that a model that is
    both better and wordier does not look like a bias."""
    rows = data.database.execute(
        """
        WITH known AS (
            SELECT l.source, l.score, coalesce(l.weight, 1.0) AS weight, o.output_tokens AS length,
                   avg(l.score) FILTER (o.output_tokens IS NOT NULL) OVER (PARTITION BY l.source, l.model)
                       AS score_mean,
                   avg(o.output_tokens) OVER (PARTITION BY l.source, l.model) AS length_mean
            FROM labels AS l LEFT JOIN outcomes AS o USING (pair, prompt_id, model) WHERE l.score IS NOT NULL
        )
        SELECT source, count(*), sum(weight), avg(score), corr(score - score_mean, length - length_mean), count(length)
        FROM known GROUP BY source ORDER BY count(*) DESC, source
        """
    ).fetchall()
    return tuple(
        SourceHolding(source, many, weight, score, None if bias is None or bias != bias else bias, lengths)
        for source, many, weight, score, bias, lengths in rows
    )


def _missing(report: Report, table: Table) -> list[str]:
    """What is missing, and what that means for learning."""
    notes = []
    if report.kept < report.prompts - report.stray_prompts:
        notes.append(
            f"{report.kept:,} of {report.prompts:,} prompts are kept for training: those with a text (or features) and "
            "a labelled outcome, and of too many a sample, chosen by a hash of their ids"
        )
    if report.stray_outcomes:
        notes.append(f"{report.stray_outcomes:,} outcomes are left out: their prompt is not there")
    if report.stray_prompts:
        notes.append(f"{report.stray_prompts:,} prompts are left out: no outcome of theirs is there")
    if len(table.models) < 2:
        notes.append("there is one model only: nothing can be said of a gain over it")
    elif not any(pair.rows for pair in report.pairs):
        notes.append("no prompt was answered by two models: a gain can only be guessed; shadow a share of the traffic")
    known = table.quality[~np.isnan(table.quality)]
    if known.size and known.min() == known.max():
        notes.append(f"every quality is {known[0]:g}: there is nothing to tell apart")
    if report.kept < ROWS_WANTED:
        notes.append(f"{report.kept:,} prompts are few: below {ROWS_WANTED} no promise of use can be kept")
    lacking = {"costs": "cost_share", "output tokens": "tokens_share", "latencies": "latency_share"}
    for what, share in lacking.items():
        names = [each.model for each in report.models if getattr(each, share) < 1.0]
        if names:
            notes.append(f"{what} are missing, in part or all, for {_few(names)}")
    unlabelled = [each.model for each in report.models if not each.labelled]
    if unlabelled:
        notes.append(f"left out, for no outcome of theirs has a quality: {_few(unlabelled)}")
    partly = {each.model: each.rows - each.labelled for each in report.models if 0 < each.labelled < each.rows}
    if partly:
        counts = [f"{many:,} of {model}" for model, many in partly.items()]
        notes.append(f"outcomes without a quality say nothing of how good their model is: {_few(counts)}")
    if report.repeated:
        notes.append(f"{report.repeated:,} prompts repeat another one; they are never split between training and test")
    if report.text_share < 1.0:
        notes.append(f"{1 - report.text_share:.0%} of the prompts have no text; their features were kept")
    if report.workload_share < 1.0:
        notes.append(f"{1 - report.workload_share:.0%} of the prompts name no workload")
    notes += [
        f"scores of {each.source} go with the reply's length (r = {each.length_correlation:+.2f}): a bias"
        for each in report.sources
        if each.length_correlation is not None
        and each.length_rows >= LENGTHS_WANTED
        and abs(each.length_correlation) > LENGTH_TOLD
    ]
    return notes


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
