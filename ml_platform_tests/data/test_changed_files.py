"""Other bytes under a known name, with the same size and modification time, are a new arrival."""

import hashlib
import os
from pathlib import Path

import pytest
import sqlalchemy as sa

from ml_platform.data import landing
from ml_platform.data.arrivals import MANIFEST_SUFFIX, Manifest, remove
from ml_platform.data.ingest import publish_batches, store_raw_batches
from ml_platform.database import tables
from ml_platform.errors import ArrivalChangedError
from ml_platform.platform import Platform
from ml_platform.records.data import Arrival
from ml_platform_tests.support import fakes

SPEC = fakes.visits_spec()


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    return fakes.platform_in(tmp_path)


def write(platform: Platform, first: int, *, manifest: bool = False, promised: bytes | None = None) -> None:
    """Write a file of always the same size, and set back its modification time."""
    rows = fakes.visits(60, first=first).assign(seconds=1.0)
    path = fakes.landing(platform) / "visits" / "a.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = rows.to_csv(index=False).encode()
    if manifest:
        digest = hashlib.sha256(promised or data).hexdigest()
        path.with_name(path.name + MANIFEST_SUFFIX).write_bytes(Manifest(len(data), digest).data)
    path.write_bytes(data)
    os.utime(path, ns=(10**18, 10**18))


def ingest(platform: Platform) -> list[str]:
    """Publish what waits after two scans; return the outcomes."""
    held = landing.scan_landing_zone(platform, "visits").held
    keys = [arrival.key for arrival in landing.scan_landing_zone(platform, "visits", seen=held).complete]
    store_raw_batches(platform, "visits", keys)
    return [result.outcome.value for result in publish_batches(platform, SPEC, keys)]


@pytest.mark.fault("D23")
@pytest.mark.parametrize("manifest", [False, True])
def test_new_bytes_with_old_time_are_published(platform: Platform, manifest: bool) -> None:
    write(platform, 1000, manifest=manifest)
    assert ingest(platform) == ["published"]
    assert ingest(platform) == []
    write(platform, 2000, manifest=manifest)
    assert ingest(platform) == ["published"]
    assert ingest(platform) == []


@pytest.mark.fault("D23")
def test_corrected_manifest_is_a_new_arrival(platform: Platform) -> None:
    write(platform, 1000, manifest=True, promised=b"other")
    assert ingest(platform) == ["quarantined"]
    write(platform, 1000, manifest=True)
    assert ingest(platform) == ["published"]


@pytest.mark.fault("D23")
def test_changed_permissions_double_no_row(platform: Platform) -> None:
    write(platform, 1000)
    assert ingest(platform) == ["published"]
    (fakes.landing(platform) / "visits" / "a.csv").chmod(0o640)
    assert ingest(platform) == ["duplicate"]
    assert ingest(platform) == []


@pytest.mark.fault("D23")
def test_upgrade_keeps_known_files(platform: Platform) -> None:
    write(platform, 1000)
    assert ingest(platform) == ["published"]
    with platform.database._transaction() as connection:
        connection.execute(tables.arrivals.update().values(ctime_ns=0))
    assert ingest(platform) == []
    with platform.database._transaction() as connection:
        assert connection.scalar(sa.select(tables.arrivals.c.ctime_ns)) != 0
    write(platform, 2000)
    assert ingest(platform) == ["published"]


def test_arrival_key_without_change_is_stable() -> None:
    arrival = Arrival(model="visits", name="a.csv", size=3, mtime_ns=5, ctime_ns=7)
    assert arrival.key == Arrival(model="visits", name="a.csv", size=3, mtime_ns=5).key == "a-csv-0f215632c85e"


def test_remove_keeps_replaced_file(platform: Platform) -> None:
    write(platform, 1000)
    (arrival,) = landing.list_arrivals(platform, "visits")
    write(platform, 2000)
    with pytest.raises(ArrivalChangedError):
        remove(platform.zone, arrival)
