"""A disk of three megabytes, to be filled up; the fixture `disk` mounts it."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def full(disk: Path, *, but_for: int = 0) -> Iterator[None]:
    """Fill the disk, except for `but_for` bytes."""
    state, ballast = os.statvfs(disk), disk / "ballast"
    ballast.write_bytes(b"\0" * max(state.f_bavail * state.f_frsize - but_for, 0))
    yield
    ballast.unlink()


@contextlib.contextmanager
def read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
