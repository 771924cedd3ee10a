"""All that a model's author declares: frozen, typed, keyword-only; unknown keys are refused."""

import re
from collections.abc import Callable, Iterable
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MODEL_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
HOLDOUT = "holdout"
Task = Literal["binary", "multiclass", "regression"]
# What evaluation measures of each task's answers, beside time, size and memory.
METRICS: dict[Task, tuple[str, ...]] = {
    "binary": (
        "auc_roc",
        "average_precision",
        "f1_score",
        "precision",
        "recall",
        "accuracy",
        "brier_score",
        "log_loss",
        "expected_calibration_error",
    ),
    "multiclass": ("accuracy", "f1_macro", "auc_ovr", "log_loss"),
    "regression": ("r2", "mean_absolute_error", "root_mean_squared_error"),
}
# scikit-learn's DummyClassifier and DummyRegressor know these; the first is what a model is held against by default.
BASELINES: dict[Task, tuple[str, ...]] = {
    "binary": ("prior", "most_frequent", "stratified", "uniform"),
    "multiclass": ("prior", "most_frequent", "stratified", "uniform"),
    "regression": ("mean", "median"),
}


def safe_name(name: str) -> str:
    """Return a slice's name as MLflow takes it in the name of a metric."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", name)


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


class Value(_Declared):
    """A slice: the rows in which a column has one value.

    Parameters
    ----------
    column : str
    equals : str, int or bool
        The value; a column whose contract lists its values can be named alone, which makes a slice of each.
    """

    column: str
    equals: bool | int | str

    @property
    def name(self) -> str:
        """The slice as people write it: ``plan = paid``."""
        return f"{self.column} = {self.equals}"


class Range(_Declared):
    """A slice: the rows in which a numeric column lies in a range.

    Parameters
    ----------
    column : str
    at_least, below : float or None
        The range holds `at_least` itself and not `below`. ``None`` means that side has no end.
    """

    column: str
    at_least: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _holds_something(self) -> Self:
        if self.at_least is None and self.below is None:
            raise ValueError(f"range of {self.column!r} must have at_least, below or both")
        if self.at_least is not None and self.below is not None and self.at_least >= self.below:
            raise ValueError(f"range of {self.column!r} must have at_least < below. Got {self.at_least}, {self.below}.")
        return self

    @property
    def name(self) -> str:
        """The slice as people write it: ``0 <= age < 30``."""
        least = "" if self.at_least is None else f"{self.at_least:g} <= "
        return f"{least}{self.column}" + ("" if self.below is None else f" < {self.below:g}")


Slice = Value | Range


class Gate(_Declared):
    """One condition on a candidate: a metric with a least or a greatest value.

    Parameters
    ----------
    metric : str
        Name of a metric that evaluation computes, for instance ``auc_roc``. ``inference_time_ms`` is the 95th
        percentile of the warm time for one record; its gate holds only where noise does not reach the bound. Time and
        memory are measured, which takes a process of two seconds, where a gate asks for one of them.
    at_least, at_most : float or None
        The bound; exactly one of the two. ``None`` means that side is not bounded.
    on : str
        ``point`` holds the metric itself against the bound; ``bound`` its confidence bound, the lower one for
        `at_least` and the upper one for `at_most`: then luck with the holdout passes in at most 5 of 100 cases.
    slices : tuple of str, Value or Range
        The gate must hold on every one of these slices. Empty asks for all rows together.
    dataset : str
        ``holdout``, or the name of a golden dataset.
    least_rows : int
        With fewer rows than this, in all or in a slice, the result is INCONCLUSIVE.
    """

    metric: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    at_least: float | None = None
    at_most: float | None = None
    on: Literal["point", "bound"] = "point"
    slices: tuple[str | Slice, ...] = ()
    dataset: str = HOLDOUT
    least_rows: int = Field(default=30, ge=1)

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"gate {self.metric!r} must have exactly one of at_least and at_most")
        return self

    @property
    def name(self) -> str:
        """The name of the gate's check: the metric, and what sets the gate apart from a plain one on it."""
        columns = [named if isinstance(named, str) else named.column for named in self.slices]
        where = [] if self.dataset == HOLDOUT else ["on", self.dataset]
        by = ["by", *dict.fromkeys(columns)] if columns else []
        return "_".join([self.metric, *where, *by, *(["bound"] if self.on == "bound" else [])])

    @property
    def condition(self) -> str:
        """The gate as people write it: ``auc_roc >= 0.8``."""
        side = {"point": "", "bound": "upper bound of " if self.at_least is None else "lower bound of "}[self.on]
        where = "" if self.dataset == HOLDOUT else f" on {self.dataset}"
        columns = dict.fromkeys(named if isinstance(named, str) else named.column for named in self.slices)
        each = f", for each {' and '.join(columns)}" if columns else ""
        return f"{side}{self.metric} {self.asks}{where}{each}"

    @property
    def asks(self) -> str:
        """The bound with its sign: ``>= 0.8``."""
        return f"{'<=' if self.at_least is None else '>='} {self.bound:g}"

    @property
    def bound(self) -> float:
        """The bound, whichever side it is on."""
        return self.at_most if self.at_least is None else self.at_least  # type: ignore[return-value]


