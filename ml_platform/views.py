"""What Dagster shows of the platform's records: metadata of assets, and results of checks."""

import base64
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import dagster as dg

from ml_platform import workflows
from ml_platform.model_spec import ModelSpec
from ml_platform.records import BatchResult, Candidate, GateOutcome, LedgerEntry, Outcome, RawBatch, Registration
from ml_platform.stages.datasets import DatasetReport
from ml_platform.stages.previews import Preview
from ml_platform.stages.profiles import Profile
from ml_platform.workflows import Judgement, Platform

INTERRUPTED = "dagster._core.errors.DagsterExecutionInterruptedError"
EXAMPLES = 5
LONGEST_VALUE = 60


def batch_metadata(batch: RawBatch, preview: Preview | None) -> dict[str, Any]:
    """Return what the bytes of one arrival show: where they came from, how many, and the first rows."""
    shown: dict[str, Any] = {"source": batch.arrival.name, "bytes": batch.arrival.size, "sha256": batch.sha256}
    if preview is None:
        return {**shown, "preview": "cannot be read"}
    counted = {"lines": preview.lines} if preview.rows is None else {"rows": preview.rows}
    return {**shown, **counted, "preview": _table(preview.head) if preview.head else "no rows"}


def _table(rows: Sequence[dict[str, str]]) -> dg.TableMetadataValue:
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [dg.TableColumn(name, "string") for name in names]
    records = [dg.TableRecord({name: _short(row.get(name, "")) for name in names}) for row in rows]
    return dg.MetadataValue.table(records, schema=dg.TableSchema(columns))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def arrival_metadata(result: BatchResult) -> dict[str, Any]:
    """Return what one arrival's partition shows."""
    return {
        "outcome": result.outcome.value,
        "reason": result.reason,
        "rows": result.rows,
        "quarantined_rows": result.quarantined_rows,
        "examples": dg.MetadataValue.json(result.examples),
    }


def arrivals_metadata(results: Sequence[BatchResult]) -> dict[str, Any]:
    """Return what a run over some arrivals shows: counts, and a table of the first fifty."""
    records = [
        dg.TableRecord({"file": r.arrival.name, "outcome": r.outcome.value, "rows": r.rows, "reason": r.reason})
        for r in results[:50]
    ]
    return {
        "published_rows": sum(r.rows - r.quarantined_rows for r in results if r.outcome is Outcome.PUBLISHED),
        "quarantined_rows": sum(r.quarantined_rows for r in results),
        "arrivals": dg.MetadataValue.table(records) if records else "none was new",
    }


def data_check(name: str, results: Sequence[BatchResult]) -> dg.AssetCheckResult:
    """Return one data check's result over the arrivals of a run; ERROR where one was quarantined whole by it.

    Its metadata count the rows that break each rule, and quote up to five.
    """
    whole = [r for r in results if r.outcome is Outcome.QUARANTINED]
    hit = whole if name == "quarantined_share" else [r for r in results if r.rules.get(name)]
    counts = sum((Counter(r.rules.get(name, {})) for r in results), Counter[str]())
    said = {r.arrival.name: r.reason for r in hit[:EXAMPLES]}
    quoted = [f"{r.arrival.name}, {example}" for r in hit for example in r.examples.get(name, [])]
    return dg.AssetCheckResult(
        check_name=name,
        passed=not hit,
        severity=dg.AssetCheckSeverity.ERROR if set(map(id, hit)) & set(map(id, whole)) else dg.AssetCheckSeverity.WARN,
        description="; ".join(f"{file}: {reason}" for file, reason in said.items()) or None,
        metadata={
            "files": len(hit),
            "rules": dg.MetadataValue.json(dict(counts)),
            "examples": dg.MetadataValue.json(quoted[:EXAMPLES]),
        },
    )


def dataset_metadata(report: DatasetReport) -> dict[str, Any]:
    """Return the figures of a dataset version."""
    return {
        "dagster/row_count": report.dataset.rows,
        "version": report.dataset.version,
        "digest": report.dataset.digest,
        "training_rows": report.training_rows,
        "holdout_rows": report.holdout_rows,
        "share_positive": report.share_positive,
    }


def profile_metadata(platform: Platform, report: DatasetReport, profile: Profile) -> dict[str, Any]:
    """Return a dataset version's columns as a table, and the path of its page."""
    records = [
        dg.TableRecord({"column": c.name, "missing": c.missing, "figures": c.figures, "stability_index": c.psi or 0.0})
        for c in profile.columns
    ]
    page = platform.profile_page(report.dataset)
    return {"profile": dg.MetadataValue.path(page), "columns": dg.MetadataValue.table(records)}


def change_check(profile: Profile) -> dg.AssetCheckResult:
    """Return whether a column's distribution moved far from the version before; it never blocks."""
    change = profile.change
    figures: dict[str, Any] = {} if change is None else {**vars(change)}
    return dg.AssetCheckResult(
        check_name="change",
        passed=not profile.moved,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"moved far: {', '.join(profile.moved)}" if profile.moved else None,
        metadata={**figures, "stability_index": {c.name: c.psi for c in profile.columns if c.psi is not None}},
    )


