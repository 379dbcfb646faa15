"""Counters of what was answered, spent and saved. Plain numbers: whoever publishes them reads them."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict

from tierwise.core.episode import FailureKind, Replied
from tierwise.core.ports import Record

LATENCY_MS = (50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000)
OWN_MS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0)


class Histogram:
    """Counts per bucket, cumulative only when they are read. The last bucket is everything above."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Sums:
    """Of what requests of one kind came to."""

    requests = 0
    cost_nano = 0
    baseline_nano = 0
    input_tokens = 0
    output_tokens = 0


class Tally:
    """Labels are names from the configuration only, so their number is bounded."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str, str], Sums] = defaultdict(Sums)  # policy, model, status
        self.failures: dict[tuple[str, str], int] = defaultdict(int)  # model, kind
        self.latency_ms = Histogram(LATENCY_MS)
        self.own_ms = Histogram(OWN_MS)
        self.escalations = 0
        self.routing_failures = 0
        self.overages = 0  # calls that were billed above what was held for them
        self.overage_nano = 0
        self.shadows: dict[str, int] = defaultdict(int)  # what became of them
        self.shadow_cost_nano = 0

    def count(self, record: Record) -> None:
        outcome, episode = record.outcome, record.episode
        if outcome.status == "dry_run":
            return
        sums, usage = self.sums[episode.policy, outcome.routed, outcome.status], outcome.usage
        sums.requests += 1
        sums.cost_nano += outcome.cost_nano or 0
        sums.baseline_nano += outcome.baseline_nano or 0
        sums.input_tokens += usage.prompt_tokens
        sums.output_tokens += usage.completion_tokens
        self.latency_ms.add(outcome.latency_ms)
        self.own_ms.add(outcome.own_ms)
        events = episode.events
        if len(events) > 1 and sum(isinstance(event, Replied) for event in events) > 1:
            self.escalations += 1

    def failed(self, model: str, kind: FailureKind) -> None:
        self.failures[model, kind] += 1
