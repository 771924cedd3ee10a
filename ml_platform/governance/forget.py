"""Erase an entity from every table, file and log of a model."""

import contextlib
import hashlib
import logging
import re
import tempfile
from pathlib import Path
from typing import Any

from ml_platform.data import arrivals, datasets, erasure, golden_datasets, landing, reading
from ml_platform.data.quarantine import SECONDS_TO_WAIT
from ml_platform.data.tombstones import load_forgotten_filter, original_numbers, remove_from_raw_batch
from ml_platform.errors import ArrivalChangedError, ConflictError, DataError
from ml_platform.inference import golden_requests
from ml_platform.inference.publish_served_files import list_served_again
from ml_platform.model_spec import ModelSpec
from ml_platform.monitoring.prediction_log.collect import erase_predictions
from ml_platform.platform import Platform, exclusive_data_lock
from ml_platform.records.canonical import now
from ml_platform.records.data import Tombstone
from ml_platform.release.ledger.follow import log_in_file
from ml_platform.release.promote import require_reason
from ml_platform.storage import delta_table

log = logging.getLogger("ml_platform")


def forget(platform: Platform, spec: ModelSpec, entity: str, *, reason: str, actor: str) -> dict[str, Any]:
    """Erase one entity's rows: golden requests, logged predictions, tables in every version, raw files, landing zone.

    A tombstone is recorded first, so that no file brings the entity back. It contains a keyed digest of the entity, not
    its name. Models keep what they learnt; they are marked as not reproducible.

    Returns
    -------
    dict
        `figures`, the number of erased items by kind; `unsearched`, the files that may contain the entity and cannot be
        read; `unmatched`, the kept files in which none of the entity's rows was found although the table had rows of
        them; `found`, False if no data of the entity was found and all files were read. Then nothing is recorded.

    Raises
    ------
    ConfigurationError
        The reason is blank, or is not one line of printable text.
    DatasetError
        The model's table has another entity column.
    DataError
        The reason names the entity, or the contract's entity column cannot have this value.
    ConflictError
        Files are waiting or being published. They are published without the entity now; run this again afterwards. Or
        another process is releasing or erasing data of the model.
    LandingZoneError
        The landing zone cannot be listed: it may contain the entity.
    """
    require_reason(reason)
    _require_possible(entity, spec)
    name = erasure.canonical(entity, spec)
    spellings = [rf"(?<!\w){re.escape(text)}(?!\w)" for text in (name, entity.strip()) if text]
    named = any(re.search(spelling, reason, re.IGNORECASE) for spelling in spellings)
    if named or name in {erasure.canonical(word, spec) for word in re.findall(r"\w+", reason)}:
        raise DataError("The reason is kept and must not name the entity. Give another reason; nothing was deleted.")
    datasets.require_entity_column(platform.rows(spec.name), spec)
    with exclusive_data_lock(platform, spec.name, seconds=SECONDS_TO_WAIT):
        load_forgotten_filter(platform, spec)  # refuses another key than the one in use
        key = platform.forget_key(make=not platform.database.tombstones(spec.name))
        tombstone = Tombstone(
            model=spec.name,
            digest=erasure.keyed_digest(key, spec.name, name),
            key_digest=hashlib.sha256(key).hexdigest(),
            reason=reason,
            actor=actor,
            asked_at=now(),
        )
        is_new = tombstone.digest not in {one.digest for one in platform.database.tombstones(spec.name)}
        platform.database.record_tombstone(tombstone)
        _require_nothing_under_way(platform, spec.name)
        for table in (platform.rows(spec.name), platform.quarantine(spec.name)):
            delta_table.commit_nothing(table)
        figures, unsearched, unmatched = _erase(platform, spec, name)
        found = not is_new or bool(unsearched) or any(figures[kind] for kind in figures if kind != "profiles")
        if found:
            platform.database.complete_tombstone(spec.name, tombstone.digest, figures)
        else:
            # A mistyped id must not keep another person's rows out.
            platform.database.discard_tombstone(spec.name, tombstone.digest)
        platform.database.compact()
        try:
            log_in_file(platform, spec.name)  # the erasure of golden requests is in the ledger
        except OSError as error:
            log.warning("the log of heads follows later, as it cannot be written: %s", error)
        log.info("forgotten: %s", ", ".join(f"{count:,} {kind}" for kind, count in figures.items()))
        return {"figures": figures, "unsearched": unsearched, "unmatched": unmatched, "found": found}


