"""What belongs to no model: clean-up after processes that died, and alerts."""

import json
import time

import dagster as dg

from ml_platform import views
from ml_platform.liveness import last_words, report_dead_launches, report_dead_runs, report_forgotten_runs
from ml_platform.monitoring.alerts import Alert, send, write_log
from ml_platform.resources import PlatformResource

# What failed before that has been removed or switched off since, or somebody has been told.
HOUR = 3_600.0


@dg.sensor(
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Marks runs as failed whose process or daemon was killed, so that they are retried and hold nobody up.",
)
def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Look after runs whose process is gone; no run is requested here."""
    looks = (report_dead_runs, report_dead_launches, report_forgotten_runs)
    found = [run for look in looks for run in look(context.instance)]
    return dg.SkipReason(f"Marked as failed: {', '.join(found)}" if found else "No run has died.")


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Alerts while the last tick of a sensor or schedule is red: a landing zone that refuses, for instance.",
)
def red_ticks(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.SkipReason:
    """Send an alert for every sensor and schedule whose last tick failed; the log has each once."""
    red = last_ticks_that_failed(context.instance)
    alerts = {name: Alert(name="TickFailed", summary=why, labels={"sensor": name}) for name, why in red.items()}
    before = set(json.loads(context.cursor or "[]"))
    write_log([alert for name, alert in alerts.items() if name not in before])
    send(list(alerts.values()), platform.open().settings.alertmanager)
    context.update_cursor(json.dumps(sorted(red)))
    return dg.SkipReason("; ".join(f"{name}: {why}" for name, why in red.items()) or "No last tick is red.")


def last_ticks_that_failed(instance: dg.DagsterInstance) -> dict[str, str]:
    """Return the sensors and schedules whose last tick of the past hour failed, with the reason."""
    from dagster._core.scheduler.instigation import TickStatus

    done = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]
    found, since = {}, time.time() - HOUR
    for state in instance.all_instigator_state():
        ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, after=since, limit=1, statuses=done)
        if ticks and ticks[0].status is TickStatus.FAILURE:
            found[state.name] = views.innermost(ticks[0].error)[1]
    return found


@dg.run_failure_sensor(
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Alerts when a run failed: a closed gate, a dead process, a server that does not answer.",
)
def failed_runs(context: dg.RunFailureSensorContext, platform: PlatformResource) -> None:
    """Send an alert for a run that failed."""
    run = context.dagster_run
    steps = [event.step_failure_data.error for event in context.get_step_failure_events()]
    died = last_words(context.instance, run.run_id) or context.failure_event.message or "no reason"
    summary = "; ".join(views.innermost(error)[1] for error in steps) or died
    alert = Alert(name="RunFailed", summary=summary, labels={"job": run.job_name, "run": run.run_id})
    write_log([alert])
    # A run whose machine died is tried again, and is an alert when that comes to nothing too.
    if run.tags.get("dagster/will_retry") != "true":
        send([alert], platform.open().settings.alertmanager)
