"""What people do about data after it came: look at the quarantine, release what passes now, forget.

Like `workflows`, each function can be run again after a crash at any point.
"""

import contextlib
import hashlib
import logging
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform import workflows
from ml_platform.errors import ArrivalChangedError, ConflictError, DataError, UnreadableFileError
from ml_platform.model_spec import ModelSpec
from ml_platform.records import BatchResult, Outcome, RawBatch, Release, Tombstone, now
from ml_platform.stages import arrivals, datasets, erasure, golden, staging, validation
from ml_platform.workflows import Platform

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("ml_platform")

RULES = 10
EXAMPLES = 5


def show(platform: Platform, model: str) -> list[dict[str, Any]]:
    """Explain what is quarantined.

    Returns
    -------
    list of dict
        One for each arrival of which something is quarantined, in the order they were handled: its key, file, outcome,
        reason and figures; the counts of every rule by data check; up to ten findings (a rule that a column breaks),
        the most frequent first, each with up to five examples. The row of an example counts from 0 and is None where
        the whole file is meant.
    """
    return [_explain(platform, result) for result in _quarantined(platform, model)]


def _quarantined(platform: Platform, model: str) -> list[BatchResult]:
    database = platform.database
    results = database.outcomes(model, database.known_arrivals(model))
    return [result for result in results if _stays(result)]


def _stays(result: BatchResult) -> bool:
    return result.outcome is Outcome.QUARANTINED or result.quarantined_rows > 0


def _explain(platform: Platform, result: BatchResult) -> dict[str, Any]:
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in _findings(platform, result):
        groups.setdefault((row["check"], row["column"], row["rule"]), []).append(row)
    worst = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return {
        "arrival": result.arrival.key,
        "name": result.arrival.name,
        "outcome": result.outcome.value,
        "reason": result.reason,
        "rows": result.rows,
        "quarantined_rows": result.quarantined_rows,
        "rules": result.rules,
        "findings": [_group(*name, rows) for name, rows in worst[:RULES]],
        "more_rules": len(worst[RULES:]),
    }


