"""What starts runs by itself: files, rows, the clock, the registry, traffic and the prediction log."""

import json
import time
from collections.abc import Sequence
from typing import Any

import dagster as dg

from ml_platform import views, workflows
from ml_platform.liveness import is_running
from ml_platform.model_spec import ModelSpec
from ml_platform.records import Slot, slot_name
from ml_platform.resources import MODEL_TAG, REASON_TAG, SLOT_TAG, PlatformResource, arrivals_partition
from ml_platform.stages.arrivals import EXAMPLES, SUFFIXES, Look
from ml_platform.stages.registry import briefly

# How often a dataset version is trained on by itself when runs die between the candidate and its promotion.
TRIES = 3
# How often the registry's sensor downloads the champion, in seconds; what MLflow's tables say it reads at every tick.
READ_BYTES_EVERY = 600.0
# How often a step of a rollout whose run failed is tried again, in seconds.
RETRY_STEP_EVERY = 60.0


def arrival_requests(instance: dg.DagsterInstance, model: str, keys: Sequence[str]) -> list[tuple[str, str]]:
    """Return ranges, as first and last key, that cover the arrivals with these keys and no other.

    A range follows the order in which partitions were added. Keys that Dagster does not know yet will be added at
    the end, in the order given.
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
    """Return the tags that make one run of a range of arrivals."""
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def arrival_sensor(spec: ModelSpec, job: Any) -> dg.SensorDefinition:
    """Publish or quarantine complete files that have no outcome."""

    @dg.sensor(
        name=f"{spec.name}_arrivals",
        job=job,
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Complete files in the landing zone without an outcome and without a run are published.",
    )
    def arrivals(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.SensorResult | dg.SkipReason:
        """Request runs over the files that are complete; nothing is changed but the cursor."""
        if is_running(context.instance, job.name):
            return dg.SkipReason("The files of the last tick are being published.")
        # The cursor is what this look saw and the next one compares with: nothing is lost where it is lost.
        look = workflows.look_for_arrivals(platform.open(), spec.name, seen=(context.cursor or "").split())
        context.update_cursor(" ".join(look.held))
        if look.stuck:
            context.log.warning(_nothing_complete(look))
        keys = [arrival.key for arrival in look.complete]
        if not keys:
            return dg.SkipReason(_nothing_complete(look))
        runs = [
            dg.RunRequest(tags={**range_tags(*ends), MODEL_TAG: spec.name})
            for ends in arrival_requests(context.instance, spec.name, keys)
        ]
        return dg.SensorResult(
            run_requests=runs,
            dynamic_partitions_requests=[arrivals_partition(spec.name).build_add_request(keys)],
        )

    return arrivals


def _nothing_complete(look: Look) -> str:
    said = f"{look.incomplete:,} files are not complete yet. {'; '.join(look.examples)}." if look.incomplete else ""
    if look.ignored:
        names = ", ".join(map(repr, look.ignored[:EXAMPLES]))
        said += f" Ignored, for want of a safe name that ends in {', '.join(SUFFIXES)}: {names}"
        said += f" and {len(look.ignored) - EXAMPLES:,} more." if len(look.ignored) > EXAMPLES else "."
    return said.strip() or "No new files."


def retraining_sensor(spec: ModelSpec, job: Any) -> dg.SensorDefinition:
    """Retrain when enough rows were published."""

    @dg.sensor(
        name=f"{spec.name}_retraining",
        job=job,
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Retrains when enough rows were published since the newest candidate's dataset version.",
    )
    def retraining(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.RunRequest | dg.SkipReason:
        """Request one run a dataset version, and again if it died."""
        opened = platform.open()
        rows = opened.new_rows(spec.name)
        if rows < spec.min_new_rows:
            return dg.SkipReason(f"{rows} new rows; retraining waits for {spec.min_new_rows}.")
        if is_running(context.instance, job.name) or is_running(context.instance, f"{spec.name}_ingest"):
            return dg.SkipReason("A run of this model is under way.")
        moving = workflows.unfinished_rollout(opened, spec.name)
        if moving is not None and workflows.is_carried_out(opened, moving):
            return dg.SkipReason(f"What is trained now could not be promoted: {workflows.described(moving)}.")
        newest = opened.database.newest_publication(spec.name) or 0
        tried = opened.database.candidates_of(spec.name, newest)
        if tried >= TRIES:
            return dg.SkipReason(f"{tried} candidates of dataset version {newest} came to nothing: look at their runs.")
        # The key: a dataset version on which nothing can be trained is not tried for ever either.
        key = f"{spec.name}-arrival-{newest}-{tried}"
        # The slot: Dagster looks a key up and holds no lock meanwhile, so that two daemons may both ask.
        slot = f"version-{newest}-try-{tried + 1}"
        return dg.RunRequest(run_key=key, tags={REASON_TAG: "arrival", MODEL_TAG: spec.name, SLOT_TAG: slot})

    return retraining


def registry_sensor(spec: ModelSpec) -> dg.SensorDefinition:
    """Hold MLflow against the ledger."""

    @dg.sensor(
        name=f"{spec.name}_registry",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Holds MLflow against the ledger: an alias moved by hand is granted or put back, what was deleted "
        "is restored.",
    )
    def registry(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.SensorResult:
        """Mend what differs between MLflow and the ledger, and tell people what they should know."""
        opened, seen = platform.open(), json.loads(context.cursor or "{}")
        read_bytes_at, now = seen.get("read_bytes_at", 0.0), time.time()
        due = not 0 <= now - read_bytes_at < READ_BYTES_EVERY  # a clock that was put back counts as due
        with briefly():
            findings = workflows.reconcile(opened, spec, actor=f"sensor {spec.name}_registry", read_bytes=due)
        told = workflows.alert(opened, findings, seen.get("told", []))
        return dg.SensorResult(
            skip_reason=" ".join(finding.summary for finding in findings) or "MLflow shows what the ledger says.",
            asset_events=views.unshown_decisions(opened, context.instance, spec.name),
            cursor=json.dumps({"told": told, "read_bytes_at": now if due else read_bytes_at}),
        )

    return registry


def traffic_sensor(spec: ModelSpec, job: Any) -> dg.SensorDefinition:
    """Let a rollout take its steps."""

    @dg.sensor(
        name=f"{spec.name}_traffic",
        job=job,
        minimum_interval_seconds=5,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks for a step of the champion's rollout where one is due: on, or back.",
    )
    def traffic(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.RunRequest | dg.SkipReason:
        """Request one run a step, and again a minute later if it came to nothing; nothing is changed."""
        found = workflows.traffic_of(platform.open(), spec.name)
        if not found.due or found.plan is None:
            return dg.SkipReason(f"{found.why}.")
        if is_running(context.instance, job.name):
            return dg.SkipReason("A step is under way.")
        key = f"{spec.name}-plan-{found.plan.sequence}-{found.step}-{int(time.time() // RETRY_STEP_EVERY)}"
        return dg.RunRequest(run_key=key, tags={MODEL_TAG: spec.name})

    return traffic


def prediction_sensor(spec: ModelSpec, job: Any) -> dg.SensorDefinition:
    """Take the prediction log into its table."""

    @dg.sensor(
        name=f"{spec.name}_predictions",
        job=job,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Files of the prediction log that their servers have closed are taken into its table.",
    )
    def predictions(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.RunRequest | dg.SkipReason:
        """Request a run while files wait; nothing is changed here."""
        waiting = workflows.waiting_predictions(platform.open(), spec.name)
        if not waiting:
            return dg.SkipReason("No server has closed a file of its log.")
        if is_running(context.instance, job.name):
            return dg.SkipReason("The files of the last tick are being taken.")
        return dg.RunRequest(tags={MODEL_TAG: spec.name})

    return predictions


def weekly_schedule(spec: ModelSpec, job: Any) -> dg.ScheduleDefinition:
    """Retrain by the clock, whether or not data came."""

    @dg.schedule(
        name=f"{spec.name}_weekly",
        job=job,
        cron_schedule=spec.schedule,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Retrains whether or not data came, once a slot, whoever's clock asks first.",
    )
    def weekly(context: dg.ScheduleEvaluationContext, platform: PlatformResource) -> dg.RunRequest | dg.SkipReason:
        """Request the run of this tick's slot, unless GitHub's clock was first."""
        slot = Slot(model=spec.name, reason="schedule", slot=slot_name(context.scheduled_execution_time))
        holder = platform.open().database.slot_holder(slot)
        if holder is not None:
            return dg.SkipReason(f"Run {holder} has the slot {slot.slot}.")
        return dg.RunRequest(
            run_key=slot.slot, tags={REASON_TAG: slot.reason, MODEL_TAG: spec.name, SLOT_TAG: slot.slot}
        )

    return weekly
