"""Launch Dagster runs in this process, for `ml-platform ingest`, `retrain` and `demo`."""

import contextlib
import logging
import sys
import time
import uuid
from collections.abc import Sequence
from datetime import datetime
from functools import partial

import dagster as dg
import sqlalchemy as sa

from ml_platform.data import reading
from ml_platform.data.arrivals import ARRIVALS_A_RUN, LandingZoneScan
from ml_platform.data.landing import scan_landing_zone
from ml_platform.errors import ConfigurationError, PlatformError
from ml_platform.models import discovery
from ml_platform.orchestration import metadata
from ml_platform.orchestration.resources import ACTOR_TAG, MODEL_TAG, REASON_TAG, SLOT_TAG, arrivals_partition
from ml_platform.orchestration.run_monitoring import PROCESS_TAG, open_instance, process_tag
from ml_platform.orchestration.sensors import arrival_requests, range_tags
from ml_platform.platform import Platform
from ml_platform.records.ledger import LedgerEntry
from ml_platform.records.retraining import Slot, slot_name
from ml_platform.training.retraining import claim_slot

log = logging.getLogger("ml_platform")

# Dagster's own log would hide the command's output; the UI shows it.
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class RunFailedError(PlatformError):
    """A run failed for another reason than a failed check."""


def ingest(platform: Platform, model: str) -> list[str]:
    """Publish the complete files in the landing zone; return the keys of their arrivals.

    A run takes at most `ARRIVALS_A_RUN` files. Files without a manifest that were written just now are scanned twice.

    Raises
    ------
    ConfigurationError
        There is no such model, or ``DAGSTER_HOME`` cannot be used.
    LandingZoneError
        The landing zone cannot be listed.
    RunFailedError
        The run failed.
    """
    job = _job(f"{model}_ingest", model)
    keys = [arrival.key for arrival in _scan_twice(platform, model).complete]
    if not keys:
        return []
    reading.start_early()  # it imports its modules while Dagster prepares the run
    with open_instance() as instance:
        for start in range(0, len(keys), ARRIVALS_A_RUN):
            batch = keys[start : start + ARRIVALS_A_RUN]
            ranges = arrival_requests(instance, model, batch)
            _add_partitions(instance, arrivals_partition(model).name or "", batch)
            for ends in ranges:
                _execute(job, instance, {**range_tags(*ends), MODEL_TAG: model})
    return keys


def _scan_twice(platform: Platform, model: str) -> LandingZoneScan:
    """Scan the landing zone, a second time if files may still be growing."""
    scan_now = partial(scan_landing_zone, platform, model, at_rest=True, limit=sys.maxsize)
    scan = scan_now()
    if scan.held:
        time.sleep(platform.settings.settle_seconds)
        scan = scan_now(seen=scan.held)
    for example in scan.examples:
        log.info("not complete yet: %s", example)
    return scan


def retrain(model: str, reason: str, actor: str) -> list[str]:
    """Train a model on its newest rows and promote it if its gates pass.

    Returns
    -------
    list of str
        Failed blocking checks with their messages; empty if the model was promoted.

    Raises
    ------
    ConfigurationError
        There is no such model, or ``DAGSTER_HOME`` cannot be used.
    RunFailedError
        The run failed for another reason than a failed check.
    """
    job = _job(f"{model}_retrain", model)
    with open_instance() as instance:
        return _execute(job, instance, {REASON_TAG: reason, ACTOR_TAG: actor, MODEL_TAG: model})


def resume(model: str, actor: str) -> list[str]:
    """Register, test and promote the newest candidate, whose gates must have passed.

    Returns
    -------
    list of str
        As `retrain`.

    Raises
    ------
    ConfigurationError, RunFailedError
        As `retrain`; also a candidate whose gates did not pass.
    """
    job = _job(f"{model}_retrain", model)
    steps = [dg.AssetKey([model, name]) for name in ("registered_version", "staging_version", "champion_version")]
    with open_instance() as instance:
        return _execute(job, instance, {REASON_TAG: "manual: resume", ACTOR_TAG: actor, MODEL_TAG: model}, steps=steps)


