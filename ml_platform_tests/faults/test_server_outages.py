"""A server without database, MLflow or a writable disk starts, serves and rolls back, and records it afterwards."""

import contextlib
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from ml_platform.platform import Platform
from ml_platform_tests.support import fakes, mlflow_server, prediction_server
from ml_platform_tests.support.disks import full, read_only
from ml_platform_tests.support.prediction_server import wait_until

pytestmark = pytest.mark.servers


@pytest.mark.fault("V2")
def test_restart_without_stores_serves_and_rolls_back(served: Platform) -> None:
    home = served.settings.home
    with prediction_server.serving(home) as server:
        server.wait_for(3)
        wait_until("a server that is not stale", lambda: not server.facts["stale"])
    served.database.close()
    (home / "mlflow.db").rename(home / "mlflow.gone")
    (home / "platform.db").rename(home / "platform.gone")
    (home / "models").rename(home / "models.gone")
    with prediction_server.serving(home) as server:
        server.wait_for(3)
        answer = server.ask()
        assert (answer.status, answer.version, answer.headers["ml-platform-stale"]) == (200, 3, "true")
        ready = server.ask("/v2/health/ready", None)
        assert (ready.status, ready.json) == (200, {"ready": True, "stale": True})
        assert 'ml_platform_serving_stale{model="visits"} 1.0' in server.ask("/metrics", None).body.decode()
        rollback = server.admin_ask("/rollback", {"reason": "worse"})
        assert (rollback.status, rollback.json["version"], rollback.json["swapped"]) == (200, 2, True)
        assert rollback.json["seconds"] < 1
        assert server.ask().version == 2
        assert not (home / "platform.db").exists()  # a new, empty database would be another ledger
        for name in ("mlflow", "platform"):
            (home / f"{name}.gone").rename(home / f"{name}.db")
        (home / "models.gone").rename(home / "models")
        wait_until("the ledger", lambda: prediction_server.list_champions(served) == [1, 2])
        entry = served.database.champion("visits")
        assert entry is not None
        assert (entry.version, entry.reason, entry.actor) == (2, "worse", "local@admin")
        wait_until("a server that is not stale", lambda: not server.facts["stale"] and not server.facts["override"])
        assert server.ask().version == 2


@pytest.mark.fault("V2")
def test_restart_without_mlflow_serves_stale(served: Platform) -> None:
    (served.settings.home / "mlflow.db").unlink()
    with prediction_server.serving(served.settings.home) as server:
        server.wait_for(3)
        wait_until("the mark", lambda: server.facts["why_stale"] == "MLflow does not answer")
        wait_until("the header", lambda: server.ask().headers.get("ml-platform-stale") == "true")
        assert server.ask().status == 200


@pytest.mark.fault("R20")
def test_newest_decision_is_served_while_mlflow_hangs(served: Platform) -> None:
    fetched = prediction_server.served_version(served, seed=4)
    prediction_server.move_to_mlflow(served, fetched)
    with (
        mlflow_server.hanging() as mlflow,
        prediction_server.serving(served.settings.home, MLFLOW_TRACKING_URI=mlflow) as server,
    ):
        server.wait_for(3)
        shutil.rmtree(served.candidate_folder(served.database.candidate("candidate-2")))  # the server has its own copy
        assert server.admin_ask("/rollback", {"reason": "worse"}).json["version"] == 2
        wait_until("the ledger", lambda: prediction_server.list_champions(served) == [1, 2], seconds=10)
        prediction_server.roll_back(served, 1)
        server.wait_for(1, seconds=10)
        prediction_server.promote(served, fetched)
        wait_until("the fetch", lambda: "being fetched" in server.facts["why_stale"], seconds=10)
        assert server.ask().version == 1
        prediction_server.roll_back(served, 3)
        server.wait_for(3, seconds=10)
        assert [entry["closed"] for entry in server.admin_ask("/log").json["rollbacks"]] == [
            "recorded in the ledger as entry 4"
        ]


@pytest.mark.fault("R21")
def test_restored_database_is_followed_by_running_server(served: Platform, tmp_path: Path) -> None:
    database = served.settings.home / "platform.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("VACUUM INTO ?", (str(tmp_path / "backup.db"),))
    with prediction_server.serving(served.settings.home) as server:
        server.wait_for(3)
        wait_until("a state that is not stale", lambda: not server.facts["stale"])
        fakes.behind_the_triggers(served.database, "UPDATE ledger SET reason = 'edited' WHERE sequence = 3")
        prediction_server.roll_back(served, 2)
        wait_until("the refusal", lambda: "was changed" in server.facts["why_stale"], seconds=10)
        served.database.close()
        for journal in ("-wal", "-shm"):
            database.with_name(f"platform.db{journal}").unlink(missing_ok=True)
        (tmp_path / "backup.db").replace(database)
        wait_until("a state that is not stale", lambda: not server.facts["stale"], seconds=10)
        assert server.ask().version == 3
        prediction_server.roll_back(served, 1)
        server.wait_for(1, seconds=10)


