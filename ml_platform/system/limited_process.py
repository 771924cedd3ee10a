"""A long-lived process for work on untrusted bytes: its death, its memory and its time are bounded and reported.

Readers of file formats are native code: a hostile or broken file can crash them, make them allocate without end or
never return. The process imports its modules once and then answers many requests, one at a time. After a death the
next request starts another one.

The memory is watched from outside, because a limit on the address space (``RLIMIT_AS``) also counts mapped files and
reserved, unused memory. Only anonymous resident memory counts: pages of mapped files can be dropped at any time.
Without ``/proc`` there is no limit of memory.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ml_platform import errors
from ml_platform.errors import ConfigurationError, PlatformError, ReaderEndedError, one_line, printable
from ml_platform.system.memory import prefer_oom_kill

LENGTH = struct.Struct("!Q")
# The process imports modules, and the code of a model's author, before it reads the first untrusted byte.
START_SECONDS = 120.0
# Longest time between two readings of the memory.
WATCH_SECONDS = 0.02
# The calling process ends the process in time. If it was killed itself, the process's own alarm does.
ALARM_DELAY_SECONDS = 5.0
END_SECONDS = 5.0
STDERR_BYTES = 4_096
Handler = Callable[[dict[str, Any], IO[bytes], Callable[[], None]], Any]


@dataclass(frozen=True)
class _Running:
    """A started process with its socket, its stderr and the process that started it."""

    process: subprocess.Popen[bytes]
    socket: socket.socket
    stderr: IO[bytes]
    owner: int

    def is_alive(self) -> bool:
        # A child that this process forks is another process's parent, not this one's.
        return self.owner == os.getpid() and self.process.poll() is None

    def stop(self, grace_seconds: float = 0.0) -> int:
        """End the process and return its exit status, negative for a signal; 0 in a fork, where it goes on."""
        self.socket.close()
        if self.owner != os.getpid():
            return 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_seconds)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # what it started itself is ended, too
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()

    def last_words(self) -> str:
        return read_last_line(self.stderr)


def read_last_line(stderr: IO[bytes]) -> str:
    """Return the last line that a process wrote to its standard error, without control characters."""
    stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - STDERR_BYTES))
    lines = stderr.read().decode(errors="replace").strip().splitlines()
    return printable(lines[-1]) if lines else "it wrote nothing to stderr"


class LimitedProcess:
    """A process that answers requests with one function of one module.

    Parameters
    ----------
    module : str
        Its function ``handle(request, file, begin)`` answers: it receives a request, a file for large results, and a
        function that it calls directly before the first untrusted byte. Its result is JSON.
    imports : sequence of str
        Modules to import at the start.
    """

    def __init__(self, module: str, imports: Sequence[str] = ()) -> None:
        self._module, self._imports = module, list(imports)
        self._running: _Running | None = None
        self._busy = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The number of the running process; ``None`` if none runs."""
        running = self._running
        return running.process.pid if running is not None and running.is_alive() else None

    def start(self) -> None:
        """Start the process, unless it runs; its imports overlap with the work of this one."""
        with self._busy:
            self._start()

    def _start(self) -> _Running:
        if self._running is not None and self._running.is_alive():
            return self._running
        self._stop()
        ours, theirs = socket.socketpair()
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process's handle
        program = (
            "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
            "from ml_platform.system.limited_process import serve; serve(*sys.argv[2:])"
        )
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-c", program, json.dumps(sys.path), self._module, *self._imports],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,  # an interrupt from the keyboard ends this process, which then ends that one
        )
        theirs.close()
        self._running = _Running(process, ours, stderr, os.getpid())
        return self._running

    def call(self, request: dict[str, Any], file: IO[bytes], *, max_bytes: int, seconds: float) -> Any:
        """Answer a request in the process.

        Parameters
        ----------
        request : dict
            JSON.
        file : file object
            An open file, which the process may write to.
        max_bytes : int
            Maximum resident memory beyond that at the first untrusted byte, in bytes.
        seconds : float
            Maximum time from the first untrusted byte, in seconds.

        Raises
        ------
        ReaderEndedError
            The process ended, or was ended, after the first untrusted byte. The next call starts another one.
        ConfigurationError
            The process ended before the first untrusted byte.
        PlatformError
            The function raised it.
        """
        with self._busy:
            try:
                # A process that ended while it was idle had read nothing: another one answers.
                was_running, request = self.pid is not None, {**request, "seconds": seconds}
                try:
                    answer = _ask(self._start(), request, file, max_bytes)
                except ConfigurationError:
                    if not was_running:
                        raise
                    answer = _ask(self._start(), request, file, max_bytes)
            except BaseException:  # an interrupt, too: a late answer must not be taken for the next request's
                self._stop()
                raise
        if "error" in answer:
            raise getattr(errors, answer["error"], PlatformError)(answer["message"])
        return answer["result"]

    def _stop(self) -> None:
        if self._running is not None:
            self._running.stop()
            self._running.stderr.close()
            self._running = None

    def close(self) -> None:
        """Kill the process, if it runs."""
        with self._busy:
            self._stop()


