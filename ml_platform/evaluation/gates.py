"""Apply gates to measurements and a reference, which gives the verdict. Only PASS passes; INCONCLUSIVE blocks."""

from collections.abc import Sequence
from dataclasses import fields, replace
from math import inf, isfinite
from typing import Any, TypeVar

from ml_platform.model_spec import Comparison, Gate, ModelSpec, declared_fields
from ml_platform.records.canonical import canonical_json, sha256_text, versioned
from ml_platform.records.verdict import Candidate, Evaluation, GateOutcome, GateResult, Measurement, Reference, Verdict

# The possible range of each metric. A number outside has another unit or is invented: an AUC of 79 is a percentage; a
# time of 0.003 ms is in seconds, as no pipeline builds a frame and predicts within a twentieth of a millisecond.
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
# The bounds of these are the range of the machine's noise: a gate on them holds only if the whole range meets it.
TIMES = frozenset({"inference_time_ms", "inference_p50_ms", "inference_p99_ms"})
NUMBER = float | None
Record = TypeVar("Record", Measurement, Reference)
WORST_FIRST = (GateOutcome.FAIL, GateOutcome.INCONCLUSIVE, GateOutcome.PASS)
# The schema version that `gates_digest` covers. Increase it if a default of Gate or Comparison changes.
GATES_SCHEMA = 1


def gates_digest(spec: ModelSpec) -> str:
    """Return the hex sha256 of the declarations that decide on candidates: gates, comparison, and their data."""
    decisive = {
        "gates": [declared_fields(gate) for gate in spec.gates],
        "comparison": spec.comparison and declared_fields(spec.comparison),
        "baseline": spec.stated_baseline,
        "slices": [declared_fields(part) for part in spec.parts],
        "split": spec.stated_split,
        "columns": [spec.entity, spec.event_time],
        "task": [spec.task, spec.label, spec.positive],
        "golden": [declared_fields(golden) for golden in spec.golden],
    }
    return sha256_text(canonical_json(versioned(GATES_SCHEMA, decisive)))


# One gate


def judge_gate(gate: Gate, measurements: Sequence[Measurement], spec: ModelSpec) -> GateResult:
    """Apply one gate to every slice that it names; the worst slice's result is the gate's."""
    places = [part.name for part in spec.expand_slices(gate.slices)] or [""]
    results = [_judge_slice(place, gate, measurements) for place in places]
    sign = -1.0 if gate.at_least is None else 1.0

    def badness(result: GateResult) -> tuple[int, float]:
        slack = 0.0 if result.value is None else sign * (result.value - gate.bound)
        return WORST_FIRST.index(result.outcome), slack

    worst = min(results, key=badness)
    # no guard: message text
    if worst.outcome is GateOutcome.PASS:
        return worst
    return replace(worst, why="; ".join(result.why for result in results if result.outcome is not GateOutcome.PASS))


def _judge_slice(place: str, gate: Gate, measurements: Sequence[Measurement]) -> GateResult:
    where = (gate.dataset, place, gate.metric)
    matches = [
        measurement
        for measurement in measurements
        if (measurement.dataset, measurement.slice, measurement.metric) == where
    ]
    # Two measurements of the same thing contradict each other, and neither may be chosen.
    # guard: duplicate-measurement
    measurement = matches[0] if len(matches) == 1 else None
    problem = _find_measurement_problem(gate, measurement)
    # no guard: message text
    on = f" on {place}" if place else ""
    # guard: unusable-measurement
    # no guard: for the type checker; _find_measurement_problem checks it
    if problem or measurement is None:
        return _make_result(gate, None, GateOutcome.INCONCLUSIVE, f"{gate.metric}{on} {problem}")
    value, outcome = _decide(gate, measurement)
    # no guard: message text
    side = "" if value == measurement.value else f", {value:.4g} at its bound"
    why = f"{gate.metric}{on} is {measurement.value:.4g}{side}, the gate asks for {gate.asks}"
    return _make_result(gate, value, outcome, why)


