"""From a passing candidate to the champion, and back."""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_platform.errors import ConfigurationError, ConflictError, DigestMismatchError, EvidenceError, RegistryError
from ml_platform.model_spec import ModelSpec
from ml_platform.predictor import file_digest
from ml_platform.records import Candidate, GivenApproval, LedgerEntry, Person, Registration, Verdict
from ml_platform.stages import promotion, registry, staging
from ml_platform.workflows.evidence import evidence
from ml_platform.workflows.ledger import (
    follow_ledger,
    is_shown,
    log_in_file,
    promotion_lock,
    require_sound_ledger,
)
from ml_platform.workflows.platform import Platform
from ml_platform.workflows.traffic import is_carried_out, keep_plan, unfinished_rollout

log = logging.getLogger("ml_platform")

# How long the alias waits for somebody else's promotion to end, in seconds.
WAIT_FOR_PROMOTION = 20.0


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
        taken = platform.database.version_numbers(spec.name)
        version = platform.registry.register(candidate, verdict, candidate.mlflow_run_id, taken)
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


def stage_version(
    platform: Platform, candidate: Candidate, *, most_ms: float | None = None
) -> tuple[Registration, str | None]:
    """Test a registered version's bytes in a fresh process; set the alias ``staging`` if they hold.

    Parameters
    ----------
    platform : Platform
    candidate : Candidate
    most_ms : float or None
        The bound of the time of one record through the real server, in milliseconds; ``None`` asks no server.

    Returns
    -------
    registration : Registration
    problem : str or None
        What the test found; ``None`` if it passed.
    """
    registration = _registration(platform, candidate)
    problem = integration_problem(platform, registration, most_ms=most_ms)
    if problem is None:
        platform.database.mark_staged(registration)
        platform.registry.set_alias(candidate.model, "staging", registration.version)
        log.info("version %s passed its integration test", registration.version)
    return registration, problem


def integration_problem(platform: Platform, registration: Registration, *, most_ms: float | None = None) -> str | None:
    """Say what the integration test finds wrong with a version's bytes in the registry; nothing is changed.

    Where a gate bounds the time of one record, they are served too, and asked through the real server.
    """
    candidate = platform.database.candidate(registration.candidate)
    golden = platform.candidate_folder(candidate)
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        model_file = platform.registry.fetch(candidate.model, registration.version, Path(folder))
        problem = staging.integration_test(model_file, candidate.model_digest, golden)
        if problem is None and most_ms is not None:
            problem = staging.server_problem(model_file, candidate, golden, most_ms)
    if problem is not None:
        return problem
    shown = platform.registry.signature(candidate.model, registration.version)
    return staging.signature_problem(shown, registry.signature_of(staging.golden_requests(golden)))


def promote_version(
    platform: Platform, spec: ModelSpec, candidate: Candidate, *, reason: str, actor: str
) -> LedgerEntry:
    """Make a staged version champion: the evidence is read again, the ledger written, the alias follows.

    Once the ledger names it, it is champion: an MLflow that does not answer from then on shows it later.

    Raises
    ------
    ApprovalNeededError
        Nobody who counts has approved it yet; the ledger says that it waits.
    EvidenceError
        It was not staged, its evidence does not hold for the bytes in the registry, or it was rolled back.
    RolloutUnderWayError
        Servers are still carrying traffic to the champion.
    ConflictError
        Somebody else promotes, or promoted meanwhile.
    LedgerError
        The ledger does not verify.
    """
    registration = _registration(platform, candidate)
    with _promoting(platform, spec.name):
        require_sound_ledger(platform, spec.name)
        verdict = staged_evidence(platform, spec, registration)
        unfinished = unfinished_rollout(platform, spec.name)
        entry = promotion.promote(
            platform.database,
            registration,
            verdict,
            reason=reason,
            actor=actor,
            needed=spec.approval_needed,
            rollout=spec.rollout,
            unfinished=unfinished,
            carried_out=unfinished is not None and is_carried_out(platform, unfinished),
        )
        log.info("version %s is champion", entry.version)
        keep_plan(platform, spec.name)
    return entry


@contextmanager
def _promoting(platform: Platform, model: str) -> Iterator[None]:
    """Let one process at a time promote a model; whatever it wrote, MLflow and the anchors follow."""
    with platform.database.locked(promotion_lock(model)) as held:
        if not held:
            raise ConflictError(
                f"Somebody else is promoting {model!r} at this moment. Look at `ml-platform history {model}` when they "
                "are done, and try again."
            )
        try:
            yield
        finally:
            with _later(model):
                follow_ledger(platform, model)


