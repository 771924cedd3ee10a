"""A process that is killed anywhere in a model's lifecycle leaves a state that the next process repairs."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ml_platform.data import datasets
from ml_platform.platform import Platform
from ml_platform.settings import PROJECT_ROOT
from ml_platform.storage import delta_table
from ml_platform_tests.support import fakes
from ml_platform_tests.support.lifecycle import live

pytestmark = pytest.mark.servers

ROWS = 600
BAD_ROWS = 2
EVERY_STEP = [
    ("ml_platform.storage.landing_zone:LocalZone.copy", "after"),
    ("ml_platform.database:PlatformDatabase.record_raw_batch", "after"),
    ("deltalake:write_deltalake", "after"),
    ("ml_platform.database:PlatformDatabase.record_outcome", "after"),
    ("ml_platform.training.fit:store", "after"),
    ("ml_platform.database:PlatformDatabase.record_candidate", "after"),
    ("ml_platform.storage.mlflow_registry:Registry.record_run", "after"),
    ("mlflow:MlflowClient.create_model_version", "after"),
]
# `test_ledger.py` stops a promotion at every call; these tests run whole lifecycles.
IN_PROMOTION = [
    pytest.param("ml_platform.database:PlatformDatabase.append_to_ledger", "before", marks=pytest.mark.soak),
    ("ml_platform.database:PlatformDatabase.append_to_ledger", "after"),
    pytest.param("mlflow:MlflowClient.set_registered_model_alias", "before", marks=pytest.mark.soak),
]


@pytest.fixture
def waiting(platform: Platform) -> Platform:
    """A platform with two files in its landing zone, one of them with bad rows."""
    rows = fakes.visits(ROWS)
    rows.loc[: BAD_ROWS - 1, "plan"] = "none such"
    fakes.drop(platform, "a.parquet", rows.head(300))
    fakes.drop(platform, "b.parquet", rows.tail(300))
    return platform


def run_and_kill(platform: Platform, where: str, when: str) -> None:
    command = [sys.executable, "-m", "ml_platform_tests.support.lifecycle", str(platform.settings.home), where, when]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


def versions_in_mlflow(platform: Platform) -> dict[int, str]:
    # The registry's address is given, too: without it, the client uses the registry of another test.
    client = MlflowClient(platform.settings.tracking_uri, platform.settings.tracking_uri)
    versions = client.search_model_versions("name = 'visits'")
    return {int(version.version): version.tags["ml_platform.candidate"] for version in versions}


def undisturbed_digest(tmp_path: Path) -> str:
    """Return the dataset's digest after a lifecycle without kills."""
    other = fakes.platform_in(tmp_path / "undisturbed")
    rows = fakes.visits(ROWS)
    rows.loc[: BAD_ROWS - 1, "plan"] = "none such"
    fakes.drop(other, "a.parquet", rows.head(300))
    fakes.drop(other, "b.parquet", rows.tail(300))
    from ml_platform.data.ingest import publish_batches, store_raw_batches
    from ml_platform.data.landing import waiting_arrivals

    keys = [arrival.key for arrival in waiting_arrivals(other, "visits")]
    store_raw_batches(other, "visits", keys)
    publish_batches(other, fakes.visits_spec(), keys)
    return datasets.pin(other.rows("visits"), fakes.visits_spec())[0].digest


def require_one_champion_and_nothing_doubled(platform: Platform, digest: str) -> None:
    database = platform.database
    champion = database.champion("visits")
    assert champion is not None
    assert platform.registry.alias("visits", "champion") == champion.version
    candidate = database.candidate(champion.candidate)
    assert candidate.lineage.dataset_digest == digest
    outcomes = database.arrival_outcomes("visits")
    assert [(row["outcome"], row["rows"]) for row in outcomes] == [("published", 300), ("published", 300)]
    assert datasets.pin(platform.rows("visits"), fakes.visits_spec())[0].rows == ROWS - BAD_ROWS
    assert len(delta_table._open(platform.quarantine("visits")).to_pyarrow_table()) == BAD_ROWS
    shown = versions_in_mlflow(platform)
    assert len(set(shown.values())) == len(shown)
    assert shown[champion.version] == champion.candidate


@pytest.mark.fault("P1")
@pytest.mark.parametrize(("where", "when"), EVERY_STEP, ids=lambda value: str(value).rpartition(":")[2])
def test_killed_lifecycle_is_resumed(waiting: Platform, tmp_path: Path, where: str, when: str) -> None:
    run_and_kill(waiting, where, when)
    assert waiting.database.champion("visits") is None

    live(waiting)

    require_one_champion_and_nothing_doubled(waiting, undisturbed_digest(tmp_path))


@pytest.mark.fault("P2")
@pytest.mark.parametrize(("where", "when"), IN_PROMOTION, ids=lambda value: str(value).rpartition(":")[2])
def test_killed_promotion_leaves_one_champion(waiting: Platform, where: str, when: str) -> None:
    first = live(waiting)
    fakes.drop(waiting, "later.parquet", fakes.visits(10, first=10_000))
    run_and_kill(waiting, where, when)
    champion = waiting.database.champion("visits")
    assert champion is not None
    assert champion.version >= first.version
    assert waiting.registry.alias("visits", "champion") == first.version

    last = live(waiting)

    assert waiting.database.champion("visits") == last
    assert waiting.registry.alias("visits", "champion") == last.version
    shown = versions_in_mlflow(waiting)
    assert len(set(shown.values())) == len(shown)
