"""What a host's server counted, as Prometheus reads it; labels are versions, slots, status codes and fixed reasons."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from ml_platform.serving.counts import ArmCounts, Counts
from ml_platform.traffic import LATENCY_BUCKETS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "ml_platform_serving"
# A label's values stay few, however long a server runs: of more versions the newest are shown.
MOST_VERSIONS = 20


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """What a server is at one moment, beside what it counted.

    `loaded` are digests by version; `refused` why versions were not loaded.
    """

    model: str
    counts: Counts
    loaded: Mapping[int, str] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)
    plan: int = 0
    workers: int = 0
    restarts: int = 0
    stale: bool = False


class _Collector:
    def __init__(self, facts: ServerFacts) -> None:
        self.facts = facts

    def collect(self) -> Iterator[Metric]:
        facts, counts = self.facts, self.facts.counts
        arms = dict(sorted(counts.by_version().items())[-MOST_VERSIONS:])
        yield _requests(facts.model, counts, set(arms))
        yield _latencies(facts.model, arms)
        yield _by_version("records", "Records that a version was asked for.", facts.model, arms, "records")
        yield _by_version("failures", "Records that a version did not answer.", facts.model, arms, "failures")
        yield _fallbacks(facts.model, counts, set(arms))
        yield from _process(facts)
        yield from _versions(facts)
        yield _log_dropped(facts.model, counts)


def _requests(model: str, counts: Counts, shown: set[int]) -> Metric:
    family = CounterMetricFamily(
        f"{PREFIX}_requests",
        "Answered requests; version 0 where none answered.",
        labels=["model", "version", "slot", "status"],
    )
    for name, number in sorted(counts.answers.items()):
        version, slot, status = name.split("/")
        if int(version) in shown | {0}:
            family.add_metric([model, version, slot, status], number)
    return family


def _latencies(model: str, arms: Mapping[int, ArmCounts]) -> Metric:
    family = HistogramMetricFamily(
        f"{PREFIX}_prediction_seconds", "Time of a request's predictions in the server.", labels=["model", "version"]
    )
    for version, arm in arms.items():
        buckets, so_far = [], 0
        for end, number in zip([*map(str, LATENCY_BUCKETS), "+Inf"], arm.request_seconds, strict=True):
            so_far += number
            buckets.append((end, float(so_far)))
        family.add_metric([model, str(version)], buckets, sum_value=arm.seconds)
    return family


def _by_version(name: str, says: str, model: str, arms: Mapping[int, ArmCounts], attribute: str) -> Metric:
    family = CounterMetricFamily(f"{PREFIX}_{name}", says, labels=["model", "version"])
    for version, arm in arms.items():
        family.add_metric([model, str(version)], getattr(arm, attribute))
    return family


def _fallbacks(model: str, counts: Counts, shown: set[int]) -> Metric:
    family = CounterMetricFamily(
        f"{PREFIX}_fallbacks",
        "Requests that the stable version answered in a successor's place.",
        labels=["model", "version", "why"],
    )
    for name, number in sorted(counts.fallbacks.items()):
        version, why = name.split("/")
        if int(version) in shown:
            family.add_metric([model, version, why], number)
    return family


def _process(facts: ServerFacts) -> Iterator[Metric]:
    counts = facts.counts
    for name, says, value in (
        ("workers", "Living workers of this host.", facts.workers),
        ("stale", "1 while what is served may be out of date.", int(facts.stale)),
        ("plan", "Sequence of the traffic plan that is obeyed; 0 while a rollback is on its way to it.", facts.plan),
        ("log_queue_depth", "Predictions that wait to be written.", counts.log_queued),
    ):
        gauge = GaugeMetricFamily(f"{PREFIX}_{name}", says, labels=["model"])
        gauge.add_metric([facts.model], value)
        yield gauge
    for name, says, value in (
        ("worker_restarts", "Workers that died and were started again.", facts.restarts),
        ("shadow_dropped", "Shadow requests that were dropped because too many waited.", counts.shadow_dropped),
        ("log_written", "Predictions that were written to the log.", counts.log_written),
    ):
        family = CounterMetricFamily(f"{PREFIX}_{name}", says, labels=["model"])
        family.add_metric([facts.model], value)
        yield family


def _versions(facts: ServerFacts) -> Iterator[Metric]:
    loaded = GaugeMetricFamily(f"{PREFIX}_loaded", "1 for every loaded version.", labels=["model", "version", "digest"])
    for version, digest in sorted(facts.loaded.items()):
        loaded.add_metric([facts.model, str(version), digest], 1)
    yield loaded
    refused = GaugeMetricFamily(
        f"{PREFIX}_refused", "1 for every version that was not loaded.", labels=["model", "version"]
    )
    for version in sorted(facts.refused):
        refused.add_metric([facts.model, str(version)], 1)
    yield refused
    depth = GaugeMetricFamily(f"{PREFIX}_queue_depth", "Records that wait for a version.", labels=["model", "version"])
    for version, number in sorted(facts.counts.queued.items()):
        depth.add_metric([facts.model, str(version)], number)
    yield depth


def _log_dropped(model: str, counts: Counts) -> Metric:
    family = CounterMetricFamily(
        f"{PREFIX}_log_dropped", "Predictions that the log did not take.", labels=["model", "reason"]
    )
    for reason, number in sorted(counts.log_dropped.items()):
        family.add_metric([model, reason], number)
    return family


def exposition(facts: ServerFacts) -> bytes:
    """Return the text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(facts))
    return generate_latest(registry)
