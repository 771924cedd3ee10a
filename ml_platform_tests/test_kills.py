"""A process that is killed anywhere in a model's life leaves nothing that the next one does not put right."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ml_platform.stages import datasets
from ml_platform.workflows import Platform
from ml_platform_tests import fakes
from ml_platform_tests.life import live

ROOT = Path(__file__).resolve().parent.parent
ROWS = 600
BAD_ROWS = 2
EVERY_STEP = [
    ("ml_platform.stages._landing:LocalZone.copy", "after"),
    ("ml_platform.database:Database.record_raw_batch", "after"),
    ("deltalake:write_deltalake", "after"),
    ("ml_platform.database:Database.record_outcome", "after"),
    ("ml_platform.stages.training:store", "after"),
    ("ml_platform.database:Database.record_candidate", "after"),
    ("ml_platform.stages.registry:Registry.record_run", "after"),
    ("mlflow:MlflowClient.create_model_version", "after"),
]
# `test_ledger.py` stops a promotion at every call; these are whole lives.
IN_PROMOTION = [
    pytest.param("ml_platform.database:Database.append_to_ledger", "before", marks=pytest.mark.soak),
    ("ml_platform.database:Database.append_to_ledger", "after"),
    pytest.param("mlflow:MlflowClient.set_registered_model_alias", "before", marks=pytest.mark.soak),
]


@pytest.fixture
def waiting(platform: Platform) -> Platform:
    """Return a platform in whose landing zone two files wait, one of them with bad rows."""
    rows = fakes.visits(ROWS)
    rows.loc[: BAD_ROWS - 1, "plan"] = "none such"
    fakes.drop(platform, "a.parquet", rows.head(300))
    fakes.drop(platform, "b.parquet", rows.tail(300))
    return platform


def killed(platform: Platform, where: str, when: str) -> None:
    command = [sys.executable, "-m", "ml_platform_tests.life", str(platform.settings.home), where, when]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


def versions_in_mlflow(platform: Platform) -> dict[int, str]:
    # Both addresses: a registry that another test named would be taken for this one.
    client = MlflowClient(platform.settings.tracking_uri, platform.settings.tracking_uri)
    found = client.search_model_versions("name = 'visits'")
    return {int(version.version): version.tags["ml_platform.candidate"] for version in found}


def undisturbed_digest(tmp_path: Path) -> str:
    """Return the dataset's digest as a life without deaths gives it."""
    other = fakes.platform_in(tmp_path / "undisturbed")
    rows = fakes.visits(ROWS)
    rows.loc[: BAD_ROWS - 1, "plan"] = "none such"
    fakes.drop(other, "a.parquet", rows.head(300))
    fakes.drop(other, "b.parquet", rows.tail(300))
    from ml_platform import workflows

    keys = [arrival.key for arrival in workflows.waiting_arrivals(other, "visits")]
    workflows.keep_raw_batches(other, "visits", keys)
    workflows.publish_batches(other, fakes.visits_spec(), keys)
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
    assert len(datasets._open(platform.quarantine("visits")).to_pyarrow_table()) == BAD_ROWS
    shown = versions_in_mlflow(platform)
    assert len(set(shown.values())) == len(shown)
    assert shown[champion.version] == champion.candidate


@pytest.mark.fault("P1")
@pytest.mark.parametrize(("where", "when"), EVERY_STEP, ids=lambda value: str(value).rpartition(":")[2])
def test_a_life_that_was_cut_off_is_lived_again(waiting: Platform, tmp_path: Path, where: str, when: str) -> None:
    killed(waiting, where, when)
    assert waiting.database.champion("visits") is None

    live(waiting)

    require_one_champion_and_nothing_doubled(waiting, undisturbed_digest(tmp_path))


@pytest.mark.fault("P2")
@pytest.mark.parametrize(("where", "when"), IN_PROMOTION, ids=lambda value: str(value).rpartition(":")[2])
def test_a_promotion_that_was_cut_off_leaves_one_champion(waiting: Platform, where: str, when: str) -> None:
    first = live(waiting)
    fakes.drop(waiting, "later.parquet", fakes.visits(10, first=10_000))
    killed(waiting, where, when)
    champion = waiting.database.champion("visits")
    assert champion is not None
    assert champion.version >= first.version
    assert waiting.registry.alias("visits", "champion") == first.version

    last = live(waiting)

    assert waiting.database.champion("visits") == last
    assert waiting.registry.alias("visits", "champion") == last.version
    shown = versions_in_mlflow(waiting)
    assert len(set(shown.values())) == len(shown)
