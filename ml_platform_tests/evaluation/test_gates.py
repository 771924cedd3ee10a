from dataclasses import replace
from math import inf, isfinite, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_platform.evaluation import gates
from ml_platform.model_spec import DEFAULT_GATES, METRICS, Comparison, Gate, GoldenSet
from ml_platform.records.canonical import sha256_text
from ml_platform.records.verdict import Evaluation, GateOutcome, GateResult, Measurement, Reference, Verdict
from ml_platform_tests.support import fakes

SPEC = fakes.visits_spec()
TIMED = fakes.visits_spec(gates=DEFAULT_GATES)
CANDIDATE = fakes.candidate()
AT_LEAST = Gate(metric="auc_roc", at_least=0.8)
NOT_COMPUTED = "was not computed, or is not finite"
AT_MOST = Gate(metric="inference_time_ms", at_most=100)
quick = settings(max_examples=50, deadline=None, database=None)
finite = st.floats(allow_nan=False, allow_infinity=False)


def refusals(verdict: Verdict, **changes: object) -> list[str]:
    arguments = {"candidate": CANDIDATE, "spec": SPEC, "model_digest": CANDIDATE.model_digest, **changes}
    return gates.refusals(verdict, **arguments)  # type: ignore[arg-type]


def edited_results(verdict: Verdict) -> Verdict:
    """Return a verdict with every result edited to PASS."""
    return replace(verdict, results=[replace(result, outcome=GateOutcome.PASS) for result in verdict.results])


# One gate


def measurement(value: Any, metric: str = "auc_roc", **changes: Any) -> Measurement:
    return Measurement(**{"metric": metric, "value": value, "low": value, "high": value, "rows": 200, **changes})


def judged(gate: Gate, *measurements: Measurement) -> GateResult:
    return gates.judge_gate(gate, measurements, SPEC)


@pytest.mark.parametrize(
    ("gate", "value", "outcome"),
    [
        (AT_LEAST, 0.81, GateOutcome.PASS),
        (AT_LEAST, 0.8, GateOutcome.PASS),
        (AT_LEAST, 0.79, GateOutcome.FAIL),
        (AT_MOST, 99.0, GateOutcome.PASS),
        (AT_MOST, 100.0, GateOutcome.PASS),
        (AT_MOST, 101.0, GateOutcome.FAIL),
    ],
)
def test_gate_metric_on_or_beyond_bound_passes(gate: Gate, value: float, outcome: GateOutcome) -> None:
    result = judged(gate, measurement(value, gate.metric))

    assert (result.outcome, result.value) == (outcome, value)


@quick
@given(bound=finite, value=st.floats())
def test_gate_passes_only_finite_metrics_within_bound(bound: float, value: float) -> None:
    lower = judged(Gate(metric="m", at_least=bound), measurement(value, "m"))
    upper = judged(Gate(metric="m", at_most=bound), measurement(value, "m"))

    assert (lower.outcome is GateOutcome.PASS) == (isfinite(value) and value >= bound)
    assert (upper.outcome is GateOutcome.PASS) == (isfinite(value) and value <= bound)


@pytest.mark.fault("M1")
@pytest.mark.parametrize("value", [nan, inf, -inf, None])
@pytest.mark.parametrize("gate", [AT_LEAST, AT_MOST], ids=["at_least", "at_most"])
def test_gate_nonfinite_metric_is_inconclusive(gate: Gate, value: float | None) -> None:
    result = judged(gate, measurement(value, gate.metric))

    assert (result.outcome, result.value) == (GateOutcome.INCONCLUSIVE, None)
    assert result.why == f"{gate.metric} {NOT_COMPUTED}"


@pytest.mark.parametrize("gate", [AT_LEAST, AT_MOST], ids=["at_least", "at_most"])
def test_gate_missing_metric_is_inconclusive(gate: Gate) -> None:
    result = judged(gate, measurement(1.0, "another"))

    assert (result.outcome, result.value) == (GateOutcome.INCONCLUSIVE, None)
    assert result.why == f"{gate.metric} {NOT_COMPUTED}"


