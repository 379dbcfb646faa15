"""A fit that does not believe everybody: once on all labels, and where some keys' do not fit, again without them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tierwise.study.fit import Fitted, Progress, fit
from tierwise.study.settings import Settings
from tierwise.study.table import Table
from tierwise.study.trust import Labels, Suspect, suspects, without


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
    found = suspects(table, labels, first.expected) if labels.keyed and first.expected is not None else ()
    if not found:
        return first
    sentences = told(found)
    for each in sentences:
        if progress:
            progress(each)
    # The settings, which take most of the time to choose, hardly depend on a few labels.
    rest = without(table, labels, {each.key for each in found})
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
