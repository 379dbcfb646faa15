"""What a calibration needs, from files: outcomes by whom one believes, an estimator, and what it was trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec
import numpy as np

from tierwise.core.learned import Trained
from tierwise.core.promise import Judges
from tierwise.study.data import labels as kinds
from tierwise.study.data.outcomes import Judged, load, load_judged
from tierwise.study.data.trust import Labels, without
from tierwise.study.promises.calibrate import CHOOSING
from tierwise.study.table import Ints, Table, split
from tierwise.study.training.artefact import load as artefact
from tierwise.study.training.artefact import read_manifest, save
from tierwise.study.training.believed import fit_believed
from tierwise.study.training.fit import FitError


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    table: Table  # without what `left_out` said
    trained: Trained
    seen: Ints  # groups that it was trained on
    judges: tuple[Judges, ...]
    left_out: tuple[str, ...]  # keys


def prepared(
    data: Sequence[Path],
    reference: str,
    artefacts: Path,
    estimator: str | None = None,
    trained_on: Sequence[Path] | None = None,
    *,
    seed: int = 0,
) -> Prepared:
    """Without the id of an estimator that is there, one is fitted on the choosing part and saved among the artefacts.
    Raises ValueError, DataError, ArtefactError and FitError, each with a sentence.

    The keys that the fit left out, because what they said did not fit what all others say, certify nothing either. One
    that it only believed less counts here as it stands: what certifies may not be weighed by how well it fits what an
    estimator expects, for whether that is right is the question."""
    judged = load_judged(data)
    if estimator is None:
        if trained_on:
            raise ValueError(
                "--trained-on says what an estimator was fitted on: name it with --estimator, or leave it out"
            )
        rows = np.sort(split(judged.table.groups, CHOOSING, seed)[0])
        part = judged.table.take(rows)
        try:
            fitted = fit_believed(part, _of_rows(judged.labels, rows), reference=reference, seed=seed)
        except FitError as error:
            share = f"{len(part.ids):,} of {len(judged.table.ids):,} prompts, a quarter, are to fit an estimator on"
            raise FitError(f"{share}, and there {error}") from None
        save(fitted, artefacts)
        trained, seen, suspects = fitted.trained, part.groups, fitted.report.suspects
    else:
        if not trained_on:
            raise ValueError("what the estimator was trained on may not certify it: name those data with --trained-on")
        before, _ = load(trained_on)
        manifest = read_manifest(artefacts, estimator)
        told = manifest.data_hash
        if told != before.hash:
            raise ValueError(
                f"estimator {estimator} was not fitted on these data: theirs is {before.hash}, its is {told}"
            )
        trained, seen, suspects = artefact(artefacts, estimator), before.groups, manifest.report.suspects
    left_out = {each.key for each in suspects} & set(judged.labels.keys)
    return Prepared(
        table=without(judged.table, judged.labels, left_out) if left_out else judged.table,
        trained=trained,
        seen=seen,
        judges=_judges(judged, left_out),
        left_out=tuple(sorted(left_out)),
    )


def _of_rows(labels: Labels, rows: Ints) -> Labels:
    """Of these rows of the table, ascending, numbered anew."""
    kept = np.isin(labels.row, rows)
    return Labels(
        keys=labels.keys,
        row=np.searchsorted(rows, labels.row[kept]).astype(np.int64),
        column=labels.column[kept],
        key=labels.key[kept],
        score=labels.score[kept],
        weight=labels.weight[kept],
    )


def _judges(judged: Judged, left_out: Collection[str]) -> tuple[Judges, ...]:
    counts: Counter[str] = Counter()
    for source, key, n in judged.counts:
        if not key or key not in left_out:
            counts[source.partition(":")[0]] += n
    return tuple(Judges(kind, n, *kinds.errors(kind)) for kind, n in counts.most_common())
