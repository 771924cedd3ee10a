"""What belongs to no model: clean-up after processes that died."""

import dagster as dg

from ml_platform.liveness import report_dead_launches, report_dead_runs


@dg.sensor(
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Marks runs as failed whose process was killed, so that they are retried and hold nobody up.",
)
def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Look after runs whose process is gone; no run is requested here."""
    found = [*report_dead_runs(context.instance), *report_dead_launches(context.instance)]
    return dg.SkipReason(f"Marked as failed: {', '.join(found)}" if found else "No run has died.")
