import re
from functools import partial
from math import inf, nan
from typing import Any

import pandera.pandas as pa
import pytest
from pydantic import ValidationError

from ml_platform.model_spec import DEFAULT_GATES, Approval, Comparison, Equals, Gate, GoldenSet, InRange, ModelSpec
from ml_platform_tests.support import fakes


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


def test_spec_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="minimum_rows"):
        fakes.visits_spec(minimum_rows=10)


def test_gate_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="at_leats"):
        Gate(metric="auc_roc", at_leats=0.8)  # type: ignore[call-arg]


def test_spec_is_frozen() -> None:
    spec = fakes.visits_spec()
    with pytest.raises(ValidationError, match="frozen"):
        spec.gates = ()  # type: ignore[misc]


def test_gate_is_frozen() -> None:
    gate = Gate(metric="auc_roc", at_least=0.8)
    with pytest.raises(ValidationError, match="frozen"):
        gate.at_least = 0.1  # type: ignore[misc]


@pytest.mark.parametrize("bounds", [{}, {"at_least": 0.1, "at_most": 0.9}])
def test_gate_without_exactly_one_bound_is_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="exactly one of at_least and at_most"):
        Gate(metric="auc_roc", **bounds)


@pytest.mark.parametrize("side", ["at_least", "at_most"])
@pytest.mark.parametrize("bound", [nan, inf, -inf])
def test_gate_bound_not_finite_is_refused(side: str, bound: float) -> None:
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
def test_gate_condition_bound_and_name(gate: Gate, condition: str, bound: float) -> None:
    assert (gate.condition, gate.bound, gate.name) == (condition, bound, gate.metric)


@pytest.mark.parametrize(
    ("gate", "condition", "name"),
    [
        ({"on": "confidence_bound"}, "lower bound of auc_roc >= 0.8", "auc_roc_bound"),
        (
            {"slices": ("plan", InRange(column="pages", below=9))},
            "auc_roc >= 0.8, for each plan and pages",
            "_by_plan_pages",
        ),
        ({"dataset": "holiday"}, "auc_roc >= 0.8 on holiday", "auc_roc_on_holiday"),
    ],
)
def test_gate_condition_and_name_include_dataset_and_slices(gate: dict[str, Any], condition: str, name: str) -> None:
    built = Gate(metric="auc_roc", at_least=0.8, **gate)

    assert built.condition == condition
    assert built.name.endswith(name)
    assert re.fullmatch(r"[a-z0-9_]+", built.name)


@pytest.mark.parametrize("metric", ["", "AUC", "auc roc", "auc=1", "auc\n"])
def test_gate_metric_invalid_as_check_name_is_refused(metric: str) -> None:
    with pytest.raises(ValidationError, match="metric"):
        Gate(metric=metric, at_least=0.8)


@pytest.mark.parametrize("min_rows", [0, -1])
def test_gate_min_rows_below_one_is_refused(min_rows: int) -> None:
    with pytest.raises(ValidationError, match="min_rows"):
        Gate(metric="auc_roc", at_least=0.8, min_rows=min_rows)


@pytest.mark.parametrize(
    "declared",
    [
        {"margin": nan},
        {"margin": 0.0},
        {"margin": -0.1},
        {"margin": inf},
        {"min_gain": nan},
        {"min_gain": -0.1},
        {"confidence": 0.5},
        {"confidence": 1.0},
        {"confidence": nan},
        {"min_rows": 1},
    ],
    ids=str,
)
def test_comparison_number_out_of_range_is_refused(declared: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(declared))):
        Comparison(**declared)


# Slices


def test_slice_column_name_expands_to_contract_values() -> None:
    spec = fakes.visits_spec(slices=("plan",))

    assert spec.parts == (Equals(column="plan", equals="free"), Equals(column="plan", equals="paid"))


def test_slices_of_gates_are_parts_once() -> None:
    gate = Gate(metric="f1_score", at_least=0.5, slices=(Equals(column="plan", equals="paid"), "plan"))

    spec = fakes.visits_spec(slices=("plan",), gates=(gate,))

    assert [part.name for part in spec.parts] == ["plan = free", "plan = paid"]


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (Equals(column="pages", equals=7), "pages = 7"),
        (InRange(column="pages", below=9), "pages < 9"),
        (InRange(column="pages", at_least=9), "9 <= pages"),
        (InRange(column="pages", at_least=0.5, below=9), "0.5 <= pages < 9"),
    ],
)
def test_slice_name_is_readable_text(part: Equals | InRange, name: str) -> None:
    assert part.name == name


