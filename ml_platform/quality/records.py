"""What Dagster's event log says of one run: which asset checks succeeded, and why steps failed."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from ml_platform import own_checks, views
from ml_platform.errors import ApprovalNeededError
from ml_platform.quality.documents import CheckState

SUCCEEDED = AssetCheckExecutionRecordStatus.SUCCEEDED
MOST_RECORDS = 1_000


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What is recorded of one check in one run; `said` is what the check said of itself."""

    state: CheckState
    said: str


@contextlib.contextmanager
def opened(home: Path) -> Iterator[dg.DagsterInstance]:
    """Open the Dagster instance of a deployment's folder."""
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


def runs_of(instance: dg.DagsterInstance) -> list[str]:
    """Return the ids of all runs."""
    return [run.run_id for run in instance.get_runs()]


def record_of(instance: dg.DagsterInstance, asset: list[str], name: str, runs: list[str]) -> Recorded:
    """Return what became of a check in these runs; only a record that says SUCCEEDED in each is a success.

    A check that was planned and gave no result, as one that returns None, has a record that stays planned.
    """
    key = dg.AssetCheckKey(dg.AssetKey(asset), name)
    history = instance.event_log_storage.get_asset_check_execution_history(key, limit=MOST_RECORDS)
    found = [record for record in history if record.run_id in set(runs)]
    if not runs or {record.run_id for record in found} != set(runs):
        return Recorded(state=CheckState.MISSING, said="no record of it in the run")
    bad = [record for record in found if record.status != SUCCEEDED]
    if not bad:
        return Recorded(state=CheckState.SUCCEEDED, said=_said(found[0].event))
    if bad[0].status is AssetCheckExecutionRecordStatus.FAILED:
        return Recorded(state=CheckState.FAILED, said=_said(bad[0].event))
    return Recorded(state=CheckState.SKIPPED, said=own_checks.why_no_result(instance, bad[0]))


def _said(event: dg.EventLogEntry | None) -> str:
    said = event.dagster_event if event else None
    if said is None or said.event_type is not dg.DagsterEventType.ASSET_CHECK_EVALUATION:
        return ""
    return said.asset_check_evaluation_data.description or ""


def failures(instance: dg.DagsterInstance, run: str) -> list[str]:
    """Return why a run did not succeed, as sentences; empty where it did, or waits for a person's approval alone."""
    found = instance.get_run_by_id(run)
    if found is not None and found.status is dg.DagsterRunStatus.SUCCESS:
        return []
    steps = instance.all_logs(run, of_type=dg.DagsterEventType.STEP_FAILURE)
    errors = [event.dagster_event.step_failure_data.error for event in steps if event.dagster_event]
    said = [views.innermost(error)[1] for error in errors if not _waits(error)]
    if said or errors:
        return said
    return [f"the run ended as {found.status.value if found else 'nothing'} without the failure of a step"]


def _waits(error: object) -> bool:
    """Whether this, or what it came from, asks for an approval: that stands behind the gates and is a person's."""
    while error is not None:
        if getattr(error, "cls_name", None) == ApprovalNeededError.__name__:
            return True
        error = getattr(error, "cause", None)
    return False
