"""From what servers log to the table of predictions, and without those who were forgotten."""

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

from ml_platform import corrections, prediction_files, workflows
from ml_platform.errors import ConflictError
from ml_platform.serving.prediction_log import PredictionLog, Slot
from ml_platform.stages import datasets
from ml_platform.workflows import Platform
from ml_platform_tests import fakes
from ml_platform_tests.logged import AT, VERSION, prediction, write
from ml_platform_tests.test_pipeline import repository, run, tick, why

SPEC = fakes.visits_spec()


class ProcessDiedError(Exception):
    """A process that died at this very call."""


def folder_of(platform: Platform) -> Path:
    return platform.prediction_files("visits")


def rows_of(platform: Platform) -> list[dict[str, Any]]:
    rows = DeltaTable(platform.predictions("visits")).to_pyarrow_table().to_pylist()
    return sorted(rows, key=lambda row: (row["at"], row["id"]))


@pytest.fixture
def fresh(platform: Platform) -> Platform:
    """A platform whose table keeps what the tests log, which is some years old."""
    return Platform(platform.settings.model_copy(update={"prediction_days": 36_500.0}))


def test_a_closed_file_is_taken_once_and_removed(fresh: Platform) -> None:
    write(folder_of(fresh), [prediction(7), prediction(8, record=(400, 1.0, "free"), slot=Slot.SHADOW)])
    write(folder_of(fresh), [prediction(None, score=np.array([0.25, 0.75]), prediction="fox")], "host-1")

    taken = workflows.take_predictions(fresh, SPEC)
    again = workflows.take_predictions(fresh, SPEC)

    assert (taken.files, taken.rows, taken.total, taken.unreadable) == (2, 3, 3, 0)
    assert (again.files, again.rows, again.total, again.version) == (0, 0, 3, taken.version)
    assert workflows.waiting_predictions(fresh, "visits") == []
    first, second, third = sorted(rows_of(fresh), key=lambda row: row["entity"] or "x")
    assert datetime.fromtimestamp(AT, UTC) == first["at"]
    assert json.loads(first.pop("inputs")) == {"pages": 41, "plan": "paid"}
    assert {
        name: first[name] for name in ("request_id", "record", "worker", "version", "digest", "slot", "entity")
    } == {
        "request_id": "request-7",
        "record": 0,
        "worker": "host-0",
        "version": 3,
        "digest": VERSION.digest,
        "slot": "stable",
        "entity": "7",
    }
    assert (first["score"], first["prediction"], first["anomaly_score"], first["seconds"]) == (0.75, "1", 0.0, 0.0125)
    assert (second["slot"], second["anomaly_score"]) == ("shadow", 1.0)
    assert (third["scores"], third["score"], third["prediction"], third["entity"]) == ([0.25, 0.75], None, "fox", None)


def test_a_process_that_died_behind_its_commit_takes_a_file_once(
    fresh: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder_of(fresh), [prediction(7), prediction(8)])

    def die(*_: Any, **__: Any) -> None:
        raise ProcessDiedError

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", die)
        with pytest.raises(ProcessDiedError):
            workflows.take_predictions(fresh, SPEC)
    assert len(workflows.waiting_predictions(fresh, "visits")) == 1
    # Its bytes change where somebody is forgotten meanwhile; it is the same file all the same.
    (file,) = prediction_files.closed_files(folder_of(fresh))
    file.write_bytes(file.read_bytes().splitlines(keepends=True)[0])

    taken = workflows.take_predictions(fresh, SPEC)

    assert (taken.files, taken.rows, taken.total) == (1, 0, 2)
    assert not file.exists()


def test_what_a_dead_server_left_open_waits_and_is_taken(fresh: Platform) -> None:
    write(folder_of(fresh), [prediction(7)])
    (file,) = prediction_files.closed_files(folder_of(fresh))
    file.rename(file.with_name(f"{file.name}.open"))

    assert len(workflows.waiting_predictions(fresh, "visits")) == 1
    assert workflows.take_predictions(fresh, SPEC).rows == 1


def test_lines_that_are_no_entries_are_counted(fresh: Platform) -> None:
    write(folder_of(fresh), [prediction(7)])
    (file,) = prediction_files.closed_files(folder_of(fresh))
    file.write_bytes(b"\0\0\0\n" + b'{"ml": 1}\n' + b"\n" + file.read_bytes())

    taken = workflows.take_predictions(fresh, SPEC)

    assert (taken.rows, taken.unreadable) == (1, 2)


def test_rows_are_deleted_when_they_are_too_old(platform: Platform) -> None:
    today = datetime.now(UTC).timestamp()
    days = {name: today - days * 86_400 for name, days in (("old", 92.0), ("due", 90.5), ("new", 89.0))}
    write(folder_of(platform), [prediction(7, at=days["due"], request_id="due")])
    write(folder_of(platform), [prediction(7, at=days["new"], request_id="new")], "host-1")

    # A day late at most, so that a table is not written again every minute.
    assert workflows.take_predictions(platform, SPEC).expired == 0
    write(folder_of(platform), [prediction(7, at=days["old"], request_id="old")])
    assert workflows.take_predictions(platform, SPEC).expired == 2

    assert [row["request_id"] for row in rows_of(platform)] == ["new"]
    assert workflows.take_predictions(platform, SPEC).expired == 0


