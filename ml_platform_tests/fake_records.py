"""Small real records: a candidate, a verdict that the gates really gave, its registration. To be read with `fakes`."""

from dataclasses import replace
from typing import Any

from ml_platform.model_spec import ModelSpec
from ml_platform.records import Candidate, Lineage, Registration, Verdict, now, sha256_text
from ml_platform.stages import gates
from ml_platform_tests import fakes


def passing_metrics(spec: ModelSpec) -> dict[str, float]:
    """Return metrics that stand exactly on the bounds of a model's gates, where they still pass."""
    return {gate.metric: gate.bound for gate in spec.gates}


def candidate(identifier: str = "20240101-000000-00000001", **changes: Any) -> Candidate:
    """Return a candidate of the model ``visits`` whose digests are those of its name."""
    lineage = Lineage(
        dataset_version=3,
        dataset_digest=sha256_text("dataset"),
        code_revision="0" * 40,
        lock_digest=sha256_text("lock"),
        reason="schedule",
    )
    made = Candidate(
        id=identifier, model="visits", model_digest=sha256_text(identifier), lineage=lineage, trained_at=now()
    )
    return replace(made, **changes)


def verdict(of: Candidate, **metrics: float) -> Verdict:
    """Return the verdict on a candidate: passing, but for the metrics that are given."""
    spec = fakes.visits_spec()
    return gates.judge(of, {**passing_metrics(spec), **metrics}, spec)


def registration(of: Candidate, version: int) -> Registration:
    """Return the candidate's registration under a version number."""
    return Registration(model=of.model, version=version, candidate=of.id)
