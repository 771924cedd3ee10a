"""Records of a candidate: its lineage, its measurements, its gates' results and its verdict."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from ml_platform.model_spec import safe_name
from ml_platform.records.canonical import SCHEMA, canonical_json, drop_defaults, sha256_text, versioned

# The schema version that a verdict's digest covers, see `canonical`.
VERDICT_SCHEMA = 1
# The schema version that a candidate's `origin_digest` covers, and the fields that it leaves out.
ORIGIN_SCHEMA = 1
RECORDED_LATER = ("mlflow_run_id", "forgotten_at", "served_digest")


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The origin of a candidate: digests, numbers and names that can be checked."""

    dataset_version: int
    dataset_digest: str
    code_revision: str
    lock_digest: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A newly trained model; `run_id` is its Dagster run, None outside Dagster.

    `actor` is the person who asked for the training, ``name@where``, as the request claims; None if Dagster's record
    proves that a trigger asked. `trained_by` is the operating system's user of the training process; None outside
    Dagster. `requested_at` is the time of the request; None if it is unknown. `forgotten_at` is the time since when it
    cannot be reproduced, because training rows were erased; None if it can.
    `served_digest` is the digest of the list of files that a server needs, None before it was judged.
    """

    id: str
    model: str
    model_digest: str
    lineage: Lineage
    trained_at: datetime
    run_id: str | None = None
    mlflow_run_id: str | None = None
    forgotten_at: datetime | None = None
    actor: str | None = None
    served_digest: str | None = None
    trained_by: str | None = None
    requested_at: datetime | None = None

    @property
    def origin_digest(self) -> str:
        """The hex sha256 of the canonical JSON of everything that training recorded, so that a verdict can bind it.

        What is recorded or changed later is left out: the MLflow run, the erasure and the served files.
        """
        fields = {name: value for name, value in drop_defaults(self).items() if name not in RECORDED_LATER}
        for name, value in fields.items():
            if isinstance(value, datetime):
                fields[name] = value.astimezone(UTC).isoformat(timespec="microseconds")
        return sha256_text(canonical_json(versioned(ORIGIN_SCHEMA, fields)))


class GateOutcome(StrEnum):
    """The result of a gate. Only PASS passes."""

    PASS = "PASS"  # noqa: S105 - a result, no password
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number of a model, with its bounds and the rows behind it.

    Parameters
    ----------
    metric : str
    value, low, high : float or None
        Two-sided bounds at 90 %, so that each alone is a one-sided 95 % bound; for a time, the range of the machine's
        noise. None if the rows do not determine the number.
    rows : int or None
        The number of the dataset's rows in the slice; None for a number without rows, such as a file's size.
    dataset : str
        ``holdout`` or the name of a golden dataset.
    slice : str
        The slice's name; empty for all rows.
    method : str
        The method that gave the bounds.
    reason : str
        Why a number is None; empty if none is.
    """

    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    rows: int | None = None
    dataset: str = "holdout"
    slice: str = ""
    method: str = ""
    reason: str = ""

    @property
    def label(self) -> str:
        """The name in MLflow: ``holiday/plan_paid/auc_roc``."""
        where = [] if self.dataset == "holdout" else [self.dataset]
        part = [safe_name(self.slice)] if self.slice else []
        return "/".join([*where, *part, self.metric])


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The model that a candidate was compared with on the same rows, and the result.

    Parameters
    ----------
    kind : str
        ``champion`` or ``baseline``.
    name : str
        ``version 3``, or the baseline as the author declares it.
    version, model_digest : int, str or None
        Those of the champion. None for a baseline, unless it replaces a champion with the candidate's bytes.
    metric : str
    rows : int
        The number of rows of the holdout that neither was trained on.
    difference, low, high : float or None
        The candidate's gain; each bound is one-sided at the comparison's confidence. None if the rows do not determine
        the number.
    p_better : float or None
        One-sided p-value of "the candidate is not better".
    method, reason : str
        As in `Measurement`.
    measurements : list of Measurement
        The reference's own measurements, on the same datasets and slices as the candidate's.
    """

    kind: str
    name: str
    metric: str
    version: int | None = None
    model_digest: str | None = None
    rows: int = 0
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_better: float | None = None
    method: str = ""
    reason: str = ""
    measurements: list[Measurement] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All measurements of one candidate; its gates' results follow from these alone.

    `champion` is the version that was champion at that time, even if the reference is the baseline; None if there was
    none. `reference` is None if the author asks for no comparison.
    """

    measurements: list[Measurement]
    reference: Reference | None = None
    champion: int | None = None


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """The result of one gate for one candidate.

    `name` is that of the check. `value` is the deciding number, in the deciding slice; None if the gate is
    inconclusive.
    """

    name: str
    condition: str
    value: float | None
    outcome: GateOutcome
    why: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Every gate's result for one candidate, bound by digest to model, dataset, gates, code and environment.

    `split`, `slices` and `baseline` describe settings that `gates_digest` covers too: the split of the holdout, its
    measured slices, and the baseline that the first model must beat. `origin_digest` binds the candidate's record, and
    `served_digest` the list of the files that a server needs. Both are None in verdicts of earlier releases, which did
    not bind them.
    """

    candidate: str
    model: str
    model_digest: str
    dataset_version: int
    dataset_digest: str
    gates_digest: str
    code_revision: str
    lock_digest: str
    split: str
    slices: list[str]
    baseline: str
    evaluation: Evaluation
    results: list[GateResult]
    origin_digest: str | None = None
    served_digest: str | None = None

    @property
    def passed(self) -> bool:
        """True if there is at least one gate and every gate passed."""
        return bool(self.results) and all(result.outcome is GateOutcome.PASS for result in self.results)

    @property
    def metrics(self) -> dict[str, float]:
        """Every number by its name in MLflow, bounds as ``NAME.low`` and ``NAME.high``."""
        numbers = {
            f"{measurement.label}{suffix}": number
            for measurement in self.evaluation.measurements
            for suffix, number in (("", measurement.value), (".low", measurement.low), (".high", measurement.high))
        }
        return {name: number for name, number in numbers.items() if number is not None}

    @property
    def document(self) -> str:
        """The verdict as canonical JSON: the schema version, and the fields that differ from their defaults."""
        return canonical_json(versioned(VERDICT_SCHEMA, drop_defaults(self)))

    @property
    def digest(self) -> str:
        """The hex sha256 of the canonical JSON."""
        return sha256_text(self.document)

    @classmethod
    def from_document(cls, text: str) -> "Verdict":
        """Read a verdict back from its canonical JSON.

        Raises
        ------
        ValueError
            The document has another schema version.
        """
        fields = json.loads(text)
        schema = fields.pop(SCHEMA, None)
        if type(schema) is not int or schema != VERDICT_SCHEMA:
            raise ValueError(f"its schema version must be {VERDICT_SCHEMA}. Got {schema!r} instead")
        results = [GateResult(**{**row, "outcome": GateOutcome(row["outcome"])}) for row in fields.pop("results")]
        evaluation = _read_evaluation(fields.pop("evaluation"))
        return cls(**fields, evaluation=evaluation, results=results)


def _read_evaluation(fields: dict[str, Any]) -> Evaluation:
    measurements = [Measurement(**row) for row in fields.pop("measurements")]
    reference = fields.pop("reference", None)
    if reference:
        compared = [Measurement(**row) for row in reference.get("measurements", [])]
        reference = Reference(**{**reference, "measurements": compared})
    return Evaluation(measurements=measurements, reference=reference, **fields)