def test_gate_result_names_reason_of_missing_metric() -> None:
    result = judged(AT_LEAST, measurement(None, reason="the rows hold one class only"))

    assert result.why == f"auc_roc {NOT_COMPUTED}: the rows hold one class only"


@pytest.mark.parametrize("place", [{"dataset": "holiday"}, {"slice": "plan = paid"}], ids=["dataset", "slice"])
def test_gate_ignores_other_datasets_and_slices(place: dict[str, str]) -> None:
    assert judged(AT_LEAST, measurement(0.9, **place)).outcome is GateOutcome.INCONCLUSIVE


def test_gate_duplicate_measurement_is_inconclusive() -> None:
    assert judged(AT_LEAST, measurement(0.9), measurement(0.7)).outcome is GateOutcome.INCONCLUSIVE


@pytest.mark.fault("M1")
@pytest.mark.parametrize(
    ("gate", "value"),
    [
        (AT_LEAST, 79.0),
        (AT_LEAST, 1.000_1),
        (Gate(metric="f1_score", at_least=0.7), 81.0),
        (AT_MOST, -3.0),
        (AT_MOST, 0.0),
        (AT_MOST, 0.003),
        (Gate(metric="model_size_mb", at_most=500), 0.0),
        (Gate(metric="model_size_mb", at_most=500), -1.0),
        (Gate(metric="brier_score", at_most=0.2), -0.1),
        (Gate(metric="r2", at_least=0.5), 79.0),
        (Gate(metric="mean_absolute_error", at_most=3), -5.0),
    ],
)
def test_gate_implausible_metric_is_inconclusive(gate: Gate, value: float) -> None:
    result = judged(gate, measurement(value, gate.metric))

    assert (result.outcome, result.value) == (GateOutcome.INCONCLUSIVE, None)
    assert result.why.endswith("its unit is wrong")


def test_gate_result_names_value_and_bound() -> None:
    assert judged(AT_LEAST, measurement(0.5)).why == "auc_roc is 0.5, the gate asks for >= 0.8"


@pytest.mark.parametrize(("rows", "outcome"), [(29, GateOutcome.INCONCLUSIVE), (30, GateOutcome.PASS)])
def test_gate_few_rows_are_inconclusive(rows: int, outcome: GateOutcome) -> None:
    assert judged(AT_LEAST, measurement(0.9, rows=rows)).outcome is outcome


@pytest.mark.parametrize(("rows", "outcome"), [(4, GateOutcome.INCONCLUSIVE), (5, GateOutcome.PASS)])
def test_gate_min_rows_is_declared_by_author(rows: int, outcome: GateOutcome) -> None:
    assert judged(AT_LEAST.model_copy(update={"min_rows": 5}), measurement(0.9, rows=rows)).outcome is outcome


def test_every_metric_has_a_plausible_range() -> None:
    assert {name for names in METRICS.values() for name in names} <= set(gates.PLAUSIBLE)


# On the bound


@pytest.mark.parametrize(
    ("gate", "low", "high", "outcome"),
    [
        (Gate(metric="auc_roc", at_least=0.8, on="confidence_bound"), 0.80, 0.95, GateOutcome.PASS),
        (Gate(metric="auc_roc", at_least=0.8, on="confidence_bound"), 0.79, 0.95, GateOutcome.FAIL),
        (Gate(metric="auc_roc", at_most=0.95, on="confidence_bound"), 0.70, 0.95, GateOutcome.PASS),
        (Gate(metric="auc_roc", at_most=0.95, on="confidence_bound"), 0.70, 0.96, GateOutcome.FAIL),
    ],
)
def test_gate_on_confidence_bound_uses_worse_bound(gate: Gate, low: float, high: float, outcome: GateOutcome) -> None:
    result = judged(gate, measurement(0.9, low=low, high=high))

    assert (result.outcome, result.value) == (outcome, low if gate.at_most is None else high)