class Comparison(_Declared):
    """What a candidate must show against the champion, on the same rows of the holdout, by a paired test.

    Without a champion, and where the candidate has the champion's very bytes, it must beat the model's `baseline`
    instead: the lower bound of what it gains over it must be above 0.

    Parameters
    ----------
    metric : str
        What is compared.
    margin : float
        Non-inferiority: the candidate may be worse by less than this, in the metric's unit. The lower confidence bound
        of the difference must be above ``-margin``.
    minimum_gain : float or None
        The lower confidence bound of the difference must be at least this. ``None`` asks for no gain, so that an equal
        candidate follows the champion.
    confidence : float
        One-sided: how sure each of these bounds is.
    least_rows : int
        With fewer rows that neither model was trained on, the result is INCONCLUSIVE.
    """

    metric: str = Field(default="auc_roc", pattern=r"^[a-z][a-z0-9_]*$")
    margin: float = Field(default=0.01, gt=0)
    minimum_gain: float | None = Field(default=None, ge=0)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    least_rows: int = Field(default=30, ge=2)

    @property
    def name(self) -> str:
        """The name of the comparison's check."""
        return f"{self.metric}_compared"

    @property
    def condition(self) -> str:
        """The comparison as people write it."""
        gain = "" if self.minimum_gain is None else f" and better by {self.minimum_gain:g}"
        return f"{self.metric} at most {self.margin:g} behind the champion{gain}, or ahead of the baseline"


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