@contextmanager
def _later(model: str) -> Iterator[None]:
    """Report an MLflow or a log of heads that did not answer: the ledger has decided, they follow later."""
    try:
        yield
    except (RegistryError, OSError) as error:
        what = str(error).partition(". ")[0]
        log.warning("the ledger of %s stands, and what shows it follows later: %s", model, what)


def staged_evidence(platform: Platform, spec: ModelSpec, registration: Registration) -> Verdict:
    """Return the verdict on a version, if it was staged and the verdict holds for the bytes in the registry.

    Raises
    ------
    EvidenceError
        It was not staged, or its evidence does not hold.
    MissingInRegistryError
        The version or its bytes are not in the registry.
    """
    if not platform.database.is_staged(registration):
        raise EvidenceError(f"Version {registration.version} of {spec.name!r} has not passed its integration test.")
    candidate = platform.database.candidate(registration.candidate)
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        model_file = platform.registry.fetch(spec.name, registration.version, Path(folder))
        return evidence(platform, spec, candidate, model_file)


def show_champion(platform: Platform, model: str) -> None:
    """Let alias, confirmation and anchors follow the ledger, also past a crash in between or another promoter.

    Another process that promotes does the same: it is waited for, and then left to it.

    Raises
    ------
    LedgerError
        The ledger does not verify.
    RegistryError
        MLflow cannot be asked.
    """
    if is_shown(platform, model):
        return
    with platform.database.locked(promotion_lock(model), WAIT_FOR_PROMOTION) as held:
        if held:
            follow_ledger(platform, model)
        else:
            log.warning("somebody else promotes %s: MLflow is left to them", model)


# Approval


def approve_version(
    platform: Platform,
    spec: ModelSpec,
    version: int | None,
    person: Person,
    *,
    reason: str,
    verdict_digest: str | None = None,
) -> tuple[GivenApproval, LedgerEntry]:
    """Record a person's approval of a staged version's evidence, then promote it.

    Parameters
    ----------
    platform : Platform
    spec : ModelSpec
    version : int or None
        ``None`` is the newest version that was staged.
    person : Person
        Who approves, authenticated by the caller.
    reason : str
        Why.
    verdict_digest : str or None
        The verdict that the person saw; ``None`` is the one that the version has now.

    Returns
    -------
    approval : GivenApproval
    entry : LedgerEntry
        The promotion.

    Raises
    ------
    ApprovalRefusedError
        The person does not count, or asked for the training.
    ConfigurationError
        The model's versions are promoted without approval.
    EvidenceError, ConflictError, LedgerError
        As `promote_version`; what was approved stays so.
    """
    if spec.approval_needed is None:
        raise ConfigurationError(f"{spec.name!r} declares approval='automatic': what passes its gates is promoted.")
    require_reason(reason)
    registration = _staged(platform, spec.name, version)
    require_sound_ledger(platform, spec.name)
    verdict = staged_evidence(platform, spec, registration)
    if verdict_digest is not None and verdict.digest != verdict_digest:
        raise EvidenceError(
            f"--verdict must be the verdict on version {registration.version} of {spec.name!r}, {verdict.digest}. Got "
            f"{verdict_digest!r} instead: what was looked at is not what would be promoted. Nothing was approved."
        )
    approval = promotion.approve(platform.database, registration, verdict, spec.approval_needed, person, reason=reason)
    log.info("version %s is approved by %s", registration.version, person.name)
    candidate = platform.database.candidate(registration.candidate)
    entry = promote_version(platform, spec, candidate, reason=candidate.lineage.reason, actor=person.name)
    return approval, entry


def _staged(platform: Platform, model: str, version: int | None) -> Registration:
    database = platform.database
    found = database.newest_staged(model) if version is None else database.registration(model, version)
    if found is None:
        what = "no version that passed its integration test" if version is None else f"no version {version}"
        raise EvidenceError(f"There is {what} of {model!r}. Train one: ml-platform retrain {model} --reason …")
    return found