def _find_measurement_problem(gate: Gate, measurement: Measurement | None) -> str:
    """Return the reason for an inconclusive measurement; an empty text if it decides."""
    # guard: missing-measurement, missing-value, nan-value
    if measurement is None or measurement.value is None or not isfinite(measurement.value):
        # no guard: message text
        detail = f": {measurement.reason}" if measurement and measurement.reason else ""
        return f"was not computed, or is not finite{detail}"
    # guard: gate-too-few-rows
    if measurement.rows is not None and measurement.rows < gate.min_rows:
        return f"rests on {measurement.rows} rows, {gate.min_rows} are asked for"
    lowest, highest = PLAUSIBLE.get(gate.metric, (-inf, inf))
    # guard: implausible-value
    if not lowest <= measurement.value <= highest:
        return f"is {measurement.value:.4g}, which is not between {lowest:g} and {highest:g}: its unit is wrong"
    # guard: bound-of-gate-on-bound, bound-of-time
    if gate.on == "confidence_bound" or gate.metric in TIMES:
        # guard: no-lower-bound, no-upper-bound
        if measurement.low is None or measurement.high is None:
            return f"has no bounds: {measurement.reason or 'none were computed'}"
        # guard: value-outside-bounds
        return "" if measurement.low <= measurement.value <= measurement.high else "is not between its own bounds"
    return ""


def _decide(gate: Gate, measurement: Measurement) -> tuple[float, GateOutcome]:
    """Return the deciding number and its outcome. NaN is refused before, and meets no bound."""
    good, bad = (measurement.high, measurement.low) if gate.at_least is None else (measurement.low, measurement.high)
    # guard: time-within-noise
    if gate.metric in TIMES and not _meets_bound(gate, good):
        return float(bad or 0.0), GateOutcome.INCONCLUSIVE if _meets_bound(gate, bad) else GateOutcome.FAIL
    value = good if gate.on == "confidence_bound" else measurement.value
    # guard: gate-met
    return float(value or 0.0), GateOutcome.PASS if _meets_bound(gate, value) else GateOutcome.FAIL


def _meets_bound(gate: Gate, value: float | None) -> bool:
    # no guard: for the type checker; _find_measurement_problem checks it
    # guard: gate-bound
    return value is not None and (value <= gate.bound if gate.at_least is None else value >= gate.bound)


def _make_result(of: Gate | Comparison, value: float | None, outcome: GateOutcome, why: str) -> GateResult:
    return GateResult(name=of.name, condition=of.condition, value=value, outcome=outcome, why=why)


# The comparison


def judge_comparison(comparison: Comparison, evaluation: Evaluation, model_digest: str) -> GateResult:
    """Apply the comparison with the champion or, for the first model, with the baseline.

    Parameters
    ----------
    comparison : Comparison
    evaluation : Evaluation
    model_digest : str
        Hex sha256 of the candidate's bytes: a champion with the same bytes is no reference.
    """
    reference = evaluation.reference
    problem = _find_comparison_problem(comparison, evaluation, model_digest)
    # guard: unusable-comparison
    # no guard (3): for the type checker; _find_comparison_problem checks it
    if problem or reference is None or reference.low is None or reference.difference is None:
        return _make_result(comparison, None, GateOutcome.INCONCLUSIVE, f"{comparison.metric} {problem}")
    requirement, met = _check_lower_bound(comparison, reference.kind, reference.low)
    why = (
        f"{comparison.metric} gains {reference.difference:+.4g} over {reference.name}, {reference.low:+.4g} at the "
        f"lower bound, on {reference.rows} rows; the lower bound must be {requirement}"
    )
    # guard: comparison-met
    return _make_result(comparison, reference.low, GateOutcome.PASS if met else GateOutcome.FAIL, why)


def _check_lower_bound(comparison: Comparison, kind: str, low: float) -> tuple[str, bool]:
    """Return the requirement in words, and True if the lower bound of the gain meets it."""
    # guard: baseline-comparison
    if kind == "baseline":
        # guard: gain-over-baseline
        return "above 0", low > 0
    # guard: minimum-gain-declared
    if comparison.min_gain is not None:
        gain = comparison.min_gain
        # guard: minimum-gain
        # no guard: follows from the minimum gain, which is at least 0
        return f"at least {gain:g}, and above {-comparison.margin:g}", low >= gain and low > -comparison.margin
    # guard: comparison-margin
    return f"above {-comparison.margin:g}", low > -comparison.margin


