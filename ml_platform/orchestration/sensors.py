"""Sensors and the schedule of a model: files, rows, the clock, the registry, traffic and the prediction log."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg

from ml_platform.data.arrivals import EXAMPLES, SUFFIXES, LandingZoneScan
from ml_platform.data.landing import scan_landing_zone
from ml_platform.model_spec import ModelSpec
from ml_platform.monitoring.prediction_log.collect import waiting_predictions
from ml_platform.orchestration import metadata
from ml_platform.orchestration.resources import MODEL_TAG, REASON_TAG, SLOT_TAG, PlatformResource, arrivals_partition
from ml_platform.orchestration.run_monitoring import is_running
from ml_platform.records.retraining import Slot, slot_name
from ml_platform.release.reconcile import alert, reconcile
from ml_platform.release.rollout.steps import describe_plan, read_traffic
from ml_platform.release.rollout.traffic import is_carried_out, unfinished_rollout
from ml_platform.storage.mlflow_registry import short_mlflow_timeouts

# Trainings of a dataset version if runs fail between the candidate and its promotion.
TRIES = 3
# Seconds between the registry sensor's downloads of the champion; it reads MLflow's tables at every tick.
READ_BYTES_EVERY = 600.0
# Seconds until a step of a rollout whose run failed is tried again.
RETRY_STEP_EVERY = 60.0


def _sensor(name: str, seconds: int, description: str, job: Any = None) -> Callable[[Any], dg.SensorDefinition]:
    """Return the decorator of a sensor that runs by default, every `seconds`."""
    return dg.sensor(
        name=name,
        job=job,
        minimum_interval_seconds=seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=description,
    )


def arrival_requests(instance: dg.DagsterInstance, model: str, keys: Sequence[str]) -> list[tuple[str, str]]:
    """Return ranges, as first and last key, that cover the arrivals with these keys and no other.

    A range follows the order in which partitions were added. Keys that are new to Dagster will be added at the end,
    in the order given.
    """
    existing = list(instance.get_dynamic_partitions(arrivals_partition(model).name or ""))
    order = existing + [key for key in keys if key not in set(existing)]
    wanted, ranges, previous = set(keys), list[tuple[str, str]](), False
    for key in order:
        if key in wanted:
            ranges = [*ranges[:-1], (ranges[-1][0], key)] if previous else [*ranges, (key, key)]
        previous = key in wanted
    return ranges


def range_tags(first: str, last: str) -> dict[str, str]:
    """Return the tags with which one run covers a range of arrivals."""
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def arrival_sensor(spec: ModelSpec, job: Any) -> dg.SensorDefinition:
    """Return the sensor that publishes or quarantines complete files without an outcome."""

    @_sensor(
        f"{spec.name}_arrivals",
        15,
        "Publishes complete files in the landing zone that have no outcome and no run.",
        job,
    )
    def arrivals(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.SensorResult | dg.SkipReason:
        """Request runs over complete files. Only the cursor is changed."""
        if is_running(context.instance, job.name):
            return dg.SkipReason("The files of the last tick are being published.")
        # The next scan compares files with the cursor; a lost cursor only costs a tick.
        scan = scan_landing_zone(platform.open(), spec.name, seen=(context.cursor or "").split())
        context.update_cursor(" ".join(scan.held))
        if scan.stuck:
            context.log.warning(_describe_waiting_files(scan))
        keys = [arrival.key for arrival in scan.complete]
        if not keys:
            return dg.SkipReason(_describe_waiting_files(scan))
        runs = [
            dg.RunRequest(tags={**range_tags(*ends), MODEL_TAG: spec.name})
            for ends in arrival_requests(context.instance, spec.name, keys)
        ]
        return dg.SensorResult(
            run_requests=runs,
            dynamic_partitions_requests=[arrivals_partition(spec.name).build_add_request(keys)],
        )

    return arrivals


def _describe_waiting_files(scan: LandingZoneScan) -> str:
    text = f"{scan.incomplete:,} files are not complete yet. {'; '.join(scan.examples)}." if scan.incomplete else ""
    if scan.ignored:
        names = ", ".join(map(repr, scan.ignored[:EXAMPLES]))
        text += f" Ignored files, whose names are not safe or do not end in {', '.join(SUFFIXES)}: {names}"
        text += f" and {len(scan.ignored) - EXAMPLES:,} more." if len(scan.ignored) > EXAMPLES else "."
    return text.strip() or "No new files."


def retraining_sensor(spec: ModelSpec, job: Any) -> dg.SensorDefinition:
    """Return the sensor that retrains when enough rows were published."""

    @_sensor(f"{spec.name}_retraining", 15, "Retrains when enough rows were published since the newest candidate.", job)
    def retraining(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.RunRequest | dg.SkipReason:
        """Request one run for a dataset version, and another one if it fails before a promotion."""
        opened = platform.open()
        rows = opened.new_rows(spec.name)
        if rows < spec.retraining.min_new_rows:
            return dg.SkipReason(f"{rows} new rows; retraining waits for {spec.retraining.min_new_rows}.")
        if is_running(context.instance, job.name) or is_running(context.instance, f"{spec.name}_ingest"):
            return dg.SkipReason("A run of this model is in progress.")
        plan = unfinished_rollout(opened, spec.name)
        if plan is not None and is_carried_out(opened, plan):
            return dg.SkipReason(f"A new candidate could not be promoted during a rollout: {describe_plan(plan)}.")
        newest = opened.database.newest_publication(spec.name) or 0
        tries = opened.database.count_candidates(spec.name, newest)
        if tries >= TRIES:
            return dg.SkipReason(
                f"{tries} candidates of dataset version {newest} were not promoted, which is the limit. See their runs."
            )
        # With the key, a dataset version on which no training succeeds is not tried forever.
        key = f"{spec.name}-arrival-{newest}-{tries}"
        # With the slot, two daemons train once: Dagster looks keys up without a lock.
        slot = f"version-{newest}-try-{tries + 1}"
        return dg.RunRequest(run_key=key, tags={REASON_TAG: "arrival", MODEL_TAG: spec.name, SLOT_TAG: slot})

    return retraining


def registry_sensor(spec: ModelSpec) -> dg.SensorDefinition:
    """Return the sensor that compares MLflow with the ledger."""

    @_sensor(
        f"{spec.name}_registry",
        30,
        "Compares MLflow with the ledger: approves or restores aliases that were moved by hand, restores deletions.",
    )
    def registry(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.SensorResult:
        """Repair the differences between MLflow and the ledger, and send alerts about them."""
        opened, seen = platform.open(), json.loads(context.cursor or "{}")
        read_bytes_at, now = seen.get("read_bytes_at", 0.0), time.time()
        due = not 0 <= now - read_bytes_at < READ_BYTES_EVERY  # also after the clock was set back
        with short_mlflow_timeouts():
            differences = reconcile(opened, spec, actor=f"sensor {spec.name}_registry", read_bytes=due)
        alerted = alert(opened, differences, seen.get("told", []))
        return dg.SensorResult(
            skip_reason=" ".join(difference.summary for difference in differences) or "MLflow agrees with the ledger.",
            asset_events=metadata.unshown_decisions(opened, context.instance, spec.name),
            cursor=json.dumps({"told": alerted, "read_bytes_at": now if due else read_bytes_at}),
        )

    return registry


def traffic_sensor(spec: ModelSpec, job: Any) -> dg.SensorDefinition:
    """Return the sensor that requests a rollout's steps."""

    @_sensor(
        f"{spec.name}_traffic",
        5,
        "Requests the next step of the champion's rollout when it is due: forward or back.",
        job,
    )
    def traffic(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.RunRequest | dg.SkipReason:
        """Request one run for a step, and another one a minute later if it failed. Nothing is changed."""
        state = read_traffic(platform.open(), spec.name)
        if not state.due or state.plan is None:
            return dg.SkipReason(f"{state.why}.")
        if is_running(context.instance, job.name):
            return dg.SkipReason("A step is in progress.")
        key = f"{spec.name}-plan-{state.plan.sequence}-{state.step}-{int(time.time() // RETRY_STEP_EVERY)}"
        return dg.RunRequest(run_key=key, tags={MODEL_TAG: spec.name})

    return traffic


def prediction_sensor(spec: ModelSpec, job: Any) -> dg.SensorDefinition:
    """Return the sensor that collects the prediction log into its table."""

    @_sensor(f"{spec.name}_predictions", 60, "Collects closed files of the prediction log into its table.", job)
    def predictions(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.RunRequest | dg.SkipReason:
        """Request a run if files wait. Nothing is changed."""
        waiting = waiting_predictions(platform.open(), spec.name)
        if not waiting:
            return dg.SkipReason("No closed files of the prediction log.")
        if is_running(context.instance, job.name):
            return dg.SkipReason("The files of the last tick are being collected.")
        return dg.RunRequest(tags={MODEL_TAG: spec.name})

    return predictions


def weekly_schedule(spec: ModelSpec, job: Any) -> dg.ScheduleDefinition:
    """Return the schedule that retrains with or without new data."""

    @dg.schedule(
        name=f"{spec.name}_weekly",
        job=job,
        cron_schedule=spec.retraining.schedule,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Retrains with or without new data, once for each slot, even if GitHub triggers it too.",
    )
    def weekly(context: dg.ScheduleEvaluationContext, platform: PlatformResource) -> dg.RunRequest | dg.SkipReason:
        """Request the run of this tick's slot, unless GitHub's trigger was first."""
        slot = Slot(model=spec.name, reason="schedule", slot=slot_name(context.scheduled_execution_time))
        holder = platform.open().database.slot_holder(slot)
        if holder is not None:
            return dg.SkipReason(f"Run {holder} has the slot {slot.slot}.")
        return dg.RunRequest(
            run_key=slot.slot, tags={REASON_TAG: slot.reason, MODEL_TAG: spec.name, SLOT_TAG: slot.slot}
        )

    return weekly