@pytest.mark.parametrize(
    "ends", [{}, {"at_least": 3, "below": 3}, {"at_least": 4, "below": 3}, {"below": nan}], ids=str
)
def test_range_without_numbers_is_refused(ends: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=r"must have at_least|finite number"):
        InRange(column="pages", **ends)


@pytest.mark.parametrize(
    ("part", "rule"),
    [
        ("pages", "a column whose values the contract lists"),
        ("absent", "a column whose values the contract lists"),
        ("bought", "must be of a feature"),
        (Equals(column="absent", equals=1), "must be of a feature"),
        (Equals(column="visitor", equals=1), "must be of a feature"),
        (Equals(column="plan", equals="gold"), "one of ['free', 'paid']"),
        (InRange(column="plan", below=1), "is not numeric"),
        (InRange(column="seen_at", below=1), "must be of a feature"),
    ],
    ids=str,
)
@pytest.mark.parametrize("of_a_gate", [False, True])
def test_slice_without_possible_rows_is_refused(part: Any, rule: str, of_a_gate: bool) -> None:
    gates = (Gate(metric="auc_roc", at_least=0.8, slices=(part,)),)

    with pytest.raises(ValidationError, match=re.escape(rule)):
        fakes.visits_spec(**({"gates": gates} if of_a_gate else {"slices": (part,)}))


def test_slices_with_equal_mlflow_names_are_refused() -> None:
    different = (InRange(column="pages", below=9), InRange(column="pages", at_least=9, below=10))
    equal = (*different, Equals(column="seconds", equals="a b"), Equals(column="seconds", equals="a-b"))

    assert len(fakes.visits_spec(slices=different).parts) == 2
    with pytest.raises(ValidationError, match="different names in MLflow"):
        fakes.visits_spec(slices=equal)


@pytest.mark.parametrize("dataset", ["holiday", ""])
def test_gate_on_undeclared_dataset_is_refused(dataset: str) -> None:
    with pytest.raises(ValidationError, match=r"must be one of \['holdout'\]"):
        fakes.visits_spec(gates=(Gate(metric="auc_roc", at_least=0.8, dataset=dataset),))


def test_golden_dataset_named_holdout_is_refused() -> None:
    with pytest.raises(ValidationError, match="none of them 'holdout'"):
        fakes.visits_spec(golden=(GoldenSet(name="holdout", sha256="0" * 64),))


# Tasks and baselines


def test_spec_comparison_default_is_champion_auc() -> None:
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
        (fakes.visits_spec(baseline=fakes.visits), "rule ml_platform_tests.support.fakes.visits"),
    ],
)
def test_spec_stated_baseline_is_its_name(spec: ModelSpec, baseline: str) -> None:
    assert spec.stated_baseline == baseline


@pytest.mark.parametrize(
    ("make", "change", "rule"),
    [
        (fakes.visits_spec, {"baseline": "mean"}, "baseline must be one of"),
        (fakes.visits_spec, {"baseline": "coin"}, "baseline must be one of"),
        (fakes.spending_spec, {"baseline": "prior"}, "baseline must be one of"),
        (fakes.visits_spec, {"positive": None}, "positive must be given for the task 'binary'"),
        (fakes.kinds_spec, {"positive": "few"}, "positive must be given for the task 'binary'"),
        (fakes.spending_spec, {"gates": DEFAULT_GATES}, "The task 'regression' has"),
        (
            fakes.visits_spec,
            {"gates": (Gate(metric="r2", at_least=0),)},
            "The task 'binary' has",
        ),
        (fakes.kinds_spec, {"comparison": Comparison()}, "comparison must have a metric of"),
        (fakes.visits_spec, {"comparison": Comparison(metric="model_size_mb")}, "comparison must have a metric of"),
    ],
)
def test_spec_inconsistent_with_task_is_refused(make: Any, change: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        make(**change)


def test_spec_without_gates_has_default_gates() -> None:
    declared = {name: getattr(fakes.visits_spec(), name) for name in ("name", "description", "contract", "pipeline")}
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
def test_spec_empty_or_duplicate_gates_are_refused(gates: tuple[Gate, ...]) -> None:
    with pytest.raises(ValidationError, match="gates must be at least one, each with its own name"):
        fakes.visits_spec(gates=gates)


@pytest.mark.parametrize("name", ["", "Visits", "1visits", "vis-its", "../visits", "vi sits", "visits\n", "v" * 41])
def test_spec_unsafe_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="name must be lower-case words"):
        fakes.visits_spec(name=name)


