"""Figures against gates and a rival: a verdict. Only PASS passes; what cannot be told is INCONCLUSIVE and blocks."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from math import inf, isfinite
from typing import Any, TypeVar

from ml_platform.model_spec import Comparison, Gate, ModelSpec
from ml_platform.records import (
    Candidate,
    Figure,
    Findings,
    GateOutcome,
    GateResult,
    Rival,
    Verdict,
    canonical_json,
    sha256_text,
)

# What a metric can be at all. A number outside has another unit or is made up: an AUC of 79 is a percentage, a record
# in 0.003 ms was timed in seconds, for no pipeline builds a frame and answers within a twentieth of a millisecond.
PLAUSIBLE = {
    **dict.fromkeys(("auc_roc", "auc_ovr", "average_precision", "accuracy"), (0.0, 1.0)),
    **dict.fromkeys(("f1_score", "f1_macro", "precision", "recall"), (0.0, 1.0)),
    **dict.fromkeys(("brier_score", "expected_calibration_error"), (0.0, 1.0)),
    **dict.fromkeys(("log_loss", "mean_absolute_error", "root_mean_squared_error"), (0.0, inf)),
    "r2": (-inf, 1.0),
    **dict.fromkeys(("inference_time_ms", "inference_p50_ms", "inference_p99_ms"), (0.05, 3_600_000.0)),
    "first_prediction_ms": (0.05, 3_600_000.0),
    "cold_load_seconds": (0.001, 3_600.0),
    "resident_memory_mib": (1.0, 16_777_216.0),
    "model_size_mb": (0.000_01, 1_000_000.0),
}
# Of these the bounds are what noise leaves: a gate on them holds where the whole range does.
TIMES = frozenset({"inference_time_ms", "inference_p50_ms", "inference_p99_ms"})
NUMBER = float | None
Record = TypeVar("Record", Figure, Rival)
WORST_FIRST = (GateOutcome.FAIL, GateOutcome.INCONCLUSIVE, GateOutcome.PASS)


def gates_digest(spec: ModelSpec) -> str:
    """Return the hex sha256 of all that decides over a model's candidates: gates, comparison, and what they rest on."""
    decisive = {
        "gates": [gate.model_dump(mode="json") for gate in spec.gates],
        "comparison": spec.comparison and spec.comparison.model_dump(mode="json"),
        "baseline": spec.stated_baseline,
        "slices": [part.model_dump(mode="json") for part in spec.parts],
        "split": spec.stated_split,
        "task": [spec.task, spec.label, spec.positive],
        "golden": [golden.model_dump(mode="json") for golden in spec.golden],
    }
    return sha256_text(canonical_json(decisive))


# One gate


def judge_gate(gate: Gate, figures: Sequence[Figure], spec: ModelSpec) -> GateResult:
    """Apply one gate, on every slice that it asks for; the worst result is the gate's."""
    places = [part.name for part in spec.parts_of(gate.slices)] or [""]
    results = [_judge_at(place, gate, figures) for place in places]
    worst = min(results, key=lambda result: (WORST_FIRST.index(result.outcome), _slack(gate, result)))
    if worst.outcome is GateOutcome.PASS:
        return worst
    said = "; ".join(result.why for result in results if result.outcome is not GateOutcome.PASS)
    return replace(worst, why=said)


def _slack(gate: Gate, result: GateResult) -> float:
    if result.value is None:
        return 0.0
    return gate.bound - result.value if gate.at_least is None else result.value - gate.bound


def _judge_at(place: str, gate: Gate, figures: Sequence[Figure]) -> GateResult:
    where = (gate.dataset, place, gate.metric)
    found = [figure for figure in figures if (figure.dataset, figure.slice, figure.metric) == where]
    # Two figures of one thing contradict each other, and neither may be picked.
    figure = found[0] if len(found) == 1 else None
    problem = _problem(gate, figure)
    on = f" on {place}" if place else ""
    if problem or figure is None:
        why = f"{gate.metric}{on} {problem}"
        return _result(gate, None, GateOutcome.INCONCLUSIVE, why)
    value, outcome = _decide(gate, figure)
    side = "" if value == figure.value else f", {value:.4g} at its bound"
    why = f"{gate.metric}{on} is {figure.value:.4g}{side}, the gate asks for {gate.asks}"
    return _result(gate, value, outcome, why)


