"""The stages composed, without Dagster: what `pipeline.py` puts into assets and the command line calls.

Each function is one step of a model's life. It can be run again after a crash at any point: what was done is found
and not done twice.
"""

import hashlib
import itertools
import logging
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_platform import durable, provenance
from ml_platform.database import Database
from ml_platform.errors import (
    ArrivalChangedError,
    ConfigurationError,
    ConflictError,
    DataError,
    EvidenceError,
    LandingZoneError,
)
from ml_platform.model_spec import ModelSpec
from ml_platform.predictor import MODEL_FILE, file_digest, load
from ml_platform.records import (
    Arrival,
    BatchResult,
    Candidate,
    DatasetVersion,
    LedgerEntry,
    Lineage,
    Outcome,
    RawBatch,
    Registration,
    Verdict,
    now,
)
from ml_platform.settings import Settings, read_settings
from ml_platform.stages import (
    arrivals,
    datasets,
    erasure,
    evaluation,
    gates,
    golden,
    profiles,
    promotion,
    staging,
    training,
    validation,
)
from ml_platform.stages._landing import LandingZone, open_zone
from ml_platform.stages.datasets import DatasetReport
from ml_platform.stages.registry import Registry, run_files

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("ml_platform")

CURVES = "curves.png"
FORGET_KEY = "forget.key"


class Platform:
    """One deployment: its settings, its database, its registry. Nothing is opened before it is needed.

    Parameters
    ----------
    settings : Settings or None
        ``None`` reads the environment.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or read_settings()

    @cached_property
    def database(self) -> Database:
        """The platform's own database, migrated."""
        return Database(self.settings.database)

    @cached_property
    def zone(self) -> LandingZone:
        """The landing zone."""
        return open_zone(self.settings.landing)

    @cached_property
    def registry(self) -> Registry:
        """MLflow."""
        return Registry(self.settings.tracking_uri, self.settings.artifacts)

    def new_rows(self, model: str) -> int:
        """Count the rows that were published since the dataset version of the newest settled candidate.

        A candidate is settled when it was refused or promoted: one whose run died is trained again.
        """
        candidate = self.database.newest_settled_candidate(model)
        return self.database.rows_published_after(model, candidate.lineage.dataset_version if candidate else None)

    def rows(self, model: str) -> Path:
        """Return the folder of the Delta table of a model's valid rows."""
        return self.settings.model_home(model) / "rows"

    def quarantine(self, model: str) -> Path:
        """Return the folder of the Delta table of a model's quarantined rows."""
        return self.settings.model_home(model) / "quarantine"

    def forget_key(self, *, make: bool) -> bytes:
        """Return the key under which forgotten entities are recorded; never in the database, see docs/decisions.

        Raises
        ------
        ConfigurationError
            It is missing and may not be made.
        """
        return erasure.read_key(self.settings.home / FORGET_KEY, make=make)

    def candidate_folder(self, candidate: Candidate) -> Path:
        """Return where a candidate's file and golden requests stand."""
        return self.settings.model_home(candidate.model) / "candidates" / candidate.id

    def profile_page(self, dataset: DatasetVersion) -> Path:
        """Return the path of the page that describes a dataset version."""
        return self.settings.model_home(dataset.model) / "profiles" / f"{dataset.version}.html"

    def model_file(self, candidate: Candidate) -> Path:
        """Return the path of a candidate's stored bytes."""
        return self.candidate_folder(candidate) / MODEL_FILE


# Arrivals


def land_files(platform: Platform, model: str, files: Mapping[str, bytes]) -> list[str]:
    """Put files into a model's folder of the landing zone, each whole or not at all.

    Returns
    -------
    list of str
        The names of those that were landed; a file that is there already with these bytes is left alone.

    Raises
    ------
    LandingZoneError
        A name cannot be an arrival's, or a file of that name with other bytes is waiting. Nothing was landed.
    """
    zone = platform.zone
    arrivals.require_safe_names(files)
    zone.prepare(model)
    new = [name for name, data in files.items() if not arrivals.holds(zone, model, name, data)]
    waiting = {arrival.name for arrival in waiting_arrivals(platform, model)}
    if taken := sorted(waiting & set(new)):
        raise LandingZoneError(
            f"A file {taken[0]!r} with other bytes waits in {zone.address}/{model}. Run `ml-platform ingest {model}` "
            "first, or choose another name. Nothing was landed."
        )
    return [name for name in new if arrivals.land(zone, model, name, files[name])]