def _group(check: str, column: str, rule: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    examples = [{"row": row["row"], "value": row["value"]} for row in rows[:EXAMPLES]]
    return {"check": check, "column": column, "rule": rule, "count": len(rows), "examples": examples}


def _findings(platform: Platform, result: BatchResult) -> list[dict[str, Any]]:
    model = result.arrival.model
    # The quarantine holds equal bytes once, under the key of the arrival that brought them first.
    twins = [row["key"] for row in platform.database.arrival_outcomes(model) if row["sha256"] == result.sha256]
    release = len(platform.database.releases(model, result.arrival.key))
    found = datasets.findings(platform.quarantine(model), twins if release == 0 else [result.arrival.key], release)
    return sorted(found, key=lambda row: -1 if row["row"] is None else row["row"])


# Release


def release(platform: Platform, spec: ModelSpec, wanted: list[str], *, actor: str) -> list[dict[str, Any]]:
    """Validate quarantined rows again, from the kept bytes, and publish those that pass now.

    A batch that was quarantined whole is held against the author's tolerance again. Of one that was published in part,
    the bad rows alone are looked at. What a release supersedes stays in the quarantine table.

    Parameters
    ----------
    wanted : list of str
        Keys or file names of arrivals; an empty list takes all of which something is quarantined.
    actor : str
        Who releases, for the record.

    Returns
    -------
    list of dict
        What became of each; `stays` says whether something of it is quarantined still.

    Raises
    ------
    DataError
        There is no handled arrival of that name.
    DatasetError
        The contract has other columns than the model's table.
    ConflictError
        Somebody else releases or forgets data of the model at the same time.
    """
    with workflows.alone(platform, spec.name):
        return [_release(platform, spec, result, actor) for result in _wanted(platform, spec.name, wanted)]


def _wanted(platform: Platform, model: str, wanted: list[str]) -> list[BatchResult]:
    if not wanted:
        return _quarantined(platform, model)
    results = platform.database.outcomes(model, platform.database.known_arrivals(model))
    names = {name for result in results for name in (result.arrival.key, result.arrival.name)}
    if unknown := sorted(set(wanted) - names):
        raise DataError(
            f"There is no arrival {unknown[0]!r} of {model!r} with an outcome. `ml-platform quarantine show {model}` "
            "lists those of which something is quarantined. Nothing was released."
        )
    return [result for result in results if {result.arrival.key, result.arrival.name} & set(wanted)]


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
    """Return what became of the arrival and how many rows were released; None where nothing passes."""
    model, key = before.arrival.model, before.arrival.key
    (batch,) = platform.database.raw_batches(model, [key])
    number = len(platform.database.releases(model, key)) + 1
    again = _Again(before=before, batch=batch, number=number, actor=actor)
    twin = platform.database.publication_of(model, before.sha256)
    if twin not in {None, key}:
        reason = f"its bytes are those of {twin}, which is published"
        duplicate = replace(
            before, outcome=Outcome.DUPLICATE, rows=0, quarantined_rows=0, reason=reason, rules={}, examples={}
        )
        return _record(platform, again, duplicate, rows=0), 0
    for attempt in range(datasets.ATTEMPTS):
        try:
            return _validate_and_release(platform, spec, again)
        except ConflictError:
            # Others published since the rows were held against what is there, as in `workflows`.
            if attempt == datasets.ATTEMPTS - 1:
                raise
    raise AssertionError("the loop returns or raises")


def _validate_and_release(platform: Platform, spec: ModelSpec, again: _Again) -> tuple[BatchResult, int] | None:
    table, key = platform.rows(spec.name), again.before.arrival.key
    done = datasets.published(table, again.commit)  # by a process that died before it could record it
    there = datasets.what_is_published(table, spec, done.version - 1 if done else None)
    report = workflows.refuse_forgotten(platform, spec, _validate_again(platform, spec, again, there))
    if done is None and (report.problem is not None or not report.valid.num_rows):
        return None
    notes = {"rows": report.valid.num_rows}
    done = done or datasets.publish(
        table, report.valid, arrival=key, sha256=again.commit, notes=notes, read_at=there.version
    )
    released = int(done.notes["rows"])  # by another contract, where a process died and the author went on
    if report.findings:
        workflows.keep_findings(platform, again.batch, report.findings, commit=again.commit, release=again.number)
    return _record(platform, again, _result(again.before, report, done), rows=released), released


def _validate_again(platform: Platform, spec: ModelSpec, again: _Again, there: datasets.Published) -> validation.Report:
    if again.batch.promised_sha256 not in {None, again.batch.sha256}:
        return validation.unreadable("its bytes are not those that its manifest names: land it under another name")
    try:
        rows = validation.read_rows(Path(again.batch.path), spec, platform.settings.most_bytes)
    except UnreadableFileError as error:
        return validation.unreadable(str(error))
    numbers = workflows.original_numbers(again.batch, range(rows.num_rows))
    if again.before.outcome is Outcome.QUARANTINED:
        return _numbered(validation.validate(rows, spec, there.newest), numbers)
    published = datasets.keys_published_from(platform.rows(spec.name), spec, again.batch.arrival.key, there.version)
    return _validate_some(rows, _unpublished(rows, published, spec), numbers, spec, there)


def _unpublished(rows: "pa.Table", published: "pa.Table", spec: ModelSpec) -> list[int]:
    """Return the numbers of the rows that were quarantined: findings name the first thousand of a rule only.

    Of the rows of one entity at one time no other than the first can have been published.
    """
    import polars as pl

    names = [spec.entity, spec.event_time]
    there = pl.DataFrame(pl.from_arrow(published))
    batch = pl.DataFrame(pl.from_arrow(rows.select(names))).with_row_index("_row")
    first = batch.filter(pl.struct(names).is_first_distinct()).cast(there.schema)
    held = first.join(there, on=names, how="semi", nulls_equal=True)
    return batch.filter(~pl.col("_row").is_in(held["_row"].implode()))["_row"].to_list()


def _validate_some(
    rows: "pa.Table", bad: list[int], numbers: list[int], spec: ModelSpec, there: datasets.Published
) -> validation.Report:
    """Validate some rows of a batch that is published but for them: it was within its tolerance."""
    tolerant = spec.model_copy(update={"quarantine_tolerance": 1.0, "least_rows_a_batch": 1})
    report = validation.validate(rows.take(bad), tolerant, there.newest)
    return _numbered(report, [numbers[row] for row in bad])


def _numbered(report: validation.Report, numbers: list[int]) -> validation.Report:
    return replace(report, broken=[replace(one, rows=[numbers[row] for row in one.rows]) for one in report.broken])


def _result(before: BatchResult, report: validation.Report, done: datasets.Publication) -> BatchResult:
    released, stay = done.notes["rows"], max(report.rows - done.notes["rows"], 0)
    reason = f"{released:,} rows released in version {done.version}"
    if stay:
        reason += f", {stay:,} quarantined"
    return replace(
        before,
        outcome=Outcome.PUBLISHED,
        rows=report.rows if before.outcome is Outcome.QUARANTINED else before.rows,
        quarantined_rows=stay,
        dataset_version=done.version,
        reason=reason,
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


# Deletion


def forget(platform: Platform, spec: ModelSpec, entity: str, *, reason: str, actor: str) -> dict[str, Any]:
    """Delete one entity's rows: golden requests, logged predictions, tables in every version, kept bytes, landing zone.

    A tombstone, which says who only to those who ask with the key, is recorded first: from then on no file brings
    the entity back. What a model learnt stays in it; it is marked as not reproducible.

    Returns
    -------
    dict
        `figures`, what lost the entity by count; `unsearched`, the files that may hold it and cannot be read.

    Raises
    ------
    DataError
        The reason says who.
    ConflictError
        Files wait or are being published. From now on they come in without the entity; run it again after them.
        Or somebody else releases or forgets data of the model at the same time.
    LandingZoneError
        The landing zone cannot be listed: it may hold the entity.
    """
    name = erasure.canonical(entity, spec)
    if _says(reason, {name, entity.strip()}) or name in {
        erasure.canonical(word, spec) for word in re.findall(r"\w+", reason)
    }:
        raise DataError("The reason is kept and must not say who is forgotten. Give another; nothing was deleted.")
    with workflows.alone(platform, spec.name):
        return _forget(platform, spec, name, reason, actor)


def _says(text: str, names: set[str]) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) for name in names)