def test_many_small_files_become_one_and_no_row_is_lost(fresh: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MANY_FILES", 4)
    for number in range(4):
        write(folder_of(fresh), [prediction(number)], f"host-{number}")

    workflows.take_predictions(fresh, SPEC)

    assert len(DeltaTable(fresh.predictions("visits")).file_uris()) == 1
    assert [row["entity"] for row in rows_of(fresh)] == ["0", "1", "2", "3"]


# Forgetting


def mentions(platform: Platform, *texts: str) -> list[str]:
    """Return the files of log and table that hold one of some texts, Parquet by its values."""
    found = []
    for file in [*folder_of(platform).rglob("*"), *platform.predictions("visits").rglob("*")]:
        if file.is_file():
            data = file.read_bytes()
            if file.suffix == ".parquet":
                import pyarrow.parquet as pq

                data = str(pq.read_table(file).to_pylist()).encode() + data
            found += [file.name for text in texts if text.encode() in data]
    return found


SECRET = 98_765_432


# Two rows stand in two files of old versions, while these are kept, in the one of the newest, and in two of the log.
@pytest.mark.parametrize(("hours", "lost"), [(24, 6), (0, 4)])
def test_forgetting_reaches_files_and_every_version_of_the_table(
    hours: int, lost: int, fresh: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "MANY_FILES", 2)
    monkeypatch.setattr(datasets, "HOURS_TO_FINISH", hours)
    for worker in ("host-0", "host-1"):
        write(folder_of(fresh), [prediction(SECRET), prediction(8)], worker)
    workflows.take_predictions(fresh, SPEC)  # two commits, and one that made one file of them
    write(folder_of(fresh), [prediction(float(SECRET)), prediction(9)])  # as a client writes it that has no integers
    with_open = PredictionLog(folder_of(fresh), "host-2")
    with_open.write(prediction(SECRET))
    until = time.monotonic() + 10
    while not any(file.stat().st_size for file in prediction_files.open_files(folder_of(fresh))):
        assert time.monotonic() < until
    assert mentions(fresh, str(SECRET))

    done = corrections.forget(fresh, SPEC, str(SECRET), reason="they asked", actor="ann")

    assert done["figures"]["predictions"] == lost
    assert mentions(fresh, str(SECRET)) == []
    with_open.write(prediction(float(SECRET)))  # a request about them that comes later
    with_open.write(prediction(10))
    with_open.close()
    workflows.take_predictions(fresh, SPEC)
    assert [row["entity"] for row in rows_of(fresh)] == ["10", "8", "8", "9"]
    assert mentions(fresh, str(SECRET)) == []


def test_taking_waits_for_who_forgets_and_forgetting_refuses_while_files_are_taken(
    fresh: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder_of(fresh), [prediction(7)])
    with workflows.alone(fresh, "visits"):
        taking = threading.Thread(target=workflows.take_predictions, args=(fresh, SPEC))
        taking.start()
        taking.join(0.3)
        assert taking.is_alive()
        with pytest.raises(ConflictError, match="Somebody releases, forgets or tidies up"):
            corrections.forget(fresh, SPEC, "7", reason="they asked", actor="ann")
    taking.join(30)
    assert len(rows_of(fresh)) == 1
    monkeypatch.setattr("ml_platform.workflows.predictions.SECONDS_TO_WAIT", 0.05)
    with workflows.alone(fresh, "visits"), pytest.raises(ConflictError):
        workflows.take_predictions(fresh, SPEC)


def test_a_server_that_does_not_close_its_file_is_named(fresh: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_platform.workflows.predictions.SECONDS_TO_CLOSE", 0.1)
    folder_of(fresh).mkdir(parents=True)
    held, _ = prediction_files.create(folder_of(fresh), prediction_files.new_name("host-0", AT))
    with pytest.raises(ConflictError, match="does not close its prediction log"):
        corrections.forget(fresh, SPEC, "7", reason="they asked", actor="ann")
    os.close(held)
    assert corrections.forget(fresh, SPEC, "7", reason="they asked", actor="ann")["figures"]["predictions"] == 0


# As Dagster runs it


def test_the_asset_takes_what_waits_and_says_so(platform: Platform, instance: dg.DagsterInstance) -> None:
    write(folder_of(platform), [prediction(7, at=datetime.now(UTC).timestamp())])

    result = run("visits_predictions", instance)

    assert result.success, why(result)
    (event,) = result.get_asset_materialization_events()
    said = {name: value.value for name, value in event.materialization.metadata.items()}
    assert event.asset_key == dg.AssetKey(["visits", "prediction_log"])
    assert said == {
        "files": 1,
        "new_rows": 1,
        "dagster/row_count": 1,
        "unreadable_lines": 0,
        "expired_rows": 0,
        "table_version": 1,
    }


def test_the_sensor_asks_for_a_run_while_files_wait(platform: Platform, instance: dg.DagsterInstance) -> None:
    assert isinstance(tick(SPEC, "visits_predictions", instance), dg.SkipReason)
    write(folder_of(platform), [prediction(7)])
    asked = tick(SPEC, "visits_predictions", instance)
    assert isinstance(asked, dg.RunRequest)
    instance.create_run_for_job(repository(SPEC).get_job("visits_predictions"), status=dg.DagsterRunStatus.STARTED)
    assert isinstance(tick(SPEC, "visits_predictions", instance), dg.SkipReason)