def _find_comparison_problem(comparison: Comparison, evaluation: Evaluation, model_digest: str) -> str:
    """Return the reason for an inconclusive comparison; an empty text if it decides."""
    reference = evaluation.reference
    # guard: no-comparison, comparison-of-other-metric
    if reference is None or reference.metric != comparison.metric:
        return "was not compared with a reference"
    # guard: failed-comparison
    if reference.reason:
        return f"was not compared with {reference.name}: {reference.reason}"
    # guard: comparison-with-other-version
    if problem := _find_reference_problem(comparison, evaluation, reference, model_digest):
        return problem
    # guard: comparison-too-few-rows
    if reference.rows < comparison.min_rows:
        return f"was compared on {reference.rows} rows, {comparison.min_rows} are asked for"
    numbers = (reference.low, reference.difference, reference.high)
    # guard: nan-difference
    if any(number is None or not isfinite(number) for number in numbers):
        return f"has no finite difference to {reference.name} with bounds"
    in_order = numbers[0] <= numbers[1] <= numbers[2]  # type: ignore[operator]
    # guard: difference-outside-bounds
    return "" if in_order else "has a difference that is not between its own bounds"


def _find_reference_problem(
    comparison: Comparison, evaluation: Evaluation, reference: Reference, model_digest: str
) -> str:
    """Return the reason against a reference; an empty text if it counts.

    The champion counts, and the baseline if there is no champion or it has the candidate's bytes.
    """
    same_bytes = reference.model_digest == model_digest
    # guard: champion-comparison
    if reference.kind == "champion":
        # guard: comparison-with-same-bytes
        if same_bytes:
            return f"was compared with itself: {reference.name} has the same bytes"
        problem = f"was compared with {reference.name}, which is not champion"
        # guard: comparison-with-champion
        return "" if reference.version == evaluation.champion else problem
    excused = evaluation.champion is None or (same_bytes and comparison.min_gain is None)
    # guard: baseline-despite-champion
    return "" if excused else f"was compared with {reference.name} although version {evaluation.champion} is champion"


# The verdict


def judge(candidate: Candidate, evaluation: Evaluation, spec: ModelSpec) -> Verdict:
    """Apply every gate to a candidate's evaluation. Return the verdict, bound to model, data, gates and code."""
    reference = evaluation.reference
    if reference is not None:
        measurements = [_to_plain_numbers(one) for one in reference.measurements]
        reference = replace(_to_plain_numbers(reference), measurements=measurements)
    measurements = [_to_plain_numbers(one) for one in evaluation.measurements]
    plain = replace(evaluation, measurements=measurements, reference=reference)
    results = [judge_gate(gate, plain.measurements, spec) for gate in spec.gates]
    # guard: comparison-declared
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
        evaluation=plain,
        results=results,
        origin_digest=candidate.origin_digest,
        served_digest=candidate.served_digest,
    )


def _to_plain_numbers(record: Record) -> Record:
    """Return a record with Python's own numbers, whose JSON differs from NumPy's; None for NaN and infinity."""
    names = [field.name for field in fields(record) if field.type == NUMBER]
    numbers: dict[str, Any] = {name: _number(getattr(record, name)) for name in names}
    return replace(record, **numbers)


def _number(value: Any) -> float | None:
    # guard: unset-number, nan-number
    return float(value) if value is not None and isfinite(value) else None


def refusals(verdict: Verdict, candidate: Candidate, spec: ModelSpec, model_digest: str) -> list[str]:
    """Return the reasons why a verdict is no evidence for a candidate; an empty list if it is.

    Every gate is judged again from the verdict's own evaluation, so that neither an edited result nor a dropped gate
    passes.

    Parameters
    ----------
    verdict : Verdict
        The stored verdict.
    candidate : Candidate
        The candidate that it must be about.
    spec : ModelSpec
        The gates as declared now.
    model_digest : str
        Hex sha256 of the model's bytes, just computed.
    """
    # An erasure changes the list of served files after the verdict, see `database.decided`.
    again = replace(judge(candidate, verdict.evaluation, spec), served_digest=verdict.served_digest)
    # A verdict of an earlier release binds no origin.
    if verdict.origin_digest is None:
        again = replace(again, origin_digest=None)
    reasons = []
    # guard: verdict-of-other-bytes, candidate-of-other-bytes
    if model_digest != verdict.model_digest or model_digest != candidate.model_digest:
        reasons.append(
            f"the model's bytes have sha256 {model_digest[:12]}, the verdict is about {verdict.model_digest[:12]}"
        )
    # guard: changed-gates
    if verdict.gates_digest != gates_digest(spec):
        reasons.append("the gates were changed since it was judged")
    # guard: edited-verdict
    if again.digest != verdict.digest:
        reasons.append("the verdict does not follow from its own measurements")
    # guard: failed-gates
    reasons += [result.why for result in again.results if result.outcome is not GateOutcome.PASS]
    return reasons
