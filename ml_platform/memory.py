"""Memory of this process: a bound on what it may ask for, and who dies first when the machine has none left."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS = Path("/proc/self/status")
SCORE = Path("/proc/self/oom_score_adj")
# Of 1000: before whatever has not said so of itself.
FIRST = 500


@contextmanager
def limited(most_bytes: int | None) -> Iterator[None]:
    """Let what is done here ask for so many bytes beyond those that the process has; beyond them a ``MemoryError``.

    Linux counts what the process may write and nobody else sees, touched or not: ``VmData`` in proc(5). A process that
    is started here may have as much as this one. Other systems do not count it, and there is no limit.

    Parameters
    ----------
    most_bytes : int or None
        ``None`` is no limit but that of whoever started the process.
    """
    if most_bytes is None or not STATUS.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bounds = [_writable_bytes() + most_bytes, *(b for b in (soft, hard) if b != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _writable_bytes() -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmData:"))
    return int(line.split()[1]) * 1024


def die_first() -> None:
    """Ask the kernel to kill this process, and those that it starts, before others when no memory is left.

    By itself it takes the largest, which may be a server of predictions: ``oom_score_adj`` in proc(5).
    """
    if SCORE.exists() and int(SCORE.read_text()) < FIRST:
        SCORE.write_text(f"{FIRST}")
