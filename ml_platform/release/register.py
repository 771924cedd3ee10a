"""Register a candidate with a passing verdict, then stage it after its integration test."""

import logging
import tempfile
from pathlib import Path

from ml_platform.errors import RESTORE, EvidenceError
from ml_platform.inference import golden_requests
from ml_platform.model_spec import ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.ledger import Registration
from ml_platform.records.verdict import Candidate
from ml_platform.release import integration_test
from ml_platform.release.evidence import evidence
from ml_platform.storage import mlflow_registry

log = logging.getLogger("ml_platform")


def register_candidate(platform: Platform, spec: ModelSpec, candidate: Candidate) -> Registration:
    """Register a candidate whose evidence holds, and set the alias ``challenger``; return the registration.

    A candidate that is registered already keeps its version.

    Raises
    ------
    EvidenceError
        The candidate's evidence does not hold.
    """
    verdict = evidence(platform, spec, candidate, platform.model_file(candidate))
    registration = platform.database.find_registration(candidate.id)
    if registration is None:
        # no guard: the evidence requires the run
        if candidate.mlflow_run_id is None:
            raise EvidenceError(f"Candidate {candidate.id} has no MLflow run. Run its gates again.")
        taken = platform.database.version_numbers(spec.name)
        version = platform.registry.register(candidate, verdict, candidate.mlflow_run_id, taken)
        registration = Registration(model=spec.name, version=version, candidate=candidate.id)
        platform.database.record_registration(registration)
    platform.registry.set_alias(spec.name, "challenger", registration.version)
    log.info("registered as version %s", registration.version)
    return registration


def _load_registration(platform: Platform, candidate: Candidate) -> Registration:
    registration = platform.database.find_registration(candidate.id)
    # guard: not-registered
    if registration is None:
        raise EvidenceError(f"Candidate {candidate.id} is not registered. Materialise registered_version first.")
    # guard: registration-of-other-model
    if registration.model != candidate.model:
        raise EvidenceError(
            f"The registration of candidate {candidate.id} of {candidate.model!r} names the model "
            f"{registration.model!r}: it was changed. {RESTORE}"
        )
    return registration


def stage_version(
    platform: Platform, candidate: Candidate, *, max_ms: float | None = None
) -> tuple[Registration, str | None]:
    """Test a registered version's bytes in a fresh process; set the alias ``staging`` if they pass.

    Parameters
    ----------
    platform : Platform
    candidate : Candidate
    max_ms : float or None
        Maximum time of one record through the real server, in milliseconds; ``None`` starts no server.

    Returns
    -------
    registration : Registration
    problem : str or None
        The failure; ``None`` if the test passed.
    """
    registration = _load_registration(platform, candidate)
    problem = integration_problem(platform, registration, max_ms=max_ms)
    if problem is None:
        platform.database.mark_staged(registration)
        platform.registry.set_alias(candidate.model, "staging", registration.version)
        log.info("version %s passed its integration test", registration.version)
    return registration, problem


def integration_problem(platform: Platform, registration: Registration, *, max_ms: float | None = None) -> str | None:
    """Run the integration test on a version's bytes in the registry; return the failure, ``None`` if it passed.

    Nothing is changed. If `max_ms` is given, the real server is started too, and must answer one record within it.
    """
    candidate = platform.database.candidate(registration.candidate)
    golden = platform.candidate_folder(candidate)
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        model_file = platform.registry.fetch(candidate.model, registration.version, Path(folder))
        problem = integration_test.integration_test(model_file, candidate.model_digest, golden)
        if problem is None and max_ms is not None:
            problem = integration_test.server_problem(model_file, candidate, golden, max_ms)
    # guard: failed-integration-test
    if problem is not None:
        return problem
    registered = platform.registry.signature(candidate.model, registration.version)
    return integration_test.signature_problem(
        registered, mlflow_registry.build_signature(golden_requests.golden_requests(golden))
    )
