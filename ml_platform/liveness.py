"""Dagster's instance, which process executes a run there, and whether it has died."""

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
# Dagster's launcher notes here which code server it asks to start a run.
SERVER_TAG = ".dagster/grpc_info"
# A code server looks twice a second after the processes that it started.
SECONDS_TO_SAY = 2
# How a code server begins what it says of the death of a run's process.
DEATH = "Run execution process for "
# A run is in state STARTING for a moment before that note is made; a retry inherits the note of the run that failed.
SECONDS_TO_NOTE = 10
# A run is queued in the moment in which it is made, or by the daemon that comes back.
SECONDS_TO_QUEUE = 600
# What Dagster announced to retry and did not within this time, it will not.
SECONDS_TO_RETRY = 180


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
    dead = _dead_runs(instance)
    if any(SERVER_TAG in run.tags and not _server_is_gone(run) for run in dead):
        # Its code server saw it die and says by which signal, unless it was started again since.
        time.sleep(SECONDS_TO_SAY)
        dead = _dead_runs(instance)
    return [_report(instance, run, "Its process has died.") for run in dead]


def _dead_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    started = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    return [run for run in started if has_died(run)]


def report_dead_launches(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs as failed whose code server was killed before their process could say that it is there; return them.

    Such a run holds its place in the queue until `start_timeout_seconds` are over. Only the machine of the daemon,
    which launches runs, can tell: the server listens on a socket there. A worker that comes up after all finds its
    run finished and leaves.
    """
    statuses = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    latest = time.time() - SECONDS_TO_NOTE
    records = instance.get_run_records(dg.RunsFilter(statuses=statuses))
    rested = [record.dagster_run for record in records if record.update_timestamp.timestamp() <= latest]
    dead = [run for run in rested if not _process_of(run) and _server_is_gone(run)]
    return [_report(instance, run, "The code server that was starting it has died.") for run in dead]


def report_forgotten_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs as failed that were made and never queued, for the daemon died that was about to; return their ids.

    A daemon that comes back within a day queues what its last tick asked for. What is left over would hold up the
    sensors of its model for ever, which wait for it.
    """
    latest = datetime.now(UTC) - timedelta(seconds=SECONDS_TO_QUEUE)
    asked = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.NOT_STARTED], created_before=latest))
    return [_report(instance, run, "It was never queued: the daemon that asked for it has died.") for run in asked]


def _report(instance: dg.DagsterInstance, run: dg.DagsterRun, why: str) -> str:
    instance.report_run_failed(run, why)
    return run.run_id


def process_tag(run_id: str) -> str:
    """Return the tag of a run that this process executes.

    It names the run: a retry inherits the tags of the run that it repeats, and is executed by another process.
    """
    return f"{run_id}@{this_process()}"


def this_process() -> str:
    """Return host, id and start of this process."""
    return f"{socket.gethostname()}:{os.getpid()}:{_start_of(os.getpid())}"


def has_died(run: dg.DagsterRun) -> bool:
    """Whether a process of this host executed the run and is gone; False for a run that has not begun."""
    return process_is_gone(_process_of(run))


def _process_of(run: dg.DagsterRun) -> str:
    """Return the process that executes a run; an empty text before one does."""
    run_id, _, process = run.tags.get(PROCESS_TAG, "").partition("@")
    return process if run_id == run.run_id else ""


def process_is_gone(process: str) -> bool:
    """Whether a process of this host has died, by what `this_process` said there; an empty text is no process."""
    host, pid, start = (process or "::").rsplit(":", 2)
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


def _server_is_gone(run: dg.DagsterRun) -> bool:
    """Whether nobody listens any more on the socket of the code server that was to start a run."""
    path = json.loads(run.tags.get(SERVER_TAG, "{}")).get("socket")
    if not path:
        return False  # not launched yet, or by a server elsewhere: Dagster's own time limit has to do
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return True
        except OSError:
            pass  # it is there, and busy
    return False


def last_words(instance: dg.DagsterInstance, run_id: str) -> str:
    """Return what the code server said of a run's process that ended too early: by which signal, and what that means.

    An empty text where it said nothing: it died as well, or the run ended otherwise.
    """
    events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    said = [(event.dagster_event.message or "").partition(DEATH) for event in events if event.dagster_event]
    return next((f"{begins}{words}" for _, begins, words in reversed(said) if begins), "")


def is_running(instance: dg.DagsterInstance, job: str) -> bool:
    """Whether a run of a job waits, is under way, or died and is about to be retried.

    Who asked for another one then would have the same done twice, and the retry overtaken.
    """
    live = [
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ]
    return bool(instance.get_runs(dg.RunsFilter(job_name=job, statuses=live), limit=1)) or _retry_is_due(instance, job)


def _retry_is_due(instance: dg.DagsterInstance, job: str) -> bool:
    """Whether a run failed just now that Dagster will retry, and has not yet."""
    failed = dg.RunsFilter(
        job_name=job,
        statuses=[dg.DagsterRunStatus.FAILURE],
        tags={"dagster/will_retry": "true"},
        updated_after=datetime.now(UTC) - timedelta(seconds=SECONDS_TO_RETRY),
    )
    return any("dagster/auto_retry_run_id" not in run.tags for run in instance.get_runs(failed))
