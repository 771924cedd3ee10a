"""The compiled contract and pandera select the same rows."""

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

from ml_platform.data.validation import schema_scan
from ml_platform.data.validation.schema_compiler import compile_contract, in_words
from ml_platform.data.validation.schema_scan import BatchScan
from ml_platform.models.churn import churn

Utc = Annotated[pd.DatetimeTZDtype, "us", "UTC"]
NEW_YEAR = datetime(2024, 1, 1, tzinfo=UTC)


class Everything(pandera.DataFrameModel):
    """All compiled checks."""

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


def find_bad_rows(rows: Any, schema: Any = SCHEMA, *, native: bool = True) -> tuple[Named, set[int]]:
    """Return the rows that break each rule, and all bad rows, as the platform finds them."""
    batch = BatchScan(pl.LazyFrame(pl.from_arrow(rows)), rows.num_rows, rows.schema, 1_000)
    broken = batch.hold(compile_contract(schema, rows.schema.names, native=native))
    named = {f"{', '.join(one.columns)} {one.name}": set(one.rows) for one in broken}
    assert {name: len(rows) for name, rows in named.items()} == {
        f"{', '.join(one.columns)} {one.name}": one.count for one in broken
    }
    return named, set(np.flatnonzero(batch.bad).tolist())


def find_by_pandera(rows: Any) -> tuple[Named, set[int]]:
    """Return the rows that break each rule, and all bad rows, as pandera finds them."""
    frame = rows.to_pandas()
    named: Named = {}
    try:
        Everything.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        for case in errors.failure_cases.to_dict("records"):
            column = case["column"] if case["schema_context"] == "Column" else "the row"
            named.setdefault(f"{column} {case['check']}", set()).add(int(case["index"]))
    return named, set().union(*named.values())


def select_column_rules(named: Named) -> Named:
    """Omit the rules on whole rows: pandera and the platform name their columns differently."""
    return {name: rows for name, rows in named.items() if not name.endswith(("ordered", "multiple_fields_uniqueness"))}


def test_compile_test_schema_leaves_nothing_over() -> None:
    contract = compile_contract(SCHEMA, TYPES.names)

    assert contract.left_over == []
    assert len(contract.rules) == sum(len(column.checks) for column in SCHEMA.columns.values()) + 6 + 1
    assert len(contract.unique) == 3


def test_compile_shipped_model_leaves_nothing_over() -> None:
    schema = churn.contract.to_schema()

    assert compile_contract(schema, list(schema.columns)).left_over == []


@pytest.mark.servers
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(BATCHES)
def test_compiled_contract_selects_rows_as_pandera(rows: Any) -> None:
    named, bad = find_bad_rows(rows)
    expected, expected_bad = find_by_pandera(rows)

    assert select_column_rules(named) == select_column_rules(expected)
    assert bad == expected_bad


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(BATCHES, st.integers(1, 5))
def test_pandera_in_parts_selects_the_same_rows(rows: Any, at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema_scan, "ROWS_AT_ONCE", at_once)
        slow, slow_bad = find_bad_rows(rows, native=False)
    fast, fast_bad = find_bad_rows(rows)

    assert select_column_rules(slow) == select_column_rules(fast)
    assert slow_bad == fast_bad


# Checks that pandera runs


def check_column(column: Any, values: list[Any], kind: Any) -> tuple[Named, set[int]]:
    """Return the bad rows of one column ``x``, after a comparison with pandera's verdict."""
    schema = pandera.DataFrameSchema({"x": column})
    rows = pa.table({"x": pa.array(values, kind)})
    bad = find_bad_rows(rows, schema)
    try:
        schema.validate(rows.to_pandas(), lazy=True)
        accepted = True
    except pandera.errors.SchemaErrors:
        accepted = False
    assert accepted == (bad == ({}, set()))
    return bad


def test_warning_check_rejects_nothing() -> None:
    warns = pandera.Check.ge(2, raise_warning=True)
    with pytest.warns(pandera.errors.SchemaWarning):
        assert check_column(pandera.Column(int, warns), [1, 2], pa.int64()) == ({}, set())


def test_compile_exact_text_length() -> None:
    bad = check_column(pandera.Column(str, pandera.Check.str_length(exact_value=2)), ["ab", "a", "abc"], pa.string())

    assert bad[1] == {1, 2}


def test_compile_fixed_offset_zone_is_left_over() -> None:
    column = pandera.Column(pd.DatetimeTZDtype("us", "+02:00"), pandera.Check.ge(NEW_YEAR))

    bad = check_column(column, [NEW_YEAR, datetime(2023, 12, 31, tzinfo=UTC)], pa.timestamp("us", "+02:00"))

    assert bad[1] == {1}


@pytest.mark.parametrize("minimum", [0, 3])
def test_group_check_gets_all_rows(monkeypatch: pytest.MonkeyPatch, minimum: int) -> None:
    monkeypatch.setattr(schema_scan, "ROWS_AT_ONCE", 2)
    enough = pandera.Check(lambda groups: groups["a"].sum() >= minimum, groupby="group", name="enough")
    schema = pandera.DataFrameSchema({"x": pandera.Column(int, enough), "group": pandera.Column(str)})
    batch = BatchScan(pl.LazyFrame({"x": [1, 0, 0, 1], "group": ["a", "b", "b", "a"]}), 4, GROUPED, 10)

    broken = batch.hold(compile_contract(schema, GROUPED.names))

    assert [(one.name, one.count, one.rows) for one in broken] == ([("enough", 1, [])] if minimum else [])


GROUPED = pa.schema({"x": pa.int64(), "group": pa.string()})


@pytest.mark.parametrize(
    "raised", [ZeroDivisionError, AssertionError, KeyError, AttributeError, RecursionError, TypeError, ValueError]
)
@pytest.mark.parametrize("where", ["column", "row"])
def test_raising_check_rejects_the_batch(raised: type[Exception], where: str) -> None:
    def check(_: Any) -> Any:
        raise raised("secret")

    one = pandera.Check(check, name="mine")
    schema = pandera.DataFrameSchema({"x": pandera.Column(int, one if where == "column" else None)})
    schema.checks = [one] if where == "row" else []
    batch = BatchScan(pl.LazyFrame({"x": [1, 2]}), 2, pa.schema({"x": pa.int64()}), 10)

    (broken,) = batch.hold(compile_contract(schema, ["x"]))

    assert (broken.name, broken.count, broken.rows) == (f"mine, which raised {raised.__name__}", 1, [])


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
def test_rule_in_words(rule: str, words: str) -> None:
    assert in_words(rule) == words
