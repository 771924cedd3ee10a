"""What a trial leaves in a file, typed: whoever reads it may have got it from a stranger.

Texts and lists are bounded, numbers are finite, unknown keys are refused.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ml_platform.errors import DataError

MOST_BYTES = 20_000_000
LONGEST = 1_000
MOST_PROBLEMS = 1_000
MOST_CHANGES = 1_000
MOST_NOTES = 100
MOST_FILES = 100
Text = Annotated[str, Field(max_length=LONGEST)]
Name = Text
Model = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Golden = Annotated[str, Field(pattern=r"^([a-z][a-z0-9_]{0,39})?$")]
Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Outcome(StrEnum):
    """What came of a trial: every gate holds, one does not, or it could not be done."""

    PASS = "PASS"  # noqa: S105 - a result, no password
    FAIL = "FAIL"
    BROKEN = "BROKEN"


class CheckState(StrEnum):
    """What Dagster's records say of a check; only SUCCEEDED is a success."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"
    MISSING = "MISSING"
    REMOVED = "REMOVED"


class CheckDone(_Document):
    """An asset check that was expected, and what became of it; `declared` says why it may be gone."""

    check: Name
    state: CheckState
    said: Text = ""
    declared: Text = ""


class GateDone(_Document):
    """A gate's result in a verdict; see `ml_platform.records.GateResult`."""

    name: Name
    condition: Text
    value: float | None
    outcome: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    why: Text


class FigureDone(_Document):
    """A figure of a verdict; see `ml_platform.records.Figure`."""

    metric: Name
    value: float | None
    low: float | None = None
    high: float | None = None
    rows: int | None = None
    dataset: Name = "holdout"
    slice: Name = ""


class RivalDone(_Document):
    """Whom a candidate was compared with; see `ml_platform.records.Rival`."""

    kind: Literal["champion", "baseline"]
    name: Name
    metric: Name
    rows: int = 0
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    reason: Text = ""


class CurveDone(_Document):
    """A model's curves; see `ml_platform.stages._curves.Curve`."""

    name: Name
    roc: list[float] = Field(max_length=1_000)
    calibration: list[tuple[float, float]] = Field(max_length=1_000)


class Corner(_Document):
    """One code on one data: what was measured there. `why` says why there is no verdict; then all else is empty."""

    code: Literal["old", "new"]
    data: Literal["old", "new"]
    why: Text = ""
    verdict_digest: Digest = ""
    model_digest: Digest = ""
    dataset_digest: Digest = ""
    champion: int | None = None
    gates: list[GateDone] = Field(default=[], max_length=1_000)
    figures: list[FigureDone] = Field(default=[], max_length=20_000)
    rival: RivalDone | None = None
    curves: list[CurveDone] = Field(default=[], max_length=5)
    curve_rows: int = 0

    @property
    def judged(self) -> bool:
        """Whether there is a verdict."""
        return bool(self.verdict_digest)


class Asked(_Document):
    """What a gate asks for; `places` are its slices, the empty name stands for all rows."""

    name: Name
    condition: Text
    metric: Name
    at_least: float | None
    at_most: float | None
    on: Literal["point", "bound"]
    dataset: Name
    least_rows: int
    places: list[Name] = Field(max_length=1_000)

    @property
    def bound(self) -> float:
        """The bound, whichever side it is on."""
        return (self.at_most if self.at_least is None else self.at_least) or 0.0


class Compared(_Document):
    """What the comparison with the champion asks for; see `ml_platform.model_spec.Comparison`."""

    name: Name
    condition: Text
    metric: Name
    margin: float
    minimum_gain: float | None
    confidence: float
    least_rows: int


class GateChange(_Document):
    """What a change takes away from the gates, loosens or changes; `declared` is the reason, empty if none is given."""

    check: Name
    kind: Literal["removed", "loosened", "changed", "not compared"]
    before: Text
    after: Text = ""
    declared: Text = ""


class Trial(_Document):
    """All that came of trying a change of one model.

    Parameters
    ----------
    model, golden : str
        `golden` is empty, or the golden dataset that this trial was asked for.
    outcome : Outcome
    base, base_commit, head : str
        The ref as it was asked for, the commit that the change starts from, and the revision of the working tree.
    is_new : bool
        The base has no such model.
    data_changed : bool
        Whether the rows kept in git differ from the base's.
    changed : list of str
        The files by which the change affects the model, and why, as `ml-platform affected` says it.
    problems : list of str
        Why it is red; empty where it is not.
    notes : list of str
        What a reviewer should know.
    task, positive : str
        Of the model; `positive` is empty where there is none.
    asked, compared
        The gates and the comparison of the working tree's code; those of the base where that says none.
    checks : list of CheckDone
        Every expected check of both, as the run of the working tree's code left it.
    changes : list of GateChange
    corners : list of Corner
        What was judged: both codes on both data, or on the one there is.
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
    changed: list[Text] = Field(default=[], max_length=MOST_FILES)
    problems: list[Text] = Field(default=[], max_length=MOST_PROBLEMS)
    notes: list[Text] = Field(default=[], max_length=MOST_NOTES)
    task: Literal["binary", "multiclass", "regression"] = "binary"
    positive: Name = ""
    asked: list[Asked] = Field(default=[], max_length=1_000)
    compared: Compared | None = None
    checks: list[CheckDone] = Field(default=[], max_length=5_000)
    changes: list[GateChange] = Field(default=[], max_length=MOST_CHANGES)
    corners: list[Corner] = Field(default=[], max_length=4)

    def corner(self, code: str, data: str) -> Corner | None:
        """Return what was judged with this code on this data; ``None`` where nothing was."""
        found = (corner for corner in self.corners if (corner.code, corner.data) == (code, data))
        return next((corner for corner in found if corner.judged), None)


def bounded(text: str) -> str:
    """Return a text as a document takes it: cut where it is too long."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def read(path: Path) -> Trial:
    """Read what a trial left.

    Raises
    ------
    DataError
        It is no such file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > MOST_BYTES:
        raise DataError(f"{path} must have at most {MOST_BYTES:,} bytes. It has more: it is no trial's file.")
    try:
        return Trial.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{path} is not what `ml-platform quality` leaves: {place}: {first['msg']}.") from None
