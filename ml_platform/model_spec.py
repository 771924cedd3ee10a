"""The declaration of a model: everything that its author chooses, in one `ModelSpec`.

All classes here are frozen, typed and keyword-only. An unknown field, or a value that cannot work, raises an error
when the declaration is imported.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

from ml_platform.contract_rules import find_contract_problem, find_kind

# Dagster joins names with underscores; single underscores, and none at the end, keep joined names unambiguous.
MODEL_NAME = re.compile(r"(?=.{1,40}\Z)[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
NAME_RULE = "a model's name must be lower-case words joined by single underscores, at most 40 characters."
HOLDOUT = "holdout"
CRON_FIELDS = 5
CRON = re.compile(r"[0-9A-Za-z*,/ \-]+")
Task = Literal["binary", "multiclass", "regression"]
# The metrics of each task's predictions. Prediction time, model size and memory are measured for every task.
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
# Strategies of scikit-learn's DummyClassifier and DummyRegressor; the first one is the task's default baseline.
BASELINES: dict[Task, tuple[str, ...]] = {
    "binary": ("prior", "most_frequent", "stratified", "uniform"),
    "multiclass": ("prior", "most_frequent", "stratified", "uniform"),
    "regression": ("mean", "median"),
}


def safe_name(name: str) -> str:
    """Replace the characters of a slice's name that MLflow does not allow in the name of a metric."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", name)


def exact(number: float) -> str:
    """Format a number in its shortest form, ``0.8``, that still reads back as the same number."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


class _Declared(BaseModel):
    """Base class of all declarations: frozen, without unknown fields, infinity and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


def declared_fields(declared: _Declared) -> dict[str, Any]:
    """Return the fields that differ from their defaults, as JSON values: the content of a declaration's digest."""
    return declared.model_dump(mode="json", exclude_defaults=True)


class Equals(_Declared):
    """A slice: the rows in which a column has one value.

    If the contract lists the column's values, the column's name alone declares one slice for each value.

    Parameters
    ----------
    column : str
        A feature.
    equals : str, int or bool
        The value of the column in every row of the slice.
    """

    column: str
    equals: StrictBool | StrictInt | StrictStr

    @property
    def name(self) -> str:
        """The slice as text: ``plan = paid``."""
        return f"{self.column} = {self.equals}"


class InRange(_Declared):
    """A slice: the rows in which a numeric column lies in a range.

    Parameters
    ----------
    column : str
        A numeric feature.
    at_least, below : float or None
        The ends of the range, which includes `at_least` and excludes `below`. ``None`` leaves that end open; one of
        the two is required.
    """

    column: str
    at_least: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _check_ends(self) -> Self:
        if self.at_least is None and self.below is None:
            raise ValueError(f"range of {self.column!r} must have at_least, below or both. Got neither.")
        if self.at_least is not None and self.below is not None and self.at_least >= self.below:
            raise ValueError(f"range of {self.column!r} must have at_least < below. Got {self.at_least}, {self.below}.")
        return self

    @property
    def name(self) -> str:
        """The slice as text: ``0 <= age < 30``."""
        start = "" if self.at_least is None else f"{exact(self.at_least)} <= "
        end = "" if self.below is None else f" < {exact(self.below)}"
        return f"{start}{self.column}{end}"


Slice = Equals | InRange


