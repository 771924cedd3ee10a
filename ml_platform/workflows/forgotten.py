"""Those who were forgotten do not come back: they are taken out of whatever brings them."""

import contextlib
import hashlib
import itertools
import logging
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from ml_platform import durable
from ml_platform.errors import ArrivalChangedError, ConfigurationError, DataError
from ml_platform.model_spec import ModelSpec
from ml_platform.records import RawBatch
from ml_platform.stages import arrivals, erasure, validation
from ml_platform.volumes import is_note
from ml_platform.workflows.platform import FORGET_KEY, Platform

log = logging.getLogger("ml_platform")


def refuse_forgotten(platform: Platform, spec: ModelSpec, report: validation.Report) -> validation.Report:
    """Return the report, or one that quarantines the batch whole if a row of someone who was forgotten is valid."""
    forgotten = is_forgotten(platform, spec)
    entities = report.valid.column(spec.entity).to_pylist() if forgotten and report.valid.num_rows else []
    if forgotten and any(forgotten(erasure.canonical(entity, spec)) for entity in entities):
        return validation.unreadable("someone who was forgotten is in it, and could not be taken out: remove the file")
    return report


def is_forgotten(platform: Platform, spec: ModelSpec) -> Callable[[str], bool] | None:
    """Return what tells whether an entity was forgotten; ``None`` where none of the model was.

    Raises
    ------
    ConfigurationError
        The key is missing or another than the one that they were recorded under.
    """
    tombstones = platform.database.tombstones(spec.name)
    if not tombstones:
        return None
    key = platform.forget_key(make=False)
    if any(tombstone.key_digest != hashlib.sha256(key).hexdigest() for tombstone in tombstones):
        raise ConfigurationError(
            f"{platform.settings.home / FORGET_KEY} is not the key that people of {spec.name!r} were forgotten under. "
            "Restore that one from its backup: without it their data would come back."
        )
    digests = {tombstone.digest for tombstone in tombstones}
    return lambda entity: erasure.keyed_digest(key, spec.name, entity) in digests


def without_forgotten(platform: Platform, spec: ModelSpec, batch: RawBatch) -> RawBatch:
    """Take those who were forgotten out of a batch that was not validated yet, and out of its kept bytes."""
    forgotten = is_forgotten(platform, spec)
    if forgotten is None:
        return batch
    try:
        remove_from_raw_batch(platform, spec, batch, forgotten)
    except DataError as error:
        log.warning("%s", error)  # no file of the model's: validation says why, and quarantines it
    (batch,) = platform.database.raw_batches(spec.name, [batch.arrival.key])
    return batch


def remove_from_raw_batch(
    platform: Platform, spec: ModelSpec, batch: RawBatch, forgotten: Callable[[str], bool]
) -> set[int]:
    """Take some entities out of an arrival's kept bytes, and of those of all arrivals that share them.

    Returns
    -------
    set of int
        The numbers that the rows had when the arrival was validated.

    Raises
    ------
    DataError
        The bytes cannot be searched.
    """
    path = Path(batch.path)
    data, removed = erasure.without(path, spec, forgotten, platform.settings.most_bytes)
    if not removed:
        return set()
    gone = original_numbers(batch, removed)
    changed = path.with_name(f"{batch.sha256}-{uuid.uuid4().hex[:8]}.{path.name.partition('.')[2]}")
    durable.write(changed, data)
    platform.database.replace_raw_batch(batch, str(changed), sorted({*batch.removed, *gone}))
    path.unlink()
    return set(gone)


def original_numbers(batch: RawBatch, rows: Iterable[int]) -> list[int]:
    """Return what rows of the kept bytes were numbered before any was removed; findings go by that."""
    wanted, gone = sorted(rows), set(batch.removed)
    left = (number for number in itertools.count() if number not in gone)
    numbers = list(itertools.islice(left, wanted[-1] + 1)) if wanted else []
    return [numbers[row] for row in wanted]


def remove_landed_with_forgotten(platform: Platform, batch: RawBatch) -> None:
    """Remove an arrival's own file from the landing zone where rows had to be taken out of its bytes."""
    (kept,) = platform.database.raw_batches(batch.arrival.model, [batch.arrival.key])
    as_they_came = Path(kept.path).with_name(f"{kept.sha256}{arrivals.suffix_of(kept.arrival.name)}")
    if Path(kept.path) != as_they_came and not is_note(Path(kept.path)):
        with contextlib.suppress(ArrivalChangedError):  # another file, which is to come
            arrivals.remove(platform.zone, batch.arrival)
        if not platform.database.uses_raw(batch.arrival.model, str(as_they_came)):
            as_they_came.unlink(missing_ok=True)  # by a process that died before it could
