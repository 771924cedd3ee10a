"""Proof that a sensor or schedule, and not a person, started a run: the daemon's record of its own ticks.

Tags prove nothing, because any command and Dagster's UI can set them.
"""

from datetime import datetime

import dagster as dg

# The ticks of two days; Dagster queues no run longer.
SECONDS_TO_START = 172_800.0


def was_triggered(instance: dg.DagsterInstance, run: dg.DagsterRun, model: str) -> bool:
    """Return True if a trigger of a model's retraining started a run or, as an automatic retry, its first run.

    Parameters
    ----------
    instance : DagsterInstance
    run : DagsterRun
    model : str
        The model whose retraining sensor and weekly schedule count.
    """
    from ml_platform.orchestration.dagster_internals import AUTO_RETRY_RUN_ID_TAG

    while run.parent_run_id is not None:
        parent = instance.get_run_by_id(run.parent_run_id)
        # The daemon records its retry in the failed run. A person who runs it again is not recorded there.
        if parent is None or parent.tags.get(AUTO_RETRY_RUN_ID_TAG) != run.run_id:
            return False
        run = parent
    return _is_in_tick(instance, run, {f"{model}_retraining", f"{model}_weekly"})


def _is_in_tick(instance: dg.DagsterInstance, run: dg.DagsterRun, triggers: set[str]) -> bool:
    """Return True if the tick that a run names lists it, and did so at its start.

    A schedule takes over an older run with the tags of its slot, which any command could have set.
    """
    from ml_platform.orchestration.dagster_internals import TICK_ID_TAG

    created = request_time(instance, run.run_id)
    if created is None or run.remote_job_origin is None:
        return False
    # SQLite stores the time of a run without the fraction of its second.
    start, end = created.timestamp() - SECONDS_TO_START, created.timestamp() + 1
    for state in [state for state in instance.all_instigator_state() if state.name in triggers]:
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, after=start, before=end):
            listed = {*tick.run_ids, *(run_id for run_id, _ in tick.reserved_run_ids_with_requests)}
            if run.run_id in listed and run.tags.get(TICK_ID_TAG) == str(tick.tick_id):
                return True
    return False


def request_time(instance: dg.DagsterInstance, run_id: str) -> datetime | None:
    """Return the time at which a run was created; ``None`` if Dagster has no such run."""
    record = instance.get_run_record_by_id(run_id)
    return record.create_timestamp if record else None
