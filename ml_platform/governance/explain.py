"""Explanation of a version: its decisions, ledger proof, candidate, dataset, verdict and approvals."""

from typing import Any

from ml_platform.errors import EvidenceError
from ml_platform.evaluation.verdict_view import gate_record, view_gates
from ml_platform.platform import Platform
from ml_platform.records.ledger import Action, LedgerEntry
from ml_platform.records.verdict import Candidate
from ml_platform.release.ledger.champions import champion_stack
from ml_platform.release.ledger.decisions import given_approval
from ml_platform.release.ledger.follow import verify_ledger


def explain(platform: Platform, model: str, version: int | None = None) -> dict[str, Any]:
    """Return the decisions about a version and their evidence, as plain values.

    Parameters
    ----------
    platform : Platform
    model : str
    version : int or None
        ``None`` is the champion.

    Raises
    ------
    EvidenceError
        There is no such version, or no champion.
    """
    champion = platform.database.champion(model)
    if version is None and champion is None:
        raise EvidenceError(f"{model!r} never had a champion.")
    number = champion.version if version is None and champion else version
    registration = platform.database.registration(model, number or 0)
    if registration is None:
        raise EvidenceError(f"There is no version {number} of {model!r}. Run: ml-platform history {model}.")
    candidate = platform.database.candidate(registration.candidate)
    champions, rolled_back = champion_stack(platform.database.history(model))
    # Entries are matched by candidate: a version that was lost in MLflow has another number since.
    entries = [entry for entry in platform.database.ledger(model) if entry.candidate == registration.candidate]
    decisions = [entry for entry in entries if entry.decides and entry.action != Action.REPLACEMENT]
    report, decision = verify_ledger(platform, model, deep=True), decisions[-1] if decisions else None
    return {
        "model": model,
        "version": registration.version,
        "is_champion": champions[-1:] == [registration.version],
        "was_rolled_back": registration.version in rolled_back,
        "staged": platform.database.is_staged(registration),
        "decision": _decision(entries, decision) if decision else None,
        "replaces": [entry.details["replaces"] for entry in entries if entry.action == Action.REPLACEMENT],
        "ledger": {
            "entries": report.entries,
            "verifies": not report.problems and not report.missing,
            "problems": [*report.problems, *report.missing][:10],
            "anchors": [*report.behind, *report.unread],
        },
        "candidate": _candidate(candidate),
        "dataset": _dataset(platform, candidate),
        **_evidence(platform, candidate, decision),
        "approvals": [_approval(entry) for entry in entries if entry.action == Action.APPROVAL],
    }


def _decision(entries: list[LedgerEntry], last: LedgerEntry) -> dict[str, Any]:
    confirmed = any(entry.details.get("decision") == last.sequence for entry in entries)
    return {
        "action": last.action,
        "when": last.recorded_at.isoformat(),
        "by": last.actor,
        "reason": last.reason,
        "instead_of": last.previous_version,
        "ledger_entry": last.sequence,
        "ledger_digest": last.digest,
        "approval": last.details.get("approval"),
        "shown_in_mlflow": confirmed,
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "id": candidate.id,
        "trained_at": candidate.trained_at.isoformat(),
        "asked_for_by": candidate.actor,
        "trained_by": candidate.trained_by,
        "reason": candidate.lineage.reason,
        "model_digest": candidate.model_digest,
        "code_revision": candidate.lineage.code_revision,
        "lock_digest": candidate.lineage.lock_digest,
        "dagster_run": candidate.run_id,
        "mlflow_run": candidate.mlflow_run_id,
        "reproducible": candidate.forgotten_at is None,
    }


def _dataset(platform: Platform, candidate: Candidate) -> dict[str, Any]:
    """Return a candidate's dataset version, with the arrivals published in it or in an earlier one."""
    lineage, database = candidate.lineage, platform.database
    arrivals = [
        {
            "name": result.arrival.name,
            "key": result.arrival.key,
            "sha256": result.sha256,
            "rows": result.published_rows,
        }
        for result in database.outcomes(candidate.model, database.known_arrivals(candidate.model))
        if result.dataset_version is not None and result.dataset_version <= lineage.dataset_version
    ]
    return {"version": lineage.dataset_version, "digest": lineage.dataset_digest, "arrivals": arrivals}


def _evidence(platform: Platform, candidate: Candidate, decision: LedgerEntry | None) -> dict[str, Any]:
    """Return the verdict of the decision, or the newest one before a decision.

    The page is left out if it shows another verdict. A verdict that was changed is left out: the ledger's problems name
    it.
    """
    try:
        newest = platform.database.verdict_on(candidate.id)
        verdict = newest if decision is None else platform.database.verdict_under(decision.verdict_digest)
    except EvidenceError:
        return {"verdict": decision and decision.verdict_digest, "verdict_page": None, "gates": []}
    if verdict is None:
        return {"verdict": None, "verdict_page": None, "gates": []}
    gates = [{**gate_record(gate), "why": gate.why} for gate in view_gates(verdict.results)]
    page = platform.verdict_page(candidate)
    shown = str(page) if verdict == newest and page.is_file() else None
    return {"verdict": verdict.digest, "verdict_page": shown, "gates": gates}


def _approval(entry: LedgerEntry) -> dict[str, Any]:
    given = given_approval(entry)
    return {
        "by": given.person.name,
        "authenticated_by": given.person.authenticated_by,
        "identity": given.person.identity,
        "when": given.approved_at.isoformat(),
        "expires": given.expires_at.isoformat(),
        "reason": given.reason,
        "verdict": given.verdict_digest,
        "ledger_entry": entry.sequence,
        "digest": given.digest,
    }
