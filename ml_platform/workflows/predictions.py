"""From the files that servers log their predictions into to the model's table of predictions."""

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from ml_platform import prediction_files
from ml_platform.errors import ConflictError
from ml_platform.model_spec import ModelSpec
from ml_platform.records import now
from ml_platform.stages import datasets, erasure, predictions
from ml_platform.workflows.forgotten import is_forgotten
from ml_platform.workflows.platform import Platform, alone

log = logging.getLogger("ml_platform")

# Who forgets somebody is done in seconds, but for very large tables.
SECONDS_TO_WAIT = 60.0
# A writer looks ten times a second whether it is asked to close its file.
SECONDS_TO_CLOSE = 5.0


@dataclass(frozen=True, kw_only=True)
class TakenPredictions:
    """What came of taking the log's files into the table.

    Parameters
    ----------
    files : int
        Files that were taken, or removed because they had been.
    rows : int
        Predictions that these files added to the table.
    unreadable : int
        Lines that are no entries of the log.
    expired : int
        Rows that were deleted because the deployment keeps them no longer.
    total : int
        Rows of the table now.
    version : int or None
        The table's version now; ``None`` where nothing was ever taken.
    """

    files: int
    rows: int
    unreadable: int
    expired: int
    total: int
    version: int | None


def waiting_predictions(platform: Platform, model: str) -> list[Path]:
    """Return the files of the log that wait: closed ones, and those that a server left open when it died."""
    folder = platform.prediction_files(model)
    return [*prediction_files.closed_files(folder), *prediction_files.left_open(folder)]


def take_predictions(platform: Platform, spec: ModelSpec) -> TakenPredictions:
    """Take every closed file of the log into the table, once, and remove it; then delete what is too old.

    A file goes by its name, which is never used again: its bytes change where somebody is forgotten. A process that
    dies leaves files that are taken the next time, and none is taken twice.

    Raises
    ------
    ConflictError
        Somebody forgets data of the model, and is not done in a minute.
    StorageError
        The disk is full, read-only or broken; what was not taken waits.
    ConfigurationError
        The key under which people were forgotten is missing.
    """
    with alone(platform, spec.name, seconds=SECONDS_TO_WAIT):
        folder, table = platform.prediction_files(spec.name), platform.predictions(spec.name)
        prediction_files.close_left_open(folder)
        files = prediction_files.closed_files(folder)
        taken = [_take(platform, spec, file) for file in files]
        kept_since = now() - timedelta(days=platform.settings.prediction_days)
        expired = datasets.tidy(table, predictions.TIME, kept_since)
        version, total = datasets.newest_version(table)
        return TakenPredictions(
            files=len(files),
            rows=sum(rows for rows, _ in taken),
            unreadable=sum(unreadable for _, unreadable in taken),
            expired=expired,
            total=total,
            version=version,
        )


def _take(platform: Platform, spec: ModelSpec, file: Path) -> tuple[int, int]:
    """Return how many rows a file added to the table, and how many of its lines could not be read."""
    table, name = platform.predictions(spec.name), hashlib.sha256(file.name.encode()).hexdigest()
    rows = unreadable = 0
    if datasets.published(table, name) is None:
        found, unreadable = predictions.read(file, _canonical(spec), is_forgotten(platform, spec))
        notes, rows = {"rows": found.num_rows, "unreadable": unreadable}, found.num_rows
        datasets.publish(table, found, arrival=file.name, sha256=name, notes=notes, quoted=predictions.TIME)
    file.unlink(missing_ok=True)  # its server removes it too where there is too much
    return rows, unreadable


def _canonical(spec: ModelSpec) -> Callable[[str], str]:
    return partial(erasure.canonical, spec=spec)


def without_predictions(platform: Platform, spec: ModelSpec, entity: str) -> int:
    """Take an entity out of the log's files and its table, in every version; return how many predictions went.

    Servers are asked to close the files that they write. What they log of the entity from now on is left out when it
    is taken. Call it under `alone`, with the entity's tombstone recorded.

    Raises
    ------
    ConflictError
        A server does not close its file.
    """
    folder, canonical = platform.prediction_files(spec.name), _canonical(spec)
    _close_all(folder)
    lines = sum(
        predictions.without(file, lambda found: canonical(found) == entity)
        for file in prediction_files.closed_files(folder)
    )
    change = erasure.rows_without(spec, entity, predictions.ENTITY)
    return lines + erasure.erase(platform.predictions(spec.name), change, set())


def _close_all(folder: Path) -> None:
    prediction_files.close_left_open(folder)
    asked, until = prediction_files.ask_to_close(folder), time.monotonic() + SECONDS_TO_CLOSE
    while any(file.exists() for file in asked):
        if time.monotonic() >= until:
            raise ConflictError(
                f"A server does not close its prediction log in {folder}, which may hold what is to be forgotten. "
                "Stop it or wait for it, then run this again. Other things may be deleted already."
            )
        time.sleep(0.02)
