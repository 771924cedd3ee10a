"""Show quarantined rows, and release the ones that pass validation now.

Each function can be run again after a crash at any point and does not repeat completed work.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

from ml_platform.data import arrivals, landing, reading
from ml_platform.data.ingest import store_violations
from ml_platform.data.tombstones import refuse_forgotten
from ml_platform.errors import ConflictError, DataError, ReaderEndedError, shorten
from ml_platform.model_spec import ModelSpec
from ml_platform.platform import Platform, exclusive_data_lock
from ml_platform.records.canonical import now
from ml_platform.records.data import BatchResult, Outcome, RawBatch, Release
from ml_platform.storage import delta_table

log = logging.getLogger("ml_platform")

# The asset of the prediction log holds the lock for a second or two, every few minutes.
SECONDS_TO_WAIT = 10.0
RULES = 10
LONGEST_REASON = 1_000
EXAMPLES = 5


def show(platform: Platform, model: str) -> list[dict[str, Any]]:
    """Describe the quarantined rows of a model.

    Returns
    -------
    list of dict
        One for each arrival with quarantined rows, in the order of validation: its key, file, outcome, reason and
        counts; the counts of every rule by data check; up to ten violations (a rule that a column breaks), the most
        frequent first, each with up to five examples. Rows of examples are numbered from 0; None stands for the whole
        file.
    """
    return [_explain(platform, result) for result in _quarantined(platform, model)]


def _quarantined(platform: Platform, model: str) -> list[BatchResult]:
    database = platform.database
    results = database.outcomes(model, database.known_arrivals(model))
    return [result for result in results if _stays(result)]


def _stays(result: BatchResult) -> bool:
    return result.outcome is Outcome.QUARANTINED or result.quarantined_rows > 0


def _explain(platform: Platform, result: BatchResult) -> dict[str, Any]:
    model = result.arrival.model
    # The quarantine table holds equal bytes once, under the key of the first arrival.
    twins = [row["key"] for row in platform.database.arrival_outcomes(model) if row["sha256"] == result.sha256]
    release = len(platform.database.releases(model, result.arrival.key))
    rows = delta_table.read_violations(
        platform.quarantine(model), twins if release == 0 else [result.arrival.key], release
    )
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: -1 if row["row"] is None else row["row"]):
        groups.setdefault((row["check"], row["column"], row["rule"]), []).append(row)
    worst = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return {
        "arrival": result.arrival.key,
        "name": result.arrival.name,
        "outcome": result.outcome.value,
        "reason": result.reason,
        "rows": result.rows,
        "quarantined_rows": result.quarantined_rows,
        "passed_over_rows": result.passed_over_rows,
        "rules": result.rules,
        "violations": [
            {
                "check": check,
                "column": column,
                "rule": rule,
                "count": len(rows),
                "examples": [{"row": row["row"], "value": row["value"]} for row in rows[:EXAMPLES]],
            }
            for (check, column, rule), rows in worst[:RULES]
        ],
        "more_rules": len(worst[RULES:]),
    }


# By hand


def add(platform: Platform, model: str, wanted: str, *, reason: str, actor: str) -> BatchResult:
    """Quarantine an arrival that has no outcome, without reading it as a table.

    Its bytes are stored as those of every arrival. They are validated only if `release` names the arrival.

    Parameters
    ----------
    wanted : str
        Key or file name of the arrival.
    reason, actor : str
        The reason, and the user who quarantines, for the record.

    Raises
    ------
    DataError
        No arrival of this name waits.
    ConflictError
        The arrival received another outcome meanwhile.
    ArrivalChangedError, LandingZoneError, StorageError
        The bytes cannot be stored.
    """
    batch = _store_waiting(platform, model, wanted)
    sentence = f"{shorten(actor)} quarantined it: {shorten(reason.strip(), LONGEST_REASON)}"
    result = BatchResult(
        arrival=batch.arrival,
        sha256=batch.sha256,
        outcome=Outcome.QUARANTINED,
        rows=0,
        quarantined_rows=0,
        dataset_version=None,
        reason=sentence,
    )
    if not platform.database.record_outcome(result, quarantined_by=shorten(actor)):
        raise ConflictError(f"The arrival {wanted!r} of {model!r} received another outcome meanwhile.")
    if delta_table.published(platform.rows(model), batch.sha256) is not None:
        raise ConflictError(
            f"The rows of {wanted!r} were published at the same moment, and stay. The arrival is recorded as "
            "quarantined."
        )
    return result


def _store_waiting(platform: Platform, model: str, wanted: str) -> RawBatch:
    """Return the stored bytes of a waiting arrival; store them if necessary."""
    for batch in platform.database.unhandled_batches(model):
        if wanted in {batch.arrival.key, batch.arrival.name}:
            return batch
    for arrival in landing.waiting_arrivals(platform, model):
        if wanted in {arrival.key, arrival.name}:
            store = platform.settings.model_home(model) / "raw"
            batch = arrivals.store_bytes(arrival, platform.zone, store, platform.settings.max_file_bytes)
            platform.database.record_raw_batch(batch)
            return batch
    raise DataError(
        f"No waiting arrival of {model!r} is called {shorten(wanted)!r}. Arrivals with an outcome keep it; run "
        f"`ml-platform quarantine show {model}` for the quarantined ones."
    )


# Release


def release(platform: Platform, spec: ModelSpec, wanted: list[str], *, actor: str) -> list[dict[str, Any]]:
    """Validate quarantined rows again, from the stored bytes, and publish those that pass now.

    The author's tolerance applies again to a batch that was quarantined whole. If a batch was published in part, only
    its bad rows are validated. Superseded violations stay in the quarantine table.

    Parameters
    ----------
    wanted : list of str
        Keys or file names of arrivals; an empty list selects all arrivals with quarantined rows, except those that a
        user quarantined.
    actor : str
        The user who releases, for the record.

    Returns
    -------
    list of dict
        The result of each arrival; `stays` is True if some of its rows are still quarantined.

    Raises
    ------
    DataError
        No validated arrival has this name.
    DatasetError
        The contract has other columns than the model's table.
    ConflictError
        Another process releases, erases or compacts data of the model.
    """
    model = spec.name
    with exclusive_data_lock(platform, model, seconds=SECONDS_TO_WAIT):
        if not wanted:
            by_hand = set(platform.database.hand_quarantined(model))
            results = [result for result in _quarantined(platform, model) if result.arrival.key not in by_hand]
            return [_release(platform, spec, result, actor) for result in results]
        results = platform.database.outcomes(model, platform.database.known_arrivals(model))
        names = {name for result in results for name in (result.arrival.key, result.arrival.name)}
        if unknown := sorted(set(wanted) - names):
            raise DataError(
                f"No validated arrival of {model!r} is called {unknown[0]!r}. Run `ml-platform quarantine show "
                f"{model}` for the arrivals with quarantined rows. Nothing was released."
            )
        selected = [result for result in results if {result.arrival.key, result.arrival.name} & set(wanted)]
        return [_release(platform, spec, result, actor) for result in selected]


def _release(platform: Platform, spec: ModelSpec, before: BatchResult, actor: str) -> dict[str, Any]:
    after = _release_batch(platform, spec, before, actor) if _stays(before) else None
    result, rows = after or (before, 0)
    log.info("%s: %s rows released, %s stay", before.arrival.name, f"{rows:,}", f"{result.quarantined_rows:,}")
    return {
        "arrival": result.arrival.key,
        "name": result.arrival.name,
        "outcome": result.outcome.value,
        "released_rows": rows,
        "quarantined_rows": result.quarantined_rows,
        "passed_over_rows": result.passed_over_rows,
        "reason": result.reason,
        "stays": _stays(result),
    }


@dataclass(frozen=True, kw_only=True)
class _Again:
    """An arrival whose quarantined rows are validated again; `commit` names the release in both tables."""

    before: BatchResult
    batch: RawBatch
    number: int
    actor: str

    @property
    def commit(self) -> str:
        return f"{self.batch.sha256}:release:{self.number}"


def _release_batch(
    platform: Platform, spec: ModelSpec, before: BatchResult, actor: str
) -> tuple[BatchResult, int] | None:
    """Return the arrival's new result and the number of released rows; None if no row passes."""
    model, key = before.arrival.model, before.arrival.key
    (batch,) = platform.database.raw_batches(model, [key])
    number = len(platform.database.releases(model, key)) + 1
    again = _Again(before=before, batch=batch, number=number, actor=actor)
    twin = platform.database.find_publication(model, before.sha256)
    if twin not in {None, key}:
        reason = f"its bytes are those of {twin}, which is published"
        duplicate = replace(
            before, outcome=Outcome.DUPLICATE, rows=0, quarantined_rows=0, reason=reason, rules={}, examples={}
        )
        return _record(platform, again, duplicate, rows=0), 0
    for attempt in range(delta_table.ATTEMPTS):
        try:
            return _validate_and_release(platform, spec, again)
        except ConflictError:
            # Another process published since the rows were validated, as in `ingest`.
            if attempt == delta_table.ATTEMPTS - 1:
                raise
    raise AssertionError("the loop returns or raises")


