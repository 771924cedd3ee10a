import time
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    TickData,
    TickStatus,
)

from ml_platform.orchestration.trigger_record import request_time, was_triggered

LOCATION = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("ml_platform"), "__repository__")
TICK = "dagster/tick"


def create_run(instance: dg.DagsterInstance, *, submitted: bool = True, **options: Any) -> dg.DagsterRun:
    """Create a run as the daemon does or, if it is not submitted to a code server, as `dagster job execute`."""
    origin = LOCATION.get_job_origin("visits_retrain") if submitted else None
    run = dg.DagsterRun(job_name="visits_retrain", remote_job_origin=origin, **options)
    return instance.add_run(run)


def record_tick(
    instance: dg.DagsterInstance, runs: list[str], *, trigger: str = "visits_retraining", ahead: float = 0
) -> str:
    """Record a tick that launched some runs, and return its id."""
    kind = InstigatorType.SCHEDULE if trigger.endswith("weekly") else InstigatorType.SENSOR
    origin = RemoteInstigatorOrigin(LOCATION, trigger)
    if not [state for state in instance.all_instigator_state() if state.name == trigger]:
        cron = ScheduleInstigatorData("0 2 * * 1") if kind is InstigatorType.SCHEDULE else None
        instance.add_instigator_state(InstigatorState(origin, kind, InstigatorStatus.DECLARED_IN_CODE, cron))
    tick = instance.create_tick(
        TickData(
            instigator_origin_id=origin.get_id(),
            instigator_name=trigger,
            instigator_type=kind,
            status=TickStatus.SUCCESS,
            timestamp=time.time() + ahead,
            run_ids=runs,
            selector_id=origin.get_selector().get_id(),
        )
    )
    return str(tick.tick_id)


def run_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


@pytest.mark.parametrize("trigger", ["visits_retraining", "visits_weekly"])
def test_run_listed_in_tick_is_triggered(instance: dg.DagsterInstance, trigger: str) -> None:
    tick = record_tick(instance, [run_id(1)], trigger=trigger)
    run = create_run(instance, run_id=run_id(1), tags={TICK: tick})

    assert was_triggered(instance, run, "visits")
    assert not was_triggered(instance, run, "shop")


@pytest.mark.fault("A2")
def test_run_with_tags_of_tick_is_not_triggered(instance: dg.DagsterInstance) -> None:
    tick = record_tick(instance, [run_id(1)])
    tags = {TICK: tick, "dagster/sensor_name": "visits_retraining", "ml_platform/reason": "arrival"}

    assert not was_triggered(instance, create_run(instance, run_id=run_id(2), tags=tags), "visits")


@pytest.mark.fault("A2")
@pytest.mark.parametrize("trigger", ["visits_traffic", "shop_retraining"])
def test_run_of_other_trigger_is_not_triggered(instance: dg.DagsterInstance, trigger: str) -> None:
    tick = record_tick(instance, [run_id(1)], trigger=trigger)

    assert not was_triggered(instance, create_run(instance, run_id=run_id(1), tags={TICK: tick}), "visits")


@pytest.mark.fault("A2")
def test_older_run_adopted_by_schedule_is_not_triggered(instance: dg.DagsterInstance) -> None:
    """A schedule lists an existing run with the tags of its slot instead of starting another one."""
    tick = record_tick(instance, [run_id(1), run_id(2), run_id(3)], trigger="visits_weekly", ahead=60)
    earlier = create_run(instance, run_id=run_id(1), tags={TICK: tick})
    tick = record_tick(instance, [run_id(2), run_id(3)], trigger="visits_weekly")
    untagged = create_run(instance, run_id=run_id(2), tags={"dagster/schedule_name": "visits_weekly"})
    by_command = create_run(instance, run_id=run_id(3), tags={TICK: tick}, submitted=False)

    assert [was_triggered(instance, run, "visits") for run in (earlier, untagged, by_command)] == [False, False, False]


@pytest.mark.fault("A2")
def test_retry_is_triggered_only_if_automatic(instance: dg.DagsterInstance) -> None:
    tick = record_tick(instance, [run_id(1)])
    first = create_run(instance, run_id=run_id(1), tags={TICK: tick})
    family: dict[str, Any] = {"root_run_id": first.run_id, "parent_run_id": first.run_id, "tags": {TICK: tick}}
    automatic, by_hand = (create_run(instance, run_id=run_id(number), **family) for number in (2, 3))
    lost = create_run(instance, run_id=run_id(4), **{**family, "parent_run_id": run_id(9)})
    instance.add_run_tags(first.run_id, {"dagster/auto_retry_run_id": automatic.run_id})

    assert was_triggered(instance, automatic, "visits")
    assert not was_triggered(instance, by_hand, "visits")
    assert not was_triggered(instance, lost, "visits")


def test_request_time_is_creation_of_run(instance: dg.DagsterInstance) -> None:
    before = time.time()
    run = create_run(instance, run_id=run_id(1))

    created = request_time(instance, run.run_id)

    assert created is not None
    assert before - 1 <= created.timestamp() <= time.time()
    assert created.tzinfo is not None
    assert request_time(instance, run_id(2)) is None
