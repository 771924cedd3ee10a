"""Collection of the prediction log's files into the table of predictions, and erasure of an entity from both."""

import hashlib
import logging
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from ml_platform.data import erasure
from ml_platform.data.tombstones import load_forgotten_filter
from ml_platform.errors import ConflictError
from ml_platform.model_spec import ModelSpec
from ml_platform.monitoring.prediction_log.files import ask_to_close, close_left_open, closed_files, left_open
from ml_platform.monitoring.prediction_log.table import ENTITY, TIME, erase_log_lines, read
from ml_platform.platform import Platform, exclusive_data_lock
from ml_platform.records.canonical import now
from ml_platform.storage import delta_table

log = logging.getLogger("ml_platform")

# Maximum wait for an erasure in progress, which takes seconds except for very large tables.
SECONDS_TO_WAIT = 60.0
# Maximum wait for servers to close their files; they check for a request ten times a second.
SECONDS_TO_CLOSE = 5.0


@dataclass(frozen=True, kw_only=True)
class TakenPredictions:
    """Result of collecting the log's files.

    Parameters
    ----------
    files : int
        Number of files that were collected, or removed because they had been collected before.
    rows : int
        Number of predictions that these files added to the table.
    unreadable : int
        Number of lines that are not entries of the log.
    expired : int
        Number of rows that were deleted because they are older than the deployment's retention period.
    total : int
        Number of rows in the table.
    version : int or None
        Version of the table; ``None`` if nothing was ever collected.
    """

    files: int
    rows: int
    unreadable: int
    expired: int
    total: int
    version: int | None


def waiting_predictions(platform: Platform, model: str) -> list[Path]:
    """Return the files of the log to collect: closed files, and files that a killed server left open."""
    folder = platform.prediction_files(model)
    return [*closed_files(folder), *left_open(folder)]


def take_predictions(platform: Platform, spec: ModelSpec) -> TakenPredictions:
    """Append every closed file of the log to the table, once, and remove it; then delete expired rows.

    A file is identified by its name, which is never used again, because an erasure changes its bytes. If the process is
    killed, the next call collects the remaining files, and none twice.

    Raises
    ------
    ConflictError
        Another process is erasing or releasing data of the model, and did not finish within a minute.
    StorageError
        The disk is full, read-only or broken; the remaining files are kept.
    ConfigurationError
        The key of the tombstones is missing.
    """
    with exclusive_data_lock(platform, spec.name, seconds=SECONDS_TO_WAIT):
        folder, table = platform.prediction_files(spec.name), platform.predictions(spec.name)
        close_left_open(folder)
        files = closed_files(folder)
        taken = [_take(platform, spec, file) for file in files]
        kept_since = now() - timedelta(days=platform.settings.prediction_retention_days)
        expired = delta_table.compact_and_expire(table, TIME, kept_since)
        version, total = delta_table.newest_version(table)
        return TakenPredictions(
            files=len(files),
            rows=sum(rows for rows, _ in taken),
            unreadable=sum(unreadable for _, unreadable in taken),
            expired=expired,
            total=total,
            version=version,
        )


def _take(platform: Platform, spec: ModelSpec, file: Path) -> tuple[int, int]:
    """Append a file to the table and remove it; return the number of its rows and of its unreadable lines."""
    table, name = platform.predictions(spec.name), hashlib.sha256(file.name.encode()).hexdigest()
    rows = unreadable = 0
    if delta_table.published(table, name) is None:
        predictions, unreadable = read(
            file, partial(erasure.canonical, spec=spec), load_forgotten_filter(platform, spec)
        )
        notes, rows = {"rows": predictions.num_rows, "unreadable": unreadable}, predictions.num_rows
        delta_table.publish(table, predictions, arrival=file.name, sha256=name, notes=notes, quoted=TIME)
    file.unlink(missing_ok=True)  # its server may have removed it, to stay below its limit
    return rows, unreadable


def erase_predictions(platform: Platform, spec: ModelSpec, entity: str) -> int:
    """Erase an entity from the log's files and from every version of the table; return the number of predictions.

    Servers are asked to close their open files. Later entries of the entity are left out when they are collected. The
    caller holds `exclusive_data_lock` and has recorded the entity's tombstone.

    Raises
    ------
    ConflictError
        A server does not close its file.
    """
    folder = platform.prediction_files(spec.name)
    close_left_open(folder)
    being_written, until = ask_to_close(folder), time.monotonic() + SECONDS_TO_CLOSE
    while any(file.exists() for file in being_written):
        if time.monotonic() >= until:
            raise ConflictError(
                f"A server does not close its prediction log in {folder}, which may contain the entity. Stop the "
                "server or wait for it, then run this again. Other data may be deleted already."
            )
        time.sleep(0.02)
    files = closed_files(folder)
    lines = sum(erase_log_lines(file, lambda logged: erasure.canonical(logged, spec) == entity) for file in files)
    change = erasure.make_entity_remover(spec, entity, ENTITY)
    return lines + erasure.erase(platform.predictions(spec.name), change, set())
