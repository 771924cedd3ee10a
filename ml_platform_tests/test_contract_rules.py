"""A contract is refused when it is declared, or every row comes back with the declared types and values."""

import csv
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pandera
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_platform.contract_rules import find_kind
from ml_platform.data import datasets
from ml_platform.model_spec import ModelSpec
from ml_platform.records.data import Outcome
from ml_platform_tests.support import any_contract, fakes
from ml_platform_tests.support.steps import publish

Schema = pandera.DataFrameSchema
Column = pandera.Column


def declare(**columns: Any) -> ModelSpec:
    """Declare visits with further columns; a value is a pandera Column."""
    return from_schema(add_columns(**columns))


def add_columns(**columns: Any) -> Any:
    return fakes.Visits.to_schema().add_columns(columns)


def from_schema(schema: Any, **changes: Any) -> ModelSpec:
    class Declared(fakes.Visits):
        @classmethod
        def to_schema(cls) -> Any:
            return schema

    return fakes.visits_spec(contract=Declared, **changes)


# Types

ALLOWED = ["int", "int8", "int16", "int32", "float", "float32", "bool", "str", "string", "utc"]
REFUSED = sorted(set(any_contract.TYPES) - set(ALLOWED))


def from_types(*columns: tuple[str, str, bool], **changes: Any) -> ModelSpec:
    contract = getattr(any_contract, any_contract.name_contract(list(columns)))
    return fakes.visits_spec(contract=contract, min_batch_rows=1, **changes)


@pytest.mark.fault("D25")
@pytest.mark.parametrize("key", REFUSED)
@pytest.mark.parametrize("nullable", [False, True])
def test_type_that_changes_is_refused(key: str, nullable: bool) -> None:
    with pytest.raises(ValueError, match="column 'x' must have one of the types int"):
        from_types(("x", key, nullable))


@pytest.mark.fault("D25")
@pytest.mark.parametrize(("key", "advice"), [("int", "as float"), ("int8", "as float"), ("bool", "str with isin")])
def test_nullable_type_that_changes_is_refused(key: str, advice: str) -> None:
    with pytest.raises(ValueError, match=f"column 'x' must not be nullable.*{advice}"):
        from_types(("x", key, True))


def test_column_without_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"column 'x' must have one of the types .* Got None instead"):
        declare(x=Column(None))


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-(2**63), 2**63 - 1),
    "int8": st.integers(-128, 127),
    "int16": st.integers(-(2**15), 2**15 - 1),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "float32": st.floats(allow_nan=False, allow_infinity=False, width=32),
    "bool": st.booleans(),
    "str": st.text(st.characters(codec="utf-8"), min_size=1, max_size=4),
    "string": st.text(st.characters(codec="utf-8"), min_size=1, max_size=4),
    "utc": st.datetimes(pd.Timestamp("1700-01-01"), pd.Timestamp("2250-01-01")).map(
        lambda time: pd.Timestamp(time, tz="UTC").as_unit("us")
    ),
}
NAMES = st.text(min_size=0, max_size=3) | st.sampled_from(
    [
        "_x",
        "_row",
        "_arrival",
        "*",
        "^x.*$",
        "Plan",
        "pages",
        " x",
        "x ",
        "x'",
        'x"',
        "x`",
        "x\n",
        "é",
        "x y",
        "x,y",
        "1",
        "(x)",
    ]
)
COLUMNS = st.lists(
    st.tuples(NAMES, st.sampled_from([*ALLOWED, *ALLOWED, *REFUSED]), st.booleans()),
    min_size=1,
    max_size=2,
    unique_by=lambda column: column[0],
)


@st.composite
def declared_columns(draw: Any) -> tuple[list[tuple[str, str, bool]], list[list[Any]]]:
    """Return columns, and the values of each: none is missing in the first half, some are in the second."""
    columns = draw(COLUMNS)
    values = []
    for _, key, nullable in columns:
        of_type = VALUES.get(key, st.just(1))
        some = st.none() | of_type if nullable else of_type
        values.append(draw(st.lists(of_type, min_size=4, max_size=4)) + draw(st.lists(some, min_size=4, max_size=4)))
    return columns, values


def publish_columns(spec: ModelSpec, columns: list[tuple[str, str, bool]], values: list[list[Any]]) -> Any:
    """Publish rows with these columns, as Parquet and as CSV; return the written and the pinned rows."""
    frame = fakes.visits(8)
    for (name, _, _), cells in zip(columns, values, strict=True):
        frame[name] = pd.Series(cells, dtype=spec.contract.to_schema().columns[name].dtype.type)
    text = frame.assign(visitor=frame["visitor"] + 100)
    with tempfile.TemporaryDirectory() as folder:
        platform = fakes.platform_in(Path(folder))
        landing = fakes.landing(platform) / "visits"
        # Two files of Parquet: in the first, nothing is missing.
        frame.head(4).to_parquet(landing / "a.parquet", index=False)
        frame.tail(4).to_parquet(landing / "b.parquet", index=False)
        times = {
            name: text[name].map(pd.Timestamp.isoformat, na_action="ignore") for name, key, _ in columns if key == "utc"
        }
        text.assign(seen_at=text["seen_at"].map(pd.Timestamp.isoformat), **times).to_csv(
            landing / "c.csv", index=False, quoting=csv.QUOTE_ALL
        )
        results = publish(platform, spec)
        _, rows = datasets.pin(platform.rows("visits"), spec)
        platform.database.close()
    assert [(result.outcome, result.quarantined_rows) for result in results] == [(Outcome.PUBLISHED, 0)] * 3, results
    return pd.concat([frame, text]).reset_index(drop=True), rows.sort_values("visitor").reset_index(drop=True)


