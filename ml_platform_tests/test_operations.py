from pathlib import Path

import dagster as dg
import pytest

from ml_platform.definitions import defs
from ml_platform.liveness import PROCESS_TAG, process_tag


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
