"""Files of the prediction log: how they are named, opened, closed and read.

A server writes ``predictions-<worker>-<time>.jsonl.open`` and renames it to ``….jsonl`` when it closes it. While it
lives it holds a lock on the open file, which the system takes from it however it ends: an open file without a lock was
left by a process that died, and is closed by whoever comes next, up to its last whole line.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from ml_platform import durable

PREFIX = "predictions-"
CLOSED = ".jsonl"
OPEN = ".jsonl.open"
# Whoever touches this file asks every writer to close what it has open: see `ask_to_close`.
ASKED = "close-now"
BLOCK = 64 * 1024


def new_name(worker: str, at: float) -> str:
    """Return the name, without suffix, of a file that a worker begins at a time in seconds since the epoch."""
    return f"{PREFIX}{worker}-{datetime.fromtimestamp(at, UTC):%Y%m%dT%H%M%S.%fZ}"


def closed_files(folder: Path, worker: str | None = None) -> list[Path]:
    """Return the closed files, of one worker or of all, the oldest of a worker first."""
    files = sorted(folder.glob(f"{PREFIX}*{CLOSED}"))
    return [file for file in files if worker is None or file.name.rpartition("-")[0] == PREFIX + worker]


def open_files(folder: Path) -> list[Path]:
    """Return the files that are being written, or were when their process died."""
    return sorted(folder.glob(f"{PREFIX}*{OPEN}"))


def closed_name(file: Path) -> Path:
    """Return the path that an open file has once it is closed."""
    return file.with_name(file.name.removesuffix(OPEN) + CLOSED)


def create(folder: Path, name: str) -> tuple[int, Path]:
    """Make an empty open file and lock it; return its descriptor and path.

    Raises
    ------
    OSError
        The disk takes no file, or there is one of that name.
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
        os.close(descriptor)  # somebody took it for one that was left behind, before it was locked


def left_open(folder: Path) -> list[Path]:
    """Return the files that processes left open when they died; nothing is changed."""
    found = []
    for path in open_files(folder):
        with _locked(path) as descriptor:
            if descriptor is not None:
                found.append(path)
    return found


def close_left_open(folder: Path) -> list[Path]:
    """Close the files that processes left open when they died; return them under their closed names.

    A line that was cut is taken away; a file without a whole line is removed. Files that are being written stay.
    """
    closed = []
    for path in open_files(folder):
        with _locked(path) as descriptor:
            if descriptor is None:
                continue
            size = _end_of_last_line(descriptor)
            if size:
                os.ftruncate(descriptor, size)
                os.fsync(descriptor)
                path.rename(closed_name(path))
                closed.append(closed_name(path))
            else:
                path.unlink()
    if closed:
        durable.sync(folder)
    return closed


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """Yield the descriptor of an open file that nobody holds; None where somebody does, or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        yield None
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Closed and renamed by another process between the two calls?
        there = path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino
        yield descriptor if there else None
    except BlockingIOError:
        yield None
    finally:
        os.close(descriptor)


def _end_of_last_line(descriptor: int) -> int:
    """Return how many bytes a file has up to its last line break; 0 where it has none."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(end - BLOCK, 0)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def asked_at(folder: Path) -> int:
    """Return a number that changes whenever somebody asks the writers to close their files; 0 before anybody did."""
    try:
        return (folder / ASKED).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def ask_to_close(folder: Path) -> list[Path]:
    """Ask every writer to close what it has open, so that it can be read or changed; return what is open now."""
    there = open_files(folder)
    if there:
        (folder / ASKED).touch()
    return there
