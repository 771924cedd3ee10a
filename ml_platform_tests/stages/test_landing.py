"""A landing zone in S3: real requests to a server on loopback that fails as it is told."""

import hashlib
import math
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_platform.errors import ArrivalChangedError, LandingZoneError
from ml_platform.records import Arrival
from ml_platform.stages import _landing, arrivals
from ml_platform.stages._landing import LandingZone, LocalZone, open_zone
from ml_platform_tests import s3

FAULTS = ["500", "503", "slow", "reset"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.FaultyS3]:
    made = s3.FaultyS3({"zone/visits/a.csv": b"12345", "zone/visits/b.csv": b"1", "zone/visits/c.csv": b""}, page=2)
    monkeypatch.setattr(_landing, "READ_SECONDS", 0.3)
    with made.running() as endpoint:
        for name, value in s3.environment(endpoint).items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
def zone(server: s3.FaultyS3) -> LandingZone:  # noqa: ARG001 - it answers
    return open_zone("s3://landing/zone")


def found(zone: LandingZone) -> list[Arrival]:
    return arrivals.list_files(zone, "visits").arrivals


def test_an_address_says_what_kind_of_place_it_is() -> None:
    assert isinstance(open_zone("/some/where"), LocalZone)
    assert open_zone("s3://bucket/some/where/").address == "s3://bucket/some/where"


def test_objects_are_arrivals_at_once_and_page_after_page(zone: LandingZone) -> None:
    waiting = found(zone)

    assert [(arrival.name, arrival.size) for arrival in waiting] == [("a.csv", 5), ("b.csv", 1), ("c.csv", 0)]
    assert arrivals.look(zone, waiting, set()).complete == waiting


@pytest.mark.fault("D1")
def test_an_object_waits_for_the_size_that_its_manifest_names(zone: LandingZone, server: s3.FaultyS3) -> None:
    for name, size in (("a.csv", 5), ("b.csv", 2)):
        server.objects[f"zone/visits/{name}.manifest.json"] = arrivals.Manifest(size, "0" * 64).data

    listing = arrivals.list_files(zone, "visits")
    look = arrivals.look(zone, listing.arrivals, listing.with_manifest, stuck_hours=math.inf)

    assert [arrival.name for arrival in look.complete] == ["a.csv", "c.csv"]
    assert look.examples == ["b.csv: 1 of the 2 bytes that its manifest names"]


def test_the_bytes_are_kept(zone: LandingZone, tmp_path: Path) -> None:
    batches = [arrivals.keep_bytes(arrival, zone, tmp_path) for arrival in found(zone)]

    assert [Path(batch.path).read_bytes() for batch in batches] == [b"12345", b"1", b""]
    assert batches[0].sha256 == hashlib.sha256(b"12345").hexdigest()