def ignored_files(platform: Platform, model: str) -> list[str]:
    """Return the names in a model's folder of the landing zone that can be no arrival."""
    return arrivals.list_files(platform.zone, model).ignored


def landed(platform: Platform, model: str) -> list[Arrival]:
    """Return all files in a model's folder of the landing zone that can be arrivals, handled or not."""
    return arrivals.list_files(platform.zone, model).arrivals


def waiting_arrivals(platform: Platform, model: str) -> list[Arrival]:
    """Return the files in the landing zone that have no outcome yet, complete or not, oldest first.

    Raises
    ------
    LandingZoneError
        The landing zone cannot be listed.
    """
    return _without_outcome(platform, model, arrivals.list_files(platform.zone, model).arrivals)


def look_for_arrivals(platform: Platform, model: str, **options: Any) -> arrivals.Look:
    """Tell which of the files that wait are complete; nothing is changed by looking.

    Parameters
    ----------
    platform : Platform
        Its landing zone.
    model : str
        Its folder there.
    **options
        Those of `arrivals.look`: what was seen before, and how much is asked for.

    Raises
    ------
    LandingZoneError
        The landing zone cannot be listed.
    """
    listing = arrivals.list_files(platform.zone, model)
    waiting = _without_outcome(platform, model, listing.arrivals)
    return arrivals.look(platform.zone, waiting, listing.with_manifest, **options)


def _without_outcome(platform: Platform, model: str, found: Iterable[Arrival]) -> list[Arrival]:
    known = platform.database.known_arrivals(model)
    return [arrival for arrival in found if arrival.key not in known]


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
                kept_bytes = arrivals.keep_bytes(arrival, platform.zone, store, platform.settings.most_bytes)
                platform.database.record_raw_batch(kept_bytes)
            except ArrivalChangedError as error:
                gone.append(str(error))
    batches = platform.database.raw_batches(model, wanted)
    missing = wanted - {batch.arrival.key for batch in batches}
    gone += [f"{key}: its file is no longer in the landing zone" for key in sorted(missing)]
    return batches, gone


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
        _remove_landed_with_forgotten(platform, batch)
        log.info("%s: %s, %s", batch.arrival.name, result.outcome.value, result.reason)
    return platform.database.outcomes(spec.name, wanted)


def _publish_batch(platform: Platform, spec: ModelSpec, batch: RawBatch) -> BatchResult:
    if batch.promised_sha256 not in {None, batch.sha256}:
        return _refuse_broken_promise(platform, batch)
    batch = _without_forgotten(platform, spec, batch)
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
    batch = _without_forgotten(platform, spec, batch)
    most = platform.settings.most_bytes
    return refuse_forgotten(platform, spec, validation.validate_file(Path(batch.path), spec, there.newest, most))


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


def _without_forgotten(platform: Platform, spec: ModelSpec, batch: RawBatch) -> RawBatch:
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


def _remove_landed_with_forgotten(platform: Platform, batch: RawBatch) -> None:
    """Remove an arrival's own file from the landing zone where rows had to be taken out of its bytes."""
    (kept,) = platform.database.raw_batches(batch.arrival.model, [batch.arrival.key])
    if kept.path != batch.path:
        remove_landed(platform, batch.arrival)


def remove_landed(platform: Platform, arrival: Arrival) -> None:
    """Remove a handled arrival's file from the landing zone; its other rows stand in the kept bytes."""
    for name in (arrival.name, arrival.name + arrivals.MANIFEST_SUFFIX):
        platform.zone.remove(arrival.model, name)


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
        examples=notes.get("examples", []),
    )


