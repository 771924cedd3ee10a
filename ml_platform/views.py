"""What Dagster shows of the platform's records: metadata of assets, and results of checks."""

import base64
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import dagster as dg

from ml_platform import workflows
from ml_platform.errors import EvidenceError
from ml_platform.model_spec import ModelSpec
from ml_platform.records import (
    BatchResult,
    Candidate,
    Figure,
    GateOutcome,
    GateResult,
    LedgerEntry,
    Outcome,
    RawBatch,
    Registration,
    Verdict,
)
from ml_platform.stages.datasets import DatasetReport
from ml_platform.stages.previews import Preview
from ml_platform.stages.profiles import Profile
from ml_platform.stages.rollout import StepReport
from ml_platform.workflows import Judgement, Platform, TakenPredictions, Traffic

INTERRUPTED = "dagster._core.errors.DagsterExecutionInterruptedError"
EXAMPLES = 5
LONGEST_VALUE = 60
# The metadata of champion_version that says which decision of the ledger it shows.
LEDGER_ENTRY = "ledger_entry"


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
    """Return what one arrival's partition shows.

    The run over several shows nothing of its own: Dagster would repeat it in every partition, above this.
    """
    shown: dict[str, Any] = {
        "file": result.arrival.name,
        "outcome": result.outcome.value,
        "reason": result.reason,
        "rows": result.rows,
        "quarantined_rows": result.quarantined_rows,
    }
    quoted = [example for examples in result.examples.values() for example in examples]
    examples = [dg.TableRecord({"examples of bad rows": example}) for example in quoted[:EXAMPLES]]
    return {**shown, "examples": dg.MetadataValue.table(examples)} if examples else shown


def data_check(name: str, results: Sequence[BatchResult]) -> dg.AssetCheckResult:
    """Return one data check's result over the arrivals of a run; ERROR where one was quarantined whole by it.

    Its metadata count the rows that break each rule, and quote up to five.
    """
    whole = [r for r in results if r.outcome is Outcome.QUARANTINED]
    hit = whole if name == "quarantined_share" else [r for r in results if r.rules.get(name)]
    counts = sum((Counter(r.rules.get(name, {})) for r in results), Counter[str]())
    said = {r.arrival.name: r.reason for r in hit[:EXAMPLES]}
    quoted = [f"{r.arrival.name}, {example}" for r in hit for example in r.examples.get(name, [])]
    table = [_row_of(result) for result in hit[:50]]
    return dg.AssetCheckResult(
        check_name=name,
        passed=not hit,
        severity=dg.AssetCheckSeverity.ERROR if set(map(id, hit)) & set(map(id, whole)) else dg.AssetCheckSeverity.WARN,
        description="; ".join(f"{file}: {reason}" for file, reason in said.items()) or None,
        metadata={
            "files": len(hit),
            **({"which": dg.MetadataValue.table(table)} if table else {}),
            "rules": dg.MetadataValue.json(dict(counts)),
            "examples": dg.MetadataValue.json(quoted[:EXAMPLES]),
        },
    )


def _row_of(result: BatchResult) -> dg.TableRecord:
    said = {"file": result.arrival.name, "outcome": result.outcome.value, "reason": result.reason}
    return dg.TableRecord({**said, "partition": result.arrival.key})


