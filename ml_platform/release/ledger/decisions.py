"""Entries of the ledger: approvals, promotions, rollbacks and replacements. The ledger defines the champion."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

from ml_platform.database import PlatformDatabase
from ml_platform.errors import (
    ApprovalNeededError,
    ApprovalRefusedError,
    ConflictError,
    EvidenceError,
    RolloutUnderWayError,
)
from ml_platform.model_spec import Approval, Rollout
from ml_platform.records.canonical import now
from ml_platform.records.ledger import (
    GENESIS,
    Action,
    GivenApproval,
    LedgerEntry,
    Person,
    Registration,
    approval_audience,
)
from ml_platform.records.traffic import TrafficPlan
from ml_platform.records.verdict import Candidate, Verdict
from ml_platform.release.ledger.champions import FROM_VERSION, ROLLOUT, champion_stack

__all__ = [
    "approve",
    "champion_stack",
    "confirm",
    "given_approval",
    "is_confirmed",
    "promote",
    "replace_version",
    "require_approval",
    "roll_back",
    "same_name",
]


def promote(
    database: PlatformDatabase,
    registration: Registration,
    verdict: Verdict,
    *,
    reason: str,
    actor: str,
    needed: Approval | None = None,
    rollout: Rollout | None = None,
    unfinished: TrafficPlan | None = None,
    carried_out: bool = False,
) -> LedgerEntry:
    """Append a promotion to the ledger; return the entry.

    Promoting the champion again changes nothing: the entry that made it champion is returned.

    Parameters
    ----------
    database : Database
    registration : Registration
        The version to promote.
    verdict : Verdict
        The version's evidence, just verified by the caller.
    reason, actor : str
        Reason for the promotion, and the user or process that requests it.
    needed : Approval or None
        Rules for the approval; ``None`` if none is required.
    rollout : Rollout or None
        The declared rollout, recorded in the entry for servers, which read no ModelSpec. ``None`` moves all traffic at
        once.
    unfinished : TrafficPlan or None
        The plan of an unfinished rollout to the current champion; ``None`` if the champion serves all traffic.
    carried_out : bool
        True if a live server follows the unfinished plan. If False, the new champion succeeds the version that still
        serves traffic.

    Raises
    ------
    ApprovalNeededError
        The verdict has no valid approval; the ledger records that the version waits for one.
    RolloutUnderWayError
        Servers are carrying out another rollout.
    ConflictError
        Another process promoted a version meanwhile, or the champion was trained later or on newer rows.
    EvidenceError
        The version was rolled back; or it has the bytes, or the rows, code and lock, of a version that was, and no
        person asked for it since.
    """
    head, champion = database.ledger_head(registration.model), database.champion(registration.model)
    # guard: promotion-of-champion
    if champion is not None and champion.version == registration.version:
        return champion
    # guard: promotion-over-champion
    if champion is not None:
        # guard: promotion-after-rollback
        _require_not_rolled_back(database, registration)
        # guard: promotion-of-older-candidate
        _require_newer(database, registration, champion)
    details: dict[str, Any] = {ROLLOUT: rollout.model_dump(mode="json")} if rollout else {}
    if rollout and champion:
        details[FROM_VERSION] = unfinished.stable if unfinished else champion.version
    # guard: promotion-approval
    if needed is not None:
        details["approval"] = require_approval(database, registration, verdict, needed).digest
    # guard: unfinished-rollout
    if unfinished is not None and carried_out:
        raise RolloutUnderWayError(
            f"Traffic of {registration.model!r} is moving from version {unfinished.stable} to {unfinished.successor} "
            f"({unfinished.mode}, step {unfinished.step + 1}): version {registration.version} must wait. To see it: "
            f"ml-platform rollout status {registration.model}. To end it: ml-platform rollback {registration.model} …"
        )
    entry = _entry(
        Action.PROMOTION, registration, verdict.digest, head, champion, reason=reason, actor=actor, details=details
    )
    database.append_to_ledger(entry)
    return entry


def _entry(
    action: Action,
    registration: Registration,
    verdict_digest: str,
    head: LedgerEntry | None,
    champion: LedgerEntry | None,
    *,
    reason: str,
    actor: str,
    details: dict[str, Any] | None = None,
) -> LedgerEntry:
    """Create an entry after `head`, which the caller reads before its checks.

    If another process appends an entry in the meantime, the new entry is refused.
    """
    return LedgerEntry(
        model=registration.model,
        sequence=head.sequence + 1 if head else 1,
        action=action.value,
        version=registration.version,
        # no guard: number of the previous champion
        previous_version=champion.version if champion else None,
        candidate=registration.candidate,
        verdict_digest=verdict_digest,
        reason=reason,
        actor=actor,
        details=details or {},
        recorded_at=now(),
        previous_digest=head.digest if head else GENESIS,
    )


def _require_newer(database: PlatformDatabase, registration: Registration, champion: LedgerEntry) -> None:
    """Refuse a candidate older than the champion's: its run was slow, or was restarted after its gates."""
    ours, theirs = database.candidate(registration.candidate), database.candidate(champion.candidate)
    # guard: older-candidate
    if (ours.lineage.dataset_version, ours.trained_at) < (theirs.lineage.dataset_version, theirs.trained_at):
        raise ConflictError(
            f"Version {champion.version} of {registration.model!r} is champion and was trained on newer rows, or "
            f"later, than version {registration.version}. Retrain instead: ml-platform retrain {registration.model}."
        )


