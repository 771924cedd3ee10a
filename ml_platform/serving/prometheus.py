"""Metrics of a host's server in Prometheus's text format.

Labels have few values: versions, roles, status codes and fixed reasons.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from ml_platform.records.traffic import LATENCY_BUCKETS
from ml_platform.serving.counters import Counts, VersionCounts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "ml_platform_serving"
# Bounds the number of time series of a server that runs for months: only the newest versions are exported.
MAX_VERSIONS = 20

# The values of a metric's labels without that of `model`, and its number.
Sample = tuple[list[str], float]


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """The state and the counters of a server at one moment.

    `loaded` has the versions' digests; `refused` has the reasons why versions were not loaded.
    """

    model: str
    counts: Counts
    loaded: Mapping[int, str] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)
    plan: int = 0
    workers: int = 0
    restarts: int = 0
    killed: int = 0
    stale: bool = False


class _Collector:
    def __init__(self, facts: ServerFacts) -> None:
        self.facts = facts

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the server, as prometheus_client calls its collectors for each scrape."""
        counts = self.facts.counts
        versions = dict(sorted(counts.by_version().items())[-MAX_VERSIONS:])
        answers = [(name.split("/"), number) for name, number in sorted(counts.answers.items())]
        fallbacks = [(name.split("/"), number) for name, number in sorted(counts.fallbacks.items())]
        yield self._counter(
            "requests",
            "Responses; version 0 if no version made the response.",
            [(labels, number) for labels, number in answers if int(labels[0]) in {0, *versions}],
            ["version", "role", "status"],
        )
        yield self._counter(
            "http_responses",
            "Responses of the public port; route none for an unknown path.",
            [(name.rsplit(" ", 1), number) for name, number in sorted(counts.routes.items())],
            ["route", "status"],
        )
        yield self._histogram(versions)
        records = [([str(version)], one.records) for version, one in versions.items()]
        failures = [([str(version)], one.failures) for version, one in versions.items()]
        yield self._counter("records", "Records sent to a version for prediction.", records, ["version"])
        yield self._counter("failures", "Records for which a version's prediction failed.", failures, ["version"])
        yield self._counter(
            "fallbacks",
            "Responses of the stable version in place of a successor's.",
            [(labels, number) for labels, number in fallbacks if int(labels[0]) in versions],
            ["version", "why"],
        )
        yield from self.read_process_metrics()
        loaded = [([str(version), digest], 1) for version, digest in sorted(self.facts.loaded.items())]
        refused = [([str(version)], 1) for version in sorted(self.facts.refused)]
        queued = [([str(version)], number) for version, number in sorted(counts.queued.items())]
        yield self._gauge("loaded", "1 for each loaded version.", loaded, ["version", "digest"])
        yield self._gauge("refused", "1 for each version that could not be loaded.", refused, ["version"])
        yield self._gauge("queue_depth", "Records in a version's queue.", queued, ["version"])
        dropped = [([reason], number) for reason, number in sorted(counts.log_dropped.items())]
        yield self._counter("log_dropped", "Predictions missing from the log.", dropped, ["reason"])

    def read_process_metrics(self) -> Iterator[Metric]:
        """Yield the figures of the server as a whole: its workers, prediction log and versions."""
        facts, counts = self.facts, self.facts.counts
        for name, text, value in (
            ("workers", "Running workers of this host.", facts.workers),
            ("stale", "1 while the served version may be out of date.", int(facts.stale)),
            ("plan", "Sequence of the traffic plan; 0 while the ledger does not contain a rollback yet.", facts.plan),
            ("log_queue_depth", "Predictions in the queue of the log.", counts.log_queued),
        ):
            yield self._gauge(name, text, [([], value)])
        for name, text, value in (
            ("worker_restarts", "Restarts of workers that ended unexpectedly.", facts.restarts),
            ("workers_killed", "Workers that were killed because they gave no sign of life.", facts.killed),
            ("shadow_dropped", "Shadow requests dropped because the shadow's queue was full.", counts.shadow_dropped),
            ("log_written", "Predictions written to the log.", counts.log_written),
        ):
            yield self._counter(name, text, [([], value)])

    def _counter(self, name: str, text: str, samples: Iterable[Sample], labels: Iterable[str] = ()) -> Metric:
        family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=["model", *labels])
        for values, number in samples:
            family.add_metric([self.facts.model, *values], number)
        return family

    def _gauge(self, name: str, text: str, samples: Iterable[Sample], labels: Iterable[str] = ()) -> Metric:
        family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=["model", *labels])
        for values, number in samples:
            family.add_metric([self.facts.model, *values], number)
        return family

    def _histogram(self, versions: Mapping[int, VersionCounts]) -> Metric:
        family = HistogramMetricFamily(
            f"{PREFIX}_prediction_seconds", "Duration of a request's prediction.", labels=["model", "version"]
        )
        for version, counts in versions.items():
            buckets, cumulative = [], 0
            for end, number in zip([*map(str, LATENCY_BUCKETS), "+Inf"], counts.request_seconds, strict=True):
                cumulative += number
                buckets.append((end, float(cumulative)))
            family.add_metric([self.facts.model, str(version)], buckets, sum_value=counts.seconds)
        return family


def exposition(facts: ServerFacts) -> bytes:
    """Return a server's metrics in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(facts))
    return generate_latest(registry)