@pytest.mark.parametrize("bounds", [{"low": None}, {"high": None}, {"low": 0.95}, {"high": 0.85}])
def test_gate_missing_or_wrong_bounds_are_inconclusive(bounds: dict[str, Any]) -> None:
    gate = Gate(metric="auc_roc", at_least=0.8, on="confidence_bound")

    assert judged(gate, measurement(0.9, **bounds)).outcome is GateOutcome.INCONCLUSIVE


def test_gate_on_value_needs_no_bounds() -> None:
    assert judged(AT_LEAST, measurement(0.9, low=None, high=None)).outcome is GateOutcome.PASS


@pytest.mark.fault("M2")
@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (40, 100, GateOutcome.PASS),
        (99, 130, GateOutcome.INCONCLUSIVE),
        (101, 130, GateOutcome.FAIL),
        (None, None, GateOutcome.INCONCLUSIVE),
    ],
)
def test_time_gate_is_inconclusive_within_noise(low: float | None, high: float | None, outcome: GateOutcome) -> None:
    assert judged(AT_MOST, measurement(high or 50.0, AT_MOST.metric, low=low, high=high)).outcome is outcome


# On slices


@pytest.mark.parametrize(
    ("free", "paid", "outcome"),
    [
        (measurement(0.9), measurement(0.8), GateOutcome.PASS),
        (measurement(0.9), measurement(0.79), GateOutcome.FAIL),
        (measurement(0.79), measurement(0.9), GateOutcome.FAIL),
        (measurement(0.9), measurement(0.9, rows=5), GateOutcome.INCONCLUSIVE),
        (measurement(0.9), measurement(None, rows=0), GateOutcome.INCONCLUSIVE),
        (measurement(0.7), measurement(None, rows=0), GateOutcome.FAIL),
    ],
)
def test_gate_on_slices_has_the_worst_outcome(free: Measurement, paid: Measurement, outcome: GateOutcome) -> None:
    gate = Gate(metric="auc_roc", at_least=0.8, slices=("plan",))
    measurements = [replace(free, slice="plan = free"), replace(paid, slice="plan = paid"), measurement(0.99)]

    assert gates.judge_gate(gate, measurements, SPEC).outcome is outcome


def test_gate_missing_slice_is_inconclusive() -> None:
    gate = Gate(metric="auc_roc", at_least=0.8, slices=("plan",))

    result = judged(gate, measurement(0.9, slice="plan = free"), measurement(0.99))

    assert result.outcome is GateOutcome.INCONCLUSIVE
    assert result.why == f"auc_roc on plan = paid {NOT_COMPUTED}"


def test_gate_result_names_deciding_slice_and_value() -> None:
    gate = Gate(metric="auc_roc", at_least=0.8, slices=("plan",))

    result = judged(gate, measurement(0.95, slice="plan = free"), measurement(0.85, slice="plan = paid"))

    assert (result.name, result.value) == ("auc_roc_by_plan", 0.85)
    assert result.why.startswith("auc_roc on plan = paid is 0.85")


# The comparison


def compared(reference: Reference | None, champion: int | None = None, **declared: Any) -> GateResult:
    evaluation = Evaluation(measurements=[], reference=reference, champion=champion)
    return gates.judge_comparison(Comparison(**declared), evaluation, CANDIDATE.model_digest)


def champion_3(**changes: Any) -> Reference:
    made = fakes.beaten(SPEC, kind="champion", name="version 3", version=3, model_digest="other", difference=0.0)
    assert made is not None
    return replace(made, **{"low": -0.005, "high": 0.005, **changes})


@pytest.mark.parametrize(
    ("low", "outcome"), [(0.0, GateOutcome.PASS), (-0.0099, GateOutcome.PASS), (-0.01, GateOutcome.FAIL)]
)
def test_comparison_worse_within_margin_passes(low: float, outcome: GateOutcome) -> None:
    result = compared(champion_3(low=low), champion=3, margin=0.01)

    assert (result.outcome, result.value, result.name) == (outcome, low, "auc_roc_compared")
    assert "version 3" in result.why