def _problem(gate: Gate, figure: Figure | None) -> str:
    """Say why a figure decides nothing; an empty text if it does."""
    if figure is None or figure.value is None or not isfinite(figure.value):
        detail = f": {figure.reason}" if figure and figure.reason else ""
        return f"was not computed, or is no finite number{detail}"
    if figure.rows is not None and figure.rows < gate.least_rows:
        return f"rests on {figure.rows} rows, {gate.least_rows} are asked for"
    least, most = PLAUSIBLE.get(gate.metric, (-inf, inf))
    if not least <= figure.value <= most:
        return f"is {figure.value:.4g}, which is not between {least:g} and {most:g}: its unit is wrong"
    if gate.on == "bound" or gate.metric in TIMES:
        return _bounds_problem(figure)
    return ""


def _bounds_problem(figure: Figure) -> str:
    if figure.low is None or figure.high is None or figure.value is None:
        return f"has no bounds: {figure.reason or 'nobody computed them'}"
    return "" if figure.low <= figure.value <= figure.high else "is not between its own bounds"


def _decide(gate: Gate, figure: Figure) -> tuple[float, GateOutcome]:
    """Return the number that decides and what it decides; NaN cannot come here, and passes no comparison anyway."""
    good, bad = (figure.high, figure.low) if gate.at_least is None else (figure.low, figure.high)
    if gate.metric in TIMES and not _holds(gate, good):
        return float(bad or 0.0), GateOutcome.INCONCLUSIVE if _holds(gate, bad) else GateOutcome.FAIL
    value = good if gate.on == "bound" else figure.value
    return float(value or 0.0), GateOutcome.PASS if _holds(gate, value) else GateOutcome.FAIL


def _holds(gate: Gate, value: float | None) -> bool:
    return value is not None and (value <= gate.bound if gate.at_least is None else value >= gate.bound)


def _result(of: Gate | Comparison, value: float | None, outcome: GateOutcome, why: str) -> GateResult:
    return GateResult(name=of.name, condition=of.condition, value=value, outcome=outcome, why=why)


# The comparison


def judge_comparison(comparison: Comparison, findings: Findings, model_digest: str) -> GateResult:
    """Apply the comparison with the champion, or, for the first model, with the baseline."""
    rival = findings.rival
    problem = _no_comparison(comparison, findings, model_digest)
    if problem or rival is None or rival.low is None or rival.difference is None:
        return _result(comparison, None, GateOutcome.INCONCLUSIVE, f"{comparison.metric} {problem}")
    asked, holds = _asked(comparison, rival)
    why = (
        f"{comparison.metric} gains {rival.difference:+.4g} over {rival.name}, {rival.low:+.4g} at the lower bound, on "
        f"{rival.rows} rows; the lower bound must be {asked}"
    )
    return _result(comparison, rival.low, GateOutcome.PASS if holds else GateOutcome.FAIL, why)


def _asked(comparison: Comparison, rival: Rival) -> tuple[str, bool]:
    low = -inf if rival.low is None else rival.low
    if rival.kind == "baseline":
        return "above 0", low > 0
    if comparison.minimum_gain is not None:
        gain = comparison.minimum_gain
        return f"at least {gain:g}, and above {-comparison.margin:g}", low >= gain and low > -comparison.margin
    return f"above {-comparison.margin:g}", low > -comparison.margin