# The training dataset


def pin_dataset(platform: Platform, spec: ModelSpec) -> DatasetReport:
    """Pin the newest version of a model's table and look at it.

    Raises
    ------
    DatasetError
        Nothing was published yet.
    """
    dataset, rows = datasets.pin(platform.rows(spec.name), spec)
    platform.database.record_dataset(dataset)
    log.info("dataset version %s: %s rows, digest %s", dataset.version, f"{dataset.rows:,}", dataset.digest[:12])
    report = datasets.look_at(dataset, rows, training.target(rows, spec), spec)
    for problem in report.problems.values():
        log.info("dataset version %s is refused: %s", dataset.version, problem)
    return report


def golden_problems(platform: Platform, spec: ModelSpec) -> dict[str, str]:
    """Return what is wrong with the golden datasets that a model's author named, by name."""
    return golden.problems(platform.settings.golden, spec)


def profile_dataset(platform: Platform, spec: ModelSpec, dataset: DatasetVersion) -> profiles.Profile:
    """Describe a dataset version and its change against the one that was pinned before, as figures and as a page."""
    table, before = platform.rows(spec.name), platform.database.dataset_before(dataset)
    rows = datasets.read_version(table, spec, dataset.version)
    earlier = None if before is None else datasets.read_version(table, spec, before.version)
    profile = profiles.profile(rows, earlier, spec)
    page = profiles.draw(profile, dataset, before)
    durable.write(platform.profile_page(dataset), page.encode())
    return profile


# Candidates


def train_candidate(platform: Platform, spec: ModelSpec, *, reason: str, run_id: str | None = None) -> Candidate:
    """Train on the dataset version that was pinned last and store the candidate with its lineage.

    Raises
    ------
    EvidenceError
        No dataset version was pinned, or the one that was has problems.
    """
    pinned = platform.database.newest_dataset(spec.name)
    if pinned is None:
        raise EvidenceError(f"No dataset version of {spec.name!r} is pinned. Materialise training_dataset first.")
    rows = _pinned_rows(platform, spec, pinned)
    # Dagster's checks are how people see it; a run that starts behind them meets it here.
    problems = datasets.look_at(pinned, rows, training.target(rows, spec), spec).problems
    if problems:
        raise EvidenceError(
            f"Dataset version {pinned.version} of {spec.name!r} is refused: {'; '.join(problems.values())}."
        )
    rows, _ = datasets.split(rows, spec)
    lineage = Lineage(
        dataset_version=pinned.version,
        dataset_digest=pinned.digest,
        code_revision=provenance.code_revision(platform.settings.code_revision),
        lock_digest=provenance.lock_digest(),
        reason=reason,
    )
    identifier = f"{now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"
    folder = platform.settings.model_home(spec.name) / "candidates" / identifier
    digest = training.store(training.fit(rows, spec), folder)
    candidate = Candidate(
        id=identifier, model=spec.name, model_digest=digest, lineage=lineage, trained_at=now(), run_id=run_id
    )
    platform.database.record_candidate(candidate)
    log.info("candidate %s trained on %s rows", candidate.id, f"{len(rows):,}")
    return candidate


def _pinned_rows(platform: Platform, spec: ModelSpec, pinned: DatasetVersion) -> "pd.DataFrame":
    found, rows = datasets.pin(platform.rows(spec.name), spec, pinned.version)
    platform.database.record_dataset(found)  # refuses a version whose digest is no longer the pinned one
    return rows