def require_reason(reason: str) -> None:
    """Refuse a reason that says nothing.

    Raises
    ------
    ConfigurationError
        It is blank, or no text.
    """
    if not reason.strip() or not reason.isprintable():
        raise ConfigurationError(f"--reason must say why, in one line of printable text. Got {reason!r} instead.")


# Rollback


def roll_back(
    platform: Platform,
    model: str,
    declared: Callable[[], ModelSpec],
    *,
    to: int | None,
    reason: str,
    actor: str,
    details: dict[str, Any] | None = None,
    instead_of: int | None = None,
    show: bool = True,
) -> LedgerEntry:
    """Make an earlier version champion again; neither training nor MLflow is needed where its bytes are kept here.

    Parameters
    ----------
    platform : Platform
    model : str
    declared : callable
        Returns what the model's author declared. Reading it takes seconds: it is asked only where the target never
        was champion, and then has to meet what a promotion has to meet.
    to : int or None
        The version; ``None`` is the champion before the present one, never one that was rolled back.
    reason, actor : str
        Why, and who asked.
    details : dict or None
        The figures that decided, for the ledger; ``None`` where a person did.
    instead_of : int or None
        Sequence of the ledger's decision that is taken back; ``None`` takes back whatever stands.
    show : bool
        Whether MLflow is told at once, which takes seconds; if not, the registry's sensor tells it.

    Raises
    ------
    EvidenceError
        There is nothing to return to, or the target never was champion and its evidence does not hold.
    DigestMismatchError
        Neither this host nor the registry has the target's bytes.
    ConflictError
        The target is champion already, or somebody else changed the ledger meanwhile.
    LedgerError
        The ledger does not verify.
    """
    require_reason(reason)
    require_sound_ledger(platform, model, ask_mlflow=False)
    history = platform.database.history(model)
    target = _target(platform, model, history, to)
    earlier = [entry for entry in history if entry.version == target.version]
    if earlier:
        _require_bytes(platform, target)
        verdict_digest = earlier[-1].verdict_digest
    else:
        verdict_digest = _never_champion(platform, declared(), target)
    said: dict[str, Any] = {"reason": reason, "actor": actor, "details": details, "instead_of": instead_of}
    entry = promotion.roll_back(platform.database, target, verdict_digest, **said)
    log.info("version %s is champion again", entry.version)
    keep_plan(platform, model)
    _show_return(platform, model, in_mlflow=show)
    return entry


def _show_return(platform: Platform, model: str, *, in_mlflow: bool) -> None:
    with _later(model):
        log_in_file(platform, model)
        if in_mlflow:
            show_champion(platform, model)


def _target(platform: Platform, model: str, history: list[LedgerEntry], to: int | None) -> Registration:
    if not history:
        raise EvidenceError(f"{model!r} never had a champion: there is nothing to roll back.")
    if to is not None:
        found = platform.database.registration(model, to)
        if found is None:
            raise EvidenceError(f"There is no version {to} of {model!r}. Look at `ml-platform history {model}`.")
        return found
    champions, _ = promotion.standing(history)
    if len(champions) < 2:
        raise EvidenceError(
            f"No champion of {model!r} stands before version {champions[-1]}. Name a version: ml-platform rollback "
            f"{model} --to N --reason …"
        )
    entry = next(entry for entry in reversed(history) if entry.version == champions[-2])
    return Registration(model=model, version=entry.version, candidate=entry.candidate)


def _require_bytes(platform: Platform, target: Registration) -> None:
    """Refuse a version whose gated bytes are neither kept here nor, where they are not, in the registry."""
    candidate = platform.database.candidate(target.candidate)
    kept = platform.model_file(candidate)
    if kept.is_file() and file_digest(kept) == candidate.model_digest:
        return
    log.warning("the kept bytes of version %s are gone or changed: the registry is asked", target.version)
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        model_file = platform.registry.fetch(target.model, target.version, Path(folder))
        if file_digest(model_file) != candidate.model_digest:
            raise DigestMismatchError(
                f"Version {target.version} of {target.model!r} has other bytes than those that were gated, here and in "
                "the registry. It does not become champion. Name another: --to N."
            )


def _never_champion(platform: Platform, spec: ModelSpec, target: Registration) -> str:
    """Return the digest of the verdict on a version that must meet what a promotion has to meet."""
    verdict = staged_evidence(platform, spec, target)
    if spec.approval_needed is not None:
        promotion.require_approval(platform.database, target, verdict, spec.approval_needed)
    return verdict.digest
