"""A fresh process of our own: bounded in time, and its answer never mixed up with what it prints.

The answer is JSON in a file that the process is told of. What a model's code writes to stdout goes nowhere; stderr goes
to a file, whose last line explains a death.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ml_platform.errors import ModelError, ModelTimeoutError

LAST_WORDS = 4_096
# What a server's workers have: one thread each, since they are as many as cores. What is timed for a gate has it too:
# threads that wait for one another on a busy machine answer a hundred times later.
AS_SERVED: Mapping[str, str] = MappingProxyType({"OMP_NUM_THREADS": "1"})
AS_HERE: Mapping[str, str] = MappingProxyType({})


def ask(module: str, arguments: list[str], *, seconds: float, environment: Mapping[str, str] = AS_HERE) -> Any:
    """Run a module of ours in a fresh process and return what it answered.

    Parameters
    ----------
    module : str
        As ``python -m`` takes it. It gets the arguments and, as the last, the file for `answer`.
    arguments : list of str
    seconds : float
        After so many it is killed.
    environment : mapping of str to str
        Variables that it has instead of this process's own.

    Returns
    -------
    whatever JSON the process wrote

    Raises
    ------
    ModelTimeoutError
        It gave no answer in time.
    ModelError
        It died, or ended without an answer; the message ends with the last line that it wrote to stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer_file, words = Path(folder) / "answer.json", Path(folder) / "stderr"
        command = [sys.executable, "-m", module, *arguments, str(answer_file)]
        status = _run(command, words, seconds, {**os.environ, **environment})
        if status != 0 or not answer_file.is_file():
            raise ModelError(f"The fresh process of {module} ended with status {status}: {_last_line(words)}")
        return json.loads(answer_file.read_text())


def answer(file: Path, value: Any) -> None:
    """Leave the answer of a fresh process, whole or not at all."""
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(value))
    temporary.replace(file)


def _run(command: list[str], words: Path, seconds: float, environment: Mapping[str, str]) -> int:
    with words.open("wb") as stderr:
        try:
            done = subprocess.run(  # noqa: S603 - our own interpreter and module
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environment,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ModelTimeoutError(
                f"The fresh process must answer within {seconds:g} s. It did not and was killed: the model is too "
                "slow, or never ends."
            ) from error
    return done.returncode


def _last_line(words: Path) -> str:
    with words.open("rb") as file:
        file.seek(max(0, words.stat().st_size - LAST_WORDS))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it died without a word"
