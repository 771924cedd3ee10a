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
from dagster_shared.error import SerializableErrorInfo

from ml_platform.definitions import defs
from ml_platform.errors import LandingZoneError
from ml_platform.liveness import PROCESS_TAG, process_tag
from ml_platform.pipeline import PlatformResource
from ml_platform_tests import fakes


@pytest.fixture
def repository() -> dg.RepositoryDefinition:
    return defs().get_repository_def()


def test_the_daemon_marks_runs_whose_process_died(
    repository: dg.RepositoryDefinition, dead_process: str, tmp_path: Path
) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        job, started = repository.get_job("churn_retrain"), dg.DagsterRunStatus.STARTED
        dead = instance.create_run_for_job(job, status=started, tags={PROCESS_TAG: dead_process})
        alive = instance.create_run_for_job(job, status=started, tags={PROCESS_TAG: process_tag()})

        said = repository.get_sensor_def("dead_runs")(dg.build_sensor_context(instance=instance))

        assert isinstance(said, dg.SkipReason)
        assert dead.run_id in str(said.skip_message)
        assert instance.get_run_by_id(dead.run_id).status is dg.DagsterRunStatus.FAILURE  # type: ignore[union-attr]
        assert instance.get_run_by_id(alive.run_id).status is started  # type: ignore[union-attr]


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


def look_at_ticks(repository: dg.RepositoryDefinition, instance: dg.DagsterInstance, cursor: str | None) -> Any:
    context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"platform": PlatformResource()})
    repository.get_sensor_def("red_ticks")(context)
    return context.cursor


@pytest.mark.fault("S5")
def test_a_red_tick_is_an_alert_until_one_is_green(
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
        cursor = look_at_ticks(repository, instance, None)
        cursor = look_at_ticks(repository, instance, cursor)
        record_tick(instance, "visits_arrivals", TickStatus.SKIPPED)
        look_at_ticks(repository, instance, cursor)

    alert = {
        "labels": {"alertname": "TickFailed", "sensor": "visits_arrivals"},
        "annotations": {"summary": "403 from s3://landing"},
    }
    assert manager.taken == [alert, alert]
    assert [r.getMessage() for r in caplog.records if r.name == "ml_platform.alerts"] == [
        "TickFailed: 403 from s3://landing"
    ]


def test_a_failed_run_is_an_alert_that_says_why(
    repository: dg.RepositoryDefinition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        result = nightly.execute_in_process(instance=instance, raise_on_error=False)
        context = dg.build_run_status_sensor_context(
            "failed_runs",
            result.get_run_failure_event(),
            instance,
            result.dagster_run,
            resources={"platform": PlatformResource()},
        ).for_run_failure()
        repository.get_sensor_def("failed_runs")(context)

    (alert,) = manager.taken
    assert alert["labels"] == {"alertname": "RunFailed", "job": "nightly", "run": result.run_id}
    assert alert["annotations"] == {"summary": "403 from s3://landing"}
