"""Promotion: the ledger says who is champion; approvals come before, aliases follow."""

from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

from ml_platform.database import Database
from ml_platform.errors import (
    ApprovalNeededError,
    ApprovalRefusedError,
    ConflictError,
    EvidenceError,
    RolloutUnderWayError,
)
from ml_platform.model_spec import Approval, Rollout
from ml_platform.records import (
    GENESIS,
    Action,
    Candidate,
    GivenApproval,
    LedgerEntry,
    Person,
    Registration,
    Verdict,
    now,
)
from ml_platform.stages._standing import FROM_VERSION, ROLLOUT, standing
from ml_platform.traffic import TrafficPlan

__all__ = [
    "approve",
    "confirm",
    "given_approval",
    "is_confirmed",
    "promote",
    "replace_version",
    "require_approval",
    "roll_back",
    "same_name",
    "standing",
]


def promote(
    database: Database,
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
    """Write into the ledger that a version is champion; return the entry.

    Promoting the champion again changes nothing: the entry that made it champion is returned.

    Parameters
    ----------
    database : Database
    registration : Registration
        The version to promote.
    verdict : Verdict
        Its evidence, verified by the caller just now.
    reason, actor : str
        Why, and who asked.
    needed : Approval or None
        Who may approve; ``None`` where nobody has to.
    rollout : Rollout or None
        How traffic moves to it: the entry says so, for servers that read no ModelSpec. ``None`` moves it at once.
    unfinished : TrafficPlan or None
        The plan of a rollout that has not arrived at the champion; ``None`` where the champion answers everything.
    carried_out : bool
        Whether a living server obeys that plan; else the new champion takes over from the version that still answers.

    Raises
    ------
    ApprovalNeededError
        Nobody who counts has approved this verdict; the ledger says that it waits.
    RolloutUnderWayError
        Servers carry out another rollout.
    ConflictError
        Somebody else promoted meanwhile, or the champion was made of newer rows or later.
    EvidenceError
        It was rolled back, or is the same again as a version that was.
    """
    # The end of the ledger first: whatever is appended from here on lets the entry be refused.
    head, champion = database.ledger_head(registration.model), database.champion(registration.model)
    if champion is not None and champion.version == registration.version:
        return champion
    if champion is not None:
        _require_not_rolled_back(database, registration)
        _require_newer(database, registration, champion)
    entry = _entry(Action.PROMOTION, registration, verdict.digest, head, champion, reason=reason, actor=actor)
    details = _moving(rollout, champion, unfinished)
    if needed is not None:
        details["approval"] = require_approval(database, registration, verdict, needed).digest
    if unfinished is not None and carried_out:
        raise _under_way(registration, unfinished)
    database.append_to_ledger(replace(entry, details=details))
    return replace(entry, details=details)


def _moving(rollout: Rollout | None, champion: LedgerEntry | None, unfinished: TrafficPlan | None) -> dict[str, Any]:
    """Return what a promotion says of its rollout."""
    if rollout is None:
        return {}
    declared: dict[str, Any] = {ROLLOUT: rollout.model_dump(mode="json")}
    if champion is None:
        return declared
    return {**declared, FROM_VERSION: champion.version if unfinished is None else unfinished.stable}


def _under_way(registration: Registration, plan: TrafficPlan) -> RolloutUnderWayError:
    model = registration.model
    return RolloutUnderWayError(
        f"Traffic of {model!r} is on its way from version {plan.stable} to version {plan.successor} ({plan.mode}, step "
        f"{plan.step + 1}): version {registration.version} has to wait. Look at `ml-platform traffic {model}`; to end "
        f"it, run: ml-platform rollback {model} --reason …"
    )


def _entry(
    action: Action,
    registration: Registration,
    verdict_digest: str,
    head: LedgerEntry | None,
    champion: LedgerEntry | None,
    *,
    reason: str,
    actor: str,
) -> LedgerEntry:
    return LedgerEntry(
        model=registration.model,
        sequence=head.sequence + 1 if head else 1,
        action=action.value,
        version=registration.version,
        previous_version=champion.version if champion else None,
        candidate=registration.candidate,
        verdict_digest=verdict_digest,
        reason=reason,
        actor=actor,
        recorded_at=now(),
        previous_digest=head.digest if head else GENESIS,
    )


def _require_newer(database: Database, registration: Registration, champion: LedgerEntry) -> None:
    """Refuse a candidate that a newer one has overtaken: its run was slow, or was started again behind its gates."""
    ours, theirs = database.candidate(registration.candidate), database.candidate(champion.candidate)
    if (ours.lineage.dataset_version, ours.trained_at) < (theirs.lineage.dataset_version, theirs.trained_at):
        raise ConflictError(
            f"Version {champion.version} of {registration.model!r} is champion and was made of newer rows, or later, "
            f"than version {registration.version}. Retrain instead: ml-platform retrain {registration.model}."
        )


# Rollback


def roll_back(
    database: Database,
    target: Registration,
    verdict_digest: str,
    *,
    reason: str,
    actor: str,
    details: dict[str, Any] | None = None,
    instead_of: int | None = None,
) -> LedgerEntry:
    """Write into the ledger that an earlier version is champion again; return the entry.

    Parameters
    ----------
    database : Database
    target : Registration
        What becomes champion; the caller has verified its bytes.
    verdict_digest : str
        The evidence that it stands on.
    reason, actor : str
        Why, and who asked.
    details : dict or None
        The figures that decided, where figures did.
    instead_of : int or None
        Sequence of the decision that is taken back; ``None`` takes back whatever stands.

    Raises
    ------
    ConflictError
        It is champion already, or somebody else changed the ledger meanwhile.
    """
    head, champion = database.ledger_head(target.model), database.champion(target.model)
    if champion is not None and champion.version == target.version:
        raise ConflictError(f"Version {target.version} of {target.model!r} is champion already: nothing to roll back.")
    if instead_of is not None and (champion is None or champion.sequence != instead_of):
        raise ConflictError(
            f"The ledger of {target.model!r} has decided again since entry {instead_of}: nothing is rolled back."
        )
    entry = _entry(Action.ROLLBACK, target, verdict_digest, head, champion, reason=reason, actor=actor)
    entry = replace(entry, details=details or {})
    database.append_to_ledger(entry)
    return entry


def replace_version(database: Database, champion: LedgerEntry, version: int, *, reason: str, actor: str) -> LedgerEntry:
    """Write into the ledger that the champion has another number in MLflow; return the entry.

    Candidate, verdict and standing stay what they are.

    Parameters
    ----------
    database : Database
    champion : LedgerEntry
        The decision that stands.
    version : int
        The new number; the caller has verified that it holds the champion's bytes.
    reason, actor : str
        Why, and who asked.

    Raises
    ------
    ConflictError
        Somebody else changed the ledger meanwhile.
    """
    head = database.ledger_head(champion.model)
    registration = Registration(model=champion.model, version=version, candidate=champion.candidate)
    said = {"reason": reason, "actor": actor}
    entry = _entry(Action.REPLACEMENT, registration, champion.verdict_digest, head, champion, **said)
    entry = replace(entry, details={"replaces": champion.version})
    database.append_to_ledger(entry)
    return entry


def _require_not_rolled_back(database: Database, registration: Registration) -> None:
    """Refuse what was rolled back, and what the platform made again by itself of the same rows and code."""
    history = database.history(registration.model)
    _, versions = standing(history)
    ours = database.candidate(registration.candidate)
    for entry in history:
        if entry.version not in versions:
            continue
        theirs = database.candidate(entry.candidate)
        if entry.version == registration.version:
            what = f"Version {entry.version} of {registration.model!r} was rolled back"
        elif not ours.lineage.reason.startswith("manual") and _same_making(ours, theirs):
            what = (
                f"Version {registration.version} of {registration.model!r} was made of the same rows, code and lock "
                f"as version {entry.version}, which was rolled back"
            )
        else:
            continue
        raise EvidenceError(
            f"{what}: it does not return by itself. A person can: ml-platform rollback {registration.model} --to "
            f"{registration.version} --reason …"
        )


def _same_making(one: Candidate, other: Candidate) -> bool:
    return replace(one.lineage, reason="", dataset_version=0) == replace(other.lineage, reason="", dataset_version=0)


def confirm(database: Database, decision: LedgerEntry) -> bool:
    """Write once into the ledger that the alias shows a decision.

    Returns
    -------
    bool
        Whether the ledger says so now; if not, it moved on meanwhile, and the alias has to follow again.
    """
    head = database.ledger_head(decision.model)
    if database.champion(decision.model) != decision:
        return False
    if is_confirmed(database, decision):
        return True
    registration = Registration(model=decision.model, version=decision.version, candidate=decision.candidate)
    said = {"reason": f"the alias champion shows version {decision.version}", "actor": "ml-platform"}
    entry = _entry(Action.CONFIRMATION, registration, decision.verdict_digest, head, decision, **said)
    try:
        database.append_to_ledger(replace(entry, details={"decision": decision.sequence}))
    except ConflictError:
        return False
    return True


def is_confirmed(database: Database, decision: LedgerEntry) -> bool:
    """Whether the ledger says that the alias has shown a decision."""
    return any(entry.details.get("decision") == decision.sequence for entry in database.ledger(decision.model))


# Approvals


def approve(
    database: Database, registration: Registration, verdict: Verdict, needed: Approval, person: Person, *, reason: str
) -> GivenApproval:
    """Write a person's approval of a verdict into the ledger; return it.

    It counts until it expires, for this verdict alone. It is not used up, and cannot bring back what was rolled back.

    Parameters
    ----------
    database : Database
    registration : Registration
        The version that is approved.
    verdict : Verdict
        Its evidence, verified by the caller just now.
    needed : Approval
        Who may approve.
    person : Person
        Who does, authenticated by the caller.
    reason : str
        Why.

    Raises
    ------
    ApprovalRefusedError
        The person does not count, or asked for the training.
    ConflictError
        Somebody else changed the ledger meanwhile.
    """
    refusal = _refusal(person, database.candidate(registration.candidate), needed)
    if refusal:
        raise ApprovalRefusedError(f"{refusal}. Nothing was approved.")
    head, champion = database.ledger_head(registration.model), database.champion(registration.model)
    entry = _entry(Action.APPROVAL, registration, verdict.digest, head, champion, reason=reason, actor=person.name)
    expires_at = entry.recorded_at + timedelta(hours=needed.expires_after_hours)
    entry = replace(entry, details={**asdict(person), "expires_at": expires_at.isoformat()})
    database.append_to_ledger(entry)
    return given_approval(entry)


def given_approval(entry: LedgerEntry) -> GivenApproval:
    """Return the approval that an entry of the ledger holds."""
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


def _refusal(person: Person, candidate: Candidate, needed: Approval) -> str | None:
    """Return why a person's approval of a candidate does not count; ``None`` if it does."""
    if person.authenticated_by not in needed.authenticated_by:
        ways = ", ".join(needed.authenticated_by)
        return f"The author of {candidate.model!r} counts approvals by {ways}. Got {person.authenticated_by} instead"
    if candidate.actor is not None and same_name(person.name, candidate.actor):
        return f"{person.name} asked for the training of candidate {candidate.id}: somebody else must approve it"
    return None


def same_name(one: str, other: str) -> bool:
    """Whether two people, as ``name@where``, have the same name anywhere: rather refused than approved by oneself."""
    return one.partition("@")[0].casefold() == other.partition("@")[0].casefold()


def require_approval(
    database: Database, registration: Registration, verdict: Verdict, needed: Approval
) -> GivenApproval:
    """Return an approval of a verdict that counts now, else write once into the ledger that the version waits for one.

    Raises
    ------
    ApprovalNeededError
        None counts; the message says why for each.
    """
    head, champion = database.ledger_head(registration.model), database.champion(registration.model)
    said = [entry for entry in database.ledger(registration.model) if entry.verdict_digest == verdict.digest]
    candidate, refusals = database.candidate(registration.candidate), list[str]()
    for approval in [given_approval(entry) for entry in said if entry.action == Action.APPROVAL]:
        refusal = _expiry(approval) or _refusal(approval.person, candidate, needed)
        if refusal is None:
            return approval
        refusals.append(f" {refusal}.")
    if not any(entry.action == Action.REQUEST for entry in said):
        why, actor = candidate.lineage.reason, candidate.actor or "ml-platform"
        request = _entry(Action.REQUEST, registration, verdict.digest, head, champion, reason=why, actor=actor)
        database.append_to_ledger(request)
    raise ApprovalNeededError(
        f"Version {registration.version} of {registration.model!r} passed its gates and waits for approval."
        f"{''.join(refusals[-3:])} Somebody other than who asked for it runs: ml-platform approve {registration.model} "
        f"{registration.version} --reason … The champion stays."
    )


def _expiry(approval: GivenApproval) -> str | None:
    if now() < approval.expires_at:
        return None
    return f"The approval by {approval.person.name} expired at {approval.expires_at:%Y-%m-%d %H:%M} UTC"
