"""Schema of a comparison's result file, which may come from an untrusted contributor's job.

Texts and lists are bounded, numbers are finite, unknown keys are refused.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ml_platform.errors import DataError

MAX_BYTES = 20_000_000
LONGEST = 1_000
MAX_PROBLEMS = 1_000
MAX_CHANGES = 1_000
MAX_NOTES = 100
MAX_FILES = 100
Text = Annotated[str, Field(max_length=LONGEST)]
Name = Text
Model = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Golden = Annotated[str, Field(pattern=r"^([a-z][a-z0-9_]{0,39})?$")]
Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Outcome(StrEnum):
    """A comparison's outcome: all gates pass, a gate fails, or the comparison failed."""

    PASS = "PASS"  # noqa: S105 - a result, no password
    FAIL = "FAIL"
    BROKEN = "BROKEN"


class CheckState(StrEnum):
    """A check's state in Dagster's records; only SUCCEEDED is a success."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"
    MISSING = "MISSING"
    REMOVED = "REMOVED"


class ReportedCheck(_Document):
    """An expected asset check and its state; `declared` is the reason for its removal, empty if none is given."""

    check: Name
    state: CheckState
    said: Text = ""
    declared: Text = ""


class ReportedGate(_Document):
    """A gate's result in a verdict; see `ml_platform.records.verdict.GateResult`."""

    name: Name
    condition: Text
    value: float | None
    outcome: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    why: Text


class ReportedMeasurement(_Document):
    """A measurement of a verdict; see `ml_platform.records.verdict.Measurement`."""

    metric: Name
    value: float | None
    low: float | None = None
    high: float | None = None
    rows: int | None = None
    dataset: Name = "holdout"
    slice: Name = ""


class ReportedReference(_Document):
    """The reference of a candidate's comparison; see `ml_platform.records.verdict.Reference`."""

    kind: Literal["champion", "baseline"]
    name: Name
    metric: Name
    rows: int = 0
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    reason: Text = ""


class ReportedCurve(_Document):
    """A model's curves; see `ml_platform.evaluation.curves.Curve`."""

    name: Name
    roc: list[float] = Field(max_length=1_000)
    calibration: list[tuple[float, float]] = Field(max_length=1_000)


class CodeDataRun(_Document):
    """Measurements of one code on one data. `why` is the reason for a missing verdict; all else is empty then."""

    code: Literal["old", "new"]
    data: Literal["old", "new"]
    why: Text = ""
    verdict_digest: Digest = ""
    model_digest: Digest = ""
    dataset_digest: Digest = ""
    champion: int | None = None
    gates: list[ReportedGate] = Field(default=[], max_length=1_000)
    measurements: list[ReportedMeasurement] = Field(default=[], max_length=20_000)
    reference: ReportedReference | None = None
    curves: list[ReportedCurve] = Field(default=[], max_length=5)
    curve_rows: int = 0

    @property
    def judged(self) -> bool:
        """True if there is a verdict."""
        return bool(self.verdict_digest)


class DeclaredGate(_Document):
    """A gate's condition; `places` are its slices, an empty name means all rows."""

    name: Name
    condition: Text
    metric: Name
    at_least: float | None
    at_most: float | None
    on: Literal["value", "confidence_bound"]
    dataset: Name
    min_rows: int
    places: list[Name] = Field(max_length=1_000)

    @property
    def bound(self) -> float:
        """The lower or upper bound."""
        return (self.at_most if self.at_least is None else self.at_least) or 0.0


class DeclaredComparison(_Document):
    """The condition of the comparison with the champion; see `ml_platform.model_spec.Comparison`."""

    name: Name
    condition: Text
    metric: Name
    margin: float
    min_gain: float | None
    confidence: float
    min_rows: int


class GateChange(_Document):
    """A removed, loosened or changed gate; `declared` is the reason, empty if none is given."""

    check: Name
    kind: Literal["removed", "loosened", "changed", "not compared"]
    before: Text
    after: Text = ""
    declared: Text = ""


class ChangeResult(_Document):
    """Result of comparing a changed model with the base's champion.

    Parameters
    ----------
    model, golden : str
        The model, and the golden dataset that had to be evaluated, or an empty string.
    outcome : Outcome
    base, base_commit, head : str
        The ref to compare with, the commit that the change starts from, and the working tree's revision.
    is_new : bool
        True if the base has no such model.
    data_changed : bool
        True if the rows in git differ from the base's.
    changed : list of str
        Changed files that affect the model, with reasons, as in `ml-platform ci affected`.
    problems : list of str
        Reasons for another outcome than PASS.
    notes : list of str
        Notes for the reviewer.
    task, positive : str
        Of the model; `positive` is empty if there is none.
    asked, compared
        Gates and comparison of the working tree's code, or of the base's if the former cannot be loaded.
    checks : list of ReportedCheck
        Expected checks of both sides, with their states after the run of the working tree's code.
    changes : list of GateChange
    corners : list of CodeDataRun
        Runs of both codes on both data, or on the one there is.
    """

    format: Literal[1] = 1
    model: Model
    golden: Golden = ""
    outcome: Outcome
    base: Name
    base_commit: Name
    head: Name
    is_new: bool = False
    data_changed: bool = False
    changed: list[Text] = Field(default=[], max_length=MAX_FILES)
    problems: list[Text] = Field(default=[], max_length=MAX_PROBLEMS)
    notes: list[Text] = Field(default=[], max_length=MAX_NOTES)
    task: Literal["binary", "multiclass", "regression"] = "binary"
    positive: Name = ""
    asked: list[DeclaredGate] = Field(default=[], max_length=1_000)
    compared: DeclaredComparison | None = None
    checks: list[ReportedCheck] = Field(default=[], max_length=5_000)
    changes: list[GateChange] = Field(default=[], max_length=MAX_CHANGES)
    corners: list[CodeDataRun] = Field(default=[], max_length=4)

    def corner(self, code: str, data: str) -> CodeDataRun | None:
        """Return the run of a code on a data; ``None`` if it has no verdict."""
        return next((run for run in self.corners if (run.code, run.data) == (code, data) and run.judged), None)


def bounded(text: str) -> str:
    """Return a text, cut to the document's maximum length."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def read(path: Path) -> ChangeResult:
    """Read a comparison's result.

    Raises
    ------
    DataError
        The file cannot be read, is too large or is not a result.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > MAX_BYTES:
        raise DataError(f"{path} must have at most {MAX_BYTES:,} bytes. It has more: it is not a comparison's result.")
    try:
        return ChangeResult.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{path} is not a result of `ml-platform ci compare`: {place}: {first['msg']}.") from None