def _forget(platform: Platform, spec: ModelSpec, name: str, reason: str, actor: str) -> dict[str, Any]:
    digest = _bury(platform, spec, name, reason, actor)
    _require_nothing_under_way(platform, spec.name)
    for table in (platform.rows(spec.name), platform.quarantine(spec.name)):
        datasets.commit_nothing(table)
    figures, unsearched = _erase(platform, spec, name)
    platform.database.complete_tombstone(spec.name, digest, figures)
    platform.database.compact()
    log.info("forgotten: %s", ", ".join(f"{count:,} {what}" for what, count in figures.items()))
    return {"figures": figures, "unsearched": unsearched}


def _bury(platform: Platform, spec: ModelSpec, entity: str, reason: str, actor: str) -> str:
    workflows.is_forgotten(platform, spec)  # refuses another key than the one in use
    key = platform.forget_key(make=not platform.database.tombstones(spec.name))
    digest = erasure.keyed_digest(key, spec.name, entity)
    platform.database.record_tombstone(
        Tombstone(
            model=spec.name,
            digest=digest,
            key_digest=hashlib.sha256(key).hexdigest(),
            reason=reason,
            actor=actor,
            asked_at=now(),
        )
    )
    return digest


def _require_nothing_under_way(platform: Platform, model: str) -> None:
    known = platform.database.known_arrivals(model)
    kept = {batch.arrival.key for batch in platform.database.raw_batches_of(model)}
    waiting = {arrival.key for arrival in workflows.waiting_arrivals(platform, model)}
    if under_way := (kept - known) | waiting:
        raise ConflictError(
            f"{len(under_way)} files of {model!r} wait or are being published, and may hold what is to be forgotten. "
            f"They come in without it now: run `ml-platform ingest {model}`, then this again. Nothing was deleted yet."
        )


def _erase(platform: Platform, spec: ModelSpec, entity: str) -> tuple[dict[str, int], list[str]]:
    table, change = platform.rows(spec.name), erasure.rows_without(spec, entity)
    since = erasure.first_version_with(table, change)
    marked = 0 if since is None else platform.database.mark_forgotten(spec.name, since)
    # In this order: what is needed to find the rest goes last, so that a crash in between leaves nothing behind.
    requests = _erase_requests(platform, spec, entity)
    logged = workflows.without_predictions(platform, spec, entity)
    raw = _search_raw(platform, spec, entity)
    removed = {key: rows for key, rows in raw.rows.items() if rows}
    findings = erasure.erase(
        platform.quarantine(spec.name), erasure.findings_without(removed, datasets.ARRIVAL), set(removed)
    )
    rows = erasure.erase(table, change, set(removed))
    platform.database.withhold(spec.name, removed, erasure.WITHHELD)
    kept = _erase_raw(platform, spec, entity)
    landed, unsearched = _erase_landed(platform, spec, entity)
    figures = {
        "rows_of_the_table": rows,
        "findings_in_the_quarantine": findings,
        "rows_of_kept_files": kept,
        "files_of_the_landing_zone": landed,
        "golden_requests": requests,
        "predictions": logged,
        "profiles": _remove_profiles(platform, spec.name),
        "candidates_not_reproducible": marked,
    }
    return figures, raw.unsearched + unsearched + _golden_files_with(platform, spec, entity)