@pytest.mark.parametrize(
    ("low", "outcome"), [(0.02, GateOutcome.PASS), (0.0199, GateOutcome.FAIL), (-0.005, GateOutcome.FAIL)]
)
def test_min_gain_applies_to_the_lower_bound(low: float, outcome: GateOutcome) -> None:
    reference = champion_3(low=low, difference=0.03, high=0.04)

    assert compared(reference, champion=3, min_gain=0.02).outcome is outcome


@pytest.mark.parametrize(("low", "outcome"), [(0.001, GateOutcome.PASS), (0.0, GateOutcome.FAIL)])
def test_first_model_must_beat_the_baseline(low: float, outcome: GateOutcome) -> None:
    result = compared(fakes.beaten(SPEC, low=low))

    assert result.outcome is outcome
    assert "DummyClassifier(prior)" in result.why


@pytest.mark.fault("M1")
@pytest.mark.parametrize(
    ("reference", "champion"),
    [
        pytest.param(None, None, id="no reference"),
        pytest.param(None, 3, id="no reference despite a champion"),
        pytest.param(fakes.beaten(SPEC, rows=0), None, id="on no rows"),
        pytest.param(fakes.beaten(SPEC, rows=29), None, id="on few rows"),
        pytest.param(fakes.beaten(SPEC, low=nan), None, id="NaN"),
        pytest.param(fakes.beaten(SPEC, low=None), None, id="no bound"),
        pytest.param(fakes.beaten(SPEC, difference=None), None, id="no difference"),
        pytest.param(fakes.beaten(SPEC, high=inf), None, id="infinite"),
        pytest.param(fakes.beaten(SPEC, low=0.45), None, id="difference outside its bounds"),
        pytest.param(fakes.beaten(SPEC, metric="accuracy"), None, id="of another metric"),
        pytest.param(fakes.beaten(SPEC), 3, id="baseline despite a champion"),
        pytest.param(champion_3(), 4, id="with a version that is not champion"),
        pytest.param(champion_3(), None, id="with a champion without a promotion"),
        pytest.param(champion_3(model_digest=CANDIDATE.model_digest), 3, id="with itself"),
        pytest.param(champion_3(reason="its file is gone"), 3, id="with a champion that cannot predict"),
    ],
)
def test_unusable_comparison_is_inconclusive(reference: Reference | None, champion: int | None) -> None:
    result = compared(reference, champion)

    assert (result.outcome, result.value) == (GateOutcome.INCONCLUSIVE, None)


def test_champion_with_same_bytes_yields_to_baseline() -> None:
    reference = fakes.beaten(SPEC, version=3, model_digest=CANDIDATE.model_digest)

    assert compared(reference, champion=3).outcome is GateOutcome.PASS
    assert compared(reference, champion=3, min_gain=0.0).outcome is GateOutcome.INCONCLUSIVE


# The verdict


def test_verdict_has_each_gates_result_and_lineage() -> None:
    verdict = fakes.verdict(CANDIDATE)
    lineage = CANDIDATE.lineage

    assert {result.name: result.condition for result in verdict.results} == SPEC.conditions
    assert (verdict.split, verdict.slices, verdict.baseline) == ("entity 0.2", [], "DummyClassifier(prior)")
    assert verdict.passed
    assert (verdict.candidate, verdict.model, verdict.model_digest, verdict.gates_digest) == (
        CANDIDATE.id,
        CANDIDATE.model,
        CANDIDATE.model_digest,
        gates.gates_digest(SPEC),
    )
    assert (verdict.dataset_version, verdict.dataset_digest, verdict.code_revision, verdict.lock_digest) == (
        lineage.dataset_version,
        lineage.dataset_digest,
        lineage.code_revision,
        lineage.lock_digest,
    )


