"""Collection of logged predictions into the table, and erasure of entities from both."""

import json
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from deltalake import DeltaTable

from ml_platform.data import quarantine
from ml_platform.errors import ConflictError
from ml_platform.governance import forget
from ml_platform.monitoring.prediction_log import files
from ml_platform.monitoring.prediction_log.collect import take_predictions, waiting_predictions
from ml_platform.monitoring.prediction_log.writer import PredictionLog, TrafficRole
from ml_platform.platform import Platform, exclusive_data_lock
from ml_platform.storage import delta_table
from ml_platform_tests.support import fakes
from ml_platform_tests.support.dagster_runs import repository, run, tick, why
from ml_platform_tests.support.prediction_logs import AT, VERSION, prediction, write
from ml_platform_tests.support.simulated_death import ProcessDiedError, die

SPEC = fakes.visits_spec()


def find_log_folder(platform: Platform) -> Path:
    return platform.prediction_files("visits")


def read_rows(platform: Platform) -> list[dict[str, Any]]:
    rows = DeltaTable(platform.predictions("visits")).to_pyarrow_table().to_pylist()
    return sorted(rows, key=lambda row: (row["at"], row["id"]))


@pytest.fixture
def fresh(platform: Platform) -> Platform:
    """A platform that keeps the tests' predictions, which are some years old."""
    return Platform(platform.settings.model_copy(update={"prediction_retention_days": 36_500.0}))


def test_a_closed_file_is_taken_once_and_removed(fresh: Platform) -> None:
    write(find_log_folder(fresh), [prediction(7), prediction(8, record=(400, 1.0, "free"), role=TrafficRole.SHADOW)])
    write(find_log_folder(fresh), [prediction(None, score=np.array([0.25, 0.75]), prediction="fox")], "host-1")

    taken = take_predictions(fresh, SPEC)
    again = take_predictions(fresh, SPEC)

    assert (taken.files, taken.rows, taken.total, taken.unreadable) == (2, 3, 3, 0)
    assert (again.files, again.rows, again.total, again.version) == (0, 0, 3, taken.version)
    assert waiting_predictions(fresh, "visits") == []
    first, second, third = sorted(read_rows(fresh), key=lambda row: row["entity"] or "x")
    assert datetime.fromtimestamp(AT, UTC) == first["at"]
    assert json.loads(first.pop("inputs")) == {"pages": 41, "plan": "paid"}
    assert {
        name: first[name] for name in ("request_id", "record", "worker", "version", "digest", "role", "entity")
    } == {
        "request_id": "request-7",
        "record": 0,
        "worker": "host-0",
        "version": 3,
        "digest": VERSION.digest,
        "role": "champion",
        "entity": "7",
    }
    assert (first["score"], first["prediction"], first["anomaly_score"], first["seconds"]) == (0.75, "1", 0.0, 0.0125)
    assert (second["role"], second["anomaly_score"]) == ("shadow", 1.0)
    assert (third["scores"], third["score"], third["prediction"], third["entity"]) == ([0.25, 0.75], None, "fox", None)


