"""Store the bytes of arrivals, validate them, and publish or quarantine their rows."""

import contextlib
import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ml_platform.data import arrivals, erasure, landing, preview, reading
from ml_platform.data.tombstones import (
    load_forgotten_filter,
    refuse_forgotten,
    remove_forgotten_rows,
    remove_landed_with_forgotten,
)
from ml_platform.data.validation import validate
from ml_platform.errors import ArrivalChangedError, ConflictError, PlatformError, ReaderEndedError
from ml_platform.model_spec import ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.data import BatchResult, Outcome, RawBatch
from ml_platform.storage import delta_table

log = logging.getLogger("ml_platform")

# A file that ended its reader this often is quarantined: once may be an accident of the machine.
DEATHS = 2
# So is one whose reading began this often without an end, for instance because each time the whole container was ended.
READINGS = 5


def store_raw_batches(platform: Platform, model: str, keys: Iterable[str]) -> tuple[list[RawBatch], list[str]]:
    """Store the bytes of the arrivals with these keys.

    Returns
    -------
    batches : list of RawBatch
        The stored batches, including those of earlier runs.
    gone : list of str
        Reasons why keys have no batch: the file was removed, or replaced by a file that is another arrival.

    Raises
    ------
    LandingZoneError
        The landing zone cannot be listed or read. Batches that were already stored remain.
    """
    reading.start_early()  # it imports its modules while the bytes are copied
    wanted = set(keys)
    stored = {batch.arrival.key for batch in platform.database.raw_batches(model, wanted)}
    store = platform.settings.model_home(model) / "raw"
    gone = []
    listed = landing.list_files(platform, model).arrivals
    # Arrivals of an earlier release of the platform have no change time: that of their file is recorded now.
    platform.database.record_change_times(model, listed)
    for arrival in listed:
        if arrival.key in wanted - stored:
            try:
                batch = arrivals.store_bytes(arrival, platform.zone, store, platform.settings.max_file_bytes)
                platform.database.record_raw_batch(batch)
            except ArrivalChangedError as error:
                gone.append(str(error))
    batches = platform.database.raw_batches(model, wanted)
    missing = wanted - {batch.arrival.key for batch in batches}
    gone += [f"{key}: its file is no longer in the landing zone" for key in sorted(missing)]
    return batches, gone


def preview_batch(platform: Platform, spec: ModelSpec, batch: RawBatch) -> preview.Preview | None:
    """Return the first rows of a stored batch, without erased entities; ``None`` if it cannot be read."""
    first = reading.preview_file(platform.settings, batch)
    forgotten = load_forgotten_filter(platform, spec)
    if first is None or forgotten is None:
        return first
    head = [row for row in first.head if not forgotten(erasure.canonical(row.get(spec.entity, ""), spec))]
    return replace(first, head=head)


def publish_batches(platform: Platform, spec: ModelSpec, keys: Iterable[str]) -> list[BatchResult]:
    """Validate the stored batches with these keys and publish or quarantine each.

    Returns
    -------
    list of BatchResult
        The outcome of every arrival with these keys, including those handled earlier.
    """
    wanted = set(keys)
    known = platform.database.known_arrivals(spec.name)
    for batch in platform.database.raw_batches(spec.name, wanted - known):
        result = _publish_batch(platform, spec, batch)
        # Before the outcome is recorded: after a crash in between, the arrival is handled again.
        remove_landed_with_forgotten(platform, batch)
        platform.database.record_outcome(result)
        log.info("%s: %s, %s", batch.arrival.name, result.outcome.value, result.reason)
    return platform.database.outcomes(spec.name, wanted)


def _publish_batch(platform: Platform, spec: ModelSpec, batch: RawBatch) -> BatchResult:
    refusal = _find_refusal(platform, batch)
    if refusal is not None:
        report = reading.make_unreadable(refusal)
        _quarantine(platform, batch, report)
        return _result(batch, Outcome.QUARANTINED, _notes(report), refusal)
    batch = remove_forgotten_rows(platform, spec, batch)
    twin = platform.database.find_publication(spec.name, batch.sha256)
    if twin not in {None, batch.arrival.key}:
        reason = f"its bytes are those of {twin}, which is published"
        return _result(batch, Outcome.DUPLICATE, {"rows": 0, "quarantined_rows": 0}, reason)
    done = delta_table.published(platform.rows(spec.name), batch.sha256)
    if done is not None:
        if done.notes["quarantined_rows"]:
            # A process that was killed after its commit quarantined nothing: validate against the version before.
            # The commit proves that a reading ended: earlier kills do not count against the file.
            platform.database.end_reading(spec.name, batch.arrival.key)
            _quarantine(platform, batch, _validate(platform, spec, batch, done.version - 1))
        return _published(batch, done.notes, done.version)
    for attempt in range(delta_table.ATTEMPTS):
        try:
            return _validate_and_publish(platform, spec, batch)
        except PlatformError as error:
            # Not the file's fault: this reading does not count.
            with contextlib.suppress(PlatformError):
                platform.database.end_reading(spec.name, batch.arrival.key)
            # Another process published since the rows were validated: validate against the new version.
            if not isinstance(error, ConflictError) or attempt == delta_table.ATTEMPTS - 1:
                raise
    raise AssertionError("the loop returns or raises")


