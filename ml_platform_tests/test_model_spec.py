import re
from math import inf, nan
from typing import Any

import pandera.pandas as pa
import pytest
from pydantic import ValidationError

from ml_platform.model_spec import DEFAULT_GATES, Approval, Comparison, Gate, GoldenSet, ModelSpec, Range, Value
from ml_platform_tests import fakes


class LenientVisits(fakes.Visits):
    class Config:
        strict = False


class CoercingVisits(fakes.Visits):
    class Config:
        strict = True
        coerce = True


class CoercingOneColumn(fakes.Visits):
    pages: int = pa.Field(coerce=True)

    class Config:
        strict = True


def test_a_key_that_nobody_declared_is_refused() -> None:
    with pytest.raises(ValidationError, match="minimum_rows"):
        fakes.visits_spec(minimum_rows=10)


def test_a_gate_with_a_key_that_nobody_declared_is_refused() -> None:
    with pytest.raises(ValidationError, match="at_leats"):
        Gate(metric="auc_roc", at_leats=0.8)  # type: ignore[call-arg]


def test_a_spec_cannot_be_changed_once_declared() -> None:
    spec = fakes.visits_spec()
    with pytest.raises(ValidationError, match="frozen"):
        spec.gates = ()  # type: ignore[misc]


def test_a_gate_cannot_be_loosened_once_declared() -> None:
    gate = Gate(metric="auc_roc", at_least=0.8)
    with pytest.raises(ValidationError, match="frozen"):
        gate.at_least = 0.1  # type: ignore[misc]


@pytest.mark.parametrize("bounds", [{}, {"at_least": 0.1, "at_most": 0.9}])
def test_a_gate_has_exactly_one_bound(bounds: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="exactly one of at_least and at_most"):
        Gate(metric="auc_roc", **bounds)


@pytest.mark.parametrize("side", ["at_least", "at_most"])
@pytest.mark.parametrize("bound", [nan, inf, -inf])
def test_a_bound_is_a_finite_number(side: str, bound: float) -> None:
    with pytest.raises(ValidationError, match=rf"{side}\n.*finite number"):
        Gate(metric="auc_roc", **{side: bound})


@pytest.mark.parametrize(
    ("gate", "condition", "bound"),
    [
        (Gate(metric="auc_roc", at_least=0.8), "auc_roc >= 0.8", 0.8),
        (Gate(metric="inference_time_ms", at_most=100), "inference_time_ms <= 100", 100),
        (Gate(metric="loss", at_least=0.0), "loss >= 0", 0.0),
        (Gate(metric="loss", at_most=0.0), "loss <= 0", 0.0),
    ],
)
def test_a_gate_is_written_as_people_write_it(gate: Gate, condition: str, bound: float) -> None:
    assert (gate.condition, gate.bound, gate.name) == (condition, bound, gate.metric)


@pytest.mark.parametrize(
    ("gate", "condition", "name"),
    [
        ({"on": "bound"}, "lower bound of auc_roc >= 0.8", "auc_roc_bound"),
        (
            {"slices": ("plan", Range(column="pages", below=9))},
            "auc_roc >= 0.8, for each plan and pages",
            "_by_plan_pages",
        ),
        ({"dataset": "holiday"}, "auc_roc >= 0.8 on holiday", "auc_roc_on_holiday"),
    ],
)
def test_a_gate_says_where_it_holds_in_its_condition_and_its_name(
    gate: dict[str, Any], condition: str, name: str
) -> None:
    made = Gate(metric="auc_roc", at_least=0.8, **gate)

    assert made.condition == condition
    assert made.name.endswith(name)
    assert re.fullmatch(r"[a-z0-9_]+", made.name)


@pytest.mark.parametrize("metric", ["", "AUC", "auc roc", "auc=1", "auc\n"])
def test_a_metric_that_can_name_no_check_is_refused(metric: str) -> None:
    with pytest.raises(ValidationError, match="metric"):
        Gate(metric=metric, at_least=0.8)


