"""Counters of the server's processes, summed over a host's workers for Prometheus and for the rollout.

Both read the same counters, so the rollout decides on the numbers that users see.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ml_platform.records.traffic import LATENCY_BUCKETS, UNIT_CELLS, TrafficStats, pack_cells

BUCKETS = len(LATENCY_BUCKETS) + 1
# Bounds the counters of a server that runs for months: older plans are counted together.
MAX_PLANS = 50
EARLIER = -1
# Older plans are not judged any more: their units are forgotten.
PLANS_WITH_UNITS = 2


def _no_latencies() -> list[int]:
    return [0] * BUCKETS


class VersionCounts(msgspec.Struct):
    """Counters of one version under one plan; see `TrafficStats`.

    `seen` and `failed` have one bit for each cell; they are empty before the first unit.
    `request_seconds` counts requests, not records, in buckets of their duration; `seconds` is the sum of the durations.
    """

    requests: int = 0
    records: int = 0
    failures: int = 0
    latencies: list[int] = msgspec.field(default_factory=_no_latencies)
    scores: list[float] = msgspec.field(default_factory=list)
    seen: bytearray = msgspec.field(default_factory=bytearray)
    failed: bytearray = msgspec.field(default_factory=bytearray)
    request_seconds: list[int] = msgspec.field(default_factory=_no_latencies)
    seconds: float = 0.0

    def count_prediction(self, records: int, seconds: float, *, failed: bool) -> None:
        """Count a call of the version with some records, its duration in seconds, and whether it failed."""
        bucket = bisect_left(LATENCY_BUCKETS, seconds)
        self.records += records
        self.failures += records if failed else 0
        self.request_seconds[bucket] += 1
        self.seconds += seconds

    def count_unit(self, cell: int, seconds: float, *, failed: bool) -> bool:
        """Count the first request of a unit, with its duration; return False if the cell has a unit already."""
        if not self.seen:
            self.seen, self.failed = bytearray(UNIT_CELLS // 8), bytearray(UNIT_CELLS // 8)
        byte, bit = cell >> 3, 1 << (cell & 7)
        if self.seen[byte] & bit:
            return False
        self.seen[byte] |= bit
        self.failed[byte] |= bit if failed else 0
        self.latencies[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        return True

    def count_scores(self, buckets: Sequence[int], bucket_count: int) -> None:
        """Count a unit's scores by the index of their bucket, of `bucket_count` buckets; their weights sum to 1."""
        if len(self.scores) < bucket_count:
            self.scores += [0] * (bucket_count - len(self.scores))
        for bucket in buckets:
            self.scores[bucket] += 1 / len(buckets)

    def add(self, other: "VersionCounts") -> None:
        """Add the counters of another process or plan."""
        self.requests += other.requests
        self.records += other.records
        self.failures += other.failures
        self.seconds += other.seconds
        self.latencies = _sum_lists(self.latencies, other.latencies)
        self.scores = _sum_lists(self.scores, other.scores)
        self.request_seconds = _sum_lists(self.request_seconds, other.request_seconds)
        if other.seen:
            ours, theirs = int.from_bytes(self.seen, "little"), int.from_bytes(other.seen, "little")
            # A unit that both have seen counts with our outcome: the choice does not depend on the outcomes.
            news = int.from_bytes(other.failed, "little") & ~ours
            self.seen = bytearray((ours | theirs).to_bytes(len(other.seen), "little"))
            failed = int.from_bytes(self.failed, "little") | news
            self.failed = bytearray(failed.to_bytes(len(other.failed), "little"))


def _sum_lists(one: Sequence[float], other: Sequence[float]) -> list[Any]:
    rest = [*one[len(other) :], *other[len(one) :]]
    return [*(a + b for a, b in zip(one, other, strict=False)), *rest]


