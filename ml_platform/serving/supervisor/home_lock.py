"""The lock of a server's folder: two servers must not share a state and a journal."""

import contextlib
import fcntl
import logging
import os
from pathlib import Path

from ml_platform.errors import SecondServerError

log = logging.getLogger("ml_platform.serving")

PID_FILE = "server.pid"


def lock_home(home: Path) -> int:
    """Lock a server's folder for this process; return the descriptor that holds the lock until it is closed.

    The folder itself is locked, which needs no file and therefore works on a full or read-only disk. The system
    releases the lock when the process ends, also by SIGKILL. Workers do not inherit it: Python's descriptors are closed
    in a new program, so a worker that outlives a killed supervisor does not block the next one.

    Raises
    ------
    SecondServerError
        Another process holds the lock; nothing was changed.
    """
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SecondServerError(
            f"Two servers must not share the folder {home}, which holds one state and one journal. It is used by "
            f"{_find_owner(home)}. Stop that server first, or give this one an ML_PLATFORM_HOME of its own, and the "
            "same database by ML_PLATFORM_DATABASE_URL."
        ) from None
    except OSError as error:  # some network file systems lock no folders
        log.warning("%s cannot be locked: %s. Start no second server there.", home, error.strerror)
    return descriptor


def _find_owner(home: Path) -> str:
    """Return the process in the folder's file; the file is an older server's if the disk refused the present one's."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((home / PID_FILE).read_text())
        with contextlib.suppress(PermissionError):  # a process of another user
            os.kill(pid, 0)
        return f"process {pid}"
    return "another process"
