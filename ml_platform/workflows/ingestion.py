"""From arrivals to published or quarantined rows."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_platform.errors import ArrivalChangedError, ConflictError
from ml_platform.model_spec import ModelSpec
from ml_platform.records import BatchResult, Outcome, RawBatch
from ml_platform.stages import arrivals, datasets, erasure, previews, validation
from ml_platform.workflows.forgotten import (
    is_forgotten,
    refuse_forgotten,
    remove_landed_with_forgotten,
    without_forgotten,
)
from ml_platform.workflows.platform import Platform

log = logging.getLogger("ml_platform")


def keep_raw_batches(platform: Platform, model: str, keys: Iterable[str]) -> tuple[list[RawBatch], list[str]]:
    """Keep the bytes of the arrivals with these keys.

    Returns
    -------
    batches : list of RawBatch
        All whose bytes are kept, those of an earlier run included.
    gone : list of str
        Why a key has no batch: its file was removed or replaced, and is another arrival now if it is one at all.

    Raises
    ------
    LandingZoneError
        The landing zone cannot be listed or read. What was kept stays kept.
    """
    wanted = set(keys)
    kept = {batch.arrival.key for batch in platform.database.raw_batches(model, wanted)}
    store = platform.settings.model_home(model) / "raw"
    gone = []
    for arrival in arrivals.list_files(platform.zone, model).arrivals:
        if arrival.key in wanted - kept:
            try:
                platform.database.record_raw_batch(arrivals.keep_bytes(arrival, platform.zone, store))
            except ArrivalChangedError as error:
                gone.append(str(error))
    batches = platform.database.raw_batches(model, wanted)
    missing = wanted - {batch.arrival.key for batch in batches}
    gone += [f"{key}: its file is no longer in the landing zone" for key in sorted(missing)]
    return batches, gone


def preview_batch(platform: Platform, spec: ModelSpec, batch: RawBatch) -> previews.Preview | None:
    """Look at the first rows of a kept batch, without those who were forgotten; ``None`` if it cannot be read."""
    found, forgotten = previews.preview(Path(batch.path)), is_forgotten(platform, spec)
    if found is None or forgotten is None:
        return found
    head = [row for row in found.head if not forgotten(erasure.canonical(row.get(spec.entity, ""), spec))]
    return replace(found, head=head)


def publish_batches(platform: Platform, spec: ModelSpec, keys: Iterable[str]) -> list[BatchResult]:
    """Validate the kept batches with these keys and publish or quarantine each.

    Returns
    -------
    list of BatchResult
        What became of every arrival with these keys, those that were handled before included.
    """
    wanted = set(keys)
    known = platform.database.known_arrivals(spec.name)
    for batch in platform.database.raw_batches(spec.name, wanted - known):
        result = _publish_batch(platform, spec, batch)
        platform.database.record_outcome(result)
        remove_landed_with_forgotten(platform, batch)
        log.info("%s: %s, %s", batch.arrival.name, result.outcome.value, result.reason)
    return platform.database.outcomes(spec.name, wanted)


def _publish_batch(platform: Platform, spec: ModelSpec, batch: RawBatch) -> BatchResult:
    if batch.promised_sha256 not in {None, batch.sha256}:
        return _refuse_broken_promise(platform, batch)
    batch = without_forgotten(platform, spec, batch)
    twin = platform.database.publication_of(spec.name, batch.sha256)
    if twin not in {None, batch.arrival.key}:
        reason = f"its bytes are those of {twin}, which is published"
        return _result(batch, Outcome.DUPLICATE, {"rows": 0, "quarantined_rows": 0}, reason)
    done = datasets.published(platform.rows(spec.name), batch.sha256)
    if done is not None:
        _complete_quarantine(platform, spec, batch, done)
        return _published(batch, done)
    for attempt in range(datasets.ATTEMPTS):
        try:
            return _validate_and_publish(platform, spec, batch)
        except ConflictError:
            # Others published since the rows were held against what is there: once more, against what is there now.
            if attempt == datasets.ATTEMPTS - 1:
                raise
    raise AssertionError("the loop returns or raises")


def _refuse_broken_promise(platform: Platform, batch: RawBatch) -> BatchResult:
    reason = f"its manifest names sha256 {batch.promised_sha256}, and its bytes have {batch.sha256}"
    report = validation.unreadable(reason)
    _quarantine(platform, batch, report)
    return _result(batch, Outcome.QUARANTINED, _notes(report), reason)


def _validate_and_publish(platform: Platform, spec: ModelSpec, batch: RawBatch) -> BatchResult:
    table = platform.rows(spec.name)
    there = datasets.what_is_published(table, spec)
    report = _validate(platform, spec, batch, there)
    notes, key = _notes(report), batch.arrival.key
    if report.problem is not None:
        _quarantine(platform, batch, report)
        return _result(batch, Outcome.QUARANTINED, notes, report.problem)
    done = datasets.publish(table, report.valid, arrival=key, sha256=batch.sha256, notes=notes, read_at=there.version)
    _quarantine(platform, batch, report)
    return _published(batch, done)


def _complete_quarantine(platform: Platform, spec: ModelSpec, batch: RawBatch, done: datasets.Publication) -> None:
    """Quarantine what a process that died after its commit did not: the rows are held against the version before."""
    if done.notes["quarantined_rows"]:
        there = datasets.what_is_published(platform.rows(spec.name), spec, done.version - 1)
        _quarantine(platform, batch, _validate(platform, spec, batch, there))


def _validate(platform: Platform, spec: ModelSpec, batch: RawBatch, there: datasets.Published) -> validation.Report:
    # Once more: whoever was forgotten since the batch was looked at was so before the version that it is held against.
    batch = without_forgotten(platform, spec, batch)
    return refuse_forgotten(platform, spec, validation.validate_file(Path(batch.path), spec, there.newest))


def _published(batch: RawBatch, done: datasets.Publication) -> BatchResult:
    good = done.notes["rows"] - done.notes["quarantined_rows"]
    reason = f"{good:,} rows in version {done.version}"
    if done.notes["quarantined_rows"]:
        reason += f", {done.notes['quarantined_rows']:,} quarantined"
    return _result(batch, Outcome.PUBLISHED, done.notes, reason, done.version)


def _notes(report: validation.Report) -> dict[str, Any]:
    return {
        "rows": report.rows,
        "quarantined_rows": report.quarantined_rows,
        "rules": report.rules,
        "examples": report.examples,
    }


def _quarantine(platform: Platform, batch: RawBatch, report: validation.Report) -> None:
    if not report.findings and report.problem is None:
        return
    findings = report.findings or [validation.Finding(None, "", "volume", str(report.problem), "")]
    keep_findings(platform, batch, findings, commit=batch.sha256, release=0)


def keep_findings(
    platform: Platform, batch: RawBatch, findings: list[validation.Finding], *, commit: str, release: int
) -> None:
    """Append findings on an arrival to the quarantine, once by the name of the commit."""
    import pyarrow as pa

    rows = validation.findings_table(findings)
    rows = rows.append_column(datasets.RELEASE, pa.array([release] * rows.num_rows, pa.int64()))
    table = platform.quarantine(batch.arrival.model)
    datasets.publish(table, rows, arrival=batch.arrival.key, sha256=commit, notes={})


def _result(
    batch: RawBatch, outcome: Outcome, notes: dict[str, Any], reason: str, version: int | None = None
) -> BatchResult:
    return BatchResult(
        arrival=batch.arrival,
        sha256=batch.sha256,
        outcome=outcome,
        rows=notes["rows"],
        quarantined_rows=notes["quarantined_rows"],
        dataset_version=version,
        reason=reason,
        rules=notes.get("rules", {}),
        examples=notes.get("examples", {}),
    )