def current_candidate(platform: Platform, model: str, run_id: str | None = None) -> Candidate:
    """Return the candidate of one Dagster run, else the newest one.

    Raises
    ------
    EvidenceError
        None was trained.
    """
    database = platform.database
    candidate = (database.newest_candidate(model, run_id) if run_id else None) or database.newest_candidate(model)
    if candidate is None:
        raise EvidenceError(f"No candidate of {model!r} was trained yet. Run `ml-platform retrain {model}`.")
    return candidate


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict with the picture and the MLflow run that show it. ``curves`` is None where there is none."""

    verdict: Verdict
    curves: bytes | None
    mlflow_run_id: str


def judge_candidate(platform: Platform, spec: ModelSpec, candidate: Candidate) -> Judgement:
    """Evaluate a candidate from its stored bytes and store its verdict, whatever it says.

    The evaluation reads the file that will be registered, digest first, and rows that the candidate has not seen.
    """
    model_file = platform.model_file(candidate)
    predictor = load(model_file, candidate.model_digest)
    pinned = DatasetVersion(
        model=spec.name,
        version=candidate.lineage.dataset_version,
        digest=candidate.lineage.dataset_digest,
        rows=0,
    )
    _, holdout = datasets.split(_pinned_rows(platform, spec, pinned), spec)
    features, labels = holdout[spec.features], training.target(holdout, spec)
    measured = evaluation.evaluate(predictor, features, labels, model_file)
    verdict = gates.judge(candidate, measured.metrics, spec)
    staging.keep_golden_requests(predictor, features, platform.candidate_folder(candidate))
    platform.database.record_verdict(verdict)
    curves = evaluation.draw_curves(measured)
    if curves is not None:
        durable.write(platform.candidate_folder(candidate) / CURVES, curves)
    run_id = _show_in_mlflow(platform, candidate, verdict, features, curves)
    show_champion(platform, spec.name)
    for result in verdict.results:
        log.info("gate %s: %s", result.outcome.value, result.why)
    return Judgement(verdict=verdict, curves=curves, mlflow_run_id=run_id)


def _show_in_mlflow(
    platform: Platform, candidate: Candidate, verdict: Verdict, features: "pd.DataFrame", curves: bytes | None
) -> str:
    extra = {"verdict.json": verdict.document.encode()}
    if curves is not None:
        extra[CURVES] = curves
    with run_files(platform.model_file(candidate), features.head(staging.GOLDEN_ROWS), extra) as files:
        run_id = platform.registry.record_run(candidate, verdict, files)
    platform.database.link_mlflow_run(candidate.id, run_id)
    return run_id


def curves_of(platform: Platform, candidate: Candidate) -> bytes | None:
    """Return the picture of a candidate's ROC and calibration curves as PNG; ``None`` where there is none."""
    path = platform.candidate_folder(candidate) / CURVES
    return path.read_bytes() if path.is_file() else None


def evidence(platform: Platform, spec: ModelSpec, candidate: Candidate, model_file: Path) -> Verdict:
    """Return a candidate's verdict if it is evidence for these very bytes, gates and dataset.

    Raises
    ------
    EvidenceError
        There is no verdict, it does not pass, or it speaks of something else; the message lists every reason.
    """
    verdict = platform.database.verdict_on(candidate.id)
    if verdict is None:
        raise EvidenceError(
            f"Candidate {candidate.id} of {spec.name!r} has no verdict. Materialise trained_model with its checks."
        )
    refusals = gates.refusals(verdict, candidate, spec, file_digest(model_file))
    if refusals:
        raise EvidenceError(
            f"Candidate {candidate.id} of {spec.name!r} is refused: {'; '.join(refusals)}. The champion stays."
        )
    return verdict


# Versions


def register_candidate(platform: Platform, spec: ModelSpec, candidate: Candidate) -> Registration:
    """Register a candidate whose evidence holds; set the alias ``challenger``.

    Raises
    ------
    EvidenceError
        Its evidence does not hold.
    """
    verdict = evidence(platform, spec, candidate, platform.model_file(candidate))
    known = platform.database.registration_of(candidate.id)
    if known is None:
        if candidate.mlflow_run_id is None:
            raise EvidenceError(f"Candidate {candidate.id} has no MLflow run. Run its gates again.")
        version = platform.registry.register(candidate, verdict, candidate.mlflow_run_id)
        known = Registration(model=spec.name, version=version, candidate=candidate.id)
        platform.database.record_registration(known)
    platform.registry.set_alias(spec.name, "challenger", known.version)
    log.info("registered as version %s", known.version)
    return known


