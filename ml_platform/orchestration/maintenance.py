"""Sensors of the whole deployment: clean-up after killed processes, and alerts."""

import json
import time

import dagster as dg

from ml_platform.monitoring.alerts import Alert, send, write_log
from ml_platform.orchestration import metadata
from ml_platform.orchestration.resources import PlatformResource
from ml_platform.orchestration.run_monitoring import (
    exit_reason,
    report_dead_launches,
    report_dead_runs,
    report_forgotten_runs,
)

# A tick that failed earlier has been alerted already, or its sensor was removed or switched off.
HOUR = 3_600.0


@dg.sensor(
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Marks runs as failed whose process or daemon was killed, so that they are retried.",
)
def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Mark runs whose process was killed. No run is requested."""
    reports = (report_dead_runs, report_dead_launches, report_forgotten_runs)
    failed = [run for report in reports for run in report(context.instance)]
    return dg.SkipReason(f"Marked as failed: {', '.join(failed)}" if failed else "No run was killed.")


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Raises alerts while the last tick of a sensor or schedule is a failure.",
)
def red_ticks(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.SkipReason:
    """Send an alert for every sensor and schedule whose last tick failed; log each failure once."""
    failed = find_failed_ticks(context.instance)
    alerts = {name: Alert(name="TickFailed", summary=why, labels={"sensor": name}) for name, why in failed.items()}
    before = set(json.loads(context.cursor or "[]"))
    write_log([alert for name, alert in alerts.items() if name not in before])
    send(list(alerts.values()), platform.open().settings.alertmanager)
    context.update_cursor(json.dumps(sorted(failed)))
    return dg.SkipReason("; ".join(f"{name}: {why}" for name, why in failed.items()) or "No last tick failed.")


def find_failed_ticks(instance: dg.DagsterInstance) -> dict[str, str]:
    """Return the sensors and schedules whose last tick of the past hour failed, with the reason."""
    from ml_platform.orchestration.dagster_internals import TickStatus

    done = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]
    failed, since = {}, time.time() - HOUR
    for state in instance.all_instigator_state():
        ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, after=since, limit=1, statuses=done)
        if ticks and ticks[0].status is TickStatus.FAILURE:
            failed[state.name] = metadata.root_cause(ticks[0].error)[1]
    return failed


@dg.run_failure_sensor(
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Raises an alert when a run failed: a failed gate, a killed process, a server that does not answer.",
)
def failed_runs(context: dg.RunFailureSensorContext, platform: PlatformResource) -> None:
    """Send an alert for a run that failed."""
    run = context.dagster_run
    steps = [event.step_failure_data.error for event in context.get_step_failure_events()]
    reason = exit_reason(context.instance, run.run_id) or context.failure_event.message or "no reason"
    summary = "; ".join(metadata.root_cause(error)[1] for error in steps) or reason
    alert = Alert(name="RunFailed", summary=summary, labels={"job": run.job_name, "run": run.run_id})
    write_log([alert])
    # A retry that fails too raises the alert.
    if run.tags.get("dagster/will_retry") != "true":
        send([alert], platform.open().settings.alertmanager)