class Rollout(_Declared):
    """How traffic moves from the champion before to a new champion, and what sends it back.

    Parameters
    ----------
    kind : str
        ``blue_green`` moves it at once, when the new champion is loaded and answers its golden requests. ``canary``
        moves it by steps. ``ab`` gives both a share until enough was seen, reports and then moves it. ``shadow`` asks
        both, answers with the old one until enough was seen, then moves it.
    steps : tuple of float
        Shares of a canary, growing, the last 1; the first is also the share of ``ab``.
    hold_minutes : float
        How long a step lasts at least.
    least_requests : int
        How many requests the new champion must have answered in a step before it is judged; a step waits for them.
    most_error_share : float
        Share of its answers that may fail beyond those of the old one (one-sided exact test at 1 %).
    most_slower : float
        Its p95 may be so many times that of the old one.
    most_score_shift : float
        Cramer's V between the two distributions of scores that may not be exceeded where a chi-square test at 1 %
        says that they differ.
    deadline_ms : float
        An answer of the new champion that takes longer fails, and the old one answers instead.
    """

    kind: Literal["blue_green", "canary", "ab", "shadow"] = "blue_green"
    steps: tuple[float, ...] = (0.05, 0.25, 0.5, 1.0)
    hold_minutes: float = Field(default=10, ge=0)
    least_requests: int = Field(default=200, ge=1)
    most_error_share: float = Field(default=0.01, ge=0, lt=1)
    most_slower: float = Field(default=2.0, ge=1)
    most_score_shift: float = Field(default=0.1, ge=0, le=1)
    deadline_ms: float = Field(default=1_000, gt=0)

    @field_validator("steps")
    @classmethod
    def _steps_grow_to_all(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or value[0] <= 0 or value[-1] != 1 or sorted(set(value)) != list(value):
            raise ValueError(f"steps must be growing shares above 0, the last 1. Got {value} instead.")
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
    task : str
        ``binary`` asks whether the label is `positive`; ``multiclass`` which of three or more values it has;
        ``regression`` how great it is.
    positive : str, int or None
        The label's value that counts as positive. ``None`` for the other tasks, and only there.
    gates : tuple of Gate
        Conditions on a candidate. All must pass.
    slices : tuple of str, Value or Range
        Parts of the rows whose metrics are measured and shown, whether a gate asks for them or not. The name of a
        column stands for a slice of each value that the contract lists.
    comparison : Comparison or None
        What a candidate must show against the champion. ``None`` compares with nobody.
    baseline : str, callable or None
        What the first model must beat: a strategy of scikit-learn's DummyClassifier (``prior``, ``most_frequent``,
        ``stratified``, ``uniform``) or DummyRegressor (``mean``, ``median``), or last year's rule: a function that
        takes the features, a DataFrame of shape (n_samples, n_features), and returns an array of shape (n_samples,)
        of probabilities of the positive class, of classes, or of values. ``None`` takes the task's first strategy.
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
    least_rows_a_batch, most_rows_a_batch : int
        A batch with fewer or more rows is quarantined whole.
    golden : tuple of GoldenSet
        Frozen datasets; a dataset version is refused while one is missing, changed or breaks the contract.
    approval : Approval, "manual" or "automatic"
        Whether a version that passed waits for a named person, as it does by default, and who counts. ``"manual"``
        is ``Approval()``; ``"automatic"`` promotes at once.
    rollout : Rollout
        How traffic moves to a new champion.
    logged : tuple of str
        The features whose values may stand in the prediction log, for drift; empty logs none of them.
    """

    name: str
    description: str
    owners: tuple[str, ...] = ()
    table: type[Any]
    pipeline: Callable[[], Any]
    entity: str
    event_time: str
    label: str
    task: Task = "binary"
    positive: str | int | None = None
    gates: tuple[Gate, ...] = DEFAULT_GATES
    slices: tuple[str | Slice, ...] = ()
    comparison: Comparison | None = Comparison()
    baseline: str | Callable[[Any], Any] | None = None
    schedule: str = "0 2 * * 1"
    min_new_rows: int = Field(default=1, ge=1)
    split: Literal["entity", "time"] = "entity"
    holdout_share: float = Field(default=0.2, gt=0, lt=1)
    least_rows: int = Field(default=500, ge=2)
    least_share_of_a_class: float = Field(default=0.01, ge=0, lt=0.5)
    quarantine_tolerance: float = Field(default=0.05, ge=0, le=1)
    least_rows_a_batch: int = Field(default=1, ge=1)
    most_rows_a_batch: int = Field(default=50_000_000, ge=1)
    golden: tuple[GoldenSet, ...] = ()
    approval: Approval | Literal["manual", "automatic"] = "manual"
    rollout: Rollout = Rollout()
    logged: tuple[str, ...] = ()

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, value: str) -> str:
        if not MODEL_NAME.fullmatch(value):
            raise ValueError(f"name must match {MODEL_NAME.pattern}. Got {value!r} instead.")
        return value

    @field_validator("gates")
    @classmethod
    def _gates_are_there(cls, value: tuple[Gate, ...]) -> tuple[Gate, ...]:
        names = [gate.name for gate in value]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"gates must name at least one metric, each once in the same place. Got {names} instead.")
        return value

    @field_validator("golden")
    @classmethod
    def _golden_sets_are_different(cls, value: tuple[GoldenSet, ...]) -> tuple[GoldenSet, ...]:
        names = [golden.name for golden in value]
        if len(set(names)) < len(names) or HOLDOUT in names:
            raise ValueError(f"golden must name each set once, and none {HOLDOUT!r}. Got {names} instead.")
        return value

    @model_validator(mode="after")
    def _a_batch_can_have_rows(self) -> Self:
        if self.least_rows_a_batch > self.most_rows_a_batch:
            raise ValueError(
                f"least_rows_a_batch must not be greater than most_rows_a_batch, {self.most_rows_a_batch:,}. "
                f"Got {self.least_rows_a_batch:,} instead."
            )
        return self

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
        return self

    @model_validator(mode="after")
    def _logged_are_features(self) -> Self:
        unknown = sorted(set(self.logged) - set(self.features))
        if unknown or len(set(self.logged)) < len(self.logged):
            raise ValueError(f"logged must name features, each once, of {self.features}. Got {self.logged} instead.")
        return self

    @model_validator(mode="after")
    def _task_is_consistent(self) -> Self:
        if (self.task == "binary") != (self.positive is not None):
            raise ValueError(f"positive must be given for the task 'binary' and for no other. Got {self.positive!r}.")
        allowed = self._listed(self.label)
        if self.positive is not None and allowed is not None and self.positive not in allowed:
            raise ValueError(f"positive must be a value of {self.label!r}, one of {allowed}. Got {self.positive!r}.")
        self._metrics_are_of_the_task()
        if isinstance(self.baseline, str) and self.baseline not in BASELINES[self.task]:
            raise ValueError(f"baseline must be one of {BASELINES[self.task]} or a function. Got {self.baseline!r}.")
        return self

    def _metrics_are_of_the_task(self) -> None:
        foreign = {name for names in METRICS.values() for name in names} - set(METRICS[self.task])
        for gate in self.gates:
            if gate.metric in foreign:
                raise ValueError(f"gate {gate.name!r} asks for a metric that the task {self.task!r} does not have")
        if self.comparison is not None and self.comparison.metric not in METRICS[self.task]:
            raise ValueError(
                f"comparison must be of one of {METRICS[self.task]}, or None. Got {self.comparison.metric!r}."
            )

    @model_validator(mode="after")
    def _slices_and_datasets_are_there(self) -> Self:
        known = {HOLDOUT, *(golden.name for golden in self.golden)}
        for gate in self.gates:
            if gate.dataset not in known:
                raise ValueError(f"dataset of gate {gate.name!r} must be one of {sorted(known)}. Got {gate.dataset!r}.")
        for part in self.parts:
            self._require_sliceable(part)
        shown = [safe_name(part.name) for part in self.parts] + [golden.name for golden in self.golden]
        if len(set(shown)) < len(shown):
            raise ValueError(f"slices and golden datasets must have different names in MLflow. Got {shown} instead.")
        return self

    def _require_sliceable(self, part: Slice) -> None:
        from pandera.dtypes import is_numeric

        column = self.table.to_schema().columns.get(part.column)
        if column is None or part.column in {self.entity, self.event_time, self.label}:
            raise ValueError(f"slice {part.name!r} must be of a feature, one of {self.features}. Got {part.column!r}.")
        if isinstance(part, Range) and not is_numeric(column.dtype):
            raise ValueError(f"slice {part.name!r} is a range and {part.column!r} holds no numbers: use Value instead.")
        allowed = self._listed(part.column)
        if isinstance(part, Value) and allowed is not None and part.equals not in allowed:
            raise ValueError(f"slice {part.name!r} must be a value of the contract, one of {allowed}.")

    def _listed(self, column: str) -> list[Any] | None:
        """Return the values that the contract allows in a column; ``None`` where it lists none."""
        found = self.table.to_schema().columns.get(column)
        if found is None:
            return None
        listed = (check.statistics.get("allowed_values") for check in found.checks)
        return next((list(values) for values in listed if values is not None), None)

    def parts_of(self, slices: Iterable[str | Slice]) -> tuple[Slice, ...]:
        """Return slices with every column that was named alone as one slice of each value.

        The contract gives the values, not the rows: a value that no row has any more is a slice without rows.
        """
        return tuple(part for named in slices for part in self._expanded(named))

    def _expanded(self, named: str | Slice) -> list[Slice]:
        if not isinstance(named, str):
            return [named]
        values = self._listed(named)
        if values is None:
            raise ValueError(
                f"slice {named!r} must be a column whose values the contract lists, as isin does. For any other write "
                f"Value(column={named!r}, equals=…) or Range(column={named!r}, at_least=…, below=…)."
            )
        return [Value(column=named, equals=value) for value in values]

    @property
    def parts(self) -> tuple[Slice, ...]:
        """All slices that are measured: those of the model and those that gates ask for, each once."""
        asked = (part for gate in self.gates for part in self.parts_of(gate.slices))
        return tuple({part.name: part for part in (*self.parts_of(self.slices), *asked)}.values())

    @property
    def conditions(self) -> dict[str, str]:
        """What a candidate must fulfil, as people write it, by the name of its check."""
        asked: list[Gate | Comparison] = [*self.gates, *([self.comparison] if self.comparison else [])]
        return {one.name: one.condition for one in asked}

    @property
    def stated_baseline(self) -> str:
        """The baseline as a verdict names it: ``DummyClassifier(prior)``, or a rule's module and name."""
        if callable(self.baseline):
            return f"rule {self.baseline.__module__}.{self.baseline.__qualname__}"
        kind = "DummyRegressor" if self.task == "regression" else "DummyClassifier"
        return f"{kind}({self.baseline or BASELINES[self.task][0]})"

    @property
    def stated_split(self) -> str:
        """The split as a verdict names it: ``entity 0.2``."""
        return f"{self.split} {self.holdout_share:g}"

    @property
    def approval_needed(self) -> Approval | None:
        """Who may approve; ``None`` where nobody has to."""
        if isinstance(self.approval, Approval):
            return self.approval
        return None if self.approval == "automatic" else Approval()

    @property
    def most_inference_ms(self) -> float | None:
        """The least bound of a gate on ``inference_time_ms``; ``None`` where none asks for the time."""
        bounds = [gate.at_most for gate in self.gates if gate.metric == "inference_time_ms"]
        return min((bound for bound in bounds if bound is not None), default=None)

    @property
    def columns(self) -> list[str]:
        """All columns of the contract, in its order."""
        return list(self.table.to_schema().columns)

    @property
    def features(self) -> list[str]:
        """The columns that the model sees: all but entity, event time and label."""
        return [name for name in self.columns if name not in {self.entity, self.event_time, self.label}]