@pytest.mark.fault("R22")
def test_second_server_is_refused_until_first_ends(served: Platform) -> None:
    home = served.settings.home
    with prediction_server.serving(home) as first:
        first.wait_for(3)
        second = first.start_second()
        assert (second.returncode, second.stdout) == (2, "")
        assert f"used by process {first.process.pid}. Stop that server first" in " ".join(second.stderr.split())
        assert "Traceback" not in second.stderr
        assert first.ask().version == 3
        workers = first.pids()
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)  # workers that do not end with their supervisor
        first.process.kill()
        first.process.wait()
        try:
            with prediction_server.serving(home) as successor:
                successor.wait_for(3)
        finally:
            for worker in workers:
                os.kill(worker, signal.SIGKILL)


@pytest.mark.fault("R12")
@pytest.mark.parametrize("unwritable", [full, read_only])
def test_unwritable_disk_stops_neither_server_nor_rollback(
    served: Platform, disk: Path, unwritable: Callable[[Path], contextlib.AbstractContextManager[None]]
) -> None:
    home = served.settings.home
    (home / "serving").symlink_to(disk)
    with prediction_server.serving(home) as server:
        server.wait_for(3)
    with unwritable(disk):
        with prediction_server.serving(home) as server:  # a restart with the copies that are there
            server.wait_for(3)
            (home / "platform.db").rename(home / "platform.gone")
            wait_until("the mark", lambda: "does not exist" in server.facts["why_stale"])
            assert server.ask().headers["ml-platform-stale"] == "true"
            rollback = server.admin_ask("/rollback", {"reason": "worse"})
            assert (rollback.status, rollback.json["version"]) == (200, 2)
            assert (rollback.json["swapped"], rollback.json["stored"]) == (True, False)
            assert server.ask().version == 2
            (home / "platform.gone").rename(home / "platform.db")
            wait_until("the ledger", lambda: prediction_server.list_champions(served) == [1, 2])
            wait_until("a state that is not stale", lambda: not server.facts["stale"])
            assert server.ask().version == 2
            pids = server.pids()
        log = server.log.read_text()
    assert len(pids) == 1
    assert "Nothing could be stored in" in log
    # A full disk may have place for a line at the end of a file.
    assert unwritable is full or "The call is recorded here only" in log
    assert "Traceback" not in log


@pytest.mark.fault("R12")
def test_files_are_stored_when_disk_has_space_again(served: Platform, disk: Path) -> None:
    home = served.settings.home
    (home / "serving").symlink_to(disk)
    with prediction_server.serving(home) as server:
        server.wait_for(3)
        with full(disk):
            assert server.admin_ask("/rollback", {"reason": "worse"}).json["stored"] is False
            before = (server.serving / "state.json").read_text()
        wait_until("the state", lambda: (server.serving / "state.json").read_text() != before)
        wait_until("the journal", lambda: "worse" in (server.serving / "journal.jsonl").read_text())


@pytest.mark.fault("R13")
def test_invalid_state_and_journal_are_set_aside(served: Platform) -> None:
    home = served.settings.home
    with prediction_server.serving(home) as server:
        server.wait_for(3)
        assert server.admin_ask("/rollback", {"reason": "worse"}).json["swapped"]
        wait_until("the ledger", lambda: prediction_server.list_champions(served) == [1, 2])
        wait_until("a closed journal", lambda: server.admin_ask("/log").json["rollbacks"][0]["closed"])
    journal, state = server.serving / "journal.jsonl", server.serving / "state.json"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], b"\0\0\0\n", b"[7]\n", *lines[1:]]))
    state.write_bytes(state.read_bytes()[:100])
    with prediction_server.serving(home) as server:
        server.wait_for(2)
        rollbacks = server.admin_ask("/log").json["rollbacks"]
    assert [(entry["to"], entry["leaves"]) for entry in rollbacks] == [(2, 3)]
    assert journal.read_bytes() == b"".join(lines)
    assert (server.serving / "journal.jsonl.invalid").stat().st_size == journal.stat().st_size + len(b"\0\0\0\n[7]\n")
    assert (server.serving / "state.json.invalid").stat().st_size == 100