def check_declaration(columns: list[tuple[str, str, bool]], values: list[list[Any]]) -> bool:
    """Return True if a contract with these columns is accepted; then its rows come back unchanged."""
    try:
        spec = from_types(*columns)
    except ValueError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert any(repr(name) in refused for name, _, _ in columns)
        return False
    written, read = publish_columns(spec, columns, values)
    for name, column in spec.contract.to_schema().columns.items():
        assert read[name].dtype == written[name].dtype == column.dtype.type
        pd.testing.assert_series_equal(read[name], written[name], check_exact=True)
    return True


@pytest.mark.slow
@pytest.mark.fault("D25")
@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(declared_columns())
def test_any_contract_is_kept_or_refused(declared: Any) -> None:
    check_declaration(*declared)


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@settings(max_examples=3_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(declared_columns())
def test_many_contracts_are_kept_or_refused(declared: Any) -> None:
    check_declaration(*declared)


@pytest.mark.slow
@pytest.mark.parametrize("key", ALLOWED)
def test_allowed_type_comes_back_unchanged(key: str) -> None:
    examples = {
        "utc": pd.Timestamp("2024-01-01T12:00", tz="UTC").as_unit("us"),
        "str": "a b",
        "string": "é",
        "bool": True,
    }
    nullable = key in {"float", "float32", "str", "string", "utc"}
    value = examples.get(key, 7)

    assert check_declaration([("x", key, nullable)], [[value] * 7 + [None if nullable else value]])


# Names


@pytest.mark.fault("D25")
@pytest.mark.parametrize(
    "name",
    [
        "_x",
        "_arrival",
        "_row",
        "",
        "*",
        "^x.*$",
        " x",
        "x ",
        "it's",
        'say "x"',
        "a`b",
        "a\\b",
        "a\nb",
        "a\u202eb",
        "x" * 256,
    ],
)
def test_name_that_cannot_be_kept_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must have a name of at most 255 printable characters") as refused:
        declare(**{name: Column(float)})

    assert f"column {name!r}" in str(refused.value)


@pytest.mark.fault("D25")
def test_names_that_differ_in_case_are_refused() -> None:
    with pytest.raises(ValueError, match="columns 'plan' and 'Plan' differ only in upper and lower case"):
        declare(Plan=Column(float))


# Features of pandera


@pytest.mark.fault("D25")
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"default": 1.0}, "must not have a default"),
        ({"required": False}, "must not be Optional"),
        ({"regex": True}, "declares regex"),
        ({"parsers": pandera.Parser(np.sqrt)}, "declares parsers"),
        ({"drop_invalid_rows": True}, "declares drop_invalid_rows"),
        (
            {"checks": pandera.Hypothesis(np.mean, relationship="equal")},
            "must not have a hypothesis test",
        ),
    ],
)
def test_feature_of_column_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=f"column 'x' {word}"):
        declare(x=Column(float, **changes))


@pytest.mark.fault("D25")
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"parsers": [pandera.Parser(lambda rows: rows)]}, "parsers"),
        ({"index": pandera.Index(int)}, "index"),
        ({"dtype": "float64"}, "dtype"),
        ({"add_missing_columns": True}, "add_missing_columns"),
        ({"drop_invalid_rows": True}, "drop_invalid_rows"),
    ],
)
def test_feature_of_schema_is_refused(changes: dict[str, Any], word: str) -> None:
    columns = fakes.Visits.to_schema().columns

    with pytest.raises(ValueError, match=f"the contract declares {word}, which is not supported"):
        from_schema(Schema(columns, strict=True, **changes))


# Roles


@pytest.mark.fault("D26")
@pytest.mark.parametrize("role", ["visitor", "seen_at", "bought"])
def test_role_that_may_be_missing_is_refused(role: str) -> None:
    schema = fakes.Visits.to_schema().update_column(role, nullable=True)

    with pytest.raises(ValueError, match=f"'{role}' must not be nullable"):
        from_schema(schema)


@pytest.mark.fault("D25")
@pytest.mark.parametrize(
    ("column", "dtype", "changes", "sentence"),
    [
        ("visitor", float, {}, "the entity must be integer or text. Got 'visitor', which is number"),
        ("visitor", bool, {}, "the entity must be integer or text"),
        ("seen_at", str, {}, "the event_time must be time. Got 'seen_at', which is text"),
        ("seen_at", int, {}, "the event_time must be time"),
        ("bought", float, {}, "the label of the task 'binary' must be text or integer or boolean. Got 'bought'"),
        ("bought", str, {"task": "regression", "positive": None}, "the label of the task 'regression' must be number"),
        ("bought", float, {"task": "multiclass", "positive": None}, "the label of the task 'multiclass' must be text"),
    ],
)
def test_role_of_other_kind_is_refused(column: str, dtype: Any, changes: dict[str, Any], sentence: str) -> None:
    schema = fakes.Visits.to_schema().update_column(column, dtype=dtype, checks=[])

    with pytest.raises(ValueError, match=sentence):
        from_schema(schema, **changes)


@pytest.mark.parametrize(("dtype", "positive"), [(str, 1), (int, "1"), (bool, "true")])
def test_positive_of_other_type_is_refused(dtype: Any, positive: Any) -> None:
    schema = fakes.Visits.to_schema().update_column("bought", dtype=dtype, checks=[])

    with pytest.raises(ValueError, match=f"positive must be a value of 'bought', which is .* Got {positive!r}"):
        from_schema(schema, positive=positive)


def test_kinds_of_visits_are_known() -> None:
    columns = fakes.Visits.to_schema().columns

    assert [find_kind(column) for column in columns.values()] == [
        "integer",
        "time",
        "integer",
        "number",
        "text",
        "text",
    ]
