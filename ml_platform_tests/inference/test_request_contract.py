"""The request contract: the refusals and their messages; the fast and the slow check agree."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_platform.errors import MAX_PROBLEMS, ConfigurationError, RequestError
from ml_platform.inference.request_contract import Field, RequestContract, Rule

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


def field(name: str, kind: Any, dtype: str, rules: dict[str, Any] | None = None, **changes: Any) -> Field:
    """Build a field from its rules by name."""
    limits = {"least": -(2**63), "most": 2**63 - 1} if kind == "int" else {}
    built = tuple(Rule(name=rule, value=value) for rule, value in (rules or {}).items())
    return Field(name=name, kind=kind, dtype=dtype, rules=built, **{**limits, **changes})


FIELDS = (
    field("pages", "int", "int64", {"ge": 0, "lt": 1_000}),
    field("seconds", "float", "float64", {"gt": 0, "ge": -5}, nullable=True),
    field("plan", "str", "str", {"isin": ["free", "paid"]}),
    field("state code", "str", "str", {"str_matches": "[A-Z]{2}$", "notin": ["QQ"]}, nullable=True),
    field("note", "str", "str", {"str_length": [None, 3], "str_contains": "a"}, required=False, nullable=True),
    field("member", "bool", "bool"),
    field("at", "time", "datetime64[us, UTC]", {"le": NOON}, zone=True),
    field("level", "float", "float64", {"isin": [1.0, 2.5]}),
    field("day", "int", "int64", {"isin": [1, 2, 3], "ne": 3}),
    field("odd", "any", "object"),
)
CONTRACT = RequestContract(
    model="visits",
    task="binary",
    features=FIELDS,
    entity=field("visitor", "int", "int64", {"ge": 1}),
    classes=(0, 1),
    positive="yes",
    score_ends=(0.1, 0.5),
    ranges={"pages": (1.0, 40.0), "seconds": (0.5, 90.0)},
    categories={"plan": ("free",), "member": (True,)},
    logged=("pages",),
    unchecked=("pages: unique",),
)
DECODER = CONTRACT.decoder()
GOOD = {
    "pages": 3,
    "seconds": 2.5,
    "plan": "free",
    "state code": "AB",
    "note": "a",
    "member": True,
    "at": "2024-01-01T11:00:00Z",
    "level": 2.5,
    "day": 1,
    "odd": "x",
}
RECORD = (3, 2.5, "free", "AB", "a", True, datetime(2024, 1, 1, 11, tzinfo=UTC), 2.5, 1, "x")


def refused(*records: Any) -> list[tuple[str | None, str, Any, int | None]]:
    with pytest.raises(RequestError) as caught:
        DECODER.records(json.dumps(list(records)).encode())
    assert caught.value.status == 422
    return [(problem.field, problem.rule, problem.value, problem.record) for problem in caught.value.problems]


def test_contract_round_trips_through_document() -> None:
    assert RequestContract.from_document(CONTRACT.document) == CONTRACT
    assert RequestContract.from_document(CONTRACT.document).document == CONTRACT.document


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"features": 1}', "null"])
def test_invalid_document_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        RequestContract.from_document(text)


def test_records_decode_in_every_layout_and_order() -> None:
    backwards = dict(reversed(GOOD.items()))
    rows = json.dumps([list(backwards.values())]).encode()
    columns = {name: json.dumps([value]).encode() for name, value in backwards.items()}

    assert DECODER.records(json.dumps([GOOD, backwards]).encode()) == ([RECORD, RECORD], None)
    assert DECODER.rows(list(backwards), rows) == ([RECORD], None)
    assert DECODER.rows(list(GOOD), json.dumps([list(GOOD.values())]).encode()) == ([RECORD], None)
    assert DECODER.columns(columns) == ([RECORD], None)
    assert DECODER.mappings([{**GOOD, "at": NOON.replace(hour=11)}]) == ([RECORD], None)


def test_entity_is_returned_separately() -> None:
    known, unknown = {**GOOD, "visitor": 7}, {**GOOD, "visitor": None}

    assert DECODER.records(json.dumps([known, GOOD]).encode()) == ([RECORD, RECORD], [7, None])
    assert DECODER.rows(list(known), json.dumps([list(known.values())]).encode()) == ([RECORD], [7])
    assert DECODER.columns({name: json.dumps([value]).encode() for name, value in known.items()}) == ([RECORD], [7])
    assert DECODER.records(json.dumps([unknown]).encode()) == ([RECORD], None)
    assert refused({**GOOD, "visitor": 0}) == [("visitor", "must be at least 1", 0, 0)]


def test_absent_optional_field_is_missing() -> None:
    few = {name: value for name, value in GOOD.items() if name != "note"}
    expected = (*RECORD[:4], None, *RECORD[5:])

    assert DECODER.records(json.dumps([few]).encode())[0] == [expected]
    assert DECODER.rows(list(few), json.dumps([list(few.values())]).encode())[0] == [expected]
    assert DECODER.columns({name: json.dumps([value]).encode() for name, value in few.items()})[0] == [expected]


@pytest.mark.fault("R3")
@pytest.mark.parametrize(
    ("name", "value", "rule", "shown"),
    [
        ("pages", -1, "must be at least 0", -1),
        ("pages", 1_000, "must be less than 1000", 1_000),
        ("pages", 2.0, "must be an integer", 2.0),
        ("pages", True, "must be an integer", True),
        ("pages", "3", "must be an integer", "3"),
        ("pages", None, "must not be empty", None),
        ("pages", 2**70, "must be less than 1000", str(2**70)),
        ("seconds", 0, "must be greater than 0", 0),
        ("seconds", "1", "must be a finite number", "1"),
        ("plan", "none", "must be one of ['free', 'paid']", "none"),
        ("plan", "x" * 500, "must be one of ['free', 'paid']", "x" * 100 + "…"),
        ("state code", "ab", "must match [A-Z]{2}$", "ab"),
        ("state code", "QQ", "must be none of ['QQ']", "QQ"),
        ("note", "aaaa", "must have a length in [None, 3]", "aaaa"),
        ("note", "b", "must contain a", "b"),
        ("member", 1, "must be true or false", 1),
        ("at", "yesterday", "must be a time in RFC 3339 format with a zone", "yesterday"),
        ("at", "2024-01-01T11:00:00", "must be a time in RFC 3339 format with a zone", "2024-01-01T11:00:00"),
        ("at", "2024-01-01T13:00:00Z", f"must be at most {NOON.isoformat()}", "2024-01-01T13:00:00+00:00"),
        ("level", 2, "must be one of [1.0, 2.5]", 2),
        ("day", 3, "must not be 3", 3),
        ("odd", {"a": 1}, "must be a number, text, true or false", "an object"),
        ("odd", [1], "must be a number, text, true or false", "a list"),
        ("colour", "red", "is not a column of this model", "red"),
    ],
)
def test_broken_rule_error_names_field_and_value(name: str, value: Any, rule: str, shown: Any) -> None:
    assert refused(GOOD, {**GOOD, name: value}) == [(name, rule, shown, 1)]


@pytest.mark.fault("R3")
def test_missing_column_is_named_in_every_layout() -> None:
    few = {name: value for name, value in GOOD.items() if name != "plan"}

    assert refused(few) == [("plan", "is required", None, 0)]
    with pytest.raises(RequestError, match="'plan' is required"):
        DECODER.rows(list(few), json.dumps([list(few.values())]).encode())
    with pytest.raises(RequestError, match="'plan' is required"):
        DECODER.columns({name: json.dumps([value]).encode() for name, value in few.items()})


def test_first_problems_of_many_records_are_named() -> None:
    problems = refused(*[{**GOOD, "pages": -1, "plan": "none"}] * 40, 7)

    assert len(problems) == MAX_PROBLEMS
    assert problems[-1] == ("plan", "must be one of ['free', 'paid']", "none", 4)
    assert refused(GOOD, 7) == [(None, "must be an object", 7, 1)]


@pytest.mark.fault("R1")
@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400])
def test_number_out_of_float_range_is_refused(number: str) -> None:
    for name in ("pages", "seconds"):
        body = json.dumps([{**GOOD, name: 5}]).replace(f'"{name}": 5', f'"{name}": {number}').encode()
        with pytest.raises(RequestError, match=f"'{name}' must be") as caught:
            DECODER.records(body)
        assert caught.value.status == 422


@pytest.mark.fault("R1")
@pytest.mark.parametrize(
    "body", [b"", b"[", b"[{]", b"[NaN]", b"\xff", b'["\\ud800', b"[" * 200_000, b"{}", b"7", b'"a"']
)
def test_body_without_records_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        DECODER.records(body)
    assert caught.value.status in {400, 422}


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (["pages", "pages"], "[[1, 2]]", "'pages' must come once"),
        ([*GOOD, "colour"], "[]", "'colour' is not a column of this model"),
        (list(GOOD), "[[1, 2]]", "must be a list of 10 values"),
        (list(GOOD), "[7]", "must be a list of 10 values"),
        (list(GOOD), "7", "must be a list of records"),
        (list(GOOD), "[]", "must hold at least one record"),
    ],
)
def test_rows_not_matching_columns_are_refused(columns: list[str], rows: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        DECODER.rows(columns, rows.encode())
    assert caught.value.status == 422


def test_columns_of_different_length_are_refused() -> None:
    columns = {name: json.dumps([value]).encode() for name, value in GOOD.items()}

    for name, values, message in (("pages", b"[1, 2]", "one length"), ("pages", b"7", "must be a list")):
        with pytest.raises(RequestError, match=message):
            DECODER.columns({**columns, name: values})
    with pytest.raises(RequestError, match="record 1: 'pages' must be at least 0"):
        DECODER.columns({name: b"[1, -1]" if name == "pages" else values for name, values in columns.items()})


def test_file_rows_have_same_rules() -> None:
    row = {**GOOD, "at": NOON}

    assert DECODER.mappings([{**row, "seconds": math.nan}])[0][0][1] is None
    for name, value in (("seconds", math.inf), ("seconds", -1.0), ("plan", "none"), ("pages", math.nan)):
        with pytest.raises(RequestError, match=f"record 1: '{name}' must"):
            DECODER.mappings([row, {**row, name: value}])


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, 2, 3, 999, 1_000, -1, 1.0, 2.5, 0.0, -0.0]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["free", "paid", "AB", "QQ", "a", "ab\n", "AB\n", "aaaa", "2024-01-01T12:00:00Z", "x"]),
    st.text(max_size=5),
)


@given(st.sampled_from([of for of in FIELDS if of.kind != "time"]), SCALARS)
@settings(max_examples=200, deadline=None)
def test_fast_and_slow_checks_agree(of: Field, value: Any) -> None:
    try:
        body = json.dumps([{**GOOD, of.name: value}]).encode()
        DECODER.records(body)
        accepted = True
    except RequestError:
        accepted = False

    assert accepted is (of.broken(value) is None)


@given(
    st.sampled_from(["ge", "gt", "le", "lt", "eq", "ne"]),
    st.sampled_from(["ge", "gt", "le", "lt"]),
    st.integers(-3, 3),
    st.one_of(st.integers(-3, 3), st.sampled_from([0.5, -1.5])),
    st.integers(-4, 4),
    st.sampled_from(["int", "float"]),
)
@settings(max_examples=200, deadline=None)
def test_two_bounds_are_both_applied(one: str, other: str, a: int, b: float, value: int, kind: Any) -> None:
    of = Field(name="n", kind=kind, dtype="float64", rules=(Rule(name=one, value=a), Rule(name=other, value=b)))
    contract = replace(CONTRACT, features=(of,), ranges={}, categories={})

    try:
        contract.decoder().records(msgspec.json.encode([{"n": value}]))
        accepted = True
    except RequestError:
        accepted = False

    assert accepted is all(rule.accepts(value) for rule in of.rules)


def test_frame_has_types_of_training_rows() -> None:
    empty = tuple(None if of.nullable else value for of, value in zip(FIELDS, RECORD, strict=True))

    frame = CONTRACT.frame([RECORD, empty])

    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {of.name: of.dtype for of in FIELDS}
    assert CONTRACT.convert_frame(frame) == [RECORD, empty]
    assert pd.isna(frame["seconds"][1])


def test_missing_integer_makes_column_float() -> None:
    of = Field(name="n", kind="int", dtype="int64", nullable=True)
    contract = replace(CONTRACT, features=(of,), ranges={}, categories={})

    frame = contract.frame([(1,), (None,)])

    assert frame["n"].dtype == np.float64
    assert contract.convert_frame(frame) == [(1,), (None,)]
    assert type(contract.convert_frame(frame)[0][0]) is int


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 0.0),
        ({"pages": 41}, 0.25),
        ({"pages": 0, "seconds": 91.0}, 0.5),
        ({"plan": "paid", "member": False, "pages": 0, "seconds": 0.1}, 1.0),
        ({"seconds": None}, 0.0),
        ({"pages": 40, "seconds": 0.5}, 0.0),
    ],
)
def test_anomaly_is_share_of_unusual_values(changes: dict[str, Any], expected: float) -> None:
    record = tuple({**CONTRACT.values(RECORD), **changes}.values())

    assert CONTRACT.anomaly(record) == expected


def test_score_bucket_includes_its_upper_end() -> None:
    assert [CONTRACT.find_score_bucket(score) for score in (0.0, 0.1, 0.11, 0.5, 1.0)] == [0, 0, 1, 1, 2]
    assert CONTRACT.find_score_bucket([0.2, 0.45, 0.35]) == 1


def test_values_are_selected_by_name() -> None:
    assert CONTRACT.values(RECORD, ("plan", "pages")) == {"plan": "free", "pages": 3}
    assert list(CONTRACT.values(RECORD)) == list(CONTRACT.names)
