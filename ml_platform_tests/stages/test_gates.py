from dataclasses import replace
from math import inf, isfinite, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_platform.model_spec import DEFAULT_GATES, METRICS, Comparison, Gate, GoldenSet
from ml_platform.records import Figure, Findings, GateOutcome, GateResult, Rival, Verdict, sha256_text
from ml_platform.stages import gates
from ml_platform_tests import fakes

SPEC = fakes.visits_spec()
TIMED = fakes.visits_spec(gates=DEFAULT_GATES)
CANDIDATE = fakes.candidate()
LEAST = Gate(metric="auc_roc", at_least=0.8)
NOT_COMPUTED = "was not computed, or is no finite number"
MOST = Gate(metric="inference_time_ms", at_most=100)
quick = settings(max_examples=50, deadline=None, database=None)
finite = st.floats(allow_nan=False, allow_infinity=False)


def refusals(verdict: Verdict, **changes: object) -> list[str]:
    asked = {"candidate": CANDIDATE, "spec": SPEC, "model_digest": CANDIDATE.model_digest, **changes}
    return gates.refusals(verdict, **asked)  # type: ignore[arg-type]


def edited_results(verdict: Verdict) -> Verdict:
    """Return the verdict as somebody would leave it who wants it to pass: every result says PASS."""
    return replace(verdict, results=[replace(result, outcome=GateOutcome.PASS) for result in verdict.results])


# One gate


def figure(value: Any, metric: str = "auc_roc", **changes: Any) -> Figure:
    return Figure(**{"metric": metric, "value": value, "low": value, "high": value, "rows": 200, **changes})


def judged(gate: Gate, *figures: Figure) -> GateResult:
    return gates.judge_gate(gate, figures, SPEC)


@pytest.mark.parametrize(
    ("gate", "value", "outcome"),
    [
        (LEAST, 0.81, GateOutcome.PASS),
        (LEAST, 0.8, GateOutcome.PASS),
        (LEAST, 0.79, GateOutcome.FAIL),
        (MOST, 99.0, GateOutcome.PASS),
        (MOST, 100.0, GateOutcome.PASS),
        (MOST, 101.0, GateOutcome.FAIL),
    ],
)
def test_a_metric_passes_on_its_bound_and_on_the_good_side_of_it(
    gate: Gate, value: float, outcome: GateOutcome
) -> None:
    result = judged(gate, figure(value, gate.metric))

    assert (result.outcome, result.value) == (outcome, value)


@quick
@given(bound=finite, value=st.floats())
def test_only_a_finite_metric_that_holds_its_bound_passes(bound: float, value: float) -> None:
    least = judged(Gate(metric="m", at_least=bound), figure(value, "m"))
    most = judged(Gate(metric="m", at_most=bound), figure(value, "m"))

    assert (least.outcome is GateOutcome.PASS) == (isfinite(value) and value >= bound)
    assert (most.outcome is GateOutcome.PASS) == (isfinite(value) and value <= bound)


@pytest.mark.fault("M1")
@pytest.mark.parametrize("value", [nan, inf, -inf, None])
@pytest.mark.parametrize("gate", [LEAST, MOST], ids=["at_least", "at_most"])
def test_a_metric_that_is_not_finite_is_inconclusive(gate: Gate, value: float | None) -> None:
    result = judged(gate, figure(value, gate.metric))

    assert (result.outcome, result.value) == (GateOutcome.INCONCLUSIVE, None)
    assert result.why == f"{gate.metric} {NOT_COMPUTED}"


@pytest.mark.parametrize("gate", [LEAST, MOST], ids=["at_least", "at_most"])
def test_a_missing_metric_is_inconclusive(gate: Gate) -> None:
    result = judged(gate, figure(1.0, "another"))

    assert (result.outcome, result.value) == (GateOutcome.INCONCLUSIVE, None)
    assert result.why == f"{gate.metric} {NOT_COMPUTED}"


def test_why_a_metric_is_missing_stands_in_the_result() -> None:
    result = judged(LEAST, figure(None, reason="the rows hold one class only"))

    assert result.why == f"auc_roc {NOT_COMPUTED}: the rows hold one class only"


@pytest.mark.parametrize("place", [{"dataset": "holiday"}, {"slice": "plan = paid"}], ids=["dataset", "slice"])
def test_a_metric_of_another_place_does_not_count(place: dict[str, str]) -> None:
    assert judged(LEAST, figure(0.9, **place)).outcome is GateOutcome.INCONCLUSIVE


