"""Tombstones: remove erased entities from every file that contains them."""

import contextlib
import hashlib
import logging
import uuid
from collections.abc import Iterable
from pathlib import Path

from ml_platform.data import arrivals, erasure, quarantined_rows, reading
from ml_platform.data.validation.size_limits import is_note
from ml_platform.errors import ArrivalChangedError, ConfigurationError, DataError
from ml_platform.model_spec import ModelSpec
from ml_platform.platform import FORGET_KEY, Platform
from ml_platform.records.data import RawBatch
from ml_platform.storage import atomic_files

log = logging.getLogger("ml_platform")


def refuse_forgotten(platform: Platform, spec: ModelSpec, report: reading.ReadReport) -> reading.ReadReport:
    """Return the report, or one that quarantines the whole batch if a valid row belongs to an erased entity."""
    forgotten = load_forgotten_filter(platform, spec)
    entities = report.valid.column(spec.entity).to_pylist() if forgotten and report.valid.num_rows else []
    if forgotten and any(forgotten(erasure.canonical(entity, spec)) for entity in entities):
        return reading.make_unreadable(
            "the file has rows of a forgotten entity that could not be removed. Remove the file"
        )
    return report


def load_forgotten_filter(platform: Platform, spec: ModelSpec) -> erasure.Entities | None:
    """Return the erased entities of a model; ``None`` if it has none.

    Raises
    ------
    ConfigurationError
        The key is missing or is not the key of the model's tombstones.
    """
    tombstones = platform.database.tombstones(spec.name)
    if not tombstones:
        return None
    key = platform.forget_key(make=False)
    if any(tombstone.key_digest != hashlib.sha256(key).hexdigest() for tombstone in tombstones):
        raise ConfigurationError(
            f"{platform.settings.home / FORGET_KEY} is not the key that recorded the erasures of {spec.name!r}. "
            "Restore the original key from its backup: without it, erased data would be published again."
        )
    digests = frozenset(tombstone.digest for tombstone in tombstones)
    return erasure.Entities(model=spec.name, key=key, digests=digests)


def remove_forgotten_rows(platform: Platform, spec: ModelSpec, batch: RawBatch) -> RawBatch:
    """Remove erased entities from the stored bytes of a batch that is not validated yet; return the batch."""
    forgotten = load_forgotten_filter(platform, spec)
    if forgotten is None:
        return batch
    try:
        remove_from_raw_batch(platform, spec, batch, forgotten)
    except DataError as error:
        log.warning("%s", error)  # validation reports the reason, too, and quarantines the file
    (batch,) = platform.database.raw_batches(spec.name, [batch.arrival.key])
    return batch


def remove_from_raw_batch(
    platform: Platform, spec: ModelSpec, batch: RawBatch, forgotten: erasure.Entities
) -> set[int]:
    """Remove some entities from an arrival's stored bytes, which other arrivals may share.

    Returns
    -------
    set of int
        Numbers of the removed rows, as counted when the arrival was validated.

    Raises
    ------
    DataError
        The bytes cannot be searched.
    """
    path = Path(batch.path)
    data, removed = reading.remove_entities(platform.settings, spec, path, forgotten)
    if not removed:
        return set()
    gone = original_numbers(batch, removed)
    changed = path.with_name(f"{batch.sha256}-{uuid.uuid4().hex[:8]}.{path.name.partition('.')[2]}")
    atomic_files.write(changed, data)
    platform.database.replace_raw_batch(batch, str(changed), sorted({*batch.removed, *gone}))
    path.unlink()
    return set(gone)


def original_numbers(batch: RawBatch, rows: Iterable[int]) -> list[int]:
    """Return the numbers that rows of the stored bytes had before any removal, as violations count them."""
    return quarantined_rows.original_numbers(batch.removed, rows)


def remove_landed_with_forgotten(platform: Platform, batch: RawBatch) -> None:
    """Remove an arrival's file from the landing zone if rows of erased entities were removed from its bytes."""
    (kept,) = platform.database.raw_batches(batch.arrival.model, [batch.arrival.key])
    original = Path(kept.path).with_name(f"{kept.sha256}{arrivals.parse_suffix(kept.arrival.name)}")
    if Path(kept.path) != original and not is_note(Path(kept.path)):
        with contextlib.suppress(ArrivalChangedError):  # a new file under this name, another arrival
            arrivals.remove(platform.zone, batch.arrival)
        if not platform.database.uses_raw(batch.arrival.model, str(original)):
            original.unlink(missing_ok=True)  # left by a process that was killed during the removal