def golden_check(platform: Platform, spec: ModelSpec) -> list[dg.AssetCheckResult]:
    """Return whether every golden dataset is what was frozen; nothing where the author names none."""
    if not spec.golden:
        return []
    problems = workflows.golden_problems(platform, spec)
    said = "; ".join(problems.values()) or None
    return [dg.AssetCheckResult(check_name="golden", passed=not problems, description=said)]


def dataset_checks(report: DatasetReport) -> list[dg.AssetCheckResult]:
    """Return a result for every one of `DATASET_CHECKS`."""
    return [
        dg.AssetCheckResult(check_name=name, passed=name not in report.problems, description=report.problems.get(name))
        for name in DATASET_CHECKS
    ]


def candidate_metadata(candidate: Candidate) -> dict[str, Any]:
    """Return a candidate's lineage."""
    lineage = candidate.lineage
    return {
        "candidate": candidate.id,
        "model_digest": candidate.model_digest,
        "dataset_version": lineage.dataset_version,
        "dataset_digest": lineage.dataset_digest,
        "code_revision": lineage.code_revision,
        "lock_digest": lineage.lock_digest,
        "reason": lineage.reason,
    }


def gate_checks(platform: Platform, judgement: Judgement) -> Iterator[dg.AssetCheckResult]:
    """Yield one result for every gate of a verdict, with its evidence."""
    evidence: dict[str, Any] = {
        "verdict": judgement.verdict.digest,
        "mlflow_run": dg.MetadataValue.url(_mlflow_run(platform, judgement)),
    }
    for position, result in enumerate(judgement.verdict.results):
        figures: dict[str, Any] = {
            "result": result.outcome.value,
            "gate": result.condition,
            "value": result.value,
            "why": result.why,
        }
        # One picture is enough: each copy would stand in the event log.
        pictures = {"curves": _picture(judgement.curves)} if position == 0 and judgement.curves else {}
        yield dg.AssetCheckResult(
            check_name=result.metric,
            passed=result.outcome is GateOutcome.PASS,
            description=f"{result.outcome.value}: {result.why}",
            metadata={**figures, **evidence, **pictures},
        )


def version_metadata(platform: Platform, registration: Registration) -> dict[str, Any]:
    """Return a registered version, with its page in MLflow."""
    page = f"{platform.settings.mlflow_ui}/#/models/{registration.model}/versions/{registration.version}"
    return {
        "version": registration.version,
        "candidate": registration.candidate,
        "mlflow": dg.MetadataValue.url(page),
    }


def evidence_metadata(platform: Platform, candidate: Candidate) -> dict[str, Any]:
    """Return the metrics and the picture that a candidate's verdict rests on."""
    verdict = platform.database.verdict_on(candidate.id)
    curves = workflows.curves_of(platform, candidate)
    metrics: dict[str, Any] = dict(verdict.metrics) if verdict else {}
    return {**metrics, **({"curves": _picture(curves)} if curves else {})}


def entry_metadata(entry: LedgerEntry) -> dict[str, Any]:
    """Return a promotion as the ledger has it."""
    return {
        "version": entry.version,
        "instead_of": entry.previous_version or "none: it is the first",
        "ledger_entry": entry.sequence,
        "verdict": entry.verdict_digest,
        "reason": entry.reason,
    }


def champion_event(entry: LedgerEntry) -> dg.AssetMaterialization:
    """Return what lets Dagster show a decision that no run of its own made."""
    return dg.AssetMaterialization([entry.model, "champion_version"], metadata=entry_metadata(entry))


def _mlflow_run(platform: Platform, judgement: Judgement) -> str:
    return f"{platform.settings.mlflow_ui}/#/runs/{judgement.mlflow_run_id}"


def _picture(png: bytes) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![ROC and calibration](data:image/png;base64,{base64.b64encode(png).decode()})")


DATASET_CHECKS = {
    "least_rows": "There are enough rows to train on.",
    "class_balance": "No class is rarer than the author allows.",
    "disjoint_split": "No entity is both in the training rows and in the holdout.",
    "leakage": "No single feature gives the label away.",
}


class RecordedError(Protocol):
    """An error as Dagster keeps it: ``package.module.Class: message``, and what caused it."""

    @property
    def message(self) -> str:
        """Class and message."""

    @property
    def cause(self) -> "RecordedError | None":
        """The error that it was raised from; ``None`` for the first."""


def innermost(error: RecordedError | None) -> tuple[bool, str]:
    """Return whether the platform's own error is in a chain, and what it says; else what the innermost error says."""
    text = "no reason was recorded"
    while error is not None:
        text = error.message.strip()
        if text.startswith(INTERRUPTED):
            return True, "Interrupted. What was finished is kept; run it again to go on."
        # The platform's own errors speak for themselves.
        if text.startswith("ml_platform.errors."):
            return True, text.split(": ", 1)[-1]
        error = error.cause
    return False, text