def _registration(platform: Platform, candidate: Candidate) -> Registration:
    known = platform.database.registration_of(candidate.id)
    if known is None:
        raise EvidenceError(f"Candidate {candidate.id} is not registered. Materialise registered_version first.")
    return known


def stage_version(platform: Platform, candidate: Candidate) -> tuple[Registration, str | None]:
    """Test a registered version's bytes in a fresh process; set the alias ``staging`` if they hold.

    Returns
    -------
    registration : Registration
    problem : str or None
        What the test found; ``None`` if it passed.
    """
    registration = _registration(platform, candidate)
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        model_file = platform.registry.fetch(candidate.model, registration.version, Path(folder))
        golden = platform.candidate_folder(candidate)
        problem = staging.integration_test(model_file, candidate.model_digest, golden)
    if problem is None:
        platform.database.mark_staged(registration)
        platform.registry.set_alias(candidate.model, "staging", registration.version)
        log.info("version %s passed its integration test", registration.version)
    return registration, problem


def promote_version(
    platform: Platform, spec: ModelSpec, candidate: Candidate, *, reason: str, actor: str
) -> LedgerEntry:
    """Make a staged version champion: the evidence is read again, the ledger written, the alias follows.

    Raises
    ------
    EvidenceError
        It was not staged, or its evidence does not hold for the bytes in the registry.
    ConflictError
        Somebody else promoted meanwhile.
    """
    registration = _registration(platform, candidate)
    if not platform.database.is_staged(registration):
        raise EvidenceError(f"Version {registration.version} of {spec.name!r} has not passed its integration test.")
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        model_file = platform.registry.fetch(spec.name, registration.version, Path(folder))
        verdict = evidence(platform, spec, candidate, model_file)
    entry = promotion.promote(platform.database, registration, verdict, reason=reason, actor=actor)
    show_champion(platform, spec.name)
    log.info("version %s is champion", entry.version)
    return entry


def show_champion(platform: Platform, model: str) -> None:
    """Let the alias ``champion`` follow the ledger, also past a crash in between or another promoter."""
    entry, shown = platform.database.champion(model), None
    while entry is not None and entry != shown:
        if platform.registry.alias(model, "champion") != entry.version:
            platform.registry.set_alias(model, "champion", entry.version)
        entry, shown = platform.database.champion(model), entry


# What people ask


def _state_of(candidate: Candidate, verdict: Verdict | None, champion: LedgerEntry | None) -> str:
    if verdict is None:
        return "not judged"
    if not verdict.passed:
        return "refused"
    return "champion" if champion and champion.candidate == candidate.id else "passed, not promoted"


def status(platform: Platform) -> list[dict[str, Any]]:
    """Return, for every model that left a trace: champion, newest verdict, arrivals by outcome."""
    return [_status_of(platform, model) for model in platform.database.models()]


def _status_of(platform: Platform, model: str) -> dict[str, Any]:
    database = platform.database
    candidate = database.newest_candidate(model)
    verdict = database.verdict_on(candidate.id) if candidate else None
    champion = database.champion(model)
    return {
        "model": model,
        "champion": champion.version if champion else None,
        "promoted_at": champion.recorded_at.isoformat() if champion else None,
        "arrivals": dict(Counter(row["outcome"] for row in database.arrival_outcomes(model))),
        "new_rows": platform.new_rows(model),
        "last_run": {
            "state": _state_of(candidate, verdict, champion),
            "candidate": candidate.id,
            "trained_at": candidate.trained_at.isoformat(),
            "reason": candidate.lineage.reason,
            "dataset_version": candidate.lineage.dataset_version,
            "dataset_digest": candidate.lineage.dataset_digest,
            "reproducible": candidate.forgotten_at is None,
        }
        if candidate
        else None,
        "gates": [{"gate": r.condition, "value": r.value, "result": r.outcome.value} for r in verdict.results]
        if verdict
        else [],
    }
