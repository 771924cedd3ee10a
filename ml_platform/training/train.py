"""Train a candidate on the pinned dataset version."""

import json
import logging
import uuid
from datetime import datetime
from typing import TYPE_CHECKING

from ml_platform.data import dataset_checks, datasets
from ml_platform.errors import EvidenceError
from ml_platform.model_spec import ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.canonical import now
from ml_platform.records.data import DatasetVersion
from ml_platform.records.verdict import Candidate, Lineage
from ml_platform.storage import atomic_files
from ml_platform.system import memory
from ml_platform.training import fit, provenance

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("ml_platform")

ENVIRONMENT = "environment.json"


def train_candidate(
    platform: Platform,
    spec: ModelSpec,
    *,
    reason: str,
    run_id: str | None = None,
    actor: str | None = None,
    trained_by: str | None = None,
    requested_at: datetime | None = None,
) -> Candidate:
    """Train on the dataset version that was pinned last, and store the candidate with its lineage.

    Parameters
    ----------
    platform : Platform
    spec : ModelSpec
    reason : str
        The reason of the retraining: ``schedule``, ``arrival``, ``drift``, ``labels`` or ``manual: …``.
    run_id : str or None
        Id of the Dagster run that trains; ``None`` outside Dagster.
    actor : str or None
        The person who requested the training, as the request claims, who must not approve the candidate; ``None`` for a
        trigger of the platform.
    trained_by : str or None
        The operating system's user of this process, who must not approve it either; ``None`` outside Dagster.
    requested_at : datetime or None
        Time of the request; ``None`` is now.

    Raises
    ------
    EvidenceError
        No dataset version is pinned, or the pinned one fails its checks.
    OutOfMemoryError
        Fitting needs more memory than there is, or than the deployment allows.
    """
    requested_at = requested_at or now()
    pinned, rows = _load_training_rows(platform, spec)
    lineage = Lineage(
        dataset_version=pinned.version,
        dataset_digest=pinned.digest,
        code_revision=provenance.code_revision(platform.settings.code_revision),
        lock_digest=provenance.lock_digest(),
        reason=reason,
    )
    name = f"{now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"
    folder = platform.settings.model_home(spec.name) / "candidates" / name
    with memory.limit_memory(platform.settings.training_memory_bytes):
        pipeline = fit.fit(rows, spec)
    digest = fit.store(pipeline, folder)
    atomic_files.write(folder / ENVIRONMENT, json.dumps(provenance.environment()).encode())
    candidate = Candidate(
        id=name,
        model=spec.name,
        model_digest=digest,
        lineage=lineage,
        trained_at=now(),
        run_id=run_id,
        actor=actor,
        trained_by=trained_by,
        requested_at=requested_at,
    )
    platform.database.record_candidate(candidate)
    platform.database.record_dataset(pinned)  # refuses a version from which rows were erased during the training
    log.info("candidate %s trained on %s rows", candidate.id, f"{len(rows):,}")
    return candidate


def _load_training_rows(platform: Platform, spec: ModelSpec) -> "tuple[DatasetVersion, pd.DataFrame]":
    """Return the dataset version that was pinned last, and its training rows; raise if they fail their checks."""
    pinned = platform.database.newest_dataset(spec.name)
    # guard: no-dataset
    if pinned is None:
        raise EvidenceError(f"No dataset version of {spec.name!r} is pinned. Materialise training_dataset first.")
    rows = pinned_rows(platform, spec, pinned)
    # Dagster's checks show these problems to users; this condition also stops a run that starts after the checks.
    problems = dataset_checks.build_dataset_report(pinned, rows, dataset_checks.target(rows, spec), spec).problems
    # guard: dataset-problems
    if problems:
        problem = "; ".join(problems.values())
        raise EvidenceError(f"Dataset version {pinned.version} of {spec.name!r} fails its checks: {problem}.")
    return pinned, datasets.split(rows, spec)[0]


def pinned_rows(platform: Platform, spec: ModelSpec, pinned: DatasetVersion) -> "pd.DataFrame":
    """Return the rows of a pinned dataset version, a DataFrame of shape (n_samples, n_columns).

    Raises
    ------
    ConflictError
        The rows are not those that were pinned.
    """
    current, rows = datasets.pin(platform.rows(spec.name), spec, pinned.version)
    platform.database.record_dataset(current)  # refuses a version whose digest is no longer the pinned one
    return rows


def current_candidate(platform: Platform, model: str, run_id: str | None = None) -> Candidate:
    """Return the candidate that a Dagster run trained or, without one, the model's newest candidate.

    Raises
    ------
    EvidenceError
        The model has no candidate.
    """
    database = platform.database
    candidate = (database.newest_candidate(model, run_id) if run_id else None) or database.newest_candidate(model)
    if candidate is None:
        raise EvidenceError(f"The model {model!r} has no candidate. Run `ml-platform retrain {model}`.")
    return candidate
