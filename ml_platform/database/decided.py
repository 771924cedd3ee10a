"""The candidate of a decision: the one place that gives the digests of a version's bytes, from ledger over verdict.

The ledger's chain binds the digest of a verdict, the verdict binds the candidate's record and the digests of its files.
The record alone binds nothing: it can be edited together with the files.
"""

from collections.abc import Iterable
from dataclasses import replace

from ml_platform.database import PlatformDatabase
from ml_platform.errors import RESTORE, EvidenceError
from ml_platform.records.ledger import Action, LedgerEntry
from ml_platform.records.verdict import Candidate, Verdict


def decided_verdict(database: PlatformDatabase, decision: LedgerEntry) -> Verdict:
    """Return the verdict that a decision of the ledger names.

    Raises
    ------
    EvidenceError
        It is missing, was changed, did not pass, or belongs to another candidate.
    """
    verdict = database.verdict_under(decision.verdict_digest)
    about = (decision.model, decision.candidate)
    if (verdict.model, verdict.candidate) != about or not verdict.passed:
        raise EvidenceError(
            f"The verdict in the ledger's entry for version {decision.version} of {decision.model!r} belongs to "
            "another candidate, or did not pass. Choose another version."
        )
    return verdict


def chained_candidate(database: PlatformDatabase, decision: LedgerEntry) -> Candidate:
    """Return the candidate of a decision with the digests of ledger and verdict, not of its record.

    Raises
    ------
    EvidenceError
        As `decided_verdict`, or there is no such candidate.
    """
    verdict, candidate = decided_verdict(database, decision), database.candidate(decision.candidate)
    served = served_digest(verdict, candidate, database.ledger(decision.model))
    return replace(candidate, model_digest=verdict.model_digest, served_digest=served)


def decided_candidate(database: PlatformDatabase, decision: LedgerEntry) -> Candidate:
    """Return the candidate of a decision with the digests that ledger and verdict give.

    Raises
    ------
    EvidenceError
        As `decided_verdict`, or the candidate's record is not the one that the verdict was about.
    """
    verdict, stored = decided_verdict(database, decision), database.candidate(decision.candidate)
    candidate = chained_candidate(database, decision)
    if changed := changed_fields(verdict, candidate, stored):
        raise EvidenceError(
            f"The record of candidate {stored.id} was changed since its verdict: {', '.join(changed)}. Version "
            f"{decision.version} of {decision.model!r} is not used. {RESTORE}"
        )
    return candidate


def served_digest(verdict: Verdict, candidate: Candidate, entries: Iterable[LedgerEntry]) -> str | None:
    """Return the digest of a candidate's list of served files: of its last erasure, or of its verdict.

    After an erasure a candidate cannot be judged again, because its rows have changed.

    Parameters
    ----------
    verdict : Verdict
    candidate : Candidate
        The stored record. Its own digest counts only for a verdict of an earlier release, which bound none.
    entries : iterable of LedgerEntry
        The model's ledger, oldest first.
    """
    of_verdict = candidate.served_digest if verdict.origin_digest is None else verdict.served_digest
    erased = [
        str(entry.details.get("served_digest"))
        for entry in entries
        if entry.action == Action.ERASURE and entry.candidate == candidate.id
    ]
    return erased[-1] if erased else of_verdict


def changed_fields(verdict: Verdict, expected: Candidate, stored: Candidate) -> list[str]:
    """Return the names of the fields of a candidate's stored record that its verdict contradicts."""
    lineage = stored.lineage
    pairs = {
        "model": (verdict.model, stored.model),
        "model_digest": (verdict.model_digest, stored.model_digest),
        "dataset_version": (verdict.dataset_version, lineage.dataset_version),
        "dataset_digest": (verdict.dataset_digest, lineage.dataset_digest),
        "code_revision": (verdict.code_revision, lineage.code_revision),
        "lock_digest": (verdict.lock_digest, lineage.lock_digest),
        "served_digest": (expected.served_digest, stored.served_digest),
    }
    changed = [name for name, (bound, row) in pairs.items() if bound != row]
    if not changed and verdict.origin_digest not in {None, stored.origin_digest}:
        return ["its origin (reason, actor, run or time of training)"]
    return changed