@pytest.mark.parametrize("least_rows", [0, -1])
def test_a_gate_on_no_rows_is_refused(least_rows: int) -> None:
    with pytest.raises(ValidationError, match="least_rows"):
        Gate(metric="auc_roc", at_least=0.8, least_rows=least_rows)


@pytest.mark.parametrize(
    "declared",
    [
        {"margin": nan},
        {"margin": 0.0},
        {"margin": -0.1},
        {"margin": inf},
        {"minimum_gain": nan},
        {"minimum_gain": -0.1},
        {"confidence": 0.5},
        {"confidence": 1.0},
        {"confidence": nan},
        {"least_rows": 1},
    ],
    ids=str,
)
def test_a_comparison_with_a_number_that_decides_nothing_is_refused(declared: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(declared))):
        Comparison(**declared)


# Slices


def test_a_column_stands_for_a_slice_of_each_value_that_its_contract_lists() -> None:
    spec = fakes.visits_spec(slices=("plan",))

    assert spec.parts == (Value(column="plan", equals="free"), Value(column="plan", equals="paid"))


def test_slices_of_gates_are_measured_too_and_each_once() -> None:
    gate = Gate(metric="f1_score", at_least=0.5, slices=(Value(column="plan", equals="paid"), "plan"))

    spec = fakes.visits_spec(slices=("plan",), gates=(gate,))

    assert [part.name for part in spec.parts] == ["plan = free", "plan = paid"]


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (Value(column="pages", equals=7), "pages = 7"),
        (Range(column="pages", below=9), "pages < 9"),
        (Range(column="pages", at_least=9), "9 <= pages"),
        (Range(column="pages", at_least=0.5, below=9), "0.5 <= pages < 9"),
    ],
)
def test_a_slice_is_written_as_people_write_it(part: Value | Range, name: str) -> None:
    assert part.name == name


@pytest.mark.parametrize(
    "ends", [{}, {"at_least": 3, "below": 3}, {"at_least": 4, "below": 3}, {"below": nan}], ids=str
)
def test_a_range_without_numbers_in_it_is_refused(ends: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=r"must have at_least|finite number"):
        Range(column="pages", **ends)


@pytest.mark.parametrize(
    ("part", "rule"),
    [
        ("pages", "a column whose values the contract lists"),
        ("absent", "a column whose values the contract lists"),
        ("bought", "must be of a feature"),
        (Value(column="absent", equals=1), "must be of a feature"),
        (Value(column="visitor", equals=1), "must be of a feature"),
        (Value(column="plan", equals="gold"), "one of ['free', 'paid']"),
        (Range(column="plan", below=1), "holds no numbers"),
        (Range(column="seen_at", below=1), "must be of a feature"),
    ],
    ids=str,
)
@pytest.mark.parametrize("of_a_gate", [False, True])
def test_a_slice_that_nothing_can_be_in_is_refused(part: Any, rule: str, of_a_gate: bool) -> None:
    gates = (Gate(metric="auc_roc", at_least=0.8, slices=(part,)),)

    with pytest.raises(ValidationError, match=re.escape(rule)):
        fakes.visits_spec(**({"gates": gates} if of_a_gate else {"slices": (part,)}))


def test_slices_that_mlflow_could_not_tell_apart_are_refused() -> None:
    alike = (Range(column="pages", below=9), Range(column="pages", at_least=9, below=10))
    same = (*alike, Value(column="seconds", equals="a b"), Value(column="seconds", equals="a-b"))

    assert len(fakes.visits_spec(slices=alike).parts) == 2
    with pytest.raises(ValidationError, match="different names in MLflow"):
        fakes.visits_spec(slices=same)


@pytest.mark.parametrize("dataset", ["holiday", ""])
def test_a_gate_on_a_dataset_that_nobody_froze_is_refused(dataset: str) -> None:
    with pytest.raises(ValidationError, match=r"must be one of \['holdout'\]"):
        fakes.visits_spec(gates=(Gate(metric="auc_roc", at_least=0.8, dataset=dataset),))