@pytest.mark.fault("D3")
def test_an_object_that_was_replaced_since_it_was_found_is_not_taken(
    zone: LandingZone, server: s3.FaultyS3, tmp_path: Path
) -> None:
    first, second, _ = found(zone)
    server.objects["zone/visits/a.csv"] = b"54321"
    del server.objects["zone/visits/b.csv"]

    for arrival in (first, second):
        with pytest.raises(ArrivalChangedError):
            arrivals.keep_bytes(arrival, zone, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert found(zone)[0].key != first.key


@pytest.mark.fault("D17")
def test_a_key_that_is_no_name_hides_no_other_object(zone: LandingZone, server: s3.FaultyS3) -> None:
    for key in ("new\nline.csv", "..", "/b.csv", "%2e%2e%2fc.csv", "ä.csv", "../d.csv", "", "a b.csv"):
        server.objects[f"zone/visits/{key}"] = b"bad"

    listing = arrivals.list_files(zone, "visits")

    assert [arrival.name for arrival in listing.arrivals] == ["a.csv", "b.csv", "c.csv"]
    assert "new\nline.csv" in listing.ignored


@pytest.mark.fault("S4")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_recovers_in_time_is_listed_in_full(zone: LandingZone, server: s3.FaultyS3, fault: str) -> None:
    server.faults = [fault] * (_landing.ATTEMPTS - 1)

    assert len(found(zone)) == 3


@pytest.mark.fault("S4")
@pytest.mark.parametrize("spared", [0, 1], ids=["first page", "second page"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_goes_on_failing_is_an_error_after_a_few_tries(
    zone: LandingZone, server: s3.FaultyS3, fault: str, spared: int
) -> None:
    server.for_ever, server.spared = fault, spared

    with pytest.raises(LandingZoneError, match=r"s3://landing/zone could not be listed: .*Check ML_PLATFORM_LANDING"):
        found(zone)
    assert server.requests == spared + _landing.ATTEMPTS


@pytest.mark.fault("S4")
def test_a_transfer_that_breaks_off_is_tried_again(zone: LandingZone, server: s3.FaultyS3, tmp_path: Path) -> None:
    arrival = found(zone)[0]
    server.faults = ["cut"] * (_landing.ATTEMPTS - 1)

    assert Path(arrivals.keep_bytes(arrival, zone, tmp_path).path).read_bytes() == b"12345"


@pytest.mark.fault("S4")
def test_a_transfer_that_always_breaks_off_keeps_nothing(
    zone: LandingZone, server: s3.FaultyS3, tmp_path: Path
) -> None:
    arrival = found(zone)[0]
    server.for_ever = "cut"

    with pytest.raises(LandingZoneError, match=r"could not give visits/a\.csv") as caught:
        arrivals.keep_bytes(arrival, zone, tmp_path)
    assert not isinstance(caught.value, ArrivalChangedError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("S5")
@pytest.mark.parametrize("status", ["401", "403", "404", "400"])
def test_a_refusal_is_an_error_at_once_and_shows_no_secret(zone: LandingZone, server: s3.FaultyS3, status: str) -> None:
    server.for_ever = status

    with pytest.raises(LandingZoneError, match=f"Fault{status}") as caught:
        found(zone)
    assert server.requests == 1
    assert s3.SECRET not in str(caught.value)


@pytest.mark.fault("S5")
def test_a_refused_object_is_not_taken_for_a_missing_one(
    zone: LandingZone, server: s3.FaultyS3, tmp_path: Path
) -> None:
    arrival = found(zone)[0]
    server.for_ever = "403"

    with pytest.raises(LandingZoneError, match="Fault403") as caught:
        arrivals.keep_bytes(arrival, zone, tmp_path)
    assert not isinstance(caught.value, ArrivalChangedError)
    with pytest.raises(LandingZoneError, match="Fault403"):
        zone.read("visits", ["a.csv"], 10)


@pytest.mark.fault("S5")
def test_no_credentials_are_an_error(zone: LandingZone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    with pytest.raises(LandingZoneError, match="Unable to locate credentials"):
        found(zone)


@pytest.mark.fault("S4")
def test_a_manifest_whose_transfer_breaks_off_is_not_a_missing_one(
    zone: LandingZone, server: s3.FaultyS3, tmp_path: Path
) -> None:
    server.objects["zone/visits/a.csv.manifest.json"] = arrivals.Manifest(5, "0" * 64).data
    arrival = found(zone)[0]
    server.spared, server.for_ever = 1, "cut"

    with pytest.raises(LandingZoneError):
        arrivals.keep_bytes(arrival, zone, tmp_path)
    assert list(tmp_path.iterdir()) == []


# On a real server


@pytest.fixture
def bucket(seaweedfs: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in s3.environment(seaweedfs).items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3.BUCKET}/{uuid.uuid4().hex}"


@pytest.mark.fault("S5")
def test_a_prefix_without_any_object_is_not_an_empty_landing_zone(bucket: str) -> None:
    open_zone(f"{bucket}/landing").write("visits", "a.csv", b"1")

    for address in (f"{bucket}/landng", f"{bucket}/landin", f"{bucket}/landing/visits/a.csv"):
        with pytest.raises(
            LandingZoneError, match="is not there: nothing in the bucket 'landing' begins with"
        ) as caught:
            found(open_zone(address))
        assert "`ml-platform land FILE --model visits`" in str(caught.value)


def test_a_prepared_landing_zone_is_empty(bucket: str) -> None:
    zone = open_zone(bucket)

    for _ in range(2):
        zone.prepare("visits")
        assert found(zone) == []
    assert arrivals.list_files(zone, "others").ignored == []


@pytest.mark.parametrize("key", ["others/a.csv", ".landing-zone", "visits/"])
def test_any_object_of_a_landing_zone_shows_that_it_is_there(bucket: str, seaweedfs: str, key: str) -> None:
    prefix = bucket.removeprefix(f"s3://{s3.BUCKET}/")
    s3.client(seaweedfs).put_object(Bucket=s3.BUCKET, Key=f"{prefix}/{key}", Body=b"")

    assert found(open_zone(bucket)) == []


@pytest.mark.fault("D3")
def test_only_the_object_that_arrived_is_removed(bucket: str) -> None:
    zone = open_zone(bucket)
    zone.write("visits", "a.csv", b"1")
    zone.write("visits", "a.csv.manifest.json", b"{}")
    first = found(zone)[0]
    zone.write("visits", "a.csv", b"2")

    with pytest.raises(ArrivalChangedError):
        arrivals.remove(zone, first)
    (second,) = found(zone)
    for _ in range(2):
        arrivals.remove(zone, second)

    zone.prepare("visits")
    assert list(zone.files("visits")) == []