@pytest.mark.fault("M1")
@pytest.mark.parametrize("value", [nan, inf])
def test_verdict_with_nonfinite_metric_can_be_stored(value: float) -> None:
    verdict = gates.judge(CANDIDATE, fakes.evaluation(TIMED, inference_time_ms=value), TIMED)

    assert not verdict.passed
    assert "inference_time_ms" not in verdict.metrics
    assert Verdict.from_document(verdict.document) == verdict


def test_numpy_numbers_are_stored_as_python_floats() -> None:
    numbers = [np.float32(0.5), np.float64(0.9), np.int64(1)]
    measurements = [Measurement(metric=f"m{i}", value=value, low=value, high=value) for i, value in enumerate(numbers)]  # type: ignore[arg-type]

    verdict = gates.judge(
        CANDIDATE, Evaluation(measurements=measurements, reference=fakes.beaten(SPEC, low=np.float64(0.3))), SPEC
    )

    numbers = [number for f in verdict.evaluation.measurements for number in (f.value, f.low, f.high)]
    assert {type(number) for number in numbers} == {float}
    assert verdict.evaluation.reference is not None
    assert type(verdict.evaluation.reference.low) is float
    assert Verdict.from_document(verdict.document) == verdict
    assert verdict.passed is False


def test_verdict_without_metrics_does_not_pass() -> None:
    verdict = gates.judge(CANDIDATE, Evaluation(measurements=[]), SPEC)

    assert {result.outcome for result in verdict.results} == {GateOutcome.INCONCLUSIVE}
    assert not verdict.passed


@pytest.mark.parametrize(
    "change",
    [
        {"gates": (AT_LEAST,)},
        {"gates": (AT_MOST, AT_LEAST)},
        {"gates": (Gate(metric="auc_roc", at_least=0.79), AT_MOST)},
        {"gates": (Gate(metric="auc_roc", at_most=0.8), AT_MOST)},
        {"gates": (Gate(metric="accuracy", at_least=0.8), AT_MOST)},
        {"gates": (AT_LEAST.model_copy(update={"on": "confidence_bound"}), AT_MOST)},
        {"gates": (AT_LEAST.model_copy(update={"slices": ("plan",)}), AT_MOST)},
        {"gates": (AT_LEAST.model_copy(update={"min_rows": 5}), AT_MOST)},
        {"comparison": None},
        {"comparison": Comparison(margin=0.02)},
        {"comparison": Comparison(min_gain=0.0)},
        {"comparison": Comparison(metric="accuracy")},
        {"baseline": "stratified"},
        {"baseline": len},
        {"slices": ("plan",)},
        {"split": "time"},
        {"holdout_share": 0.3},
        {"positive": "no"},
        {"golden": (GoldenSet(name="holiday", sha256="0" * 64),)},
    ],
    ids=str,
)
def test_gates_digest_changes_with_every_declaration(change: dict[str, Any]) -> None:
    as_before = {"gates": (AT_LEAST, AT_MOST)}

    assert gates.gates_digest(fakes.visits_spec(**{**as_before, **change})) != gates.gates_digest(
        fakes.visits_spec(**as_before)
    )
    assert gates.gates_digest(fakes.visits_spec()) == gates.gates_digest(SPEC)


# The evidence


def test_passing_verdict_is_evidence() -> None:
    assert refusals(fakes.verdict(CANDIDATE)) == []


def test_failing_gate_is_refused_with_its_value() -> None:
    reasons = refusals(fakes.verdict(CANDIDATE, auc_roc=0.5))

    assert reasons == ["auc_roc is 0.5, the gate asks for >= 0.8"]


@pytest.mark.fault("M1")
@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_inconclusive_gate_is_refused_for_its_metric(value: float) -> None:
    assert refusals(fakes.verdict(CANDIDATE, auc_roc=value)) == [f"auc_roc {NOT_COMPUTED}"]


def test_stored_verdict_with_missing_metric_is_refused() -> None:
    stored = Verdict.from_document(fakes.verdict(CANDIDATE, f1_score=None).document)

    assert refusals(stored) == [f"f1_score {NOT_COMPUTED}"]