def test_of_two_figures_for_one_thing_neither_counts() -> None:
    assert judged(LEAST, figure(0.9), figure(0.7)).outcome is GateOutcome.INCONCLUSIVE


@pytest.mark.fault("M1")
@pytest.mark.parametrize(
    ("gate", "value"),
    [
        (LEAST, 79.0),
        (LEAST, 1.000_1),
        (Gate(metric="f1_score", at_least=0.7), 81.0),
        (MOST, -3.0),
        (MOST, 0.0),
        (MOST, 0.003),
        (Gate(metric="model_size_mb", at_most=500), 0.0),
        (Gate(metric="model_size_mb", at_most=500), -1.0),
        (Gate(metric="brier_score", at_most=0.2), -0.1),
        (Gate(metric="r2", at_least=0.5), 79.0),
        (Gate(metric="mean_absolute_error", at_most=3), -5.0),
    ],
)
def test_a_number_that_the_metric_cannot_have_is_inconclusive(gate: Gate, value: float) -> None:
    result = judged(gate, figure(value, gate.metric))

    assert (result.outcome, result.value) == (GateOutcome.INCONCLUSIVE, None)
    assert result.why.endswith("its unit is wrong")


def test_a_result_says_the_value_and_the_bound() -> None:
    assert judged(LEAST, figure(0.5)).why == "auc_roc is 0.5, the gate asks for >= 0.8"


@pytest.mark.parametrize(("rows", "outcome"), [(29, GateOutcome.INCONCLUSIVE), (30, GateOutcome.PASS)])
def test_too_few_rows_are_inconclusive(rows: int, outcome: GateOutcome) -> None:
    assert judged(LEAST, figure(0.9, rows=rows)).outcome is outcome


@pytest.mark.parametrize(("rows", "outcome"), [(4, GateOutcome.INCONCLUSIVE), (5, GateOutcome.PASS)])
def test_the_author_says_how_few_rows_are_enough(rows: int, outcome: GateOutcome) -> None:
    assert judged(LEAST.model_copy(update={"least_rows": 5}), figure(0.9, rows=rows)).outcome is outcome


def test_every_metric_of_a_task_has_a_range() -> None:
    assert {name for names in METRICS.values() for name in names} <= set(gates.PLAUSIBLE)


# On the bound


@pytest.mark.parametrize(
    ("gate", "low", "high", "outcome"),
    [
        (Gate(metric="auc_roc", at_least=0.8, on="bound"), 0.80, 0.95, GateOutcome.PASS),
        (Gate(metric="auc_roc", at_least=0.8, on="bound"), 0.79, 0.95, GateOutcome.FAIL),
        (Gate(metric="auc_roc", at_most=0.95, on="bound"), 0.70, 0.95, GateOutcome.PASS),
        (Gate(metric="auc_roc", at_most=0.95, on="bound"), 0.70, 0.96, GateOutcome.FAIL),
    ],
)
def test_a_gate_on_the_bound_asks_for_the_worse_one(gate: Gate, low: float, high: float, outcome: GateOutcome) -> None:
    result = judged(gate, figure(0.9, low=low, high=high))

    assert (result.outcome, result.value) == (outcome, low if gate.at_most is None else high)


@pytest.mark.parametrize("bounds", [{"low": None}, {"high": None}, {"low": 0.95}, {"high": 0.85}])
def test_bounds_that_are_missing_or_do_not_hold_the_value_are_inconclusive(bounds: dict[str, Any]) -> None:
    gate = Gate(metric="auc_roc", at_least=0.8, on="bound")

    assert judged(gate, figure(0.9, **bounds)).outcome is GateOutcome.INCONCLUSIVE


def test_a_gate_on_the_point_needs_no_bounds() -> None:
    assert judged(LEAST, figure(0.9, low=None, high=None)).outcome is GateOutcome.PASS


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
def test_a_time_is_inconclusive_only_where_the_noise_reaches_the_bound(
    low: float | None, high: float | None, outcome: GateOutcome
) -> None:
    assert judged(MOST, figure(high or 50.0, MOST.metric, low=low, high=high)).outcome is outcome


# On slices