def test_collection_killed_after_commit_takes_file_once(fresh: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    write(find_log_folder(fresh), [prediction(7), prediction(8)])

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", die)
        with pytest.raises(ProcessDiedError):
            take_predictions(fresh, SPEC)
    assert len(waiting_predictions(fresh, "visits")) == 1
    # An erasure changes the file's bytes; it is identified by its name.
    (file,) = files.closed_files(find_log_folder(fresh))
    file.write_bytes(file.read_bytes().splitlines(keepends=True)[0])

    taken = take_predictions(fresh, SPEC)

    assert (taken.files, taken.rows, taken.total) == (1, 0, 2)
    assert not file.exists()


def test_file_left_open_by_killed_server_is_collected(fresh: Platform) -> None:
    write(find_log_folder(fresh), [prediction(7)])
    (file,) = files.closed_files(find_log_folder(fresh))
    file.rename(file.with_name(f"{file.name}.open"))

    assert len(waiting_predictions(fresh, "visits")) == 1
    assert take_predictions(fresh, SPEC).rows == 1


def test_lines_that_are_no_entries_are_counted(fresh: Platform) -> None:
    write(find_log_folder(fresh), [prediction(7)])
    (file,) = files.closed_files(find_log_folder(fresh))
    file.write_bytes(b"\0\0\0\n" + b'{"ml": 1}\n' + b"\n" + file.read_bytes())

    taken = take_predictions(fresh, SPEC)

    assert (taken.rows, taken.unreadable) == (1, 2)


def test_rows_are_deleted_when_they_are_too_old(platform: Platform) -> None:
    today = datetime.now(UTC).timestamp()
    days = {name: today - days * 86_400 for name, days in (("old", 92.0), ("due", 90.5), ("new", 89.0))}
    write(find_log_folder(platform), [prediction(7, at=days["due"], request_id="due")])
    write(find_log_folder(platform), [prediction(7, at=days["new"], request_id="new")], "host-1")

    # Rows are deleted at most a day late, so that the table is not rewritten every minute.
    assert take_predictions(platform, SPEC).expired == 0
    write(find_log_folder(platform), [prediction(7, at=days["old"], request_id="old")])
    assert take_predictions(platform, SPEC).expired == 2

    assert [row["request_id"] for row in read_rows(platform)] == ["new"]
    assert take_predictions(platform, SPEC).expired == 0


def test_compaction_of_many_files_keeps_all_rows(fresh: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_table, "MANY_FILES", 4)
    for number in range(4):
        write(find_log_folder(fresh), [prediction(number)], f"host-{number}")

    take_predictions(fresh, SPEC)

    assert len(DeltaTable(fresh.predictions("visits")).file_uris()) == 1
    assert [row["entity"] for row in read_rows(fresh)] == ["0", "1", "2", "3"]


# Erasure


def find_mentions(platform: Platform, *texts: str) -> list[str]:
    """Return the files of log and table that contain one of some texts; Parquet files are searched by value."""
    mentioned = []
    for file in [*find_log_folder(platform).rglob("*"), *platform.predictions("visits").rglob("*")]:
        if file.is_file():
            data = file.read_bytes()
            if file.suffix == ".parquet":
                import pyarrow.parquet as pq

                data = str(pq.read_table(file).to_pylist()).encode() + data
            mentioned += [file.name for text in texts if text.encode() in data]
    return mentioned


SECRET = 98_765_432


# Two rows are in two files of old versions, while these are kept, in one of the newest version, and in two of the log.
@pytest.mark.parametrize(("hours", "lost"), [(24, 6), (0, 4)])
def test_erasure_covers_files_and_all_table_versions(
    hours: int, lost: int, fresh: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_table, "MANY_FILES", 2)
    monkeypatch.setattr(delta_table, "HOURS_TO_FINISH", hours)
    for worker in ("host-0", "host-1"):
        write(find_log_folder(fresh), [prediction(SECRET), prediction(8)], worker)
    take_predictions(fresh, SPEC)  # two commits, and one that compacts their files
    write(find_log_folder(fresh), [prediction(float(SECRET)), prediction(9)])  # as a client without integers writes it
    with_open = PredictionLog(find_log_folder(fresh), "host-2")
    with_open.write(prediction(SECRET))
    until = time.monotonic() + 10
    while not any(file.stat().st_size for file in files.open_files(find_log_folder(fresh))):
        assert time.monotonic() < until
    assert find_mentions(fresh, str(SECRET))

    done = forget.forget(fresh, SPEC, str(SECRET), reason="they asked", actor="ann")

    assert done["figures"]["predictions"] == lost
    assert find_mentions(fresh, str(SECRET)) == []
    with_open.write(prediction(float(SECRET)))  # a later request about the entity
    with_open.write(prediction(10))
    with_open.close()
    take_predictions(fresh, SPEC)
    assert [row["entity"] for row in read_rows(fresh)] == ["10", "8", "8", "9"]
    assert find_mentions(fresh, str(SECRET)) == []


@pytest.mark.slow
def test_collection_and_erasure_exclude_each_other(fresh: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "SECONDS_TO_WAIT", 0.05)
    write(find_log_folder(fresh), [prediction(7)])
    with exclusive_data_lock(fresh, "visits"):
        taking = threading.Thread(target=take_predictions, args=(fresh, SPEC))
        taking.start()
        taking.join(0.3)
        assert taking.is_alive()
        with pytest.raises(ConflictError, match="Another release, erasure or compaction"):
            forget.forget(fresh, SPEC, "7", reason="they asked", actor="ann")
    taking.join(30)
    assert len(read_rows(fresh)) == 1
    monkeypatch.setattr("ml_platform.monitoring.prediction_log.collect.SECONDS_TO_WAIT", 0.05)
    with exclusive_data_lock(fresh, "visits"), pytest.raises(ConflictError):
        take_predictions(fresh, SPEC)


def test_erasure_server_keeping_file_open_is_refused(fresh: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_platform.monitoring.prediction_log.collect.SECONDS_TO_CLOSE", 0.1)
    find_log_folder(fresh).mkdir(parents=True)
    held, _ = files.create(find_log_folder(fresh), files.new_name("host-0", AT))
    with pytest.raises(ConflictError, match="does not close its prediction log"):
        forget.forget(fresh, SPEC, "7", reason="they asked", actor="ann")
    os.close(held)
    assert forget.forget(fresh, SPEC, "7", reason="they asked", actor="ann")["figures"]["predictions"] == 0


# As Dagster runs it


def test_the_asset_takes_what_waits_and_says_so(platform: Platform, instance: dg.DagsterInstance) -> None:
    write(find_log_folder(platform), [prediction(7, at=datetime.now(UTC).timestamp())])

    result = run("visits_predictions", instance)

    assert result.success, why(result)
    (event,) = result.get_asset_materialization_events()
    metadata = {name: value.value for name, value in event.materialization.metadata.items()}
    assert event.asset_key == dg.AssetKey(["visits", "prediction_log"])
    assert metadata == {
        "files": 1,
        "new_rows": 1,
        "dagster/row_count": 1,
        "unreadable_lines": 0,
        "expired_rows": 0,
        "table_version": 1,
    }


def test_sensor_requests_run_while_files_wait(platform: Platform, instance: dg.DagsterInstance) -> None:
    assert isinstance(tick(SPEC, "visits_predictions", instance), dg.SkipReason)
    write(find_log_folder(platform), [prediction(7)])
    request = tick(SPEC, "visits_predictions", instance)
    assert isinstance(request, dg.RunRequest)
    instance.create_run_for_job(repository(SPEC).get_job("visits_predictions"), status=dg.DagsterRunStatus.STARTED)
    assert isinstance(tick(SPEC, "visits_predictions", instance), dg.SkipReason)