# Rollback


def roll_back(
    database: PlatformDatabase,
    target: Registration,
    verdict_digest: str,
    *,
    reason: str,
    actor: str,
    details: dict[str, Any] | None = None,
    instead_of: int | None = None,
) -> LedgerEntry:
    """Append a rollback to an earlier version to the ledger; return the entry.

    Parameters
    ----------
    database : Database
    target : Registration
        The version that becomes champion; the caller has verified its bytes.
    verdict_digest : str
        Digest of the version's evidence.
    reason, actor : str
        Reason for the rollback, and the user or process that requests it.
    details : dict or None
        Measurements behind an automatic rollback; ``None`` if a person decides.
    instead_of : int or None
        Sequence of the decision to undo; ``None`` undoes the latest one.

    Raises
    ------
    ConflictError
        The version is champion already, or another process changed the ledger meanwhile.
    """
    head, champion = database.ledger_head(target.model), database.champion(target.model)
    # guard: rollback-to-champion
    if champion is not None and champion.version == target.version:
        raise ConflictError(f"Version {target.version} of {target.model!r} is champion already: nothing to roll back.")
    # guard: rollback-of-older-decision
    if instead_of is not None and (champion is None or champion.sequence != instead_of):
        raise ConflictError(
            f"The ledger of {target.model!r} has a newer decision than entry {instead_of}: nothing is rolled back."
        )
    entry = _entry(Action.ROLLBACK, target, verdict_digest, head, champion, reason=reason, actor=actor, details=details)
    database.append_to_ledger(entry)
    return entry


def replace_version(
    database: PlatformDatabase, champion: LedgerEntry, version: int, *, reason: str, actor: str
) -> LedgerEntry:
    """Record the champion's new version number in MLflow in the ledger; return the entry.

    Candidate, verdict and place among the champions stay the same.

    Parameters
    ----------
    database : Database
    champion : LedgerEntry
        The current decision.
    version : int
        The new number; the caller has verified that it holds the champion's bytes.
    reason, actor : str
        Reason for the replacement, and the user or process that requests it.

    Raises
    ------
    ConflictError
        Another process changed the ledger meanwhile.
    """
    head = database.ledger_head(champion.model)
    registration = Registration(model=champion.model, version=version, candidate=champion.candidate)
    entry = _entry(
        Action.REPLACEMENT,
        registration,
        champion.verdict_digest,
        head,
        champion,
        reason=reason,
        actor=actor,
        details={"replaces": champion.version},
    )
    database.append_to_ledger(entry)
    return entry


