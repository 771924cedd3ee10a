"""One daemon for each deployment: a second one exits. dagster.yaml names `OneDaemonCoordinator`."""

import contextlib
import os
import sys

import dagster as dg

from ml_platform.errors import PlatformError, SecondDaemonError
from ml_platform.orchestration.dagster_internals import QueuedRunCoordinator
from ml_platform.platform import Platform
from ml_platform.safe_text import escape_controls
from ml_platform.system.file_modes import make_files_private

LOCK = "daemon"
# Exit status of a second daemon.
LEFT = 1


def require_no_daemon(platform: Platform) -> None:
    """Check that no daemon runs for this deployment. The lock is released afterwards.

    Raises
    ------
    SecondDaemonError
        A daemon runs for this deployment.
    """
    with contextlib.ExitStack() as lock:
        _lock_daemon(platform, lock)


def _lock_daemon(platform: Platform, lock: contextlib.ExitStack) -> None:
    if not lock.enter_context(platform.database.locked(LOCK)):
        raise SecondDaemonError(
            "A daemon runs for this deployment already, and two would request the same runs: this one exits. "
            "Stop the other one first, which `ml-platform dev`, `dagster dev` or `dagster-daemon run` started; or give "
            "this deployment an ML_PLATFORM_HOME, or an ML_PLATFORM_DATABASE_URL, of its own."
        )


class OneDaemonCoordinator(QueuedRunCoordinator[dg.DagsterInstance]):
    """Dagster's queue of runs; only the daemon that holds the deployment's lock takes runs from it."""

    @property
    def dequeue_interval_seconds(self) -> int:
        """Seconds between the daemon's looks into the queue.

        Only a daemon reads this property, once, before its threads start. It takes the lock here and holds it until its
        process ends; a second daemon reports the error and exits here.
        """
        make_files_private()
        self._lock = contextlib.ExitStack()
        try:
            _lock_daemon(Platform(), self._lock)
        except PlatformError as error:
            sys.stderr.write(f"error: {escape_controls(str(error))}\n")
            sys.stderr.flush()
            # At once, which loses nothing: under `dagster dev` an exception would wait forever on a pipe.
            os._exit(LEFT)
        return super().dequeue_interval_seconds
