"""Metrics against thresholds: a verdict. Only PASS passes; whatever cannot be told is INCONCLUSIVE and blocks."""

from collections.abc import Mapping
from math import isfinite

from ml_platform.model_spec import Gate, ModelSpec
from ml_platform.records import Candidate, GateOutcome, GateResult, Verdict, canonical_json, sha256_text


def gates_digest(spec: ModelSpec) -> str:
    """Return the hex sha256 of a model's gate configuration."""
    return sha256_text(canonical_json([gate.model_dump() for gate in spec.gates]))


def judge_gate(gate: Gate, metrics: Mapping[str, float]) -> GateResult:
    """Apply one gate.

    NaN is why the comparison stands after `isfinite`: ``not (nan < 0.8)`` is true.
    """
    value = metrics.get(gate.metric)
    if value is None or not isfinite(value):
        return GateResult(
            metric=gate.metric,
            condition=gate.condition,
            value=None,
            outcome=GateOutcome.INCONCLUSIVE,
            why=f"{gate.metric} was not computed, or is no finite number",
        )
    holds = value <= gate.bound if gate.at_least is None else value >= gate.bound
    return GateResult(
        metric=gate.metric,
        condition=gate.condition,
        value=value,
        outcome=GateOutcome.PASS if holds else GateOutcome.FAIL,
        why=f"{gate.metric} is {value:.4g}, the gate asks for {gate.condition.removeprefix(gate.metric + ' ')}",
    )


def judge(candidate: Candidate, metrics: Mapping[str, float], spec: ModelSpec) -> Verdict:
    """Apply every gate to a candidate's metrics; return the verdict, bound to what it speaks of."""
    return Verdict(
        candidate=candidate.id,
        model=candidate.model,
        model_digest=candidate.model_digest,
        dataset_version=candidate.lineage.dataset_version,
        dataset_digest=candidate.lineage.dataset_digest,
        gates_digest=gates_digest(spec),
        code_revision=candidate.lineage.code_revision,
        lock_digest=candidate.lineage.lock_digest,
        metrics={name: value for name, value in metrics.items() if isfinite(value)},
        results=[judge_gate(gate, metrics) for gate in spec.gates],
    )


def refusals(verdict: Verdict, candidate: Candidate, spec: ModelSpec, model_digest: str) -> list[str]:
    """Say why a verdict is no evidence for a candidate; an empty list means that it is.

    Every gate is judged again from the verdict's metrics, so that neither an edited result nor a gate that was
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
    again = judge(candidate, verdict.metrics, spec)
    found = []
    if model_digest != verdict.model_digest or model_digest != candidate.model_digest:
        found.append(
            f"the model's bytes have sha256 {model_digest[:12]}, the verdict speaks of {verdict.model_digest[:12]}"
        )
    if verdict.gates_digest != gates_digest(spec):
        found.append("the gates were changed since it was judged")
    if again.digest != verdict.digest:
        found.append("the verdict does not follow from its own metrics")
    found += [result.why for result in again.results if result.outcome is not GateOutcome.PASS]
    return found
