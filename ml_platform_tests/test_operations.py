import contextlib
import functools
import json
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from ml_platform import liveness
from ml_platform.definitions import defs
from ml_platform.liveness import PROCESS_TAG, SERVER_TAG, this_process

STARTING, STARTED, FAILURE = dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.FAILURE


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as opened:
        yield opened


@functools.cache
def repository() -> dg.RepositoryDefinition:
    return defs().get_repository_def()


@contextlib.contextmanager
def code_server(path: Path) -> Iterator[str]:
    """Listen as a code server does; yield what Dagster's launcher notes of it."""
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
    said = repository().get_sensor_def("dead_runs")(dg.build_sensor_context(instance=instance))
    assert isinstance(said, dg.SkipReason)
    return str(said.skip_message)


def status_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status


@pytest.mark.fault("P3")
def test_the_daemon_marks_runs_whose_process_died(instance: dg.DagsterInstance, dead_process: str) -> None:
    dead = create(instance, STARTED, process=dead_process)
    alive = create(instance, STARTED, process=this_process())

    assert dead.run_id in tick(instance)

    assert status_of(instance, dead) is FAILURE
    assert status_of(instance, alive) is STARTED


@pytest.mark.fault("P3")
@pytest.mark.parametrize("status", [STARTING, STARTED])
def test_the_daemon_marks_runs_whose_code_server_died_before_they_began(
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: dg.DagsterRunStatus,
) -> None:
    monkeypatch.setattr(liveness, "SECONDS_TO_NOTE", 0)
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

    assert status_of(instance, dead) is FAILURE
    assert [status_of(instance, run) for run in spared] == [status] * 4


def test_a_launch_under_way_is_left_alone(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    with code_server(tmp_path / "dead") as server:
        pass
    retry = create(instance, STARTING, server=server)

    assert tick(instance) == "No run has died."
    assert status_of(instance, retry) is STARTING
