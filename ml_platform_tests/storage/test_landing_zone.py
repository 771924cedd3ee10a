"""A landing zone in S3: real requests to a local server with configurable faults."""

import hashlib
import math
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_platform.data import arrivals
from ml_platform.errors import ArrivalChangedError, LandingZoneError
from ml_platform.records.data import Arrival
from ml_platform.storage import landing_zone
from ml_platform.storage.landing_zone import LandingZone, LocalZone, open_zone
from ml_platform_tests.support import s3_server

FAULTS = ["500", "503", "slow", "reset"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3_server.FaultyS3]:
    fake = s3_server.FaultyS3(
        {"zone/visits/a.csv": b"12345", "zone/visits/b.csv": b"1", "zone/visits/c.csv": b""}, page=2
    )
    monkeypatch.setattr(landing_zone, "READ_SECONDS", 0.3)
    with fake.running() as endpoint:
        for name, value in s3_server.environment(endpoint).items():
            monkeypatch.setenv(name, value)
        yield fake


@pytest.fixture
def zone(server: s3_server.FaultyS3) -> LandingZone:  # noqa: ARG001 - runs the server
    return open_zone("s3://landing/zone")


def list_arrivals(zone: LandingZone) -> list[Arrival]:
    return arrivals.list_files(zone, "visits").arrivals


def test_open_zone_address_selects_the_kind() -> None:
    assert isinstance(open_zone("/some/where"), LocalZone)
    assert open_zone("s3://bucket/some/where/").address == "s3://bucket/some/where"


def test_s3_all_pages_are_complete_arrivals(zone: LandingZone) -> None:
    waiting = list_arrivals(zone)

    assert [(arrival.name, arrival.size) for arrival in waiting] == [("a.csv", 5), ("b.csv", 1), ("c.csv", 0)]
    assert arrivals.find_complete_arrivals(zone, waiting, set()).complete == waiting


@pytest.mark.slow
@pytest.mark.fault("D1")
def test_s3_object_below_manifest_size_waits(zone: LandingZone, server: s3_server.FaultyS3) -> None:
    for name, size in (("a.csv", 5), ("b.csv", 2)):
        server.objects[f"zone/visits/{name}.manifest.json"] = arrivals.Manifest(size, "0" * 64).data

    listing = arrivals.list_files(zone, "visits")
    scan = arrivals.find_complete_arrivals(zone, listing.arrivals, listing.with_manifest, stuck_hours=math.inf)

    assert [arrival.name for arrival in scan.complete] == ["a.csv", "c.csv"]
    assert scan.examples == ["b.csv: it has 1 bytes, its manifest expects 2"]


def test_s3_bytes_are_stored(zone: LandingZone, tmp_path: Path) -> None:
    batches = [arrivals.store_bytes(arrival, zone, tmp_path) for arrival in list_arrivals(zone)]

    assert [Path(batch.path).read_bytes() for batch in batches] == [b"12345", b"1", b""]
    assert batches[0].sha256 == hashlib.sha256(b"12345").hexdigest()


