from dataclasses import replace
from math import inf, isfinite, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_platform.model_spec import Gate
from ml_platform.records import GateOutcome, Verdict, sha256_text
from ml_platform.stages import gates
from ml_platform_tests import fakes

SPEC = fakes.visits_spec()
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
    result = gates.judge_gate(gate, {gate.metric: value})

    assert (result.outcome, result.value) == (outcome, value)


@quick
@given(bound=finite, value=st.floats())
def test_only_a_finite_metric_that_holds_its_bound_passes(bound: float, value: float) -> None:
    least = gates.judge_gate(Gate(metric="m", at_least=bound), {"m": value})
    most = gates.judge_gate(Gate(metric="m", at_most=bound), {"m": value})

    assert (least.outcome is GateOutcome.PASS) == (isfinite(value) and value >= bound)
    assert (most.outcome is GateOutcome.PASS) == (isfinite(value) and value <= bound)


@pytest.mark.fault("M1")
@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("gate", [LEAST, MOST], ids=["at_least", "at_most"])
def test_a_metric_that_is_not_finite_is_inconclusive(gate: Gate, value: float) -> None:
    result = gates.judge_gate(gate, {gate.metric: value})

    assert (result.outcome, result.value) == (GateOutcome.INCONCLUSIVE, None)
    assert result.why == f"{gate.metric} {NOT_COMPUTED}"


@pytest.mark.parametrize("gate", [LEAST, MOST], ids=["at_least", "at_most"])
def test_a_missing_metric_is_inconclusive(gate: Gate) -> None:
    result = gates.judge_gate(gate, {"another": 1.0})

    assert (result.outcome, result.value) == (GateOutcome.INCONCLUSIVE, None)
    assert result.why == f"{gate.metric} {NOT_COMPUTED}"


def test_a_result_says_the_value_and_the_bound() -> None:
    assert gates.judge_gate(LEAST, {"auc_roc": 0.5}).why == "auc_roc is 0.5, the gate asks for >= 0.8"


# The verdict


def test_a_verdict_holds_one_result_a_gate_and_names_what_it_speaks_of() -> None:
    verdict = fakes.verdict(CANDIDATE)
    lineage = CANDIDATE.lineage

    assert [result.condition for result in verdict.results] == [gate.condition for gate in SPEC.gates]
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
    verdict = fakes.verdict(CANDIDATE, inference_time_ms=value)

    assert not verdict.passed
    assert "inference_time_ms" not in verdict.metrics
    assert Verdict.from_document(verdict.document) == verdict


def test_a_verdict_without_any_metric_does_not_pass() -> None:
    verdict = gates.judge(CANDIDATE, {}, SPEC)

    assert {result.outcome for result in verdict.results} == {GateOutcome.INCONCLUSIVE}
    assert not verdict.passed


def test_the_gates_digest_changes_with_every_part_of_a_gate_and_with_a_gate_left_out() -> None:
    variants = [
        (LEAST, MOST),
        (LEAST,),
        (MOST, LEAST),
        (Gate(metric="auc_roc", at_least=0.79), MOST),
        (Gate(metric="auc_roc", at_most=0.8), MOST),
        (Gate(metric="accuracy", at_least=0.8), MOST),
    ]

    digests = {gates.gates_digest(fakes.visits_spec(gates=variant)) for variant in variants}

    assert len(digests) == len(variants)
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
    metrics = fakes.passing_metrics(SPEC)
    del metrics["f1_score"]
    stored = Verdict.from_document(gates.judge(CANDIDATE, metrics, SPEC).document)

    assert refusals(stored) == [f"f1_score {NOT_COMPUTED}"]


@pytest.mark.parametrize("value", [0.5, nan])
def test_a_result_edited_to_pass_is_refused(value: float) -> None:
    edited = edited_results(fakes.verdict(CANDIDATE, auc_roc=value))
    assert edited.passed

    found = refusals(edited)

    assert "the verdict does not follow from its own metrics" in found
    assert any(reason.startswith("auc_roc") for reason in found)


def test_a_metric_edited_to_pass_is_refused() -> None:
    failing = fakes.verdict(CANDIDATE, auc_roc=0.5)
    edited = replace(failing, metrics={**failing.metrics, "auc_roc": 0.9})

    assert refusals(edited) == ["the verdict does not follow from its own metrics"]


def test_a_gate_dropped_from_the_results_is_refused() -> None:
    failing = fakes.verdict(CANDIDATE, auc_roc=0.5)
    dropped = replace(failing, results=[result for result in failing.results if result.metric != "auc_roc"])
    assert dropped.passed

    assert "the verdict does not follow from its own metrics" in refusals(dropped)


def test_a_verdict_under_fewer_gates_than_are_declared_is_refused() -> None:
    fewer = fakes.visits_spec(gates=SPEC.gates[1:])
    verdict = gates.judge(CANDIDATE, {**fakes.passing_metrics(SPEC), "auc_roc": 0.5}, fewer)
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

    assert refusals(fakes.verdict(other)) == ["the verdict does not follow from its own metrics"]


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

    assert refusals(fakes.verdict(other)) == ["the verdict does not follow from its own metrics"]


def test_a_verdict_without_results_is_refused() -> None:
    assert "the verdict does not follow from its own metrics" in refusals(replace(fakes.verdict(CANDIDATE), results=[]))
