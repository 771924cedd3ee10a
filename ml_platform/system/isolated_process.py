"""A fresh process of the platform: bounded in time, and its result never mixed up with its output.

The result is JSON in a file whose path the process receives. Its stdout, which a model's code may write to, is
discarded; its stderr goes to a file, whose last line explains a failure.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ml_platform.errors import ModelError, ModelTimeoutError
from ml_platform.system.fork_server import SUPPORTED, ForkServer
from ml_platform.system.limited_process import read_last_line

# One thread a process, as in a server's workers, of which there are as many as cores. A latency that a gate bounds is
# measured so, too: threads that wait for one another on a busy machine answer a hundred times later.
AS_SERVED: Mapping[str, str] = MappingProxyType({"OMP_NUM_THREADS": "1"})
AS_HERE: Mapping[str, str] = MappingProxyType({})

_started: list[ForkServer] = []
_starting = threading.Lock()


def start_early(modules: Sequence[str]) -> None:
    """Start a process that imports modules while this one works; later calls of `run_isolated` fork from it.

    A process for other modules or another environment that was started before is stopped. Does nothing where there
    is no fork server for the system; every call then starts an interpreter of its own.

    Parameters
    ----------
    modules : sequence of str
        Modules to import, in order. Those that `run_isolated` is to run have a function ``main(arguments)``.
    """
    environment = {**os.environ, **AS_SERVED}
    with _starting:
        if any(server.modules == tuple(modules) and server.serves(environment) for server in _started):
            return
        stop_early_process()
        if SUPPORTED:
            _started.append(ForkServer(modules, environment))


@atexit.register
def stop_early_process() -> None:
    """Stop the process of `start_early`, if it runs."""
    while _started:
        _started.pop().close()


def run_isolated(module: str, arguments: list[str], *, seconds: float, environment: Mapping[str, str] = AS_HERE) -> Any:
    """Run a module of the platform in a fresh process and return its result.

    Parameters
    ----------
    module : str
        Module name, as ``python -m`` takes it. It receives the arguments and, as the last one, the file for its result.
    arguments : list of str
    seconds : float
        Time after which the process is killed, in seconds.
    environment : mapping of str to str
        Environment variables to add to those of this process.

    Returns
    -------
    Any
        The JSON document that the process wrote.

    Raises
    ------
    ModelTimeoutError
        The process did not end in time.
    ModelError
        The process failed or ended without a result; the message ends with the last line of its stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        result, stderr = Path(folder) / "result.json", Path(folder) / "stderr"
        stderr.touch()
        try:
            status = _run(module, [*arguments, str(result)], stderr, seconds, {**os.environ, **environment})
        except subprocess.TimeoutExpired as error:
            raise ModelTimeoutError(
                f"The fresh process must answer within {seconds:g} s. It did not and was killed: the model is too "
                "slow, or never ends."
            ) from error
        if status != 0 or not result.is_file():
            with stderr.open("rb") as written:
                last = read_last_line(written)
            raise ModelError(f"The fresh process of {module} ended with status {status}: {last}")
        return json.loads(result.read_text())


def _run(module: str, arguments: list[str], stderr: Path, seconds: float, environment: Mapping[str, str]) -> int:
    """Run a module in a child of the fork server if there is one for it, else in an interpreter of its own."""
    for server in _started:
        if server.serves(environment):
            status = server.call(module, arguments, stderr, environment, seconds)
            if status is not None:
                return status
    with stderr.open("wb") as file:
        return subprocess.run(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
            env=environment,
            timeout=seconds,
            check=False,
        ).returncode


def write_answer(file: Path, value: Any) -> None:
    """Write the result of a fresh process, whole or not at all."""
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(value))
    temporary.replace(file)