def _require_possible(entity: str, spec: ModelSpec) -> None:
    """Refuse text that no published row can have as its entity, by the grammar of values in text files."""
    import pyarrow as pa

    from ml_platform.data.validation.validate import arrow_types
    from ml_platform.data.validation.value_grammar import describe_type, read_values

    types = arrow_types(spec)
    kind = types.field(spec.entity).type if spec.entity in types.names else pa.string()
    text = entity if pa.types.is_string(kind) or pa.types.is_large_string(kind) else entity.strip()
    if not text or read_values(pa.array([text]), kind)[1].any():
        raise DataError(
            f"No row of {spec.name!r} can have this {spec.entity}, which must be {describe_type(kind)}. Got {entity!r} "
            "instead. Nothing was deleted."
        )


def _require_nothing_under_way(platform: Platform, model: str) -> None:
    known = platform.database.known_arrivals(model)
    stored = {batch.arrival.key for batch in platform.database.list_raw_batches(model)}
    waiting = {arrival.key for arrival in landing.waiting_arrivals(platform, model)}
    if under_way := (stored - known) | waiting:
        raise ConflictError(
            f"{len(under_way)} files of {model!r} are waiting or being published, and may contain the entity. From now "
            f"on they are published without it: run `ml-platform ingest {model}`, then this again. If that stops, run "
            f"`ml-platform quarantine add {model} FILE --reason …` for each of them. Nothing was deleted yet."
        )


def _erase(platform: Platform, spec: ModelSpec, entity: str) -> tuple[dict[str, int], list[str], list[str]]:
    """Erase an entity everywhere; return `figures`, `unsearched` and `unmatched` of `forget`.

    Data needed to find the rest is erased last, so that a second run after a crash finds everything.
    """
    sources = set[str]()
    table, change = platform.rows(spec.name), erasure.make_entity_remover(spec, entity, sources=sources)
    since = erasure.first_version_with(table, change)
    marked = 0 if since is None else platform.database.mark_forgotten(spec.name, since)
    requests = _erase_requests(platform, spec, entity)
    logged = erase_predictions(platform, spec, entity)
    removed, unreadable = _search_raw(platform, spec, entity)
    violations = erasure.erase(
        platform.quarantine(spec.name), erasure.make_violation_remover(removed, delta_table.ARRIVAL), set(removed)
    )
    rows = erasure.erase(table, change, set(removed))
    unmatched = _find_unmatched(platform, spec, sources - set(removed), unreadable)
    platform.database.withhold(spec.name, removed, erasure.WITHHELD)
    raw = _erase_raw(platform, spec, entity)
    landed, unsearched = _erase_landed(platform, spec, entity)
    # Profile pages may quote one person's values. The newest is built again with the next dataset.
    profiles = sorted((platform.settings.model_home(spec.name) / "profiles").glob("*.html"))
    for page in profiles:
        page.unlink()
    figures = {
        "rows_of_the_table": rows,
        "violations_in_the_quarantine": violations,
        "rows_of_kept_files": raw,
        "files_of_the_landing_zone": landed,
        "golden_requests": requests,
        "predictions": logged,
        "profiles": len(profiles),
        "candidates_not_reproducible": marked,
    }
    return figures, unreadable + unsearched + _find_golden_files(platform, spec, entity), unmatched


def _find_unmatched(platform: Platform, spec: ModelSpec, arrivals: set[str], unsearched: list[str]) -> list[str]:
    """Return the kept files of some arrivals that were searched, and had no row of the entity before either."""
    batches = platform.database.list_raw_batches(spec.name)
    paths = {batch.path for batch in batches if batch.arrival.key in arrivals and not batch.removed}
    return sorted(paths - set(unsearched))