@pytest.mark.parametrize(
    ("free", "paid", "outcome"),
    [
        (figure(0.9), figure(0.8), GateOutcome.PASS),
        (figure(0.9), figure(0.79), GateOutcome.FAIL),
        (figure(0.79), figure(0.9), GateOutcome.FAIL),
        (figure(0.9), figure(0.9, rows=5), GateOutcome.INCONCLUSIVE),
        (figure(0.9), figure(None, rows=0), GateOutcome.INCONCLUSIVE),
        (figure(0.7), figure(None, rows=0), GateOutcome.FAIL),
    ],
)
def test_a_gate_on_slices_is_as_good_as_the_worst_of_them(free: Figure, paid: Figure, outcome: GateOutcome) -> None:
    gate = Gate(metric="auc_roc", at_least=0.8, slices=("plan",))
    figures = [replace(free, slice="plan = free"), replace(paid, slice="plan = paid"), figure(0.99)]

    assert gates.judge_gate(gate, figures, SPEC).outcome is outcome


def test_a_slice_that_was_not_measured_is_inconclusive() -> None:
    gate = Gate(metric="auc_roc", at_least=0.8, slices=("plan",))

    result = judged(gate, figure(0.9, slice="plan = free"), figure(0.99))

    assert result.outcome is GateOutcome.INCONCLUSIVE
    assert result.why == f"auc_roc on plan = paid {NOT_COMPUTED}"


def test_the_slice_that_decided_is_named_and_its_value_shown() -> None:
    gate = Gate(metric="auc_roc", at_least=0.8, slices=("plan",))

    result = judged(gate, figure(0.95, slice="plan = free"), figure(0.85, slice="plan = paid"))

    assert (result.name, result.value) == ("auc_roc_by_plan", 0.85)
    assert result.why.startswith("auc_roc on plan = paid is 0.85")


# The comparison


def compared(rival: Rival | None, champion: int | None = None, **declared: Any) -> GateResult:
    found = Findings(figures=[], rival=rival, champion=champion)
    return gates.judge_comparison(Comparison(**declared), found, CANDIDATE.model_digest)


def champion_3(**changes: Any) -> Rival:
    made = fakes.beaten(SPEC, kind="champion", name="version 3", version=3, model_digest="other", difference=0.0)
    assert made is not None
    return replace(made, **{"low": -0.005, "high": 0.005, **changes})


@pytest.mark.parametrize(
    ("low", "outcome"), [(0.0, GateOutcome.PASS), (-0.0099, GateOutcome.PASS), (-0.01, GateOutcome.FAIL)]
)
def test_a_candidate_may_be_worse_than_the_champion_by_less_than_the_margin(low: float, outcome: GateOutcome) -> None:
    result = compared(champion_3(low=low), champion=3, margin=0.01)

    assert (result.outcome, result.value, result.name) == (outcome, low, "auc_roc_compared")
    assert "version 3" in result.why


@pytest.mark.parametrize(
    ("low", "outcome"), [(0.02, GateOutcome.PASS), (0.0199, GateOutcome.FAIL), (-0.005, GateOutcome.FAIL)]
)
def test_a_least_gain_must_be_shown_at_the_lower_bound(low: float, outcome: GateOutcome) -> None:
    rival = champion_3(low=low, difference=0.03, high=0.04)

    assert compared(rival, champion=3, minimum_gain=0.02).outcome is outcome


@pytest.mark.parametrize(("low", "outcome"), [(0.001, GateOutcome.PASS), (0.0, GateOutcome.FAIL)])
def test_the_first_model_must_beat_the_baseline_that_its_verdict_names(low: float, outcome: GateOutcome) -> None:
    result = compared(fakes.beaten(SPEC, low=low))

    assert result.outcome is outcome
    assert "DummyClassifier(prior)" in result.why


@pytest.mark.fault("M1")
@pytest.mark.parametrize(
    ("rival", "champion"),
    [
        pytest.param(None, None, id="with nobody"),
        pytest.param(None, 3, id="with nobody though there is a champion"),
        pytest.param(fakes.beaten(SPEC, rows=0), None, id="on no rows"),
        pytest.param(fakes.beaten(SPEC, rows=29), None, id="on few rows"),
        pytest.param(fakes.beaten(SPEC, low=nan), None, id="NaN"),
        pytest.param(fakes.beaten(SPEC, low=None), None, id="no bound"),
        pytest.param(fakes.beaten(SPEC, difference=None), None, id="no difference"),
        pytest.param(fakes.beaten(SPEC, high=inf), None, id="infinite"),
        pytest.param(fakes.beaten(SPEC, low=0.45), None, id="bounds beside the difference"),
        pytest.param(fakes.beaten(SPEC, metric="accuracy"), None, id="of another metric"),
        pytest.param(fakes.beaten(SPEC), 3, id="baseline though there is a champion"),
        pytest.param(champion_3(), 4, id="with a version that is not champion"),
        pytest.param(champion_3(), None, id="with a champion that is none"),
        pytest.param(champion_3(model_digest=CANDIDATE.model_digest), 3, id="with itself"),
        pytest.param(champion_3(reason="its file is gone"), 3, id="with a champion that cannot answer"),
    ],
)
def test_a_comparison_that_is_none_is_inconclusive(rival: Rival | None, champion: int | None) -> None:
    result = compared(rival, champion)

    assert (result.outcome, result.value) == (GateOutcome.INCONCLUSIVE, None)


