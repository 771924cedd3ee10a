"""Convert the platform's records to Dagster's metadata of assets and results of checks."""

import base64
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import dagster as dg

from ml_platform.data.dataset_checks import DatasetReport
from ml_platform.data.pin import golden_problems
from ml_platform.data.preview import Preview
from ml_platform.data.profile import Profile
from ml_platform.errors import EvidenceError
from ml_platform.evaluation.judge import Judgement, read_curves
from ml_platform.evaluation.verdict_view import measurement_table, view_gates
from ml_platform.model_spec import ModelSpec
from ml_platform.monitoring.prediction_log.collect import TakenPredictions
from ml_platform.platform import Platform
from ml_platform.records.data import BatchResult, Outcome, RawBatch
from ml_platform.records.ledger import LedgerEntry, Registration
from ml_platform.records.verdict import Candidate, GateOutcome, GateResult, Verdict
from ml_platform.release.rollout.steps import Traffic, describe_plan
from ml_platform.release.rollout.traffic import plan_in_force
from ml_platform.reporting.charts import format_number

INTERRUPTED = "dagster._core.errors.DagsterExecutionInterruptedError"
EXAMPLES = 5
LONGEST_VALUE = 60
# The metadata key of champion_version with the number of the ledger entry that it shows.
LEDGER_ENTRY = "ledger_entry"


def batch_metadata(batch: RawBatch, preview: Preview | None) -> dict[str, Any]:
    """Return an arrival's source, size, digest and first rows; `preview` is None if the file cannot be read."""
    values: dict[str, Any] = {"source": batch.arrival.name, "bytes": batch.arrival.size, "sha256": batch.sha256}
    if preview is None:
        return {**values, "preview": "cannot be read"}
    counted = {"lines": preview.lines} if preview.rows is None else {"rows": preview.rows}
    if not preview.head:
        return {**values, **counted, "preview": "no rows"}
    names = list(dict.fromkeys(name for row in preview.head for name in row))
    columns = [dg.TableColumn(name, "string") for name in names]
    records = [dg.TableRecord({name: _short(row.get(name, "")) for name in names}) for row in preview.head]
    return {**values, **counted, "preview": dg.MetadataValue.table(records, schema=dg.TableSchema(columns))}


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def arrival_metadata(result: BatchResult) -> dict[str, Any]:
    """Return the metadata of one arrival's partition.

    A run over several partitions has no metadata of its own: Dagster would repeat it in every partition, above this.
    """
    values: dict[str, Any] = {
        "file": result.arrival.name,
        "outcome": result.outcome.value,
        "reason": result.reason,
        "rows": result.rows,
        "published_rows": result.published_rows,
        "quarantined_rows": result.quarantined_rows,
        "passed_over_rows": result.passed_over_rows,
    }
    quoted = [example for examples in result.examples.values() for example in examples]
    examples = [dg.TableRecord({"examples of bad rows": example}) for example in quoted[:EXAMPLES]]
    return {**values, "examples": dg.MetadataValue.table(examples)} if examples else values


def data_check(name: str, results: Sequence[BatchResult]) -> dg.AssetCheckResult:
    """Return one data check's result over the arrivals of a run; an ERROR if it quarantined a whole file.

    Its metadata count the rows that break each rule, and quote up to five.
    """
    whole = [r for r in results if r.outcome is Outcome.QUARANTINED]
    hit = whole if name == "quarantined_share" else [r for r in results if r.rules.get(name)]
    counts = sum((Counter(r.rules.get(name, {})) for r in results), Counter[str]())
    reasons = {r.arrival.name: r.reason for r in hit[:EXAMPLES]}
    quoted = [f"{r.arrival.name}, {example}" for r in hit for example in r.examples.get(name, [])]
    table = [
        dg.TableRecord(
            {"file": r.arrival.name, "outcome": r.outcome.value, "reason": r.reason, "partition": r.arrival.key}
        )
        for r in hit[:50]
    ]
    return dg.AssetCheckResult(
        check_name=name,
        passed=not hit,
        severity=dg.AssetCheckSeverity.ERROR if set(map(id, hit)) & set(map(id, whole)) else dg.AssetCheckSeverity.WARN,
        description="; ".join(f"{file}: {reason}" for file, reason in reasons.items()) or None,
        metadata={
            "files": len(hit),
            **({"which": dg.MetadataValue.table(table)} if table else {}),
            "rules": dg.MetadataValue.json(dict(counts)),
            "examples": dg.MetadataValue.json(quoted[:EXAMPLES]),
        },
    )


