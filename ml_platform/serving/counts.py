"""What a process of the server counts: plain numbers, added up over the processes of a host, asked for by Prometheus
and by the rollout.

One list of numbers serves both: what the rollout decides on is what people see.
"""  # noqa: D205 - one sentence

from bisect import bisect_left
from collections.abc import Iterable, Sequence

import msgspec

from ml_platform.traffic import LATENCY_BUCKETS, TrafficFigures

BUCKETS = len(LATENCY_BUCKETS) + 1
# Versions are few; of a server that runs for months the oldest are counted together.
MOST_PLANS = 50
EARLIER = -1


def _no_latencies() -> list[int]:
    return [0] * BUCKETS


class ArmCounts(msgspec.Struct):
    """What was counted of one version under one plan; see `TrafficFigures`.

    `request_seconds` counts requests, not records, by the time that they took; `seconds` is the sum of those times.
    """

    requests: int = 0
    records: int = 0
    failures: int = 0
    latencies: list[int] = msgspec.field(default_factory=_no_latencies)
    scores: list[int] = msgspec.field(default_factory=list)
    request_seconds: list[int] = msgspec.field(default_factory=_no_latencies)
    seconds: float = 0.0

    def asked(self, records: int, seconds: float, *, failed: bool) -> None:
        """Count that the version was asked for some records, and whether it failed to answer."""
        bucket = bisect_left(LATENCY_BUCKETS, seconds)
        self.records += records
        self.latencies[bucket] += records
        self.failures += records if failed else 0
        self.request_seconds[bucket] += 1
        self.seconds += seconds

    def scored(self, buckets: Iterable[int], of: int) -> None:
        """Count scores, each by the bucket that it is in, of so many buckets."""
        if len(self.scores) < of:
            self.scores += [0] * (of - len(self.scores))
        for bucket in buckets:
            self.scores[bucket] += 1

    def add(self, other: "ArmCounts") -> None:
        """Add what another process or plan counted."""
        self.requests += other.requests
        self.records += other.records
        self.failures += other.failures
        self.seconds += other.seconds
        self.latencies = _sum(self.latencies, other.latencies)
        self.scores = _sum(self.scores, other.scores)
        self.request_seconds = _sum(self.request_seconds, other.request_seconds)


def _sum(one: Sequence[int], other: Sequence[int]) -> list[int]:
    length = max(len(one), len(other))
    padded = [[*numbers, *[0] * (length - len(numbers))] for numbers in (one, other)]
    return [a + b for a, b in zip(*padded, strict=True)]


class Counts(msgspec.Struct):
    """All that one process counted since it began, or several together.

    Parameters
    ----------
    arms : dict of int to dict of int to ArmCounts
        By plan and version; plans before the last `MOST_PLANS` together, as `EARLIER`.
    answers : dict of str to int
        Answered requests by ``version/slot/status``; version 0 where none answered.
    fallbacks : dict of str to int
        Answers of the stable version in place of a successor's, by ``version/why``.
    shadow_dropped, log_written, log_queued : int
    log_dropped : dict of str to int
        By reason.
    queued : dict of int to int
        Records that wait at this moment, by version.
    """

    arms: dict[int, dict[int, ArmCounts]] = msgspec.field(default_factory=dict)
    answers: dict[str, int] = msgspec.field(default_factory=dict)
    fallbacks: dict[str, int] = msgspec.field(default_factory=dict)
    shadow_dropped: int = 0
    log_written: int = 0
    log_queued: int = 0
    log_dropped: dict[str, int] = msgspec.field(default_factory=dict)
    queued: dict[int, int] = msgspec.field(default_factory=dict)

    def arm(self, plan: int, version: int) -> ArmCounts:
        """Return what is counted of a version under a plan."""
        versions = self.arms.get(plan)
        if versions is None:
            versions = self.arms[plan] = {}
            self._fold()
        arm = versions.get(version)
        if arm is None:
            arm = versions[version] = ArmCounts()
        return arm

    def _fold(self) -> None:
        plans = sorted(plan for plan in self.arms if plan != EARLIER)
        for plan in plans[:-MOST_PLANS]:
            for version, arm in self.arms.pop(plan).items():
                self.arms.setdefault(EARLIER, {}).setdefault(version, ArmCounts()).add(arm)

    def answered(self, version: int, slot: str, status: int) -> None:
        """Count an answer."""
        _count(self.answers, f"{version}/{slot}/{status}")

    def fell_back(self, version: int, why: str) -> None:
        """Count that the stable version answered in a successor's place."""
        _count(self.fallbacks, f"{version}/{why}")

    def add(self, other: "Counts") -> None:
        """Add what another process counted."""
        for plan, versions in other.arms.items():
            for version, arm in versions.items():
                self.arm(plan, version).add(arm)
        for ours, theirs in ((self.answers, other.answers), (self.fallbacks, other.fallbacks)):
            for name, number in theirs.items():
                _count(ours, name, number)
        for reason, number in other.log_dropped.items():
            _count(self.log_dropped, reason, number)
        for version, number in other.queued.items():
            self.queued[version] = self.queued.get(version, 0) + number
        self.shadow_dropped += other.shadow_dropped
        self.log_written += other.log_written
        self.log_queued += other.log_queued

    def ended(self) -> "Counts":
        """Return the same of a process that is gone: nothing waits in it."""
        return msgspec.structs.replace(self, queued={}, log_queued=0)

    def figures(self, model: str, server: str, plan: int) -> list[TrafficFigures]:
        """Return what was counted under a plan, as the database keeps it."""
        return [
            TrafficFigures(
                model=model,
                plan=plan,
                server=server,
                version=version,
                requests=arm.requests,
                records=arm.records,
                failures=arm.failures,
                latencies=arm.latencies,
                scores=arm.scores,
            )
            for version, arm in sorted(self.arms.get(plan, {}).items())
        ]

    def by_version(self) -> dict[int, ArmCounts]:
        """Return what was counted of each version, over all plans."""
        found: dict[int, ArmCounts] = {}
        for versions in self.arms.values():
            for version, arm in versions.items():
                found.setdefault(version, ArmCounts()).add(arm)
        return found


def _count(numbers: dict[str, int], name: str, number: int = 1) -> None:
    numbers[name] = numbers.get(name, 0) + number


def total(parts: Iterable[Counts]) -> Counts:
    """Return what several processes counted together."""
    found = Counts()
    for part in parts:
        found.add(part)
    return found
