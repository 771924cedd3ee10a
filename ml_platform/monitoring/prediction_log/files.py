"""Files of the prediction log: their names, creation and closing.

A server writes ``predictions-<worker>-<time>.jsonl.open`` and renames it to ``….jsonl`` to close it. It holds a lock on
the open file, which the operating system releases when the process exits in any way. An open file without a lock was
therefore left behind by a killed process; the next process that finds it closes it after its last whole line.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from ml_platform.storage import atomic_files

PREFIX = "predictions-"
CLOSED = ".jsonl"
OPEN = ".jsonl.open"
# Touching this file asks every writer to close its open file: see `ask_to_close`.
ASKED = "close-now"
BLOCK = 64 * 1024


def new_name(worker: str, at: float) -> str:
    """Return the name, without suffix, of a worker's file created at a time in seconds since the epoch."""
    return f"{PREFIX}{worker}-{datetime.fromtimestamp(at, UTC):%Y%m%dT%H%M%S.%fZ}"


def closed_files(folder: Path) -> list[Path]:
    """Return the closed files of all workers, the oldest first."""
    return sorted(folder.glob(f"{PREFIX}*{CLOSED}"), key=lambda file: (file.name.rpartition("-")[2], file.name))


def remove_oldest(folder: Path, max_bytes: int) -> int:
    """Remove the oldest closed files until the others have at most `max_bytes`; return the number of removed ones.

    The files of earlier workers count: each start of a server has workers of other names.
    """
    sizes = {}
    for file in closed_files(folder):
        with contextlib.suppress(FileNotFoundError):  # collected into the table, or removed by another worker
            sizes[file] = file.stat().st_size
    excess, removed = sum(sizes.values()) - max_bytes, 0
    for file, size in sizes.items():
        if excess <= 0:
            break
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
            removed += 1
        excess -= size
    return removed


def open_files(folder: Path) -> list[Path]:
    """Return the files that are being written or were left open by a killed process."""
    return sorted(folder.glob(f"{PREFIX}*{OPEN}"))


def closed_name(file: Path) -> Path:
    """Return the closed path of an open file."""
    return file.with_name(file.name.removesuffix(OPEN) + CLOSED)


def create(folder: Path, name: str) -> tuple[int, Path]:
    """Create an empty open file and lock it; return its descriptor and path.

    Raises
    ------
    OSError
        The file cannot be created, or a file of that name exists.
    """
    path = folder / f"{name}{OPEN}"
    while True:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            os.close(descriptor)
            raise
        if os.fstat(descriptor).st_nlink:
            return descriptor, path
        os.close(descriptor)  # another process removed it as left behind, before it was locked


def left_open(folder: Path) -> list[Path]:
    """Return the files that killed processes left open; nothing is changed."""
    abandoned = []
    for path in open_files(folder):
        with _lock(path) as descriptor:
            if descriptor is not None:
                abandoned.append(path)
    return abandoned


def close_left_open(folder: Path) -> list[Path]:
    """Close the files that killed processes left open; return their closed paths.

    An incomplete last line is cut off; a file without a whole line is removed. Files that are being written stay.
    """
    closed = []
    for path in open_files(folder):
        with _lock(path) as descriptor:
            if descriptor is None:
                continue
            size = _find_last_line_end(descriptor)
            if size:
                os.ftruncate(descriptor, size)
                os.fsync(descriptor)
                path.rename(closed_name(path))
                closed.append(closed_name(path))
            else:
                path.unlink()
    if closed:
        atomic_files.sync(folder)
    return closed


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[int | None]:
    """Yield the descriptor of an open file, locked; None if a process holds its lock, or the file is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        yield None
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another process may have closed and renamed the file between the two calls.
        unchanged = path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino
        yield descriptor if unchanged else None
    except BlockingIOError:
        yield None
    finally:
        os.close(descriptor)


def _find_last_line_end(descriptor: int) -> int:
    """Return the number of bytes up to a file's last line break; 0 if it has none."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(end - BLOCK, 0)
        line_break = os.pread(descriptor, end - start, start).rfind(b"\n")
        if line_break >= 0:
            return start + line_break + 1
        end = start
    return 0


def asked_at(folder: Path) -> int:
    """Return the time of the last request to close files, in nanoseconds since the epoch; 0 if there was none."""
    try:
        return (folder / ASKED).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def ask_to_close(folder: Path) -> list[Path]:
    """Ask every writer to close its open file, so that it can be read or changed; return the files open now."""
    files = open_files(folder)
    if files:
        (folder / ASKED).touch()
    return files