def test_a_champion_with_the_candidates_bytes_leaves_its_place_to_the_baseline() -> None:
    rival = fakes.beaten(SPEC, version=3, model_digest=CANDIDATE.model_digest)

    assert compared(rival, champion=3).outcome is GateOutcome.PASS
    assert compared(rival, champion=3, minimum_gain=0.0).outcome is GateOutcome.INCONCLUSIVE


# The verdict


def test_a_verdict_holds_one_result_a_gate_and_names_what_it_speaks_of() -> None:
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
def test_a_verdict_with_a_metric_that_is_not_finite_does_not_pass_and_can_be_stored(value: float) -> None:
    verdict = gates.judge(CANDIDATE, fakes.findings(TIMED, inference_time_ms=value), TIMED)

    assert not verdict.passed
    assert "inference_time_ms" not in verdict.metrics
    assert Verdict.from_document(verdict.document) == verdict


def test_numbers_of_numpy_are_stored_as_pythons_own() -> None:
    numbers = [np.float32(0.5), np.float64(0.9), np.int64(1)]
    figures = [Figure(metric=f"m{i}", value=value, low=value, high=value) for i, value in enumerate(numbers)]  # type: ignore[arg-type]

    verdict = gates.judge(CANDIDATE, Findings(figures=figures, rival=fakes.beaten(SPEC, low=np.float64(0.3))), SPEC)

    found = [number for f in verdict.findings.figures for number in (f.value, f.low, f.high)]
    assert {type(number) for number in found} == {float}
    assert verdict.findings.rival is not None
    assert type(verdict.findings.rival.low) is float
    assert Verdict.from_document(verdict.document) == verdict
    assert verdict.passed is False


def test_a_verdict_without_any_metric_does_not_pass() -> None:
    verdict = gates.judge(CANDIDATE, Findings(figures=[]), SPEC)

    assert {result.outcome for result in verdict.results} == {GateOutcome.INCONCLUSIVE}
    assert not verdict.passed