def _find_golden_files(platform: Platform, spec: ModelSpec, entity: str) -> list[str]:
    """Return the golden datasets that contain an entity or cannot be read; they are in the author's repository."""
    holding = []
    for name in spec.golden:
        file = golden_datasets.golden_file(platform.settings.golden_dir, spec, name)
        try:
            if file.is_file() and reading.remove_entities(platform.settings, spec, file, _only(spec, entity))[1]:
                holding.append(str(file))
        except DataError:
            holding.append(str(file))
    return holding


def _only(spec: ModelSpec, entity: str) -> erasure.Entities:
    return erasure.Entities(model=spec.name, name=entity)


def _search_raw(platform: Platform, spec: ModelSpec, entity: str) -> tuple[dict[str, set[int]], list[str]]:
    """Return the numbers of an entity's rows by arrival, and the raw files that cannot be searched."""
    numbers, unsearched = dict[str, set[int]](), set[str]()
    for batch in platform.database.list_raw_batches(spec.name):
        try:
            _, rows = reading.remove_entities(platform.settings, spec, Path(batch.path), _only(spec, entity))
            numbers[batch.arrival.key] = set(original_numbers(batch, rows))
        except DataError:
            unsearched.add(batch.path)
    return {key: rows for key, rows in numbers.items() if rows}, sorted(unsearched)


def _erase_raw(platform: Platform, spec: ModelSpec, entity: str) -> int:
    """Erase an entity's rows from the raw files; return their number."""
    rows, done = 0, set[str]()
    for batch in platform.database.list_raw_batches(spec.name):
        if batch.path not in done and Path(batch.path).exists():
            done.add(batch.path)
            with contextlib.suppress(DataError):  # reported by `_search_raw`
                rows += len(remove_from_raw_batch(platform, spec, batch, _only(spec, entity)))
    # The folder is listed before the database is read: a file that is stored meanwhile is then known.
    files = list((platform.settings.model_home(spec.name) / "raw").glob("*"))
    known = {batch.path for batch in platform.database.list_raw_batches(spec.name)}
    for file in files:
        if str(file) not in known:
            file.unlink(missing_ok=True)  # left behind by a process that was killed
    return rows


def _erase_landed(platform: Platform, spec: ModelSpec, entity: str) -> tuple[int, list[str]]:
    """Remove the arrivals that contain an entity; return their number, and the files that cannot be searched.

    Hidden files are not searched: they may be interrupted copies.
    """
    zone = f"{platform.zone.address}/{spec.name}"
    hidden = [file.name for file in platform.zone.files(spec.name) if file.regular and file.name.startswith(".")]
    unsearched = [f"{zone}/{name}" for name in (*landing.ignored_files(platform, spec.name), *sorted(hidden))]
    removed = 0
    arrived = landing.list_arrivals(platform, spec.name)
    known = platform.database.known_arrivals(spec.name)
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        # A file that landed meanwhile is published without the entity, and then removed if it contained it.
        for arrival in (arrival for arrival in arrived if arrival.key in known):
            if arrival.size > platform.settings.max_file_bytes:
                unsearched.append(f"{zone}/{arrival.name}")
                continue
            copy = Path(folder) / f"copy{arrivals.parse_suffix(arrival.name)}"
            try:
                platform.zone.copy(arrival, copy)
                if reading.remove_entities(platform.settings, spec, copy, _only(spec, entity))[1]:
                    arrivals.remove(platform.zone, arrival)
                    removed += 1
            except ArrivalChangedError:
                continue  # another file by now, which is still to be published
            except DataError:
                unsearched.append(f"{zone}/{arrival.name}")
    return removed, unsearched


def _erase_requests(platform: Platform, spec: ModelSpec, entity: str) -> int:
    """Erase an entity from the golden requests of all candidates; return the number of erased requests."""
    features = datasets.read_entity_rows(platform.rows(spec.name), spec, entity)
    if features is None:
        return 0
    names = golden_requests.GOLDEN_REQUESTS, golden_requests.GOLDEN_ANSWERS
    folders = sorted((platform.settings.model_home(spec.name) / "candidates").glob("*"))
    removed = sum(erasure.erase_golden_requests(folder, names, features) for folder in folders)
    for candidate in platform.database.candidates_by_id([folder.name for folder in folders]):
        list_served_again(platform, candidate)
    return removed
