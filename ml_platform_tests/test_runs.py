"""Runs that this process launches, beside others that died or that the daemon launches."""

import shutil
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ml_platform import definitions, runs
from ml_platform.errors import ConfigurationError, LandingZoneError
from ml_platform.liveness import PROCESS_TAG, opened_instance, process_is_gone, process_tag
from ml_platform.workflows import Platform
from ml_platform_tests import fakes

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


def test_only_a_process_of_this_host_can_be_known_to_be_gone(dead_process: str) -> None:
    _, pid, start = dead_process.rsplit(":", 2)

    assert process_is_gone(dead_process)
    assert not process_is_gone(process_tag())
    assert not process_is_gone(f"another-host:{pid}:{start}")
    assert not process_is_gone(None)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="without /proc nobody tells when a process started")
def test_another_process_under_the_same_id_is_not_the_run() -> None:
    host, pid, start = process_tag().rsplit(":", 2)

    assert process_is_gone(f"{host}:{pid}:{int(start) - 1}")


def started(instance: dg.DagsterInstance, tags: dict[str, str]) -> dg.DagsterRun:
    return instance.create_run_for_job(
        definitions.defs().get_repository_def().get_job("churn_retrain"), status=dg.DagsterRunStatus.STARTED, tags=tags
    )


@pytest.mark.usefixtures("home")
def test_a_run_whose_process_was_killed_holds_nobody_up(dead_process: str) -> None:
    with opened_instance() as instance:
        dead = started(instance, {PROCESS_TAG: dead_process})
        alive = started(instance, {PROCESS_TAG: process_tag()})
        launched_by_the_daemon = started(instance, {})

    with opened_instance() as instance:
        found = {run.run_id: run.status for run in instance.get_runs()}

    assert found == {
        dead.run_id: dg.DagsterRunStatus.FAILURE,
        alive.run_id: dg.DagsterRunStatus.STARTED,
        launched_by_the_daemon.run_id: dg.DagsterRunStatus.STARTED,
    }


@pytest.mark.usefixtures("home")
def test_partitions_that_somebody_else_adds_at_the_same_time_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened_instance() as instance:
        looked = dg.DagsterInstance.has_dynamic_partition

        def look_and_be_overtaken(self: dg.DagsterInstance, name: str, key: str) -> bool:
            found = looked(self, name, key)
            monkeypatch.setattr(dg.DagsterInstance, "has_dynamic_partition", looked)
            self.add_dynamic_partitions(name, [key])
            return found

        monkeypatch.setattr(dg.DagsterInstance, "has_dynamic_partition", look_and_be_overtaken)
        runs._add_partitions(instance, "churn_arrivals", ["a", "b"])

        assert sorted(instance.get_dynamic_partitions("churn_arrivals")) == ["a", "b"]


def test_a_models_file_that_does_not_import_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        cause = ModuleNotFoundError("No module named 'torch'")
        raise RuntimeError("Error while building definitions for models/vision.py:\n├── …") from cause

    monkeypatch.setattr(definitions, "defs", broken)

    with pytest.raises(ConfigurationError, match=r"models/vision\.py\. ModuleNotFoundError: No module named 'torch'"):
        runs.retrain("vision", "manual: a test", "ada@desk")


@pytest.mark.usefixtures("home")
def test_the_files_of_a_model_whose_folder_is_missing_are_not_no_new_files(platform: Platform) -> None:
    with pytest.raises(LandingZoneError, match="cannot be listed"):
        runs.ingest(platform, "churn")


@pytest.mark.fault("D1")
def test_a_person_who_asks_at_once_takes_what_two_looks_found_unchanged(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fakes.drop(platform, "done.csv", fakes.visits(100))
    growing = fakes.drop(platform, "growing.csv", fakes.visits(100, first=1_000))

    def write_on(seconds: float) -> None:
        assert seconds == platform.settings.settle_seconds
        growing.write_text("more")

    monkeypatch.setattr(time, "sleep", write_on)
    with caplog.at_level("INFO", "ml_platform"):
        found = runs._look_twice(platform, "visits")

    assert [arrival.name for arrival in found.complete] == ["done.csv"]
    assert "not complete yet: growing.csv" in caplog.text
