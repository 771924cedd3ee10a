"""Status of all models: champion, newest candidate with its gates, arrivals."""

from collections import Counter
from typing import Any

from ml_platform.data.landing import stuck_files
from ml_platform.evaluation.verdict_view import gate_record, view_gates
from ml_platform.platform import Platform
from ml_platform.records.ledger import DECISIONS, Action, LedgerEntry
from ml_platform.records.verdict import Candidate, Verdict

# The command with which a user continues, by the candidate's state.
NEXT_STEPS = {
    "passed, not promoted": "ml-platform resume {model}",
    "waits for approval": 'ml-platform approve {model} --reason "…"',
    "not judged": 'ml-platform retrain {model} --reason "…"',
}


def status(platform: Platform) -> list[dict[str, Any]]:
    """Return the status of every model in the database: champion, newest candidate with gates, arrivals by outcome."""
    return [_read_model_status(platform, model) for model in platform.database.models()]


def _read_model_status(platform: Platform, model: str) -> dict[str, Any]:
    database = platform.database
    candidate = database.newest_candidate(model)
    verdict = database.verdict_on(candidate.id) if candidate else None
    champion = database.champion(model)
    state = _describe_candidate_state(platform, candidate, verdict, champion) if candidate else ""
    return {
        "model": model,
        "champion": champion.version if champion else None,
        "promoted_at": champion.recorded_at.isoformat() if champion else None,
        "arrivals": dict(Counter(row["outcome"] for row in database.arrival_outcomes(model))),
        "new_rows": platform.new_rows(model),
        "passed_over_rows": database.count_passed_over(model),
        "stuck": stuck_files(platform, model),
        "last_run": {
            "state": state,
            "next_step": NEXT_STEPS[state].format(model=model) if state in NEXT_STEPS else None,
            "candidate": candidate.id,
            "trained_at": candidate.trained_at.isoformat(),
            "reason": candidate.lineage.reason,
            "dataset_version": candidate.lineage.dataset_version,
            "dataset_digest": candidate.lineage.dataset_digest,
            "reproducible": candidate.forgotten_at is None,
        }
        if candidate
        else None,
        "gates": [gate_record(gate) for gate in view_gates(verdict.results)] if verdict else [],
    }


def _describe_candidate_state(
    platform: Platform, candidate: Candidate, verdict: Verdict | None, champion: LedgerEntry | None
) -> str:
    if verdict is None:
        return "not judged"
    if not verdict.passed:
        return "refused"
    if champion and champion.candidate == candidate.id:
        return "champion"
    actions = {entry.action for entry in platform.database.ledger(candidate.model) if entry.candidate == candidate.id}
    if actions & set(DECISIONS):
        return "rolled back"
    return "waits for approval" if Action.REQUEST in actions else "passed, not promoted"