def dataset_metadata(report: DatasetReport) -> dict[str, Any]:
    """Return the measurements of a dataset version."""
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
    """Return the check of columns whose distribution moved far from the version before; it never blocks."""
    change = profile.change
    measurements: dict[str, Any] = {} if change is None else {**vars(change)}
    return dg.AssetCheckResult(
        check_name="change",
        passed=not profile.moved,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"moved far: {', '.join(profile.moved)}" if profile.moved else None,
        metadata={**measurements, "stability_index": {c.name: c.psi for c in profile.columns if c.psi is not None}},
    )


def golden_check(platform: Platform, spec: ModelSpec) -> list[dg.AssetCheckResult]:
    """Return the check that golden datasets have their frozen bytes; an empty list for a model without any."""
    if not spec.golden:
        return []
    problems = golden_problems(platform, spec)
    description = "; ".join(problems.values()) or None
    return [dg.AssetCheckResult(check_name="golden", passed=not problems, description=description)]


def dataset_checks(report: DatasetReport) -> list[dg.AssetCheckResult]:
    """Return the results of `DATASET_CHECKS`."""
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
        The verdict has no result, or two, for a gate. Dagster would take a missing result for a success.
    """
    verdict, declared = judgement.verdict, list(spec.conditions)
    # guard: missing-check
    if sorted(result.name for result in verdict.results) != sorted(declared):
        raise EvidenceError(
            f"Expected a result of each gate {declared} in the verdict on {verdict.candidate}, "
            f"got {[result.name for result in verdict.results]}. Judge the candidate again."
        )
    evidence: dict[str, Any] = {
        "verdict": verdict.digest,
        "mlflow_run": dg.MetadataValue.url(_mlflow_run(platform, judgement.mlflow_run_id)),
        "verdict_page": dg.MetadataValue.path(judgement.page),
    }
    # The first gate alone has the picture and the table: each copy would be stored in the event log.
    once: dict[str, Any] = {"curves": _picture(judgement.curves)} if judgement.curves else {}
    once["measurements"] = dg.MetadataValue.table([dg.TableRecord({**row}) for row in measurement_table(verdict)])
    for result in verdict.results:
        yield gate_check(result, {**evidence, **_comparison_metadata(result, spec, verdict), **once})
        once = {}


def fast_path_check(judgement: Judgement) -> dg.AssetCheckResult:
    """Return the check of the compiled preprocessing; if it fails, servers use DataFrames, which are slower."""
    parity = judgement.parity
    return dg.AssetCheckResult(
        check_name="fast_path",
        passed=parity.passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=parity.why,
        metadata={"rows": parity.rows, "cases": parity.cases, "refused": parity.refused},
    )


def gate_check(result: GateResult, evidence: dict[str, Any]) -> dg.AssetCheckResult:
    """Return a gate's result as a check of Dagster: an ERROR unless the gate passed.

    No other function builds it, since Dagster lets a blocking check pass that returns None, False or a dict, or that
    only warns.
    """
    (gate,) = view_gates([result])
    values = {"result": gate.outcome, "gate": gate.condition, "value": gate.value, "why": gate.why}
    return dg.AssetCheckResult(
        check_name=gate.name,
        passed=result.outcome is GateOutcome.PASS,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"{gate.outcome}: {gate.why}",
        metadata={**values, **evidence},
    )


def _comparison_metadata(result: GateResult, spec: ModelSpec, verdict: Verdict) -> dict[str, Any]:
    """Return the reference and the difference behind the comparison's result; an empty dict for other gates."""
    reference = verdict.evaluation.reference
    if spec.comparison is None or result.name != spec.comparison.name or reference is None:
        return {}
    names = ("difference", "low", "high", "p_better")
    numbers = {name: getattr(reference, name) for name in names}
    return {"against": reference.name, "rows": reference.rows, "method": reference.method, **numbers}


def version_metadata(platform: Platform, registration: Registration) -> dict[str, Any]:
    """Return a registered version, with its page in MLflow."""
    page = f"{platform.settings.mlflow_ui_url}/#/models/{registration.model}/versions/{registration.version}"
    return {
        "version": registration.version,
        "candidate": registration.candidate,
        "mlflow": dg.MetadataValue.url(page),
    }


def evidence_metadata(platform: Platform, candidate: Candidate) -> dict[str, Any]:
    """Return the metrics and curves of a candidate's verdict, and the links to its page."""
    verdict = platform.database.verdict_on(candidate.id)
    curves = read_curves(platform, candidate)
    metrics = verdict.metrics if verdict else {}
    # On all rows of the holdout: bounds, slices and golden datasets are in the table of the gates.
    plain: dict[str, Any] = {name: value for name, value in metrics.items() if "/" not in name and "." not in name}
    return {**plain, **({"curves": _picture(curves)} if curves else {}), **verdict_links(platform, candidate)}


