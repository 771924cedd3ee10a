"""Read from Dagster's event log which asset checks of a run succeeded and why steps failed."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from ml_platform.ci.result_schema import CheckState
from ml_platform.errors import ApprovalNeededError
from ml_platform.orchestration import custom_checks, metadata
from ml_platform.orchestration.dagster_internals import AssetCheckExecutionRecordStatus

SUCCEEDED = AssetCheckExecutionRecordStatus.SUCCEEDED
MAX_RECORDS = 1_000


@dataclass(frozen=True, kw_only=True)
class CheckRecord:
    """A check's state in a run; `said` is the check's description or the reason for a missing result."""

    state: CheckState
    said: str


@contextlib.contextmanager
def open_instance(home: Path) -> Iterator[dg.DagsterInstance]:
    """Open the Dagster instance of a deployment's folder."""
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


def list_run_ids(instance: dg.DagsterInstance) -> list[str]:
    """Return the ids of all runs."""
    return [run.run_id for run in instance.get_runs()]


def read_check_record(instance: dg.DagsterInstance, asset: list[str], name: str, runs: list[str]) -> CheckRecord:
    """Return a check's state in these runs: SUCCEEDED only if each run has a record that says so.

    A check that gives no result, for instance because it returns None, keeps the record that it was planned.
    """
    key = dg.AssetCheckKey(dg.AssetKey(asset), name)
    history = instance.event_log_storage.get_asset_check_execution_history(key, limit=MAX_RECORDS)
    records = [record for record in history if record.run_id in set(runs)]
    if not runs or {record.run_id for record in records} != set(runs):
        return CheckRecord(state=CheckState.MISSING, said="the run has no record of it")
    bad = [record for record in records if record.status != SUCCEEDED]
    if not bad:
        return CheckRecord(state=CheckState.SUCCEEDED, said=_description(records[0].event))
    if bad[0].status is AssetCheckExecutionRecordStatus.FAILED:
        return CheckRecord(state=CheckState.FAILED, said=_description(bad[0].event))
    return CheckRecord(state=CheckState.SKIPPED, said=custom_checks.explain_missing_result(instance, bad[0]))


def _description(entry: dg.EventLogEntry | None) -> str:
    event = entry.dagster_event if entry else None
    if event is None or event.event_type is not dg.DagsterEventType.ASSET_CHECK_EVALUATION:
        return ""
    return event.asset_check_evaluation_data.description or ""


def failures(instance: dg.DagsterInstance, run: str) -> list[str]:
    """Return the reasons why a run failed, as sentences; empty if it succeeded or only waits for an approval."""
    record = instance.get_run_by_id(run)
    if record is not None and record.status is dg.DagsterRunStatus.SUCCESS:
        return []
    steps = instance.all_logs(run, of_type=dg.DagsterEventType.STEP_FAILURE)
    errors = [event.dagster_event.step_failure_data.error for event in steps if event.dagster_event]
    if errors:
        return [metadata.root_cause(error)[1] for error in errors if not _needs_approval(error)]
    return [f"the run has the status {record.status.value if record else 'unknown'}, but no step failed"]


def _needs_approval(error: object) -> bool:
    """Return True if an error or one of its causes is a missing approval, which is decided after the gates."""
    while error is not None:
        if getattr(error, "cls_name", None) == ApprovalNeededError.__name__:
            return True
        error = getattr(error, "cause", None)
    return False
