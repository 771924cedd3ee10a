"""All that a model's author declares: frozen, typed, keyword-only; unknown keys are refused."""

import re
from collections.abc import Callable
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MODEL_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


class Gate(_Declared):
    """One condition on a candidate: a metric with a least or a greatest value.

    Parameters
    ----------
    metric : str
        Name of a metric that evaluation computes, for instance ``auc_roc``.
    at_least, at_most : float or None
        The bound; exactly one of the two. ``None`` means that side is not bounded.
    """

    metric: str
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"gate {self.metric!r} must have exactly one of at_least and at_most")
        return self

    @property
    def condition(self) -> str:
        """The gate as people write it: ``auc_roc >= 0.8``."""
        sign, bound = ("<=", self.at_most) if self.at_least is None else (">=", self.at_least)
        return f"{self.metric} {sign} {bound:g}"

    @property
    def bound(self) -> float:
        """The bound, whichever side it is on."""
        return self.at_most if self.at_least is None else self.at_least  # type: ignore[return-value]


class GoldenSet(_Declared):
    """A frozen dataset, ``data/golden/MODEL/NAME.parquet``, that a model's author names.

    Parameters
    ----------
    name : str
        The file's name without its suffix.
    sha256 : str
        Hex sha256 of the file's bytes: nobody changes it unseen.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Approval(_Declared):
    """Who may approve a version before it becomes champion, and for how long that counts.

    Parameters
    ----------
    authenticated_by : tuple of str
        How a person's name may be authenticated: ``os_user``, who runs the command; ``token``, who knows a secret;
        ``github_environment``, whom a protected environment names. The last rests on environment variables, which
        whoever starts the process can set: list it only where nobody but GitHub's runners reaches the database.
    expires_after_hours : float
        An approval older than this no longer counts.
    """

    authenticated_by: tuple[Literal["github_environment", "token", "os_user"], ...] = ("os_user", "token")
    expires_after_hours: float = Field(default=72, gt=0, le=24 * 365)

    @field_validator("authenticated_by")
    @classmethod
    def _somebody_can_approve(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError(f"authenticated_by must name at least one way, each once. Got {value} instead.")
        return value


DEFAULT_GATES = (
    Gate(metric="auc_roc", at_least=0.80),
    Gate(metric="f1_score", at_least=0.70),
    Gate(metric="inference_time_ms", at_most=100),
    Gate(metric="model_size_mb", at_most=500),
)


class ModelSpec(_Declared):
    """One model, declared.

    Parameters
    ----------
    name : str
        Lower-case name: prefix of its asset keys, folder in the landing zone, name in the registry.
    description : str
        One sentence for the people who meet it in the UI.
    owners : tuple of str
        E-mail addresses or ``team:name``, as Dagster wants them.
    table : pandera DataFrameModel class
        The contract for its rows. It must be strict and must not coerce; every column other than entity, event
        time and label is a feature.
    pipeline : callable
        Returns an unfitted scikit-learn Pipeline with its preprocessing inside.
    entity, event_time, label : str
        Columns of the contract: whom a row is about, when it was observed, and what is to be predicted.
    positive : str or int
        The label's value that counts as positive.
    gates : tuple of Gate
        Conditions on a candidate. All must pass.
    schedule : str
        Cron in UTC; Monday 02:00 by default.
    min_new_rows : int
        Retraining on arrivals waits for at least so many rows that no candidate was trained on.
    split : str
        ``entity`` holds out by a hash of the entity, which is then on the same side in every dataset version; ``time``
        holds out the newest rows, for models that must do well on what comes next.
    holdout_share : float
        Share of the entities, or of the rows, that is held out.
    least_rows : int
        A dataset version with fewer rows is not trained on.
    least_share_of_a_class : float
        A dataset version in which a class is rarer is not trained on.
    quarantine_tolerance : float
        A batch with a greater share of bad rows is quarantined whole.
    golden : tuple of GoldenSet
        Frozen datasets; a dataset version is refused while one is missing, changed or breaks the contract.
    approval : Approval, "manual" or "automatic"
        Whether a version that passed waits for a named person, as it does by default, and who counts. ``"manual"``
        is ``Approval()``; ``"automatic"`` promotes at once.
    """

    name: str
    description: str
    owners: tuple[str, ...] = ()
    table: type[Any]
    pipeline: Callable[[], Any]
    entity: str
    event_time: str
    label: str
    positive: str | int
    gates: tuple[Gate, ...] = DEFAULT_GATES
    schedule: str = "0 2 * * 1"
    min_new_rows: int = Field(default=1, ge=1)
    split: Literal["entity", "time"] = "entity"
    holdout_share: float = Field(default=0.2, gt=0, lt=1)
    least_rows: int = Field(default=500, ge=2)
    least_share_of_a_class: float = Field(default=0.01, ge=0, lt=0.5)
    quarantine_tolerance: float = Field(default=0.05, ge=0, le=1)
    golden: tuple[GoldenSet, ...] = ()
    approval: Approval | Literal["manual", "automatic"] = "manual"
    task: Literal["binary"] = "binary"

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, value: str) -> str:
        if not MODEL_NAME.fullmatch(value):
            raise ValueError(f"name must match {MODEL_NAME.pattern}. Got {value!r} instead.")
        return value

    @field_validator("gates")
    @classmethod
    def _gates_are_there(cls, value: tuple[Gate, ...]) -> tuple[Gate, ...]:
        names = [gate.metric for gate in value]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"gates must name at least one metric, each once. Got {names} instead.")
        return value

    @field_validator("golden")
    @classmethod
    def _golden_sets_are_different(cls, value: tuple[GoldenSet, ...]) -> tuple[GoldenSet, ...]:
        names = [golden.name for golden in value]
        if len(set(names)) < len(names):
            raise ValueError(f"golden must name each set once. Got {names} instead.")
        return value

    @model_validator(mode="after")
    def _columns_are_declared(self) -> Self:
        schema = self.table.to_schema()
        if schema.strict is not True or schema.coerce or any(c.coerce for c in schema.columns.values()):
            raise ValueError(f"table {self.table.__name__} must have Config.strict = True and must not coerce")
        if len({self.entity, self.event_time, self.label}) < 3:
            raise ValueError("entity, event_time and label must be three different columns")
        missing = {self.entity, self.event_time, self.label} - set(schema.columns)
        if missing:
            raise ValueError(f"table {self.table.__name__} has no column {sorted(missing)}")
        for check in schema.columns[self.label].checks:
            allowed = check.statistics.get("allowed_values")
            if allowed is not None and self.positive not in allowed:
                raise ValueError(
                    f"positive must be a value of {self.label!r}, one of {allowed}. Got {self.positive!r}."
                )
        return self

    @property
    def approval_needed(self) -> Approval | None:
        """Who may approve; ``None`` where nobody has to."""
        if isinstance(self.approval, Approval):
            return self.approval
        return None if self.approval == "automatic" else Approval()

    @property
    def columns(self) -> list[str]:
        """All columns of the contract, in its order."""
        return list(self.table.to_schema().columns)

    @property
    def features(self) -> list[str]:
        """The columns that the model sees: all but entity, event time and label."""
        return [name for name in self.columns if name not in {self.entity, self.event_time, self.label}]
