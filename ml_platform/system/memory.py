"""Memory of the machine, and of this process: an upper limit, a preference to be killed first when memory runs out."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS = Path("/proc/self/status")
SCORE = Path("/proc/self/oom_score_adj")
# The limit of a container, in bytes, or "max".
CONTAINER = Path("/sys/fs/cgroup/memory.max")
# Of at most 1000: the kernel kills this process before all processes with the default score.
FIRST = 500


@contextmanager
def limit_memory(max_bytes: int | None) -> Iterator[None]:
    """Limit the memory that the body may allocate; allocations beyond the limit raise ``MemoryError``.

    Linux counts private writable memory, touched or not: ``VmData`` in proc(5). Child processes inherit the limit. On
    other systems there is no limit.

    Parameters
    ----------
    max_bytes : int or None
        Bytes in addition to the memory that the process already uses. ``None`` keeps the limit of the parent process.
    """
    if max_bytes is None or not STATUS.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    status = STATUS.read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in status if line.startswith("VmData:"))
    bounds = [kilobytes * 1024 + max_bytes, *(b for b in (soft, hard) if b != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def prefer_oom_kill() -> None:
    """Make the kernel kill this process and its children before others when memory runs out.

    By default it kills the largest process, which may be a prediction server: ``oom_score_adj`` in proc(5).
    """
    if SCORE.exists() and int(SCORE.read_text()) < FIRST:
        SCORE.write_text(f"{FIRST}")


def read_machine_bytes() -> int:
    """Return the memory of the machine, or of the container if it may use less, in bytes."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CONTAINER.read_text().strip() if CONTAINER.exists() else "max"
    return min(machine, int(limit)) if limit.isdecimal() else machine
