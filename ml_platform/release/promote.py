"""Promote a staged version to champion, after a person's approval if the model requires one."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ml_platform.errors import ConfigurationError, ConflictError, EvidenceError, RegistryError
from ml_platform.model_spec import ModelSpec
from ml_platform.platform import Platform
from ml_platform.records.ledger import GivenApproval, LedgerEntry, Person, Registration
from ml_platform.records.verdict import Candidate, Verdict
from ml_platform.release.evidence import evidence
from ml_platform.release.ledger import decisions
from ml_platform.release.ledger.follow import promotion_lock, require_sound_ledger, sync_registry
from ml_platform.release.register import _load_registration
from ml_platform.release.rollout.traffic import is_carried_out, store_plan, unfinished_rollout

log = logging.getLogger("ml_platform")


def promote_version(
    platform: Platform, spec: ModelSpec, candidate: Candidate, *, reason: str, actor: str
) -> LedgerEntry:
    """Make a staged version champion: verify its evidence again, append to the ledger, move the alias.

    The version is champion as soon as the ledger says so. If MLflow fails afterwards, its alias follows later.

    Raises
    ------
    ApprovalNeededError
        The version has no valid approval yet; the ledger records that it waits for one.
    EvidenceError
        It was not staged, its evidence does not hold for the bytes in the registry, or it was rolled back.
    RolloutUnderWayError
        Servers are still moving traffic to the current champion.
    ConflictError
        Another process is promoting, or promoted a version meanwhile.
    LedgerError
        The ledger does not verify.
    """
    registration = _load_registration(platform, candidate)
    with platform.database.locked(promotion_lock(spec.name)) as held:
        # guard: promotion-lock
        if not held:
            raise ConflictError(
                f"Another process is promoting a version of {spec.name!r}. Wait until it has finished (see: "
                f"ml-platform history {spec.name}), then try again."
            )
        try:
            # guard: promotion-ledger
            require_sound_ledger(platform, spec.name)
            verdict = staged_evidence(platform, spec, registration)
            unfinished = unfinished_rollout(platform, spec.name)
            entry = decisions.promote(
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
            store_plan(platform, spec.name)
        finally:  # MLflow and the anchors follow any entry that was appended
            with _tolerate_sync_failure(spec.name):
                sync_registry(platform, spec.name)
    return entry


@contextmanager
def _tolerate_sync_failure(model: str) -> Iterator[None]:
    """Log a failure of MLflow or of the log of heads instead of raising it: both follow the ledger later."""
    try:
        yield
    except (RegistryError, OSError) as error:
        message = str(error).partition(". ")[0]
        log.warning("the ledger of %s is written; MLflow and the anchors follow later: %s", model, message)


def staged_evidence(platform: Platform, spec: ModelSpec, registration: Registration) -> Verdict:
    """Return a staged version's verdict if it holds for the bytes in the registry.

    Raises
    ------
    EvidenceError
        The version was not staged, or its evidence does not hold.
    MissingInRegistryError
        The version or its bytes are not in the registry.
    """
    # guard: not-staged
    if not platform.database.is_staged(registration):
        raise EvidenceError(f"Version {registration.version} of {spec.name!r} has not passed its integration test.")
    candidate = platform.database.candidate(registration.candidate)
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        model_file = platform.registry.fetch(spec.name, registration.version, Path(folder))
        return evidence(platform, spec, candidate, model_file)


def approve_version(
    platform: Platform,
    spec: ModelSpec,
    version: int | None,
    person: Person,
    *,
    reason: str,
    verdict_digest: str | None = None,
) -> tuple[GivenApproval, LedgerEntry]:
    """Record a person's approval of a staged version's evidence, then promote the version.

    Parameters
    ----------
    platform : Platform
    spec : ModelSpec
    version : int or None
        ``None`` is the newest staged version.
    person : Person
        The approver, authenticated by the caller.
    reason : str
        Reason for the approval.
    verdict_digest : str or None
        Digest of the verdict that the person reviewed; ``None`` is the version's current verdict.

    Returns
    -------
    approval : GivenApproval
    entry : LedgerEntry
        The promotion.

    Raises
    ------
    ApprovalRefusedError
        The person may not approve: the author does not accept the authentication, or the person requested the
        training.
    ConfigurationError
        The model's versions are promoted without approval, or the reason is blank.
    EvidenceError, ConflictError, LedgerError
        As in `promote_version`; an approval that was recorded stays valid.
    """
    # guard: approval-not-declared
    if spec.approval_needed is None:
        raise ConfigurationError(
            f"{spec.name!r} declares approval='automatic': versions that pass its gates are promoted without approval."
        )
    # guard: approval-reason
    require_reason(reason)
    database = platform.database
    staged = database.newest_staged(spec.name) if version is None else database.registration(spec.name, version)
    # guard: approval-of-missing-version
    if staged is None:
        missing = "no version that passed its integration test" if version is None else f"no version {version}"
        raise EvidenceError(
            f"There is {missing} of {spec.name!r}. Train one: ml-platform retrain {spec.name} --reason …"
        )
    # guard: approval-ledger
    require_sound_ledger(platform, spec.name)
    verdict = staged_evidence(platform, spec, staged)
    # guard: approval-of-other-verdict
    if verdict_digest is not None and verdict.digest != verdict_digest:
        raise EvidenceError(
            f"--verdict must be the verdict on version {staged.version} of {spec.name!r}, {verdict.digest}. Got "
            f"{verdict_digest!r} instead: the evidence changed since it was reviewed. Nothing was approved."
        )
    approval = decisions.approve(database, staged, verdict, spec.approval_needed, person, reason=reason)
    log.info("version %s is approved by %s", staged.version, person.name)
    candidate = database.candidate(staged.candidate)
    entry = promote_version(platform, spec, candidate, reason=candidate.lineage.reason, actor=person.name)
    return approval, entry


def require_reason(reason: str) -> None:
    """Refuse a blank or unprintable reason.

    Raises
    ------
    ConfigurationError
        The reason is blank, or is not one line of printable text.
    """
    # guard: blank-reason, unprintable-reason
    if not reason.strip() or not reason.isprintable():
        raise ConfigurationError(f"--reason must say why, in one line of printable text. Got {reason!r} instead.")
