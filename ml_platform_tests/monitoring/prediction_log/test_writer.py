import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_platform.errors import ConfigurationError
from ml_platform.monitoring.prediction_log.files import (
    ask_to_close,
    close_left_open,
    closed_files,
    new_name,
    open_files,
)
from ml_platform.monitoring.prediction_log.writer import (
    LONGEST_TEXT,
    LoggedVersion,
    Prediction,
    PredictionLog,
    TrafficRole,
)
from ml_platform_tests.support.disks import full
from ml_platform_tests.support.prediction_logs import Logs, prediction


class Scored(Logs):
    """A contract with the given anomaly score."""

    def __init__(self, score: Callable[[Any], float]) -> None:
        super().__init__()
        object.__setattr__(self, "anomaly", score)


@contextlib.contextmanager
def opened(folder: Path, worker: str = "host-0", **options: Any) -> Iterator[PredictionLog]:
    log = PredictionLog(folder, worker, **options)
    try:
        yield log
    finally:
        log.close()


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "the condition did not hold in time"
        time.sleep(0.005)


def read_lines(*files: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def read_all_lines(folder: Path) -> list[dict[str, Any]]:
    return read_lines(*closed_files(folder))


def test_entry_follows_the_elastic_common_schema(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        assert log.write(prediction(4, position=2))
    (line,) = read_all_lines(tmp_path)
    assert line["@timestamp"] == "2023-11-14T22:13:20Z"
    assert line["ecs"] == {"version": "8.17.0"}
    assert line["event"] == {
        "kind": "event",
        "category": ["web"],
        "type": ["access"],
        "dataset": "ml_platform.predictions",
        "action": "prediction",
        "id": "request-4-2-3-champion",
        "outcome": "success",
        "duration": 12_500_000,
    }
    assert line["http"] == {"request": {"id": "request-4"}}
    assert line["service"] == {"name": "visits", "type": "ml_platform", "version": "3", "node": {"name": "host-0"}}
    assert line["host"]["name"]
    assert line["ml"] == {
        "model": "visits",
        "version": 3,
        "digest": "ab" * 32,
        "role": "champion",
        "record": 2,
        "entity": "4",
        "inputs": {"pages": 41, "plan": "paid"},
        "score": 0.75,
        "scores": None,
        "prediction": "1",
        "anomaly_score": 0.0,
    }


def test_only_features_that_the_author_lists_are_written(tmp_path: Path) -> None:
    nothing = LoggedVersion(contract=Logs(logged=()), version=1, digest="")
    with opened(tmp_path) as log:
        log.write(prediction(of=nothing))
        log.write(prediction(record=(1, 1.0, "x" * 5_000)))
    first, second = (line["ml"]["inputs"] for line in read_all_lines(tmp_path))
    assert first == {}
    assert second == {"pages": 1, "plan": "x" * LONGEST_TEXT}


def test_numbers_of_numpy_and_several_scores_are_written(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.write(prediction(score=np.float64(0.5), prediction=np.str_("fox")))
        log.write(prediction(score=np.array([0.25, 0.75]), prediction=np.int64(1), record=(np.int64(3), 1.0, "paid")))
        log.write(prediction(score=float("nan")))
    one, many, none = (line["ml"] for line in read_all_lines(tmp_path))
    assert (one["score"], one["scores"], one["prediction"]) == (0.5, None, "fox")
    assert (many["score"], many["scores"], many["prediction"], many["inputs"]) == (
        None,
        [0.25, 0.75],
        "1",
        {"pages": 3, "plan": "paid"},
    )
    assert none["score"] is None


def test_a_failure_is_written_with_its_reason(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.write(prediction(role=TrafficRole.SUCCESSOR, score=None, prediction=None, error="it took 5 s"))
    (line,) = read_all_lines(tmp_path)
    assert (line["event"]["outcome"], line["event"]["type"]) == ("failure", ["error"])
    assert line["error"] == {"message": "it took 5 s"}
    assert line["ml"]["prediction"] is None


def test_anomaly_score_uses_all_features_in_log_thread(tmp_path: Path) -> None:
    seen: list[Any] = []

    def score(record: Any) -> float:
        seen.append((threading.current_thread().name, record))
        return 0.5

    with opened(tmp_path) as log:
        log.write(prediction(of=LoggedVersion(contract=Scored(score), version=3, digest="")))
    assert read_all_lines(tmp_path)[0]["ml"]["anomaly_score"] == 0.5
    assert seen == [("prediction-log", (41, 2.5, "paid"))]


def test_unwritable_entry_is_counted_and_others_written(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        for record in ((1, 0.0, ""), (1, 0.0, "\ud800"), (object(), 0.0, ""), (2, 0.0, "")):
            log.write(prediction(record=record))
    assert [line["ml"]["inputs"]["pages"] for line in read_all_lines(tmp_path)] == [1, 2]
    assert (log.figures.written, log.figures.dropped["unwritable"]) == (2, 2)


def test_file_is_closed_at_maximum_size(tmp_path: Path) -> None:
    with opened(tmp_path, max_bytes=20_000) as log:
        for number in range(500):
            log.write(prediction(number))
    files = closed_files(tmp_path)
    assert len(files) > 3
    assert not open_files(tmp_path)
    assert [line["http"]["request"]["id"] for line in read_lines(*files)] == [f"request-{n}" for n in range(500)]


def test_file_is_closed_by_age_or_request(tmp_path: Path) -> None:
    with opened(tmp_path, max_seconds=0.2) as log:
        log.write(prediction())
        wait_until(lambda: len(read_all_lines(tmp_path)) == 1)
    with opened(tmp_path) as log:
        log.write(prediction())
        wait_until(lambda: bool(open_files(tmp_path)))
        assert len(ask_to_close(tmp_path)) == 1
        wait_until(lambda: len(read_all_lines(tmp_path)) == 2)


@pytest.mark.fault("R27")
def test_oldest_closed_files_are_removed(tmp_path: Path) -> None:
    earlier = tmp_path / f"{new_name('z-other-host-0', 0.0)}.jsonl"
    earlier.write_text("{}\n")
    with opened(tmp_path, max_bytes=10_000, kept_bytes=30_000) as log:
        for number in range(1_000):
            log.write(prediction(number))
    kept = closed_files(tmp_path)
    assert sum(file.stat().st_size for file in kept) <= 30_000
    assert read_lines(*kept)[-1]["http"]["request"]["id"] == "request-999"
    assert log.figures.removed_files > 0
    assert not earlier.exists()


@pytest.mark.fault("R27")
def test_restarts_keep_the_log_bounded(tmp_path: Path) -> None:
    """Each start has a worker of another name; every second one is killed: it leaves its file open."""
    for number in range(30):
        left = tmp_path / f"{new_name(f'host-{number}', number)}.jsonl.open"
        left.write_text('{"line": "' + "x" * 5_000 + '"}\n')
        with opened(tmp_path, worker=f"host-{number}-b", kept_bytes=20_000):
            wait_until(lambda: not open_files(tmp_path))
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 20_000
    assert len(closed_files(tmp_path)) == 3


def test_a_removed_file_is_begun_again(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.write(prediction(1))
        wait_until(lambda: bool(open_files(tmp_path)))
        open_files(tmp_path)[0].unlink()
        log.write(prediction(2))
    assert [line["http"]["request"]["id"] for line in read_all_lines(tmp_path)] == ["request-2"]


def test_full_queue_drops_and_counts_newest_entries(tmp_path: Path) -> None:
    with opened(tmp_path, max_queued=5) as log:
        gate = block(log)
        taken = [log.write(prediction(number)) for number in range(8)]
        assert taken == [True] * 5 + [False] * 3
        assert log.figures.queued == 5
        gate.set()
    written = [line["http"]["request"]["id"] for line in read_all_lines(tmp_path)]
    assert written == ["hold", *(f"request-{n}" for n in range(5))]
    assert log.figures.dropped["queue_full"] == 3


def test_queue_is_limited_by_bytes(tmp_path: Path) -> None:
    with opened(tmp_path, max_queued_bytes=2_500_000) as log:
        gate = block(log)
        assert [log.write(prediction(size=1_000_000)) for _ in range(3)] == [True, True, False]
        gate.set()
        wait_until(lambda: log.figures.written == 3)  # the entry that blocked the thread, and two
        assert log.write(prediction(size=2_000_000))


def block(log: PredictionLog) -> threading.Event:
    """Block the log's thread with one entry, like a slow disk, until the returned event is set."""
    gate, held = threading.Event(), threading.Event()

    def slow(_: Any) -> float:
        held.set()
        gate.wait(10)
        return 0.0

    log.write(prediction(of=LoggedVersion(contract=Scored(slow), version=1, digest=""), request_id="hold"))
    assert held.wait(10)
    return gate


def test_after_close_entries_are_counted_and_dropped(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        pass
    assert not log.write(prediction())
    assert log.figures.dropped == {"queue_full": 0, "disk": 0, "unwritable": 0, "closed": 1}


def test_worker_name_must_fit_a_file_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"must match .* Got '\.\./x' instead"):
        PredictionLog(tmp_path, "../x")


# Disks and processes


@pytest.mark.fault("R10")
def test_full_disk_drops_counted_entries_without_waiting(disk: Path) -> None:
    folder = disk / "log"
    with opened(folder) as log:
        log.write(prediction(0))
        wait_until(lambda: log.figures.written == 1)
        with full(disk, but_for=100_000):
            slowest = max(timed(log.write, prediction(number, request_id="filler")) for number in range(1_000))
            wait_until(lambda: log.figures.queued == 0 and log.figures.dropped["disk"] > 0)
        assert slowest < 0.1
        assert log.figures.written + log.figures.dropped["disk"] <= 1_001
        dropped = log.figures.dropped["disk"]
        log.write(prediction(1))
    lines = read_all_lines(folder)  # all lines are complete
    assert [line["http"]["request"]["id"] for line in (lines[0], lines[-1])] == ["request-0", "request-1"]
    assert len(lines) == log.figures.written == 1_002 - dropped
    assert not open_files(folder)


def timed(call: Callable[[Prediction], bool], entry: Prediction) -> float:
    began = time.perf_counter()
    call(entry)
    return time.perf_counter() - began


@pytest.mark.fault("R10")
def test_unwritable_folder_drops_counted_entries(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with opened(tmp_path / "file" / "log") as log:
        assert log.write(prediction())
        wait_until(lambda: log.figures.dropped["disk"] == 1)


@pytest.mark.fault("R10")
def test_an_unfit_disk_is_said_once_a_minute(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with opened(tmp_path / "file" / "log") as log:
        for number in range(3):
            log.write(prediction(number))
            wait_until(partial(dropped_more_than, log, number))
    assert len(caplog.records) == 1
    assert "predictions are dropped and counted" in caplog.text


def dropped_more_than(log: PredictionLog, number: int) -> bool:
    return log.figures.dropped["disk"] > number


WRITER = """
import sys
from pathlib import Path
from ml_platform_tests.support.prediction_logs import prediction
from ml_platform.monitoring.prediction_log.writer import PredictionLog
log = PredictionLog(Path(sys.argv[1]), "host-0")
log.write(prediction())
print("up", flush=True)
sys.stdin.read()
"""


@pytest.mark.fault("R7")
def test_file_of_killed_worker_keeps_whole_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        wait_until(lambda: any(file.stat().st_size for file in open_files(tmp_path)), 30)
        assert close_left_open(tmp_path) == []  # it is being written
        os.kill(writer.pid, signal.SIGKILL)
    (left,) = open_files(tmp_path)
    whole = left.read_bytes()
    left.write_bytes(whole + whole[: len(whole) // 2])  # as after a kill during a write
    with opened(tmp_path):
        wait_until(lambda: bool(closed_files(tmp_path)))
    assert closed_files(tmp_path)[0].read_bytes() == whole
    assert not open_files(tmp_path)


def test_a_file_without_a_whole_line_is_removed(tmp_path: Path) -> None:
    for name, text in (("a", b""), ("b", b"x" * 200_000), ("c", b"{}\n" + b"x" * 200_000)):
        (tmp_path / f"predictions-{name}-1.jsonl.open").write_bytes(text)
    (closed,) = close_left_open(tmp_path)
    assert closed.read_bytes() == b"{}\n"
    assert not open_files(tmp_path)