def _validate_and_release(platform: Platform, spec: ModelSpec, again: _Again) -> tuple[BatchResult, int] | None:
    table, key = platform.rows(spec.name), again.before.arrival.key
    done = delta_table.published(table, again.commit)  # by a process that was killed before it recorded the release
    before = done.version - 1 if done else delta_table.read_version(table)
    report = refuse_forgotten(platform, spec, _validate_again(platform, spec, again, before))
    passed_over = report.passed_over_rows + report.published_since
    if done is None and (report.problem is not None or not report.valid_rows + passed_over):
        return None
    if done is None and report.valid_rows:
        notes = {"rows": report.valid_rows}
        done = delta_table.publish(table, report.valid, arrival=key, sha256=again.commit, notes=notes, read_at=before)
    # The commit's count differs from the report's if the contract changed after a crash.
    released, version = (int(done.notes["rows"]), done.version) if done else (0, None)
    if report.violations:
        store_violations(platform, again.batch, report.violations, commit=again.commit, release=again.number)
    result = _result(again.before, report, released, version, passed_over)
    return _record(platform, again, result, rows=released), released


def _validate_again(platform: Platform, spec: ModelSpec, again: _Again, version: int) -> reading.ReadReport:
    """Validate the quarantined rows of a batch: all of them, or those that were not published."""
    if again.batch.promised_sha256 not in {None, again.batch.sha256}:
        return reading.make_unreadable("its bytes are not those that its manifest names: land it under another name")
    whole = again.before.outcome is Outcome.QUARANTINED
    known = None if whole else again.before.published_rows + again.before.passed_over_rows
    table = platform.rows(spec.name)
    try:
        return reading.validate_again(platform.settings, spec, again.batch, table, version, known=known)
    except ReaderEndedError as error:
        return reading.make_unreadable(f"it ended the process that read it: {error}")


def _result(
    before: BatchResult, report: reading.ReadReport, released: int, version: int | None, passed_over: int
) -> BatchResult:
    stay, whole = max(report.rows - released - report.passed_over_rows, 0), before.outcome is Outcome.QUARANTINED
    first = "no rows released" if version is None else f"{released:,} rows released in version {version}"
    counts = {"quarantined": stay, "passed over": passed_over}
    return replace(
        before,
        outcome=Outcome.PUBLISHED,
        rows=report.rows if whole else before.rows,
        quarantined_rows=stay,
        passed_over_rows=passed_over if whole else before.passed_over_rows + passed_over,
        dataset_version=version,
        reason=", ".join([first, *(f"{count:,} {word}" for word, count in counts.items() if count)]),
        rules=report.rules,
        examples=report.examples,
    )


def _record(platform: Platform, again: _Again, result: BatchResult, *, rows: int) -> BatchResult:
    entry = Release(
        model=result.arrival.model,
        arrival=result.arrival.key,
        number=again.number,
        rows=rows,
        dataset_version=result.dataset_version if rows else None,
        actor=again.actor,
        released_at=now(),
    )
    platform.database.record_release(entry, result)
    return result