def test_no_golden_dataset_takes_the_holdouts_name() -> None:
    with pytest.raises(ValidationError, match="none 'holdout'"):
        fakes.visits_spec(golden=(GoldenSet(name="holdout", sha256="0" * 64),))


# Tasks and baselines


def test_a_model_is_compared_with_the_champion_unless_its_author_says_otherwise() -> None:
    assert fakes.visits_spec().comparison == Comparison(metric="auc_roc", margin=0.01)
    assert "auc_roc_compared" in fakes.visits_spec().conditions


@pytest.mark.parametrize(
    ("spec", "baseline"),
    [
        (fakes.visits_spec(), "DummyClassifier(prior)"),
        (fakes.visits_spec(baseline="most_frequent"), "DummyClassifier(most_frequent)"),
        (fakes.kinds_spec(), "DummyClassifier(prior)"),
        (fakes.spending_spec(), "DummyRegressor(mean)"),
        (fakes.spending_spec(baseline="median"), "DummyRegressor(median)"),
        (fakes.visits_spec(baseline=fakes.visits), "rule ml_platform_tests.fakes.visits"),
    ],
)
def test_a_baseline_is_stated_by_name(spec: ModelSpec, baseline: str) -> None:
    assert spec.stated_baseline == baseline


@pytest.mark.parametrize(
    ("make", "change", "rule"),
    [
        (fakes.visits_spec, {"baseline": "mean"}, "baseline must be one of"),
        (fakes.visits_spec, {"baseline": "coin"}, "baseline must be one of"),
        (fakes.spending_spec, {"baseline": "prior"}, "baseline must be one of"),
        (fakes.visits_spec, {"positive": None}, "positive must be given for the task 'binary'"),
        (fakes.kinds_spec, {"positive": "few"}, "positive must be given for the task 'binary'"),
        (fakes.spending_spec, {"gates": DEFAULT_GATES}, "a metric that the task 'regression' does not have"),
        (
            fakes.visits_spec,
            {"gates": (Gate(metric="r2", at_least=0),)},
            "a metric that the task 'binary' does not have",
        ),
        (fakes.kinds_spec, {"comparison": Comparison()}, "comparison must be of one of"),
        (fakes.visits_spec, {"comparison": Comparison(metric="model_size_mb")}, "comparison must be of one of"),
    ],
)
def test_what_does_not_fit_the_task_is_refused(make: Any, change: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        make(**change)


def test_a_model_without_declared_gates_has_the_default_ones() -> None:
    declared = {name: getattr(fakes.visits_spec(), name) for name in ("name", "description", "table", "pipeline")}
    columns = {"entity": "visitor", "event_time": "seen_at", "label": "bought", "positive": "yes"}

    spec = type(fakes.visits_spec())(**declared, **columns)

    assert spec.gates == DEFAULT_GATES
    assert [gate.condition for gate in spec.gates] == [
        "auc_roc >= 0.8",
        "f1_score >= 0.7",
        "inference_time_ms <= 100",
        "model_size_mb <= 500",
    ]


@pytest.mark.parametrize(
    "gates", [(), (Gate(metric="auc_roc", at_least=0.8), Gate(metric="auc_roc", at_least=0.1))], ids=["none", "twice"]
)
def test_a_model_has_gates_and_each_metric_once(gates: tuple[Gate, ...]) -> None:
    with pytest.raises(ValidationError, match="gates must name at least one metric, each once"):
        fakes.visits_spec(gates=gates)


@pytest.mark.parametrize("name", ["", "Visits", "1visits", "vis-its", "../visits", "vi sits", "visits\n", "v" * 41])
def test_a_name_that_is_no_safe_folder_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="name must match"):
        fakes.visits_spec(name=name)


@pytest.mark.parametrize("name", ["v", "visits_2", "v" * 40])
def test_a_plain_name_is_accepted(name: str) -> None:
    assert fakes.visits_spec(name=name).name == name


