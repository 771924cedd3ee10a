"""Run a model's jobs and sensors in this process, and read their records."""

from typing import Any

import dagster as dg

from ml_platform.cli.launch import QUIET, describe_failure
from ml_platform.data.landing import waiting_arrivals
from ml_platform.model_spec import ModelSpec
from ml_platform.orchestration.resources import PlatformResource
from ml_platform.orchestration.sensors import range_tags
from ml_platform.pipeline import model_definitions
from ml_platform.platform import Platform
from ml_platform_tests.support import fakes


def repository(spec: ModelSpec) -> dg.RepositoryDefinition:
    resources = dg.Definitions(resources={"platform": PlatformResource()}, executor=dg.in_process_executor)
    return dg.Definitions.merge(model_definitions(spec), resources).get_repository_def()


def run(job: str, instance: dg.DagsterInstance, spec: ModelSpec | None = None, **options: Any) -> Any:
    definition = repository(spec or fakes.visits_spec()).get_job(job)
    return definition.execute_in_process(run_config=QUIET, instance=instance, raise_on_error=False, **options)


def why(result: Any) -> list[str]:
    """Return the errors of a run's failed steps, for the message of an assertion."""
    return [describe_failure(event) for event in result.get_step_failure_events()]


def ingest(platform: Platform, instance: dg.DagsterInstance) -> Any:
    keys = [arrival.key for arrival in waiting_arrivals(platform, "visits")]
    instance.add_dynamic_partitions("visits_arrivals", keys)
    return run("visits_ingest", instance, tags=range_tags(keys[0], keys[-1]))


def read_checks(result: Any) -> dict[str, bool]:
    return {check.check_name: check.passed for check in result.get_asset_check_evaluations()}


def materialised(result: Any) -> set[str]:
    return {event.asset_key.path[-1] for event in result.get_asset_materialization_events()}


def tick(spec: ModelSpec, sensor: str, instance: dg.DagsterInstance) -> Any:
    return tick_after(None, spec, sensor, instance)[0]


def tick_after(
    cursor: str | None, spec: ModelSpec, sensor: str, instance: dg.DagsterInstance
) -> tuple[Any, str | None]:
    """Return a tick's result and its cursor for the next tick."""
    definition = repository(spec).get_sensor_def(sensor)
    context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"platform": PlatformResource()})
    return definition(context), context.cursor


def list_partition_keys(result: Any) -> list[str]:
    """Return the partitions that a tick requests."""
    return list(result.dynamic_partitions_requests[0].partition_keys)
