"""From published rows to a trained candidate."""

import json
import logging
import uuid
from typing import TYPE_CHECKING

from ml_platform import durable, memory, provenance
from ml_platform.errors import EvidenceError
from ml_platform.model_spec import ModelSpec
from ml_platform.records import Candidate, DatasetVersion, Lineage, now
from ml_platform.stages import datasets, golden, profiles, training
from ml_platform.stages.datasets import DatasetReport
from ml_platform.workflows.platform import Platform

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("ml_platform")

ENVIRONMENT = "environment.json"


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


def train_candidate(
    platform: Platform, spec: ModelSpec, *, reason: str, run_id: str | None = None, actor: str | None = None
) -> Candidate:
    """Train on the dataset version that was pinned last and store the candidate with its lineage.

    Parameters
    ----------
    platform : Platform
    spec : ModelSpec
    reason : str
        Why.
    run_id : str or None
        The Dagster run that trains; ``None`` outside Dagster.
    actor : str or None
        The person who asked, who cannot approve it; ``None`` where the platform trains by itself.

    Raises
    ------
    EvidenceError
        No dataset version was pinned, or the one that was has problems.
    OutOfMemoryError
        Fitting asked for more memory than there is, or than the deployment gives it.
    """
    pinned = platform.database.newest_dataset(spec.name)
    if pinned is None:
        raise EvidenceError(f"No dataset version of {spec.name!r} is pinned. Materialise training_dataset first.")
    rows = pinned_rows(platform, spec, pinned)
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
    with memory.limited(platform.settings.training_memory):
        pipeline = training.fit(rows, spec)
    digest = training.store(pipeline, folder)
    durable.write(folder / ENVIRONMENT, json.dumps(provenance.environment()).encode())
    candidate = Candidate(
        id=identifier,
        model=spec.name,
        model_digest=digest,
        lineage=lineage,
        trained_at=now(),
        run_id=run_id,
        actor=actor,
    )
    platform.database.record_candidate(candidate)
    platform.database.record_dataset(pinned)  # refuses one that lost somebody meanwhile
    log.info("candidate %s trained on %s rows", candidate.id, f"{len(rows):,}")
    return candidate


def pinned_rows(platform: Platform, spec: ModelSpec, pinned: DatasetVersion) -> "pd.DataFrame":
    """Return the rows of a pinned version.

    Raises
    ------
    ConflictError
        They are not those that were pinned.
    """
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