def dataset_metadata(report: DatasetReport) -> dict[str, Any]:
    """Return the figures of a dataset version."""
    return {
        "dagster/row_count": report.dataset.rows,
        "version": report.dataset.version,
        "digest": report.dataset.digest,
        "training_rows": report.training_rows,
        "holdout_rows": report.holdout_rows,
        **({} if report.share_positive is None else {"share_positive": report.share_positive}),
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


def gate_checks(platform: Platform, spec: ModelSpec, judgement: Judgement) -> Iterator[dg.AssetCheckResult]:
    """Yield one result for every gate that a model declares, with its evidence.

    Raises
    ------
    EvidenceError
        The verdict has not exactly one result for every gate: Dagster must not take what is left out for passed.
    """
    verdict, asked = judgement.verdict, list(spec.conditions)
    if sorted(result.name for result in verdict.results) != sorted(asked):
        raise EvidenceError(f"The verdict on {verdict.candidate} must answer {asked}. Judge the candidate again.")
    evidence: dict[str, Any] = {
        "verdict": verdict.digest,
        "mlflow_run": dg.MetadataValue.url(_mlflow_run(platform, judgement.mlflow_run_id)),
        "verdict_page": dg.MetadataValue.path(judgement.page),
    }
    for position, result in enumerate(verdict.results):
        # One picture and one table are enough: each copy would stand in the event log.
        shown = _shown(judgement) if position == 0 else {}
        yield gate_check(result, {**evidence, **_beside(result, spec, verdict), **shown})


def fast_path_check(judgement: Judgement) -> dg.AssetCheckResult:
    """Return whether a server may go by the compiled preprocessing; where not, it goes by DataFrames, and is slower."""
    found = judgement.parity
    return dg.AssetCheckResult(
        check_name="fast_path",
        passed=found.passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=found.why,
        metadata={"rows": found.rows, "cases": found.cases, "refused": found.refused},
    )


def gate_check(result: GateResult, evidence: dict[str, Any]) -> dg.AssetCheckResult:
    """Return a gate's result as Dagster takes it: the one place that says passed, always an error where it did not.

    Dagster lets a blocking check through that returns None, False or a dict, or that only warns.
    """
    figures = {"result": result.outcome.value, "gate": result.condition, "value": result.value, "why": result.why}
    return dg.AssetCheckResult(
        check_name=result.name,
        passed=result.outcome is GateOutcome.PASS,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"{result.outcome.value}: {result.why}",
        metadata={**figures, **evidence},
    )


def _shown(judgement: Judgement) -> dict[str, Any]:
    pictures = {"curves": _picture(judgement.curves)} if judgement.curves else {}
    return {**pictures, "figures": _figures_table(judgement.verdict)}


def _beside(result: GateResult, spec: ModelSpec, verdict: Verdict) -> dict[str, Any]:
    """Return what stands beside the result of a comparison: whom it was made with, and what came of it."""
    rival = verdict.findings.rival
    if spec.comparison is None or result.name != spec.comparison.name or rival is None:
        return {}
    numbers = {"difference": rival.difference, "low": rival.low, "high": rival.high, "p_better": rival.p_better}
    return {"against": rival.name, "rows": rival.rows, "method": rival.method, **numbers}


def _figures_table(verdict: Verdict) -> dg.TableMetadataValue:
    theirs = {f.label: f.value for f in (verdict.findings.rival.figures if verdict.findings.rival else [])}
    records = [
        dg.TableRecord({**_row(figure), "rival": _number(theirs.get(figure.label))})
        for figure in verdict.findings.figures
    ]
    return dg.MetadataValue.table(records)


def _row(figure: Figure) -> dict[str, str]:
    numbers = {name: _number(getattr(figure, name)) for name in ("value", "low", "high")}
    place = {"dataset": figure.dataset, "slice": figure.slice or "all rows", "metric": figure.metric}
    return {**place, **numbers, "rows": "" if figure.rows is None else str(figure.rows)}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def version_metadata(platform: Platform, registration: Registration) -> dict[str, Any]:
    """Return a registered version, with its page in MLflow."""
    page = f"{platform.settings.mlflow_ui}/#/models/{registration.model}/versions/{registration.version}"
    return {
        "version": registration.version,
        "candidate": registration.candidate,
        "mlflow": dg.MetadataValue.url(page),
    }


def evidence_metadata(platform: Platform, candidate: Candidate) -> dict[str, Any]:
    """Return the metrics and the picture that a candidate's verdict rests on, and where its page stands."""
    verdict = platform.database.verdict_on(candidate.id)
    curves = workflows.curves_of(platform, candidate)
    metrics = verdict.metrics if verdict else {}
    # On all rows of the holdout: bounds, slices and golden datasets stand in the gates' table.
    plain: dict[str, Any] = {name: value for name, value in metrics.items() if "/" not in name and "." not in name}
    return {**plain, **({"curves": _picture(curves)} if curves else {}), **verdict_links(platform, candidate)}


def verdict_links(platform: Platform, candidate: Candidate) -> dict[str, Any]:
    """Return where the page of a candidate's verdict stands: a file, and the MLflow run that holds it too."""
    page, run_id = platform.verdict_page(candidate), candidate.mlflow_run_id
    return {
        **({"verdict_page": dg.MetadataValue.path(page)} if page.is_file() else {}),
        **({"mlflow_run": dg.MetadataValue.url(_mlflow_run(platform, run_id))} if run_id else {}),
    }


def entry_metadata(platform: Platform, entry: LedgerEntry) -> dict[str, Any]:
    """Return a promotion as the ledger has it, with the page of the verdict that it rests on."""
    return {
        **verdict_links(platform, platform.database.candidate(entry.candidate)),
        "version": entry.version,
        "action": entry.action,
        "by": entry.actor,
        "instead_of": entry.previous_version or "none: it is the first",
        LEDGER_ENTRY: entry.sequence,
        "verdict": entry.verdict_digest,
        "reason": entry.reason,
    }


def champion_event(platform: Platform, entry: LedgerEntry) -> dg.AssetMaterialization:
    """Return what lets Dagster show a decision that no run of its own made."""
    return dg.AssetMaterialization([entry.model, "champion_version"], metadata=entry_metadata(platform, entry))


def unshown_decisions(
    platform: Platform, instance: dg.DagsterInstance, model: str
) -> list[dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation]:
    """Return what lets Dagster show the decisions behind the last one that it shows, oldest first.

    Rollbacks and replacements come from the command line, from servers and from sensors; whoever made them need not
    know Dagster. Where Dagster shows none, the last one is enough.
    """
    shown = instance.get_latest_materialization_event(dg.AssetKey([model, "champion_version"]))
    last = shown.asset_materialization.metadata.get(LEDGER_ENTRY) if shown and shown.asset_materialization else None
    history = platform.database.history(model)
    unshown = [e for e in history if e.sequence > int(str(last.value))] if last is not None else history[-1:]
    return [champion_event(platform, entry) for entry in unshown]


def traffic_metadata(platform: Platform, found: Traffic) -> dict[str, Any]:
    """Return how traffic stands, what was done about it, and both versions' figures side by side."""
    now = workflows.plan_in_force(platform, found.model)
    shown: dict[str, Any] = {
        "step": found.step.value,
        "why": found.why,
        "servers": dg.MetadataValue.json([beat.server for beat in found.servers]),
        **({"before": workflows.described(found.plan)} if found.plan else {}),
        **({"now": workflows.described(now), "plan": now.sequence, "share": now.share} if now else {}),
        **({"ledger_entry": found.entry.sequence} if found.entry else {}),
    }
    if found.report is None:
        return shown
    numbers = {
        f"{name}_of_{place}": value
        for place, arm in zip(("stable", "successor"), found.report.document["versions"], strict=True)
        for name, value in arm.items()
        if name in {"version", "requests", "records", "failures", "error_share", "p95_seconds"} and value is not None
    }
    return {**shown, **numbers, "figures": dg.MetadataValue.md(_figures_text(found.report))}


def _figures_text(report: StepReport) -> str:
    stable, successor = report.document["versions"]
    names = ("requests", "records", "failures", "error_share", "error_low", "error_high", "p95_seconds")
    rows = [f"| {name} | {_number(stable[name])} | {_number(successor[name])} |" for name in names]
    said = [f"- **{c.name}** {c.outcome}: {c.why}" for c in report.conditions]
    head = f"| | version {stable['version']} | version {successor['version']} |"
    return "\n".join([head, "|---|---|---|", *rows, "", *said])


def prediction_metadata(taken: TakenPredictions) -> dict[str, Any]:
    """Return what a run added to the prediction log."""
    return {
        "files": taken.files,
        "dagster/row_count": taken.total,
        "new_rows": taken.rows,
        "unreadable_lines": taken.unreadable,
        "expired_rows": taken.expired,
        "table_version": "none yet" if taken.version is None else taken.version,
    }


def _mlflow_run(platform: Platform, run_id: str) -> str:
    return f"{platform.settings.mlflow_ui}/#/runs/{run_id}"


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
