"""Launch Dagster runs in this process: what `ml-platform ingest`, `retrain` and `demo` need Dagster for."""

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

from ml_platform import views, workflows
from ml_platform.errors import ConfigurationError, PlatformError
from ml_platform.liveness import PROCESS_TAG, opened_instance, process_tag
from ml_platform.records import LedgerEntry, Slot, slot_name
from ml_platform.resources import ACTOR_TAG, MODEL_TAG, REASON_TAG, SLOT_TAG, arrivals_partition
from ml_platform.stages.arrivals import ARRIVALS_A_RUN, Look
from ml_platform.triggers import arrival_requests, range_tags
from ml_platform.workflows import Platform

log = logging.getLogger("ml_platform")

# Dagster's own log would bury what a person at a terminal wants to read; it stands in the UI.
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class RunFailedError(PlatformError):
    """A run failed for another reason than a failed check."""


def ingest(platform: Platform, model: str) -> list[str]:
    """Publish the complete files that wait in the landing zone; return the keys of their arrivals.

    One run takes `ARRIVALS_A_RUN` of them. Files without a manifest that were written just now are looked at twice.

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
    keys = [arrival.key for arrival in _look_twice(platform, model).complete]
    if not keys:
        return []
    with opened_instance() as instance:
        for start in range(0, len(keys), ARRIVALS_A_RUN):
            some = keys[start : start + ARRIVALS_A_RUN]
            ranges = arrival_requests(instance, model, some)
            _add_partitions(instance, arrivals_partition(model).name or "", some)
            for ends in ranges:
                _execute(job, instance, {**range_tags(*ends), MODEL_TAG: model})
    return keys


def _look_twice(platform: Platform, model: str) -> Look:
    look = partial(workflows.look_for_arrivals, platform, model, at_rest=True, limit=sys.maxsize)
    found = look()
    if found.held:
        time.sleep(platform.settings.settle_seconds)
        found = look(seen=found.held)
    for example in found.examples:
        log.info("not complete yet: %s", example)
    return found


def retrain(model: str, reason: str, actor: str) -> list[str]:
    """Take a model from its newest rows to the champion, because somebody asked for it.

    Returns
    -------
    list of str
        The blocking checks that failed, each with what it said; empty if the model was promoted.

    Raises
    ------
    ConfigurationError
        There is no such model, or ``DAGSTER_HOME`` cannot be used.
    RunFailedError
        The run failed for another reason than a failed check.
    """
    job = _job(f"{model}_retrain", model)
    with opened_instance() as instance:
        return _execute(job, instance, {REASON_TAG: reason, ACTOR_TAG: actor, MODEL_TAG: model})


def retrain_once(platform: Platform, slot: Slot, actor: str) -> list[str]:
    """Retrain for a slot, unless another run has it; the slot is given back if the run broke or was interrupted.

    Parameters
    ----------
    platform : Platform
    slot : Slot
        Its reason is recorded as the retraining's.
    actor : str
        Who asks.

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
    with opened_instance() as instance:
        workflows.claim_slot(platform, slot, run_id)
        tags = {REASON_TAG: slot.reason, ACTOR_TAG: actor, MODEL_TAG: slot.model, SLOT_TAG: slot.slot}
        with contextlib.ExitStack() as unfinished:
            unfinished.callback(platform.database.release_slot, slot, run_id)
            failed = _execute(job, instance, tags, run_id)
            unfinished.pop_all()
        return failed


def due_slot(model: str, at: datetime) -> str:
    """Return the slot of a model's schedule that is due: its newest tick at or before a time.

    Parameters
    ----------
    model : str
    at : datetime
        Aware, in any zone.

    Raises
    ------
    ConfigurationError
        There is no such model.
    """
    from dagster._utils.schedules import reverse_cron_string_iterator

    _job(f"{model}_retrain", model)
    cron = _repository().get_schedule_def(f"{model}_weekly").cron_schedule
    ticks = reverse_cron_string_iterator(at.timestamp(), str(cron), "UTC")
    return slot_name(next(ticks))


def report_champion(platform: Platform, entry: LedgerEntry) -> None:
    """Let Dagster show a promotion that no run of its own made, so that champion_version is not red for ever.

    Raises
    ------
    ConfigurationError
        ``DAGSTER_HOME`` cannot be used.
    """
    with opened_instance() as instance:
        instance.report_runless_asset_event(views.champion_event(platform, entry))


def _job(name: str, model: str) -> dg.JobDefinition:
    repository = _repository()
    if not repository.has_job(name):
        models = sorted(job.removesuffix("_retrain") for job in repository.job_names if job.endswith("_retrain"))
        raise ConfigurationError(f"There is no model {model!r}. There is: {', '.join(models) or 'none'}.")
    return repository.get_job(name)


def _repository() -> dg.RepositoryDefinition:
    from ml_platform.definitions import defs

    try:
        return defs().get_repository_def()
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        where = str(error).splitlines()[0].rstrip(":")
        raise ConfigurationError(
            f"{where}. {type(cause).__name__}: {cause}. Mend the file; no run was started."
        ) from error


def _add_partitions(instance: dg.DagsterInstance, name: str, keys: Sequence[str]) -> None:
    for attempt in range(3):
        missing = [key for key in keys if not instance.has_dynamic_partition(name, key)]
        try:
            instance.add_dynamic_partitions(name, missing)
        except sa.exc.IntegrityError:
            # The daemon or another command added one of them between our look and our write.
            if attempt == 2:
                raise
        else:
            return


def _execute(
    job: dg.JobDefinition, instance: dg.DagsterInstance, tags: dict[str, str], run_id: str | None = None
) -> list[str]:
    run_id = run_id or str(uuid.uuid4())
    tags = {**tags, PROCESS_TAG: process_tag(run_id)}
    execute = partial(job.execute_in_process, run_config=QUIET, instance=instance, raise_on_error=False)
    result = execute(tags=tags, run_id=run_id)
    if result.success:
        return []
    failed = [check for check in result.get_asset_check_evaluations() if check.blocking and not check.passed]
    if failed:
        return [_said(check) for check in failed]
    errors = [root_cause(event) for event in result.get_step_failure_events()]
    raise RunFailedError("; ".join(errors) or f"Run {result.run_id} failed. Look at it in Dagster's UI.")


def _said(check: dg.AssetCheckEvaluation) -> str:
    asset = check.asset_key.path[-1]
    return f"{check.check_name} of {asset}: {check.description or 'failed'}"


def root_cause(event: dg.DagsterEvent) -> str:
    """Return the platform's own error where there is one in the chain, else the step and its innermost error."""
    ours, text = views.innermost(event.step_failure_data.error)
    return text if ours else f"{event.step_key}: {text}"
