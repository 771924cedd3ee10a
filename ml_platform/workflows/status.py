"""What people ask."""

from collections import Counter
from typing import Any

from ml_platform.records import DECISIONS, Action, Candidate, LedgerEntry, Verdict
from ml_platform.workflows.landing import stuck_files
from ml_platform.workflows.platform import Platform


def status(platform: Platform) -> list[dict[str, Any]]:
    """Return, for every model that left a trace: champion, newest verdict, arrivals by outcome."""
    return [_status_of(platform, model) for model in platform.database.models()]


def _status_of(platform: Platform, model: str) -> dict[str, Any]:
    database = platform.database
    candidate = database.newest_candidate(model)
    verdict = database.verdict_on(candidate.id) if candidate else None
    champion = database.champion(model)
    return {
        "model": model,
        "champion": champion.version if champion else None,
        "promoted_at": champion.recorded_at.isoformat() if champion else None,
        "arrivals": dict(Counter(row["outcome"] for row in database.arrival_outcomes(model))),
        "new_rows": platform.new_rows(model),
        "stuck": stuck_files(platform, model),
        "last_run": {
            "state": _state_of(platform, candidate, verdict, champion),
            "candidate": candidate.id,
            "trained_at": candidate.trained_at.isoformat(),
            "reason": candidate.lineage.reason,
            "dataset_version": candidate.lineage.dataset_version,
            "dataset_digest": candidate.lineage.dataset_digest,
            "reproducible": candidate.forgotten_at is None,
        }
        if candidate
        else None,
        "gates": [{"gate": r.condition, "value": r.value, "result": r.outcome.value} for r in verdict.results]
        if verdict
        else [],
    }


def _state_of(platform: Platform, candidate: Candidate, verdict: Verdict | None, champion: LedgerEntry | None) -> str:
    if verdict is None:
        return "not judged"
    if not verdict.passed:
        return "refused"
    if champion and champion.candidate == candidate.id:
        return "champion"
    said = {entry.action for entry in platform.database.ledger(candidate.model) if entry.candidate == candidate.id}
    if said & set(DECISIONS):
        return "rolled back"
    return "waits for approval" if Action.REQUEST in said else "passed, not promoted"
