"""Numbers of several processes added up, as the rollout and Prometheus are told them; bodies within their limits."""

import asyncio
import gzip
import zlib
from typing import Any

import msgspec
import pytest

from ml_platform.errors import RequestError
from ml_platform.serving.bodies import read_body
from ml_platform.serving.counts import EARLIER, MOST_PLANS, Counts, total
from ml_platform.serving.metrics import ServerFacts, exposition


def counts(*, failed: bool = False) -> Counts:
    made = Counts(queued={4: 2}, log_queued=3, log_written=5, log_dropped={"disk": 1}, shadow_dropped=1)
    arm = made.arm(7, 4)
    arm.requests += 1
    arm.asked(3, 0.003, failed=failed)
    arm.scored([0, 2, 2], of=3)
    made.answered(4, "stable", 200)
    made.fell_back(4, "slow")
    return made


def test_processes_are_added_up() -> None:
    both = total([counts(), counts(failed=True).ended()])
    figures = both.figures("visits", "here", 7)
    assert len(figures) == 1
    assert (figures[0].requests, figures[0].records, figures[0].failures) == (2, 6, 3)
    assert figures[0].latencies[2] == sum(figures[0].latencies) == 6
    assert figures[0].scores == [2, 0, 4]
    assert (both.answers, both.fallbacks) == ({"4/stable/200": 2}, {"4/slow": 2})
    # Nothing waits in a process that has ended.
    assert (both.queued, both.log_queued, both.log_written, both.shadow_dropped) == ({4: 2}, 3, 10, 2)
    assert both.log_dropped == {"disk": 2}


def test_adding_leaves_what_was_added_as_it_was() -> None:
    one, other = counts(), counts()
    total([one, other])
    assert one == counts() == other


def test_they_are_the_same_after_they_were_sent() -> None:
    sent = msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(counts(), str_keys=True)))
    assert msgspec.convert(sent, Counts, strict=False) == counts()


def test_plans_of_long_ago_are_counted_together() -> None:
    made = Counts()
    for plan in range(1, MOST_PLANS + 11):
        made.arm(plan, 1).requests += 1
    assert len(made.arms) == MOST_PLANS + 1
    assert made.arms[EARLIER][1].requests == 10
    assert made.by_version()[1].requests == MOST_PLANS + 10


def test_prometheus_reads_what_was_counted() -> None:
    facts = ServerFacts(model="visits", counts=counts(), loaded={4: "abc"}, refused={5: "why"}, plan=7, workers=2)
    lines = exposition(facts).decode().splitlines()
    for line in (
        'requests_total{model="visits",slot="stable",status="200",version="4"} 1.0',
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


def test_labels_are_bounded_however_many_versions_there_were() -> None:
    made = Counts()
    for version in range(1, 200):
        made.arm(version, version).asked(1, 0.1, failed=False)
        made.answered(version, "stable", 200)
    text = exposition(ServerFacts(model="visits", counts=made)).decode()
    assert text.count("ml_platform_serving_requests_total{") == 20
    assert 'version="199"' in text


# Bodies


def read(*parts: bytes, encoding: bytes | None = None, most: int = 1_000) -> bytes:
    waiting = [{"body": part, "more_body": number < len(parts)} for number, part in enumerate(parts, start=1)]

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    headers = [] if encoding is None else [(b"content-encoding", encoding)]
    return asyncio.run(read_body({"headers": headers}, receive, most))


def test_bodies_come_in_parts_and_compressed() -> None:
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
def test_a_body_beyond_its_limits_is_refused(parts: tuple[bytes, ...], encoding: bytes | None, status: int) -> None:
    with pytest.raises(RequestError) as refused:
        read(*parts, encoding=encoding)
    assert refused.value.status == status
