from math import inf, nan
from typing import Any

import pandera.pandas as pa
import pytest
from pydantic import ValidationError

from ml_platform.model_spec import DEFAULT_GATES, Approval, Gate, ModelSpec
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
    assert (gate.condition, gate.bound) == (condition, bound)


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
