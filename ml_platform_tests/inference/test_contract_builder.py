"""The request contract accepts a request exactly if the model's contract accepts the row."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandera.errors import SchemaErrors
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from ml_platform.data import dataset_checks
from ml_platform.errors import RequestError
from ml_platform.inference.contract_builder import BUCKETS, build_request_contract
from ml_platform.inference.request_contract import RequestContract, Rule
from ml_platform.model_spec import ModelSpec
from ml_platform.training import fit
from ml_platform_tests.support import fakes

SPEC = fakes.visits_spec(logged_features=("pages",))
ROWS = fakes.visits(200)


def build(spec: ModelSpec = SPEC, rows: pd.DataFrame = ROWS, pipeline: Any = None) -> RequestContract:
    fitted = pipeline or fit.fit(rows, spec)
    return build_request_contract(spec, fitted, rows, np.linspace(0, 1, 101))


def test_contract_describes_training_rows() -> None:
    contract = build()

    assert RequestContract.from_document(contract.document) == contract
    assert [(of.name, of.kind, of.dtype, of.nullable) for of in contract.features] == [
        ("pages", "int", "int64", False),
        ("seconds", "float", "float64", False),
        ("plan", "str", "str", False),
    ]
    assert contract.features[0].rules == (Rule(name="ge", value=0), Rule(name="le", value=1_000))
    assert contract.features[2].rules == (Rule(name="isin", value=["free", "paid"]),)
    assert (contract.entity.name, contract.entity.kind) == ("visitor", "int")
    assert (contract.classes, contract.positive, contract.logged) == ((0, 1), "yes", ("pages",))
    assert contract.unchecked == ()


def test_ranges_and_categories_are_of_training_rows() -> None:
    rows = ROWS.assign(plan=["paid"] * 196 + ["free"] * 4)

    contract = build(rows=rows)

    assert contract.ranges["seconds"] == tuple(rows["seconds"].quantile([0.005, 0.995]))
    assert contract.categories == {"plan": ("paid",)}  # a value of only four people may identify them


def test_scores_have_twenty_buckets() -> None:
    spending = fakes.spending_spec()
    rows = fakes.spending(ROWS)

    assert build().score_ends == tuple(np.arange(1, BUCKETS) / BUCKETS)
    ends = build(spending, rows).score_ends
    assert ends == pytest.approx(tuple(np.arange(1, BUCKETS) / BUCKETS))  # the quantiles of evenly spaced scores
    contract = build_request_contract(spending, fit.fit(rows, spending), rows, np.ones(50))
    assert contract.score_ends == (1.0,)
    assert build(fakes.kinds_spec(), fakes.kinds(ROWS)).classes == ("few", "many", "some")


Utc = Annotated[pd.DatetimeTZDtype, "us", "UTC"]


class Odd(pa.DataFrameModel):
    """Every type and every built-in check."""

    visitor: int = pa.Field(ge=1)
    seen_at: Utc
    small: np.int8 = pa.Field(gt=-5, ne=3)
    single: np.float32 = pa.Field(in_range={"min_value": 0, "max_value": 2, "include_min": False, "include_max": False})
    share: float = pa.Field(in_range={"min_value": 0, "max_value": 1})
    maybe: float = pa.Field(nullable=True, lt=10)
    level: float = pa.Field(isin=[1, 2.5])
    code: str = pa.Field(str_length={"min_value": 2, "max_value": 3}, str_startswith="a", notin=["ab"])
    word: str = pa.Field(str_contains="[0-9]", nullable=True)
    form: str = pa.Field(str_matches="[a-c]+", str_endswith="c")
    member: bool
    due: Utc = pa.Field(ge=pd.Timestamp("2024-01-01", tz="UTC"))
    own: int
    bought: str = pa.Field(isin=["yes", "no"])

    @pa.check("own")
    @classmethod
    def even(cls, values: "pd.Series[int]") -> "pd.Series[bool]":
        return values % 2 == 0

    @pa.dataframe_check
    @classmethod
    def small_is_less(cls, rows: pd.DataFrame) -> "pd.Series[bool]":
        return rows["small"] < 1_000

    class Config:
        strict = True


ODD = fakes.visits_spec(contract=Odd)
ODD_ROW: dict[str, Any] = {
    "small": 1,
    "single": 0.5,
    "share": 0.5,
    "maybe": 1.0,
    "level": 2.5,
    "code": "aa",
    "word": "a1",
    "form": "abc",
    "member": True,
    "due": datetime(2024, 5, 1, tzinfo=UTC),
    "own": 2,
}
FIXED = {"visitor": 1, "seen_at": datetime(2024, 1, 1, tzinfo=UTC), "bought": "yes"}


def odd_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    utc = "datetime64[us, UTC]"
    types = {"small": "int8", "single": "float32", "maybe": "float64", "level": "float64", "seen_at": utc, "due": utc}
    frame = pd.DataFrame([{**FIXED, **row} for row in rows])[list(Odd.to_schema().columns)]
    return frame.astype({**types, "word": "str", "code": "str"})


def odd_contract() -> RequestContract:
    rows = odd_frame([ODD_ROW] * 20).assign(bought=["yes", "no"] * 10)
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline

    numbers = ColumnTransformer([("numbers", "passthrough", ["small", "level"])])
    pipeline = Pipeline([("preprocess", numbers), ("classify", LogisticRegression())])
    return build(ODD, rows, pipeline.fit(rows[ODD.features], dataset_checks.target(rows, ODD)))


DECODER = odd_contract().decoder()
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "small": st.integers(-128, 127),
    "single": st.sampled_from([0.0, 0.5, 1.5, 2.0, -0.5]),
    "share": st.sampled_from([0.0, 1.0, 1.1, -0.1]),
    "maybe": st.one_of(st.none(), st.floats(-20, 20)),
    "level": st.sampled_from([1.0, 2.5, 2.0]),
    "code": st.sampled_from(["a", "aa", "ab", "abc", "aaaa", "ba", "", "aä"]),
    "word": st.one_of(st.none(), st.sampled_from(["1", "a", "a1", "", "x9y"])),
    "form": st.sampled_from(["abc", "c", "dabc", "ab", "abdc", "abc\n"]),
    "member": st.booleans(),
    "due": st.sampled_from([datetime(2023, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC)]),
    "own": st.sampled_from([0, 2]),
}


@pytest.mark.slow
@given(st.fixed_dictionaries({}, optional=VALUES))
@settings(max_examples=60, deadline=None)
def test_request_is_valid_exactly_if_row_is(changes: dict[str, Any]) -> None:
    row = {**ODD_ROW, **changes}
    try:
        Odd.validate(odd_frame([row]), lazy=True)
        valid = True
    except SchemaErrors:
        valid = False

    try:
        DECODER.mappings([row])
        accepted = True
    except RequestError:
        accepted = False

    assert accepted is valid


def test_python_checks_are_named_and_not_applied() -> None:
    contract = odd_contract()

    assert contract.unchecked == ("small_is_less", "own: even")
    assert DECODER.mappings([{**ODD_ROW, "own": 3}])[0][0][-1] == 3
    assert RequestContract.from_document(contract.document) == contract


@pytest.mark.parametrize(("name", "value"), [("small", 128), ("single", 1e39), ("maybe", -1e39), ("own", 2**63)])
def test_number_outside_column_type_is_refused(name: str, value: float) -> None:
    with pytest.raises(RequestError, match=f"'{name}' must be"):
        DECODER.mappings([{**ODD_ROW, name: value}])


@pytest.mark.fault("R3")
@pytest.mark.parametrize("encoder", [OneHotEncoder(), OrdinalEncoder()])
def test_unknown_category_is_refused_before_encoder(encoder: Any) -> None:
    rows = ROWS.assign(plan="paid")
    strict = fakes.visits_pipeline().set_params(preprocess__categories=encoder)
    learnt = build(rows=rows, pipeline=strict.fit(rows[SPEC.features], dataset_checks.target(rows, SPEC)))
    record = {"pages": 1, "seconds": 1.0, "plan": "free"}

    build(rows=rows).decoder().mappings([record])  # this encoder ignores unknown values
    with pytest.raises(RequestError, match=r"'plan' must be one of \['paid'\]"):
        learnt.decoder().mappings([record])


def test_missing_value_unknown_to_encoder_is_refused() -> None:
    class Maybe(fakes.Visits):
        plan: str = pa.Field(nullable=True)

    spec = fakes.visits_spec(contract=Maybe)
    strict = fakes.visits_pipeline().set_params(preprocess__categories=OneHotEncoder())
    full, holes = ROWS, ROWS.assign(plan=ROWS["plan"].where(ROWS["plan"] == "paid"))
    learnt = {
        name: build(spec, rows, strict.fit(rows[spec.features], dataset_checks.target(rows, spec)))
        for name, rows in (("full", full), ("holes", holes))
    }

    assert [learnt[name].features[2].nullable for name in ("full", "holes")] == [False, True]
    assert learnt["holes"].features[2].broken("free") == "must be one of ['paid']"
    assert math.isclose(learnt["full"].ranges["pages"][1], learnt["holes"].ranges["pages"][1])


def test_field_without_rules_is_limited_by_type() -> None:
    contract = build()
    loose = replace(contract, features=(replace(contract.features[0], rules=()), *contract.features[1:]))

    assert loose.features[0].broken(2**62) is None
    assert loose.features[0].broken(2**63) == f"must be at most {2**63 - 1}"