@pytest.mark.parametrize("table", [LenientVisits, CoercingVisits, CoercingOneColumn])
def test_a_contract_that_lets_through_or_coerces_is_refused(table: Any) -> None:
    with pytest.raises(ValidationError, match=rf"{table.__name__} must have Config.strict = True"):
        fakes.visits_spec(table=table)


@pytest.mark.parametrize("role", ["entity", "event_time", "label"])
def test_a_column_that_the_contract_lacks_is_refused(role: str) -> None:
    with pytest.raises(ValidationError, match="has no column"):
        fakes.visits_spec(**{role: "absent"})


@pytest.mark.parametrize(("role", "column"), [("entity", "seen_at"), ("event_time", "bought"), ("label", "visitor")])
def test_entity_time_and_label_in_one_column_are_refused(role: str, column: str) -> None:
    with pytest.raises(ValidationError, match="must be three different columns"):
        fakes.visits_spec(**{role: column})


@pytest.mark.parametrize("positive", ["Yes", "maybe", "", 1])
def test_a_positive_value_that_the_contract_does_not_allow_is_refused(positive: object) -> None:
    with pytest.raises(ValidationError, match=r"positive must be a value of 'bought', one of \['yes', 'no'\]"):
        fakes.visits_spec(positive=positive)


def test_a_positive_value_may_be_any_where_the_contract_lists_none() -> None:
    assert fakes.visits_spec(label="pages", positive=7).positive == 7


@pytest.mark.parametrize(
    "change",
    [
        {"holdout_share": 0.0},
        {"holdout_share": 1.0},
        {"min_new_rows": 0},
        {"least_rows": 1},
        {"least_share_of_a_class": 0.5},
        {"quarantine_tolerance": 1.1},
        {"quarantine_tolerance": -0.1},
    ],
)
def test_a_number_out_of_its_range_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        fakes.visits_spec(**change)


def test_a_version_waits_for_a_person_unless_its_author_says_otherwise() -> None:
    assert ModelSpec.model_fields["approval"].default == "manual"
    assert fakes.visits_spec(approval="manual").approval_needed == Approval()
    assert fakes.visits_spec(approval="automatic").approval_needed is None
    assert fakes.visits_spec(approval=Approval(expires_after_hours=1)).approval_needed == Approval(
        expires_after_hours=1
    )


def test_what_anybody_could_forge_counts_only_where_it_is_listed() -> None:
    assert Approval().authenticated_by == ("os_user", "token")


@pytest.mark.parametrize(
    "rule",
    [
        {"authenticated_by": ()},
        {"authenticated_by": ("token", "token")},
        {"authenticated_by": ("face",)},
        {"expires_after_hours": 0},
        {"expires_after_hours": inf},
        {"expires_after_hours": 24 * 366},
        {"author": "anybody"},
    ],
)
def test_a_rule_by_which_nobody_or_anybody_approves_is_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(rule))):
        Approval(**rule)


@pytest.mark.parametrize("approval", ["none", "", None, True])
def test_an_approval_that_is_neither_manual_nor_automatic_is_refused(approval: object) -> None:
    with pytest.raises(ValidationError, match="approval"):
        fakes.visits_spec(approval=approval)


def test_the_model_sees_neither_entity_nor_time_nor_label() -> None:
    spec = fakes.visits_spec()

    hidden = {spec.entity, spec.event_time, spec.label}

    assert spec.features == [name for name in spec.columns if name not in hidden]
    assert set(spec.columns) - set(spec.features) == hidden
    assert spec.columns == list(fakes.visits(1).columns)


def test_a_batch_that_can_have_no_number_of_rows_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"not be greater than most_rows_a_batch, 10\. Got 11"):
        fakes.visits_spec(least_rows_a_batch=11, most_rows_a_batch=10)
    with pytest.raises(ValidationError, match="least_rows_a_batch"):
        fakes.visits_spec(least_rows_a_batch=0)
    assert fakes.visits_spec(least_rows_a_batch=10, most_rows_a_batch=10).most_rows_a_batch == 10
