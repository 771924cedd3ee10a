"""One daemon a deployment: dagster.yaml names `OneDaemonCoordinator`, so that whoever starts a second sees it leave."""

import contextlib
import os
import sys
from typing import NoReturn

import dagster as dg
from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator

from ml_platform.errors import PlatformError, SecondDaemonError
from ml_platform.workflows import Platform

LOCK = "daemon"
# The status that a daemon ends with that is not needed.
LEFT = 1


def require_no_daemon(platform: Platform) -> None:
    """Look whether a daemon runs for this deployment; nothing is held afterwards.

    Raises
    ------
    SecondDaemonError
        One does.
    """
    with contextlib.ExitStack() as lock:
        _become_the_daemon(platform, lock)


def _become_the_daemon(platform: Platform, lock: contextlib.ExitStack) -> None:
    if not lock.enter_context(platform.database.locked(LOCK)):
        raise SecondDaemonError(
            "A daemon runs for this deployment already, and two would each ask for the same runs: this one leaves. "
            "Stop the other one first, which `ml-platform dev`, `dagster dev` or `dagster-daemon run` started; or give "
            "this deployment an ML_PLATFORM_HOME, or an ML_PLATFORM_DATABASE_URL, of its own."
        )


class OneDaemonCoordinator(QueuedRunCoordinator[dg.DagsterInstance]):
    """Dagster's queue of runs, from which the one process takes runs that holds the deployment's lock of daemons."""

    @property
    def dequeue_interval_seconds(self) -> int:
        """How often the daemon looks into the queue, in seconds.

        Of all processes with this coordinator only a daemon asks, once, before its threads start. It holds the lock
        until it ends, whatever ends it; where another one does, it says so and ends here.
        """
        self._lock = contextlib.ExitStack()
        try:
            _become_the_daemon(Platform(), self._lock)
        except PlatformError as error:
            _leave(error)
        return super().dequeue_interval_seconds


def _leave(error: PlatformError) -> NoReturn:
    """End this process at once, and nothing is lost: under `dagster dev` an exception waits for ever on a pipe."""
    sys.stderr.write(f"error: {error}\n")
    sys.stderr.flush()
    os._exit(LEFT)