@pytest.mark.parametrize(
    "change",
    [
        {"gates": (LEAST,)},
        {"gates": (MOST, LEAST)},
        {"gates": (Gate(metric="auc_roc", at_least=0.79), MOST)},
        {"gates": (Gate(metric="auc_roc", at_most=0.8), MOST)},
        {"gates": (Gate(metric="accuracy", at_least=0.8), MOST)},
        {"gates": (LEAST.model_copy(update={"on": "bound"}), MOST)},
        {"gates": (LEAST.model_copy(update={"slices": ("plan",)}), MOST)},
        {"gates": (LEAST.model_copy(update={"least_rows": 5}), MOST)},
        {"comparison": None},
        {"comparison": Comparison(margin=0.02)},
        {"comparison": Comparison(minimum_gain=0.0)},
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
def test_the_gates_digest_changes_with_all_that_decides(change: dict[str, Any]) -> None:
    as_before = {"gates": (LEAST, MOST)}

    assert gates.gates_digest(fakes.visits_spec(**{**as_before, **change})) != gates.gates_digest(
        fakes.visits_spec(**as_before)
    )
    assert gates.gates_digest(fakes.visits_spec()) == gates.gates_digest(SPEC)


# The evidence


def test_a_passing_verdict_is_evidence_for_its_candidate() -> None:
    assert refusals(fakes.verdict(CANDIDATE)) == []


def test_a_failing_gate_is_refused_by_name_and_value() -> None:
    found = refusals(fakes.verdict(CANDIDATE, auc_roc=0.5))

    assert found == ["auc_roc is 0.5, the gate asks for >= 0.8"]


@pytest.mark.fault("M1")
@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_an_inconclusive_gate_is_refused_and_its_honest_verdict_not_accused(value: float) -> None:
    assert refusals(fakes.verdict(CANDIDATE, auc_roc=value)) == [f"auc_roc {NOT_COMPUTED}"]


def test_a_stored_verdict_on_a_missing_metric_is_refused_for_that_alone() -> None:
    stored = Verdict.from_document(fakes.verdict(CANDIDATE, f1_score=None).document)

    assert refusals(stored) == [f"f1_score {NOT_COMPUTED}"]


@pytest.mark.parametrize("value", [0.5, nan])
def test_a_result_edited_to_pass_is_refused(value: float) -> None:
    edited = edited_results(fakes.verdict(CANDIDATE, auc_roc=value))
    assert edited.passed

    found = refusals(edited)

    assert "the verdict does not follow from its own findings" in found
    assert any(reason.startswith("auc_roc") for reason in found)


def test_a_metric_edited_to_pass_is_refused() -> None:
    failing = fakes.verdict(CANDIDATE, auc_roc=0.5)
    edited = replace(failing, findings=fakes.findings(SPEC, auc_roc=0.9))

    assert refusals(edited) == ["the verdict does not follow from its own findings"]


@pytest.mark.parametrize("change", [{"low": 0.001}, {"name": "nobody"}, {"kind": "champion", "version": 1}], ids=str)
def test_a_rival_edited_to_pass_is_refused(change: dict[str, Any]) -> None:
    lost = replace(fakes.findings(SPEC), rival=fakes.beaten(SPEC, low=-0.1))
    verdict = gates.judge(CANDIDATE, lost, SPEC)
    edited = replace(verdict, findings=replace(lost, rival=fakes.beaten(SPEC, **change)))

    assert "the verdict does not follow from its own findings" in refusals(edited)


@pytest.mark.parametrize("change", [{"split": "time 0.2"}, {"slices": ["plan = paid"]}, {"baseline": "none"}], ids=str)
def test_what_a_verdict_says_of_split_slices_and_baseline_must_be_what_is_declared(change: dict[str, Any]) -> None:
    assert refusals(replace(fakes.verdict(CANDIDATE), **change)) == [
        "the verdict does not follow from its own findings"
    ]


def test_a_gate_dropped_from_the_results_is_refused() -> None:
    failing = fakes.verdict(CANDIDATE, auc_roc=0.5)
    dropped = replace(failing, results=[result for result in failing.results if result.name != "auc_roc"])
    assert dropped.passed

    assert "the verdict does not follow from its own findings" in refusals(dropped)


def test_a_verdict_under_fewer_gates_than_are_declared_is_refused() -> None:
    fewer = fakes.visits_spec(gates=SPEC.gates[1:])
    verdict = gates.judge(CANDIDATE, fakes.findings(SPEC, auc_roc=0.5), fewer)
    assert verdict.passed

    assert "the gates were changed since it was judged" in refusals(verdict)


@pytest.mark.parametrize("bound", [0.5, 0.79, 0.81])
def test_gates_changed_since_the_judgement_are_refused_even_if_they_still_pass(bound: float) -> None:
    verdict = fakes.verdict(CANDIDATE, auc_roc=0.95)
    changed = fakes.visits_spec(gates=(Gate(metric="auc_roc", at_least=bound), *SPEC.gates[1:]))

    assert "the gates were changed since it was judged" in refusals(verdict, spec=changed)


@pytest.mark.fault("M3")
def test_other_bytes_than_those_that_were_gated_are_refused() -> None:
    (found,) = refusals(fakes.verdict(CANDIDATE), model_digest=sha256_text("other bytes"))

    assert found.startswith(f"the model's bytes have sha256 {sha256_text('other bytes')[:12]}")


def test_a_verdict_on_the_same_bytes_but_another_candidate_is_refused() -> None:
    other = fakes.candidate("another", model_digest=CANDIDATE.model_digest)

    assert refusals(fakes.verdict(other)) == ["the verdict does not follow from its own findings"]


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
def test_a_verdict_on_another_lineage_is_refused(change: dict[str, object]) -> None:
    other = replace(CANDIDATE, lineage=replace(CANDIDATE.lineage, **change))  # type: ignore[arg-type]

    assert refusals(fakes.verdict(other)) == ["the verdict does not follow from its own findings"]


def test_a_verdict_without_results_is_refused() -> None:
    assert "the verdict does not follow from its own findings" in refusals(
        replace(fakes.verdict(CANDIDATE), results=[])
    )
