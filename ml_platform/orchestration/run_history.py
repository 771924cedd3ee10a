"""Remove rows of forgotten entities from Dagster's records."""

import contextlib
import sqlite3
from collections.abc import Iterable

import dagster as dg

from ml_platform.data.ingest import preview_batch
from ml_platform.model_spec import ModelSpec
from ml_platform.orchestration.metadata import arrival_metadata, batch_metadata
from ml_platform.orchestration.run_monitoring import open_instance
from ml_platform.platform import Platform

ASSETS = ("raw_batches", "validated_batches")
AT_ONCE = 100


def forget_runs(platform: Platform, spec: ModelSpec) -> int:
    """Delete the runs over files that held a forgotten entity, with their events and logs.

    The metadata of all files of these runs are reported again from the platform's own records, so that every file
    remains visible in the UI. A second call changes nothing.

    Returns
    -------
    int
        The number of deleted runs.

    Raises
    ------
    ConfigurationError
        ``DAGSTER_HOME`` cannot be used.
    """
    held = [batch.arrival.key for batch in platform.database.list_raw_batches(spec.name) if batch.removed]
    with open_instance() as instance:
        runs = _runs_over(instance, spec.name, held)
        logs = [instance.all_logs(run, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION) for run in runs]
        events = [entry.dagster_event for entries in logs for entry in entries if entry.dagster_event]
        # In this order, so that a killed process can be repeated.
        _report(instance, platform, spec, {event.partition for event in events if event.partition})
        for run in runs:
            _delete(instance, run)
        if held:
            _compact(instance.event_log_storage, runs)
    return len(runs)


def _runs_over(instance: dg.DagsterInstance, model: str, keys: list[str]) -> set[str]:
    runs = set()
    for asset in ASSETS:
        for start in range(0, len(keys), AT_ONCE):
            batch = dg.AssetRecordsFilter(dg.AssetKey([model, asset]), asset_partitions=keys[start : start + AT_ONCE])
            cursor, more = None, True
            while more:
                page = instance.fetch_materializations(batch, limit=1_000, cursor=cursor)
                runs |= {record.run_id for record in page.records}
                cursor, more = page.cursor, page.has_more
    # Events that were reported again belong to no run.
    return {run for run in runs if instance.has_run(run)}


def _delete(instance: dg.DagsterInstance, run: str) -> None:
    from ml_platform.orchestration.dagster_internals import AssetCheckExecutionsTable, SqlEventLogStorage

    storage = instance.event_log_storage
    instance.compute_log_manager.delete_logs(prefix=[run])
    instance.delete_run(run)
    # Dagster stores the results of checks in another table, and keeps them when a run is deleted.
    if isinstance(storage, SqlEventLogStorage):
        with storage.index_connection() as connection:
            results = AssetCheckExecutionsTable.delete().where(AssetCheckExecutionsTable.c.run_id == run)
            connection.execute(results)


def _compact(storage: object, runs: Iterable[str]) -> None:
    """Rewrite the SQLite files with the events of runs, whose free pages still contain deleted rows."""
    from ml_platform.orchestration.dagster_internals import SqliteEventLogStorage

    if isinstance(storage, SqliteEventLogStorage):
        for shard in (*runs, "index"):
            with contextlib.closing(sqlite3.connect(storage.path_for_shard(shard))) as connection:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _report(instance: dg.DagsterInstance, platform: Platform, spec: ModelSpec, keys: Iterable[str]) -> None:
    wanted = sorted(keys)
    for batch in platform.database.raw_batches(spec.name, wanted):
        metadata = batch_metadata(batch, preview_batch(platform, spec, batch))
        instance.report_runless_asset_event(
            dg.AssetMaterialization([spec.name, "raw_batches"], partition=batch.arrival.key, metadata=metadata)
        )
    for result in platform.database.outcomes(spec.name, wanted):
        metadata = arrival_metadata(result)
        instance.report_runless_asset_event(
            dg.AssetMaterialization([spec.name, "validated_batches"], partition=result.arrival.key, metadata=metadata)
        )
