"""Prometheus text of what the router counted. Read when asked for; nothing on the request path knows Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tierwise.core.money import NANO_PER_USD
from tierwise.routing.router import Router
from tierwise.routing.tally import Histogram

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from tierwise.config.watching import Watching


def render(router: Router, rejected_guesses: int = 0, watching: Watching | None = None) -> tuple[bytes, str]:
    """(body, content type) in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
    from prometheus_client.registry import Collector

    class Now(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from _families(router, rejected_guesses)
            yield from _seen(watching)

    registry = CollectorRegistry()
    registry.register(Now())
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _families(router: Router, rejected_guesses: int) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    tally = router.tally
    requests = CounterMetricFamily(
        "tierwise_requests", "Requests by how they ended.", labels=("policy", "model", "status")
    )
    for labels, sums in tally.sums.items():
        requests.add_metric(labels, sums.requests)
    yield requests
    failures = CounterMetricFamily("tierwise_upstream_failures", "Failed calls.", labels=("model", "kind"))
    for (model, kind), number in tally.failures.items():
        failures.add_metric((model, kind), number)
    yield failures
    for name, text, field, unit in (
        ("tierwise_cost_usd", "What replies cost, failed attempts included.", "cost_nano", NANO_PER_USD),
        ("tierwise_baseline_usd", "What the same tokens cost on the baseline model.", "baseline_nano", NANO_PER_USD),
        ("tierwise_input_tokens", "Tokens read.", "input_tokens", 1),
        ("tierwise_output_tokens", "Tokens written.", "output_tokens", 1),
    ):
        of: dict[str, int] = {}  # each model
        for (_, model, _), sums in tally.sums.items():
            of[model] = of.get(model, 0) + getattr(sums, field)
        family = CounterMetricFamily(name, text, labels=("model",))
        for model, number in of.items():
            family.add_metric((model,), number / unit)
        yield family
    yield _histogram("tierwise_request_seconds", "From the request to its end.", tally.latency_ms)
    yield _histogram("tierwise_decision_seconds", "Our own time before the first call.", tally.own_ms)
    yield CounterMetricFamily("tierwise_escalations", "Requests with a second reply.", value=tally.escalations)
    shadows = CounterMetricFamily("tierwise_shadows", "Models asked beside the reply.", labels=("outcome",))
    for outcome, number in tally.shadows.items():
        shadows.add_metric((outcome,), number)
    yield shadows
    yield CounterMetricFamily(
        "tierwise_shadow_cost_usd", "What these cost.", value=tally.shadow_cost_nano / NANO_PER_USD
    )
    yield CounterMetricFamily(
        "tierwise_routing_failures", "Decisions that failed; the reliable model answered.", value=tally.routing_failures
    )
    yield CounterMetricFamily(
        "tierwise_journal_dropped", "Records that could not be kept.", value=router.journal.dropped
    )
    yield CounterMetricFamily(
        "tierwise_rejected_guesses", "Wrong keys after too many from their address.", value=rejected_guesses
    )
    yield GaugeMetricFamily("tierwise_open_holds", "Money set aside right now.", value=router.ledger.open_holds())
    yield GaugeMetricFamily("tierwise_in_flight", "Requests under way.", value=router.in_flight)
    yield GaugeMetricFamily(
        "tierwise_risen_keys",
        "Keys for which money is dearer until their share of dear replies is back.",
        value=len(router.books.shares.risen()),
    )
    yield GaugeMetricFamily(
        "tierwise_resting_models", "Models that rest after failures.", value=len(router.health.resting())
    )
    info = GaugeMetricFamily("tierwise_snapshot_info", "The snapshot that serves.", labels=("hash",))
    info.add_metric((router.snapshot.hash,), 1)
    yield info
    promises = GaugeMetricFamily(
        "tierwise_promise", "Promises by workload and how they stand.", labels=("promise", "workload", "status")
    )
    for promise in router.snapshot.promises.values():
        for segment in promise.segments:
            promises.add_metric((promise.name, segment.workload, segment.status), 1)
    yield promises


def _seen(watching: Watching | None) -> Iterator[Metric]:
    """No key is named here, for whoever has one may read this: `tierwise drift` names them."""
    from prometheus_client.core import GaugeMetricFamily

    seen = watching.seen if watching else None
    drifts = GaugeMetricFamily(
        "tierwise_drift",
        "Population stability index of today's requests against training.",
        labels=("workload", "feature", "drifted"),
    )
    for each in seen.drifting.found if seen else ():
        drifts.add_metric((each.workload, each.feature, "true" if each.drifted else "false"), each.index)
    yield drifts
    count = len(seen.skewing.found) if seen else 0
    yield GaugeMetricFamily(
        "tierwise_skewed_keys", "Keys whose requests go to dear models more than they used to.", value=count
    )


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(name, text)
    total = 0
    buckets = []
    for bound, number in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += number
        buckets.append(("+Inf" if bound == float("inf") else str(bound / 1_000), total))
    family.add_metric((), buckets, histogram.sum / 1_000)
    return family