def verdict_links(platform: Platform, candidate: Candidate) -> dict[str, Any]:
    """Return the page of a candidate's verdict: its file, and the MLflow run that has a copy."""
    page, run_id = platform.verdict_page(candidate), candidate.mlflow_run_id
    return {
        **({"verdict_page": dg.MetadataValue.path(page)} if page.is_file() else {}),
        **({"mlflow_run": dg.MetadataValue.url(_mlflow_run(platform, run_id))} if run_id else {}),
    }


def entry_metadata(platform: Platform, entry: LedgerEntry) -> dict[str, Any]:
    """Return a ledger entry, with the page of its candidate's verdict."""
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
    """Return the event with which Dagster shows a decision that was made outside its runs."""
    return dg.AssetMaterialization([entry.model, "champion_version"], metadata=entry_metadata(platform, entry))


def unshown_decisions(
    platform: Platform, instance: dg.DagsterInstance, model: str
) -> list[dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation]:
    """Return the events of the decisions after the last one that Dagster shows, oldest first.

    Rollbacks and replacements come from the command line, from servers and from sensors, which need not report to
    Dagster. If Dagster shows none yet, only the last decision is returned.
    """
    shown = instance.get_latest_materialization_event(dg.AssetKey([model, "champion_version"]))
    last = shown.asset_materialization.metadata.get(LEDGER_ENTRY) if shown and shown.asset_materialization else None
    history = platform.database.history(model)
    unshown = [e for e in history if e.sequence > int(str(last.value))] if last is not None else history[-1:]
    return [champion_event(platform, entry) for entry in unshown]


def traffic_metadata(platform: Platform, traffic: Traffic) -> dict[str, Any]:
    """Return the plan of the traffic, the step that was taken, and both versions' measurements side by side."""
    now = plan_in_force(platform, traffic.model)
    values: dict[str, Any] = {
        "step": traffic.step.value,
        "why": traffic.why,
        "servers": dg.MetadataValue.json([beat.server for beat in traffic.servers]),
        **({"before": describe_plan(traffic.plan)} if traffic.plan else {}),
        **({"now": describe_plan(now), "plan": now.sequence, "share": now.share} if now else {}),
        **({"ledger_entry": traffic.entry.sequence} if traffic.entry else {}),
    }
    report = traffic.report
    if report is None:
        return values
    numbers = {
        f"{name}_of_{role}": value
        for role, stats in zip(("stable", "successor"), report.document["versions"], strict=True)
        for name, value in stats.items()
        if name in {"version", "requests", "units", "failed_units", "error_share", "p95_seconds"} and value is not None
    }
    stable, successor = report.document["versions"]
    names = ("requests", "units", "failed_units", "error_share", "error_low", "error_high", "p95_seconds")
    rows = [f"| {name} | {format_number(stable[name], '')} | {format_number(successor[name], '')} |" for name in names]
    conditions = [f"- **{c.name}** {c.outcome}: {c.why}" for c in report.conditions]
    head = f"| | version {stable['version']} | version {successor['version']} |"
    table = "\n".join([head, "|---|---|---|", *rows, "", *conditions])
    return {**values, **numbers, "measurements": dg.MetadataValue.md(table)}


def prediction_metadata(taken: TakenPredictions) -> dict[str, Any]:
    """Return the counts of a run that added files to the table of predictions."""
    return {
        "files": taken.files,
        "dagster/row_count": taken.total,
        "new_rows": taken.rows,
        "unreadable_lines": taken.unreadable,
        "expired_rows": taken.expired,
        "table_version": "none yet" if taken.version is None else taken.version,
    }


def _mlflow_run(platform: Platform, run_id: str) -> str:
    return f"{platform.settings.mlflow_ui_url}/#/runs/{run_id}"


def _picture(svg: bytes) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![ROC and calibration](data:image/svg+xml;base64,{base64.b64encode(svg).decode()})")


DATASET_CHECKS = {
    "min_rows": "There are enough rows to train on.",
    "class_balance": "No class is rarer than the author allows.",
    "disjoint_split": "No entity is both in the training rows and in the holdout.",
    "leakage": "No single feature gives the label away.",
}


class RecordedError(Protocol):
    """An error as Dagster stores it: ``package.module.Class: message``, and its cause."""

    @property
    def message(self) -> str:
        """Class and message."""

    @property
    def cause(self) -> "RecordedError | None":
        """The error that it was raised from; ``None`` for the root cause."""


def root_cause(error: RecordedError | None) -> tuple[bool, str]:
    """Return True and the message of the platform's own error in a chain; without one, False and the root cause's."""
    text = "no reason was recorded"
    while error is not None:
        text = error.message.strip()
        if text.startswith(INTERRUPTED):
            return True, "Interrupted. Finished steps are stored; run it again to continue."
        # The platform's own errors need no class name.
        if text.startswith("ml_platform.errors."):
            return True, text.split(": ", 1)[-1]
        error = error.cause
    return False, text
