import contextlib
import functools
import json
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._utils import get_run_crash_explanation

from ml_platform.definitions import defs
from ml_platform.orchestration import run_monitoring
from ml_platform.orchestration.run_monitoring import PROCESS_TAG, SERVER_TAG, exit_reason, is_running, this_process

STARTING, STARTED, FAILURE = dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.FAILURE
NOT_STARTED = dg.DagsterRunStatus.NOT_STARTED


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as opened:
        yield opened


@functools.cache
def repository() -> dg.RepositoryDefinition:
    return defs().get_repository_def()


@contextlib.contextmanager
def code_server(path: Path) -> Iterator[str]:
    """Listen as a code server does; yield the tag that Dagster's launcher stores."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        yield json.dumps({"host": "localhost", "socket": str(path)})


def create(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus, *, process: str = "", server: str = ""
) -> dg.DagsterRun:
    run_id = str(uuid.uuid4())
    tags = {PROCESS_TAG: f"{run_id}@{process}"} if process else {}
    tags |= {SERVER_TAG: server} if server else {}
    job = repository().get_job("churn_retrain")
    return instance.create_run_for_job(job, run_id=run_id, status=status, tags=tags)


def tick(instance: dg.DagsterInstance) -> str:
    result = repository().get_sensor_def("dead_runs")(dg.build_sensor_context(instance=instance))
    assert isinstance(result, dg.SkipReason)
    return str(result.skip_message)


def read_run_status(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    stored = instance.get_run_by_id(run.run_id)
    assert stored is not None
    return stored.status


@pytest.mark.fault("P3")
def test_run_of_dead_process_is_failed(instance: dg.DagsterInstance, dead_process: str) -> None:
    dead = create(instance, STARTED, process=dead_process)
    alive = create(instance, STARTED, process=this_process())

    assert dead.run_id in tick(instance)

    assert read_run_status(instance, dead) is FAILURE
    assert read_run_status(instance, alive) is STARTED


@pytest.mark.fault("P3")
@pytest.mark.parametrize("status", [STARTING, STARTED])
def test_run_of_dead_code_server_is_failed(
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: dg.DagsterRunStatus,
) -> None:
    monkeypatch.setattr(run_monitoring, "SECONDS_TO_NOTE", 0)
    with code_server(tmp_path / "dead") as server:
        dead = create(instance, status, server=server)
        assert dead.run_id not in tick(instance)
    with code_server(tmp_path / "alive") as alive:
        spared = [
            create(instance, status, server=alive),
            create(instance, status, server=server, process=this_process()),
            create(instance, status, server=json.dumps({"host": "elsewhere", "port": 4000})),
            create(instance, status),
        ]

        assert dead.run_id in tick(instance)

    assert read_run_status(instance, dead) is FAILURE
    assert [read_run_status(instance, run) for run in spared] == [status] * 4


@pytest.mark.fault("P4")
def test_code_server_reports_the_killed_process_first(
    instance: dg.DagsterInstance, tmp_path: Path, dead_process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_monitoring, "SECONDS_TO_SAY", 0.5)
    with code_server(tmp_path / "alive") as server:
        reported, unreported = (create(instance, STARTED, process=dead_process, server=server) for _ in range(2))
        report = threading.Timer(0.1, instance.report_run_failed, (reported, "by signal 9"))
        report.start()

        marked = tick(instance)

    report.join()
    assert unreported.run_id in marked
    assert reported.run_id not in marked


@pytest.mark.fault("P5")
def test_run_that_was_never_queued_is_failed(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten = create(instance, NOT_STARTED)
    assert tick(instance) == "No run was killed."
    assert is_running(instance, "churn_retrain")

    monkeypatch.setattr(run_monitoring, "SECONDS_TO_QUEUE", 0)

    assert forgotten.run_id in tick(instance)
    assert read_run_status(instance, forgotten) is FAILURE
    assert not is_running(instance, "churn_retrain")


@pytest.mark.fault("P4")
def test_exit_reason_is_the_code_servers_message(instance: dg.DagsterInstance) -> None:
    killed, failed = create(instance, STARTED), create(instance, STARTED)
    prefix = f"Run execution process for {killed.run_id}"
    instance.report_engine_event("Executing steps in process", killed)
    instance.report_engine_event(f"[DagsterApiServer] {get_run_crash_explanation(prefix, -9)}", killed)
    instance.report_engine_event("Executing steps in process", failed)

    assert exit_reason(instance, killed.run_id).startswith(
        f"{prefix} was terminated by signal 9 (SIGKILL). This usually"
    )
    assert exit_reason(instance, failed.run_id) == ""


def test_launch_in_progress_is_left_alone(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    with code_server(tmp_path / "dead") as server:
        pass
    retry = create(instance, STARTING, server=server)

    assert tick(instance) == "No run was killed."
    assert read_run_status(instance, retry) is STARTING