def _no_comparison(comparison: Comparison, findings: Findings, model_digest: str) -> str:
    """Say why a comparison decides nothing; an empty text if it does."""
    rival = findings.rival
    if rival is None or rival.metric != comparison.metric:
        return "was compared with nobody"
    if rival.reason:
        return f"was not compared with {rival.name}: {rival.reason}"
    if stranger := _stranger(comparison, findings, rival, model_digest):
        return stranger
    if rival.rows < comparison.least_rows:
        return f"was compared on {rival.rows} rows, {comparison.least_rows} are asked for"
    numbers = (rival.low, rival.difference, rival.high)
    if any(number is None or not isfinite(number) for number in numbers):
        return f"differs from that of {rival.name} by what is no finite number"
    in_order = numbers[0] <= numbers[1] <= numbers[2]  # type: ignore[operator]
    return "" if in_order else "differs by what is not between its own bounds"


def _stranger(comparison: Comparison, findings: Findings, rival: Rival, model_digest: str) -> str:
    """Say why a rival is not the one that counts: the champion, or the baseline where that is the model itself."""
    same_bytes = rival.model_digest == model_digest
    if rival.kind == "champion":
        if same_bytes:
            return f"was compared with itself: {rival.name} has the same bytes"
        return "" if rival.version == findings.champion else f"was compared with {rival.name}, which is not champion"
    excused = findings.champion is None or (same_bytes and comparison.minimum_gain is None)
    return "" if excused else f"was compared with {rival.name} although version {findings.champion} is champion"


# The verdict


def judge(candidate: Candidate, findings: Findings, spec: ModelSpec) -> Verdict:
    """Apply every gate to what was measured of a candidate; return the verdict, bound to what it speaks of."""
    plain = _plain_findings(findings)
    results = [judge_gate(gate, plain.figures, spec) for gate in spec.gates]
    if spec.comparison is not None:
        results.append(judge_comparison(spec.comparison, plain, candidate.model_digest))
    return Verdict(
        candidate=candidate.id,
        model=candidate.model,
        model_digest=candidate.model_digest,
        dataset_version=candidate.lineage.dataset_version,
        dataset_digest=candidate.lineage.dataset_digest,
        gates_digest=gates_digest(spec),
        code_revision=candidate.lineage.code_revision,
        lock_digest=candidate.lineage.lock_digest,
        split=spec.stated_split,
        slices=[part.name for part in spec.parts],
        baseline=spec.stated_baseline,
        findings=plain,
        results=results,
    )


def _plain_findings(findings: Findings) -> Findings:
    rival = findings.rival
    if rival is not None:
        rival = replace(_plain(rival), figures=_plain_figures(rival.figures))
    return replace(findings, figures=_plain_figures(findings.figures), rival=rival)


def _plain_figures(figures: Iterable[Figure]) -> list[Figure]:
    return [_plain(figure) for figure in figures]


def _plain(record: Record) -> Record:
    """Return a record with Python's own numbers, None for those that JSON lacks: NumPy's would not be written alike."""
    names = [field.name for field in fields(record) if field.type == NUMBER]
    numbers: dict[str, Any] = {name: _number(getattr(record, name)) for name in names}
    return replace(record, **numbers)


def _number(value: Any) -> float | None:
    return float(value) if value is not None and isfinite(value) else None


def refusals(verdict: Verdict, candidate: Candidate, spec: ModelSpec, model_digest: str) -> list[str]:
    """Say why a verdict is no evidence for a candidate; an empty list means that it is.

    Every gate is judged again from the verdict's own findings, so that neither an edited result nor a gate that was
    dropped passes.

    Parameters
    ----------
    verdict : Verdict
        What was stored.
    candidate : Candidate
        What it must speak of.
    spec : ModelSpec
        The gates as they are declared now.
    model_digest : str
        Hex sha256 of the model's bytes, computed just now.
    """
    again = judge(candidate, verdict.findings, spec)
    found = []
    if model_digest != verdict.model_digest or model_digest != candidate.model_digest:
        found.append(
            f"the model's bytes have sha256 {model_digest[:12]}, the verdict speaks of {verdict.model_digest[:12]}"
        )
    if verdict.gates_digest != gates_digest(spec):
        found.append("the gates were changed since it was judged")
    if again.digest != verdict.digest:
        found.append("the verdict does not follow from its own findings")
    found += [result.why for result in again.results if result.outcome is not GateOutcome.PASS]
    return found
