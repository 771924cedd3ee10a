"""The two ways of holding rows against a schema, compiled and by pandera, name the same rows."""

from datetime import UTC, datetime
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pandera.pandas as pandera
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_platform import scans
from ml_platform.contracts import compile_contract, in_words
from ml_platform.defs.models.churn import churn
from ml_platform.scans import Batch

Utc = Annotated[pd.DatetimeTZDtype, "us", "UTC"]
NEW_YEAR = datetime(2024, 1, 1, tzinfo=UTC)


class Everything(pandera.DataFrameModel):
    """Every check that is compiled."""

    whole: int = pandera.Field(ge=-2, le=5, ne=3, isin=[-3, -1, 0, 1, 2, 3, 4, 5, 6], unique=True)
    other: int = pandera.Field(gt=-3, lt=6, notin=[4], eq=0)
    share: float = pandera.Field(in_range={"min_value": 0, "max_value": 1, "include_max": False}, ne=0.5)
    maybe: float = pandera.Field(ge=0.25, isin=[0.25, 0.5, 1.0], nullable=True, unique=True)
    code: str = pandera.Field(str_matches=r"[A-Z]{2}$", str_length={"min_value": 1, "max_value": 3}, ge="B")
    digits: str = pandera.Field(str_matches=r"^[0-9]+", str_contains=r"1[0-9]*$", isin=["1", "12", "10", "é1"])
    name: str = pandera.Field(str_startswith="a", str_endswith="z", notin=["az"], nullable=True)
    at: Utc = pandera.Field(ge=NEW_YEAR, lt=pd.Timestamp("2024-01-03", tz="Europe/Rome"))

    @pandera.dataframe_check
    def ordered(cls, frame: pd.DataFrame) -> Any:  # type: ignore[misc]  # noqa: N805
        return (frame["whole"] <= frame["other"]) | ~(frame["code"] != frame["digits"])

    class Config:
        strict = True
        unique = ["share", "other"]  # noqa: RUF012


SCHEMA = Everything.to_schema()
TYPES = pa.schema(
    {
        "whole": pa.int64(),
        "other": pa.int64(),
        "share": pa.float64(),
        "maybe": pa.float64(),
        "code": pa.string(),
        "digits": pa.string(),
        "name": pa.string(),
        "at": pa.timestamp("us", "UTC"),
    }
)
NUMBERS = st.sampled_from([-0.0, 0.0, 0.25, 0.5, 1.0, 1.5, -1.0, float("inf"), float("-inf"), float("nan")])
TEXT = st.sampled_from(
    [
        "",
        "A",
        "AB",
        "ABC",
        "AB\n",
        "xAB",
        "É",
        "BÉ",
        "ab",
        "az",
        "a\nz",
        "abz",
        "1",
        "12",
        "1\n",
        "é1",
        "\u0661",
        "10",
        "x1",
    ]
) | st.text("ABaz1é\n\u0663", max_size=4)
MOMENTS = st.sampled_from(
    [datetime(2024, 1, day, 23, tzinfo=UTC) for day in (1, 2, 3)] + [NEW_YEAR, datetime(2023, 12, 31, tzinfo=UTC)]
)
INTEGERS = st.integers(-4, 7)
ROW = st.fixed_dictionaries(
    {
        "whole": INTEGERS,
        "other": INTEGERS,
        "share": NUMBERS,
        "maybe": NUMBERS | st.none(),
        "code": TEXT | st.none(),
        "digits": TEXT | st.none(),
        "name": TEXT | st.none(),
        "at": MOMENTS | st.none(),
    }
)
BATCHES = st.lists(ROW, min_size=1, max_size=12).map(lambda rows: pa.Table.from_pylist(rows, TYPES))
Named = dict[str, set[int]]


def held(rows: Any, schema: Any = SCHEMA, *, native: bool = True) -> tuple[Named, set[int]]:
    """Return the rows that break each rule, and all of them, as the platform finds them."""
    batch = Batch(pl.LazyFrame(pl.from_arrow(rows)), rows.num_rows, rows.schema, 1_000)
    found = batch.hold(compile_contract(schema, rows.schema.names, native=native))
    named = {f"{', '.join(one.columns)} {one.name}": set(one.rows) for one in found}
    assert {name: len(there) for name, there in named.items()} == {
        f"{', '.join(one.columns)} {one.name}": one.count for one in found
    }
    return named, set(np.flatnonzero(batch.bad).tolist())


def by_pandera(rows: Any) -> tuple[Named, set[int]]:
    """Return the same as pandera names them in one pandas frame."""
    frame = rows.to_pandas()
    named: Named = {}
    try:
        Everything.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        for case in errors.failure_cases.to_dict("records"):
            column = case["column"] if case["schema_context"] == "Column" else "the row"
            named.setdefault(f"{column} {case['check']}", set()).add(int(case["index"]))
    return named, set().union(*named.values())


