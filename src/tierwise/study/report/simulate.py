"""A policy as it stands, played over an outcome table beside what the same money would have bought otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from tierwise.core.policy import Best
from tierwise.core.snapshot import Snapshot
from tierwise.study import yardsticks as ys
from tierwise.study.data.whole import complete
from tierwise.study.judging.play import NOT_KNOWN, columns, play
from tierwise.study.judging.ways import keyword_points
from tierwise.study.report.page import table as drawn
from tierwise.study.table import Table


class Beside(msgspec.Struct, frozen=True):
    """A baseline: what it is worth and what it costs a request. Of those that can be had at any cost, at the policy's
    own; None where the policy spends less than they need."""

    quality: float | None
    cost_usd: float


class Simulated(msgspec.Struct, frozen=True, kw_only=True):
    """Means over prompts; their errors are standard errors over prompts, for nothing was trained."""

    policy: str
    snapshot: str
    n: int
    left_out: int  # prompts without an outcome of every model
    absent: tuple[str, ...]  # models of the table that the catalogue does not have
    quality: ys.Mean
    cost_usd: ys.Mean
    calls: ys.Mean
    latency_ms: ys.Mean
    unpromised: tuple[str, ...]  # promises of the policy's plans that serve nothing, for they were not promoted
    served: dict[str, float]  # share of the requests, by model; "" for none
    refused: tuple[tuple[str, int], ...]
    baselines: dict[str, Beside]


def simulate(snapshot: Snapshot, table: Table, *, policy: str = "default", seed: int = 0) -> Simulated:
    """Play it over every prompt that all models of the catalogue and the table have answered. The baselines know those
    models alone, and are read off these very prompts, which flatters them. Raises ValueError when they have none."""
    known = columns(snapshot.catalogue, table.models)
    if not known:
        raise ValueError(NOT_KNOWN.format(", ".join(table.models[:5])))
    kept = table.only([table.models[i] for i in sorted(set(known.values()))])
    whole = complete(kept)
    if not whole.ids:
        raise ValueError("no prompt has an outcome and a cost of each of these models: " + ", ".join(kept.models))
    found = play(snapshot, whole, policy=policy, seed=seed)
    between = ys.span(whole.quality, whole.cost_usd)
    cost = float(found.cost_usd.mean())
    curves = {
        "zero": ys.zero(whole.quality, whole.cost_usd),
        "random": ys.mix(between),
        "keywords": keyword_points(whole, whole).curve,
        "oracle": ys.oracle(whole.quality, whole.cost_usd),
    }
    singles = {"best model": between.best, "cheapest model": between.cheapest}
    served = np.unique(found.model, return_counts=True)
    return Simulated(
        policy=policy,
        snapshot=snapshot.hash,
        n=len(whole.ids),
        left_out=len(table.ids) - len(whole.ids),
        absent=tuple(name for name in table.models if name not in kept.models),
        quality=ys.mean_of(found.quality.tolist()),
        cost_usd=ys.mean_of(found.cost_usd.tolist()),
        calls=ys.mean_of(found.asked.astype(np.float64).tolist()),
        latency_ms=ys.mean_of(found.latency_ms.tolist()),
        unpromised=tuple(
            sorted(
                {
                    plan.promise
                    for plan in snapshot.policies[policy].plans.values()
                    if isinstance(plan, Best) and plan.promise and plan.promise not in snapshot.promises
                }
            )
        ),
        served={
            (whole.models[at] if at >= 0 else ""): int(count) / len(whole.ids)
            for at, count in zip(*served, strict=True)
        },
        refused=found.refused,
        baselines={
            **{
                name: Beside(float(whole.quality[:, at].mean()), float(whole.cost_usd[:, at].mean()))
                for name, at in singles.items()
            },
            **{f"{name} at this cost": Beside(_at(curve, cost), cost) for name, curve in curves.items()},
        },
    )


def _at(curve: ys.Curve, cost: float) -> float | None:
    found = float(curve.at(cost))
    return found if np.isfinite(found) else None


def lines(found: Simulated) -> Iterator[str]:
    """For a person, in Markdown."""
    yield f"Policy {found.policy}, snapshot {found.snapshot}, {found.n:,} prompts"
    if found.left_out:
        yield f"{found.left_out:,} prompts are left out: not every model has an outcome and a cost for them."
    if found.absent:
        yield "Not in the catalogue, so never asked: " + ", ".join(found.absent)
    for name in found.unpromised:
        yield f"Promise {name} is not promoted, so nothing is saved on it: its reference answers."
    rows = [["this policy", _figure(found.quality, 1, 4), _figure(found.cost_usd, 1e3, 4)]]
    for name, each in found.baselines.items():
        quality = "costs more" if each.quality is None else f"{each.quality:.4f}"
        rows.append([name, quality, f"{1e3 * each.cost_usd:.4f}"])
    yield drawn(["", "quality", "USD a thousand requests"], rows)
    yield f"{_figure(found.calls, 1, 2)} calls a request, {_figure(found.latency_ms, 1, 0)} ms of models' time"
    shares = sorted(found.served.items(), key=lambda each: -each[1])
    yield drawn(["answered by", "%"], [[name or "nobody", f"{100 * share:.1f}"] for name, share in shares])
    for code, count in found.refused:
        yield f"Refused, {code}: {count:,}"


def _figure(mean: ys.Mean, scale: float, digits: int) -> str:
    error = "" if mean.error is None else f" ± {scale * mean.error:.{digits}f}"
    return f"{scale * mean.mean:.{digits}f}{error}"
