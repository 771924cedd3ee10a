"""Dagster's instance, the process of each run, and detection of runs whose process was killed."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from ml_platform.settings import require_dagster_home

PROCESS_TAG = "ml_platform/process"
# Dagster's launcher stores here the code server that it asks to start a run.
SERVER_TAG = ".dagster/grpc_info"
# A code server checks the processes that it started twice a second.
SECONDS_TO_SAY = 2
# The first words of a code server's message about a run's killed process.
DEATH = "Run execution process for "
# A run is in state STARTING for a moment before SERVER_TAG is set; a retry inherits the tag of the failed run.
SECONDS_TO_NOTE = 10
# A run is queued as soon as it is created, or when the daemon restarts.
SECONDS_TO_QUEUE = 600
# Dagster does not retry a failed run after this time, even if it announced the retry.
SECONDS_TO_RETRY = 180


@contextlib.contextmanager
def open_instance() -> Iterator[dg.DagsterInstance]:
    """Open the deployment's instance, after marking runs whose process was killed.

    Raises
    ------
    ConfigurationError
        ``DAGSTER_HOME`` cannot be used.
    """
    # dagster.yaml names var/ relative to its own folder.
    with contextlib.chdir(require_dagster_home()), dg.DagsterInstance.get() as instance:
        report_dead_runs(instance)
        yield instance


def report_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs as failed whose process was killed, and return their ids.

    The queue and the sensors would wait for them: Dagster itself detects them only after `max_runtime_seconds`. Failed
    runs are retried if the deployment says so; live runs are left alone.
    """
    dead = _dead_runs(instance)
    if any(SERVER_TAG in run.tags and not _server_is_gone(run) for run in dead):
        # Its code server reports the signal, unless the server was restarted since.
        time.sleep(SECONDS_TO_SAY)
        dead = _dead_runs(instance)
    return [_fail(instance, run, "Its process ended unexpectedly.") for run in dead]


def _dead_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    started = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    return [run for run in started if has_died(run)]


def report_dead_launches(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs as failed whose code server was killed before their process started, and return their ids.

    Such a run holds its place in the queue for `start_timeout_seconds`. Only the daemon's machine can detect it, since
    the server listens on a socket there. A process that starts later finds its run finished and exits.
    """
    statuses = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    latest = time.time() - SECONDS_TO_NOTE
    records = instance.get_run_records(dg.RunsFilter(statuses=statuses))
    settled = [record.dagster_run for record in records if record.update_timestamp.timestamp() <= latest]
    dead = [run for run in settled if not _read_run_process(run) and _server_is_gone(run)]
    return [_fail(instance, run, "The code server that was starting it was killed.") for run in dead]


def report_forgotten_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs as failed that were created and never queued because the daemon was killed, and return their ids.

    A daemon that restarts within a day queues the runs of its last tick. The sensors of a model would wait forever for
    the others.
    """
    latest = datetime.now(UTC) - timedelta(seconds=SECONDS_TO_QUEUE)
    created = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.NOT_STARTED], created_before=latest))
    return [_fail(instance, run, "It was never queued: the daemon that requested it was killed.") for run in created]


def _fail(instance: dg.DagsterInstance, run: dg.DagsterRun, why: str) -> str:
    instance.report_run_failed(run, why)
    return run.run_id


def process_tag(run_id: str) -> str:
    """Return the tag's value for a run that this process executes.

    It contains the run's id, since a retry inherits the tags of the failed run and has another process.
    """
    return f"{run_id}@{this_process()}"


def this_process() -> str:
    """Return host, id and start time of this process, separated by colons."""
    return f"{socket.gethostname()}:{os.getpid()}:{_read_start_time(os.getpid())}"


def has_died(run: dg.DagsterRun) -> bool:
    """Return True if the run's process was on this host and has ended; False for a run that has not started."""
    return process_is_gone(_read_run_process(run))


def _read_run_process(run: dg.DagsterRun) -> str:
    """Return the process of a run, as `this_process` writes it; an empty text before it starts."""
    run_id, _, process = run.tags.get(PROCESS_TAG, "").partition("@")
    return process if run_id == run.run_id else ""


def process_is_gone(process: str) -> bool:
    """Return True if a process of this host, as `this_process` wrote it, has ended; False for an empty text."""
    host, pid, start = (process or "::").rsplit(":", 2)
    if not pid or host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # a process of another user
    # Ids are reused, above all after a reboot: the start time must be the same.
    return _read_start_time(int(pid)) != start


def _read_start_time(pid: int) -> str:
    """Return a process's start time in clock ticks since boot (proc(5)); an empty text without /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _server_is_gone(run: dg.DagsterRun) -> bool:
    """Return True if the code server that a run was launched on no longer listens on its socket."""
    path = json.loads(run.tags.get(SERVER_TAG, "{}")).get("socket")
    if not path:
        return False  # not launched yet, or by a server on another machine: Dagster's own time limit applies
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return True
        except OSError:
            pass  # it is busy
    return False


def exit_reason(instance: dg.DagsterInstance, run_id: str) -> str:
    """Return the code server's message about a run's killed process: the signal and its meaning.

    An empty text if there is no message: the server was killed as well, or the run ended otherwise.
    """
    events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    messages = [(event.dagster_event.message or "").partition(DEATH) for event in events if event.dagster_event]
    return next((f"{start}{rest}" for _, start, rest in reversed(messages) if start), "")


def is_running(instance: dg.DagsterInstance, job: str) -> bool:
    """Return True if a run of a job is queued, is in progress, or failed and will be retried.

    Another run would do the same work twice and overtake the retry.
    """
    live = [
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ]
    if instance.get_runs(dg.RunsFilter(job_name=job, statuses=live), limit=1):
        return True
    # Dagster will retry these, and has not yet.
    failed = dg.RunsFilter(
        job_name=job,
        statuses=[dg.DagsterRunStatus.FAILURE],
        tags={"dagster/will_retry": "true"},
        updated_after=datetime.now(UTC) - timedelta(seconds=SECONDS_TO_RETRY),
    )
    return any("dagster/auto_retry_run_id" not in run.tags for run in instance.get_runs(failed))
