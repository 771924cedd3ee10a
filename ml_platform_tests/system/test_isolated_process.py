"""Run this module in an isolated process: its first argument selects the behaviour."""

import os
import sys
import time
from pathlib import Path

import pytest

from ml_platform.errors import ModelError, ModelTimeoutError
from ml_platform.system import isolated_process

NAME = "ml_platform_tests.system.test_isolated_process"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


def test_result_is_independent_of_printed_text() -> None:
    assert isolated_process.run_isolated(NAME, ["prints", "42"], seconds=100) == {"text": "42"}


def test_exit_without_result_is_an_error() -> None:
    with pytest.raises(ModelError, match="status 0: it wrote nothing to stderr"):
        isolated_process.run_isolated(NAME, ["leaves", ""], seconds=100)


def test_error_has_last_line_of_stderr() -> None:
    with pytest.raises(ModelError, match=r"status 3: the reason$"):
        isolated_process.run_isolated(NAME, ["complains", ""], seconds=100)


def test_half_written_result_is_an_error() -> None:
    with pytest.raises(ModelError, match="TypeError"):
        isolated_process.run_isolated(NAME, ["breaks", ""], seconds=100)


@pytest.mark.slow
@pytest.mark.fault("M2")
def test_timeout_kills_the_process(tmp_path: Path) -> None:
    mark = tmp_path / "pid"

    for seconds in (2, 8, 32):  # until a process has started to hang
        with pytest.raises(ModelTimeoutError, match=rf"must answer within {seconds} s\."):
            isolated_process.run_isolated(NAME, ["hangs", str(mark)], seconds=seconds)
        if mark.exists():
            break

    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def main(behaviour: str, argument: str, answer_file: str) -> None:
    file = Path(answer_file)
    if behaviour == "prints":
        sys.stdout.write('{"text": "rubbish"}')
        isolated_process.write_answer(file, {"text": argument})
    elif behaviour == "complains":
        sys.stderr.write("noise\n" * 100_000 + "the reason\n")
        sys.exit(3)
    elif behaviour == "breaks":
        isolated_process.write_answer(file, {"fine": 1, "not": object()})
    elif behaviour == "hangs":
        Path(argument).write_text(str(os.getpid()))
        time.sleep(3_600)


if __name__ == "__main__":
    main(*sys.argv[1:])
