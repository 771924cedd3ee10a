"""From a passing candidate to the champion."""

import logging
import tempfile
from pathlib import Path

from ml_platform.errors import EvidenceError
from ml_platform.model_spec import ModelSpec
from ml_platform.records import Candidate, LedgerEntry, Registration
from ml_platform.stages import promotion, staging
from ml_platform.workflows.evidence import evidence
from ml_platform.workflows.platform import Platform

log = logging.getLogger("ml_platform")


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
