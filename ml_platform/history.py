"""Take what Dagster's records quote of people who were forgotten out of them."""

import contextlib
import sqlite3
from collections.abc import Iterable

import dagster as dg

from ml_platform import views, workflows
from ml_platform.liveness import opened_instance
from ml_platform.model_spec import ModelSpec
from ml_platform.workflows import Platform

ASSETS = ("raw_batches", "validated_batches")
AT_ONCE = 100


def forget_runs(platform: Platform, spec: ModelSpec) -> int:
    """Delete the runs over files that held someone who was forgotten, with their events and logs.

    What these runs said of their files, those that held nobody among them, is reported anew from the platform's own
    records, so that every file still shows in the UI. Doing it again changes nothing.

    Returns
    -------
    int
        Runs that were deleted.

    Raises
    ------
    ConfigurationError
        ``DAGSTER_HOME`` cannot be used.
    """
    held = [batch.arrival.key for batch in platform.database.raw_batches_of(spec.name) if batch.removed]
    with opened_instance() as instance:
        runs = _runs_over(instance, spec.name, held)
        keys = {key for run in runs for key in _partitions_of(instance, run)}
        # In this order: a process that dies in between leaves what is needed to go on.
        _report(instance, platform, spec, keys)
        for run in runs:
            _delete(instance, run)
        if held:
            _compact(instance.event_log_storage, runs)
    return len(runs)


def _runs_over(instance: dg.DagsterInstance, model: str, keys: list[str]) -> set[str]:
    runs = set()
    for asset in ASSETS:
        for start in range(0, len(keys), AT_ONCE):
            some = dg.AssetRecordsFilter(dg.AssetKey([model, asset]), asset_partitions=keys[start : start + AT_ONCE])
            cursor, more = None, True
            while more:
                found = instance.fetch_materializations(some, limit=1_000, cursor=cursor)
                runs |= {record.run_id for record in found.records}
                cursor, more = found.cursor, found.has_more
    # An event that was reported anew belongs to no run.
    return {run for run in runs if instance.has_run(run)}


def _partitions_of(instance: dg.DagsterInstance, run: str) -> set[str]:
    events = instance.all_logs(run, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    return {event.dagster_event.partition for event in events if event.dagster_event and event.dagster_event.partition}


def _delete(instance: dg.DagsterInstance, run: str) -> None:
    from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
    from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

    storage = instance.event_log_storage
    instance.compute_log_manager.delete_logs(prefix=[run])
    instance.delete_run(run)
    # Dagster keeps the results of checks past their run, in a table of their own.
    if isinstance(storage, SqlEventLogStorage):
        with storage.index_connection() as connection:
            results = AssetCheckExecutionsTable.delete().where(AssetCheckExecutionsTable.c.run_id == run)
            connection.execute(results)


def _compact(storage: object, runs: Iterable[str]) -> None:
    """Rewrite the SQLite files that held the events of runs: what was deleted still stands in their free pages."""
    from dagster._core.storage.event_log import SqliteEventLogStorage

    if isinstance(storage, SqliteEventLogStorage):
        for shard in (*runs, "index"):
            with contextlib.closing(sqlite3.connect(storage.path_for_shard(shard))) as connection:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _report(instance: dg.DagsterInstance, platform: Platform, spec: ModelSpec, keys: Iterable[str]) -> None:
    wanted = sorted(keys)
    for batch in platform.database.raw_batches(spec.name, wanted):
        metadata = views.batch_metadata(batch, workflows.preview_batch(platform, spec, batch))
        instance.report_runless_asset_event(
            dg.AssetMaterialization([spec.name, "raw_batches"], partition=batch.arrival.key, metadata=metadata)
        )
    for result in platform.database.outcomes(spec.name, wanted):
        metadata = views.arrival_metadata(result)
        instance.report_runless_asset_event(
            dg.AssetMaterialization([spec.name, "validated_batches"], partition=result.arrival.key, metadata=metadata)
        )
