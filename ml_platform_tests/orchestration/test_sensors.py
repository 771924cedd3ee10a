"""The sensors and the schedule: the requests of their ticks, on an instance in a folder."""

import os
from dataclasses import asdict
from typing import Any

import dagster as dg
import pytest

from ml_platform.data.arrivals import ARRIVALS_A_RUN
from ml_platform.data.landing import land_files, waiting_arrivals
from ml_platform.data.pin import pin_dataset
from ml_platform.database.tables import arrivals as arrivals_table
from ml_platform.definitions import defs
from ml_platform.errors import LandingZoneError
from ml_platform.model_spec import Retraining
from ml_platform.orchestration.resources import arrivals_partition
from ml_platform.orchestration.sensors import arrival_requests, range_tags
from ml_platform.platform import Platform
from ml_platform.records.canonical import now
from ml_platform.records.data import Arrival
from ml_platform.training.train import train_candidate
from ml_platform_tests.support import fakes
from ml_platform_tests.support.dagster_runs import (
    ingest,
    list_partition_keys,
    repository,
    run,
    tick,
    tick_after,
    why,
)
from ml_platform_tests.support.steps import publish


def test_dataset_version_is_trained_three_times_at_most(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    publish(platform)
    spec, keys = fakes.visits_spec(), []
    pin_dataset(platform, spec)
    for _ in range(3):
        keys.append(tick(spec, "visits_retraining", instance).run_key)
        train_candidate(platform, spec, reason="arrival")

    gives_up = tick(spec, "visits_retraining", instance)

    assert len(set(keys)) == 3
    assert "3 candidates of dataset version 1 were not promoted" in str(gives_up.skip_message)


def second_tick(instance: dg.DagsterInstance) -> Any:
    _, cursor = tick_after(None, fakes.visits_spec(), "visits_arrivals", instance)
    return tick_after(cursor, fakes.visits_spec(), "visits_arrivals", instance)[0]


def test_arrival_sensor_requests_one_run_for_all_files(platform: Platform, instance: dg.DagsterInstance) -> None:
    for number in range(3):
        fakes.drop(platform, f"{number}.parquet", fakes.visits(100, first=1 + number * 100))

    result = second_tick(instance)

    keys = list_partition_keys(result)
    assert len(keys) == 3
    assert [request.tags for request in result.run_requests] == [
        {**range_tags(keys[0], keys[-1]), "ml_platform/model": "visits"}
    ]


def test_arrival_sensor_skips_handled_files(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(100))
    publish(platform)

    assert second_tick(instance).skip_message == "No new files."


def test_arrival_sensor_names_ignored_files(platform: Platform, instance: dg.DagsterInstance) -> None:
    for number in range(7):
        (fakes.landing(platform) / "visits" / f"march {number}.xlsx").write_bytes(b"")

    message = tick(fakes.visits_spec(), "visits_arrivals", instance).skip_message

    endings = ".parquet, .csv, .csv.gz, .jsonl"
    assert message.startswith(f"Ignored files, whose names are not safe or do not end in {endings}: 'march 0.")
    assert message.endswith(", 'march 4.xlsx' and 2 more.")


@pytest.mark.fault("D1")
def test_file_unchanged_for_two_ticks_is_requested(platform: Platform, instance: dg.DagsterInstance) -> None:
    sensor = fakes.visits_spec(), "visits_arrivals", instance
    path = fakes.drop(platform, "monday.csv", fakes.visits(100))

    first, cursor = tick_after(None, *sensor)
    with path.open("a") as writer:
        writer.write("the writer goes on\n")
    second, cursor = tick_after(cursor, *sensor)
    third, cursor = tick_after(cursor, *sensor)

    for skipped in (first, second):
        assert str(skipped.skip_message).startswith("1 files are not complete yet. monday.csv: it has no manifest")
    assert list_partition_keys(third) == [arrival.key for arrival in waiting_arrivals(platform, "visits")]
    assert cursor == ""


@pytest.mark.fault("D1")
def test_landed_file_is_requested_at_first_tick(platform: Platform, instance: dg.DagsterInstance) -> None:
    land_files(platform, "visits", {"monday.csv": b"a,b\n1,2\n"})

    assert len(list_partition_keys(tick(fakes.visits_spec(), "visits_arrivals", instance))) == 1


def test_tick_changes_only_its_cursor(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.csv", fakes.visits(100))

    requests = [second_tick(instance).run_requests for _ in range(2)]

    assert requests[0] == requests[1]
    assert instance.get_dynamic_partitions("visits_arrivals") == []
    assert platform.database.raw_batches("visits", list_partition_keys(second_tick(instance))) == []


@pytest.mark.servers
@pytest.mark.fault("D16")
def test_tick_requests_a_bounded_number_of_files(platform: Platform, instance: dg.DagsterInstance) -> None:
    folder = fakes.landing(platform) / "visits"
    for number in range(100_000):
        # Links to few files are quicker to make than files, and look the same.
        name = folder / f"{number:06}.csv"
        if number % 10_000:
            os.link(folder / f"{number // 10_000 * 10_000:06}.csv", name)
        else:
            name.touch()
    sensor = fakes.visits_spec(), "visits_arrivals", instance
    waiting = {arrival.key: arrival for arrival in waiting_arrivals(platform, "visits")}

    _, cursor = tick_after(None, *sensor)
    requested: list[str] = []
    for _ in range(2):
        result, cursor = tick_after(cursor, *sensor)
        keys = list_partition_keys(result)
        requested += keys
        handle(platform, [waiting[key] for key in keys])
        assert len(keys) == ARRIVALS_A_RUN
        assert len(result.run_requests) == 1
        assert len(cursor or "") < 100 * ARRIVALS_A_RUN

    assert requested == list(waiting)[: 2 * ARRIVALS_A_RUN]
    assert len(waiting_arrivals(platform, "visits")) == 100_000 - len(requested)


def handle(platform: Platform, handled: list[Arrival]) -> None:
    """Give arrivals an outcome without reading them."""
    rows = [
        {
            **asdict(arrival),
            "key": arrival.key,
            "sha256": "0" * 64,
            "raw_path": "",
            "found_at": now(),
            "outcome": "quarantined",
        }
        for arrival in handled
    ]
    with platform.database.engine.begin() as connection:
        connection.execute(arrivals_table.insert(), rows)


@pytest.mark.fault("P8")
def test_deleted_run_history_publishes_nothing_again(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(100))
    ingest(platform, instance)
    for record in instance.get_run_records():
        instance.delete_run(record.dagster_run.run_id)

    assert isinstance(second_tick(instance), dg.SkipReason)


def test_missing_landing_zone_is_an_error(platform: Platform, instance: dg.DagsterInstance) -> None:
    (fakes.landing(platform) / "visits").rmdir()

    with pytest.raises(LandingZoneError, match="cannot be listed"):
        tick(fakes.visits_spec(), "visits_arrivals", instance)


def test_ranges_cover_only_waiting_arrivals(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions("visits_arrivals", ["a", "b", "c", "d"])

    assert arrival_requests(instance, "visits", ["b", "c", "e", "a"]) == [("a", "c"), ("e", "e")]
    assert arrivals_partition("visits").name == "visits_arrivals"


@pytest.mark.fault("P5")
def test_queued_ingestion_requests_no_second_run(platform: Platform, instance: dg.DagsterInstance) -> None:
    land_files(platform, "visits", {"monday.csv": fakes.visits(60).to_csv(index=False).encode()})
    assert isinstance(tick(fakes.visits_spec(), "visits_arrivals", instance), dg.SensorResult)
    job = repository(fakes.visits_spec()).get_job("visits_ingest")
    instance.create_run_for_job(job, status=dg.DagsterRunStatus.NOT_STARTED)

    result = tick(fakes.visits_spec(), "visits_arrivals", instance)

    assert result == dg.SkipReason("The files of the last tick are being published.")


def test_retraining_waits_for_enough_rows(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    publish(platform)

    waits = tick(fakes.visits_spec(retraining=Retraining(min_new_rows=601)), "visits_retraining", instance)
    request = tick(fakes.visits_spec(retraining=Retraining(min_new_rows=600)), "visits_retraining", instance)

    assert isinstance(waits, dg.SkipReason)
    assert "600 new rows" in str(waits.skip_message)
    assert request.tags["ml_platform/reason"] == "arrival"


@pytest.mark.fault("P6")
def test_two_daemons_retrain_once_a_dataset_version(platform: Platform, instance: dg.DagsterInstance) -> None:
    fakes.drop(platform, "monday.parquet", fakes.visits(600))
    publish(platform)
    requests = [tick(fakes.visits_spec(), "visits_retraining", instance) for _ in range(2)]

    first, second = (run("visits_retrain", instance, tags=request.tags) for request in requests)

    assert first.success, why(first)
    assert f"Run {first.run_id} already retrains 'visits'" in why(second)[0]
    assert platform.database.count_candidates("visits", platform.database.newest_publication("visits") or 0) == 1
    assert isinstance(tick(fakes.visits_spec(), "visits_retraining", instance), dg.SkipReason)


def test_weekly_schedule_is_monday_at_two_utc() -> None:
    schedule = defs().get_repository_def().get_schedule_def("churn_weekly")

    assert schedule.cron_schedule == "0 2 * * 1"
    assert schedule.execution_timezone == "UTC"
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
