"""Roll back to an earlier champion, without training and without the registry."""

import logging
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ml_platform.database.decided import decided_candidate
from ml_platform.errors import DigestMismatchError, EvidenceError
from ml_platform.model_spec import ModelSpec
from ml_platform.models import discovery
from ml_platform.platform import Platform
from ml_platform.records.ledger import LedgerEntry, Registration
from ml_platform.records.verdict import Candidate
from ml_platform.release.ledger import decisions
from ml_platform.release.ledger.champions import champion_stack
from ml_platform.release.ledger.follow import log_in_file, require_sound_ledger, sync_alias
from ml_platform.release.promote import _tolerate_sync_failure, require_reason, staged_evidence
from ml_platform.release.rollout.traffic import store_plan
from ml_platform.storage.mlflow_registry import short_mlflow_timeouts
from ml_platform.storage.model_files import file_digest

log = logging.getLogger("ml_platform")


def roll_back(
    platform: Platform,
    model: str,
    *,
    to: int | None,
    reason: str,
    actor: str,
    details: dict[str, Any] | None = None,
    instead_of: int | None = None,
    show: bool = True,
    require_bytes: Callable[[Candidate], object] | None = None,
    load_spec: Callable[[str], ModelSpec] = discovery.load,
) -> LedgerEntry:
    """Make an earlier version champion again. If its bytes are stored on this host, MLflow is not needed.

    Parameters
    ----------
    platform : Platform
    model : str
    to : int or None
        The version; ``None`` is the previous champion, never a version that was rolled back.
    reason, actor : str
        Reason for the rollback, and the user or process that requests it.
    details : dict or None
        Measurements behind an automatic rollback, for the ledger; ``None`` if a person decides.
    instead_of : int or None
        Sequence of the ledger's decision to undo; ``None`` undoes the latest decision.
    show : bool
        True reads MLflow's anchor first and updates its alias now, which takes seconds; False leaves both to the
        registry's sensor.
    require_bytes : callable or None
        Raises a `DigestMismatchError` if the caller has no bytes of the target that match its digest. ``None`` looks
        for them on this host, then in MLflow.
    load_spec : callable
        Returns a model's ModelSpec by its name. It takes a second, and is called only for a target that never was
        champion, which must meet the conditions of a promotion.

    Raises
    ------
    EvidenceError
        There is no earlier champion, or the target never was champion and its evidence does not hold.
    DigestMismatchError
        Neither this host nor the registry has the target's bytes.
    ConflictError
        The target is champion already, or another process changed the ledger meanwhile.
    LedgerError
        The ledger, or the evidence of a decision, does not verify: nothing was written.
    """
    # guard: rollback-reason
    require_reason(reason)
    with short_mlflow_timeouts():  # without an answer, the log of heads is the only anchor
        # guard: rollback-ledger
        require_sound_ledger(platform, model, ask_mlflow=show)
    target, decision = _find_target(platform, model, to)
    # guard: former-champion
    if decision is not None:
        # guard: former-champion-bytes
        (require_bytes or partial(_require_bytes, platform, target))(decided_candidate(platform.database, decision))
        verdict_digest = decision.verdict_digest
    else:
        verdict = staged_evidence(platform, spec := load_spec(model), target)
        # guard: rollback-approval-declared
        if spec.approval_needed is not None:
            # guard: rollback-approval
            decisions.require_approval(platform.database, target, verdict, spec.approval_needed)
        verdict_digest = verdict.digest
    why: dict[str, Any] = {"reason": reason, "actor": actor, "details": details, "instead_of": instead_of}
    entry = decisions.roll_back(platform.database, target, verdict_digest, **why)
    log.info("version %s is champion again", entry.version)
    store_plan(platform, model)
    with _tolerate_sync_failure(model):
        log_in_file(platform, model)
        if show:
            sync_alias(platform, model)
    return entry


def _find_target(platform: Platform, model: str, to: int | None) -> tuple[Registration, LedgerEntry | None]:
    """Return the version to roll back to, and the last decision that made it champion; ``None`` if none did."""
    history = platform.database.history(model)
    decisions_by_version = {entry.version: entry for entry in history}
    # guard: rollback-without-champion
    if not history:
        raise EvidenceError(f"{model!r} never had a champion: there is nothing to roll back.")
    # no guard: selects the target
    if to is not None:
        target = platform.database.registration(model, to)
        # guard: rollback-to-missing-version
        if target is None:
            raise EvidenceError(f"There is no version {to} of {model!r}. Run: ml-platform history {model}.")
        return target, decisions_by_version.get(target.version)
    champions, _ = champion_stack(history)
    # guard: rollback-before-first-champion
    if len(champions) < 2:
        raise EvidenceError(
            f"{model!r} has no champion before version {champions[-1]}. Name a version: ml-platform rollback "
            f"{model} --to N --reason …"
        )
    entry = decisions_by_version[champions[-2]]
    return Registration(model=model, version=entry.version, candidate=entry.candidate), entry


def _require_bytes(platform: Platform, target: Registration, candidate: Candidate) -> None:
    """Refuse a version if neither this host nor the registry has the bytes that passed the gates."""
    copy = platform.model_file(candidate)
    # guard: local-bytes-missing, local-bytes-changed
    if copy.is_file() and file_digest(copy) == candidate.model_digest:
        return
    log.warning("this host's copy of version %s is missing or changed: reading the registry's", target.version)
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        model_file = platform.registry.fetch(target.model, target.version, Path(folder))
        # guard: registry-bytes-changed
        if file_digest(model_file) != candidate.model_digest:
            raise DigestMismatchError(
                f"Version {target.version} of {target.model!r} has other bytes than those that passed the gates, here "
                "and in the registry. It does not become champion. Name another version: --to N."
            )