@pytest.mark.parametrize("value", [0.5, nan])
def test_edited_result_is_refused(value: float) -> None:
    edited = edited_results(fakes.verdict(CANDIDATE, auc_roc=value))
    assert edited.passed

    reasons = refusals(edited)

    assert "the verdict does not follow from its own measurements" in reasons
    assert any(reason.startswith("auc_roc") for reason in reasons)


def test_edited_metric_is_refused() -> None:
    failing = fakes.verdict(CANDIDATE, auc_roc=0.5)
    edited = replace(failing, evaluation=fakes.evaluation(SPEC, auc_roc=0.9))

    assert refusals(edited) == ["the verdict does not follow from its own measurements"]


@pytest.mark.parametrize("change", [{"low": 0.001}, {"name": "version 9"}, {"kind": "champion", "version": 1}], ids=str)
def test_edited_reference_is_refused(change: dict[str, Any]) -> None:
    lost = replace(fakes.evaluation(SPEC), reference=fakes.beaten(SPEC, low=-0.1))
    verdict = gates.judge(CANDIDATE, lost, SPEC)
    edited = replace(verdict, evaluation=replace(lost, reference=fakes.beaten(SPEC, **change)))

    assert "the verdict does not follow from its own measurements" in refusals(edited)


@pytest.mark.parametrize("change", [{"split": "time 0.2"}, {"slices": ["plan = paid"]}, {"baseline": "none"}], ids=str)
def test_edited_split_slices_or_baseline_is_refused(change: dict[str, Any]) -> None:
    assert refusals(replace(fakes.verdict(CANDIDATE), **change)) == [
        "the verdict does not follow from its own measurements"
    ]


def test_dropped_result_is_refused() -> None:
    failing = fakes.verdict(CANDIDATE, auc_roc=0.5)
    dropped = replace(failing, results=[result for result in failing.results if result.name != "auc_roc"])
    assert dropped.passed

    assert "the verdict does not follow from its own measurements" in refusals(dropped)


def test_verdict_of_fewer_gates_is_refused() -> None:
    fewer = fakes.visits_spec(gates=SPEC.gates[1:])
    verdict = gates.judge(CANDIDATE, fakes.evaluation(SPEC, auc_roc=0.5), fewer)
    assert verdict.passed

    assert "the gates were changed since it was judged" in refusals(verdict)


@pytest.mark.parametrize("bound", [0.5, 0.79, 0.81])
def test_changed_gates_are_refused_even_if_passing(bound: float) -> None:
    verdict = fakes.verdict(CANDIDATE, auc_roc=0.95)
    changed = fakes.visits_spec(gates=(Gate(metric="auc_roc", at_least=bound), *SPEC.gates[1:]))

    assert "the gates were changed since it was judged" in refusals(verdict, spec=changed)


@pytest.mark.fault("M3")
def test_changed_model_bytes_are_refused() -> None:
    (reason,) = refusals(fakes.verdict(CANDIDATE), model_digest=sha256_text("other bytes"))

    assert reason.startswith(f"the model's bytes have sha256 {sha256_text('other bytes')[:12]}")


def test_verdict_of_another_candidate_is_refused() -> None:
    other = fakes.candidate("another", model_digest=CANDIDATE.model_digest)

    assert refusals(fakes.verdict(other)) == ["the verdict does not follow from its own measurements"]


@pytest.mark.parametrize(
    "change",
    [
        {"dataset_version": 4},
        {"dataset_digest": sha256_text("other")},
        {"code_revision": "1" * 40},
        {"lock_digest": sha256_text("other")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_verdict_of_another_lineage_is_refused(change: dict[str, object]) -> None:
    other = replace(CANDIDATE, lineage=replace(CANDIDATE.lineage, **change))  # type: ignore[arg-type]

    assert refusals(fakes.verdict(other)) == ["the verdict does not follow from its own measurements"]


def test_verdict_without_results_is_refused() -> None:
    assert "the verdict does not follow from its own measurements" in refusals(
        replace(fakes.verdict(CANDIDATE), results=[])
    )
