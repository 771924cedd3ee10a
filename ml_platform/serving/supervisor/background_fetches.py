"""Fetches of versions' files in the background: a server follows its ledger also while MLflow does not answer."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ml_platform.errors import PlatformError
from ml_platform.serving.state import ServedVersion

# Pause after a failed fetch of a version, in seconds; it doubles up to the maximum.
MIN_PAUSE, MAX_PAUSE = 1.0, 30.0
UNEXPECTED = "the fetch of its files ended with an unexpected error; see the server's log"


@dataclass
class _Fetch:
    """The fetch of one version's files: if it runs, why the last attempt failed, and when the next may start."""

    running: bool = False
    problem: str = ""
    pause: float = MIN_PAUSE / 2
    next_at: float = 0.0


class BackgroundFetches:
    """Fetches of versions' files, at most one of each version at a time.

    Parameters
    ----------
    on_end : callable
        Called in the fetch's thread after each fetch.
    """

    def __init__(self, on_end: Callable[[], None]) -> None:
        self._on_end = on_end
        self._fetches: dict[ServedVersion, _Fetch] = {}

    def start(self, served: ServedVersion, work: Callable[[], object]) -> str:
        """Start a fetch, unless one is running or has just failed; return the last failure, empty if there was none.

        Parameters
        ----------
        served : ServedVersion
        work : callable
            Stores the files, or raises a `PlatformError`.
        """
        fetch = self._fetches.setdefault(served, _Fetch())
        if not fetch.running and time.monotonic() >= fetch.next_at:
            fetch.running = True
            # A daemon thread: MLflow must not delay the end of the server either.
            threading.Thread(target=self._run, args=(fetch, work), daemon=True).start()
        return fetch.problem

    def _run(self, fetch: _Fetch, work: Callable[[], object]) -> None:
        problem = UNEXPECTED
        try:
            work()
            problem = ""
        except PlatformError as error:
            problem = str(error)
        finally:
            fetch.problem, fetch.pause = problem, min(2 * fetch.pause, MAX_PAUSE) if problem else MIN_PAUSE / 2
            fetch.next_at = time.monotonic() + fetch.pause if problem else 0.0
            fetch.running = False
            self._on_end()
