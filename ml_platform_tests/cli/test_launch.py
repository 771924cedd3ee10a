"""Runs launched by this process, next to runs of killed processes and of the daemon."""

import json
import shutil
import time
import uuid
from pathlib import Path

import dagster as dg
import pytest

from ml_platform import definitions
from ml_platform.cli import launch
from ml_platform.errors import ConfigurationError, LandingZoneError
from ml_platform.models import discovery
from ml_platform.orchestration import run_monitoring
from ml_platform.orchestration.run_monitoring import (
    PROCESS_TAG,
    is_running,
    open_instance,
    process_is_gone,
    this_process,
)
from ml_platform.platform import Platform
from ml_platform.records.ledger import Action
from ml_platform.release import integration_test
from ml_platform.settings import PROJECT_ROOT
from ml_platform_tests.support import fakes
from ml_platform_tests.support.command_line import call


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(PROJECT_ROOT / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


def test_process_of_other_host_is_not_gone(dead_process: str) -> None:
    _, pid, start = dead_process.rsplit(":", 2)

    assert process_is_gone(dead_process)
    assert not process_is_gone(this_process())
    assert not process_is_gone(f"another-host:{pid}:{start}")
    assert not process_is_gone("")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc for the start time of a process")
def test_process_with_reused_id_is_gone() -> None:
    host, pid, start = this_process().rsplit(":", 2)

    assert process_is_gone(f"{host}:{pid}:{int(start) - 1}")


def started(instance: dg.DagsterInstance, process: str | None, of: str | None = None) -> dg.DagsterRun:
    """Create a run that a process executes, or a retry with the tag of run `of`."""
    job = definitions.defs().get_repository_def().get_job("churn_retrain")
    run_id = str(uuid.uuid4())
    tags = {PROCESS_TAG: f"{of or run_id}@{process}"} if process else {}
    return instance.create_run_for_job(job, run_id=run_id, status=dg.DagsterRunStatus.STARTED, tags=tags)


@pytest.mark.usefixtures("home")
def test_run_of_killed_process_is_marked_failed(dead_process: str) -> None:
    with open_instance() as instance:
        dead = started(instance, dead_process)
        alive = started(instance, this_process())
        launched_by_the_daemon = started(instance, None)

    with open_instance() as instance:
        found = {run.run_id: run.status for run in instance.get_runs()}

    assert found == {
        dead.run_id: dg.DagsterRunStatus.FAILURE,
        alive.run_id: dg.DagsterRunStatus.STARTED,
        launched_by_the_daemon.run_id: dg.DagsterRunStatus.STARTED,
    }


@pytest.mark.fault("P3")
@pytest.mark.usefixtures("home")
def test_retry_with_inherited_tag_stays_alive(dead_process: str) -> None:
    with open_instance() as instance:
        dead = started(instance, dead_process)
        retry = started(instance, dead_process, of=dead.run_id)

    with open_instance() as instance:
        assert instance.get_run_by_id(retry.run_id).status is dg.DagsterRunStatus.STARTED  # type: ignore[union-attr]


@pytest.mark.fault("P3")
@pytest.mark.usefixtures("home")
def test_run_before_its_retry_counts_as_running(dead_process: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_instance() as instance:
        dead = started(instance, dead_process)
        assert is_running(instance, "churn_retrain")
        instance.report_run_failed(dead)
        assert is_running(instance, "churn_retrain")
        assert not is_running(instance, "churn_ingest")
        with monkeypatch.context() as later:
            later.setattr(run_monitoring, "SECONDS_TO_RETRY", 0)
            assert not is_running(instance, "churn_retrain")

        instance.add_run_tags(dead.run_id, {"dagster/auto_retry_run_id": "the retry, which ended"})
        assert not is_running(instance, "churn_retrain")


@pytest.mark.usefixtures("home")
def test_add_partitions_tolerates_concurrent_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_instance() as instance:
        has_partition = dg.DagsterInstance.has_dynamic_partition

        def check_and_lose_race(self: dg.DagsterInstance, name: str, key: str) -> bool:
            found = has_partition(self, name, key)
            monkeypatch.setattr(dg.DagsterInstance, "has_dynamic_partition", has_partition)
            self.add_dynamic_partitions(name, [key])
            return found

        monkeypatch.setattr(dg.DagsterInstance, "has_dynamic_partition", check_and_lose_race)
        launch._add_partitions(instance, "churn_arrivals", ["a", "b"])

        assert sorted(instance.get_dynamic_partitions("churn_arrivals")) == ["a", "b"]


def test_retrain_broken_model_names_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ConfigurationError("vision.py, line 1: ModuleNotFoundError: No module named 'torch'.")
    monkeypatch.setattr(discovery, "load_all", lambda: ([], {"vision": error}))

    with pytest.raises(ConfigurationError, match=r"'vision' cannot be loaded, no run was started\. vision\.py, "):
        launch.retrain("vision", "manual: a test", "ada@desk")
    with pytest.raises(ConfigurationError, match=r"There is no model 'vison'\. Declared models: churn\."):
        launch.retrain("vison", "manual: a test", "ada@desk")


@pytest.mark.usefixtures("home")
def test_ingest_missing_folder_is_an_error(platform: Platform) -> None:
    with pytest.raises(LandingZoneError, match="cannot be listed"):
        launch.ingest(platform, "churn")


@pytest.mark.fault("D1")
def test_ingest_takes_files_unchanged_between_scans(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fakes.drop(platform, "done.csv", fakes.visits(100))
    growing = fakes.drop(platform, "growing.csv", fakes.visits(100, first=1_000))

    def write_on(seconds: float) -> None:
        assert seconds == platform.settings.settle_seconds
        growing.write_text("more")

    monkeypatch.setattr(time, "sleep", write_on)
    with caplog.at_level("INFO", "ml_platform"):
        scan = launch._scan_twice(platform, "visits")

    assert [arrival.name for arrival in scan.complete] == ["done.csv"]
    assert "not complete yet: growing.csv" in caplog.text


@pytest.mark.servers
def test_resume_promotes_candidate_after_failed_test(
    home: Path, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    problems = iter(["behind the server, inconclusive"])
    monkeypatch.setattr(integration_test, "server_problem", lambda *_: next(problems, None))

    refused = call("demo")
    (before,) = json.loads(call("status", "--json")[1])
    shown = call("status")[1]
    status, text = call("resume", "churn")
    again = call("resume", "churn")

    assert refused[0] == 1
    assert "integration_test of staging_version: behind the server, inconclusive" in refused[1]
    assert (before["champion"], before["last_run"]["state"]) == (None, "passed, not promoted")
    assert "next step         ml-platform resume churn\n" in shown
    assert (status, platform.database.champion("churn").version) == (0, 1)  # type: ignore[union-attr]
    assert "next step" not in text
    assert again[0] == 0
    assert [entry.action for entry in platform.database.ledger("churn")].count(Action.PROMOTION) == 1
