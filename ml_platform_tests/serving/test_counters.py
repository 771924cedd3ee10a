"""Tests of the counters and their sums, of the Prometheus metrics, and of the limits on request bodies."""

import asyncio
import gzip
import zlib
from typing import Any

import msgspec
import pytest

from ml_platform.errors import RequestError
from ml_platform.records.traffic import unpack_cells
from ml_platform.serving.counters import EARLIER, MAX_PLANS, Counts, VersionCounts, sum_counts
from ml_platform.serving.http.request_body import read_body
from ml_platform.serving.prometheus import ServerFacts, exposition


def make_counts(*, failed: bool = False) -> Counts:
    counts = Counts(queued={4: 2}, log_queued=3, log_written=5, log_dropped={"disk": 1}, shadow_dropped=1)
    version = counts.version_counts(7, 4)
    version.requests += 1
    version.count_prediction(3, 0.003, failed=failed)
    version.count_unit(9 if failed else 5, 0.003, failed=failed)
    version.count_scores([0, 2, 2, 2], 3)
    counts.count_response(4, "champion", 200)
    counts.count_fallback(4, "slow")
    return counts


def test_counts_of_two_processes_are_summed() -> None:
    both = sum_counts([make_counts(), make_counts(failed=True).without_queues()])
    (stats,) = both.traffic_stats("visits", "here", 7)
    assert (stats.requests, stats.records, stats.failures) == (2, 6, 3)
    assert stats.latencies[2] == sum(stats.latencies) == 2
    assert stats.scores == [0.5, 0, 1.5]
    assert (unpack_cells(stats.seen), unpack_cells(stats.failed)) == (1 << 5 | 1 << 9, 1 << 9)
    assert (both.answers, both.fallbacks) == ({"4/champion/200": 2}, {"4/slow": 2})
    # The queues of the process that has ended are empty.
    assert (both.queued, both.log_queued, both.log_written, both.shadow_dropped) == ({4: 2}, 3, 10, 2)
    assert both.log_dropped == {"disk": 2}


@pytest.mark.fault("R19")
def test_units_count_by_first_outcome() -> None:
    version = VersionCounts()
    assert version.count_unit(77, 0.003, failed=True)
    assert not version.count_unit(77, 0.003, failed=False)
    other = VersionCounts()
    other.count_unit(77, 0.003, failed=False)
    other.count_unit(0, 0.003, failed=True)
    version.add(other)
    assert int.from_bytes(version.seen, "little") == 1 << 77 | 1
    assert int.from_bytes(version.failed, "little") == 1 << 77 | 1
    other.add(version)
    assert int.from_bytes(other.failed, "little") == 1


def test_units_of_earlier_plans_are_forgotten() -> None:
    counts = Counts()
    for plan in (1, 2, 3):
        counts.version_counts(plan, 1).count_unit(plan, 0.1, failed=True)
    assert [bool(counts.arms[plan][1].seen) for plan in (1, 2, 3)] == [False, True, True]


def test_sum_does_not_change_its_parts() -> None:
    one, other = make_counts(), make_counts()
    sum_counts([one, other])
    assert one == make_counts() == other


def test_counts_survive_json_round_trip() -> None:
    sent = msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(make_counts(), str_keys=True)))
    assert msgspec.convert(sent, Counts, strict=False) == make_counts()


def test_old_plans_are_counted_together() -> None:
    counts = Counts()
    for plan in range(1, MAX_PLANS + 11):
        counts.version_counts(plan, 1).requests += 1
    assert len(counts.arms) == MAX_PLANS + 1
    assert counts.arms[EARLIER][1].requests == 10
    assert counts.by_version()[1].requests == MAX_PLANS + 10


def test_exposition_has_a_sample_per_counter() -> None:
    facts = ServerFacts(model="visits", counts=make_counts(), loaded={4: "abc"}, refused={5: "why"}, plan=7, workers=2)
    lines = exposition(facts).decode().splitlines()
    for line in (
        'requests_total{model="visits",role="champion",status="200",version="4"} 1.0',
        'prediction_seconds_bucket{le="0.0025",model="visits",version="4"} 0.0',
        'prediction_seconds_bucket{le="0.005",model="visits",version="4"} 1.0',
        'prediction_seconds_bucket{le="+Inf",model="visits",version="4"} 1.0',
        'loaded{digest="abc",model="visits",version="4"} 1.0',
        'refused{model="visits",version="5"} 1.0',
        'queue_depth{model="visits",version="4"} 2.0',
        'fallbacks_total{model="visits",version="4",why="slow"} 1.0',
        'workers{model="visits"} 2.0',
    ):
        assert f"ml_platform_serving_{line}" in lines


def test_exposition_has_at_most_twenty_versions() -> None:
    counts = Counts()
    for version in range(1, 200):
        counts.version_counts(version, version).count_prediction(1, 0.1, failed=False)
        counts.count_response(version, "champion", 200)
    text = exposition(ServerFacts(model="visits", counts=counts)).decode()
    assert text.count("ml_platform_serving_requests_total{") == 20
    assert 'version="199"' in text


# Bodies


def read(*parts: bytes, encoding: bytes | None = None, max_bytes: int = 1_000) -> bytes:
    messages = [{"body": part, "more_body": number < len(parts)} for number, part in enumerate(parts, start=1)]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    headers = [] if encoding is None else [(b"content-encoding", encoding)]
    return asyncio.run(read_body({"headers": headers}, receive, max_bytes))


def test_body_in_parts_or_compressed_is_read() -> None:
    assert read(b"a", b"b", b"") == b"ab"
    assert read(gzip.compress(b"a" * 900), encoding=b"gzip") == b"a" * 900
    assert read(zlib.compress(b"a" * 900), encoding=b"deflate") == b"a" * 900
    assert read(b"a" * 1_000) == b"a" * 1_000


@pytest.mark.fault("R2")
@pytest.mark.parametrize(
    ("parts", "encoding", "status"),
    [
        ((b"a" * 1_001,), None, 413),
        ((b"a" * 600, b"a" * 401), None, 413),
        ((gzip.compress(b"a" * 1_001),), b"gzip", 413),
        ((gzip.compress(b"a")[:-1],), b"gzip", 400),
        ((b"a",), b"gzip", 400),
        ((b"a",), b"br", 415),
    ],
)
def test_body_beyond_its_limits_is_refused(parts: tuple[bytes, ...], encoding: bytes | None, status: int) -> None:
    with pytest.raises(RequestError) as refused:
        read(*parts, encoding=encoding)
    assert refused.value.status == status