def of_columns(named: Named) -> Named:
    """Leave out the rules of whole rows, whose columns the two ways name differently."""
    return {name: rows for name, rows in named.items() if not name.endswith(("ordered", "multiple_fields_uniqueness"))}


def test_every_check_of_the_schema_is_compiled() -> None:
    contract = compile_contract(SCHEMA, TYPES.names)

    assert contract.left_over == []
    assert len(contract.rules) == sum(len(column.checks) for column in SCHEMA.columns.values()) + 6 + 1
    assert len(contract.unique) == 3


def test_every_check_of_the_shipped_model_is_compiled() -> None:
    schema = churn.table.to_schema()

    assert compile_contract(schema, list(schema.columns)).left_over == []


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(BATCHES)
def test_the_compiled_contract_names_the_rows_that_pandera_names(rows: Any) -> None:
    named, bad = held(rows)
    expected, expected_bad = by_pandera(rows)

    assert of_columns(named) == of_columns(expected)
    assert bad == expected_bad


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(BATCHES, st.integers(1, 5))
def test_what_is_left_to_pandera_in_parts_names_the_same_rows(rows: Any, at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scans, "ROWS_AT_ONCE", at_once)
        slow, slow_bad = held(rows, native=False)
    fast, fast_bad = held(rows)

    assert of_columns(slow) == of_columns(fast)
    assert slow_bad == fast_bad


# What only pandera can say, and what it says in its own way


def checked(column: Any, values: list[Any], kind: Any) -> tuple[Named, set[int]]:
    """Return what is found in one column ``x``, that pandera finds in it too."""
    schema = pandera.DataFrameSchema({"x": column})
    rows = pa.table({"x": pa.array(values, kind)})
    found = held(rows, schema)
    try:
        schema.validate(rows.to_pandas(), lazy=True)
        accepted = True
    except pandera.errors.SchemaErrors:
        accepted = False
    assert accepted == (found == ({}, set()))
    return found


def test_a_check_that_only_warns_rejects_nothing() -> None:
    warns = pandera.Check.ge(2, raise_warning=True)
    with pytest.warns(pandera.errors.SchemaWarning):
        assert checked(pandera.Column(int, warns), [1, 2], pa.int64()) == ({}, set())


def test_a_text_may_have_one_exact_length() -> None:
    found = checked(pandera.Column(str, pandera.Check.str_length(exact_value=2)), ["ab", "a", "abc"], pa.string())

    assert found[1] == {1, 2}


def test_a_zone_that_is_an_offset_is_left_to_pandera() -> None:
    column = pandera.Column(pd.DatetimeTZDtype("us", "+02:00"), pandera.Check.ge(NEW_YEAR))

    found = checked(column, [NEW_YEAR, datetime(2023, 12, 31, tzinfo=UTC)], pa.timestamp("us", "+02:00"))

    assert found[1] == {1}


@pytest.mark.parametrize("least", [0, 3])
def test_a_check_of_groups_sees_all_of_their_rows(monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    monkeypatch.setattr(scans, "ROWS_AT_ONCE", 2)
    enough = pandera.Check(lambda groups: groups["a"].sum() >= least, groupby="group", name="enough")
    schema = pandera.DataFrameSchema({"x": pandera.Column(int, enough), "group": pandera.Column(str)})
    batch = Batch(pl.LazyFrame({"x": [1, 0, 0, 1], "group": ["a", "b", "b", "a"]}), 4, GROUPED, 10)

    found = batch.hold(compile_contract(schema, GROUPED.names))

    assert [(one.name, one.count, one.rows) for one in found] == ([("enough", 1, [])] if least else [])


GROUPED = pa.schema({"x": pa.int64(), "group": pa.string()})


@pytest.mark.parametrize(
    "raised", [ZeroDivisionError, AssertionError, KeyError, AttributeError, RecursionError, TypeError, ValueError]
)
@pytest.mark.parametrize("where", ["column", "row"])
def test_a_check_that_raises_rejects_the_batch(raised: type[Exception], where: str) -> None:
    def check(_: Any) -> Any:
        raise raised("secret")

    one = pandera.Check(check, name="mine")
    schema = pandera.DataFrameSchema({"x": pandera.Column(int, one if where == "column" else None)})
    schema.checks = [one] if where == "row" else []
    batch = Batch(pl.LazyFrame({"x": [1, 2]}), 2, pa.schema({"x": pa.int64()}), 10)

    (found,) = batch.hold(compile_contract(schema, ["x"]))

    assert (found.name, found.count, found.rows) == (f"mine, which raised {raised.__name__}", 1, [])


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("greater_than_or_equal_to(0)", "must be at least 0"),
        ("isin(['yes', 'no'])", "must be one of ['yes', 'no']"),
        ("str_matches('^(a|b)$')", "must match '^(a|b)$'"),
        ("not_nullable", "must not be empty"),
        ("not in the future", "must not be in the future"),
        ("the sum of both is 1", "breaks the sum of both is 1"),
    ],
)
def test_rules_are_said_in_words_where_there_are_some(rule: str, words: str) -> None:
    assert in_words(rule) == words