class Gate(_Declared):
    """A condition that a candidate must meet: a metric and its minimum or maximum.

    Parameters
    ----------
    metric : str
        Name of a metric that evaluation computes, for instance ``auc_roc``. ``inference_time_ms`` is the 95th
        percentile of the time that a warm model takes for one record; its gate is INCONCLUSIVE if the noise of the
        measurement reaches the bound. Time and memory are measured in a separate process, which takes two seconds,
        and only if a gate names one of them.
    at_least, at_most : float or None
        The minimum or the maximum of the metric; exactly one of the two is required. ``None`` sets no bound.
    on : str
        ``value`` compares the metric itself with the bound. ``confidence_bound`` compares its lower confidence bound
        with `at_least`, or its upper one with `at_most`: a model that is not good enough then passes by luck in at
        most 5 of 100 cases.
    slices : tuple of str, Equals or InRange
        Slices of which each must meet the condition. Empty applies it to all rows together.
    dataset : str
        ``holdout``, or the name of a golden dataset.
    min_rows : int
        Minimum number of rows, in each slice if there are slices; with fewer, the result is INCONCLUSIVE.
    """

    metric: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    at_least: float | None = None
    at_most: float | None = None
    on: Literal["value", "confidence_bound"] = "value"
    slices: tuple[str | Slice, ...] = ()
    dataset: str = HOLDOUT
    min_rows: int = Field(default=30, ge=1)

    @model_validator(mode="after")
    def _check_bound(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(
                f"gate {self.metric!r} must have exactly one of at_least and at_most. "
                f"Got {self.at_least} and {self.at_most}."
            )
        return self

    @property
    def name(self) -> str:
        """The name of the gate's check: its metric, then its dataset, its slices' columns and ``bound``, if any."""
        dataset = [] if self.dataset == HOLDOUT else ["on", self.dataset]
        slices = ["by", *self._slice_columns] if self.slices else []
        return "_".join([self.metric, *dataset, *slices, *(["bound"] if self.on == "confidence_bound" else [])])

    @property
    def condition(self) -> str:
        """The gate as text: ``auc_roc >= 0.8``."""
        side = "" if self.on == "value" else "upper bound of " if self.at_least is None else "lower bound of "
        dataset = "" if self.dataset == HOLDOUT else f" on {self.dataset}"
        slices = f", for each {' and '.join(self._slice_columns)}" if self.slices else ""
        return f"{side}{self.metric} {self.asks}{dataset}{slices}"

    @property
    def _slice_columns(self) -> list[str]:
        return list(dict.fromkeys(part if isinstance(part, str) else part.column for part in self.slices))

    @property
    def asks(self) -> str:
        """The bound with its sign: ``>= 0.8``."""
        return f"{'<=' if self.at_least is None else '>='} {exact(self.bound)}"

    @property
    def bound(self) -> float:
        """The value of `at_least` or `at_most`."""
        return self.at_most if self.at_least is None else self.at_least  # type: ignore[return-value]


class Comparison(_Declared):
    """The condition on a candidate's gain over the champion: a paired test on the same rows of the holdout.

    A candidate without a champion, or with exactly the champion's bytes, is compared with the model's `baseline`
    instead: the lower confidence bound of its gain must be above 0.

    Parameters
    ----------
    metric : str
        The metric that is compared.
    margin : float
        Non-inferiority margin, in the metric's unit: the candidate may be worse than the champion by less than this.
        The lower confidence bound of its gain must be above ``-margin``.
    min_gain : float or None
        Minimum of the lower confidence bound of the gain. ``None`` requires no gain, so that an equal candidate may
        succeed the champion.
    confidence : float
        One-sided confidence level of these bounds.
    min_rows : int
        Minimum number of rows on which neither model was trained; with fewer, the result is INCONCLUSIVE.
    """

    metric: str = Field(default="auc_roc", pattern=r"^[a-z][a-z0-9_]*$")
    margin: float = Field(default=0.01, gt=0)
    min_gain: float | None = Field(default=None, ge=0)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    min_rows: int = Field(default=30, ge=2)

    @property
    def name(self) -> str:
        """The name of the comparison's check."""
        return f"{self.metric}_compared"

    @property
    def condition(self) -> str:
        """The comparison as text: ``auc_roc at most 0.01 behind the champion, or ahead of the baseline``."""
        gain = "" if self.min_gain is None else f" and better by {self.min_gain:g}"
        return f"{self.metric} at most {self.margin:g} behind the champion{gain}, or ahead of the baseline"


class GoldenSet(_Declared):
    """A frozen dataset in ``data/golden/MODEL/NAME.parquet``.

    Parameters
    ----------
    name : str
        The file's name without its suffix.
    sha256 : str
        Hex sha256 of the file's bytes; a file with other bytes blocks training.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Approval(_Declared):
    """The rules for approving a version before it becomes champion.

    Parameters
    ----------
    authenticated_by : tuple of str
        Accepted proofs of the approver's identity: ``os_user``, the account that runs the command; ``token``, a
        secret; ``github_environment``, the reviewer of a protected environment, whose job GitHub proves by a signed
        token.
    expires_after_hours : float
        Maximum age of an approval, in hours; an older one does not count.
    """

    authenticated_by: tuple[Literal["github_environment", "token", "os_user"], ...] = ("os_user", "token")
    expires_after_hours: float = Field(default=72, gt=0, le=24 * 365)

    @field_validator("authenticated_by")
    @classmethod
    def _check_authentication(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError(f"authenticated_by must name at least one method, each once. Got {value} instead.")
        return value


class Rollout(_Declared):
    """The way in which traffic moves from the previous champion to the new one, and the limits that reverse it.

    Parameters
    ----------
    kind : str
        ``blue_green`` moves all traffic at once, when the new champion is loaded and answers its golden requests.
        ``canary`` moves traffic in steps. ``ab`` splits traffic until there are enough requests, reports, and then
        moves all of it. ``shadow`` sends requests to both versions, answers with the previous one until there are
        enough, and then moves all traffic.
    steps : tuple of float
        Shares of traffic at the steps of a canary, increasing, the last one 1. The first is also the share of ``ab``.
    hold_minutes : float
        Minimum duration of a step, in minutes.
    min_requests : int
        Minimum number of requests to the new champion before a step is judged; the step waits for them.
    max_error_increase : float
        Maximum increase of the share of keys whose first request fails, over that of the previous champion. A champion
        as good as the previous one is rolled back in at most 1 % of rollouts, and one that is worse by twice this or
        more is kept in at most 1 %. A smaller limit needs more requests.
    max_slowdown : float
        Maximum p95 latency relative to the previous champion (2.0 = twice as slow).
    max_score_shift : float
        Maximum difference between the score distributions of the two versions, as Cramer's V. It is exceeded only if
        the difference is also larger than the bounds of both distributions.
    deadline_ms : float
        Maximum time of a prediction by the new champion for each 32 records of a request, in milliseconds. A slower one
        counts as an error, and the previous champion answers the request.
    """

    kind: Literal["blue_green", "canary", "ab", "shadow"] = "blue_green"
    steps: tuple[float, ...] = (0.05, 0.25, 0.5, 1.0)
    hold_minutes: float = Field(default=10, ge=0)
    min_requests: int = Field(default=200, ge=1)
    max_error_increase: float = Field(default=0.01, ge=0, lt=1)
    max_slowdown: float = Field(default=2.0, ge=1)
    max_score_shift: float = Field(default=0.1, ge=0, le=1)
    deadline_ms: float = Field(default=1_000, gt=0)

    @field_validator("steps")
    @classmethod
    def _check_steps(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or value[0] <= 0 or value[-1] != 1 or sorted(set(value)) != list(value):
            raise ValueError(f"steps must be increasing shares above 0, the last one 1. Got {value} instead.")
        return value


class Retraining(_Declared):
    """The times and the new data at which a model is trained again.

    Parameters
    ----------
    schedule : str
        Cron expression in UTC; Mondays at 02:00 by default.
    min_new_rows : int
        Minimum number of published rows, beyond those of the last candidate, before arrivals start a retraining.
    """

    schedule: str = "0 2 * * 1"
    min_new_rows: int = Field(default=1, ge=1)

    @field_validator("schedule")
    @classmethod
    def _check_schedule(cls, value: str) -> str:
        if len(value.split()) != CRON_FIELDS or not CRON.fullmatch(value):
            raise ValueError(
                "schedule must be a cron expression of five fields: minute, hour, day of month, month, day of week, "
                f"for instance '0 2 * * 1' for Monday 02:00 UTC. Got {value!r} instead."
            )
        return value


DEFAULT_GATES = (
    Gate(metric="auc_roc", at_least=0.80),
    Gate(metric="f1_score", at_least=0.70),
    Gate(metric="inference_time_ms", at_most=100),
    Gate(metric="model_size_mb", at_most=500),
)


class ModelSpec(_Declared):
    """The declaration of one model.

    The required fields are `name`, `description`, `contract`, `pipeline`, `entity`, `event_time` and `label`, and
    `positive` for the task ``binary``.

    Parameters
    ----------
    name : str
        The model's name in the registry, prefix of its asset keys and folder in the landing zone: lower-case words
        joined by single underscores, at most 40 characters.
    description : str
        One sentence about the model, for the UI.
    owners : tuple of str
        E-mail addresses, or ``team:name``, of the model's owners in Dagster.
    contract : pandera DataFrameModel class
        The contract for the model's rows: columns, types and rules. It must be strict and must not coerce. Every
        column except entity, event time and label is a feature. Types are ``int`` (also of 8, 16 or 32 bits), ``float``
        (also of 32 bits), ``bool``, ``str`` and times in UTC with microseconds; only numbers with a fraction, text and
        times may be nullable.
    pipeline : callable
        Function that returns an unfitted scikit-learn Pipeline, which includes the preprocessing.
    entity : str
        Column that identifies the subject of a row, for instance a customer: integers or text, not nullable.
    event_time : str
        Column with the time at which a row was observed: a time in UTC, not nullable.
    label : str
        Column to predict, not nullable.
    task : str
        ``binary`` predicts if the label is `positive`, ``multiclass`` one of three or more classes, ``regression`` a
        number.
    positive : str, int or None
        The label's value that counts as positive, for the task ``binary``. Must be ``None`` for the other tasks.
    gates : tuple of Gate
        Conditions on a candidate, of which all must pass.
    slices : tuple of str, Equals or InRange
        Parts of the rows whose metrics are measured and shown, in addition to the slices of gates. The name of a
        column declares one slice for each value that the contract lists.
    comparison : Comparison or None
        Condition on a candidate's gain over the champion. ``None`` compares with neither champion nor baseline.
    baseline : str, callable or None
        The predictions that the first model must beat: a strategy of scikit-learn's DummyClassifier (``prior``,
        ``most_frequent``, ``stratified``, ``uniform``) or DummyRegressor (``mean``, ``median``), or a rule. A rule is
        a function that takes the features, a DataFrame of shape (n_samples, n_features), and returns probabilities
        of the positive class, classes or numbers, an array of shape (n_samples,). ``None`` takes the task's first
        strategy.
    retraining : Retraining
        The schedule of retraining, and the number of new rows that start it.
    rows : str
        The rows of a dataset version: ``newest`` takes the newest row of each entity, ``all`` takes every published
        row. Confidence intervals treat rows as independent, so that they are too narrow if an entity has many rows.
    split : str
        ``entity`` holds out entities by a hash, so that an entity is on the same side in every dataset version.
        ``time`` holds out the newest rows, for a model that predicts future rows. With all rows of each entity,
        ``time`` may put an entity on both sides, at different times.
    holdout_share : float
        Share of the entities, or of the rows, that is held out.
    min_rows : int
        Minimum number of rows of a dataset version; a smaller one is not trained on.
    min_class_share : float
        Minimum share of each class in a dataset version; a version with a rarer class is not trained on.
    quarantine_tolerance : float
        Maximum share of bad rows in a batch. Above it, the whole batch is quarantined; below it, only the bad rows.
    min_batch_rows, max_batch_rows : int
        Minimum and maximum number of rows of a batch; any other batch is quarantined.
    golden : tuple of GoldenSet
        Frozen datasets on which gates may be evaluated. Training is blocked while one is missing, changed or breaks
        the contract.
    approval : Approval, "manual" or "automatic"
        The approval that a passing version needs before it becomes champion. ``"manual"`` is ``Approval()``: a named
        person approves it. ``"automatic"`` promotes it at once.
    rollout : Rollout
        The way in which traffic moves to a new champion.
    logged_features : tuple of str
        Features whose values are written to the prediction log, to detect drift. Empty logs none.
    asset_checks : callable or None
        Function without arguments that returns the author's own checks, a sequence of
        ``dagster.AssetChecksDefinition``; it imports Dagster in its body. A blocking check is on ``training_dataset``
        or ``trained_model``, and a version is registered only if the run that trained it recorded the check's success.
        The other checks only report. ``None`` adds none.
    """

    name: str
    description: str
    owners: tuple[str, ...] = ()
    contract: type[Any]
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
    retraining: Retraining = Retraining()
    rows: Literal["newest", "all"] = "newest"
    split: Literal["entity", "time"] = "entity"
    holdout_share: float = Field(default=0.2, gt=0, lt=1)
    min_rows: int = Field(default=500, ge=2)
    min_class_share: float = Field(default=0.01, ge=0, lt=0.5)
    quarantine_tolerance: float = Field(default=0.05, ge=0, le=1)
    min_batch_rows: int = Field(default=1, ge=1)
    max_batch_rows: int = Field(default=50_000_000, ge=1)
    golden: tuple[GoldenSet, ...] = ()
    approval: Approval | Literal["manual", "automatic"] = "manual"
    rollout: Rollout = Rollout()
    logged_features: tuple[str, ...] = ()
    asset_checks: Callable[[], Sequence[Any]] | None = None

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not MODEL_NAME.fullmatch(value):
            raise ValueError(f"{NAME_RULE} Got {value!r} instead.")
        return value

    @field_validator("gates")
    @classmethod
    def _check_gates(cls, value: tuple[Gate, ...]) -> tuple[Gate, ...]:
        subclasses = [type(gate).__name__ for gate in value if type(gate) is not Gate]
        if subclasses:
            raise ValueError(
                "gates must be instances of Gate itself, because a verdict's digest does not cover the fields of a "
                f"subclass. Got {subclasses[0]} instead."
            )
        names = [gate.name for gate in value]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"gates must be at least one, each with its own name. Got {names} instead.")
        return value

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        schema, contract = self.contract.to_schema(), self.contract.__name__
        if schema.strict is not True or schema.coerce or any(column.coerce for column in schema.columns.values()):
            raise ValueError(f"contract {contract} must have Config.strict = True and must not coerce.")
        roles = (self.entity, self.event_time, self.label)
        if len(set(roles)) < len(roles):
            raise ValueError(f"entity, event_time and label must be three different columns. Got {roles} instead.")
        missing = sorted(set(roles) - set(schema.columns))
        if missing:
            raise ValueError(f"contract {contract} has no column {missing}. It has {self.columns}.")
        problem = find_contract_problem(
            schema, entity=self.entity, event_time=self.event_time, label=self.label, task=self.task
        )
        if problem is not None:
            raise ValueError(f"contract {contract}: {problem}")
        logged = set(self.logged_features)
        if not logged <= set(self.features) or len(logged) < len(self.logged_features):
            raise ValueError(
                f"logged_features must name features of {self.features}, each once. Got {self.logged_features} instead."
            )
        if self.min_batch_rows > self.max_batch_rows:
            raise ValueError(
                f"min_batch_rows must not be greater than max_batch_rows, {self.max_batch_rows:,}. "
                f"Got {self.min_batch_rows:,} instead."
            )
        return self

    @model_validator(mode="after")
    def _check_task(self) -> Self:
        if (self.task == "binary") != (self.positive is not None):
            raise ValueError(f"positive must be given for the task 'binary' and for no other. Got {self.positive!r}.")
        allowed = self._allowed_values(self.label)
        if self.positive is not None and allowed is not None and self.positive not in allowed:
            raise ValueError(f"positive must be a value of {self.label!r}, one of {allowed}. Got {self.positive!r}.")
        kind = find_kind(self.contract.to_schema().columns[self.label])
        if self.positive is not None and isinstance(self.positive, str) != (kind == "text"):
            raise ValueError(f"positive must be a value of {self.label!r}, which is {kind}. Got {self.positive!r}.")
        return self

    @model_validator(mode="after")
    def _check_metrics(self) -> Self:
        metrics, foreign = METRICS[self.task], set[str]().union(*METRICS.values()).difference(METRICS[self.task])
        for gate in self.gates:
            if gate.metric in foreign:
                raise ValueError(
                    f"gate {gate.name!r} has a metric of another task. The task {self.task!r} has {metrics}."
                )
        if self.comparison is not None and self.comparison.metric not in metrics:
            raise ValueError(f"comparison must have a metric of {metrics}, or be None. Got {self.comparison.metric!r}.")
        if callable(self.baseline) and not hasattr(self.baseline, "__qualname__"):
            raise ValueError(f"baseline must be a function with a name. Got {type(self.baseline).__name__} instead.")
        if isinstance(self.baseline, str) and self.baseline not in BASELINES[self.task]:
            raise ValueError(f"baseline must be one of {BASELINES[self.task]} or a function. Got {self.baseline!r}.")
        return self

    @model_validator(mode="after")
    def _check_slices_and_datasets(self) -> Self:
        golden = [golden.name for golden in self.golden]
        if len(set(golden)) < len(golden) or HOLDOUT in golden:
            raise ValueError(f"golden must name each dataset once, and none of them {HOLDOUT!r}. Got {golden} instead.")
        for gate in self.gates:
            if gate.dataset not in {HOLDOUT, *golden}:
                known = sorted([HOLDOUT, *golden])
                raise ValueError(f"dataset of gate {gate.name!r} must be one of {known}. Got {gate.dataset!r}.")
        for part in self.parts:
            self._require_sliceable(part)
        names = [*(safe_name(part.name) for part in self.parts), *golden]
        if len(set(names)) < len(names):
            raise ValueError(f"slices and golden datasets must have different names in MLflow. Got {names} instead.")
        return self

    def _require_sliceable(self, part: Slice) -> None:
        from pandera.dtypes import is_numeric

        if part.column not in self.features:
            raise ValueError(f"slice {part.name!r} must be of a feature, one of {self.features}. Got {part.column!r}.")
        if isinstance(part, InRange) and not is_numeric(self.contract.to_schema().columns[part.column].dtype):
            raise ValueError(
                f"slice {part.name!r} is a range, but the column {part.column!r} is not numeric. Use Equals instead."
            )
        allowed = self._allowed_values(part.column)
        if isinstance(part, Equals) and allowed is not None and part.equals not in allowed:
            raise ValueError(f"slice {part.name!r} must have a value that the contract allows, one of {allowed}.")

    def _allowed_values(self, column: str) -> list[Any] | None:
        """Return the values that the contract lists for a column; ``None`` if it lists none, or has no such column."""
        columns = self.contract.to_schema().columns
        checks = columns[column].checks if column in columns else []
        listed = (check.statistics.get("allowed_values") for check in checks)
        return next((list(values) for values in listed if values is not None), None)

    def expand_slices(self, slices: Iterable[str | Slice]) -> tuple[Slice, ...]:
        """Replace each name of a column by one slice for each value that the contract lists.

        The values come from the contract, not from the rows: the slice of a value that no row has is empty.

        Raises
        ------
        ValueError
            The contract does not list the column's values.
        """
        expanded = list[Slice]()
        for part in slices:
            if not isinstance(part, str):
                expanded.append(part)
                continue
            values = self._allowed_values(part)
            if values is None:
                raise ValueError(
                    f"slice {part!r} must be a column whose values the contract lists with isin. For another column, "
                    f"declare Equals(column={part!r}, equals=…) or InRange(column={part!r}, at_least=…, below=…)."
                )
            expanded += [Equals(column=part, equals=value) for value in values]
        return tuple(expanded)

    @property
    def parts(self) -> tuple[Slice, ...]:
        """All slices that are measured, those of the model and then those of its gates, each once."""
        of_gates = (part for gate in self.gates for part in self.expand_slices(gate.slices))
        return tuple(dict.fromkeys((*self.expand_slices(self.slices), *of_gates)))

    @property
    def conditions(self) -> dict[str, str]:
        """The conditions on a candidate as text, by the name of their check."""
        declared: list[Gate | Comparison] = [*self.gates, *([self.comparison] if self.comparison else [])]
        return {condition.name: condition.condition for condition in declared}

    @property
    def stated_baseline(self) -> str:
        """The baseline's name in a verdict: ``DummyClassifier(prior)``, or a rule's module and name."""
        if callable(self.baseline):
            return f"rule {self.baseline.__module__}.{self.baseline.__qualname__}"
        kind = "DummyRegressor" if self.task == "regression" else "DummyClassifier"
        return f"{kind}({self.baseline or BASELINES[self.task][0]})"

    @property
    def stated_split(self) -> str:
        """The split's name in a verdict: ``entity 0.2``, or ``entity 0.2 all`` with all rows of each entity."""
        return f"{self.split} {exact(self.holdout_share)}{'' if self.rows == 'newest' else f' {self.rows}'}"

    @property
    def approval_needed(self) -> Approval | None:
        """The rules for an approval; ``None`` if a passing version is promoted without one."""
        if isinstance(self.approval, Approval):
            return self.approval
        return None if self.approval == "automatic" else Approval()

    @property
    def max_inference_ms(self) -> float | None:
        """The lowest bound of the gates on ``inference_time_ms``, in milliseconds; ``None`` without such a gate."""
        bounds = [gate.at_most for gate in self.gates if gate.metric == "inference_time_ms"]
        return min((bound for bound in bounds if bound is not None), default=None)

    @property
    def columns(self) -> list[str]:
        """All columns of the contract, in its order."""
        return list(self.contract.to_schema().columns)

    @property
    def features(self) -> list[str]:
        """The columns that the model sees, in the contract's order: all but entity, event time and label."""
        return [name for name in self.columns if name not in {self.entity, self.event_time, self.label}]
