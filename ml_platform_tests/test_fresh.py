"""The module is its own fresh process: run as a program, it does what its first argument says."""

import os
import sys
import time
from pathlib import Path

import pytest

from ml_platform import fresh
from ml_platform.errors import ModelError, ModelTimeoutError

NAME = "ml_platform_tests.test_fresh"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


def test_the_answer_is_what_the_process_left_and_not_what_it_printed() -> None:
    assert fresh.ask(NAME, ["prints", "42"], seconds=100) == {"said": "42"}


def test_a_process_that_ends_without_an_answer_is_an_error() -> None:
    with pytest.raises(ModelError, match="status 0: it died without a word"):
        fresh.ask(NAME, ["leaves", ""], seconds=100)


def test_the_last_line_of_stderr_explains_a_death_however_much_came_before() -> None:
    with pytest.raises(ModelError, match=r"status 3: the reason$"):
        fresh.ask(NAME, ["complains", ""], seconds=100)


def test_an_answer_half_written_is_none() -> None:
    with pytest.raises(ModelError, match="TypeError"):
        fresh.ask(NAME, ["breaks", ""], seconds=100)


@pytest.mark.fault("M2")
def test_a_process_that_never_ends_is_killed_and_gone(tmp_path: Path) -> None:
    mark = tmp_path / "pid"

    for seconds in (2, 8, 32):  # until one has come as far as to hang
        with pytest.raises(ModelTimeoutError, match=rf"must answer within {seconds} s\."):
            fresh.ask(NAME, ["hangs", str(mark)], seconds=seconds)
        if mark.exists():
            break

    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def main(what: str, argument: str, answer_file: str) -> None:
    file = Path(answer_file)
    if what == "prints":
        sys.stdout.write('{"said": "rubbish"}')
        fresh.answer(file, {"said": argument})
    elif what == "complains":
        sys.stderr.write("noise\n" * 100_000 + "the reason\n")
        sys.exit(3)
    elif what == "breaks":
        fresh.answer(file, {"fine": 1, "not": object()})
    elif what == "hangs":
        Path(argument).write_text(str(os.getpid()))
        time.sleep(3_600)


if __name__ == "__main__":
    main(*sys.argv[1:])