def _ask(running: _Running, request: dict[str, Any], file: IO[bytes], max_bytes: int) -> Any:
    data, pid = json.dumps(request).encode(), running.process.pid
    try:
        socket.send_fds(running.socket, [LENGTH.pack(len(data))], [file.fileno()])
        running.socket.sendall(data)
        answer = _Watch(running.socket, pid, START_SECONDS).read_message()
    except (EOFError, OSError) as error:
        running.stop(END_SECONDS)
        raise ConfigurationError(
            f"The process that reads files could not start: {running.last_words()}. Check the installation and the "
            "machine's memory."
        ) from error
    if answer != {"begun": True}:
        return answer
    watch = _Watch(running.socket, pid, request["seconds"], max_bytes)
    try:
        return watch.read_message()
    except (EOFError, OSError):
        # A process that crashed closes its socket before it has ended.
        status = running.stop(0.0 if watch.exceeded else END_SECONDS)
        raise ReaderEndedError(watch.describe(status)) from None


class _Watch:
    """Wait for a message of a process, whose time and memory are limited."""

    def __init__(self, source: socket.socket, pid: int, seconds: float, max_bytes: int | None = None) -> None:
        self._socket, self._status = source, Path(f"/proc/{pid}/status")
        self._seconds, self._began = seconds, time.monotonic()
        self._max_bytes, self._peak, self.exceeded = max_bytes, 0, ""
        self._start = 0 if max_bytes is None else read_anonymous_bytes(self._status)

    def read_message(self) -> Any:
        """Return the next message; raise EOFError if the process ended or exceeded a limit."""
        (length,) = LENGTH.unpack(self._read(LENGTH.size))
        return json.loads(self._read(length))

    def _read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            while not select.select([self._socket], [], [], WATCH_SECONDS)[0]:
                self.check_limits()
            part = self._socket.recv(min(size, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def check_limits(self) -> None:
        """Set `exceeded` to the reason, and end the wait, if the process has exceeded its memory or its time."""
        if self._max_bytes is not None:
            self._peak = max(self._peak, read_anonymous_bytes(self._status) - self._start)
            if self._peak > self._max_bytes:
                self.exceeded = f"it needed more than {self._max_bytes:,} bytes (ML_PLATFORM_READER_MEMORY_BYTES)"
        if time.monotonic() - self._began > self._seconds:
            self.exceeded = f"it took longer than {self._seconds:g} s (ML_PLATFORM_READER_SECONDS)"
        if self.exceeded:
            raise EOFError

    def describe(self, status: int) -> str:
        """Return the reason for which a process ended, with its memory and time."""
        ended = f"it was ended by {_name_signal(-status)}" if status < 0 else f"it ended with status {status}"
        seconds, mebibytes = time.monotonic() - self._began, self._peak / 2**20
        # A process that ended at once was never measured.
        memory = f" and with {mebibytes:,.0f} MiB of memory" if mebibytes >= 1 else ""
        return f"{self.exceeded or ended}, after {seconds:.1f} s{memory}"


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def read_anonymous_bytes(status: Path) -> int:
    """Return the resident memory of a process that is not backed by files, in bytes; 0 if it is unknown."""
    try:
        lines = status.read_text().splitlines()
    except OSError:  # not Linux, or the process has ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


# --- the process itself -------------------------------------------------------------------------------------------


def serve(module: str, *imports: str) -> None:
    """Answer requests that arrive on stdin, a socket, until it is closed."""
    prefer_oom_kill()
    handle: Handler = importlib.import_module(module).handle
    for name in imports:
        importlib.import_module(name)
    with socket.socket(fileno=os.dup(0)) as connection:
        while True:
            head, files, _, _ = socket.recv_fds(connection, LENGTH.size, 1)
            if not head:
                return
            (length,) = LENGTH.unpack(head)
            request = json.loads(_read_exactly(connection, length))
            with os.fdopen(files[0], "r+b") as file:
                _send(connection, _answer(handle, request, file, connection))


def _answer(handle: Handler, request: dict[str, Any], file: IO[bytes], connection: socket.socket) -> dict[str, Any]:
    def begin() -> None:
        # If the calling process is killed, no other process ends a reader that hangs.
        signal.setitimer(signal.ITIMER_REAL, float(request["seconds"]) + ALARM_DELAY_SECONDS)
        _send(connection, {"begun": True})

    try:
        return {"result": handle(request, file, begin)}
    except PlatformError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception as error:  # noqa: BLE001 - the boundary of a process: the caller raises it again
        return {"error": "PlatformError", "message": f"The process that reads files failed: {one_line(error)}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    connection.sendall(LENGTH.pack(len(data)) + data)


def _read_exactly(connection: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
