"""Promotion: the ledger says who is champion; aliases follow it."""

from ml_platform.database import Database
from ml_platform.errors import ConflictError
from ml_platform.records import LedgerEntry, Registration, Verdict, now


def promote(
    database: Database, registration: Registration, verdict: Verdict, *, reason: str, actor: str
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

    Raises
    ------
    ConflictError
        Somebody else promoted meanwhile, or the champion was made of newer rows or later.
    """
    champion = database.champion(registration.model)
    if champion is not None and champion.version == registration.version:
        return champion
    if champion is not None:
        _require_newer(database, registration, champion)
    entry = LedgerEntry(
        model=registration.model,
        sequence=champion.sequence + 1 if champion else 1,
        action="promotion",
        version=registration.version,
        previous_version=champion.version if champion else None,
        candidate=registration.candidate,
        verdict_digest=verdict.digest,
        reason=reason,
        actor=actor,
        recorded_at=now(),
    )
    database.append_to_ledger(entry)
    return entry


def _require_newer(database: Database, registration: Registration, champion: LedgerEntry) -> None:
    """Refuse a candidate that a newer one has overtaken: its run was slow, or was started again behind its gates."""
    ours, theirs = database.candidate(registration.candidate), database.candidate(champion.candidate)
    if (ours.lineage.dataset_version, ours.trained_at) < (theirs.lineage.dataset_version, theirs.trained_at):
        raise ConflictError(
            f"Version {champion.version} of {registration.model!r} is champion and was made of newer rows, or later, "
            f"than version {registration.version}. Retrain instead: ml-platform retrain {registration.model}."
        )
