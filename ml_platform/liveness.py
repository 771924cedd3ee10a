"""Dagster's instance, which process executes a run there, and whether it has died."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from ml_platform.settings import require_dagster_home

PROCESS_TAG = "ml_platform/process"


@contextlib.contextmanager
def opened_instance() -> Iterator[dg.DagsterInstance]:
    """Open the deployment's instance; runs whose process has died are marked first.

    Raises
    ------
    ConfigurationError
        ``DAGSTER_HOME`` cannot be used.
    """
    # dagster.yaml names var/ relative to the folder that it stands in.
    with contextlib.chdir(require_dagster_home()), dg.DagsterInstance.get() as instance:
        report_dead_runs(instance)
        yield instance


def report_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs as failed whose process was killed, for the queue and the sensors wait for them; return their ids.

    Dagster notices by itself only when `max_runtime_seconds` is over. A failed run is retried where its deployment
    says so; a run that goes on is left alone.
    """
    started = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    dead = [run for run in started if process_is_gone(run.tags.get(PROCESS_TAG))]
    for run in dead:
        instance.report_run_failed(run, "Its process has died.")
    return [run.run_id for run in dead]


def process_tag() -> str:
    """Return host, id and start of this process, for the tags of a run that it executes."""
    return f"{socket.gethostname()}:{os.getpid()}:{_start_of(os.getpid())}"


def process_is_gone(tag: str | None) -> bool:
    """Whether a run was executed by a process of this host that has died since; None is a run that has not begun."""
    host, pid, start = (tag or "::").rsplit(":", 2)
    return bool(pid) and host == socket.gethostname() and not _is_alive(int(pid), start)


def _is_alive(pid: int, start: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's process is a process too
    # Ids come round again, after a reboot above all: it must be the process that started then.
    return _start_of(pid) == start


def _start_of(pid: int) -> str:
    """Return when a process started, in clock ticks since boot (proc(5)); an empty text where there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def is_running(instance: dg.DagsterInstance, job: str) -> bool:
    """Whether a run of a job waits or is under way; one whose process has died is not."""
    live = [
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ]
    runs = instance.get_runs(dg.RunsFilter(job_name=job, statuses=live))
    return any(not process_is_gone(run.tags.get(PROCESS_TAG)) for run in runs)