class Counts(msgspec.Struct):
    """All counters of one process since its start, or the sums over several processes.

    Parameters
    ----------
    arms : dict of int to dict of int to VersionCounts
        By plan and version; plans before the last `MAX_PLANS` are summed under `EARLIER`.
    answers : dict of str to int
        Responses by ``version/role/status``; version 0 if no version made the response.
    routes : dict of str to int
        Responses of the public port by ``route status``; the route is its template, ``none`` for an unknown path.
    fallbacks : dict of str to int
        Responses of the stable version in place of a successor's, by ``version/why``.
    shadow_dropped, log_written, log_queued : int
    log_dropped : dict of str to int
        By reason.
    queued : dict of int to int
        Records in the queue at this moment, by version.
    """

    arms: dict[int, dict[int, VersionCounts]] = msgspec.field(default_factory=dict)
    answers: dict[str, int] = msgspec.field(default_factory=dict)
    routes: dict[str, int] = msgspec.field(default_factory=dict)
    fallbacks: dict[str, int] = msgspec.field(default_factory=dict)
    shadow_dropped: int = 0
    log_written: int = 0
    log_queued: int = 0
    log_dropped: dict[str, int] = msgspec.field(default_factory=dict)
    queued: dict[int, int] = msgspec.field(default_factory=dict)

    def version_counts(self, plan: int, version: int) -> VersionCounts:
        """Return the counters of a version under a plan; they are created at the first call."""
        versions = self.arms.get(plan)
        if versions is None:
            versions = self.arms[plan] = {}
            plans = sorted(plan for plan in self.arms if plan != EARLIER)
            for old_plan in plans[:-MAX_PLANS]:
                for old_version, old_counts in self.arms.pop(old_plan).items():
                    self.arms.setdefault(EARLIER, {}).setdefault(old_version, VersionCounts()).add(old_counts)
            for old_plan in plans[:-PLANS_WITH_UNITS]:
                for old_counts in self.arms.get(old_plan, {}).values():
                    old_counts.seen, old_counts.failed = bytearray(), bytearray()
        counts = versions.get(version)
        if counts is None:
            counts = versions[version] = VersionCounts()
        return counts

    def count_response(self, version: int, role: str, status: int) -> None:
        """Count a response."""
        _increase(self.answers, f"{version}/{role}/{status}")

    def count_route(self, route: str, status: int) -> None:
        """Count a response of the public port by its route's template."""
        _increase(self.routes, f"{route} {status}")

    def count_fallback(self, version: int, why: str) -> None:
        """Count a response of the stable version in place of a successor's."""
        _increase(self.fallbacks, f"{version}/{why}")

    def add(self, other: "Counts") -> None:
        """Add the counters of another process."""
        for plan, versions in other.arms.items():
            for version, counts in versions.items():
                self.version_counts(plan, version).add(counts)
        for ours, theirs in (
            (self.answers, other.answers),
            (self.routes, other.routes),
            (self.fallbacks, other.fallbacks),
            (self.log_dropped, other.log_dropped),
        ):
            for name, number in theirs.items():
                _increase(ours, name, number)
        for version, number in other.queued.items():
            self.queued[version] = self.queued.get(version, 0) + number
        self.shadow_dropped += other.shadow_dropped
        self.log_written += other.log_written
        self.log_queued += other.log_queued

    def without_queues(self) -> "Counts":
        """Return a copy for a process that has ended: its queues are empty."""
        return msgspec.structs.replace(self, queued={}, log_queued=0)

    def traffic_stats(self, model: str, server: str, plan: int) -> list[TrafficStats]:
        """Return the counters under a plan as records for the database, one per version."""
        return [
            TrafficStats(
                model=model,
                plan=plan,
                server=server,
                version=version,
                requests=counts.requests,
                records=counts.records,
                failures=counts.failures,
                latencies=counts.latencies,
                scores=[round(weight, 6) for weight in counts.scores],
                seen=pack_cells(bytes(counts.seen)),
                failed=pack_cells(bytes(counts.failed)),
            )
            for version, counts in sorted(self.arms.get(plan, {}).items())
        ]

    def by_version(self) -> dict[int, VersionCounts]:
        """Return each version's counters, summed over all plans."""
        sums: dict[int, VersionCounts] = {}
        for versions in self.arms.values():
            for version, counts in versions.items():
                sums.setdefault(version, VersionCounts()).add(counts)
        return sums


def _increase(numbers: dict[str, int], name: str, number: int = 1) -> None:
    numbers[name] = numbers.get(name, 0) + number


def sum_counts(parts: Iterable[Counts]) -> Counts:
    """Return the sums of several processes' counters."""
    result = Counts()
    for part in parts:
        result.add(part)
    return result