def retrain_once(platform: Platform, slot: Slot, actor: str) -> list[str]:
    """Retrain for a slot, unless another run has it; release the slot if the run fails or is interrupted.

    Parameters
    ----------
    platform : Platform
    slot : Slot
        Its reason becomes the retraining's.
    actor : str
        User or job that started the retraining.

    Returns
    -------
    list of str
        As `retrain`.

    Raises
    ------
    ConflictError
        Another run has the slot.
    ConfigurationError, RunFailedError
        As `retrain`.
    """
    job, run_id = _job(f"{slot.model}_retrain", slot.model), str(uuid.uuid4())
    with open_instance() as instance:
        claim_slot(platform, slot, run_id)
        tags = {REASON_TAG: slot.reason, ACTOR_TAG: actor, MODEL_TAG: slot.model, SLOT_TAG: slot.slot}
        with contextlib.ExitStack() as unfinished:
            unfinished.callback(platform.database.release_slot, slot, run_id)
            failed = _execute(job, instance, tags, run_id)
            unfinished.pop_all()
        return failed


def due_slot(model: str, at: datetime) -> str:
    """Return a schedule's due slot: its newest tick at or before a time.

    Parameters
    ----------
    model : str
    at : datetime
        With a time zone.

    Raises
    ------
    ConfigurationError
        There is no such model.
    """
    from ml_platform.orchestration.dagster_internals import reverse_cron_string_iterator

    cron = discovery.load(model).retraining.schedule
    ticks = reverse_cron_string_iterator(at.timestamp(), cron, "UTC")
    return slot_name(next(ticks))


def report_champion(platform: Platform, entry: LedgerEntry) -> None:
    """Report a promotion outside Dagster to Dagster, so that champion_version does not stay failed there.

    Raises
    ------
    ConfigurationError
        ``DAGSTER_HOME`` cannot be used.
    """
    with open_instance() as instance:
        instance.report_runless_asset_event(metadata.champion_event(platform, entry))


def _job(name: str, model: str) -> dg.JobDefinition:
    from ml_platform.definitions import load_location

    location, broken = load_location()
    repository = location.get_repository_def()
    if model in broken:
        raise ConfigurationError(f"The model {model!r} cannot be loaded, no run was started. {broken[model]}")
    if not repository.has_job(name):
        models = ", ".join(discovery.names()) or "none"
        raise ConfigurationError(f"There is no model {model!r}. Declared models: {models}.")
    return repository.get_job(name)


def _add_partitions(instance: dg.DagsterInstance, name: str, keys: Sequence[str]) -> None:
    for attempt in range(3):
        missing = [key for key in keys if not instance.has_dynamic_partition(name, key)]
        try:
            instance.add_dynamic_partitions(name, missing)
        except sa.exc.IntegrityError:
            # The daemon or another command added one of them between the check and the write.
            if attempt == 2:
                raise
        else:
            return


def _execute(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    tags: dict[str, str],
    run_id: str | None = None,
    steps: Sequence[dg.AssetKey] | None = None,
) -> list[str]:
    run_id = run_id or str(uuid.uuid4())
    tags = {**tags, PROCESS_TAG: process_tag(run_id)}
    execute = partial(job.execute_in_process, run_config=QUIET, instance=instance, raise_on_error=False)
    result = execute(tags=tags, run_id=run_id, asset_selection=steps)
    if result.success:
        return []
    failed = [check for check in result.get_asset_check_evaluations() if check.blocking and not check.passed]
    if failed:
        return [f"{c.check_name} of {c.asset_key.path[-1]}: {c.description or 'failed'}" for c in failed]
    errors = [describe_failure(event) for event in result.get_step_failure_events()]
    raise RunFailedError("; ".join(errors) or f"Run {result.run_id} failed. Open it in Dagster's UI.")


def describe_failure(event: dg.DagsterEvent) -> str:
    """Return the platform's own error if the chain of causes has one, else the step and its root cause."""
    is_platform_error, text = metadata.root_cause(event.step_failure_data.error)
    return text if is_platform_error else f"{event.step_key}: {text}"