@pytest.mark.fault("D3")
def test_s3_replaced_object_is_refused(zone: LandingZone, server: s3_server.FaultyS3, tmp_path: Path) -> None:
    first, second, _ = list_arrivals(zone)
    server.objects["zone/visits/a.csv"] = b"54321"
    del server.objects["zone/visits/b.csv"]

    for arrival in (first, second):
        with pytest.raises(ArrivalChangedError):
            arrivals.store_bytes(arrival, zone, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert list_arrivals(zone)[0].key != first.key


@pytest.mark.fault("D17")
def test_s3_odd_key_hides_no_object(zone: LandingZone, server: s3_server.FaultyS3) -> None:
    for key in ("new\nline.csv", "..", "/b.csv", "%2e%2e%2fc.csv", "ä.csv", "../d.csv", "", "a b.csv"):
        server.objects[f"zone/visits/{key}"] = b"bad"

    listing = arrivals.list_files(zone, "visits")

    assert [arrival.name for arrival in listing.arrivals] == ["a.csv", "b.csv", "c.csv"]
    assert "new\nline.csv" in listing.ignored


@pytest.mark.slow
@pytest.mark.fault("S4")
@pytest.mark.parametrize("fault", FAULTS)
def test_s3_recovering_server_is_listed_fully(zone: LandingZone, server: s3_server.FaultyS3, fault: str) -> None:
    server.faults = [fault] * (landing_zone.ATTEMPTS - 1)

    assert len(list_arrivals(zone)) == 3


@pytest.mark.slow
@pytest.mark.fault("S4")
@pytest.mark.parametrize("spared", [0, 1], ids=["first page", "second page"])
@pytest.mark.parametrize("fault", FAULTS)
def test_s3_failing_server_is_an_error(zone: LandingZone, server: s3_server.FaultyS3, fault: str, spared: int) -> None:
    server.for_ever, server.spared = fault, spared

    with pytest.raises(LandingZoneError, match=r"s3://landing/zone could not be listed: .*Check ML_PLATFORM_LANDING"):
        list_arrivals(zone)
    assert server.requests == spared + landing_zone.ATTEMPTS


@pytest.mark.slow
@pytest.mark.fault("S4")
def test_s3_interrupted_transfer_is_retried(zone: LandingZone, server: s3_server.FaultyS3, tmp_path: Path) -> None:
    arrival = list_arrivals(zone)[0]
    server.faults = ["cut"] * (landing_zone.ATTEMPTS - 1)

    assert Path(arrivals.store_bytes(arrival, zone, tmp_path).path).read_bytes() == b"12345"


@pytest.mark.fault("S4")
def test_s3_transfer_always_interrupted_stores_nothing(
    zone: LandingZone, server: s3_server.FaultyS3, tmp_path: Path
) -> None:
    arrival = list_arrivals(zone)[0]
    server.for_ever = "cut"

    with pytest.raises(LandingZoneError, match=r"could not provide visits/a\.csv") as caught:
        arrivals.store_bytes(arrival, zone, tmp_path)
    assert not isinstance(caught.value, ArrivalChangedError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.fault("S5")
@pytest.mark.parametrize("status", ["401", "403", "404", "400"])
def test_s3_denied_request_shows_no_secret(zone: LandingZone, server: s3_server.FaultyS3, status: str) -> None:
    server.for_ever = status

    with pytest.raises(LandingZoneError, match=f"Fault{status}") as caught:
        list_arrivals(zone)
    assert server.requests == 1
    assert s3_server.SECRET not in str(caught.value)


@pytest.mark.fault("S5")
def test_s3_denied_object_is_not_missing(zone: LandingZone, server: s3_server.FaultyS3, tmp_path: Path) -> None:
    arrival = list_arrivals(zone)[0]
    server.for_ever = "403"

    with pytest.raises(LandingZoneError, match="Fault403") as caught:
        arrivals.store_bytes(arrival, zone, tmp_path)
    assert not isinstance(caught.value, ArrivalChangedError)
    with pytest.raises(LandingZoneError, match="Fault403"):
        zone.read("visits", ["a.csv"], 10)


@pytest.mark.fault("S5")
def test_s3_missing_credentials_are_an_error(zone: LandingZone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    with pytest.raises(LandingZoneError, match="Unable to locate credentials"):
        list_arrivals(zone)


@pytest.mark.fault("S4")
def test_s3_interrupted_manifest_is_not_missing(zone: LandingZone, server: s3_server.FaultyS3, tmp_path: Path) -> None:
    server.objects["zone/visits/a.csv.manifest.json"] = arrivals.Manifest(5, "0" * 64).data
    arrival = list_arrivals(zone)[0]
    server.spared, server.for_ever = 1, "cut"

    with pytest.raises(LandingZoneError):
        arrivals.store_bytes(arrival, zone, tmp_path)
    assert list(tmp_path.iterdir()) == []


# With a real S3 server


@pytest.fixture
def bucket(seaweedfs: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in s3_server.environment(seaweedfs).items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3_server.BUCKET}/{uuid.uuid4().hex}"


@pytest.mark.fault("S5")
def test_s3_prefix_without_objects_is_an_error(bucket: str) -> None:
    open_zone(f"{bucket}/landing").write("visits", "a.csv", b"1")

    for address in (f"{bucket}/landng", f"{bucket}/landin", f"{bucket}/landing/visits/a.csv"):
        with pytest.raises(
            LandingZoneError, match="does not exist: no object in the bucket 'landing' begins with"
        ) as caught:
            list_arrivals(open_zone(address))
        assert "`ml-platform land FILE --model visits`" in str(caught.value)


def test_s3_prepared_zone_is_empty(bucket: str) -> None:
    zone = open_zone(bucket)

    for _ in range(2):
        zone.prepare("visits")
        assert list_arrivals(zone) == []
    assert arrivals.list_files(zone, "others").ignored == []


@pytest.mark.parametrize("key", ["others/a.csv", ".landing-zone", "visits/"])
def test_s3_any_object_proves_the_zone(bucket: str, seaweedfs: str, key: str) -> None:
    prefix = bucket.removeprefix(f"s3://{s3_server.BUCKET}/")
    s3_server.client(seaweedfs).put_object(Bucket=s3_server.BUCKET, Key=f"{prefix}/{key}", Body=b"")

    assert list_arrivals(open_zone(bucket)) == []


@pytest.mark.fault("D3")
def test_s3_remove_changed_object_is_refused(bucket: str) -> None:
    zone = open_zone(bucket)
    zone.write("visits", "a.csv", b"1")
    zone.write("visits", "a.csv.manifest.json", b"{}")
    first = list_arrivals(zone)[0]
    zone.write("visits", "a.csv", b"2")

    with pytest.raises(ArrivalChangedError):
        arrivals.remove(zone, first)
    (second,) = list_arrivals(zone)
    for _ in range(2):
        arrivals.remove(zone, second)

    zone.prepare("visits")
    assert list(zone.files("visits")) == []