def _find_refusal(platform: Platform, batch: RawBatch) -> str | None:
    """Return the reason for quarantining stored bytes unread; ``None`` if they may be read."""
    if batch.promised_sha256 not in {None, batch.sha256}:
        sentence = f"its manifest names sha256 {batch.promised_sha256}, and its bytes have {batch.sha256}"
        return f"it was changed or damaged on its way: {sentence}"
    by_hand = platform.database.hand_quarantined(batch.arrival.model, batch.sha256)
    return f"its bytes are those of {by_hand[0]}, which a user quarantined" if by_hand else None


def _validate_and_publish(platform: Platform, spec: ModelSpec, batch: RawBatch) -> BatchResult:
    table, key = platform.rows(spec.name), batch.arrival.key
    version = delta_table.read_version(table)
    report = _validate(platform, spec, batch, version)
    notes = _notes(report)
    if platform.database.is_handled(spec.name, key):  # a user quarantined it while it was read
        return platform.database.outcomes(spec.name, [key])[0]
    if report.problem is not None:
        _quarantine(platform, batch, report)
        return _result(batch, Outcome.QUARANTINED, notes, report.problem)
    if not report.valid_rows:  # no commit: an equal dataset version would start a retraining
        _quarantine(platform, batch, report)
        return _published(batch, notes, None)
    done = delta_table.publish(table, report.valid, arrival=key, sha256=batch.sha256, notes=notes, read_at=version)
    _quarantine(platform, batch, report)
    return _published(batch, done.notes, done.version)


def _validate(platform: Platform, spec: ModelSpec, batch: RawBatch, version: int) -> reading.ReadReport:
    # Again: an erasure since the first removal has already made the version that the batch is validated against.
    batch = remove_forgotten_rows(platform, spec, batch)
    return refuse_forgotten(platform, spec, _read(platform, spec, batch, version))


def _read(platform: Platform, spec: ModelSpec, batch: RawBatch, version: int) -> reading.ReadReport:
    """Validate stored bytes in the reader; report a file that ended it `DEATHS` times as unreadable."""
    model, key = batch.arrival.model, batch.arrival.key
    while True:
        # Before the first byte is read: the file may end this process, too.
        readings, deaths = platform.database.begin_reading(model, key)
        if len(deaths) >= DEATHS:
            return reading.make_unreadable(f"it ended the process that read it, {len(deaths)} times: {deaths[-1]}")
        if readings > READINGS:
            problem = f"its reading began {READINGS} times and never ended: each time this process was ended, too"
            return reading.make_unreadable(problem)
        try:
            return reading.validate_file(platform.settings, spec, batch, platform.rows(model), version)
        except ReaderEndedError as error:
            log.warning("%s: the process that read it ended: %s", batch.arrival.name, error)
            platform.database.record_reader_death(model, key, str(error))


def _published(batch: RawBatch, notes: dict[str, Any], version: int | None) -> BatchResult:
    counts = {"quarantined": notes["quarantined_rows"], "passed over": notes.get("passed_over_rows", 0)}
    good = notes["rows"] - sum(counts.values())
    first = "no rows published" if version is None else f"{good:,} rows in version {version}"
    reason = ", ".join([first, *(f"{count:,} {word}" for word, count in counts.items() if count)])
    return _result(batch, Outcome.PUBLISHED, notes, reason, version)


def _notes(report: reading.ReadReport) -> dict[str, Any]:
    return {
        "rows": report.rows,
        "quarantined_rows": report.quarantined_rows,
        "passed_over_rows": report.passed_over_rows,
        "rules": report.rules,
        "examples": report.examples,
    }


def _quarantine(platform: Platform, batch: RawBatch, report: reading.ReadReport) -> None:
    if not report.violations and report.problem is None:
        return
    violations = report.violations or [validate.Violation(None, "", "volume", str(report.problem), "")]
    store_violations(platform, batch, violations, commit=batch.sha256, release=0)


def store_violations(
    platform: Platform, batch: RawBatch, violations: list[validate.Violation], *, commit: str, release: int
) -> None:
    """Append an arrival's violations to the quarantine table; a second call with the same `commit` adds nothing."""
    import pyarrow as pa

    rows = validate.make_violations_table(violations)
    rows = rows.append_column(delta_table.RELEASE, pa.array([release] * rows.num_rows, pa.int64()))
    table = platform.quarantine(batch.arrival.model)
    delta_table.publish(table, rows, arrival=batch.arrival.key, sha256=commit, notes={})


def _result(
    batch: RawBatch, outcome: Outcome, notes: dict[str, Any], reason: str, version: int | None = None
) -> BatchResult:
    return BatchResult(
        arrival=batch.arrival,
        sha256=batch.sha256,
        outcome=outcome,
        rows=notes["rows"],
        quarantined_rows=notes["quarantined_rows"],
        # Commits of earlier releases have no such count.
        passed_over_rows=notes.get("passed_over_rows", 0),
        dataset_version=version,
        reason=reason,
        rules=notes.get("rules", {}),
        examples=notes.get("examples", {}),
    )