@pytest.mark.parametrize("name", ["v", "visits_2", "v" * 40])
def test_spec_plain_name_is_accepted(name: str) -> None:
    assert fakes.visits_spec(name=name).name == name


@pytest.mark.parametrize("table", [LenientVisits, CoercingVisits, CoercingOneColumn])
def test_spec_lenient_or_coercing_contract_is_refused(table: Any) -> None:
    with pytest.raises(ValidationError, match=rf"{table.__name__} must have Config.strict = True"):
        fakes.visits_spec(contract=table)


@pytest.mark.parametrize("role", ["entity", "event_time", "label"])
def test_spec_column_missing_in_contract_is_refused(role: str) -> None:
    with pytest.raises(ValidationError, match="has no column"):
        fakes.visits_spec(**{role: "absent"})


@pytest.mark.parametrize(("role", "column"), [("entity", "seen_at"), ("event_time", "bought"), ("label", "visitor")])
def test_spec_roles_sharing_a_column_are_refused(role: str, column: str) -> None:
    with pytest.raises(ValidationError, match="must be three different columns"):
        fakes.visits_spec(**{role: column})


@pytest.mark.parametrize("positive", ["Yes", "maybe", "", 1])
def test_spec_positive_outside_contract_is_refused(positive: object) -> None:
    with pytest.raises(ValidationError, match=r"positive must be a value of 'bought', one of \['yes', 'no'\]"):
        fakes.visits_spec(positive=positive)


def test_spec_positive_without_listed_values_is_accepted() -> None:
    assert fakes.visits_spec(label="pages", positive=7).positive == 7


@pytest.mark.parametrize(
    "change",
    [
        {"holdout_share": 0.0},
        {"holdout_share": 1.0},
        {"retraining": {"min_new_rows": 0}},
        {"retraining": {"schedule": "every monday"}},
        {"min_rows": 1},
        {"min_class_share": 0.5},
        {"quarantine_tolerance": 1.1},
        {"quarantine_tolerance": -0.1},
    ],
)
def test_spec_number_out_of_range_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        fakes.visits_spec(**change)


def test_spec_approval_default_is_manual() -> None:
    assert ModelSpec.model_fields["approval"].default == "manual"
    assert fakes.visits_spec(approval="manual").approval_needed == Approval()
    assert fakes.visits_spec(approval="automatic").approval_needed is None
    assert fakes.visits_spec(approval=Approval(expires_after_hours=1)).approval_needed == Approval(
        expires_after_hours=1
    )


def test_approval_default_excludes_github_environment() -> None:
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
        {"author": "ada"},
    ],
)
def test_approval_invalid_rule_is_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(rule))):
        Approval(**rule)


@pytest.mark.parametrize("approval", ["none", "", None, True])
def test_spec_unknown_approval_is_refused(approval: object) -> None:
    with pytest.raises(ValidationError, match="approval"):
        fakes.visits_spec(approval=approval)


def test_spec_features_exclude_entity_time_and_label() -> None:
    spec = fakes.visits_spec()

    hidden = {spec.entity, spec.event_time, spec.label}

    assert spec.features == [name for name in spec.columns if name not in hidden]
    assert set(spec.columns) - set(spec.features) == hidden
    assert spec.columns == list(fakes.visits(1).columns)


def test_spec_impossible_batch_size_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"not be greater than max_batch_rows, 10\. Got 11"):
        fakes.visits_spec(min_batch_rows=11, max_batch_rows=10)
    with pytest.raises(ValidationError, match="min_batch_rows"):
        fakes.visits_spec(min_batch_rows=0)
    assert fakes.visits_spec(min_batch_rows=10, max_batch_rows=10).max_batch_rows == 10


def test_slices_differing_in_one_digit_are_distinct() -> None:
    ends = (1_000_000, 1_000_001)
    spec = fakes.visits_spec(slices=tuple(InRange(column="pages", below=end) for end in ends))

    assert [part.name for part in spec.parts] == ["pages < 1e+06", "pages < 1000001.0"]


def test_spec_baseline_without_name_is_refused() -> None:
    with pytest.raises(ValueError, match="baseline must be a function with a name"):
        fakes.visits_spec(baseline=partial(abs))
