"""A process that has imported modules and forks a child for each call, so that a fresh process starts in milliseconds.

Importing scikit-learn, skops and the prediction server costs seconds of CPU; three tests of a version each need a
process that no other test has touched. The server pays for the imports once and forks before it has loaded any model.

Linux only: elsewhere a fork after such imports is not safe, and `ForkServer.call` is never reached. It is not
`multiprocessing`'s fork server because that one pickles its calls, imports the calling program again in each child and
fixes the environment when the first child starts.
"""

import contextlib
import gc
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

SUPPORTED = sys.platform == "linux"
# Arrow's allocator: jemalloc takes its locks before a fork and starts its thread again after it.
FORK_SAFE_THREADS = {"jemalloc_bg_thd"}
READY, STARTED = b"ready\n", b"started\n"
# A server that takes longer for its imports is not used.
IMPORT_TIMEOUT_SECONDS = 60.0
# The calling process ends a child in time; this much later the child's own alarm does.
ALARM_DELAY_SECONDS = 5.0
# Variables that libraries and the interpreter read when they are imported or started: a child cannot change them.
READ_AT_IMPORT = re.compile(r"PYTHON|LD_|.*_NUM_THREADS$|(OMP|MKL|OPENBLAS|MALLOC)_")

# In a forked child: seconds from the server's start until each of its modules was imported, in order.
import_seconds: dict[str, float] = {}
# Resident file pages of the server before its first fork. A child shares them, but Linux counts them only once touched.
resident_file_bytes = 0


class ForkServer:
    """A started fork server, as its parent process sees it.

    Parameters
    ----------
    modules : sequence of str
        Modules to import, in order. Only these can be called.
    environment : mapping of str to str
        The server's environment variables.
    """

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self.modules = tuple(modules)
        self._fixed = _fixed_variables(environment)
        self._owner = os.getpid()  # a child that this process forks is another process's parent, not the server's
        self._busy = threading.Lock()
        self._ready = False
        self._socket, theirs = socket.socketpair()
        self._lines = self._socket.makefile("rb", buffering=0)
        program = "import sys; from ml_platform.system.fork_server import serve; serve(sys.argv[1:])"
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-c", program, *modules],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.DEVNULL,
            env=dict(environment),
            start_new_session=True,  # a call that takes too long is killed with all that it started
        )
        theirs.close()

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Return True if the server runs and its children can have this environment."""
        running = os.getpid() == self._owner and self._process.poll() is None
        return running and self._fixed == _fixed_variables(environment)

    def call(
        self, module: str, arguments: Sequence[str], stderr: Path, environment: Mapping[str, str], seconds: float
    ) -> int | None:
        """Run ``module.main(arguments)`` in a fresh child and wait for its end.

        Returns
        -------
        int or None
            The child's exit status, negative for a signal; ``None`` if the call must be made in another way: the
            server serves another call or has not started a child, for instance since one of its imports failed.

        Raises
        ------
        subprocess.TimeoutExpired
            The child did not end in time. It was killed, and the server with it.
        """
        if module not in self.modules or not self._busy.acquire(blocking=False):
            return None
        status, started = None, False
        try:
            request = {
                "module": module,
                "arguments": list(arguments),
                "stderr": str(stderr),
                "folder": str(Path.cwd()),
                "environment": dict(environment),
                "seconds": seconds,
            }
            started = self._is_ready() and self._starts(request)
            if started:
                self._socket.settimeout(seconds)
                status = int(self._lines.readline())
        except TimeoutError as error:
            if started:
                raise subprocess.TimeoutExpired([module, *arguments], seconds) from error
        except (OSError, ValueError):  # the server was killed, or this process's folder is gone
            status = None
        finally:
            if status is None:  # after an interrupt from the keyboard, too
                self.close()
            self._busy.release()
        return status

    def _is_ready(self) -> bool:
        if not self._ready:
            self._socket.settimeout(IMPORT_TIMEOUT_SECONDS)
            self._ready = self._lines.readline() == READY
        return self._ready

    def _starts(self, request: object) -> bool:
        """Return True if the server started a child for a request."""
        self._socket.settimeout(IMPORT_TIMEOUT_SECONDS)
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        return self._lines.readline() == STARTED

    def close(self) -> None:
        """Kill the server and its children. A second call does nothing."""
        self._lines.close()
        self._socket.close()
        if os.getpid() == self._owner:
            with contextlib.suppress(ProcessLookupError):  # a killed server may have left a child in its group
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _fixed_variables(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if READ_AT_IMPORT.match(name)}


# --- the server's own process -------------------------------------------------------------------------------------


def serve(modules: Sequence[str]) -> None:
    """Import modules, then fork a child for each request on stdin, until stdin ends."""
    begin = time.perf_counter()
    for name in modules:
        importlib.import_module(name)
        import_seconds[name] = time.perf_counter() - begin
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    if len([name for name in names if name not in FORK_SAFE_THREADS]) > 1:
        sys.exit("a second thread runs after the imports: a fork could copy a lock that it holds")
    global resident_file_bytes  # noqa: PLW0603 - children find it here
    resident_file_bytes = read_resident_file_bytes()
    gc.collect()
    gc.freeze()  # the collector of a child need not copy these pages
    os.write(1, READY)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(request)
        os.write(1, STARTED)
        _, status = os.waitpid(child, 0)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(status))


def read_resident_file_bytes() -> int:
    """Return the bytes of files, such as libraries, that this process has in memory; Linux only."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile:"))
    return int(line.split()[1]) * 1024


def _run(request: dict[str, object]) -> NoReturn:
    """Run a request in a forked child, with files, folder and environment of its own."""
    status = 1
    try:
        for number, (name, flags) in enumerate(
            [(os.devnull, os.O_RDONLY), (os.devnull, os.O_WRONLY), (str(request["stderr"]), os.O_WRONLY)]
        ):
            os.dup2(os.open(name, flags), number)
        # If the calling process is killed, no other process ends a child that hangs.
        signal.setitimer(signal.ITIMER_REAL, float(str(request["seconds"])) + ALARM_DELAY_SECONDS)
        os.chdir(str(request["folder"]))
        os.environ.clear()
        os.environ.update(request["environment"])  # type: ignore[call-overload]
        time.tzset()
        sys.modules[str(request["module"])].main(request["arguments"])
        status = 0
    except SystemExit as end:
        status = end.code & 0xFF if isinstance(end.code, int) else 0 if end.code is None else 1
        if not isinstance(end.code, int | None):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:  # noqa: BLE001 - the boundary of a process: its traceback is its report
        traceback.print_exc()
    finally:
        try:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or replaced by None
                    stream.flush()
        finally:
            os._exit(status)
