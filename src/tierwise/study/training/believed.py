"""A fit that does not believe everybody alike: once on all labels, and again with each key believed by how well what it
says fits, those not at all that lie for sure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from tierwise.study.data.trust import Labels, Suspect, reweighed, suspects, trusts
from tierwise.study.table import Floats, Table
from tierwise.study.training.fit import Fitted, Progress, fit
from tierwise.study.training.settings import Settings

HARDLY = 0.5  # believed by less than this, a key is named


def fit_believed(
    table: Table,
    labels: Labels,
    *,
    reference: str | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """As `fit`; the report names in `suspects` and says in `warnings` whose labels were left out. What a key said is
    held against predictions for replies that were left out of the fit. Raises FitError, also when too little is left
    without those labels: then somebody has to say whom to believe."""
    first = fit(table, reference=reference, seed=seed, settings=settings, progress=progress)
    if not labels.keyed or first.expected is None:
        return first
    found = suspects(table, labels, first.expected)
    factors = trusts(table, labels, first.expected, table.column(first.report.reference))
    factors[np.isin(labels.keys, [each.key for each in found])] = 0.0
    if (factors == 1.0).all():
        return first
    sentences = (*told(found), *hardly(labels.keys, factors))
    for each in sentences:
        if progress:
            progress(each)
    # The settings, which take most of the time to choose, hardly depend on a few labels.
    rest = reweighed(table, labels, factors)
    again = fit(rest, reference=reference, seed=seed, settings=first.report.settings, progress=progress)
    report = msgspec.structs.replace(again.report, suspects=found, warnings=(*sentences, *again.report.warnings))
    return msgspec.structs.replace(again, report=report)


def told(found: Sequence[Suspect]) -> tuple[str, ...]:
    """A sentence for each key."""
    by_key: dict[str, list[Suspect]] = {}
    for each in found:
        by_key.setdefault(each.key, []).append(each)
    return tuple(
        f"labels of key {key!r} were left out: "
        + "; ".join(
            f"of {each.n} replies of {each.model} it said {each.said:.2f} on average, where {each.expected:.2f} was "
            "expected"
            for each in some
        )
        for key, some in by_key.items()
    )


def hardly(keys: Sequence[str], factors: Floats) -> tuple[str, ...]:
    """A sentence for each key that is believed by less than HARDLY and was not left out."""
    return tuple(
        f"key {key!r} is believed by {factor:.0%}: what it says of replies is further from what was expected than "
        "chance and the habits of the other keys explain"
        for key, factor in zip(keys, factors.tolist(), strict=True)
        if 0.0 < factor < HARDLY
    )