def _golden_files_with(platform: Platform, spec: ModelSpec, entity: str) -> list[str]:
    """Return the golden datasets that hold an entity: they stand in the author's repository."""
    files = [golden.golden_file(platform.settings.golden, spec, named) for named in spec.golden]
    return [str(file) for file in files if file.is_file() and _may_hold(file, spec, entity)]


def _may_hold(file: Path, spec: ModelSpec, entity: str) -> bool:
    try:
        return bool(erasure.without(file, spec, entity.__eq__)[1])
    except DataError:
        return True


@dataclass(frozen=True)
class _Searched:
    rows: dict[str, set[int]]
    unsearched: list[str]


def _search_raw(platform: Platform, spec: ModelSpec, entity: str) -> _Searched:
    """Return the numbers that an entity's rows had in each arrival, and the files that cannot be searched."""
    found, unsearched = dict[str, set[int]](), list[str]()
    for batch in platform.database.raw_batches_of(spec.name):
        try:
            most = platform.settings.most_bytes
            _, rows = erasure.without(Path(batch.path), spec, entity.__eq__, most)
            found[batch.arrival.key] = set(workflows.original_numbers(batch, rows))
        except DataError:
            unsearched.append(batch.path)
    return _Searched(found, sorted(set(unsearched)))


def _erase_raw(platform: Platform, spec: ModelSpec, entity: str) -> int:
    rows, done = 0, set[str]()
    for batch in platform.database.raw_batches_of(spec.name):
        if batch.path not in done and Path(batch.path).exists():
            done.add(batch.path)
            with contextlib.suppress(DataError):  # named already, as not searched
                rows += len(workflows.remove_from_raw_batch(platform, spec, batch, entity.__eq__))
    # In this order: a file that is being kept meanwhile is named before it is asked for.
    files = list((platform.settings.model_home(spec.name) / "raw").glob("*"))
    named = {batch.path for batch in platform.database.raw_batches_of(spec.name)}
    for file in files:
        if str(file) not in named:
            file.unlink(missing_ok=True)  # left behind by a process that died
    return rows


def _erase_landed(platform: Platform, spec: ModelSpec, entity: str) -> tuple[int, list[str]]:
    zone = f"{platform.zone.address}/{spec.name}"
    removed, unsearched = 0, [f"{zone}/{name}" for name in _not_arrivals(platform, spec.name)]
    arrived = workflows.landed(platform, spec.name)
    known = platform.database.known_arrivals(spec.name)
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        # One that landed meanwhile comes in without the entity, and is then removed if it held it.
        for arrival in (arrival for arrival in arrived if arrival.key in known):
            if arrival.size > platform.settings.most_bytes:
                unsearched.append(f"{zone}/{arrival.name}")
                continue
            copy = Path(folder) / f"copy{arrivals.suffix_of(arrival.name)}"
            try:
                platform.zone.copy(arrival, copy)
                if erasure.without(copy, spec, entity.__eq__, platform.settings.most_bytes)[1]:
                    arrivals.remove(platform.zone, arrival)
                    removed += 1
            except ArrivalChangedError:
                continue  # another file now, which is to come
            except DataError:
                unsearched.append(f"{zone}/{arrival.name}")
    return removed, unsearched


def _not_arrivals(platform: Platform, model: str) -> list[str]:
    """Return the names that are no arrivals, hidden ones too: they may be copies that broke off."""
    hidden = [found.name for found in platform.zone.files(model) if found.regular and found.name.startswith(".")]
    return [*workflows.ignored_files(platform, model), *sorted(hidden)]


def _erase_requests(platform: Platform, spec: ModelSpec, entity: str) -> int:
    features = datasets.rows_of(platform.rows(spec.name), spec, entity)
    if features is None:
        return 0
    names = staging.GOLDEN_REQUESTS, staging.GOLDEN_ANSWERS
    folders = sorted((platform.settings.model_home(spec.name) / "candidates").glob("*"))
    removed = sum(erasure.requests_without(folder, names, features) for folder in folders)
    for candidate in platform.database.candidates_by_id([folder.name for folder in folders]):
        workflows.list_served_again(platform, candidate)
    return removed


def _remove_profiles(platform: Platform, model: str) -> int:
    """Remove all profile pages: their figures may be one person's. The newest is made again with the next dataset."""
    pages = sorted((platform.settings.model_home(model) / "profiles").glob("*.html"))
    for page in pages:
        page.unlink()
    return len(pages)
