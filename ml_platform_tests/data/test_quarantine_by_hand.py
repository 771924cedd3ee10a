"""A user quarantines a waiting arrival: it is handled, never read, and other files are published."""

from pathlib import Path

import pytest

from ml_platform.data import quarantine
from ml_platform.data.ingest import publish_batches, store_raw_batches
from ml_platform.data.landing import list_arrivals, waiting_arrivals
from ml_platform.errors import DataError
from ml_platform.platform import Platform
from ml_platform.records.data import Outcome
from ml_platform_tests.support import fakes

SPEC = fakes.visits_spec()


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    opened = fakes.platform_in(tmp_path)
    fakes.drop(opened, "a.parquet", fakes.visits(60))
    fakes.drop(opened, "b.parquet", fakes.visits(60, first=100))
    return opened


def add(platform: Platform, name: str = "a.parquet", reason: str = "wrong warehouse") -> None:
    quarantine.add(platform, "visits", name, reason=reason, actor="alice@desk")


def ingest(platform: Platform) -> dict[str, tuple[str, str]]:
    keys = [arrival.key for arrival in list_arrivals(platform, "visits")]
    store_raw_batches(platform, "visits", keys)
    return {one.arrival.name: (one.outcome.value, one.reason) for one in publish_batches(platform, SPEC, keys)}


def test_added_arrival_is_handled_next_published(platform: Platform) -> None:
    add(platform)
    assert [arrival.name for arrival in waiting_arrivals(platform, "visits")] == ["b.parquet"]
    assert ingest(platform) == {
        "a.parquet": ("quarantined", "alice@desk quarantined it: wrong warehouse"),
        "b.parquet": ("published", "60 rows in version 1"),
    }


def test_added_stored_arrival_stays_after_its_file(platform: Platform) -> None:
    keys = [arrival.key for arrival in waiting_arrivals(platform, "visits")]
    store_raw_batches(platform, "visits", keys)
    (fakes.landing(platform) / "visits" / "a.parquet").unlink()
    add(platform, keys[0])
    assert [result.outcome for result in publish_batches(platform, SPEC, keys)] == [
        Outcome.QUARANTINED,
        Outcome.PUBLISHED,
    ]


def test_same_bytes_of_added_arrival_are_quarantined(platform: Platform) -> None:
    add(platform)
    fakes.drop(platform, "copy.parquet", fakes.visits(60))
    outcome, reason = ingest(platform)["copy.parquet"]
    assert (outcome, "which a user quarantined" in reason) == ("quarantined", True)


def test_added_arrival_is_released_by_name_only(platform: Platform) -> None:
    add(platform)
    assert quarantine.release(platform, SPEC, [], actor="bob") == []
    (released,) = quarantine.release(platform, SPEC, ["a.parquet"], actor="bob")
    assert (released["outcome"], released["released_rows"]) == ("published", 60)


@pytest.mark.parametrize("reason", ["nul \0 and \ud800 surrogate", "\x1b[31mred", "long " * 10_000])
def test_any_reason_is_stored(platform: Platform, reason: str) -> None:
    add(platform, reason=reason)
    (arrival,) = quarantine.show(platform, "visits")
    assert arrival["reason"].startswith("alice@desk quarantined it: ")
    assert arrival["reason"].isprintable()
    assert len(arrival["reason"]) < 2_000


def test_handled_or_unknown_arrival_is_not_added(platform: Platform) -> None:
    ingest(platform)
    for name in ("a.parquet", "none.parquet"):
        with pytest.raises(DataError, match="No waiting arrival of 'visits'"):
            add(platform, name)