def _require_not_rolled_back(database: PlatformDatabase, registration: Registration) -> None:
    """Refuse a version that was rolled back, and its like from a retraining that was not asked for since by a person.

    Its like has the same bytes, or the same rows, code and lock.
    """
    history = database.history(registration.model)
    _, versions = champion_stack(history)
    ours = database.candidate(registration.candidate)
    is_requested = _is_requested_since_rollback(ours, history)
    for entry in history:
        # guard: version-not-rolled-back
        if entry.version not in versions:
            continue
        theirs = database.candidate(entry.candidate)
        # guard: rolled-back-version
        if entry.version == registration.version:
            refusal = f"Version {entry.version} of {registration.model!r} was rolled back"
        # guard: rolled-back-making
        elif not is_requested and _same_making(ours, theirs):
            refusal = (
                f"Version {registration.version} of {registration.model!r} was made from the same rows, code and lock "
                f"as version {entry.version}, which was rolled back"
            )
        # guard: rolled-back-bytes
        elif not is_requested and ours.model_digest == theirs.model_digest:
            refusal = (
                f"Version {registration.version} of {registration.model!r} has the same bytes as version "
                f"{entry.version}, which was rolled back"
            )
        else:
            continue
        raise EvidenceError(
            f"{refusal}: it is not promoted automatically. To bring it back, run: ml-platform rollback "
            f"{registration.model} --to {registration.version} --reason …"
        )


def _is_requested_since_rollback(candidate: Candidate, history: Sequence[LedgerEntry]) -> bool:
    """Return True if a person asked for a training after the last rollback; False if the time is unknown."""
    times = [entry.recorded_at for entry in history if entry.action == Action.ROLLBACK]
    is_manual = candidate.lineage.reason.startswith("manual")
    # guard: request-by-hand, unknown-request-time, request-since-rollback
    return is_manual and candidate.requested_at is not None and all(candidate.requested_at > time for time in times)


def _same_making(one: Candidate, other: Candidate) -> bool:
    # guard: same-making
    return replace(one.lineage, reason="", dataset_version=0) == replace(other.lineage, reason="", dataset_version=0)


def confirm(database: PlatformDatabase, decision: LedgerEntry) -> bool:
    """Record once in the ledger that MLflow's alias shows a decision.

    Returns
    -------
    bool
        True if it is recorded. False if the ledger changed meanwhile: the alias must be moved again.
    """
    head = database.ledger_head(decision.model)
    # guard: overtaken-confirmation
    if database.champion(decision.model) != decision:
        return False
    # no guard: a second confirmation repeats the first
    if is_confirmed(database, decision):
        return True
    registration = Registration(model=decision.model, version=decision.version, candidate=decision.candidate)
    entry = _entry(
        Action.CONFIRMATION,
        registration,
        decision.verdict_digest,
        head,
        decision,
        reason=f"the alias champion shows version {decision.version}",
        actor="ml-platform",
        details={"decision": decision.sequence},
    )
    try:
        database.append_to_ledger(entry)
    except ConflictError:
        return False
    return True


def is_confirmed(database: PlatformDatabase, decision: LedgerEntry) -> bool:
    """Return True if the ledger records that MLflow's alias has shown a decision."""
    return any(entry.details.get("decision") == decision.sequence for entry in database.ledger(decision.model))


# Approvals


def approve(
    database: PlatformDatabase,
    registration: Registration,
    verdict: Verdict,
    needed: Approval,
    person: Person,
    *,
    reason: str,
) -> GivenApproval:
    """Append a person's approval of a verdict to the ledger; return the approval.

    It is valid until it expires, for this verdict only. It can be used more than once, but cannot bring back a version
    that was rolled back.

    Parameters
    ----------
    database : Database
    registration : Registration
        The approved version.
    verdict : Verdict
        The version's evidence, just verified by the caller.
    needed : Approval
        Rules for the approval.
    person : Person
        The approver, authenticated by the caller.
    reason : str
        Reason for the approval.

    Raises
    ------
    ApprovalRefusedError
        The author does not accept the person's authentication, or the person requested the training.
    ConflictError
        Another process changed the ledger meanwhile.
    """
    audience = approval_audience(registration.model, registration.version, verdict.digest)
    refusal = _refusal(person, database.candidate(registration.candidate), needed, audience)
    # guard: refused-approval
    if refusal:
        raise ApprovalRefusedError(f"{refusal}. Nothing was approved.")
    head, champion = database.ledger_head(registration.model), database.champion(registration.model)
    entry = _entry(Action.APPROVAL, registration, verdict.digest, head, champion, reason=reason, actor=person.name)
    expires_at = entry.recorded_at + timedelta(hours=needed.expires_after_hours)
    entry = replace(entry, details={**asdict(person), "expires_at": expires_at.isoformat()})
    database.append_to_ledger(entry)
    return given_approval(entry)


