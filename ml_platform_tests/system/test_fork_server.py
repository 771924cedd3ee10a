"""The fork server, with real processes. What it cannot do must be done by an interpreter of its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_platform.errors import ModelError, ModelTimeoutError
from ml_platform.system import fork_server, isolated_process
from ml_platform.system.fork_server import ForkServer

PROGRAM = "ml_platform_tests.support.fork_server_program"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not fork_server.SUPPORTED, reason="the fork server is Linux only")]


@pytest.fixture(autouse=True)
def no_server() -> Iterator[None]:
    isolated_process.stop_early_process()
    yield
    isolated_process.stop_early_process()


def started() -> ForkServer:
    [server] = isolated_process._started
    return server


def is_gone(pid: int) -> bool:
    """Return True once a process has ended, within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def facts(**environment: str) -> dict[str, object]:
    found = isolated_process.run_isolated(
        PROGRAM, ["facts", ""], seconds=60, environment={"OMP_NUM_THREADS": "1", **environment}
    )
    assert isinstance(found, dict)
    return found


def test_each_call_is_a_fresh_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolated_process.start_early(["json", PROGRAM])
    monkeypatch.chdir(tmp_path)

    first, second = facts(FORK_SERVER_TEST="one"), facts(FORK_SERVER_TEST="two")

    assert first["calls"] == second["calls"] == 1
    assert first["pid"] != second["pid"]
    assert (first["variable"], second["variable"]) == ("one", "two")
    assert first["folder"] == str(tmp_path)
    assert first["imported"] == ["json", PROGRAM]
    assert isinstance(first["alarm"], float)
    assert 60 < first["alarm"] <= 60 + fork_server.ALARM_DELAY_SECONDS


def test_second_start_keeps_the_server() -> None:
    isolated_process.start_early([PROGRAM])
    server = started()
    isolated_process.start_early([PROGRAM])

    assert started() is server


def test_other_modules_replace_the_server() -> None:
    isolated_process.start_early([PROGRAM])
    server = started()
    isolated_process.start_early(["json", PROGRAM])

    assert started() is not server
    assert not server.serves({**os.environ, "OMP_NUM_THREADS": "1"})


def test_hanging_child_is_killed(tmp_path: Path) -> None:
    isolated_process.start_early([PROGRAM])
    facts()
    mark = tmp_path / "pid"

    with pytest.raises(ModelTimeoutError, match=r"must answer within 1 s\."):
        isolated_process.run_isolated(PROGRAM, ["hang", str(mark)], seconds=1, environment=isolated_process.AS_SERVED)

    assert is_gone(int(mark.read_text()))
    assert facts()["imported"] == []  # the server went with it: an interpreter of its own


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["raise", "no such column"], 1, "ValueError: no such column"),
        (["exit", "the reason"], 1, "the reason"),
        (["kill", ""], -9, "it wrote nothing to stderr"),
    ],
)
def test_failed_child_names_its_reason(arguments: list[str], status: int, reason: str) -> None:
    isolated_process.start_early([PROGRAM])

    with pytest.raises(ModelError, match=rf"ended with status {status}: {reason}$"):
        isolated_process.run_isolated(PROGRAM, arguments, seconds=60, environment=isolated_process.AS_SERVED)

    assert facts()["imported"] == [PROGRAM]  # the server goes on


def test_child_may_close_its_streams() -> None:
    isolated_process.start_early([PROGRAM])

    result = isolated_process.run_isolated(
        PROGRAM, ["close stdout", ""], seconds=60, environment=isolated_process.AS_SERVED
    )

    assert result == {"closed": True}


def test_slow_imports_are_not_the_models_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "IMPORT_TIMEOUT_SECONDS", 0.2)
    isolated_process.start_early([PROGRAM])
    os.kill(started()._process.pid, signal.SIGSTOP)

    assert facts()["imported"] == []


def test_hanging_child_of_killed_server_is_killed(tmp_path: Path) -> None:
    isolated_process.start_early([PROGRAM])
    facts()
    server, mark, stderr = started(), tmp_path / "pid", tmp_path / "stderr"
    stderr.touch()

    def kill_server() -> None:
        while not mark.exists() or not mark.read_text():
            time.sleep(0.01)
        os.kill(server._process.pid, signal.SIGKILL)
        server._process.wait()

    thread = threading.Thread(target=kill_server)
    thread.start()
    environment = {**os.environ, **isolated_process.AS_SERVED}
    assert server.call(PROGRAM, ["hang", str(mark), ""], stderr, environment, 60) is None
    thread.join()

    assert is_gone(int(mark.read_text()))


def test_killed_server_is_replaced_by_an_interpreter() -> None:
    isolated_process.start_early([PROGRAM])
    facts()
    os.kill(started()._process.pid, signal.SIGKILL)

    assert facts()["imported"] == []


def test_server_killed_by_its_child_gives_none(tmp_path: Path) -> None:
    isolated_process.start_early([PROGRAM])
    facts()
    server, stderr = started(), tmp_path / "stderr"
    stderr.touch()
    environment = {**os.environ, **isolated_process.AS_SERVED}

    status = server.call(PROGRAM, ["kill the server", "", str(tmp_path / "result")], stderr, environment, 60)

    assert status is None
    assert is_gone(server._process.pid)


def test_failed_import_is_replaced_by_an_interpreter() -> None:
    isolated_process.start_early([PROGRAM, "ml_platform.no_such_module"])

    assert facts()["imported"] == []


def test_second_thread_prevents_forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "starts_thread.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    isolated_process.start_early([PROGRAM, "starts_thread"])

    assert facts()["imported"] == []


def test_other_thread_count_is_not_served() -> None:
    isolated_process.start_early([PROGRAM])

    assert facts()["imported"] == [PROGRAM]
    assert facts(OMP_NUM_THREADS="2")["imported"] == []


def test_module_outside_the_server_is_not_called() -> None:
    isolated_process.start_early(["json"])

    assert facts()["imported"] == []


def test_server_ends_with_its_parent() -> None:
    code = (
        "import os, sys\nfrom ml_platform.system import isolated_process\n"
        "isolated_process.start_early(['json'])\n"
        "sys.stdout.write(str(isolated_process._started[0]._process.pid))\nsys.stdout.flush()\nos._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert is_gone(int(done.stdout))
