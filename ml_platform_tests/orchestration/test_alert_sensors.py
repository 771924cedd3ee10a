"""The alert sensors: failed ticks and failed runs."""

import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, InstigatorType, TickData, TickStatus
from dagster._utils import get_run_crash_explanation
from dagster_shared.error import SerializableErrorInfo

from ml_platform.definitions import defs
from ml_platform.errors import LandingZoneError
from ml_platform.orchestration.resources import PlatformResource
from ml_platform_tests.support import fakes


@pytest.fixture
def repository() -> dg.RepositoryDefinition:
    return defs().get_repository_def()


REFUSED = SerializableErrorInfo("ml_platform.errors.LandingZoneError: 403 from s3://landing", [], "LandingZoneError")


def record_tick(instance: dg.DagsterInstance, sensor: str, status: TickStatus, *, ago: float = 0) -> None:
    """Record a tick as the daemon does."""
    location = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("ml_platform"), "__repository__")
    origin = RemoteInstigatorOrigin(location, sensor)
    if not [state for state in instance.all_instigator_state() if state.name == sensor]:
        state = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.DECLARED_IN_CODE)
        instance.add_instigator_state(state)
    instance.create_tick(
        TickData(
            instigator_origin_id=origin.get_id(),
            instigator_name=sensor,
            instigator_type=InstigatorType.SENSOR,
            status=status,
            timestamp=time.time() - ago,
            error=REFUSED if status is TickStatus.FAILURE else None,
            selector_id=origin.get_selector().get_id(),
        )
    )


def run_tick_sensor(repository: dg.RepositoryDefinition, instance: dg.DagsterInstance, cursor: str | None) -> Any:
    context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"platform": PlatformResource()})
    repository.get_sensor_def("red_ticks")(context)
    return context.cursor


@pytest.mark.fault("S5")
def test_failed_tick_alerts_until_a_tick_succeeds(
    repository: dg.RepositoryDefinition,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = fakes.Alertmanager()
    with manager.running() as address, dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        monkeypatch.setenv("ML_PLATFORM_ALERTMANAGER_URL", address)
        record_tick(instance, "visits_arrivals", TickStatus.FAILURE, ago=60)
        record_tick(instance, "others_arrivals", TickStatus.SKIPPED)
        record_tick(instance, "removed_long_ago", TickStatus.FAILURE, ago=7_200)
        cursor = run_tick_sensor(repository, instance, None)
        cursor = run_tick_sensor(repository, instance, cursor)
        record_tick(instance, "visits_arrivals", TickStatus.SKIPPED)
        run_tick_sensor(repository, instance, cursor)

    alert = {
        "labels": {"alertname": "TickFailed", "sensor": "visits_arrivals"},
        "annotations": {"summary": "403 from s3://landing"},
    }
    assert manager.taken == [alert, alert]
    assert [r.getMessage() for r in caplog.records if r.name == "ml_platform.alerts"] == [
        "TickFailed: 403 from s3://landing"
    ]


@pytest.mark.parametrize("retried", [False, True])
def test_failed_run_alerts_unless_it_is_retried(
    repository: dg.RepositoryDefinition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retried: bool
) -> None:
    @dg.op
    def fails() -> None:
        raise LandingZoneError("403 from s3://landing")

    @dg.job
    def nightly() -> None:
        fails()

    manager = fakes.Alertmanager()
    with manager.running() as address, dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        monkeypatch.setenv("ML_PLATFORM_ALERTMANAGER_URL", address)
        tags = {"dagster/will_retry": "true"} if retried else {}
        result = nightly.execute_in_process(instance=instance, raise_on_error=False, tags=tags)
        context = dg.build_run_status_sensor_context(
            "failed_runs",
            result.get_run_failure_event(),
            instance,
            result.dagster_run,
            resources={"platform": PlatformResource()},
        ).for_run_failure()
        repository.get_sensor_def("failed_runs")(context)

    alert = {
        "labels": {"alertname": "RunFailed", "job": "nightly", "run": result.run_id},
        "annotations": {"summary": "403 from s3://landing"},
    }
    assert manager.taken == ([] if retried else [alert])


@pytest.mark.fault("P4")
def test_alert_of_killed_run_names_the_signal(
    repository: dg.RepositoryDefinition, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @dg.job
    def nightly() -> None:
        """Do nothing."""

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance, caplog.at_level("ERROR", "ml_platform.alerts"):
        run = instance.create_run_for_job(nightly, status=dg.DagsterRunStatus.STARTED)
        words = get_run_crash_explanation(f"Run execution process for {run.run_id}", -9)
        instance.report_engine_event(words, run)
        failure = instance.report_run_failed(run)
        context = dg.build_run_status_sensor_context(
            "failed_runs", failure, instance, run, resources={"platform": PlatformResource()}
        ).for_run_failure()
        repository.get_sensor_def("failed_runs")(context)

    assert [record.getMessage() for record in caplog.records] == [f"RunFailed: {words}"]