def given_approval(entry: LedgerEntry) -> GivenApproval:
    """Read an approval from an entry of the ledger."""
    fields = dict(entry.details)
    expires_at = datetime.fromisoformat(fields.pop("expires_at"))
    return GivenApproval(
        version=entry.version,
        verdict_digest=entry.verdict_digest,
        person=Person(**fields),
        reason=entry.reason,
        approved_at=entry.recorded_at,
        expires_at=expires_at,
        digest=entry.digest,
    )


def _refusal(person: Person, candidate: Candidate, needed: Approval, audience: str) -> str | None:
    """Return the reason to refuse a person's approval of a candidate; ``None`` if it is valid.

    `audience` is the one for which a token of GitHub must have been issued.
    """
    # guard: approval-authentication
    if person.authenticated_by not in needed.authenticated_by:
        ways = ", ".join(needed.authenticated_by)
        return f"The author of {candidate.model!r} accepts approvals by {ways}. Got {person.authenticated_by} instead"
    is_github = person.authenticated_by == "github_environment"
    # guard: approval-audience
    if is_github and person.identity.get("aud") != audience:
        return f"GitHub's token of {person.name} was issued for another approval than {audience}"
    # no guard: a trigger asked for the training
    if candidate.actor is None:
        return None
    # guard: self-approval
    if same_name(person.name, candidate.actor):
        return f"{person.name} asked for the training of candidate {candidate.id}: another person must approve it"
    # All jobs of a runner share one user, so that it says nothing about the reviewer of an environment.
    # no guard: only the user's comparison is left out
    if is_github or candidate.trained_by is None:
        return None
    # guard: self-approval-by-user
    if same_name(person.name, candidate.trained_by):
        return (
            f"{person.name} trained candidate {candidate.id}, in the name of {candidate.actor}: another person must "
            "approve it"
        )
    return None


def same_name(one: str, other: str) -> bool:
    """Return True if two actors, ``name@host``, have the same name on any hosts: self-approval must be impossible."""
    # guard: same-name
    return one.partition("@")[0].casefold() == other.partition("@")[0].casefold()


def require_approval(
    database: PlatformDatabase, registration: Registration, verdict: Verdict, needed: Approval
) -> GivenApproval:
    """Return a valid approval of a verdict. Without one, record once in the ledger that the version waits for it.

    Raises
    ------
    ApprovalNeededError
        There is no valid approval; the message gives the reason for each of the last three.
    """
    head, champion = database.ledger_head(registration.model), database.champion(registration.model)
    entries = [entry for entry in database.ledger(registration.model) if entry.verdict_digest == verdict.digest]
    candidate, refusals = database.candidate(registration.candidate), list[str]()
    for approval in [given_approval(entry) for entry in entries if entry.action == Action.APPROVAL]:
        audience = approval_audience(registration.model, registration.version, verdict.digest)
        refusal = _refusal(approval.person, candidate, needed, audience)
        # guard: unexpired-approval
        if now() >= approval.expires_at:
            refusal = f"The approval by {approval.person.name} expired at {approval.expires_at:%Y-%m-%d %H:%M} UTC"
        # guard: valid-approval
        if refusal is None:
            return approval
        refusals.append(f" {refusal}.")
    if not any(entry.action == Action.REQUEST for entry in entries):
        reason, actor = candidate.lineage.reason, candidate.actor or "ml-platform"
        request = _entry(Action.REQUEST, registration, verdict.digest, head, champion, reason=reason, actor=actor)
        database.append_to_ledger(request)
    raise ApprovalNeededError(
        f"Version {registration.version} of {registration.model!r} passed its gates and waits for approval."
        f"{''.join(refusals[-3:])} A person who did not request the training must run: ml-platform approve "
        f"{registration.model} {registration.version} --reason … The champion stays."
    )
